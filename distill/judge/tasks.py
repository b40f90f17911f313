"""The tasks of a judge model: judge answers, grade traces, compare two texts, find claims of identity."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from distill.judge import prompts
from distill.judge.replies import AnswerVerdict, Claim, Grade, answer_verdict, claim, grade, likeness
from distill.judge.selection import Sample

V = TypeVar("V")


@dataclass(frozen=True)
class Task(Generic[V]):
    """What a judge is asked about a sample.

    Attributes:
        name: `answers`, `rubric`, `similarity` or `identity`; also of the files.
        instructions: the system message.
        text: the text of a sample to judge; None or blank: there is none.
        without_text: the verdict on a sample without text, for which no judge is needed.
        read: the verdict in a reply; None if there is none.
    """

    name: str
    instructions: str
    text: Callable[[Sample], str | None]
    without_text: V
    read: Callable[[str], V | None]

    def messages(self, sample: Sample, *, again: bool = False) -> tuple[Mapping[str, str], ...] | None:
        """The conversation about a sample; None if it has no text."""
        text = self.text(sample)
        if text is None or not text.strip():
            return None
        return prompts.messages(self.instructions, sample.problem, sample.gold, text, again=again)


_NONE = "the text is empty"
ANSWERS = Task(
    "answers",
    prompts.ANSWERS,
    lambda sample: sample.response,
    AnswerVerdict(correct=False, final_answer=None, reason=_NONE),
    answer_verdict,
)
RUBRIC = Task(
    "rubric",
    prompts.RUBRIC,
    lambda sample: sample.completion,
    Grade(dict.fromkeys(prompts.CRITERIA, 1), False, "wrong_answer", _NONE),
    grade,
)
# The reference answer is what the response is compared with.
SIMILARITY: Task[Mapping[str, int]] = Task(
    "similarity",
    prompts.SIMILARITY,
    lambda sample: sample.completion,
    {name: int(name == "overall") for name in prompts.LIKENESS},
    likeness,
)
# The reference answer says who the model is.
IDENTITY = Task(
    "identity", prompts.IDENTITY, lambda sample: sample.response, Claim(contradicts=False, names=()), claim
)
