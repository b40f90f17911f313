"""Tests of generating a trace set through a real local `transformers serve` process."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest
from test_generate import run

from distill.errors import UserError
from distill.generation.completion_log import CompletionLog
from distill.generation.engine import Written

# What transformers[serving] asks for beyond what this package needs anyway.
MISSING = [name for name in ("accelerate", "fastapi", "openai", "pydantic", "uvicorn") if not find_spec(name)]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(MISSING),
        reason=f'transformers serve needs {", ".join(MISSING)}: pip install "transformers[serving]"',
    ),
]

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
TEACHER = Path(__file__).resolve().parents[2] / "distill" / "tiny" / "teacher"
FEW = ["model=tiny", "data=arithmetic", "data.limit=12", "data.operations=[2,4]"]
# The command `transformers`, of this very Python; it ends with whoever started it, also where that is killed.
COMMAND = """
import os, signal, sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), os.killpg(0, signal.SIGKILL)), daemon=True).start()
from transformers.cli.transformers import main
main()
"""


class Serving:
    """`transformers serve` at a free port; it loads whichever model a request names."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.folder = folder
        self.starts = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """What it printed since it was last started."""
        return self.folder / f"server{self.starts}.log"

    def start(self) -> None:
        self.starts += 1
        options = ["--host", "127.0.0.1", "--port", str(self.port), "--device", "cpu"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", COMMAND, "serve", *options],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def wait(self, seconds: float = 180.0) -> None:
        """Until it answers."""
        assert self._process is not None
        end = time.monotonic() + seconds
        while time.monotonic() < end and self._process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{self.port}/health", trust_env=False).status_code == 200:
                    return
            time.sleep(0.2)
        pytest.fail(f"transformers serve does not start:\n{self.log.read_text()[-2000:]}")

    def kill(self) -> None:
        """It and all that it may have started."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)
        assert process.stdin is not None
        process.stdin.close()
        with pytest.raises(ProcessLookupError):  # nobody of its group is left
            os.killpg(process.pid, 0)

    def answered(self) -> int:
        """Completions since it was last started, by its own log."""
        return self.log.read_text().count('"POST /v1/chat/completions HTTP/1.1" 200')


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    found = Serving(tmp_path_factory.mktemp("server"))
    try:
        found.start()
        found.wait()
        yield found
    finally:
        found.kill()


def make_teacher(folder: Path, *, parsed: bool = True, samples: bool = True) -> Path:
    """The embedded teacher as a chat model's folder.

    Args:
        folder: made here.
        parsed: with a template of its answers in the tokenizer. Without one, transformers serve takes that of
            the architecture, here Qwen's, which does not fit: it leaves prompt and end token in the answer.
        samples: with the generation settings without which transformers serve never samples.
    """
    shutil.copytree(TEACHER, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    if parsed:
        described = folder / "tokenizer_config.json"
        fields = {"content": {"close": ["<eos>"], "content": "text"}}
        template = {"defaults": {"role": "assistant"}, "start_anchor": "=", "fields": fields}
        described.write_text(json.dumps(json.loads(described.read_text()) | {"response_template": template}))
    if samples:
        described = folder / "generation_config.json"
        described.write_text(json.dumps(json.loads(described.read_text()) | {"do_sample": True}))
    return folder


def words(server: Serving, teacher: Path, *more: str) -> list[str]:
    fixed = ["engine=server", f"engine.url={server.url}", "engine.concurrency=4", f"model.teacher={teacher}"]
    return [*FEW, *fixed, *more]


@pytest.mark.parametrize("parsed", [True, False])
def test_a_real_servers_greedy_traces_are_those_that_the_model_writes_here(
    parsed: bool, server: Serving, tmp_path: Path
) -> None:
    teacher = make_teacher(tmp_path / "teacher", parsed=parsed)
    before = server.answered()
    # So short that some are cut off.
    greedy = ["samples=1", "sampling.temperature=0", "sampling.top_p=1", "data.max_new_tokens=16"]
    records = run(words(server, teacher, *greedy), tmp_path / "served")
    here = run([*FEW, f"model.teacher={teacher}", *greedy], tmp_path / "here")
    assert server.answered() - before == len(records) == len(here) == 12
    for record, own in zip(records, here, strict=True):
        assert (record["engine"], record["ids_from"]) == ("server", "text")
        assert record["completion"]
        assert (record["id"], record["prompt_ids"]) == (own["id"], own["prompt_ids"])
        assert record["completion"] == own["completion"]
        if len(own["completion_ids"]) < 16 or not own["finished"]:
            assert record["finished"] == own["finished"]
            assert record["completion_ids"] == own["completion_ids"]
            assert (record["correct"], record["answer"]) == (own["correct"], own["answer"])
    assert {record["finished"] for record in records} == {True, False}


def test_a_real_server_samples_where_its_model_says_so_and_else_it_is_said(
    server: Serving, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "each of 12 problems got the same completion every time"
    hot = ["samples=3", "sampling.temperature=2", "sampling.top_p=1"]
    records = run(words(server, make_teacher(tmp_path / "teacher"), *hot), tmp_path / "hot")
    texts = [
        {r["completion"] for r in records if r["problem_id"] == one}
        for one in {r["problem_id"] for r in records}
    ]
    assert len(records) == 36
    assert max(len(different) for different in texts) == 3
    assert all(record["completion"] and len(record["completion_ids"]) <= 96 for record in records)
    assert sum(record["finished"] for record in records) > 18
    assert said not in capsys.readouterr().err
    copies = run(words(server, make_teacher(tmp_path / "cold", samples=False), *hot), tmp_path / "copies")
    assert len({r["completion"] for r in copies if r["problem_id"] == copies[0]["problem_id"]}) == 1
    assert said in capsys.readouterr().err


def test_a_real_server_that_refuses_says_what_to_mend(server: Serving, tmp_path: Path) -> None:
    teacher = make_teacher(tmp_path / "teacher")
    with pytest.raises(UserError, match=r"refuses: status 422, .*Unexpected fields in the request.*top_k"):
        run(words(server, teacher, "samples=1", "sampling.top_k=5"), tmp_path / "top_k")
    few = ["samples=1", "engine.retries=1", "engine.wait=0.01"]
    with pytest.raises(UserError, match=r"failed 2 times, .*status 500 \('Internal Server Error'\)"):
        run(words(server, teacher, *few, "engine.served_as=/no/such/model"), tmp_path / "name")


def test_a_real_server_that_dies_and_comes_back_is_asked_for_the_rest_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, folder = make_teacher(tmp_path / "teacher"), tmp_path / "set"
    server = Serving(tmp_path)
    kept = folder / "completions.jsonl"
    try:
        server.start()
        server.wait()
        add = CompletionLog.add

        def deadly(self: CompletionLog, place: int, written: Written) -> None:
            add(self, place, written)
            if len(kept.read_bytes().splitlines()) == 7:
                server.kill()

        monkeypatch.setattr(CompletionLog, "add", deadly)
        with pytest.raises(
            UserError, match=r"failed 2 times, the last with .*the completions so far are stored"
        ):
            run(words(server, teacher, "samples=2", "engine.retries=1", "engine.wait=0.1"), folder)
        monkeypatch.setattr(CompletionLog, "add", add)
        first = kept.read_bytes()
        assert 7 <= first.count(b"\n") < 24
        assert not (folder / "traces.parquet").exists()
        server.start()  # and is not waited for: a server that is not up yet is asked again
        records = run(words(server, teacher, "samples=2", "engine.retries=12", "engine.wait=0.5"), folder)
        assert kept.read_bytes().startswith(first)
        places = [json.loads(line)["place"] for line in kept.read_bytes().splitlines()]
        assert sorted(places) == list(range(24))  # none lost, none written twice
        assert server.answered() == 24 - first.count(b"\n")
        assert len(records) == 24
        assert all(record["completion"] for record in records)
    finally:
        server.kill()
