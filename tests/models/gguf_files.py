"""Read a GGUF file once where tests load the same one again and again: it takes seconds each time."""

import functools
import importlib
from typing import Any

import pytest

from distill.models import gguf_model


def read_once(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Give every later reader of a file the first one; the list is of all that were asked for."""
    for kept in (gguf_model._tokenizer, gguf_model._configuration):  # of earlier tests
        kept.cache_clear()
    gguf: Any = importlib.import_module("gguf")
    reader = functools.cache(gguf.GGUFReader)
    # transformers asks for the map of names anew for every module of a model, hundreds of times.
    monkeypatch.setattr(gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map))
    asked: list[str] = []
    monkeypatch.setattr(gguf, "GGUFReader", lambda path: (asked.append(path), reader(path))[1])
    return asked
