"""Tests of training on rewards: groups, several steps on the same completions, metrics, usable groups."""

import csv
import hashlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import warm
from safetensors.torch import load_file
from stand_in_writer import SAMPLES, Writer
from test_training import run

from distill.data.batch import Batch, collate
from distill.data.trace import Example, Trace, Verdict
from distill.data.traces import Traces
from distill.errors import Interrupted, UserError
from distill.models.find import find_model
from distill.models.lazy import LazyModel
from distill.planning.groups import usable_groups
from distill.tiny import task
from distill.training.module import DistillModule
from distill.training.recipe import TraceRecipe
from distill.training.rollouts import KeptRollouts
from distill.training.setup import Setup


def words(pair: tuple[Path, Path], folder: Path, *more: str) -> list[str]:
    student, teacher = pair
    return [
        f"model.student={student}",
        f"model.teacher={teacher}",
        "data=arithmetic",
        "data.limit=12",
        "data.operations=[2,3]",
        "data.max_new_tokens=24",
        "data.batch_size=16",
        "benchmark=none",
        "logger=csv",
        f"cache={folder / 'cache'}",
        "trainer.max_steps=2",
        "loss=grpo",
        f"loss.rollouts.samples={SAMPLES}",
        "optimizer._target_=torch.optim.SGD",
        "~optimizer.betas",
        "~optimizer.fused",
        "optimizer.lr=0.01",
        *more,
    ]


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> Writer:
    stand_in = Writer()
    monkeypatch.setattr("distill.training.rollouts.generate", stand_in)
    return stand_in


def metrics(folder: Path) -> list[dict[str, float]]:
    with (folder / "metrics.csv").open(newline="") as stream:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(stream)]


