"""Write and read the benchmark samples of a run (`samples.jsonl`)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.evaluation.result import Score
from distill.evaluation.run import Asked, score_of
from distill.io.files import read_lines, write_lines


def write_samples(folder: Path, stage: str, scores: Sequence[Score]) -> None:
    """Write a stage's samples to `samples.jsonl`, replacing earlier samples of the same stage."""
    path = folder / "samples.jsonl"
    kept = (line for line in read_lines(path) if json.loads(line)["stage"] != stage)
    new = (
        json.dumps({"stage": stage, **sample}, ensure_ascii=False)
        for score in scores
        for sample in score.samples
    )
    write_lines(path, kept, new)


def read_scores(folder: Path, stage: str, asked: Sequence[Asked]) -> list[Score] | None:
    """Read a stage's scores before a resume; None if the stored samples belong to other problems."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in read_lines(folder / "samples.jsonl"):
        record = json.loads(line)
        if record.pop("stage") == stage:
            found.setdefault(record.get("benchmark", ""), []).append(record)
    scores = []
    for one in asked:
        name, n = one.benchmark.name, one.benchmark.samples
        samples = found.get(name, [])
        wanted = [(problem.id, problem.problem, sample) for problem in one.problems for sample in range(n)]
        if [(sample["id"], sample["problem"], sample["sample"]) for sample in samples] != wanted:
            return None
        scores.append(score_of(one, samples))
    return scores
