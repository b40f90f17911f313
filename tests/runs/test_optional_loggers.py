"""Tests of TensorBoard and MLflow as loggers."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from distill.errors import UserError
from distill.runs.logger_packages import check_logger
from distill.runs.optional_loggers import MlflowMetrics, _kept, tensorboard_logger

CONFIG = {"name": "run", "optimizer": {"lr": 0.5}, "lora": None, "benchmark": ["a", "b"]}


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(UserError, match=rf'pip install "distill\[{name}\]"'):
        check_logger(name)
    check_logger("csv")
    check_logger("wandb")


def test_tensorboard_has_metrics_and_hyperparameters(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="distill[tensorboard] is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = tensorboard_logger(str(tmp_path))
    logger.log_hyperparams(CONFIG)
    logger.log_metrics({"train/loss": 2.0, "val/loss": 3.0}, step=1)
    logger.finalize("success")
    logger.log_metrics({"gsm8k/accuracy": 0.25}, step=2)  # after training
    logger.save()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert found == {"train/loss": [(1, 2.0)], "val/loss": [(1, 3.0)], "gsm8k/accuracy": [(2, 0.25)]}
    assert "optimizer" in (tmp_path / "tensorboard" / "hparams.yaml").read_text()


def mlflow_logger(folder: Path, **changes: Any) -> MlflowMetrics:
    options = {"experiment": "distill", "name": "run", "runs": str(folder / "runs")}
    return MlflowMetrics(str(folder), **options | changes)


def test_a_damaged_note_of_the_mlflow_run_is_one_sentence(tmp_path: Path) -> None:
    noted = tmp_path / "mlflow.json"
    assert _kept(noted) == {}
    noted.write_text('{"run_id": "a"}')
    assert _kept(noted) == {"run_id": "a"}
    for damaged in (b"", b'{"run_id', b"[]", b"\xff\xfe"):
        noted.write_bytes(damaged)
        with pytest.raises(UserError, match=r"mlflow.json is damaged \(.*\): delete it"):
            _kept(noted)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # MLflow's dependencies warn of their own
def test_mlflow_has_metrics_and_hyperparameters_and_a_resumed_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="distill[mlflow] is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    first = mlflow_logger(tmp_path)
    first.log_hyperparams(CONFIG)
    first.log_metrics({"train/loss": 2.0}, step=1)
    first.finalize("failed")
    again = mlflow_logger(tmp_path)
    again.log_hyperparams(CONFIG | {"name": "longer"})  # MLflow would refuse another value
    again.log_metrics({"train/loss": 1.0}, step=2)
    again.finalize("success")
    assert again.run_id == first.run_id
    run = again.experiment.get_run(first.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["optimizer/lr"] == "0.5"
    assert run.data.params["name"] == "run"
    history = again.experiment.get_metric_history(first.run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 2.0), (2, 1.0)]
    with pytest.raises(UserError, match=r"logger\.mlflow\.tracking_uri=nowhere://x: "):
        mlflow_logger(tmp_path / "other", tracking_uri="nowhere://x")
