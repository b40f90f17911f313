"""How many groups of rollouts have right and wrong answers, before training on rewards."""

from pathlib import Path

import numpy as np
import torch

from distill.data.trace import Trace
from distill.errors import UserError
from distill.generation.decode import generate
from distill.io.progress import progress_bar
from distill.objective.rewards import Rewarded, check_golds
from distill.training.rollouts import repeated, reward
from distill.training.setup import Setup

_FEW = 0.2  # share of usable groups below which distillation should come first


def usable_groups(setup: Setup) -> str | None:
    """A sentence about the groups that the untrained student writes to some of the problems.

    Only a group with right and wrong answers has advantages. A rewarded loss learns from no other.

    Returns:
        None if the objective compares no rewards.

    Raises:
        UserError: a problem has no gold answer, or the data have no grader.
    """
    objective, count = setup.objective, setup.config["estimate"].get("groups")
    if not objective.compares_rewards or objective.rewards is None:
        return None
    objective.rewards.check(setup.recipe.grade)
    not_measured = "how many groups have right and wrong answers was not measured"
    if count is None:
        return f"{not_measured}: set estimate.groups=16"
    if setup.compute.device != "cpu" and not torch.cuda.is_available():
        return f"{not_measured}: there is no GPU here"
    if not Path(setup.student.location).exists():
        return f"{not_measured}: {setup.student.name} is not on this disk"
    try:
        found = _write(setup, count)
    except UserError as error:
        return f"{not_measured}: {error}"
    return _in_words(found, objective.samples)


def _write(setup: Setup, count: int) -> list[Rewarded]:
    """Rewards of the student's rollouts to so many problems, one group each."""
    objective, recipe = setup.objective, setup.recipe
    rollouts, rewards, grade = objective.rollouts, objective.rewards, recipe.grade
    assert not isinstance(rollouts, str)
    assert rewards is not None
    assert grade is not None
    examples = recipe.source()
    check_golds(examples)
    chosen = np.random.default_rng(setup.seed).permutation(len(examples))[:count]
    student = setup.student.load()
    student.model.to(setup.compute.device)
    found, size = [], setup.length.batch_size // rollouts.samples  # groups that are written together
    bar = progress_bar(total=len(chosen), description="student writes rollouts", unit="group")
    for first in range(0, len(chosen), size):
        numbers = repeated(chosen[first : first + size].tolist(), rollouts.samples)
        prompts = [recipe.student_prompt.encode(student.tokenizer, examples[number]) for number in numbers]
        written = generate(
            student, [prompt.tolist() for prompt in prompts], rollouts.sampling, seed=setup.seed + first
        )
        traces = [
            Trace(examples[number], prompt, np.asarray(ids, dtype=np.int32))
            for number, prompt, ids in zip(numbers, prompts, written, strict=True)
        ]
        found.append(reward(rewards, grade, traces, student, rollouts.samples))
        bar.update(len(found[-1].groups))
    bar.close()
    return found


def _in_words(batches: list[Rewarded], samples: int) -> str:
    right = np.concatenate([batch.right.reshape(-1, samples) for batch in batches])
    truncated = np.concatenate([batch.truncated for batch in batches])
    groups = len(right)
    usable = groups - sum(int(batch.equal.sum()) for batch in batches)
    all_right, all_wrong = int(right.all(-1).sum()), int((~right).all(-1).sum())
    text = (
        f"usable groups: {usable} of {groups} ({usable / groups:.0%}) of {samples} answers by the untrained "
        f"student have different rewards; {all_right} are all right, {all_wrong} all wrong; "
        f"{right.mean():.1%} of the answers are right, {truncated.mean():.1%} have no end"
    )
    if usable < _FEW * groups:
        remedy = "distil first, or take easier problems" if all_wrong >= all_right else "take harder problems"
        text += f". The others teach nothing: {remedy}"
    return text
