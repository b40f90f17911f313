"""Token losses: how far the student is from its target at one position.

Every function takes log-probabilities over the vocabulary (natural log, fp32 or wider), one row a position,
and returns one value a row: no mask, no mean. The student's argument carries gradient, the teacher's none.
Parameters without a default are the signals that the loss needs (`distill.losses.signals`).

P is the teacher's distribution, Q the student's. Every KL is written in the order of its name.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor


def cross_entropy(
    student_logprobs: Float[Tensor, "tokens vocab"], labels: Int[Tensor, " tokens"]
) -> Float[Tensor, " tokens"]:
    """Negative log-likelihood of the written token: offline SFT, sequence-level KD (1606.07947).

    l_t = -log Q(y_t)
    """
    return -student_logprobs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def forward_kl(
    student_logprobs: Float[Tensor, "tokens vocab"], teacher_logprobs: Float[Tensor, "tokens vocab"]
) -> Float[Tensor, " tokens"]:
    """KL(P‖Q), mass-covering: classical distillation (1503.02531).

    l_t = Σ_v P_v (log P_v - log Q_v)
    """
    return _expected_difference(teacher_logprobs, student_logprobs)


def reverse_kl(
    student_logprobs: Float[Tensor, "tokens vocab"], teacher_logprobs: Float[Tensor, "tokens vocab"]
) -> Float[Tensor, " tokens"]:
    """KL(Q‖P), mode-seeking: MiniLLM's divergence (2306.08543), exact over the vocabulary.

    l_t = Σ_v Q_v (log Q_v - log P_v)
    """
    return _expected_difference(student_logprobs, teacher_logprobs)


def jsd(
    student_logprobs: Float[Tensor, "tokens vocab"],
    teacher_logprobs: Float[Tensor, "tokens vocab"],
    *,
    beta: float = 0.5,
) -> Float[Tensor, " tokens"]:
    """Generalised Jensen-Shannon divergence of GKD (2306.13649, eq. 1).

    l_t = β KL(P‖M) + (1-β) KL(Q‖M),   M = β P + (1-β) Q

    Those terms vanish at β = 0 and 1, where the name stands for its limits (divided by β(1-β) the divergence
    tends to them): β = 0 is the forward KL, β = 1 the reverse KL, as in the paper's implementations.

    Raises:
        ValueError: `beta` is outside [0, 1].
    """
    if not 0.0 <= beta <= 1.0:
        raise ValueError(f"jsd: beta={beta} is outside [0, 1]")
    if beta == 0.0:
        return forward_kl(student_logprobs, teacher_logprobs)
    if beta == 1.0:
        return reverse_kl(student_logprobs, teacher_logprobs)
    # Where both are zero their mixture has no gradient to give: any finite number will do, no term counts it.
    neither = (teacher_logprobs == -torch.inf) & (student_logprobs == -torch.inf)
    mixture = torch.logaddexp(
        teacher_logprobs.masked_fill(neither, 0.0) + math.log(beta),
        student_logprobs.masked_fill(neither, 0.0) + math.log1p(-beta),
    )
    return beta * _expected_difference(teacher_logprobs, mixture) + (1 - beta) * _expected_difference(
        student_logprobs, mixture
    )


def _expected_difference(
    log_p: Float[Tensor, "tokens vocab"], log_q: Float[Tensor, "tokens vocab"]
) -> Float[Tensor, " tokens"]:
    """KL(p‖q) by its definition; where p is zero the term is zero, also in the gradient (0·log 0 = 0).

    The mask comes before the product: -inf times zero would be NaN in the backward pass even where the sum is
    finite.
    """
    difference = (log_p - log_q).masked_fill(log_p == -torch.inf, 0.0)
    return (log_p.exp() * difference).sum(-1)
