"""Tests of the Python API, `distill.__all__`, and of moved modules, which name their new place."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import warm

import distill
from distill.__main__ import VERBS
from distill.config.words import words_of

PACKAGE = Path(distill.__file__).parent


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("name", distill.__all__)
def test_every_name_is_there_with_a_docstring(name: str) -> None:
    assert (getattr(distill, name).__doc__ or "").strip()


def test_the_imports_for_type_checkers_name_what_is_imported_lazily() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (typed,) = [node for node in tree.body if isinstance(node, ast.If)]
    found = {
        alias.name: str(node.module).removeprefix("distill.")
        for node in typed.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert found == distill._PLACES
    assert sorted(found) == sorted(distill.__all__)
    assert set(distill.__all__) <= set(dir(distill))


def test_no_name_is_a_modules_too() -> None:
    modules = {path.stem for path in PACKAGE.iterdir()}
    assert modules & set(distill.__all__) == set()
    assert modules & {"train"} == set()  # the command is distill.training


@pytest.mark.slow
def test_names_and_modules_do_not_clash_in_either_order(tmp_path: Path) -> None:
    first = "import distill.training.run, distill.evaluate; from distill import train, evaluate_model"
    second = "from distill import train, evaluate_model; import distill.training.run, distill.evaluate"
    check = "; assert callable(train) and callable(evaluate_model); print(distill.evaluate.__name__)"
    # In processes that have imported all but our own modules.
    forget = "import sys\nfor name in [name for name in sys.modules if name.split('.')[0] == 'distill']:\n"
    forget += "    del sys.modules[name]\n"
    for code in (first, second):
        (tmp_path / "names.py").write_text(forget + code + check)
        assert warm.run([str(tmp_path / "names.py")]).stdout == "distill.evaluate\n"


def test_the_package_is_imported_without_torch() -> None:
    code = "import sys, distill; print(sorted({'torch', 'hydra', 'omegaconf', 'numpy'} & set(sys.modules)))"
    assert python(code).stdout == "[]\n"


def test_what_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'distill' has no attribute 'nothing'"):
        distill.nothing  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import distill.cache", "distill.cache is distill.io.cache now"),
        ("from distill import cache", "distill.cache is distill.io.cache now"),
        ("from distill.runs import claim", "distill.runs.claim is distill.runs.folder.claim now"),
        ("import distill.nothing", "No module named 'distill.nothing'"),
    ],
)
def test_a_module_of_an_earlier_version_says_its_new_name(code: str, said: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=said):
        exec(code)


def test_an_old_module_that_is_run_says_its_new_name() -> None:
    done = subprocess.run([sys.executable, "-m", "distill.drift"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "distill.drift is distill.analysis.drift now" in done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_its_module(verb: str) -> None:
    module = VERBS[verb][0]
    assert importlib.util.find_spec(module) is not None, module


def test_settings_by_keyword_are_words() -> None:
    settings = {
        "out": Path("a b"),
        "loss": "dcod",
        "seed": 3,
        "data.path": "x=1,y",
        "name": "null",
        "plan": True,
        "benchmark": ["gsm8k", "aime24"],
        "limit": None,
        "lrs": {"sft": 1e-05},
    }
    assert words_of(settings) == [
        'out="a b"',
        "loss=dcod",
        "seed=3",
        'data.path="x=1,y"',
        'name="null"',
        "plan=true",
        "benchmark=[gsm8k,aime24]",
        "limit=null",
        "lrs={sft:1e-05}",
    ]


@pytest.mark.slow
def test_traces_are_generated_curated_scored_and_a_model_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"data.limit": 6, "cache": tmp_path / "cache"}
    pair = ["model=tiny", "data=arithmetic"]
    traces = distill.generate_traces(
        [*pair, "samples=2"], out=tmp_path / "traces", **{"data.limit": 6}, logprobs=False
    )
    assert len(traces) == 12
    assert {"problem", "completion", "correct"} <= set(traces.records[0])
    kept = distill.curate_traces(
        ["model=tiny", "data=arithmetic", "curation=[correct]"],
        teachers=[str(traces.folder)],
        out=tmp_path / "kept",
        cache=small["cache"],
    )
    assert 0 < len(kept) <= 12
    scored = distill.score_traces(
        pair, teachers=[str(kept.folder)], out=tmp_path / "scores", cache=small["cache"], resamples=10
    )
    assert len(scored.traces) == len(kept)
    found = distill.evaluate_model(
        ["model=tiny", "benchmark=arithmetic"], out=tmp_path / "asked", **{"benchmark.limit": 5}
    )
    assert 0 <= found.figures["arithmetic"]["accuracy"].value <= 1
    plan = distill.plan_run(pair, **{"data.limit": 6})
    assert plan.stages
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_evaluations_are_compared_with_the_first(tmp_path: Path) -> None:
    for name, role in (("student", "student"), ("teacher", "teacher")):
        words = ["model=tiny", f"model.role={role}", "benchmark=arithmetic", "benchmark.limit=5"]
        distill.evaluate_model(words, out=tmp_path / name)
    found = distill.compare_evaluations([tmp_path / "student", tmp_path / "teacher"])
    assert [one.second.folder.name for one in found] == ["teacher"]


def test_a_model_is_loaded_by_a_pairs_name() -> None:
    assert distill.load_model("tiny", role="teacher").source.name.endswith("teacher")
    with pytest.raises(distill.UserError, match="model=/nowhere/at/all: there is no such folder"):
        distill.load_model("/nowhere/at/all")
