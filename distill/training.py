"""One run, from the configuration to the summary: find → check → traces → before → fit → after."""

import math
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import hydra
import lightning
import torch
from filelock import FileLock
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import DictConfig, OmegaConf

from distill import runs, sweeps
from distill.cache import keyed_folder
from distill.callbacks import (
    BenchmarkEvery,
    ProgressBar,
    StopAtBudget,
    StopOnSignal,
    StudentCheckpoints,
    WeightHistogram,
    signals_kept,
)
from distill.checks import (
    check_cache,
    check_compiler,
    check_layout,
    check_numbers,
    check_trainer,
    precision_of,
    trainer_options,
)
from distill.cli import at_end, failed_jobs, one_sentence_errors, plain, quiet
from distill.data import DistillDataModule, TraceRecipe
from distill.engines import HfEngine
from distill.errors import Busy, Interrupted, UserError, first_line
from distill.evaluation import Asked, Score, ask, benchmarks_of, evaluate
from distill.flops import cost_of_source
from distill.generation import StudentRollouts
from distill.loggers import CsvMetrics, log_samples, metrics_of
from distill.lora import add_lora, check_targets, is_adapted, parameter_counts, read_lora
from distill.losses.signals import Role
from distill.models import LanguageModel, checkpoint_activations, find_model
from distill.module import DistillModule, OptimizerFactory
from distill.objective import Objective
from distill.packing import allow_packing
from distill.plan import Plan, make_plan
from distill.plots import plot_run
from distill.prepare import find_matrix, find_models, find_reader, prepare_traces
from distill.schedule import Schedule
from distill.teacher import LazyModel, writer_key
from distill.traces import Trace

_ELSEWHERE = ("seconds", "student_flops", "teacher_flops")  # totals with a place of their own in a summary
_THREADS = torch.get_num_threads()  # torch's choice, which an earlier job of a sweep may have changed


