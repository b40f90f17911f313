"""Hydra's plugins for sweeps: launchers that run jobs elsewhere, and sweepers that choose values."""

import contextlib
import re
import sys
from collections.abc import Iterable, Iterator, Sequence

from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import DictConfig

from distill.config.console import at_end, failed_jobs
from distill.errors import UserError, first_line

# By option of hydra/launcher or hydra/sweeper: what installs it.
_INSTALLED_BY = {
    "joblib": '"distill[sweeps]"',
    "submitit_local": '"distill[sweeps]"',
    "submitit_slurm": '"distill[sweeps]"',
    "ray": "hydra-ray-launcher",
    "optuna": '"distill[sweeps]"',
    "sampler": '"distill[sweeps]"',  # hydra/sweeper/sampler, of optuna
}
_BASIC = "hydra._internal."  # the module of Hydra's own launcher and sweeper
_ENGINES = ("submitit", "joblib", "ray", "optuna", "concurrent")
_OPTUNA = {"hydra.sweeper.direction": "maximize", "hydra.sweeper.max_failure_rate": "1.0"}
_SEED = {"hydra.sweeper.sampler.seed": "0"}


def missing_plugin(error: Exception) -> str | None:
    """A sentence about a launcher or sweeper that is not installed or does not exist, if Hydra says so."""
    found = re.search(r"Could not find 'hydra/(launcher|sweeper)/(\w+)", str(error))
    if found is None:
        return None
    group, name = found.groups()
    if name in _INSTALLED_BY:
        what = f"hydra/{group}={name}" if name != "sampler" else "hydra/sweeper=optuna"
        return f"{what} needs a plugin that is not installed: pip install {_INSTALLED_BY[name]}"
    known = ("optuna",) if group == "sweeper" else ("joblib", "submitit_local", "submitit_slurm", "ray")
    return f"hydra/{group}={name}: there is no such {group} (options: basic, {', '.join(known)})"


def own_sweeper(cfg: DictConfig) -> bool:
    """Whether Hydra's own sweeper runs the sweep, which runs each combination of the listed values."""
    return str(cfg.hydra.sweeper._target_).startswith(_BASIC)


def check_intervals(cfg: DictConfig, overrides: Iterable[Override]) -> None:
    """Reject intervals if the sweeper takes listed values only.

    Raises:
        UserError: there is one; names both remedies.
    """
    for override in overrides:
        if isinstance(override.value(), IntervalSweep) and own_sweeper(cfg):
            raise UserError(
                f"{override.input_line}: an interval is for a sweeper that chooses values itself: add "
                f"hydra/sweeper=optuna, or list the values, {override.key_or_group}=a,b,c"
            )


def trials(cfg: DictConfig) -> int | None:
    """The number of jobs of a sweeper that chooses values itself; None if it does not say."""
    return cfg.hydra.sweeper.get("n_trials")


def sweeper_words(cfg: DictConfig, arguments: Sequence[str]) -> list[str]:
    """Overrides of optuna's own defaults, for the keys that the command line leaves out.

    A run gives its accuracy, which optuna would minimize. A failed job ends no study. The sampler is seeded,
    because the same command must ask for the same trials: those that are finished are passed over.
    """
    if "hydra_optuna_sweeper" not in str(cfg.hydra.sweeper._target_):
        return []
    given = {word.lstrip("+").partition("=")[0] for word in arguments}
    defaults = {**_OPTUNA, **(_SEED if "seed" in (cfg.hydra.sweeper.get("sampler") or {}) else {})}
    return [f"{key}={value}" for key, value in defaults.items() if key not in given]


@contextlib.contextmanager
def ended_early(cfg: DictConfig) -> Iterator[None]:
    """Context of a sweep: say in one sentence how another launcher or sweeper ended it early.

    A job's process that was killed, and a study without any finished trial, are exceptions of theirs.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or (
            own_sweeper(cfg) and str(cfg.hydra.launcher._target_).startswith(_BASIC)
        ):
            raise
        for say in at_end:
            say()
        if not (failed_jobs or type(error).__module__.startswith(_ENGINES)):
            raise
        count = [f"{len(failed_jobs)} of the sweep's jobs failed:", *failed_jobs] if failed_jobs else []
        ended = (
            f"error: the sweep ended early ({type(error).__name__}: {first_line(error)}): the same command, "
            f"with its hydra.sweep.dir, goes on"
        )
        sys.exit("\n".join([*count, ended]))
