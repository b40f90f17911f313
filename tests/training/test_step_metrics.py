"""Tests of a step's metrics against sums over its tokens, one after the other."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from distill.data.batch import Batch, collate
from distill.data.trace import Example, Trace
from distill.generation.sampling import StudentRollouts
from distill.losses.divergence import cross_entropy
from distill.losses.weights import uniform
from distill.objective.objective import Objective
from distill.objective.terms import LossSums
from distill.training.step_metrics import WEIGHT_BINS, StepMetrics

END = 1
# Of two micro-batches, the tokens of prompts and completions; END may stand anywhere in a completion.
TRACES = (
    [([5, 6], [7, 8, END]), ([5], [END, 7]), ([5, 6, 7], [END])],
    [([5, 6], [END, END, 8, 9]), ([5], [9, 9])],
)
UNFINISHED = 3


def made(traces: Sequence[tuple[list[int], list[int]]], seed: int) -> tuple[LossSums, Batch]:
    """A micro-batch and what an objective may find in it; NaN where there is no completion token."""
    batch = collate(
        [
            Trace(Example(str(n), ""), np.array(prompt, dtype=np.int32), np.array(completion, dtype=np.int32))
            for n, (prompt, completion) in enumerate(traces)
        ]
    )
    generator = torch.Generator().manual_seed(seed)
    losses, logprobs, weights = (
        torch.rand(batch.mask.shape, generator=generator, dtype=torch.float64).masked_fill(
            ~batch.mask, torch.nan
        )
        for _ in range(3)
    )
    weights = 3.5 * weights - 0.5  # beyond both ends of the histogram
    total, denominator = ((weights * losses).nansum(), weights.nansum())
    return LossSums(total, denominator, {"main": total}, losses, -logprobs, weights, batch.mask), batch


def test_a_steps_metrics_are_sums_over_the_tokens_of_all_its_micro_batches() -> None:
    step = StepMetrics(Objective(StudentRollouts(0.5), cross_entropy, uniform), [END])
    micro_batches = [made(traces, seed) for seed, traces in enumerate(TRACES)]
    for result, batch in micro_batches:
        step.add(result, batch, on_policy=True)
        step.spend(student=3.0, teacher=5.0)
    tokens = [
        (float(result.losses[at]), float(result.logprobs[at]), float(result.weights[at]))
        for result, batch in micro_batches
        for at in map(tuple, batch.mask.nonzero().tolist())
    ]
    values = dict(zip(step.names, step.sums.tolist(), strict=True))
    assert (values["student_flops"], values["teacher_flops"]) == (6.0, 10.0)
    weight, squares = sum(w for *_, w in tokens), sum(w * w for *_, w in tokens)
    expected = {
        "train/loss": sum(w * loss for loss, _, w in tokens) / weight,
        "train/nll": -sum(logprob for _, logprob, _ in tokens) / len(tokens),
        "train/tokens": len(tokens),
        "weights/mean": weight / len(tokens),
        "weights/sum": weight,
        "weights/effective_sample_size": weight**2 / (len(tokens) * squares),
        "rollouts/tokens": len(tokens),
        "rollouts/truncated": UNFINISHED,
    }
    assert step.metrics(values) == pytest.approx(expected, rel=1e-12)
    # A weight beyond the bins counts in the one nearest to it.
    counts, width = [0] * (len(WEIGHT_BINS) - 1), WEIGHT_BINS[1]
    for *_, w in tokens:
        counts[max(0, min(len(counts) - 1, int(w // width)))] += 1
    assert counts[0] > 0 < counts[-1]
    assert step.take_weight_counts() is None  # the step has not ended
    step.close()
    taken = step.take_weight_counts()
    assert taken is not None
    assert taken.tolist() == counts
    assert step.take_weight_counts() is None


def test_a_step_knows_nothing_of_the_one_before() -> None:
    step, fresh = (StepMetrics(Objective("dataset", cross_entropy, uniform), [END]) for _ in range(2))
    step.add(*made(TRACES[0], 0), on_policy=False)
    step.spend(student=3.0, teacher=5.0)
    step.close()
    for one in (step, fresh):
        one.add(*made(TRACES[1], 1), on_policy=False)
        one.spend(student=1.0, teacher=2.0)
    assert torch.equal(step.sums, fresh.sums)
    assert step.traces == fresh.traces == ("0", "1")


def test_the_overlap_is_a_mean_over_the_tokens_of_all_micro_batches() -> None:
    objective = Objective("dataset", cross_entropy, uniform, overlap_top_k=2)
    step, tokens, total = StepMetrics(objective, [END]), 0, torch.zeros(3)
    for seed, traces in enumerate(TRACES):
        result, batch = made(traces, seed)
        sums = torch.tensor([2.0, 3.0, 5.0]) * (seed + 1)
        step.add(replace(result, overlap=sums), batch, on_policy=False)
        tokens, total = tokens + int(batch.mask.sum()), total + sums
    found = step.metrics(dict(zip(step.names, step.sums.tolist(), strict=True)))
    names = ("train/overlap_ratio", "train/overlap_student_mass", "train/overlap_teacher_mass")
    assert [found[name] for name in names] == pytest.approx((total / tokens).tolist())
