"""Attention for packed sequences, inside each trace and a prompt that it shares; packing itself is
`distill.data.layout`.

transformers detects packed rows by position ids, but attention leaks between traces with a cache or a padding
mask, and in models whose layers mix tokens without using the mask. So this module registers its own
attention, which processes each trace separately and needs no mask of all tokens by all tokens. Before
training, `allow_packing` measures whether a model really keeps its traces apart.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from distill.data.layout import BatchLayout, LayoutKind, Segments
from distill.errors import UserError, first_line
from distill.models.causal_attention import attention as causal_attention
from distill.models.causal_attention import special_layers
from distill.models.language_model import PACKED_ATTENTION, LanguageModel

_flash: Any = None
with contextlib.suppress(ImportError):  # part of torch since 2.10
    from torch.nn.attention.varlen import varlen_attn as _flash

_BLOCK = 256  # queries of a completion that are multiplied at once with the prompt's and their own keys


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    segments: Segments | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention function for transformers: inside each of `segments` and its prefix; without segments, SDPA.

    Args:
        module: the attention layer.
        query: [1, heads, tokens, width].
        key: [1, heads or key-value groups, tokens, width].
        value: like `key`.
        attention_mask: ignored if there are segments.
        dropout: dropout rate of attention weights.
        scaling: factor on query-key products; None: 1/√width.
        sliding_window: number of last tokens that a token attends to, including itself.
        segments: bounds of the traces in the row.
        others: further arguments of the model.

    Returns:
        [1, tokens, heads, width].

    Raises:
        ValueError: the model needs an unsupported kind of attention.
    """
    if segments is None:
        return causal_attention(module, query, key, value, attention_mask, dropout, scaling, **others)
    for name in ("softcap", "s_aux", "position_bias"):
        if others.get(name) is not None:
            raise ValueError(f"its attention has a {name}")
    device = query.device.type
    if torch.is_autocast_enabled(device):  # autocast does not know this function: cast by hand
        query, key, value = (x.to(torch.get_autocast_dtype(device)) for x in (query, key, value))
    if _flash is not None and query.is_cuda and query.element_size() == 2 and not dropout:
        return _in_one_kernel(query, key, value, segments, scaling, sliding_window), None
    parts = []
    split = [x.split(segments.lengths, dim=2) for x in (query, key, value)]
    prefixes = segments.prefixes or (-1,) * len(segments.lengths)
    for q, k, v, prefix in zip(*split, prefixes, strict=True):
        if prefix >= 0:
            k, v = (torch.cat((x[prefix], own), dim=2) for x, own in zip(split[1:], (k, v), strict=True))
            parts.append(_behind(q, k, v, segments, dropout, scaling, sliding_window))
            continue
        mask = None
        if sliding_window is not None and q.shape[2] > sliding_window:
            mask = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device)
            mask = (mask.tril() & mask.triu(1 - sliding_window))[None, None]
        parts.append(causal_attention(module, q, k, v, mask, dropout, scaling, is_causal=True)[0])
    return torch.cat(parts, dim=1), None


