"""What a teacher's body says of a batch, at the student's completion tokens."""

from distill.data.batch import Batch, BatchTeacherView
from distill.models.head import Head
from distill.models.language_model import LanguageModel


def read_batch(teacher: LanguageModel, batch: Batch) -> Head:
    """The teacher's head at the student's completion positions, of the tokens that it reads."""
    view = batch.teacher_view
    if view is None:
        return teacher.completion_head(batch.input_ids, batch.mask, batch.layout)
    return at_students_tokens(
        teacher.completion_head(view.input_ids, view.mask, view.layout), view, batch.tokens
    )


def at_students_tokens(head: Head, view: BatchTeacherView, tokens: int) -> Head:
    """A head at the teacher's tokens, moved to the student's; zero where those have no counterpart.

    Args:
        head: of the completion tokens that the teacher reads.
        view: which of them are comparable.
        tokens: the student's completion tokens.
    """
    if view.student_at is None or view.teacher_at is None:
        return head
    hidden = head.hidden.new_zeros(tokens, head.hidden.shape[-1])
    hidden[view.student_at] = head.hidden[view.teacher_at]
    return Head(hidden, head.weight)
