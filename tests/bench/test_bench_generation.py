"""Tests that contestants in generation write the same texts to the same prompts; speeds are not tested."""

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from distill.bench import __main__ as command
from distill.bench import generation, report, running
from distill.bench.comparisons import COMPARISONS
from distill.bench.inputs import model_folder, prompt_rows, read_problems
from distill.bench.measurement import Measurement, Setting
from distill.bench.meter import Meter
from distill.errors import UserError
from distill.models.find import find_model

ROOT = Path(__file__).resolve().parents[2]
PAIR = ROOT / "distill" / "tiny" / "student"


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    inputs = str(tmp_path_factory.mktemp("bench"))
    return Setting(shape="tiny", rows=5, new_tokens=6, warmup=0, inputs=inputs)


def by_hand(folder: Path, prompts: list[list[int]], count: int) -> list[list[int]]:
    """One token after the other, without a cache, up to the tokenizer's end token."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    end, found = AutoTokenizer.from_pretrained(folder).eos_token_id, []
    for prompt in prompts:
        ids = list(prompt)
        while len(ids) < len(prompt) + count and (ids[-1] != end or len(ids) == len(prompt)):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        found.append(ids[len(prompt) :])
    return found


CONTESTANTS: dict[str, Callable[[Setting, Meter], None]] = {
    "ours": generation.ours,
    "generate": generation.transformers_generate,
    "continuous": generation.continuous_batching,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONTESTANTS)
@pytest.mark.parametrize("real", [False, True])
def test_all_write_the_likeliest_tokens(name: str, real: bool, setting: Setting, tmp_path: Path) -> None:
    if real:
        problems = [f"{a} + {b} = ?" for a, b in ((3, 4), (12, 5), (1, 1), (40, 27), (9, 9), (8, 8))]
        path = tmp_path / "problems.jsonl"
        path.write_text("".join(json.dumps({"question": one}) + "\n" for one in problems))
        setting = replace(setting, model=str(PAIR), prompts=str(path))
        prompts = generation._prompts(setting, generation._source(setting))
        assert len(prompts) == setting.rows
        assert [len(prompt) for prompt in prompts] != [len(prompts[0])] * len(prompts)
    else:
        prompts = prompt_rows(setting, 512)
    meter = Meter(setting)
    CONTESTANTS[name](setting, meter)
    found = meter.measurement()
    folder = PAIR if real else model_folder(setting, "student")
    assert found.written == by_hand(folder, prompts, setting.new_tokens)
    assert found.tokens == [sum(map(len, found.written))]
    assert found.losses == []


def test_random_prompts_are_as_long_as_real_ones_with_their_template() -> None:
    prompts = prompt_rows(Setting(rows=400), 1000)
    lengths = sorted(map(len, prompts))
    assert prompts != prompt_rows(Setting(rows=400, seed=1), 1000)
    assert 95 < sum(lengths) / 400 < 115  # GSM8K's with SmolLM2's template: 108
    assert 47 + 2 <= lengths[0] < lengths[-1] <= 47 + 194
    assert {token for prompt in prompts for token in prompt} <= set(range(2, 1000))


def test_the_first_problems_of_a_file_are_read(tmp_path: Path) -> None:
    path = tmp_path / "problems.jsonl.gz"
    with gzip.open(path, "wt") as stream:
        for record in ({"question": "a"}, {"answer": "no problem"}, {"problem": "b"}, {"prompt": "c"}):
            stream.write(json.dumps(record) + "\n")
    assert read_problems(path, 2) == ["a", "b"]
    with pytest.raises(UserError, match=r"--prompts .*gz holds 3 problems .* and 4 are read"):
        read_problems(path, 4)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--prompts", "nowhere.jsonl"], "--prompts nowhere.jsonl is text.*--model"),
        (["--prompts", "nowhere.jsonl", "--model", "tiny"], "--prompts nowhere.jsonl does not exist"),
        (["--new-tokens", "0"], "--new-tokens 0 must be at least 1"),
    ],
)
def test_options_that_mean_nothing_are_refused(words: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        command.main(["generation", "--force", *words])


def test_options_reach_the_setting() -> None:
    words = ["--new-tokens", "128", "--precision", "bfloat16", "--model", "some/model"]
    base = command._setting(command._parser().parse_args(["generation", *words]), "135m")
    (setting,) = COMPARISONS["generation"].settings(base)
    assert (setting.rows, setting.new_tokens, setting.precision) == (24, 128, "bfloat16")
    assert (setting.model, setting.prompts) == ("some/model", None)


def test_a_model_that_was_saved_in_part_is_saved_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = Setting(inputs=str(tmp_path))
    source = find_model(str(PAIR), key="--model")
    with monkeypatch.context() as patched:
        full = OSError("no space left")

        def fails(*words: Any, **options: Any) -> None:
            raise full

        patched.setattr("transformers.modeling_utils.safe_save_file", fails)
        with pytest.raises(OSError, match="no space left"):
            generation._as_folder(setting, source)
    whole = generation._as_folder(setting, source)
    assert whole.load().vocab_size == source.load().vocab_size
    assert generation._as_folder(setting, source).location == whole.location


def test_a_missing_vllm_is_said_with_where_it_can_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running.importlib.util, "find_spec", lambda name: None)
    reason = running.missing(COMPARISONS["generation"].contestant("vllm"))
    assert reason is not None
    assert reason.startswith("vllm not installed: make engines")


def test_the_report_counts_equal_texts_and_compares_speeds() -> None:
    comparison = COMPARISONS["generation"]

    def measured(seconds: float, *written: list[int]) -> list[Measurement]:
        return [Measurement([seconds], [48], 10, [], {"torch": "1"}, written=list(written))]

    rounds = {
        "ours": [measured(1.0, [1, 2], [3]), measured(1.0, [1, 2], [3])],
        "generate": [measured(2.0, [1, 2], [3]), measured(1.2, [1, 2], [4])],
        "continuous": [measured(2.0, [1, 2], [3])] * 2,
        "vllm": [],
    }
    settings = comparison.settings(Setting(precision="bfloat16", model="some/model"))
    text = report.markdown(running.Result(comparison, settings, rounds, {"vllm": "not installed"}))
    assert "cpu, some/model, bf16, 24 prompts of random tokens, 48 new tokens each" in text
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in text.splitlines() if "|" in line}
    assert rows["transformers generate"][-1].strip() == "1 of 2"
    assert rows["transformers, continuous batching"][-1].strip() == "2 of 2"
    assert rows["transformers generate"][3].strip() == "1.6 [1.2, 2]"
    assert "- reached: tokens/s, distill ÷ transformers generate ≥ 1.5: 1.6 [1.2, 2]" in text
    assert "- left out: vLLM: not installed" in text
