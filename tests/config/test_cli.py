"""Tests of the command line and configuration: suggestions for typos; every option composes and builds."""

import contextlib
import csv
import inspect
import os
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hydra.utils
import lightning
import pytest
import torch
from composing import checked
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

import distill.config.console
from distill.config.console import one_sentence_errors
from distill.config.values import check_values
from distill.errors import UserError
from distill.evaluation.benchmark import benchmarks_of
from distill.objective.objective import Objective
from distill.runs.loggers import CsvMetrics, wandb_logged_in, wandb_logger
from distill.training.inputs import check_settings
from distill.training.recipe import TraceRecipe
from distill.training.resume import resume_arguments
from distill.training.schedule import Schedule
from distill.training.trainer_keys import STRATEGY_KEYS

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"
OF_OTHER_COMMANDS = ("hydra", "shared", "engine", "writer_engine", "curation", "judge")
GROUPS = {
    folder.name: sorted(path.name.removesuffix(".yaml") for path in folder.glob("*.yaml"))
    for folder in sorted(CONF.iterdir())
    if folder.is_dir() and folder.name not in OF_OTHER_COMMANDS
}
OPTIONS = [
    f"{group}={option}"
    for group, options in GROUPS.items()
    for option in options
    if group != "experiment"  # test_experiments.py
]


def check(*words: str) -> DictConfig:
    return checked("train", *words)


# --- typos


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("loss=dcd", r"loss=dcd: there is no such loss; did you mean dcod or .*\(options: akl, asft, "),
        ("model=qwen1.5", r"did you mean .*qwen1\.5b"),
        ("trainer=gpus", r"did you mean gpu"),
        ("+seed=3", r"^\+seed=3: the key seed is there: say seed=3, without \+$"),
        ("data=gsm8", r"did you mean gsm8k"),
        ("benchmark=zzz", r"there is no such benchmark \(options: aime24, "),
        ("loss=sft,forward_kl,dcd", r"loss=dcd: .*did you mean dcod"),
        ("loss=choice(sft,forward_kl,dcd)", r"loss=dcd: .*did you mean dcod"),
        ("logger=[wandb,cvs]", r"logger=cvs: there is no such logger; did you mean csv"),
        ("logger=csv,[wandb,cvs]", r"logger=cvs: .*did you mean csv"),
        (
            "model=Qwen/Qwen2.5-0.5B",
            r"model=Qwen/Qwen2.5-0.5B: a hub id, .* goes into model.student= and model.teacher=",
        ),
        ("model=student.gguf", r"such as model.student=student.gguf"),
        ("data=my.jsonl", r"data=my.jsonl: a file or folder is named by .*data=traces data.path=my.jsonl"),
        ("benchmark=own/a.jsonl", r"benchmark=own/a.jsonl: .* benchmark=math500 benchmark.path=own/a.jsonl"),
        ("model=tyni", r"there is no such model; did you mean tiny"),
        ("loss=null", r"there is no such loss \(options"),
        ("loss=", r"there is no such loss \(options"),
        ("los=dcod", r"los=dcod: there is no key 'los'; did you mean loss"),
        ("trainr.max_steps=3", r"there is no key 'trainr\.max_steps'; did you mean trainer\.max_steps"),
        ("loss.token_wieght.bias=1", r"did you mean loss\.token_weight\.bias"),
        ("loss.token_weight.temprature=1", r"did you mean loss\.token_weight\.temperature"),
        ("optimizer.learning_rate=1", r"did you mean optimizer\.lr"),
        ("model.studnet=x", r"did you mean model\.student"),
        ("data.batchsize=3", r"did you mean data\.batch_size"),
        ("max_steps=3", r"did you mean trainer\.max_steps"),
        ("seed_=1", r"did you mean seed"),
        ("~optimizer.lrr", r"there is no key 'optimizer\.lrr'; did you mean optimizer\.lr"),
        ("sede=0,1", r"sede=0,1: there is no key 'sede'; did you mean seed"),
        ("zzzzqqq=1", r"there is no key 'zzzzqqq'; python train\.py --cfg job shows all"),
        ("data.path=a=b", r"the command line does not parse"),
        ("loss=[", r"the command line does not parse"),
        ("=3", r"=3"),
        ("seed=interval(0,1)", r"seed=interval"),
    ],
)
def test_a_typo_is_answered_with_the_nearest_names(word: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        check(word)
    assert "\n" not in str(refused.value)


def test_a_short_name_is_answered_with_the_key_that_ends_in_it() -> None:
    with pytest.raises(UserError, match=r"did you mean .*(model|optimizer)\.lr"):
        check("lr=3")


@pytest.mark.slow
def test_a_typo_behind_right_options_is_found_too_and_a_key_of_another_option_is_none() -> None:
    with pytest.raises(
        UserError, match=r"loss\.rollouts\.fracton=1: .*did you mean loss\.rollouts\.fraction"
    ):
        check("loss=on_policy_kd", "seed=1", "loss.rollouts.fracton=1")
    assert check("loss=on_policy_kd", "loss.rollouts.fraction=1").loss.rollouts.fraction == 1
    with pytest.raises(UserError, match=r"there is no key 'data\.path'"):
        check("data=arithmetic", "data.path=x")
    assert check("data=gsm8k", "data.path=x").data.path == "x"


@pytest.mark.slow
def test_a_sweep_over_all_options_of_a_group_is_let_through() -> None:
    """Hydra's own `glob`."""
    assert check("-m", "loss=glob(*)").loss


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["data.limit=128,256"], "${data.limit}"),
        (["optimizer.lr=1e-3,2e-3", "seed=0,1"], "${optimizer.lr}"),
        (["benchmark=arithmetic,svamp"], "${hydra:runtime.choices.benchmark}"),
        (["data.limit=128,256", "hydra.sweep.subdir=${name}_${data.limit}"], None),
        (["loss=sft,dcod", "data=arithmetic,steps"], None),
        (["data.limit=128,256", "hydra.sweep.subdir=${hydra:job.num}"], None),
    ],
)
def test_jobs_of_a_sweep_have_folders_of_their_own(words: list[str], key: str | None) -> None:
    words = ["-m", "experiment=compare", "loss=sft", "seed=0", *words]
    if key is None:
        checked("train", *words)
        return
    with pytest.raises(UserError) as caught:
        checked("train", *words)
    assert "would have the same folder, tiny_arithmetic_sft_seed0, so that one of them" in str(caught.value)
    assert f"'hydra.sweep.subdir=${{name}}_{key}'" in str(caught.value)


