"""The signals that token losses and token weights are made of: what each is, and which model it comes from.

A function asks for a signal by the name of a parameter. That declaration is the only one: it decides which
models are loaded, what is cached, and which combinations are refused."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

Role = Literal["student", "teacher", "initial", "reference", "pilot"]
ROLES: tuple[Role, ...] = get_args(Role)
Source = Literal["live", "hidden_states", "top_k", "samples"]
Function = TypeVar("Function", bound=Callable[..., Any])
_RULE, _ON_POLICY, _ACROSS = "__needs__", "__on_policy_only__", "__across_vocabularies__"
_FROM_SAMPLES, _OF_THE_TOKEN = "__from_samples__", "__of_the_token__"


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


def needs(rule: Callable[..., set[str]]) -> Callable[[Function], Function]:
    """Declare signals that depend on a function's other parameters: `rule` takes them and names the signals.

    Only for functions whose signals are optional (`= None`); the others need no declaration but their
    signature."""

    def declare(function: Function) -> Function:
        setattr(function, _RULE, rule)
        return function

    return declare


def on_policy_only(function: Function) -> Function:
    """Mark a loss that is right on what the student wrote itself, and wrong on the data's completions."""
    setattr(function, _ON_POLICY, True)
    return function


def is_on_policy_only(function: Callable[..., Any]) -> bool:
    return getattr(unbound(function), _ON_POLICY, False)


def across_vocabularies(function: Function) -> Function:
    """Mark a loss whose teacher may have another vocabulary than the student."""
    setattr(function, _ACROSS, True)
    return function


def is_across_vocabularies(function: Callable[..., Any]) -> bool:
    return getattr(unbound(function), _ACROSS, False)


def of_the_token(rule: Callable[..., bool]) -> Callable[[Function], Function]:
    """Mark a weight that is made of its own token's signals and no other's, so that it can be made while the
    loss is: `rule` takes the function's other parameters and says whether it is."""

    def declare(function: Function) -> Function:
        setattr(function, _OF_THE_TOKEN, rule)
        return function

    return declare


def is_of_the_token(function: Callable[..., Any]) -> bool:
    rule = getattr(unbound(function), _OF_THE_TOKEN, None)
    return rule is not None and rule(**bound_parameters(function))


def from_samples(estimate: Callable[..., Any]) -> Callable[[Function], Function]:
    """Name what takes a loss's place where the teacher's distribution is known by samples alone."""

    def declare(function: Function) -> Function:
        setattr(function, _FROM_SAMPLES, estimate)
        return function

    return declare


def estimate_from_samples(function: Callable[..., Any]) -> Callable[..., Any] | None:
    return getattr(unbound(function), _FROM_SAMPLES, None)


def why_not_from(source: Source, function: Callable[..., Any]) -> str | None:
    """Why a loss cannot have the teacher's distribution from there, in words; None: it can, or needs none.

    Live and as hidden states it is whole, which does for all. The k likeliest tokens do for what compares two
    distributions and nothing else, samples for expectations over the teacher's tokens.
    """
    asked = signals(function)
    if "log_p" not in asked or source in ("live", "hidden_states"):
        return None
    if is_across_vocabularies(function):
        return "tokens of the teacher's are kept, which another vocabulary than the student's may have"
    if source == "samples" and estimate_from_samples(function) is None:
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

    Those are the positional parameters without a default, and what a `needs` rule adds. Partial applications,
    as Hydra makes them, are looked through.
    """
    bound, function = bound_parameters(function), unbound(function)
    function = inspect.unwrap(function, stop=lambda f: hasattr(f, _RULE))
    required = _without_default(function) - bound.keys()
    rule = getattr(function, _RULE, None)
    return {*required, *(rule(**bound) if rule else ())}


@functools.lru_cache(maxsize=256)
def parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """A function's parameters, read once: a training step asks for them some ten times."""
    return inspect.signature(function).parameters


@functools.lru_cache(maxsize=256)
def _without_default(function: Callable[..., Any]) -> frozenset[str]:
    found = parameters(function).items()
    return frozenset(name for name, one in found if one.default is inspect.Parameter.empty)
