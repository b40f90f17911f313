"""Count sentences and capital words of English text like IFEval's reference, without data files.

The reference uses nltk, whose sentence splitter is Kiss & Strunk's ("Unsupervised Multilingual Sentence
Boundary Detection", Computational Linguistics 2006) with a model that must be downloaded. This module uses
the same rules (those of nltk 3.9), with short word lists instead of the model's capitalization statistics of
20,000 words. The results can differ if a capitalized word that is in none of the lists follows an
abbreviation, a single letter or an ellipsis. Of 24,521 texts (problems, models' solutions, quotations,
manuals, licences) with 71,725 sentences, 51 were counted differently, mostly by one sentence.
"""

import functools
import itertools
import re
import string
from collections.abc import Iterator

_NUMBER = "##number##"
# Characters that may directly follow a sentence's last word, and runs that are never split.
_CLOSING = r"""[)";}\]*:@'({\[!?]"""
_RUN = r"(?:-{2,}|\.{2,}|(?:\.\s){2,}\.)"
_END = re.compile(rf"[.?!](?=(?P<after>{_CLOSING}|\s+(?P<next>\S+)))")
_TOKEN = re.compile(
    rf"""{_RUN}
    |(?=[^("`{{\[:;&#*@)}}\]\-,])\S+?(?=\s|$|{_CLOSING}|{_RUN}|,(?=$|\s|{_CLOSING}|{_RUN}))
    |\S""",
    re.VERBOSE,
)
# Closing quotes and brackets belong to the sentence before them.
_BELONGS_BEFORE = re.compile(r"""["')\]}]+?(?:\s+|(?=--)|$)""", re.MULTILINE)
_NUMERIC = re.compile(r"-?[.,]?\d[\d,.-]*\.?$")
_INITIAL = re.compile(r"[^\W\d]\.$")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words that nltk's model always treats as abbreviations.
_ABBREVIATIONS = _words(
    """
    a.a a.c a.d a.g a.h a.m a.m.e a.s a.t adm ala ariz aug ave b.f b.v bros c c.i.t c.o.m.b c.v calif chg
    cie co col colo conn corp cos ct d d.c d.h d.w dec dr e e.f e.h e.l e.m f f.g f.j feb fla fri ft g g.d
    g.f g.k ga gen h h.c h.f h.m i.m.s ill inc j.b j.c j.j j.k j.p j.r jan jr k kan ky l l.a l.f l.p lt
    ltd m m.b.a m.d.c m.j maj messrs mg mich minn mr mrs ms n n.c n.d n.h n.j n.m n.v n.y nev nov oct ok
    okla ore p p.a.m p.m pa ph.d prof r r.a r.h r.i r.j r.k r.t rep reps s s.a s.a.y s.c s.g s.p.a s.s sen
    sep sept sr st sw t t.j tenn tues u.k u.n u.s u.s.a u.s.s.r v va vs vt w w.c w.r w.va w.w wash wed wis
    yr
    """
)
# Frequent sentence starters, which start a sentence even after an abbreviation.
_STARTERS = _words(
    """
    according although among both but despite even he however i if in indeed instead it many meanwhile
    moreover most nevertheless nonetheless nor sales separately similarly since so some the there these
    they this though thus under when while yet
    """
)
# Frequent words that are capitalized only at the start of a sentence, and frequent words that are also
# capitalized in titles or names.
_ALWAYS_SMALL = _words(
    """
    absolutely almost always anyone anything anyway apply ask being believe besides between beyond call
    calling certainly choose consider create does either enjoy especially eventually ever everywhere
    example except excuse explain finally finish follow furthermore given going hear hence her here
    highlight ignore imagine immediately include interesting learn likewise neither note nothing okay
    otherwise please pretty probably put regardless remember right seems send so somehow someday someone
    sometimes soon sorry still such suddenly suppose surely thank thanks therefore things think together
    tomorrow truly try unfortunately unless unlike upon user using very wait welcome were whenever whether
    which whom within without yes yesterday your
    """
)
_OFTEN_SMALL = _words(
    """
    a about actually add after all also an and another any are as at back be because before big bring by
    can come did do due during each eat everybody everyone everything few find first five for four from
    get give go god good great had half has have his how is its just keep know last later less let life
    like long look make man may maybe men money more must my never new next no nobody none not now of
    often old on once one only or other our pay people perhaps read real really run say see she should six
    something start stop sure take tell that their then those three time to today too two use was we well
    what where who whose why will with women would you
    """
)
_SMALL = _ALWAYS_SMALL | _OFTEN_SMALL | (_STARTERS - {"i"})
# Newspaper headings ("4. Business") in nltk's training data, after which its model does not split.
_AFTER_NUMBERS = _words(
    """
    abreast business colgate commodities cooper corrections credit dividend financing henley insider
    international leisure letters notable pegasus pepper review who zimmer
    """
)


def split(text: str) -> list[str]:
    """Split a text into non-empty sentences, in time linear in the text."""
    sentences = []
    start, moved = 0, 0  # moved: characters of this sentence's start that belong to the previous one
    for stop, following in [*_breaks(text), (len(text.rstrip()), None)]:
        begin, start = start + moved, following or 0
        moved = 0
        if following is not None and (taken := _BELONGS_BEFORE.match(text, following)):
            stop, moved = following + len(taken.group().rstrip()), taken.end() - following
            sentences.append(text[begin:stop])
        elif begin < stop:
            sentences.append(text[begin:stop])
    return sentences


