"""Tests of validation: what is held out, its loss and accuracy, the best checkpoint, early stopping."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import test_training
from test_training import arguments, column, run, same_weights

traces = test_training.traces  # the fixture


def measured(folder: Path, name: str = "val/loss") -> dict[int, float]:
    """A metric of the validation problems, by step."""
    with (folder / "metrics.csv").open(newline="") as stream:
        return {int(row["step"]): float(row[name]) for row in csv.DictReader(stream) if row.get(name)}


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def test_try(tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, capsys) -> None:
    words = arguments(tiny_pair, traces, tmp_path, "loss=dcod", "data.validation=0.2", "validation.every=2", "optimizer.lr=0.01",
                      "checkpoint.best=val/loss")
    folder = run(words, tmp_path / "run")
    print(capsys.readouterr().out)
    print(measured(folder), summary(folder)["validation"], list((folder/"checkpoints").iterdir()))
    assert 0
