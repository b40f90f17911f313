"""Tests of the sweeps in `conf/experiment/`: every job composes and builds, and no learning rate is chosen on
the test set."""

import functools
import inspect
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra.utils
import pytest
import torch
from composing import checked
from covering import some_of
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from distill.benchmarks import arithmetic
from distill.config.flat import flat
from distill.config.instantiate import plain
from distill.errors import UserError
from distill.evaluation.benchmark import benchmarks_of
from distill.losses.signals import name_of
from distill.objective.objective import Objective
from distill.report.claims import UNTRAINED, read_registration
from distill.training.checks import check_devices, check_trainer, trainer_options
from distill.training.numbers import check_numbers
from distill.training.recipe import TraceRecipe

CONF = Path(__file__).resolve().parents[2] / "conf"
MODELS = {path.stem for path in (CONF / "model").glob("*.yaml")}  # whose suggestions lie there, too
EXPERIMENTS = sorted({path.stem for path in (CONF / "experiment").glob("*.yaml")} - MODELS)
PROXY_FOLDER = "hydra.sweep.dir=outputs/sweeps/proxy_smollm2_proxy"
METHODS = ["sft", "forward_kl", "on_policy_kd", "dcod", "dcod_kl", "dft", "dcod_shuffled", "dcod_inverted"]


def check(*words: str) -> DictConfig:
    return checked("train", *words)


def composed(*words: str) -> DictConfig:
    """Without a look at each job, which takes as long as composing them all."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", list(words), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return cfg


@functools.cache
def sweep(experiment: str) -> dict[str, list[str]]:
    """What an experiment sweeps over, as Hydra's own parser reads it."""
    params = check(f"experiment={experiment}").hydra.sweeper.params
    parsed = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    return {
        one.key_or_group: list(one.sweep_string_iterator()) if one.is_sweep_override() else [str(one.value())]
        for one in parsed
    }


def jobs(experiment: str) -> list[list[str]]:
    found = sweep(experiment)
    return [
        [f"{key}={value}" for key, value in zip(found, values, strict=True)]
        for values in itertools.product(*found.values())
    ]


@functools.cache
def build_section(text: str) -> Any:
    """What a section of a configuration builds; once, for it is the same in many jobs."""
    return hydra.utils.instantiate(OmegaConf.create(text), _convert_="all")


def build(cfg: DictConfig) -> None:
    """All that a job is made of; no model and no data are loaded."""
    loss, recipe = (
        build_section(OmegaConf.to_yaml(section, resolve=True)) for section in (cfg.loss, cfg.data.recipe)
    )
    assert isinstance(loss, Objective)
    assert isinstance(recipe, TraceRecipe)
    source: Any = recipe.source
    inspect.signature(source.func).bind(**source.keywords)
    for benchmark in benchmarks_of(cfg.benchmark):
        own: Any = benchmark.source
        inspect.signature(own.func).bind(**{**own.keywords, "path": None, "limit": 3})


@pytest.mark.slow
# The other experiments of the paper differ in pair and data alone: test_paper_experiments.py composes them.
@pytest.mark.parametrize(
    "experiment",
    some_of(
        [name for name in EXPERIMENTS if not name.startswith(("paper_14b", "paper_7b_3b_"))],
        "compare",
        "tune",
    ),
)
def test_every_job_of_an_experiment_composes_and_builds(experiment: str) -> None:
    folders: set[str] = set()
    rates: dict[str, set[float]] = {}
    found = sweep(experiment)
    first, *others = jobs(experiment)
    # The first job and those that differ from it in one value alone; of the seeds one other.
    near = [words for words in others if len(set(words) - set(first)) == 1]
    seeds = found["seed"]
    every = [first, *(words for words in near if not {f"seed={seed}" for seed in seeds[1:-1]} & set(words))]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for words in every:
            cfg = compose("train", [f"experiment={experiment}", *words], return_hydra_config=True)
            with open_dict(cfg):
                cfg.hydra.job.num = 0  # which Hydra knows when it runs
            HydraConfig.instance().set_config(cfg)
            folders.add(f"{cfg.hydra.sweep.dir}/{cfg.hydra.sweep.subdir}")
            if cfg.trainer.accelerator == "cpu":
                check_trainer(trainer := plain(cfg.trainer))
                check_devices(trainer_options(trainer))
            check_numbers(plain(cfg))
            del cfg.hydra  # what a run is given
            OmegaConf.to_container(cfg, resolve=True)
            loss = str(HydraConfig.get().runtime.choices["loss"])
            rates.setdefault(loss, set()).add(cfg.optimizer.lr)
            build(cfg)
    assert len(folders) == len(every)  # each has its own
    assert list(rates) == found["loss"]
    grid = {float(rate) for rate in found.get("optimizer.lr", [])}
    if experiment.startswith("tune") or experiment in (
        "claims_tune",
        "claims_mixed_tune",
        "proxy_smollm2_tune",
    ):
        assert len(grid) >= 3
        assert rates.pop(found["loss"][0]) == grid  # which the sweep crosses with all losses
        assert all(own < grid for own in rates.values())
    else:
        assert all(len(own) == 1 for own in rates.values())


