"""Tests of the evaluation page: its data, what is shown of completions, size limits, and escaping."""

import base64
import gzip
import hashlib
import itertools
import json
import re
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.benchmarks.grading import answers
from distill.data.readers import read_records
from distill.errors import UserError
from distill.evaluation.excerpts import answer_span, pieces, shortened
from distill.evaluation.page import SampleFile, embedded, main, packed, write_page

HOSTILE = (
    "</script><script>window.__pwned = 1</script><img src=x onerror='window.__pwned = 1'><!-- <b>&amp;"
    "\u2028\u2029\x00\x07\ud800 and \udc00\u202egnp.\u202c {{script}} ${1} \\u003c 😀"
)
RESULTS: dict[str, Any] = {"model": "tiny", "benchmarks": {}}


def sample(number: str = "1", **changes: Any) -> dict[str, Any]:
    record = {
        "benchmark": "sums",
        "id": number,
        "problem": f"What is {number} + 1?",
        "gold": "2",
        "sample": 0,
        "completion": "It is \\boxed{2}.",
        "answer": "2",
        "correct": True,
        "rule": "boxed",
        "reason": "right",
        "counts": {},
        "class": 0,
        "finished": True,
        "truncated": False,
        "tokens": 7,
        "repetition": 0.0,
    }
    return record | changes


