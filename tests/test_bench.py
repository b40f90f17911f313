"""The benchmark compares like with like, and says so; what it measures is no test's business."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from distill.cachebench import bytes_a_token, table
from distill.distributions import TeacherDistribution


def test_the_benchmark_prints_every_way_with_the_same_loss_and_gradient(tmp_path: Path) -> None:
    sizes = [
        "--tokens",
        "96",
        "--vocabulary",
        "2000",
        "--hidden",
        "64",
        "--chunk-size",
        "32",
        "--rounds",
        "1",
    ]
    command = [sys.executable, "-m", "distill.bench", *sizes, "--out", str(tmp_path / "bench.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads((tmp_path / "bench.json").read_text())
    full = result["full"]
    assert full["loss"] > 0.01
    for way, name in (("full", "full logits"), ("freed", "freed early"), ("chunked", "chunked")):
        assert result[way]["loss"] == pytest.approx(full["loss"], rel=1e-5)
        assert result[way]["gradient_norm"] == pytest.approx(full["gradient_norm"], rel=1e-5)
        assert result[way]["seconds"] > 0
        assert name in done.stdout


def test_the_bench_of_caches_counts_the_bytes_that_lie_on_the_disk() -> None:
    """The embedded teacher: 128 wide in single precision, of 18 tokens."""
    found = {row.split("`")[1]: row for row in table(4, 1).splitlines()[2:]}
    assert list(found) == ["live", "hidden_states", "top_k", "samples"]
    for source, row in found.items():
        wanted = TeacherDistribution(source)  # pyright: ignore
        # 2 bytes a number there, 4 here; beside them stand file headers and lengths.
        expected = bytes_a_token(wanted, hidden=2 * 128, vocabulary=18)
        assert expected <= float(row.split("|")[2]) <= expected + 20
        assert f" {bytes_a_token(wanted, 3584, 152_064):,} " in row
