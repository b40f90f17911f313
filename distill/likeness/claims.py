"""First-person claims of an identity in a text, by rule: "I am ChatGPT", "我是由OpenAI开发的".

A claim is a sentence in which the speaker gives itself, its maker or its model a name of the list. Left out
are sentences that ask, suppose or play a role, what is quoted, what is denied, and comparisons ("I am like
ChatGPT"). Marks of a speaker ("ChatGPT:") are removed first: they are layout, no claim.

2501.12619 counts such claims with a judge model. A simpler rule of this form agrees with that judge's
labels on the paper's published answers of eleven models to κ = .77 (precision .76, recall .87).
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple


class Claim(NamedTuple):
    """A sentence that claims an identity.

    Attributes:
        entity: whose.
        name: the name that was found.
        sentence: the sentence.
    """

    entity: str
    name: str
    sentence: str


@dataclass(frozen=True)
class Entities:
    """Names that a model may claim, by whom they belong to.

    Attributes:
        names: by entity, its models' and its maker's names, in both languages.
        exact: names that are also words ("Meta"), which count only as they are written here.
    """

    names: Mapping[str, Sequence[str]]
    exact: frozenset[str] = frozenset()

    def without(self, own: Iterable[str]) -> "Entities":
        """The entities without those that have one of the target's own names."""
        left_out = {name.casefold() for name in own}
        kept = {
            entity: names
            for entity, names in self.names.items()
            if left_out.isdisjoint(name.casefold() for name in (entity, *names))
        }
        return Entities(kept, self.exact)

    @cached_property
    def pattern(self) -> re.Pattern[str] | None:
        """Finds the names, as words of their own where they are in Latin letters; None if there is none."""
        every = sorted({name for names in self.names.values() for name in names}, key=len, reverse=True)
        if not every:
            return None
        return re.compile("|".join(_as_word(name, exact=name in self.exact) for name in every))

    @cached_property
    def _owners(self) -> dict[str, str]:
        return {name.casefold(): entity for entity, names in self.names.items() for name in names}

    def owner(self, name: str) -> str:
        """Whose a name is."""
        return self._owners[name.casefold()]

    def named_in(self, text: str) -> set[str]:
        """The entities that a text names anywhere."""
        return {self.owner(found[0]) for found in self.pattern.finditer(text)} if self.pattern else set()


def _as_word(name: str, *, exact: bool) -> str:
    spelled = re.escape(name) if exact else f"(?i:{re.escape(name)})"
    before = r"(?<![A-Za-z0-9])" if name[0].isascii() else ""
    return f"{before}{spelled}(?![A-Za-z])" if name[-1].isascii() else f"{before}{spelled}"


