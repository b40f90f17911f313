"""A synthetic reasoning task: chains of + - * modulo 10, evaluated strictly from left to right.

A problem is a string such as "3+7*2-5=". A solution is a chain of reasoning steps, each ending with ";", then
the answer after "#". There are two styles:

    single   3+7=0;0*2=0;0-5=5;#5      one operation per step: easier steps, more tokens
    double   3+7*2=0;0-5=5;#5          two operations per step (one in the last step if their number is odd)

Each reasoning step starts with the running value and copies the next operations of the problem, so that the
answer follows from the text of the last step alone. "double" skips every other intermediate value: it is
shorter, but a model must do two operations at once. There are no brackets and no precedence: "3+7*2=" is
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
# Validation problems are taken from a residue class of the test problems' hashes that contains no problem of
# the benchmark or of the embedded pair's measurements, so that adding the split did not change these.
VALIDATION_ONE_IN, VALIDATION = 2048, 1904

_PROBLEM = re.compile(r"[0-9](?:[+*-][0-9])+=")
_STEP = re.compile(r"([0-9])((?:[+*-][0-9]){1,2})=([0-9]);")
_SOLUTION = re.compile(r"(?:[0-9](?:[+*-][0-9]){1,2}=[0-9];)+#[0-9]")
_ANSWER = re.compile(r"#([0-9])")


def split_of(problem: str) -> Split:
    """The split of a problem, determined by its hash alone, so that splits never overlap."""
    number = int.from_bytes(hashlib.blake2b(problem.encode(), digest_size=4).digest(), "big")
    if number % VALIDATION_ONE_IN == VALIDATION:
        return "validation"
    return "test" if number % TEST_ONE_IN == 0 else "train"


def sample_problem(
    rng: random.Random, operations: tuple[int, int] = DEFAULT_OPERATIONS, split: Split = "train"
) -> str:
    """Sample a random problem of a split; the number of operations is uniform over the inclusive range.

    Raises ValueError if the range has no such problem, as possible for validation and the shortest chains.
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
    """Generate `count` distinct problems, deterministically; a smaller count gives a prefix of the list.

    Raises ValueError if the range of operations is empty or has fewer problems.
    """
    if split not in ("train", "validation", "test"):
        raise ValueError(f"split must be 'train', 'validation' or 'test', got {split!r}")
    low, high = operations
    if not 1 <= low <= high:
        raise ValueError(f"operations must be a range (low, high) with 1 <= low <= high, got {operations}")
    return list(_problems(count, split, seed, low, high))


@functools.lru_cache(
    maxsize=8
)  # jobs of a sweep use the same problems, and validation problems are slow to find
def _problems(count: int, split: Split, seed: int, low: int, high: int) -> tuple[str, ...]:
    # String seeds give the same sequence in every Python version.
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
    """Write the correct solution of a problem in one of the two styles."""
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
    """The shortest prefix of a solution that determines its style ("3+7=" or "3+7*")."""
    return write_solution(problem, style)[:4]


def extract_answer(completion: str) -> str | None:
    """The digit after "#" if the completion ends in exactly one "#digit"; None otherwise."""
    _, mark, tail = completion.strip().partition("#")
    match = _ANSWER.fullmatch(mark + tail)
    return match[1] if match else None


def is_correct(problem: str, completion: str) -> bool:
    """Whether the completion has the right format (reasoning steps, then "#digit") and final answer."""
    text = completion.strip()
    return _SOLUTION.fullmatch(text) is not None and extract_answer(text) == answer(problem)


def check_steps(problem: str, completion: str) -> bool:
    """Whether the answer and every reasoning step are right: running value, copied operations and result.

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
    """The style of a completion, determined by its form only, whatever its results.

    "other" is a completion that has the wrong format or mixes the styles.
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
