"""Tests of simulated steps against real ones: FLOPs, bytes, and memory."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import test_training
import torch
from test_training import arguments
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.flop_counter import FlopCounterMode

from distill.data.batch import collate
from distill.data.trace import Example, Trace
from distill.models.find import find_model
from distill.models.flops import Work, cost_of
from distill.planning.kernels import KernelMeter
from distill.planning.simulate import BACKWARD, HEAD, STUDENT, simulate
from distill.planning.sizes import blank
from distill.training.setup import Setup

traces = test_training.traces  # the fixture
ROWS, PROMPT, COMPLETION = 3, 6, 10
LENGTH = PROMPT + COMPLETION


def set_up(pair: tuple[Path, Path], traces: Path, folder: Path, *words: str) -> Setup:
    return Setup.from_overrides(arguments(pair, traces, folder, *words), here=False)


def micro_batch(rows: int = ROWS) -> Sequence[Trace]:
    return [Trace(Example("", ""), blank(PROMPT), blank(COMPLETION)) for _ in range(rows)]


def real_step(pair: tuple[Path, Path], setup: Setup, teacher: bool) -> None:
    """Forward and backward pass of a micro-batch on real tensors, without the module."""
    batch = collate(micro_batch(), layout=setup.layout)
    lm, other = (find_model(str(path), key="model.student").load() for path in pair)
    with torch.no_grad():
        others = (
            {"log_p": other.completion_head(batch.input_ids, batch.mask, batch.layout)} if teacher else {}
        )
    head = lm.completion_head(batch.input_ids, batch.mask, batch.layout)
    setup.objective(head, batch.mask, batch.labels, {}, others=others).total.backward()


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["sft", "forward_kl"])
def test_flops_are_those_of_a_real_step_and_of_the_closed_form(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, loss: str
) -> None:
    setup = set_up(tiny_pair, traces, tmp_path, f"loss={loss}")
    found, live = simulate(setup, [micro_batch()]), loss == "forward_kl"
    with FlopCounterMode(display=False) as counter:
        real_step(tiny_pair, setup, teacher=live)
    student, teacher = (
        cost_of(source.skeleton(), "", source.vocab_size)
        for source in (setup.student, setup.frozen.get("teacher", setup.student))
    )
    # torch's formulas count the pairs that the causal mask leaves out, and the scores that the backward pass
    # computes anew. Its counter knows neither the attention of a CPU nor products that are added in place.
    tokens, outputs, pairs = ROWS * LENGTH, ROWS * COMPLETION, 2 * ROWS * LENGTH**2
    attention = 3.5 * student.attention * pairs
    assert found.of(STUDENT, BACKWARD).flops == student.training(tokens, 0) + attention
    assert found.of(HEAD).flops == 2 * outputs * (3 * student.cut_head + live * teacher.cut_head)
    read = live * (teacher.forward(Work(tokens)) + teacher.attention * pairs)
    assert found.of("teacher").flops == read
    unknown = attention + live * teacher.attention * pairs + 2 * outputs * student.cut_head
    assert found.of().flops == counter.get_total_flops() + unknown


@pytest.mark.slow
def test_a_gpus_step_recomputes_its_layers_in_half_precision(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    words = [
        "loss=forward_kl",
        "trainer=gpu",
        "trainer.precision=bf16-mixed",
        "model.teacher_dtype=bfloat16",
        "data.layout=padded",
    ]
    kept, anew = (
        simulate(
            set_up(tiny_pair, traces, tmp_path, *words, f"model.gradient_checkpointing={value}"),
            [micro_batch(rows=16)] * 2,
        )
        for value in ("false", "true")
    )
    # The layers' forward pass once more, of attention 2 of the 7 products.
    assert anew.of(HEAD).flops == kept.of(HEAD).flops
    assert 1.2 < anew.of(BACKWARD).flops / kept.of(BACKWARD).flops < 1.5
    assert anew.peaks[STUDENT] < kept.peaks[STUDENT]
    assert ("backward pass", "_scaled_dot_product_flash_attention") in anew.kernels
    assert ("backward pass", "_scaled_dot_product_flash_attention") not in kept.kernels


def test_bytes_and_live_memory_are_those_counted_by_hand() -> None:
    a, b = torch.zeros(4, 8), torch.zeros(8, 16)  # 128 and 512 bytes
    meter = KernelMeter()
    assert meter.hold([a, b, a.T]) == 640
    with meter:
        meter.phase = "first"
        c = a @ b
        d = c.T + 1  # a view takes nothing
        del c
        meter.phase = "second"
        d.mul_(2)
        d[0].copy_(d[1])  # one row of 4 numbers over another
        d.index_select(0, torch.tensor([3, 5, 7]))
    moved = {key: (kernel.read, kernel.written) for key, kernel in meter.kernels.items()}
    assert moved["first", "mm"] == (640, 256)
    assert moved["first", "add"] == (256, 256)
    assert moved["second", "mul_"] == (256, 256)
    assert moved["second", "copy_"] == (16, 16)
    assert moved["second", "index_select"] == (48 + 24, 48)
    assert not {"t", "transpose", "select", "detach"} & {name for _, name in moved}
    assert meter.kernels["first", "mm"].flops == 2 * 4 * 8 * 16
    assert meter.peaks["first"] == 640 + 2 * 256
    assert meter.peaks["second"] == 640 + 256 + 24 + 48
    assert meter.live == 640 + 256
    del d
    assert meter.live == 640


@pytest.mark.slow
def test_live_memory_is_that_of_torchs_tracker(tiny_pair: tuple[Path, Path]) -> None:
    lm = find_model(str(tiny_pair[0]), key="model.student").load()
    ids = torch.zeros(2, LENGTH, dtype=torch.long)

    def step() -> None:
        lm.model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        lm.model.zero_grad()

    meter, tracker = KernelMeter(), MemTracker()
    meter.hold([*lm.model.parameters(), *lm.model.buffers()])
    with meter:
        step()
    tracker.track_external(lm.model)
    with tracker:
        step()
    theirs = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
    assert max(meter.peaks.values()) == pytest.approx(theirs, rel=1e-3)
