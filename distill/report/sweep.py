"""Read the planned jobs of a sweep from Hydra's `multirun.yaml`."""

import itertools
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException


def planned(folder: Path) -> list[dict[str, Any]]:
    """The sweep's planned jobs, each with `loss` and `seed`; empty if `multirun.yaml` does not set both."""
    path = folder / "multirun.yaml"
    if not path.is_file():
        return []
    try:
        node: Any = yaml.safe_load(path.read_text(encoding="utf-8"))["hydra"]
        params = node["sweeper"].get("params") or {}
        words = [f"{key}={value}" for key, value in params.items()] + list(node["overrides"]["task"])
        chosen = {"loss": [str(node["runtime"]["choices"]["loss"])]}
        for one in OverridesParser.create().parse_overrides(words):  # later overrides win
            if one.key_or_group in ("loss", "seed"):
                values = one.sweep_string_iterator() if one.is_sweep_override() else [str(one.value())]
                chosen[one.key_or_group] = list(values)
        if "seed" not in chosen:
            return []
        seeds = [int(seed) for seed in chosen["seed"]]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError, HydraException):
        return []  # another tool's file, or an incomplete one: the planned jobs are unknown
    return [{"loss": loss, "seed": seed} for loss, seed in itertools.product(chosen["loss"], seeds)]
