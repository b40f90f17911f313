"""A synthetic reasoning task: chains of + - * modulo 10, evaluated strictly from left to right.

A problem is a string such as "3+7*2-5=". A solution is a written chain of steps, every step ended by ";",
then the answer after "#". It comes in two styles:

    single   3+7=0;0*2=0;0-5=5;#5      one operation a step: short leaps, more tokens
    double   3+7*2=0;0-5=5;#5          two operations a step (the last step has one when their number is odd)

Each step starts with the running value and then copies the next operations of the problem, so that the answer
follows from the text of the last step alone. "double" skips every other intermediate value: it is shorter,
but a model has to do two operations in its head. There are no brackets and no precedence: "3+7*2=" is
(3+7)*2 = 20, written 0.
"""

import functools
import hashlib
import random
import re
from typing import Literal

Split = Literal["train", "validation", "test"]
Style = Literal["single", "double"]

DEFAULT_OPERATIONS = (4, 8)
CHARACTERS = "0123456789+-*=;#"
TEST_ONE_IN = 8
# A class of hashes within the test problems': one that no problem of the benchmark falls into, nor of those
# that the embedded pair was measured on, so that both stay what they were without a validation split.
VALIDATION_ONE_IN, VALIDATION = 2048, 1904

_PROBLEM = re.compile(r"[0-9](?:[+*-][0-9])+=")
_STEP = re.compile(r"([0-9])((?:[+*-][0-9]){1,2})=([0-9]);")
_SOLUTION = re.compile(r"(?:[0-9](?:[+*-][0-9]){1,2}=[0-9];)+#[0-9]")
_ANSWER = re.compile(r"#([0-9])")


def split_of(problem: str) -> Split:
    """Which split a problem belongs to: its hash alone decides, so no two can ever overlap."""
    number = int.from_bytes(hashlib.blake2b(problem.encode(), digest_size=4).digest(), "big")
    if number % VALIDATION_ONE_IN == VALIDATION:
        return "validation"
    return "test" if number % TEST_ONE_IN == 0 else "train"


def sample_problem(
    rng: random.Random, operations: tuple[int, int] = DEFAULT_OPERATIONS, split: Split = "train"
) -> str:
    """One random problem of the split; the number of operations is uniform over the range, ends included.

    Raises ValueError where the range holds none, as that of the shortest chains may for validation.
    """
    for _ in range(100 * VALIDATION_ONE_IN):
        count = rng.randint(*operations)
        problem = rng.choice("0123456789")
        problem += "".join(rng.choice("+-*") + rng.choice("0123456789") for _ in range(count)) + "="
        if split_of(problem) == split:
            return problem
    raise ValueError(f"found no {split} problem with {operations[0]} to {operations[1]} operations")


def problems(
    count: int, *, split: Split, seed: int = 0, operations: tuple[int, int] = DEFAULT_OPERATIONS
) -> list[str]:
    """`count` distinct problems; the same arguments give the same list, a smaller count a prefix of it.

    Raises ValueError where the range of operations is empty, or does not hold that many problems.
    """
    if split not in ("train", "validation", "test"):
        raise ValueError(f"split must be 'train', 'validation' or 'test', got {split!r}")
    low, high = operations
    if not 1 <= low <= high:
        raise ValueError(f"operations must be a range (low, high) with 1 <= low <= high, got {operations}")
    return list(_problems(count, split, seed, low, high))


@functools.lru_cache(maxsize=8)  # the jobs of a sweep ask for the same ones, and validation's are rare
def _problems(count: int, split: Split, seed: int, low: int, high: int) -> tuple[str, ...]:
    # A string seed is hashed the same way by every Python.
    rng = random.Random(f"{seed}/{split}/{low}/{high}")
    found: dict[str, None] = {}  # a dict keeps the order
    for _ in range(1000 + 200 * count):
        if len(found) >= count:
            return tuple(found)
        found[sample_problem(rng, (low, high), split)] = None
    if len(found) >= count:
        return tuple(found)
    raise ValueError(
        f"found only {len(found)} distinct {split} problems with {low} to {high} operations, not {count}"
    )


def answer(problem: str) -> str:
    """The exact final digit."""
    value, rest = _parse(problem)
    return str(_apply(value, rest))


def write_solution(problem: str, style: Style) -> str:
    """The right solution of a problem, written in one of the two styles."""
    if style not in ("single", "double"):
        raise ValueError(f"style must be 'single' or 'double', got {style!r}")
    value, rest = _parse(problem)
    width = 2 * (1 if style == "single" else 2)  # an operation is two characters: operator and digit
    steps = []
    for start in range(0, len(rest), width):
        part = rest[start : start + width]
        result = _apply(value, part)
        steps.append(f"{value}{part}={result};")
        value = result
    return "".join(steps) + f"#{value}"


def style_prefix(problem: str, style: Style) -> str:
    """The shortest beginning of a solution that commits its writer to a style ("3+7=" or "3+7*")."""
    return write_solution(problem, style)[:4]


def extract_answer(completion: str) -> str | None:
    """The digit after "#" where the completion ends in exactly one "#digit"; None otherwise."""
    _, mark, tail = completion.strip().partition("#")
    match = _ANSWER.fullmatch(mark + tail)
    return match[1] if match else None


def is_correct(problem: str, completion: str) -> bool:
    """Whether the completion is in format (steps, then "#digit", no more) and its final answer is right."""
    text = completion.strip()
    return _SOLUTION.fullmatch(text) is not None and extract_answer(text) == answer(problem)


def check_steps(problem: str, completion: str) -> bool:
    """Whether the answer and every written step is right: running value, copied operations and result.

    Steps of one and of two operations may be mixed; no operation may be left out.
    """
    if not is_correct(problem, completion):
        return False
    value, rest = _parse(problem)
    for left, part, result in _STEP.findall(completion):
        if int(left) != value or not rest.startswith(part):
            return False
        value = _apply(value, part)
        rest = rest[len(part) :]
        if int(result) != value:
            return False
    return not rest


def style_of(problem: str, completion: str) -> Literal["single", "double", "other"]:
    """The style of a completion, judged by its form only: a wrong result does not change it.

    "other" is whatever is out of format or mixes the styles.
    """
    text = completion.strip()
    if not _SOLUTION.fullmatch(text):
        return "other"
    widths = [len(part) // 2 for _, part, _ in _STEP.findall(text)]
    if all(width == 1 for width in widths):
        return "single"
    odd = (len(_parse(problem)[1]) // 2) % 2 == 1
    body = widths[:-1] if odd else widths  # an odd number of operations leaves one for the last step
    return "double" if all(width == 2 for width in body) else "other"


def _parse(problem: str) -> tuple[int, str]:
    """The first value, and the operations as one string ("+7*2-5")."""
    if not _PROBLEM.fullmatch(problem):
        raise ValueError(f"not a problem of this task: {problem!r}")
    return int(problem[0]), problem[1:-1]


def _apply(value: int, part: str) -> int:
    for operator, digit in zip(part[::2], part[1::2], strict=True):
        number = int(digit)
        value = {"+": value + number, "-": value - number, "*": value * number}[operator] % 10
    return value
