"""How the C library hands out memory to tensors on a CPU.

glibc's defaults split what layers leave behind, so that a step's peak is far above what its tensors add up
to, and give memory back only to take it again page by page."""

import contextlib
import ctypes
import gc
import os
import sys
from collections.abc import Iterator

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # mallopt(3)
_OWN_BLOCK = 32 * 2**20  # a block this large is mapped by itself: the most that glibc comes to on its own
_KEPT = 2**30  # free memory at the heap's end that is kept


def tune_allocator() -> None:
    """Huge pages for tensors of 2 MiB and more, each at a page's beginning; free memory is kept for the next
    step. What the environment sets already stays.

    To be called before torch is imported: it reads `THP_MEM_ALLOC_ENABLE` with its first tensor. Nothing
    happens where the C library is not glibc.
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
    """Import without the garbage collector, which walks for a tenth of the time through modules that stay."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
