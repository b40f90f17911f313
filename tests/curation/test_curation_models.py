"""Tests of curation steps that use models: suitability for the student, rewriting by student and teacher."""

import inspect
import itertools
import math
import random
import re
import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from distill.benchmarks import arithmetic
from distill.curation import backtracking
from distill.curation.backtracking import motab
from distill.curation.boundary import Boundary, step_starts
from distill.curation.fit import answer_tokens, compact, min_rsr
from distill.curation.rewriting import self_data
from distill.curation.step import CurationContext, Outcome, Record
from distill.data.prompt import Prompt, teacher_prompt
from distill.data.tokenizers import tokenizer_fingerprint
from distill.data.trace import Example, Verdict
from distill.data.trace_set import COLUMNS, example_of, read_records, write_records
from distill.errors import UserError
from distill.generation.decode import generate
from distill.generation.sampling import Sampling
from distill.models.find import find_model
from distill.models.language_model import LanguageModel
from distill.models.lazy import LazyModel
from distill.teacher import completions as teachers
from distill.teacher.token_stats import TokenStats, set_rsr
from distill.tiny import task
from distill.training.recipe import TraceRecipe

CONF = Path(__file__).resolve().parents[2] / "conf" / "curation"
GREEDY = Sampling(max_new_tokens=48)
INFORMED = "{solution};{problem}"  # as data=arithmetic has it


@pytest.fixture(scope="module")
def embedded() -> dict[str, LazyModel]:
    """The embedded pair."""
    return {role: lazy(f"package:distill/tiny/{role}") for role in ("student", "teacher")}


def lazy(name: str) -> LazyModel:
    return LazyModel(find_model(name, key="model"), "cpu")


def context_of(models: dict[str, LazyModel], folder: Path, **options: Any) -> CurationContext:
    named: Any = models
    given: dict[str, Any] = {"grade": arithmetic.grade, "say": lambda line: None} | options
    return CurationContext(named, TraceRecipe(lambda: []), cache=folder / "cache", **given)


def record(problem: str, completion: str, teacher: str = "A", **more: Any) -> Record:
    """A right trace of the embedded task."""
    tokenizer = tokenizer_of()
    row: Record = dict.fromkeys(COLUMNS)
    row |= {
        "id": f"{problem}#0",
        "problem": problem,
        "messages": [{"role": "user", "content": problem}],
        "completion": completion,
        "gold": task.answer(problem),
        "answer": task.extract_answer(completion),
        "correct": True,
        "reason": "right",
        "pass_rate": 1.0,
        "finished": True,
        "prompt_ids": tokenizer(problem).input_ids,
        "completion_ids": [*tokenizer(completion).input_ids, 1],
        "ids_from": "text",
        "problem_id": problem,
        "sample": 0,
        "teacher": teacher,
        "engine": "import",
        "weight": 1.0,
        "learn_from": 0,
        "tokenizer": tokenizer_fingerprint(tokenizer),
    }
    return row | more


def tokenizer_of() -> Any:
    return find_model("package:distill/tiny/student", key="model").tokenizer


def several(count: int) -> list[Record]:
    """Three writers' traces of each problem: one step at a time, two, and a wrong beginning."""
    found = []
    for problem in task.problems(count, split="train", operations=(2, 5), seed=3):
        single = task.write_solution(problem, "single")
        found.append(record(problem, single, "A"))
        found.append(record(problem, task.write_solution(problem, "double"), "B"))
        found.append(record(problem, "0+0=0;" + single, "C"))
    random.Random(0).shuffle(found)
    return found


@torch.no_grad()
def logits_of(lm: LanguageModel, ids: Sequence[int]) -> list[list[float]]:
    """What predicts each token but the first, over all real tokens."""
    found = lm.model(input_ids=torch.tensor([list(ids)])).logits[0, :-1, : lm.vocab_size]
    return found.double().tolist()


