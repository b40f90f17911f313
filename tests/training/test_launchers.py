"""Tests of sweeps whose jobs run in other processes: failed jobs, skipping, resuming; and of optuna."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import warm
from omegaconf import OmegaConf
from test_results import made
from test_training import ROOT, arguments, traces

from distill.config import console, sweepers
from distill.config.overrides import check_overrides
from distill.config.sweep import swept_values, variants
from distill.errors import UserError
from distill.training import account, sweeps

__all__ = ["traces"]  # a fixture
HERE = Path(__file__).parent
BASIC = {
    "launcher": {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"},
    "sweeper": {"_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"},
}
OPTUNA = "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"


def installed(plugin: str) -> bool:
    if importlib.util.find_spec("hydra_plugins") is None:
        return False
    return importlib.util.find_spec(f"hydra_plugins.{plugin}") is not None


def needs(plugin: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not installed(plugin), reason='needs pip install "distill[sweeps]"')


def failed(folder: Path, text: str = "ValueError: it broke\n") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "versions.json").write_text("{}")
    (folder / "error.txt").write_text(f"Traceback (most recent call last):\n{text}")
    return folder


# --- the account


def test_jobs_that_failed_since_the_start_are_found_in_their_folders(tmp_path: Path) -> None:
    assert sweeps.errors_in(tmp_path / "sweep") == {}  # no folder yet
    sweep = tmp_path / "sweep"
    failed(sweep / "0_a")
    failed(sweep / "nested" / "1_b")
    before = sweeps.errors_in(sweep)
    assert sweeps.failures(sweep, before) == {}  # of an earlier start; another process may have these jobs
    failed(sweep / "nested" / "1_b", "distill.errors.UserError: again: this too\n")
    os.utime(sweep / "nested" / "1_b" / "error.txt", ns=(1, 1))
    failed(sweep / "2_c", "torch.OutOfMemoryError: 24 GB\n")
    made(sweep / "3_d", "sft", 0, 0.5)
    sweeps.refusal(sweep / "3_d").write_text("distill.errors.UserError: another run\n")
    assert sweeps.failures(sweep, before) == {
        sweep / "nested" / "1_b": "again: this too",
        sweep / "2_c": "torch.OutOfMemoryError: 24 GB",
        sweep / "3_d": "another run",
    }
    finished_after_all = made(sweep / "4_e", "sft", 1, 0.5)
    failed(finished_after_all)
    assert finished_after_all not in sweeps.failures(sweep, before)


@pytest.mark.parametrize("relative", [False, True])
def test_a_job_is_counted_once_whether_it_ran_here_or_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], relative: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = Path("sweep") if relative else tmp_path / "sweep"
    monkeypatch.setattr(console, "at_end", [])
    monkeypatch.setattr(account, "at_end", console.at_end)
    monkeypatch.setattr(account, "failed_jobs", known := [f"{tmp_path / 'sweep' / '0_a'}: it broke here"])
    config = {"plan": False, "hydra": {"sweep": {"dir": str(sweep)}, "runtime": {"choices": {}}}}
    account.SweepAccount().on_multirun_start(OmegaConf.create(config))
    for name in ("0_a", "1_b"):
        failed(sweep / name)
    (say,) = console.at_end
    say()
    assert capsys.readouterr().out == ""  # no table, as no job is finished
    assert known == [
        f"{tmp_path / 'sweep' / '0_a'}: it broke here",
        f"{tmp_path / 'sweep' / '1_b'}: ValueError: it broke",
    ]
    made(sweep / "2_c", "sft", 0, 0.5)
    say()
    assert "| `sft` |" in capsys.readouterr().out
    assert len(known) == 2


class TerminatedWorkerError(Exception):
    """As joblib's, of a job whose process was killed."""

    __module__ = "joblib.externals.loky"


