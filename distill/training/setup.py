"""Setup of a training run: build and validate everything from the configuration, before loading models."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, open_dict

from distill.benchmarks.grading.graded import NAME_A_GRADER
from distill.config.instantiate import OptimizerFactory, build, build_optimizer, resolved
from distill.config.overrides import check_overrides
from distill.config.paths import CONFIG
from distill.data.layout import BatchLayout
from distill.data.readers import check_source
from distill.errors import UserError
from distill.evaluation.benchmark import Benchmark, benchmarks_of
from distill.evaluation.run import Asked, ask
from distill.generation.sampling import StudentRollouts
from distill.io.locks import first_rank
from distill.losses.signals import Role
from distill.models.compiling import check_layers
from distill.models.devices import find_device, ranks_of, wants_gpu
from distill.models.language_model import ModelSource
from distill.models.lora import check_targets
from distill.models.lora_settings import Lora, read_lora
from distill.objective.objective import Objective
from distill.runs.folder import check_free
from distill.runs.logger_packages import check_loggers
from distill.teacher.retokenize import Retokenizer
from distill.teacher.served import TeacherSource
from distill.teacher.several import Teachers
from distill.training import checks
from distill.training.average import check_average
from distill.training.held_out import file_recipe
from distill.training.inputs import learns_data
from distill.training.length import RunLength
from distill.training.models import (
    check_sense,
    check_served,
    check_vocabularies,
    find_models,
    share_rows,
)
from distill.training.numbers import check_numbers
from distill.training.recipe import TraceRecipe
from distill.training.replay import check_replay
from distill.training.resume import resume_arguments
from distill.training.schedule import Schedule
from distill.training.strategy_checks import (
    check_compiled,
    check_in_backward,
    check_processes,
    check_strategy,
)
from distill.training.teachers import check_alike, check_several, find_teachers
from distill.training.validation_settings import ACCURACY, LOSS, ValidationSettings, read_validation

Configuration = DictConfig  # of `conf/train.yaml`, as Hydra composes it


@dataclass(frozen=True)
class Launch:
    """How a run was started.

    Attributes:
        loss: name of the objective, a file in `conf/loss/`.
        overrides: command-line overrides.
        sweep: whether it is a job of a sweep.
    """

    loss: str | None = None
    overrides: Sequence[str] = ()
    sweep: bool = False

    @classmethod
    def of_this_process(cls) -> "Launch":
        """Read from Hydra; empty if the process was not started by Hydra."""
        if not HydraConfig.initialized():
            return cls()
        hydra = HydraConfig.get()
        loss = hydra.runtime.choices.get("loss")
        return cls(loss, tuple(hydra.overrides.task), hydra.mode == RunMode.MULTIRUN)


@dataclass(frozen=True)
class Compute:
    """Device, precision and trainer options of a run.

    Attributes:
        device: torch device of this process; `cuda` if the run is for a GPU on another machine.
        precision: dtype of matrix products.
        trainer: arguments of lightning.Trainer.
        threads: torch's CPU threads; None: torch's default.
    """

    device: str
    precision: torch.dtype
    trainer: Mapping[str, Any]
    threads: int | None = None

    @property
    def sharded(self) -> bool:
        """Whether the ranks share the student (`trainer.strategy=fsdp`); a single rank has all of it."""
        return self.trainer.get("strategy") == "fsdp"

    @property
    def optimizer_in_backward(self) -> bool:
        """Whether each weight is stepped, and its gradient freed, in the backward pass."""
        return bool(self.trainer.get("optimizer_in_backward"))

    @property
    def cpu_offload(self) -> bool:
        """Whether the ranks' shares are in host memory."""
        return self.sharded and bool(self.trainer.get("cpu_offload"))

    @property
    def places_student(self) -> bool:
        """Whether the strategy moves the student to its device, as it shares it or casts it to bf16."""
        return self.trainer.get("strategy") in ("fsdp", "deepspeed")


@dataclass(frozen=True)
class Evaluation:
    """Benchmarks of a run, evaluated before and after training.

    Attributes:
        benchmarks: may be empty.
        every: optimizer steps between two evaluations during training; None: none during training.
        token_budget: tokens per generation batch: prompts plus the maximum length of completions.
    """

    benchmarks: Sequence[Benchmark]
    every: int | None
    token_budget: int


