#!/usr/bin/env bash
# One would guess: DTensor.full_tensor() is differentiable, so that a loss computed with the gathered output matrix of
# a module under FSDP2 gives the matrix the gradient that its own forward pass gives: the mean over the ranks' losses.
# What happens: each rank's shard gets the gradient of this rank's loss alone. The backward pass of full_tensor()
# takes the gradient for the same on all ranks, and sums nothing. full_tensor(grad_placements=[Partial("avg")]) is right.
# Why it matters: losses without whole logits (chunked heads, cut cross-entropy) read the output matrix outside of the
# forward pass. Training goes on and the loss falls, with a matrix that learns from another loss on each shard.
# Source: torch/distributed/tensor/_api.py, DTensor.full_tensor and its argument grad_placements.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat > "$work/show.py" <<'EOF'
import os

import torch
from torch import distributed, multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Partial


def gradient(rank: int, way: str) -> torch.Tensor:
    """Gradient of the output matrix for the mean over two ranks' losses."""
    torch.manual_seed(0)
    head = nn.Linear(8, 6, bias=False).double()
    states = torch.randn(2, 5, 8, dtype=torch.float64)
    labels = torch.randint(0, 6, (2, 5))
    if way == "one process":
        losses = [nn.functional.cross_entropy(states[r] @ head.weight.T, labels[r]) for r in range(2)]
        (sum(losses) / 2).backward()
        return head.weight.grad
    mesh = init_device_mesh("cpu", (2,))
    fully_shard(head, mesh=mesh)
    if way == "the module's own forward":
        logits = head(states[rank])
    else:
        placements = {"full_tensor()": None, "full_tensor(grad_placements=Partial)": [Partial("avg")]}[way]
        logits = states[rank] @ head.weight.full_tensor(grad_placements=placements).T
    nn.functional.cross_entropy(logits, labels[rank]).backward()
    return head.weight.grad.full_tensor()


def run(rank: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29587")
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    right = gradient(rank, "one process")
    off = {}
    for way in ("the module's own forward", "full_tensor()", "full_tensor(grad_placements=Partial)"):
        off[way] = float((gradient(rank, way) - right).norm() / right.norm())
    if rank == 0:
        print("torch", torch.__version__)
        for way, share in off.items():
            print(f"{way}: gradient off by {share:.1%}")
    assert off["the module's own forward"] < 1e-12, off
    assert off["full_tensor()"] > 0.1, off
    assert off["full_tensor(grad_placements=Partial)"] < 1e-12, off
    distributed.destroy_process_group()


if __name__ == "__main__":
    multiprocessing.spawn(run, nprocs=2)
EOF
"$work/venv/bin/python" "$work/show.py"
