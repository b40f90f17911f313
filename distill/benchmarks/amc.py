"""AMC: problems of the American Mathematics Competitions 10 and 12, asked without their five choices."""

from distill.benchmarks import fields
from distill.data.readers import read_records
from distill.data.trace import Example


def load(
    *,
    path: str | None = None,
    hub: str = "math-ai/amc23",
    subset: str | None = None,
    split: str = "test",
    limit: int | None = None,
) -> list[Example]:
    """Problems with their number as gold; the copies write it as a float, 27.0.

    Args:
        path: local file with problem or question, and answer.
        hub: data set id.
        subset: the hub set's configuration.
        split: of the hub set.
        limit: only so many problems, from the start.

    Raises:
        UserError: a record has no problem, or no number for an answer.
    """
    records = read_records(path=path, hub=hub, subset=subset, split=split, limit=limit)
    return [
        Example(
            fields.identity(record, ("id", "ID"), index),
            fields.text(record, ("problem", "question", "Problem"), where, "problem"),
            gold=fields.number(record, ("answer", "Answer"), where, "answer"),
            where=where,
        )
        for index, (where, record) in enumerate(records)
    ]
