"""IFEval's 25 kinds of verifiable instruction, one function each (2311.07911).

A check is given the response, and by keyword what the record says of the instruction (its `kwargs`; the names
and the misspelt `section_spliter` are the data's). They decide as the reference implementation does
(google-research, instruction_following_eval), its quirks included, in time linear in the response, and raise
nothing whatever the response. Words to look for are regular expressions there, and so here.
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
    """All keywords occur, also inside other words; case does not count."""
    patterns = [re.compile(keyword, re.IGNORECASE) for keyword in keywords]
    return all(pattern.search(response) for pattern in patterns)


def frequency(response: str, *, keyword: str, frequency: int, relation: Relation) -> bool:
    """The keyword occurs so often, also inside other words; case does not count."""
    found = re.finditer(keyword.strip(), response, re.IGNORECASE)
    return _compare(sum(1 for _ in found), relation, frequency)


def forbidden_words(response: str, *, forbidden_words: list[str]) -> bool:
    """None of the words occurs as a word of its own; case does not count."""
    patterns = [re.compile(rf"\b{word}\b", re.IGNORECASE) for word in forbidden_words]
    return not any(pattern.search(response) for pattern in patterns)


def letter_frequency(response: str, *, letter: str, let_frequency: int, let_relation: Relation) -> bool:
    """The character occurs so often; case does not count. The reference draws a letter by chance in place of
    the `#` and the `!` that two of the records ask for; here these are counted."""
    if len(letter) != 1:
        raise ValueError(f"letter={letter!r} is not one character")
    return _compare(response.lower().count(letter.lower()), let_relation, let_frequency)


# --- language


@functools.cache
def _detectors() -> Any:
    from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory

    factory = DetectorFactory()  # our own: langdetect's is half loaded while another thread makes it
    factory.set_seed(0)  # each text's draw starts from it, so that neither order nor threads matter
    # Sorted: a folder's own order differs between machines, and with it how sums are rounded.
    files = sorted(Path(PROFILES_DIRECTORY).iterdir(), key=lambda file: file.name)
    factory.load_json_profile([file.read_text("utf-8") for file in files if not file.name.startswith(".")])
    return factory


def _language(text: str) -> str | None:
    """The text's language as ISO 639-1 gives it; None where it has no letters to tell it by."""
    if not text.strip():
        return None
    from langdetect.lang_detect_exception import LangDetectException

    detector = _detectors().create()
    detector.append(text[:50_000])  # it reads the first 10,000 characters that are no address
    try:
        return detector.detect()
    except LangDetectException:
        return None


def response_language(response: str, *, language: str) -> bool:
    """The response is in the language, or has no letters to tell it by."""
    return _language(response) in (language, None)


# --- length constraints


def number_sentences(response: str, *, num_sentences: int, relation: Relation) -> bool:
    """So many sentences, as `distill.benchmarks.grading.sentences` splits them."""
    return _compare(len(sentences.split(response)), relation, num_sentences)


def number_paragraphs(response: str, *, num_paragraphs: int) -> bool:
    """Exactly so many paragraphs, divided by `***`; none but the first and the last may be empty, and these
    do not count then."""
    first, *others = re.split(r"\s?\*\*\*\s?", response)
    *inner, last = others or [first]
    if not all(paragraph.strip() for paragraph in inner):
        return False
    ends = [first, last] if others else [first]
    return len(inner) + sum(1 for paragraph in ends if paragraph.strip()) == num_paragraphs


def number_words(response: str, *, num_words: int, relation: Relation) -> bool:
    """So many words: runs of letters, digits and underscores."""
    return _compare(sum(1 for _ in re.finditer(r"\w+", response)), relation, num_words)


def nth_paragraph_first_word(
    response: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str
) -> bool:
    """Exactly so many paragraphs, divided by an empty line, and the nth begins with the word; empty ones are
    not counted, but have a number."""
    if not 1 <= nth_paragraph <= num_paragraphs:
        raise ValueError(f"nth_paragraph={nth_paragraph} of num_paragraphs={num_paragraphs} does not exist")
    paragraphs = [paragraph.strip() for paragraph in response.split("\n\n")]
    if sum(map(bool, paragraphs)) != num_paragraphs or not (paragraph := paragraphs[nth_paragraph - 1]):
        return False
    word = paragraph.split(maxsplit=1)[0].lstrip("'").lstrip('"')
    return re.split("[.,?!'\"]", word, maxsplit=1)[0].lower() == first_word.lower()


