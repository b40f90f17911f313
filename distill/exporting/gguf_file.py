"""Write a student as a GGUF file, the format of llama.cpp, Ollama and LM Studio, and read it back."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
from gguf import (
    MODEL_ARCH_NAMES,
    GGUFValueType,
    GGUFWriter,
    Keys,
    LlamaFileType,
    RopeScalingType,
)

from distill.errors import UserError
from distill.exporting.gguf_tokenizer import TokenizerMetadata, tokenizer_metadata
from distill.exporting.gguf_weights import (
    check_architecture,
    head_dim,
    plan_tensors,
    tensor_data,
)
from distill.io.files import write_atomically
from distill.io.progress import progress_bar
from distill.models.find import find_model
from distill.models.language_model import LanguageModel, ModelSource

_FILE_TYPES = {
    8: LlamaFileType.MOSTLY_Q8_0,
    16: LlamaFileType.MOSTLY_F16,
    32: LlamaFileType.ALL_F32,
}
_QUANTIZATION_VERSION = 2  # of ggml's block formats


class _Writer(GGUFWriter):
    """GGUFWriter that also writes an empty list of merges, without which llama.cpp loads no vocabulary."""

    def _pack_val(
        self, val: Any, vtype: GGUFValueType, add_vtype: bool, sub_type: GGUFValueType | None = None
    ) -> bytes:
        if vtype == GGUFValueType.ARRAY and len(val) == 0:
            kind = self._pack("I", vtype) if add_vtype else b""
            return kind + self._pack("I", GGUFValueType.STRING) + self._pack("Q", 0)
        return super()._pack_val(val, vtype, add_vtype, sub_type)


def write_gguf(student: LanguageModel, path: Path, bits: int, name: str, license: str | None = None) -> None:
    """Write a student as a GGUF file, tensor by tensor.

    The rows of the embedding and the output matrix that stand for no token are left out.

    Args:
        student: the student.
        path: of the new file.
        bits: of a weight: 8 (q8_0), 16 (f16) or 32 (f32).
        name: the model's, in the file.
        license: in the file; None: not said.

    Raises:
        UserError: the architecture or the tokenizer cannot be written, or a weight is no number.
    """
    model, config = student.model, student.model.config
    architecture = check_architecture(config, student.source.name)
    tokenizer = tokenizer_metadata(student.tokenizer, student.end_ids, student.source.name)
    rows = len(tokenizer.tokens)
    if rows > student.model.get_input_embeddings().weight.shape[0]:
        raise UserError(
            f"{student.source.name} has more tokens than rows of its embedding: add rows for them"
        )
    plans = plan_tensors(model, architecture, rows, bits)

    def write(temporary: Path) -> None:
        writer = _Writer(temporary, MODEL_ARCH_NAMES[architecture.arch])
        try:
            writer.add_type("model")
            writer.add_name(name)
            if license:
                writer.add_license(license)
            _add_model(writer, config, rows, bits)
            _add_tokenizer(writer, tokenizer)
            for plan in plans:
                shape, dtype = plan.shape, np.dtype(np.float32)  # which `raw_dtype` overrides
                writer.add_tensor_info(plan.name, shape, dtype, plan.bytes, raw_dtype=plan.kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            with progress_bar(total=len(plans), description=path.name, unit="tensor") as bar:
                for plan in plans:
                    writer.write_tensor_data(tensor_data(plan, model))
                    bar.update(1)
        finally:
            writer.close()

    write_atomically(path, write)


def _add_model(writer: GGUFWriter, config: Any, rows: int, bits: int) -> None:
    """Add sizes and rotary embedding."""
    size, rope = head_dim(config), config.rope_parameters
    writer.add_file_type(_FILE_TYPES[bits])
    writer.add_quantization_version(_QUANTIZATION_VERSION)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    if size * config.num_attention_heads != config.hidden_size or config.model_type == "qwen3":
        writer.add_key_length(size)
        writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(rows)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def _add_tokenizer(writer: GGUFWriter, tokenizer: TokenizerMetadata) -> None:
    writer.add_tokenizer_model("gpt2")  # byte-level BPE
    writer.add_tokenizer_pre(tokenizer.pre)
    writer.add_token_list(tokenizer.tokens)
    writer.add_token_types(tokenizer.types)
    writer.add_key_value(Keys.Tokenizer.MERGES, tokenizer.merges, GGUFValueType.ARRAY)
    for role, index in tokenizer.special.items():
        getattr(writer, f"add_{role}_token_id")(index)
    writer.add_add_bos_token(tokenizer.add_bos)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def read_back(path: Path, student: LanguageModel) -> ModelSource:
    """The written file as a model, which transformers reads as it reads anybody's.

    It does not read three things that llama.cpp does: the scaling of rotary frequencies, heads of another
    size than hidden size / heads, and that a Llama has biases. Where the student has one, it is put beside
    the file's configuration.

    Args:
        path: the file.
        student: the student, whose dtype the weights get.
    """
    source = find_model(str(path), key="out", dtype=str(student.model.dtype).removeprefix("torch."))
    config, own = copy.deepcopy(source._configuration), student.model.config
    if own.rope_parameters.get("rope_type", "default") != "default":
        config.rope_parameters = copy.deepcopy(own.rope_parameters)
    for name in ("attention_bias", "mlp_bias"):
        if getattr(own, name, False):
            setattr(config, name, True)
    if head_dim(config) != head_dim(own):
        config.head_dim = head_dim(own)
    vars(source)["_configuration"] = config
    return source
