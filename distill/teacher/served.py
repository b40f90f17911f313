"""The teacher's log-probs of given traces from a server that serves it, so that it needs no place here."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.data.trace import Trace
from distill.errors import UserError
from distill.generation.chat_client import ChatClient
from distill.losses.logits import label_logprobs
from distill.models.head import Head
from distill.models.language_model import ModelSource
from distill.models.lazy import LazyModel
from distill.teacher.logprobs import in_batches

APIS = ("vllm", "sglang")
_SOURCES = ("local", "server")
_COMPARED, _ALLOWED = 8, {"float32": 1e-3, "float64": 1e-3}  # traces; mean difference of probabilities


@dataclass(frozen=True)
class TeacherSource:
    """Where the teacher's cached signals come from.

    Attributes:
        source: `local`: `model.teacher`, in this process; `server`: a server that serves it. Its tokenizer
            and configuration are read here in both cases.
        api: `vllm`: `prompt_logprobs` of `/completions`; `sglang`: `/generate`.
        url: base URL of the server.
        served_as: the model's name on the server; None: as in `model.teacher`.
        key_from: environment variable that holds the API key.
        concurrency: requests in progress at the same time.
        retries: further attempts after a failed request.
        timeout: seconds to wait for a complete response.
        wait: seconds before the first retry.
        verify: load the teacher here too, and compare a few traces.
    """

    source: str = "local"
    api: str = "vllm"
    url: str = "http://localhost:8000/v1"
    served_as: str | None = None
    key_from: str = "OPENAI_API_KEY"
    concurrency: int = 16
    retries: int = 6
    timeout: float = 600.0
    wait: float = 1.0
    verify: bool = False

    def __post_init__(self) -> None:
        for name, known in (("source", _SOURCES), ("api", APIS)):
            if getattr(self, name) not in known:
                raise ValueError(f"teacher.{name}={getattr(self, name)!r} is not one of {', '.join(known)}")

    def serve(self, model: ModelSource) -> "ServedTeacher | None":
        """The server's view of a teacher; None if it is not served.

        Raises:
            UserError: a setting is invalid.
        """
        if self.source == "local":
            return None
        try:
            return ServedTeacher(self, model)
        except ValueError as error:
            raise UserError(str(error)) from error


class ServedTeacher:
    """A teacher behind a server that gives log-probs of a prompt's tokens.

    Its numbers are the server's: in its dtype, and over all rows of its output matrix.

    Args:
        asked: the server, and how it is asked.
        model: the teacher, of which only the tokenizer's size is used.
    """

    def __init__(self, asked: TeacherSource, model: ModelSource) -> None:
        self.asked = asked
        self.model = model
        self.client = ChatClient(
            asked.url,
            str(asked.served_as or model.name),
            key_from=asked.key_from,
            concurrency=asked.concurrency,
            retries=asked.retries,
            timeout=asked.timeout,
            wait=asked.wait,
            named="teacher.{}".format,
            path="completions" if asked.api == "vllm" else "generate",
            kept="the parts of the cache that are complete are kept",
        )
        if asked.api == "sglang":  # its own API has no version in its path
            self.client.url = self.client.url.removesuffix("/v1")
        self.settings = {"served_as": self.client.served_as, "api": asked.api}

    def check(self, top_k: int = 0) -> None:
        """Ask for a prompt of two tokens.

        Args:
            top_k: likeliest tokens that will be wanted at each position.

        Raises:
            UserError: the server cannot be reached, does not serve the model, or gives no log-probs of a
                prompt, or not so many.
        """
        self._ask([([0, 0], 1)], self._size(top_k), lambda tokens: None)

    def logprobs(self, traces: Sequence[Trace], progress: Callable[[int], object]) -> list[dict[str, Tensor]]:
        """[tokens] log-probs of each trace's completion tokens (`values`)."""
        found = self._ask(_prompts(traces), 0, progress)
        return [{"values": torch.from_numpy(one["values"])} for one in found]

    def likeliest(
        self, traces: Sequence[Trace], top_k: int, progress: Callable[[int], object]
    ) -> list[dict[str, Tensor]]:
        """The k likeliest tokens at each completion token, as `TeacherDistribution.keep` stores them."""
        kept = []
        for one in self._ask(_prompts(traces), self._size(top_k), progress):
            mass = np.exp(one["logprobs"].astype(np.float64)).sum(-1)
            rest = np.log(np.maximum(1.0 - mass, 1e-9)).astype(np.float32)
            kept.append(
                {
                    "ids": torch.from_numpy(one["ids"]),
                    "logprobs": torch.from_numpy(one["logprobs"]),
                    "log_rest": torch.from_numpy(rest),
                }
            )
        return kept

    @torch.no_grad()
    def verify(self, teacher: LazyModel, traces: Sequence[Trace]) -> float:
        """Compare a few traces with the teacher itself, which is loaded for it and released.

        Returns:
            The mean difference of the tokens' probabilities.

        Raises:
            UserError: it is larger than rounding explains.
        """
        places = np.random.default_rng(0).permutation(len(traces))[:_COMPARED].tolist()
        some = [traces[place] for place in places]

        def values(head: Head, labels: Tensor, _: Sequence[int]) -> dict[str, Tensor]:
            return {"values": label_logprobs(head, labels).float()}

        ours = in_batches(teacher.get(), some, range(len(some)), values)
        teacher.release()
        theirs = self.logprobs(some, lambda tokens: None)
        pairs = zip(ours, theirs, strict=True)
        apart = torch.cat([(a["values"].exp() - b["values"].exp()).abs() for a, b in pairs])
        error, allowed = float(apart.mean()), _ALLOWED.get(self.model.dtype, 5e-2)
        if not error <= allowed:
            raise UserError(
                f"teacher.verify: the server at {self.client.url} gives other probabilities than "
                f"{self.model.name} here (off by {error:.2g}, at most {allowed:.2g} is rounding): serve the "
                f"same model, or take teacher.source=local"
            )
        return error

    def _size(self, top_k: int) -> int:
        return min(top_k, self.model.vocab_size - 1)

    def _ask(
        self, prompts: Sequence[tuple[list[int], int]], top_k: int, progress: Callable[[int], object]
    ) -> list[dict[str, np.ndarray]]:
        """For each prompt, what is said of its tokens from a place on: `values`, `ids`, `logprobs`."""
        asks, reads = _ways(self.asked.api)
        bodies = [asks(self.client.served_as, ids, top_k) for ids, _ in prompts]

        def read(place: int, answer: Any) -> dict[str, np.ndarray]:
            ids, begin = prompts[place]
            try:
                rows = reads(answer)[begin:]
                values = np.array([row[token] for row, token in zip(rows, ids[begin:], strict=True)])
                ranked = [sorted(row.items(), key=lambda item: -item[1])[:top_k] for row in rows]
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                raise self._gives_none() from error
            likeliest = np.array(ranked, dtype=np.float64).reshape(len(rows), top_k, 2)
            if top_k and likeliest[..., 0].max(initial=0) >= self.model.vocab_size:
                raise UserError(
                    f"the server at {self.client.url} gives token ids that {self.model.name} does not have: "
                    f"serve the same model, or take teacher.source=local"
                )
            found = {"ids": likeliest[..., 0].astype(np.int32), "logprobs": likeliest[..., 1]}
            return {name: np.ascontiguousarray(one) for name, one in found.items()} | {"values": values}

        answers: dict[int, dict[str, np.ndarray]] = {}
        with closing(self.client.ask(bodies, read)) as asked:
            for place, found in asked:
                assert found is not None  # refused=error
                answers[place] = {
                    name: one.astype(np.float32) if name != "ids" else one for name, one in found.items()
                }
                progress(len(prompts[place][0]))
        return [answers[place] for place in range(len(prompts))]

    def _gives_none(self) -> UserError:
        other = APIS[1 - APIS.index(self.asked.api)]
        return UserError(
            f"the server at {self.client.url} gives no log-probs of a prompt's tokens, as teacher.source="
            f"server needs them: serve the teacher with vLLM or SGLang (teacher.api={other}), or take "
            f"teacher.source=local"
        )


