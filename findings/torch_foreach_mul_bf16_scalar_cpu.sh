#!/usr/bin/env bash
# One would guess: torch._foreach_mul_(tensors, number) is tensor.mul_(number) for each, as its documentation says.
# What happens: for bf16 tensors on a CPU the number itself is first rounded to bf16. tensor.mul_(number) keeps it
# in float and rounds the product alone; so does _foreach_mul_ with the number in a tensor.
# Why it matters: bf16 gradients that are divided this way by a number of tokens are all off by the same factor,
# up to 0.4 %, and a quarter of them by a whole unit in the last place. It is no noise that would average out.
# Source: aten/src/ATen/native/ForeachOpsKernels.cpp, the slow path with a scalar, and BinaryOps.cpp.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
"$work/venv/bin/python" - <<'EOF'
import sys

import torch

print("torch", torch.__version__)
generator = torch.Generator().manual_seed(0)
gradient = torch.randn(100_000, generator=generator).bfloat16()
number = 1 / 3154
right = gradient.double() * number


def off(found):
    """The mean relative error, and the share of products that are not the nearest bf16 number."""
    return ((found.double() - right) / right).mean().item(), (found != right.bfloat16()).double().mean().item()


each, tensors, in_tensor = gradient.clone(), [gradient.clone()], [gradient.clone()]
each.mul_(number)
torch._foreach_mul_(tensors, number)
torch._foreach_mul_(in_tensor, torch.tensor(number))
found = {"mul_": off(each), "_foreach_mul_": off(tensors[0]), "_foreach_mul_ with a tensor": off(in_tensor[0])}
rounded = torch.tensor(number).bfloat16().item() / number - 1
for name, (mean, share) in found.items():
    print(f"{name:27} mean error {mean:+.2e}, not the nearest: {share:.0%}")
print(f"the number in bf16: {rounded:+.2e}")
as_found = (
    found["mul_"][1] == 0 == found["_foreach_mul_ with a tensor"][1]
    and found["_foreach_mul_"][1] > 0.2
    and abs(found["_foreach_mul_"][0] - rounded) < 1e-4
)
sys.exit(not as_found)
EOF
