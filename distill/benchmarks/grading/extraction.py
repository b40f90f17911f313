r"""Locate the final answer in a completion: boxes, markers, closing formulas. Text rules in linear time.

`distill.benchmarks.grading.answers.extract` applies these rules in order."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from distill.benchmarks.grading import wording


class Box(NamedTuple):
    r"""A `\boxed{...}`: its content, and its range from the backslash to after the closing brace."""

    content: str
    start: int
    end: int


# `\{` and `\}` are not groups. `\boxed 5` and `\boxed\frac{1}{2}` extend to the end of the formula.
_BRACES = re.compile(r"\\(?:boxed|fbox|framebox)\s{0,9}(\{)?|(?<!\\)\\[{}]|([{}])")
_FORMULA_END = re.compile(r"[$\n\\.,](?:(?<=[$\n])|(?<=\\)[\])]|(?<=\.)(?:\s|$)|(?<=,)\s)")
BREAK = re.compile(r"\n\s*\n\s*[A-Za-z#*]|[.!?][)$*\s\\\]]*\s[$\\(*\s]*[A-Z]")
_PLACEHOLDER = re.compile(
    r"(?:\\(?:text|mathrm|textbf)\{)?(?:\s|\\[ ,;:!]|~|\\q?quad(?![A-Za-z]))*"
    r"(?:\.{2,}|…|\?{1,5}|(?:\\?_){1,20}|\\[lc]?dots|\\(?:square|Box|bigcirc|blank)(?![A-Za-z])|\\[hv]?phantom\{[^{}]*\}"
    r"|\\(?:hspace|underline)\*?\{[^{}]*\}|(?:your )?(?:final )?answer(?: here)?|<[a-z _]+>)?"
    r"(?:\s|\\[ ,;:!]|~|\\q?quad(?![A-Za-z]))*\}?",
    re.I,
)
# End of an answer: the chat's special tokens, and the phrase in Minerva's prompt (2206.14858, appendix D.2).
_REST = re.compile(
    r"<\|[a-z_]{2,20}\|>|<｜[^｜\n]{2,40}｜>|</s>|<eos>|<end_of_turn>|I hope it is correct", re.I
)
# A base model often continues with another problem.
_TURN = re.compile(
    r"^[ \t]{0,3}(?:[#*>]{1,6}[ \t]{0,3})?(?:(?:next|new)[ \t])?"
    r"(?:question|problem|exercise|q|human|user|instruction|input)"
    r"(?:[ \t]{0,2}#?\d{1,4})?[ \t]?(?:\*\*)?[ \t]?:",
    re.I | re.M,
)
VERB = (
    r"(?:\bis\b|\bare\b|\bas\b"
    r"(?! an? (?:percent|fraction|decimal|mixed|common|integer|simpl|whole|ratio))"
    r"|would be|should be|must be|will be|comes? (?:out )?to)"
    r"(?:\s{1,3}(?:thus|therefore|simply|just|then|given by|as follows))?"
)
# "The answer is", "Answer:", "**Final Answer**", "the answer to the problem is", "<answer>".
MARKER = re.compile(
    r"\banswers?\b\**[ \t]{0,3}(?:\([^()\n]{0,40}\)[ \t]{0,3})?"
    r"(?:(?:to|of|for|in|from|as)\b[^.:=\n]{0,60}?)??"
    rf"(?=[\s*:=：iawsmc])(?:\s{{0,3}}{VERB}|\**[ \t]{{0,3}}[:=：]|\*\*[ \t]{{0,3}}\n)\**\s{{0,3}}[:：]?"
    r"|<answer>|(?:答案|答え|解答|정답|답)\**(?:是|为|は|은|는|：|:)\**|(?:故|因此|所以|答案)(?:答案)?[选選]择?[：:]?\s{0,3}(?=[A-J(（$\\])"
    r"|\b(?:r[ée]ponse|resp(?:ue|o)sta|risposta|antwort|ответ|odpowiedź|cevap|jawaban|उत्तर)"
    r"(?:\s(?:finale?|correcta?|corret[ao]|правильный))?\**\s{0,3}"
    r"(?:[:：]|\b(?:est|es|ist|lautet|is|é)\b(?:\s?:)?|\sè\s|[—–-]\s)\**(?:\s(?:la|el|le|die|der|das|il|o)(?=\s))?"
    r"|\bfinal answer[ \t]{0,3}\n|^#{1,6}[ \t]{0,3}answer[ \t]{0,3}\n",
    re.I | re.M,
)
_HOPE = re.compile("I hope it is correct", re.I)
_MINERVA = re.compile(r"final answer is:?([^\n]{1,400}?)\.?\s{0,3}I hope it is correct", re.I)
_MINERVA_LENGTH = 420  # without the hope
HASHES = re.compile(r"(?<!#)####(?!#)[ \t]{0,9}")
HEADING = re.compile(r"(?:\*\*)?(?:\d{1,3}[.):][ \t]+\S|(?:step|part|case|solution|method)\b)", re.I)
_OUTPUT = re.compile(r"```output[ \t]{0,9}\n([^`]{0,10000})```\s*\Z")
_FAILED = re.compile(r"Error\b|Traceback|Exception\b|Timeout", re.I)


_TOKEN_BOX = re.compile(r"<\|begin_of_box\|>((?:(?!<\|)[\s\S]){1,2000}?)<\|end_of_box\|>")
_FIELD = re.compile(
    r'[{,]\s{0,20}"(?:final[_ ]?)?answer"\s{0,3}:\s{0,3}'
    r'(?:"((?:[^"\\\n]|\\.){1,500})"|(-?[\d.]{1,40}))\s{0,20}(?=[,}])',
    re.I,
)


def with_marks(text: str) -> str:
    r"""The text with `\boxed{5}` for `<|begin_of_box|>5<|end_of_box|>`, and a line "Answer: 5" for the field
    of `{"answer": 5}`."""
    if "<|begin_of_box|>" in text:
        text = _TOKEN_BOX.sub(lambda found: rf"\boxed{{{found[1].strip()}}}", text)
    if '"' in text:
        text = _FIELD.sub(_stated_field, text)
    return text


def _stated_field(found: re.Match[str]) -> str:
    said = (found[1] or found[2]).replace("\\\\", "\\")
    return f"\n\nAnswer: {said}\n\n"


def answering_part(text: str) -> str:
    """The part of a completion that answers the question: up to the chat's end token, or to the next question
    that a base model makes up after its answer."""
    text = next((piece for piece in _REST.split(text) if piece.strip()), text)
    turns = [found.start() for found in _TURN.finditer(text)]
    begin = 0
    for turn in turns:
        if _answers(text[begin:turn]):
            return text[:turn]
        begin = turn
    return text


def _answers(part: str) -> bool:
    """Whether a turn contains an answer: a marker, or else a sentence that ends with a number."""
    if boxes(part) or MARKER.search(part) or after_hashes(part) is not None:
        return True
    # A sentence that ends with a number, then a blank line; but not the text of a problem.
    closed = re.search(r"\d[^\n\d?:]{0,30}\n[ \t]{0,9}\n\s{0,20}\Z", part[-100:])
    return closed is not None and _TURN.match(part.lstrip()) is None


def boxes(text: str) -> list[Box]:
    r"""All closed boxes, including nested ones, in the order of their ends; without empty ones (`\boxed{}`)
    and placeholders (`\boxed{...}`)."""
    return [
        box for box in _closed(text) if not _PLACEHOLDER.fullmatch(box.content[:40]) or len(box.content) > 40
    ]


def _closed(text: str) -> list[Box]:
    found: list[Box] = []
    open_braces: list[tuple[int, int]] = []  # start of the box, or -1 for a plain brace; start of the content
    for brace in _BRACES.finditer(text):
        if brace[2] == "{":
            open_braces.append((-1, brace.end()))
        elif brace[2] == "}":
            start, content = open_braces.pop() if open_braces else (-1, -1)
            if start >= 0:
                found.append(Box(text[content : brace.start()].strip(), start, brace.end()))
        elif brace[1]:
            open_braces.append((brace.start(), brace.end()))
        elif brace[0].startswith(("\\boxed", "\\fbox")):
            end = _FORMULA_END.search(text, brace.end(), brace.end() + 200)
            stop = end.start() if end else min(len(text), brace.end() + 200)
            found.append(Box(text[brace.end() : stop].strip().rstrip("."), brace.start(), stop))
    return found


def last_box(text: str) -> Box | None:
    r"""The box that starts last; if no box is closed, one that ends with its formula
    (`$\boxed{\frac{1}{2}$`)."""
    closed = boxes(text)
    if closed:
        return max(closed, key=lambda box: box.start)
    begun = text.rfind("\\boxed{")
    if begun < 0 or any(box.start == begun for box in _closed(text)):  # a placeholder
        return None
    content = begun + len("\\boxed{")
    end = re.compile(r"\$|\\[\])]").search(text, content, content + 300)
    if end is None or "\n" in text[content : end.start()]:
        return None
    return Box(text[content : end.start()].strip(), begun, end.start())


def outer_boxes(text: str) -> list[Box]:
    """The boxes that are in no other box, in order."""
    outer: list[Box] = []
    for box in sorted(boxes(text), key=lambda box: box.start):
        if not outer or box.start >= outer[-1].end:
            outer.append(box)
    return outer


def closing_boxes(text: str) -> list[str]:
    r"""Contents of the boxes in the sentence with the last box, in order: both of "so $\boxed{1}$ and
    $\boxed{2}$". Nested boxes are ignored."""
    return [box.content for box in closing_of(text, outer_boxes(text))]


