"""Prepare the documentation for the site generator: `python docs/generate.py [outputs]`.

Copies the pages of `docs/` to `outputs/docs` and replaces every line `<!-- generated: NAME -->` by what
`GENERATED[NAME]` makes: the reference of the configuration from the comments in `conf/`, the table of losses,
the record columns, the Python API. Nothing generated is committed but the table of losses: making it takes
torch.
"""

import argparse
import ast
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
MARK = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
_NAMED = 8  # most options that are named beside a default
COMMANDS = {
    "train": "python train.py",
    "generate": "python -m distill.generate",
    "score": "python -m distill.score",
    "curate": "python -m distill.curate",
    "evaluate": "python -m distill.evaluate",
    "export": "python -m distill.export",
    "similarity": "python -m distill.similarity",
    "identity": "python -m distill.identity",
    "tips": "python -m distill.tips",
    "prune": "python -m distill.prune",
}
GROUPS = {
    "model": "The student and its teacher: hub ids, folders or GGUF files.",
    "data": "The problems, their prompt and the traces to learn from.",
    "loss": "The objective: rollouts, token loss and token weight.",
    "benchmark": "What the student is tested on. A list is possible: `benchmark=[gsm8k,svamp]`.",
    "trainer": "The device, and arguments of `lightning.Trainer`.",
    "logger": "Where metrics go. A list is possible: `logger=[wandb,csv]`.",
    "experiment": "Ready-made settings and sweeps.",
    "teacher_prompt": "What the teacher writes and is scored under; the files set `data.teacher_prompt`.",
    "engine": "What runs a model when it writes traces or answers.",
    "writer_engine": "What runs the model that writes tips; the keys of each are those of `engine`.",
    "judge": "A judge model that is asked beside the rules, in `similarity` and `identity`.",
    "curation": "Curation steps, run in the order of the list: `curation=[correct,deduplicate]`.",
}


# --- the configuration


@dataclass(frozen=True)
class Key:
    """A key that a user can set.

    Attributes:
        name: the whole key, with dots.
        default: as the file has it.
        comment: beside or above it.
    """

    name: str
    default: str
    comment: str


def description(text: str) -> str:
    """The comment that a file begins with, without Hydra's directive, as one paragraph."""
    return _paragraph(_header(text))


def keys_of(text: str, prefix: str = "") -> Iterator[Key]:
    """The keys of a YAML file, in their order, without Hydra's own and without those that no user sets.

    Args:
        text: of the file.
        prefix: put before every key, such as `data.`.
    """
    node = yaml.compose(text)
    if not isinstance(node, yaml.MappingNode):
        return
    lines = text.splitlines()
    yield from _keys(node, lines, prefix, top=True)


def _keys(node: yaml.MappingNode, lines: list[str], prefix: str, top: bool = False) -> Iterator[Key]:
    for key, value in node.value:
        name = str(key.value)
        if name.startswith("_") or (top and name in ("defaults", "hydra")):
            continue
        place = f"{prefix}{name}"
        comment = _comment(key, value, lines)
        if isinstance(value, yaml.MappingNode) and value.value:
            if comment:
                yield Key(place, "", comment)
            yield from _keys(value, lines, f"{place}.")
            continue
        yield Key(place, _default(value, lines), comment)


def _comment(key: yaml.Node, value: yaml.Node, lines: list[str]) -> str:
    row = key.start_mark.line
    # Behind the value where it ends on this line, else behind the key, as for a mapping and a block of text.
    same = value.start_mark.line == value.end_mark.line == row
    after = value.end_mark.column if same else key.end_mark.column + 1
    found = re.search(r"(?:^|\s)#\s?(.*)$", lines[row][after:])
    above: list[str] = []
    indent = " " * key.start_mark.column + "#"
    for line in reversed(lines[:row]):
        if not line.startswith(indent):
            break
        above.insert(0, line)
    if row == len(above):  # the file's header
        above = []
    return _paragraph([*above, *([f"# {found[1]}"] if found else [])])


def _default(value: yaml.Node, lines: list[str]) -> str:
    start, end = value.start_mark, value.end_mark
    if start.line != end.line:
        return "(text)"
    text = lines[start.line][start.column : end.column]
    return text if len(text) <= 60 else f"{text[:57]}..."


