"""Training run, from configuration to summary: set up, prepare, evaluate, fit, evaluate, summarize."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import lightning
from lightning.pytorch.loggers import Logger, WandbLogger
from torch import distributed

from distill.config.console import quiet
from distill.errors import Interrupted, UserError
from distill.evaluation.logging import log_samples
from distill.evaluation.result import Score
from distill.evaluation.stored import write_samples
from distill.io.checksums import note, write_noted
from distill.io.locks import first_rank
from distill.io.progress import watched
from distill.io.secrets import hide_secrets
from distill.models.lora import parameter_counts
from distill.runs.card import Card, licenses_of, results_of, write_card
from distill.runs.folder import (
    STATE,
    asked_alike,
    check_state,
    checkpoints,
    describe,
    finished,
    forget,
    step_of,
    versions,
)
from distill.runs.loggers import CsvMetrics
from distill.runs.plot import plot_run
from distill.runs.summary import print_summary
from distill.training.average import AverageTeacher
from distill.training.callbacks import (
    BenchmarkEvery,
    ProgressBar,
    ProgressLog,
    StopAtBudget,
    StopOnSignal,
    WeightHistogram,
    signals_kept,
)
from distill.training.checkpoints import StudentCheckpoints, checkpoint_at, restore_student
from distill.training.checks import with_strategy
from distill.training.datamodule import DistillDataModule, Repeats
from distill.training.evaluation import StudentEvaluation
from distill.training.in_backward import OptimizerInBackward
from distill.training.length import Steps
from distill.training.module import DistillModule
from distill.training.prepare import Clock, Prepared, prepare
from distill.training.remedies import memory_errors
from distill.training.setup import Configuration, Setup
from distill.training.validation import Validate

_ELSEWHERE = ("seconds", "student_flops", "teacher_flops")  # totals that have their own place in the summary


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        folder: the run folder.
        summary: the contents of `summary.json`; empty on all ranks but the first.
        scores: by stage (`before`, `after`), one per benchmark.
    """

    folder: Path
    summary: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Sequence[Score]] = field(default_factory=dict)

    @property
    def accuracy(self) -> float | None:
        """Mean accuracy over the benchmarks after training; None without benchmarks."""
        after = self.scores.get("after")
        return fmean(score.accuracy.value for score in after) if after else None


def train(config: Setup | Configuration, callbacks: Sequence[lightning.Callback] = ()) -> RunResult:
    """Train a student.

    Args:
        config: the run's setup, or a configuration to set it up from.
        callbacks: additional Lightning callbacks.

    Raises:
        UserError: a user's mistake, with a remedy; most are found before any model is loaded.
        Interrupted: stopped by a signal, after saving a checkpoint.
    """
    quiet()
    clock = Clock()
    setup = config if isinstance(config, Setup) else Setup.from_config(config)
    if setup.resumed:
        check_state(setup.resumed)
    described = (setup.folder / "config.yaml").is_file()  # by a run that was killed and is started anew
    try:
        with memory_errors(setup):
            prepared = prepare(setup, clock)
    except UserError:
        if not described and setup.resumed is None and first_rank():
            forget(setup.folder)  # a refused run leaves no folder
        raise
    with memory_errors(setup):
        return run(setup, prepared, callbacks)


