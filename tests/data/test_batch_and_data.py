"""Tests of batches and their order, and of building training traces from a recipe."""

import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import distill.teacher.completions
from distill.data.batch import by_length, collate
from distill.data.prompt import Prompt
from distill.data.tokenizers import tokenizer_fingerprint
from distill.data.trace import Example, Recorded, Trace, Verdict
from distill.errors import UserError
from distill.generation.sampling import Sampling
from distill.models.find import find_model
from distill.models.language_model import LanguageModel
from distill.models.lazy import LazyModel
from distill.tiny import task
from distill.training.datamodule import DistillDataModule, TraceOrder
from distill.training.recipe import TraceRecipe

SIGNALS = ("teacher_logprobs", "initial_logprobs")


def random_traces(count: int, seed: int = 0, longest: int = 9) -> list[Trace]:
    """Any ids, so 0 (the usual padding) and the end token stand in the middle of texts too."""
    rng = np.random.default_rng(seed)
    traces = []
    for number in range(count):
        prompt = rng.integers(0, 5, rng.integers(1, longest)).astype(np.int32)
        completion = rng.integers(0, 5, rng.integers(1, longest)).astype(np.int32)
        signals = {name: -rng.random(len(completion)).astype(np.float32) for name in SIGNALS}
        traces.append(Trace(Example(f"t{number}", ""), prompt, completion, signals))
    return traces


@pytest.mark.parametrize("pad_id", [0, 1, 4])
@pytest.mark.parametrize("seed", range(5))
def test_a_batch_is_what_a_plain_loop_makes(seed: int, pad_id: int) -> None:
    traces = random_traces(7, seed)
    batch = collate(traces, SIGNALS, pad_id)
    length = max(len(trace) for trace in traces)
    assert batch.input_ids.shape == (7, length)
    assert batch.labels.shape == batch.mask.shape == (7, length - 1)
    assert batch.names == tuple(f"t{number}" for number in range(7))
    for row, trace in enumerate(traces):
        ids = [*trace.prompt_ids.tolist(), *trace.completion_ids.tolist()]
        assert batch.input_ids[row].tolist() == ids + [pad_id] * (length - len(ids))
        for column in range(length - 1):
            token = column + 1  # column t speaks of token t+1
            belongs = len(trace.prompt_ids) <= token < len(ids)
            assert bool(batch.mask[row, column]) == belongs
            if token < len(ids):
                assert int(batch.labels[row, column]) == ids[token]
            for name in SIGNALS:
                expected = trace.signals[name][token - len(trace.prompt_ids)] if belongs else 0.0
                assert float(batch.signals[name][row, column]) == expected


@pytest.mark.parametrize("pad_id", [0, 1])
def test_the_end_token_is_learned_also_when_it_is_the_padding(pad_id: int) -> None:
    ids = np.asarray([3, 4, 1], dtype=np.int32)
    short = Trace(Example("a", ""), np.asarray([2], dtype=np.int32), ids)
    long = Trace(Example("b", ""), np.asarray([2, 2, 2], dtype=np.int32), np.tile(ids, 2))
    batch = collate([short, long], pad_id=pad_id)
    assert batch.labels[0][batch.mask[0]].tolist() == [3, 4, 1]
    assert batch.labels[1][batch.mask[1]].tolist() == [3, 4, 1, 3, 4, 1]
    assert batch.mask.sum().item() == 9


def test_masked_values_come_back_in_the_order_of_rows_and_tokens() -> None:
    traces = random_traces(5)
    batch = collate(traces, SIGNALS)
    expected = np.concatenate([trace.completion_ids for trace in traces])
    assert batch.labels[batch.mask].tolist() == expected.tolist()
    signal = np.concatenate([trace.signals[SIGNALS[0]] for trace in traces])
    assert batch.signals[SIGNALS[0]][batch.mask].tolist() == signal.tolist()