def loop(
    lm: LanguageModel, prompt: Sequence[int], completion: Sequence[int]
) -> list[tuple[float, int, float]]:
    """Surprisal, rank and entropy of every completion token, in plain Python."""
    ids = [*prompt, *completion]
    found = []
    for token, logits in list(zip(ids[1:], logits_of(lm, ids), strict=True))[len(prompt) - 1 :]:
        total = math.log(math.fsum(math.exp(value) for value in logits))
        probabilities = [math.exp(value - total) for value in logits]
        rank = 1 + sum(value > logits[token] for value in logits)
        found.append((total - logits[token], rank, -math.fsum(p * math.log(p) for p in probabilities if p)))
    return found


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def test_the_ratio_of_a_trace_and_of_a_set_are_the_authors() -> None:
    """Sums of clipped ranks over sums of surprisals; of a set, sums of the traces' means."""
    traces = [
        ([1, 5, 250], [0.5, 2.0, 9.5]),
        ([1, 1], [0.25, 0.75]),
        ([2, 100, 101, 7], [1.0, 5.0, 6.0, 2.0]),
    ]
    scores = [
        TokenStats(-np.float32(nlls), np.int32(ranks), np.zeros(len(ranks), np.float32))
        for ranks, nlls in traces
    ]
    assert [one.rsr(100) for one in scores] == pytest.approx([106 / 12, 2 / 1, 209 / 14])
    assert scores[0].rsr(4) == pytest.approx(9 / 12)
    assert set_rsr(scores, 100) == pytest.approx((106 / 3 + 1 + 209 / 4) / (4 + 0.5 + 3.5))


@pytest.mark.slow
@pytest.mark.parametrize("limit", [100, 4])  # the vocabulary has 18 tokens
def test_of_each_problem_the_trace_with_the_lowest_ratio_is_kept(
    tiny_pair: tuple[Path, Path], tmp_path: Path, limit: int
) -> None:
    context = context_of({"student": lazy(str(tiny_pair[0]))}, tmp_path, grade=None)
    records = several(6)
    lm = context.models["student"].get()
    ratios, means = {}, {}
    for row in records:
        found = loop(lm, row["prompt_ids"], row["completion_ids"])
        ranks, nlls = [min(rank, limit) for _, rank, _ in found], [nll for nll, _, _ in found]
        ratios[id(row)] = math.fsum(ranks) / math.fsum(nlls)
        means[id(row)] = mean(ranks), mean(nlls)
    scores = context.token_stats(records, context.models["student"])
    assert [one.rsr(limit) for one in scores] == pytest.approx([ratios[id(r)] for r in records], rel=1e-5)
    for keep in (1, 2):
        outcome = min_rsr(records, context, keep=keep, limit=limit)
        best = []
        for problem in {row["problem"] for row in records}:
            best += sorted((r for r in records if r["problem"] == problem), key=lambda r: ratios[id(r)])[
                :keep
            ]
        assert outcome.kept == [row for row in records if row in best]
        assert sum(outcome.left_out.values()) == 18 - 6 * keep
        for name, rows in (("rsr", records), ("rsr_kept", outcome.kept)):
            expected = math.fsum(means[id(r)][0] for r in rows) / math.fsum(means[id(r)][1] for r in rows)
            assert outcome.figures[name] == pytest.approx(expected, rel=1e-5)
        assert outcome.figures["rsr_kept"] < outcome.figures["rsr"]
        kept = outcome.figures["kept_by_teacher"]
        assert kept == {name: sum(r["teacher"] == name for r in best) for name in kept}
        assert sum(kept.values()) == 6 * keep
    assert min_rsr([], context).kept == []


def standard(values: Sequence[float]) -> list[float]:
    spread = statistics.pstdev(values)
    return [(value - statistics.fmean(values)) / spread if spread > 1e-4 else 0.0 for value in values]


def grams(text: str, size: int) -> set[str]:
    return {text[at : at + size] for at in range(len(text) - size + 1)}  # one sign is one word here


