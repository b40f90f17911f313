r"""Write and check solutions of `distill.tiny.steps.task`.

Two forms. `plain` is the work alone:

    - Ann has 14 pens.
    - Ben has 6 more than Ann: 14 + 6 = 20.
    - Cid has 3 fewer than Ben: 20 - 3 = 17.
    Answer: \boxed{17}

`structured` has the five parts of the teacher's instruction (`conf/teacher_prompt/discord.yaml`): what is
given, the order of work, the same work, a check that goes back from the result, and the answer.

And two styles. `single` takes one comparison a line, as above. `double` takes two, as far as there are two:

    - Ben has 6 more than Ann, Cid has 3 fewer than Ben: 14 + 6 - 3 = 17.

It is shorter, and the result between is never written.
"""

import re
from collections.abc import Sequence
from typing import Literal

from distill.tiny.steps.task import Problem, Step, fact_said

Form = Literal["plain", "structured"]
Style = Literal["single", "double"]

PARTS = ("understanding", "strategy", "solution", "verification")
HEADINGS = ("UNDERSTAND", "PLAN", "SOLVE", "VERIFY")
STRUCTURED_BEGINS = f"## 1. {HEADINGS[0]}"

_ANSWER = re.compile(r"Answer: \\boxed\{(\d{1,3})\}")
_ONE = re.compile(r"^- [A-Z][a-z]+ has [^,:\n]+: ", re.M)
_TWO = re.compile(r"^- [A-Z][a-z]+ has [^,:\n]+, [^,:\n]+: ", re.M)


def write_solution(problem: Problem, form: Form = "plain", style: Style = "single") -> str:
    """Write the correct solution of a problem in a form and a style.

    Raises:
        ValueError: there is no such form or style.
    """
    if form not in ("plain", "structured"):
        raise ValueError(f"form must be 'plain' or 'structured', got {form!r}")
    if style not in ("single", "double"):
        raise ValueError(f"style must be 'single' or 'double', got {style!r}")
    width = 1 if style == "single" else 2
    starts = range(0, len(problem.steps), width)
    return _written(problem, form, [problem.steps[start : start + width] for start in starts])


def _written(problem: Problem, form: Form, groups: Sequence[Sequence[Step]]) -> str:
    work = _work(problem, groups)
    if form == "plain":
        return f"{work}\n{_answer(problem)}"
    chain = zip(problem.names, problem.steps, strict=False)
    given = [f"{problem.first} has {problem.count} {problem.item}."]
    given += [f"{step.said(before)}." for before, step in chain]
    texts = (
        f"Given: {' '.join(given)} Asked: {problem.names[-1]}.",
        f"Order: {', '.join(problem.names)}.",
        work,
        _checked(problem, groups),
    )
    parts = [
        f"## {number}. {heading}\n<{part}>\n{text}\n</{part}>\n\n"
        for number, (heading, part, text) in enumerate(zip(HEADINGS, PARTS, texts, strict=True), start=1)
    ]
    return f"{''.join(parts)}## 5. FINAL ANSWER\n{_answer(problem)}"


def _answer(problem: Problem) -> str:
    return f"Answer: \\boxed{{{problem.counts[-1]}}}"


def _work(problem: Problem, groups: Sequence[Sequence[Step]]) -> str:
    """The lines of work; a group of one or two steps is one line."""
    before, count = problem.first, problem.count
    lines = [f"- {before} has {count} {problem.item}."]
    for group in groups:
        lines += [f"- {fact_said(fact)}" for step in group for fact in step.facts]
        said = []
        for step in group:
            said.append(step.said(before))
            before = step.name
        result = _result(count, group)
        again = (
            f" So {before} has {result} {problem.item}.",
            f" That is {result} {problem.item} for {before}.",
        )
        restated = "".join(again[: problem.restatements])
        lines.append(f"- {', '.join(said)}: {_forward(count, group)} = {result}.{restated}")
        count = result
    return "\n".join(lines)


def _result(count: int, group: Sequence[Step]) -> int:
    for step in group:
        count = step.apply(count)
    return count


def _forward(count: int, group: Sequence[Step]) -> str:
    """The operations of a group as an expression: "14 + 6 - 3", "(14 + 6) * 2"."""
    text = str(count)
    for place, step in enumerate(group):
        if place and step.kind == "times" and group[place - 1].kind != "times":
            text = f"({text})"
        text += f" {_SIGNS[step.kind]} {step.number}"
    return text


def _checked(problem: Problem, groups: Sequence[Sequence[Step]]) -> str:
    """The check: the operations undone from the last to the first."""
    counts = [problem.count]
    for group in groups:
        counts.append(_result(counts[-1], group))
    said = []
    for group, before, after in reversed(list(zip(groups, counts, counts[1:], strict=False))):
        text = str(after)
        for place, step in enumerate(reversed(group)):
            if place and step.kind == "times" and group[-1].kind != "times":
                text = f"({text})"
            text += f" {_UNDONE[step.kind]} {step.number}"
        said.append(f"{text} = {before}.")
    return f"{' '.join(said)} It fits."


_SIGNS = {"more": "+", "fewer": "-", "times": "*"}
_UNDONE = {"more": "-", "fewer": "+", "times": "/"}


def check_steps(problem: Problem, completion: str) -> bool:
    """Whether a completion is right in every line: facts, operations, results, the parts of its form.

    Lines of one and of two steps may be mixed; nothing may be left out.
    """
    text = completion.strip()
    form = form_of(text)
    if form is None:
        return False
    groups: list[Sequence[Step]] = []
    lines = [line for line in text.split("\n") if line.startswith("- ") and ":" in line]
    place = 0
    for line in lines:
        width = 2 if _TWO.match(line) else 1
        groups.append(problem.steps[place : place + width])
        place += width
    return place == len(problem.steps) and text == _written(problem, form, groups)


def extract_answer(completion: str) -> str | None:
    r"""The number in the completion's only `\boxed{}`, which must end it; None otherwise."""
    text = completion.strip()
    found = _ANSWER.findall(text)
    return found[0] if len(found) == 1 and text.endswith(f"\\boxed{{{found[0]}}}") else None


def form_of(completion: str) -> Form | None:
    """The form that a completion begins in; None if in neither."""
    text = completion.lstrip()
    return "structured" if text.startswith(STRUCTURED_BEGINS) else "plain" if text.startswith("- ") else None


def style_of(problem: Problem, completion: str) -> Literal["single", "double", "other"]:
    """The style of a completion's lines, whatever their results; "other" if they are mixed or too few."""
    widths = [
        2 if _TWO.match(line) else 1
        for line in completion.split("\n")
        if _ONE.match(line) or _TWO.match(line)
    ]
    if sum(widths) != len(problem.steps):
        return "other"
    if all(width == 1 for width in widths):
        return "single"
    return "double" if all(width == 2 for width in widths[: len(problem.steps) // 2]) else "other"
