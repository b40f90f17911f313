"""Train as `train.py` does, and write how many bytes torch's allocator has given out at the steps' peak.

Started as `held_memory.py FILE overrides…`; each rank writes FILE with its number behind it."""

import json
import os
import sys
from pathlib import Path

import lightning
import torch

from distill.models.language_model import LanguageModel, ModelSource
from distill.training.run import train
from distill.training.setup import Setup

_MARK = 8191 * 3  # bytes of an allocation that nothing else makes


class Marks(lightning.Callback):
    """Leave marks in the record of allocations: before the first step, and after the last one."""

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        torch.empty(_MARK, dtype=torch.uint8)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        torch.empty(_MARK, dtype=torch.uint8)


def main(file: str, words: list[str]) -> None:
    load = ModelSource.load

    def load_into_memory(source: ModelSource, cache: Path | None = None) -> LanguageModel:
        lm = load(source, cache)
        for parameter in lm.model.parameters():  # transformers leaves them in the mapped file
            parameter.data = parameter.data.clone()
        return lm

    ModelSource.load = load_into_memory
    setup = Setup.from_overrides(words)
    setup.folder.mkdir(parents=True, exist_ok=True)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as seen:
        train(setup, [Marks()])
    assert seen.profiler is not None
    assert seen.profiler.kineto_results is not None
    held = peak = marks = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            marks += event.nbytes() == _MARK
            peak = max(peak, held) if marks == 1 else peak
    Path(f"{file}.{os.environ.get('RANK', '0')}").write_text(json.dumps(peak))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
