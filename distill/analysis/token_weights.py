"""Token weights that a run's loss assigns to any traces, with its student before or after training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import torch
from scipy.stats import spearmanr

from distill.analysis.suitability import draw
from distill.config.instantiate import build
from distill.data.trace import Trace
from distill.data.trace_set import Record, example_of, problem_of, was_graded
from distill.errors import UserError
from distill.losses.signals import SIGNALS, Role, name_of, signals
from distill.models.find import find, find_model
from distill.models.language_model import ModelSource, vocabulary_mismatch
from distill.models.lazy import LazyModel
from distill.objective.objective import Objective
from distill.runs.config import read_run_config, said_again
from distill.statistics import Figure
from distill.teacher.token_stats import check_context, token_stats

_ROUNDING = 1e-6  # weights are computed in single precision; smaller spreads count as constant


def token_weights(
    run: Path,
    records: Sequence[Record],
    stage: str = "before",
    *,
    cache: Path,
    device: str | None = None,
    models: Sequence[str] = (),
    trust_remote_code: bool = False,
    targets: Sequence[str] = (),
) -> pandas.DataFrame:
    """Compute the weights that a run's loss gives to the tokens of traces, trained on or not.

    Every trace is a micro-batch of its own. This only matters for weights that compare tokens (`loss=rho1`,
    `loss.control=shuffled`).

    Args:
        run: run folder.
        records: a trace set, correct or not; traces with empty completions are skipped.
        stage: use the student `before` or `after` training.
        cache: cache folder.
        device: device of the models; None: a GPU if there is one.
        models: models of the run's configuration that may be loaded, spelled as in it. Embedded models and
            the run's own student are always allowed. Others must be listed, because a run folder may come
            from someone else.
        trust_remote_code: run Python code from the models' folders and repositories, whatever the run's
            configuration says.
        targets: functions outside of this package that the run's loss and data may be built with, such as a
            token weight of your own.

    Returns:
        One row per token: `trace` (the record's id), `problem`, `correct`, `tokens` (of the trace),
        `position` (from 0), `token` (its text), `weight`, and the signals it is computed from:
        `student_logprobs`, ...

    Raises:
        UserError: the run does not exist, its weights need more than logprobs of the trace's tokens, a model
            cannot be loaded or is not in `models`, the loss or data are built from code outside this
            package, or a trace exceeds a model's context.
    """
    if stage not in ("before", "after"):
        raise UserError(f"stage={stage!r} is not one of before, after")
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} holds no run: there is no config.yaml")
    records = [record for record in records if (record["completion"] or "").strip()]
    if not records:
        raise UserError("there is no trace to read: all are empty")
    cfg: Any = read_run_config(
        run, built=("loss", "data"), trust_remote_code=trust_remote_code, targets=targets
    )
    objective: Objective = build(cfg.loss, "loss")
    asked = _asked(objective)
    student = _source(cfg, run, "student", stage, objective, models)
    sources = {signal: _source(cfg, run, role, stage, objective, models) for signal, role in asked.items()}
    traces = build(cfg.data.recipe, "data").tokenize([example_of(record) for record in records], student)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    logprobs: dict[str, list[np.ndarray]] = {}
    for signal, source in sources.items():
        _check(source, student, traces)
        read = token_stats(
            LazyModel(source, device, cache=cache), traces, cache=cache, label=f"{asked[signal]} reads traces"
        )
        logprobs[signal] = [one.logprobs for one in read]
    progress = 0.0 if stage == "before" else 1.0
    ids = np.concatenate([trace.completion_ids for trace in traces])
    texts = {token: student.tokenizer.decode([token]) for token in np.unique(ids).tolist()}
    lengths = [len(trace.completion_ids) for trace in traces]
    of = np.repeat(np.arange(len(records)), lengths)
    weights = []
    for place, length in enumerate(lengths):
        known = {signal: torch.from_numpy(own[place])[None] for signal, own in logprobs.items()}
        mask = torch.ones(1, length, dtype=torch.bool)
        weights.append(objective.weights(mask, known, progress)[0].double().numpy())
    return pandas.DataFrame(
        {
            "trace": np.asarray([record["id"] for record in records], dtype=object)[of],
            "problem": np.asarray([problem_of(record) for record in records], dtype=object)[of],
            "correct": np.asarray(
                [record["correct"] if was_graded(record) else None for record in records], dtype=object
            )[of],
            "tokens": np.asarray(lengths)[of],
            "position": np.concatenate([np.arange(length) for length in lengths]),
            "token": [texts[token] for token in ids.tolist()],
            "weight": np.concatenate(weights),
            **{signal: np.concatenate(own).astype(np.float64) for signal, own in logprobs.items()},
        }
    )


def _asked(objective: Objective) -> dict[str, Role]:
    """Map the logprobs that the weights are computed from to the role of their model.

    Raises:
        UserError: the weights need other signals too.
    """
    asked = sorted(signals(objective.token_weight) & SIGNALS.keys())
    # The sampler's logprobs, the student's entropy and reasoning steps exist only during training.
    if unknown := [name for name in asked if name != f"{SIGNALS[name].role}_logprobs"]:
        raise UserError(
            f"the weights of {name_of(objective.token_weight)} ask for {', '.join(unknown)}, which training "
            f"alone knows: look at a run of another loss, such as dcod"
        )
    if "teacher_logprobs" in asked and objective.teacher == "ema":
        raise UserError(
            "loss.teacher=ema: the teacher of these weights was the student's average, which the run has not "
            "kept: look at a run with another loss.teacher"
        )
    if "teacher_logprobs" in asked and objective.teacher_sees != "prompt":
        raise UserError(
            f"loss.teacher_sees={objective.teacher_sees}: its weights are for problems with a worked "
            f"solution, and cannot be had for any traces: look at a run with loss.teacher_sees=prompt"
        )
    return {name: SIGNALS[name].role for name in asked}


def _source(
    cfg: Any, run: Path, role: Role, stage: str, objective: Objective, said: Sequence[str]
) -> ModelSource:
    if role == "student" and stage == "after":
        if not (run / "student").is_dir():
            raise UserError(f"{run} holds no trained student: there is no student/ in it")
        return find_model(
            str(run / "student"),
            key="run",
            dtype=cfg.model.student_dtype,
            trust_remote_code=cfg.model.trust_remote_code,
        )
    own = role if role == "pilot" or (role == "reference" and cfg.model.reference) else "student"
    if role == "teacher" and objective.teacher == "model":
        own = "teacher"
    said_again(cfg, own, said, run, lambda model: f"models=[{model!r}]")
    return find(cfg.model, own, cfg.model.teacher_dtype if own == "teacher" else cfg.model.student_dtype)


def _check(source: ModelSource, student: ModelSource, traces: Sequence[Trace]) -> None:
    if why := vocabulary_mismatch(student, source):
        raise UserError(f"weights are of the student's own tokens, but {why}")
    check_context(traces, source)


def by_trace(tokens: pandas.DataFrame) -> pandas.DataFrame:
    """Aggregate `token_weights` to one row per trace: `trace`, `problem`, `correct`, `tokens`, `weight` (mean
    over tokens) and `effective_share`, (Σw)²/Σw² as a share of the tokens; NaN if all weights are 0."""
    sums: Any = tokens.assign(square=tokens["weight"] ** 2).groupby("trace", sort=False)
    found = sums.agg(
        problem=("problem", "first"),
        correct=("correct", "first"),
        tokens=("tokens", "first"),
        weight=("weight", "mean"),
        square=("square", "mean"),
    ).reset_index()
    squares = found.pop("square")
    return found.assign(effective_share=found["weight"] ** 2 / squares.where(squares > 0))


def length_correlation(traces: pandas.DataFrame, *, resamples: int = 500, seed: int = 0) -> Figure | None:
    """Spearman correlation of mean weight and length over traces (`by_trace`), with a 95 % bootstrap interval
    over problems; None if one of them is constant."""
    pair = traces[["weight", "tokens"]].to_numpy(dtype=np.float64)
    if _alike(pair):
        return None
    again = (np.repeat(pair, drawn, axis=0) for drawn in _drawn(traces, resamples, seed))
    return _figure(_spearman(pair), [_spearman(one) for one in again if not _alike(one)])


def right_minus_wrong(traces: pandas.DataFrame, *, resamples: int = 2000, seed: int = 0) -> Figure | None:
    """Mean weight of correct traces minus that of wrong ones (`by_trace`), with a 95 % bootstrap interval
    over problems; None unless there are both. Traces that were not graded are ignored.
    """
    judged: Any = traces[traces["correct"].notna()]
    right = judged["correct"].to_numpy(dtype=bool)
    if not len(right) or right.all() or not right.any():
        return None
    weight = judged["weight"].to_numpy(dtype=np.float64)
    drawn = _drawn(judged, resamples, seed)
    counted = (drawn[:, right].sum(1) > 0) & (drawn[:, ~right].sum(1) > 0)
    drawn = drawn[counted]
    means = [drawn[:, of] @ weight[of] / drawn[:, of].sum(1) for of in (right, ~right)]
    return _figure(float(weight[right].mean() - weight[~right].mean()), means[0] - means[1])


def _alike(pair: np.ndarray) -> bool:
    """Whether a column is constant."""
    return bool((np.ptp(pair, axis=0) <= _ROUNDING).any())


def _spearman(pair: np.ndarray) -> float:
    found: Any = spearmanr(pair)
    return float(found.statistic)


def _drawn(traces: pandas.DataFrame, resamples: int, seed: int) -> np.ndarray:
    """Bootstrap counts [resamples, traces]; traces of a problem are drawn together. Empty for one problem."""
    place, problems = pandas.factorize(traces["problem"])
    return draw(len(problems), resamples if len(problems) > 1 else 0, seed)[:, place]


def _figure(value: float, samples: Sequence[float] | np.ndarray) -> Figure:
    """A figure with its 95 % interval; NaN bounds without samples."""
    low, high = np.percentile(samples, [2.5, 97.5]) if len(samples) else (np.nan, np.nan)
    return Figure(value, float(low), float(high))
