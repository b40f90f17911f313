"""Token weights: factors on each token's loss.

Every function takes per-token signals such as logprobs, [batch, seq], with `mask` true on completion tokens.
It returns a weight per token, without gradient, unnormalized, and zero where the mask is false. Parameters
without a default are the signals that the weight needs. Signals with the default `None` are needed depending
on the other parameters (`distill.losses.signals`).
"""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from distill.losses.ratios import (
    BOUND,
    Level,
    Transform,
    aggregate,
    check_choice,
    check_order,
    log_ratio,
    span_means,
    transformed,
    wide,
)
from distill.losses.signals import properties

TemperatureIs = Literal["divisor", "factor"]
Student = Literal["live", "initial"]
Behavior = Literal["model", "sampler"]
Masked = Literal["anchors", "most_confident", "least_confident"]
Base = Literal["initial", "reference"]
Scale = Literal["group", "none", "batch"]
_LEAST_DEVIATION = 1e-4  # added to a deviation that divides, as in TRL


def _always(**_: object) -> bool:
    return True


def _by_token(level: str = "token", **_: object) -> bool:
    return level == "token"


@properties(inline=_always)
def uniform(mask: Bool[Tensor, "batch seq"]) -> Float[Tensor, "batch seq"]:
    """The same weight for every completion token.

    w_t = 1
    """
    return mask.float()


def _support_ratio_needs(ratio_from: str = "live", behavior: str = "model", **_: object) -> set[str]:
    check_choice("support_ratio", "ratio_from", ratio_from, Student)
    check_choice("support_ratio", "behavior", behavior, Behavior)
    return {
        "student_logprobs" if ratio_from == "live" else "initial_logprobs",
        "teacher_logprobs" if behavior == "model" else "sampler_logprobs",
    }


