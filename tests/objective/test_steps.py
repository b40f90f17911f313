"""Tests of proposed next reasoning steps: where completions are cut, the proposals, and their values."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from test_training import run

from distill.benchmarks.arithmetic import grade
from distill.data.batch import Batch, collate
from distill.data.trace import Example, TeacherView, Trace, Verdict
from distill.errors import UserError
from distill.generation.sampling import Sampling
from distill.losses.weights import uniform, validity
from distill.models.find import find_model
from distill.models.language_model import LanguageModel
from distill.objective.objective import Objective
from distill.objective.step_values import StepProposals
from distill.tiny import task


@pytest.fixture(scope="module")
def pair() -> tuple[LanguageModel, LanguageModel]:
    student, teacher = (
        find_model(f"package:distill/tiny/{role}", key=f"model.{role}").load()
        for role in ("student", "teacher")
    )
    return student, teacher


def batch_of(lm: LanguageModel, count: int = 4, *, end: bool = True, asked: str = "") -> Batch:
    """Problems with solutions; `asked` stands before the problem in the teacher's prompt alone."""
    traces = []
    for problem in task.problems(count, split="train", operations=(2, 5)):
        ids = lm.tokenizer(task.write_solution(problem, "single")).input_ids
        example = Example(problem, problem, gold=task.answer(problem))
        prompt = np.asarray(lm.tokenizer(problem).input_ids, dtype=np.int32)
        traces.append(Trace(example, prompt, np.asarray([*ids, *lm.end_ids[:end]], dtype=np.int32)))
        if asked:
            read = np.asarray(lm.tokenizer(asked + problem).input_ids, dtype=np.int32)
            traces[-1].teacher_view = TeacherView(read, traces[-1].completion_ids)
    return collate(traces)


def greedily(lm: LanguageModel, prefix: str, longest: int) -> str:
    """Token by token with a plain forward pass, up to the step's end."""
    written = ""
    while len(written) < longest and not written.endswith(";"):
        ids = torch.tensor([lm.tokenizer(prefix + written).input_ids])
        with torch.no_grad():
            best = int(lm.model(input_ids=ids).logits[0, -1, : lm.vocab_size].argmax())
        if best in lm.end_ids:
            return written + "$"
        written += lm.tokenizer.decode([best])
    return written


def mean_logprob(lm: LanguageModel, prefix: str, step: str) -> float:
    """Of the step's tokens ($: the end), by a plain forward pass."""
    prompt = lm.tokenizer(prefix).input_ids
    ids = [
        *prompt,
        *lm.tokenizer(step.rstrip("$")).input_ids,
        *(lm.end_ids[:1] if step.endswith("$") else []),
    ]
    with torch.no_grad():
        logprobs = lm.model(input_ids=torch.tensor([ids])).logits[0, :, : lm.vocab_size].log_softmax(-1)
    values = [float(logprobs[at - 1, ids[at]]) for at in range(len(prompt), len(ids))]
    return math.fsum(values) / len(values)


@pytest.mark.slow
@pytest.mark.parametrize(("end", "asked"), [(True, ""), (False, ""), (True, "#7;")])
def test_values_are_those_of_steps_proposed_one_by_one(
    pair: tuple[LanguageModel, LanguageModel], end: bool, asked: str
) -> None:
    student, teacher = pair
    batch = batch_of(student, end=end, asked=asked)
    found = StepProposals(separator=";", max_step_tokens=9).values(student, teacher, batch)
    steps = disagreements = 0
    for row, example in enumerate(batch.examples):
        tokens = [student.tokenizer.decode([token]) for token in batch.labels[row][batch.mask[row]]]
        column = batch.prompt_lengths[row] - 1
        so_far = ""
        for number, token in enumerate(tokens):
            if number == 0 or tokens[number - 1] == ";":
                prefix = example.problem + so_far
                mine, theirs = greedily(student, prefix, 9), greedily(teacher, asked + prefix, 9)
                values = [mean_logprob(teacher, asked + prefix, step) for step in (mine, theirs)]
                steps += 1
                disagreements += mine != theirs
                assert found.first[row, column]
                assert bool(found.agreed[row, column]) == (mine == theirs)
            else:
                assert not found.first[row, column]
                assert not found.agreed[row, column]
            assert float(found.student[row, column]) == pytest.approx(values[0], abs=1e-4)
            assert float(found.teacher[row, column]) == pytest.approx(values[1], abs=1e-4)
            so_far += token
            column += 1
    assert steps == int(found.first.sum())
    assert disagreements > 0
    assert (found.student[~batch.mask] == 0).all()
    assert (found.teacher[~batch.mask] == 0).all()


