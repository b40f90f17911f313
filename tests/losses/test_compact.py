"""Tests of COMPACT's scores (2601.13992), each against its formula in plain Python, in double precision."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distill.losses.compact import (
    answer_consistency,
    answer_information,
    importance_of,
    incoming_attention,
    rises,
    shares,
    spans_of,
)
from distill.models.head import Head


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_softmax(logits: list[float]) -> list[float]:
    total = math.log(math.fsum(math.exp(value) for value in logits))
    return [value - total for value in logits]


def logits_of(state: list[float], matrix: list[list[float]]) -> list[float]:
    return [math.fsum(a * b for a, b in zip(state, row, strict=True)) for row in matrix]


def test_information_is_the_mean_log_prob_of_the_answer_at_every_state() -> None:
    hidden, matrix, gold, labels = normal(6, 4), normal(9, 4, seed=1), [3, 3, 8], [1, 0, 5, 7, 2]
    information, logprobs = answer_information(Head(hidden, matrix), torch.tensor(gold), torch.tensor(labels))
    each = [log_softmax(logits_of(state, matrix.tolist())) for state in hidden.tolist()]
    assert information.tolist() == pytest.approx([sum(one[g] for g in gold) / 3 for one in each])
    assert logprobs.tolist() == pytest.approx([each[t][token] for t, token in enumerate(labels)])


def test_only_rises_count_each_by_its_tokens_importance() -> None:
    values, importance = [-3.0, -1.0, -2.5, -0.5, -0.5], [1.0, 0.1, 0.1, 1.0]
    expected = math.fsum(max(0.0, values[t + 1] - values[t]) * m for t, m in enumerate(importance))
    found = rises(torch.tensor(values).double(), torch.tensor(importance).double())
    assert found.item() == pytest.approx(expected) == pytest.approx(2.2)


@pytest.mark.parametrize("traces", [2, 3, 5])
def test_consensus_is_the_attention_that_comes_in_from_others(traces: int) -> None:
    queries, keys = normal(traces, 6), normal(traces, 6, seed=1)
    expected = [0.0] * traces
    for j in range(traces):
        row = [
            math.exp(v)
            for v in log_softmax([x / 6**0.5 for x in logits_of(queries[j].tolist(), keys.tolist())])
        ]
        for k in range(traces):
            expected[k] += row[k] if k != j else 0.0
    assert incoming_attention(queries, keys).tolist() == pytest.approx(expected)


def test_shares_are_a_softmax_over_z_scores_and_two_traces_are_plus_and_minus_one() -> None:
    scores = [(0.7, [1.0, 4.0, 2.0]), (-1.5, [0.3, 0.2, 0.9]), (2.0, [5.0, 5.0, 5.0])]
    total = [0.0] * 3
    for coefficient, values in scores:
        mean = sum(values) / 3
        spread = (sum((v - mean) ** 2 for v in values) / 3) ** 0.5
        for k, v in enumerate(values):
            total[k] += coefficient * (v - mean) / spread if spread else 0.0
    expected = [math.exp(v) for v in log_softmax(total)]
    found = shares([(c, torch.tensor(v)) for c, v in scores], 3)
    assert found.tolist() == pytest.approx(expected)
    near, far = (shares([(1.0, torch.tensor([0.0, gap]))], 2).tolist() for gap in (0.01, 100.0))
    assert near == pytest.approx(far)
    assert shares([], 4).tolist() == [0.25] * 4


def test_consistency_is_the_weighted_kl_to_the_other_traces_with_gradients_through_both() -> None:
    states = [normal(2, 4, seed=seed).requires_grad_() for seed in range(3)]
    matrix, alphas = normal(7, 4, seed=9), torch.tensor([0.2, 0.5, 0.3]).double()
    each = [[log_softmax(logits_of(s, matrix.tolist())) for s in one.tolist()] for one in states]
    expected = []
    for k in range(3):
        total = 0.0
        for j in range(3):
            pairs = zip(each[k], each[j], strict=True) if j != k else ()
            total += alphas[j].item() * math.fsum(
                math.exp(a) * (a - b) for own, other in pairs for a, b in zip(own, other, strict=True)
            )
        expected.append(total)
    found = answer_consistency(states, matrix, alphas)
    assert found.tolist() == pytest.approx(expected)
    assert torch.autograd.gradcheck(lambda *given: answer_consistency(given, matrix, alphas), states)
    found[0].backward()  # the other traces' side has a gradient too
    assert all(one.grad is not None and one.grad.abs().max() > 1e-3 for one in states)


WORDS = ["There", "fore", ",", " so", "m", "e", " are", " So", ". W", "ait", "!", ""]


def tokenizer() -> Any:
    return SimpleNamespace(decode=lambda ids, **_: "".join(WORDS[token] for token in ids))


def test_thinking_words_are_whole_words_of_any_case_over_several_tokens() -> None:
    ids = range(len(WORDS))  # Therefore, some are So. Wait!
    found = importance_of(tokenizer(), ids, ["therefore", "so", "wait"], 0.25)
    assert found.tolist() == [1.0, 1.0, *[0.25] * 5, 1.0, 1.0, 1.0, 0.25, 0.25]
    assert importance_of(tokenizer(), ids, [], 0.25).tolist() == [0.25] * 12
    assert spans_of(tokenizer(), ids, "some") == [(3, 6)]
    assert importance_of(tokenizer(), ids, [","], 0.0).tolist() == [0, 0, 1] + 9 * [0]
