"""Next reasoning steps proposed by student and teacher for the same prefix, and their values (2605.04078)."""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from distill.benchmarks.grading.graded import graded
from distill.data.batch import Batch, by_length, collate
from distill.data.seam import written_text
from distill.data.steps import check_separator, step_starts, tokens_with_text
from distill.data.trace import Example, Grader, Trace
from distill.errors import UserError
from distill.generation.decode import generate
from distill.generation.sampling import Sampling
from distill.losses.logits import label_logprobs
from distill.models.language_model import LanguageModel, ModelSource

Value = Literal["likelihood", "success"]
_TOKEN_BUDGET = 16384  # tokens per batch of prefixes, padding included


@dataclass(frozen=True)
class StepValues:
    """Values of proposed reasoning steps for a batch, repeated over all tokens of a reasoning step.

    Attributes:
        student: [batch, seq] v(a_S|s), value of the student's proposal a_S for the reasoning step's prefix s.
        teacher: [batch, seq] v(a_T|s), value of the teacher's proposal a_T.
        first: [batch, seq] true on the first token of every reasoning step.
        agreed: [batch, seq] true on such a first token if both proposals have the same tokens.
        scored: number of proposed tokens whose logprobs the teacher computed.
    """

    student: Float[Tensor, "batch seq"]
    teacher: Float[Tensor, "batch seq"]
    first: Bool[Tensor, "batch seq"]
    agreed: Bool[Tensor, "batch seq"]
    scored: int = 0

    @classmethod
    def joined(
        cls, parts: Sequence[tuple[Sequence[int], "StepValues"]], mask: Bool[Tensor, "batch seq"]
    ) -> "StepValues":
        """The values of a whole batch.

        Args:
            parts: of some of its rows: their indices and values.
            mask: of the whole batch.
        """
        student, teacher = (torch.zeros(mask.shape, device=mask.device) for _ in range(2))
        first, agreed = torch.zeros_like(mask), torch.zeros_like(mask)
        for rows, part in parts:
            width = part.student.shape[1]  # a part is padded to its own longest trace
            at = torch.tensor(rows, device=mask.device)
            for whole, own in zip(
                (student, teacher, first, agreed),
                (part.student, part.teacher, part.first, part.agreed),
                strict=True,
            ):
                whole[at, :width] = own
        return cls(student, teacher, first, agreed, sum(part.scored for _, part in parts))


