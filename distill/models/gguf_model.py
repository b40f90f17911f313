"""What is read of a GGUF file: its tokenizer and configuration once a process, its weights once a cache.

Turning the weights back into numbers takes seconds and a copy of the model in memory. Where there is a cache,
they are therefore kept there as safetensors, which each later load maps: jobs, roles and processes that use
the same file then share its pages until one trains them.
"""

import copy
import functools
import os
import shutil
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from distill.errors import UserError
from distill.io.cache import keyed_folder
from distill.io.checksums import check, note_folder, noted
from distill.io.files import cannot_write
from distill.io.locks import waited
from distill.models.pre_tokenizers import set_stored_pre_tokenizer


def tokenizer_in(folder: str, name: str, fingerprint: str, options: Mapping[str, Any]) -> Any:
    """The tokenizer of a GGUF file, which splits text as the file says; the caller's own copy.

    Args:
        folder: of the file.
        name: of the file.
        fingerprint: of its content: a file that has changed is read again.
        options: further arguments of `from_pretrained`.
    """
    return copy.deepcopy(_tokenizer(folder, name, fingerprint, tuple(sorted(options.items()))))


def configuration_in(folder: str, name: str, fingerprint: str, options: Mapping[str, Any]) -> Any:
    """The configuration of a GGUF file; the caller's own copy. Arguments as of `tokenizer_in`."""
    return copy.deepcopy(_configuration(folder, name, fingerprint, tuple(sorted(options.items()))))


@functools.lru_cache(maxsize=4)  # jobs of a sweep have the same models; each read takes seconds
def _tokenizer(folder: str, name: str, fingerprint: str, options: tuple[tuple[str, Any], ...]) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, **dict(options))
    set_stored_pre_tokenizer(tokenizer, Path(folder, name))
    return tokenizer


@functools.lru_cache(maxsize=4)
def _configuration(folder: str, name: str, fingerprint: str, options: tuple[tuple[str, Any], ...]) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, **dict(options))


def kept_weights(cache: Path, fingerprint: str, dtype: str, read: Callable[[], Any]) -> Path:
    """The folder of a GGUF file's weights as safetensors, in Hugging Face format without a tokenizer.

    It is made if it is missing, incomplete or damaged. Of several processes one makes it, the others wait.

    Args:
        cache: folder of all caches.
        fingerprint: of the file's content.
        dtype: of the weights in memory.
        read: reads the model from the file, dequantized to this dtype.

    Raises:
        UserError: the folder cannot be written to.
    """
    # Another release may turn the same file into other numbers.
    packages = {name: version(name) for name in ("transformers", "gguf")}
    try:
        folder = keyed_folder(cache, "gguf_weights", {"file": fingerprint, "dtype": dtype, **packages})
    except OSError as error:
        raise UserError(
            f"cache={cache} cannot be written ({error.strerror}): name another folder with cache=<folder>"
        ) from error
    place = folder / "model"
    if not _whole(place):
        with waited(folder):
            if not _whole(place):
                _write(place, read())
    return place


def _whole(place: Path) -> bool:
    """Whether the folder holds all that was written, undamaged."""
    try:
        files = noted(place)
        check(files, "")
    except UserError:
        return False
    return bool(files)


def _write(place: Path, model: Any) -> None:
    """Save a model so that its folder is either complete or absent."""
    unfinished = place.with_name("unfinished")  # of a process that was killed: we hold the folder's lock
    try:
        for folder in (place, unfinished):
            if folder.exists():
                shutil.rmtree(folder)
        model.save_pretrained(unfinished)
        note_folder(unfinished)
        os.replace(unfinished, place)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)  # a full disk
        raise cannot_write(place, error) from error
