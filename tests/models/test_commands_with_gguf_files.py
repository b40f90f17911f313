"""Tests that commands keep the weights of a GGUF file in their cache, and read them there the next time."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf_files import read_once
from test_generate import compose
from test_gguf import byte_level, llama

from distill.advice.inputs import models_of
from distill.advice.write_tips import _model
from distill.analysis.evaluate_model import evaluate_model
from distill.config.instantiate import resolved
from distill.data.trace_set import read_records
from distill.errors import UserError
from distill.evaluation.named import as_keys
from distill.exporting.command import export
from distill.exporting.gguf_file import write_gguf
from distill.likeness.measure_identity import measure_identity
from distill.teacher.write_traces import generate
from distill.training.inputs import check_settings

SHORT = ["benchmark=arithmetic", "benchmark.limit=4", "benchmark.max_new_tokens=6"]


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 8 bits a weight, with a context for all prompts below."""
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    student = llama(byte_level("smollm"), tie_word_embeddings=True, max_position_embeddings=512)
    write_gguf(student, path, 8, "tested")
    return path


def evaluated(gguf: Path, *words: str) -> Any:
    own = compose("evaluate", as_keys([f"model={gguf}", *SHORT, *words]))
    return (evaluate_model(own) / "samples.jsonl").read_text()


def drifted(gguf: Path, *words: str) -> Any:
    own = [f"model={gguf}", f"teacher={gguf}", "drift.limit=4", *SHORT, *words]
    folder = evaluate_model(compose("evaluate", as_keys(own)))
    return json.loads((folder / "results.json").read_text())["drift"]


def written(gguf: Path, *words: str) -> Any:
    own = ["model=none", f"model.teacher={gguf}", "data=arithmetic", "data.limit=4", "samples=1"]
    records = read_records(generate(compose("generate", [*own, "data.max_new_tokens=6", *words])))
    return [(record["completion_ids"], record["teacher_logprobs"]) for record in records]


def identified(gguf: Path, *words: str) -> Any:
    own = [f"model={gguf}", f"before={gguf}", "identity.languages=[en]", "identity.limit=1", "samples=1"]
    own += ["sampling.max_new_tokens=4", "resamples=10", *words]
    folder = measure_identity(compose("identity", as_keys(own))) / "answers"
    return {path.name: path.read_text() for path in sorted(folder.glob("*/completions.jsonl"))}


def exported(gguf: Path, *words: str) -> Any:
    own = [f"model={gguf}", "format=hf", "bits=16", *SHORT, "speed.prompts=1", *words]
    return (export(compose("export", as_keys(own))) / "student" / "model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("command", [evaluated, drifted, written, identified, exported])
def test_the_second_start_of_a_command_reads_what_the_first_kept(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Any]
) -> None:
    asked = read_once(monkeypatch)

    def run(out: str, cache: str) -> Any:
        return command(gguf, f"out={tmp_path / out}", f"cache={tmp_path / cache}")

    first = run("a", "cache")
    assert (
        len(asked) == 3
    )  # the tokenizer, the configuration, and the weights once, for two models as for one
    assert len(list((tmp_path / "cache").glob("gguf_weights-*"))) == 1
    assert run("b", "cache") == first
    assert len(asked) == 3
    assert run("c", "other") == first  # weights that were just dequantized answer alike
    assert len(asked) == 4


@pytest.mark.slow
def test_the_writer_and_the_solver_of_tips_do_too(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = read_once(monkeypatch)
    words = [f"writer={gguf}", f"solver={gguf}", "model.student_dtype=float32", "model.teacher_dtype=float32"]
    cfg = compose("tips", [*words, f"cache={tmp_path}"])
    for key, role in (("writer", "teacher"), ("solver", "student")):
        _model(cfg, models_of(cfg), key, role).lazy.get()
    assert len(asked) == 3
    assert len(list(tmp_path.glob("gguf_weights-*"))) == 1


@pytest.mark.slow
def test_a_cache_that_cannot_be_made_is_named_with_a_remedy(gguf: Path, tmp_path: Path) -> None:
    (file := tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=rf"cache={file} cannot be written \(.*\): name another folder with"):
        evaluated(gguf, f"out={tmp_path / 'out'}", f"cache={file}")
    with pytest.raises(UserError, match="cache=null must be text"):
        check_settings(resolved(compose("evaluate", as_keys([f"model={gguf}", "cache=null"]))))
