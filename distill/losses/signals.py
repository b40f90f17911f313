"""Signals: inputs of token losses and token weights, and the models that they come from.

A function declares that it needs a signal by the name of a parameter. These declarations decide which models
are loaded, what is cached, and which combinations are rejected.
"""

import functools
import inspect
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

Role = Literal["student", "teacher", "initial", "reference", "pilot"]
ROLES: tuple[Role, ...] = get_args(Role)
Source = Literal["live", "hidden_states", "top_k", "samples"]
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Signal:
    """A value or distribution for every completion token.

    Attributes:
        role: the model that it comes from. `initial` is the student before training; `reference` and `pilot`
            are separate models (`model.reference`, `model.pilot`).
        shape: `vocab`: log-probabilities over the vocabulary, computed chunk by chunk; `token`: one number
            per token, can be cached; `step`: one number per reasoning step, computed during training from
            proposed reasoning steps (`distill.objective.step_values`); `reward`: one number per completion of
            the student, from its grader (`distill.objective.rewards`); `rollout`: one number per token of
            the student's completions, noted when they were written; `problem`: one number per problem,
            known before training.
        meaning: description.
    """

    role: Role
    shape: Literal["vocab", "token", "step", "reward", "rollout", "problem"]
    meaning: str


SIGNALS: dict[str, Signal] = {
    "log_q": Signal("student", "vocab", "the student's distribution"),
    "log_p": Signal("teacher", "vocab", "the teacher's distribution"),
    "log_r": Signal("reference", "vocab", "the reference model's distribution"),
    "student_logprobs": Signal("student", "token", "log-probs by the student in training"),
    "student_entropy": Signal("student", "token", "entropy of the student's 20 likeliest tokens"),
    "teacher_logprobs": Signal("teacher", "token", "log-probs by the teacher at temperature 1"),
    "sampler_logprobs": Signal("teacher", "token", "log-probs under the distribution really sampled from"),
    "initial_logprobs": Signal("initial", "token", "log-probs by the student before training"),
    "reference_logprobs": Signal("reference", "token", "log-probs by the reference model"),
    "pilot_logprobs": Signal("pilot", "token", "log-probs by the pilot model"),
    "student_step_value": Signal("teacher", "step", "what the student's next step is worth"),
    "teacher_step_value": Signal("teacher", "step", "what the teacher's next step is worth"),
    "teacher_success": Signal("teacher", "problem", "share of the teacher's own answers that are right"),
    "reward": Signal("student", "reward", "the reward of the student's completion"),
    "group_reward": Signal("student", "reward", "mean reward of the problem's completions"),
    "group_deviation": Signal("student", "reward", "standard deviation of these rewards"),
    "old_logprobs": Signal("student", "rollout", "log-probs by the student that wrote the completion"),
}
# Inputs that do not come from a model. For a teacher with another tokenizer: `same_token`, whether both
# models' tokens are the same text; `shared_ids`, [2, shared] ids of the tokens in both vocabularies; `spans`,
# for each token the index of its span's first token, -1 without a span. For a loss: `weight`, the weight that
# it will be multiplied by.
GIVEN = {"labels", "mask", "progress", "same_token", "shared_ids", "spans", "weight"}


@dataclass(frozen=True)
class Properties:
    """Properties of a token loss or weight that its signature does not tell.

    Attributes:
        needs: for a function with optional signals (`= None`): given the function's other parameters, the
            names of the optional signals that it needs. Signals without a default need no declaration.
        inline: for a weight: given its other parameters, whether a token's weight depends only on that
            token's signals, so that it can be computed inside the chunk loop.
        closed_form: function for loss and gradient together (`distill.losses.closed_forms`). A loss that is
            an object has it as a method of this name.
        from_samples: function that estimates the loss if the teacher's distribution is cached as samples.
        on_policy_only: whether the loss is valid only on the student's own completions.
        signed: for a weight: whether it is as often negative as positive, so that its sum divides nothing.
        across_vocabularies: whether the teacher's vocabulary may differ from the student's.
    """

    needs: Callable[..., set[str]] = lambda **_: set()
    inline: Callable[..., bool] = lambda **_: False
    closed_form: Callable[..., Any] | None = None
    from_samples: Callable[..., Any] | None = None
    on_policy_only: bool = False
    signed: bool = False
    across_vocabularies: bool = False


