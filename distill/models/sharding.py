"""Sharding of models over the ranks of a run with FSDP2 (torch's `fully_shard`; ZeRO-3, 1910.02054).

Between passes each rank holds its share of every parameter. A pass gathers one layer at a time. Embeddings
and output matrix are gathered once a step, because the chunked head reads the matrix after the body's pass.
"""

import copy
from collections.abc import Iterable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from distill.data.layout import Layout
from distill.errors import UserError
from distill.models.head import Head
from distill.models.language_model import LanguageModel, ModelSource
from distill.models.layers import layers_of
from distill.models.rope import rope_switch


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


def check_shardable(source: ModelSource) -> None:
    """Check that a model can be sharded, before its weights are loaded.

    Raises:
        UserError: it does not say which modules are its layers, or reads long traces apart from short ones.
    """
    model = source.skeleton()
    if not layers_of(model):
        raise UserError(
            f"trainer.strategy=fsdp: {source.name!r} does not say which modules are its layers "
            f"(_no_split_modules): take trainer.strategy=ddp"
        )
    if rope_switch(model.config) is not None:
        raise UserError(
            f"trainer.strategy=fsdp: {source.name!r} reads long traces in a pass of their own, which the "
            f"ranks could not do together: take trainer.strategy=ddp"
        )


def shard(
    lm: LanguageModel, mesh: DeviceMesh, precision: torch.dtype = torch.float32, *, cpu_offload: bool = False
) -> None:
    """Shard a model in place; its `completion_head` then runs on all ranks together.

    Args:
        lm: the model, whole on each rank, with the same weights.
        mesh: one-dimensional mesh of all ranks.
        precision: dtype of matrix products. In bf16 a layer is gathered in bf16: autocast would keep a bf16
            copy of every layer from the forward to the backward pass, a whole model on each rank.
        cpu_offload: whether each rank's share of weights, gradients and optimizer state is in host memory.
    """
    model: Any = lm.model
    options: dict[str, Any] = {"mesh": mesh}
    if cpu_offload:
        options["offload_policy"] = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda")
    # Hidden states between layers stay in fp32, as under autocast, which rounds a product's factors alone.
    mixed = MixedPrecisionPolicy(precision, torch.float32, cast_forward_inputs=False)
    for layer in layers_of(model):
        if precision == torch.float32:
            fully_shard(layer, **options)
        else:
            fully_shard(layer, **options, mp_policy=mixed)
    # The output matrix is read after the forward pass, and gets its gradient before the body: if it were
    # resharded in between, that gradient would be lost without an error.
    fully_shard(model, **options, reshard_after_forward=False)
    read = lm.completion_head

    def completion_states(self: nn.Module, ids: Tensor, mask: Tensor, layout: Layout | None) -> Tensor:
        more = _missing_passes(layout, ids.device, mesh.get_group())
        return _after(more, model, ids, read(ids, mask, layout).hidden)

    model.completion_states = MethodType(completion_states, model)
    register_fsdp_forward_method(model, "completion_states")

    def completion_head(ids: Tensor, mask: Tensor, layout: Layout | None = None) -> Head:
        hidden = model.completion_states(ids, mask, layout)
        return Head(hidden, lm.output_matrix)

    lm.completion_head = completion_head  # pyright: ignore[reportAttributeAccessIssue]


def make_even_passes(lm: LanguageModel) -> None:
    """Let each rank make as many passes as the one that makes most, as ranks must that gather layers."""
    read = lm.completion_head

    def completion_head(ids: Tensor, mask: Tensor, layout: Layout | None = None) -> Head:
        more = _missing_passes(layout, ids.device, None)
        head = read(ids, mask, layout)
        return Head(_after(more, lm.model, ids, head.hidden), head.weight)

    lm.completion_head = completion_head  # pyright: ignore[reportAttributeAccessIssue]


def _missing_passes(layout: Layout | None, device: torch.device, group: Any) -> int:
    """Passes of the rank that makes most beyond this rank's own; asked before any, as passes exchange too."""
    if layout is None:
        return 0
    own = torch.tensor(len(layout.passes), device=device)
    most = own.clone()
    distributed.all_reduce(most, distributed.ReduceOp.MAX, group)
    return int(most - own)


def _after(passes: int, model: Any, ids: Tensor, hidden: Tensor) -> Tensor:
    """The hidden states after further passes, which add nothing to them."""
    for _ in range(passes):
        hidden = hidden + 0.0 * model.base_model(input_ids=ids[:1, :1], use_cache=False)[0].sum()
    return hidden


def outline(lm: LanguageModel, shared: Iterable[Any] = ()) -> LanguageModel:
    """A copy of a model without memory for its weights, which `fill` gives it. Made before it is sharded.

    Args:
        lm: the model, whole.
        shared: objects of its hooks that the copy's hooks use as well.
    """
    known: dict[int, Any] = {id(one): one for one in shared}
    known |= {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
        for parameter in lm.model.parameters()
    }
    found = copy.copy(lm)
    found.model = copy.deepcopy(lm.model, known)
    return found


@torch.no_grad()
def whole_weights(
    model: nn.Module, device: torch.device | None = None, *, keep: bool = True
) -> dict[str, Tensor]:
    """The whole weights of a sharded model by name; a tied one under its first name. Call it on all ranks.

    Args:
        model: the sharded model.
        device: where to put them; None: they stay on the model's.
        keep: whether this rank wants them; the others take part, and get nothing.
    """
    found: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        value: Any = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter.detach()
        if keep:
            found[name] = value.to(device) if device is not None else value
    return found


def fill(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Give the parameters of an `outline`'s model their values, without a copy."""
    for name, value in weights.items():
        parameter = model.get_parameter(name)
        filled = nn.Parameter(value, parameter.requires_grad)
        torch.utils.swap_tensors(parameter, filled)
