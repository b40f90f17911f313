"""Length of a run, in tokens, epochs or optimizer steps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from distill.data.trace import Trace
from distill.data.traces import scan
from distill.generation.sampling import StudentRollouts
from distill.objective.objective import Objective

_PLACES = 100  # so that the default warm-up of 5 % has five


@dataclass(frozen=True)
class Steps:
    """Number of optimizer steps of a run.

    Attributes:
        limit: maximum number of steps.
        expected: estimated number of steps; less than `limit` if the run has a token budget.
        max_tokens: token budget: completion tokens after which the run ends. The learning rate and other
            schedules then follow the share of tokens used, not of steps.
        log_every: steps between two rows of metrics.
        guessed: whether nobody knows how long the completions will be, so that `expected` is a lower end.
    """

    limit: int
    expected: int
    max_tokens: int | None = None
    log_every: int = 1
    guessed: bool = False

    @property
    def places(self) -> int:
        """Parts into which schedules divide the run; few would make a warm-up of one part, the whole rate."""
        return max(self.expected, _PLACES) if self.guessed else self.expected


@dataclass(frozen=True)
class RunLength:
    """Length of a run as configured, and its batch size.

    Attributes:
        max_tokens: completion tokens to train on; None: no token budget.
        max_steps: maximum number of optimizer steps; None: `max_tokens` or `epochs` decides.
        epochs: passes over the traces; used only if the other two are None.
        batch_size: traces per micro-batch and rank, all of a problem's completions counted.
        accumulate: micro-batches per optimizer step.
        ranks: number of training processes.
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
        """Number of optimizer steps of a run on these traces."""
        per_step = self.batch_size * self.accumulate * self.ranks
        if self.max_tokens is None:
            steps = self.max_steps or max(
                1, math.ceil(self.epochs * len(traces) * objective.samples / per_step)
            ) * (objective.num_iterations)
            return Steps(steps, steps, log_every=self.log_every)
        # A completion has at least one token, so this many steps always use up the budget.
        steps = math.ceil(self.max_tokens / per_step)
        steps = min(steps, self.max_steps or steps)
        rollouts = objective.rollouts
        guessed = isinstance(rollouts, StudentRollouts) and rollouts.fraction == 1  # traces are prompts only
        if isinstance(rollouts, StudentRollouts) and guessed:
            length = float(rollouts.max_new_tokens)
        else:
            length = int(scan(traces).completions.sum()) / len(traces)
        expected = min(steps, math.ceil(self.max_tokens / (per_step * length)))
        return Steps(steps, expected, self.max_tokens, self.log_every, guessed)
