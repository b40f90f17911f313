"""Tests of the kinds of settings: one sentence names the key that was set, its value and what it takes."""

import pytest

from distill.config.instantiate import build
from distill.config.kinds import check_text
from distill.config.overrides import check_overrides
from distill.config.paths import CONFIG
from distill.errors import UserError
from distill.training.numbers import check_numbers

WORDS = ["model=tiny", "data=arithmetic", "benchmark=arithmetic"]


def build_all(override: str) -> None:
    cfg = check_overrides(CONFIG, "train", [*WORDS, override])
    build(cfg.data.recipe, "data")
    build(cfg.loss, "loss")
    build(cfg.benchmark.arithmetic, "benchmark")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.sampling_seed=x", "data.sampling_seed='x' must be a whole number"),
        ("data.recipe.sampling=1", "data.recipe.sampling=1 must be a section of keys or null"),
        ("data.recipe.grade._partial_=[]", r"data.recipe.grade._partial_=\[\] must be true or false"),
        ("benchmark.arithmetic.name=-inf", "benchmark.arithmetic.name=-inf must be text"),
        ("loss.chunk_size=many", "loss.chunk_size='many' (is not|must be) a (positive )?whole number"),
    ],
)
def test_a_value_of_another_kind_is_refused_with_its_key(override: str, said: str) -> None:
    with pytest.raises(UserError, match=f"^{said}"):
        build_all(override)


@pytest.mark.parametrize("key", ["dir", "name", "optimizer.lr", "data.limit"])
def test_a_reference_to_a_key_that_does_not_exist_is_refused(key: str) -> None:
    with pytest.raises(UserError, match=r"refers to \$\{nothing\}, and there is no such key"):
        check_overrides(CONFIG, "train", [*WORDS, f"{key}='${{nothing}}'"])


@pytest.mark.parametrize("value", [None, True, [1], {"a": 1}, float("inf")])
def test_a_key_of_text_takes_text_and_numbers_alone(value: object) -> None:
    with pytest.raises(UserError, match=r"^model\.teacher_dtype=.* must be text$"):
        check_text({"model": {"teacher_dtype": value}}, {"model.teacher_dtype": False})
    check_text({"name": 2024}, {"name": False, "ckpt_path": True})


def test_null_in_place_of_what_is_built_is_refused_with_its_key() -> None:
    with pytest.raises(UserError, match=r"^data: null is nothing to build"):
        build(None, "data")


@pytest.mark.parametrize("value", [[], [1], {"a": 1}, True])
def test_a_models_revision_is_text(value: object) -> None:
    with pytest.raises(UserError, match=r"^model\.revision=.* must be text or null$"):
        check_numbers({"model": {"revision": value}})
