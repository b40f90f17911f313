"""A student's drift from its teacher as curves by position; `distill.analysis.drift` measures it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from distill.statistics import Figure

LENGTHS = (32, 64, 128, 256)  # positions at which ExAccErr is reported, as in DCOD's paper (Table 8)
_POINTS = 200  # maximum points per curve in JSON


@dataclass(frozen=True)
class Curve:
    """A figure at the positions 1, 2, …, with 95 % bootstrap intervals over problems; arrays [positions]."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def at(self, position: int) -> Figure:
        """The figure at a position, counting from 1."""
        return Figure(*(float(column[position - 1]) for column in (self.value, self.low, self.high)))


@dataclass(frozen=True)
class Drift:
    """Drift of a student from its teacher.

    Attributes:
        problems: number of problems.
        completions: number of completions by the student and by the teacher.
        least_problems: curves end where fewer problems have a completion that long by the student or by the
            teacher.
        curves: `exaccerr` in per cent, NaN where undefined; and `kl`, `teacher_nll`, `student_nll` in nats
            per token, with the suffix `_student_written` or `_teacher_written` for the writer of the prefix.
        reach: [positions] completions that reach a position, `student_written` and `teacher_written`.
        figures: `exaccerr` at the end of the curves, and at the given positions up to there as `exaccerr@32`;
            under the other curves' names means over all tokens, including those after the end of the curves.
            Undefined figures are missing.
        notes: sentences about caveats of these numbers.
    """

    problems: int
    completions: tuple[int, int]
    least_problems: int
    curves: Mapping[str, Curve]
    reach: Mapping[str, np.ndarray]
    figures: Mapping[str, Figure]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        """Last position of the curves."""
        return len(self.curves["exaccerr"].value)

    def json(self) -> dict[str, Any]:
        """JSON values. Curves are thinned to at most 200 evenly spaced positions, including both ends;
        undefined values are null."""
        kept = np.unique(np.linspace(0, len(self) - 1, min(_POINTS, len(self))).round().astype(int))
        return {
            "problems": self.problems,
            "completions": dict(zip(("student", "teacher"), self.completions, strict=True)),
            "positions": len(self),
            "least_problems": self.least_problems,
            "notes": list(self.notes),
            "figures": {name: figure.json() for name, figure in self.figures.items()},
            "curves": {
                "position": (kept + 1).tolist(),
                "reach": {name: counts[kept].tolist() for name, counts in self.reach.items()},
                **{
                    name: {part: _plain(values[kept]) for part, values in vars(curve).items()}
                    for name, curve in self.curves.items()
                },
            },
        }


def _plain(values: np.ndarray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
