"""Tests of padded, grouped and packed batches: equal losses and gradients, and unsupported combinations."""

import inspect
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import test_training
import torch
import transformers
from covering import some_of
from hypothesis import given, settings
from hypothesis import strategies as st
from test_batch_and_data import random_traces
from test_training import arguments, column, run

from distill.data.batch import collate
from distill.data.layout import BatchLayout, LayoutKind, Segments, _packs, alike
from distill.data.trace import Trace
from distill.errors import UserError
from distill.models import packed_attention
from distill.models.language_model import LanguageModel, enable_gradient_checkpointing
from distill.models.packed_attention import allow_packing

traces = test_training.traces  # the fixture

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = {"sliding_window": 4}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1, **WINDOW},
    "qwen3": {"head_dim": 8},
    "mistral": {"head_dim": 8, **WINDOW},
    "gemma3_text": {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention"], **WINDOW},
    "phi3": WINDOW,
    "gpt2": {"bos_token_id": 1},  # positions are learned
    "gpt_neox": {},
}
LEAKING: dict[str, tuple[dict[str, Any], str]] = {
    "mamba": ({"state_size": 4}, "packed does not work"),
    "lfm2": ({"layer_types": ["conv", "full_attention"]}, "it has layers of conv"),
    "bloom": ({}, "its attention is its own"),  # positions are distances that attention adds
    "gemma2": ({"head_dim": 8}, "softcap"),
    "gpt_oss": ({"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1}, "s_aux"),
}


def small(family: str, **more: Any) -> LanguageModel:
    values = SMALL | FAMILIES.get(family, {}) | more
    if family in ("gemma2", "gemma3_text"):
        values |= {"final_logit_softcapping": None}
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **values)
    lm = LanguageModel.__new__(LanguageModel)  # without a tokenizer, which is not asked for
    lm.model = transformers.AutoModelForCausalLM.from_config(config).eval()
    lm.vocab_size, lm.source = SMALL["vocab_size"], SimpleNamespace(name=f"a small {family}")  # pyright: ignore[reportAttributeAccessIssue]
    # Away from the small numbers of an untrained model, with which everything looks alike.
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return lm


def gradients(lm: LanguageModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    lm.model.zero_grad()
    loss.backward()
    named = lm.model.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


def one_by_one(lm: LanguageModel, some: list[Trace]) -> torch.Tensor:
    """Each trace alone through the whole model, with transformers' own attention."""
    total = torch.zeros(())
    for trace in some:
        ids = torch.tensor([*trace.prompt_ids.tolist(), *trace.completion_ids.tolist()])
        logits = lm.model(input_ids=ids[None], use_cache=False).logits[0, :-1]
        start = len(trace.prompt_ids) - 1
        total = total + torch.nn.functional.cross_entropy(logits[start:], ids[1:][start:], reduction="sum")
    return total


def laid_out(lm: LanguageModel, some: list[Trace], layout: BatchLayout) -> torch.Tensor:
    batch = collate(some, layout=layout)
    head = lm.completion_head(batch.input_ids, batch.mask, batch.layout)
    labels = batch.labels[batch.mask]
    return torch.nn.functional.cross_entropy(head.hidden @ head.weight.T, labels, reduction="sum")


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    assert found.keys() == expected.keys()
    size = max(float(value.abs().max()) for value in expected.values())
    return all(float((found[name] - expected[name]).abs().max()) <= 1e-5 * size for name in expected)


@pytest.mark.covering(1)
@pytest.mark.parametrize("budget", [16384, 24])
@pytest.mark.parametrize("kind", ["padded", "grouped", "packed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_are_those_of_the_traces_one_by_one(
    family: str, kind: LayoutKind, budget: int
) -> None:
    some = random_traces(6, seed=1, longest=12)
    lm = small(family)
    expected = one_by_one(lm, some)
    expected_gradients = gradients(lm, expected)
    if kind == "packed":
        allow_packing(lm, max(map(len, some)))
    found = laid_out(lm, some, BatchLayout(kind, budget))
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert close(gradients(lm, found), expected_gradients)


@pytest.mark.parametrize("family", LEAKING)
def test_a_model_that_cannot_keep_packed_traces_apart_is_refused(family: str) -> None:
    more, why = LEAKING[family]
    with pytest.raises(UserError, match=r"data\.layout=packed does not work with a small .*grouped") as error:
        allow_packing(small(family, **more), 20)
    assert why in str(error.value)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_leak_and_a_window_passed_by_are_found_whatever_they_come_from(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = packed_attention.attention

    def leaking(*given: Any, segments: Segments | None = None, **more: Any) -> Any:
        whole = segments and Segments((sum(segments.lengths),), segments.bounds[[0, -1]])
        return original(*given, segments=whole, **more)

    def without_window(*given: Any, sliding_window: int | None = None, **more: Any) -> Any:
        return original(*given, **more)

    wrong = leaking if family == "llama" else without_window
    monkeypatch.setitem(transformers.AttentionInterface._global_mapping, "packed", wrong)
    with pytest.raises(UserError, match="its traces see one another there, or lose their places"):
        allow_packing(small(family), 20)


def test_packed_rows_are_refused_to_a_model_that_was_not_looked_at() -> None:
    with pytest.raises(RuntimeError, match="made ready"):
        laid_out(small("llama"), random_traces(3), BatchLayout("packed"))


def test_a_model_that_may_pack_writes_and_is_saved_as_before(tmp_path: Path) -> None:
    lm = small("mistral")
    ids = torch.tensor([[0, 0, 5, 7, 9], [3, 4, 8, 6, 2]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])

    def written() -> list[list[int]]:
        ids_of: Any = lm.model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=8)
        return ids_of.tolist()

    before = written()
    lm.model.save_pretrained(tmp_path / "before")
    allow_packing(lm, 20)
    assert written() == before
    lm.model.save_pretrained(tmp_path / "after")
    texts = [(tmp_path / name / "config.json").read_text() for name in ("before", "after")]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("window", [None, 3])
def test_the_kernel_is_asked_for_the_attention_that_the_loop_computes(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = inspect.signature(packed_attention._flash)

    def flash(*given: Any, **more: Any) -> torch.Tensor:
        """By its documentation: tokens first, and a window of so many tokens before one's own."""
        asked = real.bind(*given, **more).arguments
        q, k, v, bounds = (asked[name] for name in ("query", "key", "value", "cu_seq_q"))
        assert bounds.dtype == torch.int32
        assert asked["enable_gqa"]
        assert asked["max_q"] == asked["max_k"] == 7
        back = asked["window_size"][0]
        parts = []
        for start, end in itertools.pairwise(bounds.tolist()):
            i, j = torch.arange(end - start)[:, None], torch.arange(end - start)
            seen = (j <= i) & ((j >= i - back) if back >= 0 else True)
            a, b, c = (x[start:end].transpose(0, 1) for x in (q, k, v))
            weights = (a @ b.repeat_interleave(2, 0).mT * asked["scale"]).masked_fill(~seen, -torch.inf)
            parts.append((weights.softmax(-1) @ c.repeat_interleave(2, 0)).transpose(0, 1))
        return torch.cat(parts)

    torch.manual_seed(0)
    segments = Segments((5, 7, 1), torch.tensor([0, 5, 12, 13], dtype=torch.int32))
    q, k, v = (torch.randn(1, heads, 13, 8) for heads in (4, 2, 2))
    layer: Any = torch.nn.Identity()
    layer.num_key_value_groups = 2
    expected, _ = packed_attention.attention(
        layer, q, k, v, None, scaling=0.3, sliding_window=window, segments=segments
    )
    monkeypatch.setattr(packed_attention, "_flash", flash)
    found = packed_attention._in_one_kernel(q, k, v, segments, 0.3, window)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def cheapest(lengths: list[int], budget: int, per_group: int) -> int:
    """Over all ways to put them into groups."""
    if not lengths:
        return 0
    first, rest = lengths[0], lengths[1:]
    best = 1 << 60
    for size in range(len(rest) + 1):
        for others in itertools.combinations(range(len(rest)), size):
            group = [first, *(rest[i] for i in others)]
            padded = max(group) * len(group)
            if padded > budget and len(group) > 1:
                continue
            left = [rest[i] for i in range(len(rest)) if i not in others]
            best = min(best, padded + per_group + cheapest(left, budget, per_group))
    return best


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 120), st.integers(0, 30))
def test_groups_are_the_cheapest_within_the_budget(lengths: list[int], budget: int, per_group: int) -> None:
    groups = alike(lengths, budget, per_group)
    assert sorted(itertools.chain(*groups)) == list(range(len(lengths)))
    sizes = [max(lengths[row] for row in rows) * len(rows) for rows in groups]
    assert all(size <= budget or len(rows) == 1 for size, rows in zip(sizes, groups, strict=True))
    assert sum(sizes) + per_group * len(groups) == cheapest(lengths, budget, per_group)


def test_packs_are_filled_in_order_to_the_last_token() -> None:
    assert _packs([3, 4, 1, 9, 2, 2, 3], 7) == [[0, 1], [2], [3], [4, 5, 6]]
    assert _packs([], 7) == []


@pytest.mark.parametrize("kind", ["padded", "grouped", "packed"])
def test_a_layout_holds_every_token_once_and_knows_what_it_reads(kind: LayoutKind) -> None:
    some = random_traces(9, seed=2, longest=30)
    layout = BatchLayout(kind, 80)
    batch = collate(some, layout=layout)
    assert batch.layout is not None
    assert batch.places is not None
    assert torch.equal(batch.labels.flatten()[batch.places], batch.labels[batch.mask])
    ids = torch.cat([batch.input_ids.flatten()[one.tokens].flatten() for one in batch.layout.passes])
    expected = [
        t
        for trace in some
        for t in [*trace.prompt_ids, *trace.completion_ids][len(trace.prompt_ids) - 1 : -1]
    ]
    assert ids[batch.layout.predicting].tolist() == expected
    assert sum(tokens for tokens, _ in batch.layout.reads) == len(ids)
    if kind == "packed":
        assert len(ids) == sum(map(len, some))
        for one in batch.layout.passes:
            assert one.segments is not None
            assert one.tokens.numel() == sum(one.segments.lengths) == int(one.segments.bounds[-1]) <= 80
    moved = batch.to("cpu").layout
    assert moved is not None
    assert all(
        torch.equal(a.tokens, b.tokens) for a, b in zip(moved.passes, batch.layout.passes, strict=True)
    )


@pytest.mark.slow
def test_passes_in_half_precision_share_one_copy_of_the_weights() -> None:
    lm, some = small("qwen3", intermediate_size=2048), random_traces(6, seed=1, longest=12)
    held, found = [], []
    for layout in (BatchLayout("padded"), BatchLayout("grouped", 12)):
        kept: dict[int, torch.Tensor] = {}

        def keep(tensor: torch.Tensor, kept: dict[int, torch.Tensor] = kept) -> torch.Tensor:
            kept.setdefault(tensor.data_ptr(), tensor)
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, cache_enabled=False),
        ):
            loss = laid_out(lm, some, layout)
        held.append(sum(tensor.numel() for tensor in kept.values() if tensor.dtype == torch.bfloat16))
        found.append(gradients(lm, loss.float()))
    assert held[1] < 1.2 * held[0]  # three passes with copies of their own: some three times as much
    norms = [torch.cat([g.flatten() for g in one.values()]) for one in found]
    assert float((norms[1] - norms[0]).norm() / norms[0].norm()) < 0.03


