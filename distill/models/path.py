"""Resolve a model's name to a folder, a GGUF file or a hub id, without importing torch."""

import importlib.util
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from distill.errors import UserError

PACKAGE_PREFIX = "package:"
# The hub's own rule: up to 96 letters, digits, -, _ and ., neither at the ends nor twice.
_HUB_ID = re.compile(r"(?!.*(--|\.\.))(\b[\w.-]{1,96}\b/)?\b[\w.-]{1,96}\b", re.ASCII)
T = TypeVar("T")


def first_found(spec: Any, key: str, find: Callable[[str], T]) -> T:
    """Call `find` on a name, or on each of several until one raises no UserError; return its result.

    Args:
        spec: a name or a list of names (not yet validated).
        key: the model's config key, for messages.
        find: finds a model by its name.

    Raises:
        UserError: `find` raised for all of them; the message joins all errors.
    """
    if isinstance(spec, str):
        return find(spec)
    if not isinstance(spec, Sequence):
        raise UserError(f"{key}={spec!r} is no model: give a hub id, a folder or a GGUF file")
    failures = []
    for one in spec:
        try:
            return find(one)
        except UserError as error:
            failures.append(str(error))
    raise UserError("; ".join(failures) or f"{key} is empty: give a hub id, a folder or a GGUF file")


def is_hub_id(spec: str) -> bool:
    """Whether a name has the form of a hub id; a folder of that name may exist."""
    return _HUB_ID.fullmatch(spec) is not None


def find_path(spec: Any, key: str) -> Path | None:
    """A model's folder in Hugging Face format or its GGUF file; None if the name is a hub id.

    Args:
        spec: a folder, a GGUF file, `package:NAME/PATH` or a hub id (not yet validated).
        key: the model's config key, for messages.

    Raises:
        UserError: there is no such folder or file, or it holds no model, and the name is not a valid hub id.
    """
    if not isinstance(spec, str) or not spec.strip():
        raise UserError(f"{key}={spec!r} is no model: give a hub id, a folder or a GGUF file")
    if len(spec) > 1000:
        raise UserError(f"{key}={spec[:60]}... is no model: it has {len(spec)} characters")
    path = _in_package(spec, key) if spec.startswith(PACKAGE_PREFIX) else Path(spec).expanduser()
    if path.is_dir():
        if (path / "config.json").is_file():
            return path
        if (path / "adapter_config.json").is_file():
            raise UserError(
                f"{key}={spec} holds a LoRA adapter alone: give the student/ beside it, or merge it first"
            )
        ggufs = sorted(path.glob("*.gguf"))
        if len(ggufs) != 1:
            raise UserError(f"{key}={spec}: the folder holds no config.json (and not exactly one GGUF file)")
        path = ggufs[0]
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"{key}={spec}: there is no such GGUF file")
        return path
    if path.is_file():
        raise UserError(f"{key}={spec} is a file, but no GGUF file: give the model's folder")
    if not is_hub_id(spec):
        raise UserError(f"{key}={spec}: there is no such folder, and it is no hub id (owner/name)")
    return None


def _in_package(spec: str, key: str) -> Path:
    package, _, inside = spec.removeprefix(PACKAGE_PREFIX).partition("/")
    if not package.isidentifier() or not inside:
        raise UserError(f"{key}={spec}: write package:NAME/PATH, with the package's import name")
    # find_spec does not import a top-level package.
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise UserError(
            f"{key}={spec}: the package is not installed (pip install {package.replace('_', '-')})"
        )
    path = Path(next(iter(found.submodule_search_locations))) / inside
    if not path.exists():
        raise UserError(f"{key}={spec}: the installed package {package} has no {inside}")
    return path
