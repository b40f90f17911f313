"""Tests that generation samples the model's distribution, whatever the padding, batches or checkpoint."""

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from scipy.stats import chi2, kstest
from test_cache_and_teacher import warped_by_hand
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GenerationConfig

from distill.generation.decode import generate, uniform_draws
from distill.generation.sampling import Sampling, StudentRollouts
from distill.models.language_model import LanguageModel

PROMPTS = [
    [2, 12, 5],
    [3],
    [9, 9, 9, 9, 13, 4],
    [4, 13],
    [0, 5],
    [1, 7, 8],
]  # 0 pads, 1 ends: here both are text
GREEDY = Sampling(max_new_tokens=16)
LENGTHS = [100, 31, 4, 30, 33, 5, 97, 6, 29, 32, 7, 64]


@pytest.fixture
def lm(teacher: LanguageModel) -> LanguageModel:
    """A model with an opinion: fresh random weights are too small for one."""
    with torch.no_grad():
        for parameter in teacher.model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    return teacher


def next_logits(lm: LanguageModel, ids: list[int]) -> Tensor:
    with torch.no_grad():
        logits = lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits
    return logits[0, -1, : lm.vocab_size].double()


def greedy_by_hand(lm: LanguageModel, prompt: list[int], count: int) -> list[int]:
    """One token after the other, from the whole text, without cache, mask or padding."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(next_logits(lm, ids).argmax()))
        if ids[-1] in lm.end_ids:
            break
    return ids[len(prompt) :]


def nudge(lm: LanguageModel, token: int | slice, by: float) -> None:
    """Make one token likelier everywhere."""

    def push(module: Any, args: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[..., token] += by
        return output

    lm.model.get_output_embeddings().register_forward_hook(push)


@pytest.mark.slow
def test_greedy_is_the_argmax_step_by_step(lm: LanguageModel) -> None:
    expected = [greedy_by_hand(lm, prompt, 16) for prompt in PROMPTS]
    assert len({tuple(ids) for ids in expected}) > 3
    assert generate(lm, PROMPTS, GREEDY, seed=0) == expected


@pytest.mark.slow
def test_padding_changes_nothing(lm: LanguageModel) -> None:
    together = generate(lm, PROMPTS, GREEDY, seed=0)
    assert [generate(lm, [prompt], GREEDY, seed=0)[0] for prompt in PROMPTS] == together
    assert generate(lm, PROMPTS[::-1], GREEDY, seed=5) == together[::-1]


def test_the_padding_token_may_be_the_end_token_or_missing(lm: LanguageModel) -> None:
    nudge(lm, 1, 2.0)
    expected = generate(lm, PROMPTS, GREEDY, seed=0)
    assert any(ids[-1] == 1 for ids in expected)
    for pad in ("<eos>", None):
        lm.tokenizer.pad_token = pad
        assert generate(lm, PROMPTS, GREEDY, seed=0) == expected


def test_a_completion_ends_with_its_end_token_or_at_its_limit(lm: LanguageModel) -> None:
    nudge(lm, 1, 1.0)
    written = generate(lm, [PROMPTS[0]] * 64, Sampling(1.0, max_new_tokens=12), seed=0)
    finished = [ids for ids in written if 1 in ids]
    assert 5 < len(finished) < 64
    assert all(ids.index(1) == len(ids) - 1 for ids in finished)
    assert all(len(ids) == 12 for ids in written if 1 not in ids)
    assert any(len(ids) == 1 for ids in finished)  # the end at once, and nothing behind it


def test_another_end_token_of_the_checkpoint_ends_a_completion_too(lm: LanguageModel) -> None:
    lm.model.generation_config.eos_token_id = [1, 7]
    nudge(lm, 7, 30.0)
    assert generate(lm, PROMPTS, GREEDY, seed=0) == [[7]] * len(PROMPTS)


def test_the_padding_token_as_text_does_not_end_a_completion(lm: LanguageModel) -> None:
    nudge(lm, 0, 30.0)
    assert generate(lm, PROMPTS[:2], Sampling(max_new_tokens=5), seed=0) == [[0] * 5] * 2


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1, 2, 7])
def test_no_more_tokens_are_written_than_asked_for(lm: LanguageModel, limit: int) -> None:
    nudge(lm, 1, -100.0)
    assert [len(ids) for ids in generate(lm, PROMPTS, Sampling(max_new_tokens=limit), seed=0)] == [limit] * 6


def test_the_context_bounds_a_completion(lm: LanguageModel) -> None:
    nudge(lm, 1, -100.0)
    (ids,) = generate(lm, [[2, 3] * 60], Sampling(max_new_tokens=64), seed=0)
    assert len(ids) == lm.context_length - 120 == 8


def test_the_context_bounds_each_completion_by_its_own_prompt(lm: LanguageModel) -> None:
    """Not by its neighbour's: or an answer depends on the batch that it is written in."""
    nudge(lm, 1, -100.0)
    written = generate(lm, [[2, 3] * 60, [2, 3]], Sampling(max_new_tokens=20), seed=0)
    assert [len(ids) for ids in written] == [8, 20]


