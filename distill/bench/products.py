"""The matrix products of a training step and nothing else, in the step's order: the bound on its speed.

No norm, activation, softmax, loss or optimizer, and no copy: all matrices are there before the first step. As
in a real step, every layer has weights and gradients of its own, and activations too where they are kept, so
that they come from memory. Where torch has several layouts for a product, the faster one is taken.

Attention multiplies a block of queries with the keys up to its end, in blocks of the size that torch's CPU
kernel takes, so that about half of all query-key pairs are computed. The kernel's backward pass computes the
scores once more, which is left out here: that is the kernel's choice and not the step's.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from distill.bench.inputs import Shape, shape_of
from distill.bench.measurement import Setting
from distill.bench.meter import Meter
from distill.errors import UserError
from distill.losses.logits import fitting_chunk, slices
from distill.models.head import Head


@dataclass(frozen=True)
class Product:
    """A product that is ready to be computed, and its FLOPs: a multiplication and an addition each."""

    compute: Callable[[], Any]
    flops: float


def products(setting: Setting, meter: Meter, teacher: bool = False) -> None:
    """Measure the products of a step alone.

    Args:
        setting: setting of the measurement.
        meter: meter to report every step to.
        teacher: whether a live teacher of the student's shape reads the batch too.

    Raises:
        UserError: the device is a GPU.
    """
    if setting.device != "cpu":
        raise UserError(
            "on a GPU attention's products cannot be had apart from their kernel: there, measure mfu"
        )
    step = training_step(setting, teacher=teacher)
    meter.begin()
    meter.figures["flops_per_step"] = sum(product.flops for product in step)
    while not meter.done:
        for product in step:
            product.compute()
        meter.step(None, setting.rows * setting.completion)


def training_step(setting: Setting, *, teacher: bool) -> list[Product]:
    """The products of one step of `setting.shape` over `setting.rows` traces, in their order."""
    torch.manual_seed(setting.seed)
    scratch = Scratch()
    student = Body(setting, scratch, trained=True)
    step = Body(setting, scratch, trained=False).forward() if teacher else []
    step += student.forward()
    step += _head(setting, scratch, teacher=teacher)
    return step + student.backward()


class Scratch:
    """Matrices that all layers share: results that nothing reads later, and gradients of outputs, which the
    operation before has just written."""

    def __init__(self) -> None:
        self._results: dict[tuple[int, ...], Tensor] = {}
        self._gradients: dict[tuple[int, ...], Tensor] = {}
        self.layouts: dict[tuple[int, ...], int] = {}  # by sizes of a product: its faster layout

    def result(self, *shape: int) -> Tensor:
        if shape not in self._results:
            self._results[shape] = torch.zeros(shape)
        return self._results[shape]

    def gradient(self, *shape: int) -> Tensor:
        if shape not in self._gradients:
            self._gradients[shape] = torch.randn(shape)
        return self._gradients[shape]

    def faster(self, key: tuple[int, ...], ways: Sequence[Sequence[Product]]) -> Sequence[Product]:
        """The faster of several ways to compute the same, timed once for each key."""
        if key not in self.layouts:
            self.layouts[key] = min(range(len(ways)), key=lambda at: _seconds(ways[at]))
        return ways[self.layouts[key]]


class Body:
    """A model's layers.

    Args:
        setting: setting of the measurement.
        scratch: matrices shared with other bodies.
        trained: whether there is a backward pass. Without one, all layers share their activations.
    """

    def __init__(self, setting: Setting, scratch: Scratch, *, trained: bool) -> None:
        self.recomputed = setting.gradient_checkpointing
        kept = trained and not self.recomputed
        shared = Activations.draw(setting)
        self.layers = [
            Layer(setting, scratch, Activations.draw(setting) if kept else shared, trained=trained)
            for _ in range(shape_of(setting).layers)
        ]

    def forward(self) -> list[Product]:
        return [product for layer in self.layers for product in layer.forward()]

    def backward(self) -> list[Product]:
        found = []
        for layer in reversed(self.layers):
            if self.recomputed:
                found += layer.forward()[:-1]  # nothing in the backward pass reads the layer's last product
            found += layer.backward()
        return found


def _linear_layers(shape: Shape) -> dict[str, tuple[int, int]]:
    """Rows and columns of a layer's matrices, in the order of the forward pass."""
    width = shape.hidden // shape.heads
    queries, keys = shape.heads * width, shape.kv_heads * width
    return {
        "q": (queries, shape.hidden),
        "k": (keys, shape.hidden),
        "v": (keys, shape.hidden),
        "o": (shape.hidden, queries),
        "gate": (shape.intermediate, shape.hidden),
        "up": (shape.intermediate, shape.hidden),
        "down": (shape.hidden, shape.intermediate),
    }


