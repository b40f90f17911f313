"""Report of a comparison: tables, sentences that name the established differences, and a forest plot."""

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from distill.errors import UserError
from distill.evaluation.comparison import LEVEL, Compared, Comparison, compare_sides
from distill.evaluation.comparison_quality_report import quality_section
from distill.evaluation.comparison_sides import read_sides
from distill.evaluation.comparison_words import (
    p_value,
    percent,
    points,
    share,
    table_row,
    tested,
    whole_difference,
)
from distill.io.files import write_atomically
from distill.runs.plot import GREEN, GREY, ORANGE
from distill.statistics import Difference

_MANY = 0.1  # warn if more than this share of completions hit the token budget


def compare(
    folders: Sequence[Path | str], out: Path | None = None, *, resamples: int = 10_000, seed: int = 0
) -> str:
    """Compare evaluations with the first of them on their common problems, as a Markdown report.

    Args:
        folders: evaluation folders (`samples.jsonl`, `results.json`) or run folders (`samples.jsonl`). `run`
            is the student after training, `run@before` the student before training.
        out: folder for `comparison.json`, `comparison.md` and `comparison.png`; None: write nothing.
        resamples: number of resamples of each bootstrap and each sign-flip test.
        seed: seed of the resampling.

    Returns:
        Tables and sentences in Markdown.

    Raises:
        UserError: fewer than two folders, a repeated or unreadable folder, or no problem in common.
    """
    return _text(compare_evaluations(folders, out, resamples=resamples, seed=seed))


def compare_evaluations(
    folders: Sequence[Path | str], out: Path | None = None, *, resamples: int = 10_000, seed: int = 0
) -> list[Comparison]:
    """Compare evaluations with the first of them on their common problems.

    Args:
        folders: evaluation or run folders. `run` is the student after training, `run@before` the student
            before training.
        out: folder for `comparison.json`, `comparison.md` and `comparison.png`; None: write nothing.
        resamples: number of resamples of each bootstrap and each sign-flip test.
        seed: seed of the resampling.

    Returns:
        One comparison for each folder except the first.

    Raises:
        UserError: fewer than two folders, a repeated or unreadable folder, or no problem in common.
    """
    if len(folders) < 2:
        raise UserError(f"{len(folders)} folder to compare: name two at least, as in compare=[a,b]")
    found = compare_sides(read_sides(folders), resamples=resamples, seed=seed)
    if out is not None:
        value = {"level": LEVEL, "resamples": resamples, "comparisons": [one.json() for one in found]}
        content = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
        image = _picture(found)
        write_atomically(out / "comparison.json", lambda p: p.write_text(content + "\n", encoding="utf-8"))
        write_atomically(out / "comparison.md", lambda p: p.write_text(_text(found) + "\n", encoding="utf-8"))
        write_atomically(out / "comparison.png", lambda p: p.write_bytes(image))
    return found


def _text(found: Sequence[Comparison]) -> str:
    return "\n\n".join([*(_section(one, found) for one in found), _legend(found)])


def _section(one: Comparison, found: Sequence[Comparison]) -> str:
    heading = f"{one.second.label} against {one.first.label}, on the problems that both were asked:"
    sentences = "\n".join(f"- {said}" for said in _sentences(one, found))
    return "\n\n".join([heading, "\n".join(_table(one)), sentences, *quality_section(one)])


def _table(one: Comparison) -> Iterator[str]:
    names = one.first.label, one.second.label
    head = ["benchmark", "problems", *names, "difference, points", "p", "p (Holm)", "tokens", "truncated"]
    yield table_row(head)
    yield "|" + "---|" * len(head)
    for name, own in one.benchmarks.items():
        cells = [
            name,
            _problems(own),
            *(share(figure) for figure in own.accuracy),
            points(own.difference),
            p_value(own.difference.p),
            p_value(own.adjusted),
            f"{own.tokens[0]:,.0f} → {own.tokens[1]:,.0f} ({whole_difference(own.longer)})",
            " → ".join(map(percent, own.truncated)),
        ]
        yield table_row(cells)
    if one.mean is not None:
        shares = [
            percent(fmean(own.accuracy[side].value for own in one.benchmarks.values())) for side in (0, 1)
        ]
        cells = ["mean of benchmarks", "", *shares, points(one.mean), p_value(one.mean.p), "", "", ""]
        yield table_row(cells)


def _sentences(one: Comparison, found: Sequence[Comparison]) -> Iterator[str]:
    """Sentences: established and unestablished differences, then warnings."""
    tests = sum(len(other.benchmarks) for other in found)
    over = f" (Holm over {tests} {'benchmarks' if len(found) == 1 else 'tests'})" if tests > 1 else ""
    for name, own in one.benchmarks.items():
        yield _verdict(one, name, own, over)
    if one.mean is not None:
        means = [other for other in found if other.mean is not None]
        over = f" (Holm over {len(means)} comparisons)" if len(means) > 1 else ""
        numbers = f"{points(one.mean, ' points')}, {tested(one.mean, one.adjusted)}{over}"
        which = f"Over the {len(one.benchmarks)} benchmarks, each counting alike,"
        if one.adjusted < LEVEL:
            better = "better" if one.mean.value > 0 else "worse"
            yield f"{which} {one.second.label} is {better} than {one.first.label}: {numbers}."
        else:
            yield f"{which} nothing is established: {numbers}."
    yield from _warnings(one)