@pytest.mark.slow
@pytest.mark.parametrize(
    "scales", [(1.0, 1.0, 1.0), (0.0, 2.0, 0.5), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]
)
def test_weights_are_their_definition(
    embedded: dict[str, LazyModel], tmp_path: Path, scales: tuple[float, float, float]
) -> None:
    context, records = context_of(embedded, tmp_path), several(5)
    records.append(record("1+2=", "1+2=3;#3"))  # alone
    alpha, beta, gamma = scales
    outcome = compact(records, context, alpha=alpha, beta=beta, gamma=gamma, metric="words")
    lm = embedded["student"].get()

    def gold_logprob(row: Record, before: str) -> float:
        ids = [*row["prompt_ids"], *lm.tokenizer(before).input_ids] if before else row["prompt_ids"]
        ((nll, _, _),) = loop(lm, ids, lm.tokenizer(row["gold"]).input_ids)
        return -nll

    expected: dict[int, float] = {id(records[-1]): 1.0}
    metrics: dict[str, dict[str, list[float]]] = {name: {} for name in ("consensus", "gain", "nll")}
    for problem in {row["problem"] for row in records[:-1]}:
        same = [row for row in records if row["problem"] == problem]
        runs = [grams(row["completion"], 3) for row in same]
        alike = [
            mean([len(own & other) / len(own | other) for other in runs if other is not own]) for own in runs
        ]
        gains = [gold_logprob(r, r["completion"][:-1]) - gold_logprob(r, "") for r in same]
        nlls = [mean([nll for nll, _, _ in loop(lm, r["prompt_ids"], r["completion_ids"])]) for r in same]
        for name, values in zip(metrics, (alike, gains, nlls), strict=True):
            for row, value in zip(same, values, strict=True):
                metrics[name].setdefault(row["teacher"], []).append(value)
        scores = [
            alpha * c + beta * g - gamma * n
            for c, g, n in zip(standard(alike), standard(gains), standard(nlls), strict=True)
        ]
        total = math.fsum(math.exp(score) for score in scores)
        expected |= {id(r): 3 * math.exp(score) / total for r, score in zip(same, scores, strict=True)}
    weights = [row["weight"] for row in outcome.kept]
    assert weights == pytest.approx([expected[id(row)] for row in records], rel=2e-3)
    assert math.fsum(weights) == pytest.approx(len(records))
    assert [row | {"weight": 1.0} for row in outcome.kept] == records
    assert {row["weight"] for row in records} == {1.0}  # copies were changed
    figures = outcome.figures
    assert figures["effective_sample_size"] == pytest.approx(sum(weights) ** 2 / sum(w * w for w in weights))
    of_b = [row["weight"] for row in outcome.kept if row["teacher"] == "B"]
    assert figures["weight_by_teacher"]["B"] == pytest.approx(mean(of_b))
    assert figures["weighted_problems"] == 5
    for (name, values), scale in zip(metrics.items(), scales, strict=True):
        means = {teacher: pytest.approx(mean(own), rel=1e-4) for teacher, own in values.items()}
        assert figures.get(f"{name}_by_teacher") == (means if scale else None)


@dataclass(frozen=True)
class ScoredContext(CurationContext):
    """A student that finds every trace as surprising as its weight's column says."""

    surprisals: tuple[float, ...] = ()

    def token_stats(self, records: Sequence[Record], model: LazyModel) -> list[TokenStats]:
        one = np.ones(1)
        return [TokenStats(-np.float32([nll]), one, one) for nll in self.surprisals]


def test_a_copied_trace_gains_and_a_surprising_one_loses(
    embedded: dict[str, LazyModel], tmp_path: Path
) -> None:
    problem = "3+7*2-5="
    single, double = (task.write_solution(problem, style) for style in ("single", "double"))
    context = context_of(embedded, tmp_path)
    other = "3+0=3;3+2=5;#5"

    def weights(rows: Sequence[Record], where: CurationContext = context, **scales: float) -> list[float]:
        return [row["weight"] for row in compact(rows, where, metric="words", **scales).kept]

    apart = [record(problem, text, name) for text, name in ((single, "A"), (double, "B"), (other, "C"))]
    copied = [*apart, record(problem, double, "D")]
    only = {"alpha": 1.0, "beta": 0.0, "gamma": 0.0}
    before, after = weights(apart, **only), weights(copied, **only)
    assert after[1] == pytest.approx(after[3]) == max(after)
    assert after[1] / after[0] > before[1] / before[0]
    last = math.inf
    for nll in (0.1, 0.5, 0.9, 4.0):
        scored = ScoredContext(context.models, context.recipe, None, tmp_path, surprisals=(0.5, nll, 1.0))
        found = weights(apart, scored, alpha=0.0, beta=0.0, gamma=1.0)
        assert found[1] < last
        assert math.fsum(found) == pytest.approx(3)
        last = found[1]


