"""Tests of commands on the real vLLM: what they write, how they end, and that nothing outlives them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from tiny_llama import WORDS, make_llama

from distill.data.trace_set import read_records

ROOT = Path(__file__).resolve().parents[2]
PROBLEMS = ["data=arithmetic", "data.limit=12", "data.operations=[2,4]", "data.max_new_tokens=16"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("model") / "teacher", tied=False)


def start(words: list[str], folder: Path, **variables: str) -> "subprocess.Popen[str]":
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_ENABLE")}
    environment = {**inherited, "PYTHONPATH": str(ROOT), "TYPE_CHECKS": "off", **variables}
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Exit status and what was printed; nobody of the command's session is left."""
    out, errors = process.communicate(timeout=400)
    assert survivors(process.pid) == []
    return process.returncode, out, errors


def finish_cleanly(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Like `finish`; no shared memory is left either, and vLLM's own notices are not printed."""
    status, out, errors = finish(process)
    for word in ("leaked", "FutureWarning", "WARNING", "INFO"):
        assert word not in errors, errors
    return status, out, errors


def survivors(session: int) -> list[str]:
    """Processes of a session that go on, some seconds after its first one has ended."""
    deadline, found = time.monotonic() + 10, [""]
    while found and time.monotonic() < deadline:
        time.sleep(0.1)
        alive = (one for one in psutil.process_iter(["pid", "status"]) if one.status() != "zombie")
        found = []
        for one in alive:
            try:
                if os.getsid(one.pid) == session:
                    found.append(" ".join(one.cmdline()))
            except (ProcessLookupError, psutil.Error):
                continue
    return found


def generate(teacher: Path, folder: Path, *more: str) -> list[str]:
    few = [*PROBLEMS, "samples=2", f"model.teacher={teacher}", f"out={folder / 'set'}"]
    return ["-m", "distill.generate", "model=tiny", *few, "engine=vllm", *WORDS, *more]


@pytest.mark.parametrize("processes", ["as it comes", "its own"])
def test_generate_writes_a_set_and_leaves_nobody_behind(
    processes: str, teacher: Path, tmp_path: Path
) -> None:
    if processes == "its own":  # as on a GPU; its resource tracker has words about shared memory then
        variables = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
        status, out, errors = finish(start(generate(teacher, tmp_path), tmp_path, **variables))
    else:
        status, out, errors = finish_cleanly(start(generate(teacher, tmp_path), tmp_path))
    assert status == 0, errors
    assert "24 traces of 12 problems" in out
    records = read_records(tmp_path / "set")
    assert {record["engine"] for record in records} == {"vllm"}
    assert {len(record["teacher_logprobs"]) == len(record["completion_ids"]) for record in records} == {True}
    assert max(max(record["completion_ids"]) for record in records) < 18
    assert len({tuple(record["completion_ids"]) for record in records}) > 20


@pytest.mark.parametrize(
    ("more", "said"),
    [
        # The shortest prompt of these problems has more tokens.
        (["+engine.max_model_len=2"], "tokens, which leaves no room in the context of the teacher .*(2)"),
        (["+engine.no_such_option=1"], "vLLM does not start with"),
    ],
)
def test_a_mistake_is_one_sentence(more: list[str], said: str, teacher: Path, tmp_path: Path) -> None:
    status, _, errors = finish(start(generate(teacher, tmp_path, *more), tmp_path))
    assert status == 1
    assert said.partition(" .*")[0] in errors
    assert "Traceback" not in errors
    assert len([line for line in errors.splitlines() if "error:" in line]) == 1


def test_a_generation_that_is_interrupted_leaves_nobody_behind(teacher: Path, tmp_path: Path) -> None:
    long = generate(teacher, tmp_path, "data.limit=2000", "engine.batch=20", "samples=4")
    process = start(long, tmp_path)
    log = tmp_path / "set" / "completions.jsonl"
    deadline = time.monotonic() + 200
    while not (log.is_file() and log.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
        assert process.poll() is None, process.communicate()
    os.kill(process.pid, signal.SIGINT)
    status, _, errors = finish(process)
    assert status == 130, errors
    assert "Traceback" not in errors


def test_evaluate_gives_the_score_of_transformers(teacher: Path, tmp_path: Path) -> None:
    results: dict[str, Any] = {}
    for engine, more in (("vllm", WORDS), ("hf", [])):
        words = ["-m", "distill.evaluate", f"model={teacher}", "benchmark=arithmetic", f"engine={engine}"]
        few = ["benchmark.limit=20", f"out={tmp_path / engine}", *more]
        status, _, errors = finish_cleanly(start([*words, *few], tmp_path))
        assert status == 0, errors
        lines = (tmp_path / engine / "samples.jsonl").read_text().splitlines()
        results[engine] = [json.loads(line)["completion"] for line in lines]
    assert len(results["hf"]) == 20
    assert results["vllm"] == results["hf"]
