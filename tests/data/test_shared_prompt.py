"""Tests of rows in which the traces of one prompt share it: equal losses and gradients, places, refusals."""

import itertools
import json
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from test_grid import LOSSES, WEIGHTS
from test_layout import FAMILIES, LEAKING, close, gradients, laid_out, one_by_one, small
from test_no_sync import module_of
from test_training import arguments, column, run
from torch import Tensor
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from distill.data.alignment import Alignment
from distill.data.batch import Batch, by_prompt, collate
from distill.data.layout import BatchLayout, Segments
from distill.data.trace import Example, TeacherView, Trace
from distill.errors import UserError
from distill.generation.sampling import StudentRollouts
from distill.losses import weights
from distill.losses.divergence import forward_kl
from distill.losses.signals import SIGNALS, properties_of
from distill.models import packed_attention
from distill.models.find import find_model
from distill.models.flops import causal_pairs, reading
from distill.models.language_model import LanguageModel
from distill.models.lazy import LazyModel
from distill.models.packed_attention import allow_packing
from distill.objective.objective import Objective
from distill.objective.rewards import Rewards
from distill.objective.step_values import StepProposals, StepValues
from distill.teacher.distribution import TeacherDistribution
from distill.teacher.distribution_cache import cache_distributions
from distill.teacher.logprobs import cached_logprobs, in_batches
from distill.teacher.token_stats import token_stats
from distill.tiny import task
from distill.training.datamodule import TraceOrder, _problems

SHARED = BatchLayout("shared_prompt")


def traces_of(sizes: list[int], seed: int = 0, longest: int = 12, tokens: int = 5) -> list[Trace]:
    """Traces of several prompts, shuffled: as many of each prompt as `sizes` says."""
    rng = np.random.default_rng(seed)

    def ids() -> np.ndarray:
        return rng.integers(0, tokens, rng.integers(1, longest)).astype(np.int32)

    found = []
    for number, size in enumerate(sizes):
        prompt = np.append(ids(), np.int32(number % tokens))
        for _ in range(size):
            completion = ids()
            signals = {name: -rng.random(len(completion)).astype(np.float32) for name in SIGNALS}
            for name in ("teacher_success", "student_step_value", "teacher_step_value"):
                signals[name] = -signals[name]
            found.append(Trace(Example(f"t{len(found)}", f"p{number}"), prompt, completion, signals))
    return [found[place] for place in rng.permutation(len(found))]


@pytest.mark.covering(1)
@pytest.mark.parametrize("budget", [16384, 40])
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_are_those_of_the_traces_one_by_one(family: str, budget: int) -> None:
    some = traces_of([3, 1, 2], seed=1)
    lm = small(family)
    expected = one_by_one(lm, some)
    expected_gradients = gradients(lm, expected)
    allow_packing(lm, max(map(len, some)), kind="shared_prompt")
    found = laid_out(lm, some, BatchLayout("shared_prompt", budget))
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert close(gradients(lm, found), expected_gradients)


@settings(max_examples=40, derandomize=True, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 60), st.integers(0, 99))
def test_every_token_is_there_once_with_what_it_attends_to(sizes: list[int], budget: int, seed: int) -> None:
    some = traces_of(sizes, seed)
    batch = collate(some, layout=BatchLayout("shared_prompt", budget))
    assert batch.layout is not None
    states: list[tuple[int, ...]] = []  # what stands before each state and in it
    for one in batch.layout.passes:
        assert one.segments is not None
        assert one.positions is not None
        ids = batch.input_ids.flatten()[one.tokens][0].tolist()
        bounds = one.segments.bounds.tolist()
        texts = [tuple(ids[a:b]) for a, b in itertools.pairwise(bounds)]
        prefixes = one.segments.prefixes or (-1,) * len(texts)
        read = (
            [()] * len(texts) if not one.segments.prefixes else [texts[p] if p >= 0 else () for p in prefixes]
        )
        whole = [before + own for before, own in zip(read, texts, strict=True)]
        # The same by the indices of a kernel.
        if one.segments.keys is not None and one.segments.key_bounds is not None:
            keys = [ids[key] for key in one.segments.keys.tolist()]
            spans = itertools.pairwise(one.segments.key_bounds.tolist())
            assert [tuple(keys[a:b]) for a, b in spans] == whole
        states += [
            text[: end + 1]
            for text, own in zip(whole, texts, strict=True)
            for end in range(len(text) - len(own), len(text))
        ]
        assert one.positions[0].tolist() == [len(text) - 1 for text in states[-len(ids) :]]
        assert len(ids) <= budget or sum(prefix < 0 for prefix in prefixes) == 1
        assert len(set(whole)) == len(whole) or len(some) > len(
            {(*t.prompt_ids, *t.completion_ids) for t in some}
        )
    found = [states[place] for place in batch.layout.predicting.tolist()]
    expected = []
    for trace in some:
        text = (*trace.prompt_ids.tolist(), *trace.completion_ids.tolist())
        expected += [text[:end] for end in range(len(trace.prompt_ids), len(text))]
    assert found == expected
    if budget >= sum(map(len, some)):
        prompts = {trace.prompt_ids.tobytes(): len(trace.prompt_ids) for trace in some}
        assert len(states) == sum(prompts.values()) + sum(len(trace.completion_ids) for trace in some)


