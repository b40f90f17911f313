"""The `--help` text of a command, made without composing its configuration."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml


def help_text(config_dir: Path, config_name: str, groups: Mapping[str, Sequence[str]]) -> str:
    """The text that `--help` prints.

    Args:
        config_dir: folder of the configuration, with the texts in `hydra/help/<config_name>.yaml`.
        config_name: the command's root file.
        groups: the command's configuration groups, each with its options.
    """
    texts = yaml.safe_load(
        (config_dir / "hydra" / "help" / f"{config_name}.yaml").read_text(encoding="utf-8")
    )
    options = "\n".join(f"{group}: {', '.join(names)}" for group, names in groups.items())
    text = texts["template"].replace("$APP_CONFIG_GROUPS", options)
    for name in ("header", "footer"):
        text = text.replace(f"${{hydra.help.{name}}}", texts[name])
    return text
