"""Controls that replace token weights in ablations, and the effective sample size of weights."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def shuffle(
    weights: Float[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"], *, generator: torch.Generator
) -> Float[Tensor, "batch seq"]:
    """Permute the weights over the batch's completion tokens: same distribution of weights, random order."""
    # Sort by random keys. Drawing one key per position avoids counting the mask, which would synchronize
    # with the device.
    keys = torch.rand(mask.numel(), generator=generator, dtype=torch.float64)
    keys = keys.to(weights.device, non_blocking=True)
    numbers = (mask.flatten().cumsum(0) - 1).clamp(min=0)  # a token's key does not depend on padding
    order = keys[numbers].masked_fill(~mask.flatten(), 2.0).argsort()
    return torch.zeros_like(weights).masked_scatter(mask, weights.flatten()[order])


def invert(
    weights: Float[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"]
) -> Float[Tensor, "batch seq"]:
    """1 - w: the opposite weighting."""
    return (1 - weights).masked_fill(~mask, 0.0)


def mean_by_position(
    weights: Float[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"]
) -> Float[Tensor, "batch seq"]:
    """The mean of the weights at the same position of the batch's completions: what depends on the position
    alone is left."""
    # Completions are moved to the left, so that a column holds one position. What is not in the mask goes
    # into a column of its own. No two entries meet in a place, and the sums' order is fixed.
    width = mask.shape[1]
    position = (mask.cumsum(1) - 1).masked_fill(~mask, width)
    empty = weights.new_zeros(len(weights), width + 1)
    sums = empty.scatter(1, position, weights.masked_fill(~mask, 0.0)).sum(0)
    counts = empty.scatter(1, position, mask.to(weights.dtype)).sum(0)
    return (sums / counts.clamp(min=1))[position].masked_fill(~mask, 0.0)


def effective_sample_size(total: float, total_of_squares: float, count: float) -> float:
    """Kish's effective sample size as a share of the tokens: (Σw)² / (n Σw²), in [0, 1]; 1 if all w are equal
    and nonzero."""
    return total**2 / (count * total_of_squares) if count > 0 and total_of_squares > 0 else 0.0