CHECKPOINT_DEFAULTS: dict[str, Any] = {
    "repetition_penalty": 1.8,
    "top_k": 1,
    "top_p": 0.1,
    "temperature": 3.0,
    "do_sample": True,
    "max_new_tokens": 2,
    "min_new_tokens": 9,
    "no_repeat_ngram_size": 1,
    "suppress_tokens": [2, 3, 4, 5],
    "eos_token_id": 1,
    "pad_token_id": 0,
}


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(1.0, max_new_tokens=16)])
def test_the_checkpoints_own_sampling_defaults_are_ignored_and_put_back(
    lm: LanguageModel, sampling: Sampling
) -> None:
    expected = generate(lm, PROMPTS, sampling, seed=0)
    config = GenerationConfig(**CHECKPOINT_DEFAULTS)
    lm.model.generation_config = config
    before = config.to_dict()
    assert generate(lm, PROMPTS, sampling, seed=0) == expected
    assert lm.model.generation_config is config
    assert config.to_dict() == before


def test_the_cache_is_on_whatever_training_had_set(lm: LanguageModel) -> None:
    expected = generate(lm, PROMPTS, GREEDY, seed=0)
    lm.model.config.use_cache = False
    for module in lm.model.modules():  # what enabling gradient checkpointing does
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = True
            module._gradient_checkpointing_func = torch.utils.checkpoint.checkpoint
    lm.model.train()
    widths: list[int] = []
    lm.model.base_model.register_forward_pre_hook(
        lambda module, args, options: widths.append(options["input_ids"].shape[1]), with_kwargs=True
    )
    assert generate(lm, PROMPTS, GREEDY, seed=0) == expected
    assert set(widths[1:]) == {1}  # one new token a step
    assert lm.model.config.use_cache is False
    assert lm.model.base_model.gradient_checkpointing


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_the_training_mode_is_put_back_also_after_a_failure(
    lm: LanguageModel, training: bool, fails: bool
) -> None:
    lm.model.train(training)
    if fails:

        def broken(*args: Any) -> Any:
            raise MemoryError

        lm.model.get_output_embeddings().register_forward_pre_hook(broken)
        with pytest.raises(MemoryError):
            generate(lm, PROMPTS, GREEDY, seed=0)
    else:
        generate(lm, PROMPTS, GREEDY, seed=0)
    assert all(module.training is training for module in lm.model.modules())


def test_a_part_of_the_model_that_is_frozen_in_eval_mode_stays_so(lm: LanguageModel) -> None:
    lm.model.train()
    part = lm.model.get_input_embeddings()
    part.eval()
    generate(lm, PROMPTS, GREEDY, seed=0)
    assert lm.model.training
    assert not part.training


def test_dropout_is_off_while_a_model_in_training_writes(lm: LanguageModel) -> None:
    expected = generate(lm, PROMPTS, GREEDY, seed=0)
    for layer in lm.model.base_model.layers:
        layer.self_attn.attention_dropout = 0.9
    lm.model.train()
    assert generate(lm, PROMPTS, GREEDY, seed=0) == expected


def test_the_global_random_state_is_left_as_it_was(lm: LanguageModel) -> None:
    """Python's own is not looked at: the type checker of these tests draws from it."""
    torch.manual_seed(11)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    generate(lm, PROMPTS, Sampling(1.0, max_new_tokens=4), seed=0)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002


