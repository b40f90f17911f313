"""Contestants from other packages: their trainers on the same tokens and weights, with the same optimizer.

Differences from their defaults: gradient checkpointing for all contestants or for none (TRL's default is on),
fused AdamW without weight decay, a constant learning rate, no dropout, every step logged, nothing saved."""

import importlib
import importlib.util
import os
import tempfile
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from distill.bench.inputs import Row, batch_rows, model_folder, sampled_rows
from distill.bench.measurement import Setting
from distill.bench.meter import Measured, Meter, WholeRun
from distill.bench.ours import CLIP, LEARNING_RATE

IGNORED = -100
Loss = Literal["own", "liger", "trl_chunked", "torchtune_forward_kl", "torchtune_reverse_kl"]


def peer(path: str) -> Any:
    """Import `module:name` of an optional package that type checkers need not find."""
    module, _, name = path.partition(":")
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    return getattr(importlib.import_module(module), name)


def sft_trainer(setting: Setting, meter: Meter) -> None:
    """TRL's SFTTrainer, whose `nll` loss is chunked (formerly `chunked_nll`), without full logits."""
    _sft(setting, meter, meter, batch_rows(setting))


def sft_epoch(setting: Setting, meter: Meter, batch_size: int = 16, samples: int = 1) -> None:
    """An epoch of SFTTrainer over the traces of `ours.epoch`; it counts as one step.

    Traces of similar lengths share a micro-batch of `setting.rows`, by transformers' own option.
    """
    _sft(
        setting,
        meter,
        WholeRun(meter),
        sampled_rows(setting, samples),
        max_steps=-1,  # as many as the epoch has
        num_train_epochs=1,
        gradient_accumulation_steps=max(1, batch_size // setting.rows),
        train_sampling_strategy="group_by_length",
        length_column_name="length",
    )


def _sft(setting: Setting, meter: Meter, counted: Meter | WholeRun, rows: list[Row], **more: Any) -> None:
    meter.packages |= {"trl", "accelerate"}
    config = peer("trl.trainer.sft_config:SFTConfig")
    with tempfile.TemporaryDirectory() as folder:
        _fit(
            peer("trl.trainer.sft_trainer:SFTTrainer")(
                model=_load(setting, "student"),
                args=_arguments(config, setting, meter, folder, TRL=True, **more),
                train_dataset=dataset(rows),
                data_collator=side_by_side,
                processing_class=_tokenizer(setting),
            ),
            counted,
        )


def transformers_trainer(setting: Setting, meter: Meter) -> None:
    """transformers' Trainer, with the model's own loss from full logits."""
    from transformers import Trainer, TrainingArguments

    meter.packages.add("accelerate")
    with tempfile.TemporaryDirectory() as folder:
        _fit(
            Trainer(
                model=_load(setting, "student"),
                args=_arguments(TrainingArguments, setting, meter, folder),
                train_dataset=dataset(batch_rows(setting)),
                data_collator=side_by_side,
            ),
            meter,
        )


def gkd_trainer(setting: Setting, meter: Meter, beta: float, loss: Loss = "own") -> None:
    """TRL's GKDTrainer without rollouts, with its own loss or a replacement.

    Args:
        setting: setting of the measurement.
        meter: meter to report every step to.
        beta: 0 is forward KL, 1 reverse KL.
        loss: `own`: from full logits. `liger`: LigerFusedLinearJSDLoss on the hidden states, as in earlier
            releases of GKDTrainer with use_liger_kernel, without its cross-entropy half. `trl_chunked`: the
            loss of TRL's DistillationTrainer, which is on-policy only. `torchtune_…`: torchtune's chunked
            losses, as its distillation recipe calls them.
    """
    meter.packages |= {"trl", "accelerate"}
    trainer_class: Any = peer("trl.experimental.gkd.gkd_trainer:GKDTrainer")
    if loss != "own":
        meter.packages |= {"liger-kernel"} if loss == "liger" else set()
        meter.packages |= {"torchtune"} if loss.startswith("torchtune") else set()
        trainer_class = _with_loss(trainer_class, _chunked_loss(loss, beta), setting.device)
    teacher = _load(setting, "teacher").to(setting.device)
    with tempfile.TemporaryDirectory() as folder:
        config = peer("trl.experimental.gkd.gkd_config:GKDConfig")
        _fit(
            trainer_class(
                model=_load(setting, "student"),
                teacher_model=teacher,
                args=_arguments(
                    config, setting, meter, folder, TRL=True, lmbda=0.0, beta=beta, temperature=1.0
                ),
                train_dataset=dataset(batch_rows(setting)),
                data_collator=side_by_side,
                processing_class=_tokenizer(setting),
            ),
            meter,
            teacher,
        )


# Takes hidden states [rows, length - 1, width] and output matrix of both models, and labels
# [rows, length - 1].
ChunkedLoss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def _with_loss(trainer_class: Any, loss_of: ChunkedLoss, device: str) -> Any:
    """Subclass a trainer to compute its loss from hidden states."""

    class WithLoss(trainer_class):
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            teacher = self.teacher_model.eval()
            given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
            mixed = torch.autocast(device, torch.bfloat16) if device == "cuda" else nullcontext()
            with mixed:
                student_states = model.get_decoder()(**given, use_cache=False).last_hidden_state
                with torch.no_grad():
                    teacher_states = teacher.get_decoder()(**given, use_cache=False).last_hidden_state
                loss = loss_of(
                    student_states[:, :-1],
                    model.get_output_embeddings().weight,
                    teacher_states[:, :-1],
                    teacher.get_output_embeddings().weight,
                    inputs["labels"][:, 1:],
                )
            return (loss, None) if return_outputs else loss

    return WithLoss


def _chunked_loss(loss: Loss, beta: float) -> ChunkedLoss:
    if loss == "liger":
        jsd = liger_jsd(beta)
        return lambda hidden, weight, theirs, their_weight, labels: jsd(
            hidden.flatten(0, 1), weight, theirs.flatten(0, 1), their_weight, labels.flatten()
        )
    if loss == "trl_chunked":
        return lambda *tensors: trl_divergence(*tensors, beta=beta)
    return torchtune_of_states(loss.removeprefix("torchtune_"))


def torchtune_of_states(kind: str) -> Any:
    """torchtune's loss as a function of hidden states [rows, tokens, hidden] and output matrices [vocab,
    hidden]. It computes the logits of all chunks first, as torchtune's recipes do."""
    divergence = torchtune_loss(kind)

    def of_chunks(
        hidden: Tensor, weight: Tensor, theirs: Tensor, their_weight: Tensor, labels: Tensor
    ) -> Tensor:
        count = divergence.num_output_chunks
        with torch.no_grad():
            teacher = [part @ their_weight.T for part in theirs.chunk(count, dim=1)]
        return divergence([part @ weight.T for part in hidden.chunk(count, dim=1)], teacher, labels)

    return of_chunks


def liger_jsd(beta: float) -> Any:
    """Liger's fused JSD without its cross-entropy half (on by default), uncompiled, as TRL used it."""
    loss = peer("liger_kernel.chunked_loss:LigerFusedLinearJSDLoss")
    return loss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, compiled=False)


