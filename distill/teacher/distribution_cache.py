"""Cache of the teacher's distributions, and loading of its output matrix without the other weights."""

import contextlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from distill.data.batch import hash_traces
from distill.data.trace import Trace
from distill.data.traces import scan
from distill.errors import UserError
from distill.io.cache import ShardCache, StoredRows
from distill.losses.logits import label_logprobs
from distill.models.flops import reading
from distill.models.head import Head
from distill.models.language_model import LanguageModel, ModelSource
from distill.models.lazy import LazyModel
from distill.teacher.distribution import TeacherDistribution
from distill.teacher.logprobs import in_batches, model_key, served_key

_TOKENS_PER_SHARD = 1 << 15  # hidden states of a 7B model: 224 MiB
_VERIFIED_TRACES, _VERIFIED_TOKENS = 8, 64
_CHECKED_TOKENS = 8  # per trace; few, as each start of a run multiplies them with the whole matrix


def cache_distributions(
    model: LazyModel,
    traces: Sequence[Trace],
    wanted: TeacherDistribution,
    *,
    cache: Path,
    token_budget: int = 8192,
    label: str = "teacher reads traces",
) -> Sequence[StoredRows]:
    """Compute the teacher's distribution at each trace's completion tokens and store it on disk.

    Args:
        model: the teacher; loaded only if something is missing or to be verified.
        traces: with the teacher's own token ids.
        wanted: what to store of the distribution.
        cache: folder of all caches.
        token_budget: tokens per batch, padding included.
        label: label of the progress bar.

    Returns:
        For each trace, its rows in the cache, which are read on demand.

    Raises:
        UserError: the disk is too small, or cached values differ from what the teacher gives.
    """
    key = {
        **model_key(model.source),
        **served_key(model),
        "traces": hash_traces(traces),
        **wanted.settings,
    }
    scanned = scan(traces)
    shards = _shards(scanned.completions)
    store = ShardCache(cache, f"teacher_{wanted.source}", key, len(shards))
    found = np.ones(len(traces), dtype=bool)

    def keep(part: range, progress: Callable[[int], object]) -> list[dict[str, Tensor]]:
        if model.served is not None:
            parts = model.served.likeliest([traces[number] for number in part], wanted.top_k, progress)
        else:
            parts = _kept(
                model.get(), traces, part, wanted, token_budget, progress, share_prompts=model.share_prompts
            )
        _check_disk_space(store, parts, len(store.missing()))
        found[part.start : part.stop] = False
        return parts

    rows = store.fill(shards, scanned.lengths, keep, label=label)
    if not np.array_equal(rows.lengths, scanned.completions):
        raise UserError(f"cache {store.folder} does not fit its traces: delete it and run again")
    model.work += reading(traces, shards, token_budget, share_prompts=model.share_prompts)
    if found.any() and model.served is None and (wanted.verify or model.loaded):
        _verify(model, traces, wanted, rows, np.flatnonzero(found).tolist(), store.folder)
    return rows


def output_matrix(model: LazyModel) -> Tensor:
    """Output matrix [vocab, hidden], cut to the tokenizer's real size, without gradient.

    Only this matrix is read from the model's files if possible. Otherwise the whole model is loaded, and
    released again unless it was loaded before.
    """
    found = None if model.loaded else _matrix_by_name(model.source)
    if found is None:
        was_loaded = model.loaded
        lm = model.get()
        found = lm.output_matrix.detach()
        if not was_loaded:
            model.release()
    return found.to(model.device)


@torch.no_grad()
def check_matrix(matrix: Tensor, rows: Sequence[StoredRows], traces: Sequence[Trace], name: str) -> None:
    """Check that matrix and cached hidden states give the teacher's logprobs.

    Args:
        matrix: from `output_matrix`.
        rows: from `cache_distributions`.
        traces: with the teacher's own token ids.
        name: the teacher's name, for the message.

    Raises:
        UserError: the probabilities of a few tokens differ from the cached ones.
    """
    errors, dtypes = [], {matrix.dtype}
    for number in _choose_few(range(len(rows))):
        kept = rows[number].read()
        labels = torch.from_numpy(traces[number].completion_ids.astype(np.int64))[:_CHECKED_TOKENS]
        states = kept["hidden_states"][:_CHECKED_TOKENS]
        values = label_logprobs(Head(states.to(matrix), matrix), labels.to(matrix.device))
        errors.append((values.float().cpu().exp() - kept["label_logprobs"][:_CHECKED_TOKENS].exp()).abs())
        dtypes.add(states.dtype)
    error = float(torch.cat(errors).mean())
    if not error <= _tolerance(*dtypes):
        raise UserError(
            f"the output matrix of {name} does not fit the hidden states in {rows[0].path.parent} "
            f"(probabilities are off by {error:.2g}): delete that folder and run again, or take "
            f"loss.distribution.source=live"
        )


def _shards(lengths: Sequence[int] | np.ndarray) -> list[range]:
    """Group traces into shards by number of tokens, since a whole shard is in memory while it is computed."""
    starts, tokens = [0], 0
    for number, length in enumerate(map(int, lengths)):
        if tokens and tokens + length > _TOKENS_PER_SHARD:
            starts.append(number)
            tokens = 0
        tokens += length
    return [range(a, b) for a, b in zip(starts, [*starts[1:], len(lengths)], strict=True)]


