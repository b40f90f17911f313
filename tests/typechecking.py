"""Checks of the types and shapes of calls in the package, from the import of this module on.

They are beartype's, called by jaxtyping, which can turn them off. Checked calls take twice as long. So the
checks are on in the first case of each quick test and off elsewhere: other cases and slow tests call the same
functions. A function's checks are made when it is first called with them on: those of all functions take
seconds, in each process. TYPE_CHECKS=off in the environment leaves them out, for processes of tests."""

import functools
import inspect
import os
from pathlib import Path
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

checker = beartype(conf=BeartypeConf(is_pep484_tower=True))  # accepts an int for a float

_ROOT = Path(__file__).resolve().parents[1]
_wanted = True


def check_types(wanted: bool) -> None:
    """Turn the checks on or off for the calls that follow."""
    global _wanted
    _wanted = wanted


def _jaxtyped_at_its_first_call(thing: Any = None, *, typechecker: Any) -> Any:
    """As jaxtyping.jaxtyped, which calls this for what lies in classes, properties and the like."""
    if thing is None:
        return functools.partial(_jaxtyped_at_its_first_call, typechecker=typechecker)
    if not inspect.isfunction(thing):
        return _jaxtyped(thing, typechecker=typechecker)
    checked = None

    @functools.wraps(thing)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if not _wanted:
            return thing(*args, **kwargs)
        nonlocal checked
        if checked is None:
            checked = _jaxtyped(thing, typechecker=typechecker)
        return checked(*args, **kwargs)

    return call


_jaxtyped = jaxtyping.jaxtyped

if os.environ.get("TYPE_CHECKS") != "off":
    for module in (jaxtyping, jaxtyping._decorator):
        setattr(module, "jaxtyped", _jaxtyped_at_its_first_call)  # noqa: B010  decorates what is imported
    modules = (path.relative_to(_ROOT).with_suffix("") for path in (_ROOT / "distill").rglob("*.py"))
    # Hooks take a package's name for all that is in it.
    jaxtyping.install_import_hook(
        sorted(".".join(module.parts) for module in modules if module.name != "__init__"),
        "typechecking.checker",
    )