_REACH = 240  # characters around a name that are looked at: most sentences are shorter
_SENTENCE = re.compile(r"(?<=[.!?;])\s+|(?<=[。！？；])|\n+")
_SPEAKER = re.compile(r"^[\s>*_#\-]*[\[(<【「]?[\w.|\- ]{1,30}[\])>】」]?\s*\**[:：]\**\s+(?=\S)")
_SAYS = re.compile(r"(?i)\b(?:name|answer|model|maker|developer|company|called)\b|名|公司|开发|回答|模型")
_QUOTED = re.compile(r"\"[^\"\n]*\"|“[^”\n]*”|「[^」\n]*」|『[^』\n]*』|‘[^’\n]*’")
_SPEAKS = re.compile(r"\b(?:I|I'm|my|me)\b|我")
_PLAYED = re.compile(
    r"(?i)\b(?:imagin\w+|pretend\w*|suppos\w+|role[- ]?play\w*|in character|playing|acting as|let's say|"
    r"hypothetical\w*|fictional)\b|假设|假装|扮演|想象|角色"
)
_SUPPOSED = re.compile(r"(?i)\b(?:if|whether)\b|如果|假如|要是|是否")  # in the clause of the name itself
# What stands between the speaker and the name makes it no claim: it denies, compares or is about the name.
_DENIES = re.compile(
    r"(?i)\b(?:not|never|no|neither|nor|cannot|without|unlike|like|similar|than|different|distinct|separate|"
    r"independent|unrelated|compar\w+|compet\w+|familiar|aware|unaware|happy|glad|sorry|able|unable|sure|talking|"
    r"speaking|using|about|asked|told|tell|think|believe|mistaken|confused|inspired|data|texts?|books|articles|"
    r"questions?|information|news|search\w*)\b|n['’]t\b"
    r"|不|没|无|非|像|类似|相似|比|竞争|知道|了解|喜欢|高兴|使用|关于|以为|误|介绍|推荐|告诉"
)
_BUT = re.compile(r"(?i)\bbut(?:\s+rather)?\b|,\s*(?:instead|rather)\b|而是|其实是|[，,]是")
_MADE = (
    r"(?:develop|creat|train|buil|mad|design|releas|produc|launch|own|power|provid|back|fine-?tun|engineer|"
    r"introduc|programm|maintain|operat)(?:ed|e|t|n|er)?"
)
_MADE_ZH = r"(?:开发|研发|创建|创造|训练|打造|推出|提供|设计|制造|构建|研制|发布)"
_KIND = (
    r"(?:AI|A\.I\.|models?|assistants?|chatbots?|bot|LLMs?|systems?|program|agent|version|instance|product)"
)
_WITHIN = r"[^.!?;。！？；\n]"  # of a sentence
_ADVERBS = r"(?:,?\s+(?:actually|indeed|really|just|in fact|also|still|simply|of course|currently))*"
_ARTICLE = r"(?:the\s+|an?\s+|your\s+)?"
_LINK = r"(?:by|from|of|at|called|named|known as|on|as|with)"
# Each begins with the speaker, and the name follows it at once. `gap` is what must not deny.
_BEFORE_NAME = tuple(
    re.compile(pattern)
    for pattern in (
        # I am (actually) (the) NAME
        rf"\b(?:I am|I'm|I’m|[Ww]e are)(?P<gap>{_ADVERBS}\s+{_ARTICLE})$",
        # I am a large language model trained by NAME; I'm your assistant, NAME
        rf"\b(?:I am|I'm|I’m)(?P<gap>{_ADVERBS}\s+(?:an?|the|your|one of the)\s{_WITHIN}{{0,60}}?\b{_KIND}\b"
        rf"(?:{_WITHIN}{{0,60}}?\b{_LINK}\s+{_ARTICLE}(?:[\w-]+\s+){{0,3}}?|,?\s+))$",
        # I'm based on NAME; I am called NAME
        rf"\b(?:I am|I'm|I’m)(?P<gap>{_ADVERBS}\s+(?:based|powered|backed|called|named|known|owned|running|"
        rf"hosted|affiliated|part|from)\b{_WITHIN}{{0,40}}?\s{_ARTICLE})$",
        # I am not X but NAME
        rf"\b(?:I am|I'm|I’m)(?P<gap>{_ADVERBS}\s+not\s{_WITHIN}{{1,40}}?\bbut(?: rather)?\s+{_ARTICLE})$",
        # I was developed by NAME
        rf"\bI(?: was| have been|['’]ve been| am|['’]m)(?P<gap>\s+{_WITHIN}{{0,40}}?\b{_MADE}\b"
        rf"{_WITHIN}{{0,60}}?\b(?:by|from|at)\s+{_ARTICLE}(?:[\w-]+\s+){{0,4}}?)$",
        r"\b[Mm]y (?:(?:full|main|original|primary|official|actual|real|current|"
        r"[\"“]?parent[\"”]?) )*(?:name|creators?|developers?|makers?|company|team|owners?|"
        r"providers?|builders?|model|identity|base model|underlying model|organi[sz]ation)"
        rf"(?P<gap>{_WITHIN}{{0,40}}?\s)$",
        r"\b[Cc]all me(?P<gap>\s+)$",
        # You are talking to NAME; the AI that you are talking to is based on NAME
        r"\b[Yy]ou(?:'re| are) (?:talking|speaking|chatting|interacting) (?:to|with)(?P<gap>\s+(?:is\s+)?"
        rf"(?:based on\s+)?{_ARTICLE})$",
        r"\b(?:I (?:belong|come|originate)|I go by|I work for|[Ww]e at|[Mm]y colleagues at)"
        r"(?P<gap>\s+(?:to |from |the )*)$",
        # A sentence without a subject, and a line of a business card
        rf"^[\s>*_]*(?:[Dd]eveloped|[Cc]reated|[Tt]rained|[Bb]uilt|[Mm]ade|[Dd]esigned)(?P<gap>{_WITHIN}{{0,30}}?"
        rf"\bby\s+{_ARTICLE})$",
        r"^[\s>*_#-]*(?:Name|Model|Developer|Maker|Company|名称|名字|姓名|模型|公司|开发者|开发商)(?P<gap>)"
        r"[*_]*\s*[:：][*_]*\s*$",
        # 我是…NAME，我叫NAME
        r"我(?P<gap>(?:就|其实|真的|只|确实|目前|并|不|没)*(?:是|叫|名叫|名为|来自|属于|基于|隶属于)[^，,。！？；\n]{0,24}?"
        r"(?:[，,](?:是|而是|由|名叫|名为|叫|来自|基于)[^，,。！？；\n]{0,16}?)?)$",
        # 我是由NAME开发的
        rf"我(?:是)?(?P<gap>{_WITHIN}{{0,8}}?(?:由|被){_WITHIN}{{0,16}}?)$",
        r"我的(?:名字|全名|开发者|开发商|开发公司|开发团队|开发机构|创建机构|创造者|创建者|制造商|母公司|公司|团队|模型|身份)"
        rf"(?P<gap>{_WITHIN}{{0,10}}?)$",
        rf"^\s*由(?P<gap>{_WITHIN}{{0,12}}?)$",
    )
)
_BY_ZH = re.compile(rf"{_WITHIN}{{0,20}}?{_MADE_ZH}")  # behind 由 NAME
_MAKES_ME = re.compile(
    rf"(?:'s\s+\w+)?\s+(?:has\s+|have\s+|team\s+)?{_MADE}\s+me\b|{_WITHIN}{{0,12}}?{_MADE_ZH}(?:了|出)?我"
)
_AS = re.compile(
    rf"(?i)(?:^|[\s,])as\s+(?P<gap>(?:(?:an?|the)\s)?(?:{_WITHIN}{{0,60}}?\b(?:by|from|at|of|called|named)\s+)?)$"
)
_AS_ZH = re.compile(rf"作为(?P<gap>{_WITHIN}{{0,20}}?)$")
_AS_TAIL = re.compile(
    r"(?:['’]s)?(?:[\s-](?:AI|language|large|model|assistant|chatbot|\d[\w.]*))*\s*[,，]|[^,，]{0,16}[,，]\s*我"
)
_BARE = re.compile(r"(?i)^[\s\"'“”*_]*(?:(?:it is|it's|that is|that would be|the|by|是|由)\s*)?$")
_BARE_END = re.compile(r"^[\s\"'“”*_.。!！]*(?:公司|开发的?|team|inc\.?)?[\s\"'“”*_.。!！]*$")
_QUESTION = re.compile(r"[?？]\s*[\"'”*_]*$")


