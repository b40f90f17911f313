"""MBPP (2108.07732): short Python tasks, each a sentence and three asserts shown to the model."""

import itertools
import re
from typing import Any

from distill.benchmarks import fields
from distill.benchmarks.grading import programs, sandbox
from distill.benchmarks.grading.graded import of_the_answer
from distill.data.trace import Example, Verdict
from distill.errors import UserError

# The paper's splits as ranges of task ids; the published file contains all tasks.
_SPLITS = {"prompt": (1, 10), "test": (11, 510), "validation": (511, 600), "train": (601, 974)}


def load(
    *,
    path: str | None = None,
    hub: str | None = "google-research-datasets/mbpp",
    subset: str | None = "full",
    split: str = "test",
    limit: int | None = None,
) -> list[Example]:
    """Load the tasks of a split, each followed by its tests as in the paper's prompt.

    The gold answer is the human program.

    Args:
        path: local file instead of the hub; only tasks with the split's ids (2108.07732, section 2.1) are
            used.
        hub: hub dataset id.
        subset: `full`, or `sanitized` (427 verified tasks, with different field names).
        split: `prompt`, `train`, `validation` or `test`.
        limit: load only the first `limit` tasks of the split.

    Raises:
        UserError: this machine cannot sandbox generated programs, the split is unknown, or a record lacks a
            field.
    """
    sandbox.check()
    if split not in _SPLITS:
        raise UserError(f"MBPP has no split {split!r}: take one of {', '.join(_SPLITS)}")
    low, high = _SPLITS[split]
    records = fields.problem_records(path=path, hub=hub, subset=subset, split=split)
    found = (_example(where, record) for where, record in records)
    examples = list(itertools.islice((each for each in found if low <= int(each.id) <= high), limit))
    if not examples:
        raise UserError(f"{path or hub}: no task with an id from {low} to {high}, MBPP's split {split}")
    return examples


def _example(where: str, record: Any) -> Example:
    (code,) = programs.texts(record, where, ("code",))
    (text,) = programs.texts(record, where, ("text" if "text" in record else "prompt",))
    setup = record.get("test_setup_code") or "\n".join(record.get("test_imports") or ())
    tests = list(record.get("test_list", ()))
    if not tests or not all(isinstance(test, str) for test in tests):
        raise UserError(f"{where}: the field 'test_list' is not a list of tests")
    for test in tests:
        programs.check_python(test, where, "test_list")
    task = str(record.get("task_id", ""))
    if not task.isdecimal():
        raise UserError(f"{where}: the field 'task_id' is {task!r}, not a number")
    problem = f"{text.strip()} Your code should pass these tests:\n\n" + "\n".join(tests)
    details = {"tests": tests, "setup": setup, "entry_point": _entry_point(tests[0], code)}
    return Example(task, problem, gold=code, where=where, details=details)


def _entry_point(test: str, code: str) -> str:
    """The name of the function of the human program that the test calls."""
    called = re.findall(r"\b([^\W\d]\w*)\s*\(", test)
    return next(
        (name for name in called if re.search(rf"\b(?:def|class)\s+{name}\b", code)), (called or [""])[0]
    )


@of_the_answer
def grade(example: Example, completion: str, limits: sandbox.Limits | None = None) -> Verdict:
    """Grade a completion: correct if its program passes all tests; the count `tests` is how many it passes.

    Args:
        example: task from `load`.
        completion: the completion; its thought is not graded.
        limits: resource limits of the program and all its tests together; None: the defaults of
            `grading.sandbox`.
    """
    details = example.details
    program = programs.find_program(completion, details["entry_point"])
    if program is None:
        return programs.verdict(None, None, tests=len(details["tests"]))
    # The setup code may use the program's classes.
    outcome = sandbox.run([program.source, details["setup"]], details["tests"], limits=limits)
    return programs.verdict(program, outcome, tests=len(details["tests"]))
