"""The commands as Python functions: the same overrides as on the command line, typed results.

    from distill import evaluate_model, generate_traces

    traces = generate_traces(["model=tiny", "data=arithmetic", "data.limit=20"], out="outputs/traces/mine")
    found = evaluate_model(["model=tiny", "benchmark=arithmetic", "benchmark.limit=20"])

Keyword arguments are overrides too: `out="…"` is `out=…`, and `**{"data.limit": 20}` is `data.limit=20`.
"""

import io
import json
import math
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, open_dict

from distill.analysis.scores_file import Scored, read_scores
from distill.config.console import quiet
from distill.config.overrides import check_overrides
from distill.config.paths import CONFIG
from distill.config.words import words_of
from distill.data.trace_set import TraceSet
from distill.evaluation.named import NAME_A_MODEL, as_keys, stands_for
from distill.likeness.similarity_report import Similarity, read_similarity
from distill.models.find import find_model
from distill.models.language_model import LanguageModel
from distill.planning.plan import Plan
from distill.statistics import Figure


@dataclass(frozen=True)
class Evaluation:
    """Results of a model on benchmarks.

    Attributes:
        folder: holds `results.json`, `samples.jsonl` and the page `results.html`.
        figures: by benchmark, `accuracy` and further metrics, each with its 95 % interval.
    """

    folder: Path
    figures: dict[str, dict[str, Figure]]


def generate_traces(words: Iterable[str] = (), **settings: Any) -> TraceSet:
    """Let a teacher write traces for a set of problems, and grade them (`distill generate`).

    Args:
        words: overrides, such as `model=tiny`.
        settings: overrides by keyword, such as `out`, the trace set's folder.

    Raises:
        UserError: a mistake that the user can correct.
    """
    from distill.teacher.write_traces import generate

    return TraceSet(_run("generate", words, settings, generate))


def score_traces(words: Iterable[str] = (), **settings: Any) -> Scored:
    """Measure how well traces suit a student, before training on them (`distill score`).

    Args:
        words: overrides, such as `teachers=[outputs/traces/a,outputs/traces/b]`.
        settings: overrides by keyword, such as `out`, the folder of tables and plots.

    Raises:
        UserError: a mistake that the user can correct.
    """
    from distill.analysis.score_traces import score

    return read_scores(_run("score", words, settings, score))


def curate_traces(words: Iterable[str] = (), **settings: Any) -> TraceSet:
    """Select and edit traces in curation steps (`distill curate`).

    Args:
        words: overrides, such as `curation=[correct,deduplicate]`.
        settings: overrides by keyword, such as `out`, the new trace set's folder.

    Raises:
        UserError: a mistake that the user can correct.
    """
    from distill.curation.run import curate

    return TraceSet(_run("curate", words, settings, curate))


def evaluate_model(words: Iterable[str] = (), **settings: Any) -> Evaluation:
    """Evaluate a model on benchmarks (`distill evaluate`).

    Args:
        words: overrides, such as `model=tiny` and `benchmark=[gsm8k,aime24]`.
        settings: overrides by keyword, such as `out`, the folder of the results.

    Raises:
        UserError: a mistake that the user can correct, reported before the model is loaded.
    """
    from distill.analysis import evaluate_model as evaluation

    folder = _run("evaluate", words, settings, evaluation.evaluate_model)
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))["benchmarks"]
    figures = {
        benchmark: {name: _figure(value) for name, value in own["figures"].items()}
        for benchmark, own in found.items()
    }
    return Evaluation(folder, figures)


def measure_similarity(words: Iterable[str] = (), **settings: Any) -> Similarity:
    """Measure how alike a student's answers are to its teacher's (`distill similarity`).

    Args:
        words: overrides, such as `model=tiny` and `data=arithmetic`.
        settings: overrides by keyword, such as `teacher`, a trace set, and `student`, a run folder.

    Raises:
        UserError: a mistake that the user can correct.
    """
    from distill.likeness import measure_similarity as similarity

    return read_similarity(_run("similarity", words, settings, similarity.measure_similarity))


