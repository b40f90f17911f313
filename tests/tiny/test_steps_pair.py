"""Tests of the pair with long solutions: task, tokenizer, resuming, shipped checkpoints."""

import json
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import checked
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import distill.tiny.steps
from distill.benchmarks import steps as benchmark
from distill.curation.filters import flaw_of_parts
from distill.data.prompt import Prompt, teacher_prompt
from distill.errors import UserError
from distill.evaluation.benchmark import benchmarks_of
from distill.evaluation.run import ask
from distill.models.find import find_model
from distill.tiny.steps import build, fit, solutions, task
from distill.tiny.steps.tokenizer import instruction, make_tokenizer

HERE = Path(distill.tiny.steps.__file__).parent
WIDE = task.Dials((1, 6), (0, 3), (0, 2))
FORMS = ("plain", "structured")
STYLES = ("single", "double")
TRAINED = (HERE / "build.json").is_file()
CHECKED = 40


@pytest.fixture(scope="module")
def tokenizer():
    return PreTrainedTokenizerFast.from_pretrained(HERE / "teacher") if TRAINED else make_tokenizer()


@pytest.fixture(scope="module")
def wide() -> list[task.Problem]:
    return task.problems(120, split="test", dials=WIDE)


def solved(text: str) -> int:
    """The answer to a problem's text, from its sentences alone: everyone's count, whatever the order."""
    counts: dict[str, int] = {}
    waiting = [sentence.strip() for sentence in text.split(".") if " has " in sentence]
    asked = re.search(r"does (\w+) have\?", text)
    while waiting:
        sentence = waiting.pop(0)
        who, what = sentence.split(" has ")
        words = what.split()
        if "than" not in words and "as" not in words:
            counts.setdefault(who, int(words[0]))
        elif words[-1] in counts:
            of = counts[words[-1]]
            ways = {"twice": of * 2, "three": of * 3}
            by = int(words[0]) if words[0].isdigit() else 0
            counts[who] = ways.get(words[0], of + by if "more" in words else of - by)
        else:
            waiting.append(sentence)
    assert asked
    return counts[asked[1]]


def calculations(text: str) -> Iterator[tuple[str, str]]:
    """Both sides of every equation, the left one as Python reads it."""
    yield from re.findall(r"(?<=[: .\n])((?:\(?\d+\)?(?: [-+*/] )?)+) = (\d+)\.", text)


