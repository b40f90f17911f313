r"""How often right answers are judged wrong, and answers of other problems right: run by hand.

    python -m tests.benchmarks.grading.measure_answers [--data ../shared/data] [--part others,marked,...]

Completions are built from the golds of the published files in phrasings of several kinds, and people's own
solutions are read without their marks. What is tuned on (the even problems of GSM8K's train traces) is left
out. Each line: failures of cases, the rate, and the upper end of its one-sided 95 % interval (Clopper and
Pearson).
"""

import argparse
import gzip
import itertools
import json
import random
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path

from scipy.stats import beta

from distill.benchmarks import aime, amc, gsm8k, math, olympiadbench, svamp
from distill.benchmarks.grading import numeric
from distill.benchmarks.grading.answers import number
from distill.benchmarks.grading.judge import MathJudge
from distill.data.trace import Example, Grader

Case = tuple[Example, str]  # a problem and a completion


def upper(failures: int, cases: int) -> float:
    """Upper end of the one-sided 95 % interval of a rate."""
    return 1.0 if failures == cases else float(beta.ppf(0.95, failures + 1, cases - failures))


def count(name: str, grade: Grader, cases: Sequence[Case], *, right: bool, shown: int) -> None:
    """Print how many cases are judged otherwise than `right`, and the first of them."""
    began = time.time()
    with ThreadPoolExecutor(2) as pool:
        verdicts = list(pool.map(lambda case: grade(*case), cases))
    failed = [
        (case, verdict) for case, verdict in zip(cases, verdicts, strict=True) if verdict.correct is not right
    ]
    rate, most = len(failed) / len(cases), upper(len(failed), len(cases))
    what = "false wrong" if right else "false right"
    figures = f"{len(failed):4} of {len(cases):6}  {rate:8.3%}  <= {most:.3%}  {time.time() - began:6.0f} s"
    print(f"{name:42} {what}: {figures}", flush=True)
    for (example, completion), verdict in failed[:shown]:
        print(
            f"      {example.gold!r} {completion[-160:]!r}: {verdict.answer!r} {verdict.reason}",
            file=sys.stderr,
        )


# Phrasings


MARKED = [
    "We add them up.\n#### {}",
    "So there are 3 + 4 = 7 first.\n\nThe answer is {}.",
    "First 2, then 5.\n**Answer:** {}",
    "Step 1: 12 / 4 = 3.\n\n**Final Answer**: {}",
    "Altogether it is that.\n\nFinal answer: {}",
    "Therefore, the final answer is {}. I hope it is correct.",
    "<think>It may be 17.</think>The answer is {}",
    "Adding 5 gives the result.\n\n### Final Answer\n{}",
    "so the answer to the problem is {}.",
]
BOXED = [
    "Thus $x$ is found.\n\n$$\\boxed{{{}}}$$",
    "The final answer is $\\boxed{{{}}}$.",
    "It is \\(\\boxed{{{}}}\\), as 2 + 2 = 4.",
    "**Final Answer**\n\\[ \\boxed{{{}}} \\]",
    "Therefore, after 3 steps, we have $\\boxed{{{}}}$ in the end.",
]
PROSE = [
    "First, 3 + 4 = 7.\nTherefore, the total is {0}.",
    "So, in the end, there are {0} of them.",
    "Therefore, they will have {0} after {1} days.",
    "In {1} weeks, this makes {0} in total.",
    "Hence each of the {1} friends gets {0}.",
    "It will take {0} minutes to fill {1} of them.",
    "So the {1} boxes cost ${0} altogether.",
    "That is {1} * 2 + 4 = {0} for all {1} of them.",
    "So she pays **${0}** for {1} tickets.",
    "As a result, {0} remain after the first {1} are gone.",
    "Thus he earns ${0} over {1} months.",
    "This means {0} pages were read by day {1}.",
]
CHOICES = [
    "The answer is ({}).", "The correct answer is {}.", "Answer: {}", "**Answer: {}**",
     "The correct option is ({}).",
    "So the correct choice is **({})**.", "Therefore, option {} is correct.",
     "Thus, ({}) is the correct answer.",
    "The answer is $\\boxed{{{}}}$.", "$\\boxed{{\\text{{({})}}}}$", "\\boxed{{\\textbf{{({})}}\\ 12}}",
     "#### {}",
    "It comes to 12, which is option {}.", "Hence we choose {}.", "{}", "({})", "**{}**",
     "Final answer: {}) 12",
    "The best choice is {}, because 3 < 4.", "The answer is {}. 12 apples", "The final answer is option {}.",
    "The correct answer is **{}: 12**", "This matches option {}.", "The answer is {}, since 12 is even.",
]  # fmt: skip


