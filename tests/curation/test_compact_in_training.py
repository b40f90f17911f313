"""Tests of loss=compact: weights of a problem's traces, recomputed as the student trains (2601.13992)."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_as_printed import attention_from_others, log_probs, mutual_information, states_of
from test_curation_models import lazy, loop, mean, record, standard
from test_fsdp import SHARDED, ranks
from test_training import column, run

from distill.data.batch import Batch, collate
from distill.data.trace import Example, Trace
from distill.errors import UserError
from distill.generation.sampling import StudentRollouts
from distill.losses.divergence import cross_entropy
from distill.losses.weights import uniform
from distill.models.language_model import LanguageModel
from distill.objective.objective import Objective
from distill.objective.trace_weights import CompactWeights
from distill.tiny import task
from distill.training.datamodule import TraceOrder
from distill.training.datamodule import _problems as whole_problems


@pytest.fixture(scope="module")
def student() -> LanguageModel:
    """The embedded one."""
    return lazy("package:distill/tiny/student").get()


def rows_of(count: int) -> list[dict[str, Any]]:
    """Three right traces of each problem: of one step at a time, of two, and with a step too many."""
    found = []
    for problem in task.problems(count, split="train", operations=(2, 4), seed=1):
        single = task.write_solution(problem, "single")
        double = task.write_solution(problem, "double")
        found += [record(problem, text) for text in (single, double, "0+0=0;" + single)]
    return found


def batch_of(rows: list[dict[str, Any]]) -> Batch:
    traces = [
        Trace(
            Example(str(number), row["problem"], gold=row["gold"]),
            np.asarray(row["prompt_ids"], dtype=np.int32),
            np.asarray(row["completion_ids"], dtype=np.int32),
        )
        for number, row in enumerate(rows)
    ]
    return collate(traces)


def expected_weights(lm: LanguageModel, rows: list[dict[str, Any]], marks: str = ";#") -> list[float]:
    """Of one problem's traces, all coefficients 1, with the importance 0.25 of tokens beside the marks."""
    columns = [
        standard([mutual_information(lm, row, marks, 0.25) for row in rows]),
        standard(attention_from_others(lm, rows)),
        standard([-mean([n for n, _, _ in loop(lm, r["prompt_ids"], r["completion_ids"])]) for r in rows]),
    ]
    scores = [sum(own) for own in zip(*columns, strict=True)]
    total = math.fsum(map(math.exp, scores))
    return [len(rows) * math.exp(score) / total for score in scores]


def expected_consistency(lm: LanguageModel, rows: list[dict[str, Any]], weights: list[float]) -> float:
    """Σ_k w_k Σ_j α_j KL(P_k ‖ P_j) at the digit behind "#"."""
    each = []
    for row in rows:
        ids = [*row["prompt_ids"], *row["completion_ids"]]
        each.append(log_probs(lm, states_of(lm, ids)[len(ids) - 3]))  # which predicts the digit
    found = 0.0
    for k, own in enumerate(each):
        for j, other in enumerate(each):
            divergence = math.fsum(math.exp(a) * (a - b) for a, b in zip(own, other, strict=True))
            found += weights[k] * weights[j] / len(rows) * divergence
    return found


MARKS: dict[str, Any] = {"thinking": [";", "#"], "other_tokens": 0.25}


@pytest.mark.slow
def test_a_batchs_weights_are_the_formulas_of_the_student_as_it_is(student: LanguageModel) -> None:
    rows = rows_of(2)
    mixed = [rows[place] for place in (3, 0, 1, 4, 5, 2)] + [record("1+2=", "1+2=3;#3")]
    batch, weigh = batch_of(mixed), CompactWeights(**MARKS)
    found = weigh.weights(batch, student).tolist()
    first, second = expected_weights(student, rows[:3]), expected_weights(student, rows[3:])
    expected = [second[0], *first[:2], second[1], second[2], first[2], 1.0]
    assert found == pytest.approx(expected, rel=1e-3)
    head = student.completion_head(batch.input_ids, batch.mask)
    loss = CompactWeights(consistency=0.5).consistency_loss(batch, head, torch.tensor(found), student)
    parts = zip((rows[:3], rows[3:]), (first, second), strict=True)
    assert loss.item() == pytest.approx(
        0.5 * sum(expected_consistency(student, own, weights) for own, weights in parts), rel=1e-3
    )


def test_traces_without_the_answer_take_no_part_in_consistency(student: LanguageModel) -> None:
    weigh = CompactWeights(consistency=1.0)
    rows = rows_of(1)
    gone = [row | {"gold": "999"} for row in rows]
    for own, zero in ((rows[:1], True), (gone, True), (rows[:2], False)):
        batch = batch_of(own)
        head = student.completion_head(batch.input_ids, batch.mask)
        assert (weigh.consistency_loss(batch, head, torch.ones(len(own)), student).item() == 0) == zero


def test_a_problems_traces_stay_side_by_side() -> None:
    groups = [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]]
    order = TraceOrder(12, 6, seed=3, groups=groups)
    seen = [order.batch(number) for number in range(4)]
    for batch in seen:
        assert batch[:3] in groups
        assert batch[3:] in groups
    assert sorted(seen[0] + seen[1]) == list(range(12))
    assert seen[:2] != seen[2:]


def chat(number: int, first: str) -> Example:
    turns = [("user", first), ("assistant", "2"), ("user", "Are you sure?")]
    messages = tuple({"role": role, "content": text} for role, text in turns)
    return Example(str(number), "Are you sure?", "2", "Yes.", messages)


