"""Tests of IFEval's checks on hand-written cases, on stored verdicts of the reference, and on garbage."""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.benchmarks import ifeval
from distill.benchmarks.grading import sentences
from distill.benchmarks.grading.instructions import CHECKS, arguments
from distill.data.trace import Example
from distill.errors import UserError

# Each kind with what a record says of it, responses that follow it and responses that do not.
CASES: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "keywords:existence": (
        {"keywords": ["pilot", "sea"]},
        ["A Pilot on the SEA.", "copilots search"],
        ["A pilot.", "se a pilot", ""],
    ),
    "keywords:frequency": (
        {"keyword": " may ", "frequency": 2, "relation": "at least"},
        ["May we? We may.", "dismay, maybe"],
        ["We may.", "m a y m a y"],
    ),
    "keywords:forbidden_words": (
        {"forbidden_words": ["die", "the end"]},
        ["A diet ends.", "diehard", "the  end"],
        ["Die!", "in the end", "they-die-x"],
    ),
    "keywords:letter_frequency": (
        {"letter": "Q", "let_frequency": 2, "let_relation": "less than"},
        ["quiet", "none"],
        ["Quite a queue", "qQ"],
    ),
    "language:response_language": (
        {"language": "de"},
        ["Heute ist ein sehr schöner Tag und wir gehen alle auf den Markt.", "123 !?", "https://example.org"],
        ["Today is a very beautiful day and we are all going to the market."],
    ),
    "length_constraints:number_sentences": (
        {"num_sentences": 3, "relation": "less than"},
        [
            "One. Two!",
            "Mr. Brown came at 5 p.m. with 3.5 pies. He ate.",
            "Well... you know",
            '"Go!" he said.',
        ],
        ["One. Two. Three.", "1. One 2. Two", 'He said "stop." She did. Then', "A? B? C?"],
    ),
    "length_constraints:number_paragraphs": (
        {"num_paragraphs": 2},
        ["a\n***\nb", "***\na *** b***", "a***b\n\nc"],
        ["a", "a***b***c", "a*** ***b", "***", "a\n\nb"],
    ),
    "length_constraints:number_words": (
        {"num_words": 4, "relation": "at least"},
        ["one two three four", "it's re-done"],
        ["one two three", "a_b c, d."],
    ),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"},
        ["First\n\nthen it", "First\n\n'\"THEN, it", "a\nb\n\nThen.", "First\n\nthen it\n\n \n\n"],
        ["First\n\nThence", "Then\n\nfirst", "First\nthen", "x\n\ny\n\nthen", "x\n\n\n\nthen"],
    ),
    "detectable_content:number_placeholders": (
        {"num_placeholders": 2},
        ["[a] [b]", "[[a] [b]]", "[][]"],
        ["[a]", "[a\n] [b]", "[a [b]", "]["],
    ),
    "detectable_content:postscript": (
        {"postscript_marker": "P.S."},
        ["Bye\n\nP.S. more", "see p. s. there"],
        ["PS: more", "P.P.S", "P.S more"],
    ),
    "detectable_format:number_bullet_lists": (
        {"num_bullets": 2},
        ["* a\n* b", "- a\n\n  * b", "a\n*\n* b\n- c", "---\n-"],
        ["* a", "** a\n** b", "* a\n* b\n- c", "*\n* b", "a * b\nc - d"],
    ),
    "detectable_format:constrained_response": (
        {},
        ["My answer is yes.", "Well. My answer is maybe. Sorry."],
        ["my answer is yes.", "My answer is no", "Yes."],
    ),
    "detectable_format:number_highlighted_sections": (
        {"num_highlights": 2},
        ["*a* and *b*", "**a**, *b*", "***a***", "**a****b**"],
        ["*a*", "*a\n* b *", "** **", "****", "**a**"],
    ),
    "detectable_format:multiple_sections": (
        {"section_spliter": "Section", "num_sections": 2},
        ["Section 1\na\nSection 2\nb", "Section1 Section 22", "xSection 1 Section 1 Section 3"],
        ["Section 1", "SECTION 1 SECTION 2", "Section one Section two", "Section  1 Section  2"],
    ),
    "detectable_format:json_format": (
        {},
        ['{"a": 1}', '```json\n{"a": [1]}\n```', "```\n3\n```", '"a"', "NaN"],
        ["{a: 1}", '```Python\n{"a": 1}\n```', 'Here: {"a": 1}', "[" * 100_000, "9" * 5_000],
    ),
    "detectable_format:title": (
        {},
        ["<<a>>", "<<<a>>>", "<< a\n<<b>> c", "<<>> <<>>"],
        ["<<>>", "<<>>>", "<< >>", "<a>", "<<a\n>>", ">> <<"],
    ),
    "combination:two_responses": (
        {},
        ["a******b", "******\na\n******\nb\n******\n"],
        ["a******a ", "a***b", "a******b******c", "a************b", "a", "******"],
    ),
    "combination:repeat_prompt": (
        {"prompt_to_repeat": " Say it. "},
        ["say it. I do.", "\nSAY IT."],
        ["I say it.", "Say  it."],
    ),
    "startend:end_checker": (
        {"end_phrase": "That is all."},
        ["So. THAT is all.", '"That is all." '],
        ["That is all", "That is all. Bye", "That is all.*"],
    ),
    "startend:quotation": ({}, ['"a"', ' "a" b"\n', '""'], ['"', "“a”", '"a".', "'a'"]),
    "change_case:capital_word_frequency": (
        {"capital_frequency": 3, "capital_relation": "at least"},
        ["DON'T GO", "A B-C D", "THE U.S. AND x", "A,B (C)", "I CANNOT", "SO I'M.", "NASA's UN is OK."],
        ["TWO WORDS", "A1-B c, D", "Nasa Is Ok", "É ß 1"],
    ),
    "change_case:english_capital": (
        {},
        ["THIS IS A VERY BEAUTIFUL DAY AND WE ARE ALL GOING TO THE MARKET TOGETHER.", "A@B.COM"],
        ["This is it and we are all going.", "СЕГОДНЯ ОЧЕНЬ КРАСИВЫЙ ДЕНЬ.", "123"],
    ),
    "change_case:english_lowercase": (
        {},
        ["this is a very beautiful day and we are all going to the market together.", "a@b.com"],
        ["This is it and we are all going.", "heute ist ein schöner tag und wir gehen alle.", "123"],
    ),
    "punctuation:no_comma": ({}, ["none; here", "1，000"], ["a, b", ","]),
}


