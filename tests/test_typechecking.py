"""Tests that types of calls are checked in tests, in modules on tensors and in those on texts."""

from typing import Any

import pytest
import torch
import typechecking
from jaxtyping import TypeCheckError

from distill.benchmarks.grading import answers
from distill.losses import divergence


def test_a_call_with_another_type_or_shape_raises() -> None:
    text: Any = 5
    with pytest.raises(TypeCheckError):
        answers.number(text)
    wrong = torch.zeros(2, 3), torch.zeros(5, dtype=torch.long)
    with pytest.raises(TypeCheckError):
        divergence.cross_entropy(*wrong)
    typechecking.check_types(False)
    with pytest.raises(RuntimeError, match="Size does not match"):  # torch's own
        divergence.cross_entropy(*wrong)
