"""Tests of LoRA on mixtures of experts, whose weights are no linear layers."""

import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from test_lora import lora_arguments, stir
from test_training import run
from torch import Tensor
from transformers import AutoModelForCausalLM

from distill.errors import UserError
from distill.models.language_model import ModelSource
from distill.models.lora import (
    Lora,
    add_lora,
    check_targets,
    fingerprint,
    merged_state,
    save_adapter,
    unadapted_experts,
)
from distill.tiny import task
from distill.tiny.build import make_tokenizer

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("peft") is None, reason='peft is not installed: pip install "distill[peft]"'
)
SIZES: dict[str, Any] = {
    **{"vocab_size": 18, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64},
    **{"eos_token_id": 1, "bos_token_id": None, "pad_token_id": 0},
}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
# Families, and whether peft adapts their experts.
FAMILIES: dict[str, tuple[dict[str, Any], bool]] = {
    "Qwen3Moe": (
        {"head_dim": 8, "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2},
        True,
    ),
    "Mixtral": (LOCAL, True),
    "DeepseekV3": (
        {
            **ROUTED,
            **{"moe_intermediate_size": 32, "first_k_dense_replace": 1, "n_shared_experts": 1},
            **{"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8},
            **{"v_head_dim": 8, "num_key_value_heads": 4},
        },
        True,
    ),
    "GptOss": (LOCAL | {"head_dim": 8, "sliding_window": 8}, False),
    "GraniteMoe": (LOCAL, False),
    "Phimoe": (LOCAL, False),  # its router is a linear layer that returns more than a tensor
    "Llama4Text": (LOCAL | {"num_experts_per_tok": 1, "head_dim": 8, "intermediate_size_mlp": 64}, False),
}
ALL = Lora(4, 8.0, 0.0, ())


def made(family: str, folder: Path) -> ModelSource:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**(SIZES | FAMILIES[family][0]))
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "norm" not in name:
                weight.normal_(0, 0.2)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return ModelSource(name=family, location=str(folder), fingerprint="x")


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(input_ids=torch.tensor([[3, 7, 2, 9, 5]])).logits


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixture_with_adapters_is_saved_as_it_predicts(family: str, tmp_path: Path) -> None:
    from peft import PeftModel

    source = made(family, tmp_path / "model")
    check_targets(ALL, source)
    lm = source.load()
    before, base = logits(lm.model), fingerprint(lm.model.requires_grad_(False))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        add_lora(lm, ALL, seed=0)
    assert fingerprint(lm.model) == base
    torch.testing.assert_close(logits(lm.model), before, rtol=1e-4, atol=1e-5)
    stir(lm.model)
    expected = logits(lm.model)
    assert (expected - before).abs().max() > 0.05
    experts = {name for name, p in source.skeleton().named_parameters() if p.ndim == 3}
    assert experts
    without = (
        []
        if FAMILIES[family][1]
        else sorted({name.replace(".0.", ".*.").replace(".1.", ".*.") for name in experts})
    )
    assert unadapted_experts(lm.model) == without
    plain = source.load().model
    plain.load_state_dict(merged_state(lm.model))
    torch.testing.assert_close(logits(plain), expected, rtol=1e-4, atol=1e-5)
    save_adapter(lm.model, tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft looks for experts' weights among the modules first
        adapted = PeftModel.from_pretrained(source.load().model, str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(adapted), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_run_on_a_mixture_leaves_a_plain_student_and_an_adapter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data.jsonl"
    problems = task.problems(4, split="train", operations=(2, 3))
    records = [{"problem": one, "completion": task.write_solution(one, "single")} for one in problems]
    data.write_text("".join(json.dumps(one) + "\n" for one in records))
    for family, said in (("Qwen3Moe", False), ("GptOss", True)):
        made(family, tmp_path / family)
        words = lora_arguments((tmp_path / family, tmp_path / family), data, tmp_path, "loss=sft")
        folder = run([*words, "trainer.max_steps=1", "data.batch_size=2"], tmp_path / f"run_{family}")
        assert ("peft adapts no weights of the experts" in capsys.readouterr().out) == said
        student = AutoModelForCausalLM.from_pretrained(folder / "student")
        assert (
            logits(student) - logits(AutoModelForCausalLM.from_pretrained(tmp_path / family))
        ).abs().max() > 0
        assert (folder / "adapter" / "adapter_model.safetensors").is_file()


def test_what_peft_cannot_adapt_is_refused_with_the_layers_names_before_any_weight_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = made("Qwen3Moe", tmp_path)
    monkeypatch.setattr(ModelSource, "load", None)
    with pytest.raises(
        UserError, match=r"model\.layers\.\*\.mlp\.experts\.gate_up_proj\).*model.lora.dropout=0"
    ):
        check_targets(Lora(4, 8.0, 0.1, ()), source)
    check_targets(Lora(4, 8.0, 0.1, ("q_proj",)), source)
    router = made("Phimoe", tmp_path / "phimoe")
    with pytest.raises(UserError, match=r"'Phimoe' has no linear layer 'router'"):
        check_targets(Lora(4, 8.0, 0.0, ("router",)), router)
