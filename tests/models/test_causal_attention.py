"""Tests of attention in two calls: equal to its definition, used where it pays, and nowhere else."""

from typing import Any

import pytest
import torch
from test_layout import small
from torch import Tensor

from distill.models import causal_attention
from distill.models.causal_attention import HALVED_ATTENTION, attention, halve_attention


def drawn(tokens: int, dtype: torch.dtype = torch.float64, heads: int = 4, keys: int = 2) -> list[Tensor]:
    """Queries, keys and values of two rows."""
    generator = torch.Generator().manual_seed(tokens)
    return [
        torch.randn(2, count, tokens, 8, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for count in (heads, keys, keys)
    ]


def by_definition(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Softmax of scaled products with the keys that are not later, query by query."""
    rows, heads, tokens, _ = query.shape
    found = []
    for row in range(rows):
        for head in range(heads):
            of = head * key.shape[1] // heads
            for at in range(tokens):
                scores = scaling * (key[row, of, : at + 1] @ query[row, head, at])
                found.append(scores.softmax(0) @ value[row, of, : at + 1])
    return torch.stack(found).view(rows, heads, tokens, -1).transpose(1, 2)


def called(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of queries of the calls of torch's attention."""
    kernel, calls = causal_attention.scaled_dot_product_attention, []

    def counting(query: Tensor, *others: Any, **options: Any) -> Tensor:
        calls.append(query.shape[2])
        return kernel(query, *others, **options)

    monkeypatch.setattr(causal_attention, "scaled_dot_product_attention", counting)
    return calls


class Layer(torch.nn.Module):
    """An attention layer, as far as attention asks it."""

    is_causal = True

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.num_key_value_groups = groups


LAYER = Layer(2)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [257, 300, 512])
def test_two_calls_are_equal_to_the_definition_and_so_are_gradients(
    tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = called(monkeypatch)
    inputs = drawn(tokens)
    found, _ = attention(LAYER, *inputs, None, scaling=0.3)
    assert calls == [256, tokens - 256]
    expected = by_definition(*inputs, 0.3)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    upstream = torch.randn(found.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    of_found = torch.autograd.grad(found, inputs, upstream)
    of_expected = torch.autograd.grad(expected, inputs, upstream)
    torch.testing.assert_close(of_found, of_expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("heads", [4, 2])
def test_half_precision_is_as_near_to_float64_as_one_call_is(heads: int) -> None:
    layer = Layer(heads // 2)
    exact = drawn(320, heads=heads)
    inputs = [x.detach().to(torch.bfloat16) for x in exact]
    expected, _ = attention(layer, *exact, None)
    halved, _ = attention(layer, *inputs, None)
    whole = causal_attention.sdpa_attention_forward(layer, *inputs, None)[0]
    off, off_whole = (float((x.double() - expected).detach().abs().max()) for x in (halved, whole))
    assert halved.dtype == torch.bfloat16
    assert off <= 1.5 * off_whole


@pytest.mark.parametrize(
    ("tokens", "options"),
    [
        (256, {}),
        (513, {}),
        (300, {"dropout": 0.5}),
        (300, {"is_causal": False}),
        (300, {"attention_mask": torch.ones(1, 1, 300, 300, dtype=torch.bool).tril()}),
    ],
    ids=["short", "long", "dropout", "both ways", "mask"],
)
def test_anything_else_is_one_call_of_transformers_attention(
    tokens: int, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = called(monkeypatch)
    inputs, options = drawn(tokens), {"attention_mask": None} | options
    torch.manual_seed(0)
    found, _ = attention(LAYER, *inputs, **options)
    torch.manual_seed(0)
    assert found.equal(causal_attention.sdpa_attention_forward(LAYER, *inputs, **options)[0])
    assert calls == []


def test_a_cache_of_earlier_keys_is_left_to_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = called(monkeypatch)
    query, key, value = drawn(300)
    more = [torch.cat((x, x), dim=2) for x in (key, value)]
    found, _ = attention(LAYER, query, *more, None)
    assert found.equal(causal_attention.sdpa_attention_forward(LAYER, query, *more, None)[0])
    assert calls == []


def states(lm: Any, ids: Tensor, precision: torch.dtype | None = None) -> Tensor:
    with torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None):
        return lm.model.base_model(input_ids=ids, use_cache=False).last_hidden_state


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "gpt_neox", "gemma3_text"])
@pytest.mark.parametrize("precision", [None, torch.bfloat16], ids=["fp32", "bf16"])
def test_models_compute_the_same_states_and_gradients(
    family: str, precision: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = {"sliding_window": 400} if family == "gemma3_text" else {}
    lm = small(family, max_position_embeddings=512, **wide)
    ids = torch.randint(20, (2, 270), generator=torch.Generator().manual_seed(1))
    found = []
    for halved in (False, True):
        calls = called(monkeypatch)
        if halved:
            halve_attention(lm)
            assert lm.model.config._attn_implementation == HALVED_ATTENTION
        lm.model.zero_grad()
        made = states(lm, ids, precision)
        assert bool(calls) == halved
        made.square().mean().backward()
        found.append([made] + [p.grad.clone() for p in lm.model.parameters() if p.grad is not None])
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if precision is None else {"rtol": 5e-2, "atol": 5e-2}
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


def test_a_sliding_window_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = small("gemma3_text", max_position_embeddings=512)  # a window of 4
    ids = torch.randint(20, (1, 270), generator=torch.Generator().manual_seed(1))
    before = states(lm, ids)
    halve_attention(lm)
    torch.testing.assert_close(states(lm, ids), before, rtol=1e-4, atol=1e-5)


def test_models_with_an_attention_of_their_own_or_another_one_keep_it() -> None:
    falcon = small("falcon")
    halve_attention(falcon)
    assert falcon.model.config._attn_implementation == "sdpa"
    eager = small("llama")
    eager.model.set_attn_implementation("eager")
    halve_attention(eager)
    assert eager.model.config._attn_implementation == "eager"


def test_models_that_read_only_some_keys_keep_the_attention_that_does_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They choose keys by a mask where attention is called sdpa, and leave the choice to others otherwise."""
    heads: dict[str, Any] = {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    groups = {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 2, "num_key_value_heads": 4}
    ranks = {"q_lora_rank": 16, "kv_lora_rank": 16}
    index = {"index_topk": 4, "index_head_dim": 16, "index_n_heads": 2}
    lm = small("deepseek_v32", **heads, **experts, **groups, **ranks, **index)
    ids = torch.randint(20, (2, 12), generator=torch.Generator().manual_seed(1))
    before = states(lm, ids)
    halve_attention(lm)
    assert lm.model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(states(lm, ids), before)
    # A model of this kind whose configuration does not say so is stopped in its first pass.
    monkeypatch.setattr(causal_attention, "special_layers", lambda lm: [])
    halve_attention(lm)
    with pytest.raises(ValueError, match="reads only some keys"):
        states(lm, ids)
