"""Tests of the model card beside a student, read back by the hub's own reader."""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from distill.runs.card import Card, CardResult, card_text, licenses_of, public_name, results_of, write_card

FIGURE = {"value": 0.75, "low": 0.5, "high": 0.9375}
CONFIG: dict[str, Any] = {
    "model": {"student": "Qwen/Qwen2.5-0.5B", "teacher": "/home/alice/models/big", "lora": {"rank": 8}},
    "data": {
        "hub": "openai/gsm8k",
        "path": None,
        "completions": "dataset",
        "student_prompt": {"user": "{problem}"},
    },
    "loss": {
        "rollouts": "dataset",
        "token_loss": {"_target_": "distill.losses.divergence.cross_entropy"},
        "token_weight": {"_target_": "distill.losses.weights.support_ratio"},
    },
    "optimizer": {"lr": 1e-5},
    "card": {"license": "apache-2.0", "teacher_license": "My Own Terms"},
}
SUMMARY: dict[str, Any] = {
    "name": "mine",
    "loss": "dcod",
    "steps": 12,
    "tokens": 3456,
    "seed": 3,
    "traces": 100,
    "precision": "32-true",
    "frozen": {"teacher": "big, not in memory while training (cached teacher_logprobs)"},
    "benchmarks": {
        "gsm8k": {
            "before": {"problems": 16, "figures": {"accuracy": FIGURE | {"value": 0.5, "low": 0.25}}},
            "after": {"problems": 16, "figures": {"accuracy": FIGURE}},
        }
    },
}


def card(**changes: Any) -> Card:
    usual = {"name": "mine", "base": "Qwen/Qwen2.5-0.5B", "config": CONFIG, "summary": SUMMARY}
    return Card(
        **usual
        | {
            "licenses": licenses_of(CONFIG),
            "results": results_of(SUMMARY),
            "before": results_of(SUMMARY, "before"),
        }
        | changes
    )


def test_the_hub_reads_the_cards_metadata(tmp_path: Path) -> None:
    path = write_card(tmp_path, card())
    data = ModelCard.load(path).data
    assert (data.license, data.base_model, data.datasets) == (
        "apache-2.0",
        "Qwen/Qwen2.5-0.5B",
        ["openai/gsm8k"],
    )
    assert data.tags == ["distillation", "distill", "dcod"]
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    (result,) = data.eval_results or []
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("gsm8k", "accuracy", 0.75)
    assert result.metric_args == {
        "confidence_interval": [0.5, 0.9375],
        "confidence_level": 0.95,
        "problems": 16,
    }


def test_the_card_says_what_the_student_was_made_from() -> None:
    text = card_text(card())
    assert "- Base model: `Qwen/Qwen2.5-0.5B`" in text
    assert "- Teacher: `big`" in text  # and not whose folder it lies in
    assert "alice" not in text
    assert "`openai/gsm8k`, 100 traces" in text
    assert "`loss=dcod`: rollouts dataset, token loss cross_entropy, token weight support_ratio." in text
    assert "with LoRA, merged, for 12 optimizer steps on 3,456 completion tokens, learning rate 1e-05" in text
    assert "| gsm8k | 16 | 50.0 % [25.0, 93.8] | 75.0 % [50.0, 93.8] |" in text
    assert "- Teacher: My Own Terms" in text
    assert "- Training data: unknown: nobody has said it" in text
    for own, said in (("initial", "the base model itself"), ("ema", "the moving average of this model")):
        taught = card_text(card(config=CONFIG | {"loss": CONFIG["loss"] | {"teacher": own}}))
        assert f"- Teacher: {said}" in taught
        assert "`big`" not in taught


def test_a_card_has_no_figure_that_was_not_measured() -> None:
    text = card_text(card(results=(), summary={**SUMMARY, "benchmarks": {}}))
    assert "No benchmark was measured." in text
    assert "%" not in text
    assert ModelCard(text).data.eval_results is None
    bare = card_text(Card("other", "some/model", licenses_of({})))
    assert "Training: not known here" in bare
    assert "## Results" not in bare
    assert ModelCard(bare).data.license == "unknown"


def test_a_licence_of_ones_own_is_other_for_the_hub() -> None:
    data = ModelCard(card_text(card(licenses=licenses_of({"card": {"license": "My Own Terms 2"}})))).data
    assert (data.license, data.license_name) == ("other", "My Own Terms 2")
    first = licenses_of({"card": {"license": "unknown"}}, CONFIG)  # an export names none: the run's counts
    assert (first["license"], first["data_license"]) == ("apache-2.0", "unknown")


@pytest.mark.parametrize(
    ("spec", "shown"),
    [
        ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B"),
        ("package:distill/tiny/student", "package:distill/tiny/student"),
        ("/home/alice/runs/mine/student", "mine/student"),
        ("/home/alice/traces.jsonl", "traces.jsonl"),
        (["a/b", "/home/alice/c"], "a/b or c"),
    ],
)
def test_names_are_shown_without_their_owners_folders(spec: Any, shown: str) -> None:
    assert public_name(spec) == shown


def test_results_without_an_interval_stay_out_of_the_metadata() -> None:
    unknown = CardResult("one", 1.0, float("nan"), float("nan"), 1)
    data = ModelCard(card_text(card(results=[unknown], summary={}))).data
    assert (data.eval_results or [])[0].metric_args == {"problems": 1}
