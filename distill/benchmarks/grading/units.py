r"""Strip units and currencies from answers: `5\text{ cm}^2`, `10 \frac{km}{h}`, `CHF 10`. Text rules only.

Texts must be normalized by `grading.notation.plain`, which drops signs of currencies."""

import re

_UNIT_TEXT = re.compile(r"\s?\\text\{[^{}]*\}\s?(?:\^\s?\{?\s?\d\s?\}?)?$|\s?/\s?\\text\{[^{}]*\}$")
_UNIT_WORDS = re.compile(
    r"(?:(?<=[\d})])|(?<=\\pi))(\s?)([A-Za-z]{1,20})"
    r"(?:\.?[ /][A-Za-z]{1,20}|\.){0,6}\s?(?:\^\s?\{?\s?\d\s?\}?)?$"
)
# Units that may follow a number with or without a space; single letters and other words need the space.
_UNITS = frozenset((
    "mm", "cm", "dm", "km", "in", "ft", "yd", "mi", "kg", "mg", "lb", "oz", "ml", "mL", "mph", "kmh", "kph",
    "secs", "sec", "min", "hr", "hrs", "deg", "rad", "sq", "dollars", "cents", "degrees", "euros", "rupees",
    "yen", "yuan", "pounds", "francs", "rubles", "pesos", "won",
))  # fmt: skip
_LETTERS = frozenset("mgshLlNJWVAKC")
_NO_UNIT = re.compile(
    r"(?:a?(?:sin|cos|tan)h?|cot|sec|csc|log|ln|exp|sqrt|mod|and|or|if|for|where|when|with)", re.I
)
_CODES = (
    "USD|EUR|GBP|JPY|CNY|RMB|CHF|INR|KRW|TWD|HKD|SGD|AUD|CAD|NZD|SEK|NOK|DKK|ISK|PLN|CZK|HUF|RON|BGN|RUB|UAH|TRY|ILS|BRL"
    "|MXN|ARS|CLP|COP|PEN|ZAR|NGN|KES|GHS|EGP|AED|SAR|THB|VND|IDR|MYR|PHP|PKR|BDT|LKR"
)
_SHORT = r"Rs\.?|kr\.?|Kr\.?|Fr\.?|zł|Kč|Ft|lei|RM|Rp\.?"
_CURRENCY = re.compile(
    rf"^(?:US)?(?:\\text\{{\s?)?(?:{_CODES}|{_SHORT}|dollars?)(?:\s?\}})?\s?(?=[-\d.\\])"
    rf"|(?<=[\d}}.)])\s?(?:{_CODES}|{_SHORT}|dollars?)$"
)
_ONE = r"(?:\\text\{[^{}]{1,20}\}|[A-Za-z]{1,8}\.?)\s?(?:\^\s?\{?\s?\d\s?\}?)?"
_QUOTIENT = re.compile(rf"(?<=[\d}})])\s?\\frac\{{\s?({_ONE})\s?\}}\{{\s?({_ONE})\s?\}}$")
# \frac{10 \text{ km}}{\text{h}}
_DIVIDED = re.compile(
    r"\\frac\{\s?([-\d.,]{1,20})\s?\\text\{[^{}]{1,20}\}\s?\}"
    r"\{\s?\\text\{[^{}]{1,20}\}\s?"
    r"(?:\^\s?\{?\s?\d\s?\}?)?\s?\}"
)


def without_unit(text: str) -> str:
    r"""Strip the unit from `5\text{ cm}^2`, `18 eggs`, `5 cm` or `10 \frac{km}{h}`; the whole text if
    there is no unit."""
    text = _CURRENCY.sub("", text).strip()
    if divided := _DIVIDED.fullmatch(text):
        return divided[1]
    quotient = _QUOTIENT.search(text)
    if quotient and all(map(_is_unit, quotient.groups())):
        return text[: quotient.start()].strip()
    for _ in range(4):
        found = _UNIT_TEXT.search(text)
        if found is None or found.start() == 0 or re.search(r"\b(?:and|or|if|mod)\b", found.group()):
            break
        text = re.sub(r"(?:/|\\cdot)\s?$", "", text[: found.start()]).strip()
    found = _UNIT_WORDS.search(text)
    if found is None or _NO_UNIT.fullmatch(found[2]):
        return text
    spaced, word = bool(found[1]), found[2]
    if word in _UNITS or (spaced and (len(word) > 2 or word in _LETTERS or word in ("of", "pm", "am"))):
        return text[: found.start()].strip()
    return text


def _is_unit(text: str) -> bool:
    """Whether the numerator or denominator of a quotient is a unit rather than a variable."""
    word = re.match(r"[A-Za-z]*", text)
    return text.startswith("\\text") or (word is not None and (word[0] in _UNITS or word[0] in _LETTERS))
