r"""Rewrite notation that neither rules nor math-verify read: degrees, recurring decimals, conjugates,
binomial coefficients, thousands inside a formula, intervals as in `]1,2[`, residue classes."""

import re

_END = r"(?![A-Za-z])"
_DEGREE = r"\s?\^\s?(?:\{\s?\\circ\s?\}|\\circ" + _END + r")|\s?\\(?:degrees?|textdegree)" + _END
_GROUP = (
    r"\((?:[^()]|\((?:[^()]|\([^()]{0,80}\)){0,80}\)){1,120}\)"
    r"|\{(?:[^{}]|\{(?:[^{}]|\{[^{}]{0,80}\}){0,80}\}){1,120}\}"
)
_VALUE = r"\\frac\s?\{[^{}]{1,40}\}\s?\{[^{}]{1,40}\}|\d*\.?\d+[A-Za-z]?|\\?[A-Za-z]+"
_ANGLE = re.compile(rf"({_VALUE}|\([^()]{{1,60}}\))(?:{_DEGREE})")
FUNCTION = re.compile(
    rf"\\(?P<name>sin|cos|tan|cot|sec|csc){_END}\s?(?P<power>\^\s?(?:\{{\s?\d{{1,2}}\s?\}}|\d)\s?)?"
    rf"(?P<argument>(?:{_GROUP}|{_VALUE})(?:{_DEGREE})?)"
)


def in_radians(function: re.Match[str]) -> str:
    r"""A match of `FUNCTION` with degrees as radians: `\cos 60^\circ` becomes `\cos(\frac{60\pi}{180})`."""
    argument = _ANGLE.sub(lambda angle: rf"\frac{{{angle[1]}\pi}}{{180}}", function["argument"])
    if argument == function["argument"]:
        return function[0]
    if argument[0] == "{" and argument[-1] == "}":
        argument = argument[1:-1]
    return rf"\{function['name']}{function['power'] or ' '}({argument})"


LETTER_DEGREE = re.compile(
    r"(?<=[\d)}])\s?\^\s?(?:\{\s?(?:\\(?:text|mathrm)\s?\{\s?)?o\s?\}{1,2}|o(?![A-Za-z])|\\(?:text|mathrm)\s?\{\s?o\s?\})"
)
_DEGREES = re.compile(
    r"(?<![\w.])(\d{1,12}(?:\.\d{1,12})?|\\[dtc]?frac\s?\{[^{}]{1,40}\}\s?\{[^{}]{1,40}\}|\([^()]{1,60}\))"
    rf"(?:{_DEGREE}|{LETTER_DEGREE.pattern}|\s?(?:\\(?:text|mathrm)\s?\{{\s?)?\bdegrees?\b(?:\s?\}})?)"
)


def with_radians(text: str) -> str:
    r"""The text with angles in degrees as radians: `60^\circ` becomes `\frac{60\pi}{180}`. Unchanged without
    a sign of degrees."""
    return _DEGREES.sub(lambda angle: rf"\frac{{{angle[1]}\pi}}{{180}}", text)


RECURRING = re.compile(
    r"(?<![\d.])(\d{0,12})\.(\d{0,12})(?:"
    r"\\(?:overline|bar|overbar)\s?(?:\{\s?(\d{1,12})\s?\}|(\d))"
    r"|\\dot\s?\{?\s?(\d)\s?\}?(?:(\d{0,10})\\dot\s?\{?\s?(\d)\s?\}?)?"
    r"|(?<=\.)\((\d{1,12})\)"
    r"|(?<=\.)(\d{0,6}?)(\d{1,8}?)\10{2,30}(?:\\[lc]?dots" + _END + r"|\.{3}|…))"
)


def as_fraction(decimal: re.Match[str]) -> str:
    r"""A match of `RECURRING` as a fraction: `0.1\overline{6}` becomes `\frac{15}{90}`."""
    whole, fixed = decimal[1] or "0", decimal[2]
    period = decimal[3] or decimal[4] or decimal[8]
    if decimal[5]:
        period = decimal[5] + (decimal[6] or "") + (decimal[7] or "")
    if period is None:  # 0.1666...
        fixed, period = decimal[9], decimal[10]
    above = int(whole + fixed + period) - int(whole + fixed)
    return rf"\frac{{{above}}}{{{'9' * len(period)}{'0' * len(fixed)}}}"


ENVIRONMENT = re.compile(
    r"\\begin\{(aligned|align\*?|gathered|gather\*?|split|equation\*?|cases)\}((?:(?!\\begin).){1,500}?)\\end\{\1\}"
)
_ROW_END = re.compile(r"\\\\(?:\[[^\]]{0,9}\])?")


