"""Tests of trace quality, stopping and the end token in the report, on runs whose figures are known."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from samples import sample
from scipy.stats import t as student_t
from test_results import made

from distill.report.curves import end_tokens
from distill.report.methods import tables_of
from distill.report.page import markdown
from distill.report.quality import end_token_blocks, quality_blocks, quality_of_methods
from distill.report.write import write_report

PROBLEMS = 24
FIELDS = ("characters", "word_repetition", "post_answer", "several_answers", "correct_to_first_answer")


def finished_run(folder: Path, loss: str, seed: int, fields: dict[str, list[Any]]) -> None:
    """A run with these fields of its problems' samples after training."""
    place = made(folder / f"{loss}_{seed}", loss, seed, float(np.mean(fields["correct"])))
    records = [
        {"stage": "after"}
        | sample("arithmetic", id=str(number), problem=f"{number}+1=")
        | {name: values[number] for name, values in fields.items()}
        for number in range(PROBLEMS)
    ]
    (place / "samples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    ends = [0.5 + 0.1 * seed, 0.7, 0.9 + 0.02 * seed]
    weight = 1.0 if loss == "sft" else 0.25
    rows = ["step,train/loss,train/end_token_probability,weights/end_token"]
    rows += [f"{step},1.0,{end},{weight}" for step, end in enumerate(ends, 1)]
    (place / "metrics.csv").write_text("\n".join([*rows, ""]))


def of_seed(loss: str, seed: int) -> dict[str, list[Any]]:
    """SFT goes on after its answer, and that spoils some answers that are right up to it."""
    rng = np.random.default_rng(seed)
    to_first = rng.random(PROBLEMS) < (0.6 if loss == "sft" else 0.7)
    after = (rng.random(PROBLEMS) < 0.7) & (loss == "sft")
    spoilt = after & (rng.random(PROBLEMS) < 0.5)
    return {
        "correct": (to_first & ~spoilt).tolist(),
        "correct_to_first_answer": to_first.tolist(),
        "post_answer": after.tolist(),
        "several_answers": spoilt.tolist(),
        "characters": rng.integers(50, 900, PROBLEMS).tolist(),
        "word_repetition": rng.random(PROBLEMS).tolist(),
        "finished": (~after).tolist(),
    }


@pytest.mark.slow
def test_means_over_seeds_and_the_problems_that_both_solve(tmp_path: Path) -> None:
    runs = {(loss, seed): of_seed(loss, seed) for loss in ("sft", "dcod") for seed in range(3)}
    for (loss, seed), fields in runs.items():
        finished_run(tmp_path, loss, seed, fields)
    (table,), _ = tables_of([tmp_path])
    found = quality_of_methods(table)
    mean = {
        (loss, name): np.mean([runs[loss, seed][name] for seed in range(3)], axis=0)
        for loss in ("sft", "dcod")
        for name in runs["sft", 0]
    }
    solved = (mean["sft", "correct"] > 0.5) & (mean["dcod", "correct"] > 0.5)
    assert 0 < solved.sum() < PROBLEMS
    own = found["dcod"]
    assert own.solved == solved.sum()
    names = {"word repetition": "word_repetition", "post answer": "post_answer", "characters": "characters"}
    names |= {"several answers": "several_answers", "finished": "finished"}
    assert own.over_baseline.keys() == names.keys()
    for name, key in names.items():
        by_seed = np.asarray([np.mean(runs["dcod", seed][key]) for seed in range(3)])
        half = student_t.ppf(0.975, 2) * by_seed.std(ddof=1) / np.sqrt(3)
        assert own.means[name].value == pytest.approx(by_seed.mean())
        if half:
            assert own.means[name].high == pytest.approx(by_seed.mean() + half)
        difference = (mean["dcod", key] - mean["sft", key])[solved]
        assert own.over_baseline[name].value == pytest.approx(difference.mean())
    # What is stopping and what is not add up to the gain.
    gain = table.method("dcod").gain
    assert gain is not None
    assert own.to_first is not None
    assert own.stopping is not None
    key = "correct_to_first_answer"
    assert own.to_first.value == pytest.approx((mean["dcod", key] - mean["sft", key]).mean())
    assert own.to_first.value + own.stopping.value == pytest.approx(gain.over_problems.value)
    assert own.stopping.value > 0
    assert found["sft"].over_baseline == {}
    text = markdown("", quality_blocks(table, found))
    assert f"| `dcod` | {solved.sum()} |" in text
    assert f"| `dcod` | {100 * gain.over_problems.value:+.1f} | {100 * own.to_first.value:+.1f} [" in text
    printed = write_report([tmp_path], examples=0)
    assert "dcod" in printed
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    stored = report["tables"][0]["quality"]["dcod"]
    assert stored["stopping"]["value"] == pytest.approx(own.stopping.value)
    page = (tmp_path / "report" / "report.md").read_text()
    assert "## Trace quality and stopping" in page
    assert "| `sft` | 0.6 → 0.92 | 1 → 1 |" in page


def test_runs_of_an_earlier_version_have_no_quality_and_their_report_says_so(tmp_path: Path) -> None:
    for loss in ("sft", "dcod"):
        fields = {"correct": of_seed(loss, 0)["correct"]}
        finished_run(tmp_path, loss, 0, fields)
    (table,), _ = tables_of([tmp_path])
    assert quality_of_methods(table) == {}
    assert "samples are of a version that did not keep it" in markdown("", quality_blocks(table, {}))
    finished_run(tmp_path, "dft", 0, of_seed("dft", 0))  # one method that has it
    (table,), _ = tables_of([tmp_path])
    found = quality_of_methods(table)
    assert list(found) == ["dft"]
    assert found["dft"].over_baseline.keys() == {"finished"}
    assert found["dft"].to_first is None


def test_programs_have_no_answers_to_go_on_after(tmp_path: Path) -> None:
    for loss in ("sft", "dcod"):
        fields = of_seed(loss, 0)
        fields |= {name: [None] * PROBLEMS for name in FIELDS[2:]}
        finished_run(tmp_path, loss, 0, fields)
    (table,), _ = tables_of([tmp_path])
    own = quality_of_methods(table)["dcod"]
    assert own.means.keys() == {"characters", "word repetition", "finished"}
    assert own.to_first is not None
    assert own.stopping is not None
    gain = table.method("dcod").gain
    assert gain is not None
    assert (own.to_first.value, own.stopping.value) == (pytest.approx(gain.over_problems.value), 0.0)


def test_the_end_token_at_the_first_and_the_last_step_is_a_mean_over_seeds() -> None:
    rows = [
        (run, loss, step, metric, value)
        for run, loss, values in (("a", "sft", (0.2, 0.6, 0.8)), ("b", "sft", (0.4, 0.6, 1.0)))
        for metric, scale in (("train/end_token_probability", 1), ("weights/end_token", 2))
        for step, value in zip((1, 5, 9), (scale * value for value in values), strict=True)
    ]
    rows += [("a", "sft", 9, "train/loss", 7.0), ("c", "old", 9, "train/loss", 7.0)]
    metrics = pandas.DataFrame(rows, columns=["run", "loss", "step", "metric", "value"])
    (row,) = end_tokens(metrics.sample(frac=1, random_state=0)).to_dict("records")
    assert row["method"] == "sft"
    assert (row["probability_first"], row["probability_last"]) == pytest.approx((0.3, 0.9))
    assert (row["weight_first"], row["weight_last"]) == pytest.approx((0.6, 1.8))
    assert "| `sft` | 0.3 → 0.9 | 0.6 → 1.8 |" in markdown("", end_token_blocks(end_tokens(metrics)))
    none = end_tokens(metrics.query("metric == 'train/loss'"))
    assert list(end_token_blocks(none)) == []
