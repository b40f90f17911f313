"""Tests of a teacher behind a server, with a stub that implements the protocol and all its failures."""

import asyncio
import json
import os
import resource
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from chat_stub import BREAKS_OFF, DRIPS, Stub, completion
from covering import some_of
from test_generate import SMALL, run

from distill.errors import UserError
from distill.generation.chat_faults import is_too_long
from distill.generation.completion_log import CompletionLog
from distill.generation.engine import Request, Written
from distill.generation.engines import HfEngine, VllmEngine
from distill.generation.neutral import NEUTRAL
from distill.generation.sampling import Sampling
from distill.generation.server import ServerEngine
from distill.io.locks import locked
from distill.models.find import find_model
from distill.models.lazy import LazyModel
from distill.tiny import task


def words(stub: Stub, *more: str) -> list[str]:
    few = ["data.limit=12", "data.operations=[2,4]", "samples=2"]
    return [*SMALL[:2], *few, "engine=server", f"engine.url={stub.url}", "engine.wait=0.01", *more]


def teacher() -> LazyModel:
    return LazyModel(find_model("package:distill/tiny/teacher", key="model.teacher"), "cpu")


def asked_for(*problems: str, model: LazyModel | None = None) -> list[Request]:
    tokenizer = (model or teacher()).source.tokenizer
    return [
        Request(np.asarray(tokenizer(problem).input_ids), ({"role": "user", "content": problem},), seed)
        for seed, problem in enumerate(problems)
    ]


def ask(stub: Stub, *problems: str, **options: Any) -> list[Written]:
    """What the engine makes of the stub's answers, in the order of the problems."""
    model = teacher()
    engine = ServerEngine(model, stub.url, **{"wait": 0.0, **options})
    sampling = Sampling(temperature=1.0, max_new_tokens=50)
    found = dict(engine.write(asked_for(*problems, model=model), sampling))
    return [found[place] for place in range(len(problems))]


@pytest.mark.slow
def test_a_set_by_a_server_is_asked_for_as_it_should_be(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    records = run(
        words(stub, "engine.served_as=big", "teacher_prompt=boxed", "engine.concurrency=3"), tmp_path / "set"
    )
    assert len(records) == len(stub.seen) == 24
    assert stub.most_under_way <= 3
    assert set(stub.keys) == {"Bearer sesame"}
    assert len({body["seed"] for body in stub.seen}) == 24
    for body in stub.seen:
        assert body["model"] == "big"
        assert [turn["role"] for turn in body["messages"]] == ["system", "user"]
        assert (body["temperature"], body["top_p"], body["n"], body["stream"]) == (0.7, 0.95, 1, False)
        assert {name: body[name] for name in NEUTRAL} == NEUTRAL  # not what generation_config.json says
    for record in records:
        assert record["completion"] == task.write_solution(record["problem"], "double")
        assert record["correct"]
        assert record["ids_from"] == "text"
        assert record["teacher_logprobs"] is None  # a server's are not the training engine's
        assert record["engine"] == "server"
        assert record["completion_ids"][-1] == 1


@pytest.mark.slow
def test_a_server_needs_no_gpu_here_unless_the_teacher_scores_here_too(stub: Stub, tmp_path: Path) -> None:
    assert len(run(words(stub, "trainer=gpu"), tmp_path / "set")) == 24
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="torch sees no GPU"):
            run(words(stub, "trainer=gpu", "logprobs=true"), tmp_path / "scored")


@pytest.mark.slow
def test_token_ids_that_a_server_gives_are_kept(stub: Stub, tmp_path: Path) -> None:
    stub.token_ids = True
    records = run(words(stub, "logprobs=true"), tmp_path / "set")
    assert {record["ids_from"] for record in records} == {"engine"}
    assert all(len(r["teacher_logprobs"]) == len(r["completion_ids"]) for r in records)


@pytest.mark.slow
def test_a_completion_that_was_cut_off_has_no_end(stub: Stub, tmp_path: Path) -> None:
    records = run(words(stub, "data.max_new_tokens=9"), tmp_path / "set")
    cut = [record for record in records if not record["finished"]]
    assert cut
    assert all(len(r["completion_ids"]) == 9 and r["reason"] == "no end" for r in cut)


