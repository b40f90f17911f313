"""Estimate the memory of training: weights, gradients, optimizer, activations and the chunked head."""

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from distill.config.instantiate import OptimizerFactory
from distill.losses.logits import fitting_chunk
from distill.models.head import Head
from distill.models.language_model import LanguageModel, ModelSource
from distill.models.lora import add_lora
from distill.models.sharding import layers_of
from distill.training.setup import Setup


def training_memory(setup: Setup, *, rows: int, length: int) -> tuple[Any, dict[str, int]]:
    """Bytes of the student's weights, gradients, optimizer state and activations, including LoRA.

    Args:
        setup: the run.
        rows: traces per micro-batch.
        length: tokens of the longest trace.

    Returns:
        The model without weights, and bytes by category. Activations are the tensors that the body's padded
        forward pass saves for the backward pass; with gradient checkpointing, the inputs of all layers and
        what one layer recomputes. In mixed precision they include a bf16 copy of the weights, unless the
        strategy gathers layers in bf16.
    """
    source = setup.student
    model = source.skeleton()
    model.to(dtype_of(source, model))
    if setup.lora:
        lm = LanguageModel.__new__(LanguageModel)  # without a tokenizer, which LoRA does not need
        lm.model, lm.source = model, source
        add_lora(lm, setup.lora, seed=setup.seed)
    if setup.gradient_checkpointing:
        model.activation_checkpointing_enable()
        for layer in layers_of(model)[-1:]:  # the backward pass recomputes one layer at a time
            vars(layer)["gradient_checkpointing"] = False
    with FakeTensorMode():
        _pretend(model)
        cast = setup.compute.precision if setup.compute.places_student else None
        kept = _kept_for_backward(model.train(), rows, length, setup.compute.precision, cast)
    trained = [p for p in model.parameters() if p.requires_grad]
    kept_of = {dtype: _kept_by_optimizer(setup.optimizer, dtype) for dtype in {p.dtype for p in trained}}
    return model, {
        "weights": sum(p.numel() * p.dtype.itemsize for p in model.parameters()),
        "gradients": sum(p.numel() * p.dtype.itemsize for p in trained),
        "optimizer": round(sum(kept_of[p.dtype][0] * p.numel() + kept_of[p.dtype][1] for p in trained)),
        "activations": kept,
    }


def _pretend(model: Any) -> None:
    """Replace meta tensors by fake CPU tensors, also without data.

    They take the same code paths through attention and autocast as real tensors.
    """
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


def _kept_for_backward(
    model: Any, rows: int, length: int, precision: torch.dtype, cast: torch.dtype | None = None
) -> int:
    """Bytes that the body's forward pass keeps; `cast`: dtype to which layers are cast before it."""
    original = {p: p.data for layer in layers_of(model) for p in layer.parameters()} if cast else {}
    for p, values in original.items():
        p.data = values.to(cast) if values.dtype.itemsize > precision.itemsize else values
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    held: list[torch.Tensor] = []  # keeps storages alive, so that none is freed and its address reused

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
    for p, values in original.items():
        p.data = values
    return sum(storage.nbytes() for place, storage in storages.items() if place not in own)


def _kept_by_optimizer(factory: OptimizerFactory, dtype: torch.dtype) -> tuple[float, float]:
    """Bytes of optimizer state per element and per parameter of this dtype, measured on two matrices.

    They are as large as those that an optimizer of 8 bits keeps in 8 bits.
    """
    sizes = {}
    for rows in (64, 128):
        matrix = torch.nn.Parameter(torch.zeros(rows, 256, dtype=dtype))
        optimizer = factory([matrix])
        matrix.grad = torch.zeros_like(matrix)
        with torch.compiler.set_stance("force_eager"):  # torchao's would compile its step
            optimizer.step()
        sizes[matrix.numel()] = sum(map(_nbytes, optimizer.state[matrix].values()))
    (few, less), (many, more) = sizes.items()
    each = (more - less) / (many - few)
    return each, less - each * few


def _nbytes(value: Any) -> int:
    """Bytes of a tensor, or of the tensors that a quantized one consists of; 0 for anything else."""
    if hasattr(value, "__tensor_flatten__"):
        return sum(_nbytes(getattr(value, name)) for name in value.__tensor_flatten__()[0])
    return value.nbytes if isinstance(value, torch.Tensor) else 0


def head_memory(setup: Setup, *, vocabulary: int, hidden: int, completions: int, trains: bool) -> int:
    """Peak bytes of the chunked head.

    They are about four copies of a chunk's logits and one per frozen distribution, the matrix's gradient in
    fp32, and the gradient of the hidden states.

    Args:
        setup: the run.
        vocabulary: rows of the output matrix.
        hidden: columns of the output matrix.
        completions: completion tokens of a micro-batch.
        trains: whether the output matrix trains.
    """
    objective, device = setup.objective, "cpu" if setup.compute.device == "cpu" else "meta"
    matrix = torch.empty(vocabulary, 0, device=device)
    chunk = objective.chunk_size or fitting_chunk(Head(torch.empty(0, 0, device=device), matrix))
    logits = 4 * min(chunk, completions) * vocabulary * (4 + len(objective.distributions))
    gradient = 4 * vocabulary * hidden * trains
    return logits + gradient + 2 * 4 * completions * hidden


def dtype_of(source: ModelSource, model: Any) -> torch.dtype:
    """Dtype of a model's weights in memory."""
    stored = getattr(model.config, "dtype", None)
    if source.dtype == "auto":
        return stored if isinstance(stored, torch.dtype) else torch.float32
    return getattr(torch, source.dtype)