def decorated(gold: str, draw: random.Random) -> str:
    """A whole number or decimal as people write it."""
    value = number(gold)
    if value is None or value.denominator != 1:
        return gold
    plain = f"{int(value)}"
    grouped = f"{int(value):,}"
    return draw.choice(
        [plain, grouped, f"${grouped}", f"{plain}.00", f"{plain} apples", f"**{grouped}**", f"{plain}.0"]
    )


def rewritten(gold: str, draw: random.Random) -> str:
    """A gold answer of MATH in another notation with the same value."""
    ways: list[Callable[[str], str]] = [
        lambda text: text,
        lambda text: re.sub(r"\\[td]?frac(?=\{)", r"\\dfrac", text),
        lambda text: re.sub(r"^(-?)\\frac\{(\d+)\}\{(\d+)\}$", r"\1\2/\3", text),
        lambda text: re.sub(r"(?<!\\left)\(", r"\\left(", re.sub(r"(?<!\\right)\)", r"\\right)", text)),
        lambda text: text.replace(",", ", ") if "," in text and number(text) is None else text,
        lambda text: f"{number(text)}.0" if re.fullmatch(r"-?\d+", text) else text,
        lambda text: f"{int(text):,}" if re.fullmatch(r"-?\d+", text) else text,
        lambda text: _decimal(text) or text,
        lambda text: f" {text} ",
        lambda text: f"{text}\\text{{ units}}" if re.fullmatch(r"-?\d+", text) else text,
        lambda text: f"x = {text}" if re.fullmatch(r"-?\d+|\\frac\{\d+\}\{\d+\}", text) else text,
        lambda text: ",".join(text.split(",")[::-1]) if re.fullmatch(r"-?\d+(,-?\d{1,2})+", text) else text,
        lambda text: re.sub(r"^(\d*[a-z](?:\^\d)?)\+(\d+)$", r"\2+\1", text),
        lambda text: text.replace("\\sqrt{", "\\sqrt {"),
        lambda text: text.replace("+", " + ") if "^{" not in text and "\\text" not in text else text,
        lambda text: f"{text}." if text[-1:].isdigit() else text,
        lambda text: f"\\displaystyle {text}",
        lambda text: f"{{{text}}}",
    ]  # fmt: skip
    changed = [other for way in ways if (other := way(gold)) != gold]
    return draw.choice(changed or [gold])


def _decimal(text: str) -> str | None:
    found = re.fullmatch(r"(-?)\\[td]?frac\{(\d+)\}\{(\d+)\}", text)
    if found is None or int(found[3]) == 0:
        return None
    value = Fraction(int(found[2]), int(found[3]))
    scaled = value * 10**4
    return f"{found[1]}{float(value)}" if scaled.denominator == 1 else None


# Cases


def golds(data: Path) -> dict[str, tuple[list[Example], str]]:
    """The benchmarks' examples, and whether a number or mathematics."""
    lines = (data / "math" / "train_answers_7474.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    train = [
        Example(str(index), record["problem"], record["answer"].strip())
        for index, record in enumerate(records)
        if (record["answer"] or "").strip()
    ]
    return {
        "gsm8k": (gsm8k.load(split="test", path=str(data / "gsm8k/test.jsonl")), "number"),
        "svamp": (svamp.load(path=str(data / "svamp/svamp_test.jsonl")), "number"),
        "aime": (aime.load(path=str(data / "aime/aime_1983_2023.jsonl.gz")), "number"),
        "amc": (amc.load(path=str(data / "amc/amc22_23.jsonl")), "mathematics"),
        "math500": (math.load(path=str(data / "math/math500.jsonl")), "mathematics"),
        "math": (math.load(path=str(data / "math/test_5000.jsonl.gz")), "mathematics"),
        "math_train": (train, "mathematics"),
        "olympiadbench": (
            olympiadbench.load(path=str(data / "olympiadbench/oe_to_maths_en_675.jsonl")),
            "several",
        ),
    }


def graders(judge: MathJudge, name: str, kind: str) -> Grader:
    if name == "gsm8k":
        return gsm8k.grade
    return {"number": numeric.grade, "mathematics": judge, "several": olympiadbench.OlympiadJudge(judge)}[
        kind
    ]


