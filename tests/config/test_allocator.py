"""Tests of the allocator's settings, in child processes because they apply to a whole process."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Tensors for huge pages begin at a page. Others follow one another, so that of four that live at once not
# all can begin at one; one alone, or four at the same place in turn, may by chance.
ALIGNED = "import torch; kept = [torch.empty(3 * 2**20) for _ in range(4)]; "
ALIGNED += "print(all(tensor.data_ptr() % 4096 == 0 for tensor in kept))"
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
# Steps that allocate and free the same tensors: page faults of the later ones.
STEPS = """
import resource
import torch
def step():
    return [torch.ones(20 * 2**20 // 4) for _ in range(10)]
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
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


@pytest.mark.slow
def test_a_run_has_its_tensors_on_huge_pages() -> None:
    assert said_by(ALIGNED) == "False"
    assert said_by(BY_TRAIN) == "True"


@pytest.mark.slow
def test_what_the_environment_says_has_the_last_word() -> None:
    assert said_by(BY_TRAIN, THP_MEM_ALLOC_ENABLE="0") == "False"


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is tuned")
def test_what_a_step_frees_is_kept_for_the_next_one() -> None:
    tune = "from distill.config.allocator import tune_allocator; tune_allocator()\n"
    small_pages = {"THP_MEM_ALLOC_ENABLE": "0"}
    assert int(said_by(tune + STEPS, **small_pages)) < 100
    # glibc maps every tensor anew under this setting, which the environment has and we must not change
    assert int(said_by(tune + STEPS, MALLOC_MMAP_THRESHOLD_="131072", **small_pages)) > 10_000
