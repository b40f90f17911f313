"""Run measurements of contestants in turn (A B A B); each result is saved immediately."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path

from distill.bench.comparison import Comparison, Contestant, Rounds
from distill.bench.measurement import Measurement, Setting
from distill.bench.meter import busy_seconds, version_of
from distill.io.files import write_atomically

_PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED_AS = {"liger_kernel": "liger-kernel"}
_VLLM = (
    "vllm not installed: make engines, and measure with .venv-engines/bin/python -m distill.bench, or "
    'pip install "distill[vllm]" where there is a GPU'
)


@dataclass
class Result:
    """Result of a comparison.

    Attributes:
        comparison: the comparison.
        settings: settings of the measurements, one per point of the axis.
        rounds: by contestant, a list of rounds, each a list over the settings.
        absent: by contestant, why it was not measured.
    """

    comparison: Comparison
    settings: list[Setting]
    rounds: Rounds
    absent: dict[str, str] = field(default_factory=dict)


class Absent(Exception):
    """A contestant that cannot be measured; the message says why."""


def run(
    comparison: Comparison, base: Setting, rounds: int, folder: Path, say: Callable[[str], None] = print
) -> Result:
    """Run all rounds of a comparison; saved measurements are reused.

    Args:
        comparison: comparison to run.
        base: base setting, before the comparison's changes.
        rounds: measurements per contestant and point of the axis.
        folder: folder of `rounds/`, which has one file per measurement.
        say: callback for progress messages.
    """
    settings = comparison.settings(base)
    if comparison.models:
        prepare(settings[0])
    absent = {one.name: why for one in comparison.contestants if (why := missing(one))}
    found: dict[str, list[list[Measurement]]] = {one.name: [] for one in comparison.contestants}
    for number in range(rounds):
        # Alternate the contestants at every point, so that drift of the machine affects all of them alike.
        row: dict[str, list[Measurement]] = {name: [] for name in found}
        for setting in settings:
            for one in comparison.contestants:
                if one.name in absent:
                    continue
                try:
                    measured, kept = _measure(comparison, one, setting, number, folder)
                except Absent as error:
                    absent[one.name] = str(error)
                    say(f"{comparison.name}: {one.label} is left out: {error}")
                    continue
                row[one.name].append(measured)
                at = f" at {getattr(setting, comparison.axis):,}" if comparison.axis else ""
                say(
                    f"{comparison.name}, round {number + 1}: {one.label}{at}: "
                    f"{measured.value('seconds_per_step'):.3f} s a step, "
                    f"{measured.peak_bytes / 2**20:,.0f} MiB{' (kept)' if kept else ''}"
                )
        for name, measurements in row.items():
            if name not in absent:
                found[name].append(measurements)
    for name, why in absent.items():
        found[name] = []
        if not any(name == one.name and missing(one) is None for one in comparison.contestants):
            say(f"{comparison.name}: {comparison.contestant(name).label} is left out: {why}")
    return Result(comparison, settings, found, absent)


def missing(contestant: Contestant) -> str | None:
    """A sentence on missing packages and how to install them; None if all are installed."""
    without = [name for name in contestant.needs if importlib.util.find_spec(name) is None]
    if not without:
        return None
    if without == ["vllm"]:  # which wants packages of its own versions
        return _VLLM
    names = " ".join(_INSTALLED_AS.get(name, name) for name in without)
    return f"{names} not installed: make peers, or pip install --no-deps {names}"


def prepare(setting: Setting) -> None:
    """Create missing models in a child process."""
    folder = Path(setting.inputs) / setting.shape
    if not all((folder / f"{role}-{setting.seed}").is_dir() for role in ("student", "teacher")):
        arguments = ["--prepare", json.dumps(asdict(setting))]
        subprocess.run([sys.executable, "-m", "distill.bench.child", *arguments], check=True)


def _measure(
    comparison: Comparison, one: Contestant, setting: Setting, number: int, folder: Path
) -> tuple[Measurement, bool]:
    """Take a measurement, or read a saved one; also return whether it was saved.

    Raises:
        Absent: the process failed.
    """
    words = json.dumps(asdict(setting))
    parts = [words, repr(sorted(one.options.items())), source_hash(), *_outside(setting, one)]
    key = hashlib.sha256("\0".join(parts).encode())
    path = folder / "rounds" / f"{comparison.name}_{one.name}_{key.hexdigest()[:10]}_{number + 1}.json"
    if path.is_file():
        return Measurement(**json.loads(path.read_text(encoding="utf-8"))), True
    command = [sys.executable, "-m", "distill.bench.child", comparison.name, one.name, words]
    busy, began = busy_seconds(), time.perf_counter()
    own = sum(os.times()[2:4])
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "WANDB_MODE": "disabled"}
    )
    if done.returncode:
        raise Absent(_reason(done, path.with_suffix(".error.txt")))
    measured = Measurement(**json.loads(done.stdout.strip().splitlines()[-1]))
    if busy is not None:
        others = (busy_seconds() or busy) - busy - (sum(os.times()[2:4]) - own)
        measured = replace(measured, others=round(max(0.0, others) / (time.perf_counter() - began), 3))
    write_atomically(path, lambda file: file.write_text(json.dumps(asdict(measured)), encoding="utf-8"))
    return measured, False


def _outside(setting: Setting, one: Contestant) -> list[str]:
    """Fingerprints of the files that a measurement reads, and the versions of the packages that it runs."""
    files = [Path(name).read_bytes() for name in (setting.lengths, setting.prompts) if name]
    found = [hashlib.sha256(content).hexdigest() for content in files]
    if setting.model:
        from distill.models.find import find_model  # not at the top: help needs no torch

        found.append(find_model(setting.model, key="--model", dtype=setting.precision).fingerprint)
    return found + [f"{name} {version_of(name)}" for name in ("torch", "transformers", *one.needs)]


def _reason(done: subprocess.CompletedProcess[str], log: Path) -> str:
    """A sentence on why a measurement failed; unexpected tracebacks are saved to the log."""
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    if lines[-1].startswith("error: "):
        return lines[-1].removeprefix("error: ")
    write_atomically(log, lambda file: file.write_text(done.stderr, encoding="utf-8"))
    return f"{lines[-1].strip()} ({log})"


@cache
def source_hash() -> str:
    """Hash of this package's code, so that measurements of different versions are not mixed."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
