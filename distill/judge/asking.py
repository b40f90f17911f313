"""Ask a judge model, and keep every reply as it arrives: no question is asked twice."""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from tqdm.auto import tqdm

from distill.errors import UserError, first_line
from distill.generation.chat_answers import read_choice
from distill.generation.chat_client import ChatClient
from distill.generation.completion_log import CompletionLog
from distill.generation.engine import Written
from distill.generation.sampling import Sampling
from distill.io.progress import progress_bar
from distill.judge.selection import Sample
from distill.judge.tasks import Task, V


@dataclass(frozen=True)
class Judged(Generic[V]):
    """A sample with its verdict; None if no reply could be read. `reply` is the last one."""

    sample: Sample
    verdict: V | None
    reply: str


class Judge:
    """A judge model, with a log of its replies.

    A reply is kept under a hash of its request: the model, the prompt with the problem, the reference answer
    and the text, and the sampling settings. The server's address is not part of it.

    Args:
        client: connection to the server.
        sampling: of the replies.
        log: file of the replies.
    """

    def __init__(self, client: ChatClient, sampling: Sampling, log: Path) -> None:
        self.client = client
        self.sampling = sampling
        self.log = CompletionLog(log)

    def judge(self, task: Task[V], samples: Sequence[Sample]) -> list[Judged[V]]:
        """The verdicts on samples, in their order. A reply that cannot be read is asked for once more.

        Raises:
            UserError: the server fails or refuses; the replies so far are kept.
        """
        found = [Judged(sample, task.without_text, "") for sample in samples]
        asked = {n: question for n, one in enumerate(samples) if (question := task.messages(one)) is not None}
        for again in (False, True):
            if again:
                unread = [n for n in asked if found[n].verdict is None]
                asked = {n: task.messages(samples[n], again=True) or () for n in unread}
            label = "asked again" if again else f"{task.name} by {self.client.served_as}"
            replies = self._replies(list(asked.values()), label, seed=int(again))
            for n, reply in zip(asked, replies, strict=True):
                found[n] = Judged(samples[n], task.read(reply), reply)
        return found

    def _replies(self, questions: Sequence[Sequence[Mapping[str, str]]], label: str, seed: int) -> list[str]:
        bodies = [self.client.body(question, self.sampling, seed) for question in questions]
        keys = [_key(body) for body in bodies]
        known = self.log.read()
        missing = {key: body for key, body in zip(keys, bodies, strict=True) if key not in known}
        if missing:
            places, refused = list(missing), 0
            with (
                progress_bar(total=len(set(keys)), description=label, unit="reply") as bar,
                self.log,
                closing(self.client.ask(missing.values(), lambda _, answer: _written(answer))) as asked,
            ):
                bar.update(len(set(keys)) - len(missing))
                for index, reply in asked:
                    refused += reply is None
                    known[places[index]] = reply or Written(None, finished=False)
                    self.log.add(places[index], known[places[index]])
                    bar.update(1)
            if refused:
                tqdm.write(f"{refused} rejected requests count as no verdict", file=sys.stderr)
        return [known[key].text for key in keys]


def judge_server(
    log: Path,
    url: str,
    served_as: str | None = None,
    key_from: str = "OPENAI_API_KEY",
    concurrency: int = 16,
    retries: int = 6,
    timeout: float = 600.0,
    refused: str = "error",
    temperature: float = 0.0,
    max_new_tokens: int = 4096,
    extra: Mapping[str, Any] | None = None,
) -> Judge:
    """The judge model that the config group `judge` names.

    Args:
        log: file of its replies.
        url: of the server; this and the other arguments as in `ChatClient`.
        served_as: the judge's name on the server.
        temperature: of the replies.
        max_new_tokens: of a reply, its thinking included.

    Raises:
        UserError: a setting is invalid.
    """
    if not served_as:
        raise UserError("judge.served_as is not set: name the judge model as its server does")
    try:
        client = ChatClient(
            url,
            served_as,
            key_from=key_from,
            concurrency=concurrency,
            retries=retries,
            timeout=timeout,
            refused=refused,
            extra=dict(extra or {}),
            named="judge.{}".format,
        )
        sampling = Sampling(temperature, max_new_tokens=max_new_tokens)
    except ValueError as error:
        raise UserError(first_line(error)) from error
    return Judge(client, sampling, log)


def _written(answer: Any) -> Written:
    choice = read_choice(answer)
    return Written(None, choice.finished, choice.text)


def _key(body: Mapping[str, Any]) -> int:
    text = json.dumps(body, sort_keys=True).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
