r"""OlympiadBench (2402.14008): olympiad problems with one or several answers, of several types.

Grading follows the authors' judge (OpenBMB/OlympiadBench, `eval/auto_scoring_judge.py`): a completion must
give all gold answers, each once, in any order, with numbers within the record's `error`. Unlike the authors'
judge, it rejects a hundredth or a hundred times a number (their handling of percentages) and a tuple that
only starts like the gold tuple."""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from distill.benchmarks import fields
from distill.benchmarks.grading import answers, several
from distill.benchmarks.grading.graded import UNCLOSED
from distill.benchmarks.grading.judge import MathJudge
from distill.data.fields import number_text
from distill.data.thoughts import without_thinking
from distill.data.trace import Example, Verdict
from distill.errors import UserError

_Numbered = tuple[int, tuple[str, Mapping[str, Any]]]  # index in the file, place, record


def load(
    *,
    path: str | None = None,
    hub: str = "Hothan/OlympiadBench",
    subset: str | None = "OE_TO_maths_en_COMP",
    split: str = "train",
    subfields: Sequence[str] | None = None,
    without_subfields: Sequence[str] | None = None,
    limit: int | None = None,
) -> list[Example]:
    """Load open-ended problems, each with its `context`, if any, before the question.

    The gold answer is the record's `final_answer`. `details` has `multiple` (whether there are several
    answers, all required), `kind` (Numerical, Expression, Equation, Interval, Tuple), `unit` and `tolerances`
    (maximum absolute differences: none, one for all answers, or one per answer).

    Args:
        path: local file with question and final_answer.
        hub: hub dataset id.
        subset: open-ended (OE) or proofs (TP), text only (TO) or with pictures (MM), subject, language.
        split: split of the hub dataset, which only has `train`.
        subfields: load only these; None: all of Algebra, Combinatorics, Geometry, Number Theory.
        without_subfields: load all but these.
        limit: load only the first `limit` problems, of these subfields.

    Raises:
        UserError: a record has no question or no final answer (proofs have none), its `error` is not a
            number, or there is no such subfield.
    """
    records: Iterable[_Numbered] = enumerate(
        fields.problem_records(path=path, hub=hub, subset=subset, split=split)
    )
    if subfields is not None or without_subfields is not None:
        records = _of_subfields(list(records), subfields, without_subfields)
    examples = []
    for index, (where, record) in itertools.islice(records, limit):
        question = fields.text(record, ("question", "problem"), where, "question")
        context = fields.find(record, ("context",))
        solution = fields.find(record, ("solution",))
        if isinstance(solution, Sequence) and not isinstance(solution, str):
            solution = "\n\n".join(map(str, solution)) or None
        details = {
            "multiple": _truth(fields.find(record, ("is_multiple_answer",))),
            "kind": fields.find(record, ("answer_type",)),
            "unit": fields.find(record, ("unit",)),
            "tolerances": _tolerances(fields.find(record, ("error",)), where),
        }
        examples.append(
            Example(
                fields.identity(record, ("id",), index),
                f"{context.strip()}\n{question}"
                if isinstance(context, str) and context.strip()
                else question,
                gold=_gold(record, where, details["kind"]),
                completion=solution,
                where=where,
                details=details,
            )
        )
    return examples


def _of_subfields(records: Sequence[_Numbered], taken: Any, left: Any) -> list[_Numbered]:
    """The records of the subfields `taken` (None: of all) that are not in `left`."""
    own = [fields.find(record, ("subfield",)) for _, (_, record) in records]
    there = sorted({str(subfield) for subfield in own if subfield})
    for key, names in (("subfields", taken), ("without_subfields", left)):
        place = f"benchmark.olympiadbench.source.{key}={names!r}"
        if names is not None and (isinstance(names, str) or not isinstance(names, Sequence) or not names):
            raise UserError(f"{place} must be a list of subfields, such as [Algebra,Geometry], or null")
        if unknown := [name for name in names or () if name not in there]:
            raise UserError(
                f"{place}: there is no subfield {unknown[0]!r} "
                f"(there are: {', '.join(there) or 'none, the records have no field subfield'})"
            )
    kept = [
        one
        for one, subfield in zip(records, own, strict=True)
        if (taken is None or subfield in taken) and subfield not in (left or ())
    ]
    if not kept:
        raise UserError(
            f"benchmark.olympiadbench.source: subfields={taken!r} without_subfields={left!r} leave no problem"
        )
    return kept


def _gold(record: Mapping[str, Any], where: str, kind: Any) -> str:
    value = fields.find(record, ("final_answer", "answer"))
    values: Any = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    values = [number_text(v) if isinstance(v, int | float) and not isinstance(v, bool) else v for v in values]
    if not values or not all(isinstance(v, str) and v.strip() for v in values):
        raise UserError(
            f"{where}: the field final_answer is {str(value)[:80]!r}, not a list of texts; proofs have none: "
            "choose an open-ended part of the set (OE_...)"
        )
    gold = ", ".join(v.strip() for v in values)
    # One gold interval reads "t(0,4]": the sign after the variable was lost.
    return re.sub(r"^(\$?)[a-z](?=[(\[])", r"\1", gold) if kind == "Interval" else gold