@pytest.mark.slow
def test_candidates_that_do_not_differ_weigh_the_same_and_weights_multiply(
    embedded: dict[str, LazyModel], tmp_path: Path
) -> None:
    context = context_of(embedded, tmp_path)
    problem, text = "3+7=", "3+7=0;#0"
    alike = [record(problem, text, name) for name in "ABC"]
    assert [row["weight"] for row in compact(alike, context).kept] == [1.0, 1.0, 1.0]
    # A difference in the last bits is none.
    noisy = ScoredContext(
        context.models, context.recipe, None, tmp_path, surprisals=(0.5, 0.500001, 0.499999)
    )
    found = compact(alike, noisy, alpha=0.0, beta=0.0)
    assert [row["weight"] for row in found.kept] == [1.0, 1.0, 1.0]
    weighted = [row | {"weight": 0.25} for row in alike[:1]]
    assert compact(weighted, context).kept == weighted
    assert [row["weight"] for row in compact([row | {"weight": 0.5} for row in alike], context).kept] == [
        0.5
    ] * 3
    assert compact([], context).figures["effective_sample_size"] == 0
    with pytest.raises(UserError, match=r"behind trace 3\+7=#0, whose problem has no gold answer.*beta=0"):
        compact([row | {"gold": None} for row in alike], context, metric="words")
    assert len(compact([row | {"gold": None} for row in alike], context, beta=0.0).kept) == 3
    with pytest.raises(UserError, match=r"curation.compact.gamma=-1.0 must be a number, at least 0"):
        compact(alike, context, gamma=-1.0)


def test_an_answer_begins_where_it_changes_the_tokens() -> None:
    def tokenizer(text: str, **_: Any) -> Any:
        return SimpleNamespace(input_ids=[len(word) for word in re.findall(r" ?\d+| |\w+", text)])

    ids = {before: answer_tokens(tokenizer, [0], before, "42") for before in ("is ", "is", "", "is  ")}
    assert [(a.tolist(), b.tolist()) for a, b in ids.values()] == [
        ([2], [3]),  # "is", " 42"
        ([], [4]),  # "is42" is one word
        ([], [2]),
        ([2, 1], [3]),
    ]


def greedily(lm: LanguageModel, ids: Sequence[int], longest: int) -> list[int]:
    written: list[int] = []
    while len(written) < longest and (not written or written[-1] not in lm.end_ids):
        logits = lm.model(input_ids=torch.tensor([[*ids, *written]])).logits[0, -1, : lm.vocab_size]
        written.append(int(logits.argmax()))
    return written


def even(example: Example, completion: str) -> Verdict:
    """Another judge than the task's: the embedded student has no idea of what a reference is."""
    return Verdict(completion[-1:], len(completion) % 2 == 0, f"{example.gold} was asked")


@pytest.mark.slow
def test_right_rewrites_take_the_targets_place(embedded: dict[str, LazyModel], tmp_path: Path) -> None:
    context = context_of(embedded, tmp_path, grade=even)
    own = {"learn_from": 4, "weight": 0.5, "prompt_ids": [5, 5], "messages": []}
    records = [row | own for row in several(6)]
    outcome = self_data(records, context, prompt=INFORMED, sampling=GREEDY, batch_size=7)
    lm = embedded["student"].get()
    rewritten = 0
    for before, after in zip(records, outcome.kept, strict=True):
        prompt = lm.tokenizer(f"{before['completion']};{before['problem']}").input_ids
        with torch.no_grad():
            expected = greedily(lm, prompt, 48)
        text = lm.tokenizer.decode(expected, skip_special_tokens=True)
        right = expected[-1] == 1 and len(text) % 2 == 0 and text
        rewritten += bool(right)
        if not right:
            assert after is before
            continue
        assert after["completion_ids"] == expected
        assert after["completion"] == text
        assert after["prompt_ids"] == lm.tokenizer(before["problem"]).input_ids
        assert after["messages"] == [{"role": "user", "content": before["problem"]}]
        assert (after["teacher"], after["ids_from"]) == ("package:distill/tiny/student", "engine")
        assert (after["answer"], after["correct"]) == (text[-1:], True)
        assert (after["learn_from"], after["weight"]) == (0, 0.5)
        assert after["sampling"]["max_new_tokens"] == 48
        (trace,) = context.traces([after], embedded["student"])
        assert trace.completion_ids.tolist() == expected
    assert 0 < rewritten < len(records)
    assert outcome.figures["rewritten"] == rewritten
    assert sum(outcome.figures["own_target_by_reason"].values()) == len(records) - rewritten
    assert outcome.figures["own_target_by_reason"]["empty"] > 0  # which this judge would call right
    write_records(tmp_path / "set.parquet", outcome.kept)
    assert [r["completion"] for r in read_records(tmp_path / "set.parquet")] == [
        r["completion"] for r in outcome.kept
    ]


