"""Tests of the overlap of student's and teacher's likeliest tokens, against sets of Python's."""

import math

import pytest
import torch

from distill.losses import divergence
from distill.losses.chunked import PerTokenLosses, weighted_token_losses
from distill.losses.inputs import WeightedTerm
from distill.losses.overlap import top_k_overlap
from distill.losses.sparse import SparseDistribution
from distill.models.head import Head

TOKENS, VOCAB = 23, 40


def heads(seed: int = 0) -> tuple[Head, Head]:
    """Student and a teacher that is near it, so that they have some tokens in common."""
    generator = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(TOKENS, 6, generator=generator), torch.randn(VOCAB, 6, generator=generator)
    near = hidden + 0.5 * torch.randn(TOKENS, 6, generator=generator)
    return Head(hidden, weight), Head(near, weight + 0.3 * torch.randn(VOCAB, 6, generator=generator))


def by_sets(student: Head, teacher: Head, k: int) -> list[list[float]]:
    """Ratio, student's mass and teacher's mass at each position, in float64."""
    found: list[list[float]] = [[], [], []]
    for row in range(len(student.hidden)):
        probabilities = []
        for head in (student, teacher):
            logits = (head.weight.double() @ head.hidden[row].double()).tolist()
            total = math.fsum(map(math.exp, logits))
            probabilities.append([math.exp(logit) / total for logit in logits])
        q, p = probabilities
        common = set(sorted(range(VOCAB), key=lambda v: -q[v])[:k]) & set(
            sorted(range(VOCAB), key=lambda v: -p[v])[:k]
        )
        for values, value in zip(
            found, (len(common) / k, sum(q[v] for v in common), sum(p[v] for v in common)), strict=True
        ):
            values.append(value)
    return found


def measured(student: Head, log_p: Head | SparseDistribution, k: int, **options: float) -> PerTokenLosses:
    labels = torch.arange(TOKENS) % VOCAB
    term = WeightedTerm(divergence.forward_kl, torch.ones(TOKENS))
    return weighted_token_losses(
        student, labels, [term], others={"log_p": log_p}, overlap=k, chunk_size=7, **options
    )


@pytest.mark.parametrize("k", [1, 5, 16, VOCAB])
def test_the_overlap_is_that_of_sets(k: int) -> None:
    student, teacher = heads()
    expected = by_sets(student, teacher, k)
    assert measured(student, teacher, k).overlap.tolist() == [
        pytest.approx(values, abs=2e-6) for values in expected
    ]
    if k < VOCAB:
        assert 0 < sum(expected[0]) / TOKENS < 1


def test_it_is_at_temperature_1_whatever_the_losses() -> None:
    student, teacher = heads()
    plain, hot = measured(student, teacher, 5), measured(student, teacher, 5, temperature=3.0)
    torch.testing.assert_close(hot.overlap, plain.overlap)
    assert not torch.equal(hot.losses, plain.losses)


def test_a_cached_teachers_likeliest_tokens_do_as_well() -> None:
    student, teacher = heads()
    log_p = torch.log_softmax(teacher.hidden @ teacher.weight.T, -1)
    top = log_p.topk(8, -1)
    rest = torch.zeros(TOKENS)
    cached = SparseDistribution(top.indices.int(), top.values, rest)
    for k in (3, 8):
        torch.testing.assert_close(
            measured(student, cached, k).overlap, measured(student, teacher, k).overlap
        )


def test_a_small_vocabulary_is_all_in_common() -> None:
    log_q = torch.log_softmax(torch.randn(4, 3, generator=torch.Generator().manual_seed(1)), -1)
    torch.testing.assert_close(top_k_overlap(log_q, log_q.flip(-1), 16), torch.ones(3, 4))


def test_what_is_measured_changes_no_loss_and_no_gradient() -> None:
    totals, gradients = [], []
    for overlap in (0, 5):
        student, teacher = heads()
        student.hidden.requires_grad_()
        found = measured(student, teacher, overlap)
        assert found.overlap.shape == (3, TOKENS if overlap else 0)
        found.total.backward()
        totals.append(found.total.detach())
        gradients.append(student.hidden.grad)
    assert torch.equal(*totals)
    assert torch.equal(*gradients)
