"""Tests of finding and reading data files: formats, compressions, folders, patterns, splits."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from distill.data.readers import read_records
from distill.data.record_files import find_files
from distill.errors import UserError

ROWS = [{"problem": f"{n}+1=", "completion": f'{n + 1}, "as said",\tit\nis', "n": str(n)} for n in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def separated(sign: str) -> bytes:
    cells = [list(ROWS[0]), *([value.replace('"', '""') for value in row.values()] for row in ROWS)]
    return "".join(sign.join(f'"{cell}"' for cell in row) + "\n" for row in cells).encode()


def arrow(path: Path, file: bool) -> None:
    table = pa.Table.from_pylist(ROWS)
    make = pa.ipc.new_file if file else pa.ipc.new_stream
    with make(str(path), table.schema) as writer:
        writer.write_table(table)


def zstandard(data: bytes) -> bytes:
    return pa.Codec("zstd").compress(data, asbytes=True)


CONTENTS: dict[str, bytes] = {
    "a.jsonl": LINES,
    "a.NDJSON": LINES,
    "a.jsonlines": LINES,
    "a.ndjson.gz": gzip.compress(LINES),
    "utf16.jsonl": LINES.decode().encode("utf-16"),
    "utf16.json": b"\xfe\xff" + json.dumps(ROWS, indent=1).encode("utf-16-be"),
    "utf16.jsonl.gz": gzip.compress(LINES.decode().encode("utf-16")),
    "utf16.csv": separated("\t").decode().encode("utf-16"),  # a spreadsheet's "Unicode text"
    "a.json": json.dumps(ROWS).encode(),
    "pretty.json": json.dumps(ROWS, indent=1).encode(),
    "mark.json": b"\xef\xbb\xbf" + json.dumps(ROWS).encode(),
    "lines.json": LINES,
    "wrapped.json": json.dumps({"version": 1, "data": ROWS}).encode(),
    "splits.json": json.dumps({"test": ROWS[:1], "train": ROWS}).encode(),
    "a.csv": separated(","),
    "semicolons.csv": separated(";"),
    "blank_first.csv": b"\n" + separated(","),
    "a.tsv": separated("\t"),
    "a.jsonl.gz": gzip.compress(LINES),
    "a.jsonl.zst": zstandard(LINES),
    "two_frames.jsonl.zst": zstandard(LINES[:40]) + zstandard(LINES[40:]),
    "a.jsonl.bz2": bz2.compress(LINES),
    "a.jsonl.xz": lzma.compress(LINES),
    "a.json.zst": zstandard(json.dumps(ROWS).encode()),
    "a.csv.gz": gzip.compress(separated(",")),
    "a.tsv.zstd": zstandard(separated("\t")),
}
TABLES: dict[str, Callable[[Path], Any]] = {
    "a.parquet": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path),
    "a.feather": lambda path: pyarrow.feather.write_feather(pa.Table.from_pylist(ROWS), str(path)),
    "file.arrow": lambda path: arrow(path, file=True),
    "stream.arrow": lambda path: arrow(path, file=False),
}


def rows_of(path: Path | str, split: str = "train") -> list[Any]:
    return [record for _, record in read_records(path=str(path), hub=None, split=split)]


def make(path: Path) -> Path:
    if path.name in CONTENTS:
        path.write_bytes(CONTENTS[path.name])
    else:
        TABLES[path.name](path)
    return path


@pytest.mark.parametrize("name", [*CONTENTS, *TABLES])
def test_every_format_gives_the_same_records(tmp_path: Path, name: str) -> None:
    path = make(tmp_path / name)
    assert rows_of(path) == ROWS
    assert [record for _, record in read_records(path=str(path), hub=None, limit=2)] == ROWS[:2]


@pytest.mark.parametrize("name", [name for name in CONTENTS if not name.endswith((".csv", ".tsv"))])
def test_a_file_that_was_cut_off_is_named(tmp_path: Path, name: str) -> None:
    path = make(tmp_path / name)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(UserError, match=rf"{name}"):
        rows_of(path)


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ('problem,completion\n1+1?,2\nWhat?,"It is 5.\nx,y\n', "behind row 1"),  # never closed
        ('problem,completion\n1+1?,2\nWhat?,"It is', "behind row 1"),  # cut off in a cell
        ('problem,completion\n"a" b,2\n', "behind row 0"),  # whose quotes would be lost
        ('"problem,completion\n1+1?,2\n', "behind row 0"),
    ],
)
@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_a_quote_that_is_not_closed_does_not_take_the_rows_behind_it(
    tmp_path: Path, text: str, row: str, ending: str
) -> None:
    path = tmp_path / f"a.{ending}"
    path.write_text(text if ending == "csv" else text.replace(",", "\t"))
    with pytest.raises(UserError, match=rf"a\.{ending}, {row}: .* begins with a quote must end with one"):
        rows_of(path)


def test_quotes_of_a_cell_that_does_not_begin_with_one_are_text(tmp_path: Path) -> None:
    (path := tmp_path / "a.csv").write_text(
        'problem,completion\nHe said "hi"?,5" of "rope"\n"a ""b"", c",""\n'
    )
    assert rows_of(path) == [
        {"problem": 'He said "hi"?', "completion": '5" of "rope"'},
        {"problem": 'a "b", c', "completion": ""},
    ]


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_was_cut_off_is_named(tmp_path: Path, name: str) -> None:
    path = make(tmp_path / name)
    whole = path.read_bytes()
    for size in (0, 3, len(whole) // 2):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=rf"{name} is no readable (Parquet|Arrow) file"):
            rows_of(path)


def shards(folder: Path, names: list[str]) -> Path:
    """Files with a record each; its problem is the file's name."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        row = {"problem": name, "completion": "c"}
        if name.endswith(".parquet"):
            pq.write_table(pa.Table.from_pylist([row]), folder / name)
        else:
            (folder / name).write_text(json.dumps(row) + "\n")
    return folder


