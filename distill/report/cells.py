"""Numbers as cells of the report's tables."""

import math

from distill.statistics import Figure


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def with_interval(figure: Figure) -> str:
    """A share in per cent, with its interval if it has one."""
    if math.isnan(figure.low):
        return percent(figure.value)
    # Student's t intervals can exceed 0 and 100 %; clip them.
    return f"{percent(figure.value)} [{percent(max(0.0, figure.low))}, {percent(min(1.0, figure.high))}]"


def p_value(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"
