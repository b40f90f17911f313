"""How long a run is, and how many optimizer steps that makes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from distill.data.trace import Trace
from distill.generation.sampling import StudentRollouts
from distill.objective.objective import Objective


@dataclass(frozen=True)
class Steps:
    """Optimizer steps of a run.

    Attributes:
        limit: at most.
        expected: as far as one can tell before; fewer than `limit` where tokens are the length.
        max_tokens: completion tokens after which the run ends; the learning rate and what else goes by the
            share of training done follow them then.
        log_every: steps between two rows of metrics.
    """

    limit: int
    expected: int
    max_tokens: int | None = None
    log_every: int = 1


@dataclass(frozen=True)
class RunLength:
    """A run's length as it is asked for, and the size of its batches.

    Attributes:
        max_tokens: completion tokens to train on; None: as `max_steps` or `epochs` say.
        max_steps: optimizer steps; None: as the others say.
        epochs: passes over the traces; counts where the others are None.
        batch_size: traces a micro-batch and process.
        accumulate: micro-batches an optimizer step.
        ranks: processes that train together.
        log_every: optimizer steps between two rows of metrics.
    """

    max_tokens: int | None
    max_steps: int | None
    epochs: float
    batch_size: int
    accumulate: int
    ranks: int
    log_every: int = 1

    def steps(self, traces: Sequence[Trace], objective: Objective) -> Steps:
        """Optimizer steps of a run on these traces."""
        per_step = self.batch_size * self.accumulate * self.ranks
        if self.max_tokens is None:
            steps = self.max_steps or max(1, math.ceil(self.epochs * len(traces) / per_step))
            return Steps(steps, steps, log_every=self.log_every)
        # A completion has at least one token, so this many steps suffice whatever the student writes.
        steps = math.ceil(self.max_tokens / per_step)
        steps = min(steps, self.max_steps or steps)
        rollouts = objective.rollouts
        if isinstance(rollouts, StudentRollouts) and rollouts.fraction == 1:  # the traces are prompts alone
            length = float(rollouts.max_new_tokens)
        else:
            length = sum(len(trace.completion_ids) for trace in traces) / len(traces)
        expected = min(steps, math.ceil(self.max_tokens / (per_step * length)))
        return Steps(steps, expected, self.max_tokens, self.log_every)
