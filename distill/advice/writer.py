"""The model that writes tips: one question at a time, and no question twice."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from distill.advice.prompts import Messages
from distill.data.prompt import encode_messages
from distill.data.seam import decode_completion
from distill.errors import UserError
from distill.generation.completion_log import CompletionLog
from distill.generation.engine import Engine, Request, Written
from distill.generation.sampling import Sampling
from distill.models.language_model import ModelSource
from distill.teacher.completions import engine_key

T = TypeVar("T")


class Writer:
    """A model behind an engine, with a log of its replies.

    A reply is kept under a hash of all that it depends on: the model, the engine, the conversation, the
    sampling and the seed.

    Args:
        source: the model; its tokenizer counts the prompt's tokens.
        engine: runs it.
        sampling: of the replies.
        log: file of the replies.
        seed: of the sampling.

    Attributes:
        asked: number of questions so far, stored ones included.
        unread: number of those without a readable reply.
    """

    def __init__(self, source: ModelSource, engine: Engine, sampling: Sampling, log: Path, seed: int) -> None:
        self.source = source
        self.engine = engine
        self.sampling = sampling
        self.seed = seed
        self.asked = self.unread = 0
        self._log = CompletionLog(log)
        self._known: dict[int, Written] = self._log.read()
        self._who = {
            **engine_key(source, engine),
            "sampling": dict(vars(sampling)),
            "seed": seed,
        }

    def ask(self, messages: Callable[[bool], Messages], read: Callable[[str], T | None]) -> T | None:
        """What is read of a reply; one that cannot be read, or was cut off, is asked for once more.

        Args:
            messages: given whether an earlier reply could not be read, the conversation.
            read: given a reply, what it says; None if it cannot be read.

        Returns:
            None if neither reply could be read.

        Raises:
            UserError: the conversation does not fit into the model's context, or the engine fails.
        """
        self.asked += 1
        for again in (False, True):
            written = self._reply(messages(again))
            # One that was cut off may end in half a tip.
            found = read(self._text(written)) if written.finished else None
            if found is not None:
                return found
        self.unread += 1
        return None

    def _reply(self, messages: Messages) -> Written:
        key = _key({**self._who, "messages": messages})
        if key not in self._known:
            ids = encode_messages(self.source.tokenizer, messages, "the writer's prompt")
            context: int = getattr(self.engine, "context_length", None) or self.source.context_length
            if len(ids) >= context:
                raise UserError(
                    f"a prompt of the writer has {len(ids)} tokens, and {self.source.name} reads {context}: "
                    f"show it fewer problems (tips.batch=) or shorter traces (tips.max_tokens=), or name "
                    f"another writer="
                )
            request = Request(ids, messages, key)
            [(_, written)] = self.engine.write([request], self.sampling)
            with self._log:
                self._log.add(key, written)
            self._known[key] = written
        return self._known[key]

    def _text(self, written: Written) -> str:
        if written.ids is None:
            return written.text
        return decode_completion(self.source.tokenizer, written.ids.tolist())


def _key(content: Mapping[str, Any]) -> int:
    text = json.dumps(content, sort_keys=True).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
