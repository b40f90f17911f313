"""Find a model given as hub id, local folder, GGUF file, or file of an installed package."""

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.config.instantiate import plain
from distill.config.kinds import check_text
from distill.errors import UserError
from distill.io.checksums import CHECKSUMS
from distill.models.hub import hub_commit
from distill.models.language_model import ModelSource, find_dtype
from distill.models.path import find_path, first_found

_DTYPES = {"model.student_dtype": False, "model.teacher_dtype": False}
_OWN = {
    "add_generation_prompt",
    "chat_template",
    "continue_final_message",
    "conversation",
    "messages",
    "tokenize",
}
_SAMPLED_BLOCK, _SAMPLED_BLOCKS = 1 << 20, 64


def find_model(
    spec: str | Sequence[str],
    *,
    key: str,
    dtype: str = "float32",
    revision: str | None = None,
    trust_remote_code: bool = False,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> ModelSource:
    """Find a model without loading its weights.

    Args:
        spec: a hub id, a local folder in Hugging Face format, a GGUF file, `package:NAME/PATH` for a file or
            folder in an installed package, or a list of these, tried in order.
        key: the model's config key, for messages.
        dtype: dtype of the weights in memory.
        revision: the hub's branch, tag or commit.
        trust_remote_code: whether to run the repository's own Python code.
        chat_template_kwargs: variables for the chat template (`variables_of`).

    Raises:
        UserError: no model was found; the message says what was tried.
    """
    source = functools.partial(
        ModelSource,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        chat_template_kwargs=chat_template_kwargs or None,
    )
    find_dtype(dtype)
    return first_found(spec, key, lambda one: _find_one(one, key, revision, source))


def _find_one(
    spec: str, key: str, revision: str | None, source: functools.partial[ModelSource]
) -> ModelSource:
    path = find_path(spec, key)
    if path is None:
        commit = hub_commit(spec, key, revision)
        return source(name=spec, location=spec, revision=commit, fingerprint=commit)
    if path.is_dir():
        return source(name=spec, location=str(path), fingerprint=_hash_files(path))
    return source(name=spec, location=str(path.parent), gguf=path.name, fingerprint=_hash_files(path))


def variables_of(given: Any, key: str = "model.chat_template_kwargs") -> dict[str, Any]:
    """Variables for the chat template from the configuration, without those that are null.

    Args:
        given: the value of the key; None: there are none.
        key: the key, for messages.

    Raises:
        UserError: it is no mapping, or names what is no variable.
    """
    given = plain(given)
    if given is not None and not isinstance(given, Mapping):
        raise UserError(f"{key}={given!r} is no list of variables: {key}.enable_thinking=false")
    if own := _OWN & {str(name) for name in given or {}}:
        raise UserError(
            f"{key}.{min(own)} cannot be set: it is no variable of a chat template, but what is rendered"
        )
    return {str(name): value for name, value in (given or {}).items() if value is not None}


def check_template_variables(sources: Iterable[ModelSource]) -> None:
    """Check that each variable for the chat templates is read by one of the models' templates.

    Raises:
        UserError: one is not; names it.
    """
    sources = list(sources)
    texts = " ".join(str(one.tokenizer.chat_template) for one in sources if one.chat_template_kwargs)
    for source in sources:
        for name, value in (source.chat_template_kwargs or {}).items():
            if not re.search(rf"\b{re.escape(name)}\b", texts):
                models = " or ".join(dict.fromkeys(one.name for one in sources))
                raise UserError(
                    f"model.chat_template_kwargs.{name}={json.dumps(value)}: the chat template of {models} "
                    f"does not read it; leave it out, or choose a model whose template does"
                )


def _hash_files(path: Path) -> str:
    """Hash of weights and configuration; of files over 64 MiB only the size and evenly spaced blocks."""
    digest = hashlib.sha256()
    names = (
        [path]
        if path.is_file()
        else sorted(
            p for p in path.iterdir() if p.suffix in {".safetensors", ".bin", ".json"} and p.name != CHECKSUMS
        )
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


def find(model: Mapping[str, Any], role: str, dtype: str, *, key: str | None = None) -> ModelSource:
    """Find the model of a role (`student`, `teacher`, …) from `model` of the configuration.

    Args:
        model: `model` of the configuration.
        role: of the model.
        dtype: of its weights in memory.
        key: the model's config key, for messages; None: `model.<role>`.
    """
    revision = f"{'teacher' if role == 'teacher' else 'student'}_revision"
    check_text({"model": plain(model)}, {f"model.{revision}": True, **_DTYPES})
    named = model[revision]
    variables = variables_of(model.get("chat_template_kwargs"))
    if role == "teacher":
        own = "teacher_chat_template_kwargs"
        variables |= variables_of(model.get(own), f"model.{own}")
    return find_model(
        plain(model[role]),
        key=key or f"model.{role}",
        dtype=str(dtype),
        revision=None if named is None else str(named),  # YAML reads some commits as numbers
        trust_remote_code=model["trust_remote_code"],
        chat_template_kwargs=variables,
    )
