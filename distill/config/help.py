"""The help of a command that Hydra configures, without composing its configuration."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml


def help_text(config_dir: Path, config_name: str, groups: Mapping[str, Sequence[str]]) -> str:
    """What `--help` prints.

    Args:
        config_dir: with the texts, `hydra/help/<config_name>.yaml`.
        config_name: the command's.
        groups: the options of each group that it has.
    """
    texts = yaml.safe_load(
        (config_dir / "hydra" / "help" / f"{config_name}.yaml").read_text(encoding="utf-8")
    )
    options = "\n".join(f"{group}: {', '.join(names)}" for group, names in groups.items())
    text = texts["template"].replace("$APP_CONFIG_GROUPS", options)
    for name in ("header", "footer"):
        text = text.replace(f"${{hydra.help.{name}}}", texts[name])
    return text
