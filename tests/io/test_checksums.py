"""Tests of checksums: a changed file is refused by name, and files without a checksum are read."""

import hashlib
import json
import random
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from distill.analysis.evaluate_model import Results
from distill.data.trace_set import COLUMNS, DEFAULTS, read_records, write_records
from distill.errors import UserError
from distill.evaluation.comparison_sides import _settings
from distill.generation.completion_log import CompletionLog
from distill.generation.engine import Written
from distill.io.cache import ShardCache
from distill.io.checksums import check, forget, note, note_folder, noted, sealed, unsealed, write_noted
from distill.models.language_model import ModelSource
from distill.runs.loggers import CsvMetrics
from distill.runs.metrics import read_metrics
from distill.runs.read import Run, read_run


def flip(path: Path, bit: int) -> None:
    """Change one bit of a file, counted from its start."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.unlink()  # an old one may be mapped into memory
    path.write_bytes(content)


def test_every_changed_bit_cut_and_missing_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"some weights")
    note_folder(tmp_path)
    assert noted(tmp_path) == [path]
    check([path], "train again")
    for bit in range(8 * path.stat().st_size):
        flip(path, bit)
        with pytest.raises(UserError, match=r"weights is damaged.*train again.*delete .*checksums\.json"):
            check([path], "train again")
        flip(path, bit)
    path.write_bytes(b"some weight")
    with pytest.raises(UserError, match="is damaged"):
        check([path], "train again")
    path.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        check([path], "train again")


def test_files_without_a_checksum_are_read_and_a_damaged_list_of_them_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a"
    check([path], "")  # nothing is known of it
    path.write_text("1")
    note(path)
    forget(path)
    path.write_text("2")
    check([path], "")
    for text in ("[", "[]", '{"../a": {}}', "\xff"):
        (tmp_path / "checksums.json").write_text(text, encoding="latin-1")
        with pytest.raises(UserError, match=r"checksums\.json is damaged.*delete it"):
            check([path], "")


def change_a_digit(path: Path) -> None:
    before = path.read_text()
    path.write_text(before.replace("1", "7", 1))
    assert path.read_text() != before


def test_a_changed_digit_in_a_finished_runs_metrics_is_found(tmp_path: Path) -> None:
    logger = CsvMetrics(tmp_path)
    logger.log_metrics({"train/loss": 0.125}, step=1)
    logger.save()
    assert read_metrics(logger.path)["train/loss"].tolist() == [0.125]  # while it trains, none is written
    note(logger.path)  # as at a run's end
    resumed = CsvMetrics(tmp_path)
    resumed.log_metrics({"train/loss": 0.25}, step=2)
    resumed.save()
    assert read_metrics(logger.path)["train/loss"].tolist() == [0.125, 0.25]  # longer, and not damaged
    note(logger.path)
    change_a_digit(logger.path)
    for read in (read_metrics, lambda path: CsvMetrics(path.parent)):
        with pytest.raises(UserError, match=r"metrics\.csv is damaged: it is not what was written"):
            read(logger.path)


def test_a_changed_digit_in_the_results_of_a_run_or_an_evaluation_is_found(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 0")
    figures: dict[str, Any] = dict.fromkeys(("tokens", "rollout_tokens", "seconds"), 1.0)
    write_noted(tmp_path / "summary.json", {"name": "a", "seed": 0, "benchmarks": {}, **figures})
    write_noted(tmp_path / "results.json", {"benchmarks": {"aime": {"settings": {"limit": 1}}}})
    assert isinstance(read_run(tmp_path), Run)
    assert _settings(tmp_path, None) == {"aime": {"limit": 1}}
    change_a_digit(tmp_path / "summary.json")
    change_a_digit(tmp_path / "results.json")
    assert "summary.json is damaged: it is not what was written" in str(read_run(tmp_path))
    with pytest.raises(UserError, match=r"results\.json is damaged: .*evaluate again"):
        _settings(tmp_path, None)
    source: Any = MagicMock(ModelSource)
    source.name, source.fingerprint = "a", "b"
    with pytest.raises(UserError, match=r"results\.json is damaged: .*the completions are kept"):
        Results(tmp_path, "a", source)


RECORDS: list[dict[str, object]] = [
    {},
    {"a": 1},
    {"text": 'x", "crc32": "00000000"}'},
    {"é": "\u2028\ud800"},
]


@pytest.mark.parametrize("record", RECORDS)
def test_a_sealed_line_comes_back_or_is_refused(record: dict[str, object]) -> None:
    if record:
        assert unsealed(sealed(record)) == record
    assert unsealed(json.dumps(record)) == record  # of an earlier version


def test_every_changed_bit_of_a_sealed_line_is_found_or_harmless() -> None:
    record = {"place": 3, "ids": [1, 2, 30], "text": "x = 12"}
    line = sealed(record).encode()
    for bit in range(8 * len(line)):
        changed = bytearray(line)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            found = unsealed(bytes(changed).decode())
        except ValueError:
            continue
        assert {name: found[name] for name in record} == record  # the bit was in the checksum's name


def test_a_journal_with_a_changed_digit_is_refused_by_its_line(tmp_path: Path) -> None:
    log = CompletionLog(tmp_path / "completions.jsonl")
    with log:
        log.add(0, Written(np.asarray([5, 6], dtype=np.int32), True, "12"))
        log.add(1, Written(None, False, "13"))
    assert log.read()[0].text == "12"
    log.path.write_text(log.path.read_text().replace('"text": "13"', '"text": "18"'))
    with pytest.raises(UserError, match=r"completions\.jsonl, line 2 is damaged \(it is not what"):
        log.read()


def shard(folder: Path) -> tuple[ShardCache, Path]:
    cache = ShardCache(folder, "thing", {}, 1)
    cache.write_rows(0, [{"ids": torch.arange(n), "logprobs": torch.randn(n, 2)} for n in (2, 0, 3)])
    return cache, cache.folder / "00000.safetensors"


def test_a_shard_with_any_bit_changed_is_refused(tmp_path: Path) -> None:
    cache, path = shard(tmp_path)
    expected = [part.read() for part in cache.rows(0)]
    bits = random.Random(0).sample(range(8 * path.stat().st_size), 150)
    for bit in bits:
        flip(path, bit)
        try:
            found = [part.read() for part in cache.rows(0)]
        except UserError as error:
            assert str(path) in str(error)  # noqa: PT017  a flip of what holds no data changes nothing
        else:
            for one, other in zip(found, expected, strict=True):
                assert all(torch.equal(one[name], other[name]) for name in expected[0])
        flip(path, bit)


def test_a_shard_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    cache, path = shard(tmp_path)
    expected = cache.rows(0)[2].read()
    tensors = load_file(path)
    path.unlink()
    save_file({name: values for name, values in tensors.items() if name != "checksums"}, path)
    assert torch.equal(cache.rows(0)[2].read()["logprobs"], expected["logprobs"])


@pytest.mark.parametrize("alone", [False, True])
def test_a_trace_set_with_a_changed_bit_is_refused(tmp_path: Path, alone: bool) -> None:
    path = tmp_path / "traces.parquet"
    empty = {**dict.fromkeys(COLUMNS), "problem_id": "p", "sample": 0, **DEFAULTS, "finished": True}
    empty |= {"prompt_ids": [1], "completion_ids": [2], "ids_from": "text", "tokenizer": "t"}
    texts = [hashlib.sha256(b"%d" % n).hexdigest() for n in range(20)]  # which do not compress
    records = [{**empty, "id": f"{n}", "problem": text, "completion": text} for n, text in enumerate(texts)]
    write_records(path, records)
    assert [record["id"] for record in read_records(path)] == [f"{n}" for n in range(20)]
    if alone:  # copied without the file of checksums: Parquet's own find a change of the data
        (tmp_path / "checksums.json").unlink()
    content = path.read_bytes()
    flip(path, 8 * content.index(sorted(texts)[9].encode()) + 80)
    with pytest.raises(UserError, match=r"traces\.parquet is (damaged|no readable Parquet)"):
        read_records(path)
