"""A tokenizer as GGUF metadata: byte-level BPE, and vocabularies of single characters."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gguf import TokenType

from distill.data.tokenizers import template_variables, tokenizer_size
from distill.errors import UserError

_REMEDY = "take format=hf, and llama.cpp's convert_hf_to_gguf.py on it"
# llama.cpp's names of pre-tokenizers, by the regular expression that a tokenizer splits text with.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_BY_SPLIT = {_LLAMA3: "llama-bpe", _QWEN2: "qwen2"}


@dataclass(frozen=True)
class TokenizerMetadata:
    """What a GGUF file says of a tokenizer.

    Attributes:
        tokens: spelling of each id, in the byte alphabet where it is no special token.
        types: kind of each token (`gguf.TokenType`).
        merges: BPE's merges in their order, `a b`.
        pre: llama.cpp's name of the pre-tokenizer.
        special: ids by role: bos, eos, unk, pad, eot.
        add_bos: whether a text begins with the bos token.
        chat_template: with the variables that the student was trained with set in it; None: there is none.
    """

    tokens: Sequence[str]
    types: Sequence[int]
    merges: Sequence[str]
    pre: str
    special: dict[str, int]
    add_bos: bool
    chat_template: str | None


def tokenizer_metadata(tokenizer: Any, end_ids: Sequence[int], name: str) -> TokenizerMetadata:
    """Describe a tokenizer for a GGUF file.

    Args:
        tokenizer: of transformers, with a `tokenizer.json`.
        end_ids: tokens that end a completion, first the one that ends an answer.
        name: the model's, for messages.

    Raises:
        UserError: GGUF has no name for its kind, or this module none.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    described = {} if backend is None else json.loads(backend.to_str())
    merges, pre, spell = _kind(described, name)
    added = tokenizer.added_tokens_decoder
    by_id = {index: token for token, index in tokenizer.get_vocab().items()}
    tokens, types = [], []
    for index in range(tokenizer_size(tokenizer)):
        if index not in by_id:  # a hole in the vocabulary
            tokens.append(f"[PAD{index}]")
            types.append(TokenType.UNUSED)
        elif index in added or index in tokenizer.all_special_ids:
            special = index in tokenizer.all_special_ids or added[index].special
            tokens.append(by_id[index])
            types.append(TokenType.CONTROL if special else TokenType.USER_DEFINED)
        else:
            tokens.append(spell(by_id[index]))
            types.append(TokenType.NORMAL)
    special = {role: getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "unk", "pad")}
    special |= {"eot": end_ids[0]} if end_ids[0] != tokenizer.eos_token_id else {}
    begins = tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
    return TokenizerMetadata(
        tokens,
        [int(kind) for kind in types],
        merges,
        pre,
        {role: index for role, index in special.items() if index is not None},
        begins,
        _template(tokenizer),
    )


def _kind(described: dict[str, Any], name: str) -> tuple[list[str], str, Any]:
    """Merges, pre-tokenizer and spelling of a tokenizer's JSON."""
    model = described.get("model") or {}
    if model.get("type") == "BPE" and not model.get("byte_fallback"):
        merges = [one if isinstance(one, str) else " ".join(one) for one in model["merges"]]
        pre = _pre_tokenizer(described.get("pre_tokenizer"), name)
        if bool(model.get("ignore_merges")) != (pre == "llama-bpe"):  # as llama.cpp has it
            raise UserError(f"format=gguf: the tokenizer of {name} takes whole words as they are: {_REMEDY}")
        return merges, pre, lambda token: token
    alphabet = byte_alphabet()
    if model.get("type") == "WordLevel" and all(
        len(token) == 1 and ord(token) < 128 for token in model["vocab"] if not _is_added(described, token)
    ):
        # Each character is a byte: byte-level BPE without merges gives the same ids.
        return [], "gpt-2", lambda token: alphabet[ord(token)]
    kind = "sentencepiece" if model.get("byte_fallback") else model.get("type") or "without a tokenizer.json"
    raise UserError(
        f"format=gguf writes byte-level BPE, and the tokenizer of {name} is of another kind ({kind}): "
        f"{_REMEDY}"
    )


def _is_added(described: dict[str, Any], token: str) -> bool:
    return any(one["content"] == token for one in described.get("added_tokens") or ())


def _pre_tokenizer(node: dict[str, Any] | None, name: str) -> str:
    """llama.cpp's name for how a byte-level BPE splits text before it merges."""
    parts = (node or {}).get("pretokenizers") or ([node] if node else [])
    kinds = [part["type"] for part in parts]
    if kinds == ["Split", "ByteLevel"] and not parts[1].get("use_regex"):
        if found := _BY_SPLIT.get(str((parts[0].get("pattern") or {}).get("Regex"))):
            return found
    elif kinds == ["ByteLevel"] and parts[0].get("use_regex", True):
        return "gpt-2"
    elif kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits"):
        return "smollm"
    raise UserError(
        f"format=gguf has no name for how the tokenizer of {name} splits a text "
        f"({', '.join(kinds) or 'not'}), and under another one llama.cpp would read other tokens: {_REMEDY}"
    )


def byte_alphabet() -> list[str]:
    """The printable character that stands for each byte in byte-level BPE, as in GPT-2."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _template(tokenizer: Any) -> str | None:
    """The chat template; its variables, which a GGUF file has no place for, are set at its head."""
    if not tokenizer.chat_template:
        return None
    heads = [
        f"{{%- set {name} = {json.dumps(value)} -%}}" for name, value in template_variables(tokenizer).items()
    ]
    return "".join([*heads, tokenizer.chat_template])
