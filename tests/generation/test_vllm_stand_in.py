"""Tests of the vLLM engine against a stand-in with the real one's faults; tests/engines has the real one."""

import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from vllm_stub import Llm, vllm  # noqa: F401  a fixture

from distill.errors import UserError
from distill.generation.engine import Request
from distill.generation.engines import HfEngine, VllmEngine
from distill.generation.sampling import Sampling
from distill.models.find import find_model
from distill.models.lazy import LazyModel
from distill.tiny import task

GREEDY = Sampling(max_new_tokens=12)


@pytest.fixture
def model(tiny_pair: tuple[Path, Path]) -> LazyModel:
    """The student, whose matrices are tied."""
    return LazyModel(find_model(str(tiny_pair[0]), key="model"), "cpu")


def requests(model: LazyModel, count: int = 8) -> list[Request]:
    problems = task.problems(count, split="test", operations=(2, 4))
    tokenizer = model.source.tokenizer
    return [Request(np.asarray(tokenizer(one).input_ids), (), seed) for seed, one in enumerate(problems)]


def ids(engine: Any, asked: list[Request], sampling: Sampling = GREEDY) -> list[list[int]]:
    found = dict(engine.write(asked, sampling))
    return [found[place].ids.tolist() for place in range(len(asked))]


def state() -> dict[str, Any]:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    return {
        "torch": torch.get_rng_state().tolist(),
        "hook": sys.excepthook,
        "threads": torch.set_num_threads,
        "variables": variables,
    }


@pytest.mark.slow
@pytest.mark.usefixtures("vllm")
def test_the_process_is_as_before_an_engine_wrote_in_it(model: LazyModel) -> None:
    asked = requests(model, 2)
    engine = VllmEngine(model)
    torch.manual_seed(3)
    before = state()
    for _ in range(2):
        assert len(ids(engine, asked)) == 2
        assert state() == before
    engine.take_weights(model.get().model.state_dict().items())
    engine.close()
    assert state() == before
    random.seed(7)
    wanted = random.random()
    random.seed(7)
    engine.check()
    assert engine._llm is not None
    assert random.random() == wanted


@pytest.mark.slow
def test_vllm_writes_only_tokens_of_the_tokenizer(model: LazyModel, vllm: list[Llm]) -> None:  # noqa: F811
    asked, hot = requests(model, 10), Sampling(1.5, max_new_tokens=12)
    found = ids(VllmEngine(model), asked, hot)
    assert max(map(max, found)) < model.source.vocab_size
    prompts, parameters = vllm[0].asked[0]
    for one in parameters:  # what the real one does unless told
        one.logit_bias = None
    free = [one.outputs[0].token_ids for one in vllm[0].generate(prompts, parameters, use_tqdm=False)]
    assert max(map(max, free)) >= model.source.vocab_size


@pytest.mark.parametrize(
    ("length", "said"), [(0, "is empty"), (20, "leaves no room"), (21, "leaves no room")]
)
def test_a_prompt_that_does_not_fit_is_named_before_anything_is_asked(
    length: int,
    said: str,
    model: LazyModel,
    vllm: list[Llm],  # noqa: F811
) -> None:
    asked = [*requests(model, 2), Request(np.full(length, 5, dtype=np.int32), (), 0)]
    with pytest.raises(UserError, match=f"the prompt of problem '3*' .*{said}"):
        list(VllmEngine(model, max_model_len=20).write(asked, GREEDY))
    assert not vllm


@pytest.mark.slow
def test_text_follows_tied_weights(
    model: LazyModel,
    vllm: list[Llm],  # noqa: F811
) -> None:
    asked, lm = requests(model), model.source.load()
    engine, first = VllmEngine(model), ids(VllmEngine(model), asked)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in lm.model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.3)
    engine.take_weights(lm.model.state_dict().items())
    changed = ids(engine, asked)
    assert changed != first
    assert changed == ids(HfEngine(LazyModel.of(lm)), asked)


def test_an_engine_that_is_closed_or_forgotten_is_shut_down(model: LazyModel, vllm: list[Llm]) -> None:  # noqa: F811
    engine = VllmEngine(model)
    asked = requests(model, 1)
    ids(engine, asked)
    engine.close()
    engine.close()
    assert vllm[0].shut_down == 1
    ids(engine, asked)  # starts again
    del engine
    assert [one.shut_down for one in vllm] == [1, 1]


def test_auto_is_the_dtype_that_is_stored(tiny_pair: tuple[Path, Path], vllm: list[Llm]) -> None:  # noqa: F811
    found = find_model(str(tiny_pair[0]), key="model", dtype="auto")
    ids(VllmEngine(LazyModel(found, "cpu")), requests(LazyModel(found, "cpu"), 1))
    assert vllm[0].options["dtype"] == "float32"  # vLLM's own auto would take half of it


def test_another_version_than_the_one_that_was_run_is_said_once(
    model: LazyModel,
    vllm: list[Llm],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for _ in range(2):
        VllmEngine(model).check()
    assert not capsys.readouterr().err
    monkeypatch.setattr(sys.modules["vllm"], "__version__", "0.99.1")
    for _ in range(2):
        VllmEngine(model).check()
    assert capsys.readouterr().err.count("vLLM 0.99.1 is installed; what was run and tested is 0.32") == 1


def test_what_fails_in_vllm_is_one_sentence(
    model: LazyModel,
    vllm: list[Llm],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory\nand more")

    asked = requests(model, 1)
    with monkeypatch.context() as failing:
        failing.setattr(Llm, "generate", fail)
        with pytest.raises(UserError, match=r"vLLM failed while .*: out of memory; .*take engine=hf"):
            list(VllmEngine(model).write(asked, GREEDY))
    monkeypatch.setattr(Llm, "__init__", fail)
    with pytest.raises(UserError, match=r"vLLM does not start with .*: out of memory; .*take engine=hf"):
        list(VllmEngine(model).write(asked, GREEDY))
