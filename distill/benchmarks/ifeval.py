"""IFEval (2311.07911): 541 prompts with 834 instructions that a program can verify.

The paper's four accuracies are, per prompt, `correct` (prompt-level strict) and the counts `prompt_loose`,
`instruction_strict` and `instruction_loose`.
"""

from collections.abc import Mapping
from typing import Any

from distill.benchmarks import fields
from distill.benchmarks.grading.graded import of_the_answer
from distill.benchmarks.grading.instructions import CHECKS, arguments
from distill.data.trace import Example, Verdict
from distill.errors import UserError


def load(
    *,
    path: str | None = None,
    hub: str = "google/IFEval",
    subset: str | None = None,
    split: str = "train",
    limit: int | None = None,
) -> list[Example]:
    """Load the prompts, without gold answers; the instructions are in `details`.

    Raises:
        UserError: a field or instruction is missing, unknown or invalid; the message names it and its place.
    """
    records = fields.problem_records(path=path, hub=hub, subset=subset, split=split, limit=limit)
    return [_example(record, where, index) for index, (where, record) in enumerate(records)]


def _example(record: Mapping[str, Any], where: str, index: int) -> Example:
    fields.text(record, ("prompt",), where, "prompt")
    names, given = _list(record, "instruction_id_list", where), _list(record, "kwargs", where)
    if not names or len(names) != len(given):
        raise UserError(
            f"{where}: {len(names)} names in 'instruction_id_list', {len(given)} objects in 'kwargs'"
        )
    try:
        details = {
            "instruction_id_list": names,
            "kwargs": [arguments(name, kwargs) for name, kwargs in zip(names, given, strict=True)],
        }
    except ValueError as error:
        raise UserError(f"{where}: {error}; mend the record or take it out") from error
    # The prompt is not stripped: some instructions ask to repeat it exactly.
    return Example(fields.identity(record, ("key",), index), record["prompt"], where=where, details=details)


def _list(record: Mapping[str, Any], name: str, where: str) -> list[Any]:
    if not isinstance(value := record.get(name), list):
        raise UserError(f"{where}: the field {name!r} is {type(value).__name__}, not a list")
    return value


@of_the_answer
def grade(example: Example, completion: str) -> Verdict:
    """Grade a completion: correct if it follows every instruction (strict). The loose counts also accept it
    if it follows them without its first line, last line or asterisks."""
    names: list[str] = example.details["instruction_id_list"]
    checks = [
        lambda response, check=CHECKS[name], kwargs=kwargs: (
            bool(response.strip()) and check(response, **kwargs)
        )
        for name, kwargs in zip(names, example.details["kwargs"], strict=True)
    ]
    others = _variants(completion)
    strict = [check(completion) for check in checks]
    loose = [
        followed or any(check(response) for response in others)
        for check, followed in zip(checks, strict, strict=True)
    ]
    missed = next((name for name, followed in zip(names, strict, strict=True) if not followed), None)
    return Verdict(
        None,
        missed is None,
        "right" if missed is None else f"does not follow {missed}",
        "instructions",
        {
            "prompt_loose": (int(all(loose)), 1),
            "instruction_strict": (sum(strict), len(strict)),
            "instruction_loose": (sum(loose), len(loose)),
        },
    )


def _variants(response: str) -> list[str]:
    """Variants of the response for the loose counts: without its first line, its last line or both (models
    begin with "Sure, here is" and end with a question), each also without asterisks."""
    lines = response.split("\n")
    shorter = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    variants = [*shorter, *(text.replace("*", "") for text in (response, *shorter))]
    return [text for text in dict.fromkeys(variants) if text != response]
