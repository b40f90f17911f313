"""Graded answers of finished runs by problem, without the completions."""

import functools
import hashlib
import itertools
import json
import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from distill.evaluation.quality import FIGURES
from distill.runs.read import Run

# Field of a sample by measure.
QUALITY = FIGURES | {"finished": "finished"}
_MISSING = float("nan")
_AT_ONCE, _BLOCK = 256, 1 << 20  # lines that are parsed together; bytes in memory while lines are counted
Key = tuple[str, str, str]  # identifies a problem: benchmark, id, hash of its text


@dataclass(frozen=True)
class Answers:
    """Results after training on the problems that all of the runs have in common.

    Attributes:
        problems: benchmark, id and hash of the text of each problem.
        right: [runs, problems] share of the problem's samples that are correct.
        reference: [problems] length in tokens of the dataset's reference solution; NaN if it has none.
        elsewhere: number of problems left out because only some of the runs have them.
        quality: [all_runs, problems] means over the problem's samples of the measures `QUALITY`, by name; NaN
            where the samples lack them. They stay those of all runs where `right` is replaced.
    """

    problems: Sequence[Key]
    right: Float[np.ndarray, "runs problems"]
    reference: Float[np.ndarray, " problems"]
    elsewhere: int = 0
    quality: Mapping[str, Float[np.ndarray, "all_runs problems"]] = field(default_factory=dict)

    @property
    def benchmarks(self) -> list[str]:
        return list(dict.fromkeys(key[0] for key in self.problems))

    def of(self, benchmark: str) -> Bool[np.ndarray, " problems"]:
        """Mask of the problems of a benchmark."""
        return np.asarray([key[0] == benchmark for key in self.problems], dtype=bool)

    def accuracy(self, among: Bool[np.ndarray, " problems"] | None = None) -> Float[np.ndarray, " runs"]:
        """Each run's accuracy over the selected problems, as the unweighted mean over benchmarks."""
        return np.mean([self.right[:, part].mean(1) for part in self.strata(among)], axis=0)

    def strata(
        self, among: Bool[np.ndarray, " problems"] | None = None
    ) -> list[Bool[np.ndarray, " problems"]]:
        """Masks of the selected problems of each benchmark that has some."""
        wanted = np.ones(len(self.problems), dtype=bool) if among is None else among
        parts = [self.of(name) & wanted for name in self.benchmarks]
        return [part for part in parts if part.any()]

    def longer(self) -> Bool[np.ndarray, " problems"] | None:
        """Mask of the problems whose reference solution is longer than their benchmark's median.

        Problems without a reference solution (`reference` is NaN) are in neither half. None if no solution is
        longer than the median.
        """
        if not np.isfinite(self.reference).any():
            return None
        found = np.zeros(len(self.problems), dtype=bool)
        for name in self.benchmarks:
            own = self.of(name) & np.isfinite(self.reference)
            if own.any():
                found |= own & (self.reference > np.median(self.reference[own]))
        return found if found.any() else None

    def halves(self) -> tuple[Bool[np.ndarray, " problems"], Bool[np.ndarray, " problems"]] | None:
        """Masks of the problems with short and with long solutions, of the benchmarks that have long ones.

        Others would have short ones alone, and the halves would differ by benchmarks, too.
        """
        if (longer := self.longer()) is None:
            return None
        split = np.zeros_like(longer)
        for name in self.benchmarks:
            if (longer & self.of(name)).any():
                split |= self.of(name)
        return split & np.isfinite(self.reference) & ~longer, longer


@dataclass(frozen=True)
class _OfRun:
    """A run's results: means over each problem's samples.

    Attributes:
        places: row of each problem below.
        right: share of its samples that are correct.
        reference: length of its reference solution; NaN if it has none.
        quality: means of the measures `QUALITY`; NaN where a sample lacks one.
    """

    places: dict[Key, int]
    right: Float[np.ndarray, " problems"]
    reference: Float[np.ndarray, " problems"]
    quality: Float[np.ndarray, "problems measures"]


