"""Student and frozen teacher as a LightningModule: the training step, the one division by the step's
denominator, the metrics."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor

from distill.config.instantiate import OptimizerFactory
from distill.data.batch import Batch, BatchTeacherView, collate
from distill.data.layout import BatchLayout
from distill.data.trace import Grader, Trace
from distill.errors import NonFiniteError, UserError
from distill.generation.sampling import StudentRollouts
from distill.losses.chunked import ChunkedLoss, PerTokenLosses
from distill.losses.logits import label_logprobs
from distill.losses.signals import ROLES, Role, signals
from distill.losses.sparse import SparseDistribution
from distill.models.flops import Meter, head_flops
from distill.models.head import Head
from distill.models.language_model import LanguageModel
from distill.models.lora import fingerprint, frozen_names
from distill.objective.objective import Objective
from distill.objective.step_values import StepValues
from distill.objective.terms import MicroBatch, spread
from distill.teacher.retokenize import Retokenizer
from distill.training.length import Steps
from distill.training.rollouts import StudentWriter
from distill.training.schedule import Schedule
from distill.training.step_metrics import StepMetrics


@dataclass(frozen=True)
class Supervision:
    """What an objective asks beside the student as it trains.

    Attributes:
        models: frozen, by role: those that the objective asks for live (`Objective.live_roles`), such as the
            teacher where it compares whole distributions or scores rollouts.
        teacher_matrix: [vocab, hidden] the teacher's output matrix, where its hidden states are cached.
        retokenizer: makes the teacher's view of rollouts, where it reads other tokens than the student's.
        grade: judges answers, where the objective values next steps by them.
        cached_flops: of the frozen models for what traces carry of them: where the teacher's total begins.
    """

    models: Mapping[Role, LanguageModel] = field(default_factory=dict)
    teacher_matrix: Tensor | None = None
    retokenizer: Retokenizer | None = None
    grade: Grader | None = None
    cached_flops: float = 0.0


class DistillModule(lightning.LightningModule):
    """Trains a student under an objective.

    The teacher, as any frozen model, is no submodule: it is outside `state_dict`, outside the optimizer, and
    no `.train()` reaches it.

    Args:
        student: the model in training; its parameters are this module's.
        objective: rollouts × token_loss × token_weight.
        optimizer: makes the optimizer from the parameters.
        schedule: of the learning rate.
        steps: of the whole run.
        supervision: the models and the judge that the objective asks as the student trains.
        seed: of rollouts and of the control `shuffled`.
        layout: how models read what the student wrote.
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
        self.retokenizer = supervision.retokenizer
        self.grade = supervision.grade
        self._shared_ids: Tensor | None = None
        self.objective = objective
        self.optimizer_factory = optimizer
        self.schedule = schedule
        self.steps = steps.limit
        self.max_tokens = steps.max_tokens
        self.expected_steps = steps.expected
        self.seed = seed
        self.log_every = steps.log_every
        self.totals = {"tokens": 0.0, "seconds": 0.0, "rollout_tokens": 0.0, "rollout_seconds": 0.0}
        self.totals |= {"student_flops": 0.0, "teacher_flops": 0.0}  # the teacher's live ones
        self.cached_flops = supervision.cached_flops
        self.layout = layout
        self._meters = {"student": Meter([student]), "teacher": Meter(self.frozen.values())}
        rollouts = objective.rollouts
        self._writer = StudentWriter(student, rollouts) if isinstance(rollouts, StudentRollouts) else None
        self.step_metrics = StepMetrics(objective, student.end_ids)
        self._micro_batch = 0
        self._gradient_norm = torch.zeros(())
        self.stop_wanted = False  # by this rank
        self.stopping = False  # by any rank, and known to all
        self._resumed_rng: dict[str, Tensor] = {}
        self._rollout_seconds = self._proposal_seconds = 0.0
        self._step_began = 0.0
        if missing := objective.live_roles - self.frozen.keys():
            raise UserError(
                f"this loss compares the student with another model as it trains: set "
                f"{', '.join(f'model.{role}=<model>' for role in sorted(missing))}"
            )
        if self.objective.compares_steps and self.objective.proposals is not None:
            self.objective.proposals.check(student.source, self.grade)

    def on_fit_start(self) -> None:
        rollouts = self.objective.rollouts
        if (
            isinstance(rollouts, StudentRollouts)
            and rollouts.engine == "vllm"
            and self.trainer.world_size > 1
        ):
            raise UserError(
                f"loss.rollouts.engine=vllm writes on one device, and trainer.devices are "
                f"{self.trainer.world_size}: take loss.rollouts.engine=hf"
            )
        for lm in self.frozen.values():
            lm.model.requires_grad_(False).eval().to(self.device)
        if self.teacher_matrix is not None:
            self.teacher_matrix = self.teacher_matrix.to(self.device)

    def on_train_start(self) -> None:
        # Lightning leaves a module in the mode it finds it in, and models are loaded in eval mode.
        self.student.train()
        if self._resumed_rng:
            # Last of all, because setting up (loaders, the benchmark before training) draws random numbers
            # too.
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
        """Whether the run has trained on all the tokens that it was given; the same on every rank."""
        return self.max_tokens is not None and self.totals["tokens"] >= self.max_tokens

    def _position(self, step: int) -> float:
        """Where the run stands when `step` optimizer steps are done, on a scale to `expected_steps`."""
        if self.max_tokens is None:
            return step
        share = max(self.totals["tokens"] / self.max_tokens, step / self.steps)
        return share * self.expected_steps

    def _progress(self, step: int) -> float:
        """The share of training that is done after `step` optimizer steps."""
        return min(1.0, self._position(step) / self.expected_steps)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        number = self.trainer.global_step * self.trainer.accumulate_grad_batches + self._micro_batch
        self._micro_batch += 1
        for meter in self._meters.values():
            meter.take()  # what evaluation spent between two steps is no part of training
        rollouts = self.objective.rollouts
        on_policy = isinstance(rollouts, StudentRollouts) and rollouts.chosen(self.seed, number)
        if isinstance(rollouts, StudentRollouts) and on_policy:
            batch = self._roll_out(batch, rollouts, number)
        heads = self._frozen_heads(batch, on_policy)
        known = dict(batch.signals) | self._scored_by_frozen(batch, heads, on_policy)
        steps = self._propose(batch, number) if self.objective.compares_steps else None
        if steps is not None:
            known |= {"student_step_value": steps.student, "teacher_step_value": steps.teacher}
        compared, constants = None, {}
        if batch.teacher_view is not None or self.objective.compares_tokens:
            compared, known["same_token"] = _comparable(batch)
            constants = self._constants() if self.objective.compares_tokens else {}
        student = self.student_lm.completion_head(batch.input_ids, batch.mask, batch.layout)
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
        inputs = self.objective.chunked_inputs(student, micro_batch)
        # Called from here, so that three functions of ours stand between the training step and the loss.
        found = PerTokenLosses(*ChunkedLoss.apply(student.hidden, student.weight, inputs))
        result = self.objective.sums(micro_batch, found)
        self.step_metrics.add(result, batch, on_policy=on_policy, steps=steps)
        self._count_heads(student, micro_batch)
        self.step_metrics.spend(**{name: meter.take() for name, meter in self._meters.items()})
        # The step's sum is divided once, by its own denominator, in on_before_optimizer_step: undo
        # Lightning's division by the number of micro-batches, which would make a mean of means.
        return result.total * self.trainer.accumulate_grad_batches

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the step's gradient by the step's denominator, over all micro-batches and ranks."""
        own = self.step_metrics.sums
        stop = own.new_tensor([float(self.stop_wanted)])
        sums: Any = self.trainer.strategy.reduce(torch.cat([own, stop]), reduce_op="sum")
        gradients = [
            p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        norm = torch.nn.utils.get_total_norm(gradients)
        *numbers, unscaled_norm = torch.cat(
            [sums, norm.double().view(1)]
        ).tolist()  # the step's one look at the device
        values: dict[str, float] = dict(zip([*self.step_metrics.names, "stops"], numbers, strict=True))
        if values["denominator"] < 0:
            raise UserError(
                f"the weights of optimizer step {self.trainer.global_step + 1} sum to "
                f"{values['denominator']:.4g}, which nothing can be divided by: take "
                f"loss.normalize=tokens and a "
                f"number for loss.scale"
            )
        # Ranks' gradients arrive as a mean. A zero denominator means zero weights and a zero gradient.
        factor = self.trainer.world_size / values["denominator"] if values["denominator"] > 0 else 0.0
        self._check_finite(values["total"], unscaled_norm * factor)
        torch._foreach_mul_(gradients, factor)
        self._gradient_norm = norm * factor
        self.stopping = values["stops"] > 0
        self._log_step(values, unscaled_norm * factor, optimizer.param_groups[0]["lr"])
        mean = values["total"] / values["denominator"] if values["denominator"] > 0 else 0.0
        self.objective.after_step(mean, self._progress(self.trainer.global_step + 1))
        self.step_metrics.close()
        self._micro_batch = 0

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # Not Lightning's own, which refuses fused optimizers in mixed precision, and would measure anew.
        if not gradient_clip_val:
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        else:
            torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, self._gradient_norm)

    @torch.inference_mode()
    def _frozen_heads(self, batch: Batch, on_policy: bool) -> dict[Role, Head]:
        """The frozen models' heads that this batch needs; what a trace carries need not be computed again."""
        roles = set(self.objective.live_distributions.values())
        if on_policy:
            roles |= set(self.objective.cached_signals.values())
        heads: dict[Role, Head] = {
            role: self.frozen[role].completion_head(batch.input_ids, batch.mask, batch.layout)
            for role in ROLES
            if role in roles and not (role == "teacher" and batch.teacher_view is not None)
        }
        if "teacher" in roles and batch.teacher_view is not None:
            heads["teacher"] = _read(self.frozen["teacher"], batch.teacher_view, batch.tokens)
        return heads

    def _scored_by_frozen(
        self, batch: Batch, heads: Mapping[Role, Head], on_policy: bool
    ) -> dict[str, Tensor]:
        """[batch, seq] frozen models' log-probs of what the student wrote; the data's traces carry theirs."""
        found = {}
        for name, role in self.objective.cached_signals.items() if on_policy else ():
            flat = label_logprobs(heads[role], batch.completion_labels)
            self._meters["teacher"].add(head_flops(heads[role]))
            found[name] = spread(flat, batch.mask)
        return found

    def _count_heads(self, student: Head, batch: MicroBatch) -> None:
        """FLOPs of the objective's products with output matrices, its gradient's included."""
        # Of the loss, of what weights want to know before it, of the gradients of states and matrix.
        products = 1 + bool(self.objective.precomputed_signals)
        products += student.hidden.requires_grad + student.weight.requires_grad
        self._meters["student"].add(products * head_flops(student))
        rows = ("all", "student" if batch.by_student else "dataset")
        terms = [term for term in self.objective.terms.values() if term.rows in rows]
        compared = set().union(*(signals(term.token_loss) for term in terms))
        for name, other in batch.others.items():
            if name in compared and isinstance(other, Head):
                self._meters["teacher"].add(head_flops(other))

    def _cached_distribution(self, batch: Batch) -> dict[str, Head | SparseDistribution]:
        """The teacher's distribution from what the batch carries of it."""
        if not self.objective.caches_distribution:
            return {}
        found = self.objective.distribution.of(batch.distribution, self.teacher_matrix)
        if isinstance(found, Head) and batch.teacher_view is not None:
            found = _at_students_tokens(found, batch.teacher_view, batch.tokens)
        return {"log_p": found}

    def _constants(self) -> dict[str, Tensor]:
        """Which tokens the two vocabularies share, found once."""
        if self._shared_ids is None:
            assert self.retokenizer is not None
            ids = torch.from_numpy(self.retokenizer.shared_ids())
            matrix = self.teacher_matrix
            theirs = self.frozen["teacher"].vocab_size if matrix is None else len(matrix)
            sizes = torch.tensor([[self.student_lm.vocab_size], [theirs]])
            self._shared_ids = ids[:, (ids < sizes).all(0)].to(self.device)
        return {"shared_ids": self._shared_ids}

    def _roll_out(self, batch: Batch, rollouts: StudentRollouts, number: int) -> Batch:
        """The student's own completions of the batch's prompts, in place of the data's."""
        began = time.perf_counter()
        prompts = batch.prompts()
        seed = (self.seed * 1_000_003 + number) * 4_099 + self.global_rank
        sampling = rollouts.sampling
        if self.retokenizer is not None and batch.teacher_view is not None and not self.retokenizer.foreign:
            # Token for token the teacher reads them too, behind a prompt that may be longer.
            room = min(self.retokenizer.room(prompt) for prompt in batch.teacher_view.prompts)
            sampling = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, room))
        assert self._writer is not None
        written = self._writer.write(prompts, sampling, seed=seed, step=self.trainer.global_step)
        self._meters["student"].add(self._writer.take_uncounted_flops())
        traces = [
            Trace(example, np.asarray(prompt, dtype=np.int32), np.asarray(ids, dtype=np.int32))
            for example, prompt, ids in zip(batch.examples, prompts, written, strict=True)
        ]
        if self.retokenizer is not None and batch.teacher_view is not None:
            for trace, teachers_prompt in zip(traces, batch.teacher_view.prompts, strict=True):
                trace.teacher_view = self.retokenizer.read(teachers_prompt, trace.completion_ids.tolist())
        self._rollout_seconds += time.perf_counter() - began
        pad_id = int(self.student_lm.tokenizer.pad_token_id or 0)
        return collate(traces, pad_id=pad_id, layout=self.layout).to(self.device)

    def _propose(self, batch: Batch, number: int) -> StepValues:
        """What the next steps of student and teacher are worth under the batch's prefixes."""
        began = time.perf_counter()
        assert self.objective.proposals is not None
        seed = (self.seed * 1_000_003 + number) * 4_099 + self.global_rank
        found = self.objective.proposals.values(
            self.student_lm, self.frozen["teacher"], batch, grade=self.grade, seed=seed
        )
        self._proposal_seconds += time.perf_counter() - began
        teacher = self.frozen["teacher"]
        matrix = teacher.model.get_output_embeddings().weight[: teacher.vocab_size]
        self._meters["teacher"].add(2.0 * found.scored * matrix.numel())
        return found

    def leave_out(self, seconds: float) -> None:
        """Time that passed between two steps and is neither's."""
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
        if self.objective.compares_steps:
            metrics["steps/seconds"] = self._proposal_seconds
        self._rollout_seconds = self._proposal_seconds = 0.0
        self.totals.setdefault("first_loss", metrics["train/loss"])
        self.totals["last_loss"] = metrics["train/loss"]
        # Straight to the loggers, under the optimizer step's own number: Lightning's counter lags by one when
        # resumed.
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
        raise NonFiniteError(
            f"the {what} is {loss if what == 'loss' else gradient_norm} at optimizer step "
            f"{self.trainer.global_step + 1} (batch with traces {shown}): stopped before the update; the "
            f"student before it is kept as a checkpoint. Lower optimizer.lr, or look at these traces"
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if frozen := frozen_names(self):  # LoRA: weights that do not train come from the model's source again
            state = checkpoint["state_dict"]
            checkpoint["state_dict"] = {name: value for name, value in state.items() if name not in frozen}
            checkpoint["base"] = fingerprint(self)
        # What Lightning does not keep and an unbroken run would have had: the state of every random generator
        # that dropout draws from, and the running totals. Tensors and numbers only, so that weights_only
        # loads it.
        checkpoint["rng"] = torch.get_rng_state()
        if torch.cuda.is_available():
            checkpoint["cuda_rng"] = torch.cuda.get_rng_state()
        checkpoint["totals"] = dict(self.totals)
        checkpoint["objective"] = self.objective.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "base" in checkpoint:
            if checkpoint["base"] != fingerprint(self):
                raise UserError(
                    f"the weights of model.student={self.student_lm.source.name} are not those beside which "
                    f"the checkpoint's adapters were trained: put those back, or start anew without "
                    f"ckpt_path="
                )
            whole = self.state_dict()
            checkpoint["state_dict"] |= {name: whole[name] for name in frozen_names(self)}
        self._resumed_rng = {name: checkpoint[name] for name in ("rng", "cuda_rng") if name in checkpoint}
        uncounted = dict.fromkeys(("student_flops", "teacher_flops"), math.nan)  # by earlier versions
        self.totals = uncounted | checkpoint["totals"]
        self.objective.load_state(checkpoint["objective"])


def _read(teacher: LanguageModel, view: BatchTeacherView, tokens: int) -> Head:
    """The teacher's head at the student's completion positions; nothing where it has no counterpart."""
    head = teacher.completion_head(view.input_ids, view.mask, view.layout)
    return _at_students_tokens(head, view, tokens)


def _at_students_tokens(head: Head, view: BatchTeacherView, tokens: int) -> Head:
    if view.student_at is None or view.teacher_at is None:
        return head
    hidden = head.hidden.new_zeros(tokens, head.hidden.shape[-1])
    hidden[view.student_at] = head.hidden[view.teacher_at]
    return Head(hidden, head.weight)


def _comparable(batch: Batch) -> tuple[Tensor | None, Tensor]:
    """[batch, seq] where the teacher has a counterpart (None: everywhere), and where it is the same piece of
    text."""
    view = batch.teacher_view
    if view is None or view.student_at is None or view.same_token is None:
        return None, batch.mask.float()
    flat = torch.zeros(2, batch.tokens, device=batch.mask.device)
    flat[0, view.student_at] = 1.0
    flat[1, view.student_at] = view.same_token.float()
    compared, same = (spread(row, batch.mask) for row in flat)
    return compared > 0, same
