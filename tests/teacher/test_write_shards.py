"""Tests of a trace set that several processes write, each a shard: it is the set of a single process."""

import shutil
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_generate import Killed, compose

from distill.curation.listed import is_model
from distill.data.readers import read_examples
from distill.data.record_files import find_files
from distill.data.trace_set import read_records
from distill.errors import Busy, UserError
from distill.generation import engines
from distill.generation.engine import Request, Written
from distill.generation.engines import HfEngine
from distill.generation.sampling import Sampling
from distill.io.locks import locked
from distill.teacher.write_traces import generate

WORDS = ["model=tiny", "data=arithmetic", "data.limit=3", "samples=2", "data.max_new_tokens=4"]


def write(folder: Path, *words: str) -> Path:
    return generate(compose("generate", [*WORDS, f"out={folder}", *words]))


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A set that one process wrote, and the same in two shards, not written in order."""
    folder = tmp_path_factory.mktemp("sets")
    for number in (2, 1):
        write(folder / "shards", f"shard={number}/2")
    return write(folder / "whole"), folder / "shards"


def alike(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records without what rounding may change: other batches are scored together."""
    return [record | {"teacher_logprobs": pytest.approx(record["teacher_logprobs"])} for record in records]


@pytest.mark.slow
def test_a_set_in_shards_is_read_as_the_set_of_one_process(sets: tuple[Path, Path]) -> None:
    whole, shards = sets
    assert read_records(shards) == alike(read_records(whole))
    assert read_examples(path=str(shards)) == read_examples(path=str(whole))  # for training
    assert read_examples(path=str(shards), limit=3) == read_examples(path=str(whole), limit=3)
    assert sum(len(read_records(part.parent)) for part in find_files(shards)) == 6
    configs = [yaml.safe_load((folder / "config.yaml").read_text()) for folder in sets]
    assert configs[0] | {"out": ""} == configs[1] | {"out": ""}  # what the report reads


@pytest.mark.slow
def test_an_incomplete_set_is_refused_with_the_missing_shards(
    sets: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(sets[1], folder := tmp_path / "set")
    (folder / "shard-1-of-2").rename(tmp_path / "elsewhere")
    (folder / "shard-2-of-2" / "traces.parquet").unlink()  # not finished
    for read in (read_records, find_files, lambda path: read_examples(path=str(path))):
        with pytest.raises(UserError, match=r"set is not complete: of 2 shards, numbers 1, 2 are missing"):
            read(folder)
    cfg = compose("curate", [f"teachers=[{folder}]", "model=tiny"])
    assert not is_model(cfg, str(folder))
    write(folder, "shard=2/2")
    assert "of 2 shards, number 1 is missing or not finished" in capsys.readouterr().out
    (tmp_path / "elsewhere").rename(folder / "shard-1-of-2")  # from a machine without the shared folder
    assert read_records(folder) == alike(read_records(sets[0]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["shard=1/0"], r"shard=1/0 is not one of n shards"),
        (["shard=4/4"], r"shard=4/4 of 3 problems: take no more shards than there are problems"),
        ([], r"holds a set in 2 shards: give shard=i/2"),
        (["shard=1/3"], r"holds a set in 2 shards: give shard=i/2"),
        (["shard=1/2", "seed=1"], r"holds a trace set made with another sampling"),
    ],
)
def test_a_shard_that_cannot_be_written_gets_one_sentence(
    sets: tuple[Path, Path], tmp_path: Path, words: list[str], message: str
) -> None:
    folder = tmp_path / "new" if "shard=4/4" in words else sets[1]
    with pytest.raises(UserError, match=message):
        write(folder, *words)
    assert not (tmp_path / "new").exists()
    assert len(list(sets[1].glob("shard-*"))) == 2


@pytest.mark.slow
def test_a_shard_of_another_set_is_refused_before_anything_is_written(
    sets: tuple[Path, Path], tmp_path: Path
) -> None:
    shutil.copytree(sets[1] / "shard-1-of-2", tmp_path / "set" / "shard-1-of-2")
    with pytest.raises(UserError, match=r"holds shard 1/2 of a set made with another prompts"):
        write(tmp_path / "set", "shard=2/2", "data.limit=2")
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["shard-1-of-2"]
    with pytest.raises(UserError, match=r"written without shards .*: leave out shard=1/2"):
        write(sets[0], "shard=1/2")


@pytest.mark.slow
def test_shards_are_written_side_by_side_and_a_killed_one_goes_on(
    sets: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seeds: list[int] = []

    class Mortal(HfEngine):
        """Is killed after a completion."""

        def write(
            self, requests: Sequence[Request], sampling: Sampling
        ) -> Generator[tuple[int, Written], None, None]:
            for place, found in super().write(requests, sampling):
                if len(seeds) == 1:
                    seeds.append(-1)
                    raise Killed
                seeds.append(requests[place].seed)
                yield place, found

    monkeypatch.setattr(engines, "HfEngine", Mortal)
    folder = tmp_path / "set"
    with locked(folder / "shard-1-of-2"), pytest.raises(Busy, match=r"writing into .*shard-1-of-2"):
        write(folder, "shard=1/2")
    with locked(folder / "shard-1-of-2"), pytest.raises(Killed):
        write(folder, "shard=2/2")
    assert not list(folder.glob("*/traces.parquet"))
    for number in (1, 2):
        write(folder, f"shard={number}/2")
    assert f"{folder} has all 2 shards: it is complete" in capsys.readouterr().out
    seeds.remove(-1)
    assert len(seeds) == len(set(seeds)) == 6  # none is written twice
    assert read_records(folder) == alike(read_records(sets[0]))