@dataclass(frozen=True)
class CheckpointPolicy:
    """When checkpoints are written, and which are kept.

    Attributes:
        every: optimizer steps between two checkpoints, or None; the last step always has one.
        keep: number of newest checkpoints to keep.
        of_finished: whether to keep checkpoints when the run has finished.
        minutes: most minutes between two checkpoints; None: steps alone count.
    """

    every: int | None
    keep: int
    of_finished: bool
    minutes: float | None = None


@dataclass(frozen=True)
class Setup:
    """A validated training run.

    No model is loaded and nothing is written yet; `training.prepare.prepare` does that.

    Attributes:
        name: name of the run.
        seed: of all random draws.
        folder: the run folder.
        cache: folder of all caches.
        resumed: checkpoint to resume from; None: start from the beginning.
        launch: how the run was started.
        config: the whole resolved configuration, as saved in `config.yaml`.
        student: the model to train.
        frozen: frozen models such as the teacher, by role; of several teachers each by its own.
        lora: LoRA settings; None: train all weights.
        gradient_checkpointing: whether the backward pass recomputes activations.
        compile: whether the models' layers are compiled for training.
        objective: the training objective.
        recipe: how problems become traces.
        optimizer: makes the optimizer from the parameters.
        schedule: learning rate schedule.
        length: length and batch size of the run.
        layout: whether batches are padded, grouped, packed or share prompts.
        compute: device, precision and trainer options.
        evaluation: benchmarks, and when to evaluate them.
        checkpoints: when to save checkpoints, and which to keep.
        loggers: functions that make the loggers.
        histogram_every: optimizer steps that one histogram of the token weights covers.
        validation: what is held out of training, and what it decides; None: nothing is.
        teacher: where the teacher's cached signals come from.
        teachers: several teachers; None: there is at most one.
    """

    name: str
    seed: int
    folder: Path
    cache: Path
    resumed: Path | None
    launch: Launch
    config: Mapping[str, Any]
    student: ModelSource
    frozen: Mapping[str, ModelSource]
    lora: Lora | None
    gradient_checkpointing: bool
    compile: bool
    objective: Objective
    recipe: TraceRecipe
    optimizer: OptimizerFactory
    schedule: Schedule
    length: RunLength
    layout: BatchLayout
    compute: Compute
    evaluation: Evaluation
    checkpoints: CheckpointPolicy
    loggers: Sequence[Callable[[], Logger]]
    histogram_every: int
    validation: ValidationSettings | None = None
    teacher: TeacherSource = field(default_factory=TeacherSource)
    teachers: Teachers | None = None

    @classmethod
    def from_overrides(cls, overrides: Iterable[str], *, here: bool = True) -> "Setup":
        """Set up the run of `python train.py <overrides>`, such as `["loss=dcod", "model=tiny"]`.

        Raises:
            UserError: as `from_config`, or an unknown key or option; suggests close matches.
        """
        words = list(overrides)
        cfg = check_overrides(CONFIG, "train", words)
        if resuming := resume_arguments(cfg, words):
            cfg = check_overrides(CONFIG, "train", [*words, *resuming])
        with open_dict(cfg):
            cfg.pop("hydra")
        return cls.from_config(cfg, here=here)

    @classmethod
    def from_config(cls, cfg: Configuration, *, here: bool = True) -> "Setup":
        """Set up and validate a run.

        Args:
            cfg: composed configuration of `conf/train.yaml`.
            here: whether the run is for this machine. If not, as for a plan, GPU, data, benchmark problems
                and tokenizers are not checked, since this machine may lack them.

        Raises:
            UserError: a user's mistake, with a remedy.
        """
        values = resolved(cfg)
        launch = Launch.of_this_process()
        check_numbers(values)
        lora = read_lora(values["model"].get("lora"))
        compute = _compute(values, here)
        objective: Objective = build(cfg.loss, "loss")
        recipe = _recipe(cfg, objective)
        parts: dict[str, Any] = {
            "optimizer": build_optimizer(cfg.optimizer),
            "schedule": build(cfg.lr_scheduler, "lr_scheduler"),
            "layout": checks.check_layout(values["data"]),
            "evaluation": _evaluation(cfg),
        }
        check_sense(objective, recipe, launch.loss)
        if here:
            wanted = {"loss.compile": objective.compile, "model.compile": values["model"]["compile"]}
            checks.check_compiler(wanted, compute.device)
            checks.check_cache(Path(values["cache"]))
            check_source(recipe.source, learned=learns_data(cfg))
        student, frozen, teachers = _models(values, objective, recipe, launch, here)
        setup = cls(
            **parts,
            name=values["name"],
            seed=values["seed"],
            folder=Path(values["dir"]),
            cache=Path(values["cache"]),
            resumed=Path(values["ckpt_path"]) if values["ckpt_path"] else None,
            launch=launch,
            config=values,
            student=student,
            frozen=frozen,
            lora=lora,
            gradient_checkpointing=values["model"]["gradient_checkpointing"],
            compile=values["model"]["compile"],
            objective=objective,
            recipe=recipe,
            length=_length(values),
            compute=compute,
            checkpoints=_checkpoints(values),
            loggers=_loggers(cfg),
            histogram_every=values["histogram_every"],
            validation=_validation(values, objective, recipe, here=here),
            teacher=build(cfg.teacher, "teacher") if cfg.get("teacher") else TeacherSource(),
            teachers=teachers,
        )
        check_served(setup.teacher, objective, recipe, student, frozen)
        setup._check(here=here)
        return setup

    @cached_property
    def readers(self) -> Mapping[str, Retokenizer]:
        """Make each teacher's view of traces and rollouts, by role; empty if the loss asks no teacher."""
        objective, recipe = self.objective, self.recipe
        cached = {*objective.distributions.values(), *objective.cached_signals.values()}
        if "teacher" not in cached | objective.live_roles:
            return {}
        return {
            role: recipe.retokenizer(self.student, self.frozen[role], objective.teacher_sees)
            for role in self.roles_of("teacher")
        }

    @property
    def reader(self) -> Retokenizer | None:
        """The first of `readers`, which is the only one unless there are several teachers."""
        return next(iter(self.readers.values()), None)

    def roles_of(self, role: Role) -> Sequence[str]:
        """The keys of `frozen` for a role: of several teachers each one's."""
        return list(self.teachers.sources) if role == "teacher" and self.teachers is not None else [role]

    @property
    def live(self) -> Sequence[str]:
        """The keys of `frozen` for the models that are needed as the student trains."""
        return [one for role in sorted(self.objective.live_roles) for one in self.roles_of(role)]

    @property
    def routed(self) -> bool:
        """Whether each trace learns from one of several teachers."""
        return self.teachers is not None and self.teachers.weights is None

    @property
    def one_at_a_time(self) -> bool:
        """Whether at most one of several teachers is in the device's memory."""
        return self.teachers is not None and self.teachers.one_at_a_time

    @cached_property
    def asked(self) -> Sequence[Asked]:
        """The benchmarks' problems, tokenized for the student."""
        return [ask(benchmark, self.student) for benchmark in self.evaluation.benchmarks]

    def _check(self, *, here: bool) -> None:
        if self.objective.teacher == "ema":
            dtype = self.config["model"]["student_dtype"]
            check_average(self.compute.trainer.get("strategy"), dtype, self.lora)
        if self.compile:
            check_compiled(self.compute.trainer.get("strategy"))
        if self.compute.optimizer_in_backward:
            check_in_backward(self.length.ranks, str(self.config["optimizer"]["_target_"]))
        if here:
            self._check_models()

    def _check_models(self) -> None:
        """Check that models fit together (tokenizers, configurations) and that the run folder is free."""
        objective = self.objective
        if self.resumed is None and first_rank():
            check_free(self.folder)
        check_loggers(self.config.get("logger"))
        check_vocabularies(self.student, self.frozen, objective, self.launch.loss)
        if self.teachers is not None:
            check_alike(self.teachers, self.readers)
        if objective.compares_steps and objective.proposals is not None:
            objective.proposals.check(self.student, self.recipe.grade)
        if objective.rewarded and objective.rewards is not None:
            objective.rewards.check(self.recipe.grade)
        if isinstance(objective.rollouts, StudentRollouts):
            check_replay(objective.rollouts, self.student, self.reader)
        if self.lora:
            check_targets(self.lora, self.student)
        check_processes(self.compute.trainer, self.length.ranks, objective.rollouts, sweep=self.launch.sweep)
        live = [self.frozen[role] for role in self.live]
        check_strategy(self.compute.trainer, str(self.config["optimizer"]["_target_"]), self.student, live)
        if self.compile:
            for source in (self.student, *live):
                check_layers(source)
        _ = self.asked  # so that a missing file is found now, not after training


