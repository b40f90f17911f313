"""What each rank of a run holds at the moments of a step where memory peaks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from distill.models.layers import layers_of
from distill.planning.sizes import ModelSize
from distill.planning.weightless import WeightlessModel
from distill.teacher.several import in_words, kind_of
from distill.training.deepspeed import BUCKET, LIVE
from distill.training.setup import Setup

WEIGHTS, GRADIENTS, OPTIMIZER = "weights", "gradients", "optimizer"
ACTIVATIONS, HEAD = "activations", "head"
BUCKETS = "gradients, DDP's buckets"
GATHERED = "gathered of the student"
UNSHARDED = "gradients, not sharded yet"
COPIES = "gradients, gloo's copies"  # of what it reduces on CPUs
EMBEDDING = "gradient of the embeddings"
WEIGHING = "states and logits of the traces that are weighed"
WHOLE_COPY = "whole copy of the student that writes"
ROLLOUTS = "KV cache and logits of rollouts"
READING = "frozen models' hidden states"
MATRIX = "the teacher's output matrix"
LARGEST = "weights of the largest teacher, one at a time"
MATRICES = "output matrices of the other teachers"
MASTER = "weights in fp32, DeepSpeed's"
ENGINE = "DeepSpeed's buckets"


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
        layer: parameters of the largest layer, as they are gathered.
        layer_gradients: of that layer.
        largest_gradient: of the largest parameter that trains.
        parameters: number of all parameters.
        trained: number of those that train.
    """

    weights: int
    gradients: int
    optimizer: int
    root: int
    root_gradients: int
    embedding: int
    layer: int
    layer_gradients: int
    parameters: int = 0
    trained: int = 0
    largest_gradient: int = 0

    @classmethod
    def of(cls, model: Any, optimizer: int, precision: torch.dtype = torch.float32) -> "StudentBytes":
        """Bytes of a model without weights.

        Args:
            model: the student.
            optimizer: bytes of its optimizer's state.
            precision: dtype in which a strategy gathers layers.
        """
        layers = [(_bytes(layer), _bytes(layer, trained=True)) for layer in layers_of(model)] or [(0, 0)]
        gathered = [
            sum(p.numel() * min(p.dtype.itemsize, precision.itemsize) for p in layer.parameters())
            for layer in layers_of(model)
        ]
        whole, trained = _bytes(model), _bytes(model, trained=True)
        head, embeddings = model.get_output_embeddings().weight, model.get_input_embeddings().weight
        return cls(
            weights=whole,
            gradients=trained,
            optimizer=optimizer,
            root=whole - sum(size for size, _ in layers),
            root_gradients=trained - sum(size for _, size in layers),
            embedding=head.nbytes if head is embeddings and head.requires_grad else 0,
            layer=max(gathered, default=0),
            layer_gradients=max(size for _, size in layers),
            parameters=sum(p.numel() for p in model.parameters()),
            trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
            largest_gradient=max((p.nbytes for p in model.parameters() if p.requires_grad), default=0),
        )


def _bytes(module: Any, *, trained: bool = False) -> int:
    return sum(p.numel() * p.dtype.itemsize for p in module.parameters() if p.requires_grad or not trained)


def held_live(setup: Setup, frozen: Mapping[str, ModelSize]) -> dict[str, int]:
    """Bytes that a rank's device holds of frozen models and output matrices, during the whole training."""
    objective = setup.objective
    found: dict[str, int] = {}
    if setup.one_at_a_time and "teacher" in objective.live_roles:
        sizes = sorted((frozen[role] for role in setup.roles_of("teacher")), key=lambda who: -who.weights)
        found[LARGEST] = sizes[0].weights
        found[MATRICES] = sum(who.bytes * who.vocabulary * who.hidden for who in sizes[1:])
    for role in setup.live:
        if setup.one_at_a_time and kind_of(role) == "teacher":
            continue
        who, name = frozen[role], f"weights of the {in_words(role)}, live"
        found[name] = who.weights
        if role == "teacher" and objective.teacher == "ema" and setup.lora:  # the base is the student's own
            adapted = WeightlessModel.student(setup.student, lora=setup.lora, gradient_checkpointing=False)
            found[name] = _bytes(adapted.model, trained=True)
        if _is_shared(setup):
            found[name] = 0 if setup.compute.cpu_offload else _share(who.weights, setup.length.ranks)
            # Its root stays gathered, and the last layer's buffer lives until the next layer is gathered.
            found[f"gathered of the {role}"] = who.bytes * who.root + _gathered_layer(setup, who)
    if objective.caches_distribution and objective.distribution.whole:
        own = [frozen[role] for role in setup.roles_of("teacher")]
        found[MATRIX if len(own) == 1 else f"{MATRIX}, of each"] = sum(
            who.bytes * who.vocabulary * who.hidden for who in own
        )
    return found


def _is_shared(setup: Setup) -> bool:
    """Whether the ranks share the frozen models; one that writes must be whole."""
    return setup.compute.sharded and not setup.objective.compares_steps


def _gathered_layer(setup: Setup, who: ModelSize) -> int:
    return min(who.bytes, setup.compute.precision.itemsize) * who.layer


def held_by_host(setup: Setup, student: StudentBytes, frozen: Mapping[str, ModelSize]) -> dict[str, int]:
    """Bytes that a rank takes of the host's memory beside those of a GPU, by occasion."""
    live = [frozen[role].weights for role in setup.live]
    found = {"loading": student.weights + sum(live)}  # every rank reads whole models
    strategy, shares = setup.compute.trainer.get("strategy"), setup.length.ranks
    if setup.compute.cpu_offload:
        shared = sum(live) if _is_shared(setup) else 0
        found["training"] = _share(student.weights + student.gradients + student.optimizer + shared, shares)
    if strategy == "deepspeed":
        optimizer = _in_single(student)
        if setup.compute.trainer.get("offload_optimizer"):
            found["training"] = _share(8 * student.trained + optimizer, shares)
        found["checkpoint"] = 4 * student.trained + optimizer
    elif setup.compute.sharded:
        found["checkpoint"] = student.weights
    return found


