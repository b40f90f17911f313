"""Tests of `python -m distill.results`: which runs share a row or table, and notes on the others."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import test_training
from omegaconf import OmegaConf
from test_training import arguments, run

from distill.errors import UserError
from distill.runs import table as results

traces = test_training.traces  # the fixture


def made(folder: Path, loss: str, seed: int, accuracy: float | None, **changes: Any) -> Path:
    """A finished run's folder as far as the table reads it; `changes` are of its configuration."""
    folder.mkdir(parents=True)
    config: dict[str, Any] = {
        "data": {"recipe": {"source": {"count": 4096}}, "limit": 4096, "batch_size": 64},
        "loss": {"token_loss": {"_target_": loss}, "temperature": 1.0},
        "benchmark": {"limit": 500},
        "model": {"student": "small", "pilot": None},
        "trainer": {"max_steps": 10},
        "optimizer": {"lr": 0.001},
        "checkpoint": {"save": "last", "every": None},
        "seed": seed,
        "name": f"{loss}_seed{seed}",
        "dir": str(folder),
        "logger": {"csv": {"folder": str(folder)}},
    }
    for key, value in changes.items():
        OmegaConf.update(box := OmegaConf.create(config), key.replace("__", "."), value)
        config = OmegaConf.to_container(box)  # pyright: ignore
    stages = {"before": 0.518, "after": accuracy}
    asked = {
        stage: {
            "problems": 500,
            "figures": {"accuracy": {"value": value, "low": value - 0.05, "high": value + 0.05}},
        }
        for stage, value in stages.items()
        if value is not None
    }
    summary = {
        "name": config["name"],
        "loss": loss,
        "status": "finished",
        "seed": seed,
        "benchmarks": {} if accuracy is None else {"arithmetic": asked},
        "tokens": 20_000.0 + seed,
        "rollout_tokens": 5_000.0 if loss == "opd" else 0.0,
        "seconds": {"training": 40.0 + 2 * seed},
    }
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_seeds_of_one_method_are_a_row_with_their_mean_and_its_t_interval(tmp_path: Path) -> None:
    for seed, accuracy in enumerate([0.788, 0.790, 0.568]):
        made(tmp_path / f"{seed}_sft", "sft", seed, accuracy)
    for seed, accuracy in enumerate([0.912, 0.830, 0.922]):
        made(tmp_path / f"{seed}_opd", "opd", seed, accuracy)
    assert results.report([tmp_path]) == "\n".join(
        [
            "arithmetic, 500 problems:",
            "",
            "| loss | before, % | after: seeds 0, 1, 2 | mean ± 95 % (t over seeds) | trained tokens "
            "| of them by the student | training, s |",
            "|---|---|---|---|---|---|---|",
            # The intervals are those of the README's first table, computed there by other means.
            "| `opd` | 51.8 | 91.2, 83.0, 92.2 | 88.8 ± 12.5 | 20 k | 25 % | 42 |",
            "| `sft` | 51.8 | 78.8, 79.0, 56.8 | 71.5 ± 31.7 | 20 k | 0 % | 42 |",
        ]
    )


def test_other_choices_within_a_method_are_rows_of_their_own_that_say_so(tmp_path: Path) -> None:
    made(tmp_path / "a", "sft", 0, 0.5)
    made(tmp_path / "b", "dcod", 0, 0.8)
    made(tmp_path / "c", "dcod", 0, 0.7, loss__temperature=2.0)
    made(tmp_path / "d", "t3s", 0, 0.6, model__pilot="outputs/pilot")
    (table,) = results.group_runs(results.read_runs([tmp_path])[0])
    assert [(row.loss, row.changes) for row in table.rows] == [
        ("dcod", ["loss.temperature=1.0"]),
        ("dcod", ["loss.temperature=2.0"]),
        ("t3s", ["model.pilot=outputs/pilot"]),
        ("sft", []),
    ]
    made(tmp_path / "e", "tvd", 0, 0.9, optimizer__lr=0.01)
    (table,) = results.group_runs(results.read_runs([tmp_path])[0])
    assert table.rows[0].changes == ["optimizer.lr=0.01"]
    assert table.rows[-1].changes == ["optimizer.lr=0.001"]


@pytest.mark.parametrize(
    ("key", "value", "headings"),
    [
        ("data__batch_size", 32, ["data.batch_size=64", "data.batch_size=32"]),
        ("benchmark__limit", 100, ["benchmark.limit=500", "benchmark.limit=100"]),
        ("model__student", "large", ["model.student=small", "model.student=large"]),
        ("max_tokens", 5000, ["max_tokens=null", "max_tokens=5000"]),
        ("checkpoint__save", "best", ["checkpoint.save=last", "checkpoint.save=best"]),
    ],
)
def test_runs_of_other_settings_get_a_table_of_their_own(
    tmp_path: Path, key: str, value: Any, headings: list[str]
) -> None:
    made(tmp_path / "a", "sft", 0, 0.5)
    made(tmp_path / "b", "sft", 1, 0.6)
    made(tmp_path / "c", "sft", 2, 0.9, **{key: value})
    tables = results.group_runs(results.read_runs([tmp_path])[0])
    assert [table.differs for table in tables] == [[heading] for heading in headings]
    assert [[len(row.runs) for row in table.rows] for table in tables] == [[2], [1]]
    assert f"arithmetic, 500 problems with {headings[1]}:" in results.report([tmp_path])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model__compile", True),
        ("data__token_budget", 512),
        ("trainer__optimizer_in_backward", True),
        ("trainer__timeout_minutes", 5),
        ("trainer__log_every_n_steps", 1),
        ("checkpoint__every", 7),
    ],
)
def test_settings_that_change_no_result_keep_runs_in_one_row(tmp_path: Path, key: str, value: Any) -> None:
    made(tmp_path / "a", "sft", 0, 0.5)
    made(tmp_path / "b", "sft", 1, 0.6, **{key: value})
    (table,) = results.group_runs(results.read_runs([tmp_path])[0])
    assert [len(row.runs) for row in table.rows] == [2]


