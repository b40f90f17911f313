"""A teacher behind a server that speaks OpenAI's protocol: vLLM's, transformers', or a commercial one."""

import os
import random
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import httpx
import numpy as np

from distill.engines import Request, Written
from distill.errors import UserError
from distill.generation import Sampling
from distill.teacher import LazyModel

_RETRIED = {408, 409, 425, 429, 500, 502, 503, 504, 529}


class ServerEngine:
    """Chat completions by HTTP, several at once; a fault is tried again a bounded number of times.

    What is written before a server gives up is kept by the caller.

    Args:
        model: the teacher; its tokenizer spells what comes back as text.
        url: up to and without `/chat/completions`, such as `http://localhost:8000/v1`.
        served_as: the model's name on the server; None: as in `model.teacher`.
        key_from: environment variable that holds the API key.
        concurrency: requests under way at once.
        retries: further attempts after a fault.
        timeout: seconds without an answer after which an attempt is given up.
        wait: seconds before the first further attempt; doubled for each one after, at most a minute.
    """

    name = "server"

    def __init__(
        self,
        model: LazyModel,
        url: str,
        served_as: str | None = None,
        key_from: str = "OPENAI_API_KEY",
        concurrency: int = 16,
        retries: int = 6,
        timeout: float = 600.0,
        wait: float = 1.0,
    ) -> None:
        if not str(url).startswith(("http://", "https://")):
            raise ValueError(f"engine.url={url!r} is no http:// or https:// address")
        for name, value, least in (("concurrency", concurrency, 1), ("retries", retries, 0)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"engine.{name}={value!r} is not a whole number, at least {least}")
        if not timeout > 0 or not wait >= 0:
            raise ValueError(f"engine.timeout={timeout} must be positive, engine.wait={wait} not negative")
        self.url = str(url).rstrip("/")
        self.served_as = served_as or model.source.name
        self.key = os.environ.get(key_from)
        self.concurrency, self.retries, self.timeout, self.wait = concurrency, retries, timeout, wait
        self._stop = threading.Event()

    def write(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Written]]:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        limits = httpx.Limits(max_connections=self.concurrency)
        self._stop.clear()
        with (
            httpx.Client(headers=headers, timeout=self.timeout, limits=limits) as client,
            ThreadPoolExecutor(self.concurrency) as pool,
        ):
            waiting = iter(enumerate(requests))
            running: dict[Future[Written], int] = {}
            try:
                while True:
                    # Handed over as there is room, so that a failure leaves no long queue behind.
                    while len(running) < self.concurrency and (following := next(waiting, None)):
                        place, request = following
                        running[pool.submit(self._complete, client, request, sampling)] = place
                    if not running:
                        return
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    # What came back well is given out before a failure ends all.
                    for future in sorted(done, key=lambda each: each.exception() is not None):
                        yield running.pop(future), future.result()
            finally:
                self._stop.set()

    def _complete(self, client: httpx.Client, request: Request, sampling: Sampling) -> Written:
        body: dict[str, Any] = {
            "model": self.served_as,
            "messages": [dict(turn) for turn in request.messages],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            "seed": request.seed % 2**31,
            "n": 1,
            "stream": False,
        }
        if sampling.top_k:
            body["top_k"] = sampling.top_k  # not OpenAI's own, but vLLM's and others'
        fault = ""
        for attempt in range(self.retries + 1):
            pause = min(60.0, self.wait * 2**attempt) * (0.5 + random.random() / 2)
            try:
                answer = client.post(f"{self.url}/chat/completions", json=body)
            except httpx.TimeoutException:
                fault = f"no answer within {self.timeout:g} s"
            except httpx.HTTPError as error:
                fault = f"{type(error).__name__}: {error}"
            else:
                if answer.status_code == 200:
                    try:
                        return _read(answer.json())
                    except (ValueError, KeyError, IndexError, TypeError) as error:
                        fault = f"an answer that is no chat completion ({error!r}: {answer.text[:80]!r})"
                elif answer.status_code in _RETRIED:
                    fault = f"status {answer.status_code} ({answer.text[:80].strip()!r})"
                    pause = max(pause, _asked_to_wait(answer))
                else:
                    raise UserError(
                        f"the server at {self.url} refuses: status {answer.status_code}, "
                        f"{answer.text[:200].strip()!r}; mend engine.url, engine.served_as="
                        f"{self.served_as} or the key, and run again: what is written is kept"
                    )
            if attempt < self.retries and self._stop.wait(pause):
                break
        raise UserError(
            f"the server at {self.url} failed {self.retries + 1} times, the last with {fault}: see to it and "
            f"run the same command again, what is written is kept"
        )


def _read(answer: Any) -> Written:
    choice = answer["choices"][0]
    text = choice["message"]["content"]
    if not isinstance(text, str):
        raise TypeError(f"content is {type(text).__name__}")
    finished = choice["finish_reason"] == "stop"
    ids = choice.get("token_ids")  # vLLM, asked for with return_token_ids
    return Written(None if ids is None else np.asarray(ids, dtype=np.int32), finished, text)


def _asked_to_wait(answer: httpx.Response) -> float:
    try:
        return min(120.0, float(answer.headers.get("retry-after", "0")))
    except ValueError:  # a date
        return 0.0