@pytest.mark.slow
@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if name.startswith("compare")])
def test_a_comparison_has_every_method_five_seeds_and_a_grid_for_its_rates(experiment: str) -> None:
    found = sweep(experiment)
    assert found["loss"] == METHODS
    assert len(found["seed"]) >= 5
    assert next(iter(found)) == "seed"  # a sweep that is broken off has compared all methods
    tuned = sweep(experiment.replace("compare", "tune"))
    assert tuned["loss"] == METHODS
    assert not set(tuned["seed"]) & set(found["seed"])


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["claims", "claims_mixed", "proxy_smollm2"])
def test_registered_claims_are_about_the_sweeps_own_methods_and_settings(experiment: str) -> None:
    """Each claim can be answered by the sweep, and is registered for what the experiment composes."""
    cfg, found = composed(f"experiment={experiment}"), sweep(experiment)
    registration = read_registration(plain(cfg.registered))
    for claim in registration.claims:
        assert {claim.method, claim.against} <= {*found["loss"], UNTRAINED}
        assert claim.benchmark is None or claim.benchmark in cfg.benchmark
        assert cfg.data.validation or not claim.measure.startswith("validation")
    config = dict(flat({key: plain(cfg[key]) for key in ("model", "data", "benchmark", "max_tokens")}))
    assert {key: config[key] for key in registration.settings} == dict(registration.settings)
    assert len(found["seed"]) == (3 if experiment == "proxy_smollm2" else 5)
    tuned, tune = sweep(f"{experiment}_tune"), composed(f"experiment={experiment}_tune")
    assert tuned["loss"] == found["loss"]
    assert not set(tuned["seed"]) & set(found["seed"])
    (asked,) = benchmarks_of(tune.benchmark)
    assert tune.benchmark[asked.name].source.split in ("validation", "train[7000:7373]")
    assert tune.registered is None
    for key in ("model", "data"):
        assert plain(tune[key]) == plain(cfg[key])
    assert tune.max_tokens == (33_000 if experiment == "proxy_smollm2" else cfg.max_tokens)
    assert {float(lr) for lr in cfg.lrs.values()} <= {float(lr) for lr in tuned["optimizer.lr"]}
    assert set(cfg.lrs) == set(found["loss"])


def test_the_proxy_that_the_runs_compare_with_is_the_student_of_sft_on_their_traces() -> None:
    """The path in model.teacher is where the documented command for the proxy puts it."""
    cfg = composed("experiment=proxy_smollm2", "loss=sft", "seed=1000", "benchmark=none", PROXY_FOLDER)
    assert cfg.model.teacher == f"{cfg.hydra.sweep.dir}/{cfg.hydra.sweep.subdir}/student"
    assert not benchmarks_of(cfg.benchmark)
    page = (CONF.parent / "docs" / "results" / "proxy-smollm2.md").read_text(encoding="utf-8")
    assert f"experiment=proxy_smollm2 loss=sft seed=1000 benchmark=none {PROXY_FOLDER}" in page
    own = composed("loss=dcod_initial").loss
    assert plain(own) == plain(composed("loss=dcod").loss) | {"teacher": "initial"}


