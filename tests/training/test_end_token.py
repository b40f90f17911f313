"""Tests of the end token's probability and weight in training, against loops in float64."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_training
import torch
from test_batch_and_data import random_traces
from test_no_sync import OBJECTIVES, module_of
from test_training import arguments, column, run

from distill.data.batch import collate
from distill.data.trace import Trace
from distill.models.language_model import LanguageModel
from distill.objective.objective import Objective
from distill.training.step_metrics import StepMetrics

traces = test_training.traces  # the fixture
KEYS = ("train/end_token_probability", "weights/end_token")


def ended_traces(end: int, ended: list[bool]) -> list[Trace]:
    """Traces of several lengths; only some end with the end token, one has it in its middle."""
    traces = random_traces(len(ended))
    for trace, whole in zip(traces, ended, strict=True):
        ids = trace.completion_ids
        ids[ids == end] = end + 1
        ids[-1] = end if whole else end + 2
        trace.signals["teacher_logprobs"] = np.linspace(-3, -0.1, len(ids), dtype=np.float32)
    traces[0].completion_ids[0] = end
    return traces


@torch.no_grad()
def by_loops(student: LanguageModel, batches: list[list[Trace]], end: int, weigh: Any) -> tuple[float, float]:
    """Means over the traces that end with the end token, one trace after the other, in float64."""
    probabilities, weights = [], []
    for trace in (trace for traces in batches for trace in traces):
        if trace.completion_ids[-1] != end:
            continue
        ids = torch.from_numpy(np.concatenate([trace.prompt_ids, trace.completion_ids])).long()
        logits = student.model(ids[None]).logits[0, -2, : student.vocab_size].double()
        log_probability = float(torch.log_softmax(logits, -1)[end])
        probabilities.append(math.exp(log_probability))
        weights.append(weigh(log_probability, float(trace.signals["teacher_logprobs"][-1])))
    return float(np.mean(probabilities)), float(np.mean(weights))


@pytest.mark.parametrize("name", ["sft", "dcod", "forward_kl"])
def test_the_end_tokens_probability_and_weight_are_means_over_the_steps_traces(
    student: LanguageModel, teacher: LanguageModel, name: str
) -> None:
    objective = Objective(rollouts="dataset", **OBJECTIVES[name])
    module = module_of(student, teacher, objective)
    end = student.end_ids[0]
    batches = [
        ended_traces(end, [True, False, True]),
        ended_traces(end, [False] * 4),
        ended_traces(end, [True] * 5),
    ]
    for traces in batches:
        module.training_step(collate(traces, objective.batch_signals), 0)
    sums = dict(zip(module.step_metrics.names, module.step_metrics.sums.tolist(), strict=True))
    assert sums["ended_traces"] == 7
    found = module.step_metrics.end_token(sums)

    def weigh(own: float, teachers: float) -> float:
        return 1 / (1 + math.exp(teachers - own)) if name == "dcod" else 1.0

    assert tuple(found) == KEYS
    assert tuple(found.values()) == pytest.approx(by_loops(student, batches, end, weigh), rel=1e-5)


def test_a_step_of_traces_without_an_end_has_no_such_metrics(
    student: LanguageModel, teacher: LanguageModel
) -> None:
    module = module_of(student, teacher, Objective(rollouts="dataset", **OBJECTIVES["sft"]))
    module.training_step(collate(ended_traces(student.end_ids[0], [False, False])), 0)
    sums = dict(zip(module.step_metrics.names, module.step_metrics.sums.tolist(), strict=True))
    assert module.step_metrics.end_token(sums) == {}


def test_each_of_several_end_tokens_ends_a_trace() -> None:
    """Whatever the layout of the mask: a completion may end at the last column or before it."""
    metrics = StepMetrics(Objective(rollouts="dataset", **OBJECTIVES["sft"]), [3, 7])
    labels = torch.tensor([[5, 3, 0, 0], [3, 5, 6, 7], [5, 7, 5, 3], [9, 9, 3, 9]])
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1], [0, 0, 1, 0], [0, 0, 1, 0]]).bool()
    last, ended, stopped = metrics._ends_of(mask, labels)
    assert last.flatten().tolist() == [1, 3, 2, 2]
    assert ended.flatten().tolist() == stopped.flatten().tolist() == [True, True, False, True]


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["sft", "dcod", "on_policy_kd"])
def test_they_are_the_last_columns_of_the_metrics(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, loss: str
) -> None:
    words = [f"loss={loss}", "trainer.max_steps=2"]
    if loss == "on_policy_kd":  # on the data's completions: rollouts of an untrained student need not end
        words.append("loss.rollouts.fraction=0")
    folder = run(arguments(tiny_pair, traces, tmp_path, *words), tmp_path / loss)
    header = (folder / "metrics.csv").read_text().splitlines()[0].split(",")
    assert tuple(header[-2:]) == KEYS
    assert all(0 < value < 1 for value in column(folder, KEYS[0]))
    weights = column(folder, KEYS[1])
    assert all(0 < value < 1 for value in weights) if loss == "dcod" else set(weights) == {1.0}
