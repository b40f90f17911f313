"""Compare an export with the full student: size, speed, texts, and the fit to held-out traces."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.data.batch import collate
from distill.data.trace import Trace
from distill.data.trace_set import problem_of_example
from distill.generation.decode import generate
from distill.generation.sampling import Sampling
from distill.losses.divergence import forward_kl
from distill.losses.logits import fitting_chunk
from distill.models.head import Head, factors, gather, log_softmax, product
from distill.models.language_model import LanguageModel
from distill.statistics import Figure, bootstrap_ratio
from distill.teacher.logprobs import in_batches

_ROUNDS = 3  # of the measurement of speed
_WEIGHTS = (".safetensors", ".bin", ".gguf")
_NO_END = [-1]  # an end token that no model writes


@dataclass(frozen=True)
class Fit:
    """How both models fit held-out traces; intervals are bootstraps over problems.

    Attributes:
        traces: number of traces.
        tokens: number of completion tokens.
        full: NLL per token of the full student, in nats.
        export: that of the export.
        difference: export − full.
        kl: KL(full ‖ export) per token, over the vocabulary, in nats.
        same: share of the tokens before which both models hold the same token for the likeliest.
    """

    traces: int
    tokens: int
    full: Figure
    export: Figure
    difference: Figure
    kl: Figure
    same: Figure


@dataclass(frozen=True)
class Texts:
    """What both models write greedily, and how fast.

    Attributes:
        prompts: number of prompts, written as one batch.
        tokens: tokens that each model wrote behind each prompt.
        full: tokens per second of the full student, the median of several rounds.
        export: that of the export.
        alike: share of the tokens before the first one that differs.
        same: number of prompts behind which all tokens are the same.
    """

    prompts: int
    tokens: int
    full: float
    export: float
    alike: float
    same: int


def weights_bytes(place: Path, model: Any = None) -> int:
    """Bytes of the weights on disk.

    Args:
        place: a model's folder or GGUF file.
        model: counted in its place if it is not on disk, as of a hub id.
    """
    if place.is_file():
        return place.stat().st_size
    files = [path for path in place.iterdir() if path.suffix in _WEIGHTS] if place.is_dir() else []
    if files:
        return sum(path.stat().st_size for path in files)
    tied = {id(own): own for own in model.parameters()}
    return sum(own.numel() * own.element_size() for own in tied.values())


@torch.no_grad()
def measure_fit(full: LanguageModel, export: LanguageModel, traces: Sequence[Trace]) -> Fit:
    """Measure NLL and KL of both models on the same tokens.

    Args:
        full: the full student.
        export: its export, with the same token ids.
        traces: held-out traces, tokenized for the student.
    """
    rows = min(full.vocab_size, export.vocab_size)

    def look(head: Head, labels: torch.Tensor, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        batch = collate([_bare(traces[number]) for number in numbers]).to(full.device)
        other = full.completion_head(batch.input_ids, batch.mask)
        return _token_figures(other, head, labels, rows)

    parts = in_batches(export, traces, range(len(traces)), look)
    sums = {name: np.asarray([_total(part[name]) for part in parts]) for name in parts[0]}
    problems = {name: index for index, name in enumerate(dict.fromkeys(map(_problem, traces)))}
    of = [problems[_problem(trace)] for trace in traces]
    counts = np.bincount(of, [len(trace.completion_ids) for trace in traces])

    def mean(values: np.ndarray) -> Figure:
        return bootstrap_ratio(np.bincount(of, values), counts)

    return Fit(
        len(traces),
        int(counts.sum()),
        mean(-sums["full"]),
        mean(-sums["export"]),
        mean(sums["full"] - sums["export"]),
        mean(sums["kl"]),
        mean(sums["same"]),
    )


def _token_figures(full: Head, export: Head, labels: torch.Tensor, rows: int) -> dict[str, torch.Tensor]:
    """Log-probs of the labels, KL and agreement at each token, in chunks of tokens."""
    found: dict[str, list[torch.Tensor]] = {"full": [], "export": [], "kl": [], "same": []}
    ours, theirs, size = factors(full), factors(export), fitting_chunk(export)
    for start in range(0, len(labels), size):
        part = slice(start, start + size)
        log_p, log_q = (log_softmax(product(own.hidden[part], own.weight[:rows].T)) for own in (ours, theirs))
        found["full"].append(gather(log_p, labels[part]))
        found["export"].append(gather(log_q, labels[part]))
        found["kl"].append(forward_kl(log_q, log_p))
        found["same"].append((log_p.argmax(-1) == log_q.argmax(-1)).float())
    return {name: torch.cat(parts) for name, parts in found.items()}


def _bare(trace: Trace) -> Trace:
    return Trace(trace.example, trace.prompt_ids, trace.completion_ids)


def _total(values: torch.Tensor) -> float:
    return float(values.double().sum())


def _problem(trace: Trace) -> str:
    return problem_of_example(trace.example)


def compare_texts(
    full: LanguageModel, export: LanguageModel, prompts: Sequence[Sequence[int]], tokens: int
) -> Texts:
    """Let both models write the same number of tokens behind the same prompts, in turns.

    Args:
        full: the full student.
        export: its export, with the same token ids.
        prompts: token ids.
        tokens: to write behind each prompt, whatever they are: end tokens end nothing here.
    """
    sampling = Sampling(temperature=0.0, max_new_tokens=tokens)
    models, seconds, written = (full, export), ([], []), ([], [])
    for number in range(_ROUNDS + 1):  # the first warms up
        for place, model in enumerate(models):
            began = time.perf_counter()
            written[place][:] = generate(model, prompts, sampling, seed=0, end_ids=_NO_END)
            _wait(model)
            if number:
                seconds[place].append(time.perf_counter() - began)
    count = sum(map(len, written[0]))
    begun = [_alike(mine, theirs) for mine, theirs in zip(*written, strict=True)]
    return Texts(
        len(prompts),
        max(map(len, written[0])),
        count / statistics.median(seconds[0]),
        count / statistics.median(seconds[1]),
        sum(begun) / count,
        sum(alike == len(own) for alike, own in zip(begun, written[0], strict=True)),
    )


def _wait(model: LanguageModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def _alike(mine: Sequence[int], theirs: Sequence[int]) -> int:
    """Number of tokens before the first one that differs."""
    pairs = enumerate(zip(mine, theirs, strict=True))
    return next((place for place, (a, b) in pairs if a != b), len(mine))


def same_spelling(full: LanguageModel, export: LanguageModel, texts: Sequence[str]) -> int:
    """Number of texts that both tokenizers give the same ids."""
    return sum(full.tokenizer(text).input_ids == export.tokenizer(text).input_ids for text in texts)
