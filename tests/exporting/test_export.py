"""Tests of `python -m distill.export` on the embedded student."""

import copy
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from commands import command
from huggingface_hub import ModelCard
from omegaconf import DictConfig, OmegaConf, open_dict

from distill.config.instantiate import resolved
from distill.config.overrides import check_overrides
from distill.config.paths import CONFIG
from distill.data.trace import Trace
from distill.errors import UserError
from distill.evaluation.benchmark import benchmarks_of
from distill.evaluation.named import as_keys
from distill.evaluation.run import ask
from distill.export import check
from distill.exporting import formats
from distill.exporting.command import export
from distill.exporting.formats import write
from distill.exporting.hub import check_push, push
from distill.exporting.settings import ExportSettings, group_size
from distill.exporting.subject import Subject
from distill.exporting.traces import calibration_traces, held_out
from distill.models.find import find_model
from distill.models.language_model import LanguageModel
from distill.runs.folder import describe
from distill.tiny import task

PROBLEMS = task.problems(6, split="train", seed=3)
SMALL = [
    "benchmark=arithmetic",
    "benchmark.limit=4",
    "benchmark.max_new_tokens=12",
    "speed.tokens=4",
    "speed.prompts=2",
]


@pytest.fixture(scope="module")
def heldout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("held") / "held.jsonl"
    solved = [{"problem": one, "completion": task.write_solution(one, "single")} for one in PROBLEMS]
    path.write_text("".join(json.dumps(record) + "\n" for record in solved))
    return path


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caches of a command lie below where it is started."""
    monkeypatch.chdir(tmp_path)


def compose(*words: str) -> DictConfig:
    return check_overrides(CONFIG, "export", as_keys(["model=tiny", *words]))


def exported(folder: Path, *words: str) -> dict[str, Any]:
    cfg = compose(*words, f"out={folder}")
    with open_dict(cfg):
        cfg.pop("hydra")
    export(cfg)
    return json.loads((folder / "export.json").read_text())


@pytest.mark.slow
def test_the_command_writes_compares_and_describes_a_gguf_file(heldout: Path, tmp_path: Path) -> None:
    words = ["model=tiny", f"data.path={heldout}", *SMALL, f"out={tmp_path / 'a'}", "card.license=mit"]
    done = command("distill/export.py", *words)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "a" / "student"
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "checksums.json",
        "student-q8_0.gguf",
    ]
    found = json.loads((tmp_path / "a" / "export.json").read_text())
    assert found["bytes"]["export"] == (folder / "student-q8_0.gguf").stat().st_size
    assert found["bytes"]["export"] < 0.4 * found["bytes"]["full"]
    assert found["tokenized"] == {"texts": 10, "same": 10}
    held = found["held_out"]
    assert held["traces"] == 6
    assert 0 < held["kl"]["value"] < 1e-3
    assert abs(held["difference"]["value"]) < 0.01
    assert held["difference"]["value"] == pytest.approx(held["export"]["value"] - held["full"]["value"])
    assert found["texts"]["prompts"] == 2
    assert found["benchmarks"]["arithmetic"]["problems"] == 4
    card = ModelCard.load(folder / "README.md")
    assert (card.data.license, card.data.library_name) == ("mit", "gguf")
    assert (card.data.eval_results or [])[0].dataset_name == "arithmetic"
    assert "| weights on disk |" in done.stdout
    assert "| weights on disk |" in card.text
    # The export is a model like any other, and the folder says so.
    evaluated = command(
        "distill/evaluate.py", f"model={tmp_path / 'a'}", *SMALL[:3], f"out={tmp_path / 'evaluated'}"
    )
    assert evaluated.returncode == 0, evaluated.stderr
    own = json.loads((tmp_path / "evaluated" / "results.json").read_text())["benchmarks"]["arithmetic"]
    assert own["figures"]["accuracy"]["value"] == found["benchmarks"]["arithmetic"]["accuracy"][1]["value"]


@pytest.mark.slow
def test_an_export_that_is_there_is_measured_and_not_written_again(heldout: Path, tmp_path: Path) -> None:
    found = exported(tmp_path, "format=hf", "speed.tokens=2")
    assert found["held_out"] is found["benchmarks"] is found["texts"] is None
    weights = tmp_path / "student" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    again = exported(tmp_path, "format=hf", f"data.path={heldout}", "speed.tokens=2", "traces=3")
    assert weights.stat().st_mtime_ns == written
    assert again["held_out"]["traces"] == 3
    assert again["held_out"]["kl"]["value"] == 0
    assert again["texts"]["same"] == again["texts"]["prompts"] == 3
    with pytest.raises(UserError, match="holds an export made with another bits"):
        exported(tmp_path, "format=hf", "bits=16")


@pytest.mark.slow
def test_hugging_face_format_in_half_precision_is_written_and_uploaded(
    heldout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    words = ["format=hf", "bits=16", f"data.path={heldout}", "speed.tokens=2", "push_to_hub=me/mine"]
    found = exported(tmp_path, *words)
    assert hub.calls[1][1]["folder_path"] == tmp_path / "student"
    assert hub.calls[0][1]["private"]
    assert 0.45 < found["bytes"]["export"] / found["bytes"]["full"] < 0.55
    assert 0 < found["held_out"]["kl"]["value"] < 1e-2


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"format": "onnx"}, r"format='onnx' is not one of hf, gguf, torchao, gptq"),
    ({"bits": 5}, r"bits=5: format=gguf has 8, 16, 32 bits a weight, or null"),
    ({"format": "hf", "bits": 8}, r"bits=8: format=hf has 16, 32 bits"),
    ({"group_size": 64}, r"group_size=64: the weights of format=gguf bits=8 have no groups"),
    ({"push_to_hub": "nobody"}, r"push_to_hub=nobody is no hub id: write owner/name"),
    ({"push_to_hub": "me/mine"}, r"push_to_hub=me/mine: this machine has no token of the Hugging Face hub"),
    ({"data.path": "nothere.jsonl"}, r"nothere.jsonl does not exist"),
    ({"model.source": "./nothere"}, r"model=./nothere: there is no such folder"),
    (
        {"format": "gptq"},
        r"format=gptq needs the package gptqmodel, which is not installed: pip install .*of its own",
    ),
]


@pytest.fixture(scope="module")
def composed() -> DictConfig:
    return compose()


@pytest.mark.parametrize(("values", "sentence"), REFUSED)
def test_mistakes_are_told_before_anything_is_loaded(
    values: dict[str, Any], sentence: str, composed: DictConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    cfg = copy.deepcopy(composed)
    for key, value in values.items():
        OmegaConf.update(cfg, key, value)
    with pytest.raises(UserError, match=sentence):
        check(cfg, [])


def test_groups_divide_all_matrices() -> None:
    four = ExportSettings("torchao", 4)
    assert [group_size(four, columns) for columns in ({256, 384}, {192, 64}, {96, 256})] == [128, 64, 32]
    with pytest.raises(UserError, match=r"groups of 32 columns do not divide .* \(48, 64 columns\)"):
        group_size(four, {48, 64})
    with pytest.raises(UserError, match="groups of 128 columns do not divide"):
        group_size(ExportSettings("torchao", 4, 128), {64})


class Hub:
    """A stand-in for the hub's client."""

    calls: list[tuple[str, dict[str, Any]]]

    def __init__(self) -> None:
        self.calls = []
        self.fails = False

    def create_repo(self, repository: str, **options: Any) -> str:
        self.calls.append((repository, options))
        return f"https://hub/{repository}"

    def upload_folder(self, **options: Any) -> None:
        if self.fails:
            raise ConnectionError("no route to host\nand more")
        self.calls.append(("upload", options))


