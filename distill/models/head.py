"""Output head: hidden states, output matrix, and their product in at least fp32."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Head:
    """A linear output head without bias, with its input.

    Attributes:
        hidden: [tokens, hidden] final hidden states at the positions that predict the labels.
        weight: [vocab, hidden] output matrix, cut to the tokenizer's real size.
    """

    hidden: Float[Tensor, "tokens hidden"]
    weight: Float[Tensor, "vocab hidden"]


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """Dtype of the factors of matrix products: autocast's if it is enabled, else the tensor's."""
    device_type = tensor.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else tensor.dtype


def factors(head: Head) -> Head:
    """Detach a head and convert both factors with `as_factor`, for `product`."""
    dtype = compute_dtype(head.weight)
    return Head(as_factor(head.hidden.detach(), dtype), as_factor(head.weight.detach(), dtype))


def as_factor(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Round a factor to `dtype`, as the model's own head does; convert it back to fp32 if `product` must."""
    rounded = tensor.to(dtype)
    return rounded if multiplies_into_single(rounded) else rounded.to(wide_dtype(dtype))


def product(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product in at least fp32.

    In bf16, logits around 8 would have rounding errors of 1/64, which is as large as the differences between
    student and teacher late in training.
    """
    return torch.mm(a, b, out_dtype=torch.float32) if multiplies_into_single(a) else a @ b


def multiplies_into_single(factor: Tensor) -> bool:
    """Whether torch.mm can multiply half-precision factors into an fp32 result (GPU only)."""
    half = factor.dtype in (torch.bfloat16, torch.float16)
    return half and factor.is_cuda and "dtype" in torch.ops.aten.mm.overloads()


def log_softmax(logits: Tensor, temperature: float = 1.0) -> Tensor:
    logits = logits.to(wide_dtype(logits.dtype))
    return torch.log_softmax(logits if temperature == 1.0 else logits / temperature, dim=-1)


def gather(logprobs: Tensor, labels: Tensor) -> Tensor:
    return logprobs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Promote to at least fp32, the dtype of log-probabilities, losses and sums."""
    return torch.promote_types(dtype, torch.float32)
