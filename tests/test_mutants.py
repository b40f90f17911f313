"""Test of the list of mutants that .ci/mutation.py runs the tests against."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the list is read with tomllib, of Python 3.11")
def test_every_mutant_still_applies() -> None:
    script = Path(__file__).parents[1] / ".ci" / "mutation.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
