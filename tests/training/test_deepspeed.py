"""Tests of trainer=deepspeed: its configuration, what it refuses, and two ranks against one process.

The ranks run on CPUs: DeepSpeed can, and Lightning's strategy, which refuses them, is told so."""

import importlib.util
import json
from pathlib import Path

import pytest
import warm
from test_fsdp import weight_difference
from test_training import ROOT, arguments, column, run
from test_training import traces as traces  # a fixture

from distill.errors import UserError
from distill.generation.sampling import StudentRollouts
from distill.models.find import find_model
from distill.training import checks, strategy_checks
from distill.training.deepspeed import zero_config
from distill.training.strategy_checks import check_strategy

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed: pip install 'distill[deepspeed]'"
)
ZERO = ["trainer=deepspeed", "trainer.accelerator=cpu", "trainer.devices=2"]


def ranks(words: list[str], folder: Path, count: int = 2) -> None:
    script = str(ROOT / "tests" / "training" / "zero_ranks.py")
    done = warm.run_ranks([script, *words, f"dir={folder}"], folder.parent, count)
    assert [one.returncode for one in done] == [0] * count, "\n".join(one.stderr[-3000:] for one in done)


def test_the_configuration_says_what_the_keys_ask_for() -> None:
    config = zero_config(stage=3, offload_optimizer=True, precision="bf16-mixed")
    assert config["zero_optimization"]["stage"] == 3
    assert config["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": True}
    assert config["bf16"] == {"enabled": True}
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}
    plain = zero_config(stage=2, offload_optimizer=False, precision="32-true")
    assert plain["zero_optimization"]["stage"] == 2
    assert "offload_optimizer" not in plain["zero_optimization"]
    assert "bf16" not in plain
    assert plain["communication_data_type"] == "fp32"


def test_options_become_a_strategy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "ZeroStrategy", lambda *given: given)
    options = {
        "devices": 2,
        "precision": "32-true",
        "strategy": "deepspeed",
        "stage": 3,
        "timeout_minutes": 90,
    }
    made = checks.with_strategy(options)
    config, timeout = made.pop("strategy")
    assert made == {"devices": 2, "precision": "32-true"}
    assert config["zero_optimization"]["stage"] == 3
    assert timeout.total_seconds() == 5400
    for name in ("ddp", "fsdp"):
        strategy = checks.with_strategy({"strategy": name, "timeout_minutes": 90})["strategy"]
        assert strategy._timeout.total_seconds() == 5400
    assert checks.with_strategy({"strategy": "fsdp", "cpu_offload": True})["strategy"].cpu_offload


def test_deepspeed_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package deepspeed.*pip install 'distill\[deepspeed\]'"):
        checks.check_devices({"strategy": "deepspeed"})


ADAMW = "torch.optim.AdamW"


@pytest.mark.parametrize(
    ("optimizer", "dtype", "sentence"),
    [
        ("bitsandbytes.optim.AdamW8bit", "float32", "a rank steps a flat share of all weights"),
        (ADAMW, "float64", "DeepSpeed keeps weights in fp32"),
    ],
)
def test_what_deepspeed_cannot_train_is_refused(
    tiny_pair: tuple[Path, Path], optimizer: str, dtype: str, sentence: str
) -> None:
    trainer = {"strategy": "deepspeed", "stage": 2}
    student = find_model(str(tiny_pair[0]), dtype=dtype, key="model.student")
    with pytest.raises(UserError, match=sentence):
        check_strategy(trainer, optimizer, student, [])
    right = find_model(str(tiny_pair[0]), key="model.student")
    check_strategy(trainer, ADAMW, right, [])


def test_a_student_with_two_ropes_is_refused_where_ranks_pass_together(
    tiny_pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strategy_checks, "rope_switch", lambda config: 64)
    student = find_model(str(tiny_pair[0]), key="model.student")
    check_strategy({"strategy": "deepspeed", "stage": 2}, ADAMW, student, [])
    with pytest.raises(UserError, match="reads long traces in a pass of their own"):
        check_strategy({"strategy": "deepspeed", "stage": 3}, ADAMW, student, [])