def _tolerances(value: Any, where: str) -> list[float | None]:
    parts = [] if value is None or value == "" else str(value).split(",")
    try:
        return [float(part) if part.strip() else None for part in parts]
    except ValueError as error:
        raise UserError(
            f"{where}: the field error is {value!r}, not a number nor several with commas"
        ) from error


def _truth(value: Any) -> bool:
    return value is True or str(value).strip().lower() == "true"  # in CSV files all values are texts


class OlympiadJudge:
    """Grader for one or several answers in any order; each is compared by `MathJudge`.

    Thread-safe.

    Args:
        judge: grader that compares single answers.
    """

    def __init__(self, judge: MathJudge | None = None) -> None:
        self.judge = judge or MathJudge()

    def __call__(self, example: Example, completion: str) -> Verdict:
        r"""Grade a completion.

        Its answers are the boxes of the closing sentence, separated by commas within a box; or all boxes of
        the completion, if these match the gold answers exactly. Without a box, answers are extracted as by
        `MathJudge`."""
        if example.gold is None:
            return Verdict(None, False, "no gold answer")
        if (said := without_thinking(completion)) is None:
            return UNCLOSED
        completion = said
        how = {name: example.details.get(name) for name in ("multiple", "unit", "tolerances")}
        boxes = answers.closing_boxes(completion)
        if not boxes:
            answer, rule = answers.extract(completion, self.judge.rules, expressions=True)
            if answer is None:
                return Verdict(None, False, "no answer", rule)
            return Verdict(answer, *self.same(example.gold, answer, **how), rule)
        answer = ", ".join(boxes)
        right, reason = self.same(example.gold, answer, **how)
        once, everything = ", ".join(dict.fromkeys(boxes)), ", ".join(answers.boxes(completion))
        for other, rule in ((once, "boxed"), (everything, "all boxes")):
            if not right and other != answer and self.same(example.gold, other, **how)[0]:
                return Verdict(other, True, "right", rule)
        return Verdict(answer, right, reason, "boxed")

    def same(
        self,
        gold: str,
        answer: str,
        tolerances: Sequence[float | None] | None = None,
        *,
        multiple: bool | None = None,
        unit: str | None = None,
    ) -> tuple[bool, str]:
        """Whether two texts hold the same answers, and the reason.

        Args:
            gold: the gold answers, separated by commas.
            answer: the answers to grade.
            tolerances: maximum absolute differences: one for all answers, or one per gold answer.
            multiple: whether there are several gold answers; None: decide by the text of `gold`.
            unit: unit to strip from the end of both texts.
        """
        gold, answer = several.plain(gold), several.plain(answer)
        whole = not multiple and answers.number(gold) is not None
        golds = [_without(part, unit) for part in ([gold] if whole else several.split(gold))]
        readings = [several.split(answer), several.split(answer, spaced=True)]
        if len(golds) == 1 and answers.number(answer) is not None:  # 1,024 is one number
            readings = [[answer]]
        # As in the authors' code: 1 % slack, so that rounding keeps a difference of 0.1 within 0.1.
        limits = [limit and limit * 1.01 for limit in tolerances or ()]
        right, reason = False, "wrong"
        for reading in readings:
            right, reason = several.match(
                golds, [_without(part, unit) for part in reading], self.judge.same, limits
            )
            if right or len(reading) == len(golds):
                break
        return right, reason

    def readable(self, gold: str) -> bool:
        """Whether every single gold answer can be parsed; answers explained in prose cannot."""
        return _PROSE.search(gold) is None and all(
            answers.number(leaf) is not None or self.judge.readable(leaf) for leaf in several.leaves(gold)
        )

    def rest(self) -> None:
        """Leave the judge's child processes to the next judge of this process."""
        self.judge.rest()

    def close(self) -> None:
        """Stop the judge's child processes; the next call starts new ones."""
        self.judge.close()


_UNIT = re.compile(
    r"(?:\\(?:text|textrm|mathrm|mbox|rm)\s*\{([^{}]*)\}|([A-Za-z][A-Za-z/ ]*))\s*(?:\^\s*\{?(\d)\}?)?$"
)
_PROSE = re.compile(r"(?:\b[a-z]{2,}\s+){3}")
_SPELLINGS = {"mins": "min", "minute": "min", "minutes": "min", "hours": "h", "hour": "h", "kmh": "km/h"}


def _without(text: str, unit: str | None) -> str:
    """Strip the unit from the end of a text; a different unit stays, which makes the answer wrong."""
    if not unit:
        return text
    if "%" in unit:
        return re.sub(r"\s*\\?%$", "", text)
    found = _UNIT.search(text)
    return (
        text[: found.start()].strip()
        if found and _unit("".join(filter(None, found.groups()))) == _unit(unit)
        else text
    )


def _unit(text: str) -> str:
    letters = re.sub(r"\\(?:text|mathrm)|[^a-z0-9/]", "", text.lower())
    return _SPELLINGS.get(letters, letters)
