"""Tests of generating a trace set: resumable, independent of batching, every trace with a verdict."""

import contextlib
import io
import itertools
import json
import random
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import warm
from commands import command
from omegaconf import DictConfig, open_dict
from scipy.stats import chisquare
from test_training import ROOT
from test_training import run as train_run
from vllm_stub import Llm, vllm  # noqa: F401  a fixture

from distill.config.overrides import check_overrides
from distill.config.paths import CONFIG
from distill.data.readers import read_examples
from distill.data.trace_set import COLUMNS, example_of, read_records, write_records
from distill.errors import UserError
from distill.generation import engines
from distill.generation.decode import generate as write
from distill.generation.decode import uniform_draws
from distill.generation.engine import Request, Written, request_seed
from distill.generation.engines import HfEngine, VllmEngine
from distill.generation.sampling import Sampling
from distill.models.find import find_model
from distill.models.language_model import LanguageModel
from distill.models.lazy import LazyModel
from distill.teacher.write_traces import generate
from distill.training import prepare
from distill.training import recipe as data
from distill.training.recipe import TraceRecipe

SMALL = ["model=tiny", "data=arithmetic", "data.limit=30", "data.operations=[2,4]", "samples=5"]


def compose(command: str, words: list[str]) -> DictConfig:
    """What `python -m distill.<command>` is given by Hydra."""
    cfg = check_overrides(CONFIG, command, words)
    with open_dict(cfg):
        cfg.pop("hydra")
    return cfg


def run(words: list[str], folder: Path) -> list[dict[str, Any]]:
    """`python -m distill.generate` in this process; the records that it leaves."""
    return read_records(generate(compose("generate", [*words, f"out={folder}"])))


@pytest.mark.slow
def test_training_on_written_conversations_sees_the_prompts_that_the_teacher_saw(tmp_path: Path) -> None:
    earlier = [{"role": "user", "content": "2+2="}, {"role": "assistant", "content": "4"}]
    turns = [*earlier, {"role": "user", "content": "1+2="}, {"role": "assistant", "content": "3"}]
    (path := tmp_path / "talk.jsonl").write_text(
        "\n".join(json.dumps({"messages": own}) for own in (turns, turns[2:]))
    )
    words = ["model=tiny", "data=traces", f"data.path={path}", "check.answer=none", "data.max_new_tokens=4"]
    records = run([*words, "samples=1"], tmp_path / "set")
    student = find_model("package:distill/tiny/student", key="model.student", dtype="float32")
    traces = data.TraceRecipe(lambda: []).tokenize([example_of(record) for record in records], student)
    assert [trace.prompt_ids.tolist() for trace in traces] == [record["prompt_ids"] for record in records]
    assert len(traces[0].prompt_ids) > len(traces[1].prompt_ids)  # what was said before is in it


@pytest.mark.slow
@pytest.mark.parametrize("name", ["generate", "score", "curate"])
def test_a_command_that_is_refused_leaves_no_folder(name: str, tmp_path: Path) -> None:
    words = ["model=tiny", "data=traces", "data.path=gone.jsonl", f"out={tmp_path / 'out'}"]
    if name == "generate":  # the others: test_score.py, test_curate.py
        done = warm.run(["-m", "distill.generate", *words], ROOT)
    else:
        done = command(f"distill/{name}.py", *words)
    assert done.returncode == 1
    assert "data file gone.jsonl does not exist" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_trace_set_holds_what_was_written_and_what_was_found_of_it(tmp_path: Path) -> None:
    words = [*SMALL, "sampling.temperature=1.5", "sampling.top_p=1.0", "data.max_new_tokens=40"]
    records = run(words, tmp_path / "set")
    assert len(records) == 150
    assert set(records[0]) == set(COLUMNS)
    assert len({record["id"] for record in records}) == 150
    right = 0
    for record in records:
        assert record["messages"] == [{"role": "user", "content": record["problem"]}]
        assert len(record["teacher_logprobs"]) == len(record["completion_ids"])
        assert all(value <= 0 for value in record["teacher_logprobs"])
        assert record["finished"] == (record["completion_ids"][-1] == 1)
        right += record["correct"]
        if not record["finished"]:
            assert record["reason"] == "no end"
            assert not record["correct"]
    assert 0 < right < 150  # so hot that some are wrong
    for record in records:
        same = [other["correct"] for other in records if other["problem_id"] == record["problem_id"]]
        assert record["pass_rate"] == pytest.approx(sum(same) / 5)
    summary = json.loads((tmp_path / "set" / "summary.json").read_text())
    assert summary["right"] == right
    assert summary["tokens"] == sum(len(record["completion_ids"]) for record in records)
    assert sum(summary["reasons"].values()) == 150 - right