@pytest.mark.slow
def test_one_seed_gives_one_completion_and_another_another(lm: LanguageModel) -> None:
    sampling = Sampling(1.0, max_new_tokens=16)
    torch.manual_seed(1)
    first = generate(lm, PROMPTS, sampling, seed=3)
    torch.manual_seed(2)
    assert generate(lm, PROMPTS, sampling, seed=3) == first
    assert generate(lm, PROMPTS, sampling, seed=4) != first
    assert generate(lm, PROMPTS, sampling, seed=2**62) != first


def test_under_autocast_each_weight_is_cast_once_and_never_remembered(lm: LanguageModel) -> None:
    """As in a training step, whose own autocast keeps no casts."""
    sampling = Sampling(max_new_tokens=12)
    casts = 0

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal casts
            result = func(*args, **(kwargs or {}))
            if "_to_copy" in str(func) and result.dtype == torch.bfloat16 and result.dim() == 2:
                casts += 1
            return result

    matrices = sum(p.dim() == 2 for p in lm.model.parameters())
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False), Count():
        first = generate(lm, [[3, 4]], sampling, seed=0)
    assert 0 < casts <= matrices + 5  # and not each time a token is written
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        changed = generate(lm, [[3, 4]], sampling, seed=0)
        lm.model.train()
        lm.model(torch.tensor([[3, 4]])).logits.float().sum().backward()
    assert changed != first
    assert all(p.grad is not None for p in lm.model.parameters())


