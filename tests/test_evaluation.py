"""A benchmark's score: every problem once and in order, an honest interval, nothing cut short unseen."""

import math
from collections.abc import Callable
from typing import Any

import pytest

import distill.evaluation
from distill.errors import UserError
from distill.evaluation import Benchmark, evaluate, summarize
from distill.generation import Sampling, generate
from distill.models import LanguageModel
from distill.traces import Example, Verdict

# Of many lengths, so that sorting by length moves them about.
PROBLEMS = [Example(f"p{n}", "1+2="[: 1 + n % 4] * (1 + n * 7 % 5), str(n % 10)) for n in range(23)]


def grade(example: Example, completion: str) -> Verdict:
    """Right where the completion's length is even: about half of them."""
    return Verdict(completion[-1:] or None, len(completion) % 2 == 0)


def benchmark(**options: Any) -> Benchmark:
    settings: dict[str, Any] = {
        "name": "fake",
        "source": lambda: list(PROBLEMS),
        "grade": grade,
        "sampling": Sampling(max_new_tokens=7),
        "batch_size": 4,
    }
    return Benchmark(**settings | options)


@pytest.fixture
def lm(teacher: LanguageModel) -> LanguageModel:
    """A model with an opinion, that ends some of its texts."""
    for parameter in teacher.model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(8)

    def push(module: Any, args: Any, output: Any) -> Any:
        output = output.clone()
        output[..., 1] += 1.0
        return output

    teacher.model.get_output_embeddings().register_forward_hook(push)
    return teacher


@pytest.mark.parametrize("batch_size", [1, 2, 5, 23, 100])
def test_samples_come_in_the_problems_order_whatever_the_batch_size(
    lm: LanguageModel, batch_size: int
) -> None:
    score = evaluate(lm, benchmark(batch_size=batch_size), label="test")
    assert [sample["id"] for sample in score.samples] == [problem.id for problem in PROBLEMS]
    for sample, problem in zip(score.samples, PROBLEMS, strict=True):
        prompt = lm.tokenizer(problem.problem).input_ids
        (ids,) = generate(lm, [prompt], Sampling(max_new_tokens=7), seed=0)
        text = lm.tokenizer.decode(ids, skip_special_tokens=True)
        assert sample == {
            "id": problem.id,
            "problem": problem.problem,
            "gold": problem.gold,
            "completion": text,
            "answer": text[-1:] or None,
            "correct": len(text) % 2 == 0,
            "finished": ids[-1] == 1,
            "tokens": len(ids),
        }
    assert 0 < score.correct < score.count == 23  # both kinds, or the test shows nothing
    assert 0 < score.unfinished < 23
    assert score.correct == sum(sample["correct"] for sample in score.samples)
    assert score.unfinished == sum(not sample["finished"] for sample in score.samples)
    assert score.mean_tokens == pytest.approx(sum(sample["tokens"] for sample in score.samples) / 23)
    assert score.accuracy == score.correct / 23
    assert score.seconds > 0


def test_the_prompt_goes_around_the_problem(lm: LanguageModel) -> None:
    score = evaluate(lm, benchmark(prompt="#{problem}#"), label="test")
    for sample, problem in zip(score.samples, PROBLEMS, strict=True):
        prompt = lm.tokenizer(f"#{problem.problem}#").input_ids
        (ids,) = generate(lm, [prompt], Sampling(max_new_tokens=7), seed=0)
        assert sample["completion"] == lm.tokenizer.decode(ids, skip_special_tokens=True)


def test_every_problem_is_graded_once_with_its_own_completion(lm: LanguageModel) -> None:
    graded: list[tuple[str, str]] = []

    def note(example: Example, completion: str) -> Verdict:
        graded.append((example.id, completion))
        return Verdict(None, False)

    score = evaluate(lm, benchmark(grade=note), label="test")
    assert sorted(graded) == sorted((sample["id"], sample["completion"]) for sample in score.samples)
    assert len(graded) == len(PROBLEMS)


