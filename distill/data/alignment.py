"""Two tokenisations of one text, side by side: where both have a boundary, both models have read the same."""

import functools
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_INCOMPLETE = "\ufffd"  # what a decoder writes for a character of which some bytes are missing


@dataclass(frozen=True)
class Spelling:
    """A text as the tokens that make it up.

    Attributes:
        text: what the tokens spell together; special tokens spell nothing.
        ends: how many characters are spelled after each token; None inside a character.
        marks: tokens that begin every text and spell nothing: the lone ▁ of some tokenizers.
    """

    text: str
    ends: tuple[int | None, ...]
    marks: int = 0


@dataclass(frozen=True)
class Alignment:
    """Tokens of two tokenisations that begin at the same place of the text.

    Attributes:
        student_at: [pairs] int64 index of the student's token.
        teacher_at: [pairs] int64 index of the teacher's token.
        same_token: [pairs] whether both are the same piece of text, and not one longer than the other.
    """

    student_at: np.ndarray
    teacher_at: np.ndarray
    same_token: np.ndarray


def spell(tokenizer: Any, ids: Sequence[int]) -> Spelling:
    """Which characters each token stands for, whatever kind the tokenizer is of.

    Tokens are decoded along with those before them, never alone: many decoders drop the blank that a text
    begins with, and a character may be spread over several tokens.
    """
    decode = functools.partial(tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    text: list[str] = []
    ends: list[int | None] = []
    start = known = length = 0
    shown = ""  # tokens start … known, decoded: the context of the next piece
    for position in range(1, len(ids) + 1):
        now = decode(list(ids[start:position]))
        if now.endswith(_INCOMPLETE):
            ends.append(None)
            continue
        text.append(now[len(shown) :])
        length += len(text[-1])
        ends.append(length)
        if now:  # special tokens spell nothing, and give no context
            start, known = known, position
            shown = decode(list(ids[start:known]))
    special = set(tokenizer.all_special_ids)
    marks = itertools.takewhile(
        lambda pair: pair[0] not in special and pair[1] == 0, zip(ids, ends, strict=True)
    )
    return Spelling("".join(text), tuple(ends), sum(1 for _ in marks))


def beginning_alike(spelling: Spelling, other: Spelling) -> Spelling:
    """The spelling, of the other's text, without the one blank that its tokenizer puts before every text, or
    with the one that its decoder drops there."""
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
    """Pairs of tokens before which both have spelled the same text, in its order.

    As far as the two texts agree: where a tokenizer cannot spell something, nothing behind it is compared.
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


def _starts(spelling: Spelling, agreed: int) -> dict[int, int]:
    """By place in the text, the token that begins there: the first, before which there is nothing else.
    (Special tokens spell nothing.) Marks are passed over: before them a model has nothing to decide."""
    before: list[int | None] = [0, *spelling.ends[:-1]]
    found: dict[int, int] = {}
    for index, at in enumerate(before[: len(spelling.ends)]):
        if index >= spelling.marks and at is not None and at <= agreed:
            found.setdefault(at, index)
    return found


def shared_tokens(student: Any, teacher: Any) -> np.ndarray:
    """Ids of the tokens that both vocabularies have, whatever way each writes a blank.

    Args:
        student: its tokenizer.
        teacher: its tokenizer.

    Returns:
        [2, shared] int64: the student's ids, ascending, over the teacher's. Special tokens are not shared.
    """
    theirs = _pieces(teacher)
    pairs = sorted((index, theirs[piece]) for piece, index in _pieces(student).items() if piece in theirs)
    return np.asarray(pairs, dtype=np.int64).reshape(-1, 2).T


def _pieces(tokenizer: Any) -> dict[bytes, int]:
    """Every token but the special ones, by the bytes that it stands for inside a text."""
    special = set(tokenizer.all_special_ids)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    byte_level = backend is not None and "ByteLevel" in _decoder_types(backend)
    found: dict[bytes, int] = {}
    # A lone byte, <0x61>, only where no token of its own stands for it: that is the one that gets written.
    order = sorted(tokenizer.get_vocab().items(), key=lambda item: (_is_byte(item[0]), item[1]))
    for token, index in order:
        if index not in special:
            found.setdefault(_from_byte_level(token) if byte_level else _from_pieces(token), index)
    return found


def _decoder_types(backend: Any) -> set[str]:
    decoder = json.loads(backend.to_str()).get("decoder") or {}
    return {part.get("type", "") for part in (decoder, *decoder.get("decoders", []))}


def _from_byte_level(token: str) -> bytes:
    """GPT-2's alphabet, which stands for bytes; added tokens outside it stand for themselves."""
    alphabet = _byte_alphabet()
    return bytes(alphabet[c] for c in token) if all(c in alphabet for c in token) else token.encode()


def _is_byte(token: str) -> bool:
    return re.fullmatch(r"<0x[0-9A-F]{2}>", token) is not None


def _from_pieces(token: str) -> bytes:
    """SentencePiece writes a blank as ▁ and lone bytes as <0x0A>; others write what they mean."""
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
