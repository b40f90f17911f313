"""Tests of the report's drift: equal to the evaluation's, cached, and a reason if it cannot be measured."""

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from scipy import stats
from test_drift import a_set, each, some
from test_evaluate import run as evaluate_run
from test_training import arguments
from test_training import run as train_run
from transformers import AutoModelForCausalLM

from distill.analysis.drift import compare
from distill.analysis.drift_curves import Curve, Drift
from distill.errors import UserError
from distill.generation.engines import HfEngine
from distill.models.lazy import LazyModel
from distill.report import drift as report
from distill.report import sections
from distill.report.drift_figure import exaccerr_figure, mean_curves, window_of
from distill.report.drift_kept import read_drift, write_drift
from distill.report.page import Grid
from distill.report.style import styles, written
from distill.runs.read import Run, read_run
from distill.tiny import task

PROBLEMS = 12


@pytest.fixture(scope="module")
def finished(tiny_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Two seeds of a method, which asked fewer problems than drift does."""
    folder = tmp_path_factory.mktemp("sweep")
    problems = task.problems(16, split="train", operations=(2, 4))
    records = [{"problem": text, "completion": task.write_solution(text, "single")} for text in problems]
    traces = folder / "traces.jsonl"
    traces.write_text("".join(json.dumps(record) + "\n" for record in records))
    asked = ["benchmark=arithmetic", "benchmark.limit=3", "benchmark.max_new_tokens=8"]
    words = arguments(
        tiny_pair, traces, folder, "loss=sft", "trainer.max_steps=2", "optimizer.lr=0.01", *asked
    )
    return [read(train_run([*words, f"seed={seed}"], folder / f"sft_seed{seed}")) for seed in (0, 1)]


def drift_of_runs(runs: Sequence[Run], **options: Any) -> tuple[dict[Path, Drift], dict[Path, str]]:
    """With the teachers that the runs name said again."""
    named = [OmegaConf.select(OmegaConf.load(run.folder / "config.yaml"), "model") for run in runs]
    teachers = [str(model.teacher) for model in named if OmegaConf.is_config(model)]
    return report.drift_of_runs(runs, teachers=teachers, **options)


def read(folder: Path) -> Run:
    found = read_run(folder)
    assert isinstance(found, Run)
    return found


def changed(run: Run, folder: Path, **settings: Any) -> Run:
    """A copy of a run with another configuration."""
    shutil.copytree(run.folder, folder)
    cfg = OmegaConf.load(folder / "config.yaml")
    for key, value in settings.items():
        OmegaConf.update(cfg, key.replace("__", "."), value, merge=False)
    OmegaConf.save(cfg, folder / "config.yaml")
    return read(folder)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, int]]:
    """What models were asked: `load` or `write`, the model's name, how many completions."""
    asked: list[tuple[str, str, int]] = []
    get, write = LazyModel.get, HfEngine.write

    def note_load(self: LazyModel) -> Any:
        if not self.loaded:
            asked.append(("load", self.source.name, 0))
        return get(self)

    def note_write(self: HfEngine, requests: Any, sampling: Any) -> Any:
        asked.append(("write", self.model.source.name, len(requests)))
        return write(self, requests, sampling)

    monkeypatch.setattr(LazyModel, "get", note_load)
    monkeypatch.setattr(HfEngine, "write", note_write)
    return asked


def assert_same(one: Drift, other: Drift) -> None:
    for name, curve in one.curves.items():
        for part in ("value", "low", "high"):
            np.testing.assert_array_equal(getattr(curve, part), getattr(other.curves[name], part))
    for name, counts in one.reach.items():
        np.testing.assert_array_equal(counts, other.reach[name])
    rest: dict[str, Any] = {"curves": {}, "reach": {}}
    assert replace(one, **rest) == replace(other, **rest)


@pytest.mark.slow
def test_a_runs_drift_is_what_the_evaluation_of_its_student_finds(
    finished: list[Run], tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    run, teacher = finished[0], tiny_pair[1]
    found, reasons = drift_of_runs([run], problems=PROBLEMS, samples=2, folder=tmp_path / "kept")
    assert reasons == {}
    words = [f"model={run.folder}", "model.dtype=float32", f"teacher={teacher}"]
    asked = ["benchmark=arithmetic", "benchmark.max_new_tokens=8"]
    drift = [f"drift.limit={PROBLEMS}", "drift.samples=2"]
    expected = evaluate_run([*words, *asked, *drift], tmp_path / "evaluation")["drift"]
    assert (expected.pop("protocol"), expected.pop("teacher")) == ("rollouts", str(teacher))
    assert json.loads(json.dumps(found[run.folder].json())) == expected
    assert found[run.folder].problems == PROBLEMS  # and not the three that the run was asked
    assert found[run.folder].completions == (2 * PROBLEMS, 2 * PROBLEMS)


@pytest.mark.slow
def test_a_teachers_text_is_written_once_and_the_second_call_asks_no_model_anything(
    finished: list[Run], tiny_pair: tuple[Path, Path], tmp_path: Path, work: list[tuple[str, str, int]]
) -> None:
    first, reasons = drift_of_runs(finished, problems=PROBLEMS, folder=tmp_path)
    assert reasons == {}
    students, teacher = [str(run.folder / "student") for run in finished], str(tiny_pair[1])
    writes = {name: count for kind, name, count in work if kind == "write"}
    assert writes == dict.fromkeys([*students, teacher], PROBLEMS)
    assert sorted(name for kind, name, _ in work if kind == "load") == sorted([*students, teacher])
    means = [drift.figures["kl_student_written"].value for drift in first.values()]
    assert means[0] != means[1]
    work.clear()
    again, _ = drift_of_runs(finished, problems=PROBLEMS, folder=tmp_path)
    assert work == []
    for folder in first:
        assert_same(first[folder], again[folder])
    # More problems: the teacher goes on where it was.
    drift_of_runs(finished[:1], problems=PROBLEMS + 4, folder=tmp_path)
    assert [one for one in work if one[0] == "write"] == [("write", students[0], 4), ("write", teacher, 4)]
    # Another temperature is another text; a student that is no longer the same one is measured anew.
    work.clear()
    drift_of_runs(finished[:1], problems=PROBLEMS, folder=tmp_path, temperature=0.5)
    assert [one[2] for one in work if one[0] == "write"] == [PROBLEMS, PROBLEMS]
    work.clear()
    other = changed(finished[0], tmp_path / "other")
    shutil.copy2(finished[1].folder / "student" / "model.safetensors", other.folder / "student")
    same, _ = drift_of_runs([other], problems=PROBLEMS, folder=tmp_path)
    assert_same(same[other.folder], first[finished[1].folder])  # by its weights, wherever they lie
    assert work == []


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_report_that_was_killed_goes_on_behind_its_last_run(
    finished: list[Run],
    tiny_pair: tuple[Path, Path],
    tmp_path: Path,
    work: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, _ = drift_of_runs(finished, problems=PROBLEMS, folder=tmp_path / "whole")
    work.clear()
    original = report.measure_drift

    def dies(asked: Any, student: LazyModel, *others: Any, **options: Any) -> Any:
        if student.source.name.startswith(str(finished[1].folder)):
            raise KeyboardInterrupt
        return original(asked, student, *others, **options)

    monkeypatch.setattr(report, "measure_drift", dies)
    with pytest.raises(KeyboardInterrupt):
        drift_of_runs(finished, problems=PROBLEMS, folder=tmp_path / "parts")
    monkeypatch.setattr(report, "measure_drift", original)
    assert {name for _, name, _ in work} == {str(finished[0].folder / "student"), str(tiny_pair[1])}
    work.clear()
    found, reasons = drift_of_runs(finished, problems=PROBLEMS, folder=tmp_path / "parts")
    assert reasons == {}
    assert [one[:2] for one in work if one[0] == "write"] == [("write", str(finished[1].folder / "student"))]
    for folder in whole:
        assert_same(whole[folder], found[folder])
    # What cannot be read is measured anew, from completions and readings that are there.
    for path in (tmp_path / "parts" / "measured").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    work.clear()
    found, _ = drift_of_runs(finished, problems=PROBLEMS, folder=tmp_path / "parts")
    assert work == []
    for folder in whole:
        assert_same(whole[folder], found[folder])


@pytest.mark.exhaustive
@pytest.mark.slow
def test_runs_that_cannot_be_measured_get_a_reason_and_the_others_their_drift(
    finished: list[Run], tmp_path: Path, permuted_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished[0]
    other = tmp_path / "other"
    AutoModelForCausalLM.from_pretrained(run.folder / "student").save_pretrained(other)
    permuted_tokenizer.save_pretrained(other)
    bare = changed(run, tmp_path / "bare")
    shutil.rmtree(bare.folder / "student")
    cases = [
        (bare, "its trained student is not there"),
        (changed(run, tmp_path / "alone", model__teacher=None), "its configuration names no teacher"),
        (changed(run, tmp_path / "nowhere", model__teacher="/nowhere/at/all"), "no such folder"),
        (changed(run, tmp_path / "foreign", model__teacher=str(other)), "token by token, but the vocabul"),
        (changed(run, tmp_path / "unasked", benchmark={"limit": None}), "names no benchmark"),
        (
            changed(run, tmp_path / "unread", benchmark__arithmetic__source__operations=[8, 4]),
            "operations must",
        ),
        (changed(run, tmp_path / "older", model=7), "AttributeError: "),
    ]
    runs = [*(one for one, _ in cases), run]
    found, reasons = drift_of_runs(runs, problems=PROBLEMS, folder=tmp_path / "kept")
    assert list(found) == [run.folder]
    assert list(reasons) == [one.folder for one, _ in cases]
    for one, words in cases:
        assert words in reasons[one.folder]
    monkeypatch.setattr(report, "measure_drift", lambda *args, **options: None)
    found, reasons = drift_of_runs([run], problems=PROBLEMS + 1, folder=tmp_path / "kept")
    assert found == {}
    assert "too few problems" in reasons[run.folder]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"problems": 0}, "problems=0 must be a whole number, at least 1"),
        ({"problems": 4, "samples": 0}, r"drift.samples=0 must be"),
        ({"problems": 4, "samples": 2, "temperature": 0.0}, r"drift.samples=2 with drift.temperature=0"),
        ({"problems": 4, "temperature": -1.0}, "temperature=-1.0 must be >= 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused_at_once(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        drift_of_runs([], folder=tmp_path / "kept", **settings)
    assert not (tmp_path / "kept").exists()


def made_up(longest: int, scale: float, seed: int) -> Drift:
    rng = np.random.default_rng(seed)
    kinds = [a_set(rng, 12, 1, longest, factor) for factor in (scale, 1.0)]
    return some(compare(kinds[0][0], kinds[1][0], each(12), each(12), resamples=20, least_problems=1))


def test_what_is_kept_is_read_back_to_the_last_bit_and_only_under_its_key(tmp_path: Path) -> None:
    drift = made_up(700, 1.5, 0)
    assert len(drift) > 300  # so that JSON would thin it
    drift.curves["exaccerr"].low[3] = math.nan
    path, key = tmp_path / "a" / "drift.npz", {"student": "x", "asked": [1, "é"]}
    assert read_drift(path, key) is None
    write_drift(path, drift, key)
    found = read_drift(path, key)
    assert found is not None
    assert_same(drift, found)
    assert read_drift(path, {**key, "student": "y"}) is None
    assert [one.name for one in path.parent.iterdir()] == ["drift.npz"]
    path.write_bytes(b"PK\x03\x04" + path.read_bytes()[7:])
    assert read_drift(path, key) is None


def averaged(values: np.ndarray, window: int) -> list[float]:
    """By its definition."""
    half = window // 2
    return [float(np.mean(values[max(0, at - half) : at + half + 1])) for at in range(len(values))]


@pytest.mark.parametrize("name", ["exaccerr", "kl_student_written"])
@pytest.mark.parametrize("window", [1, 5])
def test_means_over_seeds_have_students_interval_up_to_where_the_shortest_ends(
    name: str, window: int
) -> None:
    drifts = {
        "sft": [made_up(longest, 1.5, seed) for seed, longest in enumerate((30, 40, 50))],
        "dcod": [made_up(25, 0.5, 9)],
        "nothing": [],
    }
    found = mean_curves(drifts, name, window=window)
    assert list(found) == ["sft", "dcod"]
    shortest = min(map(len, drifts["sft"]))
    assert len({len(drift) for drift in drifts["sft"]}) > 1
    seeds = [averaged(drift.curves[name].value[:shortest], window) for drift in drifts["sft"]]
    assert len(found["sft"].value) == shortest
    for at, values in enumerate(zip(*seeds, strict=True)):
        interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert found["sft"].value[at] == pytest.approx(sum(values) / 3)
        if np.ptp(values) > 0:
            assert (found["sft"].low[at], found["sft"].high[at]) == pytest.approx(tuple(interval))
    for part in ("value", "low", "high"):
        own = averaged(getattr(drifts["dcod"][0].curves[name], part), window)
        np.testing.assert_allclose(getattr(found["dcod"], part), own)
    assert window_of(drifts) == max(map(len, drifts["sft"])) // 8 | 1


def test_what_is_undefined_in_one_seed_is_undefined_in_the_mean() -> None:
    seeds = [made_up(30, 1.5, seed) for seed in (0, 1, 2)]
    seeds[1].curves["exaccerr"].value[:4] = math.nan
    found = mean_curves({"sft": seeds})["sft"]
    for part in (found.value, found.low, found.high):
        assert np.isnan(part[:4]).all()
        assert np.isfinite(part[4:]).all()


def drawn_lines(axes: Any) -> list[np.ndarray]:
    return [line.get_ydata() for line in axes.lines if len(line.get_xdata()) > 2]


@pytest.mark.slow
def test_the_figure_has_a_line_for_each_method_and_its_interval_at_its_markers() -> None:
    names = [f"method_{number}" for number in range(8)]
    drifts = {
        name: [made_up(60, 1 + number / 8, 3 * number + k) for k in range(3)]
        for number, name in enumerate(names)
    }
    curves, kl = (mean_curves(drifts, name) for name in ("exaccerr", "kl_student_written"))
    figure = exaccerr_figure(curves, styles(names, names[0]), kl=kl, window=3)
    top, bottom = figure.axes
    for axes, expected in ((top, curves), (bottom, kl)):
        for line, curve in zip(drawn_lines(axes), expected.values(), strict=True):
            np.testing.assert_array_equal(line, curve.value)
        for bars, curve in zip(axes.collections, expected.values(), strict=True):
            assert len(bars.get_segments()) >= 3
            for (x, low), (_, high) in bars.get_segments():
                assert (low, high) == (curve.low[int(x) - 1], curve.high[int(x) - 1])
        places = [x for bars in axes.collections for ((x, _), _) in bars.get_segments()]
        assert len(set(places)) == len(places)  # no interval upon another
    assert [text.get_text() for text in figure.legends[0].get_texts()] == names
    assert "mean of 3 positions" in bottom.get_ylabel()
    assert written(figure)["pdf"].startswith(b"%PDF")
    assert len(exaccerr_figure(curves, styles(names)).axes) == 1


def test_the_table_has_the_positions_that_a_methods_seeds_reach() -> None:
    drifts = {
        "sft": [made_up(110, 1.5, seed) for seed in (0, 1)],
        "dcod": [made_up(110, 0.5, 2), made_up(50, 0.5, 3)],
    }
    assert min(map(len, drifts["sft"])) > 64 > len(drifts["dcod"][1]) > 32
    _, table = sections.drifts(drifts, {}, 12)
    assert isinstance(table, Grid)
    assert table.head[2:5] == ["ExAccErr at 32", "ExAccErr at 64", "ExAccErr at the end, % [95 %]"]
    sft, dcod = (row[2:4] for row in table.rows)
    for at, cell in zip((32, 64), sft, strict=True):
        mean = np.mean([drift.curves["exaccerr"].value[at - 1] for drift in drifts["sft"]])
        assert cell.startswith(f"{mean:+.1f} [")
    assert dcod[0]
    assert dcod[1] == ""  # one of its seeds ends before


@pytest.mark.slow
@pytest.mark.parametrize(
    "undefined", [slice(None), slice(0, 5), slice(7, None)], ids=["everywhere", "first", "last"]
)
def test_the_figure_says_what_is_undefined(undefined: slice) -> None:
    curves = mean_curves({"sft": [made_up(20, 1.5, 0)], "own": [made_up(20, 1.5, 1)]})
    for part in ("value", "low", "high"):
        getattr(curves["own"], part)[undefined] = math.nan
    figure = exaccerr_figure(curves, styles(list(curves)))
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    everywhere = undefined == slice(None)
    assert labels == ["sft", "own (undefined)" if everywhere else "own"]
    assert written(figure, ["svg"])["svg"]
    alone = exaccerr_figure({"own": curves["own"]}, styles(["own"]))
    assert bool(alone.axes[0].texts) == everywhere
    assert written(alone, ["svg"])["svg"]


@pytest.mark.parametrize("curve", [Curve(*np.ones((3, 1))), Curve(*np.zeros((3, 2))), None])
def test_the_figure_of_next_to_nothing_is_drawn(curve: Curve | None) -> None:
    curves = {} if curve is None else {"sft": curve}
    figure = exaccerr_figure(curves, styles(list(curves)), kl=curves)
    assert written(figure, ["svg"])["svg"]
