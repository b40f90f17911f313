"""One run, from the configuration to the summary: find → check → traces → before → fit → after."""

import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import lightning
import torch
from filelock import FileLock
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import DictConfig

from distill.config.console import quiet
from distill.config.instantiate import build, build_optimizer, plain
from distill.data.layout import BatchLayout
from distill.data.trace import Trace
from distill.errors import Interrupted, UserError
from distill.evaluation.benchmark import benchmarks_of
from distill.evaluation.logging import log_samples, metrics_of
from distill.evaluation.result import Score
from distill.evaluation.run import Asked, ask, evaluate
from distill.evaluation.stored import read_scores, write_samples
from distill.generation.engines import HfEngine
from distill.generation.sampling import StudentRollouts
from distill.io.cache import keyed_folder
from distill.io.files import write_json
from distill.io.locks import first_rank
from distill.losses.signals import Role
from distill.models.devices import find_device, ranks_of
from distill.models.find import find_model
from distill.models.flops import cost_of_source
from distill.models.language_model import LanguageModel, checkpoint_activations
from distill.models.lazy import LazyModel
from distill.models.lora import add_lora, check_targets, is_adapted, parameter_counts, read_lora
from distill.models.packing import allow_packing
from distill.objective.objective import Objective
from distill.runs.folder import asked_alike, checkpoints, claim, describe, fresh, versions
from distill.runs.loggers import CsvMetrics
from distill.runs.plot import plot_run
from distill.runs.summary import print_summary
from distill.teacher.completions import writer_key
from distill.training import sweeps
from distill.training.callbacks import (
    BenchmarkEvery,
    ProgressBar,
    StopAtBudget,
    StopOnSignal,
    WeightHistogram,
    signals_kept,
)
from distill.training.checkpoints import StudentCheckpoints
from distill.training.checks import (
    check_cache,
    check_compiler,
    check_layout,
    check_trainer,
    precision_of,
    trainer_options,
)
from distill.training.datamodule import DistillDataModule
from distill.training.module import DistillModule
from distill.training.numbers import check_numbers
from distill.training.prepare import find_matrix, find_models, find_reader, prepare_traces
from distill.training.recipe import TraceRecipe
from distill.training.schedule import Schedule

_ELSEWHERE = ("seconds", "student_flops", "teacher_flops")  # totals with a place of their own in a summary
_THREADS = torch.get_num_threads()  # torch's choice, which an earlier job of a sweep may have changed