def test_every_kind_has_cases() -> None:
    assert list(CASES) == list(CHECKS)
    assert len(CHECKS) == 25


@pytest.mark.parametrize("name", CASES)
def test_each_check_tells_responses_that_follow_from_those_that_do_not(name: str) -> None:
    kwargs, following, others = CASES[name]
    kwargs = arguments(name, kwargs)
    assert [response for response in following if not CHECKS[name](response, **kwargs)] == []
    assert [response for response in others if CHECKS[name](response, **kwargs)] == []


@pytest.mark.parametrize(
    ("name", "kwargs", "response"),
    [
        (
            "keywords:letter_frequency",
            {"letter": "#", "let_frequency": 2, "let_relation": "at least"},
            "# a #",
        ),
        ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "p. p.s"),
        ("detectable_content:postscript", {"postscript_marker": "Note:"}, "the note: it"),
    ],
)
def test_other_values_of_an_argument_are_followed(name: str, kwargs: dict[str, Any], response: str) -> None:
    assert CHECKS[name](response, **arguments(name, kwargs))
    assert not CHECKS[name]("something else", **kwargs)


def _ask(*instructions: tuple[str, dict[str, Any]]) -> Example:
    names, kwargs = [name for name, _ in instructions], [given for _, given in instructions]
    return Example("1", "?", details={"instruction_id_list": names, "kwargs": kwargs})


