"""The pre-tokenizer that a GGUF file names: how a byte-level BPE splits a text before it merges."""

import mmap
import struct
import sys
from pathlib import Path
from typing import Any

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
    elif name not in ("gpt-2", "default"):
        print(
            f"{file.name} names a pre-tokenizer that transformers does not know ({name}): text is split as "
            f"for GPT-2, and its tokens may differ from llama.cpp's",
            file=sys.stderr,
        )
