"""Queries and keys of a state by the last layer's own matrices, as COMPACT compares traces (2601.13992)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from distill.errors import UserError
from distill.models.language_model import LanguageModel


@torch.no_grad()
def queries_and_keys(
    lm: LanguageModel, states: Float[Tensor, "rows hidden"]
) -> tuple[Float[Tensor, "rows width"], Float[Tensor, "rows width"]]:
    """W_Q v and W_K v of the last layer, all heads side by side, without bias and rotation; grouped keys are
    repeated for each of their queries. LoRA's adapters count.

    Raises:
        UserError: the model has no such matrices.
    """
    modules: dict[str, Any] = dict(lm.model.named_modules())
    found = [
        [one for name, one in modules.items() if name.endswith(f".{end}")] for end in ("q_proj", "k_proj")
    ]
    if not all(found):
        raise UserError(
            f"{lm.source.name} has no matrices q_proj and k_proj of its own, by which COMPACT compares "
            f"traces: leave the consensus out (curation.compact.alpha=0, loss.trace_weights.consensus=0)"
        )
    with _gathered(modules, next(name for name, one in modules.items() if one is found[0][-1])):
        query, key = (_linear(ones[-1], states) for ones in found)
    repeated = query.shape[-1] // key.shape[-1]
    config = lm.model.config.get_text_config()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return query, key.unflatten(-1, (-1, size)).repeat_interleave(repeated, -2).flatten(-2)


@contextmanager
def _gathered(modules: Mapping[str, Any], name: str) -> Iterator[None]:
    """Context with the whole weights of a layer that FSDP has divided over ranks, which all enter it."""
    divided = (own for own, one in modules.items() if isinstance(one, FSDPModule))
    owners = [own for own in divided if not own or name.startswith(f"{own}.")]
    if not owners:
        yield
        return
    layer = modules[max(owners, key=len)]
    layer.unshard()
    try:
        yield
    finally:
        layer.reshard()


def _linear(module: Any, states: Tensor) -> Tensor:
    """A layer without its bias."""
    states = states.to(next(module.parameters()).dtype)
    return (module(states) - module(torch.zeros_like(states))).float()
