"""Prompts: how a problem is put to a model, as messages and as token ids."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distill.data.conversations import check_rendered
from distill.data.tokenizers import template_variables, tokenize
from distill.data.trace import Example
from distill.errors import UserError, first_line

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Prompt:
    """The messages before a completion, as templates.

    Attributes:
        user: template of the user's message with `{problem}`, and with `{solution}` if the model is shown the
            problem's worked solution.
        system: system message; None or empty: none.
        rewrites: whether it also applies to an example with a conversation or a system message of its own:
            the conversation then gets this system message, and what its user said last goes through `user`.
            If false, such a conversation stays as it is, except that a missing system message is added.
    """

    user: str = "{problem}"
    system: str | None = None
    rewrites: bool = False

    @property
    def shows_solution(self) -> bool:
        """Whether the model is shown the worked solution."""
        return "{solution}" in self.user

    def instruction_in(self, other: "Prompt") -> str | None:
        """The longest text of this prompt if all of its texts are also in the other prompt; otherwise None.

        Texts are the system message and what stands around `{problem}` and `{solution}`.
        """
        parts = [self.system or "", *re.split(r"\{problem\}|\{solution\}", self.user)]
        texts = [words for part in parts if (words := " ".join(part.split()))]
        others = " ".join(f"{other.system or ''} {other.user}".split())
        return max(texts, key=len) if texts and all(text in others for text in texts) else None

    def messages(self, example: Example) -> tuple[Message, ...]:
        """The conversation up to the completion."""
        turns = [*(example.messages or ({"role": "user", "content": example.problem},))]
        if self.rewrites or self.shows_solution or not example.messages:
            # Behind what the user said may stand a tool's results.
            said = [place for place, turn in enumerate(turns) if turn["role"] == "user"]
            last = said[-1] if said else len(turns) - 1
            texts = {"problem": turns[last]["content"]}
            if self.shows_solution:
                texts["solution"] = example.completion or ""
            turns[last] = {**turns[last], "content": fill(self.user, **texts)}
        if example.system and turns[0]["role"] != "system":
            turns.insert(0, {"role": "system", "content": example.system})
        if self.system and self.rewrites and turns[0]["role"] == "system":
            turns = turns[1:]
        if self.system and turns[0]["role"] != "system":
            turns.insert(0, {"role": "system", "content": self.system})
        return tuple(turns)

    def check(self, example: Example) -> None:
        """Check that the example has what the prompt shows.

        Raises:
            UserError: the prompt shows a worked solution, but the example has none.
        """
        if self.shows_solution and not (example.completion or "").strip():
            raise UserError(
                f"problem {example.place} comes without a worked solution, which the teacher is to be "
                f"shown: name its field (data.fields.completion=<field>), or take a teacher's prompt without "
                f"{{solution}} (data.teacher_prompt, loss.teacher_sees=prompt)"
            )

    def encode(self, tokenizer: Any, example: Example) -> np.ndarray:
        """[tokens] int32: the ids up to the start of the completion.

        Args:
            tokenizer: its chat template is applied if it has one.
            example: the problem.

        Raises:
            UserError: the tokenizer or its template refuses the text.
        """
        return encode_messages(tokenizer, self.messages(example), example.place, example.tools)


def student_prompt(user: str, system: str | None = None) -> Prompt:
    """The prompt that the student is trained under, from `data.student_prompt`.

    Raises:
        ValueError: the user's message has no `{problem}`, or has `{solution}`.
    """
    _check_text("data.student_prompt", user, system)
    prompt = Prompt(user, system)
    if prompt.shows_solution:
        raise ValueError(
            f"data.student_prompt.user={user!r} has {{solution}} in it, which the student is not shown: a "
            f"teacher's prompt is data.teacher_prompt"
        )
    return prompt


def teacher_prompt(student: Prompt, user: str | None = None, system: str | None = None) -> Prompt | None:
    """The prompt that the teacher writes and is scored under (the instruction c of 2605.14071), from
    `data.teacher_prompt`.

    Args:
        student: the student's prompt; it stands in for a text that is None.
        user: template of the user's message with `{problem}`.
        system: system message; empty: none, even if the student has one.

    Returns:
        None if it says nothing else than the student's.

    Raises:
        ValueError: the user's message has no `{problem}`; or the student's prompt contains all that the
            teacher's says, so that the student would be shown c.
    """
    user = student.user if user is None else user
    system = student.system if system is None else system
    _check_text("data.teacher_prompt", user, system)
    if (user, system or None) == (student.user, student.system or None):
        return None
    prompt = Prompt(user, system, rewrites=True)
    if found := prompt.instruction_in(student):
        raise ValueError(
            f"data.student_prompt contains the teacher's instruction {found[:60]!r}, which the student is to "
            f"do without: take it out of data.student_prompt, or leave data.teacher_prompt at null"
        )
    return prompt


def _check_text(key: str, user: object, system: object) -> None:
    for name, value in (("user", user), ("system", system)):
        if not (isinstance(value, str) or (value is None and name == "system")):
            raise ValueError(f"{key}.{name}={value!r} is no text")
    if "{problem}" not in str(user):
        raise ValueError(f"{key}.user={user!r} has no {{problem}} in it")


def encode_messages(
    tokenizer: Any,
    messages: Sequence[Message],
    place: str,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> np.ndarray:
    """[tokens] int32: ids of a conversation, up to the start of the completion.

    Args:
        tokenizer: its chat template is applied if it has one; otherwise the messages are joined by newlines.
        messages: the conversation.
        place: what the conversation belongs to, for error messages.
        tools: JSON schemas of the functions that the conversation's tools are.

    Raises:
        UserError: the tokenizer or its template refuses the text, or the template leaves tools out.
    """
    if tokenizer.chat_template:
        return encode_text(tokenizer, render(tokenizer, messages, place, tools))
    text = "\n".join(message["content"] for message in messages)
    check_rendered(text, messages, tools, place)
    ids = tokenize(tokenizer, text)
    if ids and ids[-1] == tokenizer.eos_token_id:  # some tokenizers append it to every text
        ids = ids[:-1]
    return np.asarray(ids, dtype=np.int32)


def render(
    tokenizer: Any,
    messages: Sequence[Message],
    place: str,
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    answer: bool = False,
) -> str:
    """A conversation as the tokenizer's chat template writes it.

    Args:
        tokenizer: with a chat template, and variables for it (`template_variables`).
        messages: the conversation.
        place: what it belongs to, for error messages.
        tools: JSON schemas of the functions that the conversation's tools are.
        answer: whether the last message is an answer; otherwise the text ends where one begins.

    Raises:
        UserError: the template refuses the conversation, or leaves tools out.
    """
    variables = template_variables(tokenizer)
    try:
        text = tokenizer.apply_chat_template(
            list(messages),
            list(tools) if tools else None,
            add_generation_prompt=not answer,
            tokenize=False,
            **variables,
        )
    except Exception as error:  # a template may raise anything
        raise UserError(
            f"the chat template refuses the conversation of {place} ({first_line(error)}): change its "
            f"messages"
        ) from error
    check_rendered(text, messages, tools, place)
    return text


def encode_text(tokenizer: Any, text: str) -> np.ndarray:
    """[tokens] int32: ids of a text that a chat template wrote.

    Raises:
        UserError: the tokenizer refuses the text.
    """
    return np.asarray(tokenize(tokenizer, text, add_special_tokens=False), dtype=np.int32)


def fill(template: str, **values: str) -> str:
    """Fill in a template's names; other braces, such as LaTeX's, stay as they are."""
    return re.sub(
        "|".join(f"{{{name}}}" for name in values), lambda found: values[found.group()[1:-1]], template
    )