@properties(inline=_by_token, needs=_support_ratio_needs)
def support_ratio(
    mask: Bool[Tensor, "batch seq"],
    student_logprobs: Float[Tensor, "batch seq"] | None = None,
    teacher_logprobs: Float[Tensor, "batch seq"] | None = None,
    initial_logprobs: Float[Tensor, "batch seq"] | None = None,
    sampler_logprobs: Float[Tensor, "batch seq"] | None = None,
    progress: float = 1.0,
    *,
    temperature: float = 1.0,
    temperature_is: TemperatureIs = "divisor",
    bias: float = 0.0,
    level: Level = "token",
    transform: Transform = "sigmoid",
    max_ratio: float = 2.0,
    max_log_ratio: float = 5.0,
    floor: float = 0.0,
    anneal: float = 0.0,
    ratio_from: Student = "live",
    behavior: Behavior = "model",
) -> Float[Tensor, "batch seq"]:
    """DCOD's weight (2605.14071, Eq. 5 to 7): how much the student supports the teacher's token.

        Δ_t = log π_S(y_t|s_t) - log π_T(y_t|s_t)
        w_t = sg[ σ(Δ_t / τ + b) ]

    At τ = 1, b = 0 this is π_S / (π_S + π_T): 1/2 where the two agree, and close to 0 where the token is far
    less likely for the student.

    The paper writes τ in two ways: it multiplies Δ_t in the formulas and divides it in the ablation (Table
    5). At 1 they agree. Here it divides, as in the experiments; `temperature_is="factor"` is the formulas'
    reading. The paper has `level="token"`, the student in training (`live`), and of the transforms `sigmoid`
    and, in Table 5, `ratio`, `clip_exp` with c = 5 and `relu`. The other options are ours.

    Args:
        mask: True on completion tokens.
        student_logprobs: log π_S of the completion's tokens, by the student in training
            (`ratio_from="live"`).
        teacher_logprobs: log π_T of the completion's tokens at temperature 1 (`behavior="model"`).
        initial_logprobs: log π_S by the student before training (`ratio_from="initial"`), which can be
            cached.
        sampler_logprobs: log π_T under the distribution that was actually sampled from, with temperature,
            top-p and top-k (`behavior="sampler"`).
        progress: share of training done, in [0, 1].
        temperature: τ > 0.
        temperature_is: `divisor`: Δ/τ, larger values make the weights more alike; `factor`: τ·Δ, smaller
            values do.
        bias: b, inside the transform.
        level: `token`: Δ_t itself; `prefix`: its mean over i ≤ t, the log of the geometric mean of the
            ratios so far; `sequence`: its mean over the completion. The means have no length bias.
        transform: of d = Δ/τ + b. `sigmoid`: σ(d); `ratio`: exp(d); `clip`: min(exp(d), max_ratio);
            `clip_exp`: exp(clip(d, -c, c)); `relu`: max(d, 0). For `ratio` and `relu` a d above 60 counts as
            60, so that no weight is infinite.
        max_ratio: upper bound of the ratio, for `clip`.
        max_log_ratio: c in (0, 60], the bound on the log-ratio, for `clip_exp`.
        floor: w ← floor + (1 - floor)·w, so that tokens that are impossible for the student still get some
            weight.
        anneal: share of training over which the factor on Δ (1/τ or τ) rises linearly from 0 (all weights
            equal) to its value.

    Raises:
        ValueError: a parameter is outside its range; names it.
    """
    check_choice("support_ratio", "level", level, Level)
    check_choice("support_ratio", "transform", transform, Transform)
    check_choice("support_ratio", "temperature_is", temperature_is, TemperatureIs)
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
    if not 0 < max_log_ratio <= BOUND:
        raise ValueError(f"support_ratio: max_log_ratio={max_log_ratio} is outside (0, {BOUND:g}]")
    numerator = student_logprobs if ratio_from == "live" else initial_logprobs
    denominator = teacher_logprobs if behavior == "model" else sampler_logprobs
    if numerator is None or denominator is None:
        raise ValueError(f"support_ratio: ratio_from={ratio_from}, behavior={behavior} lack their log-probs")

    ratio = log_ratio(numerator, denominator, mask)
    share = min(1.0, progress / anneal) if anneal > 0 else 1.0
    factor = share / temperature if temperature_is == "divisor" else share * temperature
    # With a factor of 0 all weights are equal, those of impossible tokens too: avoid 0 · inf.
    ratio = aggregate(ratio, mask, level)
    scaled = ratio * factor if factor > 0 else torch.zeros_like(ratio)
    weight = transformed(scaled + bias, transform, max_ratio, max_log_ratio)
    return (floor + (1 - floor) * weight).masked_fill(~mask, 0.0)


@properties(across_vocabularies=True, needs=lambda **_: {"spans"})
def span_support_ratio(
    mask: Bool[Tensor, "batch seq"],
    student_logprobs: Float[Tensor, "batch seq"],
    teacher_logprobs: Float[Tensor, "batch seq"],
    spans: Float[Tensor, "batch seq"] | None = None,
    *,
    temperature: float = 1.0,
    temperature_is: TemperatureIs = "divisor",
    transform: Transform = "sigmoid",
    max_ratio: float = 2.0,
    max_log_ratio: float = 5.0,
) -> Float[Tensor, "batch seq"]:
    """`support_ratio` over spans of text, for a teacher with another tokenizer.

        Δ = (Σ_{t in span} log π_S(y_t) - Σ_{u in span} log π_T(z_u)) / n,   w_t = sg[ σ(Δ / τ) ]

    A span is the shortest text at whose ends both tokenizations have a boundary; y are the student's n tokens
    of it, z the teacher's. All tokens of a span have one weight, tokens in no span have weight 0. With one
    tokenizer every token is a span, and the weight is `support_ratio`'s.

    2605.14071 trains Llama on Qwen's traces and does not say how the ratio is formed over two vocabularies:
    this is our reading. It is exact in what is summed, log-probs of the same text after the same text, and an
    approximation in that each model is asked for one tokenization of the text only. The mean instead of the
    sum keeps spans of several tokens from having extreme weights.

    Args:
        mask: True on completion tokens.
        student_logprobs: log π_S of the completion's tokens, by the student in training.
        teacher_logprobs: the teacher's log-prob of each span, spread evenly over the student's tokens in it.
        spans: for each token, the index of its span's first token; -1: in no span. None: each token is a
            span.
        temperature: τ > 0.
        temperature_is: as in `support_ratio`.
        transform: as in `support_ratio`.
        max_ratio: as in `support_ratio`.
        max_log_ratio: as in `support_ratio`.

    Raises:
        ValueError: a parameter is outside its range; names it.
    """
    ratio = log_ratio(student_logprobs, teacher_logprobs, mask)
    if spans is not None:
        mask = mask & (spans >= 0)
        ratio = span_means(ratio, spans, mask)
    return support_ratio(
        mask,
        ratio,
        torch.zeros_like(ratio),
        temperature=temperature,
        temperature_is=temperature_is,
        transform=transform,
        max_ratio=max_ratio,
        max_log_ratio=max_log_ratio,
    )


