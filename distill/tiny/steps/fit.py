"""Train a small model from nothing; a training that was stopped goes on as if it had not been."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from distill.errors import UserError
from distill.io.files import hash_arrays, write_atomically
from distill.io.progress import progress_bar
from distill.tiny.build import Recipe, completion_tensors, make_model

Row = tuple[str, str]  # prompt and completion
PART = 2_500  # tokens of a forward pass: few enough for the processor's cache
SAVED = 10  # optimizer steps between checkpoints
ASKED = 50  # optimizer steps between questions whether it is enough
WARMUP = 60  # optimizer steps, or a tenth of the training


def train(
    recipe: Recipe,
    tokenizer: Any,
    rows: Callable[[int], Sequence[Row]],
    *,
    steps: int,
    seed: int,
    checkpoint: Path,
    until: Callable[[Any, float], bool] | None = None,
) -> tuple[Any, int]:
    """Train a new model, or go on from its checkpoint.

    Args:
        recipe: architecture and settings; `batch` is the number of rows per optimizer step.
        tokenizer: of both models.
        rows: the rows of an optimizer step, from its number alone.
        steps: optimizer steps.
        seed: of the initial weights.
        checkpoint: file, written every `SAVED` steps and removed by nobody.
        until: called with the model and the step's loss every `ASKED` steps; true ends the training.

    Returns:
        The model, and the number of optimizer steps that it took.

    Raises:
        UserError: the checkpoint is of other settings, or other texts.
    """
    torch.manual_seed(seed)
    model = make_model(recipe, tokenizer, context=tokenizer.model_max_length, tied=True).train()
    optimizers = _optimizers(model, recipe)
    looked_at = [row for step in sorted({0, steps // 2, steps - 1}) for row in rows(step)]
    texts = hash_arrays(np.asarray(tokenizer.encode(prompt + text)) for prompt, text in looked_at)
    settings = json.dumps({**asdict(recipe), "steps": steps, "seed": seed, "texts": texts}, sort_keys=True)
    first, ended = _load(checkpoint, model, optimizers, settings)
    warmup = max(1, min(WARMUP, steps // 10))
    with progress_bar(total=steps, description=checkpoint.stem, unit="step") as bar:
        bar.update(first)
        for step in range(first, steps):
            if ended:
                break
            rate = recipe.lr * min((step + 1) / warmup, 0.02 + 0.98 * (1 - step / steps))
            loss = _backward(model, tokenizer, rows(step))
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.step()
                optimizer.zero_grad()
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update()
            last = step + 1 == steps
            if until is not None and (last or (step + 1) % ASKED == 0):
                ended = until(model.eval(), loss)
                model.train()
            if last or ended or (step + 1) % SAVED == 0:
                _save(checkpoint, model, optimizers, settings, step + 1, ended)
                first = step + 1
    return model.eval(), first


def _optimizers(model: Any, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for the embedding and what is no matrix."""
    inner = {name for name, value in model.named_parameters() if value.ndim == 2 and "embed" not in name}
    named = list(model.named_parameters())
    return [
        torch.optim.Muon(
            [value for name, value in named if name in inner],
            lr=recipe.lr,
            weight_decay=0.05,
            adjust_lr_fn="match_rms_adamw",  # so that one rate suits both
        ),
        torch.optim.AdamW(
            [value for name, value in named if name not in inner],
            lr=recipe.lr,
            betas=(0.9, 0.98),
            weight_decay=0.0,
            fused=True,
        ),
    ]


def _parts(tokenizer: Any, rows: Sequence[Row]) -> list[list[Row]]:
    """Split rows into parts of similar lengths, each with at most `PART` tokens, padding included."""
    lengths = sorted((len(tokenizer.encode(prompt + text)), prompt, text) for prompt, text in rows)
    parts: list[list[Row]] = [[]]
    for length, *row in lengths:
        if length * (len(parts[-1]) + 1) > PART:
            parts.append([])
        parts[-1].append((row[0], row[1]))
    return [part for part in parts if part]


def _backward(model: Any, tokenizer: Any, rows: Sequence[Row]) -> float:
    """Compute the cross-entropy per completion token and its gradient, part by part.

    In bf16, which is a quarter faster on a processor that has it. Weights and optimizer are in fp32.
    """
    parts = [completion_tensors(tokenizer, part) for part in _parts(tokenizer, rows)]
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
    path: Path,
    model: Any,
    optimizers: Sequence[torch.optim.Optimizer],
    settings: str,
    step: int,
    ended: bool,
) -> None:
    tensors = {f"model.{name}": value.detach() for name, value in model.named_parameters()}
    for place, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{place}.{index}.{key}": value for key, value in state.items()}
    said = {"settings": settings, "step": str(step), "ended": str(int(ended))}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=said))


def _load(
    path: Path, model: Any, optimizers: Sequence[torch.optim.Optimizer], settings: str
) -> tuple[int, bool]:
    """The number of steps that the checkpoint has, and whether it is the last; (0, False) without one."""
    if not path.is_file():
        return 0, False
    with safe_open(path, "pt") as file:
        said = file.metadata()
        if said["settings"] != settings:
            raise UserError(f"{path} is the checkpoint of other settings: remove it to start anew")
        states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
        weights = {}
        for name in file.keys():  # noqa: SIM118, it is no dict
            kind, _, rest = name.partition(".")
            if kind == "model":
                weights[rest] = file.get_tensor(name)
            else:
                place, index, key = rest.split(".")
                states[int(place)].setdefault(int(index), {})[key] = file.get_tensor(name)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(weights[name])
    for optimizer, state in zip(optimizers, states, strict=True):
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    return int(said["step"]), said["ended"] == "1"
