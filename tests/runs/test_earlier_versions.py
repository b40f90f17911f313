"""Tests on a trace set, a cache and a run of commit 46be49d, from before folders and keys were renamed.

`data_of_earlier_versions/` holds what these commands left there, but for pictures and locks:

    python -m distill.generate model=none model.teacher=teacher data=arithmetic data.limit=8 \
        data.operations=[1,2] data.max_new_tokens=8 samples=1 out=traces
    python train.py loss=dcod model=none model.student=student model.teacher=teacher model.lr=0.01 \
        data=traces data.path=traces data.keep=all data.batch_size=4 data.max_new_tokens=8 \
        benchmark=arithmetic benchmark.limit=2 benchmark.max_new_tokens=8 schedule.warmup=0 \
        benchmark.every=1 logger=csv trainer.max_steps=2 trainer.precision=32-true \
        runs=runs dir=runs/dcod cache=cache
"""

import shutil
from pathlib import Path

import pytest
from test_training import run

from distill.config.instantiate import resolved
from distill.config.overrides import check_overrides
from distill.data.trace_set import read_records
from distill.errors import UserError
from distill.report.write import write_report
from distill.runs.folder import asked_alike, config_difference
from distill.runs.load import load_runs
from distill.runs.table import group_runs, read_runs

TESTS = Path(__file__).resolve().parents[1]
WORDS = [
    "loss=dcod", "model=none", "model.student=student", "model.teacher=teacher", "optimizer.lr=0.01",
    "data=traces", "data.path=traces", "data.keep=all", "data.batch_size=4", "data.max_new_tokens=8",
    "benchmark=arithmetic", "benchmark.limit=2", "benchmark.max_new_tokens=8", "lr_scheduler.warmup_ratio=0",
    "eval_every=1", "logger=csv", "trainer.max_steps=2", "trainer.precision=32-true",
    "runs=runs", "cache=cache",
]  # fmt: skip
OLD = Path("runs/dcod")


@pytest.fixture(autouse=True)
def old_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the old command was given, its folders can be written to."""
    shutil.copytree(TESTS / "data_of_earlier_versions", tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_an_old_run_is_of_todays_configuration_and_says_which_key_differs() -> None:
    cfg = check_overrides(TESTS.parent / "conf", "train", [*WORDS, f"dir={OLD}"])
    assert config_difference(OLD, resolved(cfg), length_too=True) is None
    assert asked_alike(OLD, resolved(cfg))
    cfg.lr_scheduler.warmup_ratio = 0.5
    assert config_difference(OLD, resolved(cfg)) == "lr_scheduler.warmup_ratio was 0 and is 0.5"


def test_an_old_trace_set_is_read() -> None:
    records = read_records(Path("traces"))
    assert len(records) == 8
    assert all(record["teacher_logprobs"] for record in records)


@pytest.mark.slow
def test_an_old_run_goes_on_from_its_checkpoint_as_one_of_today_does() -> None:
    """And with what it had cached: the untrained student's answers are not written anew."""
    cached = sorted(Path("cache").iterdir())
    new = run(WORDS, Path("runs/new"))
    lengthened = [word for word in WORDS if not word.startswith("trainer.max_steps")] + [
        "trainer.max_steps=3"
    ]
    resumed = [run([*lengthened, f"ckpt_path={folder}"], folder) for folder in (OLD, new)]
    assert resumed == [OLD.resolve(), new.resolve()]
    assert [path for path in sorted(Path("cache").iterdir()) if path.name.startswith("untrained")] == cached
    logged = load_runs("runs", samples=False).metrics
    steps = logged[logged["metric"] == "train/loss"].set_index(["run", "step"])["value"]
    assert steps["dcod"].to_dict() == pytest.approx(steps["new"].to_dict(), rel=1e-6)
    assert len(steps["dcod"]) == 3
    with pytest.raises(UserError, match=r"was made with another configuration: .*loss\.token_weight"):
        run([*lengthened, "loss.token_weight.bias=1", f"ckpt_path={OLD}"], OLD)


@pytest.mark.slow
def test_an_old_run_and_a_new_one_are_one_row_and_one_report() -> None:
    run([*WORDS, "seed=1"], Path("runs/new"))
    runs, others = read_runs([Path("runs")])
    assert not others
    (table,) = group_runs(runs)
    (row,) = table.rows
    assert [run.seed for run in row.runs] == [0, 1]
    assert row.changes == []
    found = load_runs("runs", columns=["optimizer.lr", "eval_every"])
    assert list(found.runs["optimizer.lr"]) == [0.01, 0.01]
    assert list(found.runs["eval_every"]) == [1, 1]
    assert not [column for column in found.runs.columns if column.startswith(("model.lr", "schedule"))]
    assert "dcod" in write_report([Path("runs")], baseline="dcod")