def test_the_weights_get_no_gradient(lm: LanguageModel) -> None:
    generate(lm, PROMPTS, Sampling(1.0, max_new_tokens=4), seed=0)
    assert all(parameter.grad is None for parameter in lm.model.parameters())
    assert torch.is_grad_enabled()


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0, max_new_tokens=1),
        Sampling(0.6, max_new_tokens=1),
        Sampling(1.7, max_new_tokens=1),
        Sampling(1.0, top_k=4, max_new_tokens=1),
        Sampling(1.3, top_p=0.7, max_new_tokens=1),
        Sampling(1.3, top_p=0.8, top_k=5, max_new_tokens=1),
    ],
)
def test_tokens_are_drawn_as_often_as_their_probability_says(lm: LanguageModel, sampling: Sampling) -> None:
    count = 20_000
    prompt = [4, 13]
    ids = torch.tensor([[*prompt, 0]])
    with torch.no_grad():
        head = lm.completion_head(ids, torch.tensor([[False, True]]))
    logits = (head.hidden.double() @ head.weight.detach().double().T)[0].numpy()
    expected = torch.from_numpy(warped_by_hand(logits, sampling))
    if sampling.top_k == 0 and sampling.top_p == 1:
        by_hand = torch.softmax(next_logits(lm, prompt) / sampling.temperature, -1)
        torch.testing.assert_close(expected, by_hand, atol=1e-5, rtol=1e-4)
    batches = [generate(lm, [prompt] * (count // 2), sampling, seed=seed) for seed in (0, 1)]
    drawn = torch.tensor([ids[0] for batch in batches for ids in batch])
    counts = torch.bincount(drawn, minlength=lm.vocab_size).double()
    assert counts[expected == 0].sum() == 0
    mean = expected * count
    likely = mean >= 5  # chi-squared holds for these; the rest goes into one cell
    cells = [(counts[likely], mean[likely])]
    if mean[~likely].sum() >= 5:
        cells.append((counts[~likely].sum()[None], mean[~likely].sum()[None]))
    distance = sum(float(((seen - wanted) ** 2 / wanted).sum()) for seen, wanted in cells)
    freedom = sum(len(seen) for seen, _ in cells) - 1
    assert freedom >= 2
    assert distance < chi2.ppf(1 - 1e-4, freedom)
    # The test sees a temperature that is 20 % off:
    other = torch.softmax(expected.clamp_min(1e-12).log() / 1.2, -1) * count
    assert float(((counts - other) ** 2 / other).sum()) > chi2.ppf(1 - 1e-4, freedom)


def test_rows_of_one_batch_are_drawn_independently(lm: LanguageModel) -> None:
    written = generate(lm, [[4, 13]] * 64, Sampling(1.0, max_new_tokens=8), seed=0)
    assert len({tuple(ids) for ids in written}) > 10


def test_a_row_that_has_ended_is_read_no_more(lm: LanguageModel) -> None:
    nudge(lm, 1, 1.0)
    shapes: list[tuple[int, ...]] = []
    lm.model.base_model.register_forward_pre_hook(
        lambda module, args, options: shapes.append(tuple(options["input_ids"].shape)), with_kwargs=True
    )
    written = generate(lm, [*PROMPTS, [2, 3] * 60], Sampling(1.0, max_new_tokens=30), seed=1)
    lengths = [len(ids) for ids in written]
    assert len(set(lengths)) > 3
    assert shapes[:2] == [(1, 120), (6, 6)]  # the long prompt alone, the short ones together
    # Every token but a row's last is read once, each in a batch of those rows alone that go on.
    assert shapes[2:] == [(sum(length > step for length in lengths), 1) for step in range(1, max(lengths))]


@pytest.mark.slow
def test_a_prompt_that_several_rows_begin_with_is_read_once(lm: LanguageModel) -> None:
    nudge(lm, 1, 1.0)
    prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[0], PROMPTS[2], PROMPTS[0], PROMPTS[2]]
    draws = np.random.default_rng(1).random((6, 16))
    sampling = Sampling(1.0, max_new_tokens=16)
    alone = [
        generate(lm, [prompt], sampling, seed=0, draws=draws[row : row + 1])[0]
        for row, prompt in enumerate(prompts)
    ]
    shapes: list[tuple[int, ...]] = []
    lm.model.base_model.register_forward_pre_hook(
        lambda module, args, options: shapes.append(tuple(options["input_ids"].shape)), with_kwargs=True
    )
    assert generate(lm, prompts, sampling, seed=0, draws=draws) == alone
    assert len({tuple(ids) for ids in alone}) > 3
    assert shapes[0] == (3, max(map(len, PROMPTS[:3])))
    assert shapes[1] == (sum(len(ids) > 1 for ids in alone), 1)
    shapes.clear()
    generate(lm, [PROMPTS[3]] * 4, Sampling(0.0, max_new_tokens=2), seed=0)
    assert shapes == [(1, len(PROMPTS[3])), (4, 1)]


def test_prompts_of_all_lengths_are_read_with_little_padding(lm: LanguageModel) -> None:
    """In passes of similar lengths, and each row goes on from its own."""
    prompts = [[2 + token % 9 for token in range(row, row + length)] for row, length in enumerate(LENGTHS)]
    alone = [generate(lm, [prompt], GREEDY, seed=0)[0] for prompt in prompts]
    shapes: list[tuple[int, ...]] = []
    lm.model.base_model.register_forward_pre_hook(
        lambda module, args, options: shapes.append(tuple(options["input_ids"].shape)), with_kwargs=True
    )
    assert generate(lm, prompts, GREEDY, seed=0) == alone
    passes = [shape for shape in shapes if shape[1] > 1]
    assert sum(rows for rows, _ in passes) == len(prompts)
    assert len(passes) < len(set(LENGTHS))
    assert sum(LENGTHS) < sum(rows * width for rows, width in passes) < 1.2 * sum(LENGTHS)
    assert sum(LENGTHS) < 0.6 * len(LENGTHS) * max(LENGTHS)
    assert len({tuple(ids) for ids in alone}) > 5


@pytest.mark.slow
def test_a_rows_text_is_its_own_numbers_whatever_is_written_beside_it(lm: LanguageModel) -> None:
    nudge(lm, 1, 1.0)
    sampling = Sampling(1.0, top_p=0.95, max_new_tokens=16)
    together = generate(lm, PROMPTS, sampling, seed=3)
    assert len({len(ids) for ids in together}) > 2
    assert generate(lm, PROMPTS[:2], sampling, seed=3) == together[:2]
    longer = replace(sampling, max_new_tokens=20)
    assert [ids[:16] for ids in generate(lm, PROMPTS, longer, seed=3)] == together
    draws = np.random.default_rng(0).random((6, 16))
    together = generate(lm, PROMPTS, sampling, seed=0, draws=draws)
    alone = [
        generate(lm, [prompt], sampling, seed=9, draws=draws[row : row + 1])[0]
        for row, prompt in enumerate(PROMPTS)
    ]
    assert alone == together


def test_the_numbers_of_all_rows_and_positions_are_independent_and_uniform() -> None:
    found = np.stack([uniform_draws(seed, 50, row) for seed in range(20) for row in range(20)])
    assert len(np.unique(found)) == found.size
    assert kstest(found.ravel(), "uniform").pvalue > 1e-3
    near = np.corrcoef(found)[np.triu_indices(400, 1)]  # of 50 pairs of numbers each
    assert abs(near).max() < 0.75
    assert near.std() == pytest.approx(50**-0.5, rel=0.05)
    assert (uniform_draws(7, 5, 2) == uniform_draws(7, 9, 2)[:5]).all()


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(1.0, max_new_tokens=4), Sampling(1.0, top_p=0.9)])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_write_tokens_all_the_same(
    lm: LanguageModel, sampling: Sampling, value: float
) -> None:
    """A training that has diverged is told by its loss, and not by an index error of a rollout."""
    nudge(lm, slice(None), value)
    written = generate(lm, PROMPTS, replace(sampling, max_new_tokens=4), seed=0)
    assert all(0 <= token < lm.vocab_size for ids in written for token in ids)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"max_new_tokens": 0},
        {"temperature": float("nan")},
    ],
)
def test_sampling_settings_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="sampling:"):
        Sampling(**options)


