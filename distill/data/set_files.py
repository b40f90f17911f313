"""The files of a trace set: one, or one of each shard. Imports nothing that takes long."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from distill.io.shards import in_turn, shard_files

TRACES = "traces.parquet"


def set_files(folder: Path) -> list[Path]:
    """The Parquet files of a trace set's folder, of several shards in their order; none of another folder.

    Raises:
        UserError: shards are missing or do not belong together; names them.
    """
    own = folder / TRACES
    return [own] if own.is_file() else shard_files(folder, TRACES)


def in_set_order(files: Iterable[Iterable[tuple[str, Any]]]) -> Iterator[tuple[str, Any]]:
    """The rows of a set's files, each with its place, in the order in which one process writes them."""
    return in_turn(files, lambda row: row[1].get("problem_id"))
