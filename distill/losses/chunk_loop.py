"""One pass over the output head: logits chunk by chunk, losses and their gradients block by block (what it is
for: `distill.losses.chunked`)."""

import functools
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from distill.losses.closed_forms import ClosedForm, closed_form_of
from distill.losses.signals import signals, unbound
from distill.losses.sparse import SomeTokens
from distill.models.head import (
    Head,
    _factor,
    _multiplies_into_single,
    compute_dtype,
    factors,
    gather,
    log_softmax,
    product,
    wide_dtype,
)

TokenLoss = Callable[..., Tensor]
# Of some tokens (a slice) and what is known of the student there: [tokens] by name, at temperature 1.
WeightsOnTheWay = Callable[[slice, Mapping[str, Tensor]], Tensor]
STUDENT_SIGNALS = ("student_logprobs", "student_entropy")
_ENTROPY_TOKENS = 20
_BLOCK_BYTES = 2 << 20  # of logits that a CPU works on at once: a few buffers of it stay in its cache


@dataclass(frozen=True)
class WeightedTokenLoss:
    """One token loss and how much each token counts in it.

    Attributes:
        token_loss: a function of `distill.losses.divergence`.
        weights: [tokens] w_t, any sign; never gets a gradient. Or what makes them of the student's signals
            where the loss is made.
        asks: the student's signals that such weights are made of.
        coefficient: factor on the whole term.
    """

    token_loss: TokenLoss
    weights: Float[Tensor, " tokens"] | WeightsOnTheWay
    asks: frozenset[str] = frozenset()
    coefficient: float = 1.0


