"""Token losses with closed-form gradients, for the chunk loop (`distill.losses.chunked`).

Every function takes the arguments of the loss of the same name in `distill.losses.divergence`. It returns
each row's loss, and the loss's gradient with respect to the student's logits, whose log-softmax is `log_q`.
It may overwrite `log_q`, but nothing else. With u = ∂l/∂Q the gradient is Q (u - Σ_v Q_v u_v).

The functions are for whole distributions with finite log-probabilities, such as a softmax of finite logits
has. All other cases go through autograd.
"""

import functools
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from distill.losses.ratios import BOUND
from distill.losses.signals import bound_parameters, properties_of, unbound

LossAndGradient = tuple[Float[Tensor, " tokens"], Float[Tensor, "tokens vocab"]]
ClosedForm = Callable[..., LossAndGradient]
_FAR = 80.0  # 1 is negligible beside e^80 even in fp64, and e^80 does not overflow in fp32


def closed_form_of(function: Callable[..., Tensor]) -> ClosedForm | None:
    """A loss's closed form, bound to the same parameters; None if it has none."""
    form = properties_of(function).closed_form or getattr(unbound(function), "closed_form", None)
    if form is None:
        return None
    return functools.partial(form, **bound_parameters(function))


def cross_entropy(log_q: Float[Tensor, "tokens vocab"], labels: Int[Tensor, " tokens"]) -> LossAndGradient:
    """∂l/∂z = Q - 1_y"""
    at = labels.unsqueeze(-1)
    losses = -log_q.gather(-1, at).squeeze(-1)
    gradient = log_q.exp_()
    return losses, gradient.scatter_add_(-1, at, gradient.new_full(at.shape, -1.0))


def policy_gradient(
    log_q: Float[Tensor, "tokens vocab"],
    labels: Int[Tensor, " tokens"],
    teacher_logprobs: Float[Tensor, " tokens"],
) -> LossAndGradient:
    """∂l/∂z = (log P(y) - log Q(y)) (Q - 1_y)"""
    nll, gradient = cross_entropy(log_q, labels)
    advantage = teacher_logprobs + nll
    return advantage * nll, gradient.mul_(advantage.unsqueeze(-1))


def clipped_surrogate(
    log_q: Float[Tensor, "tokens vocab"],
    labels: Int[Tensor, " tokens"],
    weight: Float[Tensor, " tokens"],
    old_logprobs: Float[Tensor, " tokens"],
    *,
    eps_low: float = 0.2,
    eps_high: float = 0.2,
) -> LossAndGradient:
    """∂l/∂z = ρ (Q - 1_y), 0 where ρ is clipped"""
    nll, gradient = cross_entropy(log_q, labels)
    ratio = (-nll - old_logprobs).exp()
    clipped = torch.where(weight >= 0, ratio.clamp(max=1 + eps_high), ratio.clamp(min=1 - eps_low))
    return -clipped, gradient.mul_((ratio * (clipped == ratio)).unsqueeze(-1))


def k3(
    log_q: Float[Tensor, "tokens vocab"],
    labels: Int[Tensor, " tokens"],
    reference_logprobs: Float[Tensor, " tokens"],
) -> LossAndGradient:
    """∂l/∂z = (R(y)/Q(y) - 1) (Q - 1_y)"""
    nll, gradient = cross_entropy(log_q, labels)
    difference = (reference_logprobs + nll).clamp(max=BOUND)
    above = difference.expm1()
    return above - difference, gradient.mul_((above * (difference < BOUND)).unsqueeze(-1))


def forward_kl(log_q: Float[Tensor, "tokens vocab"], log_p: Float[Tensor, "tokens vocab"]) -> LossAndGradient:
    """∂l/∂z = Q - P"""
    p = log_p.exp()
    losses = (log_p - log_q).mul_(p).sum(-1)
    return losses, log_q.exp_().sub_(p)


def reference_kl(
    log_q: Float[Tensor, "tokens vocab"], log_r: Float[Tensor, "tokens vocab"]
) -> LossAndGradient:
    """∂l/∂z = Q - R"""
    return forward_kl(log_q, log_r)


def reverse_kl(log_q: Float[Tensor, "tokens vocab"], log_p: Float[Tensor, "tokens vocab"]) -> LossAndGradient:
    """∂l/∂z = Q (log Q - log P - l)"""
    difference = log_q - log_p
    q = log_q.exp_()
    losses = (q * difference).sum(-1)
    return losses, difference.sub_(losses.unsqueeze(-1)).mul_(q)


