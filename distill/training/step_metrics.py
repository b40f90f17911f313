"""Metrics of an optimizer step, from sums over its micro-batches and ranks."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from distill.data.batch import Batch
from distill.generation.sampling import StudentRollouts
from distill.losses.controls import effective_sample_size
from distill.losses.weights import batch_deviation
from distill.objective.objective import Objective
from distill.objective.rewards import Rewarded
from distill.objective.step_values import StepValues
from distill.objective.terms import LossSums

WEIGHT_BINS = np.linspace(0.0, 2.0, 41)
_SUMS = (
    "total",
    "denominator",
    "tokens",
    "weight",
    "weight_squared",
    "nll",
    "rollout_tokens",
    "truncated_rollouts",
)
_FLOPS = ("student_flops", "teacher_flops")  # last with _REWARD_SUMS, because they are counted on the host
_END_SUMS = ("ended_traces", "end_probability", "end_weight")
_POLICY_SUMS = ("entropy", "clipped")
_OVERLAP_SUMS = ("overlap_ratio", "overlap_student_mass", "overlap_teacher_mass")
_REWARD_SUMS = (
    "completions",
    "reward",
    "reward_squared",
    "right",
    "groups",
    "equal_groups",
    "written_tokens",
)
_STEP_SUMS = ("steps", "student_step_value", "teacher_step_value", "step_weight", "agreed_steps")


class StepMetrics:
    """Sums of one optimizer step, kept on the device and read once at its end.

    Args:
        objective: determines which sums there are.
        end_ids: tokens that end a completion.
        step_ends: tokens that end a step, with which a rollout may end too (`StudentRollouts.writes_step`).

    Attributes:
        names: names of the sums, in order.
        traces: ids of the step's traces so far, on this rank.
        weight_counts: [bins] histogram of this rank's token weights in the steps since the last
            `take_weight_counts`, on the device; None if there is none. Checkpoints keep it.
    """

    def __init__(self, objective: Objective, end_ids: Sequence[int], step_ends: Sequence[int] = ()) -> None:
        self.objective = objective
        self.end_ids = list(end_ids)
        rollouts = objective.rollouts
        drawn = isinstance(rollouts, StudentRollouts)
        self._step_ends = list(step_ends) if drawn and rollouts.writes_step else []
        self._replays = drawn and rollouts.replays
        terms = (f"loss_{name}" for name in objective.terms)
        steps = _STEP_SUMS if objective.compares_steps else ()
        policy = _POLICY_SUMS if objective.rewarded else ()
        replay = ("replayed_tokens",) if self._replays else ()
        self._host_names = (*_FLOPS, *(_REWARD_SUMS if objective.rewarded else ()), *replay)
        overlap = _OVERLAP_SUMS if objective.overlap_top_k else ()
        self.names = (*_SUMS, *terms, *steps, *_END_SUMS, *policy, *overlap, *self._host_names)
        self.traces: tuple[str, ...] = ()
        self._ends: Tensor | None = None  # on the device
        self._sums: Tensor | None = None
        self._on_host: dict[str, float] = dict.fromkeys(self._host_names, 0.0)
        self.weight_counts: Tensor | None = None
        self._counts: Tensor | None = None  # of this step

    @property
    def sums(self) -> Float[Tensor, " names"]:
        """This rank's sums, float64."""
        assert self._sums is not None, "no micro-batch yet"
        return torch.cat([self._sums, self._sums.new_tensor(list(self._on_host.values()))])

    def spend(self, *, student: float, teacher: float) -> None:
        """Add FLOPs of a micro-batch: the student's, and those of all frozen models."""
        self._on_host["student_flops"] += student
        self._on_host["teacher_flops"] += teacher

    def reward(self, rewarded: Rewarded) -> None:
        """Add the rewards of a micro-batch."""
        for name, value in rewarded.sums.items():
            self._on_host[name] += value

    def replay(self, tokens: int) -> None:
        """Add the replayed tokens of a micro-batch, behind which the student has written."""
        if self._replays:
            self._on_host["replayed_tokens"] += tokens

    def add(
        self, result: LossSums, batch: Batch, *, on_policy: bool, steps: StepValues | None = None
    ) -> None:
        """Add a micro-batch."""
        # Index by known positions if possible: indexing by a mask synchronizes with the device.
        where = result.mask.flatten().nonzero().squeeze(-1) if batch.places is None else batch.places
        weights = result.weights.flatten()[where].double()
        tokens = result.mask.sum()
        last, ended, stopped = self._ends_of(result.mask, batch.labels)
        none = tokens.new_zeros(())
        sums = [
            result.total.detach(),
            result.denominator,
            tokens,
            weights.sum(),
            weights.square().sum(),
            -result.logprobs.flatten()[where].double().sum(),
            *((tokens, (~stopped).sum()) if on_policy else (none, none)),
            *result.terms.values(),
        ]
        if steps is not None:
            sums += [
                steps.first.sum(),
                steps.student[steps.first].sum(),
                steps.teacher[steps.first].sum(),
                result.weights[steps.first].sum(),
                steps.agreed.sum(),
            ]
        sums += [
            ended.sum(),
            (result.logprobs.gather(-1, last).double().exp() * ended).sum(),
            (result.weights.gather(-1, last).double() * ended).sum(),
        ]
        if self.objective.rewarded:
            sums += [result.policy.get(name, none) for name in _POLICY_SUMS]
        if result.overlap is not None:
            sums += result.overlap.unbind()
        stacked = torch.stack([value.double() for value in sums])
        self._sums = stacked if self._sums is None else self._sums + stacked
        low, high = WEIGHT_BINS[0], WEIGHT_BINS[-1]
        counts = torch.histc(weights.clamp(low, high), len(WEIGHT_BINS) - 1, low, high)
        self._counts = counts if self._counts is None else self._counts + counts
        self.traces += batch.names

    def _ends_of(
        self, mask: Bool[Tensor, "batch seq"], labels: Int[Tensor, "batch seq"]
    ) -> tuple[Int[Tensor, "batch 1"], Bool[Tensor, "batch 1"], Bool[Tensor, "batch 1"]]:
        """Index of each completion's last token, whether that is an end token, and whether a rollout may end
        with it."""
        last = mask.int().cumsum(-1).argmax(-1, keepdim=True)
        if self._ends is None or self._ends.device != mask.device:
            self._ends = torch.tensor([*self.end_ids, *self._step_ends], device=mask.device)
        # Not torch.isin, which may sort and then waits for the device.
        same = labels.gather(-1, last) == self._ends
        ended = same[:, : len(self.end_ids)].any(-1, keepdim=True)
        return last, ended, same.any(-1, keepdim=True) if self._step_ends else ended

    def close(self) -> None:
        """Reset for the next optimizer step. Weights of a step that did not end are in no histogram."""
        counts, earlier = self._counts, self.weight_counts
        if counts is not None:  # those of a checkpoint are on the CPU
            self.weight_counts = counts if earlier is None else counts + earlier.to(counts.device)
        self._counts = None
        self._sums, self.traces = None, ()
        self._on_host = dict.fromkeys(self._host_names, 0.0)

    def take_weight_counts(self) -> Tensor | None:
        """Histogram of token weights over `WEIGHT_BINS` since the last call; outliers are in the end bins."""
        counts = self.weight_counts
        self.weight_counts = None
        return counts

    def metrics(self, values: Mapping[str, float]) -> dict[str, float]:
        """Metrics to log, from the step's sums over all ranks (by name)."""
        tokens, denominator = values["tokens"], self.divisor(values)
        metrics = {
            "train/loss": values["total"] / denominator if denominator > 0 else 0.0,
            "train/nll": values["nll"] / tokens,
            "train/tokens": tokens,
            "weights/mean": values["weight"] / tokens,
            "weights/sum": values["weight"],
            "weights/effective_sample_size": effective_sample_size(
                values["weight"], values["weight_squared"], tokens
            ),
        }
        if len(self.objective.terms) > 1 and denominator > 0:
            metrics |= {
                f"train/loss_{name}": values[f"loss_{name}"] / denominator for name in self.objective.terms
            }
        if self.objective.overlap_top_k:
            metrics |= {f"train/{name}": values[name] / tokens for name in _OVERLAP_SUMS}
        metrics |= {
            f"loss/{key}": value
            for state in self.objective.state().values()
            for key, value in state.items()
            if math.isfinite(value)
        }
        if isinstance(self.objective.rollouts, StudentRollouts):
            metrics["rollouts/tokens"] = values["rollout_tokens"]
            metrics["rollouts/truncated"] = values["truncated_rollouts"]
        if self._replays:
            metrics["rollouts/replayed_tokens"] = values["replayed_tokens"]
        if self.objective.rewarded and values["completions"] > 0:
            metrics |= _rewards(values, self.objective.samples)
        if self.objective.compares_steps:
            steps = max(1.0, values["steps"])
            metrics |= {
                "steps/count": values["steps"],
                "steps/student_value": values["student_step_value"] / steps,
                "steps/teacher_value": values["teacher_step_value"] / steps,
                "steps/weight": values["step_weight"] / steps,
                "steps/agreed": values["agreed_steps"] / steps,
            }
        return metrics

    def divisor(self, values: Mapping[str, float]) -> float:
        """What the step's loss and gradient are divided by, from the step's sums over all ranks."""
        if not self.objective.divides_by_deviation:
            return values["denominator"]
        deviation = batch_deviation(values["completions"], values["reward"], values["reward_squared"])
        return values["denominator"] * deviation

    def end_token(self, values: Mapping[str, float]) -> dict[str, float]:
        """Metrics of the end tokens among the trained tokens, from the step's sums; none without one.

        They show whether the student learns to stop: its probability of the end token behind a whole
        completion (at the temperature of the loss), and the end token's weight in the main term.
        """
        ended = values["ended_traces"]
        if ended == 0:  # all traces of the step are cut off
            return {}
        return {
            "train/end_token_probability": values["end_probability"] / ended,
            "weights/end_token": values["end_weight"] / ended,
        }


def _rewards(values: Mapping[str, float], samples: int) -> dict[str, float]:
    """Metrics of graded completions, from the step's sums."""
    completions, tokens = values["completions"], max(1.0, values["rollout_tokens"])
    found = {
        "rewards/mean": values["reward"] / completions,
        "rewards/right": values["right"] / completions,
        "rollouts/length": values["written_tokens"] / completions,
        "rollouts/truncated_share": values["truncated_rollouts"] / completions,
        "rollouts/entropy": values["entropy"] / tokens,
        "rollouts/clipped": values["clipped"] / tokens,
    }
    if samples > 1:
        found["rewards/equal_groups"] = values["equal_groups"] / values["groups"]
    return found
