"""Tests that a plan counts what loading a GGUF file writes to the cache, by the size of the written file."""

import json
import shutil
from pathlib import Path

import pytest
import test_training
from gguf_files import read_once
from test_gguf import byte_level, llama
from test_plan import planned
from test_training import arguments

from distill.exporting.gguf_file import write_gguf
from distill.models.find import find_model
from distill.planning.plan import Stage
from distill.planning.sweep import SweepPlan

traces = test_training.traces  # the fixture


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A student whose head is its embeddings, and a larger teacher with a head of its own."""
    folder = tmp_path_factory.mktemp("gguf")
    tokenizer = byte_level("smollm")
    student = llama(tokenizer, tie_word_embeddings=True)
    teacher = llama(tokenizer, tie_word_embeddings=False, num_hidden_layers=3)
    found = folder / "student.gguf", folder / "teacher.gguf"
    for lm, path in zip((student, teacher), found, strict=True):
        write_gguf(lm, path, 8, path.stem)
    return found


def dequantized(words: list[str]) -> list[Stage]:
    return [stage for stage in planned(words).stages if "GGUF" in stage.name]


def written(path: Path, dtype: str, cache: Path) -> int:
    """Bytes of the weights in the file that a load writes: all of it but the header."""
    find_model(str(path), key="model", dtype=dtype).load(cache)
    (file,) = cache.glob("gguf_weights-*/model/*.safetensors")
    with file.open("rb") as stream:
        header = int.from_bytes(stream.read(8), "little")
        assert json.loads(stream.read(header))
    return file.stat().st_size - 8 - header


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "auto"])
def test_the_size_is_that_of_the_file_that_a_load_writes(
    pair: tuple[Path, Path], traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    read_once(monkeypatch)
    dtypes = [f"model.student_dtype={dtype}", f"model.teacher_dtype={dtype}"]
    words = arguments(pair, traces, tmp_path, "loss=dcod", *dtypes)
    assert [stage.disk for stage in dequantized(words)] == [
        written(path, dtype, tmp_path / path.stem) for path in pair
    ]


@pytest.mark.slow
def test_a_file_is_counted_once_for_each_dtype_and_only_if_it_is_loaded(
    pair: tuple[Path, Path], traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_once(monkeypatch)
    student, teacher = pair
    (tmp_path / "elsewhere").mkdir()
    copy = shutil.copy(student, tmp_path / "elsewhere")

    def models(pair: tuple[Path, Path], *words: str) -> list[tuple[str, int]]:
        found = dequantized(arguments(pair, traces, tmp_path, *words))
        return [(Path(stage.model).stem, stage.disk) for stage in found]

    both = models((student, teacher), "loss=dcod")
    assert [name for name, _ in both] == ["student", "teacher"]
    assert models((student, teacher), "loss=sft") == both[:1]  # which needs no teacher
    assert models((student, teacher), "loss=dcod", "teacher.source=server") == both[:1]
    assert models((student, teacher), "loss=dcod", "teacher.source=server", "teacher.verify=true") == both
    assert models((student, copy), "loss=dcod") == both[:1]  # the cache knows it by name and content
    half = models((student, student), "loss=dcod", "model.teacher_dtype=bfloat16")
    assert half == [both[0], ("student", both[0][1] // 2)]


@pytest.mark.slow
def test_a_sweep_counts_it_once_and_safetensors_are_not_counted(
    pair: tuple[Path, Path],
    tiny_pair: tuple[Path, Path],
    traces: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read_once(monkeypatch)
    assert dequantized(arguments(tiny_pair, traces, tmp_path, "loss=dcod")) == []
    whole = SweepPlan()
    words = arguments(pair, traces, tmp_path)
    for loss in ("dcod", "on_policy_kd"):
        for seed in range(2):
            job = [*words, f"loss={loss}"]
            whole.add([*job, f"seed={seed}"], lambda job=job: planned(job))
    shared = [stage for stage, _ in whole.shared() if "GGUF" in stage.name]
    assert shared == dequantized([*words, "loss=dcod"])
