"""Folders whose content several machines write in shards, each into a folder of its own inside."""

import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from distill.errors import UserError

T = TypeVar("T")
_SHARD = re.compile(r"([1-9][0-9]{0,8})/([1-9][0-9]{0,8})")
_FOLDER = re.compile(r"shard-([1-9][0-9]{0,8})-of-([1-9][0-9]{0,8})")


@dataclass(frozen=True)
class Shard:
    """One of the equal shards of a set.

    Attributes:
        number: from 1.
        count: number of shards.
    """

    number: int
    count: int

    @classmethod
    def of(cls, value: Any) -> "Shard | None":
        """Read the config key `shard`; None: the whole set.

        Raises:
            UserError: the value is no `i/n` with i from 1 to n.
        """
        if value is None:
            return None
        found = _SHARD.fullmatch(str(value))
        if found is None or int(found[1]) > int(found[2]):
            raise UserError(
                f"shard={value} is not one of n shards: give i/n with a whole number i from 1 to n, such as "
                f"shard=1/4"
            )
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def places(self) -> slice:
        """The places of its items in the whole: they are dealt out in turn, so that the shards are alike
        even where the items are sorted."""
        return slice(self.number - 1, None, self.count)

    def folder(self, whole: Path) -> Path:
        """Its folder inside the folder of the whole."""
        return whole / f"shard-{self.number}-of-{self.count}"


def shards_in(folder: Path) -> list[Shard]:
    """The shards whose folders are in a folder, in order; finished or not."""
    if not folder.is_dir():
        return []
    found = [_FOLDER.fullmatch(path.name) for path in folder.iterdir() if path.is_dir()]
    shards = [Shard(int(match[1]), int(match[2])) for match in found if match]
    return sorted(shards, key=lambda shard: (shard.count, shard.number))


def shard_files(folder: Path, name: str) -> list[Path]:
    """A file of each shard, in order; none of a folder without shards.

    Args:
        folder: of the whole.
        name: of the file that a finished shard's folder holds.

    Raises:
        UserError: shards are missing or are not of the same whole; names them.
    """
    shards = shards_in(folder)
    if not shards:
        return []
    if len(counts := {shard.count for shard in shards}) > 1:
        raise UserError(
            f"{folder} holds shards of sets of {' and of '.join(map(str, sorted(counts)))}: keep the folders "
            f"of one"
        )
    if missing := missing_shards(folder, name):
        raise UserError(
            f"{folder} is not complete: of {shards[0].count} shards, {listed(missing)} missing or not "
            f"finished: write each with the same command and its number, as in shard={missing[0]}"
        )
    first = _key(shards[0].folder(folder))
    for shard in shards[1:]:
        if differing := _differing(_key(shard.folder(folder)), first):
            raise UserError(
                f"{shard.folder(folder)} was made with another {differing} than the other shards: delete it "
                f"and write shard={shard} again"
            )
    return [shard.folder(folder) / name for shard in shards]


def in_turn(parts: Iterable[Iterable[T]], same: Callable[[T], object]) -> Iterator[T]:
    """The items of all shards in the order of the whole, which was dealt out in turn.

    Args:
        parts: the items of each shard.
        same: tells what was dealt out together; items that follow each other are alike in it.
    """
    waiting = deque(groupby(part, same) for part in parts)
    while waiting:
        groups = waiting.popleft()
        if (group := next(groups, None)) is not None:
            yield from group[1]
            waiting.append(groups)


def missing_shards(folder: Path, name: str) -> list[Shard]:
    """The shards without the file that a finished one holds; of a folder that holds at least one shard."""
    count = shards_in(folder)[0].count
    every = (Shard(number, count) for number in range(1, count + 1))
    return [shard for shard in every if not (shard.folder(folder) / name).is_file()]


def listed(shards: list[Shard]) -> str:
    """Numbers of shards with their verb: `numbers 2, 3 are`."""
    numbers = [str(shard.number) for shard in shards[:12]]
    more = f" and {len(shards) - 12} more" if len(shards) > 12 else ""
    if len(shards) == 1:
        return f"number {numbers[0]} is"
    return f"numbers {', '.join(numbers)}{more} are"


def check_folder(folder: Path, shard: Shard | None, name: str) -> None:
    """Check that a folder holds no whole where a shard is to be written, and the other way round.

    Args:
        folder: of the whole.
        shard: that is to be written; None: the whole.
        name: of the file that a finished whole holds.

    Raises:
        UserError: it does, or it holds shards of another number.
    """
    there = next((one for one in shards_in(folder) if shard is None or one.count != shard.count), None)
    if there is not None:
        raise UserError(
            f"out={folder} holds a set in {there.count} shards: give shard=i/{there.count}, or name another "
            f"folder"
        )
    if shard is not None and (held := [n for n in (name, "completions.jsonl") if (folder / n).exists()]):
        raise UserError(
            f"out={folder} holds a set that is written without shards ({held[0]}): leave out shard={shard}, "
            f"or name another folder"
        )


def check_alike(folder: Path, shard: Shard, key: Mapping[str, Any]) -> None:
    """Check that the other shards in a folder are made with the same key; to be called when the shard's own
    key is written, so that of two that begin at once one sees the other.

    Raises:
        UserError: one is not; names what differs.
    """
    own = json.loads(json.dumps(key))
    for other in shards_in(folder):
        if (
            other.count == shard.count
            and other != shard
            and (differing := _differing(own, _key(other.folder(folder))))
        ):
            raise UserError(
                f"out={folder} holds shard {other} of a set made with another {differing}: name another "
                f"folder, or delete that one"
            )


def _key(folder: Path) -> dict[str, Any]:
    """A shard's key; empty if it has none (yet)."""
    try:
        found = json.loads((folder / "key.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'key.json'} is damaged ({error}): write the shard again") from error
    return found if isinstance(found, dict) else {}


def _differing(key: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """What two keys differ in; empty if they are alike, or one is not known."""
    if not key or not other:
        return ""
    return ", ".join(name for name in sorted({*key, *other}) if key.get(name) != other.get(name))
