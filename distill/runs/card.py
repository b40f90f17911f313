"""The model card, `README.md` beside a student: what it was made from, and what the run measured."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.io.files import write_atomically
from distill.io.secrets import without_secrets
from distill.models.path import PACKAGE_PREFIX, is_hub_id

UNKNOWN = "unknown"
_SELF_TAUGHT = {"initial": "the base model itself", "ema": "the moving average of this model in training"}
LICENSES = ("license", "base_license", "teacher_license", "data_license")
_WORDS = {
    "license": "this model",
    "base_license": "base model",
    "teacher_license": "teacher",
    "data_license": "training data",
}
_LICENSE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]*")


@dataclass(frozen=True)
class CardResult:
    """A measured figure of the card's `model-index`.

    Attributes:
        benchmark: the benchmark's name.
        value: accuracy.
        low, high: its 95 % interval; NaN if unknown.
        problems: number of problems.
    """

    benchmark: str
    value: float
    low: float
    high: float
    problems: int


@dataclass(frozen=True)
class Card:
    """What a model card says.

    Attributes:
        name: the model's name.
        base: the model that was trained, or the one that was exported if it is of no run.
        licenses: by `LICENSES`.
        config: the run's configuration; empty: no run is known.
        summary: the run's `summary.json`; empty: no run is known.
        results: accuracies of this model.
        before: accuracies of the base model on the same problems; empty: not measured.
        sections: further text, by heading.
        tags: further tags.
        library: what loads it.
    """

    name: str
    base: str
    licenses: Mapping[str, str]
    config: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    results: Sequence[CardResult] = ()
    before: Sequence[CardResult] = ()
    sections: Mapping[str, str] = field(default_factory=dict)
    tags: Sequence[str] = ()
    library: str = "transformers"


def licenses_of(*configs: Mapping[str, Any]) -> dict[str, str]:
    """The licences that configurations name, the first that is known; `unknown` where none is."""
    cards = [config.get("card") or {} for config in configs]
    found = {}
    for name in LICENSES:
        said = (str(card.get(name) or UNKNOWN) for card in cards)
        found[name] = next((one for one in said if one != UNKNOWN), UNKNOWN)
    return found


def results_of(summary: Mapping[str, Any], stage: str = "after") -> list[CardResult]:
    """A run's accuracies at a stage."""
    found = []
    for name, stages in (summary.get("benchmarks") or {}).items():
        if stage in stages:
            figure = stages[stage]["figures"]["accuracy"]
            value, low, high = (
                math.nan if figure[bound] is None else figure[bound] for bound in ("value", "low", "high")
            )
            found.append(CardResult(name, value, low, high, stages[stage]["problems"]))
    return found


def write_card(folder: Path, card: Card) -> Path:
    """Write a card as `README.md`. It has no checksum, because its owner may edit it."""
    text, path = without_secrets(card_text(card)), folder / "README.md"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return path


def card_text(card: Card) -> str:
    """A card in Markdown, with the metadata that the Hugging Face hub reads."""
    from huggingface_hub import ModelCard  # not at the top: it takes a while to import

    sections = {
        "Made from": "\n".join(_origin(card)),
        "Objective": "\n".join(_objective(card)),
        "Results": "\n".join(_results(card)),
        **card.sections,
        "Licences": "\n".join(_licenses(card)),
    }
    body = "\n\n".join(f"## {heading}\n\n{text}" for heading, text in sections.items() if text)
    return str(ModelCard(f"---\n{_metadata(card).to_yaml()}\n---\n\n# {card.name}\n\n{body}\n"))


def public_name(spec: Any) -> str:
    """A model or data set without the owner's folders: hub ids and package files whole, of paths the last
    parts."""
    if isinstance(spec, (list, tuple)):
        return " or ".join(map(public_name, spec))
    text = str(spec)
    if text.startswith(PACKAGE_PREFIX) or _on_hub(text):
        return text
    parts = Path(text).parts
    return "/".join(parts[-2:] if parts[-1:] in (("student",), ("teacher",)) else parts[-1:])


def _on_hub(text: str) -> bool:
    return "/" in text and is_hub_id(text) and not Path(text).exists()


def _metadata(card: Card) -> Any:
    from huggingface_hub import EvalResult, ModelCardData

    data, license = card.config.get("data") or {}, card.licenses["license"]
    known = _LICENSE_ID.fullmatch(license) is not None
    hub = data.get("hub")
    return ModelCardData(
        base_model=card.base if _on_hub(card.base) else None,
        datasets=[hub] if hub and not data.get("path") else None,
        license=license if known else "other",
        license_name=None if known else license,
        library_name=card.library,
        pipeline_tag="text-generation",
        tags=["distillation", "distill", *filter(None, [card.summary.get("loss")]), *card.tags],
        model_name=card.name,
        eval_results=[
            EvalResult(
                task_type="text-generation",
                dataset_type=one.benchmark,
                dataset_name=one.benchmark,
                metric_type="accuracy",
                metric_value=round(one.value, 4),
                metric_args=_interval_data(one) | {"problems": one.problems},
            )
            for one in card.results
        ]
        or None,
    )


