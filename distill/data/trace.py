"""Traces: a problem, a completion that solves it, and the tokens of both."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from distill.data.alignment import Alignment
from distill.data.tokenizers import tokenize
from distill.errors import UserError
from distill.io.stored_rows import RowsByRole, StoredRows


@dataclass(frozen=True)
class Recorded:
    """The tokens of a completion as the teacher wrote them, from a trace set (`distill.data.trace_set`).

    Attributes:
        tokenizer: hash of the vocabulary that the ids belong to.
        prompt_ids: int32.
        completion_ids: int32, the end token included if there is one.
        finished: whether the completion ended with an end token and was not cut off.
        correct: the grader's verdict; None: not graded.
        teacher: fingerprint and dtype of the model that wrote; None: not known.
        teacher_logprobs: float32, of the completion's tokens at temperature 1; None: not computed.
        writer: name of the model that wrote.
        weight: of the trace in training.
        learn_from: index of the first completion token to train on; the tokens before it are context.
    """

    tokenizer: str
    prompt_ids: np.ndarray
    completion_ids: np.ndarray
    finished: bool
    correct: bool | None
    teacher: tuple[str, str] | None
    teacher_logprobs: np.ndarray | None
    writer: str | None = None
    weight: float = 1.0
    learn_from: int = 0


@dataclass(frozen=True)
class Example:
    """A problem of a data file or benchmark, with what is known about it.

    Attributes:
        id: stable name inside its data set.
        problem: the problem's text, without a prompt.
        gold: the right answer, if known.
        completion: a solution, if the data has one.
        messages: the conversation up to the completion, if the data has one. It replaces the prompt. Its
            turns have a role and a content, those of tools also `tool_calls`, `tool_call_id` or `name`.
        where: the file and line, or the data set and row, that it was read from.
        recorded: the completion's original tokens, if it comes from a trace set.
        details: further inputs of a benchmark's grader, JSON values: a program's tests, instructions, a
            numeric tolerance.
        system: system message of a problem without a conversation; it replaces the prompt's.
        tools: JSON schemas of the functions that the conversation's tools are, for the chat template.
        teacher: the one of several teachers that it names (`data.fields.teacher`).
    """

    id: str
    problem: str
    gold: str | None = None
    completion: str | None = None
    messages: tuple[Mapping[str, Any], ...] | None = None
    where: str | None = field(default=None, compare=False)
    recorded: Recorded | None = field(default=None, compare=False)
    details: Mapping[str, Any] = field(default_factory=dict, compare=False)
    system: str | None = None
    tools: tuple[Mapping[str, Any], ...] | None = None
    teacher: str | None = field(default=None, compare=False)

    @property
    def asked(self) -> list[str]:
        """The texts of all user's turns; the problem alone without a conversation. Many chats end alike."""
        turns = (turn for turn in self.messages or () if turn["role"] == "user")
        return [turn["content"] for turn in turns] or [self.problem]

    @property
    def place(self) -> str:
        """The example's id and origin, for messages."""
        return f"{self.id} ({self.where})" if self.where else self.id


@dataclass(frozen=True)
class Verdict:
    """A grader's verdict on a completion.

    Attributes:
        answer: the answer extracted from the completion.
        correct: whether the answer is right.
        reason: why it was graded so.
        rule: the extraction rule that found the answer, such as `boxed`.
        counts: further results by name, as (right, total): IFEval's instructions, a program's tests.
    """

    answer: str | None
    correct: bool
    reason: str = ""
    rule: str = ""
    counts: Mapping[str, tuple[int, int]] = field(default_factory=dict)


Grader = Callable[[Example, str], Verdict]


@dataclass(frozen=True)
class TeacherView:
    """A trace as the teacher reads it, if its prompt or tokens differ (`distill.teacher.retokenize`).

    Attributes:
        prompt_ids: int32, of the teacher's vocabulary.
        completion_ids: int32, of the teacher's vocabulary.
        alignment: the comparable tokens of both completions; None: the completion has the same tokens.
    """

    prompt_ids: np.ndarray
    completion_ids: np.ndarray
    alignment: Alignment | None = None

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass
class Trace:
    """A completion to train on, as token ids: tokenizing its text again may give others.

    Attributes:
        example: the problem and its origin.
        prompt_ids: int32, chat template included.
        completion_ids: int32, the end token included if there is one.
        signals: float32 log-probs of the completion's tokens by name, such as `teacher_logprobs`.
        teacher_view: the tokens that the teacher reads instead; None: the same tokens.
        distribution: cached parts of the teacher's distribution, a row per completion token that it reads.
        weight: factor on the weights of the trace's tokens.
        teacher: role of the one of several teachers that it learns from (`distill.teacher.several`).
    """

    example: Example
    prompt_ids: np.ndarray
    completion_ids: np.ndarray
    signals: dict[str, np.ndarray] = field(default_factory=dict)
    teacher_view: TeacherView | None = None
    distribution: StoredRows | RowsByRole | None = None
    weight: float = 1.0
    teacher: str | None = None

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


def encode_completion(tokenizer: Any, text: str, end_ids: Sequence[int] | None = None) -> np.ndarray:
    """Token ids of a completion and an end token, as a model would write them after the prompt.

    Args:
        tokenizer: of the student.
        text: the completion.
        end_ids: tokens that end a completion; the first is appended. None: the tokenizer's own.
    """
    end_ids = end_ids or [tokenizer.eos_token_id]
    ids = tokenize(tokenizer, text, add_special_tokens=False)
    while ids and ids[-1] in end_ids:  # completions of a model may already end with one
        ids = ids[:-1]
    return np.asarray([*ids, end_ids[0]], dtype=np.int32)


def completion_of(example: Example) -> str:
    """The example's completion, which is to be learned.

    Raises:
        UserError: it has none, or an empty one.
    """
    if example.completion is None:
        raise UserError(
            f"problem {example.place} comes without a completion: name its field "
            f"(data.fields.completion=<field>), or let the teacher write (data.completions=teacher)"
        )
    if not example.completion.strip():
        raise UserError(
            f"the completion of problem {example.place} is empty: there is nothing to learn from it; "
            f"data.missing=drop leaves such records out"
        )
    return example.completion


def check_spelling(tokenizer: Any, example: Example, name: str) -> None:
    """Reject a tokenizer that loses a tenth of the text: some silently drop what their vocabulary lacks.

    Raises:
        UserError: names the model, and shows the text and what is left of it.
    """
    text = "".join((example.problem + (example.completion or "")).split())
    ids = tokenize(tokenizer, example.problem + (example.completion or ""), add_special_tokens=False)
    left = "".join(tokenizer.decode(ids, skip_special_tokens=True).split())
    if len(left) < 0.9 * len(text):
        raise UserError(
            f"the tokenizer of {name} cannot spell this data: of {text[:40]!r} it leaves {left[:40]!r}; "
            "choose another model or other data"
        )
