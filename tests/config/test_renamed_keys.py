"""Tests of renamed keys: old keys in commands give errors with the new ones, old configs are translated."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from distill.config.flat import flat
from distill.config.overrides import check_overrides
from distill.config.renamed_keys import MOVED_FILES, RENAMED, new_key, read_described, read_flat, translate
from distill.errors import UserError

CONF = Path(__file__).resolve().parents[2] / "conf"
OLD_RUN = Path(__file__).resolve().parents[1] / "data_of_earlier_versions" / "runs" / "dcod" / "config.yaml"


def test_every_new_key_is_one_of_today_and_no_old_one_is() -> None:
    cfg = check_overrides(CONF, "train", [])
    for old, new in RENAMED.items():
        assert OmegaConf.select(cfg, old) is None
        parent, _, last = new.rpartition(".")
        if (CONF / new).is_dir():  # a group whose files name their own package
            continue
        assert last in (OmegaConf.select(cfg, parent) if parent else cfg)
        assert new_key(new) == new
    for new in MOVED_FILES.values():
        assert (CONF / f"{new}.yaml").is_file()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["ckpt=last"], "ckpt is now ckpt_path: say ckpt_path=last"),
        (["+ckpt=last"], "ckpt is now ckpt_path: say ckpt_path=last"),
        (["model.lr=1e-3"], "model.lr is now optimizer.lr: say optimizer.lr=1e-3"),
        (["-m", "model.lr=1e-3,1e-4"], "model.lr is now optimizer.lr: say optimizer.lr=1e-3,1e-4"),
        (["~schedule"], "schedule is now lr_scheduler: say ~lr_scheduler"),
        (
            ["schedule.warmup=0"],
            "schedule.warmup is now lr_scheduler.warmup_ratio: say lr_scheduler.warmup_ratio=0",
        ),
        (
            ["++schedule.decay=constant"],
            "schedule.decay is now lr_scheduler.decay: say lr_scheduler.decay=constant",
        ),
        (["benchmark.every=3"], "benchmark.every is now eval_every: say eval_every=3"),
        (
            ["model.checkpoint_activations=true"],
            "model.checkpoint_activations is now model.gradient_checkpointing: "
            "say model.gradient_checkpointing=true",
        ),
    ],
)
def test_an_old_key_is_answered_with_the_word_as_it_is_now(words: list[str], sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        check_overrides(CONF, "train", words)
    assert str(refused.value) == sentence


def test_an_old_key_among_the_words_of_a_smoke_test_is_found_before_anything_runs() -> None:
    with pytest.raises(UserError, match=r"^smoke\.overrides: model\.lr is now optimizer\.lr: say optimizer"):
        check_overrides(CONF, "score", ["model=none", "smoke.overrides=['model.lr=2e-5']"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "text", "message"),
    [
        ("experiment", "model:\n  lr: 1.0e-3\n", r"model\.lr is now optimizer\.lr: .*experiment/mine\.yaml"),
        ("experiment", "schedule:\n  warmup: 0\n", r"schedule is now lr_scheduler: "),
        ("experiment", "benchmark:\n  every: 3\n", r"benchmark\.every is now eval_every: "),
        ("experiment", "name: run_${model.lr}\n", r"model\.lr is now optimizer\.lr: .*still says model\.lr"),
        (
            "experiment",
            "hydra:\n  sweeper:\n    params:\n      model.lr: 1e-3,1e-4\n",
            r"experiment=mine: model\.lr is now optimizer\.lr: say optimizer\.lr=1e-3,1e-4",
        ),
        (
            "loss",
            "defaults:\n  - /objective@_here_\n  - _self_\n",
            r"/objective is now /shared/objective, as in `- /shared/objective@_here_`",
        ),
        (
            "model",
            "# @package _global_\ndefaults:\n  - /pair@model\n  - _self_\n",
            r"/pair is now /shared/pair",
        ),
    ],
)
def test_an_old_name_in_a_users_own_file_is_answered_too(
    tmp_path: Path, place: str, text: str, message: str
) -> None:
    shutil.copytree(CONF, tmp_path / "conf")
    head = "# @package _global_\n" if place == "experiment" else ""
    (tmp_path / "conf" / place / "mine.yaml").write_text(head + text)
    with pytest.raises(UserError, match=message) as refused:
        check_overrides(tmp_path / "conf", "train", [f"{place}=mine"])
    assert "\n" not in str(refused.value)


def test_a_configuration_of_an_earlier_version_is_todays_under_todays_names() -> None:
    old: dict[str, Any] = {
        "ckpt": None,
        "model": {"student": "a", "lr": 1e-3, "checkpoint_activations": False},
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": 1e-3},
        "schedule": {"_target_": "distill.schedule.Schedule", "warmup": 0.05, "floor": 0.1},
        "benchmark": {"every": 4, "limit": None},
        "loss": {"_target_": "distill.objective.Objective", "extra": {}},
    }
    new: dict[str, Any] = {
        "ckpt_path": None,
        "model": {"student": "a", "gradient_checkpointing": False, "compile": False},
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": 1e-3},
        "lr_scheduler": {
            "_target_": "distill.training.schedule.Schedule",
            "warmup_ratio": 0.05,
            "min_lr_ratio": 0.1,
        },
        "eval_every": 4,
        "benchmark": {"limit": None},
        "loss": {"_target_": "distill.objective.objective.Objective", "extra": {}},
    }
    assert translate(old) == new
    assert translate(new) == new
    # optimizer.lr= on the command line left model.lr without effect
    assert translate({"model": {"lr": 1.0}, "optimizer": {"lr": 2.0}}) == {"optimizer": {"lr": 2.0}}


# What a file of many runs' may be: whole sections are read on their own, where that says the same.
TEXTS = {
    "of an earlier version": OLD_RUN.read_text(encoding="utf-8"),
    "keys that are now in another section": "benchmark:\n  every: 4\n  limit: 2\nckpt: null\nseed: 1\n",
    "a key that is there under both names": "model:\n  lr: 1.0\noptimizer:\n  lr: 2.0\n",
    "a key added beside its sibling": "trainer:\n  devices: 1\ndata:\n  fields:\n    problem: q\n",
    "a section added": "checkpoint:\n  every: 3\nname: a\n",
    "a section added that is half there": "checkpoint:\n  every: 3\nteacher:\n  source: server\n",
    "a section twice": "seed: 1\nseed: 2\n",
    "a text of several lines": "name: 'a\n\nb: c'\nseed: 1\n",
    "nothing below": "loss: {}\nlogger: null\ndata:\n  path: [a, b]\n",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_file_read_by_sections_says_what_its_whole_text_does(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    whole = translate(yaml.safe_load(text))
    for _ in range(2):  # the second time from what was read before
        assert read_described(path) == whole
        assert read_flat(path) == dict(flat(whole))


def test_a_run_read_first_leaves_no_trace_in_the_next(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("checkpoint:\n  every: 3\ndata:\n  path: [a]\n")
    read_described(path)["data"]["path"].append("b")
    read_flat(path)["seed"] = 1
    assert read_flat(path)["data.path"] == read_described(path)["data"]["path"] == ["a"]
    assert "seed" not in read_flat(path)