def train(cfg: DictConfig, folder: Path) -> float | None:
    """One run. Everything a user can get wrong is found before training starts."""
    quiet()
    began = time.perf_counter()
    seconds: dict[str, float] = {}
    check_numbers(cfg)
    check_cache(cfg)
    lora = read_lora(cfg)
    device = find_device(cfg)
    precision = check_trainer(cfg)
    torch.set_num_threads(cfg.model.threads or _THREADS)
    lightning.seed_everything(cfg.seed, verbose=False)
    objective: Objective = build(cfg.loss, "loss")
    check_compiler(objective.compile, device)
    optimizer = build_optimizer(cfg.optimizer)
    schedule: Schedule = build(cfg.schedule, "schedule")
    recipe: TraceRecipe = build(cfg.data.recipe, "data")
    layout = check_layout(cfg)
    if objective.rollouts == "teacher":
        recipe = replace(recipe, completions="teacher")
    benchmarks = benchmarks_of(cfg.benchmark)
    student, frozen = find_models(cfg, objective, recipe, device)
    reader = find_reader(objective, recipe, student, frozen)
    if objective.compares_steps and objective.proposals is not None:
        objective.proposals.check(student, recipe.grade)
    if lora:
        check_targets(lora, student)
    # A missing file is better found now than after training.
    asked = [ask(benchmark, student) for benchmark in benchmarks]
    lm = student.load()
    lm.check_head()
    if is_adapted(lm.model):
        raise UserError(f"model.student={student.name} brings an adapter along: merge it into its weights")
    if lora:
        add_lora(lm, lora, seed=cfg.seed)
    trained, parameters = parameter_counts(lm.model)
    resumed = Path(cfg.ckpt) if cfg.ckpt else None
    if first_rank():
        if resumed is None:
            claim(folder)
        adapted = f" with LoRA ({trained:,} of {parameters:,} parameters train)" if lora else ""
        print(
            f"{cfg.name}: student {student.name}{adapted}, "
            f"{', '.join(f'{role} {lazy.source.name}' for role, lazy in frozen.items()) or 'no teacher'}, "
            f"run {folder}"
        )

    with _clock(seconds, "traces"):
        say = print if first_rank() else lambda text: None
        traces = prepare_traces(objective, recipe, lm, frozen, reader, cache=Path(cfg.cache), say=say)
        matrix = find_matrix(objective, frozen, traces)
        asked_of = [lazy for lazy in frozen.values() if lazy.work.tokens]
        cached_flops = math.fsum(cost_of_source(lazy.source).forward(lazy.work) for lazy in asked_of)
    live: dict[Role, LanguageModel] = {role: frozen[role].get() for role in objective.live_roles}
    said = _frozen_in_words(frozen, objective)
    for role in frozen.keys() - live.keys():
        frozen[role].release()
    _place(cfg, lm, live, traces, objective, layout, device, precision)

    if first_rank():
        if resumed and not asked_alike(folder, cfg):
            write_samples(folder, "before", [])  # asked otherwise, they are no longer to compare with
        describe(folder, cfg, list(HydraConfig.get().overrides.task))
    loggers = [build(node, f"logger.{name}") for name, node in (cfg.get("logger") or {}).items()]
    scores: dict[str, list[Score]] = {}

    def of_all_runs(name: str, key: Mapping[str, Any]) -> Path:
        # The untrained student is the same in all runs, as in a sweep's: it is asked once.
        asked_alike = {**writer_key(student), "device": lm.device.type, **key}
        return keyed_folder(Path(cfg.cache), f"untrained_{name}", asked_alike)

    if asked and first_rank():
        with _clock(seconds, "evaluation"):
            kept = read_scores(folder, "before", asked) if resumed else None
            scores["before"] = kept or _evaluate(lm, asked, "before", folder, precision, cfg, of_all_runs)
        _log_scores(loggers, scores["before"], step=0)

    steps, expected = steps_of(cfg, traces, objective)
    module = DistillModule(
        lm,
        objective,
        optimizer,
        schedule,
        steps=steps,
        max_tokens=cfg.max_tokens,
        expected_steps=expected,
        frozen=live,
        teacher_matrix=matrix,
        reader=reader,
        grade=recipe.grade,
        seed=cfg.seed,
        log_every=cfg.trainer.log_every_n_steps,
        cached_flops=cached_flops,
        layout=layout,
    )
    datamodule = DistillDataModule(
        traces,
        signals=objective.batch_signals,
        batch_size=cfg.data.batch_size,
        steps=steps,
        seed=cfg.seed,
        pad_id=int(lm.tokenizer.pad_token_id or 0),
        layout=layout,
    )
    stop = StopOnSignal()

    def ask_meanwhile(step: int) -> None:
        with _clock(seconds, "evaluation"):
            found = _evaluate(lm, asked, f"step-{step:06d}", folder, precision, cfg)
        _log_scores(loggers, found, step=step)

    meanwhile = BenchmarkEvery(cfg.benchmark.every if asked else None, ask_meanwhile)
    trainer = _trainer(cfg, folder, steps, expected, loggers, [stop, StopAtBudget(), meanwhile])
    _log_config(loggers, cfg)
    if resumed:
        _rewind(loggers, resumed)
    with _clock(seconds, "training"), signals_kept():
        trainer.fit(
            module,
            datamodule=datamodule,
            ckpt_path=str(resumed / "state.ckpt") if resumed else None,
            weights_only=True,
        )
    if not trainer.is_global_zero:
        return None
    if module.stopping:
        raise _interrupted(cfg, folder, module, steps, stop)
    last = checkpoints(folder / "checkpoints")[-1]
    for name in ("student", "adapter") if lora else ("student",):
        _keep(last / name, folder / name)
    if asked:
        lm.model.to(device)
        with _clock(seconds, "evaluation"):
            # What is trained is on disk now: a run killed while it answers goes on behind its last
            # completion.
            trained_model = find_model(str(folder / "student"), key="student").fingerprint

            def of_this_run(name: str, key: Mapping[str, Any]) -> Path:
                place = folder / "completions" / name
                fresh(place, {"model": trained_model, **key})
                return place

            scores["after"] = _evaluate(lm, asked, "after", folder, precision, cfg, of_this_run)
        _log_scores(loggers, scores["after"], step=trainer.global_step)
    seconds["total"] = time.perf_counter() - began
    summary = {
        **_summary(cfg, module, scores, seconds),
        "traces": len(traces),
        "parameters": {"trained": trained, "all": parameters},
        "frozen": said,
        "resumed_from_step": int(resumed.name.removeprefix("step-")) if resumed else None,
    }
    _finish(folder, summary, loggers, scores)
    if not cfg.checkpoint.of_finished:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return fmean(score.accuracy.value for score in scores["after"]) if asked else None