def read_answers(runs: Sequence[Run]) -> Answers:
    """Read the runs' results after training.

    Raises:
        ValueError: a samples file cannot be read; the message names the file and line.
    """
    found = [_read(run.folder / "samples.jsonl") for run in runs]
    shared = [key for key in found[0].places if all(key in own.places for own in found)]
    everywhere = set().union(*(own.places for own in found))
    rows = [np.asarray([own.places[key] for key in shared], dtype=np.int64) for own in found]
    quality = np.stack([own.quality[own_rows] for own, own_rows in zip(found, rows, strict=True)])
    return Answers(
        shared,
        np.stack([own.right[own_rows] for own, own_rows in zip(found, rows, strict=True)]),
        found[0].reference[rows[0]],
        len(everywhere) - len(shared),
        {name: np.ascontiguousarray(quality[..., column]) for column, name in enumerate(QUALITY)},
    )


def _read(path: Path) -> _OfRun:
    places: dict[Key, int] = {}
    problems, measured, numbers = [], [], []
    references: dict[int, float] = {}
    for number, record in samples_of(path):
        try:
            place = places.setdefault(key_of(record), len(places))
            measured.append((record["correct"], *map(record.get, QUALITY.values())))
            if record.get("reference_tokens") is not None:
                references[place] = float(record["reference_tokens"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _no_sample(path, number, error) from error
        problems.append(place)
        numbers.append(number)
    values = _as_floats(path, measured, numbers)
    sums = np.zeros((len(places), values.shape[1]))
    np.add.at(sums, np.asarray(problems, dtype=np.int64), values)
    means = sums / np.bincount(problems, minlength=len(places))[:, None]
    reference = np.full(len(places), _MISSING)
    reference[list(references)] = list(references.values())
    return _OfRun(places, means[:, 0], reference, means[:, 1:])


def _as_floats(
    path: Path, rows: Sequence[Sequence[Any]], numbers: Sequence[int]
) -> Float[np.ndarray, "samples measures"]:
    """Rows of numbers and verdicts as an array, with NaN for None; `numbers`: their lines."""
    try:
        return np.asarray(rows, dtype=np.float64).reshape(len(rows), 1 + len(QUALITY))
    except (TypeError, ValueError):
        for row, number in zip(rows, numbers, strict=True):
            try:
                np.asarray(row, dtype=np.float64)
            except (TypeError, ValueError) as error:
                raise _no_sample(path, number, error) from error
        raise


def _no_sample(path: Path, number: int, error: Exception) -> ValueError:
    return ValueError(f"{path}, line {number}: no sample of this version ({type(error).__name__}: {error})")


def samples_of(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the records of the stage after training with their line numbers; none if there is no file.

    Raises:
        ValueError: a line is not a record; the message names the file and line.
    """
    if not path.is_file() or not path.stat().st_size:
        return
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        # Going through the lines of other stages, which are written before, would take most of the time.
        begin = content.rfind(b"\n", 0, max(0, content.find(b'"after"'))) + 1
        stream.seek(begin)
        above = sum(content[at : min(at + _BLOCK, begin)].count(b"\n") for at in range(0, begin, _BLOCK))
        numbered = enumerate(stream, above + 1)
        lines = ((number, line) for number, line in numbered if b'"after"' in line)
        while chunk := list(itertools.islice(lines, _AT_ONCE)):
            for (number, _), record in zip(chunk, _parsed(path, chunk), strict=True):
                if not isinstance(record, dict):
                    raise ValueError(f"{path}, line {number}: no record")
                if record.get("stage") == "after":
                    yield number, record


def _parsed(path: Path, lines: Sequence[tuple[int, bytes]]) -> list[Any]:
    """The values of numbered lines of JSON, parsed together, which takes half of the time."""
    try:
        values = json.loads(b"[" + b",".join(line for _, line in lines) + b"]")
        if len(values) == len(lines):
            return values
    except ValueError:
        pass  # which line it is comes out below
    values = []
    for number, line in lines:
        try:
            values.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: no JSON ({error})") from error
    return values


def key_of(record: Mapping[str, Any]) -> Key:
    return record["benchmark"], record["id"], _hash(record["problem"])


@functools.lru_cache(maxsize=1 << 16)  # runs of a sweep are asked the same problems
def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
