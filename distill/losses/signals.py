"""The signals that token losses and token weights are made of: what each is, and which model it comes from.

A function asks for a signal by the name of a parameter. That declaration is the only one: it decides which
models are loaded, what is cached, and which combinations are refused."""

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
    """Something known about every completion token.

    Attributes:
        role: the model it comes from. `initial` is the student before training; `reference` and `pilot` are
            models of their own (`model.reference`, `model.pilot`).
        shape: `vocab`: log-probabilities over the vocabulary, which exist chunk by chunk only; `token`: one
            number a token, which can be cached; `step`: one number a reasoning step, which needs proposals
            while the student trains (`distill.objective.step_values`).
        meaning: in words.
    """

    role: Role
    shape: Literal["vocab", "token", "step"]
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
}
# What a function may ask for beside, and no model gives. Where the teacher's tokens are others than the
# student's: `same_token`, whether both wrote the same piece of text; `shared_ids`, [2, shared] the tokens
# that both vocabularies have.
GIVEN = {"labels", "mask", "progress", "same_token", "shared_ids"}


@dataclass(frozen=True)
class Properties:
    """What is known of a token loss or weight beyond its signature.

    Attributes:
        needs: for a function with optional signals (`= None`): takes its other parameters and names the
            signals that it asks for then. Signals without a default need no declaration.
        inline: for a weight: takes its other parameters and says whether it is made of its own token's
            signals and no other's, so that it can be made inside the chunk loop.
        closed_form: what gives a loss together with its gradient (`distill.losses.closed_forms`). A loss that
            is an object has it as a method of this name.
        from_samples: what takes a loss's place where the teacher's distribution is known by samples alone.
        on_policy_only: a loss that is right on what the student wrote itself, and wrong on the data's
            completions.
        across_vocabularies: a loss whose teacher may have another vocabulary than the student.
    """

    needs: Callable[..., set[str]] = lambda **_: set()
    inline: Callable[..., bool] = lambda **_: False
    closed_form: Callable[..., Any] | None = None
    from_samples: Callable[..., Any] | None = None
    on_policy_only: bool = False
    across_vocabularies: bool = False


# Every loss and weight that has any, ours and users'; entered by `@properties(...)` where it is defined.
PROPERTIES: dict[Callable[..., Any], Properties] = {}
_NONE = Properties()


def properties(**declared: Any) -> Callable[[Function], Function]:
    """Declare a token loss's or weight's `Properties`, by their names."""

    def declare(function: Function) -> Function:
        PROPERTIES[function] = Properties(**declared)
        return function

    return declare


def properties_of(function: Callable[..., Any]) -> Properties:
    """A loss's or a weight's properties, looked for behind partial applications and decorators."""
    function = unbound(function)
    while not (isinstance(function, Hashable) and function in PROPERTIES):
        wrapped = getattr(function, "__wrapped__", None)
        if wrapped is None:
            return PROPERTIES.get(type(function), _NONE)
        function = wrapped
    return PROPERTIES[function]


def is_inline(function: Callable[..., Any]) -> bool:
    """Whether a weight, with the parameters it is bound to, is made of its own token's signals alone."""
    return properties_of(function).inline(**bound_parameters(function))


def why_not_from(source: Source, function: Callable[..., Any]) -> str | None:
    """Why a loss cannot have the teacher's distribution from there, in words; None: it can, or needs none.

    Live and as hidden states it is whole, which does for all. The k likeliest tokens do for what compares two
    distributions and nothing else, samples for expectations over the teacher's tokens.
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
    """The function itself, behind partial applications, as Hydra makes them."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def plain_partial(function: Callable[..., Any]) -> Callable[..., Any]:
    """A partial application as Python has it. Hydra's own (since 1.4) hashes its policy at every call, which
    takes longer than a weight; it has asked the policy when it made it."""
    if not isinstance(function, functools.partial) or type(function) is functools.partial:
        return function
    return functools.partial(plain_partial(function.func), *function.args, **function.keywords)


def bound_parameters(function: Callable[..., Any]) -> dict[str, Any]:
    """What partial applications have set."""
    found: dict[str, Any] = {}
    while isinstance(function, functools.partial):
        found = {**function.keywords, **found}
        function = function.func
    return found


def name_of(function: Callable[..., Any]) -> str:
    """A loss's or a weight's name, also of one that is an object."""
    function = unbound(function)
    return getattr(function, "__name__", type(function).__name__)


def signals(function: Callable[..., Any]) -> set[str]:
    """The inputs that a token loss or weight asks for, by the names of its parameters.

    Those are the positional parameters without a default, and what its property `needs` adds. Partial
    applications, as Hydra makes them, are looked through.
    """
    bound = bound_parameters(function)
    required = _without_default(inspect.unwrap(unbound(function))) - bound.keys()
    return {*required, *properties_of(function).needs(**bound)}


@functools.lru_cache(maxsize=256)
def parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """A function's parameters, read once: a training step asks for them some ten times."""
    return inspect.signature(function).parameters


@functools.lru_cache(maxsize=256)
def _without_default(function: Callable[..., Any]) -> frozenset[str]:
    found = parameters(function).items()
    return frozenset(name for name, one in found if one.default is inspect.Parameter.empty)
