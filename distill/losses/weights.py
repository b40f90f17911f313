"""Token weights: how much a position counts.

Every function takes per-token log-probabilities of the written tokens, laid out [batch, seq] with `mask` true
on completion tokens, and returns a weight for each: no gradient, zero where the mask is false, no mean.
Parameters without a default are the signals that the weight needs, and one with the default `None` is needed
when the other parameters say so (`distill.losses.signals`)."""

import math
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from distill.losses.signals import needs

Level = Literal["token", "prefix", "sequence"]
Transform = Literal["sigmoid", "ratio", "clip"]
Student = Literal["live", "initial"]
Behavior = Literal["model", "sampler"]


def uniform(mask: Bool[Tensor, "batch seq"]) -> Float[Tensor, "batch seq"]:
    """Every completion token counts the same.

    w_t = 1
    """
    return mask.float()


def _support_ratio_needs(ratio_from: str = "live", behavior: str = "model", **_: object) -> set[str]:
    _check("ratio_from", ratio_from, Student)
    _check("behavior", behavior, Behavior)
    return {
        "student_logprobs" if ratio_from == "live" else "initial_logprobs",
        "teacher_logprobs" if behavior == "model" else "sampler_logprobs",
    }


@needs(_support_ratio_needs)
def support_ratio(
    mask: Bool[Tensor, "batch seq"],
    student_logprobs: Float[Tensor, "batch seq"] | None = None,
    teacher_logprobs: Float[Tensor, "batch seq"] | None = None,
    initial_logprobs: Float[Tensor, "batch seq"] | None = None,
    sampler_logprobs: Float[Tensor, "batch seq"] | None = None,
    progress: float = 1.0,
    *,
    temperature: float = 1.0,
    bias: float = 0.0,
    level: Level = "token",
    transform: Transform = "sigmoid",
    max_ratio: float = 2.0,
    floor: float = 0.0,
    anneal: float = 0.0,
    ratio_from: Student = "live",
    behavior: Behavior = "model",
) -> Float[Tensor, "batch seq"]:
    """DCOD's weight (2605.14071): how far the student supports what the teacher wrote.

        r_t = log π_S(y_t|s_t) - log π_T(y_t|s_t)
        w_t = sg[ σ(r_t / τ + b) ]

    At τ = 1, b = 0 this is π_S / (π_S + π_T): 1/2 where the two agree, towards 0 where the student would not
    go. The sigmoid, the temperature and the token-wise ratio are the paper's; the exact form and every switch
    below are our reading of it, its full text was not at hand.

    Args:
        mask: True on completion tokens.
        student_logprobs: log π_S of the written tokens by the student in training (`ratio_from="live"`).
        teacher_logprobs: log π_T of the written tokens at temperature 1 (`behavior="model"`).
        initial_logprobs: the same by the student before training (`ratio_from="initial"`: fully cacheable).
        sampler_logprobs: the same under the distribution that was really sampled, with its temperature, top-p
            and top-k (`behavior="sampler"`).
        progress: the share of training that is done, in [0, 1].
        temperature: τ > 0.
        bias: b, inside the transform.
        level: `token`: r_t itself; `prefix`: its running mean over i ≤ t, the log of the ratio's running
            geometric mean; `sequence`: the mean over the completion. The last two are free of length bias.
        transform: `sigmoid`; `ratio`: exp(r/τ + b); `clip`: min(exp(r/τ + b), max_ratio).
        max_ratio: upper bound for `clip`.
        floor: w ← floor + (1 - floor)·w, against the support gap: tokens that the student finds impossible
            are still learned a little.
        anneal: the share of training over which 1/τ rises linearly from 0 (all weights alike) to its value.

    Raises:
        ValueError: a parameter is outside its range; the message names it.
    """
    _check("level", level, Level)
    _check("transform", transform, Transform)
    if not temperature > 0:
        raise ValueError(f"support_ratio: temperature={temperature} must be positive")
    if not 0 <= floor <= 1:
        raise ValueError(f"support_ratio: floor={floor} is outside [0, 1]")
    if not 0 <= anneal <= 1:
        raise ValueError(f"support_ratio: anneal={anneal} is outside [0, 1]")
    if not math.isfinite(bias):
        raise ValueError(f"support_ratio: bias={bias} is no number")
    if not max_ratio > 0:
        raise ValueError(f"support_ratio: max_ratio={max_ratio} must be positive")
    numerator = student_logprobs if ratio_from == "live" else initial_logprobs
    denominator = teacher_logprobs if behavior == "model" else sampler_logprobs
    if numerator is None or denominator is None:
        raise ValueError(f"support_ratio: ratio_from={ratio_from}, behavior={behavior} lack their log-probs")

    wide = torch.promote_types(numerator.dtype, torch.float32)
    numerator, denominator = numerator.detach().to(wide), denominator.detach().to(wide)
    # A token that the student finds impossible has no support, whatever the teacher thinks: never inf - inf.
    impossible = numerator == -torch.inf
    ratio = torch.where(impossible, -torch.inf, numerator - denominator).masked_fill(~mask, 0.0)
    inverse_temperature = (min(1.0, progress / anneal) if anneal > 0 else 1.0) / temperature
    # With a zero inverse temperature all weights are alike, those of impossible tokens too: 0 · inf is not
    # wanted.
    ratio = _aggregate(ratio, mask, level)
    scaled = ratio * inverse_temperature if inverse_temperature > 0 else torch.zeros_like(ratio)
    scaled = scaled + bias
    if transform == "sigmoid":
        weight = scaled.sigmoid()
    elif transform == "clip":
        weight = scaled.exp().clamp(max=max_ratio)
    else:
        weight = scaled.exp()
    return (floor + (1 - floor) * weight).masked_fill(~mask, 0.0)


def _aggregate(
    ratio: Float[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"], level: Level
) -> Float[Tensor, "batch seq"]:
    """Log-ratios at the level asked for; sums of logs, never products of probabilities.

    One token that the student finds impossible (-inf) makes its prefix and its sequence impossible, whatever
    the teacher thinks of the others: never inf - inf.
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


def shuffle(
    weights: Float[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"], *, generator: torch.Generator
) -> Float[Tensor, "batch seq"]:
    """The same weights, permuted over the batch's completion tokens: the control for their spread alone."""
    values = weights[mask]
    order = torch.randperm(len(values), generator=generator).to(values.device)
    return torch.zeros_like(weights).masked_scatter(mask, values[order])


def invert(
    weights: Float[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"]
) -> Float[Tensor, "batch seq"]:
    """1 - w: the control for their direction."""
    return (1 - weights).masked_fill(~mask, 0.0)


def effective_sample_size(total: float, total_of_squares: float, count: float) -> float:
    """Kish's effective sample size as a share of the tokens: (Σw)² / (n Σw²), in (0, 1]; 1 when all w are
    alike."""
    return total**2 / (count * total_of_squares) if count > 0 and total_of_squares > 0 else 0.0


def _check(name: str, value: object, choices: object) -> None:
    if value not in get_args(choices):
        raise ValueError(f"support_ratio: {name}={value!r} is not one of {', '.join(get_args(choices))}")
