"""Tests of comparing evaluations: pairing, statistical tests and sentences, on folders with known results."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from distill.errors import UserError
from distill.evaluation.comparison_report import compare
from distill.evaluation.comparison_sides import read_sides

SETTINGS = {"prompt": "{problem}", "sampling": {"temperature": 0.0, "max_new_tokens": 256}, "seed": 0}


def sample(benchmark: str, number: int, correct: bool, **changes: Any) -> dict[str, Any]:
    return {
        "benchmark": benchmark,
        "id": str(number),
        "problem": f"problem {number}",
        "gold": "1",
        "sample": 0,
        "completion": "a line\u2028of text \U0001f600",
        "answer": "1",
        "correct": bool(correct),
        "truncated": False,
        "tokens": 10,
        **changes,
    }


def written(folder: Path, samples: list[dict[str, Any]], settings: dict[str, Any] = SETTINGS) -> Path:
    """An evaluation's folder; with stages, a training run's."""
    folder.mkdir(parents=True)
    lines = [json.dumps(one, ensure_ascii=False) for one in samples]
    (folder / "samples.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    names = dict.fromkeys(str(one["benchmark"]) for one in samples)
    if any("stage" in one for one in samples):
        stages = {str(one["stage"]): {"settings": settings} for one in samples}
        content, name = dict.fromkeys(names, stages), "summary.json"
    else:
        content, name = {name: {"settings": settings} for name in names}, "results.json"
    (folder / name).write_text(json.dumps({"benchmarks": content}))
    return folder


def table(first_only: int, second_only: int, both: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Verdicts of two models, so many problems of each kind."""
    kinds = [(1, 0)] * first_only + [(0, 1)] * second_only + [(1, 1)] * both + [(0, 0)] * neither
    first, second = np.asarray(kinds, dtype=bool).T
    return first, second


def two(folder: Path, **counts: tuple[int, int, int, int]) -> tuple[Path, Path]:
    """Evaluations a and b, of benchmarks with these tables."""
    sides: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for name, cells in counts.items():
        for own, verdicts in zip(sides, table(*cells), strict=True):
            own += [sample(name, number, verdict) for number, verdict in enumerate(verdicts)]
    return written(folder / "a", sides[0]), written(folder / "b", sides[1])


def result(out: Path, which: int = 0) -> dict[str, Any]:
    return json.loads((out / "comparison.json").read_text(encoding="utf-8"))["comparisons"][which]


@pytest.mark.slow
def test_what_is_established_and_what_is_not_is_said_in_sentences(tmp_path: Path) -> None:
    a, b = two(tmp_path, gsm8k=(40, 80, 260, 120), aime24=(3, 2, 1, 24), svamp=(60, 10, 200, 30))
    out = tmp_path / "out"
    text = compare([a, b], out)
    found = result(out)["benchmarks"]
    for name, (first_only, second_only) in {"gsm8k": (40, 80), "aime24": (3, 2), "svamp": (60, 10)}.items():
        expected = binomtest(first_only, first_only + second_only).pvalue
        assert found[name]["difference"]["p"] == pytest.approx(expected, rel=1e-9)
    # Holm by hand: the smallest p three times, the next twice, the last as it is.
    order = sorted(found, key=lambda name: found[name]["difference"]["p"])
    assert order == ["svamp", "gsm8k", "aime24"]
    for factor, name in zip((3, 2, 1), order, strict=True):
        difference = found[name]["difference"]
        assert difference["adjusted_p"] == pytest.approx(min(1, factor * difference["p"]))
    assert (
        "- b answers gsm8k better than a: 68.0 % against 60.0 %, +8.0 points [+3.8, +12.2], "
        "McNemar p < 0.001 (Holm over 3 benchmarks)." in text
    )
    assert "- b answers svamp worse than a: 70.0 % against 86.7 %, -16.7 points [" in text
    assert "- Nothing is established on aime24: 30 problems, 10.0 % against 13.3 %, -3.3 points [" in text
    assert "McNemar p = 1 (Holm over 3 benchmarks); a difference below about 29 points would mostly" in text
    assert "- Over the 3 benchmarks, each counting alike, nothing is established: -4.0 points [" in text
    assert (out / "comparison.md").read_text(encoding="utf-8") == text + "\n"
    assert (out / "comparison.png").read_bytes()[:4] == b"\x89PNG"
    assert "| gsm8k | 500 | 60.0 % [" in text