@pytest.mark.parametrize("spread", [0.5, 0.7])
def test_real_lengths_leave_little_padding_in_groups(spread: float) -> None:
    """Lengths of reasoning traces spread as log-normal ones of this width: side by side, eight of them are
    padded by more than half."""
    lengths = np.random.default_rng(0).lognormal(6.5, spread, (200, 8)).astype(int).clip(1, 8192)
    tokens = {
        kind: sum(
            tokens
            for batch in lengths
            for tokens, _ in BatchLayout(kind).of([1] * len(batch), batch.tolist()).reads
        )
        for kind in ("padded", "grouped", "packed")
    }
    assert tokens["padded"] > 1.5 * tokens["grouped"]
    assert tokens["grouped"] < 1.15 * tokens["packed"] == pytest.approx(1.15 * lengths.sum())


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    some_of(["dcod", "forward_kl", "on_policy_kd", "opsd data.completions=dataset"], "dcod", "on_policy_kd"),
)
def test_a_run_is_the_same_in_every_layout(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, words: str
) -> None:
    found = {}
    for kind in ("padded", "grouped", "packed"):
        own = arguments(tiny_pair, traces, tmp_path, *f"loss={words}".split(), "trainer.max_steps=3")
        found[kind] = run([*own, f"data.layout={kind}", "data.token_budget=64"], tmp_path / kind)
    for kind in ("grouped", "packed"):
        for name in ("train/loss", "train/gradient_norm", "weights/sum"):
            expected = column(found["padded"], name)
            assert column(found[kind], name) == pytest.approx(expected, rel=1e-4, abs=1e-7), (kind, name)
        assert sum(column(found[kind], "train/student_flops_total")) < sum(
            column(found["padded"], "train/student_flops_total")
        )


