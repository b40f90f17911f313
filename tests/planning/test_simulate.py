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
from distill.models.flops import cost_of
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


@pytest.mark.parametrize(("loss", "products"), [("sft", 3), ("forward_kl", 3)])
def test_flops_are_those_of_a_real_step_and_of_the_closed_form(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, loss: str, products: int
) -> None:
    setup = set_up(tiny_pair, traces, tmp_path, f"loss={loss}")
    found = simulate(setup, [micro_batch()])
    with FlopCounterMode(display=False) as counter:
        real_step(tiny_pair, setup, teacher=loss == "forward_kl")
    assert found.of().flops == counter.get_total_flops()
    student = cost_of(setup.student.skeleton(), "student", setup.student.vocab_size)
    # torch's formulas count the pairs that the causal mask leaves out.
    tokens, pairs, outputs = ROWS * LENGTH, ROWS * LENGTH**2, ROWS * COMPLETION
    assert found.of(STUDENT, BACKWARD).flops == student.training(tokens, pairs)
    heads = products * student.cut_head + (setup.frozen and loss == "forward_kl") * 0
    if loss == "forward_kl":
        heads += cost_of(setup.frozen["teacher"].skeleton(), "", setup.student.vocab_size).cut_head
    assert found.of(HEAD).flops == 2 * heads * outputs


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