@pytest.mark.slow
def test_the_set_is_the_same_whatever_the_batches(tmp_path: Path) -> None:
    words = [word.replace("data.limit=30", "data.limit=6") for word in SMALL]
    one = run([*words, "engine.token_budget=100000"], tmp_path / "large")
    other = run([*words, "engine.token_budget=700"], tmp_path / "small")
    assert [r["completion_ids"] for r in one] == [r["completion_ids"] for r in other]
    assert len({tuple(r["completion_ids"]) for r in one if r["problem_id"] == one[0]["problem_id"]}) > 1
    more = run([*words[:-1], "samples=6"], tmp_path / "more")
    kept = [r["completion_ids"] for r in more if r["sample"] < 5]
    assert kept == [r["completion_ids"] for r in one]
    another = run([*words, "seed=1"], tmp_path / "another")
    assert [r["completion_ids"] for r in another] != [r["completion_ids"] for r in one]


class Killed(BaseException):
    """What no code expects."""


@pytest.mark.slow
def test_a_run_killed_at_random_moments_gives_the_set_of_one_clean_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [word.replace("data.limit=30", "data.limit=6") for word in SMALL]
    clean = run(words, tmp_path / "clean")
    chance = random.Random(0)
    written: list[int] = []

    class Mortal(HfEngine):
        """Dies somewhere between two completions."""

        def write(
            self, requests: Sequence[Request], sampling: Sampling
        ) -> Generator[tuple[int, Written], None, None]:
            left = chance.randrange(8) if len(deaths) < 5 else len(requests)
            for place, found in super().write(requests, sampling):
                left -= 1
                if left < 0:
                    raise Killed
                written.append(requests[place].seed)
                yield place, found

    deaths: list[int] = []
    monkeypatch.setattr(engines, "HfEngine", Mortal)
    while True:
        try:
            resumed = run(words, tmp_path / "killed")
            break
        except Killed:
            deaths.append(len(written))
            assert not (tmp_path / "killed" / "traces.parquet").exists()
            journal = tmp_path / "killed" / "completions.jsonl"
            if len(deaths) % 2 == 0:  # in the middle of a line
                with journal.open("ab") as stream:
                    stream.write(journal.read_bytes()[:40].replace(b"\n", b""))
    assert len(deaths) == 5
    assert len(written) == len(set(written)) == 30  # no sample written twice, none lost
    assert resumed == clean


