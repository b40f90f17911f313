"""Run folders: describe a run, find its checkpoints (`distill.training.checkpoints` saves them), and decide
whether it can be resumed."""

import functools
import json
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from distill.config.instantiate import as_yaml
from distill.config.paths import CHECKOUT
from distill.config.renamed_keys import read_described
from distill.errors import UserError, first_line
from distill.io.checksums import check, noted
from distill.io.files import write_atomically, write_json
from distill.io.secrets import hide_in_word, without_secrets

STATE = "state.ckpt"
SHARDS = "shards"  # folder of a sharded checkpoint's weights and optimizer state
_STEP = re.compile(r"step-\d+")


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints in a folder, oldest first."""
    found = [path for path in folder.glob("step-*") if _STEP.fullmatch(path.name)]
    return sorted((path for path in found if (path / STATE).is_file()), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The optimizer step of a checkpoint's folder, such as `step-000100`."""
    return int(checkpoint.name.removeprefix("step-"))


def check_state(checkpoint: Path) -> None:
    """Check a checkpoint's state before a run resumes from it.

    Raises:
        UserError: it is damaged; names the file.
    """
    remedy = "resume from another checkpoint with ckpt_path=, or start the run anew in another folder"
    check([checkpoint / STATE, *noted(checkpoint / SHARDS)], remedy)
    if checkpoint / STATE in noted(checkpoint):
        return
    import torch  # not at the top: finding a checkpoint does not need it

    try:  # of an earlier version, which kept no checksum
        torch.load(checkpoint / STATE, map_location="meta", mmap=True, weights_only=True)
    except Exception as error:  # readers of damaged files raise all kinds of exceptions
        raise UserError(f"{checkpoint / STATE} is damaged ({first_line(error)}): {remedy}") from error


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
# Sections that must be equal to resume a run. Others, such as length, checkpoints and loggers, may change.
_IDENTITY = ("model", "data", "loss", "optimizer", "lr_scheduler", "seed", "trainer", "name")
_LENGTH = {"data.epochs", "trainer.max_steps"}
# Another number of ranks goes on with the same batches, if these together give as many traces to a step.
_RANKS = {"trainer.devices", "trainer.num_nodes", "data.batch_size"}
# References to keys of `data`, which are compared themselves.
REFERENCES = ("data.recipe.student_prompt", "data.recipe.teacher_prompt", "data.recipe.other_prompt")
# Sections that also say how a finished run ended, and which student it saved.
_LENGTH_AND_RESULT = ("max_tokens", "benchmark", "validation", "checkpoint")
_MAY_CHANGE = {
    "trainer.log_every_n_steps",
    "trainer.timeout_minutes",
    "trainer.cpu_offload",
    "trainer.stage",
    "trainer.offload_optimizer",
    "trainer.optimizer_in_backward",
    "model.compile",
    "benchmark.token_budget",
    "checkpoint.every",
    "checkpoint.keep",
    "checkpoint.minutes",
    "checkpoint.of_finished",
    *REFERENCES,
}


def write_config(folder: Path, cfg: DictConfig) -> None:
    """Write a command's `config.yaml`, as `as_yaml` gives it."""
    text = as_yaml(cfg)
    write_atomically(folder / "config.yaml", lambda temporary: temporary.write_text(text, encoding="utf-8"))


