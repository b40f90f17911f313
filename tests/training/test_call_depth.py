"""Tests of the number of our functions between the command and the loss, in the call stack of a real run."""

import importlib
import sys
from pathlib import Path

import pytest
import test_training
from test_training import arguments
from torch import Tensor

import distill
from distill.losses import closed_forms, divergence
from distill.losses.signals import properties

traces = test_training.traces  # the fixture
ROOT = Path(distill.__file__).resolve().parents[1]
# From train.py's `main`, and from the training step; the loss's own function counts, Lightning's, Hydra's,
# torch's and decorators' do not.
FROM_MAIN, FROM_TRAINING_STEP = 6, 3
STACKS: list[list[str]] = []


def note_the_stack() -> None:
    """Keep the names of our functions that are being run in a training step, the outermost first."""
    names, frame = [], sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path in (ROOT / "train.py", Path(__file__)) or ROOT / "distill" in path.parents:
            names.append(frame.f_code.co_name)
        frame = frame.f_back
    names.reverse()
    if "training_step" in names:  # an objective also tries its functions out before
        STACKS.append(names[names.index("main") :])


def closed_cross_entropy(log_q: Tensor, labels: Tensor) -> closed_forms.LossAndGradient:
    note_the_stack()
    return closed_forms.cross_entropy(log_q, labels)


@properties(closed_form=closed_cross_entropy)
def cross_entropy(log_q: Tensor, labels: Tensor) -> Tensor:
    return divergence.cross_entropy(log_q, labels)  # not noted: the training step takes the closed form


def cross_entropy_by_autograd(log_q: Tensor, labels: Tensor) -> Tensor:
    note_the_stack()
    return divergence.cross_entropy(log_q, labels)


def closed_forward_kl(log_q: Tensor, log_p: Tensor) -> closed_forms.LossAndGradient:
    note_the_stack()
    return closed_forms.forward_kl(log_q, log_p)


@properties(closed_form=closed_forward_kl)
def forward_kl(log_q: Tensor, log_p: Tensor) -> Tensor:
    return divergence.forward_kl(log_q, log_p)


@properties(across_vocabularies=True)
def uld(log_q: Tensor, log_p: Tensor) -> Tensor:
    note_the_stack()
    return divergence.uld(log_q, log_p)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("token_loss", "words"),
    [
        ("cross_entropy", ["loss=dcod"]),
        ("cross_entropy_by_autograd", ["loss=dcod"]),
        ("forward_kl", ["loss=forward_kl"]),
        ("uld", ["loss=uld"]),
    ],
)
def test_six_functions_at_most_stand_between_the_command_and_the_loss(
    token_loss: str,
    words: list[str],
    tiny_pair: tuple[Path, Path],
    traces: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)  # a test before may have left a run in it
    words = [*words, f"loss.token_loss._target_={__name__}.{token_loss}", f"dir={tmp_path / 'run'}"]
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments(tiny_pair, traces, tmp_path, *words)])
    STACKS.clear()
    importlib.import_module("train").main()
    assert STACKS
    for stack in STACKS:
        assert len(stack) <= FROM_MAIN, stack
        step = stack[stack.index("training_step") :]
        assert len(step) <= FROM_TRAINING_STEP, stack
