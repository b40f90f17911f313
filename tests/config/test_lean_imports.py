"""Test of imports without optional packages."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = """
import sys
from distill.config.lean_imports import import_without_extras

import_without_extras()
import lightning.pytorch
import torch
import torchmetrics
import transformers
from transformers.loss import loss_utils

print(*(name for name in ("scipy", "matplotlib") if name in sys.modules))
metric = torchmetrics.MeanMetric()
metric.update(torch.tensor([1.0, 3.0]))
assert metric.compute() == 2
assert "ForCausalLM" in loss_utils.LOSS_MAPPING

# What is installed is found as before.
from lightning_utilities.core.imports import RequirementCache, package_available
from transformers.utils import is_scipy_available

assert RequirementCache("scipy") and package_available("matplotlib") and is_scipy_available()
"""


@pytest.mark.slow
def test_lightning_comes_without_what_it_does_not_need() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CODE], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