def without_environment(found: re.Match[str]) -> str:
    r"""A match of `ENVIRONMENT` as one line: the rows `x = 5` and `y = 6` become `x = 5, y = 6`, a row `= 5`
    continues the row before it. Unchanged if a row of `cases` has a condition."""
    rows = [row.strip() for row in _ROW_END.split(found[2]) if row.strip()]
    if found[1] == "cases" and not all("=" in row.partition("&")[0] for row in rows):
        return found[0]
    text = ""
    for row in rows:
        row = row.replace("&", " ").strip(" ,;")
        text += (" " if row.startswith("=") else ", ") * bool(text) + row
    return text


_BOUND = re.compile(
    r"[\s,]*\(?\s?(?:\\text\{\s?(?:for(?:\s(?:all|any|every|each|some))?|where|with)\s?(?:integers?\s?)?\}\s?)?"
    r"\b([a-z])\s?(?:\\in\s?\\mathbb\{([ZN])\}(?:\^\+|_\+)?|\\text\{\s?(?:is\s)?an(?:y)?\s(integer)\s?\})\s?\)?$"
)
_CONDITION = re.compile(
    r"[\s,]*(?:\(\s?\\text\{\s?(?:since|because|as|for|where|with|at|when|minimum|maximum|if)\b[^{}]{0,60}\}[^()]{0,60}\)"
    r"|\\text\{\s?\(\s?(?:since|because|for|where|with|at|when|if)\b[^{}()]{0,60}\}[^()]{0,60}\)"
    r"|\\text\{\s?,?\s?\(?(?:for\s(?:all|any|every|each)|since|because|where|attained|achieved)\b[^{}]{0,60}\}"
    r"[^{}=,]{0,60}(?:\\mathbb\{[A-Z]\})?)$"
)


def without_condition(text: str) -> str:
    r"""`n^2+n \text{ for all } n \ge 1` and `5 (\text{at } x = 3)` without the condition; unchanged without
    one."""
    return _CONDITION.sub("", text) or text


def with_bound(text: str) -> tuple[str, str, str] | None:
    r"""`2n\pi, n \in \mathbb{Z}` as `2n\pi`, with another name `2k\pi`, and the set `Z`: the name does not
    matter; None without such an end."""
    found = _BOUND.search(text)
    body = text[: found.start()].strip() if found else ""
    if found is None or not body:
        return None
    name = re.compile(rf"(?<![A-Za-z\\]){found[1]}(?![A-Za-z])")
    return body, name.sub("k", body), found[2] or "Z"


def with_i(text: str) -> str:
    """`3+5j`, a complex number as engineers and Python write it, as `3+5i`; unchanged if it has other
    letters, or no real part: `2j` is also a vector."""
    letters = re.sub(r"\\(?:frac|sqrt|cdot|pi)(?![A-Za-z])", " ", text)
    bare = text.strip("() ")
    if re.findall("[A-Za-z]", letters) != ["j"] or not re.search(r"[^-+({\s]\s?[-+]", bare):
        return text
    return re.sub(r"(?<![A-Za-z\\])j(?![A-Za-z])", "i", text)


BRACED = re.compile(r"(?<!\\)\{[^{}]{1,200}\}")
_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")


def without_thousands(group: re.Match[str]) -> str:
    r"""A match of `BRACED` without thousands separators: `{5,525}` becomes `{5525}`; `\{5,525\}` is a set."""
    return _THOUSANDS.sub(lambda found: found[0].replace(",", ""), group[0])


_SPACED_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,.]*\d)")


def without_spaced_thousands(text: str) -> str:
    """`(1,000, 2)` as `(1000, 2)`: commas between entries have a space behind them. Unchanged otherwise."""
    bare = _SPACED_THOUSANDS.sub(lambda found: found[0].replace(",", ""), text)
    return bare if re.search(r",\s", bare) and not re.search(r",\S", bare) else text


_COMPLEX = (
    r"(?:[\d\s.()+\-*/ie^]|\\(?:sqrt|frac|cdot|pi)(?![A-Za-z])|\{(?:[\d\s.()+\-*/ie]|\\(?:sqrt|pi)(?![A-Za-z])"
    r"|\{[\d\s.+\-]{1,20}\}){0,40}\}){1,80}"
)
CONJUGATE = re.compile(rf"\\(?:overline|bar)\s?\{{({_COMPLEX})\}}")
_UNIT = re.compile(r"(?<![A-Za-z\\])i(?![A-Za-z])")