def _models(
    values: Mapping[str, Any], objective: Objective, recipe: TraceRecipe, launch: Launch, here: bool
) -> tuple[ModelSource, Mapping[str, ModelSource], Teachers | None]:
    """The student, the frozen models by role, and several teachers if there are."""
    teachers = find_teachers(values, launch.overrides)
    if teachers is not None:
        served = (values.get("teacher") or {}).get("source") == "server"
        check_several(teachers, objective, recipe, served, values["trainer"], launch.loss)
    student, frozen = find_models(values["model"], objective, recipe, launch.loss, teachers)
    if here:
        student, frozen = share_rows(student, frozen, objective, launch.loss)
    if teachers is not None:
        found = {role: frozen.get(role, source) for role, source in teachers.sources.items()}
        teachers = replace(teachers, sources=found)
    return student, frozen, teachers


def _recipe(cfg: Configuration, objective: Objective) -> TraceRecipe:
    recipe: TraceRecipe = build(cfg.data.recipe, "data")
    return replace(recipe, completions="teacher") if objective.rollouts == "teacher" else recipe


def _compute(values: Mapping[str, Any], here: bool) -> Compute:
    trainer, threads = values["trainer"], values["model"].get("threads")
    precision, options = checks.check_trainer(trainer), checks.trainer_options(trainer)
    device = find_device(trainer) if here else "cuda" if wants_gpu(trainer) else "cpu"
    if here:
        checks.check_devices(options)
    return Compute(device, precision, options, threads)


