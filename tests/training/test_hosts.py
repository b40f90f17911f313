"""Tests of training on several hosts: who has the first rank, and two hosts as two processes here."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import warm
from omegaconf import OmegaConf
from test_training import ROOT, arguments, column, run, traces

from distill.errors import UserError
from distill.io import locks
from distill.runs.folder import checkpoints
from distill.training.__main__ import check_ranks
from distill.training.strategy_checks import check_processes

__all__ = ["traces"]  # a fixture
LAUNCHERS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As if this process was started by nobody, and Lightning was not imported yet."""
    for name in (*LAUNCHERS, "SLURM_JOB_NAME", "JSM_NAMESPACE_RANK"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("given", "first"),
    [
        ({}, True),
        ({"NODE_RANK": "0"}, True),
        ({"NODE_RANK": "1"}, False),  # Lightning's own variables: started once on each host
        ({"NODE_RANK": "0", "LOCAL_RANK": "1"}, False),  # started by the first process of the host
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),
        ({"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}, True),  # torchrun
        ({"RANK": "8", "LOCAL_RANK": "0", "GROUP_RANK": "1"}, False),
        ({"RANK": "0", "SLURM_PROCID": "1"}, True),  # torchrun inside srun, which chose another first host
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, True),
        ({"SLURM_PROCID": "3", "SLURM_LOCALID": "0"}, False),
        ({"SLURM_PROCID": "0", "LOCAL_RANK": "1"}, False),  # sbatch without srun
    ],
)
@pytest.mark.parametrize("imported", [False, True])
def test_the_first_rank_is_the_first_process_of_the_first_host(
    alone: pytest.MonkeyPatch, given: dict[str, str], first: bool, imported: bool
) -> None:
    if not imported:
        alone.delitem(sys.modules, "lightning.pytorch")
    for name, value in given.items():
        alone.setenv(name, value)
    assert locks.first_rank() is first


@pytest.mark.parametrize(
    ("given", "words", "said"),
    [
        ({}, ["trainer.num_nodes=2"], r"trainer\.num_nodes=2: the run's folder .* with dir="),
        ({"WORLD_SIZE": "2"}, [], "torchrun or srun with several tasks: the run's folder"),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "distill"}, [], "torchrun or srun with several tasks"),
        ({}, ["trainer.num_nodes=2", "-m"], "start each run of the sweep by itself"),
        ({"WORLD_SIZE": "2"}, ["dir=run"], None),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "bash"}, [], None),  # an interactive shell
        ({"WORLD_SIZE": "1", "SLURM_NTASKS": "1"}, ["-m"], None),
    ],
)
def test_hosts_must_agree_on_the_runs_folder(
    alone: pytest.MonkeyPatch, given: dict[str, str], words: list[str], said: str | None
) -> None:
    for name, value in given.items():
        alone.setenv(name, value)
    hydra = {"mode": None, "launcher": {"_target_": "hydra._internal.core_plugins.basic_launcher"}}
    hosts = 2 if "trainer.num_nodes=2" in words else 1
    cfg = OmegaConf.create({"trainer": {"num_nodes": hosts}, "hydra": hydra})
    if said is None:
        check_ranks(cfg, words)
    else:
        with pytest.raises(UserError, match=said):
            check_ranks(cfg, words)


