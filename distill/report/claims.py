"""Registered claims: what an experiment's file predicted before its first run, and what its runs answer.

An experiment registers claims under the key `registered` (docs/guides/sweeps.md). Each names two methods, a
measure and a direction. The report tests all of them, adjusts p by Holm's method over those of a family, and
answers in one word.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from distill.analysis.drift_curves import Drift
from distill.config.flat import flat
from distill.errors import UserError
from distill.report.answers import QUALITY
from distill.report.cells import p_value
from distill.report.methods import Table
from distill.report.page import Block, Grid, Heading, Items, Text
from distill.report.paired_tests import LEVEL
from distill.report.pairs import Pair
from distill.statistics import Difference, holm

UNTRAINED = "untrained"  # in place of a method's name: the student before training
PREDICTED = ("greater", "less", "not_less")
SUPPORTED, REFUTED, OPEN = "supported", "refuted", "not established"
_EXPLAINED = (
    "Registered in the experiment's file before its first run. **p** is the larger of a paired t-test over "
    "seeds and, where a measure has a value at each problem, a sign-flip test over problems; it is adjusted "
    "by Holm's method over the claims of a family. Below 0.05 a claim is supported, or refuted if the "
    "difference points the other way; otherwise it is not established, and the interval says which "
    "differences these runs leave possible."
)


@dataclass(frozen=True)
class Claim:
    """A prediction about two methods.

    Attributes:
        name: its key in `registered.claims`.
        says: the prediction as a sentence.
        measure: `accuracy`; `widening`, the gain in accuracy on problems with long solutions minus that on
            short ones; `stopping`, the part of the gain in accuracy that the text after the first final
            answer makes; `seconds` of training; `flops` of student and teacher; `quality NAME`, a measure of
            `distill.report.answers.QUALITY` on the problems that both methods solve; `figure NAME`, any
            figure of the benchmark's summary; `validation NAME`, of `data.validation` after the last step:
            `nll`, `loss` or `accuracy`; or `drift NAME`, a figure of `distill.analysis.drift_curves`.
        method: name of the method.
        against: name of the other method, or `untrained`.
        predicted: `greater`, `less`, or `not_less`: not lower by `margin` or more.
        margin: for `not_less`, in the measure's unit.
        benchmark: the benchmark that counts; None: all of them, for `accuracy` their mean.
        family: the claims over whose number p is adjusted.
    """

    name: str
    says: str
    measure: str
    method: str
    against: str
    predicted: str
    margin: float = 0.0
    benchmark: str | None = None
    family: str = "primary"


@dataclass(frozen=True)
class Registration:
    """The claims of an experiment, and the settings that they are about, as `{"data.limit": 1024, ...}`."""

    claims: tuple[Claim, ...]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """What the runs say of a claim.

    Attributes:
        claim: the claim.
        seeds: seeds that both methods have.
        difference: the method's value minus the other's, with the larger p-value; None if there is none.
        adjusted: p after Holm's correction over the claims of its family that have a difference.
        reason: why there is no difference.
    """

    claim: Claim
    seeds: tuple[int, ...] = ()
    difference: Difference | None = None
    adjusted: float = 1.0
    reason: str = ""

    @property
    def word(self) -> str:
        """`supported`, `refuted` or `not established`; `not measured` without a difference."""
        if self.difference is None:
            return "not measured"
        if self.adjusted >= LEVEL:
            return OPEN
        margin = self.claim.margin if self.claim.predicted == "not_less" else 0.0
        above = self.difference.value > -margin
        return SUPPORTED if above != (self.claim.predicted == "less") else REFUTED


def registration_of(table: Table) -> Registration | None:
    """The claims registered in the configuration of a table's runs; None without any.

    Raises:
        UserError: the registration is not well formed.
    """
    node: dict[str, Any] = {}
    for key, value in table.runs[0].config.items() if table.runs else ():  # runs of a table share it
        section, *path = key.split(".")
        if section != "registered" or not path:
            continue
        own = node
        for part in path[:-1]:
            own = own.setdefault(part, {})
        own[path[-1]] = value
    return read_registration(node) if node else None


def read_registration(node: Any) -> Registration:
    """Read the value of the key `registered`.

    Raises:
        UserError: it is not well formed; the message names the key.
    """
    claims = node.get("claims") if isinstance(node, Mapping) else None
    if not isinstance(claims, Mapping) or not claims:
        raise UserError("registered.claims holds no claim: write them as {name: {says: ..., measure: ...}}")
    settings = node.get("settings") or {}
    if not isinstance(settings, Mapping):
        raise UserError(f"registered.settings={settings!r} is no mapping of keys to values")
    return Registration(tuple(_claim(str(name), own) for name, own in claims.items()), dict(flat(settings)))


def _claim(name: str, own: Any) -> Claim:
    place, known = f"registered.claims.{name}", {field.name for field in fields(Claim)} - {"name"}
    if not isinstance(own, Mapping) or not known - {"margin", "benchmark", "family"} <= own.keys() <= known:
        raise UserError(
            f"{place} needs says, measure, method, against and predicted, and may have margin, benchmark "
            f"and family"
        )
    for key in known - {"margin"}:
        if not isinstance(value := own.get(key, ""), str) and not (key == "benchmark" and value is None):
            raise UserError(f"{place}.{key}={value!r} is no text")
    claim = Claim(name, **own)
    if claim.method == claim.against:
        raise UserError(f"{place}: method and against are both {claim.method}")
    if claim.predicted not in PREDICTED:
        raise UserError(f"{place}.predicted={claim.predicted}: {', '.join(PREDICTED)} are known")
    kind, _, what = str(claim.measure).partition(" ")
    plain = kind in ("accuracy", "widening", "stopping", "seconds", "flops") and not what
    if not plain and not (kind in ("quality", "figure", "validation", "drift") and what):
        raise UserError(f"{place}.measure={claim.measure} is no measure (docs/guides/sweeps.md lists them)")
    if kind == "quality" and what not in QUALITY:
        raise UserError(f"{place}.measure={claim.measure}: of quality there are {', '.join(QUALITY)}")
    if isinstance(claim.margin, bool) or not isinstance(claim.margin, (int, float)) or claim.margin < 0:
        raise UserError(f"{place}.margin={claim.margin!r}: give a number, 0 or more")
    if claim.margin and claim.predicted != "not_less":
        raise UserError(
            f"{place}.margin={claim.margin}: only predicted=not_less has a margin, and this is "
            f"predicted={claim.predicted}: leave it out"
        )
    return claim


def answer_claims(
    table: Table, claims: Sequence[Claim], drifts: Mapping[str, Sequence[Drift | None]] | None = None
) -> list[Answer]:
    """Test claims on a table's runs.

    Args:
        table: the methods.
        claims: the registered claims.
        drifts: by method, each run's drift in the order of its seeds; None: drift was not measured.
    """
    answers = [_answer(table, claim, drifts) for claim in claims]
    adjusted: dict[str, float] = {}
    for family in dict.fromkeys(claim.family for claim in claims):
        own = {
            one.claim.name: one.difference.p
            for one in answers
            if one.difference is not None and one.claim.family == family
        }
        adjusted |= dict(zip(own, holm(list(own.values())), strict=True))
    return [replace(one, adjusted=adjusted.get(one.claim.name, 1.0)) for one in answers]


def _answer(table: Table, claim: Claim, drifts: Mapping[str, Sequence[Drift | None]] | None) -> Answer:
    names = [method.name for method in table.methods]
    if missing := [name for name in (claim.method, claim.against) if name not in [*names, UNTRAINED]]:
        return Answer(claim, reason=f"no finished run of {' and '.join(missing)}")
    turned = claim.method == UNTRAINED  # a pair is of a trained method
    first, other = (claim.against, claim.method) if turned else (claim.method, claim.against)
    pair = Pair(table, first, None if other == UNTRAINED else other)
    # For not_less the test is of the difference from the margin.
    margin = (-1 if turned else 1) * float(claim.margin)
    try:
        tested = pair.difference(claim.measure, benchmark=claim.benchmark, drifts=drifts, margin=margin)
    except ValueError as error:
        return Answer(claim, pair.seeds, reason=str(error))
    value, low, high = (one - margin for one in (tested.value, tested.low, tested.high))
    if turned:
        value, low, high = -value, -high, -low
    return Answer(claim, pair.seeds, replace(tested, value=value, low=low, high=high))


def other_settings(table: Table, registration: Registration) -> list[str]:
    """Sentences on settings in which the runs differ from what the claims were registered for."""
    found: dict[str, int] = {}
    for run in table.runs:
        for key, value in registration.settings.items():
            if (own := run.config.get(key)) != value:
                said = f"`{key}={own}`, registered for `{value}`"
                found[said] = found.get(said, 0) + 1
    return [f"{said} ({count} of {len(table.runs)} runs)" for said, count in found.items()]


def claim_blocks(answers: Sequence[Answer], differ: Sequence[str]) -> Iterator[Block]:
    """The registered claims with their answers; nothing without claims."""
    if not answers:
        return
    yield Heading("Registered claims")
    if differ:
        yield Text(
            "**These runs are not what the claims were registered for.** The answers below are exploratory:"
        )
        yield Items(differ)
    yield Text(_EXPLAINED)
    head = ["claim", "difference [95 %]", "seeds", "p", "p, adjusted", "answer"]
    for family in dict.fromkeys(answer.claim.family for answer in answers):
        own = [answer for answer in answers if answer.claim.family == family]
        yield Text(f"Family `{family}`, {len(own)} claims:")
        yield Grid(head, [_row(answer) for answer in own])


def _row(answer: Answer) -> list[str]:
    claim, difference = answer.claim, answer.difference
    if difference is None:
        return [claim.says, answer.reason, str(len(answer.seeds)), "", "", answer.word]
    alike = difference.low == difference.high  # then a t-test has nothing to go by, and p is 1
    return [
        claim.says,
        _difference(claim, difference),
        str(len(answer.seeds)),
        "none: all seeds alike" if alike else p_value(difference.p),
        p_value(answer.adjusted),
        f"**{answer.word}**",
    ]


def _difference(claim: Claim, difference: Difference) -> str:
    """The difference in per cent points where the measure is a share, else in its own unit."""
    kind, _, what = claim.measure.partition(" ")
    share = kind in ("accuracy", "widening", "stopping") or (
        kind in ("quality", "figure", "validation") and what not in ("characters", "tokens", "nll", "loss")
    )
    values = [difference.value, difference.low, difference.high]
    value, low, high = (f"{100 * one:+.1f}" if share else f"{one:+.3g}" for one in values)
    unit = " points" if share else {"seconds": " s", "flops": " FLOPs"}.get(kind, "")
    return f"{value} [{low}, {high}]{unit}" if np.isfinite(difference.low) else f"{value}{unit}"