class Reader(HTMLParser):
    """A page's elements: scripts by id, attributes, and whatever is not closed or not open."""

    VOID = frozenset({"meta", "link", "input", "img", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text: dict[str, str] = {}
        self.feed(page)
        self.close()
        self.wrong += self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"/{tag}")

    def handle_data(self, data: str) -> None:
        if self.open:
            self.text[self.open[-1]] = self.text.get(self.open[-1], "") + data
        if self.open and self.open[-1] == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = attributes, text + data

    def data(self, name: str) -> Any:
        text = next(text for attributes, text in self.scripts if attributes.get("id") == name)
        return json.loads(text) if name == "about" else unpack(text)


def unpack(text: str) -> Any:
    return json.loads(zlib.decompress(base64.b64decode(text), wbits=31))


def read(path: Path) -> Reader:
    return Reader(path.read_text(encoding="utf-8"))


def test_page_is_well_formed_and_asks_for_nothing_outside(tmp_path: Path) -> None:
    write_page(tmp_path / "results.html", RESULTS, [sample(), sample("2")], title="A title")
    page = read(tmp_path / "results.html")
    assert page.wrong == []
    addresses = [value for _, name, value in page.attributes if name in ("src", "href", "action", "data")]
    assert sorted(set(addresses), key=str) == ["#problems", "data:,"]
    assert not [name for _, name, _ in page.attributes if name.startswith("on") or name == "style"]
    # Of the web there is only SVG's name, which nobody fetches.
    addresses = re.findall(r"https?://[^\s\"')]+", (tmp_path / "results.html").read_text())
    assert set(addresses) == {"http://www.w3.org/2000/svg"}


def test_policy_lets_exactly_the_pages_own_script_and_style_through(tmp_path: Path) -> None:
    write_page(tmp_path / "results.html", RESULTS, [sample()], title="A title")
    page = read(tmp_path / "results.html")
    policy = next(
        value for _, name, value in page.attributes if name == "content" and value and "script-src" in value
    )
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    running = [text for attributes, text in page.scripts if attributes.get("type") != "application/json"]
    assert len(running) == 1

    def hashed(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == hashed(running[0])
    assert rules["style-src"] == hashed(page.text["style"])
    assert rules["img-src"] == "data:"


@pytest.mark.slow
def test_every_word_of_every_sample_is_in_the_page(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    records = []
    for number in range(600):  # samples of a problem lie apart, as where each round is drawn by itself
        text = "".join(chr(c) for c in generator.integers(32, 0x3000, generator.integers(0, 3000)))
        thinking = number % 3
        said = ("<think>\nhm" + "</think>" * (thinking == 2) if thinking else "") + text
        records.append(
            sample(str(number % 200), sample=number // 200, completion=said, answer=None, tokens=number)
        )
    write_page(tmp_path / "results.html", RESULTS, records, title="A title")
    page = read(tmp_path / "results.html")
    index = page.data("index")
    assert index["problems"]["id"] == [str(number) for number in range(200)]
    assert index["samples"]["problem"] == [number % 200 for number in range(600)]
    assert index["samples"]["tokens"] == list(range(600))
    starts = index["chunks"]
    assert len(starts) > 2
    details = []
    for number, (start, end) in enumerate(itertools.pairwise(starts)):
        chunk = page.data(f"chunk{number}")
        assert len(chunk) == end - start
        details += chunk
    for record, detail in zip(records, details, strict=True):
        whole = "".join(detail["text"])
        if "thinking" in detail:
            whole = "<think>" + "".join(detail["thinking"]) + "</think>" * detail["closed"] + whole
        assert whole == record["completion"]


@pytest.mark.parametrize(
    "field", ["benchmark", "id", "problem", "gold", "completion", "answer", "rule", "reason"]
)
def test_hostile_text_comes_back_as_it_was_and_never_as_markup(field: str, tmp_path: Path) -> None:
    path = tmp_path / "results.html"
    write_page(path, RESULTS, [sample()], title="A title")
    harmless = read(path)
    results = {"model": HOSTILE, "benchmarks": {HOSTILE: {"figures": {HOSTILE: None}, "rules": {HOSTILE: 1}}}}
    write_page(path, results, [sample(**{field: HOSTILE})], title=HOSTILE)
    page = read(path)
    assert page.wrong == []
    assert len(page.attributes) == len(harmless.attributes)  # the same elements
    assert page.data("about")["results"] == results
    assert page.data("about")["title"] == HOSTILE
    assert page.text["title"].startswith("</script><script>window.__pwned = 1</script><img src=x")
    index, [detail] = page.data("index"), page.data("chunk0")
    found = {
        **{name: index["problems"][name][0] for name in ("id", "problem", "gold")},
        **{name: index["names"][name][0] for name in ("benchmark", "rule", "reason")},
        "completion": "".join(
            piece if isinstance(piece, str) else piece["answer"] for piece in detail["text"]
        ),
        "answer": index["samples"]["answer"][0],
    }
    assert found[field] == HOSTILE


texts = st.text(st.characters(codec=None), max_size=40) | st.sampled_from(
    [HOSTILE, "</script>", "<!--<script>"]
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.slow
@given(values)
def test_any_value_survives_both_ways_into_the_page(value: Any) -> None:
    text = embedded(value)
    assert text.isascii()
    assert not re.search(r"[<>&\x00-\x1f]", text)
    assert json.loads(text) == value
    assert unpack(packed(value)) == value


def test_what_is_no_finite_number_is_null() -> None:
    value = {"value": float("nan"), "low": float("-inf"), "high": [float("inf"), 1.5]}
    expected = {"value": None, "low": None, "high": [None, 1.5]}
    assert json.loads(embedded(value)) == expected
    assert unpack(packed(value)) == expected


@pytest.mark.slow
@given(
    text=st.text(alphabet="ab 2,\n\\boxed{}", max_size=400),
    answer=st.none() | st.text(alphabet="ab2,", min_size=1, max_size=5),
    rule=st.sampled_from(["boxed", "answer is", "####", "last number", ""]),
    longest=st.integers(30, 300),
)
@settings(max_examples=300)
def test_pieces_are_the_text_or_its_ends_with_what_is_left_out_counted(
    text: str, answer: str | None, rule: str, longest: int
) -> None:
    found = pieces(text, answer, rule, longest)
    at = shown = 0
    for piece in found:
        if isinstance(piece, dict) and "cut" in piece:
            assert piece["cut"] > 0
            at += piece["cut"]
            continue
        part = piece if isinstance(piece, str) else piece["answer"]
        assert text[at : at + len(part)] == part
        at += len(part)
        shown += len(part)
    assert at == len(text)
    assert shown <= longest
    if len(text) <= longest:
        assert shown == len(text)
    else:
        assert shown > longest / 2
    span = answer_span(text, answer, rule) if answer else None
    marks = [piece["answer"] for piece in found if isinstance(piece, dict) and "answer" in piece]
    assert len(marks) == (span is not None and (len(text) <= longest or span[1] - span[0] <= longest // 3))
    if span is not None and marks:
        assert marks == [text[slice(*span)]]


@pytest.mark.parametrize("position", [0.0, 0.2, 0.33, 0.4, 0.5, 0.66, 0.7, 1.0])
def test_cut_never_takes_the_answer(position: float) -> None:
    filler = "word " * 2000
    place = int(position * len(filler))
    text = filler[:place] + " \\boxed{x^2+1} " + filler[place:]
    found = pieces(text, "x^2+1", "boxed", 900)
    assert [piece for piece in found if isinstance(piece, dict) and "answer" in piece] == [
        {"answer": "x^2+1"}
    ]
    assert any(isinstance(piece, dict) and "cut" in piece for piece in found)


@pytest.mark.parametrize(
    ("text", "answer", "rule", "marked"),
    [
        (r"\boxed{3} or \boxed{ 4 } of 4", "4", "boxed", (21, 22)),
        (r"\boxed{\frac{1}{2}} = 0.5", r"\frac{1}{2}", "boxed", (7, 18)),
        ("The answer is 72. I checked 72 twice.", "72", "answer is", (14, 16)),
        ("72 apples\n#### 72", "72", "####", (15, 17)),
        ("7 and 72 and 7, not 172", "7", "last number", (13, 14)),
        ("in total 1,234 of 12345", "1234", "last number", (9, 14)),
        (r"in total 1{,}234", "1234", "last number", (9, 16)),
        ("it is 3.25", "25", "last number", None),
        ("it is 1,234", "234", "last number", None),
        ("the 3rd of 30", "3", "last number", (4, 5)),
        ("a tax on axes, x", "ax", "", None),
        ("it is −3", "-3", "last number", (6, 8)),
        ("nothing here", "72", "boxed", None),
        ("anything", " ", "boxed", None),
    ],
)
def test_answer_is_marked_where_it_was_read(
    text: str, answer: str, rule: str, marked: tuple[int, int] | None
) -> None:
    assert answer_span(text, answer, rule) == marked


@pytest.mark.slow
@pytest.mark.realdata
def test_answers_of_real_traces_are_found_in_them(data_dir: Path) -> None:
    path = data_dir / "traces" / "gsm8k_train_human_gemini_llama.jsonl.gz"
    judged, read_last, behind = 0, 0, 0
    for _, record in read_records(path=str(path), hub=None, limit=1500):
        for text in record["traces"].values():
            answer, rule = answers.extract(text)
            if answer is None:
                continue
            span = answer_span(text, answer, rule)
            assert span is not None, (text, answer, rule)
            assert answers.same_number(text[slice(*span)], answer), (text, answer, rule)
            if rule == "last number":
                read_last += 1
                behind += re.search(r"\d", text[span[1] :]) is not None
            judged += 1
    assert judged > 7_000
    # Digits stand behind the number where a sentence goes on behind it, as in "= 5 hours for 120 pages".
    assert 0 < behind < 0.1 * read_last


def test_thinking_is_apart_and_never_holds_the_mark(tmp_path: Path) -> None:
    records = [
        sample("1", completion="<think>\nmaybe \\boxed{2}</think>\n\nIt is \\boxed{2}"),
        sample("2", completion="no tag in front, 2</think>It is 2", rule="last number"),
        sample("3", completion="<think>2 and never an end", answer=None, correct=False),
        # The chat template had opened it.
        sample("4", completion="2 and never an end", answer=None, reason="unclosed thinking"),
        sample("5", completion="<think>a</think> 2 <think>b", answer=None, reason="unclosed thinking"),
    ]
    write_page(tmp_path / "results.html", RESULTS, records, title="A title")
    first, second, *unclosed = read(tmp_path / "results.html").data("chunk0")
    assert first["thinking"] == ["\nmaybe \\boxed{2}"]
    assert first["text"] == ["It is \\boxed{", {"answer": "2"}, "}"]
    assert second["thinking"] == ["no tag in front, 2"]
    assert second["text"] == ["It is ", {"answer": "2"}]
    assert (first["closed"], second["closed"]) == (True, True)
    assert [detail["thinking"] for detail in unclosed] == [
        ["2 and never an end"],
        ["2 and never an end"],
        ["a</think> 2 <think>b"],
    ]
    assert not any(detail["closed"] or detail["text"] for detail in unclosed)


def test_thinking_is_what_the_benchmark_says_it_is(tmp_path: Path) -> None:
    results = {"model": "tiny", "benchmarks": {"sums": {"settings": {"thinking": ["[T]", "[/T]"]}}}}
    records = [sample(completion="[T]hm[/T]<think>2")]
    write_page(tmp_path / "results.html", results, records, title="A title")
    [detail] = read(tmp_path / "results.html").data("chunk0")
    assert (detail["thinking"], detail["text"]) == (["hm"], ["<think>", {"answer": "2"}])


def test_long_answers_are_kept_beside_the_text_only_where_they_are_not_in_it(tmp_path: Path) -> None:
    program = "def f(x):\n" + "    x += 1\n" * 40 + "    return x\n"
    records = [
        sample("1", completion=f"```\n{program}```", answer=program, rule="fence"),
        sample("2", completion="```\n" + program.replace("\n", "\r\n") + "```", answer=program, rule="fence"),
    ]
    write_page(tmp_path / "results.html", RESULTS, records, title="A title")
    page = read(tmp_path / "results.html")
    inside, outside = page.data("chunk0")
    assert inside["text"] == ["```\n", {"answer": program.strip()}, "\n```"]
    assert "answer" not in inside
    assert outside["answer"] == [program]
    assert page.data("index")["samples"]["answer"] == [program[:200]] * 2


@pytest.mark.slow
def test_too_large_a_page_loses_the_middle_of_the_longest_completions_alone(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)

    def noise(length: int) -> str:  # that nothing can pack
        return base64.b64encode(generator.bytes(length)).decode()[:length]

    records = [
        sample(str(number), completion=noise(40_000 if number % 4 == 0 else 2_000) + "\\boxed{2}")
        for number in range(200)
    ]
    path = tmp_path / "results.html"
    write_page(path, RESULTS, records, title="A title", largest=1_000_000)
    assert 600_000 < path.stat().st_size <= 1_000_000
    page = read(path)
    index = page.data("index")
    details = [detail for number in range(len(index["chunks"]) - 1) for detail in page.data(f"chunk{number}")]
    for record, detail in zip(records, details, strict=True):
        cuts = [piece["cut"] for piece in detail["text"] if isinstance(piece, dict) and "cut" in piece]
        assert len(cuts) == (len(record["completion"]) > 3_000)
        assert {"answer": "2"} in detail["text"]


def test_samples_that_can_be_read_but_once_will_do(tmp_path: Path) -> None:
    def once() -> Iterator[dict[str, Any]]:
        yield sample("1")
        yield sample("2")

    write_page(tmp_path / "results.html", RESULTS, once(), title="A title")
    assert read(tmp_path / "results.html").data("index")["problems"]["id"] == ["1", "2"]


def test_no_samples_make_a_page_too(tmp_path: Path) -> None:
    write_page(tmp_path / "results.html", RESULTS, [], title="A title")
    assert read(tmp_path / "results.html").data("index")["problems"]["id"] == []


def test_picture_is_shown_with_the_drift_it_is_of(tmp_path: Path) -> None:
    picture = b"\x89PNG\r\n\x1a\n..."
    path = tmp_path / "results.html"
    write_page(path, RESULTS | {"drift": {"kl": 0.1}}, [], title="A title", drift_picture=picture)
    address = read(path).data("about")["picture"]
    assert address == "data:image/png;base64," + base64.b64encode(picture).decode()
    write_page(path, RESULTS, [], title="A title", drift_picture=picture)
    assert read(path).data("about")["picture"] is None


def test_same_samples_are_packed_the_same_way() -> None:
    assert packed([sample()]) == packed([sample()])
    assert gzip.decompress(base64.b64decode(packed("é"))) == b'"\\u00e9"'


def test_shortened_text_says_how_much_is_missing() -> None:
    assert shortened("a" * 10, 10) == "a" * 10
    assert (
        shortened("a" * 1000 + "b" * 1010, 20)
        == "a" * 10 + "\n[… 1,990 characters are left out here …]\n" + "b" * 10
    )


def test_folder_of_an_evaluation_is_enough_for_its_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    (tmp_path / "samples.jsonl").write_text(json.dumps(sample()) + "\n" + json.dumps(sample("x")) + "\n")
    monkeypatch.setattr("sys.argv", ["evaluation_page", str(tmp_path)])
    main()
    assert capsys.readouterr().out.strip() == str(tmp_path / "results.html")
    assert read(tmp_path / "results.html").data("index")["problems"]["id"] == ["1", "x"]


@pytest.mark.parametrize(
    "line", ['{"benchmark": "sums"', '{"benchmark": "sums", "id": "1"}', "[1]", "\ufeff"]
)
def test_damaged_line_is_named_and_the_old_page_stays(line: str, tmp_path: Path) -> None:
    file, page = tmp_path / "samples.jsonl", tmp_path / "results.html"
    file.write_text(json.dumps(sample()) + "\n" + line + "\n", encoding="utf-8")
    page.write_text("old")
    with pytest.raises(UserError, match=r"samples\.jsonl, line 2 .* run the evaluation again"):
        write_page(page, RESULTS, SampleFile(file), title="A title")
    assert page.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.html", "samples.jsonl"]


def test_missing_or_unreadable_samples_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.jsonl cannot be read"):
        list(SampleFile(tmp_path / "absent.jsonl"))
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "\xe9"}\n')
    with pytest.raises(UserError, match=r"latin\.jsonl"):
        list(SampleFile(tmp_path / "latin.jsonl"))