def _breaks(text: str) -> Iterator[tuple[int, int]]:
    """Yield where each sentence stops and where the next one starts."""
    for end, word_start in _candidates(text):
        context = text[word_start : end.end()] + end.group("after")
        if (_holds_end if len(context) < 50 else _holds_end.__wrapped__)(context):
            yield end.end(), end.end() if end.group("next") is None else end.start("next")


def _candidates(text: str) -> Iterator[tuple[re.Match[str], int]]:
    """Yield the last . ? or ! of each word that is followed by something, and the start of that word."""
    previous, word_start = None, 0
    for found in _END.finditer(text):
        low = previous.start() if previous else 0
        space = max(text.rfind(blank, low, found.start()) for blank in string.whitespace)
        here = space + 1 if space > low else word_start
        if previous and previous.start() <= here:
            yield previous, word_start
        previous, word_start = found, here
    if previous:
        yield previous, word_start


@functools.lru_cache(maxsize=4096)  # for highly repetitive texts
def _holds_end(context: str) -> bool:
    tokens = [token for line in context.split("\n") for token in _TOKEN.findall(line) if token.strip()]
    return any(_ends(token, following) for token, following in itertools.pairwise(tokens))


def _ends(token: str, following: str) -> bool:
    """Whether a sentence ends with the token, given the next token (sections 4.1 to 4.3 of the paper)."""
    if not token.endswith("."):
        return token in ("?", "!")
    bare, next_word = _type(token).removesuffix(".") or ".", _type(following)
    if not _is_abbreviation(following):
        next_word = next_word.removesuffix(".") or "."
    dots = len(token) > 1 and not token.strip(".")
    abbreviated = _is_abbreviation(token)
    initial = _INITIAL.match(token) is not None
    if bare == _NUMBER and next_word in _AFTER_NUMBERS:
        return False
    starts = _starts(following, next_word)
    if (
        (abbreviated or dots)
        and not initial
        and (starts or (following[0].isupper() and next_word in _STARTERS))
    ):
        return True
    if initial or bare == _NUMBER:
        if starts is False:
            return False
        if starts is None and initial and following[0].isupper() and next_word not in _SMALL:
            return False
    return not (abbreviated or token.endswith(".."))


def _starts(token: str, word: str) -> bool | None:
    """Whether a word starts a sentence, judging by its capitalization; None if undecided."""
    if token in (";", ":", ",", ".", "!", "?") or token[0].islower():
        return False
    return True if token[0].isupper() and word in _ALWAYS_SMALL else None


def _type(token: str) -> str:
    return _NUMBER if _NUMERIC.match(token) else token.lower()


def _is_abbreviation(token: str) -> bool:
    word = token[:-1].lower()
    return (
        token.endswith(".")
        and not token.endswith("..")
        and (word in _ABBREVIATIONS or word.rpartition("-")[2] in _ABBREVIATIONS)
    )


# Rules of nltk's word tokenizer (Treebank): characters always split off, a sentence's final period, an
# opening quote, clitics before a space, and contractions of two words.
_ALWAYS_APART = re.compile(r"""[«»“”‘’„`\[\](){}<>;@#$%&?!*"]|\.{2,}|--|''|[:,](?!\d)""")
_LAST_PERIOD = re.compile(r"""(?<=[^.])\.(?=[\])}>"'»”’ ]*$)""")
_OPENING = re.compile(r"'(?![mtsdn])(?=\w\b)", re.IGNORECASE)
_CLITICS = (
    re.compile(r"(?<=[^'])(')(?= )"),
    re.compile(r"(?<=[^' ])('[sSmMdD]|')(?= )"),
    re.compile(r"(?<=[^' ])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T)(?= )"),
)
_TWO_WORDS = (
    re.compile(
        r"\b(can)(not)\b|\b(d)('ye)\b|\b(gim|lem)(me)\b|\b(gon)(na)\b|\b(got)(ta)\b|\b(more)('n)\b",
        re.IGNORECASE,
    ),
    re.compile(r"\b(wan)(na)(?=\s)|(?<= )('t)(is|was)\b", re.IGNORECASE),
)


def capital_words(text: str) -> int:
    """Count the words with capital letters and no lower-case letters. Hyphenated words are one word; n't, 's
    and similar are separate words, as in DO N'T."""
    # Skip pieces without capitals, which are most, before applying the slower rules.
    kept = [
        piece
        for sentence in split(text)
        for piece in _LAST_PERIOD.sub(" ", sentence).split()
        if not piece.islower()
    ]
    return sum(word.isupper() for word in _divide(" ".join(kept)))


def _divide(text: str) -> list[str]:
    text = _CLITICS[0].sub(r" \1", _OPENING.sub("' ", text))
    text = " " + " ".join(_ALWAYS_APART.sub(" ", text).split()) + " "
    for clitic in _CLITICS[1:]:
        text = clitic.sub(r" \1", text)
    for pair in _TWO_WORDS:
        text = pair.sub(lambda found: f" {' '.join(filter(None, found.groups()))} ", text)
    return text.split()
