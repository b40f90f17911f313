"""Tests of a benchmark's score: every problem once and in order, correct figures, reported truncation."""

import json
import math
import random
import threading
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import sample

from distill.data.thoughts import without_thinking
from distill.data.trace import Example, Verdict
from distill.errors import UserError
from distill.evaluation.benchmark import Benchmark
from distill.evaluation.result import Score, by_problem, figures
from distill.evaluation.run import Asked, ask, evaluate, score_of
from distill.generation.completion_log import CompletionLog
from distill.generation.decode import generate
from distill.generation.engine import Request, Written, request_seed
from distill.generation.engines import HfEngine
from distill.generation.sampling import Sampling
from distill.io import progress
from distill.models.language_model import LanguageModel
from distill.models.lazy import LazyModel

# Of many lengths, so that sorting by length moves them about.
PROBLEMS = [Example(f"p{n}", "1+2="[: 1 + n % 4] * (1 + n * 7 % 5) + str(n), str(n % 10)) for n in range(23)]


def grade(example: Example, completion: str) -> Verdict:
    """Right where the completion's length is even: about half of them."""
    return Verdict(completion[-1:] or None, len(completion) % 2 == 0, rule="last")


def benchmark(problems: Sequence[Example] = PROBLEMS, **options: Any) -> Benchmark:
    settings: dict[str, Any] = {
        "name": "fake",
        "source": lambda path=None, limit=None: list(problems)[:limit],
        "grade": grade,
        "sampling": Sampling(max_new_tokens=7),
    }
    return Benchmark(**settings | options)


def run(lm: LanguageModel, asked: Benchmark, folder: Path | None = None, budget: int = 200) -> Score:
    engine = HfEngine(LazyModel.of(lm), token_budget=budget)
    return evaluate(ask(asked, lm.source), lm.source, engine, folder=folder, label="test")


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


@pytest.mark.slow
@pytest.mark.parametrize("budget", [1, 60, 200, 100_000])
def test_samples_come_in_the_problems_order_whatever_the_batches(lm: LanguageModel, budget: int) -> None:
    score = run(lm, benchmark(), budget=budget)
    assert [one["id"] for one in score.samples] == [problem.id for problem in PROBLEMS]
    for one, problem in zip(score.samples, PROBLEMS, strict=True):
        prompt = lm.tokenizer(problem.problem).input_ids
        (ids,) = generate(lm, [prompt], Sampling(max_new_tokens=7), seed=0)
        text = lm.tokenizer.decode(ids, skip_special_tokens=True)
        grams = list(zip(*(ids[start:] for start in range(4)), strict=False))
        right = len(text) % 2 == 0
        assert one == {
            "benchmark": "fake",
            "id": problem.id,
            "problem": problem.problem,
            "gold": problem.gold,
            "sample": 0,
            "completion": text,
            "answer": text[-1:] or None,
            "correct": right,
            "rule": "last",
            "reason": "right" if right else "wrong",
            "counts": {},
            "class": 0 if right else 1 if text else None,
            "finished": ids[-1] == 1,
            "truncated": ids[-1] != 1,
            "tokens": len(ids),
            "reference_tokens": None,
            "repetition": 1 - len(set(grams)) / len(grams) if grams else None,
            "characters": len(text),
            "word_repetition": 0.0,
            "post_answer": False,
            "several_answers": False,
            "correct_to_first_answer": right,
        }
    found = score.figures
    right = [one["correct"] for one in score.samples]
    assert 0 < sum(right) < score.problems == 23  # both kinds, or the test shows nothing
    assert found["accuracy"].value == pytest.approx(sum(right) / 23)
    assert 0 < found["unfinished"].value == found["truncated"].value < 1
    assert found["tokens"].value == pytest.approx(sum(one["tokens"] for one in score.samples) / 23)
    assert score.seconds is not None
    assert score.tokens_per_second is not None
    # Judging takes time too, but writes nothing.
    assert score.tokens_per_second > sum(one["tokens"] for one in score.samples) / score.seconds