def closing_of(text: str, outer: list[Box]) -> list[Box]:
    """Those of the outer boxes that are in the sentence with the last one."""
    closing: list[Box] = []
    for box in reversed(outer):
        if closing:
            between = text[box.end : closing[-1].start]
            if len(between) > 80 or BREAK.search(between):
                break
        closing.append(box)
    return closing[::-1]


def stated(text: str) -> str | None:
    """The answer in the form of Minerva's prompt (2206.14858, appendix D.2), "The final answer is $5$. I hope
    it is correct."; the first one, because base models continue after it."""
    # By the hope, which is rare: every "final answer is" would be followed up to 400 characters.
    tried = (
        _MINERVA.search(text, max(0, hope.start() - _MINERVA_LENGTH), hope.end())
        for hope in _HOPE.finditer(text)
    )
    first = next(filter(None, tried), None)
    found = None if first is None else _MINERVA.match(text, first.start())
    return None if found is None or "boxed" in found[1] else found[1].strip().rstrip(".").strip() or None


def after_marker(text: str) -> Iterator[str]:
    """Yield the rest of the paragraph after each "answer is" or similar marker, last one first."""
    for mark in reversed(list(MARKER.finditer(text))[-20:]):
        # Limit the length, in case the text has no blank lines.
        rest = text[mark.end() : mark.end() + 5000].lstrip(" \t\n:*_")
        if rest := re.split(r"\n\n|</answer>", rest, maxsplit=1)[0]:
            yield rest