FAULTS: dict[str, tuple[int, dict[str, str], str]] = {
    "busy": (429, {"Retry-After": "0"}, "slow down"),
    "busy until a date": (429, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, "slow down"),
    "broken": (500, {}, "oops"),
    "away": (503, {}, ""),
    "garbage": (200, {}, "<html>"),
    "no choice": (200, {}, '{"choices": []}'),
    "no object": (200, {}, "[1, 2]"),
    "hung up": (0, {}, ""),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", some_of(FAULTS, "busy until a date", "garbage", "hung up"))
def test_a_fault_is_tried_again_and_nothing_is_lost_or_repeated(
    fault: str, stub: Stub, tmp_path: Path
) -> None:
    stub.fault = lambda number: FAULTS[fault] if number % 3 == 0 else None
    records = run(words(stub), tmp_path / "set")
    assert len(records) == 24
    assert all(record["correct"] for record in records)
    answered = Counter(body["seed"] for number, body in enumerate(stub.seen) if number % 3)
    assert set(answered.values()) == {1}


@pytest.mark.parametrize(
    "fault",
    [
        (BREAKS_OFF, {}, '{"choi'),
        (200, {}, ""),
        (200, {}, "null"),
        (200, {}, '"hello"'),
        (200, {}, "[" * 100_000),
        (200, {}, '{"error": {"message": "out of memory"}}'),
        (200, {"Content-Encoding": "gzip"}, "no gzip"),
    ],
)
def test_an_answer_of_another_form_is_a_fault_like_any_other(
    fault: tuple[int, dict[str, str], str], stub: Stub
) -> None:
    stub.fault = lambda number: fault if number % 2 == 0 else None
    assert [one.text for one in ask(stub, "1+2=", concurrency=1)] == ["1+2=3;#3"]
    stub.fault = lambda number: fault
    with pytest.raises(UserError, match=r"failed 3 times, the last with .*\(request: '1\+2='\)$"):
        ask(stub, "1+2=", retries=2)


@pytest.mark.slow
def test_an_answer_that_drips_is_given_up_in_time(stub: Stub) -> None:
    stub.fault = lambda number: (DRIPS, {}, "")
    began = time.monotonic()
    with pytest.raises(UserError, match=r"failed 2 times, the last with no answer within 0.3 s"):
        ask(stub, "1+2=", timeout=0.3, retries=1)
    assert time.monotonic() - began < 10


@pytest.mark.slow
def test_a_server_that_goes_silent_is_given_up_in_time(stub: Stub, tmp_path: Path) -> None:
    stub.fault, stub.silence = lambda number: FAULTS["hung up"], 3.0
    began = time.monotonic()
    with pytest.raises(
        UserError, match=r"failed 2 times, the last with no answer within 0.2 s: .*are stored"
    ):
        run(words(stub, "engine.timeout=0.2", "engine.retries=1", "engine.concurrency=2"), tmp_path / "set")
    assert time.monotonic() - began < 30


@pytest.mark.slow
def test_what_came_before_a_failure_is_kept_and_not_asked_for_again(stub: Stub, tmp_path: Path) -> None:
    stub.fault = lambda number: FAULTS["broken"] if number >= 10 else None
    with pytest.raises(UserError, match=r"failed 2 times, the last with status 500 \('oops'\)"):
        run(words(stub, "engine.retries=1", "engine.concurrency=1"), tmp_path / "set")
    kept = {body["seed"] for body in stub.seen[:10]}
    stub.fault = lambda number: None
    before = len(stub.seen)
    assert len(run(words(stub, "engine.concurrency=1"), tmp_path / "set")) == 24
    asked = {body["seed"] for body in stub.seen[before:]}
    assert len(stub.seen) - before == 14
    assert not asked & kept


@pytest.mark.slow
def test_those_under_way_when_one_fails_are_waited_for(stub: Stub, tmp_path: Path) -> None:
    stub.silence = 0.5
    refusal = (400, {}, "maximum context length is 16 tokens")
    stub.fault = lambda number: refusal if number == 3 else (time.sleep(0.5), None)[1]
    with pytest.raises(UserError, match=r"refuses: status 400, .*16 tokens.*or leave such problems empty"):
        run(words(stub, "engine.concurrency=6"), tmp_path / "set")
    assert len(stub.seen) == 6  # and no other was begun
    assert len(CompletionLog(tmp_path / "set" / "completions.jsonl").read()) == 5


@pytest.mark.slow
def test_refused_problems_may_stay_empty(
    stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.fault = lambda number: (400, {}, "filtered") if number % 4 == 0 else None
    records = run(words(stub, "engine.refused=skip"), tmp_path / "set")
    empty = [record for record in records if not record["completion"]]
    assert len(empty) == 6
    assert all(r["reason"] == "no end" and r["completion_ids"] == [] and not r["finished"] for r in empty)
    assert sum(record["correct"] for record in records) == 18
    assert "6 rejected requests are stored as empty completions" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "body", "alone"),
    [
        (400, "This model's maximum context length is 16 tokens", True),
        (400, "The response was filtered due to the prompt triggering the policy", True),
        (413, "too large", True),
        (500, "the request exceeds the available context size", True),
        (
            400,
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'x' instead.",
            False,
        ),
        (400, '{"error": {"code": "unsupported_parameter", "param": "max_tokens"}}', False),
        (400, "Unrecognized request argument supplied: top_k", False),
        (422, '[{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "no"}]', False),
    ],
)
def test_a_setting_that_no_request_may_have_is_not_one_problems_fault(
    status: int, body: str, alone: bool
) -> None:
    assert is_too_long(status, body) is alone


