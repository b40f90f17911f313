"""Tests of the embedded tiny pair: task, verifier, shipped checkpoints, and rebuilding them."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import distill.tiny
from distill.tiny import build, task

HERE = Path(distill.tiny.__file__).parent
CHECKED = 128


def independent_answer(problem: str) -> int:
    """Python's own arithmetic on the fully bracketed expression."""
    first, *operations = re.findall(r"^\d|[+*-]\d", problem)
    return eval("(" * len(operations) + first + "".join(f"{operation})" for operation in operations)) % 10


def test_answers_agree_with_an_independent_evaluator():
    assert task.answer("3+7*2-5=") == "5"
    for problem in task.problems(500, split="train", operations=(1, 12)):
        assert task.answer(problem) == str(independent_answer(problem)), problem


def test_train_and_test_problems_never_overlap():
    for operations in ((1, 2), (4, 8)):
        train = set()
        for seed in range(3):
            train.update(task.problems(600, split="train", seed=seed, operations=operations))
        assert not train & set(task.problems(300, split="test", seed=7, operations=operations))


def test_the_test_split_holds_about_one_problem_in_eight():
    rng = random.Random(0)
    every = {"{}+{}*{}-{}=".format(*rng.choices("0123456789", k=4)) for _ in range(4000)}
    share = sum(task.split_of(problem) == "test" for problem in every) / len(every)
    assert 0.1 < share < 0.15


def test_problems_are_distinct_deterministic_and_a_smaller_count_is_a_prefix():
    some = task.problems(200, split="test", seed=3)
    assert some == task.problems(200, split="test", seed=3)
    assert some[:50] == task.problems(50, split="test", seed=3)
    assert some != task.problems(200, split="test", seed=4)
    assert len(set(some)) == 200


def test_problems_keep_to_the_range_of_operations():
    counts = {len(re.findall(r"[+*-]", p)) for p in task.problems(300, split="train", operations=(2, 5))}
    assert counts == {2, 3, 4, 5}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "options"),
    [
        (500, {"split": "train", "operations": (1, 1)}),
        (1, {"split": "train", "operations": (0, 3)}),
        (1, {"split": "train", "operations": (5, 3)}),
    ],
)
def test_impossible_requests_for_problems_are_refused(count, options):
    with pytest.raises(ValueError, match=r"distinct train problems|operations must be"):
        task.problems(count, **options)


def test_texts_that_are_no_problem_are_refused():
    for text in ("", "3=", "3+7", "13+7=", "3/7=", "3+7=0;"):
        with pytest.raises(ValueError, match="not a problem"):
            task.answer(text)


def test_solutions_look_as_documented():
    assert task.write_solution("3+7*2-5=", "single") == "3+7=0;0*2=0;0-5=5;#5"
    assert task.write_solution("3+7*2-5=", "double") == "3+7*2=0;0-5=5;#5"


@pytest.mark.parametrize("style", ["single", "double"])
def test_written_solutions_check_out_and_have_their_style(style):
    for problem in task.problems(300, split="train", operations=(2, 9)):
        solution = task.write_solution(problem, style)
        assert task.extract_answer(solution) == str(independent_answer(problem))
        assert task.is_correct(problem, solution)
        assert task.check_steps(problem, solution)
        assert task.style_of(problem, solution) == style
        assert solution.startswith(task.style_prefix(problem, style))


@pytest.mark.parametrize("style", ["single", "double"])
def test_every_corrupted_digit_of_the_steps_is_caught(style):
    for problem in task.problems(20, split="test"):
        solution = task.write_solution(problem, style)
        for place in range(len(solution) - 2):
            if solution[place].isdigit():
                digit = str((int(solution[place]) + 3) % 10)
                wrong = solution[:place] + digit + solution[place + 1 :]
                assert not task.check_steps(problem, wrong), (problem, wrong)
                assert task.is_correct(problem, wrong)  # the final answer alone does not tell


def test_a_wrong_answer_and_a_missing_step_are_caught():
    assert not task.is_correct("3+7*2-5=", "3+7=0;0*2=0;0-5=5;#6")
    assert not task.check_steps("3+7*2-5=", "3+7=0;0*2=0;0-5=5;#6")
    assert task.is_correct("3+7*2-5=", "3+7=0;0-5=5;#5")
    assert not task.check_steps("3+7*2-5=", "3+7=0;0-5=5;#5")
    assert not task.check_steps("3+7*2-5=", "3+7=0;0*2=0;0-5=5;5+0=5;#5")