def _header(text: str) -> list[str]:
    lines: list[str] = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line)
    return lines


def _paragraph(comments: Iterable[str]) -> str:
    return " ".join(line.strip().lstrip("#").strip() for line in comments).strip()


def prefix_of(path: Path, conf: Path) -> str:
    """Where a file's keys lie: at the root for an entry and for `@package _global_`, else below its group."""
    if path.parent == conf or "# @package _global_" in path.read_text(encoding="utf-8"):
        return ""
    return f"{path.parent.relative_to(conf).as_posix().replace('/', '.')}."


def groups(conf: Path) -> dict[str, list[Path]]:
    """Every group's files."""
    folders = sorted(
        path for path in conf.iterdir() if path.is_dir() and path.name not in ("hydra", "shared")
    )
    return {folder.name: sorted(folder.glob("*.yaml")) for folder in folders}


def fragments(conf: Path) -> dict[Path, list[str]]:
    """Files that others include, each with the prefixes under which its keys end up."""
    found: dict[Path, set[str]] = {}
    for path in sorted(conf.rglob("*.yaml")):
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        for entry in content.get("defaults", []):
            if not isinstance(entry, str) or "@" not in entry:
                continue
            name, package = entry.split("@")
            file = (conf if name.startswith("/") else path.parent) / f"{name.strip('/')}.yaml"
            base = "" if package.startswith("_global_") else prefix_of(path, conf)
            inside = package.removeprefix("_global_").removeprefix("_here_").strip(".")
            found.setdefault(file, set()).add(f"{base}{inside}{'.' * bool(inside)}")
    return {file: sorted(prefixes) for file, prefixes in sorted(found.items())}


def config_reference(root: Path) -> str:
    """Every command's and every group's keys, with defaults and comments."""
    conf = root / "conf"
    shared = fragments(conf)
    parts: list[str] = []
    for name, command in COMMANDS.items():
        text = (conf / f"{name}.yaml").read_text(encoding="utf-8")
        parts += [f"## `{command}`", _first_sentence(description(text).split(": ", 1)[-1]), _defaults(text)]
        parts.append(_table([(key.name, _code(key.default), key.comment) for key in keys_of(text)]))
    for file, prefixes in shared.items():
        if "" in prefixes:
            users = [
                name
                for name in COMMANDS
                if f"{file.stem}@_here_" in (conf / f"{name}.yaml").read_text("utf-8")
            ]
            users += [
                f"`experiment={path.stem}`"
                for path in sorted((conf / "experiment").glob("*.yaml"))
                if f"{file.stem}@_global_" in path.read_text("utf-8")
            ]
            parts += [f"## Shared by {', '.join(users)}", *_fragment(file, [""])]
    for group, files in groups(conf).items():
        parts += [f"## `{group}=`", GROUPS[group], _options(files)]
        if group != "experiment":
            for file, prefixes in shared.items():  # first what all options have
                own = [prefix for prefix in prefixes if prefix.startswith(f"{group}.")]
                if own:
                    parts += _fragment(file, own)
            parts += ["What single options set:", _merged(files, conf, group)]
    return "\n\n".join(part for part in parts if part)


def _fragment(file: Path, prefixes: list[str]) -> list[str]:
    text = file.read_text(encoding="utf-8")
    shown = prefixes[0]
    rows = [(key.name, _code(key.default), key.comment) for key in keys_of(text, shown)]
    where = f" The same below {', '.join(f'`{other}`' for other in prefixes[1:])}." if prefixes[1:] else ""
    return [f"{description(text)}{where}", _table(rows)]


def _defaults(text: str) -> str:
    named = []
    for entry in yaml.safe_load(text)["defaults"]:
        if isinstance(entry, dict):
            ((group, option),) = entry.items()
            if not group.startswith("override"):
                chosen = f"[{','.join(option)}]" if isinstance(option, list) else option
                named.append(f"[`{group}={chosen}`](#{group})")
    return f"Groups and their defaults: {', '.join(named)}."


