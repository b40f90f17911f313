"""LightningModule with student and frozen models: training step, gradient normalization, metrics."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from distill.config.instantiate import OptimizerFactory
from distill.data.batch import Batch, collate
from distill.data.layout import BatchLayout
from distill.data.trace import Grader, Trace
from distill.errors import NonFiniteError, UserError
from distill.generation.sampling import StudentRollouts
from distill.losses.chunked import ChunkedLoss, PerTokenLosses
from distill.losses.logits import label_logprobs
from distill.losses.several_heads import heads_of
from distill.losses.signals import ROLES, Role, signals
from distill.losses.sparse import SparseDistribution
from distill.models.flops import Meter, head_flops
from distill.models.head import Head
from distill.models.language_model import LanguageModel
from distill.models.lora import fingerprint, frozen_names, is_adapted
from distill.models.sharding import fill, is_sharded, make_even_passes, outline, shard, whole_weights
from distill.objective.objective import Objective
from distill.objective.rewards import Rewarded
from distill.objective.step_values import StepValues
from distill.objective.terms import LossSums, MicroBatch, spread
from distill.teacher.batches import at_students_tokens, read_batch
from distill.teacher.models import Joint, TeacherModels
from distill.teacher.retokenize import Retokenizer
from distill.training.deepspeed import ZeroStrategy
from distill.training.fsdp import FsdpStrategy
from distill.training.in_backward import StepsInBackward, multiply
from distill.training.length import Steps
from distill.training.replay import behind, replayed, step_ends
from distill.training.rollouts import KeptRollouts, RolloutWriter, repeated, reward
from distill.training.schedule import Schedule
from distill.training.step_metrics import WEIGHT_BINS, StepMetrics


@dataclass(frozen=True)
class Supervision:
    """Everything besides the student that an objective needs during training.

    Attributes:
        models: frozen models needed in memory, by role (`Objective.live_roles`), such as a teacher that
            gives whole distributions or logprobs of rollouts.
        teacher_matrix: [vocab, hidden] the teacher's output matrix, if its hidden states are cached.
        readers: make each teacher's view of rollouts, by its role.
        grade: grades answers, if the objective rewards them or values reasoning steps by them.
        cached_flops: FLOPs that frozen models spent on cached signals; the teacher's total starts here.
        teachers: several teachers; None: there is at most one. Those that are in memory together are in
            `models` too.
    """

    models: Mapping[str, LanguageModel] = field(default_factory=dict)
    teacher_matrix: Tensor | None = None
    readers: Mapping[str, Retokenizer] = field(default_factory=dict)
    grade: Grader | None = None
    cached_flops: float = 0.0
    teachers: TeacherModels | None = None


class DistillModule(lightning.LightningModule):
    """Train a student with an objective.

    Frozen models such as the teacher are not submodules: they are not in `state_dict`, not in the optimizer,
    and `.train()` does not reach them.

    Args:
        student: the model to train; the only submodule.
        objective: rollouts × token_loss × token_weight.
        optimizer: makes the optimizer from the parameters.
        schedule: learning rate schedule.
        steps: number of optimizer steps of the whole run.
        supervision: frozen models, grader and so on that the objective needs during training.
        seed: of rollouts and of the control `shuffled`.
        layout: batch layout of the student's rollouts.
    """

    def __init__(
        self,
        student: LanguageModel,
        objective: Objective,
        optimizer: OptimizerFactory,
        schedule: Schedule,
        *,
        steps: Steps,
        supervision: Supervision = Supervision(),
        seed: int = 0,
        layout: BatchLayout = BatchLayout(),  # noqa: B008  frozen
    ) -> None:
        super().__init__()
        self.student = student.model
        self.student_lm = student
        self.frozen = dict(supervision.models)
        self.teacher_matrix = supervision.teacher_matrix
        self.readers = supervision.readers
        self.teachers = supervision.teachers
        self.grade = supervision.grade
        self._shared_ids: Tensor | None = None
        self.objective = objective
        self.optimizer_factory = optimizer
        self.schedule = schedule
        self.steps = steps.limit
        self.max_tokens = steps.max_tokens
        self.expected_steps = steps.places
        self.seed = seed
        self.log_every = steps.log_every
        self.totals = {"tokens": 0.0, "seconds": 0.0, "rollout_tokens": 0.0, "rollout_seconds": 0.0}
        self.totals |= {"student_flops": 0.0, "teacher_flops": 0.0}  # teacher_flops: without cached_flops
        self.cached_flops = supervision.cached_flops
        self.layout = layout
        self._meters = {"student": Meter([student]), "teacher": Meter(self.frozen.values())}
        if self.teachers is not None:
            self.teachers.watch = self._meters["teacher"].watch
        rollouts = objective.rollouts
        self._writer = RolloutWriter(student, rollouts) if isinstance(rollouts, StudentRollouts) else None
        self._kept = KeptRollouts(objective.num_iterations)
        self._step_ends = step_ends(rollouts, student.tokenizer)
        self.step_metrics = StepMetrics(objective, student.end_ids, self._step_ends)
        self._micro_batch = 0
        self._gradient_norm = torch.zeros(())
        self.in_backward: StepsInBackward | None = None  # None: weights are stepped after the backward pass
        self._values: dict[str, float] = {}  # of the optimizer step, summed over micro-batches and ranks
        self._factor = 1.0  # by which the step's gradient is multiplied
        self.stop_wanted = False  # this rank received a signal
        self.stopping = False  # some rank received a signal; the same on all ranks
        self.save_wanted = False  # this rank's clock says that a checkpoint is due
        self.saving = False  # a checkpoint is due on some rank; the same on all ranks
        self._resumed_rng: dict[str, Tensor] = {}
        self._rollout_seconds = self._proposal_seconds = self._reward_seconds = 0.0
        self._step_began = 0.0
        self._outline: LanguageModel | None = None  # of a sharded student
        self._base: str | None = None  # fingerprint of a sharded student's frozen weights
        self._check()

    def _check(self) -> None:
        """Check that all is there that the objective asks for."""
        known = {*self.frozen, *(() if self.teachers is None else ("teacher",))}
        if missing := self.objective.live_roles - known:
            raise UserError(
                f"this loss compares the student with another model as it trains: set "
                f"{', '.join(f'model.{role}=<model>' for role in sorted(missing))}"
            )
        if self.objective.compares_steps and self.objective.proposals is not None:
            self.objective.proposals.check(self.student_lm.source, self.grade)
        if self.objective.rewarded and self.objective.rewards is not None:
            self.objective.rewards.check(self.grade)

    def configure_model(self) -> None:
        """Shard student and frozen models, if the strategy does; Lightning calls it before every fit."""
        strategy = self.trainer.strategy
        if not isinstance(strategy, FsdpStrategy | ZeroStrategy) or self.sharded:
            return
        self._base = fingerprint(self) if is_adapted(self.student) else None
        self._outline = outline(self.student_lm, shared=[self._meters["student"]])
        if isinstance(strategy, ZeroStrategy):  # whose engine shards the student when it is made
            if strategy.zero_stage_3:
                make_even_passes(self.student_lm)
            return
        mesh, offload = strategy.device_mesh["data_parallel"], strategy.cpu_offload
        precision = torch.bfloat16 if self.trainer.precision == "bf16-mixed" else torch.float32
        shard(self.student_lm, mesh, precision, cpu_offload=offload)
        if self.objective.compares_steps:  # the teacher writes: every rank has all of it
            return
        for lm in self.frozen.values():
            lm.model.requires_grad_(False).eval()
            shard(lm, mesh, precision, cpu_offload=offload)

    @property
    def sharded(self) -> bool:
        return self._outline is not None

    @property
    def outline(self) -> torch.nn.Module:
        """The student with whole shapes, whose weights may be missing."""
        return self.student if self._outline is None else self._outline.model

    @property
    def _zero(self) -> ZeroStrategy | None:
        strategy = self.trainer.strategy
        return strategy if isinstance(strategy, ZeroStrategy) else None

    @contextmanager
    def whole_student(
        self, *, keep: bool = True, device: torch.device | None = None
    ) -> Iterator[LanguageModel]:
        """Context with the student and its whole weights: itself, or a copy if it is sharded. Enter it on all
        ranks.

        Args:
            keep: whether this rank wants the copy; the others take part, and get one without weights.
            device: of the copy; None: the module's.
        """
        if self._outline is None:
            yield self.student_lm
            return
        gather = self._zero.whole_weights if self._zero is not None else whole_weights
        weights = gather(self.student, device or self.device, keep=keep)
        fill(self._outline.model, weights)
        self._outline.model.train(self.student.training)
        try:
            yield self._outline
        finally:
            fill(self._outline.model, {name: value.to("meta") for name, value in weights.items()})

    def on_fit_start(self) -> None:
        for lm in self.frozen.values():
            if not is_sharded(lm.model):
                lm.model.requires_grad_(False).eval().to(self.device)
        if self.teacher_matrix is not None:
            self.teacher_matrix = self.teacher_matrix.to(self.device)

    def close(self) -> None:
        """End the engine that writes rollouts, which holds memory and maybe processes."""
        if self._writer is not None:
            self._writer.close()

    def on_train_start(self) -> None:
        # Models are loaded in eval mode, and Lightning does not change the mode.
        self.student.train()
        if self._resumed_rng:
            # Done last, because set-up (data loaders, evaluation before training) draws random numbers too.
            torch.set_rng_state(self._resumed_rng["rng"].cpu())
            if "cuda_rng" in self._resumed_rng and torch.cuda.is_available():
                torch.cuda.set_rng_state(self._resumed_rng["cuda_rng"].cpu())
        self._step_began = time.perf_counter()

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer_factory([p for p in self.student.parameters() if p.requires_grad])
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self.schedule.factor(self._position(step), self.expected_steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @property
    def budget_spent(self) -> bool:
        """Whether the token budget is used up; the same on every rank."""
        return self.max_tokens is not None and self.totals["tokens"] >= self.max_tokens

    def _position(self, step: int) -> float:
        """Position in the schedule after `step` optimizer steps, from 0 to `expected_steps`.

        With a token budget it follows the tokens used rather than the steps.
        """
        if self.max_tokens is None:
            return step
        share = max(self.totals["tokens"] / self.max_tokens, step / self.steps)
        return share * self.expected_steps

    def _progress(self, step: int) -> float:
        """Share of training done after `step` optimizer steps, in [0, 1]."""
        return min(1.0, self._position(step) / self.expected_steps)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        number = self.trainer.global_step * self.trainer.accumulate_grad_batches + self._micro_batch
        self._micro_batch += 1
        for meter in self._meters.values():
            meter.take()  # discard FLOPs of evaluations between two steps
        rollouts = self.objective.rollouts
        on_policy = isinstance(rollouts, StudentRollouts) and rollouts.chosen(self.seed, number)
        rewarded = None
        if isinstance(rollouts, StudentRollouts) and on_policy:
            again = self._kept.again(self.trainer.global_step, self._micro_batch)
            batch, rewarded = again or self._roll_out(batch, rollouts, number)
        batch, own = self._weigh_traces(batch)
        micro_batch, steps = self._compared(batch, number, on_policy)
        student = self.student_lm.completion_head(batch.input_ids, batch.mask, batch.layout)
        inputs = self.objective.chunked_inputs(student, micro_batch)
        # The three stages of `Objective.__call__`, inlined to keep the path from here to the loss short.
        found = PerTokenLosses(*ChunkedLoss.apply(student.hidden, student.weight, inputs))
        result = self._with_consistency(self.objective.sums(micro_batch, found), batch, student, own)
        self.step_metrics.add(result, batch, on_policy=on_policy, steps=steps)
        if rewarded is not None:
            self.step_metrics.reward(rewarded)
        if on_policy:
            self._kept.keep(self.trainer.global_step, self._micro_batch, batch, rewarded, result.logprobs)
        self._count_heads(student, micro_batch)
        self.step_metrics.spend(**{name: meter.take() for name, meter in self._meters.items()})
        # on_before_optimizer_step divides the whole step's sum by the whole step's denominator. Undo
        # Lightning's division by the number of micro-batches, which would give a mean of means.
        return result.total * self.trainer.accumulate_grad_batches

    def _weigh_traces(self, batch: Batch) -> tuple[Batch, Tensor | None]:
        """The batch with the objective's weights of its traces, and these weights, if it has any."""
        weigh = self.objective.trace_weights
        if weigh is None:
            return batch, None
        own, data = weigh.weights(batch, self.student_lm), batch.trace_weights
        return replace(batch, trace_weights=own if data is None else own * data), own

    def _with_consistency(
        self, result: LossSums, batch: Batch, student: Head, own: Tensor | None
    ) -> LossSums:
        """The sums with what the answers of a problem's traces have to agree on."""
        weigh = self.objective.trace_weights
        if weigh is None or own is None or not weigh.consistency:
            return result
        return replace(
            result, total=result.total + weigh.consistency_loss(batch, student, own, self.student_lm)
        )

    def on_before_backward(self, loss: Tensor) -> None:
        """Read the step's denominator, if the backward pass steps the weights."""
        if self.in_backward is not None:
            self.in_backward.begin(self._read_sums(torch.zeros(()))[0])

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradient by the step's denominator, summed over all micro-batches and ranks."""
        if self._zero is not None and self.trainer.fit_loop._should_accumulate():
            return  # DeepSpeed accumulates by itself: this is called for every micro-batch
        if self.in_backward is not None:
            (unscaled_norm,) = self.in_backward.end().double().view(1).tolist()
            self.end_step(unscaled_norm * self._factor)
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None and self._zero is None]
        norm = torch.nn.utils.get_total_norm(gradients)
        factor, unscaled_norm = self._read_sums(norm)
        if self._zero is not None:  # which calls `end_step` when it has the norm
            self._zero.divide(1 / factor if factor else 1.0)
            return
        multiply(gradients, factor)
        self._gradient_norm = norm * factor
        self.end_step(unscaled_norm * factor)

    def _read_sums(self, norm: Tensor) -> tuple[float, float]:
        """Read the step's sums over all micro-batches and ranks.

        Args:
            norm: of the gradient, before it is divided.

        Returns:
            By what to multiply the gradient, and `norm`.

        Raises:
            UserError: the sums or the norm are no numbers, or the denominator is negative.
        """
        local_sums = self.step_metrics.sums
        wanted = local_sums.new_tensor([float(self.stop_wanted), float(self.save_wanted)])
        sums: Any = self.trainer.strategy.reduce(torch.cat([local_sums, wanted]), reduce_op="sum")
        whole_norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        *numbers, unscaled_norm = torch.cat(
            [sums, whole_norm.double().view(1).to(sums.device)]
        ).tolist()  # the only device synchronization of the step
        values: dict[str, float] = dict(
            zip([*self.step_metrics.names, "stops", "saves"], numbers, strict=True)
        )
        divisor = self.step_metrics.divisor(values)
        if divisor < 0:
            raise UserError(
                f"the weights of optimizer step {self.trainer.global_step + 1} sum to "
                f"{divisor:.4g}, and a negative sum cannot be the divisor: take "
                f"loss.normalize=tokens and a number for loss.scale"
            )
        # DDP averages gradients over ranks, hence world_size. A zero denominator means that all weights are
        # zero, and so is the gradient.
        factor = self.trainer.world_size / divisor if divisor > 0 else 0.0
        self._check_finite(values["total"], unscaled_norm * factor)
        self._values, self._factor = values, factor
        return factor, unscaled_norm

    def end_step(self, gradient_norm: float) -> None:
        """Log and close an optimizer step.

        Args:
            gradient_norm: norm of the divided gradient, before clipping.

        Raises:
            NonFiniteError: the norm is no number.
        """
        values = self._values
        self._check_finite(values["total"], gradient_norm)
        # A checkpoint has no completions, so that a run is resumed where others are written.
        whole = (self.trainer.global_step + 1) % self.objective.num_iterations == 0
        self.stopping, self.saving = values["stops"] > 0 and whole, values["saves"] > 0 and whole
        self._log_step(values, gradient_norm, self.trainer.optimizers[0].param_groups[0]["lr"])
        divisor = self.step_metrics.divisor(values)
        mean = values["total"] / divisor if divisor > 0 else 0.0
        self.objective.after_step(mean, self._progress(self.trainer.global_step + 1))
        self.step_metrics.close()
        self._micro_batch = 0

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # Lightning's own clipping rejects fused optimizers in mixed precision and recomputes the norm.
        # DeepSpeed and steps in the backward pass clip by themselves.
        if not gradient_clip_val or self._zero is not None or self.in_backward is not None:
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        else:
            torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, self._gradient_norm)

    def _compared(
        self, batch: Batch, number: int, on_policy: bool = False
    ) -> tuple[MicroBatch, StepValues | None]:
        """The objective's view of a batch: its tokens, and what the frozen models say of them.

        Args:
            batch: tokens.
            number: seeds what the objective draws.
            on_policy: whether the student wrote the completions.
        """
        heads = self._frozen_heads(batch, on_policy)
        known = dict(batch.signals) | self._scored_by_frozen(batch, heads, on_policy)
        steps = self._propose(batch, number) if self.objective.compares_steps else None
        if steps is not None:
            known |= {"student_step_value": steps.student, "teacher_step_value": steps.teacher}
        compared, constants = None, {}
        if batch.teacher_view is not None or self.objective.compares_tokens:
            compared, known["same_token"] = _comparable(batch)
            constants = self._constants() if self.objective.compares_tokens else {}
        known |= _spans(batch) if self.objective.compares_spans else {}
        micro_batch = MicroBatch(
            batch.mask,
            batch.labels,
            known,
            others={
                **{name: heads[role] for name, role in self.objective.live_distributions.items()},
                **self._cached_distribution(batch),
            },
            compared=compared,
            trace_weights=batch.trace_weights,
            places=batch.places,
            constants=constants,
            by_student=on_policy,
            progress=self._progress(self.trainer.global_step),
            seed=self.seed * 1_000_003 + number,
        )
        return micro_batch, steps

    @torch.no_grad()
    def validate(self, batch: Batch, number: int, sums: StepMetrics) -> None:
        """Add a validation batch to `sums`: the training loss with its weights, without a gradient.

        Args:
            batch: traces of the data, on the module's device.
            number: of the batch; seeds what the objective draws, so that every evaluation draws the same.
            sums: of all validation batches.
        """
        proposing = self._proposal_seconds
        with self._zero.whole(self.student) if self._zero is not None else nullcontext():
            batch, own = self._weigh_traces(batch)
            micro_batch, steps = self._compared(batch, number)
            head = self.student_lm.completion_head(batch.input_ids, batch.mask, batch.layout)
            student = Head(head.hidden, head.weight.detach())  # its gradient comes with its forward pass
            inputs = self.objective.chunked_inputs(student, micro_batch)
            found = PerTokenLosses(*ChunkedLoss.apply(student.hidden, student.weight, inputs))
            result = self._with_consistency(self.objective.sums(micro_batch, found), batch, student, own)
        self._proposal_seconds = proposing  # it counts training only
        sums.add(result, batch, on_policy=False, steps=steps)

    def _frozen_heads(self, batch: Batch, on_policy: bool) -> dict[Role, Joint]:
        """Heads of the frozen models that this batch needs; cached signals are not computed again."""
        roles = set(self.objective.live_distributions.values())
        if on_policy:
            roles |= set(self.objective.cached_signals.values())
        # FSDP gathers weights into buffers that it uses again in training: no inference tensors.
        mode = torch.no_grad if self.sharded else torch.inference_mode
        heads: dict[Role, Joint] = {}
        if "teacher" in roles and self.teachers is not None:
            heads["teacher"] = self.teachers.head(batch, mode, even=self.sharded)
        with mode():
            for role in ROLES:
                if role not in roles or role in heads:
                    continue
                lm = self.frozen[role]
                if role == "teacher":
                    heads[role] = read_batch(lm, batch)
                else:
                    heads[role] = lm.completion_head(batch.input_ids, batch.mask, batch.layout)
        return heads

    def _scored_by_frozen(
        self, batch: Batch, heads: Mapping[Role, Joint], on_policy: bool
    ) -> dict[str, Tensor]:
        """[batch, seq] frozen models' logprobs of the student's rollouts; empty for traces of the data, whose
        logprobs are cached."""
        found = {}
        for name, role in self.objective.cached_signals.items() if on_policy else ():
            head, labels = heads[role], batch.completion_labels
            flat = label_logprobs(head, labels) if isinstance(head, Head) else head.label_logprobs(labels)
            self._meters["teacher"].add(sum(map(head_flops, heads_of(head))))
            found[name] = spread(flat, batch.mask)
        return found

    def _count_heads(self, student: Head, batch: MicroBatch) -> None:
        """Count the FLOPs of products with output matrices, forward and backward."""
        # The loss, the signals computed before it, and the gradients of hidden states and matrix.
        products = 1 + bool(self.objective.precomputed_signals)
        products += student.hidden.requires_grad + student.weight.requires_grad
        self._meters["student"].add(products * head_flops(student))
        if self.objective.trace_weights is not None:  # by states before each token and behind the last one
            states = len(student.hidden) + len(batch.mask)
            self._meters["student"].add(2.0 * states * student.weight.numel())
        rows = ("all", "student" if batch.by_student else "dataset")
        terms = [term for term in self.objective.terms.values() if term.rows in rows]
        compared = set().union(*(signals(term.token_loss) for term in terms))
        compared |= {"log_p"} if self.objective.overlap_top_k else set()
        for name, other in batch.others.items():
            if name in compared:
                self._meters["teacher"].add(sum(map(head_flops, heads_of(other))))

    def _cached_distribution(self, batch: Batch) -> dict[str, Joint | SparseDistribution]:
        """The teacher's distribution from the batch's cached data, as signal `log_p`."""
        if not self.objective.caches_distribution:
            return {}
        if self.teachers is not None:
            return {"log_p": self.teachers.cached(batch, self.objective.distribution)}
        found = self.objective.distribution.of(batch.distribution, self.teacher_matrix)
        if isinstance(found, Head) and batch.teacher_view is not None:
            found = at_students_tokens(found, batch.teacher_view, batch.tokens)
        return {"log_p": found}

    def _constants(self) -> dict[str, Tensor]:
        """[2, shared] ids of the tokens that student and teacher share; computed once."""
        if self._shared_ids is None:
            ids = torch.from_numpy(self.readers["teacher"].shared_ids())
            matrix = self.teacher_matrix
            theirs = self.frozen["teacher"].vocab_size if matrix is None else len(matrix)
            sizes = torch.tensor([[self.student_lm.vocab_size], [theirs]])
            self._shared_ids = ids[:, (ids < sizes).all(0)].to(self.device)
        return {"shared_ids": self._shared_ids}

    def _roll_out(
        self, batch: Batch, rollouts: StudentRollouts, number: int
    ) -> tuple[Batch, Rewarded | None]:
        """Replace the batch's completions by the student's rollouts, `rollouts.samples` of each prompt, and
        reward them if the objective does."""
        began = time.perf_counter()
        seed = (self.seed * 1_000_003 + number) * 4_099 + self.global_rank
        sampling = rollouts.sampling_at(self._progress(self.trainer.global_step))
        begun = replayed(batch, rollouts, self._step_ends, seed)
        own = repeated(batch.prompts(), rollouts.samples)
        prompts = [[*prompt, *ids] for prompt, ids in zip(own, begun, strict=True)]
        reads = self._teachers_prompts(batch, begun, rollouts.samples)
        # Such a teacher reads the same completion tokens, after a prompt that may be longer.
        rooms = [reader.room(prompt) for reader, prompt in reads.values() if not reader.foreign]
        sampling = replace(sampling, max_new_tokens=min([sampling.max_new_tokens, *rooms]))
        assert self._writer is not None
        with self.whole_student() as self._writer.student:
            stops = self._step_ends if rollouts.writes_step else ()
            step = self.trainer.global_step
            written = self._writer.write(prompts, sampling, seed=seed, step=step, stops=stops)
        self._meters["student"].add(self._writer.take_uncounted_flops())
        traces = [
            Trace(example, np.asarray(prompt, dtype=np.int32), np.asarray(ids, dtype=np.int32))
            for example, prompt, ids in zip(
                repeated(batch.examples, rollouts.samples), prompts, written, strict=True
            )
        ]
        for row, (reader, teachers_prompt) in reads.items():
            traces[row].teacher_view = reader.read(teachers_prompt, traces[row].completion_ids.tolist())
        for part in batch.parts:
            for first in (row * rollouts.samples for row in part.rows):
                for trace in traces[first : first + rollouts.samples]:
                    trace.teacher = part.teacher
        self._rollout_seconds += time.perf_counter() - began
        self.step_metrics.replay(sum(map(len, begun)))
        rewarded, signals = None, list(self.objective.problem_signals)
        for name in signals:
            values = repeated(batch.signals[name].amax(-1).tolist(), rollouts.samples)  # zero on the prompt
            for trace, value in zip(traces, values, strict=True):
                trace.signals[name] = np.full(len(trace.completion_ids), value, dtype=np.float32)
        if self.objective.rewards is not None and self.grade is not None:
            began = time.perf_counter()
            rewarded = reward(self.objective.rewards, self.grade, traces, self.student_lm, rollouts.samples)
            signals += rewarded.signals
            self._reward_seconds += time.perf_counter() - began
        pad_id = int(self.student_lm.tokenizer.pad_token_id or 0)
        return collate(traces, signals, pad_id, self.layout).to(self.device), rewarded

    def _teachers_prompts(
        self, batch: Batch, begun: Sequence[list[int]], samples: int
    ) -> dict[int, tuple[Retokenizer, np.ndarray]]:
        """For each rollout that a teacher reads in other tokens: who makes its view, and its prompt.

        Args:
            batch: of the prompts.
            begun: for each rollout the tokens that stand behind the prompt already.
            samples: rollouts of each prompt.
        """
        # Mixed teachers read the same tokens: the shortest context counts.
        shortest = min(self.readers, key=lambda role: self.readers[role].teacher.context_length, default="")
        whole = (shortest, tuple(range(len(batch.examples))), batch.teacher_view)
        sides = [(part.teacher, part.rows, part.batch.teacher_view) for part in batch.parts] or [whole]
        return {
            row * samples + number: (
                self.readers[teacher],
                behind([prompt], [begun[row * samples + number]])[0],
            )
            for teacher, rows, view in sides
            if view is not None and teacher in self.readers
            for row, prompt in zip(rows, view.prompts, strict=True)
            for number in range(samples)
        }

    def _propose(self, batch: Batch, number: int) -> StepValues:
        """Let student and teacher propose next reasoning steps for the batch's prefixes, and value them."""
        began = time.perf_counter()
        assert self.objective.proposals is not None
        seed = (self.seed * 1_000_003 + number) * 4_099 + self.global_rank
        parts = [(part.teacher, part.rows, part.batch) for part in batch.parts] or [("teacher", (), batch)]
        found = []
        with self.whole_student() as student:
            for place, (role, rows, own) in enumerate(parts):
                teacher = self.frozen[role] if self.teachers is None else self.teachers.get(role)
                values = self.objective.proposals.values(
                    student, teacher, own, grade=self.grade, seed=seed + 7_919 * place
                )
                found.append((rows, values))
                matrix = teacher.output_matrix
                self._meters["teacher"].add(2.0 * values.scored * matrix.numel())
        self._proposal_seconds += time.perf_counter() - began
        return found[0][1] if len(found) == 1 else StepValues.joined(found, batch.mask)

    def leave_out(self, seconds: float) -> None:
        """Exclude time spent between two steps (on evaluation) from the step's seconds."""
        self._step_began += seconds

    def _log_step(self, values: dict[str, float], gradient_norm: float, lr: float) -> None:
        now = time.perf_counter()
        seconds, self._step_began = now - self._step_began, now
        self.totals["tokens"] += values["tokens"]
        self.totals["seconds"] += seconds
        self.totals["rollout_tokens"] += values["rollout_tokens"]
        self.totals["rollout_seconds"] += self._rollout_seconds
        for name in ("student_flops", "teacher_flops"):
            self.totals[name] += values[name]
        metrics = self.step_metrics.metrics(values) | {
            "train/tokens_total": self.totals["tokens"],
            "train/seconds_total": self.totals["seconds"],
            "train/student_flops_total": self.totals["student_flops"],
            "train/teacher_flops_total": self.cached_flops + self.totals["teacher_flops"],
            "train/gradient_norm": gradient_norm,
            "train/lr": lr,
            "train/seconds": seconds,
            "train/tokens_per_second": values["tokens"] / max(seconds, 1e-9),
        }
        if isinstance(self.objective.rollouts, StudentRollouts):
            metrics["rollouts/seconds"] = self._rollout_seconds
        if self.objective.rewarded:
            metrics["rewards/seconds"] = self._reward_seconds
        if self.objective.compares_steps:
            metrics["steps/seconds"] = self._proposal_seconds
        metrics |= self.step_metrics.end_token(values)  # last, as the last columns of metrics.csv
        self._rollout_seconds = self._proposal_seconds = self._reward_seconds = 0.0
        self.totals.setdefault("first_loss", metrics["train/loss"])
        self.totals["last_loss"] = metrics["train/loss"]
        # Log with the optimizer step's own number: Lightning's counter is one behind after resuming.
        step = self.trainer.global_step + 1
        if step == 1 or step % self.log_every == 0 or step == self.steps or self.budget_spent:
            for logger in self.trainer.loggers:
                logger.log_metrics(metrics, step=step)

    def _check_finite(self, loss: float, gradient_norm: float) -> None:
        what = "loss" if not math.isfinite(loss) else "gradient"
        if math.isfinite(loss) and math.isfinite(gradient_norm):
            return
        traces = self.step_metrics.traces
        shown = ", ".join(traces[:8]) + (", ..." if len(traces) > 8 else "")
        found = (
            f"the {what} is {loss if what == 'loss' else gradient_norm} at optimizer step "
            f"{self.trainer.global_step + 1} (batch with traces {shown})"
        )
        remedy = "Lower optimizer.lr, or look at these traces"
        if what == "gradient" and self.in_backward is not None:
            raise UserError(
                f"{found}: weights are updated with it, as trainer.optimizer_in_backward steps them before "
                f"all gradients are known, and this student is not kept; earlier checkpoints are. {remedy}"
            )
        raise NonFiniteError(
            f"{found}: stopped before the update; the student before it is kept as a checkpoint. {remedy}"
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if frozen := frozen_names(
            self
        ):  # LoRA: frozen weights are loaded from the model's source when resuming
            state = checkpoint["state_dict"]
            checkpoint["state_dict"] = {name: value for name, value in state.items() if name not in frozen}
            checkpoint["base"] = self._base or fingerprint(self)
        # Lightning does not save the random generators (used by dropout) and our totals, which an exact
        # resume needs. Tensors and numbers only, so that weights_only=True can load them.
        checkpoint["rng"] = torch.get_rng_state()
        if torch.cuda.is_available():
            checkpoint["cuda_rng"] = torch.cuda.get_rng_state()
        if self.trainer.world_size > 1:  # another number of ranks goes on with the first one's
            for name in ("rng", "cuda_rng"):
                if name in checkpoint:
                    own = checkpoint[name].to(self.device)
                    every = [torch.empty_like(own) for _ in range(self.trainer.world_size)]
                    torch.distributed.all_gather(every, own)
                    checkpoint[f"{name}_of_ranks"] = torch.stack(every).cpu()
        checkpoint["totals"] = dict(self.totals)
        checkpoint["objective"] = self.objective.state()
        checkpoint["weight_counts"] = self.weight_counts(self.step_metrics.weight_counts)

    def weight_counts(self, own: Tensor | None) -> Tensor | None:
        """[bins] a histogram of weights summed over ranks, of each rank's own; all ranks call this."""
        if self.trainer.world_size == 1:
            return own
        own = torch.zeros(len(WEIGHT_BINS) - 1) if own is None else own
        found: Any = self.trainer.strategy.reduce(own.to(self.device, torch.float64), reduce_op="sum")
        return found

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "base" in checkpoint:
            if checkpoint["base"] != (self._base or fingerprint(self)):
                raise UserError(
                    f"the weights of model.student={self.student_lm.source.name} are not those beside which "
                    f"the checkpoint's adapters were trained: put those back, or start anew without "
                    f"ckpt_path="
                )
            whole = {} if is_sharded(self.student) else self.state_dict()
            checkpoint["state_dict"] |= {name: whole[name] for name in frozen_names(self) if name in whole}
        self._resumed_rng = {name: checkpoint[name] for name in ("rng", "cuda_rng") if name in checkpoint}
        for name in self._resumed_rng:
            every = checkpoint.get(f"{name}_of_ranks")  # earlier versions lack it
            if every is not None and len(every) == self.trainer.world_size:
                self._resumed_rng[name] = every[self.global_rank].clone()
        uncounted = dict.fromkeys(
            ("student_flops", "teacher_flops"), math.nan
        )  # checkpoints of earlier versions lack them
        self.totals = uncounted | checkpoint["totals"]
        self.objective.load_state(checkpoint["objective"])
        if self.global_rank == 0:  # they are of all ranks; earlier versions lack them
            self.step_metrics.weight_counts = checkpoint.get("weight_counts")
        # Training may have stopped inside a step, whose micro-batches are all taken again.
        if "loops" in checkpoint:
            to_step(checkpoint, self.trainer.accumulate_grad_batches)


def to_step(checkpoint: dict[str, Any], accumulate: int) -> None:
    """Set Lightning's counts of a checkpoint to the end of its last optimizer step, as they are there."""
    loops = checkpoint["loops"]["fit_loop"]
    done, batches = checkpoint["global_step"] * accumulate, loops["epoch_loop.batch_progress"]
    if batches["current"]["ready"] == done:
        return
    for counts in (batches["total"], batches["current"]):
        counts |= {"ready": done, "started": done, "processed": done, "completed": max(0, done - 1)}
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = max(0, checkpoint["global_step"] - 1)


def _spans(batch: Batch) -> dict[str, Tensor]:
    """[batch, seq] the signal `spans`, if a teacher has another tokenizer."""
    if any(part.batch.teacher_view is not None for part in batch.parts):
        flat = torch.zeros(batch.tokens, device=batch.mask.device)
        for part in batch.parts:
            flat[part.places] = _spans_of(part.batch)
        return {"spans": spread(flat, batch.mask)}
    if batch.teacher_view is None or batch.teacher_view.spans is None:
        return {}
    return {"spans": spread(batch.teacher_view.spans.float(), batch.mask)}


def _spans_of(batch: Batch) -> Tensor:
    """[tokens] the first token of each token's span: itself if the teacher reads the same tokens."""
    view = batch.teacher_view
    if view is not None and view.spans is not None:
        return view.spans.float()
    lengths = batch.mask.sum(-1).tolist()
    return torch.cat([torch.arange(length) for length in lengths]).float().to(batch.mask.device)


def _comparable(batch: Batch) -> tuple[Tensor | None, Tensor]:
    """Two [batch, seq] tensors: where the teacher has a counterpart of the student's token (None:
    everywhere), and 1 where the counterpart is the same text."""
    view = batch.teacher_view
    if view is None or view.student_at is None or view.same_token is None:
        return None, batch.mask.float()
    flat = torch.zeros(2, batch.tokens, device=batch.mask.device)
    flat[0, view.student_at] = 1.0
    flat[1, view.student_at] = view.same_token.float()
    compared, same = (spread(row, batch.mask) for row in flat)
    return compared > 0, same
