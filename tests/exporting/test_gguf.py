"""Tests of GGUF files: written by us, read by transformers' own reader."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.integrations.gguf import gguf_tokenizer_mapping

from distill.data.tokenizers import set_template_variables
from distill.errors import UserError
from distill.exporting.gguf_file import read_back, write_gguf
from distill.exporting.gguf_tokenizer import _BY_SPLIT, _LLAMA3, _QWEN2, tokenizer_metadata
from distill.exporting.gguf_weights import check_architecture, permuted, rope_factors
from distill.generation.decode import generate
from distill.generation.sampling import Sampling
from distill.models.find import find_model
from distill.models.language_model import LanguageModel, ModelSource
from distill.models.pre_tokenizers import stored_name
from distill.tiny.build import make_tokenizer

TEXT = [
    "the cat sat on the mat, 12 or 345 of them",
    "naïve café: x = {y}",
    "don't\n\n  stop it's 3.14\t done",
    "add:\n\n1. the cat\n\n2. the mat\n\n3. stop",
]
TEMPLATE = "{% for m in messages %}<u>{{ m.content }}<e>{% endfor %}{% if think %}T{% else %}N{% endif %}"
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def splits() -> dict[str, Any]:
    """Pre-tokenizers as they stand in tokenizer.json of the families, by llama.cpp's names."""
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return {
        "llama-bpe": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(_LLAMA3), "isolated"), bytes_only]),
        "qwen2": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(_QWEN2), "isolated"), bytes_only]),
        "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
        "smollm": pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        ),
    }


