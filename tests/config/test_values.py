"""Tests of the checks before torch: types by the hints in the source, ranges, choices, and their words."""

import collections.abc
import copy
import importlib
import math
import types
import typing
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from distill.config.instantiate import build, resolved
from distill.config.overrides import check_overrides
from distill.config.paths import CONFIG
from distill.config.sweep import jobs_of, swept_values, variants
from distill.config.values import Hint, check_values, hints
from distill.errors import UserError
from distill.training.inputs import check_settings

COMMANDS = {
    "train": ["loss=on_policy_kd"],
    "generate": ["engine=server"],
    "evaluate": [],
    "curate": ["curation=[correct,pass_rate]"],
    "export": [],
    "similarity": ["judge=server"],
    "identity": [],
    "tips": ["writer_engine=server"],
    "prune": [],
}


@pytest.fixture(scope="module")
def composed() -> dict[str, DictConfig]:
    return {name: check_overrides(CONFIG, name, words) for name, words in COMMANDS.items()}


def check(cfg: DictConfig, **values: Any) -> None:
    changed = copy.deepcopy(cfg)
    for key, value in values.items():
        OmegaConf.update(changed, key, value, force_add=True)
    check_values(changed, list(values))
    check_settings(resolved(changed))


@pytest.mark.parametrize("command", COMMANDS)
def test_what_the_package_sets_itself_is_accepted(composed: dict[str, DictConfig], command: str) -> None:
    check_values(composed[command])
    check_settings(resolved(composed[command]))


