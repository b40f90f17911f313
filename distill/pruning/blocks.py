"""The blocks of a decoder: how far each changes the hidden state, and a model without some of them.

The choice is that of Gromov et al. (2403.17887), which self-data distillation (2410.09982) prunes with: of n
consecutive blocks, those whose input and output have the least angular distance at the last token.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from distill.data.batch import by_length, collate
from distill.data.trace import Trace
from distill.errors import UserError
from distill.models.language_model import LanguageModel

# Lists of the configuration that hold numbers of blocks; those whose name has "layer" in it and that have an
# entry for each block hold a property of each.
_NUMBERS = ("mlp_only_layers", "cross_attention_layers")


def blocks_of(model: Any) -> tuple[nn.Module, str]:
    """The module that holds the list of blocks, and the list's name in it.

    Raises:
        UserError: there is no such list.
    """
    count = model.config.get_text_config().num_hidden_layers
    for holder in model.base_model.modules():
        for name, child in holder.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == count:
                return holder, name
    raise UserError(f"{type(model).__name__} has no list of its {count} blocks: it cannot be pruned")


@torch.no_grad()
def last_states(
    lm: LanguageModel,
    traces: Sequence[Trace],
    *,
    token_budget: int = 8192,
    advance: Callable[[int], object] = lambda count: None,
) -> Float[Tensor, "traces blocks hidden"]:
    """The input of each block at the last token of each trace, in float64 on the CPU.

    Args:
        lm: the model.
        traces: in its tokens.
        token_budget: tokens per batch, padding included.
        advance: called with the number of traces that were read, for a progress bar.
    """
    holder, name = blocks_of(lm.model)
    blocks: Any = getattr(holder, name)
    found: list[Tensor] = [torch.empty(0)] * len(traces)
    for rows in by_length([len(trace) for trace in traces], token_budget):
        own = [Trace(t.example, t.prompt_ids, t.completion_ids) for t in (traces[row] for row in rows)]
        ids = collate(own).input_ids.to(lm.device)
        ends = torch.tensor([len(trace) - 1 for trace in own], device=lm.device)
        states: list[Tensor] = []

        def note(
            block: nn.Module, args: Any, options: Any, states: list[Tensor] = states, ends: Tensor = ends
        ) -> None:
            hidden = args[0] if args else options["hidden_states"]
            states.append(hidden[torch.arange(len(ends), device=hidden.device), ends].double().cpu())

        hooks = [block.register_forward_pre_hook(note, with_kwargs=True) for block in blocks]
        try:
            lm.model.base_model(input_ids=ids, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        for row, of_row in zip(rows, torch.stack(states, dim=1), strict=True):
            found[row] = of_row
        advance(len(rows))
    return torch.stack(found)


def angular_distances(states: Float[Tensor, "traces blocks hidden"], count: int) -> Float[Tensor, " starts"]:
    """Mean angular distance of the states before and behind `count` blocks, for each first block.

    d(l) = mean over traces of arccos(cos(x_l, x_{l+n})) / π, where x_l is the input of block l. The last
    block is never among the n.

    Args:
        states: from `last_states`.
        count: n, from 1 to the number of blocks − 1.
    """
    before, behind = states[:, :-count], states[:, count:]
    cosine = nn.functional.cosine_similarity(before, behind, dim=-1)
    return (cosine.clamp(-1, 1).arccos() / torch.pi).mean(0)


def drop_blocks(model: Any, start: int, count: int) -> None:
    """Remove consecutive blocks from a model, in place, with what its configuration says of each block.

    Args:
        model: of transformers.
        start: the first block to remove, from 0.
        count: how many.

    Raises:
        ValueError: there are no such blocks, or none would be left.
    """
    holder, name = blocks_of(model)
    blocks: Any = getattr(holder, name)
    if not (count >= 1 and 0 <= start <= len(blocks) - count and count < len(blocks)):
        raise ValueError(f"no {count} blocks of {len(blocks)} can be dropped from number {start} on")
    kept = [number for number in range(len(blocks)) if not start <= number < start + count]
    setattr(holder, name, nn.ModuleList(blocks[number] for number in kept))
    for number, old in enumerate(kept):
        for module in blocks[old].modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = number  # its place in the cache
    config = model.config.get_text_config()
    for key, value in list(vars(config).items()):
        if key in _NUMBERS and isinstance(value, list):
            setattr(config, key, [kept.index(number) for number in value if number in kept])
        elif "layer" in key and isinstance(value, list | tuple) and len(value) == len(blocks):
            setattr(config, key, [value[number] for number in kept])
    config.num_hidden_layers = len(kept)
