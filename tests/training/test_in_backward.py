"""Tests of optimizer steps in the backward pass against steps after it."""

import copy
import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from covering import some_of
from test_batch_and_data import random_traces
from test_module import module_of
from test_training import arguments, column, run, same_weights
from test_training import traces as traces  # a fixture
from torch import Tensor

from distill.data.batch import collate
from distill.data.trace import Trace
from distill.errors import NonFiniteError, UserError
from distill.models.find import find_model
from distill.models.language_model import LanguageModel, enable_gradient_checkpointing
from distill.planning.ranks import GRADIENTS
from distill.planning.simulate import STUDENT, simulate
from distill.training.in_backward import StepsInBackward, multiply
from distill.training.remedies import remedies
from distill.training.setup import Setup
from distill.training.strategy_checks import check_in_backward
from distill.training.trainer_keys import check_trainer_keys

IN_BACKWARD = "trainer.optimizer_in_backward=true"


def take_steps(
    student: LanguageModel, factory: Any, steps: list[list[Trace]], *, in_backward: bool, clip: float = 0.0
) -> tuple[list[Tensor], dict[str, Any], list[float]]:
    """Weights and optimizer state after some steps, and the gradients' norms."""
    module = module_of(student)
    module.optimizer_factory = factory
    module.student.train()
    optimizer = module.configure_optimizers()["optimizer"]
    module.trainer.optimizers = [optimizer]
    norms: list[float] = []
    module._log_step = lambda values, gradient_norm, lr: norms.append(gradient_norm)
    if in_backward:
        module.in_backward = StepsInBackward(optimizer, clip)
    for batch in map(collate, steps):
        loss = module.training_step(batch, 0)
        optimizer.zero_grad()
        module.on_before_backward(loss)
        loss.backward()
        if in_backward:
            assert all(parameter.grad is None for parameter in module.student.parameters())
        module.on_before_optimizer_step(optimizer)
        module.configure_gradient_clipping(optimizer, clip, "value")
        optimizer.step()
        module.trainer.global_step += 1  # pyright: ignore[reportAttributeAccessIssue]
    weights = [parameter.detach().clone() for parameter in module.student.parameters()]
    return weights, copy.deepcopy(optimizer.state_dict()), norms


def assert_same(found: Any, expected: Any) -> None:
    """Bit for bit, at any depth."""
    assert type(found) is type(expected)
    if isinstance(found, dict):
        assert found.keys() == expected.keys()
        for key in found:
            assert_same(found[key], expected[key])
    elif isinstance(found, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert torch.equal(found, expected) if isinstance(found, Tensor) else found == expected


OPTIMIZERS = {
    "adamw": functools.partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.1, fused=True),
    "adamw_foreach": functools.partial(torch.optim.AdamW, lr=1e-3, amsgrad=True, foreach=True),
    "adam_loop": functools.partial(torch.optim.Adam, lr=1e-3, foreach=False),
    "sgd": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
    **{
        name: functools.partial(getattr(torch.optim, name), lr=1e-3)
        for name in (
            "Adadelta",
            "Adafactor",
            "Adagrad",
            "Adamax",
            "ASGD",
            "NAdam",
            "RAdam",
            "RMSprop",
            "Rprop",
        )
    },
}


@pytest.mark.parametrize("name", some_of(OPTIMIZERS, "adamw", "sgd"))
def test_weights_state_and_norms_are_those_of_steps_after_the_backward_pass(
    tiny_pair: tuple[Path, Path], name: str
) -> None:
    steps = [random_traces(2, seed=seed) for seed in range(3)]
    # The student's embeddings are its output matrix too, the teacher's are not.
    for folder in tiny_pair if name == "adamw" else tiny_pair[:1]:
        found, expected = (
            take_steps(
                find_model(str(folder), key="model.student").load(),
                OPTIMIZERS[name],
                steps,
                in_backward=in_backward,
            )
            for in_backward in (True, False)
        )
        assert_same(found, expected)


def test_values_are_clipped_and_activations_computed_anew_as_in_steps_after_it(
    tiny_pair: tuple[Path, Path],
) -> None:
    results = []
    for in_backward in (True, False):
        student = find_model(str(tiny_pair[0]), key="model.student").load()
        enable_gradient_checkpointing(student)
        factory = functools.partial(torch.optim.SGD, lr=1.0)
        before = [parameter.detach().clone() for parameter in student.model.parameters()]
        found = take_steps(student, factory, [random_traces(3)], in_backward=in_backward, clip=1e-3)
        moved = max(float((a - b).abs().max()) for a, b in zip(found[0], before, strict=True))
        assert moved == pytest.approx(1e-3, rel=1e-3)
        results.append(found)
    assert_same(*results)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_gradients_are_multiplied_without_rounding_the_factor_first(dtype: torch.dtype) -> None:
    gradient = torch.randn(4_000, generator=torch.Generator().manual_seed(0)).to(dtype)
    factor = 1 / 3154  # the bf16 number nearest to it is 0.15 % smaller
    right = (gradient.double() * factor).to(dtype)
    gradients = [gradient[:1_000].clone(), gradient[1_000:].clone()]
    multiply(gradients, factor)
    if dtype == torch.float32:  # the factor is a number of this precision then
        torch.testing.assert_close(torch.cat(gradients), right, rtol=1.2e-7, atol=0)
    else:
        assert torch.equal(torch.cat(gradients), right)


