"""Weight matrices in the layout of oneDNN's kernels while a model generates on a CPU.

Generation multiplies each matrix many times without changing it. Copied into this layout once, it is read
faster: on a CPU with AVX-512, products of 24 to 2,500 rows take 0.6 to 0.9 of their time. The copies hold as
many bytes as the matrices, and are freed afterwards."""

import ast
import functools
import inspect
import re
import textwrap
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
_GATED = "self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))"


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
    changed: list[nn.Module] = []
    try:
        for module in _linears(model) if tokens >= _LEAST else []:
            module.forward = _Product(module)
            changed.append(module)
        if changed:
            for module in filter(_is_gated, model.modules()):
                module.forward = functools.partial(_gated, module)
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
        self.mixed = torch.is_autocast_enabled("cpu")
        self.dtype = _dtype(module.weight)
        self.weight = reordered(module.weight.detach().to(self.dtype))
        self.bias = None if module.bias is None else module.bias.detach().to(self.dtype)

    def __call__(self, input: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        if torch.is_autocast_enabled("cpu") != self.mixed or (input.dtype != self.dtype and not self.mixed):
            return nn.Linear.forward(self.module, input)  # which may refuse it
        return _multiply(input.to(self.dtype), self.weight, self.bias, "none", (), "")


def _multiply(*arguments: Any) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(*arguments)


def _gated(module: Any, x: Float[Tensor, "... hidden"]) -> Float[Tensor, "... hidden"]:
    """An MLP's `forward`, whose activation and gate are computed where the products are, in the same pass."""
    gate, up = module.gate_proj.forward, module.up_proj.forward
    if x.dtype != gate.dtype or torch.is_autocast_enabled("cpu"):
        return type(module).forward(module, x)
    hidden = _multiply(x, gate.weight, gate.bias, "swish", (), "")
    return module.down_proj(_multiply(x, hidden, up.weight, up.bias, "mul"))


def _is_gated(module: Any) -> bool:
    """Whether a module is an MLP with SiLU and prepacked matrices, whose parts have no hooks.

    In bf16 it is not: the one rounding of `_gated` instead of three would change texts.
    """
    from transformers.activations import SiLUActivation

    parts: list[Any] = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "act_fn")]
    if type(parts[2]) not in (nn.SiLU, SiLUActivation) or not _says_gated(type(module).forward):
        return False
    products = [getattr(part, "forward", None) for part in parts[:2]]
    return (
        "forward" not in vars(module)
        and all(isinstance(one, _Product) and one.dtype == torch.float32 for one in products)
        and not any(part._forward_hooks or part._forward_pre_hooks for part in parts)
    )


@functools.cache
def _says_gated(forward: Any) -> bool:
    """Whether a function returns `_GATED` and does nothing else, as in most models of transformers."""
    try:
        (function,) = ast.parse(textwrap.dedent(inspect.getsource(forward))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return False
    if not isinstance(function, ast.FunctionDef) or function.decorator_list:
        return False
    match function.body:
        case [ast.Return(value=ast.expr() as found)]:
            pass
        case [ast.Assign(targets=[ast.Name(id=name)], value=found), ast.Return(value=ast.Name(id=returned))]:
            if name != returned:
                return False
        case _:
            return False
    return ast.unparse(found) == _GATED


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


def reordered(weight: Float[Tensor, "outputs inputs"]) -> Tensor:
    """A copy of a matrix in oneDNN's layout, which only oneDNN's functions read."""
    return torch.ops.mkldnn._reorder_linear_weight(weight)


def _dtype(weight: Tensor) -> torch.dtype:
    """Dtype of the factors of a product with the weight."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weight.dtype


def _free_memory() -> float:
    """Bytes of memory that programs can still take; infinite if the system does not tell."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", _MEMORY.read_text()) if _MEMORY.is_file() else None
    return 1024.0 * int(found.group(1)) if found else float("inf")
