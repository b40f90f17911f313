"""Check the configuration's values before torch is imported, against the type hints of what takes them.

Importing the losses and recipes takes seconds, because they import torch. Reading the hints from the source
takes milliseconds, so that a mistyped value is reported at once.
"""

import ast
import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from distill.config.instantiate import build, plain
from distill.config.kinds import WORDS, referred
from distill.config.moved import new_name
from distill.errors import UserError

_PACKAGE = Path(__file__).resolve().parents[1]
_SCALARS: dict[str, type] = {"int": int, "float": float, "bool": bool, "str": str}
_WORDS = {**WORDS, list: "a list", dict: "a section of keys"}
# Classes of the configuration that import no torch.
_WITHOUT_TORCH = (
    "distill.generation.sampling.Sampling",
    "distill.generation.sampling.StudentRollouts",
    "distill.training.schedule.Schedule",
)


@dataclass(frozen=True)
class Hint:
    """What a parameter accepts: scalar types, named choices, lists, sections of keys, and perhaps null."""

    types: frozenset[type] = frozenset()
    choices: tuple[object, ...] = ()
    null: bool = False

    def accepts(self, value: object) -> bool:
        if value is None:
            return self.null
        if isinstance(value, dict | list):
            return type(value) in self.types
        if isinstance(value, bool):
            return bool in self.types
        if isinstance(value, int):
            return bool(self.types & {int, float}) or value in self.choices
        if isinstance(value, float):
            return float in self.types and not math.isnan(value)
        return isinstance(value, str) and (str in self.types or value in self.choices)

    def __or__(self, other: "Hint") -> "Hint":
        return Hint(self.types | other.types, self.choices + other.choices, self.null or other.null)

    @property
    def refusal(self) -> str:
        """What a message says behind a value that is not accepted."""
        words = [_WORDS[kind] for kind in (*_SCALARS.values(), list, dict) if kind in self.types]
        if not words:
            return f"is not one of {', '.join(map(str, self.choices))}{', null' * self.null}"
        return f"must be {' or '.join([*words, *map(str, self.choices), *['null'] * self.null])}"


_COLLECTIONS = {
    name: Hint(types=frozenset({kind}))
    for kind, names in (
        (list, ("list", "tuple", "Sequence", "Iterable")),
        (dict, ("dict", "Mapping", "Callable")),
    )
    for name in names
}


def check_values(cfg: DictConfig, keys: Iterable[str] | None = None) -> None:
    """Check the values of every node with a `_target_` of this package.

    A value is checked if its hint is of scalars, choices, lists and sections, whose content is not looked at.
    Classes that need no torch are made, which also checks ranges.

    Args:
        cfg: composed, without unresolvable interpolations.
        keys: the keys that the user set, to save the time that the package's own files take; None: all.

    Raises:
        UserError: a value does not fit; names its key, or the key that it refers to.
    """
    wanted = None if keys is None else set(keys)
    for place, node in _nodes(cfg, ""):
        raw: Any = OmegaConf.to_container(node, resolve=False)
        names = {key: _name_of(value, f"{place}.{key}") for key, value in raw.items()}
        if wanted is not None and place not in wanted:
            names = {key: name for key, name in names.items() if name in wanted or f"{place}.{key}" in wanted}
        if not names:
            continue
        target = new_name(str(node["_target_"]))
        known = hints(target)
        for key, name in names.items():
            hint = known.get(key)
            if hint is not None and not hint.accepts(value := plain(node[key])):
                raise UserError(f"{name}={value!r} {hint.refusal}")
        if target in _WITHOUT_TORCH:
            build(node, place)


def _name_of(value: object, key: str) -> str:
    """The key that the user sets: the one that a value refers to, as `${data.samples}` does, or its own."""
    return (referred(value) if isinstance(value, str) else None) or key


