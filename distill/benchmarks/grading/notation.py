r"""Normalize mathematical notation and split it: words, lists, brackets. Text rules only.

`distill.benchmarks.grading.equivalence` compares the results."""

import functools
import re

from distill.benchmarks.grading import rewriting

_SIGNS = {
    "−": "-", "–": "-", "﹣": "-", "－": "-", "‐": "-", "‑": "-", "—": "-",
    "×": r"\times ", "⋅": r"\cdot ", "·": r"\cdot ", "÷": "/", "∕": "/", "⁄": "/", "±": r"\pm ", "∓": r"\mp ",
    "π": r"\pi ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "ℝ": r"\mathbb{R}", "∞": r"\infty ",
    "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ",
    "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "√": r"\sqrt ", "²": "^{2}", "³": "^{3}",
    "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}",
    "’": "'", "′": "'", "“": '"', "”": '"', "，": ",", "；": ";", "：": ":", "（": "(", "）": ")", "。": ".",
    "％": r"\%", "°": r"^\circ ", "º": r"^\circ ", "˚": r"^\circ ",
    **dict.fromkeys("€£¥₹₩₽₺₦₫₪₱฿₴₡₲₵₸₾¢円元￥￡", ""), "\0": "",
    # Spaces and invisible characters:
    "\u00a0": " ", "\u202f": " ", "\u2009": " ", "\u2002": " ", "\u2003": " ", "\u3000": " ",
    "\u200b": "", "\u200e": "", "\u200f": "", "\u202a": "", "\u202b": "", "\u202c": "",
    "\u202d": "", "\u202e": "",
    "\ufeff": "",
}  # fmt: skip
_TRANSLATED = str.maketrans(_SIGNS)
_END = r"(?![A-Za-z])"  # end of a LaTeX command
_STYLES = (
    "displaystyle|textstyle|scriptstyle|limits|nolimits|rm|bf|it|Large|large|boldsymbol|bm|mathbf|mathit"
)
_FONTS = r"mathrm|textrm|textbf|textit|textsf|texttt|textnormal|mbox|hbox|operatorname\*?|mathsf|emph"
# Patterns and replacements, applied in order.
_PLAIN = [
    (re.compile(pattern), instead)
    for pattern, instead in [
        (r"\s+", " "),
        (
            r"\\(?:text)?color\s?(?:\[\w{1,9}\])?\{[^{}]{1,30}\}|\\bbox\s?(?:\[[^\[\]]{0,40}\])?|\\(?:checkmark|blacksquare)"
            + _END
            + "|[✓✔✅]|\\\\#",
            "",
        ),
        (rewriting.ENVIRONMENT, rewriting.without_environment),
        (
            r"(?<=\d)\s?\^?\s?(?:\{\s?)?\\(?:text|mathrm)\s?\{\s?(?:st|nd|rd|th)\s?\}\s?\}?|(?<=\d)(?:st|nd|rd|th)\b",
            "",
        ),
        (r"\\log\s?_\s?(?:\{\s?e\s?\}|e" + _END + ")", r"\\ln "),
        (rewriting.RECURRING, rewriting.as_fraction),
        (rewriting.CONJUGATE, rewriting.conjugate),
        (r"\\(?:mathbb|Bbb|mathds|mathbbm)\s?(?:\{\s?([A-Z])\s?\}|([A-Z])(?![A-Za-z]))", r"\\mathbb{\1\2}"),
        (r"(?<!\\)\\(?:([RZNQ])|[Rr]eals?)" + _END, lambda found: rf"\mathbb{{{found[1] or 'R'}}}"),
        (r"\\big(cup|cap)" + _END, r"\\\1"),
        (r"(?<=[)\]])\s?U\s?(?=[(\[\]])", r"\\cup "),
        (rewriting.LETTER_DEGREE, r"^\\circ "),
        (r"\\(?:d|t|c)frac" + _END, r"\\frac"),
        (r"\\[dt]?binom" + _END, r"\\binom"),
        (rewriting.CHOOSE, r"\\binom{\1\3}{\2\4}"),
        (r"\\binom\s?(\d)\s?(?=[\d{])", r"\\binom{\1}"),
        (r"\\binom\s?(\{[^{}]{1,40}\})\s?(\d)", r"\\binom\1{\2}"),
        (r"(?<=\d)\s?(?=\\binom)", r"\\cdot "),  # math-verify reads 3\binom{5}{2} as 3 + 10
        (r"\\(?:left|right|[bB]igg?[lr]?)\s?\.", ""),
        (r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![a-z])\s?", ""),
        (r"\\(?:boxed|fbox|" + _STYLES + ")" + _END, ""),
        (r"\\(?:" + _FONTS + r")\s?(?=\{)", r"\\text"),
        (r"\\text\s+\{", r"\\text{"),
        (r"(?<![\\A-Za-z])\{\s?(\([A-J]\))\s?\}", r"\1"),  # \mathbf{(B)}
        (r"(?<=[\w)])\*\*(?=[\w(-])", "^"),
        (r"(?<!\\)\\[()\[\]]|\*{2,3}|`", " "),
        # A$10, R$10; but C$10$ is a letter and a formula
        (r"^\s?(?:AU?|CA?|HK|NZ|S|R|MX|NT)\s?\\?\$\s?(?=\.?\d)(?!.*\$)", ""),
        (r"US\s?\\?\$|\\\$|\$|\\(?:pounds|euro)" + _END, ""),
        # Thousands: 1{,}000, 1,\!000, 1\,000.
        (r"(?<=\d)\s?(?:\{\s?,\s?\}|,\s?\\!|\\!,)\s?(?=\d{3}(?!\d))", ""),
        (r"(?<=\d)\\[, ](?=\d{3}(?!\d))", ","),
        (r"\{\s?,\s?\}", ","),
        (r"\\[hv]?phantom\s?(?:\{[^{}]{0,20}\}|-)", " "),
        (r"(?<!\\)\\[,;:> ]|\\q?quad" + _END + r"|~|\\[hv]space\*?\{[^{}]{0,20}\}", " "),
        (r"\\!", ""),
        (rewriting.FUNCTION, rewriting.in_radians),
        (r"\s?\^\s?(?:\{\s?\\circ\s?\}|\\circ" + _END + r")|\\(?:degrees?|textdegree)" + _END, ""),
        (r"\\(le|ge|n)(?:q?slant|q)" + _END, r"\\\1"),
        (r"\\neq?" + _END, r"\\ne"),
        (r"\\lbrace" + _END, r"\\{"),
        (r"\\rbrace" + _END, r"\\}"),
        (r"\\(?:lvert|rvert|vert|mid)" + _END, "|"),
        (r"\\(?:varnothing|O)" + _END, r"\\emptyset"),
        (r"\\infin" + _END, r"\\infty"),
        (r"(?i)(?<![\\A-Za-z])(?:infinity|oo|inf)(?![A-Za-z])", r"\\infty "),
        (r"(?<![\\A-Za-z])sqrt\s?\(([^()]{1,60})\)", r"\\sqrt{\1}"),
        (r"(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi "),
        (r"<=|=<", r"\\le "),
        (r">=", r"\\ge "),
        (r"!=", r"\\ne "),
        (r"\\sqrt\s?(\d+|[A-Za-z])", r"\\sqrt{\1}"),
        (r"\\frac\s?([0-9])\s?([0-9])", r"\\frac{\1}{\2}"),
        (r"\\frac\s?([0-9A-Za-z]|\\pi" + _END + r")\s?(?=\{)", r"\\frac{\1}"),
        (r"\\frac\s?(\\pi)\s?(\d)", r"\\frac{\1}{\2}"),
        (r"(\\frac\s?\{[^{}]{1,200}\})\s?([0-9A-Za-z])", r"\1{\2}"),
        (r"\\frac\s+\{", r"\\frac{"),
        (r"(?<=\})\s+(?=\{)", ""),
        (r"(?<=\d)\s?\*\s?(?=[\dA-Za-z\\(])", r"\\cdot "),
        (rewriting.BRACED, rewriting.without_thousands),
        (r"\\tag\{[^{}]{0,20}\}|\\label\{[^{}]{0,40}\}|\\(?:no)?newline" + _END, ""),
        (r"\\text\{\s{0,5}\}", " "),
        (
            r"(?i)</?answer>|^\s*(?:\\approx" + _END + r"|(?:approximately|about|roughly|around|exactly)\s)",
            " ",
        ),
        (r"\s+", " "),
    ]
]