def _length(values: Mapping[str, Any]) -> RunLength:
    data, trainer = values["data"], values["trainer"]
    return RunLength(
        max_tokens=values["max_tokens"],
        max_steps=trainer["max_steps"],
        epochs=data["epochs"],
        batch_size=data["batch_size"],
        accumulate=trainer["accumulate_grad_batches"],
        ranks=ranks_of(trainer),
        log_every=trainer["log_every_n_steps"],
    )


def _validation(
    values: Mapping[str, Any], objective: Objective, recipe: TraceRecipe, *, here: bool
) -> ValidationSettings | None:
    settings = read_validation(values)
    if settings is None:
        return None
    if settings.accuracy is not None and recipe.grade is None:
        raise UserError(
            f"validation.accuracy={settings.accuracy}: this data set has no grader: name one, "
            f"{NAME_A_GRADER}, or leave validation.accuracy at null"
        )
    if objective.writes_all or all(term.rows == "student" for term in objective.terms.values()):
        if settings.accuracy is None or settings.best == LOSS:
            asked = (
                f"checkpoint.best={LOSS}" if settings.best == LOSS else f"data.validation={settings.source}"
            )
            raise UserError(
                f"{asked}: the student writes every completion of this loss, so that there is none of the "
                f"data whose loss could be measured: measure its accuracy, with validation.accuracy=100 (how "
                f"many problems) and checkpoint.best={ACCURACY}"
            )
        settings = replace(settings, monitor=ACCURACY)
    if here and isinstance(settings.source, str):
        file_recipe(recipe, settings.source)
    return settings


def _checkpoints(values: Mapping[str, Any]) -> CheckpointPolicy:
    kept = values["checkpoint"]
    return CheckpointPolicy(kept["every"], kept["keep"], kept["of_finished"], kept.get("minutes"))


def _loggers(cfg: Configuration) -> list[Callable[[], Logger]]:
    loggers = cfg.get("logger") or {}
    return [partial(build, node, f"logger.{name}") for name, node in loggers.items()]


def _evaluation(cfg: Configuration) -> Evaluation:
    asked = cfg.benchmark
    return Evaluation(benchmarks_of(asked), cfg.get("eval_every"), asked.token_budget)
