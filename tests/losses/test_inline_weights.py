"""Tests of token weights computed inline with the loss against the same weights computed before it."""

import inspect
from functools import partial
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from test_objective import CONF, VOCAB, WIDTH
from torch import Tensor

from distill.config.instantiate import build
from distill.losses import weights
from distill.losses.signals import is_inline, signals
from distill.models.head import Head
from distill.objective import spec
from distill.objective.objective import Objective
from distill.objective.terms import LossSums

BY_TOKEN = {
    "uniform": weights.uniform,
    "dcod": weights.support_ratio,
    "dcod_clip": partial(weights.support_ratio, transform="clip", temperature=0.5, floor=0.1, anneal=0.7),
    "dcod_clip_exp": partial(weights.support_ratio, transform="clip_exp", max_log_ratio=0.5),
    "dcod_relu": partial(weights.support_ratio, transform="relu", temperature=3.0, temperature_is="factor"),
    "dft": weights.dft,
    "tis": weights.tis,
    "eaft": weights.eaft,
    "psft": weights.psft,
    "t3s": weights.t3s,
    "validity": weights.validity,
    "group_advantage": weights.group_advantage,
    "teacher_right": weights.teacher_right,
    "iw_sft": partial(weights.iw_sft, level="token", min_ratio=0.2, max_ratio=1.8),
}
BY_SEQUENCE = {
    "prefix": partial(weights.support_ratio, level="prefix"),
    "sequence": partial(weights.support_ratio, level="sequence"),
    "iw_sft": weights.iw_sft,
    "rho1": weights.rho1,
    "iw_opd": weights.iw_opd,
    "later_log_ratio": weights.later_log_ratio,
}


def call(function: Any, mask: Tensor, at: Any = slice(None)) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    values = {
        name: -3 * torch.rand(mask.shape, generator=generator, dtype=torch.float64)
        for name in sorted(signals(function) - {"mask"})
    }
    given = {name: value[at] for name, value in values.items()}
    if "progress" in inspect.signature(function).parameters:
        given["progress"] = 0.4
    return function(mask=mask[at], **given)


MASK = torch.tensor([[False, True, True, True, False], [True, True, False, False, False]])


@pytest.mark.parametrize("function", BY_TOKEN.values(), ids=BY_TOKEN)
def test_a_weight_of_the_token_is_the_same_alone_as_among_others(function: Any) -> None:
    assert is_inline(function)
    together = call(function, MASK)
    for row, column in MASK.nonzero().tolist():
        alone = call(function, MASK, (slice(row, row + 1), slice(column, column + 1)))
        torch.testing.assert_close(alone[0, 0], together[row, column], rtol=0, atol=0)


@pytest.mark.parametrize("function", BY_SEQUENCE.values(), ids=BY_SEQUENCE)
def test_a_weight_that_looks_at_others_does_not_claim_to_be_of_the_token(function: Any) -> None:
    assert not is_inline(function)
    together = call(function, MASK)
    alone = [
        call(function, MASK, (slice(row, row + 1), slice(column, column + 1)))[0, 0] - together[row, column]
        for row, column in MASK.nonzero().tolist()
    ]
    assert torch.stack(alone).abs().max() > 1e-6


def run(objective: Objective) -> tuple[LossSums, list[Tensor]]:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    tokens = int(MASK.sum())
    student = Head(normal(tokens, WIDTH).requires_grad_(), normal(VOCAB, WIDTH).requires_grad_())
    teacher = Head(normal(tokens, WIDTH), normal(VOCAB, WIDTH))
    result = objective(
        student,
        MASK,
        torch.randint(VOCAB, MASK.shape, generator=generator),
        {name: -normal(*MASK.shape).abs() for name in sorted(objective.cached_signals)},
        others=dict.fromkeys(objective.distributions, teacher),
        compared=MASK & torch.tensor([[True, True, False, True, True]] * 2),
        trace_weights=torch.tensor([0.5, 2.0]),
        progress=0.4,
        seed=5,
    )
    return result, list(torch.autograd.grad(result.total, (student.hidden, student.weight)))


def objective_of(name: str, *overrides: str) -> Objective:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [f"loss={name}", *overrides])
    return build(cfg.loss, "loss")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("dcod", []),
        ("dcod", ["loss.control=inverted", "loss.temperature=1", "loss.scale=2", "loss.normalize=weights"]),
        ("dcod_kl", ["loss.temperature=2"]),
        ("dft", ["loss.scale=mean"]),
        ("eaft", []),
        ("asft", []),
        ("psft", []),
    ],
)
def test_a_step_with_weights_made_on_the_way_is_the_one_with_weights_made_before(
    name: str, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = objective_of(name, *overrides)
    assert not objective.precomputed_signals
    found, gradients = run(objective)
    monkeypatch.setattr(spec, "is_inline", lambda function: False)
    objective = objective_of(name, *overrides)
    assert objective.precomputed_signals
    expected, others = run(objective)
    for field in ("total", "denominator", "losses", "logprobs", "weights"):
        torch.testing.assert_close(getattr(found, field), getattr(expected, field), rtol=1e-12, atol=1e-14)
    for one, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)
    assert found.terms.keys() == expected.terms.keys()


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("dcod", ["loss.token_weight.level=sequence"]),
        ("dcod", ["loss.token_weight.level=prefix"]),
        ("dcod_shuffled", []),
        ("dcod_by_position", []),
        ("rho1", []),
        ("iw_opd", []),
    ],
)
def test_weights_of_a_whole_sequence_ask_ahead(name: str, overrides: list[str]) -> None:
    assert objective_of(name, *overrides).precomputed_signals == {"student_logprobs"}


@pytest.mark.slow
def test_what_never_looks_at_the_student_asks_nothing_ahead() -> None:
    for name in ("sft", "forward_kl", "t3s"):
        assert not objective_of(name).precomputed_signals
