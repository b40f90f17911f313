"""A stand-in for vLLM 0.32 in fast tests: what tests/engines saw the real one do, and its faults.

It seeds all random number generators and replaces global functions as it starts, takes weights only by
`collective_rpc("reload_weights")`, keeps its old output matrix if a tied one is not named twice, refuses a
whole batch for one prompt, and writes ids of every row of the output matrix unless told otherwise.
"""

import os
import random
import sys
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

VERSION = "0.32.0"


@dataclass
class SamplingParams:
    """The parameters that are known; others are a TypeError, as in vLLM."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    max_tokens: int = 16
    stop_token_ids: list[int] = field(default_factory=list)
    logit_bias: dict[int, float] | None = None
    detokenize: bool = True

    @property
    def neutral(self) -> bool:
        penalties = (self.min_p, self.presence_penalty, self.frequency_penalty, self.repetition_penalty)
        return penalties == (0, 0, 0, 1)


class Llm:
    """vLLM's engine, with a copy of its own of the model."""

    started: list["Llm"]  # all of a test

    def __init__(
        self, *, model: str, dtype: str, revision: str | None, trust_remote_code: bool, **options: Any
    ) -> None:
        self.options = {"dtype": dtype, **options}
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        # In vLLM a matrix of its own; a tied one only shares its values when it is loaded.
        self.output = self.model.lm_head.weight.detach().clone()
        longest = options.get("max_model_len") or self.model.config.max_position_embeddings
        rows = len(self.output)
        self.asked: list[tuple[list[Any], list[SamplingParams]]] = []
        self.handed_over = self.resets = self.shut_down = 0
        configuration = SimpleNamespace(max_model_len=longest, get_vocab_size=lambda: rows)
        core = SimpleNamespace(shutdown=self._shut_down)
        self.llm_engine = SimpleNamespace(model_config=configuration, engine_core=core)
        Llm.started.append(self)
        _disturb()

    def _shut_down(self) -> None:
        self.shut_down += 1

    @torch.no_grad()
    def collective_rpc(self, method: str, *, kwargs: dict[str, Any]) -> None:
        assert method == "reload_weights"
        assert kwargs["is_checkpoint_format"]
        self.handed_over += 1
        own = dict(self.model.named_parameters())
        for name, weight in kwargs["weights_iterator"]:
            assert not weight.requires_grad
            if name == "lm_head.weight":
                self.output.copy_(weight)
            if name in own:
                own.pop(name).copy_(weight)
        assert not own  # all were given
        _disturb()

    def reset_prefix_cache(self) -> None:
        self.resets += 1

    @torch.no_grad()
    def generate(self, prompts: list[Any], parameters: list[SamplingParams], use_tqdm: bool) -> list[Any]:
        context = self.llm_engine.model_config.max_model_len
        for prompt in prompts:
            length = len(prompt["prompt_token_ids"])
            if not length:
                raise ValueError("The decoder prompt cannot be empty")
            if length >= context:
                raise ValueError(f"The decoder prompt (length {length}) is longer than {context}")
        self.asked.append((prompts, parameters))
        _disturb()
        return [
            SimpleNamespace(outputs=[self._completion(list(prompt["prompt_token_ids"]), one)])
            for prompt, one in zip(prompts, parameters, strict=True)
        ]

    def _completion(self, ids: list[int], asked: SamplingParams) -> Any:
        assert asked.neutral
        context, begin = self.llm_engine.model_config.max_model_len, len(ids)
        draws, reason = random.Random(asked.seed), "length"
        while len(ids) < min(begin + asked.max_tokens, context):
            hidden = self.model.base_model(torch.tensor([ids])).last_hidden_state[0, -1]
            logits = self.output @ hidden
            for row, bias in (asked.logit_bias or {}).items():
                logits[row] += bias
            ids.append(self._token(logits, asked, draws))
            if ids[-1] in asked.stop_token_ids:
                reason = "stop"
                break
        return SimpleNamespace(token_ids=ids[begin:], finish_reason=reason)

    @staticmethod
    def _token(logits: torch.Tensor, asked: SamplingParams, draws: random.Random) -> int:
        if asked.temperature == 0:
            return int(logits.argmax())
        shares = (logits / asked.temperature).softmax(-1)
        return draws.choices(range(len(shares)), shares.tolist())[0]


def _disturb() -> None:
    """Change the process's state as vLLM does."""
    random.seed(0)
    torch.manual_seed(0)
    sys.excepthook = lambda *_: None
    torch.set_num_threads = lambda _: None
    os.environ["LD_PRELOAD"] = "libgomp.so"
    os.environ["VLLM_DIST_IDENT"] = "vllm_dist"


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> list[Llm]:
    """The stand-in in vLLM's place; the engines that a test starts."""
    Llm.started = []
    # What a test of the stand-in itself leaves changed is put back for the tests that follow in this process.
    monkeypatch.setattr(torch, "set_num_threads", torch.set_num_threads)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    module = SimpleNamespace(LLM=Llm, SamplingParams=SamplingParams, __version__=VERSION)
    monkeypatch.setitem(sys.modules, "vllm", module)
    for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_DIST_IDENT"):
        monkeypatch.delenv(name, raising=False)
    return Llm.started
