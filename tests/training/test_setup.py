"""Tests of a run's setup: it finds all configuration errors without loading or writing anything."""

import ast
import inspect
from pathlib import Path
from typing import Any

import lightning
import pytest
import test_training
import torch
from test_training import ROOT, arguments

from distill.errors import UserError
from distill.evaluation.logging import metrics_of
from distill.models.language_model import ModelSource
from distill.training.prepare import prepare
from distill.training.run import train
from distill.training.setup import Setup

traces = test_training.traces  # the fixture
CHECKED = [
    *sorted((ROOT / "distill" / "training").glob("*.py")),
    *sorted((ROOT / "distill" / "planning").glob("*.py")),
]
# Where a configuration comes in: a command's own, and what it is turned into.
SEES_CONFIGURATIONS = {
    *("training/setup.py", "training/job.py", "training/resume.py", "planning/command.py"),
    "training/account.py",  # called by Hydra
    *("training/__main__.py", "training/inputs.py"),  # the command, and what it checks before torch is there
}


def long_or_wide(text: str) -> list[str]:
    """Functions of 60 lines or more, or with more than 8 parameters, self aside."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        lines = (node.end_lineno or 0) - node.lineno + 1
        given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        parameters = [one.arg for one in given if one.arg not in ("self", "cls")]
        if lines >= 60 or len(parameters) > 8:
            found.append(f"{node.name}: {lines} lines, {len(parameters)} parameters")
    return found


def configuration_words(text: str) -> set[str]:
    """What a module imports of Hydra and OmegaConf."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {name for name in modules if name.partition(".")[0] in ("hydra", "omegaconf")}
    return found


@pytest.mark.parametrize("path", CHECKED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_functions_are_short_and_configurations_stay_in_the_setup(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert long_or_wide(text) == []
    if f"{path.parent.name}/{path.name}" not in SEES_CONFIGURATIONS:
        assert configuration_words(text) == set()


def test_the_walk_sees_what_is_long_or_wide() -> None:
    wide = "def f(self, a, b, c, d, *, e, f, g, h, i): ..."
    assert long_or_wide(wide) == ["f: 1 lines, 9 parameters"]
    assert long_or_wide("def f():\n" + 59 * "    x\n") == ["f: 60 lines, 0 parameters"]
    assert long_or_wide("def f():\n" + 58 * "    x\n") == []
    assert configuration_words("def f():\n    from omegaconf import DictConfig") == {"omegaconf"}


@pytest.mark.slow
def test_a_setup_says_what_a_run_is_and_loads_nothing(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelSource, "load", lambda self, cache=None: pytest.fail("loaded"))
    words = ["loss=on_policy_kd", "data.batch_size=3", "seed=7", f"dir={tmp_path / 'run'}"]
    setup = Setup.from_overrides(arguments(tiny_pair, traces, tmp_path, *words))
    assert setup.launch.loss == "on_policy_kd"
    assert "data.batch_size=3" in setup.launch.overrides
    assert not setup.launch.sweep
    assert (setup.seed, setup.folder) == (7, tmp_path / "run")
    assert setup.student.location == str(tiny_pair[0])
    assert {role: source.location for role, source in setup.frozen.items()} == {"teacher": str(tiny_pair[1])}
    assert setup.reader is not None
    assert (setup.length.batch_size, setup.length.max_steps, setup.length.ranks) == (3, 6, 1)
    assert setup.compute.device == "cpu"
    assert setup.compute.precision in (torch.float32, torch.bfloat16)
    assert setup.config["data"]["batch_size"] == 3
    assert setup.asked == []
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "first"),
    [
        ("data.batch_size=0 data.path=nowhere.jsonl model.student=./nowhere", "data.batch_size=0 must be"),
        ("loss.control=inverted loss=sft data.path=nowhere.jsonl", "stands in for token weights"),
        ("data.path=nowhere.jsonl model.student=./nowhere", "nowhere.jsonl does not exist"),
        ("data.fields.problem=nothing model.student=./nowhere", "line 1: no field 'nothing' for the problem"),
        ("model.student=./nowhere benchmark=gsm8k benchmark.path=no.jsonl", "model.student=./nowhere"),
        ("benchmark=gsm8k benchmark.path=no.jsonl", "no.jsonl does not exist"),
        ("optimizer.lrr=1", "did you mean optimizer.lr"),
    ],
)
def test_what_is_cheap_to_find_is_said_first(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, words: str, first: str
) -> None:
    with pytest.raises(UserError) as caught:
        Setup.from_overrides(
            arguments(tiny_pair, traces, tmp_path, f"dir={tmp_path / 'run'}", *words.split())
        )
    assert first in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_all_data_is_read_before_a_model_is_loaded(
    tiny_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelSource, "load", lambda self, cache=None: pytest.fail("loaded"))
    data = tmp_path / "data.jsonl"
    data.write_text('{"problem": "1+1=", "completion": "2"}\n{"problem": "1+2="}\nno JSON\n')
    setup = Setup.from_overrides(arguments(tiny_pair, data, tmp_path, f"dir={tmp_path / 'run'}"))
    with pytest.raises(UserError, match=r"data\.jsonl, line 3: not JSON"):
        prepare(setup)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_folder_that_holds_a_run_is_refused_before_anything_is_loaded(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    (tmp_path / "run" / "student").mkdir(parents=True)
    with pytest.raises(UserError, match=r"holds student already: resume that run with ckpt_path="):
        Setup.from_overrides(arguments(tiny_pair, traces, tmp_path, f"dir={tmp_path / 'run'}"))


@pytest.mark.slow
def test_training_from_python_is_three_calls_deep_and_returns_what_it_found(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With train.py's `main`, three of our functions stand above Lightning's `fit`."""
    original, above = lightning.Trainer.fit, list[str]()

    def fit(self: lightning.Trainer, *args: Any, **options: Any) -> None:
        above.extend(
            frame.function
            for frame in inspect.stack()[1:]
            if Path(frame.filename).is_relative_to(ROOT / "distill")
        )
        original(self, *args, **options)

    monkeypatch.setattr(lightning.Trainer, "fit", fit)
    words = ["benchmark=arithmetic", "benchmark.limit=4", "benchmark.max_new_tokens=4", "loss=sft"]
    words += [f"dir={tmp_path / 'run'}", "trainer.max_steps=2"]
    result = train(Setup.from_overrides(arguments(tiny_pair, traces, tmp_path, *words)))
    assert above == ["run", "train"]
    assert result.folder == tmp_path / "run"
    assert result.summary["steps"] == 2
    assert list(result.scores) == ["before", "after"]
    assert result.accuracy == metrics_of(result.scores["after"])["arithmetic/accuracy"]
