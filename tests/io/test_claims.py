"""Tests of folder locks: no two processes hold one at once, and a refused process changes nothing."""

import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import test_curate
import test_generate
from warm import ROOT, environment

from distill.curation import run as curate
from distill.data.trace_set import read_records
from distill.errors import Busy, UserError
from distill.generation.completion_log import CompletionLog
from distill.generation.engines import HfEngine
from distill.io import locks
from distill.io.locks import claimed, locked

KEY = {"teacher": "x"}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has begun a trace set in `set`, and says so, but has written no completion yet.
    A line makes it finish."""
    program = f"""
        from pathlib import Path
        from distill.generation.completion_log import CompletionLog
        from distill.io.locks import claimed
        folder = Path({str(tmp_path / "set")!r})
        with claimed(folder, {KEY!r}), CompletionLog(folder / "completions.jsonl"):
            print("begun", flush=True)
            input()
            (folder / "traces.parquet").write_text("all of them")
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment(), cwd=ROOT, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        yield process
        process.kill()


@pytest.mark.slow
def test_a_second_start_is_refused_and_leaves_the_firsts_files(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    folder = tmp_path / "set"
    before = files(folder)
    assert set(before) == {".lock", "key.json", "completions.jsonl"}
    for key in (KEY, {"teacher": "another"}):
        with pytest.raises(Busy, match=r"another run is writing into .*set"), claimed(folder, key):
            pass
        assert files(folder) == before
    with pytest.raises(Busy), locked(folder):
        pass
    assert files(folder) == before
    holder.communicate("go on\n", timeout=60)
    assert holder.returncode == 0
    assert set(files(folder)) == {"key.json", "completions.jsonl", "traces.parquet"}


@pytest.mark.slow
def test_after_a_refused_second_start_a_first_that_is_killed_is_taken_up(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    folder = tmp_path / "set"
    with pytest.raises(Busy), claimed(folder, KEY):
        pass
    (folder / "completions.jsonl").write_text("{}\n")  # its first completion
    holder.kill()
    holder.wait(60)
    with claimed(folder, KEY):
        assert (folder / "completions.jsonl").read_text() == "{}\n"
    another = {"teacher": "another"}
    with pytest.raises(UserError, match="a trace set made with another teacher"), claimed(folder, another):
        pass
    assert set(files(folder)) == {"key.json", "completions.jsonl"}


@pytest.mark.slow
def test_generate_goes_on_while_a_second_start_of_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*test_generate.SMALL, "data.limit=4", "samples=1", "data.max_new_tokens=8"]
    expected = test_generate.run(words, tmp_path / "alone")
    write, refused = HfEngine.write, []

    def write_beside_another(self: HfEngine, requests: Any, sampling: Any) -> Iterator[Any]:
        monkeypatch.setattr(HfEngine, "write", write)
        before = files(tmp_path / "set")
        with pytest.raises(Busy) as error:
            test_generate.run(words, tmp_path / "set")
        refused.append(str(error.value))
        assert files(tmp_path / "set") == before
        yield from write(self, requests, sampling)

    monkeypatch.setattr(HfEngine, "write", write_beside_another)
    assert test_generate.run(words, tmp_path / "set") == expected
    assert len(refused) == 1
    assert len(CompletionLog(tmp_path / "set" / "completions.jsonl").read()) == 4
    assert test_generate.run(words, tmp_path / "set") == expected  # the same command is not refused for ever


@pytest.mark.slow
def test_curate_goes_on_while_a_second_start_of_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test_generate.run([*test_generate.SMALL, "data.limit=4", "samples=1"], tmp_path / "traces")
    words = [*test_curate.DATA, f"teachers=[{tmp_path / 'traces'}]", "curation=[deduplicate]"]
    original = curate.run_steps

    def run_beside_another(*arguments: Any) -> Any:
        monkeypatch.setattr(curate, "run_steps", original)
        before = files(tmp_path / "set")
        with pytest.raises(Busy):
            test_curate.run(words, tmp_path / "set")
        assert files(tmp_path / "set") == before != {}
        return original(*arguments)

    monkeypatch.setattr(curate, "run_steps", run_beside_another)
    found = test_curate.run(words, tmp_path / "set")
    assert found == read_records(tmp_path / "set") != []
    assert (tmp_path / "set" / "key.json").is_file()


def test_a_folder_that_nothing_was_put_into_goes_and_anything_else_stays(tmp_path: Path) -> None:
    with claimed(tmp_path / "set", KEY), CompletionLog(tmp_path / "set" / "completions.jsonl"):
        (tmp_path / "set" / "config.yaml").write_text("out: set")
    assert not (tmp_path / "set").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()  # empty, but nothing of ours
    with claimed(tmp_path / "mine", KEY):
        pass
    assert "notes.txt" in files(tmp_path / "mine")


@pytest.mark.slow
@pytest.mark.parametrize("hold", ["locked", "claimed"])
def test_of_many_who_come_and_go_at_once_one_holds_the_folder(hold: str, tmp_path: Path) -> None:
    """Each takes lock file and folder away as it leaves, while others have just opened or made them."""
    folder, inside, entries, overlaps, failures = tmp_path / "set", [0], [0], [0], list[BaseException]()
    guard, until = threading.Lock(), time.monotonic() + 1.5

    def come_and_go() -> None:
        while time.monotonic() < until:
            try:
                with locked(folder) if hold == "locked" else claimed(folder, KEY):
                    with guard:
                        inside[0] += 1
                        entries[0] += 1
                        overlaps[0] += inside[0] > 1
                    held = (folder / ".lock").exists()
                    with guard:
                        inside[0] -= 1
                    assert held
            except Busy:
                pass
            except BaseException as error:
                failures.append(error)

    threads = [threading.Thread(target=come_and_go) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (overlaps[0], failures) == (0, [])
    assert entries[0] > 20
    assert not folder.exists()


def test_the_lock_file_goes_while_the_lock_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a release it would be the next one's, and a third could hold the folder, too."""
    release, there = locks.FileLock.release, []

    def note(self: Any, *arguments: Any, **options: Any) -> Any:
        there.append(Path(self.lock_file).exists())
        return release(self, *arguments, **options)

    monkeypatch.setattr(locks.FileLock, "release", note)
    with locked(tmp_path / "run"):
        assert (tmp_path / "run" / ".lock").is_file()
    assert there[:1] == [False]