@pytest.mark.slow
def test_a_step_ends_where_the_teachers_context_does(pair: tuple[LanguageModel, LanguageModel]) -> None:
    student, teacher = pair
    batch = batch_of(student)
    room = (
        batch.input_ids.shape[1] - 2
    )  # of the longest trace's last step, #, digit and end, the first token fits
    seen: list[int] = []
    handle = teacher.model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    context, teacher.model.config.max_position_embeddings = teacher.context_length, room
    try:
        values = StepProposals(separator=";", max_step_tokens=9).values(student, teacher, batch)
    finally:
        teacher.model.config.max_position_embeddings = context
        handle.remove()
    assert max(seen) == room
    assert (values.student[values.first] < 0).all()


@pytest.mark.slow
def test_success_is_the_share_of_continuations_that_end_right(
    pair: tuple[LanguageModel, LanguageModel],
) -> None:
    """The teacher is always right behind a right step, and hardly ever behind a wrong one."""
    student, teacher = pair
    batch = batch_of(student, 8)
    asked: list[str] = []

    def watching(example: Example, completion: str) -> Verdict:
        asked.append(completion)
        assert completion[: len("3+7=")].startswith(example.problem[0])  # from the answer's first step on
        return grade(example, completion)

    proposals = StepProposals(
        separator=";", max_step_tokens=9, value="success", continuations=2, continuation_tokens=48
    )
    found = proposals.values(student, teacher, batch, grade=watching)
    assert float(found.teacher[found.first].mean()) > 0.95
    differ = found.first & ~found.agreed
    assert differ.any()
    assert float(found.student[differ].mean()) < 0.5
    assert float(found.student[found.first & found.agreed].mean()) > 0.95
    assert set((found.student[found.first] * 2).tolist()) <= {0.0, 1.0, 2.0}
    assert len(asked) <= 2 * 2 * int(found.first.sum())


@pytest.mark.slow
def test_proposals_leave_the_models_and_the_random_state_as_they_were(
    pair: tuple[LanguageModel, LanguageModel],
) -> None:
    student, teacher = pair
    batch = batch_of(student)
    student.model.train()
    try:
        torch.manual_seed(5)
        proposals = StepProposals(separator=";", temperature=1.0, max_step_tokens=9)
        one = proposals.values(student, teacher, batch, seed=1)
        after = torch.rand(1)
        assert student.model.training
        torch.manual_seed(5)
        assert torch.rand(1) == after
        again = proposals.values(student, teacher, batch, seed=1)
        other = proposals.values(student, teacher, batch, seed=2)
    finally:
        student.model.eval()
    assert torch.equal(one.student, again.student)
    assert not torch.equal(one.student, other.student)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 3.0])
def test_the_weight_is_its_definition(gamma: float) -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, student = (-torch.rand(3, 5, generator=generator, dtype=torch.float64) * 4 for _ in range(2))
    mask = torch.rand(3, 5, generator=generator) > 0.3
    found = validity(mask, teacher, student, gamma=gamma)
    for row in range(3):
        for column in range(5):
            difference = gamma * (float(teacher[row, column]) - float(student[row, column]))
            expected = 1 / (1 + math.exp(-difference)) if mask[row, column] else 0.0
            assert float(found[row, column]) == pytest.approx(expected, rel=1e-12)


def test_the_weight_takes_the_impossible_and_refuses_a_negative_gamma() -> None:
    mask = torch.ones(1, 4, dtype=torch.bool)
    teacher = torch.tensor([[-torch.inf, -torch.inf, -1.0, -70.0]])
    student = torch.tensor([[-torch.inf, -1.0, -torch.inf, -10.0]])
    found = validity(mask, teacher, student)
    assert found[0, 0] == 0.5
    assert 0 <= found[0, 1] < 1e-20
    assert found[0, 2] == 1.0
    assert 0 <= found[0, 3] < 1e-20
    assert not validity(mask, teacher.requires_grad_(), student).requires_grad
    with pytest.raises(ValueError, match=r"validity: gamma=-1.0 must not be negative"):
        validity(mask, teacher, student, gamma=-1.0)


def test_better_steps_of_the_teacher_get_more_weight() -> None:
    mask = torch.ones(1, 9, dtype=torch.bool)
    advantages = torch.linspace(-60, 60, 9).unsqueeze(0)
    found = validity(mask, advantages / 2, -advantages / 2)
    assert (found.diff() >= 0).all()
    assert found[0, 4] == 0.5


