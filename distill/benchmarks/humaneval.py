"""HumanEval (2107.03374): 164 functions to complete from signature and docstring, graded by running tests."""

from typing import Any

from distill.benchmarks import fields
from distill.benchmarks.grading import programs, sandbox
from distill.benchmarks.grading.graded import of_the_answer
from distill.data.trace import Example, Verdict
from distill.errors import UserError

_FIELDS = ("task_id", "prompt", "canonical_solution", "test", "entry_point")


def load(
    *,
    path: str | None = None,
    hub: str | None = "openai/openai_humaneval",
    subset: str | None = None,
    split: str = "test",
    limit: int | None = None,
) -> list[Example]:
    """Load the problems, each the beginning of a program; the human solution is the gold answer.

    Args:
        path: local file instead of the hub.
        hub: hub dataset id.
        subset: configuration of the hub dataset.
        split: split of the hub dataset; the benchmark is `test`.
        limit: load only the first `limit` problems.

    Raises:
        UserError: this machine cannot sandbox generated programs, or a record lacks a field.
    """
    sandbox.check()
    examples = []
    for where, record in fields.problem_records(path=path, hub=hub, subset=subset, split=split, limit=limit):
        task, prompt, solution, test, entry_point = programs.texts(record, where, _FIELDS)
        if not entry_point.isidentifier():
            raise UserError(
                f"{where}: the field 'entry_point' is {entry_point!r}, not the name of a function"
            )
        programs.check_python(f"{test}\ncheck({entry_point})\n", where, "test")
        details: dict[str, Any] = {"test": test, "entry_point": entry_point}
        examples.append(Example(task, prompt, gold=solution, where=where, details=details))
    return examples


@of_the_answer
def grade(example: Example, completion: str, limits: sandbox.Limits | None = None) -> Verdict:
    """Grade a completion by running the problem's `check` on its function.

    The prompt's imports and helper functions are defined even if the completion repeats the whole function,
    because the official harness appends every completion to the prompt.

    Args:
        example: problem from `load`.
        completion: the completion; its thought is not graded.
        limits: resource limits of the program; None: the defaults of `distill.benchmarks.grading.sandbox`.
    """
    name = example.details["entry_point"]
    program = programs.find_program(completion, name, example.problem)
    if program is None:
        return programs.verdict(None, None)
    sources = [programs.helpers(example.problem, name), program.source]
    check = f"{example.details['test']}\ncheck({name})\n"
    return programs.verdict(program, sandbox.run(sources, [check], limits=limits))
