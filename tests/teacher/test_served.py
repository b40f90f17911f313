"""Tests of a teacher behind a server: its log-probs of given traces, against those of the teacher itself."""

import csv
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chat_stub import Stub
from test_training import arguments, run, traces  # noqa: F401  a fixture

from distill.data.trace import Example, Trace
from distill.errors import UserError
from distill.models.find import find_model
from distill.models.language_model import LanguageModel, ModelSource
from distill.models.lazy import LazyModel
from distill.teacher.distribution import TeacherDistribution
from distill.teacher.distribution_cache import cache_distributions
from distill.teacher.logprobs import cached_logprobs
from distill.teacher.served import ServedTeacher, TeacherSource

TOP_K = TeacherDistribution("top_k", top_k=5)


def some_traces(count: int = 6) -> list[Trace]:
    draw = np.random.default_rng(0)
    return [
        Trace(
            Example("", f"{number}", "", ""),
            draw.integers(2, 18, 4 + number).astype(np.int32),
            draw.integers(2, 18, 9 - number).astype(np.int32),
        )
        for number in range(count)
    ]


@torch.no_grad()
def vllms(lm: LanguageModel, body: dict[str, Any]) -> Any:
    """vLLM's `/completions`: by id, the k likeliest tokens and the prompt's own."""
    ids = body["prompt"]
    logits = lm.model(torch.tensor([ids])).logits[0, :, : lm.vocab_size]
    rows: list[Any] = [None]
    for token, row in zip(ids[1:], logits.log_softmax(-1), strict=False):
        places = row.argsort(descending=True).tolist()
        named = [*places[: body["prompt_logprobs"]], token]
        rows.append({str(one): {"logprob": row[one].item(), "rank": places.index(one) + 1} for one in named})
    return {"choices": [{"text": "", "prompt_logprobs": rows}]}


@torch.no_grad()
def sglangs(lm: LanguageModel, body: dict[str, Any]) -> Any:
    """SGLang's `/generate`: lists of [log-prob, id, text]."""
    ids, k = body["input_ids"], body["top_logprobs_num"]
    logits = lm.model(torch.tensor([ids])).logits[0, :, : lm.vocab_size]
    own: list[Any] = [[None, ids[0], None]]
    top: list[Any] = [None]
    for token, row in zip(ids[1:], logits.log_softmax(-1), strict=False):
        own.append([row[token].item(), token, None])
        top.append([[row[one].item(), one, None] for one in row.argsort(descending=True).tolist()[:k]])
    return {"text": "", "meta_info": {"input_token_logprobs": own, "input_top_logprobs": top}}


def serving(stub: Stub, answer: Callable[[dict[str, Any]], Any]) -> None:
    one_by_one = threading.Lock()  # transformers' hooks are not made for threads

    def answered(number: int) -> tuple[int, dict[str, str], str]:
        with one_by_one:
            return 200, {}, json.dumps(answer(stub.seen[number]))

    stub.fault = answered


@pytest.mark.slow
@pytest.mark.parametrize(("api", "answers"), [("vllm", vllms), ("sglang", sglangs)])
def test_a_servers_signals_are_those_of_the_teacher_itself(
    api: str, answers: Callable[..., Any], stub: Stub, teacher: LanguageModel, tmp_path: Path
) -> None:
    serving(stub, lambda body: answers(teacher, body))
    asked, found = TeacherSource("server", api, stub.url), some_traces()
    local, served = LazyModel.of(teacher), LazyModel(teacher.source, "cpu")
    served.served = asked.serve(teacher.source)
    served.served.check(TOP_K.top_k)
    ours = cached_logprobs(local, found, "teacher_logprobs", cache=tmp_path)
    theirs = cached_logprobs(served, found, "teacher_logprobs", cache=tmp_path)
    assert len(list(tmp_path.glob("teacher_logprobs-*"))) == 2  # never one for the other
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)
    ours, theirs = (cache_distributions(one, found, TOP_K, cache=tmp_path) for one in (local, served))
    for a, b in zip((one.read() for one in ours), (one.read() for one in theirs), strict=True):
        assert torch.equal(a["ids"], b["ids"])
        assert {name: one.dtype for name, one in a.items()} == {name: one.dtype for name, one in b.items()}
        torch.testing.assert_close(a["logprobs"], b["logprobs"], atol=2e-6, rtol=0)
        torch.testing.assert_close(a["log_rest"], b["log_rest"], atol=1e-4, rtol=0)
    assert not served.loaded
    assert served.served.verify(LazyModel(teacher.source, "cpu"), found) < 1e-6
    asked_for = len(stub.seen)
    cached_logprobs(served, found, "teacher_logprobs", cache=tmp_path)
    assert len(stub.seen) == asked_for  # it is in the cache