REFUSED: dict[str, list[tuple[str, Any, str]]] = {
    "train": [
        ("optimizer.lr", -1, "optimizer.lr=-1 must be a number, at least 0"),
        ("optimizer.lr", "high", "optimizer.lr='high' must be a number, at least 0"),
        ("optimizer.lr", math.nan, "optimizer.lr=nan must be a number"),
        ("optimizer.lr", None, "optimizer.lr=None must be a number"),
        ("optimizer.weight_decay", "x", "optimizer.weight_decay='x' must be a number"),
        ("optimizer.betas", 1e30, "optimizer.betas=1e+30 must be two numbers, from 0 to below 1"),
        ("optimizer.betas", [1, 2], "optimizer.betas=[1, 2] must be two numbers"),
        ("optimizer.betas", None, "optimizer.betas=None must be two numbers"),
        ("seed", "a", "seed='a' must be a whole number, at least 0"),
        ("data.batch_size", 1.5, "data.batch_size=1.5 must be a whole number"),
        ("data.samples", "x", "data.samples='x' must be a whole number"),
        ("data.completions", "x", "data.completions='x' is not one of dataset, teacher"),
        ("data.max_length", "long", "data.max_length='long' must be a whole number"),
        ("data.sampling.top_p", 3, "top_p=3 in (0, 1]"),
        ("data.recipe.sampling", 1, "data.recipe.sampling=1 must be a section of keys or null"),
        ("data.sampling", "hot", "data.sampling='hot' must be a section of keys or null"),
        ("data.recipe.source", 1, "data.recipe.source=1 must be a section of keys"),
        ("data.recipe.student_prompt", 1, "data.recipe.student_prompt=1 must be a section of keys"),
        ("data.operations", 3, "data.operations=3 must be a list"),
        ("loss.token_loss", 1, "loss.token_loss=1 must be a section of keys"),
        ("loss.token_weight", True, "loss.token_weight=True must be a section of keys"),
        ("loss.distribution", 1, "loss.distribution=1 must be a section of keys"),
        ("loss.normalize", {"a": 1}, "loss.normalize={'a': 1} is not one of tokens, weights"),
        ("data.epochs", "x", "data.epochs='x' must be a positive number"),
        ("benchmark.temperature", -1, "benchmark.temperature=-1 must be a number, at least 0 or null"),
        (
            "benchmark.arithmetic.samples",
            "many",
            "benchmark.arithmetic.samples='many' must be a whole number",
        ),
        ("lr_scheduler.warmup_ratio", 2, "warmup_ratio=2 must be in [0, 1)"),
        ("lr_scheduler.decay", "linear", "lr_scheduler.decay='linear' is not one of cosine, constant"),
        ("loss.normalize", "rows", "loss.normalize='rows' is not one of tokens, weights"),
        ("loss.scale", "median", "loss.scale='median' must be a number or mean"),
        ("loss.temperature", 0, "loss.temperature=0 must be a positive number"),
        ("loss.compile", "yes please", "loss.compile='yes please' must be true or false"),
        ("loss.rollouts.fraction", 2, "rollouts.fraction=2 is outside [0, 1]"),
        ("loss.token_loss.beta", 2, "loss.token_loss.beta=2 must be a number in [0, 1]"),
        ("checkpoint.every", 0, "checkpoint.every=0 must be a whole number, at least 1, or null"),
        ("checkpoint.minutes", 0, "checkpoint.minutes=0 must be a positive number or null"),
        ("checkpoint.of_finished", 1, "checkpoint.of_finished=1 is neither true nor false"),
        ("estimate.utilization", 2, "estimate.utilization=2 must be a number in (0, 1]"),
        ("trainer.precision", "fp16", "trainer.precision=fp16 is not supported"),
        ("trainer.strategy", "deepspeed", "trainer.strategy=deepspeed needs GPUs"),
        ("trainer.strategy", "zero", "trainer.strategy=zero is not supported: take auto, ddp"),
        ("trainer.timeout_minutes", 0, "trainer.timeout_minutes=0 must be a number in (0, 100000]"),
        ("trainer.cpu_offload", "yes", "trainer.cpu_offload='yes' is neither true nor false"),
        ("trainer.cpu_offload", True, "trainer.cpu_offload=True is of trainer.strategy=fsdp"),
        (
            "trainer.stage",
            3,
            "trainer.stage=3 is of trainer.strategy=deepspeed, and trainer.strategy is auto",
        ),
        ("trainer.max_epochs", 3, "trainer.max_epochs is not yours to set"),
        ("trainer.gradient_clip_val", -1, "trainer.gradient_clip_val=-1 must be a number, at least 0"),
        ("model.lora.rank", "x", "model.lora.rank='x' must be a whole number"),
        ("model.student_dtype", "float31", "model.student_dtype='float31' is not one of float32"),
    ],
    "generate": [
        ("engine.concurrency", "x", "engine.concurrency='x' must be a whole number"),
        ("engine.timeout", -1, "engine.timeout=-1 must be a positive number"),
        ("samples", 0, "samples=0 must be a whole number"),
        ("check.seconds", 0, "check.seconds=0 must be a positive number"),
    ],
    "similarity": [
        ("problems", 1, "problems=1 must be a whole number, at least 2, or null"),
        ("judge.concurrency", 0, "judge.concurrency=0 must be a whole number, at least 1"),
    ],
    "identity": [("sampling.temperature", "hot", "sampling.temperature='hot' must be a number")],
    "prune": [("layers", 0, "layers=0 must be a whole number, at least 1")],
    "evaluate": [("drift.temperature", -1, "drift.temperature=-1"), ("threads", 0, "threads=0")],
    "export": [
        ("private", "x", "private='x' is neither true nor false"),
        ("speed.tokens", 0, "speed.tokens=0 must be a whole number, at least 1"),
        ("card.license", None, "card.license=null must be text"),
    ],
    "curate": [
        ("curation.correct.unjudged", "x", "curation.correct.unjudged='x' is not one of keep, drop"),
        ("curation.pass_rate.samples", "x", "curation.pass_rate.samples='x' must be a whole number"),
    ],
}


@pytest.mark.parametrize(
    ("command", "key", "value", "sentence"),
    [(command, *case) for command, cases in REFUSED.items() for case in cases],
)
def test_a_wrong_value_is_refused_with_its_key(
    composed: dict[str, DictConfig], command: str, key: str, value: Any, sentence: str
) -> None:
    with pytest.raises(UserError) as refused:
        check(composed[command], **{key: value})
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizer.lr", 0),
        ("checkpoint.every", None),
        ("checkpoint.minutes", None),
        ("checkpoint.minutes", 0.5),
        ("loss.scale", "mean"),
        ("loss.temperature", 2),
        ("trainer.precision", 32),
        ("data.max_length", None),
        ("model.student_dtype", "bfloat16"),
    ],
)
def test_a_right_value_of_another_type_is_accepted(
    composed: dict[str, DictConfig], key: str, value: Any
) -> None:
    check(composed["train"], **{key: value})


