"""Which signals a token loss or a token weight needs: declared once, by its signature."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])
_RULE = "__needs__"


def needs(rule: Callable[..., set[str]]) -> Callable[[Function], Function]:
    """Declare signals that depend on a function's other parameters: `rule` takes them and names the signals.

    Only for functions whose signals are optional (`= None`); the others need no declaration but their
    signature."""

    def declare(function: Function) -> Function:
        setattr(function, _RULE, rule)
        return function

    return declare


def signals(function: Callable[..., Any]) -> set[str]:
    """The inputs that a token loss or weight asks for, by the names of its parameters.

    Those are the positional parameters without a default, and what a `needs` rule adds. Partial applications,
    as Hydra makes them, are looked through.
    """
    bound: dict[str, Any] = {}
    while isinstance(function, functools.partial):
        bound = {**function.keywords, **bound}
        function = function.func
    function = inspect.unwrap(function, stop=lambda f: hasattr(f, _RULE))
    required = {
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is inspect.Parameter.empty and name not in bound
    }
    rule = getattr(function, _RULE, None)
    return required | (rule(**bound) if rule else set())