@pytest.mark.slow
def test_a_target_that_is_not_rewritten_stays_and_the_reason_is_counted(
    embedded: dict[str, LazyModel], tmp_path: Path
) -> None:
    context, records = context_of(embedded, tmp_path), several(2)
    long = record("1+2=", "1+2=3;" * 25 + "#3")

    def reasons(rows: list[Record], **options: Any) -> dict[str, int]:
        given: dict[str, Any] = {"prompt": INFORMED, "sampling": GREEDY} | options
        outcome = self_data(rows, context, **given)
        if not outcome.figures["rewritten"]:
            assert outcome.kept == rows
        return outcome.figures["own_target_by_reason"]

    assert reasons([long]) == {"prompt leaves no room": 1}
    assert reasons(records, sampling=Sampling(max_new_tokens=3)) == {"no end": 6}
    said = reasons(records, forbidden=["#"])
    assert said["speaks of the reference"] + said.get("no end", 0) == 6
    assert reasons([row | {"gold": "11"} for row in records], forbidden=[]).keys() <= {"wrong", "no end"}
    assert self_data([], context, prompt=INFORMED).figures["share_rewritten"] is None


def test_rewriting_refuses_what_it_cannot_do(embedded: dict[str, LazyModel], tmp_path: Path) -> None:
    context, records = context_of(embedded, tmp_path), several(1)
    with pytest.raises(UserError, match=r"no gold answer: name the data's \(data.fields.gold\)"):
        self_data([records[0], records[1] | {"gold": None}], context, prompt=INFORMED)
    with pytest.raises(UserError, match=r"self_data needs a grader: set check.answer"):
        self_data(records, context_of(embedded, tmp_path, grade=None), prompt=INFORMED)
    with pytest.raises(UserError, match=r"curation.self_data.prompt='\{problem\}' needs"):
        self_data(records, context, prompt="{problem}")
    with pytest.raises(UserError, match=r"cannot spell"):
        self_data(records, context)  # the default is English


def scored(*steps: tuple[list[float], list[float]]) -> tuple[TokenStats, list[int]]:
    """Steps of surprisals and entropies."""
    nlls, entropies = ([value for step in steps for value in step[part]] for part in (0, 1))
    ends = list(itertools.accumulate(len(nlls) for nlls, _ in steps))
    return TokenStats(-np.float32(nlls), np.ones(len(nlls), np.int32), np.float32(entropies)), [
        0,
        *ends[:-1],
    ]


def test_a_step_strays_where_the_authors_value_is_below_their_boundary() -> None:
    generator = np.random.default_rng(0)
    strayed = 0
    for _ in range(200):
        steps = [
            (generator.exponential(1.2, size).tolist(), generator.exponential(0.4, size).tolist())
            for size in generator.integers(1, 5, generator.integers(1, 5))
        ]
        scores, starts = scored(*steps)
        for entropy in ("step", "start"):
            values, limits = [], []
            for nlls, doubts in steps:  # V_T and ε(s) of the authors, with ε₀ = .2 and θ = .8
                values.append(math.exp(-mean(nlls)))
                limits.append(0.2 * math.exp(-0.8 * (doubts[0] if entropy == "start" else mean(doubts))))
            breach = next((n for n, (v, e) in enumerate(zip(values, limits, strict=True)) if v < e), None)
            falls = [(values[k] - values[k - 1], k) for k in range(1, (breach or 0) + 1)]
            for back_to, step in (("safe", breach), ("fall", min(falls)[1] if falls else breach)):
                boundary = Boundary(-math.log(0.2), 0.8, entropy, back_to)
                found = boundary.breach(scores, starts)
                assert (found and found.stays) == (None if step is None else starts[step])
                if found is not None and breach is not None:
                    assert found.through == [*starts, len(scores)][breach + 1]
                strayed += step is not None
    assert 100 < strayed < 700
    assert Boundary(0.0).breach(*scored(([0.5], [0.5]))) is None  # only more than the bound strays


