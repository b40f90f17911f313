#!/usr/bin/env bash
# One would guess: transformers 5.24, which renames a model's argument `past_key_values` to `cache`, still takes the old name
# and warns of it until 5.40, so that code that only knows the old one works as before, with a warning.
# What happens: calls and outputs are translated, forward hooks are not. The outer model renames the argument and hands its
# inner model `cache`, so a hook of the inner model that looks for `past_key_values` finds nothing, whatever name the
# caller used, and nothing warns the hook. generate() does the same.
# Why it matters: what counts FLOPs, positions or cached tokens in such a hook takes every pass to be the first one: here
# a pass over 1 new token behind 7 cached ones attends to 1 instead of 8 tokens. Look under both names.
# Source: transformers/models/llama/modeling_llama.py and utils/deprecation.py (deprecate_kwarg) of 5.24.0; 5.23.0 beside it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
cd "$work"
cat > hook.py <<'EOF'
import sys
import warnings

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

with_hook = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, eos_token_id=None, bos_token_id=1, pad_token_id=0,
    )
)
seen = []


def hook(module, args, kwargs):
    cached = {name: kwargs[name].get_seq_length() for name in ("past_key_values", "cache") if kwargs.get(name)}
    seen.append(cached)


handle = with_hook.model.register_forward_pre_hook(hook, with_kwargs=True)
ids = torch.arange(1, 8)[None]
with torch.no_grad(), warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    first = with_hook(input_ids=ids, use_cache=True)
    seen.clear()
    with_hook(input_ids=ids[:, :1], past_key_values=first.past_key_values, use_cache=True)
print("transformers", transformers.__version__)
print("the caller passes past_key_values; warnings:", [str(one.message)[:60] for one in warned if "past_key" in str(one.message)])
print("cached tokens in the inner model's hook:", seen)
assert seen == [{sys.argv[1]: 7}], seen
seen.clear()
with torch.no_grad(), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    with_hook.generate(ids, max_new_tokens=3, min_new_tokens=3, do_sample=False)
print("in generate(), second pass on:", seen[1:])
assert seen[1:] == [{sys.argv[1]: 7}, {sys.argv[1]: 8}], seen
EOF
for pair in 5.23.0:past_key_values 5.24.0:cache; do
  "$work/venv/bin/pip" install --quiet --disable-pip-version-check "transformers==${pair%%:*}"
  "$work/venv/bin/python" hook.py "${pair##*:}"
done