@properties(inline=_always)
def dft(
    mask: Bool[Tensor, "batch seq"], student_logprobs: Float[Tensor, "batch seq"]
) -> Float[Tensor, "batch seq"]:
    """Dynamic fine-tuning (2508.05629): the student's probability of the token.

    w_t = sg[π_θ(y_t)]
    """
    return wide(student_logprobs).exp().masked_fill(~mask, 0.0)


@properties(inline=lambda level="sequence", **_: level == "token")
def iw_sft(
    mask: Bool[Tensor, "batch seq"],
    student_logprobs: Float[Tensor, "batch seq"],
    reference_logprobs: Float[Tensor, "batch seq"],
    *,
    level: Literal["token", "sequence"] = "sequence",
    min_ratio: float = 0.0,
    max_ratio: float = 16.0,
) -> Float[Tensor, "batch seq"]:
    """Importance-weighted SFT (2507.12856): how far the student has moved from a reference.

    w_t = clip(exp(mean_t log π_θ/π_ref), 0, 16)          (sequence)
    w_t = clip(π_θ(y_t)/π_ref(y_t), 0.2, 1.8)             (token, with these bounds)

    Raises:
        ValueError: a parameter is outside its range.
    """
    check_choice("iw_sft", "level", level, Literal["token", "sequence"])
    check_order("iw_sft", 0.0, min_ratio, max_ratio)
    ratio = log_ratio(student_logprobs, reference_logprobs, mask)
    return aggregate(ratio, mask, level).exp().clamp(min_ratio, max_ratio).masked_fill(~mask, 0.0)


def _tis_needs(behavior: str = "model", **_: object) -> set[str]:
    check_choice("tis", "behavior", behavior, Behavior)
    return {"teacher_logprobs" if behavior == "model" else "sampler_logprobs"}


@properties(inline=_always, needs=_tis_needs)
def tis(
    mask: Bool[Tensor, "batch seq"],
    student_logprobs: Float[Tensor, "batch seq"],
    teacher_logprobs: Float[Tensor, "batch seq"] | None = None,
    sampler_logprobs: Float[Tensor, "batch seq"] | None = None,
    *,
    max_ratio: float = 2.0,
    behavior: Behavior = "model",
) -> Float[Tensor, "batch seq"]:
    """Truncated importance sampling: the student's probability over the sampler's, at most C.

    w_t = min(π_θ(y_t)/μ(y_t), C)

    Args:
        mask: True on completion tokens.
        student_logprobs: log π_θ of the completion's tokens.
        teacher_logprobs: log μ, where μ is the teacher at temperature 1 (`behavior="model"`).
        sampler_logprobs: log μ, where μ is the distribution actually sampled from (`behavior="sampler"`).
        max_ratio: C > 0.
        behavior: which μ to use.

    Raises:
        ValueError: a parameter is outside its range.
    """
    check_order("tis", 0.0, 0.0, max_ratio)
    denominator = teacher_logprobs if behavior == "model" else sampler_logprobs
    if denominator is None:
        raise ValueError(f"tis: behavior={behavior} lacks its log-probs")
    ratio = log_ratio(student_logprobs, denominator, mask)
    return ratio.exp().clamp(max=max_ratio).masked_fill(~mask, 0.0)


