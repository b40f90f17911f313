"""COMPACT's scores of a problem's traces (2601.13992, Eq. 2 to 9), from the student's hidden states.

The paper leaves open, and so these are our reading: all tokens of the gold answer are predicted from each
hidden state alone (Eq. 2 conditions on it, and calls the score a proxy); W_Q and W_K take the state that the
output head sees, all heads together, without bias and rotation, and grouped keys are repeated (Eq. 4).
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from distill.losses.logits import logits_in_blocks
from distill.models.head import Head, gather, log_softmax

THINKING = ("therefore", "so", "because", "wait")  # the paper's examples of its list
ROUNDING = 1e-4  # logprobs of one text vary by about 1e-5 with its batch: smaller spreads are none


@torch.no_grad()
def answer_information(
    head: Head, gold: Int[Tensor, " answer"], labels: Int[Tensor, " tokens"]
) -> tuple[Float[Tensor, " states"], Float[Tensor, " tokens"]]:
    """I(t) after every token, and the log-probs of the trace's own tokens.

        I(t) = 1/|g| Σ_j log P(g_j | h_t)   (Eq. 2)

    Args:
        head: states from the prompt's last token to the trace's last, one more than the trace has tokens.
        gold: tokens of the gold answer.
        labels: the trace's tokens.
    """
    information, logprobs = [], []
    for rows, logits in logits_in_blocks(head, None):
        found = log_softmax(logits)
        information.append(found[:, gold].mean(-1))
        own = labels[rows]  # the last state predicts none
        logprobs.append(gather(found[: len(own)], own))
    return torch.cat(information), torch.cat(logprobs)


def rises(information: Float[Tensor, " states"], importance: Float[Tensor, " tokens"]) -> Float[Tensor, ""]:
    """S_MI = Σ_t ReLU(I(t) − I(t−1)) · M_t (Eq. 3). An answer that jumps up and down scores high."""
    return (information.diff().clamp(min=0.0) * importance).sum()


def importance_of(
    tokenizer: Any, ids: Sequence[int], thinking: Sequence[str], other: float
) -> Float[np.ndarray, " tokens"]:
    """M_t: 1 on tokens of the thinking words, whatever their case, else `other` (the paper's small ε)."""
    found = np.full(len(ids), other)
    for start, end in spans_of(tokenizer, ids, "|".join(map(_whole_word, thinking))):
        found[start:end] = 1.0
    return found


def _whole_word(word: str) -> str:
    """Pattern of a word that is no part of a longer one."""
    before, after = (r"\w" if re.match(r"\w", letter) else None for letter in (word[:1], word[-1:]))
    return f"{f'(?<!{before})' if before else ''}{re.escape(word)}{f'(?!{after})' if after else ''}"


def spans_of(tokenizer: Any, ids: Sequence[int], pattern: str) -> list[tuple[int, int]]:
    """Ranges of tokens, (start, end), that hold the matches of a regular expression, whatever their case."""
    texts = [tokenizer.decode([int(token)], skip_special_tokens=True) for token in ids]
    ends = np.cumsum([len(text) for text in texts])
    return [
        # of the first token that ends behind the match's start, to the first that ends at its end or later
        (int(np.searchsorted(ends, match.start(), "right")), int(np.searchsorted(ends, match.end())) + 1)
        for match in re.finditer(pattern, "".join(texts), re.IGNORECASE)
        if match.end() > match.start()
    ]


def incoming_attention(
    queries: Float[Tensor, "traces width"], keys: Float[Tensor, "traces width"]
) -> Float[Tensor, " traces"]:
    """S_cons,k = Σ_{j≠k} A_jk with A = row-softmax(Q Kᵀ / √d) (Eq. 4, 5)."""
    attention = torch.softmax(queries @ keys.T / queries.shape[-1] ** 0.5, dim=-1)
    return attention.sum(0) - attention.diagonal()


def shares(scores: Sequence[tuple[float, Float[Tensor, " traces"]]], count: int) -> Float[Tensor, " traces"]:
    """α = softmax_k(Σ β · z(score)) over a problem's traces (Eq. 7); z is 0 for scores that do not differ.

    Args:
        scores: coefficient β, with its sign, and the traces' scores.
        count: number of traces.
    """
    total = torch.zeros(count, dtype=torch.float64)
    for coefficient, values in scores:
        values = values.double().cpu()
        spread = values.std(correction=0)
        if spread > ROUNDING:
            total = total + coefficient * (values - values.mean()) / spread
    return torch.softmax(total, dim=-1)


def answer_consistency(
    states: Sequence[Float[Tensor, "answer hidden"]],
    weight: Float[Tensor, "vocab hidden"],
    alphas: Float[Tensor, " traces"],
) -> Float[Tensor, " traces"]:
    """L_MCon,k = Σ_{j≠k} α_j KL(P(·|x, y_k) ‖ P(·|x, y_j)) summed over the answer's tokens (Eq. 9).

    The gradient goes through both distributions. α is a constant.

    Args:
        states: of each trace, the hidden states that predict its answer's tokens; the same number for all.
        weight: output matrix.
        alphas: α of each trace.
    """
    found = torch.stack([log_softmax(one.to(weight.dtype) @ weight.T) for one in states])
    own, other = found.unsqueeze(1), found.unsqueeze(0)
    divergence = (own.exp() * (own - other)).sum((-1, -2))  # [k, j], 0 where k = j
    return (divergence * alphas.to(divergence).unsqueeze(0)).sum(1)
