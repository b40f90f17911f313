"""Whether a run fits into the memory of its devices, and what would make it fit."""

from collections.abc import Iterator, Mapping, Sequence

from distill.planning import ranks
from distill.planning.ranks import Moment
from distill.planning.stages import Stage
from distill.training.remedies import Part, remedies
from distill.training.setup import Setup

_USABLE = 0.9  # of a device; the rest is for the framework and what the allocator cannot use
_SHOWN = 8  # ranks with a line of their own
_PARTS: Mapping[str, Part] = {
    ranks.WEIGHTS: "student",
    ranks.GRADIENTS: "student",
    ranks.BUCKETS: "student",
    ranks.OPTIMIZER: "student",
    ranks.MASTER: "student",
    ranks.ACTIVATIONS: "activations",
    ranks.HEAD: "head",
    ranks.ROLLOUTS: "rollouts",
    ranks.READING: "activations",
    ranks.WEIGHING: "activations",
}


def fit_lines(setup: Setup, stages: Sequence[Stage], held: Sequence[Moment]) -> Iterator[str]:
    """One line per rank: that it fits, or how much is missing, what takes most, and what helps.

    Args:
        setup: the run, whose `estimate.memory` is known.
        stages: all stages.
        held: the moments of a training step.
    """
    verdict = _verdict(setup, max([*held, *_others(stages)], key=lambda moment: moment.total))
    count = setup.length.ranks
    if 1 < count <= _SHOWN:
        yield from (f"rank {rank} {verdict}" for rank in range(count))
    else:
        yield verdict if count == 1 else f"each of ranks 0 to {count - 1} {verdict}"


def _verdict(setup: Setup, peak: Moment) -> str:
    gib = setup.config["estimate"]["memory"]
    needed = f"{peak.total / 2**30:.1f} of {gib:g} GiB"
    if peak.total <= _USABLE * gib * 2**30:
        return f"fits: needs {needed} at the peak ({peak.name})"
    verdict = f"does not fit: needs {needed} ({peak.name}), most of it {_most(peak)}"
    if peak.total <= gib * 2**30:
        verdict += "; a tenth is left to the framework"
    if helping := _helping(setup, peak):
        verdict += f"; take {', or '.join(helping)}"
    return verdict


def _others(stages: Sequence[Stage]) -> list[Moment]:
    """Stages outside of training, each as a moment."""
    return [
        Moment(stage.name, {f"{stage.model} in this stage": stage.memory})
        for stage in stages
        if not stage.name.startswith(("training", "…", "student writes"))
    ]


def _most(peak: Moment) -> str:
    name, size = max(peak.held.items(), key=lambda item: item[1])
    return name if len(peak.held) == 1 else f"{name} ({size / 2**30:.1f} GiB)"


def _helping(setup: Setup, peak: Moment) -> list[str]:
    """Up to three changes to what takes most at the peak; nothing that takes less than a tenth counts."""
    sizes: dict[Part, int] = {}
    for name, size in peak.held.items():
        part = _part_of(name, setup, peak)
        sizes[part] = max(size, sizes.get(part, 0))
    sizes["optimizer"] = peak.held.get(ranks.OPTIMIZER, 0)
    sizes["gradients"] = peak.held.get(ranks.GRADIENTS, 0)
    large: list[Part] = [part for part, size in sizes.items() if size >= 0.1 * peak.total]
    large.sort(key=lambda part: -sizes[part])
    found = [remedy.text for part in large for remedy in remedies(setup) if remedy.part == part]
    return list(dict.fromkeys(found))[:3]


def _part_of(name: str, setup: Setup, peak: Moment) -> Part:
    if name in _PARTS:
        return _PARTS[name]
    if name in (ranks.LARGEST, ranks.MATRICES):
        return "frozen"
    if " the " in name and name.endswith((", live", "teacher", "reference", "initial", "pilot")):
        return "frozen"
    if peak.name.startswith(tuple(benchmark.name for benchmark in setup.evaluation.benchmarks)):
        return "answers"
    if peak.name.startswith("teacher") and peak.name.endswith("writes traces"):
        return "traces"
    return "cache" if name.endswith("in this stage") else "student"