@properties(inline=_always)
def eaft(
    mask: Bool[Tensor, "batch seq"], student_entropy: Float[Tensor, "batch seq"], *, alpha: float = 1.0
) -> Float[Tensor, "batch seq"]:
    """Entropy-adaptive fine-tuning: less weight where the student is certain.

    w_t = (H_t / 3)^α,   H_t the entropy of the student's 20 most likely tokens, at most log 20 ≈ 3

    Raises:
        ValueError: `alpha` is negative.
    """
    if not alpha >= 0:
        raise ValueError(f"eaft: alpha={alpha} must not be negative")
    return (wide(student_entropy).clamp(min=0.0) / 3.0).pow(alpha).masked_fill(~mask, 0.0)


@properties(inline=_always)
def psft(
    mask: Bool[Tensor, "batch seq"],
    student_logprobs: Float[Tensor, "batch seq"],
    reference_logprobs: Float[Tensor, "batch seq"],
    *,
    clip: float = 0.28,
) -> Float[Tensor, "batch seq"]:
    """Proximal SFT (2508.17784): PPO's clipped ratio with an advantage of 1.

    w_t = r_t where r_t = π_θ(y_t)/π_old(y_t) ≤ 1 + ε, else 0

    This gives the gradient of min(r, clip(r, 1-ε', 1+ε)), whose lower bound has no effect with a positive
    advantage. π_old is the reference model, by default the student before training.

    Raises:
        ValueError: `clip` (ε) is negative.
    """
    if not clip >= 0:
        raise ValueError(f"psft: clip={clip} must not be negative")
    ratio = log_ratio(student_logprobs, reference_logprobs, mask).exp()
    return ratio.masked_fill((ratio > 1 + clip) | ~mask, 0.0)


def rho1(
    mask: Bool[Tensor, "batch seq"],
    student_logprobs: Float[Tensor, "batch seq"],
    reference_logprobs: Float[Tensor, "batch seq"],
    *,
    keep: float = 0.6,
) -> Float[Tensor, "batch seq"]:
    """Selective language modeling (Rho-1, 2404.07965): tokens where the student lags the reference most.

    w_t = 1 on the share k of the micro-batch's tokens with the largest L_θ - L_ref, else 0

    Raises:
        ValueError: `keep` (k) is outside (0, 1].
    """
    if not 0 < keep <= 1:
        raise ValueError(f"rho1: keep={keep} is outside (0, 1]")
    excess = -log_ratio(student_logprobs, reference_logprobs, mask)
    kept = (keep * mask.sum().double()).ceil()
    return _largest(excess, mask, kept).to(excess.dtype)