def test_completions_out_of_format_have_no_credit():
    right = "3+7=0;0*2=0;0-5=5;#5"
    assert task.is_correct("3+7*2-5=", right)
    for text in ("", "5", "#5", right.replace("#", ""), right + "#5", right + ";", "3+7*2-5=5;#5"):
        assert not task.is_correct("3+7*2-5=", text), text
        assert task.style_of("3+7*2-5=", text) == "other"
    assert task.extract_answer("3+7=0;#5#5") is None
    assert task.extract_answer("3+7=0;") is None
    assert task.extract_answer(" 3+7=0;#0\n") == "0"


def test_mixed_styles_are_right_but_of_neither_style():
    problem, mixed = "3+7*2-5+1=", "3+7=0;0*2-5=5;5+1=6;#6"
    assert task.check_steps(problem, mixed)
    assert task.style_of(problem, mixed) == "other"


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_the_tokenizer_has_one_token_a_character_and_round_trips(name):
    tokenizer = AutoTokenizer.from_pretrained(HERE / name)
    text = task.CHARACTERS + "3+7*2-5=3+7*2=0;0-5=5;#5"
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode(tokenizer.decode(ids)) == ids
    assert tokenizer.eos_token_id not in ids
    assert len({tokenizer.eos_token_id, tokenizer.pad_token_id, None}) == 3
    assert tokenizer.bos_token_id is None
    assert tokenizer.chat_template is None
    assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text


def test_teacher_and_student_share_one_tokenizer():
    files = [(HERE / name / "tokenizer.json").read_text() for name in ("teacher", "student")]
    assert files[0] == files[1]


def test_the_shipped_pair_is_smaller_than_six_megabytes():
    files = [file for name in ("teacher", "student") for file in (HERE / name).iterdir()]
    assert {"model.safetensors", "config.json", "generation_config.json"} <= {file.name for file in files}
    assert sum(file.stat().st_size for file in files) < 6_000_000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["teacher", "student"])
def test_the_shipped_checkpoints_reach_the_accuracies_of_their_build(name):
    stated = json.loads((HERE / "build.json").read_text())[name]["test"]
    tokenizer = AutoTokenizer.from_pretrained(HERE / name)
    model = AutoModelForCausalLM.from_pretrained(HERE / name)
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id
    problems = task.problems(build.EVALUATED, split="test")[:CHECKED]
    measured = {
        "greedy": build.complete(model, tokenizer, problems),
        "forced_single": build.complete(model, tokenizer, problems, style="single"),
        "forced_double": build.complete(model, tokenizer, problems, style="double"),
    }
    for key, completions in measured.items():
        pairs = list(zip(problems, completions, strict=True))
        accuracy = sum(task.is_correct(*pair) for pair in pairs) / CHECKED
        # The stated number is from more problems: four standard errors of the smaller sample.
        room = 4 * (max(stated[key] * (1 - stated[key]), 0.02) / CHECKED) ** 0.5
        assert abs(accuracy - stated[key]) < room, key


def test_the_shipped_pair_is_a_good_teacher_and_a_student_with_one_style():
    report = json.loads((HERE / "build.json").read_text())
    teacher, student = report["teacher"]["test"], report["student"]["test"]
    assert all(teacher[key] >= 0.95 for key in ("greedy", "sampled", "forced_single", "forced_double"))
    assert 0.35 < teacher["sampled_writes_double"] < 0.65
    assert 0.2 < student["greedy"] < 0.6
    assert student["greedy_writes_single"] > 0.7
    # A wrong chain still ends in the right digit one time in eight or so: here every step must be right.
    assert student["forced_double_steps"] < 0.05 < student["forced_single_steps"]


@pytest.mark.exhaustive
@pytest.mark.slow
def test_the_pair_is_rebuilt_from_nothing_by_one_command(tmp_path):
    out = tmp_path / "pair"
    (out / "teacher").mkdir(parents=True)
    (out / "teacher" / "stale.txt").write_text("from an earlier build")
    options = ["--out", str(out), "--steps-scale", "0.002", "--seed", "1", "--threads", "1"]
    subprocess.run(
        [sys.executable, "-W", "error", "-m", "distill.tiny.build", *options],
        check=True,
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1])},
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pair"]  # no temporary folder is left
    assert sorted(path.name for path in out.iterdir()) == ["build.json", "student", "teacher"]
    assert not (out / "teacher" / "stale.txt").exists()
    assert json.loads((out / "build.json").read_text())["seed"] == 1
    for name in ("teacher", "student"):
        model = AutoModelForCausalLM.from_pretrained(out / name)
        shipped = AutoModelForCausalLM.from_pretrained(HERE / name)
        assert {k: v.shape for k, v in model.state_dict().items()} == {
            k: v.shape for k, v in shipped.state_dict().items()
        }


@pytest.mark.slow
def test_training_twice_with_one_seed_gives_the_same_weights():
    tokenizer = build.make_tokenizer()
    models = [build.train(build.STUDENT, tokenizer, 2, 5, "student")[0] for _ in range(2)]
    for first, second in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(first, second)
