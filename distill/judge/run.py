"""Judge stored evaluations and runs by a judge model, and write what it found."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from distill.generation.chat_client import ChatClient
from distill.generation.sampling import Sampling
from distill.io.files import write_atomically, write_json, write_lines
from distill.io.locks import locked
from distill.judge import answers_report, prompts, rubric_report
from distill.judge.answers_report import record
from distill.judge.asking import Judge, Judged
from distill.judge.selection import Sample, Selection, select
from distill.judge.tasks import ANSWERS, RUBRIC, Task


def judge(
    folders: Sequence[Path | str],
    client: ChatClient,
    sampling: Sampling,
    selection: Selection,
    out: Path,
    *,
    rubric: bool = False,
) -> str:
    """Judge the final answers of stored evaluations, or grade their traces on a rubric.

    Args:
        folders: evaluation or run folders; `run` is the student after training, `run@before` before training.
        client: connection to the judge's server.
        sampling: of the judge's replies.
        selection: which samples to judge.
        out: folder of the results, and of the judge's replies, which are never asked for again.
        rubric: grade traces on a rubric instead of judging final answers.

    Returns:
        The report in Markdown.

    Raises:
        UserError: a folder is unreadable, there is nothing to judge, or the server fails.
    """
    samples = select(folders, selection)
    with locked(out, "--out"):
        asked = Judge(client, sampling, out / "replies.jsonl")
        return _graded(asked, samples, out) if rubric else _answered(asked, samples, out)


def _answered(asked: Judge, samples: Sequence[Sample], out: Path) -> str:
    judged = asked.judge(ANSWERS, samples)
    found = answers_report.agreements(judged)
    differing = answers_report.disagreements(judged)
    write_lines(out / "disagreements.jsonl", _lines(differing))
    text = answers_report.text(found)
    if differing:
        text += f"\n\nWhere they disagree: {out / 'disagreements.jsonl'}"
    _write(out, ANSWERS, asked, judged, {"evaluations": [one.json() for one in found]}, text)
    return text


def _graded(asked: Judge, samples: Sequence[Sample], out: Path) -> str:
    judged = asked.judge(RUBRIC, samples)
    found, tests = rubric_report.grades(judged), rubric_report.wins(judged)
    content = {"evaluations": [one.json() for one in found], "wins": [dict(vars(one)) for one in tests]}
    text = rubric_report.text(found, tests)
    _write(out, RUBRIC, asked, judged, content, text)
    return text


def _write(
    out: Path,
    task: Task[Any],
    asked: Judge,
    judged: Sequence[Judged[Any]],
    content: Mapping[str, Any],
    text: str,
) -> None:
    """Write `<task>.json`, `<task>.md` and `<task>.jsonl`, a line for each sample. No file holds a key."""
    client = asked.client
    by = {
        "model": client.served_as,
        "host": httpx.URL(client.url).host,  # not the address, which may hold a password
        "prompt": prompts.version(task.instructions),
        "sampling": dict(vars(asked.sampling)),
        "extra": dict(client.extra),
    }
    write_lines(out / f"{task.name}.jsonl", _lines(map(record, judged)))
    write_atomically(out / f"{task.name}.md", lambda p: p.write_text(text + "\n", encoding="utf-8"))
    write_json(out / f"{task.name}.json", {"judge": by, **content})


def _lines(records: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    return (json.dumps(one, ensure_ascii=False) for one in records)
