"""How a tokenizer splits a text before it merges: as the model's file says, where transformers does not."""

import mmap
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_FILE_ALONE = ("TokenizersBackend", "PreTrainedTokenizerFast")  # classes that take tokenizer.json as it is
_HEADER = 1 << 26  # bytes at the file's begin where the name is looked for: before the vocabulary
_STRING = 8  # GGUF's number of the type string


def stored_name(file: Path) -> str | None:
    """Read llama.cpp's name of the pre-tokenizer from a GGUF file; None if there is none.

    Only this one field is read: the whole header would take seconds.
    """
    key = b"tokenizer.ggml.pre"
    sought = struct.pack("<Q", len(key)) + key + struct.pack("<I", _STRING)
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        at = content.find(sought, 0, _HEADER)
        if at < 0:
            return None
        at += len(sought)
        (length,) = struct.unpack_from("<Q", content, at)
        return content[at + 8 : at + 8 + min(length, 64)].decode(errors="replace")


def set_stored_pre_tokenizer(tokenizer: Any, file: Path) -> None:
    """Let a tokenizer that transformers read from a GGUF file split text as the file says.

    transformers gives GPT-2's split to names that it does not know, among them SmolLM's. Another that gets it
    is told on stderr.
    """
    from tokenizers import pre_tokenizers

    name = stored_name(file)
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if name is None or not isinstance(getattr(backend, "pre_tokenizer", None), pre_tokenizers.ByteLevel):
        return
    if name == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        tokenizer.splits_as_its_file = True
    elif name not in ("gpt-2", "default"):
        print(
            f"{file.name} names a pre-tokenizer that transformers does not know ({name}): text is split as "
            f"for GPT-2, and its tokens may differ from llama.cpp's",
            file=sys.stderr,
        )


def as_its_file_says(tokenizer: Any, location: str, where: Mapping[str, Any]) -> Any:
    """A model's tokenizer, with the split of its tokenizer.json where tokenizer_config.json asks for it.

    For some types of models, `qwen2` among them, AutoTokenizer passes over the class that
    tokenizer_config.json names: it takes the file's vocabulary and merges, and splits text as the class of
    that type does. A file of another kind than byte pairs, as the embedded pair's of single characters, stays
    as AutoTokenizer reads it.

    Args:
        tokenizer: what AutoTokenizer returned.
        location: folder or hub id of the model.
        where: further arguments of `from_pretrained`.
    """
    from transformers import PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    if type(tokenizer) is PreTrainedTokenizerFast or not isinstance(tokenizer, PreTrainedTokenizerFast):
        return tokenizer
    if get_tokenizer_config(location, **where).get("tokenizer_class") not in _FILE_ALONE:
        return tokenizer
    own = PreTrainedTokenizerFast.from_pretrained(location, **where)
    own.splits_as_its_file = True
    kinds = {type(one.backend_tokenizer.model) for one in (own, tokenizer)}
    return own if len(kinds) == 1 else tokenizer


def split_key(tokenizer: Any) -> dict[str, str]:
    """Part of a cache key, so that nothing written with transformers' split is read; empty elsewhere."""
    return {"split": "of its file"} if getattr(tokenizer, "splits_as_its_file", False) else {}