def _verdict(one: Comparison, name: str, own: Compared, over: str) -> str:
    shares = f"{percent(own.accuracy[1].value)} against {percent(own.accuracy[0].value)}"
    numbers = f"{points(own.difference, ' points')}, {tested(own.difference, own.adjusted)}{over}"
    if own.adjusted < LEVEL:
        better = "better" if own.difference.value > 0 else "worse"
        return f"{one.second.label} answers {name} {better} than {one.first.label}: {shares}, {numbers}."
    problems = "1 problem" if own.problems == 1 else f"{own.problems:,} problems"
    if own.smallest is None:
        seen = "so few problems can establish no difference at all"
    else:
        least = 100 * own.smallest
        about = f"{least:.0f}" if least >= 9.5 else f"{least:.1f}"
        seen = f"a difference below about {about} points would mostly go unseen"
    return f"Nothing is established on {name}: {problems}, {shares}, {numbers}; {seen}."


def _warnings(one: Comparison) -> Iterator[str]:
    first, second = one.first.label, one.second.label
    for name, said in one.settings.items():
        yield (
            f"Beware: the settings of {name} differ ({'; '.join(said)}), so the difference may be due to "
            f"them instead of the models."
        )
    for label in one.unrecorded:
        yield f"The settings of {label} are not recorded in its folder: check its prompt and sampling."
    for name, own in one.benchmarks.items():
        if max(own.truncated) > _MANY:
            yield (
                f"Beware: of {name}'s completions {percent(own.truncated[1])} ({second}) and "
                f"{percent(own.truncated[0])} ({first}) hit the token budget: a larger one may change the "
                f"result."
            )
    for name, (mine, theirs, other) in one.left_out.items():
        reasons = [
            f"{count} {reason}"
            for count, reason in (
                (mine, f"only in {first}"),
                (theirs, f"only in {second}"),
                (other, "with another text"),
            )
            if count
        ]
        yield f"Left out of {name}: {', '.join(reasons)}."


def _legend(found: Sequence[Comparison]) -> str:
    tests = {own.difference.test for one in found for own in one.benchmarks.values()}
    if any(one.mean is not None for one in found):
        tests.add("sign-flip")
    names = {
        "McNemar": "McNemar's exact test (one sample a problem)",
        "sign-flip": "a sign-flip permutation test over problems (several samples, or several benchmarks)",
    }
    said = " and ".join(names[test] for test in names if test in tests)
    return (
        f"In brackets 95 % bootstrap intervals over problems; p by {said}. Established is what has an "
        f"adjusted p below {LEVEL}. That speaks of these models and of problems like these: another seed of "
        f"training is another model."
    )


def _problems(own: Compared) -> str:
    if own.samples == (1.0, 1.0):
        return f"{own.problems:,}"
    counts = " and ".join(f"{count:.4g}" for count in dict.fromkeys(own.samples))
    return f"{own.problems:,} × {counts}"


def _picture(found: Sequence[Comparison]) -> bytes:
    """Forest plot as PNG: one panel per comparison, one row per benchmark, the mean at the bottom."""
    from matplotlib.figure import Figure as Page  # without pyplot: no window, no global state

    names = list(dict.fromkeys(name for one in found for name in one.benchmarks))
    rows = [*names, *(["mean of benchmarks"] if any(one.mean for one in found) else [])]
    page = Page(figsize=(2.2 + 4.3 * len(found), 1.4 + 0.34 * len(rows)), layout="constrained")
    panels = page.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for axes, one in zip(panels, found, strict=True):
        axes.axvline(0, color="black", linewidth=0.8)
        for row, name in enumerate(names):
            if own := one.benchmarks.get(name):
                _row(axes, row, own.difference, own.adjusted < LEVEL, "o")
        if one.mean is not None:
            _row(axes, len(names), one.mean, one.adjusted < LEVEL, "D")
        axes.set(
            title=f"{one.second.label} − {one.first.label}",
            xlabel="difference of accuracy, points (95 %)",
            ylim=(len(rows) - 0.5, -0.5),
        )
        axes.title.set_fontsize(9)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    panels[0].set_yticks(range(len(rows)), rows)
    page.supxlabel("green: established better, orange: worse, grey: not established", fontsize=8)
    stream = io.BytesIO()
    page.savefig(stream, format="png", dpi=150)
    return stream.getvalue()


def _row(axes: Any, row: int, difference: Difference, established: bool, marker: str) -> None:
    value, low, high = (100 * number for number in (difference.value, difference.low, difference.high))
    color = (GREEN if value > 0 else ORANGE) if established else GREY
    axes.errorbar(value, row, xerr=[[value - low], [high - value]], fmt=marker, color=color, capsize=3)
