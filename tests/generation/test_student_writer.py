"""Tests of rollouts by a separate engine. vLLM needs a GPU, so a stand-in with its interface is used here: it
has its own copy of the model and gets weight updates only through the interface."""

import csv
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_training import arguments, run, traces  # noqa: F401  a fixture
from torch import Tensor
from transformers import AutoModelForCausalLM

from distill.errors import UserError


class Llm:
    """Greedy decoding, with the weights that were loaded last."""

    handed_over = 0
    resets = 0

    def __init__(self, *, model: str, dtype: str, **options: Any) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self.options = options
        runner = SimpleNamespace(model=SimpleNamespace(load_weights=self.load_weights))
        self.llm_engine = SimpleNamespace(
            model_executor=SimpleNamespace(driver_worker=SimpleNamespace(model_runner=runner))
        )

    @torch.no_grad()
    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        Llm.handed_over += 1
        own = dict(self.model.named_parameters())
        for name, weight in weights:
            assert not weight.requires_grad
            own.pop(name).copy_(weight)
        assert not own  # all were given

    def reset_prefix_cache(self) -> None:
        Llm.resets += 1

    @torch.no_grad()
    def generate(self, prompts: list[Any], parameters: list[Any], use_tqdm: bool) -> list[Any]:
        outputs = []
        for prompt, asked in zip(prompts, parameters, strict=True):
            assert asked.temperature == 0
            ids, reason = list(prompt["prompt_token_ids"]), "length"
            for _ in range(asked.max_tokens):
                ids.append(int(self.model(torch.tensor([ids])).logits[0, -1].argmax()))
                if ids[-1] in asked.stop_token_ids:
                    reason = "stop"
                    break
            written = ids[len(prompt["prompt_token_ids"]) :]
            outputs.append(
                SimpleNamespace(outputs=[SimpleNamespace(token_ids=written, finish_reason=reason)])
            )
        return outputs


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Llm, "handed_over", 0)
    monkeypatch.setattr(Llm, "resets", 0)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=Llm, SamplingParams=SimpleNamespace))
    monkeypatch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING", raising=False)


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as stream:
        return list(csv.DictReader(stream))


ON_POLICY = [
    "loss=on_policy_kd",
    "loss.rollouts.fraction=1",
    "loss.rollouts.temperature=0",
    "trainer.max_steps=3",
    "trainer.accumulate_grad_batches=2",
    "data.batch_size=3",
    "optimizer.lr=0.02",  # so that a step changes what is written
]


@pytest.mark.slow
def test_rollouts_by_vllm_are_those_of_the_model_as_each_step_left_it(
    tiny_pair: tuple[Path, Path],
    traces: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = run(arguments(tiny_pair, traces, tmp_path, *ON_POLICY), tmp_path / "own")
    stand_in(monkeypatch)
    words = arguments(tiny_pair, traces, tmp_path, *ON_POLICY, "loss.rollouts.engine=vllm")
    other = run(words, tmp_path / "other")
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert Llm.handed_over == Llm.resets == 3  # once a step, not a micro-batch
    rows = list(zip(metrics(own), metrics(other), strict=True))
    assert len(rows) == 3
    for mine, theirs in rows:
        assert mine["rollouts/tokens"] == theirs["rollouts/tokens"]
        for name in ("train/loss", "train/gradient_norm", "train/student_flops_total"):
            assert float(theirs[name]) == pytest.approx(float(mine[name]), rel=1e-4)
    assert len({mine["train/loss"] for mine, _ in rows}) == 3


def test_what_vllm_cannot_write_for_is_refused_before_training(
    tiny_pair: tuple[Path, Path],
    traces: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = arguments(tiny_pair, traces, tmp_path, *ON_POLICY, "loss.rollouts.engine=vllm")
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"vLLM: pip install .*take loss\.rollouts\.engine=hf"):
        run(words, tmp_path / "without")
    stand_in(monkeypatch)
    with pytest.raises(
        UserError, match=r"model\.lora trains others beside them: take loss\.rollouts\.engine=hf"
    ):
        run([*words, "model.lora.rank=4"], tmp_path / "adapted")
    with pytest.raises(UserError, match=r"rollouts\.engine='tgi' is not one of hf, vllm"):
        run([*words, "loss.rollouts.engine=tgi"], tmp_path / "unknown")
