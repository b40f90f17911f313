"""Measure time and memory of training steps in this process, for any contestant."""

import contextlib
import ctypes
import gc
import itertools
import os
import re
import sys
import threading
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from distill.bench.measurement import Measurement, Setting

_STATUS = Path("/proc/self/status")


class Measured(Exception):
    """Raised after the last measured step, to leave a trainer before it saves or reports anything."""


class Meter:
    """Meter that a contestant calls after loading its models and after each step.

    A step is timed from the end of the previous one, so that a trainer's work between steps counts.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.wanted = setting.warmup + setting.steps
        self.ends: list[float] = []
        self.tokens: list[int] = []
        self.losses: list[Any] = []  # numbers or detached tensors, read at the end
        self.figures: dict[str, float] = {}
        self.written: list[list[int]] = []  # completions, if the contestant generates
        self.needed = 0  # bytes of gradients and optimizer state, which every implementation needs
        self.packages: set[str] = {"torch", "transformers"}
        self._began = 0.0
        self._processor: list[float] = []  # of all threads, at the beginning and after each step
        self._memory = _Memory(setting.device)

    def begin(self, trained: Iterable[Any] = (), frozen: Iterable[Any] = ()) -> None:
        """Start measuring memory; to be called after loading, before the first step.

        Args:
            trained: models trained with AdamW; `needed` is the size of their gradients and AdamW's moments.
            frozen: other models. All weights are read once, so that memory-mapped files count as loaded.
        """
        for model in trained:
            for parameter in model.parameters():
                parameter.detach().sum()
                self.needed += 3 * parameter.nbytes
        for model in frozen:
            for parameter in model.parameters():
                parameter.detach().sum()
        self.figures["processor_seconds_before"] = sum(os.times()[:4])  # child processes included
        self._memory.begin()
        self._began = time.perf_counter()
        self._processor.append(time.process_time())

    def step(self, loss: Any, tokens: int) -> None:
        """Record the end of a step.

        Args:
            loss: a number, or a tensor that is not read before all steps are measured; None: no loss.
            tokens: completion tokens trained on, or generated.
        """
        if self.setting.device == "cuda":
            import torch

            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        self._processor.append(time.process_time())
        self.tokens.append(int(tokens))
        if loss is not None:
            self.losses.append(loss.detach() if hasattr(loss, "detach") else loss)
        if self.done:
            self._memory.end()

    @property
    def done(self) -> bool:
        return len(self.ends) >= self.wanted

    def measurement(self) -> Measurement:
        if not self.done:
            raise RuntimeError(f"{len(self.ends)} of {self.wanted} steps were taken")
        marks = [self._began, *self.ends]
        spent = self._processor[self.wanted] - self._processor[self.setting.warmup]
        processor = {"processor_seconds_per_step": spent / self.setting.steps}
        workspace = {"workspace_bytes": max(1.0, self._memory.peak - self.needed)} if self.needed else {}
        seconds = [after - before for before, after in itertools.pairwise(marks)]
        return Measurement(
            seconds=seconds[self.setting.warmup : self.wanted],
            tokens=self.tokens[self.setting.warmup : self.wanted],
            peak_bytes=self._memory.peak,
            losses=[float(loss) for loss in self.losses[: self.wanted]],
            versions={name: version_of(name) for name in sorted(self.packages)},
            figures=self.figures | workspace | processor,
            written=self.written,
        )


class WholeRun:
    """A meter that counts the whole run as one step."""

    done = False

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.figures = meter.figures
        self.tokens = 0
        self.losses: list[Any] = []

    def begin(self, trained: Iterable[Any], frozen: Iterable[Any]) -> None:
        self.meter.begin(trained, frozen)

    def step(self, loss: Any, tokens: int) -> None:
        self.tokens += tokens
        self.losses.append(loss * tokens)

    def end(self) -> None:
        self.meter.step(sum(self.losses) / self.tokens, self.tokens)


class _Memory:
    """Peak memory between `begin` and `end`, beyond that at `begin`.

    On a GPU that of torch's allocator; on a CPU the process's resident memory, by the kernel's high-water
    mark if it can be reset (Linux), else by a thread that polls every few milliseconds.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.peak = 0
        self._before = 0
        self._exact = False
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        if self.device == "cuda":
            import torch

            gc.collect()
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
            return
        give_back_memory()
        self._exact = _reset_high_water()
        self._before = _resident("VmHWM" if self._exact else "VmRSS")
        if not self._exact:
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()

    def end(self) -> None:
        if self.device == "cuda":
            import torch

            self.peak = torch.cuda.max_memory_allocated() - self._before
        elif self._exact:
            self.peak = _resident("VmHWM") - self._before
        elif self._thread is not None:
            self._ended.set()
            self._thread.join()
        self.peak = max(0, self.peak)

    def _watch(self) -> None:
        while not self._ended.wait(0.005):
            self.peak = max(self.peak, _resident("VmRSS") - self._before)


def give_back_memory() -> None:
    """Return freed memory to the system, so that steps cannot reuse it without being measured."""
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def _reset_high_water() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM
    except OSError:
        return False
    return True


def _resident(name: str) -> int:
    """Resident memory in bytes; VmRSS: current, VmHWM: peak."""
    if not _STATUS.is_file():  # not Linux
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
    found = re.search(rf"{name}:\s+(\d+) kB", _STATUS.read_text())
    return int(found.group(1)) * 1024 if found else 0


def busy_processors(seconds: float = 1.0) -> float:
    """Mean number of processors that other programs use during `seconds`; 0 if the system does not tell."""
    before, own = busy_seconds(), sum(os.times()[:2])
    if before is None:
        return 0.0
    time.sleep(seconds)
    after = busy_seconds() or before
    return max(0.0, (after - before - (sum(os.times()[:2]) - own)) / seconds)


def busy_seconds() -> float | None:
    """Processor seconds used by all programs since boot; None if the system does not tell."""
    stat = Path("/proc/stat")
    if not stat.is_file():
        return None
    user, nice, system, _, _, interrupts, soft = map(int, stat.read_text().split("\n", 1)[0].split()[1:8])
    return (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")


def version_of(package: str) -> str:
    """The installed version of a package; `?` if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "?"