def test_batches_start_with_the_longest_prompts(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []

    def watch(model: LanguageModel, prompts: list[list[int]], *args: Any, **options: Any) -> list[list[int]]:
        lengths.extend(map(len, prompts))
        return generate(model, prompts, *args, **options)

    monkeypatch.setattr(distill.evaluation, "generate", watch)
    evaluate(lm, benchmark(), label="test")
    assert lengths == sorted(lengths, reverse=True)


def test_sampled_answers_repeat_with_their_seed(lm: LanguageModel) -> None:
    def texts(seed: int) -> list[str]:
        asked = benchmark(sampling=Sampling(1.0, max_new_tokens=7), seed=seed)
        return [sample["completion"] for sample in evaluate(lm, asked, label="test").samples]

    assert texts(3) == texts(3)
    assert texts(3) != texts(4)


def test_the_models_mode_is_as_it_was(lm: LanguageModel) -> None:
    lm.model.train()
    evaluate(lm, benchmark(), label="test")
    assert lm.model.training


@pytest.mark.parametrize(("length", "fits"), [(126, True), (127, True), (128, False), (500, False)])
def test_a_prompt_that_leaves_no_room_is_refused_by_name(lm: LanguageModel, length: int, fits: bool) -> None:
    problems = [*PROBLEMS[:3], Example("long", "1" * length, "1"), *PROBLEMS[3:5]]
    asked = benchmark(source=lambda: problems)
    if fits:
        score = evaluate(lm, asked, label="test")
        assert score.samples[3]["tokens"] <= 128 - length
    else:
        with pytest.raises(
            UserError, match=rf"fake: the prompt of problem long has {length} tokens.*\(128\)"
        ):
            evaluate(lm, asked, label="test")


def test_a_benchmark_without_problems_is_refused(lm: LanguageModel) -> None:
    with pytest.raises(UserError, match=r"benchmark fake has no problem: check benchmark\.path"):
        evaluate(lm, benchmark(source=list), label="test")


def wilson(correct: int, count: int) -> tuple[float, float]:
    """Wilson (1927), by hand."""
    z, p = 1.959963984540054, correct / count
    middle = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def samples(correct: int, count: int) -> list[dict[str, Any]]:
    return [{"correct": n < correct, "finished": n % 3 > 0, "tokens": n} for n in range(count)]


@pytest.mark.parametrize(
    ("correct", "count"), [(0, 1), (1, 1), (0, 10), (10, 10), (1, 10), (7, 23), (250, 500), (1318, 1319)]
)
def test_the_interval_is_wilsons(correct: int, count: int) -> None:
    score = summarize(samples(correct, count), seconds=2.5)
    assert score.interval == pytest.approx(wilson(correct, count), abs=1e-9)
    assert 0 <= score.interval[0] <= score.accuracy <= score.interval[1] <= 1
    assert score.interval[1] - score.interval[0] > 0  # also where none or all are right
    assert (score.correct, score.count) == (correct, count)


def test_none_and_all_right_are_summarised() -> None:
    none, every = summarize(samples(0, 20), seconds=0.0), summarize(samples(20, 20), seconds=0.0)
    assert (none.accuracy, every.accuracy) == (0.0, 1.0)
    assert none.interval[0] == 0.0
    assert every.interval[1] == 1.0
    assert none.interval[1] == pytest.approx(0.1611, abs=1e-4)
    assert every.interval[0] == pytest.approx(0.8389, abs=1e-4)
    assert none.unfinished == 7
    assert none.mean_tokens == 9.5


def test_a_summary_is_everything_but_the_samples_in_plain_values() -> None:
    import json

    summary = summarize(samples(3, 4), seconds=2.5).summary()
    assert json.loads(json.dumps(summary)) == summary
    assert summary == {
        "accuracy": 0.75,
        "interval_95": pytest.approx(list(wilson(3, 4))),
        "correct": 3,
        "count": 4,
        "unfinished": 2,
        "mean_tokens": 1.5,
        "seconds": 2.5,
    }


@pytest.mark.parametrize("broken", [ZeroDivisionError, KeyError])
def test_a_grader_that_fails_is_not_silently_wrong(lm: LanguageModel, broken: type[Exception]) -> None:
    def fail(example: Example, completion: str) -> Verdict:
        raise broken

    failing: Callable[[Example, str], Verdict] = fail
    with pytest.raises(broken):
        evaluate(lm, benchmark(grade=failing), label="test")
