#!/usr/bin/env bash
# One would guess: with a right attention mask, the hidden states of a row do not depend on the other rows of its
# batch, but for rounding. That is what padding to the longest row relies on.
# What happens: with longrope (Phi-3, Phi-4-mini) transformers takes the largest position of the whole batch, padding
# included, and picks the short or the long factors for all rows by it. A row of 8 tokens beside one of 17 is rotated
# with the long factors, where the original context is 16.
# Why it matters: log-probs of a text depend on how it was batched. Cached teacher log-probs, or a ratio of new to
# old log-probs, differ from a run with other batches by more than rounding.
# Source: transformers/modeling_rope_utils.py, longrope_frequency_update (seq_len is the maximum of position_ids).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0
HF_HOME="$work/hf" TRANSFORMERS_VERBOSITY=error "$work/venv/bin/python" - <<'EOF'
import torch
import transformers
from transformers import Phi3Config, Phi3Model

print("transformers", transformers.__version__, "torch", torch.__version__)
torch.manual_seed(0)
model = Phi3Model(
    Phi3Config(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        max_position_embeddings=64,
        original_max_position_embeddings=16,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 8,
            "long_factor": [4.0] * 8,
            "original_max_position_embeddings": 16,
        },
    )
).eval()
row = torch.randint(3, 32, (8,))


@torch.no_grad()
def change_beside(length, width):
    """Return the largest change of the row's hidden states beside a row of this length, padded to this width."""
    ids = torch.zeros(2, width, dtype=torch.long)
    ids[0, :8] = row
    ids[1, :length] = torch.randint(3, 32, (length,))
    beside = model(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state[0, :8]
    return (beside - model(input_ids=row[None]).last_hidden_state[0]).abs().max().item()


changes = {sizes: change_beside(*sizes) for sizes in ((8, 8), (16, 16), (17, 17), (8, 17))}
print("largest change by the other row's length and the width:", changes)
assert max(changes[8, 8], changes[16, 16]) < 1e-5
assert min(changes[17, 17], changes[8, 17]) > 1e-3
EOF
