"""Optimizer steps in the backward pass, weight by weight (torchtune's `optimizer_in_bwd`)."""

import functools
from collections.abc import Sequence
from typing import Any

import lightning
import torch
from torch import Tensor


def multiply(gradients: Sequence[Tensor], factor: float) -> None:
    """Multiply gradients by a number, in place, each product rounded once to the gradient's own precision.

    For bf16, `torch._foreach_mul_` on a CPU first rounds the number itself, by up to 0.4 %, alike for all.
    """
    if any(gradient.device.type == "cpu" for gradient in gradients):
        for gradient in gradients:
            gradient.mul_(factor)
    else:
        torch._foreach_mul_(list(gradients), factor)


class StepsInBackward:
    """Step each weight as soon as the backward pass has its gradient, and free the gradient.

    Autograd completes a weight's gradient after everything that reads the weight, so that it may change then.
    The numbers are those of one step of all weights after the backward pass: so is the optimizer's state,
    which stays in the one optimizer.

    Args:
        optimizer: treats each weight by itself, without a closure (`strategy_checks.check_in_backward`).
        clip_value: largest absolute value of the divided gradient's numbers; None: it is not clipped.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, clip_value: float | None = None) -> None:
        self._optimizer = optimizer
        self._clip_value = clip_value
        self._factor: float | None = None  # None: outside a training step, whose gradients are left alone
        self._norms: dict[Tensor, Tensor] = {}
        for number, group in enumerate(optimizer.param_groups):
            for parameter in group["params"]:
                parameter.register_post_accumulate_grad_hook(functools.partial(self._step, number))

    def begin(self, factor: float) -> None:
        """Step in the backward pass that follows.

        Args:
            factor: by which gradients are multiplied before the step.
        """
        self._factor = factor
        self._norms.clear()

    def end(self) -> Tensor:
        """Leave the gradients of later backward passes alone.

        Returns:
            The norm of the gradient, before it was multiplied and clipped.
        """
        self._factor = None
        # In the optimizer's order, as torch.nn.utils.get_total_norm adds them up.
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        norms = [self._norms[p] for p in parameters if p in self._norms]
        self._norms.clear()
        return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())

    def _step(self, number: int, parameter: Tensor) -> None:
        """Step a weight of a group of the optimizer."""
        if self._factor is None or parameter.grad is None:
            return
        # The kernels of a step after the backward pass: others round differently in bf16.
        self._norms[parameter] = torch._foreach_norm([parameter.grad])[0]
        multiply([parameter.grad], self._factor)
        if self._clip_value:
            parameter.grad.clamp_(-self._clip_value, self._clip_value)
        groups = self._optimizer.param_groups
        # A step looks at all weights of its groups, which would take the square of their number.
        self._optimizer.param_groups = [{**groups[number], "params": [parameter]}]
        try:
            self._optimizer.step()
        finally:
            self._optimizer.param_groups = groups
        parameter.grad = None


class OptimizerInBackward(lightning.Callback):
    """Have a `DistillModule` step its weights in the backward pass."""

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        by_value = trainer.gradient_clip_algorithm == "value"
        clip = trainer.gradient_clip_val if by_value else None
        pl_module.in_backward = StepsInBackward(trainer.optimizers[0], clip and float(clip))