@pytest.mark.slow
def test_what_is_right_is_let_through_as_a_sweeps_first_job() -> None:
    cfg = check("-m", "loss=sft,dcod", "seed=range(3,6)", "trainer.max_steps=choice(7,8)", "--cfg", "job")
    assert cfg.loss.token_loss._target_.endswith("cross_entropy")
    assert "level" not in cfg.loss.token_weight
    assert cfg.seed == 3
    assert cfg.trainer.max_steps == 7
    cfg = check(
        "logger=[csv]",
        "trainer.num_nodes=2",
        "data.student_prompt.user='Q: {problem}'",
        "model.teacher=null",
    )
    assert list(cfg.logger) == ["csv"]
    assert cfg.trainer.num_nodes == 2
    assert cfg.data.student_prompt.user == "Q: {problem}"
    assert cfg.model.teacher is None


def test_a_run_may_have_no_logger() -> None:
    cfg = check("logger=[]")
    assert not cfg.get("logger")  # which is what training asks


@pytest.mark.slow
def test_a_model_brings_its_data_unless_the_user_names_another() -> None:

    check("model=qwen1.5b")
    assert HydraConfig.get().runtime.choices["data"] == "gsm8k"
    check("model=qwen1.5b", "data=traces", "trainer=cpu")
    assert HydraConfig.get().runtime.choices["data"] == "traces"
    assert HydraConfig.get().runtime.choices["trainer"] == "cpu"
    assert HydraConfig.get().runtime.choices["benchmark"] == "gsm8k"


@pytest.mark.slow
def test_resuming_a_sweep_is_refused_and_a_new_run_resumes_nothing() -> None:
    assert resume_arguments(check(), []) == []
    with pytest.raises(UserError, match=r"ckpt_path=last resumes one run: leave -m out"):
        resume_arguments(check("ckpt_path=last"), ["-m", "ckpt_path=last"])


