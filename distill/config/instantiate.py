"""Instantiate objects from nodes of the configuration."""

import importlib.util
from collections.abc import Callable, Iterable
from typing import Any

import hydra.utils
from hydra.errors import InstantiationException
from omegaconf import DictConfig, ListConfig, Node, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from distill.config.kinds import check_kinds
from distill.config.moved import new_name
from distill.errors import UserError, first_line
from distill.io.secrets import without_secrets

OptimizerFactory = Callable[[Iterable[Any]], Any]  # parameters → torch.optim.Optimizer


def build(node: Any, place: str) -> Any:
    """Instantiate a config node.

    Args:
        node: with a `_target_`.
        place: key of the node, for the error message.

    Raises:
        UserError: the target does not exist, or rejects its arguments, or an argument is of another kind
            than its annotation names.
    """
    if node is None:
        raise UserError(f"{place}: null is nothing to build: leave the key as it is, or name a _target_")
    try:
        use_new_names(node)
        built = hydra.utils.instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, UserError):
            raise cause from error
        if not isinstance(cause, ValueError):  # which says what is wrong; others do not name the key
            check_kinds(node, place)
        if isinstance(cause, (ValueError, TypeError, ImportError, AttributeError)) or cause is error:
            raise UserError(_at(place, first_line(cause))) from error
        raise
    except (TypeError, ValueError, OmegaConfBaseException) as error:  # of the node itself
        check_kinds(node, place)
        raise UserError(_at(place, first_line(error))) from error
    check_kinds(node, place)
    return built


def _at(place: str, sentence: str) -> str:
    """The sentence behind the key that it is about, unless it begins with that key itself."""
    return sentence if sentence.startswith(f"{place}.") else f"{place}: {sentence}"


def use_new_names(node: Any) -> None:
    """Replace the `_target_`s of earlier versions by the current names, in place and at any depth.

    Interpolations are not resolved.
    """
    if not isinstance(node, DictConfig | ListConfig) or node._is_none() or node._is_interpolation():
        return
    for key in node if isinstance(node, DictConfig) else range(len(node)):
        child = node._get_node(key)  # pyright: ignore[reportArgumentType]  a list's keys are numbers
        if key == "_target_" and isinstance(child, Node) and isinstance(name := child._value(), str):
            child._set_value(new_name(name))
        else:
            use_new_names(child)


def build_optimizer(node: Any) -> OptimizerFactory:
    """A function from parameters to an optimizer. It is tried on one parameter, so that a bad learning rate
    is reported now and not when training starts."""
    import torch  # not at the top: the command line is checked without torch

    package = str(node.get("_target_") or "").partition(".")[0]
    if package == "torchao":
        raise UserError(
            f"optimizer._target_={node._target_} has a state that cannot be read back from a checkpoint: "
            f"take bitsandbytes.optim.AdamW8bit"
        )
    if package == "bitsandbytes" and importlib.util.find_spec(package) is None:
        raise UserError(
            f"optimizer._target_={node._target_} is of the package {package}, which is not installed: "
            f'pip install -e ".[bitsandbytes]"'
        )
    factory = build(node, "optimizer")
    try:
        factory([torch.nn.Parameter(torch.zeros(1))])
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"optimizer: {first_line(error)}") from error
    return factory


def plain(node: Any) -> Any:
    """A config node as plain lists, dicts and values; anything else unchanged."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def as_yaml(cfg: DictConfig) -> str:
    """A configuration as a run's or trace set's `config.yaml`: interpolations resolved, no password in it."""
    return without_secrets(OmegaConf.to_yaml(cfg, resolve=True))


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """A configuration as plain values, with current `_target_` names and without Hydra's own part.

    Raises:
        UserError: an interpolation such as `${scaled:...}` rejects its arguments.
    """
    try:
        return renamed({str(key): plain(cfg[key]) for key in cfg if key != "hydra"})
    except InterpolationResolutionError as error:
        _, ours, sentence = first_line(error).partition("UserError raised while resolving interpolation: ")
        if ours:
            raise UserError(sentence) from error
        raise


def renamed(node: Any) -> Any:
    """Plain values with the `_target_`s of earlier versions replaced by the current names, at any depth."""
    if isinstance(node, dict):
        return {
            key: new_name(value) if key == "_target_" and isinstance(value, str) else renamed(value)
            for key, value in node.items()
        }
    return [renamed(value) for value in node] if isinstance(node, list) else node