def measure_identity(words: Iterable[str] = (), **settings: Any) -> dict[str, Any]:
    """Count how often a student claims another model's identity (`distill identity`).

    Args:
        words: overrides, such as `model=outputs/runs/my_run` and `identity.own=[Qwen,Alibaba]`.
        settings: overrides by keyword, such as `before` and `teacher`.

    Returns:
        The content of `identity.json`.

    Raises:
        UserError: a mistake that the user can correct.
    """
    from distill.likeness import measure_identity as identity

    folder = _run("identity", words, settings, identity.measure_identity)
    return json.loads((folder / "identity.json").read_text(encoding="utf-8"))


def write_tips(words: Iterable[str] = (), **settings: Any) -> dict[str, Any]:
    """Contrast right and wrong traces into short tips, and test whether they help (`distill tips`).

    Args:
        words: overrides, such as `model=qwen1.5b` and `benchmark=gsm8k`.
        settings: overrides by keyword, such as `trace_sets` and `out`.

    Returns:
        The content of `tips.json`.

    Raises:
        UserError: a mistake that the user can correct.
    """
    from distill.advice import write_tips as tips

    folder = _run("tips", words, settings, tips.write_tips)
    return json.loads((folder / "tips.json").read_text(encoding="utf-8"))


def prune_model(words: Iterable[str] = (), **settings: Any) -> Path:
    """Drop a model's blocks that change its hidden states least (`distill prune`).

    Args:
        words: overrides, such as `model=tiny` and `layers=1`.
        settings: overrides by keyword, such as `calibration`, a trace set, and `out`.

    Returns:
        The folder of the smaller model, in Hugging Face format.

    Raises:
        UserError: a mistake that the user can correct.
    """
    from distill.pruning import prune_model as pruning

    return _run("prune", words, settings, pruning.prune_model) / "student"


def export_model(words: Iterable[str] = (), **settings: Any) -> Path:
    """Write a student in another format, and compare it with the full student (`distill export`).

    Args:
        words: overrides, such as `model=outputs/runs/my_run` and `format=gguf`.
        settings: overrides by keyword, such as `bits` and `out`.

    Returns:
        The folder of the export: the model in `student/`, figures in `export.json`.

    Raises:
        UserError: a mistake that the user can correct.
    """
    from distill.exporting import command

    return _run("export", words, settings, command.export)


def plan_run(words: Iterable[str] = (), **settings: Any) -> Plan:
    """Estimate the memory, time and disk space of a training run (`distill plan`).

    Args:
        words: overrides of a training run, such as `loss=dcod` and `model=qwen1.5b`.
        settings: overrides by keyword.

    Raises:
        UserError: a mistake that the user can correct.
    """
    from distill.planning.plan import make_plan
    from distill.training.setup import Setup

    return make_plan(Setup.from_overrides([*words, *words_of(settings)], here=False))


def load_model(
    model: str | Path,
    *,
    role: str = "student",
    device: str = "cpu",
    dtype: str = "float32",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> LanguageModel:
    """Load a language model.

    Args:
        model: run folder, folder in Hugging Face format, GGUF file, hub id, or a pair of conf/model such as
            `tiny`.
        role: which model of a pair: `student` or `teacher`.
        device: device of the weights.
        dtype: of the weights in memory; `auto`: as they are stored.
        revision: branch, tag or commit of a hub id.
        trust_remote_code: run Python code from the model's repository.

    Raises:
        UserError: there is no such model.
    """
    found, _ = stands_for(str(model), "model", role)
    source = find_model(
        found, key="model", dtype=dtype, revision=revision, trust_remote_code=trust_remote_code
    )
    loaded = source.load()
    loaded.model.to(device)
    return loaded


def _run(
    command: str, words: Iterable[str], settings: dict[str, Any], run: Callable[[DictConfig], Path]
) -> Path:
    """Run a command without its printed output, and return the folder that it wrote."""
    quiet()
    with redirect_stdout(io.StringIO()):
        return run(_compose(command, words, settings))


def _compose(command: str, words: Iterable[str], settings: dict[str, Any]) -> DictConfig:
    said = [*words, *words_of(settings)]
    cfg = check_overrides(CONFIG, command, as_keys(said) if command in NAME_A_MODEL else said)
    with open_dict(cfg):
        cfg.pop("hydra")
    return cfg


def _figure(value: dict[str, float | None]) -> Figure:
    found = {name: math.nan if own is None else own for name, own in value.items()}
    return Figure(found["value"], found["low"], found["high"])