def test_a_record_says_how_long_the_problems_own_solution_is(lm: LanguageModel) -> None:
    problems = [
        Example("a", "1+2=", "3", completion="1+2=3;#3"),
        Example("b", "2+2=", "4", completion=""),
        Example("c", "3+2=", "5"),
    ]
    score = run(lm, benchmark(problems))
    assert [one["reference_tokens"] for one in score.samples] == [
        len(lm.tokenizer("1+2=3;#3", add_special_tokens=False).input_ids),
        0,
        None,
    ]
    assert score.samples[0]["reference_tokens"] > 1


@pytest.mark.slow
def test_the_prompt_goes_around_the_problem(lm: LanguageModel) -> None:
    score = run(lm, benchmark(prompt="#{problem}#"))
    plain = run(
        lm, benchmark(prompt="never {problem}", plain_prompt="#{problem}#", system="no chat template")
    )
    for one, other, problem in zip(score.samples, plain.samples, PROBLEMS, strict=True):
        prompt = lm.tokenizer(f"#{problem.problem}#").input_ids
        (ids,) = generate(lm, [prompt], Sampling(max_new_tokens=7), seed=0)
        assert one["completion"] == other["completion"] == lm.tokenizer.decode(ids, skip_special_tokens=True)


def test_a_chat_template_gets_the_prompt_and_the_system_message(lm: LanguageModel) -> None:
    lm.tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'][0] }}#{{ m['content'] }};{% endfor %}=<think>"
    )
    asked = ask(benchmark(prompt="7{problem}", plain_prompt="8{problem}", system="9"), lm.source)
    expected = lm.tokenizer(f"s#9;u#7{PROBLEMS[0].problem};=<think>", add_special_tokens=False).input_ids
    assert asked.requests[0].prompt_ids.tolist() == expected
    assert asked.requests[0].messages == (
        {"role": "system", "content": "9"},
        {"role": "user", "content": f"7{PROBLEMS[0].problem}"},
    )


@pytest.mark.slow
def test_every_sample_is_graded_once_with_its_own_completion(lm: LanguageModel) -> None:
    graded: list[tuple[str, str]] = []

    def note(example: Example, completion: str) -> Verdict:
        graded.append((example.id, completion))
        return Verdict(None, False)

    score = run(lm, benchmark(grade=note, samples=3, sampling=Sampling(1.0, max_new_tokens=7)))
    assert sorted(graded) == sorted((one["id"], one["completion"]) for one in score.samples)
    assert len(graded) == 3 * len(PROBLEMS)
    assert [(one["id"], one["sample"]) for one in score.samples] == [
        (problem.id, number) for problem in PROBLEMS for number in range(3)
    ]


@pytest.mark.slow
def test_sampled_answers_repeat_with_their_seed_in_any_batch(lm: LanguageModel) -> None:
    def texts(seed: int, budget: int = 200, samples: int = 2) -> list[str]:
        asked = benchmark(sampling=Sampling(1.0, max_new_tokens=7), seed=seed, samples=samples)
        return [one["completion"] for one in run(lm, asked, budget=budget).samples]

    assert texts(3) == texts(3, budget=60)
    assert texts(3) != texts(4)
    assert texts(3)[::2] != texts(3)[1::2]
    assert texts(3)[::2] == texts(3, samples=3)[::3]  # more samples leave the first as they are


def test_chats_that_end_alike_are_asked_each(lm: LanguageModel) -> None:
    def chat(name: str, first: str, system: str | None = None) -> Example:
        turns = (("user", first), ("assistant", "3"), ("user", "2+1="))
        messages = tuple({"role": role, "content": text} for role, text in turns)
        return Example(name, "2+1=", "3", messages=messages, system=system)

    chats = [
        chat("a", "1+2="),
        chat("b", "2+2="),
        chat("c", "1+2=", "1"),
        chat("d", "1+2="),
        Example("e", "2+1="),
    ]
    requests = ask(benchmark(chats), lm.source).requests
    assert len({one.seed for one in requests}) == 4
    assert requests[0].seed == requests[3].seed
    assert requests[4].seed == request_seed(benchmark().seed, "2+1=", 0)  # stored answers stay valid


def test_the_models_mode_is_as_it_was(lm: LanguageModel) -> None:
    lm.model.train()
    run(lm, benchmark())
    assert lm.model.training