@pytest.mark.parametrize(
    ("switch", "message"),
    [
        ({"separator": ""}, r"proposals.separator is empty"),
        ({"value": "taste"}, r"proposals.value='taste' is not one of likelihood, success"),
        ({"continuations": 0}, r"proposals.continuations=0 is not a positive whole number"),
        ({"max_step_tokens": 2.5}, r"proposals.max_step_tokens=2.5"),
        ({"temperature": -1.0}, r"temperature=-1.0 must be >= 0"),
    ],
)
def test_a_bad_switch_is_refused_by_its_name(switch: dict[str, object], message: str) -> None:
    proposals = StepProposals()
    for name, value in switch.items():
        object.__setattr__(proposals, name, value)  # past the tests' type checker, which would speak first
    with pytest.raises(ValueError, match=message):
        proposals.__post_init__()


def test_what_cannot_be_cut_or_valued_is_refused(student: LanguageModel) -> None:
    with pytest.raises(UserError, match=r"loss.proposals.separator='\\n': no token of"):
        StepProposals(separator="\n").check(student.source, None)
    with pytest.raises(UserError, match=r"value=success needs data whose answers can be graded"):
        StepProposals(separator=";", value="success").check(student.source, None)
    with pytest.raises(ValueError, match=r"validity compares proposed next steps: say how in loss.proposals"):
        Objective("dataset", uniform_loss, validity)
    with pytest.raises(ValueError, match=r"set loss.teacher_sees=prompt"):
        Objective("dataset", uniform_loss, validity, proposals=StepProposals(), teacher_sees="solution")
    assert Objective("dataset", uniform_loss, uniform, proposals=StepProposals()).live_roles == set()
    assert Objective("dataset", uniform_loss, validity, proposals=StepProposals()).live_roles == {"teacher"}


def uniform_loss(log_q: torch.Tensor) -> torch.Tensor:
    return log_q.sum(-1)


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["loss.proposals.value=success", "loss.proposals.continuations=1"]])
@pytest.mark.parametrize("rollouts", ["dataset", "student"])
def test_a_run_logs_what_the_steps_are_worth(tmp_path: Path, words: list[str], rollouts: str) -> None:
    own = [
        "loss.rollouts={_target_: distill.generation.sampling.StudentRollouts,"
        " fraction: 1.0, max_new_tokens: 32}"
    ]
    common = ["benchmark=none", "logger=csv", "data.limit=8", "data.batch_size=8", "data.operations=[2,3]"]
    common += ["trainer.max_steps=2", "data.max_new_tokens=32", "data.completions=dataset"]
    if rollouts == "student":
        words = [*words, *own]
    run(["loss=validity", *common, *words], tmp_path / "run")
    with (tmp_path / "run" / "metrics.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["train/loss"]]
    assert len(rows) == 2
    for row in rows:
        assert float(row["steps/count"]) > 8
        assert 0 < float(row["steps/weight"]) < 1
        assert 0 <= float(row["steps/agreed"]) <= 1
        assert float(row["steps/seconds"]) > 0
        if words and words[0].startswith("loss.proposals"):
            assert 0 <= float(row["steps/student_value"]) <= float(row["steps/teacher_value"]) <= 1
        else:
            assert float(row["steps/student_value"]) <= 0


def test_steps_are_sampled_as_they_say() -> None:
    assert StepProposals(temperature=0.7, max_step_tokens=5).sampling == Sampling(0.7, max_new_tokens=5)


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["20261121", str(2**32 - 1)])
def test_a_teacher_that_proposes_steps_and_nothing_else_is_loaded_and_any_seed_will_do(
    tmp_path: Path, seed: str
) -> None:
    words = ["loss=validity", "loss.token_loss._target_=distill.losses.divergence.cross_entropy"]
    words += ["benchmark=none", "logger=csv", "data.limit=4", "data.batch_size=4", "data.operations=[2,3]"]
    words += ["trainer.max_steps=1", "data.completions=dataset", f"seed={seed}"]
    run(words, tmp_path / "run")
    with pytest.raises(
        UserError, match=r"loss=validity needs the teacher's next steps, and model.teacher is"
    ):
        run([*words, "model.teacher=null"], tmp_path / "other")


@pytest.mark.slow
def test_steps_that_cannot_be_cut_are_refused_before_any_trace_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "distill.training.prepare.prepare_traces", lambda *args, **kwargs: pytest.fail("too late")
    )
    with pytest.raises(UserError, match=r"no token of .* has this text in it.*data.step_separator"):
        run(["loss=validity", "data.step_separator=?", "benchmark=none", "logger=csv"], tmp_path / "run")
