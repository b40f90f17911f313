"""Tests of token statistics against their definitions: per token, per set, and across tokenizers."""

import itertools
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from test_alignment import same_model_with

from distill.analysis.suitability import (
    RATIO_EDGES,
    Support,
    at_students_tokens,
    draw,
    effective_share,
    suitability,
    support_of,
    trace_table,
)
from distill.data.alignment import Alignment
from distill.data.prompt import Prompt
from distill.data.trace import Example, Trace, encode_completion
from distill.errors import UserError
from distill.losses.divergence import cross_entropy
from distill.losses.logits import label_ranks
from distill.losses.weights import dft, eaft, support_ratio
from distill.models.find import find_model
from distill.models.head import Head
from distill.models.language_model import LanguageModel
from distill.models.lazy import LazyModel
from distill.objective.objective import Objective
from distill.teacher.retokenize import Retokenizer
from distill.teacher.token_stats import TokenStats, set_rsr, token_stats

PROBLEMS = {"3+4=": "3+4=7;#7", "2*5-1=": "2*5=0;0-1=9;#9", "9=": "#9", "8-2+6*3=": "8-2+6*3=4;#4"}


def traces(lm: LanguageModel) -> list[Trace]:
    return [
        Trace(
            Example(problem, problem, completion=text),
            np.asarray(lm.tokenizer(problem).input_ids, dtype=np.int32),
            encode_completion(lm.tokenizer, text),
        )
        for problem, text in PROBLEMS.items()
    ]


def lazy(folder: Path) -> LazyModel:
    return LazyModel(find_model(str(folder), key="model.student"), "cpu")


def by_loops(lm: LanguageModel, trace: Trace) -> TokenStats:
    """The definitions, one token at a time, in double precision, without padding and without chunks."""
    ids = torch.from_numpy(np.concatenate([trace.prompt_ids, trace.completion_ids]).astype(np.int64))
    with torch.no_grad():
        logits = lm.model(ids[None]).logits[0].double()[:, : lm.vocab_size]
    columns: list[tuple[float, int, float]] = []
    for position in range(len(trace.prompt_ids), len(ids)):
        row = logits[position - 1].tolist()
        label = int(ids[position])
        total = math.log(math.fsum(math.exp(value) for value in row))
        rank = 1 + sum(value > row[label] for value in row)
        entropy = -math.fsum(math.exp(value - total) * (value - total) for value in row)
        columns.append((row[label] - total, rank, entropy))
    logprobs, ranks, entropies = zip(*columns, strict=True)
    return TokenStats(np.asarray(logprobs), np.asarray(ranks), np.asarray(entropies))


