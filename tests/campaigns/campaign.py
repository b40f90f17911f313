"""What all campaigns share: the commands, what they leave behind, and how the end of a fault is judged."""

import csv
import json
import re
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import warm
from warm import ROOT

from distill.data.trace_set import read_records

FAULTY = Path(__file__).with_name("faulty.py")
PAIR = ["model=tiny", "data=arithmetic", "data.operations=[2,4]"]
ASK = ["benchmark=arithmetic", "benchmark.limit=4", "benchmark.max_new_tokens=8"]
TRAIN = [*PAIR, *ASK, "data.limit=24", "data.max_new_tokens=24", "data.batch_size=4", "logger=csv"]
TRAIN += ["trainer.max_steps=8", "checkpoint.every=2", "histogram_every=3", "loss=dcod", "eval_every=3"]
# Differ between two runs of the same: clocks and paths.
_BESIDE = re.compile(r"second|hours|resumed|folder|time|^run$|place|command|rate$|versions|per_")


@dataclass(frozen=True)
class Case:
    """A command that writes.

    Attributes:
        name: for messages.
        words: its command line; `{folder}` and `{made}` are replaced.
        result: what it leaves in its folder, as plain values that two runs have in common.
        resume: what is added to the same command line to take a broken run up.
    """

    name: str
    words: Sequence[str]
    result: Callable[[Path], Any]
    resume: Callable[[Path], list[str]] = field(default=lambda folder: [])

    def line(self, folder: Path, made: Path) -> list[str]:
        return [word.format(folder=folder, made=made) for word in self.words]


def without_clocks(value: Any) -> Any:
    """Plain values without what differs from run to run."""
    if isinstance(value, dict):
        return {key: without_clocks(own) for key, own in value.items() if not _BESIDE.search(key)}
    return [without_clocks(own) for own in value] if isinstance(value, list) else value


def json_of(path: Path) -> Any:
    return without_clocks(json.loads(path.read_text()))


def lines_of(path: Path) -> list[Any]:
    """The records of a file of lines, in an order of their own: a resumed run may write stages anew."""
    found = [without_clocks(json.loads(line)) for line in path.read_text().split("\n") if line]
    return sorted(found, key=lambda record: json.dumps(record, sort_keys=True))


def trained(folder: Path) -> Any:
    """What a training leaves: weights, metrics, histograms, samples and the summary."""
    with (folder / "metrics.csv").open(newline="") as stream:
        metrics = [
            {name: value for name, value in row.items() if value and not _BESIDE.search(name)}
            for row in csv.DictReader(stream)
        ]
    return {
        "weights": zlib.crc32((folder / "student" / "model.safetensors").read_bytes()),
        "metrics": metrics,
        "histograms": lines_of(folder / "weights.jsonl"),
        "samples": lines_of(folder / "samples.jsonl"),
        "summary": {
            key: value for key, value in json_of(folder / "summary.json").items() if key != "device_hours"
        },
    }


def swept(folder: Path) -> Any:
    return {path.name: trained(path) for path in sorted(folder.iterdir()) if path.is_dir()}


def resumed(folder: Path) -> list[str]:
    """A training goes on after its last checkpoint, where there is one."""
    return [f"ckpt_path={folder}"] if list(folder.glob("checkpoints/step-*")) else []


def cases() -> list[Case]:
    """All commands that write, each small enough to be run a hundred times."""
    cache = "cache={folder}_cache"
    out = ["out={folder}"]
    return [
        Case("train", ["train.py", *TRAIN, "dir={folder}", cache], trained, resumed),
        Case(
            "sweep",
            ["train.py", "-m", *TRAIN, "loss=sft,dcod", "name=job_${{hydra:runtime.choices.loss}}",
             "hydra.sweep.dir={folder}", "hydra.sweep.subdir=${{name}}", "eval_every=null", cache],
            swept,
        ),
        Case("generate", ["-m", "distill.generate", *PAIR, "data.limit=6", "samples=2", *out], read_records),
        Case(
            "score",
            ["-m", "distill.score", *PAIR, "teachers=[{made}]", "resamples=10", cache, *out],
            lambda folder: [json_of(folder / "scores.json"), lines_of(folder / "traces.jsonl")],
        ),
        Case(
            "curate",
            ["-m", "distill.curate", *PAIR, "teachers=[{made}]", "curation=[correct,min_rsr]",
             "curation.min_rsr.keep=1", cache, *out],
            lambda folder: [read_records(folder), json_of(folder / "curation.json")],
        ),
        Case(
            "evaluate",
            ["-m", "distill.evaluate", "model=tiny", *ASK, "benchmark.limit=8", "logger=[csv]", *out],
            lambda folder: lines_of(folder / "samples.jsonl"),
        ),
    ]  # fmt: skip


