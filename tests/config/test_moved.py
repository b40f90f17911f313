"""Tests that names of earlier versions in YAML files and code still resolve."""

import importlib

import pytest
from omegaconf import OmegaConf

from distill.config.instantiate import build
from distill.config.moved import MOVED, new_name


@pytest.mark.parametrize("old", MOVED)
def test_every_old_name_leads_to_something_that_is_there(old: str) -> None:
    new = new_name(f"distill.{old}")
    assert new_name(new) == new  # and today's name is not taken for an old one
    try:
        importlib.import_module(new)
    except ModuleNotFoundError:
        module, _, name = new.rpartition(".")
        assert hasattr(importlib.import_module(module), name)


def test_a_config_of_an_earlier_version_builds_what_it_built() -> None:
    cross_entropy = {"_target_": "distill.losses.divergence.cross_entropy", "_partial_": True}
    rollouts = {"_target_": "distill.generation.StudentRollouts", "max_new_tokens": "${longest}"}
    cfg = OmegaConf.create(
        {
            "loss": {
                "_target_": "distill.objective.Objective",
                "rollouts": rollouts,
                "token_loss": cross_entropy,
                "token_weight": {"_target_": "distill.losses.weights.uniform", "_partial_": True},
                "extra": {
                    "more": {
                        "_target_": "distill.objective.Term",
                        "token_loss": cross_entropy,
                    }
                },
            },
            "longest": 7,
        }
    )
    objective = build(cfg.loss, "loss")
    assert objective.rollouts.max_new_tokens == 7
    assert set(objective.terms) == {"main", "more"}


@pytest.mark.parametrize("name", ["torch.optim.AdamW", "my.distill.data.TraceRecipe", "distill.mine.thing"])
def test_other_names_stay(name: str) -> None:
    assert new_name(name) == name
