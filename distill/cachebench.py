"""`python -m distill.cachebench`: what each source of the teacher's distribution costs, on disk and in time.

Measured on the embedded teacher: what lies on the disk, the time to make it, and the time to lay it into
batches (for `live`: the teacher's pass over the same batches). Bytes are computed for Qwen2.5-7B too."""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import get_args

import numpy as np
import torch

from distill.batch import collate
from distill.cache import StoredRows
from distill.distribution_cache import cache_distributions
from distill.distributions import TeacherDistribution
from distill.losses.signals import Source
from distill.models import find_model
from distill.teacher import LazyModel
from distill.tiny import task
from distill.traces import Example, Trace

_BATCH = 64
_SEVEN_B = {"hidden": 3584, "vocabulary": 152_064}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m distill.cachebench", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--traces", type=int, default=512, help="traces of the embedded problems")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each source, in turn")
    options = parser.parse_args()
    print(table(options.traces, options.rounds))


def table(count: int, rounds: int) -> str:
    """One row a source, in Markdown: medians of interleaved rounds."""
    model = LazyModel(find_model("package:distill/tiny/teacher", key="model.teacher"), "cpu")
    traces = _traces(model, count)
    thousands = sum(len(trace.completion_ids) for trace in traces) / 1000
    sources = [TeacherDistribution(source) for source in get_args(Source)]
    made: dict[str, list[float]] = {wanted.source: [] for wanted in sources}
    read: dict[str, list[float]] = {wanted.source: [] for wanted in sources}
    sizes = {"live": 0.0}
    model.get()
    for _ in range(rounds):
        for wanted in sources:
            with tempfile.TemporaryDirectory() as folder:
                for trace in traces:
                    trace.distribution = None
                if wanted.cached:
                    seconds, rows = _timed(lambda w=wanted, f=folder: _cached(model, traces, w, Path(f)))
                    made[wanted.source].append(seconds)
                    files = Path(folder).glob("*/*.safetensors")
                    sizes[wanted.source] = sum(file.stat().st_size for file in files) / thousands / 1000
                    for trace, kept in zip(traces, rows, strict=True):
                        trace.distribution = kept
                seconds, _ = _timed(lambda w=wanted: _batches(traces, None if w.cached else model))
                read[wanted.source].append(seconds)
    lines = [
        "| source | bytes a token: tiny | Qwen2.5-7B | make 1,000 tokens | read 1,000 tokens |",
        "|---|---|---|---|---|",
    ]
    for wanted in sources:
        make = f"{1000 * median(made[wanted.source]) / thousands:.2f} ms" if wanted.cached else "-"
        lines.append(
            f"| `{wanted.source}` | {sizes[wanted.source]:,.0f} | {bytes_a_token(wanted, **_SEVEN_B):,} | "
            f"{make} | {1000 * median(read[wanted.source]) / thousands:.2f} ms |"
        )
    return "\n".join(lines)


def bytes_a_token(wanted: TeacherDistribution, hidden: int, vocabulary: int) -> int:
    """What a completion token takes on the disk, the teacher's states in bf16."""
    if wanted.source == "live":
        return 0
    if wanted.source == "hidden_states":
        return 2 * hidden + 4  # and the label's log-prob
    if wanted.source == "top_k":
        return 8 * min(wanted.top_k, vocabulary - 1) + 4  # and the rest's
    return 8 * wanted.samples


def _traces(model: LazyModel, count: int) -> list[Trace]:
    tokenizer = model.source.tokenizer

    def ids(text: str) -> np.ndarray:
        return np.asarray(tokenizer(text, add_special_tokens=False).input_ids, dtype=np.int32)

    problems = task.problems(count, split="train", operations=(2, 5))
    return [Trace(Example(p, p), ids(p), ids(task.write_solution(p, "single"))) for p in problems]


def _cached(
    model: LazyModel, traces: Sequence[Trace], wanted: TeacherDistribution, folder: Path
) -> list[StoredRows]:
    return cache_distributions(model, traces, wanted, cache=folder)


@torch.no_grad()
def _batches(traces: Sequence[Trace], teacher: LazyModel | None) -> None:
    for start in range(0, len(traces), _BATCH):
        batch = collate(traces[start : start + _BATCH])
        if teacher is not None:
            teacher.get().completion_head(batch.input_ids, batch.mask)


def _timed(work: Callable[[], list[StoredRows] | None]) -> tuple[float, list[StoredRows]]:
    began = time.perf_counter()
    found = work()
    return time.perf_counter() - began, found or []


if __name__ == "__main__":
    main()
