"""What the chunk loop computes: weighted terms, and the signals that they ask for."""

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
from distill.losses.signals import signals, unbound
from distill.losses.sparse import SparseDistribution
from distill.models.head import Head, factors, log_softmax

TokenLoss = Callable[..., Tensor]
# Takes a slice of the tokens and the student's signals there ([tokens] by name, at temperature 1); returns
# the weights of these tokens.
InlineWeights = Callable[[slice, Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class WeightedTerm:
    """A token loss and how much each token counts in it.

    Attributes:
        token_loss: a function of `distill.losses.divergence`.
        weights: [tokens] w_t, any sign; never gets a gradient. Or a function that makes them of the student's
            signals inside the loop.
        student_signals: the student's signals that such a function asks for.
        coefficient: factor on the whole term.
    """

    token_loss: TokenLoss
    weights: Float[Tensor, " tokens"] | InlineWeights
    student_signals: frozenset[str] = frozenset()
    coefficient: float = 1.0

    @functools.cached_property
    def signals(self) -> set[str]:
        """What the token loss asks for."""
        return signals(self.token_loss)

    @functools.cached_property
    def closed_form(self) -> ClosedForm | None:
        return closed_form_of(self.token_loss)

    def weights_at(self, rows: slice, student: Mapping[str, Tensor]) -> Float[Tensor, " rows"]:
        """The weights of some tokens; `student`: the student's signals there."""
        return self.weights[rows] if isinstance(self.weights, Tensor) else self.weights(rows, student)


@dataclass
class ChunkedInputs:
    """What a pass over the head needs beside the student's hidden states and output matrix.

    Signals that no term asks for are dropped, and nothing here gets a gradient.

    Attributes:
        labels: [tokens] the tokens to predict.
        terms: what is measured, and how much it counts.
        others: heads of frozen models at the same positions, or what is known of their distributions, by the
            name of the signal that they give (`log_p`: the teacher's, `log_r`: the reference's). Their
            vocabulary may be another. Where only some of a model's tokens are known, a loss that asks for
            that model is given both distributions in those buckets.
        token_signals: [tokens] whatever else a loss asks for, by name.
        constants: what a loss asks for that is the same for all tokens, by name (`shared_ids`).
        temperature: divides every model's logits before the loss; the log-probabilities are at temperature 1.
        chunk_size: tokens whose logits exist at once; None: by the vocabulary and the device
            (`distill.losses.logits.fitting_chunk`).
        compiled: whether torch.compile fuses what is done to the logits, for losses with a closed form.

    Raises:
        ValueError: a loss asks for a signal that is not given, or a value is out of range.
    """

    labels: Int[Tensor, " tokens"]
    terms: Sequence[WeightedTerm]
    others: Mapping[str, Head | SparseDistribution] = field(default_factory=dict)
    token_signals: Mapping[str, Float[Tensor, " tokens"]] = field(default_factory=dict)
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    temperature: float = 1.0
    chunk_size: int | None = None
    compiled: bool = False

    def __post_init__(self) -> None:
        if self.chunk_size is not None and self.chunk_size < 1:
            raise ValueError(f"chunk_size={self.chunk_size} must be at least 1")
        wanted = set().union(*(term.signals for term in self.terms))
        given = {*self.others, *self.token_signals, *self.constants, "log_q", "labels"}
        if missing := wanted - given:
            raise ValueError(
                f"the token loss asks for signals that are not given: {', '.join(sorted(missing))}"
            )
        # Rounded as the model's own head would round them under the autocast of now.
        self.others = {
            name: factors(other) if isinstance(other, Head) else other
            for name, other in self.others.items()
            if name in wanted
        }
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
        """A chunk's [tokens, vocab] logits by the frozen models whose head is given."""
        return {
            name: buffers.product(name, other.hidden[chunk], other.weight)
            for name, other in self.others.items()
            if isinstance(other, Head)
        }

    def signals_of_student(
        self, log_q: Float[Tensor, "rows vocab"], logits: Float[Tensor, "rows vocab"], rows: slice
    ) -> dict[str, Float[Tensor, " rows"]]:
        """The student's own signals at temperature 1; `log_q` is at the loss's temperature."""
        log_q = log_q if self.temperature == 1.0 else log_softmax(logits)
        return signals_of(log_q, self.labels[rows], self.student_signals)

    def signals_of_others(
        self, rows: slice, logits: Mapping[str, Tensor], at: slice
    ) -> dict[str, Tensor | SparseDistribution]:
        """Every signal of some rows but the student's; `at`: their place in the chunk's logits."""
        found: dict[str, Any] = {name: values[rows] for name, values in self.token_signals.items()}
        for name, other in self.others.items():
            if isinstance(other, SparseDistribution):
                found[name] = other[rows]
            else:
                found[name] = log_softmax(logits[name][at], self.temperature)
        return found | dict(self.constants) | {"labels": self.labels[rows]}

    def closed_form(self, term: WeightedTerm, known: Mapping[str, Any]) -> ClosedForm | None:
        """The loss together with its gradient; None where autograd has to find the gradient."""
        if any(isinstance(known.get(name), SparseDistribution) for name in term.signals):
            return None
        return _compiled(term.closed_form) if self.compiled and term.closed_form else term.closed_form


def arguments(term: WeightedTerm, log_q: Tensor, known: Mapping[str, Any]) -> dict[str, Tensor]:
    """What a token loss is called with; where only some tokens are known, both distributions in those
    buckets."""
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
        return form  # of a loss that changes as training goes on: every change would be compiled anew
    return lambda **given: _fused()(form, given)
