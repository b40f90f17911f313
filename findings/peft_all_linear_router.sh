#!/usr/bin/env bash
# One would guess: target_modules="all-linear" gives a working LoRA on every model, since it needs no names.
# What happens: peft adapts every instance of torch.nn.Linear, subclasses too. The router of Phi-3.5-MoE is a
# subclass whose forward returns a tuple of logits, weights and experts. The LoRA layer takes the result for a tensor,
# and the first forward raises an AttributeError: 'tuple' object has no attribute 'dtype'.
# Why it matters: the advice to use "all-linear" for an unknown architecture fails here, after the model was loaded.
# Naming the projections of the attention works.
# Source: peft/tuners/tuners_utils.py, _maybe_include_all_linear_layers; peft/tuners/lora/layer.py, Linear.forward;
# transformers/models/phimoe/modeling_phimoe.py, PhimoeTopKRouter.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 peft==0.21.2
HF_HOME="$work/hf" TRANSFORMERS_VERBOSITY=error "$work/venv/bin/python" -W ignore - <<'EOF'
import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import PhimoeConfig, PhimoeForCausalLM

print("peft", peft.__version__, "transformers", transformers.__version__, "torch", torch.__version__)
torch.manual_seed(0)
ids = torch.randint(3, 32, (1, 6))


def adapted(target_modules):
    config = PhimoeConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = PhimoeForCausalLM(config).eval()
    return get_peft_model(model, LoraConfig(target_modules=target_modules, task_type="CAUSAL_LM"))


named = adapted(["q_proj", "k_proj", "v_proj", "o_proj"])
print("projections by name:", tuple(named(input_ids=ids).logits.shape))

model = adapted("all-linear")
modules = [name.split("layers.0.")[1] for name, module in model.named_modules() if hasattr(module, "lora_A")]
print("all-linear adapts:", modules)
assert "mlp.router" in modules
try:
    model(input_ids=ids)
except AttributeError as error:
    print("AttributeError:", error)
    assert "'tuple' object has no attribute 'dtype'" in str(error)
else:
    raise SystemExit("all-linear works now")
EOF
