"""The benchmark compares like with like, and says so; what it measures is no test's business."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


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
