"""Tests of trainer.precision=auto, names of layouts, and the fused optimizer's results."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from distill.config.overrides import check_overrides
from distill.errors import UserError
from distill.training import checks
from distill.training.checks import check_trainer, precision_of
from distill.training.setup import Setup

CONF = Path(__file__).resolve().parents[2] / "conf"


@pytest.mark.slow
@pytest.mark.parametrize("amx", [True, False])
def test_auto_is_bf16_on_a_cpu_that_multiplies_it_fast(amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx})
    words = ["model=none", "model.student=x", "data=traces", "benchmark=none", "loss=sft"]
    cfg = check_overrides(CONF, "train", words)
    assert precision_of(cfg.trainer) == ("bf16-mixed" if amx else "32-true")
    assert check_trainer(cfg.trainer) == (torch.bfloat16 if amx else torch.float32)
    asked = check_overrides(CONF, "train", [*words, "trainer.precision=32-true"])
    assert precision_of(asked.trainer) == "32-true"
    # The embedded pair has the same figures on every machine.
    assert precision_of(check_overrides(CONF, "train", ["benchmark=none"]).trainer) == "32-true"


def test_this_cpu_is_asked_and_its_answer_is_used() -> None:
    flags = Path("/proc/cpuinfo")
    if not flags.is_file():
        pytest.skip("no /proc/cpuinfo")
    assert checks._has_amx() == ("amx_bf16" in flags.read_text())


@pytest.mark.parametrize(("there", "able", "expected"), [(0, 0, "bf16"), (1, 1, "bf16"), (1, 0, "32-true")])
def test_auto_on_a_gpu_goes_by_what_it_has(
    there: int, able: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(there))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bool(able))
    cfg = OmegaConf.create({"trainer": {"precision": "auto", "accelerator": "gpu"}})
    assert precision_of(cfg.trainer).startswith(expected)


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("data.layout=sorted", r"data\.layout='sorted' is not one of padded, grouped, packed"),
        ("model.gradient_checkpointing=1", r"model\.gradient_checkpointing=1 is neither true nor false"),
        ("model.compile=1", r"model\.compile=1 is neither true nor false"),
    ],
)
def test_what_no_layout_is_is_said_in_a_sentence(word: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        Setup.from_overrides([word], here=False)


def test_the_fused_optimizer_takes_the_steps_of_the_other() -> None:
    cfg = check_overrides(CONF, "train", [])
    assert cfg.optimizer.fused
    weights = []
    for fused in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Linear(40, 30).double()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1, fused=fused)
        for _ in range(20):
            optimizer.zero_grad()
            model(torch.randn(8, 40).double()).square().mean().backward()
            optimizer.step()
        weights.append(model.weight.detach())
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-12, atol=1e-14)
