"""Thoughts: the reasoning that a model writes before its answer."""


def with_thought(thought: str, answer: str) -> str:
    """A completion in which the thought stands in front of the answer, between `<think>` tags.

    Args:
        thought: the reasoning; if blank, the answer is returned as it is.
        answer: what follows it. If it carries a thought itself (a closing tag is in it), it is returned as it
            is.
    """
    if not thought.strip() or "</think>" in answer:
        return answer
    return f"<think>\n{thought.strip()}\n</think>\n\n{answer.lstrip()}"