def trl_divergence(
    hidden: Tensor, weight: Tensor, theirs: Tensor, their_weight: Tensor, labels: Tensor, *, beta: float
) -> Tensor:
    divergence = peer("trl.trainer.distillation_trainer:_chunked_divergence_loss")
    return divergence(hidden, theirs, weight, their_weight, (labels != IGNORED).long(), beta)[0]


def trl_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """SFTTrainer's replacement of the output head, including its metrics."""
    function = peer("trl.kernels.chunked_logprob:ChunkedLogProbFunction")
    size = peer("trl.trainer.utils:_CHUNKED_LOGPROB_CHUNK_SIZE")
    metrics = ("log_probs", "entropy", "is_top1")
    return -function.apply(hidden, weight, None, labels, 1.0, size, None, 1.0, metrics)[0].mean()


def torchtune_loss(name: str) -> Any:
    """Load a torchtune loss from its file alone, because importing the package needs torchao. Its
    `forward_kl` is a cross-entropy: the KL plus the teacher's entropy."""
    found = importlib.util.find_spec("torchtune")
    assert found is not None
    assert found.submodule_search_locations
    file = Path(found.submodule_search_locations[0]) / "modules" / "loss" / "kd_losses.py"
    spec = importlib.util.spec_from_file_location("torchtune_kd_losses", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    kind = {"forward_kl": "ForwardKL", "reverse_kl": "ReverseKL"}[name]
    return getattr(module, f"{kind}WithChunkedOutputLoss")()


def _load(setting: Setting, role: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model_folder(setting, role), dtype=torch.float32)


def _tokenizer(setting: Setting) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_folder(setting, "student"))


