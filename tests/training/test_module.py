"""Tests of the training module, step by step with a stand-in for Lightning's trainer."""

import functools
import io
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from test_batch_and_data import random_traces
from torch import Tensor

from distill.data.batch import collate
from distill.data.trace import Trace
from distill.errors import UserError
from distill.losses.divergence import Taid, cross_entropy, gold
from distill.losses.weights import uniform
from distill.models.head import Head
from distill.models.language_model import LanguageModel
from distill.objective.objective import Objective
from distill.objective.terms import MicroBatch
from distill.teacher.retokenize import Retokenizer
from distill.training.length import Steps
from distill.training.module import DistillModule, Supervision
from distill.training.schedule import Schedule

SFT = functools.partial(Objective, "dataset", cross_entropy, uniform)


def module_of(
    student: LanguageModel,
    objective: Objective | None = None,
    steps: Steps = Steps(4, 4),  # noqa: B008  frozen
    *,
    ranks: int = 1,
    accumulate: int = 1,
    supervision: Supervision = Supervision(),  # noqa: B008  frozen
) -> DistillModule:
    """A module whose other ranks, if there are some, have the same traces."""
    optimizer = functools.partial(torch.optim.SGD, lr=0.1)
    module = DistillModule(
        student, objective or SFT(), optimizer, Schedule(), steps=steps, supervision=supervision, seed=3
    )
    state: Any = SimpleNamespace(
        global_step=0,
        accumulate_grad_batches=accumulate,
        world_size=ranks,
        global_rank=0,
        strategy=SimpleNamespace(reduce=lambda sums, reduce_op: ranks * sums),
        loggers=[],
        optimizers=[],
    )
    module._trainer = state  # pyright: ignore[reportAttributeAccessIssue]
    state.optimizers = [module.configure_optimizers()["optimizer"]]
    return module


def take_step(module: DistillModule, micro_batches: Sequence[Sequence[Trace]]) -> None:
    """Gradients of an optimizer step, as Lightning has them; the update itself is left out."""
    (optimizer,) = module.trainer.optimizers
    optimizer.zero_grad()
    for traces in micro_batches:
        loss = module.training_step(collate(traces, module.objective.batch_signals), 0)
        (loss / len(micro_batches)).backward()
    module.on_before_optimizer_step(optimizer)
    module.trainer.global_step += 1  # pyright: ignore[reportAttributeAccessIssue]


def gradients(model: torch.nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def norm(found: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(one.double().square().sum()) for one in found))


