"""AMC: problems of the American Mathematics Competitions 10 and 12, without their five choices."""

from distill.benchmarks import fields
from distill.data.trace import Example


def load(
    *,
    path: str | None = None,
    hub: str = "math-ai/amc23",
    subset: str | None = None,
    split: str = "test",
    limit: int | None = None,
) -> list[Example]:
    """Load the problems; the gold answer is a number (hub copies write it as a float, 27.0).

    Args:
        path: local file with problem or question, and answer.
        hub: hub dataset id.
        subset: configuration of the hub dataset.
        split: split of the hub dataset.
        limit: load only the first `limit` problems.

    Raises:
        UserError: a record has no problem, or its answer is not a number.
    """
    records = fields.problem_records(path=path, hub=hub, subset=subset, split=split, limit=limit)
    return [
        Example(
            fields.identity(record, ("id", "ID"), index),
            fields.text(record, ("problem", "question", "Problem"), where, "problem"),
            gold=fields.number(record, ("answer", "Answer"), where, "answer"),
            where=where,
        )
        for index, (where, record) in enumerate(records)
    ]
