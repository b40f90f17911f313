"""Overlap of the student's and the teacher's likeliest tokens (2604.13016)."""

import torch
from jaxtyping import Float
from torch import Tensor

from distill.losses.sparse import SparseDistribution


def top_k_overlap(
    log_q: Float[Tensor, "tokens vocab"], log_p: Float[Tensor, "tokens vocab"] | SparseDistribution, k: int
) -> Float[Tensor, "three tokens"]:
    """How much the k likeliest tokens of both models have in common, at each position.

        ratio = |S_k(Q) ∩ S_k(P)| / k

    Args:
        log_q: the student's distribution.
        log_p: the teacher's; if only some tokens are known, these are its likeliest, in order.
        k: tokens of each model; all of a smaller vocabulary.

    Returns:
        The ratio, and the probability that the student, and the teacher, give to the common tokens.
    """
    known = log_p.ids.shape[-1] if isinstance(log_p, SparseDistribution) else log_p.shape[-1]
    k = min(k, known, log_q.shape[-1])
    if isinstance(log_p, SparseDistribution):
        ids, theirs = log_p.ids[:, :k].long(), log_p.logprobs[:, :k].to(log_q.dtype)
    else:
        theirs, ids = log_p.topk(k, -1)
    own, likeliest = log_q.topk(k, -1)
    same = likeliest.unsqueeze(-1) == ids.unsqueeze(-2)  # [tokens, student's k, teacher's k]
    common, of_teacher = same.any(-1), same.any(-2)
    return torch.stack(
        [common.sum(-1) / k, (own.exp() * common).sum(-1), (theirs.exp() * of_teacher).sum(-1)]
    ).to(log_q.dtype)
