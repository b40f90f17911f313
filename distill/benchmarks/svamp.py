"""SVAMP (2103.07191): one-step word problems, varied so that the numbers alone do not give the answer."""

from collections.abc import Mapping
from typing import Any

from distill.benchmarks import fields
from distill.data.trace import Example


def load(
    *,
    path: str | None = None,
    hub: str = "ChilleD/SVAMP",
    subset: str | None = None,
    split: str = "train+test",
    limit: int | None = None,
) -> list[Example]:
    """Load the problems, body before question; the gold answer is a number.

    Args:
        path: local file with Body, Question and Answer, or with question_concat and Answer.
        hub: hub dataset id; this copy splits the 1,000 problems into 700 `train` and 300 `test`.
        subset: configuration of the hub dataset.
        split: split of the hub dataset.
        limit: load only the first `limit` problems.

    Raises:
        UserError: a record has no question, or its answer is not a number.
    """
    records = fields.problem_records(path=path, hub=hub, subset=subset, split=split, limit=limit)
    return [
        Example(
            fields.identity(record, ("ID", "id"), index),
            _problem(record, where),
            gold=fields.number(record, ("Answer", "answer"), where, "answer"),
            where=where,
        )
        for index, (where, record) in enumerate(records)
    ]


def _problem(record: Mapping[str, Any], where: str) -> str:
    if fields.find(record, ("Body", "body")) is None:
        return fields.text(record, ("question_concat", "Question", "question", "problem"), where, "question")
    body = fields.text(record, ("Body", "body"), where, "story")
    question = fields.text(record, ("Question", "question"), where, "question")
    return f"{body}{'' if body[-1] in '.?!' else '.'} {question}"  # a third of the bodies lack it
