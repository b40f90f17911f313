"""Tests of reading data files and tokenizing examples: every format, every error in a file, one end token."""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import processors

from distill.benchmarks import gsm8k
from distill.benchmarks.grading import answers
from distill.data.prompt import Prompt
from distill.data.readers import read_examples, read_records
from distill.data.trace import Example, check_spelling, encode_completion
from distill.errors import UserError
from distill.models.find import find_model
from distill.tiny.build import make_tokenizer

ROWS = [
    {"question": "3+4=", "answer": "3+4=7;#7", "result": "7"},
    {"question": "2*5=\n", "answer": "2*5=0;#0, „quoted“", "result": "0"},
    {"question": "9-1=", "answer": "", "result": "8"},
]
FIELDS = {"problem": "question", "completion": "answer", "gold": "result"}


def write_jsonl(path: Path, rows: list[Any] = ROWS) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_gzip(path: Path, rows: list[Any] = ROWS) -> Path:
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def write_parquet(path: Path, rows: list[Any] = ROWS) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_csv(path: Path, rows: list[Any] = ROWS) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_zipped_csv(path: Path, rows: list[Any] = ROWS) -> Path:
    path.write_bytes(gzip.compress(write_csv(path.with_suffix(".plain"), rows).read_bytes()))
    return path


FORMATS = {
    "data.jsonl": write_jsonl,
    "data.ndjson": write_jsonl,
    "data.jsonl.gz": write_gzip,
    "data.parquet": write_parquet,
    "data.csv": write_csv,
    "data.csv.gz": write_zipped_csv,
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_examples(tmp_path: Path, name: str) -> None:
    path = FORMATS[name](tmp_path / name)
    assert read_examples(path=str(path), fields=FIELDS) == [
        Example("0", "3+4=", "7", "3+4=7;#7"),
        Example("1", "2*5=\n", "0", "2*5=0;#0, „quoted“"),
        Example("2", "9-1=", "8", ""),
    ]


@pytest.mark.parametrize("name", FORMATS)
def test_a_limit_reads_from_the_start(tmp_path: Path, name: str) -> None:
    path = FORMATS[name](tmp_path / name)
    assert [e.problem for e in read_examples(path=str(path), fields=FIELDS, limit=2)] == ["3+4=", "2*5=\n"]
    assert len(read_examples(path=str(path), fields=FIELDS, limit=99)) == 3


def test_a_limit_does_not_look_at_the_record_behind_it(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "data.jsonl")
    path.write_text(path.read_text() + "not json\n")
    assert len(read_examples(path=str(path), fields=FIELDS, limit=3)) == 3


def test_blank_lines_are_skipped_and_do_not_shift_the_named_line(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('\n{"question": "1+1="}\n\n  \n{"question": 5}\n')
    assert [where for where, _ in read_records(path=str(path), hub=None)] == [
        f"{path}, line 2",
        f"{path}, line 5",
    ]
    with pytest.raises(UserError, match=r"line 5: the problem is int, not text"):
        read_examples(path=str(path), fields={"problem": "question"})


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jsonl(tmp_path / "data.jsonl")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(read_examples(path="~/data.jsonl", fields=FIELDS)) == 3


def test_nested_and_dotted_field_names_are_found(tmp_path: Path) -> None:
    record = {
        "a": {"b": {"c": "nested"}, "b.c": "longer"},
        "gemini-1.5-flash": "top",
        "traces": {"gemini-1.5-flash_L2": {"text": "deep"}},
    }
    path = write_jsonl(tmp_path / "data.jsonl", [record])

    def read(place: str) -> str:
        return read_examples(path=str(path), fields={"problem": place})[0].problem

    assert read("a.b.c") == "longer"  # the longest name that fits wins
    assert read("gemini-1.5-flash") == "top"
    assert read("traces.gemini-1.5-flash_L2.text") == "deep"


def test_nested_fields_are_read_from_parquet_too(tmp_path: Path) -> None:
    rows = [{"problem": "1+1=", "traces": {"m-1.5_L2": "1+1=2;#2"}}]
    path = write_parquet(tmp_path / "data.parquet", rows)
    fields = {"problem": "problem", "completion": "traces.m-1.5_L2"}
    assert read_examples(path=str(path), fields=fields)[0].completion == "1+1=2;#2"


def test_an_id_and_a_gold_answer_become_text(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "data.jsonl", [{"p": "x", "n": 17, "g": 27.0}, {"p": "y", "n": 0, "g": None}]
    )
    found = read_examples(path=str(path), fields={"problem": "p", "id": "n", "gold": "g", "completion": None})
    assert [(e.id, e.gold, e.completion) for e in found] == [("17", "27", None), ("0", None, None)]


CONVERSATION = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "1+1="},
    {"role": "assistant", "content": "#2"},
]


