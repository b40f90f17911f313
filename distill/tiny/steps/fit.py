"""Train a small model from nothing, with checkpoints: a training that was stopped goes on as if it had not been."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from distill.errors import UserError
from distill.io.files import write_atomically
from distill.io.progress import progress_bar
from distill.tiny.build import Recipe, completion_tensors, make_model

Row = tuple[str, str]  # prompt and completion
WARMUP = 60  # optimizer steps, or a tenth of the training


def train(
    recipe: Recipe,
    tokenizer: Any,
    rows: Callable[[int], Sequence[Row]],
    *,
    steps: int,
    context: int,
    seed: int,
    checkpoint: Path,
    every: int = 100,
    until: Callable[[Any], bool] | None = None,
) -> tuple[Any, int]:
    """Train a new model, or go on from its checkpoint.

    Args:
        recipe: architecture and settings; `batch` is the number of rows per optimizer step.
        tokenizer: of both models.
        rows: the rows of an optimizer step, from its number alone.
        steps: optimizer steps.
        context: longest sequence that the model takes.
        seed: of the initial weights.
        checkpoint: file, written every `every` steps and removed by nobody.
        every: optimizer steps between checkpoints.
        until: asked at each checkpoint; true ends the training.

    Returns:
        The model, and the number of optimizer steps that it took.

    Raises:
        UserError: the checkpoint is of other settings.
    """
    torch.manual_seed(seed)
    model = make_model(recipe, tokenizer, context=context, tied=True).train()
    optimizer = _optimizer(model, recipe)
    settings = json.dumps({**asdict(recipe), "steps": steps, "seed": seed}, sort_keys=True)
    first, ended = _load(checkpoint, model, optimizer, settings)
    warmup = max(1, min(WARMUP, steps // 10))
    with progress_bar(total=steps, description=checkpoint.stem, unit="step") as bar:
        bar.update(first)
        for step in range(first, steps):
            if ended:
                break
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * min((step + 1) / warmup, 0.02 + 0.98 * (1 - step / steps))
            loss = _backward(model, tokenizer, rows(step))
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update()
            if (step + 1) % every == 0 or step + 1 == steps:
                ended = until is not None and until(model.eval())
                model.train()
                _save(checkpoint, model, optimizer, settings, step + 1, ended)
                first = step + 1
    return model.eval(), first


def _optimizer(model: Any, recipe: Recipe) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim == 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": 0.05},
        {"params": rest, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), fused=True)


def _backward(model: Any, tokenizer: Any, rows: Sequence[Row], part: int = 8) -> float:
    """Compute the cross-entropy per completion token and its gradient, in parts of `part` rows of similar length.

    In bf16 where autocast has it: a quarter faster on a processor with the instructions for it. Weights and optimizer
    are in fp32.
    """
    ordered = sorted(rows, key=lambda row: len(row[0] + row[1]))
    parts = [completion_tensors(tokenizer, ordered[at : at + part]) for at in range(0, len(rows), part)]
    tokens = sum(int((labels != -100).sum()) for _, labels in parts)
    total = 0.0
    for ids, labels in parts:
        with torch.autocast("cpu", torch.bfloat16):
            # With right padding, causal attention needs no attention mask, which is faster.
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
        )
        (loss / tokens).backward()
        total += loss.item()
    return total / tokens


def _save(
    path: Path, model: Any, optimizer: torch.optim.Optimizer, settings: str, step: int, ended: bool
) -> None:
    tensors = {f"model.{name}": value.detach() for name, value in model.named_parameters()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items()}
    said = {"settings": settings, "step": str(step), "ended": str(int(ended))}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=said))


def _load(path: Path, model: Any, optimizer: torch.optim.Optimizer, settings: str) -> tuple[int, bool]:
    """The number of steps that the checkpoint has, and whether it is the last; (0, False) without one."""
    if not path.is_file():
        return 0, False
    with safe_open(path, "pt") as file:
        said = file.metadata()
        if said["settings"] != settings:
            raise UserError(f"{path} is the checkpoint of other settings: remove it to start anew")
        state: dict[int, dict[str, Tensor]] = {}
        weights = {}
        for name in file.keys():  # noqa: SIM118, it is no dict
            kind, _, rest = name.partition(".")
            if kind == "model":
                weights[rest] = file.get_tensor(name)
            else:
                index, _, key = rest.partition(".")
                state.setdefault(int(index), {})[key] = file.get_tensor(name)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(weights[name])
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    return int(said["step"]), said["ended"] == "1"
