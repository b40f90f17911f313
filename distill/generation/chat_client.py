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
from distill.generation.chat_answers import ServerFault, UnknownForm
from distill.generation.chat_faults import (
    asked_to_wait,
    error_within,
    is_permanent,
    is_too_long,
    is_unreachable_for_good,
    sentence,
)
from distill.generation.neutral import NEUTRAL, NeutralFields
from distill.generation.sampling import Sampling
from distill.io.secrets import key_field, looks_like_key, without_secrets

_HERE = {"localhost", "127.0.0.1", "::1", "0.0.0.0"}
_CONNECT = 30.0  # seconds to connect; only the response itself may take long

T = TypeVar("T")
Body = Mapping[str, Any]


@dataclass
class ChatClient:
    """Requests chat completions over HTTP, several at once, with a limited number of retries.

    When a request has finally failed, no further request is sent, and those in progress are waited for, so
    that the caller can store their completions. Ctrl-C stops at once.

    Attributes:
        url: base URL, everything before `/chat/completions`, such as `http://localhost:8000/v1`. A user name
            and password in it (`http://user:password@host`) are sent, and are left out of every message.
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
        path: what is requested below the base URL; another one has other fields and answers.
        kept: what becomes of what came back before a failure, for messages.

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
    path: str = "chat/completions"
    kept: str = "the completions so far are stored"

    def __post_init__(self) -> None:
        named = self.named
        parsed = _parsed(self.url, named("url"))
        # A server on this machine must not be reached through a proxy of the environment.
        self._proxied = parsed.host not in _HERE
        self._login = (parsed.username, parsed.password) if parsed.userinfo else None
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
        if self.key_from not in os.environ and looks_like_key(str(self.key_from)):
            raise ValueError(
                f"{named('key_from')} is the name of the environment variable that holds the key, and what "
                f"is given looks like the key itself: export OPENAI_API_KEY=<the key>, and leave it out"
            )
        if (name := key_field(self.extra)) is not None:
            raise ValueError(
                f"{named('extra')}: {name} would be stored with the results: export the key, and name its "
                f"environment variable in {named('key_from')}"
            )
        self._key = os.environ.get(self.key_from, "").strip()
        if not self._key.isascii() or not self._key.isprintable():
            raise ValueError(
                f"the key in {self.key_from} has characters that are not allowed in a key: set it again"
            )
        self.url = str(parsed.copy_with(userinfo=b"") if parsed.userinfo else self.url).rstrip("/")
        self._said_fault = False
        self._neutral = NeutralFields(self.extra if self.path == "chat/completions" else NEUTRAL)

    def body(self, messages: Sequence[Mapping[str, str]], sampling: Sampling, seed: int) -> dict[str, Any]:
        """The fields of a request, without the neutral ones that are sent with all (`NeutralFields`)."""
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
            read: given a request's index and its answer; raises `UnknownForm` or `ServerFault`.

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
                auth=self._login,
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
                return await self._attempt(client, body, read)
            except ServerFault as error:
                fault = without_secrets(str(error), self._key)
                pause = max(pause, error.wait)
            # A failing server may also close the connection; report the fault before that too.
            before = last if last and last != fault else before
            if over.is_set():
                break
            if attempts <= self.retries:
                self._say_fault(fault, pause)
                if await _set_within(over, pause):
                    break
        faults = f"{fault}, before that {before}" if before else fault
        raise UserError(
            f"the server at {self.url} failed {attempts} times, the last with {faults}: check it and run "
            f"the same command again; {self.kept} (request: {_beginning(body)})"
        )

    async def _attempt(
        self,
        client: httpx.AsyncClient,
        body: Body,
        read: Callable[[Any], T],
        neutral: Mapping[str, float] | None = None,
    ) -> T | None:
        """Send a request once, or until the server takes its neutral fields; None if it may be skipped.

        Raises:
            ServerFault: another attempt may succeed.
            UserError: every further attempt would fail too.
        """
        neutral = self._neutral.fields if neutral is None else neutral
        try:
            post = client.post(f"{self.url}/{self.path}", json={**neutral, **body})
            answer = await asyncio.wait_for(post, self.timeout)
        except asyncio.TimeoutError as error:  # not the same class as TimeoutError in Python 3.10
            raise ServerFault(f"no answer within {self.timeout:g} s") from error
        except httpx.HTTPError as error:
            fault = f"{type(error).__name__}: {error}".rstrip(": ")
            if is_unreachable_for_good(error):
                raise UserError(
                    f"the server at {self.url} cannot be reached: {without_secrets(fault)}; correct "
                    f"{self.named('url')}"
                ) from error
            raise ServerFault(fault) from error
        try:
            content = answer.json() if answer.status_code == 200 else None
        except (ValueError, RecursionError) as error:
            shown = f"{type(error).__name__}: {self._shown(answer.text)}"
            raise ServerFault(f"an answer that is no chat completion ({shown})") from error
        found = error_within(content)
        if answer.status_code == 200 and found is None:
            self._neutral.settle(neutral, self.url)
            try:
                return read(content)
            except UnknownForm as error:
                raise self._unknown_form(error, body) from error
        status, said = found or (answer.status_code, answer.text)
        if not is_permanent(status, said):
            raise ServerFault(f"status {status} ({self._shown(said)})", asked_to_wait(answer.headers, said))
        if (fewer := self._neutral.fewer(neutral, said)) is not None:
            return await self._attempt(client, body, read, fewer)
        if self.refused == "skip" and is_too_long(status, said):
            return None
        raise self._refusal(answer, status, said, body)

    def _shown(self, body: str) -> str:
        return repr(without_secrets(sentence(body), self._key))

    def _refusal(self, answer: httpx.Response, status: int, said: str, body: Body) -> UserError:
        shown = self._shown(said)
        if answer.has_redirect_location:
            shown = f"moved to {without_secrets(answer.headers['location'], self._key)}"
        key = "the key in" if self._key else "the key, of which there is none in"
        alone = (
            f", or leave such problems empty with {self.named('refused')}=skip"
            if is_too_long(status, said)
            else ""
        )
        return UserError(
            f"the server at {self.url} refuses: status {status}, {shown}, for the request "
            f"{_beginning(body)}; correct {self.named('url')}, {self.named('served_as')}={self.served_as} or "
            f"{key} {self.key_from}{alone}, and run again: {self.kept}"
        )

    def _unknown_form(self, error: UnknownForm, body: Body) -> UserError:
        """The message of an answer that was paid for and cannot be read: it is not asked for again."""
        return UserError(
            f"the server at {self.url} answers in a form that is no chat completion: {error}; correct "
            f"{self.named('url')} (it often ends with /v1) or what {self.named('extra')} asks for, and run "
            f"again: {self.kept} (request: {_beginning(body)})"
        )

    def _say_fault(self, fault: str, pause: float) -> None:
        """Print the first fault, so that the user knows why the command waits."""
        if not self._said_fault:
            self._said_fault = True
            when = f" in {pause:.0f} s" if pause >= 10 else ""
            tqdm.write(f"the server at {self.url}: {fault}; trying again{when}", file=sys.stderr)


def _parsed(url: Any, name: str) -> httpx.URL:
    """A server's URL, which is called `name` in messages.

    Raises:
        ValueError: it is no valid base URL.
    """
    shown = repr(without_secrets(str(url)))
    try:
        parsed = httpx.URL(str(url))
    except (httpx.InvalidURL, ValueError) as error:
        reason = without_secrets(str(error))
        raise ValueError(f"{name}={shown} is no http:// or https:// address: {reason}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"{name}={shown} is no http:// or https:// address")
    if parsed.port is not None and not 0 < parsed.port < 1 << 16:
        raise ValueError(f"{name}={shown}: there is no port {parsed.port}")
    if parsed.query or parsed.fragment or parsed.path.rstrip("/").endswith("/completions"):
        raise ValueError(f"{name}={shown} is too long: leave out /chat/completions and what follows")
    return parsed


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
    messages, ids = body.get("messages"), body.get("prompt", body.get("input_ids"))
    if ids is not None:
        return f"{len(ids)} token ids"
    content = str(messages[-1]["content"]) if messages else ""
    return repr(content if len(content) <= 60 else f"{content[:60]}...")
