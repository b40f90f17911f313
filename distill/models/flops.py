"""FLOPs of models, counted from shapes, to compare methods at an equal budget.

Only matrix products are counted, with two operations (multiplication and addition) per weight and token, or
per query-key pair and channel:

- Linear layers: 2 forward; backward 4 for trained weights, 2 for frozen ones (gradient of the input only).
- Causal attention: T(T+1)/2 query-key pairs, whatever the kernel computes; backward twice the forward,
  without recomputation in the kernel. Sliding windows are ignored.
- Padding counts like any token.
- Embeddings, norms, activations, softmax and the optimizer are not counted: about 1 % of a large model.

`torch.utils.flop_counter` gives the same numbers for linear layers. For attention it counts all T² pairs
(eager attention and GPU kernels), plus a second forward pass in the backward pass of flash kernels.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from distill.data.batch import by_length, laid_out
from distill.data.layout import BatchLayout, prompt_passes
from distill.data.trace import Trace
from distill.data.traces import scan
from distill.errors import UserError
from distill.models.head import Head
from distill.models.language_model import LanguageModel, ModelSource

_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


@dataclass(frozen=True)
class Work:
    """Amount of work for a model, independent of its size.

    Attributes:
        tokens: tokens that go through the body, padding included.
        pairs: query-key pairs under the causal mask, over all sequences.
        outputs: positions multiplied with the whole output matrix (generation).
        predictions: positions multiplied with the matrix's rows of real tokens (logprobs and losses).
    """

    tokens: int = 0
    pairs: int = 0
    outputs: int = 0
    predictions: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.tokens + other.tokens,
            self.pairs + other.pairs,
            self.outputs + other.outputs,
            self.predictions + other.predictions,
        )


@dataclass(frozen=True)
class Cost:
    """Multiply-adds of a model per unit of `Work`.

    Attributes:
        linear: per token: weights of all linear layers except the output matrix; of a mixture of experts,
            only the active ones.
        trained: per token: those of `linear` that train.
        attention: per query-key pair, over all layers and heads.
        head: per output: all rows of the output matrix.
        cut_head: per prediction: the output matrix's rows of real tokens.
    """

    linear: float
    trained: float
    attention: float
    head: float
    cut_head: float

    def forward(self, work: Work) -> float:
        """FLOPs of a forward pass."""
        return 2.0 * (
            self.linear * work.tokens
            + self.attention * work.pairs
            + self.head * work.outputs
            + self.cut_head * work.predictions
        )

    def training(self, tokens: int, pairs: int) -> float:
        """FLOPs of the body's forward and backward pass; the chunked head's are `head_flops`."""
        backward = 2.0 * (self.linear + self.trained) * tokens + 4.0 * self.attention * pairs
        return self.forward(Work(tokens, pairs)) + backward


UNKNOWN = Cost(*[float("nan")] * 5)  # for models that cannot be counted: NaN rather than 0


def cost_of(model: Any, name: str, vocab_size: int | None = None) -> Cost:
    """Count a model's multiply-adds from the shapes of its modules.

    Args:
        model: a transformers model, possibly on the meta device, with or without LoRA layers.
        name: the model's name, for messages.
        vocab_size: the tokenizer's size, if the output matrix may have more rows.

    Raises:
        UserError: the model has layers other than linear layers and attention.
    """
    config = model.config.get_text_config()
    output = model.get_output_embeddings()
    active, experts = _active_experts(config)
    linear = trained = 0.0
    for place, module in model.named_modules():
        if module is output or isinstance(module, nn.Embedding):
            continue
        own = [(key, p) for key, p in module.named_parameters(recurse=False) if p.ndim >= 2]
        if own and not isinstance(module, nn.Linear) and type(module).__name__ != "Conv1D":
            if experts == 1 or not any(word in place for word in ("expert", "router", "gate")):
                raise UserError(
                    f"the FLOPs of {name!r} cannot be counted: {place or 'it'} computes with "
                    f"{own[0][0]}, which is no linear layer's"
                )
            # A mixture-of-experts layer: [experts, in, out] weights, [experts, out] biases, a router.
            own = [(key, p) for key, p in own if p.ndim == 3 or "expert" not in place]
        share = active / experts if ".experts" in place else 1.0
        linear += share * sum(p.numel() for _, p in own)
        trained += share * sum(p.numel() for _, p in own if p.requires_grad)
    rows, width = output.weight.shape
    cut = min(vocab_size or rows, rows)
    return Cost(linear, trained, _attention(config, name), rows * width, cut * width)


def cost_of_source(source: ModelSource) -> Cost:
    """Like `cost_of`, from configuration and tokenizer only; `UNKNOWN` if the model cannot be counted."""
    try:
        return cost_of(source.skeleton(), source.name, source.vocab_size)
    except UserError:
        return UNKNOWN


def head_flops(head: Head) -> float:
    """FLOPs of one product of hidden states with the output matrix."""
    return 2.0 * head.hidden.shape[0] * head.weight.numel()


def causal_pairs(tokens: int, past: int = 0) -> int:
    """Number of causal query-key pairs for `tokens` new positions after `past` cached ones."""
    return tokens * past + tokens * (tokens + 1) // 2


def reading(
    traces: Sequence[Trace],
    shards: Iterable[Sequence[int]],
    token_budget: int = 8192,
    *,
    share_prompts: bool = False,
) -> Work:
    """Work of reading traces in batches of similar lengths, as `distill.teacher.logprobs` does.

    Args:
        traces: with the model's own token ids.
        shards: indices of the traces in each shard; batches do not cross shards.
        token_budget: tokens per batch, padding included.
        share_prompts: whether batches are of the same prompts instead, each of which is read once.
    """
    if share_prompts:
        return sum((_sharing_prompts([traces[i] for i in shard], token_budget) for shard in shards), Work())
    work, scanned = Work(), scan(traces)
    for shard in shards:
        lengths, completions = scanned.lengths[shard].tolist(), scanned.completions[shard].tolist()
        for places in by_length(lengths, token_budget):
            length = lengths[places[0]]  # the longest comes first
            predictions = sum(completions[place] for place in places)
            work += Work(
                len(places) * length,
                len(places) * causal_pairs(length),
                predictions=predictions,
            )
    return work


def _sharing_prompts(traces: Sequence[Trace], token_budget: int) -> Work:
    layout = BatchLayout("shared_prompt", token_budget)
    read = laid_out(traces, layout).reads if traces else []
    return Work(
        sum(tokens for tokens, _ in read),
        sum(causal_pairs(tokens, past) for tokens, past in read),
        predictions=sum(len(trace.completion_ids) for trace in traces),
    )


def writing(
    prompts: Sequence[int],
    written: Sequence[int],
    distinct: Sequence[int] | None = None,
    device: str = "cuda",
    prefix: int = 0,
) -> Work:
    """Work of generating a batch of completions, as `generation.decode.generate` does.

    Prompts are padded to the longest of their pass, equal prompts and a common beginning are read once, and
    finished completions cost nothing. A model with other than full attention reads its prompts in one pass
    and whole on a CPU too, which is more.

    Args:
        prompts: lengths of the prompts.
        written: lengths of the completions.
        distinct: lengths of the distinct prompts; None: all differ.
        device: type of the device, as `cpu`.
        prefix: tokens with which all prompts begin and that are read once (`layout.common_prefix`).
    """
    longest, read = max(prompts), prompts if distinct is None else distinct
    work = Work(prefix, causal_pairs(prefix), outputs=len(read) + (prefix > 0))
    for group in prompt_passes(read, device):
        most = max(read[place] for place in group) - prefix
        work += Work(len(group) * most, len(group) * causal_pairs(most, prefix))
    for count in written:
        behind = count - 1  # the last generated token is not read again
        work += Work(behind, causal_pairs(behind, longest), outputs=behind)
    return work


class Meter:
    """Counts the FLOPs of models with forward hooks.

    Counts passes through the body, including the later backward pass if gradients are enabled, and the output
    head during generation. Products of the chunked head must be added separately (`head_flops`).

    Args:
        models: duplicates count once; a model that cannot be counted makes the total NaN.
    """

    def __init__(self, models: Iterable[LanguageModel]) -> None:
        self._flops = 0.0
        for lm in {id(lm.model): lm for lm in models}.values():
            self.watch(lm)

    def watch(self, lm: LanguageModel) -> None:
        """Count the FLOPs of a further model."""
        try:
            cost = cost_of(lm.model, lm.source.name, lm.vocab_size)
        except UserError:
            cost = UNKNOWN
        _Hooks(self, lm, cost)

    def add(self, flops: float) -> None:
        self._flops += flops

    def take(self) -> float:
        """FLOPs since the last call."""
        found, self._flops = self._flops, 0.0
        return found


class _Hooks:
    """Forward hooks of one model, which read only the shapes of its inputs, so never wait for the device."""

    def __init__(self, meter: Meter, lm: LanguageModel, cost: Cost) -> None:
        from transformers.generation.utils import ALL_CACHE_NAMES

        self.meter, self.cost = meter, cost
        self.cache_names = ALL_CACHE_NAMES  # `past_key_values`; `cache` from transformers 5.24 on
        lm.model.base_model.register_forward_pre_hook(self.body, with_kwargs=True)
        lm.model.get_output_embeddings().register_forward_pre_hook(self.head)

    def body(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        shape = (kwargs["inputs_embeds"] if ids is None else ids).shape
        cache = next((kwargs[name] for name in self.cache_names if kwargs.get(name) is not None), None)
        past = 0 if cache is None else int(cache.get_seq_length())
        rows, length = shape[0], shape[1]
        tokens, pairs = rows * length, rows * causal_pairs(length, past)
        if (segments := kwargs.get("segments")) is not None:  # packed: attention inside each trace
            pairs = sum(map(causal_pairs, segments.lengths, segments.pasts))
        if torch.is_grad_enabled():
            self.meter.add(self.cost.training(tokens, pairs))
        else:
            self.meter.add(self.cost.forward(Work(tokens, pairs)))

    def head(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        states = args[0]
        self.meter.add(self.cost.forward(Work(outputs=states.numel() // states.shape[-1])))


def _active_experts(config: Any) -> tuple[int, int]:
    """Active experts per token, and number of experts; (1, 1) for a dense model."""
    experts = next((int(getattr(config, name)) for name in _EXPERTS if getattr(config, name, None)), 1)
    return (int(config.num_experts_per_tok), experts) if experts > 1 else (1, 1)


def _attention(config: Any, name: str) -> float:
    heads, layers = getattr(config, "num_attention_heads", None), getattr(config, "num_hidden_layers", None)
    others = set(getattr(config, "layer_types", None) or ()) - _ATTENTION
    if not isinstance(heads, int) or not isinstance(layers, int) or others:
        what = f"it has layers of {', '.join(sorted(others))}" if others else "it has no attention known here"
        raise UserError(f"the FLOPs of {name!r} cannot be counted: {what}")
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    keys = getattr(config, "qk_head_dim", None) or width
    values = getattr(config, "v_head_dim", None) or width
    return float(layers * heads * (keys + values))
