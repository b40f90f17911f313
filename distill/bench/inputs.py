"""Inputs shared by all contestants of a comparison: random models and tokens.

Weights are random, because a step's cost does not depend on them. Every token of the vocabulary is a word, so
that text and token ids are equivalent for every contestant."""

import gzip
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from distill.bench.measurement import Setting
from distill.errors import UserError
from distill.io.files import write_atomically


@dataclass(frozen=True)
class Shape:
    """Sizes of a model."""

    kind: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int


SHAPES = {
    "tiny": Shape("llama", 64, 2, 4, 2, 128, 512),
    "135m": Shape("llama", 576, 30, 9, 3, 1536, 49_152),  # SmolLM2-135M
    "0.5b": Shape("qwen2", 896, 24, 14, 2, 4864, 151_936),  # Qwen2.5-0.5B
    "1.5b": Shape("qwen2", 1536, 28, 12, 2, 8960, 151_936),  # Qwen2.5-1.5B
}
# Token counts of GSM8K's 7,473 training problems and of their human solutions with SmolLM2's tokenizer (the
# first 3,000): mean and standard deviation of the logarithm, and maximum.
_PROMPT = (4.03, 0.35, 194)
_COMPLETION = (4.73, 0.42, 455)
_TEMPLATE = 47  # tokens that SmolLM2's chat template and the instruction of data=gsm8k add to each prompt
_CHARACTERS = (3.9, 2.3)  # characters per token in these problems and solutions
_PAD, _END = "<pad>", "<end>"

Row = tuple[list[int], list[int]]  # token ids of a prompt and of its completion, including the end token


def shape_of(setting: Setting) -> Shape:
    return SHAPES[setting.shape]


def default_folder() -> Path:
    """Folder of the inputs: `DISTILL_BENCH`, else in the user's cache."""
    named = os.environ.get("DISTILL_BENCH")
    return Path(named) if named else Path("~/.cache/distill/bench").expanduser()


def model_folder(setting: Setting, role: str) -> Path:
    """Folder of a saved model with its tokenizer, created on first use."""
    folder = Path(setting.inputs) / setting.shape / f"{role}-{setting.seed}"
    return made_once(folder, lambda temporary: _save_model(setting, role, temporary))


def made_once(folder: Path, write: Callable[[Path], object]) -> Path:
    """A folder that `write` fills on first use: it is there whole, or not at all."""
    if not folder.is_dir():
        temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        write(temporary)
        os.replace(temporary, folder)
    return folder


def _save_model(setting: Setting, role: str, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = shape_of(setting)
    config = AutoConfig.for_model(
        "llama" if shape.kind == "llama" else "qwen2",
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.intermediate,
        vocab_size=shape.vocabulary,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    torch.manual_seed(2 * setting.seed + (role == "teacher"))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    _tokenizer(shape.vocabulary).save_pretrained(folder)


def _tokenizer(vocabulary: int) -> Any:
    """Make a tokenizer in which each of the words "w2", "w3", … is a token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {_PAD: 0, _END: 1} | {f"w{number}": number for number in range(2, vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=_PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.Fuse()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=_PAD, eos_token=_END)


def batch_rows(setting: Setting) -> list[Row]:
    """Traces of a batch, all of the same length."""
    return draw_rows(setting, [(setting.prompt, setting.completion)] * setting.rows)


def ragged_rows(setting: Setting, scale: float = 1.0) -> list[Row]:
    """`setting.traces` traces with realistic lengths."""
    return draw_rows(setting, trace_lengths(setting, scale))


def sampled_rows(setting: Setting, samples: int) -> list[Row]:
    """As `ragged_rows`, with `samples` traces in a row that have the same prompt, under a chat template.

    Without several of them, the rows of `ragged_rows`.
    """
    rows = ragged_rows(setting)
    if samples == 1:
        return rows
    prompts = [[2] * _TEMPLATE + rows[place - place % samples][0] for place in range(len(rows))]
    return [(prompt, completion) for prompt, (_, completion) in zip(prompts, rows, strict=True)]


def prompt_rows(setting: Setting, vocabulary: int) -> list[list[int]]:
    """`setting.rows` prompts of realistic lengths under a chat template, of random tokens."""
    random = np.random.default_rng(setting.seed)
    lengths = trace_lengths(replace(setting, traces=setting.rows))
    return [random.integers(2, vocabulary, _TEMPLATE + prompt).tolist() for prompt, _ in lengths]


def draw_rows(setting: Setting, lengths: Sequence[tuple[int, int]]) -> list[Row]:
    random, size = np.random.default_rng(setting.seed), shape_of(setting).vocabulary
    return [
        (random.integers(2, size, prompt).tolist(), [*random.integers(2, size, completion - 1).tolist(), 1])
        for prompt, completion in lengths
    ]


def trace_lengths(setting: Setting, scale: float = 1.0) -> list[tuple[int, int]]:
    """Prompt and completion lengths in tokens: of the given file's traces, else sampled like GSM8K's."""
    random = np.random.default_rng(setting.seed)
    if setting.lengths is None:
        drawn = [
            np.minimum(random.lognormal(mean, deviation, setting.traces), longest)
            for mean, deviation, longest in (_PROMPT, _COMPLETION)
        ]
        pairs = np.stack(drawn, axis=1)
    else:
        known = np.array(read_lengths(Path(setting.lengths)))
        pairs = known[random.integers(0, len(known), setting.traces)]
    return [(max(2, round(p * scale)), max(2, round(c * scale))) for p, c in pairs.tolist()]


def read_lengths(path: Path) -> list[tuple[float, float]]:
    """Lengths of a file's problems and solutions in tokens, estimated from their characters.

    Raises:
        UserError: the file does not exist, or its records have no problems with solutions.
    """
    found = []
    for record in _records(path, "--traces"):
        problem = _problem(record)
        solutions = [_first(record, "completion", "solution", "answer", "output")]
        if isinstance(record.get("traces"), dict):
            solutions = list(record["traces"].values())
        found += [
            (len(problem) / _CHARACTERS[0], len(solution) / _CHARACTERS[1] + 1)
            for solution in solutions
            if problem and solution
        ]
    if not found:
        raise UserError(
            f"--traces {path} holds no problem with a solution: its records want problem or question, and "
            f"completion, solution, answer, output or traces"
        )
    return found


def read_problems(path: Path, count: int) -> list[str]:
    """The first problems of a file.

    Raises:
        UserError: the file does not exist, or has fewer.
    """
    found = list(islice(filter(None, map(_problem, _records(path, "--prompts"))), count))
    if len(found) < count:
        raise UserError(
            f"--prompts {path} holds {len(found)} problems (problem or question), and {count} are read: take "
            f"a longer file"
        )
    return found


def _records(path: Path, option: str) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        raise UserError(f"{option} {path} does not exist")
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{option} {path} is no JSON Lines file ({error})") from error


def _problem(record: dict[str, Any]) -> str:
    return _first(record, "problem", "question", "prompt")


def _first(record: dict[str, Any], *names: str) -> str:
    return next((record[name] for name in names if isinstance(record.get(name), str)), "")


def write_traces(setting: Setting, rows: Sequence[Row], path: Path) -> Path:
    """Write the rows as a file of traces with problems and completions as text."""

    def text(ids: Sequence[int]) -> str:
        # A space before each word, so that a completion directly after its problem starts a new word.
        return "".join(f" w{number}" for number in ids)

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8") as stream:
            for prompt, completion in rows:
                record = {"problem": text(prompt), "completion": text(completion[:-1])}
                stream.write(json.dumps(record) + "\n")

    write_atomically(path, write)
    return path
