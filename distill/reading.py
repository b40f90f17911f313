"""What the teacher reads in a trace's place: another prompt, or the same text in tokens of its own."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill.alignment import Alignment, align, shared_tokens, spell
from distill.errors import UserError
from distill.models import ModelSource, vocabulary_mismatch
from distill.progress import progress_bar
from distill.traces import Example, Reading, Trace, encode_prompt


@dataclass(frozen=True)
class Reader:
    """Makes the teacher's reading of what the student learns from, or writes.

    Attributes:
        student: whose tokens traces are made of.
        teacher: who reads.
        prompt: template of the teacher's prompt, with `{problem}`.
        informed: whether the teacher sees the problem's worked solution, which the template then has as
            `{solution}`.
    """

    student: ModelSource
    teacher: ModelSource
    prompt: str
    informed: bool = False

    @property
    def foreign(self) -> bool:
        """Whether the teacher has tokens of its own."""
        return vocabulary_mismatch(self.student, self.teacher) is not None

    @property
    def needed(self) -> bool:
        """Whether the teacher reads anything but the student's own tokens."""
        return self.informed or self.foreign

    def prompt_ids(self, example: Example) -> np.ndarray:
        """The teacher's prompt, through its own chat template.

        Raises:
            UserError: the teacher is to see a solution, and the problem comes with none.
        """
        solution = None
        if self.informed:
            if not (example.completion or "").strip():
                raise UserError(
                    f"problem {example.place} comes without a worked solution, which the teacher is to be "
                    f"shown: name its field (data.fields.completion=<field>), or take a loss with "
                    f"teacher_sees=prompt"
                )
            solution = example.completion
        tokenizer = self.teacher.tokenizer if self.foreign else self.student.tokenizer
        return encode_prompt(tokenizer, example, self.prompt, solution=solution)

    def read(self, prompt_ids: np.ndarray, completion_ids: Sequence[int]) -> Reading:
        """The teacher's reading of a completion.

        Args:
            prompt_ids: of `prompt_ids`.
            completion_ids: of the student's tokens; without an end token where it was cut off.
        """
        ids = [int(token) for token in completion_ids]
        if not self.foreign:
            return Reading(prompt_ids, np.asarray(ids, dtype=np.int32))
        ended = bool(ids) and ids[-1] in self.student.end_ids
        mine = spell(self.student.tokenizer, ids[:-1] if ended else ids)
        theirs = self.teacher.tokenizer(mine.text, add_special_tokens=False).input_ids
        alignment = align(mine, spell(self.teacher.tokenizer, theirs))
        if ended:
            alignment = _with_end(alignment, len(ids) - 1, len(theirs))
            theirs = [*theirs, self.teacher.end_ids[0]]
        return Reading(prompt_ids, np.asarray(theirs, dtype=np.int32), alignment)

    def read_all(self, traces: Sequence[Trace], rollout: int = 0) -> None:
        """Give every trace its reading.

        Args:
            traces: of the student's tokens.
            rollout: the longest completion that the student may write in the trace's place.

        Raises:
            UserError: one would be longer than the teacher's context.
        """
        context = self.teacher.context_length
        with progress_bar(total=len(traces), description="teacher reads traces", unit="trace") as bar:
            for trace in traces:
                reading = self.read(self.prompt_ids(trace.example), trace.completion_ids.tolist())
                if max(len(reading), len(reading.prompt_ids) + rollout) > context:
                    own = (
                        f"with {rollout} tokens that the student may write" if rollout else "with its tokens"
                    )
                    raise UserError(
                        f"problem {trace.example.place} does not fit into the context of the teacher "
                        f"{self.teacher.name} ({context}): its prompt has {len(reading.prompt_ids)} tokens, "
                        f"and {own} it is longer; take shorter traces (data.max_length=<tokens> "
                        f"data.overlong=drop) or data.max_new_tokens=<fewer>"
                    )
                trace.reading = reading
                bar.update(1)

    def shared_ids(self) -> np.ndarray:
        """[2, shared] int64: ids that mean the same to student (first row) and teacher, their end tokens
        included."""
        if not self.foreign:
            size = max(self.student.tokenizer.get_vocab().values()) + 1
            return np.stack([np.arange(size), np.arange(size)])
        ends = np.asarray([[self.student.end_ids[0]], [self.teacher.end_ids[0]]], dtype=np.int64)
        return np.concatenate([shared_tokens(self.student.tokenizer, self.teacher.tokenizer), ends], axis=1)


def as_read(trace: Trace) -> Trace:
    """The trace as the teacher reads it, for scoring: token for token the student's completion."""
    reading = trace.reading
    if reading is None or reading.alignment is not None:
        return trace
    return Trace(trace.example, reading.prompt_ids, reading.completion_ids)


def whole_reading(trace: Trace) -> Trace:
    """The trace as the teacher reads it, also where its tokens are others than the student's."""
    reading = trace.reading
    return trace if reading is None else Trace(trace.example, reading.prompt_ids, reading.completion_ids)


def _with_end(alignment: Alignment, student_at: int, teacher_at: int) -> Alignment:
    """The end tokens are compared too, where the texts agree as far as that."""
    kept = alignment.student_at < student_at
    return Alignment(
        np.append(alignment.student_at[kept], student_at),
        np.append(alignment.teacher_at[kept], teacher_at),
        np.append(alignment.same_token[kept], True),
    )
