"""Reject a value that is given to a section of keys, such as `optimizer=1`."""

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, ValueNode

from distill.config.kinds import shown
from distill.errors import UserError

# A key whose next line is a key of its own, and a file that is placed under a key.
_OPENS = re.compile(
    r"^(?P<indent> *)(?P<section>[\w-]+): *(?:#.*)?\n(?: *(?:#.*)?\n)*(?P=indent) +[\w-]+:"
    r"|@(?:[\w.]+\.)?(?P<placed>\w+)",
    re.MULTILINE,
)


def check_sections(
    cfg: DictConfig, overrides: Sequence[Override], config_dir: Path, known: Callable[[], DictConfig]
) -> None:
    """Check that no section of keys is replaced by a value.

    Keys of a node with a `_target_` are left to `check_values`: what it makes may take either. Null counts as
    a value for a section at the top.

    Args:
        cfg: the composed configuration.
        overrides: of the command line.
        config_dir: folder of the configuration.
        known: composes the configuration without the user's values, if it is needed.

    Raises:
        UserError: names the key, its value and a key of the section.
    """
    for override in overrides:
        key = override.key_or_group
        above, _, last = key.rpartition(".")
        # Composing takes a while: only for names that are sections somewhere.
        if override.is_delete() or override.is_add() or last not in _names(config_dir, at_top=not above):
            continue
        if not above and (config_dir / last).is_dir():
            continue  # a group's option, or a command's own key of that name
        parent = OmegaConf.select(cfg, above) if above else cfg
        if not OmegaConf.is_dict(parent) or "_target_" in parent or last not in parent:
            continue
        node = parent._get_node(last)
        if not isinstance(node, ValueNode) or node._is_interpolation() or (above and node._is_none()):
            continue  # what lies deeper may be null, such as data.teacher_prompt
        default = OmegaConf.select(known(), key)
        if OmegaConf.is_dict(default) and default:
            own = next((name for name in default if str(name)[0] != "_"), "<key>")
            raise UserError(
                f"{key}={shown(node._value())} must be a section of keys: set one of them, "
                f"{key}.{own}=<value>"
            )


@functools.cache
def _names(config_dir: Path, *, at_top: bool) -> frozenset[str]:
    """The names under which the files of the configuration open a section, or place another file.

    Args:
        config_dir: folder of the configuration.
        at_top: whether those of the commands' own files count.
    """
    found = set[str]()
    for path in config_dir.rglob("*.yaml"):
        for one in _OPENS.finditer(path.read_text(encoding="utf-8")):
            if at_top or one["placed"] or one["indent"] or path.parent != config_dir:
                found.add(one["section"] or one["placed"])
    return frozenset(found)