def run(setup: Setup, prepared: Prepared, callbacks: Sequence[lightning.Callback] = ()) -> RunResult:
    """Train a prepared student, and evaluate the benchmarks before and after."""
    folder, resumed, clock = setup.folder, setup.resumed, prepared.clock
    if first_rank() and resumed:
        if not asked_alike(folder, setup.config):
            write_samples(folder, "before", [])  # the benchmark settings have changed: not comparable
        if finished(folder):  # until it is longer, its figures are not those of the new configuration
            summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
            write_noted(folder / "summary.json", summary | {"status": "resumed after it had finished"})
        describe(folder, setup.config, setup.launch.overrides)
    loggers = [make() for make in setup.loggers]
    evaluation = StudentEvaluation(setup, prepared, loggers)
    if setup.length.ranks == 1:
        evaluation.before()
    steps = setup.length.steps(prepared.traces, setup.objective)
    module, data = _module(setup, prepared, steps), _data(setup, prepared, steps)
    stop, between = StopOnSignal(), [*callbacks, *_average(setup, prepared)]
    validate = _validate(setup, prepared, evaluation)
    between += [stop, StopAtBudget(), *([validate] if validate else [])]
    evaluation.lend = module.whole_student
    before = evaluation.before if setup.length.ranks > 1 else None
    between.append(BenchmarkEvery(evaluation.every, evaluation.meanwhile, before))
    best = (lambda: validate.kept_step) if validate else (lambda: None)
    trainer = _trainer(setup, steps, loggers, between, best)
    _begin_logs(loggers, setup)
    with clock("training"), signals_kept(), _other_ranks(folder), closing(module):
        trainer.fit(
            module,
            datamodule=data,
            ckpt_path=str(resumed / STATE) if resumed else None,
            weights_only=True,
        )
    late = stop.received is not None and not module.stopping  # while the last step was validated or saved
    if module.stopping or trainer.strategy.reduce_boolean_decision(late, all=False):
        if not trainer.is_global_zero:
            return RunResult(folder)
        raise _interrupted(setup, module, steps, stop)
    last = chosen = checkpoints(folder / "checkpoints")[-1]
    if setup.validation and setup.validation.save == "best" and (step := best()) is not None:
        chosen = checkpoint_at(folder / "checkpoints", step)
    for name in ("student", "adapter") if setup.lora else ("student",):
        if trainer.is_global_zero:
            _keep(chosen / name, folder / name)
    if chosen != last:
        restore_student(module, chosen)
    with _other_ranks(folder):
        evaluation.after(trainer.global_step)
        trainer.strategy.barrier("evaluation")  # before the first rank removes the checkpoints
    if not trainer.is_global_zero:
        return RunResult(folder)
    summary = _summary(setup, prepared, module, evaluation.scores)
    if validate:
        summary["validation"] = validate.summary()
    write_card(folder / "student", _card(setup, summary))
    _finish(folder, summary, loggers, evaluation.scores)
    if not setup.checkpoints.of_finished:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return RunResult(folder, summary, evaluation.scores)


_LOST = re.compile(r"connection (?:reset|closed|refused)|broken pipe|remote (?:worker|process)|by peer", re.I)


@contextmanager
def _other_ranks(folder: Path) -> Iterator[None]:
    """Context that turns the errors of a rank whose partner has ended into one sentence."""
    try:
        yield
    except RuntimeError as error:
        if not (distributed.is_initialized() and _LOST.search(str(error))):
            raise
        kept = checkpoints(folder / "checkpoints")
        onward = f"resume with ckpt_path={folder}" if kept else "run the same command again"
        raise UserError(
            f"another rank of this run has ended, so that rank {distributed.get_rank()} ends too: its own "
            f"output says why; then {onward}"
        ) from error


def _module(setup: Setup, prepared: Prepared, steps: Steps) -> DistillModule:
    return DistillModule(
        prepared.student,
        setup.objective,
        setup.optimizer,
        setup.schedule,
        steps=steps,
        supervision=prepared.supervision,
        seed=setup.seed,
        layout=setup.layout,
    )


def _data(setup: Setup, prepared: Prepared, steps: Steps) -> DistillDataModule:
    return DistillDataModule(
        prepared.traces,
        signals=setup.objective.batch_signals,
        batch_size=setup.length.batch_size // setup.objective.samples,
        steps=steps.limit,
        seed=setup.seed,
        pad_id=int(prepared.student.tokenizer.pad_token_id or 0),
        layout=setup.layout,
        repeats=Repeats(
            setup.objective.trace_weights is not None or setup.layout.kind == "shared_prompt",
            setup.objective.num_iterations,
            prepared.routing,
        ),
    )


def _validate(setup: Setup, prepared: Prepared, evaluation: StudentEvaluation) -> Validate | None:
    if setup.validation is None or prepared.held_out is None:
        return None
    accuracy = evaluation.validate if prepared.held_out.asked else None
    return Validate(setup.validation, prepared.held_out.traces, accuracy)


def _average(setup: Setup, prepared: Prepared) -> list[lightning.Callback]:
    """What keeps the teacher an average of the student, if it is one."""
    objective = setup.objective
    if objective.teacher != "ema":
        return []
    teacher = prepared.supervision.models["teacher"].model
    rate, every = objective.teacher_update_rate, objective.teacher_sync_steps
    return [AverageTeacher(prepared.student.model, teacher, rate, every)]


