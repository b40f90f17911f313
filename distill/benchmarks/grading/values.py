r"""Exact values of numbers: fractions, mixed numbers, percentages, clock times, numerals in other bases.

Texts must be normalized by `grading.notation.plain`. Comparisons return None if not both sides are of the
compared type."""

import re
from fractions import Fraction

from distill.benchmarks.grading import answers, wording
from distill.benchmarks.grading.notation import bare_words, group
from distill.benchmarks.grading.units import without_unit

_DECIMALS = 6  # decimal places to which floating-point output must agree
_LONGEST = 300  # characters
_PERCENT = re.compile(r"\s?(?:\\?%|\\?\b(?:percent(?:age)?|pct)\b|\\text\{\s?percent\s?\})\s?$")
_FRACTION = re.compile(r"([-+]?)(\d{0,40})\s?\\frac\{([-+]?)\s?(\d{1,80})\}\{([-+]?)\s?(\d{1,80})\}")
_MIXED = re.compile(r"([-+]?)(\d{1,40})\s(?:and\s)?(\d{1,40})\s?/\s?(\d{1,40})")
# Only short exponents: expanding 10^{999999999} would exhaust the memory.
_POWER = re.compile(
    r"([-+]?\d{0,40}(?:\.\d{0,40})?)\s?(?:\\times|\\cdot|\*|x)\s?10\^\{?\s?([-+]?\d{1,3})\s?\}?"
    r"|(-?\d{1,40}(?:\.\d{1,40})?)[eE]([-+]?\d{1,3})"
)
_PLACES = re.compile(r"\.(\d+)")
_TIME = re.compile(r"(\d{1,2}(?:\s?:\s?\d\d){0,2})\s{0,3}([ap]\.?\s?m\.?)?", re.I)
_NUMERAL = re.compile(r"(-?[0-9A-Fa-f][0-9A-Fa-f.]{0,60})\s?_\s?\{?\s?(?:\\text\{\s?)?(\w{1,10})\s?\}{0,2}")
_NAMES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
)
_BASES = {name: str(base) for base, name in enumerate(_NAMES.split())}


def exact(text: str) -> Fraction | None:
    r"""The value of a number: anything `answers.number` can parse, `\frac{3}{4}`, mixed numbers
    (`1\frac{1}{2}` and `1 1/2` are 3/2), `3 \times 10^{5}`, numbers in words (`\text{twelve}`)."""
    text = text.strip().removeprefix("+").strip()
    if len(text) > _LONGEST:
        return None
    while text.startswith("(") and len(inner := group(text)[1]) == 1:
        text = inner[0]
    if text.startswith(("-(", "- ")):
        value = exact(text[1:].strip())
        return None if value is None else -value
    if (scaled := wording.scaled(text)) is not None:
        value = exact(scaled[0])
        return None if value is None else value * scaled[1]
    if found := _FRACTION.fullmatch(text):
        sign, whole, upper_sign, upper, lower_sign, lower = found.groups()
        if int(lower) == 0 or (whole and (upper_sign or lower_sign)):
            return None
        value = Fraction(int(whole or 0)) + Fraction(int(upper), int(lower))
        return -value if [sign, upper_sign, lower_sign].count("-") % 2 else value
    if found := _MIXED.fullmatch(text):
        sign, whole, upper, lower = found.groups()
        value = None if int(lower) == 0 else int(whole) + Fraction(int(upper), int(lower))
        return -value if value is not None and sign == "-" else value
    if found := _POWER.fullmatch(text):
        factor, power = answers.number(found[1] or found[3] or ""), int(found[2] or found[4])
        return None if factor is None else factor * Fraction(10) ** power
    if (value := answers.number(text)) is not None:
        return value
    return wording.spoken(bare_words(text))


