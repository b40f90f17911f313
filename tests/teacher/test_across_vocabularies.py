"""Tests of losses for a teacher with another vocabulary, from their definitions to complete runs."""

import csv
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_alignment import byte_level, same_model_with
from test_divergence import jsd_by_loops, kl_by_loops
from test_training import run
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from distill.data.prompt import Prompt
from distill.errors import UserError
from distill.generation.sampling import StudentRollouts
from distill.losses.chunked import weighted_token_losses
from distill.losses.divergence import cross_entropy, gold, jsd, uld
from distill.losses.inputs import WeightedTerm
from distill.losses.weights import span_support_ratio, support_ratio, uniform
from distill.models.find import find_model
from distill.models.head import Head
from distill.models.language_model import LanguageModel
from distill.objective.objective import Objective
from distill.objective.terms import Term
from distill.tiny import task


def draw(seed: int, sizes: tuple[int, int] = (7, 10), rows: int = 5) -> tuple[Tensor, Tensor]:
    """log Q and log P over vocabularies of these sizes."""
    generator = torch.Generator().manual_seed(seed)
    mine, theirs = (3 * torch.randn(rows, size, generator=generator, dtype=torch.float64) for size in sizes)
    return mine.log_softmax(-1), theirs.log_softmax(-1)


def by_rank_by_loops(q: Sequence[float], p: Sequence[float]) -> float:
    size = max(len(q), len(p))
    mine = sorted(q, reverse=True) + [0.0] * (size - len(q))
    theirs = sorted(p, reverse=True) + [0.0] * (size - len(p))
    return sum(abs(a - b) for a, b in zip(mine, theirs, strict=True))


def gold_by_loops(
    q: Sequence[float], p: Sequence[float], pairs: Sequence[tuple[int, int]], same: bool, beta: float
) -> float:
    if not same:
        return by_rank_by_loops(q, p)
    shared_q, shared_p = [q[a] for a, _ in pairs], [p[b] for _, b in pairs]
    rest_q = [x for i, x in enumerate(q) if i not in {a for a, _ in pairs}]
    rest_p = [x for i, x in enumerate(p) if i not in {b for _, b in pairs}]
    if beta == 0:
        by_name = kl_by_loops(shared_p, shared_q) + sum(shared_q) - sum(shared_p)
    elif beta == 1:
        by_name = kl_by_loops(shared_q, shared_p) + sum(shared_p) - sum(shared_q)
    else:
        by_name = jsd_by_loops(shared_p, shared_q, beta)
    share = len(pairs) / len(p)
    return share * by_name + (1 - share) * by_rank_by_loops(rest_q, rest_p)


@pytest.mark.parametrize("sizes", [(7, 10), (10, 7), (6, 6)])
def test_uld_is_its_definition(sizes: tuple[int, int]) -> None:
    log_q, log_p = draw(1, sizes)
    expected = [
        by_rank_by_loops(q, p) for q, p in zip(log_q.exp().tolist(), log_p.exp().tolist(), strict=True)
    ]
    assert uld(log_q, log_p).tolist() == pytest.approx(expected, rel=1e-12)


PAIRS = [(0, 4), (2, 1), (3, 9), (6, 0)]
SHARED = torch.tensor(PAIRS).T


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
def test_gold_is_its_definition(beta: float) -> None:
    log_q, log_p = draw(2)
    same = [1.0, 0.0, 1.0, 1.0, 0.0]
    expected = [
        gold_by_loops(q, p, PAIRS, bool(flag), beta)
        for q, p, flag in zip(log_q.exp().tolist(), log_p.exp().tolist(), same, strict=True)
    ]
    found = gold(log_q, log_p, SHARED, torch.tensor(same), beta=beta)
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


def test_the_weight_of_shared_tokens_can_be_set() -> None:
    log_q, log_p = draw(3)
    same = torch.ones(5)
    ends = [gold(log_q, log_p, SHARED, same, shared_weight=share) for share in (0.0, 1.0)]
    middle = gold(log_q, log_p, SHARED, same, shared_weight=0.25)
    torch.testing.assert_close(middle, 0.75 * ends[0] + 0.25 * ends[1])
    with pytest.raises(ValueError, match=r"gold: shared_weight=1\.5"):
        gold(log_q, log_p, SHARED, same, shared_weight=1.5)
    with pytest.raises(ValueError, match="gold: beta=-1"):
        gold(log_q, log_p, SHARED, same, beta=-1.0)