def _nodes(node: DictConfig, place: str) -> Iterator[tuple[str, DictConfig]]:
    """The nodes with a `_target_`, each with its key; references to other nodes are left out."""
    for key in node:
        child = node._get_node(key)
        if key == "hydra" or not isinstance(child, DictConfig):
            continue
        if child._is_none() or child._is_interpolation() or child._is_missing():
            continue
        below = f"{place}.{key}" if place else str(key)
        if isinstance(child.get("_target_"), str):
            yield below, child
        yield from _nodes(child, below)


def hints(target: str) -> Mapping[str, Hint]:
    """The hints of a function's or class's parameters, by name; those that are not plain are left out.

    Args:
        target: full name, such as `distill.training.schedule.Schedule`; of another package: no hints.
    """
    module, _, name = target.rpartition(".")
    scope = _scope(module)
    return {} if scope is None else scope.parameters(name)


@dataclass(frozen=True)
class _Scope:
    """A module's top-level definitions, read from its source."""

    definitions: dict[str, ast.AST] = field(default_factory=dict)
    imported: dict[str, str] = field(default_factory=dict)  # the module of each imported name

    def parameters(self, name: str) -> dict[str, Hint]:
        found = self.definitions.get(name)
        if found is None and (module := _scope(self.imported.get(name, ""))):
            return module.parameters(name)
        annotated: list[tuple[str, ast.expr | None]] = []
        inherited: dict[str, Hint] = {}
        if isinstance(found, ast.FunctionDef):
            every = (*found.args.posonlyargs, *found.args.args, *found.args.kwonlyargs)
            annotated = [(one.arg, one.annotation) for one in every]
        elif isinstance(found, ast.ClassDef):
            own = next(
                (one for one in found.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"),
                None,
            )
            if own is not None:
                annotated = [(one.arg, one.annotation) for one in (*own.args.args, *own.args.kwonlyargs)]
            else:  # a dataclass
                for base in found.bases:
                    inherited |= self.parameters(base.id) if isinstance(base, ast.Name) else {}
                annotated = [
                    (one.target.id, one.annotation)
                    for one in found.body
                    if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
                ]
        read = {parameter: self.hint(node) for parameter, node in annotated}
        return inherited | {parameter: hint for parameter, hint in read.items() if hint is not None}

    def hint(self, node: ast.AST | None) -> Hint | None:
        """A type hint's meaning; None if it is none that `Hint` can tell."""
        match node:
            case ast.Constant(value=None):
                return Hint(null=True)
            case ast.Name(id=name) if name in _SCALARS:
                return Hint(types=frozenset({_SCALARS[name]}))
            case ast.Name(id=name) if name in self.definitions or name in self.imported:
                scope = self if name in self.definitions else _scope(self.imported[name])
                return scope.hint(scope.definitions.get(name)) if scope else _COLLECTIONS.get(name)
            case ast.ClassDef():  # one of this package's, which a section builds
                return Hint(types=frozenset({dict}))
            case ast.Name(id=name) | ast.Subscript(value=ast.Name(id=name)) if name in _COLLECTIONS:
                return _COLLECTIONS[name]
            case ast.Subscript(value=ast.Name(id="Literal"), slice=chosen):
                every = chosen.elts if isinstance(chosen, ast.Tuple) else [chosen]
                return Hint(choices=tuple(one.value for one in every if isinstance(one, ast.Constant)))
            case ast.BinOp(left=left, op=ast.BitOr(), right=right):
                one, other = self.hint(left), self.hint(right)
                return one | other if one is not None and other is not None else None
        return None


@functools.cache
def _scope(module: str) -> _Scope | None:
    """A module of this package; None for any other."""
    package, _, inside = module.partition(".")
    path = _PACKAGE.joinpath(*inside.split(".")).with_suffix(".py")
    if package != "distill" or not inside or not path.is_file():
        return None
    scope = _Scope()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                scope.definitions[name] = node
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                scope.definitions[name] = value
            case ast.ImportFrom(module=str(source), names=names):
                scope.imported.update({one.asname or one.name: source for one in names})
    return scope
