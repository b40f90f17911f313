"""Estimate the parts of a training step's memory: weights, gradients, optimizer, activations, chunked head.

`ranks.moments` adds them up for each rank, through `stages.step_moments`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from distill.config.instantiate import OptimizerFactory
from distill.losses.several_heads import MixedHead, RoutedHead
from distill.losses.signals import SIGNALS
from distill.losses.sparse import SparseDistribution
from distill.models.head import Head
from distill.models.layers import layers_of
from distill.objective.objective import Objective
from distill.planning.kernels import GPU_BLOCK, KernelMeter
from distill.planning.sizes import ModelSize
from distill.planning.weightless import WeightlessModel, without_values
from distill.training.setup import Setup


def training_memory(setup: Setup, *, rows: int, length: int) -> tuple[Any, dict[str, int]]:
    """Bytes of the student's weights, gradients, optimizer state and activations, including LoRA.

    Args:
        setup: the run.
        rows: traces per micro-batch.
        length: tokens of the longest trace.

    Returns:
        The model without weights, and bytes by category. Activations are the tensors that the body's padded
        forward pass saves for the backward pass; with gradient checkpointing, the inputs of all layers, and
        apart from them what one layer recomputes. In mixed precision they include a bf16 copy of the weights,
        unless the strategy gathers layers in bf16.
    """
    lm = WeightlessModel.student(
        setup.student, lora=setup.lora, gradient_checkpointing=setup.gradient_checkpointing, seed=setup.seed
    )
    model = lm.model
    precision = setup.compute.precision
    cast = precision if setup.compute.places_student and precision != torch.float32 else None
    gpu = setup.compute.device != "cpu"
    with without_values(gpu=gpu):
        lm.pretend(gpu=gpu)
        kept = with_layer = _kept_for_backward(model.train(), rows, length, precision, cast)
        if setup.gradient_checkpointing:
            for layer in layers_of(model)[-1:]:  # the backward pass recomputes one layer at a time
                vars(layer)["gradient_checkpointing"] = False
            with_layer = _kept_for_backward(model, rows, length, precision, cast)
    trained = [p for p in model.parameters() if p.requires_grad]
    kept_of = {dtype: _kept_by_optimizer(setup.optimizer, dtype) for dtype in {p.dtype for p in trained}}
    return model, {
        "weights": sum(p.numel() * p.dtype.itemsize for p in model.parameters()),
        "gradients": sum(p.numel() * p.dtype.itemsize for p in trained),
        "optimizer": round(sum(kept_of[p.dtype][0] * p.numel() + kept_of[p.dtype][1] for p in trained)),
        "activations": kept,
        "recomputed": with_layer - kept,
    }


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
        torch.autocast("cpu", precision, enabled=precision != torch.float32, cache_enabled=False),
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


def head_memory(
    setup: Setup, student: ModelSize, frozen: Mapping[str, ModelSize], *, completions: int, trains: bool
) -> tuple[int, int]:
    """Bytes of the chunked head and the loss, from a pass on tensors without values.

    Args:
        setup: the run.
        student: sizes of the student.
        frozen: sizes of the frozen models.
        completions: completion tokens of a micro-batch.
        trains: whether the output matrix trains.

    Returns:
        Bytes at the peak, and those kept for the backward pass: the gradients of matrix and hidden states.
    """
    objective, compute, gpu = setup.objective, setup.compute, setup.compute.device != "cpu"
    groups = [setup.roles_of(role) for role in objective.distributions.values()]
    sizes = [student, *(frozen[role] for roles in groups for role in roles)]
    read = [completions, *(_read_by(setup, roles, completions) for roles in groups for _ in roles)]
    rows = [size.vocabulary for size in sizes]
    if not objective.across_vocabularies:
        rows = [min(rows)] * len(rows)
    mask, labels = torch.ones(1, completions, dtype=torch.bool), torch.zeros(1, completions, dtype=torch.long)
    with without_values(gpu=gpu):
        heads = [
            Head(
                torch.empty(tokens, size.hidden, dtype=dtype),
                torch.empty(count, size.hidden, dtype=dtype),
            )
            for size, count, tokens in zip(sizes, rows, read, strict=True)
            for dtype in [torch.bfloat16 if size.bytes == 2 else torch.float32]
        ]
        own, of_frozen = heads[0], iter(heads[1:])
        others = {
            name: _joint(setup, [next(of_frozen) for _ in roles], completions)
            for name, roles in zip(objective.distributions, groups, strict=True)
        }
        meter = KernelMeter(GPU_BLOCK if gpu else 1)
        before = meter.hold([head.weight for head in heads])
        mixed = compute.precision != torch.float32
        with meter, torch.autocast("cpu", compute.precision, enabled=mixed, cache_enabled=False):
            meter.hold([head.hidden for head in heads])
            student_head = Head(own.hidden.requires_grad_(), own.weight.requires_grad_(trains))
            found = objective(
                student_head,
                mask,
                labels,
                dict.fromkeys(_given(objective), torch.zeros(1, completions)),
                others={**others, **_sparse(objective, completions)},
                constants={"shared_ids": torch.arange(min(rows)).expand(2, -1)},
                by_student=objective.rewarded,
                places=torch.arange(completions),
            )
            kept = meter.live - before
        del found
    return max(meter.peaks.values()) - before, kept


def _read_by(setup: Setup, roles: Sequence[str], completions: int) -> int:
    """Completion tokens of a micro-batch that one of a distribution's models reads, if each has its share."""
    return -(-completions // len(roles)) if len(roles) > 1 and setup.routed else completions


def _joint(setup: Setup, heads: Sequence[Head], completions: int) -> Head | RoutedHead | MixedHead:
    """The distribution of one model, or of several teachers."""
    if len(heads) == 1 or setup.teachers is None:
        return heads[0]
    if setup.teachers.weights is not None:
        return MixedHead(heads, list(setup.teachers.weights.values()))
    share = len(heads[0].hidden)
    on_host = [np.arange(n * share, min((n + 1) * share, completions)) for n in range(len(heads))]
    places = [torch.arange(int(own[0]), int(own[-1]) + 1) for own in on_host if len(own)]
    kept = [Head(head.hidden[: len(own)], head.weight) for head, own in zip(heads, on_host, strict=True)]
    return RoutedHead(kept[: len(places)], places, on_host[: len(places)], completions)


def _given(objective: Objective) -> list[str]:
    """Signals of single tokens that do not come from the student."""
    known = [name for name in objective.signals if SIGNALS[name].shape != "vocab"]
    rewards = [name for name in known if SIGNALS[name].shape == "reward"]
    return [*(name for name in known if SIGNALS[name].role != "student"), *rewards, "same_token", "spans"]


def _sparse(objective: Objective, tokens: int) -> dict[str, SparseDistribution]:
    """The teacher's distribution, if the cache has only some tokens of it."""
    wanted = objective.distribution
    if not objective.caches_distribution or wanted.whole:
        return {}
    known = wanted.top_k if wanted.source == "top_k" else wanted.samples
    rest = torch.zeros(tokens) if wanted.source == "top_k" else None
    ids = torch.zeros(tokens, known, dtype=torch.int32)
    return {"log_p": SparseDistribution(ids, torch.zeros(tokens, known), rest)}
