"""Tests of data sets that are read from the hub by their names, from small ones with the same columns."""

from typing import Any

import datasets
import pytest
from chat_templates import TEMPLATES, tokenizer_with

from distill.config.instantiate import build
from distill.config.overrides import check_overrides
from distill.config.paths import CONFIG
from distill.data.seam import encode_turn
from distill.data.thoughts import with_thought

ASKED, THOUGHT, ANSWER = "What is 2+3?", "Add: 2+3=5.", r"The answer is \boxed{5}."
WHOLE = with_thought(THOUGHT, ANSWER)
MARKED = (
    f"<|begin_of_thought|>\n\n{THOUGHT}\n\n<|end_of_thought|>\n\n"
    f"<|begin_of_solution|>\n\n{ANSWER}\n\n<|end_of_solution|>"
)
OPENTHOUGHTS = {
    "difficulty": 7,
    "source": "ai2-adapt-dev/openmath-2-math",
    "domain": "math",
    "conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": WHOLE}],
}
OPENTHOUGHTS_114K = {
    "system": "Think first.",
    "conversations": [{"from": "user", "value": ASKED}, {"from": "assistant", "value": MARKED}],
}
OPENR1 = {
    "problem": ASKED,
    "solution": "2+3=5",
    "answer": "5",
    "problem_type": "Algebra",
    "question_type": "math-word-problem",
    "source": "olympiads",
    "uuid": "a-b",
    "is_reasoning_complete": [True, True],
    "generations": [WHOLE, "<think>\n6?\n</think>\n\n6"],
    "correctness_math_verify": [True, False],
    "correctness_llama": None,
    "finish_reasons": None,
    "correctness_count": 1,
    "messages": [{"content": ASKED, "role": "user"}, {"content": WHOLE, "role": "assistant"}],
}
S1K = {
    "solution": "5",
    "question": ASKED,
    "cot_type": "math",
    "source_type": "qq8933/AIME_1983_2024",
    "metadata": "{}",
    "gemini_thinking_trajectory": "6?",
    "gemini_attempt": "6",
    "deepseek_thinking_trajectory": THOUGHT,
    "deepseek_attempt": ANSWER,
    "gemini_grade": "No",
    "deepseek_grade": "Yes",
}
LIMO = {"question": ASKED, "solution": f"{THOUGHT}\n{ANSWER}", "answer": "5"}
SETS: list[tuple[str, str, dict[str, Any], str, str | None]] = [
    ("openthoughts", "open-thoughts/OpenThoughts3-1.2M", OPENTHOUGHTS, WHOLE, None),
    ("openthoughts", "open-thoughts/OpenThoughts-114k", OPENTHOUGHTS_114K, MARKED, None),
    ("openr1_math", "open-r1/OpenR1-Math-220k", OPENR1, WHOLE, "5"),
    ("s1k", "simplescaling/s1K-1.1", S1K, WHOLE, None),
    ("limo", "GAIR/LIMO", LIMO, f"{THOUGHT}\n{ANSWER}", "5"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "hub", "record", "completion", "gold"), SETS, ids=lambda one: str(one)[:30])
def test_a_published_set_is_read_by_its_name(
    name: str,
    hub: str,
    record: dict[str, Any],
    completion: str,
    gold: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def load(*args: Any, **options: Any) -> datasets.Dataset:
        asked.append((args, options["split"]))
        return datasets.Dataset.from_list([record, record])

    monkeypatch.setattr(datasets, "load_dataset", load)
    cfg: Any = check_overrides(CONFIG, "train", ["model=none", f"data={name}", f"data.hub={hub}"])
    recipe = build(cfg.data.recipe, "data")
    example, _ = recipe.source()
    assert asked == [((hub, None), "train")]
    assert cfg.data.overlong == "drop"
    assert (example.problem, example.completion, example.gold) == (ASKED, completion, gold)
    if name == "openr1_math":
        assert example.id == "a-b"
    messages = recipe.student_prompt.messages(example)
    assert messages[-1]["content"] == ASKED
    assert [turn["content"] for turn in messages[:-1]] == ["Think first."] * ("system" in record)
    tokenizer = tokenizer_with(TEMPLATES["writes them"])
    prompt_ids, ids = encode_turn(tokenizer, messages, example.completion)
    learned = tokenizer.decode(ids)
    assert tokenizer.decode(prompt_ids).endswith("assistant\n")
    if name == "limo":
        assert learned == f"<think>\n\n</think>\n\n{THOUGHT}\n{ANSWER}<eos>"
    else:
        assert learned.split() == f"{WHOLE}<eos>".split()


@pytest.mark.slow
def test_each_set_names_its_hub_id() -> None:
    names = dict.fromkeys(name for name, *_ in SETS)
    hubs = {name: check_overrides(CONFIG, "train", ["model=none", f"data={name}"]).data.hub for name in names}
    assert hubs == {name: hub for name, hub, *_ in reversed(SETS)}
