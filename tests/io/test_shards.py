"""Tests of shards: which are valid, what is theirs, and that together they are the whole in its order."""

import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from distill.errors import UserError
from distill.io.locks import claimed
from distill.io.shards import Shard, check_alike, check_folder, in_turn, shard_files, shards_in

WRONG = ["0/4", "5/4", "x", "1/0", "0/0", "-1/4", "1/-4", "1.0/4", "1/4/4", "1", 1, True, "", "1/ 4", [1, 4]]


@pytest.mark.parametrize("value", [*WRONG, "1/" + "9" * 5000])
def test_what_is_no_shard_gets_one_sentence(value: Any) -> None:
    with pytest.raises(UserError, match=r"shard=.* is not one of n shards: give i/n .* such as shard=1/4"):
        Shard.of(value)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 12])
def test_the_shards_are_the_whole_in_its_order(count: int) -> None:
    whole = [(problem, sample) for problem in range(12) for sample in range(3)]
    parts = []
    for number in range(1, count + 1):
        shard = Shard.of(f"{number}/{count}")
        assert shard is not None
        own = set(range(12)[shard.places])
        assert len(own) in (12 // count, 12 // count + 1)  # alike in size
        parts.append([row for row in whole if row[0] in own])
    assert sorted(chain(*parts)) == whole
    assert list(in_turn(parts, lambda row: row[0])) == whole


def written(folder: Path, *shards: str, key: Any = None) -> Path:
    """A folder with finished shards."""
    for name in shards:
        shard = Shard.of(name)
        assert shard is not None
        (part := shard.folder(folder)).mkdir(parents=True)
        (part / "x").touch()
        (part / "key.json").write_text(json.dumps(key or {"seed": 0}))
    return folder


def test_missing_shards_are_named(tmp_path: Path) -> None:
    folder = written(tmp_path, "10/12", "2/12", "1/12")
    assert [shard.number for shard in shards_in(folder)] == [1, 2, 10]
    with pytest.raises(UserError, match=r"of 12 shards, numbers 3, 4, 5, 6, 7, 8, 9, 11, 12 are missing"):
        shard_files(folder, "x")
    written(folder, *(f"{number}/12" for number in range(3, 12) if number != 10))
    with pytest.raises(UserError, match=r"number 12 is missing or not finished: .* as in shard=12/12"):
        shard_files(folder, "x")
    written(folder, "12/12")
    assert [path.parent.name for path in shard_files(folder, "x")][8:11] == [
        f"shard-{number}-of-12" for number in (9, 10, 11)
    ]
    assert shard_files(tmp_path / "nowhere", "x") == []


def test_shards_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    written(written(tmp_path / "a", "1/2"), "2/2", key={"seed": 1})
    with pytest.raises(UserError, match=r"shard-2-of-2 was made with another seed than the other shards"):
        shard_files(tmp_path / "a", "x")
    with pytest.raises(UserError, match=r"holds shards of sets of 2 and of 3: keep the folders of one"):
        shard_files(written(tmp_path / "b", "1/2", "2/2", "1/3"), "x")
    with pytest.raises(UserError, match=r"holds shard 1/2 of a set made with another seed: name another"):
        check_alike(tmp_path / "a", Shard(2, 2), {"seed": 1})
    check_alike(tmp_path / "a", Shard(1, 2), {"seed": 1})


def test_shards_and_wholes_are_not_mixed_in_a_folder(tmp_path: Path) -> None:
    folder = written(tmp_path / "set", "1/2")
    for shard in (None, Shard(1, 3)):
        with pytest.raises(
            UserError, match=r"holds a set in 2 shards: give shard=i/2, or name another folder"
        ):
            check_folder(folder, shard, "x")
    check_folder(folder, Shard(2, 2), "x")
    with pytest.raises(UserError, match=r"out=.*set has shard-1-of-2, but no key.json"), claimed(folder, {}):
        pass
    (tmp_path / "completions.jsonl").touch()
    with pytest.raises(UserError, match=r"written without shards \(completions.jsonl\): leave out shard=1/2"):
        check_folder(tmp_path, Shard(1, 2), "x")