def after_hashes(text: str) -> str | None:
    """The rest of the line after the last `####` that is not a heading."""
    found = _last_hashes(text)
    return None if found is None else found[0]


def end_of_hashes(text: str) -> int:
    """Where the line of `after_hashes` ends."""
    found = _last_hashes(text)
    return 0 if found is None else found[1]


def ends_in_hashes(text: str) -> bool:
    """Whether the text's last line begins with the hashes of `after_hashes` and holds no box."""
    if (found := _last_hashes(text)) is None or text[found[1] :].strip():
        return False
    line = text[text.rfind("\n", 0, found[1]) + 1 : found[1]]
    return line.lstrip().startswith("####") and "boxed" not in line


def _last_hashes(text: str) -> tuple[str, int] | None:
    for mark in reversed(list(HASHES.finditer(text))[-50:]):
        rest = text[mark.end() : mark.end() + 5000].split("\n", 1)[0]
        line = rest.strip()
        if line and not HEADING.match(line) and not line.endswith(":"):
            return line, mark.end() + len(rest)
    return None


_LETTER = r"[*_$(\[]{0,4}(?:\\(?:text|textbf|mathrm|mathbf)\{)?[*_$(\[]{0,4}([A-J])[*_$)\].]{0,4}\}?\$?"
_OPTION = r"(?i:option|choice|answer|alternative)"
_ANY_LETTER = re.compile(r"[A-J](?![A-Za-z])")
_ALONE = _LETTER + r"(?![A-Za-z'])"
_CHOSEN = re.compile(
    r"\b(?i:correct|right|best|final)\s+(?i:option|choice|alternative|statement)\**\s*"
    rf"(?:is|:|would be)[\s*:]*(?:{_OPTION}\s+)?{_ALONE}"
    rf"|\b{_OPTION}\s+(?:for\s[^.\n]{{1,40}}\s)?(?:is|:)[\s*:]*{_ALONE}"
    rf"|(?:\b{_OPTION}\s+|[(*\s]){_LETTER}(?:\s[^\s.]{{1,12}})?\s+(?:is|must be|would be)\s+"
    r"(?:therefore\s+|thus\s+)?(?:the\s+)?(?:only\s+)?(?:correct|right|best|answer|match|option|choice)\b"
    rf"|\b(?:choose|pick|select|go with)\s+(?:{_OPTION}\s+)?{_ALONE}"
    rf"|\b(?:corresponds to|matches|is|be)\s+{_OPTION}\s+{_ALONE}"
    rf"|(?:\b{_OPTION}|\b(?i:hence|therefore|thus|so),?|=>|→)\s+{_LETTER}\s*\Z",
)
_LAST_LETTER = re.compile(
    r"[\s>*_]*(?:option|choice)?[\s*_]*" + _LETTER + r"(?:[).:]\s.{1,80})?[\s*_.]*", re.I
)