def _in_single(student: StudentBytes) -> int:
    """Bytes of the optimizer's state of parameters in fp32."""
    return round(student.optimizer * 4 * student.trained / max(1, student.gradients))


def moments(
    setup: Setup,
    student: StudentBytes,
    frozen: Mapping[str, ModelSize],
    *,
    activations: tuple[int, int],
    head: tuple[int, int],
    writing: int,
    weighing: int = 0,
    tokens: int,
) -> Sequence[Moment]:
    """The moments of an optimizer step at which a rank may hold most.

    Gradients of the step before are freed between forward and backward pass, those of the micro-batches
    before are kept. If weights are stepped in the backward pass, one gradient at a time is there.

    Args:
        setup: the run.
        student: its bytes.
        frozen: sizes of the frozen models.
        activations: bytes kept for the backward pass, and bytes of the layer that it recomputes.
        head: bytes of the chunked head at its peak, and bytes of the gradients that it leaves.
        writing: bytes of the KV cache and logits of rollouts, if there are any.
        weighing: bytes of the pass in which the student weighs a problem's traces, if there is one.
        tokens: tokens of a micro-batch, padding included.
    """
    sharded = setup.compute.sharded
    base, gradients = _student(setup, student)
    base, at_the_end = base | held_live(setup, frozen), gradients
    if setup.compute.optimizer_in_backward:
        gradients, at_the_end = {}, {GRADIENTS: student.largest_gradient}
    kept = gradients if setup.length.accumulate > 1 else {}
    root = {GATHERED: student.root} if sharded else {}
    found = [Moment("forward pass", base | gradients | root | {ACTIVATIONS: activations[0], HEAD: head[0]})]
    left = {ACTIVATIONS: sum(activations), HEAD: head[1]}
    if sharded:
        # The layer that is read, and the next one; the same for their gradients, on their way to the shards.
        at_work = {GATHERED: student.root + 2 * student.layer}
        at_work[UNSHARDED] = student.root_gradients + 2 * student.layer_gradients
        left[HEAD] = 0  # its gradient of the matrix is among those that are not sharded yet
        found.append(Moment("backward pass begins", base | kept | at_work | left))
        on_their_way = student.root_gradients + student.layer_gradients
        last = {UNSHARDED: student.root_gradients + on_their_way, EMBEDDING: student.embedding}
        last |= {COPIES: on_their_way} if setup.compute.device == "cpu" else {}
        last[GATHERED] = student.root + student.layer
        found.append(Moment("backward pass ends", base | gradients | last))
    else:
        found.append(Moment("backward pass begins", base | kept | left))
        found.append(Moment("backward pass ends", base | at_the_end | {EMBEDDING: student.embedding}))
    held = base | gradients
    found += _reading(setup, frozen, held, tokens)
    if weighing:
        gathered = {GATHERED: student.root + 2 * student.layer} if sharded else {}
        found.append(Moment("the student weighs the traces", held | gathered | {WEIGHING: weighing}))
    if writing:
        copy = {WHOLE_COPY: student.weights} if setup.compute.places_student else {}
        found.append(Moment("the student writes rollouts", held | copy | {ROLLOUTS: writing}))
    return found


def _reading(
    setup: Setup, frozen: Mapping[str, ModelSize], held: Mapping[str, int], tokens: int
) -> Iterator[Moment]:
    """Moments in which frozen models read a micro-batch of so many tokens, beside what is held then."""
    for role in setup.live:
        who = frozen[role]
        reading = {READING: who.bytes * tokens * (3 * who.widest + 4 * who.hidden)}
        if f"gathered of the {role}" in held:
            reading[f"gathered of the {role}"] = who.bytes * who.root + 2 * _gathered_layer(setup, who)
        yield Moment(f"the {role} reads", {**held, **reading})


def _student(setup: Setup, student: StudentBytes) -> tuple[dict[str, int], dict[str, int]]:
    """What a rank's device holds of the student during the whole training, and its gradients."""
    ranks, strategy = setup.length.ranks, setup.compute.trainer.get("strategy")
    if strategy == "deepspeed":
        return _under_deepspeed(setup, student)
    shares = ranks if setup.compute.sharded else 1
    if setup.compute.cpu_offload:
        return {}, {}
    base = {WEIGHTS: _share(student.weights, shares), OPTIMIZER: _share(student.optimizer, shares)}
    if not setup.compute.sharded and ranks > 1:
        base[BUCKETS] = student.gradients
    return base, {GRADIENTS: _share(student.gradients, shares)}


def _under_deepspeed(setup: Setup, student: StudentBytes) -> tuple[dict[str, int], dict[str, int]]:
    ranks, trainer = setup.length.ranks, setup.compute.trainer
    each = 4 if setup.compute.precision == torch.float32 else 2
    weights = each * student.parameters
    base = {WEIGHTS: weights, ENGINE: (4 + each) * min(student.trained, BUCKET)}
    if trainer.get("stage") == 3:
        base[WEIGHTS] = _share(weights, ranks)
        base[GATHERED] = each * min(student.parameters, LIVE)
        base[ENGINE] *= 2
    if trainer.get("offload_optimizer"):
        return base, {}
    base |= {MASTER: _share(4 * student.trained, ranks), OPTIMIZER: _share(_in_single(student), ranks)}
    return base, {GRADIENTS: _share(4 * student.trained, ranks)}


def _share(size: int, shares: int) -> int:
    return -(-size // shares)