def describe(folder: Path, config: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Write `config.yaml` and `versions.json` (packages, machine, git state, command line).

    Args:
        folder: run folder.
        config: the resolved configuration.
        overrides: of the command line.
    """
    text = without_secrets(OmegaConf.to_yaml(OmegaConf.create(dict(config))))
    write_atomically(folder / "config.yaml", lambda temporary: temporary.write_text(text, encoding="utf-8"))
    write_json(folder / "versions.json", versions() | {"overrides": list(map(hide_in_word, overrides))})


def versions() -> dict[str, Any]:
    """Versions of packages, machine, git state and command line."""
    import torch  # not at the top: finding a checkpoint does not need it

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "packages": _packages(),
        "git": _git_state(),
        "command": [_program(), *map(hide_in_word, sys.argv[1:])],
    }


@functools.cache
def _packages() -> dict[str, str]:
    """Versions of the packages that are installed; read once, as they are imported once."""
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return packages


def _program() -> str:
    path = Path(sys.argv[0])
    return path.name if path.name != "__main__.py" else f"python -m distill.{path.parent.name}"


def _git_state() -> dict[str, Any] | None:
    """Commit and changed files; None outside a checkout."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(CHECKOUT), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    if CHECKOUT is None:  # an installed wheel may lie inside another project's checkout
        return None
    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "changed": sorted(git("status", "--porcelain").splitlines()),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def finished(folder: Path) -> bool:
    """Whether a run folder's `summary.json` says that the run is finished."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(summary, dict) and summary.get("status") == "finished"


def check_free(folder: Path) -> None:
    """Reject a folder for a new run that holds another run's checkpoints or results."""
    if finished(folder):
        raise UserError(
            f"dir={folder} holds a finished run, so there is nothing to resume: name another folder"
        )
    held = [name for name in ("student", "summary.json") if (folder / name).exists()]
    if held or checkpoints(folder / "checkpoints"):
        raise UserError(
            f"dir={folder} holds {held[0] if held else 'checkpoints'} already: resume that run with "
            f"ckpt_path={folder}, or name another folder"
        )


def claim(folder: Path) -> None:
    """Prepare a folder for a new run, and delete the files of a run that ended before its first checkpoint.

    Raises:
        UserError: it holds another run's checkpoints or results.
    """
    check_free(folder)
    for name in ("metrics.csv", "weights.jsonl", "samples.jsonl", "error.txt", "mlflow.json"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "completions", ignore_errors=True)


def forget(folder: Path) -> None:
    """Delete the description of a run that was refused before it had anything to keep."""
    for name in ("config.yaml", "versions.json"):
        (folder / name).unlink(missing_ok=True)


def fresh(folder: Path, key: Mapping[str, Any]) -> None:
    """Prepare a folder for content that depends on `key`, and delete content of another key."""
    described, text = folder / "key.json", json.dumps(key, sort_keys=True, indent=1)
    if described.is_file() and described.read_text(encoding="utf-8") == text:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_atomically(described, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def find_resumable(wanted: str, config: Mapping[str, Any], runs: Path) -> Path:
    """Find the checkpoint to resume from, or a run to start anew because it was killed before its first one.

    Args:
        wanted: `last` for the newest checkpoint of the newest run with this configuration; or the folder of a
            run or checkpoint.
        config: the current configuration, resolved. Model, data, loss, optimizer and seed of the run must be
            the same.
        runs: folder of all runs, for `last`.

    Returns:
        The checkpoint's folder; or the run's folder, which holds no checkpoint.

    Raises:
        UserError: there is none, or it has another configuration; the message names the key that differs.
    """
    if wanted == "last":
        return _newest(config, runs)
    folder = Path(wanted)
    found = [folder] if checkpoints(folder.parent).count(folder) else checkpoints(folder / "checkpoints")
    if not found and not _killed(folder):
        raise UserError(
            f"ckpt_path={wanted}: there is no checkpoint in this folder (runs with some: {_known(runs)})"
        )
    run = found[-1].parent.parent if found else folder
    if differs := config_difference(run, config):
        raise UserError(f"ckpt_path={wanted} was made with another configuration: {run.name}: {differs}")
    return found[-1] if found else run


def _newest(config: Mapping[str, Any], runs: Path) -> Path:
    """As `find_resumable` of `last`: an unfinished run with a checkpoint before one without, and the newest
    finished run only where there is neither."""
    described = [run for run in sorted(runs.glob("*"), reverse=True) if (run / "config.yaml").is_file()]
    held = {run: checkpoints(run / "checkpoints") for run in described}
    candidates = [run for run in described if held[run] or _killed(run)]
    # Sorting is stable: the newest first among equals.
    for run in sorted(candidates, key=lambda run: (finished(run), not held[run])):
        if not config_difference(run, config):
            return held[run][-1] if held[run] else run
    nearest = ""
    if candidates:
        nearest = (
            f"; the newest run differs: {candidates[0].name}: {config_difference(candidates[0], config)}"
        )
    raise UserError(f"ckpt_path=last: no run in {runs} with this configuration can be resumed{nearest}")


def _killed(run: Path) -> bool:
    """Whether a run ended before its first checkpoint."""
    described = (run / "config.yaml").is_file()
    return described and not checkpoints(run / "checkpoints") and not (run / "summary.json").exists()


def _known(runs: Path) -> str:
    return (
        ", ".join(str(run) for run in sorted(runs.glob("*")) if checkpoints(run / "checkpoints"))
        or f"none in {runs}"
    )


def config_difference(run: Path, config: Mapping[str, Any], length_too: bool = False) -> str | None:
    """The first key in which a run's configuration differs from `config`, as text for a message; None if
    there is none.

    Args:
        run: run folder.
        config: the current configuration, resolved.
        length_too: also compare the run's length and benchmarks, which may change on resuming.
    """
    if not (run / "config.yaml").is_file():
        return "it has no config.yaml"
    try:
        before = read_described(run / "config.yaml")
    except (OSError, ValueError, yaml.YAMLError) as error:
        return f"its config.yaml is damaged ({first_line(error)})"
    may_change = _MAY_CHANGE if length_too else _MAY_CHANGE | _LENGTH
    if not length_too and _traces_of_a_step(before) == _traces_of_a_step(config) is not None:
        may_change = may_change | _RANKS
    for section in (*_IDENTITY, *(_LENGTH_AND_RESULT if length_too else ())):
        if found := _first_difference(before.get(section), config.get(section), section, may_change):
            return found
    return None


def _traces_of_a_step(config: Mapping[str, Any]) -> int | None:
    """Traces of a micro-batch over all ranks; None if the devices are not numbered."""
    trainer, data = config.get("trainer") or {}, config.get("data") or {}
    devices = trainer.get("devices")
    count = len(devices) if isinstance(devices, list) else devices
    if not isinstance(count, int) or count < 1 or not isinstance(data.get("batch_size"), int):
        return None
    return count * int(trainer.get("num_nodes") or 1) * data["batch_size"]


def asked_alike(run: Path, config: Mapping[str, Any]) -> bool:
    """Whether a run has the same benchmark settings as `config`."""
    before = read_described(run / "config.yaml").get("benchmark")
    return _first_difference(before, config.get("benchmark"), "benchmark", _MAY_CHANGE) is None


def _first_difference(before: Any, now: Any, place: str, may_change: set[str]) -> str | None:
    if place in may_change:
        return None
    if isinstance(before, dict | None) and isinstance(now, dict | None) and before != now:
        # A section that one version does not have equals one whose values are all null.
        before, now = before or {}, now or {}
        for key in {**before, **now}:
            if found := _first_difference(before.get(key), now.get(key), f"{place}.{key}", may_change):
                return found
        return None
    return None if before == now else f"{place} was {before!r} and is {now!r}"
