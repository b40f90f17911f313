"""Tests of `distill.bottleneck`, and of the share of tokens that T3S masks (2601.10348)."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_training import run

from distill import bottleneck
from distill.analysis.bottleneck import find_bottleneck
from distill.benchmarks import arithmetic
from distill.errors import UserError
from distill.generation.decode import generate
from distill.generation.sampling import Sampling
from distill.models.find import find_model
from distill.runs.folder import checkpoints
from distill.tiny import task
from distill.training.masked import masked_in_words

PROBLEMS = 12


@pytest.fixture(scope="module")
def pilot(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run of the embedded student that unlearns, and the words that others share with it."""
    folder = tmp_path_factory.mktemp("pilot")
    words = [
        "model=tiny", "data=arithmetic", "data.completions=dataset", "data.double=0.5", "data.limit=12",
        "data.operations=[2,4]", "data.batch_size=12", "data.max_new_tokens=48", "benchmark=none",
        "logger=csv", f"runs={folder / 'runs'}", f"cache={folder / 'cache'}", "lr_scheduler.decay=constant",
        "optimizer.lr=3e-3",
    ]  # fmt: skip
    kept = ["loss=sft", "trainer.max_steps=6", "checkpoint.every=2", "checkpoint.keep=10"]
    return run([*words, *kept], folder / "run"), words


def right(model: str) -> float:
    """The share of the training problems that a model answers right."""
    lm = find_model(model, key="model").load()
    examples = arithmetic.load(split="train", count=PROBLEMS, operations=[2, 4], seed=0)
    prompts = [lm.tokenizer(example.problem).input_ids for example in examples]
    written = generate(lm, prompts, Sampling(temperature=0.0, max_new_tokens=48), seed=0)
    texts = [lm.tokenizer.decode(ids, skip_special_tokens=True) for ids in written]
    return sum(task.check_steps(e.problem, text) for e, text in zip(examples, texts, strict=True)) / PROBLEMS


@pytest.mark.slow
def test_the_checkpoint_with_the_lowest_accuracy_is_found_and_rrt_is_its_formula(
    pilot: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder, _ = pilot
    said = find_bottleneck(folder, problems=PROBLEMS, rrt=tmp_path / "rrt", cache=tmp_path / "cache")
    accuracies = {0: right("package:distill/tiny/student")}
    for checkpoint in checkpoints(folder / "checkpoints"):
        accuracies[int(checkpoint.name[5:])] = right(str(checkpoint / "student"))
    assert list(accuracies) == [0, 2, 4, 6]
    lowest = min(accuracies, key=lambda step: accuracies[step])
    found = json.loads((folder / "bottleneck.json").read_text())
    assert {int(s): one["value"] for s, one in found["accuracy"].items()} == pytest.approx(accuracies)
    assert found["step"] == lowest > 0
    pilot_of = folder / "checkpoints" / f"step-{lowest:06d}" / "student"
    assert Path(found["pilot"]) == pilot_of
    assert f"python train.py loss=t3s model.pilot={pilot_of}" in said
    assert f"| **{lowest}** | {100 * accuracies[lowest]:.1f} |" in said
    start = find_model("package:distill/tiny/student", key="model").load().model.state_dict()
    low, last, made = (
        load_file(path / "model.safetensors") for path in (pilot_of, folder / "student", tmp_path / "rrt")
    )
    for name, value in made.items():
        torch.testing.assert_close(value, start[name] + (last[name] - low[name]), rtol=0, atol=1e-6)
    assert find_model(str(tmp_path / "rrt"), key="model").load().vocab_size


@pytest.mark.slow
def test_the_masked_share_is_counted_before_training_and_stored(
    pilot: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, words = pilot
    step = folder / "checkpoints" / "step-000002" / "student"
    common = [*words, f"model.pilot={step}", "trainer.max_steps=1"]
    done = run([*common, "loss=t3s"], tmp_path / "t3s")
    share = json.loads((done / "summary.json").read_text())["masked_share"]
    with (done / "metrics.csv").open() as stream:
        header, row = (line.rstrip("\n").split(",") for line in [*stream][:2])
    kept = float(dict(zip(header, row, strict=True))["weights/mean"])  # the step has all traces
    assert share == pytest.approx(1 - kept, abs=1e-6)
    assert 0 < share < 1
    assert masked_in_words(share) in capsys.readouterr().out
    inverted = run([*common, "loss=t3s", "loss.control=inverted"], tmp_path / "inverted")
    assert json.loads((inverted / "summary.json").read_text())["masked_share"] == share
    assert "masked_share" not in json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize(("share", "warned"), [(0.09, True), (0.2, False), (0.36, True), (0.89, True)])
def test_a_share_far_from_the_papers_is_warned_of(share: float, warned: bool) -> None:
    said = masked_in_words(share)
    assert said.startswith("warning: ") == warned
    assert f"{share:.1%}" in said
    assert ("python -m distill.bottleneck <run>" in said) == warned


@pytest.mark.slow
def test_what_has_no_bottleneck_is_one_sentence(
    pilot: tuple[Path, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, _ = pilot

    def told(*words: Any) -> str:
        monkeypatch.setattr(sys, "argv", ["x", *map(str, words)])
        with pytest.raises(SystemExit, match="1"):
            bottleneck.main()
        return capsys.readouterr().err.splitlines()[-1]

    assert told(tmp_path) == f"error: {tmp_path} holds no run: there is no config.yaml"
    single = tmp_path / "single"
    for name in ("config.yaml", "checkpoints/step-000006/state.ckpt"):
        (single / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / name, single / name)
    assert "keeps 1 checkpoint, and the lowest accuracy lies somewhere along the run" in told(single)
    assert "--problems=0" in told(folder, "--problems", 0)
    assert "is there already: name a new folder" in told(folder, "--rrt", tmp_path)
    config = single / "config.yaml"
    config.write_text(config.read_text().replace("package:distill/tiny/student", "somebody/student"))
    with pytest.raises(UserError, match="say it again, --model somebody/student"):
        find_bottleneck(single, cache=tmp_path / "cache")
