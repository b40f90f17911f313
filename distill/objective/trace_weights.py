"""Weights of a problem's traces, recomputed by the student in training (COMPACT, 2601.13992)."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from distill.data.batch import Batch
from distill.data.tokenizers import tokenize
from distill.data.trace import Example
from distill.data.trace_set import problem_of_example
from distill.errors import UserError
from distill.losses.compact import (
    THINKING,
    answer_consistency,
    answer_information,
    importance_of,
    incoming_attention,
    rises,
    shares,
    spans_of,
)
from distill.models.attention_projection import queries_and_keys
from distill.models.head import Head
from distill.models.language_model import LanguageModel


@dataclass(frozen=True)
class CompactWeights:
    """COMPACT's weights of a problem's traces (2601.13992, Eq. 2 to 11), by the student as it is in training.

        weight_k = n · softmax_k(β₁ z(MI) + β₂ z(consensus) − β₃ z(NLL))   for n traces

    The traces are those of the problem in the micro-batch; a batch holds whole problems where their numbers
    of traces allow it. With two traces a z-score is always 1 or −1, so that only its sign counts. The weights
    are constants for the gradient, which the paper presumes and does not say. Its τ is in the coefficients.
    n, which makes the mean 1, is ours.

    Attributes:
        information: β₁, of S_MI: how much the trace's tokens raise the gold answer's log-prob.
        consensus: β₂, of the attention that the trace's last state gets from the other traces'.
        nll: β₃, of the student's mean surprisal, which counts against a trace.
        consistency: λ, of the KL between the traces' distributions over the gold answer's tokens.
        thinking: words whose tokens count fully in S_MI; the paper names these four of its list.
        other_tokens: factor of all other tokens in S_MI, the paper's small ε; the value is ours.
    """

    information: float = 1.0
    consensus: float = 1.0
    nll: float = 1.0
    consistency: float = 0.0
    thinking: Sequence[str] = THINKING
    other_tokens: float = 0.1

    def __post_init__(self) -> None:
        for name in ("information", "consensus", "nll", "consistency", "other_tokens"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e6:
                raise ValueError(f"trace_weights: {name}={value!r} must be a number, at least 0")

    def check(self, examples: Iterable[Example], batch_size: int) -> None:
        """Check that the traces can be weighted.

        Raises:
            UserError: as `check_golds`, or no problem has two traces, or one has more than a batch.
        """
        examples = list(examples)
        self.check_golds(examples)
        counts = Counter(map(problem_of_example, examples))
        problem, most = counts.most_common(1)[0]
        if most == 1:
            raise UserError(
                "loss.trace_weights weighs a problem's traces against each other, and every problem has one: "
                "write several (data.samples, or distill generate with samples=), or put trace sets together"
            )
        if most > batch_size:
            asked = next(one.problem for one in examples if problem_of_example(one) == problem)
            raise UserError(
                f"loss.trace_weights needs a problem's traces in one micro-batch, and {asked[:60]!r} has "
                f"{most} where data.batch_size={batch_size}: raise that to {most}"
            )

    def check_golds(self, examples: Iterable[Example]) -> None:
        """Check that traces, such as those of validation, have the gold answers that their weights need.

        Raises:
            UserError: one has none; names it.
        """
        bare = next((example for example in examples if not (example.gold or "").strip()), None)
        if bare is not None and (self.information or self.consistency):
            raise UserError(
                f"loss.trace_weights asks how likely the right answer is along trace {bare.place}, whose "
                f"problem has no gold answer: name the data's (data.fields.gold), or take "
                f"loss.trace_weights.information=0 loss.trace_weights.consistency=0"
            )

    @torch.no_grad()
    def weights(self, batch: Batch, lm: LanguageModel) -> Float[Tensor, " batch"]:
        """Weights of the batch's traces, whose mean over a problem is 1; 1 for a problem's only trace."""
        training = lm.model.training
        lm.model.eval()
        try:
            states = _states(batch, lm)
        finally:
            lm.model.train(training)
        labels = batch.completion_labels.split([len(one.hidden) - 1 for one in states])
        known = [self._scores(*one, lm) for one in zip(states, labels, batch.examples, strict=True)]
        ends = torch.stack([one.hidden[-1] for one in states])
        queries, keys = queries_and_keys(lm, ends) if self.consensus else (ends, ends)
        found = torch.ones(len(states), dtype=torch.float64)
        for rows in self.groups(batch):
            information, nll = (torch.stack([known[row][part] for row in rows]) for part in (0, 1))
            scores = [(self.information, information), (-self.nll, nll)]
            if self.consensus:
                scores.append(
                    (self.consensus, incoming_attention(queries[rows].double(), keys[rows].double()))
                )
            found[rows] = len(rows) * shares(scores, len(rows))
        return found.float().to(batch.input_ids.device)

    def groups(self, batch: Batch) -> list[list[int]]:
        """Rows of each problem that has several traces in the batch."""
        found: dict[str, list[int]] = {}
        for row, example in enumerate(batch.examples):
            found.setdefault(problem_of_example(example), []).append(row)
        return [rows for rows in found.values() if len(rows) > 1]

    def consistency_loss(
        self, batch: Batch, student: Head, weights: Float[Tensor, " batch"], lm: LanguageModel
    ) -> Float[Tensor, ""]:
        """λ Σ_k weight_k L_MCon,k over the batch (Eq. 9 and 10), with gradient.

        The answer's span is the last place in the trace where the gold answer stands. Traces without it, and
        those in which it has another number of tokens than in most traces of the problem, take no part.

        Args:
            batch: the micro-batch.
            student: head at the batch's completion positions.
            weights: of `weights`.
            lm: the student.
        """
        lengths = batch.mask.sum(-1).tolist()
        states, labels = student.hidden.split(lengths), batch.completion_labels.cpu().split(lengths)
        total = student.hidden.new_zeros((), dtype=torch.float32)
        for rows in self.groups(batch):
            spans = {row: _answer_span(lm, labels[row], batch.examples[row].gold) for row in rows}
            sizes = Counter(span[1] - span[0] for span in spans.values() if span)
            if not sizes or sizes.most_common(1)[0][1] < 2:
                continue
            size = sizes.most_common(1)[0][0]
            chosen = [row for row, span in spans.items() if span and span[1] - span[0] == size]
            parts = [states[row][slice(*(spans[row] or ()))] for row in chosen]
            found = answer_consistency(parts, student.weight, weights[chosen] / len(rows))
            total = total + (weights[chosen] * found).sum()
        return self.consistency * total

    def _scores(
        self, head: Head, labels: Tensor, example: Example, lm: LanguageModel
    ) -> tuple[Tensor, Tensor]:
        """S_MI and mean surprisal of a trace."""
        gold = gold_ids(lm, example.gold) if self.information else []
        information, logprobs = answer_information(
            head, torch.tensor(gold or [0], device=head.hidden.device), labels
        )
        importance = importance_of(lm.tokenizer, labels.tolist(), self.thinking, self.other_tokens)
        risen = rises(information.double().cpu(), torch.from_numpy(importance))
        return risen, -logprobs.double().mean().cpu()


def gold_ids(lm: LanguageModel, gold: str | None) -> list[int]:
    """Tokens of the gold answer.

    Raises:
        UserError: the tokenizer has none for it.
    """
    ids = list(tokenize(lm.tokenizer, gold or "", add_special_tokens=False))
    if not ids:
        raise UserError(
            f"COMPACT: the tokenizer of {lm.source.name} has no token for the gold answer {gold!r}"
        )
    return ids


def _states(batch: Batch, lm: LanguageModel) -> list[Head]:
    """Each trace's head from the prompt's last token to its own last token."""
    ids = pad(batch.input_ids, (0, 1))  # so that the last token's state is a row too
    mask = pad(batch.mask, (0, 1)) | pad(batch.mask, (1, 0))
    head = lm.completion_head(ids, mask)
    return [Head(one, head.weight) for one in head.hidden.split(mask.sum(-1).tolist())]


def _answer_span(lm: LanguageModel, labels: Tensor, gold: str | None) -> tuple[int, int] | None:
    """Range of the tokens of the last occurrence of the gold answer; None without one."""
    found = spans_of(lm.tokenizer, labels.tolist(), rf"(?<!\d){re.escape(gold or '')}(?!\d)")
    return found[-1] if found else None
