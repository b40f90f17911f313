"""Write and read the benchmark samples of a run (`samples.jsonl`)."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from distill.errors import UserError, first_line
from distill.evaluation.result import Score
from distill.evaluation.run import Asked, score_of
from distill.io.checksums import check, forget, note
from distill.io.files import read_lines, write_lines

_REMEDY = "delete it, and the benchmarks are asked anew"


def write_samples(folder: Path, stage: str, scores: Sequence[Score]) -> None:
    """Write a stage's samples to `samples.jsonl`, replacing earlier samples of the same stage."""
    path = folder / "samples.jsonl"
    kept = (json.dumps(record, ensure_ascii=False) for record in _records(path) if record["stage"] != stage)
    new = (
        json.dumps({"stage": stage, **sample}, ensure_ascii=False)
        for score in scores
        for sample in score.samples
    )
    forget(path)
    write_lines(path, kept, new)
    note(path)


def read_scores(folder: Path, stage: str, asked: Sequence[Asked]) -> list[Score] | None:
    """Read a stage's scores before a resume; None if the stored samples belong to other problems.

    Raises:
        UserError: the file is damaged; names it.
    """
    path = folder / "samples.jsonl"
    check([path], _REMEDY)
    found: dict[str, list[dict[str, Any]]] = {}
    for record in _records(path):
        if record.pop("stage") == stage:
            found.setdefault(record.get("benchmark", ""), []).append(record)
    scores = []
    for one in asked:
        name, n = one.benchmark.name, one.benchmark.samples
        samples = found.get(name, [])
        wanted = [(problem.id, problem.problem, sample) for problem in one.problems for sample in range(n)]
        if [(sample.get("id"), sample.get("problem"), sample.get("sample")) for sample in samples] != wanted:
            return None
        scores.append(score_of(one, samples))
    return scores


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """The file's records; none if there is no file.

    Raises:
        UserError: a line is no sample; names it.
    """
    try:
        for number, line in enumerate(read_lines(path), 1):
            record = json.loads(line)
            if not isinstance(record, dict) or "stage" not in record:
                raise ValueError(f"line {number} is no sample")
            yield record
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({first_line(error)}): {_REMEDY}") from error