@pytest.mark.slow
@given(
    seed=st.integers(0, 10_000),
    sizes=st.tuples(st.integers(4, 9), st.integers(4, 9)),
    shared=st.integers(0, 4),
    beta=st.sampled_from([0.0, 0.2, 0.5, 1.0]),
)
@settings(deadline=None, derandomize=True, max_examples=80)
def test_both_are_never_negative_whatever_is_shared(
    seed: int, sizes: tuple[int, int], shared: int, beta: float
) -> None:
    log_q, log_p = draw(seed, sizes)
    pairs = torch.arange(shared).repeat(2, 1)
    assert (uld(log_q, log_p) >= 0).all()
    assert (uld(log_q, log_p) <= 2 + 1e-12).all()
    for same in (torch.zeros(5), torch.ones(5)):
        assert (gold(log_q, log_p, pairs, same, beta=beta) >= -1e-12).all()


def test_both_vanish_where_the_two_agree_under_other_numbers() -> None:
    log_q, _ = draw(4, (8, 8))
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    shared = torch.stack([torch.arange(8), order])
    log_p = torch.empty_like(log_q)
    log_p[:, order] = log_q
    assert uld(log_q, log_p).abs().max() < 1e-14
    for beta in (0.0, 0.5, 1.0):
        assert gold(log_q, log_p, shared, torch.ones(5), beta=beta).abs().max() < 1e-14


def test_gold_is_the_jsd_where_all_is_shared_under_other_numbers() -> None:
    log_q, log_p = draw(5, (8, 8))
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    shared = torch.stack([torch.arange(8), order])
    theirs = torch.empty_like(log_p)
    theirs[:, order] = log_p
    found = gold(log_q, theirs, shared, torch.ones(5), beta=0.3)
    torch.testing.assert_close(found, jsd(log_q, log_p, beta=0.3))


