"""Tests of the seam of prompt and completion, in the forms of real chat templates."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_templates import TEMPLATES, tokenizer_with

from distill.data.prompt import render
from distill.data.seam import (
    continuing,
    decode_completion,
    encode_turn,
    rejoin,
    same_opening,
    whole,
    written_text,
)
from distill.data.thoughts import count_marks, open_end, thought_end, with_thought
from distill.data.tokenizers import end_ids, set_template_variables, template_of
from distill.errors import UserError

ASKED = ({"role": "user", "content": "What is 2+3?"},)
SOLUTION = "2+3=5\n#### 5"
THOUGHT, ANSWER = "Add: 2+3=5.", "The answer is 5."
CHANNELS = (
    f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>{ANSWER}"
)
COMPLETIONS = {
    "a solution": SOLUTION,
    "a thought": with_thought(THOUGHT, ANSWER),
    "a thought that the prompt opened": f"{THOUGHT}\n</think>\n\n{ANSWER}",
    "other tags": f"<thinking>{THOUGHT}</thinking>\n{ANSWER}",
    "channels": CHANNELS,
    "the channel of the answer": f"<|channel|>final<|message|>{SOLUTION}",
}


def ends_of(tokenizer: Any) -> list[int]:
    class Configuration:
        eos_token_id = tokenizer.convert_tokens_to_ids("<|im_end|>")

    return end_ids(tokenizer, Configuration)


def parts(tokenizer: Any, completion: str, ends: list[int] | None = None) -> tuple[str, str, str]:
    """The prompt, the completion, and the assistant's turn as a whole; the seam is checked."""
    ends = ends or ends_of(tokenizer)
    prompt_ids, ids = encode_turn(tokenizer, ASKED, completion, ends)
    assert prompt_ids.dtype == ids.dtype == np.int32
    assert [token in ends for token in ids] == [False] * (len(ids) - 1) + [True]
    prompt, learned = tokenizer.decode(prompt_ids), tokenizer.decode(ids)
    asked = render(tokenizer, ASKED, "")
    turn = (prompt + learned)[len(asked) - len(thought_end(asked)) :]
    opening, closing = count_marks(turn)
    if THOUGHT in completion:
        assert (opening, closing) == (1, 1)
        assert turn.count(THOUGHT) == turn.count(ANSWER) == 1
        assert THOUGHT not in prompt
    else:
        assert opening <= closing <= 1
        assert turn.count(SOLUTION) == 1
    return prompt, learned, turn


@pytest.mark.parametrize("thinks", [None, False])
@pytest.mark.parametrize("completion", COMPLETIONS)
@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_turn_has_one_thought_and_one_end_token(kind: str, completion: str, thinks: bool | None) -> None:
    tokenizer = tokenizer_with(TEMPLATES[kind])
    if thinks is not None:
        set_template_variables(tokenizer, {"enable_thinking": thinks})
    parts(tokenizer, COMPLETIONS[completion])


@pytest.mark.parametrize(
    ("kind", "completion", "prompt", "learned"),
    [
        ("knows no thoughts", "a solution", "assistant\n", SOLUTION),
        ("knows no thoughts", "a thought", "assistant\n", with_thought(THOUGHT, ANSWER)),
        ("writes them", "a solution", "assistant\n", f"<think>\n\n</think>\n\n{SOLUTION}"),
        ("writes them", "a thought", "assistant\n", with_thought(THOUGHT, ANSWER)),
        ("opens them", "a solution", "<think>\n", f"\n</think>\n\n{SOLUTION}"),
        ("opens them", "a thought", "<think>\n", f"{THOUGHT}\n</think>\n\n{ANSWER}"),
        ("opens and drops them", "a solution", "<|Assistant|>", SOLUTION),
        ("opens and drops them", "a thought", "<think>\n", f"{THOUGHT}\n</think>\n\n{ANSWER}"),
        ("reads fields only", "a thought", "<think>\n", f"{THOUGHT}\n</think>\n\n{ANSWER}"),
        ("keeps them narrow", "a solution", "assistant\n<think>", f"</think>{SOLUTION}"),
        ("has channels", "a solution", "assistant", f"<|channel|>final<|message|>{SOLUTION}"),
        ("has channels", "a thought", "assistant", CHANNELS),
        ("closes the answer", "a solution", "assistant\n", f"{SOLUTION}<|END_RESPONSE|>"),
    ],
)
def test_what_is_learned_is_what_the_template_renders(
    kind: str, completion: str, prompt: str, learned: str
) -> None:
    found = parts(tokenizer_with(TEMPLATES[kind]), COMPLETIONS[completion])
    assert found[0].endswith(prompt)
    assert found[1] == f"{learned}<|im_end|>"


