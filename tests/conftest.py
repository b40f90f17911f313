"""Fixtures for all tests: a random tiny pair, real data next to the checkout, a single thread."""

import functools
import gc
import importlib.metadata
import logging
import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("WANDB_MODE", "offline")

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import composing
import pytest
import torch
import typechecking  # before the package, the types of whose calls it has checked
from chat_stub import stub  # noqa: F401  a fixture
from covering import thinned
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from distill.models.find import find_model
from distill.models.language_model import LanguageModel
from distill.tiny.build import make_tokenizer

torch.set_num_threads(1)

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

composing.install()
gc.disable()  # what is imported and collected stays; until pytest_collection_finish
# Lightning asks for plugins at every Trainer, which reads a file of each installed package.
importlib.metadata.entry_points = functools.cache(importlib.metadata.entry_points)


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a random student and a random, wider teacher, with one character tokenizer."""
    root = tmp_path_factory.mktemp("pair")
    tokenizer = make_tokenizer()
    for name, width in (("student", 32), ("teacher", 48)):
        torch.manual_seed(width)
        config = Qwen2Config(
            vocab_size=len(tokenizer) + 5,  # padded, as real output matrices are
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            tie_word_embeddings=name == "student",
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        Qwen2ForCausalLM(config).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return root / "student", root / "teacher"


@pytest.fixture
def student(tiny_pair: tuple[Path, Path]) -> LanguageModel:
    """The pair's student, loaded anew: a test may change it."""
    return find_model(str(tiny_pair[0]), key="model.student").load()


@pytest.fixture
def teacher(tiny_pair: tuple[Path, Path]) -> LanguageModel:
    """The pair's teacher, loaded anew: a test may change it."""
    return find_model(str(tiny_pair[1]), key="model.teacher").load()


@pytest.fixture
def permuted_tokenizer() -> Any:
    """The pair's characters under other ids; the end token is the same."""
    vocabulary = make_tokenizer().get_vocab()
    last = max(vocabulary.values())
    others = {word: index if index < 2 else last + 2 - index for word, index in vocabulary.items()}
    tokenizer = Tokenizer(models.WordLevel(others))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The real data sets beside the checkout."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"no real data at {REAL_DATA}")
    return REAL_DATA


@pytest.fixture(autouse=True)
def log_handlers_of_the_test_alone() -> Iterator[None]:
    """Hydra, run in this process, leaves a handler behind that writes to a stream which pytest has closed."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(autouse=True)
def environment_of_the_test_alone() -> Iterator[None]:
    """Libraries that a test calls set variables, which the commands of later tests would inherit."""
    variables = dict(os.environ)
    yield
    if os.environ != variables:
        os.environ.clear()
        os.environ.update(variables)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all-cases",
        action="store_true",
        help="exhaustive tests, whole cross products where `covering` thins them, types checked in all",
    )
    parser.addoption(
        "--campaign",
        action="store_true",
        help="run the campaigns of faults too (kills, full disks, damaged files and records, random "
        "settings), which take minutes to hours; see docs/results/reliability.md",
    )
    parser.addoption("--faults", type=int, default=100, help="faults that each campaign tries (100)")
    parser.addoption("--campaign-seed", type=int, default=0, help="what the campaigns' faults are drawn with")


def pytest_runtest_setup(item: pytest.Item) -> None:
    typechecking.check_types(item.stash.get(_CHECKED, False))


_CHECKED = pytest.StashKey[bool]()


@pytest.hookimpl(trylast=True)  # after -m and -k
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Choose what runs, and of that what runs with checks of the calls' types (`typechecking`)."""
    whole = config.getoption("--all-cases")
    kept = [item for item in items if config.getoption("--campaign") or not _is_marked(item, "campaign")]
    if not whole:
        kept = thinned([item for item in kept if not _is_marked(item, "exhaustive")])
    left = {item.nodeid for item in kept}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in left])
    items[:] = kept
    seen = set[str]()
    for item in items:
        test = item.nodeid.partition("[")[0]
        item.stash[_CHECKED] = whole or (test not in seen and not _is_marked(item, "slow"))
        seen.add(test)


def pytest_collection_finish() -> None:
    """Keep the collector of garbage from looking at all that was imported again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


def _is_marked(item: pytest.Item, name: str) -> bool:
    return item.get_closest_marker(name) is not None
