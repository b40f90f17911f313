"""Benchmark samples of a run, in its `samples.jsonl`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.evaluation.result import Score
from distill.evaluation.run import Asked, score_of
from distill.io.files import read_lines, write_lines


def write_samples(folder: Path, stage: str, scores: Sequence[Score]) -> None:
    """Add the benchmarks' completions to `samples.jsonl`, in place of the same stage's earlier ones."""
    path = folder / "samples.jsonl"
    kept = (line for line in read_lines(path) if json.loads(line)["stage"] != stage)
    new = (
        json.dumps({"stage": stage, **sample}, ensure_ascii=False)
        for score in scores
        for sample in score.samples
    )
    write_lines(path, kept, new)


def read_scores(folder: Path, stage: str, asked: Sequence[Asked]) -> list[Score] | None:
    """A stage's scores from an earlier part of a resumed run; None where it was asked something else."""
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