def test_a_sweep_starts_one_process_a_job_and_vllm_writes_for_one() -> None:
    trainer = {"devices": 2}
    strategy_checks.check_processes(trainer, 2, "dataset", sweep=False)
    strategy_checks.check_processes(trainer, 1, "dataset", sweep=True)
    with pytest.raises(UserError, match=r"-m with 2 processes a run \(trainer.devices=2\)"):
        strategy_checks.check_processes(trainer, 2, "dataset", sweep=True)
    with pytest.raises(UserError, match=r"loss\.rollouts\.engine=vllm writes on one device"):
        strategy_checks.check_processes(trainer, 2, StudentRollouts(engine="vllm"), sweep=False)


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "loss=dcod trainer.stage=3 data.layout=grouped data.token_budget=60",
        "loss=forward_kl trainer.stage=2 trainer.offload_optimizer=true trainer.accumulate_grad_batches=2",
        "loss=forward_kl trainer.stage=3 model.gradient_checkpointing=true trainer.accumulate_grad_batches=2",
        "loss=sft trainer.stage=3 model.lora.rank=2",
    ],
)
def test_two_ranks_of_deepspeed_train_as_one_process(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, words: str
) -> None:
    given = words.split()
    shared = [word for word in given if not word.startswith(("trainer.stage", "trainer.offload"))]
    both = arguments(tiny_pair, traces, tmp_path, *shared, "trainer.gradient_clip_val=0.5")
    both += ["trainer.max_steps=5", "data.validation=3", "validation.every=4"]
    single = run([*both, "data.batch_size=6"], tmp_path / "single")
    ranks([*both, *given, "data.batch_size=3", *ZERO], two := tmp_path / "two")
    for name in ("train/loss", "train/gradient_norm"):
        assert column(two, name) == pytest.approx(column(single, name), rel=1e-5)
    assert column(two, "train/tokens") == column(single, "train/tokens")
    assert weight_difference(single, two) < 5e-6
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (single, two)]
    held_out = [summary["validation"]["last"] for summary in summaries]
    assert held_out[0] == pytest.approx(held_out[1], rel=1e-5)
    assert summaries[0]["parameters"] == summaries[1]["parameters"]


@needs_deepspeed
@pytest.mark.slow
def test_deepspeed_in_bf16_trains_nearly_as_one_process(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    words = arguments(tiny_pair, traces, tmp_path, "loss=dcod", "trainer.precision=bf16-mixed")
    single = run([*words, "data.batch_size=6"], tmp_path / "single")
    ranks([*words, "data.batch_size=3", *ZERO, "trainer.stage=2"], two := tmp_path / "two")
    assert column(two, "train/loss") == pytest.approx(column(single, "train/loss"), rel=1e-3)
    norms = [column(folder, "train/gradient_norm") for folder in (two, single)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-2)


@needs_deepspeed
@pytest.mark.slow
def test_deepspeed_goes_on_with_another_number_of_ranks_and_another_stage(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    words = arguments(tiny_pair, traces, tmp_path, "loss=dcod", "model.lora.rank=2")
    words += ["lr_scheduler.decay=constant", "lr_scheduler.warmup_ratio=0"]
    words += ["data.validation=4", "validation.every=2", "checkpoint.best=val/loss", "checkpoint.save=best"]
    words += ["benchmark=arithmetic", "benchmark.limit=9", "benchmark.max_new_tokens=6", "eval_every=3"]
    single = run([*words, "trainer.max_steps=6", "data.batch_size=6"], tmp_path / "single")
    folder, zero = tmp_path / "two", [*words, *ZERO]
    three = [*zero, "data.batch_size=3", "trainer.stage=3", "checkpoint.of_finished=true"]
    ranks([*three, "trainer.max_steps=2"], folder)
    (folder / "summary.json").unlink()
    ranks([*three, "trainer.stage=2", "trainer.max_steps=4", f"ckpt_path={folder}"], folder)
    (folder / "summary.json").unlink()
    alone = [*zero, "data.batch_size=6", "trainer.stage=3", "trainer.max_steps=6", f"ckpt_path={folder}"]
    ranks([*alone, "trainer.devices=1"], folder, count=1)
    assert column(folder, "train/loss") == pytest.approx(column(single, "train/loss"), rel=1e-5)
    assert weight_difference(single, folder) < 5e-6
    figures = [json.loads((run / "summary.json").read_text())["benchmarks"] for run in (single, folder)]
    assert figures[0]["arithmetic"]["after"]["figures"] == figures[1]["arithmetic"]["after"]["figures"]


@needs_deepspeed
@pytest.mark.slow
def test_a_student_shared_by_deepspeed_writes_what_whole_ones_write(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    words = arguments(tiny_pair, traces, tmp_path, "loss=on_policy_kd", "loss.rollouts.fraction=0.5")
    words += ["data.batch_size=3", "trainer.max_steps=4"]
    ranks([*words, "trainer=ddp", *ZERO[1:]], tmp_path / "whole")
    ranks([*words, *ZERO, "trainer.stage=3"], tmp_path / "shared")
    for name in ("train/loss", "train/tokens"):
        one, other = (column(tmp_path / strategy, name) for strategy in ("whole", "shared"))
        assert one == pytest.approx(other, rel=1e-5)