def test_logprobs_ranks_and_entropies_are_their_definitions(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    model = lazy(tiny_pair[0])
    own = traces(model.get())
    found = token_stats(model, own, cache=tmp_path, token_budget=30)
    for trace, scores in zip(own, found, strict=True):
        expected = by_loops(model.get(), trace)
        np.testing.assert_allclose(scores.logprobs, expected.logprobs, atol=2e-5)
        np.testing.assert_allclose(scores.entropy, expected.entropy, atol=2e-5)
        assert scores.ranks.tolist() == expected.ranks.tolist()
        # The paper's ratio from the loops' numbers, its limit on ranks included.
        for limit in (3, 100):
            ranks = [min(rank, limit) for rank in expected.ranks]
            assert scores.rsr(limit) == pytest.approx(sum(ranks) / -sum(expected.logprobs), rel=1e-4)
    assert max(scores.ranks.max() for scores in found) > 3  # so that the limit is felt
    means = [(np.minimum(s.ranks, 100).mean(), -s.logprobs.mean(dtype=np.float64)) for s in found]
    assert set_rsr(found) == pytest.approx(sum(r for r, _ in means) / sum(n for _, n in means))


def test_a_sets_ratio_is_one_of_sums_as_in_its_authors_code() -> None:
    """Numbers made by hand: short and long traces count alike, and it is no mean of ratios."""
    short = TokenStats(np.log(np.asarray([0.5])), np.asarray([2]), np.zeros(1))
    long = TokenStats(np.log(np.asarray([0.1, 0.2, 0.4])), np.asarray([1, 500, 3]), np.zeros(3))
    assert short.rsr() == pytest.approx(2 / math.log(2))
    surprisal = math.log(10) + math.log(5) + math.log(2.5)
    assert long.rsr() == pytest.approx(104 / surprisal)
    assert set_rsr([short, long]) == pytest.approx((2 + 104 / 3) / (math.log(2) + surprisal / 3))


@pytest.mark.parametrize("chunk_size", [1, 3, 100])
def test_ranks_come_in_chunks_and_ties_are_not_ahead(chunk_size: int) -> None:
    hidden = torch.eye(4, dtype=torch.float64)
    logits = torch.tensor([[1.0, 1.0, 0.0], [3.0, 2.0, 1.0], [0.0, 0.0, 0.0], [-1.0, 5.0, 5.0]])
    head = Head(hidden, logits.T.double())
    _, ranks, entropy = label_ranks(head, torch.tensor([1, 2, 0, 0]), chunk_size=chunk_size)
    assert ranks.tolist() == [1, 3, 1, 3]
    assert entropy[2] == pytest.approx(math.log(3))


def test_scores_are_computed_once_and_not_taken_for_another_models(
    tiny_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = lazy(tiny_pair[0])
    own = traces(model.get())
    first = token_stats(model, own, cache=tmp_path)
    again = lazy(tiny_pair[0])
    second = token_stats(again, own, cache=tmp_path)
    assert not again.loaded
    assert all(np.array_equal(a.ranks, b.ranks) for a, b in zip(first, second, strict=True))
    other = token_stats(lazy(tiny_pair[1]), own, cache=tmp_path)
    assert not np.allclose(first[0].logprobs, other[0].logprobs)


def test_a_scoring_that_was_killed_goes_on_where_it_was(
    tiny_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distill.teacher.token_stats._TRACES_PER_SHARD", 1)
    model = lazy(tiny_pair[0])
    own = traces(model.get())
    whole = token_stats(model, own, cache=tmp_path / "whole")
    asked: list[int] = []
    original = LanguageModel.completion_head

    def counted(self: LanguageModel, ids: Any, mask: Any, layout: Any) -> Any:
        asked.append(len(ids))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return original(self, ids, mask)

    monkeypatch.setattr(LanguageModel, "completion_head", counted)
    with pytest.raises(KeyboardInterrupt):
        token_stats(model, own, cache=tmp_path / "cut")
    resumed = token_stats(model, own, cache=tmp_path / "cut")
    assert len(asked) == 5  # two before the kill, the one that was cut, and the two that were missing
    for a, b in zip(whole, resumed, strict=True):
        assert np.array_equal(a.logprobs, b.logprobs)


# --- support


def objective(weight: Callable[..., Any], **options: Any) -> Objective:
    return Objective(rollouts="dataset", token_loss=cross_entropy, token_weight=weight, **options)


def some_scores(length: int, seed: int) -> TokenStats:
    draw_from = np.random.default_rng(seed)
    return TokenStats(
        -draw_from.exponential(1.0, length).astype(np.float32),
        draw_from.integers(1, 200, length).astype(np.int32),
        draw_from.exponential(1.0, length).astype(np.float32),
    )


def test_the_weights_are_those_that_dcod_begins_training_with() -> None:
    student, teacher = some_scores(7, 0), some_scores(7, 1)
    (found,) = support_of(objective(partial(support_ratio, temperature=2.0)), [student], [teacher], [None])
    for token in range(7):
        ratio = float(student.logprobs[token]) - float(teacher.logprobs[token])
        assert found.log_ratio[token] == pytest.approx(ratio)
        assert found.weights[token] == pytest.approx(1 / (1 + math.exp(-ratio / 2)), rel=1e-5)
    assert found.compared.all()
    assert found.teacher_entropy == pytest.approx(teacher.entropy.sum(), rel=1e-5)
    # Its log-probs alone, as a trace set keeps them, give the same weights and no entropy.
    (bare,) = support_of(
        objective(partial(support_ratio, temperature=2.0)), [student], [teacher.logprobs], [None]
    )
    assert np.array_equal(bare.weights, found.weights)
    assert bare.teacher_entropy is None


def test_another_loss_brings_its_own_weights_and_one_of_training_alone_is_refused() -> None:
    student, teacher = some_scores(5, 2), some_scores(5, 3)
    (found,) = support_of(objective(dft), [student], [teacher], [None])
    np.testing.assert_allclose(found.weights, np.exp(student.logprobs), rtol=1e-5)
    with pytest.raises(UserError, match=r"weights of eaft ask for student_entropy, which training alone"):
        support_of(objective(eaft), [student], [teacher], [None])


def test_other_tokens_are_compared_span_by_span() -> None:
    """Boundaries at 0 | 2 | 3 of the student's tokens and 0 | 1 | 4 of the teacher's, the last open."""
    student = np.asarray([-1.0, -2.0, -0.5, -3.0])
    teacher = np.asarray([-0.5, -1.0, -1.0, -1.0, -7.0])
    alignment = Alignment(np.asarray([0, 2, 3]), np.asarray([0, 1, 4]), np.asarray([False, False, False]))
    given, compared = at_students_tokens(student, teacher, alignment)
    assert compared.tolist() == [True, True, True, False]
    ratios = student - given
    assert ratios[:2].sum() == pytest.approx(-3.0 - -0.5)
    assert ratios[0] == pytest.approx(ratios[1])
    assert ratios[2] == pytest.approx(-0.5 - -3.0)
    closed = Alignment(alignment.student_at, alignment.teacher_at, np.asarray([False, False, True]))
    given, compared = at_students_tokens(student, teacher, closed)
    assert compared.all()
    assert student[3] - given[3] == pytest.approx(-3.0 - -7.0)


def test_a_teacher_of_permuted_tokens_is_as_the_same_teacher_of_the_students(
    student: LanguageModel, permuted_tokenizer: Any, tmp_path: Path
) -> None:
    """The same weights under other ids."""
    same_model_with(permuted_tokenizer, student, tmp_path / "teacher")
    model = lazy(tmp_path / "teacher")
    own = traces(student)
    reader = Retokenizer(student.source, model.source, Prompt("{problem}"))
    readings = [reader.read(reader.prompt_ids(t.example), t.completion_ids.tolist()) for t in own]
    read = [Trace(t.example, r.prompt_ids, r.completion_ids) for t, r in zip(own, readings, strict=True)]
    mine = [by_loops(student, trace) for trace in own]
    mine = [TokenStats(s.logprobs.astype(np.float32), s.ranks, s.entropy.astype(np.float32)) for s in mine]
    theirs = token_stats(model, read, cache=tmp_path / "cache")
    found = support_of(objective(support_ratio), mine, theirs, [r.alignment for r in readings])
    for one, own_scores, trace in zip(found, mine, read, strict=True):
        assert one.compared.all()
        # One by one: a token is a character to both. (Their matrices' padding makes them differ a little.)
        ratio = own_scores.logprobs - by_loops(model.get(), trace).logprobs
        np.testing.assert_allclose(one.log_ratio, ratio, atol=1e-4)
        np.testing.assert_allclose(one.log_ratio, 0.0, atol=0.1)


# --- a set


def a_set(count: int, seed: int = 0, problems: int = 4) -> tuple[pandas.DataFrame, list[TokenStats], Any]:
    lengths = np.random.default_rng(seed).integers(1, 9, count)
    scores = [some_scores(int(length), seed * 100 + i) for i, length in enumerate(lengths)]
    teachers = [some_scores(int(length), seed * 100 + 50 + i) for i, length in enumerate(lengths)]
    support = support_of(objective(support_ratio), scores, teachers, [None] * count)
    records = [{"id": str(i), "teacher": "t", "correct": None} for i in range(count)]
    names = [f"p{i % problems}" for i in range(count)]
    return trace_table(records, names, scores, support), scores, support


def test_a_sets_figures_are_sums_over_its_tokens() -> None:
    frame, scores, support = a_set(6)
    found = suitability(frame, scores, support, right=None)
    figures = found.figures()
    logprobs = np.concatenate([s.logprobs for s in scores]).astype(np.float64)
    weights = np.concatenate([s.weights for s in support])
    assert figures["nll"] == pytest.approx(-logprobs.mean())
    assert figures["rsr"] == pytest.approx(set_rsr(scores))
    assert figures["entropy"] == pytest.approx(np.concatenate([s.entropy for s in scores]).mean(), rel=1e-6)
    assert figures["weight"] == pytest.approx(weights.mean())
    assert figures["effective_share"] == pytest.approx(weights.sum() ** 2 / (weights**2).sum() / len(weights))
    assert figures["log_ratio"] == pytest.approx(np.concatenate([s.log_ratio for s in support]).mean())
    assert sum(found.ratio_counts) == sum(found.rank_counts) == len(logprobs)
    ratios = np.concatenate([s.log_ratio for s in support])
    inside = [((ratios >= a) & (ratios < b)).sum() for a, b in itertools.pairwise(RATIO_EDGES)]
    assert found.ratio_counts[1:-1] == inside[1:-1]
    ranks = np.concatenate([s.ranks for s in scores])
    assert found.rank_counts[:3] == [(ranks == 1).sum(), (ranks == 2).sum(), (ranks == 3).sum()]
    assert found.rank_counts[-1] == (ranks > 100).sum()
    expected = spearmanr([s.weights.mean() for s in support], [len(s) for s in scores])
    correlation = found.correlation()
    assert correlation is not None
    assert correlation[0] == pytest.approx(expected.statistic)


def test_a_bootstrap_sample_is_the_set_with_problems_repeated() -> None:
    frame, scores, support = a_set(8, seed=1)
    whole = suitability(frame, scores, support, right=None)
    counts = np.asarray([[2, 0, 1, 1], [0, 4, 0, 0], [1, 1, 1, 1]])
    found = whole.resampled(np.asarray(["p0", "p1", "p2", "p3"], dtype=object), counts)
    for row, times in enumerate(counts):
        places = [i for i in range(8) for _ in range(times[i % 4])]
        drawn = suitability(
            trace_table(
                [{"id": "", "teacher": "t", "correct": None}] * len(places),
                ["p"] * len(places),
                [scores[i] for i in places],
                [support[i] for i in places],
            ),
            [scores[i] for i in places],
            [support[i] for i in places],
            right=None,
        )
        for name, value in drawn.figures().items():
            assert found[name][row] == pytest.approx(value), name
    assert (draw(4, 50, seed=3).sum(-1) == 4).all()


@pytest.mark.slow
def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Sets drawn from a known law: 95 % intervals of the mean surprisal hold its true mean, 1."""
    held = 0
    for seed in range(200):
        scores = [some_scores(20, 1000 * seed + i) for i in range(40)]
        records = [{"id": str(i), "teacher": "t", "correct": None} for i in range(40)]
        frame = trace_table(records, [str(i) for i in range(40)], scores, None)
        found = suitability(frame, scores, None, right=None)
        names = np.asarray([str(i) for i in range(40)], dtype=object)
        values = found.resampled(names, draw(40, 400, seed))["nll"]
        low, high = np.percentile(values, [2.5, 97.5])
        held += low <= 1.0 <= high
    assert 180 <= held <= 198


@given(st.lists(st.floats(0, 10), min_size=1, max_size=30))
def test_the_effective_share_lies_between_one_token_and_all(weights: list[float]) -> None:
    found = effective_share(np.asarray(weights))
    if max(weights) == 0:
        assert found is None
    else:
        assert found is not None
        assert 1 / len(weights) - 1e-9 <= found <= 1 + 1e-9


def test_the_effective_share_is_all_of_equal_weights_and_one_of_a_single_one() -> None:
    assert effective_share(np.full(5, 0.3)) == pytest.approx(1.0)
    assert effective_share(np.full(2, 5.4e-159)) == pytest.approx(1.0)
    assert effective_share(np.asarray([0.0, 2.0, 0.0, 0.0])) == pytest.approx(0.25)


def test_a_trace_of_which_nothing_can_be_compared_has_no_weight() -> None:
    scores = [some_scores(3, 0), some_scores(4, 1)]
    nothing = Support(np.zeros(3), np.zeros(3), np.zeros(3, dtype=bool), 1.0, 0.5, 2)
    all_of_it = Support(np.ones(4), np.full(4, 0.5), np.ones(4, dtype=bool), 1.0, 0.5, 4)
    records = [{"id": str(i), "teacher": "t", "correct": None} for i in range(2)]
    frame = trace_table(records, ["a", "b"], scores, [nothing, all_of_it])
    found = suitability(frame, scores, [nothing, all_of_it], right=None)
    assert found.figures()["weight"] == pytest.approx(0.5)
    assert found.figures()["log_ratio"] == pytest.approx(1.0)
    assert sum(found.ratio_counts) == 4