@pytest.mark.slow
def test_a_finished_set_is_not_written_again_and_another_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(SMALL, tmp_path / "set")

    def refuse(*_: object) -> list[Written]:
        raise AssertionError("nothing is left to write")

    monkeypatch.setattr(HfEngine, "write", refuse)
    assert run([*SMALL, "check.answer=math"], tmp_path / "set")[0]["completion"] == first[0]["completion"]
    with pytest.raises(UserError, match=r"holds a trace set made with another sampling: name another folder"):
        run([*SMALL[:-1], "samples=4"], tmp_path / "set")
    with pytest.raises(UserError, match=r"another prompts"):
        run([*SMALL, "data.limit=29"], tmp_path / "set")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(temperature=1.0, max_new_tokens=1), [0.4, 0.3, 0.2, 0.1]),
        (Sampling(temperature=1.0, top_k=2, max_new_tokens=1), [4 / 7, 3 / 7, 0, 0]),
        (Sampling(temperature=1.0, top_p=0.8, max_new_tokens=1), [4 / 9, 3 / 9, 2 / 9, 0]),
        (Sampling(temperature=0.5, max_new_tokens=1), [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
    ],
)
def test_tokens_drawn_by_numbers_have_the_distribution_asked_for(
    student: LanguageModel, sampling: Sampling, expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = torch.full((len(student.tokenizer.get_vocab()) + 5,), -1e9)
    logits[5:9] = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    forward = student.model.forward

    def fixed(*args: Any, **options: Any) -> Any:
        output = forward(*args, **options)
        output.logits = logits.expand(*output.logits.shape[:2], -1).clone()
        return output

    monkeypatch.setattr(student.model, "forward", fixed)
    draws = np.stack([uniform_draws(seed, 1) for seed in range(4000)])
    written = write(student, [[3]] * 4000, sampling, seed=0, draws=draws)
    counts = np.bincount([ids[0] - 5 for ids in written], minlength=4)
    possible = np.asarray(expected) > 0
    assert (counts[~possible] == 0).all()
    assert chisquare(counts[possible], 4000 * np.asarray(expected)[possible]).pvalue > 1e-3


def test_every_request_has_numbers_of_its_own() -> None:
    seeds = {request_seed(seed, problem, s) for seed in (0, 1) for problem in ("a", "b") for s in range(9)}
    assert len(seeds) == 36
    assert request_seed(0, "a", 1) == request_seed(0, "a", 1)
    assert (uniform_draws(7, 5) == uniform_draws(7, 9)[:5]).all()


@pytest.mark.slow
def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    records = run(SMALL, tmp_path / "set")
    records[0] |= {"completion": "a\u2028b \x00 ∑ 🙂", "gold": None, "correct": None, "pass_rate": None}
    write_records(tmp_path / "again.parquet", records)
    assert read_records(tmp_path / "again.parquet") == records
    import datasets

    loaded = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "again.parquet"), split="train", cache_dir=str(tmp_path / "hf")
    )
    assert loaded[0]["completion_ids"] == records[0]["completion_ids"]
    with pytest.raises(KeyError, match="gold"):
        write_records(tmp_path / "bad.parquet", [{k: v for k, v in records[0].items() if k != "gold"}])