def test_a_verdict_counts_instructions_and_names_the_first_that_is_missed() -> None:
    example = _ask(("punctuation:no_comma", {}), ("startend:quotation", {}), ("detectable_format:title", {}))
    verdict = ifeval.grade(example, "Sure, here it is:\n<<It>> is it")
    assert (verdict.answer, verdict.correct, verdict.rule) == (None, False, "instructions")
    assert verdict.reason == "does not follow punctuation:no_comma"
    assert verdict.counts == {
        "prompt_loose": (0, 1),
        "instruction_strict": (1, 3),
        "instruction_loose": (2, 3),
    }
    assert ifeval.grade(_ask(("detectable_format:title", {})), "<<It>>").correct


@pytest.mark.parametrize(
    ("response", "name"),
    [
        ('Sure:\n"It"', "startend:quotation"),  # without the first line
        ('"It"\nOkay?', "startend:quotation"),  # without the last
        ('Sure:\n"It"\nOkay?', "startend:quotation"),  # without both
        ('**"It"**', "startend:quotation"),  # without asterisks
        ('Sure:\n*"It"*\nOkay?', "startend:quotation"),
        ('*Sure:\n"It"*', "startend:quotation"),
        ("My answer is *yes*.", "detectable_format:constrained_response"),
    ],
)
def test_the_loose_reading_forgives_what_surrounds_a_response(response: str, name: str) -> None:
    verdict = ifeval.grade(_ask((name, {})), response)
    assert not verdict.correct
    assert verdict.counts["prompt_loose"] == (1, 1)


def test_the_loose_reading_forgives_a_line_at_each_end_and_no_more() -> None:
    verdict = ifeval.grade(_ask(("startend:quotation", {})), 'Sure!\nHere:\n"It"')
    assert verdict.counts["prompt_loose"] == (0, 1)


@pytest.mark.parametrize("response", ["", " \n\t", "\n\n"])
def test_an_empty_response_follows_nothing(response: str) -> None:
    for name, (kwargs, _, _) in CASES.items():
        verdict = ifeval.grade(_ask((name, kwargs)), response)
        assert not verdict.correct, name
        assert verdict.counts["instruction_loose"] == (0, 1), name


@pytest.mark.slow
def test_threads_tell_languages_as_one_does() -> None:
    texts = [
        "der die das the of und and",
        "a la de en un le",
        "no se va mi tu",
        "hei on ja og det",
        *SAMPLES.values(),
    ]
    examples = [_ask(("language:response_language", {"language": code})) for code in ("de", "fi", "sw")]
    pairs = [(example, text) for text in texts for example in examples]
    alone = [ifeval.grade(*pair).correct for pair in pairs]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda pair: ifeval.grade(*pair).correct, pairs)) == alone


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.text() | st.text(alphabet="*-#[]<>{}\"'`.?!\n \tA b1\x00P.Sé", max_size=300))
def test_no_response_raises(response: str) -> None:
    example = _ask(*((name, kwargs) for name, (kwargs, _, _) in CASES.items()))
    counts = ifeval.grade(example, response).counts
    assert 0 <= counts["instruction_strict"][0] <= counts["instruction_loose"][0] <= 25


