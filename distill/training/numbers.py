"""Checks before torch is imported, of numbers: that those of the configuration are in range.

What a `_target_` of this package takes is checked by its type hints, in `distill.config.values`.
"""

from collections.abc import Mapping
from typing import Any

from distill.config.kinds import check_text, select
from distill.errors import UserError, whole_number

# Integer keys and their minimum.
_WHOLE = {
    "seed": 0,
    "samples": 1,
    "rank_limit": 1,
    "layers": 1,
    "token_budget": 1,
    "resamples": 1,
    "data.batch_size": 1,
    "data.token_budget": 1,
    "data.samples": 1,
    "data.sampling_batch_size": 1,
    "data.sampling_seed": 0,
    "data.max_new_tokens": 1,
    "benchmark.token_budget": 1,
    "calibration.traces": 1,
    "check.min_tokens": 0,
    "drift.samples": 1,
    "engine.token_budget": 1,
    "engine.concurrency": 1,
    "engine.retries": 0,
    "engine.batch": 1,
    "judge.concurrency": 1,
    "judge.retries": 0,
    "judge.max_new_tokens": 1,
    "histogram_every": 1,
    "checkpoint.keep": 1,
    "loss.distribution.top_k": 1,
    "loss.distribution.samples": 1,
    "loss.rollouts.samples": 1,
    "loss.rollouts.num_iterations": 1,
    "loss.proposals.max_step_tokens": 1,
    "loss.proposals.continuations": 1,
    "loss.proposals.continuation_tokens": 1,
    "smoke.max_tokens": 1,
    "speed.prompts": 1,
    "speed.tokens": 1,
    "tips.most": 1,
    "tips.words": 1,
    "tips.skills": 1,
    "tips.batch": 1,
    "tips.max_tokens": 1,
    "tips.held_out": 1,
    "trainer.accumulate_grad_batches": 1,
    "trainer.log_every_n_steps": 1,
    "trainer.num_nodes": 1,
    "writer_engine.token_budget": 1,
    "writer_engine.concurrency": 1,
    "writer_engine.retries": 0,
    "writer_engine.batch": 1,
}
_WHOLE_OR_NULL = {
    "max_tokens": 1,
    "traces": 1,
    "problems": 2,
    "held_out": 1,
    "identity.limit": 1,
    "tips.problems": 1,
    "threads": 1,
    "data.limit": 1,
    "data.max_length": 1,
    "benchmark.limit": 1,
    "benchmark.samples": 1,
    "benchmark.max_new_tokens": 1,
    "benchmark.top_k": 0,
    "benchmark.seed": 0,
    "check.max_tokens": 1,
    "checkpoint.every": 1,
    "drift.limit": 1,
    "estimate.groups": 1,
    "estimate.traces": 1,
    "estimate.prompt_tokens": 1,
    "estimate.completion_tokens": 1,
    "eval_every": 1,
    "loss.chunk_size": 1,
    "trainer.max_steps": 1,
    "model.threads": 1,
}
# Numbers and their intervals; a round bracket leaves the end out.
_RANGES = {
    "data.epochs": "(0, inf)",
    "optimizer.lr": "[0, inf)",
    "optimizer.weight_decay": "[0, inf)",
    "estimate.utilization": "(0, 1]",
    "trainer.timeout_minutes": "(0, 100000]",
    "check.seconds": "(0, inf)",
    "drift.temperature": "[0, inf)",
    "engine.timeout": "(0, inf)",
    "writer_engine.timeout": "(0, inf)",
    "writer_engine.wait": "[0, inf)",
    "judge.timeout": "(0, inf)",
    "judge.temperature": "[0, inf)",
    "engine.wait": "[0, inf)",
    "loss.rewards.format": "[0, inf)",
    "loss.temperature": "(0, inf)",
    "loss.token_loss.alpha": "[0, 1)",
    "loss.token_loss.beta": "[0, 1]",
    "loss.token_loss.eps_low": "[0, 1]",
    "loss.token_loss.eps_high": "[0, inf)",
    "loss.token_loss.start": "[0, 1]",
    "loss.token_loss.end": "[0, 1]",
    "loss.token_weight.temperature": "(0, inf)",
    "loss.token_weight.max_ratio": "(0, inf)",
    "loss.token_weight.floor": "[0, 1]",
    "loss.token_weight.anneal": "[0, 1]",
    "loss.token_weight.alpha": "[0, inf)",
    "loss.token_weight.clip": "[0, inf)",
    "loss.token_weight.gamma": "[0, inf)",
    "loss.token_weight.keep": "(0, 1]",
}
_RANGES_OR_NULL = {
    "benchmark.temperature": "[0, inf)",
    "benchmark.top_p": "(0, 1]",
    "checkpoint.minutes": "(0, inf)",
    "estimate.tflops": "(0, inf)",
    "estimate.memory": "(0, inf)",
    "estimate.bandwidth": "(0, inf)",
    "trainer.gradient_clip_val": "[0, inf)",
}
_TRUE_OR_FALSE = (
    "plan",
    "estimate.simulate",
    "smoke_test",
    "checkpoint.of_finished",
    "model.gradient_checkpointing",
    "model.compile",
    "model.trust_remote_code",
    "trainer.cpu_offload",
    "trainer.offload_optimizer",
    "trainer.optimizer_in_backward",
    "private",
)
# Keys that hold text, and whether each may be null.
_TEXT = {
    "name": False,
    "dir": False,
    "runs": False,
    "cache": False,
    "ckpt_path": True,
    "model.student_dtype": False,
    "model.teacher_dtype": False,
    "model.revision": True,
    "model.student_revision": True,
    "model.teacher_revision": True,
    "calibration.path": True,
    "push_to_hub": True,
    "data.layout": False,
    "card.license": False,
    "card.base_license": False,
    "card.teacher_license": False,
    "card.data_license": False,
}
_ABSENT = object()
_SEEDS = 2**32 - 1  # numpy's maximum


