"""GSM8K (2110.14168): grade-school word problems with integer answers and human solutions."""

import re
from dataclasses import replace

from distill.benchmarks import fields
from distill.benchmarks.grading import answers, numeric
from distill.data.readers import read_examples
from distill.data.trace import Example, Verdict
from distill.errors import UserError

# The solutions contain calculator annotations, <<48/2=24>>, which are removed.
_ANNOTATION = re.compile(r"<<[^<>]*>>")


def load(
    *,
    split: str,
    path: str | None = None,
    hub: str = "openai/gsm8k",
    subset: str | None = "main",
    limit: int | None = None,
) -> list[Example]:
    """Load problems; human solutions are the completions, the number after `####` is the gold answer.

    Raises:
        UserError: a record has no question, no answer, or no number after `####`.
    """
    own = {"problem": "question", "completion": "answer"}
    examples = read_examples(path=path, hub=hub, subset=subset, split=split, fields=own, limit=limit)
    return [_clean(example, path or hub) for example in examples]


def _clean(example: Example, where: str) -> Example:
    if example.recorded is not None:
        raise fields.trace_set_refused(where)
    solution, marker, gold = (example.completion or "").rpartition("####")
    if not marker or answers.number(gold) is None:
        raise UserError(f"{example.where or where}: the field 'answer' does not end in '#### <number>'")
    steps = _ANNOTATION.sub("", solution).strip()
    return replace(example, gold=gold.strip().replace(",", ""), completion=f"{steps}\n#### {gold.strip()}")


def grade(example: Example, completion: str) -> Verdict:
    """Extract the final answer and compare it with the gold answer as an exact number.

    `####` takes precedence over "answer is": it is GSM8K's own marker, while "answer is" also occurs earlier
    in the reasoning."""
    return numeric.grade(example, completion, rules=("boxed", "####", "answer is", "last number"))
