"""Tests of rollouts that begin with a trace's first steps."""

import csv
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_training
import torch
from test_training import arguments, run

from distill.data.batch import Batch, collate
from distill.data.prompt import Prompt
from distill.data.steps import step_starts
from distill.data.trace import Example, Trace
from distill.errors import UserError
from distill.generation.sampling import StudentRollouts
from distill.models.find import find_model
from distill.teacher.retokenize import Retokenizer
from distill.training.module import DistillModule
from distill.training.replay import check_replay, replayed
from distill.training.setup import Setup

traces = test_training.traces  # the fixture


def batch_of(*completions: str) -> Batch:
    """Traces whose tokens are characters."""
    prompt = np.array([1, 2], dtype=np.int32)
    ids = [np.array([ord(letter) for letter in text], dtype=np.int32) for text in completions]
    return collate([Trace(Example("", ""), prompt, one) for one in ids])


def test_steps_begin_behind_what_ends_one() -> None:
    for text in ("ab;c;de", ";;a", "abc", "a;", "ab;c;"):
        pieces = re.findall(r"[^;]*;|[^;]+", text)
        starts = [sum(map(len, pieces[:number])) for number in range(len(pieces))]
        assert step_starts([*map(ord, text)], {ord(";")}) == starts


def test_beginnings_are_drawn_with_a_probability_that_decays() -> None:
    rollouts = StudentRollouts(fraction=1, replay_decay=0.6, samples=3)
    count, batch = 400, batch_of("a;b;c;d", "xy")
    drawn: Counter[str] = Counter()
    for seed in range(count):
        found = replayed(batch, rollouts, {ord(";")}, seed)
        texts = ["".join(map(chr, ids)) for ids in found]
        drawn.update(texts[:3])
        assert texts[3:] == ["", "", ""]  # the whole trace is one step, of which none is replayed
    total = sum(0.6**t for t in range(4))
    for t, text in enumerate(("", "a;", "a;b;", "a;b;c;")):
        share, expected = drawn.pop(text) / (3 * count), 0.6**t / total
        assert share == pytest.approx(expected, abs=4 * math.sqrt(expected / (3 * count)))
    assert not drawn
    again = [replayed(batch_of("a;b;c;d"), rollouts, {ord(";")}, 7) for _ in range(2)]
    assert again[0] == again[1]


def test_without_replay_nothing_is_in_front() -> None:
    assert replayed(batch_of("a;b", "c"), StudentRollouts(fraction=1), (), 0) == [[], []]


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.slow
@pytest.mark.parametrize("writes", ["step", pytest.param("rest", marks=pytest.mark.exhaustive)])
def test_the_student_goes_on_behind_the_beginning_and_learns_its_own_tokens(
    tiny_pair: tuple[Path, Path],
    traces: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    writes: str,
) -> None:
    """Both models read the beginning, the teacher behind a prompt of its own."""
    asked: list[tuple[list[list[int]], set[int]]] = []
    seen: list[Batch] = []

    def write(lm: Any, prompts: Any, sampling: Any, *, seed: int, end_ids: Any = None) -> list[list[int]]:
        asked.append(([[*prompt] for prompt in prompts], {*(end_ids or lm.end_ids)} - {*lm.end_ids}))
        step = lm.tokenizer("1+1=2;", add_special_tokens=False).input_ids
        return [step if number % 2 else [*step, lm.end_ids[0]] for number in range(len(prompts))]

    original = DistillModule._compared

    def compared(self: DistillModule, batch: Batch, number: int, on_policy: bool = False) -> Any:
        seen.append(batch)
        return original(self, batch, number, on_policy)

    monkeypatch.setattr("distill.training.rollouts.generate", write)
    monkeypatch.setattr(DistillModule, "_compared", compared)
    words = arguments(tiny_pair, traces, tmp_path, "loss=reopd", f"loss.rollouts.replay_writes={writes}")
    words += ["trainer.max_steps=2", "data.batch_size=16", 'data.step_separator=";"']
    folder = run([*words, 'data.teacher_prompt.user="#{problem}"'], tmp_path / "run")
    tokenizer, replayed_tokens = find_model(str(tiny_pair[0]), key="model.student").tokenizer, 0
    for (prompts, stops), batch in zip(asked, seen, strict=True):
        assert bool(stops) == (writes == "step")
        view = batch.teacher_view
        assert view is not None
        for row, prompt in enumerate(prompts):
            example = batch.examples[row]
            own, theirs = (ids_of(tokenizer, text) for text in (example.problem, f"#{example.problem}"))
            begun = prompt[len(own) :]
            assert prompt == [*own, *begun]
            assert view.prompts[row].tolist() == [*theirs, *begun]
            text = tokenizer.decode(begun)
            assert example.completion is not None
            assert example.completion.startswith(text)
            assert text == "" or text.endswith(";")
            replayed_tokens += len(begun)
            count = 6 + (row % 2 == 0)
            assert torch.equal(batch.mask[row].nonzero()[:, 0], torch.arange(count) + len(prompt) - 1)
            assert torch.equal(view.mask[row].nonzero()[:, 0], torch.arange(count) + len(prompt))
            written = batch.input_ids[row, len(prompt) : len(prompt) + count]
            assert torch.equal(view.input_ids[row, len(prompt) + 1 :][:count], written)
    with (folder / "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert sum(float(row["train/tokens"]) for row in rows) == 2 * 8 * (6 + 7)
    assert 0 < sum(float(row["rollouts/replayed_tokens"]) for row in rows) == replayed_tokens
    # A step that has ended is as it should be; where the rest is wanted, it lacks an end.
    assert [float(row["rollouts/truncated"]) for row in rows] == [0.0 if writes == "step" else 8.0] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["loss.rollouts.replay_decay=0"], "replay_decay=0 is not a number above 0, up to 1, nor null"),
        (["loss.rollouts.replay_writes=all"], "replay_writes='all'"),
        (["loss.rollouts.engine=vllm"], "take rollouts.engine=hf, or rollouts.replay_writes=rest"),
        (["data.step_separator="], "step_separator is empty"),
        (["data.step_separator=y"], "no token of .* has this text in it"),
        (
            ["loss=grpo", "loss.rollouts.replay_decay=0.6", "data.batch_size=8"],
            "loss.rewards grades whole completions",
        ),
    ],
)
def test_what_it_cannot_do_is_said_in_one_sentence(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, more: list[str], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        Setup.from_overrides(arguments(tiny_pair, traces, tmp_path, "loss=reopd", *more))


def test_a_teacher_with_other_tokens_is_refused(tiny_pair: tuple[Path, Path]) -> None:
    source = find_model(str(tiny_pair[0]), key="model.student")
    reader = Retokenizer(source, source, Prompt())
    rollouts = StudentRollouts(fraction=1, replay_decay=0.6, step_separator=";")
    check_replay(rollouts, source, reader)
    vars(reader)["foreign"] = True
    with pytest.raises(UserError, match="would read in tokens of its own: take a teacher of the student's"):
        check_replay(rollouts, source, reader)
