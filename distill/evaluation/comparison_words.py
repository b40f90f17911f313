"""Spell the numbers of a comparison, and rows of its tables."""

from collections.abc import Iterable

from distill.statistics import Difference, Figure


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def share(figure: Figure) -> str:
    return f"{percent(figure.value)} [{100 * figure.low:.1f}, {100 * figure.high:.1f}]"


def points(difference: Difference, unit: str = "") -> str:
    # Adding 0.0 turns -0.0 into 0.0.
    value, low, high = (round(100 * x, 1) + 0.0 for x in (difference.value, difference.low, difference.high))
    return f"{value:+.1f}{unit} [{low:+.1f}, {high:+.1f}]"


def whole(figure: Figure) -> str:
    """A figure that is no share, to whole numbers."""
    if figure.low != figure.low:  # NaN: a single problem
        return f"{figure.value:,.0f}"
    return f"{figure.value:,.0f} [{figure.low:,.0f}, {figure.high:,.0f}]"


def whole_difference(difference: Difference) -> str:
    """A difference of such figures."""
    value, low, high = (round(x) for x in (difference.value, difference.low, difference.high))
    return f"{value:+,} [{low:+,}, {high:+,}]"


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def tested(difference: Difference, p: float) -> str:
    """The test's name and a p-value, adjusted or not."""
    return f"{difference.test} p {'' if p < 0.001 else '= '}{p_value(p)}"


def table_row(cells: Iterable[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"
