"""Tests of trace quality: single completions of known quality, the figures, and old samples without it."""

import json
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from lightning.pytorch.loggers import WandbLogger
from samples import sample
from test_compare import result, written

from distill.benchmarks import arithmetic, gsm8k
from distill.benchmarks.grading.judge import MathJudge
from distill.data.trace import Example, Grader, Verdict
from distill.errors import UserError
from distill.evaluation.comparison_report import compare
from distill.evaluation.logging import log_samples
from distill.evaluation.quality import FIGURES, quality_of
from distill.evaluation.report import markdown
from distill.evaluation.result import Score, figures

THREE = Example("0", "1+2=", "3")
OLD = ("characters", "word_repetition", "post_answer", "several_answers", "correct_to_first_answer")


@pytest.fixture(scope="module")
def judge() -> Iterator[MathJudge]:
    found = MathJudge(workers=1)
    yield found
    found.close()


def quality(completion: str, grade: Grader, seen: str | None = "", short: bool = True) -> dict[str, Any]:
    part = completion if seen == "" else seen
    verdict = Verdict(None, False, "unclosed thinking") if part is None else grade(THREE, part)
    return quality_of(THREE, completion, part, verdict, grade, short=short)


# --- a single completion


@pytest.mark.parametrize(
    ("completion", "post_answer", "several", "whole", "to_first"),
    [
        ("1+2=3\n#### 3", False, False, True, True),
        ("1+2=3\n#### 3\n\nQuestion: 4?\n#### 4", True, True, True, True),  # GSM8K's grader stops there too
        ("1+2=3\n#### 3\nOr rather:\n#### 4", True, True, False, True),
        ("1+2=4\n#### 4\nOr rather:\n#### 3", True, True, True, False),
        ("1+2=3\n#### 3\n#### 3.0\n#### 3 eggs", True, False, True, True),
        ("1+2=3\n#### 3. I like it.", False, False, True, True),
        ("It has 3", False, False, True, True),  # no final answer: the last number is right
        ("I do not know", False, False, False, False),
    ],
)
def test_numbers_are_distinct_and_graded_as_by_their_judge(
    completion: str, post_answer: bool, several: bool, whole: bool, to_first: bool
) -> None:
    grade = partial(gsm8k.grade)
    assert grade(THREE, completion).correct is whole
    found = quality(completion, grade)
    assert found == {
        "characters": len(completion),
        "word_repetition": 0.0,
        "post_answer": post_answer,
        "several_answers": several,
        "correct_to_first_answer": to_first,
    }


@pytest.mark.slow
def test_mathematical_answers_are_distinct_as_their_judge_says(judge: MathJudge) -> None:
    same = quality(r"so $\boxed{3}$. Again, $\boxed{\frac{6}{2}}$. Or \boxed{x=3}.", judge)
    assert (same["post_answer"], same["several_answers"]) == (True, False)
    other = quality(r"so $\boxed{3}$. Wait, it is $\boxed{\frac{6}{3}}$.", judge)
    assert (other["post_answer"], other["several_answers"]) == (True, True)
    assert other["correct_to_first_answer"]
    assert not judge(THREE, r"so $\boxed{3}$. Wait, it is $\boxed{\frac{6}{3}}$.").correct


def test_the_embedded_tasks_answer_is_behind_one_mark() -> None:
    grade = partial(arithmetic.grade)
    assert not any(quality("1+2=3;#3", grade)[key] for key in ("post_answer", "several_answers"))
    spoilt = quality("1+2=3;#3#3;", grade)
    assert (spoilt["post_answer"], spoilt["several_answers"]) == (True, False)
    assert spoilt["correct_to_first_answer"]
    assert not grade(THREE, "1+2=3;#3#3;").correct


def test_only_what_is_graded_has_answers() -> None:
    """Answers inside the thinking block do not count; length and repetition are of everything."""
    thought = "<think>Answer: 5\nAnswer: 5\nAnswer: 5</think>Answer: 3"
    found = quality(thought, gsm8k.grade, seen="Answer: 3")
    assert (found["post_answer"], found["several_answers"], found["correct_to_first_answer"]) == (
        False,
        False,
        True,
    )
    assert found["characters"] == len(thought)
    unclosed = quality("<think>Answer: 3", gsm8k.grade, seen=None)
    assert not any(unclosed[key] for key in ("post_answer", "several_answers", "correct_to_first_answer"))


def test_repeated_words_are_counted_in_runs_of_four() -> None:
    # a b c d, b c d a, c d a b, d a b c, a b c d (again), b c d e
    found = quality("a b c d\na b c  d e", gsm8k.grade)
    assert found["word_repetition"] == pytest.approx(1 / 6)
    assert quality("a b c", gsm8k.grade)["word_repetition"] == 0.0


