"""Floating-point operations, counted from shapes: the measure in which methods of one budget are compared.

Counted are the matrix products, two operations (a multiplication and an addition) each time that a weight
meets a token or a query meets a key: forward 2, backward 4 for weights that train and 2 for those that do
not (their input's gradient alone). Of causal attention it is half the square, T(T+1)/2 pairs of a query and a
key it may see, whatever the kernel computes beside them, and twice as much backward, whatever the kernel
computes again; a window that a model lays over its attention is not taken off. Padding that a model reads
counts as any token. Embedding look-ups, norms, activations, softmax and the optimizer are not counted: some
1 % of a large model.

torch's own counter (`torch.utils.flop_counter`) gives the same numbers for all linear layers, and the whole
square for attention that it knows (eager, and the GPU's kernels; with a flash kernel's second forward pass
where one runs backward)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from distill.data.batch import by_length
from distill.data.tokenizers import tokenizer_size
from distill.data.trace import Trace
from distill.errors import UserError
from distill.models.head import Head
from distill.models.language_model import LanguageModel, ModelSource

_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


@dataclass(frozen=True)
class Work:
    """What a model is given to compute, whichever model it is.

    Attributes:
        tokens: that go through the body, padding included.
        pairs: of a query and a key that it may see, over all sequences.
        outputs: positions that go through the whole output matrix (where text is generated).
        predictions: positions that go through its rows of real tokens (where text is read).
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
    """Multiplications that a model does, each with an addition.

    Attributes:
        linear: for each token in its body: the weights of all linear layers but the output matrix, of a
            mixture's experts as many as are active.
        trained: those of them that train.
        attention: for each pair of a query and a key, over all layers and heads.
        head: for each output: the output matrix, all rows.
        cut_head: for each prediction: its rows of real tokens.
    """

    linear: float
    trained: float
    attention: float
    head: float
    cut_head: float

    def forward(self, work: Work) -> float:
        """FLOPs of reading."""
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


UNKNOWN = Cost(*[float("nan")] * 5)  # of a model that cannot be counted: its FLOPs are no number, and not 0


def cost_of(model: Any, name: str, vocab_size: int | None = None) -> Cost:
    """Count a model's multiplications by walking its modules; none needs to hold weights.

    Args:
        model: of transformers, whole or on the meta device, with or without LoRA's layers.
        name: the model's, for messages.
        vocab_size: tokens that its tokenizer has, where the output matrix may have more rows.

    Raises:
        UserError: it computes with something else than linear layers and attention.
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
            # A mixture's own kind of layer: [experts, in, out] weights, [experts, out] biases, a router.
            own = [(key, p) for key, p in own if p.ndim == 3 or "expert" not in place]
        share = active / experts if ".experts" in place else 1.0
        linear += share * sum(p.numel() for _, p in own)
        trained += share * sum(p.numel() for _, p in own if p.requires_grad)
    rows, width = output.weight.shape
    cut = min(vocab_size or rows, rows)
    return Cost(linear, trained, _attention(config, name), rows * width, cut * width)


def cost_of_source(source: ModelSource) -> Cost:
    """As `cost_of`, from the configuration and the tokenizer alone; `UNKNOWN` where that cannot be."""
    try:
        return cost_of(source.skeleton(), source.name, tokenizer_size(source.tokenizer))
    except UserError:
        return UNKNOWN


def head_flops(head: Head) -> float:
    """FLOPs of one product of hidden states with the output matrix."""
    return 2.0 * head.hidden.shape[0] * head.weight.numel()


def causal_pairs(tokens: int, past: int = 0) -> int:
    """How many keys the queries of `tokens` new positions see, behind `past` that are cached."""
    return tokens * past + tokens * (tokens + 1) // 2


def reading(traces: Sequence[Trace], shards: Iterable[Sequence[int]], token_budget: int = 8192) -> Work:
    """What it takes to read traces in batches of alike lengths, as scoring does.

    Args:
        traces: with the model's own token ids.
        shards: which traces are batched together.
        token_budget: tokens a batch, padding included.
    """
    work = Work()
    for shard in shards:
        lengths = [len(traces[number]) for number in shard]
        for places in by_length(lengths, token_budget):
            length = lengths[places[0]]  # sorted from the longest
            predictions = sum(len(traces[shard[place]].completion_ids) for place in places)
            work += Work(
                len(places) * length,
                len(places) * causal_pairs(length),
                predictions=predictions,
            )
    return work


def writing(prompts: Sequence[int], written: Sequence[int], distinct: int | None = None) -> Work:
    """What it takes to write a batch of completions, as `generation.decode.generate` does: prompts are
    padded to the longest, equal ones are read once, and a completion that has ended costs nothing more.

    Args:
        prompts: lengths.
        written: lengths of the completions.
        distinct: how many of the prompts differ from one another; None: all.
    """
    longest, read = max(prompts), len(prompts) if distinct is None else distinct
    work = Work(read * longest, read * causal_pairs(longest), outputs=read)
    for count in written:
        behind = count - 1  # the last token that is written is not read again
        work += Work(behind, causal_pairs(behind, longest), outputs=behind)
    return work


class Meter:
    """Counts what models compute from here on, whoever calls them: passes through the body, backward passes
    ahead where gradients are on, and outputs of generation. Products of the chunked head pass it by
    (`head_flops`).

    Args:
        models: a model that is named twice counts once; of one that cannot be counted, all is no number.
    """

    def __init__(self, models: Iterable[LanguageModel]) -> None:
        self._flops = 0.0
        for lm in {id(lm.model): lm for lm in models}.values():
            try:
                cost = cost_of(lm.model, lm.source.name, lm.vocab_size)
            except UserError:
                cost = UNKNOWN
            _Hooks(self, lm, cost)

    def add(self, flops: float) -> None:
        self._flops += flops

    def take(self) -> float:
        """FLOPs since last asked."""
        found, self._flops = self._flops, 0.0
        return found


class _Hooks:
    """Looks at the shapes of what one model is called with; nothing on the device is read."""

    def __init__(self, meter: Meter, lm: LanguageModel, cost: Cost) -> None:
        self.meter, self.cost = meter, cost
        lm.model.base_model.register_forward_pre_hook(self.body, with_kwargs=True)
        lm.model.get_output_embeddings().register_forward_pre_hook(self.head)

    def body(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        shape = (kwargs["inputs_embeds"] if ids is None else ids).shape
        cache = kwargs.get("past_key_values")
        past = 0 if cache is None else int(cache.get_seq_length())
        rows, length = shape[0], shape[1]
        tokens, pairs = rows * length, rows * causal_pairs(length, past)
        if (segments := kwargs.get("segments")) is not None:  # packed: attention inside each trace
            pairs = sum(map(causal_pairs, segments.lengths))
        if torch.is_grad_enabled():
            self.meter.add(self.cost.training(tokens, pairs))
        else:
            self.meter.add(self.cost.forward(Work(tokens, pairs)))

    def head(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        states = args[0]
        self.meter.add(self.cost.forward(Work(outputs=states.numel() // states.shape[-1])))


def _active_experts(config: Any) -> tuple[int, int]:
    """How many experts a token meets, of how many; (1, 1) where there are none."""
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