@pytest.mark.parametrize("name", CASES)
def test_long_texts_are_judged_in_linear_time(name: str) -> None:
    check, kwargs = CHECKS[name], CASES[name][0]
    check("This is it.", **kwargs)  # the languages' profiles are read once
    prose = 'The quick brown FOX, said "hi" to *us*: [x] <<y>> - fine.\n' * 18_000
    odd = [
        unit * (200_000 // len(unit)) for unit in ("a", "[", "<<", "\n", "*", "\x00", "- ", "P. ", "a@", "?!")
    ]
    for response in (prose, *odd):
        started = time.process_time()
        check(response, **kwargs)
        # Mostly a tenth of a second; a pattern that is quadratic takes minutes.
        assert time.process_time() - started < 10, response[:10]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("No end", 1),
        ("One. Two", 2),
        ("Dr. Smith and J. Bach met Mr. Doe.", 1),  # titles and initials
        ("It was 5 p.m. The bell rang.", 2),  # an abbreviation before a word that starts sentences
        ("He paid 3.50 on Jan. 5, as agreed.", 1),
        ("Wait... what? Yes!", 2),
        ("So... She left. So... The end.", 3),
        ("(It rained.) We left.", 2),
        ('"Stop!" "No." He ran', 3),
        ("1. Mix it. 2. bake it", 3),  # a number ends a sentence, unless a small letter follows
        ("4. Business is good", 1),  # as the model has learned from its newspaper
        ("What?! Really", 2),
        ("a.b.c", 1),
        ("e.g. this", 2),  # unknown to the model
    ],
)
def test_sentences_end_where_the_model_ends_them(text: str, count: int) -> None:
    assert len(sentences.split(text)) == count


def test_closing_quotes_stay_with_their_sentence() -> None:
    assert sentences.split('He said "no." (Yes?) So') == ['He said "no."', "(Yes?)", "So"]


def _write(folder: Path, *records: Mapping[str, Any]) -> str:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


RECORD = {
    "key": 7,
    "prompt": "Write. ",
    "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
    "kwargs": [{}, {"num_words": 5, "relation": "at least"}],
}


def test_a_record_with_every_key_and_nulls_reads_as_one_without(tmp_path: Path) -> None:
    (plain,) = ifeval.load(path=_write(tmp_path, RECORD))
    names = ("num_words", "relation", "keywords", "language", "prompt_to_repeat")
    padded = [{**dict.fromkeys(names), **kwargs} for kwargs in RECORD["kwargs"]]
    (hub,) = ifeval.load(path=_write(tmp_path, {**RECORD, "kwargs": padded}))
    assert hub.details == plain.details == {k: RECORD[k] for k in ("instruction_id_list", "kwargs")}
    assert (plain.id, plain.problem, plain.gold) == ("7", "Write. ", None)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"instruction_id_list": ["a:b", "c:d"]}, "instruction 'a:b' is none of the 25"),
        ({"kwargs": [{}]}, "2 names in 'instruction_id_list', 1 objects"),
        ({"kwargs": None}, "'kwargs' is NoneType, not a list"),
        ({"kwargs": [{}, []]}, "has list, not an object"),
        ({"instruction_id_list": [3, "c:d"]}, "instruction 3 is none of the 25"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"kwargs": [{}, {"num_words": 5}]}, "needs num_words, relation, and the record has num_words"),
        ({"kwargs": [{"letter": "a"}, {}]}, "needs nothing, and the record has letter"),
        ({"kwargs": [{}, {"num_words": -1, "relation": "at least"}]}, "num_words=-1 is not a whole number"),
        (
            {"kwargs": [{}, {"num_words": True, "relation": "at least"}]},
            "num_words=True is not a whole number",
        ),
        ({"kwargs": [{}, {"num_words": 5, "relation": "most"}]}, "relation='most' is not 'less than' or"),
    ],
)
def test_a_record_that_is_wrong_is_refused_with_its_place(
    tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match="line 2") as raised:
        ifeval.load(path=_write(tmp_path, RECORD, {**RECORD, **change}))
    assert sentence in str(raised.value)


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("keywords:existence", {"keywords": []}, "is not a list of words"),
        ("keywords:existence", {"keywords": ["fine", "(x"]}, "unterminated subpattern"),
        ("keywords:frequency", {"keyword": " "}, "is not a text"),
        ("keywords:letter_frequency", {"letter": "ab"}, "is not one character"),
        ("length_constraints:nth_paragraph_first_word", {"nth_paragraph": 3}, "does not exist"),
    ],
)
def test_arguments_for_which_the_reference_draws_others_are_refused(
    name: str, change: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=name) as raised:
        arguments(name, {**CASES[name][0], **change})
    assert sentence in str(raised.value)


