"""Fixtures of the campaigns: options, and a trace set that commands read."""

from pathlib import Path

import pytest
import warm
from campaign import PAIR, ended

# What else these commands import, for all of them at once.
warm.IMPORTED += ["datasets", "pandas", "matplotlib.backends.backend_agg", "distill.analysis.evaluate_model"]
warm.IMPORTED += ["distill.training.job", "distill.training.sweeps", "distill.tiny.task"]


@pytest.fixture
def faults(request: pytest.FixtureRequest) -> int:
    """How many faults a campaign tries over all commands."""
    return request.config.getoption("--faults")


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """What the faults are drawn with."""
    return request.config.getoption("--campaign-seed")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace set of wild answers, some of them wrong."""
    folder = tmp_path_factory.mktemp("made") / "set"
    words = ["-m", "distill.generate", *PAIR, "data.limit=12", "samples=2", "sampling.temperature=2"]
    words += [f"out={folder}"]
    status, said = ended(warm.Command(words, cwd=folder.parent))
    assert status == 0, said
    return folder
