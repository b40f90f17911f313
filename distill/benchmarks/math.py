r"""MATH (2103.03874): competition problems with human solutions, whose last `\boxed{}` holds the answer.

Also MATH-500, the 500 of its 5,000 test problems that 2305.20050 sampled. Only the problems' own solutions
are read here; a completion's answer is extracted by `grading.answers.extract`, called by
`grading.judge.MathJudge`.
"""

import re
from collections.abc import Mapping
from typing import Any

from distill.benchmarks import fields
from distill.benchmarks.grading import answers, extraction
from distill.benchmarks.grading.notation import plain
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

    The gold answer is the field `answer` or, if it is missing, the solution's last `\boxed{}`. If the problem
    asks for all solutions and they are in several boxes, it is all of them. If any one of several is right,
    the others are in `details["alternatives"]`.

    Args:
        path: local file with problem and solution or answer.
        hub: hub dataset id; the default has all seven subjects in one configuration.
        subset: configuration of the hub dataset, such as `algebra`.
        split: split of the hub dataset.
        limit: load only the first `limit` problems.

    Raises:
        UserError: a record has no problem, or neither an answer nor a boxed answer in its solution.
    """
    records = fields.problem_records(path=path, hub=hub, subset=subset, split=split, limit=limit)
    return [
        Example(
            fields.identity(record, ("unique_id", "id", "idx"), index),
            fields.text(record, ("problem", "Problem", "question"), where, "problem"),
            gold=(golds := _golds(record, where))[0],
            completion=fields.optional_text(record, ("solution", "Solution"), where, "solution"),
            where=where,
            details={
                "level": fields.find(record, ("level",)),
                "subject": fields.find(record, ("subject", "type")),
                **({"alternatives": golds[1:]} if len(golds) > 1 else {}),
            },
        )
        for index, (where, record) in enumerate(records)
    ]


# What a problem says that has several answers, of which a solution boxes each; and a solution whose boxes are
# alternatives, of which a problem asks for one.
_ALL = re.compile(
    r"separated by comma|\b(?:find|enter|determine|list|give|state|compute|what\s+are)\s+all\b"
    r"|\b(?:find|compute|determine|what\s+are)\s+(?:the\s+)?(?:values\s+(?:of|for)\s+\$?\w+\$?(?:\s?,\s?\$?\w+\$?){0,4},?\s+and"
    r"|(?:two|three|possible|real|integer)\s+(?:possible\s+)?(?:values|solutions|roots)|solutions\b|roots\b)"
    # not if something else is asked for in the end
    r"(?!.*\b(?:sum|product|difference|find|compute|determine|what\s+is)\b)",
    re.I | re.S,
)
_ANY = re.compile(
    r"\b(?:also|either)\b[^.]{0,30}\b(?:acceptable|accepted|correct)\b|\beither \w+ is an acceptable\b", re.I
)
_OWN_WORDS = re.compile(r"\$?([^$\s]+?)\$? is (?:our|the) (?:final )?answer\b")


def _golds(record: Mapping[str, Any], where: str) -> list[str]:
    """The gold answer, and others that are right as well."""
    if fields.find(record, ("answer", "Answer")) is not None:
        return [fields.answer(record, ("answer", "Answer"), where)]
    solution = fields.text(record, ("solution", "Solution"), where, "answer or solution")
    problem = str(fields.find(record, ("problem", "Problem", "question")) or "")
    # A problem may use boxes as its own notation: the solution's are not the answer then.
    if extraction.boxes(problem) and (said := _OWN_WORDS.search(solution)):
        return [said[1]]
    if not (gold := answers.last_boxed(solution)):
        raise UserError(f"{where}: the solution has no \\boxed{{}} that holds an answer")
    if solution.count("boxed") < 2:
        return [gold]
    golds = list({plain(box.content): box.content for box in extraction.outer_boxes(solution)}.values())
    if len(golds) > 1 and _ANY.search(solution):
        return golds
    return [", ".join(golds)] if len(golds) > 1 and _ALL.search(problem) else [gold]