def test_a_damaged_or_foreign_file_gets_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no trace set: there is no traces.parquet"):
        read_records(tmp_path)
    (tmp_path / "traces.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match=r"is no readable Parquet file"):
        read_records(tmp_path)
    import pandas

    pandas.DataFrame({"question": ["1"]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(UserError, match=r"is no trace set: it has no column id, .*data=traces data.path="):
        read_records(tmp_path / "other.parquet")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["samples=0"], r"samples=0 must be a whole number"),
        (["sampling.temperature=0"], r"greedy completions of a problem are all alike"),
        (["sampling.temperature=-1"], r"sampling: temperature=-1"),
        (["model.teacher=null"], r"model.teacher is not set: name who writes"),
        (["model.teacher=/nowhere/at/all"], r"model.teacher=/nowhere/at/all"),
        (["check.answer=maybe"], r"check.answer='maybe' is not one of auto, math, none"),
        (["check.pattern='('"], r"check.pattern='\(' is no regular expression"),
        (["check.max_tokens=-1"], r"check.max_tokens=-1 is not a whole number"),
        (["check.seconds=soon"], r"check.seconds='soon' is not a number of seconds"),
        (["samples=true"], r"samples=True must be a whole number"),
        (["seed=abc"], r"seed='abc' must be a whole number"),
        (["logprobs=maybe"], r"logprobs='maybe' is not one of auto, true, false"),
        (["sampling.temperature=inf"], r"temperature=inf is not a number"),
        (["data.teacher_prompt.user=hello"], r"data.teacher_prompt.user='hello' has no \{problem\} in it"),
    ],
)
def test_a_mistake_gets_one_sentence_before_anything_is_written(
    words: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        run([*SMALL, *words], tmp_path / "set")
    assert not (tmp_path / "set").exists()


@pytest.mark.slow
def test_a_folder_that_nobody_can_tell_the_content_of_is_refused(tmp_path: Path) -> None:
    run(SMALL, tmp_path / "set")
    key = tmp_path / "set" / "key.json"
    key.write_text("[1]")
    with pytest.raises(UserError, match=r"key.json is damaged \(it holds a list\), so the content of"):
        run(SMALL, tmp_path / "set")
    key.unlink()
    with pytest.raises(UserError, match=r"has completions.jsonl, but no key.json that describes it"):
        run(SMALL, tmp_path / "set")


@pytest.mark.slow
def test_problems_of_one_id_are_judged_each_by_its_own_answer(tmp_path: Path) -> None:
    rows = [{"id": "x", "problem": "1+2*3=", "gold": "9"}, {"id": "x", "problem": "2+5*3=", "gold": "1"}]
    (tmp_path / "two.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = [f"data.fields.{name}={name}" for name in ("id", "gold")]
    words = [
        "model=tiny",
        "data=traces",
        f"data.path={tmp_path / 'two.jsonl'}",
        "data.fields.completion=null",
    ]
    records = run([*words, *fields, "samples=1", "sampling.temperature=0"], tmp_path / "set")
    assert [record["id"] for record in records] == ["x@0#0", "x@1#0"]
    assert [record["gold"] for record in records] == ["9", "1"]
    assert [record["correct"] for record in records] == [True, True]


@pytest.mark.slow
def test_format_and_length_rules_say_why(tmp_path: Path) -> None:
    words = [*SMALL, "check.pattern='\\*'", "check.max_tokens=20"]
    records = run(words, tmp_path / "set")
    reasons = {record["reason"] for record in records}
    assert "more than 20 tokens" in reasons
    assert "without \\*" in reasons
    for record in records:
        if record["reason"] == "more than 20 tokens":
            assert len(record["completion_ids"]) > 20
            assert record["correct"] is False
        elif record["reason"] == "without \\*":
            assert "*" not in record["completion"]


@pytest.mark.slow
def test_rules_reject_where_nothing_is_graded(tmp_path: Path) -> None:
    records = run([*SMALL, "check.answer=none", "check.max_tokens=20"], tmp_path / "set")
    long = [record for record in records if len(record["completion_ids"]) > 20]
    assert 0 < len(long) < len(records)
    assert [record["correct"] for record in long] == [False] * len(long)
    assert {record["reason"] for record in long} == {"more than 20 tokens"}
    others = [record for record in records if len(record["completion_ids"]) <= 20]
    assert {record["correct"] for record in others} == {None}
    assert {record["pass_rate"] for record in records} == {None}
    recipe = TraceRecipe(source=lambda: read_examples(path=str(tmp_path / "set")))
    assert len(recipe._without_wrong(recipe.source(), print)) == len(others)


@pytest.mark.slow
@pytest.mark.parametrize("prompt", ["boxed", "structured"])
def test_a_prompt_is_a_file(prompt: str, tmp_path: Path) -> None:
    cfg = check_overrides(CONFIG, "generate", [*SMALL, f"teacher_prompt={prompt}", f"out={tmp_path}"])
    assert "\\boxed{" in cfg.data.teacher_prompt.system
    assert cfg.data.teacher_prompt.user == "{problem}"


def train(words: list[str], folder: Path) -> str:
    """A short run, and what it printed."""
    common = ["model=tiny", "benchmark=none", "logger=csv", "trainer.max_steps=2", "data.batch_size=8"]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        train_run(["loss=dcod", *common, *words], folder)
    return said.getvalue()


@pytest.mark.slow
def test_a_run_takes_a_trace_sets_own_tokens_and_log_probs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = run([*SMALL, "sampling.temperature=1.5", "sampling.top_p=1.0"], tmp_path / "set")
    right = [record for record in records if record["correct"]]
    taken: list[Any] = []
    made = prepare.prepare_traces

    def watched(*args: Any, **options: Any) -> Any:
        taken.append(made(*args, **options))
        return taken[-1]

    monkeypatch.setattr(prepare, "prepare_traces", watched)
    words = ["data=traces", f"data.path={tmp_path / 'set'}", f"cache={tmp_path / 'cache'}"]
    said = train(words, tmp_path / "run")
    assert f"trace set: {len(right)} of 150 traces kept" in said
    assert f"teacher log-probs of {len(right)} traces are taken from the trace set" in said
    assert [t.completion_ids.tolist() for t in taken[0]] == [r["completion_ids"] for r in right]
    assert [t.prompt_ids.tolist() for t in taken[0]] == [r["prompt_ids"] for r in right]
    expected = [np.asarray(r["teacher_logprobs"], dtype=np.float32) for r in right]
    for trace, values in zip(taken[0], expected, strict=True):
        assert (trace.signals["teacher_logprobs"] == values).all()
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").glob("teacher_logprobs*"))
    # Under another prompt they are of other prefixes, and scored anew; wrong ones can be taken too.
    said = train([*words, "data.student_prompt.user='0+{problem}'", "data.keep=all"], tmp_path / "other")
    assert "taken from the trace set" not in said
    assert len(taken[1]) == 150


@pytest.mark.slow
def test_a_set_of_wrong_traces_is_refused(tmp_path: Path) -> None:
    records = run(SMALL, tmp_path / "set")
    write_records(tmp_path / "wrong.parquet", [record | {"correct": False} for record in records])
    with pytest.raises(UserError, match=r"none of the 150 traces is right and finished"):
        train(["data=traces", f"data.path={tmp_path / 'wrong.parquet'}"], tmp_path / "run")


@pytest.mark.slow
def test_vllm_is_asked_for_tokens_and_seeds_of_its_own(
    tmp_path: Path,
    vllm: list[Llm],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Against a stand-in; tests/engines has the real vLLM."""
    texts = [[6, 17, 8], [6, 17, 8, 1], [6] * 40]  # stopped with its token left out, with it, cut off
    reasons, number = ["stop", "stop", "length"], itertools.count()

    def completion(*_: Any) -> Any:
        n = next(number) % 3
        return SimpleNamespace(token_ids=texts[n], finish_reason=reasons[n])

    monkeypatch.setattr(Llm, "_completion", completion)
    words = [*SMALL[:2], "data.limit=3", "samples=2", "engine=vllm", "+engine.tensor_parallel_size=2"]
    records = run([*words, "engine.batch=3", "sampling.top_k=7"], tmp_path / "set")
    (engine,) = vllm
    assert [len(prompts) for prompts, _ in engine.asked] == [3, 3]
    assert engine.options["tensor_parallel_size"] == 2
    assert engine.options["dtype"] == "float32"
    assert engine.options["generation_config"] == "vllm"
    prompts, parameters = engine.asked[0]
    assert prompts[0] == {"prompt_token_ids": records[0]["prompt_ids"]}
    assert (parameters[0].temperature, parameters[0].top_p, parameters[0].top_k) == (0.7, 0.95, 7)
    assert parameters[0].neutral
    assert parameters[0].stop_token_ids == [1]
    assert len({p.seed for _, many in engine.asked for p in many}) == 6
    assert [r["completion_ids"][-2:] for r in records[:3]] == [[8, 1], [8, 1], [6, 6]]
    assert [r["finished"] for r in records[:3]] == [True, True, False]


@pytest.mark.usefixtures("vllm")
def test_a_problem_that_does_not_fit_into_vllms_context_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"the prompt of problem \S+ has \d+ tokens, .*\(2\): take the problem"
    ):
        run([*SMALL, "engine=vllm", "+engine.max_model_len=2"], tmp_path / "set")


def test_what_vllm_writes_depends_on_its_options_but_not_on_its_speed() -> None:
    model = LazyModel(find_model("package:distill/tiny/student", key="model"), "cpu")
    assert VllmEngine(model, tensor_parallel_size=2, gpu_memory_utilization=0.8).settings == {}
    options = VllmEngine(model, quantization="fp8", tensor_parallel_size=2).settings
    assert options == {"options": {"quantization": "fp8"}}


def test_without_vllm_its_engine_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r'0\.32.*pip install "distill\[vllm\]", or take engine=hf'):
        run([*SMALL, "engine=vllm"], tmp_path / "set")
