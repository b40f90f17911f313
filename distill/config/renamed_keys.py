"""Keys of the configuration that were renamed, and where they are now.

A command line that says an old one is told the new one. A `config.yaml` of an earlier version is translated
when it is read, so that its run compares and resumes as if it were made today.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from distill.config.moved import new_name

# The longest key that fits counts: schedule.decay is lr_scheduler.decay.
RENAMED: dict[str, str] = {
    "benchmark.every": "eval_every",
    "ckpt": "ckpt_path",
    "model.checkpoint_activations": "model.gradient_checkpointing",
    "model.lr": "optimizer.lr",
    "schedule": "lr_scheduler",
    "schedule.floor": "lr_scheduler.min_lr_ratio",
    "schedule.warmup": "lr_scheduler.warmup_ratio",
}
# Files of conf/ that others name in their defaults, as `- /objective@_here_`.
MOVED_FILES: dict[str, str] = {
    name: f"shared/{name}"
    for name in ("evaluation", "objective", "pair", "student_rollouts", "support_ratio", "writing")
}

# The C reader takes a hundredth of OmegaConf's time; config.yaml is written resolved, by OmegaConf.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def new_key(key: str) -> str:
    """Where a key of an earlier version is now; any other key as it is.

    Args:
        key: with dots between its parts, such as `schedule.warmup`.
    """
    parts = key.split(".")
    for end in range(len(parts), 0, -1):
        if new := RENAMED.get(".".join(parts[:end])):
            return ".".join([new, *parts[end:]])
    return key


def translate(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration under today's keys and today's `_target_`s.

    Where it has both an old key and the new one, the new one counts: `optimizer.lr` was made of `model.lr`,
    unless it was set itself.

    Args:
        config: nested, resolved.
    """
    translated: dict[str, Any] = {}
    of_today = {path for path, _ in _leaves(config)}
    for path, value in _leaves(config):
        new = tuple(new_key(".".join(path)).split(".")) if _renamed(path) else path
        if new != path and new in of_today:
            continue
        node = translated
        for part in new[:-1]:
            node = node.setdefault(part, {})
        node[new[-1]] = new_name(value) if path[-1] == "_target_" and isinstance(value, str) else value
    return translated


def _renamed(path: tuple[str, ...]) -> bool:
    key = ".".join(path)
    return new_key(key) != key


def _leaves(node: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, (*above, str(key)))
        else:
            yield (*above, str(key)), value


def read_described(path: Path) -> dict[str, Any]:
    """A run's `config.yaml`, of this version or an earlier one, under today's keys.

    Raises:
        OSError, ValueError, yaml.YAMLError: it cannot be read.
    """
    with path.open(encoding="utf-8") as stream:
        config = yaml.load(stream, _Loader)
    if not isinstance(config, dict):
        raise ValueError(f"{path.name} holds no configuration")
    return translate(config)