_MARKED = r"[*_$(\[]{0,4}[A-J][*_$)\].]{0,4}"
_LETTERS = rf"{_MARKED}(?:\s?(?:,|;|&|,?\s?\b(?:and|or)\b)\s?{_MARKED}(?![A-Za-z])){{1,9}}"
_ALL_CHOSEN = re.compile(
    rf"\b(?i:options|choices|answers?|alternatives|statements)\**\s*(?i:are|is|:)[\s*:]*(?:both\s+|all\s+)?({_LETTERS})"
    rf"|({_LETTERS})\s+are\s+(?:(?:both|all)\s+)?(?:the\s+)?(?:correct|right)\b"
)


def choices(text: str) -> str | None:
    """The letters that the text says are the right choices: "the correct options are A, C and D"."""
    if not _ANY_LETTER.search(text):
        return None
    last = None
    for last in _ALL_CHOSEN.finditer(text, max(0, len(text) - 2_000)):  # noqa: B007
        pass
    return (
        None
        if last is None
        else ", ".join(
            re.findall(r"(?<![A-Za-z])[A-J](?![A-Za-z])", last[0][last[0].find(last[1] or last[2]) :])
        )
    )


def choice(text: str) -> str | None:
    """The letter that the text says is the right choice: "the correct option is (B)", "B is correct"; the
    letters, if it names several."""
    if (several := choices(text)) is not None:
        return several
    if not _ANY_LETTER.search(text):
        return None
    last = None
    for last in _CHOSEN.finditer(text):  # noqa: B007
        pass
    return None if last is None else next(filter(None, last.groups()))


