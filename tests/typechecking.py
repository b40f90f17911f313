"""Checks of the types and shapes of calls in the package, from the import of this module on.

They are beartype's, called by jaxtyping, which can turn them off. Checked calls take twice as long. So the
checks are on in the first case of each quick test and off elsewhere: other cases and slow tests call the same
functions. TYPE_CHECKS=off in the environment leaves them out, for processes that tests start."""

import os
from pathlib import Path

from beartype import BeartypeConf, beartype
from jaxtyping import config, install_import_hook

checker = beartype(conf=BeartypeConf(is_pep484_tower=True))  # accepts an int for a float

_ROOT = Path(__file__).resolve().parents[1]


def check_types(wanted: bool) -> None:
    """Turn the checks on or off for the calls that follow."""
    config.update("jaxtyping_disable", not wanted)


if os.environ.get("TYPE_CHECKS") != "off":
    modules = (path.relative_to(_ROOT).with_suffix("") for path in (_ROOT / "distill").rglob("*.py"))
    # Hooks take a package's name for all that is in it.
    install_import_hook(
        sorted(".".join(module.parts) for module in modules if module.name != "__init__"),
        "typechecking.checker",
    )
