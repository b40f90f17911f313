"""Tests that a configuration is the same where tests compose it from what they have composed before."""

import copy
from pathlib import Path

import composing
import pytest
from hydra import compose, initialize_config_dir
from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.base import Metadata


def composed(conf: Path, *words: str) -> str:
    with initialize_config_dir(str(conf), version_base="1.3"):
        return OmegaConf.to_yaml(compose("train", list(words), return_hydra_config=True))


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Hydra and OmegaConf as they are installed, until `undo`."""
    monkeypatch.setattr(composing._Files, "load_config", composing._load_config)
    monkeypatch.setattr(config_loader_impl, "create_defaults_list", composing.create_defaults_list)
    monkeypatch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", composing._compose)
    monkeypatch.setattr(OverridesParser, "parse_rule", composing._parse_rule)
    monkeypatch.delattr(Metadata, "__deepcopy__")
    return monkeypatch


@pytest.mark.slow
def test_options_and_values_are_those_that_hydra_composes(plain: pytest.MonkeyPatch) -> None:
    lines = [
        ("model=tiny", "loss=dcod", "optimizer.lr=1e-3", "seed=1"),
        ("model=tiny", "loss=dcod", "optimizer.lr=1e-5", "+hydra.job.env_set.A=b", "loss.normalize=weights"),
        ("loss=sft", "benchmark=[math500,aime24]", "logger=[csv,wandb]", "~optimizer.lr"),
    ]
    expected = [composed(composing.CONF, *words) for words in lines]
    plain.undo()
    for _ in range(2):  # composed, and taken from what was
        assert [composed(composing.CONF, *words) for words in lines] == expected


def test_a_mistake_is_a_mistake_each_time() -> None:
    for words in (["loss=no_such_loss"], ["+loss=sft"], ["nothing=1"]):
        for _ in range(2):
            with pytest.raises(HydraException):
                composed(composing.CONF, *words)


def test_what_a_test_changes_is_its_own_alone() -> None:
    before = composed(composing.CONF, "loss=sft")
    with initialize_config_dir(str(composing.CONF), version_base="1.3"):
        cfg = compose("train", ["loss=sft"])
        copied = copy.deepcopy(cfg)
        cfg.optimizer.lr = 7
        OmegaConf.set_readonly(cfg.data, True)
    assert copied.optimizer.lr != 7
    assert not OmegaConf.is_readonly(copied.data)
    assert composed(composing.CONF, "loss=sft") == before


def test_a_folder_of_a_users_own_is_read_again_when_it_changes(tmp_path: Path) -> None:
    root, option = tmp_path / "train.yaml", tmp_path / "loss" / "mine.yaml"
    option.parent.mkdir()
    root.write_text("defaults: [{loss: mine}, _self_]\n")
    for value in (1, 2):
        option.write_text(f"value: {value}\n")
        assert f"\n  value: {value}\n" in "\n" + composed(tmp_path)