_READS = {"q": "attention", "k": "attention", "v": "attention", "gate": "mlp", "up": "mlp"}
_KEPT = ("q", "k", "v", "gate", "up")  # outputs that the backward pass reads; the others are added and freed


@dataclass(frozen=True)
class Activations:
    """Activations of a layer.

    Attributes:
        inputs: [tokens, in] by linear layer; layers that read the same share it.
        outputs: [tokens, out] by linear layer, of those that the backward pass reads.
        queries: [rows × key-value heads, length × queries per key, width] of attention.
        keys: [rows × key-value heads, length, width].
        values: likewise.
    """

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    queries: Float[Tensor, "heads queries width"]
    keys: Float[Tensor, "heads length width"]
    values: Float[Tensor, "heads length width"]

    @staticmethod
    def draw(setting: Setting) -> "Activations":
        shape, length = shape_of(setting), setting.prompt + setting.completion
        tokens, heads = setting.rows * length, setting.rows * shape.kv_heads
        group, width = shape.heads // shape.kv_heads, shape.hidden // shape.heads
        sizes = _linear_layers(shape)
        read = {_READS.get(name, name): torch.randn(tokens, size[1]) for name, size in sizes.items()}
        return Activations(
            {name: read[_READS.get(name, name)] for name in sizes},
            {name: torch.zeros(tokens, sizes[name][0]) for name in _KEPT},
            torch.randn(heads, length * group, width),
            torch.randn(heads, length, width),
            torch.randn(heads, length, width),
        )


