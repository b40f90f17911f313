"""Tests of how texts are split where transformers splits them otherwise than the model's files say."""

import json
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config

from distill.models.find import find_model
from distill.teacher.completions import writer_key

TEXTS = ["Ann has 14 pens.", "Ben has 14 pens.", "10 + 4 = 14"]


def folder_of(folder: Path, declared: str) -> Tokenizer:
    """A folder with a Qwen2 configuration and a tokenizer that merges words with the space behind them."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r"[^ ]+ ?| "), behavior="isolated")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_only])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": declared}))
    Qwen2Config(vocab_size=400).save_pretrained(folder)
    return tokenizer


@pytest.mark.parametrize("declared", ["TokenizersBackend", "PreTrainedTokenizerFast"])
def test_a_model_that_asks_for_its_tokenizer_file_gets_that_files_tokens(
    tmp_path: Path, declared: str
) -> None:
    meant = folder_of(tmp_path, declared)
    read = find_model(str(tmp_path), key="model.student").tokenizer
    for text in TEXTS:
        assert read.encode(text) == meant.encode(text).ids
    assert read.eos_token == "<eos>"
    assert writer_key(find_model(str(tmp_path), key="model.student"))["split"] == "of its file"


def test_a_model_that_names_its_types_tokenizer_gets_that_types_split(tmp_path: Path) -> None:
    meant = folder_of(tmp_path, "Qwen2Tokenizer")
    read = find_model(str(tmp_path), key="model.student").tokenizer
    assert read.encode(TEXTS[0]) != meant.encode(TEXTS[0]).ids
    assert "split" not in writer_key(find_model(str(tmp_path), key="model.student"))
