"""Our contestants: real runs of `train.py`, starting from the configuration, with a meter as a callback."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import torch

from distill.bench.inputs import Row, batch_rows, draw_rows, model_folder, sampled_rows, write_traces
from distill.bench.measurement import Setting
from distill.bench.meter import Measured, Meter, WholeRun
from distill.config.console import quiet
from distill.config.paths import CONFIG
from distill.config.words import quoted
from distill.data.batch import collate
from distill.data.readers import read_examples
from distill.errors import UserError
from distill.losses.signals import Source
from distill.models.find import find_model
from distill.models.language_model import enable_gradient_checkpointing
from distill.models.lazy import LazyModel
from distill.teacher.distribution import TeacherDistribution
from distill.teacher.distribution_cache import cache_distributions
from distill.training import run as training
from distill.training.datamodule import DistillDataModule
from distill.training.module import DistillModule
from distill.training.recipe import TraceRecipe
from distill.training.setup import Setup

LEARNING_RATE = 1.0e-5  # same for all contestants: constant, AdamW with default betas, no weight decay
CLIP = 1.0


def train(setting: Setting, meter: Meter, loss: str, overrides: Sequence[str] = ()) -> None:
    """Measure a run that repeats one batch; `loss` is a preset in `conf/loss/`."""
    meter.packages.add("lightning")
    words = [f"loss={loss}", f"trainer.max_steps={meter.wanted}", *_layout("padded"), *overrides]
    _run(setting, meter, words, batch_rows(setting), batch_size=setting.rows)


def epoch(setting: Setting, meter: Meter, layout: str, batch_size: int = 16, samples: int = 1) -> None:
    """Measure one epoch over traces of realistic lengths with a `data.layout`; it counts as one step.

    Args:
        setting: setting of the measurement.
        meter: meter to report to.
        layout: how a micro-batch is laid out.
        batch_size: traces per optimizer step.
        samples: traces of each prompt.
    """
    meter.packages.add("lightning")
    words = ["loss=sft", "data.epochs=1", *_layout(layout)]
    rows = sampled_rows(setting, samples)
    own = sum(len(completion) for _, completion in rows)
    apart, together = (sum(len(prompt) for prompt, _ in some) + own for some in (rows, rows[::samples]))
    meter.figures["bound"] = apart / together  # what reading each prompt once can save, by tokens
    _run(setting, WholeRun(meter), words, rows, batch_size=batch_size)


def _layout(name: str) -> list[str]:
    """The override for a layout; none for `padded` if this version has no other layout.

    Raises:
        UserError: this version does not have the layout.
    """
    if "\nlayout:" in (CONFIG / "shared" / "recipe.yaml").read_text(encoding="utf-8"):
        return [f"data.layout={name}"]
    if name == "padded":
        return []
    raise UserError(f"data.layout={name} is unknown to this version, which pads every batch")


def _run(
    setting: Setting, meter: Meter | WholeRun, words: Sequence[str], rows: Sequence[Row], batch_size: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        setup = set_up(setting, words, rows, batch_size, Path(folder))
        try:
            training.train(setup, [_Steps(meter)])
        except Measured:
            return
    raise RuntimeError("the run ended before its steps were measured")


def set_up(
    setting: Setting, words: Sequence[str], rows: Sequence[Row], batch_size: int, folder: Path
) -> Setup:
    """Set up a run on the given rows.

    Raises:
        UserError: this version does not support one of the overrides.
    """
    data = write_traces(setting, rows, folder / "traces.jsonl")
    student, teacher = (model_folder(setting, role) for role in ("student", "teacher"))
    return Setup.from_overrides(
        [
            "model=none",
            f"model.student={quoted(str(student))}",
            f"model.teacher={quoted(str(teacher))}",
            f"model.gradient_checkpointing={str(setting.gradient_checkpointing).lower()}",
            "data=traces",
            f"data.path={quoted(str(data))}",
            f"data.batch_size={batch_size}",
            f"data.max_new_tokens={setting.completion}",
            "benchmark=none",
            "logger=csv",
            "checkpoint.every=1000000000",
            f"trainer={'gpu' if setting.device == 'cuda' else 'cpu'}",
            f"trainer.precision={'bf16-mixed' if setting.device == 'cuda' else '32-true'}",
            "trainer.accumulate_grad_batches=1",
            f"trainer.gradient_clip_val={CLIP}",
            f"optimizer.lr={LEARNING_RATE}",
            "lr_scheduler.warmup_ratio=0",
            "lr_scheduler.decay=constant",
            f"seed={setting.seed}",
            f"dir={quoted(str(folder / 'run'))}",
            f"cache={quoted(str(Path(setting.inputs) / 'cache'))}",
            *words,
        ]
    )


class _Steps(lightning.Callback):
    """Callback that reports every optimizer step to the meter and ends the run before final writes."""

    def __init__(self, meter: Meter | WholeRun) -> None:
        self.meter = meter
        self.tokens = self.flops = 0.0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        module: DistillModule = pl_module
        self.meter.begin([module.student], [frozen.model for frozen in module.frozen.values()])

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        module: DistillModule = pl_module
        totals = module.totals
        flops = totals["student_flops"] + totals["teacher_flops"]
        self.meter.figures["flops_per_step"] = flops - self.flops  # FLOPs of the matrix products
        self.meter.step(totals["last_loss"], round(totals["tokens"] - self.tokens))
        self.tokens, self.flops = totals["tokens"], flops
        if self.meter.done:
            raise Measured

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if isinstance(self.meter, WholeRun):
            self.meter.end()
        raise Measured


def loop(setting: Setting, meter: Meter, loss: str = "sft") -> None:
    """Measure the same steps in a plain loop without Lightning, metrics and logs: their minimum cost."""
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        rows = batch_rows(setting)
        setup = set_up(setting, [f"loss={loss}"], rows, setting.rows, Path(folder))
        lm = setup.student.load()
        traces = setup.recipe.build(lm, None, Path(folder))
    lm.model.to(setting.device).train()
    if setting.gradient_checkpointing:
        enable_gradient_checkpointing(lm)
    parameters = list(lm.model.parameters())
    optimizer = setup.optimizer(parameters)
    cuda = setting.device == "cuda"
    meter.begin([lm.model])
    while not meter.done:
        batch = collate(traces).to(setting.device)
        with torch.autocast(setting.device, torch.bfloat16, enabled=cuda):
            head = lm.completion_head(batch.input_ids, batch.mask)
            found = setup.objective(head, batch.mask, batch.labels, {}, others={})
            mean = found.total / found.denominator
        optimizer.zero_grad()
        mean.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        meter.step(mean.item(), int(batch.mask.sum()))  # synchronizes once per step, as a run does


def make_cache(setting: Setting, meter: Meter, source: Source) -> None:
    """Measure caching the teacher's distributions for a batch: time, memory, and bytes on disk."""
    quiet()
    model = LazyModel(find_model(str(model_folder(setting, "teacher")), key="model.teacher"), setting.device)
    rows = batch_rows(setting)
    tokens = sum(len(completion) for _, completion in rows)
    with tempfile.TemporaryDirectory() as folder:
        data = write_traces(setting, rows, Path(folder) / "traces.jsonl")
        examples = read_examples(path=str(data), fields={"problem": "problem", "completion": "completion"})
        traces = TraceRecipe(lambda: examples).tokenize(examples, model.source)
        meter.begin(frozen=[model.get().model])
        while not meter.done:
            cache = Path(folder) / f"cache-{len(meter.ends)}"
            cache_distributions(model, traces, TeacherDistribution(source), cache=cache)
            files = [file.stat().st_size for file in cache.rglob("*.safetensors")]
            meter.figures["disk_bytes_per_token"] = sum(files) / tokens
            meter.step(None, tokens)


