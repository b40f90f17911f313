"""Tests of runs limited by a number of trained completion tokens."""

import json
import math
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import test_training
import torch
from covering import some_of
from test_training import arguments, column, rows, run, same_weights, train_ranks, unbroken_and_resumed

from distill.errors import Interrupted, UserError
from distill.models.head import Head
from distill.models.language_model import ModelSource
from distill.objective.objective import Objective
from distill.objective.terms import MicroBatch
from distill.runs.folder import checkpoints
from distill.training.module import DistillModule
from distill.training.schedule import Schedule
from distill.training.setup import Setup

traces = test_training.traces  # the fixture


def budget(
    pair: tuple[Path, Path], data: Path, folder: Path, max_tokens: int | str, *overrides: str
) -> list[str]:
    """The command line of a run that tokens alone bound."""
    words = arguments(pair, data, folder, "trainer.max_steps=null", f"max_tokens={max_tokens}")
    return [*words, *overrides]


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def first_to_reach(tokens: list[float], max_tokens: int) -> int:
    """The first step at whose end so many tokens were trained on, counted from 1."""
    return next(step for step, total in enumerate(accumulate(tokens), start=1) if total >= max_tokens)


@pytest.mark.slow
def test_a_run_ends_with_the_first_step_that_reaches_its_budget(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = column(run(arguments(tiny_pair, traces, tmp_path), tmp_path / "steps"), "train/tokens")
    for max_tokens in (int(sum(steps[:4])), int(sum(steps[:4])) + 1):  # reached exactly, and missed by one
        capsys.readouterr()
        words = budget(tiny_pair, traces, tmp_path, max_tokens, "trainer.log_every_n_steps=50")
        folder = run(words, tmp_path / str(max_tokens))
        last = first_to_reach(steps, max_tokens)
        assert last in (4, 5)
        found = summary(folder)
        assert (found["status"], found["steps"], found["tokens"]) == ("finished", last, sum(steps[:last]))
        assert f"{found['tokens']:,.0f} completion tokens in {last} steps" in capsys.readouterr().out
        # What a run leaves at its end it leaves here too, though the end was not known before.
        assert [row["step"] for row in rows(folder)] == ["1", str(last)]
        assert column(folder, "train/tokens_total")[-1] == found["tokens"]
        spans = [json.loads(line) for line in (folder / "weights.jsonl").read_text().splitlines()]
        assert [span["step"] for span in spans] == [last]
        assert sum(spans[0]["counts"]) == found["tokens"]
        assert [kept.name for kept in checkpoints(folder / "checkpoints")] == [f"step-{last:06d}"]
        assert same_weights(checkpoints(folder / "checkpoints")[0], folder)


@pytest.mark.slow
def test_the_passes_over_the_data_do_not_end_a_run_with_a_budget(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    words = budget(tiny_pair, traces, tmp_path, 3000, "data.epochs=0.1", "data.limit=20", "loss=sft")
    folder = run(words, tmp_path / "run")
    assert 3000 <= summary(folder)["tokens"] < 3000 + max(column(folder, "train/tokens"))


@pytest.mark.slow
@pytest.mark.parametrize(("max_steps", "steps"), [(3, 3), (5000, 5)])
def test_of_tokens_and_steps_what_comes_first_ends_the_run(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, max_steps: int, steps: int
) -> None:
    known = column(run(arguments(tiny_pair, traces, tmp_path, "loss=sft"), tmp_path / "x"), "train/tokens")
    words = budget(
        tiny_pair, traces, tmp_path, int(sum(known[:5])), "loss=sft", "lr_scheduler.warmup_ratio=0"
    )
    folder = run([*words, f"trainer.max_steps={max_steps}"], tmp_path / "run")
    assert len(rows(folder)) == summary(folder)["steps"] == steps
    # The learning rate falls towards the end that comes, from 1e-3 to a tenth of it.
    rates = column(folder, "train/lr")
    assert rates[0] == 1e-3
    assert rates == sorted(rates, reverse=True)
    if max_steps == 3:
        assert rates[-1] == pytest.approx(1e-3 * Schedule(warmup_ratio=0).factor(2, 3))


@pytest.mark.slow
def test_the_learning_rate_and_progress_follow_the_tokens(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[float]] = {"weights": [], "after": []}
    chunked_inputs, after_step = Objective.chunked_inputs, Objective.after_step

    def watched(self: Objective, student: Head, batch: MicroBatch) -> Any:
        seen["weights"].append(batch.progress)
        return chunked_inputs(self, student, batch)

    def watched_after(self: Objective, loss: float, progress: float) -> None:
        seen["after"].append(progress)
        after_step(self, loss, progress)

    monkeypatch.setattr(Objective, "chunked_inputs", watched)
    monkeypatch.setattr(Objective, "after_step", watched_after)
    words = budget(tiny_pair, traces, tmp_path, 2000, "loss=taid", "lr_scheduler.warmup_ratio=0")
    folder = run(words, tmp_path / "run")
    totals = [0.0, *column(folder, "train/tokens_total")]
    shares = [min(1.0, total / 2000) for total in totals]
    assert seen["weights"] == pytest.approx(shares[:-1])
    assert seen["after"] == pytest.approx(shares[1:])
    factors = [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * share)) for share in shares[:-1]]
    assert column(folder, "train/lr") == pytest.approx([1e-3 * factor for factor in factors])


