"""Tests of `python -m distill.report`: compared methods, statistical tests, and the page's content."""

import itertools
import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import test_training
import warm
from commands import command
from samples import sample
from scipy.stats import ttest_rel
from test_results import made
from test_training import arguments, run

from distill.errors import UserError
from distill.report import curves, figures
from distill.report.answers import Answers
from distill.report.examples import disagreements
from distill.report.methods import Table, method_of_runs, tables_of
from distill.report.page import Grid, Heading, Items, Picture, Text, Written, markdown, page
from distill.report.paired_tests import compared
from distill.report.style import styles, written
from distill.report.sweep import planned
from distill.report.write import write_report
from distill.runs.load import load_runs
from distill.statistics import holm

traces = test_training.traces  # the fixture
LENGTHS = [10, 12, 14, 20, 30, 40]  # of solutions: three short ones, three long ones


def job(
    sweep: Path,
    loss: str,
    seed: int,
    right: list[int],
    *,
    lengths: list[int] | None = None,
    texts: list[str] | None = None,
    completion: str = "2",
    **changes: Any,
) -> Path:
    """A finished run that answers so many problems right (1) or wrong (0)."""
    place = sweep / ("_".join([loss, *(f"{value}" for value in changes.values())]) + f"_{seed}")
    folder = made(place, loss, seed, float(np.mean(right)), **changes)
    records = [
        {"stage": stage}
        | sample(
            "arithmetic",
            id=str(number),
            problem=texts[number] if texts else f"{number}+1=",
            correct=bool(good) if stage == "after" else False,
            completion=f"{completion} {loss} {seed}",
            reference_tokens=None if lengths is None else lengths[number],
        )
        for stage in ("before", "after")
        for number, good in enumerate(right)
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def one_table(sweep: Path, **options: Any) -> Table:
    (table,), others = tables_of([sweep], **options)
    assert others == {}
    return table


def sweep_of(folder: Path, problems: int = 40, seeds: int = 4) -> dict[str, np.ndarray]:
    """Three methods on the same problems; what each got right, [seeds, problems]."""
    rng = np.random.default_rng(0)
    shares = {"sft": 0.4, "dcod": 0.8, "dft": 0.42}
    right = {loss: (rng.random((seeds, problems)) < share).astype(int) for loss, share in shares.items()}
    lengths = rng.integers(5, 50, problems).tolist()
    for loss, own in right.items():
        for seed in range(seeds):
            job(folder, loss, seed, own[seed].tolist(), lengths=lengths)
    return right | {"lengths": np.asarray(lengths)}


# --- methods against the baseline


@pytest.mark.slow
def test_gains_and_both_tests_are_those_of_their_definitions(tmp_path: Path) -> None:
    right = sweep_of(tmp_path)
    table = one_table(tmp_path)
    assert (table.baseline, table.asked, table.notes) == ("sft", {"arithmetic": 500}, ())
    assert table.methods[0].name == "dcod"  # best first
    p_values = []
    for name in ("dcod", "dft"):
        method = table.method(name)
        a, b = right["sft"].mean(1), right[name].mean(1)
        assert method.accuracy is not None
        assert method.accuracy.value == pytest.approx(b.mean())
        gain = method.gain
        assert gain is not None
        assert gain.seeds == (0, 1, 2, 3)
        assert gain.over_seeds is not None
        expected = ttest_rel(b, a)
        low, high = expected.confidence_interval(0.95)
        assert gain.over_seeds.value == pytest.approx(np.mean(b - a))
        assert gain.over_seeds.p == pytest.approx(float(expected.pvalue))
        assert [gain.over_seeds.low, gain.over_seeds.high] == pytest.approx([low, high])
        difference = (right[name] - right["sft"]).mean(0)
        assert gain.over_problems.value == pytest.approx(difference.mean())
        rng = np.random.default_rng(7)
        flips = rng.choice([-1, 1], (20_000, len(difference))) @ difference
        share = (np.abs(flips) >= abs(difference.sum()) - 1e-9).mean()
        assert gain.over_problems.p == pytest.approx(share, abs=0.02)
        assert gain.p == max(gain.over_seeds.p, gain.over_problems.p)
        p_values.append(gain.p)
    adjusted = [gain.adjusted for name in ("dcod", "dft") if (gain := table.method(name).gain)]
    assert adjusted == pytest.approx(holm(p_values))
    assert table.method("sft").gain is None
    gains = [table.method(name).gain for name in ("dcod", "dft")]
    assert [gain is not None and gain.established for gain in gains] == [True, False]


def test_short_and_long_problems_are_the_halves_around_the_median_of_their_solutions(tmp_path: Path) -> None:
    right = sweep_of(tmp_path)
    table = one_table(tmp_path)
    lengths = right.pop("lengths")
    long = lengths > np.median(lengths)
    assert table.lengths == {"arithmetic": np.median(lengths)}
    for name, own in right.items():
        method = table.method(name)
        assert method.short is not None
        assert method.long is not None
        assert (method.short.problems, method.long.problems) == ((~long).sum(), long.sum())
        assert method.short.accuracy.value == pytest.approx(own[:, ~long].mean())
        assert method.long.accuracy.value == pytest.approx(own[:, long].mean())
        if name == "sft":
            assert method.widening is None
            continue
        gap = own - right["sft"]
        assert method.long.gain is not None
        assert method.long.gain.over_problems.value == pytest.approx(gap[:, long].mean())
        wide = ttest_rel(gap[:, long].mean(1), gap[:, ~long].mean(1))
        assert method.widening is not None
        assert method.widening.value == pytest.approx(gap[:, long].mean() - gap[:, ~long].mean())
        assert method.widening.p == pytest.approx(float(wide.pvalue))


def test_a_set_whose_solutions_are_all_alike_is_in_neither_half() -> None:
    """The method solves all of its problems, and gains nothing where there are short and long ones."""
    keys = [("alike", "1", ""), ("alike", "2", ""), *(("both", str(place), "") for place in range(4))]
    answers = Answers(keys, np.zeros((1, 6)), np.array([10.0, 10.0, 5.0, 5.0, 20.0, 20.0]))
    assert answers.longer() is not None
    baseline = {seed: np.zeros(6) for seed in range(3)}
    mine = {seed: np.array([1.0, 1.0, 0.0, 0.0, 0.0, 0.0]) for seed in range(3)}
    found = compared(answers, mine, baseline)
    assert found.short is not None
    assert found.long is not None
    assert found.widening is not None
    assert (found.short.problems, found.long.problems) == (2, 2)
    assert (found.short.accuracy.value, found.long.accuracy.value, found.widening.value) == (0, 0, 0)


def test_what_other_seeds_or_other_problems_would_not_show_is_not_established(tmp_path: Path) -> None:
    # One seed is far better on all problems, the others are alike: problems alone would be sure of it.
    base, good = [1, 0] * 20, [1] * 40
    for seed in range(3):
        job(tmp_path / "seeds", "sft", seed, base)
        job(tmp_path / "seeds", "dcod", seed, good if seed == 0 else base)
    gain = one_table(tmp_path / "seeds").method("dcod").gain
    assert gain is not None
    assert gain.over_problems.p < 0.001
    assert gain.over_seeds is not None
    assert gain.over_seeds.p > 0.3
    assert not gain.established
    # Every seed is better, always on the same three problems.
    for seed in range(5):
        job(tmp_path / "problems", "sft", seed, [0] * 30 + [seed % 2])
        job(tmp_path / "problems", "dcod", seed, [1] * 3 + [0] * 27 + [(seed // 2) % 2])
    gain = one_table(tmp_path / "problems").method("dcod").gain
    assert gain is not None
    assert gain.over_seeds is not None
    assert gain.over_seeds.p < 0.01
    assert gain.over_problems.p > 0.1
    assert not gain.established


@pytest.mark.slow
def test_one_seed_is_tested_over_problems_and_establishes_nothing(tmp_path: Path) -> None:
    job(tmp_path, "sft", 0, [0] * 30)
    job(tmp_path, "dcod", 0, [1] * 30)
    table = one_table(tmp_path)
    gain = table.method("dcod").gain
    assert gain is not None
    assert gain.over_seeds is None
    assert gain.over_problems.p < 0.001
    assert not gain.established
    assert "One seed alone says nothing about other runs" in write_report([tmp_path])


@pytest.mark.slow
def test_between_equal_methods_a_difference_is_established_in_at_most_five_per_cent(tmp_path: Path) -> None:
    """Seeds move accuracy by far more than problems do, which a test over problems alone does not see."""
    from distill.statistics import mean_difference, paired_runs

    rng = np.random.default_rng(0)
    both = alone = 0
    trials = 1000
    for _ in range(trials):
        a, b = (
            (rng.random((5, 100)) < np.clip(0.5 + 0.1 * rng.standard_normal((5, 1)), 0, 1)).astype(float)
            for _ in range(2)
        )
        over_problems = mean_difference([(b - a).mean(0)], resamples=500).p
        over_seeds = paired_runs(a.mean(1), b.mean(1)).p
        alone += over_problems < 0.05
        both += max(over_problems, over_seeds) < 0.05
    assert alone / trials > 0.15
    assert both / trials < 0.05 + 3 * (0.05 * 0.95 / trials) ** 0.5


@pytest.mark.slow
def test_several_benchmarks_count_alike(tmp_path: Path) -> None:
    def asked(seed: int, loss: str, right: dict[str, list[int]]) -> None:
        folder = made(tmp_path / f"{loss}_{seed}", loss, seed, 0.5)
        summary = json.loads((folder / "summary.json").read_text())
        lines = []
        for name, own in right.items():
            figure = {"accuracy": {"value": float(np.mean(own))}}
            stages = {"before": {"problems": 4, "figures": {"accuracy": {"value": 0.0}}}}
            summary["benchmarks"][name] = stages | {"after": {"problems": len(own), "figures": figure}}
            for number, good in enumerate(own):
                record = sample(name, id=str(number), correct=bool(good), problem=f"{name} {number}")
                lines.append(json.dumps({"stage": "after"} | record))
        del summary["benchmarks"]["arithmetic"]
        (folder / "summary.json").write_text(json.dumps(summary))
        (folder / "samples.jsonl").write_text("\n".join(lines) + "\n")

    for seed in range(2):
        asked(seed, "sft", {"few": [0, 0], "many": [0] * 8})
        asked(seed, "dcod", {"few": [1, 1], "many": [0] * 6 + [1] * 2})
    table = one_table(tmp_path)
    gain = table.method("dcod").gain
    assert gain is not None
    assert gain.over_seeds is not None
    assert gain.over_seeds.value == gain.over_problems.value == pytest.approx((1.0 + 0.25) / 2)
    assert "Mean of few (2 problems), many (8 problems)" in (
        write_report([tmp_path], out=tmp_path / "out") and (tmp_path / "out" / "report.md").read_text()
    )


# --- what is missing, and what is not alike


@pytest.mark.slow
def test_a_missing_baseline_is_said_and_the_rest_is_shown(tmp_path: Path) -> None:
    for loss, seed in itertools.product(["dcod", "dft"], range(2)):
        job(tmp_path, loss, seed, [1, 0, 1, seed])
    table = one_table(tmp_path)
    assert table.baseline is None
    assert [method.gain for method in table.methods] == [None, None]
    said = write_report([tmp_path])
    assert "No finished run here has loss=sft, the baseline" in said
    assert "| `dcod` | 2 |" in said
    other = one_table(tmp_path, baseline="dft")
    assert other.method("dcod").gain is not None
    assert other.notes == ()


def test_methods_of_other_seeds_are_tested_on_those_they_share(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        job(tmp_path, "sft", seed, [0, 1, 0, 1, seed % 2])
    for seed in (1, 2, 3):
        job(tmp_path, "dcod", seed, [1, 1, 0, 1, seed % 2])
    table = one_table(tmp_path)
    gain = table.method("dcod").gain
    assert gain is not None
    assert gain.seeds == (1, 2)
    assert gain.over_seeds is not None
    assert gain.over_seeds.value == pytest.approx(0.2)
    assert len(table.notes) == 2
    assert "No finished run with seed 0: dcod." in table.notes[0] + table.notes[1]
    assert "No finished run with seed 3: sft." in table.notes[0] + table.notes[1]
    job(tmp_path, "dft", 7, [1] * 5)
    assert one_table(tmp_path).method("dft").gain is None  # no seed in common


def test_jobs_that_the_sweep_planned_and_that_never_began_are_named(tmp_path: Path) -> None:
    node = """
hydra:
  sweeper: {params: {seed: "0,1,2", loss: "sft,dcod,dft"}}
  overrides: {task: [experiment=compare, "seed=range(3)", max_tokens=10]}
  runtime: {choices: {loss: dcod}}
"""
    (tmp_path / "multirun.yaml").write_text(node)
    assert planned(tmp_path) == [
        {"loss": loss, "seed": seed} for loss in ("sft", "dcod", "dft") for seed in range(3)
    ]
    for seed in (0, 1):
        job(tmp_path, "sft", seed, [0, 1])
        job(tmp_path, "dcod", seed, [1, 1])
    notes = one_table(tmp_path).notes
    assert notes[0].startswith("No finished run with seed 2: dcod, sft.")
    assert "also planned dft, of which no run is finished" in notes[1]
    for broken in ("", "hydra: 3", "hydra: {sweeper: {}}", "{", "a: [1"):
        (tmp_path / "multirun.yaml").write_text(broken)
        assert planned(tmp_path) == []


@pytest.mark.slow
def test_half_written_and_failed_runs_are_named_with_the_reason(tmp_path: Path) -> None:
    for seed in range(2):
        job(tmp_path, "sft", seed, [0, 1])
    half = tmp_path / "dcod_0"
    half.mkdir()
    (half / "versions.json").write_text("{}")
    broken = tmp_path / "dft_0"
    broken.mkdir()
    (broken / "summary.json").write_text('{"name": ')
    failed = tmp_path / "opd_0"
    failed.mkdir()
    (failed / "error.txt").write_text("distill.errors.UserError: the teacher is not there\n")
    said = write_report([tmp_path])
    text = (tmp_path / "report" / "report.md").read_text()
    assert "3 folders are in no table" in said
    assert f"`{half}`: unfinished: no checkpoint" in text
    assert f"`{broken}`: unreadable" in text
    assert f"`{failed}`: failed: the teacher is not there" in text
    assert json.loads((tmp_path / "report" / "report.json").read_text())["left_out"].keys() == {
        str(half), str(broken), str(failed),
    }  # fmt: skip


@pytest.mark.slow
def test_runs_of_other_data_or_settings_are_never_in_one_table(tmp_path: Path) -> None:
    for seed in range(2):
        job(tmp_path, "sft", seed, [0, 1, 0])
        job(tmp_path, "dcod", seed, [1, 1, 0])
        job(tmp_path, "dcod", seed, [1, 1, 1], data__limit=10)
    tables, _ = tables_of([tmp_path])
    assert [len(table.runs) for table in tables] == [4, 2]
    assert tables[1].differs == ("data.limit=10",)
    assert tables[1].baseline is None
    write_report([tmp_path])
    text = (tmp_path / "report" / "report.md").read_text()
    assert "Comparison 1 of 2: data.limit=4096" in text
    assert "Comparison 2 of 2: data.limit=10" in text
    assert (tmp_path / "report" / "figures" / "2_accuracy.svg").is_file()
    joined = one_table(tmp_path, across=["data.limit"])
    assert {method.name for method in joined.methods} == {"sft", "dcod data.limit=4096", "dcod data.limit=10"}


@pytest.mark.slow
def test_runs_that_were_asked_other_problems_are_tested_on_the_shared_ones(tmp_path: Path) -> None:
    texts = ["1+1=", "2+2=", "3+3="]
    for seed in range(2):
        job(tmp_path, "sft", seed, [0, 1, 0], texts=texts)
        job(tmp_path, "dcod", seed, [1, 1, 1], texts=[*texts[:2], "another"])
    table = one_table(tmp_path)
    gain = table.method("dcod").gain
    assert gain is not None
    assert gain.over_problems.value == pytest.approx(0.5)  # of two problems, not of three
    assert table.notes == (
        "2 problems were not asked of every run, or with another text: they count in no test and no split by "
        "length, but in the runs' own accuracies.",
    )
    for seed in range(2):
        job(tmp_path / "alone", "sft", seed, [0], texts=["a"])
        job(tmp_path / "alone", "dcod", seed, [1], texts=["b"])
    lonely = one_table(tmp_path / "alone")
    assert "The runs share no problem: nothing is tested." in lonely.notes
    assert write_report([tmp_path / "alone"])


@pytest.mark.slow
def test_damaged_samples_leave_the_accuracies(tmp_path: Path) -> None:
    for seed in range(2):
        job(tmp_path, "sft", seed, [0, 1])
        job(tmp_path, "dcod", seed, [1, 1])
    path = tmp_path / "dcod_1" / "samples.jsonl"
    path.write_text(path.read_text()[:-20] + "\n")
    table = one_table(tmp_path)
    assert table.methods[0].accuracy is not None
    assert table.methods[0].gain is None
    assert table.notes[0].startswith(f"Nothing is tested: {path}, line 4: no JSON")
    assert write_report([tmp_path])


def test_two_rates_of_the_baseline_are_both_shown_and_the_better_one_is_tested_against(
    tmp_path: Path,
) -> None:
    for seed in range(2):
        job(tmp_path, "sft", seed, [0, 1, 0, 0], optimizer__lr=0.1)
        job(tmp_path, "sft", seed, [0, 1, 1, 0], optimizer__lr=0.2)
        job(tmp_path, "dcod", seed, [1, 1, 1, 0], optimizer__lr=0.1)
    table = one_table(tmp_path)
    assert table.baseline == "sft optimizer.lr=0.2"
    assert "2 rows are of the baseline sft" in table.notes[0]
    gain = table.method("dcod").gain
    assert gain is not None
    assert gain.over_problems.value == pytest.approx(0.25)


@pytest.mark.slow
def test_methods_of_other_budgets_are_said_to_be_so(tmp_path: Path) -> None:
    for seed in range(2):
        job(tmp_path, "sft", seed, [0, 1])
        folder = job(tmp_path, "dcod", seed, [1, 1])
        summary = json.loads((folder / "summary.json").read_text())
        (folder / "summary.json").write_text(json.dumps(summary | {"tokens": 40_000.0}))
    write_report([tmp_path])
    text = (tmp_path / "report" / "report.md").read_text()
    assert "Not at equal trained tokens:** from 20,000 to 40,000" in text


def test_a_folder_without_a_finished_run_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no run in it"):
        write_report([tmp_path])
    with pytest.raises(UserError, match="there is no such folder"):
        write_report([tmp_path / "nowhere"])
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "versions.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds no finished run to report on \(.*/a: unfinished"):
        write_report([tmp_path])
    with pytest.raises(UserError, match="--drift -1"):
        write_report([tmp_path], drift=-1)


# --- examples


def test_examples_are_the_problems_on_which_the_best_method_and_the_baseline_part_most(
    tmp_path: Path,
) -> None:
    base = {0: [0, 0, 1, 1, 0, 1], 1: [0, 0, 1, 1, 1, 1]}
    best = {0: [1, 1, 1, 0, 1, 1], 1: [1, 0, 1, 1, 1, 1]}
    for seed in range(2):
        job(tmp_path, "sft", seed, base[seed])
        job(tmp_path, "dcod", seed, best[seed])
    table = one_table(tmp_path)
    found = disagreements(table, table.method("dcod"), 2)
    # Gaps: 1, 0.5, 0, -0.5, 0.5, 0.
    assert [(one.gained, one.id) for one in found] == [(True, "0"), (True, "1"), (False, "3")]
    assert found[0].right == {"dcod": 1.0, "sft": 0.0}
    assert [(one.method, one.seed, one.correct, one.text) for one in found[2].completions] == [
        ("dcod", 0, False, "2 dcod 0"),
        ("sft", 0, True, "2 sft 0"),
    ]
    assert disagreements(table, table.method("dcod"), 0) == []


# --- curves and weights


def metrics(rows: list[tuple[str, str, int, float, float]]) -> pandas.DataFrame:
    """Run, loss, step, value, tokens."""
    frame = pandas.DataFrame(rows, columns=["run", "loss", "step", "value", "tokens"])
    return frame.assign(metric="arithmetic/accuracy", seconds=frame["tokens"] / 10, flops=0.0)


def test_curves_are_means_of_seeds_at_what_they_had_spent() -> None:
    found = curves.learning_curves(
        metrics(
            [
                *[("a", "sft", 0, 0.0, 0), ("a", "sft", 5, 0.4, 100), ("a", "sft", 9, 0.5, 190)],
                *[("b", "sft", 0, 0.2, 0), ("b", "sft", 5, 0.2, 120), ("b", "sft", 9, 0.9, 210)],
            ]
        )
    )["sft"]
    assert found.spent.tolist() == [0, 110, 200]
    assert found.mean.tolist() == pytest.approx([0.1, 0.3, 0.7])
    assert found.low.tolist() == [0.0, 0.2, 0.5]
    assert found.high.tolist() == [0.2, 0.4, 0.9]


def test_the_accuracy_on_validation_problems_is_no_benchmarks() -> None:
    rows = metrics([("a", "sft", step, value, 10 * step) for step, value in ((0, 0.6), (4, 0.2), (8, 0.5))])
    held_out = metrics([("a", "sft", 4, 0.0, 40), ("a", "sft", 8, 0.1, 80)]).assign(metric="val/accuracy")
    both = pandas.concat([rows, held_out])
    assert curves.accuracies(both) == ["arithmetic/accuracy"]
    assert curves.learning_curves(both)["sft"].mean.tolist() == [0.6, 0.2, 0.5]


def test_curves_of_seeds_that_were_asked_differently_often_are_interpolated_to_the_shortest() -> None:
    table = metrics(
        [
            *[("a", "sft", 0, 0.0, 0), ("a", "sft", 9, 1.0, 100)],
            *[("b", "sft", 0, 0.0, 0), ("b", "sft", 5, 1.0, 50), ("b", "sft", 9, 1.0, 150)],
        ]
    )
    found = curves.learning_curves(table)["sft"]
    assert (found.spent[0], found.spent[-1]) == (0, 100)
    half = np.interp(50, found.spent, found.mean)
    assert half == pytest.approx((0.5 + 1.0) / 2, abs=0.01)
    assert set(curves.learning_curves(table, by={"a": "x", "b": "y"})) == {"x", "y"}
    assert curves.learning_curves(table, by={"b": "y"})["y"].spent.tolist() == [0, 50, 150]
    with pytest.raises(ValueError, match="axis='steps' is not one of tokens, seconds"):
        curves.learning_curves(table, "steps")


def test_a_mean_of_benchmarks_has_points_only_where_all_were_asked() -> None:
    one = metrics([("a", "sft", 0, 0.0, 0), ("a", "sft", 9, 1.0, 100)])
    other = metrics([("a", "sft", 9, 0.5, 100)]).assign(metric="svamp/accuracy")
    found = curves.learning_curves(pandas.concat([one, other]))["sft"]
    assert (found.spent.tolist(), found.mean.tolist()) == ([100], [0.75])


def test_quantiles_of_weights_are_those_of_the_tokens() -> None:
    rng = np.random.default_rng(0)
    values = rng.beta(0.5, 0.8, 20_000)
    edges = np.linspace(0, 2, 41)
    rows = []
    for name, part in (("a", values[:5000]), ("b", values[5000:])):
        counts, _ = np.histogram(part, edges)
        rows += [(name, "dcod", 10, *bin) for bin in zip(edges[:-1], edges[1:], counts, strict=True)]
    table = pandas.DataFrame(rows, columns=["run", "loss", "step", "low", "high", "count"])
    found = curves.weight_quantiles(table)
    assert len(found) == 1
    exact = np.quantile(values, curves.QUANTILES)
    assert found[list(curves.QUANTILES)].to_numpy()[0] == pytest.approx(exact, abs=0.05)  # a bin
    assert len(curves.weight_quantiles(table.iloc[:0])) == 0
    assert list(curves.weight_quantiles(table, {"a": "x"})["method"]) == ["x"]


# --- figures and pages


@pytest.mark.slow
def test_seeds_that_are_all_alike_have_a_bar_without_length() -> None:
    rows = [(run, "sft", step, 0.1, 10 * step) for run in "abc" for step in (0, 5)]
    found = curves.learning_curves(metrics(rows))
    assert found["sft"].mean[-1] > found["sft"].high[-1]  # (0.1 + 0.1 + 0.1) / 3 in floating point
    figure = figures.learning_figure({"tokens": found}, styles(["sft"]))
    assert figure.axes[0].get_xlabel() == "trained completion tokens"


@pytest.mark.slow
def test_figures_are_vectors_that_say_no_date_and_are_the_same_twice(tmp_path: Path) -> None:
    sweep_of(tmp_path)
    table = one_table(tmp_path)
    look = styles([method.name for method in table.methods], table.baseline)
    for make in (figures.accuracy_figure, figures.length_figure):
        once, again = make(table, look), make(table, look)
        assert once is not None
        assert again is not None
        files = written(once)
        assert files == written(again)
        assert ElementTree.fromstring(files["svg"]).tag.endswith("svg")
        assert files["pdf"].startswith(b"%PDF")
        assert b"/Type3" not in files["pdf"]  # journals refuse such fonts
        assert once.get_figwidth() == 3.4  # inches


def test_no_two_methods_look_alike_and_the_baseline_is_black() -> None:
    names = [f"method {number}" for number in range(20)]
    look = styles(names, "method 3")
    assert len({tuple(sorted(style.items())) for style in look.values()}) == 20
    assert look["method 3"]["color"] == "#000000"
    assert next(iter(look)) == "method 3"


def test_accuracy_by_length_is_that_of_each_bin(tmp_path: Path) -> None:
    for seed in range(2):
        job(tmp_path, "sft", seed, [1, 1, 0, 1, 0, 0], lengths=LENGTHS)
    found = figures.accuracy_by_length(one_table(tmp_path), bins=3)
    assert found is not None
    centers, lines = found
    assert centers.tolist() == [11, 17, 35]
    assert lines["sft"][0].tolist() == [1.0, 0.5, 0.0]
    for seed in range(2):
        job(tmp_path / "none", "sft", seed, [1, 0])
    assert figures.accuracy_by_length(one_table(tmp_path / "none")) is None


class Shown(HTMLParser):
    """The tags of a page and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.words += data


def test_what_models_and_folders_say_is_text_and_nothing_else() -> None:
    evil = "<script>alert(1)</script>`x` </pre><img src=x onerror=alert(1)> \x00 \ud800 ````"
    blocks = [Heading(evil), Text("ours"), Items([evil]), Grid(["a", evil], [[evil, "1|2"]])]
    blocks += [Written(evil, evil), Picture("f", evil, {"svg": b"<svg/>"})]
    text = page(evil, blocks)
    shown = Shown(text)
    assert not {"script", "iframe", "object"} & set(shown.tags)
    assert shown.tags.count("img") == 1  # the figure
    assert "<script>alert(1)</script>" in shown.words
    assert "default-src 'none'" in text
    text.encode()
    said = markdown(evil, blocks)
    outside = re.sub(r"(?s)`{5}text.*?`{5}", "", said)
    assert "<script" not in outside
    assert "<img" not in outside
    assert "`````text\n" + evil + "\n`````" in said  # a longer fence than any run of backticks within
    assert "1\\|2" in said
    assert markdown("a", [Heading("3*4-7*2=", 3)]) == "# a\n\n### 3\\*4-7\\*2=\n"  # or it is emphasis


@pytest.mark.slow
def test_a_table_in_markdown_has_as_many_cells_in_every_row(tmp_path: Path) -> None:
    sweep_of(tmp_path)
    write_report([tmp_path])
    text = (tmp_path / "report" / "report.md").read_text()
    for block in text.split("\n\n"):
        if block.startswith("|"):
            assert len({line.replace("\\|", "").count("|") for line in block.split("\n")}) == 1
    for name in re.findall(r"\]\((figures/[^)]+)\)", text):
        assert (tmp_path / "report" / name).is_file()
        assert (tmp_path / "report" / name).with_suffix(".pdf").is_file()
    assert re.findall(r"\]\(figures/([^)]+)\)", text) == ["accuracy.svg", "length.svg"]
    assert Shown((tmp_path / "report" / "report.html").read_text()).tags.count("img") == 2


@pytest.mark.slow
def test_a_sweep_becomes_a_page_on_the_command_line(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    """Real runs, end to end; a second time, which finds the first one's page in the sweep."""
    words = arguments(tiny_pair, traces, tmp_path, "benchmark=arithmetic", "benchmark.limit=6")
    words += ["benchmark.max_new_tokens=8", "eval_every=2", "trainer.max_steps=4", "histogram_every=2"]
    sweep = tmp_path / "sweep"
    for loss in ("sft", "dcod"):
        run([*words, f"loss={loss}"], sweep / f"0_{loss}")
    done = warm.run(["-m", "distill.report", str(sweep)])
    assert (done.returncode, done.stderr) == (0, "distill report: loading ...\n")
    assert "| `dcod` | 1 |" in done.stdout
    assert done.stdout.endswith(f"{sweep / 'report' / 'report.html'}\n")
    text = (sweep / "report" / "report.md").read_text()
    pictures = re.findall(r"\]\(figures/([^)]+)\)", text)
    assert pictures == ["accuracy.svg", "learning.svg", "length.svg", "weights.svg"]
    found = load_runs(sweep)
    table = one_table(sweep)
    by = method_of_runs(table, found)
    assert by == {"0_sft": "sft", "0_dcod": "dcod"}
    learned = curves.learning_curves(found.metrics, "flops", by=by)
    assert len(learned["dcod"].spent) == 3  # before, after step 2, and at the end
    value = json.loads((sweep / "report" / "report.json").read_text())
    assert [method["name"] for method in value["tables"][0]["methods"]] == [m.name for m in table.methods]
    assert "drift" not in value["tables"][0]
    done = command("distill/report/__main__.py", str(sweep), "--drift", "6", "--teacher", str(tiny_pair[1]))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "| `dcod` | 1 |" in done.stdout
    assert done.stdout.endswith(f"{sweep / 'report' / 'report.html'}\n")
    assert "ExAccErr" in (sweep / "report" / "report.md").read_text()
    assert (sweep / "report" / "figures" / "exaccerr.svg").is_file()
    drifts = json.loads((sweep / "report" / "report.json").read_text())["tables"][0]["drift"]
    assert {name: len(own) for name, own in drifts.items()} == {"sft": 1, "dcod": 1}
    wrong = command("distill/report/__main__.py", str(tmp_path / "nowhere"))
    assert wrong.returncode == 1
    assert wrong.stderr.count("\n") == 1
    assert "there is no such folder" in wrong.stderr