@pytest.mark.slow
def test_what_is_established_alone_may_not_be_among_several(tmp_path: Path) -> None:
    cells = (5, 16, 40, 39)  # McNemar p 0.027
    assert "b answers m better than a" in compare(two(tmp_path / "alone", m=cells))
    several = compare(two(tmp_path / "several", m=cells, k=(10, 10, 40, 40)))
    assert "Nothing is established on m: 100 problems" in several
    assert "McNemar p = 0.053 (Holm over 2 benchmarks)" in several


@pytest.mark.slow
def test_one_benchmark_needs_no_adjustment_and_has_no_mean(tmp_path: Path) -> None:
    text = compare(two(tmp_path, gsm8k=(40, 80, 260, 120)), tmp_path / "out")
    assert "Holm over" not in text
    assert "each counting alike" not in text
    assert result(tmp_path / "out")["mean_difference"] is None


@pytest.mark.slow
def test_benchmarks_count_alike_in_the_mean_however_many_problems_they_have(tmp_path: Path) -> None:
    text = compare(two(tmp_path, large=(0, 300, 300, 400), small=(3, 0, 7, 0)), tmp_path / "out")
    assert result(tmp_path / "out")["mean_difference"]["value"] == pytest.approx((0.3 - 0.3) / 2)
    assert "| mean of benchmarks |  | 65.0 % | 65.0 % | +0.0 [" in text
    two_better = compare(two(tmp_path / "x", one=(0, 30, 30, 40), other=(5, 30, 30, 35)))
    assert "- Over the 2 benchmarks, each counting alike, b is better than a: +27.5 points [" in two_better