def test_answers_and_every_calculation_agree_with_an_independent_evaluation(wide):
    for problem in wide:
        assert task.answer(problem) == str(solved(str(problem))), str(problem)
        for form in FORMS:
            for style in STYLES:
                text = solutions.write_solution(problem, form, style)
                found = list(calculations(text))
                lines = len(problem.steps) if style == "single" else -(-len(problem.steps) // 2)
                assert len(found) == lines * (1 if form == "plain" else 2)
                assert all(eval(left) == int(right) for left, right in found), text


def test_every_number_is_between_0_and_99(wide):
    for problem in wide:
        numbers = re.findall(r"\d+", str(problem) + solutions.write_solution(problem))
        assert all(0 <= int(number) <= 99 for number in numbers)


def test_splits_are_disjoint_whatever_the_dials_and_hold_a_sixteenth_each(wide):
    for problem in wide[:40]:
        bare = tuple(task.Step(step.name, step.kind, step.number) for step in problem.steps)
        for restatements in range(3):
            alike = task.Problem(problem.item, problem.first, problem.count, bare, restatements)
            assert alike.split == "test"
    rng = random.Random(0)
    drawn = [task.sample_chain(rng, (3, 5)).split for _ in range(1600)]
    assert all(70 < drawn.count(split) < 130 for split in ("test", "validation"))


def test_problems_are_deterministic_distinct_and_a_prefix_and_read_back_from_their_text(wide):
    assert wide[:20] == task.problems(20, split="test", dials=WIDE)
    assert wide[:20] != task.problems(20, split="test", dials=WIDE, seed=1)
    assert len({str(problem) for problem in wide}) == len(wide)
    assert all(task.parse(str(problem)) == problem for problem in wide)
    for text in ("", "Count the pens.", f"{wide[0]} Again.", str(wide[0]).replace(" has ", " had ", 1)):
        with pytest.raises(ValueError, match="not a problem"):
            task.parse(text)


def test_dials_set_steps_distance_and_length(tokenizer):
    def tokens(dials: task.Dials) -> float:
        made = task.problems(40, split="train", dials=dials)
        low, high = dials.steps
        assert {len(problem.steps) for problem in made} == set(range(low, high + 1))
        facts = {len(step.facts) for problem in made for step in problem.steps}
        assert facts == set(range(dials.distance[0], dials.distance[1] + 1))
        return sum(len(tokenizer.encode(solutions.write_solution(one))) for one in made) / len(made)

    def between(dials: task.Dials) -> set[int]:
        """Lines of work between a result and the line that uses it."""
        found = set()
        for problem in task.problems(20, split="train", dials=dials):
            lines = solutions.write_solution(problem).split("\n")
            used = [place for place, line in enumerate(lines) if " = " in line]
            found |= {after - before - 1 for before, after in zip([0, *used], used, strict=False)}
        return found

    plain = tokens(task.Dials((4, 4), (0, 0), (0, 0)))
    again = tokens(task.Dials((4, 4), (0, 0), (2, 2)))
    apart = tokens(task.Dials((4, 4), (2, 2), (0, 0)))
    more = tokens(task.Dials((6, 6), (0, 0), (0, 0)))
    assert 60 < plain < again < 150
    assert abs(again - apart) < 20  # at one length: with restatements, or with a greater distance
    assert more > plain
    for distance in (0, 2):
        for restatements in (0, 2):
            dials = task.Dials((3, 5), (distance, distance), (restatements, restatements))
            assert between(dials) == {distance}  # restatements do not move it


def test_solutions_have_60_to_300_tokens_by_default(tokenizer):
    made = task.problems(60, split="train")
    lengths = {
        form: sorted(len(tokenizer.encode(solutions.write_solution(problem, form))) for problem in made)
        for form in FORMS
    }
    assert lengths["plain"][3] >= 60
    assert lengths["structured"][-3] <= 300
    assert lengths["structured"][30] > 1.5 * lengths["plain"][30]


def test_written_solutions_check_out_and_have_their_form_and_style(wide):
    for problem in wide:
        for form in FORMS:
            for style in STYLES:
                text = solutions.write_solution(problem, form, style)
                assert solutions.check_steps(problem, text)
                assert solutions.extract_answer(text) == task.answer(problem)
                assert solutions.form_of(text) == form
                if len(problem.steps) > 1:
                    assert solutions.style_of(problem, text) == style
                assert (flaw_of_parts(text, solutions.PARTS) is None) == (form == "structured")


def test_every_corrupted_digit_is_caught_and_the_grader_looks_at_the_answer_alone():
    for problem in task.problems(6, split="test"):
        example = benchmark.Example("0", str(problem), gold=task.answer(problem))
        text = solutions.write_solution(problem, "structured")
        end = text.rindex("\\boxed")
        for found in re.finditer(r"\d", text):
            digit = str((int(found[0]) + 3) % 10)
            wrong = text[: found.start()] + digit + text[found.end() :]
            assert not solutions.check_steps(problem, wrong)
            assert benchmark.grade(example, wrong).correct == (found.start() < end)
            assert not benchmark.grade_steps(example, wrong).correct
        assert benchmark.grade(example, text).correct
        assert benchmark.grade_steps(example, text).correct
        for broken in (
            "",
            "5",
            text.replace("\\boxed", "boxed"),
            text + " Again.",
            text.replace("- ", "", 1),
        ):
            assert not solutions.check_steps(problem, broken)


def test_lines_of_one_and_two_steps_may_be_mixed_but_none_is_left_out():
    problem = task.problems(1, split="test", dials=task.Dials((4, 4), (1, 1), (0, 0)))[0]
    one, two = (solutions.write_solution(problem, "plain", style).split("\n") for style in STYLES)
    mixed = "\n".join([*two[:4], *one[5:]])  # a line of two steps, then lines of one
    assert solutions.check_steps(problem, mixed)
    assert solutions.style_of(problem, mixed) == "other"
    assert not solutions.check_steps(problem, "\n".join([*one[:3], *one[5:]]))


def test_the_tokenizer_is_small_round_trips_and_has_a_token_for_each_digit(tokenizer, wide):
    assert len(tokenizer) <= 1500
    for problem in wide[:20]:
        for text in (str(problem), *(solutions.write_solution(problem, form) for form in FORMS)):
            ids = tokenizer.encode(text)
            assert tokenizer.decode(ids) == text
            pieces = [tokenizer.decode([one]) for one in ids]
            assert all(piece.isdigit() and len(piece) == 1 for piece in pieces if re.search(r"\d", piece))
            assert "".join(pieces) == text
    for text in ("Ünknown wörds: 3½ <b>", instruction()):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len({tokenizer.eos_token_id, tokenizer.pad_token_id, None}) == 3
    assert tokenizer.bos_token_id is None
    headings = [f"## {number}. {name}\n<{part}>\n" for number, name, part in
                zip(range(1, 5), solutions.HEADINGS, solutions.PARTS, strict=True)]  # fmt: skip
    assert all(len(tokenizer.encode(heading)) == 3 for heading in headings)


def test_training_prompts_are_those_that_the_teachers_prompt_makes(tokenizer):
    problem = task.problems(1, split="train")[0]
    (example,) = benchmark.load(split="train", count=1, dials={})
    cfg = checked("train", "model=steps", "data=steps", "benchmark=steps", "teacher_prompt=discord")
    student = Prompt(cfg.data.student_prompt.user, cfg.data.student_prompt.system)
    asked = teacher_prompt(student, cfg.data.teacher_prompt.user, cfg.data.teacher_prompt.system)
    assert asked
    assert example.problem == str(problem)
    assert tokenizer.encode(build.asked(str(problem))) == asked.encode(tokenizer, example).tolist()
    assert tokenizer.encode(str(problem)) == student.encode(tokenizer, example).tolist()
    assert len(tokenizer.encode(build.asked(""))) < 60  # each of its lines is a token


def test_problems_load_with_shares_that_contain_smaller_ones():
    def chosen(**shares: Any) -> list[set[str]]:
        made = benchmark.load(split="validation", count=60, dials={"steps": [4, 4]}, **shares)
        forms = {one.problem for one in made if solutions.form_of(one.completion or "") == "structured"}
        styles = {
            one.problem
            for one in made
            if solutions.style_of(task.parse(one.problem), one.completion or "") == "double"
        }
        assert all(benchmark.grade_steps(one, one.completion or "").correct for one in made)
        return [forms, styles]

    none, some, every = chosen(), chosen(double=0.4, structured=0.3), chosen(double=1.0, structured=1)
    assert none == [set(), set()]
    assert [len(found) for found in every] == [60, 60]
    assert 8 < len(some[0]) < 30
    assert 12 < len(some[1]) < 36
    more = chosen(double=0.7, structured=0.6)
    assert all(less < larger for less, larger in zip(some, more, strict=True))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"path": "file.json"}, "takes no file"),
        ({"limit": 0}, "leaves no problem"),
        ({"count": 0}, "count=0 must be"),
        ({"limit": 10_000_000}, "too much"),
        ({"double": 1.5}, "double=1.5 is no share"),
        ({"structured": True}, "structured=True is no share"),
        ({"dials": {"steps": 3}}, "steps=3 must be two whole numbers"),
        ({"dials": {"steps": [5, 3]}}, "the lower end first"),
        ({"dials": {"distance": [0, 9]}}, "range from 0 to 8"),
        ({"dials": {"restatement": [0, 1]}}, "no dial"),
        ({"split": "tset"}, "split must be"),
    ],
)
def test_a_mistake_gets_one_sentence(options, said):
    with pytest.raises(UserError, match=re.escape(said)):
        benchmark.load(**{"split": "test", "count": 5, "dials": {}} | options)