def _behind(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    dropout: float,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """Causal attention of the last tokens of a sequence; the last query belongs to the last key.

    Heads of a group of queries become a batch that shares its keys and values, which are not repeated.

    Returns:
        [1, tokens, heads, width].
    """
    kinds, count = key.shape[1], query.shape[2]
    past = key.shape[2] - count
    each = query[0].unflatten(0, (kinds, -1)).transpose(0, 1)  # [heads per kind, kinds, tokens, width]
    keys, values = (x.expand(each.shape[0], -1, -1, -1) for x in (key, value))
    parts = []
    for begin in range(0, count, _BLOCK):
        end = min(count, begin + _BLOCK)
        mask = _mask(segments, end - begin, past + begin, query, window)
        parts.append(
            scaled_dot_product_attention(
                each[:, :, begin:end],
                keys[:, :, : past + end],
                values[:, :, : past + end],
                attn_mask=mask,
                dropout_p=dropout,
                scale=scaling,
            )
        )
    found = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
    return found.transpose(0, 1).flatten(0, 1).transpose(0, 1).unsqueeze(0)


def _mask(segments: Segments, count: int, past: int, query: Tensor, window: int | None) -> Tensor:
    """[count, past + count] what is added to products of `count` queries with their and `past` earlier keys.

    What a query may attend to depends only on its distance to the key, so that all masks are cut from one.
    """
    widest = max(segments.longest_keys, _BLOCK)
    asked = (query.dtype, query.device, window)
    if asked not in segments.masks:
        # The teacher may come first, and the student keeps the mask for its backward pass.
        with torch.inference_mode(False):
            queries = torch.arange(_BLOCK, device=query.device).unsqueeze(1)
            back = queries - torch.arange(-widest, _BLOCK, device=query.device)
            seen = back >= 0 if window is None else (back >= 0) & (back < window)
            whole = torch.zeros(seen.shape, dtype=query.dtype, device=query.device)
            segments.masks[asked] = whole.masked_fill_(~seen, -torch.inf)
    found = segments.masks[asked][:count, widest - past : widest + count]
    return found.contiguous() if query.is_cuda else found  # kernels of a GPU want aligned rows


def _in_one_kernel(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, scaling: float | None, window: int | None
) -> Tensor:
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    bounds = segments.bounds
    if segments.keys is not None and segments.key_bounds is not None:
        k, v, bounds = k[segments.keys], v[segments.keys], segments.key_bounds
    found = _flash(
        q,
        k,
        v,
        segments.bounds,
        bounds,
        max(segments.lengths),
        segments.longest_keys,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),  # the kernel does not count the token itself
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return found.unsqueeze(0)


AttentionInterface.register(PACKED_ATTENTION, attention)
AttentionMaskInterface.register(PACKED_ATTENTION, sdpa_mask)


@torch.no_grad()
def allow_packing(
    lm: LanguageModel, longest: int, precision: torch.dtype = torch.float32, kind: LayoutKind = "packed"
) -> None:
    """Enable packed rows in a model that is on its device, and check that traces do not see each other.

    Args:
        lm: the model; without segments its attention stays SDPA.
        longest: tokens of the longest trace.
        precision: dtype of matrix products.
        kind: `packed` or `shared_prompt`.

    Raises:
        UserError: the model does not support packing: hidden states of packed and of padded traces differ.
    """
    refusal = f"data.layout={kind} does not work with {lm.source.name}: "
    remedy = "; take data.layout=grouped, which pads little and works with every model"
    if others := special_layers(lm):
        raise UserError(f"{refusal}it has layers of {', '.join(others)}{remedy}")
    if lm.rope_switch is not None and longest > lm.rope_switch:
        raise UserError(
            f"{refusal}it reads traces of more than {lm.rope_switch} tokens with other position factors than "
            f"shorter ones{remedy}"
        )
    lm.model.set_attn_implementation(PACKED_ATTENTION)
    if lm.model.config._attn_implementation != PACKED_ATTENTION:
        raise UserError(f"{refusal}its attention is its own{remedy}")
    # To test a sliding window, one trace must be longer than it (if any trace is).
    window = getattr(lm.model.config.get_text_config(), "sliding_window", None) or 0
    lengths = [5, min(longest, window + 8) if window else 9, 3, 7]
    # In fp32 even a small leak exceeds rounding errors; half precision may use another kernel, so test both.
    for used in dict.fromkeys((torch.float32, precision)):
        try:
            with torch.autocast(lm.device.type, used, enabled=used != torch.float32):
                error = _difference(lm, lengths, kind)
        except Exception as found:  # models raise all kinds of exceptions for unknown arguments
            raise UserError(f"{refusal}{first_line(found)}{remedy}") from found
        half = torch.finfo(used).eps > 1e-4 or torch.finfo(lm.model.dtype).eps > 1e-4
        if not error <= (5e-2 if half else 1e-4):
            raise UserError(
                f"{refusal}its traces see one another there, or lose their places (hidden states are off by "
                f"{error:.1g} of their length){remedy}"
            )
    lm.packs_up_to = longest


def allow_sharing(lm: LanguageModel, longest: int) -> None:
    """As `allow_packing` for `shared_prompt`, unless the model was tried with traces as long."""
    if longest > lm.packs_up_to:
        allow_packing(lm, longest, kind="shared_prompt")


def _difference(lm: LanguageModel, lengths: Sequence[int], kind: LayoutKind) -> float:
    """Largest relative distance between hidden states of packed and of padded traces."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(lm.vocab_size, (len(lengths), max(lengths)), generator=generator)
    prompt = 1
    if kind == "shared_prompt":
        prompt = 2
        ids[:, :prompt] = ids[0, :prompt]
    tokens = torch.arange(1, max(lengths))
    mask = ((tokens >= prompt) & (tokens < torch.tensor(lengths).unsqueeze(1))).to(lm.device)
    prompts, same = [prompt] * len(lengths), [0] * len(lengths)
    padded, packed = (
        lm.completion_head(
            ids.to(lm.device), mask, BatchLayout(each).of(prompts, lengths, same).to(lm.device)
        )
        for each in ("padded", kind)
    )
    away = (packed.hidden.double() - padded.hidden.double()).norm(dim=-1)
    return float((away / padded.hidden.double().norm(dim=-1)).max())
