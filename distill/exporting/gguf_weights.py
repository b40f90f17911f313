"""A model's weights as GGUF tensors: names, order of rows, number types."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, MODEL_ARCH, GGMLQuantizationType, get_tensor_name_map
from gguf.quants import quantize

from distill.errors import UserError

_HALF_MAX = float(np.finfo(np.float16).max)
_TYPES = {
    8: GGMLQuantizationType.Q8_0,
    16: GGMLQuantizationType.F16,
    32: GGMLQuantizationType.F32,
}


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp has a family of models.

    Attributes:
        arch: its name there.
        permuted: whether its rotary embedding takes neighbouring rows of the query and key matrices as pairs,
            where transformers takes rows half a head apart.
        rope_tensor: whether it reads a tensor of factors for the rotary frequencies.
    """

    arch: MODEL_ARCH
    permuted: bool = False
    rope_tensor: bool = False


ARCHITECTURES = {
    "llama": Architecture(MODEL_ARCH.LLAMA, permuted=True, rope_tensor=True),
    "qwen2": Architecture(MODEL_ARCH.QWEN2),
    "qwen3": Architecture(MODEL_ARCH.QWEN3),
}


@dataclass(frozen=True)
class TensorPlan:
    """A tensor of the file.

    Attributes:
        name: in the file.
        source: name in the model's state; None: `rope_factors`.
        shape: rows first.
        kind: number type.
        heads: number of heads whose rows are permuted; None: none are.
    """

    name: str
    source: str | None
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    heads: int | None = None

    @property
    def bytes(self) -> int:
        """Size in the file, without padding."""
        block, size = GGML_QUANT_SIZES[self.kind]
        return int(np.prod(self.shape)) // block * size


def plan_tensors(model: Any, found: Architecture, rows: int, bits: int) -> list[TensorPlan]:
    """The tensors of the file, in their order.

    Vectors stay in single precision, as in llama.cpp's converter, and so does nothing else: a matrix whose
    columns are no multiple of a block of `q8_0` is written in half precision.

    Args:
        model: of transformers.
        found: its architecture.
        rows: first rows of the embedding and the output matrix that stand for tokens.
        bits: of a weight: 8, 16 or 32.

    Raises:
        UserError: the model has a tensor that the architecture has no name for.
    """
    config = model.config
    names = get_tensor_name_map(found.arch, config.num_hidden_layers)
    state = model.state_dict()
    plans = []
    if found.rope_tensor and rope_factors(model) is not None:
        plans.append(TensorPlan("rope_freqs.weight", None, (head_dim(config) // 2,), _TYPES[32]))
    for source, tensor in state.items():
        if source == "lm_head.weight" and config.tie_word_embeddings:
            continue
        name = names.get_name(source, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise UserError(
                f"format=gguf has no name for the tensor {source} of this student: take format=hf"
            )
        shape = tuple(tensor.shape)
        if source in ("model.embed_tokens.weight", "lm_head.weight"):
            shape = (min(rows, shape[0]), *shape[1:])
        plans.append(TensorPlan(name, source, shape, _kind(shape, bits), _heads(source, found, config)))
    return plans


def _kind(shape: tuple[int, ...], bits: int) -> GGMLQuantizationType:
    if len(shape) < 2:
        return GGMLQuantizationType.F32
    kind = _TYPES[bits]
    return kind if shape[-1] % GGML_QUANT_SIZES[kind][0] == 0 else GGMLQuantizationType.F16


def _heads(source: str, found: Architecture, config: Any) -> int | None:
    if not found.permuted:
        return None
    if ".q_proj." in source:
        return config.num_attention_heads
    return config.num_key_value_heads if ".k_proj." in source else None


def tensor_data(plan: TensorPlan, model: Any) -> np.ndarray:
    """A tensor's content as the file has it.

    Raises:
        UserError: a weight is no number, or too large for half precision.
    """
    if plan.source is None:
        factors = rope_factors(model)
        assert factors is not None
        return factors
    tensor = model.state_dict()[plan.source][: plan.shape[0]]
    values = tensor.detach().to("cpu", torch.float32).numpy()
    largest = float(np.abs(values).max(initial=0.0))
    if not np.isfinite(largest):
        raise UserError(f"the student's tensor {plan.source} has weights that are no numbers: it is damaged")
    if plan.kind == GGMLQuantizationType.F16 and largest > _HALF_MAX:
        raise UserError(
            f"the student's tensor {plan.source} has a weight of {largest:.3g}, more than half precision "
            f"holds ({_HALF_MAX:.0f}): take bits=32"
        )
    if plan.heads is not None:
        values = permuted(values, plan.heads)
    return quantize(np.ascontiguousarray(values), plan.kind)


def permuted(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key matrix in llama.cpp's order: row i of a head's first half beside row i of its
    second half."""
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def head_dim(config: Any) -> int:
    """Columns of an attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def rope_factors(model: Any) -> np.ndarray | None:
    """[head_dim/2] float32: by what the rotary frequencies are divided in Llama 3.1; None: they are not."""
    if model.config.rope_parameters.get("rope_type", "default") != "llama3":
        return None
    theta, size = model.config.rope_parameters["rope_theta"], head_dim(model.config)
    plain = theta ** -(np.arange(0, size, 2, dtype=np.float64) / size)
    own = model.model.rotary_emb.inv_freq.detach().to("cpu", torch.float64).numpy()
    return (plain / own).astype(np.float32)


def check_architecture(config: Any, name: str) -> Architecture:
    """The architecture of a model that can be written.

    Args:
        config: the model's configuration.
        name: the model's, for messages.

    Raises:
        UserError: llama.cpp's form of it is not known here; names what is in the way.
    """
    remedy = "take format=hf, and llama.cpp's convert_hf_to_gguf.py on it"
    known = ", ".join(ARCHITECTURES)
    if config.model_type not in ARCHITECTURES:
        raise UserError(
            f"format=gguf writes models of the kinds {known}, and {name} is of the kind {config.model_type}: "
            f"{remedy}"
        )
    if odd := next(_oddities(config), None):
        raise UserError(
            f"format=gguf does not write a {config.model_type} with {odd}, as {name} has: {remedy}"
        )
    return ARCHITECTURES[config.model_type]


def _oddities(config: Any) -> Iterator[str]:
    """Settings that the file could not express."""
    if config.hidden_act != "silu":
        yield f"hidden_act={config.hidden_act}"
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        yield "a sliding window"
    kind = config.rope_parameters.get("rope_type", "default")
    if kind not in ("default", "linear") and not (kind == "llama3" and config.model_type == "llama"):
        yield f"rotary embeddings of the type {kind}"
    if config.rope_parameters.get("partial_rotary_factor", 1.0) != 1.0:
        yield "partial rotary embeddings"