def symmetric_kl(
    log_q: Float[Tensor, "tokens vocab"], log_p: Float[Tensor, "tokens vocab"]
) -> LossAndGradient:
    """∂l/∂z = Q (1 + log Q - log P - KL(Q‖P)) - P"""
    difference = log_q - log_p
    p, q = log_p.exp(), log_q.exp_()
    losses = (q - p).mul_(difference).sum(-1)
    reverse = (q * difference).sum(-1, keepdim=True)
    return losses, difference.sub_(reverse - 1).mul_(q).sub_(p)


def jsd(
    log_q: Float[Tensor, "tokens vocab"], log_p: Float[Tensor, "tokens vocab"], *, beta: float = 0.5
) -> LossAndGradient:
    """u = (1-β) (log Q - log M)"""
    if beta == 0.0:
        return forward_kl(log_q, log_p)
    if beta == 1.0:
        return reverse_kl(log_q, log_p)
    over_q, over_p = _over_mixture(log_q, log_p, 1 - beta)
    losses = beta * over_p.mul_(log_p.exp()).sum(-1)
    q = log_q.exp_()
    theirs = (1 - beta) * (q * over_q).sum(-1)
    gradient = over_q.mul_(1 - beta).sub_(theirs.unsqueeze(-1)).mul_(q)
    return losses + theirs, gradient


def skew_forward_kl(
    log_q: Float[Tensor, "tokens vocab"], log_p: Float[Tensor, "tokens vocab"], *, alpha: float = 0.1
) -> LossAndGradient:
    """u = -(1-α) P / M"""
    if alpha == 0.0:
        return forward_kl(log_q, log_p)
    _, over_p = _over_mixture(log_q, log_p, 1 - alpha)
    losses = (log_p.exp() * over_p).sum(-1)
    return losses, _through_softmax(log_q.exp_(), over_p.exp_().mul_(alpha - 1))


def skew_reverse_kl(
    log_q: Float[Tensor, "tokens vocab"], log_p: Float[Tensor, "tokens vocab"], *, alpha: float = 0.1
) -> LossAndGradient:
    """u = log Q - log M - α Q / M, up to a constant"""
    if alpha == 0.0:
        return reverse_kl(log_q, log_p)
    over_q, _ = _over_mixture(log_q, log_p, alpha)
    q = log_q.exp_()
    losses = (q * over_q).sum(-1)
    return losses, _through_softmax(q, over_q.sub_(over_q.exp(), alpha=alpha))


def tvd(log_q: Float[Tensor, "tokens vocab"], log_p: Float[Tensor, "tokens vocab"]) -> LossAndGradient:
    """u = ½ sign(Q - P)"""
    q = log_q.exp_()
    gap = q - log_p.exp()
    return 0.5 * gap.abs().sum(-1), _through_softmax(q, gap.sign_().mul_(0.5))


def todi(log_q: Float[Tensor, "tokens vocab"], log_p: Float[Tensor, "tokens vocab"]) -> LossAndGradient:
    """∂l/∂log Q = -α P + (1-α) Q (1 + log Q - log P)"""
    difference = log_q - log_p
    reverse = difference.sigmoid()  # 1 - α
    q = log_q.exp_()
    forward = (1 - reverse).mul_(log_p.exp())
    reverse.mul_(q)
    losses = ((reverse - forward) * difference).sum(-1)
    gradient = difference.add_(1).mul_(reverse).sub_(forward)
    return losses, gradient.sub_(q.mul_(gradient.sum(-1, keepdim=True)))


def _through_softmax(
    q: Float[Tensor, "tokens vocab"], u: Float[Tensor, "tokens vocab"]
) -> Float[Tensor, "tokens vocab"]:
    """Q (u - Σ Q u), overwriting u."""
    return u.sub_((q * u).sum(-1, keepdim=True)).mul_(q)


def _over_mixture(
    log_q: Float[Tensor, "tokens vocab"], log_p: Float[Tensor, "tokens vocab"], share: float
) -> tuple[Float[Tensor, "tokens vocab"], Float[Tensor, "tokens vocab"]]:
    """log Q - log M and log P - log M, M = share·Q + (1-share)·P, accurate even where P and Q are close:

    log M - log P = log(1 + share·(Q/P - 1))
    """
    difference = (log_q - log_p).clamp_(-_FAR, _FAR)
    over_p = torch.expm1(difference).mul_(share).log1p_().neg_()
    return difference.add_(over_p), over_p
