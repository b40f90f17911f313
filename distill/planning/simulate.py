"""Simulate an optimizer step without weights: FLOPs, bytes and live memory of every kernel.

The run's own modules, objective, backward pass and optimizer work on tensors without values
(`planning.weightless`). A GPU need not be there. Not simulated:

- What the student writes in rollouts, and proposed reasoning steps: completions are as long as the data's.
- The pass in which `loss=compact` weighs a problem's traces, which looks at values.
- Memory that a kernel takes and gives back by itself, cuBLAS's workspaces, the allocator's fragmentation.
- Several ranks.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.data.alignment import Alignment
from distill.data.batch import Batch, collate
from distill.data.trace import TeacherView, Trace
from distill.errors import UserError
from distill.generation.sampling import StudentRollouts
from distill.losses.signals import SIGNALS
from distill.models.head import Head
from distill.models.language_model import LanguageModel
from distill.objective.objective import Objective
from distill.objective.step_values import StepValues
from distill.planning.kernels import GPU_BLOCK, Kernel, KernelMeter
from distill.planning.ranks import GRADIENTS, MATRIX, OPTIMIZER
from distill.planning.weightless import WeightlessModel, without_values
from distill.training.in_backward import StepsInBackward
from distill.training.length import Steps
from distill.training.module import DistillModule, Supervision
from distill.training.setup import Setup

STUDENT, HEAD, BACKWARD, STEP = "student", "head and loss", "backward pass", "optimizer step"
_LOOKED_AT = 1000  # steps among which one is looked for whose completions the student writes


@dataclass(frozen=True)
class Simulation:
    """What an optimizer step takes on one device.

    Attributes:
        kernels: by phase and name. Phases: a frozen model's role, `STUDENT`, `HEAD`, `BACKWARD`, `STEP`.
        peaks: largest number of live bytes in each phase.
        held: live bytes of weights, optimizer state and gradients, by name.
    """

    kernels: Mapping[tuple[str, str], Kernel]
    peaks: Mapping[str, int]
    held: Mapping[str, int]

    @property
    def peak(self) -> int:
        return max(self.peaks.values())

    def of(self, *phases: str) -> Kernel:
        """The sum of all kernels of some phases; of all phases without an argument."""
        return sum(
            (kernel for (phase, _), kernel in self.kernels.items() if not phases or phase in phases), Kernel()
        )

    def by_name(self) -> dict[str, Kernel]:
        """All phases' kernels by name, the one that moves most bytes first."""
        found: dict[str, Kernel] = {}
        for (_, name), kernel in self.kernels.items():
            found[name] = found.get(name, Kernel()) + kernel
        return dict(sorted(found.items(), key=lambda item: -item[1].bytes))


def simulate(setup: Setup, traces: Sequence[Sequence[Trace]]) -> Simulation:
    """Simulate an optimizer step after the first one.

    Args:
        setup: the run; its device is simulated, also where there is none.
        traces: those of each micro-batch; only their lengths count.
    """
    if setup.teachers is not None:
        raise UserError(
            "estimate.simulate=true simulates one teacher: leave it out, or name one with model.teacher="
        )
    gpu = setup.compute.device != "cpu"
    objective = _objective(setup.objective)
    batches = [_batch(setup, own) for own in traces]
    models = _models(setup)
    cached = objective.caches_distribution and objective.distribution.whole
    teacher = WeightlessModel(setup.frozen["teacher"]) if cached else None
    with without_values(gpu=gpu):
        meter = KernelMeter(GPU_BLOCK if gpu else 1)
        for role, lm in models.items():
            lm.pretend(gpu=gpu)
            _watch(lm, meter, STUDENT if role == "student" else role)
        held = {
            f"weights of the {role}": meter.hold([*lm.model.parameters(), *lm.model.buffers()])
            for role, lm in models.items()
        }
        module = _Step(setup, objective, models, len(batches))
        if teacher is not None:
            held[MATRIX] = meter.hold([module.hold_matrix(teacher)])
        optimizer = module.optimizer_factory([p for p in module.student.parameters() if p.requires_grad])
        in_backward = setup.compute.optimizer_in_backward
        gradients = list(_gradients(optimizer))
        held[GRADIENTS] = 0 if in_backward else meter.hold(gradients)
        del gradients
        optimizer.step()  # makes its state
        if in_backward:
            optimizer.zero_grad()
            module.in_backward = StepsInBackward(optimizer)
        held[OPTIMIZER] = meter.hold(
            value for state in optimizer.state.values() for value in state.values() if value is not None
        )
        with meter:
            _optimizer_step(setup, module, optimizer, batches, meter)
    return Simulation(dict(meter.kernels), dict(meter.peaks), held)