@pytest.mark.parametrize(
    ("error", "jobs", "said"),
    [
        (TerminatedWorkerError("killed (SIGKILL)\nand more"), [], r"^error: the sweep ended early \(Term"),
        (
            ValueError("No trials"),
            ["a: x", "b: y"],
            r"^2 of the sweep's jobs failed:\na: x\nb: y\nerror: the",
        ),
        (ValueError("a bug"), [], None),
        (UserError("a mistake"), ["a: x"], None),
    ],
)
def test_a_launcher_that_ends_the_sweep_early_is_told_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, error: Exception, jobs: list[str], said: str | None
) -> None:
    monkeypatch.setattr(sweepers, "failed_jobs", jobs)
    joblib = OmegaConf.create({"hydra": {**BASIC, "launcher": {"_target_": "hydra_plugins.joblib"}}})

    def run() -> None:
        with sweepers.ended_early(joblib):
            raise error

    with pytest.raises(type(error) if said is None else SystemExit, match=said):
        run()
    with pytest.raises(type(error)), sweepers.ended_early(OmegaConf.create({"hydra": BASIC})):
        raise error


# --- the command line


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ("hydra/launcher/joblib", r'hydra/launcher=joblib needs .* pip install "distill\[sweeps\]"$'),
        ("hydra/launcher/submitit_slurm", r'submitit_slurm needs .* pip install "distill\[sweeps\]"$'),
        ("hydra/launcher/ray", "ray needs .* pip install hydra-ray-launcher$"),
        ("hydra/sweeper/optuna", r'hydra/sweeper=optuna needs .* pip install "distill\[sweeps\]"$'),
        ("hydra/sweeper/sampler/tpe", "hydra/sweeper=optuna needs"),
        ("hydra/launcher/slurm", r"hydra/launcher=slurm: there is no such launcher \(options: basic, joblib"),
        ("hydra/sweeper/tpe", r"hydra/sweeper=tpe: there is no such sweeper \(options: basic, optuna\)"),
    ],
)
def test_a_plugin_that_is_missing_is_named_with_what_installs_it(found: str, said: str) -> None:
    sentence = sweepers.missing_plugin(
        ValueError(f"In 'hydra/config': Could not find '{found}'\n\nAvailable")
    )
    assert sentence is not None
    with pytest.raises(UserError, match=said):
        raise UserError(sentence)
    assert sweepers.missing_plugin(ValueError("In 'train': Could not find 'loss/dcod'")) is None


@pytest.mark.skipif(installed("hydra_joblib_launcher"), reason="the plugin is installed")
def test_a_plugin_that_is_not_installed_is_refused_before_anything_runs() -> None:
    with pytest.raises(UserError, match=r'pip install "distill\[sweeps\]"'):
        check_overrides(ROOT / "conf", "train", ["-m", "hydra/launcher=joblib", "seed=0,1"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "first", "values"),
    [
        ("optimizer.lr=interval(1e-5,1e-3)", 1e-5, [1e-5, 1e-3]),
        ("optimizer.lr=tag(log,interval(1e-5,1e-3))", 1e-5, [1e-5, 1e-3]),
        ("data.batch_size=int(interval(2,9))", 2, [2, 9]),
    ],
)
def test_an_interval_is_for_a_sweeper_that_chooses_values(
    monkeypatch: pytest.MonkeyPatch, word: str, first: float, values: list[float]
) -> None:
    with pytest.raises(UserError, match=r"an interval is for a sweeper .* add hydra/sweeper=optuna, or list"):
        check_overrides(ROOT / "conf", "train", ["-m", word])
    monkeypatch.setattr("distill.config.sweepers._BASIC", "another.")
    cfg = check_overrides(ROOT / "conf", "train", ["-m", word])
    key = word.partition("=")[0]
    assert OmegaConf.select(cfg, key) == first
    found = swept_values(cfg, ["-m", word], {})
    assert found == {key: values}
    assert [OmegaConf.select(one, key) for one in variants(cfg, found)] == values  # both ends are checked


def test_optuna_maximizes_and_is_seeded_unless_the_user_says_otherwise() -> None:
    sweeper: dict[str, Any] = {"_target_": OPTUNA, "sampler": {"seed": None}, "n_trials": 20}
    cfg = OmegaConf.create({"hydra": {**BASIC, "sweeper": sweeper}})
    ours = ["hydra.sweeper.direction=maximize", "hydra.sweeper.max_failure_rate=1.0"]
    assert sweepers.sweeper_words(cfg, []) == [*ours, "hydra.sweeper.sampler.seed=0"]
    assert sweepers.trials(cfg) == 20
    given = ["hydra.sweeper.direction=minimize", "hydra.sweeper.sampler.seed=7"]
    assert sweepers.sweeper_words(cfg, given) == ours[1:]
    cfg.hydra.sweeper.sampler = {"_target_": "optuna.samplers.GridSampler"}
    assert sweepers.sweeper_words(cfg, []) == ours
    assert sweepers.sweeper_words(OmegaConf.create({"hydra": BASIC}), []) == []


