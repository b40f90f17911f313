"""A run's folder: what was run, on what, and what came of it."""

import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from distill.cache import write_atomically
from distill.callbacks import checkpoints
from distill.cli import plain
from distill.errors import Busy, UserError
from distill.evaluation import Asked, score_of
from distill.loading import load as load  # for notebooks: from distill import runs; runs.load(...)
from distill.scores import Score

_PACKAGES = (
    "distill",
    "torch",
    "transformers",
    "lightning",
    "hydra-core",
    "datasets",
    "wandb",
    "numpy",
    "peft",
    "vllm",
)
# What makes two configurations the same run; the rest (how long, how often saved, where logged) may change on
# resuming.
_IDENTITY = ("model", "data", "loss", "optimizer", "schedule", "seed", "trainer", "name")
_LENGTH = {"data.epochs", "trainer.max_steps"}
_ATTEMPTS, _PATIENCE = 20, 0.2  # to lock a folder; seconds
_MAY_CHANGE = {"trainer.log_every_n_steps", "benchmark.every", "benchmark.token_budget"}


def write_json(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=True)
    write_atomically(path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))


def describe(folder: Path, cfg: DictConfig, overrides: list[str]) -> None:
    """Write `config.yaml` (resolved) and `versions.json` (packages, machine, git state, command line)."""
    text = OmegaConf.to_yaml(cfg, resolve=True)
    write_atomically(folder / "config.yaml", lambda temporary: temporary.write_text(text, encoding="utf-8"))
    write_json(folder / "versions.json", versions() | {"overrides": overrides})


