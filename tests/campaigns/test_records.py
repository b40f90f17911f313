"""A campaign of malformed records: each becomes a trace, or is refused in a sentence that names its place."""

import json
import random
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from campaign import Tally
from chat_templates import TEMPLATES, tokenizer_with
from test_corrupted import DAMAGES
from test_published_sets import LIMO, OPENR1, OPENTHOUGHTS, OPENTHOUGHTS_114K, S1K
from test_record_examples import RECORDED, WHOLE, broken
from transformers import Qwen2Config, Qwen2ForCausalLM

from distill.data.readers import read_examples
from distill.errors import UserError
from distill.models.find import find_model
from distill.training.recipe import TraceRecipe

pytestmark = [pytest.mark.slow, pytest.mark.campaign, pytest.mark.timeout(3600)]
ROWS = [*WHOLE, OPENTHOUGHTS, OPENTHOUGHTS_114K, OPENR1, S1K, LIMO]
FIELDS = dict.fromkeys(("problem", "completion", "messages", "context", "system", "thought"), "auto")
READABLE = {"problem": "What is 1+1?", "completion": "2"}
KINDS = ("lines", "lines", "array", "parquet", "text")


def student(folder: Path) -> Any:
    """A model that is never loaded, whose tokenizer knows all bytes and whose template knows thoughts."""
    tokenizer = tokenizer_with(TEMPLATES["writes them"])
    sizes: dict[str, Any] = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    config = Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=1, **sizes)
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return find_model(str(folder), key="model.student")


def written(row: Any, kind: str, folder: Path, draw: random.Random) -> Path:
    """A file with the record between two that can be read, as a kind of file or as damaged text."""
    rows = [READABLE, row, READABLE]
    if kind == "array":
        (folder / "data.json").write_text(json.dumps(rows), encoding="utf-8")
        return folder / "data.json"
    if kind == "parquet":
        try:
            pq.write_table(pa.Table.from_pylist([row]), folder / "data.parquet")
            return folder / "data.parquet"
        except (pa.ArrowException, OverflowError, UnicodeEncodeError, TypeError, ValueError):
            pass  # no such file can be there
    lines = [json.dumps(one).encode() for one in rows]
    if kind == "text":
        lines[1] = draw.choice(DAMAGES)(lines[1], draw)
    (folder / "data.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return folder / "data.jsonl"


def check(row: Any, path: Path, recipe: TraceRecipe, model: Any) -> str:
    """What is wrong with the traces of a file; empty: nothing."""
    for trace in recipe.tokenize(recipe.source(), model):
        texts = [trace.example.problem, trace.example.completion]
        texts += [turn[key] for turn in trace.example.messages or () for key in ("role", "content")]
        if not all(isinstance(text, str) for text in texts):
            return f"{texts} of {row} in {path.name}"
        if len(trace.completion_ids) == 0 or not 0 <= trace.weight < float("inf"):
            return f"{trace} of {row}"
    return ""


def test_malformed_records(
    tmp_path: Path, faults: int, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    tally, draw = Tally(), random.Random(seed)
    model = student(tmp_path / "student")
    rows = [*ROWS, RECORDED | {"tokenizer": model.vocabulary, "correct": True}]
    for number in range(faults):
        kind, row = KINDS[number % len(KINDS)], broken(draw.choice(rows), draw)
        if draw.random() < 0.3:
            row = broken(row, draw) if row else row
        folder = tmp_path / str(number)
        folder.mkdir()
        path = written(row, kind, folder, draw)
        named = FIELDS | {name: name for name in ("gold", "id") if name in row}
        source = partial(read_examples, path=str(path), fields=named, missing=draw.choice(["error", "drop"]))
        try:
            wrong = check(row, path, TraceRecipe(source, keep="all"), model)
            tally.add(kind, "silent" if wrong else "fine", wrong)
        except UserError as error:
            clear = path.name in str(error) and "\n" not in str(error)
            tally.add(kind, "clear" if clear else "unclear", f"{error} ({row})")
        except Exception:
            tally.add(kind, "traceback", f"{row}: {traceback.format_exc()}")
    tally.finish("malformed records")
