"""Compare compiled layers with uncompiled ones; `test_compiling.py` starts it without the tests' type checks.

Only the last case takes torch's own compiler, which needs half a minute for a graph: the others have their
graphs traced, and run them without making kernels.
"""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from test_batch_and_data import random_traces
from test_layout import gradients, laid_out, small
from torch._dynamo.utils import counters

from distill.data.layout import PACKED, BatchLayout, LayoutKind
from distill.data.trace import Trace
from distill.generation.decode import generate
from distill.generation.sampling import Sampling
from distill.models.compiling import compile_layers
from distill.models.language_model import LanguageModel, enable_gradient_checkpointing
from distill.models.lora import add_lora
from distill.models.lora_settings import Lora
from distill.models.packed_attention import allow_packing

_COMPILE = torch.compile


@dataclass(frozen=True)
class Case:
    """A model and how it is trained."""

    family: str
    kind: LayoutKind = "padded"
    checkpointed: bool = False
    adapted: bool = False
    precision: torch.dtype = torch.float32


CASES = (
    Case("gemma3_text"),  # sliding windows of 4, which some batches stay within
    Case("llama", checkpointed=True),
    Case("qwen3", "packed", checkpointed=True),
    Case("qwen2", "shared_prompt", adapted=True),
    Case("gpt_neox", "grouped", precision=torch.bfloat16),
    Case("qwen3"),
)


class Source:
    """What peft is told about a model without files."""

    name = location = "a small model"
    revision = None


def made(case: Case) -> LanguageModel:
    lm = small(case.family)
    if case.adapted:
        lm.source = Source()  # pyright: ignore[reportAttributeAccessIssue]
        add_lora(lm, Lora(rank=2, alpha=4, dropout=0.0, targets=()), seed=0)
        with torch.no_grad():
            for parameter in lm.model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1)
    if case.kind in PACKED:
        allow_packing(lm, 24, kind=case.kind)
    if case.checkpointed:
        enable_gradient_checkpointing(lm)
    return lm


def batches(kind: LayoutKind) -> Iterator[list[Trace]]:
    """Of several numbers of rows and lengths."""
    for rows, longest in ((4, 4), (6, 12), (3, 9), (5, 16)):
        some = random_traces(rows, seed=longest, longest=longest)
        if kind == "shared_prompt":
            for trace in some[1:]:
                trace.prompt_ids = some[0].prompt_ids
        yield some


def step(lm: LanguageModel, case: Case, some: list[Trace]) -> tuple[float, dict[str, torch.Tensor]]:
    half = case.precision != torch.float32
    with torch.autocast("cpu", case.precision, half) if half else contextlib.nullcontext():
        loss = laid_out(lm, some, BatchLayout(case.kind, 48))
    return float(loss.detach()), gradients(lm, loss)


def compare(case: Case) -> None:
    plain, lm = made(case), made(case)
    names = [name for name, _ in lm.model.named_modules()], list(lm.model.state_dict())
    plain.model.train()
    compile_layers(lm, case.kind, case.precision, trains=True)
    assert names == ([name for name, _ in lm.model.named_modules()], list(lm.model.state_dict()))
    assert not lm.model.training
    lm.model.train()
    graphs = []
    for some in batches(case.kind):
        expected, found = step(plain, case, some), step(lm, case, some)
        away = abs(found[0] - expected[0]) / expected[0]
        assert found[1].keys() == expected[1].keys()
        pairs = [(value, expected[1][name]) for name, value in found[1].items()]
        largest = max(float(value.norm()) for _, value in pairs)  # some are zero but for rounding
        apart = max(float((one - other).norm()) for one, other in pairs) / largest
        print(case, f"loss off by {away:.1g}, gradients by {apart:.1g}", flush=True)
        most = 1e-4 if case.precision == torch.float32 else 5e-2
        assert away < most
        assert apart < most
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    if case.kind != "grouped":  # where a pass of a single row may come late
        assert graphs[-1] == graphs[1], graphs  # other lengths and numbers of rows compile nothing


def generates(case: Case) -> None:
    plain, lm = made(case), made(case)
    plain.tokenizer = lm.tokenizer = SimpleNamespace(pad_token_id=0)
    compile_layers(lm, case.kind, trains=False)
    before = counters["stats"]["unique_graphs"]
    for length in (2, 3, 5):
        prompts = [list(range(1, 1 + length)), [4, 3]]
        written = [
            generate(one, prompts, Sampling(max_new_tokens=length), seed=0, end_ids=[2])
            for one in (plain, lm)
        ]
        assert written[0] == written[1]
    assert counters["stats"]["unique_graphs"] == before > 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.compile = functools.partial(_COMPILE, backend="aot_eager")
    generates(CASES[1])
    for each in CASES:
        if each is CASES[-1]:
            torch.compile = _COMPILE
        torch._dynamo.reset()
        counters.clear()
        compare(each)
