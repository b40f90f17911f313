"""`python -m distill.bench`: peak memory of a KL step, chunked head against full logits, side by side.

Full logits come in two versions: as one writes them first, and with care, each tensor freed as soon as it can
be.

Each measurement is a process of its own, so that neither inherits the other's memory; the losses and
gradients of both are printed beside their peaks, because a saving that computes something else is none.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from distill.cache import write_atomically
from distill.head import Head, WeightedTokenLoss, weighted_token_losses
from distill.losses.divergence import forward_kl

# What is measured, in turn, and its name in the table.
WAYS = {"full": "full logits", "freed": "full logits, freed early", "chunked": "chunked"}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m distill.bench", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--tokens", type=int, default=1024, help="completion tokens of the step")
    parser.add_argument(
        "--vocabulary", type=int, default=151_936, help="rows of the output matrix (Qwen2.5: 151936)"
    )
    parser.add_argument("--hidden", type=int, default=896, help="width of both models (Qwen2.5-0.5B: 896)")
    parser.add_argument("--chunk-size", type=int, default=64, help="tokens whose logits exist at once")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each, in turn")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--out", type=Path, default=None, help="also write the result there, as JSON")
    parser.add_argument("--measure", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(_measure(options)))
        return
    result = compare(options)
    print(_table(result))
    if options.out:
        write_atomically(options.out, lambda path: path.write_text(json.dumps(result, indent=2) + "\n"))


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Measure all ways in turn, each in a fresh process, and put medians side by side."""
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(options.rounds):
        for way in found:
            command = [sys.executable, "-m", "distill.bench", "--measure", way, "--device", options.device]
            for name in ("tokens", "vocabulary", "hidden", "chunk_size"):
                command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[way].append(json.loads(done.stdout.strip().splitlines()[-1]))
    return {
        "tokens": options.tokens,
        "vocabulary": options.vocabulary,
        "hidden": options.hidden,
        "chunk_size": options.chunk_size,
        "device": options.device,
        "rounds": options.rounds,
        **{way: {name: median(m[name] for m in ms) for name in ms[0]} for way, ms in found.items()},
    }


def _table(result: dict[str, Any]) -> str:
    chunked = result["chunked"]
    lines = [
        f"forward KL step, {result['tokens']} tokens × {result['vocabulary']} vocabulary, width "
        f"{result['hidden']}, chunks of {result['chunk_size']}, {result['device']}, median of "
        f"{result['rounds']}",
        "",
        "| head | peak above weights and inputs | chunked is | seconds | chunked is | loss | gradient norm |",
        "|---|---|---|---|---|---|---|",
    ]
    for way, name in WAYS.items():
        found = result[way]
        memory, seconds = (chunked[key] / found[key] for key in ("peak_bytes", "seconds"))
        lines.append(
            f"| {name} | {found['peak_bytes'] / 2**30:.2f} GiB | {memory:.1%} | {found['seconds']:.2f} | "
            f"{seconds:.2f} × | {found['loss']:.6f} | {found['gradient_norm']:.6f} |"
        )
    return "\n".join(lines)


def _measure(options: argparse.Namespace) -> dict[str, float]:
    """One step, forward and backward: its peak above what was there before, its time, its loss and
    gradient."""
    torch.manual_seed(0)
    device = torch.device(options.device)
    shape = (options.tokens, options.hidden)
    hidden = torch.randn(shape, device=device).requires_grad_()
    weight = torch.randn(options.vocabulary, options.hidden, device=device).mul_(0.02).requires_grad_()
    teacher_hidden = torch.randn(shape, device=device)
    teacher_weight = torch.randn(options.vocabulary, options.hidden, device=device).mul_(0.02)
    labels = torch.zeros(options.tokens, dtype=torch.long, device=device)
    before = _peak(device)
    began = time.perf_counter()
    if options.measure == "full":
        loss = _full(hidden, weight, teacher_hidden, teacher_weight)
    elif options.measure == "freed":
        loss = _freed(hidden, weight, teacher_hidden, teacher_weight)
    else:
        weights = torch.full_like(labels, 1 / options.tokens, dtype=torch.float32)
        loss = weighted_token_losses(
            Head(hidden, weight),
            labels,
            [WeightedTokenLoss(forward_kl, weights)],
            others={"log_p": Head(teacher_hidden, teacher_weight)},
            chunk_size=options.chunk_size,
        ).total
    loss.backward()
    peak = _peak(device) - before
    seconds = time.perf_counter() - began
    assert hidden.grad is not None
    assert weight.grad is not None
    norm = torch.stack([hidden.grad.norm(), weight.grad.norm()]).norm()
    return {
        "peak_bytes": peak,
        "seconds": seconds,
        "loss": float(loss.detach()),
        "gradient_norm": float(norm),
    }


def _full(hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor) -> Tensor:
    """What one writes first: both models return logits for all tokens, and torch's own divergence compares
    them."""
    student_logits = hidden @ weight.T
    with torch.no_grad():
        teacher_logits = teacher_hidden @ teacher_weight.T
        teacher = torch.log_softmax(teacher_logits, -1)
    student = torch.log_softmax(student_logits, -1)
    return torch.nn.functional.kl_div(student, teacher, reduction="none", log_target=True).sum(-1).mean()


def _freed(hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor) -> Tensor:
    """The same, and no logits kept beside their log-softmax."""
    with torch.no_grad():
        teacher = torch.log_softmax(teacher_hidden @ teacher_weight.T, -1)
    student = torch.log_softmax(hidden @ weight.T, -1)
    return torch.nn.functional.kl_div(student, teacher, reduction="sum", log_target=True) / len(hidden)


def _peak(device: torch.device) -> int:
    """High-water mark so far, bytes: the allocator's on a GPU, the process's on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