def test_only_a_text_that_goes_on_is_graded_twice() -> None:
    asked = Counter[str]()

    def grade(example: Example, completion: str) -> Verdict:
        asked[completion] += 1
        return Verdict("3", True)

    quality("Answer: 3", grade)
    quality("no answer", grade)
    assert set(asked.values()) == {1}
    quality("Answer: 3\n\nAnswer: 4", grade)
    assert [text for text in asked if "3" in text] == ["Answer: 3", "Answer: 3\n\nAnswer: 4"]
    assert asked["Answer: 3"] == 2
    asked.clear()
    long = quality("Answer: 3\n\nAnswer: 4", grade, short=False)  # such as a program
    assert set(asked.values()) == {1}
    assert [long[key] for key in OLD] == [20, 0.0, None, None, None]


# --- figures, tables and W&B


def qualities(**changes: Any) -> dict[str, Any]:
    """Fields of a completion of good quality."""
    found = dict(zip(OLD, (100, 0.0, False, False, True), strict=True))
    return found | {"finished": True} | changes


def test_figures_are_means_over_problems_and_missing_from_old_samples() -> None:
    rng = np.random.default_rng(0)
    samples = [
        sample(
            "b",
            id=str(problem),
            sample=number,
            **qualities(
                characters=int(rng.integers(1, 900)),
                word_repetition=float(rng.random()),
                post_answer=bool(rng.random() < 0.4),
                several_answers=bool(rng.random() < 0.2),
                correct_to_first_answer=bool(rng.random() < 0.6),
            ),
        )
        for problem in range(30)
        for number in range(2)
    ]
    found = figures(samples)
    draws = np.random.default_rng(1).integers(0, 30, size=(20_000, 30))
    for name, key in FIGURES.items():
        values = np.asarray([float(one[key]) for one in samples]).reshape(30, 2).mean(1)
        assert found[name].value == pytest.approx(values.mean())
        low, high = np.quantile(values[draws].mean(1), [0.025, 0.975])
        spread = values.std()
        assert found[name].low == pytest.approx(low, abs=0.1 * spread)
        assert found[name].high == pytest.approx(high, abs=0.1 * spread)
    assert not FIGURES.keys() & figures([sample("b")]).keys()
    assert not FIGURES.keys() & figures([samples[0], sample("b", id="old")]).keys()
    programs = figures([sample("b", **dict(zip(OLD, (9, 0.5, None, None, None), strict=True)))], votes=False)
    assert FIGURES.keys() & programs.keys() == {"characters", "word repetition"}


def test_the_table_has_a_line_for_each_benchmark_and_shows_zeros() -> None:
    new = figures(
        [sample("m", id=str(n), **qualities(characters=100 + n, finished=n > 0)) for n in range(20)]
    )
    old = figures([sample("old", id=str(n)) for n in range(20)])
    asked = {
        name: {"problems": 20, "per_problem": 1, "unreadable_golds": [], "figures": own}
        for name, own in {"m": new, "old": old}.items()
    }
    for one in asked.values():
        one["figures"] = {name: figure.json() for name, figure in one["figures"].items()}
    text = markdown({"name": "x", "benchmarks": asked})
    (line,) = [line for line in text.splitlines() if line.startswith("| m | 1") and "[" in line]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:2] == ["m", "110 [107, 112]"]
    assert cells[2:6] == ["0.0 [0.0, 16.8]", "0.0 [0.0, 16.8]", "0.0 [0.0, 16.8]", "100.0 [83.2, 100.0]"]
    assert cells[6].startswith("95.0 [8")
    assert len([line for line in text.splitlines() if line.startswith("| old |")]) == 1
    assert "Trace quality" not in markdown({"name": "x", "benchmarks": {"old": asked["old"]}})


def test_samples_of_a_run_that_an_earlier_version_began_are_logged_with_the_new_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logger = Mock(spec=WandbLogger)
    monkeypatch.setattr("wandb.Table", lambda columns, data: (columns, data))
    before = Score("b", 1, [sample("b")], {})
    after = Score("b", 1, [sample("b", **qualities())], {})
    log_samples(logger, {"before": [before], "after": [after]})
    columns, rows = logger.experiment.log.call_args[0][0]["samples"]
    assert columns[-5:] == list(OLD)
    assert [row[-5:] for row in rows] == [[None] * 5, [100, 0.0, False, False, True]]
    assert {len(row) for row in rows} == {len(columns)}


# --- two evaluations


def two_evaluations(folder: Path) -> tuple[Path, Path]:
    """Forty problems. b's texts are short; a's go on, and that spoils eight of its answers."""
    a, b = [], []
    for n in range(40):
        spoilt = n < 8
        fine = {"problem": f"problem {n}", "id": str(n)}
        a.append(
            sample("m", **fine)
            | qualities(characters=500 + n, word_repetition=0.5, post_answer=n < 30, finished=n >= 20)
            | {"correct": n < 20 and not spoilt, "correct_to_first_answer": n < 20, "several_answers": spoilt}
        )
        b.append(sample("m", **fine) | qualities(correct_to_first_answer=n < 24) | {"correct": n < 24})
    return written(folder / "a", a), written(folder / "b", b)