@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if name.startswith("tune")])
def test_a_rate_is_chosen_for_the_comparison_itself_on_other_problems(experiment: str) -> None:
    """All but what is asked, the rate and the seed is the comparison's own."""
    tune, compare = (
        composed(f"experiment={name}") for name in (experiment, experiment.replace("tune", "compare"))
    )
    one, other = (OmegaConf.to_container(cfg, resolve=False) for cfg in (tune, compare))
    assert isinstance(one, dict)
    assert isinstance(other, dict)
    for key in ("data", "loss", "max_tokens", "trainer", "lr_scheduler", "model"):
        assert one[key] == other[key]
    assert one["optimizer"] | {"lr": None} == other["optimizer"] | {"lr": None}
    if experiment == "tune_own":
        return  # whose files the user names
    for name in (benchmark.name for benchmark in benchmarks_of(tune.benchmark)):
        splits = [cfg.benchmark[name].source.split for cfg in (tune, compare)]
        assert splits[0] in ("validation", "train[7000:]")
        assert splits[1] == "test"
    if "limit" in tune.data and tune.data.limit is not None and experiment != "tune":
        assert tune.data.limit <= 7000


# The weights of the paper's Table 5 (2605.14071), of Δ = log π_S - log π_T, by the loss that has them.
TABLE_5: dict[str, Callable[[float], float]] = {
    "sft": lambda gap: 1.0,
    "todi": lambda gap: 1.0,  # whose weights are in the loss
    "dcod": lambda gap: 1 / (1 + math.exp(-gap)),
    "dcod_tau2": lambda gap: 1 / (1 + math.exp(-gap / 2)),
    "dcod_tau4": lambda gap: 1 / (1 + math.exp(-gap / 4)),
    "dcod_ratio": math.exp,
    "dcod_clip_exp": lambda gap: math.exp(min(max(gap, -5.0), 5.0)),
    "dcod_relu": lambda gap: max(gap, 0.0),
}


@pytest.mark.slow
def test_table_5_is_one_sweep_of_the_papers_weights_and_all_else_is_alike() -> None:
    assert list(sweep("table5")) == ["seed", "loss"]
    assert sweep("table5")["loss"] == list(TABLE_5)
    gaps = [-9.0, -1.0, 0.0, 0.5, 7.0]
    student = torch.tensor([gaps], dtype=torch.float64) - 10
    known = {"student_logprobs": student, "teacher_logprobs": torch.full_like(student, -10)}
    rest = []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for loss, weight in TABLE_5.items():
            cfg = compose(f"loss/{loss}").loss
            objective = hydra.utils.instantiate(cfg, _convert_="all")
            assert name_of(objective.token_loss) == ("todi" if loss == "todi" else "cross_entropy")
            found = objective.terms["main"].weights(torch.ones(1, 5, dtype=torch.bool), known, 1.0)[0]
            assert found.tolist() == pytest.approx([weight(gap) for gap in gaps], rel=1e-12)
            rest.append({key: one for key, one in cfg.items() if key not in ("token_loss", "token_weight")})
    assert all(one == rest[0] for one in rest)
    assert len(set(check("experiment=table5", "loss=sft", "seed=0").lrs.values())) == 1


@pytest.mark.slow
def test_own_files_are_named_by_the_user_and_never_shared_between_choice_and_test() -> None:
    """What is missing is asked for before anything runs; both experiments ask the file they are given."""
    words = ["data.path=my.jsonl", "model.student=a/b", "model.teacher=c/d"]
    for name in ("tune_own", "compare_own"):
        (asked,) = benchmarks_of(composed(f"experiment={name}", *words, "benchmark.path=x.jsonl").benchmark)
        assert asked.path == "x.jsonl"
    compare, tune = (
        composed(f"experiment={name}", *words, "benchmark.path=x.jsonl")
        for name in ("compare_own", "tune_own")
    )
    assert compare.max_tokens == tune.max_tokens == 1_000_000
    small = composed("experiment=compare_own", *words, "benchmark.path=x.jsonl", "scale=0.01")
    assert (small.max_tokens, small.benchmark.limit) == (10_000, 10)


