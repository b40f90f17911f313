"""Check the kinds of configured arguments: against the annotations of what they are given to."""

import collections.abc
import inspect
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Union

import hydra.utils
from omegaconf import DictConfig, ListConfig, Node, OmegaConf

from distill.errors import UserError

_OURS = "distill."  # what other packages annotate is often only a part of what they take
WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    type(None): "null",
}
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")
_LISTS = (list, tuple, set, frozenset, collections.abc.Sequence, collections.abc.Iterable)
_MAPPINGS = (dict, collections.abc.Mapping)


def check_kinds(node: Any, place: str) -> None:
    """Check that the arguments of all targets in a node are of the kinds that their annotations name.

    Arguments that are themselves built, and those of other packages' targets, are not compared.

    Args:
        node: of the configuration, with a `_target_` at any depth.
        place: key of the node, for messages.

    Raises:
        UserError: an argument is of another kind; the message names its key, its value and the kind.
    """
    values = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    _check(values, node, place)


def _check(values: Any, node: Any, place: str) -> None:
    """Check plain values; `node` is what they were resolved from."""
    if not isinstance(values, dict | list):
        return
    hints = _annotations(values.get("_target_")) if isinstance(values, dict) else {}
    hints |= dict.fromkeys(("_partial_", "_recursive_"), (bool, None))  # Hydra's own
    for name, value in values.items() if isinstance(values, dict) else enumerate(values):
        child = node._get_node(name) if isinstance(node, DictConfig | ListConfig) else None
        _check(value, child, f"{place}.{name}")
        if name not in hints or (isinstance(value, dict) and "_target_" in value):
            continue
        annotation, default = hints[name]
        if not _fits(value, annotation) and not (value is None and default is None):
            key = _key(child, f"{place}.{name}")
            kinds = " or ".join(dict.fromkeys(_in_words(annotation)))
            raise UserError(f"{key}={shown(value)} must be {kinds}")


def _key(node: Any, place: str) -> str:
    """The key where a value is set: the one that the node refers to, or its own."""
    if not isinstance(node, Node):
        return place
    return referred(str(node._value())) or str(node._get_full_key(None))


def referred(value: str) -> str | None:
    """The key that a value such as `${data.samples}` refers to; None: it is no reference alone."""
    found = _REFERENCE.fullmatch(value)
    return found[1] if found else None


def shown(value: Any) -> str:
    """A value as it is written in YAML, shortened for a message."""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _annotations(target: Any) -> dict[str, tuple[Any, Any]]:
    """Annotation and default of every parameter of a target of ours; none of other targets."""
    if not isinstance(target, str) or not target.startswith(_OURS):
        return {}
    try:
        found = hydra.utils.get_object(target)
        hints = typing.get_type_hints(found.__init__ if inspect.isclass(found) else found)
        parameters = inspect.signature(found).parameters
    except Exception:  # names that exist for type checkers alone; a missing target is reported elsewhere
        return {}
    return {name: (hints[name], own.default) for name, own in parameters.items() if name in hints}


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a plain value is of the annotated kind; true where that cannot be told."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in arguments)
    if origin is Literal:
        return any(value == one and type(value) is type(one) for one in arguments)
    if origin is collections.abc.Callable or annotation is collections.abc.Callable:
        return isinstance(value, Mapping | list)
    kind = origin or annotation
    if kind in _LISTS:
        return isinstance(value, list) and all(_fits(one, arguments[0]) for one in value if arguments)
    if kind in _MAPPINGS:
        inner = arguments[1:] or (Any,)
        return isinstance(value, Mapping) and all(_fits(one, inner[0]) for one in value.values())
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if kind is Path:
        return isinstance(value, str)
    if kind in WORDS:
        return isinstance(value, kind)
    if inspect.isclass(kind) and kind.__module__.startswith(_OURS):
        return isinstance(value, Mapping)  # a section, which builds one
    return True


def _in_words(annotation: Any) -> Iterator[str]:
    """The kinds that an annotation allows, for a message."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        for one in arguments:
            yield from _in_words(one)
    elif origin is Literal:
        yield from map(str, arguments)
    elif (origin or annotation) in _LISTS:
        yield "a list"
    elif (origin or annotation) in WORDS:
        yield WORDS[origin or annotation]
    else:
        yield "a section of keys"


def select(values: Mapping[str, Any], key: str, absent: Any) -> Any:
    """The value at a full key of a resolved configuration; `absent` if there is no such key."""
    node: Any = values
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return absent
        node = node[part]
    return node


def check_text(values: Mapping[str, Any], keys: Mapping[str, bool]) -> None:
    """Check that keys of a resolved configuration hold text; a number counts as text.

    Args:
        values: the configuration.
        keys: full keys, and whether each may be null. Absent keys are not looked at.

    Raises:
        UserError: a value is something else.
    """
    for key, may_be_null in keys.items():
        node = select(values, key, absent="")
        text = isinstance(node, str | int) or (isinstance(node, float) and math.isfinite(node))
        if not (text and not isinstance(node, bool)) and not (may_be_null and node is None):
            raise UserError(f"{key}={shown(node)} must be text{' or null' if may_be_null else ''}")