@pytest.mark.slow
def test_the_learning_rate_warms_up_over_its_share_of_the_tokens(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    words = budget(tiny_pair, traces, tmp_path, 4000, "loss=sft", "lr_scheduler.warmup_ratio=0.5")
    folder = run([*words, "lr_scheduler.decay=constant"], tmp_path / "run")
    rates, totals = column(folder, "train/lr"), [0.0, *column(folder, "train/tokens_total")]
    below = [rate for rate, total in zip(rates, totals, strict=False) if total < 1500]
    assert below == sorted(below)
    assert 0 < below[0] < 0.2e-3  # the first step is not wasted
    assert below[-1] < 1e-3
    assert {rate for rate, total in zip(rates, totals, strict=False) if total >= 2000} == {1e-3}


@pytest.mark.parametrize("guess", [24, 200, 4096])
def test_a_warm_up_does_not_depend_on_how_long_completions_might_have_been(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, guess: int
) -> None:
    words = budget(tiny_pair, traces, tmp_path, 6000, "loss=opd", f"loss.rollouts.max_new_tokens={guess}")
    setup = Setup.from_overrides(words)
    steps = setup.length.steps([], setup.objective)
    assert steps.expected == math.ceil(6000 / (8 * guess))
    factors = [setup.schedule.factor(share / 100 * steps.places, steps.places) for share in range(6)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0], abs=0.07)


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss", some_of(["dcod +loss.token_weight.anneal=0.8", "on_policy_kd", "taid"], "on_policy_kd")
)
def test_a_resumed_run_with_a_budget_repeats_an_unbroken_one_bit_for_bit(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = [*loss.replace("+", "").split(), "trainer.accumulate_grad_batches=2", "checkpoint.every=2"]
    words = budget(tiny_pair, traces, tmp_path, 2000, f"loss={changes[0]}", *changes[1:])
    whole, resumed = unbroken_and_resumed(words, tmp_path, monkeypatch)
    assert len(rows(whole)) > 4
    assert summary(resumed)["resumed_from_step"] == 2


@pytest.mark.slow
def test_a_run_that_spent_its_budget_ends_at_once_when_resumed_and_goes_on_with_a_larger_one(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    words = budget(
        tiny_pair, traces, tmp_path, 1000, "lr_scheduler.decay=constant", "lr_scheduler.warmup_ratio=0"
    )
    folder = run(words, tmp_path / "runs" / "a")
    before = {name: (folder / name).read_text() for name in ("metrics.csv", "weights.jsonl")}
    first = summary(folder)
    run([*words, "ckpt_path=last"], folder)
    assert {name: (folder / name).read_text() for name in before} == before
    assert {key: summary(folder)[key] for key in ("steps", "tokens")} == {
        key: first[key] for key in ("steps", "tokens")
    }
    larger = [word.replace("max_tokens=1000", "max_tokens=2000") for word in words]
    run([*larger, "ckpt_path=last"], folder)
    whole = run(larger, tmp_path / "whole")
    assert column(folder, "train/loss") == column(whole, "train/loss")
    assert same_weights(folder, whole)


@pytest.mark.slow
def test_two_processes_stop_at_the_same_step_as_one(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    words = budget(tiny_pair, traces, tmp_path, 1000)
    single = run([*words, "data.batch_size=3", "trainer.accumulate_grad_batches=4"], tmp_path / "single")
    two = [f"dir={tmp_path / 'two'}", "data.batch_size=3", "trainer.accumulate_grad_batches=2"]
    train_ranks([*words, *two, "trainer.strategy=ddp"], tmp_path)
    assert 2 < len(rows(single)) < 10
    for name in ("train/loss", "train/gradient_norm", "train/lr"):
        assert column(tmp_path / "two", name) == pytest.approx(column(single, name), rel=2e-5)
    assert column(tmp_path / "two", "train/tokens") == column(single, "train/tokens")
    assert summary(tmp_path / "two")["status"] == "finished"
    kept = [checkpoints(folder / "checkpoints")[-1].name for folder in (single, tmp_path / "two")]
    assert kept[0] == kept[1]


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["on_policy_kd", "opd"])
def test_the_students_own_tokens_count(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, loss: str
) -> None:
    folder = run(budget(tiny_pair, traces, tmp_path, 1500, f"loss={loss}"), tmp_path / "run")
    found, tokens = summary(folder), column(folder, "train/tokens")
    assert found["steps"] == first_to_reach(tokens, 1500)
    assert found["rollout_tokens"] == sum(column(folder, "rollouts/tokens")) > 0
    assert (found["rollout_tokens"] == found["tokens"]) == (loss == "opd")


@pytest.mark.slow
def test_a_student_that_writes_nothing_but_ends_does_not_train_for_ever(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def generate(lm: Any, prompts: list[Any], *args: Any, **kwargs: Any) -> list[list[int]]:
        return [lm.end_ids[:1] for _ in prompts]

    monkeypatch.setattr("distill.training.rollouts.generate", generate)
    words = budget(tiny_pair, traces, tmp_path, 50, "loss=opd", "data.batch_size=8", "data.limit=5")
    found = summary(run(words, tmp_path / "run"))
    assert (found["steps"], found["tokens"]) == (7, 56)


@pytest.mark.slow
def test_a_stop_on_the_way_says_how_much_of_the_budget_is_spent(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = DistillModule.training_step

    def interrupted(self: DistillModule, batch: Any, batch_idx: int) -> torch.Tensor:
        self.stop_wanted = self.trainer.global_step == 2
        return original(self, batch, batch_idx)

    monkeypatch.setattr(DistillModule, "training_step", interrupted)
    with pytest.raises(
        Interrupted, match=r"after step 3, \d{3} of 100,000 tokens; the checkpoint .*step-000003"
    ):
        run(budget(tiny_pair, traces, tmp_path, 100_000), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("value", ["0", "-5", "1e6", "2.5", "true", "many"])
def test_a_budget_that_is_none_is_refused_before_anything_is_loaded(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelSource, "load", lambda self, cache=None: pytest.fail("a model was loaded"))
    with pytest.raises(UserError, match=r"^max_tokens=.* must be a whole number, at least 1, or null$"):
        run(budget(tiny_pair, traces, tmp_path, value), tmp_path / "run")