def step(
    models: tuple[LanguageModel, LanguageModel], objective: Objective, batch: Batch
) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of a training step; rollouts are the batch's own completions."""
    student, teacher = models
    module = module_of(student, teacher, objective)
    module.teacher_matrix = teacher.model.get_output_embeddings().weight[: teacher.vocab_size].detach()
    module._shared_ids = torch.arange(student.vocab_size).repeat(2, 1)
    stubbed: Any = module
    stubbed._roll_out = lambda given, rollouts, number: (given, None)
    ours, theirs = torch.rand(2, *batch.mask.shape, generator=torch.Generator().manual_seed(0))
    stubbed._propose = lambda given, number: StepValues(ours, theirs, batch.mask, batch.mask)
    loss = module.training_step(batch, 0)
    return float(loss.detach()), gradients(student, loss)


def equal(
    models: tuple[LanguageModel, LanguageModel], objective: Objective, some: list[Trace], **more: Any
) -> None:
    """That a step is the same in rows of their own, to the precision of float64."""
    known = [
        name for name, signal in SIGNALS.items() if name in objective.signals and signal.shape != "vocab"
    ]
    known = [name for name in known if not name.startswith("student_") and name != "same_token"]
    results = []
    for layout in (BatchLayout("padded"), SHARED):
        results.append(step(models, objective, replace(collate(some, known, layout=layout), **more)))
    (expected, wanted), (loss, found) = results
    assert loss == pytest.approx(expected, rel=1e-9)
    size = max(float(value.abs().max()) for value in wanted.values())
    assert size > 0
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert float((found[name] - value).abs().max()) <= 1e-9 * size, name


