"""Excerpts of completions for display: shorten long texts and mark the extracted answer."""

import re
from typing import Any

SHORT_ANSWER = 200  # characters; a longer answer is a program
_MINUS = str.maketrans("−–﹣－", "----")  # one character for one, so that offsets stay valid

Piece = str | dict[str, Any]


def pieces(text: str, answer: str | None, rule: str, longest: int) -> list[Piece]:
    """Split a text into pieces for display.

    Args:
        text: the completion.
        answer: the answer extracted from it.
        rule: the rule that extracted the answer.
        longest: number of characters to show; the middle is cut, except around the answer.

    Returns:
        Strings, with `{"answer": ...}` for the answer and `{"cut": n}` where n characters are left out.
    """
    span = answer_span(text, answer, rule) if answer else None
    if span is not None and len(text) > longest and span[1] - span[0] > longest // 3:
        span = None  # too long to show
    found: list[Piece] = []
    at = 0
    for start, end in _windows(len(text), span, longest):
        if start > at:
            found.append({"cut": start - at})
        if span is not None and start <= span[0] and span[1] <= end:
            found += [text[start : span[0]], {"answer": text[span[0] : span[1]]}, text[span[1] : end]]
        else:
            found.append(text[start:end])
        at = end
    return [piece for piece in found if piece != ""]


def answer_span(text: str, answer: str, rule: str) -> tuple[int, int] | None:
    r"""Find the place that an answer was most likely extracted from.

    Returns:
        (start, end): depending on the rule the last `\boxed{}` with the answer, or its first occurrence
        after the last "answer is" or `####`; otherwise its last occurrence as a word. None if not found.
    """
    text, answer = text.translate(_MINUS), answer.translate(_MINUS).strip()
    if not answer:
        return None
    if len(answer) > SHORT_ANSWER:  # a program
        start = text.rfind(answer)
        return None if start < 0 else (start, start + len(answer))
    literal = re.escape(answer)
    if rule == "boxed" and (boxes := list(re.finditer(rf"boxed\s*\{{\s*({literal})\s*\}}", text))):
        return boxes[-1].span(1)
    if re.fullmatch(r"-?\d+(\.\d+)?", answer):  # the text may have thousands separators
        literal = re.sub(r"(?<=\d)(?=\d)", r"(?:,|\\\\,|\\{,\\})?", literal)
    # Not inside another number or word, but allow "3rd": the extraction reads a 3 there.
    before = r"(?<![\d.])(?<!\d,)" if answer[0].isdigit() else r"(?<!\w)" if answer[0].isalpha() else ""
    after = r"(?!\d|[.,]\d)" if answer[-1].isdigit() else r"(?!\w)" if answer[-1].isalpha() else ""
    word = re.compile(before + literal + after)
    marker = {"answer is": r"(?i:answer\s*(?:is|:))", "####": "####"}.get(rule)
    if marker and (said := list(re.finditer(marker, text))) and (found := word.search(text, said[-1].end())):
        return found.span()
    places = list(word.finditer(text))
    return places[-1].span() if places else None


def shortened(text: str, longest: int) -> str:
    """The text, or its two ends with a note if it is longer than `longest`."""
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters are left out here …]\n{text[-half:]}"


def _windows(length: int, span: tuple[int, int] | None, longest: int) -> list[tuple[int, int]]:
    """The (start, end) ranges to show: both ends, and the surroundings of an answer between them."""
    if length <= longest:
        return [(0, length)]
    third = longest // 3
    head, tail = third, length - third
    if span is None or span[1] <= head or tail <= span[0]:
        return [(0, head), (tail - third, length)]  # show more of the end, where the conclusion is
    around = (third - (span[1] - span[0])) // 2
    start, end = max(0, span[0] - around), min(length, span[1] + around)
    first, last = (0, head), (tail, length)
    if start <= head:
        return [(0, max(head, end)), last]
    return [first, (start, length)] if end >= tail else [first, (start, end), last]
