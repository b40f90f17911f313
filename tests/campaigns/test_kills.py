"""Campaigns of kills: whatever the moment, the same command again ends as an unbroken one."""

import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from campaign import Case, Tally, cases, ended, faulty, python, remove, taken_up, unbroken
from warm import Command

pytestmark = [pytest.mark.slow, pytest.mark.campaign, pytest.mark.timeout(3600)]


@pytest.fixture(params=cases(), ids=lambda case: case.name, scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(scope="module")
def whole(case: Case, tmp_path_factory: pytest.TempPathFactory, made: Path) -> tuple[Any, int]:
    """What the command leaves without a fault, and the number of its file operations."""
    return unbroken(case, tmp_path_factory.mktemp("whole"), made)


def test_kills_at_random_moments(
    case: Case, whole: tuple[Any, int], tmp_path: Path, made: Path, faults: int, seed: int
) -> None:
    """A share of the faults for each command; at least 100 over all with `--faults 100`."""
    tally, draw = Tally(), random.Random(f"{seed} {case.name}")
    folder = tmp_path / "timed"
    began = time.monotonic()
    ended(Command(python(case.line(folder, made), tmp_path), cwd=tmp_path))
    length = time.monotonic() - began
    remove(folder)
    for number in range(-(-faults // len(cases()))):
        folder = tmp_path / f"run{number}"
        while not killed_after(draw.random() * length, case, folder, made):
            remove(folder)  # it was quicker than the one that was timed: no kill
        tally.add(case.name, *taken_up(case, folder, made, whole[0]))
        remove(folder)
    tally.finish("kills at random moments")


def killed_after(seconds: float, case: Case, folder: Path, made: Path) -> bool:
    """Start a command and kill it; whether it was still at work."""
    command = Command(python(case.line(folder, made), folder.parent), cwd=folder.parent)
    try:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and command.poll() is None:
            time.sleep(0.005)
        if command.poll() is None:
            command.kill()
    finally:
        command.close()
    return command.returncode == -signal.SIGKILL


def test_kills_at_every_file_operation(
    case: Case, whole: tuple[Any, int], tmp_path: Path, made: Path, faults: int, seed: int
) -> None:
    """Operations spread over the command, drawn without repetition; all of them with a large `--faults`."""
    tally, draw = Tally(), random.Random(f"{seed} {case.name}")
    expected, operations = whole
    wanted = min(operations, -(-faults // len(cases())))
    for number in sorted(draw.sample(range(1, operations + 1), wanted)):
        folder = tmp_path / f"run{number}"
        status, said = ended(faulty("kill", number, tmp_path, case.line(folder, made)))
        if status not in (0, -signal.SIGKILL):
            tally.add(case.name, "not killed", said)
        else:
            outcome, why = taken_up(case, folder, made, expected)
            tally.add(case.name, outcome, f"operation {number} of {operations}: {why}")
        remove(folder)
    tally.finish(f"kills at file operations ({operations} in all)")
