"""Reasoning steps of a completion: where they begin, and the tokens that end them."""

import functools
from collections.abc import Collection, Sequence
from typing import Any

from distill.errors import UserError


def step_starts(ids: Sequence[int], ends: Collection[int]) -> list[int]:
    """Where reasoning steps begin in a completion, counted from its first token.

    Args:
        ids: the completion's tokens.
        ends: tokens that end a step, of `tokens_with_text`.
    """
    return [0, *(at + 1 for at, token in enumerate(ids[:-1]) if token in ends)]


def check_separator(key: str, separator: str, tokenizer: Any, name: str) -> None:
    """Check that steps can be told apart.

    Args:
        key: of the configuration, for the message.
        separator: text that ends a step.
        tokenizer: of the student.
        name: the student's.

    Raises:
        UserError: no token contains the separator.
    """
    if not tokens_with_text(tokenizer, separator):
        raise UserError(
            f"{key}={separator!r}: no token of {name} has this text in it, so no step would end; name what "
            f"stands between the steps of your data (data.step_separator)"
        )


@functools.lru_cache(maxsize=8)
def tokens_with_text(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Ids of the tokens that contain a text."""
    ids = sorted(tokenizer.get_vocab().values())
    pieces = tokenizer.batch_decode([[index] for index in ids])
    return tuple(index for index, piece in zip(ids, pieces, strict=True) if text in piece)
