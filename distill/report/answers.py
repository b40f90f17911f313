"""What finished runs answered, problem by problem, without the completions themselves."""

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

Key = tuple[str, str, str]  # a problem: its benchmark, its id, the hash of its text


@dataclass(frozen=True)
class Answers:
    """Problems that all of some runs were asked after training, and what came of them.

    Attributes:
        problems: benchmark, id and hash of the text, in order.
        right: [runs, problems] mean verdict of the problem's samples.
        reference: [problems] tokens of the set's own solution; NaN where it has none.
        elsewhere: problems that only some of the runs were asked, which are left out.
    """

    problems: Sequence[Key]
    right: Float[np.ndarray, "runs problems"]
    reference: Float[np.ndarray, " problems"]
    elsewhere: int = 0

    @property
    def benchmarks(self) -> list[str]:
        return list(dict.fromkeys(key[0] for key in self.problems))

    def of(self, benchmark: str) -> Bool[np.ndarray, " problems"]:
        """Which problems are of a benchmark."""
        return np.asarray([key[0] == benchmark for key in self.problems], dtype=bool)

    def accuracy(self, among: Bool[np.ndarray, " problems"] | None = None) -> Float[np.ndarray, " runs"]:
        """Each run's accuracy, the mean of the benchmarks', over some of the problems."""
        wanted = np.ones(len(self.problems), dtype=bool) if among is None else among
        parts = [self.of(name) & wanted for name in self.benchmarks]
        return np.mean([self.right[:, part].mean(1) for part in parts if part.any()], axis=0)

    def longer(self) -> Bool[np.ndarray, " problems"] | None:
        """Which problems have a solution longer than their benchmark's median; None where that splits none.

        Problems without a solution of their set's are on neither side: `reference` is NaN.
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
    """What the runs answered after training.

    Raises:
        ValueError: a file of samples that cannot be read; names it and the line.
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
    """The records of the stage after training, each with its line's number.

    Raises:
        ValueError: a line that is no record; names the file and the line.
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
