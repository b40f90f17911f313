"""Tests of what models hold of memory once loaded, and that a GGUF file is dequantized once."""

import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_files import read_once
from test_gguf import byte_level, llama
from test_training import arguments, run

import distill.models.gguf_model
from distill.data.tokenizers import set_template_variables, template_variables
from distill.errors import UserError
from distill.exporting.gguf_file import write_gguf
from distill.models.find import find_model
from distill.models.gguf_model import kept_weights
from distill.models.language_model import LanguageModel, ModelSource
from distill.models.lazy import LazyModel

PAGE = os.sysconf("SC_PAGESIZE")


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 8 bits a weight."""
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_gguf(llama(byte_level("smollm"), tie_word_embeddings=True), path, 8, "tested")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Safetensors of some pages a weight, in single precision."""
    path = tmp_path_factory.mktemp("folder") / "model"
    lm = llama(byte_level("smollm"), tie_word_embeddings=True, intermediate_size=512)
    lm.model.save_pretrained(path)
    lm.tokenizer.save_pretrained(path)
    return path


def find(path: Path, dtype: str = "float32") -> ModelSource:
    return find_model(str(path), key="model.student", dtype=dtype)


def weights(lm: LanguageModel) -> dict[str, torch.Tensor]:
    return lm.model.state_dict()


def same(one: LanguageModel, other: LanguageModel) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a
    )


def mappings(file: Path) -> list[tuple[int, int, int]]:
    """Begin, end and bytes of own memory of this process's mappings of a file, as the kernel lists them."""
    found: list[tuple[int, int, int]] = []
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            inside = words[-1] == str(file.resolve())
            if inside:
                begin, end = (int(part, 16) for part in words[0].split("-"))
                found.append((begin, end, 0))
        elif inside and words[0] == "Anonymous:":
            found[-1] = (*found[-1][:2], int(words[1]) << 10)
    return found


def mapped(lm: LanguageModel, file: Path) -> list[bool]:
    """Of each weight, whether it lies in a mapping of the file."""
    places = mappings(file)
    return [
        any(begin <= one.data_ptr() and one.data_ptr() + one.nbytes <= end for begin, end, _ in places)
        for one in lm.model.parameters()
    ]


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux says of a process's memory")


@linux
def test_weights_in_the_files_own_dtype_are_mapped_and_converted_ones_are_not(folder: Path) -> None:
    file = folder / "model.safetensors"
    for dtype, expected in (("float32", True), ("auto", True), ("bfloat16", False)):
        lm = find(folder, dtype).load()
        lm.check_head()
        assert set(mapped(lm, file)) == {expected}, dtype
        assert not sum(own for _, _, own in mappings(file))  # reading makes no copy
        del lm


@linux
def test_a_student_that_trains_takes_one_copy_and_its_frozen_twin_none(folder: Path) -> None:
    file = folder / "model.safetensors"
    before = file.read_bytes()
    student, frozen, fresh = find(folder).load(), find(folder).load(), find(folder).load()
    student.model.train()
    optimizer = torch.optim.SGD(student.model.parameters(), lr=0.1)
    for _ in range(2):
        student.model(input_ids=torch.arange(9)[None], labels=torch.arange(9)[None]).loss.backward()
        optimizer.step()
    assert all(mapped(student, file))
    assert not same(student, frozen)
    assert same(frozen, fresh)
    assert file.read_bytes() == before
    own = sorted(own for _, _, own in mappings(file))
    size = sum(one.nbytes for one in student.model.parameters())
    assert own[:-1] == [0] * (len(own) - 1)  # of the frozen ones
    assert size - 2 * PAGE <= own[-1] <= size + 2 * PAGE


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "auto"])
def test_kept_weights_are_those_of_a_fresh_reading_to_the_bit(gguf: Path, tmp_path: Path, dtype: str) -> None:
    source = find(gguf, dtype)
    fresh = source.load()
    for _ in range(2):  # made, and found
        kept = source.load(tmp_path)
        assert same(kept, fresh)
        assert all(
            torch.equal(a, b) for a, b in zip(kept.model.buffers(), fresh.model.buffers(), strict=True)
        )
        assert kept.model.config.to_dict() | {"architectures": None} == fresh.model.config.to_dict()
        assert kept.model.generation_config.to_dict() == fresh.model.generation_config.to_dict()
        assert kept.end_ids == fresh.end_ids == source.end_ids
    if sys.platform == "linux":
        assert all(mapped(kept, next(tmp_path.glob("gguf_weights-*/model/model.safetensors"))))


def refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("the file was read again")


