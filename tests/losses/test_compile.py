"""Tests of losses fused by torch.compile against uncompiled ones."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from distill.errors import UserError
from distill.training.checks import check_compiler

ROOT = Path(__file__).resolve().parents[2]
# In a process without the tests' type checks, which the compiler would look into.
SCRIPT = """
import torch
from distill.losses.chunked import weighted_token_losses
from distill.losses.divergence import Taid, cross_entropy, jsd
from distill.losses.inputs import WeightedTerm
from distill.models.head import Head
torch.manual_seed(0)
student = Head(*(torch.randn(n, 4, dtype=torch.float64).requires_grad_() for n in (7, 13)))
teacher = Head(*(torch.randn(n, 3, dtype=torch.float64) for n in (7, 13)))
labels, weights = torch.arange(7), torch.linspace(-1, 2, 7, dtype=torch.float64)
for loss in (cross_entropy, jsd, Taid()):
    found = []
    for compiled in (False, True):
        losses = weighted_token_losses(
            student, labels, [WeightedTerm(loss, weights)],
            others={"log_p": teacher}, chunk_size=4, compiled=compiled,
        )
        found.append([losses.losses, *torch.autograd.grad(losses.total, (student.hidden, student.weight))])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)
print("graphs", torch._dynamo.utils.counters["stats"]["unique_graphs"])
"""


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.skipif(
    not any(map(shutil.which, ["g++", "clang++", "c++"])),
    reason="torch.compile needs a C++ compiler on a CPU",
)
def test_a_fused_loss_is_the_loss() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) >= 2  # both were compiled; a loss that adapts never is


def test_what_cannot_be_compiled_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    check_compiler({"loss.compile": False, "model.compile": False}, "cpu")
    for key in ("loss.compile", "model.compile"):
        said = rf"{key}=true needs a C\+\+ compiler on a CPU, and none of g\+\+.* take {key}=false"
        with pytest.raises(UserError, match=said):
            check_compiler({"other.compile": False, key: True}, "cpu")
    (tmp_path / "g++").write_text("")
    (tmp_path / "g++").chmod(0o755)
    check_compiler({"model.compile": True}, "cpu")
