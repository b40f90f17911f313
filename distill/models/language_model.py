"""A language model: found but not loaded, and loaded, with the one way in which its predictions are read."""

import contextlib
import copy
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from distill.data.layout import Layout, Pass
from distill.data.tokenizers import end_ids, tokenizer_fingerprint, tokenizer_size
from distill.errors import UserError, first_line
from distill.models.head import Head

PACKED_ATTENTION = "packed"  # the name under which transformers knows the attention of distill.models.packing
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


@dataclass(frozen=True)
class ModelSource:
    """A model that is found but not loaded: cheap to hold, loaded when something needs it.

    Attributes:
        name: what the user wrote.
        location: hub id, or the folder on disk.
        fingerprint: of the weights: the hub's commit, or a hash of the files.
        gguf: the GGUF file's name inside the folder, if it is one.
        revision: the hub's commit, so that all files come from one.
        dtype: of the weights in memory: float32, bfloat16, …, or auto (as stored).
        trust_remote_code: run the repository's own Python; off unless the user turns it on.
    """

    name: str
    location: str
    fingerprint: str
    gguf: str | None = None
    revision: str | None = None
    dtype: str = "float32"
    trust_remote_code: bool = False

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer; it must know an end-of-sequence token."""
        from transformers import AutoTokenizer

        folder = Path(self.location)
        if (
            folder.is_dir()
            and not self.gguf
            and not any((folder / name).is_file() for name in _TOKENIZER_FILES)
        ):
            # AutoTokenizer would make an empty one of the model's kind.
            raise UserError(f"the folder {self.name!r} has no tokenizer ({', '.join(_TOKENIZER_FILES)})")
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.location, **self._where)
        except Exception as error:  # as for the weights
            raise UserError(f"{self.name!r} has no tokenizer that loads: {first_line(error)}") from error
        if tokenizer.eos_token_id is None:
            raise UserError(
                f"the tokenizer of {self.name!r} has no end-of-sequence token: set eos_token in it"
            )
        return tokenizer

    @functools.cached_property
    def vocabulary(self) -> str:
        """`tokenizer_fingerprint` of its tokenizer."""
        return tokenizer_fingerprint(self.tokenizer)

    @functools.cached_property
    def context_length(self) -> int:
        """Longest sequence the model was made for, read from its configuration alone."""
        try:
            return _context_length(self._configuration)
        except Exception as error:  # as for the weights
            raise UserError(f"{self.name!r} has no configuration that loads: {first_line(error)}") from error

    @functools.cached_property
    def end_ids(self) -> list[int]:
        """Every token that ends a completion; the one that this model's traces are closed with comes first.

        That is what the chat template puts behind an answer, where it is one of them (Gemma closes a turn
        with another token than its end of sequence), else the tokenizer's end of sequence.
        """
        from transformers import GenerationConfig

        configuration: Any = None
        with contextlib.suppress(OSError, ValueError):  # not every model says; the tokenizer does
            configuration = self._configuration
        with contextlib.suppress(OSError):
            revision = self.revision or "main"
            configuration = GenerationConfig.from_pretrained(self.location, revision=revision)
        return end_ids(self.tokenizer, configuration)

    def skeleton(self) -> Any:
        """The model's modules by its configuration alone: names and shapes, without any weights."""
        from transformers import AutoModelForCausalLM

        try:
            configuration = copy.deepcopy(self._configuration)  # the model writes into it
            with torch.device("meta"):
                return AutoModelForCausalLM.from_config(
                    configuration, trust_remote_code=self.trust_remote_code
                )
        except Exception as error:  # as for the weights
            raise UserError(f"{self.name!r} has no configuration that loads: {first_line(error)}") from error

    def load(self) -> "LanguageModel":
        """The weights, in eval mode on the CPU, and the tokenizer."""
        from transformers import AutoModelForCausalLM, GgufConfig

        options: dict[str, Any] = dict(self._where)
        if self.gguf:
            # Otherwise the weights stay packed and can be neither trained nor saved.
            options["quantization_config"] = GgufConfig(dequantize=True)
        dtype = self.dtype if self.dtype == "auto" else find_dtype(self.dtype)
        try:
            if self.gguf:  # whose head takes seconds to read
                options["config"] = copy.deepcopy(self._configuration)
            model = AutoModelForCausalLM.from_pretrained(self.location, dtype=dtype, **options)
        except Exception as error:  # damaged files raise what their readers please
            raise UserError(f"model {self.name!r} does not load: {first_line(error)}") from error
        if self.gguf:
            _forget_packing(model)
        return LanguageModel(model.eval(), self.tokenizer, self)

    @functools.cached_property
    def _configuration(self) -> Any:
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self.location, **self._where)

    @property
    def _where(self) -> dict[str, Any]:
        options: dict[str, Any] = {"trust_remote_code": self.trust_remote_code}
        if self.gguf:
            options["gguf_file"] = self.gguf
        if self.revision:
            options["revision"] = self.revision
        return options


