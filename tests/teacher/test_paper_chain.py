"""Tests of the paper's chain, from writing to training, on random models of Qwen's and Llama's shape."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_alignment import byte_level
from test_generate import run as write_set
from test_training import run
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

# Like Qwen2.5's and Llama 3's: roles between special tokens, a default system message, dates left out.
QWEN = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 4096,
}  # fmt: skip


def make(folder: Path, kind: str, size: int, seed: int) -> Path:
    """A random model with a chat template whose marks are special tokens."""
    template, end, marks = {
        "qwen": (QWEN, "<|im_end|>", ["<|im_start|>"]),
        "llama": (LLAMA, "<|eot_id|>", ["<|start_header_id|>", "<|end_header_id|>"]),
    }[kind]
    tokenizer = byte_level(size)
    tokenizer.add_special_tokens({"additional_special_tokens": [end, *marks]})
    tokenizer.eos_token, tokenizer.chat_template = end, template
    torch.manual_seed(seed)
    config, model = (Qwen2Config, Qwen2ForCausalLM) if kind == "qwen" else (LlamaConfig, LlamaForCausalLM)
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    model(config(vocab_size=len(tokenizer), **SIZES, **ends)).save_pretrained(folder)  # pyright: ignore
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "teacher": make(root / "teacher", "qwen", 320, 0),
        "qwen": make(root / "qwen", "qwen", 320, 1),
        "llama": make(root / "llama", "llama", 300, 2),
    }


@pytest.fixture(scope="module")
def written(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("written")
    problems = [
        {"problem": f"What is {a} + {b}?", "gold": str(a + b)} for a, b in ((1, 2), (3, 4), (5, 6), (7, 8))
    ]
    (root / "problems.jsonl").write_text("".join(json.dumps(one) + "\n" for one in problems))
    words = [
        "model=tiny", f"model.teacher={models['teacher']}", "data=traces", "data.fields.completion=null",
        f"data.path={root / 'problems.jsonl'}", "data.max_new_tokens=24", "samples=1", "check.answer=none",
        "teacher_prompt=discord",
    ]  # fmt: skip
    records = write_set(words, root / "set")
    text = AutoTokenizer.from_pretrained(models["teacher"]).decode(records[0]["prompt_ids"])
    assert text.startswith("<|im_start|>system\nYou are an expert of olympiad mathematics.")
    assert "<verification>" in text
    assert text.endswith("<|im_start|>user\nWhat is 1 + 2?<|im_end|>\n<|im_start|>assistant\n")
    return root / "set"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("student", "loss", "said"),
    [
        ("qwen", "dcod", "are taken from the trace set"),
        ("qwen", "dcod_symmetric_kl", "are taken from the trace set"),
        ("qwen", "on_policy_kd", ""),
        ("llama", "dcod_spans", ""),
        ("llama", "uld", ""),
    ],
)
def test_a_student_learns_from_traces_written_under_the_papers_instruction(
    student: str,
    loss: str,
    said: str,
    models: dict[str, Path],
    written: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [
        "model=tiny", f"model.student={models[student]}", f"model.teacher={models['teacher']}",
        f"loss={loss}", "data=traces", f"data.path={written}", "data.keep=all", "teacher_prompt=discord",
        "benchmark=none",
        "data.student_prompt.user='{problem}'", "data.max_new_tokens=8", "logger=csv", "trainer.max_steps=2",
        "data.batch_size=4",
    ]  # fmt: skip
    folder = run(words, tmp_path / "run")
    assert said in capsys.readouterr().out
    with (folder / "metrics.csv").open(newline="") as stream:
        losses = [float(row["train/loss"]) for row in csv.DictReader(stream) if row["train/loss"]]
    assert len(losses) == 2
    assert all(0 < value < 20 for value in losses)