@pytest.mark.realdata
def test_the_541_prompts_have_834_instructions_of_all_kinds(data_dir: Path) -> None:
    examples = ifeval.load(path=str(data_dir / "ifeval" / "input_data.jsonl"))
    names = [name for example in examples for name in example.details["instruction_id_list"]]
    assert (len(examples), len(names), set(names)) == (541, 834, set(CHECKS))
    assert len({example.id for example in examples}) == 541


# --- The reference's verdicts over responses that are the same on every machine.

# "Today is a very beautiful day and we are all going to the market", in the languages that prompts ask for.
SAMPLES = {
    "ar": "اليوم يوم جميل جدا ونحن ذاهبون إلى السوق.",
    "bg": "Днес е много хубав ден и ние всички отиваме на пазара.",
    "bn": "আজ খুব সুন্দর দিন এবং আমরা সবাই বাজারে যাচ্ছি।",
    "de": "Heute ist ein sehr schöner Tag und wir gehen alle auf den Markt.",
    "en": "Today is a very beautiful day and we are all going to the market.",
    "fa": "امروز روز بسیار زیبایی است و ما به بازار می رویم.",
    "fi": "Tänään on erittäin kaunis päivä ja menemme kaikki torille.",
    "gu": "આજે ખૂબ સુંદર દિવસ છે અને અમે બજારમાં જઈ રહ્યા છીએ.",
    "hi": "यह एक बहुत सुंदर दिन है और हम सब बाजार जा रहे हैं।",
    "it": "Oggi è una bellissima giornata e andiamo tutti al mercato.",
    "kn": "ಇದು ತುಂಬಾ ಸುಂದರವಾದ ದಿನ ಮತ್ತು ನಾವು ಮಾರುಕಟ್ಟೆಗೆ ಹೋಗುತ್ತಿದ್ದೇವೆ.",
    "ko": "오늘은 매우 아름다운 날이고 우리는 시장에 가고 있습니다.",
    "mr": "हा खूप सुंदर दिवस आहे आणि आम्ही सर्व बाजारात जात आहोत.",
    "ne": "आज धेरै राम्रो दिन हो र हामी सबै बजार जाँदैछौं।",
    "pa": "ਅੱਜ ਬਹੁਤ ਸੋਹਣਾ ਦਿਨ ਹੈ ਅਤੇ ਅਸੀਂ ਬਾਜ਼ਾਰ ਜਾ ਰਹੇ ਹਾਂ।",
    "pt": "Hoje é um dia muito bonito e nós vamos todos ao mercado.",
    "ru": "Сегодня очень красивый день, и мы все идём на рынок.",
    "sw": "Leo ni siku nzuri sana na sisi sote tunakwenda sokoni pamoja.",
    "ta": "இன்று மிகவும் அழகான நாள் நாங்கள் சந்தைக்குச் செல்கிறோம்.",
    "te": "ఈ రోజు చాలా అందమైన రోజు మరియు మేము మార్కెట్‌కు వెళ్తున్నాము.",
    "th": "วันนี้เป็นวันที่สวยงามมากและเรากำลังไปตลาด",
    "ur": "آج بہت خوبصورت دن ہے اور ہم سب بازار جا رہے ہیں۔",
    "vi": "Hôm nay là một ngày rất đẹp và chúng tôi đang đi đến chợ.",
}
PROSE = [
    "The morning was quiet, and the river ran slowly past the old mill.",
    "Mr. Brown arrived at 5 p.m. with a letter from the U.S. Embassy.",
    "Why would anyone do that?",
    'She said "no" at first... Then she laughed.',
    "1. Mix the flour with water.",
    "DON'T PANIC about NASA's plan!",
    "Dr. J. Smith of Acme Inc. paid 3.5 dollars in Jan. for it, e.g. in cash.",
    "A short test (see below) shows that it works.",
]


