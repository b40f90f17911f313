"""Graded answers of finished runs by problem, without the completions."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from distill.io.files import read_lines
from distill.runs.read import Run

Key = tuple[str, str, str]  # identifies a problem: benchmark, id, hash of its text


@dataclass(frozen=True)
class Answers:
    """Results after training on the problems that all of the runs have in common.

    Attributes:
        problems: benchmark, id and hash of the text of each problem.
        right: [runs, problems] share of the problem's samples that are correct.
        reference: [problems] length in tokens of the dataset's reference solution; NaN if it has none.
        elsewhere: number of problems left out because only some of the runs have them.
    """

    problems: Sequence[Key]
    right: Float[np.ndarray, "runs problems"]
    reference: Float[np.ndarray, " problems"]
    elsewhere: int = 0

    @property
    def benchmarks(self) -> list[str]:
        return list(dict.fromkeys(key[0] for key in self.problems))

    def of(self, benchmark: str) -> Bool[np.ndarray, " problems"]:
        """Mask of the problems of a benchmark."""
        return np.asarray([key[0] == benchmark for key in self.problems], dtype=bool)

    def accuracy(self, among: Bool[np.ndarray, " problems"] | None = None) -> Float[np.ndarray, " runs"]:
        """Each run's accuracy over the selected problems, as the unweighted mean over benchmarks."""
        wanted = np.ones(len(self.problems), dtype=bool) if among is None else among
        parts = [self.of(name) & wanted for name in self.benchmarks]
        return np.mean([self.right[:, part].mean(1) for part in parts if part.any()], axis=0)

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


@dataclass
class _Tally:
    right: int = 0
    samples: int = 0
    reference: float = field(default=float("nan"))


def read_answers(runs: Sequence[Run]) -> Answers:
    """Read the runs' results after training.

    Raises:
        ValueError: a samples file cannot be read; the message names the file and line.
    """
    found = [_read(run.folder / "samples.jsonl") for run in runs]
    shared = [key for key in found[0] if all(key in own for own in found)]
    everywhere = set().union(*found)
    right = [[own[key].right / own[key].samples for key in shared] for own in found]
    return Answers(
        shared,
        np.asarray(right, dtype=np.float64).reshape(len(found), len(shared)),
        np.asarray([found[0][key].reference for key in shared], dtype=np.float64),
        len(everywhere) - len(shared),
    )


def _read(path: Path) -> dict[Key, _Tally]:
    found: dict[Key, _Tally] = {}
    for number, record in samples_of(path):
        try:
            key = key_of(record)
            own = found.setdefault(key, _Tally())
            own.right += bool(record["correct"])
            own.samples += 1
            if record.get("reference_tokens") is not None:
                own.reference = float(record["reference_tokens"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{path}, line {number}: no sample of this version ({type(error).__name__}: {error})"
            ) from error
    return found


def samples_of(path: Path) -> Any:
    """Yield the records of the stage after training with their line numbers.

    Raises:
        ValueError: a line is not a record; the message names the file and line.
    """
    for number, line in enumerate(read_lines(path), 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: no JSON ({error})") from error
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number}: no record")
        if record.get("stage") == "after":
            yield number, record


def key_of(record: Mapping[str, Any]) -> Key:
    text = hashlib.sha256(record["problem"].encode(errors="surrogatepass")).hexdigest()[:16]
    return record["benchmark"], record["id"], text