def _arguments(
    config: Any, setting: Setting, meter: Meter, folder: str, TRL: bool = False, **more: Any
) -> Any:
    if TRL:
        more |= {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
    cuda = setting.device == "cuda"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL sets options that transformers has renamed
        return config(
            **{
                "output_dir": folder,
                "per_device_train_batch_size": setting.rows,
                "max_steps": meter.wanted,
                "learning_rate": LEARNING_RATE,
                "lr_scheduler_type": "constant",
                "optim": "adamw_torch_fused",
                "weight_decay": 0.0,
                "max_grad_norm": CLIP,
                "gradient_checkpointing": setting.gradient_checkpointing,
                "gradient_checkpointing_kwargs": {"use_reentrant": False},
                "bf16": cuda,
                "use_cpu": not cuda,
                "train_sampling_strategy": "sequential",
                "remove_unused_columns": False,
                "report_to": "none",
                "logging_steps": 1,
                "save_strategy": "no",
                "disable_tqdm": True,
                "seed": setting.seed,
            }
            | more
        )


def dataset(rows: list[Row]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(
        [{"input_ids": p + c, "labels": [IGNORED] * len(p) + c, "length": len(p + c)} for p, c in rows]
    )


def side_by_side(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Collate rows with right padding, like our batches."""
    width = max(row["length"] for row in rows)

    def padded(name: str, fill: int) -> Tensor:
        return torch.tensor([row[name] + [fill] * (width - row["length"]) for row in rows])

    attended = torch.arange(width) < torch.tensor([[row["length"]] for row in rows])
    return {
        "input_ids": padded("input_ids", 0),
        "labels": padded("labels", IGNORED),
        "attention_mask": attended.long(),
    }


def _fit(trainer: Any, meter: Meter | WholeRun, *frozen: Any) -> None:
    """Train with the meter as a callback."""
    from transformers import PrinterCallback, TrainerCallback

    seen: dict[str, Any] = {"loss": 0.0, "tokens": 0}
    compute_loss = trainer.compute_loss

    def listening(model: Any, inputs: Any, *args: Any, **options: Any) -> Any:
        loss = compute_loss(model, inputs, *args, **options)
        # A step may have several micro-batches, whose losses are divided by the step's tokens.
        seen["tokens"] += int((inputs["labels"] != IGNORED).sum())
        seen["loss"] = seen["loss"] + loss.detach()
        return loss

    class Steps(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            meter.begin([trainer.model], frozen)

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            meter.step(seen["loss"], seen["tokens"])
            seen.update(loss=0.0, tokens=0)
            if meter.done:
                raise Measured

        def on_train_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            if isinstance(meter, WholeRun):
                meter.end()
                raise Measured

    trainer.compute_loss = listening
    trainer.add_callback(Steps())
    trainer.remove_callback(PrinterCallback)
    try:
        trainer.train()
    except Measured:
        return
    raise RuntimeError("the trainer ended before its steps were measured")
