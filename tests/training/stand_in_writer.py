"""What stands in for the student's writing in tests."""

import hashlib
from collections.abc import Sequence
from typing import Any

from distill.generation.sampling import Sampling
from distill.models.language_model import LanguageModel
from distill.tiny import task

SAMPLES = 4


class Writer:
    """Stands in for the student's writing: of each problem's completions some are right, some have no end."""

    def __init__(self) -> None:
        self.prompts: list[list[str]] = []

    def __call__(
        self,
        lm: LanguageModel,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        seed: int,
        **options: Any,
    ) -> list[list[int]]:
        problems = [lm.tokenizer.decode(prompt) for prompt in prompts]
        self.prompts.append(problems)
        return [self.written(lm, problem, row % SAMPLES) for row, problem in enumerate(problems)]

    def written(self, lm: LanguageModel, problem: str, number: int) -> list[int]:
        draw = hashlib.blake2b(f"{problem}{number}".encode()).digest()[0]
        right = task.write_solution(problem, "single")
        text = right if draw % 3 else right[:-1] + str((int(right[-1]) + 1) % 10)
        ids = lm.tokenizer(text, add_special_tokens=False).input_ids
        return ids[:3] if draw % 5 == 4 else [*ids, lm.end_ids[0]]
