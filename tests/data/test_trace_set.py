"""Tests of reading trace sets: values that no writer writes are refused, with their row and column."""

import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill.data import trace_set
from distill.data.prompt import Prompt
from distill.data.readers import read_examples
from distill.data.recorded import conversation_text
from distill.data.trace import Example
from distill.data.trace_set import (
    by_problem,
    example_of,
    iter_records,
    problem_of,
    problem_of_example,
    read_records,
    was_graded,
    write_records,
)
from distill.errors import UserError
from distill.records import json_lines

OLD = Path(__file__).resolve().parents[1] / "data_of_earlier_versions" / "traces" / "traces.parquet"
CALL = {"id": "1", "type": "function", "function": {"name": "sum", "arguments": {"a": 1, "b": 1}}}
TOOLS = [{"type": "function", "function": {"name": "sum", "parameters": {"type": "object"}}}]
WRONG: list[tuple[str, Any]] = [
    *(("problem", None), ("completion", None), ("id", None), ("problem_id", None), ("sample", None)),
    *(
        ("sample", -1),
        ("prompt_ids", None),
        ("completion_ids", None),
        ("finished", None),
        ("tokenizer", None),
    ),
    *(("weight", -1.0), ("learn_from", -3), ("teacher_logprobs", [5.0]), ("completion_ids", [-1])),
]


def changed(path: Path, **columns: Any) -> Path:
    """The trace set with other values in its second row."""
    table = pq.read_table(OLD)
    for name, value in columns.items():
        place, values = table.column_names.index(name), table[name].to_pylist()
        values[1] = value
        table = table.set_column(place, name, pa.array(values, type=table.schema.field(name).type))
    pq.write_table(table, path)
    return path


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_value_that_cannot_be_right_is_named(tmp_path: Path, name: str, value: Any) -> None:
    path = changed(tmp_path / "set.parquet", **{name: value})
    with pytest.raises(UserError, match=rf"set\.parquet, row 2: .*({name}|tokens)"):
        read_records(path)


def test_a_null_weight_or_start_is_the_usual_one(tmp_path: Path) -> None:
    path = changed(tmp_path / "set.parquet", weight=None, learn_from=None)
    assert [(record["weight"], record["learn_from"]) for record in read_records(path)][1] == (1.0, 0)
    assert len(read_examples(path=str(path))) == len(read_records(path))


TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Add 1 and 1."},
    {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning_content": "I compute."},
    {"role": "tool", "content": "2", "tool_call_id": "1", "name": "sum"},
    {"role": "user", "content": "And again?"},
]
KEPT = Example("a", "And again?", "2", "2", tuple(TALK), system="Be brief.", tools=tuple(TOOLS))


def record_of(example: Example) -> dict[str, Any]:
    made = read_records(OLD)[0] | {"id": example.id, "problem": example.problem, "gold": example.gold}
    made |= {"completion": example.completion, "messages": [*map(dict, example.messages or ())]}
    return made | {"conversation": conversation_text(example)}


def test_a_conversation_is_kept_whole(tmp_path: Path) -> None:
    path = tmp_path / "traces.parquet"
    write_records(path, [record_of(KEPT)])
    (record,), (read,) = read_records(path), read_examples(path=str(path))
    for found in (example_of(record), read):
        assert (found.problem, found.messages, found.system) == (KEPT.problem, KEPT.messages, KEPT.system)
        assert found.tools == KEPT.tools
        assert Prompt().messages(found) == KEPT.messages  # what the teacher was asked
        assert conversation_text(found) == record["conversation"]
    (lines := tmp_path / "set.jsonl").write_text("\n".join(json_lines([record])))
    assert read_examples(path=str(lines))[0].messages == KEPT.messages


def test_a_set_without_conversations_is_read_and_written_as_before(tmp_path: Path) -> None:
    records = read_records(OLD)
    assert all(record["conversation"] is None for record in records)
    assert all(example_of(record).messages is None for record in records)
    assert conversation_text(Example("a", "1+1=")) is None
    write_records(tmp_path / "traces.parquet", [{n: v for n, v in records[0].items() if n != "conversation"}])
    assert read_records(tmp_path) == records[:1]


