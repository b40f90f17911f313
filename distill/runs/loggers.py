"""Loggers: `metrics.csv` in the run's folder, and Weights & Biases."""

import csv
import hashlib
import netrc
import os
import platform
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from distill.errors import UserError, first_line
from distill.io.checksums import check, forget
from distill.io.files import cannot_write, write_atomically
from distill.io.locks import first_rank

_REMEDY = "delete it, and the metrics before the checkpoint are lost"


class CsvMetrics(Logger):
    """Writes one row per step into `metrics.csv`, and adds columns as metrics appear. A resumed run continues
    after its checkpoint's step.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self.rows: dict[int, dict[str, Any]] = {}
        self.columns: list[str] = ["step"]
        self._pending: list[int] = []  # steps that are not in the file yet
        self._rewrite = True  # a written row or the header changed, so the whole file must be written
        self._sealed = True  # the file may have a checksum, of a run that finished and goes on
        if self.path.is_file():
            check([self.path], _REMEDY)
            # A run that was killed while writing may have left an incomplete last row.
            try:
                with self.path.open(newline="", encoding="utf-8") as stream:
                    lines = [line for line in stream if line.endswith("\n")]
                reader = csv.DictReader(lines, strict=True)
                self.columns = list(reader.fieldnames or self.columns)
                for row in reader:
                    if None in row or None in row.values():
                        raise ValueError(f"line {reader.line_num} has another number of fields")
                    self.rows[int(row["step"])] = dict(row)
            except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
                raise UserError(f"{self.path} is damaged ({first_line(error)}): {_REMEDY}") from error

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the configuration is in `config.yaml`."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        number = step or 0
        if number in self.rows and number not in self._pending:
            self._rewrite = True
        elif number not in self.rows:
            self._pending.append(number)
        row = self.rows.setdefault(number, {"step": number})
        row |= {name: value for name, value in metrics.items() if name != "epoch"}
        if new := [name for name in row if name not in self.columns]:
            self.columns += new
            self._rewrite = True
        if len(self._pending) >= 50:
            self.save()

    def forget_after(self, step: int) -> None:
        """Drop the rows after `step`, because a run resumed from its checkpoint writes them again."""
        self.rows = {number: row for number, row in self.rows.items() if number <= step}
        self._rewrite = True

    @rank_zero_only
    def save(self) -> None:
        if self._sealed and (self._rewrite or self._pending):
            forget(self.path)
            self._sealed = False
        if self._rewrite:
            write_atomically(self.path, lambda temporary: self._write(temporary, "w", sorted(self.rows)))
        elif self._pending:
            try:
                self._write(self.path, "a", self._pending)
            except OSError as error:
                raise cannot_write(self.path, error) from error
        self._pending, self._rewrite = [], False

    def _write(self, path: Path, mode: str, steps: list[int]) -> None:
        with path.open(mode, newline="") as stream:
            writer = csv.DictWriter(stream, self.columns, restval="")
            if mode == "w":
                writer.writeheader()
            writer.writerows(self.rows[step] for step in steps)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()


def wandb_logger(
    folder: str,
    project: str,
    group: str | None,
    name: str,
    entity: str | None = None,
    tags: list[str] | None = None,
) -> WandbLogger:
    """A W&B logger without prompts: offline unless the user is logged in; `WANDB_MODE` overrides that.

    Args:
        folder: run folder; W&B's files go into its `wandb/`.
        project: W&B project.
        group: W&B group, the same for all runs of a sweep.
        name: of the run.
        entity: W&B user or team; None: the account's default.
        tags: of the run.
    """
    import wandb

    mode: Any = os.environ.get("WANDB_MODE") or ("online" if wandb_logged_in() else "offline")
    os.environ.setdefault("WANDB_SILENT", "true")
    if not first_rank():
        return WandbLogger(save_dir=folder, offline=True)  # never starts a run: only rank 0 logs
    # The id depends on the folder, so that a resumed run continues its W&B run.
    identity = hashlib.sha256(f"{platform.node()}:{Path(folder).resolve()}".encode()).hexdigest()[:12]
    options: dict[str, Any] = {
        "project": project,
        "group": group,
        "name": name,
        "entity": entity,
        "tags": tags,
        "dir": folder,
        "id": identity,
    }
    try:
        run = wandb.init(**options, mode=mode, resume="allow" if mode == "online" else None)
    except Exception as error:  # of many classes: no network, a bad key, an unknown setting
        if mode != "online":
            raise UserError(f"logger.wandb: {str(error).strip().splitlines()[0]}") from error
        print(f"W&B cannot be reached ({str(error).strip().splitlines()[0]}): this run is logged offline")
        run = wandb.init(**options, mode="offline")
    return WandbLogger(experiment=run, save_dir=folder)


def wandb_logged_in() -> bool:
    """Whether there is an API key in the environment or the netrc file; makes no network request."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        entries = netrc.netrc(os.environ.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return any("wandb" in host for host in entries)