def undamaged(text: str) -> str:
    r"""Repair LaTeX whose backslashes were interpreted as escapes: a form feed and "rac" become `\frac`, a
    backspace and "oxed" `\boxed`, a tab and "imes" `\times`."""
    return _TAB.sub(r"\\t", text.replace("\f", r"\f").replace("\b", r"\b")).replace("\right", r"\right")


_TAB = re.compile(r"\t(?=ext|imes|frac|heta|an\b|au\b)")
_TWICE = re.compile(r"\\\\(?=[A-Za-z!,:%${}])")


def plain(text: str) -> str:
    r"""Normalize a text: remove `$`, bracket sizes, fonts, spacing, degrees and the final full stop; write
    `\frac` with braces and signs as LaTeX commands."""
    return (_plain if len(text) < _LONGEST_KEPT else _plain.__wrapped__)(text)


def in_radians(text: str) -> str | None:
    r"""The normalized text with angles in degrees as radians, `\frac{60\pi}{180}` for `60^\circ`; None if
    there is no such angle."""
    text = text.translate(_TRANSLATED)
    changed = rewriting.with_radians(text)
    return None if changed == text else plain(changed)


_LONGEST_KEPT = 500  # characters


@functools.lru_cache(maxsize=4_096)  # each part of a comparison normalizes, and a gold has many answers
def _plain(text: str) -> str:
    text = undamaged(text).translate(_TRANSLATED)
    if r"\begin" not in text:  # undo double escaping; in a matrix, \\ ends a row
        text = _TWICE.sub(r"\\", text)
    braces = re.findall(r"(?<!\\)[{}]", text)
    if 0 < (missing := braces.count("{") - braces.count("}")) < 4:
        text += "}" * missing  # a truncated answer such as \text{Tuesday
    for pattern, instead in _PLAIN:
        text = pattern.sub(instead, text)
    before = None
    text = rewriting.with_round_brackets(text)
    while before != text:
        before = text
        text = text.strip().lstrip(":=").rstrip(".,;:").strip()
        text = re.sub(r"\\+$", "", text).strip()
        if len(text) > 1 and text[0] == text[-1] == '"':
            text = text[1:-1]
        text = _without_braces(without_emphasis(text))
    whole = _TEXT.fullmatch(text)
    return whole[1].strip() if whole and re.search(r"[\d,]", whole[1]) else text