def _optimizer_step(
    setup: Setup,
    module: "_Step",
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    meter: KernelMeter,
) -> None:
    """The step as Lightning does it."""
    compute, clip = setup.compute, setup.compute.trainer.get("gradient_clip_val")
    mixed = compute.precision != torch.float32
    for number, batch in enumerate(batches):
        with torch.autocast("cpu", compute.precision, enabled=mixed, cache_enabled=False):
            loss = module.training_step(batch, number) / len(batches)
        meter.phase = BACKWARD
        if number == 0:
            optimizer.zero_grad()
        module.on_before_backward(loss)
        loss.backward()
        del loss
    meter.phase = STEP
    module.on_before_optimizer_step(optimizer)
    module.configure_gradient_clipping(optimizer, clip)
    optimizer.step()


def _gradients(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """Gradients as the step before has left them."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
            yield parameter.grad


def _objective(objective: Objective) -> Objective:
    """The objective without what loads an engine or a tokenizer, which the simulation does not use."""
    rollouts = objective.rollouts
    if isinstance(rollouts, StudentRollouts):
        objective = replace(objective, rollouts=replace(rollouts, engine="hf", replay_decay=None))
    if objective.trace_weights is not None:  # its passes are looked at value by value
        objective = replace(objective, trace_weights=None)
    if objective.compares_steps:
        objective = copy.copy(objective)
        objective.proposals = None
    return objective


def _models(setup: Setup) -> dict[str, WeightlessModel]:
    """Student and live frozen models."""
    found: dict[str, WeightlessModel] = {
        "student": WeightlessModel.student(
            setup.student, lora=setup.lora, gradient_checkpointing=setup.gradient_checkpointing
        )
    }
    for role in sorted(setup.objective.live_roles):
        found[role] = WeightlessModel(setup.frozen[role])
        found[role].model.requires_grad_(False).eval()
    if not setup.objective.across_vocabularies:
        # Tokenizers of a family have as many tokens; without them, output matrices may have more rows.
        rows = min(lm.vocab_size for lm in found.values())
        for lm in found.values():
            lm.vocab_size = rows
    return found


def _watch(lm: WeightlessModel, meter: KernelMeter, phase: str) -> None:
    """Make a model's reading a phase, and what follows it another."""
    read = lm.completion_head

    def completion_head(*args: Any) -> Head:
        meter.phase = phase
        head = read(*args)
        meter.phase = HEAD
        return head

    lm.completion_head = completion_head  # pyright: ignore[reportAttributeAccessIssue]


class _Step(DistillModule):
    """The module of a run, without what writes text and what reads the values of tensors."""

    def __init__(
        self,
        setup: Setup,
        objective: Objective,
        models: Mapping[str, WeightlessModel],
        micro_batches: int,
    ) -> None:
        frozen: dict[str, LanguageModel] = {role: lm for role, lm in models.items() if role != "student"}
        super().__init__(
            models["student"],
            objective,
            setup.optimizer,
            setup.schedule,
            steps=Steps(limit=_LOOKED_AT, expected=_LOOKED_AT),
            supervision=Supervision(frozen, grade=setup.recipe.grade),
            seed=setup.seed,
            layout=setup.layout,
        )
        self.student.train()
        self._trainer: Any = SimpleNamespace(
            global_step=_step_number(setup, micro_batches),
            accumulate_grad_batches=micro_batches,
            world_size=1,
            optimizers=[SimpleNamespace(param_groups=[{"lr": 0.0}])],
            strategy=SimpleNamespace(reduce=lambda value, reduce_op: value),
        )

    def hold_matrix(self, teacher: WeightlessModel) -> Tensor:
        """Have the teacher's output matrix, which turns cached hidden states into distributions."""
        weight = teacher.model.get_output_embeddings().weight
        rows = teacher.vocab_size if self.objective.across_vocabularies else self.student_lm.vocab_size
        self.teacher_matrix = torch.empty(rows, weight.shape[1], dtype=weight.dtype)
        return self.teacher_matrix

    def _roll_out(self, batch: Batch, rollouts: StudentRollouts, number: int) -> tuple[Batch, None]:
        rewards = {
            name: torch.zeros(batch.mask.shape)
            for name in self.objective.signals
            if SIGNALS[name].shape == "reward"
        }
        return replace(batch, signals={**batch.signals, **rewards}), None

    def _propose(self, batch: Batch, number: int) -> StepValues:
        values = torch.zeros(batch.mask.shape)
        return StepValues(values, values, batch.mask, batch.mask)

    def _constants(self) -> dict[str, Tensor]:
        """All tokens of the smaller vocabulary as shared ones."""
        matrix = self.teacher_matrix
        theirs = self.frozen["teacher"].vocab_size if matrix is None else len(matrix)
        ids = torch.arange(min(self.student_lm.vocab_size, theirs))
        return {"shared_ids": torch.stack([ids, ids])}

    def _check_finite(self, loss: float, gradient_norm: float) -> None:
        pass

    def _log_step(self, values: dict[str, float], gradient_norm: float, lr: float) -> None:
        pass


def _step_number(setup: Setup, micro_batches: int) -> int:
    """A step in which the student writes as many completions as in any."""
    rollouts = setup.objective.rollouts
    if not isinstance(rollouts, StudentRollouts):
        return 0
    written = [
        sum(rollouts.chosen(setup.seed, step * micro_batches + number) for number in range(micro_batches))
        for step in range(_LOOKED_AT)
    ]
    return written.index(max(written))


def _batch(setup: Setup, traces: Sequence[Trace]) -> Batch:
    """A batch of traces with cached signals of their lengths."""
    objective = setup.objective
    across = objective.compares_tokens or objective.compares_spans
    laid = [_with_signals(trace, objective.batch_signals, across) for trace in traces]
    batch = collate(laid, objective.batch_signals, layout=setup.layout)
    if not objective.caches_distribution:
        return batch
    return replace(batch, distribution=_cached(setup, batch.tokens))


def _with_signals(trace: Trace, signals: Sequence[str], aligned: bool) -> Trace:
    count = len(trace.completion_ids)
    view = trace.teacher_view
    if aligned:
        view = view or TeacherView(trace.prompt_ids, trace.completion_ids)
        same = np.arange(count)
        view = replace(view, alignment=Alignment(same, same, np.ones(count, dtype=bool)))
    values = {name: np.zeros(count, dtype=np.float32) for name in signals}
    return replace(trace, signals=values, teacher_view=view)


def _cached(setup: Setup, tokens: int) -> dict[str, Tensor]:
    """Cached parts of the teacher's distribution of so many tokens."""
    wanted = setup.objective.distribution
    if wanted.whole:
        lm = WeightlessModel(setup.frozen["teacher"])
        dtype = lm.model.dtype if wanted.dtype is None else getattr(torch, wanted.dtype)
        return {
            "hidden_states": torch.zeros(tokens, lm.model.get_output_embeddings().in_features, dtype=dtype)
        }
    known = wanted.top_k if wanted.source == "top_k" else wanted.samples
    found = {
        "ids": torch.zeros(tokens, known, dtype=torch.int32),
        "logprobs": torch.zeros(tokens, known),
    }
    return found | ({"log_rest": torch.zeros(tokens)} if wanted.source == "top_k" else {})
