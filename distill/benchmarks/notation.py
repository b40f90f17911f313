r"""Mathematical notation brought into one form, and taken apart: units, words, lists, brackets. Pure text.

`distill.benchmarks.equivalence` compares what comes out."""

import re

_SIGNS = {
    "−": "-", "–": "-", "﹣": "-", "－": "-", "‐": "-", "‑": "-", "—": "-", "×": r"\times ", "⋅": r"\cdot ", "·": r"\cdot ", "÷": "/", "π": r"\pi ",
    "√": r"\sqrt ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "±": r"\pm ", "∓": r"\mp ",
    "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "°": "", "º": "", "˚": "", "²": "^{2}", "³": "^{3}", "½": r"\frac{1}{2}",
    "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "’": "'", "，": ",", "；": ";", "：": ":", "（": "(", "）": ")",
    "％": r"\%", "∕": "/", "⁄": "/", "\u00a0": " ", "\u202f": " ", "\u2009": " ", "\u2002": " ", "\u2003": " ", "\u3000": " ", "\u200b": "", "\u200e": "",
    "\u200f": "", "\u202a": "", "\u202b": "", "\u202c": "", "\u202d": "", "\u202e": "", "\ufeff": "", "\0": "", "€": "", "£": "", "¥": "", "₹": "",
    "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "ℝ": r"\mathbb{R}", "′": "'", "“": '"', "”": '"', "。": ".",
}  # fmt: skip
_TRANSLATED = str.maketrans(_SIGNS)
_END = r"(?![A-Za-z])"
# Applied in turn.
_PLAIN = [
    (re.compile(r"\s+"), " "),
    (re.compile(r"\\(?:d|t|c)frac" + _END), r"\\frac"),
    (re.compile(r"\\d?binom" + _END), r"\\binom"),
    (re.compile(r"\\(?:left|right|[bB]igg?[lr]?)\s?\." ), ""),
    (re.compile(r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![a-z])\s?"), ""),
    (re.compile(r"\\(?:displaystyle|textstyle|scriptstyle|limits|nolimits|rm|bf|it|Large|large|boldsymbol|bm|mathbf|mathit|boxed|fbox)" + _END), ""),
    (re.compile(r"\\(?:mathrm|textrm|textbf|textit|textsf|texttt|textnormal|mbox|hbox|operatorname\*?|mathsf|emph)\s?(?=\{)"), r"\\text"),
    (re.compile(r"\\text\s+\{"), r"\\text{"),
    (re.compile(r"(?<!\\)\\[()\[\]]|\*\*|`"), " "),
    (re.compile(r"\\\$|\$|\\(?:pounds|euro)" + _END), ""),
    (re.compile(r"(?<=\d)\s?(?:\{\s?,\s?\}|,\s?\\!|\\!,)\s?(?=\d{3}(?!\d))"), ""),
    (re.compile(r"\{\s?,\s?\}"), ","),
    (re.compile(r"\\[hv]?phantom\s?(?:\{[^{}]{0,20}\}|-)"), " "),
    (re.compile(r"(?<=\d)\\[, ](?=\d{3}(?!\d))"), ","),
    (re.compile(r"(?<!\\)\\[,;:> ]|\\q?quad" + _END + r"|~|\\[hv]space\*?\{[^{}]{0,20}\}"), " "),
    (re.compile(r"\\!"), ""),
    (re.compile(r"\s?\^\s?(?:\{\s?\\circ\s?\}|\\circ" + _END + r")|\\(?:degrees?|textdegree)" + _END), ""),
    (re.compile(r"\\(le|ge|n)(?:q?slant|q)" + _END), r"\\\1"),
    (re.compile(r"\\neq?" + _END), r"\\ne"),
    (re.compile(r"\\(?:lbrace|\{)"), r"\\{"),
    (re.compile(r"\\(?:rbrace|\})"), r"\\}"),
    (re.compile(r"\\(?:lvert|rvert|vert|mid)" + _END), "|"),
    (re.compile(r"\\(?:langle)" + _END), r"\\langle "),
    (re.compile(r"\\(?:varnothing|O)" + _END), r"\\emptyset"),
    (re.compile(r"\\infin" + _END), r"\\infty"),
    (re.compile(r"(?<![\\A-Za-z])(?:infinity|oo|inf)(?![A-Za-z])", re.I), r"\\infty "),
    (re.compile(r"(?<![\\A-Za-z])sqrt\(([^()]{1,60})\)"), r"\\sqrt{\1}"),
    (re.compile(r"(?<![\\A-Za-z])pi(?![A-Za-z])"), r"\\pi "),
    (re.compile(r"<=|=<"), r"\\le "),
    (re.compile(r">="), r"\\ge "),
    (re.compile(r"!="), r"\\ne "),
    (re.compile(r"\\sqrt\s?(\d)"), r"\\sqrt{\1}"),
    (re.compile(r"\\sqrt\s?([A-Za-z])"), r"\\sqrt{\1}"),
    (re.compile(r"\\frac\s?([0-9])\s?([0-9])"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\frac\s?([0-9A-Za-z]|\\pi" + _END + r")\s?(?=\{)"), r"\\frac{\1}"),
    (re.compile(r"\\frac\s?(\\pi)\s?(\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"(\\frac\s?\{[^{}]{1,200}\})\s?([0-9A-Za-z])"), r"\1{\2}"),
    (re.compile(r"\\frac\s+\{"), r"\\frac{"),
    (re.compile(r"(?<=\})\s+(?=\{)"), ""),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"(?<=\d)\s?\*\s?(?=[\dA-Za-z\\(])"), r"\\cdot "),
    (re.compile(r"\\tag\{[^{}]{0,20}\}|\\label\{[^{}]{0,40}\}|\\(?:no)?newline" + _END), ""),
    (re.compile(r"\\text\{\s{0,5}\}"), " "),
    (re.compile(r"</?answer>|^\s*(?:\\approx" + _END + r"|(?:approximately|about|roughly|around|exactly)\s)", re.I), " "),
    (re.compile(r"\s+"), " "),
]  # fmt: skip


def undamaged(text: str) -> str:
    r"""LaTeX whose backslashes were read as escapes: a form feed and "rac" is `\frac`, a backspace and "oxed" `\boxed`,
    a tab and "imes" `\times`."""
    return _TAB.sub(r"\\t", text.replace("\f", r"\f").replace("\b", r"\b")).replace("\right", r"\right")


_TAB = re.compile(r"\t(?=ext|imes|frac|heta|an\b|au\b)")
_TWICE = re.compile(r"\\\\(?=[A-Za-z!,:%${}])")


def plain(text: str) -> str:
    r"""The text in one notation: no `$`, sizes of brackets, fonts, spacing, degrees; `\frac` with braces; signs as
    LaTeX spells them; no full stop at the end."""
    text = undamaged(text).translate(_TRANSLATED)
    if r"\begin" not in text:  # of a text that was escaped twice; in a matrix it ends a row
        text = _TWICE.sub(r"\\", text)
    for pattern, instead in _PLAIN:
        text = pattern.sub(instead, text)
    before = None
    while before != text:
        before = text
        text = text.strip().lstrip(":=").rstrip(".,;:!").strip()
        text = re.sub(r"\\+$", "", text).strip()
        if len(text) > 1 and text[0] == text[-1] == '"':
            text = text[1:-1]
    return _without_braces(text)


def _without_braces(text: str) -> str:
    """`{5}` is 5; braces around all of it only."""
    while len(text) > 1 and text[0] == "{" and _closing(text, 0) == len(text) - 1:
        text = text[1:-1].strip()
    return text


def _closing(text: str, start: int) -> int:
    """Where the brace at `start` is closed; -1 where it is not."""
    depth = 0
    for brace in re.compile(r"(?<!\\)[{}]").finditer(text, start):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return brace.start()
    return -1


_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_WORDS = re.compile(r"[A-Za-z][A-Za-z.'\- ]*[A-Za-z.]|[A-Za-z]")
_ARTICLE = re.compile(r"^(?:the|an?|option|choice|answer)\s+(?=\S)")


def words(text: str) -> str | None:
    r"""The words that an answer consists of, in small letters: of `\text{Evelyn}`, `(C)`, `\text{(C)}`, "odd". None for
    mathematics, such as `xy` or `a`+`b`; a single letter counts as a word."""
    bare = _TEXT.sub(r" \1 ", text).strip()
    marked = bare != text
    while len(bare) > 2 and bare[0] == "(" and bare[-1] == ")" and bare.count("(") == 1:
        bare, marked = bare[1:-1].strip(), True
    if len(bare) == 2 and bare[1] in ").":
        bare = bare[0]
    bare = re.sub(r"\s+", " ", bare)
    if not _WORDS.fullmatch(bare):
        return None
    letters = re.sub("[^A-Za-z]", "", bare)
    # xy is a product, "no" a word; without a mark, three letters and a vowel make a word.
    if len(letters) > 1 and not marked:
        if len(letters) < 3 and bare.casefold() not in ("no", "up"):
            return None
        if not re.search("[aeiouyAEIOUY]", letters):
            return None
    return _ARTICLE.sub("", bare.casefold()).rstrip(".")


_UNIT_TEXT = re.compile(r"\s?\\text\{[^{}]*\}\s?(?:\^\s?\{?\s?\d\s?\}?)?$|\s?/\s?\\text\{[^{}]*\}$")
_UNIT_WORDS = re.compile(
    r"(?<=[\d})])\s?(?:[A-Za-z]{2,20}|(?<=\s)[mgshLlNJWVAKC])\.?(?:(?:\s|/)[A-Za-z]{1,20}\.?){0,5}\s?(?:\^\s?\{?\s?\d\s?\}?)?$"
)
_KNOWN_UNITS = re.compile(
    r"(?:mm|cm|km|m|in|inch|inches|ft|foot|feet|yd|yards?|mi|miles?|meters?|metres?|g|kg|mg|grams?|kilograms?|s|sec|secs|seconds?|min|mins|minutes?|h|hrs?|hours?|days?|weeks?|months?|"
    r"years?|L|l|ml|liters?|mph|kmh|degrees?|deg|rad|radians?|dollars?|cents?|units?|square|sq|cubic|percent|points?|people|students?|ways?|times?|per|of|pm|am|p\.m|a\.m|N|J|W|V|A|K|C|"
    r"[a-z]{4,20})\b",
)
_FUNCTION = re.compile(
    r"(?:sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|mod|and|or|if|for|where|when|with|frac)\b", re.I
)
_CURRENCY = re.compile(r"^(?:US)?(?:Rs\.?|USD|dollars?)\s?|\s?(?:USD|dollars?)$")


def without_unit(text: str) -> str:
    r"""The number or expression before its unit: of `5\text{ cm}^2`, `18 eggs`, `5 cm`. Everything where there is none."""
    text = _CURRENCY.sub("", text)
    whole = _TEXT.fullmatch(text)
    if whole and re.search(r"\d", whole[1]):
        text = whole[1].strip()
    for _ in range(4):
        found = _UNIT_TEXT.search(text)
        if found is None or found.start() == 0 or re.search(r"\b(?:and|or|if|mod)\b", found.group()):
            break
        text = re.sub(r"(?:/|\\cdot)\s?$", "", text[: found.start()]).strip()
    found = _UNIT_WORDS.search(text)
    if found and not _FUNCTION.match(found.group().strip()):
        unit = found.group().strip()
        if _KNOWN_UNITS.match(unit) and (
            len(unit) > 2 or found.group() != unit or unit in ("cm", "mm", "km", "kg", "ft")
        ):
            text = text[: found.start()].strip()
    return text


_OPENING = re.compile(r"\\\{|\\langle|[(\[{]")
_BRACKET = re.compile(r"\\[{}]|\\[lr]angle|[()\[\]{}]")
_JOINT = re.compile(
    r"\\text\{\s?,?\s?(?:and|or)\s?\}|(?<=[\s)\]}\d])\b(?:and|or)\b(?=[\s\\(\[])|[,;]|\\cup"
    + _END
    + r"|\\(?:lor|vee|land)"
    + _END
    + r"|\\[{}]|\\[lr]angle|[()\[\]{}]"
)


def split(text: str, joint: str = ",") -> list[str]:
    r"""The parts of a text outside all brackets: at commas, semicolons, "and", "or", or at `\cup`. Of a thousand,
    `1,000`, no part."""
    if joint == "," and re.fullmatch(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?", text):
        return [text]
    parts, depth, begin = [], 0, 0
    for found in _JOINT.finditer(text):
        token = found.group()
        if _BRACKET.fullmatch(token):
            depth += 1 if _OPENING.fullmatch(token) else -1
        elif depth <= 0 and (token == r"\cup") == (joint == r"\cup"):
            parts.append(text[begin : found.start()])
            begin = found.end()
    return [part for part in (one.strip() for one in (*parts, text[begin:])) if part]


def group(text: str) -> tuple[str, list[str]]:
    r"""The kind of brackets around the whole text, `()`, `[]`, `[)`, `(]`, `<>` or `set`, and the parts inside; ("",
    []) where no one pair spans it."""
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


def expanded(parts: list[str]) -> list[str]:
    r"""Parts with `\pm` as two of them."""
    found = []
    for part in parts:
        if r"\pm" not in part:
            found.append(part)
            continue
        for sign, other in (("+", "-"), ("-", "+")):
            one = re.sub(r"\\pm" + _END, sign, re.sub(r"\\mp" + _END, other, part))
            found.append(re.sub(r"(^|=)\s?\+\s?", r"\1", one).strip())
    return found
