"""Tests of untrusted run configurations: no code of theirs runs, and models are loaded only on request."""

import functools
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import test_training
from commands import command
from covering import some_of
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict
from test_generate import compose as compose_command
from test_training import ROOT, arguments

from distill.analysis.score_traces import score
from distill.analysis.scores_file import read_scores, select
from distill.analysis.token_weights import token_weights
from distill.config.instantiate import resolved
from distill.data.trace_set import Record, read_records
from distill.errors import UserError
from distill.models.language_model import ModelSource
from distill.report.drift import check_teachers, drift_of_runs
from distill.runs import folder as run_folder
from distill.runs.config import models_of, read_run_config, said_again, unsaid
from distill.runs.folder import describe
from distill.runs.read import Run, read_run
from distill.teacher.write_traces import generate

traces = test_training.traces  # the fixture
EMBEDDED = ("package:distill/tiny/student", "package:distill/tiny/teacher")
BUILT = ("loss", "data", "benchmark")
DATA = ["model=tiny", "data=arithmetic", "data.operations=[2,4]", "data.max_new_tokens=40"]


@pytest.fixture(scope="module")
def trained(traces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the embedded pair, which asked a benchmark."""
    folder = tmp_path_factory.mktemp("run")
    asked = ["benchmark=arithmetic", "benchmark.limit=3", "benchmark.max_new_tokens=8"]
    pair: Any = EMBEDDED
    words = arguments(pair, traces, folder, "loss=dcod", "trainer.max_steps=1", *asked)
    return test_training.run(words, folder / "dcod_seed0")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    folder = tmp_path_factory.mktemp("sets") / "few"
    return read_records(generate(compose_command("generate", [*DATA, "data.limit=4", f"out={folder}"])))


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """The file that hostile configurations make where they are obeyed."""
    return tmp_path / "marker"


def touching(marker: Path) -> dict[str, Any]:
    """A node that makes the file when it is built."""
    return {
        "_target_": "pathlib.Path.touch",
        "_args_": [{"_target_": "pathlib.Path", "_args_": [str(marker)]}],
    }


def changed(run: Path, folder: Path, **settings: Any) -> Path:
    """A copy of a run with another configuration."""
    shutil.copytree(run, folder)
    cfg = OmegaConf.load(folder / "config.yaml")
    for key, value in settings.items():
        OmegaConf.update(cfg, key.replace("__", "."), value, merge=False)
    OmegaConf.save(cfg, folder / "config.yaml")
    return folder


def run_of(folder: Path) -> Run:
    found = read_run(folder)
    assert isinstance(found, Run)
    return found


def written(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(text)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "place", ["benchmark.arithmetic", "benchmark.arithmetic.sampling", "benchmark.other"]
)
def test_a_report_on_a_run_builds_nothing_of_the_writers_choice(
    trained: Path, tmp_path: Path, marker: Path, place: str
) -> None:
    run = changed(trained, tmp_path / "sweep" / "dcod_seed0", **{place.replace(".", "__"): touching(marker)})
    done = command("distill/report/__main__.py", str(run), "--drift", "4")
    assert not marker.exists()
    assert done.returncode == 0  # of several runs the others are measured
    said = f"{run / 'config.yaml'}: {place}._target_='pathlib.Path.touch' is none of distill's own"
    assert said in done.stdout
    assert "name one of those in conf/ there, or ask with a configuration of your own" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
def test_a_run_of_the_embedded_pair_is_measured_with_nothing_said(trained: Path, tmp_path: Path) -> None:
    found, reasons = drift_of_runs([run_of(trained)], problems=4, folder=tmp_path)
    assert reasons == {}
    assert list(found) == [trained]


@pytest.mark.slow
def test_token_weights_of_a_run_build_nothing_of_the_writers_choice(
    trained: Path, records: list[Record], tmp_path: Path, marker: Path
) -> None:
    assert len(token_weights(trained, records, cache=tmp_path / "cache"))
    for number, place in enumerate(("loss.token_weight", "data.recipe.source", "data.recipe")):
        changes = {place.replace(".", "__"): touching(marker)}
        run = changed(trained, tmp_path / f"{number}", **changes)
        with pytest.raises(
            UserError, match=rf"{place}\._target_='pathlib\.Path\.touch' is none of distill's"
        ):
            token_weights(run, records, cache=tmp_path / "cache")
        assert not marker.exists()


@pytest.mark.slow
def test_a_selection_of_scores_builds_nothing_of_the_writers_choice_and_loads_no_model_unasked(
    records: list[Record], tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*DATA, "data.limit=4", f"out={tmp_path / 'scores'}", f"cache={tmp_path / 'cache'}"]
    scores = score(compose_command("score", [*words, "keep=all", "resamples=10"]))
    hostile = changed(scores, tmp_path / "hostile", data__recipe__grade=touching(marker))
    with pytest.raises(UserError, match=r"data\.recipe\.grade\._target_='pathlib\.Path\.touch' is none of"):
        select(read_scores(hostile), ["curation=[deduplicate]"])
    assert not marker.exists()
    # What is not built from scores is no way in either.
    engine = changed(scores, tmp_path / "engine", engine=touching(marker), curation={"x": touching(marker)})
    kept, _ = select(read_scores(engine), ["curation=[deduplicate]"])
    assert kept
    assert not marker.exists()
    ours = ["curation=[correct,min_rsr]", "curation.min_rsr.keep=1"]
    expected, _ = select(read_scores(scores), ours)
    own = shutil.copytree(ROOT / "distill" / "tiny" / "student", tmp_path / "own")
    settings: dict[str, Any] = {"model__student": str(own), "model__trust_remote_code": True}
    other = read_scores(changed(scores, tmp_path / "other", **settings))
    with pytest.raises(UserError, match=rf"needs the student: set .*said again: model\.student={own} model"):
        select(other, ours)
    found: list[bool] = []
    tokenizer = ModelSource.tokenizer
    monkeypatch.setattr(
        ModelSource,
        "tokenizer",
        property(lambda self: (found.append(self.trust_remote_code), tokenizer.func(self))[1]),
    )
    assert select(other, [*ours, f"model.student={own}"])[0] == expected
    assert not any(found)


@pytest.mark.parametrize(
    "target",
    [
        "builtins.print",
        "os.getcwd",
        "distill.io.files.write_json",
        "distill.training.run.shutil.rmtree",
        "distill.losses.weights.torch.save",  # what a module imports
        "distill.losses.divergence.Tensor",
        "distill.losses.divergence.effective_sample_size",
        "distill.losses.weights._sigmoid",
        "distill.losses.weights.uniform.__globals__",
        "distill.losses.weights.",
        "distill.benchmarks.humaneval.sandbox.run",
        "distill.benchmarks.grading.programs.find_program",
        "distill.generation.engines.HfEngine",
        "test_run_config.never_called",
        ["os", "getcwd"],
        None,
        7,
    ],
)
@pytest.mark.parametrize("place", ["loss", "data.recipe.source", "benchmark.arithmetic.0.deep"])
def test_a_target_that_is_none_of_ours_is_refused_at_any_depth(
    target: Any, place: str, tmp_path: Path
) -> None:
    node: Any = {"_target_": target, "_partial_": True}
    first, *below = place.split(".")
    for part in reversed(below):
        node = [node] if part == "0" else {part: node}
    cfg = OmegaConf.create({first: node})
    folder = written(tmp_path, OmegaConf.to_yaml(cfg))
    said = rf"config\.yaml: {re.escape(place)}\._target_={re.escape(repr(target))} is none of distill's own"
    with pytest.raises(UserError, match=said):
        read_run_config(folder, built=BUILT)
    kept = OmegaConf.to_yaml(read_run_config(folder))  # nobody says that it is built
    assert "_target_" not in kept


def never_called() -> None:
    raise AssertionError("a function of a test was called")


def test_a_function_of_ours_is_only_bound(tmp_path: Path) -> None:
    text = "benchmark: {a: {grade: {_target_: distill.benchmarks.humaneval.grade, completion: x%s}}}"
    for added in ("", ", _partial_: 1", ", _partial_: false"):
        folder = written(tmp_path, text % added)
        with pytest.raises(UserError, match=r"benchmark\.a\.grade\._target_=.* would be called at once"):
            read_run_config(folder, built=BUILT)
    read_run_config(written(tmp_path, text % ", _partial_: true"), built=BUILT)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object/apply:os.getcwd []", r"line 1: the tag '.*os\.getcwd' makes something else"),
        ("a: 1\nb: !!python/name:os.system ''", r"line 2: the tag '.*os\.system'"),
        ("a: !x {b: 1}", "line 1: the tag '!x'"),
        ("a: !!python/object/apply:pathlib.Path [x]", "line 1: the tag"),
        ("a: &a [1]\nb: *a", "line 2: the alias .a stands for another value"),
        ("name: ${oc.env:HOME}", r"name='\$\{oc\.env:HOME\}' refers to something else"),
        (
            "a: {b: [x, '1 ${chosen_lr:{},/tmp,sft} 2']}",
            r"a\.b\.1='1 \$\{chosen_lr.*refers to something else",
        ),
        ("data: {'${oc.env:HOME}': 1}", "data='.{oc.env:HOME}' refers to something else"),
        ("a: [", "cannot be read"),
        ("a: 1\na: 2", r"cannot be read \(while constructing a mapping"),
        ("[a, b]", "holds no configuration"),
        ("a: \x00", "cannot be read"),
        ("a: " + "[" * 3000 + "]" * 3000, "cannot be read"),
    ],
)
def test_a_file_of_more_than_plain_values_is_refused_in_a_sentence(
    text: str, message: str, tmp_path: Path
) -> None:
    folder = written(tmp_path, text)
    with pytest.raises(UserError, match=rf"config\.yaml.*{message}") as error:
        read_run_config(folder)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.yaml cannot be read \(.*No such file"):
        read_run_config(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("group", some_of(BUILT, "loss"))
def test_every_preset_of_ours_is_read_back_from_a_runs_file(
    group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "versions", functools.cache(run_folder.versions))  # which asks git
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for preset in sorted((ROOT / "conf" / group).glob("*.yaml")):
            cfg = compose("train", [f"{group}={preset.stem}", "logger=csv", "name=x", "dir=y"])
            if group == "data":
                with open_dict(cfg):
                    cfg.data.path = "x"
            describe(tmp_path, resolved(cfg), [])
            found = read_run_config(tmp_path, built=BUILT)
            for section in BUILT:
                assert found[section] == OmegaConf.to_container(cfg[section], resolve=True)


def model(tmp_path: Path, **settings: Any) -> Any:
    return read_run_config(written(tmp_path, OmegaConf.to_yaml(OmegaConf.create({"model": settings}))))


def test_the_files_word_on_remote_code_counts_for_nothing(tmp_path: Path) -> None:
    assert model(tmp_path, teacher="x", trust_remote_code=True).model.trust_remote_code is False
    assert read_run_config(tmp_path, trust_remote_code=True).model.trust_remote_code is True


def test_a_model_of_the_file_is_taken_where_it_is_said_again_or_embedded(tmp_path: Path) -> None:
    def remedy(name: str) -> str:
        return f"--teacher {name}"

    for own in (*EMBEDDED, None):
        assert unsaid(model(tmp_path, teacher=own), "teacher") == []
    for other in ("a/b", "/c/d", "package:distill/tiny/../x", "package:distill/tiny", "package:evil/teacher"):
        cfg = model(tmp_path, teacher=other)
        with pytest.raises(
            UserError, match=rf"config\.yaml: model\.teacher='{re.escape(other)}' is named by"
        ):
            said_again(cfg, "teacher", ["e/f"], tmp_path, remedy)
        said_again(cfg, "teacher", ["e/f", other], tmp_path, remedy)
    with pytest.raises(UserError) as error:
        said_again(model(tmp_path, teacher="\x1b[31ma"), "teacher", [], tmp_path, remedy)
    assert str(error.value).isprintable()
    # A revision may be anybody's commit: it belongs to the name.
    cfg = model(tmp_path, teacher="a/b", teacher_revision="refs/pr/7", student="a/s", student_revision=None)
    assert models_of(cfg, "teacher") == ["a/b@refs/pr/7"]
    assert models_of(cfg, "student") == ["a/s"]
    with pytest.raises(UserError, match=r"say it again, --teacher a/b@refs/pr/7$"):
        said_again(cfg, "teacher", ["a/b"], tmp_path, remedy)
    assert unsaid(cfg, "teacher", ["a/b@refs/pr/7"]) == []
    several = model(tmp_path, teacher=["outputs/x/", EMBEDDED[1], "a/b"])
    with pytest.raises(UserError, match=r"--teacher outputs/x/ --teacher a/b$"):
        said_again(several, "teacher", [], tmp_path, remedy)
    assert unsaid(several, "teacher", ["./outputs/x", "a/b"]) == []


@pytest.mark.slow
def test_a_report_asks_for_a_teacher_before_it_measures_anything(
    trained: Path, tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    teacher = shutil.copytree(ROOT / "distill" / "tiny" / "teacher", tmp_path / "its teacher")
    settings: dict[str, Any] = {"model__teacher": str(teacher)}
    run = changed(trained, tmp_path / "sweep" / "dcod_seed0", **settings)
    report: Sequence[str] = ("distill/report/__main__.py", str(run), "--drift", "4")
    done = command(*report)
    assert done.returncode == 1
    assert f"model.teacher='{teacher}' is named by the run's file alone" in done.stderr
    assert done.stderr.endswith(f"say it again, --teacher '{teacher}'\n")
    assert not (run / "report").exists()
    done = command(*report, "--teacher", str(teacher))
    assert done.returncode == 0, done.stderr
    assert "not measured" not in done.stdout
    with pytest.raises(UserError, match=rf"--teacher x/y is no run's teacher \(theirs: {EMBEDDED[1]}\)"):
        check_teachers([run_of(trained)], ["x/y"])
    found, reasons = drift_of_runs([run_of(run)], problems=4, folder=tmp_path / "kept")
    assert found == {}
    assert "is named by the run's file alone" in reasons[run]


@pytest.mark.slow
def test_a_models_own_code_runs_only_where_that_is_said_now(
    trained: Path, tmp_path: Path, marker: Path, records: list[Record]
) -> None:
    """The run's student brings code, and its configuration trusts it."""
    run = changed(trained, tmp_path / "dcod_seed0", model__trust_remote_code=True)
    config = run / "student" / "config.json"
    text = config.read_text().replace(
        "{", '{"auto_map": {"AutoConfig": "code.Own", "AutoModelForCausalLM": "code.Model"},', 1
    )
    config.write_text(text.replace('"model_type": "qwen2"', '"model_type": "their_own"'))
    (run / "student" / "checksums.json").unlink()  # whoever brings code writes no checksum of the old file
    (run / "student" / "code.py").write_text(f"open({str(marker)!r}, 'w').close()\nraise RuntimeError\n")
    found, reasons = drift_of_runs([run_of(run)], problems=4, folder=tmp_path / "kept")
    assert found == {}
    assert "contains custom code" in reasons[run]
    assert reasons[run].endswith("if you trust it, say --trust-remote-code")
    with pytest.raises(UserError):
        token_weights(run, records, "after", cache=tmp_path / "cache")
    assert not marker.exists()


def test_only_what_reads_our_own_files_reads_configurations_past_the_guard() -> None:
    """A new caller takes `read_run_config`; these read our own files."""
    package = ROOT / "distill"
    loads = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if "OmegaConf.load(" in path.read_text()
    }
    ours = {"config/overrides.py", "config/resolvers.py", "config/model_defaults.py"}
    assert loads == {*ours, "evaluation/named.py", "tiny/steps/tokenizer.py"}
