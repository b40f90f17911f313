"""Tests that a training step never waits for the device, by inspecting its operations on a CPU."""

import functools
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch
from test_batch_and_data import random_traces
from torch.utils._python_dispatch import TorchDispatchMode

from distill.data.batch import collate
from distill.data.layout import PACKED, BatchLayout, LayoutKind
from distill.data.trace import Trace
from distill.losses import divergence, weights
from distill.models.language_model import LanguageModel
from distill.models.packed_attention import allow_packing
from distill.objective.objective import Objective
from distill.training.length import Steps
from distill.training.module import DistillModule, Supervision
from distill.training.schedule import Schedule

# What gives the host a number, or a tensor whose size depends on what it holds.
_WAITING = {
    "_local_scalar_dense",
    "is_nonzero",
    "nonzero",
    "masked_select",
    "unique",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "bincount",
    "equal",
    "repeat_interleave",
}


class Refuses(TorchDispatchMode):
    """Raises where a GPU's stream would be waited for."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = function.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if by_mask or name in _WAITING:
            raise AssertionError(f"{function} waits for the device")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).all()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.index_put_((x > 0,), torch.zeros(())),
    ],
)
def test_waiting_is_seen(wait: Callable[[torch.Tensor], Any]) -> None:
    with pytest.raises(AssertionError, match="waits for the device"), Refuses():
        wait(torch.randn(3))


def module_of(student: LanguageModel, teacher: LanguageModel, objective: Objective) -> DistillModule:
    frozen: dict[Any, LanguageModel] = dict.fromkeys(objective.live_roles, teacher)
    module = DistillModule(
        student,
        objective,
        functools.partial(torch.optim.AdamW, lr=1e-3),
        Schedule(),
        steps=Steps(4, 4),
        supervision=Supervision(frozen),
    )
    state: Any = type("", (), {"global_step": 0, "accumulate_grad_batches": 1})()
    module._trainer = state  # pyright: ignore[reportAttributeAccessIssue]
    return module


def traces_for(objective: Objective, weighted: bool) -> list[Trace]:
    """With all the signals that it asks for, and weights of their own; two have the same prompt."""
    traces = random_traces(5)
    traces[3].prompt_ids = traces[0].prompt_ids
    for trace in traces:
        trace.weight = 0.5 if weighted else 1.0
        for name in objective.batch_signals:
            trace.signals.setdefault(name, np.full(len(trace.completion_ids), -1.0, dtype=np.float32))
    return traces


OBJECTIVES: dict[str, dict[str, Any]] = {
    "sft": {"token_loss": divergence.cross_entropy, "token_weight": weights.uniform},
    "dcod": {"token_loss": divergence.cross_entropy, "token_weight": weights.support_ratio},
    "forward_kl": {"token_loss": divergence.forward_kl, "token_weight": weights.uniform},
    "rho1": {"token_loss": divergence.cross_entropy, "token_weight": weights.rho1},
    "shuffled": {
        "token_loss": divergence.cross_entropy,
        "token_weight": weights.support_ratio,
        "control": "shuffled",
    },
    "by_position": {
        "token_loss": divergence.cross_entropy,
        "token_weight": weights.support_ratio,
        "control": "by_position",
    },
}


@pytest.mark.parametrize("layout", get_args(LayoutKind))
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_forward_and_backward_waits_for_nothing(
    student: LanguageModel,
    teacher: LanguageModel,
    name: str,
    weighted: bool,
    layout: LayoutKind,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(tensor: torch.Tensor, *given: Any) -> Any:
        raise AssertionError("the host waits for a tensor")

    objective = Objective(rollouts="dataset", **OBJECTIVES[name])
    batch = collate(traces_for(objective, weighted), objective.batch_signals, layout=BatchLayout(layout, 40))
    for lm in (student, teacher):
        lm.model.requires_grad_(lm is student)
        if layout in PACKED:
            allow_packing(lm, 20)
    module = module_of(student, teacher, objective)
    module.training_step(batch, 0).backward()  # what is made once is there
    expected = {name: p.grad.clone() for name, p in student.model.named_parameters() if p.grad is not None}
    module.step_metrics.close()
    module._micro_batch = 0
    student.model.zero_grad()
    for copied in ("tolist", "numpy", "cpu", "item"):  # on a CPU some of them call no operation
        monkeypatch.setattr(torch.Tensor, copied, refused)
    with Refuses():
        module.training_step(batch, 0).backward()
    assert expected
    monkeypatch.undo()
    for key, parameter in student.model.named_parameters():
        if key in expected:
            np.testing.assert_array_equal(parameter.grad.numpy(), expected[key].numpy())