def _interval_data(result: CardResult) -> dict[str, Any]:
    if not math.isfinite(result.low + result.high):
        return {}
    bounds = [round(result.low, 4), round(result.high, 4)]
    return {"confidence_interval": bounds, "confidence_level": 0.95}


def _origin(card: Card) -> Iterator[str]:
    yield f"- Base model: `{public_name(card.base)}`"
    if not card.summary:
        yield "- Training: not known here; this model is of no run of distill."
        return
    frozen: Mapping[str, str] = card.summary.get("frozen") or {}
    own = _SELF_TAUGHT.get((card.config.get("loss") or {}).get("teacher", "model"))
    if own and "teacher" in frozen:
        yield f"- Teacher: {own}"
    else:
        yield _teachers(card.config.get("model") or {}, frozen)
    data = card.config.get("data") or {}
    where = public_name(data["path"]) if data.get("path") else data.get("hub")
    by = "written by the teacher" if data.get("completions") == "teacher" else "the data's own"
    said = f"`{where}`" if where else "made by distill (the embedded arithmetic task)"
    yield f"- Data: {said}, {card.summary['traces']:,} traces; completions: {by}"
    prompt = data.get("student_prompt") or {}
    yield f"- Prompt: `{prompt.get('user')!r}`" + (
        f", system message `{prompt['system']!r}`" if prompt.get("system") else ""
    )


def _teachers(model: Mapping[str, Any], frozen: Mapping[str, str]) -> str:
    several: Mapping[str, Any] = model.get("teachers") or {}
    if several and any(role.startswith("teacher.") for role in frozen):
        weights = model.get("teacher_weights")
        models = (entry["model"] if isinstance(entry, Mapping) else entry for entry in several.values())
        named = ", ".join(f"{name} `{public_name(spec)}`" for name, spec in zip(several, models, strict=True))
        if weights is None:
            return f"- Teachers, of which each record has one: {named}"
        shares = weights if isinstance(weights, str) else ", ".join(f"{n} {w:g}" for n, w in weights.items())
        return f"- Teachers, whose distributions are mixed (weights: {shares}): {named}"
    teacher = model.get("teacher") if "teacher" in frozen else None
    return f"- Teacher: `{public_name(teacher)}`" if teacher else "- Teacher: none"


def _objective(card: Card) -> Iterator[str]:
    if not card.summary:
        return
    loss, summary = card.config.get("loss") or {}, card.summary
    rollouts = loss.get("rollouts")
    parts = {
        "rollouts": rollouts if isinstance(rollouts, str) else "student",
        "token loss": _target(loss.get("token_loss")),
        "token weight": _target(loss.get("token_weight")),
    }
    yield (
        f"`loss={summary.get('loss')}`: "
        + ", ".join(f"{name} {value}" for name, value in parts.items())
        + "."
    )
    rate, model = (card.config.get("optimizer") or {}).get("lr"), card.config.get("model") or {}
    adapted = " with LoRA, merged," if (model.get("lora") or {}).get("rank") else ""
    yield (
        f"Trained{adapted} for {summary['steps']:,} optimizer steps on {summary['tokens']:,.0f} completion "
        f"tokens, learning rate {rate:g}, {summary['precision']}, seed {summary['seed']}."
    )


def _target(node: Any) -> str:
    return str((node or {}).get("_target_", UNKNOWN)).rpartition(".")[2]


def _results(card: Card) -> Iterator[str]:
    if not card.results:
        if card.summary:
            yield "No benchmark was measured."
        return
    before = {one.benchmark: one for one in card.before}
    stages = ["before training", "this model"] if before else ["this model"]
    yield "Accuracy, with 95 % bootstrap intervals over problems:"
    yield ""
    yield f"| benchmark | problems | {' | '.join(stages)} |"
    yield "|---|---|" + "---|" * len(stages)
    for one in card.results:
        earlier = before.get(one.benchmark)
        cells = [one.benchmark, f"{one.problems:,}", *([interval(earlier) if earlier else ""] * bool(before))]
        yield f"| {' | '.join([*cells, interval(one)])} |"


def interval(result: CardResult) -> str:
    """An accuracy in percent with its interval."""
    if not math.isfinite(result.low + result.high):
        return f"{100 * result.value:.1f} %"
    return f"{100 * result.value:.1f} % [{100 * result.low:.1f}, {100 * result.high:.1f}]"


def _licenses(card: Card) -> Iterator[str]:
    for name in LICENSES:
        said = card.licenses[name]
        yield f"- {_WORDS[name].capitalize()}: {said}{': nobody has said it' * (said == UNKNOWN)}"
