"""Inputs of the chunk loop: weighted terms and the signals that they need."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from distill.losses.closed_forms import ClosedForm, closed_form_of
from distill.losses.logits import LogitBuffers, signals_of
from distill.losses.overlap import top_k_overlap
from distill.losses.several_heads import MixedHead, RoutedHead
from distill.losses.signals import signals, unbound
from distill.losses.sparse import SparseDistribution
from distill.models.head import Head, factors, log_softmax

TokenLoss = Callable[..., Tensor]
# Computes the weights of a slice of the tokens from the student's signals there ([tokens] by name, at
# temperature 1).
InlineWeights = Callable[[slice, Mapping[str, Tensor]], Tensor]
Distribution = Head | RoutedHead | MixedHead | SparseDistribution  # of frozen models
_OWN = ("weight", "old_logprobs")  # given by the chunk loop, where the batch has none


@dataclass(frozen=True)
class WeightedTerm:
    """A token loss with a weight for every token.

    Attributes:
        token_loss: a function of `distill.losses.divergence`.
        weights: [tokens] w_t, of any sign, without gradient; or a function that computes them from the
            student's signals inside the chunk loop.
        student_signals: the student's signals that such a function needs.
        coefficient: factor on the whole term.
    """

    token_loss: TokenLoss
    weights: Float[Tensor, " tokens"] | InlineWeights
    student_signals: frozenset[str] = frozenset()
    coefficient: float = 1.0

    @functools.cached_property
    def signals(self) -> set[str]:
        """Names of the signals that the token loss needs."""
        return signals(self.token_loss)

    @functools.cached_property
    def closed_form(self) -> ClosedForm | None:
        return closed_form_of(self.token_loss)

    def weights_at(self, rows: slice, student: Mapping[str, Tensor]) -> Float[Tensor, " rows"]:
        """Weights of some tokens, given the student's signals there."""
        return self.weights[rows] if isinstance(self.weights, Tensor) else self.weights(rows, student)


