"""Extract the program from a completion, for HumanEval and MBPP. Nothing is executed here."""

import ast
import builtins
import html
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distill.benchmarks.grading.sandbox import Outcome
from distill.data.trace import Verdict
from distill.errors import UserError

_FENCE = re.compile(r"^([ \t]*)(`{3,}|~{3,})[ \t]*([^\s`]*)[^`]*$")
_OUR_LANGUAGE = ("", "python", "py", "python3", "python2", "{.python}")
# A continuation ends with its function: at the next text in the first column, except a closing bracket or
# string, or a comment.
_NEXT_STATEMENT = re.compile(r"^[^\s)\]}'\"#]")
_TOP_LEVEL = re.compile(r"^(?:(?:(?:async[ \t]+)?def|class|import|from)\b|@|`{3}|~{3})")
_BEGINNING = re.compile(r"^(?:(?:async )?def |class |import |from |@|\w+ *=|if |\"\"\"|''')")
_END_TOKEN = re.compile(
    r"<\|(?:im_end|endoftext|eot_id|eom_id|end_of_text|end|return)\|>|<｜end▁of▁sentence｜>|<end_of_turn>|</s>\s*\Z|<eos>\s*\Z"
)
_QUOTED_FENCE = re.compile(r"^> ?(?:`{3,}|~{3,})", re.M)
_QUOTE = re.compile(r"^> ?(?!>)", re.M)
_HARD_INDENT = re.compile("^[ \t\u00a0]*\u00a0[ \t\u00a0]*", re.M)
_PRE = re.compile(r"<pre>(?:\s?<code[^<>\n]{0,60}>)?\s{0,9}(?=(?:def|class|import|from|async|@)\b|@)")
_PRE_END = re.compile(r"(?:</code>\s?)?</pre>")
_INLINE_FENCE = re.compile(r"^(```(?:python|py|python3))[ \t]+((?:def|class|import|from|async def) )", re.M)
_LONGEST = 100_000  # characters of a completion that are considered
_EFFORT = 300_000  # maximum characters to parse while searching for the start and end of a program


@dataclass(frozen=True)
class Program:
    """A program and the rule that found it: `fence`, `continuation` (of the prompt's function) or `whole
    text`."""

    source: str
    rule: str


def find_program(completion: str, entry_point: str, prompt: str | None = None) -> Program | None:
    """Extract the program from a completion.

    If the completion has the markers `[BEGIN]` and `[DONE]` (as in MBPP's prompt), only the text between them
    is used. The rules, in order:

    1. `continuation`, if there is a prompt to continue: the completion starts with a function body, which is
       indented or contains a `return`. It ends before the next statement in the first column.
    2. `fence`: the last Python block that defines the entry point, together with the blocks that define names
       it uses but does not define; the last block if none defines the entry point. An unclosed fence extends
       to the end of the text. A block with only a function body continues the prompt.
    3. `whole text`: from the first line of a program that defines the entry point up to the first line that
       is not Python.

    Args:
        completion: completion without its thinking block.
        entry_point: name of the function that the tests call.
        prompt: beginning of a program, up to the function's docstring.

    Returns:
        The program; None if nothing resembles a program.
    """
    text = completion.replace("\r\n", "\n").replace("\r", "\n")[:_LONGEST]
    text = _as_text(_END_TOKEN.split(text, maxsplit=1)[0])
    text = text.partition("[DONE]")[0].rpartition("[BEGIN]")[2]
    text = re.sub(r"\A (?=(?:def|class|import|from) |@)", "", text)  # a space from the first token
    if prompt is not None and (found := _continue(prompt, text)) is not None:
        return Program(found, "continuation")
    blocks = list(_blocks(text))
    if any(_mentions(block, entry_point) for block in blocks):
        return Program(_join(blocks, entry_point, prompt or ""), "fence")
    before = "\n".join(_before_fence(text.split("\n")))
    if _mentions(before, entry_point):
        return Program(_program_in(before, entry_point), "whole text")
    if blocks:
        body = _continue(prompt, blocks[-1]) if prompt is not None else None
        return Program(blocks[-1] if body is None else body, "fence")
    first = next((line for line in text.split("\n") if line.strip()), "")
    if prompt is not None and first[:1] in (" ", "\t"):  # an invalid body: running it gives the syntax error
        return Program(prompt + _body(text), "continuation")
    if prompt is None and (found := _program_in(text, entry_point)):
        return Program(found, "whole text")
    return None


def _as_text(text: str) -> str:
    """Undo what a chat's formatting does to code: hard spaces, quoted lines, `<pre><code>`."""
    text = _HARD_INDENT.sub(lambda found: found[0].replace("\u00a0", " "), text)
    if _QUOTED_FENCE.search(text):
        text = _QUOTE.sub("", text)
    if "```" not in text and _PRE.search(text):
        text = html.unescape(_PRE_END.sub("\n```\n", _PRE.sub("\n```\n", text)))
    return _INLINE_FENCE.sub(r"\1\n\2", text)