def _without_braces(text: str) -> str:
    """Remove braces around the whole text: `{5}` becomes 5."""
    while len(text) > 1 and text[0] == "{" and _closing(text, 0) == len(text) - 1:
        text = text[1:-1].strip()
    return text


def _closing(text: str, start: int) -> int:
    """Index of the brace that closes the one at `start`; -1 if it is not closed."""
    depth = 0
    for brace in re.compile(r"(?<!\\)[{}]").finditer(text, start):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return brace.start()
    return -1


_EMPHASIS = re.compile(r"(\*{1,3}|_{1,3})(?=[^\s*_])(.{0,500}[^\s*_^])\1", re.S)


def without_emphasis(text: str) -> str:
    """Remove Markdown's emphasis around the whole text: `*5*` and `_x+1_`."""
    found = _EMPHASIS.fullmatch(text)
    return text if found is None else found[2]


_TEXT = re.compile(r"\\text\{([^{}]*)\}")


def bare_words(text: str) -> str:
    r"""Replace `\text{...}` by its content."""
    return _TEXT.sub(r" \1 ", text).strip()


_WORDS = re.compile(r"[A-Za-z][A-Za-z.'\- ]*[A-Za-z.]|[A-Za-z]")
# Words whose letters also name variables, but which are no products.
WORDS = frozenset((
    "no", "on", "up", "is", "so", "to", "of", "or", "do", "go", "us", "if", "we", "he", "my", "yes", "not",
    "nor", "odd", "even", "true", "false", "one", "two", "six", "ten", "zero", "four", "five", "nine", "none",
    "left", "both", "down", "dog", "god", "ton", "won", "now",
))  # fmt: skip
_ARTICLE = re.compile(r"^(?:the|an?|option|choice|answer|on(?=\s\w{3,6}day$))\s+(?=\S)")
_FUNCTION = re.compile(r"^(?:an? )?(even|odd)(?: function)?$|^(neither)(?: (?:even nor odd|odd nor even))?$")


def words(text: str) -> str | None:
    r"""An answer that consists of words, in lower case: `\text{Evelyn}`, `(C)`, `\text{(C)}`, "odd". None for
    mathematics such as `xy` or `a`+`b`; a single letter counts as a word."""
    bare = bare_words(text)
    marked = bare != text
    while len(bare) > 2 and bare[0] == "(" and bare[-1] == ")" and bare.count("(") == 1:
        bare, marked = bare[1:-1].strip(), True
    if len(bare) == 2 and bare[1] in ").":
        bare = bare[0]
    bare = re.sub(r"\s+", " ", bare)
    if not _WORDS.fullmatch(bare):
        return None
    letters = re.sub("[^A-Za-z]", "", bare)
    # xy is a product, "no" a word; outside \text{} and parentheses, other words have 3+ letters and a vowel.
    if len(letters) > 1 and not marked:
        if len(letters) < 3 and bare.casefold() not in WORDS:
            return None
        if not re.search("[aeiouyAEIOUY]", letters):
            return None
    said = _ARTICLE.sub("", bare.casefold()).rstrip(".")
    kind = _FUNCTION.match(said)
    return kind[1] or kind[2] if kind else said