@dataclass
class ChunkedInputs:
    """All inputs of the chunk loop except the student's hidden states and output matrix.

    Signals that no term needs are dropped, and nothing here gets a gradient.

    Attributes:
        labels: [tokens] the tokens to predict.
        terms: token losses with their weights.
        others: frozen models' distributions at the same positions, by signal name (`log_p`: the teacher's,
            `log_r`: the reference's): a head, possibly with another vocabulary, heads of several models, or a
            sparse distribution.
            With a sparse one, a loss gets both distributions over the known tokens only, plus one bucket for
            all others if their total probability is known.
        token_signals: [tokens] per-token signals, by name.
        constants: inputs that are the same for all tokens, by name (`shared_ids`).
        temperature: divides every model's logits before the loss. Per-token logprobs stay at temperature 1.
        chunk_size: tokens per chunk of logits; None: chosen from vocabulary size and device
            (`distill.losses.logits.fitting_chunk`).
        compiled: whether to fuse operations on logits with torch.compile, for losses with a closed form.
        entropy: whether to compute the entropy of the student's distribution at each position.
        overlap: k, to compare the student's k likeliest tokens with the teacher's (`log_p`); 0: they are not
            compared.

    Raises:
        ValueError: a loss needs a signal that is not given, or a value is out of range.
    """

    labels: Int[Tensor, " tokens"]
    terms: Sequence[WeightedTerm]
    others: Mapping[str, Distribution] = field(default_factory=dict)
    token_signals: Mapping[str, Float[Tensor, " tokens"]] = field(default_factory=dict)
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    temperature: float = 1.0
    chunk_size: int | None = None
    compiled: bool = False
    entropy: bool = False
    overlap: int = 0

    def __post_init__(self) -> None:
        if self.chunk_size is not None and self.chunk_size < 1:
            raise ValueError(f"chunk_size={self.chunk_size} must be at least 1")
        wanted = set().union(*(term.signals for term in self.terms), {"log_p"} if self.overlap else ())
        given = {*self.others, *self.token_signals, *self.constants, "log_q", "labels", *_OWN}
        if missing := wanted - given:
            raise ValueError(
                f"the token loss asks for signals that are not given: {', '.join(sorted(missing))}"
            )
        # Cast as the model's own head would be under the current autocast.
        self.others = {name: _ready(other) for name, other in self.others.items() if name in wanted}
        self.token_signals = {
            name: values.detach() for name, values in self.token_signals.items() if name in wanted
        }
        self.constants = {name: value for name, value in self.constants.items() if name in wanted}
        self.student_signals = {"student_logprobs"}.union(*(term.student_signals for term in self.terms))
        sparse = any(isinstance(other, SparseDistribution) for other in self.others.values())
        if self.temperature != 1.0 and sparse:
            raise ValueError(
                f"temperature={self.temperature} must be 1 where only some tokens of a distribution are "
                f"known: what the others would have at another temperature does not follow"
            )

    def logits_of_others(self, chunk: slice, buffers: LogitBuffers) -> dict[str, Tensor]:
        """[tokens, vocab] logits of a chunk for the frozen models whose heads are given, by signal name; of a
        mixture log-probs at the loss's temperature."""
        found = {}
        for name, other in self.others.items():
            if isinstance(other, Head):
                found[name] = buffers.product(name, other.hidden[chunk], other.weight)
            elif isinstance(other, RoutedHead):
                found[name] = other.logits(name, chunk, buffers)
            elif isinstance(other, MixedHead):
                found[name] = other.logprobs(name, chunk, buffers, self.temperature)
        return found

    def signals_of_student(
        self, log_q: Float[Tensor, "rows vocab"], logits: Float[Tensor, "rows vocab"], rows: slice
    ) -> dict[str, Float[Tensor, " rows"]]:
        """The student's per-token signals at temperature 1; `log_q` is at the loss's temperature."""
        log_q = log_q if self.temperature == 1.0 else log_softmax(logits)
        return signals_of(log_q, self.labels[rows], self.student_signals)

    def signals_of_others(
        self, rows: slice, logits: Mapping[str, Tensor], at: slice, logprobs: Float[Tensor, " rows"]
    ) -> dict[str, Tensor | SparseDistribution]:
        """All signals of some rows except the student's.

        Args:
            rows: the rows.
            logits: of a chunk, by signal name.
            at: the rows' slice of the chunk's logits.
            logprobs: the student's, which are also those of the student that wrote if the batch has none.
        """
        found: dict[str, Any] = {"old_logprobs": logprobs}
        found |= {name: values[rows] for name, values in self.token_signals.items()}
        for name, other in self.others.items():
            if isinstance(other, SparseDistribution):
                found[name] = other[rows]
            elif isinstance(other, MixedHead):
                found[name] = logits[name][at]
            else:
                found[name] = log_softmax(logits[name][at], self.temperature)
        return found | dict(self.constants) | {"labels": self.labels[rows]}

    def overlap_at(
        self,
        student: tuple[Tensor, Tensor],
        known: Mapping[str, Any],
        others: Mapping[str, Tensor],
        at: slice,
    ) -> Float[Tensor, "three rows"]:
        """Overlap of the likeliest tokens at some rows (`top_k_overlap`), at temperature 1.

        Args:
            student: the student's distribution at the loss's temperature, and its logits.
            known: of `signals_of_others`.
            others: of `logits_of_others`.
            at: the rows' slice of the chunk's logits.
        """
        log_q, log_p = student[0], known["log_p"]
        if self.temperature != 1.0:  # the teacher's distribution is whole then
            log_q, log_p = log_softmax(student[1]), log_softmax(others["log_p"][at])
        return top_k_overlap(log_q, log_p, self.overlap)

    def closed_form(self, term: WeightedTerm, known: Mapping[str, Any]) -> ClosedForm | None:
        """The function for loss and gradient together; None if the gradient must come from autograd."""
        if any(isinstance(known.get(name), SparseDistribution) for name in term.signals):
            return None
        return _compiled(term.closed_form) if self.compiled and term.closed_form else term.closed_form


def _ready(other: Distribution) -> Distribution:
    if isinstance(other, Head):
        return factors(other)
    return other if isinstance(other, SparseDistribution) else other.ready()


def arguments(term: WeightedTerm, log_q: Tensor, known: Mapping[str, Any]) -> dict[str, Tensor]:
    """Arguments of a token loss; with a sparse distribution, both distributions over its known tokens."""
    given = {name: log_q if name == "log_q" else known[name] for name in term.signals}
    for name in term.signals:
        if isinstance(some := known.get(name), SparseDistribution):
            given |= {name: some.to(log_q.dtype), "log_q": some.of(log_q)}
    return given


@functools.cache
def _fused() -> Any:
    return torch.compile(_call, dynamic=True)


def _call(form: ClosedForm, given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return form(**given)


def _compiled(form: ClosedForm) -> ClosedForm:
    if inspect.ismethod(unbound(form)):
        return form  # the loss has a state that changes in training, and each change would recompile
    return lambda **given: _fused()(form, given)
