"""`python -m distill.planning.big_shapes`: simulate a step of every loss at Qwen2.5 shapes.

It prints Markdown tables, as in docs/results/big-shapes.md. No weights are made, and nothing is downloaded.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distill.config.console import one_sentence_errors, quiet
from distill.config.paths import CONFIG
from distill.config.words import quoted
from distill.io.progress import progress_bar
from distill.planning.kernels import Kernel
from distill.planning.memory import training_memory
from distill.planning.simulate import BACKWARD, HEAD, STEP, STUDENT, Simulation, simulate
from distill.planning.sizes import ModelSize, expected_traces, measure
from distill.planning.stages import Batches, step_moments
from distill.training.setup import Setup

# Hidden size, layers, heads, key-value heads, intermediate size, rows of the output matrix, tied embeddings.
_QWEN = {
    "1.5b": (1536, 28, 12, 2, 8960, 151_936, True),
    "3b": (2048, 36, 16, 2, 11_008, 151_936, True),
    "7b": (3584, 28, 28, 4, 18_944, 152_064, False),
    "14b": (5120, 48, 40, 8, 13_824, 152_064, False),
}
PAIRS = {"qwen1.5b": ("1.5b", "7b"), "qwen3b_14b": ("3b", "14b")}  # by file of conf/model/
_LAYERS = (2, 3)
_RATE, _BANDWIDTH = 300e12, 2000e9  # FLOPs and bytes a second of the GPU that kernels are weighed by: an A100


def configuration(name: str, **changed: Any) -> dict[str, Any]:
    """`config.json` of a Qwen2.5 model of this size."""
    hidden, layers, heads, keys, intermediate, rows, tied = _QWEN[name]
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "intermediate_size": intermediate,
        "vocab_size": rows,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 32_768,
        "torch_dtype": "bfloat16",
        **changed,
    }


@dataclass(frozen=True)
class Row:
    """A loss's step at the shapes of a pair.

    Attributes:
        loss: file of `conf/loss/`.
        simulation: of the step, on one device.
        planned: bytes at the peak by the plan, by strategy and number of ranks; ("", 1): one device.
        on_policy: whether the student wrote the completions.
    """

    loss: str
    simulation: Simulation
    planned: dict[tuple[str, int], int]
    on_policy: bool


_STRATEGIES = (("", 1), ("ddp", 2), ("fsdp", 2), ("fsdp", 4), ("fsdp", 8))


def overrides(
    pair: str, loss: str, folder: Path, words: Sequence[str] = (), layers: int | None = None
) -> list[str]:
    """The command's words for a loss at a pair's shapes; writes the models' configurations into a folder.

    Args:
        pair: of `PAIRS`.
        loss: file of `conf/loss/`.
        folder: for the models' configurations.
        words: further overrides.
        layers: of both models; None: as many as they have.
    """
    found = [f"loss={loss}", f"model={pair}", "data=traces", "data.path=nowhere.jsonl", "benchmark=none"]
    found += [
        "data.fields.gold=gold",
        "+data.recipe.grade._target_=distill.benchmarks.grading.judge.MathJudge",
    ]
    roles = dict(zip(("student", "teacher"), PAIRS[pair], strict=True))
    for role, size in roles.items():
        changed = {} if layers is None else {"num_hidden_layers": layers}
        place = folder / f"{size}-{layers or 'all'}"
        place.mkdir(parents=True, exist_ok=True)
        (place / "config.json").write_text(json.dumps(configuration(size, **changed)), encoding="utf-8")
        found.append(f"model.{role}={quoted(str(place))}")
        if role == "student":
            found.append(f"model.pilot={quoted(str(place))}")
    return [*found, "logger=csv", "estimate.traces=7000", *words]


class Pair:
    """Steps of all losses at a pair's shapes.

    Args:
        name: of `PAIRS`.
        folder: for the models' configurations.
        words: further overrides.
        whole: simulate all layers; else two and three, and continue the line.
    """

    def __init__(self, name: str, folder: Path, words: Sequence[str], *, whole: bool = False) -> None:
        self.name, self.folder, self.words, self.whole = name, folder, list(words), whole
        self._sizes: dict[str, ModelSize] = {}
        self._memory: tuple[Any, dict[str, int]] | None = None

    def row(self, loss: str) -> Row:
        setup = self._setup(loss)
        batches = Batches.of(setup, expected_traces(setup, []))
        traces = [batches.largest] * setup.length.accumulate
        if self.whole:
            simulation = simulate(setup, traces)
        else:
            few, more = (simulate(self._setup(loss, layers), traces) for layers in _LAYERS)
            student, teacher = (_QWEN[size][1] for size in PAIRS[self.name])
            simulation = continued(few, more, {"teacher": teacher}, student)
        return Row(loss, simulation, self._planned(setup, batches), any(batches.on_policy))

    def _setup(self, loss: str, layers: int | None = None) -> Setup:
        return Setup.from_overrides(overrides(self.name, loss, self.folder, self.words, layers), here=False)

    def _planned(self, setup: Setup, batches: Batches) -> dict[tuple[str, int], int]:
        if self._memory is None:  # the same for all losses
            self._memory = training_memory(setup, rows=setup.length.batch_size, length=batches.longest)
        student = self._size("student", setup)
        frozen: dict[str, ModelSize] = {role: self._size(role, setup) for role in setup.frozen}
        found = {}
        for strategy, ranks in _STRATEGIES:
            trainer = {**setup.compute.trainer, "strategy": strategy or "auto"}
            shared = replace(
                setup,
                compute=replace(setup.compute, trainer=trainer),
                length=replace(setup.length, ranks=ranks),
            )
            model, whole = self._memory
            held = step_moments(shared, student, frozen, batches, model=model, whole=whole)
            found[strategy, ranks] = max(moment.total for moment in held)
        return found

    def _size(self, role: str, setup: Setup) -> ModelSize:
        source = setup.student if role == "student" else setup.frozen[role]
        if source.location not in self._sizes:
            self._sizes[source.location] = measure(source, setup.compute.precision)
        return self._sizes[source.location]


def continued(few: Simulation, more: Simulation, layers: Mapping[str, int], others: int) -> Simulation:
    """The simulation of deeper models, on the line through those of models with `_LAYERS` layers.

    Args:
        few: of models with the smaller number of layers.
        more: with one layer more.
        layers: layers of the models in whose reading phases are, by role.
        others: layers of the student, and of all other models.
    """

    def line(a: int, b: int, name: str) -> int:
        return a + (b - a) * (layers.get(name.removeprefix("weights of the "), others) - _LAYERS[0])

    kernels = {
        (phase, name): Kernel(
            *(
                line(getattr(few.kernels.get((phase, name), Kernel()), field), getattr(kernel, field), phase)
                for field in ("calls", "flops", "read", "written")
            )
        )
        for (phase, name), kernel in more.kernels.items()
    }
    held = {name: line(few.held[name], size, name) for name, size in more.held.items()}
    before, after = (sum(one.held.values()) for one in (few, more))
    peaks = {
        phase: sum(held.values()) + line(few.peaks[phase] - before, peak - after, phase)
        for phase, peak in more.peaks.items()
    }
    return Simulation(kernels, peaks, held)


def steps_table(rows: Sequence[Row]) -> Iterator[str]:
    """Markdown table of whole steps: FLOPs, bytes, peaks."""
    yield (
        "| loss | student, TFLOP | frozen models | head and loss | bytes, TB | FLOP a byte "
        "| one device, GiB | by the plan | ddp | fsdp, 2 | 4 | 8 |"
    )
    yield f"|---{'|---:' * 11}|"
    for row in rows:
        seen = row.simulation
        body, head, every = seen.of(STUDENT, BACKWARD, STEP), seen.of(HEAD), seen.of()
        frozen = every.flops - body.flops - head.flops
        work = [f"{flops / 1e12:,.1f}" for flops in (body.flops, frozen, head.flops)]
        moved = [f"{every.bytes / 1e12:.2f}", f"{every.flops / every.bytes:.0f}"]
        peaks = [f"{size / 2**30:.1f}" for size in (seen.peak, *row.planned.values())]
        name = f"`{row.loss}`{' †' if row.on_policy else ''}"
        yield f"| {' | '.join([name, *work, *moved, *peaks])} |"


def peaks_table(rows: Sequence[Row]) -> Iterator[str]:
    """Markdown table of the peaks of each phase, in GiB."""
    phases = list(dict.fromkeys(phase for row in rows for phase in row.simulation.peaks if phase))
    yield f"| loss | {' | '.join(phases)} |"
    yield f"|---{'|---:' * len(phases)}|"
    for row in rows:
        peaks = row.simulation.peaks
        cells = [f"{peaks[phase] / 2**30:.1f}" if phase in peaks else "–" for phase in phases]
        yield f"| `{row.loss}` | {' | '.join(cells)} |"


def kernels_table(rows: Sequence[Row], count: int = 8) -> Iterator[str]:
    """Markdown table of the kernels that take longest on a GPU that reaches its peaks."""
    yield "| loss | kernel | calls | TFLOP | GB | FLOP a byte | share of the time |"
    yield "|---|---|---:|---:|---:|---:|---:|"
    for row in rows:
        kernels = row.simulation.by_name()
        whole = sum(map(seconds, kernels.values()))
        for name, kernel in sorted(kernels.items(), key=lambda item: -seconds(item[1]))[:count]:
            yield (
                f"| `{row.loss}` | `{name}` | {kernel.calls:,} | {kernel.flops / 1e12:,.1f} | "
                f"{kernel.bytes / 1e9:,.0f} | {kernel.flops / max(1, kernel.bytes):,.0f} | "
                f"{seconds(kernel) / whole:.0%} |"
            )


def seconds(kernel: Kernel) -> float:
    """The least time of a kernel's calls on a GPU of `_RATE` and `_BANDWIDTH`."""
    return max(kernel.flops / _RATE, kernel.bytes / _BANDWIDTH)


