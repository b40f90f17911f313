#!/usr/bin/env bash
# One would guess: accumulate_grad_batches=k with k small batches gives the gradient of one batch k times as large,
# under every strategy. DeepSpeedStrategy even says that it handles the accumulation (handles_gradient_accumulation).
# What happens: under DeepSpeedStrategy the loss is divided by k twice, and the gradient is 1/k of what it should be.
# Lightning's closure divides the loss for all strategies. Lightning also sets gradient_accumulation_steps to k in
# DeepSpeed's settings, and the engine's backward divides by that again, since its scale_wrt_gas is True by default.
# A strategy whose backward passes scale_wrt_gas=False has the right gradient.
# Why it matters: SGD takes steps k times too small. Adam hides it, so that the loss curve tells nothing. But
# gradient clipping then acts only on gradients k times as large as its limit, and the norms can't be compared with
# those of another strategy or another k.
# How it is shown: DeepSpeedStrategy refuses every device but a CUDA GPU. The subclass here leaves out that one check,
# and DeepSpeed runs on its own CPU accelerator. DeepSpeed compiles a small extension on first use (a C++ compiler).
# Source: lightning/pytorch/loops/optimization/automatic.py, ClosureResult.from_training_step_output;
# lightning/pytorch/plugins/precision/deepspeed.py, DeepSpeedPrecision.backward; deepspeed/runtime/engine.py,
# DeepSpeedEngine.backward. A comment of 2021 suspected it:
# https://github.com/Lightning-AI/pytorch-lightning/issues/6170
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 lightning==2.6.6 numpy==2.4.6 \
    ninja==1.13.2 wheel==0.48.0
"$work/venv/bin/pip" install --quiet --disable-pip-version-check deepspeed==0.19.8
cd "$work"
export PATH="$work/venv/bin:$PATH" TORCH_EXTENSIONS_DIR="$work/extensions" DS_ACCELERATOR=cpu
python -W ignore - <<'EOF'
import logging

import deepspeed
import lightning
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, SingleDeviceStrategy
from torch.utils.data import DataLoader, TensorDataset

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
print("lightning", lightning.__version__, "deepspeed", deepspeed.__version__, "torch", torch.__version__)
quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class OnCpu(DeepSpeedStrategy):
    def setup_environment(self):
        self.parallel_devices = [torch.device("cpu", 0)]
        super(DeepSpeedStrategy, self).setup_environment()


class DividedOnce(OnCpu):
    def backward(self, *args, **kwargs):
        return super().backward(*args, scale_wrt_gas=False, **kwargs)


class Regression(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(4, 1, bias=False)

    def training_step(self, batch, _):
        inputs, targets = batch
        return torch.nn.functional.mse_loss(self.linear(inputs), targets)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


torch.manual_seed(1)
rows = TensorDataset(torch.randn(8, 4), torch.randn(8, 1))


def gradient(strategy, batches):
    """The gradient of one step over all eight rows: what SGD with a learning rate of 1 takes from the weights."""
    model = Regression()
    before = model.linear.weight.detach().clone()
    one_device = {"accelerator": "cpu", "devices": 1, "strategy": strategy}
    trainer = Trainer(max_steps=1, accumulate_grad_batches=batches, **one_device, **quiet)
    trainer.fit(model, DataLoader(rows, batch_size=len(rows) // batches))
    assert trainer.global_step == 1
    return before - model.linear.weight.detach()


for batches in (1, 2, 4):
    right = gradient(SingleDeviceStrategy("cpu"), batches)
    shares = {}
    for strategy in (OnCpu(logging_level=logging.ERROR), DividedOnce(logging_level=logging.ERROR)):
        found = gradient(strategy, batches)
        shares[type(strategy).__name__] = float(found.norm() / right.norm())
        torch.testing.assert_close(found / found.norm(), right / right.norm())
    print(f"accumulate_grad_batches={batches}: gradient norm {right.norm():.4f} on a single device;", end=" ")
    print(f"DeepSpeedStrategy {shares['OnCpu']:.4f} of it, with scale_wrt_gas=False {shares['DividedOnce']:.4f}")
    assert abs(shares["OnCpu"] - 1 / batches) < 1e-4
    assert abs(shares["DividedOnce"] - 1) < 1e-4
EOF
