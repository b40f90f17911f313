"""OmegaConf resolvers of the configuration: `${scaled:...}` and `${chosen_lr:...}`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from distill.errors import UserError

CHOICE = "learning_rates.yaml"


def register() -> None:
    """Register the resolvers with OmegaConf."""
    OmegaConf.register_new_resolver("scaled", scaled, replace=True)
    OmegaConf.register_new_resolver("chosen_lr", chosen_lr, replace=True)


def scaled(amount: float, scale: float) -> int:
    """An amount times a scale, rounded, at least 1.

    Raises:
        UserError: the scale is not a positive number.
    """
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not scale > 0:
        raise UserError(f"scale={scale!r} must be a positive number")
    return max(1, round(amount * scale))


def chosen_lr(chosen: Mapping[str, float], folder: str | None, loss: str) -> float:
    """The learning rate chosen for a loss.

    Args:
        chosen: learning rates by loss.
        folder: of a sweep with `experiment=tune`. If given, the learning rates that `python -m distill.tune`
            wrote there are used instead of `chosen`.
        loss: name of the loss preset.

    Raises:
        UserError: the loss has no learning rate, or the folder has no file of them.
    """
    place = "lrs"
    if folder is not None:
        path = Path(folder) / CHOICE
        if not path.is_file():
            raise UserError(
                f"lr_from={folder} holds no {CHOICE}: python -m distill.tune {folder} makes it of a finished "
                f"sweep with experiment=tune"
            )
        choice: Any = OmegaConf.to_container(OmegaConf.load(path))
        chosen, place = choice["lrs"], str(path)
    if chosen.get(loss) is None:
        raise UserError(
            f"{place} has no learning rate of loss={loss} (of {', '.join(map(str, chosen))}): tune it by the "
            f"same grid, or set optimizer.lr"
        )
    return float(chosen[loss])
