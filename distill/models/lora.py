"""LoRA (2106.09685): train small matrices beside frozen weights.

peft injects them into the model in place, so the rest of the code uses the same model object.
"""

import difflib
import hashlib
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.errors import UserError
from distill.models.language_model import LanguageModel, ModelSource
from distill.models.lora_settings import ALL_LINEAR, Lora

_ADAPTER = "default"  # peft's default adapter name
_SAMPLES = 1024  # values per frozen tensor that go into the fingerprint


def check_targets(lora: Lora, source: ModelSource) -> None:
    """Check `model.lora.targets` before the model's weights are loaded or downloaded.

    Raises:
        UserError: no linear layer has such a name (suggests close matches), or it is the output matrix.
    """
    if not lora.targets:
        return
    model = source.skeleton()
    head = model.get_output_embeddings()
    linear = {name: module for name, module in model.named_modules() if _is_linear(module)}
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
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets) or ALL_LINEAR,
        task_type="CAUSAL_LM",
        base_model_name_or_path=lm.source.location,
        revision=lm.source.revision,
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "fan_in_fan_out is set to False"
        )  # peft then sets it itself (GPT-2)
        torch.manual_seed(seed)
        inject_adapter_in_model(config, lm.model, _ADAPTER)
    for parameter in lm.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
    lm.model.eval()  # includes the adapters' dropout


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
    from peft.tuners.lora import LoraLayer

    adapters = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    state: dict[str, Tensor] = {k: value for k, value in model.state_dict().items() if k not in adapters}
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        prefix = f"{name}.base_layer."
        for key in [key for key in state if key.startswith(prefix)]:
            state[f"{name}.{key.removeprefix(prefix)}"] = state.pop(key)
        weight = state[f"{name}.weight"]
        delta = layer.get_delta_weight(_ADAPTER)  # pyright: ignore[reportAttributeAccessIssue]
        # Move each to the CPU: a second copy of all weights may not fit on the device.
        state[f"{name}.weight"] = (weight + delta).to(weight.dtype).cpu()
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
            digest.update(f"{name.replace('.base_layer.', '.')}:{len(values)}:".encode() + samples.tobytes())
    return digest.hexdigest()[:32]


def _is_linear(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (nn.Linear, Conv1D))  # the same classes as peft's all-linear
