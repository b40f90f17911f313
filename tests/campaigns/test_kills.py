"""Campaigns of kills: whatever the moment, the same command again ends as an unbroken one."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from campaign import Case, Tally, cases, ended, faulty, python, remove, taken_up, unbroken
from warm import Command

pytestmark = [pytest.mark.slow, pytest.mark.campaign, pytest.mark.timeout(3600)]


@pytest.fixture(params=cases(), ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def test_kills_at_random_moments(case: Case, tmp_path: Path, made: Path, faults: int, seed: int) -> None:
    """A share of the faults for each command; at least 100 over all with `--faults 100`."""
    tally, draw = Tally(), random.Random(f"{seed} {case.name}")
    began = time.monotonic()
    expected, _ = unbroken(case, tmp_path, made)
    length = time.monotonic() - began
    for number in range(-(-faults // len(cases()))):
        folder = tmp_path / f"run{number}"
        command = Command(python(case.line(folder, made), tmp_path), cwd=tmp_path)
        try:
            deadline = time.monotonic() + draw.random() * length
            while time.monotonic() < deadline and command.poll() is None:
                time.sleep(0.005)
            if command.poll() is None:
                os.killpg(command.pid, signal.SIGKILL)
        finally:
            command.close()
        tally.add(case.name, *taken_up(case, folder, made, expected))
        remove(folder)
    tally.finish("kills at random moments")


def test_kills_at_every_file_operation(
    case: Case, tmp_path: Path, made: Path, faults: int, seed: int
) -> None:
    """Operations spread over the command, drawn without repetition; all of them with a large `--faults`."""
    tally, draw = Tally(), random.Random(f"{seed} {case.name}")
    expected, operations = unbroken(case, tmp_path, made)
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
