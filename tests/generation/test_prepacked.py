"""Tests of prepacked matrices: equal products and texts, by the weights of the moment, and nothing left."""

import gc
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_generation_families import FAMILIES, PROMPTS, TOKENS, by_transformers, end_now_and_then, tiny
from torch import Tensor, nn

from distill.generation import prepacked as module
from distill.generation.decode import generate
from distill.generation.prepacked import prepacked
from distill.generation.sampling import Sampling
from distill.models.language_model import LanguageModel

GREEDY = Sampling(max_new_tokens=TOKENS)
MANY = 10**6


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Weak references to the copies that are made, also for a few tokens."""
    monkeypatch.setattr(module, "_LEAST", 0)
    made: list[Any] = []
    reorder = module.reordered

    def noted(weight: Tensor) -> Tensor:
        found = reorder(weight)
        made.append(weakref.ref(found))
        return found

    monkeypatch.setattr(module, "reordered", noted)
    return made


def linear(inputs: int, outputs: int, bias: bool = True, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(inputs + outputs)
    return nn.Linear(inputs, outputs, bias=bias).to(dtype).requires_grad_(False)


def changed(model: nn.Module) -> list[str]:
    return [name for name, one in model.named_modules() if "forward" in vars(one)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1,), (24,), (2, 3), (4, 1, 7), (0,)])
def test_products_are_those_of_the_definition(shape: tuple[int, ...], bias: bool) -> None:
    layer = linear(20, 13, bias)
    x = torch.randn(*shape, 20, generator=torch.Generator().manual_seed(1))
    expected = x.double() @ layer.weight.double().T + (layer.bias.double() if bias else 0)
    with torch.no_grad(), prepacked(layer, MANY):
        assert changed(layer)
        torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-5)
        if len(shape) > 1:  # of a view that is not in one piece
            turned = layer(x.transpose(0, 1)).double()
            torch.testing.assert_close(turned, expected.transpose(0, 1), rtol=1e-5, atol=1e-5)


def test_in_bf16_a_product_is_rounded_once() -> None:
    layer = linear(64, 32, dtype=torch.bfloat16)
    x = torch.randn(24, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    exact = x.double() @ layer.weight.double().T + layer.bias.double()
    with torch.no_grad(), prepacked(layer, MANY):
        found = layer(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-3)


def test_under_autocast_factors_are_rounded_and_without_it_they_are_not() -> None:
    layer = linear(64, 32)
    x = torch.randn(24, 64, generator=torch.Generator().manual_seed(1))
    rounded = [each.bfloat16().double() for each in (x, layer.weight, layer.bias)]
    mixed = rounded[0] @ rounded[1].T + rounded[2]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), prepacked(layer, MANY):
        found = layer(x)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.double(), mixed, rtol=2**-8, atol=1e-3)
        with torch.autocast("cpu", enabled=False):
            exact = x.double() @ layer.weight.double().T + layer.bias.double()
            torch.testing.assert_close(layer(x).double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(1.3, top_k=12, max_new_tokens=TOKENS)])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_writes_what_transformers_writes(family: str, sampling: Sampling, copies: list[Any]) -> None:
    lm = tiny(family)
    end_now_and_then(lm)
    draws = np.random.default_rng(3).random((len(PROMPTS), TOKENS))
    expected = by_transformers(lm, PROMPTS, sampling, draws)
    assert not copies
    assert generate(lm, PROMPTS, sampling, seed=0, draws=draws, end_ids=[1]) == expected
    assert len(copies) == sum(type(one) is nn.Linear for one in lm.model.modules()) > 0


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "bloom", "qwen3_next"])
def test_every_tokens_log_probs_are_those_of_a_pass_over_the_whole_text(
    family: str, copies: list[Any]
) -> None:
    """Without cache, padding or copies, in float64."""
    lm = tiny(family)
    seen: list[Tensor] = []
    handle = lm.model.get_output_embeddings().register_forward_hook(
        lambda head, args, output: seen.append(torch.log_softmax(output[:, -1].double(), -1))
    )
    written = generate(lm, PROMPTS, GREEDY, seed=0, end_ids=[99])
    handle.remove()
    assert copies
    steps = seen[-TOKENS + 1 :]  # of all rows together; the passes over prompts come before
    exact = lm.model.double()
    for row, (prompt, ids) in enumerate(zip(PROMPTS, written, strict=True)):
        with torch.no_grad():
            logits = exact(input_ids=torch.tensor([[*prompt, *ids]]), use_cache=False).logits[0]
        for step, found in enumerate(steps):
            expected = torch.log_softmax(logits[len(prompt) + step], -1)
            torch.testing.assert_close(found[row], expected, rtol=0, atol=2e-4)


def test_the_next_generation_is_by_the_weights_of_then(copies: list[Any]) -> None:
    lm, other = tiny("llama"), tiny("llama")
    before = generate(lm, PROMPTS, GREEDY, seed=0, end_ids=[1])
    with torch.no_grad():
        for one in (lm, other):
            generator = torch.Generator().manual_seed(1)
            for parameter in one.model.parameters():
                parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    copies.clear()
    after = generate(lm, PROMPTS, GREEDY, seed=0, end_ids=[1])
    assert copies
    assert after != before
    assert after == by_transformers(other, PROMPTS, GREEDY, np.zeros((len(PROMPTS), TOKENS)))


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(fails: bool, copies: list[Any]) -> None:
    lm = tiny("llama")
    with torch.no_grad():
        expected = lm.model(torch.tensor([PROMPTS[2]])).logits
    if fails:

        def broken(*args: Any) -> Any:
            raise MemoryError

        handle = lm.model.base_model.layers[1].register_forward_hook(broken)
        with pytest.raises(MemoryError):
            generate(lm, PROMPTS, GREEDY, seed=0)
        handle.remove()
    else:
        generate(lm, PROMPTS, GREEDY, seed=0)
    gc.collect()
    assert copies
    assert not [one for one in copies if one() is not None]
    assert not changed(lm.model)
    logits = lm.model(torch.tensor([PROMPTS[2]])).logits
    assert torch.equal(logits, expected)
    logits.sum().backward()  # and it can be trained
    assert all(parameter.grad is not None for parameter in lm.model.parameters())


@pytest.mark.parametrize("how", ["in place", "replaced"])
def test_a_weight_that_changes_meanwhile_is_multiplied_as_it_is_then(how: str) -> None:
    layer = linear(20, 13)
    x = torch.randn(3, 20, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), prepacked(layer, MANY):
        layer(x)
        if how == "in place":
            layer.weight.mul_(3)
        else:
            layer.weight = nn.Parameter(3 * layer.weight)
        expected = x.double() @ layer.weight.double().T + layer.bias.double()
        torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-5)


class Doubled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def hooked(inputs: int, outputs: int) -> nn.Linear:
    """Whose weights change at each use."""
    layer = linear(inputs, outputs)

    def turn(one: Any, args: Any) -> None:
        one.weight.neg_()

    layer.register_forward_pre_hook(turn)
    return layer


def others() -> Iterator[tuple[str, nn.Module]]:
    yield "subclass", Doubled(8, 5)
    yield "parametrized", nn.utils.parametrizations.orthogonal(linear(8, 5))
    yield "hooked", hooked(8, 5)
    yield "float64", linear(8, 5, dtype=torch.float64)
    yield "float16", linear(8, 5, dtype=torch.float16)
    own = linear(8, 5)
    own.forward = lambda input: input[..., :5]
    yield "own forward", own


@pytest.mark.parametrize("name", [name for name, _ in others()])
def test_what_is_no_plain_matrix_stays_as_it_is(name: str) -> None:
    layer, same = (dict(others())[name] for _ in range(2))
    same.load_state_dict(layer.state_dict())
    x = torch.randn(3, 8, dtype=next(layer.parameters()).dtype)
    with torch.no_grad():
        expected = same(x)
        with prepacked(nn.Sequential(layer), MANY):
            assert torch.equal(layer(x), expected)
    assert ("forward" in vars(layer)) == (name == "own forward")


def test_another_dtype_than_the_weights_is_refused_as_ever() -> None:
    layer = linear(8, 5)
    with torch.no_grad(), prepacked(layer, MANY), pytest.raises(RuntimeError, match="dtype"):
        layer(torch.randn(3, 8, dtype=torch.float64))


@pytest.mark.parametrize("reason", ["few tokens", "no oneDNN", "another release", "little memory"])
def test_without_copies_it_writes_the_same(
    reason: str, copies: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny("llama")
    expected = generate(lm, PROMPTS, GREEDY, seed=0)
    assert copies
    copies.clear()
    if reason == "few tokens":
        monkeypatch.setattr(module, "_LEAST", sum(map(len, PROMPTS)) + len(PROMPTS) * TOKENS + 1)
    elif reason == "no oneDNN":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    elif reason == "another release":
        monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())
    else:
        size = sum(one.weight.nbytes for one in lm.model.modules() if type(one) is nn.Linear)
        monkeypatch.setattr(module, "_free_memory", lambda: 4 * size - 1)
    assert generate(lm, PROMPTS, GREEDY, seed=0) == expected
    assert not copies


def test_hooks_on_layers_run_as_ever(copies: list[Any]) -> None:
    lm = tiny("llama")
    seen: list[int] = []
    head = lm.model.get_output_embeddings()
    head.register_forward_hook(lambda head, args, output: seen.append(1))
    head.register_forward_pre_hook(lambda head, args: seen.append(2))
    generate(lm, PROMPTS, GREEDY, seed=0, end_ids=[99])
    assert len(seen) >= 2 * TOKENS
    assert seen == [2, 1] * (len(seen) // 2)
    assert len(copies) == sum(type(one) is nn.Linear for one in lm.model.modules())


def test_adapters_are_used(copies: list[Any]) -> None:
    peft = pytest.importorskip("peft")
    lm: LanguageModel = tiny("llama")
    base = generate(lm, PROMPTS, GREEDY, seed=0, end_ids=[1])
    torch.manual_seed(1)
    settings = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    peft.inject_adapter_in_model(settings, lm.model)
    copies.clear()
    written = generate(lm, PROMPTS, GREEDY, seed=0, end_ids=[1])
    assert copies
    assert written != base
    assert written == by_transformers(lm, PROMPTS, GREEDY, np.zeros((len(PROMPTS), TOKENS)))
