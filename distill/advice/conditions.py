"""The texts that stand before a problem in the evaluation of tips, and how a benchmark is asked with them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from distill.advice.contrast import GENERAL
from distill.advice.tip_list import Tip
from distill.data.tokenizers import tokenize
from distill.errors import UserError
from distill.evaluation.benchmark import Benchmark
from distill.models.language_model import ModelSource

NONE, TIPS, LENGTH = "no tips", "tips", "length control"
_HEAD = "Advice for such problems. Follow what applies, and leave the rest."
# Says nothing about problems. Repeated and cut to the length that is wanted.
_NEUTRAL = """\
The garden behind the old station is open all year. In spring the cherry trees bloom along the path, and \
people come to sit on the benches. A small cafe sells tea and bread in the morning. Further down there is a \
pond with ducks, and a wooden bridge leads over it. In summer the grass is high and full of flowers. \
Children fly their kites on the meadow when the wind comes from the sea. In autumn the leaves turn red and \
yellow, and somebody sweeps them together near the gate. In winter it is quiet, and the snow stays long. """


def tips_text(tips: Sequence[Tip]) -> str:
    """Tips as a text before a problem, numbered, under their skills if there are several.

    What a writer wrote is put in as it is: nothing in it is filled in.
    """
    skills = list(dict.fromkeys(tip.skill for tip in tips))
    lines, number = [_HEAD], 0
    for skill in skills:
        if len(skills) > 1:
            lines.append("Everywhere:" if skill == GENERAL else f"Where it takes {skill}:")
        for tip in (one for one in tips if one.skill == skill):
            number += 1
            lines.append(f"{number}. {tip.text}")
    return "\n".join(lines)


def neutral_text(tokenizer: Any, tokens: int) -> str:
    """Text without advice, of some number of tokens; the cut may move it by one or two."""
    text = _NEUTRAL
    while len(tokenize(tokenizer, text, add_special_tokens=False)) < tokens:
        text += _NEUTRAL
    ids = tokenize(tokenizer, text, add_special_tokens=False)[:tokens]
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


def token_count(tokenizer: Any, text: str) -> int:
    return len(tokenize(tokenizer, text, add_special_tokens=False))


def with_text(benchmark: Benchmark, text: str | None, source: ModelSource) -> Benchmark:
    """The benchmark asked with a text before each problem.

    With a chat template it is the system message, behind the benchmark's own; otherwise it stands above the
    prompt.

    Args:
        benchmark: the benchmark.
        text: the text, without `{problem}`; None: the benchmark as it is.
        source: the model that is asked.
    """
    if text is None:
        return benchmark
    if source.tokenizer.chat_template:
        return replace(benchmark, system="\n\n".join([*filter(None, [benchmark.system]), text]))
    return replace(benchmark, plain_prompt=f"{text}\n\n{benchmark.plain_prompt or benchmark.prompt}")


def check_spells(source: ModelSource) -> None:
    """Check that a model's tokenizer can write tips.

    Raises:
        UserError: it loses their words.
    """
    ids = tokenize(source.tokenizer, _HEAD, add_special_tokens=False)
    left = str(source.tokenizer.decode(ids, skip_special_tokens=True))
    if "".join(left.split()) != "".join(_HEAD.split()):
        raise UserError(
            f"the tokenizer of {source.name} cannot spell tips: of {_HEAD[:30]!r} it leaves {left[:30]!r}; "
            f"name another solver="
        )
