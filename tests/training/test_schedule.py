"""Tests of the learning rate schedule against its formula at chosen steps."""

import math

import pytest

from distill.training.schedule import Schedule


def test_a_warmup_over_four_steps_takes_a_quarter_more_each() -> None:
    schedule = Schedule(warmup_ratio=0.4, decay="constant")
    assert [schedule.factor(step, 10) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("least", [0.0, 0.1, 1.0])
def test_the_cosine_falls_from_one_to_the_least_ratio(least: float) -> None:
    schedule = Schedule(warmup_ratio=0.2, min_lr_ratio=least)
    found = [schedule.factor(step, 10) for step in (2, 4, 6, 8, 10, 11)]
    shares = [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]  # of the eight steps behind the warmup
    cosines = [(1 + math.cos(math.pi * share)) / 2 for share in shares]
    assert found == pytest.approx([least * (1 - cosine) + cosine for cosine in cosines])
