"""IFEval's 25 types of verifiable instructions, one check function each (2311.07911).

A check takes the response and, as keyword arguments, the record's `kwargs` of the instruction (the names and
the misspelt `section_spliter` are the dataset's). The checks agree with the reference implementation
(google-research, instruction_following_eval), including its quirks, take time linear in the response, and
never raise for any response. As in the reference, words to look for are regular expressions.
"""

import functools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from distill.benchmarks.grading import sentences

Relation = Literal["less than", "at least"]


def _compare(count: int, relation: Relation, threshold: int) -> bool:
    return count < threshold if relation == "less than" else count >= threshold


# --- keywords


def existence(response: str, *, keywords: list[str]) -> bool:
    """All keywords occur, also inside other words; case-insensitive."""
    patterns = [re.compile(keyword, re.IGNORECASE) for keyword in keywords]
    return all(pattern.search(response) for pattern in patterns)


def frequency(response: str, *, keyword: str, frequency: int, relation: Relation) -> bool:
    """The keyword occurs the required number of times, also inside other words; case-insensitive."""
    found = re.finditer(keyword.strip(), response, re.IGNORECASE)
    return _compare(sum(1 for _ in found), relation, frequency)


def forbidden_words(response: str, *, forbidden_words: list[str]) -> bool:
    """None of the words occurs as a whole word; case-insensitive."""
    patterns = [re.compile(rf"\b{word}\b", re.IGNORECASE) for word in forbidden_words]
    return not any(pattern.search(response) for pattern in patterns)


def letter_frequency(response: str, *, letter: str, let_frequency: int, let_relation: Relation) -> bool:
    """The character occurs the required number of times; case-insensitive. Two records ask for `#` and `!`:
    they are counted here, while the reference replaces them by random letters."""
    if len(letter) != 1:
        raise ValueError(f"letter={letter!r} is not one character")
    return _compare(response.lower().count(letter.lower()), let_relation, let_frequency)


# --- language


@functools.cache
def _detectors() -> Any:
    from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory

    factory = DetectorFactory()  # langdetect's global factory is not thread-safe while it loads
    factory.set_seed(0)  # seeds every detection, so that results depend neither on order nor on threads
    # Sorted, because the folder's order differs between machines and affects the rounding of sums.
    files = sorted(Path(PROFILES_DIRECTORY).iterdir(), key=lambda file: file.name)
    factory.load_json_profile([file.read_text("utf-8") for file in files if not file.name.startswith(".")])
    return factory


def _language(text: str) -> str | None:
    """ISO 639-1 code of the text's language; None if the text has no letters."""
    if not text.strip():
        return None
    from langdetect.lang_detect_exception import LangDetectException

    detector = _detectors().create()
    detector.append(text[:50_000])  # only the first 10,000 characters outside addresses are used
    try:
        return detector.detect()
    except LangDetectException:
        return None


def response_language(response: str, *, language: str) -> bool:
    """The response is in the language, or has no letters."""
    return _language(response) in (language, None)


# --- length constraints


def number_sentences(response: str, *, num_sentences: int, relation: Relation) -> bool:
    """The response has the required number of sentences (see `distill.benchmarks.grading.sentences`)."""
    return _compare(len(sentences.split(response)), relation, num_sentences)


def number_paragraphs(response: str, *, num_paragraphs: int) -> bool:
    """The response has exactly `num_paragraphs` paragraphs separated by `***`. Only the first and the last
    may be empty; they are not counted then."""
    first, *others = re.split(r"\s?\*\*\*\s?", response)
    *inner, last = others or [first]
    if not all(paragraph.strip() for paragraph in inner):
        return False
    ends = [first, last] if others else [first]
    return len(inner) + sum(1 for paragraph in ends if paragraph.strip()) == num_paragraphs


def number_words(response: str, *, num_words: int, relation: Relation) -> bool:
    """The response has the required number of words: runs of letters, digits and underscores."""
    return _compare(sum(1 for _ in re.finditer(r"\w+", response)), relation, num_words)


def nth_paragraph_first_word(
    response: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str
) -> bool:
    """The response has exactly `num_paragraphs` paragraphs separated by empty lines, and the nth starts with
    the word. Empty paragraphs are numbered, but not counted."""
    if not 1 <= nth_paragraph <= num_paragraphs:
        raise ValueError(f"nth_paragraph={nth_paragraph} of num_paragraphs={num_paragraphs} does not exist")
    paragraphs = [paragraph.strip() for paragraph in response.split("\n\n")]
    if sum(map(bool, paragraphs)) != num_paragraphs or not (paragraph := paragraphs[nth_paragraph - 1]):
        return False
    word = paragraph.split(maxsplit=1)[0].lstrip("'").lstrip('"')
    return re.split("[.,?!'\"]", word, maxsplit=1)[0].lower() == first_word.lower()


# --- detectable content


def number_placeholders(response: str, *, num_placeholders: int) -> bool:
    """The response has at least `num_placeholders` placeholders in square brackets, each within a line."""
    # Cutting lines after their last bracket keeps the search linear in the number of open brackets.
    closed = (line[: line.rfind("]") + 1] for line in response.split("\n") if "]" in line)
    return sum(len(re.findall(r"\[.*?\]", line)) for line in closed) >= num_placeholders


def postscript(response: str, *, postscript_marker: str) -> bool:
    """The postscript marker occurs; case-insensitive."""
    marker = postscript_marker.strip()
    written = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}.get(marker, marker.lower())
    return re.search(written, response.lower()) is not None


# --- detectable format


