"""Objects from nodes of the configuration."""

from collections.abc import Callable, Iterable
from typing import Any

import hydra
import torch
from hydra.errors import InstantiationException
from omegaconf import OmegaConf

from distill.errors import UserError, first_line

OptimizerFactory = Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]


def build(node: Any, place: str) -> Any:
    """Instantiate a config node; what it refuses is the user's to mend."""
    try:
        return hydra.utils.instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, UserError):
            raise cause from error
        if isinstance(cause, (ValueError, TypeError, ImportError, AttributeError)) or cause is error:
            raise UserError(f"{place}: {first_line(cause)}") from error
        raise


def build_optimizer(node: Any) -> OptimizerFactory:
    """What makes the optimizer of parameters; a bad learning rate is found now, and not when training
    starts."""
    factory = build(node, "optimizer")
    try:
        factory([torch.nn.Parameter(torch.zeros(1))])
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"optimizer: {first_line(error)}") from error
    return factory


def plain(node: Any) -> Any:
    """A node of the configuration as lists, dicts and values; what is no node as it is."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