@pytest.mark.slow
def test_what_is_kept_is_read_in_place_of_the_file(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = find(gguf)
    first = source.load(tmp_path)
    (made,) = tmp_path.iterdir()
    monkeypatch.setattr(ModelSource, "_dequantized", refuse)
    monkeypatch.setattr("gguf.GGUFReader", refuse)
    again = find(gguf)  # as a sweep's next job does
    assert again.tokenizer is not source.tokenizer
    assert same(again.load(tmp_path), first)
    assert same(source.cut(100).load(tmp_path), first)  # with the same weights
    lazy = LazyModel(again, "cpu", cache=tmp_path)
    assert same(lazy.get(), first)
    assert same(lazy.reduced_to(source.cut(100)).get(), first)
    assert list(tmp_path.iterdir()) == [made]
    with pytest.raises(UserError, match="read again"):
        find(gguf, "float16").load(tmp_path)  # other numbers


def cut_short(made: Path) -> None:
    os.truncate(made / "model" / "model.safetensors", 5_000)


def flip(made: Path) -> None:
    with (made / "model" / "model.safetensors").open("r+b") as stream:
        stream.seek(-100, os.SEEK_END)
        value = stream.read(1)[0]
        stream.seek(-100, os.SEEK_END)
        stream.write(bytes([value ^ 1]))


def lose_configuration(made: Path) -> None:
    (made / "model" / "config.json").unlink()


def lose_checksums(made: Path) -> None:
    (made / "model" / "checksums.json").unlink()


def kill_meanwhile(made: Path) -> None:
    os.replace(made / "model", made / "unfinished")
    (made / "unfinished" / "model.safetensors").write_bytes(b"half")


@pytest.mark.slow
@pytest.mark.parametrize("damage", [cut_short, flip, lose_configuration, lose_checksums, kill_meanwhile])
def test_a_damaged_or_partial_copy_is_made_anew(gguf: Path, tmp_path: Path, damage: Any) -> None:
    source = find(gguf)
    fresh = source.load()
    source.load(tmp_path)
    (made,) = tmp_path.iterdir()
    names = {path.relative_to(made) for path in made.rglob("*")}
    damage(made)
    assert same(source.load(tmp_path), fresh)
    assert {path.relative_to(made) for path in made.rglob("*")} == names


@pytest.mark.slow
def test_of_several_at_once_one_makes_it_and_the_others_wait(tmp_path: Path) -> None:
    made: list[int] = []
    begun = threading.Barrier(3)

    class Model:
        def save_pretrained(self, folder: Path) -> None:
            folder.mkdir()
            (folder / "model.safetensors").write_bytes(b"first half")
            time.sleep(0.05)
            (folder / "config.json").write_bytes(b"second half")

    def read() -> Model:
        made.append(1)
        return Model()

    found: list[set[str]] = []

    def load() -> None:
        begun.wait()
        place = kept_weights(tmp_path, "0", "float32", read)
        found.append({file.name for file in place.iterdir()})

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert len(found) == 3
    assert all({"model.safetensors", "config.json"} <= names for names in found)


def test_a_copy_that_cannot_be_written_is_named(gguf: Path, tmp_path: Path, monkeypatch: Any) -> None:
    class Full:
        def save_pretrained(self, folder: Path) -> None:
            folder.mkdir()
            (folder / "model.safetensors").write_bytes(b"half")
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(ModelSource, "_dequantized", lambda self: Full())
    source = ModelSource("big", str(gguf.parent), "0", gguf=gguf.name)
    with pytest.raises(UserError, match=r"gguf_weights-\w+/model cannot be written \(No space left"):
        source.load(tmp_path)
    (made,) = tmp_path.iterdir()
    assert {path.name for path in made.iterdir()} <= {"key.json", "lock"}


@pytest.mark.slow
def test_each_job_has_a_tokenizer_of_its_own_and_a_changed_file_is_read_again(
    gguf: Path, tmp_path: Path
) -> None:
    one, other = find(gguf), find(gguf)
    assert one.vocabulary == other.vocabulary
    set_template_variables(one.tokenizer, {"think": True})
    assert template_variables(one.tokenizer)
    assert not template_variables(other.tokenizer)
    assert one.tokenizer.splits_as_its_file
    assert other.tokenizer.splits_as_its_file  # caches are keyed by it
    text = "the cat sat on 12 mats"
    assert one.tokenizer(text).input_ids == other.tokenizer(text).input_ids
    path = tmp_path / "model.gguf"
    shutil.copy(gguf, path)
    assert find(path).context_length == 64
    write_gguf(llama(byte_level("smollm"), max_position_embeddings=32), path, 8, "tested")
    assert find(path).context_length == 32


@pytest.mark.slow
def test_jobs_of_a_sweep_parse_the_file_once(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two jobs with a student and a live teacher of the same file."""
    traces = tmp_path / "traces.jsonl"
    traces.write_text('{"problem": "the cat", "completion": "sat on the mat"}\n' * 4)
    asked = read_once(monkeypatch)
    words = arguments((gguf, gguf), traces, tmp_path, "loss=forward_kl", "trainer.max_steps=1")
    for name in ("a", "b"):
        run(words, tmp_path / name)
    assert len(asked) == 3  # the tokenizer, the configuration, the weights
    assert len(list((tmp_path / "cache").glob("gguf_weights-*"))) == 1
    assert distill.models.gguf_model._tokenizer.cache_info().currsize == 1
