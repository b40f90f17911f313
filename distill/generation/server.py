"""Engine for servers with OpenAI's API: vLLM's, transformers', or a commercial one."""

import asyncio
import contextlib
import json
import os
import queue
import random
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any

import httpx
import numpy as np
from tqdm.auto import tqdm

from distill.data.trace import encode_completion
from distill.errors import UserError
from distill.generation.engine import Request, Written
from distill.generation.sampling import Sampling
from distill.models.lazy import LazyModel

_RETRIED = {408, 409, 425, 429, 500, 502, 503, 504, 529}
_OF_ONE_REQUEST = {400, 413, 422}  # rejections that may concern a single problem: too long, or filtered
_HERE = {"localhost", "127.0.0.1", "::1", "0.0.0.0"}
# Raised when a response is not a chat completion.
_UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)
_CONNECT = 30.0  # seconds to connect; only the response itself may take long
_ALIKE_PROBLEMS = 5  # problems whose samples are all equal, from which on a warning is printed

_Put = Callable[[tuple[int, Written] | BaseException | None], None]


class ServerEngine:
    """Requests chat completions over HTTP, several at once, with a limited number of retries.

    When a request has finally failed, no further request is sent, and those in progress are waited for, so
    that the caller can store their completions. Ctrl-C stops at once.

    Args:
        model: the teacher; its tokenizer encodes the returned text.
        url: base URL, everything before `/chat/completions`, such as `http://localhost:8000/v1`.
        served_as: the model's name on the server; None: as in `model.teacher`.
        key_from: environment variable that holds the API key.
        concurrency: requests in progress at the same time.
        retries: further attempts after a failed request.
        timeout: seconds to wait for a complete response.
        wait: seconds before the first retry; doubled for each further retry, at most a minute.
        refused: what to do if the server rejects a single request (too long for its context, or filtered).
            `error`: stop; `skip`: return an empty, unfinished completion.
        extra: further fields of every request that are not common to all servers, such as
            `repetition_penalty`; a field that is None is not sent.
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
        refused: str = "error",
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        host = _host(url)
        for name, value, least in (("concurrency", concurrency, 1), ("retries", retries, 0)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"engine.{name}={value!r} is not a whole number, at least {least}")
        for name, value in (("timeout", timeout), ("wait", wait)):
            if not isinstance(value, int | float):
                raise ValueError(f"engine.{name}={value!r} is not a number of seconds")
        if not timeout > 0 or not wait >= 0:
            raise ValueError(f"engine.timeout={timeout} must be positive, engine.wait={wait} not negative")
        if refused not in ("error", "skip"):
            raise ValueError(f"engine.refused={refused!r} is not one of error, skip")
        if extra is not None and not isinstance(extra, Mapping):
            raise ValueError(f"engine.extra={extra!r} is no list of fields: +engine.extra.<field>=<value>")
        self.source = model.source
        self.url = str(url).rstrip("/")
        self.served_as = str(served_as or model.source.name)
        self.key_from, self.key = key_from, os.environ.get(key_from, "").strip()
        if not self.key.isascii() or not self.key.isprintable():
            raise ValueError(
                f"the key in {key_from} has characters that are not allowed in a key: set it again"
            )
        self.concurrency, self.retries, self.timeout, self.wait = concurrency, retries, timeout, wait
        self.refused = refused
        self.extra = dict(extra or {})
        # Settings that change the completions.
        self.settings = {"served_as": self.served_as, "extra": self.extra}
        # A server on this machine must not be reached through a proxy of the environment.
        self._proxied = host not in _HERE
        self._said_fault, self._skipped = False, 0
        self.seconds = 0.0

    def write(
        self, requests: Sequence[Request], sampling: Sampling
    ) -> Generator[tuple[int, Written], None, None]:
        found: queue.SimpleQueue[tuple[int, Written] | BaseException | None] = queue.SimpleQueue()
        self._said_fault, self._skipped = False, 0
        seen: dict[bytes, list[str]] = {}
        began = time.perf_counter()
        # The event loop has its own thread: requests continue while the caller stores a completion, it works
        # if a loop is already running (a notebook), and all requests can be cancelled at once.
        loop = asyncio.new_event_loop()
        asked = loop.create_task(self._ask_all(requests, sampling, found.put))
        thread = threading.Thread(target=_run, args=(loop, asked), daemon=True, name="server engine")
        thread.start()
        try:
            while (item := found.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                seen.setdefault(_prompt_of(requests[item[0]]), []).append(item[1].text)
                yield item
        finally:
            self.seconds += time.perf_counter() - began
            loop.call_soon_threadsafe(asked.cancel)
            thread.join()
            loop.close()
        if sampling.temperature > 0:
            _say_if_all_alike(seen.values(), sampling)
        if self._skipped:
            tqdm.write(f"{self._skipped} rejected requests are stored as empty completions", file=sys.stderr)

    async def _ask_all(self, requests: Sequence[Request], sampling: Sampling, put: _Put) -> None:
        """Put every completion as it arrives; after the last one put None, or the error that ended it."""
        waiting = iter(enumerate(requests))
        over = asyncio.Event()
        failures: list[UserError] = []

        async def work(client: httpx.AsyncClient) -> None:
            for place, request in waiting:
                try:
                    put((place, await self._complete(client, request, sampling, over)))
                except UserError as error:
                    failures.append(error)
                    over.set()
                if over.is_set():
                    return

        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        try:
            # The timeout is for the whole response and not httpx's, with which a slow stream would never end.
            async with httpx.AsyncClient(
                headers=headers,
                timeout=httpx.Timeout(None, connect=min(_CONNECT, self.timeout)),
                limits=httpx.Limits(max_connections=self.concurrency),
                trust_env=self._proxied,
            ) as client:
                workers = [
                    asyncio.ensure_future(work(client)) for _ in range(min(self.concurrency, len(requests)))
                ]
                try:
                    await asyncio.gather(*workers)
                finally:
                    for worker in workers:
                        worker.cancel()
                    await asyncio.gather(*workers, return_exceptions=True)
            put(failures[0] if failures else None)
        except BaseException as error:
            put(error)

    async def _complete(
        self, client: httpx.AsyncClient, request: Request, sampling: Sampling, over: asyncio.Event
    ) -> Written:
        body = self._body(request, sampling)
        fault, before, attempts = "", "", 0
        while attempts <= self.retries:
            pause = min(60.0, self.wait * 2**attempts) * (0.5 + random.random() / 2)
            attempts += 1
            last = fault
            try:
                post = client.post(f"{self.url}/chat/completions", json=body)
                answer = await asyncio.wait_for(post, self.timeout)
            except asyncio.TimeoutError:  # not the same class as TimeoutError in Python 3.10
                fault = f"no answer within {self.timeout:g} s"
            except httpx.HTTPError as error:
                fault = f"{type(error).__name__}: {error}".rstrip(": ")
            else:
                if answer.status_code == 200:
                    try:
                        return self._read(answer.json(), request)
                    except _UNREADABLE as error:
                        fault = f"an answer that is no chat completion ({error!r}: {answer.text[:80]!r})"
                elif answer.status_code in _RETRIED:
                    fault = f"status {answer.status_code} ({answer.text[:80].strip()!r})"
                    pause = max(pause, _asked_to_wait(answer))
                elif answer.status_code in _OF_ONE_REQUEST and self.refused == "skip":
                    self._skipped += 1
                    return Written(None, finished=False)
                else:
                    raise self._refusal(answer, request)
            # A failing server may also close the connection; report the fault before that too.
            before = last if last and last != fault else before
            if over.is_set():
                break
            if attempts <= self.retries:
                self._say_fault(fault)
                if await _set_within(over, pause):
                    break
        faults = f"{fault}, before that {before}" if before else fault
        raise UserError(
            f"the server at {self.url} failed {attempts} times, the last with {faults}: check it and run "
            f"the same command again; the completions so far are stored (request: {_beginning(request)})"
        )

    def _body(self, request: Request, sampling: Sampling) -> dict[str, Any]:
        # A long prompt leaves less room than max_new_tokens: some servers reject a larger max_tokens.
        room = self.source.context_length - len(request.prompt_ids)
        body: dict[str, Any] = {
            "model": self.served_as,
            "messages": [dict(turn) for turn in request.messages],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": max(1, min(sampling.max_new_tokens, room)),
            "seed": request.seed % 2**31,
            "n": 1,
            "stream": False,
        }
        if sampling.top_k:
            body["top_k"] = sampling.top_k  # not in OpenAI's API, but in vLLM's and others'
        return {name: value for name, value in (body | self.extra).items() if value is not None}

    def _read(self, answer: Any, request: Request) -> Written:
        choice = answer["choices"][0]
        message, finished = choice["message"], choice["finish_reason"] == "stop"
        thought = message.get("reasoning_content") or message.get(
            "reasoning"
        )  # the latter is vLLM's current name
        thought = thought if isinstance(thought, str) else ""
        text = message.get("content")
        if not isinstance(text, str):
            # A completion that was cut off while thinking, or filtered, has no answer.
            if text is not None or (finished and not thought):
                raise TypeError(f"content is {type(text).__name__}")
            text = ""
        # Replace lone surrogates, which cannot be written to a file.
        text = text.encode("utf-8", "replace").decode("utf-8")
        ends = self.source.end_ids
        # vLLM returns token ids on request: +engine.extra.return_token_ids=true
        if ids := choice.get("token_ids"):
            if finished and ids[-1] not in ends:
                ids = [*ids, ends[0]]
            return Written(np.asarray(ids, dtype=np.int32), finished, text)
        # Some servers leave the end token in the text. If it was also the last allowed token, transformers
        # serve reports "length".
        for end in self.source.tokenizer.convert_ids_to_tokens(ends):
            if end and text.endswith(end):
                text, finished = text.removesuffix(end), True
        text = self._without_prompt(text, request, answer.get("usage"), bool(thought))
        if thought:
            text = self._with_thought(thought, text, request, closed=finished or bool(text))
        return Written(None, finished, text)

    def _without_prompt(self, text: str, request: Request, usage: Any, thought: bool) -> str:
        """The completion without its prompt.

        `transformers serve` prepends the prompt if it parses answers by its architecture's template and the
        model has another one. A completion may also begin like its prompt, so the server's token count
        decides.
        """
        tokenizer = self.source.tokenizer
        prompt = tokenizer.decode(request.prompt_ids).strip()
        if thought and text.strip() == prompt.removesuffix("<think>").strip():
            return ""  # cut off while thinking: there is no other text
        written = usage.get("completion_tokens") if isinstance(usage, Mapping) else None
        if not prompt or not text.startswith(prompt) or not isinstance(written, int):
            return text
        rest = text[len(prompt) :]
        try:
            whole, part = (len(encode_completion(tokenizer, t, self.source.end_ids)) for t in (text, rest))
        except UserError:  # it cannot be tokenized, which is reported when it is stored
            return text
        return rest if abs(part - written) < abs(whole - written) else text

    def _with_thought(self, thought: str, text: str, request: Request, closed: bool) -> str:
        """The completion as the model wrote it, for a server that returns the thinking separately."""
        prompt = self.source.tokenizer.decode(request.prompt_ids[-32:]).rstrip()
        opened = "" if prompt.endswith("<think>") else "<think>\n"
        thought = thought.encode("utf-8", "replace").decode("utf-8").strip("\n")
        answer = text.lstrip("\n")
        return f"{opened}{thought}\n</think>\n\n{answer}" if closed else f"{opened}{thought}"

    def _refusal(self, answer: httpx.Response, request: Request) -> UserError:
        said = repr(answer.text[:200].strip())
        if answer.has_redirect_location:
            said = f"moved to {answer.headers['location']}"
        key = "the key in" if self.key else "the key, of which there is none in"
        alone = (
            ", or leave such problems empty with engine.refused=skip"
            if answer.status_code in _OF_ONE_REQUEST
            else ""
        )
        return UserError(
            f"the server at {self.url} refuses: status {answer.status_code}, {said}, for the request "
            f"{_beginning(request)}; correct engine.url, engine.served_as={self.served_as} or {key} "
            f"{self.key_from}{alone}, and run again: the completions so far are stored"
        )

    def _say_fault(self, fault: str) -> None:
        """Print the first fault, so that the user knows why the command waits."""
        if not self._said_fault:
            self._said_fault = True
            tqdm.write(f"the server at {self.url}: {fault}; trying again", file=sys.stderr)


def _host(url: Any) -> str:
    """The host of a server's URL.

    Raises:
        ValueError: it is no valid base URL.
    """
    try:
        parsed = httpx.URL(str(url))
    except (httpx.InvalidURL, ValueError) as error:
        raise ValueError(f"engine.url={url!r} is no http:// or https:// address: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"engine.url={url!r} is no http:// or https:// address")
    if parsed.port is not None and not 0 < parsed.port < 1 << 16:
        raise ValueError(f"engine.url={url!r}: there is no port {parsed.port}")
    if parsed.query or parsed.fragment or parsed.path.rstrip("/").endswith("/completions"):
        raise ValueError(f"engine.url={url!r} is too long: leave out /chat/completions and what follows")
    return parsed.host


def _run(loop: asyncio.AbstractEventLoop, asked: "asyncio.Task[None]") -> None:
    asyncio.set_event_loop(loop)
    with contextlib.suppress(asyncio.CancelledError):  # cancelled before it started
        loop.run_until_complete(asked)
    loop.run_until_complete(loop.shutdown_asyncgens())


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event; False if it does not happen in time."""
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except asyncio.TimeoutError:
        return False
    return True


def _prompt_of(request: Request) -> bytes:
    return json.dumps([dict(turn) for turn in request.messages]).encode()


def _beginning(request: Request) -> str:
    content = str(request.messages[-1]["content"]) if request.messages else ""
    return repr(content if len(content) <= 60 else f"{content[:60]}...")


def _say_if_all_alike(completions: Iterable[list[str]], sampling: Sampling) -> None:
    """Warn if all samples of each problem are equal: the server may ignore the temperature."""
    several = [texts for texts in completions if len(texts) > 1]
    if len(several) >= _ALIKE_PROBLEMS and all(len(set(texts)) == 1 for texts in several):
        tqdm.write(
            f"each of {len(several)} problems got the same completion every time, at sampling.temperature="
            f"{sampling.temperature:g}: does the server sample? (transformers serve does where the model's "
            f"generation_config.json has do_sample: true)",
            file=sys.stderr,
        )


def _asked_to_wait(answer: httpx.Response) -> float:
    try:
        return min(120.0, float(answer.headers.get("retry-after", "0")))
    except ValueError:  # a date
        return 0.0
