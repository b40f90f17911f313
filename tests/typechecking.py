"""Type checks of calls in the package, from the import of this module on: shapes of tensors by jaxtyping, and
all else by beartype.

jaxtyping binds the arguments of every call, which takes far longer than beartype's check. Modules without
shapes are therefore checked by beartype alone. TYPE_CHECKS=off in the environment leaves all checks out: they
take a third of the time of the slow tests, which run little that the quick ones do not."""

import os
from pathlib import Path

from beartype import BeartypeConf, beartype
from beartype.claw import beartype_packages
from jaxtyping import config, install_import_hook

checker = beartype(conf=BeartypeConf(is_pep484_tower=True))  # accepts an int for a float

_ROOT = Path(__file__).resolve().parents[1]


def _check_types() -> None:
    with_shapes, without = [], []
    for path in sorted((_ROOT / "distill").rglob("*.py")):
        module = ".".join(path.relative_to(_ROOT).with_suffix("").parts)
        if path.stem == "__init__":  # hooks take a package's name for all that is in it
            continue
        shapes = "jaxtyping" in path.read_text(encoding="utf-8")
        (with_shapes if shapes else without).append(module)
    install_import_hook(with_shapes, "typechecking.checker")
    beartype_packages(without, conf=BeartypeConf(is_pep484_tower=True, claw_is_pep526=False))


def check_shapes(wanted: bool) -> None:
    """Turn the checks of tensors' shapes and types on or off for the calls that follow."""
    config.update("jaxtyping_disable", not wanted)


if os.environ.get("TYPE_CHECKS") != "off":
    _check_types()