@pytest.mark.parametrize("kind", ["padded", "packed"])
@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_checkpointed_activations_give_the_same_gradients_and_hold_less(
    family: str, kind: LayoutKind
) -> None:
    some = random_traces(4, longest=12)
    lm = small(family, attention_dropout=0.3, attn_pdrop=0.3)
    if kind == "packed":
        allow_packing(lm, 24)
    lm.model.train()
    held: list[int] = []

    def step() -> dict[str, torch.Tensor]:
        torch.manual_seed(1)  # of dropout, which is drawn again in the backward pass
        kept: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            loss = laid_out(lm, some, BatchLayout(kind))
        held.append(sum(tensor.numel() for tensor in kept))
        return gradients(lm, loss)

    expected = step()
    enable_gradient_checkpointing(lm)
    assert close(step(), expected)
    assert held[1] < 0.5 * held[0]
    lm.model.eval()
    before = laid_out(lm, some, BatchLayout(kind))
    lm.model.activation_checkpointing_disable()
    assert torch.equal(laid_out(lm, some, BatchLayout(kind)), before)


@pytest.mark.slow
def test_a_run_with_checkpointed_activations_is_the_same(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    words = arguments(tiny_pair, traces, tmp_path, "loss=on_policy_kd", "trainer.max_steps=3")
    plain = run(words, tmp_path / "plain")
    anew = run([*words, "model.gradient_checkpointing=true", "model.lora.rank=null"], tmp_path / "anew")
    assert column(anew, "train/loss") == pytest.approx(column(plain, "train/loss"), rel=1e-6)
    words = [*words, "loss=sft", "model.lora.rank=2", "data.layout=packed"]
    plain = run(words, tmp_path / "plain_lora")
    anew = run([*words, "model.gradient_checkpointing=true"], tmp_path / "anew_lora")
    assert column(anew, "train/loss") == pytest.approx(column(plain, "train/loss"), rel=1e-6)