def _options(files: list[Path]) -> str:
    rows = [(f"`{path.stem}`", description(path.read_text(encoding="utf-8"))) for path in files]
    return "\n".join(["| option | what it is |", "|---|---|", *(f"| {a} | {_cell(b)} |" for a, b in rows)])


def _merged(files: list[Path], conf: Path, group: str) -> str:
    """Keys of all options of a group; one that several have is one row."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for path in files:
        prefix = prefix_of(path, conf)
        for key in keys_of(path.read_text(encoding="utf-8"), prefix):
            name = key.name
            if group == "benchmark":  # each has its keys below its own name
                name = re.sub(rf"^benchmark\.{re.escape(path.stem)}\b", "benchmark.NAME", name)
            if not name.startswith(f"{group}.recipe."):
                rows.setdefault((name, key.comment), {})[path.stem] = key.default
    return _table(
        [(name, _by_option(options, len(files)), comment) for (name, comment), options in rows.items()]
    )


def _by_option(defaults: dict[str, str], files: int) -> str:
    """The defaults of a key that several options have."""
    by_value: dict[str, list[str]] = {}
    for option, value in defaults.items():
        by_value.setdefault(value, []).append(option)
    if len(by_value) == 1 and len(defaults) == files:
        return _code(next(iter(by_value)))
    shown = sorted(by_value.items(), key=lambda item: -len(item[1]))
    named = [("most" if len(options) > _NAMED else ", ".join(options), value) for value, options in shown]
    return "; ".join(f"{options}: {_code(value)}" for options, value in named)


def _first_sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _table(rows: list[tuple[str, str, str]]) -> str:
    if not rows:
        return ""
    lines = ["| key | default | meaning |", "|---|---|---|"]
    lines += [
        f"| `{name}` | {default.replace('|', chr(92) + '|')} | {_cell(comment)} |"
        for name, default, comment in rows
    ]
    return "\n".join(lines)


# --- from the code


def methods_table(root: Path) -> str:
    """All presets of `conf/loss`, from what they build."""
    from distill.presets import presets_table

    return presets_table(root / "conf")


def record_columns(root: Path) -> str:
    """The columns of a trace set."""
    for path in sorted((root / "distill").rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if (
                isinstance(node, ast.AnnAssign)
                and isinstance(node.target, ast.Name)
                and node.target.id == "COLUMNS"
            ):
                columns: dict[str, tuple[Any, str]] = ast.literal_eval(node.value) if node.value else {}
                lines = ["| column | type | what it holds |", "|---|---|---|"]
                lines += [
                    f"| `{name}` | {_kind(kind)} | {_cell(said)} |" for name, (kind, said) in columns.items()
                ]
                return "\n".join(lines)
    raise LookupError(
        "no module of distill/ has COLUMNS, the columns of a trace set: tell docs/generate.py where they are"
    )


def _kind(kind: Any) -> str:
    if isinstance(kind, list):
        return f"list of {_kind(kind[0])}"
    if isinstance(kind, dict):
        return "{" + ", ".join(f"{name}: {_kind(part)}" for name, part in kind.items()) + "}"
    return str(kind)


def python_api(root: Path) -> str:
    """What `distill/__init__.py` exports: signatures and docstrings, read without importing."""
    init = ast.parse((root / "distill" / "__init__.py").read_text(encoding="utf-8"))
    names, modules = _exports(init)
    if not names:
        return "*This version exports nothing yet.*"
    parts = []
    for name in names:
        node = _definition(root, modules.get(name, ""), name)
        parts += [f"### `{name}`", *_documented(node, name)]
    return "\n\n".join(parts)


def _exports(init: ast.Module) -> tuple[list[str], dict[str, str]]:
    """The names in `__all__`, and their modules: from a dict of strings, or from imports."""
    names: list[str] = []
    modules: dict[str, str] = {}
    for node in ast.walk(init):
        if isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if (
                isinstance(target, ast.Name)
                and target.id == "__all__"
                and isinstance(node.value, ast.List | ast.Tuple)
            ):
                names = [one.value for one in node.value.elts if isinstance(one, ast.Constant)]
            elif isinstance(node.value, ast.Dict):
                for key, value in zip(node.value.keys, node.value.values, strict=True):
                    if isinstance(key, ast.Constant) and isinstance(value, ast.Constant):
                        modules[str(key.value)] = str(value.value)
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {alias.asname or alias.name: node.module for alias in node.names}
    return [name for name in names if not name.startswith("__")], modules


def _definition(root: Path, module: str, name: str, hops: int = 4) -> ast.stmt:
    """The statement that defines an exported name; a folder's `__init__` may hand it on."""
    place = root / module.replace(".", "/")
    path = place.with_suffix(".py") if place.with_suffix(".py").is_file() else place / "__init__.py"
    if not module or not path.is_file():
        raise LookupError(f"distill exports {name}, and docs/generate.py does not find its module {module!r}")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return node
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and hops:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _definition(root, node.module, alias.name, hops - 1)
    raise LookupError(f"{path} does not define {name}")