def check_numbers(values: Mapping[str, Any]) -> None:
    """Check the ranges of numbers in a resolved configuration; raise UserError that names the key."""
    run = "runs" in values  # other commands choose a name and a folder by themselves
    check_text(values, _TEXT if run else {**_TEXT, "name": True, "dir": True})
    for key, least in _WHOLE.items():
        whole_number(key, select(values, key, absent=least), least=least)
    for key, least in _WHOLE_OR_NULL.items():
        value = select(values, key, absent=None)
        if value is not None and (not _is_whole(value) or value < least):
            raise UserError(f"{key}={value!r} must be a whole number, at least {least}, or null")
    for key, interval in (_RANGES | _RANGES_OR_NULL).items():
        value = select(values, key, absent=_ABSENT)
        if value is not _ABSENT and not (value is None and key in _RANGES_OR_NULL):
            _check_range(key, value, interval, " or null" * (key in _RANGES_OR_NULL))
    for key in _TRUE_OR_FALSE:
        value = select(values, key, absent=False)
        if not isinstance(value, bool):
            raise UserError(f"{key}={value!r} is neither true nor false")
    _check_groups(values)
    if select(values, "seed", absent=0) > _SEEDS:
        raise UserError(f"seed={values['seed']} must be at most {_SEEDS}")
    betas = select(values, "optimizer.betas", absent=[0, 0])
    if not (isinstance(betas, list) and len(betas) == 2 and all(_is_number(b) and 0 <= b < 1 for b in betas)):
        raise UserError(
            f"optimizer.betas={betas!r} must be two numbers, from 0 to below 1, such as [0.9,0.999]"
        )
    for key in ("data.operations", "benchmark.arithmetic.source.operations"):
        value = select(values, key, absent=[1, 1])
        if not (isinstance(value, list) and len(value) == 2 and all(map(_is_whole, value))) or not (
            1 <= value[0] <= value[1]
        ):
            raise UserError(f"{key}={value!r} must be two whole numbers, fewest and most, such as [4,8]")


def _check_groups(values: Mapping[str, Any]) -> None:
    """Check that micro-batches hold whole groups of rollouts, and checkpoints fall between them."""
    rows, samples, iterations, every = (
        select(values, key, absent=None)
        for key in (
            "data.batch_size",
            "loss.rollouts.samples",
            "loss.rollouts.num_iterations",
            "checkpoint.every",
        )
    )
    if samples is not None and rows is not None and rows % samples:
        raise UserError(
            f"data.batch_size={rows} completions are no whole groups of loss.rollouts.samples={samples} of a "
            f"problem: take a multiple of {samples}, such as {-(-rows // samples) * samples}"
        )
    if iterations is not None and every is not None and every % iterations:
        raise UserError(
            f"checkpoint.every={every} would save between optimizer steps on the same completions "
            f"(loss.rollouts.num_iterations={iterations}), where no run is resumed exactly: take a multiple "
            f"of {iterations}"
        )
    asked, best, patience = (
        select(values, key, absent=None)
        for key in ("validation.every", "checkpoint.best", "validation.patience")
    )
    if iterations is not None and asked is not None and asked % iterations and (best or patience):
        raise UserError(
            f"validation.every={asked} would choose checkpoints between optimizer steps on the same "
            f"completions (loss.rollouts.num_iterations={iterations}), where no run is resumed exactly: take "
            f"a multiple of {iterations}"
        )


def _check_range(key: str, value: Any, interval: str, or_null: str) -> None:
    low, high = map(float, interval[1:-1].split(","))
    above = _is_number(value) and (value >= low if interval[0] == "[" else value > low)
    if not above or not (value <= high if interval[-1] == "]" else value < high):
        words = {"[0, inf)": "a number, at least 0", "(0, inf)": "a positive number"}
        raise UserError(f"{key}={value!r} must be {words.get(interval, f'a number in {interval}')}{or_null}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
