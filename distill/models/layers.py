"""The layers of a model."""

from torch import nn


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The model's layers, as it names their classes itself; empty if it names none."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names]
