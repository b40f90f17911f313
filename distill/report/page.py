"""Render a document made of a few kinds of blocks as Markdown and as one self-contained HTML page."""

import base64
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from distill.evaluation.excerpts import shortened


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Items:
    texts: Sequence[str]


@dataclass(frozen=True)
class Grid:
    """A table; the first column is text, the others are numbers (right-aligned)."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A figure: the base name of its files, and their content by format, including `svg`."""

    name: str
    caption: str
    files: Mapping[str, bytes]


@dataclass(frozen=True)
class Written:
    """A model-written text under a title line."""

    title: str
    text: str


Block = Heading | Text | Items | Grid | Picture | Written
_PIXELS_PER_POINT = 2.0  # of figures on the page; a browser's own is 4 / 3
_LONGEST = 3000  # maximum characters shown of a completion

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #111; background: #fff; margin: 2rem auto;
  max-width: 62rem; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; } h3 { font-size: 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
.wide { overflow-x: auto; }
@media (min-width: 66rem) { .wide { width: max-content; max-width: calc(50vw + 28rem); } }
th, td { border-bottom: 1px solid #ccc; padding: .25rem .6rem; text-align: right; white-space: nowrap; }
th { white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1.2rem 0; } figcaption { color: #444; font-size: .9rem; max-width: 46rem; }
img { max-width: 100%; height: auto; }
details { margin: .3rem 0; } summary { cursor: pointer; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f6f6; padding: .5rem .8rem;
  margin: .3rem 0; }
code { background: #f2f2f2; }
""".strip()


def markdown(title: str, blocks: Iterable[Block], pictures: str = "figures") -> str:
    """Render the document as Markdown; figures are links to `<pictures>/<name>.svg`."""
    parts = [f"# {_foreign(title)}"]
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f"{'#' * block.level} {_foreign(block.text)}")
        elif isinstance(block, Text):
            parts.append(block.text)
        elif isinstance(block, Items):
            parts.append("\n".join(f"- {_marked(text)}" for text in block.texts))
        elif isinstance(block, Grid):
            lines = [block.head, ["---", *["---:"] * (len(block.head) - 1)], *block.rows]
            parts.append("\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines))
        elif isinstance(block, Picture):
            parts.append(f"![{block.name}]({pictures}/{block.name}.svg)\n\n*{_marked(block.caption)}*")
        else:
            text = shortened(block.text, _LONGEST)
            longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
            fence = "`" * max(3, longest + 1)
            parts.append(f"{_foreign(block.title)}\n\n{fence}text\n{text}\n{fence}")
    return "\n\n".join(parts) + "\n"


def page(title: str, blocks: Iterable[Block]) -> str:
    """Render the document as an HTML page without scripts; model-written text is escaped."""
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    parts = [_html(block) for block in blocks]
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{_text(title)}</title>\n<style>\n{_STYLE}\n</style></head><body>",
            f"<h1>{_text(title)}</h1>",
            *parts,
            "</body></html>\n",
        ]
    )


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{_text(block.text)}</h{block.level}>"
    if isinstance(block, Text):
        return f"<p>{_words(block.text)}</p>"
    if isinstance(block, Items):
        return "<ul>" + "".join(f"<li>{_words(text)}</li>" for text in block.texts) + "</ul>"
    if isinstance(block, Grid):
        head = "".join(f'<th scope="col">{_words(cell)}</th>' for cell in block.head)
        rows = "".join(
            "<tr>" + "".join(f"<td>{_words(cell)}</td>" for cell in row) + "</tr>\n" for row in block.rows
        )
        return (
            f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>'
        )
    if isinstance(block, Picture):
        data = base64.b64encode(block.files["svg"]).decode()
        width = re.search(rb'<svg[^>]* width="([\d.]+)pt"', block.files["svg"])
        # In print a figure is one column wide; on a screen its text would be too small to read.
        size = f' width="{_PIXELS_PER_POINT * float(width.group(1)):.0f}"' if width else ""
        return (
            f'<figure><img alt="{_text(block.caption)}"{size} src="data:image/svg+xml;base64,{data}">'
            f"<figcaption>{_words(block.caption)}</figcaption></figure>"
        )
    text = shortened(block.text, _LONGEST)
    return f"<details><summary>{_text(block.title)}</summary><pre>{_text(text)}</pre></details>"


def _words(text: str) -> str:
    """Render one of our own sentences; only `code` and **bold** are interpreted."""
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", _text(text))
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", marked)


def _text(text: str) -> str:
    """Escape a text for HTML and replace characters that a UTF-8 file cannot hold."""
    return html.escape(re.sub(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", "\ufffd", text))


def _marked(text: str) -> str:
    """Join a text into one line of Markdown and escape HTML tags."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", " ".join(text.split()))


def _foreign(text: str) -> str:
    """Like `_marked`, for text that is not ours: escapes emphasis and code too."""
    return re.sub(r"([*`])", r"\\\1", _marked(text))


def _cell(text: str) -> str:
    return _marked(text).replace("|", "\\|")