TARGETS = [
    "distill.losses.weights.support_ratio",
    "distill.losses.divergence.Taid",
    "distill.objective.objective.Objective",
    "distill.objective.step_values.StepProposals",
    "distill.teacher.distribution.TeacherDistribution",
    "distill.training.recipe.TraceRecipe",
    "distill.training.schedule.Schedule",
    "distill.generation.server.ServerEngine",
    "distill.evaluation.benchmark.Benchmark",
]


def spelled(annotation: Any) -> Hint | None:
    """A hint from the evaluated annotation; None if it is none that `Hint` can tell."""
    if annotation in (int, float, bool, str):
        return Hint(types=frozenset({annotation}))
    if annotation is type(None):
        return Hint(null=True)
    if typing.get_origin(annotation) is typing.Literal:
        return Hint(choices=typing.get_args(annotation))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        parts = [spelled(part) for part in typing.get_args(annotation)]
        whole = Hint()
        for part in parts:
            if part is None:
                return None
            whole |= part
        return whole
    kind = typing.get_origin(annotation) or annotation
    if kind in (list, tuple, collections.abc.Sequence, collections.abc.Iterable):
        return Hint(types=frozenset({list}))
    if kind in (dict, collections.abc.Mapping, collections.abc.Callable) or (
        isinstance(kind, type) and kind.__module__.startswith("distill.")
    ):
        return Hint(types=frozenset({dict}))
    return None


@pytest.mark.parametrize("target", TARGETS)
def test_hints_read_from_the_source_are_those_of_the_imported_code(target: str) -> None:
    module, _, name = target.rpartition(".")
    taken = getattr(importlib.import_module(module), name)
    described = typing.get_type_hints(taken)
    if isinstance(taken, type) and "__init__" in vars(taken) and not hasattr(taken, "__dataclass_fields__"):
        described = typing.get_type_hints(taken.__init__)
    found = hints(target)
    assert found
    for parameter, hint in found.items():
        expected = spelled(described[parameter])
        assert expected is not None
        assert (hint.types, set(hint.choices), hint.null) == (
            expected.types,
            set(expected.choices),
            expected.null,
        )


@pytest.mark.parametrize(
    ("key", "value"),
    [("floor", 2), ("anneal", -0.5), ("temperature", 0), ("max_ratio", 0)],
)
def test_ranges_are_those_of_the_losses_themselves(key: str, value: float) -> None:
    cfg = check_overrides(CONFIG, "train", [f"loss.token_weight.{key}={value}"])
    with pytest.raises(UserError, match=f"loss.token_weight.{key}={value} must be"):
        check_settings(resolved(cfg))
    with pytest.raises(UserError, match=f"{key}={value}"):
        build(cfg.loss, "loss")


def test_every_value_of_a_sweep_is_looked_at_and_its_jobs_are_counted(
    composed: dict[str, DictConfig],
) -> None:
    cfg = composed["train"]
    values = swept_values(cfg, ["-m", "loss=sft,dcod,tvd", "data.batch_size=4,0", "seed=range(0,3)"], {})
    assert jobs_of(values) == 3 * 2 * 3
    sizes = [one.data.batch_size for one in variants(cfg, values)]
    first = cfg.data.batch_size
    assert sizes == [first, 4, 0, first, first]  # the first job, its other sizes, its other seeds
    of_file = OmegaConf.create(
        {"hydra": {"sweeper": {"params": {"loss": "sft,dcod,tvd", "seed": "range(0,5)"}}}}
    )
    assert jobs_of(swept_values(of_file, ["experiment=mine", "seed=0,1"], {})) == 3 * 2
    assert jobs_of(swept_values(of_file, ["seed=interval(0,1)"], {})) is None
    losses = {"loss": ["dcod", "dcod_tau2", "sft"]}
    assert swept_values(of_file, ["loss=glob(dcod*)"], losses)["loss"] == ["dcod", "dcod_tau2"]