def main(arguments: Sequence[str] | None = None) -> None:
    losses = sorted(path.stem for path in (CONFIG / "loss").glob("*.yaml"))
    parser = argparse.ArgumentParser(
        prog="python -m distill.planning.big_shapes",
        description="Simulate an optimizer step of every loss at shapes of Qwen2.5, in bf16 on one GPU, and "
        "print its FLOPs, bytes and memory as Markdown tables. No GPU, weights or network are needed.",
    )
    parser.add_argument("--pair", choices=list(PAIRS), action="append", help="both where none is named")
    parser.add_argument("--loss", choices=losses, action="append", help="all where none is named")
    parser.add_argument("--kernels", choices=losses, action="append", help="losses in the table of kernels")
    parser.add_argument("--whole", action="store_true", help="simulate all layers, not two and three")
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="keys of train.py")
    options = parser.parse_args(arguments)
    quiet()
    words = ["estimate.prompt_tokens=120", "estimate.completion_tokens=300", *options.words]
    with tempfile.TemporaryDirectory() as folder:
        for name in options.pair or PAIRS:
            pair, chosen = Pair(name, Path(folder), words, whole=options.whole), options.loss or losses
            rows = []
            with progress_bar(total=len(chosen), description=name, unit="step") as bar:
                for loss in chosen:
                    rows.append(pair.row(loss))
                    bar.update()
            print(f"\n### {name}\n", *steps_table(rows), "", *peaks_table(rows), "", sep="\n")
            listed = options.kernels or chosen[:1]
            print(*kernels_table([row for row in rows if row.loss in listed]), sep="\n")


if __name__ == "__main__":
    with one_sentence_errors():
        main()