def _kept(
    lm: LanguageModel,
    traces: Sequence[Trace],
    numbers: Sequence[int],
    wanted: TeacherDistribution,
    token_budget: int = 8192,
    progress: Callable[[int], object] = lambda tokens: None,
    *,
    share_prompts: bool = False,
) -> list[dict[str, Tensor]]:
    """Compute what the cache stores for these traces, in order."""

    def keep(head: Head, labels: Tensor, rows: Sequence[int]) -> Mapping[str, Tensor]:
        drawn = [wanted.uniforms(row, len(traces[row].completion_ids)) for row in rows]
        uniforms = [one for one in drawn if one is not None]
        return wanted.keep(head, labels, torch.cat(uniforms) if uniforms else None)

    return in_batches(lm, traces, numbers, keep, token_budget, progress, share_prompts=share_prompts)


def _check_disk_space(store: ShardCache, parts: Sequence[Mapping[str, Tensor]], shards: int) -> None:
    size = sum(values.nbytes for part in parts for values in part.values())
    free = shutil.disk_usage(store.folder).free
    if size * shards > free:
        raise UserError(
            f"cache {store.folder} needs some {size * shards / 2**30:,.1f} GiB more, and its disk has "
            f"{free / 2**30:,.1f} GiB left: take loss.distribution.source=top_k, which needs less, or "
            f"another place with cache=<folder>"
        )


def _choose_few(numbers: Sequence[int]) -> list[int]:
    """A few of the numbers, chosen at random with a fixed seed."""
    count = min(_VERIFIED_TRACES, len(numbers))
    return [numbers[i] for i in np.random.default_rng(0).choice(len(numbers), count, replace=False)]


def _verify(
    model: LazyModel,
    traces: Sequence[Trace],
    wanted: TeacherDistribution,
    rows: Sequence[StoredRows],
    found: Sequence[int],
    folder: Path,
) -> None:
    """Recompute a few traces that were already in the cache, and compare."""
    numbers = _choose_few(found)
    for number, now in zip(numbers, _kept(model.get(), traces, numbers, wanted), strict=True):
        before = rows[number].read()
        values = next(value for value in now.values() if value.is_floating_point())
        error, allowed = _distance(before, now), _tolerance(values.dtype, model.get().model.dtype)
        if not error <= allowed:
            raise UserError(
                f"cache {folder} is not what {model.source.name} gives now for trace "
                f"{traces[number].example.place} (off by {error:.2%}, at most {allowed:.2%} is rounding): "
                f"delete that folder and run again"
            )


def _distance(before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> float:
    """Relative distance between hidden states, or total variation distance between sparse distributions."""
    a, b = ({name: v[:_VERIFIED_TOKENS] for name, v in kept.items()} for kept in (before, now))
    if "hidden_states" in a:
        one, other = a["hidden_states"].float(), b["hidden_states"].float()
        return float((one - other).norm() / other.norm())
    same = (a["ids"].unsqueeze(-1) == b["ids"].unsqueeze(-2)).float()
    p, q = a["logprobs"].exp(), b["logprobs"].exp()
    # An entry of weight 0 may repeat a sampled token's id: leave it out of the matching.
    same *= (p > 0).unsqueeze(-1) * (q > 0).unsqueeze(-2)
    distance = (p - (same @ q.unsqueeze(-1)).squeeze(-1)).abs().sum(-1) + ((same.sum(-2) == 0) * q).sum(-1)
    if "log_rest" in a:
        distance = distance + (a["log_rest"].exp() - b["log_rest"].exp()).abs()
    return float(0.5 * distance.mean())


def _tolerance(*dtypes: torch.dtype) -> float:
    """Largest difference that rounding and other batch shapes may explain."""
    return 1e-3 if all(dtype in (torch.float32, torch.float64) for dtype in dtypes) else 5e-2


def _matrix_by_name(source: ModelSource) -> Tensor | None:
    """Read the matrix from the safetensors file that holds it; None if that is not possible."""
    if source.gguf:
        return None
    # On any error, fall back to loading the whole model, which works or gives a better message.
    with contextlib.suppress(Exception):
        empty = source.skeleton()
        config = empty.config
        if getattr(config, "quantization_config", None) is not None:
            return None
        matrix = empty.get_output_embeddings().weight
        names = {name for name, p in empty.named_parameters(remove_duplicate=False) if p is matrix}
        for name in sorted(names):
            path = _file_of(name, source)
            if path is None:
                continue
            with safe_open(path, "pt") as file:
                stored = file.get_slice(name)[: source.vocab_size]
            if tuple(stored.shape) != (min(matrix.shape[0], source.vocab_size), matrix.shape[1]):
                return None
            own = getattr(config, "dtype", None) or stored.dtype
            return stored.to(own if source.dtype == "auto" else getattr(torch, source.dtype), copy=True)
    return None


def _file_of(name: str, source: ModelSource) -> Path | None:
    """The safetensors file with a tensor of this name, downloaded from the hub if necessary."""
    from transformers.utils import cached_file

    def fetched(filename: str) -> Path | None:
        found = cached_file(
            source.location,
            filename,
            revision=source.revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_connection_errors=False,
        )
        return None if found is None else Path(found)

    index = fetched("model.safetensors.index.json")
    if index is not None:
        filename = json.loads(index.read_text())["weight_map"].get(name)
        return None if filename is None else fetched(filename)
    whole = fetched("model.safetensors")
    if whole is None:
        return None
    with safe_open(whole, "pt") as file:
        return whole if name in file.keys() else None  # noqa: SIM118  safe_open is not a dict