def _largest(
    values: Float[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"], count: Tensor
) -> Bool[Tensor, "batch seq"]:
    """The `count` tokens of the micro-batch with the largest values; of equal ones, the earlier."""
    # Rank all positions, because only the device knows the number of tokens. Positions outside the mask come
    # last, even after tokens with a value of -inf.
    ranked = values.clamp(min=torch.finfo(values.dtype).min).masked_fill(~mask, -torch.inf).flatten()
    order = ranked.argsort(descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return (rank < count).view(mask.shape) & mask


def _t3s_needs(masks: str = "anchors", base: str = "initial", **_: object) -> set[str]:
    check_choice("t3s", "masks", masks, Masked)
    check_choice("t3s", "base", base, Base)
    return {f"{base}_logprobs"}


@properties(inline=lambda masks="anchors", **_: masks == "anchors", needs=_t3s_needs)
def t3s(
    mask: Bool[Tensor, "batch seq"],
    pilot_logprobs: Float[Tensor, "batch seq"],
    initial_logprobs: Float[Tensor, "batch seq"] | None = None,
    reference_logprobs: Float[Tensor, "batch seq"] | None = None,
    *,
    masks: Masked = "anchors",
    base: Base = "initial",
) -> Float[Tensor, "batch seq"]:
    """Only tokens that a pilot run did not learn (T3S, 2601.10348, Eq. 3 to 7).

        w_t = 0 where log π_b(y_t) > log π_0(y_t)  (an anchor: easy, or mere imitation), else 1

    π_b, the pilot, is the checkpoint with the lowest accuracy on the training problems ("the bottleneck") of
    an SFT run on the same traces; `python -m distill.bottleneck` finds it. Training starts again from the
    initial student. In the paper about a fifth of the tokens are anchors.

    The paper sums the losses and does not say how a batch is averaged. Ours is divided by all completion
    tokens; `loss.normalize=weights` divides by those that are trained.

    Args:
        mask: True on completion tokens.
        pilot_logprobs: log π_b of the completion's tokens.
        initial_logprobs: log π_0 by the student before training (`base="initial"`).
        reference_logprobs: log π_0 by the model that the pilot began as, if another model than the student
            chooses the tokens (`base="reference"`; the paper's appendix A).
        masks: `anchors`. Or one of the paper's controls, which mask as many tokens of the micro-batch as
            there are anchors: those that π_0 finds likeliest (`most_confident`) or least likely
            (`least_confident`).
        base: whose log-probs π_0 are.

    Raises:
        ValueError: an option has another value, or its log-probs are missing.
    """
    before = initial_logprobs if base == "initial" else reference_logprobs
    if before is None:
        raise ValueError(f"t3s: base={base} lacks its log-probs")
    masked = (pilot_logprobs > before) & mask
    if masks != "anchors":
        confidence = before if masks == "most_confident" else -before
        masked = _largest(confidence, mask, masked.sum())
    return (~masked & mask).to(wide(pilot_logprobs).dtype)


def iw_opd(
    mask: Bool[Tensor, "batch seq"],
    student_logprobs: Float[Tensor, "batch seq"],
    teacher_logprobs: Float[Tensor, "batch seq"],
    *,
    gamma: float = 0.5,
) -> Float[Tensor, "batch seq"]:
    """On-policy distillation without position bias (2606.22600): less weight after earlier disagreement.

    w_t = 1 + γ (1 - Σ_{i<t} |A_i| / Σ_i |A_i|),   A_i = log P(y_i) - log Q(y_i)

    Raises:
        ValueError: `gamma` is negative.
    """
    if not gamma >= 0:
        raise ValueError(f"iw_opd: gamma={gamma} must not be negative")
    # Bounded, so that an infinite gap does not lead to inf - inf.
    gap = log_ratio(teacher_logprobs, student_logprobs, mask).abs().clamp(max=BOUND)
    before = gap.cumsum(-1) - gap
    total = gap.sum(-1, keepdim=True)
    return (1 + gamma * (1 - before / total.clamp(min=1e-12))).masked_fill(~mask, 0.0)


@properties(inline=_always)
def validity(
    mask: Bool[Tensor, "batch seq"],
    teacher_step_value: Float[Tensor, "batch seq"],
    student_step_value: Float[Tensor, "batch seq"],
    *,
    gamma: float = 1.0,
) -> Float[Tensor, "batch seq"]:
    """More weight where the teacher's next reasoning step is better (validity calibration, 2605.04078).

    w_t = λ(s) = σ(γ (v(a_T|s) - v(a_S|s))),   s the prefix of the reasoning step that t belongs to

    The formula is ours. Of the paper only the abstract was to be had: under the same prefix the steps that
    student and teacher propose are compared, and their relative validity sets the strength of the update.
    What validity is, and how it becomes a weight, it does not say.

    The weight is 1/2 where both values are equal. Values are clamped to ±60. If v is the teacher's likelihood
    (`StepProposals`), the teacher's own greedy step nearly always wins: the weight is then mostly between 1/2
    and 1, and says how far the two disagree rather than which is right.

    Raises:
        ValueError: `gamma` is negative.
    """
    if not gamma >= 0:
        raise ValueError(f"validity: gamma={gamma} must not be negative")
    teacher, student = (
        wide(value).clamp(-BOUND, BOUND) for value in (teacher_step_value, student_step_value)
    )
    return (gamma * (teacher - student)).sigmoid().masked_fill(~mask, 0.0)


@properties(inline=_always, across_vocabularies=True)
def teacher_right(
    mask: Bool[Tensor, "batch seq"], teacher_success: Float[Tensor, "batch seq"], *, least: float = 0.5
) -> Float[Tensor, "batch seq"]:
    """Only problems that the teacher solves by itself (the idea of verify-before-distill, 2609.02998).

    w_t = 1 where the share of the teacher's own answers to the problem that are right is at least p, else 0

    Raises:
        ValueError: `least` (p) is outside (0, 1].
    """
    if not 0 < least <= 1:
        raise ValueError(f"teacher_right: least={least} is outside (0, 1]")
    return ((wide(teacher_success) >= least) & mask).to(wide(teacher_success).dtype)


def later_log_ratio(
    mask: Bool[Tensor, "batch seq"],
    student_logprobs: Float[Tensor, "batch seq"],
    teacher_logprobs: Float[Tensor, "batch seq"],
) -> Float[Tensor, "batch seq"]:
    """MiniLLM's length-normalized return of the later tokens (2306.08543, "long" part of its gradient).

    w_t = mean_{i>t} (log P(y_i) - log Q(y_i)),   0 for the last token

    The weight may have either sign. With cross-entropy, it makes a token more likely if the teacher prefers
    the tokens that followed. Log-ratios are clamped to ±60, so that one impossible token does not make all
    earlier weights infinite.
    """
    gain = log_ratio(teacher_logprobs, student_logprobs, mask).clamp(-BOUND, BOUND)
    later = gain.sum(-1, keepdim=True) - gain.cumsum(-1)
    left = mask.sum(-1, keepdim=True) - mask.cumsum(-1)
    return (later / left.clamp(min=1)).masked_fill(~mask | (left < 1), 0.0)


def _group_advantage_needs(scale: str = "group", **_: object) -> set[str]:
    check_choice("group_advantage", "scale", scale, Scale)
    return {"group_deviation"} if scale == "group" else set()


@properties(inline=_always, needs=_group_advantage_needs, signed=True)
def group_advantage(
    mask: Bool[Tensor, "batch seq"],
    reward: Float[Tensor, "batch seq"],
    group_reward: Float[Tensor, "batch seq"],
    group_deviation: Float[Tensor, "batch seq"] | None = None,
    *,
    scale: Scale = "group",
) -> Float[Tensor, "batch seq"]:
    """GRPO's advantage (2402.03300): a completion's reward beside those of the same problem's others.

        w_t = (R - mean_group R) / (std_group R + 1e-4)

    It is the same for all tokens of a completion, and 0 where all completions of the problem have one reward.

    Args:
        mask: True on completion tokens.
        reward: R of the token's completion.
        group_reward: mean_group R.
        group_deviation: std_group R, with the divisor n - 1 (`scale="group"`).
        scale: what R - mean_group R is divided by. `group`: the deviation within the group; `none`: nothing
            (Dr. GRPO, 2503.20783); `batch`: the deviation of all rewards of the optimizer step, which is
            known at its end alone. The whole step's loss is divided by it then, not this weight.
    """
    advantage = wide(reward) - wide(group_reward)
    if scale == "group":
        assert group_deviation is not None
        advantage = advantage / (wide(group_deviation) + _LEAST_DEVIATION)
    return advantage.masked_fill(~mask, 0.0)


def batch_deviation(count: float, total: float, squares: float) -> float:
    """What `group_advantage` with `scale="batch"` divides a step's loss by: the deviation of its rewards.

    Args:
        count: number of rewards.
        total: their sum.
        squares: the sum of their squares.
    """
    variance = max(0.0, squares - total**2 / count) / (count - 1)
    return math.sqrt(variance) + _LEAST_DEVIATION
