"""Tests of `python -m distill.evaluate`: tables and page, resuming, extending and comparing evaluations."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import warm
from commands import command as in_this_process
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict
from test_training import arguments as training_arguments
from test_training import run as train_run
from test_training import wandb_keys

from distill.analysis import evaluate_model as command
from distill.analysis.evaluate_model import compare_folders, evaluate_model
from distill.config.overrides import check_overrides
from distill.config.paths import CONFIG
from distill.errors import UserError
from distill.evaluation.benchmark import Benchmark
from distill.evaluation.named import as_keys
from distill.evaluation.run import evaluate
from distill.models.lazy import LazyModel
from distill.tiny import task

TINY = ["model=tiny", "benchmark=arithmetic"]
ASK = ["benchmark=arithmetic", "benchmark.limit=12", "benchmark.max_new_tokens=8"]


def compose(words: list[str]) -> Any:
    cfg = check_overrides(CONFIG, "evaluate", as_keys(words))
    HydraConfig.instance().set_config(cfg)
    OmegaConf.set_struct(cfg, True)
    with open_dict(cfg):
        cfg.pop("hydra")
    return cfg


def run(words: list[str], folder: Path) -> dict[str, Any]:
    """`python -m distill.evaluate` in this process; its results.json."""
    assert evaluate_model(compose([*words, f"out={folder}"])) == folder
    return json.loads((folder / "results.json").read_text())


def samples(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().split("\n") if line]


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("traces") / "traces.jsonl"
    problems = task.problems(16, split="train", operations=(2, 4))
    records = [{"problem": text, "completion": task.write_solution(text, "single")} for text in problems]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="module")
def gsm8k(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GSM8K's form in what the tiny tokenizer spells."""
    path = tmp_path_factory.mktemp("gsm8k") / "test.jsonl"
    records = [{"question": f"{n}+1=", "answer": f"so\n#### {n + 1}"} for n in range(5)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.slow
def test_an_evaluation_leaves_its_figures_samples_table_and_page(
    tiny_pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = str(tiny_pair[0])
    words = [f"model={student}", *ASK, "benchmark.samples=3", "benchmark.temperature=1.5"]
    found = run(words, tmp_path / "a")
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {
        "results.json", "samples.jsonl", "results.md", "results.html", "completions", "config.yaml",
        "versions.json", "key.json", "checksums.json",
    }  # fmt: skip
    own = found["benchmarks"]["arithmetic"]
    assert (own["problems"], own["samples"], own["per_problem"]) == (12, 36, 3)
    assert {"accuracy", "pass@2", "pass@3", "maj@3", "agreement", "tokens"} <= set(own["figures"])
    assert own["settings"]["sampling"]["temperature"] == 1.5
    records = samples(tmp_path / "a")
    assert [(one["benchmark"], one["sample"]) for one in records] == [
        ("arithmetic", n % 3) for n in range(36)
    ]
    right = sum(one["correct"] for one in records) / 36
    assert own["figures"]["accuracy"]["value"] == pytest.approx(right)
    table = (tmp_path / "a" / "results.md").read_text()
    assert re.search(rf"\| arithmetic \| 12 \| 3 \| {100 * right:.1f} \[", table)
    assert table.strip() in capsys.readouterr().out
    assert json.dumps(student)[1:-1] in (tmp_path / "a" / "results.html").read_text()


@pytest.mark.slow
def test_a_finished_evaluation_is_not_made_again_and_a_further_benchmark_joins_it(
    tiny_pair: tuple[Path, Path], gsm8k: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [f"model={tiny_pair[0]}"]
    first = run([*words, *ASK], tmp_path / "a")
    loads: list[str] = []
    original = LazyModel.get

    def note(self: Any) -> Any:
        loads.append(self.source.name)
        return original(self)

    monkeypatch.setattr(LazyModel, "get", note)
    again = run([*words, *ASK], tmp_path / "a")
    assert not loads
    figures = [one["benchmarks"]["arithmetic"]["figures"] for one in (first, again)]
    assert figures[0] == figures[1]
    more = ["benchmark=gsm8k", "benchmark.max_new_tokens=8", f"benchmark.path={gsm8k}"]
    both = run([*words, *more], tmp_path / "a")
    assert loads
    assert list(both["benchmarks"]) == ["arithmetic", "gsm8k"]
    assert both["benchmarks"]["arithmetic"]["figures"] == figures[0]
    assert [one["benchmark"] for one in samples(tmp_path / "a")] == ["arithmetic"] * 12 + ["gsm8k"] * 5
    page = (tmp_path / "a" / "results.html").read_text()
    assert "gsm8k" in page
    # Both at once is the same.
    at_once = [*words, "benchmark=[arithmetic,gsm8k]", "benchmark.max_new_tokens=8"]
    other = run([*at_once, f"benchmark.gsm8k.path={gsm8k}", "benchmark.arithmetic.limit=12"], tmp_path / "b")
    assert {n: o["figures"] for n, o in other["benchmarks"].items()} == {
        n: o["figures"] for n, o in both["benchmarks"].items()
    }
    assert samples(tmp_path / "a") == samples(tmp_path / "b")


@pytest.mark.slow
def test_other_settings_or_another_model_do_not_go_into_the_same_folder(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    run([f"model={tiny_pair[0]}", *ASK], tmp_path / "a")
    with pytest.raises(UserError, match=r"holds completions of arithmetic made with another sampling"):
        run([f"model={tiny_pair[0]}", *ASK[:2], "benchmark.max_new_tokens=9"], tmp_path / "a")
    with pytest.raises(UserError, match=r"out=.*a holds an evaluation made with another model"):
        run([f"model={tiny_pair[1]}", *ASK], tmp_path / "a")
    (tmp_path / "a" / "results.json").write_text("{")
    with pytest.raises(UserError, match=r"results.json is damaged.*the completions are kept"):
        run([f"model={tiny_pair[0]}", *ASK], tmp_path / "a")
    (tmp_path / "a" / "results.json").unlink()
    found = run([f"model={tiny_pair[0]}", *ASK], tmp_path / "a")
    assert len(samples(tmp_path / "a")) == found["benchmarks"]["arithmetic"]["samples"] == 12


@pytest.mark.slow
def test_a_run_is_evaluated_by_its_folder_with_the_figures_that_it_had(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    words = training_arguments(tiny_pair, traces, tmp_path, "trainer.max_steps=2", "loss=sft", *ASK)
    folder = train_run(words, tmp_path / "run")
    found = run([f"model={folder}", *ASK], tmp_path / "a")
    summary = json.loads((folder / "summary.json").read_text())
    trained, asked = summary["benchmarks"]["arithmetic"]["after"], found["benchmarks"]["arithmetic"]
    assert trained["figures"] == asked["figures"]
    after = [one for one in samples(folder) if one.pop("stage") == "after"]
    assert after == samples(tmp_path / "a")
    # And both compare: the run's own samples, those before training, and the evaluation's.
    out = compare_folders(
        compose(
            [f"compare=['{folder}@before','{folder}','{tmp_path / 'a'}']", f"out={tmp_path / 'compared'}"]
        )
    )
    assert {"comparison.json", "comparison.md", "comparison.png"} <= {path.name for path in out.iterdir()}


@pytest.mark.slow
def test_weights_and_biases_gets_the_same_tables(
    tiny_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    run([f"model={tiny_pair[0]}", *ASK, "logger=wandb"], tmp_path / "a")
    import wandb

    wandb.teardown()
    assert {"samples", "scores", "arithmetic/accuracy"} <= wandb_keys(tmp_path / "a")
    tables = [
        json.loads(path.read_text()) for path in (tmp_path / "a").glob("wandb/*/files/media/table/*.json")
    ]
    by_columns = {tuple(table["columns"]): table["data"] for table in tables}
    rows = by_columns["stage", "benchmark", "figure", "value", "low", "high"]
    accuracy = json.loads((tmp_path / "a" / "results.json").read_text())["benchmarks"]["arithmetic"][
        "figures"
    ]["accuracy"]
    assert ["evaluation", "arithmetic", "accuracy", *accuracy.values()] in rows
    (of_samples,) = (data for columns, data in by_columns.items() if "completion" in columns)
    assert len(of_samples) == 12


@pytest.mark.slow
def test_a_teacher_of_the_family_shows_the_drift(
    tiny_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, teacher = map(str, tiny_pair)
    words = [f"model={student}", f"teacher={teacher}", *ASK, "drift.limit=11", "drift.samples=2"]
    found = run(words, tmp_path / "a")
    assert found["drift"]["problems"] == 11
    assert found["drift"]["completions"] == {"student": 22, "teacher": 22}
    assert {"kl_student_written", "teacher_nll_student_written"} <= set(found["drift"]["figures"])
    assert (tmp_path / "a" / "drift.png").read_bytes()[:4] == b"\x89PNG"
    assert f"Drift from {tiny_pair[1]} over 11 problems" in (tmp_path / "a" / "results.md").read_text()
    reads: list[str] = []
    original = Benchmark.problems

    def note(self: Benchmark) -> Any:
        reads.append(self.name)
        return original(self)

    with monkeypatch.context() as patch:  # there is nothing left to write or to read
        patch.setattr(LazyModel, "get", lambda self: pytest.fail(f"{self.source.name} is loaded"))
        assert run(words, tmp_path / "a")["drift"] == found["drift"]
    monkeypatch.setattr(Benchmark, "problems", note)
    alike = run([f"model={student}", f"teacher={student}", *ASK], tmp_path / "b")
    assert reads == ["arithmetic"]  # once, for the evaluation and for both models' drift
    assert alike["drift"]["figures"]["kl_student_written"]["value"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["benchmark=arithmetic"], "model is not set: name the model to evaluate"),
        (["model=/nowhere/at/all", "benchmark=arithmetic"], "model=/nowhere/at/all"),
        (["model=tiny", "model.role=boss", "benchmark=arithmetic"], "model.role='boss' is not one of"),
        (["model=smollm2-135m", "model.role=teacher", "benchmark=arithmetic"], "this pair has no teacher"),
        (["model=tiny", "benchmark=none"], "no benchmark is named"),
        (["model=tiny", "benchmark=arithmetic", "device=tpu"], "device='tpu' is not one of"),
        (["model=tiny", "benchmark=arithmetic", "threads=0"], "threads=0 must be"),
        (["model=tiny", "benchmark=arithmetic", "engine.token_budget=0"], "engine.token_budget=0"),
        (["model=tiny", "benchmark=arithmetic", "benchmark.path=x"], "arithmetic takes no file"),
        (["model=tiny", "benchmark=gsm8k", "benchmark.path=/no.jsonl"], "/no.jsonl does not exist"),
        ([*TINY, "teacher=tiny", "drift.samples=0"], r"drift.samples=0 must be a whole number, at least 1"),
        ([*TINY, "teacher=tiny", "drift.limit=0"], "drift.limit=0 must be a whole number, at least 1"),
        ([*TINY, "teacher=tiny", "drift.limit=few"], "drift.limit='few' must be a whole number"),
        (
            [*TINY, "teacher=tiny", "drift.samples=2", "drift.temperature=0"],
            "drift.samples=2 with drift.temp",
        ),
        ([*TINY, "threads=true"], "threads=True must be a whole number"),
        ([*TINY, "benchmark.thinking=no"], "benchmark.thinking='no' must be two texts"),
        ([*TINY, "benchmark.thinking=[]"], r"benchmark.thinking=\[\] must be two texts"),
        ([*TINY, "benchmark.temperature=true"], "temperature=True is not a number"),
        ([*TINY, "benchmark.arithmetic.name=../x"], "name='../x' is not a valid benchmark name"),
        ([*TINY, "benchmark.arithmetic.source.operations=[8,4]"], "benchmark arithmetic: operations must be"),
        ([*TINY, "engine=vllm"], "engine=vllm needs vLLM"),
        (["model=tiny", "benchmark=arithmetic", "model.dtype=int8"], "dtype 'int8' is not"),
        (["compare=[x]"], "compare=.*name two folders or more"),
        (["compare=[x,y]"], "x"),
        (["compare=[x,y]", "model.source=tiny"], "model=tiny beside compare=.* asks no"),
        (["compare=[x,y]", "teacher=tiny"], "teacher=tiny beside compare="),
    ],
)
def test_a_mistake_gets_one_sentence_and_leaves_no_folder(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    cfg = compose([*words, f"out={tmp_path / 'a'}"])
    with pytest.raises(UserError, match=message):
        compare_folders(cfg) if cfg.compare else evaluate_model(cfg)
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_values_of_another_type_are_named_too(tmp_path: Path) -> None:
    """In a process of its own: this one checks types ahead of us."""
    gsm8k = ["model=tiny", "benchmark=gsm8k"]
    cases = [
        ([*TINY, "benchmark.thinking=5"], "benchmark.thinking=5 must be two texts"),
        ([*TINY, "benchmark.system=5"], "benchmark.system=5 is no text"),
        ([*TINY, "benchmark.arithmetic.limit=foo"], "benchmark.limit='foo' must be a whole number"),
        ([*TINY, "benchmark.arithmetic.source=null"], "benchmark.arithmetic.source=None is no function"),
        ([*TINY, "benchmark.arithmetic.prompt=null"], "benchmark.arithmetic.prompt=None has no {problem}"),
        ([*TINY, "benchmark.arithmetic.source.operations=4"], "operations=4 must be a list"),
        ([*TINY, "benchmark.arithmetic.source.count=x"], "count='x' must be a whole number"),
        ([*gsm8k, "benchmark.path=[a]"], "benchmark.path=['a'] is no text"),
        ([*gsm8k, "benchmark.gsm8k.path=5"], "benchmark.path=5 is no text"),
    ]
    folder = tmp_path / "work"
    folder.mkdir()
    (tmp_path / "asks.py").write_text(
        "import json, sys\nfrom test_evaluate import UserError, compose, evaluate_model\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    try:\n        evaluate_model(compose(words))\n"
        "    except UserError as error:\n        print(str(error))\n"
    )
    done = warm.run([str(tmp_path / "asks.py"), json.dumps([words for words, _ in cases])], folder)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert len(said) == len(cases), done.stdout
    assert not [(one, wanted) for one, (_, wanted) in zip(said, cases, strict=True) if wanted not in one]
    assert not list(folder.iterdir())


def test_a_group_of_which_nothing_is_chosen_says_its_options_and_another_key_its_command() -> None:
    with pytest.raises(
        UserError, match=r"logger=foo: there is no such logger \(options: csv, mlflow, tensorboard, wandb\)"
    ):
        compose([*TINY, "logger=foo"])
    with pytest.raises(
        UserError, match=r"no key 'limit'; did .*; python -m distill.evaluate --cfg job shows"
    ):
        compose([*TINY, "limit=3"])


@pytest.mark.slow
def test_an_engine_that_wrote_nothing_leaves_the_folder_to_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    out = tmp_path / "a"
    with pytest.raises(UserError, match="engine=vllm needs vLLM"):
        run([*TINY, *ASK, "engine=vllm"], out)
    # As a process leaves it that was killed before its first completion.
    place = out / "completions" / "arithmetic"
    place.mkdir(parents=True)
    (place / "key.json").write_text('{"engine": "vllm"}')
    (place / "completions.jsonl").touch()
    assert run([*TINY, *ASK], out)["benchmarks"]["arithmetic"]["samples"] == 12


@pytest.mark.slow
def test_what_one_benchmark_refuses_is_said_before_another_is_asked(gsm8k: Path, tmp_path: Path) -> None:
    more = ["benchmark=[gsm8k,arithmetic]", f"benchmark.gsm8k.path={gsm8k}"]
    run([*TINY, *ASK], tmp_path / "a")
    before = {path: path.read_bytes() for path in (tmp_path / "a").glob("*") if path.is_file()}
    with pytest.raises(UserError, match="holds completions of arithmetic made with another sampling"):
        run(["model=tiny", *more, "benchmark.max_new_tokens=9"], tmp_path / "a")
    assert {path: path.read_bytes() for path in (tmp_path / "a").glob("*") if path.is_file()} == before
    assert [path.name for path in (tmp_path / "a" / "completions").iterdir()] == ["arithmetic"]


@pytest.mark.slow
def test_what_broke_off_leaves_a_report_of_what_it_had_found(
    gsm8k: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(one: Any, *rest: Any, **options: Any) -> Any:
        if one.benchmark.name == "gsm8k":
            raise KeyboardInterrupt
        return original(one, *rest, **options)

    original = evaluate
    monkeypatch.setattr(command, "evaluate", interrupted)
    words = ["benchmark=[arithmetic,gsm8k]", "benchmark.max_new_tokens=8", f"benchmark.gsm8k.path={gsm8k}"]
    with pytest.raises(KeyboardInterrupt):
        run(["model=tiny", *words, "benchmark.arithmetic.limit=12"], tmp_path / "a")
    assert "| arithmetic | 12 | 1 |" in (tmp_path / "a" / "results.md").read_text()
    assert (tmp_path / "a" / "results.html").is_file()
    assert [path.name for path in (tmp_path / "a" / "completions").iterdir()] == ["arithmetic"]


@pytest.mark.slow
def test_the_name_is_in_the_titles_and_the_time_that_it_took_stays_known(tmp_path: Path) -> None:
    found = run([*TINY, *ASK, "name=mine"], tmp_path / "a")
    assert (found["name"], found["model"]) == ("mine", "package:distill/tiny/student")
    assert (tmp_path / "a" / "results.md").read_text().startswith("mine, in %")
    assert "<title>mine" in (tmp_path / "a" / "results.html").read_text()
    again = run([*TINY, *ASK, "name=mine"], tmp_path / "a")
    assert again["benchmarks"] == found["benchmarks"]
    assert again["benchmarks"]["arithmetic"]["seconds"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("results.json", "{", "results.json is damaged"),
        ("results.json", "[]", "results.json is damaged"),
        ("results.json", '{"benchmarks": {"gsm8k": {}}}', r"results.json is damaged \(KeyError: 'figures'\)"),
        ("results.json", '{"benchmarks": {"gsm8k": 5}}', "results.json is damaged"),
        ("samples.jsonl", '{"benchmark": "arithm', "samples.jsonl, line 1 is no sample of an evaluation"),
        ("samples.jsonl", b"\xff\n", "samples.jsonl cannot be read"),
    ],
)
def test_a_damaged_folder_is_named_and_the_completions_are_kept(
    name: str, content: str | bytes, message: str, tmp_path: Path
) -> None:
    run([*TINY, *ASK], tmp_path / "a")
    path = tmp_path / "a" / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(
        UserError, match=rf"{name} is damaged: it is not what was written.*the completions are"
    ):
        run([*TINY, *ASK], tmp_path / "a")
    (tmp_path / "a" / "checksums.json").unlink()  # earlier versions kept none
    with pytest.raises(UserError, match=message):
        run([*TINY, *ASK], tmp_path / "a")
    path.unlink()
    assert run([*TINY, *ASK], tmp_path / "a")["benchmarks"]["arithmetic"]["samples"] == 12


@pytest.mark.slow
def test_a_pairs_two_models_have_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert evaluate_model(compose([*TINY, *ASK])) == Path("outputs/evaluations/tiny")
    teacher = evaluate_model(compose([*TINY, *ASK, "model.role=teacher"]))
    assert teacher == Path("outputs/evaluations/tiny_teacher")


@pytest.mark.slow
def test_a_hub_set_that_cannot_be_reached_is_named_with_its_remedy(
    tiny_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_hub(*_: Any, **__: Any) -> None:
        raise ConnectionError("no hub here")

    monkeypatch.setattr("datasets.load_dataset", no_hub)
    with pytest.raises(
        UserError, match=r"openai/gsm8k cannot be loaded from the hub \(no hub here\).*benchmark.path"
    ):
        run([f"model={tiny_pair[0]}", "benchmark=suite"], tmp_path / "a")


@pytest.mark.slow
def test_the_folder_is_named_after_the_model(
    tiny_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_pair[0], tmp_path / "runs" / "my run" / "student")
    folder = evaluate_model(compose(["model='runs/my run'", *ASK]))
    assert folder == Path("outputs/evaluations/my_run")
    folder = evaluate_model(compose(["model='runs/my run/student'", *ASK]))
    assert folder == Path("outputs/evaluations/my_run_student")


@pytest.mark.slow
def test_the_command_runs_as_the_readme_says_and_a_mistake_prints_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = warm.run(["-m", "distill.evaluate", "model=tiny", *ASK], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "| arithmetic | 12 | 1 |" in done.stdout
    assert (tmp_path / "outputs" / "evaluations" / "tiny" / "results.html").is_file()
    done = in_this_process("distill/evaluate.py", "modle=tiny")
    assert done.returncode == 1
    assert done.stderr.startswith("error: modle=tiny: there is no key 'modle'; did you mean model")
    assert {path.name for path in tmp_path.iterdir()} == {"outputs"}  # Hydra left nothing