@pytest.mark.slow
def test_compared_over_all_problems_and_over_those_that_both_solve(tmp_path: Path) -> None:
    a, b = two_evaluations(tmp_path)
    text = compare([a, b], tmp_path / "out")
    found = result(tmp_path / "out")["benchmarks"]["m"]["quality"]
    everywhere, both = found["everywhere"], found["both_solve"]
    assert found["solved"] == 12  # 8 to 19
    expected = {
        "characters": (519.5, 100.0, 513.5, 100.0),
        "word repetition": (0.5, 0.0, 0.5, 0.0),
        "post answer": (30 / 40, 0.0, 1.0, 0.0),
        "several answers": (8 / 40, 0.0, 0.0, 0.0),
        "finished": (20 / 40, 1.0, 0.0, 1.0),
    }
    for name, (first, second, of_both, of_both_second) in expected.items():
        for measures, values in ((everywhere, (first, second)), (both, (of_both, of_both_second))):
            own = measures[name]
            assert [one["value"] for one in own["figures"]] == pytest.approx(values)
            assert own["difference"]["value"] == pytest.approx(values[1] - values[0])
    # McNemar by hand: 30 of 30 problems that differ do so in one direction.
    assert everywhere["post answer"]["difference"]["test"] == "McNemar"
    assert everywhere["post answer"]["difference"]["p"] == pytest.approx(2 * 0.5**30)
    assert both["finished"]["difference"]["p"] == pytest.approx(2 * 0.5**12)
    assert everywhere["characters"]["difference"]["test"] == "sign-flip"
    # Holm by hand: the largest of five p-values as it is, the smallest five times.
    p_values = {name: one["difference"]["p"] for name, one in everywhere.items()}
    least = min(p_values, key=p_values.__getitem__)
    assert everywhere[least]["difference"]["adjusted_p"] == pytest.approx(5 * p_values[least])
    assert "| m | all 40 | post answer | 75.0 % [" in text
    assert "| m | 12 that both solve | characters | 514 [5" in text
    assert "| 100 [100, 100] | -414 [" in text


def test_a_difference_is_stopping_and_the_rest(tmp_path: Path) -> None:
    a, b = two_evaluations(tmp_path)
    text = compare([a, b], tmp_path / "out")
    found = result(tmp_path / "out")["benchmarks"]["m"]
    assert found["difference"]["value"] == pytest.approx((24 - 12) / 40)
    stopping = found["quality"]["stopping"]
    assert stopping["part"]["value"] == pytest.approx(8 / 40)
    assert stopping["part"]["p"] == pytest.approx(2 * 0.5**8, rel=0.3)  # sign flips, drawn
    to_first = stopping["accuracy_to_first_answer"]
    assert [one["value"] for one in to_first["figures"]] == pytest.approx([0.5, 0.6])
    assert to_first["difference"]["value"] == pytest.approx(4 / 40)
    assert to_first["difference"]["p"] == pytest.approx(2 * 0.5**4)
    assert "- Stopping on m: +20.0 points [" in text
    assert "] of the difference of +30.0 (sign-flip p = 0.0" in text
    assert "Up to it b has 60.0 % right and a 50.0 %: +10.0 points [" in text


def test_problems_of_several_samples_are_solved_by_more_than_half_of_them(tmp_path: Path) -> None:
    sides = []
    for right in (2, 3):  # of four
        sides.append(
            [
                sample("m", sample=s, id=str(n), problem=str(n), correct=s < right + n % 2) | qualities()
                for n in range(10)
                for s in range(4)
            ]
        )
    a, b = written(tmp_path / "a", sides[0]), written(tmp_path / "b", sides[1])
    compare([a, b], tmp_path / "out")
    assert result(tmp_path / "out")["benchmarks"]["m"]["quality"]["solved"] == 5


@pytest.mark.slow
def test_old_samples_are_compared_without_their_quality(tmp_path: Path) -> None:
    new = written(tmp_path / "new", [sample("m", id=str(n), **qualities()) for n in range(9)])
    old = written(tmp_path / "old", [sample("m", id=str(n)) for n in range(9)])
    text = compare([old, new], tmp_path / "out")
    assert "Nothing is established on m: 9 problems" in text
    assert "Trace quality is not compared on m: the samples of an earlier version lack it." in text
    assert result(tmp_path / "out")["benchmarks"]["m"]["quality"] is None
    programs = dict(zip(OLD, (9, 0.5, None, None, None), strict=True))
    one, other = (
        written(tmp_path / name, [sample("p", id=str(n), **programs) for n in range(9)]) for name in "xy"
    )
    compare([one, other], tmp_path / "programs")
    found = result(tmp_path / "programs")["benchmarks"]["p"]["quality"]
    assert list(found["everywhere"]) == ["characters", "word repetition", "finished"]
    assert found["stopping"] is None


def test_damaged_quality_is_named(tmp_path: Path) -> None:
    a, b = two_evaluations(tmp_path)
    line = json.dumps(sample("m", id="99", problem="new", **qualities(post_answer="maybe")))
    with (b / "samples.jsonl").open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(UserError, match=r"line 41: post_answer is 'maybe'; the file is damaged"):
        compare([a, b])
