"""Strategy `deepspeed`: ZeRO-2 and ZeRO-3 (1910.02054) through Lightning's DeepSpeedStrategy.

DeepSpeed's engine owns the gradients: it sums, divides and clips them. The divisor of a step is known when
all micro-batches of all ranks are counted, so it reaches the engine as the loss scale of this one step: what
the engine divides by before it clips and steps.

DeepSpeed's own checkpoints are pickled, which would run code of whoever wrote them. Here they are those of a
run without DeepSpeed: whole weights and optimizer state, gathered by the first rank. Any number of ranks can
go on.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.precision.deepspeed import DeepSpeedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor, nn

BUCKET = 200_000_000  # gradients that are reduced together
LIVE = 1_000_000_000  # parameters of a ZeRO-3 student that are gathered at most


def zero_config(*, stage: int, offload_optimizer: bool, precision: str) -> dict[str, Any]:
    """DeepSpeed's configuration; Lightning adds accumulation and clipping from its own arguments.

    Args:
        stage: 2: ranks share gradients and optimizer state; 3: the student too.
        offload_optimizer: whether optimizer state and step are in host memory.
        precision: `trainer.precision`, resolved.
    """
    zero: dict[str, Any] = {
        "stage": stage,
        "reduce_bucket_size": BUCKET,
        "allgather_bucket_size": BUCKET,
        "stage3_max_live_parameters": LIVE,
    }
    if offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    config: dict[str, Any] = {
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # the run's own optimizer steps on the host, too
        "train_micro_batch_size_per_gpu": 1,  # of DeepSpeed's throughput log alone
        "gradient_clipping": 0.0,
        # Gradients are sums over tokens, not means: sum them over ranks and micro-batches in fp32.
        "communication_data_type": "fp32",
    }
    if precision.startswith("bf16"):
        config["bf16"] = {"enabled": True}
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


class ZeroPrecision(DeepSpeedPrecision):
    """Keeps batches as they are, and divides losses by the number of micro-batches once."""

    def convert_input(self, data: Any) -> Any:
        return data  # cached log-probs would be rounded to bf16

    def backward(self, tensor: Tensor, model: Any, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        # Lightning has divided the loss by the number of micro-batches; the engine would once more.
        super().backward(tensor, model, optimizer, *args, scale_wrt_gas=False, **kwargs)


class ZeroStrategy(DeepSpeedStrategy):
    """Share gradients and optimizer state over all ranks (ZeRO-2), or the student too (ZeRO-3).

    Args:
        config: of `zero_config`.
        timeout: how long a rank waits for the others.
    """

    def __init__(self, config: dict[str, Any], timeout: timedelta) -> None:
        super().__init__(config=config, timeout=timeout)
        self._divided = False

    def setup(self, trainer: Any) -> None:
        precision: Any = self.precision_plugin.precision
        self.precision_plugin = ZeroPrecision(precision)
        assert isinstance(self.config, dict)
        # Its collectives have newer names in torch; one warning each step would be all that is seen.
        warnings.filterwarnings("ignore", "`torch.distributed.* is deprecated", FutureWarning)
        self.config["gradient_clipping"] = float(trainer.gradient_clip_val or 0.0)
        super().setup(trainer)

    def init_deepspeed(self) -> None:
        assert self.model is not None
        self._initialize_deepspeed_train(self.model)

    @property
    def shares_student(self) -> bool:
        return self.zero_stage_3

    def divide(self, divisor: float) -> None:
        """Divide the summed gradient of this step, which the engine averages over ranks, by `divisor`."""
        self._zero.override_loss_scale(divisor)
        self._divided = True

    def optimizer_step(self, optimizer: Any, closure: Any, model: Any = None, **kwargs: Any) -> Any:
        found = super().optimizer_step(optimizer, closure, model, **kwargs)
        if self._divided:
            self._divided = False
            self._zero.override_loss_scale(1.0)  # it would multiply the next step's losses
            norm = self.deepspeed_engine.get_global_grad_norm()
            self._module.end_step(float("nan") if norm is None else float(norm))
        return found

    def whole(self, model: nn.Module) -> AbstractContextManager[None]:
        """Context in which the output matrix is there to be read."""
        from deepspeed.runtime.zero import GatheredParameters  # pyright: ignore[reportMissingImports]

        head: Any = model
        return GatheredParameters([head.get_output_embeddings().weight])

    @torch.no_grad()
    def whole_weights(
        self, model: nn.Module, device: torch.device | None = None, *, keep: bool = True
    ) -> dict[str, Tensor]:
        """As `distill.models.sharding.whole_weights`, with the optimizer's copies in fp32."""
        found = {}
        for name, parameter in model.named_parameters():
            value = _whole(parameter)
            if keep:
                found[name] = value.to(device) if device is not None else value
        return found

    @torch.no_grad()
    def set_weights(self, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Give the optimizer's copies the values, which `whole_weights` gives."""
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self._set(parameter, weights[name])

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole weights, on the first rank; the others take part, and get nothing."""
        found = self.whole_weights(self._module, torch.device("cpu"), keep=self.is_global_zero)
        if not self.is_global_zero:
            return {}
        names = {parameter: name for name, parameter in self._module.named_parameters()}
        tied = {
            name: found[names[parameter]]
            for name, parameter in self._module.named_parameters(remove_duplicate=False)
        }
        kept = self._module.state_dict()
        buffers = {name: value for name, value in self._module.named_buffers() if name in kept}
        return tied | buffers

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Whole state as torch's own optimizer has it, on the first rank."""
        from deepspeed.utils import safe_get_full_optimizer_state  # pyright: ignore[reportMissingImports]

        base = self._zero.optimizer
        fields, numbers = self._fields()
        state: dict[int, dict[str, Tensor]] = {}
        for number, parameter in enumerate(self._trained()):
            values = {}
            for field in fields:
                value = safe_get_full_optimizer_state(parameter, field)
                if self.is_global_zero:
                    values[field] = value.cpu()
            if fields and self.is_global_zero:
                state[number] = values | {field: value.clone() for field, value in numbers.items()}
        groups = [
            {key: value for key, value in group.items() if key != "params"} for group in base.param_groups
        ]
        return {"state": state, "param_groups": [groups[0] | {"params": list(range(len(self._trained())))}]}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        super(DeepSpeedStrategy, self).save_checkpoint(checkpoint, filepath, storage_options)

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return False  # the weights are read while the student is whole

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return torch.load(checkpoint_path, map_location="cpu", weights_only=True, mmap=True)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        self._module.load_state_dict(checkpoint["state_dict"], strict=strict)

    @torch.no_grad()
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        kept = checkpoint["optimizer_states"][0]
        base = self._zero.optimizer
        for group, settings in zip(base.param_groups, kept["param_groups"], strict=True):
            group.update({key: value for key, value in settings.items() if key != "params"})
        if not kept["state"]:
            return
        first = kept["state"][0]
        for flat in self._flats():  # what the first step would make
            base.state[flat] = {
                field: torch.zeros_like(flat) if value.ndim else value.clone()
                for field, value in first.items()
            }
        if not self.zero_stage_3:
            self._zero._lazy_init_hp_params_optimizer_state()
        for number, parameter in enumerate(self._trained()):
            for field, value in kept["state"][number].items():
                if value.ndim:
                    self._set(parameter, value, field)

    def _fields(self) -> tuple[list[str], dict[str, Tensor]]:
        """Names of the optimizer's state of each weight, and its numbers, the same for all; before the first
        step there are none."""
        state = self._zero.optimizer.state
        first: Mapping[str, Tensor] = next((state[flat] for flat in self._flats() if flat in state), {})
        return (
            [name for name, value in first.items() if value.ndim],
            {name: value.cpu() for name, value in first.items() if not value.ndim},
        )

    def _flats(self) -> Iterator[Tensor]:
        """This rank's shares of all weights, one after the other, in fp32."""
        zero = self._zero
        yield from (
            zero.fp32_partitioned_groups_flat if self.zero_stage_3 else zero.single_partition_of_fp32_groups
        )

    def _set(self, parameter: Any, value: Tensor, field: str | None = None) -> None:
        """Set this rank's share of a weight's fp32 copy, or of a field of its optimizer state."""
        if not self.zero_stage_3:
            parameter.set_full_hp_param(value, field)
            return
        # DeepSpeed's safe_set_full_* wants the ranks to divide the number of values.
        size = parameter.ds_tensor.ds_numel
        padded = nn.functional.pad(value.flatten(), (0, size * self.world_size - value.numel()))
        share = padded.narrow(0, size * self.global_rank, size)
        self._zero.set_local_hp_param(share, parameter, field)

    def _trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self._module.parameters() if parameter.requires_grad]

    @property
    def _zero(self) -> Any:
        return self.deepspeed_engine.optimizer

    @property
    def _module(self) -> Any:
        assert self.lightning_module is not None
        return self.lightning_module


def _whole(parameter: nn.Parameter) -> Tensor:
    from deepspeed.runtime.zero import GatheredParameters  # pyright: ignore[reportMissingImports]
    from deepspeed.utils import safe_get_full_fp32_param  # pyright: ignore[reportMissingImports]

    if parameter.requires_grad:
        return safe_get_full_fp32_param(parameter)
    with GatheredParameters([parameter]):
        return parameter.detach().clone()
