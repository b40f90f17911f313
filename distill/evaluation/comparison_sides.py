"""Read the samples of evaluations and training runs for a comparison."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.data.readers import read_records
from distill.errors import UserError
from distill.evaluation.quality import FIGURES
from distill.io.checksums import check

_STAGES = ("before", "after")


# Field of a sample by measure. Samples of earlier versions lack those of `FIGURES`.
MEASURES = {
    "accuracy": "correct",
    "tokens": "tokens",
    "truncated": "truncated",
    "finished": "finished",
} | FIGURES


@dataclass
class Answers:
    """A problem's samples.

    Attributes:
        text: hash of the problem's text.
        samples: their numbers.
        sums: sum over the samples of each of `MEASURES`; NaN if a sample lacks it.
    """

    text: bytes
    samples: set[int] = field(default_factory=set)
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(MEASURES, 0.0))

    def means(self) -> dict[str, float]:
        """Mean over the samples of each measure; NaN if not known."""
        return {name: total / len(self.samples) for name, total in self.sums.items()}


@dataclass(frozen=True)
class Side:
    """An evaluation, or a stage of a training run.

    Attributes:
        folder: folder of the evaluation or run.
        stage: `before` or `after` for a run; None for an evaluation.
        label: name in tables and sentences.
        benchmarks: answers by benchmark name and problem id.
        settings: evaluation settings by benchmark; None if not recorded.
    """

    folder: Path
    stage: str | None
    label: str
    benchmarks: Mapping[str, Mapping[str, Answers]]
    settings: Mapping[str, Mapping[str, Any]] | None

    def json(self) -> dict[str, str | None]:
        return {"label": self.label, "folder": str(self.folder), "stage": self.stage}


def read_sides(folders: Sequence[Path | str]) -> list[Side]:
    """Read evaluations and runs; `run` is the student after training, `run@before` before training.

    Raises:
        UserError: a folder is neither, is named twice, or has missing or damaged files.
    """
    places = [_place(folder) for folder in folders]
    for (path, stage), count in Counter((path.resolve(), stage or "after") for path, stage in places).items():
        if count > 1:
            raise UserError(
                f"{path}{'@before' * (stage == 'before')} is named {count} times: compare different folders, "
                f"or a run with its stage before training, <run>@before"
            )
    return [_read(path, stage, label) for (path, stage), label in zip(places, _labels(places), strict=True)]


def _place(folder: Path | str) -> tuple[Path, str | None]:
    """Split `folder@stage` into the folder and its stage, if any."""
    path = Path(folder).expanduser()
    name, at, stage = str(path).rpartition("@")
    if at and stage in _STAGES and not path.exists():
        return Path(name), stage
    return path, None


def _labels(places: Sequence[tuple[Path, str | None]]) -> list[str]:
    """The shortest path suffixes that differ from each other."""
    parts = [path.resolve().parts for path, _ in places]
    labels: list[str] = []
    for size in range(1, max(map(len, parts)) + 1):
        labels = [
            str(Path(*own[-size:])) + (f"@{stage}" if stage else "")
            for own, (_, stage) in zip(parts, places, strict=True)
        ]
        if len(set(labels)) == len(labels):
            break
    return labels


def check_side(folder: Path | str) -> None:
    """Raise UserError unless `folder`, with or without a stage, is an evaluation or a run."""
    _samples_of(_place(folder)[0])


def _samples_of(folder: Path) -> Path:
    path = folder / "samples.jsonl"
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; name the folder of an evaluation or a run")
    if not path.is_file():
        raise UserError(
            f"{folder} holds no samples.jsonl: it is not the folder of an evaluation or a run, or of one "
            f"that did not end"
        )
    return path


def _read(folder: Path, stage: str | None, label: str) -> Side:
    benchmarks: dict[str, dict[str, Answers]] = {}
    read = None
    for where, record in read_samples(folder, stage):
        read = None if record.get("stage") is None else stage or "after"
        _count(record, where, benchmarks)
    return Side(folder, read, label, benchmarks, _settings(folder, read))


def read_samples(folder: Path, stage: str | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the samples of an evaluation, or of a stage of a run, each with its place for messages.

    Args:
        folder: folder of the evaluation or run.
        stage: `before` or `after`; None: all samples of an evaluation, those after training of a run.

    Raises:
        UserError: there are none, or the file is damaged.
    """
    path = _samples_of(folder)
    wanted, stages, found = stage or "after", set[str | None](), False
    for where, record in read_records(path=str(path), hub=None):
        stages.add(None if record.get("stage") is None else str(record["stage"]))
        if len(stages) > 1 and None in stages:
            raise UserError(f"{where}: only some samples have a stage; the file is damaged, evaluate again")
        if record.get("stage") in (None, wanted):
            found = True
            yield where, record
    if not stages:
        raise UserError(f"{path} is empty: there is nothing to compare")
    if None in stages and stage:
        raise UserError(f"{folder} is an evaluation, which has no stages: leave @{stage} out")
    if not found:
        has = ", ".join(sorted(map(str, stages)))
        raise UserError(
            f"{path} has no samples of the stage {wanted}, only: {has}; finish the run, or name "
            f"{folder}@{min(map(str, stages))}"
        )


def _count(record: Mapping[str, Any], where: str, benchmarks: dict[str, dict[str, Answers]]) -> None:
    """Add a sample to its problem's sums."""
    kinds = {"benchmark": str, "id": str, "problem": str, "sample": int, "correct": bool, "tokens": int}
    for name, kind in kinds.items():
        if not isinstance(record.get(name), kind):
            said = f"is {record[name]!r:.40}" if name in record else "is missing"
            raise UserError(
                f"{where}: {name} {said}; the file is damaged or of another version, evaluate again"
            )
    text = hashlib.sha256(record["problem"].encode(errors="surrogatepass")).digest()[:16]
    own = benchmarks.setdefault(record["benchmark"], {}).setdefault(record["id"], Answers(text))
    sample = record["sample"]
    if sample in own.samples or own.text != text:
        raise UserError(
            f"{where}: sample {sample} of problem {record['id']} of {record['benchmark']} is there for the "
            f"second time, or with another text; the file is damaged, evaluate again"
        )
    own.samples.add(sample)
    for measure, name in MEASURES.items():
        value = bool(record.get(name)) if name == "truncated" else record.get(name)
        if not isinstance(value, int | float | None):
            raise UserError(f"{where}: {name} is {value!r:.40}; the file is damaged, evaluate again")
        own.sums[measure] += math.nan if value is None else float(value)


def _settings(folder: Path, stage: str | None) -> dict[str, Mapping[str, Any]] | None:
    """Settings by benchmark, from an evaluation's `results.json` or a run's `summary.json`."""
    path = folder / ("results.json" if stage is None else "summary.json")
    if not path.is_file():
        if stage is None:
            raise UserError(f"{path} is missing: the evaluation did not end; start it again and it goes on")
        return None
    check([path, folder / "samples.jsonl"], "evaluate again" if stage is None else "train again")
    try:
        benchmarks = json.loads(path.read_text(encoding="utf-8"))["benchmarks"]
        asked = {str(name): one if stage is None else one[stage] for name, one in benchmarks.items()}
        return {name: dict(one["settings"]) for name, one in asked.items()}
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged or of another version ({type(error).__name__}: {error}): evaluate again"
        ) from error
