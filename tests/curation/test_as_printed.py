"""Tests of curation steps as their papers or their authors' code have them: COMPACT, MOTAB, self-data, RSR's
rivals."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from omegaconf import OmegaConf
from test_curation_models import (
    CONF,
    GREEDY,
    INFORMED,
    context_of,
    embedded,  # noqa: F401  a fixture
    even,
    greedily,
    lazy,
    loop,
    mean,
    record,
    several,
    standard,
)

from distill.curation.backtracking import motab
from distill.curation.choice import longest, min_surprisal, quality, rule_based
from distill.curation.filters import correct
from distill.curation.fit import compact, min_rsr
from distill.curation.rewriting import FORBIDDEN, self_data
from distill.curation.step import Record
from distill.data.trace_set import read_records, write_records
from distill.errors import UserError
from distill.generation.sampling import Sampling
from distill.models.language_model import LanguageModel
from distill.models.lazy import LazyModel
from distill.tiny import task

Pair = dict[str, LazyModel]


@torch.no_grad()
def states_of(lm: LanguageModel, ids: Sequence[int]) -> torch.Tensor:
    """What the output head sees at every token, [tokens, hidden]."""
    found = lm.model(input_ids=torch.tensor([list(ids)]), output_hidden_states=True)
    return found.hidden_states[-1][0].double()


def log_probs(lm: LanguageModel, state: torch.Tensor) -> list[float]:
    logits = (lm.model.lm_head.weight.double()[: lm.vocab_size] @ state).tolist()
    total = math.log(math.fsum(math.exp(value) for value in logits))
    return [value - total for value in logits]


def mutual_information(lm: LanguageModel, row: Record, marks: str, other: float) -> float:
    """Σ of the rises of the answer's mean log-prob, each by its token's importance."""
    states = states_of(lm, [*row["prompt_ids"], *row["completion_ids"]])
    gold = lm.tokenizer(row["gold"]).input_ids
    first = len(row["prompt_ids"]) - 1
    along = [mean([log_probs(lm, state)[g] for g in gold]) for state in states[first:]]
    found = 0.0
    for t, token in enumerate(row["completion_ids"]):
        weight = 1.0 if lm.tokenizer.decode([token]) in marks else other
        found += max(0.0, along[t + 1] - along[t]) * weight
    return found


def attention_from_others(lm: LanguageModel, rows: Sequence[Record]) -> list[float]:
    attention = lm.model.model.layers[-1].self_attn
    config = lm.model.config
    size = config.hidden_size // config.num_attention_heads
    group = config.num_attention_heads // config.num_key_value_heads
    ends = [states_of(lm, [*row["prompt_ids"], *row["completion_ids"]])[-1] for row in rows]
    queries = [attention.q_proj.weight.double() @ end for end in ends]
    keys = [attention.k_proj.weight.double() @ end for end in ends]
    found = [0.0] * len(rows)
    for j, query in enumerate(queries):
        logits = []
        for key in keys:
            heads = [  # every query head with the key head of its group
                query[h * size : (h + 1) * size] @ key[h // group * size : (h // group + 1) * size]
                for h in range(config.num_attention_heads)
            ]
            logits.append(sum(map(float, heads)) / len(query) ** 0.5)
        total = math.fsum(map(math.exp, logits))
        for k, value in enumerate(logits):
            found[k] += math.exp(value) / total if k != j else 0.0
    return found


@pytest.mark.slow
@pytest.mark.parametrize("pair", ["embedded", "grouped"])
def test_compacts_weights_are_the_papers_formulas(
    embedded: Pair,  # noqa: F811
    tiny_pair: tuple[Path, Path],
    tmp_path: Path,
    pair: str,
) -> None:
    models = embedded if pair == "embedded" else {"student": lazy(str(tiny_pair[0]))}
    context, lm = context_of(models, tmp_path), models["student"].get()
    records = [*several(3), record("1+2=", "1+2=3;#3")]
    options: dict[str, Any] = {"thinking": [";", "#"], "other_tokens": 0.25}
    outcome = compact(records, context, alpha=0.5, beta=2.0, gamma=1.5, **options)
    expected, gains = {id(records[-1]): 1.0}, dict[int, float]()
    for problem in {row["problem"] for row in records[:-1]}:
        same = [row for row in records if row["problem"] == problem]
        gains |= {id(row): mutual_information(lm, row, ";#", 0.25) for row in same}
        nlls = [mean([nll for nll, _, _ in loop(lm, r["prompt_ids"], r["completion_ids"])]) for r in same]
        scores = [
            0.5 * c + 2.0 * g - 1.5 * n
            for c, g, n in zip(
                standard(attention_from_others(lm, same)),
                standard([gains[id(row)] for row in same]),
                standard(nlls),
                strict=True,
            )
        ]
        total = math.fsum(map(math.exp, scores))
        expected |= {id(row): 3 * math.exp(s) / total for row, s in zip(same, scores, strict=True)}
    assert [row["weight"] for row in outcome.kept] == pytest.approx(
        [expected[id(row)] for row in records], rel=5e-3
    )
    own = [gains[id(row)] for row in records[:-1] if row["teacher"] == "C"]
    assert outcome.figures["gain_by_teacher"]["C"] == pytest.approx(mean(own), rel=1e-4)
    again = compact(records, context, alpha=0.5, beta=2.0, gamma=1.5, **options)  # from the cache
    assert again == outcome


@pytest.mark.slow
def test_compact_says_what_it_lacks(embedded: Pair, tmp_path: Path) -> None:  # noqa: F811
    context, rows = context_of(embedded, tmp_path), several(1)
    with pytest.raises(UserError, match=r"along trace .*, whose problem has no gold answer.*beta=0"):
        compact([row | {"gold": None} for row in rows], context)
    assert len(compact([row | {"gold": None} for row in rows], context, beta=0.0).kept) == 3


@pytest.fixture(scope="module")
def released() -> dict[str, Any]:
    """What curation=motab_released sets, but the separator and the word, which this vocabulary lacks."""
    given: Any = OmegaConf.to_container(OmegaConf.load(CONF / "motab_released.yaml"))
    return given["motab"] | {"separator": ";", "connective": "#"}


@pytest.mark.slow
@torch.no_grad()
def test_the_released_motab_keeps_the_students_steps_and_goes_back_for_the_teacher(
    embedded: Pair,  # noqa: F811
    tmp_path: Path,
    released: dict[str, Any],
) -> None:
    """Step by step as in the authors' script: V_T against 0.2, the largest fall, and Eq. 11's text."""
    context = context_of(embedded, tmp_path)
    student, teacher = (embedded[role].get() for role in ("student", "teacher"))
    options: dict[str, Any] = released | {
        "samples": 1,
        "sampling": GREEDY,
        "correction": GREEDY,
        "least_room": 40,
    }
    records = several(6)
    outcome = motab(records, context, **options)
    (semicolon,), (mark,) = (student.tokenizer(sign).input_ids for sign in ";#")
    kept = {row["problem"]: row for row in outcome.kept}
    breaches = 0
    for problem in dict.fromkeys(row["problem"] for row in records):
        prompt = student.tokenizer(problem).input_ids
        written = greedily(student, prompt, 48)
        steps, step = list[list[int]](), list[int]()
        for place, token in enumerate(written):
            step.append(token)
            if token == semicolon or place == len(written) - 1:
                steps.append(step)
                step = []
        values, expected = list[float](), list[int]()
        for number in range(len(steps)):
            before = [token for own in steps[:number] for token in own]
            values.append(
                math.exp(-mean([n for n, _, _ in loop(teacher, [*prompt, *before], steps[number])]))
            )
            if values[-1] < 0.2:
                falls = [(values[k] - values[k - 1], k) for k in range(1, number + 1)]
                back = min(falls)[1] if falls else 0
                safe = [token for own in steps[:back] for token in own]
                flawed = [token for own in steps[: number + 1] for token in own if token != 1]
                correction = greedily(teacher, [*prompt, *safe], max(40, 48 - len(safe)))
                expected = [*flawed, mark, *correction]
                breaches += 1
                break
        else:
            expected = written
        if expected[-1] != 1:
            assert problem not in kept
            continue
        row = kept.pop(problem)
        assert row["completion_ids"] == expected
        assert row["learn_from"] == 0
        text = student.tokenizer.decode(expected, skip_special_tokens=True)
        assert row["correct"] == task.is_correct(problem, text)
    assert not kept
    assert 1 < breaches < 6
    learned = motab(records, context, **(options | {"learn": "correction"}))
    for row in learned.kept:
        assert row["learn_from"] == 0 or row["completion_ids"][row["learn_from"]] == mark
    write_records(tmp_path / "set.parquet", outcome.kept)
    assert len(read_records(tmp_path / "set.parquet")) == len(outcome.kept)


@pytest.mark.slow
def test_motab_without_right_answers_needs_no_grader(
    embedded: Pair,  # noqa: F811
    tmp_path: Path,
    released: dict[str, Any],
) -> None:
    bare = [row | {"gold": None} for row in several(3)]
    context = context_of(embedded, tmp_path, grade=None)
    options: dict[str, Any] = released | {"samples": 2, "sampling": Sampling(1.0, max_new_tokens=48)}
    outcome = motab(bare, context, **options)
    assert outcome.kept
    assert {row["correct"] for row in outcome.kept} == {row["pass_rate"] for row in outcome.kept} == {None}
    assert outcome.figures["right"] is None
    with pytest.raises(UserError, match="motab needs a grader"):
        motab(bare, context, separator=";")
    full = context_of(embedded, tmp_path)
    with pytest.raises(UserError, match=r"curation.motab.connective='However,\\n\\n': the tokenizer of"):
        motab(bare, full, **(options | {"connective": "However,\n\n"}))


@pytest.mark.slow
def test_a_teacher_gets_only_what_the_student_left(embedded: Pair, tmp_path: Path) -> None:  # noqa: F811
    context, records = context_of(embedded, tmp_path), several(8)
    most = Sampling(max_new_tokens=30)
    given: dict[str, Any] = {"separator": ";", "margin": 0.5, "sampling": most, "require_right": False}
    whole = motab(records, context, **given, room="rest", least_room=30)
    tight = motab(records, context, **given, room="rest", least_room=1)
    texts = {row["problem"]: row["completion_ids"] for row in whole.kept}
    assert {row["problem"]: row["completion_ids"] for row in tight.kept} == {
        problem: ids for problem, ids in texts.items() if len(ids) <= 30
    }
    assert any(len(ids) > 30 for ids in texts.values())


@pytest.mark.slow
def test_another_model_rewrites_for_the_student(embedded: Pair, tmp_path: Path) -> None:  # noqa: F811
    context = context_of(embedded, tmp_path, grade=even)
    records = several(4)
    given: dict[str, Any] = {"prompt": INFORMED, "sampling": GREEDY, "prefill": "0+"}
    outcome = self_data(records, context, writer="teacher", **given)
    writer, rewritten = embedded["teacher"].get(), 0
    for before, after in zip(records, outcome.kept, strict=True):
        prompt = writer.tokenizer(f"{before['completion']};{before['problem']}0+").input_ids
        with torch.no_grad():
            expected = greedily(writer, prompt, 48)
        text = writer.tokenizer.decode(expected, skip_special_tokens=True)
        if expected[-1] == 1 and text and len(text) % 2 == 0:
            assert after["completion_ids"] == expected
            assert after["teacher"] == "package:distill/tiny/teacher"
            rewritten += 1
        else:
            assert after is before
    assert outcome.figures["rewritten"] == rewritten
    assert rewritten
    with pytest.raises(UserError, match=r"self_data needs the teacher"):
        self_data(records, context_of({"student": embedded["student"]}, tmp_path), writer="teacher", **given)


def test_a_writer_of_another_vocabulary_is_refused(
    tiny_pair: tuple[Path, Path], tmp_path: Path, permuted_tokenizer: Any
) -> None:
    other = tmp_path / "other"
    lm = lazy(str(tiny_pair[1])).get()
    lm.model.save_pretrained(other)
    permuted_tokenizer.save_pretrained(other)
    pair = {"student": lazy(str(tiny_pair[0])), "teacher": lazy(str(other))}
    with pytest.raises(UserError, match=r"writer=teacher writes the student's own tokens, but the vocab"):
        self_data(several(1), context_of(pair, tmp_path), writer="teacher", prompt=INFORMED)


@pytest.mark.slow
def test_data_without_right_answers_are_rewritten_unchecked(
    embedded: Pair,  # noqa: F811
    tmp_path: Path,
) -> None:
    bare = [row | {"gold": None} for row in several(4)]
    context = context_of(embedded, tmp_path, grade=None)
    given: dict[str, Any] = {"prompt": INFORMED, "sampling": GREEDY, "without_gold": "take"}
    outcome = self_data(bare, context, **given)
    assert outcome.figures["rewritten"] > 0
    rewritten = [row for row, old in zip(outcome.kept, bare, strict=True) if row is not old]
    assert {row["correct"] for row in rewritten} == {None}
    assert outcome.figures["own_target_by_reason"].keys() <= {"no end", "empty"}
    starts = [row["completion"][0] for row in rewritten]
    fewer = self_data(bare, context, **given, forbidden_start=starts[:1])
    assert fewer.figures["own_target_by_reason"]["speaks of the reference"] == starts.count(starts[0])
    with pytest.raises(UserError, match=r"no gold answer.*without_gold=take"):
        self_data(bare, context_of(embedded, tmp_path), prompt=INFORMED)


def test_sdfts_words_are_all_refused() -> None:
    """Those of `verify` in sail-sg/sdft, eval/gen_distilled_data.py."""
    theirs = {"reference answer", "your response", "my response", "your own response", "now it's your turn"}
    assert theirs <= set(FORBIDDEN)


TEXTS = [
    "Since 2 is even, therefore it works. I verify, and check again.",
    "Perhaps it might be 3.",
    "So so so so so so so so so so so so.",
    "Check: yes",
]


def test_rule_based_quality_is_limos_sum_of_z_scores() -> None:
    words = [[word.strip(".,:").lower() for word in text.split()] for text in TEXTS]
    named = (("check", "verify"), ("perhaps", "might"), ("therefore", "since"))
    columns = [[float(len(own)) for own in words]]
    columns += [[sum(own.count(word) for word in group) / len(own) for own in words] for group in named]
    expected = [0.0] * 4
    for weight, column in zip((0.3, 0.2, 0.25, 0.25), columns, strict=True):
        centre, spread = statistics.fmean(column), statistics.pstdev(column)
        expected = [e + weight * (v - centre) / spread for e, v in zip(expected, column, strict=True)]
    assert quality(TEXTS).tolist() == pytest.approx(expected)
    assert quality(["a b", "c d"]).tolist() == [0.0, 0.0]
    assert quality([]).tolist() == []


@pytest.mark.slow
def test_rivals_keep_the_best_of_each_problem_by_their_own_score(
    embedded: Pair,  # noqa: F811
    tmp_path: Path,
) -> None:
    context, records = context_of(embedded, tmp_path), several(4)
    lm = embedded["student"].get()
    ranks = quality([row["completion"] for row in records])
    scores = {
        longest: [-len(row["completion_ids"]) for row in records],
        min_surprisal: [
            mean([n for n, _, _ in loop(lm, r["prompt_ids"], r["completion_ids"])]) for r in records
        ],
        rule_based: (-ranks).tolist(),
    }
    for step, values in scores.items():
        of = {id(row): value for row, value in zip(records, values, strict=True)}
        for keep in (1, 2):
            outcome = step(records, context, keep=keep)
            best = []
            for problem in {row["problem"] for row in records}:
                same = [row for row in records if row["problem"] == problem]
                best += sorted(same, key=lambda row: of[id(row)])[:keep]
            assert outcome.kept == [row for row in records if row in best]
            assert sum(outcome.left_out.values()) == 12 - 4 * keep
            assert sum(outcome.figures["kept_by_teacher"].values()) == 4 * keep
        assert step([], context).kept == []
        with pytest.raises(UserError, match=rf"curation.{step.__name__}.keep"):
            step(records, context, keep=0)
        conf: Any = OmegaConf.load(CONF / f"{step.__name__}.yaml")
        made = hydra.utils.instantiate(conf[step.__name__])
        assert (made.func, made.keywords) == (step, {"keep": 1})


def test_problems_without_a_right_trace_may_keep_all_of_theirs(
    embedded: Pair,  # noqa: F811
    tmp_path: Path,
) -> None:
    context = context_of(embedded, tmp_path)
    wrong = {"correct": False, "reason": "wrong"}
    rows = [record("1+2=", "1+2=3;#3"), record("1+2=", "#4") | wrong, record("2+2=", "#5") | wrong]
    assert correct(rows, context).kept == rows[:1]
    outcome = correct(rows, context, if_any=True)
    assert outcome.kept == [rows[0], rows[2]]
    assert outcome.figures["kept_of_problems_without_a_right_one"] == 1
    assert outcome.left_out == {"wrong": 1}
    assert min_rsr(outcome.kept, context).kept == outcome.kept
