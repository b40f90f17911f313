"""Tests of distributions of several models: routed and mixed, against loops over tokens."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from distill.losses import divergence
from distill.losses.chunked import weighted_token_losses
from distill.losses.inputs import WeightedTerm
from distill.losses.several_heads import MixedHead, RoutedHead, heads_of
from distill.models.head import Head

TOKENS, VOCABULARY = 11, 7
OWNER = [0, 0, 1, 1, 1, 2, 0, 2, 2, 1, 0]  # of each token
WIDTHS = (5, 4, 6)


def heads(tokens: Sequence[int]) -> list[Head]:
    """Heads of three models with several widths."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return [Head(draw(count, w), draw(VOCABULARY, w)) for count, w in zip(tokens, WIDTHS, strict=True)]


def routed() -> RoutedHead:
    on_host = [np.flatnonzero(np.array(OWNER) == number) for number in range(3)]
    return RoutedHead(
        heads([len(own) for own in on_host]), list(map(torch.from_numpy, on_host)), on_host, TOKENS
    )


def distributions(head: Head, temperature: float) -> list[list[float]]:
    """The probabilities of each token, by the softmax's definition."""
    found = []
    for row in (head.hidden @ head.weight.T / temperature).tolist():
        exponentials = [math.exp(x) for x in row]
        found.append([x / sum(exponentials) for x in exponentials])
    return found


def routed_by_loops(of: RoutedHead, temperature: float) -> list[list[float]]:
    each = [iter(distributions(head, temperature)) for head in of.heads]
    return [next(each[owner]) for owner in OWNER]


def mixed_by_loops(of: MixedHead, temperature: float) -> list[list[float]]:
    each = [distributions(head, temperature) for head in of.heads]
    return [
        [sum(w * own[t][v] for w, own in zip(of.weights, each, strict=True)) for v in range(VOCABULARY)]
        for t in range(TOKENS)
    ]


CASES = {
    "routed": (routed(), routed_by_loops),
    "mixed": (MixedHead(heads([TOKENS] * 3), [0.5, 0.2, 0.3]), mixed_by_loops),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("chunk_size", [3, 64])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_divergence_from_several_models_is_that_of_a_loop_over_tokens(
    case: str, chunk_size: int, temperature: float
) -> None:
    other, by_loops = CASES[case]
    student = Head(heads([TOKENS] * 3)[1].hidden.clone().requires_grad_(), heads([TOKENS] * 3)[1].weight)
    labels = torch.arange(TOKENS) % VOCABULARY
    found = weighted_token_losses(
        student,
        labels,
        [WeightedTerm(divergence.forward_kl, torch.ones(TOKENS))],
        others={"log_p": other},
        temperature=temperature,
        chunk_size=chunk_size,
    )
    q = distributions(Head(student.hidden.detach(), student.weight), temperature)
    expected = [
        sum(a * math.log(a / b) for a, b in zip(p, row, strict=True))
        for p, row in zip(by_loops(other, temperature), q, strict=True)  # pyright: ignore[reportArgumentType]
    ]
    assert found.losses[0].tolist() == pytest.approx(expected, rel=1e-10)
    found.total.backward()
    assert student.hidden.grad is not None
    # The gradient of a forward KL in the logits is (q - p) / T.
    for row, (own, p, grad) in enumerate(
        zip(q, by_loops(other, temperature), student.hidden.grad.tolist(), strict=True)  # pyright: ignore[reportArgumentType]
    ):
        logits = [(a - b) / temperature for a, b in zip(own, p, strict=True)]
        columns = student.weight.T.tolist()
        assert grad == pytest.approx(
            [sum(x * y for x, y in zip(logits, column, strict=True)) for column in columns], abs=1e-10
        ), row


@pytest.mark.parametrize("case", CASES)
def test_log_probs_of_labels_are_those_of_a_loop_over_tokens(case: str) -> None:
    other, by_loops = CASES[case]
    labels = torch.arange(TOKENS) % VOCABULARY
    expected = [
        math.log(p[label])
        for p, label in zip(by_loops(other, 1.0), labels.tolist(), strict=True)  # pyright: ignore[reportArgumentType]
    ]
    assert other.label_logprobs(labels).tolist() == pytest.approx(expected, rel=1e-10)


def test_heads_are_counted_and_sparse_ones_are_none() -> None:
    assert len(heads_of(CASES["routed"][0])) == 3
    assert heads_of(object()) == []