def _trainer(
    setup: Setup,
    steps: Steps,
    loggers: list[Logger],
    callbacks: Sequence[lightning.Callback],
    best: Callable[[], int | None],
) -> lightning.Trainer:
    folder, kept, seen = setup.folder, setup.checkpoints, watched()
    callbacks = [
        *callbacks,
        *([OptimizerInBackward()] if setup.compute.optimizer_in_backward else []),
        WeightHistogram(folder / "weights.jsonl", setup.histogram_every),
        StudentCheckpoints(folder / "checkpoints", kept.every, kept.keep, kept.minutes, best),
        ProgressBar(steps.max_tokens) if seen else ProgressLog(steps.limit, steps.max_tokens),
    ]
    return lightning.Trainer(
        **with_strategy({**setup.compute.trainer, "max_steps": steps.limit}),
        logger=loggers,
        callbacks=callbacks,
        default_root_dir=folder,
        enable_checkpointing=False,  # StudentCheckpoints saves them
        enable_model_summary=False,
        enable_progress_bar=seen,
        use_distributed_sampler=False,  # TraceOrder splits batches over ranks
        num_sanity_val_steps=0,
    )


def _interrupted(setup: Setup, module: DistillModule, steps: Steps, stop: StopOnSignal) -> Interrupted:
    """The error for a run stopped by a signal: how far it came, and how to resume."""
    step, folder = module.trainer.global_step, setup.folder
    done = f"step {step} of {steps.limit}"
    if steps.max_tokens is not None:
        done = f"step {step}, {module.totals['tokens']:,.0f} of {steps.max_tokens:,} tokens"
    onward = f"hydra.sweep.dir={folder.parent}" if setup.launch.sweep else f"ckpt_path={folder}"
    return Interrupted(
        f"stopped by {stop.received or 'a signal to another process'} after {done}; the checkpoint "
        f"{checkpoints(folder / 'checkpoints')[-1]} is kept: to resume, run the same command with "
        f"{onward}"
    )


def _summary(
    setup: Setup, prepared: Prepared, module: DistillModule, scores: Mapping[str, Sequence[Score]]
) -> dict[str, Any]:
    """The contents of `summary.json`."""
    totals, clock = module.totals, prepared.clock
    trained, parameters = parameter_counts(module.outline)
    return {
        "name": setup.name,
        "status": "finished",
        "seed": setup.seed,
        "loss": setup.launch.loss,
        "benchmarks": {
            after.benchmark: {stage: own[place].summary() for stage, own in scores.items()}
            for place, after in enumerate(scores.get("after", ()))
        },
        "steps": module.trainer.global_step,
        "precision": setup.compute.trainer["precision"],
        **{name: value for name, value in totals.items() if name not in _ELSEWHERE},
        # FLOPs of matrix products. Cached signals count even if an earlier run computed them.
        "flops": {
            "student": totals["student_flops"],
            "teacher_live": totals["teacher_flops"],
            "teacher_cached": module.cached_flops,
        },
        # `training` includes the time before resuming; the others are of this process only.
        "seconds": {
            **{name: round(value, 2) for name, value in (clock.seconds | {"total": clock.total}).items()},
            "training": round(totals["seconds"], 2),
        },
        # Of training, rollouts included.
        "device_hours": totals["seconds"] * module.trainer.world_size / 3600,
        "traces": len(prepared.traces),
        "parameters": {"trained": trained, "all": parameters},
        "frozen": dict(prepared.frozen),
        **({} if prepared.masked is None else {"masked_share": prepared.masked}),
        "resumed_from_step": step_of(setup.resumed) if setup.resumed else None,
    }


def _card(setup: Setup, summary: Mapping[str, Any]) -> Card:
    return Card(
        setup.name,
        setup.student.name,
        licenses_of(setup.config),
        setup.config,
        summary,
        results_of(summary),
        results_of(summary, "before"),
    )


def _begin_logs(loggers: Sequence[Logger], setup: Setup) -> None:
    """Log the configuration."""
    for logger in loggers:
        logger.log_hyperparams(hide_secrets({**setup.config, "versions": versions()}))


def _finish(
    folder: Path, summary: dict[str, Any], loggers: list[Logger], scores: Mapping[str, Sequence[Score]]
) -> None:
    write_noted(folder / "summary.json", summary)
    for logger in loggers:
        logger.save()
        if isinstance(logger, CsvMetrics) and logger.path.is_file():
            note(logger.path)
        if isinstance(logger, WandbLogger):
            log_samples(logger, scores)
            logger.experiment.summary.update(summary)
    plot_run(folder)
    print_summary(summary, folder)


def _keep(checkpoint: Path, final: Path) -> None:
    """Copy a folder of the last checkpoint into the run folder, with hard links if possible."""

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)

    shutil.rmtree(final, ignore_errors=True)
    shutil.copytree(checkpoint, final, copy_function=link)
