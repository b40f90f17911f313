"""The share of tokens that T3S masks (2601.10348), before training."""

from collections.abc import Callable, Sequence

import torch

from distill.data.trace import Trace
from distill.losses.signals import unbound
from distill.losses.weights import t3s
from distill.objective.objective import Objective

_USUAL = (0.1, 0.35)  # the paper has about 0.2
_PAPER = 0.2


def masked_share(
    objective: Objective, traces: Sequence[Trace], say: Callable[[str], None] = print
) -> float | None:
    """The share of the traces' completion tokens that the pilot learned; None if the weight is not T3S's.

    It is the same for T3S's controls, `loss.control=inverted` included, where these tokens alone are trained.
    """
    term = objective.terms["main"]
    if unbound(term.token_weight) is not t3s or not traces or "pilot_logprobs" not in traces[0].signals:
        return None
    kept = total = 0.0
    for trace in traces:
        known = {name: torch.from_numpy(trace.signals[name])[None] for name in objective.cached_signals}
        count = len(trace.completion_ids)
        kept += float(term.weights(torch.ones(1, count, dtype=torch.bool), known, 0.0).sum())
        total += count
    say(masked_in_words(1 - kept / total))
    return 1 - kept / total


def masked_in_words(share: float) -> str:
    """One line, with a warning if the share is far from the paper's."""
    said = f"T3S: the pilot has learned {share:.1%} of the completion tokens, which are masked"
    if _USUAL[0] <= share <= _USUAL[1]:
        return f"{said} (the paper: about {_PAPER:.0%})"
    return (
        f"warning: {said}, where the paper masks about {_PAPER:.0%}. Its pilot is the checkpoint with the "
        f"lowest accuracy on the training problems, not the last: python -m distill.bottleneck <run> finds it"
    )
