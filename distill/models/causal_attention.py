"""Causal attention of 257 to 512 tokens on a CPU, without the products that torch's kernel wastes.

The kernel takes keys 512 at a time (`FlashAttentionKernel.cpp`): it multiplies every query with all keys of
such a block, and masks those behind it. Two calls spare the first half of the queries the second half of the
keys. Longer sequences gain nothing (measured in fp32 and in bf16); a GPU's kernels skip smaller blocks.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from distill.models.language_model import LanguageModel

HALVED_ATTENTION = "halved"  # name in transformers
_HALF = 256  # queries of the first call
_KERNEL_KEYS = 512  # that torch's kernel multiplies at once
_CHOSEN_KEYS = ("indices", "block_indices")  # by which models say to kernels that take no mask what is read


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention function for transformers: SDPA, in two calls where one wastes products.

    Args:
        module: the attention layer.
        query: [rows, heads, tokens, width].
        key: [rows, heads or key-value groups, keys, width].
        value: like `key`.
        attention_mask: what a query may attend to; None: all keys, or if it is causal, those up to it.
        dropout: dropout rate of attention weights.
        scaling: factor on query-key products; None: 1/√width.
        is_causal: whether no query attends to later keys; None: as the layer has it.
        others: further arguments of the model.

    Returns:
        [rows, tokens, heads, width].

    Raises:
        ValueError: the layer reads only some of the keys.
    """
    if sparse := [name for name in _CHOSEN_KEYS if others.get(name) is not None]:
        raise ValueError(f"its attention reads only some keys ({sparse[0]})")
    tokens = query.shape[2]
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if (
        attention_mask is not None
        or not causal
        or dropout
        or not _HALF < tokens <= _KERNEL_KEYS
        or key.shape[2] != tokens
        or query.device.type != "cpu"
        or any(others.get(name) is not None for name in ("softcap", "position_bias", "cache"))
    ):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **others
        )
    grouped = query.shape[1] != key.shape[1]
    first, rest = query.split((_HALF, tokens - _HALF), dim=2)
    # 0 for a key that a query sees, else -inf.
    unseen = torch.full((tokens - _HALF, tokens), -torch.inf, dtype=query.dtype).triu_(_HALF + 1)
    found = (
        scaled_dot_product_attention(
            first, key[:, :, :_HALF], value[:, :, :_HALF], is_causal=True, scale=scaling, enable_gqa=grouped
        ),
        scaled_dot_product_attention(rest, key, value, attn_mask=unseen, scale=scaling, enable_gqa=grouped),
    )
    return torch.cat([half.transpose(1, 2) for half in found], dim=1), None


AttentionInterface.register(HALVED_ATTENTION, attention)
AttentionMaskInterface.register(HALVED_ATTENTION, sdpa_mask)


def special_layers(lm: LanguageModel) -> list[str]:
    """Kinds of layers, of those that a model's configuration names, that are not ordinary attention."""
    kinds = getattr(lm.model.config.get_text_config(), "layer_types", None) or ()
    return sorted(set(kinds) - {"full_attention", "sliding_attention"})


def halve_attention(lm: LanguageModel) -> None:
    """Let a model on a CPU use this attention instead of SDPA, if its layers take it from transformers.

    Layers that read only some keys do so by a mask for attention that is called "sdpa", not for others.
    """
    sdpa = lm.model.config._attn_implementation == "sdpa"
    if sdpa and lm.device.type == "cpu" and lm.model._supports_attention_backend and not special_layers(lm):
        lm.model.set_attn_implementation(HALVED_ATTENTION)
