"""Run commands in the tests' process, which is faster than starting Python and importing torch each time.

Each command is also run in a process of its own, by one test at least.
"""

import io
import runpy
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]


def command(place: str, *words: str) -> subprocess.CompletedProcess[str]:
    """`python <place> <words>`; what it printed and its exit status.

    Args:
        place: the file, from the checkout's root: `train.py`, `distill/score.py`.
        words: its command line.
    """
    arguments = [str(ROOT / place), *words]
    out, errors, status = io.StringIO(), io.StringIO(), 0
    with patch.object(sys, "argv", arguments), redirect_stdout(out), redirect_stderr(errors):
        try:
            runpy.run_path(arguments[0], run_name="__main__")
        except SystemExit as left:  # whose argument may be what Python prints, as it is left
            status = left.code if isinstance(left.code, int) else int(left.code is not None)
            print(left.code if isinstance(left.code, str) else "", end="", file=errors)
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), errors.getvalue())
