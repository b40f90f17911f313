"""What stands in for token weights in a controlled comparison, and how unlike each other weights are."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def shuffle(
    weights: Float[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"], *, generator: torch.Generator
) -> Float[Tensor, "batch seq"]:
    """The same weights, permuted over the batch's completion tokens: the control for their spread alone."""
    # By a random key for each token, of which there are as many as places at most: a mask would ask the
    # device for their number.
    keys = torch.rand(mask.numel(), generator=generator, dtype=torch.float64)
    keys = keys.to(weights.device, non_blocking=True)
    numbers = (mask.flatten().cumsum(0) - 1).clamp(min=0)  # padding before a token changes nothing of its key
    order = keys[numbers].masked_fill(~mask.flatten(), 2.0).argsort()
    return torch.zeros_like(weights).masked_scatter(mask, weights.flatten()[order])


def invert(
    weights: Float[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"]
) -> Float[Tensor, "batch seq"]:
    """1 - w: the control for their direction."""
    return (1 - weights).masked_fill(~mask, 0.0)


def effective_sample_size(total: float, total_of_squares: float, count: float) -> float:
    """Kish's effective sample size as a share of the tokens: (Σw)² / (n Σw²), in (0, 1]; 1 when all w are
    alike."""
    return total**2 / (count * total_of_squares) if count > 0 and total_of_squares > 0 else 0.0