def test_what_is_compared_is_the_accuracy_or_else_minus_the_loss(tmp_path: Path) -> None:
    folder = made(tmp_path / "run", "sft", 0, 0.25)
    assert sweeps.score(folder) == pytest.approx(0.25)
    summary = json.loads((folder / "summary.json").read_text())
    losses = [5.0] * 18 + [2.0, 1.0]
    rows = "".join(f"{step},{loss}\n" for step, loss in enumerate(losses, 1))
    (folder / "metrics.csv").write_text(f"step,train/loss\n{rows}")
    (folder / "checksums.json").unlink(missing_ok=True)

    def told(**changes: Any) -> float | None:
        (folder / "summary.json").write_text(json.dumps(summary | {"benchmarks": {}} | changes))
        return sweeps.score(folder)

    assert told(validation={"last": {"val/loss": 0.5}}) == -0.5
    assert told(validation={"last": {"val/accuracy": 0.5}}) == -1.5
    assert told() == -1.5  # the last tenth of the steps
    (folder / "metrics.csv").unlink()
    assert told() is None
    assert told(status="stopped") is None
    assert sweeps.score(tmp_path / "nothing") is None


# --- real sweeps


def sweep(
    words: list[str], folder: Path, cwd: Path, *more: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    paths = f"{ROOT}{os.pathsep}{HERE / 'launchers'}"
    environment = warm.environment() | {"PYTHONPATH": paths} | variables
    command = [str(ROOT / "train.py"), "-m", *words, f"hydra.sweep.dir={folder}", *more]
    if "hydra/launcher=forking" in words or not any(word.startswith("hydra/launcher=") for word in words):
        return warm.run(command, cwd, environment)
    # Launchers start Python as this process was started.
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


def two_jobs(pair: tuple[Path, Path], traces: Path, folder: Path) -> list[str]:
    """The first fails at its second step."""
    return arguments(
        pair,
        traces,
        folder,
        *["logger=[wandb,csv]", "trainer.max_steps=3", "lr_scheduler.warmup_ratio=0", "loss=sft"],
        *["optimizer.lr=1e30,0.001", "seed=0", "benchmark=arithmetic", "benchmark.limit=2"],
        "benchmark.max_new_tokens=2",
    )


def check_account(done: subprocess.CompletedProcess[str], folder: Path) -> None:
    assert done.returncode == 1, done.stderr[-2000:]
    assert f"1 of the sweep's jobs failed:\n{folder / '0_tiny_traces_sft_seed0'}: the loss is" in done.stderr
    assert "| `sft` |" in done.stdout
    assert "next: python -m distill.report" in done.stdout
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    assert [path.name for path in folders] == ["0_tiny_traces_sft_seed0", "1_tiny_traces_sft_seed0"]
    assert [(path / "summary.json").is_file() for path in folders] == [False, True]
    assert [(path / "error.txt").is_file() for path in folders] == [True, False]
    for path in folders:
        assert OmegaConf.load(path / "config.yaml").logger.wandb.group == folder.name
        assert len(list((path / "wandb").glob("offline-run-*"))) == 1


@pytest.mark.slow
def test_jobs_of_other_processes_are_counted_passed_over_resumed_and_refused(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    words = [*two_jobs(tiny_pair, traces, tmp_path), "hydra/launcher=forking"]
    folder = tmp_path / "sweep"
    done = sweep(words, folder, tmp_path)
    check_account(done, folder)
    job = folder / "1_tiny_traces_sft_seed0"
    (job / "summary.json").unlink()  # as if it was killed after its checkpoint
    words.append("logger=csv")  # starts faster
    done = sweep(words, folder, tmp_path, "optimizer.lr=0.1,0.001")
    assert "1 of the sweep's jobs failed" in done.stderr  # the first folder holds another configuration
    assert "optimizer.lr was 1e+30 and is 0.1" in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads((job / "summary.json").read_text())["resumed_from_step"] == 3
    assert (folder / "0_tiny_traces_sft_seed0.error.txt").is_file()
    done = sweep(words, folder, tmp_path, "optimizer.lr=0.001", "hydra.sweep.subdir=1_tiny_traces_sft_seed0")
    assert done.returncode == 0, done.stderr  # the failures are of earlier starts
    assert f"finished before, in {job}" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plugin", "launcher"),
    [
        pytest.param(plugin, launcher, marks=[needs(plugin), *more])
        for plugin, launcher, *more in (
            ("hydra_joblib_launcher", "joblib"),
            ("hydra_submitit_launcher", "submitit_local", pytest.mark.exhaustive),
            ("hydra_submitit_launcher", "submitit_slurm", pytest.mark.exhaustive),
        )
    ],
)
def test_a_launcher_keeps_the_account_of_the_basic_one(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, plugin: str, launcher: str
) -> None:
    words = [*two_jobs(tiny_pair, traces, tmp_path), f"hydra/launcher={launcher}"]
    variables = {}
    if launcher == "submitit_slurm":
        words += ["hydra.launcher.partition=gpu", "hydra.launcher.gpus_per_node=1"]
        words += ["hydra.launcher.timeout_min=90", "hydra.launcher.cpus_per_task=4"]
        variables = {"SLURM_STAND_IN": str(tmp_path), "PATH": f"{HERE / 'slurm'}:{os.environ['PATH']}"}
    done = sweep(words, tmp_path / "sweep", tmp_path, **variables)
    check_account(done, tmp_path / "sweep")
    if launcher == "joblib":
        jobs = {line[:4]: line for line in done.stdout.splitlines() if "] job " in line}
        names = [f"job {number} of 2: tiny_traces_sft_seed0" for number in (1, 2)]
        assert [jobs["[1] "], jobs["[2] "][: 4 + len(names[1])]] == [f"[1] {names[0]}", f"[2] {names[1]}"]
        assert any(line.startswith("[2] ") and "finished" in line for line in done.stdout.splitlines())
        versions = json.loads((tmp_path / "sweep" / "1_tiny_traces_sft_seed0" / "versions.json").read_text())
        assert versions["threads"] == 1  # one process for each core
    if launcher == "submitit_slurm":
        asked = (tmp_path / "script.sh").read_text().splitlines()
        for line in (
            "partition=gpu",
            "gpus-per-node=1",
            "time=90",
            "cpus-per-task=4",
            "nodes=1",
            "array=0-1%",
        ):
            assert any(one.startswith(f"#SBATCH --{line}") for one in asked), line
        assert any(one.startswith("srun ") and "submitit.core._submit" in one for one in asked)


@pytest.mark.slow
@pytest.mark.exhaustive
@needs("hydra_optuna_sweeper")
def test_optuna_finishes_a_study_with_a_failed_trial_and_passes_over_it_afterwards(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    words = [*two_jobs(tiny_pair, traces, tmp_path), "benchmark=none", "hydra/sweeper=optuna"]
    words = [word for word in words if not word.startswith(("benchmark.", "benchmark=arith", "optimizer.lr"))]
    words += ["optimizer.lr=choice(1e30,0.001)", "hydra.sweeper.n_trials=3"]
    done = sweep(words, tmp_path / "sweep", tmp_path)
    jobs = [path for path in sorted((tmp_path / "sweep").iterdir()) if path.is_dir()]
    scores = [sweeps.score(path) for path in jobs]
    assert len(jobs) == 3
    assert scores.count(None) in (1, 2)
    assert f"{scores.count(None)} of the sweep's jobs failed" in done.stderr
    best = OmegaConf.load(tmp_path / "sweep" / "optimization_results.yaml")
    assert best.best_params == {"optimizer.lr": 0.001}
    assert best.best_value == max(score for score in scores if score is not None)
    assert best.best_value < 0  # minus the loss
    again = sweep(words, tmp_path / "sweep", tmp_path)
    assert again.stdout.count("finished before") == 3 - scores.count(None)
    assert OmegaConf.load(tmp_path / "sweep" / "optimization_results.yaml") == best