@pytest.mark.parametrize("name", ["data.jsonl", "data.parquet"])
def test_the_last_message_is_the_completion(tmp_path: Path, name: str) -> None:
    path = FORMATS[name](tmp_path / name, [{"messages": CONVERSATION}])
    (example,) = read_examples(path=str(path), fields={"messages": "messages"})
    assert example.completion == "#2"
    assert example.problem == "1+1="
    assert example.messages == tuple(CONVERSATION[:2])


def test_with_messages_the_fields_of_problem_and_completion_are_not_read(tmp_path: Path) -> None:
    """conf/data/traces.yaml says so, and names both by default."""
    path = write_jsonl(tmp_path / "data.jsonl", [{"messages": CONVERSATION}])
    fields = {"problem": "problem", "completion": "completion", "gold": None, "messages": "messages"}
    assert read_examples(path=str(path), fields=fields)[0].completion == "#2"


BAD_MESSAGES = {
    "is text": "hello",
    "is missing content": [{"role": "user", "content": "a"}, {"role": "assistant"}],
    "has one turn": [{"role": "assistant", "content": "a"}],
    "is empty": [],
    "is no list": {"role": "assistant", "content": "a"},
    "holds a list as content": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ["a"]}],
    "is null": None,
    "ends with the user": CONVERSATION[:2],
    "has a first turn without a role": [{"content": "a"}, {"role": "assistant", "content": "a"}],
    "has a last turn without a role": [{"role": "user", "content": "a"}, {"content": "a"}],
}


@pytest.mark.parametrize("case", BAD_MESSAGES)
def test_messages_without_an_answer_are_refused_with_their_line(tmp_path: Path, case: str) -> None:
    path = write_jsonl(tmp_path / "data.jsonl", [{"m": CONVERSATION}, {"m": BAD_MESSAGES[case]}])
    with pytest.raises(UserError, match=r"data\.jsonl, line 2: .*message"):
        read_examples(path=str(path), fields={"messages": "m"})


