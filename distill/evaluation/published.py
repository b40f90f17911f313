"""Figures of the DCOD paper (2605.14071), to be set beside ours."""

import functools
from pathlib import Path
from typing import Any

import yaml


@functools.cache
def published() -> dict[str, Any]:
    """The content of `paper_2605_14071.yaml`."""
    path = Path(__file__).with_name("paper_2605_14071.yaml")
    return yaml.safe_load(path.read_text(encoding="utf-8"))
