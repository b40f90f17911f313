"""Tests of a teacher that is the student's moving average (SDFT)."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, patch

import lightning
import pytest
import test_training
import torch
from test_training import BY_STEPS, arguments, unbroken_and_resumed

from distill.data.trace import Example
from distill.errors import UserError
from distill.models.find import find_model
from distill.models.lora import add_lora
from distill.models.lora_settings import Lora
from distill.runs.folder import STATE, checkpoints
from distill.training import run as training
from distill.training.average import AverageTeacher, copied
from distill.training.run import train
from distill.training.setup import Setup

traces = test_training.traces  # the fixture
SHOWN = ["loss=sdft", 'data.informed_prompt="{solution}{problem}"', "data.max_new_tokens=8"]


def teacher_in(folder: Path) -> dict[str, torch.Tensor]:
    """The teacher's weights in a run's last checkpoint."""
    state = torch.load(checkpoints(folder / "checkpoints")[-1] / STATE, weights_only=True)
    return state["callbacks"]["AverageTeacher"]


class Recorder(lightning.Callback):
    """Keeps the student's weights before training and after each optimizer step, in float64."""

    def __init__(self) -> None:
        self.students: list[dict[str, torch.Tensor]] = []

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self._keep(pl_module.student)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.fit_loop._should_accumulate():
            self._keep(pl_module.student)

    def _keep(self, student: torch.nn.Module) -> None:
        trained = {name: p for name, p in student.named_parameters() if p.requires_grad}
        self.students.append({name: p.detach().double().clone() for name, p in trained.items()})


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [[], pytest.param(["model.lora.rank=2"], marks=pytest.mark.exhaustive)], ids=["whole", "lora"]
)
def test_the_teacher_is_the_average_of_the_students(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, more: list[str]
) -> None:
    words = [*arguments(tiny_pair, traces, tmp_path, *SHOWN, *more), f"dir={tmp_path / 'run'}"]
    words += ["loss.teacher_update_rate=0.25", "loss.teacher_sync_steps=2", "trainer.max_steps=5"]
    words += ["trainer.accumulate_grad_batches=2", "optimizer.lr=0.01"]
    recorder, setup = Recorder(), Setup.from_overrides(words)
    setup.folder.mkdir(parents=True)
    with patch.object(training, "plot_run"):
        train(setup, [recorder])
    assert len(recorder.students) == 6
    found = teacher_in(setup.folder)
    assert found.keys() == recorder.students[0].keys()
    assert all(("lora" in name) == bool(more) for name in found)
    for name, value in found.items():
        expected = recorder.students[0][name].clone()
        for step in (2, 4):
            expected = 0.75 * expected + 0.25 * recorder.students[step][name]
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-7)
        assert not torch.equal(value.double(), recorder.students[-1][name]) or not value.any()


@pytest.mark.exhaustive
def test_a_resumed_run_has_the_same_teacher(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*arguments(tiny_pair, traces, tmp_path, *SHOWN), "trainer.accumulate_grad_batches=2", *BY_STEPS]
    words += ["loss.teacher_update_rate=0.3", "trainer.max_steps=4"]
    whole, resumed = unbroken_and_resumed(words, tmp_path, monkeypatch)
    one, other = teacher_in(whole), teacher_in(resumed)
    assert all(torch.equal(other[name], value) for name, value in one.items())


def after_step(number: int) -> lightning.Trainer:
    loop = SimpleNamespace(_should_accumulate=lambda: False)
    return Mock(spec=lightning.Trainer, global_step=number, fit_loop=loop)


def test_a_rate_of_1_is_the_student_as_it_is_and_the_state_is_the_teachers() -> None:
    student, teacher, other = (torch.nn.Linear(3, 2) for _ in range(3))
    average = AverageTeacher(student, teacher, update_rate=1.0, sync_steps=2)
    average.on_train_batch_end(after_step(1), None, None, None, 0)
    assert not torch.equal(teacher.weight, student.weight)
    average.on_train_batch_end(after_step(2), None, None, None, 1)
    resumed = AverageTeacher(student, other, update_rate=1.0, sync_steps=2)
    resumed.load_state_dict(average.state_dict())
    for found in (teacher, other):
        assert torch.equal(found.weight, student.weight)
        assert torch.equal(found.bias, student.bias)


def test_with_lora_the_teacher_has_adapters_of_its_own_and_the_same_base(
    tiny_pair: tuple[Path, Path],
) -> None:
    student = find_model(str(tiny_pair[0]), key="model.student").load()
    add_lora(student, Lora(rank=2, alpha=4, dropout=0.0, targets=()), seed=0)
    teacher = copied(student)
    theirs = dict(teacher.model.named_parameters())
    for name, p in student.model.named_parameters():
        assert (theirs[name] is p) == (not p.requires_grad)
        assert torch.equal(theirs[name], p)
    ids = torch.arange(5)[None]
    before = teacher.model(ids).logits
    for p in student.model.parameters():
        if p.requires_grad:
            p.data.add_(1.0)
    assert torch.equal(teacher.model(ids).logits, before)
    assert not torch.equal(student.model(ids).logits, before)


@pytest.mark.slow
def test_the_demonstration_is_in_the_authors_words(tiny_pair: tuple[Path, Path], traces: Path) -> None:
    words = arguments(tiny_pair, traces, Path("x"), "loss=sdft", "teacher_prompt=demonstration")
    setup = Setup.from_overrides(words, here=False)
    prompt = setup.recipe.prompt_for_teacher(setup.objective.teacher_sees)
    (turn,) = prompt.messages(Example("", "1+1=", completion="1+1=2;#2"))
    assert turn["content"] == (
        "1+1=\n\nThis is an example for a response to the question:\n1+1=2;#2\n\n"
        "Now answer with a response of your own, including the thinking process."
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["loss=dcod", "loss.teacher=ema"], "teacher_logprobs would be cached before: take loss.teacher="),
        (["loss=opd_right", "loss.teacher=ema"], "teacher_success would be cached before"),
        (
            ["loss=forward_kl", "loss.teacher=ema", "loss.distribution.source=top_k"],
            "distribution.source=top_k would be cached before",
        ),
        (["loss=sft", "loss.teacher=ema"], "asks nothing of a teacher: leave loss.teacher=ema out"),
        (["loss=sdft", "loss.teacher=mean"], "loss.teacher='mean'"),
        (["loss=sdft", "loss.teacher_update_rate=1.5"], "loss.teacher_update_rate=1.5 is not a number"),
        (["loss=sdft", "loss.teacher_sync_steps=0"], "loss.teacher_sync_steps=0 is not a positive whole"),
        (["loss=sdft", "trainer=fsdp"], "trainer.strategy=fsdp gives each process a part: take trainer=ddp"),
        (["loss=sdft", "model.student_dtype=bfloat16"], "which half precision rounds away: take"),
        (["loss=sdft", "teacher.source=server"], "loss.teacher=ema is the student itself"),
    ],
)
def test_what_it_cannot_do_is_said_in_one_sentence(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, more: list[str], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        Setup.from_overrides(arguments(tiny_pair, traces, tmp_path, *more), here=False)
