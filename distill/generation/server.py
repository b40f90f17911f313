"""Engine for servers with OpenAI's API: vLLM's, transformers', or a commercial one."""

import json
import sys
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from distill.data.seam import continuing, prompt_end
from distill.data.thoughts import open_end, with_thought
from distill.data.trace import encode_completion
from distill.errors import UserError
from distill.generation.chat_answers import UnknownForm, read_choice
from distill.generation.chat_client import ChatClient
from distill.generation.engine import Request, Written
from distill.generation.sampling import Sampling
from distill.models.lazy import LazyModel

_ALIKE_PROBLEMS = 5  # problems whose samples are all equal, from which on a warning is printed


class ServerEngine:
    """Requests chat completions over HTTP; see `ChatClient`.

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
        if extra is not None and not isinstance(extra, Mapping):
            raise ValueError(f"engine.extra={extra!r} is no list of fields: +engine.extra.<field>=<value>")
        self.source = model.source
        self.client = ChatClient(
            url,
            str(served_as or model.source.name),
            key_from=key_from,
            concurrency=concurrency,
            retries=retries,
            timeout=timeout,
            wait=wait,
            refused=refused,
            extra=self._with_variables(dict(extra or {})),
        )
        # Settings that change the completions.
        self.settings = {"served_as": self.client.served_as, "extra": self.client.extra}
        if variables := self.source.chat_template_kwargs:
            self.settings["chat_template_kwargs"] = variables
        self.seconds = 0.0

    def _with_variables(self, extra: dict[str, Any]) -> dict[str, Any]:
        """The fields with the chat template's variables, as vLLM and SGLang take them."""
        variables = self.source.chat_template_kwargs
        return extra | {"chat_template_kwargs": dict(variables)} if variables else extra

    def write(
        self, requests: Sequence[Request], sampling: Sampling
    ) -> Generator[tuple[int, Written], None, None]:
        seen: dict[bytes, list[str]] = {}
        skipped = 0
        began = time.perf_counter()
        bodies = [self._body(request, sampling) for request in requests]

        def read(place: int, answer: Any) -> Written:
            return self._read(answer, requests[place], bodies[place])

        try:
            with closing(self.client.ask(bodies, read)) as asked:
                for index, written in asked:
                    skipped += written is None
                    written = Written(None, finished=False) if written is None else written
                    seen.setdefault(_prompt_of(requests[index]), []).append(written.text)
                    yield index, written
        finally:
            self.seconds += time.perf_counter() - began
        if sampling.temperature > 0:
            _say_if_all_alike(seen.values(), sampling)
        if skipped:
            tqdm.write(f"{skipped} rejected requests are stored as empty completions", file=sys.stderr)

    def _body(self, request: Request, sampling: Sampling) -> dict[str, Any]:
        # A long prompt leaves less room than max_new_tokens: some servers reject a larger max_tokens.
        room = max(1, self.source.context_length - len(request.prompt_ids))
        sampling = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, room))
        return self.client.body(request.messages, sampling, request.seed)

    def _read(self, answer: Any, request: Request, body: Mapping[str, Any]) -> Written:
        limit = body.get("max_completion_tokens", body.get("max_tokens"))
        text, thought, finished, ids = read_choice(answer, limit if isinstance(limit, int) else None)
        ends = self.source.end_ids
        # vLLM returns token ids on request: +engine.extra.return_token_ids=true
        if ids:
            if max(ids) >= self.source.vocab_size:
                raise UnknownForm(
                    f"its token id {max(ids)} is none of the {self.source.vocab_size} of the tokenizer of "
                    f"{self.source.name}: another model is served, or rows that only pad its output matrix"
                )
            if finished and ids[-1] not in ends:
                ids = [*ids, ends[0]]
            return Written(np.asarray(ids, dtype=np.int32), finished, text)
        # Some servers leave the end token in the text. If it was also the last allowed token, transformers
        # serve reports "length".
        for end in self.source.tokenizer.convert_ids_to_tokens(ends):
            if end and text.endswith(end):
                text, finished = text.removesuffix(end), True
        text = self._without_prompt(text, request, answer.get("usage"), bool(thought))
        if not thought:  # a server may leave out the mark that its template wrote, or repeat it
            text = continuing(prompt_end(self.source.tokenizer, request.prompt_ids), text)
        else:
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
        if thought and text.strip() == prompt.removesuffix(open_end(prompt).strip()).strip():
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
        if "</think>" in text:  # the server returns it in the text, too
            return text
        thought = thought.strip("\n")
        text = with_thought(thought, text.lstrip("\n")) if closed else f"<think>\n{thought}"
        return continuing(prompt_end(self.source.tokenizer, request.prompt_ids), text)


def _prompt_of(request: Request) -> bytes:
    return json.dumps([dict(turn) for turn in request.messages]).encode()


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
