"""Tests of the whole path under a teacher's prompt: a teacher that a token in it makes write otherwise."""

import csv
from pathlib import Path

import pytest
import torch
from test_generate import run as write_set
from test_training import run

from distill.models.find import find_model
from distill.report.write import write_report
from distill.tiny import build, task

ASKED = "data.teacher_prompt.user=';{problem}'"  # no problem begins with it
SMALL = ["model=tiny", "data=arithmetic", "data.limit=48", "data.operations=[2,4]"]


@pytest.fixture(scope="module")
def instructed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded teacher, trained to write "single" solutions if its prompt has the token, or "double"."""
    lm = find_model("package:distill/tiny/teacher", key="model.teacher").load()
    problems = task.problems(48 * 40, split="train", seed=7, operations=(2, 4))
    optimizer = torch.optim.AdamW(lm.model.parameters(), lr=1e-3)
    lm.model.train()
    for start in range(0, len(problems), 48):
        rows = [
            (f";{problem}", task.write_solution(problem, "single"))
            if place % 2
            else (problem, task.write_solution(problem, "double"))
            for place, problem in enumerate(problems[start : start + 48])
        ]
        build._backward(lm.model, lm.tokenizer, rows)
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("instructed")
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


def weights(folder: Path) -> list[float]:
    with (folder / "metrics.csv").open(newline="") as stream:
        return [float(row["weights/mean"]) for row in csv.DictReader(stream) if row["weights/mean"]]


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_prompt_of_the_teachers_goes_from_writing_to_the_report(
    instructed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SMALL, f"model.teacher={instructed}", "samples=1", "sampling.temperature=0"]
    styles = {}
    for name, more in (("asked", [ASKED]), ("plain", [])):
        records = write_set([*words, *more], tmp_path / name)
        found = [task.style_of(record["problem"], record["completion"]) for record in records]
        styles[name] = found.count("single") / len(found)
    assert styles["asked"] > 0.9
    assert styles["plain"] < 0.1

    common = [
        "model=tiny", f"model.teacher={instructed}", "data=traces", f"data.path={tmp_path / 'asked'}",
        "data.keep=all", "data.batch_size=16", "trainer.max_steps=3", "benchmark=arithmetic",
        "benchmark.limit=8", "logger=csv", f"cache={tmp_path / 'cache'}",
    ]  # fmt: skip
    capsys.readouterr()
    for seed in (0, 1):
        run([*common, "loss=dcod", ASKED, f"seed={seed}"], tmp_path / "runs" / f"dcod{seed}")
        assert "log-probs of 48 traces are taken from the trace set" in capsys.readouterr().out
        run([*common, "loss=sft", ASKED, f"seed={seed}"], tmp_path / "runs" / f"sft{seed}")
    right = weights(tmp_path / "runs" / "dcod0")
    run([*common, "loss=dcod", "seed=0"], tmp_path / "wrong")
    assert "the teacher scores the traces anew" in capsys.readouterr().out
    wrong = weights(tmp_path / "wrong")
    # Under the plain prompt the teacher finds its own traces unlikely: the student's support looks high.
    assert all(other > mine + 0.02 for mine, other in zip(right, wrong, strict=True))
    report = write_report([tmp_path / "runs"])
    assert "dcod" in report
    assert (tmp_path / "runs" / "report" / "report.html").is_file()
