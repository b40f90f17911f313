"""The output head in chunks of tokens: no [tokens, vocab] tensor outlives a chunk, whatever the loss and the
weights.

The weighted loss and its gradient are made in one pass: a chunk's logits exist once, for both. So the weights
must be known before that pass; `label_logprobs` is the cheap pass before it for weights that depend on the
student's log-probabilities, of the token alone or of the whole sequence. No loss knows about chunks, and no
weight either."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from distill.losses.coarse import SomeTokens
from distill.losses.signals import signals

TokenLoss = Callable[..., Tensor]
_ENTROPY_TOKENS = 20


@dataclass(frozen=True)
class Head:
    """A linear output head without bias, and the hidden states that go into it.

    Attributes:
        hidden: [tokens, hidden] final hidden states at the positions that predict the labels.
        weight: [vocab, hidden] output matrix, cut to the tokenizer's real size.
    """

    hidden: Float[Tensor, "tokens hidden"]
    weight: Float[Tensor, "vocab hidden"]


@dataclass(frozen=True)
class WeightedTokenLoss:
    """One token loss and how much each token counts in it.

    Attributes:
        token_loss: a function of `distill.losses.divergence`.
        weights: [tokens] w_t, any sign; never gets a gradient.
    """

    token_loss: TokenLoss
    weights: Float[Tensor, " tokens"]


@dataclass(frozen=True)
class TokenLosses:
    """What a pass over the head gives.

    Attributes:
        total: Σ w·ℓ over tokens and terms, with gradient to the student's hidden states and output matrix.
        losses: [terms, tokens] ℓ_t, without gradient.
        logprobs: [tokens] the student's log-probabilities of the labels at temperature 1, without gradient.
    """

    total: Float[Tensor, ""]
    losses: Float[Tensor, "terms tokens"]
    logprobs: Float[Tensor, " tokens"]


def weighted_token_losses(
    student: Head,
    labels: Int[Tensor, " tokens"],
    terms: Sequence[WeightedTokenLoss],
    *,
    others: Mapping[str, Head | SomeTokens] | None = None,
    token_signals: Mapping[str, Float[Tensor, " tokens"]] | None = None,
    constants: Mapping[str, Tensor] | None = None,
    temperature: float = 1.0,
    chunk_size: int | None = None,
) -> TokenLosses:
    """Σ w·ℓ and what it is made of, in chunks; all terms share a chunk's logits and one gradient.

    Args:
        student: hidden states and output matrix; both get gradients where they ask for them.
        labels: the tokens to predict.
        terms: what is measured, and how much it counts.
        others: heads of frozen models at the same positions, by the name of the signal that they give
            (`log_p`: the teacher's, `log_r`: the reference's); they never get a gradient. Their vocabulary
            may be another. Where only some of a model's tokens are known, a loss that asks for that model
            is given both distributions in those buckets.
        token_signals: [tokens] whatever else a loss asks for, by name.
        constants: what a loss asks for that is the same for all tokens, by name (`shared_ids`).
        temperature: divides every model's logits before the loss; the log-probabilities are at temperature 1.
        chunk_size: tokens whose logits exist at once; by the vocabulary and the device where None
            (`fitting_chunk`).

    Returns:
        Losses and log-probabilities in fp32 (fp64 for fp64 input), whatever the hidden states' type.

    Raises:
        ValueError: a loss asks for a signal that is not given.
    """
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} must be at least 1")
    needed = [signals(term.token_loss) for term in terms]
    wanted = set().union(*needed)
    heads = {name: head for name, head in (others or {}).items() if name in wanted}
    known = {name: values.detach() for name, values in (token_signals or {}).items() if name in wanted}
    fixed = {name: value for name, value in (constants or {}).items() if name in wanted}
    if missing := wanted - heads.keys() - known.keys() - fixed.keys() - {"log_q", "labels"}:
        raise ValueError(f"the token loss asks for signals that are not given: {', '.join(sorted(missing))}")
    if temperature != 1.0 and any(isinstance(other, SomeTokens) for other in heads.values()):
        raise ValueError(
            f"temperature={temperature} must be 1 where only some tokens of a distribution are known: what "
            f"the others would have at another temperature does not follow"
        )
    chunks = _Chunks(
        losses=[(term.token_loss, names) for term, names in zip(terms, needed, strict=True)],
        weights=torch.stack([term.weights.detach() for term in terms]),
        labels=labels,
        others={name: factors(o) if isinstance(o, Head) else o for name, o in heads.items()},
        token_signals=known,
        constants=fixed,
        temperature=temperature,
        size=chunk_size or fitting_chunk(student),
        dtype=_compute_dtype(student.hidden),
    )
    total, losses, logprobs = _HeadPass.apply(  # pyright: ignore[reportGeneralTypeIssues]
        student.hidden, student.weight, chunks
    )
    return TokenLosses(total, losses, logprobs)


@torch.no_grad()
def label_logprobs(
    head: Head, labels: Int[Tensor, " tokens"], *, chunk_size: int | None = None
) -> Float[Tensor, " tokens"]:
    """Log-probabilities of the labels at temperature 1, without gradient, in chunks."""
    return student_signals(head, labels, {"student_logprobs"}, chunk_size=chunk_size)["student_logprobs"]


@torch.no_grad()
def student_signals(
    head: Head, labels: Int[Tensor, " tokens"], wanted: set[str], *, chunk_size: int | None = None
) -> dict[str, Float[Tensor, " tokens"]]:
    """What weights may ask of the model in training, at temperature 1, without gradient, in chunks.

    Args:
        head: hidden states and output matrix.
        labels: the written tokens.
        wanted: `student_logprobs`: their log-probabilities; `student_entropy`: the entropy of the likeliest
            20 tokens among themselves (of all, in a smaller vocabulary), in nats.
        chunk_size: tokens whose logits exist at once.
    """
    dtype = _compute_dtype(head.hidden)
    found = {
        name: torch.empty(len(labels), dtype=_wide(dtype), device=head.hidden.device)
        for name in ("student_logprobs", "student_entropy")
        if name in wanted
    }
    ready = factors(head)
    with torch.autocast(head.hidden.device.type, enabled=False):
        for s in _slices(len(labels), chunk_size or fitting_chunk(head)):
            logprobs = _log_softmax(product(ready.hidden[s], ready.weight.T), 1.0)
            if "student_logprobs" in found:
                found["student_logprobs"][s] = _gather(logprobs, labels[s])
            if "student_entropy" in found:
                likeliest = logprobs.topk(min(_ENTROPY_TOKENS, logprobs.shape[-1]), -1).values
                likeliest = torch.log_softmax(likeliest, -1)
                found["student_entropy"][s] = -(likeliest.exp() * likeliest).sum(-1)
    return found


@torch.no_grad()
def label_ranks(
    head: Head, labels: Int[Tensor, " tokens"], *, chunk_size: int | None = None
) -> tuple[Float[Tensor, " tokens"], Int[Tensor, " tokens"], Float[Tensor, " tokens"]]:
    """Of the labels at temperature 1, in chunks: their log-probabilities, their ranks (1 + how many
    tokens have a higher logit), and the entropy of the whole distribution that they come from, in nats."""
    parts, ready = [], factors(head)
    with torch.autocast(head.hidden.device.type, enabled=False):
        for s in _slices(len(labels), chunk_size or fitting_chunk(head)):
            logits = product(ready.hidden[s], ready.weight.T)
            ranks = 1 + (logits > logits.gather(-1, labels[s].unsqueeze(-1))).sum(-1)
            logprobs = _log_softmax(logits, 1.0)
            entropy = torch.special.entr(logprobs.exp()).sum(-1)
            parts.append((_gather(logprobs, labels[s]), ranks, entropy))
    found = zip(*parts, strict=True)
    logprobs, ranks, entropy = (torch.cat(columns) for columns in found)
    return logprobs, ranks, entropy


def fitting_chunk(head: Head) -> int:
    """Tokens whose fp32 logits fill some 40 MiB on a CPU, 256 MiB elsewhere: few enough to save memory,
    enough to keep the matrix products efficient (64 tokens of Qwen2.5's vocabulary on a CPU)."""
    budget = 40 << 20 if head.hidden.device.type == "cpu" else 256 << 20
    return max(32, min(8192, budget // (4 * head.weight.shape[0]) // 32 * 32))


@dataclass(frozen=True)
class _Chunks:
    """What a pass over the chunks needs beside the student's tensors."""

    losses: list[tuple[TokenLoss, set[str]]]
    weights: Tensor
    labels: Tensor
    others: dict[str, Head | SomeTokens]
    token_signals: dict[str, Tensor]
    constants: dict[str, Tensor]
    temperature: float
    size: int
    dtype: torch.dtype

    def known(self, s: slice) -> dict[str, Any]:
        """Every signal of one chunk but the student's."""
        found: dict[str, Any] = {name: values[s] for name, values in self.token_signals.items()}
        for name, other in self.others.items():
            if isinstance(other, SomeTokens):
                found[name] = other[s]
            else:
                found[name] = _log_softmax(product(other.hidden[s], other.weight.T), self.temperature)
        return found | self.constants | {"labels": self.labels[s]}

    def losses_of(self, log_q: Tensor, known: Mapping[str, Any]) -> Tensor:
        whole = {**known, "log_q": log_q}
        coarse = {
            name: {name: some.to(log_q.dtype), "log_q": some.of(log_q)}
            for name, some in known.items()
            if isinstance(some, SomeTokens)
        }
        found = []
        for loss, names in self.losses:
            given = {name: whole[name] for name in names}
            for name in names & coarse.keys():
                given |= coarse[name]
            found.append(loss(**given))
        return torch.stack(found)


class _HeadPass(torch.autograd.Function):
    """Makes the gradient along with the loss; the backward pass only scales it."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, chunks: _Chunks) -> tuple[Tensor, Tensor, Tensor]:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        wide = _wide(chunks.dtype)
        labels, token_weights = chunks.labels, chunks.weights.to(wide)
        losses = torch.empty(token_weights.shape, dtype=wide, device=hidden.device)
        logprobs = torch.empty(len(labels), dtype=wide, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        # Summed over the chunks in at least fp32, also where the matrix itself is bf16.
        grad_weight = torch.zeros_like(weight, dtype=_wide(weight.dtype)) if wants_weight else None
        with torch.autocast(hidden.device.type, enabled=False):
            matrix = _factor(weight, chunks.dtype)
            for s in _slices(len(labels), chunks.size):
                states = _factor(hidden[s], chunks.dtype)
                known = chunks.known(s)
                logits = product(states, matrix.T)
                if chunks.temperature != 1.0:
                    logprobs[s] = _gather(_log_softmax(logits, 1.0), labels[s])
                log_q = _log_softmax(logits, chunks.temperature)
                del logits
                if chunks.temperature == 1.0:
                    logprobs[s] = _gather(log_q, labels[s])
                if not (wants_hidden or wants_weight):
                    losses[:, s] = chunks.losses_of(log_q, known)
                    continue
                log_q.requires_grad_()
                with torch.enable_grad():
                    loss = chunks.losses_of(log_q, known)
                losses[:, s] = loss.detach()
                (gradient,) = torch.autograd.grad(loss, log_q, token_weights[:, s])
                del known, loss
                # Through the log-softmax by hand: the logits themselves need not be kept for it.
                gradient.addcmul_(log_q.detach().exp_(), gradient.sum(-1, keepdim=True), value=-1)
                if chunks.temperature != 1.0:
                    gradient /= chunks.temperature
                del log_q
                gradient = gradient.to(matrix.dtype)
                if grad_hidden is not None:
                    grad_hidden[s] = product(gradient, matrix).to(hidden.dtype)
                if grad_weight is not None and grad_weight.dtype == gradient.dtype:
                    grad_weight.addmm_(gradient.T, states)
                elif grad_weight is not None:
                    grad_weight += product(gradient.T, states)
        ctx.gradients = grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype)
        ctx.mark_non_differentiable(losses, logprobs)
        return (token_weights * losses).sum(), losses, logprobs

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        scale = upstream[0]
        if ctx.gradients is None:
            raise RuntimeError("the head's gradient was already given away: it has no second backward pass")
        grad_hidden, grad_weight = ctx.gradients
        if grad_hidden is not None:
            grad_hidden = grad_hidden.mul_(scale.to(grad_hidden.dtype))
        if grad_weight is not None:
            grad_weight = grad_weight.mul_(scale.to(grad_weight.dtype))
        ctx.gradients = None  # scaled in place, so there is no second backward pass
        return grad_hidden, grad_weight, None


def _compute_dtype(tensor: Tensor) -> torch.dtype:
    """The type that a matrix product's factors are rounded to: autocast's where it is on."""
    device_type = tensor.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else tensor.dtype


def factors(head: Head) -> Head:
    """A frozen head, ready for `product`: rounded as autocast would, widened where the machine needs it."""
    dtype = _compute_dtype(head.weight)
    return Head(_factor(head.hidden.detach(), dtype), _factor(head.weight.detach(), dtype))


def _factor(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A factor as the model's own head would round it; widened again where `product` needs that."""
    rounded = tensor.to(dtype)
    return rounded if _multiplies_into_single(rounded) else rounded.to(_wide(dtype))


def product(a: Tensor, b: Tensor) -> Tensor:
    """The matrix product in at least fp32. Logits rounded to bf16 would be off by 1/64 at a height of 8: near
    the teacher that is as much as there is to learn."""
    return torch.mm(a, b, out_dtype=torch.float32) if _multiplies_into_single(a) else a @ b


def _multiplies_into_single(factor: Tensor) -> bool:
    """Whether half-precision factors give a single-precision product at once; a CPU cannot."""
    half = factor.dtype in (torch.bfloat16, torch.float16)
    return half and factor.is_cuda and "dtype" in torch.ops.aten.mm.overloads()


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    logits = logits.to(_wide(logits.dtype))
    return torch.log_softmax(logits if temperature == 1.0 else logits / temperature, dim=-1)


def _gather(logprobs: Tensor, labels: Tensor) -> Tensor:
    return logprobs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Log-probabilities, losses and sums are at least fp32."""
    return torch.promote_types(dtype, torch.float32)


def _slices(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]
