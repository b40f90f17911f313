"""A server with OpenAI's API for tests, which also fails in every way that a server can fail."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from distill.models.find import find_model
from distill.tiny import task

DRIPS, BREAKS_OFF = -1, -2
Fault = Callable[[int], tuple[int, dict[str, str], str] | None]


def solution(body: dict[str, Any]) -> str:
    """The embedded task's right solution of the last message."""
    return task.write_solution(body["messages"][-1]["content"], "double")


@dataclass
class Stub:
    """Answers chat completions with `reply`, or as `fault` says, by the request's number.

    `reply` makes a text of a request's fields. A fault's status 0 hangs up, after `silence`; DRIPS sends the
    answer a byte at a time, without end; BREAKS_OFF announces more than it sends. `answer` is everything's
    answer.
    """

    fault: Fault = lambda number: None
    reply: Callable[[dict[str, Any]], str] = solution
    silence: float = 0.0
    answer: dict[str, Any] | None = None
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
            if answer is None and state.answer is not None:
                answer = 200, {}, json.dumps(state.answer)
            elif answer is None:
                text = state.reply(body)
                choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
                if body["max_tokens"] < len(text) + 1:
                    choice = {"message": {"content": text[: body["max_tokens"]]}, "finish_reason": "length"}
                elif state.token_ids:
                    tokenizer = find_model("package:distill/tiny/teacher", key="model.teacher").tokenizer
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
            self.send_response(code if code > 0 else 200)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(text.encode()) if code > 0 else 1 << 20))
            self.end_headers()
            with contextlib.suppress(OSError):  # nobody listens any more
                self.wfile.write(text.encode())
                while code == DRIPS:
                    self.wfile.write(b" ")
                    time.sleep(0.05)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


def completion(message: dict[str, Any], reason: str = "stop", tokens: int | None = None) -> dict[str, Any]:
    answer = {"choices": [{"message": {"role": "assistant", **message}, "finish_reason": reason}]}
    return answer if tokens is None else answer | {"usage": {"completion_tokens": tokens}}