def test_an_upload_is_private_and_failures_keep_the_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    check_push("me/mine")
    assert push(tmp_path, "me/mine", private=True, message="m") == "https://hub/me/mine"
    (created, options), (_, upload) = hub.calls
    assert (created, options) == ("me/mine", {"private": True, "exist_ok": True})
    assert (upload["repo_id"], upload["folder_path"]) == ("me/mine", tmp_path)
    hub.fails = True
    with pytest.raises(
        UserError, match=r"the upload failed \(no route to host\); the export in .* is complete"
    ):
        push(tmp_path, "me/mine", private=False, message="m")


def run_folder(folder: Path, student: Path, heldout: Path, validation: str) -> Path:
    """What a run leaves that was trained on these problems, as far as an export reads it."""
    run = folder / "run"
    run.mkdir()
    (run / "student").symlink_to(student)
    words = ["model=tiny", "data=traces", f"data.path={heldout}", "loss=sft", f"data.validation={validation}"]
    words += ["benchmark.limit=3"]
    describe(run, resolved(check_overrides(CONFIG, "train", words)), words)
    return run


@pytest.mark.slow
def test_a_runs_own_traces_are_read_under_its_prompt(
    tiny_pair: tuple[Path, Path], heldout: Path, tmp_path: Path, student: LanguageModel
) -> None:
    run = run_folder(tmp_path, tiny_pair[0], heldout, "2")
    cfg = check_overrides(CONFIG, "export", [f"model.source={run}"])
    subject = Subject.of(cfg)
    assert subject.run == run
    assert subject.base == "package:distill/tiny/student"
    held = held_out(cfg, subject, student)
    trained = calibration_traces(cfg, subject, student, [])
    problems = [{trace.example.problem for trace in own} for own in (held, trained)]
    assert sorted(map(len, problems)) == [2, 4]
    assert problems[0].isdisjoint(problems[1])
    assert problems[0] | problems[1] == set(PROBLEMS)
    with pytest.raises(
        UserError, match=r"the run was trained under '\{problem\}': leave it out, or say prompt_from"
    ):
        subject.prompt({"user": "Q: {problem}", "system": None}, "run")
    assert subject.prompt({"user": "Q: {problem}", "system": None}, "data")["user"] == "Q: {problem}"


