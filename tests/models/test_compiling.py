"""Tests of compiled layers: results of uncompiled ones, the same names, checkpoints for both, refusals."""

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_training
import torch
from test_training import arguments, column, run

from distill.data.layout import LayoutKind
from distill.errors import UserError
from distill.models.compiling import check_layers, compile_layers, uncompiled
from distill.models.find import find_model
from distill.models.language_model import LanguageModel
from distill.models.packed_attention import allow_packing
from distill.training.setup import Setup

traces = test_training.traces  # the fixture
CASES = Path(__file__).with_name("compiled_cases.py")
needs_a_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ["g++", "clang++", "c++"])),
    reason="torch.compile needs a C++ compiler on a CPU",
)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], Any]], list[str]]:
    """Put a function of a layer's results in the compiler's place; it lists what is compiled."""

    def install(change: Callable[[Any], Any]) -> list[str]:
        compiled: list[str] = []

        def compile(call: Any, *, dynamic: bool) -> Callable[..., Any]:
            assert dynamic
            compiled.append(type(call.__self__).__name__)
            return lambda *args, **options: change(call(*args, **options))

        monkeypatch.setattr(torch, "compile", compile)
        return compiled

    return install


@needs_a_compiler
@pytest.mark.slow
def test_losses_gradients_and_names_are_those_of_uncompiled_layers() -> None:
    paths = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, str(CASES)], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("loss off by") == 24


@needs_a_compiler
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:::torch")  # of the compiler about what it reads itself
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_compiled_run_is_resumed_uncompiled_and_the_other_way_round(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Graphs without kernels, which take minutes to make.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    words = arguments(tiny_pair, traces, tmp_path, "loss=forward_kl", "optimizer.lr=1e-2")
    words += ["data.batch_size=4", "lr_scheduler.warmup_ratio=0", "lr_scheduler.decay=constant"]
    whole = column(run([*words, "trainer.max_steps=4"], tmp_path / "whole"), "train/loss")
    for first, second in ((True, False), (False, True)):
        mixed = tmp_path / f"first_{first}"
        run([*words, "trainer.max_steps=2", f"model.compile={str(first).lower()}"], mixed)
        again = ["trainer.max_steps=4", f"model.compile={str(second).lower()}", f"ckpt_path={mixed}"]
        assert column(run([*words, *again], mixed), "train/loss") == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize("kind", ["padded", "packed"])
def test_whole_layers_are_compiled_or_of_packed_rows_all_but_attention(
    student: LanguageModel, compiler: Callable[..., list[str]], kind: LayoutKind
) -> None:
    if kind == "packed":
        allow_packing(student, 20)
    names = list(student.model.state_dict())
    compiled = compiler(lambda result: result)
    compile_layers(student, kind, trains=True)
    parts = ["Qwen2MLP", "Qwen2RMSNorm", "Qwen2RMSNorm"] if kind == "packed" else ["Qwen2DecoderLayer"]
    assert compiled == 2 * parts  # the student has two layers
    assert list(student.model.state_dict()) == names
    assert not student.model.training
    assert all(parameter.grad is None for parameter in student.model.parameters())


def test_a_compiler_that_errs_or_fails_is_refused(
    student: LanguageModel, teacher: LanguageModel, compiler: Callable[..., list[str]]
) -> None:
    compiler(lambda result: 1.01 * result)
    with pytest.raises(UserError, match=r"the compiled layers of .* give other results \(off by"):
        compile_layers(student, trains=True)

    def fail(result: Any) -> None:
        raise RuntimeError("no such kernel\nand much more")

    compiler(fail)
    with pytest.raises(UserError, match=r"does not work with .*: no such kernel; take model\.compile=false"):
        compile_layers(teacher)


def test_a_wrong_gradient_is_noticed(student: LanguageModel, compiler: Callable[..., list[str]]) -> None:
    compiler(lambda result: result.detach() + 1.01 * (result - result.detach()))
    with pytest.raises(UserError, match=r"give other results"):
        compile_layers(student, trains=True)


def test_dropout_is_not_taken_for_an_error(
    student: LanguageModel, compiler: Callable[..., list[str]]
) -> None:
    for layer in student.model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    compiler(lambda result: result)
    compile_layers(student, trains=True)
    assert student.compiled


def test_a_model_that_does_not_name_its_layers_is_refused(
    tiny_pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = find_model(str(tiny_pair[0]), key="model.student")
    check_layers(source)
    monkeypatch.setattr("distill.models.compiling.layers_of", lambda model: [])
    with pytest.raises(UserError, match=r"model\.compile=true .*does not say which modules are its layers"):
        check_layers(source)


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed"])
def test_strategies_with_hooks_around_layers_are_refused(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, strategy: str
) -> None:
    words = arguments(tiny_pair, traces, tmp_path, "loss=sft", "model.compile=true", f"trainer={strategy}")
    with pytest.raises(UserError, match=rf"model\.compile=true: trainer\.strategy={strategy} puts hooks"):
        Setup.from_overrides(words, here=False)


def test_a_model_that_is_not_compiled_runs_as_it_is(student: LanguageModel) -> None:
    with uncompiled(student):
        assert torch.compiler.get_default_backend() == "inductor"
