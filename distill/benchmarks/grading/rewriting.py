r"""Rewrite notation that neither rules nor math-verify read: degrees in functions, recurring decimals,
thousands inside a formula, residue classes."""

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


BRACED = re.compile(r"(?<!\\)\{[^{}]{1,200}\}")
_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")


def without_thousands(group: re.Match[str]) -> str:
    r"""A match of `BRACED` without thousands separators: `{5,525}` becomes `{5525}`; `\{5,525\}` is a set."""
    return _THOUSANDS.sub(lambda found: found[0].replace(",", ""), group[0])


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
