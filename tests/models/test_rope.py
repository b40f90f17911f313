"""Tests of models that read short and long sequences with different position factors (longrope)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM, PhimoeConfig

from distill.data import layout
from distill.data.layout import BatchLayout
from distill.errors import UserError
from distill.generation.decode import generate, uniform_draws
from distill.generation.sampling import Sampling
from distill.models.language_model import LanguageModel, ModelSource
from distill.models.packed_attention import allow_packing
from distill.models.rope import rope_switch
from distill.tiny.build import make_tokenizer

SWITCH, LENGTHS, PROMPTS = 16, (9, 30, 16, 17, 12), (4, 9, 5, 16, 3)
SIZES: dict[str, Any] = {
    **{"vocab_size": 18, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64},
    **{"eos_token_id": 1, "bos_token_id": None, "pad_token_id": 0},
    "original_max_position_embeddings": SWITCH,
    "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4},
}


def drawn(make: Callable[[], Any]) -> LanguageModel:
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "norm" not in name:
                weight.normal_(0, 0.3)
    return LanguageModel(model, make_tokenizer(), ModelSource(name="phi", location="", fingerprint=""))


@pytest.fixture(scope="module")
def phi() -> LanguageModel:
    return drawn(lambda: Phi3ForCausalLM(Phi3Config(**SIZES)))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Rows on both sides of the switch, and at it; with the mask of their completions."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 18, (len(LENGTHS), max(LENGTHS)), generator=generator)
    columns = torch.arange(1, max(LENGTHS))
    ends, starts = torch.tensor(LENGTHS)[:, None], torch.tensor(PROMPTS)[:, None]
    return ids, (columns < ends) & (columns >= starts)


def test_the_switch_is_where_the_models_configuration_has_it() -> None:
    assert rope_switch(Phi3Config(**SIZES)) == SWITCH
    assert rope_switch(Phi3Config(**(SIZES | {"rope_scaling": None}))) is None
    assert rope_switch(Phi3Config(**(SIZES | {"max_position_embeddings": SWITCH}))) is None  # never reached
    long = {"short_mscale": 1.0, "long_mscale": 1.2, "original_max_position_embeddings": 8}
    scaling = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, **long}
    sizes: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 64}
    scaled: dict[str, Any] = sizes | {"rope_scaling": scaling}
    assert rope_switch(PhimoeConfig(**scaled)) == 8
    assert rope_switch(LlamaConfig(**sizes)) is None
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    original = {"original_max_position_embeddings": 32}
    scaled = sizes | {"rope_scaling": llama3 | original}
    assert rope_switch(LlamaConfig(**scaled)) is None


@pytest.mark.parametrize("kind", ["none", "padded", "grouped"])
def test_a_rows_states_do_not_depend_on_its_neighbours(kind: Any, phi: LanguageModel) -> None:
    ids, mask = batch()
    layout = None if kind == "none" else BatchLayout(kind, 64).of(PROMPTS, LENGTHS)
    found = phi.completion_head(ids, mask, layout).hidden
    alone = []
    for row, prompt, length in zip(ids, PROMPTS, LENGTHS, strict=True):
        states = phi.model.base_model(input_ids=row[None, :length], use_cache=False).last_hidden_state
        alone.append(states[0, prompt - 1 : length - 1])
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-4, atol=1e-5)
    # The case is one: a plain pass over all rows differs.
    plain = phi.model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1][mask]
    assert (plain - found).abs().max() > 1e-2
    phi.model.zero_grad()
    found.square().sum().backward()
    gradient = phi.model.model.embed_tokens.weight.grad.clone()
    phi.model.zero_grad()
    torch.cat(alone).square().sum().backward()
    torch.testing.assert_close(gradient, phi.model.model.embed_tokens.weight.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_a_row_writes_does_not_depend_on_its_neighbours(temperature: float, phi: LanguageModel) -> None:
    ids, _ = batch()
    prompts = [row[:length].tolist() for row, length in zip(ids, (4, 22, 14, 16, 17), strict=True)]
    sampling = Sampling(temperature, max_new_tokens=30)
    draws = np.stack([uniform_draws(row, 30) for row in range(len(prompts))])
    together = generate(phi, prompts, sampling, seed=0, draws=draws, end_ids=[99])
    assert [len(one) for one in together] == [30] * len(prompts)
    for row, prompt in enumerate(prompts):
        alone = generate(phi, [prompt], sampling, seed=0, draws=draws[row : row + 1], end_ids=[99])
        assert together[row] == alone[0]
        if temperature == 0:
            reference = phi.model.generate(
                torch.tensor([prompt]), max_new_tokens=30, do_sample=False, eos_token_id=99, pad_token_id=0
            )
            assert together[row] == reference[0, len(prompt) :].tolist()
    # An end in front of the switch, and one behind it.
    for end in (together[0][2], together[0][20]):
        cut = generate(phi, prompts, sampling, seed=0, draws=draws, end_ids=[end])
        assert cut == [one[: one.index(end) + 1] if end in one else one for one in together]


@pytest.mark.slow
@pytest.mark.parametrize("common", [6, 20], ids=["common part short", "common part long"])
def test_a_common_beginning_is_read_with_the_factors_of_its_prompts(
    common: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class that, unlike Phi-3, keeps a cache over the switch, as transformers' generate keeps it."""
    monkeypatch.setitem(layout._COMMON, "cpu", 1)
    scaling = SIZES["rope_scaling"] | {"rope_type": "longrope", "original_max_position_embeddings": SWITCH}
    lm = drawn(lambda: LlamaForCausalLM(LlamaConfig(**(SIZES | {"rope_scaling": scaling}))))
    assert lm.rope_switch == SWITCH
    rng = np.random.default_rng(0)
    begin = rng.integers(2, 18, common).tolist()
    prompts = [begin + rng.integers(2, 18, count).tolist() for count in range(20, 26)]
    assert layout.common_prefix(prompts, "cpu") == common
    assert layout.common_prefix(prompts, "cpu", SWITCH) == (common if common > SWITCH else 0)
    written = generate(lm, prompts, Sampling(0.0, max_new_tokens=8), seed=0, end_ids=[99])
    for prompt, completion in zip(prompts, written, strict=True):
        expected = lm.model.generate(
            torch.tensor([prompt]), max_new_tokens=8, do_sample=False, eos_token_id=99, pad_token_id=0
        )
        assert completion == expected[0, len(prompt) :].tolist()


def test_packed_rows_are_refused_where_they_would_reach_behind_the_switch(phi: LanguageModel) -> None:
    with pytest.raises(
        UserError, match=r"layout=packed does not work with phi: .*more than 16 tokens.*grouped"
    ):
        allow_packing(phi, SWITCH + 1)
