"""The output head: hidden states and output matrix, and their product in at least fp32."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Head:
    """A linear output head without bias, and the hidden states that go into it.

    Attributes:
        hidden: [tokens, hidden] final hidden states at the positions that predict the labels.
        weight: [vocab, hidden] output matrix, cut to the tokenizer's real size.
    """

    hidden: Float[Tensor, "tokens hidden"]
    weight: Float[Tensor, "vocab hidden"]


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """The type that a matrix product's factors are rounded to: autocast's where it is on."""
    device_type = tensor.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else tensor.dtype


def factors(head: Head) -> Head:
    """A frozen head, ready for `product`: rounded as autocast would, widened where the machine needs it."""
    dtype = compute_dtype(head.weight)
    return Head(as_factor(head.hidden.detach(), dtype), as_factor(head.weight.detach(), dtype))


def as_factor(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A factor as the model's own head would round it; widened again where `product` needs that."""
    rounded = tensor.to(dtype)
    return rounded if multiplies_into_single(rounded) else rounded.to(wide_dtype(dtype))


def product(a: Tensor, b: Tensor) -> Tensor:
    """The matrix product in at least fp32. Logits rounded to bf16 would be off by 1/64 at a height of 8: near
    the teacher that is as much as there is to learn."""
    return torch.mm(a, b, out_dtype=torch.float32) if multiplies_into_single(a) else a @ b


def multiplies_into_single(factor: Tensor) -> bool:
    """Whether half-precision factors give a single-precision product at once; a CPU cannot."""
    half = factor.dtype in (torch.bfloat16, torch.float16)
    return half and factor.is_cuda and "dtype" in torch.ops.aten.mm.overloads()


def log_softmax(logits: Tensor, temperature: float = 1.0) -> Tensor:
    logits = logits.to(wide_dtype(logits.dtype))
    return torch.log_softmax(logits if temperature == 1.0 else logits / temperature, dim=-1)


def gather(logprobs: Tensor, labels: Tensor) -> Tensor:
    return logprobs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Log-probabilities, losses and sums are at least fp32."""
    return torch.promote_types(dtype, torch.float32)
