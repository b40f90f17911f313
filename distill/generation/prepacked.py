"""Weight matrices in the layout of oneDNN's kernels while a model generates on a CPU.

Generation multiplies each matrix many times without changing it. Copied into this layout once, it is read
faster: on a CPU with AVX-512, products of 24 to 2,500 rows take 0.6 to 0.9 of their time. The copies hold as
many bytes as the matrices, and are freed afterwards."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

_LEAST = 1024  # tokens that a model must read before the copies have paid
_DTYPES = (torch.float32, torch.bfloat16)
_MEMORY = Path("/proc/meminfo")
_MOST = 1 / 4  # of the memory that is free


@contextmanager
def prepacked(model: nn.Module, tokens: int) -> Iterator[None]:
    """Multiply with prepacked copies of the model's matrices inside the block.

    Only plain `nn.Linear` modules on a CPU are changed, so that quantized, sharded and adapted layers, and
    everything on a GPU, stay as they are; hooks on modules run as ever. Weights must not change inside the
    block, which must be without gradients.

    Args:
        model: the model.
        tokens: about how many tokens it will read; the copies are not made for a few.
    """
    packed = _linears(model) if tokens >= _LEAST else []
    try:
        for module in packed:
            module.forward = _product(module)
        yield
    finally:
        for module in packed:
            vars(module).pop("forward", None)


def _linears(model: nn.Module) -> list[nn.Linear]:
    """The layers to change; none if their copies could fill the memory."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return []
    found: list[nn.Linear] = [
        module
        for module in model.modules()
        if type(module) is nn.Linear
        and type(module.weight) is nn.Parameter  # and not a subclass with products of its own
        and module.weight.device.type == "cpu"
        and _dtype(module.weight) in _DTYPES
        and not module._forward_pre_hooks  # these may change weights
        and "forward" not in vars(module)
    ]
    size = sum(module.weight.numel() * _dtype(module.weight).itemsize for module in found)
    return found if size <= _MOST * _free_memory() else []


def _product(module: nn.Linear) -> Any:
    """The layer's `forward` with a copy of its matrix."""
    mixed, dtype = torch.is_autocast_enabled("cpu"), _dtype(module.weight)
    weight = reordered(module.weight.detach().to(dtype))
    bias = None if module.bias is None else module.bias.detach().to(dtype)
    multiply = torch.ops.mkldnn._linear_pointwise.default

    def forward(input: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        if torch.is_autocast_enabled("cpu") != mixed or not input.is_floating_point():
            return nn.Linear.forward(module, input)
        if input.dtype != dtype:
            if not mixed:
                return nn.Linear.forward(module, input)
            input = input.to(dtype)
        return multiply(input, weight, bias, "none", (), "")

    return forward


def reordered(weight: Tensor) -> Tensor:
    """A copy of a matrix in oneDNN's layout, which only oneDNN's functions read."""
    return torch.ops.mkldnn._reorder_linear_weight(weight)


def _dtype(weight: Tensor) -> torch.dtype:
    """Dtype of the factors of a product with the weight."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weight.dtype


def _free_memory() -> float:
    """Bytes of memory that programs can still take; infinite if the system does not tell."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", _MEMORY.read_text()) if _MEMORY.is_file() else None
    return 1024.0 * int(found.group(1)) if found else float("inf")
