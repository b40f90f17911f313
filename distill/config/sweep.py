"""The jobs of a sweep, from its command line and its experiment's file."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from omegaconf import DictConfig, OmegaConf

from distill.config.overrides import swept_by_file


class _Ends(list[Any]):
    """The ends of an interval: how many values a sweeper takes of it is not known."""


def swept_values(
    cfg: DictConfig, arguments: Sequence[str], groups: Mapping[str, Sequence[str]]
) -> dict[str, list[Any]]:
    """The values of each swept key or group, of an interval both ends.

    Args:
        cfg: of the sweep's first job, with Hydra's part.
        arguments: the command line.
        groups: options of each group, for `loss=glob(*)`.
    """
    words = [word for word in arguments if not word.startswith("-") and "=" in word]
    parsed = {one.key_or_group: one for one in OverridesParser.create().parse_overrides(words)}
    of_file = swept_by_file(cfg, parsed.values())
    parsed |= {one.key_or_group: one for one in OverridesParser.create().parse_overrides(of_file)}
    return {key: _values(one, groups) for key, one in parsed.items() if one.is_sweep_override()}


def _values(override: Override, groups: Mapping[str, Sequence[str]]) -> list[Any]:
    if isinstance(pattern := override.value(), Glob):
        return pattern.filter(list(groups.get(override.key_or_group, ())))
    if isinstance(interval := override.value(), IntervalSweep):
        return _Ends([interval.start, interval.end])
    return list(override.sweep_iterator()) if override.is_discrete_sweep() else []


def jobs_of(values: Mapping[str, Sequence[Any]]) -> int | None:
    """The number of jobs; None if it is not known."""
    if any(isinstance(options, _Ends) for options in values.values()):
        return None
    return math.prod(map(len, values.values())) or None


def variants(cfg: DictConfig, values: Mapping[str, Sequence[Any]]) -> Iterator[DictConfig]:
    """The first job, and for each further value of a swept key the first job with that value.

    Options of swept groups are left out: their values are the package's own.
    """
    yield cfg
    for key, options in values.items():
        first = OmegaConf.select(cfg, key)
        if key in cfg.hydra.runtime.choices or first is None:
            continue
        for option in (getattr(option, "text", option) for option in options):  # the text of a quoted one
            if option != first:
                variant = copy.deepcopy(cfg)
                OmegaConf.update(variant, key, option, force_add=True)
                yield variant