TOY = build.StepsRecipe(
    width=16, layers=1, inner=16, heads=2, steps=4, batch=3, lr=1e-3, double=0.5, structured=0.5, unasked=0.2
)


def trained(folder: Path, tokenizer, *, texts: int = 3):
    rows = build.rows_of(TOY, tokenizer, 4, texts, "toy")
    path = folder / "toy.safetensors"
    return fit.train(TOY, tokenizer, rows, steps=4, seed=3, checkpoint=path)


def test_a_training_that_was_stopped_ends_as_if_it_had_not_been(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(fit, "SAVED", 1)
    whole, taken = trained(tmp_path / "whole", tokenizer)
    assert taken == 4
    backward = fit._backward
    for steps in (1, 2):  # so many steps, then it is stopped

        def stopping(*inputs: Any, left: list[int] = [steps]) -> float:  # noqa: B006, it counts
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return backward(*inputs)

        monkeypatch.setattr(fit, "_backward", stopping)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "parts", tokenizer)
    monkeypatch.setattr(fit, "_backward", backward)
    parts, taken = trained(tmp_path / "parts", tokenizer)
    assert taken == 4
    monkeypatch.setattr(fit, "_backward", None)
    again, taken = trained(tmp_path / "parts", tokenizer)  # it is at its end: no step is taken
    assert taken == 4
    for name, value in whole.named_parameters():
        assert torch.equal(value, parts.get_parameter(name)), name
        assert torch.equal(value, again.get_parameter(name)), name
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == ["toy.safetensors"]
    with pytest.raises(UserError, match="other settings"):
        trained(tmp_path / "parts", tokenizer, texts=4)


