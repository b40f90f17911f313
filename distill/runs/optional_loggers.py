"""TensorBoard and MLflow, through Lightning's own loggers. Their packages are optional."""

import json
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from distill.errors import UserError, first_line
from distill.io.files import write_json
from distill.io.locks import first_rank
from distill.io.secrets import without_secrets
from distill.runs.logger_packages import check_logger


def tensorboard_logger(folder: str) -> TensorBoardLogger:
    """A TensorBoard logger that writes into `tensorboard/` of the run folder.

    Raises:
        UserError: neither tensorboard nor tensorboardX is installed.
    """
    check_logger("tensorboard")
    return TensorBoardLogger(folder, name="tensorboard", version="", default_hp_metric=False)


class MlflowMetrics(MLFlowLogger):
    """Lightning's MLflow logger; a resumed run continues its MLflow run.

    The id of the MLflow run is kept in `mlflow.json` of the run folder.

    Args:
        folder: run folder.
        experiment: MLflow experiment.
        name: of the run.
        runs: folder of all runs; it gets `mlflow.db` if neither `tracking_uri` nor `MLFLOW_TRACKING_URI` is
            set.
        tracking_uri: a server's address, or a store's.

    Raises:
        UserError: MLflow is not installed, or the server or store does not answer.
    """

    def __init__(
        self, folder: str, experiment: str, name: str, runs: str, tracking_uri: str | None = None
    ) -> None:
        check_logger("mlflow")
        tracking_uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        if not tracking_uri:
            Path(runs).mkdir(parents=True, exist_ok=True)
            tracking_uri = f"sqlite:///{Path(runs).resolve() / 'mlflow.db'}"
        noted = Path(folder) / "mlflow.json"
        kept = _kept(noted)
        address = without_secrets(tracking_uri)
        self._continues = kept.get("tracking_uri") in (tracking_uri, address)
        if not self._continues:
            kept = {}
        try:
            super().__init__(experiment, name, tracking_uri, run_id=kept.get("run_id"))
            if first_rank():
                write_json(noted, {"tracking_uri": address, "run_id": self.run_id})
        except Exception as error:  # of many classes: no network, a store of another version, an unknown run
            raise UserError(
                f"logger.mlflow.tracking_uri={address}: {without_secrets(first_line(error))}"
            ) from error

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Log the configuration, once: MLflow refuses other values of a run's parameters later."""
        if not self._continues:
            super().log_hyperparams(params)


def _kept(noted: Path) -> dict[str, str]:
    """What `mlflow.json` says of the MLflow run, or nothing where there is none.

    Raises:
        UserError: the file is damaged.
    """
    if not noted.is_file():
        return {}
    try:
        kept = json.loads(noted.read_bytes())
        if not isinstance(kept, dict):
            raise ValueError(f"a {type(kept).__name__} where an object belongs")
    except ValueError as error:
        raise UserError(
            f"{noted} is damaged ({first_line(error)}): delete it, and the run is logged as a new one"
        ) from error
    return kept
