"""Old and current names of configuration keys that were renamed.

An old key on the command line is an error that names the new key. A `config.yaml` of an earlier version is
translated when it is read, so that its run can be compared and resumed like a current one.
"""

import copy
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from distill.config.flat import flat
from distill.config.moved import new_name

# The longest matching prefix counts: schedule.decay becomes lr_scheduler.decay.
RENAMED: dict[str, str] = {
    "benchmark.every": "eval_every",
    "ckpt": "ckpt_path",
    "data.prompt": "data.student_prompt.user",
    "data.recipe.prompt": "data.recipe.student_prompt.user",
    "model.checkpoint_activations": "model.gradient_checkpointing",
    "model.lr": "optimizer.lr",
    "prompt": "teacher_prompt",  # a group
    "prompt.system": "data.teacher_prompt.system",
    "prompt.user": "data.teacher_prompt.user",
    "schedule": "lr_scheduler",
    "schedule.floor": "lr_scheduler.min_lr_ratio",
    "schedule.warmup": "lr_scheduler.warmup_ratio",
}
# Keys that earlier versions did not have, with the value that does what those did. A key is added where its
# sibling is, or where the sibling has the value behind "=". Keys whose value is null need no entry.
ADDED: dict[str, tuple[str, Any]] = {
    "loss.token_weight.temperature_is": ("loss.token_weight.ratio_from", "divisor"),
    "loss.token_weight.max_log_ratio": ("loss.token_weight.ratio_from", 5.0),
    "loss.token_weight.masks": ("loss.token_weight._target_=distill.losses.weights.t3s", "anchors"),
    "loss.token_weight.base": ("loss.token_weight._target_=distill.losses.weights.t3s", "initial"),
    **{
        f"data.{above}.{name}": (f"data.{above}.problem", "auto")
        for above in ("fields", "recipe.source.fields")
        for name in ("system", "thought")
    },
    "data.recipe.source.report": ("data.recipe.source.missing", True),
    "checkpoint.save": ("checkpoint.every", "last"),
    "estimate.memory": ("estimate.bandwidth", None),
    "estimate.simulate": ("estimate.bandwidth", False),
    "estimate.groups": ("estimate.bandwidth", 16),
    **{
        f"card.{name}": ("checkpoint.every", "unknown")
        for name in ("license", "base_license", "teacher_license", "data_license")
    },
    "model.compile": ("model.gradient_checkpointing", False),
    "model.teachers_in_memory": ("model.teacher_dtype", "all"),
    "loss.teacher_update_rate": ("loss.normalize", 0.01),
    "loss.teacher_sync_steps": ("loss.normalize", 1),
    "loss.overlap_top_k": ("loss.normalize", None),
    "loss.rollouts.samples": ("loss.rollouts.max_new_tokens", 1),
    "loss.rollouts.start_tokens": ("loss.rollouts.max_new_tokens", None),
    "loss.rollouts.grow_until": ("loss.rollouts.max_new_tokens", 0.5),
    "loss.rollouts.replay_decay": ("loss.rollouts.max_new_tokens", None),
    "loss.rollouts.replay_writes": ("loss.rollouts.max_new_tokens", "step"),
    "loss.rollouts.step_separator": ("loss.rollouts.max_new_tokens", "\n"),
    "loss.rollouts.num_iterations": ("loss.rollouts.max_new_tokens", 1),
    "trainer.num_nodes": ("trainer.devices", 1),
    "trainer.optimizer_in_backward": ("trainer.devices", False),
    "data.other_prompt": ("data.student_prompt.user", "error"),
    "data.recipe.student_prompt._target_": (
        "data.recipe.student_prompt.user",
        "distill.data.prompt.student_prompt",
    ),
    **{
        f"teacher.{name}": ("checkpoint.every", value)
        for name, value in {
            "_target_": "distill.teacher.served.TeacherSource",
            "source": "local",
            "api": "vllm",
            "url": "http://localhost:8000/v1",
            "key_from": "OPENAI_API_KEY",
            "concurrency": 16,
            "retries": 6,
            "timeout": 600.0,
            "wait": 1.0,
            "verify": False,
        }.items()
    },
}
# Defaults that changed: what earlier versions had, and what reads the same data today. They count where
# `thought`, which came with them, is absent.
_EARLIER_FIELDS = {"problem": "problem", "completion": "completion", "context": None, "messages": None}
# Files of conf/ that users' files may name in their defaults, as in `- /objective@_here_`.
MOVED_FILES: dict[str, str] = {
    name: f"shared/{name}"
    for name in ("evaluation", "objective", "pair", "student_rollouts", "support_ratio", "writing")
}

_LARGEST, _DEEPEST = 1 << 20, 100  # bytes and levels of a config.yaml; real ones have some 10,000 and 6
# The C loader takes a hundredth of OmegaConf's time. It suffices, because config.yaml is already resolved.
_TOP_LEVEL_KEY = re.compile(rb"(?<=\n)(?=[A-Za-z_])")
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def new_key(key: str) -> str:
    """The current key for a key of an earlier version; any other key unchanged.

    Args:
        key: full key with dots, such as `schedule.warmup`.
    """
    parts = key.split(".")
    for end in range(len(parts), 0, -1):
        if new := RENAMED.get(".".join(parts[:end])):
            return ".".join([new, *parts[end:]])
    return key