def test_what_a_server_said_before_it_hung_up_is_told_too(stub: Stub) -> None:
    stub.fault = lambda number: FAULTS["broken"] if number < 2 else FAULTS["hung up"]
    with pytest.raises(UserError, match=r"failed 4 times, the last with \w+Error.*, before that status 500"):
        ask(stub, "1+2=", retries=3)


@pytest.mark.slow
def test_text_that_the_teacher_cannot_spell_ends_the_run_before_any_is_kept(
    stub: Stub, tmp_path: Path
) -> None:
    stub.answer = completion({"content": "The answer is, of course, 3."})
    with pytest.raises(UserError, match=r"the tokenizer of package:.* cannot spell this data: "):
        run(words(stub, "engine.concurrency=1"), tmp_path / "set")
    assert not (tmp_path / "set").exists()
    assert not [thread for thread in threading.enumerate() if thread.name == "server engine"]


@pytest.mark.slow
def test_an_empty_completion_is_not_right(stub: Stub, tmp_path: Path) -> None:
    stub.answer = completion({"content": " \n"})
    records = run(words(stub, "check.answer=none"), tmp_path / "set")
    assert {record["reason"] for record in records} == {"empty"}


@pytest.mark.slow
def test_a_set_of_another_served_model_is_another(stub: Stub, tmp_path: Path) -> None:
    run(words(stub, "engine.served_as=one"), tmp_path / "set")
    with pytest.raises(UserError, match=r"another served_as"):
        run(words(stub, "engine.served_as=two"), tmp_path / "set")


def test_a_redirect_says_where_to(stub: Stub) -> None:
    stub.fault = lambda number: (307, {"Location": "https://else.where/v1/chat/completions"}, "")
    with pytest.raises(UserError, match=r"status 307, moved to https://else.where/v1/chat/completions"):
        ask(stub, "1+2=")


@pytest.mark.parametrize("code", [400, 401, 404])
def test_a_refusal_is_not_tried_again_and_says_what_to_mend(code: int, stub: Stub, tmp_path: Path) -> None:
    stub.fault = lambda number: (code, {}, '{"error": "no such model"}')
    with pytest.raises(UserError, match=rf"refuses: status {code}, .*no such model.*engine.served_as"):
        run(words(stub, "engine.concurrency=1"), tmp_path / "set")
    assert len(stub.seen) == 1


