"""Tests of the layering of `distill/`: each folder imports only earlier ones, without cycles."""

import ast
import functools
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "distill"
ORDER = (
    *("errors", "statistics", "io", "config", "data", "models", "losses", "generation", "runs", "tiny"),
    *(
        "benchmarks",
        "teacher",
        "objective",
        "evaluation",
        "training",
        "planning",
        "curation",
        "analysis",
        "exporting",
        "judge",
        "likeness",
        "advice",
        "pruning",
        "report",
        "bench",
    ),
)
COMMANDS = {path.stem for path in PACKAGE.glob("*.py")} - {*ORDER, "__init__"} | {"bench"}


def module_name(path: Path) -> str:
    parts = ["distill", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def imports(text: str) -> set[str]:
    """Every module of ours that a module imports, at any place, functions and type checking included."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in inner}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.partition(".")[0] == "distill"}


@functools.cache  # not when tests are collected: that takes every process a second
def graph() -> dict[str, set[str]]:
    """Of each module of ours those that it imports."""
    return {
        name: imports(path.read_text(encoding="utf-8")) - {name, "distill"} for name, path in MODULES.items()
    }


def folder(module: str) -> str:
    """The place in the order; a folder's `__main__` is a command, whatever the folder holds."""
    return "__main__" if module.endswith(".__main__") else module.split(".")[1]


def against_the_order(imported_by: dict[str, set[str]]) -> list[str]:
    """Imports of what stands behind; commands stand behind everything and import no command."""
    rank = {name: place for place, name in enumerate(ORDER)}
    found = []
    for module, imported in imported_by.items():
        if module == "distill":
            continue
        own = folder(module)
        for other in imported:
            same = folder(other) == own != "__main__"
            if not same and rank.get(folder(other), len(ORDER)) >= rank.get(own, len(ORDER)):
                found.append(f"{module} imports {other}")
    return found


def cycle(imported_by: dict[str, set[str]]) -> list[str]:
    """A way from a module back to itself; empty where there is none."""
    done: set[str] = set()

    def walk(module: str, way: list[str]) -> list[str]:
        if module in way:
            return [*way[way.index(module) :], module]
        if module in done or module not in imported_by:
            return []
        for other in sorted(imported_by[module]):
            if found := walk(other, [*way, module]):
                return found
        done.add(module)
        return []

    return next((found for module in sorted(imported_by) if (found := walk(module, []))), [])


def test_every_folder_has_its_place_in_the_order() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and list(path.glob("*.py"))}
    assert folders - {*ORDER, "bench"} == set()
    assert len(list(PACKAGE.glob("*.py"))) <= 24


def test_no_import_goes_against_the_order() -> None:
    assert against_the_order(graph()) == []


def test_no_import_goes_round() -> None:
    assert cycle(graph()) == []


def test_every_module_that_is_imported_is_there() -> None:
    assert set().union(*graph().values()) - MODULES.keys() == set()


@pytest.mark.parametrize(
    ("imported_by", "wrong"),
    [
        ({"distill.data.batch": {"distill.training.run"}}, True),
        ({"distill.training.run": {"distill.data.batch"}}, False),
        ({"distill.runs.read": {"distill.score"}}, True),
        ({"distill.score": {"distill.curate"}}, True),
    ],
)
def test_the_walk_sees_what_is_wrong(imported_by: dict[str, set[str]], wrong: bool) -> None:
    assert bool(against_the_order(imported_by)) == wrong


def test_the_walk_sees_a_cycle() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