def test_only_settings_that_change_the_distribution_warp() -> None:
    assert not Sampling(1.0, max_new_tokens=3).warps
    assert all(
        s.warps for s in (Sampling(0.9), Sampling(1.0, top_k=3), Sampling(1.0, top_p=0.9), Sampling(0.0))
    )


# --- the coin of on-policy training


@pytest.mark.slow
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.8])
def test_the_student_writes_its_share_of_the_batches(fraction: float) -> None:
    rollouts, count = StudentRollouts(fraction=fraction), 20_000
    for seed in (0, 1):
        chosen = sum(rollouts.chosen(seed, batch) for batch in range(count))
        assert abs(chosen - fraction * count) < 4 * (fraction * (1 - fraction) * count) ** 0.5


def test_all_or_none_is_exact() -> None:
    assert all(StudentRollouts(fraction=1.0).chosen(0, batch) for batch in range(500))
    assert not any(StudentRollouts(fraction=0.0).chosen(0, batch) for batch in range(500))


def test_the_coin_depends_on_the_seed_and_the_batch_alone() -> None:
    """So every rank, and a run that is resumed in the middle, sees the same."""
    first = [StudentRollouts(fraction=0.5).chosen(3, batch) for batch in range(200)]
    random.seed(1)
    torch.manual_seed(1)
    rollouts = StudentRollouts(fraction=0.5)
    assert [rollouts.chosen(3, batch) for batch in reversed(range(200))] == first[::-1]
    assert rollouts.chosen(3, 150) == first[150]
    assert [rollouts.chosen(4, batch) for batch in range(200)] != first
    # A larger share adds batches and takes none away.
    more = StudentRollouts(fraction=0.7)
    assert all(more.chosen(3, batch) for batch in range(200) if first[batch])


def test_rollouts_grow_in_a_line_to_their_longest() -> None:
    growing = StudentRollouts(max_new_tokens=110, start_tokens=10, grow_until=0.5)
    at = [growing.sampling_at(share).max_new_tokens for share in (0.0, 0.1, 0.25, 0.499, 0.5, 1.0)]
    assert at == [10, 30, 60, 109, 110, 110]
    assert StudentRollouts(max_new_tokens=110).sampling_at(0.0).max_new_tokens == 110
    for wrong in ({"start_tokens": 0}, {"start_tokens": 300}, {"grow_until": 0.0}):
        with pytest.raises(ValueError, match=rf"rollouts\.{next(iter(wrong))}="):
            StudentRollouts(**wrong)


def test_rollout_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rollouts\.fraction"):
        StudentRollouts(fraction=1.5)
    with pytest.raises(ValueError, match="sampling:"):
        StudentRollouts(top_p=0.0)
    assert StudentRollouts(0.5, 0.7, 0.9, 5, 33).sampling == Sampling(0.7, 0.9, 5, 33)