def byte_level(kind: str = "qwen2", *, begins: bool = False) -> Any:
    """A byte-level BPE tokenizer with special and added tokens, trained on a few words."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=kind == "llama-bpe"))
    tokenizer.pre_tokenizer = splits()[kind]
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<s>", "<e>", "<u>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text for text in TEXT for _ in range(3)], trainer)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    if begins:
        from tokenizers.processors import TemplateProcessing

        tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    named = {"bos_token": "<s>", "eos_token": "<e>", "pad_token": "<pad>"}
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=["<u>"], **named)
    made.chat_template = TEMPLATE
    return made


def wrapped(model: Any, tokenizer: Any) -> LanguageModel:
    torch.manual_seed(0)
    with torch.no_grad():
        for name, own in model.named_parameters():
            own.copy_(1 + 0.1 * torch.randn_like(own) if "norm" in name else 0.3 * torch.randn_like(own))
    source = ModelSource("tested", ".", "0")
    return LanguageModel(model.eval(), tokenizer, source)


def llama(tokenizer: Any, **settings: Any) -> LanguageModel:
    ids = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None, "vocab_size": len(tokenizer) + 7}
    return wrapped(LlamaForCausalLM(LlamaConfig(**SIZES | ids | settings)), tokenizer)


def qwen2(tokenizer: Any, **settings: Any) -> LanguageModel:
    ids = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None, "vocab_size": len(tokenizer)}
    return wrapped(Qwen2ForCausalLM(Qwen2Config(**SIZES | ids | settings)), tokenizer)


def qwen3(tokenizer: Any, **settings: Any) -> LanguageModel:
    ids = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None, "vocab_size": len(tokenizer)}
    return wrapped(Qwen3ForCausalLM(Qwen3Config(**SIZES | ids | {"head_dim": 32} | settings)), tokenizer)


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
STUDENTS: dict[str, Callable[[], LanguageModel]] = {
    "llama": lambda: llama(byte_level("smollm"), tie_word_embeddings=True),
    "llama with biases": lambda: llama(byte_level("gpt-2"), attention_bias=True, mlp_bias=True),
    "llama 3": lambda: llama(byte_level("llama-bpe", begins=True), rope_parameters=LLAMA3_ROPE),
    "llama, linear": lambda: llama(
        byte_level("gpt-2"), rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    ),
    "llama, wide heads": lambda: llama(byte_level("gpt-2"), head_dim=32),
    "qwen2": lambda: qwen2(byte_level(), rms_norm_eps=1e-5),
    "qwen2 of characters": lambda: qwen2(make_tokenizer(), tie_word_embeddings=True),
    "qwen3": lambda: qwen3(byte_level()),
}


def logprobs(lm: LanguageModel, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits = lm.model(input_ids=torch.tensor([ids])).logits[0, :, : lm.vocab_size]
    return torch.log_softmax(logits.double(), -1)


def written(student: LanguageModel, folder: Path, bits: int) -> LanguageModel:
    path = folder / f"{bits}.gguf"
    write_gguf(student, path, bits, "tested")
    return read_back(path, student).load()


QUICK = ("llama", "qwen2 of characters")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in STUDENTS]
)
def test_a_student_written_and_read_back_is_the_same(name: str, tmp_path: Path) -> None:
    student = STUDENTS[name]()
    back = written(student, tmp_path, 32)
    assert back.vocab_size == student.vocab_size
    # transformers' reader puts GPT-2's own end token behind a vocabulary that has none.
    known = {token: index for token, index in back.tokenizer.get_vocab().items() if token != "<|endoftext|>"}
    assert known == student.tokenizer.get_vocab()
    for text in ["12+34=46;#"] if "characters" in name else TEXT:
        assert back.tokenizer(text).input_ids == student.tokenizer(text).input_ids
        assert back.tokenizer.decode(back.tokenizer(text).input_ids, skip_special_tokens=True) == text
    ids = torch.randint(4, student.vocab_size, (24,), generator=torch.Generator().manual_seed(1)).tolist()
    torch.testing.assert_close(logprobs(back, ids), logprobs(student, ids), atol=1e-5, rtol=0)
    greedy = Sampling(temperature=0.0, max_new_tokens=16)
    texts = [generate(lm, [ids[:5], ids[5:14]], greedy, seed=0) for lm in (student, back)]
    assert texts[0] == texts[1]
    assert back.end_ids == student.end_ids


def test_ends_that_a_generation_configuration_beside_the_file_names_end_completions(tmp_path: Path) -> None:
    student = llama(byte_level("smollm"), tie_word_embeddings=True)
    folder = tmp_path / "model"
    folder.mkdir()
    write_gguf(student, folder / "model.gguf", 32, "t")
    other = next(number for number in range(8, student.vocab_size) if number not in student.end_ids)
    content = {"eos_token_id": [other], "do_sample": True, "temperature": 0.6}
    (folder / "generation_config.json").write_text(json.dumps(content))
    source = find_model(str(folder / "model.gguf"), key="model.student")
    assert set(source.end_ids) == {*student.end_ids, other}
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):  # not kept, written, read
        assert source.load(cache).end_ids == source.end_ids


def stored(path: Path) -> dict[str, tuple[str, np.ndarray]]:
    """The tensors of a file: number type and bytes."""
    return {one.name: (one.tensor_type.name, np.array(one.data)) for one in GGUFReader(path).tensors}


def test_rounding_is_that_of_the_format(tmp_path: Path) -> None:
    student = qwen2(byte_level())
    files = {}
    for bits in (16, 8):
        write_gguf(student, tmp_path / f"{bits}.gguf", bits, "tested")
        files[bits] = stored(tmp_path / f"{bits}.gguf")
    state = student.model.state_dict()
    for name, source in {
        "blk.1.ffn_down.weight": "layers.1.mlp.down_proj",
        "output.weight": "lm_head",
    }.items():
        values = state[f"{source}.weight" if source == "lm_head" else f"model.{source}.weight"].numpy()
        kind, halves = files[16][name]
        assert kind == "F16"
        assert np.array_equal(halves.view(np.float16), values.astype(np.float16))
        kind, raw = files[8][name]
        assert kind == "Q8_0"
        blocks = raw.reshape(-1, 34)  # 32 columns: a half-precision scale, and a byte for each
        scales = blocks[:, :2].copy().view(np.float16).astype(np.float64)
        exact = values.reshape(-1, 32).astype(np.float64)
        assert np.array_equal(scales[:, 0], (np.abs(exact).max(1) / 127).astype(np.float16))
        found = scales * blocks[:, 2:].copy().view(np.int8)
        # Half a step, and the scale's own rounding.
        assert (np.abs(found - exact) <= 0.5 * scales + 127 * scales * 2.0**-11).all()
    kind, vector = files[8]["blk.0.attn_q.bias"]
    assert kind == "F32"
    assert np.array_equal(vector, state["model.layers.0.self_attn.q_proj.bias"].numpy())


@pytest.mark.slow
def test_log_probs_stay_within_the_formats_rounding(tmp_path: Path) -> None:
    student = find_model("package:distill/tiny/student", key="model").load()
    ids = student.tokenizer("3+4*2=8+3=1;1*5-2=5-2=3;#3").input_ids
    exact = logprobs(student, ids)
    errors = [
        float((logprobs(written(student, tmp_path, bits), ids) - exact).abs().max()) for bits in (16, 8)
    ]
    assert 0 < errors[0] < 0.01 < errors[1] < 0.5, errors  # nats, at any token


def test_columns_that_fill_no_block_are_half_precision(tmp_path: Path) -> None:
    student = qwen2(byte_level(), hidden_size=48, intermediate_size=64)
    path = tmp_path / "odd.gguf"
    write_gguf(student, path, 8, "odd")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(path).tensors}
    assert kinds["blk.0.attn_q.weight"] == "F16"
    assert kinds["blk.0.ffn_down.weight"] == "Q8_0"
    assert kinds["blk.0.attn_q.bias"] == kinds["output_norm.weight"] == "F32"


def test_the_names_of_pre_tokenizers_are_those_of_transformers() -> None:
    known = gguf_tokenizer_mapping.GGUF_PRE_TOKENIZER_SPLITS
    assert {known[name] for name in _BY_SPLIT.values()} == set(_BY_SPLIT)
    for kind in splits():
        assert tokenizer_metadata(byte_level(kind), [1], "tested").pre == kind


def test_rows_are_permuted_as_by_definition() -> None:
    values = np.arange(16 * 3).reshape(16, 3)
    found = permuted(values, heads=2)
    for head in range(2):
        for pair in range(4):  # row i and row i + half of a head become neighbours
            assert (found[8 * head + 2 * pair] == values[8 * head + pair]).all()
            assert (found[8 * head + 2 * pair + 1] == values[8 * head + 4 + pair]).all()


def test_rotary_factors_are_llama_cpps() -> None:
    found = rope_factors(llama(byte_level("llama-bpe"), rope_parameters=LLAMA3_ROPE).model)
    assert found is not None
    expected = []
    for place in range(0, 16, 2):  # convert_hf_to_gguf.py, LlamaModel.generate_extra_tensors
        wave = 2 * math.pi * 10000.0 ** (place / 16)
        if wave < 32 / 4:
            expected.append(1.0)
        elif wave > 32 / 1:
            expected.append(8.0)
        else:
            smooth = (32 / wave - 1) / (4 - 1)
            expected.append(1 / ((1 - smooth) / 8 + smooth))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert len(set(expected)) == 3  # all three cases


def test_template_variables_are_set_in_the_template(tmp_path: Path) -> None:
    student = qwen2(byte_level())
    set_template_variables(student.tokenizer, {"think": True})
    path = tmp_path / "a.gguf"
    write_gguf(student, path, 8, "a", license="apache-2.0")
    back = read_back(path, student)
    turns = [{"role": "user", "content": "hi"}]
    assert back.tokenizer.apply_chat_template(turns, tokenize=False) == "<u>hi<e>T"
    fields = GGUFReader(path).fields
    assert fields["general.license"].contents() == "apache-2.0"
    assert fields["general.file_type"].contents() == 7  # MOSTLY_Q8_0


def test_an_answers_own_end_token_is_in_the_file(tmp_path: Path) -> None:
    found = tokenizer_metadata(byte_level(), [2, 1], "tested")
    assert found.special == {"bos": 0, "eos": 1, "pad": 3, "eot": 2}
    assert tokenizer_metadata(byte_level(begins=True), [1], "tested").add_bos
    assert json.dumps(found.types[:5]) == "[3, 3, 3, 3, 1]"
    assert found.types[-1] == 4  # <think>: matched whole, and no control token


def config(**settings: Any) -> SimpleNamespace:
    usual = {"model_type": "qwen2", "hidden_act": "silu", "rope_parameters": {"rope_type": "default"}}
    return SimpleNamespace(**usual | settings)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"model_type": "gemma3_text"}, "is of the kind gemma3_text"),
        ({"hidden_act": "gelu"}, "hidden_act=gelu"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "a sliding window"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rotary embeddings of the type yarn"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rotary embeddings of the type llama3"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial rotary embeddings"),
    ],
)
def test_what_the_file_could_not_say_is_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        check_architecture(config(**settings), "tested")


def test_other_tokenizers_are_refused() -> None:
    unknown = byte_level()
    unknown.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(
        UserError, match=r"has no name for how the tokenizer of tested splits a text \(Whitespace\)"
    ):
        tokenizer_metadata(unknown, [1], "tested")
    pieces = Tokenizer(models.BPE({"<e>": 0, "a": 1}, [], byte_fallback=True))
    sentence = PreTrainedTokenizerFast(tokenizer_object=pieces, eos_token="<e>")
    with pytest.raises(UserError, match=r"of another kind \(sentencepiece\)"):
        tokenizer_metadata(sentence, [0], "tested")


@pytest.mark.parametrize(
    ("value", "bits", "reason"),
    [(1e6, 16, "more than half precision holds"), (math.nan, 8, "are no numbers")],
)
def test_weights_that_the_format_does_not_hold_are_refused(
    value: float, bits: int, reason: str, tmp_path: Path
) -> None:
    student = qwen2(byte_level())
    with torch.no_grad():
        student.model.model.layers[1].mlp.up_proj.weight[0, 0] = value
    with pytest.raises(UserError, match=rf"layers\.1\.mlp\.up_proj\.weight has .*{reason}"):
        write_gguf(student, tmp_path / "a.gguf", bits, "a")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["smollm", "gpt-2", "qwen2"])
def test_a_text_is_split_as_the_file_says_when_it_is_read_back(kind: str, tmp_path: Path) -> None:
    tokenizer = byte_level(kind)
    write_gguf(qwen2(tokenizer) if kind == "qwen2" else llama(tokenizer), tmp_path / "model.gguf", 16, "x")
    read = find_model(str(tmp_path / "model.gguf"), key="model").tokenizer
    for text in ("x  7", "12 345", *TEXT):
        assert read(text).input_ids == tokenizer(text).input_ids, text
    assert stored_name(tmp_path / "model.gguf") == kind
    if kind == "smollm":  # transformers alone gives it GPT-2's split, and so other ids for the same text
        read.backend_tokenizer.pre_tokenizer = splits()["gpt-2"]
        assert read(TEXT[-1]).input_ids != tokenizer(TEXT[-1]).input_ids


def test_a_pre_tokenizer_that_nobody_knows_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(llama(byte_level("smollm")), path, 16, "x")
    path.write_bytes(path.read_bytes().replace(b"smollm", b"refact"))
    find_model(str(path), key="model").tokenizer  # noqa: B018  a property
    assert (
        "model.gguf names a pre-tokenizer that transformers does not know (refact)" in capsys.readouterr().err
    )
