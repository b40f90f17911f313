"""Align two tokenizations of one text: where both have a token boundary, both models have read the same
text."""

import functools
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_INCOMPLETE = "\ufffd"  # the decoder's replacement for an incomplete character


@dataclass(frozen=True)
class Spelling:
    """A tokenized text with its character offsets.

    Attributes:
        text: decoded text of the tokens; special tokens decode to nothing.
        ends: number of characters decoded up to and including each token; None inside a character.
        marks: number of leading tokens that decode to nothing, such as the lone ▁ of some tokenizers.
    """

    text: str
    ends: tuple[int | None, ...]
    marks: int = 0


@dataclass(frozen=True)
class Alignment:
    """Pairs of tokens of two tokenizations that begin at the same character of the text.

    Attributes:
        student_at: [pairs] int64 index of the student's token.
        teacher_at: [pairs] int64 index of the teacher's token.
        same_token: [pairs] whether both tokens also end at the same character.
    """

    student_at: np.ndarray
    teacher_at: np.ndarray
    same_token: np.ndarray


def spell(tokenizer: Any, ids: Sequence[int]) -> Spelling:
    """Find the characters of each token, for any kind of tokenizer.

    Each token is decoded together with those before it: many decoders drop a text's leading blank, and a
    character may span several tokens.
    """
    decode = functools.partial(tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    text: list[str] = []
    ends: list[int | None] = []
    start = known = length = 0
    shown = ""  # decoded tokens start … known: the context of the next token
    for position in range(1, len(ids) + 1):
        now = decode(list(ids[start:position]))
        if now.endswith(_INCOMPLETE):
            ends.append(None)
            continue
        text.append(now[len(shown) :])
        length += len(text[-1])
        ends.append(length)
        if now:  # special tokens decode to nothing and are no context
            start, known = known, position
            shown = decode(list(ids[start:known]))
    special = set(tokenizer.all_special_ids)
    marks = itertools.takewhile(
        lambda pair: pair[0] not in special and pair[1] == 0, zip(ids, ends, strict=True)
    )
    return Spelling("".join(text), tuple(ends), sum(1 for _ in marks))


def beginning_alike(spelling: Spelling, other: Spelling) -> Spelling:
    """The spelling with its leading blank made like the other's: without the blank that a tokenizer puts
    before every text, or with the blank that a decoder drops."""
    blanks = [len(text) - len(text.lstrip(" ")) for text in (spelling.text, other.text)]
    if blanks[0] == blanks[1] + 1:
        ends = tuple(end if end is None else max(0, end - 1) for end in spelling.ends)
        marks = sum(1 for _ in itertools.takewhile(lambda end: end == 0, ends))
        return Spelling(spelling.text[1:], ends, marks)
    if blanks[0] + 1 == blanks[1]:
        ends = tuple(end if end is None else end + 1 for end in spelling.ends)
        return Spelling(f" {spelling.text}", ends)
    return spelling


def align(student: Spelling, teacher: Spelling) -> Alignment:
    """Pair the tokens that have the same text before them, in text order.

    Only as far as the two texts agree: after something that a tokenizer cannot represent, nothing is paired.
    """
    shorter = min(len(student.text), len(teacher.text))
    parting = (i for i in range(shorter) if student.text[i] != teacher.text[i])
    agreed = next(parting, shorter)
    theirs = _starts(teacher, agreed)
    pairs = [(mine, theirs[at], at) for at, mine in _starts(student, agreed).items() if at in theirs]
    columns = np.asarray([(s, t) for s, t, _ in pairs], dtype=np.int64).reshape(-1, 2)
    same = [
        student.ends[s] == teacher.ends[t] and (student.ends[s] or agreed + 1) <= agreed for s, t, _ in pairs
    ]
    return Alignment(columns[:, 0], columns[:, 1], np.asarray(same, dtype=bool))


def spans(alignment: Alignment) -> list[tuple[slice, slice]]:
    """Pairs of token ranges, the student's and the teacher's, that spell the same text.

    A span reaches from a boundary that both tokenizations share to the next one. The tokens behind the last
    boundary are a span only if they are the same single token, such as the end token.
    """
    mine, theirs = alignment.student_at.tolist(), alignment.teacher_at.tolist()
    ends = [*zip(mine[1:], theirs[1:], strict=True)]
    if mine and alignment.same_token[-1]:
        ends.append((mine[-1] + 1, theirs[-1] + 1))
    begins = zip(mine, theirs, strict=True)
    return [(slice(s, a), slice(t, b)) for (s, t), (a, b) in zip(begins, ends, strict=False)]


def span_starts(alignment: Alignment | None, tokens: int) -> np.ndarray:
    """[tokens] int64: for each of the student's tokens, the index of its span's first token; -1: in no span.

    Without an alignment, every token is a span of its own.
    """
    if alignment is None:
        return np.arange(tokens)
    place = np.searchsorted(alignment.student_at, np.arange(tokens), side="right") - 1
    found = np.append(alignment.student_at, -1)[place]  # -1 before the first boundary, too
    if len(alignment.student_at):
        last = alignment.student_at[-1]
        found[last + bool(alignment.same_token[-1]) :] = -1  # as in `spans`
    return found


def spread_over_spans(values: np.ndarray, alignment: Alignment, tokens: int) -> np.ndarray:
    """[tokens] each span's sum of the teacher's values, spread evenly over the student's tokens in it; zero
    for tokens in no span.

    Args:
        values: [teacher_tokens] one number for each of the teacher's tokens, such as its log-probs.
        alignment: of the two tokenizations.
        tokens: number of the student's tokens.
    """
    found = np.zeros(tokens, dtype=values.dtype)
    for mine, theirs in spans(alignment):
        found[mine] = values[theirs].sum(dtype=np.float64) / (mine.stop - mine.start)
    return found


def _starts(spelling: Spelling, agreed: int) -> dict[int, int]:
    """By character position, the first token that begins there. (Special tokens have no characters.)

    Marks are skipped, because a model has no choice about them.
    """
    before: list[int | None] = [0, *spelling.ends[:-1]]
    found: dict[int, int] = {}
    for index, at in enumerate(before[: len(spelling.ends)]):
        if index >= spelling.marks and at is not None and at <= agreed:
            found.setdefault(at, index)
    return found


def shared_tokens(student: Any, teacher: Any) -> np.ndarray:
    """Ids of the tokens that both vocabularies have, however each encodes a blank.

    Args:
        student: its tokenizer.
        teacher: its tokenizer.

    Returns:
        [2, shared] int64: the student's ids, ascending, and the teacher's ids. Special tokens are not shared.
    """
    theirs = _pieces(teacher)
    pairs = sorted((index, theirs[piece]) for piece, index in _pieces(student).items() if piece in theirs)
    return np.asarray(pairs, dtype=np.int64).reshape(-1, 2).T


def _pieces(tokenizer: Any) -> dict[bytes, int]:
    """Ids of all tokens but the special ones, by the bytes that each stands for inside a text."""
    special = set(tokenizer.all_special_ids)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    byte_level = backend is not None and "ByteLevel" in _decoder_types(backend)
    found: dict[bytes, int] = {}
    # A byte token such as <0x61> counts only if no other token has that byte: tokenizers write the other one.
    order = sorted(tokenizer.get_vocab().items(), key=lambda item: (_is_byte(item[0]), item[1]))
    for token, index in order:
        if index not in special:
            found.setdefault(_from_byte_level(token) if byte_level else _from_pieces(token), index)
    return found


def _decoder_types(backend: Any) -> set[str]:
    decoder = json.loads(backend.to_str()).get("decoder") or {}
    return {part.get("type", "") for part in (decoder, *decoder.get("decoders", []))}


def _from_byte_level(token: str) -> bytes:
    """Decode GPT-2's byte alphabet; added tokens outside of it are plain text."""
    alphabet = _byte_alphabet()
    return bytes(alphabet[c] for c in token) if all(c in alphabet for c in token) else token.encode()


def _is_byte(token: str) -> bool:
    return re.fullmatch(r"<0x[0-9A-F]{2}>", token) is not None


def _from_pieces(token: str) -> bytes:
    """Decode SentencePiece's ▁ for a blank and <0x0A> for a byte; other tokens are plain text."""
    if _is_byte(token):
        return bytes([int(token[3:5], 16)])
    return token.replace("▁", " ").encode("utf-8", "surrogatepass")


@functools.cache
def _byte_alphabet() -> dict[str, int]:
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + number): byte for number, byte in enumerate(others)
    }