def _bytes(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


GOOD = b'{"question": "1+1="}\n'
MALFORMED: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "missing file": ("none.jsonl", lambda path: None, r"none\.jsonl does not exist"),
    "bad JSON": ("a.jsonl", _bytes(GOOD + b'{"question": \n'), r"a\.jsonl, line 2: not JSON .*column"),
    "half a line": ("a.jsonl", _bytes(GOOD + GOOD + b'{"question": "1'), r"a\.jsonl, line 3: not JSON"),
    "bad UTF-8": ("a.jsonl", _bytes(GOOD + b'{"question": "\xff"}'), r"line 2: not UTF-8 at byte 14"),
    "UTF-16": ("a.jsonl", _bytes(GOOD.decode().encode("utf-16-le")), r"a\.jsonl is no UTF-8 text"),
    "wrong type": (
        "a.jsonl",
        _bytes(GOOD + b'{"question": ["a"]}'),
        r"line 2: the problem is list, not text",
    ),
    "null": ("a.jsonl", _bytes(b'{"question": null}'), r"line 1: the problem is empty \(null\), not text"),
    "missing field": (
        "a.jsonl",
        _bytes(GOOD + b'{"query": "a", "b": 1}'),
        r"line 2: no field 'question' for the problem \(the record has: query, b\).*data\.fields\.problem=",
    ),
    "no object": ("a.jsonl", _bytes(GOOD + b"[1, 2]"), r"line 2: the record is list, not an object"),
    "a number": ("a.jsonl", _bytes(b"17"), r"line 1: the record is int, not an object"),
    "a number too long to read": ("a.jsonl", _bytes(GOOD + b"1" * 5000), r"a\.jsonl, line 2"),
    "nested too deep": ("a.jsonl", _bytes(GOOD + b"[" * 200_000), r"a\.jsonl, line 2"),
    "no gzip": ("a.jsonl.gz", _bytes(GOOD), r"a\.jsonl\.gz"),
    "truncated gzip": ("a.jsonl.gz", _bytes(gzip.compress(GOOD * 999)[:-20]), r"a\.jsonl\.gz"),
    "no Parquet": ("a.parquet", _bytes(b"PAR1 but not really"), r"a\.parquet is no readable Parquet"),
    "empty Parquet": ("a.parquet", _bytes(b""), r"a\.parquet is no readable Parquet"),
    "bad UTF-8 in CSV": ("a.csv", _bytes(b"question\n1+1=\n\xff\n"), r"a\.csv, (row|line) \d: not UTF-8"),
    "missing CSV column": ("a.csv", _bytes(b"query\n1+1=\n"), r"a\.csv, row 1: no field 'question'"),
    "short CSV row": (
        "a.csv",
        _bytes(b"id,question\n1,1+1=\n2\n"),
        r"row 2: the problem is empty \(null\), not text",
    ),
    "zipped Parquet": ("a.parquet.gz", _bytes(gzip.compress(b"PAR1")), r"a\.parquet\.gz"),
    "unknown ending": ("a.txt", _bytes(GOOD), r"a\.txt: the ending is none of \.jsonl"),
    "no ending": ("data", _bytes(GOOD), r"data: the ending is none of \.jsonl"),
    "a folder": ("folder.jsonl", lambda path: path.mkdir(), r"folder\.jsonl"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_every_mistake_in_a_file_is_named_with_its_place(tmp_path: Path, case: str) -> None:
    name, make, message = MALFORMED[case]
    make(tmp_path / name)
    with pytest.raises(UserError, match=message):
        read_examples(path=str(tmp_path / name), fields={"problem": "question"})


def test_a_truncated_parquet_file_is_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "data.parquet", ROWS * 50)
    whole = path.read_bytes()
    for size in (10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"data\.parquet is no readable Parquet file"):
            read_examples(path=str(path), fields=FIELDS)


def test_a_long_field_of_a_csv_file_is_read(tmp_path: Path) -> None:
    """Reasoning traces pass the csv module's own limit of 131,072 characters."""
    path = write_csv(tmp_path / "data.csv", [{"question": "1+1=", "answer": "7" * 200_000}])
    found = read_examples(path=str(path), fields={"problem": "question", "completion": "answer"})
    assert len(found[0].completion or "") == 200_000


@pytest.mark.parametrize("name", ["data.csv", "data.jsonl"])
def test_a_byte_order_mark_does_not_become_part_of_the_data(tmp_path: Path, name: str) -> None:
    """Spreadsheets write one."""
    path = FORMATS[name](tmp_path / name)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read_examples(path=str(path), fields=FIELDS)) == 3


def test_data_without_a_place_is_refused_with_the_keys_to_set() -> None:
    with pytest.raises(UserError, match=r"data\.path=.*data\.hub="):
        read_examples(fields={"problem": "problem"})


def test_a_set_that_names_no_problem_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "data.jsonl")
    with pytest.raises(
        UserError, match=r"line 1: no field is named for the problem: set data\.fields\.problem="
    ):
        read_examples(path=str(path), fields={"completion": "answer"})