def test_one_gradient_at_a_time_is_there(student: LanguageModel) -> None:
    module = module_of(student)
    module.in_backward = StepsInBackward(module.trainer.optimizers[0])
    most = []

    def count(parameter: Tensor) -> None:
        most.append(sum(p.grad is not None for p in module.student.parameters()))

    for parameter in module.student.parameters():
        parameter.register_post_accumulate_grad_hook(count)
    loss = module.training_step(collate(random_traces(3)), 0)
    module.on_before_backward(loss)
    loss.backward()
    assert most == [0] * len(list(module.student.parameters()))


def test_gradients_outside_a_training_step_are_left_alone(student: LanguageModel) -> None:
    module = module_of(student)
    module.in_backward = StepsInBackward(module.trainer.optimizers[0])
    before = [parameter.detach().clone() for parameter in module.student.parameters()]
    module.student(input_ids=torch.tensor([[1, 2, 3]])).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in module.student.parameters())
    assert_same([parameter.detach() for parameter in module.student.parameters()], before)


def test_a_loss_that_is_no_number_stops_before_the_update_and_a_gradient_after_it(
    student: LanguageModel,
) -> None:
    module = module_of(student)
    module.in_backward = StepsInBackward(module.trainer.optimizers[0])
    weight = student.model.get_input_embeddings().weight
    weight.register_hook(lambda gradient: gradient * torch.nan)  # its loss is finite
    loss = module.training_step(collate(random_traces(2)), 0)
    module.on_before_backward(loss)
    loss.backward()
    with pytest.raises(UserError, match=r"weights are updated with it, as trainer.optimizer_in_b") as error:
        module.on_before_optimizer_step(module.trainer.optimizers[0])
    assert not isinstance(error.value, NonFiniteError)  # with which this student would be saved
    module.step_metrics.close()
    loss = module.training_step(collate(random_traces(2)), 0)  # of weights that are no numbers
    others = [p.detach().clone() for p in module.student.parameters() if p is not weight]
    with pytest.raises(NonFiniteError, match=r"the loss is nan .* stopped before the update"):
        module.on_before_backward(loss)
    assert_same([p.detach() for p in module.student.parameters() if p is not weight], others)


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"gradient_clip_val": 1.0}, "gradient's norm .*gradient_clip_val=1.0 limits: take trainer.grad"),
        ({"accumulate_grad_batches": 4}, "trainer.accumulate_grad_batches=4 adds up those of 4: take"),
        ({"strategy": "ddp"}, "before trainer.strategy=ddp has summed its gradient"),
        ({"strategy": "fsdp"}, "before trainer.strategy=fsdp has summed its gradient"),
        ({"strategy": "deepspeed", "accelerator": "gpu"}, "before trainer.strategy=deepspeed has summed"),
    ],
)
def test_trainers_that_need_all_gradients_are_refused(trainer: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_trainer_keys({"optimizer_in_backward": True, **trainer})
    check_trainer_keys({"optimizer_in_backward": False, **trainer})


def test_several_processes_and_optimizers_of_all_weights_are_refused() -> None:
    check_in_backward(1, "torch.optim.AdamW")
    with pytest.raises(UserError, match=r"before 2 processes have summed its gradient: take trainer.devices"):
        check_in_backward(2, "torch.optim.AdamW")
    for name in ("torch.optim.LBFGS", "torch.optim.SparseAdam", "mine.AdamW"):
        with pytest.raises(UserError, match=f"optimizer._target_={name} is none of them"):
            check_in_backward(1, name)


@pytest.mark.slow
def test_runs_with_and_without_go_on_from_each_others_checkpoints(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    words = arguments(tiny_pair, traces, tmp_path, "loss=sft", "trainer.gradient_clip_val=null")
    words += ["data.batch_size=2", "lr_scheduler.warmup_ratio=0", "lr_scheduler.decay=constant"]
    whole = run(words, tmp_path / "whole")
    for first, second in ((IN_BACKWARD, ""), ("", IN_BACKWARD)):
        mixed = tmp_path / f"mixed{bool(first)}"
        run([*words, *filter(None, [first]), "trainer.max_steps=3"], mixed)
        run([*words, *filter(None, [second]), f"ckpt_path={mixed}"], mixed)
        assert same_weights(mixed, whole)
        for name in ("train/loss", "train/gradient_norm", "train/lr"):
            assert column(mixed, name) == column(whole, name)


@pytest.mark.slow
def test_a_simulated_forward_pass_holds_no_gradients(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    words = arguments(tiny_pair, traces, tmp_path, "loss=sft", "trainer.gradient_clip_val=null")
    after, within = (
        simulate(Setup.from_overrides([*words, *more], here=False), [random_traces(2)])
        for more in ([], [IN_BACKWARD])
    )
    assert within.held[GRADIENTS] == 0
    assert after.peaks[STUDENT] - within.peaks[STUDENT] == after.held[GRADIENTS] > 0
    assert within.peak < after.peak


def test_it_is_a_remedy_where_it_applies(tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path) -> None:
    setup = Setup.from_overrides(arguments(tiny_pair, traces, tmp_path, "loss=sft"), here=False)
    trainer = {**setup.compute.trainer}

    def offered(length: dict[str, int], options: dict[str, Any]) -> bool:
        changed = replace(
            setup,
            length=replace(setup.length, **length),
            compute=replace(setup.compute, trainer=trainer | options),
        )
        return any(IN_BACKWARD in remedy.text for remedy in remedies(changed))

    assert offered({}, {})
    assert not offered({"accumulate": 2}, {})
    assert not offered({"ranks": 2}, {})
    assert not offered({}, {"strategy": "fsdp"})
    assert not offered({}, {"optimizer_in_backward": True})
