"""Report of the similarity of student and teacher: a Markdown table and JSON."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.errors import UserError
from distill.evaluation.comparison_words import table_row
from distill.io.files import write_atomically, write_json
from distill.likeness.judged import Agreement
from distill.likeness.scale import BEFORE, CEILING, CHANCE, STUDENT, Placed
from distill.statistics import Figure

_NAME = "similarity.json"


@dataclass(frozen=True)
class Similarity:
    """How alike a student's answers are to its teacher's.

    Attributes:
        teacher: who wrote the teacher's answers.
        student: the student.
        before: the student before training; None: it was not compared.
        problems: number of problems.
        placed: the measures with their references.
        agreements: of the measures of texts with a judge model; empty without one.
        notes: sentences about what is missing.
    """

    teacher: str
    student: str
    before: str | None
    problems: int
    placed: Sequence[Placed]
    agreements: Sequence[Agreement] = ()
    notes: Sequence[str] = ()

    def json(self) -> dict[str, Any]:
        return vars(self) | {
            "placed": [one.json() for one in self.placed],
            "agreements": [one.json() for one in self.agreements],
            "notes": list(self.notes),
        }

    def scale(self, name: str) -> Figure:
        """The student's place between chance (0) and ceiling (1) by a measure's name; NaN if there is none.

        Raises:
            KeyError: there is no such measure.
        """
        found = {one.name: one for one in self.placed}[name]
        return found.scale.get(STUDENT, Figure(math.nan, math.nan, math.nan))


def write_similarity(folder: Path, found: Similarity) -> str:
    """Write `similarity.json` and `similarity.md`.

    Returns:
        The text of the latter, and where it is.
    """
    text = "\n".join(_markdown(found))
    write_json(folder / _NAME, found.json())
    path = folder / "similarity.md"
    write_atomically(path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))
    return f"{text}\n\n{path}"


def read_similarity(folder: Path) -> Similarity:
    """Read what `write_similarity` wrote.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        value = json.loads((folder / _NAME).read_text(encoding="utf-8"))
        placed = [
            Placed(
                one["family"],
                one["name"],
                {name: _read(own) for name, own in one["figures"].items()},
                {name: _read(own) for name, own in one["scale"].items()},
                _read(one["change"]),
            )
            for one in value["placed"]
        ]
        agreements = [
            Agreement(one["measure"], one["grade"], _read(one["correlation"])) for one in value["agreements"]
        ]
        return Similarity(**value | {"placed": placed, "agreements": agreements})
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{folder / _NAME} cannot be read ({error}): run distill.similarity again") from error


def _read(value: dict[str, float | None]) -> Figure:
    return Figure(
        *(math.nan if own is None else own for own in (value["value"], value["low"], value["high"]))
    )


def _markdown(found: Similarity) -> Iterator[str]:
    columns = [STUDENT, *([BEFORE] if found.before else []), CHANCE, CEILING]
    places = [STUDENT, *([BEFORE] if found.before else [])]
    yield f"{found.student} beside {found.teacher} on {found.problems} problems."
    yield ""
    head = ["", "measure", *(f"{name}: 0 = chance, 1 = ceiling" for name in places), *columns]
    yield table_row([*head, "change"] if found.before else head)
    yield "|" + "---|" * (len(head) + bool(found.before))
    families: set[str] = set()
    for one in found.placed:
        cells = ["" if one.family in families else one.family, one.name]
        families.add(one.family)
        cells += [_cell(one.scale.get(name), "{:.2f}") for name in places]
        cells += [_cell(one.figures.get(name), "{:.3f}") for name in columns]
        yield table_row([*cells, _cell(one.change, "{:+.3f}")] if found.before else cells)
    yield ""
    yield (
        "In brackets 95 % bootstrap intervals over problems. Chance: two answers of the teacher to different "
        "problems. Ceiling: two answers of the teacher to one problem. Both are the teacher's alone, so that "
        "they are the same for every student; below 0 the student is less like the teacher than that. A "
        "dash: not known, or chance and ceiling are not apart."
    )
    for note in found.notes:
        yield ""
        yield note
    if found.agreements:
        yield ""
        yield "Agreement with the judge, as Spearman's rank correlation over the judged pairs:"
        yield ""
        yield table_row(["measure", "with its family", "with overall"])
        yield "|---|---|---|"
        rows: dict[str, list[str]] = {}
        for own in found.agreements:
            rows.setdefault(own.measure, []).append(_cell(own.correlation, "{:.2f}"))
        yield from (table_row([name, *values]) for name, values in rows.items())


def _cell(figure: Figure | None, form: str) -> str:
    if figure is None or math.isnan(figure.value):
        return "-"
    text = form.format(figure.value)
    if math.isnan(figure.low):
        return text
    return f"{text} [{form.format(figure.low)}, {form.format(figure.high)}]"