def test_steps_end_behind_their_separator_and_with_the_completion() -> None:
    ids = np.asarray([4, 9, 9, 5, 9], dtype=np.int32)
    assert step_starts(ids, {9}) == [0, 2, 3]
    assert step_starts(ids[:1], {9}) == [0]


@pytest.fixture(scope="module")
def backtracked(
    embedded: dict[str, LazyModel], tmp_path_factory: pytest.TempPathFactory
) -> tuple[CurationContext, Outcome]:
    """Greedily, of 16 problems."""
    context = context_of(embedded, tmp_path_factory.mktemp("motab"))
    return context, motab(
        several(16), context, separator=";", sampling=GREEDY, correction=GREEDY, batch_size=6
    )


@pytest.mark.slow
@torch.no_grad()
def test_backtracking_is_asking_the_teacher_after_each_step(
    backtracked: tuple[CurationContext, Outcome],
) -> None:
    """The student writes token by token; after each step both numbers come from a pass over that prefix."""
    context, outcome = backtracked
    student, teacher = (context.models[role].get() for role in ("student", "teacher"))
    kept = {row["problem"]: row for row in outcome.kept}
    (semicolon,) = student.tokenizer(";").input_ids
    strayed, places, right, alone = 0, [], 0, 0
    problems = list(dict.fromkeys(row["problem"] for row in several(16)))
    for problem in problems:
        prompt = student.tokenizer(problem).input_ids
        written: list[int] = []
        while len(written) < 48 and 1 not in written:
            before = len(written)
            while len(written) < 48 and not (len(written) > before and written[-1] in (1, semicolon)):
                written += greedily(student, [*prompt, *written], 1)
            numbers = loop(teacher, [*prompt, *written[:before]], written[before:])
            surprisal, entropy = (mean([token[part] for token in numbers]) for part in (0, 2))
            assert abs(surprisal - entropy - 1.6) > 1e-3
            if surprisal > entropy + 1.6:
                strayed += 1
                whole = greedily(student, prompt, 48)
                places.append(before / len(whole))
                alone += task.is_correct(problem, student.tokenizer.decode(whole[:-1]))
                suffix = greedily(teacher, [*prompt, *written[:before]], 48)
                expected = [*written[:before], *suffix], before, "package:distill/tiny/teacher"
                break
        else:
            expected = written, 0, "package:distill/tiny/student"
        if task.is_correct(problem, student.tokenizer.decode(expected[0], skip_special_tokens=True)):
            right += 1
            row = kept.pop(problem)
            assert (row["completion_ids"], row["learn_from"], row["teacher"]) == expected
    assert not kept
    assert 3 < strayed < 13
    figures = outcome.figures
    assert figures["share_strayed"] == strayed / 16
    assert figures["mean_share_that_stays"] == pytest.approx(mean(places))
    assert figures["right"] == right / 16
    assert figures["right_strayed_alone"] == alone / strayed
    assert figures["right_strayed_corrected"] > figures["right_strayed_alone"]
    assert [row["problem"] for row in outcome.kept] == [
        p for p in problems if p in {r["problem"] for r in outcome.kept}
    ]