def attempts(prompt: str, names: list[str], kwargs: list[dict[str, Any]]) -> Iterator[str]:
    """Responses that follow all instructions as well as may be, just or just not, and what else models do."""
    just, short = _attempt(prompt, names, kwargs, 0), _attempt(prompt, names, kwargs, -1)
    yield from ("", prompt, just, short, just.upper(), short.lower(), just.replace(",", ""))
    yield from (
        f"Sure, here it is:\n{just}\n\nHope this helps!",
        f"**{just}**",
        f'*"{just}"*',
        just[: len(just) // 2],
    )
    yield " ".join(PROSE[(len(prompt) + shift) % len(PROSE)] for shift in range(len(prompt) % 29))


def _attempt(prompt: str, names: list[str], kwargs: list[dict[str, Any]], off: int) -> str:
    given = {key: value for known in kwargs for key, value in known.items()}
    kinds = {name.partition(":")[2] for name in names}
    prose = [PROSE[(len(prompt) + shift) % len(PROSE)] for shift in range(8)]
    parts = [f"{a} {b}" for a, b in zip(prose[::2], prose[1::2], strict=True)]
    if "num_words" in given:
        words = " ".join(PROSE * 100).split()
        parts = [" ".join(words[: given["num_words"] + off])]
    if "num_sentences" in given:
        parts = [" ".join((PROSE * 9)[: given["num_sentences"] + off])]
    if "num_paragraphs" in given:
        parts = [PROSE[n % 8] for n in range(given["num_paragraphs"] + off)] or ["None."]
    if "first_word" in given and given["nth_paragraph"] <= len(parts):
        parts[given["nth_paragraph"] - 1] = f'"{given["first_word"].title()}, {parts[0]}'
    if "language" in given:
        parts = [SAMPLES[given["language"]]] * 2
    if "section_spliter" in given:
        parts = [
            f"{given['section_spliter']} {n + 1}\n{PROSE[n % 8]}" for n in range(given["num_sections"] + off)
        ]
    parts = parts or [PROSE[0]]
    if "two_responses" in kinds:
        parts = ["".join(parts), "******" if off == 0 else "*****", PROSE[2]]
    parts[-1] += "".join(f" {keyword}" for keyword in given.get("keywords", [])[: None if off == 0 else -1])
    parts[0] += f" {given.get('keyword', '')}" * (given.get("frequency", 0) + off)
    parts[0] += f" {given.get('letter', '')}" * (given.get("let_frequency", 0) + off)
    parts[0] += " [x]" * (given.get("num_placeholders", 0) + off) + " *so*" * (
        given.get("num_highlights", 0) + off
    )
    parts[0] += " THUS" * (given.get("capital_frequency", 0) + off)
    parts += [f"{'*' if n % 2 else '-'} {PROSE[n % 8]}" for n in range(given.get("num_bullets", 0) + off)]
    glue = "\n***\n" if kinds & {"number_paragraphs"} else "\n\n" if "first_word" in given else "\n"
    text = glue.join(parts)
    if "title" in kinds:
        text = f"<<{'A title' if off == 0 else ' '}>>\n{text}"
    if "repeat_prompt" in kinds:
        text = f"{given['prompt_to_repeat'][: None if off == 0 else -1]}\n{text}"
    if "constrained_response" in kinds:
        text += "\nMy answer is no" + "." * (off + 1)
    for word in given.get("forbidden_words", []) if off == 0 else []:
        text = text.replace(word, "it")
    text += f"\n{given['postscript_marker']} Bye." if "postscript" in kinds and off == 0 else ""
    text += f"\n{given['end_phrase']}" if "end_phrase" in given else ""
    for kind, change in (("english_lowercase", str.lower), ("english_capital", str.upper)):
        text = change(text) if kind in kinds else text
    if "no_comma" in kinds and off == 0:
        text = text.replace(",", "")
    if "quotation" in kinds:
        text = f'"{text}"' if off == 0 else f'"{text}'
    if "json_format" in kinds:
        text = f"```json\n{json.dumps({'a': text})}\n```" if off == 0 else f"{{'a': {text}}}"
    return text


def tables(verdicts: Iterator[tuple[str, bool, bool]]) -> dict[str, tuple[int, int, int, str]]:
    """A kind's verdicts: how many, how many follow (strict, loose), and a hash of them in their order."""
    bits: dict[str, list[tuple[bool, bool]]] = {}
    for name, strict, loose in verdicts:
        bits.setdefault(name, []).append((strict, loose))
    return {
        name: (
            len(pairs),
            sum(strict for strict, _ in pairs),
            sum(loose for _, loose in pairs),
            hashlib.sha256("".join(f"{strict:d}{loose:d}" for strict, loose in pairs).encode()).hexdigest()[
                :12
            ],
        )
        for name, pairs in sorted(bits.items())
    }


@pytest.mark.realdata
@pytest.mark.slow
def test_the_reference_judges_each_instruction_alike(data_dir: Path) -> None:
    # REFERENCE was printed by the reference's own code (google-research's instruction_following_eval of 2025
    # with nltk 3.9.2 and its punkt_tab model, langdetect 1.0.9 with seed 0, and the `#` and `!` of
    # letter_frequency put in by hand) over the same `attempts`, through the same `tables`.
    examples = ifeval.load(path=str(data_dir / "ifeval" / "input_data.jsonl"))

    def verdicts() -> Iterator[tuple[str, bool, bool]]:
        for example in examples:
            names, kwargs = example.details["instruction_id_list"], example.details["kwargs"]
            for response in attempts(example.problem, names, kwargs):
                for instruction in zip(names, kwargs, strict=True):
                    verdict = ifeval.grade(_ask(instruction), response)
                    yield instruction[0], verdict.correct, verdict.counts["prompt_loose"] == (1, 1)

    assert tables(verdicts()) == REFERENCE


REFERENCE: dict[str, tuple[int, int, int, str]] = {
    "change_case:capital_word_frequency": (300, 187, 205, "d77f8bcc6154"),
    "change_case:english_capital": (300, 168, 199, "6b29a6d19556"),
    "change_case:english_lowercase": (468, 273, 313, "9289ef424787"),
    "combination:repeat_prompt": (492, 166, 247, "72bceb4e06e4"),
    "combination:two_responses": (288, 165, 167, "a953d9698c68"),
    "detectable_content:number_placeholders": (324, 189, 189, "eaefe1f7cca9"),
    "detectable_content:postscript": (312, 182, 182, "f40ed243d867"),
    "detectable_format:constrained_response": (120, 60, 60, "94b1ee03b43c"),
    "detectable_format:json_format": (204, 34, 85, "18e480df4d30"),
    "detectable_format:multiple_sections": (168, 82, 82, "00704b8d3de6"),
    "detectable_format:number_bullet_lists": (372, 162, 193, "143d8e7aed56"),
    "detectable_format:number_highlighted_sections": (576, 299, 299, "be0f02b49913"),
    "detectable_format:title": (444, 307, 307, "0b168ce7b557"),
    "keywords:existence": (468, 292, 292, "1aef6b5bd186"),
    "keywords:forbidden_words": (588, 473, 491, "77a148318ea6"),
    "keywords:frequency": (504, 253, 294, "790a20756645"),
    "keywords:letter_frequency": (396, 216, 228, "7af118f2478e"),
    "language:response_language": (372, 262, 274, "19fa3a740b10"),
    "length_constraints:nth_paragraph_first_word": (144, 48, 72, "bb79bc1e21c9"),
    "length_constraints:number_paragraphs": (324, 154, 161, "3bd7e95d7468"),
    "length_constraints:number_sentences": (624, 273, 305, "17a32ee76dec"),
    "length_constraints:number_words": (624, 307, 337, "6163b5b7faa6"),
    "punctuation:no_comma": (792, 435, 536, "d49d4f8f2f79"),
    "startend:end_checker": (312, 140, 219, "6cbc28839b28"),
    "startend:quotation": (492, 123, 248, "8af022680896"),
}
