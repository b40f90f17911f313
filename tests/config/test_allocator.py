"""Tests of the allocator's settings, in child processes because they apply to a whole process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Tensors for huge pages begin at a page, others 64 bytes behind what malloc writes of itself.
ALIGNED = "import torch; print(all(torch.empty(3 * 2**20 + n).data_ptr() % 4096 == 0 for n in range(4)))"
BY_TRAIN = f"""
import contextlib, sys, types
import train
@contextlib.contextmanager
def job(cfg):
    {ALIGNED}
    yield types.SimpleNamespace(begin=lambda: types.SimpleNamespace(finished=True, score=None))
sys.modules["distill.training.job"] = types.SimpleNamespace(job=job)
assert "torch" not in sys.modules
train.main.__wrapped__(types.SimpleNamespace(plan=False))
"""
# Layers that each leave a small tensor behind, between larger ones that live shortly.
LAYERS = """
import torch
from distill.bench.meter import _reset_high_water, _resident
torch.ones(1)
kept, x = [], torch.ones(4 * 2**20 // 4)
_reset_high_water()
before = _resident("VmHWM")
for _ in range(40):
    wide = [torch.ones(12 * 2**20 // 4) for _ in range(3)]
    wide.append(wide[0] * wide[1])
    kept.append(x + 1)
    x = kept[-1] * 2
    del wide
print((_resident("VmHWM") - before) // 2**20)
"""


def said_by(code: str, **environment: str) -> str:
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MALLOC_", "GLIBC_TUNABLES", "THP_MEM"))
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**clean, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_a_run_has_its_tensors_on_huge_pages() -> None:
    assert said_by(ALIGNED) == "False"
    assert said_by(BY_TRAIN) == "True"


def test_what_the_environment_says_has_the_last_word() -> None:
    assert said_by(BY_TRAIN, THP_MEM_ALLOC_ENABLE="0") == "False"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="asks the kernel for the peak: Linux")
def test_what_layers_leave_behind_takes_little_more_than_its_size() -> None:
    tune = "from distill.config.allocator import tune_allocator; tune_allocator()\n"
    tensors = 40 * 4 + 4 + 4 * 12
    assert int(said_by(tune + LAYERS)) < 1.4 * tensors