# Those whose sibling is in the same section, which need no other one, and the rest.
_ADDED_BESIDE = {
    key: there for key, there in ADDED.items() if key.partition(".")[0] == there[0].partition(".")[0]
}
_ADDED_ELSEWHERE = {key: there for key, there in ADDED.items() if key not in _ADDED_BESIDE}


def translate(config: Mapping[str, Any], added: Mapping[str, tuple[str, Any]] = ADDED) -> dict[str, Any]:
    """A configuration with current keys and `_target_`s, and with the keys that were added since.

    If it has both the old and the new key, the new one counts: `optimizer.lr` was derived from `model.lr`
    unless it was set itself.

    Args:
        config: nested and resolved.
        added: the keys that were added, as `ADDED`.
    """
    translated: dict[str, Any] = {}
    present: set[str] = set()  # keys, and `key=value` of the targets
    of_today = dict(_leaves(config))
    for path, value in of_today.items():
        if _is_earlier_field(path, value) and (*path[:-1], "thought") not in of_today:
            value = "auto"
        new = _new_path(path)
        if new != path and new in of_today:
            continue
        key = ".".join(new)
        present.add(key)
        if path[-1] == "_target_" and isinstance(value, str):
            value = new_name(value)
            present.add(f"{key}={value}")
        _put(translated, new, value)
    for key, (sibling, value) in added.items():
        if sibling in present and key not in present:
            _put(translated, key.split("."), value)
    return translated


def _put(node: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for part in path[:-1]:
        node = node.setdefault(part, {})
    node[path[-1]] = copy.deepcopy(value) if isinstance(value, (dict, list)) else value


@functools.cache
def _new_path(path: tuple[str, ...]) -> tuple[str, ...]:
    key = ".".join(path)
    new = new_key(key)
    return path if new == key else tuple(new.split("."))


def _is_earlier_field(path: tuple[str, ...], value: Any) -> bool:
    return path[0] == "data" and path[-2:-1] == ("fields",) and (path[-1], value) in _EARLIER_FIELDS.items()


def _leaves(node: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, (*above, str(key)))
        else:
            yield (*above, str(key)), value


def read_described(path: Path) -> dict[str, Any]:
    """Read a run's `config.yaml`, of this version or an earlier one, with current keys.

    A file of somebody else's may be made to expand without end, or to crash the parser. So files that are too
    large or nested too deeply are refused, and aliases, which stand for other values.

    Raises:
        OSError, ValueError, yaml.YAMLError: the file cannot be read.
    """
    content = _content(path)
    sections = _by_sections(content)
    if sections is None:
        return translate(_parse(content, path.name))
    return translate({section.name: section.value for section in sections})


def read_flat(path: Path) -> dict[str, Any]:
    """As `read_described`, as `{"data.limit": 4096, ...}`, for the files of many runs.

    The values that are lists are shared by the runs, and must not be changed.

    Raises:
        OSError, ValueError, yaml.YAMLError: the file cannot be read.
    """
    content = _content(path)
    sections = _by_sections(content)
    if sections is None:
        return dict(flat(translate(_parse(content, path.name))))
    config = _together(sections)
    return dict(flat(translate({one.name: one.value for one in sections}))) if config is None else config


def _content(path: Path) -> bytes:
    with path.open("rb") as stream:
        content = stream.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise ValueError(f"{path.name} has more than {_LARGEST:,} bytes")
    return content


@dataclass(frozen=True)
class _Section:
    """A top-level section of a file.

    Attributes:
        name: its key.
        value: as it is in the file.
        flat: its values by their full current keys; None if some are now in another section.
    """

    name: str
    value: Any
    flat: Mapping[str, Any] | None


def _by_sections(content: bytes) -> list[_Section] | None:
    """Parse each top-level section on its own; None if that cannot be done.

    Runs of a sweep share most of their sections, and a text that was parsed before is not parsed again.
    """
    try:
        sections = [_section(text) for text in _TOP_LEVEL_KEY.split(content)]
    except (ValueError, yaml.YAMLError):
        return None
    return sections if len({section.name for section in sections}) == len(sections) else None


@functools.lru_cache(maxsize=4096)
def _section(text: bytes) -> _Section:
    config = _parse(text, "")
    if len(config) != 1:
        raise ValueError(f"{len(config)} sections")
    stays = all(_new_path(path)[0] == path[0] for path, _ in _leaves(config))
    ((name, value),) = config.items()
    return _Section(str(name), value, dict(flat(translate(config, _ADDED_BESIDE))) if stays else None)


def _together(sections: Sequence[_Section]) -> dict[str, Any] | None:
    """The values of all sections by their full current keys; None if they must be translated together."""
    config: dict[str, Any] = {}
    for section in sections:
        if section.flat is None:
            return None
        config |= section.flat
    names = {section.name for section in sections}
    for key, (sibling, value) in _ADDED_ELSEWHERE.items():
        if sibling in config and key not in config:
            if key.partition(".")[0] in names:  # its place in that section is not known here
                return None
            config[key] = value
    return config


def _parse(content: bytes, name: str) -> dict[str, Any]:
    depth = 0
    for event in yaml.parse(content, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"{name} has an alias, which stands for another value")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ValueError(f"{name} is nested more than {_DEEPEST} levels deep")
    config = yaml.load(content, _Loader)
    if not isinstance(config, dict):
        raise ValueError(f"{name} holds no configuration")
    return config