def helpers(prompt: str, entry_point: str) -> str:
    """The prompt's source without its function: imports, and helpers that the function or its tests call."""
    tree = _parse(prompt)
    if tree is None:
        return ""
    lines = prompt.split("\n")
    others = [node for node in tree.body if getattr(node, "name", None) != entry_point]
    return "\n".join("\n".join(lines[node.lineno - 1 : node.end_lineno]) for node in others)


def texts(record: Mapping[str, Any], where: str, names: Sequence[str]) -> list[str]:
    """Read text fields of a record.

    Raises:
        UserError: a field is missing or not text; the message names the place and the field.
    """
    for name in names:
        if not isinstance(record.get(name), str):
            has = ", ".join(map(str, record))
            raise UserError(f"{where}: the field {name!r} is missing or no text (the record has: {has})")
    return [record[name] for name in names]


def check_python(source: str, where: str, name: str) -> None:
    """Check that tests are valid Python.

    Raises:
        UserError: they are not; the message names the place and the field.
    """
    if _parse(source) is None:
        raise UserError(f"{where}: the field {name!r} is no Python: {source[:60]!r}")


def verdict(program: Program | None, outcome: Outcome | None, *, tests: int = 0) -> Verdict:
    """Convert the outcome of running a program to a verdict.

    Args:
        program: the program; None if the completion has none.
        outcome: outcome of running it; None if nothing was run.
        tests: total number of checks, reported in the count `tests`; 0: do not report it.
    """
    passed = outcome.passed if outcome else ()
    counts = {"tests": (sum(passed), tests)} if tests else {}
    if program is None or outcome is None:
        return Verdict(None, False, "no program", "none", counts)
    return Verdict(program.source, bool(passed) and all(passed), outcome.reason, program.rule, counts)


def _parse(source: str) -> ast.Module | None:
    """The syntax tree; None if the source is not valid Python."""
    return _parsed(source)[0]


def _parsed(source: str) -> tuple[ast.Module | None, int]:
    """The syntax tree, or None and the line (from 1) of the syntax error.

    Escape sequences are replaced before parsing, so strings in the tree differ from the source. Invalid
    escapes would cause warnings, which cannot be silenced for a single thread."""
    quiet = re.sub(r"\\([^\\'\"\n])", "__", source.replace("\\\\", "__"))
    try:
        return ast.parse(quiet), 0
    except SyntaxError as error:
        return None, max(1, error.lineno or 1)
    except (ValueError, RecursionError, MemoryError):
        return None, 1


def _blocks(text: str) -> Iterator[str]:
    """Yield the contents of the fenced Python blocks, or of all fenced blocks if none is Python."""
    found: list[tuple[str, str]] = []
    inside: tuple[re.Match[str], list[str]] | None = None
    for line in text.split("\n"):
        fence = _FENCE.match(line)
        if inside is None:
            if fence:
                inside = fence, []
            continue
        opening, lines = inside
        indent, mark, language = opening.groups()
        bare = line.rstrip()
        line = line[len(indent) :] if line.startswith(indent) else line  # inside a list item
        if fence and fence[2].startswith(mark) and not fence[3]:
            found.append((language.lower(), "\n".join(lines)))
            inside = None
        elif bare.endswith(mark) and not fence:  # closed on the line of the last statement
            found.append((language.lower(), "\n".join([*lines, line.rstrip()[: -len(mark)]])))
            inside = None
        else:
            lines.append(line)
    if inside is not None:
        found.append((inside[0][3].lower(), "\n".join(inside[1])))
    found = [(language, block) for language, block in found if block.strip()]
    ours = [block for language, block in found if language in _OUR_LANGUAGE] or [block for _, block in found]
    for block in ours:
        # Dedent programs, but not function bodies: their indentation identifies them.
        flat = textwrap.dedent(block)
        yield flat if _TOP_LEVEL.match(flat.lstrip("\n")) else block


def _before_fence(lines: Sequence[str]) -> Iterator[str]:
    for line in lines:
        if _FENCE.match(line):
            return
        yield line


def _mentions(source: str, entry_point: str) -> bool:
    """Whether the source defines the entry point in the first column, by `def` or assignment; it need not be
    valid Python."""
    name = re.escape(entry_point)
    return bool(re.search(rf"^(?:(?:async[ \t]+)?def[ \t]+{name}\b|{name}[ \t]*=[^=])", source, re.MULTILINE))


