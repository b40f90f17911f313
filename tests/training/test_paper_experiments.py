"""Tests of experiment=paper_*: what 2605.14071 prints, composed; and its plan against a count by hand."""

import re
from pathlib import Path
from typing import Any

import pytest
from composing import checked
from covering import some_of
from transformers import Qwen2Config

from distill.evaluation.benchmark import benchmarks_of
from distill.planning.plan import Plan, make_plan
from distill.training.setup import Setup

PAPER = Path(__file__).resolve().parents[3] / "shared" / "design" / "paper.md"
QWEN = "Qwen/Qwen2.5-{}-Instruct"
NAMES = [f"paper_{pair}{task}" for pair in ("7b_3b", "14b_3b", "14b_1.5b") for task in ("", "_gsm8k")]
LOSSES = [
    "sft", "forward_kl", "symmetric_kl", "todi", "on_policy_kd",
    "dcod", "dcod_kl", "dcod_symmetric_kl", "dcod_todi",
]  # fmt: skip
# The published shapes of Qwen2.5: hidden, layers, heads, key-value heads, intermediate, tied output matrix.
SHAPES = {"3b": (2048, 36, 16, 2, 11008, True), "7b": (3584, 28, 28, 4, 18944, False)}
ROWS = 151936


def composed(*words: str) -> Any:
    return checked("train", *words)


@pytest.mark.slow
@pytest.mark.parametrize("name", some_of(NAMES, "paper_7b_3b", "paper_14b_1.5b_gsm8k"))
def test_an_experiment_has_the_papers_recipe(name: str) -> None:
    cfg = composed(f"experiment={name}", "loss=dcod")
    teacher, student = re.fullmatch(r"paper_(\w+?)_([\d.]+b)(?:_gsm8k)?", name).groups()  # pyright: ignore
    assert (cfg.model.teacher, cfg.model.student) == (
        QWEN.format(teacher.upper()),
        QWEN.format(student.upper()),
    )
    assert (cfg.optimizer.lr, cfg.optimizer.weight_decay) == (3e-6, 0.01)
    assert (cfg.lr_scheduler.warmup_ratio, cfg.lr_scheduler.decay) == (0.05, "cosine")
    assert (cfg.trainer.gradient_clip_val, cfg.trainer.precision) == (1.0, "bf16-mixed")
    batch = cfg.data.batch_size, cfg.trainer.accumulate_grad_batches
    assert batch == ((2, 8) if name.endswith("gsm8k") else (1, 16))
    assert cfg.data.max_length == 2048
    assert "<understanding>" in cfg.data.teacher_prompt.system
    assert cfg.data.student_prompt == {"system": None, "user": "{problem}"}
    assert {one.prompt for one in benchmarks_of(cfg.benchmark)} == {cfg.data.student_prompt.user}
    params = cfg.hydra.sweeper.params
    assert params.seed.split(",")[0] == "42"
    assert len(params.seed.split(",")) == 5
    assert params.loss.split(",") == LOSSES
    assert composed(f"experiment={name}", "loss=on_policy_kd").data.epochs == 1


@pytest.mark.slow
def test_llama_learns_from_qwens_traces_by_losses_for_two_tokenizers() -> None:
    for name, path in (("paper_llama", "paper_7b_math"), ("paper_llama_gsm8k", "paper_7b_gsm8k")):
        cfg = composed(f"experiment={name}", "loss=dcod_spans")
        assert (cfg.model.student, cfg.model.teacher) == (
            "meta-llama/Llama-3.2-3B-Instruct",
            QWEN.format("7B"),
        )
        assert cfg.data.path == f"outputs/traces/{path}"
        assert cfg.optimizer.lr == 3e-6
        assert cfg.hydra.sweeper.params.loss == "sft,uld,dcod_spans"


@pytest.mark.slow
def test_temperatures_are_those_of_table_6() -> None:
    if not PAPER.is_file():
        pytest.skip(f"no {PAPER}")
    rows = re.findall(
        r"^\|\s*(?:Qwen2\.5 )?([\w.→ ]*?)\s*\| (SFT|symmetric KL) \| (\d) \|.*?\| (\d) \|",
        PAPER.read_text(),
        re.MULTILINE,
    )
    assert len(rows) == 6
    pair = ""
    for head, base, math, gsm8k in rows:
        pair = head.strip() or pair
        name = "paper_" + pair.lower().replace(" → ", "_")
        loss = "dcod" if base == "SFT" else "dcod_symmetric_kl"
        for experiment, tau in ((name, math), (f"{name}_gsm8k", gsm8k)):
            weight = composed(f"experiment={experiment}", f"loss={loss}").loss.token_weight
            assert (weight.temperature, weight.temperature_is) == (float(tau), "divisor"), (experiment, loss)