def others(examples: Sequence[Example], offsets: Sequence[int] = (1, 7, 50)) -> list[Case]:
    """Gold answers of other problems; equal golds left out."""
    return [
        (example, f"Therefore, the final answer is $\\boxed{{{other.gold}}}$.")
        for offset in offsets
        for example, other in zip(examples, [*examples[offset:], *examples[:offset]], strict=True)
        if example.gold != other.gold
    ]


def human_prose(data: Path) -> Iterator[Case]:
    """People's solutions of GSM8K without their last line, which is the only mark."""
    for example in gsm8k.load(split="test", path=str(data / "gsm8k/test.jsonl")):
        yield example, (example.completion or "").rpartition("####")[0].strip()
    path = data / "traces" / "gsm8k_train_human_gemini_llama.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in itertools.islice(lines, 1, None, 2):
            record = json.loads(line)
            text = re.sub(r"\s*The answer is\s*\S+\s*$", "", record["traces"]["human"].strip())
            yield Example(str(record["id"]), record["question"], str(record["gold"])), text


def teacher_prose(data: Path) -> Iterator[Case]:
    """Teachers' solutions without their closing sentence, where the authors found the gold at their end."""
    path = data / "traces" / "gsm8k_train_human_gemini_llama.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in itertools.islice(lines, 1, None, 2):
            record = json.loads(line)
            for name, ends in record["body_ends_in_gold"].items():
                if ends and name.endswith("_L2"):
                    text = re.sub(r"\s*The answer is\s*\S+\s*$", "", record["traces"][name].strip())
                    yield Example(str(record["id"]), record["question"], str(record["gold"])), text


def _next_letter(gold: str) -> str:
    letter = gold[-1] if len(gold) == 1 else gold[-3]
    return "ABCDE"["ABCDE".index(letter) - 1]


def measure(data: Path, parts: Sequence[str], shown: int) -> None:
    draw, judge = random.Random(20261129), MathJudge(workers=2)
    sets = golds(data)
    numbers = [e for name in ("gsm8k", "svamp", "aime") for e in sets[name][0]]
    formulas = [e for name in ("math", "math_train") for e in sets[name][0]]
    fill = partial(str.format)

    def say(part: str, name: str, grade: Grader, cases: Sequence[Case], *, right: bool = True) -> None:
        if part in parts:
            count(name, grade, cases, right=right, shown=shown)

    cases = [(e, fill(text, decorated(e.gold or "", draw))) for e in numbers for text in MARKED]
    say("marked", "marked numbers", numeric.grade, cases)
    cases = [(e, fill(draw.choice(MARKED[1:]), f"${rewritten(e.gold or '', draw)}$")) for e in formulas]
    say("marked", "marked mathematics", judge, cases)
    cases = [
        (e, fill(text, rewritten(e.gold or "", draw))) for e in formulas for text in draw.sample(BOXED, 2)
    ]
    say("boxed", "boxed mathematics", judge, cases)
    say("boxed", "people's boxed solutions", judge, [(e, e.completion or "") for e in sets["math"][0]])
    cases = [
        (e, fill(text, decorated(e.gold or "", draw), draw.randint(2, 30))) for e in numbers for text in PROSE
    ]
    say("prose", "unmarked sentences, built", numeric.grade, cases)
    say("prose", "unmarked solutions of people", numeric.grade, list(human_prose(data)))
    say("prose", "unmarked solutions of teachers", numeric.grade, list(teacher_prose(data)))
    letters = [(letter, text) for letter in "ABCDE" for text in CHOICES]
    cases = [
        (
            Example("0", e.problem, draw.choice((letter, f"\\text{{({letter})}}"))),
            f"We add 3 and 4.\n\n{fill(text, letter)}",
        )
        for e, (letter, text) in zip(formulas[:5000], itertools.cycle(letters), strict=False)
    ]
    say("choices", "choices", judge, cases)
    cases = [(replace(e, gold=_next_letter(str(e.gold))), text) for e, text in cases]
    say("choices", "other choices", judge, cases, right=False)
    for name, (examples, kind) in sets.items():
        say("others", f"others' golds, {name}", graders(judge, name, kind), others(examples), right=False)
    judge.close()


def main() -> None:
    names = ["marked", "boxed", "prose", "choices", "others"]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--part", default=",".join(names), help="of " + ", ".join(names))
    parser.add_argument("--shown", type=int, default=0, help="failures to print of each kind, to stderr")
    chosen = parser.parse_args()
    measure(chosen.data, chosen.part.split(","), chosen.shown)


if __name__ == "__main__":
    main()