def test_conversations_that_end_alike_are_different_problems() -> None:
    first = record_of(KEPT)
    other = record_of(replace(KEPT, messages=(TALK[1] | {"content": "Add 2 and 2."}, *TALK[2:])))
    assert len(by_problem([first, other, dict(first)])) == 2


def test_examples_of_conversations_are_told_apart_as_their_records_are() -> None:
    other = replace(KEPT, messages=(TALK[1] | {"content": "Add 2 and 2."}, *TALK[2:]))
    examples = [KEPT, other, replace(KEPT, system="Be long."), Example("a", "And  again?")]
    expected = [problem_of(record_of(example)) for example in examples]
    assert [problem_of_example(example) for example in examples] == expected
    assert len(set(expected)) == 4
    assert [example.asked for example in examples[1:]] == [
        ["Add 2 and 2.", "And again?"],
        ["Add 1 and 1.", "And again?"],
        ["And  again?"],
    ]


def test_a_record_was_graded_unless_it_only_broke_a_rule() -> None:
    def graded(**columns: Any) -> bool:
        return was_graded({"correct": None, "pass_rate": None, "answer": None, "reason": None} | columns)

    assert not graded()
    assert not graded(correct=False, reason="more than 20 tokens")
    assert graded(correct=False, reason="more than 20 tokens", pass_rate=0.5)  # its problem has an answer
    assert graded(correct=False, reason="wrong")
    assert graded(correct=False)  # of another writer
    assert graded(correct=True, reason="right")


def test_each_changed_byte_of_a_set_is_found_by_every_reader(tmp_path: Path) -> None:
    write_records(path := tmp_path / "traces.parquet", read_records(OLD))
    whole = path.read_bytes()
    for place in range(4, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        for source in (tmp_path, path):
            with pytest.raises(UserError, match=r"traces\.parquet is damaged: it is not what was written"):
                read_examples(path=str(source))
    path.write_bytes(whole)
    assert len(read_examples(path=str(path))) == len(read_records(OLD))


@pytest.mark.parametrize(
    "wrong", ["hello", "[]", '{"messages": []}', '{"turns": []}', '{"system": 1}', '{"messages": [1]}']
)
def test_a_conversation_that_cannot_be_right_is_named(tmp_path: Path, wrong: str) -> None:
    write_records(tmp_path / "traces.parquet", [record_of(KEPT) | {"conversation": wrong}])
    with pytest.raises(UserError, match=r"traces\.parquet, row 1: .*(conversation|message)"):
        read_records(tmp_path)


def test_a_trace_set_is_read_without_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert all(example.recorded for example in read_examples(path=str(OLD.parent), report=True))
    assert capsys.readouterr().out == ""


class Row(dict[str, Any]):
    """A record whose life can be followed."""


def test_only_a_few_rows_are_in_memory_while_a_set_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_set, "_CHUNK_ROWS", 8)
    monkeypatch.setattr(trace_set, "_GROUP_CHUNKS", 2)
    most = 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal most
        for number in range(40):
            row = Row(read[0] | {"id": f"{number}"})
            lives.append(weakref.ref(row))
            most = max(most, sum(life() is not None for life in lives))
            yield row

    lives: list[weakref.ref[Row]] = []
    read = read_records(OLD)
    write_records(tmp_path / "traces.parquet", rows())
    assert most <= 17  # the chunk that is written and the one that is collected
    assert pq.ParquetFile(tmp_path / "traces.parquet").num_row_groups == 3
    assert read_records(tmp_path) == [read[0] | {"id": f"{number}"} for number in range(40)]
    monkeypatch.setattr(
        trace_set, "_CHUNK_TOKENS", 2 * len(read[0]["prompt_ids"] + read[0]["completion_ids"])
    )
    write_records(tmp_path / "traces.parquet", read[:1] * 8)  # long ones make smaller groups
    assert pq.ParquetFile(tmp_path / "traces.parquet").num_row_groups == 2


def test_records_are_read_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_set, "_READ_ROWS", 1)
    found = iter_records(changed(tmp_path / "set.parquet", sample=-1))
    assert next(found) == read_records(OLD)[0]
    with pytest.raises(UserError, match=r"row 2: sample"):
        next(found)
