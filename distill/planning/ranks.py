"""What each rank of a run holds at the moments of a step where memory peaks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distill.losses.signals import Role
from distill.models.sharding import layers_of
from distill.planning.sizes import ModelSize
from distill.training.setup import Setup

WEIGHTS, GRADIENTS, OPTIMIZER = "weights", "gradients", "optimizer"
ACTIVATIONS, HEAD = "activations", "head"
BUCKETS = "gradients, DDP's buckets"
GATHERED = "gathered of the student"
UNSHARDED = "gradients, not sharded yet"
COPIES = "gradients, gloo's copies"  # of what it reduces on CPUs
EMBEDDING = "gradient of the embeddings"
WHOLE_COPY = "whole copy of the student that writes"
ROLLOUTS = "KV cache and logits of rollouts"
READING = "frozen models' hidden states"
MATRIX = "the teacher's output matrix"


@dataclass(frozen=True)
class Moment:
    """A moment of a step.

    Attributes:
        name: description.
        held: bytes of one rank, by category.
    """

    name: str
    held: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.held.values())


@dataclass(frozen=True)
class StudentBytes:
    """Bytes of a whole student and of its parts.

    Attributes:
        weights: of all parameters.
        gradients: of those that train.
        optimizer: state of the optimizer.
        root: parameters outside the layers: embeddings, output matrix, final norm.
        root_gradients: of these.
        embedding: gradient of the embeddings, if they share their matrix with the output head.
        layer: parameters of the largest layer.
        layer_gradients: of that layer.
    """

    weights: int
    gradients: int
    optimizer: int
    root: int
    root_gradients: int
    embedding: int
    layer: int
    layer_gradients: int

    @classmethod
    def of(cls, model: Any, optimizer: int) -> "StudentBytes":
        layers = [(_bytes(layer), _bytes(layer, trained=True)) for layer in layers_of(model)] or [(0, 0)]
        whole, trained = _bytes(model), _bytes(model, trained=True)
        head, embeddings = model.get_output_embeddings().weight, model.get_input_embeddings().weight
        return cls(
            weights=whole,
            gradients=trained,
            optimizer=optimizer,
            root=whole - sum(size for size, _ in layers),
            root_gradients=trained - sum(size for _, size in layers),
            embedding=head.nbytes if head is embeddings and head.requires_grad else 0,
            layer=max(size for size, _ in layers),
            layer_gradients=max(size for _, size in layers),
        )


def _bytes(module: Any, *, trained: bool = False) -> int:
    return sum(p.numel() * p.dtype.itemsize for p in module.parameters() if p.requires_grad or not trained)


def held_live(setup: Setup, frozen: Mapping[Role, ModelSize]) -> dict[str, int]:
    """Bytes that a rank holds of frozen models and output matrices, during the whole training."""
    objective, shares = setup.objective, setup.length.ranks
    found: dict[str, int] = {}
    for role in sorted(objective.live_roles):
        who, name = frozen[role], f"weights of the {role}, live"
        found[name] = who.weights
        if setup.compute.sharded and not objective.compares_steps:  # one that writes must be whole
            found[name] = _share(who.weights, shares)
            # Its root stays gathered, and the last layer's buffer lives until the next layer is gathered.
            found[f"gathered of the {role}"] = who.bytes * (who.root + who.layer)
    if objective.caches_distribution and objective.distribution.whole:
        found[MATRIX] = frozen["teacher"].bytes * frozen["teacher"].vocabulary * frozen["teacher"].hidden
    return found


def moments(
    setup: Setup,
    student: StudentBytes,
    frozen: Mapping[Role, ModelSize],
    *,
    activations: tuple[int, int],
    head: tuple[int, int],
    writing: int,
    tokens: int,
) -> Sequence[Moment]:
    """The moments of an optimizer step at which a rank may hold most.

    Gradients of the step before are freed between forward and backward pass, those of the micro-batches
    before are kept.

    Args:
        setup: the run.
        student: its bytes.
        frozen: sizes of the frozen models.
        activations: bytes kept for the backward pass, and bytes of the layer that it recomputes.
        head: bytes of the chunked head at its peak, and bytes of the gradients that it leaves.
        writing: bytes of the KV cache and logits of rollouts; 0: there are none.
        tokens: tokens of a micro-batch, padding included.
    """
    sharded, ranks = setup.compute.sharded, setup.length.ranks
    shares = ranks if sharded else 1
    base = {WEIGHTS: _share(student.weights, shares), OPTIMIZER: _share(student.optimizer, shares)}
    base |= held_live(setup, frozen)
    gradients = {GRADIENTS: _share(student.gradients, shares)}
    if not sharded and ranks > 1:
        base[BUCKETS] = student.gradients
    kept = gradients if setup.length.accumulate > 1 else {}
    root = {GATHERED: student.root} if sharded else {}
    found = [Moment("forward pass", base | gradients | root | {ACTIVATIONS: activations[0], HEAD: head[0]})]
    left = {ACTIVATIONS: sum(activations), HEAD: head[1]}
    if sharded:
        # The layer that is read, and the next one; the same for their gradients, on their way to the shards.
        at_work = {
            GATHERED: student.root + 2 * student.layer,
            UNSHARDED: student.root_gradients + 2 * student.layer_gradients,
        }
        left[HEAD] = 0  # its gradient of the matrix is among those that are not sharded yet
        found.append(Moment("backward pass begins", base | kept | at_work | left))
        on_their_way = student.root_gradients + student.layer_gradients
        last = {UNSHARDED: student.root_gradients + on_their_way, EMBEDDING: student.embedding}
        if setup.compute.device == "cpu":
            last[COPIES] = on_their_way
        last[GATHERED] = student.root + student.layer
        found.append(Moment("backward pass ends", base | gradients | last))
    else:
        found.append(Moment("backward pass begins", base | kept | left))
        found.append(Moment("backward pass ends", base | gradients | {EMBEDDING: student.embedding}))
    for role in sorted(setup.objective.live_roles):
        who = frozen[role]
        reading = {READING: who.bytes * tokens * (3 * who.widest + 4 * who.hidden)}
        if f"gathered of the {role}" in base:
            reading[f"gathered of the {role}"] = who.bytes * (who.root + 2 * who.layer)
        found.append(Moment(f"the {role} reads", base | gradients | reading))
    if writing:
        copy = {WHOLE_COPY: student.weights} if sharded else {}
        found.append(Moment("the student writes rollouts", base | gradients | copy | {ROLLOUTS: writing}))
    return found


def _share(size: int, shares: int) -> int:
    return -(-size // shares)
