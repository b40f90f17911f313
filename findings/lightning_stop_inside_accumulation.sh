#!/usr/bin/env bash
# One would guess: a checkpoint that Trainer saves between the micro-batches of an optimizer step (OnExceptionCheckpoint,
# or a Timer whose time is up) is resumed with that step's gradient, or, as no gradient is in it, at the step's start.
# What happens: the checkpoint keeps the number of batches and no gradient. After resuming, the first optimizer step has
# only the micro-batches that were left of it, each still divided by accumulate_grad_batches: of four, one here, so that
# its gradient is a quarter. Nothing warns of it.
# Why it matters: a run that an error stopped goes on with a step of another size, on other data than the loss curve of an
# unbroken run says; with a sampler that is set by global_step all later batches are shifted, too.
# Source: lightning/pytorch/loops/training_epoch_loop.py, where _accumulated_batches_reached counts batch_progress, which
# state_dict saves; gradients are no part of dump_checkpoint (trainer/connectors/checkpoint_connector.py).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 lightning==2.6.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import logging

import lightning
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import OnExceptionCheckpoint

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
print("lightning", lightning.__version__, "torch", torch.__version__)


class Model(LightningModule):
    """Every micro-batch has the gradient 1, so that a whole step's is 1."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.fail_at, self.micro_batches, self.steps = fail_at, 0, []

    def training_step(self, batch, batch_idx):
        if batch_idx == self.fail_at:
            raise RuntimeError("a batch that cannot be computed")
        self.micro_batches += 1
        return self.weight * 1.0

    def on_before_optimizer_step(self, optimizer):
        self.steps.append((self.micro_batches, round(float(self.weight.grad), 4)))
        self.micro_batches = 0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.zeros(32, 1))


def fit(model, ckpt_path=None, callbacks=()):
    trainer = Trainer(
        max_steps=4, accumulate_grad_batches=4, accelerator="cpu", callbacks=list(callbacks), logger=False,
        enable_checkpointing=bool(callbacks), enable_progress_bar=False, enable_model_summary=False,
    )
    trainer.fit(model, ckpt_path=ckpt_path)
    return model.steps


whole = fit(Model())
print("unbroken: micro-batches and gradient of each step", whole)
try:
    fit(Model(fail_at=7), callbacks=[OnExceptionCheckpoint(".", "stopped")])
except RuntimeError as error:
    print("stopped in the fourth micro-batch of the second step:", error)
resumed = fit(Model(), "stopped.ckpt")
print("resumed: micro-batches and gradient of each step", resumed)
assert whole == [(4, 1.0)] * 4
assert resumed == [(1, 0.25), (4, 1.0), (4, 1.0)], resumed
EOF