def versions() -> dict[str, Any]:
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "packages": packages,
        "git": _git_state(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def _git_state() -> dict[str, Any] | None:
    """Commit and whether the working tree differs from it, or None outside a checkout."""

    def git(*arguments: str) -> str:
        here = Path(__file__).resolve().parent
        return subprocess.run(
            ["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "changed": sorted(git("status", "--porcelain").splitlines()),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def first_rank() -> bool:
    """Whether this process is the one of a run that writes and prints."""
    return (getattr(rank_zero_only, "rank", None) or 0) == 0


@contextmanager
def locked(folder: Path, key: str = "dir") -> Iterator[None]:
    """Hold a folder, so that no two processes write into it; only a run's first rank does.

    On the way out the folder goes where nothing is in it.

    Args:
        folder: made where it is not there.
        key: the config key that names it, for messages.

    Raises:
        Busy: another process does.
        UserError: the folder cannot be written to.
    """
    if not first_rank():
        yield
        return
    lock = _acquired(folder, key)
    try:
        yield
    finally:
        # While the lock is still held: whoever opened this file before then sees, when it gets the lock, that
        # the file is gone, and begins again. After a release it would be the next one's lock that goes away.
        with suppress(OSError):
            (folder / ".lock").unlink(missing_ok=True)
        with suppress(OSError):  # it is not empty: what was written, or the next one's lock
            folder.rmdir()
        lock.release()


def _acquired(folder: Path, key: str) -> FileLock:
    """A folder's lock, held."""
    for attempt in range(_ATTEMPTS):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # For a moment, not at once: a lock file that its holder has just taken away is tried again.
            lock = FileLock(folder / ".lock", timeout=_PATIENCE, poll_interval=_PATIENCE / 10)
            lock.acquire()
            return lock
        except Timeout as error:
            raise Busy(f"another run is writing into {folder}: name another folder with {key}=") from error
        except OSError as error:
            # One who leaves takes an empty folder away, maybe just between two looks at it.
            if not isinstance(error, FileNotFoundError | FileExistsError) or attempt == _ATTEMPTS - 1:
                raise UserError(f"{key}={folder} cannot be written to: {error.strerror or error}") from error
    raise AssertionError("unreachable")


def claim(folder: Path) -> None:
    """Make a folder ready for a new run; what one that broke off before any checkpoint left goes away.

    Raises:
        UserError: it holds a run's work, which would be lost or mixed up with the new one's.
    """
    held = [name for name in ("student", "summary.json") if (folder / name).exists()]
    if held or checkpoints(folder / "checkpoints"):
        raise UserError(
            f"dir={folder} holds {held[0] if held else 'checkpoints'} already: resume that run with "
            f"ckpt={folder}, or name another folder"
        )
    for name in ("metrics.csv", "weights.jsonl", "samples.jsonl", "error.txt"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "completions", ignore_errors=True)


def fresh(folder: Path, key: Mapping[str, Any]) -> None:
    """A folder for what is made from `key`: what another key left in it goes away."""
    described, text = folder / "key.json", json.dumps(key, sort_keys=True, indent=1)
    if described.is_file() and described.read_text(encoding="utf-8") == text:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_atomically(described, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def find_checkpoint(wanted: str, cfg: DictConfig, runs: Path) -> Path:
    """The checkpoint to resume from.

    Args:
        wanted: `last`: the newest checkpoint of the newest run with this configuration; or a run's or
            checkpoint's folder.
        cfg: the configuration now; the run must have been made with the same model, data, loss, optimizer and
            seed.
        runs: where runs lie, for `last`.

    Raises:
        UserError: there is none, or it belongs to another configuration; the message says which key differs.
    """
    if wanted != "last":
        folder = Path(wanted)
        found = [folder] if checkpoints(folder.parent).count(folder) else checkpoints(folder / "checkpoints")
        if not found:
            raise UserError(
                f"ckpt={wanted}: there is no checkpoint in this folder (runs with some: {_known(runs)})"
            )
        run = found[-1].parent.parent
        if differs := difference(run, cfg):
            raise UserError(f"ckpt={wanted} was made with another configuration: {run.name}: {differs}")
        return found[-1]
    candidates = [run for run in sorted(runs.glob("*"), reverse=True) if checkpoints(run / "checkpoints")]
    for run in candidates:
        if not difference(run, cfg):
            return checkpoints(run / "checkpoints")[-1]
    nearest = ""
    if candidates:
        nearest = f"; the newest run differs: {candidates[0].name}: {difference(candidates[0], cfg)}"
    raise UserError(f"ckpt=last: no run in {runs} with this configuration has a checkpoint{nearest}")


def _known(runs: Path) -> str:
    return (
        ", ".join(str(run) for run in sorted(runs.glob("*")) if checkpoints(run / "checkpoints"))
        or f"none in {runs}"
    )


def difference(run: Path, cfg: DictConfig, length_too: bool = False) -> str | None:
    """The first key in which a run's configuration differs from `cfg`, as a sentence's end.

    Args:
        run: its folder.
        cfg: the configuration now.
        length_too: also compare how long the run is and what it is asked, which may change on resuming.
    """
    described = run / "config.yaml"
    if not described.is_file():
        return "it has no config.yaml"
    before: Any = OmegaConf.load(described)
    may_change = _MAY_CHANGE if length_too else _MAY_CHANGE | _LENGTH
    for section in (*_IDENTITY, *(("max_tokens", "benchmark") if length_too else ())):
        then, now = plain(before.get(section)), plain(cfg.get(section))
        if found := _first_difference(then, now, section, may_change):
            return found
    return None


def asked_alike(run: Path, cfg: DictConfig) -> bool:
    """Whether a run that is resumed asked its benchmarks as they are asked now."""
    before: Any = OmegaConf.load(run / "config.yaml")
    return (
        _first_difference(plain(before.get("benchmark")), plain(cfg.benchmark), "benchmark", _MAY_CHANGE)
        is None
    )


def _first_difference(before: Any, now: Any, place: str, may_change: set[str]) -> str | None:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**before, **now}:
            if found := _first_difference(before.get(key), now.get(key), f"{place}.{key}", may_change):
                return found
        return None
    return None if before == now or place in may_change else f"{place} was {before!r} and is {now!r}"


def write_lines(path: Path, *parts: Iterable[str]) -> None:
    """Lines of text, atomically; they may come from the file itself."""

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as stream:
            stream.writelines(f"{line}\n" for part in parts for line in part)

    write_atomically(path, write)


def read_lines(path: Path) -> Iterator[str]:
    """Not splitlines, which also splits at U+2028 and its like inside a completion. No file is no line."""
    if path.is_file():
        with path.open(encoding="utf-8", newline="\n") as stream:
            for line in stream:
                if line.strip():
                    yield line.rstrip("\n")


def write_samples(folder: Path, stage: str, scores: Sequence[Score]) -> None:
    """Add the benchmarks' completions to `samples.jsonl`, in place of the same stage's earlier ones."""
    path = folder / "samples.jsonl"
    kept = (line for line in read_lines(path) if json.loads(line)["stage"] != stage)
    new = (
        json.dumps({"stage": stage, **sample}, ensure_ascii=False)
        for score in scores
        for sample in score.samples
    )
    write_lines(path, kept, new)


def read_scores(folder: Path, stage: str, asked: Sequence[Asked]) -> list[Score] | None:
    """A stage's scores from an earlier part of a resumed run; None where it was asked something else."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in read_lines(folder / "samples.jsonl"):
        record = json.loads(line)
        if record.pop("stage") == stage:
            found.setdefault(record.get("benchmark", ""), []).append(record)
    scores = []
    for one in asked:
        name, n = one.benchmark.name, one.benchmark.samples
        samples = found.get(name, [])
        wanted = [(problem.id, problem.problem, sample) for problem in one.problems for sample in range(n)]
        if [(sample["id"], sample["problem"], sample["sample"]) for sample in samples] != wanted:
            return None
        scores.append(score_of(one, samples))
    return scores


def print_summary(summary: dict[str, Any], folder: Path) -> None:
    """The small table at a run's end."""
    table = Table(title=f"{summary['name']}: {summary['status']}", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, stages in summary["benchmarks"].items():
        after = stages["after"]
        measure = "accuracy" if after["per_problem"] == 1 else f"avg@{after['per_problem']}"
        change = " → ".join(_percent(stages[stage]) for stage in ("before", "after") if stage in stages)
        change += _rate(after.get("tokens_per_second"))
        table.add_row(f"{name} {measure} ({after['problems']} problems)", change)
    table.add_row("loss (first → last step)", f"{summary['first_loss']:.4f} → {summary['last_loss']:.4f}")
    tokens = f"{summary['tokens']:,.0f} completion tokens in {summary['steps']} steps"
    if summary.get("rollout_tokens"):
        tokens += (
            f"; {summary['rollout_tokens']:,.0f} of them written by the student in "
            f"{_duration(summary['rollout_seconds'])}"
            f"{_rate(summary['rollout_tokens'] / max(1e-9, summary['rollout_seconds']))}"
        )
    table.add_row("trained", f"{tokens}, in {summary['precision']}")
    trained, parameters = summary["parameters"].values()
    if trained < parameters:
        table.add_row("parameters", f"{trained:,} of {parameters:,} ({trained / parameters:.2%}) trained")
    table.add_row(
        "time", "; ".join(f"{name} {_duration(seconds)}" for name, seconds in summary["seconds"].items())
    )
    for role, said in summary["frozen"].items():
        table.add_row(role, said)
    table.add_row("student", _short(folder / "student"))
    if (folder / "adapter").is_dir():
        table.add_row("adapter", _short(folder / "adapter"))
    table.add_row("everything", _short(folder))
    Console(soft_wrap=False, width=None if sys.stdout.isatty() else 120).print(table)


def _short(path: Path) -> str:
    """Relative to where the user stands, when it lies below."""
    here = Path.cwd()
    return str(path.resolve().relative_to(here) if path.resolve().is_relative_to(here) else path)


def _rate(tokens_per_second: float | None) -> str:
    return f", {tokens_per_second:,.0f} tokens/s" if tokens_per_second else ""


def _percent(score: dict[str, Any]) -> str:
    found = score["figures"]["accuracy"]
    return f"{found['value']:.1%} [{found['low']:.1%}, {found['high']:.1%}]"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
