"""Tests that traces, the teacher's view of them and generated trace sets have each thought once."""

from typing import Any

import numpy as np
import pytest
from chat_stub import Stub
from chat_templates import TEMPLATES, tokenizer_with

from distill.data.prompt import Prompt
from distill.data.tokenizers import tokenizer_fingerprint
from distill.data.trace import Example, Recorded
from distill.generation.engine import Request
from distill.generation.sampling import Sampling
from distill.generation.server import ServerEngine
from distill.models.language_model import ModelSource
from distill.models.lazy import LazyModel
from distill.teacher.retokenize import Retokenizer
from distill.training.recipe import TraceRecipe

SHARED = "".join(TEMPLATES.values())  # one vocabulary for all
PROBLEM = "2+3?"


def source(kind: str) -> ModelSource:
    made = ModelSource(name=kind, location=kind, fingerprint=kind)
    tokenizer = tokenizer_with(SHARED)
    tokenizer.chat_template = TEMPLATES[kind]
    vars(made)["tokenizer"] = tokenizer
    vars(made)["end_ids"] = [tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.eos_token_id]
    vars(made)["context_length"] = 500
    return made


def recorded(writer: ModelSource, text: str) -> Example:
    """A trace as the writer's own tokens, behind the writer's own prompt."""
    tokenizer = writer.tokenizer
    example = Example("0", PROBLEM, "5", text)
    ids = np.asarray(tokenizer(f"{text}<|im_end|>").input_ids, dtype=np.int32)
    prompt_ids = Prompt().encode(tokenizer, example)
    vocabulary = tokenizer_fingerprint(tokenizer)
    return Example(
        "0", PROBLEM, "5", text, recorded=Recorded(vocabulary, prompt_ids, ids, True, True, None, None)
    )


@pytest.mark.parametrize(
    ("writer", "student", "text", "learned"),
    [
        ("opens them", "opens them", "hm\n</think>\n\n5", "<think>\n|hm\n</think>\n\n5"),
        ("opens them", "writes them", "hm\n</think>\n\n5", "assistant\n|<think>\nhm\n</think>\n\n5"),
        ("writes them", "opens them", "<think>\nhm\n</think>\n\n5", "<think>\n|hm\n</think>\n\n5"),
        ("knows no thoughts", "opens them", "5", "assistant\n|5"),
        ("knows no thoughts", "writes them", "5", "assistant\n|5"),
    ],
)
def test_recorded_tokens_keep_the_thought_that_their_prompt_opened(
    writer: str, student: str, text: str, learned: str
) -> None:
    reader = source(student)
    example = recorded(source(writer), text)
    (trace,) = TraceRecipe(source=list).tokenize([example], reader)
    decode = reader.tokenizer.decode
    assert f"{decode(trace.prompt_ids)}|{decode(trace.completion_ids)}".endswith(f"{learned}<|im_end|>")
    if writer == student:
        assert example.recorded is not None
        assert trace.completion_ids is example.recorded.completion_ids


@pytest.mark.parametrize("teacher", ["opens them", "writes them", "opens and drops them"])
@pytest.mark.parametrize(
    "student", ["opens them", "writes them", "opens and drops them", "knows no thoughts"]
)
@pytest.mark.parametrize("text", ["<think>\nhm\n</think>\n\n5", "5"])
def test_a_teacher_with_another_template_reads_each_thought_once(
    student: str, teacher: str, text: str
) -> None:
    reader, scorer = source(student), source(teacher)
    recipe = TraceRecipe(source=list)
    (trace,) = recipe.tokenize([Example("0", PROBLEM, "5", text)], reader)
    prompt = Prompt("Think! {problem}", rewrites=True)
    view = Retokenizer(reader, scorer, prompt, own_prompt=True).view(trace)
    read = scorer.tokenizer.decode([*view.prompt_ids, *view.completion_ids])
    assert f"Think! {PROBLEM}" in read
    answer = read.partition(PROBLEM)[2]
    assert answer.count("<think>") == answer.count("</think>") <= 1
    assert answer.count("hm") == text.count("hm")
    assert view.completion_ids.tolist() == trace.completion_ids.tolist()


@pytest.mark.parametrize(
    ("teacher", "content", "text"),
    [
        ("opens them", "hm\n</think>\n\n5", "hm\n</think>\n\n5"),
        ("opens them", "<think>\nhm\n</think>\n\n5", "hm\n</think>\n\n5"),
        ("writes them", "hm\n</think>\n\n5", "<think>\nhm\n</think>\n\n5"),
        ("writes them", "<think>\nhm\n</think>\n\n5", "<think>\nhm\n</think>\n\n5"),
        ("writes them", "5", "5"),
    ],
)
def test_a_servers_text_goes_on_where_the_prompt_ends(
    teacher: str, content: str, text: str, stub: Stub
) -> None:
    model = LazyModel(source(teacher), "cpu")
    prompt_ids = Prompt().encode(model.source.tokenizer, Example("0", PROBLEM))
    choice = {"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    stub.answer = {"choices": [choice]}
    request = Request(prompt_ids, ({"role": "user", "content": PROBLEM},), 0)
    engine: Any = ServerEngine(model, stub.url, retries=0)
    ((_, written),) = engine.write([request], Sampling(max_new_tokens=50))
    assert written.text == text
