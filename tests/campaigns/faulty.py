"""Run a command that meets a fault: `faulty.py MODE NUMBER ROOT REPORT COMMAND WORDS...`.

File operations below ROOT are counted by an audit hook: files opened for writing, and paths that are renamed,
removed, made or linked. What other languages write is not seen until it is renamed.

Modes:
    count: write the number of operations to REPORT.
    kill: kill the process group before operation NUMBER.
    full: from operation NUMBER on, refuse what needs room: the disk is full.
    large: no file may become larger than NUMBER bytes, whoever writes it.
"""

import errno
import os
import resource
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate", "shutil.rmtree"}
_NEED_ROOM = {"open", "os.mkdir", "os.link", "os.rename"}


def watch(mode: str, number: int, root: str, report: str) -> None:
    """Install the hook, which stays until the process ends."""
    operations = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal operations
        if event == "open":
            writes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if not writes:
                return
        elif event not in _CHANGES:
            return
        path = arguments[0]
        if not isinstance(path, str | bytes | os.PathLike) or not os.path.abspath(
            os.fsdecode(path)
        ).startswith(root):
            return
        operations += 1
        if mode == "kill" and operations == number:
            os.killpg(0, signal.SIGKILL)
        if mode == "full" and operations >= number and event in _NEED_ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fsdecode(path))

    if mode == "large":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (number, resource.RLIM_INFINITY))
        return
    sys.addaudithook(hook)
    if mode == "count":
        import atexit

        atexit.register(lambda: Path(report).write_text(str(operations)))


def main() -> None:
    mode, number, root, report, *words = sys.argv[1:]
    watch(mode, int(number), root, report)
    sys.argv = words
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    main()
