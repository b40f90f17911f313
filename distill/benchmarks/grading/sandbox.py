"""Run a program that a model wrote, in a child process that can do no harm.

What holds, on Linux on x86-64 and arm64, for root and for ordinary users, in containers too; each by the
kernel and for the whole life of the child (`sandbox_child`), none by patching Python:

- **One process.** A seccomp filter lets no process be made and no program be executed (fork, vfork, clone
  without CLONE_THREAD, clone3, execve): there are no fork bombs, and no descendants that outlive the child.
  Threads work; more than `Limits.threads` end it.
- **It ends.** `Limits.seconds` of CPU time (RLIMIT_CPU, the second signal being SIGKILL) and `Limits.wall`
  seconds by the clock (the parent kills); it dies with the parent's thread too (PR_SET_PDEATHSIG, which the
  filter keeps it from taking back).
- **Memory.** `Limits.memory` bytes of addresses (RLIMIT_AS); no shared memory, memfds or message queues
  beside it.
- **Nobody else is touched.** It signals itself only (seccomp on kill, tgkill, and on fcntl's F_SETOWN; from
  Linux 6.12 on Landlock, too); no ptrace, no process_vm_*, no priorities or limits of others. Root's
  capabilities are dropped; the user stays the same, because another may not be able to read the interpreter.
- **No network.** No sockets but the two ends of a socketpair of its own; no io_uring.
- **Files.** Landlock (Linux 6.2 and later): it writes in its temporary folder only, which is its working
  folder and its HOME and is removed afterwards, and reads that, Python's library, the packages named here and
  the system's libraries; nothing of /proc, /etc, /home, the caller's folder. Modes, owners, times and
  attributes of files cannot be changed at all. At most `Limits.file_size` bytes a file (RLIMIT_FSIZE) and
  about `Limits.disk` bytes in all.
- **Nothing is inherited.** A fresh environment, /dev/null as input, no descriptors but its output and its
  report, a session of its own. Output is read to its end and kept up to `Limits.output` bytes.

What does not hold:

- Linux before 6.2, or without Landlock: nothing can be written at all, not even in the temporary folder.
  Linux before 5.13, or without Landlock: files that the user may read can be read, the environment in /proc
  of the user's processes among them; still without a network to send them over.
- Limits on disk and threads are looked at 20 times a second, so that they may be exceeded for as long.
- A bug of the kernel, or what one program can learn of others from timing.
- A verdict against a program that attacks this very harness: checks run in the program's process. That it
  ends early, prints what it likes, or changes builtins does not make it pass: each check that has passed is
  confirmed with a token of its own, which the harness fetches from a file only then. A program that looks
  through the open descriptors for it could forge it, and objects that are equal to everything pass the checks
  as they do in every harness."""

import contextlib
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
_TICK = 0.05  # seconds between two looks at what the child takes
_LONGEST_REPORT = 1 << 20
_TOKEN = 32  # characters
_LANDLOCK = 6  # newest version of its interface that is used; tests play older kernels


@dataclass(frozen=True)
class Limits:
    """What a program may take.

    Attributes:
        seconds: of CPU time, rounded up to whole ones; all its threads together.
        wall: seconds by the clock, more than `seconds` so that a busy machine changes no verdict.
        memory: bytes of addresses.
        file_size: bytes a file.
        disk: bytes of all files; a thousand files are too many, too.
        threads: at once.
        output: bytes kept of what it prints; the rest is read and dropped.
    """

    seconds: float = 10.0  # the slowest of MBPP's own programs takes 3.4
    wall: float = 40.0
    memory: int = 2 << 30
    file_size: int = 16 << 20
    disk: int = 64 << 20
    threads: int = 128
    output: int = 16 << 10


@dataclass(frozen=True)
class Outcome:
    """What became of a program.

    Attributes:
        passed: for each check whether it passed.
        reason: `right`; or of the first thing that went wrong `wrong: assertion` (in a check), `timeout`,
            `memory`, or `error: ` and the exception's name, the signal's, or what it took too much of.
        message: the exception's.
        output: the start of what it printed, errors included.
        seconds: by the clock.
    """

    passed: tuple[bool, ...]
    reason: str
    message: str
    output: str
    seconds: float


def check() -> None:
    """Refuse a machine on which programs cannot be confined.

    Raises:
        UserError: it is no Linux, or neither x86-64 nor arm64.
    """
    system, machine = sys.platform, platform.machine()
    if system != "linux" or machine not in ("x86_64", "aarch64"):
        raise UserError(
            f"programs that a model wrote run on Linux on x86_64 or aarch64 only, where the kernel confines "
            f"them, and this is {system} on {machine}: leave out humaneval and mbpp, or run in a Linux "
            f"container"
        )


def run(
    sources: Sequence[str],
    checks: Sequence[str] = (),
    *,
    limits: Limits | None = None,
    packages: Sequence[str] = ("numpy",),
) -> Outcome:
    """Run sources one after the other and then each check, in one namespace, in a child of its own.

    Safe to call from several threads at once. A check passes when it raises nothing; those behind one that
    fails are still run.

    Args:
        sources: Python programs; the first that raises ends it.
        checks: Python statements, such as an `assert`.
        limits: the default ones where None.
        packages: what it may import beside the standard library, where it is installed here.

    Raises:
        UserError: this machine cannot confine it.
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
                written = marshal.dumps(
                    job
                )  # two processes of one interpreter; json costs the child an import
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
    if not said and stopped is None:  # not the program's fault: it has not begun
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
        "PYTHONHASHSEED": "0",  # the same program, the same verdict
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }


@lru_cache(maxsize=16)
def _installed(package: str) -> str | None:
    """The folder that a package lies in."""
    found = importlib.util.find_spec(package)
    places = found.submodule_search_locations if found else None
    return str(Path(next(iter(places))).resolve().parent) if places else None


def _watch(
    child: subprocess.Popen[bytes], report: int, output: int, limits: Limits, folder: str
) -> tuple[bytes, bytes, str | None]:
    """What the child reports and prints, up to its end, and why it was ended, where it was. It is dead
    then."""
    kept = {report: bytearray(), output: bytearray()}
    room = {report: _LONGEST_REPORT, output: limits.output}
    poller = select.poll()
    for descriptor in kept:
        poller.register(descriptor, select.POLLIN)
    open_ones = set(kept)

    def read(milliseconds: float) -> bool:
        """Whether anything was read, or came to its end."""
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
        pass  # what is left in the pipes; nobody else writes to them
    return bytes(kept[report]), bytes(kept[output]), stopped


def _too_much(pid: int, folder: str, limits: Limits) -> str | None:
    try:
        threads = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[17])
    except (OSError, ValueError, IndexError):
        threads = 0  # it has just ended
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
            pass  # removed meanwhile, or a folder that nobody may open, and nobody could write to
        except OSError:
            return "error: too much written"  # a path too long to name
    return None


def _read_report(said: bytes, tokens: Sequence[str]) -> tuple[tuple[bool, ...], str | None, str]:
    """Which checks passed, the reason as far as the report has one, and the exception's message."""
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
    """The reason of a program that ended without a report."""
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
    """A folder with all that a program may have left in it: folders deeper than a path can name, or than
    `shutil.rmtree` can recurse, and such as nobody may open."""
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
            for each in inner:  # lifted, so that nothing ever lies deeper than two
                if each.is_dir(follow_symlinks=False):
                    os.chmod(each.path, 0o700)  # a folder that is moved is written to
                count += 1
                os.rename(each.path, os.path.join(folder, f"lifted-{count}"))
            os.rmdir(entry.path)
    os.rmdir(folder)
