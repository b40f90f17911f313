"""Import Lightning's and transformers' heaviest parts without optional packages that they look for."""

import re
import sys
from typing import Any

# torchmetrics, which Lightning imports, imports scipy.signal, matplotlib.pyplot and models of transformers
# wherever they are installed, and transformers' losses import scipy.optimize: seconds, before a run's first
# step. Nothing here uses those metrics and losses.
_NOT_NEEDED = frozenset(
    {"scipy", "matplotlib", "SciencePlots", "transformers", "torchvision", "nltk", "regex"}
)


def import_without_extras() -> None:
    """Import torchmetrics and transformers' losses as if packages that they can do without were missing.

    For commands, whose process is theirs alone: metrics and losses that need such a package would say that it
    is missing. Nothing happens where they are imported already.
    """
    if "torchmetrics" not in sys.modules:
        _import_torchmetrics()
    if "transformers.loss.loss_utils" not in sys.modules:
        _import_losses()


def _import_torchmetrics() -> None:
    from lightning_utilities.core import imports

    requirement: Any = imports.RequirementCache
    kept = requirement.__bool__, imports.package_available
    try:
        requirement.__bool__ = lambda own: not _is_needless(own.requirement or own.module) and kept[0](own)
        imports.package_available = lambda name: not _is_needless(name) and kept[1](name)
        import torchmetrics  # noqa: F401  for its effect
    finally:
        requirement.__bool__, imports.package_available = kept


def _import_losses() -> None:
    from transformers import utils

    kept = utils.is_scipy_available
    try:
        utils.is_scipy_available = lambda: False
        import transformers.loss.loss_utils  # noqa: F401  for its effect
    finally:
        utils.is_scipy_available = kept


def _is_needless(wanted: str) -> bool:
    """Whether a requirement such as `scipy>=1.0` or a module's name is of a package that is not needed."""
    return re.split(r"[^\w-]", wanted, maxsplit=1)[0] in _NOT_NEEDED
