"""Settings of LoRA (2106.09685), read from the configuration without importing torch."""

import importlib.util
import math
from dataclasses import dataclass
from typing import Any, TypeGuard

from distill.errors import UserError

ALL_LINEAR = "all-linear"
_KEYS = ("rank", "alpha", "dropout", "targets")


@dataclass(frozen=True)
class Lora:
    """LoRA settings: y = Wx + (alpha / rank) · B A dropout(x), with W frozen and B initially zero.

    Attributes:
        rank: rows of A and columns of B.
        alpha: numerator of the scaling factor.
        dropout: dropout rate of the adapters' input, in [0, 1).
        targets: names of linear layers, full (`model.layers.0.self_attn.q_proj`) or suffixes (`q_proj`);
            empty: all except the output matrix.
    """

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]


def read_lora(values: Any) -> Lora | None:
    """Validate `model.lora` of the configuration; None if all weights train.

    Raises:
        UserError: a value is invalid, or peft is not installed.
    """
    if values is None:
        return None
    if not isinstance(values, dict):
        raise UserError(f"model.lora={values!r} has keys of its own: write model.lora.rank={values}")
    for key in values:
        if key not in _KEYS:
            raise UserError(f"model.lora.{key}: LoRA has no such key (keys: {', '.join(_KEYS)})")
    rank, alpha, dropout, targets = (values.get(key) for key in _KEYS)
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise UserError(f"model.lora.rank={rank!r} must be a whole number, at least 1, or null")
    if not _is_number(alpha) or not 0 < alpha < math.inf:
        raise UserError(f"model.lora.alpha={alpha!r} must be a positive number")
    if not _is_number(dropout) or not 0 <= dropout < 1:
        raise UserError(f"model.lora.dropout={dropout!r} must be a number in [0, 1)")
    listed = [targets] if isinstance(targets, str) else targets
    if not isinstance(listed, list) or not listed or not all(isinstance(x, str) and x for x in listed):
        raise UserError(
            f"model.lora.targets={targets!r} must be {ALL_LINEAR} or names, such as [q_proj,v_proj]"
        )
    if ALL_LINEAR in listed and len(listed) > 1:
        raise UserError(f"model.lora.targets={targets!r}: {ALL_LINEAR} stands alone, without other names")
    if rank is None:
        return None
    if importlib.util.find_spec("peft") is None:
        raise UserError(f'model.lora.rank={rank} needs peft, which is missing: pip install "distill[peft]"')
    return Lora(rank, float(alpha), float(dropout), () if listed == [ALL_LINEAR] else tuple(listed))


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