def _documented(node: ast.stmt, name: str) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef):
        yield f"```python\n{_signature(node, name)}\n```"
        yield _docstring(node)
    elif isinstance(node, ast.ClassDef):
        fields = [ast.unparse(part) for part in node.body if isinstance(part, ast.AnnAssign)]
        init = [part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"]
        shown = (
            [_signature(init[0], name)] if init else [f"class {name}:", *(f"    {field}" for field in fields)]
        )
        yield "```python\n" + "\n".join(shown) + "\n```"
        yield _docstring(node)
        for part in node.body:
            if isinstance(part, ast.FunctionDef) and not part.name.startswith("_"):
                first = (ast.get_docstring(part) or "").split("\n\n")[0].replace("\n", " ")
                yield f"- `{_signature(part, f'{name}.{part.name}')}`: {first}"


def _signature(node: ast.FunctionDef, name: str) -> str:
    arguments = re.sub(r"^(self|cls)(, )?", "", ast.unparse(node.args))
    returns = f" -> {ast.unparse(node.returns)}" if node.returns and node.name != "__init__" else ""
    return f"{name}({arguments}){returns}"


def _docstring(node: Any) -> str:
    """Google's sections as lists."""
    lines = (ast.get_docstring(node) or "").splitlines()
    out: list[str] = []
    for line in lines:
        if re.fullmatch(r"(Args|Attributes|Returns|Raises|Yields):", line):
            out += ["", f"**{line[:-1]}**", ""]
        elif found := re.match(r" {4}(\w+): (.*)", line):
            out.append(f"- `{found[1]}`: {found[2]}")
        elif line.startswith("        "):
            out.append(f"  {line.strip()}")
        else:
            out.append(line.strip())
    return "\n".join(out).strip()


# --- the pages

GENERATED: dict[str, Callable[[Path], str]] = {
    "config": config_reference,
    "methods": methods_table,
    "records": record_columns,
    "api": python_api,
}


def sources(root: Path = ROOT) -> list[Path]:
    """The pages that are written by hand."""
    return sorted((root / "docs").rglob("*.md"))


def fill_in(text: str, root: Path = ROOT) -> str:
    """A page with what is generated in its places."""
    return MARK.sub(lambda found: GENERATED[found[1]](root), text)


def write(out: Path, root: Path = ROOT) -> None:
    """Everything that the site generator reads."""
    for folder in ("docs", "site"):  # pages that are gone
        shutil.rmtree(out / folder, ignore_errors=True)
    for page in sources(root):
        target = out / "docs" / page.relative_to(root / "docs")
        target.parent.mkdir(parents=True, exist_ok=True)
        text = fill_in(page.read_text(encoding="utf-8"), root)
        target.write_text(text.replace("../../notebooks/figures/", "../figures/"), encoding="utf-8")
    shutil.copytree(root / "notebooks" / "figures", out / "docs" / "figures")
    shutil.copy(root / "docs" / "zensical.toml", out)


def main() -> None:
    parser = argparse.ArgumentParser(description="Prepare the documentation for the site generator.")
    parser.add_argument("out", type=Path, nargs="?", default=ROOT / "outputs", help="folder (outputs)")
    write(parser.parse_args().out)


if __name__ == "__main__":
    main()
