"""Rotary position embeddings whose frequencies depend on the length of the sequence."""

from collections.abc import Mapping
from typing import Any


def rope_switch(config: Any) -> int | None:
    """The longest sequence that a model reads with its short factors (longrope: Phi-3, Phi-4).

    transformers chooses the factors by the longest row of a batch, so that a short row beside a long one
    would be read with factors that are not its own.

    Args:
        config: the model's configuration.

    Returns:
        None if it reads all lengths with the same factors.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = []
    for name in ("rope_parameters", "rope_scaling"):
        node = getattr(text, name, None)
        if not isinstance(node, Mapping):
            continue
        for own in [node, *(value for value in node.values() if isinstance(value, Mapping))]:
            if own.get("rope_type", own.get("type")) in ("longrope", "su"):
                found.append(
                    own.get("original_max_position_embeddings")
                    or getattr(text, "original_max_position_embeddings", None)
                )
    switches = [int(one) for one in found if one]
    longest = getattr(text, "max_position_embeddings", None)
    return min(switches) if switches and (longest is None or min(switches) < longest) else None
