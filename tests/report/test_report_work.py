"""Tests of how much a report does: counts of its work, which tell on any machine what it costs."""

import contextlib
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from test_report import sweep_of

from distill import statistics
from distill.report.style import PowerOfTen, new_figure
from distill.report.write import write_report

_opened: list[str] | None = None


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened is not None and event == "open":
        _opened.append(str(arguments[0]))


sys.addaudithook(_note)  # for good: a hook cannot be taken away


@contextlib.contextmanager
def opened() -> Iterator[list[str]]:
    """The files opened meanwhile."""
    global _opened
    _opened = []
    try:
        yield _opened
    finally:
        _opened = None


def trained(folder: Path, seeds: int) -> Path:
    """Three methods whose runs also kept learning curves and histograms of their weights."""
    sweep_of(folder, seeds=seeds)
    for place in folder.iterdir():
        rows = [f"{step},{0.4 + step / 100},{1000 * step},0.9" for step in range(5)]
        names = "step,arithmetic/accuracy,train/tokens_total,weights/effective_sample_size"
        (place / "metrics.csv").write_text("\n".join([names, *rows]) + "\n")
        span = {"edges": [0.0, 0.5, 1.0, 2.0], "counts": [5, 3, 2]}
        spans = [json.dumps({"step": step, **span}) + "\n" for step in (1, 4)]
        (place / "weights.jsonl").write_text("".join(spans))
    return folder


@pytest.mark.slow
def test_with_more_seeds_a_report_opens_more_files_and_does_no_more_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: Counter[str] = Counter()

    def counted(owner: Any, name: str, amount: Any = lambda *_: 1) -> None:
        whole = getattr(owner, name)

        def call(*given: Any, **named: Any) -> Any:
            counts[name] += amount(*given)
            return whole(*given, **named)

        monkeypatch.setattr(owner, name, call)

    counted(Figure, "draw")
    counted(Figure, "savefig")
    counted(statistics, "_sign_flip")
    counted(statistics, "_sums", lambda values, drawn: len(drawn))
    found = {}
    for seeds in (3, 6):
        sweep = trained(tmp_path / f"seeds{seeds}", seeds)
        counts.clear()
        with opened() as files:
            write_report([sweep])
        of_runs = Counter(Path(name).name for name in files if Path(name).parent.parent == sweep)
        once = ("summary.json", "config.yaml", "metrics.csv", "weights.jsonl")
        assert {name: of_runs[name] for name in once} == dict.fromkeys(once, 3 * seeds)
        assert of_runs["samples.jsonl"] == 3 * seeds + 3  # again of one run of each method, for the examples
        assert len(list((sweep / "report" / "figures").iterdir())) == counts["savefig"]
        found[seeds] = dict(counts)
    # Each figure is drawn once for either format. Both methods are tested against the baseline on all
    # problems, on short and on long ones; samples without quality have no other tests.
    tests = 2 * 3
    expected = {"draw": 8, "savefig": 8, "_sign_flip": tests, "_sums": 10_000 * tests}
    assert found == {3: expected, 6: expected}


def test_a_shared_power_of_ten_stands_raised_at_the_axis_end() -> None:
    figure = new_figure()
    (axes,) = figure.axes
    for largest, said in ((3e12, "×10¹²"), (45.0, ""), (2e-5, "×10⁻⁵")):
        axes.set_xlim(0, largest)
        axes.xaxis.set_major_formatter(PowerOfTen())
        figure.draw_without_rendering()
        assert axes.xaxis.get_offset_text().get_text() == said


def test_measures_on_as_many_problems_share_the_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    whole = statistics._draws

    def draws(problems: int, *given: Any) -> Any:
        drawn.append(problems)
        return whole(problems, *given)

    monkeypatch.setattr(statistics, "_draws", draws)
    values = statistics.np.random.default_rng(0).normal(size=(4, 30)).round(1)
    several = [[values[0]], [values[1][:12], values[1][12:]], [values[2]], [values[3]], [values[0][:7]]]
    found = statistics.mean_differences(several, resamples=300)
    assert drawn == [32, 14, 20, 9]  # problems of a benchmark, and two artificial ones
    assert found == [statistics.mean_difference(one, resamples=300) for one in several]
