"""Tests that a step creates all tensors on the models' device and never synchronizes, on torch's meta device.
It rejects tensors of two devices, as a GPU does, and every operation that would wait for a GPU."""

import contextlib
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from test_grid import LOSSES, WEIGHTS, apply, changed
from test_no_sync import OBJECTIVES, module_of, traces_for
from test_objective import draw
from torch import Tensor

from distill.data.alignment import Alignment
from distill.data.batch import Batch, collate
from distill.data.layout import PACKED, BatchLayout, LayoutKind
from distill.data.trace import TeacherView
from distill.generation.sampling import StudentRollouts
from distill.losses import divergence, weights
from distill.losses.signals import Source, properties_of
from distill.models.language_model import LanguageModel
from distill.models.packed_attention import allow_packing
from distill.objective.objective import Objective
from distill.objective.rewards import Rewards
from distill.objective.step_values import StepProposals
from distill.teacher.distribution import TeacherDistribution

META = "meta"


@pytest.fixture(autouse=True)
def no_autocast_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch knows no autocast of that device, not even that it is off."""
    enabled, autocast = torch.is_autocast_enabled, torch.autocast

    def made(device: str, *given: Any, **named: Any) -> Any:
        return contextlib.nullcontext() if device == META else autocast(device, *given, **named)

    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind != META and enabled(kind))
    monkeypatch.setattr(torch, "autocast", made)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda there: there + torch.ones(3),
        lambda there: there.sum().item(),
        lambda there: there[there > 0],
        lambda there: bool((there > 0).all()),
        lambda there: there.cpu(),
    ],
)
def test_such_mistakes_are_seen(mistake: Any) -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        mistake(torch.ones(3, device=META))


@pytest.mark.covering(1)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("weight", WEIGHTS)
def test_every_loss_and_weight_computes_where_the_models_are(loss: str, weight: str) -> None:
    for on_policy in (False, True):
        if properties_of(LOSSES[loss]).on_policy_only and not on_policy:
            continue
        if weight == "span_support_ratio" and on_policy:  # is refused: it needs cached log-probs
            continue
        if weight == "group_advantage" and not on_policy:  # is refused: there are no rewards
            continue
        objective = Objective(
            StudentRollouts(1.0, samples=2) if on_policy else "dataset",
            LOSSES[loss],
            WEIGHTS[weight],
            proposals=StepProposals(),
            rewards=Rewards() if weight == "group_advantage" else None,
            chunk_size=4,
        )
        here = draw(3)
        there = changed(here, lambda tensor: tensor.to(META))
        places = here.mask.flatten().nonzero().squeeze(-1).to(META)
        found = apply(objective, there, on_policy, places)
        gradients = torch.autograd.grad(found.total, (there.hidden, there.weight))
        made = (found.total, found.denominator, found.losses, found.logprobs, found.weights, *gradients)
        assert {tensor.device.type for tensor in made} == {META}


def moved_pair(student: LanguageModel, teacher: LanguageModel, layout: LayoutKind) -> None:
    for lm in (student, teacher):
        if layout in PACKED:
            allow_packing(lm, 20)
        lm.model.requires_grad_(lm is student).to(META)


def step(
    student: LanguageModel,
    teacher: LanguageModel,
    objective: Objective,
    batch: Batch,
    matrix: Tensor | None = None,
) -> None:
    module = module_of(student, teacher, objective)
    module.teacher_matrix = matrix
    module._shared_ids = torch.arange(student.vocab_size, device=META).repeat(2, 1)
    module.training_step(batch.to(META), 0).backward()
    gradients = [p.grad for p in student.model.parameters() if p.grad is not None]
    assert gradients
    assert {tensor.device.type for tensor in (*gradients, module.step_metrics.sums)} == {META}


@pytest.mark.slow
@pytest.mark.parametrize("layout", get_args(LayoutKind))
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_is_made_where_the_models_are(
    student: LanguageModel, teacher: LanguageModel, name: str, layout: LayoutKind
) -> None:
    objective = Objective(rollouts="dataset", **OBJECTIVES[name])
    moved_pair(student, teacher, layout)
    batch = collate(
        traces_for(objective, weighted=True), objective.batch_signals, layout=BatchLayout(layout, 40)
    )
    step(student, teacher, objective, batch)


@pytest.mark.parametrize("source", [source for source in get_args(Source) if source != "live"])
def test_a_step_from_a_cache_is_made_where_the_student_is(
    student: LanguageModel, teacher: LanguageModel, source: Source
) -> None:
    kept = TeacherDistribution(source, top_k=4, samples=3)
    objective = Objective("dataset", divergence.forward_kl, weights.uniform, distribution=kept)
    batch = collate(traces_for(objective, weighted=True), objective.batch_signals)
    head = teacher.completion_head(batch.input_ids, batch.mask)
    rows = kept.keep(head, batch.completion_labels, kept.uniforms(0, batch.tokens))
    moved_pair(student, teacher, "padded")
    step(
        student,
        teacher,
        objective,
        replace(batch, distribution=rows),
        teacher.model.get_output_embeddings().weight[: teacher.vocab_size],
    )


@pytest.mark.slow
@pytest.mark.parametrize("layout", get_args(LayoutKind))
@pytest.mark.parametrize("loss", ["uld", "gold"])
def test_a_step_under_a_teacher_of_other_tokens_is_made_where_the_models_are(
    student: LanguageModel, teacher: LanguageModel, loss: str, layout: LayoutKind
) -> None:
    objective = Objective("dataset", LOSSES[loss], weights.uniform)
    moved_pair(student, teacher, layout)
    traces = traces_for(objective, weighted=True)
    for trace in traces:
        common = np.arange(len(trace.completion_ids))
        longer = np.append(trace.completion_ids, np.int32(1))
        alignment = Alignment(common, common, common % 2 == 0)
        trace.teacher_view = TeacherView(trace.prompt_ids, longer, alignment)
    step(student, teacher, objective, collate(traces, layout=BatchLayout(layout, 40)))