class LanguageModel:
    """A causal language model, its tokenizer, and the one way in which this package reads its predictions."""

    def __init__(self, model: Any, tokenizer: Any, source: ModelSource) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.source = source
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Linear) or head.bias is not None:
            raise UserError(
                f"{source.name!r} has an output head of another kind than a matrix: it is not supported"
            )
        # Output matrices are padded to round sizes that differ between models of one family (Qwen2.5 1.5B and
        # 7B): only rows of real tokens take part, in training, in scoring and in sampling.
        self.vocab_size = min(tokenizer_size(tokenizer), head.weight.shape[0])

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def context_length(self) -> int:
        return _context_length(self.model.config)

    @property
    def end_ids(self) -> list[int]:
        """As `ModelSource.end_ids`, by the loaded model's own generation settings."""
        return end_ids(self.tokenizer, self.model.generation_config)

    def completion_head(
        self,
        input_ids: Int[Tensor, "batch length"],
        mask: Bool[Tensor, "batch seq"],
        layout: Layout | None = None,
    ) -> Head:
        """Hidden states at the positions that predict completion tokens, and the output matrix.

        The one place where predictions are aligned with tokens: position t of the model predicts token t+1,
        so `mask` has one column less than `input_ids` and its column t speaks of token t+1.

        Right-padded causal input needs no attention mask: no real token can see the padding behind it.

        Args:
            input_ids: right-padded.
            mask: true on completion tokens.
            layout: the batch's way through the body, which knows the places of the mask's true entries too;
                None: side by side, in one pass. The states and their order are the same.
        """
        weight = self.model.get_output_embeddings().weight[: self.vocab_size]
        if layout is None:
            return Head(hidden=self._rows(input_ids)[:, :-1][mask], weight=weight)
        flat = input_ids.flatten()
        with cached_casts(input_ids.device.type) if len(layout.passes) > 1 else contextlib.nullcontext():
            parts = [self._states(flat[one.tokens], one).flatten(0, 1) for one in layout.passes]
        states = parts[0] if len(parts) == 1 else torch.cat(parts)
        return Head(hidden=states.index_select(0, layout.predicting), weight=weight)

    def _rows(self, ids: Int[Tensor, "rows length"]) -> Float[Tensor, "rows length hidden"]:
        with _a_trace_a_row():
            return self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state

    def _states(self, ids: Int[Tensor, "rows length"], one: Pass) -> Float[Tensor, "rows length hidden"]:
        if one.segments is None:
            return self._rows(ids)
        if self.model.config._attn_implementation != PACKED_ATTENTION:
            raise RuntimeError(
                "a model must be made ready for packed rows by distill.models.packing.allow_packing"
            )
        # A mask of four dimensions keeps transformers from making one of all tokens by all tokens.
        unread = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=ids.device)
        return self.model.base_model(
            input_ids=ids,
            attention_mask=unread,
            position_ids=one.positions,
            use_cache=False,
            segments=one.segments,
        ).last_hidden_state

    @torch.no_grad()
    def check_head(self) -> None:
        """Refuse a model whose logits are more than a matrix product (soft-capping, scaling): the chunked
        head would silently train another function than the one that the model computes."""
        capped = getattr(self.model.config, "final_logit_softcapping", None)
        ids = torch.tensor([[1, 2, 3]], device=self.device).clamp(max=self.vocab_size - 1)
        expected = self.model(input_ids=ids, use_cache=False).logits[0, :2, : self.vocab_size].float()
        head = self.completion_head(ids, torch.ones(1, 2, dtype=torch.bool, device=self.device))
        found = (head.hidden @ head.weight.T).float()
        if not expected.isfinite().all():
            raise UserError(
                f"{self.source.name!r} computes logits that are no numbers: its weights are damaged"
            )
        if capped or not torch.allclose(found, expected, rtol=2e-2, atol=2e-2 * float(expected.abs().max())):
            raise UserError(
                f"{self.source.name!r} transforms its logits after the output matrix (soft-capping or "
                f"scaling), "
                "which the chunked head does not reproduce: choose another model"
            )


