"""Check that a section of keys is not set to a plain value. Imports no torch."""

import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from distill.config.kinds import select, shown
from distill.errors import UserError

# `key:` with nothing or a mapping behind it, and the place of a group's option in `- group@place: option`.
_SECTION = re.compile(r"^ *([\w.]+): *(?:\{.*)?(?:#.*)?$|@([\w.]+)", re.MULTILINE)


def check_sections(
    overrides: Iterable[Override],
    groups: Collection[str],
    root: Path,
    folders: Iterable[Path],
    compose: Callable[[], DictConfig],
) -> None:
    """Reject a plain value or a list for a key that holds a section of keys, and null for one at the top.

    Args:
        overrides: the command line's.
        groups: names of configuration groups, whose options are checked elsewhere.
        root: the command's file. A key that it sets to a plain value is no section.
        folders: of configuration files. They are only searched for the keys' names, which is faster than to
            compose: most keys that a user sets are no sections anywhere.
        compose: composes the configuration without the overrides of keys.

    Raises:
        UserError: there is one; names it and a key below it.
    """
    asked: dict[str, Any] = {}
    for override in overrides:
        if override.key_or_group in groups or override.is_delete() or override.is_sweep_override():
            continue
        value = override.value()
        if isinstance(value, dict) or (isinstance(value, str) and "${" in value):
            continue
        if value is None and "." in override.key_or_group:
            continue  # what lies deeper may be left out, such as data.teacher_prompt
        asked[override.key_or_group] = value
    names = _names_of_sections(folders) if asked else set[str]()
    asked = {key: value for key, value in asked.items() if key.rpartition(".")[2] in names}
    of_root: Any = OmegaConf.to_container(OmegaConf.load(root), resolve=False) if asked else {}
    asked = {key: value for key, value in asked.items() if isinstance(select(of_root, key, absent={}), dict)}
    if not asked:
        return
    composed = compose()
    for key, value in asked.items():
        section = OmegaConf.select(composed, key)
        if OmegaConf.is_dict(section):
            below = next((f", such as {key}.{name}=" for name in section if str(name)[0] != "_"), "")
            raise UserError(f"{key}={shown(value)} must be a section of keys{below}")


def _names_of_sections(folders: Iterable[Path]) -> set[str]:
    """The last part of every key that holds a section in some file, and the names of options."""
    files = [path for folder in folders for path in folder.rglob("*.yaml")]
    found = {path.stem for path in files}
    for path in files:
        for name, place in _SECTION.findall(path.read_text(encoding="utf-8")):
            found.add((name or place).rpartition(".")[2])
    return found
