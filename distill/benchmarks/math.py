r"""MATH (2103.03874): competition problems with human solutions, whose last `\boxed{}` holds the answer.

Also MATH-500, the 500 of its 5,000 test problems that 2305.20050 sampled."""

from collections.abc import Mapping
from typing import Any

from distill.benchmarks import fields
from distill.benchmarks.grading import answers
from distill.data.readers import read_records
from distill.data.trace import Example
from distill.errors import UserError


def load(
    *,
    path: str | None = None,
    hub: str = "DigitalLearningGmbH/MATH-lighteval",
    subset: str | None = None,
    split: str = "test",
    limit: int | None = None,
) -> list[Example]:
    r"""Load problems with human solutions as completions.

    The gold answer is the field `answer` or, if it is missing, the solution's last `\boxed{}`.

    Args:
        path: local file with problem and solution or answer.
        hub: hub dataset id; the default has all seven subjects in one configuration.
        subset: configuration of the hub dataset, such as `algebra`.
        split: split of the hub dataset.
        limit: load only the first `limit` problems.

    Raises:
        UserError: a record has no problem, or neither an answer nor a boxed answer in its solution.
    """
    records = read_records(path=path, hub=hub, subset=subset, split=split, limit=limit)
    return [
        Example(
            fields.identity(record, ("unique_id", "id", "idx"), index),
            fields.text(record, ("problem", "Problem", "question"), where, "problem"),
            gold=_gold(record, where),
            completion=fields.find(record, ("solution", "Solution")),
            where=where,
            details={
                "level": fields.find(record, ("level",)),
                "subject": fields.find(record, ("subject", "type")),
            },
        )
        for index, (where, record) in enumerate(records)
    ]


def _gold(record: Mapping[str, Any], where: str) -> str:
    if fields.find(record, ("answer", "Answer")) is not None:
        return fields.answer(record, ("answer", "Answer"), where)
    gold = answers.last_boxed(fields.text(record, ("solution", "Solution"), where, "answer or solution"))
    if not gold:
        raise UserError(f"{where}: the solution has no \\boxed{{}} that holds an answer")
    return gold
