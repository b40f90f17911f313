"""Replay of the data's traces: rollouts that begin with a trace's first reasoning steps (2607.04763)."""

import random
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np

from distill.data.batch import Batch
from distill.data.steps import check_separator, step_starts, tokens_with_text
from distill.errors import UserError
from distill.generation.sampling import StudentRollouts
from distill.models.language_model import ModelSource
from distill.teacher.retokenize import Retokenizer


def check_replay(rollouts: StudentRollouts, student: ModelSource, reader: Retokenizer | None) -> None:
    """Check that traces can be replayed.

    Args:
        rollouts: of the objective.
        student: the model that goes on.
        reader: makes the teacher's view of the student's completions; None: no teacher reads them.

    Raises:
        UserError: no token ends a step, or the teacher reads other tokens.
    """
    if not rollouts.replays:
        return
    check_separator("loss.rollouts.step_separator", rollouts.step_separator, student.tokenizer, student.name)
    if reader is not None and reader.foreign:
        raise UserError(
            f"loss.rollouts.replay_decay={rollouts.replay_decay}: a rollout goes on in the middle of a "
            f"trace, which the teacher {reader.teacher.name} would read in tokens of its own: take a teacher "
            f"of the student's family, or loss.rollouts.replay_decay=null"
        )


def step_ends(rollouts: StudentRollouts | str, tokenizer: Any) -> tuple[int, ...]:
    """Tokens that end a step, if traces are replayed; otherwise none."""
    if isinstance(rollouts, str) or not rollouts.replays:
        return ()
    return tokens_with_text(tokenizer, rollouts.step_separator)


def replayed(batch: Batch, rollouts: StudentRollouts, ends: Collection[int], seed: int) -> list[list[int]]:
    """The beginning of its trace behind which each completion starts; empty without replay.

    A trace of K steps has K beginnings, of 0 to K - 1 steps. The one of t steps is drawn with a probability
    proportional to κ^t, κ being `replay_decay`.

    Args:
        batch: traces of the data.
        rollouts: of the objective, with `samples` completions of each trace.
        ends: tokens that end a step, of `step_ends`.
        seed: of this batch and rank.
    """
    traces = batch.completion_labels.split(batch.mask.sum(-1).tolist())
    found = []
    for row, trace in enumerate(traces):
        ids = trace.tolist()
        starts = step_starts(ids, ends)
        for number in range(rollouts.samples):
            cut = 0
            if rollouts.replay_decay is not None:
                draw = random.Random(f"replay {seed} {row} {number}")
                (cut,) = draw.choices(starts, [rollouts.replay_decay**t for t in range(len(starts))])
            found.append(ids[:cut])
    return found


def behind(prompts: Iterable[np.ndarray], begun: Iterable[list[int]]) -> list[np.ndarray]:
    """The teacher's prompts, each with the beginning of a completion behind it."""
    return [
        np.concatenate([prompt, np.asarray(ids, dtype=np.int32)])
        for prompt, ids in zip(prompts, begun, strict=True)
    ]