@pytest.mark.slow
def test_the_share_of_hard_traces_is_that_of_the_problems_solutions() -> None:
    from distill.tiny import task

    shares = {}
    for share in (0.0, 0.25, 0.5, 1.0):
        examples = arithmetic.load(split="train", count=2000, operations=[4, 8], double=share)
        hard = {
            one.problem for one in examples if task.style_of(one.problem, one.completion or "") == "double"
        }
        assert all(task.is_correct(one.problem, one.completion or "") for one in examples)
        shares[share] = hard
        assert len(hard) / 2000 == pytest.approx(share, abs=0.03)
    assert not shares[0.0]
    assert shares[0.25] < shares[0.5] < shares[1.0]
    for wrong in (-0.1, 1.5, True):
        with pytest.raises(UserError, match=r"double=.* is no share"):
            arithmetic.load(split="train", count=5, operations=[4, 8], double=wrong)


@pytest.mark.slow
def test_validation_problems_are_neither_trained_on_nor_tested_on() -> None:
    tune, compare = composed("experiment=tune"), composed("experiment=compare")
    (asked,) = benchmarks_of(tune.benchmark)
    (tested,) = benchmarks_of(compare.benchmark)
    recipe = hydra.utils.instantiate(compare.data.recipe, _convert_="all")
    validation, test, train = (
        {example.problem for example in examples}
        for examples in (asked.problems(), tested.problems(), recipe.source())
    )
    assert (len(validation), len(test), len(train)) == (300, 500, 4096)
    assert not validation & test
    assert not validation & train
    for seed in range(3):  # whatever the seed and count
        for split in ("train", "test"):
            others = arithmetic.load(split=split, count=1000, operations=[4, 8], seed=seed)
            assert not validation & {example.problem for example in others}


@pytest.mark.slow
def test_the_test_problems_are_what_they_were_before_there_was_a_validation_split() -> None:
    """Or no measured number could be compared with the next."""
    import hashlib

    from distill.tiny import task

    def in_test(problem: str) -> bool:
        return int.from_bytes(hashlib.blake2b(problem.encode(), digest_size=4).digest(), "big") % 8 == 0

    import random

    for seed in (0, 1):  # the embedded pair was measured on the one, the benchmark asks the other
        rng, found = random.Random(f"{seed}/test/4/8"), []
        while len(found) < 500:
            count = rng.randint(4, 8)
            problem = rng.choice("0123456789")
            problem += "".join(rng.choice("+-*") + rng.choice("0123456789") for _ in range(count)) + "="
            if in_test(problem) and problem not in found:
                found.append(problem)
        assert task.problems(500, split="test", seed=seed) == found


@pytest.mark.slow
def test_a_range_without_validation_problems_is_refused() -> None:
    from distill.tiny import task

    with pytest.raises(ValueError, match="found no validation problem with 1 to 1 operations"):
        task.problems(1, split="validation", operations=(1, 1))


# --- the command line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["experiment=compar"],
            r"there is no such experiment; did you mean compare.*\(options: .*compare, .*tune",
        ),
        (["experiment=null"], r"there is no such experiment"),
        (["experiment=compare,tune"], r"an experiment is a sweep already: take one at a time"),
        (["experiment=compare", "loss=sft,dcd"], r"loss=dcd: there is no such loss; did you mean dcod"),
        (["experiment=compare", "sede=1"], r"there is no key 'sede'; did you mean seed"),
        (["scale=0.5"], r"there is no key 'scale'"),
        (["experiment=compare", "loss=asft"], r"lrs has no learning rate of loss=asft"),
        (["experiment=compare", "lr_from=nowhere"], r"lr_from=nowhere holds no learning_rates\.yaml"),
        (["experiment=compare", "lr_from=nowhere", "loss=sft,dcod", "seed=0,1"], "lr_from=nowhere holds no"),
        (["experiment=compare_smollm2", "scale=-1"], r"scale=-1 must be a positive number"),
    ],
)
def test_a_mistake_beside_an_experiment_is_one_sentence(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        check(*words)
    assert "\n" not in str(refused.value)
