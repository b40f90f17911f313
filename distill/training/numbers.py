"""Checks before torch is imported, of numbers: that those of the configuration are in range."""

import math
from collections.abc import Mapping
from typing import Any

from distill.config.kinds import check_text
from distill.errors import UserError

# Integer keys and their minimum.
_WHOLE = {
    "seed": 0,
    "data.batch_size": 1,
    "data.token_budget": 1,
    "data.samples": 1,
    "data.sampling_batch_size": 1,
    "benchmark.token_budget": 1,
    "histogram_every": 1,
    "checkpoint.every": 1,
    "checkpoint.keep": 1,
    "trainer.accumulate_grad_batches": 1,
    "trainer.log_every_n_steps": 1,
}
_WHOLE_OR_NULL = (
    "max_tokens",
    "data.limit",
    "data.max_length",
    "benchmark.limit",
    "eval_every",
    "benchmark.samples",
    "benchmark.max_new_tokens",
    "trainer.max_steps",
    "model.threads",
)
# Keys that hold text, and whether each may be null.
_TEXT = {
    "name": False,
    "dir": False,
    "runs": False,
    "cache": False,
    "ckpt_path": True,
    "model.student_dtype": False,
    "model.teacher_dtype": False,
    "model.student_revision": True,
    "model.teacher_revision": True,
    "data.layout": False,
}
_SEEDS = 2**32 - 1  # numpy's maximum


def check_numbers(values: Mapping[str, Any]) -> None:
    """Check the ranges of numbers in a resolved configuration; raise UserError that names the key."""
    check_text(values, _TEXT)
    for key, least in _WHOLE.items():
        value = _select(values, key, absent=least)
        if not _is_whole(value) or value < least:
            raise UserError(f"{key}={value!r} must be a whole number, at least {least}")
    for key in _WHOLE_OR_NULL:
        value = _select(values, key, absent=None)
        if value is not None and (not _is_whole(value) or value < 1):
            raise UserError(f"{key}={value!r} must be a whole number, at least 1, or null")
    if values["seed"] > _SEEDS:
        raise UserError(f"seed={values['seed']} must be at most {_SEEDS}")
    checkpoint = values["model"]["gradient_checkpointing"]
    if not isinstance(checkpoint, bool):
        raise UserError(f"model.gradient_checkpointing={checkpoint!r} is neither true nor false")
    epochs: Any = values["data"]["epochs"]
    if isinstance(epochs, bool) or not isinstance(epochs, (int, float)) or not 0 < epochs < math.inf:
        raise UserError(f"data.epochs={epochs!r} must be a positive number")
    for key in ("data.operations", "benchmark.arithmetic.source.operations"):
        value = _select(values, key, absent=[1, 1])
        if not (isinstance(value, list) and len(value) == 2 and all(map(_is_whole, value))) or not (
            1 <= value[0] <= value[1]
        ):
            raise UserError(f"{key}={value!r} must be two whole numbers, fewest and most, such as [4,8]")


def _select(values: Mapping[str, Any], key: str, absent: Any) -> Any:
    node: Any = values
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return absent
        node = node[part]
    return node


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