@pytest.fixture
def models(
    student: LanguageModel, teacher: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> tuple[LanguageModel, LanguageModel]:
    """The pair in float64; transformers' norm would compute in float32 all the same."""
    norm = partialmethod(lambda self, x: torch.nn.functional.rms_norm(x, x.shape[-1:], self.weight, 1e-6))
    monkeypatch.setattr(Qwen2RMSNorm, "forward", norm)
    for lm in (student, teacher):
        lm.model.double()
        lm.model.requires_grad_(lm is student)
        allow_packing(lm, 30, kind="shared_prompt")
    return student, teacher


# Loss, weight and control of the weights.
CASES = [
    ("forward_kl", "support_ratio", "by_position"),
    ("policy_gradient", "uniform", "none"),
    ("cross_entropy", "validity", "none"),
    *((loss, "uniform", "none") for loss in LOSSES if loss != "policy_gradient"),
    *(("cross_entropy", weight, "none") for weight in WEIGHTS if weight != "validity"),
    *(("forward_kl", "support_ratio", control) for control in ("shuffled", "inverted")),
]


@pytest.mark.parametrize("cases", [CASES[:3], pytest.param(CASES[3:], marks=pytest.mark.slow)], ids=len)
def test_a_step_is_the_same_with_every_loss_and_weight(
    models: tuple[LanguageModel, LanguageModel],
    cases: list[tuple[str, str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for part in (Rewards, StepProposals):  # nothing is graded and no step is written
        monkeypatch.setattr(part, "check", lambda self, *given: None)
    some = traces_of([3, 1, 2])
    for trace in some[::2]:
        trace.weight = 0.5
    for loss, weight, control in cases:
        of_rewards = weight == "group_advantage"
        on_policy = properties_of(LOSSES[loss]).on_policy_only or of_rewards
        objective = Objective(
            StudentRollouts(1.0, samples=2) if on_policy else "dataset",
            LOSSES[loss],
            WEIGHTS[weight],
            control=control,
            proposals=StepProposals(),
            rewards=Rewards() if of_rewards else None,
        )
        equal(models, objective, some)


@pytest.mark.parametrize("source", ["hidden_states", "top_k", "samples"])
def test_a_step_from_a_cached_distribution_is_the_same(
    models: tuple[LanguageModel, LanguageModel], source: Any
) -> None:
    some = traces_of([3, 1, 2])
    kept = TeacherDistribution(
        source, top_k=4, samples=3, dtype="float64" if source == "hidden_states" else None
    )
    batch = collate(some)
    head = models[1].completion_head(batch.input_ids, batch.mask)
    rows = kept.keep(head, batch.completion_labels, kept.uniforms(0, batch.tokens))
    rows = {name: value.detach() for name, value in rows.items()}
    equal(
        models, Objective("dataset", forward_kl, weights.uniform, distribution=kept), some, distribution=rows
    )


def test_a_teacher_under_another_prompt_shares_its_own(models: tuple[LanguageModel, LanguageModel]) -> None:
    some = traces_of([3, 1, 2])
    views = {}
    for trace in some:  # one that sees the solution: not the same behind the same prompt
        prompt = np.append(trace.prompt_ids, np.int32(len(trace.completion_ids) % 2))
        trace.teacher_view = TeacherView(prompt, trace.completion_ids)
        views[prompt.tobytes()] = len(prompt)
    batch = collate(some, layout=SHARED)
    assert batch.teacher_view is not None
    assert batch.teacher_view.layout is not None
    read = sum(tokens for tokens, _ in batch.teacher_view.layout.reads)
    assert read == sum(views.values()) + sum(len(trace.completion_ids) for trace in some)
    equal(models, Objective("dataset", forward_kl, weights.support_ratio), some)


@pytest.mark.parametrize("loss", ["uld", "gold"])
def test_a_teacher_of_other_tokens_shares_its_own_prompts(
    models: tuple[LanguageModel, LanguageModel], loss: str
) -> None:
    some = traces_of([3, 1, 2])
    for trace in some:
        common = np.arange(len(trace.completion_ids))
        alignment = Alignment(common, common, common % 2 == 0)
        longer = np.append(trace.completion_ids, np.int32(1))
        trace.teacher_view = TeacherView(trace.prompt_ids[::-1].copy(), longer, alignment)
    equal(models, Objective("dataset", LOSSES[loss], weights.uniform), some)


def test_traces_of_several_teachers_share_their_prompts_too() -> None:
    some = traces_of([4, 2])
    for number, trace in enumerate(some):
        trace.teacher = f"teacher.{number % 2}"
    batch = collate(some, layout=SHARED)
    for part in batch.parts:
        layout = collate([replace(some[row], teacher=None) for row in part.rows], layout=SHARED).layout
        assert layout is not None
        assert part.batch.layout is not None
        assert part.batch.layout.reads == layout.reads


def test_one_trace_a_prompt_is_read_as_in_packed_rows() -> None:
    some = traces_of([1] * 6, tokens=50)
    found, expected = (
        collate(some, layout=BatchLayout(kind, 40)).layout for kind in ("shared_prompt", "packed")
    )
    assert found is not None
    assert expected is not None
    assert found.reads == expected.reads
    assert torch.equal(found.predicting, expected.predicting)
    for a, b in zip(found.passes, expected.passes, strict=True):
        assert a.segments is not None
        assert b.segments is not None
        assert a.segments.prefixes == b.segments.prefixes == ()
        assert a.segments.keys is None
        assert a.segments.lengths == b.segments.lengths
        assert torch.equal(a.tokens, b.tokens)


@pytest.mark.parametrize("family", LEAKING)
def test_a_model_that_cannot_keep_traces_apart_is_refused(family: str) -> None:
    more, why = LEAKING[family]
    refused = r"data\.layout=shared_prompt does not work with a small .*grouped"
    with pytest.raises(UserError, match=refused) as error:
        allow_packing(small(family, **more), 20, kind="shared_prompt")
    assert why.replace("packed", "shared_prompt") in str(error.value)


@pytest.mark.parametrize("mistake", ["no prompt", "all of the row"])
def test_a_wrong_attention_is_found_whatever_it_comes_from(
    mistake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = packed_attention.attention

    def wrong(*given_: Any, segments: Segments | None = None, **more: Any) -> Any:
        if segments is not None and mistake == "no prompt":
            segments = Segments(segments.lengths, segments.bounds)
        elif segments is not None:
            segments = Segments((sum(segments.lengths),), segments.bounds[[0, -1]])
        return original(*given_, segments=segments, **more)

    monkeypatch.setitem(transformers.AttentionInterface._global_mapping, "packed", wrong)
    with pytest.raises(UserError, match="its traces see one another there, or lose their places"):
        allow_packing(small("llama"), 20, kind="shared_prompt")


@pytest.mark.parametrize("window", [None, 3, 9])
def test_attention_in_blocks_and_the_kernels_is_that_of_a_loop(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    lengths, prefixes = (6, 5, 11, 4, 2, 3), (-1, 0, 0, -1, 3, -1)
    segments = Segments.of(lengths, prefixes)
    q, k, v = (torch.randn(1, heads, sum(lengths), 8, dtype=torch.float64) for heads in (4, 2, 2))
    rows = []
    starts = np.cumsum([0, *lengths])
    for number, (begin, prefix) in enumerate(zip(starts[:-1], prefixes, strict=True)):
        before = list(range(starts[prefix], starts[prefix + 1])) if prefix >= 0 else []
        for place in range(lengths[number]):
            seen = [*before, *range(begin, begin + place + 1)][-(window or 99) :]
            for head in range(4):
                weights_ = (k[0, head // 2, seen] @ q[0, head, begin + place] * 0.3).softmax(0)
                rows.append(weights_ @ v[0, head // 2, seen])
    expected = torch.stack(rows).view(1, sum(lengths), 4, 8)
    layer: Any = torch.nn.Identity()
    layer.num_key_value_groups = 2
    asked = {"scaling": 0.3, "sliding_window": window, "segments": segments}
    for block in (256, 4):
        monkeypatch.setattr(packed_attention, "_BLOCK", block)
        segments.masks.clear()
        found, _ = packed_attention.attention(layer, q, k, v, None, **asked)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)

    def flash(
        q: Tensor, k: Tensor, v: Tensor, q_bounds: Tensor, k_bounds: Tensor, *longest: int, **more: Any
    ) -> Tensor:
        """By its documentation, with the last query belonging to the last key."""
        assert longest == (11, 17)
        assert q_bounds.dtype == k_bounds.dtype == torch.int32
        assert more["enable_gqa"]
        back, _ = more["window_size"]
        parts = []
        for (a, b), (c, d) in zip(
            *(itertools.pairwise(x.tolist()) for x in (q_bounds, k_bounds)), strict=True
        ):
            i, j = torch.arange(d - c - (b - a), d - c)[:, None], torch.arange(d - c)
            seen = (j <= i) & ((j >= i - back) if back >= 0 else True)
            x, y, z = (
                q[a:b].transpose(0, 1),
                *(one[c:d].transpose(0, 1).repeat_interleave(2, 0) for one in (k, v)),
            )
            products = (x @ y.mT * more["scale"]).masked_fill(~seen, -torch.inf)
            parts.append((products.softmax(-1) @ z).transpose(0, 1))
        return torch.cat(parts)

    monkeypatch.setattr(packed_attention, "_flash", flash)
    found = packed_attention._in_one_kernel(q, k, v, segments, 0.3, window)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_the_order_keeps_a_prompts_traces_together() -> None:
    some = traces_of([4, 4, 4, 4])
    groups = _problems(some)
    order = TraceOrder(len(some), 8, seed=3, groups=groups)
    again = TraceOrder(len(some), 8, seed=4, groups=groups)
    epochs = [[order.batch(number) for number in (2 * epoch, 2 * epoch + 1)] for epoch in range(3)]
    for batches in epochs:
        assert sorted(itertools.chain(*batches)) == list(range(16))
        for batch in batches:
            assert len({some[place].example.problem for place in batch}) == 2
    assert epochs[0] != epochs[1]
    assert [order.batch(n) for n in range(4)] != [again.batch(n) for n in range(4)]


def test_work_is_counted_as_it_is_done() -> None:
    layout = SHARED.of([3, 3, 2, 3], [7, 8, 6, 3], ["a", "a", "b", "a"])  # the last has an empty completion
    assert layout.reads == [(3, 0), (4, 3), (5, 3), (6, 0)]
    assert layout.predicting.tolist() == [2, 3, 4, 5, 2, 7, 8, 9, 10, 13, 14, 15, 16]
    expected = causal_pairs(3) + causal_pairs(4, 3) + causal_pairs(5, 3) + causal_pairs(6)
    (one,) = layout.passes
    assert one.segments is not None
    assert sum(map(causal_pairs, one.segments.lengths, one.segments.pasts)) == expected


def test_scores_of_traces_are_those_of_traces_read_apart(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    some, found = traces_of([5, 1, 3]), []
    source = find_model(str(tiny_pair[1]), key="model.teacher")
    for share in (False, True):
        lazy, cache = LazyModel(source, "cpu", share_prompts=share), tmp_path / str(share)
        values = [*cached_logprobs(lazy, some, "teacher_logprobs", cache=cache, token_budget=60)]
        read = lazy.work
        stats = token_stats(lazy, some, cache=cache)
        rows = cache_distributions(lazy, some, TeacherDistribution("hidden_states"), cache=cache)
        found.append(
            (values, [one.ranks for one in stats], [row.read()["hidden_states"] for row in rows], read)
        )
        # What is in the cache serves both ways of reading.
        other = LazyModel(source, "cpu", share_prompts=not share)
        for a, b in zip(cached_logprobs(other, some, "teacher_logprobs", cache=cache), values, strict=True):
            np.testing.assert_array_equal(a, b)
        assert not other.loaded
    (values, ranks, states, read), (same, same_ranks, same_states, less) = found
    for a, b in zip(values, same, strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-5)
    for a, b in zip(ranks, same_ranks, strict=True):
        np.testing.assert_array_equal(b, a)
    for a, b in zip(states, same_states, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-3)
    assert less.tokens < read.tokens
    assert less.predictions == read.predictions
    assert by_prompt(some, 60) != by_prompt(some, 1000)
    (together,) = by_prompt(some, 1000)
    assert sorted(together) == list(range(9))
    prompts = {trace.prompt_ids.tobytes(): len(trace.prompt_ids) for trace in some}
    budget = sum(prompts.values()) + sum(len(trace.completion_ids) for trace in some)
    assert len(by_prompt(some, budget)) == 1
    assert len(by_prompt(some, budget - 1)) == 2
    assert reading(some, [range(9)], 1000, share_prompts=True).tokens == budget


def test_scoring_refuses_a_model_that_leaks() -> None:
    lm = small("gemma2", head_dim=8)
    lm.packs_up_to = 0
    some = traces_of([2])
    with pytest.raises(
        UserError, match=r"data\.layout=shared_prompt does not work with a small gemma2: .*softcap"
    ):
        in_batches(lm, some, range(2), lambda head, labels, numbers: {}, share_prompts=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "dcod",
        "opsd loss.rollouts=dataset data.completions=dataset loss.distribution.source=top_k",
        "sft model.lora.rank=2 model.gradient_checkpointing=true",
    ],
)
def test_a_run_is_the_same(tiny_pair: tuple[Path, Path], tmp_path: Path, words: str) -> None:
    file, found = tmp_path / "traces.jsonl", {}
    with file.open("w") as stream:  # all of them in each step, for the order differs
        for problem, style in itertools.product(
            task.problems(4, split="train", operations=(2, 3)), ("single", "double")
        ):
            completion = task.write_solution(problem, style)
            record = {"problem": problem, "completion": completion, "gold": task.answer(problem)}
            stream.write(json.dumps(record) + "\n")
    for kind in ("grouped", "shared_prompt"):
        given_ = [f"loss={words.split()[0]}", *words.split()[1:], "trainer.max_steps=3", "data.batch_size=8"]
        own = arguments(tiny_pair, file, tmp_path / kind, *given_, f"data.layout={kind}")
        found[kind] = run(own, tmp_path / kind)
    for name in ("train/loss", "train/gradient_norm"):
        expected = column(found["grouped"], name)
        assert column(found["shared_prompt"], name) == pytest.approx(expected, rel=1e-4), name
    flops = [sum(column(found[kind], "train/student_flops_total")) for kind in found]
    assert flops[1] < flops[0]