def test_nobody_at_the_address(tmp_path: Path) -> None:
    more = ["engine=server", "engine.url=http://127.0.0.1:9/v1", "engine.retries=0", "engine.wait=0"]
    with pytest.raises(UserError, match=r"http://127.0.0.1:9/v1 failed 1 times, the last with ConnectError"):
        run([*SMALL, *more], tmp_path / "set")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("engine.url=localhost:8000", r"engine.url='localhost:8000' is no http:// or https:// address"),
        ("engine.concurrency=0", r"engine.concurrency=0 is not a whole number, at least 1"),
        ("engine.retries=-1", r"engine.retries=-1"),
        ("engine.timeout=0", r"engine.timeout=0 must be positive"),
    ],
)
def test_a_bad_setting_is_refused_by_its_name(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        run([*SMALL, "engine=server", override], tmp_path / "set")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "http://"}, r"engine.url='http://' is no http"),
        ({"url": "http://[::1/v1"}, r"engine.url='http://\[::1/v1' is no http"),
        ({"url": "http://here:999999/v1"}, r"engine.url='http://here:999999/v1': there is no port 999999"),
        ({"url": "http://here/v1/chat/completions"}, r"is too long: leave out /chat/comp"),
        ({"refused": "maybe"}, r"engine.refused='maybe' is not one of error, skip"),
        ({"key_from": "ODD_KEY"}, r"the key in ODD_KEY has characters that are not allowed in a key"),
    ],
)
def test_so_is_one_that_nothing_can_be_asked_with(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ODD_KEY", "schlüssel")
    with pytest.raises(ValueError, match=message):
        ServerEngine(teacher(), **{"url": "http://localhost/v1", **options})


@pytest.mark.parametrize("bad", [0, -1])
def test_a_batch_holds_something(bad: int) -> None:
    with pytest.raises(ValueError, match=rf"engine.token_budget={bad!r} is not a whole number, at least 1"):
        HfEngine(teacher(), bad)
    with pytest.raises(ValueError, match=rf"engine.batch={bad!r} is not a whole number, at least 1"):
        VllmEngine(teacher(), bad)


def test_the_engine_gives_completions_as_they_come(stub: Stub) -> None:
    model = LazyModel(find_model("package:distill/tiny/teacher", key="model.teacher"), "cpu")
    engine = ServerEngine(model, stub.url, concurrency=2, wait=0.0)
    none = np.zeros(0, dtype=np.int32)
    requests = [Request(none, ({"role": "user", "content": f"{n}+1="},), n) for n in range(6)]
    found = dict(engine.write(requests, Sampling(temperature=1.0, top_k=5, max_new_tokens=50)))
    assert sorted(found) == list(range(6))
    assert {body["top_k"] for body in stub.seen} == {5}
    assert all(found[n].text == task.write_solution(f"{n}+1=", "double") for n in range(6))


@pytest.mark.parametrize(
    ("message", "reason", "text", "finished"),
    [
        ({"content": "#3", "reasoning_content": "1+2=3;"}, "stop", "<think>\n1+2=3;\n</think>\n\n#3", True),
        ({"content": "\n\n#3", "reasoning": "\n1+2=3;\n"}, "stop", "<think>\n1+2=3;\n</think>\n\n#3", True),
        ({"content": "#", "reasoning": "1+2=3;"}, "length", "<think>\n1+2=3;\n</think>\n\n#", False),
        ({"content": None, "reasoning": "1+2="}, "length", "<think>\n1+2=", False),
        ({"content": "", "reasoning_content": "1+2="}, "length", "<think>\n1+2=", False),
        ({"content": "1+2=3;#3", "reasoning": None}, "stop", "1+2=3;#3", True),
        ({"content": None}, "length", "", False),
        ({"content": None, "refusal": "no"}, "content_filter", "", False),
        ({"content": ""}, "stop", "", True),
        ({"content": None}, "stop", "", True),
        ({"content": None, "refusal": "no"}, "stop", "", False),
        (
            {"content": "<think>\n1\n</think>\n\n#3", "reasoning": "1"},
            "stop",
            "<think>\n1\n</think>\n\n#3",
            True,
        ),
        (
            {"content": "#3", "reasoning": "<think>1+2=3;</think>"},
            "stop",
            "<think>\n1+2=3;\n</think>\n\n#3",
            True,
        ),
    ],
)
def test_thinking_that_a_server_takes_out_of_a_completion_is_put_back(
    message: dict[str, Any], reason: str, text: str, finished: bool, stub: Stub
) -> None:
    stub.answer = completion(message, reason)
    (written,) = ask(stub, "1+2=", retries=0)
    assert (written.text, written.finished, written.ids) == (text, finished, None)


def test_thinking_that_the_template_opens_is_not_opened_twice(stub: Stub) -> None:
    prompt = "<User>1+2=<Assistant><think>\n"
    model = teacher()
    vars(model.source)["tokenizer"] = SimpleNamespace(
        decode=lambda ids: prompt if len(ids) else "", convert_ids_to_tokens=lambda ids: ["<end>"] * len(ids)
    )
    vars(model.source)["end_ids"] = [1]
    engine = ServerEngine(model, stub.url, wait=0.0)
    request = Request(np.arange(9, dtype=np.int32), ({"role": "user", "content": "1+2="},), 0)

    def text() -> str:
        ((_, written),) = engine.write([request], Sampling(max_new_tokens=50))
        return written.text

    stub.answer = completion({"content": "#3<end>", "reasoning_content": "1+2=3;"})
    assert text() == "1+2=3;\n</think>\n\n#3"
    # transformers serve, cut off while the model thought: the prompt up to there stands for the answer.
    stub.answer = completion({"content": "<User>1+2=<Assistant>", "reasoning_content": "1+2"}, "length")
    assert text() == "1+2"


@pytest.mark.parametrize(
    ("text", "tokens", "expected"),
    [
        ("1+2=1+2=3;#3<eos>", 9, "1+2=3;#3"),  # transformers serve, under a template that is not the model's
        ("1+2=3;#3<eos>", 9, "1+2=3;#3"),  # this completion begins as its prompt does
        ("1+2=3;#3", 9, "1+2=3;#3"),
        ("1+2=3;#3", None, "1+2=3;#3"),
    ],
)
def test_a_prompt_that_a_server_repeats_is_no_part_of_the_completion(
    text: str, tokens: int | None, expected: str, stub: Stub
) -> None:
    stub.answer = completion({"content": text}, tokens=tokens)
    (written,) = ask(stub, "1+2=")
    assert (written.text, written.finished) == (expected, True)


def test_an_end_token_in_the_text_is_an_end(stub: Stub) -> None:
    stub.answer = completion({"content": "1+2=3;#3<eos>"}, "length")  # it was the last that was allowed
    (written,) = ask(stub, "1+2=")
    assert (written.text, written.finished) == ("1+2=3;#3", True)


def test_what_no_file_can_hold_is_replaced(stub: Stub) -> None:
    stub.answer = completion({"content": "1+2=3;#3\ud800"})
    assert ask(stub, "1+2=")[0].text == "1+2=3;#3?"


def test_a_completion_ends_with_the_context(stub: Stub) -> None:
    ask(stub, "1+2=", "1" + "+1" * 45 + "=")
    assert sorted(body["max_tokens"] for body in stub.seen) == [128 - 92, 50]


def test_further_fields_are_sent_and_others_left_out(stub: Stub) -> None:
    stub.token_ids = True
    extra = {"return_token_ids": True, "max_tokens": None, "max_completion_tokens": 40, "top_p": 0.5}
    stub.answer = completion({"content": "1+2=3;#3"})
    stub.answer["choices"][0]["token_ids"] = teacher().source.tokenizer("1+2=3;#3").input_ids
    (written,) = ask(stub, "1+2=", extra=extra)
    assert stub.seen[0]["max_completion_tokens"] == 40
    assert (stub.seen[0]["return_token_ids"], stub.seen[0]["top_p"]) == (True, 0.5)
    assert "max_tokens" not in stub.seen[0]
    assert written.ids is not None
    assert written.ids[-1] == 1  # a server that stopped there may leave it out


@pytest.mark.slow
def test_samples_that_are_all_copies_are_said(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    problems = [f"{n}+1=" for n in range(6)]
    ask(stub, *problems, *problems)
    assert "each of 6 problems got the same completion every time" in capsys.readouterr().err
    ask(stub, *problems)
    answer = completion({"content": "1+2=3;#3"})
    stub.fault = lambda number: (200, {}, json.dumps(answer)) if number == 20 else None
    ask(stub, *problems, *problems)
    assert len(stub.seen) == 30
    assert "same completion" not in capsys.readouterr().err


def test_who_waits_is_told_for_what_once(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    stub.fault = lambda number: FAULTS["busy"] if number < 4 else None
    ask(stub, "1+2=", "2+2=", "3+2=")
    assert capsys.readouterr().err.count("status 429 ('slow down'); trying again") == 1


def test_a_server_on_this_machine_is_asked_without_the_proxy(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert ask(stub, "1+2=", retries=0)[0].finished


@pytest.mark.slow
def test_an_interrupt_waits_for_no_answer(stub: Stub) -> None:
    stub.fault, stub.silence = lambda number: FAULTS["hung up"], 20.0

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)  # pytest's own workers may take Ctrl-C for themselves
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGUSR1))
    began = time.monotonic()
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            ask(stub, "1+2=", "2+2=", timeout=60)
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)
    assert time.monotonic() - began < 12
    assert not [thread for thread in threading.enumerate() if thread.name == "server engine"]