_OPENING = re.compile(r"\\\{|\\langle|[(\[{]")
_BRACKET = re.compile(r"\\[{}]|\\[lr]angle|[()\[\]{}]")
_JOINTS = {
    ",": re.compile(
        r"\\text\{\s?,?\s?(?:and|or)\s?\}|(?<=[\s)\]}\d])\b(?:and|or)\b(?=[\s\\(\[])|[,;]"
        r"|\\(?:lor|vee|land)" + _END
    ),
    r"\cup": re.compile(r"\\cup" + _END),
}


def split(text: str, joint: str = ",") -> list[str]:
    r"""Split a text outside all brackets at commas, semicolons, "and" and "or" (or at `\cup`). A number such
    as `1,000` is not split."""
    if joint == "," and re.fullmatch(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?", text):
        return [text]
    return [part for one in top_level(text, _JOINTS[joint]) if (part := one.strip())]


def top_level(text: str, pattern: re.Pattern[str]) -> list[str]:
    r"""Split a text at matches of a pattern outside all brackets: `x = \sum_{k=1}^4 k` at one `=`."""
    parts, begin, depth = [], 0, 0
    for found in _joints_or_brackets(pattern).finditer(text):
        if found["joint"] is None:
            depth += 1 if _OPENING.fullmatch(found.group()) else -1
        elif depth <= 0:
            parts.append(text[begin : found.start()])
            begin = found.end()
    return [*parts, text[begin:]]


@functools.lru_cache(maxsize=100)
def _joints_or_brackets(pattern: re.Pattern[str]) -> re.Pattern[str]:
    return re.compile(rf"(?P<joint>{pattern.pattern})|{_BRACKET.pattern}", pattern.flags)


def nesting(text: str) -> int:
    """How many brackets are open at most at a time."""
    depth = deepest = 0
    for found in _BRACKET.finditer(text):
        depth = depth + 1 if _OPENING.fullmatch(found.group()) else max(0, depth - 1)
        deepest = max(deepest, depth)
    return deepest


def group(text: str) -> tuple[str, list[str]]:
    r"""The type of brackets around the whole text, `()`, `[]`, `[)`, `(]` or `set` (`<>` counts as `()`), and
    the parts inside; ("", []) if no single pair spans the text."""
    first = _OPENING.match(text)
    if first is None or text[0] == "{":
        return "", []
    depth = 0
    for found in _BRACKET.finditer(text):
        depth += 1 if _OPENING.fullmatch(found.group()) else -1
        if depth == 0:
            break
    else:
        return "", []
    if found.end() != len(text):
        return "", []
    inside = text[first.end() : found.start()].strip()
    opening, closing = first.group(), found.group()
    kind = {r"\{": "set", r"\langle": "<>"}.get(opening, opening + closing)
    if len(kind) == 2 and kind not in ("()", "[]", "[)", "(]", "<>"):
        return "", []
    if kind == "set" and re.search(r"\||:|\\mid", inside):  # {x | x > 1}
        return "", []
    return "()" if kind == "<>" else kind, split(inside)


_SIGNED = re.compile(r"\\pm" + _END)


def expanded(parts: list[str]) -> list[str]:
    r"""Expand each part with `\pm` into two parts."""
    found = []
    for part in parts:
        if _SIGNED.search(part) is None:
            found.append(part)
            continue
        for sign, other in (("+", "-"), ("-", "+")):
            one = re.sub(r"\\pm" + _END, sign, re.sub(r"\\mp" + _END, other, part))
            found.append(re.sub(r"(^|=)\s?\+\s?", r"\1", one).strip())
    return found


_MATRIX = re.compile(
    r"\\begin\{([pbBvV]?matrix|smallmatrix|array)\}(?:\s*\{[lcr| ]{1,60}\})?"
    r"((?:(?!\\begin).){0,3000}?)\\end\{\1\}",
    re.S,
)
_ROW_END = re.compile(r"\\\\(?:\[[^\]]{0,9}\])?")


def rows(text: str) -> list[list[str]] | None:
    """The cells of a matrix or array, with or without brackets around it; None for determinants and anything
    else."""
    brackets, inside = group(text)
    found = _MATRIX.fullmatch(inside[0] if brackets in ("()", "[]") and len(inside) == 1 else text)
    if found is None or found[1] in ("vmatrix", "Vmatrix"):
        return None
    cells = found[2].replace(r"\hline", "")
    return [[cell.strip() for cell in row.split("&")] for row in _ROW_END.split(cells) if row.strip()]