_STANDING = re.compile(r"(?<![\w\\{^_'-])(?:A(?!\s+(?!(?:and|or)\b)[a-z])|[B-J])(?![\w'^_-])")
_CONCLUDES = re.compile(
    r"\b(?:options?|choices?|answers?|correct|right|one|must|therefore|hence|thus|so|final|result|gives)\b",
    re.I,
)


def last_letter(text: str) -> str | None:
    """The letter of a choice that stands alone in the last line, "(B)", "B) 12", or as the only letter in a
    concluding sentence without numbers, "It must be B"."""
    line = text.rstrip().rpartition("\n")[2]
    found = _LAST_LETTER.fullmatch(line) if len(line) < 120 else None
    if found and found[1].isupper():
        return found[1]
    sentence = re.split(r"[.!?]\s", line.rstrip(" .*"))[-1]
    letters = _STANDING.findall(sentence)
    said = (
        len(letters) == 1
        and len(sentence) < 80
        and _CONCLUDES.search(sentence)
        and not re.search(r"\d", sentence)
    )
    return letters[0] if said else None


_BOLD_CONCLUSION = re.compile(
    r"\W{0,5}(?:so|thus|therefore|hence|finally|in conclusion|consequently)\b"
    r"[^*\n]{0,80}\*\*([^*\n]{1,40})\*\*[^*\n]{0,120}",
    re.I,
)


def last_bold(text: str) -> str | None:
    """The only bold words of a last line that concludes: "Therefore, **Navin** sits next to Lily."."""
    found = _BOLD_CONCLUSION.fullmatch(text.rstrip().rpartition("\n")[2])
    return None if found is None else found[1].strip(" .:,") or None


def program_output(text: str) -> str | None:
    """The last line of program output, if the completion ends with it (ToRA, 2309.17452)."""
    found = _OUTPUT.search(text, max(0, len(text) - 12_000))
    lines = found[1].strip().splitlines() if found else []
    return lines[-1].strip() if lines and not _FAILED.search(lines[-1]) else None


MATHS = re.compile(
    r"\$\$(?P<display>(?:[^$\\]|\\.){1,2000}?)\$\$"
    r"|\\\[(?P<bracket>(?:[^\\]|\\[^\]]){1,2000}?)\\\]"
    r"|\\\((?P<round>(?:[^\\]|\\[^)]){1,2000}?)\\\)"
    r"|(?<![\\$])\$(?P<inline>(?:[^$\\\n]|\\.){1,500}?)(?<=\S)\$(?![\d$])"
    r"|(?<![\\$])\$ (?P<spaced>(?:[^$\\\n]|\\.){1,500}?) \$(?![\d$])",
    re.S,
)
# Filler words between a marker and its formula; they are not an answer themselves.
_FILLERS = (
    "that the a an value values of is are be equal equals to simply just therefore thus exactly "
    "approximately about interval set point points expression equation function number numbers all real "
    "option choice either then given by as follows in form simplest matrix vector coordinates ordered "
    "pair pairs solution solutions polynomial range domain sum product total maximum minimum there we "
    "have"
)
LEAD = re.compile(rf"[\s:*_,]*(?:(?:{'|'.join(_FILLERS.split())})[\s:*_,]+)*", re.I)
SUBJECT = re.compile(r"[A-Za-z()|' ]{1,40}?(?:=|\bis\b|\bare\b)\s*")
_UNIT = re.compile(r"\s?(?:\\?%|percent\b)")
_SAYS = re.compile(r"\b(?:is|are|was|were|equals?)\s+", re.I)
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_TWO_WORDS = re.compile(r"[A-Za-z]{2,} [A-Za-z]+ ")
_CONNECTED = re.compile(r"\s*(?:,|;|and|or|,\s*and|,\s*or|\\cup|=|\+|\\pm|is|are|equals)\s*", re.I)
SENTENCE_END = re.compile(
    r"\n|[.!?](?=\s|$|\*|\")|,?\s+(?:because|since|so that|which|where|when|while|but|i\.e|as the|as we)\b"
    r"|,\s+(?:as|so|for|if|thus|hence|not)\b|(?<=[\d$%}])\s+\((?=[A-Za-z]{2,20}\b)"
    r"|(?<=[\d$)}%])[,;]\s+(?=(?!and\b|or\b)[a-z]{3,20}\s+[a-z]{2})"
)


