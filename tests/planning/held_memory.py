"""Train as `train.py` does, and write the peak of bytes that torch's allocator gave out during training.

Started as `held_memory.py FILE overrides…`; each rank writes FILE with its number behind it."""

import json
import os
import sys
from pathlib import Path

import lightning
import torch
from torch import nn

from distill.config.overrides import check_overrides
from distill.models.language_model import LanguageModel, ModelSource
from distill.training.run import train

ROOT = Path(__file__).resolve().parents[2]
_MARK = 8191 * 3  # bytes of an allocation that nothing else makes


class MarkStart(lightning.Callback):
    """Leave a mark in the record of allocations where training begins."""

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        torch.empty(_MARK, dtype=torch.uint8)


def main(file: str, words: list[str]) -> None:
    load = ModelSource.load

    def load_into_memory(source: ModelSource) -> LanguageModel:
        lm = load(source)
        for parameter in lm.model.parameters():  # transformers leaves them in the mapped file
            parameter.data = parameter.data.clone()
        return lm

    ModelSource.load = load_into_memory
    cfg = check_overrides(ROOT / "conf", "train", words)
    del cfg._content["hydra"]  # pyright: ignore
    Path(cfg.dir).mkdir(parents=True, exist_ok=True)
    nn.Module.to  # noqa: B018
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as seen:
        train(cfg, [MarkStart()])
    held = peak = 0
    training = False
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            training = training or event.nbytes() == _MARK
            peak = max(peak, held) if training else 0
    Path(f"{file}.{os.environ.get('RANK', '0')}").write_text(json.dumps(peak))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