@pytest.mark.slow
def test_what_is_kept_is_right_and_only_the_teachers_part_is_learned(
    backtracked: tuple[CurationContext, Outcome], tmp_path: Path
) -> None:
    context, outcome = backtracked
    tokenizer = tokenizer_of()
    path = tmp_path / "set.parquet"
    write_records(path, outcome.kept)
    rows = read_records(path)
    corrected = [row for row in rows if row["learn_from"]]
    assert corrected
    for row, trace in zip(rows, context.traces(rows, context.models["student"]), strict=True):
        assert arithmetic.grade(example_of(row), row["completion"]).correct
        assert row["correct"]
        assert row["finished"]
        assert row["gold"] == task.answer(row["problem"])
        at = row["learn_from"]
        prefix = tokenizer.decode(row["completion_ids"][:at])
        assert at == 0 or prefix.endswith(";")
        assert trace.prompt_ids.tolist() == tokenizer(row["problem"] + prefix).input_ids
        assert trace.completion_ids.tolist() == row["completion_ids"][at:]
        assert row["completion"].startswith(prefix)
    loose = motab(several(16), context, separator=";", margin=50.0, sampling=GREEDY, batch_size=6)
    assert loose.figures["share_strayed"] == 0
    assert 0 < len(loose.kept) == 16 - loose.left_out["wrong"] < 16
    assert all(arithmetic.grade(example_of(row), row["completion"]).correct for row in loose.kept)


