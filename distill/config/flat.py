"""Nested mappings as full keys with dots. Alone in its file, as what reads many runs imports nothing more."""

from collections.abc import Iterator, Mapping
from typing import Any


def flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Full keys (with dots) and values of a nested mapping; an empty mapping is a value."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
