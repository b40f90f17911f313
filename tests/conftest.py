"""Fixtures for all tests: a random tiny pair, real data next to the checkout, a single thread."""

import copy
import logging
import os
import zlib

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("WANDB_MODE", "offline")

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typechecking  # before the package, the types of whose calls it has checked
from chat_stub import stub  # noqa: F401  a fixture
from covering import covering
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from distill.models.find import find_model
from distill.models.language_model import LanguageModel
from distill.tiny.build import make_tokenizer

torch.set_num_threads(1)

CONF = Path(__file__).resolve().parents[1] / "conf"
REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


_READ: dict[tuple[str, str], ConfigResult] = {}
Plugins.instance()  # registers the sources
_Files: Any = SourcesRegistry.instance().resolve("file")
_load_config = _Files.load_config


def _load_once(self: ConfigSource, config_path: str) -> ConfigResult:
    """Read each file of conf/ once for all tests: Hydra parses them all anew whenever it composes."""
    path = Path(self.path, config_path)
    if not path.resolve().is_relative_to(CONF):
        return _load_config(self, config_path)
    key = (self.path, config_path)
    if key not in _READ:
        _READ[key] = _load_config(self, config_path)
    return replace(_READ[key], provider=self.provider, config=copy.deepcopy(_READ[key].config))


_Files.load_config = _load_once


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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all-cases",
        action="store_true",
        help="whole cross products, where `covering` thins them, and shapes checked in all cases",
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
    """Check shapes in a quarter of a test's cases, which take twice as long with these checks."""
    several = hasattr(item, "callspec") and not item.config.getoption("--all-cases")
    typechecking.check_shapes(not several or zlib.crc32(item.nodeid.encode()) % 4 == 0)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out campaigns, and thin the cases of tests that are marked `covering(strength)`."""
    if not config.getoption("--campaign"):
        campaigns = [item for item in items if item.get_closest_marker("campaign")]
        config.hook.pytest_deselected(items=campaigns)
        items[:] = [item for item in items if not item.get_closest_marker("campaign")]
    if config.getoption("--all-cases"):
        return
    groups: dict[str, list[pytest.Function]] = {}
    for item in items:
        if isinstance(item, pytest.Function) and item.get_closest_marker("covering"):
            groups.setdefault(item.nodeid.partition("[")[0], []).append(item)
    left_out = set[str]()
    for cases in groups.values():
        marker = cases[0].get_closest_marker("covering")
        assert marker is not None
        axes = marker.kwargs.get("axes")
        values = [axes(**case.callspec.params) if axes else case.callspec.indices for case in cases]
        kept = covering(values, *marker.args)
        left_out |= {case.nodeid for case in cases} - {cases[place].nodeid for place in kept}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in left_out])
    items[:] = [item for item in items if item.nodeid not in left_out]
