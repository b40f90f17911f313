"""Report of a pruned model: what was dropped, and both models before any training."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from distill.evaluation.comparison_words import points, share, table_row, tested
from distill.evaluation.result import Score
from distill.io.files import write_atomically, write_json
from distill.statistics import Difference, Figure, bootstrap_ratio, paired


@dataclass(frozen=True)
class Measured:
    """A model before or after pruning.

    Attributes:
        parameters: their number.
        problems: [traces] the held-out traces' problems.
        nll: [traces] summed surprisal, nats.
        tokens: [traces] their numbers.
        scores: by benchmark.
    """

    parameters: int
    problems: Sequence[str]
    nll: Sequence[float]
    tokens: Sequence[int]
    scores: Mapping[str, Score]


@dataclass(frozen=True)
class Pruned:
    """What was dropped from a model.

    Attributes:
        model: its name.
        blocks: number of its blocks.
        start: the first dropped block, from 0.
        layers: number of dropped blocks.
        distances: by first block, the angular distance over `layers` blocks.
        traces: number of traces that these are means over.
        before: the model.
        after: what is left of it.
        notes: sentences about these numbers.
    """

    model: str
    blocks: int
    start: int
    layers: int
    distances: Sequence[float]
    traces: int
    before: Measured
    after: Measured
    notes: Sequence[str] = field(default_factory=list)


def write_pruned(folder: Path, found: Pruned, *, resamples: int, seed: int) -> str:
    """Write `prune.json` and `prune.md`.

    Returns:
        The text of the latter, and where the model is.
    """
    options = {"resamples": resamples, "seed": seed}
    sides = {"before": found.before, "after": found.after}
    nll = {name: _nll(own.nll, own, **options) for name, own in sides.items()}
    more = [b - a for a, b in zip(found.before.nll, found.after.nll, strict=True)]
    nll["change"] = _nll(more, found.before, **options)
    changes = {
        name: paired(score.verdicts, found.after.scores[name].verdicts, **options)
        for name, score in found.before.scores.items()
    }
    text = "\n".join(_markdown(found, nll, changes))
    value: dict[str, Any] = {
        "model": found.model,
        "blocks": found.blocks,
        "dropped": list(range(found.start, found.start + found.layers)),
        "angular_distances": list(found.distances),
        "traces": found.traces,
        "parameters": {name: own.parameters for name, own in sides.items()},
        "nll": {name: figure.json() for name, figure in nll.items()},
        "accuracy": {
            name: {side: own.scores[name].accuracy.json() for side, own in sides.items()}
            | {"change": vars(change)}
            for name, change in changes.items()
        },
        "notes": list(found.notes),
    }
    write_json(folder / "prune.json", value)
    path = folder / "prune.md"
    write_atomically(path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))
    return f"{text}\n\n{folder / 'student'}"


def _nll(values: Sequence[float], own: Measured, *, resamples: int, seed: int) -> Figure:
    """Σ values / Σ tokens, with an interval over problems."""
    names = {name: number for number, name in enumerate(dict.fromkeys(own.problems))}
    of = [names[name] for name in own.problems]
    sums = np.bincount(of, np.asarray(values)), np.bincount(of, np.asarray(own.tokens))
    return bootstrap_ratio(*sums, resamples=resamples, seed=seed)


def _markdown(found: Pruned, nll: Mapping[str, Figure], changes: Mapping[str, Difference]) -> Iterator[str]:
    last = found.start + found.layers - 1
    which = f"block {found.start}" if found.layers == 1 else f"blocks {found.start} to {last}"
    yield (
        f"Dropped {which} of {found.model} (of {found.blocks}, counted from 0): angular distance "
        f"{found.distances[found.start]:.4f}, mean over {found.traces} traces."
    )
    yield ""
    head = ["", "blocks", "parameters", "NLL, nats a token", *(f"accuracy, {name}" for name in changes)]
    yield table_row(head)
    yield "|" + "---|" * len(head)
    for side, own, blocks in (
        ("before", found.before, found.blocks),
        ("after", found.after, found.blocks - found.layers),
    ):
        cells = [side, str(blocks), f"{own.parameters:,}", _cell(nll[side], "{:.3f}")]
        yield table_row([*cells, *(share(own.scores[name].accuracy) for name in changes)])
    less = found.after.parameters / found.before.parameters - 1
    cells = ["change", f"-{found.layers}", f"{less:+.1%}", _cell(nll["change"], "{:+.3f}")]
    yield table_row([*cells, *(f"{points(one)}, {tested(one, one.p)}" for one in changes.values())])
    yield ""
    yield (
        "In brackets 95 % bootstrap intervals over problems. The NLL is of held-out traces. This is the "
        "model before any training: train it on traces, with any loss, before judging it."
    )
    for note in found.notes:
        yield ""
        yield note
    yield ""
    yield table_row(["first dropped block", *map(str, range(len(found.distances)))])
    yield "|" + "---|" * (1 + len(found.distances))
    yield table_row(["angular distance", *(f"{one:.4f}" for one in found.distances)])


def _cell(figure: Figure, form: str) -> str:
    return f"{form.format(figure.value)} [{form.format(figure.low)}, {form.format(figure.high)}]"