def number_bullet_lists(response: str, *, num_bullets: int) -> bool:
    """The response has exactly `num_bullets` bullet points: lines starting with `-` or a single `*`."""
    stars = re.findall(r"^[^\S\n]*\*[^*].*$", response, re.MULTILINE)
    dashes = re.findall(r"^[^\S\n]*-.*$", response, re.MULTILINE)
    return len(stars) + len(dashes) == num_bullets


def constrained_response(response: str) -> bool:
    """One of the three fixed answers occurs."""
    options = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
    return any(option in response for option in options)


def number_highlighted_sections(response: str, *, num_highlights: int) -> bool:
    """At least `num_highlights` non-empty highlights, `*text*` or `**text**`, each within a line."""
    single = [found.strip("*") for found in re.findall(r"\*[^\n*]*\*", response)]
    double = [found[2:-2] for found in re.findall(r"\*\*[^\n*]*\*\*", response)]
    return sum(1 for found in single + double if found.strip()) >= num_highlights


def multiple_sections(response: str, *, section_spliter: str, num_sections: int) -> bool:
    """At least `num_sections` sections, each starting with the splitter and a number, as in `Section 1`."""
    return len(re.split(rf"\s?{section_spliter.strip()}\s?\d+\s?", response)) > num_sections


def json_format(response: str) -> bool:
    """The whole response is JSON, optionally in a Markdown fence."""
    text = response.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def title(response: str) -> bool:
    """A non-empty title in double angle brackets, `<<title>>`, occurs within a line."""
    for line in filter(None, response.split("\n")):
        start, end = line.find("<<"), line.rfind(">>")
        if 0 <= start < end and line[start : end + 2].lstrip("<").rstrip(">").strip():
            return True
    return False


# --- combination


def two_responses(response: str) -> bool:
    """Two different responses separated by `******`, which may also stand at the start and end."""
    first, *others = (part.strip() for part in response.split("******"))
    *inner, last = others or [""]
    given = [part for part in (first, *inner, last) if part]
    return all(inner) and len(given) == 2 and given[0] != given[1]


def repeat_prompt(response: str, *, prompt_to_repeat: str) -> bool:
    """The response starts with the prompt; case-insensitive."""
    return response.strip().lower().startswith(prompt_to_repeat.strip().lower())


# --- start and end


def end_checker(response: str, *, end_phrase: str) -> bool:
    """The response ends with the phrase, optionally quoted; case-insensitive."""
    return response.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def quotation(response: str) -> bool:
    """The response is wrapped in double quotation marks."""
    text = response.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


# --- change of case, punctuation


def capital_word_frequency(response: str, *, capital_frequency: int, capital_relation: Relation) -> bool:
    """The required number of words in capitals (see `distill.benchmarks.grading.sentences`)."""
    return _compare(sentences.capital_words(response), capital_relation, capital_frequency)


def english_capital(response: str) -> bool:
    """The response is in capital letters and, as far as can be detected, in English."""
    return response.isupper() and _language(response) in ("en", None)


def english_lowercase(response: str) -> bool:
    """The response is in lower-case letters and, as far as can be detected, in English."""
    return response.islower() and _language(response) in ("en", None)


def no_comma(response: str) -> bool:
    """The response has no comma."""
    return "," not in response


Check = Callable[..., bool]
CHECKS: Mapping[str, Check] = {
    "keywords:existence": existence,
    "keywords:frequency": frequency,
    "keywords:forbidden_words": forbidden_words,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": response_language,
    "length_constraints:number_sentences": number_sentences,
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:number_words": number_words,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "detectable_content:number_placeholders": number_placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:number_bullet_lists": number_bullet_lists,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:number_highlighted_sections": number_highlighted_sections,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:json_format": json_format,
    "detectable_format:title": title,
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": repeat_prompt,
    "startend:end_checker": end_checker,
    "startend:quotation": quotation,
    "change_case:capital_word_frequency": capital_word_frequency,
    "change_case:english_capital": english_capital,
    "change_case:english_lowercase": english_lowercase,
    "punctuation:no_comma": no_comma,
}

_KINDS: Mapping[Any, tuple[str, Callable[[Any], bool]]] = {
    int: ("a whole number from 0", lambda value: type(value) is int and value >= 0),
    str: ("a text that is not empty", lambda value: isinstance(value, str) and bool(value.strip())),
    list[str]: (
        "a list of words",
        lambda value: (
            isinstance(value, list) and bool(value) and all(isinstance(v, str) and v for v in value)
        ),
    ),
    Relation: ("'less than' or 'at least'", lambda value: value in get_args(Relation)),
}


def arguments(instruction: object, given: object) -> dict[str, Any]:
    """Validate an instruction's `kwargs` for its check and drop nulls.

    Raises:
        ValueError: the instruction is unknown, or an argument is missing, unknown or invalid (the reference
            chooses missing ones at random).
    """
    if not isinstance(instruction, str) or (check := CHECKS.get(instruction)) is None:
        raise ValueError(f"instruction {instruction!r} is none of the 25 kinds")
    if not isinstance(given, Mapping):
        raise ValueError(f"instruction {instruction!r} has {type(given).__name__}, not an object")
    given = {name: value for name, value in given.items() if value is not None}
    expected = {k: kind for k, kind in get_type_hints(check).items() if k not in ("response", "return")}
    if set(given) != set(expected):
        needs, has = (", ".join(sorted(names)) or "nothing" for names in (expected, given))
        raise ValueError(f"instruction {instruction!r} needs {needs}, and the record has {has}")
    for name, kind in expected.items():
        description, fits = _KINDS[kind]
        if not fits(given[name]):
            raise ValueError(f"instruction {instruction!r}: {name}={given[name]!r} is not {description}")
    try:
        check("", **given)
    except (
        ValueError,
        re.error,
    ) as error:  # such as an invalid regular expression or paragraph number
        raise ValueError(f"instruction {instruction!r}: {error}") from error
    return given
