"""What training holds in memory, from a configuration alone: bytes of weights, gradients, optimizer,
activations and the chunked head."""

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from distill.config.instantiate import OptimizerFactory
from distill.losses.logits import fitting_chunk
from distill.models.head import Head
from distill.models.language_model import LanguageModel, ModelSource
from distill.models.lora import add_lora
from distill.training.setup import Setup


def training_memory(setup: Setup, *, rows: int, length: int) -> tuple[Any, dict[str, int]]:
    """Bytes of the student's weights, gradients, optimizer and activations, LoRA's included.

    Args:
        setup: the run.
        rows: traces a micro-batch.
        length: tokens of the longest.

    Returns:
        The model, without numbers; bytes by what they hold. Activations are what the backward pass keeps of
        the body, laid out side by side, without what it computes anew where activations are checkpointed. In
        mixed precision they hold a bf16 copy of the weights.
    """
    source = setup.student
    model = source.skeleton()
    model.to(dtype_of(source, model))
    if setup.lora:
        lm = LanguageModel.__new__(LanguageModel)  # without a tokenizer, which adapters do not ask for
        lm.model, lm.source = model, source
        add_lora(lm, setup.lora, seed=setup.seed)
    if setup.gradient_checkpointing:
        model.activation_checkpointing_enable()
    with FakeTensorMode():
        _pretend(model)
        kept = _kept_for_backward(model.train(), rows, length, setup.compute.precision)
    trained = [p for p in model.parameters() if p.requires_grad]
    kept_of = {dtype: _kept_by_optimizer(setup.optimizer, dtype) for dtype in {p.dtype for p in trained}}
    return model, {
        "weights": sum(p.numel() * p.dtype.itemsize for p in model.parameters()),
        "gradients": sum(p.numel() * p.dtype.itemsize for p in trained),
        "optimizer": sum(kept_of[p.dtype][0] * p.numel() + kept_of[p.dtype][1] for p in trained),
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


def _kept_for_backward(model: Any, rows: int, length: int, precision: torch.dtype) -> int:
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    held: list[torch.Tensor] = []  # so that no storage's place is taken by another

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        held.append(tensor)
        return tensor

    ids = torch.zeros(rows, length, dtype=torch.long)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", precision, enabled=precision != torch.float32),
    ):
        _ = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in held}
    return sum(storage.nbytes() for place, storage in storages.items() if place not in own)


def _kept_by_optimizer(factory: OptimizerFactory, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes that the optimizer keeps a number of this type, and beside that a parameter, as it keeps them of
    a small one."""
    small = torch.nn.Parameter(torch.zeros(64, dtype=dtype))
    optimizer = factory([small])
    small.grad = torch.zeros_like(small)
    optimizer.step()
    state = [value for value in optimizer.state[small].values() if isinstance(value, torch.Tensor)]
    each = sum(value.element_size() for value in state if value.numel() == 64)
    return each, sum(value.nbytes for value in state if value.numel() != 64)


def head_memory(setup: Setup, *, vocabulary: int, hidden: int, completions: int, trains: bool) -> int:
    """Bytes of the chunked head at its peak: a chunk's logits some four times over and once a distribution
    beside them, the gradient of the matrix in fp32, and those of the states.

    Args:
        setup: the run.
        vocabulary: rows of the matrix.
        hidden: its columns.
        completions: tokens of a micro-batch.
        trains: whether the matrix does.
    """
    objective, device = setup.objective, "cpu" if setup.compute.device == "cpu" else "meta"
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