def fitting_chunk(head: Head) -> int:
    """Tokens whose fp32 logits fill some 64 MiB on a CPU, 256 MiB elsewhere: few enough to save memory,
    enough to keep the matrix products efficient. On a CPU each chunk reads the whole matrix several times:
    of a vocabulary of 248,000, 32 tokens at a time take 1.4 times as long as 64."""
    budget = 64 << 20 if head.hidden.device.type == "cpu" else 256 << 20
    return max(32, min(8192, budget // (4 * head.weight.shape[0]) // 16 * 16))


@dataclass(frozen=True)
class _Term:
    """A term as a pass wants it."""

    token_loss: TokenLoss
    names: set[str]
    form: ClosedForm | None
    weights: Tensor | WeightsOnTheWay
    asks: frozenset[str]
    coefficient: float


@dataclass(frozen=True)
class Chunks:
    """What a pass over the chunks needs beside the student's tensors."""

    terms: list[_Term]
    labels: Tensor
    others: dict[str, Head | SomeTokens]
    token_signals: dict[str, Tensor]
    constants: dict[str, Tensor]
    temperature: float
    size: int
    dtype: torch.dtype

    def total(self, losses: Tensor, token_weights: Tensor) -> Tensor:
        """Σ c·w·ℓ."""
        coefficients = [term.coefficient for term in self.terms]
        return sum(
            (c * (w * one).sum() for c, w, one in zip(coefficients, token_weights, losses, strict=True)),
            losses.new_zeros(()),
        )

    @property
    def asks(self) -> set[str]:
        return set().union(*(term.asks for term in self.terms))

    def known(self, rows: slice, logits: Mapping[str, Tensor], at: slice) -> dict[str, Any]:
        """Every signal of some rows but the student's; `at`: their place in the chunk's logits."""
        found: dict[str, Any] = {name: values[rows] for name, values in self.token_signals.items()}
        for name, other in self.others.items():
            if isinstance(other, SomeTokens):
                found[name] = other[rows]
            else:
                found[name] = log_softmax(logits[name][at], self.temperature)
        return found | self.constants | {"labels": self.labels[rows]}

    def loss(self, term: _Term, log_q: Tensor, known: Mapping[str, Any]) -> Tensor:
        given = {name: log_q if name == "log_q" else known[name] for name in term.names}
        for name in term.names:
            if isinstance(some := known.get(name), SomeTokens):
                given |= {name: some.to(log_q.dtype), "log_q": some.of(log_q)}
        return term.token_loss(**given)

    def loss_and_gradient(
        self, term: _Term, log_q: Tensor, known: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Losses and their gradient to the logits that `log_q`, which is spent, is the log-softmax of."""
        if term.form is not None and not any(isinstance(known.get(name), SomeTokens) for name in term.names):
            return term.form(log_q=log_q, **{name: known[name] for name in term.names if name != "log_q"})
        log_q.requires_grad_()
        with torch.enable_grad():
            losses = self.loss(term, log_q, known)
            (gradient,) = torch.autograd.grad(losses.sum(), log_q)
        # Through the log-softmax by hand: the logits themselves need not be kept for it.
        gradient.addcmul_(log_q.detach().exp_(), gradient.sum(-1, keepdim=True), value=-1)
        return losses.detach(), gradient


def prepare(
    student: Head,
    labels: Tensor,
    terms: Sequence[WeightedTokenLoss],
    *,
    others: Mapping[str, Head | SomeTokens] | None = None,
    token_signals: Mapping[str, Tensor] | None = None,
    constants: Mapping[str, Tensor] | None = None,
    temperature: float = 1.0,
    chunk_size: int | None = None,
    compiled: bool = False,
) -> Chunks:
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
    forms = [closed_form_of(term.token_loss) for term in terms]
    if compiled:
        forms = [None if form is None else _compiled(form) for form in forms]
    return Chunks(
        terms=[
            _Term(
                term.token_loss,
                names,
                form,
                term.weights.detach() if isinstance(term.weights, Tensor) else term.weights,
                term.asks,
                term.coefficient,
            )
            for term, names, form in zip(terms, needed, forms, strict=True)
        ],
        labels=labels,
        others={name: factors(o) if isinstance(o, Head) else o for name, o in heads.items()},
        token_signals=known,
        constants=fixed,
        temperature=temperature,
        size=chunk_size or fitting_chunk(student),
        dtype=compute_dtype(student.hidden),
    )


def run(
    hidden: Tensor, weight: Tensor, chunks: Chunks, wants_hidden: bool, wants_weight: bool
) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor, Tensor]:
    """Gradients of Σ w·ℓ, [terms, tokens] losses and weights, [tokens] log-probabilities."""
    wide, device, tokens = wide_dtype(chunks.dtype), hidden.device, len(chunks.labels)
    trains = wants_hidden or wants_weight
    losses, token_weights = (
        torch.empty(len(chunks.terms), tokens, dtype=wide, device=device) for _ in range(2)
    )
    logprobs = torch.empty(tokens, dtype=wide, device=device)
    grad_hidden = torch.empty_like(hidden) if wants_hidden else None
    # Summed over the chunks in at least fp32, also where the matrix itself is bf16.
    grad_weight = torch.zeros_like(weight, dtype=wide_dtype(weight.dtype)) if wants_weight else None
    with torch.autocast(device.type, enabled=False):
        matrix = _factor(weight, chunks.dtype)
        heads = {name: other for name, other in chunks.others.items() if isinstance(other, Head)}
        room = _Room(min(chunks.size, tokens), device, wide)
        for chunk in _slices(tokens, chunks.size):
            states = _factor(hidden[chunk], chunks.dtype)
            logits = room.product("student", states, matrix)
            theirs = {
                name: room.product(name, head.hidden[chunk], head.weight) for name, head in heads.items()
            }
            for at in _blocks(logits):
                rows = slice(chunk.start + at.start, chunk.start + at.stop)
                _block(logits, theirs, rows, at, chunks, trains, losses, token_weights, logprobs)
            gradient = logits.to(matrix.dtype) if trains else None
            if grad_hidden is not None and gradient is not None:
                grad_hidden[chunk] = product(gradient, matrix).to(hidden.dtype)
            if grad_weight is not None and gradient is not None:
                if grad_weight.dtype == gradient.dtype:
                    grad_weight.addmm_(gradient.T, states)
                else:
                    grad_weight += product(gradient.T, states)
    grad_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
    return grad_hidden, grad_weight, losses, token_weights, logprobs


def _block(
    logits: Tensor,
    theirs: Mapping[str, Tensor],
    rows: slice,
    at: slice,
    chunks: Chunks,
    trains: bool,
    losses: Tensor,
    token_weights: Tensor,
    logprobs: Tensor,
) -> None:
    """A few rows' losses, weights and log-probabilities; where the model trains, the gradient takes the
    logits' place."""
    block, labels, temperature = logits[at], chunks.labels[rows], chunks.temperature
    log_q = log_softmax(block, temperature)
    asked = {"student_logprobs", *chunks.asks}
    known_of_student = signals_of(log_q if temperature == 1.0 else log_softmax(block), labels, asked)
    logprobs[rows] = known_of_student["student_logprobs"]
    known = chunks.known(rows, theirs, at)
    for number, term in enumerate(chunks.terms):
        if isinstance(term.weights, Tensor):
            weights = term.weights[rows].to(token_weights.dtype)
        else:
            weights = term.weights(rows, known_of_student).to(token_weights.dtype)
        token_weights[number, rows] = weights
        if not trains:
            losses[number, rows] = chunks.loss(term, log_q, known)
            continue
        last = number == len(chunks.terms) - 1
        found, gradient = chunks.loss_and_gradient(term, log_q if last else log_q.clone(), known)
        losses[number, rows] = found
        factor = (weights * (term.coefficient / temperature)).unsqueeze(-1)
        if number == 0:
            torch.mul(gradient, factor, out=block)
        else:
            block.addcmul_(gradient, factor)


class _Room:
    """Buffers for a chunk's logits, made once and used by all chunks."""

    def __init__(self, tokens: int, device: torch.device, dtype: torch.dtype) -> None:
        self.tokens, self.device, self.dtype = tokens, device, dtype
        self._buffers: dict[str, Tensor] = {}

    def product(self, name: str, states: Tensor, matrix: Tensor) -> Tensor:
        """states @ matrix.T, [tokens, vocab] in at least fp32."""
        if name not in self._buffers:
            shape = (self.tokens, len(matrix))
            self._buffers[name] = torch.empty(shape, device=self.device, dtype=wide_dtype(matrix.dtype))
        out = self._buffers[name][: len(states)]
        if _multiplies_into_single(states):
            return torch.mm(states, matrix.T, out_dtype=torch.float32, out=out)
        return torch.mm(states, matrix.T, out=out)


def logits_in_blocks(head: Head, chunk_size: int | None) -> Iterator[tuple[slice, Tensor]]:
    """Logits of a few rows at a time, and which rows they are; each is gone when the next is asked for."""
    ready, tokens = factors(head), len(head.hidden)
    size = chunk_size or fitting_chunk(head)
    with torch.autocast(head.hidden.device.type, enabled=False):
        room = _Room(min(size, tokens), head.hidden.device, wide_dtype(ready.weight.dtype))
        for chunk in _slices(tokens, size):
            logits = room.product("student", ready.hidden[chunk], ready.weight)
            for at in _blocks(logits):
                yield slice(chunk.start + at.start, chunk.start + at.stop), logits[at]


def _blocks(logits: Tensor) -> list[slice]:
    """Rows that are worked on at once: on a CPU what its cache holds, else all of the chunk."""
    rows = len(logits)
    if logits.device.type == "cpu":
        rows = max(1, _BLOCK_BYTES // (logits.shape[-1] * logits.element_size()))
    return _slices(len(logits), max(1, rows))


def signals_of(log_q: Tensor, labels: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
    found = {}
    if "student_logprobs" in wanted:
        found["student_logprobs"] = gather(log_q, labels)
    if "student_entropy" in wanted:
        likeliest = log_q.topk(min(_ENTROPY_TOKENS, log_q.shape[-1]), -1).values
        likeliest = torch.log_softmax(likeliest, -1)
        found["student_entropy"] = -(likeliest.exp() * likeliest).sum(-1)
    return found


@functools.cache
def _fused() -> Any:
    return torch.compile(_call, dynamic=True)


def _call(form: ClosedForm, given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return form(**given)


def _compiled(form: ClosedForm) -> ClosedForm:
    if inspect.ismethod(unbound(form)):
        return form  # of a loss that changes as training goes on: every change would be compiled anew
    return lambda **given: _fused()(form, given)


def _slices(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]
