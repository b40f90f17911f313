"""Strategy `fsdp`: FSDP2 through Lightning's ModelParallelStrategy, with sharded checkpoints in safetensors.

Lightning's own sharded checkpoints have a pickled index, which would run code of whoever wrote it. Here each
rank writes its shards of weights and optimizer state to a safetensors file, and everything else, which is
small, goes to `state.ckpt`. Such a checkpoint can be read by any number of ranks."""

from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter, load, save
from torch.optim import Optimizer

from distill.errors import UserError
from distill.io.checksums import note
from distill.runs.folder import SHARDS


class FsdpStrategy(ModelParallelStrategy):
    """Shard student, gradients and optimizer state over all ranks.

    `DistillModule.configure_model` shards the models, on the mesh `data_parallel`.

    Args:
        cpu_offload: whether the shares are in host memory, from where a layer is copied as it is gathered.
        timeout: how long a rank waits for the others.
    """

    def __init__(self, *, cpu_offload: bool = False, timeout: timedelta = default_pg_timeout) -> None:
        super().__init__(tensor_parallel_size=1, timeout=timeout)
        self.cpu_offload = cpu_offload

    def setup_environment(self) -> None:
        assert self.parallel_devices is not None
        self._data_parallel_size = len(self.parallel_devices) * self.num_nodes
        if self.cpu_offload and self.root_device.type == "cuda":  # norms and checkpoints read the shares
            self._process_group_backend = "cpu:gloo,cuda:nccl"
        super().setup_environment()

    def model_to_device(self) -> None:
        if not self.cpu_offload:
            super().model_to_device()
            return
        self._module._device = self.root_device  # of batches and losses; parameters stay where they are
        for module in self._module.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.to(self.root_device)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The weights; `save_checkpoint` writes each rank's shards."""
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """What belongs to no single weight; `save_checkpoint` adds the weights' own."""
        return {"param_groups": [_settings(group) for group in optimizer.param_groups]}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        path = Path(self.broadcast(filepath))
        wanted = checkpoint.pop("state_dict")
        tensors = dict(_weights(self._module, wanted)) | dict(
            _optimizer_tensors(self._module, self.optimizers)
        )
        shards = path.parent / SHARDS
        if self.is_global_zero:
            shards.mkdir(parents=True, exist_ok=True)
        self.barrier()
        save(tensors, storage_writer=HuggingFaceStorageWriter(str(shards), save_distributed=True))
        if self.is_global_zero:
            torch.save(checkpoint, path)
            note(*sorted(shards.glob("*.safetensors")))

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        path = Path(self.broadcast(checkpoint_path))
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        reader = HuggingFaceStorageReader(str(path.parent / SHARDS))
        kept = reader.read_metadata().state_dict_metadata
        tensors = {name: value for name, value in _weights(self._module) if name in kept}
        for optimizer, state in zip(self.optimizers, checkpoint.pop("optimizer_states"), strict=True):
            for group, settings in zip(optimizer.param_groups, state["param_groups"], strict=True):
                group.update(settings)
            tensors |= dict(_empty_state(self._module, optimizer, kept))
        if missing := kept.keys() - tensors.keys():
            raise UserError(
                f"{path.parent} holds the state of other weights than this student's ({min(missing)}): "
                f"resume with the model that it was trained with"
            )
        load(tensors, storage_reader=reader)
        return checkpoint | {"state_dict": {}}

    @property
    def _module(self) -> Any:
        assert self.lightning_module is not None
        return self.lightning_module


def load_weights(module: nn.Module, checkpoint: Path) -> None:
    """Read the weights of a sharded checkpoint into a sharded module, on all ranks together."""
    reader = HuggingFaceStorageReader(str(checkpoint / SHARDS))
    kept = reader.read_metadata().state_dict_metadata
    load({name: value for name, value in _weights(module) if name in kept}, storage_reader=reader)


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


def _weights(module: nn.Module, wanted: Mapping[str, Any] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Weights and persistent buffers by name, a tied one once; of the `wanted` names alone."""
    names = set(wanted if wanted is not None else module.state_dict())
    for name, parameter in module.named_parameters():
        if name in names:
            yield f"weights.{name}", parameter.detach()
    for name, buffer in module.named_buffers():
        if name in names:
            yield f"weights.{name}", buffer


def _optimizer_tensors(module: nn.Module, optimizers: list[Optimizer]) -> Iterator[tuple[str, Tensor]]:
    names: dict[Tensor, str] = {parameter: name for name, parameter in module.named_parameters()}
    for optimizer in optimizers:
        for parameter, state in optimizer.state.items():
            for field, value in state.items():
                if not isinstance(value, Tensor):
                    raise UserError(
                        f"optimizer={type(optimizer).__name__} keeps {field} as {type(value).__name__}, "
                        f"which a sharded checkpoint does not hold: take AdamW, or trainer.strategy=ddp"
                    )
                if value.ndim:
                    yield f"optimizer.{names[parameter]}.{field}", value
                else:  # Adam's step; safetensors of shards have at least one dimension
                    yield f"numbers.{names[parameter]}.{field}", value.view(1)


def _empty_state(
    module: nn.Module, optimizer: Optimizer, kept: Mapping[str, Any]
) -> Iterator[tuple[str, Tensor]]:
    """Make the optimizer's state as it was kept, without its values; yields where they belong."""
    for name, parameter in module.named_parameters():
        for kind in ("optimizer", "numbers"):
            prefix = f"{kind}.{name}."
            for key in sorted(key for key in kept if key.startswith(prefix)):
                dtype, field = kept[key].properties.dtype, key[len(prefix) :]
                value = torch.zeros_like(parameter, dtype=dtype) if kind == "optimizer" else torch.zeros(())
                optimizer.state[parameter][field] = value.to(dtype)
                yield key, optimizer.state[parameter][field].view(value.shape or (1,))
