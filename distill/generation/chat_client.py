"""Client for servers with OpenAI's API: sends chat completions over HTTP, with retries."""

import asyncio
import contextlib
import os
import queue
import random
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
from tqdm.auto import tqdm

from distill.errors import UserError
from distill.generation.sampling import Sampling

_RETRIED = {408, 409, 425, 429, 500, 502, 503, 504, 529}
_OF_ONE_REQUEST = {400, 413, 422}  # rejections that may concern a single problem: too long, or filtered
_HERE = {"localhost", "127.0.0.1", "::1", "0.0.0.0"}
# Raised when a response is not a chat completion.
_UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)
_CONNECT = 30.0  # seconds to connect; only the response itself may take long

T = TypeVar("T")
Body = Mapping[str, Any]


@dataclass
class ChatClient:
    """Requests chat completions over HTTP, several at once, with a limited number of retries.

    When a request has finally failed, no further request is sent, and those in progress are waited for, so
    that the caller can store their completions. Ctrl-C stops at once.

    Attributes:
        url: base URL, everything before `/chat/completions`, such as `http://localhost:8000/v1`.
        served_as: the model's name on the server.
        key_from: environment variable that holds the API key.
        concurrency: requests in progress at the same time.
        retries: further attempts after a failed request.
        timeout: seconds to wait for a complete response.
        wait: seconds before the first retry; doubled for each further retry, at most a minute.
        refused: what to do if the server rejects a single request (too long for its context, or filtered).
            `error`: stop; `skip`: yield None for it.
        extra: further fields of every request; a field that is None is not sent.
        named: what the user calls one of these settings, for messages.

    Raises:
        ValueError: a setting is invalid.
    """

    url: str
    served_as: str
    key_from: str = "OPENAI_API_KEY"
    concurrency: int = 16
    retries: int = 6
    timeout: float = 600.0
    wait: float = 1.0
    refused: str = "error"
    extra: Mapping[str, Any] = field(default_factory=dict)
    named: Callable[[str], str] = "engine.{}".format

    def __post_init__(self) -> None:
        named = self.named
        # A server on this machine must not be reached through a proxy of the environment.
        self._proxied = _host(self.url, named("url")) not in _HERE
        for name, least in (("concurrency", 1), ("retries", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{named(name)}={value!r} is not a whole number, at least {least}")
        for name in ("timeout", "wait"):
            value = getattr(self, name)
            if not isinstance(value, int | float):
                raise ValueError(f"{named(name)}={value!r} is not a number of seconds")
        if not self.timeout > 0 or not self.wait >= 0:
            raise ValueError(
                f"{named('timeout')}={self.timeout} must be positive, "
                f"{named('wait')}={self.wait} not negative"
            )
        if self.refused not in ("error", "skip"):
            raise ValueError(f"{named('refused')}={self.refused!r} is not one of error, skip")
        self._key = os.environ.get(self.key_from, "").strip()
        if not self._key.isascii() or not self._key.isprintable():
            raise ValueError(
                f"the key in {self.key_from} has characters that are not allowed in a key: set it again"
            )
        self.url = str(self.url).rstrip("/")
        self._said_fault = False

    def body(self, messages: Sequence[Mapping[str, str]], sampling: Sampling, seed: int) -> dict[str, Any]:
        """The fields of a request."""
        body: dict[str, Any] = {
            "model": self.served_as,
            "messages": [dict(turn) for turn in messages],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            "seed": seed % 2**31,
            "n": 1,
            "stream": False,
        }
        if sampling.top_k:
            body["top_k"] = sampling.top_k  # not in OpenAI's API, but in vLLM's and others'
        return {name: value for name, value in (body | dict(self.extra)).items() if value is not None}

    def ask(
        self, bodies: Iterable[Body], read: Callable[[int, Any], T]
    ) -> Generator[tuple[int, T | None], None, None]:
        """Send requests, and yield what is read of each answer, with the request's index, as it arrives.

        Args:
            bodies: the requests' fields.
            read: given a request's index and its answer; raises if this is no chat completion.

        Raises:
            UserError: a request has finally failed, or the server rejects it.
        """
        found: queue.SimpleQueue[tuple[int, T | None] | BaseException | None] = queue.SimpleQueue()
        self._said_fault = False
        # The event loop has its own thread: requests continue while the caller stores a completion, it works
        # if a loop is already running (a notebook), and all requests can be cancelled at once.
        loop = asyncio.new_event_loop()
        asked = loop.create_task(self._ask_all(bodies, read, found.put))
        thread = threading.Thread(target=_run, args=(loop, asked), daemon=True, name="server engine")
        thread.start()
        try:
            while (item := found.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            loop.call_soon_threadsafe(asked.cancel)
            thread.join()
            loop.close()

    async def _ask_all(
        self,
        bodies: Iterable[Body],
        read: Callable[[int, Any], T],
        put: Callable[[tuple[int, T | None] | BaseException | None], None],
    ) -> None:
        """Put every answer as it arrives; after the last one put None, or the error that ended it."""
        waiting = iter(enumerate(bodies))
        over = asyncio.Event()
        failures: list[UserError] = []

        async def work(client: httpx.AsyncClient) -> None:
            for place, body in waiting:
                try:
                    put((place, await self._complete(client, body, lambda a, n=place: read(n, a), over)))
                except UserError as error:
                    failures.append(error)
                    over.set()
                if over.is_set():
                    return

        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        try:
            # The timeout is for the whole response and not httpx's, with which a slow stream would never end.
            async with httpx.AsyncClient(
                headers=headers,
                timeout=httpx.Timeout(None, connect=min(_CONNECT, self.timeout)),
                limits=httpx.Limits(max_connections=self.concurrency),
                trust_env=self._proxied,
            ) as client:
                workers = [asyncio.ensure_future(work(client)) for _ in range(self.concurrency)]
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
        self, client: httpx.AsyncClient, body: Body, read: Callable[[Any], T], over: asyncio.Event
    ) -> T | None:
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
                        return read(answer.json())
                    except _UNREADABLE as error:
                        fault = f"an answer that is no chat completion ({error!r}: {answer.text[:80]!r})"
                elif answer.status_code in _RETRIED:
                    fault = f"status {answer.status_code} ({answer.text[:80].strip()!r})"
                    pause = max(pause, _asked_to_wait(answer))
                elif answer.status_code in _OF_ONE_REQUEST and self.refused == "skip":
                    return None
                else:
                    raise self._refusal(answer, body)
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
            f"the same command again; the completions so far are stored (request: {_beginning(body)})"
        )

    def _refusal(self, answer: httpx.Response, body: Body) -> UserError:
        said = repr(answer.text[:200].strip())
        if answer.has_redirect_location:
            said = f"moved to {answer.headers['location']}"
        key = "the key in" if self._key else "the key, of which there is none in"
        alone = (
            f", or leave such problems empty with {self.named('refused')}=skip"
            if answer.status_code in _OF_ONE_REQUEST
            else ""
        )
        return UserError(
            f"the server at {self.url} refuses: status {answer.status_code}, {said}, for the request "
            f"{_beginning(body)}; correct {self.named('url')}, {self.named('served_as')}={self.served_as} or "
            f"{key} {self.key_from}{alone}, and run again: the completions so far are stored"
        )

    def _say_fault(self, fault: str) -> None:
        """Print the first fault, so that the user knows why the command waits."""
        if not self._said_fault:
            self._said_fault = True
            tqdm.write(f"the server at {self.url}: {fault}; trying again", file=sys.stderr)


def read_choice(answer: Any) -> tuple[str, str, bool]:
    """The text of an answer, the thinking that the server returns separately, and whether it was not cut off.

    Raises:
        LookupError, TypeError, AttributeError: it is no chat completion.
    """
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
    return text.encode("utf-8", "replace").decode("utf-8"), thought, finished


def _host(url: Any, name: str) -> str:
    """The host of a server's URL, which is called `name` in messages.

    Raises:
        ValueError: it is no valid base URL.
    """
    try:
        parsed = httpx.URL(str(url))
    except (httpx.InvalidURL, ValueError) as error:
        raise ValueError(f"{name}={url!r} is no http:// or https:// address: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"{name}={url!r} is no http:// or https:// address")
    if parsed.port is not None and not 0 < parsed.port < 1 << 16:
        raise ValueError(f"{name}={url!r}: there is no port {parsed.port}")
    if parsed.query or parsed.fragment or parsed.path.rstrip("/").endswith("/completions"):
        raise ValueError(f"{name}={url!r} is too long: leave out /chat/completions and what follows")
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


def _beginning(body: Body) -> str:
    messages = body.get("messages")
    content = str(messages[-1]["content"]) if messages else ""
    return repr(content if len(content) <= 60 else f"{content[:60]}...")


def _asked_to_wait(answer: httpx.Response) -> float:
    try:
        return min(120.0, float(answer.headers.get("retry-after", "0")))
    except ValueError:  # a date
        return 0.0