HUB = ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000.parquet"]
FOLDERS: dict[str, tuple[list[str], str, list[str]]] = {
    "shards": (["b.jsonl", "a.jsonl"], "train", ["a.jsonl", "b.jsonl"]),
    "one split": (HUB, "train", HUB[:2]),
    "another": (HUB, "test", HUB[2:]),
    "two splits": (HUB, "train+test", [HUB[2], *HUB[:2]]),
    "folders of splits": (["train/1.jsonl", "dev/1.jsonl"], "validation", ["dev/1.jsonl"]),
    "hidden files": ([".a.jsonl", "b.jsonl", "_c/d.jsonl", ".git/e.jsonl"], "train", ["b.jsonl"]),
    "words like splits": (["latest.jsonl", "strain.jsonl"], "train", ["latest.jsonl", "strain.jsonl"]),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folders_files_are_read_by_name_and_split(tmp_path: Path, case: str) -> None:
    names, split, expected = FOLDERS[case]
    folder = shards(tmp_path, names)
    (folder / "README.md").write_text("a card")
    assert [row["problem"] for row in rows_of(folder, split)] == expected


BAD_FOLDERS = {
    "without data": (["README.md"], r"holds no data file \(read are \.jsonl"),
    "of another split": (["test-1.jsonl", "dev.jsonl"], "no files of the split train, only of test, vali"),
    "of two formats": (["a.jsonl", "a.parquet"], r"several formats \(\.jsonl, \.parquet\).*name one"),
    "with a copy": (["a.jsonl", "a.jsonl.gz"], r"several formats \(\.jsonl, \.jsonl\.gz\)"),
    "with and without splits": (["train.jsonl", "more.jsonl"], r"named by split and others \(more\.jsonl\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_a_folder_that_is_not_clear_is_refused(tmp_path: Path, case: str) -> None:
    names, message = BAD_FOLDERS[case]
    with pytest.raises(UserError, match=message):
        find_files(shards(tmp_path, names))


def test_a_pattern_takes_what_it_matches(tmp_path: Path) -> None:
    folder = shards(tmp_path, [*HUB, "more/x.jsonl"])
    assert [row["problem"] for row in rows_of(folder / "data" / "train-*")] == HUB[:2]
    assert len(find_files(folder / "**" / "*.parquet")) == 3
    with pytest.raises(UserError, match=r"data file .*\*\.csv matches no file"):
        find_files(folder / "*.csv")
    with pytest.raises(UserError, match="several formats"):
        find_files(folder / "**" / "*")
    named = shards(tmp_path / "literal", ["odd[1].jsonl"]) / "odd[1].jsonl"
    assert len(rows_of(named)) == 1  # a file of this very name


def test_a_folder_of_save_to_disk_is_read(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    saved = Dataset.from_list(ROWS)
    saved.select([2, 0]).save_to_disk(str(tmp_path / "one"))  # rows that are chosen by an index
    assert rows_of(tmp_path / "one") == [ROWS[2], ROWS[0]]
    both = DatasetDict({"train": saved, "test": saved.select([1])})
    both.save_to_disk(str(tmp_path / "both"))
    assert rows_of(tmp_path / "both") == ROWS
    assert rows_of(tmp_path / "both", "test") == [ROWS[1]]
    with pytest.raises(UserError, match="has no split dev, only train, test"):
        rows_of(tmp_path / "both", "dev")
    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(UserError, match="one is no readable folder of save_to_disk"):
        rows_of(tmp_path / "one")


REFUSED = {
    "a.xlsx": "save the sheet as CSV",
    "a.txt": "one JSON object a line",
    "a.parquet.gz": "Parquet is compressed inside",
    "a.tar.gz": "unpack it",
    "a.pkl": r"none of \.jsonl",
}


@pytest.mark.parametrize("name", REFUSED)
def test_another_format_is_refused_with_a_remedy(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=REFUSED[name]):
        find_files(tmp_path / name)


BAD_FILES = {
    "a.csv": (b"a,b\n1,2,3\n", r"a\.csv, row 1: 3 cells under a header of 2"),
    "twice.csv": (b"a,a\n1,2\n", "the column 'a' twice"),
    "text.json": (b'"only text"', r"text\.json holds str, not an array"),
    "broken.json": (b'[{"a": 1},\n {"a": ]', r"broken\.json: not JSON \(.* at line 2, column"),
    "numbers.json": (b"[1, 2]", r"numbers\.json, record 1: the record is int"),
    "pretty.jsonl": (
        b'{\n "a": 1\n}\n{\n "a": 2\n}\n',
        r"pretty\.jsonl, line 1: the record does not end on its line",
    ),
    "array.jsonl": (
        b'[{"a": 1},\n{"a": 2}]',
        r"array\.jsonl, line 1: .* one record a line: write it so \(jq",
    ),
    "unmarked.jsonl": (
        '{"a": 1}\n'.encode("utf-16-le"),
        r"unmarked\.jsonl is no UTF-8 text .* as UTF-16 has",
    ),
    "unmarked.csv": ("a,b\n1,2\n".encode("utf-16-be"), r"unmarked\.csv is no UTF-8 text"),
    "cut.jsonl": ('{"a": 1}\n{"a": 2}\n'.encode("utf-16")[:-1], r"cut\.jsonl, behind line 1: not UTF-16"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_mistake_in_a_file_is_named(tmp_path: Path, name: str) -> None:
    content, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        rows_of(tmp_path / name)


@pytest.mark.parametrize("path", ["x" * 5000, "a\0b", "2", "none/*.jsonl", "none.jsonl"])
def test_a_path_that_names_nothing_is_refused(path: str) -> None:
    with pytest.raises(UserError, match="data file"):
        find_files(path)