def run_job(cfg: DictConfig) -> float | None:
    """Train; in a sweep, pass over what an earlier start of it has done or another process is doing, go on
    where it was broken off, note a failure and let the next job run.

    Returns:
        The accuracy after training, which a sweeper may optimise; None without a benchmark or after a
        failure.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    sweep = sweeps.under_way()
    cfg.dir = str(folder)
    if sweep and "wandb" in (cfg.get("logger") or {}) and cfg.logger.wandb.group is None:
        cfg.logger.wandb.group = folder.parent.name
    began, failed = False, True
    try:
        with (
            one_sentence_errors() if not sweep else nullcontext(),
            runs.locked(folder) if not cfg.plan else nullcontext(),
        ):
            if sweep and not cfg.plan:
                earlier = sweeps.look_up(folder, cfg)
                if earlier.finished:
                    print(f"{cfg.name}: finished before, in {folder}")
                    failed = False
                    sweeps.outcomes.append(None)
                    return earlier.score
                cfg.ckpt = None if earlier.checkpoint is None else str(earlier.checkpoint)
            began = not cfg.plan
            score = train(cfg, folder)
            if sweep:
                (folder / "error.txt").unlink(missing_ok=True)  # of an earlier start
                sweeps.outcomes.append(None)
        failed = False
        return score
    except Exception as error:
        if not sweep:
            raise
        if isinstance(error, Busy):  # one who has more processors starts a sweep more than once
            print(f"{cfg.name}: under way in another process")
            failed = False
            return None
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        failed_jobs.append(f"{folder}: {reason}")
        sweeps.outcomes.append(reason)
        place = ""
        if began:  # else the folder is another run's, or nobody's
            place = f" ({folder / 'error.txt'})"
            (folder / "error.txt").write_text(traceback.format_exc())
        if sweeps.hopeless():
            # No exception that Hydra would take for the job's.
            sys.exit(
                f"error: {reason}\nthe sweep's first jobs all failed of this{place}: the sweep ends here"
            )
        print(f"error: {reason}\nthis job failed{place}; the sweep goes on", file=sys.stderr)
        return None
    finally:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()  # refused before anything was computed: Hydra had made the folder already
        if "wandb" in sys.modules:
            # Otherwise the next job of a sweep goes on in this job's run.
            sys.modules["wandb"].finish(exit_code=int(failed))
        if sweep:
            sweeps.give_back_memory()


def train(cfg: DictConfig, folder: Path) -> float | None:
    """One run. Everything a user can get wrong is found before training starts."""
    quiet()
    began = time.perf_counter()
    seconds: dict[str, float] = {}
    check_numbers(cfg)
    if cfg.plan:
        _print_plan(cfg)
        return None
    check_cache(cfg)
    lora = read_lora(cfg)
    device = find_device(cfg)
    precision = check_trainer(cfg)
    torch.set_num_threads(cfg.model.threads or _THREADS)
    lightning.seed_everything(cfg.seed, verbose=False)
    objective: Objective = build(cfg.loss, "loss")
    check_compiler(objective.compile, device)
    optimizer = _build_optimizer(cfg.optimizer)
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
    if runs.first_rank():
        if resumed is None:
            runs.claim(folder)
        adapted = f" with LoRA ({trained:,} of {parameters:,} parameters train)" if lora else ""
        print(
            f"{cfg.name}: student {student.name}{adapted}, "
            f"{', '.join(f'{role} {lazy.source.name}' for role, lazy in frozen.items()) or 'no teacher'}, "
            f"run {folder}"
        )

    with _clock(seconds, "traces"):
        say = print if runs.first_rank() else lambda text: None
        traces = prepare_traces(objective, recipe, lm, frozen, reader, cache=Path(cfg.cache), say=say)
        matrix = find_matrix(objective, frozen, traces)
        asked_of = [lazy for lazy in frozen.values() if lazy.work.tokens]
        cached_flops = math.fsum(cost_of_source(lazy.source).forward(lazy.work) for lazy in asked_of)
    live: dict[Role, LanguageModel] = {role: frozen[role].get() for role in objective.live_roles}
    said = _frozen_in_words(frozen, objective)
    for role in frozen.keys() - live.keys():
        frozen[role].release()
    lm.model.to(device)
    if layout.kind == "packed":
        longest = max(len(read) for trace in traces for read in (trace, trace.reading or trace))
        if isinstance(objective.rollouts, StudentRollouts):
            longest += objective.rollouts.max_new_tokens
        for one in (lm, *live.values()):
            allow_packing(one, longest, precision)
    if cfg.model.checkpoint_activations:
        checkpoint_activations(lm)

    if runs.first_rank():
        if resumed and not runs.asked_alike(folder, cfg):
            runs.write_samples(folder, "before", [])  # asked otherwise, they are no longer to compare with
        runs.describe(folder, cfg, list(HydraConfig.get().overrides.task))
    loggers = [build(node, f"logger.{name}") for name, node in (cfg.get("logger") or {}).items()]
    scores: dict[str, list[Score]] = {}

    def of_all_runs(name: str, key: Mapping[str, Any]) -> Path:
        # The untrained student is the same in all runs, as in a sweep's: it is asked once.
        asked_alike = {**writer_key(student), "device": lm.device.type, **key}
        return keyed_folder(Path(cfg.cache), f"untrained_{name}", asked_alike)

    if asked and runs.first_rank():
        with _clock(seconds, "evaluation"):
            kept = runs.read_scores(folder, "before", asked) if resumed else None
            scores["before"] = kept or _evaluate(lm, asked, "before", folder, precision, cfg, of_all_runs)
        _log_scores(loggers, scores["before"], step=0)

    steps, expected = _steps(cfg, traces, objective)
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
        kept = runs.checkpoints(folder / "checkpoints")[-1]
        done = f"step {trainer.global_step} of {steps}"
        if cfg.max_tokens is not None:
            done = f"step {trainer.global_step}, {module.totals['tokens']:,.0f} of {cfg.max_tokens:,} tokens"
        raise Interrupted(
            f"stopped by {stop.received} after {done}; the checkpoint {kept} is kept: the same command with "
            f"{f'hydra.sweep.dir={folder.parent}' if sweeps.under_way() else f'ckpt={folder}'} goes on from "
            f"there"
        )
    last = runs.checkpoints(folder / "checkpoints")[-1]
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
                runs.fresh(place, {"model": trained_model, **key})
                return place

            scores["after"] = _evaluate(lm, asked, "after", folder, precision, cfg, of_this_run)
        _log_scores(loggers, scores["after"], step=trainer.global_step)
    seconds["total"] = time.perf_counter() - began
    summary = {
        "name": cfg.name,
        "status": "finished",
        "seed": cfg.seed,
        "loss": HydraConfig.get().runtime.choices.get("loss"),
        "benchmarks": {
            one.benchmark.name: {stage: own[place].summary() for stage, own in scores.items()}
            for place, one in enumerate(asked)
        },
        "steps": trainer.global_step,
        "traces": len(traces),
        "parameters": {"trained": trained, "all": parameters},
        "precision": precision_of(cfg),
        "frozen": said,
        **{name: value for name, value in module.totals.items() if name not in _ELSEWHERE},
        # Of the matrix products; what caches keep counts whether this run computed it or an earlier one.
        "flops": {
            "student": module.totals["student_flops"],
            "teacher_live": module.totals["teacher_flops"],
            "teacher_cached": cached_flops,
        },
        "resumed_from_step": int(resumed.name.removeprefix("step-")) if resumed else None,
        # Training's over the whole run, however often it was resumed; the others' of this part.
        "seconds": {
            **{name: round(value, 2) for name, value in seconds.items()},
            "training": round(module.totals["seconds"], 2),
        },
    }
    _finish(folder, summary, loggers, scores)
    if not cfg.checkpoint.of_finished:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return fmean(score.accuracy.value for score in scores["after"]) if asked else None


def _print_plan(cfg: DictConfig) -> None:
    """What the run would take, on a machine that need not be here; of a sweep's jobs all together, when they
    are done."""
    if not (HydraConfig.initialized() and sweeps.under_way()):
        _plan(cfg).print()
        return
    if sweeps.planned.print not in at_end:
        at_end.append(sweeps.planned.print)
    sweeps.planned.add(HydraConfig.get().overrides.task, lambda: _plan(cfg))


def _plan(cfg: DictConfig) -> Plan:
    objective: Objective = build(cfg.loss, "loss")
    recipe: TraceRecipe = build(cfg.data.recipe, "data")
    if objective.rollouts == "teacher":
        recipe = replace(recipe, completions="teacher")
    return make_plan(cfg, objective, recipe, lambda traces: _steps(cfg, traces, objective))


def _steps(cfg: DictConfig, traces: list[Trace], objective: Objective) -> tuple[int, int]:
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


def ranks_of(cfg: DictConfig) -> int:
    """Processes that train together."""
    devices: Any = cfg.trainer.devices
    if isinstance(devices, int) and devices > 0:
        count = devices
    elif OmegaConf.is_list(devices):
        count = len(cfg.trainer.devices)
    else:
        count = max(1, torch.cuda.device_count()) if cfg.trainer.accelerator in ("gpu", "cuda") else 1
    return count * int(cfg.trainer.get("num_nodes", 1))


def find_device(cfg: DictConfig) -> str:
    if cfg.trainer.accelerator in ("gpu", "cuda"):
        if not torch.cuda.is_available():
            raise UserError(
                "trainer=gpu, but torch sees no GPU here: take trainer=cpu, or install a CUDA build of torch"
            )
        # This process's own GPU, before Lightning moves anything there: not GPU 0 for every rank.
        rank = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))
        chosen: Any = plain(cfg.trainer.devices)
        return f"cuda:{chosen[rank] if isinstance(chosen, list) else rank}"
    return "cpu"


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
    runs.write_samples(folder, stage, scores)
    return scores


def _log_scores(loggers: list[Logger], scores: Sequence[Score], step: int) -> None:
    for logger in loggers:
        logger.log_metrics(metrics_of(scores), step=step)


def _log_config(loggers: list[Logger], cfg: DictConfig) -> None:
    for logger in loggers:
        logger.log_hyperparams(plain(cfg) | {"versions": runs.versions()})


def _rewind(loggers: list[Logger], checkpoint: Path) -> None:
    for logger in loggers:
        if isinstance(logger, CsvMetrics):
            logger.forget_after(int(checkpoint.name.removeprefix("step-")))


def _finish(
    folder: Path, summary: dict[str, Any], loggers: list[Logger], scores: Mapping[str, Sequence[Score]]
) -> None:
    runs.write_json(folder / "summary.json", summary)
    for logger in loggers:
        logger.save()
        if isinstance(logger, WandbLogger):
            log_samples(logger, scores)
            logger.experiment.summary.update(summary)
    plot_run(folder)
    runs.print_summary(summary, folder)


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


def build(node: Any, place: str) -> Any:
    """Instantiate a config node; what it refuses is the user's to mend."""
    try:
        return hydra.utils.instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, UserError):
            raise cause from error
        if isinstance(cause, (ValueError, TypeError, ImportError, AttributeError)) or cause is error:
            raise UserError(f"{place}: {first_line(cause)}") from error
        raise


def _build_optimizer(node: Any) -> OptimizerFactory:
    factory = build(node, "optimizer")
    try:
        factory(
            [torch.nn.Parameter(torch.zeros(1))]
        )  # a bad learning rate is better found now than in training
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"optimizer: {first_line(error)}") from error
    return factory


@contextmanager
def _clock(seconds: dict[str, float], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began