def pipeline(setting: Setting, meter: Meter, batch_size: int = 8) -> None:
    """Measure the data pipeline without a model: read a file of traces, tokenize, collate one epoch."""
    quiet()
    source = find_model(str(model_folder(setting, "student")), key="model.student")
    lengths = [(32, 32)] * setting.traces
    with tempfile.TemporaryDirectory() as folder:
        data = write_traces(setting, draw_rows(setting, lengths), Path(folder) / "traces.jsonl")
        fields = {"problem": "problem", "completion": "completion"}
        # Load the tokenizer before the clock starts; its cost does not depend on the number of traces.
        first = read_examples(path=str(data), fields=fields)[:1]
        TraceRecipe(lambda: first).tokenize(first, source)
        meter.begin()
        while not meter.done:
            examples = read_examples(path=str(data), fields=fields)
            traces = TraceRecipe(lambda e=examples: e).tokenize(examples, source)
            steps = len(traces) // batch_size
            module = DistillDataModule(
                traces, signals=(), batch_size=batch_size, steps=steps, seed=setting.seed, pad_id=0
            )
            module.trainer = SimpleNamespace(  # pyright: ignore[reportAttributeAccessIssue]
                global_rank=0,
                world_size=1,
                accumulate_grad_batches=1,
                global_step=0,
                strategy=SimpleNamespace(root_device=torch.device("cpu")),
            )
            tokens = sum(int(batch.mask.sum()) for batch in module.train_dataloader())
            module.teardown("fit")
            meter.step(None, tokens)


def utilization(setting: Setting, meter: Meter, peak_tflops: float | None = None) -> None:
    """Measure SFT and its model FLOPs utilization (matrix products / the GPU's peak)."""
    name = torch.cuda.get_device_name()
    peak = peak_tflops or next((value for part, value in _PEAKS.items() if part in name), None)
    if peak is None:
        raise UserError(f"the peak of {name} in bf16 is not known: give it with --peak-tflops")
    train(setting, meter, "sft")
    found = meter.measurement()
    flops = meter.figures["flops_per_step"]
    meter.figures["mfu"] = flops * len(found.seconds) / sum(found.seconds) / (peak * 1e12)


# Peak TFLOP/s for dense bf16 with fp32 accumulation, from the vendors' data sheets.
_PEAKS = {"H200": 989.0, "H100 PCIe": 756.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "4090": 165.0}
