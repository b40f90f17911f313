"""A teacher behind a server, against a stub that speaks the protocol and makes every fault of it."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_generate import SMALL, run

from distill.engines import Request
from distill.errors import UserError
from distill.generation import Sampling
from distill.models import find_model
from distill.server import ServerEngine
from distill.teacher import LazyModel
from distill.tiny import task

Fault = Callable[[int], tuple[int, dict[str, str], str] | None]


@dataclass
class Stub:
    """Answers chat completions with the right solution, or as `fault` says, by the request's number."""

    fault: Fault = lambda number: None
    silence: float = 0.0
    token_ids: bool = False
    seen: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    url: str = ""
    under_way: int = 0
    most_under_way: int = 0


@pytest.fixture
def stub() -> Iterator[Stub]:
    state = Stub()
    lock = threading.Lock()
    tokenizer = find_model("package:distill/tiny/teacher", key="model.teacher").tokenizer

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(state.seen)
                state.seen.append(body)
                state.keys.append(self.headers.get("Authorization"))
                state.under_way += 1
                state.most_under_way = max(state.most_under_way, state.under_way)
            answer = state.fault(number)
            if answer is None:
                text = task.write_solution(body["messages"][-1]["content"], "double")
                choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
                if body["max_tokens"] < len(text) + 1:
                    choice = {"message": {"content": text[: body["max_tokens"]]}, "finish_reason": "length"}
                elif state.token_ids:
                    choice["token_ids"] = [*tokenizer(text).input_ids, tokenizer.eos_token_id]
                answer = 200, {}, json.dumps({"choices": [choice]})
            elif answer[0] == 0:
                time.sleep(state.silence)
            with lock:
                state.under_way -= 1
            code, headers, text = answer
            if code == 0:
                self.close_connection = True
                return
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


def words(stub: Stub, *more: str) -> list[str]:
    few = ["data.limit=12", "data.operations=[2,4]", "samples=2"]
    return [*SMALL[:2], *few, "engine=server", f"engine.url={stub.url}", "engine.wait=0.01", *more]


def test_a_set_by_a_server_is_asked_for_as_it_should_be(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    records = run(
        words(stub, "engine.served_as=big", "prompt=boxed", "engine.concurrency=3"), tmp_path / "set"
    )
    assert len(records) == len(stub.seen) == 24
    assert stub.most_under_way <= 3
    assert set(stub.keys) == {"Bearer sesame"}
    assert len({body["seed"] for body in stub.seen}) == 24
    for body in stub.seen:
        assert body["model"] == "big"
        assert [turn["role"] for turn in body["messages"]] == ["system", "user"]
        assert (body["temperature"], body["top_p"], body["n"], body["stream"]) == (0.7, 0.95, 1, False)
        assert "top_k" not in body
    for record in records:
        assert record["completion"] == task.write_solution(record["problem"], "double")
        assert record["correct"]
        assert record["ids_from"] == "text"
        assert record["teacher_logprobs"] is None  # a server's are not the training engine's
        assert record["engine"] == "server"
        assert record["completion_ids"][-1] == 1


def test_token_ids_that_a_server_gives_are_kept(stub: Stub, tmp_path: Path) -> None:
    stub.token_ids = True
    records = run(words(stub, "logprobs=true"), tmp_path / "set")
    assert {record["ids_from"] for record in records} == {"engine"}
    assert all(len(r["teacher_logprobs"]) == len(r["completion_ids"]) for r in records)


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
    "no text": (200, {}, '{"choices": [{"message": {"content": null}, "finish_reason": "stop"}]}'),
    "no object": (200, {}, "[1, 2]"),
    "hung up": (0, {}, ""),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_tried_again_and_nothing_is_lost_or_repeated(
    fault: str, stub: Stub, tmp_path: Path
) -> None:
    stub.fault = lambda number: FAULTS[fault] if number % 3 == 0 else None
    records = run(words(stub), tmp_path / "set")
    assert len(records) == 24
    assert all(record["correct"] for record in records)
    answered = Counter(body["seed"] for number, body in enumerate(stub.seen) if number % 3)
    assert set(answered.values()) == {1}


def test_a_server_that_goes_silent_is_given_up_in_time(stub: Stub, tmp_path: Path) -> None:
    stub.fault, stub.silence = lambda number: FAULTS["hung up"], 3.0
    began = time.monotonic()
    with pytest.raises(UserError, match=r"failed 2 times, the last with no answer within 0.2 s: .*is kept"):
        run(words(stub, "engine.timeout=0.2", "engine.retries=1", "engine.concurrency=2"), tmp_path / "set")
    assert time.monotonic() - began < 30


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


def test_the_engine_gives_completions_as_they_come(stub: Stub) -> None:
    model = LazyModel(find_model("package:distill/tiny/teacher", key="model.teacher"), "cpu")
    engine = ServerEngine(model, stub.url, concurrency=2, wait=0.0)
    none = np.zeros(0, dtype=np.int32)
    requests = [Request(none, ({"role": "user", "content": f"{n}+1="},), n) for n in range(6)]
    found = dict(engine.write(requests, Sampling(temperature=1.0, top_k=5, max_new_tokens=50)))
    assert sorted(found) == list(range(6))
    assert {body["top_k"] for body in stub.seen} == {5}
    assert all(found[n].text == task.write_solution(f"{n}+1=", "double") for n in range(6))