LOSSES: dict[str, Callable[..., Tensor]] = {"uld": uld, "gold": gold, "gold_0": partial(gold, beta=0.0)}


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_agrees_with_finite_differences(name: str) -> None:
    log_q, log_p = draw(6, rows=2)
    logits = log_q.clone().requires_grad_()
    given_too = {"shared_ids": SHARED, "same_token": torch.tensor([1.0, 0.0])} if name != "uld" else {}
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x.log_softmax(-1), log_p, **given_too), logits)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("chunk_size", [1, 3, None])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_chunks_give_what_the_plain_computation_gives_over_two_vocabularies(
    name: str, chunk_size: int | None, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    hidden, weight = normal(5, 4).requires_grad_(), normal(7, 4).requires_grad_()
    teacher = Head(normal(5, 6), normal(10, 6))
    weights, same = torch.rand(5, generator=generator), torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0])
    found = weighted_token_losses(
        Head(hidden, weight),
        torch.tensor([0, 3, 6, 2, 1]),
        [WeightedTerm(LOSSES[name], weights)],
        others={"log_p": teacher},
        token_signals={"same_token": same},
        constants={"shared_ids": SHARED},
        chunk_size=chunk_size,
    )
    mine, matrix = (x.detach().double().requires_grad_() for x in (hidden, weight))
    log_q = (mine @ matrix.T).log_softmax(-1)
    log_p = (teacher.hidden.double() @ teacher.weight.double().T).log_softmax(-1)
    given_too = {"shared_ids": SHARED, "same_token": same} if name != "uld" else {}
    expected = (weights * LOSSES[name](log_q, log_p, **given_too)).sum()
    gradients = torch.autograd.grad(found.total, (hidden, weight))
    if dtype == torch.bfloat16:  # where two sorted probabilities nearly agree, rounding turns a slope round
        torch.testing.assert_close(found.total.double(), expected, rtol=0.1, atol=0.05)
        assert all(gradient.isfinite().all() and gradient.dtype == dtype for gradient in gradients)
        return
    torch.testing.assert_close(found.total, expected, rtol=1e-10, atol=1e-12)
    for one, other in zip(gradients, torch.autograd.grad(expected, (mine, matrix)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_only_losses_made_for_it_may_compare_different_vocabularies() -> None:
    assert Objective("dataset", uld, uniform).across_vocabularies
    assert Objective("dataset", gold, uniform, extra={"own": Term(uld)}).across_vocabularies
    assert not Objective("dataset", gold, uniform, extra={"own": Term(jsd)}).across_vocabularies
    assert not Objective("dataset", uld, partial(support_ratio)).across_vocabularies


COMMON = [
    "benchmark=none",
    "logger=csv",
    "data.limit=24",
    "data.batch_size=24",
    "data.max_new_tokens=48",
    "data.operations=[2,4]",
    "data.completions=dataset",
    "trainer.max_steps=4",
]


def losses(folder: Path) -> list[float]:
    with (folder / "metrics.csv").open(newline="") as stream:
        return [float(row["train/loss"]) for row in csv.DictReader(stream) if row["train/loss"]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "tolerance"),
    # The padding token is shared with oneself alone, and has some ten-thousandths of the probability.
    [("uld", 1e-5), ("gold loss.token_loss.shared_weight=1", 1e-2), ("dcod_spans", 1e-5)],
)
def test_a_run_does_not_depend_on_how_the_teachers_tokens_are_numbered(
    loss: str, tolerance: float, permuted_tokenizer: Any, tmp_path: Path
) -> None:
    """The same teacher under another numbering: every token is shared, every boundary a common one."""
    known = find_model("package:distill/tiny/teacher", key="model.teacher").load()
    same_model_with(permuted_tokenizer, known, tmp_path / "permuted")
    for name, teacher in (("known", known.source.name), ("other", str(tmp_path / "permuted"))):
        words = [*f"loss={loss}".split(), f"model.teacher={teacher}", f"cache={tmp_path / 'cache'}"]
        run([*COMMON, *words], tmp_path / name)
    found, expected = losses(tmp_path / "other"), losses(tmp_path / "known")
    assert found == pytest.approx(expected, rel=tolerance)
    assert len(set(expected)) == 4


@pytest.fixture(scope="module")
def strange_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose tokens span several characters."""
    folder = tmp_path_factory.mktemp("strange")
    texts = [task.write_solution(p, "single") for p in task.problems(200, split="train", operations=(2, 4))]
    tokenizer = byte_level(330, texts)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_dcod_over_spans_is_its_definition_token_by_token(strange_teacher: Path, tmp_path: Path) -> None:
    """By hand, in float64: the student's tokens are characters, so each of the teacher's tokens is a span."""
    words = ["loss=dcod_spans", "loss.token_weight.temperature=2", f"model.teacher={strange_teacher}"]
    run([*COMMON, *words, f"cache={tmp_path / 'cache'}"], tmp_path / "run")
    student, teacher = (
        find_model(name, key="model").load()
        for name in ("package:distill/tiny/student", str(strange_teacher))
    )

    def logprobs(lm: LanguageModel, prompt: str, completion: list[int]) -> list[float]:
        ids = [*lm.tokenizer(prompt).input_ids, *completion]
        with torch.no_grad():
            logits = lm.model.double()(input_ids=torch.tensor([ids])).logits[0, :, : lm.vocab_size]
        rows = logits.log_softmax(-1)[-len(completion) - 1 : -1]
        return [row[token].item() for row, token in zip(rows, completion, strict=True)]

    total, count = 0.0, 0
    for problem in task.problems(24, split="train", operations=(2, 4)):
        text = task.write_solution(problem, "single")
        mine = [*student.tokenizer(text).input_ids, student.tokenizer.eos_token_id]
        theirs = [*teacher.tokenizer(text).input_ids, teacher.tokenizer.eos_token_id]
        lengths = [*(len(teacher.tokenizer.decode([token])) for token in theirs[:-1]), 1]
        own, other, at = logprobs(student, problem, mine), logprobs(teacher, problem, theirs), 0
        for length, value in zip(lengths, other, strict=True):
            span = own[at : at + length]
            weight = 1 / (1 + np.exp(-(sum(span) - value) / length / 2))
            total, count, at = total - weight * sum(span), count + length, at + length
        assert at == len(mine)
    assert losses(tmp_path / "run")[0] == pytest.approx(total / count, rel=1e-5)


def test_dcod_over_spans_refuses_what_the_student_writes() -> None:
    with pytest.raises(
        ValueError, match=r"span_support_ratio needs the teacher's log-probs of whole completions"
    ):
        Objective(StudentRollouts(fraction=0.5), cross_entropy, span_support_ratio)


@pytest.mark.slow
@pytest.mark.parametrize("words", [["loss=uld"], ["loss=gold"], ["loss=gold", "loss.rollouts.fraction=1"]])
def test_a_teacher_of_longer_tokens_teaches_offline_and_on_what_the_student_writes(
    words: list[str], strange_teacher: Path, tmp_path: Path
) -> None:
    run(
        [*COMMON, *words, f"model.teacher={strange_teacher}", f"cache={tmp_path / 'cache'}"], tmp_path / "run"
    )
    found = losses(tmp_path / "run")
    assert len(found) == 4
    assert all(0 < value < 20 for value in found)


@pytest.mark.slow
def test_other_losses_refuse_a_teacher_of_other_tokens_and_name_those_that_take_it(
    strange_teacher: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"the vocabularies differ.*loss=dcod_spans, uld or gold"):
        run([*COMMON, "loss=forward_kl", f"model.teacher={strange_teacher}"], tmp_path / "run")


@pytest.mark.slow
def test_the_weights_are_zero_where_the_teacher_has_no_boundary(
    strange_teacher: Path, tmp_path: Path
) -> None:
    """By hand: the student's tokens are characters, so every one has a boundary; the teacher's are longer."""
    words = ["loss=gold", "loss.rollouts=dataset", f"model.teacher={strange_teacher}"]
    run([*COMMON, *words, f"cache={tmp_path / 'cache'}"], tmp_path / "run")
    with (tmp_path / "run" / "metrics.csv").open(newline="") as stream:
        row = next(row for row in csv.DictReader(stream) if row["train/loss"])
    tokenizer = find_model(str(strange_teacher), key="model.teacher").tokenizer
    problems = task.problems(24, split="train", operations=(2, 4))
    texts = [task.write_solution(problem, "single") for problem in problems]
    theirs = sum(len(tokenizer(text, add_special_tokens=False).input_ids) + 1 for text in texts)
    mine = sum(len(text) + 1 for text in texts)
    assert float(row["weights/mean"]) == pytest.approx(theirs / mine)
    assert theirs < 0.96 * mine


def test_a_batch_tells_which_tokens_have_a_counterpart_and_which_of_them_are_the_same_text() -> None:
    """By hand: after prompts of one and two tokens, completions of three and two."""
    from distill.data.alignment import Alignment
    from distill.data.batch import collate
    from distill.data.trace import Example, TeacherView, Trace
    from distill.teacher.batches import at_students_tokens
    from distill.training.module import _comparable

    def trace(prompt: int, completion: int, pairs: dict[int, bool]) -> Trace:
        theirs = np.ones(len(pairs), dtype=np.int32)
        alignment = Alignment(np.array([*pairs]), np.arange(len(pairs)), np.array([*pairs.values()]))
        view = TeacherView(np.ones(1, dtype=np.int32), theirs, alignment)
        ids = np.ones(prompt + completion, dtype=np.int32)
        return Trace(Example("", ""), ids[:prompt], ids[prompt:], teacher_view=view)

    batch = collate([trace(1, 3, {0: True, 2: False}), trace(2, 2, {1: True})])
    compared, same = _comparable(batch)
    assert compared is not None
    assert compared.tolist() == [[True, False, True], [False, False, True]]
    assert same.tolist() == [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    # The teacher's states at its three tokens are put at the student's five.
    assert batch.teacher_view is not None
    states = Head(torch.tensor([[5.0], [6.0], [7.0]]), torch.ones(4, 1))
    moved = at_students_tokens(states, batch.teacher_view, batch.tokens)
    assert moved.hidden.flatten().tolist() == [5.0, 0.0, 6.0, 0.0, 7.0]


def test_the_teacher_is_shown_the_solution_and_nothing_else_changes(
    student: LanguageModel, tmp_path: Path
) -> None:
    """OPSD's distributions against two plain passes over the same completion under the two prompts."""
    from distill.data.batch import collate
    from distill.data.trace import Example, Trace, encode_completion
    from distill.teacher.batches import read_batch
    from distill.teacher.retokenize import Retokenizer

    reader = Retokenizer(student.source, student.source, Prompt("{solution};{problem}"))
    traces = []
    for number, problem in enumerate(task.problems(3, split="train", operations=(2, 4))):
        example = Example(str(number), problem, completion=task.write_solution(problem, "single"))
        ids = encode_completion(student.tokenizer, task.write_solution(problem, "double"))
        traces.append(Trace(example, Prompt("{problem}").encode(student.tokenizer, example), ids))
    traces = list(reader.read_all(traces))
    batch = collate(traces)
    assert batch.teacher_view is not None
    with torch.no_grad():
        head = read_batch(student, batch)
        found = head.hidden @ head.weight.T
        expected = []
        for trace in traces:
            solution = student.tokenizer(f"{trace.example.completion};{trace.example.problem}").input_ids
            ids = torch.tensor([[*solution, *trace.completion_ids.tolist()]])
            logits = student.model(input_ids=ids).logits[0, len(solution) - 1 : -1, : student.vocab_size]
            expected.append(logits)
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_rollouts_leave_room_for_the_solution_in_the_teachers_context(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The embedded pair's own settings: its context holds no prompt with a solution and 96 tokens."""
    words = ["loss=opsd", "data.limit=16", "data.batch_size=16", "trainer.max_steps=1", "benchmark=none"]
    run([*words, "logger=csv"], tmp_path / "run")
    assert "(128) leaves room for rollouts of" in capsys.readouterr().out
    assert len(losses(tmp_path / "run")) == 1


@pytest.mark.slow
def test_a_teacher_that_is_to_see_a_solution_needs_one(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"problem": "1+1="}\n{"problem": "1+2="}\n')
    words = ["data=traces", f"data.path={tmp_path / 'data.jsonl'}", "data.fields.completion=null"]
    with pytest.raises(UserError, match=r"comes without a worked solution.*data.fields.completion"):
        run(["loss=opsd", "benchmark=none", "logger=csv", "trainer.max_steps=1", *words], tmp_path / "run")
