"""Tests of the notebooks: their content, and that they run on the output of the commands."""

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from composing import checked
from jupyter_client.provisioning import LocalProvisioner
from nbmake.nb_result import NotebookResult
from nbmake.nb_run import NotebookRun
from test_docs import hydra_commands as commands
from test_generate import compose
from test_generate import run as generate_run
from test_training import run as train_run
from warm import ROOT, Command, environment

from distill.analysis.score_traces import score
from distill.analysis.scores_file import read_scores
from distill.analysis.smoke_test import _row
from distill.analysis.token_weights import by_trace, length_correlation, token_weights
from distill.errors import UserError
from distill.report.methods import tables_of
from distill.statistics import holm, paired_runs

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
INPUTS = {  # the variable that names a notebook's input
    "compare_methods": "DISTILL_SWEEP",
    "weight_diagnostics": "DISTILL_SWEEP",
    "choose_your_traces": "DISTILL_SCORES",
    "maps": "DISTILL_SWEEP",
}
DATA = ["model=tiny", "data=arithmetic", "data.operations=[2,4]", "data.max_new_tokens=40"]
TEACHER = "package:distill/tiny/teacher"
LOSSES = ("sft", "dcod", "on_policy_kd")


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def sources(path: Path, kind: str) -> list[str]:
    return [cell.source for cell in read(path).cells if cell.cell_type == kind]


class WarmKernel(Command):
    """A kernel, for jupyter_client a process as any other; one that imports all anew takes seconds more."""

    stdin = stdout = stderr = None

    def wait(self) -> int | None:
        self.communicate()
        self.close()
        return self.returncode


async def launched_warm(provisioner: LocalProvisioner, cmd: list[str], **kwargs: Any) -> Any:
    """As LocalProvisioner.launch_kernel."""
    words = [str(Path(__file__).with_name("warm_kernel.py")), *cmd[cmd.index("ipykernel_launcher") + 1 :]]
    process = WarmKernel(words, kwargs.get("cwd"), kwargs["env"])
    provisioner.process, provisioner.pid = process, process.pid
    return provisioner.connection_info


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Notebooks run with this checkout, and keep nothing of their own in anyone's home."""
    monkeypatch.setattr(LocalProvisioner, "launch_kernel", launched_warm)
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    for name in ("SWEEP", "SCORES", "TRACES", "METHOD", "BASELINE"):
        monkeypatch.delenv(f"DISTILL_{name}", raising=False)
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))


def execute(path: Path) -> NotebookResult:
    return NotebookRun(path, default_timeout=120, kernel="python3").execute()


def outputs(result: NotebookResult, kind: str) -> Iterator[Any]:
    for cell in result.nb.cells:
        yield from (one for one in cell.get("outputs", ()) if one.output_type == kind)


def printed(result: NotebookResult, stream: str = "stdout") -> str:
    return "".join(one.text for one in outputs(result, "stream") if one.name == stream)


def shown(result: NotebookResult, kind: str) -> list[str]:
    return [
        one.data[kind]
        for output in ("display_data", "execute_result")
        for one in outputs(result, output)
        if kind in one.data
    ]


