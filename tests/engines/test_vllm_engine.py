"""Tests of the vLLM engine against transformers, on the real vLLM, which runs in this process."""

import os
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_llama import CONTEXT, OPTIONS, make_llama

from distill.data.trace import Example, Trace
from distill.errors import UserError
from distill.generation.engine import Request, Written
from distill.generation.engines import HfEngine, VllmEngine
from distill.generation.sampling import Sampling
from distill.models.find import find_model
from distill.models.language_model import LanguageModel
from distill.models.lazy import LazyModel
from distill.teacher.logprobs import cached_logprobs
from distill.tiny import task

GREEDY = Sampling(max_new_tokens=16)
LIMIT = 5e-5  # of log-probs in float32


def source(folder: Path) -> LazyModel:
    return LazyModel(find_model(str(folder), key="model.teacher"), "cpu")


def requests(model: LazyModel, count: int = 40) -> list[Request]:
    tokenizer = model.source.tokenizer
    problems = task.problems(count, split="test", operations=(2, 4))
    return [Request(np.asarray(tokenizer(one).input_ids), (), 7 + seed) for seed, one in enumerate(problems)]


def written(engine: Any, asked: Sequence[Request], sampling: Sampling) -> list[Written]:
    found = dict(engine.write(asked, sampling))
    return [found[place] for place in range(len(asked))]


def ids(completions: Sequence[Written]) -> list[list[int]]:
    return [one.ids.tolist() for one in completions if one.ids is not None]


