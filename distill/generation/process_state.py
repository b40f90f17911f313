"""Keep what a library changes for the whole process while it is called."""

import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def process_state_kept(environment: str = "") -> Iterator[None]:
    """Restore the process's state afterwards: random numbers, threads, dtype, hooks and environment.

    vLLM seeds all random number generators, replaces `torch.set_num_threads` and `sys.excepthook`, and sets
    variables such as LD_PRELOAD, which processes started later would inherit. Dropout, and what a resumed run
    draws, must not depend on when an engine is started.

    Args:
        environment: prefix of environment variables that stay as the library sets them; empty: none does.
    """
    hook, set_threads, threads = sys.excepthook, torch.set_num_threads, torch.get_num_threads()
    dtype, variables = torch.get_default_dtype(), dict(os.environ)
    own, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002  vLLM seeds the global one
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(own)
        np.random.set_state(numpy_state)  # noqa: NPY002
        sys.excepthook = hook
        torch.set_num_threads = set_threads
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        if affinity is not None and os.sched_getaffinity(0) != affinity:
            os.sched_setaffinity(0, affinity)
        _restore(variables, environment)


def _restore(variables: dict[str, str], kept: str) -> None:
    for name in set(os.environ) - set(variables):
        if not (kept and name.startswith(kept)):
            del os.environ[name]
    for name, value in variables.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
