"""Report of claimed identities: shares by entity with intervals, and the sentences that counted."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from distill.evaluation.comparison_words import table_row
from distill.io.files import write_atomically, write_json, write_lines
from distill.likeness.claims import Claim, by_entity
from distill.statistics import Difference, Figure, bootstrap_ratio, cohen_kappa, paired

ANY = "any other identity"
_SHOWN = 30  # sentences in the report; claims.jsonl has all
_KINDS = {"hard": "prompts that name nobody", "induced": "prompts that name somebody"}


@dataclass(frozen=True)
class Said:
    """An answer about identity.

    Attributes:
        question: the question, whose answers are resampled together.
        id: of the prompt.
        prompt: the prompt.
        answer: without thinking.
        induced: whether the prompt names an entity.
        claims: what counted.
        judge: whether a judge model finds such a claim; None: it was not asked, or its reply not readable.
    """

    question: str
    id: str
    prompt: str
    answer: str
    induced: bool
    claims: Sequence[Claim]
    judge: bool | None = None

    def with_verdict(self, verdict: bool | None) -> "Said":
        return replace(self, judge=verdict)

    def counts(self, entity: str) -> bool:
        """Whether it claims an entity's identity, or any."""
        return any(entity in (ANY, claim.entity) for claim in self.claims)


@dataclass(frozen=True)
class Identity:
    """Answers of models about their identity.

    Attributes:
        names: of the models, by `student`, `before` and `teacher`.
        said: their answers, likewise.
        own: the student's own names, which do not count.
    """

    names: Mapping[str, str]
    said: Mapping[str, Sequence[Said]]
    own: Sequence[str]

    @property
    def entities(self) -> list[str]:
        """All that are claimed by anybody, the most frequent first."""
        found = Counter(
            entity for own in self.said.values() for one in own for entity in by_entity(one.claims)
        )
        return [entity for entity, _ in found.most_common()]


def share(said: Sequence[Said], entity: str, *, resamples: int, seed: int) -> Figure:
    """Share of the answers that claim an entity's identity, with an interval over questions."""
    if not said:
        return Figure(math.nan, math.nan, math.nan)
    above, below = _by_question(said, entity)
    return bootstrap_ratio(list(above.values()), list(below.values()), resamples=resamples, seed=seed)


def change(
    before: Sequence[Said], after: Sequence[Said], entity: str, *, resamples: int, seed: int
) -> Difference | None:
    """The difference of two models' shares, after − before, over the same questions; None if they differ."""
    sides = [_by_question(said, entity) for said in (before, after)]
    if not before or sides[0][1] != sides[1][1]:
        return None
    means = [[above[name] / below[name] for name in below] for above, below in sides]
    return paired(means[0], means[1], resamples=resamples, seed=seed)


def _by_question(said: Sequence[Said], entity: str) -> tuple[dict[str, int], dict[str, int]]:
    """Numbers of claims and of answers by question."""
    above: dict[str, int] = {}
    below: dict[str, int] = {}
    for one in said:
        above[one.question] = above.get(one.question, 0) + one.counts(entity)
        below[one.question] = below.get(one.question, 0) + 1
    return above, below


def figures(found: Identity, *, resamples: int, seed: int) -> dict[str, Any]:
    """All shares and changes, by kind of prompt and entity."""
    options = {"resamples": resamples, "seed": seed}
    result: dict[str, Any] = {}
    for kind in _KINDS:
        sides = {
            name: [one for one in said if one.induced == (kind == "induced")]
            for name, said in found.said.items()
        }
        if not any(sides.values()):
            continue
        result[kind] = {}
        for entity in [ANY, *found.entities]:
            row: dict[str, Any] = {name: share(said, entity, **options) for name, said in sides.items()}
            if "before" in sides:
                row["change"] = change(sides["before"], sides["student"], entity, **options)
            result[kind][entity] = row
    return result


def agreement(said: Sequence[Said], *, resamples: int, seed: int) -> tuple[Figure, Figure] | None:
    """Share of answers on which rule and judge agree, and Cohen's κ; None without a verdict of a judge."""
    tables: dict[str, np.ndarray] = {}
    for one in said:
        if one.judge is not None:
            table = tables.setdefault(one.question, np.zeros((2, 2)))
            table[int(one.counts(ANY)), int(one.judge)] += 1
    if not tables:
        return None
    counts = np.stack(list(tables.values()))
    alike = bootstrap_ratio(
        np.trace(counts, axis1=1, axis2=2), counts.sum((1, 2)), resamples=resamples, seed=seed
    )
    return alike, cohen_kappa(counts, resamples=resamples, seed=seed)