def test_a_set_that_the_hub_does_not_give_is_refused_with_the_local_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import datasets

    def unreachable(*args: Any, **options: Any) -> None:
        raise ConnectionError("no network\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match=r"openai/gsm8k .*\(no network\).*data\.path=<file>"):
        read_examples(hub="openai/gsm8k", fields={"problem": "question"})


def test_records_of_the_hub_are_named_by_set_split_and_row(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load(*args: Any, **options: Any) -> list[dict[str, Any]]:
        asked.append((args, options))
        return [{"question": "a"}, {"question": 3}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(UserError, match=r"me/set, test row 2: the problem is int, not text"):
        read_examples(hub="me/set", subset="main", split="test", fields={"problem": "question"})
    assert asked == [(("me/set", "main"), {"split": "test"})]


CHAT = (
    "{% for m in messages %}{{ {'system': '*', 'user': '#', 'assistant': ';'}[m.role] }}{{ m.content }}"
    "{% endfor %}{% if add_generation_prompt %}={% endif %}"
)


def test_a_conversation_that_the_chat_template_refuses_is_the_users_mistake() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(UserError, match=r"refuses the conversation of p1 \(a.jsonl, line 3\) \(System role"):
        Prompt("{problem}").encode(tokenizer, Example("p1", "1+1=", where="a.jsonl, line 3"))


def test_without_a_chat_template_the_prompt_is_plain_text() -> None:
    tokenizer = make_tokenizer()
    ids = Prompt("#{problem}").encode(tokenizer, Example("0", "3+4="))
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == "#3+4="
    closing = make_tokenizer()
    closing.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", closing.eos_token_id)]
    )
    assert closing("3").input_ids[-1] == closing.eos_token_id
    assert Prompt("#{problem}").encode(closing, Example("0", "3+4=")).tolist() == ids.tolist()


def test_a_chat_template_is_applied_up_to_where_the_completion_begins() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT
    ids = Prompt("0{problem}1").encode(tokenizer, Example("0", "3+4"))
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == "#03+41="
    turns = ({"role": "system", "content": "1"}, {"role": "user", "content": "2+2"})
    own = Example("0", "2+2", messages=turns)
    assert tokenizer.decode(Prompt("0{problem}1").encode(tokenizer, own)) == "*1#2+2="


def test_a_problem_with_braces_is_taken_literally() -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["{", "}", "problem", "x"])
    example = Example("0", "{problem}{x}{0}")
    assert tokenizer.decode(Prompt("#{problem}#").encode(tokenizer, example)) == "#{problem}{x}{0}#"


@pytest.mark.parametrize("pad_is_end", [False, True])
@pytest.mark.parametrize("closes_texts", [False, True])
@pytest.mark.parametrize("text", ["3+4=7;#7", "", "3+4=7;#7<eos>"])
def test_a_completion_has_exactly_one_end_token(text: str, pad_is_end: bool, closes_texts: bool) -> None:
    tokenizer = make_tokenizer()
    if pad_is_end:
        tokenizer.pad_token = tokenizer.eos_token
    if closes_texts:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="$A <eos>", special_tokens=[("<eos>", tokenizer.eos_token_id)]
        )
    ids = encode_completion(tokenizer, text)
    assert ids.dtype == np.int32
    assert ids.tolist().count(tokenizer.eos_token_id) == 1
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids[:-1]) == text.removesuffix("<eos>")


def test_a_tokenizer_that_cannot_spell_a_text_and_says_so_is_the_users_mistake() -> None:
    tokenizer = make_tokenizer()
    with pytest.raises(UserError, match=r"cannot spell 'Natalia"):
        Prompt("{problem}").encode(tokenizer, Example("0", "Natalia sold 48 clips"))
    with pytest.raises(UserError, match=r"cannot spell 'She"):
        encode_completion(tokenizer, "She sold 72.")


def test_a_tokenizer_that_silently_loses_text_is_refused() -> None:
    """The embedded pair knows 16 characters: `data=gsm8k` must not train on what is left of a text."""
    tokenizer = find_model("package:distill/tiny/student", key="x").tokenizer
    check_spelling(tokenizer, Example("0", "3+4=", None, "3+4=7;#7"), "tiny")
    with pytest.raises(UserError, match=r"tokenizer of tiny cannot spell"):
        check_spelling(tokenizer, Example("0", "Natalia sold 48 clips"), "tiny")
    with pytest.raises(UserError, match=r"tokenizer of tiny cannot spell"):
        check_spelling(tokenizer, Example("0", "3+4=", None, "She sold 72 of them."), "tiny")


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.parametrize(("split", "count"), [("train", 7473), ("test", 1319)])
def test_gsm8k_loads_and_grades_itself_right(data_dir: Path, split: str, count: int) -> None:
    examples = gsm8k.load(split=split, path=str(data_dir / "gsm8k" / f"{split}.jsonl"))
    assert len(examples) == count
    assert len({example.problem for example in examples}) == count
    for example in examples:
        assert answers.number(example.gold or "") is not None, example
        assert "<<" not in (example.completion or ""), example
        assert gsm8k.grade(example, example.completion or "").correct, example
    neighbours = zip(examples, examples[1:] + examples[:1], strict=True)
    by_chance = sum(gsm8k.grade(one, other.completion or "").correct for one, other in neighbours)
    assert by_chance / count < 0.03


