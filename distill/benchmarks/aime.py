"""AIME: the American Invitational Mathematics Examination. Every answer is an integer from 0 to 999."""

from collections.abc import Mapping
from typing import Any

from distill.benchmarks import fields
from distill.benchmarks.grading import answers
from distill.data.trace import Example
from distill.errors import UserError


def load(
    *,
    path: str | None = None,
    hub: str = "HuggingFaceH4/aime_2024",
    subset: str | None = None,
    split: str = "train",
    limit: int | None = None,
) -> list[Example]:
    r"""Load the problems; the gold answer is an integer without leading zeros.

    Args:
        path: local file with problem and answer, or with a solution whose last `\boxed{}` is the answer.
        hub: hub dataset id. Boxed solutions in place of answers (`math-ai/aime24`) are supported.
        subset: configuration of the hub dataset.
        split: split of the hub dataset.
        limit: load only the first `limit` problems.

    Raises:
        UserError: a record has no problem, or its answer is not an integer from 0 to 999.
    """
    records = fields.problem_records(path=path, hub=hub, subset=subset, split=split, limit=limit)
    return [
        Example(
            fields.identity(record, ("id", "ID"), index),
            fields.text(record, ("problem", "Problem", "question"), where, "problem"),
            gold=_gold(record, where),
            completion=fields.optional_text(record, ("solution", "Solution"), where, "solution"),
            where=where,
        )
        for index, (where, record) in enumerate(records)
    ]


def _gold(record: Mapping[str, Any], where: str) -> str:
    names = ("answer", "Answer")
    if fields.find(record, names) is None and (solution := fields.find(record, ("solution", "Solution"))):
        record = {"answer": answers.last_boxed(str(solution)) or str(solution)}
    gold = fields.number(record, names, where, "answer")
    if not gold.isdecimal() or int(gold) > 999:
        raise UserError(f"{where}: the answer {gold} is no integer from 0 to 999, as every answer of AIME is")
    return gold
