"""What a training run is, from its configuration: checked, and with nothing loaded or written yet."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, open_dict

from distill.config.instantiate import OptimizerFactory, build, build_optimizer, resolved
from distill.config.overrides import check_overrides
from distill.config.paths import CONFIG
from distill.data.layout import BatchLayout
from distill.data.readers import check_file
from distill.evaluation.benchmark import Benchmark, benchmarks_of
from distill.evaluation.run import Asked, ask
from distill.io.locks import first_rank
from distill.losses.signals import Role
from distill.models.devices import find_device, ranks_of, wants_gpu
from distill.models.language_model import ModelSource
from distill.models.lora import Lora, check_targets, read_lora
from distill.objective.objective import Objective
from distill.runs.folder import check_free
from distill.teacher.retokenize import Retokenizer
from distill.training import checks
from distill.training.length import RunLength
from distill.training.models import check_sense, check_vocabularies, find_models
from distill.training.numbers import check_numbers
from distill.training.recipe import TraceRecipe
from distill.training.resume import resume_arguments
from distill.training.schedule import Schedule

Configuration = DictConfig  # of `conf/train.yaml`, as Hydra composes it


@dataclass(frozen=True)
class Launch:
    """How a run was started.

    Attributes:
        loss: the objective's name, a file of `conf/loss/`.
        overrides: words of the command line.
        sweep: whether it is a sweep's job.
    """

    loss: str | None = None
    overrides: Sequence[str] = ()
    sweep: bool = False

    @classmethod
    def of_this_process(cls) -> "Launch":
        """As Hydra tells it; without Hydra, nothing is known."""
        if not HydraConfig.initialized():
            return cls()
        hydra = HydraConfig.get()
        loss = hydra.runtime.choices.get("loss")
        return cls(loss, tuple(hydra.overrides.task), hydra.mode == RunMode.MULTIRUN)


@dataclass(frozen=True)
class Compute:
    """Where and how a run computes.

    Attributes:
        device: of this process; `cuda` for a GPU that need not be here.
        precision: type of the matrix products.
        trainer: arguments of lightning.Trainer.
        threads: of torch on the CPU; None: its own choice.
    """

    device: str
    precision: torch.dtype
    trainer: Mapping[str, Any]
    threads: int | None = None


@dataclass(frozen=True)
class Evaluation:
    """What the student is asked before and after training.

    Attributes:
        benchmarks: may be none.
        every: also after every so many optimizer steps.
        token_budget: tokens that are answered at once, prompts and room for completions included.
    """

    benchmarks: Sequence[Benchmark]
    every: int | None
    token_budget: int


@dataclass(frozen=True)
class CheckpointPolicy:
    """When checkpoints are written, and which are kept.

    Attributes:
        every: optimizer steps between two; the last step always has one.
        keep: how many of the newest stay.
        of_finished: whether a finished run keeps them.
    """

    every: int
    keep: int
    of_finished: bool


@dataclass(frozen=True)
class Setup:
    """A training run, checked: what learns what from whom, how long, where, and what is kept of it.

    Nothing is loaded or written yet; `training.prepare.prepare` loads the models and makes the traces.

    Attributes:
        name: of the run.
        seed: of all that is drawn.
        folder: the run's.
        cache: folder of all caches.
        resumed: checkpoint where the run goes on; None: from its beginning.
        launch: how it was started.
        config: the whole configuration, resolved, as `config.yaml` keeps it.
        student: the model in training.
        frozen: the models beside it, by role.
        lora: adapters that train in place of all weights.
        gradient_checkpointing: whether the backward pass computes activations anew.
        objective: what is learned.
        recipe: how problems become traces.
        optimizer: makes it from parameters.
        schedule: of the learning rate.
        length: of the run.
        layout: how models read a batch.
        compute: where and how.
        evaluation: what the student is asked.
        checkpoints: when, and which stay.
        loggers: make the loggers.
        histogram_every: optimizer steps that one histogram of the weights spans.
    """

    name: str
    seed: int
    folder: Path
    cache: Path
    resumed: Path | None
    launch: Launch
    config: Mapping[str, Any]
    student: ModelSource
    frozen: Mapping[Role, ModelSource]
    lora: Lora | None
    gradient_checkpointing: bool
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

    @classmethod
    def from_overrides(cls, overrides: Iterable[str], *, here: bool = True) -> "Setup":
        """The run of `python train.py <overrides>`, such as `["loss=dcod", "model=tiny"]`.

        Raises:
            UserError: as `from_config`; an unknown key or option, with the nearest names.
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
        """The run of a configuration, with all found that a user can get wrong.

        Args:
            cfg: of `conf/train.yaml`, composed.
            here: whether it is to run on this machine. Otherwise, as for a plan, the GPU, the data, the
                benchmarks' problems and the tokenizers may be elsewhere.

        Raises:
            UserError: what is wrong, and what to do.
        """
        values = resolved(cfg)
        launch = Launch.of_this_process()
        check_numbers(values)
        lora = read_lora(values["model"].get("lora"))
        compute = _compute(values, here)
        objective: Objective = build(cfg.loss, "loss")
        recipe: TraceRecipe = build(cfg.data.recipe, "data")
        if objective.rollouts == "teacher":
            recipe = replace(recipe, completions="teacher")
        parts: dict[str, Any] = {
            "optimizer": build_optimizer(cfg.optimizer),
            "schedule": build(cfg.lr_scheduler, "lr_scheduler"),
            "layout": checks.check_layout(values["data"]),
            "evaluation": _evaluation(cfg),
        }
        check_sense(objective, recipe, launch.loss)
        if here:
            checks.check_compiler(objective.compile, compute.device)
            checks.check_cache(Path(values["cache"]))
            if path := _path(recipe):
                check_file(path)
        student, frozen = find_models(values["model"], objective, recipe, launch.loss)
        kept, loggers = values["checkpoint"], cfg.get("logger") or {}
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
            objective=objective,
            recipe=recipe,
            length=_length(values),
            compute=compute,
            checkpoints=CheckpointPolicy(kept["every"], kept["keep"], kept["of_finished"]),
            loggers=[partial(build, node, f"logger.{name}") for name, node in loggers.items()],
            histogram_every=values["histogram_every"],
        )
        if here:
            setup._check_models()
        return setup

    @cached_property
    def reader(self) -> Retokenizer | None:
        """Who makes the teacher's reading of traces and rollouts; None where it is asked nothing."""
        objective, recipe = self.objective, self.recipe
        if "teacher" not in {*objective.distributions.values(), *objective.cached_signals.values()}:
            return None
        informed = objective.teacher_sees == "solution"
        prompt = recipe.informed_prompt if informed else recipe.prompt
        return Retokenizer(self.student, self.frozen["teacher"], prompt, informed)

    @cached_property
    def asked(self) -> Sequence[Asked]:
        """The benchmarks' problems in the student's tokens."""
        return [ask(benchmark, self.student) for benchmark in self.evaluation.benchmarks]

    def _check_models(self) -> None:
        """Refuse models that do not fit together, by their tokenizers and configurations, and a folder that
        holds another run."""
        objective = self.objective
        if self.resumed is None and first_rank():
            check_free(self.folder)
        check_vocabularies(self.student, self.frozen, objective, self.launch.loss)
        if objective.compares_steps and objective.proposals is not None:
            objective.proposals.check(self.student, self.recipe.grade)
        if self.lora:
            check_targets(self.lora, self.student)
        _ = self.asked  # a missing file is better found now than after training


def _compute(values: Mapping[str, Any], here: bool) -> Compute:
    trainer, threads = values["trainer"], values["model"].get("threads")
    device = find_device(trainer) if here else "cuda" if wants_gpu(trainer) else "cpu"
    precision, options = checks.check_trainer(trainer), checks.trainer_options(trainer)
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


def _evaluation(cfg: Configuration) -> Evaluation:
    asked = cfg.benchmark
    return Evaluation(benchmarks_of(asked), cfg.get("eval_every"), asked.token_budget)


def _path(recipe: TraceRecipe) -> str | None:
    """The local file that traces are made of, where one of our own readers is given its name."""
    source = recipe.source
    if not isinstance(source, partial) or not source.func.__module__.startswith("distill."):
        return None
    return source.keywords.get("path")