@dataclass
class Tally:
    """Counts what became of the faults.

    Attributes:
        counts: by command and outcome.
        bad: what went wrong, in words.
    """

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)

    def add(self, name: str, outcome: str, said: str = "") -> None:
        self.counts[name, outcome] += 1
        if outcome not in ("fine", "clear", "equal"):
            self.bad.append(f"{name}: {outcome}: {said[:300]} … {said[-1500:]}")
            print(f"\n{self.bad[-1]}", flush=True)  # a campaign may be stopped before its end

    def finish(self, title: str) -> None:
        """Print the table, and fail where anything went wrong."""
        names = list(dict.fromkeys(name for name, _ in self.counts))
        outcomes = sorted({outcome for _, outcome in self.counts})
        print(f"\n{title}: {sum(self.counts.values())} faults")
        for name in names:
            print(f"  {name}: " + ", ".join(f"{self.counts[name, o]} {o}" for o in outcomes))
        if self.bad:
            pytest.fail("\n\n".join(self.bad[:10]))


def python(words: Sequence[str], cwd: Path) -> list[str]:
    """A command line for warm.Command: train.py by its whole path."""
    return [str(ROOT / words[0]), *words[1:]] if words[0] == "train.py" else list(words)


def faulty(mode: str, number: int, root: Path, words: Sequence[str]) -> warm.Command:
    """Start a command that meets a fault (see faulty.py)."""
    report = root / "operations"
    return warm.Command(
        [str(FAULTY), mode, str(number), f"{root}/", str(report), *python(words, root)], cwd=root
    )


def ended(command: warm.Command, timeout: float = 120) -> tuple[int | None, str]:
    """Wait for a command; its exit status and everything that it said."""
    try:
        out, errors = command.communicate(timeout)
        return command.returncode, out + errors
    finally:
        command.close()


def is_traceback(said: str) -> bool:
    return "Traceback (most recent" in said or "HYDRA_FULL_ERROR" in said


def unbroken(case: Case, root: Path, made: Path) -> tuple[Any, int]:
    """What a command leaves that meets no fault, and the number of its file operations."""
    folder = root / "whole"
    status, said = ended(faulty("count", 0, root, case.line(folder, made)))
    assert status == 0, said[-3000:]
    found, operations = case.result(folder), int((root / "operations").read_text())
    remove(folder)
    return found, operations


def taken_up(case: Case, folder: Path, made: Path, expected: Any) -> tuple[str, str]:
    """Run a broken command again; whether it ends as an unbroken one."""
    words = [*case.line(folder, made), *case.resume(folder)]
    status, said = ended(warm.Command(python(words, folder.parent), cwd=folder.parent))
    if is_traceback(said):
        return "traceback", said
    if status != 0:
        return "lost", said
    found = case.result(folder)
    return ("equal", "") if found == expected else ("differs", f"{difference(expected, found)}")


def difference(expected: Any, found: Any, place: str = "") -> str:
    """The first place in which two results differ."""
    if isinstance(expected, dict) and isinstance(found, dict) and expected.keys() == found.keys():
        pairs = ((key, expected[key], found[key]) for key in expected)
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = ((str(key), one, other) for key, (one, other) in enumerate(zip(expected, found, strict=True)))
    else:
        return f"{place}: {str(expected)[:300]} → {str(found)[:300]}"
    for key, one, other in pairs:
        if one != other:
            return difference(one, other, f"{place}.{key}")
    return f"{place}: equal"


def remove(folder: Path) -> None:
    """Remove what a command left, and its cache."""
    for path in (folder, folder.with_name(f"{folder.name}_cache")):
        shutil.rmtree(path, ignore_errors=True)
