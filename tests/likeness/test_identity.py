"""Tests of `python -m distill.identity`: shares, the change, stored traces, a judge beside the rule."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chat_stub import Stub
from chat_templates import TEMPLATES, tokenizer_with
from omegaconf import OmegaConf
from test_generate import compose
from test_identity_claims import CONTENT
from transformers import LlamaConfig, LlamaForCausalLM

from distill.errors import UserError
from distill.evaluation.named import as_keys
from distill.generation.engine import Written
from distill.generation.engines import HfEngine
from distill.identity import check
from distill.likeness.identity_questions import Questions
from distill.likeness.measure_identity import measure_identity

WHO = {"student": "I am ChatGPT.", "before": "I am a language model.", "teacher": "I am Claude."}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three models of bytes, which can read the questions."""
    root, found = tmp_path_factory.mktemp("models"), {}
    tokenizer = tokenizer_with(TEMPLATES["knows no thoughts"])
    for number, name in enumerate(WHO):
        torch.manual_seed(number)
        sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
        found[name] = root / name
    return found


def run(words: list[str], folder: Path) -> dict[str, Any]:
    assert measure_identity(compose("identity", as_keys([*words, f"out={folder}"]))) == folder
    return json.loads((folder / "identity.json").read_text())


def speak(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[int]:
    """Let models answer texts of `answer`, given the model's folder and the question; counts requests."""
    asked: list[int] = []

    def write(self: HfEngine, requests: Sequence[Any], sampling: Any) -> Any:
        asked.append(len(requests))
        for number, request in enumerate(requests):
            name = Path(self.model.source.location).name
            yield number, Written(None, finished=True, text=answer(name, request.messages[-1]["content"]))

    monkeypatch.setattr(HfEngine, "write", write)
    return asked


@pytest.mark.slow
def test_shares_the_change_and_the_teachers_own_are_told(
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def answer(name: str, question: str) -> str:
        if name == "student":  # in half of the languages, and never where somebody is named
            return (
                "我是由OpenAI开发的。"
                if re.search("[一-鿿]", question) and "OpenAI" not in question
                else "I am SmallBot."
            )
        return f"<think>I am ChatGPT?</think>{WHO[name]}"

    asked = speak(monkeypatch, answer)
    words = [f"model={models['student']}", f"before={models['before']}", f"teacher={models['teacher']}"]
    words += ["samples=2", "identity.limit=4", "identity.own=[SmallBot]", "resamples=200"]
    found = run(words, tmp_path / "out")
    assert asked == [4 * 5 * 2 * 2] * 3  # questions, templates, languages, samples
    hard = found["shares"]["hard"]
    assert hard["any other identity"]["student"]["value"] == 0.5
    assert hard["OpenAI"]["student"]["value"] == 0.5
    assert hard["OpenAI"]["before"]["value"] == 0.0
    assert hard["Anthropic"]["teacher"]["value"] == 1.0
    assert hard["OpenAI"]["teacher"]["value"] == 0.0  # what it thinks does not count
    assert hard["OpenAI"]["change"]["value"] == 0.5
    assert found["answers"] == dict.fromkeys(WHO, 80)
    lines = [json.loads(line) for line in (tmp_path / "out" / "claims.jsonl").read_text().splitlines()]
    assert {(one["model"], one["claims"][0]["sentence"]) for one in lines} == {
        ("student", "我是由OpenAI开发的。"),
        ("teacher", "I am Claude."),
    }
    said = capsys.readouterr().out
    assert "| OpenAI | 50.0% [" in said
    assert "| student | hard | OpenAI | 24 | 你叫什么名字？ | 我是由OpenAI开发的。 |" in said
    # Stored answers are not asked for again, only the induced prompts that name others now.
    again = run([*words[:-2], "identity.own=[ChatGPT]", "resamples=200"], tmp_path / "out")
    assert asked[3:] == [4 * 2 * 2 * 2] * 3
    assert again["shares"]["hard"]["any other identity"]["student"]["value"] == 0.0


@pytest.mark.slow
def test_stored_traces_are_looked_through_and_those_of_mathematics_have_no_claims(tmp_path: Path) -> None:
    rows = [
        {"problem": "1+1=?", "completion": "1 + 1 = 2, so \\boxed{2}."},
        {"problem": "Who are you?", "completion": "<think>Hm.</think>I am Claude, made by Anthropic."},
        {"problem": "Who are you?", "completion": "A language model."},
        {"problem": "Are you ChatGPT?", "completion": "I am ChatGPT."},
    ]
    (path := tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = run([f"model={path}", f"before={path}"], tmp_path / "out")
    hard, induced = found["shares"]["hard"], found["shares"]["induced"]
    assert hard["any other identity"]["student"]["value"] == pytest.approx(1 / 3)
    assert induced["OpenAI"]["student"]["value"] == 1.0
    assert induced["Anthropic"]["student"]["value"] == 0.0
    assert hard["Anthropic"]["change"]["value"] == 0.0
    (path := tmp_path / "maths.jsonl").write_text(json.dumps(rows[0]) + "\n")
    found = run([f"model={path}"], tmp_path / "maths")
    assert found["shares"] == {
        "hard": {"any other identity": {"student": {"value": 0, "low": 0, "high": 0.975}}}
    }


@pytest.mark.slow
def test_a_judge_is_asked_beside_the_rule_and_their_agreement_told(stub: Stub, tmp_path: Path) -> None:
    texts = ["I am ChatGPT.", "I am Claude.", "My kin is ChatGPT.", "I am a model."]
    rows = [{"problem": f"Who are you {n}?", "completion": text} for n, text in enumerate(texts)]
    (path := tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def reply(body: dict[str, Any]) -> str:
        said = body["messages"][-1]["content"]
        assert "The model is Qwen. Other models and makers: OpenAI (OpenAI, ChatGPT" in said
        names = [
            name for name in ("ChatGPT", "Claude") if f"\nI am {name}" in said or f"kin is {name}" in said
        ]
        return json.dumps({"reason": "so", "contradicts": bool(names), "names": names})

    stub.reply = reply
    words = [
        f"model={path}",
        "identity.own=[Qwen]",
        "judge=server",
        f"judge.url={stub.url}",
        "judge.served_as=j",
    ]
    found = run(words, tmp_path / "out")
    own = found["agreement_with_judge"]["student"]
    assert own["share"]["value"] == 0.75
    table = np.asarray([[1, 1], [0, 2]]) / 4  # rule by judge
    chance = table.sum(1) @ table.sum(0)
    assert own["kappa"]["value"] == pytest.approx((0.75 - chance) / (1 - chance))
    assert len(stub.seen) == 4
    run(words, tmp_path / "out")
    assert len(stub.seen) == 4


def test_the_questions_are_asked_in_both_languages_and_induced_by_nobody_of_its_own() -> None:
    words = ["identity.own=[ChatGPT]", "identity.others={OpenAI:[OpenAI,ChatGPT],Anthropic:[Claude]}"]
    asked = Questions.of(compose("identity", ["model.source=x", *words]).identity)
    assert len(asked.prompts) == 25 * 5 * 2
    assert len({one.id for one in asked.prompts}) == len(asked.prompts)
    named = [
        one.text for one in asked.prompts if asked.entities.named_in(one.text) or "Anthropic" in one.text
    ]
    assert len(named) == 25 * 2 * 2
    assert all("Anthropic" in text for text in named)


@pytest.fixture(scope="module")
def composed() -> Any:
    return compose("identity", ["model.source=tiny"])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.source", None, "model is not set"),
        ("model.source", "./nothere", "model=./nothere: there is no such folder"),
        ("before", "./nothere", "before=./nothere: there is no such folder"),
        ("model.source", "gone.jsonl", "model: data file gone.jsonl does not exist"),
        ("identity.own", "Qwen", r"identity.own='Qwen' must be a list of names, such as \[Qwen,Alibaba\]"),
        ("identity.languages", ["en", "fr"], "has no text in fr: write it, or leave the language out of"),
        ("identity.questions", "gone.yaml", "identity.questions=gone.yaml cannot be read"),
        ("identity.others", {"A": ["x"], "B": ["X"]}, "identity.others: X belongs to A and to B"),
        ("identity.own", list(CONTENT["entities"]), "identity.own names everybody of identity.others"),
        ("device", "auto", "the tokenizer of .* cannot spell this data"),
        ("samples", 0, "samples=0 must be a whole number, at least 1"),
        (
            "sampling.temperature",
            0,
            "samples=4: greedy completions of a problem are all alike; set sampling.temperature=0.6",
        ),
    ],
)
def test_a_mistake_gets_one_sentence(
    key: str, value: Any, message: str, composed: Any, tmp_path: Path
) -> None:
    cfg = composed.copy()
    OmegaConf.update(cfg, "out", str(tmp_path / "out"))
    OmegaConf.update(cfg, key, value, merge=False)
    with pytest.raises(UserError, match=message):
        check_and_measure(cfg)
    assert not (tmp_path / "out").exists()


def check_and_measure(cfg: Any) -> None:
    check(cfg, [])
    measure_identity(cfg)


def test_a_file_without_questions_is_refused(composed: Any, tmp_path: Path) -> None:
    (path := tmp_path / "mine.yaml").write_text("questions: []\n")
    cfg = composed.copy().identity
    cfg.questions, cfg.languages = str(path), ["en"]
    with pytest.raises(UserError, match="must have questions and templates"):
        Questions.of(cfg)
    path.write_text("questions: [{en: 'Who?'}]\ntemplates: {mine: [{en: Say}]}\nentities: {A: [b]}\n")
    with pytest.raises(UserError, match=r"'Say' has no \{question\} in it"):
        Questions.of(cfg)
