"""The student that is exported, and what is known of the run that trained it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig

from distill.analysis.evaluate_model import find_asked
from distill.config.instantiate import plain, resolved
from distill.config.renamed_keys import read_described
from distill.errors import UserError, first_line
from distill.models.language_model import ModelSource
from distill.runs.card import Card, CardResult, licenses_of
from distill.runs.read import read_run


@dataclass(frozen=True)
class Subject:
    """A student to export.

    Attributes:
        source: the student.
        run: folder of the run that trained it; None: none is known.
        config: the run's configuration; empty without a run.
        summary: the run's summary; empty without a finished run.
    """

    source: ModelSource
    run: Path | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, cfg: DictConfig) -> "Subject":
        """Find the student of a configuration, without loading it.

        Raises:
            UserError: it is not found, or the run's configuration is damaged.
        """
        source = find_asked(cfg, "model.source", cfg.model.role)
        folder = Path(source.location)
        run = folder.parent if folder.name == "student" and not source.gguf else None
        if run is None or not (run / "config.yaml").is_file() or not (run / "versions.json").is_file():
            return cls(source)
        try:
            config = read_described(run / "config.yaml")
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UserError(f"{run / 'config.yaml'} cannot be read ({first_line(error)})") from error
        if "loss" not in config:  # of an export
            return cls(source)
        finished = read_run(run)
        return cls(source, run, config, {} if isinstance(finished, str) else finished.summary)

    @property
    def name(self) -> str | None:
        """The run's name."""
        return self.summary.get("name") or self.config.get("name")

    @property
    def base(self) -> str:
        """The model that was trained; the exported model itself without a run."""
        trained: Any = (self.config.get("model") or {}).get("student") or self.source.name
        return trained if isinstance(trained, str) else str(trained[0])

    def card(
        self, cfg: DictConfig, sections: Mapping[str, str], results: Sequence[CardResult], kind: str
    ) -> Card:
        """The card of its export.

        Args:
            cfg: configuration of the export.
            sections: what was written and measured, by heading.
            results: accuracies of the export.
            kind: its format, such as `gguf`.
        """
        return Card(
            str(cfg.name),
            self.base,
            licenses_of(resolved(cfg), self.config),
            self.config,
            self.summary,
            results,
            sections=sections,
            tags=[kind],
            library={"gguf": "gguf"}.get(kind, "transformers"),
        )

    def prompt(self, configured: Mapping[str, Any], prompt_from: str) -> dict[str, Any]:
        """The prompt that traces are read under: `user` and `system`.

        Args:
            configured: `data.student_prompt`.
            prompt_from: `run` or `data`.

        Raises:
            UserError: `prompt_from` is neither, or two prompts are named.
        """
        if prompt_from not in ("run", "data"):
            raise UserError(f"prompt_from={prompt_from!r} is not one of run, data")
        said = {name: plain(configured.get(name)) for name in ("user", "system")}
        trained = (self.config.get("data") or {}).get("student_prompt")
        if prompt_from == "data" or not trained:
            return said
        own = {name: trained.get(name) for name in ("user", "system")}
        if said not in (own, {"user": "{problem}", "system": None}):
            raise UserError(
                f"data.student_prompt says {said['user']!r}, and the run was trained under {own['user']!r}: "
                f"leave it out, or say prompt_from=data"
            )
        return own
