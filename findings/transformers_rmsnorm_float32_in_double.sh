#!/usr/bin/env bash
# One would guess: model.double() computes in float64, so that two ways to compute the same thing agree to about 1e-15.
# What happens: the RMS norms of Qwen2, Llama and most others cast what they get to float32, whatever came in, and cast back
# afterwards. The parameters and the outputs are float64, and nothing says that each layer rounds to single precision twice.
# GPT-2, which uses torch's LayerNorm, agrees as expected.
# Why it matters: float64 is the tool with which layouts, kernels and sharding are compared with a plain loop. Behind such a
# norm two right ways differ by 1e-8 to 1e-7, so a tolerance of 1e-12 fails where nothing is wrong, and one of 1e-7 lets pass an
# error that float64 was meant to show. Compare with the norms replaced, or with the tolerance of float32.
# Source: transformers/models/qwen2/modeling_qwen2.py, Qwen2RMSNorm.forward; models/llama/modeling_llama.py, LlamaRMSNorm.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip="$work/venv/bin/pip install --quiet --disable-pip-version-check"
$pip torch==2.13.0 transformers==5.23.0
cd "$work"
HF_HOME="$work/hf" HF_HUB_OFFLINE=1 "$work/venv/bin/python" -W ignore - <<'EOF'
from importlib.metadata import version

import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config

print(*(f"{name} {version(name)}" for name in ("torch", "transformers")))
sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4)
configs = {
    "qwen2": Qwen2Config(vocab_size=64, **sizes),
    "llama": LlamaConfig(vocab_size=64, **sizes),
    "gpt2": GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0),
}
off = {}
for name, config in configs.items():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").double().eval()
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    x = model.get_input_embeddings()(torch.arange(10)[None])
    # The same function twice: as it is, and with an input whose values differ in the tenth digit.
    with torch.no_grad():
        whole = model(inputs_embeds=x).logits
        near = model(inputs_embeds=x * (1 + 1e-10)).logits
    assert whole.dtype == torch.float64
    # In float64 a relative change of 1e-10 of the input changes the logits by about that, and smoothly: doubling the change
    # doubles the difference. Rounded to float32 in between, the difference is noise of another size.
    with torch.no_grad():
        twice = model(inputs_embeds=x * (1 + 2e-10)).logits
    first, second = (near - whole), (twice - whole)
    off[name] = float((second - 2 * first).abs().max() / first.abs().max().clamp_min(1e-300))
    print(f"{name:6} change of the logits {float(first.abs().max()):.1e}, departs from a straight line by {off[name]:.1e} of it")
norm = AutoModelForCausalLM.from_config(configs["qwen2"]).double().model.norm
x = torch.randn(4, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
exact = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
error = float((norm(x) - exact).abs().max())
print(f"Qwen2RMSNorm of float64: {norm(x).dtype}, {error:.1e} from its formula in float64")
assert error > 1e-9
assert off["gpt2"] < 1e-3 < min(off["qwen2"], off["llama"]), off
EOF
