"""The teacher's view of a trace: with another prompt, or retokenized with the teacher's tokenizer."""

import functools
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from distill.data.alignment import (
    Alignment,
    align,
    beginning_alike,
    shared_tokens,
    spell,
    spread_over_spans,
)
from distill.data.prompt import Prompt
from distill.data.seam import prompt_end, same_opening
from distill.data.thoughts import thought_end
from distill.data.tokenizers import tokenizer_size
from distill.data.trace import Example, TeacherView, Trace
from distill.data.traces import Traces
from distill.errors import UserError
from distill.io.progress import progress_bar
from distill.io.sequences import Lazy, Spool, pack, unpack
from distill.models.language_model import ModelSource, vocabulary_mismatch

_SPELLED = 100  # traces to check that the teacher's tokenizer preserves the text


@dataclass(frozen=True)
class Retokenizer:
    """Makes the teacher's view of traces and rollouts.

    Attributes:
        student: model whose tokenizer the traces use.
        teacher: model that reads the traces.
        prompt: the teacher's prompt.
        own_prompt: whether it differs from the student's (`data.teacher_prompt`). The teacher then reads it
            in its own chat template, as it does when it writes (`python -m distill.generate`).
    """

    student: ModelSource
    teacher: ModelSource
    prompt: Prompt
    own_prompt: bool = False

    @functools.cached_property  # comparing vocabularies is slow, and needed for every trace
    def foreign(self) -> bool:
        """Whether the teacher's vocabulary differs from the student's."""
        return vocabulary_mismatch(self.student, self.teacher) is not None

    @property
    def needed(self) -> bool:
        """Whether the teacher's view differs from the student's trace."""
        return self.own_prompt or self.prompt.shows_solution or self.foreign

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, with its chat template, of the teacher's prompt: the teacher's if its prompt or its
        vocabulary differs, else the student's."""
        return (self.teacher if self.own_prompt or self.foreign else self.student).tokenizer

    def prompt_ids(self, example: Example) -> np.ndarray:
        """Token ids of the teacher's prompt.

        Raises:
            UserError: the teacher must see a worked solution, but the problem has none.
        """
        self.prompt.check(example)
        return self.prompt.encode(self.tokenizer, example)

    def _prompt_of(self, trace: Trace, own: np.ndarray) -> np.ndarray:
        """Token ids of the teacher's prompt, with the thought's opening if the student's has it.

        Args:
            trace: the trace.
            own: the student's prompt, without tokens of the completion that are not learned.
        """
        begun = thought_end(prompt_end(self.student.tokenizer, own))
        return same_opening(self.tokenizer, self.prompt_ids(trace.example), begun)

    def view(self, trace: Trace) -> TeacherView:
        """The teacher's view of a trace, not truncated.

        Raises:
            UserError: as `prompt_ids`; or the completion's first tokens are only context, and the teacher's
                vocabulary differs.
        """
        count = trace.example.recorded.learn_from if trace.example.recorded else 0
        if self.foreign and count:
            raise UserError(
                f"trace {trace.example.place} begins with tokens that are not learned, which a teacher with "
                f"tokens of its own cannot be shown: take a teacher of the student's family"
            )
        # Such tokens are the end of the student's prompt.
        at = len(trace.prompt_ids) - count
        prompt_ids = np.concatenate([self._prompt_of(trace, trace.prompt_ids[:at]), trace.prompt_ids[at:]])
        return self._read(prompt_ids, trace.completion_ids.tolist())

    def read(self, prompt_ids: np.ndarray, completion_ids: Sequence[int]) -> TeacherView:
        """The teacher's view of a completion, truncated to its context.

        Args:
            prompt_ids: from `prompt_ids`.
            completion_ids: in the student's tokens; without an end token if the completion is truncated.
        """
        whole = self._read(prompt_ids, completion_ids)
        room, alignment = self.room(prompt_ids), whole.alignment
        if alignment is None or len(whole.completion_ids) <= room:
            return whole
        # A rollout's length is limited in student tokens; the same text may take more teacher tokens.
        kept = alignment.teacher_at < room
        columns = (alignment.student_at[kept], alignment.teacher_at[kept], alignment.same_token[kept])
        return TeacherView(prompt_ids, whole.completion_ids[:room], Alignment(*columns))

    def room(self, prompt_ids: np.ndarray) -> int:
        """Number of teacher tokens left in the teacher's context after a prompt."""
        return self.teacher.context_length - len(prompt_ids)

    def _read(self, prompt_ids: np.ndarray, completion_ids: Sequence[int]) -> TeacherView:
        ids = [int(token) for token in completion_ids]
        if not self.foreign:
            return TeacherView(prompt_ids, np.asarray(ids, dtype=np.int32))
        ended = bool(ids) and ids[-1] in self.student.end_ids
        mine = spell(self.student.tokenizer, ids[:-1] if ended else ids)
        theirs = self.teacher.tokenizer(mine.text, add_special_tokens=False).input_ids
        spelled = beginning_alike(spell(self.teacher.tokenizer, theirs), mine)
        alignment = align(mine, spelled)
        pairs = zip(alignment.student_at.tolist(), alignment.teacher_at.tolist(), strict=True)
        named = np.asarray([self._names.get(ids[s]) == theirs[t] for s, t in pairs], dtype=bool)
        alignment = replace(alignment, same_token=alignment.same_token & named)
        if ended:
            if spelled.text == mine.text:
                alignment = _with_end(alignment, len(ids) - 1, len(theirs))
            theirs = [*theirs, self.teacher.end_ids[0]]
        return TeacherView(prompt_ids, np.asarray(theirs, dtype=np.int32), alignment)

    def read_all(
        self,
        traces: Sequence[Trace],
        rollout: int = 0,
        *,
        overlong: Literal["error", "drop"] = "error",
        say: Callable[[str], None] = print,
        folder: Path | None = None,
    ) -> Traces:
        """The traces with the teacher's view of each, which is made once and read from a file.

        Args:
            traces: in the student's tokens.
            rollout: longest rollout of the student. If the teacher's context leaves less room (`room`),
                rollouts will be shorter, which is reported.
            overlong: `error` raises for a trace that exceeds the teacher's context, `drop` leaves it out.
            say: reports traces left out and shortened rollouts.
            folder: of the file, which ends with the process.

        Returns:
            The traces that fit into the teacher's context.

        Raises:
            UserError: the teacher's tokenizer does not preserve the text, or a trace exceeds the teacher's
                context.
        """
        self._check_spelling(traces)
        context, fitting = self.teacher.context_length, array("q")
        views, least = Spool(folder), self.teacher.context_length
        with progress_bar(total=len(traces), description="teacher reads traces", unit="trace") as bar:
            for place, trace in enumerate(traces):
                view = self.view(trace)
                if len(view) <= context:
                    views.append(_block(view))
                    least = min(least, self.room(view.prompt_ids))
                    fitting.append(place)
                elif overlong == "error":
                    raise UserError(
                        f"problem {trace.example.place} does not fit into the context of the teacher "
                        f"{self.teacher.name} ({context}): as it reads it, the prompt has "
                        f"{len(view.prompt_ids)} tokens and its completion {len(view.completion_ids)}; "
                        f"leave such problems out with data.overlong=drop"
                    )
                bar.update(1)
        if not fitting:
            raise UserError(
                f"none of {len(traces)} problems fits into the context of the teacher {self.teacher.name} "
                f"({context}), with its prompt and a completion: choose another teacher, or shorter problems"
            )
        if rollout > least and not self.foreign:
            say(
                f"the context of the teacher {self.teacher.name} ({context}) leaves room for rollouts of "
                f"{least} tokens where its prompt is longest, not of {rollout}"
            )
        if len(fitting) < len(traces):
            say(
                f"{len(traces) - len(fitting)} of {len(traces)} problems do not fit into the teacher's "
                f"context of {context} tokens and are left out"
            )
        read = Lazy(len(views), lambda place: _view(views[place]))
        found = Traces.of(traces).take(fitting)
        return found.changed(lambda place, trace: replace(trace, teacher_view=read[place]), read)

    def _check_spelling(self, traces: Sequence[Trace]) -> None:
        """Check that the teacher's tokenizer preserves the text of most traces."""
        if not self.foreign:
            return
        texts = [(trace.example.completion or trace.example.problem).strip() for trace in traces[:_SPELLED]]
        read = [
            spell(
                self.teacher.tokenizer, self.teacher.tokenizer(text, add_special_tokens=False).input_ids
            ).text
            for text in texts
        ]
        lost = [(text, own.strip()) for text, own in zip(texts, read, strict=True) if own.strip() != text]
        if len(lost) > len(texts) / 2:
            text, own = lost[0]
            at = next((i for i, (a, b) in enumerate(zip(text, own, strict=False)) if a != b), len(own))
            shown = slice(max(0, at - 20), at + 20)
            raise UserError(
                f"the tokenizer of the teacher {self.teacher.name} does not preserve this data: it turns "
                f"{text[shown]!r} into {own[shown]!r}, and after that nothing can be compared; choose "
                f"another teacher"
            )

    def shared_ids(self) -> np.ndarray:
        """[2, shared] int64: ids of the shared tokens, the student's in the first row, the teacher's in the
        second; end tokens are included."""
        if not self.foreign:
            ids = np.arange(tokenizer_size(self.student.tokenizer))
            return np.stack([ids, ids])
        ends = self.student.end_ids[0], self.teacher.end_ids[0]
        pairs = [*(pair for pair in self._names.items() if pair[0] != ends[0] and pair[1] != ends[1]), ends]
        return np.asarray(pairs, dtype=np.int64).T

    @functools.cached_property
    def _names(self) -> dict[int, int]:
        """Student id to teacher id of the shared tokens."""
        mine, theirs = shared_tokens(self.student.tokenizer, self.teacher.tokenizer).tolist()
        return dict(zip(mine, theirs, strict=True))


