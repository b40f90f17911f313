"""The fields of an objective, and what follows from them: which signals of which models it needs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from distill.generation.sampling import StudentRollouts
from distill.losses import weights
from distill.losses.inputs import TokenLoss
from distill.losses.signals import SIGNALS, Role, is_inline, properties_of, signals
from distill.objective.step_values import StepProposals
from distill.objective.terms import Control, Rows, Term, TokenWeight
from distill.teacher.distribution import TeacherDistribution


@dataclass
class ObjectiveSpec:
    """Who writes, what is measured at a position, and how much the position counts.

    Attributes:
        rollouts: `dataset` (offline traces as the data gives them), `teacher` (offline traces, sampled from
            the teacher whatever the data has), or a `StudentRollouts`, which lets the student write a share
            of the batches.
        token_loss: a function of `distill.losses.divergence`, bound to its parameters.
        token_weight: a function of `distill.losses.weights`, bound to its parameters.
        rows: completions that token_loss is taken on: `all`, the `dataset`'s or the `student`'s.
        extra: further terms, by name, added to the first.
        normalize: divide the step's sum, further terms' share of it too, by the completion tokens (`tokens`)
            or by the main term's weights (`weights`) of the optimizer step.
        scale: factor on the weights; 2 makes DCOD's weight 1 where student and teacher agree. `mean` divides
            the weights by their mean over the optimizer step, which is exactly what `normalize=weights` does.
        control: `none`, or what stands in for the weights in a controlled comparison: `uniform` (all 1),
            `shuffled` (the same values, permuted inside the micro-batch), `inverted` (1 - w).
        proposals: how next steps are proposed and valued, for weights that compare them.
        teacher: whose signals are the teacher's: those of `model` (`model.teacher`), or of the student as it
            was before training (`initial`).
        teacher_sees: the problem (`prompt`), or its worked solution too (`solution`), under
            `data.informed_prompt`.
        distribution: where the teacher's distribution comes from, for losses that compare with all of it.
        temperature: divides all models' logits in the token loss. Not the temperature of sampling, nor
            DCOD's τ.
        chunk_size: completion tokens whose logits exist at once; None: by the vocabulary and the device.
        compile: whether torch.compile fuses what a loss does to the logits, where its gradient is written
            out (`distill.losses.closed_forms`).
    """

    rollouts: StudentRollouts | Literal["dataset", "teacher"]
    token_loss: TokenLoss
    token_weight: TokenWeight
    rows: Rows = "all"
    extra: Mapping[str, Term] = field(default_factory=dict)
    normalize: Literal["tokens", "weights"] = "tokens"
    scale: float | Literal["mean"] = 1.0
    control: Control = "none"
    proposals: StepProposals | None = None
    teacher: Literal["model", "initial"] = "model"
    teacher_sees: Literal["prompt", "solution"] = "prompt"
    distribution: TeacherDistribution = field(default_factory=TeacherDistribution)
    temperature: float = 1.0
    chunk_size: int | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        weight = weights.uniform if self.control == "uniform" else self.token_weight
        self.terms: dict[str, Term] = {
            "main": Term(self.token_loss, weight, rows=self.rows),
            **dict(self.extra),
        }

    @cached_property
    def signals(self) -> set[str]:
        """Everything that the terms ask of any model."""
        return set().union(*(term.signals for term in self.terms.values())) & SIGNALS.keys()

    @cached_property
    def distributions(self) -> dict[str, Role]:
        """Signals over the whole vocabulary that frozen models give: by name, whose."""
        return {
            name: SIGNALS[name].role
            for name in sorted(self.signals)
            if SIGNALS[name].shape == "vocab" and SIGNALS[name].role != "student"
        }

    @cached_property
    def live_distributions(self) -> dict[str, Role]:
        """Those that need the model beside the student."""
        cached = {"log_p"} if self.caches_distribution else set()
        return {name: role for name, role in self.distributions.items() if name not in cached}

    @cached_property
    def caches_distribution(self) -> bool:
        """Whether batches carry what is cached of the teacher's distribution."""
        return self.distribution.cached and "log_p" in self.signals

    @cached_property
    def cached_signals(self) -> dict[str, Role]:
        """Per-token signals that the traces must carry, scored once and cached: by name, whose."""
        return {
            name: SIGNALS[name].role
            for name in sorted(self.signals)
            if SIGNALS[name].shape == "token" and SIGNALS[name].role != "student"
        }

    @cached_property
    def batch_signals(self) -> list[str]:
        """Per-token signals that batches of the data's traces carry: none where the student writes all."""
        writes_all = isinstance(self.rollouts, StudentRollouts) and self.rollouts.fraction == 1
        return [] if writes_all else sorted(self.cached_signals)

    @cached_property
    def live_roles(self) -> set[Role]:
        """Frozen models that run beside the student: for whole distributions and next steps, or to score its
        rollouts."""
        live = set(self.live_distributions.values())
        if self.compares_steps:
            live.add("teacher")
        return live | set(self.cached_signals.values()) if self.on_policy else live

    @cached_property
    def compares_tokens(self) -> bool:
        """Whether a loss asks which tokens student and teacher have in common."""
        return any({"same_token", "shared_ids"} & signals(term.token_loss) for term in self.terms.values())

    @cached_property
    def compares_steps(self) -> bool:
        """Whether a weight asks what proposed next steps are worth."""
        return any(SIGNALS[name].shape == "step" for name in self.signals)

    @property
    def across_vocabularies(self) -> bool:
        """Whether all that is asked of the teacher makes sense where its vocabulary is another."""
        return all(
            properties_of(function).across_vocabularies
            for term in self.terms.values()
            for function in (term.token_loss, term.token_weight)
            if any(SIGNALS[name].role == "teacher" for name in signals(function) & SIGNALS.keys())
        )

    @cached_property
    def on_policy(self) -> bool:
        return isinstance(self.rollouts, StudentRollouts) and self.rollouts.fraction > 0

    def student_signals(self, term: Term) -> frozenset[str]:
        """What a term's weight asks of the student in training."""
        return frozenset(
            name
            for name in signals(term.token_weight) & SIGNALS.keys()
            if SIGNALS[name].role == "student" and SIGNALS[name].shape == "token"
        )

    def made_inline(self, name: str) -> bool:
        """Whether a term's weights can be made token by token, inside the chunk loop."""
        whole = name == "main" and self.control == "shuffled"
        return is_inline(self.terms[name].token_weight) and not whole

    @cached_property
    def precomputed_signals(self) -> set[str]:
        """What weights want to know of the student before the loss is made, which takes a product with its
        output matrix of its own."""
        return set().union(
            *(self.student_signals(term) for name, term in self.terms.items() if not self.made_inline(name)),
            # A loss may ask for such a signal too.
            *(
                {key for key in signals(term.token_loss) & SIGNALS.keys() if SIGNALS[key].role == "student"}
                - {"log_q"}
                for term in self.terms.values()
            ),
        )