def test_a_step_in_parts_has_the_gradient_of_the_mean_over_all_completion_tokens(tokenizer, monkeypatch):
    torch.manual_seed(0)
    rows = build.rows_of(TOY, tokenizer, 4, 0, "toy")(3)
    model = fit.make_model(TOY, tokenizer, context=512, tied=True)
    monkeypatch.setattr(torch, "autocast", lambda *_: torch.enable_grad())  # fp32
    monkeypatch.setattr(fit, "PART", 400)
    assert len(fit._parts(tokenizer, rows)) > 1
    loss = fit._backward(model, tokenizer, rows)
    taken = {name: value.grad for name, value in model.named_parameters()}
    model.zero_grad()
    terms = []
    for prompt, text in rows:
        start = len(tokenizer.encode(prompt))
        ids = torch.tensor([*tokenizer.encode(prompt), *tokenizer.encode(text), tokenizer.eos_token_id])
        logprobs = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        terms += [-logprobs[place - 1, ids[place]] for place in range(start, len(ids))]
    mean = torch.stack(terms).mean()
    mean.backward()
    assert abs(loss - mean.item()) < 1e-5
    for name, value in model.named_parameters():
        torch.testing.assert_close(taken[name], value.grad, rtol=1e-4, atol=1e-6)


def test_the_configuration_composes_with_the_suggestions_for_the_model():
    cfg = checked("train", "model=steps", "experiment=steps")
    assert cfg.data.recipe.source._target_ == "distill.benchmarks.steps.load"
    assert list(cfg.benchmark.steps.source.dials.steps) == list(cfg.data.steps) == [3, 5]
    own, other = cfg.data.recipe.source.dials, cfg.benchmark.steps.source.dials
    assert {name: list(own[name]) for name in own} == {name: list(other[name]) for name in other}
    assert task.Dials(**{name: tuple(value) for name, value in own.items()}) == task.Dials()


def test_teacher_and_student_share_one_tokenizer_and_are_smaller_than_twelve_megabytes():
    files = [(HERE / name / "tokenizer.json").read_text() for name in ("teacher", "student")]
    assert files[0] == files[1]
    every = [file for name in ("teacher", "student") for file in (HERE / name).iterdir()]
    assert {"model.safetensors", "config.json", "generation_config.json"} <= {file.name for file in every}
    assert not [file for file in every if file.suffix in (".bin", ".pt", ".pkl")]
    assert sum(file.stat().st_size for file in every) < 12_000_000


@pytest.mark.slow
def test_the_shipped_tokenizer_is_the_one_that_the_build_trains():
    trained = json.loads(make_tokenizer().backend_tokenizer.to_str())
    shipped = json.loads((HERE / "teacher" / "tokenizer.json").read_text())
    assert trained["model"] == shipped["model"]
    assert trained["added_tokens"] == shipped["added_tokens"]


def test_the_shipped_pair_is_a_good_teacher_of_both_forms_and_a_half_good_student():
    report = json.loads((HERE / "build.json").read_text())
    teacher, student = report["teacher"], report["student"]
    assert 2e6 < teacher["parameters"] < 4e6
    assert 0.7e6 < student["parameters"] < 1.3e6
    for form in ("plain", "instructed"):
        assert teacher["test"][form]["right"] >= 0.95
        assert teacher["test"][form]["structured"] == (form == "instructed")
        assert teacher["test"][form]["ended"] >= 0.98
    assert 0.2 < teacher["test"]["plain_sampled"]["double"] < 0.5
    assert 0.3 <= student["test"]["plain"]["right"] <= 0.6
    assert student["test"]["plain"]["ended"] >= 0.98
    assert student["test"]["plain_sampled"]["double"] < 0.02
    assert student["test"]["plain_sampled"]["structured"] < 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "instructed"),
    [
        ("teacher", True),
        ("student", False),
        pytest.param("teacher", False, marks=pytest.mark.exhaustive),
        pytest.param("student", True, marks=pytest.mark.exhaustive),
    ],
)
def test_the_shipped_checkpoints_reach_the_accuracies_of_their_build(name, instructed):
    stated = json.loads((HERE / "build.json").read_text())[name]["test"][
        "instructed" if instructed else "plain"
    ]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(HERE / name)
    model = AutoModelForCausalLM.from_pretrained(HERE / name).float()
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id
    problems = task.problems(CHECKED, split="test")
    found = build.shares(
        tokenizer, problems, build.answers(model, tokenizer, problems, instructed=instructed)
    )
    for key, value in found.items():
        # The stated number is from more problems: four standard errors of the smaller sample.
        assert abs(value - stated[key]) < 4 * (max(stated[key] * (1 - stated[key]), 0.02) / CHECKED) ** 0.5, (
            key
        )


def test_the_prompted_benchmark_asks_as_the_teacher_was_trained() -> None:
    """No chat template: the instruction stands before the problem, in one text."""
    cfg = checked("train", "model=steps", "data=steps", "benchmark=steps_instructed")
    (prompted,) = benchmarks_of(cfg.benchmark)
    model = find_model("package:distill/tiny/steps/teacher", key="model.teacher")
    asked = ask(replace(prompted, limit=3), model)
    for problem, request in zip(asked.problems, asked.requests, strict=True):
        assert request.prompt_ids.tolist() == model.tokenizer(build.asked(problem.problem)).input_ids