def test_a_users_mistake_exits_with_one_an_interrupt_with_130_and_a_defect_keeps_its_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as left, one_sentence_errors():
        raise UserError("name the file")
    assert left.value.code == 1
    assert capsys.readouterr().err == "error: name the file\n"
    with pytest.raises(SystemExit) as left, one_sentence_errors():
        raise KeyboardInterrupt
    assert left.value.code == 130
    with pytest.raises(ZeroDivisionError), one_sentence_errors():
        raise ZeroDivisionError


def train_py(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", str(ROOT / "train.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, cwd=cwd)


@pytest.mark.slow
def test_help_prints_every_group_with_its_options_in_no_time(tmp_path: Path) -> None:
    began = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = train_py("--help", cwd=tmp_path)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - began < 4  # torch alone takes longer
    assert done.returncode == 0, done.stderr
    for group, options in GROUPS.items():
        assert f"\n{group}: {', '.join(options)}\n" in done.stdout
        assert f"\n  {group} " in done.stdout  # and what it is for
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_whole_configuration_can_be_printed_and_leaves_nothing_behind(tmp_path: Path) -> None:
    done = train_py("--cfg", "job", "loss=on_policy_kd", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    cfg = OmegaConf.create(done.stdout)
    assert cfg.loss.rollouts.fraction == 0.5
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["loss=dcd"],
        ["-m", "loss=sft,dcod,dcd"],
        ["sed=1"],
        ["sed"],
        ["~benchmark"],
        ["model.student=17"],  # found where torch is loaded
    ],
)
def test_a_mistake_prints_no_traceback_and_exits_with_one(tmp_path: Path, words: list[str]) -> None:
    done = train_py(*words, "logger=csv", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip()
    assert "Traceback" not in done.stderr
    assert "HYDRA_FULL_ERROR" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert not list(tmp_path.glob("**/metrics.csv"))


# --- every option composes and builds


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_resolves(option: str) -> None:
    cfg = check(option)
    group, _, name = option.partition("=")
    resolved: Any = OmegaConf.to_container(
        OmegaConf.masked_copy(cfg, [k for k in cfg if k != "hydra"]), resolve=True
    )
    assert isinstance(resolved, dict)
    packages = {"teacher_prompt": "data.teacher_prompt"}  # of groups that say theirs themselves
    assert OmegaConf.select(cfg, packages.get(group, group)) is not None
    assert {
        "seed",
        "ckpt_path",
        "name",
        "runs",
        "dir",
        "cache",
        "optimizer",
        "lr_scheduler",
        "checkpoint",
    } <= set(resolved)
    if group in ("model", "data", "loss"):
        assert name in str(resolved["name"])
    check_values(cfg)
    check_settings(resolved)


def build(node: Any) -> Any:
    return hydra.utils.instantiate(node, _convert_="all")


@pytest.mark.parametrize("option", GROUPS["loss"])
def test_every_loss_builds(option: str) -> None:
    objective = build(check(f"loss={option}").loss)
    assert isinstance(objective, Objective)
    on_policy = {"on_policy_kd", "opd", "opsd", "iw_opd", "minillm", "distillm", "distillm2", "gold"}
    on_policy |= {"grpo", "dr_grpo", "dapo", "opd_grpo", "opd_right", "reopd", "sdft"}
    assert objective.on_policy == (option in on_policy)


@pytest.mark.slow
@pytest.mark.parametrize("option", GROUPS["data"])
def test_every_data_recipe_builds_and_takes_its_settings_from_the_keys_beside_it(option: str) -> None:
    cfg = check(f"data={option}", "data.student_prompt.user='Q {problem}'", "data.limit=5")
    recipe = build(cfg.data.recipe)
    assert isinstance(recipe, TraceRecipe)
    assert recipe.student_prompt.user == "Q {problem}"
    assert recipe.source.keywords["count" if option in ("arithmetic", "steps") else "limit"] == 5
    assert recipe.completions == cfg.data.get("completions", "dataset")
    assert recipe.sampling is not None
    assert recipe.sampling.max_new_tokens == cfg.data.max_new_tokens
    published = {"limo", "openr1_math", "openthoughts", "s1k"}  # whose answers are of many kinds
    # Nobody knows how to judge any user's answers.
    assert (recipe.grade is None) == (option in {"traces", *published})
    assert {"batch_size", "epochs", "layout", "token_budget", "max_new_tokens"} <= set(cfg.data)
    inspect.signature(recipe.source.func).bind(**recipe.source.keywords)


@pytest.mark.slow
@pytest.mark.parametrize("option", GROUPS["benchmark"])
def test_every_benchmark_builds(option: str) -> None:
    found = benchmarks_of(
        check(f"benchmark={option}", "benchmark.limit=3", "benchmark.max_new_tokens=7").benchmark
    )
    names = [benchmark.name for benchmark in found]
    suites = {"suite": 8, "paper_math": 4, "paper_gsm8k": 1}
    suites |= {f"{name}_instructed": suites[name] for name in ("paper_math", "paper_gsm8k")}
    assert names == ([] if option == "none" else [option]) or len(names) == suites[option]
    for benchmark in found:
        assert benchmark.limit == 3
        assert benchmark.sampling.max_new_tokens == 7
        assert (benchmark.samples > 1) == (benchmark.sampling.temperature > 0)
        source: Any = benchmark.source
        inspect.signature(source.func).bind(**source.keywords, path=None, limit=3)


@pytest.mark.slow
def test_settings_of_all_benchmarks_go_before_their_own() -> None:
    words = [
        "benchmark=[gsm8k,aime24]",
        "benchmark.samples=4",
        "benchmark.temperature=0.5",
        "benchmark.seed=3",
    ]
    gsm8k, aime24 = benchmarks_of(check(*words, "benchmark.path={aime24: x.jsonl}").benchmark)
    assert (gsm8k.name, gsm8k.samples, gsm8k.sampling.temperature, gsm8k.path) == ("gsm8k", 4, 0.5, None)
    assert (aime24.name, aime24.samples, aime24.sampling.temperature, aime24.path) == (
        "aime24",
        4,
        0.5,
        "x.jsonl",
    )
    assert gsm8k.sampling.max_new_tokens < aime24.sampling.max_new_tokens  # their own
    (alone,) = benchmarks_of(
        check("benchmark=gsm8k", "benchmark.path=y.jsonl", "benchmark.gsm8k.limit=5").benchmark
    )
    assert (alone.path, alone.limit, alone.seed) == ("y.jsonl", 5, 0)


@pytest.mark.slow
def test_data_and_benchmark_of_one_name_ask_in_the_same_words() -> None:
    for name in sorted({*GROUPS["data"]} & {*GROUPS["benchmark"]}):
        cfg = check(f"data={name}", f"benchmark={name}")
        assert cfg.data.student_prompt.user == cfg.benchmark[name].prompt


@pytest.mark.slow
def test_the_embedded_training_and_test_problems_share_none() -> None:
    cfg = check("data=arithmetic", "benchmark=arithmetic")
    train = {example.problem for example in build(cfg.data.recipe).source()}
    (benchmark,) = benchmarks_of(cfg.benchmark)
    test = {example.problem for example in benchmark.problems()}
    assert len(train) == cfg.data.limit
    assert len(test) == 500
    assert not train & test


@pytest.mark.slow
@pytest.mark.parametrize("option", GROUPS["model"])
def test_every_model_option_says_the_same_things_and_its_optimizer_builds(option: str) -> None:
    cfg = check(f"model={option}")
    assert set(cfg.model) == set(check("model=tiny").model)
    assert cfg.model.trust_remote_code is False
    optimizer = build(cfg.optimizer)([torch.nn.Parameter(torch.zeros(1))])
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.param_groups[0]["lr"] == cfg.optimizer.lr
    assert isinstance(build(cfg.lr_scheduler), Schedule)


@pytest.mark.parametrize("option", GROUPS["trainer"])
def test_every_trainer_option_is_an_argument_of_lightnings_trainer_or_of_a_strategy(option: str) -> None:
    known = {*inspect.signature(lightning.Trainer.__init__).parameters, *STRATEGY_KEYS}
    assert set(check(f"trainer={option}").trainer) <= known


# --- metrics.csv


def read(folder: Path) -> tuple[list[str], list[list[str]]]:
    with (folder / "metrics.csv").open(newline="") as stream:
        header, *rows = list(csv.reader(stream))
    return header, rows


def test_metrics_are_one_row_a_step_with_columns_as_they_come(tmp_path: Path) -> None:
    logger = CsvMetrics(tmp_path)
    logger.log_metrics({"gsm8k/accuracy": 0.25}, step=0)
    logger.log_metrics({"train/loss": 2.0, "epoch": 0}, step=1)
    logger.log_metrics({"train/lr": 0.1}, step=1)
    logger.log_metrics({"train/loss": 1.5, "train/lr": 0.2}, step=2)
    logger.save()
    assert read(tmp_path) == (
        ["step", "gsm8k/accuracy", "train/loss", "train/lr"],
        [["0", "0.25", "", ""], ["1", "", "2.0", "0.1"], ["2", "", "1.5", "0.2"]],
    )
    logger.log_metrics({"gsm8k/accuracy": 0.5}, step=2)  # a written row, completed later
    logger.log_metrics({"new": 1.0}, step=3)
    logger.finalize("success")
    assert read(tmp_path)[0] == ["step", "gsm8k/accuracy", "train/loss", "train/lr", "new"]
    assert read(tmp_path)[1][2:] == [["2", "0.5", "1.5", "0.2", ""], ["3", "", "", "", "1.0"]]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_metrics_reach_the_file_without_being_asked_and_none_twice(tmp_path: Path) -> None:
    logger = CsvMetrics(tmp_path)
    for step in range(120):
        logger.log_metrics({"x": float(step)}, step=step)
    _, rows = read(tmp_path)
    assert len(rows) >= 50
    logger.save()
    logger.save()
    assert [row[0] for row in read(tmp_path)[1]] == [str(step) for step in range(120)]


def test_a_resumed_run_goes_on_behind_its_checkpoints_step(tmp_path: Path) -> None:
    first = CsvMetrics(tmp_path)
    for step in range(7):
        first.log_metrics({"x": float(step), "y": 1.0}, step=step)
    first.save()
    resumed = CsvMetrics(tmp_path)
    resumed.forget_after(4)
    for step in (5, 6, 7):
        resumed.log_metrics({"x": 10.0 * step, "z": 2.0}, step=step)
    resumed.save()
    header, rows = read(tmp_path)
    assert header == ["step", "x", "y", "z"]
    assert [row[0] for row in rows] == [str(step) for step in range(8)]
    assert [float(row[1]) for row in rows] == [0, 1, 2, 3, 4, 50, 60, 70]
    assert rows[4] == ["4", "4.0", "1.0", ""]
    assert rows[5] == ["5", "50.0", "", "2.0"]


def test_rows_that_were_not_yet_written_are_forgotten_too(tmp_path: Path) -> None:
    logger = CsvMetrics(tmp_path)
    for step in range(5):
        logger.log_metrics({"x": float(step)}, step=step)
    logger.forget_after(2)
    logger.log_metrics({"x": 9.0}, step=3)
    logger.save()
    logger.log_metrics({"x": 8.0}, step=4)
    logger.save()
    assert read(tmp_path)[1] == [["0", "0.0"], ["1", "1.0"], ["2", "2.0"], ["3", "9.0"], ["4", "8.0"]]


def test_a_file_that_was_cut_anywhere_by_a_kill_is_read_up_to_its_last_whole_row(tmp_path: Path) -> None:
    logger = CsvMetrics(tmp_path)
    for step in range(8, 13):
        logger.log_metrics({"x": step + 0.5, "y": 1.25}, step=step)
    logger.save()
    path = tmp_path / "metrics.csv"
    whole = path.read_bytes()
    header = whole.index(b"\n") + 1
    for size in range(header, len(whole)):
        path.write_bytes(whole[:size])
        complete = whole[:size].count(b"\n") - 1
        resumed = CsvMetrics(tmp_path)
        resumed.forget_after(8 + complete - 1)
        resumed.save()
        assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[: complete + 1]), size


