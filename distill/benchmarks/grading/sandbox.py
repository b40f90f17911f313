"""Run a model-written program in a sandboxed child process.

Guarantees on Linux (x86-64 and arm64), for root and ordinary users, also in containers. All are enforced by
the kernel for the child's whole lifetime (`sandbox_child`), none by patching Python:

- **One process.** A seccomp filter forbids creating processes and executing programs (fork, vfork, clone
  without CLONE_THREAD, clone3, execve): no fork bombs, no descendants that outlive the child. Threads work;
  the child is killed if it has more than `Limits.threads`.
- **Time.** `Limits.seconds` of CPU time (RLIMIT_CPU, whose second signal is SIGKILL) and `Limits.wall`
  seconds of wall-clock time (the parent kills it). The child also dies with the parent's thread
  (PR_SET_PDEATHSIG, which the filter keeps it from resetting).
- **Memory.** `Limits.memory` bytes of address space (RLIMIT_AS); no shared memory, memfds or message queues.
- **Other processes.** It can signal only itself (seccomp on kill, tgkill, and on fcntl's F_SETOWN; from Linux
  6.12 on also Landlock). No ptrace, no process_vm_*, no changes of others' priorities or limits. Root's
  capabilities are dropped; the user stays the same, because another user may be unable to read the
  interpreter.
- **Network.** No sockets except the two ends of its own socketpair; no io_uring.
- **Files.** Landlock (Linux 6.2 and later): it can write only in its temporary folder, which is its working
  folder and HOME and is removed afterwards. It can read that folder, Python's library, the packages named
  here and the system's libraries, but not /proc, /etc, /home or the caller's folder. Modes, owners, times and
  attributes of files cannot be changed. At most `Limits.file_size` bytes per file (RLIMIT_FSIZE) and about
  `Limits.disk` bytes in total.
- **Inheritance.** A fresh environment, /dev/null as input, no file descriptors except its output and its
  report, its own session. Output is read to the end; the first `Limits.output` bytes are kept.

Limitations:

- Linux before 6.2: nothing can be written, not even in the temporary folder. Linux before 5.13, or without
  Landlock: no program is run (`check`), because it could read all files of the user.
- Limits on disk and threads are checked 20 times a second, so they may be exceeded for that long.
- No protection from kernel bugs, or from timing side channels between programs.
- Checks run in the program's process, so a program may attack the harness. Exiting early, printing anything
  or changing builtins does not make it pass: each passed check is confirmed by a secret token, which the
  harness reads from a file only after the check has passed. A program that searches the open descriptors for
  the tokens could forge them. Objects that are equal to everything pass the checks, as in every harness."""

import contextlib
import ctypes
import importlib.util
import marshal
import math
import os
import platform
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from distill.errors import UserError

_LAUNCHER = str(Path(__file__).with_name("sandbox_child.py"))
_TICK = 0.05  # seconds between two checks of the child's resources
_LONGEST_REPORT = 1 << 20
_TOKEN = 32  # characters of a token
_LANDLOCK = 6  # newest Landlock ABI version to use; tests lower it to simulate older kernels


@dataclass(frozen=True)
class Limits:
    """Resource limits of a program.

    Attributes:
        seconds: CPU seconds of all threads together, rounded up to whole seconds.
        wall: wall-clock seconds; larger than `seconds`, so that a busy machine does not change verdicts.
        memory: bytes of address space.
        file_size: bytes per file.
        disk: bytes of all files together; there is also a limit of 1,000 files.
        threads: number of simultaneous threads.
        output: bytes of printed output to keep; the rest is discarded.
    """

    seconds: float = 10.0  # the slowest of MBPP's reference programs takes 3.4
    wall: float = 40.0
    memory: int = 2 << 30
    file_size: int = 16 << 20
    disk: int = 64 << 20
    threads: int = 128
    output: int = 16 << 10


@dataclass(frozen=True)
class Outcome:
    """Outcome of running a program.

    Attributes:
        passed: whether each check passed.
        reason: `right`, or the first failure: `wrong: assertion` (in a check), `timeout`, `memory`, or
            `error: ` with the name of the exception or signal, or the exceeded limit.
        message: message of the exception.
        output: start of the printed output, including stderr.
        seconds: wall-clock seconds.
    """

    passed: tuple[bool, ...]
    reason: str
    message: str
    output: str
    seconds: float


