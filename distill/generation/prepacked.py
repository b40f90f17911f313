"""Weight matrices in the layout of oneDNN's kernels while a model generates on a CPU.

Generation multiplies each matrix many times without changing it. Copied into this layout once, it is read
faster: on a CPU with AVX-512, products of 24 to 2,500 rows take 0.6 to 0.9 of their time. The copies hold as
many bytes as the matrices, and are freed afterwards."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
    everything on a GPU, stay as they are; hooks on modules run as ever. A weight that changes inside the
    block is multiplied without its copy from then on. The block must be without gradients.

    Args:
        model: the model.
        tokens: about how many tokens it will read; the copies are not made for a few.
    """
    changed: list[nn.Linear] = []
    try:
        for module in _linears(model) if tokens >= _LEAST else []:
            module.forward = _Product(module)
            changed.append(module)
        yield
    finally:
        for module in changed:
            vars(module).pop("forward", None)


class _Product:
    """A linear layer's `forward`, with a copy of its matrix for the current autocast.

    Args:
        module: the layer.
    """

    def __init__(self, module: nn.Linear) -> None:
        self.module = module
        self.multiply = torch.ops.mkldnn._linear_pointwise.default
        self.mixed = torch.is_autocast_enabled("cpu")
        self.dtype = _dtype(module.weight)
        self.inputs = _DTYPES if self.mixed else (self.dtype,)
        self.source, self.version = module.weight, module.weight._version
        self.weight = reordered(module.weight.detach().to(self.dtype))
        self.bias = None if module.bias is None else module.bias.detach().to(self.dtype)

    def __call__(self, input: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        current = self.module.weight
        if (
            torch.is_autocast_enabled("cpu") != self.mixed
            or input.dtype not in self.inputs
            or current is not self.source
            or current._version != self.version
        ):
            return nn.Linear.forward(self.module, input)  # which may refuse it
        return self.multiply(input.to(self.dtype), self.weight, self.bias, "none", (), "")


def _linears(model: nn.Module) -> list[nn.Linear]:
    """The layers to change; none if their copies could fill the memory."""
    functions = ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported")
    if not torch.backends.mkldnn.is_available() or not all(hasattr(torch.ops.mkldnn, f) for f in functions):
        return []
    half = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    dtypes = _DTYPES if half else (torch.float32,)
    found: list[nn.Linear] = [
        module
        for module in model.modules()
        if type(module) is nn.Linear
        and type(module.weight) is nn.Parameter  # and not a subclass with products of its own
        and module.weight.device.type == "cpu"
        and module.weight.dtype in dtypes
        and _dtype(module.weight) in dtypes
        and not module.weight.is_inference()  # such tensors do not count their changes
        and "forward" not in vars(module)
    ]
    size = sum(module.weight.numel() * _dtype(module.weight).itemsize for module in found)
    return found if size <= _MOST * _free_memory() else []


def reordered(weight: Float[Tensor, "outputs inputs"]) -> Tensor:
    """A copy of a matrix in oneDNN's layout, which only oneDNN's functions read."""
    return torch.ops.mkldnn._reorder_linear_weight(weight)


def _dtype(weight: Tensor) -> torch.dtype:
    """Dtype of the factors of a product with the weight."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weight.dtype


def _free_memory() -> float:
    """Bytes that programs can still take; infinite if the system does not tell."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", _MEMORY.read_text()) if _MEMORY.is_file() else None
    return 1024.0 * int(found.group(1)) if found else float("inf")
