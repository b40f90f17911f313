"""Locks for folders that only one process at a time may write into."""

import errno
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from distill.errors import Busy, UserError
from distill.io.files import write_atomically
from distill.io.shards import shards_in

# Environment variables from which Lightning reads the rank too; importing it takes long. torchrun sets RANK.
# Without it, the first process is the first one of the first host.
_RANKS = ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
_ATTEMPTS, _PATIENCE = 20, 0.2  # attempts to lock a folder, and seconds per attempt


def first_rank() -> bool:
    """Whether this process has rank 0, which writes and prints."""
    if "lightning.pytorch" in sys.modules:
        from lightning.pytorch.utilities import rank_zero_only

        if getattr(rank_zero_only, "rank", None):  # 0 on every host until a trainer is made
            return False
    names = ("RANK",) if "RANK" in os.environ else _RANKS
    return not any(int(os.environ.get(name) or 0) for name in names)


def started_together() -> bool:
    """Whether torchrun, or srun with several tasks, has started this process as one of several.

    The processes that Lightning itself starts on a host do not count: they get the first one's folder.
    """
    if os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):  # of a shell, as Lightning has it
        return int(os.environ.get("WORLD_SIZE") or 1) > 1
    return max(int(os.environ.get(name) or 1) for name in ("WORLD_SIZE", "SLURM_NTASKS")) > 1


def processes_started() -> int | None:
    """Number of processes that torchrun or SLURM says that it has started for this run; None: nobody has."""
    if os.environ.get("WORLD_SIZE"):  # first: torchrun inside srun starts more than srun
        return int(os.environ["WORLD_SIZE"])
    tasks, job = os.environ.get("SLURM_NTASKS"), os.environ.get("SLURM_JOB_NAME")
    return int(tasks) if tasks and job not in ("bash", "interactive") else None


@contextmanager
def locked(folder: Path, key: str = "dir") -> Iterator[None]:
    """Lock a folder, so that no two processes write into it; only a run's first rank takes the lock.

    At the end, an empty folder is removed.

    Args:
        folder: created if needed.
        key: the config key that names it, for messages.

    Raises:
        Busy: another process holds the lock.
        UserError: the folder cannot be written to.
    """
    if not first_rank():
        yield
        return
    lock = _acquired(folder, key)
    try:
        yield
    finally:
        # Delete the lock file before the release: a process that opened it meanwhile sees, when it gets the
        # lock, that the file is gone, and tries again. After the release, this would delete the next holder's
        # lock file.
        with suppress(OSError):
            (folder / ".lock").unlink(missing_ok=True)
        with suppress(OSError):  # the folder is not empty: it has content, or the next holder's lock file
            folder.rmdir()
        lock.release()


def _acquired(folder: Path, key: str) -> FileLock:
    """Acquire a folder's lock."""
    for attempt in range(_ATTEMPTS):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Wait a moment: a lock file that its holder has just deleted is tried again.
            lock = FileLock(folder / ".lock", timeout=_PATIENCE, poll_interval=_PATIENCE / 10)
            lock.acquire()
            return lock
        except Timeout as error:
            raise Busy(f"another run is writing into {folder}: name another folder with {key}=") from error
        except OSError as error:
            # A process that leaves may remove the empty folder between two of these calls.
            if not isinstance(error, FileNotFoundError | FileExistsError) or attempt == _ATTEMPTS - 1:
                raise UserError(f"{key}={folder} cannot be written to: {error.strerror or error}") from error
    raise AssertionError("unreachable")


@contextmanager
def waited(folder: Path) -> Iterator[None]:
    """Hold a folder of a cache, after waiting for whoever holds it.

    On a disk that can only be read there is no lock, and nobody who could write.
    """
    lock = FileLock(folder / "lock")
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        yield
        return
    try:
        yield
    finally:
        lock.release()


_DESCRIPTIONS = ("key.json", "config.yaml", "versions.json")


@contextmanager
def claimed(
    folder: Path, key: dict[str, Any], config_key: str = "out", what: str = "a trace set"
) -> Iterator[None]:
    """Lock a folder that is new or was started with the same key.

    At the end, the folder is removed if nothing was written into it.

    Args:
        folder: created if needed.
        key: everything that its content depends on, JSON values.
        config_key: the config key that names the folder, for messages.
        what: name of its content, for messages.

    Raises:
        UserError: the folder holds something else, or another process holds its lock.
    """
    with locked(folder, config_key):
        # Checked under the lock, because before that another process may still write into the folder.
        described = folder / "key.json"
        text = json.dumps(key, sort_keys=True, indent=1)
        _check_same(folder, key, config_key, what)
        try:
            write_atomically(described, lambda path: path.write_text(text))
            yield
        finally:
            # Only here, where we hold the lock: without it, the files belong to another process.
            if first_rank() and (descriptions := _description_files(folder)) is not None:
                with suppress(OSError):
                    for path in descriptions:
                        path.unlink()  # `locked` removes the empty folder


def _check_same(folder: Path, key: dict[str, Any], config_key: str, what: str) -> None:
    """Check that a folder is new or was started with the same key.

    Raises:
        UserError: the folder holds something that was made with another key.
    """
    described = folder / "key.json"
    if described.is_file():
        try:
            before = json.loads(described.read_text(encoding="utf-8"))
            if not isinstance(before, dict):
                raise ValueError(f"it holds a {type(before).__name__}")
        except ValueError as error:
            raise UserError(
                f"{described} is damaged ({error}), so the content of {config_key}={folder} is unknown: "
                f"name another folder, or delete that one"
            ) from error
        if before != json.loads(json.dumps(key)) and _description_files(folder) is None:
            differing = ", ".join(name for name in key if before.get(name) != key[name])
            raise UserError(
                f"{config_key}={folder} holds {what} made with another {differing}: name another "
                f"folder, or delete that one"
            )
    elif held := [
        *(name for name in ("completions.jsonl", "traces.parquet") if (folder / name).exists()),
        *(shard.folder(folder).name for shard in shards_in(folder)),
    ]:
        raise UserError(
            f"{config_key}={folder} has {held[0]}, but no key.json that describes it: name another folder, "
            f"or delete that one"
        )


def _description_files(folder: Path) -> list[Path] | None:
    """The folder's files, if they only describe what it was meant to hold (an empty completion log counts
    too); None if it holds anything else."""
    if not folder.is_dir():
        return None
    found = [path for path in folder.iterdir() if path.name != ".lock"]
    ours = all(
        path.is_file()
        and (path.name in _DESCRIPTIONS or (path.name == "completions.jsonl" and path.stat().st_size == 0))
        for path in found
    )
    return found if ours else None
