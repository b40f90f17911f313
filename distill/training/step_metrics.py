"""What happened in an optimizer step: sums over its micro-batches and ranks, and the metrics made of them."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from distill.data.batch import Batch
from distill.generation.sampling import StudentRollouts
from distill.losses.controls import effective_sample_size
from distill.objective.objective import Objective
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
_FLOPS = ("student_flops", "teacher_flops")  # known to the host, so they come last
_STEP_SUMS = ("steps", "student_step_value", "teacher_step_value", "step_weight", "agreed_steps")


class StepMetrics:
    """Sums on the device, which the step reads once, when it ends.

    Args:
        objective: says what there is to count.
        end_ids: tokens that end a completion.

    Attributes:
        names: of the sums, in their order.
        traces: ids of the step's traces so far, on this rank.
    """

    def __init__(self, objective: Objective, end_ids: Sequence[int]) -> None:
        self.objective = objective
        self.end_ids = list(end_ids)
        terms = (f"loss_{name}" for name in objective.terms)
        self.names = (*_SUMS, *terms, *(_STEP_SUMS if objective.compares_steps else ()), *_FLOPS)
        self.traces: tuple[str, ...] = ()
        self._ends: Tensor | None = None  # on the device
        self._sums: Tensor | None = None
        self._flops = dict.fromkeys(_FLOPS, 0.0)
        self._weight_counts: Tensor | None = None

    @property
    def sums(self) -> Float[Tensor, " names"]:
        """This rank's share, float64."""
        assert self._sums is not None, "no micro-batch yet"
        return torch.cat([self._sums, self._sums.new_tensor(list(self._flops.values()))])

    def spend(self, *, student: float, teacher: float) -> None:
        """Count FLOPs of a micro-batch: the student's, and those of all models beside it."""
        self._flops["student_flops"] += student
        self._flops["teacher_flops"] += teacher

    def add(
        self, result: LossSums, batch: Batch, *, on_policy: bool, steps: StepValues | None = None
    ) -> None:
        """Count a micro-batch."""
        # By places that are known: a mask asks the device how many there are.
        where = result.mask.flatten().nonzero().squeeze(-1) if batch.places is None else batch.places
        weights = result.weights.flatten()[where].double()
        tokens = result.mask.sum()
        sums = [
            result.total.detach(),
            result.denominator,
            tokens,
            weights.sum(),
            weights.square().sum(),
            -result.logprobs.flatten()[where].double().sum(),
            *self._written(result.mask, batch.labels, tokens if on_policy else None),
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
        stacked = torch.stack([value.double() for value in sums])
        self._sums = stacked if self._sums is None else self._sums + stacked
        low, high = WEIGHT_BINS[0], WEIGHT_BINS[-1]
        counts = torch.histc(weights.clamp(low, high), len(WEIGHT_BINS) - 1, low, high)
        self._weight_counts = counts if self._weight_counts is None else self._weight_counts + counts
        self.traces += batch.names

    def _written(self, mask: Tensor, labels: Tensor, tokens: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens that the student wrote, and how many of its completions have no end; None: it wrote none."""
        if tokens is None:
            none = mask.new_zeros((), dtype=torch.float64)
            return none, none
        last = mask.int().cumsum(-1).argmax(-1, keepdim=True)
        if self._ends is None or self._ends.device != mask.device:
            self._ends = torch.tensor(self.end_ids, device=mask.device)
        return tokens, (~torch.isin(labels.gather(-1, last), self._ends)).sum()

    def close(self) -> None:
        """Begin the next step."""
        self._sums, self.traces = None, ()
        self._flops = dict.fromkeys(_FLOPS, 0.0)

    def take_weight_counts(self) -> np.ndarray:
        """How many tokens had a weight in each of `WEIGHT_BINS` (the last takes what is above) since last
        asked."""
        counts = self._weight_counts
        self._weight_counts = None
        return (
            np.zeros(len(WEIGHT_BINS) - 1, dtype=np.int64) if counts is None else counts.long().cpu().numpy()
        )

    def metrics(self, values: Mapping[str, float]) -> dict[str, float]:
        """What is logged of the step's sums, by their names, over all ranks."""
        tokens, denominator = values["tokens"], values["denominator"]
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
        metrics |= {
            f"loss/{key}": value
            for state in self.objective.state().values()
            for key, value in state.items()
            if math.isfinite(value)
        }
        if isinstance(self.objective.rollouts, StudentRollouts):
            metrics["rollouts/tokens"] = values["rollout_tokens"]
            metrics["rollouts/truncated"] = values["truncated_rollouts"]
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