def _place(
    cfg: DictConfig,
    student: LanguageModel,
    live: Mapping[Role, LanguageModel],
    traces: Sequence[Trace],
    objective: Objective,
    layout: BatchLayout,
    device: str,
    precision: torch.dtype,
) -> None:
    """Move the student to its device and make the models ready for batches as they are laid out."""
    student.model.to(device)
    if layout.kind == "packed":
        longest = max(len(read) for trace in traces for read in (trace, trace.reading or trace))
        if isinstance(objective.rollouts, StudentRollouts):
            longest += objective.rollouts.max_new_tokens
        for one in (student, *live.values()):
            allow_packing(one, longest, precision)
    if cfg.model.checkpoint_activations:
        checkpoint_activations(student)


def _interrupted(
    cfg: DictConfig, folder: Path, module: DistillModule, steps: int, stop: StopOnSignal
) -> Interrupted:
    """How far the run came, and what goes on from there."""
    step = module.trainer.global_step
    done = f"step {step} of {steps}"
    if cfg.max_tokens is not None:
        done = f"step {step}, {module.totals['tokens']:,.0f} of {cfg.max_tokens:,} tokens"
    onward = f"hydra.sweep.dir={folder.parent}" if sweeps.under_way() else f"ckpt={folder}"
    return Interrupted(
        f"stopped by {stop.received} after {done}; the checkpoint "
        f"{checkpoints(folder / 'checkpoints')[-1]} is kept: the same command with {onward} goes on "
        f"from there"
    )