def enable_gradient_checkpointing(lm: LanguageModel) -> None:
    """Keep a layer's input alone for the backward pass while the model trains, and compute the rest of the
    layer anew there.

    Raises:
        UserError: the model cannot.
    """
    try:
        lm.model.activation_checkpointing_enable({"use_reentrant": False})
    except ValueError as error:
        raise UserError(
            f"model.gradient_checkpointing=true cannot be had with {lm.source.name}: {first_line(error)}"
        ) from error


def vocabulary_mismatch(student: ModelSource, teacher: ModelSource) -> str | None:
    """Why token-level signals cannot pass from teacher to student, or None when they can."""
    ours, theirs = student.tokenizer, teacher.tokenizer
    if student.vocabulary != teacher.vocabulary:
        a, b = ours.get_vocab(), theirs.get_vocab()
        differing = sum(1 for token, index in a.items() if b.get(token) != index)
        return (
            f"the vocabularies differ ({len(a)} tokens in {student.name}, {len(b)} in {teacher.name}; "
            f"{differing} of the student's stand for something else or nothing in the teacher's)"
        )
    if student.end_ids[0] != teacher.end_ids[0]:
        ends = [t.convert_ids_to_tokens(s.end_ids[0]) for t, s in ((ours, student), (theirs, teacher))]
        shown = f"{ends[0]!r} in {student.name}, {ends[1]!r} in {teacher.name}"
        return f"the end-of-sequence tokens differ ({shown})"
    return None


@contextlib.contextmanager
def cached_casts(device_type: str) -> Iterator[None]:
    """Where training has autocast on, cast each weight once for all passes: a training step's autocast keeps
    no casts, so that every pass and every token written would cast all weights anew, and the backward pass
    would hold as many half-precision copies of the weights as passes."""
    if not torch.is_autocast_enabled(device_type):
        yield
        return
    try:
        with torch.autocast(device_type, torch.get_autocast_dtype(device_type), cache_enabled=True):
            yield
    finally:
        torch.clear_autocast_cache()  # the next step changes the weights in place


@contextlib.contextmanager
def _a_trace_a_row() -> Iterator[None]:
    """Keep transformers from searching the positions of a pass for traces behind one another, which waits
    for the device at every pass: no row has more than one."""
    from transformers import masking_utils

    search = getattr(masking_utils, "find_packed_sequence_indices", None)
    if search is None:  # a release that searches elsewhere, or not
        yield
        return
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = search


def _context_length(config: Any) -> int:
    return int(getattr(config, "max_position_embeddings", None) or 1 << 30)


def _forget_packing(model: Any) -> None:
    """A dequantised GGUF model is an ordinary one; what remembers the packing would stop save_pretrained."""
    model.config.__dict__.pop("quantization_config", None)
    for name in ("hf_quantizer", "quantization_method", "is_quantized"):
        model.__dict__.pop(name, None)


def find_dtype(name: str) -> torch.dtype | None:
    dtype = getattr(torch, name, None)
    if name != "auto" and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise UserError(
            f"dtype {name!r} is not a floating-point type: use float32, bfloat16, float16 or auto"
        )
    return dtype
