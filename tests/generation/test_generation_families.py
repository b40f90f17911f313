"""Tests that our decoding loop gives the same results as transformers' `generate` for all model families."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
)

from distill.generation.decode import generate
from distill.generation.sampling import Sampling
from distill.models.find import find_model
from distill.models.language_model import LanguageModel

VOCABULARY, END, TOKENS = 40, 1, 24
SMALL = {
    "vocab_size": 48,  # more rows than tokens
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": END,
}
WINDOWS = SMALL | {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SMALL,
    "qwen3": SMALL,
    "gemma2": WINDOWS,
    "gemma3_text": WINDOWS,
    "phi3": SMALL,
    "gpt2": {"vocab_size": 48, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "bloom": {"vocab_size": 48, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mpt": {"vocab_size": 48, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64},
    "qwen3_next": SMALL
    | {
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "num_experts": 0,
        "mlp_only_layers": [0, 1],
    },
    "mamba": {"vocab_size": 48, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
}
PROMPTS = [[2, 12, 5], [3], [9, 9, 9, 9, 13, 4, 8, 8, 3, 2, 30], [4, 13], [7, 5, 5, 6, 11], [33, 7, 8]]


class Tokenizer:
    pad_token_id, eos_token_id, chat_template = 0, END, None

    def get_vocab(self) -> dict[str, int]:
        return {str(number): number for number in range(VOCABULARY)}


def tiny(family: str) -> LanguageModel:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **FAMILIES[family]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "conv" not in name:
                parameter.mul_(4)  # an opinion: fresh weights are too small for one
    return LanguageModel(model.eval(), Tokenizer(), find_model("package:distill/tiny/student", key="model"))


class Drawn(LogitsProcessor):
    """The token at which the cumulated probability passes the row's number, by a loop."""

    def __init__(self, sampling: Sampling, draws: np.ndarray, prompt: int) -> None:
        self.sampling, self.draws, self.prompt = sampling, draws, prompt

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        found = torch.full_like(scores, -torch.inf)
        for row, logits in enumerate(scores[:, :VOCABULARY].double()):
            if self.sampling.temperature == 0:
                found[row, logits.argmax()] = 0
                continue
            probabilities = torch.softmax(logits / self.sampling.temperature, -1)
            if self.sampling.top_k:
                least = probabilities.topk(self.sampling.top_k).values[-1]
                probabilities[probabilities < least] = 0
            reached = probabilities.cumsum(-1) / probabilities.sum()
            number = float(self.draws[row, input_ids.shape[1] - self.prompt])
            found[row, int((reached <= number).sum())] = 0
        return found


def by_transformers(
    lm: LanguageModel, prompts: Sequence[Sequence[int]], sampling: Sampling, draws: np.ndarray
) -> list[list[int]]:
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    output = lm.model.generate(
        input_ids=ids,
        attention_mask=mask,
        logits_processor=LogitsProcessorList([Drawn(sampling, draws, longest)]),
        generation_config=GenerationConfig(
            max_new_tokens=sampling.max_new_tokens, eos_token_id=END, pad_token_id=0, do_sample=False
        ),
    )
    rows = output[:, longest:].tolist()
    return [row[: row.index(END) + 1] if END in row else row for row in rows]


def end_now_and_then(lm: LanguageModel) -> None:
    """Make the end likelier, so that some rows end early and others go on."""

    def push(module: Any, args: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[..., END] += 1.4 * output.std(-1)
        return output

    lm.model.get_output_embeddings().register_forward_hook(push)


@pytest.mark.parametrize(
    "sampling", [Sampling(0.0, max_new_tokens=TOKENS), Sampling(1.3, top_k=12, max_new_tokens=TOKENS)]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_it_writes_what_transformers_writes(family: str, sampling: Sampling) -> None:
    lm = tiny(family)
    end_now_and_then(lm)
    draws = np.random.default_rng(3).random((len(PROMPTS), TOKENS))
    written = generate(lm, PROMPTS, sampling, seed=0, draws=draws, end_ids=[END])
    assert written == by_transformers(lm, PROMPTS, sampling, draws)
    assert len({token for ids in written for token in ids}) > 3  # it has an opinion
    if sampling.temperature > 0:
        assert len({len(ids) for ids in written}) > 1  # and rows end at different times


@pytest.mark.parametrize("family", FAMILIES)
def test_several_completions_of_a_prompt_are_what_transformers_writes(family: str) -> None:
    lm = tiny(family)
    end_now_and_then(lm)
    prompts = [PROMPTS[number] for number in (0, 0, 1, 0, 2, 1)]
    sampling = Sampling(1.3, max_new_tokens=TOKENS)
    draws = np.random.default_rng(5).random((len(prompts), TOKENS))
    written = generate(lm, prompts, sampling, seed=0, draws=draws, end_ids=[END])
    assert written == by_transformers(lm, prompts, sampling, draws)
    assert len({tuple(ids) for ids in written}) > 3


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_cache_that_a_model_makes_itself_keeps_all_rows_to_the_end(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny(family)
    end_now_and_then(lm)
    prompts = [*PROMPTS, [5] * 50]  # the context of 64 ends behind it, and rows that ended lie on
    sampling = Sampling(1.3, max_new_tokens=40)
    expected = generate(lm, prompts, sampling, seed=0, end_ids=[END])
    monkeypatch.setattr(type(lm.model), "_supports_default_dynamic_cache", lambda self: False)
    rows: set[int] = set()
    lm.model.get_output_embeddings().register_forward_pre_hook(lambda module, args: rows.add(len(args[0])))
    assert generate(lm, prompts, sampling, seed=0, end_ids=[END]) == expected
    assert rows == {len(prompts)}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_prompts_begin_with_is_read_once_and_they_write_what_transformers_writes(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny(family)
    end_now_and_then(lm)
    rng = np.random.default_rng(9)
    begin = rng.integers(2, VOCABULARY, 17).tolist()
    # Of all lengths, so that there are several passes, and in some the padding is longer than the beginning.
    prompts = [begin + rng.integers(2, VOCABULARY, count).tolist() for count in (1, 21, 3, 2, 22, 9, 3)]
    sampling = Sampling(1.3, max_new_tokens=12)
    draws = rng.random((len(prompts), 12))
    monkeypatch.setattr("distill.data.layout._PROMPT_PASS", 40)
    read: list[tuple[int, ...]] = []
    lm.model.base_model.register_forward_pre_hook(
        lambda module, args, options: read.append(tuple(options.get("input_ids", *args[:1]).shape)),
        with_kwargs=True,
    )
    written = generate(lm, prompts, sampling, seed=0, draws=draws, end_ids=[END])
    passes = [(rows, tokens) for rows, tokens in read if tokens > 1]
    assert written == by_transformers(lm, prompts, sampling, draws)
    assert len({tuple(ids) for ids in written}) > 3
    full = family not in ("gemma2", "gemma3_text", "qwen3_next", "mamba")  # their caches are of other kinds
    if full:
        assert passes[0] == (1, 17)
        assert 1 < len(passes) - 1 < len(prompts)
        assert max(tokens for _, tokens in passes[1:]) == 22  # without the beginning
    else:
        assert passes == [(len(prompts), 39)]
