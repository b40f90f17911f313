"""Tests of restarted sweeps (finished runs are skipped, interrupted ones resume) and of learning rate
selection."""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from test_results import made
from test_training import ROOT, arguments, column, launched, rows, run, same_weights, traces, train_py

from distill.config.instantiate import resolved
from distill.config.overrides import check_overrides
from distill.config.resolvers import CHOICE, chosen_lr, scaled
from distill.errors import UserError
from distill.runs.folder import describe
from distill.runs.tuning import at_the_edge, choose, tune
from distill.training import sweeps

__all__ = ["traces"]  # a fixture


def configuration(words: list[str]) -> Any:
    return resolved(check_overrides(ROOT / "conf", "train", words))


@pytest.fixture(scope="module")
def finished(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[str], Path]:
    """A run with a benchmark: its words and its folder."""
    root = tmp_path_factory.mktemp("finished")
    words = arguments(
        tiny_pair, traces, root, "benchmark=arithmetic", "benchmark.limit=4", "trainer.max_steps=4"
    )
    words += ["benchmark.max_new_tokens=4", "checkpoint.every=2", "loss=sft"]
    return words, run(words, root / "run")


@pytest.mark.slow
def test_a_finished_job_is_done_and_tells_its_score(finished: tuple[list[str], Path]) -> None:
    words, folder = finished
    score = json.loads((folder / "summary.json").read_text())["benchmarks"]["arithmetic"]["after"]
    found = sweeps.look_up(folder, configuration(words))
    assert found == sweeps.Earlier(finished=True, score=score["figures"]["accuracy"]["value"])
    # Where it logs and what it saves is no other run.
    assert sweeps.look_up(folder, configuration([*words, "checkpoint.every=7", "logger=[]"])).finished


@pytest.mark.slow
def test_a_job_that_was_broken_off_goes_on_from_its_newest_checkpoint(
    finished: tuple[list[str], Path], tmp_path: Path
) -> None:
    words, folder = finished
    cut = tmp_path / "cut"
    shutil.copytree(folder, cut)
    (cut / "summary.json").unlink()
    assert sweeps.look_up(cut, configuration(words)).checkpoint == cut / "checkpoints" / "step-000004"
    shutil.rmtree(cut / "checkpoints")
    assert sweeps.look_up(cut, configuration(words)) == sweeps.Earlier()  # from its beginning
    assert sweeps.look_up(tmp_path / "nothing", configuration(words)) == sweeps.Earlier()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("optimizer.weight_decay=0.5", r"optimizer\.weight_decay was 0\.0 and is 0\.5"),
        ("seed=1", r"seed was 0 and is 1"),
        ("loss=dcod", r"loss\."),
        ("trainer.max_steps=9", r"trainer\.max_steps was 4 and is 9"),
        ("max_tokens=99", r"max_tokens was None and is 99"),
        ("benchmark.limit=3", r"benchmark\.limit was 4 and is 3"),
        ("data.epochs=9", r"data\.epochs was"),
    ],
)
def test_another_runs_folder_is_refused_whether_done_or_broken_off(
    finished: tuple[list[str], Path], tmp_path: Path, word: str, said: str
) -> None:
    words, folder = finished
    cut = tmp_path / "cut"
    shutil.copytree(folder, cut)
    (cut / "summary.json").unlink()
    other = configuration([*words, word])
    for place in (folder, cut):
        with pytest.raises(
            UserError, match=rf"holds a run of another configuration \({said}.*hydra\.sweep\.dir="
        ):
            sweeps.look_up(place, other)