@pytest.mark.parametrize(("length", "fits"), [(126, True), (127, True), (128, False), (500, False)])
def test_a_prompt_that_leaves_no_room_is_refused_by_name(lm: LanguageModel, length: int, fits: bool) -> None:
    problems = [*PROBLEMS[:3], Example("long", "1" * length, "1"), *PROBLEMS[3:5]]
    if fits:
        score = run(lm, benchmark(problems))
        assert score.samples[3]["tokens"] <= 128 - length
        assert score.samples[3]["truncated"] != score.samples[3]["finished"]  # by the context
    else:
        with pytest.raises(
            UserError, match=rf"the prompt of problem long of fake has {length} tokens.*\(128\)"
        ):
            ask(benchmark(problems), lm.source)


def test_a_benchmark_without_problems_is_refused(lm: LanguageModel) -> None:
    with pytest.raises(UserError, match=r"benchmark fake has no problem: check benchmark\.path"):
        ask(benchmark([]), lm.source)


def test_ids_that_repeat_are_told_apart(lm: LanguageModel) -> None:
    problems = [Example("a", "1+1=", "2"), Example("b", "1+2=", "3"), Example("a", "2+2=", "4")]
    score = run(lm, benchmark(problems))
    assert [one["id"] for one in score.samples] == ["a@0", "b", "a@2"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "benchmark.samples=0 must be a whole number"),
        ({"samples": 2}, "benchmark.samples=2: greedy completions of a problem are all alike"),
        ({"limit": 0}, "benchmark.limit=0 must be"),
        ({"seed": -1}, "benchmark.seed=-1 must be"),
        ({"prompt": "what?"}, r"benchmark.fake.prompt='what\?' has no {problem}"),
        ({"plain_prompt": ""}, "benchmark.fake.plain_prompt='' has no {problem}"),
        ({"thinking": ["<think>"]}, "must be two texts"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((UserError, ValueError), match=message):
        benchmark(**options)


@pytest.mark.parametrize(
    ("completion", "opened", "seen"),
    [
        ("4", False, "4"),
        ("<think>2+2</think>4", False, "4"),
        ("2+2</think>4", True, "4"),
        ("2+2</think>4", False, "4"),
        ("<think>2+2", False, None),
        ("2+2", True, None),
        ("<think>a</think>b<think>c</think>d", False, "d"),
        ("<think>a</think>b<think>c", False, None),
        ("", False, ""),
        ("", True, None),
    ],
)
def test_thinking_is_not_judged_and_an_open_thought_is_no_answer(
    completion: str, opened: bool, seen: str | None
) -> None:
    assert without_thinking(completion, opened=opened) == seen
    other = completion.replace("think>", "reason]").replace("<", "[")
    assert without_thinking(other, ("[reason]", "[/reason]"), opened=opened) == seen


class Script:
    """An engine that says what it is told, and notes what it was asked."""

    name = "script"

    def __init__(self, says: Callable[[Request], str], stop_after: int | None = None) -> None:
        self.seconds = 0.0
        self.says, self.stop_after, self.asked = says, stop_after, list[Request]()

    def write(
        self, requests: Sequence[Request], sampling: Sampling
    ) -> Generator[tuple[int, Written], None, None]:
        for number in random.Random(0).sample(range(len(requests)), len(requests)):
            if self.stop_after is not None and len(self.asked) >= self.stop_after:
                raise KeyboardInterrupt
            self.asked.append(requests[number])
            self.seconds += 0.5
            text = self.says(requests[number])
            yield number, Written(None, not text.endswith("..."), text)


def test_only_what_stands_behind_the_thinking_is_judged_and_the_whole_is_kept(lm: LanguageModel) -> None:
    seen: list[str] = []

    def note(example: Example, completion: str) -> Verdict:
        seen.append(completion)
        return Verdict(completion, completion == example.gold)

    texts = {"1+1=": "<think>3</think>2", "1+2=": "<think>3", "2+2=": "4..."}
    problems = [Example(text, text, gold) for text, gold in (("1+1=", "2"), ("1+2=", "3"), ("2+2=", "4"))]
    asked = ask(benchmark(problems, grade=note), lm.source)
    engine = Script(lambda request: texts[request.messages[0]["content"]])
    score = evaluate(asked, lm.source, engine, label="test")
    assert sorted(seen) == ["2", "4..."]
    assert [one["completion"] for one in score.samples] == list(texts.values())
    assert [one["correct"] for one in score.samples] == [True, False, False]
    assert [one["reason"] for one in score.samples] == ["right", "unclosed thinking", "wrong"]
    assert [one["answer"] for one in score.samples] == ["2", None, "4..."]
    assert [(one["finished"], one["truncated"]) for one in score.samples] == [
        (True, False), (True, False), (False, True)
    ]  # fmt: skip
    assert score.figures["no answer"].value == pytest.approx(1 / 3)


def test_a_line_of_progress_counts_a_batch_as_a_whole(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At its first completion alone, a batch would seem to take as long for each of the others."""
    now, graded = [0.0], threading.Semaphore(0)
    monkeypatch.setattr(progress, "watched", lambda: False)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def note(example: Example, completion: str) -> Verdict:
        graded.release()
        return Verdict(completion, True)

    class Batches(Script):
        def write(
            self, requests: Sequence[Request], sampling: Sampling
        ) -> Generator[tuple[int, Written], None, None]:
            for first in range(0, len(requests), 8):
                if first:  # what is judged while this batch is written
                    for _ in range(8):
                        graded.acquire()
                    time.sleep(0.05)
                now[0] += 100
                for number in range(first, min(first + 8, len(requests))):
                    yield number, Written(None, True, "1")

    asked = ask(benchmark([Example(f"{n}", f"{n}", "1") for n in range(24)], grade=note), lm.source)
    evaluate(asked, lm.source, Batches(lambda request: "1"), label="test")
    lines = [line.split(" ", 1)[1] for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "test: 0 of 24 problems",
        "test: 8 of 24 problems, right 100.0%, 25.0 s per problem, 6 min 40 s left",
        "test: 16 of 24 problems, right 100.0%, 12.5 s per problem, 1 min 40 s left",
        "test: 24 of 24 problems, right 100.0%, in 5 min 0 s",
    ]


def test_thinking_is_left_out_where_its_tags_are_special_tokens(lm: LanguageModel) -> None:
    lm.tokenizer.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]"]})
    opens, closes = lm.tokenizer.convert_tokens_to_ids(["[THINK]", "[/THINK]"])
    seen: list[str] = []

    def note(example: Example, completion: str) -> Verdict:
        seen.append(completion)
        return Verdict(completion, True)

    def ids(text: str) -> list[int]:
        return lm.tokenizer(text).input_ids

    class Thinks:
        name, seconds = "thinks", 0.0
        said = ([opens, *ids("1+1="), closes, *ids("2"), 1], [opens, *ids("4")])

        def write(
            self, requests: Sequence[Request], sampling: Sampling
        ) -> Generator[tuple[int, Written], None, None]:
            for place, own in enumerate(self.said):
                yield place, Written(np.asarray(own, dtype=np.int32), own[-1] == 1)

    problems = [Example("a", "1+1=", "2"), Example("b", "2+2=", "4")]
    asked = ask(benchmark(problems, grade=note, thinking=["[THINK]", "[/THINK]"]), lm.source)
    score = evaluate(asked, lm.source, Thinks(), label="test")
    assert [one["reason"] for one in score.samples] == ["right", "unclosed thinking"]
    assert [one.strip() for one in seen] == ["2"]
    assert "[THINK]" in score.samples[0]["completion"]
    assert lm.tokenizer.eos_token not in score.samples[0]["completion"]


@pytest.mark.parametrize("stop_after", [0, 1, 7, 22, 45])
def test_a_killed_evaluation_goes_on_and_asks_nothing_twice(
    lm: LanguageModel, tmp_path: Path, stop_after: int
) -> None:
    asked = ask(benchmark(samples=2, sampling=Sampling(1.0, max_new_tokens=7)), lm.source)

    def says(request: Request) -> str:
        return str(request.seed)[-5:]

    whole = evaluate(asked, lm.source, Script(says), label="test")
    broken, rest = Script(says, stop_after), Script(says)
    with pytest.raises(KeyboardInterrupt):
        evaluate(asked, lm.source, broken, folder=tmp_path, label="test")
    score = evaluate(asked, lm.source, rest, folder=tmp_path, label="test")
    assert score.samples == whole.samples
    assert str(score.figures) == str(whole.figures)  # NaNs among them are not equal
    assert len(broken.asked) + len(rest.asked) == 46
    assert not {one.seed for one in broken.asked} & {one.seed for one in rest.asked}
    for measure in (score.seconds, score.tokens_per_second):
        assert (measure is None) == (stop_after > 0)  # a part was measured in another process
    mean = whole.figures["tokens"].value
    assert whole.tokens_per_second == pytest.approx(mean / 0.5)  # half a second each
    again = evaluate(asked, lm.source, Script(says, 0), folder=tmp_path, label="test")  # asks nothing
    assert again.samples == whole.samples


def test_more_problems_and_more_samples_go_on_with_what_there_is(lm: LanguageModel, tmp_path: Path) -> None:
    sampling = Sampling(1.0, max_new_tokens=7)
    first, second = Script(lambda request: "2"), Script(lambda request: "4")
    small = ask(benchmark(limit=5, samples=1, sampling=sampling), lm.source)
    large = ask(benchmark(samples=2, sampling=sampling), lm.source)
    evaluate(small, lm.source, first, folder=tmp_path, label="test")
    score = evaluate(large, lm.source, second, folder=tmp_path, label="test")
    assert len(first.asked) == 5
    assert len(second.asked) == 46 - 5
    assert [one["completion"] for one in score.samples] == ["2", "4"] * 5 + ["4", "4"] * 18


def test_problems_of_the_same_text_share_a_completion(lm: LanguageModel) -> None:
    problems = [Example("a", "1+1=", "2"), Example("b", "1+1=", "3")]
    engine = Script(lambda request: "2")
    score = evaluate(
        ask(benchmark(problems, grade=lambda e, c: Verdict(c, c == e.gold)), lm.source),
        lm.source,
        engine,
        label="test",
    )
    assert len(engine.asked) == 1
    assert [one["correct"] for one in score.samples] == [True, False]


@pytest.mark.parametrize("broken", [ZeroDivisionError, KeyError])
def test_a_grader_that_fails_is_not_silently_wrong(lm: LanguageModel, broken: type[Exception]) -> None:
    closed: list[bool] = []

    class Fails:
        def __call__(self, example: Example, completion: str) -> Verdict:
            raise broken

        def close(self) -> None:
            closed.append(True)

    with pytest.raises(broken):
        run(lm, benchmark(grade=Fails()))
    assert closed == [True]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("judge")]


def test_a_gold_answer_that_the_judge_cannot_read_is_named(lm: LanguageModel) -> None:
    class Reads:
        def __call__(self, example: Example, completion: str) -> Verdict:
            return Verdict(None, False)

        def readable(self, gold: str) -> bool:
            return gold != "7"

    score = run(lm, benchmark(grade=Reads()))
    assert list(score.unreadable) == [problem.id for problem in PROBLEMS if problem.gold == "7"]
    assert score.summary()["unreadable_golds"] == ["p7", "p17"]


def test_samples_of_a_problem_are_sorted_by_what_they_answer(lm: LanguageModel) -> None:
    """Right ones are one answer; others are the same by text, by number, or where the judge says so."""
    asked: list[tuple[str, str]] = []

    class Judge:
        def __call__(self, example: Example, completion: str) -> Verdict:
            answer = completion if completion != "none" else None
            return Verdict(answer, answer in ("2", "two"))

        def same(self, one: str, other: str) -> tuple[bool, str]:
            asked.append((one, other))
            return {one, other} == {"x+1", "1+x"}, ""

    says = iter(["2", "3", "3.0", "none", "x+1", "two", "1+x", " 3 ", "y", "4"])
    problem = [Example("a", "1+1=", "2")]
    many = ask(benchmark(problem, grade=Judge(), samples=10, sampling=Sampling(1.0)), lm.source)
    texts = {request.seed: next(says) for request in many.requests}
    score = evaluate(many, lm.source, Script(lambda request: texts[request.seed]), label="test")
    assert [one["class"] for one in score.samples] == [0, 1, 1, None, 2, 0, 2, 1, 3, 4]
    assert ("3", "3.0") not in asked  # numbers are compared as numbers
    found = score.figures
    assert found["accuracy"].value == pytest.approx(0.2)
    assert found["maj@10"].value == 0.0  # three say 3
    assert found["pass@10"].value == 1.0
    assert found["pass@2"].value == pytest.approx(1 - math.comb(8, 2) / math.comb(10, 2))
    assert found["agreement"].value == pytest.approx((2 * 1 + 3 * 2 + 2 * 1) / 90)
    unvoted = score_of(Asked(benchmark(problem, votes=False), problem, [], False), score.samples)
    assert not {"maj@10", "agreement", "no answer"} & set(unvoted.figures)


def test_figures_are_means_over_problems_with_their_bootstrap() -> None:
    """Against the definition: problems are drawn with replacement, with all of their samples."""
    rng = np.random.default_rng(0)
    samples = [
        sample(
            "b",
            id=str(problem),
            sample=number,
            correct=bool(rng.random() < problem / 40),
            finished=number < 3,
            truncated=number == 3,
            tokens=int(rng.integers(1, 50)),
            repetition=float(rng.random()) if number else None,
            counts={"instructions": [int(rng.integers(0, 2)), 1 + problem % 3]},
        )
        for problem in range(40)
        for number in range(4)
    ]
    for one in samples:
        one["class"] = 0 if one["correct"] else int(rng.integers(1, 3))
    found = figures(samples)
    right = np.asarray([[one["correct"] for one in own] for own in by_problem(samples)], dtype=float)
    assert found["accuracy"].value == pytest.approx(right.mean())
    assert found["pass@4"].value == pytest.approx((right.max(1)).mean())
    draws = np.random.default_rng(1).integers(0, 40, size=(20_000, 40))
    for name, each in (("accuracy", right.mean(1)), ("pass@4", right.max(1))):
        low, high = np.quantile(each[draws].mean(1), [0.025, 0.975])
        assert found[name].low == pytest.approx(low, abs=0.01)
        assert found[name].high == pytest.approx(high, abs=0.01)
    counts = [one["counts"]["instructions"] for one in samples]
    assert found["instructions"].value == pytest.approx(sum(a for a, _ in counts) / sum(b for _, b in counts))
    assert found["unfinished"].value == found["truncated"].value == 0.25
    assert found["repetition"].value == pytest.approx(np.mean([one["repetition"] or 0 for one in samples]))
    assert set(found) == {
        "accuracy", "pass@2", "pass@4", "maj@4", "agreement", "instructions", "unfinished", "truncated",
        "no answer", "repetition", "tokens",
    }  # fmt: skip


def test_none_and_all_right_have_an_interval_too() -> None:
    for correct in (False, True):
        found = figures([sample("b", id=str(n), correct=correct) for n in range(20)])["accuracy"]
        assert found.value == float(correct)
        assert found.high - found.low == pytest.approx(1 - 0.025 ** (1 / 20))  # Clopper and Pearson


def test_a_summary_is_everything_but_the_samples_in_plain_values() -> None:
    problems = [Example(str(n), "1+1=", "2") for n in range(4)]
    samples = [sample("fake", id=str(n), correct=n < 3, rule="" if n == 3 else "boxed") for n in range(4)]
    samples[3]["reason"] = "wrong"
    score = score_of(Asked(benchmark(problems), problems, [], False), samples, unreadable=["3"], seconds=2.5)
    summary = score.summary()
    assert json.loads(json.dumps(summary)) == summary
    assert (summary["problems"], summary["samples"], summary["per_problem"]) == (4, 4, 1)
    assert summary["seconds"] == 2.5
    assert summary["rules"] == {"boxed": 3, "none": 1}
    assert summary["reasons"] == {"wrong": 1}
    assert summary["unreadable_golds"] == ["3"]
    assert summary["figures"]["accuracy"]["value"] == 0.75
    assert summary["settings"]["sampling"]["max_new_tokens"] == 7


def test_completions_are_kept_under_their_own_seed(lm: LanguageModel, tmp_path: Path) -> None:
    asked = ask(benchmark(), lm.source)
    evaluate(asked, lm.source, Script(lambda request: "2"), folder=tmp_path, label="test")
    assert set(CompletionLog(tmp_path / "completions.jsonl").read()) == {one.seed for one in asked.requests}