@pytest.mark.slow
def test_the_other_losses_keep_their_own_temperature() -> None:
    assert composed("loss=dcod").loss.token_weight.temperature == 1.0
    assert composed("loss=dcod", "loss.token_weight.temperature=3").loss.token_weight.temperature == 3
    assert composed("experiment=paper_14b_3b", "loss=dcod_kl").loss.token_weight.temperature == 1.0


@pytest.mark.slow
def test_the_temperature_is_tuned_on_problems_without_a_trace() -> None:
    cfg = composed("experiment=paper_tune", "loss=dcod", "loss.token_weight.temperature=4")
    (benchmark,) = benchmarks_of(cfg.benchmark)
    assert benchmark.source.keywords["split"] == f"train[{cfg.data.limit}:]"  # pyright: ignore
    assert benchmark.prompt == cfg.data.student_prompt.user


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with the configurations of Qwen2.5-3B and 7B, without weights or tokenizer."""
    found = {}
    for name, (hidden, layers, heads, keys, inner, tied) in SHAPES.items():
        found[name] = tmp_path_factory.mktemp("shapes") / name
        Qwen2Config(
            vocab_size=ROWS, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
            num_key_value_heads=keys, intermediate_size=inner, tie_word_embeddings=tied,
            max_position_embeddings=32768, architectures=["Qwen2ForCausalLM"],
        ).save_pretrained(found[name])  # fmt: skip
    return found


def planned(shapes: dict[str, Path], *words: str) -> Plan:
    own = [
        "experiment=paper_7b_3b", f"model.student={shapes['3b']}", f"model.teacher={shapes['7b']}", "seed=42",
        "benchmark=none", "estimate.traces=160", "estimate.prompt_tokens=100",
        "estimate.completion_tokens=700",
    ]  # fmt: skip
    return make_plan(Setup.from_overrides([*own, *words], here=False))


def body(name: str) -> tuple[int, int]:
    """Parameters of the layers' matrices, and of the model with its embedding, twice if untied."""
    hidden, layers, heads, keys, inner, tied = SHAPES[name]
    head = hidden // heads
    matrices = layers * (2 * hidden * hidden + 2 * hidden * keys * head + 3 * hidden * inner)
    return matrices, matrices + ROWS * hidden * (1 if tied else 2)


def forward(name: str, prompt: int, completion: int) -> float:
    """Products of one trace's forward pass: layers, attention to what comes before, and the output matrix."""
    hidden, layers, *_ = SHAPES[name]
    tokens = prompt + completion
    pairs = tokens * (tokens + 1) / 2
    return 2 * body(name)[0] * tokens + 4 * hidden * layers * pairs + 2 * hidden * ROWS * completion


@pytest.mark.slow
def test_a_plan_is_near_a_count_by_hand(shapes: dict[str, Path]) -> None:
    plan = planned(shapes, "loss=dcod")
    stages = {stage.name.split(",")[0].split(" (")[0]: stage for stage in plan.stages}
    assert stages["training"].flops == pytest.approx(3 * 160 * 3 * forward("3b", 100, 700), rel=0.1)
    instruction = len(composed("experiment=paper_7b_3b", "loss=dcod").data.teacher_prompt.system) / 4
    scored = stages["teacher reads traces"].flops
    assert scored == pytest.approx(160 * forward("7b", 100 + int(instruction), 700), rel=0.1)
    student = body("3b")[1]
    assert plan.memory["weights"] == pytest.approx(4 * student, rel=0.01)
    assert plan.memory["gradients"] == pytest.approx(4 * student, rel=0.01)
    assert plan.memory["optimizer"] == pytest.approx(8 * student, rel=0.01)
    assert stages["teacher reads traces"].memory > 2 * body("7b")[1]


@pytest.mark.slow
@pytest.mark.parametrize("loss", some_of(["dcod", "dcod_symmetric_kl", "on_policy_kd"], "dcod_symmetric_kl"))
def test_the_experiment_fits_the_gpus_that_the_docs_name(shapes: dict[str, Path], loss: str) -> None:
    assert max(stage.memory for stage in planned(shapes, f"loss={loss}").stages) < 80e9
    if loss == "on_policy_kd":  # holds the teacher
        return
    small = ["model.student_dtype=bfloat16", "model.gradient_checkpointing=true"]
    cached = ["loss.distribution.source=hidden_states"]
    assert max(stage.memory for stage in planned(shapes, f"loss={loss}", *small, *cached).stages) < 40e9
