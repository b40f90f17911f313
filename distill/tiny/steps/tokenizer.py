"""The pair's tokenizer: byte-level BPE, trained on the task's texts and the teacher's instruction."""

import random
from collections.abc import Iterator
from typing import Any

from omegaconf import OmegaConf

from distill.config.paths import CONFIG
from distill.tiny.build import for_transformers
from distill.tiny.steps import solutions, task

CONTEXT = 1024
VOCABULARY = 1000  # at most; training ends when every piece of the texts is one token
INSTRUCTION = CONFIG / "teacher_prompt" / "discord.yaml"
_TEXTS = 3000

# What BPE may not merge across: a heading with its tag, a tag that closes, a digit, a word. A word and a sign
# take the space before a digit with them, so that no token is a space alone.
_TO_DIGIT = r"(?: (?=\d))?"
_PIECES = (
    r"\. [A-Z ]+\n(?:<[a-z]+>\n)?",
    r"\.\n</[a-z]+>\n\n## ",
    r" \\boxed\{(?=\d)",
    rf" ?[A-Za-z]+{_TO_DIGIT}",
    r"\d",
    r"\.\n-?",
    rf" ?[^\sA-Za-z\d]+{_TO_DIGIT}",
    r"\s+",
)


def instruction() -> str:
    """The system message under which the teacher writes the structured form (`teacher_prompt=discord`)."""
    loaded: Any = OmegaConf.load(INSTRUCTION)
    return loaded.system


def instruction_lines() -> list[str]:
    """The instruction's lines of prose. Each is one token: so small a model could not read them anyway."""
    lines = instruction().splitlines()
    return [line for line in lines if len(line) > 40]


def make_tokenizer() -> Any:
    """Train the tokenizer; the result depends on the task and the instruction alone."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("|".join(_PIECES)), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    lines = [AddedToken(line, normalized=False) for line in instruction_lines()]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    tokenizer.add_tokens(lines)
    return for_transformers(tokenizer, CONTEXT)


def _texts() -> Iterator[str]:
    rng = random.Random("/".join(("steps", "tokenizer")))
    dials = task.Dials((1, 6), (0, 3), (0, 2))
    headings = "\n".join(line for line in instruction().splitlines() if line not in instruction_lines())
    for _ in range(_TEXTS):
        problem = task.sample_problem(rng, dials)
        yield str(problem)
        yield headings
        for form in ("plain", "structured"):
            yield solutions.write_solution(problem, form, rng.choice(("single", "double")))
