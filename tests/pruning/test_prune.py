"""Tests of `python -m distill.prune` against loops in float64 and models made by hand without the blocks."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from test_generate import compose
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from distill.data.trace import Example, Trace
from distill.errors import UserError
from distill.evaluation.named import as_keys
from distill.generation.engines import HfEngine
from distill.models.find import find_model
from distill.models.language_model import LanguageModel
from distill.prune import check
from distill.pruning import prune_model as command_module
from distill.pruning.blocks import angular_distances, drop_blocks, last_states
from distill.pruning.prune_model import prune_model
from distill.tiny import task
from distill.tiny.build import make_tokenizer

BLOCKS = 5
SIZES = {
    "vocab_size": 18,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}
KINDS = ["full_attention" if number % 2 else "sliding_attention" for number in range(BLOCKS)]
FAMILIES: dict[str, Any] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True)),
    "hybrid": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=4, layer_types=KINDS, query_pre_attn_scalar=8)
    ),
}


def made(family: str) -> Any:
    torch.manual_seed(7)
    model = FAMILIES[family]().eval()
    with torch.no_grad():  # far from the identity, so that blocks matter
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def traces(count: int = 6) -> list[Trace]:
    rng = np.random.default_rng(0)
    return [
        Trace(
            Example(str(n), str(n)), rng.integers(2, 18, 3 + n).astype(np.int32), np.asarray([5, 1], np.int32)
        )
        for n in range(count)
    ]


@pytest.fixture
def saved(tmp_path: Path) -> Any:
    def save(family: str) -> LanguageModel:
        made(family).save_pretrained(tmp_path / family)
        make_tokenizer().save_pretrained(tmp_path / family)
        return find_model(str(tmp_path / family), key="model").load()

    return save


@pytest.mark.parametrize("family", FAMILIES)
def test_distances_are_those_of_plain_loops(family: str, saved: Any) -> None:
    lm: LanguageModel = saved(family)
    own = traces()
    states = last_states(lm, own, token_budget=24)
    expected: dict[int, list[float]] = {start: [] for start in range(BLOCKS - 2)}
    for trace in own:
        ids = torch.tensor([[*trace.prompt_ids, *trace.completion_ids]])
        with torch.no_grad():
            hidden = lm.model(input_ids=ids, output_hidden_states=True).hidden_states
        for start, angles in expected.items():
            one, other = (hidden[at][0, -1].tolist() for at in (start, start + 2))
            dot = sum(a * b for a, b in zip(one, other, strict=True))
            norms = [math.sqrt(sum(a * a for a in own)) for own in (one, other)]
            angles.append(math.acos(dot / norms[0] / norms[1]) / math.pi)
    found = angular_distances(states, 2)
    assert found.tolist() == pytest.approx([sum(own) / len(own) for own in expected.values()], abs=1e-6)
    assert found.dtype == torch.float64


@pytest.mark.parametrize(
    ("family", "start", "count"), [(f, s, c) for f in FAMILIES for s, c in ((0, 1), (1, 2))]
)
def test_what_is_left_equals_a_model_made_by_hand_without_the_blocks(
    family: str, start: int, count: int, tmp_path: Path
) -> None:
    model = made(family)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    config = type(model.config)(**model.config.to_dict())
    kept = [number for number in range(BLOCKS) if not start <= number < start + count]
    config.layer_types = (
        [config.layer_types[n] for n in kept] if getattr(config, "layer_types", None) else None
    )
    config.num_hidden_layers = len(kept)
    by_hand = type(model)(config).eval()
    names = {f"model.layers.{old}.": f"model.layers.{new}." for new, old in enumerate(kept)}
    renamed = {}
    for name, value in state.items():
        prefix = ".".join(name.split(".")[:3]) + "."
        if not name.startswith("model.layers.") or prefix in names:
            renamed[names.get(prefix, prefix) + name.removeprefix(prefix) if prefix in names else name] = (
                value
            )
    by_hand.load_state_dict(renamed, strict=True)
    drop_blocks(model, start, count)
    ids = torch.tensor([[3, 4, 5, 6, 7, 8, 9, 10, 11, 12]])
    with torch.no_grad():
        expected = by_hand(input_ids=ids).logits
        assert torch.equal(model(input_ids=ids).logits, expected)
        # With a cache, where a block's number is its place.
        written = model.generate(ids, max_new_tokens=4, do_sample=False)
        assert torch.equal(written, by_hand.generate(ids, max_new_tokens=4, do_sample=False))
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (again.config.num_hidden_layers, len(again.model.layers)) == (len(kept), len(kept))
    if family == "hybrid":
        assert again.config.layer_types == [KINDS[number] for number in kept]
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, expected)


def test_blocks_that_are_not_there_are_refused() -> None:
    model = made("llama")
    for start, count in ((0, 0), (0, BLOCKS), (4, 2), (-1, 1)):
        with pytest.raises(ValueError, match="can be dropped"):
            drop_blocks(model, start, count)
    odd: Any = torch.nn.Linear(2, 2)
    odd.config, odd.base_model = LlamaConfig(num_hidden_layers=9), torch.nn.Sequential()
    with pytest.raises(UserError, match=r"Linear has no list of its 9 blocks: it cannot be pruned"):
        drop_blocks(odd, 0, 1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "traces.jsonl"
    problems = task.problems(24, split="train", operations=(2, 4))
    rows = [{"problem": text, "completion": task.write_solution(text, "double")} for text in problems]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prune(words: list[str], folder: Path) -> dict[str, Any]:
    cfg = compose("prune", as_keys([*words, f"out={folder}", f"cache={folder.parent / 'cache'}"]))
    assert prune_model(cfg) == folder
    return json.loads((folder / "prune.json").read_text())


@pytest.mark.slow
def test_the_command_drops_the_nearest_block_and_measures_both(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["model=tiny", f"calibration={data}", "benchmark=arithmetic", "benchmark.limit=4"]
    found = prune([*words, "benchmark.max_new_tokens=24", "layers=2"], tmp_path / "out")
    assert (found["blocks"], len(found["angular_distances"]), found["traces"]) == (4, 2, 12)
    start = int(np.argmin(found["angular_distances"]))
    assert found["dropped"] == [start, start + 1]
    smaller = find_model(str(tmp_path / "out" / "student"), key="model").load()
    assert smaller.model.config.num_hidden_layers == 2
    assert smaller.source.vocabulary == find_model("package:distill/tiny/teacher", key="model").vocabulary
    assert found["parameters"]["after"] == sum(own.numel() for own in smaller.model.parameters())
    # An untrained pruned model is worse on held-out traces: the figures by plain passes.
    full = find_model("package:distill/tiny/teacher", key="model").load()
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    order = np.random.default_rng(0).permutation(24)
    for side, lm in (("before", full), ("after", smaller)):
        values = []
        for row in (rows[place] for place in order[12:]):
            prompt = lm.tokenizer(row["problem"]).input_ids
            ids = [*lm.tokenizer(row["completion"]).input_ids, lm.tokenizer.eos_token_id]
            with torch.no_grad():
                logits = lm.model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
            chosen = logits[:, : lm.vocab_size].log_softmax(-1)
            values += [-row[token].item() for row, token in zip(chosen, ids, strict=True)]
        assert found["nll"][side]["value"] == pytest.approx(np.mean(values), rel=1e-4)
    change = found["nll"]["change"]["value"]
    assert change == pytest.approx(found["nll"]["after"]["value"] - found["nll"]["before"]["value"])
    assert change > 0.1
    assert (
        found["accuracy"]["arithmetic"]["before"]["value"]
        >= found["accuracy"]["arithmetic"]["after"]["value"]
    )
    said = capsys.readouterr().out
    assert f"Dropped blocks {start} to {start + 1} of package:distill/tiny/teacher (of 4" in said
    # The same again is the same; another choice needs another folder.
    assert prune([*words, "benchmark.max_new_tokens=24", "layers=2"], tmp_path / "out") == found
    with pytest.raises(UserError, match="holds a model made with another layers: name another folder"):
        prune([*words, "layers=1"], tmp_path / "out")
    # Answers are not those of an engine with other settings.
    monkeypatch.setattr(HfEngine, "settings", {"options": {"quantization": "awq"}}, raising=False)
    with pytest.raises(UserError, match="completions of arithmetic made with another options"):
        prune([*words, "benchmark.max_new_tokens=24", "layers=2"], tmp_path / "out")


@pytest.fixture(scope="module")
def composed(data: Path) -> Any:
    return compose("prune", ["model.source=tiny", f"calibration={data}"])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("layers", 3, "has 4 blocks, of which the last and one more are always kept, so at most 2 can"),
        ("layers", 0, "layers=0 must be a whole number, at least 1"),
        ("calibration", None, "calibration= is not set: name traces to choose the blocks by"),
        ("calibration", "gone.jsonl", "calibration: data file gone.jsonl does not exist"),
        ("model.source", "/no/where", "model=/no/where: there is no such folder"),
        ("device", "tpu", "device='tpu' is not one of auto, cpu, cuda"),
    ],
)
def test_a_mistake_gets_one_sentence(
    key: str, value: Any, message: str, composed: Any, tmp_path: Path
) -> None:
    cfg = composed.copy()
    OmegaConf.update(cfg, "out", str(tmp_path / "out"))
    OmegaConf.update(cfg, key, value)
    with pytest.raises(UserError, match=message):
        check_and_prune(cfg)
    assert not (tmp_path / "out").exists()


def check_and_prune(cfg: Any) -> None:
    check(cfg, [])
    prune_model(cfg)


@pytest.mark.slow
def test_a_configuration_that_numbers_its_blocks_in_an_unknown_way_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read back must compute the same: here another block is lost on the way."""
    save = command_module.save_student

    def lose(lm: LanguageModel, folder: Path) -> None:
        lm.model.model.layers[0].mlp.down_proj.weight.data += 0.1
        save(lm, folder)
        lm.model.model.layers[0].mlp.down_proj.weight.data -= 0.1

    monkeypatch.setattr(command_module, "save_student", lose)
    with pytest.raises(UserError, match="does not compute the same once it is saved and read"):
        prune(["model=tiny", f"calibration={data}"], tmp_path / "out")
    assert not (tmp_path / "out" / "student").exists()
