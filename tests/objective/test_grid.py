"""Tests of every token loss with every token weight, offline and on rollouts, in fp32 and bf16; and of
rejected combinations."""

import inspect
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from test_objective import Work, draw
from torch import Tensor

from distill.generation.sampling import StudentRollouts
from distill.losses import divergence, weights
from distill.losses.divergence import Taid
from distill.losses.signals import SIGNALS, properties_of, signals
from distill.models.head import Head
from distill.objective.objective import Objective
from distill.objective.rewards import Rewards
from distill.objective.step_values import StepProposals
from distill.objective.terms import LossSums


def functions_of(module: ModuleType, argument: str) -> dict[str, Callable[..., Tensor]]:
    """The public functions of a module that take this argument."""
    found = inspect.getmembers(module, inspect.isfunction)
    return {
        name: function
        for name, function in found
        if not name.startswith("_")
        and function.__module__ == module.__name__
        and argument in inspect.signature(function).parameters
    }


LOSSES = {**functions_of(divergence, "log_q"), "taid": Taid()}
WEIGHTS = functions_of(weights, "mask")


def test_the_grid_is_as_large_as_the_field() -> None:
    assert set(LOSSES) == {
        "akl",
        "clipped_surrogate",
        "cross_entropy",
        "forward_kl",
        "gold",
        "jsd",
        "k3",
        "policy_gradient",
        "reference_kl",
        "reverse_kl",
        "skew_forward_kl",
        "skew_reverse_kl",
        "symmetric_kl",
        "taid",
        "teacher_cross_entropy",
        "todi",
        "tvd",
        "uld",
    }
    assert set(WEIGHTS) == {
        "dft",
        "eaft",
        "group_advantage",
        "iw_opd",
        "iw_sft",
        "later_log_ratio",
        "psft",
        "rho1",
        "span_support_ratio",
        "support_ratio",
        "t3s",
        "teacher_right",
        "tis",
        "uniform",
        "validity",
    }


def apply(objective: Objective, work: Work, on_policy: bool, places: Tensor | None = None) -> LossSums:
    """The loss of some work; `places` are those of its mask, where they are known."""

    def tokens(states: Tensor) -> Tensor:
        return states[work.mask] if places is None else states.flatten(0, 1).index_select(0, places)

    given = {
        name: work.token_signals[name if signal.shape == "token" else "teacher_logprobs"]
        for name, signal in SIGNALS.items()
        if name in objective.signals and signal.shape != "vocab" and not name.startswith("student_")
    }
    if objective.compares_rewards:
        given["group_reward"] = work.token_signals["initial_logprobs"]
        given["group_deviation"] = work.token_signals["reference_logprobs"].abs()
    if objective.compares_steps:
        given["student_step_value"] = work.token_signals["initial_logprobs"]
    if objective.compares_tokens:
        given["same_token"] = work.mask.to(work.hidden.dtype)
    ids = torch.arange(len(work.weight), device=work.weight.device).repeat(2, 1)
    return objective(
        Head(tokens(work.hidden), work.weight),
        work.mask,
        work.labels,
        given,
        others={
            name: Head(tokens(work.teacher_hidden), work.teacher_weight) for name in objective.distributions
        },
        constants={"shared_ids": ids} if objective.compares_tokens else {},
        by_student=on_policy,
        places=places,
    )


def changed(work: Work, change: Callable[[Tensor], Tensor]) -> Work:
    """The same work with every tensor changed, and those that train training still."""

    def one(tensor: Tensor) -> Tensor:
        return change(tensor.detach()).requires_grad_(tensor.requires_grad)

    return Work(
        one(work.mask),
        one(work.labels),
        one(work.hidden),
        one(work.weight),
        one(work.teacher_hidden),
        one(work.teacher_weight),
        {name: one(values) for name, values in work.token_signals.items()},
    )


def exact(work: Work) -> Work:
    """The same numbers in double precision."""
    return changed(work, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


# Of rewards and of whole problems: each with a few of the others, for they are alike to it.
OF_REWARDS = {"clipped_surrogate", "k3", "group_advantage", "teacher_right"}
FEW = {"cross_entropy", "forward_kl", "uniform", "support_ratio", *OF_REWARDS}
PAIRS = [
    (loss, weight)
    for weight in WEIGHTS
    for loss in LOSSES
    if not {loss, weight} & OF_REWARDS or {loss, weight} <= FEW
]


@pytest.mark.parametrize(("loss", "weight"), PAIRS)
def test_every_loss_works_with_every_weight_wherever_it_makes_sense(loss: str, weight: str) -> None:
    for on_policy in (False, True):
        rollouts = StudentRollouts(1.0, samples=2) if on_policy else "dataset"
        if properties_of(LOSSES[loss]).on_policy_only and not on_policy:
            with pytest.raises(ValueError, match="right on the student's own completions alone"):
                Objective(rollouts, LOSSES[loss], WEIGHTS[weight], proposals=StepProposals())
            continue
        if weight == "span_support_ratio" and on_policy:
            with pytest.raises(ValueError, match="log-probs of whole completions"):
                Objective(rollouts, LOSSES[loss], WEIGHTS[weight], proposals=StepProposals())
            continue
        if weight == "group_advantage" and not on_policy:
            with pytest.raises(ValueError, match="lets it write nothing"):
                Objective(rollouts, LOSSES[loss], WEIGHTS[weight], rewards=Rewards())
            continue
        objective = Objective(
            rollouts,
            LOSSES[loss],
            WEIGHTS[weight],
            proposals=StepProposals(),
            rewards=Rewards() if weight == "group_advantage" else None,
            chunk_size=4,
        )
        assert objective.signals == (signals(LOSSES[loss]) | signals(WEIGHTS[weight])) & SIGNALS.keys()
        for dtype, close, slope in ((torch.float32, 1e-4, 1e-4), (torch.bfloat16, 1e-3, 2e-2)):
            work = draw(3, dtype)
            found, expected = (apply(objective, each, on_policy) for each in (work, exact(work)))
            assert found.total.dtype == torch.float32
            assert (found.weights[~work.mask] == 0).all()
            scale = (expected.weights * expected.losses).abs().sum().item() + 1e-6
            assert abs(found.total.item() - expected.total.item()) < close * scale
            gradients = torch.autograd.grad(found.total, (work.hidden, work.weight))
            doubles = exact(work)
            plain = torch.autograd.grad(
                apply(objective, doubles, on_policy).total, (doubles.hidden, doubles.weight)
            )
            for one, other in zip(gradients, plain, strict=True):
                assert one.dtype == dtype
                assert (one.double() - other).norm() <= slope * other.norm() + 1e-6
