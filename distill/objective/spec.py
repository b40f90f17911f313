"""Fields of an objective, and the signals and models that follow from them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from distill.generation.sampling import StudentRollouts
from distill.losses import weights
from distill.losses.inputs import TokenLoss
from distill.losses.signals import SIGNALS, Role, bound_parameters, is_inline, properties_of, signals
from distill.objective.rewards import Rewards
from distill.objective.step_values import StepProposals
from distill.objective.terms import Control, Rows, Term, TokenWeight
from distill.objective.trace_weights import CompactWeights
from distill.teacher.distribution import TeacherDistribution

TeacherIs = Literal["model", "initial", "ema"]
Normalize = Literal["tokens", "weights", "completions", "longest"]


@dataclass
class ObjectiveSpec:
    """Fields of an objective.

    Attributes:
        rollouts: who writes the completions. `dataset`: offline traces of the data; `teacher`: offline traces
            sampled from the teacher, even if the data has completions; a `StudentRollouts`: the student
            writes a fraction of the batches during training.
        token_loss: a function of `distill.losses.divergence`, bound to its parameters.
        token_weight: a function of `distill.losses.weights`, bound to its parameters.
        rows: completions that the main term applies to: `all`, the `dataset`'s or the `student`'s.
        extra: further terms, by name, added to the main term. Those with a coefficient of 0 are left out.
        normalize: divisor of the optimizer step's summed loss (all terms): the number of completion tokens
            (`tokens`); the sum of the main term's weights (`weights`); the number of completions, where each
            one's loss is a mean over its tokens (`completions`); or the tokens that there would be if all
            completions were as long as the student may write (`longest`, Dr. GRPO's).
        scale: factor on the weights; 2 makes DCOD's weight 1 where student and teacher agree. `mean` divides
            the weights by their mean over the optimizer step, which is the same as `normalize=weights`.
        control: for ablations, replace the weights: `uniform` (all 1), `shuffled` (permuted within the
            micro-batch), `inverted` (1 - w), `by_position` (their mean at the same position of the
            micro-batch's completions); `none` leaves them.
        proposals: how next reasoning steps are proposed and valued, for weights that compare them.
        trace_weights: weights of a problem's traces, recomputed in training; None: those of the data.
        rewards: how the student's completions are rewarded; None: they are not graded.
        teacher: the model used as teacher: `model` (`model.teacher`), `initial` (the student before training)
            or `ema` (the exponential moving average of the student in training).
        teacher_update_rate: with `ema`, the student's share in an update of the teacher.
        teacher_sync_steps: with `ema`, optimizer steps from one update to the next.
        teacher_sees: what the teacher's prompt contains: the problem (`prompt`), or also its worked solution
            (`solution`), with the template `data.informed_prompt`.
        distribution: where the teacher's distribution comes from, for losses over the whole vocabulary.
        overlap_top_k: k of the metric that compares the k likeliest tokens of student and teacher
            (2604.13016), which needs the teacher's distribution; None: it is not measured.
        temperature: divides all models' logits in the token loss. Not the sampling temperature, nor DCOD's τ.
        chunk_size: completion tokens per chunk of logits; None: chosen from vocabulary size and device.
        compile: whether to fuse operations on logits with torch.compile, for losses with a closed-form
            gradient (`distill.losses.closed_forms`).
    """

    rollouts: StudentRollouts | Literal["dataset", "teacher"]
    token_loss: TokenLoss
    token_weight: TokenWeight
    rows: Rows = "all"
    extra: Mapping[str, Term] = field(default_factory=dict)
    normalize: Normalize = "tokens"
    scale: float | Literal["mean"] = 1.0
    control: Control = "none"
    proposals: StepProposals | None = None
    trace_weights: CompactWeights | None = None
    rewards: Rewards | None = None
    teacher: TeacherIs = "model"
    teacher_update_rate: float = 0.01
    teacher_sync_steps: int = 1
    teacher_sees: Literal["prompt", "solution"] = "prompt"
    distribution: TeacherDistribution = field(default_factory=TeacherDistribution)
    overlap_top_k: int | None = None
    temperature: float = 1.0
    chunk_size: int | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        weight = weights.uniform if self.control == "uniform" else self.token_weight
        self.terms: dict[str, Term] = {
            "main": Term(self.token_loss, weight, rows=self.rows),
            **{name: term for name, term in self.extra.items() if term.coefficient != 0},
        }

    @cached_property
    def signals(self) -> set[str]:
        """Names of all model signals that the terms need."""
        measured = {"log_p"} if self.overlap_top_k else set()
        return set().union(*(term.signals for term in self.terms.values()), measured) & SIGNALS.keys()

    @cached_property
    def distributions(self) -> dict[str, Role]:
        """Frozen models' signals over the whole vocabulary: name to role."""
        return {
            name: SIGNALS[name].role
            for name in sorted(self.signals)
            if SIGNALS[name].shape == "vocab" and SIGNALS[name].role != "student"
        }

    @cached_property
    def live_distributions(self) -> dict[str, Role]:
        """Entries of `distributions` that are not cached, so that the model must be in memory."""
        cached = {"log_p"} if self.caches_distribution else set()
        return {name: role for name, role in self.distributions.items() if name not in cached}

    @cached_property
    def caches_distribution(self) -> bool:
        """Whether the teacher's distribution comes from the cache."""
        return self.distribution.cached and "log_p" in self.signals

    @cached_property
    def cached_signals(self) -> dict[str, Role]:
        """Frozen models' per-token signals, computed once per trace and cached: name to role."""
        return {
            name: SIGNALS[name].role
            for name in sorted(self.signals)
            if SIGNALS[name].shape == "token" and SIGNALS[name].role != "student"
        }

    @cached_property
    def batch_signals(self) -> list[str]:
        """Names of the signals in a batch of the data: those of problems, and the cached ones per token, of
        which there are none if the student writes every completion."""
        return [*([] if self.writes_all else sorted(self.cached_signals)), *self.problem_signals]

    @cached_property
    def problem_signals(self) -> list[str]:
        """Names of the signals that are known of each problem before training."""
        return sorted(name for name in self.signals if SIGNALS[name].shape == "problem")

    @cached_property
    def live_roles(self) -> set[Role]:
        """Roles of frozen models needed in memory during training.

        They give whole distributions, propose and value next reasoning steps, or compute logprobs of the
        student's rollouts.
        """
        live = set(self.live_distributions.values())
        if self.compares_steps:
            live.add("teacher")
        return live | set(self.cached_signals.values()) if self.on_policy else live

    @cached_property
    def compares_tokens(self) -> bool:
        """Whether a loss needs to know which tokens student and teacher have in common."""
        return any({"same_token", "shared_ids"} & signals(term.token_loss) for term in self.terms.values())

    @cached_property
    def compares_spans(self) -> bool:
        """Whether a weight compares spans of text, so that the tokenizers may differ."""
        return any("spans" in signals(term.token_weight) for term in self.terms.values())

    @cached_property
    def compares_steps(self) -> bool:
        """Whether a weight compares the values of proposed next reasoning steps."""
        return any(SIGNALS[name].shape == "step" for name in self.signals)

    @cached_property
    def compares_rewards(self) -> bool:
        """Whether a weight compares the rewards of a problem's completions."""
        return any(SIGNALS[name].shape == "reward" for name in self.signals)

    @property
    def rewarded(self) -> bool:
        """Whether the student's completions are graded during training."""
        return self.on_policy and self.rewards is not None

    @cached_property
    def divides_by_deviation(self) -> bool:
        """Whether the step's loss is divided by the deviation of all its rewards (`group_advantage`)."""
        return self.compares_rewards and bound_parameters(self.token_weight).get("scale") == "batch"

    @property
    def across_vocabularies(self) -> bool:
        """Whether the teacher's vocabulary may differ from the student's."""
        return not self.overlap_top_k and all(
            properties_of(function).across_vocabularies
            for term in self.terms.values()
            for function in (term.token_loss, term.token_weight)
            if any(SIGNALS[name].role == "teacher" for name in signals(function) & SIGNALS.keys())
        )

    @cached_property
    def on_policy(self) -> bool:
        return isinstance(self.rollouts, StudentRollouts) and self.rollouts.fraction > 0

    @cached_property
    def samples(self) -> int:
        """Completions of a problem in a batch: several consecutive ones if the student writes them so."""
        return self.rollouts.samples if isinstance(self.rollouts, StudentRollouts) else 1

    @cached_property
    def num_iterations(self) -> int:
        """Optimizer steps on a batch of completions before the student writes others."""
        return self.rollouts.num_iterations if isinstance(self.rollouts, StudentRollouts) else 1

    @property
    def writes_all(self) -> bool:
        """Whether the student writes every completion that is trained on."""
        return isinstance(self.rollouts, StudentRollouts) and self.rollouts.fraction == 1

    @property
    def prompts_only(self) -> bool:
        """Whether traces need only prompts: the student writes whole completions, and all of them."""
        return self.writes_all and isinstance(self.rollouts, StudentRollouts) and not self.rollouts.replays

    def student_signals(self, term: Term) -> frozenset[str]:
        """Names of the per-token signals that a term's weight needs of the student in training."""
        return frozenset(
            name
            for name in signals(term.token_weight) & SIGNALS.keys()
            if SIGNALS[name].role == "student" and SIGNALS[name].shape == "token"
        )

    def made_inline(self, name: str) -> bool:
        """Whether a term's weights can be computed token by token inside the chunk loop."""
        whole = name == "main" and self.control in ("shuffled", "by_position")
        return is_inline(self.terms[name].token_weight) and not whole

    @cached_property
    def precomputed_signals(self) -> set[str]:
        """The student's per-token signals that must be computed before the loss.

        They cost one more product with the student's output matrix.
        """
        return set().union(
            *(self.student_signals(term) for name, term in self.terms.items() if not self.made_inline(name)),
            # A loss may need such a signal too.
            *(
                {
                    key
                    for key in signals(term.token_loss) & SIGNALS.keys()
                    if SIGNALS[key].role == "student" and SIGNALS[key].shape == "token"
                }
                for term in self.terms.values()
            ),
        )