@pytest.mark.slow
def test_what_a_run_validated_with_calibrates_nothing(
    tiny_pair: tuple[Path, Path], heldout: Path, tmp_path: Path, student: LanguageModel
) -> None:
    validation = tmp_path / "validation.jsonl"
    validation.write_text(
        "".join(
            line + "\n"
            for line in heldout.read_text().splitlines()
            if json.loads(line)["problem"] == PROBLEMS[0]
        )
    )
    cfg = check_overrides(
        CONFIG, "export", [f"model.source={run_folder(tmp_path, tiny_pair[0], heldout, str(validation))}"]
    )
    subject = Subject.of(cfg)
    held, trained = held_out(cfg, subject, student), calibration_traces(cfg, subject, student, [])
    assert {trace.example.problem for trace in held} == {PROBLEMS[0]}
    assert {trace.example.problem for trace in trained} == {*PROBLEMS[1:]}


@pytest.mark.slow
def test_test_problems_calibrate_nothing(heldout: Path, tmp_path: Path, student: LanguageModel) -> None:
    cfg = compose("benchmark=arithmetic", "benchmark.limit=3", f"calibration.path={tmp_path / 'test.jsonl'}")
    subject = Subject.of(cfg)
    asked = [ask(one, subject.source) for one in benchmarks_of(cfg.benchmark)]
    tested = [
        {"problem": one.problem, "completion": task.write_solution(one.problem, "single")}
        for one in asked[0].problems[:1]
    ]
    lines = heldout.read_text() + "".join(json.dumps(record) + "\n" for record in tested)
    (tmp_path / "test.jsonl").write_text(lines)
    with pytest.raises(
        UserError, match="1 problems of the calibration's traces are test problems, such as arithm"
    ):
        calibration_traces(cfg, subject, student, asked)
    cfg.calibration.path = None
    with pytest.raises(UserError, match=r"the run's own are not to be had: name .*calibration.path="):
        calibration_traces(cfg, subject, student, asked)
    cfg.calibration.path, cfg.calibration.traces = str(heldout), 4
    assert len(calibration_traces(cfg, subject, student, asked)) == 4


@pytest.mark.slow
def test_gptq_is_given_the_training_traces(
    heldout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, student: LanguageModel
) -> None:
    """Of a stand-in for gptqmodel, which needs an environment of its own."""
    given: dict[str, Any] = {}

    class Quantized:
        def quantize(self, examples: list[dict[str, Any]], **options: Any) -> None:
            given.update(examples=examples, **options)

        def save(self, folder: str) -> None:
            student.model.save_pretrained(folder)

    stub: Any = ModuleType("gptqmodel")
    stub.__spec__ = SimpleNamespace(name="gptqmodel")
    stub.QuantizeConfig = lambda **options: options
    stub.GPTQModel = SimpleNamespace(
        load=lambda place, config: given.update(place=place, config=config) or Quantized()
    )
    monkeypatch.setitem(sys.modules, "gptqmodel", stub)
    traces = [Trace(one.example, one.prompt_ids, one.completion_ids) for one in read(heldout, student)]
    write(student, ExportSettings("gptq", 4), tmp_path / "student", "tested", traces)
    assert given["config"] == {"bits": 4, "group_size": 32}
    assert given["place"] == student.source.location
    for example, trace in zip(given["examples"], traces, strict=True):
        assert example["input_ids"] == [*trace.prompt_ids, *trace.completion_ids]
        assert example["attention_mask"] == [1] * len(trace)
    assert (tmp_path / "student" / "tokenizer.json").is_file()


def read(path: Path, student: LanguageModel) -> list[Trace]:
    cfg = compose(f"data.path={path}")
    return held_out(cfg, Subject.of(cfg), student)


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "most"), [(8, 1e-3), (4, 0.2)])
def test_torchao_is_saved_and_reloaded(heldout: Path, tmp_path: Path, bits: int, most: float) -> None:
    pytest.importorskip("torchao", reason="torchao is not installed")
    found = exported(tmp_path, "format=torchao", f"bits={bits}", f"data.path={heldout}", "speed.tokens=2")
    assert 0 < found["held_out"]["kl"]["value"] < most
    full = find_model("package:distill/tiny/student", key="model").load()
    export = formats.load(tmp_path / "student", ExportSettings("torchao", bits), full)
    name = "layers.1.mlp.up_proj.weight"
    kept, exact = (lm.model.model.get_parameter(name).detach() for lm in (export, full))
    # A step is a row's largest weight over 127; with 4 bits, that of 32 columns over 7.5.
    rows = exact if bits == 8 else exact.reshape(-1, 32)
    step = (rows.abs().amax(1, keepdim=True) / (127 if bits == 8 else 7)).expand_as(rows).reshape(exact.shape)
    assert ((kept.dequantize() - exact).abs() <= 0.55 * step).all()  # half a step, and rounding of the step
    # Of the tiny student, the embedding and the output head stay as they are; the rest is a byte a weight.
    assert found["bytes"]["export"] < 0.4 * found["bytes"]["full"]
    assert [("no smaller than with bits=8" in note) for note in found["notes"]] == [True] * (bits == 4)
