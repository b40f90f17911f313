"""Find a model given as hub id, local folder, GGUF file, or file of an installed package."""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.config.instantiate import plain
from distill.models.hub import hub_commit
from distill.models.language_model import ModelSource, find_dtype
from distill.models.path import find_path, first_found

_SAMPLED_BLOCK, _SAMPLED_BLOCKS = 1 << 20, 64


def find_model(
    spec: str | Sequence[str],
    *,
    key: str,
    dtype: str = "float32",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> ModelSource:
    """Find a model without loading its weights.

    Args:
        spec: a hub id, a local folder in Hugging Face format, a GGUF file, `package:NAME/PATH` for a file or
            folder in an installed package, or a list of these, tried in order.
        key: the model's config key, for messages.
        dtype: dtype of the weights in memory.
        revision: the hub's branch, tag or commit.
        trust_remote_code: whether to run the repository's own Python code.

    Raises:
        UserError: no model was found; the message says what was tried.
    """
    return first_found(spec, key, lambda one: _find_one(one, key, dtype, revision, trust_remote_code))


def _find_one(spec: str, key: str, dtype: str, revision: str | None, trust_remote_code: bool) -> ModelSource:
    find_dtype(dtype)
    path = find_path(spec, key)
    source = functools.partial(ModelSource, name=spec, dtype=dtype, trust_remote_code=trust_remote_code)
    if path is None:
        commit = hub_commit(spec, key, revision)
        return source(location=spec, revision=commit, fingerprint=commit)
    if path.is_dir():
        return source(location=str(path), fingerprint=_hash_files(path))
    return source(location=str(path.parent), gguf=path.name, fingerprint=_hash_files(path))


def _hash_files(path: Path) -> str:
    """Hash of weights and configuration; of files over 64 MiB only the size and evenly spaced blocks."""
    digest = hashlib.sha256()
    names = (
        [path]
        if path.is_file()
        else sorted(p for p in path.iterdir() if p.suffix in {".safetensors", ".bin", ".json"})
    )
    for file in names:
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}:".encode())
        with file.open("rb") as stream:
            if size <= _SAMPLED_BLOCK * _SAMPLED_BLOCKS:
                digest.update(stream.read())
                continue
            for block in range(_SAMPLED_BLOCKS):
                stream.seek(block * (size - _SAMPLED_BLOCK) // (_SAMPLED_BLOCKS - 1))
                digest.update(stream.read(_SAMPLED_BLOCK))
    return digest.hexdigest()[:32]


def find(model: Mapping[str, Any], role: str, dtype: str) -> ModelSource:
    """Find the model of a role (`student`, `teacher`, …) from `model` of the configuration."""
    return find_model(
        plain(model[role]),
        key=f"model.{role}",
        dtype=dtype,
        revision=model["teacher_revision" if role == "teacher" else "student_revision"],
        trust_remote_code=model["trust_remote_code"],
    )
