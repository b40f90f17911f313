"""Report of two evaluations' trace quality: a table, and sentences on stopping."""

from collections.abc import Iterator

from distill.evaluation.comparison import Compared, Comparison
from distill.evaluation.comparison_quality import Measure
from distill.evaluation.comparison_words import (
    p_value,
    percent,
    points,
    share,
    table_row,
    tested,
    whole,
    whole_difference,
)

_LEGEND = (
    "Trace quality: word repetition is the share of 4-grams of words that occurred before; post answer are "
    "completions that go on after their first final answer; several answers those in which another final "
    "answer differs from the first; finished those that end by themselves. A problem is solved if more than "
    "half of its samples are right. p is paired over problems, by McNemar's test for shares with one sample "
    "and by sign flips otherwise; p (Holm) is adjusted over the measures on the same problems."
)


def quality_section(one: Comparison) -> list[str]:
    """The blocks of a comparison on trace quality, in Markdown; none if no samples have it."""
    known = {name: own for name, own in one.benchmarks.items() if own.quality is not None}
    missing = [name for name in one.benchmarks if name not in known]
    blocks = []
    if missing:
        blocks.append(
            f"Trace quality is not compared on {', '.join(missing)}: the samples of an earlier version lack "
            f"it. Evaluate again; completions that are kept are not written anew."
        )
    if known:
        head = f"Trace quality of {one.second.label} against {one.first.label}:"
        blocks += [head, "\n".join(_table(one, known))]
        if sentences := [f"- {said}" for said in _stopping(one, known)]:
            blocks.append("\n".join(sentences))
        blocks.append(_LEGEND)
    return blocks


def _table(one: Comparison, known: dict[str, Compared]) -> Iterator[str]:
    names = one.first.label, one.second.label
    head = ["benchmark", "problems", "measure", *names, "difference", "p", "p (Holm)"]
    yield table_row(head)
    yield "|" + "---|" * len(head)
    for name, own in known.items():
        if own.quality is None:
            continue
        both = own.quality.both_solve
        parts = (
            (f"all {own.problems:,}", own.quality.everywhere),
            (f"{own.quality.solved:,} that both solve", both),
        )
        for problems, measures in parts:
            for measure, found in measures.items():
                yield table_row([name, problems, measure, *_cells(measure, found)])


def _cells(name: str, found: Measure) -> list[str]:
    if name == "characters":
        figures, difference = [whole(figure) for figure in found.figures], whole_difference(found.difference)
    else:
        figures, difference = [share(figure) for figure in found.figures], points(found.difference)
    return [*figures, difference, p_value(found.difference.p), p_value(found.adjusted)]


def _stopping(one: Comparison, known: dict[str, Compared]) -> Iterator[str]:
    for name, own in known.items():
        if own.quality is None or own.quality.stopping is None:
            continue
        part, to_first = own.quality.stopping.part, own.quality.stopping.to_first
        mine, theirs = (percent(figure.value) for figure in to_first.figures)
        yield (
            f"Stopping on {name}: {points(part, ' points')} of the difference of "
            f"{round(100 * own.difference.value, 1) + 0.0:+.1f} ({tested(part, part.p)}) come from what is "
            f"written after the first final answer. Up to it {one.second.label} has {theirs} right and "
            f"{one.first.label} {mine}: {points(to_first.difference, ' points')}, "
            f"{tested(to_first.difference, to_first.difference.p)}."
        )
