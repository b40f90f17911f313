"""Models without memory for their weights, built from their configurations alone."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from distill.errors import UserError
from distill.models.language_model import LanguageModel, ModelSource, enable_gradient_checkpointing
from distill.models.lora import add_lora
from distill.models.lora_settings import Lora

_GPU_ATTENTION = "gpu_without_values"  # name of our attention in transformers


class WeightlessModel(LanguageModel):
    """A language model of meta tensors, without a tokenizer.

    Args:
        source: the model.
    """

    def __init__(self, source: ModelSource) -> None:  # no tokenizer to check, unlike a loaded model's
        self.model = source.skeleton()
        self.model.to(dtype_of(source, self.model))
        self.source = source
        self.tokenizer = None
        self.vocab_size = vocabulary_of(source, self.model)

    @property
    def end_ids(self) -> list[int]:
        return [0]

    @classmethod
    def student(
        cls, source: ModelSource, *, lora: Lora | None, gradient_checkpointing: bool, seed: int = 0
    ) -> "WeightlessModel":
        """The model that a run trains, with its adapters."""
        lm = cls(source)
        if lora:
            add_lora(lm, lora, seed=seed)
        if gradient_checkpointing:
            enable_gradient_checkpointing(lm)
        return lm

    def pretend(self, *, gpu: bool) -> None:
        """Replace meta tensors by fake ones, inside `without_values`.

        They take the same code paths through attention and autocast as real tensors.
        """
        if gpu and self.model.config._attn_implementation == "sdpa":
            self.model.set_attn_implementation(_GPU_ATTENTION)
        found: dict[int, nn.Parameter] = {}
        for module in self.model.modules():
            for name, p in module._parameters.items():
                if p is not None and id(p) not in found:  # a tied matrix stays one
                    values = torch.empty(p.shape, dtype=p.dtype)
                    found[id(p)] = nn.Parameter(values, requires_grad=p.requires_grad)
                module._parameters[name] = None if p is None else found[id(p)]
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def dtype_of(source: ModelSource, model: nn.Module) -> torch.dtype:
    """Dtype of a model's weights in memory."""
    stored = getattr(model.config, "dtype", None)
    if source.dtype == "auto":
        return stored if isinstance(stored, torch.dtype) else torch.float32
    return getattr(torch, source.dtype)


def vocabulary_of(source: ModelSource, model: nn.Module) -> int:
    """Rows of the output matrix that take part; all of them where the tokenizer is not here."""
    rows = model.get_output_embeddings().weight.shape[0]  # pyright: ignore[reportCallIssue]
    try:
        return min(source.vocab_size, rows)
    except UserError:
        return rows


@contextlib.contextmanager
def without_values(*, gpu: bool) -> Iterator[None]:
    """Context in which tensors have shapes and dtypes, but no values (torch's `FakeTensorMode`).

    Args:
        gpu: take the code paths of a GPU. The tensors are a CPU's nonetheless: a build of torch without CUDA
            cannot differentiate a GPU's, not even without values.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), _WithoutValues(gpu):
        yield


class _WithoutValues(TorchFunctionMode):
    """Make up what would be read from a tensor, and pass its tensors off as a GPU's."""

    def __init__(self, gpu: bool) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.item:
            return 1.0
        if func is Tensor.__getitem__ and isinstance(args[1], Tensor) and args[1].dtype == torch.bool:
            return args[0].flatten()  # as if all were chosen
        if self._gpu and func in _IS_GPU:
            return _IS_GPU[func]
        return func(*args, **kwargs)


_IS_GPU = {Tensor.is_cpu.__get__: False, Tensor.is_cuda.__get__: True}  # pyright: ignore[reportAttributeAccessIssue]


def _gpu_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention function for transformers: flash attention where torch takes it on a GPU, else SDPA."""
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (x.to(torch.get_autocast_dtype("cpu")) for x in (query, key, value))
    if query.element_size() != 2 or attention_mask is not None or query.shape[-1] > 256:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
    flash = torch.ops.aten._scaled_dot_product_flash_attention
    return flash(query, key, value, dropout, True, scale=scaling)[0].transpose(1, 2).contiguous(), None


AttentionInterface.register(_GPU_ATTENTION, _gpu_attention)
AttentionMaskInterface.register(_GPU_ATTENTION, sdpa_mask)