# --- an optimizer step


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_steps_gradient_is_that_of_the_mean_over_all_its_tokens(student: LanguageModel, ranks: int) -> None:
    traces = random_traces(5, longest=20)
    total = torch.zeros(())
    for trace in traces:  # one at a time, by the model's own logits
        ids = torch.tensor([*trace.prompt_ids.tolist(), *trace.completion_ids.tolist()])
        logits = student.model(input_ids=ids[None]).logits[0, :-1, : student.vocab_size]
        losses = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
        total = total + losses[len(trace.prompt_ids) - 1 :].sum()
    (total / sum(len(trace.completion_ids) for trace in traces)).backward()
    expected = gradients(student.model)
    module = module_of(student, ranks=ranks, accumulate=2)
    take_step(module, [traces[:4], traces[4:]])
    # DDP would average over ranks, which all have this gradient.
    for one, other in zip(gradients(student.model), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_gradient_is_clipped_at_the_norm_that_the_optimizer_would_see(student: LanguageModel) -> None:
    module = module_of(student)
    take_step(module, [random_traces(5)])
    found = gradients(student.model)
    (optimizer,) = module.trainer.optimizers
    for limit, factor in ((2.0, 1.0), (0.5, 0.5)):
        module.configure_gradient_clipping(optimizer, limit * norm(found), "norm")
        for one, other in zip(gradients(student.model), found, strict=True):
            torch.testing.assert_close(one, factor * other, rtol=1e-4, atol=0)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """What objectives are told: each micro-batch's `seed` and `progress`, and the progress `after` steps."""
    told: dict[str, list[Any]] = {"seed": [], "progress": [], "after": []}
    chunked_inputs = Objective.chunked_inputs

    def watched(self: Objective, head: Head, batch: MicroBatch) -> Any:
        told["seed"].append(batch.seed)
        told["progress"].append(batch.progress)
        return chunked_inputs(self, head, batch)

    monkeypatch.setattr(Objective, "chunked_inputs", watched)
    monkeypatch.setattr(Objective, "after_step", lambda self, loss, progress: told["after"].append(progress))
    return told


def test_every_micro_batch_of_a_run_draws_with_a_number_of_its_own(
    student: LanguageModel, seen: dict[str, list[Any]]
) -> None:
    module, micro_batches = module_of(student, accumulate=2), [random_traces(1, seed) for seed in range(2)]
    for _ in range(3):
        take_step(module, micro_batches)
    first = seen["seed"][0]
    assert seen["seed"] == list(range(first, first + 6))
    resumed = module_of(student, accumulate=2)
    resumed.trainer.global_step = 2  # pyright: ignore[reportAttributeAccessIssue]
    take_step(resumed, micro_batches)
    assert seen["seed"][6:] == seen["seed"][4:6]


def test_progress_is_the_share_of_steps_before_each_step_and_behind_it(
    student: LanguageModel, seen: dict[str, list[Any]]
) -> None:
    module = module_of(student, steps=Steps(2, 2))
    for _ in range(2):
        take_step(module, [random_traces(1)])
    assert seen["progress"] == [0.0, 0.5]
    assert seen["after"] == [0.5, 1.0]


# --- a budget of tokens


def test_tokens_are_counted_over_all_steps_until_the_budget_is_spent(
    student: LanguageModel, seen: dict[str, list[Any]]
) -> None:
    traces = random_traces(4)
    count = sum(len(trace.completion_ids) for trace in traces)
    module = module_of(student, steps=Steps(limit=50, expected=2, max_tokens=2 * count))
    assert not module_of(student).budget_spent
    for step in range(2):
        assert not module.budget_spent
        take_step(module, [traces])
        assert module.totals["tokens"] == (step + 1) * count
    assert module.budget_spent
    take_step(module, [traces])  # a last step may go beyond the budget
    assert seen["progress"] == [0.0, 0.5, 1.0]
    assert seen["after"] == [0.5, 1.0, 1.0]


def test_the_learning_rate_follows_what_comes_to_its_end_first(student: LanguageModel) -> None:
    for steps, tokens, position in (
        (Steps(limit=50, expected=10, max_tokens=1000), 500.0, 5.0),
        (Steps(limit=4, expected=4, max_tokens=1000), 100.0, 2.0),
        (Steps(limit=4, expected=4), 100.0, 2.0),
    ):
        module = module_of(student, steps=steps)
        module.totals["tokens"] = tokens
        (factor,) = module.configure_optimizers()["lr_scheduler"]["scheduler"].lr_lambdas
        assert factor(2) == Schedule().factor(position, steps.expected)


# --- what is trained


def test_the_student_alone_is_trained_with_its_dropout(
    student: LanguageModel, teacher: LanguageModel
) -> None:
    module = module_of(student, supervision=Supervision({"teacher": teacher}))
    assert not student.model.training
    module.on_train_start()
    assert student.model.training
    assert not teacher.model.training


def test_frozen_weights_are_not_handed_to_the_optimizer(student: LanguageModel) -> None:
    frozen = student.model.get_input_embeddings().weight.requires_grad_(False)
    (optimizer,) = module_of(student).trainer.optimizers
    held = {parameter.data_ptr() for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {parameter.data_ptr() for parameter in student.model.parameters()} - {frozen.data_ptr()}


def test_shared_tokens_have_a_row_in_both_models_matrices(
    student: LanguageModel, teacher: LanguageModel
) -> None:
    for matrix in (None, torch.zeros(20, 4)):  # None: the teacher's own
        mine, theirs = student.vocab_size, teacher.vocab_size if matrix is None else len(matrix)
        # The student's ids, and the teacher's of the same tokens.
        ids = torch.tensor([[0, 3, mine - 1, mine, 5, mine], [2, 1, theirs - 1, 4, theirs, theirs]])
        reader = MagicMock(Retokenizer, shared_ids=ids.numpy)
        supervision = Supervision({"teacher": teacher}, teacher_matrix=matrix, readers={"teacher": reader})
        module = module_of(student, Objective("dataset", gold, uniform), supervision=supervision)
        assert module._constants()["shared_ids"].tolist() == [[0, 3, mine - 1], [2, 1, theirs - 1]]


# --- checkpoints


def saved(module: DistillModule) -> dict[str, Any]:
    """A checkpoint of the module, written and read again as tensors and numbers alone."""
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    file = io.BytesIO()
    torch.save(checkpoint, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_a_resumed_module_knows_what_the_saved_one_did(
    student: LanguageModel, teacher: LanguageModel
) -> None:
    def made() -> DistillModule:
        objective = Objective("dataset", Taid(rate=0.5), uniform)
        return module_of(student, objective, supervision=Supervision({"teacher": teacher}))

    module = made()
    for seed in range(2):
        take_step(module, [random_traces(3, seed)])
    torch.manual_seed(11)
    torch.rand(5)
    checkpoint = saved(module)
    drawn = torch.rand(5)  # such as dropout's
    resumed = made()
    assert resumed.objective.state() != module.objective.state()
    resumed.on_load_checkpoint(checkpoint)
    torch.rand(3)  # while the run is being set up
    resumed.on_train_start()
    assert torch.equal(torch.rand(5), drawn)
    assert resumed.totals == module.totals
    assert resumed.totals["tokens"] > 0
    assert resumed.objective.state() == module.objective.state()
    taken = [one.step_metrics.take_weight_counts() for one in (module, resumed)]
    assert all(counts is not None and counts.sum() > 0 for counts in taken)
    assert torch.equal(*taken)  # pyright: ignore


def test_adapters_are_not_put_beside_another_base(student: LanguageModel) -> None:
    student.model.model.layers.requires_grad_(False)  # as what adapters stand beside
    module = module_of(student)
    checkpoint = saved(module)
    kept = set(checkpoint["state_dict"])
    assert 0 < len(kept) < len(module.state_dict())
    module_of(student).on_load_checkpoint(checkpoint)
    assert set(checkpoint["state_dict"]) == set(module.state_dict())
    with torch.no_grad():
        student.model.model.layers[1].mlp.up_proj.weight[0, 0] += 1e-3
    with pytest.raises(UserError, match=r"not those beside which the checkpoint's adapters were trained"):
        module_of(student).on_load_checkpoint(saved(module) | {"base": checkpoint["base"]})
