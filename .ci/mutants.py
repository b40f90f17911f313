"""The list of mutants, and the source that they are put into (what for: `mutation.py`)."""

import ast
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

Named = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class NotApplied(Exception):
    """An entry that does not fit the code as it is."""


@dataclass(frozen=True)
class Mutant:
    """An entry of the list: a plausible bug, and where it is put.

    Attributes:
        function: by its qualified name, such as `Schedule.factor`.
        old: text that is there exactly once, decorators included.
        new: what stands in its place.
        why: what is wrong with it, in words.
        hint: part of the file's path, where several files have a function of this name.
        survives: no test is known to notice it.
    """

    function: str
    old: str
    new: str
    why: str
    hint: str = ""
    survives: bool = False

    def __str__(self) -> str:
        return f"{self.function}: {self.why}"

    @property
    def key(self) -> str:
        """What a result is kept under: it goes with the bug, not with what is said of it."""
        told = json.dumps([self.function, self.hint, self.old, self.new])
        return hashlib.sha256(told.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Function:
    """Where a function's source lies.

    Attributes:
        path: its file, from the root.
        name: its qualified name.
        first: line, of its decorators where it has some.
        last: line.
        body: line of its first statement, behind the docstring; None: none that has its line for itself.
    """

    path: str
    name: str
    first: int
    last: int
    body: int | None

    def __str__(self) -> str:
        return f"{self.path}::{self.name}"


def _tree(source: str) -> str:
    """A function's syntax tree; in a block of its own, as a method is indented."""
    inside = source[:1].isspace()
    return ast.dump(ast.parse(f"if True:\n{source}" if inside else source))


@dataclass(frozen=True)
class Package:
    """A package's files and all their functions, methods and nested ones too."""

    files: dict[str, str]
    functions: tuple[Function, ...]

    @classmethod
    def read(cls, folder: Path) -> "Package":
        files = {
            path.relative_to(folder.parent).as_posix(): path.read_text(encoding="utf-8")
            for path in sorted(folder.rglob("*.py"))
        }
        found = (_functions(path, ast.parse(text)) for path, text in files.items())
        return cls(files, tuple(one for part in found for one in part))

    def apply(self, mutant: Mutant) -> tuple[Function, str]:
        """The function that is meant, and its file's text with the bug in it.

        Raises:
            NotApplied: the entry does not fit; says why.
        """
        found = [one for one in self.functions if one.name == mutant.function and mutant.hint in one.path]
        if len(found) != 1:
            places = ", ".join(map(str, found)) or "there is none"
            raise NotApplied(f"not one function of this name and hint={mutant.hint!r}, but: {places}")
        (at,) = found
        text = self.files[at.path]
        lines = text.splitlines(keepends=True)
        source = "".join(lines[at.first - 1 : at.last])
        if (count := source.count(mutant.old)) != 1:
            raise NotApplied(f"{mutant.old!r} is {count} times in {at}, and not once")
        changed = source.replace(mutant.old, mutant.new)
        lines[at.first - 1 : at.last] = [changed]
        mutated = "".join(lines)
        try:
            if _tree(changed) == _tree(source):
                raise NotApplied(f"{at} is the same with it")
        except SyntaxError as error:
            raise NotApplied(f"{at} is no Python with it: {error}") from error
        return at, mutated

    def telling(self, path: str, call: str) -> str:
        """A file whose functions call `call` with their name, as soon as they are entered."""
        lines = self.files[path].splitlines(keepends=True)
        inside = [(one.body, one) for one in self.functions if one.path == path and one.body is not None]
        for body, one in sorted(
            inside, key=lambda pair: -pair[0]
        ):  # from the end: lines above keep their place
            first = lines[body - 1]
            indent = first[: len(first) - len(first.lstrip())]
            lines.insert(body - 1, f"{indent}{call}({str(one)!r})\n")
        return "".join(lines)


def _functions(path: str, node: ast.AST, prefix: str = "") -> list[Function]:
    found = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            name, last = f"{prefix}{child.name}", child.end_lineno or child.lineno
            found.append(Function(path, name, _first_line(child), last, _body(child.body, child.lineno)))
        found += _functions(path, child, f"{prefix}{child.name}." if isinstance(child, Named) else prefix)
    return found


def _body(statements: Sequence[ast.stmt], above: int) -> int | None:
    first = statements[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        statements, above = statements[1:], first.end_lineno or first.lineno
    line = _first_line(statements[0]) if statements else above
    return line if line > above else None


def _first_line(node: ast.stmt) -> int:
    return min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", ()))])
