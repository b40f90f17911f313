"""Files and folders that a configuration names, looked for before torch is imported.

What runs looks for them again, with the same functions: this is only earlier.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from distill.config.instantiate import plain
from distill.data.readers import check_file
from distill.models.path import find_path, first_found

_ROLES = ("student", "teacher", "reference", "pilot")


def check_inputs(
    cfg: DictConfig, words: Iterable[str], *, needed: Sequence[str] = (), data: bool = True
) -> None:
    """Refuse models, data and benchmarks that name a folder or a file that is not there.

    Args:
        cfg: of training, or of another command with these groups.
        words: the command line; whoever it names must be there, whether the loss asks for that model or not.
        needed: roles that are looked for in any case.
        data: whether the data are read.

    Raises:
        UserError: names the key.
    """
    named = {word.lstrip("+").partition("=")[0] for word in words}
    for role in _ROLES:
        if role in needed or f"model.{role}" in named:
            check_model(cfg.model.get(role), f"model.{role}")
    if data:
        check_data(cfg)
    check_benchmarks(cfg)


def check_model(spec: Any, key: str) -> None:
    """Refuse a model's folder or file that is not there; whether the hub has an id is asked later."""
    if spec:
        first_found(plain(spec), key, lambda one: find_path(one, key))


def check_data(cfg: DictConfig) -> None:
    """Refuse a `data.path` that is not there, where our own reader would read it."""
    path = OmegaConf.select(cfg, "data.path")
    if path and _ours(OmegaConf.select(cfg, "data.recipe.source")):
        check_file(str(path))


def check_benchmarks(cfg: DictConfig) -> None:
    """Refuse benchmarks' files that are not there."""
    for path in _benchmark_paths(cfg.get("benchmark") or {}):
        check_file(path)


def _benchmark_paths(node: Any) -> Iterator[str]:
    """The files that `benchmark.path` and `benchmark.<name>.path` name."""
    asked = {name: own for name, own in node.items() if OmegaConf.is_dict(own) and "_target_" in own}
    path: Any = plain(node.get("path"))
    if isinstance(path, str) and len(asked) > 1:
        return  # one file for several, which is refused later
    by_name = path if isinstance(path, dict) else dict.fromkeys(asked, path)
    for name, own in asked.items():
        found = by_name.get(name) or own.get("path")
        if isinstance(found, str) and name != "arithmetic" and _ours(own.source):  # which takes no file
            yield found


def _ours(source: Any) -> bool:
    """Whether a source is one of ours, which read files alone; a user's own may take a path otherwise."""
    return str((source or {}).get("_target_", "")).startswith("distill.")
