"""Check that the package of a logger is installed, before anything expensive is imported."""

import importlib.util
from collections.abc import Iterable

from distill.errors import UserError

# By logger: modules, one of which is needed.
_PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "mlflow": ("mlflow",)}


def check_logger(name: str) -> None:
    """Check that the package of a logger of `conf/logger/` is installed.

    Raises:
        UserError: it is not; names the command that installs it.
    """
    modules = _PACKAGES.get(name, ())
    if modules and not any(importlib.util.find_spec(module) for module in modules):
        raise UserError(
            f'logger={name} needs {modules[0]}, which is not installed: pip install "distill[{name}]"'
        )


def check_loggers(names: Iterable[object] | None) -> None:
    """Check the packages of several loggers, as `check_logger`."""
    for name in names or ():
        check_logger(str(name))