@pytest.mark.slow
def test_the_teacher_reads_and_goes_on_under_its_own_prompt(
    embedded: dict[str, LazyModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = Prompt("{problem}")
    recipe = TraceRecipe(list, teacher_prompt=teacher_prompt(student, user=";{problem}"))
    context = replace(context_of(embedded, tmp_path), recipe=recipe)
    asked: list[tuple[LazyModel, list[str]]] = []
    tokenizer = tokenizer_of()

    def spy(name: str, prompts_of: Callable[..., Any]) -> None:
        real = getattr(backtracking, name)

        def spying(model: LazyModel, *given: Any, **options: Any) -> Any:
            asked.append((model, [tokenizer.decode(ids) for ids in prompts_of(*given, **options)]))
            return real(model, *given, **options)

        monkeypatch.setattr(backtracking, name, spying)

    spy("token_stats", lambda traces, **_: [trace.prompt_ids for trace in traces])
    spy("sample_completions", lambda prompts, **_: prompts)
    records = several(6)
    outcome = motab(records, context, separator=";", sampling=GREEDY, correction=GREEDY, margin=0.5)
    problems = tuple({record["problem"] for record in records})
    by = {
        who: [text for model, texts in asked if model is embedded[who] for text in texts] for who in embedded
    }
    assert all(text.startswith(problems) for text in by["student"])
    assert len(by["teacher"]) > 6  # it reads all, and goes on with some
    assert all(text[0] == ";" and text[1:].startswith(problems) for text in by["teacher"])
    assert all(tokenizer.decode(row["prompt_ids"]) == row["problem"] for row in outcome.kept)


@pytest.mark.slow
def test_a_student_that_writes_as_the_teacher_needs_no_help(
    embedded: dict[str, LazyModel], tmp_path: Path
) -> None:
    context = context_of({"student": embedded["teacher"], "teacher": embedded["teacher"]}, tmp_path)
    options: Any = {
        "separator": ";",
        "margin": 50.0,
        "samples": 2,
        "sampling": Sampling(1.0, max_new_tokens=48),
    }
    outcome = motab(several(5), context, **options)
    assert outcome.figures["share_strayed"] == 0
    assert outcome.figures["right_strayed_corrected"] is None
    assert {row["learn_from"] for row in outcome.kept} == {0}
    assert len({row["id"] for row in outcome.kept}) == len(outcome.kept) > 5
    for row in outcome.kept:
        same = [other for other in outcome.kept if other["problem"] == row["problem"]]
        assert row["pass_rate"] == len(same) / 2
    bare = motab(several(5), context, **options, keep_unaided=False)
    assert bare.kept == []
    assert bare.left_out["student needed no help"] == len(outcome.kept)
    assert motab([], context, separator=";").kept == []


class Killed(BaseException):
    """What no code expects."""


@pytest.mark.slow
def test_backtracking_killed_between_batches_goes_on_behind_them(
    embedded: dict[str, LazyModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: Any = {"separator": ";", "batch_size": 3, "samples": 2}
    options |= {"sampling": Sampling(1.0, max_new_tokens=48), "correction": Sampling(0.8, max_new_tokens=48)}
    records = several(8)
    write = generate
    asked: list[int] = []

    def mortal(*args: Any, **more: Any) -> Any:
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        asked.append(len(args[1]))
        return write(*args, **more)

    monkeypatch.setattr(teachers, "generate", mortal)
    left = [1_000]
    clean = motab(records, context_of(embedded, tmp_path / "clean"), **options)
    batches = asked.copy()
    asked.clear()
    deaths = 0
    while True:
        left = [1]
        try:
            resumed = motab(records, context_of(embedded, tmp_path / "killed"), **options)
            break
        except Killed:
            deaths += 1
            assert deaths <= len(batches), "what was written is written again"
    assert deaths == len(batches) - 1 > 4
    assert asked == batches  # nothing is written twice
    assert resumed == clean
    assert clean.figures["written"] == 16
    monkeypatch.setattr(teachers, "generate", write)
    other = motab(records, context_of(embedded, tmp_path / "clean", seed=1), **options)
    assert [r["completion"] for r in other.kept] != [r["completion"] for r in clean.kept]


def test_backtracking_refuses_what_it_cannot_do(
    embedded: dict[str, LazyModel], tmp_path: Path, tiny_pair: tuple[Path, Path], permuted_tokenizer: Any
) -> None:
    context, records = context_of(embedded, tmp_path), several(1)
    with pytest.raises(UserError, match=r"curation.motab.separator='\\n': no token of .*data.step_separator"):
        motab(records, context)
    with pytest.raises(UserError, match=r"curation.motab.separator='': no token"):
        motab(records, context, separator="")
    with pytest.raises(UserError, match=r"problem of trace .*no gold answer"):
        motab([row | {"gold": None} for row in records], context, separator=";")
    with pytest.raises(UserError, match=r"samples=2 with sampling.temperature=0"):
        motab(records, context, separator=";", samples=2, sampling=GREEDY)
    with pytest.raises(UserError, match=r"motab needs the teacher: set model.teacher="):
        motab(records, context_of({"student": embedded["student"]}, tmp_path), separator=";")
    with pytest.raises(UserError, match=r"curation.motab.margin=-0.1 must be a number, at least 0"):
        motab(records, context, separator=";", margin=-0.1)
    other = tmp_path / "other"
    shutil.copytree(tiny_pair[1], other)
    permuted_tokenizer.save_pretrained(other)
    pair = {"student": lazy(str(tiny_pair[0])), "teacher": lazy(str(other))}
    with pytest.raises(UserError, match=r"but the vocabularies differ .*: take two models of one family"):
        motab(records, context_of(pair, tmp_path), separator=";")


@pytest.mark.slow
def test_problems_that_leave_no_room_are_left_out(embedded: dict[str, LazyModel], tmp_path: Path) -> None:
    long = "1" + "+1" * 70 + "="
    short = several(1)[0]
    rows = [record(long, "1+1=2;#2", gold="1"), short]
    outcome = motab(rows, context_of(embedded, tmp_path), separator=";", sampling=GREEDY, correction=GREEDY)
    assert outcome.left_out == {"prompt leaves no room": 1}
    assert [row["problem"] for row in outcome.kept] == [short["problem"]]


@pytest.mark.parametrize("step", [min_rsr, compact, self_data, motab])
def test_a_step_is_a_file(step: Any, embedded: dict[str, LazyModel], tmp_path: Path) -> None:
    """Which says every option, with the function's own default but where the data have one."""
    name = step.__name__
    data = OmegaConf.load(CONF.parent / "data" / "arithmetic.yaml")
    cfg = OmegaConf.create({"data": data, "curation": OmegaConf.load(CONF / f"{name}.yaml")})
    made = hydra.utils.instantiate(cfg.curation[name])
    assert made.func is step
    signature = inspect.signature(step)
    assert list(made.keywords) == [n for n, p in signature.parameters.items() if p.kind is p.KEYWORD_ONLY]
    for option, value in made.keywords.items():
        default = signature.parameters[option].default
        if isinstance(default, Sampling):
            assert (value.temperature, value.top_p) == (default.temperature, default.top_p)
            assert value.max_new_tokens == 96
        elif option not in ("prompt", "separator"):
            assert value == (list(default) if isinstance(default, tuple) else default), option
    assert made(several(3), context_of(embedded, tmp_path)).kept
