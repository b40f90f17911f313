#!/usr/bin/env bash
# One would guess: Trainer.fit runs a callback's on_train_start and on_train_end as a pair around the training, inside
# of on_fit_start and on_fit_end, even if no step is left to do.
# What happens: when fit resumes from a checkpoint whose global step is max_steps, the fit loop returns before
# on_train_start. on_fit_start and on_fit_end run, on_train_start and on_train_end do not.
# Why it matters: a job that is restarted after its last step was saved does not write what on_train_end writes (the
# exported model, the summary), and what on_fit_end reads from on_train_start is missing.
# Source: lightning/pytorch/loops/fit_loop.py, _FitLoop.run, which returns at once if skip is true.
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
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
print("lightning", lightning.__version__, "torch", torch.__version__)
quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class Hooks(Callback):
    def __init__(self):
        self.seen = []

    def on_fit_start(self, *_):
        self.seen.append("on_fit_start")

    def on_train_start(self, *_):
        self.seen.append("on_train_start")

    def on_train_end(self, *_):
        self.seen.append("on_train_end")

    def on_fit_end(self, *_):
        self.seen.append("on_fit_end")


def fit(max_steps, ckpt_path=None):
    hooks = Hooks()
    trainer = Trainer(max_steps=max_steps, accelerator="cpu", callbacks=[hooks], limit_val_batches=0, **quiet)
    trainer.fit(BoringModel(), ckpt_path=ckpt_path)
    print("max_steps", max_steps, "from", ckpt_path, "|", *hooks.seen)
    return trainer, hooks.seen


pair = ["on_fit_start", "on_train_start", "on_train_end", "on_fit_end"]
trainer, seen = fit(2)
assert seen == pair
trainer.save_checkpoint("two.ckpt")
assert fit(3, "two.ckpt")[1] == pair
assert fit(2, "two.ckpt")[1] == ["on_fit_start", "on_fit_end"]
EOF
