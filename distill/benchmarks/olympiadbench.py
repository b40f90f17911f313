r"""OlympiadBench (2402.14008): olympiad problems with one or several answers, of several kinds.

What counts as right follows the authors' judge (OpenBMB/OlympiadBench, `eval/auto_scoring_judge.py`): all
answers of the gold, each once, in any order, numbers within the record's `error`. Two things that it also
lets pass are wrong here: a hundredth or a hundred times a number (its reading of percentages), and a tuple
that begins like the gold one and goes on."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from distill.benchmarks import fields
from distill.benchmarks.grading import answers, several
from distill.benchmarks.grading.judge import MathJudge
from distill.data.readers import read_records
from distill.data.trace import Example, Verdict
from distill.errors import UserError


def load(
    *,
    path: str | None = None,
    hub: str = "Hothan/OlympiadBench",
    subset: str | None = "OE_TO_maths_en_COMP",
    split: str = "train",
    limit: int | None = None,
) -> list[Example]:
    """Open-ended problems, what they refer to (`context`) before the question.

    Gold is the record's `final_answer`; `details` hold `multiple` (all of several answers must be given),
    `kind` (Numerical, Expression, Equation, Interval, Tuple), `unit` and `tolerances` (largest absolute
    differences: none, one for all answers, or one an answer).

    Args:
        path: local file with question and final_answer.
        hub: data set id.
        subset: open-ended (OE) or proofs (TP), text only (TO) or with pictures (MM), subject, language.
        split: of the hub set; it has `train` alone.
        limit: only so many problems, from the start.

    Raises:
        UserError: a record has no question, no final answer (a proof has none), or an `error` that is no
            number.
    """
    records = read_records(path=path, hub=hub, subset=subset, split=split, limit=limit)
    examples = []
    for index, (where, record) in enumerate(records):
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


def _gold(record: Mapping[str, Any], where: str, kind: Any) -> str:
    value = fields.find(record, ("final_answer", "answer"))
    values = [value] if isinstance(value, str) else value
    if (
        not isinstance(values, Sequence)
        or not values
        or not all(isinstance(v, str) and v.strip() for v in values)
    ):
        raise UserError(
            f"{where}: the field final_answer is {str(value)[:80]!r}, not a list of texts; proofs have none: "
            "choose an open-ended part of the set (OE_...)"
        )
    gold = ", ".join(v.strip() for v in values)
    # One interval reads "t(0,4]": the sign between was lost.
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
    return value is True or str(value).strip().lower() == "true"  # CSV has texts alone


class OlympiadJudge:
    """Grader of answers that may be several, in any order, each compared by `MathJudge`.

    It may be asked from several threads at once.

    Args:
        judge: compares single answers.
    """

    def __init__(self, judge: MathJudge | None = None) -> None:
        self.judge = judge or MathJudge()

    def __call__(self, example: Example, completion: str) -> Verdict:
        r"""Whether the answers of a completion are those of the gold.

        They stand in the boxes of the closing sentence, with commas between them within a box; or in all
        boxes of the completion, where these are the gold's answers and no other. Without a box they are found
        as by `MathJudge`."""
        if example.gold is None:
            return Verdict(None, False, "no gold answer")
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
            gold: the right answers, with commas between them.
            answer: what is to be judged.
            tolerances: largest absolute differences: one for all answers, or one a gold answer.
            multiple: whether the gold holds several answers; None: as it reads.
            unit: taken off the end of either.
        """
        gold, answer = several.plain(gold), several.plain(answer)
        whole = not multiple and answers.number(gold) is not None
        golds = [_without(part, unit) for part in ([gold] if whole else several.split(gold))]
        readings = [several.split(answer), several.split(answer, spaced=True)]
        if len(golds) == 1 and answers.number(answer) is not None:  # 1,024 is one number
            readings = [[answer]]
        # As the authors do: so that a difference of 0.1 is within 0.1 after rounding.
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
        """Whether every single answer of a gold can be read; one that is explained in prose cannot."""
        return _PROSE.search(gold) is None and all(
            answers.number(leaf) is not None or self.judge.readable(leaf) for leaf in several.leaves(gold)
        )

    def close(self) -> None:
        """End the judge's children; the next question starts others."""
        self.judge.close()


_UNIT = re.compile(
    r"(?:\\(?:text|textrm|mathrm|mbox|rm)\s*\{([^{}]*)\}|([A-Za-z][A-Za-z/ ]*))\s*(?:\^\s*\{?(\d)\}?)?$"
)
_PROSE = re.compile(r"(?:\b[a-z]{2,}\s+){3}")
_SPELLINGS = {"mins": "min", "minute": "min", "minutes": "min", "hours": "h", "hour": "h", "kmh": "km/h"}


def _without(text: str, unit: str | None) -> str:
    """A text without the unit at its end; another unit stays and is wrong."""
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