@pytest.mark.slow
@pytest.mark.realdata
def test_the_test_problems_of_gsm8k_are_not_among_the_training_problems(data_dir: Path) -> None:
    train, test = (
        {e.problem for e in gsm8k.load(split=split, path=str(data_dir / "gsm8k" / f"{split}.jsonl"))}
        for split in ("train", "test")
    )
    assert not train & test


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.parametrize(
    ("style", "complete", "accuracy"),
    [
        ("human", 7473, 0.95),  # bodies without the closing line: the last number is not always the answer
        ("gemini-1.5-flash_L1", 310, 0.95),
        ("gemini-1.5-flash_L2", 310, 0.9),
        ("llama-3-70b_L1", 310, 0.95),
        ("llama-3-70b_L2", 310, 0.95),
    ],
)
def test_the_five_traces_of_each_gsm8k_problem_load(
    data_dir: Path, style: str, complete: int, accuracy: float
) -> None:
    path = str(data_dir / "traces" / "gsm8k_train_human_gemini_llama.jsonl.gz")
    fields = {"problem": "question", "completion": f"traces.{style}", "gold": "gold", "id": "id"}
    examples = read_examples(path=path, fields=fields, limit=complete)
    assert len({example.id for example in examples}) == len(examples) == complete
    assert all(example.completion and example.completion.strip() for example in examples)
    right = sum(gsm8k.grade(example, example.completion or "").correct for example in examples)
    assert right / len(examples) > accuracy
    if complete < 7473:  # the next problem was left out by the models
        with pytest.raises(
            UserError, match=rf"gz, line {complete + 1}: no field 'traces\.{style}' .*has: human"
        ):
            read_examples(path=path, fields=fields)


def test_sharegpts_conversations_are_read_as_ours(tmp_path: Path) -> None:
    turns = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "2+2"},
        {"from": "gpt", "value": "4"},
    ]
    path = write_jsonl(tmp_path / "data.jsonl", [{"conversations": turns}])
    (example,) = read_examples(path=str(path), fields={"messages": "conversations"})
    assert example.problem == "2+2"
    assert example.completion == "4"
    assert example.messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2+2"},
    )


def test_alpacas_input_stands_below_the_instruction(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Add these.", "input": "2, 3", "output": "5"},
        {"instruction": "Say hello.", "input": "", "output": "Hello."},
    ]
    path = write_jsonl(tmp_path / "data.jsonl", rows)
    fields = {"problem": "instruction", "context": "input", "completion": "output"}
    examples = read_examples(path=str(path), fields=fields)
    assert [example.problem for example in examples] == ["Add these.\n\n2, 3", "Say hello."]
    path = write_jsonl(tmp_path / "bad.jsonl", [{"instruction": "Add", "input": [1], "output": "1"}])
    with pytest.raises(UserError, match=r"bad.jsonl, line 1: the context is list, not text"):
        read_examples(path=str(path), fields=fields)


@pytest.mark.slow
@pytest.mark.realdata
def test_all_five_traces_of_every_gsm8k_problem_are_read(data_dir: Path) -> None:
    path = data_dir / "traces" / "gsm8k_train_human_gemini_llama.jsonl.gz"
    for teacher in (
        "human",
        *(f"{name}_L{level}" for name in ("gemini-1.5-flash", "llama-3-70b") for level in (1, 2)),
    ):
        fields = {"problem": "question", "completion": f"traces.{teacher}", "gold": "gold", "id": "id"}
        examples = read_examples(path=str(path), fields=fields, missing="drop")
        assert len(examples) == 7473 if teacher == "human" else 7000 < len(examples) < 7473
        assert all(example.completion and example.gold for example in examples)
    with pytest.raises(UserError, match=r"line 311: no field 'traces.llama-3-70b_L2'"):
        read_examples(path=str(path), fields=fields)


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.parametrize("teacher", ["gemini", "llama", "mix"])
@pytest.mark.parametrize("level", [2, 4])
def test_the_traces_of_three_teachers_of_math_are_read(data_dir: Path, teacher: str, level: int) -> None:
    path = data_dir / "traces" / f"math_train_{teacher}_level{level}.jsonl.gz"
    (first,) = (dict(record) for _, record in read_records(path=str(path), hub=None, limit=1))
    written = next(name for name in first if name.endswith("_output"))
    fields = {"problem": "problem", "completion": written, "gold": "output"}
    examples = read_examples(path=str(path), fields=fields)
    assert 1200 < len(examples) < 1400
    assert all((example.completion or "").strip() for example in examples)