@dataclass(frozen=True)
class StepProposals:
    """How next reasoning steps are proposed and valued.

    The paper compares both proposals for one prefix. Splitting at a separator and both kinds of value are
    our interpretation.

    Attributes:
        separator: a reasoning step ends with a token that contains this text.
        max_step_tokens: longest proposal, in tokens.
        temperature: sampling temperature of proposals; 0 is greedy.
        value: `likelihood`: mean logprob of the proposal's tokens under the teacher; `success`: share of the
            teacher's continuations after the proposal that end in the correct answer.
        continuations: number of continuations per proposal, for `success`.
        continuation_tokens: longest continuation, in tokens.
    """

    separator: str = "\n"
    max_step_tokens: int = 64
    temperature: float = 0.0
    value: Value = "likelihood"
    continuations: int = 4
    continuation_tokens: int = 256

    def __post_init__(self) -> None:
        if not self.separator:
            raise ValueError("proposals.separator is empty: name the text that ends a step")
        if self.value not in get_args(Value):
            raise ValueError(f"proposals.value={self.value!r} is not one of {', '.join(get_args(Value))}")
        for name in ("max_step_tokens", "continuations", "continuation_tokens"):
            if not (isinstance(getattr(self, name), int) and getattr(self, name) >= 1):
                raise ValueError(f"proposals.{name}={getattr(self, name)!r} is not a positive whole number")
        _ = self.sampling

    @property
    def sampling(self) -> Sampling:
        return Sampling(temperature=self.temperature, max_new_tokens=self.max_step_tokens)

    def check(self, student: ModelSource, grade: Grader | None) -> None:
        """Check that reasoning steps can be split and valued.

        Raises:
            UserError: no token contains the separator; or `success` without a grader.
        """
        check_separator("loss.proposals.separator", self.separator, student.tokenizer, student.name)
        if self.value == "success" and grade is None:
            raise UserError(
                "loss.proposals.value=success needs data whose answers can be graded, and these cannot: take "
                "value=likelihood, or data=gsm8k or arithmetic"
            )

    def step_ends(self, tokenizer: Any) -> tuple[int, ...]:
        """Ids of the tokens that end a reasoning step."""
        return tokens_with_text(tokenizer, self.separator)

    @torch.no_grad()
    def values(
        self,
        student: LanguageModel,
        teacher: LanguageModel,
        batch: Batch,
        *,
        grade: Grader | None = None,
        seed: int = 0,
    ) -> StepValues:
        """Let both models propose the next reasoning step wherever one begins in the batch, and value both.

        Args:
            student: the model in training; generation puts it into eval mode and back.
            teacher: proposes too, and values both proposals.
            batch: its completions are split into reasoning steps.
            grade: grades continuations, for `success`.
            seed: of sampling.
        """
        steps = self._steps(batch, student)
        rows = [(row, start) for row, starts in enumerate(steps) for start in starts]
        ids, prompts = batch.input_ids.tolist(), batch.prompt_lengths
        prefixes = [ids[row][: prompts[row] + start] for row, start in rows]
        # The same after the teacher's prompt, which may differ (`data.teacher_prompt`).
        view = batch.teacher_view
        before = [len(prompt) for prompt in view.prompts] if view is not None else prompts
        of_teacher = ids if view is None else view.input_ids.tolist()
        read = [of_teacher[row][: before[row] + start] for row, start in rows]
        examples = [batch.examples[row] for row, _ in rows]
        ends = (*student.end_ids, *self.step_ends(student.tokenizer))
        # The teacher reads both proposals: cut them to fit its context.
        rooms = [teacher.context_length - max(len(a), len(b)) for a, b in zip(prefixes, read, strict=True)]
        proposals = [
            [
                step[:room]
                for step, room in zip(_write(lm, own, self.sampling, ends, seed + number), rooms, strict=True)
            ]
            for number, (lm, own) in enumerate(((student, prefixes), (teacher, read)))
        ]
        if self.value == "likelihood":
            worth = [_likelihoods(teacher, read, written) for written in proposals]
        else:
            assert grade is not None
            judged = functools.partial(
                self._success, teacher, examples, read, prompts=[before[r] for r, _ in rows]
            )
            worth = [judged(written, grade=grade, seed=seed + 2 + n) for n, written in enumerate(proposals)]
        shape, device = batch.mask.shape, batch.mask.device
        student_values, teacher_values = (torch.zeros(shape, device=device) for _ in range(2))
        first, agreed = (torch.zeros(shape, dtype=torch.bool, device=device) for _ in range(2))
        for number, (row, start) in enumerate(rows):
            later = [other for other in steps[row] if other > start]
            begin, end = prompts[row] - 1 + start, prompts[row] - 1 + (later[0] if later else 1 << 30)
            student_values[row, begin:end] = worth[0][number]
            teacher_values[row, begin:end] = worth[1][number]
            first[row, begin] = True
            agreed[row, begin] = proposals[0][number] == proposals[1][number]
        return StepValues(
            student_values.masked_fill(~batch.mask, 0.0),
            teacher_values.masked_fill(~batch.mask, 0.0),
            first,
            agreed,
            sum(map(len, itertools.chain(*proposals))) if self.value == "likelihood" else 0,
        )

    def _steps(self, batch: Batch, lm: LanguageModel) -> list[list[int]]:
        """Where reasoning steps begin in each completion, counted from its first token."""
        ends = set(self.step_ends(lm.tokenizer))
        completions = batch.completion_labels.split(batch.mask.sum(-1).tolist())
        return [step_starts(ids.tolist(), ends) for ids in completions]

    def _success(
        self,
        teacher: LanguageModel,
        examples: Sequence[Example],
        prefixes: Sequence[list[int]],
        written: Sequence[list[int]],
        *,
        prompts: Sequence[int],
        grade: Grader,
        seed: int,
    ) -> list[float]:
        """For each proposal, the share of the teacher's continuations that end in the correct answer."""
        sampling = Sampling(temperature=1.0, max_new_tokens=self.continuation_tokens)
        texts = [[*prefix, *step] for prefix, step in zip(prefixes, written, strict=True)]
        # A proposal that ends the completion needs no continuation.
        counts = [0 if step[-1] in teacher.end_ids else self.continuations for step in written]
        going_on = [text for text, count in zip(texts, counts, strict=True) for _ in range(count)]
        behind = iter(_write(teacher, going_on, sampling, teacher.end_ids, seed))
        found = []
        for example, text, count, prompt in zip(examples, texts, counts, prompts, strict=True):
            wholes = [[*text, *next(behind)] for _ in range(count)] or [text]
            answers = [written_text(teacher.tokenizer, w[:prompt], w[prompt:]) for w in wholes]
            found.append(sum(graded(grade, example, answer).correct for answer in answers) / len(answers))
        return found


def _write(
    lm: LanguageModel, prefixes: Sequence[list[int]], sampling: Sampling, ends: Sequence[int], seed: int
) -> list[list[int]]:
    """Like `generate`, in batches of similar lengths."""
    written: list[list[int]] = [[]] * len(prefixes)
    lengths = [len(prefix) + sampling.max_new_tokens for prefix in prefixes]
    for number, rows in enumerate(by_length(lengths, _TOKEN_BUDGET)):
        drawn = (seed * 1_009 + number) % (1 << 63)  # torch's range of seeds
        part = generate(lm, [prefixes[row] for row in rows], sampling, seed=drawn, end_ids=ends)
        for row, ids in zip(rows, part, strict=True):
            written[row] = ids
    return written


def _likelihoods(
    teacher: LanguageModel, prefixes: Sequence[list[int]], written: Sequence[list[int]]
) -> list[float]:
    """Mean logprob of each proposal's tokens under the teacher."""
    example = Example("", "")
    traces = [
        Trace(example, np.asarray(prefix, dtype=np.int32), np.asarray(step, dtype=np.int32))
        for prefix, step in zip(prefixes, written, strict=True)
    ]
    found = [0.0] * len(traces)
    for rows in by_length([len(trace) for trace in traces], _TOKEN_BUDGET):
        batch = collate([traces[row] for row in rows]).to(teacher.device)
        head = teacher.completion_head(batch.input_ids, batch.mask)
        flat = label_logprobs(head, batch.labels[batch.mask])
        for row, values in zip(rows, flat.split(batch.mask.sum(-1).tolist()), strict=True):
            found[row] = float(values.mean())
    return found
