"""Rewards of the student's completions from a grader, in groups of one problem (2402.03300)."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from distill.benchmarks.grading.graded import NAME_A_GRADER, graded
from distill.data.trace import Example, Grader
from distill.errors import UserError

_GRADERS = 8  # threads: a grader may wait for a process of its own


@dataclass(frozen=True)
class Rewarded:
    """Rewards of a batch of completions, with the groups one after the other.

    Attributes:
        values: [completions] R.
        right: [completions] whether the answer is right.
        truncated: [completions] whether the completion has no end.
        lengths: [completions] tokens.
        samples: completions in a group.
    """

    values: np.ndarray
    right: np.ndarray
    truncated: np.ndarray
    lengths: np.ndarray
    samples: int

    @cached_property
    def groups(self) -> np.ndarray:
        """[groups, samples] R."""
        return self.values.reshape(-1, self.samples)

    @cached_property
    def equal(self) -> np.ndarray:
        """[groups] whether all completions of a group have the same reward, so that none has an advantage."""
        return self.groups.max(-1) == self.groups.min(-1)

    @cached_property
    def signals(self) -> Mapping[str, np.ndarray]:
        """[completions] the signals that weights compare, by name (`distill.losses.signals`)."""
        mean = self.groups.mean(-1)
        deviation = self.groups.std(-1, ddof=1) if self.samples > 1 else np.zeros_like(mean)
        # Of equal numbers the computed mean may be another, and the deviation not zero.
        mean, deviation = (
            np.where(self.equal, exact, found)
            for exact, found in ((self.groups[:, 0], mean), (0.0, deviation))
        )
        return {
            "reward": self.values,
            "group_reward": mean.repeat(self.samples),
            "group_deviation": deviation.repeat(self.samples),
        }

    @property
    def sums(self) -> dict[str, float]:
        """Sums to log, by name."""
        return {
            "completions": float(len(self.values)),
            "reward": float(self.values.sum()),
            "reward_squared": float(np.square(self.values).sum()),
            "right": float(self.right.sum()),
            "groups": float(len(self.groups)),
            "equal_groups": float(self.equal.sum()),
            "written_tokens": float(self.lengths.sum()),
        }


@dataclass(frozen=True)
class Rewards:
    """How the student's completions are rewarded: R = 1 for a right answer, else 0, + format · (an answer).

    Attributes:
        format: reward of a completion in which the grader finds an answer, right or wrong.
        mask_truncated: whether completions without an end are left out of the loss. Their rewards count
            within their groups either way.
    """

    format: float = 0.0
    mask_truncated: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.format, bool) or not isinstance(self.format, int | float) or not self.format >= 0:
            raise ValueError(f"rewards.format={self.format!r} is not a number, at least 0")
        if not isinstance(self.mask_truncated, bool):
            raise ValueError(f"rewards.mask_truncated={self.mask_truncated!r} is neither true nor false")

    def check(self, grade: Grader | None) -> None:
        """Check that there is a grader.

        Raises:
            UserError: there is none.
        """
        if grade is None:
            raise UserError(
                f"loss.rewards: answers are graded, and this data set has no grader: name one, "
                f"{NAME_A_GRADER}, or take data=gsm8k, math or arithmetic"
            )

    def of(
        self,
        grade: Grader,
        examples: Sequence[Example],
        texts: Sequence[str],
        *,
        lengths: Sequence[int],
        truncated: Sequence[bool],
        samples: int,
    ) -> Rewarded:
        """Grade completions and reward them.

        Args:
            grade: grades answers.
            examples: the problem of each completion.
            texts: the completions, with their thoughts.
            lengths: tokens of each completion.
            truncated: whether each completion has no end.
            samples: completions of a problem, which stand one after the other.
        """
        with ThreadPoolExecutor(_GRADERS, thread_name_prefix="reward") as pool:
            verdicts = list(pool.map(lambda pair: graded(grade, *pair), zip(examples, texts, strict=True)))
        right = np.array([verdict.correct for verdict in verdicts])
        answered = np.array([verdict.answer is not None for verdict in verdicts])
        return Rewarded(
            right + self.format * answered,
            right,
            np.array(truncated),
            np.array(lengths),
            samples,
        )


def check_golds(examples: Iterable[Example]) -> None:
    """Check that every problem has what its answers are graded by.

    Raises:
        UserError: a problem has no gold answer; names the first and says how many there are.
    """
    without = [example for example in examples if example.gold is None and not example.details]
    if without:
        raise UserError(
            f"problem {without[0].place} has no gold answer, which grading needs ({len(without):,} in all): "
            f"name its field (data.fields.gold=<field>), or leave such problems out of the data"
        )