@pytest.fixture(scope="module", params=["tied", "untied"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LazyModel:
    """A model whose generation_config.json asks for top_k 1 and a penalty, which must not be applied."""
    folder = tmp_path_factory.mktemp(request.param)
    asked_for = {"top_k": 1, "repetition_penalty": 1.5, "do_sample": True, "min_p": 0.9}
    return source(make_llama(folder, tied=request.param == "tied", generation=asked_for))


class Observed:
    """What the engine's start left of the process's state."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        np.random.seed(4)  # noqa: NPY002
        random.seed(5)
        self.before = self.state()

    def state(self) -> dict[str, Any]:
        return {
            "torch": torch.get_rng_state().tolist(),
            "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002
            "random": random.getstate(),
            "hook": sys.excepthook,
            "set_num_threads": torch.set_num_threads,
            "threads": torch.get_num_threads(),
            "cores": os.sched_getaffinity(0),
            "dtype": torch.get_default_dtype(),
            "variables": {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")},
        }


@pytest.fixture(scope="module")
def engine(model: LazyModel) -> Iterator[VllmEngine]:
    """vLLM in this process, where it can be looked into."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        found = VllmEngine(model, logprobs_mode="processed_logprobs", **OPTIONS)
        observed = Observed()
        assert found._llm.llm_engine
        after = observed.state()
        assert [name for name, value in observed.before.items() if after[name] != value] == []
        yield found
        found.close()
        assert not torch.distributed.is_initialized()


def test_greedy_completions_are_transformers(engine: VllmEngine, model: LazyModel) -> None:
    asked = requests(model)
    ours, theirs = written(HfEngine(model), asked, GREEDY), written(engine, asked, GREEDY)
    assert ids(theirs) == ids(ours)
    assert [one.finished for one in theirs] == [one.finished for one in ours]
    assert 0 < sum(one.finished for one in theirs) < len(asked)  # both kinds are there
    assert all(one.ids is not None and one.ids[-1] == 1 for one in theirs if one.finished)


@pytest.mark.parametrize("more", [{}, {"temperature": 0.7, "top_p": 0.9}, {"temperature": 0.7, "top_k": 5}])
def test_a_completion_depends_on_its_seed_alone(
    more: dict[str, Any], engine: VllmEngine, model: LazyModel
) -> None:
    sampling = Sampling(**{"temperature": 1.0, "max_new_tokens": 16, **more})
    asked = requests(model)
    first = ids(written(engine, asked, sampling))
    assert ids(written(engine, asked, sampling)) == first
    some = [31, 4, 17, 0, 39, 8]
    assert ids(written(engine, [asked[place] for place in some], sampling)) == [first[one] for one in some]
    other = [Request(one.prompt_ids, (), one.seed + 1000) for one in asked]
    assert sum(a != b for a, b in zip(ids(written(engine, other, sampling)), first, strict=True)) > 30
    # Not greedy, although generation_config.json has top_k 1.
    assert first != ids(written(engine, asked, GREEDY))


def test_only_the_tokenizers_tokens_are_written(engine: VllmEngine, model: LazyModel) -> None:
    vocabulary = model.source.vocab_size
    found = written(engine, requests(model), Sampling(1.5, max_new_tokens=30))
    tokens = np.concatenate([one.ids for one in found if one.ids is not None])
    assert len(tokens) > 400
    assert tokens.max() == vocabulary - 1
    shares = np.bincount(tokens, minlength=vocabulary) / len(tokens)
    assert (shares > 0).sum() > vocabulary / 2


def test_first_tokens_follow_the_distribution_that_was_asked_for(
    engine: VllmEngine, model: LazyModel
) -> None:
    sampling = Sampling(0.7, top_p=0.9, max_new_tokens=1)
    prompt, draws = requests(model, 1)[0].prompt_ids, 1000
    found = ids(written(engine, [Request(prompt, (), seed) for seed in range(draws)], sampling))
    lm = model.get()
    with torch.no_grad():
        logits = lm.model(torch.from_numpy(prompt)[None].long()).logits[0, -1, : lm.vocab_size]
    probabilities, order = (logits / 0.7).softmax(-1).sort(descending=True)
    nucleus = (probabilities.cumsum(-1) - probabilities) < 0.9
    wanted = torch.zeros_like(logits).scatter(0, order, probabilities * nucleus)
    wanted /= wanted.sum()
    shares = torch.bincount(torch.tensor([one[0] for one in found]), minlength=lm.vocab_size) / draws
    assert (shares[wanted == 0] == 0).all()
    assert (shares - wanted).abs().max() < 4 * (0.25 / draws) ** 0.5


@pytest.mark.parametrize("more", [{}, {"temperature": 0.7, "top_p": 0.9}, {"temperature": 0.7, "top_k": 5}])
def test_logprobs_of_sampled_tokens_are_those_of_our_own_scoring(
    more: dict[str, Any], engine: VllmEngine, model: LazyModel, tmp_path: Path
) -> None:
    """vLLM's processed log-probs are the behaviour policy's, `loss.token_weight.behavior=sampler`."""
    import vllm

    sampling = Sampling(**{"temperature": 1.0, "max_new_tokens": 16, **more})
    asked = requests(model)
    fixed = engine._fixed_parameters(engine._llm, sampling, model.source.end_ids)
    outputs = engine._llm.generate(
        [{"prompt_token_ids": one.prompt_ids.tolist()} for one in asked],
        [vllm.SamplingParams(seed=one.seed, logprobs=0, **fixed) for one in asked],
        use_tqdm=False,
    )
    given = [one.outputs[0] for one in outputs]
    assert [list(one.token_ids) for one in given] == ids(written(engine, asked, sampling))
    traces = [
        Trace(Example("", f"{place}", "", ""), request.prompt_ids, np.asarray(one.token_ids, dtype=np.int32))
        for place, (request, one) in enumerate(zip(asked, given, strict=True))
    ]
    ours = cached_logprobs(model, traces, "sampler_logprobs", cache=tmp_path, sampling=sampling)
    for one, values in zip(given, ours, strict=True):
        theirs = [place[token].logprob for place, token in zip(one.logprobs, one.token_ids, strict=True)]
        np.testing.assert_allclose(values, theirs, rtol=0, atol=LIMIT)


def test_a_long_prompt_leaves_what_the_context_has(engine: VllmEngine, model: LazyModel) -> None:
    prompt = np.full(CONTEXT - 8, 5, dtype=np.int32)
    asked = [Request(prompt, (), 0), *requests(model, 2)]
    sampling = Sampling(max_new_tokens=64)
    found = written(engine, asked, sampling)
    assert ids(found) == ids(written(HfEngine(model), asked, sampling))
    assert len(ids(found)[0]) <= 8


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ([], "the prompt of problem '' is empty"),
        ([5] * CONTEXT, rf"problem '3+' has {CONTEXT} tokens, which leaves no room .* \({CONTEXT}\)"),
        ([5] * 2 * CONTEXT, rf"problem '3+' has {2 * CONTEXT} tokens, which leaves no room"),
    ],
)
def test_a_prompt_that_vllm_refuses_is_named_before_anything_is_asked(
    prompt: list[int], said: str, engine: VllmEngine, model: LazyModel
) -> None:
    asked = [*requests(model, 2), Request(np.asarray(prompt, dtype=np.int32), (), 0)]
    before = engine.seconds
    with pytest.raises(UserError, match=said):
        list(engine.write(asked, GREEDY))
    assert engine.seconds == before
    assert len(written(engine, asked[:2], GREEDY)) == 2  # still usable


def test_text_follows_the_weights_that_are_handed_over(
    engine: VllmEngine, model: LazyModel, tmp_path: Path
) -> None:
    def as_transformers(lm: LanguageModel) -> list[list[int]]:
        return ids(written(HfEngine(LazyModel.of(lm)), asked, GREEDY))

    asked = requests(model)
    first, changed = ids(written(engine, asked, GREEDY)), model.source.load()
    tied = changed.model.config.tie_word_embeddings
    other = source(make_llama(tmp_path / "other", tied=tied, seed=5)).get()
    assert as_transformers(other) != first
    for lm in (other, changed):  # to others, and back
        state = torch.get_rng_state()
        engine.take_weights(lm.model.state_dict().items())
        assert torch.equal(torch.get_rng_state(), state)
        assert ids(written(engine, asked, GREEDY)) == as_transformers(lm)
    assert ids(written(engine, asked, GREEDY)) == first


def test_an_engine_that_does_not_start_says_why_in_one_sentence(
    model: LazyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    for options, said in (
        ({"max_model_len": 10 * CONTEXT}, "max_model_len"),
        ({"no_such_option": 1}, "no_such_option"),
    ):
        with pytest.raises(UserError, match=f"vLLM does not start with .*{said}.*take engine=hf") as error:
            list(VllmEngine(model, **OPTIONS, **options).write(requests(model, 1), GREEDY))
        assert "\n" not in str(error.value)
