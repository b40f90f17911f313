"""Campaigns of full disks: one sentence, and nothing is lost once there is room again."""

from pathlib import Path

import pytest
from campaign import Case, Tally, cases, ended, faulty, is_traceback, remove, taken_up, unbroken

pytestmark = [pytest.mark.slow, pytest.mark.campaign, pytest.mark.timeout(3600)]
PLACES = 10


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_a_full_disk_at_ten_places_of_each_command(case: Case, tmp_path: Path, made: Path) -> None:
    tally = Tally()
    expected, operations = unbroken(case, tmp_path, made)
    faults = [("full", 1 + place * operations // PLACES) for place in range(PLACES)]
    for mode, number in [*faults, ("large", 2_000), ("large", 20_000), ("large", 300_000)]:
        folder = tmp_path / f"{mode}{number}"
        status, said = ended(faulty(mode, number, tmp_path, case.line(folder, made)))
        if is_traceback(said):
            tally.add(case.name, "traceback", f"{mode} {number} of {operations}: {said}")
        elif status != 0 and "error: " not in said:
            tally.add(case.name, "unclear", f"{mode} {number} of {operations}: {said}")
        else:
            outcome, why = taken_up(case, folder, made, expected)
            tally.add(case.name, outcome, f"{mode} {number} of {operations}: {why}")
        remove(folder)
    tally.finish("full disk")