def test_chats_that_end_alike_are_problems_of_their_own() -> None:
    examples = [chat(0, "1+1?"), chat(1, "3-1?"), chat(2, "1+1?")]
    ids = np.asarray([1], dtype=np.int32)
    traces = [Trace(example, ids, ids) for example in examples]
    assert CompactWeights().groups(collate(traces)) == [[0, 2]]  # of several traces
    assert whole_problems(traces) == [[0, 2], [1]]
    CompactWeights().check(examples, batch_size=2)
    with pytest.raises(UserError, match=r"'Are you sure\?' has 2 where data.batch_size=1"):
        CompactWeights().check(examples, batch_size=1)


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    with (tmp_path / "traces.jsonl").open("w") as stream:
        for row in rows_of(4):
            stream.write(json.dumps({name: row[name] for name in ("problem", "completion", "gold")}) + "\n")
    return [
        "loss=compact", "model=tiny", "data=traces", f"data.path={tmp_path / 'traces.jsonl'}",
        "data.fields.gold=gold", "benchmark=none", "logger=csv", f"runs={tmp_path / 'runs'}",
        f"cache={tmp_path / 'cache'}", "trainer.max_steps=2", "data.batch_size=12",
        "loss.trace_weights.thinking=[';','#']", "loss.trace_weights.other_tokens=0.25",
        "loss.trace_weights.consistency=0.5", "optimizer.lr=1e-3", "trainer.precision=32-true",
        "lr_scheduler.warmup_ratio=0",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_runs_first_loss_is_the_papers_equation_11(
    words: list[str], student: LanguageModel, tmp_path: Path
) -> None:
    folder = run(words, tmp_path / "run")
    rows, total, tokens = rows_of(4), 0.0, 0
    for start in range(0, len(rows), 3):
        own = rows[start : start + 3]
        weights = expected_weights(student, own)
        for row, weight in zip(own, weights, strict=True):
            nlls = [nll for nll, _, _ in loop(student, row["prompt_ids"], row["completion_ids"])]
            total += weight * math.fsum(nlls)
            tokens += len(nlls)
        total += 0.5 * expected_consistency(student, own, weights)
    losses = column(folder, "train/loss")
    assert losses[0] == pytest.approx(total / tokens, rel=1e-3)
    assert losses[1] != losses[0]
    assert column(folder, "weights/mean")[0] != 1


def written(path: Path, rows: list[dict[str, Any]], *names: str) -> str:
    path.write_text("".join(json.dumps({name: row[name] for name in names}) + "\n" for row in rows))
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [4, 12])
def test_the_validation_loss_has_the_weights_and_the_consistency_of_training(
    words: list[str], tmp_path: Path, batch_size: int
) -> None:
    once = ["optimizer.lr=0", "trainer.max_steps=1"]
    same = run([*words, *once], tmp_path / "same")
    other = written(tmp_path / "other.jsonl", rows_of(8)[12:], "problem", "completion", "gold")
    words = [*words, *once, f"data.path={other}", f"data.batch_size={batch_size}"]
    found = run([*words, f"data.validation={tmp_path / 'traces.jsonl'}"], tmp_path / "run")
    last = json.loads((found / "summary.json").read_text())["validation"]["last"]
    assert last["val/loss"] == pytest.approx(column(same, "train/loss")[0], rel=1e-5)
    assert last["val/nll"] == pytest.approx(column(same, "train/nll")[0], rel=1e-5)
    assert last["val/loss"] != pytest.approx(last["val/nll"], rel=0.01)
    rows = [row | {"gold": "" if number == 5 else row["gold"]} for number, row in enumerate(rows_of(4))]
    bare = written(tmp_path / "bare.jsonl", rows, "problem", "completion", "gold")
    with pytest.raises(UserError, match=r"bare\.jsonl, line 6.*has no gold answer"):
        run([*words, f"data.validation={bare}"], tmp_path / "refused")


@pytest.mark.slow
def test_two_sharded_ranks_weigh_traces_as_one_process(words: list[str], tmp_path: Path) -> None:
    words = [*words, "model.student_dtype=float64", "trainer.max_steps=2"]
    single = run([*words, "data.batch_size=12"], tmp_path / "single")
    ranks([*words, "data.batch_size=6", *SHARDED], two := tmp_path / "two")
    for name in ("train/loss", "train/gradient_norm", "weights/effective_sample_size"):
        assert column(two, name) == pytest.approx(column(single, name), rel=1e-6)
    histograms = [json.loads((one / "weights.jsonl").read_text().splitlines()[-1]) for one in (single, two)]
    assert histograms[0] == histograms[1]


def test_what_cannot_be_weighted_is_one_sentence() -> None:
    rows = [Example(str(n), row["problem"], gold=row["gold"]) for n, row in enumerate(rows_of(2))]
    weigh = CompactWeights()
    weigh.check(rows, batch_size=3)
    for examples, size, message in (
        ([replace(row, gold=None) for row in rows], 6, r"whose problem has no gold answer: name the data's"),
        (rows[::3], 6, r"every problem has one: write several"),
        (rows, 2, r"has 3 where data.batch_size=2: raise that to 3"),
    ):
        with pytest.raises(UserError, match=message):
            weigh.check(examples, batch_size=size)
    CompactWeights(information=0.0).check([replace(row, gold=None) for row in rows], batch_size=6)
    with pytest.raises(ValueError, match=r"trace_weights: nll=-1.0 must be a number, at least 0"):
        CompactWeights(nll=-1.0)
    with pytest.raises(ValueError, match=r"loss.trace_weights weighs .* set loss.rollouts=dataset"):
        Objective(StudentRollouts(fraction=0.5), cross_entropy, uniform, trace_weights=weigh)
