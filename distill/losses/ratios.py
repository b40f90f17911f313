"""Log-ratios of two models' token probabilities, for token weights, and checks of weights' parameters."""

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Level = Literal["token", "prefix", "sequence"]
Transform = Literal["sigmoid", "ratio", "clip", "clip_exp", "relu"]
BOUND = 60.0  # bound on log-ratios whose sum or exponential must be finite: e^60 is practically infinite


def wide(values: Tensor) -> Tensor:
    """Detached, fp32 or wider."""
    return values.detach().to(torch.promote_types(values.dtype, torch.float32))


def log_ratio(
    numerator: Float[Tensor, "batch seq"],
    denominator: Float[Tensor, "batch seq"],
    mask: Bool[Tensor, "batch seq"],
) -> Float[Tensor, "batch seq"]:
    """log a - log b, zero outside the mask.

    Where a = 0 the result is -inf even if b = 0 too, so that inf - inf never occurs.
    """
    above, below = wide(numerator), wide(denominator)
    return torch.where(above == -torch.inf, -torch.inf, above - below).masked_fill(~mask, 0.0)


def aggregate(
    ratio: Float[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"], level: Level
) -> Float[Tensor, "batch seq"]:
    """Mean log-ratios over each prefix or each sequence, or the log-ratios of the tokens themselves.

    One ratio of -inf makes the mean -inf, even if another is +inf, so that inf - inf never occurs.
    """
    if level == "token":
        return ratio
    impossible = ratio == -torch.inf
    finite = ratio.masked_fill(impossible, 0.0)
    if level == "prefix":
        means = finite.cumsum(-1) / mask.cumsum(-1).clamp(min=1)
        return means.masked_fill(impossible.cumsum(-1) > 0, -torch.inf)
    means = finite.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
    return means.masked_fill(impossible.any(-1, keepdim=True), -torch.inf).expand_as(ratio)


def transformed(
    scaled: Float[Tensor, "batch seq"], transform: Transform, max_ratio: float, max_log_ratio: float
) -> Float[Tensor, "batch seq"]:
    """Turn scaled log-ratios into weights. `ratio` and `relu` count those above 60 as 60, to remain finite.

    Args:
        scaled: log-ratios, of which any may be infinite.
        transform: as `distill.losses.weights.support_ratio` describes it.
        max_ratio: upper bound of the ratio, for `clip`.
        max_log_ratio: bound on the log-ratio's absolute value, for `clip_exp`.
    """
    if transform == "sigmoid":
        return scaled.sigmoid()
    if transform == "clip":
        return scaled.exp().clamp(max=max_ratio)
    if transform == "clip_exp":
        return scaled.clamp(-max_log_ratio, max_log_ratio).exp()
    bounded = scaled.clamp(max=BOUND)
    return bounded.exp() if transform == "ratio" else bounded.clamp(min=0.0)


def check_choice(function: str, name: str, value: object, choices: object) -> None:
    if value not in get_args(choices):
        raise ValueError(f"{function}: {name}={value!r} is not one of {', '.join(get_args(choices))}")


def check_order(function: str, least: float, low: float, high: float) -> None:
    if not least <= low < high:
        raise ValueError(f"{function}: min_ratio={low} and max_ratio={high} must be in order, from {least}")
