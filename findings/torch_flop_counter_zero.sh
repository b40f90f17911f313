#!/usr/bin/env bash
# One would guess: FlopCounterMode counts every matrix product that runs under it, or says which one it does not know.
# What happens: it looks each operator up in a table, and one that is not in the table counts 0, without a word.
# torch.addmm is there. The in-place addmm_ and baddbmm_ are not, nor is grouped_mm (the products of a mixture's
# experts), nor the fused attention that scaled_dot_product_attention takes on a CPU. The same product counts if it is
# written out of place, or expert by expert, or with the plain attention kernel.
# Why it matters: a speed in FLOP/s, or a share of the device's peak, comes out too low, and two versions of one model
# (fused or not, in place or not) seem to do different work. A chunked loss that adds up a gradient with addmm_ loses
# one of its three products from the count.
# Source: torch/utils/flop_counter.py, flop_registry and FlopCounterMode._count_flops. The attention alone is reported
# in https://github.com/pytorch/pytorch/issues/195460
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$work/venv/bin/python" -W error - <<'EOF'
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import grouped_mm, scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

print("torch", torch.__version__)
torch.manual_seed(0)
a, b, c = torch.randn(8, 16), torch.randn(16, 4), torch.randn(8, 4)
tokens, experts = torch.randn(8, 16).bfloat16(), torch.randn(2, 16, 8).bfloat16()
ends = torch.tensor([3, 8], dtype=torch.int32)
q, k, v = torch.randn(3, 1, 2, 8, 16)


def plain_attention():
    with sdpa_kernel(SDPBackend.MATH):
        return scaled_dot_product_attention(q, k, v)


# Two ways of one product each, and 2 * rows * inner * columns, added up over its matrix products.
pairs = {
    "addmm": (lambda: torch.addmm(c, a, b), lambda: c.clone().addmm_(a, b), 2 * 8 * 16 * 4),
    "baddbmm": (
        lambda: torch.baddbmm(c[None], a[None], b[None]),
        lambda: c[None].clone().baddbmm_(a[None], b[None]),
        2 * 8 * 16 * 4,
    ),
    "experts": (
        lambda: torch.cat([tokens[:3] @ experts[0], tokens[3:] @ experts[1]]),
        lambda: grouped_mm(tokens, experts, offs=ends),
        2 * 8 * 16 * 8,
    ),
    "attention": (plain_attention, lambda: scaled_dot_product_attention(q, k, v), 2 * 2 * (2 * 8 * 16 * 8)),
}
for name, (known, unknown, flops) in pairs.items():
    with FlopCounterMode(display=False) as first:
        expected = known()
    with FlopCounterMode(display=False) as second:
        result = unknown()
    torch.testing.assert_close(result, expected)
    print(f"{name}: {flops} FLOPs; counted {first.get_total_flops()} and {second.get_total_flops()}, the same result")
    assert first.get_total_flops() == flops
    assert second.get_total_flops() == 0
EOF
