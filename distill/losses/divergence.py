"""Token losses: divergence of the student from its target at each position.

Every function takes log-probabilities over the vocabulary (natural log, fp32 or wider), one row per position,
and returns one value per row, without mask or mean. Only the student's argument gets a gradient. Parameters
without a default are the signals that the loss needs (`distill.losses.signals`).

P is the teacher's distribution, Q the student's. KL(A‖B) is the expectation under A of log A - log B.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from distill.losses import closed_forms
from distill.losses.ratios import BOUND
from distill.losses.signals import properties


@properties(closed_form=closed_forms.cross_entropy)
def cross_entropy(
    log_q: Float[Tensor, "tokens vocab"], labels: Int[Tensor, " tokens"]
) -> Float[Tensor, " tokens"]:
    """Negative log-likelihood of the label: offline SFT, sequence-level KD (1606.07947).

    l_t = -log Q(y_t)
    """
    return -log_q.gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def teacher_cross_entropy(
    log_q: Float[Tensor, "tokens samples"], log_p: Float[Tensor, "tokens samples"]
) -> Float[Tensor, " tokens"]:
    """Estimate of the forward KL from tokens sampled from the teacher (2503.16870).

    The teacher's entropy, which has no gradient, is left out.

    l_t = -Σ_j w_j log Q(v_j),   in expectation over the draws  -Σ_v P_v log Q_v = KL(P‖Q) + H(P)

    Args:
        log_q: the student's log-probabilities of the sampled tokens.
        log_p: log w_j, the samples' importance weights, in place of the teacher's distribution.
    """
    return -(log_p.exp() * log_q).sum(-1)


@properties(closed_form=closed_forms.forward_kl, from_samples=teacher_cross_entropy)
def forward_kl(
    log_q: Float[Tensor, "tokens vocab"], log_p: Float[Tensor, "tokens vocab"]
) -> Float[Tensor, " tokens"]:
    """KL(P‖Q), mass-covering: classical distillation (1503.02531).

    l_t = Σ_v P_v (log P_v - log Q_v)
    """
    return _expected_difference(log_p, log_q)


@properties(closed_form=closed_forms.reverse_kl)
def reverse_kl(
    log_q: Float[Tensor, "tokens vocab"], log_p: Float[Tensor, "tokens vocab"]
) -> Float[Tensor, " tokens"]:
    """KL(Q‖P), mode-seeking: MiniLLM's divergence (2306.08543), exact over the vocabulary.

    l_t = Σ_v Q_v (log Q_v - log P_v)
    """
    return _expected_difference(log_q, log_p)


@properties(closed_form=closed_forms.symmetric_kl)
def symmetric_kl(
    log_q: Float[Tensor, "tokens vocab"], log_p: Float[Tensor, "tokens vocab"]
) -> Float[Tensor, " tokens"]:
    """KL(P‖Q) + KL(Q‖P), Jeffreys' divergence: a baseline and a base of DCOD (2605.14071, Table 1).

    The paper does not define it; we take the sum. Half of it would only halve the gradient.

    l_t = Σ_v (P_v - Q_v) (log P_v - log Q_v)
    """
    neither = (log_p == -torch.inf) & (log_q == -torch.inf)
    # No term is negative, so that none cancels another where the two nearly agree.
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q).masked_fill(neither, 0.0)).sum(-1)


@properties(closed_form=closed_forms.jsd)
def jsd(
    log_q: Float[Tensor, "tokens vocab"], log_p: Float[Tensor, "tokens vocab"], *, beta: float = 0.5
) -> Float[Tensor, " tokens"]:
    """Generalized Jensen-Shannon divergence of GKD (2306.13649, eq. 1).

    l_t = β KL(P‖M) + (1-β) KL(Q‖M),   M = β P + (1-β) Q

    At β = 0 and β = 1 this expression vanishes. As in the paper's implementations, β = 0 then gives the
    forward KL and β = 1 the reverse KL, which are the limits of the divergence divided by β(1-β).

    Raises:
        ValueError: `beta` is outside [0, 1].
    """
    _check_share("jsd", "beta", beta)
    if beta == 0.0:
        return forward_kl(log_q, log_p)
    if beta == 1.0:
        return reverse_kl(log_q, log_p)
    mixture = _mixture(log_p, log_q, beta)
    return beta * _expected_difference(log_p, mixture) + (1 - beta) * _expected_difference(log_q, mixture)


@properties(closed_form=closed_forms.skew_forward_kl)
def skew_forward_kl(
    log_q: Float[Tensor, "tokens vocab"], log_p: Float[Tensor, "tokens vocab"], *, alpha: float = 0.1
) -> Float[Tensor, " tokens"]:
    """Forward KL to a mixture, at most -log α (DistiLLM, 2402.03898).

    l_t = KL(P ‖ α P + (1-α) Q)

    Raises:
        ValueError: `alpha` is outside [0, 1).
    """
    _check_skew("skew_forward_kl", alpha)
    return _expected_difference(log_p, _mixture(log_p, log_q, alpha) if alpha > 0 else log_q)


@properties(closed_form=closed_forms.skew_reverse_kl)
def skew_reverse_kl(
    log_q: Float[Tensor, "tokens vocab"], log_p: Float[Tensor, "tokens vocab"], *, alpha: float = 0.1
) -> Float[Tensor, " tokens"]:
    """Reverse KL to a mixture, at most -log α (DistiLLM, 2402.03898).

    l_t = KL(Q ‖ (1-α) P + α Q)

    Raises:
        ValueError: `alpha` is outside [0, 1).
    """
    _check_skew("skew_reverse_kl", alpha)
    return _expected_difference(log_q, _mixture(log_q, log_p, alpha) if alpha > 0 else log_p)


@properties(closed_form=closed_forms.tvd)
def tvd(
    log_q: Float[Tensor, "tokens vocab"], log_p: Float[Tensor, "tokens vocab"]
) -> Float[Tensor, " tokens"]:
    """Total variation distance, in [0, 1] (f-distillation, 2307.15190).

    l_t = ½ Σ_v |P_v - Q_v|
    """
    return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)


@properties(closed_form=closed_forms.todi)
def todi(
    log_q: Float[Tensor, "tokens vocab"], log_p: Float[Tensor, "tokens vocab"]
) -> Float[Tensor, " tokens"]:
    """Token-wise mix: forward KL where the student is too low, reverse KL where too high (ToDi, 2505.16297).

    l_t = Σ_v α_v P_v (log P_v - log Q_v) + (1-α_v) Q_v (log Q_v - log P_v),   α_v = sg[σ(log P_v - log Q_v)]
    """
    neither = (log_p == -torch.inf) & (log_q == -torch.inf)
    difference = (log_p - log_q).masked_fill(neither, 0.0)
    share = difference.detach().sigmoid()
    # Terms with zero probability are zero, in the gradient too, so mask before multiplying.
    forward = share * log_p.exp() * difference.masked_fill(log_p == -torch.inf, 0.0)
    reverse = (1 - share) * log_q.exp() * difference.masked_fill(log_q == -torch.inf, 0.0)
    return (forward - reverse).sum(-1)


def akl(
    log_q: Float[Tensor, "tokens vocab"], log_p: Float[Tensor, "tokens vocab"], *, head_mass: float = 0.5
) -> Float[Tensor, " tokens"]:
    """Adaptive mix of forward and reverse KL, by where the distributions differ (AKL, 2404.02657).

    l_t = g_h / (g_h + g_t) KL(P‖Q) + g_t / (g_h + g_t) KL(Q‖P)

    The head consists of the teacher's most likely tokens up to a total probability of μ, at least one token;
    the tail of all others. g_h and g_t are Σ|P - Q| over head and tail. The factors carry no gradient.

    Raises:
        ValueError: `head_mass` (μ) is outside [0, 1].
    """
    _check_share("akl", "head_mass", head_mass)
    with torch.no_grad():
        p, order = log_p.exp().sort(-1, descending=True)
        gap = (p - log_q.exp().gather(-1, order)).abs()
        in_head = p.cumsum(-1) <= head_mass
        in_head[..., 0] = True
        total = gap.sum(-1)
        share = torch.where(total > 0, (gap * in_head).sum(-1) / total, 0.5)
    forward, reverse = forward_kl(log_q, log_p), reverse_kl(log_q, log_p)
    # A KL whose factor is 0 is left out, even if it is infinite.
    return torch.where(share > 0, share * forward, 0.0) + torch.where(share < 1, (1 - share) * reverse, 0.0)


@properties(closed_form=closed_forms.reference_kl)
def reference_kl(
    log_q: Float[Tensor, "tokens vocab"], log_r: Float[Tensor, "tokens vocab"]
) -> Float[Tensor, " tokens"]:
    """KL(R‖Q) to a reference model R, by default the student before training: ASFT's anchor (2509.23753).

    l_t = Σ_v R_v (log R_v - log Q_v)
    """
    return _expected_difference(log_r, log_q)


@properties(closed_form=closed_forms.policy_gradient, on_policy_only=True)
def policy_gradient(
    log_q: Float[Tensor, "tokens vocab"],
    labels: Int[Tensor, " tokens"],
    teacher_logprobs: Float[Tensor, " tokens"],
) -> Float[Tensor, " tokens"]:
    """One-sample reverse KL on the student's own tokens, as a policy gradient (on-policy distillation).

    l_t = -sg[log P(y_t) - log Q(y_t)] · log Q(y_t)

    Its expected gradient over y_t ~ Q is that of KL(Q‖P), so it is valid only on the student's completions.
    """
    written = log_q.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return -(teacher_logprobs - written).detach() * written


@properties(closed_form=closed_forms.clipped_surrogate, on_policy_only=True)
def clipped_surrogate(
    log_q: Float[Tensor, "tokens vocab"],
    labels: Int[Tensor, " tokens"],
    weight: Float[Tensor, " tokens"],
    old_logprobs: Float[Tensor, " tokens"],
    *,
    eps_low: float = 0.2,
    eps_high: float = 0.2,
) -> Float[Tensor, " tokens"]:
    """PPO's clipped ratio (1707.06347), on which GRPO's loss is (2402.03300).

        l_t = -min(ρ_t, 1 + ε_high) where w_t ≥ 0, else -max(ρ_t, 1 - ε_low),   ρ_t = Q(y_t) / Q_old(y_t)

    With the advantage as its weight w_t, w_t · l_t = -min(ρ_t w_t, clip(ρ_t, 1 - ε_low, 1 + ε_high) w_t). In
    the first optimizer step on a batch of completions ρ_t = 1, nothing is clipped, and the gradient is that
    of -w_t log Q(y_t).

    Args:
        log_q: the student's log-probabilities.
        labels: the tokens of the student's completions.
        weight: w_t, whose sign decides which bound counts.
        old_logprobs: log Q_old(y_t), by the student that wrote the completions.
        eps_low: ε_low, in [0, 1].
        eps_high: ε_high; DAPO (2503.14476) has 0.28.

    Raises:
        ValueError: a bound is outside its range.
    """
    if not 0 <= eps_low <= 1:
        raise ValueError(f"clipped_surrogate: eps_low={eps_low} is outside [0, 1]")
    if not eps_high >= 0:
        raise ValueError(f"clipped_surrogate: eps_high={eps_high} must not be negative")
    ratio = (log_q.gather(-1, labels.unsqueeze(-1)).squeeze(-1) - old_logprobs).exp()
    return -torch.where(weight >= 0, ratio.clamp(max=1 + eps_high), ratio.clamp(min=1 - eps_low))


def is_clipped(
    log_ratio: Float[Tensor, " tokens"],
    weight: Float[Tensor, " tokens"],
    *,
    eps_low: float = 0.2,
    eps_high: float = 0.2,
) -> Bool[Tensor, " tokens"]:
    """Where `clipped_surrogate` has no gradient; `log_ratio` is log ρ."""
    ratio = log_ratio.exp()
    return ((ratio > 1 + eps_high) & (weight > 0)) | ((ratio < 1 - eps_low) & (weight < 0))


@properties(closed_form=closed_forms.k3, on_policy_only=True)
def k3(
    log_q: Float[Tensor, "tokens vocab"],
    labels: Int[Tensor, " tokens"],
    reference_logprobs: Float[Tensor, " tokens"],
) -> Float[Tensor, " tokens"]:
    """Schulman's estimate k3 of KL(Q‖R) to a reference R, GRPO's penalty (2402.03300).

    l_t = exp(d) - d - 1,   d = log R(y_t) - log Q(y_t)

    Its expectation over y_t ~ Q is the KL, and no value is negative. Its gradient is another estimator, which
    vanishes where the two agree. A d above 60 counts as 60, so that no value is infinite.
    """
    difference = reference_logprobs - log_q.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    difference = difference.clamp(max=BOUND)
    return difference.expm1() - difference


@properties(across_vocabularies=True)
def uld(
    log_q: Float[Tensor, "tokens vocab"], log_p: Float[Tensor, "tokens teacher_vocab"]
) -> Float[Tensor, " tokens"]:
    """Distance between sorted probabilities, which needs no common vocabulary (ULD, 2402.12030).

    l_t = Σ_i |Q_(i) - P_(i)|,   (i): the i-th largest; the smaller vocabulary is padded with zeros

    The paper pairs the two models' tokens by index. Here tokens are paired where both tokenizations have a
    boundary at the same place in the text (`distill.data.alignment`); other tokens have weight 0.
    """
    return _sorted_distance(log_q.exp(), log_p.exp())


@properties(across_vocabularies=True)
def gold(
    log_q: Float[Tensor, "tokens vocab"],
    log_p: Float[Tensor, "tokens teacher_vocab"],
    shared_ids: Int[Tensor, "2 shared"],
    same_token: Float[Tensor, " tokens"],
    *,
    beta: float = 0.5,
    shared_weight: float | None = None,
) -> Float[Tensor, " tokens"]:
    """Compare shared tokens by identity and all others by rank (GOLD, TRL's extension of ULD).

    l_t = c · JSD_β(P_M, Q_M) + (1-c) · Σ_i |Q_U(i) - P_U(i)|    where both models' tokens are the same text
    l_t = Σ_i |Q_(i) - P_(i)|                                    elsewhere

    M are the tokens in both vocabularies, U the others. JSD_β is `jsd` of the unnormalized parts, which need
    not sum to 1; at β = 0 and 1 the term ΣQ_M - ΣP_M (or its negative) is added, so that it stays a
    divergence.

    Where one model's token corresponds to several of the other's, TRL's GOLD multiplies the distribution at
    the first of them by the probabilities of the later ones. That gives the same tokens less mass, so here
    such positions are compared by rank instead.

    Args:
        log_q: the student's distribution.
        log_p: the teacher's distribution, over its own vocabulary.
        shared_ids: ids of the shared tokens, the student's in the first row, the teacher's in the second;
            no id twice.
        same_token: 1 where both models' tokens are the same text.
        beta: β, as in `jsd`.
        shared_weight: c in [0, 1]; None: the share of the teacher's vocabulary that is shared.

    Raises:
        ValueError: a parameter is outside [0, 1].
    """
    _check_share("gold", "beta", beta)
    if shared_weight is not None:
        _check_share("gold", "shared_weight", shared_weight)
    mine, theirs = shared_ids
    share = len(theirs) / log_p.shape[-1] if shared_weight is None else shared_weight
    q, p = log_q.exp(), log_p.exp()
    by_name = _jsd_of_parts(log_q[:, mine], log_p[:, theirs], beta)
    by_rank = _sorted_distance(_without(q, mine), _without(p, theirs))
    return torch.where(same_token > 0, share * by_name + (1 - share) * by_rank, _sorted_distance(q, p))


class Taid:
    """KL to a target that moves from the student towards the teacher (TAID, 2501.16937).

    l_t = KL(p‖Q),   p = softmax((1-λ) sg[log Q] + λ log P)

    λ rises from `start` to `end`, at least linearly with training progress, and faster while the loss falls.
    It is updated after every optimizer step (`after_step`) and saved in checkpoints.

    Args:
        start: first λ.
        end: last λ.
        rate: α, step size of λ's updates.
        momentum: β, momentum of the loss's relative change.

    Raises:
        ValueError: a parameter is outside [0, 1], or start is above end.
    """

    def __init__(
        self, start: float = 0.4, end: float = 1.0, rate: float = 5e-4, momentum: float = 0.99
    ) -> None:
        for name, value in (("start", start), ("end", end), ("rate", rate), ("momentum", momentum)):
            _check_share("taid", name, value)
        if start > end:
            raise ValueError(f"taid: start={start} is above end={end}")
        self.start, self.end, self.rate, self.momentum = start, end, rate, momentum
        self.state = {"share": start, "change": 0.0, "loss": math.inf}

    def __call__(
        self, log_q: Float[Tensor, "tokens vocab"], log_p: Float[Tensor, "tokens vocab"]
    ) -> Float[Tensor, " tokens"]:
        return forward_kl(log_q, self._target(log_q, log_p))

    def closed_form(
        self, log_q: Float[Tensor, "tokens vocab"], log_p: Float[Tensor, "tokens vocab"]
    ) -> closed_forms.LossAndGradient:
        """∂l/∂z = Q - p"""
        return closed_forms.forward_kl(log_q, self._target(log_q, log_p))

    def _target(
        self, log_q: Float[Tensor, "tokens vocab"], log_p: Float[Tensor, "tokens vocab"]
    ) -> Float[Tensor, "tokens vocab"]:
        """log p."""
        share = self.state["share"]
        if share == 1.0:  # avoids 0 · -inf
            return log_p
        target = log_q.detach() * (1 - share)
        if share > 0:
            target = target + log_p * share
        return torch.log_softmax(target, -1)

    def after_step(self, loss: float, progress: float) -> None:
        """Update λ from the step's mean loss and the share of training done."""
        state = self.state
        if math.isfinite(state["loss"]):
            change = (state["loss"] - loss) / (state["loss"] + 1e-15)
            state["change"] = self.momentum * state["change"] + (1 - self.momentum) * change
            moved = state["share"] + self.rate / (1 + math.exp(-state["change"])) * (1 - state["share"])
            state["share"] = min(self.end, max(self.start + (self.end - self.start) * progress, moved))
        state["loss"] = loss


def _jsd_of_parts(
    log_q: Float[Tensor, "tokens shared"], log_p: Float[Tensor, "tokens shared"], beta: float
) -> Float[Tensor, " tokens"]:
    """`jsd` of unnormalized distributions: never negative, and zero where they agree."""
    found = jsd(log_q, log_p, beta=beta)
    excess = log_q.exp().sum(-1) - log_p.exp().sum(-1)
    return found + (excess if beta == 0.0 else -excess) if beta in (0.0, 1.0) else found


def _without(
    probabilities: Float[Tensor, "tokens vocab"], ids: Int[Tensor, " some"]
) -> Float[Tensor, "tokens rest"]:
    """All columns except `ids`, which must be distinct: so the host knows the shape without asking the
    device."""
    vocab = probabilities.shape[-1]
    rest = vocab - len(ids)
    ordinals = torch.arange(vocab, device=probabilities.device)
    kept = torch.ones_like(ordinals, dtype=torch.bool).index_fill(0, ids, False)
    places = torch.where(kept, kept.cumsum(0) - 1, rest)
    columns = torch.empty(rest + 1, dtype=torch.long, device=ids.device).scatter_(0, places, ordinals)
    return probabilities.index_select(-1, columns[:rest])


def _sorted_distance(
    q: Float[Tensor, "tokens vocab"], p: Float[Tensor, "tokens teacher_vocab"]
) -> Float[Tensor, " tokens"]:
    size = max(q.shape[-1], p.shape[-1])
    mine, theirs = (
        torch.nn.functional.pad(x.sort(-1, descending=True).values, (0, size - x.shape[-1])) for x in (q, p)
    )
    return (mine - theirs).abs().sum(-1)


def _mixture(
    log_a: Float[Tensor, "tokens vocab"], log_b: Float[Tensor, "tokens vocab"], share: float
) -> Float[Tensor, "tokens vocab"]:
    """log(share·a + (1-share)·b), for a share inside (0, 1)."""
    # Where both are zero, any finite value will do: no term uses it, and there is no gradient.
    neither = (log_a == -torch.inf) & (log_b == -torch.inf)
    return torch.logaddexp(
        log_a.masked_fill(neither, 0.0) + math.log(share),
        log_b.masked_fill(neither, 0.0) + math.log1p(-share),
    )


def _expected_difference(
    log_p: Float[Tensor, "tokens vocab"], log_q: Float[Tensor, "tokens vocab"]
) -> Float[Tensor, " tokens"]:
    """KL(p‖q); terms with p = 0 are zero, in the gradient too (0·log 0 = 0).

    The mask is applied before multiplying: otherwise -inf times zero would give NaN in the backward pass.
    """
    difference = (log_p - log_q).masked_fill(log_p == -torch.inf, 0.0)
    return (log_p.exp() * difference).sum(-1)


def _check_share(function: str, name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{function}: {name}={value} is outside [0, 1]")


def _check_skew(function: str, alpha: float) -> None:
    if not 0.0 <= alpha < 1.0:
        raise ValueError(f"{function}: alpha={alpha} is outside [0, 1)")
