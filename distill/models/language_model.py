"""Language models: `ModelSource` (not loaded) and `LanguageModel` (loaded)."""

import contextlib
import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from distill.data.layout import Layout, Pass
from distill.data.tokenizers import (
    end_ids,
    set_template_variables,
    shared_rows,
    tokenizer_fingerprint,
    tokenizer_size,
)
from distill.errors import UserError, first_line
from distill.io.checksums import check, noted
from distill.models.gguf_model import configuration_in, kept_weights, tokenizer_in
from distill.models.head import Head
from distill.models.pre_tokenizers import as_its_file_says
from distill.models.rope import rope_switch

PACKED_ATTENTION = "packed"  # name of distill.models.packed_attention's attention in transformers
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


@dataclass(frozen=True)
class ModelSource:
    """A model that was found, but whose weights are not loaded.

    Attributes:
        name: the model as the user named it.
        location: hub id, or folder on disk.
        fingerprint: identifies the weights: the hub's commit, or a hash of the files.
        gguf: name of the GGUF file in the folder, if it is one.
        revision: the hub's commit, so that all files come from the same one.
        dtype: dtype of the weights in memory: float32, bfloat16, …, or auto (as stored).
        trust_remote_code: whether to run the repository's own Python code.
        rows: first rows of the output matrix that take part; None: those of all the tokenizer's tokens. The
            model then predicts and writes no other token, and reads them all.
        chat_template_kwargs: variables for its chat template, such as `enable_thinking`.
    """

    name: str
    location: str
    fingerprint: str
    gguf: str | None = None
    revision: str | None = None
    dtype: str = "float32"
    trust_remote_code: bool = False
    rows: int | None = None
    chat_template_kwargs: Mapping[str, Any] | None = field(default=None, hash=False)

    def cut(self, rows: int) -> "ModelSource":
        """The model with the first `rows` rows of its output matrix; itself if it has no more tokens."""
        if self.vocab_size <= rows:
            return self
        # What is computed with fewer rows is stored apart.
        found = replace(self, rows=rows, fingerprint=f"{self.fingerprint}-{rows}-rows")
        vars(found).update(
            {name: vars(self)[name] for name in ("tokenizer", "vocabulary") if name in vars(self)}
        )
        return found

    @property
    def vocab_size(self) -> int:
        """Tokens that the model predicts: its tokenizer's, or the first `rows` of them."""
        size = tokenizer_size(self.tokenizer)
        return size if self.rows is None else min(size, self.rows)

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer; it must have an end-of-sequence token."""
        from transformers import AutoTokenizer

        folder = Path(self.location)
        if (
            folder.is_dir()
            and not self.gguf
            and not any((folder / name).is_file() for name in _TOKENIZER_FILES)
        ):
            # AutoTokenizer would return an empty tokenizer of the model's class.
            raise UserError(f"the folder {self.name!r} has no tokenizer ({', '.join(_TOKENIZER_FILES)})")
        self._check_files(weights=False)
        try:
            if self.gguf:
                tokenizer = tokenizer_in(self.location, self.gguf, self.content, self._where)
            else:
                tokenizer = AutoTokenizer.from_pretrained(self.location, **self._where)
                tokenizer = as_its_file_says(tokenizer, self.location, self._where)
        except Exception as error:  # of any kind: see load
            raise UserError(f"{self.name!r} has no tokenizer that loads: {first_line(error)}") from error
        if tokenizer.eos_token_id is None:
            raise UserError(
                f"the tokenizer of {self.name!r} has no end-of-sequence token: set eos_token in it"
            )
        if self.chat_template_kwargs:
            set_template_variables(tokenizer, self.chat_template_kwargs)
        return tokenizer

    @functools.cached_property
    def vocabulary(self) -> str:
        """Fingerprint of the tokenizer (`tokenizer_fingerprint`)."""
        return tokenizer_fingerprint(self.tokenizer)

    @functools.cached_property
    def context_length(self) -> int:
        """Longest sequence that the model supports, from its configuration."""
        try:
            return _context_length(self._configuration)
        except Exception as error:  # of any kind: see load
            raise UserError(f"{self.name!r} has no configuration that loads: {first_line(error)}") from error

    @property
    def stored_dtype(self) -> str | None:
        """Dtype of the stored weights, such as `float32`; None: the configuration names none."""
        with contextlib.suppress(OSError, ValueError):
            dtype = getattr(self._configuration, "dtype", None)
            return None if dtype is None else str(dtype).removeprefix("torch.")
        return None

    @functools.cached_property
    def end_ids(self) -> list[int]:
        """All tokens that end a completion; first the one to end this model's traces with.

        The first is the token that the chat template puts after an answer, if it is an end token (Gemma ends
        a turn with another token than its end-of-sequence token), else the tokenizer's end-of-sequence token.
        """
        from transformers import GenerationConfig

        configuration: Any = None
        with contextlib.suppress(OSError, ValueError):  # fall back to the tokenizer's end token
            configuration = self._configuration
        with contextlib.suppress(OSError):
            revision = self.revision or "main"
            configuration = GenerationConfig.from_pretrained(self.location, revision=revision)
        return end_ids(self.tokenizer, configuration)

    @functools.cached_property
    def rope_switch(self) -> int | None:
        """Like `LanguageModel.rope_switch`, from the configuration."""
        return rope_switch(self._configuration)

    def skeleton(self) -> Any:
        """The model on the meta device, built from its configuration: module names and shapes, no weights."""
        from transformers import AutoModelForCausalLM

        try:
            configuration = copy.deepcopy(self._configuration)  # the model modifies it
            with torch.device("meta"):
                return AutoModelForCausalLM.from_config(
                    configuration, trust_remote_code=self.trust_remote_code
                )
        except Exception as error:  # of any kind: see load
            raise UserError(f"{self.name!r} has no configuration that loads: {first_line(error)}") from error

    def load(self, cache: Path | None = None) -> "LanguageModel":
        """Load weights (in eval mode, on the CPU) and tokenizer.

        Weights that are stored as safetensors in the dtype they are to have in memory are mapped: they take
        no memory of this process until they are changed, and models of the same files share them.

        Args:
            cache: folder of all caches, where the weights of a GGUF file are kept once they are dequantized;
                None: dequantize them now.
        """
        self._check_files(weights=True)
        try:
            if self.gguf and cache is not None:
                kept = kept_weights(cache, self.content, self.dtype, self._dequantized)
                model = self._model(str(kept))
                model.name_or_path = model.config.name_or_path = self.location
            else:
                model = self._dequantized() if self.gguf else self._model(self.location, **self._where)
        except UserError:
            raise
        except Exception as error:  # readers of damaged files raise all kinds of exceptions
            raise UserError(f"model {self.name!r} does not load: {first_line(error)}") from error
        if self.gguf:  # transformers reads no generation_config.json beside the file
            model.generation_config.eos_token_id = self.end_ids
        return LanguageModel(model.eval(), self.tokenizer, self)

    def _model(self, location: str, **options: Any) -> Any:
        from transformers import AutoModelForCausalLM

        dtype = self.dtype if self.dtype == "auto" else find_dtype(self.dtype)
        return AutoModelForCausalLM.from_pretrained(location, dtype=dtype, **options)

    def _dequantized(self) -> Any:
        """The model of a GGUF file: its quantized weights could be neither trained nor saved."""
        from transformers import GgufConfig

        model = self._model(
            self.location,
            **self._where,
            quantization_config=GgufConfig(dequantize=True),
            config=copy.deepcopy(self._configuration),  # reading the file's header again would take seconds
        )
        _forget_packing(model)
        return model

    def _check_files(self, *, weights: bool) -> None:
        """Compare the files of a model that distill saved with their checksums.

        Args:
            weights: compare the weights too, which takes about a second for 2 GB.

        Raises:
            UserError: a file is damaged; names it.
        """
        folder = Path(self.location)
        if folder.is_dir() and not self.gguf:
            files = [path for path in noted(folder) if weights or path.suffix != ".safetensors"]
            check(files, "take the folder from a copy, or train it again")

    @functools.cached_property
    def _configuration(self) -> Any:
        from transformers import AutoConfig

        if self.gguf:
            return configuration_in(self.location, self.gguf, self.content, self._where)
        return AutoConfig.from_pretrained(self.location, **self._where)

    @property
    def content(self) -> str:
        """Fingerprint of the files: a model that is cut to fewer rows has those of the whole one."""
        return self.fingerprint.partition("-")[0]

    @property
    def _where(self) -> dict[str, Any]:
        options: dict[str, Any] = {"trust_remote_code": self.trust_remote_code}
        if self.gguf:
            options["gguf_file"] = self.gguf
        if self.revision:
            options["revision"] = self.revision
        return options


class LanguageModel:
    """A loaded causal language model with its tokenizer.

    All hidden states for losses and logprobs come from `completion_head`.
    """

    compiled = False  # whether its layers are, by `distill.models.compiling.compile_layers`

    def __init__(self, model: Any, tokenizer: Any, source: ModelSource) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.source = source
        self.packs_up_to = 0  # tokens of the longest trace in packed rows that was tried
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Linear) or head.bias is not None:
            raise UserError(
                f"{source.name!r} has an output head of another kind than a matrix: it is not supported"
            )
        # Output matrices are padded to round sizes that differ within a model family (Qwen2.5 1.5B and 7B).
        # Only the rows of real tokens are used, in training, logprobs and sampling.
        self.vocab_size = min(tokenizer_size(tokenizer), head.weight.shape[0], source.rows or 1 << 40)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def output_matrix(self) -> Float[Tensor, "vocab hidden"]:
        """Rows of the output embeddings that are tokens."""
        weight = self.model.get_output_embeddings().weight
        # The gradient of a slice is written into a zeroed matrix first, even where the slice is the whole.
        return weight if len(weight) == self.vocab_size else weight[: self.vocab_size]

    @property
    def context_length(self) -> int:
        return _context_length(self.model.config)

    @functools.cached_property
    def rope_switch(self) -> int | None:
        """Tokens of the longest row that is read with short position factors; None: there is but one kind."""
        return rope_switch(self.model.config)

    @property
    def end_ids(self) -> list[int]:
        """Like `ModelSource.end_ids`, from the loaded model's generation configuration."""
        return end_ids(self.tokenizer, self.model.generation_config)

    def completion_head(
        self,
        input_ids: Int[Tensor, "batch length"],
        mask: Bool[Tensor, "batch seq"],
        layout: Layout | None = None,
    ) -> Head:
        """Hidden states at the positions that predict completion tokens, and the output matrix.

        This is the only place where predictions are aligned with tokens: position t predicts token t+1, so
        `mask` has one column fewer than `input_ids`, and column t of the mask belongs to token t+1.

        No attention mask is needed, because input is right-padded and attention is causal.

        Args:
            input_ids: right-padded token ids.
            mask: true on completion tokens.
            layout: how the batch goes through the body (grouped or packed), with the positions of the mask's
                true entries; None: one padded pass. The result is the same.
        """
        weight = self.output_matrix
        width, longer = input_ids.shape[1], None
        if self.rope_switch is not None and width > self.rope_switch:
            # Column t is about token t + 1, and a row ends with its completion.
            longer = mask[:, self.rope_switch - 1 :].any(1)
        if layout is None:
            states = self._rows(input_ids) if longer is None else self._rows_by_length(input_ids, longer)
            return Head(hidden=states[:, :-1][mask], weight=weight)
        flat = input_ids.flatten()
        with cached_casts(input_ids.device.type) if len(layout.passes) > 1 else contextlib.nullcontext():
            parts = [
                self._states(flat[one.tokens], one, width, longer).flatten(0, 1) for one in layout.passes
            ]
        states = parts[0] if len(parts) == 1 else torch.cat(parts)
        return Head(hidden=states.index_select(0, layout.predicting), weight=weight)

    def _rows(self, ids: Int[Tensor, "rows length"]) -> Float[Tensor, "rows length hidden"]:
        with _a_trace_a_row():
            return self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state

    def _rows_by_length(
        self, ids: Int[Tensor, "rows length"], longer: Bool[Tensor, " rows"]
    ) -> Float[Tensor, "rows length hidden"]:
        """As `_rows`, with the rows that are longer than `rope_switch` in a pass of their own."""
        assert self.rope_switch is not None
        length = ids.shape[1]
        parts, places = [], []
        with cached_casts(ids.device.type):
            for chosen, end in ((~longer, min(length, self.rope_switch)), (longer, length)):
                if len(rows := chosen.nonzero().squeeze(1)):
                    states = self._rows(ids[rows, :end])
                    parts.append(nn.functional.pad(states, (0, 0, 0, length - end)))
                    places.append(rows)
        return torch.cat(parts)[torch.cat(places).argsort()]

    def _states(
        self, ids: Int[Tensor, "rows length"], one: Pass, width: int, longer: Bool[Tensor, " batch"] | None
    ) -> Float[Tensor, "rows length hidden"]:
        """The states of one pass of a batch of some `width`; `longer`: its rows behind the `rope_switch`."""
        if one.segments is None:
            if longer is None:
                return self._rows(ids)
            return self._rows_by_length(ids, longer[one.tokens[:, 0] // width])
        if self.model.config._attn_implementation != PACKED_ATTENTION:
            raise RuntimeError(
                "a model must be made ready for packed rows by distill.models.packed_attention.allow_packing"
            )
        # With a 4D mask, transformers does not build a mask of all tokens by all tokens.
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
        """Check that the model's logits are hidden states times output matrix.

        Models with soft-capping or scaling of logits are rejected, because the chunked head would silently
        train a different function.
        """
        capped = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
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
    """Enable gradient checkpointing: save each layer's input only, recompute the rest in the backward pass.

    Raises:
        UserError: the model does not support it.
    """
    try:
        lm.model.activation_checkpointing_enable({"use_reentrant": False})
    except ValueError as error:
        raise UserError(
            f"model.gradient_checkpointing=true does not work with {lm.source.name}: {first_line(error)}"
        ) from error


def on_shared_rows(
    student: ModelSource, others: Sequence[ModelSource]
) -> tuple[ModelSource, list[ModelSource]]:
    """The models with the rows of the tokens that all of them have; unchanged if the tokens mean others."""
    rows = [
        shared_rows(student.tokenizer, other.tokenizer)
        for other in others
        if other.vocabulary != student.vocabulary
    ]
    found = [count for count in rows if count is not None]
    if not rows or len(found) < len(rows):
        return student, list(others)
    return student.cut(min(found)), [other.cut(min(found)) for other in others]


def vocabulary_mismatch(student: ModelSource, teacher: ModelSource) -> str | None:
    """Why student and teacher cannot be compared token by token; None if they can.

    Of two that differ only by further tokens, both must have been reduced to `on_shared_rows` before.
    """
    ours, theirs = student.tokenizer, teacher.tokenizer
    alike = student.vocabulary == teacher.vocabulary or shared_rows(ours, theirs) is not None
    if not alike or student.vocab_size != teacher.vocab_size:
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
    """Cast each weight once for all passes inside the block, if autocast is enabled.

    During training, autocast's cache is off. Every pass and every generated token would then cast all weights
    again, and the backward pass would hold one half-precision copy of the weights per pass.
    """
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
    """Disable transformers' detection of packed sequences, which synchronizes with the device at every pass.

    Here every row has a single trace.
    """
    from transformers import masking_utils

    search = getattr(masking_utils, "find_packed_sequence_indices", None)
    if search is None:  # another release of transformers
        yield
        return
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = search


def _context_length(config: Any) -> int:
    text = config.get_text_config()  # of a model that also sees pictures
    return int(getattr(text, "max_position_embeddings", None) or 1 << 30)


def _forget_packing(model: Any) -> None:
    """Remove the quantization attributes of a dequantized GGUF model, which would break save_pretrained."""
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
