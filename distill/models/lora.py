"""LoRA (2106.09685): train small matrices beside frozen weights.

peft injects them into the model in place, so the rest of the code uses the same model object.
"""

import difflib
import hashlib
import re
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.errors import UserError, first_line
from distill.models.language_model import LanguageModel, ModelSource
from distill.models.lora_settings import ALL_LINEAR, Lora

_ADAPTER = "default"  # peft's default adapter name
_SAMPLES = 1024  # values per frozen tensor that go into the fingerprint
_WRAPPED = re.compile(r"(?:\.base_layer)+\.")  # peft keeps a layer inside its wrapper; several may be nested


def check_targets(lora: Lora, source: ModelSource) -> None:
    """Check `model.lora` before the model's weights are loaded or downloaded.

    Raises:
        UserError: no linear layer has such a name (suggests close matches), it is the output matrix, or peft
            cannot adapt a layer so that it can be saved.
    """
    model = source.skeleton()
    _check_names(lora, source, model)
    before = set(model.state_dict())
    try:
        _inject(model, lora, source)
    except Exception as error:  # peft raises several kinds for layers that it does not know
        experts = ", ".join(_experts(model))
        where = f" (it has experts: {experts})" if experts else ""
        remedy = "set model.lora.dropout=0, or name" if lora.dropout and experts else "name"
        raise UserError(
            f"model.lora does not work with {source.name!r}{where}: {first_line(error)}; {remedy} other "
            f"layers in model.lora.targets, such as [q_proj,v_proj], or train all weights "
            f"(model.lora.rank=null)"
        ) from error
    if unknown := [name for name, _ in _adapted_weights(model) if name not in before]:
        raise UserError(
            f"model.lora cannot be merged into {len(unknown)} layers of {source.name!r} ({unknown[0]}, ...): "
            f"name other layers in model.lora.targets, such as [q_proj,v_proj]"
        )


def _check_names(lora: Lora, source: ModelSource, model: Any) -> None:
    """Check that each target is the name of a linear layer other than the output matrix."""
    head = model.get_output_embeddings()
    linear = {
        name: module
        for name, module in model.named_modules()
        if _is_linear(module) and not _is_router(module)
    }
    names = list(dict.fromkeys(n.rsplit(".", 1)[-1] for n, module in linear.items() if module is not head))
    for target in lora.targets:
        found = [module for n, module in linear.items() if n == target or n.endswith(f".{target}")]
        if any(module is head for module in found):
            # The chunked head uses the output matrix directly and would ignore an adapter.
            raise UserError(
                f"model.lora.targets: {target} is the output matrix of {source.name!r}, which takes no "
                f"adapter (there are {', '.join(names)})"
            )
        if not found:
            near = difflib.get_close_matches(target, names, n=3, cutoff=0.5)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise UserError(
                f"model.lora.targets: {source.name!r} has no linear layer {target!r}{hint} (there are "
                f"{', '.join(names)})"
            )


def add_lora(lm: LanguageModel, lora: Lora, *, seed: int) -> None:
    """Add adapters to a model in place and freeze all other weights. Predictions do not change yet.

    The adapters are at least fp32 even with half-precision weights, so that small updates are not rounded
    away.

    Args:
        lm: the model, in eval mode.
        lora: LoRA settings.
        seed: for the initialization of A; the global random state is not changed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _inject(lm.model, lora, lm.source)
    for parameter in lm.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
    lm.model.eval()  # includes the adapters' dropout


def _inject(model: Any, lora: Lora, source: ModelSource) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets) or ALL_LINEAR,
        exclude_modules=[name for name, module in model.named_modules() if _is_router(module)] or None,
        task_type="CAUSAL_LM",
        base_model_name_or_path=source.location,
        revision=source.revision,
    )
    with warnings.catch_warnings():
        # peft then sets it itself (GPT-2), and looks for experts' weights among the modules first.
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False")
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys did not match")
        inject_adapter_in_model(config, model, _ADAPTER)


def _adapted_weights(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Each adapted weight's name in the plain model's state dict, with its adapter."""
    from peft.tuners.lora import LoraLayer

    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            # A weight of a mixture's experts is adapted by itself, without a linear layer around it.
            weight = getattr(layer, "parameter_name", "weight")
            yield _plain_name(f"{name}.{weight}"), layer


def _experts(model: nn.Module, adapted: Collection[str] = ()) -> list[str]:
    """The weights of mixtures of experts that have no adapter, each layer's number written as `*`."""
    weights = {_plain_name(name) for name, p in model.named_parameters() if p.ndim == 3 and "expert" in name}
    return sorted({re.sub(r"\.\d+\.", ".*.", name) for name in weights - set(adapted)})


def unadapted_experts(model: nn.Module) -> list[str]:
    """Names of the experts' weights that get no adapter, with `*` for each layer's number."""
    return _experts(model, {name for name, _ in _adapted_weights(model)})


def _plain_name(name: str) -> str:
    """A weight's name in the model without adapters."""
    return _WRAPPED.sub(".", name)


def is_adapted(model: nn.Module) -> bool:
    return hasattr(model, "peft_config")


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """Numbers of trained and of all parameters; a tied matrix counts once."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)


@torch.no_grad()
def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """State dict of a plain model with the adapters merged into the weights, rounded to their dtype.

    The model itself is not changed: merging and unmerging in place would alter its weights by rounding.
    """
    adapters = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    state: dict[str, Tensor] = {
        _plain_name(name): value for name, value in model.state_dict().items() if name not in adapters
    }
    for name, layer in _adapted_weights(model):
        # Move each to the CPU: a second copy of all weights may not fit on the device.
        merged = state[name] + layer.get_delta_weight(_ADAPTER)
        state[name] = merged.to(state[name].dtype).cpu()
    return state


def save_adapter(model: Any, folder: Path) -> None:
    """Save only the adapters, for `peft.PeftModel.from_pretrained(base, folder)`."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    # False because embeddings are frozen; with peft's default it would query the hub.
    state = get_peft_model_state_dict(model, adapter_name=_ADAPTER, save_embedding_layers=False)
    folder.mkdir(parents=True, exist_ok=True)
    named = {f"base_model.model.{name}": value.contiguous().cpu() for name, value in state.items()}
    save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = model.peft_config[_ADAPTER]
    training, config.inference_mode = config.inference_mode, True
    config.save_pretrained(str(folder))
    config.inference_mode = training


def frozen_names(module: nn.Module) -> set[str]:
    """Names of frozen parameters in the state dict; tied ones under each of their names."""
    named = module.named_parameters(remove_duplicate=False)
    return {name for name, parameter in named if not parameter.requires_grad}


def fingerprint(module: nn.Module) -> str:
    """Hash of samples of the frozen weights, to check on resuming that the base model is the same."""
    digest = hashlib.sha256()
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            values = parameter.detach().flatten()
            samples = values[:: max(1, len(values) // _SAMPLES)].double().cpu().numpy()
            digest.update(f"{_plain_name(name)}:{len(values)}:".encode() + samples.tobytes())
    return digest.hexdigest()[:32]


def _is_linear(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (nn.Linear, Conv1D))  # the same classes as peft's all-linear


@torch.no_grad()
def _is_router(module: nn.Module) -> bool:
    """Whether it is a subclass of a linear layer that returns more than a tensor, such as a mixture's router:
    peft would take it for a linear layer, and fail in training."""
    if not isinstance(module, nn.Linear) or type(module).forward is nn.Linear.forward:
        return False
    try:
        return not isinstance(module(module.weight[:1]), Tensor)
    except Exception:  # it wants other inputs than a linear layer
        return True
