"""The report's section that sets figures of the DCOD paper (2605.14071) beside the runs'."""

from collections.abc import Iterator, Sequence

from distill.evaluation.published import published
from distill.report.cells import p_value, percent, with_interval
from distill.report.page import Block, Grid, Heading, Items, Text
from distill.report.paper_figures import PaperComparison, PaperRow, PublishedGain


def beside_paper(found: Sequence[PaperComparison], seeds: Sequence[int]) -> Iterator[Block]:
    """The paper's figures beside ours, and what its sample can establish; nothing without a match.

    Args:
        found: of `compared_with_paper`.
        seeds: seeds of the runs here.
    """
    if not found:
        return
    paper = published()
    yield Heading("Beside the paper")
    for one in found:
        yield Text(_said(one))
        yield _grid(one)
        if one.further:
            yield Items([_sentence(gain) for gain in one.further])
    yield Text(
        f"Figures of {paper['arxiv']}, read on {paper['read']}. Pair, training problems, loss and benchmark "
        f"match by name; prompts, learning rate and length of training are not compared. "
        f"**Other judge:** there a language model, {paper['judge']}, says whether an answer is right, here "
        f"rules do. **One seed there, {len(seeds)} here.** One seed says nothing about other runs."
    )
    yield Text(
        "What that sample can establish: the intervals there are Wilson's 95 % intervals for the number of "
        "problems. The p of a difference there is McNemar's, and it depends on how many problems the two "
        "methods disagree on, which the paper does not say. So p lies between that of the fewest "
        "disagreements that the difference needs, all in one direction, and that of the most that the two "
        "accuracies allow. The last column has the numbers of disagreements with p below 0.05. No p is "
        "adjusted for the number of methods."
    )


def _said(one: PaperComparison) -> str:
    there = one.rows[0].there.problems
    said = (
        f"**{one.benchmark}**: `{one.student}` learns from traces of `{one.teacher}` on {one.trained_on}; "
        f"{there:,} problems there"
    )
    if one.problems != there:
        said += f", **{one.problems:,} here**"
    if one.otherwise:
        said += f"; one greedy completion each there, **here {' and '.join(one.otherwise)}**"
    return said + "."


def _grid(one: PaperComparison) -> Grid:
    head = ["method", "here, % [95 %]", "in the paper", "there, % [95 %]"]
    if one.baseline:
        over = f"over {one.baseline}, points"
        head += [f"here: {over}", f"there: {over}", "p there", "disagreements with p < 0.05 there"]
    return Grid(head, [_row(one, row) for row in one.rows])


def _row(one: PaperComparison, row: PaperRow) -> list[str]:
    there = row.there.accuracy
    cells = [
        "" if row.method is None else f"`{row.method}`",
        "" if row.here is None else with_interval(row.here),
        row.there.name + (f" (here {row.tau_here})" if row.tau_here else ""),
        f"{100 * there.value:.2f} [{percent(there.low)}, {percent(there.high)}]",
    ]
    if one.baseline is None:
        return cells
    if row.gain is None:
        return [*cells, "baseline" if row.method == one.baseline else "", "", "", ""]
    return [
        *cells,
        "" if row.gain_here is None else f"{100 * row.gain_here:+.1f}",
        f"{100 * row.gain.value:+.2f}",
        " to ".join(dict.fromkeys(map(p_value, row.gain.p))),
        _established(row.gain),
    ]


def _established(gain: PublishedGain) -> str:
    """The numbers of disagreements with p below 0.05."""
    fewest, _ = gain.disagreements
    most = gain.established_up_to
    return "no number" if most is None else f"{fewest:,}" if most == fewest else f"{fewest:,} to {most:,}"


def _sentence(gain: PublishedGain) -> str:
    fewest, most = gain.disagreements
    said = f"{gain.name} over {gain.over} there: {100 * gain.value:+.2f} points, "
    if fewest == most:
        return f"{said}p {p_value(gain.p[0])}, with {fewest:,} disagreements."
    return (
        f"{said}p between {p_value(gain.p[0])} and {p_value(gain.p[1])}, by how often the two disagree, on "
        f"{fewest:,} to {most:,} problems; below 0.05 with {_established(gain)} of them."
    )
