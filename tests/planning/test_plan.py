"""Tests of estimated costs of a run from its configuration, against actual models and logged runs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_training
import torch
import warm
from omegaconf import open_dict
from test_training import ROOT, arguments, run, train_py
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

import distill.teacher.completions
from distill.config.overrides import check_overrides
from distill.data.batch import collate
from distill.data.trace import Example, Trace
from distill.errors import UserError
from distill.models.find import find_model
from distill.models.flops import Work, cost_of
from distill.models.language_model import LanguageModel
from distill.models.lora import add_lora
from distill.planning import stages
from distill.planning.command import print_plan
from distill.planning.memory import training_memory
from distill.planning.plan import Plan, Stage, make_plan
from distill.planning.sweep import SweepPlan
from distill.tiny import task
from distill.training.setup import Setup

traces = test_training.traces  # the fixture


def configured(words: list[str]) -> Any:
    cfg = check_overrides(ROOT / "conf", "train", words)
    with open_dict(cfg):
        cfg.pop("hydra")
    return cfg


def planned(words: list[str]) -> Plan:
    return make_plan(Setup.from_overrides(words, here=False))


def stage(plan: Plan, name: str) -> Stage:
    return next(one for one in plan.stages if one.name.startswith(name))


def flops(folder: Path) -> dict[str, float]:
    return json.loads((folder / "summary.json").read_text())["flops"]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("rank", ["null", "4"])
def test_memory_is_what_a_real_step_holds(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, rank: str, precision: str
) -> None:
    words = [f"model.lora.rank={rank}", "optimizer.lr=1e-3", f"trainer.precision={precision}"]
    setup = Setup.from_overrides(arguments(tiny_pair, traces, tmp_path, *words))
    lm = find_model(str(tiny_pair[0]), key="model.student").load()
    if setup.lora:
        add_lora(lm, setup.lora, seed=0)
    _, found = training_memory(setup, rows=3, length=17)

    trained = [p for p in lm.model.parameters() if p.requires_grad]
    optimizer = setup.optimizer(trained)
    own = {p.untyped_storage().data_ptr() for p in lm.model.parameters()}
    kept: dict[int, tuple[torch.Tensor, int]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = tensor, storage.nbytes()
        return tensor

    lm.model.train()
    half = precision == "bf16-mixed"
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=half),
    ):
        states = lm.model.base_model(input_ids=torch.zeros(3, 17, dtype=torch.long)).last_hidden_state
    states.sum().backward()
    optimizer.step()
    gradients = [p.grad for p in trained if p.grad is not None]
    state = [value for kept_of in optimizer.state.values() for value in kept_of.values()]
    assert found["weights"] == sum(p.nbytes for p in lm.model.parameters())
    assert found["gradients"] == sum(gradient.nbytes for gradient in gradients)
    assert found["optimizer"] == sum(value.nbytes for value in state)
    activations = sum(size for at, (_, size) in kept.items() if at not in own)
    assert found["activations"] == pytest.approx(activations, rel=0.1)  # some views are copies there


@pytest.mark.slow
def test_another_optimizer_keeps_something_else(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    words = [
        "~optimizer.betas",
        "~optimizer.weight_decay",
        "~optimizer.fused",
        "optimizer._target_=torch.optim.SGD",
    ]
    setup = Setup.from_overrides(arguments(tiny_pair, traces, tmp_path, *words))
    _, found = training_memory(setup, rows=1, length=4)
    assert found["optimizer"] == 0
    assert found["gradients"] == found["weights"] > 0


GRADED = [
    "+data.recipe.grade._target_=distill.benchmarks.arithmetic.grade",
    "+data.recipe.grade._partial_=true",
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "more"),
    [
        ("sft", []),
        ("sft", ["model.lora.rank=2"]),
        ("dcod", ["trainer.accumulate_grad_batches=2"]),
        ("forward_kl", []),
        ("forward_kl", ["loss.distribution.source=hidden_states"]),
        ("dcod", ["data.teacher_prompt.user='####{problem}'"]),
        ("forward_kl", ["data.teacher_prompt.user='####{problem}'"]),
        ("opd", ["estimate.completion_tokens=16"]),
        ("grpo", ["estimate.completion_tokens=14", "data.fields.gold=gold", "data.batch_size=16", *GRADED]),
    ],
)
def test_flops_are_those_that_a_run_logs(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, loss: str, more: list[str]
) -> None:
    words = arguments(tiny_pair, traces, tmp_path, f"loss={loss}", *more)
    plan = planned(words)
    logged = flops(run(words, tmp_path / "run"))
    student = sum(one.flops for one in plan.stages if one.name.startswith(("training", "student writes")))
    live = sum(one.flops for one in plan.stages if one.name.startswith("…"))
    cached = sum(one.flops for one in plan.stages if one.name.startswith("teacher"))
    # What is known beforehand is exact; how long the student writes is not known, and some end before that.
    writes = loss in ("opd", "grpo")
    assert student == pytest.approx(logged["student"], rel=0.1 if writes else 1e-9)
    assert student >= 0.95 * logged["student"]
    assert live == pytest.approx(logged["teacher_live"], rel=0.05)
    assert cached == pytest.approx(logged["teacher_cached"], rel=0.05)
    if writes:
        assert stage(plan, "student writes").flops > 0.2 * stage(plan, "training").flops


@pytest.mark.exhaustive
def test_what_compact_reads_twice_is_counted(tiny_pair: tuple[Path, Path], tmp_path: Path) -> None:
    with (tmp_path / "traces.jsonl").open("w") as stream:
        for problem in task.problems(24, split="train", operations=(3, 3)):
            for style in ("single", "double"):
                text = task.write_solution(problem, style)
                record = {"problem": problem, "completion": text, "gold": task.answer(problem)}
                stream.write(json.dumps(record) + "\n")
    path = tmp_path / "traces.jsonl"
    words = [*arguments(tiny_pair, path, tmp_path, "data.fields.gold=gold", *GRADED), "trainer.max_steps=12"]
    plain, words = planned([*words, "loss=sft"]), [*words, "loss=compact", "loss.trace_weights.consistency=0"]
    plan = planned(words)
    logged = flops(run(words, tmp_path / "run"))["student"]
    assert stage(plan, "training").flops == pytest.approx(logged, rel=0.03)  # batches are of whole problems
    assert stage(plan, "training").flops > 1.2 * stage(plain, "training").flops


@pytest.mark.slow
def test_the_pass_that_weighs_traces_is_what_torch_counts(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    setup = Setup.from_overrides(arguments(tiny_pair, traces, tmp_path, "loss=compact"), here=False)
    own = [
        Trace(
            Example(str(number), f"{number // 2}+1=", gold="1"),
            np.ones(4, np.int32),
            np.ones(count, np.int32),
        )
        for number, count in enumerate((9, 7, 5, 12))
    ]
    lm = find_model(str(tiny_pair[0]), key="model.student").load()
    lm.model.set_attn_implementation("eager")  # whose products torch's counter knows
    assert setup.objective.trace_weights is not None
    with FlopCounterMode(display=False) as counter:
        replace(setup.objective.trace_weights, consensus=0.0).weights(collate(own), lm)
    work = stages._weighing(own)
    pairs = 4 * 17 * 17 - work.pairs  # the pairs that the causal mask leaves out
    expected = cost_of(lm.model, "", lm.vocab_size).forward(work + Work(pairs=pairs))
    assert counter.get_total_flops() == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
def test_the_teachers_writing_is_a_stage(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["loss=sft", "data.completions=teacher", "data.samples=2"]
    words = arguments(tiny_pair, traces, tmp_path, *words)
    lengths: list[int] = []
    real = distill.teacher.completions.generate

    def spy(*arguments: Any, **options: Any) -> Any:
        written = real(*arguments, **options)
        lengths.extend(map(len, written))
        return written

    monkeypatch.setattr(distill.teacher.completions, "generate", spy)
    logged = flops(run(words, tmp_path / "run"))["teacher_cached"]
    assert len(set(lengths)) > 5  # what ends early costs less
    mean = f"estimate.completion_tokens={round(sum(lengths) / len(lengths))}"
    assert stage(planned([*words, mean]), "teacher writes").flops == pytest.approx(logged, rel=0.05)

    writing = stage(planned([*words, "estimate.completion_tokens=16"]), "teacher writes")
    assert writing.disk == 4 * 16 * 192
    # Three batches of 64 rows, 16 tokens each: the weights once a token, and no more than a full cache.
    weights, cache = 4 * writing.parameters, 4 * 2 * 2 * 24 * 64 * (40 + 16)
    assert 3 * 16 * weights < writing.read < 3 * 16 * (weights + cache)


@pytest.mark.slow
def test_a_plan_is_printed_and_nothing_is_trained(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["benchmark=arithmetic", "benchmark.limit=4", "plan=true", "loss=on_policy_kd"]
    cfg = configured(arguments(tiny_pair, traces, tmp_path, *asked))
    folder = tmp_path / "run"
    folder.mkdir()
    print_plan(cfg)
    said = capsys.readouterr().out
    for part in ("arithmetic before", "arithmetic after", "training, 6 steps", "activations", "at the peak"):
        assert part in said
    assert not list(folder.iterdir())


@pytest.mark.slow
def test_configurations_alone_are_enough_and_the_machine_may_be_elsewhere(
    tiny_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for own in tiny_pair:
        (tmp_path / own.name).mkdir()
        shutil.copy(own / "config.json", tmp_path / own.name)

    def refuse(*arguments: Any) -> LanguageModel:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("distill.models.language_model.ModelSource.load", refuse)
    pair = tmp_path / "student", tmp_path / "teacher"
    words = ["loss=dcod", "trainer=gpu", "trainer.max_steps=6", "model.teacher_dtype=bfloat16"]
    words = arguments(pair, tmp_path / "nowhere.jsonl", tmp_path, *words)
    with pytest.raises(UserError, match=r"how many traces there are cannot be told.*estimate.traces="):
        planned(words)
    plan = planned([*words, "estimate.traces=100", "estimate.prompt_tokens=10"])
    held = AutoModelForCausalLM.from_pretrained(tiny_pair[1])
    scoring = stage(plan, "teacher reads")
    assert scoring.parameters == sum(p.numel() for p in held.parameters())
    assert scoring.memory > 2 * scoring.parameters  # in bf16
    longer = planned([*words, "estimate.traces=100", "estimate.prompt_tokens=40"])
    assert stage(longer, "training").flops > stage(plan, "training").flops
    assert longer.memory["activations"] > plan.memory["activations"]
    slower = planned([*words, "estimate.traces=100", "estimate.prompt_tokens=10", "estimate.tflops=150"])
    assert slower.hours(stage(slower, "training")) == 2 * plan.hours(stage(plan, "training"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("estimate.tflops=0", r"estimate.tflops=0 must be a positive number or null"),
        ("estimate.utilization=40", r"estimate.utilization=40 must be a number in \(0, 1\]"),
        (
            "model.teacher=null",
            r"loss=dcod needs the teacher's log-probs of the traces, and model.teacher is not set",
        ),
    ],
)
def test_what_makes_no_sense_is_said(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, word: str, complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        planned(arguments(tiny_pair, traces, tmp_path, "loss=dcod", word))


@pytest.mark.slow
def test_the_command_leaves_no_folder(tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path) -> None:
    words = arguments(tiny_pair, traces, tmp_path, "plan=true", "loss=dcod", f"dir={tmp_path / 'run'}")
    done = train_py(words)
    assert done.returncode == 0, done.stderr
    assert "teacher reads traces" in done.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_sweeps_plan_counts_what_is_cached_once_and_seeds_alike(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    words = arguments(tiny_pair, traces, tmp_path, "trainer.max_steps=6", "benchmark=arithmetic")
    words += ["benchmark.limit=4", "eval_every=2"]
    single = {loss: planned([*words, f"loss={loss}"]) for loss in ("dcod", "on_policy_kd")}
    whole = SweepPlan()
    for seed in range(3):
        for loss, plan in single.items():
            whole.add([*words, f"loss={loss}", f"seed={seed}"], lambda plan=plan: plan)
    assert list(whole.jobs.values()) == [3, 3]
    # The untrained student answers once for all jobs, as the second job of a real sweep says.
    names = {one.name for one, _ in whole.shared()}
    assert names == {"teacher reads traces (teacher_logprobs)", "arithmetic before"}
    assert len(whole.shared()) == 2
    hours = {loss: [(one.shared, plan.hours(one)) for one in plan.stages] for loss, plan in single.items()}
    once = sum(time for _, time in whole.shared())
    assert once > 0
    each = sum(time for own in hours.values() for cached, time in own if not cached)
    assert whole.hours() == pytest.approx(3 * each + once)
    # Asked after steps 2 and 4; after step 6 is the end.
    before, meanwhile = (stage(single["dcod"], f"arithmetic {when}") for when in ("before", "meanwhile, 2 ×"))
    assert meanwhile.flops == 2 * before.flops


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_sweep_is_planned_on_the_command_line_and_leaves_nothing(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    words = arguments(tiny_pair, traces, tmp_path, "experiment=compare", "data=traces", "seed=0,1")
    words += ["loss=sft,dcod", "plan=true", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    done = train_py(words)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("plan of the sweep") == 1
    rows = [line.split("│")[1:3] for line in done.stdout.splitlines() if line.startswith("│ loss=")]
    assert [[cell.strip() for cell in row] for row in rows] == [["loss=sft", "2"], ["loss=dcod", "2"]]
    assert [path.name for path in (tmp_path / "sweep").iterdir()] == ["multirun.yaml"]  # Hydra's own
    failed = train_py([*words, "model.student=nowhere"])
    assert failed.returncode == 1
    assert not list((tmp_path / "sweep").glob("*/error.txt"))


@pytest.mark.slow
def test_the_command_of_its_own_prints_the_same_plan(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    words = arguments(tiny_pair, traces, tmp_path, "loss=dcod", f"dir={tmp_path / 'run'}")
    done = warm.run(["-m", "distill.plan", *words])
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == train_py([*words, "plan=true"]).stdout
    assert "training, 6 steps" in done.stdout
    assert not (tmp_path / "run").exists()
