"""Who writes the student's rollouts: the model in training itself, or a copy of it in vLLM."""

import os
from collections.abc import Sequence

import numpy as np

from distill.errors import UserError
from distill.generation.decode import generate
from distill.generation.engine import Request, request_seed
from distill.generation.engines import VllmEngine
from distill.generation.sampling import Sampling, StudentRollouts
from distill.models.flops import UNKNOWN, cost_of, writing
from distill.models.language_model import LanguageModel
from distill.models.lazy import LazyModel
from distill.models.lora import is_adapted


class StudentWriter:
    """Writes completions as the student is now.

    With `engine=vllm`, vLLM runs in this process, so that weights go from tensor to tensor: nothing is
    written to a disk, nothing is sent.

    Args:
        student: the model in training.
        rollouts: how it writes.

    Raises:
        UserError: vLLM is not installed, or cannot write for this student.
    """

    def __init__(self, student: LanguageModel, rollouts: StudentRollouts) -> None:
        self.student = student
        self._engine: VllmEngine | None = None
        self._weights_of: int | None = None
        self.uncounted_flops = 0.0
        if rollouts.engine == "hf":
            return
        if is_adapted(student.model):
            raise UserError(
                "loss.rollouts.engine=vllm takes a student's whole weights, and model.lora trains others "
                "beside them: take loss.rollouts.engine=hf"
            )
        # The worker in this process, where its weights can be reached; read by vLLM when it starts.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        model = LazyModel(student.source, str(student.device))
        self._engine = VllmEngine(model, key="loss.rollouts.engine", **rollouts.engine_options)
        self._engine.check()
        try:
            self._cost = cost_of(student.model, student.source.name, student.vocab_size)
        except UserError:
            self._cost = UNKNOWN

    def write(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, seed: int, step: int
    ) -> list[list[int]]:
        """Completions, token ids, with the end token where one was written.

        Args:
            prompts: token ids.
            sampling: how tokens are drawn.
            seed: of this batch.
            step: optimizer steps that the student has done: its weights go over once for each.
        """
        if self._engine is None:
            return generate(self.student, prompts, sampling, seed=seed)
        if self._weights_of != step:
            self._engine.take_weights(self.student.model.named_parameters())
            self._weights_of = step
        requests = [
            Request(np.asarray(prompt, dtype=np.int32), (), request_seed(seed, "", row))
            for row, prompt in enumerate(prompts)
        ]
        written: list[list[int]] = [[] for _ in prompts]
        for row, one in self._engine.write(requests, sampling):
            assert one.ids is not None
            written[row] = one.ids.tolist()
        # No hook sees vLLM's own products.
        self.uncounted_flops += self._cost.forward(
            writing([len(prompt) for prompt in prompts], [max(1, len(ids)) for ids in written])
        )
        return written

    def take_uncounted_flops(self) -> float:
        """FLOPs of completions that were written outside the student's own passes, since last asked."""
        found, self.uncounted_flops = self.uncounted_flops, 0.0
        return found
