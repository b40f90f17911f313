"""Run commands in processes of their own, forked from one that has imported everything already, and composed
what many of them say.

A start takes a tenth of a second instead of several. Starts from nothing: test_wheel.py, test_cli.py,
test_command.py.
"""

import atexit
import contextlib
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path

from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from lightning.pytorch.utilities import rank_zero_only

ROOT = Path(__file__).resolve().parents[1]
IMPORTED = [
    "distill.training.run",
    "distill.generate",
    "distill.planning.command",
    "matplotlib.pyplot",
    "hydra.main",
    "composed",  # last: it composes with what the package has registered
]


def environment() -> dict[str, str]:
    """Of a command that a test starts."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "PYTHONPATH": str(ROOT)}


class Command:
    """A command under way, in a process group of its own; what tests use of subprocess.Popen."""

    def __init__(self, words: Sequence[str], cwd: Path | None = None, env: Mapping[str, str] | None = None):
        """Start it: `train.py …` or `-m a.module …`."""
        self.args = list(words)
        self._files = tempfile.TemporaryDirectory()
        self._paths = [os.path.join(self._files.name, name) for name in ("stdout", "stderr")]
        environ = dict(env or environment())
        self._process = _server().Process(
            target=_run, args=(self.args, os.fspath(cwd or Path.cwd()), environ, *self._paths)
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def said(self) -> tuple[str, str]:
        """Standard output and error so far."""
        out, err = (Path(path).read_text() if os.path.exists(path) else "" for path in self._paths)
        return out, err

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        self._process.join(timeout)
        if self._process.is_alive():
            raise subprocess.TimeoutExpired(self.args, timeout, *self.said())
        return self.said()

    def kill(self) -> None:
        """Kill it and all that it started, if it has not ended."""
        with contextlib.suppress(ProcessLookupError):
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                os.kill(self.pid, signal.SIGKILL)  # it has only just started, and has no group yet

    def close(self) -> None:
        """End it and all that it started."""
        if self._process.is_alive():
            self.kill()
        self._process.join()
        self._files.cleanup()


def run(
    words: Sequence[str], cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """As subprocess.run of `python WORDS`, with its output as text."""
    command = Command(words, cwd, env)
    try:
        out, err = command.communicate(timeout)
        assert command.returncode is not None
        return subprocess.CompletedProcess(command.args, command.returncode, out, err)
    finally:
        command.close()


def run_ranks(
    words: Sequence[str], cwd: Path | None = None, count: int = 2, timeout: float = 120
) -> list[subprocess.CompletedProcess[str]]:
    """As `torchrun --nproc-per-node COUNT WORDS`: what each rank's process said."""
    commands = start_ranks(words, cwd, count)
    try:
        for command in commands:
            command.communicate(timeout)
        return [subprocess.CompletedProcess(one.args, one.returncode or 0, *one.said()) for one in commands]
    finally:
        for command in commands:
            command.close()


def start_ranks(words: Sequence[str], cwd: Path | None = None, count: int = 2) -> list[Command]:
    """The processes that torchrun would start, with the variables that it sets."""
    shared = environment() | meeting_point() | {
        "TORCHELASTIC_RUN_ID": "none",
        "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "GROUP_RANK": "0",
    }  # fmt: skip
    return [
        Command(words, cwd, shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(count)
    ]


def meeting_point() -> dict[str, str]:
    """The variables that tell all ranks where rank 0 listens: a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}


def _server() -> ForkServerContext:
    """The one that has imported everything; Python starts it with the first process that is asked of it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    kept = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        if kept is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = kept
    return context


def _run(words: list[str], cwd: str, environ: dict[str, str], out: str, err: str) -> None:
    os.setsid()
    for number, path in ((1, out), (2, err)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, number)
        os.close(opened)
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(cwd)
    sys.path[:0] = paths = environ.get("PYTHONPATH", "").split(os.pathsep)
    if paths != [str(ROOT)]:
        Singleton._instances.pop(Plugins, None)  # Hydra looks anew, for there may be some in these folders
    # Lightning reads the rank when it is imported, which was before.
    rank = next((environ[name] for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if name in environ), "0")
    rank_zero_only.rank = int(rank)  # pyright: ignore[reportFunctionMemberAccess]
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        if not (end.code is None or isinstance(end.code, int)):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