def _prompts(traces: Sequence[Trace]) -> list[tuple[list[int], int]]:
    """Of each trace, all token ids, and where the completion begins."""
    return [
        ([*trace.prompt_ids.tolist(), *trace.completion_ids.tolist()], len(trace.prompt_ids))
        for trace in traces
    ]


def _ways(api: str) -> tuple[Callable[[str, list[int], int], dict[str, Any]], Callable[[Any], list[Any]]]:
    """How a server is asked, and how its answer gives, for each token, log-probs by token id."""
    return (_ask_vllm, _read_vllm) if api == "vllm" else (_ask_sglang, _read_sglang)


def _ask_vllm(model: str, ids: list[int], top_k: int) -> dict[str, Any]:
    return {"model": model, "prompt": ids, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": top_k}


def _read_vllm(answer: Any) -> list[Mapping[int, float]]:
    rows = answer["choices"][0]["prompt_logprobs"]
    return [{int(token): float(one["logprob"]) for token, one in (row or {}).items()} for row in rows]


def _ask_sglang(model: str, ids: list[int], top_k: int) -> dict[str, Any]:
    return {
        "input_ids": ids,
        "sampling_params": {"max_new_tokens": 1, "temperature": 0.0},
        "return_logprob": True,
        "logprob_start_len": 0,
        "top_logprobs_num": top_k,
    }


def _read_sglang(answer: Any) -> list[Mapping[int, float]]:
    said = answer["meta_info"]
    own: list[Any] = said["input_token_logprobs"]
    likeliest: list[Any] = said.get("input_top_logprobs") or [None] * len(own)
    rows = []
    for (value, token, *_), others in zip(own, likeliest, strict=True):
        row = {int(other): float(one) for one, other, *_ in others or ()}
        rows.append(row | ({} if value is None else {int(token): float(value)}))
    return rows