class Layer:
    """A layer's weights, and the products of its passes.

    Args:
        setting: setting of the measurement.
        scratch: matrices shared by all layers.
        activations: of this layer, or shared by several.
        trained: whether there are gradients.
    """

    def __init__(
        self, setting: Setting, scratch: Scratch, activations: Activations, *, trained: bool
    ) -> None:
        self.scratch, self.activations = scratch, activations
        self.rows, self.length = setting.rows, setting.prompt + setting.completion
        sizes = _linear_layers(shape_of(setting))
        self.weights = {name: torch.randn(size) for name, size in sizes.items()}
        self.gradients = {name: torch.zeros(size) for name, size in sizes.items()} if trained else {}

    def forward(self) -> list[Product]:
        of = {name: [self._output(name)] for name in self.weights}
        before = of["q"] + of["k"] + of["v"]
        return [*before, *self._attention(), *of["o"], *of["gate"], *of["up"], *of["down"]]

    def backward(self) -> list[Product]:
        of = {name: self._gradients(name) for name in self.weights}
        before = of["down"] + of["up"] + of["gate"] + of["o"]
        return [*before, *self._attention_gradients(), *of["v"], *of["k"], *of["q"]]

    def _output(self, name: str) -> Product:
        x, weight = self.activations.inputs[name], self.weights[name]
        kept = self.activations.outputs.get(name)
        return _product(x, weight.t(), self.scratch.result(len(x), len(weight)) if kept is None else kept)

    def _gradients(self, name: str) -> list[Product]:
        """The gradients of a linear layer's input and of its weight."""
        x, weight, gradient = self.activations.inputs[name], self.weights[name], self.gradients[name]
        upstream = self.scratch.gradient(len(x), len(weight))
        turned = gradient.view(gradient.shape[::-1])
        ways = [_product(upstream.t(), x, gradient)], [_product(x.t(), upstream, turned)]
        of_weight = self.scratch.faster((*upstream.shape, x.shape[1]), ways)
        return [_product(upstream, weight, self.scratch.result(*x.shape)), *of_weight]

    def _attention(self) -> Sequence[Product]:
        ways = [self._attend(rows) for rows in (1, self.rows)]
        return self.scratch.faster((1, *self.activations.queries.shape), ways)

    def _attention_gradients(self) -> Sequence[Product]:
        ways = [self._attend_back(rows) for rows in (1, self.rows)]
        return self.scratch.faster((2, *self.activations.queries.shape), ways)

    def _blocks(self, rows: int) -> Iterator[tuple[slice, slice, int, Tensor]]:
        """The blocks of queries, longest first: which traces' heads, which queries, the number of keys, and
        the scores [heads, queries, keys] of `rows` traces at once."""
        heads, queries, _ = self.activations.queries.shape
        heads, group, size = heads // self.rows * rows, queries // self.length, query_block(self.length)
        whole = self.scratch.result(heads * group * size * self.length)
        for first in range(0, self.rows * heads // rows, heads):
            for block in reversed(slices(self.length, size)):
                at, keys = slice(block.start * group, block.stop * group), block.stop
                scores = whole[: heads * (at.stop - at.start) * keys].view(heads, -1, keys)
                yield slice(first, first + heads), at, keys, scores

    def _attend(self, rows: int) -> list[Product]:
        one, found = self.activations, []
        result = self.scratch.result(*one.queries.shape)
        for heads, at, keys, scores in self._blocks(rows):
            found += [
                _product(one.queries[heads, at], one.keys[heads, :keys].mT, scores),
                _product(scores, one.values[heads, :keys], result[heads, at]),
            ]
        return found

    def _attend_back(self, rows: int) -> list[Product]:
        """The gradients of values, scores, queries and keys."""
        one, found = self.activations, []
        upstream, of_queries = (
            make(*one.queries.shape) for make in (self.scratch.gradient, self.scratch.result)
        )
        of_keys, of_values = self.scratch.result(2, *one.keys.shape)
        for heads, at, keys, scores in self._blocks(rows):
            add = keys < self.length  # the first block has all keys
            found += [
                _product(scores.mT, upstream[heads, at], of_values[heads, :keys], add=add),
                _product(upstream[heads, at], one.values[heads, :keys].mT, scores),
                _product(scores, one.keys[heads, :keys], of_queries[heads, at]),
                _product(scores.mT, one.queries[heads, at], of_keys[heads, :keys], add=add),
            ]
        return found


def query_block(length: int) -> int:
    """Queries that torch's CPU kernel of attention takes at once (`FlashAttentionKernel.cpp`)."""
    if length >= 768:
        return 256
    return 64 if length >= 192 else 32


def _head(setting: Setting, scratch: Scratch, *, teacher: bool) -> list[Product]:
    """The output head's products in chunks, as `distill.losses.chunked` computes them."""
    shape, tokens = shape_of(setting), setting.rows * setting.completion
    states, matrix = torch.randn(tokens, shape.hidden), torch.randn(shape.vocabulary, shape.hidden)
    others = (torch.randn_like(states), torch.randn_like(matrix)) if teacher else None
    of_states, of_matrix = torch.zeros_like(states), torch.zeros_like(matrix)
    size, found = min(fitting_chunk(Head(states, matrix)), tokens), []
    for chunk in slices(tokens, size):
        logits, their_logits = (one[: len(states[chunk])] for one in scratch.result(2, size, len(matrix)))
        found.append(_product(states[chunk], matrix.t(), logits))
        if others is not None:
            found.append(_product(others[0][chunk], others[1].t(), their_logits))
        found += [
            _product(logits, matrix, of_states[chunk]),
            _product(logits.t(), states[chunk], of_matrix, add=chunk.start > 0),
        ]
    return found


def _product(
    a: Float[Tensor, "*heads m k"], b: Float[Tensor, "*heads k n"], out: Tensor, *, add: bool = False
) -> Product:
    """a @ b, which is written to `out` [*heads, m, n], or added to it."""
    matrices, flops = a.ndim == 2, 2.0 * out.numel() * a.shape[-1]
    if add:
        return Product(partial(torch.addmm if matrices else torch.baddbmm, out, a, b, out=out), flops)
    return Product(partial(torch.mm if matrices else torch.bmm, a, b, out=out), flops)


def _seconds(products_of_one: Sequence[Product], times: int = 3) -> float:
    """Seconds of computing some products: the least of several times, after a first that does not count."""
    found = []
    for _ in range(times + 1):
        began = time.perf_counter()
        for product in products_of_one:
            product.compute()
        found.append(time.perf_counter() - began)
    return min(found[1:])