def test_problems_are_paired_by_benchmark_and_id_and_must_have_the_same_text(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    first = [sample("m", n, rng.random() < 0.5) for n in range(40)] + [sample("only_a", 0, True)]
    second = [sample("m", n, n % 2 == 0) for n in reversed(range(3, 45))]
    second[0]["problem"] = "another one"  # problem 44, which the first does not have
    second[-1]["problem"] = second[-2]["problem"] = "another one"  # problems 3 and 4
    a, b = written(tmp_path / "a", first), written(tmp_path / "b", second)
    text = compare([a, b], tmp_path / "out")
    assert "Left out of m: 3 only in a, 5 only in b, 2 with another text." in text
    assert "Left out of only_a: 1 only in a." in text
    found = result(tmp_path / "out")["benchmarks"]
    assert list(found) == ["m"]
    assert found["m"]["problems"] == 35
    mine = np.asarray([first[n]["correct"] for n in range(5, 40)], dtype=float)
    theirs = np.asarray([n % 2 == 0 for n in range(5, 40)], dtype=float)
    assert found["m"]["difference"]["value"] == pytest.approx(theirs.mean() - mine.mean())


def test_several_samples_a_problem_are_compared_by_their_means(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    chance = rng.random(60)
    right = [rng.random(60) < chance, *(rng.random(60) < np.minimum(1, chance + 0.25) for _ in range(4))]
    a = written(tmp_path / "a", [sample("m", n, right[0][n]) for n in range(60)])
    several = [sample("m", n, right[1 + s][n], sample=s, tokens=20 + s) for s in range(4) for n in range(60)]
    b = written(tmp_path / "b", several)
    text = compare([a, b], tmp_path / "out")
    found = result(tmp_path / "out")["benchmarks"]["m"]
    assert found["samples"] == [1, 4]
    assert found["difference"]["test"] == "sign-flip"
    assert found["difference"]["value"] == pytest.approx(np.mean(right[1:]) - np.mean(right[0]))
    assert found["tokens"] == pytest.approx([10, 21.5])
    assert found["tokens_difference"]["value"] == pytest.approx(11.5)
    assert "| m | 60 × 1 and 4 |" in text
    assert "b answers m better than a" in text


@pytest.mark.slow
def test_a_run_stands_for_its_student_after_training_and_can_be_compared_with_before(tmp_path: Path) -> None:
    before, after = table(10, 60, 20, 30)
    staged = [sample("m", n, right, stage="before") for n, right in enumerate(before)]
    staged += [sample("m", n, right, stage="after") for n, right in enumerate(after)]
    run = written(tmp_path / "run", staged)
    text = compare([f"{run}@before", run], tmp_path / "out")
    assert "- run answers m better than run@before: 66.7 % against 25.0 %, +41.7 points [" in text
    assert "recorded" not in text
    assert result(tmp_path / "out")["first"]["stage"] == "before"
    assert [side.stage for side in read_sides([run, f"{run}@before"])] == ["after", "before"]
    (run / "summary.json").unlink()  # whatever was asked, was asked at both stages
    backwards = compare([f"{run}@after", f"{run}@before"])
    assert "recorded" not in backwards
    assert "- run@before answers m worse than run@after" in backwards


def test_an_evaluation_and_a_run_whose_settings_nobody_wrote_down(tmp_path: Path) -> None:
    run = written(tmp_path / "run", [sample("m", n, True, stage="after") for n in range(9)])
    a = written(tmp_path / "a", [sample("m", n, True) for n in range(9)])
    assert "recorded" not in compare([a, run])
    (run / "summary.json").unlink()
    assert "The settings of run are not recorded in its folder: check its prompt and sampling." in compare(
        [a, run]
    )


def test_other_settings_are_warned_of_and_other_seeds_are_not(tmp_path: Path) -> None:
    samples = [sample("m", n, True) for n in range(9)]
    a = written(tmp_path / "a", samples)
    seeded = written(tmp_path / "seeded", samples, SETTINGS | {"seed": 7, "samples": 4})
    assert "Beware" not in compare([a, seeded])
    other = SETTINGS | {"prompt": "{problem}\n" + "Think! " * 30, "sampling": {"temperature": 0.6}}
    text = compare([a, written(tmp_path / "other", samples, other)])
    assert (
        "Beware: the settings of m differ (prompt '{problem}' against '{problem}\\nThink! Think! Th…" in text
    )
    assert "sampling.temperature 0.0 against 0.6; sampling.max_new_tokens 256 against None)" in text


def test_completions_that_hit_the_budget_are_warned_of(tmp_path: Path) -> None:
    a = written(tmp_path / "a", [sample("m", n, n > 3) for n in range(10)])
    b = written(tmp_path / "b", [sample("m", n, n > 3, truncated=n < 3) for n in range(10)])
    text = compare([a, b])
    assert "Beware: of m's completions 30.0 % (b) and 0.0 % (a) hit the token budget" in text
    assert "budget" not in compare([a, written(tmp_path / "c", [sample("m", n, True) for n in range(10)])])


@pytest.mark.slow
def test_more_than_two_are_each_compared_with_the_first(tmp_path: Path) -> None:
    a, b = two(tmp_path, m=(10, 20, 30, 40), k=(10, 60, 30, 0))
    c = written(tmp_path / "c", [sample("m", n, n < 70) for n in range(100)])
    text = compare([a, b, c], tmp_path / "out")
    assert text.index("b against a, on") < text.index("c against a, on")
    assert "(Holm over 3 tests)" in text
    found = [result(tmp_path / "out", which)["benchmarks"] for which in (0, 1)]
    tests = [own["difference"] for one in found for own in one.values()]
    assert max(test["adjusted_p"] / test["p"] for test in tests) == pytest.approx(3)


def test_models_that_differ_nowhere_are_not_called_equal(tmp_path: Path) -> None:
    text = compare(two(tmp_path, m=(0, 0, 5, 25)), tmp_path / "out")
    assert "Nothing is established on m: 30 problems, 16.7 % against 16.7 %, +0.0 points [-9.4, +9.4]" in text
    assert "McNemar p = 1; a difference below about 25 points would mostly go unseen." in text
    few = compare(two(tmp_path / "few", m=(0, 5, 0, 0)))
    assert "Nothing is established on m: 5 problems, 100.0 % against 0.0 %" in few
    assert "so few problems can establish no difference at all." in few
    one = compare(two(tmp_path / "one", m=(0, 1, 0, 0)))
    assert "Nothing is established on m: 1 problem, " in one


def test_folders_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    samples = [sample("m", n, True) for n in range(3)]
    paths = [written(tmp_path / name / "student", samples) for name in ("x", "y")]
    assert [side.label for side in read_sides(paths)] == ["x/student", "y/student"]
    assert [side.label for side in read_sides([paths[0]])] == ["student"]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_report(tmp_path: Path) -> None:
    folders = two(tmp_path, m=(10, 20, 30, 40), k=(10, 60, 30, 0))
    assert compare(folders, resamples=500) == compare(folders, resamples=500)
    assert compare(folders, resamples=500) != compare(folders, resamples=500, seed=1)


Break = Callable[[Path, Path], list[Path | str]]


def add(folder: Path, line: str) -> Path:
    with (folder / "samples.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(line)
    return folder


def changed(**changes: Any) -> Break:
    return lambda a, b: [a, add(b, json.dumps(sample("m", 99, True) | changes))]


def without(name: str) -> Break:
    def remove(a: Path, b: Path) -> list[Path | str]:
        (b / name).unlink()
        return [a, b]

    return remove


def replaced(name: str, content: str) -> Break:
    def replace(a: Path, b: Path) -> list[Path | str]:
        (b / name).write_text(content)
        return [a, b]

    return replace


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda a, b: [a], "1 folder to compare: name two at least"),
        (lambda a, b: [a, b, a.parent / "b" / ".." / "a"], r"a is named 2 times: compare different folders"),
        (lambda a, b: [a, b / "nothing"], r"nothing: there is no such folder"),
        (lambda a, b: [a, f"{b}@befor"], r"b@befor: there is no such folder"),
        (lambda a, b: [a, f"{b}@before"], r"b is an evaluation, which has no stages: leave @before out"),
        (without("samples.jsonl"), r"b holds no samples\.jsonl: it is not the folder of an evaluation"),
        (without("results.json"), r"results\.json is missing: the evaluation did not end"),
        (replaced("results.json", "{"), r"results\.json is damaged .*JSONDecodeError"),
        (replaced("results.json", '{"benchmarks": []}'), r"results\.json is damaged"),
        (replaced("samples.jsonl", ""), r"samples\.jsonl is empty"),
        (lambda a, b: [a, add(b, '{"benchmark": "m", "id": "9')], r"samples\.jsonl, line 7: not JSON"),
        (lambda a, b: [a, add(b, "7\n")], r"samples\.jsonl, line 7: the record is int"),
        (changed(correct=None), r"samples\.jsonl, line 7: correct is None; the file is damaged"),
        (changed(sample="x"), r"samples\.jsonl, line 7: sample is 'x'"),
        (lambda a, b: [a, add(b, '{"benchmark": "m", "id": "9"}')], "line 7: problem is missing"),
        (changed(id="1", problem="problem 1"), r"line 7: sample 0 of problem 1 of m is there for the second"),
        (changed(id="1", problem="other", sample=1), r"line 7: sample 1 of problem 1 of m .* another text"),
        (changed(stage="after"), r"line 7: only some samples have a stage"),
    ],
)
def test_a_folder_that_cannot_be_compared_is_named_in_a_sentence(
    tmp_path: Path, prepare: Break, message: str
) -> None:
    a, b = two(tmp_path, m=(1, 2, 2, 1))
    with pytest.raises(UserError, match=message):
        compare(prepare(a, b), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_stage_that_a_run_lacks_is_named_with_those_it_has(tmp_path: Path) -> None:
    before = [sample("m", n, True, stage="before") for n in range(3)]
    run = written(tmp_path / "run", before)
    other = written(tmp_path / "other", before)
    with pytest.raises(UserError, match=r"no samples of the stage after, only: before; finish .*run@before"):
        compare([run, other])
    assert "Nothing is established on m" in compare([f"{run}@before", f"{other}@before"])


def test_no_problem_in_common_is_an_error_that_names_the_benchmarks(tmp_path: Path) -> None:
    a = written(tmp_path / "a", [sample("gsm8k", n, True) for n in range(3)])
    b = written(tmp_path / "b", [sample("math", n, True) for n in range(3)])
    with pytest.raises(
        UserError, match=r"a \(gsm8k\) and .*b \(math\) have no problem of the same id and text"
    ):
        compare([a, b])
    c = written(tmp_path / "c", [sample("gsm8k", n, True, problem="else") for n in range(3)])
    with pytest.raises(UserError, match="no problem of the same id and text"):
        compare([a, c])