# --- detectable content


def number_placeholders(response: str, *, num_placeholders: int) -> bool:
    """At least so many placeholders in square brackets, each within a line."""
    # Cut behind its last bracket, a line is searched in one go, however many open.
    closed = (line[: line.rfind("]") + 1] for line in response.split("\n") if "]" in line)
    return sum(len(re.findall(r"\[.*?\]", line)) for line in closed) >= num_placeholders


def postscript(response: str, *, postscript_marker: str) -> bool:
    """The marker of a postscript occurs; case does not count."""
    marker = postscript_marker.strip()
    written = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}.get(marker, marker.lower())
    return re.search(written, response.lower()) is not None


# --- detectable format


def number_bullet_lists(response: str, *, num_bullets: int) -> bool:
    """Exactly so many bullet points: lines that begin with `-`, or with a `*` that no other follows."""
    stars = re.findall(r"^[^\S\n]*\*[^*].*$", response, re.MULTILINE)
    dashes = re.findall(r"^[^\S\n]*-.*$", response, re.MULTILINE)
    return len(stars) + len(dashes) == num_bullets


def constrained_response(response: str) -> bool:
    """One of the three answers occurs."""
    options = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
    return any(option in response for option in options)


def number_highlighted_sections(response: str, *, num_highlights: int) -> bool:
    """At least so many highlights, `*so*` or `**so**`, each within a line and not empty."""
    single = [found.strip("*") for found in re.findall(r"\*[^\n*]*\*", response)]
    double = [found[2:-2] for found in re.findall(r"\*\*[^\n*]*\*\*", response)]
    return sum(1 for found in single + double if found.strip()) >= num_highlights


def multiple_sections(response: str, *, section_spliter: str, num_sections: int) -> bool:
    """At least so many sections, each begun with the splitter and a number, as in `Section 1`."""
    return len(re.split(rf"\s?{section_spliter.strip()}\s?\d+\s?", response)) > num_sections


def json_format(response: str) -> bool:
    """The whole response is JSON, alone or in a Markdown fence."""
    text = response.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def title(response: str) -> bool:
    """A title in double angular brackets, `<<so>>`, within a line and not empty."""
    for line in filter(None, response.split("\n")):
        start, end = line.find("<<"), line.rfind(">>")
        if 0 <= start < end and line[start : end + 2].lstrip("<").rstrip(">").strip():
            return True
    return False


# --- combination


def two_responses(response: str) -> bool:
    """Two different responses with `******` between them, and possibly before and behind."""
    first, *others = (part.strip() for part in response.split("******"))
    *inner, last = others or [""]
    given = [part for part in (first, *inner, last) if part]
    return all(inner) and len(given) == 2 and given[0] != given[1]


def repeat_prompt(response: str, *, prompt_to_repeat: str) -> bool:
    """The response begins with the prompt; case does not count."""
    return response.strip().lower().startswith(prompt_to_repeat.strip().lower())


# --- start and end


def end_checker(response: str, *, end_phrase: str) -> bool:
    """The response ends with the phrase, possibly quoted; case does not count."""
    return response.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def quotation(response: str) -> bool:
    """The response is wrapped in double quotation marks."""
    text = response.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


# --- change of case, punctuation


def capital_word_frequency(response: str, *, capital_frequency: int, capital_relation: Relation) -> bool:
    """So many words in capitals, as `distill.benchmarks.grading.sentences` finds words."""
    return _compare(sentences.capital_words(response), capital_relation, capital_frequency)


def english_capital(response: str) -> bool:
    """In capitals, and English as far as can be told."""
    return response.isupper() and _language(response) in ("en", None)


def english_lowercase(response: str) -> bool:
    """In small letters, and English as far as can be told."""
    return response.islower() and _language(response) in ("en", None)


def no_comma(response: str) -> bool:
    """No comma."""
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
    """What a record says of an instruction, without its nulls, ready for the check.

    Raises:
        ValueError: the instruction is none of these, or something is missing, too much or of the wrong kind
            (the reference draws by chance what it does not find).
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
    ) as error:  # a word that is no regular expression, a paragraph beyond the last
        raise ValueError(f"instruction {instruction!r}: {error}") from error
    return given