# Stars around words; x**2 is a power, a*b and x_1 are not. The opening mark may be gone with the marker.
_BOLD = re.compile(r"(?<![\w)])\*\*|\*\*(?![\w(-])|__|`")
_ITALICS = re.compile(r"(?<![\w)\]}^*\\])([*_])(?=[^\s*_])([^*\n]{0,200}?[^\s*_^\\])\1(?![\w(*_{])")
_ITALICS_END = re.compile(r"(?<=[\w)\]}.!%])(?<!\^)[*_]{1,3}(?=[\s.,;:!]*$|\s+[A-Za-z]{2})")
_SCALE = re.compile(r"\s(?:dozen|hundred|thousand|million|billion|trillion)\b", re.I)


def expression(paragraph: str) -> str | None:
    r"""The answer at the start of a paragraph: its formulas (`$...$`, `\(...\)`, `\[...\]`), joined if only
    commas or "and" separate them, or else the words of its first sentence."""
    lead = LEAD.match(paragraph)
    first = MATHS.match(paragraph, lead.end() if lead else 0)
    if first is None and (subject := SUBJECT.match(paragraph, lead.end() if lead else 0)):
        first = MATHS.match(paragraph, subject.end())
    if first is not None:
        pieces, end = [_inside(first)], first.end()
        while (joint := _CONNECTED.match(paragraph, end)) and (more := MATHS.match(paragraph, joint.end())):
            named = joint.group().strip() in ("is", "are", "equals")  # "the value of $x$ is $5$"
            pieces, end = [*([] if named else [*pieces, joint.group()]), _inside(more)], more.end()
        if pieces[-1]:
            scale = _SCALE.match(paragraph, end)
            return "".join([*pieces, "%" if _UNIT.match(paragraph, end) else "", scale[0] if scale else ""])
    end = SENTENCE_END.search(paragraph)
    sentence = _BOLD.sub("", paragraph[: end.start()] if end else paragraph).strip()
    sentence = _ITALICS_END.sub("", _ITALICS.sub(r"\2", sentence)).strip().rstrip(".,;: ")
    says = list(_SAYS.finditer(sentence))
    if says and re.search(r"[\d$]", sentence[says[-1].end() :]):  # "Final answer: the area is 12"
        return expression(sentence[says[-1].end() :])
    numbers = _NUMBER.findall(sentence)
    in_words = wording.in_symbols(sentence) != sentence  # "all real numbers except 2"
    if len(numbers) == 1 and _TWO_WORDS.match(sentence) and not in_words:  # "Jane began 3 hours ago"
        scale = _SCALE.match(sentence, sentence.index(numbers[0]) + len(numbers[0]))
        return numbers[0].rstrip(",") + (scale[0] if scale else "")
    return sentence or None


def last_formula(text: str) -> str | None:
    """The formula at the end of the text, followed by at most a few words; None if there is none."""
    tail = text.rstrip()[-2500:]
    last = None
    for last in MATHS.finditer(tail):  # noqa: B007
        pass
    if last is None or not re.fullmatch(r"[^\d$\n]{0,40}", tail[last.end() :]):
        return None
    return _inside(last).strip() or None


def _inside(maths: re.Match[str]) -> str:
    return next(group for group in maths.groups() if group is not None).strip().rstrip(".,;")