# --- Weights & Biases


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """What wandb.init was called with; no run is started, and no key is at hand."""
    import wandb

    calls: list[dict[str, Any]] = []

    def init(**options: Any) -> Any:
        calls.append(options)
        return SimpleNamespace(id=options["id"], mode=options["mode"])

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    return calls


def start(folder: Path) -> None:
    wandb_logger(str(folder), project="distill", group=None, name="run")


@pytest.mark.slow
def test_without_a_login_a_run_is_offline_and_with_one_online(
    started: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    start(tmp_path)
    monkeypatch.delenv("WANDB_API_KEY")
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine example.com login me password x\n")
    netrc.chmod(0o600)
    start(tmp_path)
    netrc.write_text("machine api.wandb.ai login user password x\n")
    start(tmp_path)
    netrc.write_text("machine api.wandb.ai login\n\nnonsense {\n")
    start(tmp_path)
    assert [call["mode"] for call in started] == ["offline", "online", "offline", "online", "offline"]


@pytest.mark.slow
def test_a_wandb_that_cannot_be_reached_is_logged_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import wandb

    modes: list[str] = []

    def init(**options: Any) -> Any:
        modes.append(options["mode"])
        if options["mode"] == "online":
            raise wandb.errors.CommError("no route to host\nand more")
        return SimpleNamespace(id="x", name="x", entity=None, dir=str(tmp_path), config={})

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setenv("WANDB_MODE", "online")
    with contextlib.suppress(AttributeError):  # Lightning asks more of a run than this stand-in has
        wandb_logger(str(tmp_path), "p", None, "n")
    assert modes == ["online", "offline"]
    assert "W&B cannot be reached (no route to host): this run is logged offline" in capsys.readouterr().out
    monkeypatch.setenv("WANDB_MODE", "disabled")

    def refuse(**options: Any) -> Any:
        raise ValueError("1 validation error for Settings\nproject")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(UserError, match=r"logger.wandb: 1 validation error for Settings$"):
        wandb_logger(str(tmp_path), "p", None, "n")


def test_a_netrc_file_in_another_place_counts_as_wandb_counts_it(
    started: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "elsewhere"
    netrc.write_text("machine api.wandb.ai login user password x\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert wandb_logged_in()


@pytest.mark.parametrize("mode", ["offline", "online", "disabled"])
@pytest.mark.parametrize("key", [True, False])
def test_the_users_mode_has_the_last_word(
    started: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, key: bool
) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    start(tmp_path)
    assert [call["mode"] for call in started] == [mode]


def test_a_folder_keeps_its_run_and_another_folder_has_another(
    started: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (tmp_path / "a", tmp_path / "b" / ".." / "a", tmp_path / "b"):
        start(folder)
    ids = [call["id"] for call in started]
    assert ids[0] == ids[1] != ids[2]
    assert [call["resume"] for call in started] == [None] * 3
    monkeypatch.setenv("WANDB_MODE", "online")
    start(tmp_path / "a")
    assert started[-1]["id"] == ids[0]
    assert started[-1]["resume"] == "allow"


@pytest.mark.parametrize("option", GROUPS["logger"])
def test_every_logger_builds(option: str, started: list[dict[str, Any]], tmp_path: Path) -> None:
    if option in ("tensorboard", "mlflow"):
        pytest.importorskip(option, reason=f"distill[{option}] is not installed")
    cfg = check(f"logger={option}", f"dir={tmp_path}", f"runs={tmp_path}", "seed=7")
    (node,) = cfg.logger.values()
    logger = build(node)
    assert isinstance(logger, lightning.pytorch.loggers.Logger)
    if option == "wandb":
        assert started[0]["name"] == "tiny_arithmetic_dcod_seed7"
        assert started[0]["dir"] == str(tmp_path)


def test_a_logger_asks_nothing_over_the_network(
    started: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    def forbidden(*args: Any, **options: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    start(tmp_path)
    assert not wandb_logged_in()


def test_failed_jobs_are_none_before_a_sweep() -> None:
    assert distill.config.console.failed_jobs == []
