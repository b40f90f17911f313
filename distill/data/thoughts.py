"""Thoughts: what a model writes before its answer, between marks such as `<think>` and `</think>`."""


def with_thought(thought: str, answer: str) -> str:
    """A completion of a thought and an answer."""
    return f"<think>\n{thought}\n</think>\n\n{answer}"
