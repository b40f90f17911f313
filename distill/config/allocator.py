"""Tune glibc's allocator for tensors on a CPU.

glibc's defaults fragment the heap, so that a training step's peak is far above the sum of its tensors. They
also return freed memory to the system, only to request it again page by page."""

import contextlib
import ctypes
import gc
import os
import sys
from collections.abc import Iterator

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # mallopt(3)
_OWN_BLOCK = 32 * 2**20  # larger blocks are mapped separately; glibc's own dynamic maximum
_KEPT = 2**30  # free memory at the heap's end that is not returned to the system


def tune_allocator() -> None:
    """Use huge pages for tensors of 2 MiB and more, and keep freed memory for the next step.

    Settings that the environment already has stay. Call this before torch is imported: torch reads
    `THP_MEM_ALLOC_ENABLE` when it allocates its first tensor. Does nothing if the C library is not glibc.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(_MMAP_THRESHOLD, _OWN_BLOCK)
        mallopt(_TRIM_THRESHOLD, _KEPT)


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Disable the garbage collector during imports, where it takes a tenth of the time and frees nothing."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
