"""Count FLOPs, bytes and live memory of every kernel that runs inside a block, with real or fake tensors."""

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop

_aten = torch.ops.aten
# With what torch's own registry lacks: attention on a CPU, and products that are added in place.
_FLOPS: Mapping[Any, Any] = {
    _aten.addmm_: flop_registry[_aten.addmm],
    _aten.baddbmm_: flop_registry[_aten.baddbmm],
    _aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: sdpa_backward_flop,
    **flop_registry,
}
_has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
_EMPTY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
# Kernels that read as much of their first tensor as they write; those that write as much as they are given.
_GATHER = {"embedding", "index_select", "gather", "index"}
_SCATTER = {"scatter_", "scatter_add_", "index_put_", "index_add_", "masked_scatter_"}
GPU_BLOCK = 512  # bytes that torch's allocator rounds up to on a GPU
_OVERWRITE = {"copy_", "zero_", "fill_"}  # kernels that do not read what they change


@dataclass
class Kernel:
    """What all calls of a kernel take.

    Attributes:
        calls: number of calls.
        flops: operations of matrix products and attention, by torch's formulas; 0 for other kernels.
        read: bytes of the tensors that are read.
        written: bytes of the tensors that are written.
    """

    calls: int = 0
    flops: int = 0
    read: int = 0
    written: int = 0

    @property
    def bytes(self) -> int:
        return self.read + self.written

    def __add__(self, other: "Kernel") -> "Kernel":
        return Kernel(
            self.calls + other.calls,
            self.flops + other.flops,
            self.read + other.read,
            self.written + other.written,
        )


class KernelMeter(TorchDispatchMode):
    """Context that counts kernels and live memory, phase by phase.

    Bytes are those of a kernel's inputs and outputs, each read or written once: what a kernel keeps for
    itself is not seen, nor what a cache saves. A view takes no bytes. Live memory is that of all storages
    made inside the block, or given to `hold`, until Python or autograd lets go of them.

    Args:
        block: bytes that the allocator rounds up to.

    Attributes:
        phase: name of what runs now; may be set at any time.
        kernels: by phase and name.
        peaks: largest number of live bytes in each phase.
        live: live bytes now.
    """

    def __init__(self, block: int = 1) -> None:
        super().__init__()
        self.phase = ""
        self.kernels: dict[tuple[str, str], Kernel] = {}
        self.peaks: Counter[str] = Counter()
        self.live = 0
        self._block = block
        self._known: set[int] = set()

    def hold(self, tensors: Iterable[Tensor]) -> int:
        """Count tensors that were made outside of the block, until they are freed. Returns their bytes."""
        before = self.live
        for tensor in tensors:
            self._born(tensor)
        return self.live - before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            return func(*args, **kwargs)
        # Under inference_mode operators come before they are decomposed. Some could be, but have a kernel.
        if func._overloadpacket not in _FLOPS and not _has_kernel(func.name(), "CPU"):
            with self:
                found = func.decompose(*args, **kwargs)
            if found is not NotImplemented:
                return found
        out = func(*args, **kwargs)
        outputs, inputs = list(_tensors(out)), list(_tensors([args, kwargs]))
        given = {_place(tensor) for tensor in inputs}
        changed = list(_changed(func, args, kwargs))
        if changed or any(_place(tensor) not in given for tensor in outputs):
            self._count(func, args, kwargs, out, [changed, inputs, outputs])
        for tensor in outputs:
            self._born(tensor)
        self.peaks[self.phase] = max(self.peaks[self.phase], self.live)
        return out

    def _count(self, func: Any, args: Any, kwargs: Any, out: Any, tensors: list[list[Tensor]]) -> None:
        changed, inputs, outputs = tensors
        packet = func._overloadpacket
        name = packet.__name__
        formula = _FLOPS.get(packet)
        flops = formula(*args, **kwargs, out_val=out) if formula is not None else 0
        written = sum(map(_nbytes, changed or outputs))
        into = {id(tensor) for tensor in _tensors(kwargs.get("out"))}
        if name in _OVERWRITE:
            into |= {id(tensor) for tensor in changed}
        read = sum(_nbytes(tensor) for tensor in inputs if id(tensor) not in into)
        if name in _EMPTY:
            read = written = 0
        elif name in _GATHER:
            read = written + sum(map(_nbytes, inputs[1:]))
        elif name in _SCATTER:
            written = _nbytes(inputs[-1])
            read = written + sum(map(_nbytes, inputs[1:]))
        key = self.phase, name
        self.kernels[key] = self.kernels.get(key, Kernel()) + Kernel(1, int(flops), read, written)

    def _born(self, tensor: Tensor) -> None:
        if tensor.device.type == "meta":
            return
        storage = tensor.untyped_storage()
        place = storage._cdata
        if place in self._known:
            return
        size = -(-storage.nbytes() // self._block) * self._block
        self._known.add(place)
        self.live += size
        weakref.finalize(storage, self._freed, place, size).atexit = False

    def _freed(self, place: int, size: int) -> None:
        self._known.discard(place)
        self.live -= size


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested sequences and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _changed(func: Any, args: Any, kwargs: Any) -> Iterator[Tensor]:
    """The tensors that an operator writes to in place."""
    for number, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            # Fused optimizers may unscale the gradients, which none does here.
            if argument.name == "grads":
                continue
            value = kwargs.get(argument.name) if argument.kwarg_only else None
            yield from _tensors(args[number] if value is None and number < len(args) else value)


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _nbytes(tensor: Tensor) -> int:
    """Bytes that reading a tensor takes; an expanded one has no more than its storage."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