WHOLE_STEP = "loss.token_weight.scale=batch"
OF_AVERAGE = (
    "loss=opd_grpo loss.teacher=ema loss.teacher_update_rate=0.5 loss.teacher_sees=solution "
    "loss.overlap_top_k=4"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "more"),
    [
        (1, WHOLE_STEP),
        pytest.param(2, WHOLE_STEP, marks=pytest.mark.exhaustive),
        pytest.param(2, OF_AVERAGE, marks=pytest.mark.exhaustive),
    ],
)
def test_a_step_is_the_same_however_its_groups_are_split(
    tiny_pair: tuple[Path, Path], tmp_path: Path, writer: Writer, ranks: int, more: str
) -> None:
    """Over micro-batches and ranks, and even where advantages are divided by the deviation of all the step's
    rewards."""
    common = words(tiny_pair, tmp_path, *more.split())
    whole, parts = run(common, tmp_path / "whole"), tmp_path / "parts"
    split = [*common, "data.batch_size=4", f"trainer.accumulate_grad_batches={4 // ranks}"]
    if ranks == 1:
        run(split, parts)
    else:
        script = str(Path(__file__).parent / "stand_in_ranks.py")
        split += [f"dir={parts}", f"trainer.devices={ranks}", "trainer.strategy=ddp"]
        done = warm.run_ranks([script, *split], tmp_path, ranks)
        assert [one.returncode for one in done] == [0, 0], "\n".join(one.stderr[-3000:] for one in done)
    first, second = metrics(whole), metrics(parts)
    same = (
        "rewards/",
        "train/loss",
        "train/overlap",
        "train/gradient_norm",
        "rollouts/entropy",
        "rollouts/length",
        "weights/",
    )
    assert len(first) == len(second) == 2
    for one, other in zip(first, second, strict=True):
        keys = [key for key in one if key.startswith(same) and not key.endswith("seconds")]
        assert {key: one[key] for key in keys} == pytest.approx({key: other[key] for key in keys}, rel=1e-4)
        assert one["train/gradient_norm"] > 0
    students = [load_file(folder / "student" / "model.safetensors") for folder in (whole, parts)]
    for name, values in students[0].items():
        torch.testing.assert_close(values, students[1][name], rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_metrics_are_of_the_completions(tiny_pair: tuple[Path, Path], tmp_path: Path, writer: Writer) -> None:
    row = metrics(run(words(tiny_pair, tmp_path, "loss.rewards.format=0.5"), tmp_path / "run"))[0]
    assert [len(problems) for problems in writer.prompts] == [16, 16]
    problems = writer.prompts[0][::SAMPLES]
    assert writer.prompts[0] == [problem for problem in problems for _ in range(SAMPLES)]
    # What `Writer.written` does, once more: whether the completion has an end, and whether it is right.
    draws = [
        [hashlib.blake2b(f"{problem}{number}".encode()).digest()[0] for number in range(SAMPLES)]
        for problem in problems
    ]
    values = [[0.0 if d % 5 == 4 else 1.5 if d % 3 else 0.5 for d in group] for group in draws]
    flat = [value for group in values for value in group]
    assert 0 < flat.count(0.0) < 16
    assert row["rewards/mean"] == pytest.approx(sum(flat) / 16)
    assert row["rewards/right"] == flat.count(1.5) / 16
    assert row["rewards/equal_groups"] == sum(len(set(group)) == 1 for group in values) / 4
    assert row["rollouts/truncated"] == flat.count(0.0)
    assert row["rollouts/truncated_share"] == flat.count(0.0) / 16
    assert row["rollouts/length"] == row["train/tokens"] / 16
    assert row["rollouts/clipped"] == 0
    assert row["rollouts/entropy"] > 0


@pytest.mark.slow
def test_several_steps_on_the_same_completions(
    tiny_pair: tuple[Path, Path], tmp_path: Path, writer: Writer
) -> None:
    more = ["loss.rollouts.num_iterations=2", "trainer.max_steps=4", "trainer.accumulate_grad_batches=2"]
    more += ["data.batch_size=8", "loss.token_loss.eps_high=0.0", "loss.token_loss.eps_low=0.0"]
    rows = metrics(run(words(tiny_pair, tmp_path, *more), tmp_path / "run"))
    assert len(rows) == 4
    assert len(writer.prompts) == 4  # two micro-batches in each of two steps
    once = metrics(run(words(tiny_pair, tmp_path, *more[1:]), tmp_path / "once"))
    # The second batch of completions is to the problems of the second batch: none is left out.
    assert writer.prompts[:4] == writer.prompts[4:8]
    assert [row["rollouts/clipped"] > 0 for row in rows] == [False, True, False, True]
    assert [row["rewards/mean"] for row in rows[::2]] == [row["rewards/mean"] for row in once[:2]]
    assert rows[0]["rewards/mean"] == rows[1]["rewards/mean"]


@pytest.mark.slow
def test_a_run_is_not_stopped_between_steps_on_the_same_completions(
    tiny_pair: tuple[Path, Path], tmp_path: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = DistillModule.training_step

    def interrupted(self: DistillModule, batch: Any, batch_idx: int) -> torch.Tensor:
        self.stop_wanted |= self.trainer.global_step == 1
        return original(self, batch, batch_idx)

    monkeypatch.setattr(DistillModule, "training_step", interrupted)
    more = ["loss.rollouts.num_iterations=3", "trainer.max_steps=6", "checkpoint.every=null"]
    with pytest.raises(Interrupted, match="after step 3 of 6"):
        run(words(tiny_pair, tmp_path, *more), tmp_path / "run")


def test_kept_completions_are_those_of_their_micro_batch() -> None:
    kept = KeptRollouts(2)

    def batch(mark: int) -> tuple[Batch, None]:
        ids = np.array([1, mark, mark], dtype=np.int32)
        return collate([Trace(Example("", ""), ids[:1], ids[1:])]), None

    for micro_batch in (1, 2):
        assert kept.again(4, micro_batch) is None
        kept.keep(4, micro_batch, *batch(micro_batch), torch.full((1, 2), -float(micro_batch)))
    for micro_batch in (1, 2):
        again = kept.again(5, micro_batch)
        assert again is not None
        assert again[0].signals["old_logprobs"][0, 0] == -micro_batch
        kept.keep(5, micro_batch, *again, torch.zeros(1, 2))  # those of the first step stay
        assert kept.again(5, micro_batch) is again
    kept.keep(6, 1, *batch(3), torch.zeros(1, 2))
    assert kept.again(5, 2) is None
    assert kept.again(7, 1) is not None


def solves(problem: str) -> bool:
    return bool(hashlib.blake2b(problem.encode()).digest()[0] % 2)


@pytest.mark.slow
@pytest.mark.parametrize("able", [True, False])
def test_only_problems_that_the_teacher_solves_are_distilled(
    tiny_pair: tuple[Path, Path], tmp_path: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch, able: bool
) -> None:
    def answers(lm: Any, prompts: Sequence[Sequence[int]], *args: Any, **options: Any) -> list[list[int]]:
        problems = [lm.tokenizer.decode(prompt) for prompt in prompts]
        right = [task.write_solution(problem, "double") for problem in problems]
        texts = [text if able and solves(one) else "#" for one, text in zip(problems, right, strict=True)]
        return [[*lm.tokenizer(text, add_special_tokens=False).input_ids, lm.end_ids[0]] for text in texts]

    monkeypatch.setattr("distill.teacher.completions.generate", answers)
    common = words(tiny_pair, tmp_path, "loss=opd_right", "trainer.max_steps=1")
    if not able:
        with pytest.raises(UserError, match="the teacher solves none of the 12 problems"):
            run(common, tmp_path / "run")
        return
    row = metrics(run(common, tmp_path / "run"))[0]
    (problems,) = writer.prompts
    student = find_model(str(tiny_pair[0]), key="model.student").load()
    lengths = [
        len(writer.written(student, problem, number % SAMPLES)) for number, problem in enumerate(problems)
    ]
    counted = [length for problem, length in zip(problems, lengths, strict=True) if solves(problem)]
    assert row["train/tokens"] == sum(lengths)
    assert 0 < row["weights/sum"] == sum(counted) < sum(lengths)


def test_each_chat_has_the_teachers_success_on_its_own_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def chat(number: int, first: str, gold: str) -> Example:
        turns = [("user", first), ("assistant", gold), ("user", "Are you sure?")]
        messages = tuple({"role": role, "content": text} for role, text in turns)
        return Example(str(number), "Are you sure?", gold, gold, messages)

    chats = [chat(0, "1+1?", "2"), chat(1, "7*8?", "56"), chat(2, "7*8?", "56"), chat(3, "9-2?", "7")]
    ids = np.asarray([1, 2], dtype=np.int32)
    traces = Traces.of([Trace(example, ids, ids) for example in chats])
    asked: list[str] = []

    def answers(self: TraceRecipe, examples: Sequence[Example], *_: Any) -> tuple[list[str], list[list[str]]]:
        asked.extend(example.asked[0] for example in examples)
        return [""] * len(examples), [["2", "56"] for _ in examples]

    monkeypatch.setattr(TraceRecipe, "_answers", answers)
    monkeypatch.setattr(TraceRecipe, "retokenizer", lambda *_: SimpleNamespace(tokenizer=None))
    monkeypatch.setattr("distill.training.recipe.written_text", lambda _, prompt, text: text)

    def same(example: Example, text: str) -> Verdict:
        return Verdict(text, text == example.gold)

    recipe = TraceRecipe(source=lambda: [], grade=same)
    teacher = LazyModel(find_model("package:distill/tiny/teacher", key="model.teacher"), "cpu")
    noted = recipe.note_success(traces, teacher.source, teacher, Path("unused"))
    assert asked == ["1+1?", "7*8?", "9-2?"]
    assert [trace.signals["teacher_success"].tolist() for trace in noted] == [
        [s, s] for s in (0.5, 0.5, 0.5, 0)
    ]


@pytest.mark.slow
def test_a_plan_says_how_many_groups_are_usable(tmp_path: Path) -> None:
    common = ["loss=grpo", "model=tiny", "data.limit=64", "data.operations=[2,3]", f"dir={tmp_path / 'run'}"]
    common += ["data.max_new_tokens=24", "benchmark=none", f"cache={tmp_path}", "estimate.groups=4"]
    said = usable_groups(Setup.from_overrides(common, here=False))
    assert said is not None
    assert said.startswith("usable groups: ")
    assert " of 4 (" in said
    assert "of 8 answers by the untrained student have different rewards" in said
    nothing = Setup.from_overrides([*common, "loss.rollouts.max_new_tokens=2"], here=False)
    found = usable_groups(nothing)
    assert found is not None
    assert "usable groups: 0 of 4 (0%)" in found
    assert "100.0% have no end. The others teach nothing: distil first" in found
    assert usable_groups(Setup.from_overrides([*common, "loss=opd"], here=False)) is None
    asked = usable_groups(Setup.from_overrides([*common, "estimate.groups=null"], here=False))
    assert asked is not None
    assert "set estimate.groups=16" in asked
