"""Make records of samples.jsonl for tests."""

from typing import Any


def sample(benchmark: str, **changes: Any) -> dict[str, Any]:
    """A completion that is right and finished, in everything but `changes`."""
    record = {
        "benchmark": benchmark,
        "id": "0",
        "problem": "1+1=",
        "gold": "2",
        "sample": 0,
        "completion": "2",
        "answer": "2",
        "correct": True,
        "rule": "boxed",
        "reason": "right",
        "counts": {},
        "class": None,
        "finished": True,
        "truncated": False,
        "tokens": 3,
        "reference_tokens": None,
        "repetition": None,
    }
    return record | changes
