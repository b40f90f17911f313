"""Tests of pairs that differ by a few tokens: the shared rows of the output matrices take part."""

import json
from pathlib import Path

import pytest
import torch
from test_training import arguments, column, run
from transformers import AutoModelForCausalLM, AutoTokenizer

from distill.errors import UserError
from distill.tiny import task


def extended(model: Path, folder: Path, *tokens: str, rows: int = 24) -> Path:
    """The model with further rows in its matrices, which matter, and further tokens for some of them."""
    torch.manual_seed(0)
    larger = AutoModelForCausalLM.from_pretrained(model)
    larger.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        larger.lm_head.weight[18:] *= 50
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(list(tokens))
    larger.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    path = tmp_path / "traces.jsonl"
    problems = task.problems(8, split="train", operations=(2, 4))
    records = [{"problem": one, "completion": task.write_solution(one, "double")} for one in problems]
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["dcod", "forward_kl"])
def test_further_tokens_of_a_teacher_or_student_change_no_loss(
    loss: str, tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student, teacher = tiny_pair
    more = extended(teacher, tmp_path / "more", "<think>", "</think>")
    padded = extended(teacher, tmp_path / "padded")  # further rows, of no token
    pairs = {"padded": (student, padded), "teacher": (student, more)}
    if loss == "forward_kl":
        pairs["student"] = (extended(student, tmp_path / "student", "<think>", "</think>"), teacher)
    losses = {}
    for name, pair in pairs.items():
        words = arguments(pair, traces, tmp_path, f"loss={loss}", "trainer.max_steps=2", "data.batch_size=4")
        losses[name] = column(run(words, tmp_path / f"run_{name}"), "train/loss")
        larger = pair[0] if name == "student" else pair[1]
        said = f"model.{name}={larger} has 2 tokens more ('<think>', '</think>')"
        assert (said in capsys.readouterr().out) == (name != "padded")
    for found in losses.values():
        assert found == pytest.approx(losses["padded"], rel=1e-6)


@pytest.mark.slow
def test_a_token_that_only_the_student_has_is_named(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    student = extended(tiny_pair[0], tmp_path / "student", "<think>", "</think>")
    traces.write_text('{"problem": "1+2=", "completion": "<think>1+2=3;</think>#3"}\n')
    words = arguments((student, tiny_pair[1]), traces, tmp_path, "loss=forward_kl")
    with pytest.raises(UserError, match=r"has the token '</think>', which .*student has and another model"):
        run(words, tmp_path / "run")
