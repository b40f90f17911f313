"""Distil reasoning from strong language models into small ones.

    from distill import Setup, train

    result = train(Setup.from_overrides(["model=tiny", "loss=dcod"]))

Call path of a training batch: `train.py` → `distill.training.module.DistillModule.training_step` →
`distill.objective.objective.Objective` (rollouts × token_loss × token_weight) → `distill.losses`.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.api import (
        Evaluation,
        curate_traces,
        evaluate_model,
        export_model,
        generate_traces,
        load_model,
        measure_identity,
        measure_similarity,
        plan_run,
        prune_model,
        score_traces,
        write_tips,
    )
    from distill.data.trace_set import TraceSet
    from distill.errors import UserError
    from distill.evaluation.comparison_report import compare_evaluations
    from distill.objective.objective import Objective
    from distill.runs.load import load_runs
    from distill.training.run import train
    from distill.training.setup import Setup

__version__ = "0.1.0"
__all__ = [
    "Evaluation",
    "Objective",
    "Setup",
    "TraceSet",
    "UserError",
    "compare_evaluations",
    "curate_traces",
    "evaluate_model",
    "export_model",
    "generate_traces",
    "load_model",
    "load_runs",
    "measure_identity",
    "measure_similarity",
    "plan_run",
    "prune_model",
    "score_traces",
    "train",
    "write_tips",
]

# The module of each name. It is imported on first use, because importing torch takes seconds.
_PLACES = {
    "Evaluation": "api",
    "Objective": "objective.objective",
    "Setup": "training.setup",
    "TraceSet": "data.trace_set",
    "UserError": "errors",
    "compare_evaluations": "evaluation.comparison_report",
    "curate_traces": "api",
    "evaluate_model": "api",
    "export_model": "api",
    "generate_traces": "api",
    "load_model": "api",
    "load_runs": "runs.load",
    "measure_identity": "api",
    "measure_similarity": "api",
    "plan_run": "api",
    "prune_model": "api",
    "score_traces": "api",
    "train": "training.run",
    "write_tips": "api",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'distill' has no attribute {name!r}")
    return getattr(importlib.import_module(f"distill.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _OldNames:
    """Import finder, tried last, whose error names the current module for one of an earlier version."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> None:
        if name.startswith("distill."):
            from distill.config.moved import new_name

            if (new := new_name(name)) != name:
                raise ModuleNotFoundError(f"{name} is {new} now")


sys.meta_path.append(_OldNames)