@pytest.mark.parametrize(
    ("given", "ranks", "refused"),
    [
        ({"WORLD_SIZE": "3"}, 2, "3 processes were"),
        ({"WORLD_SIZE": "2"}, 1, "2 processes were"),
        ({"WORLD_SIZE": "2", "SLURM_NTASKS": "1"}, 2, None),  # torchrun inside srun
        ({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "distill"}, 8, "4 processes were"),
        ({"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "distill"}, 2, "1 process was"),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "distill"}, 1, None),  # in the batch file's own process
        ({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "bash"}, 2, None),
        ({"WORLD_SIZE": "4"}, 4, None),
        ({}, 2, None),
    ],
)
def test_as_many_processes_are_started_as_train(
    alone: pytest.MonkeyPatch, given: dict[str, str], ranks: int, refused: str | None
) -> None:
    for name, value in given.items():
        alone.setenv(name, value)
    if refused is None:
        check_processes({"devices": ranks}, ranks, "dataset", sweep=False)
        return
    said = (
        rf"{refused} started .*trainer\.devices={ranks} × trainer\.num_nodes=1 is {ranks}: start one for each"
    )
    with pytest.raises(UserError, match=said):
        check_processes({"devices": ranks}, ranks, "dataset", sweep=False)


def host(kind: str, number: int) -> dict[str, str]:
    """The variables that a launcher sets on one of two hosts with one process each."""
    rank = str(number)
    if kind == "slurm":
        slurm = {"SLURM_JOB_NAME": "distill", "SLURM_JOB_ID": "7", "SLURM_LOCALID": "0"}
        slurm |= {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1"}
        return slurm | {"SLURM_PROCID": rank, "SLURM_NODEID": rank}
    torchrun = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
    return torchrun | {"RANK": rank, "GROUP_RANK": rank, "LOCAL_RANK": "0"}


def start(kind: str, words: list[str], folder: Path) -> list[warm.Command]:
    command, shared = [str(ROOT / "train.py"), *words], warm.environment() | warm.meeting_point()
    return [warm.Command(command, folder, shared | host(kind, number)) for number in (0, 1)]


@pytest.mark.slow
def test_two_hosts_start_stop_and_resume_as_one(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    """SLURM stops them as before its time limit; torchrun goes on."""
    length = "trainer.max_steps={} lr_scheduler.decay=constant lr_scheduler.warmup_ratio=0".format
    words = arguments(tiny_pair, traces, tmp_path, "loss=dcod", "trainer.strategy=ddp", "model.threads=1")
    two = [*words, "data.batch_size=3", "trainer.num_nodes=2"]
    folder = tmp_path / "two"
    first = start("slurm", [*two, *length(20000).split(), f"dir={folder}"], tmp_path)
    try:
        deadline = time.monotonic() + 100
        while not (folder / "weights.jsonl").exists():
            assert time.monotonic() < deadline
            assert all(one.poll() is None for one in first), "\n".join(one.said()[1] for one in first)[-3000:]
            time.sleep(0.05)
        for one in first:
            one.send_signal(signal.SIGTERM)
        said = [one.communicate(100) for one in first]
    finally:
        for one in first:
            one.close()
    assert first[0].returncode == 130, said[0][1]
    assert "stopped by SIGTERM" in said[0][1]
    (stopped,) = checkpoints(folder / "checkpoints")
    step = int(stopped.name.removeprefix("step-"))
    onward = start("torchrun", [*two, *length(step + 3).split(), f"ckpt_path={folder}"], tmp_path)
    try:
        said = [one.communicate(100) for one in onward]
    finally:
        for one in onward:
            one.close()
    assert [one.returncode for one in onward] == [0, 0], said
    assert "finished" in said[0][0]
    assert not said[1][0]  # the other host is silent
    assert len(list((tmp_path).glob("**/config.yaml"))) == 1
    single = [*words, "data.batch_size=6", "trainer.strategy=auto", *length(step + 3).split()]
    alone = run(single, tmp_path / "one")
    for name in ("train/loss", "train/gradient_norm"):
        assert column(folder, name) == pytest.approx(column(alone, name), rel=1e-3)
    assert column(folder, "train/tokens") == column(alone, "train/tokens")


@pytest.mark.parametrize(("status", "saved"), [(130, True), (130, False), (0, True), (1, False)])
def test_the_batch_file_of_the_guide_goes_on_after_its_time_limit(
    tmp_path: Path, status: int, saved: bool
) -> None:
    guide = (ROOT / "docs" / "guides" / "many-gpus.md").read_text(encoding="utf-8")
    (batch,) = re.findall(r"^```sbatch\n(.*?)^```", guide, flags=re.DOTALL | re.MULTILINE)
    run = tmp_path / "outputs" / "runs" / "qwen1.5b_dcod"
    for name, text in (("srun", f'echo "$@"; exit {status}'), ("scontrol", 'echo "$@"')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    if saved:
        (run / "checkpoints" / "step-000100").mkdir(parents=True)
        (run / "checkpoints" / "step-000100" / "state.ckpt").touch()
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_CPUS_PER_TASK": "8",
    }
    done = subprocess.run(
        ["bash", "-c", batch], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (status, "")
    started, *requeued = done.stdout.splitlines()
    word = "ckpt_path" if saved else "dir"
    assert started.startswith("python train.py loss=dcod")
    assert started.endswith(f" {word}=outputs/runs/qwen1.5b_dcod")
    assert requeued == (["requeue 7"] if status == 130 else [])
    words = shlex.split(started)[2:]
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)", batch, flags=re.MULTILINE))
    assert f"trainer.num_nodes={asked['nodes']}" in words
    assert f"trainer.devices={asked['ntasks-per-node']}" in words
    assert asked["gpus-per-node"] == asked["ntasks-per-node"]