def spread_logprobs(logprobs: np.ndarray, trace: Trace) -> np.ndarray:
    """[tokens] the teacher's log-probs at the student's tokens.

    If the teacher has another tokenizer, the log-prob of each span of text is spread evenly over the
    student's tokens in it, and is 0 at tokens in no span (`distill.data.alignment.spans`).

    Args:
        logprobs: of the tokens of `teacher_trace(trace)`.
        trace: the student's.
    """
    view = trace.teacher_view
    if view is None or view.alignment is None:
        return logprobs
    return spread_over_spans(logprobs, view.alignment, len(trace.completion_ids))


def teacher_trace(trace: Trace) -> Trace:
    """The trace as the teacher reads it, possibly in other tokens than the student's."""
    view = trace.teacher_view
    return trace if view is None else Trace(trace.example, view.prompt_ids, view.completion_ids)


def teacher_traces(traces: Sequence[Trace]) -> Sequence[Trace]:
    """The traces as the teacher reads them."""
    return traces.of_teacher if isinstance(traces, Traces) else list(map(teacher_trace, traces))


def _block(view: TeacherView) -> bytes:
    """A view for `_view`."""
    aligned = view.alignment
    pairs = () if aligned is None else (aligned.student_at, aligned.teacher_at, aligned.same_token)
    return pack(None, [view.prompt_ids, view.completion_ids, *pairs])


def _view(block: bytes) -> TeacherView:
    _, (prompt_ids, completion_ids, *pairs) = unpack(block)
    return TeacherView(prompt_ids, completion_ids, Alignment(*pairs) if pairs else None)


def _with_end(alignment: Alignment, student_at: int, teacher_at: int) -> Alignment:
    """Add the pair of end tokens to an alignment."""
    return Alignment(
        np.append(alignment.student_at, student_at),
        np.append(alignment.teacher_at, teacher_at),
        np.append(alignment.same_token, True),
    )