def test_it_can_be_asked_where_a_loop_runs_already(stub: Stub) -> None:
    async def notebook() -> list[Written]:
        return ask(stub, "1+2=")

    assert asyncio.run(notebook())[0].finished


def test_a_reader_that_leaves_early_leaves_nothing_running(stub: Stub) -> None:
    engine = ServerEngine(teacher(), stub.url, concurrency=2, wait=0.0)
    writing = engine.write(asked_for(*["1+2="] * 200), Sampling(temperature=1.0, max_new_tokens=50))
    assert next(writing)[1].text == "1+2=3;#3"
    writing.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "server engine"]
    assert len(stub.seen) < 200


@pytest.mark.parametrize(
    "damage",
    [
        "garbage",
        "",
        "[1]",
        '{"place": 1, "ids": [99999999999], "finished": true, "text": ""}',
        '{"place": 1, "ids": [[1], [2]], "finished": true, "text": ""}',
        '{"place": 1, "ids": [-1], "finished": true, "text": ""}',
        '{"place": 1, "ids": "12", "finished": true, "text": ""}',
        '{"place": null, "ids": null, "finished": true, "text": ""}',
        '{"ids": null, "finished": true, "text": ""}',
        "\udcff",
        "[" * 100_000,
    ],
)
def test_a_damaged_line_of_the_journal_is_named(damage: str, tmp_path: Path) -> None:
    with CompletionLog(tmp_path / "journal") as journal:
        for place in range(3):
            journal.add(place, Written(np.asarray([5, 1]), True))
    lines = (tmp_path / "journal").read_bytes().split(b"\n")
    lines[1] = damage.encode("utf-8", "surrogateescape")
    (tmp_path / "journal").write_bytes(b"\n".join(lines))
    with pytest.raises(UserError, match=r"journal, line 2 is damaged \(.+\): take the line out, and its"):
        journal.read()
    del lines[1]
    (tmp_path / "journal").write_bytes(b"\n".join(lines))
    assert sorted(journal.read()) == [0, 2]