def test_thinking_that_is_off_is_part_of_the_prompt_and_of_the_templates_name() -> None:
    tokenizer = tokenizer_with(TEMPLATES["writes them"])
    before = template_of(tokenizer)
    assert before == tokenizer.chat_template
    set_template_variables(tokenizer, {"enable_thinking": False})
    assert template_of(tokenizer) != before
    prompt, learned, _ = parts(tokenizer, SOLUTION)
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert learned == f"{SOLUTION}<|im_end|>"


def test_a_saved_tokenizer_keeps_the_templates_variables(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = tokenizer_with(TEMPLATES["writes them"])
    set_template_variables(tokenizer, {"enable_thinking": False})
    tokenizer.save_pretrained(tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)
    assert render(read, ASKED, "") == render(tokenizer, ASKED, "")
    set_template_variables(read, {"enable_thinking": True})
    assert render(read, ASKED, "").endswith("assistant\n")


@pytest.mark.parametrize("answer", ["<b>5</b>", "think", "im_end", "  5\n", "a < b </thin", "<think"])
@pytest.mark.parametrize("kind", TEMPLATES)
def test_an_answer_that_looks_like_a_mark_is_learned_whole(kind: str, answer: str) -> None:
    tokenizer = tokenizer_with(TEMPLATES[kind])
    prompt_ids, ids = encode_turn(tokenizer, ASKED, answer, ends_of(tokenizer))
    asked = render(tokenizer, ASKED, "")
    assert asked.startswith(tokenizer.decode(prompt_ids))
    assert (
        tokenizer.decode(ids)
        .removesuffix("<|im_end|>")
        .removesuffix("<|END_RESPONSE|>")
        .strip()
        .endswith(answer.strip())
    )


def test_an_end_token_that_the_text_has_is_not_learned_twice() -> None:
    for template in TEMPLATES.values():
        tokenizer = tokenizer_with(template)
        ends = ends_of(tokenizer)
        once, twice = (encode_turn(tokenizer, ASKED, SOLUTION + end, ends)[1] for end in ("", "<|im_end|>"))
        assert twice.tolist().count(ends[0]) == 1
        assert once.tolist() == twice.tolist()


def test_a_thought_that_is_never_closed_is_opened_once() -> None:
    for kind, template in TEMPLATES.items():
        tokenizer = tokenizer_with(template)
        prompt_ids, ids = encode_turn(tokenizer, ASKED, f"<think>\n{THOUGHT}", ends_of(tokenizer))
        text = tokenizer.decode([*prompt_ids, *ids])
        assert text.count("<think>") == 1, kind
        assert "</think>" not in text


def test_a_template_that_refuses_or_drops_the_answer_leaves_it_as_it_is() -> None:
    for template in (
        "Q: {{ messages[0].content }}\nA: ",
        "{% if messages[-1].role == 'assistant' %}{{ raise_exception('no') }}{% endif %}Q\nA: ",
    ):
        tokenizer = tokenizer_with(template)
        prompt_ids, ids = encode_turn(tokenizer, ASKED, SOLUTION)
        assert tokenizer.decode(prompt_ids).endswith("A: ")
        assert tokenizer.decode(ids) == f"{SOLUTION}<eos>"
        _, ids = encode_turn(tokenizer, ASKED, COMPLETIONS["the channel of the answer"])
        assert tokenizer.decode(ids) == f"{SOLUTION}<eos>"


@pytest.mark.parametrize(
    ("prompt", "completion", "found"),
    [
        ("<think>\n", "<think>\nhm\n</think>\n\n5", "hm\n</think>\n\n5"),
        ("<think>\n", "hm\n</think>\n\n5", "hm\n</think>\n\n5"),
        ("<think>\n", "hm", "hm"),
        ("assistant\n", "hm\n</think>\n\n5", "<think>\nhm\n</think>\n\n5"),
        ("assistant\n", "5", "5"),
        ("<think>\n\n</think>\n\n", "5", "5"),
    ],
)
def test_a_servers_text_continues_the_prompt(prompt: str, completion: str, found: str) -> None:
    assert continuing(prompt, completion) == found
    assert continuing(prompt, found) == found
    assert count_marks(whole(prompt, found))[0] == bool(open_end(prompt) or "<think>" in found)


def test_special_tokens_that_mark_a_thought_are_kept_in_the_text() -> None:
    tokenizer = tokenizer_with(TEMPLATES["writes them"], special_tags=True)
    ids = tokenizer(f"{with_thought(THOUGHT, ANSWER)}<|im_end|>").input_ids
    assert decode_completion(tokenizer, ids) == with_thought(THOUGHT, ANSWER)
    channels = tokenizer_with(TEMPLATES["has channels"])
    ids = channels(f"{CHANNELS}<|im_end|>").input_ids
    assert decode_completion(channels, ids) == CHANNELS.replace("<|end|>", "")
    opened = tokenizer_with(TEMPLATES["opens them"])
    prompt = opened(render(opened, ASKED, "")).input_ids
    assert written_text(opened, prompt, opened("hm</think>5").input_ids) == "<think>\nhm</think>5"


@pytest.mark.parametrize(
    ("writer", "learner", "text", "prompt", "learned"),
    [
        ("opens them", "writes them", "hm</think>5", "assistant\n", "<think>\nhm</think>5"),
        ("writes them", "opens them", "<think>\nhm</think>5", "<think>\n", "hm</think>5"),
        ("writes them", "opens them", "5", "assistant\n", "5"),
        ("opens them", "opens them", "hm</think>5", "<think>\n", "hm</think>5"),
        ("knows no thoughts", "writes them", "5", "assistant\n", "5"),
    ],
)
def test_tokens_written_behind_another_prompt_are_learned_with_their_thought(
    writer: str, learner: str, text: str, prompt: str, learned: str
) -> None:
    tokenizer = tokenizer_with("".join(TEMPLATES.values()))
    asked = {}
    for kind in (writer, learner):
        tokenizer.chat_template = TEMPLATES[kind]
        asked[kind] = np.asarray(tokenizer(render(tokenizer, ASKED, "")).input_ids, dtype=np.int32)
    ids = np.asarray(tokenizer(text).input_ids, dtype=np.int32)
    found = rejoin(tokenizer, asked[learner], asked[writer], ids)
    assert tokenizer.decode(found[0]).endswith(prompt)
    assert tokenizer.decode(found[1]) == learned
    if writer == learner:
        assert found[0] is asked[learner]
        assert found[1] is ids
    # A teacher with the writer's template reads the same thought, opened once.
    read = same_opening(tokenizer, asked[writer], thought_end(tokenizer.decode(found[0])))
    assert tokenizer.decode(read).endswith(prompt)


def _asked(tokenizer: Any) -> str:
    try:
        return render(tokenizer, ASKED, "")
    except UserError:
        return ""


def trl_templates() -> list[Path]:
    found = importlib.util.find_spec("trl")
    folder = Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else None
    return sorted(folder.glob("chat_templates/*.jinja")) if folder else []


@pytest.mark.parametrize("path", trl_templates(), ids=lambda path: path.stem)
def test_the_seam_of_the_templates_that_trl_ships(path: Path) -> None:
    template = path.read_text(encoding="utf-8")
    tokenizer = tokenizer_with(template)
    if ASKED[0]["content"] not in _asked(tokenizer):
        pytest.skip("a template of pictures, whose content is a list")
    for thinks in (None, False, True):
        if thinks is not None:
            set_template_variables(tokenizer, {"enable_thinking": thinks})
        for completion in COMPLETIONS.values():
            parts(tokenizer, completion, end_ids(tokenizer, None))