def test_every_notebook_has_its_input() -> None:
    assert [path.stem for path in NOTEBOOKS] == sorted(INPUTS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path: Path) -> None:
    for cell in read(path).cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
        assert not {"execution", "collapsed", "scrolled"} & set(cell.metadata)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_defines_no_function_and_names_no_place_on_someones_disk(path: Path) -> None:
    for source in sources(path, "code"):
        for node in ast.walk(ast.parse(source)):
            assert not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef))
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not re.match(r"[/~]|[A-Za-z]:[\\/]|\.\.", node.value), node.value
    for source in sources(path, "markdown"):
        assert not re.search(r"(?<![\w.<])/(home|tmp|root|work|Users|mnt)\b", source)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_begins_with_its_commands_and_its_parameters(path: Path) -> None:
    cells = read(path).cells
    assert [cell.cell_type for cell in cells[:2]] == ["markdown", "code"]
    assert cells[0].source.startswith("# ")
    assert "python train.py" in cells[0].source or "python -m distill.score" in cells[0].source
    assert re.search(r"\d+ (s|min)\b", cells[0].source)  # how long that takes
    assert [cell.metadata.get("tags") == ["parameters"] for cell in cells] == [
        place == 1 for place in range(len(cells))
    ]
    assert f'os.environ.get("{INPUTS[path.stem]}", "outputs/' in cells[1].source


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "command"),
    [
        pytest.param(path, command, id=f"{path.stem}: {command[:60]}")
        for path in NOTEBOOKS
        for command in commands("\n".join(sources(path, "markdown")))
    ],
)
def test_every_command_of_a_notebook_composes(path: Path, command: str) -> None:
    words = shlex.split(command)
    name = words[2].removeprefix("distill.") if words[1] == "-m" else "train"
    checked(name, *words[3 if words[1] == "-m" else 2 :])


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_missing_folder_is_refused_in_the_first_cell_that_reads(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")  # where Jupyter starts: notebooks go to the folder above
    monkeypatch.setenv(INPUTS[path.stem], "gone")
    space: dict[str, Any] = {}
    code = compile("\n".join(sources(path, "code")), path.name, "exec")
    with pytest.raises(UserError, match=r"^gone: there is no such folder$"):
        exec(code, space)
    assert Path.cwd() == tmp_path


@pytest.mark.slow
@pytest.mark.usefixtures("kernels")
def test_a_notebook_shows_a_mistake_as_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_SCORES", "gone")
    result = execute(ROOT / "notebooks" / "choose_your_traces.ipynb")
    assert result.error is not None
    (error,) = outputs(result, "error")
    assert error.ename == "UserError"
    assert error.traceback == ["error: gone: there is no such folder"]
    assert printed(result, "stderr") == ""


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three methods, two seeds each, asked some problems before, meanwhile and after."""
    root = tmp_path_factory.mktemp("sweeps")
    for seed in (0, 1):
        for loss in LOSSES:
            train_run(
                [
                    *DATA, f"loss={loss}", f"seed={seed}", "data.limit=48", "data.batch_size=16",
                    "trainer.max_steps=6", "histogram_every=2", "benchmark=arithmetic", "benchmark.limit=24",
                    "eval_every=2", "logger=csv", f"cache={root / 'cache'}",
                ],
                root / "compare" / f"{loss}_seed{seed}",
            )  # fmt: skip
    return root / "compare"


@pytest.fixture(scope="session")
def scores(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two teachers' scored traces, right and wrong; what stands for the smoke test's runs are the sweep's."""
    root = tmp_path_factory.mktemp("scores")
    hot = [*DATA, "data.limit=20", "samples=3", "sampling.temperature=3", "sampling.top_p=1.0"]
    generate_run(hot, root / "hot")
    words = [*DATA, f"teachers=[{root / 'hot'},{TEACHER}]", "data.limit=20", "samples=3", "keep=all"]
    words += [f"out={root / 'scores'}", f"cache={root / 'cache'}", "traces=null", "resamples=200"]
    folder = score(compose("score", words))
    rows = []
    for teacher, loss in (("hot", "sft"), (TEACHER, "dcod")):
        runs = [sweep / f"{loss}_seed{seed}" for seed in (0, 1)]
        told = [json.loads((run / "summary.json").read_text()) | {"folder": str(run)} for run in runs]
        rows.append(_row(teacher, told))
    (folder / "smoke.json").write_text(json.dumps(rows))
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("kernels")
def test_the_notebooks_run_and_say_what_the_data_show(  # in one, so that one worker alone makes the sweep
    sweep: Path, scores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILL_SWEEP", str(sweep))
    monkeypatch.setenv("DISTILL_SCORES", str(scores))
    monkeypatch.setenv("DISTILL_TRACES", str(scores))
    found = {}
    for path in NOTEBOOKS:
        found[path.stem] = result = execute(path)
        assert result.error is None, result.error.trace
        assert printed(result, "stderr") == ""
        for name in ("stdout", "stderr"):
            assert "Warning" not in printed(result, name)
    _check_comparison(found["compare_methods"], sweep)
    _check_weights(found["weight_diagnostics"], sweep, scores, tmp_path / "cache")
    _check_choice(found["choose_your_traces"], scores)
    _check_maps(found["maps"], sweep)
    for path in NOTEBOOKS:  # they were run as copies
        test_a_notebook_is_kept_without_outputs(path)


def _check_comparison(result: NotebookResult, sweep: Path) -> None:
    text = printed(result)
    assert "6 runs (dcod 2, on_policy_kd 2, sft 2)" in text
    ((table,), _) = tables_of([sweep])
    closing = text.split("ESTABLISHED: better than sft")[1]
    parts = dict(
        zip(
            ("better", "worse", "open"),
            re.split(r"ESTABLISHED: worse than sft|NOT established against sft.*|GAIN LARGER", closing)[:3],
            strict=True,
        )
    )
    for method in table.methods:
        if method.gain is None:
            continue
        gap = method.gain.over_seeds
        assert gap is not None
        kind = "open" if not method.gain.established else "better" if gap.value > 0 else "worse"
        assert f"{method.name}: {100 * gap.value:+.1f} points" in parts[kind]
        assert all(f"  {method.name}:" not in own for name, own in parts.items() if name != kind)
    assert "problems: arithmetic 24" in closing
    markdown = "\n".join(shown(result, "text/markdown"))
    for method in table.methods:
        assert method.accuracy is not None
        assert f"| `{method.name}` | 2 |" in markdown
        assert f"{100 * method.accuracy.value:.1f}" in markdown
    assert len(shown(result, "image/svg+xml")) == 3  # accuracies, learning curves, length


def _check_weights(result: NotebookResult, sweep: Path, scores: Path, cache: Path) -> None:
    text = printed(result)
    assert "dcod_seed0: 120 traces" in text
    traces = by_trace(token_weights(sweep / "dcod_seed0", read_scores(scores).records, cache=cache))
    expected = length_correlation(traces)
    assert expected is not None
    verdict = "established" if expected.low > 0 or expected.high < 0 else "a sign is not established"
    span = f"{expected.value:+.3f} [{expected.low:+.3f}, {expected.high:+.3f}]"
    assert f"before training: weight goes with length, Spearman's rho {span}: {verdict}" in text
    assert re.search(r"after training: right traces weigh more than wrong ones by [+-]0\.\d+ \[", text)
    assert re.search(r"tokens with weight 0 to 0\.05, %: \d+\.\d at first, \d+\.\d at last; .* p = ", text)
    assert len(shown(result, "image/svg+xml")) == 4


def _check_maps(result: NotebookResult, sweep: Path) -> None:
    maps = shown(result, "image/svg+xml")
    assert len(maps) == 4  # right answers and completions without an end, each also over the baseline
    own = {loss: [_right(sweep / f"{loss}_seed{seed}") for seed in (0, 1)] for loss in LOSSES}
    gaps = {loss: paired_runs(own["sft"], own[loss]) for loss in LOSSES if loss != "sft"}
    adjusted = holm([gap.p for gap in gaps.values()])
    known = sum(p < 0.05 for p in adjusted)
    closing = printed(result).strip().splitlines()[-1]
    assert closing.startswith("of 2 comparisons with sft: ")
    assert closing.endswith(f"{2 - known} not established")


def _right(run: Path) -> float:
    summary = json.loads((run / "summary.json").read_text())
    return summary["benchmarks"]["arithmetic"]["after"]["figures"]["accuracy"]["value"]


def _check_choice(result: NotebookResult, scores: Path) -> None:
    text, found = printed(result), read_scores(scores)
    assert "120 traces; 20 problems that all teachers answered" in text
    for name, ranking in found.rankings.groupby("by"):
        first, other = ranking["teacher"].tolist()
        low, high = ranking[["low", "high"]].iloc[1]
        apart = other if low > 0 or high < 0 else "none"
        assert f"best by {name}: {first}; established against {apart}" in text
    assert re.search(r"lowest RSR, rsr: -\d", text)  # it does what it says
    assert re.search(r"points, p = \d\.\d+ over seeds: (not )?established; ordered alike by", text)
    assert "'at random' keeps traces of teachers whose students reach" in text
    assert len(shown(result, "image/svg+xml")) == 4