def test_a_full_disk_takes_no_half_completion(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    written = Written(np.arange(100), True)
    journal = CompletionLog(tmp_path / "journal")
    with journal:
        journal.add(0, written)
        size = journal.path.stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + size // 2, hard))  # half a line more, then no more
        try:
            with pytest.raises(UserError, match=r"journal cannot be read or written \(.+\): .*are stored"):
                journal.add(1, written)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert journal.path.stat().st_size == size
        journal.add(2, written)
    assert sorted(journal.read()) == [0, 2]


def test_a_place_where_no_journal_can_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"file/journal cannot be read or written"),
        CompletionLog(tmp_path / "file/journal"),
    ):
        pass


@pytest.mark.slow
def test_a_set_whose_key_is_damaged_and_one_that_another_process_writes_are_refused(
    stub: Stub, tmp_path: Path
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "key.json").write_text('{"teacher": ')
    with pytest.raises(UserError, match=r"key.json is damaged .*so the content of out=.* is unknown"):
        run(words(stub), folder)
    with (
        locked(tmp_path / "other", "out"),
        pytest.raises(UserError, match=r"another run is writing into .*other: name another folder with out="),
    ):
        run(words(stub), tmp_path / "other")
    assert not stub.seen


@pytest.mark.slow
def test_a_problem_longer_than_the_context_is_named_before_anything_is_asked(
    stub: Stub, tmp_path: Path
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"problem": text}) + "\n" for text in ("1+2=", "1" + "+1" * 80 + "=")))
    more = ["model=tiny", "data=traces", f"data.path={data}", "data.fields.completion=null", "samples=1"]
    with pytest.raises(UserError, match=r"data.jsonl, line 2\) has 162 tokens, which leaves no room"):
        run([*more, "engine=server", f"engine.url={stub.url}"], tmp_path / "set")
    assert not stub.seen