def conjugate(number: re.Match[str]) -> str:
    r"""A match of `CONJUGATE` as the conjugate number: `\overline{3+4i}` becomes `(3+4(-i))`."""
    return f"({_UNIT.sub('(-i)', number[1])})" if _UNIT.search(number[1]) else number[0]


_ENTRY = r"((?:[^{}\\]|\\[A-Za-z]+|\{[^{}]{0,40}\}){1,40}?)"
CHOOSE = re.compile(
    rf"(?<!\\)\{{\s?{_ENTRY}\s?\\choose{_END}\s?{_ENTRY}\s?\}}"
    rf"|(?<![\w}}])(\w{{1,9}})\s?\\choose{_END}\s?(\w{{1,9}})"
)
_NUMBER = r"\{?\s?(\d{1,4})\s?\}?"
_COUNTED = re.compile(
    r"(?<![A-Za-z\\_^}])n?([CP])[rk]?\s?\(\s?(\d{1,4})\s?,\s?(\d{1,4})\s?\)"  # C(5,2), nCr(5,2)
    # _5C_2, 5C2
    rf"|(?:(?:\{{\s?\}}\s?)?[_^]\s?{_NUMBER}|(?<![\w.}}])(\d{{1,4}}))\s?([CP])\s?_?\s?{_NUMBER}(?!\w)"
    rf"|(?<![A-Za-z\\_^}}])([CP])\s?_\s?{_NUMBER}\s?\^\s?{_NUMBER}"  # C_5^2
    r"|(?<![\w.])(\d{1,4})\s(?:\\text\{\s?)?(choose)(?:\s?\})?\s(\d{1,4})(?!\w)"
)


def with_binomials(text: str) -> str:
    r"""The text with combinations and permutations of whole numbers in LaTeX: `C(5,2)`, `{}_5C_2`, `C_5^2`
    and "5 choose 2" become `(\binom{5}{2})`, `P(5,2)` becomes `(\frac{5!}{3!})`. They may also be points or
    parts of names: compare with numbers only."""
    text = re.sub(r"\\text\{\s?([CP])\s?\}", r"\1", text)
    return re.sub(r"(?<=[\d)])\s?(?=\(\\(?:binom|frac))", r"\\cdot ", _COUNTED.sub(_counted, text))


def _counted(found: re.Match[str]) -> str:
    parts = [part for part in found.groups() if part is not None]
    sign = next(part for part in parts if part[0] in "CPc")
    whole, chosen = (int(part) for part in parts if part != sign)
    if chosen > whole:
        return found[0]
    return (
        rf"(\frac{{{whole}!}}{{{whole - chosen}!}})" if sign == "P" else rf"(\binom{{{whole}}}{{{chosen}}})"
    )


_ROUND = re.compile(r"([\[\](])(\s?[^\[\]()\s,;][^\[\]()]{0,80}?[,;][^\[\]()]{1,80})([\[\])])")
_OUTWARD = re.compile(
    r"^(?:[A-Za-z]\s?\\in\s?)?\s?\]|\[$|\[\s?(?:\\c[au]p|,|\bor\b|\band\b|\\text\{\s?(?:or|and))"
    r"|(?:\\c[au]p\s?|,\s?|\b(?:or|and)\s?\}?\s?)\][^,;]"
)


def with_round_brackets(text: str) -> str:
    r"""Intervals that turn their brackets outward, `]-\infty,-1]\cup]2,\infty[`, with round ones."""
    if not _OUTWARD.search(text):
        return text
    return _ROUND.sub(
        lambda found: (
            f"{'(' if found[1] == ']' else found[1]}{found[2]}{')' if found[3] == '[' else found[3]}"
        ),
        text,
    )


_MODULUS = re.compile(
    r"\s?(?:\\pmod\s?(?:\{([^{}]{1,40})\}|(\w))|\(?\s?(?:\\text\{\s?\(?\s?mod(?:ulo)?\s?\}|\\[bp]?mod|\bmod(?:ulo)?\b)\s?(?:\{([^{}]{1,40})\}|(\w{1,9}))\s?\)?)$"
)


def residue(text: str) -> tuple[str, str] | None:
    r"""Residue and modulus of `n \equiv 5 \pmod{17}` or `5 \pmod{17}`; None without a modulus."""
    found = _MODULUS.search(text)
    if found is None:
        return None
    value = re.split(r"\\equiv" + _END + "|≡", text[: found.start()])[-1]
    return value.strip(), next(filter(None, found.groups())).strip()