def test_sets_of_traces_share_a_table_where_that_is_asked(tmp_path: Path) -> None:
    for name, path, accuracy in (("a", "random", 0.5), ("b", "chosen", 0.6), ("c", "chosen", 0.7)):
        seed = int(name == "c")
        changes = {"data__path": path, "data__recipe__source__path": path}
        made(tmp_path / name, "sft", seed, accuracy, **changes)
    runs = results.read_runs([tmp_path])[0]
    assert len(results.group_runs(runs)) == 2
    (table,) = results.group_runs(runs, ["data.path"])
    assert [(row.changes, len(row.runs)) for row in table.rows] == [
        (["data.path=chosen"], 2),
        (["data.path=random"], 1),
    ]
    assert "| `sft` data.path=chosen |" in results.report([tmp_path], ["data.path"])
    with pytest.raises(UserError, match=r"across data\.paht: no run has this key"):
        results.group_runs(runs, ["data.paht"])


def test_a_value_that_comes_from_another_is_not_named_beside_it(tmp_path: Path) -> None:
    made(tmp_path / "a", "sft", 0, 0.5)
    made(tmp_path / "b", "sft", 0, 0.6, data__limit=8, data__recipe__source__count=8)
    assert [c.differs for c in results.group_runs(results.read_runs([tmp_path])[0])] == [
        ["data.limit=4096"],
        ["data.limit=8"],
    ]


def test_rows_of_other_seeds_say_which(tmp_path: Path) -> None:
    for seed in (0, 1):
        made(tmp_path / f"sft{seed}", "sft", seed, 0.5)
    made(tmp_path / "dcod", "dcod", 1, 0.8)
    report = results.report([tmp_path])
    assert "| `dcod` | 51.8 | 1: 80.0 | 80.0 |" in report
    assert "| `sft` | 51.8 | 0: 50.0, 1: 50.0 | 50.0 ± 0.0 |" in report
    assert report.endswith("The rows' seeds differ.")


def test_a_seed_that_was_run_twice_counts_once(tmp_path: Path) -> None:
    new, old = made(tmp_path / "a", "sft", 0, 0.5), made(tmp_path / "b", "sft", 0, 0.9)
    os.utime(old / "summary.json", (1, 1))
    report = results.report([new, old, tmp_path])  # and a folder that is named twice is one run
    assert "| `sft` | 51.8 | 50.0 | 50.0 |" in report
    assert report.endswith(f"A newer run of `sft` with seed 0 counts in place of `{old}`.")


def test_what_has_no_result_is_named_with_the_reason(tmp_path: Path) -> None:
    made(tmp_path / "0_sft", "sft", 0, 0.5)
    for name in ("1_failed", "2_cut", "3_killed", "4_half", "5_old", "6_list"):
        (tmp_path / name).mkdir()
    error = "Traceback (most recent call last):\n  ...\ndistill.errors.NonFiniteError: the loss is nan\n"
    (tmp_path / "1_failed" / "error.txt").write_text(error)
    (tmp_path / "2_cut" / "versions.json").write_text("{}")
    for step in (90, 100):
        (tmp_path / "2_cut" / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
    (tmp_path / "3_killed" / ".lock").touch()
    (tmp_path / "4_half" / "summary.json").write_text('{"name": ')
    older = json.loads((tmp_path / "0_sft" / "summary.json").read_text())
    del older["benchmarks"]
    for name, content in (("5_old", older), ("6_list", [])):
        (tmp_path / name / "summary.json").write_text(json.dumps(content))
        (tmp_path / name / "config.yaml").write_text("seed: 0\n")
    report = results.report([tmp_path])
    assert "| `sft` | 51.8 | 50.0 | 50.0 |" in report
    below = report.split("Not in a table:\n\n")[1].splitlines()
    assert below[:3] == [
        f"- `{tmp_path / '1_failed'}`: failed: the loss is nan",
        f"- `{tmp_path / '2_cut'}`: unfinished: a checkpoint after step 100 is kept",
        f"- `{tmp_path / '3_killed'}`: unfinished: no checkpoint",
    ]
    assert below[3].startswith(f"- `{tmp_path / '4_half'}`: unreadable: ")
    assert below[4:] == [
        f"- `{tmp_path / '5_old'}`: unreadable: its summary.json has no benchmarks, as of another version",
        f"- `{tmp_path / '6_list'}`: unreadable: its summary.json is a list",
    ]


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no run in it"):
        results.report([tmp_path])
    with pytest.raises(UserError, match="there is no such folder"):
        results.report([tmp_path / "nowhere"])


@pytest.mark.slow
def test_real_runs_are_read_with_and_without_a_benchmark(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    words = arguments(tiny_pair, traces, tmp_path, "trainer.max_steps=2", "loss=opd", "seed=3")
    asked = [*words, "benchmark=arithmetic", "benchmark.limit=8", "benchmark.max_new_tokens=4"]
    run(asked, tmp_path / "sweep" / "0_asked")
    run(words, tmp_path / "sweep" / "1_not")
    report = results.report([tmp_path / "sweep"])
    assert "arithmetic, 8 problems with benchmark.limit=8, benchmark.max_new_tokens=4, " in report
    assert "No benchmark with benchmark.limit=null, benchmark.max_new_tokens=null, " in report
    for line in ("| `opd` | 0.0 | 0.0 | 0.0 |", "| `opd` | – | – | – |"):
        assert line in report
    assert report.count(" | 100 % | ") == 2
    assert "Not in a table" not in report