@pytest.mark.slow
def test_another_model_behind_the_server_is_found_out(
    stub: Stub, teacher: LanguageModel, student: LanguageModel
) -> None:
    serving(stub, lambda body: vllms(student, body))
    served = TeacherSource("server", url=stub.url).serve(teacher.source)
    assert served is not None
    with pytest.raises(UserError, match=r"other probabilities than .*serve the same model"):
        served.verify(LazyModel(teacher.source, "cpu"), some_traces())
    serving(stub, lambda body: vllms_with(vllms(student, body), "999999"))
    with pytest.raises(UserError, match=r"gives token ids that .* does not have"):
        served.check(3)


def vllms_with(answer: Any, token: str) -> Any:
    answer["choices"][0]["prompt_logprobs"][-1][token] = {"logprob": 0.0, "rank": 1}
    return answer


NONE = [
    {"choices": [{"text": "hello", "prompt_logprobs": None}]},
    {"choices": [{"text": "hello"}]},
    {"choices": []},
    {"choices": [{"prompt_logprobs": [None]}]},
    {"text": "hello", "meta_info": {}},
    {"choices": [{"prompt_logprobs": [None, {"5": {"rank": 1}}]}]},
]


@pytest.mark.parametrize("answer", NONE)
@pytest.mark.parametrize("api", ["vllm", "sglang"])
def test_a_server_without_log_probs_of_prompts_is_one_sentence(
    api: str, answer: Any, stub: Stub, teacher: LanguageModel
) -> None:
    serving(stub, lambda body: answer)
    served = ServedTeacher(TeacherSource("server", api, stub.url), teacher.source)
    with pytest.raises(UserError, match=r"gives no log-probs of a prompt's tokens.*teacher\.source=local"):
        served.check()
    assert len(stub.seen) == 1


def test_more_likeliest_tokens_than_a_server_gives_is_its_own_sentence(
    stub: Stub, teacher: LanguageModel
) -> None:
    said = {"error": {"message": "Requested prompt logprobs of 16, which is greater than max allowed: 5"}}
    stub.fault = lambda number: (400, {}, json.dumps(said))
    served = ServedTeacher(TeacherSource("server", url=stub.url), teacher.source)
    with pytest.raises(UserError, match=r"greater than max allowed: 5'.*2 token ids.*teacher\.url"):
        served.check(32)


@pytest.mark.slow
def test_a_run_with_a_served_teacher_is_the_run_with_the_teacher_itself(
    tiny_pair: tuple[Path, Path],
    traces: Path,  # noqa: F811
    tmp_path: Path,
    stub: Stub,
    teacher: LanguageModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["loss=dcod_kl", "loss.distribution.source=top_k", "trainer.max_steps=2", "data.limit=16"]
    own = run(arguments(tiny_pair, traces, tmp_path, *words), tmp_path / "own")
    serving(stub, lambda body: vllms(teacher, body))
    load, loaded = ModelSource.load, []

    def noted(source: ModelSource, cache: Path | None = None) -> LanguageModel:
        loaded.append(source.name)
        return load(source, cache)

    monkeypatch.setattr(ModelSource, "load", noted)
    served = ["teacher.source=server", f"teacher.url={stub.url}", "teacher.wait=0.0"]
    other = run(arguments(tiny_pair, traces, tmp_path, *words, *served), tmp_path / "other")
    assert loaded == [str(tiny_pair[0])]
    mine, theirs = (
        list(csv.DictReader((one / "metrics.csv").read_text().splitlines())) for one in (own, other)
    )
    assert [float(row["train/loss"]) for row in theirs] == pytest.approx(
        [float(row["train/loss"]) for row in mine], rel=1e-5
    )
    loaded.clear()
    serving(stub, lambda body: NONE[0])
    with pytest.raises(UserError, match="gives no log-probs of a prompt's tokens"):
        run(arguments(tiny_pair, traces, tmp_path, *words, *served), tmp_path / "none")
    assert not loaded


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["loss=sft"], "takes nothing of a teacher"),
        (["loss=forward_kl"], r"loss\.distribution\.source=top_k"),
        (["loss=on_policy_kd"], "runs the teacher as it trains"),
        (["loss=forward_kl", "loss.distribution.source=hidden_states"], "take top_k"),
        (["loss=dcod", "data.completions=teacher"], r"distill\.generate engine=server"),
        (["loss=dcod", "teacher.api=ollama"], "is not one of vllm, sglang"),
        (["loss=dcod", "teacher.url=localhost"], "is no http"),
    ],
)
def test_what_a_server_cannot_give_is_refused_before_anything_is_asked(
    words: list[str],
    said: str,
    tiny_pair: tuple[Path, Path],
    traces: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    words = [*arguments(tiny_pair, traces, tmp_path, *words), "teacher.source=server"]
    with pytest.raises(UserError, match=rf"teacher\..*{said}"):
        run(words, tmp_path / "run")


def test_the_source_of_the_tokenizer_is_the_teacher(tiny_pair: tuple[Path, Path]) -> None:
    source = find_model(str(tiny_pair[1]), key="model.teacher")
    assert TeacherSource().serve(source) is None
    served = TeacherSource("server").serve(source)
    assert served is not None
    assert served.settings == {"served_as": source.name, "api": "vllm"}
