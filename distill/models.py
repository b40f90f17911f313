"""Where models come from: hub id, local folder, GGUF file, or a file inside an installed package."""

import contextlib
import copy
import functools
import hashlib
import importlib.util
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from distill.errors import UserError, first_line
from distill.head import Head
from distill.layout import Layout, Pass

PACKAGE_PREFIX = "package:"
PACKED_ATTENTION = "packed"  # the name under which transformers knows the attention of distill.packing
_HUB_ID = re.compile(r"[\w][\w.-]*(/[\w.-]+)?")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_SAMPLED_BLOCK, _SAMPLED_BLOCKS = 1 << 20, 64


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
        return _end_ids(self.tokenizer, configuration)

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
        dtype = self.dtype if self.dtype == "auto" else _dtype(self.dtype)
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
        return _end_ids(self.tokenizer, self.model.generation_config)

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
            raise RuntimeError("a model must be made ready for packed rows by distill.packing.allow_packing")
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


def checkpoint_activations(lm: LanguageModel) -> None:
    """Keep a layer's input alone for the backward pass while the model trains, and compute the rest of the
    layer anew there.

    Raises:
        UserError: the model cannot.
    """
    try:
        lm.model.activation_checkpointing_enable({"use_reentrant": False})
    except ValueError as error:
        raise UserError(
            f"model.checkpoint_activations=true cannot be had with {lm.source.name}: {first_line(error)}"
        ) from error


def find_model(
    spec: str | Sequence[str],
    *,
    key: str,
    dtype: str = "float32",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> ModelSource:
    """Find a model by what the user wrote, without loading its weights.

    Args:
        spec: a hub id, a local folder in Hugging Face format, a GGUF file, `package:NAME/PATH` for a file or
            folder that an installed package ships, or a list of these, tried in order.
        key: the config key it stands under, for messages.

    Raises:
        UserError: nothing is there; the message says what was tried.
    """
    if isinstance(spec, str):
        return _find_one(spec, key, dtype, revision, trust_remote_code)
    if not isinstance(spec, Sequence):
        raise UserError(f"{key}={spec!r} is no model: give a hub id, a folder or a GGUF file")
    failures = []
    for one in spec:
        try:
            return _find_one(one, key, dtype, revision, trust_remote_code)
        except UserError as error:
            failures.append(str(error))
    raise UserError("; ".join(failures) or f"{key} is empty: give a hub id, a folder or a GGUF file")


def _find_one(spec: str, key: str, dtype: str, revision: str | None, trust_remote_code: bool) -> ModelSource:
    _dtype(dtype)
    if not isinstance(spec, str) or not spec.strip():
        raise UserError(f"{key}={spec!r} is no model: give a hub id, a folder or a GGUF file")
    if len(spec) > 1000:
        raise UserError(f"{key}={spec[:60]}... is no model: it has {len(spec)} characters")
    path = _in_package(spec, key) if spec.startswith(PACKAGE_PREFIX) else Path(spec).expanduser()
    source = functools.partial(ModelSource, name=spec, dtype=dtype, trust_remote_code=trust_remote_code)
    if path.is_dir():
        if (path / "config.json").is_file():
            return source(location=str(path), fingerprint=_hash_files(path))
        if (path / "adapter_config.json").is_file():
            raise UserError(
                f"{key}={spec} holds a LoRA adapter alone: give the student/ beside it, or merge it first"
            )
        ggufs = sorted(path.glob("*.gguf"))
        if len(ggufs) != 1:
            raise UserError(f"{key}={spec}: the folder holds no config.json (and not exactly one GGUF file)")
        path = ggufs[0]
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"{key}={spec}: there is no such GGUF file")
        return source(location=str(path.parent), gguf=path.name, fingerprint=_hash_files(path))
    if path.is_file():
        raise UserError(f"{key}={spec} is a file, but no GGUF file: give the model's folder")
    if not _HUB_ID.fullmatch(spec):
        raise UserError(f"{key}={spec}: there is no such folder, and it is no hub id (owner/name)")
    commit = _hub_commit(spec, key, revision)
    return source(location=spec, revision=commit, fingerprint=commit)