def _summary(
    cfg: DictConfig,
    module: DistillModule,
    scores: Mapping[str, Sequence[Score]],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """What a finished run was and found, as far as its module, its benchmarks and its clocks tell."""
    totals = module.totals
    return {
        "name": cfg.name,
        "status": "finished",
        "seed": cfg.seed,
        "loss": HydraConfig.get().runtime.choices.get("loss"),
        "benchmarks": {
            after.benchmark: {stage: own[place].summary() for stage, own in scores.items()}
            for place, after in enumerate(scores.get("after", ()))
        },
        "steps": module.trainer.global_step,
        "precision": precision_of(cfg),
        **{name: value for name, value in totals.items() if name not in _ELSEWHERE},
        # Of the matrix products; what caches keep counts whether this run computed it or an earlier one.
        "flops": {
            "student": totals["student_flops"],
            "teacher_live": totals["teacher_flops"],
            "teacher_cached": module.cached_flops,
        },
        # Training's over the whole run, however often it was resumed; the others' of this part.
        "seconds": {
            **{name: round(value, 2) for name, value in seconds.items()},
            "training": round(totals["seconds"], 2),
        },
    }


def steps_of(cfg: DictConfig, traces: list[Trace], objective: Objective) -> tuple[int, int]:
    """Optimizer steps of the run: at most, and as far as one can tell."""
    per_step = cfg.data.batch_size * cfg.trainer.accumulate_grad_batches * ranks_of(cfg)
    if cfg.max_tokens is None:
        steps = cfg.trainer.max_steps or max(1, math.ceil(cfg.data.epochs * len(traces) / per_step))
        return steps, steps
    # A completion has at least one token, so this many steps suffice whatever the student writes.
    steps = math.ceil(cfg.max_tokens / per_step)
    steps = min(steps, cfg.trainer.max_steps or steps)
    rollouts = objective.rollouts
    if isinstance(rollouts, StudentRollouts) and rollouts.fraction == 1:  # the traces are prompts alone
        length = float(rollouts.max_new_tokens)
    else:
        length = sum(len(trace.completion_ids) for trace in traces) / len(traces)
    return steps, min(steps, math.ceil(cfg.max_tokens / (per_step * length)))


def _trainer(
    cfg: DictConfig,
    folder: Path,
    steps: int,
    expected: int,
    loggers: list[Logger],
    callbacks: Sequence[lightning.Callback],
) -> lightning.Trainer:
    options = {**trainer_options(cfg), "max_steps": steps}
    callbacks = [
        *callbacks,
        WeightHistogram(folder / "weights.jsonl", cfg.histogram_every),
        StudentCheckpoints(folder / "checkpoints", cfg.checkpoint.every, cfg.checkpoint.keep),
        ProgressBar(expected * cfg.trainer.accumulate_grad_batches, cfg.max_tokens),
    ]
    return lightning.Trainer(
        **options,
        logger=loggers,
        callbacks=callbacks,
        default_root_dir=folder,
        enable_checkpointing=False,  # ours are folders with the student in Hugging Face format
        enable_model_summary=False,
        use_distributed_sampler=False,  # TraceOrder knows its rank
        num_sanity_val_steps=0,
    )


def _evaluate(
    lm: LanguageModel,
    asked: Sequence[Asked],
    stage: str,
    folder: Path,
    precision: torch.dtype,
    cfg: DictConfig,
    place: Callable[[str, Mapping[str, Any]], Path] | None = None,
) -> list[Score]:
    """Scores of a stage; completions are kept in the folder that `place` names, if it is there, for a
    benchmark and what they depend on beside the model."""
    engine = HfEngine(LazyModel.of(lm), token_budget=cfg.benchmark.token_budget)
    scores = []
    for one in asked:
        name = one.benchmark.name
        kept = place(name, {"precision": str(precision), **one.benchmark.settings}) if place else None
        with (
            FileLock(str(kept / "lock")) if kept else nullcontext(),
            torch.autocast(lm.device.type, precision, enabled=precision != torch.float32),  # as in training
        ):
            scores.append(evaluate(one, lm.source, engine, folder=kept, label=f"{name} {stage}"))
    write_samples(folder, stage, scores)
    return scores


def _log_scores(loggers: list[Logger], scores: Sequence[Score], step: int) -> None:
    for logger in loggers:
        logger.log_metrics(metrics_of(scores), step=step)


def _log_config(loggers: list[Logger], cfg: DictConfig) -> None:
    for logger in loggers:
        logger.log_hyperparams(plain(cfg) | {"versions": versions()})


def _rewind(loggers: list[Logger], checkpoint: Path) -> None:
    for logger in loggers:
        if isinstance(logger, CsvMetrics):
            logger.forget_after(int(checkpoint.name.removeprefix("step-")))


def _finish(
    folder: Path, summary: dict[str, Any], loggers: list[Logger], scores: Mapping[str, Sequence[Score]]
) -> None:
    write_json(folder / "summary.json", summary)
    for logger in loggers:
        logger.save()
        if isinstance(logger, WandbLogger):
            log_samples(logger, scores)
            logger.experiment.summary.update(summary)
    plot_run(folder)
    print_summary(summary, folder)


def _keep(checkpoint: Path, final: Path) -> None:
    """A folder of the last checkpoint under the run's own name: the same files on disk where links are
    possible."""

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)

    shutil.rmtree(final, ignore_errors=True)
    shutil.copytree(checkpoint, final, copy_function=link)


def _frozen_in_words(frozen: dict[Role, LazyModel], objective: Objective) -> dict[str, str]:
    """What each model beside the student is, and what it was needed for."""
    said: dict[str, str] = {}
    for role, lazy in frozen.items():
        cached = [name for name, whose in objective.cached_signals.items() if whose == role]
        if role == "teacher" and objective.caches_distribution:
            cached.append(f"distribution as {objective.distribution.source}")
        if role in objective.live_roles:
            said[role] = f"{lazy.source.name}, live beside the student"
        else:
            use = f"cached {', '.join(cached)}" if cached else "cached traces only"
            said[role] = f"{lazy.source.name}, not in memory while training ({use})"
    return said


@contextmanager
def _clock(seconds: dict[str, float], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began