def write_identity(folder: Path, found: Identity, *, resamples: int, seed: int) -> str:
    """Write `identity.json`, `identity.md`, `answers.jsonl` and `claims.jsonl`.

    Returns:
        The text of `identity.md`, and where it is.
    """
    options = {"resamples": resamples, "seed": seed}
    rows = figures(found, **options)
    agreements = {name: agreement(said, **options) for name, said in found.said.items()}
    text = "\n".join(_markdown(found, rows, agreements))
    value = {
        "models": dict(found.names),
        "own": list(found.own),
        "answers": {name: len(said) for name, said in found.said.items()},
        "shares": {
            kind: {
                entity: {name: _json(figure) for name, figure in row.items()} for entity, row in own.items()
            }
            for kind, own in rows.items()
        },
        "agreement_with_judge": {
            name: {"share": own[0].json(), "kappa": own[1].json()} for name, own in agreements.items() if own
        },
    }
    write_json(folder / "identity.json", value)
    lines = [(name, one) for name, said in found.said.items() for one in said]
    write_lines(folder / "answers.jsonl", (_line(name, one) for name, one in lines))
    write_lines(folder / "claims.jsonl", (_line(name, one) for name, one in lines if one.claims))
    path = folder / "identity.md"
    write_atomically(path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))
    return f"{text}\n\n{path}"


def _json(figure: Figure | Difference | None) -> Any:
    if figure is None:
        return None
    return {
        name: None if isinstance(own, float) and not math.isfinite(own) else own
        for name, own in vars(figure).items()
    }


def _line(model: str, one: Said) -> str:
    value = {"model": model, **vars(one), "claims": [claim._asdict() for claim in one.claims]}
    return json.dumps(value, ensure_ascii=False)


def _markdown(
    found: Identity,
    rows: Mapping[str, Mapping[str, Mapping[str, Any]]],
    agreements: Mapping[str, tuple[Figure, Figure] | None],
) -> Iterator[str]:
    for kind, own in rows.items():
        columns = list(next(iter(own.values())))
        yield f"Answers that claim another identity, {kind} ({_KINDS[kind]}):"
        yield ""
        yield table_row(["", *columns])
        yield "|" + "---|" * (1 + len(columns))
        for entity, row in own.items():
            yield table_row([entity, *(_cell(row[name], signed=name == "change") for name in columns)])
        yield ""
    for name, model in found.names.items():
        yield f"- {name}: {model}, {len(found.said[name]):,} answers"
    yield ""
    yield (
        "In brackets 95 % bootstrap intervals over questions; the change is student − before. Claims are "
        "found by a rule, which misses unlisted names and irony; the sentences below are what it counted."
    )
    if not found.own:
        yield ""
        yield "identity.own is empty: the student's own name counts, if it is on the list."
    for name, pair in agreements.items():
        if pair:
            yield ""
            yield (
                f"Rule and judge agree on {_cell(pair[0])} of the answers of {name}; Cohen's κ "
                f"{_kappa(pair[1])}."
            )
    yield from _sentences(found)


def _sentences(found: Identity) -> Iterator[str]:
    counts: Counter[tuple[str, str, str, str]] = Counter()
    asked: dict[tuple[str, str, str, str], str] = {}
    for name, said in found.said.items():
        for one in said:
            for claim in one.claims:
                key = (name, "induced" if one.induced else "hard", claim.entity, claim.sentence)
                counts[key] += 1
                asked.setdefault(key, one.prompt)
    if not counts:
        return
    yield ""
    shown = f"; the {_SHOWN} most frequent" if len(counts) > _SHOWN else ""
    yield f"{len(counts):,} different sentences counted{shown}:"
    yield ""
    yield table_row(["model", "prompt", "entity", "times", "first asked", "sentence"])
    yield "|---|---|---|---|---|---|"
    for (name, kind, entity, sentence), count in counts.most_common(_SHOWN):
        yield table_row(
            [
                _short(cell)
                for cell in (name, kind, entity, str(count), asked[name, kind, entity, sentence], sentence)
            ]
        )


def _short(text: str) -> str:
    flat = " ".join(text.split()).replace("|", "\\|")
    return flat if len(flat) <= 120 else f"{flat[:117]}..."


def _cell(figure: Figure | Difference | None, *, signed: bool = False) -> str:
    if figure is None or math.isnan(figure.value):
        return "-"
    form = "{:+.1%}" if signed else "{:.1%}"
    return f"{form.format(figure.value)} [{form.format(figure.low)}, {form.format(figure.high)}]"


def _kappa(kappa: Figure) -> str:
    if math.isnan(kappa.value):
        return "undefined, as all verdicts are alike"
    return f"{kappa.value:.2f} [{kappa.low:.2f}, {kappa.high:.2f}]"
