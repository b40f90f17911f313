"""torch.compile of a model's layers, each by itself ("regional compilation", as torchtitan does it).

All layers of a kind share one graph, which keeps compiling short; names of modules and weights stay, so that
checkpoints are those of uncompiled models. Lengths are symbols of the graph: batches of other shapes use it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from distill.data.layout import PACKED, BatchLayout, LayoutKind
from distill.errors import UserError, first_line
from distill.models.language_model import LanguageModel, ModelSource
from distill.models.layers import layers_of

# Graphs for one piece of code: torch's default of 8 is soon reached by student and teacher, with and without
# gradients, masks and a single row; beyond it torch goes on uncompiled, silently slower.
_MOST_GRAPHS = 64


def check_layers(source: ModelSource) -> None:
    """Check that a model says which modules are its layers, before its weights are loaded.

    Raises:
        UserError: it does not.
    """
    if not layers_of(source.skeleton()):
        raise UserError(
            f"model.compile=true compiles a model layer by layer, and {source.name!r} does not say which "
            f"modules are its layers (_no_split_modules): take model.compile=false"
        )


def compile_layers(
    lm: LanguageModel,
    kind: LayoutKind = "padded",
    precision: torch.dtype = torch.float32,
    *,
    trains: bool = False,
) -> None:
    """Compile a model's layers in place, and compare a small batch's results with the uncompiled ones.

    Of packed rows, attention stays uncompiled: it depends on the bounds of the traces, which differ from
    batch to batch.

    Args:
        lm: the model, on its device and ready for the layout.
        kind: how batches are laid out.
        precision: dtype of matrix products.
        trains: whether the model is the student, and its gradients are compared too.

    Raises:
        UserError: a layer does not compile, or gives other results.
    """
    from torch._dynamo import config

    config.recompile_limit = max(config.recompile_limit, _MOST_GRAPHS)
    expected, again = (_results(lm, kind, precision, trains, seed) for seed in range(2))
    for layer in layers_of(lm.model):
        for part in _without_attention(layer) if kind in PACKED else [layer]:
            part.compile(dynamic=True)
    lm.compiled = True
    try:
        found = _results(lm, kind, precision, trains, 0)
    except Exception as error:  # the compiler raises all kinds of exceptions
        raise UserError(
            f"model.compile=true does not work with {lm.source.name!r}: {first_line(error)}; take "
            f"model.compile=false"
        ) from error
    half = max(torch.finfo(precision).eps, torch.finfo(lm.model.dtype).eps) > 1e-4
    for value, other, repeated in zip(expected, found, again, strict=True):
        if not torch.equal(value, repeated):
            continue  # there is dropout, for which compiled layers draw other numbers
        error = float((other - value).norm() / value.norm().clamp(min=1e-30))
        if not error <= (1e-1 if half else 1e-3):
            raise UserError(
                f"model.compile=true: the compiled layers of {lm.source.name!r} give other results (off by "
                f"{error:.1g} of their length): take model.compile=false"
            )


@contextmanager
def uncompiled(lm: LanguageModel) -> Iterator[None]:
    """Run a model's layers uncompiled, as generation does: its cache and its shapes differ at each token."""
    if not lm.compiled:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _without_attention(layer: nn.Module) -> list[nn.Module]:
    return [child for child in layer.children() if "attention" not in type(child).__name__.lower()]


def _results(
    lm: LanguageModel, kind: LayoutKind, precision: torch.dtype, trains: bool, seed: int
) -> list[Tensor]:
    """Hidden states of a small batch, and of the student its first layer's gradient, in float64.

    The modes are those of training, so that nothing is compiled that it would not use. `seed`: of dropout.
    """
    rows, length, prompt = 2, 16, 2  # the graph for a single row is another one
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(lm.vocab_size, (rows, length), generator=generator)
    ids[:, :prompt] = ids[0, :prompt]
    mask = torch.arange(1, length).expand(rows, -1) >= prompt
    layout = BatchLayout(kind).of([prompt] * rows, [length] * rows, [0] * rows)
    modes = [(module, module.training) for module in lm.model.modules()]
    lm.model.train(trains)
    # As in training, where Lightning turns autocast's cache off.
    casts = torch.autocast(lm.device.type, precision, precision != torch.float32, cache_enabled=False)
    devices = [lm.device] if lm.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices), casts, torch.inference_mode(not trains):
            torch.manual_seed(seed)
            hidden = lm.completion_head(ids.to(lm.device), mask.to(lm.device), layout.to(lm.device)).hidden
        found = [hidden]
        if trains:
            found += _gradients(lm, hidden, generator)
    finally:
        for module, training in modes:
            module.training = training
    return [value.detach().double() for value in found]


def _gradients(lm: LanguageModel, hidden: Tensor, generator: torch.Generator) -> list[Tensor]:
    """The gradients of the first layer's weights in one vector; empty if none trains.

    Those of all layers would take as much memory as the model, and some alone are zero but for rounding.
    """
    # Not of the states' norm, which the model's last normalization keeps constant.
    factors = torch.randn(hidden.shape, generator=generator).to(hidden.device)
    trained = [p for p in layers_of(lm.model)[0].parameters() if p.requires_grad]
    if not trained:
        return []
    found = torch.autograd.grad((hidden.float() * factors).sum(), trained, allow_unused=True)
    return [torch.cat([gradient.flatten() for gradient in found if gradient is not None])]