# All losses and weights with properties, including users' own; `@properties(...)` adds them.
PROPERTIES: dict[Callable[..., Any], Properties] = {}
_NONE = Properties()


def properties(**declared: Any) -> Callable[[Function], Function]:
    """Decorator that declares the `Properties` of a token loss or weight."""

    def declare(function: Function) -> Function:
        PROPERTIES[function] = Properties(**declared)
        return function

    return declare


def properties_of(function: Callable[..., Any]) -> Properties:
    """Properties of a loss or weight; looks through `functools.partial` and decorators."""
    function = unbound(function)
    while not (isinstance(function, Hashable) and function in PROPERTIES):
        wrapped = getattr(function, "__wrapped__", None)
        if wrapped is None:
            return PROPERTIES.get(type(function), _NONE)
        function = wrapped
    return PROPERTIES[function]


def is_inline(function: Callable[..., Any]) -> bool:
    """Whether a weight, with its bound parameters, depends only on each token's own signals."""
    return properties_of(function).inline(**bound_parameters(function))


def why_not_from(source: Source, function: Callable[..., Any]) -> str | None:
    """Why a loss cannot use the teacher's distribution from this source; None if it can or does not need it.

    `live` and `hidden_states` give the whole distribution, which works for all losses. `top_k` works for
    losses between two distributions only, `samples` for expectations over the teacher's tokens.
    """
    asked = signals(function)
    if "log_p" not in asked or source in ("live", "hidden_states"):
        return None
    if properties_of(function).across_vocabularies:
        return "tokens of the teacher's are kept, which another vocabulary than the student's may have"
    if source == "samples" and properties_of(function).from_samples is None:
        return "samples estimate an expectation over the teacher's tokens, as forward_kl alone is one"
    if others := asked & {"labels", "log_r"}:
        return f"it asks for {' and '.join(sorted(others))} too, whose tokens need not be among those kept"
    return None


def unbound(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function itself, without `functools.partial` wrappers such as Hydra's."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def plain_partial(function: Callable[..., Any]) -> Callable[..., Any]:
    """Replace a partial of Hydra's own by `functools.partial`.

    Hydra's hashes its security policy at every call, which takes longer than a weight or grading a short
    answer. The policy has been checked when Hydra made the partial.
    """
    if not isinstance(function, functools.partial) or type(function) is functools.partial:
        return function
    return functools.partial(plain_partial(function.func), *function.args, **function.keywords)


def bound_parameters(function: Callable[..., Any]) -> dict[str, Any]:
    """Keyword arguments set by `functools.partial` wrappers."""
    found: dict[str, Any] = {}
    while isinstance(function, functools.partial):
        found = {**function.keywords, **found}
        function = function.func
    return found


def name_of(function: Callable[..., Any]) -> str:
    """Name of a loss or weight; the class name if it is an object."""
    function = unbound(function)
    return getattr(function, "__name__", type(function).__name__)


def signals(function: Callable[..., Any]) -> set[str]:
    """Names of the inputs that a token loss or weight needs.

    These are the parameters without a default, and those that its property `needs` returns. Looks through
    `functools.partial`.
    """
    bound = bound_parameters(function)
    required = _without_default(inspect.unwrap(unbound(function))) - bound.keys()
    return {*required, *properties_of(function).needs(**bound)}


@functools.lru_cache(maxsize=256)
def parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """A function's parameters; cached, because a training step reads them about ten times."""
    return inspect.signature(function).parameters


@functools.lru_cache(maxsize=256)
def _without_default(function: Callable[..., Any]) -> frozenset[str]:
    found = parameters(function).items()
    return frozenset(name for name, one in found if one.default is inspect.Parameter.empty)