def readings(text: str) -> list[Fraction]:
    """Possible values of a number: for a percentage both the number and, second, its hundredth; for "3.5$
    million" second 3.5, the number of millions."""
    bare = _PERCENT.sub("", text)
    value = exact(bare if bare != text or wording.scaled(text) else without_unit(text))
    if value is None and (said := wording.number_in(text)) is not None:
        bare = _PERCENT.sub("", text := said)
        value = exact(bare)
    if value is None:
        return []
    if bare != text:
        return [value, value / 100]
    scaled = wording.scaled(text)
    return [value, value / scaled[1]] if scaled else [value]


def same_numbers(gold: str, answer: str, tolerance: float | None) -> bool | None:
    r"""Compare numbers exactly, or within an absolute tolerance. If either has at least 6 decimal places,
    later places may differ (floating-point output). 50\% equals 50 and 0.5; but 50 does not equal a gold
    answer 0.5, nor 0.5\% a gold answer 50."""
    expected, found = readings(gold), readings(answer)
    if not expected or not found:
        return None
    pairs = [(expected[0], found[0])]
    if len(expected) != len(found):
        pairs.append((expected[-1], found[-1]))
    if tolerance is not None:
        return any(abs(one - other) <= Fraction(tolerance) for one, other in pairs)
    if any(one == other for one, other in pairs):
        return True
    if max(_places(gold), _places(answer)) < _DECIMALS:
        return False
    limit = Fraction(1, 2 * 10**_DECIMALS)
    return any(abs(one - other) <= limit and one != 0 != other for one, other in pairs)


def _places(text: str) -> int:
    found = _PLACES.search(text)
    return len(found[1]) if found else 0


def same_times(gold: str, answer: str) -> bool | None:
    r"""Compare times such as 9 a.m. and 4:30 \text{ p.m.}; one side may omit a.m. or p.m."""
    one, other = (_TIME.fullmatch(bare_words(text)) for text in (gold, answer))
    if one is None or other is None or not (one[2] or other[2] or ":" in one[1] + other[1]):
        return None
    halves = {half[0].casefold() for half in (one[2], other[2]) if half}
    return len(halves) < 2 and _clock(one[1]) == _clock(other[1])


def _clock(time: str) -> str:
    return re.sub(r"\s|^0|:00$", "", time)


_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_MONTH = (
    r"(jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)\.?"
)
_DATE = re.compile(
    rf"(?:(?:on\s)?(?:mon|tues|wednes|thurs|fri|satur|sun)day\s?,?\s)?(?:on\s)?(?:the\s)?"
    rf"(?:{_MONTH}\s(?:the\s)?(\d{{1,2}})(?:st|nd|rd|th)?|(\d{{1,2}})(?:st|nd|rd|th)?\s(?:day\s)?(?:of\s)?{_MONTH})"
    r"(?:\s?,?\s(?:of\s)?(\d{4}))?",
    re.I,
)


def same_dates(gold: str, answer: str) -> bool | None:
    r"""Compare dates such as `\text{March 4}`, "4th of March" and "March 4, 2020"; one side may omit the
    year. None if the gold answer is no date, or the answer is neither a date nor a number."""
    one, other = (_DATE.fullmatch(re.sub(r"\s+", " ", bare_words(text))) for text in (gold, answer))
    if one is None:
        return None
    if other is None:
        return False if exact(answer) is not None else None
    years = {year for year in (one[5], other[5]) if year}
    return len(years) < 2 and _day(one) == _day(other)


def _day(date: re.Match[str]) -> tuple[int, int]:
    return _MONTHS.index((date[1] or date[4])[:3].casefold()), int(date[2] or date[3])


def same_numerals(gold: str, answer: str) -> bool | None:
    r"""Compare numerals such as 1011_2 and 1011_{\text{two}}; one side may omit the base, which the problem
    states."""
    one, other = _NUMERAL.fullmatch(gold), _NUMERAL.fullmatch(answer)
    if one and other:
        return one[1].casefold() == other[1].casefold() and _base(one[2]) == _base(other[2])
    if not one and not other:
        return None
    digits, bare = (one[1], answer) if one else (other[1] if other else "", gold)
    return digits.casefold() == bare.casefold().replace(" ", "") or None


def _base(name: str) -> str:
    return _BASES.get(name.casefold(), name)
