"""Tests of lines behind a prefix: what several processes write to one place can still be read."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from distill.io.own_lines import OwnLines, own_lines
from distill.io.progress import watched

WRITER = """
import sys
from distill.io.own_lines import own_lines
with own_lines(f"[{sys.argv[1]}] "):
    for number in range(200):
        print("half", end=" ")
        print(number, *["of a long line"] * 20)
"""


def test_a_line_is_written_when_it_ends_and_begins_with_the_prefix() -> None:
    stream = io.StringIO()
    lines = OwnLines(stream, "[3] ")
    for text in ("one", " line\ntwo\n\nth", "ree"):
        assert lines.write(text) == len(text)
    assert stream.getvalue() == "[3] one line\n[3] two\n\n"
    lines.end()
    lines.end()
    assert stream.getvalue().splitlines()[-1] == "[3] three"


def test_both_streams_are_as_before_behind_the_block_also_after_an_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = sys.stdout, sys.stderr

    def write() -> None:
        print("out")
        print("no end", end="", file=sys.stderr)
        assert not watched()  # progress comes as lines
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), own_lines("> "):
        write()
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr() == ("> out\n", "> no end\n")


@pytest.mark.slow
def test_lines_of_two_processes_that_write_at_once_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as log:
        writers = [
            subprocess.Popen([sys.executable, "-c", WRITER, name], stdout=log, env=dict(os.environ))
            for name in "ab"
        ]
        assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    wanted = {f"[{name}] half {number}{' of a long line' * 20}" for name in "ab" for number in range(200)}
    lines = path.read_text().splitlines()
    assert len(lines) == 400
    assert set(lines) == wanted
