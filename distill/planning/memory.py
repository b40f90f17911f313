"""What training holds in memory, from a configuration alone: bytes of weights, gradients, optimizer,
activations and the chunked head."""

from typing import Any

import torch
from omegaconf import DictConfig
from torch._subclasses.fake_tensor import FakeTensorMode

from distill.config.instantiate import build
from distill.losses.logits import fitting_chunk
from distill.models.head import Head
from distill.models.language_model import LanguageModel, ModelSource
from distill.models.lora import add_lora, read_lora
from distill.objective.objective import Objective
from distill.training.checks import precision_of

_PROBED: dict[tuple[str, torch.dtype], tuple[int, int]] = {}


def training_memory(
    cfg: DictConfig, source: ModelSource, *, rows: int, length: int
) -> tuple[Any, dict[str, int]]:
    """Bytes of the student's weights, gradients, optimizer and activations, LoRA's included.

    Args:
        cfg: of `train.py`.
        source: the student.
        rows: traces a micro-batch.
        length: tokens of the longest.

    Returns:
        The model, without numbers; bytes by what they hold. Activations are what the backward pass keeps of
        the body, laid out side by side, without what it computes anew where activations are checkpointed. In
        mixed precision they hold a bf16 copy of the weights.
    """
    model = source.skeleton()
    model.to(dtype_of(source, model))
    if lora := read_lora(cfg):
        lm = LanguageModel.__new__(LanguageModel)  # without a tokenizer, which adapters do not ask for
        lm.model, lm.source = model, source
        add_lora(lm, lora, seed=cfg.seed)
    if cfg.model.gradient_checkpointing:
        model.activation_checkpointing_enable()
    with FakeTensorMode():
        _pretend(model)
        kept = _kept_for_backward(model.train(), rows, length, "bf16" in precision_of(cfg))
    trained = [p for p in model.parameters() if p.requires_grad]
    return model, {
        "weights": sum(p.numel() * p.dtype.itemsize for p in model.parameters()),
        "gradients": sum(p.numel() * p.dtype.itemsize for p in trained),
        "optimizer": sum(_optimizer_bytes(cfg, p) for p in trained),
        "activations": kept,
    }


def _pretend(model: Any) -> None:
    """Give a model on the meta device tensors of the CPU, which hold no numbers either: they take the ways
    through attention and autocast that real ones take."""
    found: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None and id(p) not in found:  # a tied matrix stays one
                values = torch.empty(p.shape, dtype=p.dtype)
                found[id(p)] = torch.nn.Parameter(values, requires_grad=p.requires_grad)
            module._parameters[name] = None if p is None else found[id(p)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _kept_for_backward(model: Any, rows: int, length: int, half: bool) -> int:
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    held: list[torch.Tensor] = []  # so that no storage's place is taken by another

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        held.append(tensor)
        return tensor

    ids = torch.zeros(rows, length, dtype=torch.long)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=half),
    ):
        _ = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in held}
    return sum(storage.nbytes() for place, storage in storages.items() if place not in own)


def _optimizer_bytes(cfg: DictConfig, parameter: torch.nn.Parameter) -> int:
    """What the optimizer keeps of a parameter, after what it keeps of a small one of its type."""
    key = parameter.dtype
    if (found := _PROBED.get((str(cfg.optimizer), key))) is None:
        small = torch.nn.Parameter(torch.zeros(64, dtype=key))
        optimizer = build(cfg.optimizer, "optimizer")([small])
        small.grad = torch.zeros_like(small)
        optimizer.step()
        state = [value for value in optimizer.state[small].values() if isinstance(value, torch.Tensor)]
        each = sum(value.element_size() for value in state if value.numel() == 64)
        once = sum(value.nbytes for value in state if value.numel() != 64)
        found = _PROBED[str(cfg.optimizer), key] = each, once
    each, once = found
    return each * parameter.numel() + once


def head_memory(
    cfg: DictConfig, objective: Objective, *, vocabulary: int, hidden: int, completions: int, trains: bool
) -> int:
    """Bytes of the chunked head at its peak: a chunk's logits some four times over and once a distribution
    beside them, the gradient of the matrix in fp32, and those of the states.

    Args:
        cfg: of `train.py`.
        objective: says what is compared.
        vocabulary: rows of the matrix.
        hidden: its columns.
        completions: tokens of a micro-batch.
        trains: whether the matrix does.
    """
    device = "meta" if cfg.trainer.accelerator in ("gpu", "cuda") else "cpu"
    matrix = torch.empty(vocabulary, 0, device=device)
    chunk = objective.chunk_size or fitting_chunk(Head(torch.empty(0, 0, device=device), matrix))
    logits = 4 * min(chunk, completions) * vocabulary * (4 + len(objective.distributions))
    gradient = 4 * vocabulary * hidden * trains
    return logits + gradient + 2 * 4 * completions * hidden


def dtype_of(source: ModelSource, model: Any) -> torch.dtype:
    """The type of a model's weights in memory."""
    stored = getattr(model.config, "dtype", None)
    if source.dtype == "auto":
        return stored if isinstance(stored, torch.dtype) else torch.float32
    return getattr(torch, source.dtype)