@pytest.mark.parametrize("status", [None, "interrupted", "failed"])
def test_a_job_that_is_not_finished_goes_on_though_it_left_a_summary(
    tmp_path: Path, status: str | None
) -> None:
    config = {"seed": 0, "trainer": {"max_steps": 4}}
    describe(tmp_path, config, [])
    assert sweeps.look_up(tmp_path, config) == sweeps.Earlier()
    for step in (2, 4):
        (tmp_path / "checkpoints" / f"step-00000{step}").mkdir(parents=True)
        (tmp_path / "checkpoints" / f"step-00000{step}" / "state.ckpt").touch()
    if status is not None:
        (tmp_path / "summary.json").write_text(json.dumps({"status": status}))
    newest = tmp_path / "checkpoints" / "step-000004"
    assert sweeps.look_up(tmp_path, config) == sweeps.Earlier(checkpoint=newest)
    with pytest.raises(UserError, match=r"another configuration \(trainer\.max_steps was 4 and is 9\)"):
        sweeps.look_up(tmp_path, config | {"trainer": {"max_steps": 9}})


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_comparison_that_was_killed_ends_as_an_unbroken_one(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    words = arguments(
        tiny_pair,
        traces,
        tmp_path,
        *["experiment=compare", "seed=0", "loss=sft,dcod_shuffled,on_policy_kd", "trainer.max_steps=40"],
        *["data.batch_size=4", "max_tokens=null", "checkpoint.every=5", "benchmark=arithmetic"],
        *["benchmark.limit=4", "benchmark.max_new_tokens=8", "eval_every=15"],
    )
    done = train_py([*words, "hydra.sweep.dir=whole"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    whole = {path.name.split("_traces_")[1]: path for path in (tmp_path / "whole").iterdir() if path.is_dir()}
    assert sorted(whole) == ["dcod_shuffled_seed0", "on_policy_kd_seed0", "sft_seed0"]

    broken = tmp_path / "broken"
    names = {name: broken / path.name for name, path in whole.items()}
    names["on_policy_kd_seed0"].mkdir(parents=True)  # it broke before its first checkpoint
    (names["on_policy_kd_seed0"] / "metrics.csv").write_text("step,train/loss\n1,nonsense\n")
    words.append("hydra.sweep.dir=broken")
    with launched(words, tmp_path) as process:
        deadline = time.monotonic() + 200
        while not list((names["dcod_shuffled_seed0"] / "checkpoints").glob("step-*")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    assert not (names["dcod_shuffled_seed0"] / "summary.json").exists()
    first = (names["sft_seed0"] / "summary.json").stat().st_mtime_ns

    done = train_py(words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"tiny_traces_sft_seed0: finished before, in {names['sft_seed0']}" in done.stdout
    assert done.stdout.count("finished before") == 1
    assert (names["sft_seed0"] / "summary.json").stat().st_mtime_ns == first
    for name, folder in names.items():
        assert len(rows(folder)) == 40
        for metric in ("train/loss", "train/tokens", "train/lr"):
            assert column(folder, metric) == column(whole[name], metric)
        assert same_weights(folder, whole[name])
        before, after = (json.loads((place / "summary.json").read_text()) for place in (whole[name], folder))
        for stage in ("before", "after"):
            one, other = (own["benchmarks"]["arithmetic"][stage]["figures"] for own in (before, after))
            assert one == other
        resumed = after["resumed_from_step"]
        assert resumed is None if name != "dcod_shuffled_seed0" else resumed >= 5

    # Another configuration in the same folder: each job says so, the new one runs, and nothing is lost.
    done = train_py([*words, "optimizer.weight_decay=0.5", "loss=sft,dft"], cwd=tmp_path)
    assert done.returncode == 1
    assert "1 of the sweep's jobs failed" in done.stderr
    assert "optimizer.weight_decay was 0.0 and is 0.5" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(broken.glob("*/error.txt"))
    assert (broken / "tiny_traces_dft_seed0" / "summary.json").is_file()
    assert (names["sft_seed0"] / "summary.json").stat().st_mtime_ns == first


@pytest.mark.slow
def test_a_sweep_whose_first_jobs_all_fail_of_the_same_ends_there(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    words = arguments(tiny_pair, traces, tmp_path, "trainer.max_steps=1", "seed=0,1,2,3,4,5")
    words += [f"hydra.sweep.dir={tmp_path / 'sweep'}", "data.max_length=10"]
    done = train_py(["-m", *words])
    assert done.returncode == 1
    assert done.stderr.count("this job failed") == 2
    assert done.stderr.rstrip().endswith("the sweep ends here")
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "sweep").glob("3_*"))


def test_a_sweep_is_given_up_only_where_the_first_three_failed_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    for outcomes, reason in (
        (["a", "a"], None),
        (["a", "a", "a"], "a"),
        (["a", "b", "a"], None),
        ([None, "a", "a"], None),
        (["a", "b", "a", "a"], None),
        ([None, "a", "a", "a"], None),
    ):
        monkeypatch.setattr(sweeps, "outcomes", outcomes)
        assert sweeps.hopeless() == reason


def test_a_job_says_its_number_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps.sweep, "jobs", 6)
    monkeypatch.setattr(sweeps, "seconds", [])
    assert sweeps.announce(0, "a") == "job 1 of 6: a"
    monkeypatch.setattr(sweeps, "seconds", [60.0, 120.0])
    assert sweeps.announce(2, "b") == "job 3 of 6: b, about 6 min 0 s left"
    assert sweeps.announce(2, "b", 2) == "job 3 of 6: b, about 3 min 0 s left"
    assert sweeps.announce(2, "b", None) == "job 3 of 6: b"
    monkeypatch.setattr(sweeps.sweep, "jobs", None)  # another launcher's process
    assert sweeps.announce(2, "b") == "job 3: b"


@pytest.mark.parametrize(
    ("launcher", "jobs"),
    [({"n_jobs": 3}, 3), ({"n_jobs": -1}, os.cpu_count()), ({"timeout_min": 60}, None)],
)
def test_joblib_says_how_many_jobs_run_at_once(launcher: dict[str, int], jobs: int | None) -> None:
    assert sweeps.at_once(launcher) == jobs


@pytest.mark.parametrize(
    ("losses", "experiment", "command"),
    [
        (["sft", "dcod"], "compare", "python -m distill.report {}"),
        (["dcod", "tvd"], None, "python -m distill.report {} --baseline dcod"),
        (["sft", "dcod"], "tune_qwen", "python -m distill.tune {}"),
    ],
)
def test_a_sweep_ends_with_its_table_and_the_next_command(
    tmp_path: Path, losses: list[str], experiment: str | None, command: str
) -> None:
    for number, loss in enumerate(losses):
        made(tmp_path / f"{number}_{loss}", loss, 0, 0.1 if loss == "dcod" else 0.6)
    said = sweeps.at_the_end(tmp_path, experiment)
    assert "| `dcod` | 51.8 | 10.0 |" in said
    assert said.endswith(f"next: {command.format(tmp_path)}")
    (below,) = [line for line in said.splitlines() if "ends below where it began" in line]
    assert "dcod" in below
    assert "(51.8% → 10.0% [5.0%, 15.0%])" in below


# --- learning rates


def test_a_loss_takes_the_rate_that_was_chosen_for_it(tmp_path: Path) -> None:
    assert chosen_lr({"sft": 1e-3, "dcod": 3e-3}, None, "dcod") == 3e-3
    (tmp_path / CHOICE).write_text("lrs:\n  dcod: 0.5\n")
    assert chosen_lr({"sft": 1e-3, "dcod": 3e-3}, str(tmp_path), "dcod") == 0.5
    with pytest.raises(UserError, match=r"learning_rates\.yaml has no learning rate of loss=sft \(of dcod\)"):
        chosen_lr({"sft": 1e-3}, str(tmp_path), "sft")


def test_a_scale_takes_a_share_and_leaves_at_least_one() -> None:
    assert [scaled(5, 1.0), scaled(50000, 0.02), scaled(5, 0.02), scaled(100, 3)] == [5, 1000, 1, 300]
    for wrong in (0, -1, True, float("nan")):
        with pytest.raises(UserError, match="must be a positive number"):
            scaled(5, wrong)


def write_run(folder: Path, loss: str, lr: float, seed: int, accuracy: float) -> None:
    folder.mkdir(parents=True)
    after = {"problems": 300, "figures": {"accuracy": {"value": accuracy, "low": 0.0, "high": 1.0}}}
    summary = {"name": f"{loss}_seed{seed}", "status": "finished", "seed": seed, "loss": loss}
    summary |= {"benchmarks": {"arithmetic": {"before": after, "after": after}}}
    summary |= {"tokens": 100, "rollout_tokens": 0, "seconds": {"training": 1.0}}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "config.yaml").write_text(OmegaConf.to_yaml({"model": {"lr": lr}, "seed": seed}))
    (folder / "versions.json").write_text("{}")


def write_grid(folder: Path) -> None:
    accuracies = {
        ("sft", 0.001): (0.5, 0.7),  # mean 0.6
        ("sft", 0.003): (0.9, 0.1),  # 0.5
        ("sft", 0.01): (0.0, 0.8),  # 0.4
        ("dcod", 0.001): (0.5, 0.5),
        ("dcod", 0.003): (0.8, 0.6),  # 0.7, as at 0.01: the lower one
        ("dcod", 0.01): (0.6, 0.8),
    }
    for (loss, lr), own in accuracies.items():
        for seed, accuracy in enumerate(own):
            write_run(folder / f"{loss}_{lr}_{seed}", loss, lr, seed, accuracy)


def test_the_best_mean_over_seeds_is_chosen_and_written_where_the_comparison_reads_it(tmp_path: Path) -> None:
    write_grid(tmp_path)
    said = tune(tmp_path)
    assert "| `sft` | **60.0** | 50.0 | 40.0 |" in said
    assert "| `dcod` | 50.0 | **70.0** | 70.0 |" in said
    assert "300 problems of arithmetic, mean of seeds 0, 1" in said
    assert "may lie outside: sft." in said
    assert chosen_lr({}, str(tmp_path), "sft") == 0.001
    assert chosen_lr({}, str(tmp_path), "dcod") == 0.003
    assert "# | `sft` | **60.0**" in (tmp_path / CHOICE).read_text()
    assert tune(tmp_path) == said  # the choice itself is no run


def test_tau_is_chosen_with_the_rate_where_a_loss_has_several(tmp_path: Path) -> None:
    write_grid(tmp_path)
    for tau, accuracies in ((1.0, (0.7, 0.6, 0.5)), (2.0, (0.2, 0.9, 0.1))):
        for lr, accuracy in zip((0.001, 0.003, 0.01), accuracies, strict=True):
            for seed in (0, 1):
                place = tmp_path / f"dcod_kl_{tau}_{lr}_{seed}"
                write_run(place, "dcod_kl", lr, seed, accuracy)
                config = {"model": {"lr": lr}, "seed": seed, "loss": {"token_weight": {"temperature": tau}}}
                (place / "config.yaml").write_text(OmegaConf.to_yaml(config))
    said = tune(tmp_path)
    assert "| `dcod_kl τ=1` | **70.0** | 60.0 | 50.0 |" in said
    assert "| `dcod_kl τ=2` | 20.0 | **90.0** | 10.0 |" in said
    assert "give the comparison: ++taus.dcod_kl=2" in said
    assert chosen_lr({}, str(tmp_path), "dcod_kl") == 0.003
    assert OmegaConf.load(tmp_path / CHOICE)["taus"] == {"dcod_kl": 2.0}


def test_runs_that_differ_in_another_setting_are_not_chosen_among(tmp_path: Path) -> None:
    write_grid(tmp_path)
    write_run(other := tmp_path / "z", "sft", 0.003, 1, 0.99)
    with pytest.raises(UserError, match=r"sft_0\.003_1 and .*z have the same loss, rate and seed: keep one"):
        tune(tmp_path)
    config = OmegaConf.load(other / "config.yaml")
    (other / "config.yaml").write_text(OmegaConf.to_yaml({**config, "data": {"limit": 7}}))
    with pytest.raises(UserError, match=r"data\.limit=None and 7: rates are chosen for one such setting"):
        tune(tmp_path)


def test_a_single_rate_is_no_edge_and_a_tie_takes_the_lower_rate() -> None:
    assert at_the_edge({"sft": {0.1: 0.5}}) == []
    assert choose({"sft": {0.1: 0.5, 0.2: 0.5, 0.3: 0.4}}) == {"sft": 0.1}


def test_no_rate_is_chosen_from_a_grid_with_a_hole_or_a_job_that_failed(tmp_path: Path) -> None:
    write_grid(tmp_path)
    shutil.rmtree(tmp_path / "sft_0.003_1")
    with pytest.raises(UserError, match=r"loss=sft has no finished run with optimizer\.lr=0\.003 seed=1"):
        tune(tmp_path)
    (tmp_path / "sft_0.003_1").mkdir()
    (tmp_path / "sft_0.003_1" / "error.txt").write_text("ValueError: it broke\n")
    with pytest.raises(UserError, match=r"it broke; start the sweep again"):
        tune(tmp_path)
    assert not (tmp_path / CHOICE).exists()
