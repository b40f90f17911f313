"""Objects from nodes of the configuration."""

from collections.abc import Callable, Iterable
from typing import Any

import hydra.utils
from hydra.errors import InstantiationException
from omegaconf import DictConfig, ListConfig, Node, OmegaConf
from omegaconf.errors import InterpolationResolutionError

from distill.config.moved import new_name
from distill.errors import UserError, first_line

OptimizerFactory = Callable[[Iterable[Any]], Any]  # parameters → torch.optim.Optimizer


def build(node: Any, place: str) -> Any:
    """Instantiate a config node; what it refuses is the user's to mend."""
    try:
        use_new_names(node)
        return hydra.utils.instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, UserError):
            raise cause from error
        if isinstance(cause, (ValueError, TypeError, ImportError, AttributeError)) or cause is error:
            raise UserError(f"{place}: {first_line(cause)}") from error
        raise


def use_new_names(node: Any) -> None:
    """Put today's names in place of the `_target_`s of earlier versions, at any depth, in a node as it is
    written: interpolations stay as they are."""
    if not isinstance(node, DictConfig | ListConfig) or node._is_none() or node._is_interpolation():
        return
    for key in node if isinstance(node, DictConfig) else range(len(node)):
        child = node._get_node(key)  # pyright: ignore[reportArgumentType]  a list's keys are numbers
        if key == "_target_" and isinstance(child, Node) and isinstance(name := child._value(), str):
            child._set_value(new_name(name))
        else:
            use_new_names(child)


def build_optimizer(node: Any) -> OptimizerFactory:
    """What makes the optimizer of parameters; a bad learning rate is found now, and not when training
    starts."""
    import torch  # not above: the command line is answered without it

    factory = build(node, "optimizer")
    try:
        factory([torch.nn.Parameter(torch.zeros(1))])
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"optimizer: {first_line(error)}") from error
    return factory


def plain(node: Any) -> Any:
    """A node of the configuration as lists, dicts and values; what is no node as it is."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """A configuration as plain values, with today's names for what moved and without Hydra's own part.

    Raises:
        UserError: what a value says when it is computed.
    """
    try:
        return renamed({str(key): plain(cfg[key]) for key in cfg if key != "hydra"})
    except InterpolationResolutionError as error:
        _, ours, sentence = first_line(error).partition("UserError raised while resolving interpolation: ")
        if ours:
            raise UserError(sentence) from error
        raise


def renamed(node: Any) -> Any:
    """Plain values with today's names in place of the `_target_`s of earlier versions, at any depth."""
    if isinstance(node, dict):
        return {
            key: new_name(value) if key == "_target_" and isinstance(value, str) else renamed(value)
            for key, value in node.items()
        }
    return [renamed(value) for value in node] if isinstance(node, list) else node