def _join(blocks: Sequence[str], entry_point: str, prompt: str) -> str:
    """Join the last block that defines the entry point and the blocks it depends on, in text order."""
    defining = [place for place, block in enumerate(blocks) if _mentions(block, entry_point)]
    whole = [place for place in defining if _parse(blocks[place]) is not None]
    taken = {(whole or defining)[-1]}
    given = _defined(_parse(prompt))
    names = [_defined(_parse(block)) for block in blocks]
    while True:
        source = "\n\n".join(blocks[place] for place in sorted(taken))
        missing = _unbound(_parse(source)) - given
        others = (place for place in reversed(range(len(blocks))) if place not in taken)
        needed = next((p for p in others if missing & names[p] and entry_point not in names[p]), None)
        if needed is None or len(taken) == 20:
            return source
        taken.add(needed)


def _defined(tree: ast.Module | None) -> set[str]:
    """Names that a program binds at its top level."""
    names: set[str] = set()
    for node in tree.body if tree else ():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            names.update(
                each.id
                for each in ast.walk(node)
                if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
            )
    return names


def _unbound(tree: ast.Module | None) -> set[str]:
    """Names that a program uses but never binds."""
    used: set[str] = set()
    bound = set(dir(builtins)) | _defined(tree)
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            bound.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            bound.add(node.name)
    return used - bound


def _continue(prompt: str, text: str) -> str | None:
    """The prompt completed with the text as its function's body; None if the text is not a body."""
    lines = text.split("\n")
    start = next((number for number, line in enumerate(lines) if line.strip()), None)
    if start is None or _FENCE.match(lines[start]):
        return None
    first, rest = lines[start], lines[start + 1 :]
    last = next((line for line in reversed(prompt.split("\n")) if line.strip()), "")
    pad = last[: len(last) - len(last.lstrip())] or "    "
    # Tokenizers may drop one or all leading spaces of the decoded text.
    first_mended = "\n".join([pad + first.lstrip(), *rest])
    if first[0] in " \t":
        variants = [_body("\n".join([first, *rest])), _body(first_mended)]
    else:
        variants = [_body(first_mended)]
        if not _TOP_LEVEL.match(first) or any(map(_RETURNS.match, lines)):
            body = _until_next(lines[start:])
            variants.append("\n".join([pad + line if line.strip() else line for line in body]))
    for body in variants:
        # A comment, a word or a docstring parses as a body, but is none.
        if _parse(prompt + body) is not None and _does_something(body):
            return prompt + body
    return None


def _does_something(body: str) -> bool:
    """Whether a function body returns, yields or raises itself: what is inside an inner function does not
    count, so that a whole one-line program, `def f(x): return x`, is no body."""
    tree = _parse(f"if True:\n{body}")
    left: list[ast.AST] = [tree] if tree else []
    while left:
        node = left.pop()
        if isinstance(node, ast.Return | ast.Raise | ast.Yield | ast.YieldFrom | ast.Pass):
            return True
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            left += ast.iter_child_nodes(node)
    return False


def _body(text: str) -> str:
    """The text up to the next statement in the first column."""
    lines = text.split("\n")
    end = next((number for number, line in enumerate(lines) if _NEXT_STATEMENT.match(line)), len(lines))
    return "\n".join(lines[:end]).rstrip() + "\n"


_RETURNS = re.compile(r"(?:return|yield|raise)\b")


def _until_next(lines: Sequence[str]) -> Iterator[str]:
    """Lines of an unindented body, up to the next function, class, test or fence. The body goes on at least
    to its last return in the first column: what comes before are its own imports and functions."""
    last = max((number for number, line in enumerate(lines) if _RETURNS.match(line)), default=-1)
    for number, line in enumerate(lines):
        ends = _TOP_LEVEL.match(line) or re.match(r"(?:print|assert)\b|if __name__", line)
        if (ends and number > last) or _FENCE.match(line):
            return
        yield line


def _program_in(text: str, entry_point: str) -> str:
    """The first range of lines that is a program and defines the entry point; else the text from the entry
    point's definition on, or the longest range that is a program."""
    lines = text.split("\n")
    starts = [number for number, line in enumerate(lines) if _BEGINNING.match(line)][:20]
    effort, best = _EFFORT, ""
    for start in starts:
        stretch, effort = _longest_program(lines[start:], effort)
        source = "\n".join(stretch)
        if _mentions(source, entry_point):
            return source
        best = max(best, source, key=len)
    for start in starts:
        if _mentions(lines[start], entry_point):
            return "\n".join(lines[start:])
    return best


def _longest_program(lines: list[str], effort: int) -> tuple[list[str], int]:
    """The lines up to the first that is not Python, such as an explanation after a program, and the remaining
    effort. No lines if the effort runs out."""
    while lines:
        source = "\n".join(lines)
        effort -= len(source)
        if effort < 0:
            break
        tree, line = _parsed(source)
        if tree is not None:
            # A one-word heading parses as Python but would raise a NameError.
            words = (
                node.lineno
                for node in tree.body
                if isinstance(node, ast.Expr) and isinstance(node.value, ast.Name)
            )
            return lines[: min(words, default=len(lines) + 1) - 1], effort
        lines = lines[: min(line, len(lines)) - 1]
    return [], effort