def _in_package(spec: str, key: str) -> Path:
    package, _, inside = spec.removeprefix(PACKAGE_PREFIX).partition("/")
    if not package.isidentifier() or not inside:
        raise UserError(f"{key}={spec}: write package:NAME/PATH, with the package's import name")
    # find_spec on a top-level name imports nothing.
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise UserError(
            f"{key}={spec}: the package is not installed (pip install {package.replace('_', '-')})"
        )
    path = Path(next(iter(found.submodule_search_locations))) / inside
    if not path.exists():
        raise UserError(f"{key}={spec}: the installed package {package} has no {inside}")
    return path


def _hub_commit(spec: str, key: str, revision: str | None) -> str:
    """The commit that the hub has for this id or, without a network, the one in the local hub cache."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    reason = "the hub has no such model, or it is private or gated"
    try:
        # Asked directly, because from_pretrained retries for half a minute before it says that there is no
        # network.
        return str(HfApi().model_info(spec, revision=revision, timeout=10).sha)
    except RevisionNotFoundError:
        reason = f"the hub's model has no revision {revision!r}"
    except RepositoryNotFoundError:
        pass
    except Exception as error:  # whichever HTTP library the hub client uses, its errors share no base class
        cached = try_to_load_from_cache(spec, "config.json", revision=revision)
        if isinstance(cached, str):
            return Path(cached).parent.name
        reason = f"the hub is not reachable and the model is not in its local cache: {first_line(error)}"
    raise UserError(
        f"{key}={spec} is neither a local folder nor to be had from the hub ({reason}); "
        f"give a local folder or GGUF file: {key}=/path/to/model"
    )


def _hash_files(path: Path) -> str:
    """Hash of the weights and config; of files above 64 MiB, of blocks spread evenly over them and the
    size."""
    digest = hashlib.sha256()
    names = (
        [path]
        if path.is_file()
        else sorted(p for p in path.iterdir() if p.suffix in {".safetensors", ".bin", ".json"})
    )
    for file in names:
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}:".encode())
        with file.open("rb") as stream:
            if size <= _SAMPLED_BLOCK * _SAMPLED_BLOCKS:
                digest.update(stream.read())
                continue
            for block in range(_SAMPLED_BLOCKS):
                stream.seek(block * (size - _SAMPLED_BLOCK) // (_SAMPLED_BLOCKS - 1))
                digest.update(stream.read(_SAMPLED_BLOCK))
    return digest.hexdigest()[:32]


def tokenizer_size(tokenizer: Any) -> int:
    """Number of ids that stand for a token (the output matrix may have more rows)."""
    return max(tokenizer.get_vocab().values()) + 1


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Hash of the vocabulary: equal where, and only where, ids mean the same tokens."""
    digest = hashlib.sha256()
    for token, index in sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0])):
        digest.update(f"{index}\t{token}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:32]


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


def _end_ids(tokenizer: Any, configuration: Any) -> list[int]:
    configured = getattr(configuration, "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [] if configured is None else [configured]
    ends = list(dict.fromkeys([tokenizer.eos_token_id, *listed]))
    closing = _closing_token(tokenizer)
    return sorted(ends, key=lambda token: token != closing)


def _closing_token(tokenizer: Any) -> int | None:
    """The token that the chat template puts behind an answer, if it has a template that takes one."""
    if not tokenizer.chat_template:
        return None
    marker = "ANSWER"
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": marker}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception:  # templates raise what they please
        return None
    behind = tokenizer(text.rpartition(marker)[2], add_special_tokens=False).input_ids
    return behind[0] if behind else None


def _context_length(config: Any) -> int:
    return int(getattr(config, "max_position_embeddings", None) or 1 << 30)


def _forget_packing(model: Any) -> None:
    """A dequantised GGUF model is an ordinary one; what remembers the packing would stop save_pretrained."""
    model.config.__dict__.pop("quantization_config", None)
    for name in ("hf_quantizer", "quantization_method", "is_quantized"):
        model.__dict__.pop(name, None)


def _dtype(name: str) -> torch.dtype | None:
    dtype = getattr(torch, name, None)
    if name != "auto" and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise UserError(
            f"dtype {name!r} is not a floating-point type: use float32, bfloat16, float16 or auto"
        )
    return dtype
