"""Tests of every preset in `conf/loss/`: its description, and that it trains."""

import csv
import functools
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from covering import some_of
from test_training import run

from distill.generation.decode import generate
from distill.generation.sampling import Sampling
from distill.models.find import find_model
from distill.models.language_model import LanguageModel
from distill.objective.preset_table import papers, table
from distill.objective.stored_presets import stored_table
from distill.tiny import task

ROOT = Path(__file__).resolve().parents[2]
PRESETS = sorted(path.stem for path in (ROOT / "conf" / "loss").glob("*.yaml"))
WITHOUT_A_PAPER = {"sft", "tis"}
# DCOD with other parameters of its weight, which tests of the weight cover.
OTHER_PARAMETERS = {"dcod_tau2", "dcod_tau4", "dcod_clip_exp"}
# A policy gradient's value is no measure of anything; its gradient is the reverse KL's.
BY_GRADIENT = {"opd", "iw_opd", "opd_right"}
# Nor is an advantage's; the rewards must rise.
BY_REWARD = {"grpo", "dr_grpo", "dapo", "opd_grpo"}
# Runs whose metrics differ; drawing them takes as long as their steps.
DRAWN = {"dcod", "on_policy_kd", "validity", "minillm"}
# Those whose rollouts, signals or gradients come about in their own way; the others run with --all-cases.
OFTEN = DRAWN | {"forward_kl", "opd", "grpo", "uld", "compact", "taid", "t3s"}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_names_its_paper_in_its_first_line(preset: str) -> None:
    path = ROOT / "conf" / "loss" / f"{preset}.yaml"
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    assert preset in WITHOUT_A_PAPER or papers(path).split("[")[1][:10] in first


def test_the_stored_table_is_of_todays_presets(tmp_path: Path) -> None:
    assert stored_table(ROOT / "conf") is not None, "run python -m distill.objective.preset_table"
    for folder in ("loss", "shared"):
        shutil.copytree(ROOT / "conf" / folder, tmp_path / folder)
    assert stored_table(tmp_path) == stored_table(ROOT / "conf")
    (tmp_path / "loss" / "mine.yaml").write_text("rollouts: dataset")
    assert stored_table(tmp_path) is None


@pytest.mark.slow
def test_the_stored_table_is_what_would_be_made() -> None:
    assert stored_table(ROOT / "conf") == table(ROOT / "conf")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def train(preset: str, folder: Path, cache: Path, *words: str) -> list[dict[str, str]]:
    """Twenty steps of the embedded student, all on the same traces; the rows of its metrics."""
    common = [
        f"loss={preset}",
        f"cache={cache}",
        "benchmark=none",
        "logger=csv",
        "data.limit=24",
        "data.batch_size=24",
        "data.max_new_tokens=48",
        "data.operations=[2,4]",
        "trainer.max_steps=20",
        "lr_scheduler.decay=constant",
        "optimizer.lr=5e-4",
    ]
    if preset == "t3s":
        common.append("model.pilot=package:distill/tiny/teacher")
    if preset == "compact":
        common += ["data.samples=2", "data.limit=12"]
    run([*common, *words], folder, picture=preset in DRAWN)
    with (folder / "metrics.csv").open(newline="") as stream:
        return [row for row in csv.DictReader(stream) if row["train/loss"]]


def reverse_kl_of_own_completions(student: LanguageModel, teacher: LanguageModel) -> float:
    """Σ_v Q (log Q - log P), averaged over what the student writes on many prompts."""
    problems = task.problems(32, split="train", operations=(2, 4))
    prompts = [student.tokenizer(problem).input_ids for problem in problems]
    sampling = Sampling(temperature=1.0, max_new_tokens=48)
    total, count = 0.0, 0
    for prompt, written in zip(prompts, generate(student, prompts, sampling, seed=0), strict=True):
        ids = torch.tensor([[*prompt, *written]])
        mask = torch.zeros(1, ids.shape[1] - 1, dtype=torch.bool)
        mask[0, len(prompt) - 1 :] = True
        with torch.no_grad():
            log_q, log_p = (
                torch.log_softmax(head.hidden @ head.weight.T, -1)
                for head in (lm.completion_head(ids, mask) for lm in (student, teacher))
            )
        total += float((log_q.exp() * (log_q - log_p)).sum())
        count += len(written)
    return total / count


@functools.cache
def parts(preset: str) -> dict[str, str]:
    """What a preset is made of, without the numbers; of the files, for composing them all takes seconds."""
    own = yaml.safe_load((ROOT / "conf" / "loss" / f"{preset}.yaml").read_text(encoding="utf-8"))
    found: dict[str, str] = {}
    for base in own.pop("defaults", []):
        if base in PRESETS:
            found |= parts(base)
        elif base.endswith("@rollouts"):
            found["rollouts"] = base
    for key in ("rollouts", "token_loss", "token_weight", "control", "teacher", "teacher_sees"):
        value = own.get(key)
        if isinstance(value, dict):
            value = value.get("_target_")
        if value is not None:
            found[key] = value
    if "extra" in own:
        found["extra"] = str([term["token_loss"]["_target_"] for term in own["extra"].values()])
    return found


@pytest.mark.slow
@pytest.mark.covering(1, axes=parts)
@pytest.mark.parametrize(
    "preset",
    some_of([preset for preset in PRESETS if preset not in OTHER_PARAMETERS], *OFTEN),
)
def test_a_preset_lowers_its_own_loss(preset: str, tmp_path: Path, cache: Path) -> None:
    # One sample a token says little about the whole distribution: more of them, and smaller steps.
    size = 48 if preset == "opd_right" else 96
    gently = ["optimizer.lr=1e-4", f"data.limit={size}", f"data.batch_size={size}"]
    few = ["optimizer.lr=3e-4", "data.limit=8", "loss.rollouts.samples=16", "data.batch_size=128"]
    words = gently if preset in BY_GRADIENT else few if preset in BY_REWARD else []
    steps = 12 if preset in BY_REWARD | {"validity", "minillm"} else 20  # enough, and half the time
    rows = train(preset, tmp_path / "run", cache, *words, f"trainer.max_steps={steps}")
    assert len(rows) == steps
    losses = [float(row["train/loss_main"] if preset == "minillm" else row["train/loss"]) for row in rows]
    if preset in BY_GRADIENT:
        teacher = find_model("package:distill/tiny/teacher", key="model.teacher").load()
        before = find_model("package:distill/tiny/student", key="model.student").load()
        after = find_model(str(tmp_path / "run" / "student"), key="model.student").load()
        assert reverse_kl_of_own_completions(after, teacher) < 0.8 * reverse_kl_of_own_completions(
            before, teacher
        )
    elif preset in BY_REWARD:
        rewards = [float(row["rewards/mean"]) for row in rows]
        assert sum(rewards[-5:]) > sum(rewards[:5]) + 5 * 0.05
        assert all(0 <= float(row["rewards/equal_groups"]) <= 1 for row in rows)
    elif preset in ("on_policy_kd", "distillm", "distillm2"):  # whose steps are of two kinds
        own = [float(row["rollouts/tokens"]) > 0 for row in rows]
        assert any(own)
        assert not all(own)
        for kind in (True, False):
            mine = [loss for loss, is_own in zip(losses, own, strict=True) if is_own is kind]
            third = len(mine) // 3
            assert sum(mine[-third:]) < sum(mine[:third])
    else:
        assert sum(losses[-4:]) < sum(losses[:4])
