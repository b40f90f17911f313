"""All tests of this folder need vLLM: make engines."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

MISSING = find_spec("vllm") is None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.engines)
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.filterwarnings("ignore"))  # vLLM's own, of its imports
            item.add_marker(pytest.mark.skipif(MISSING, reason="vLLM is not installed: make engines"))
