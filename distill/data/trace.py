"""The trace: a problem, a worked answer to it, and the tokens of both."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from distill.data.alignment import Alignment
from distill.errors import UserError, first_line
from distill.io.stored_rows import StoredRows


@dataclass(frozen=True)
class Recorded:
    """A completion as its writer's tokens, from a trace set (`distill.records`).

    Attributes:
        tokenizer: hash of the vocabulary that the ids belong to.
        prompt_ids: int32.
        completion_ids: int32, the end token included where there is one.
        finished: whether it ended by itself.
        correct: the verdict; None where nobody judged.
        teacher: fingerprint and dtype of the model that wrote; None where that is not known.
        teacher_logprobs: float32, of the completion's tokens at temperature 1; None where nobody scored them.
        writer: name of who wrote.
        weight: how much the trace counts in training beside others.
        learn_from: the first completion token that is learned; those before it are context.
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
    """A problem, as data files and benchmarks give it.

    Attributes:
        id: stable name inside its set.
        problem: the problem's text, before any prompt.
        gold: the right answer, where it is known.
        completion: a worked answer, where the data has one.
        messages: the conversation up to the completion, where the data has one; it then stands for the
            prompt.
        where: the file and line, or the data set and row, that it was read from.
        recorded: the completion's own tokens, where it comes from a trace set.
        details: what a benchmark's grader needs beside the gold answer, JSON values: a program's tests,
            instructions, a numeric tolerance.
    """

    id: str
    problem: str
    gold: str | None = None
    completion: str | None = None
    messages: tuple[Mapping[str, str], ...] | None = None
    where: str | None = field(default=None, compare=False)
    recorded: Recorded | None = field(default=None, compare=False)
    details: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def place(self) -> str:
        """Where to look for it, in messages."""
        return f"{self.id} ({self.where})" if self.where else self.id


@dataclass(frozen=True)
class Verdict:
    """What a grader found in a completion.

    Attributes:
        answer: what it read out of it.
        correct: whether that is right.
        reason: why that was decided.
        rule: the rule that found the answer, such as `boxed`.
        counts: further measures by name, as (right, of so many): IFEval's instructions, a program's tests.
    """

    answer: str | None
    correct: bool
    reason: str = ""
    rule: str = ""
    counts: Mapping[str, tuple[int, int]] = field(default_factory=dict)


Grader = Callable[[Example, str], Verdict]


@dataclass(frozen=True)
class TeacherView:
    """A trace as the teacher reads it, where that is not as the student does (`distill.teacher.retokenize`).

    Attributes:
        prompt_ids: int32, of the teacher's tokens.
        completion_ids: int32, of the teacher's tokens.
        alignment: which of the completion's tokens can be compared; None: they are the student's own, one by
            one.
    """

    prompt_ids: np.ndarray
    completion_ids: np.ndarray
    alignment: Alignment | None = None

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass
class Trace:
    """A completion to learn from, as token ids: text that is tokenised again drifts.

    Attributes:
        example: where it comes from.
        prompt_ids: int32, chat template included.
        completion_ids: int32, the end token included where there is one.
        signals: float32 log-probs of the completion's tokens by name, such as `teacher_logprobs`.
        teacher_view: what the teacher reads in its place; None: the same tokens.
        distribution: what is cached of the teacher's distribution, a row a completion token that it reads.
        weight: how much each of its tokens counts beside other traces'.
    """

    example: Example
    prompt_ids: np.ndarray
    completion_ids: np.ndarray
    signals: dict[str, np.ndarray] = field(default_factory=dict)
    teacher_view: TeacherView | None = None
    distribution: StoredRows | None = None
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


def encode_prompt(
    tokenizer: Any, example: Example, prompt: str, *, solution: str | None = None
) -> np.ndarray:
    """Token ids up to the point where the completion begins.

    Args:
        tokenizer: with its chat template applied when it has one, else the plain text.
        example: its own messages are used where it has them.
        prompt: template with `{problem}`.
        solution: stands for `{solution}` in the template; a conversation's last message is then put through
            the template too.
    """
    turns: tuple[Mapping[str, str], ...] = example.messages or ({"role": "user", "content": example.problem},)
    if solution is not None or not example.messages:
        filled = fill(prompt, problem=turns[-1]["content"], solution=solution or "")
        turns = (*turns[:-1], {**turns[-1], "content": filled})
    messages = list(turns)
    if tokenizer.chat_template:
        # As text first: what the template inserts and what the tokenizer cannot spell are two things.
        try:
            text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # templates raise what they please
            raise UserError(
                f"the chat template refuses the conversation of {example.place} ({first_line(error)}): "
                f"change its "
                f"messages"
            ) from error
        return np.asarray(_spell(tokenizer, text, add_special_tokens=False), dtype=np.int32)
    ids = _spell(tokenizer, "\n".join(message["content"] for message in messages))
    if ids and ids[-1] == tokenizer.eos_token_id:  # some tokenizers close every text
        ids = ids[:-1]
    return np.asarray(ids, dtype=np.int32)


def conversation(example: Example, user: str, system: str | None = None) -> Example:
    """The example as the conversation that a model is asked to go on with.

    Args:
        example: its own messages are used where it has them.
        user: template with `{problem}`.
        system: what the conversation begins with, where the example's own does not begin so.
    """
    turns = list(example.messages or ({"role": "user", "content": fill(user, problem=example.problem)},))
    if system and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": system})
    return replace(example, messages=tuple(turns))


def fill(template: str, **values: str) -> str:
    """The template with its names filled in; braces elsewhere, as LaTeX has them, stay."""
    return re.sub(
        "|".join(f"{{{name}}}" for name in values), lambda found: values[found.group()[1:-1]], template
    )


def encode_completion(tokenizer: Any, text: str, end_ids: Sequence[int] | None = None) -> np.ndarray:
    """Token ids of a completion with an end token, as a model that writes it after the prompt would.

    Args:
        tokenizer: of the student.
        text: the completion.
        end_ids: tokens that end a completion; the first is put behind it. The tokenizer's own where None.
    """
    end_ids = end_ids or [tokenizer.eos_token_id]
    ids = _spell(tokenizer, text, add_special_tokens=False)
    while ids and ids[-1] in end_ids:  # data that was written by a model may end in one already
        ids = ids[:-1]
    return np.asarray([*ids, end_ids[0]], dtype=np.int32)


def check_spelling(tokenizer: Any, example: Example, name: str) -> None:
    """Refuse a tokenizer that loses a tenth of the text: some drop silently what their vocabulary does not
    cover.

    Raises:
        UserError: names the model, shows the text and what is left of it.
    """
    text = "".join((example.problem + (example.completion or "")).split())
    ids = _spell(tokenizer, example.problem + (example.completion or ""), add_special_tokens=False)
    left = "".join(tokenizer.decode(ids, skip_special_tokens=True).split())
    if len(left) < 0.9 * len(text):
        raise UserError(
            f"the tokenizer of {name} cannot spell this data: of {text[:40]!r} it leaves {left[:40]!r}; "
            "choose another model or other data"
        )


def _spell(tokenizer: Any, text: str, **options: Any) -> list[int]:
    try:
        return tokenizer(text, **options).input_ids
    except Exception as error:  # tokenizers raises nothing more special
        raise UserError(
            f"the tokenizer cannot spell {text[:60]!r} ({error}): take it out of the data"
        ) from error
