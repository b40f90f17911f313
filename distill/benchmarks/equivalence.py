"""Whether two mathematical answers mean the same. Runs in a child of `distill.judging`, which can be killed."""


def compare(gold: str, answer: str, tolerance: float | None = None) -> tuple[bool, str]:
    """Whether two answers mean the same, and why it was decided; in this process, without any limit."""
    from math_verify import parse, verify

    # Each in a box of its own: of bare text math-verify takes the last number, of several boxes a set.
    expected, found = (
        parse(rf"\boxed{{{text}}}", parsing_timeout=0, raise_on_error=False) for text in (gold, answer)
    )
    if not expected:
        return False, "unreadable gold answer"
    if not found:
        return False, "unreadable answer"
    # The gold comes first: verify is not symmetric.
    right = verify(expected, found, timeout_seconds=None, raise_on_error=False)
    return right, "right" if right else "wrong"


def readable(text: str) -> bool:
    """Whether an answer can be read at all."""
    from math_verify import parse

    return bool(parse(rf"\boxed{{{text}}}", parsing_timeout=0, raise_on_error=False))
