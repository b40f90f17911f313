"""Tests of reading trace sets: values that no writer writes are refused, with their row and column."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill.data.readers import read_examples
from distill.data.trace_set import read_records
from distill.errors import UserError

OLD = Path(__file__).resolve().parents[1] / "data_of_earlier_versions" / "traces" / "traces.parquet"
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


def test_a_trace_set_is_read_without_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert all(example.recorded for example in read_examples(path=str(OLD.parent), report=True))
    assert capsys.readouterr().out == ""
