#!/usr/bin/env bash
# One would guess: a TorchFunctionMode that is active during forward and backward also acts on the forward pass that
# torch.utils.checkpoint runs again in the backward pass, as a TorchDispatchMode does.
# What happens: the recomputation runs without the mode, for use_reentrant=False too. backward() is itself a function that
# the mode handles, and the mode is off inside of a function that it handles. Nothing is raised as long as shapes and
# dtypes agree. A mode that counts calls misses the recomputed ones. A mode that replaces a function gives gradients of
# neither function: the loss comes from the replacement, the gradient from the original.
# Why it matters: distillation trains with checkpointed activations, and such modes are an easy way to count a step's
# work, to quantize weights on the fly or to swap an activation function. The loss looks right.
# Source: torch/overrides.py, TorchFunctionMode; https://github.com/pytorch/pytorch/issues/147995 and the pull request
# 148023, open on 2026-11-29. Only torch.device contexts have been given to the recomputation since (pull request 172802).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$work/venv/bin/python" - <<'EOF'
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

print("torch", torch.__version__)


class Tanh(TorchFunctionMode):
    """Tanh in place of sigmoid; counts how often."""

    calls = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.sigmoid:
            self.calls += 1
            function = torch.tanh
        return function(*args, **(kwargs or {}))


class Count(TorchDispatchMode):
    calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += function is torch.ops.aten.sigmoid.default
        return function(*args, **(kwargs or {}))


def body(x):
    return torch.sigmoid(x @ x.T)


def gradient(mode, **settings):
    torch.manual_seed(0)
    x = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    with mode:
        loss = (checkpoint(body, x, **settings) if settings else body(x)).pow(2).sum()
        loss.backward()
    return loss.item(), x.grad


loss, plain = gradient(Tanh())
for reentrant in (False, True):
    mode, counter = Tanh(), Count()
    same_loss, kept = gradient(mode, use_reentrant=reentrant)
    gradient(counter, use_reentrant=reentrant)
    off = float((kept - plain).norm() / plain.norm())
    print(f"use_reentrant={reentrant}: loss as without checkpoint: {same_loss == loss}, gradient off by {off:.0%},")
    print(f"  calls seen by the function mode: {mode.calls}, by a dispatch mode: {counter.calls}")
    assert same_loss == loss and off > 0.1
    assert (mode.calls, counter.calls) == (1, 2)
EOF