def claims(text: str, entities: Entities) -> list[Claim]:
    """The claims of an identity in an answer, at most one for each entity of a sentence.

    Args:
        text: the answer, without its thinking.
        entities: the names that count, without the target's own.
    """
    names = entities.pattern
    if names is None:
        return []
    found: list[Claim] = []
    for sentence in _SENTENCE.split(text):
        said = _without_question(_without_quotes(_without_speaker(sentence)))
        if not names.search(said):
            continue
        seen: set[str] = set()
        for place in names.finditer(said):
            entity = entities.owner(place[0])
            if entity not in seen and _is_claim(said, place, alone=said.strip() == text.strip()):
                seen.add(entity)
                found.append(Claim(entity, place[0], sentence.strip()))
    return found


def _without_speaker(sentence: str) -> str:
    """The sentence without a mark of its speaker, such as "ChatGPT:" or "[Claude]:"."""
    found = _SPEAKER.match(sentence)
    return sentence[found.end() :] if found and not _SAYS.search(found[0]) else sentence


def _without_quotes(sentence: str) -> str:
    """The sentence without quotations in which somebody speaks; a quoted name stays."""
    return _QUOTED.sub(lambda found: " " if _SPEAKS.search(found[0]) else found[0], sentence)


def _without_question(sentence: str) -> str:
    """The sentence without its question: "I am Claude, how can I help?" ends behind the name."""
    if not _QUESTION.search(sentence):
        return sentence
    return sentence[: max(0, *(sentence.rfind(mark) for mark in (",", "，", ":", "：")))]


def _is_claim(said: str, place: re.Match[str], *, alone: bool) -> bool:
    before = said[max(0, place.start() - _REACH) : place.start()]
    behind = said[place.end() : place.end() + _REACH]
    clause = before[_clause_start(before) :]
    if _PLAYED.search(before) or _SUPPOSED.search(clause):
        return False
    if _MAKES_ME.match(behind):
        return not _DENIES.search(clause)
    tail = before.rstrip("\"'“‘「*_`(（《")  # in front of the name
    if alone and _BARE.match(tail) and _BARE_END.match(behind):
        return True  # "OpenAI." to "Who made you?"
    for pattern in _BEFORE_NAME:
        if (mark := pattern.search(tail)) and not _DENIES.search(_after_but(mark["gap"])):
            return not _needs_maker(mark[0]) or bool(_BY_ZH.match(behind))
    if mark := _AS.search(tail) or _AS_ZH.search(tail):
        speaks = _SPEAKS.search(behind) or _SPEAKS.search(before[: mark.start()])
        return bool(speaks and _AS_TAIL.match(behind)) and not _DENIES.search(mark["gap"])
    return False


def _needs_maker(begun: str) -> bool:
    """Whether the words up to the name say only "by": 由 … needs 开发 behind the name."""
    return "由" in begun and not re.search(_MADE_ZH, begun.rpartition("由")[2])


def _after_but(gap: str) -> str:
    """What counts of "not ChatGPT but …": the part behind the last "but"."""
    found = list(_BUT.finditer(gap))
    return gap[found[-1].end() :] if found else gap


def _clause_start(before: str) -> int:
    """Where the clause begins in which a text ends."""
    return max(before.rfind(mark) + 1 for mark in (",", "，", ":", "："))


def by_entity(found: Iterable[Claim]) -> Iterator[str]:
    """The entities of some claims, each once."""
    yield from dict.fromkeys(claim.entity for claim in found)