def test_only_the_signals_asked_for_are_carried_and_a_missing_one_is_an_error() -> None:
    traces = random_traces(3)
    assert set(collate(traces, SIGNALS[:1]).signals) == {SIGNALS[0]}
    assert not collate(traces).signals
    with pytest.raises(KeyError):
        collate(traces, ["sampler_logprobs"])


def test_weights_of_traces_are_in_the_batch_if_any_is_not_one() -> None:
    traces = random_traces(3)
    assert collate(traces).trace_weights is None
    traces[1].weight = 0.5
    weights = collate(traces).trace_weights
    assert weights is not None
    assert weights.tolist() == [1.0, 0.5, 1.0]


def test_the_prompts_come_back_without_padding_and_a_moved_batch_is_the_same() -> None:
    traces = random_traces(6)
    batch = collate(traces, SIGNALS)
    moved = batch.to("cpu")
    for one in (batch, moved):
        assert one.prompts() == [trace.prompt_ids.tolist() for trace in traces]
    assert moved.names == batch.names
    for name in ("input_ids", "labels", "mask"):
        assert torch.equal(getattr(moved, name), getattr(batch, name))
    assert all(torch.equal(moved.signals[name], batch.signals[name]) for name in SIGNALS)


@pytest.mark.slow
@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 120))
def test_batches_by_length_hold_every_index_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = by_length(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert batch
        assert len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= budget
    flat = [lengths[index] for batch in batches for index in batch]
    assert flat == sorted(flat, reverse=True)


def test_batches_by_length_use_their_budget() -> None:
    assert [len(batch) for batch in by_length([10] * 25, 100)] == [10, 10, 5]


@pytest.mark.parametrize(("count", "batch_size"), [(12, 4), (13, 4), (3, 8), (1, 4), (100, 7)])
def test_every_pass_sees_every_trace_once(count: int, batch_size: int) -> None:
    order = TraceOrder(count, batch_size, seed=3)
    batches = -(-4 * count // batch_size)
    seen = [index for number in range(batches) for index in order.batch(number)]
    passes = [seen[start : start + count] for start in range(0, 4 * count, count)]
    assert all(sorted(one) == list(range(count)) for one in passes)
    if count >= 12:
        assert len({tuple(one) for one in passes}) == 4  # each in an order of its own


def test_the_order_depends_on_the_seed_and_the_batch_number_alone() -> None:
    forwards = TraceOrder(13, 4, seed=3)
    expected = [forwards.batch(number) for number in range(40)]
    backwards = TraceOrder(13, 4, seed=3)
    assert [backwards.batch(number) for number in reversed(range(40))] == expected[::-1]
    assert TraceOrder(13, 4, seed=3).batch(29) == expected[29]  # a resumed run asks for this one first
    np.random.seed(99)  # noqa: NPY002  the order must not listen to it
    torch.manual_seed(99)
    assert TraceOrder(13, 4, seed=3).batch(5) == expected[5]
    assert TraceOrder(13, 4, seed=4).batch(0) != expected[0]


@pytest.mark.parametrize("count", [5, 16, 37])
def test_a_step_holds_the_same_traces_however_it_is_cut(count: int) -> None:
    whole = TraceOrder(count, 8, seed=1)
    micro = TraceOrder(count, 4, seed=1)
    ranks = [TraceOrder(count, 4, seed=1, rank=rank, ranks=2) for rank in range(2)]
    both = [TraceOrder(count, 2, seed=1, rank=rank, ranks=2) for rank in range(2)]
    for step in range(12):
        expected = whole.batch(step)
        assert micro.batch(2 * step) + micro.batch(2 * step + 1) == expected
        assert ranks[0].batch(step) + ranks[1].batch(step) == expected
        assert [
            i for number in (2 * step, 2 * step + 1) for rank in both for i in rank.batch(number)
        ] == expected


def data_module(traces: Sequence[Trace], **trainer: Any) -> DistillDataModule:
    module = DistillDataModule(traces, signals=SIGNALS, batch_size=4, steps=10, seed=7, pad_id=0)
    state: Any = {
        "global_rank": 0,
        "world_size": 1,
        "accumulate_grad_batches": 1,
        "global_step": 0,
        "strategy": SimpleNamespace(root_device=torch.device("cpu")),
        **trainer,
    }
    module.trainer = SimpleNamespace(**state)  # pyright: ignore[reportAttributeAccessIssue]
    return module


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("start", [0, 4, 9, 10])
def test_the_loader_goes_on_at_the_trainers_step_and_counts_the_whole_run(
    start: int, accumulate: int
) -> None:
    traces = random_traces(11)
    whole = list(data_module(traces, accumulate_grad_batches=accumulate).train_dataloader())
    assert len(whole) == 10 * accumulate
    loader = data_module(traces, accumulate_grad_batches=accumulate, global_step=start).train_dataloader()
    assert len(loader) == 10 * accumulate
    rest = list(loader)
    assert [batch.names for batch in rest] == [batch.names for batch in whole[start * accumulate :]]
    for one, other in zip(rest, whole[start * accumulate :], strict=True):
        assert torch.equal(one.input_ids, other.input_ids)


def test_a_checkpoint_of_other_traces_is_refused() -> None:
    traces = random_traces(5)
    state = data_module(traces).state_dict()
    data_module(random_traces(5)).load_state_dict(state)
    for other in (traces[::-1], traces[:-1], random_traces(5, seed=1)):
        with pytest.raises(UserError, match="not those that the checkpoint was trained on: put the data"):
            data_module(other).load_state_dict(state)


def test_the_loaders_batches_are_the_orders_and_carry_the_signals() -> None:
    traces = random_traces(11)
    order = TraceOrder(11, 4, seed=7, rank=1, ranks=2)
    loader = data_module(traces, global_rank=1, world_size=2).train_dataloader()
    for number, batch in enumerate(loader):
        expected = [traces[index] for index in order.batch(number)]
        assert batch.names == tuple(trace.example.id for trace in expected)
        assert set(batch.signals) == set(SIGNALS)
        assert batch.prompts() == [trace.prompt_ids.tolist() for trace in expected]


def test_making_and_reading_a_loader_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    list(data_module(random_traces(11)).train_dataloader())
    assert torch.equal(torch.get_rng_state(), before)


# --- recipes


def problems(count: int = 6) -> list[Example]:
    texts = task.problems(count, split="train", operations=(2, 3))
    return [
        Example(f"p{number}", text, task.answer(text), task.write_solution(text, "single"))
        for number, text in enumerate(texts)
    ]


def build(
    recipe: TraceRecipe, student: LanguageModel, tmp_path: Path, teacher: LazyModel | None = None
) -> tuple[list[Trace], str]:
    said: list[str] = []
    traces = recipe.build(student, teacher, tmp_path / "cache", say=said.append)
    return traces, "\n".join(said)


def test_completions_of_the_data_become_traces_in_the_datas_order(
    student: LanguageModel, tmp_path: Path
) -> None:
    examples = problems()
    traces, said = build(
        TraceRecipe(lambda: examples, student_prompt=Prompt("#{problem}")), student, tmp_path
    )
    assert [trace.example for trace in traces] == examples
    for trace, example in zip(traces, examples, strict=True):
        assert student.tokenizer.decode(trace.prompt_ids) == "#" + example.problem
        assert student.tokenizer.decode(trace.completion_ids) == f"{example.completion}<eos>"
        assert len(trace) == len(trace.prompt_ids) + len(trace.completion_ids)
    assert said == ""


@pytest.mark.parametrize("learn_from", [0, 1, 3])
def test_recorded_tokens_before_the_first_to_learn_go_to_the_prompt(
    student: LanguageModel, learn_from: int
) -> None:
    ids = np.asarray([7, 8, 9, student.end_ids[0]], dtype=np.int32)
    prompt = np.asarray(student.tokenizer("1+1=").input_ids, dtype=np.int32)
    vocabulary = tokenizer_fingerprint(student.tokenizer)
    recorded = Recorded(vocabulary, prompt, ids, True, None, None, None, weight=0.5, learn_from=learn_from)
    example = Example("p9", "1+1=", None, student.tokenizer.decode(ids[:-1]), recorded=recorded)
    (trace,) = TraceRecipe(list).tokenize([example], student.source)
    assert trace.completion_ids.tolist() == ids[learn_from:].tolist()
    assert trace.prompt_ids.tolist() == [*prompt.tolist(), *ids[:learn_from].tolist()]
    assert trace.weight == 0.5


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (Example("p9", "1+1=", "2", None), r"p9 comes without a completion.*data\.fields\.completion="),
        (Example("p9", "1+1=", "2", ""), r"completion of problem p9 is empty"),
        (Example("p9", "1+1=", "2", " \n"), r"completion of problem p9 is empty"),
        (Example("p9", "1" * 128, "2", "#2"), r"prompt of problem p9 has 128 tokens.*context.*128"),
        (Example("p9", "1" * 300, "2", "#2"), r"prompt of problem p9 has 300 tokens"),
        (
            Example("p9", "1+1=", "2", "1" * 124),
            r"p9 has 129 tokens, more than 128 \(the context.*overlong=drop",
        ),
        (Example("p9", "", "2", "#2"), r"the prompt of problem p9 is empty: .*data\.student_prompt\.user"),
    ],
)
def test_a_problem_that_cannot_be_learned_is_named(
    student: LanguageModel, tmp_path: Path, example: Example, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build(TraceRecipe(lambda: [*problems(), example]), student, tmp_path)


def test_a_trace_that_just_fits_the_context_is_kept(student: LanguageModel, tmp_path: Path) -> None:
    example = Example("p", "1+1=", "2", "1" * 123)
    traces, _ = build(TraceRecipe(lambda: [example]), student, tmp_path)
    assert len(traces[0]) == student.context_length == 128


def test_no_problem_at_all_is_refused(student: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no problem"):
        build(TraceRecipe(lambda: []), student, tmp_path)


def test_overlong_traces_are_refused_or_dropped_with_their_number(
    student: LanguageModel, tmp_path: Path
) -> None:
    examples = [*problems(), Example("long", "1+1=", "2", "1" * 60), Example("longer", "1+1=", "2", "1" * 90)]
    with pytest.raises(
        UserError,
        match=r"trace long has 65 tokens, more than 50 \(data\.max_length\); 2 of 8 traces are longer: ",
    ):
        build(TraceRecipe(lambda: examples, max_length=50), student, tmp_path)
    traces, said = build(TraceRecipe(lambda: examples, max_length=50, overlong="drop"), student, tmp_path)
    assert [trace.example.id for trace in traces] == [f"p{number}" for number in range(6)]
    assert "2 of 8 traces are longer than 50 tokens and left out" in said
    traces, said = build(TraceRecipe(lambda: examples, max_length=65, overlong="drop"), student, tmp_path)
    assert [trace.example.id for trace in traces][-1] == "long"
    assert "1 of 8" in said
    with pytest.raises(UserError, match=r"all 8 traces are longer than 3 tokens: raise data\.max_length"):
        build(TraceRecipe(lambda: examples, max_length=3, overlong="drop"), student, tmp_path)


def test_a_length_beyond_the_context_is_the_context(student: LanguageModel, tmp_path: Path) -> None:
    examples = [*problems(), Example("long", "1+1=", "2", "1" * 200)]
    traces, said = build(TraceRecipe(lambda: examples, max_length=4096, overlong="drop"), student, tmp_path)
    assert len(traces) == 6
    assert "longer than 128 tokens" in said


def test_a_token_without_a_row_in_the_matrix_is_refused(student: LanguageModel, tmp_path: Path) -> None:
    student.tokenizer.add_tokens([f"<{number}>" for number in range(9)])  # more than the padding has room for
    example = Example("odd", "1+1=", "2", "<8>", where="data.jsonl, line 7")
    with pytest.raises(UserError, match=r"problem odd \(data.jsonl, line 7\) has token 26.* no row.* of 18"):
        build(TraceRecipe(lambda: [*problems(), example]), student, tmp_path)


def test_a_teacher_of_the_same_tokens_gets_the_students_prompt(
    student: LanguageModel, tiny_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is scored under the prompt that it wrote under, whatever its own template would have made of it."""
    folder = tmp_path / "chatty"
    shutil.copytree(tiny_pair[1], folder)
    tokenizer = find_model(str(folder), key="model.teacher").tokenizer
    tokenizer.chat_template = "0+0={{ messages[0].content }}"
    tokenizer.save_pretrained(folder)
    asked: list[list[int]] = []

    def write(lm: LanguageModel, prompts: list[list[int]], *args: Any, **kwargs: Any) -> list[list[int]]:
        asked.extend(prompts)
        return [[5, lm.end_ids[0]] for _ in prompts]

    monkeypatch.setattr(distill.teacher.completions, "generate", write)
    chatty = LazyModel(find_model(str(folder), key="model.teacher"), "cpu")
    traces, _ = build(TraceRecipe(problems, completions="teacher"), student, tmp_path, chatty)
    assert [trace.prompt_ids.tolist() for trace in traces] == asked
    assert student.tokenizer.decode(asked[0]) == problems()[0].problem


def test_a_teachers_other_end_token_becomes_the_students(
    student: LanguageModel, tiny_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "two_ends"
    shutil.copytree(tiny_pair[1], folder)
    eos = student.tokenizer.eos_token_id
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [eos, 9]}))

    def write(lm: LanguageModel, prompts: list[list[int]], *args: Any, **kwargs: Any) -> list[list[int]]:
        return [[5, 9], [5, eos], [5, 5], [9], [5, 9], [5, 9]][: len(prompts)]

    monkeypatch.setattr(distill.teacher.completions, "generate", write)
    source = find_model(str(folder), key="model.teacher")
    traces, said = build(
        TraceRecipe(problems, completions="teacher"), student, tmp_path, LazyModel(source, "cpu")
    )
    assert [trace.completion_ids.tolist() for trace in traces] == [
        [5, eos],
        [5, eos],
        [eos],
        [5, eos],
        [5, eos],
    ]
    assert "1 without an end" in said


def test_prompts_alone_ask_no_one_for_a_completion(student: LanguageModel, tmp_path: Path) -> None:
    examples = [*problems(), Example("bare", "1+1=", None, None)]
    traces = TraceRecipe(lambda: examples, completions="teacher").build(
        student, None, tmp_path, prompts_only=True
    )
    assert [trace.example.id for trace in traces] == [example.id for example in examples]
    assert all(trace.completion_ids.tolist() == student.end_ids[:1] for trace in traces)
    assert student.tokenizer.decode(traces[-1].prompt_ids) == "1+1="
    with pytest.raises(UserError, match=r"prompt of problem long has 300 tokens"):
        TraceRecipe(lambda: [Example("long", "1" * 300)]).build(student, None, tmp_path, prompts_only=True)


def test_the_teachers_context_bounds_what_it_writes_and_reads(
    student: LanguageModel, tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "narrow"
    shutil.copytree(tiny_pair[1], folder)
    config = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": 40}
    (folder / "config.json").write_text(json.dumps(config))
    narrow = LazyModel(find_model(str(folder), key="model.teacher"), "cpu")
    long = Example("long", "1" * 40, "2", "#2")
    with pytest.raises(UserError, match=r"trace wordy has 45 tokens, more than 40 \(the context of .*narrow"):
        build(TraceRecipe(lambda: [Example("wordy", "1+1=", "2", "1" * 40)]), student, tmp_path, narrow)
    with pytest.raises(UserError, match=r"prompt of problem long has 40 tokens.*context of .*narrow \(40\)"):
        build(TraceRecipe(lambda: [long]), student, tmp_path, narrow)
    recipe = TraceRecipe(lambda: [long], completions="teacher")
    with pytest.raises(UserError, match=r"problem long has 40 tokens.*no room in the context of the teacher"):
        build(recipe, student, tmp_path, narrow)
    assert not narrow.loaded


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"completions": "student"}, r"data\.completions='student' is not one of dataset, teacher"),
        ({"overlong": "cut"}, r"data\.overlong='cut' is not one of error, drop"),
        ({"informed_prompt": "{problem}"}, r"needs \{problem\} and \{solution\} in it"),
        ({"other_prompt": "keep"}, r"data\.other_prompt='keep' is not one of error, rescore"),
    ],
)
def test_a_recipe_refuses_what_it_does_not_know(options: dict[str, Any], message: str) -> None:
    recipe = TraceRecipe(problems)
    vars(recipe).update(options)  # the constructor's types are checked while tests run
    with pytest.raises(ValueError, match=message):
        recipe.__post_init__()


def scripted(monkeypatch: pytest.MonkeyPatch, texts: Sequence[str]) -> list[list[list[int]]]:
    """The teacher writes these texts, one after the other; "|" ends a text without an end token."""
    asked: list[list[list[int]]] = []
    script = iter(texts)

    def generate(
        lm: LanguageModel, prompts: Sequence[Sequence[int]], sampling: Sampling, *, seed: int
    ) -> list[list[int]]:
        asked.append([list(prompt) for prompt in prompts])
        written = [next(script) for _ in prompts]
        return [
            lm.tokenizer(text.removesuffix("|")).input_ids
            + ([] if text.endswith("|") else [lm.tokenizer.eos_token_id])
            for text in written
        ]

    monkeypatch.setattr(distill.teacher.completions, "generate", generate)
    return asked


def exact(example: Example, completion: str) -> Verdict:
    return Verdict(completion[-1:], completion.endswith(f"#{example.gold}"))


def test_the_teachers_right_and_finished_traces_alone_are_kept(
    student: LanguageModel, tiny_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = [Example("a", "1+1=", "2"), Example("b", "2+2=", "4", "#4!"), Example("c", "3+3=", "6")]
    asked = scripted(monkeypatch, ["1+1=2;#2", "#3", "2+2=4;#4|", "#4", "", "|"])
    recipe = TraceRecipe(
        lambda: examples,
        student_prompt=Prompt("#{problem}"),
        completions="teacher",
        grade=exact,
        samples=2,
        sampling_batch_size=2,
    )
    teacher = LazyModel(find_model(str(tiny_pair[1]), key="model.teacher"), "cpu")
    traces, said = build(recipe, student, tmp_path, teacher)
    decode = student.tokenizer.decode
    assert [[decode(prompt) for prompt in batch] for batch in asked] == [
        ["#1+1=", "#1+1=", "#2+2=", "#2+2="],
        ["#3+3=", "#3+3="],
    ]
    # An informed teacher is shown the data's own solution, not what it is to judge.
    assert [(t.example.id, t.example.completion) for t in traces] == [("a#0", None), ("b#1", "#4!")]
    assert [decode(trace.prompt_ids) for trace in traces] == ["#1+1=", "#2+2="]
    assert [decode(trace.completion_ids) for trace in traces] == ["1+1=2;#2<eos>", "#4<eos>"]
    assert [trace.example.gold for trace in traces] == ["2", "4"]
    assert "6 written, 2 kept (2 wrong, 2 without an end)" in said


def test_the_next_job_with_the_same_traces_neither_grades_nor_tokenizes_them_again(
    student: LanguageModel, tiny_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, ["#2", "#3", "#2", "#3", "#2", "#2", "#2", "#2"])
    examples = [Example("a", "1+1=", "2"), Example("b", "1+2=", "3")]
    asked: list[str] = []

    def lenient(example: Example, completion: str, rule: str) -> Verdict:
        asked.append(completion)
        return Verdict(completion, rule == "all" or completion == f"#{example.gold}")

    def built(rule: str = "right", gold: str = "2", **changes: Any) -> tuple[list[list[int]], str, int, Any]:
        """The completions' ids, what was said, how many were graded, and the teacher's work."""
        asked.clear()
        read = [dataclasses.replace(examples[0], gold=gold), examples[1]]
        # Each job builds its functions and models anew.
        recipe = TraceRecipe(
            lambda: read, completions="teacher", grade=partial(lenient, rule=rule), **changes
        )
        teacher = LazyModel(find_model(str(tiny_pair[1]), key="model.teacher"), "cpu")
        traces, said = build(recipe, student, tmp_path, teacher)
        return [trace.completion_ids.tolist() for trace in traces], said, len(asked), teacher.work

    first = built()
    assert first[2] == 2
    assert first[3].tokens > 0
    assert built() == (*first[:2], 0, first[3])
    assert len(built(gold="9")[0]) == 1  # other data
    assert built()[2] == 2  # the last ones alone are kept
    assert built(rule="all")[2] == 2  # another grader
    assert built(rule="all")[2] == 0
    assert built(rule="all", seed=1)[2] == 2  # other completions
    assert built(rule="all", seed=1, student_prompt=Prompt("#{problem}"))[2] == 2


def test_without_a_grader_every_finished_trace_is_kept_under_its_problems_name(
    student: LanguageModel, tiny_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, ["#9", "#8|"])
    examples = [Example("a", "1+1=", "2"), Example("b", "2+2=", "4")]
    teacher = LazyModel(find_model(str(tiny_pair[1]), key="model.teacher"), "cpu")
    traces, _ = build(TraceRecipe(lambda: examples, completions="teacher"), student, tmp_path, teacher)
    assert [trace.example for trace in traces] == examples[:1]
    assert student.tokenizer.decode(traces[0].completion_ids) == "#9<eos>"


def test_a_teacher_that_is_never_right_is_refused(
    student: LanguageModel, tiny_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, ["#9", "#8|"])
    examples = [Example("a", "1+1=", "2"), Example("b", "2+2=", "4")]
    recipe = TraceRecipe(lambda: examples, completions="teacher", grade=exact)
    teacher = LazyModel(find_model(str(tiny_pair[1]), key="model.teacher"), "cpu")
    with pytest.raises(
        UserError, match=r"none of the teacher's 2 traces is right and finished.*model\.teacher"
    ):
        build(recipe, student, tmp_path, teacher)


def test_completions_by_a_teacher_need_one(student: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no teacher: set model\.teacher="):
        build(TraceRecipe(problems, completions="teacher"), student, tmp_path)


def test_traces_of_a_teacher_with_other_tokens_are_tokenised_anew(
    student: LanguageModel,
    teacher: LanguageModel,
    permuted_tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "other"
    teacher.model.save_pretrained(folder)
    permuted_tokenizer.save_pretrained(folder)
    scripted(monkeypatch, ["1+1=2;#2", "#4"])
    examples = [Example("a", "1+1=", "2"), Example("b", "2+2=", "4")]
    lazy = LazyModel(find_model(str(folder), key="model.teacher"), "cpu")
    traces, _ = build(TraceRecipe(lambda: examples, completions="teacher"), student, tmp_path, lazy)
    assert permuted_tokenizer("1+1=2;#2").input_ids != student.tokenizer("1+1=2;#2").input_ids
    assert [student.tokenizer.decode(t.completion_ids) for t in traces] == ["1+1=2;#2<eos>", "#4<eos>"]
    assert [student.tokenizer.decode(t.prompt_ids) for t in traces] == ["1+1=", "2+2="]
    assert all(Counter(t.completion_ids.tolist())[student.tokenizer.eos_token_id] == 1 for t in traces)
