"""A tiny random Llama for vLLM on a CPU, whose attention takes no heads as small as those of `tiny_pair`."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from distill.tiny.build import make_tokenizer

HEAD_SIZE = 32  # the smallest of vLLM's attention on a CPU
CONTEXT = 128
PADDING = 14
# Eager and with a small cache of its own, it starts in half the time; each request may be scored.
OPTIONS: dict[str, Any] = {"enforce_eager": True, "kv_cache_memory_bytes": 1 << 26, "max_num_seqs": 32}
WORDS = [f"+engine.{name}={str(value).lower()}" for name, value in OPTIONS.items()]


def make_llama(
    folder: Path,
    *,
    tied: bool,
    seed: int = 0,
    tokenizer: Any = None,
    padding: int = PADDING,
    generation: dict[str, Any] | None = None,
) -> Path:
    """Save a model whose padding rows are as likely as its tokens, and which ends a completion now and then.

    Args:
        folder: made here.
        tied: whether input and output matrix are one.
        seed: of its weights.
        tokenizer: None: the embedded task's characters.
        padding: rows of the output matrix beyond the tokenizer's tokens.
        generation: fields of its generation_config.json.
    """
    tokenizer = make_tokenizer() if tokenizer is None else tokenizer
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + padding,
        hidden_size=2 * HEAD_SIZE,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=HEAD_SIZE,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=tied,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if generation:
        path = folder / "generation_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | generation))
    return folder