def check() -> None:
    """Check that programs can be sandboxed on this machine.

    Raises:
        UserError: the system is not Linux, the machine is neither x86-64 nor arm64, or the kernel has no
            Landlock.
    """
    system, machine = sys.platform, platform.machine()
    if system != "linux" or machine not in ("x86_64", "aarch64"):
        raise UserError(
            f"programs that a model wrote run on Linux on x86_64 or aarch64 only, where the kernel confines "
            f"them, and this is {system} on {machine}: leave out humaneval and mbpp, or run in a Linux "
            f"container"
        )
    if min(_landlock(), _LANDLOCK) < 1:
        raise UserError(
            f"programs that a model wrote are not run here: this kernel ({platform.release()}) has no "
            f"Landlock, so they could read all your files: leave out humaneval and mbpp, or run on Linux "
            f"5.13 or later with Landlock enabled (security=landlock)"
        )


@lru_cache(maxsize=1)
def _landlock() -> int:
    """The newest Landlock ABI version of this kernel; below 1: none."""
    create, version = 444, 1  # landlock_create_ruleset has the same number on every architecture
    return ctypes.CDLL(None).syscall(create, None, ctypes.c_size_t(0), ctypes.c_uint32(version))


def run(
    sources: Sequence[str],
    checks: Sequence[str] = (),
    *,
    limits: Limits | None = None,
    packages: Sequence[str] = ("numpy",),
) -> Outcome:
    """Run sources in order and then each check, in one namespace, in a new child process.

    Thread-safe. A check passes if it raises nothing; a failed check does not prevent later ones from running.

    Args:
        sources: Python programs; the first that raises ends the run.
        checks: Python statements, such as an `assert`.
        limits: resource limits; None: the defaults.
        packages: packages it may import besides the standard library, if they are installed.

    Raises:
        UserError: this machine cannot sandbox programs.
    """
    check()
    limits = limits or Limits()
    found = {name: place for name in packages if (place := _installed(name)) is not None}
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "PYTHONHOME") if name in os.environ}
    tokens = [secrets.token_hex(_TOKEN // 2) for _ in checks]
    with _temporary_folder() as folder, tempfile.TemporaryFile() as stream:
        reading, writing = os.pipe()
        with open(reading, "rb", buffering=0) as report:
            try:
                job: dict[str, Any] = {
                    "sources": list(sources),
                    "checks": list(checks),
                    "folder": folder,
                    "readable": [
                        *kept.get("LD_LIBRARY_PATH", "").split(":"),
                        *(f"{place}/{name}{end}" for name, place in found.items() for end in ("", ".libs")),
                    ],
                    "packages": found,
                    "forget": list(kept),
                    "memory": limits.memory,
                    "file_size": limits.file_size,
                    "cpu": math.ceil(limits.seconds),
                    "parent": os.getpid(),
                    "report": writing,
                    "landlock": _LANDLOCK,
                    "token_size": _TOKEN,
                }
                written = marshal.dumps(job)  # marshal, because importing json would slow the child's start
                stream.write(len(written).to_bytes(8, "little") + written + "".join(tokens).encode())
                stream.seek(0)
                began = time.monotonic()
                child = subprocess.Popen(
                    [sys.executable, "-S", "-s", "-B", "-W", "ignore", _LAUNCHER],
                    stdin=stream,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    pass_fds=(writing,),
                    cwd=folder,
                    env={**kept, **_environment(folder)},
                    start_new_session=True,
                )
            finally:
                os.close(writing)
            assert child.stdout is not None
            with child.stdout:
                said, printed, stopped = _watch(child, report.fileno(), child.stdout.fileno(), limits, folder)
            seconds = time.monotonic() - began
    if not said and stopped is None:  # not the program's fault: it has not started
        raise UserError(
            "the interpreter for programs that a model wrote does not start; it says: "
            f"{printed.decode('utf-8', 'replace').strip() or 'nothing'}"
        )
    passed, reason, message = _read_report(said, tokens)
    if reason is None:
        reason = stopped or _ending(child.returncode, seconds, limits)
    return Outcome(passed, reason, message, printed.decode("utf-8", "replace"), seconds)


def _environment(folder: str) -> dict[str, str]:
    return {
        "HOME": folder,
        "TMPDIR": folder,
        "LANG": "C.UTF-8",
        "PYTHONUTF8": "1",
        "PYTHONHASHSEED": "0",  # deterministic verdicts
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }


@lru_cache(maxsize=16)
def _installed(package: str) -> str | None:
    """The folder that contains a package; None if it is not installed."""
    found = importlib.util.find_spec(package)
    places = found.submodule_search_locations if found else None
    return str(Path(next(iter(places))).resolve().parent) if places else None


def _watch(
    child: subprocess.Popen[bytes], report: int, output: int, limits: Limits, folder: str
) -> tuple[bytes, bytes, str | None]:
    """Read the child's report and output until it ends; kill it if it exceeds a limit.

    Returns:
        Report, output, and the reason for killing it (None if it ended by itself). The child is dead.
    """
    kept = {report: bytearray(), output: bytearray()}
    room = {report: _LONGEST_REPORT, output: limits.output}
    poller = select.poll()
    for descriptor in kept:
        poller.register(descriptor, select.POLLIN)
    open_ones = set(kept)

    def read(milliseconds: float) -> bool:
        """Read what is available; return whether there was anything (data or end of file)."""
        ready = poller.poll(milliseconds)
        for descriptor, _ in ready:
            part = os.read(descriptor, 1 << 16)
            kept[descriptor] += part[: max(0, room[descriptor] - len(kept[descriptor]))]
            if not part:
                poller.unregister(descriptor)
                open_ones.discard(descriptor)
        return bool(ready)

    deadline = time.monotonic() + limits.wall
    look = time.monotonic() + _TICK
    stopped = None
    try:
        while child.poll() is None and stopped is None:
            if open_ones:
                read(1000 * _TICK)
            else:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(_TICK)
            now = time.monotonic()
            if now >= deadline:
                stopped = "timeout"
            elif now >= look:
                look = now + _TICK
                stopped = _too_much(child.pid, folder, limits)
    finally:
        child.kill()
        child.wait()
    while open_ones and read(0):
        pass  # read what is left in the pipes; no other process writes to them
    return bytes(kept[report]), bytes(kept[output]), stopped


def _too_much(pid: int, folder: str, limits: Limits) -> str | None:
    try:
        threads = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[17])
    except (OSError, ValueError, IndexError):
        threads = 0  # the child has just ended
    if threads > limits.threads:
        return "error: too many threads"
    taken, entries, folders = 0, 0, [folder]
    while folders:
        try:
            with os.scandir(folders.pop()) as found:
                for entry in found:
                    entries += 1
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        taken += entry.stat(follow_symlinks=False).st_blocks * 512
                    if taken > limits.disk or entries > 1000:
                        return "error: too much written"
        except (FileNotFoundError, PermissionError):
            pass  # removed meanwhile, or a folder without permissions, which cannot be written to either
        except OSError:
            return "error: too much written"  # the path is too long
    return None


def _read_report(said: bytes, tokens: Sequence[str]) -> tuple[tuple[bool, ...], str | None, str]:
    """Parse the report: which checks passed, the reason (None if not reported), the exception's message."""
    passed = [False] * len(tokens)
    reason, message = None, ""
    lines = said.decode("utf-8", "replace").split("\n")[:-1]
    if lines and lines[0].startswith("refused "):
        raise UserError(
            f"this machine does not confine programs that a model wrote ({lines[0][8:]}): leave out "
            f"humaneval and mbpp, or run where seccomp is allowed"
        )
    for line in lines[1:]:
        what, _, rest = line.partition(" ")
        number, _, rest = (what, "", rest) if what == "program" else rest.partition(" ")
        if what == "passed":
            index = int(number) if number.isdecimal() and len(number) < 6 else len(tokens)
            if index < len(tokens) and secrets.compare_digest(rest.encode(), tokens[index].encode()):
                passed[index] = True
        elif what in ("program", "failed") and reason is None:
            kind, _, message = rest.partition(" ")
            reason = f"error: {kind}"
            if kind == "AssertionError" and what == "failed":
                reason = "wrong: assertion"
            elif kind == "MemoryError":
                reason = "memory"
    return tuple(passed), "right" if reason is None and all(passed) else reason, message


def _ending(code: int, seconds: float, limits: Limits) -> str:
    """The reason for a program that ended without a complete report."""
    if code == -signal.SIGXCPU or (code == -signal.SIGKILL and seconds >= limits.seconds):
        return "timeout"
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"error: {signal.Signals(-code).name}"
    return "error: ended early"


@contextlib.contextmanager
def _temporary_folder() -> Iterator[str]:
    folder = os.path.realpath(tempfile.mkdtemp(prefix="program-"))
    try:
        yield folder
    finally:
        _remove(folder)


def _remove(folder: str) -> None:
    """Remove a folder with anything that a program may have left in it: unreadable folders, and folders
    nested deeper than paths or the recursion of `shutil.rmtree` allow."""
    count = 0
    while True:
        with os.scandir(folder) as found:
            entries = list(found)
        if not entries:
            break
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
                continue
            os.chmod(entry.path, 0o700)
            with os.scandir(entry.path) as found:
                inner = list(found)
            for each in inner:  # move one level up, so that the nesting is never deeper than two
                if each.is_dir(follow_symlinks=False):
                    os.chmod(each.path, 0o700)  # moving a folder needs write permission on it
                count += 1
                os.rename(each.path, os.path.join(folder, f"lifted-{count}"))
            os.rmdir(entry.path)
    os.rmdir(folder)
