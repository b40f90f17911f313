"""Figures of the DCOD paper (2605.14071) beside those of the runs that have its setting."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from distill.evaluation.published import published
from distill.report.methods import Method, Table
from distill.report.paper import Setting, method_of, setting_of
from distill.statistics import Figure, mcnemar_by_disagreements, mean_over_runs, wilson

_LEVEL = 0.05
_SYSTEM = "under a system message"


@dataclass(frozen=True)
class Published:
    """An accuracy of the paper.

    Attributes:
        name: name in the paper, with the τ of a DCOD method.
        accuracy: share as printed, with Wilson's interval for the number of problems.
        right: number of right answers, the nearest whole one.
        problems: number of problems.
    """

    name: str
    accuracy: Figure
    right: int
    problems: int


@dataclass(frozen=True)
class PublishedGain:
    """The difference of two accuracies of the paper on the same problems, and what it can establish.

    Attributes:
        name: the method.
        over: the method that it is compared with.
        value: difference of the accuracies as printed.
        disagreements: fewest and most problems on which the two can disagree, given their accuracies.
        p: McNemar's p for the fewest and for the most disagreements, its least and greatest value.
        established_up_to: most disagreements with p below 0.05; None: no number of them has such a p.
    """

    name: str
    over: str
    value: float
    disagreements: tuple[int, int]
    p: tuple[float, float]
    established_up_to: int | None


@dataclass(frozen=True)
class PaperRow:
    """A figure of the paper beside ours.

    Attributes:
        method: name of the method here; None for an untrained model.
        here: accuracy here, mean over seeds; None if it was not measured.
        there: the paper's figure.
        tau_here: τ here, if it is not the paper's.
        gain_here: accuracy here minus the baseline's on the same seeds; None without one.
        gain: the paper's gain over the same baseline; None without one.
    """

    method: str | None
    here: Figure | None
    there: Published
    tau_here: str | None = None
    gain_here: float | None = None
    gain: PublishedGain | None = None


@dataclass(frozen=True)
class PaperComparison:
    """The runs of one pair and benchmark beside the paper's.

    Attributes:
        teacher: hub id.
        student: hub id.
        trained_on: name of the training problems.
        benchmark: name of the benchmark.
        problems: number of problems asked here.
        otherwise: how the problems were asked otherwise here than in the paper, greedily and once each.
        baseline: name here of the method that gains are over; None if the paper has no figure of it.
        rows: untrained models, then our methods, best first.
        further: the paper's gains of its methods over those they build on, where that is not the baseline.
    """

    teacher: str
    student: str
    trained_on: str
    benchmark: str
    problems: int
    otherwise: tuple[str, ...]
    baseline: str | None
    rows: tuple[PaperRow, ...]
    further: tuple[PublishedGain, ...]


def methods_of_paper(table: Table) -> dict[Setting, dict[str, str]]:
    """The paper's method by ours, for each of its settings that runs of the table have."""
    settings: dict[Setting, dict[str, str]] = {}
    for method in table.methods:
        config = method.runs[0].config
        setting, key = setting_of(config), method_of(config)
        if setting is not None and key is not None:
            settings.setdefault(setting, {})[method.name] = key
    return settings


def compared_with_paper(table: Table) -> list[PaperComparison]:
    """The paper's figures for a table's methods, per pair and benchmark; none where nothing matches."""
    return [
        found
        for setting, keys in methods_of_paper(table).items()
        for benchmark, of in published()["benchmarks"].items()
        if of["trained_on"] == setting.trained_on
        and (found := _comparison(table, setting, keys, benchmark)) is not None
    ]


def gain_of(method: Published, over: Published) -> PublishedGain:
    """The paper's gain of one method over another on the same problems, with its possible p-values."""
    differ, p = mcnemar_by_disagreements(over.right, method.right, method.problems)
    established = differ[p < _LEVEL]
    return PublishedGain(
        name=method.name,
        over=over.name,
        value=method.accuracy.value - over.accuracy.value,
        disagreements=(int(differ[0]), int(differ[-1])),
        p=(float(p[0]), float(p[-1])),
        established_up_to=int(established[-1]) if len(established) else None,
    )


def _comparison(
    table: Table, setting: Setting, keys: Mapping[str, str], benchmark: str
) -> PaperComparison | None:
    found = {
        method.name: _row(setting, keys[method.name], method, benchmark)
        for method in table.methods
        if method.name in keys
    }
    rows = {name: row for name, row in found.items() if row is not None}
    if not rows:
        return None
    base = table.baseline if table.baseline in rows else None
    if base is not None:
        others = [name for name in rows if keys[name] != keys[base]]
        rows |= {name: _with_gain(table, rows[name], rows[base], benchmark) for name in others}
    run, pair = table.method(next(iter(rows))).runs[0], published()["pairs"][setting.pair]
    otherwise = tuple(_otherwise(run.config, benchmark))
    before = [own for name in rows for own in _asked(table.method(name), benchmark, "before").values()]
    return PaperComparison(
        teacher=pair["teacher"],
        student=setting.student,
        trained_on=published()["trained_on"][setting.trained_on]["name"],
        benchmark=benchmark,
        problems=run.summary["benchmarks"][benchmark]["after"]["problems"],
        otherwise=otherwise,
        baseline=base,
        rows=(
            *_untrained(setting, before if _SYSTEM not in otherwise else [], benchmark),
            *sorted(rows.values(), key=_accuracy, reverse=True),
        ),
        further=tuple(_further(keys, rows, base)),
    )


def _asked(method: Method, benchmark: str, stage: str = "after") -> dict[int, float]:
    """Accuracies on a benchmark of a method's runs, by seed."""
    found = {run.seed: run.summary["benchmarks"].get(benchmark, {}).get(stage) for run in method.runs}
    return {seed: own["figures"]["accuracy"]["value"] for seed, own in found.items() if own}


def _accuracy(row: PaperRow) -> float:
    return math.nan if row.here is None else row.here.value


def _row(setting: Setting, key: str, method: Method, benchmark: str) -> PaperRow | None:
    """A method's figure beside the paper's; of its ablation (Table 5) where that has the run's own τ."""
    here = list(_asked(method, benchmark).values())
    pair, of = published()["pairs"][setting.pair], published()["methods"][key]
    value = pair["accuracy"].get(key, {}).get(benchmark)
    tau = pair.get("tau", {}).get(setting.trained_on, {}).get(key)
    ablated = pair.get("weights", {}).get(benchmark, {}).get(key)
    config = method.runs[0].config
    own = config.get("loss.token_weight.temperature")
    # As a factor τ is the paper's other reading, which makes no difference at 1.
    factor = own != 1 and config.get("loss.token_weight.temperature_is") == "factor"
    if isinstance(ablated, dict):
        if own in ablated and not factor:
            value, tau = ablated[own], own
    elif value is None:
        value = ablated
    if value is None or not here:
        return None
    name, other = of["name"], None
    if of.get("has_tau"):
        name += ", τ not given" if tau is None else f", τ = {tau:g}"
        if factor or own != tau:
            other = f"{own}{' as a factor' if factor else ''}"
    return PaperRow(method.name, mean_over_runs(here), _with_interval(name, value, benchmark), other)


def _with_gain(table: Table, row: PaperRow, base: PaperRow, benchmark: str) -> PaperRow:
    own, other = (_asked(table.method(str(one.method)), benchmark) for one in (row, base))
    shared = own.keys() & other.keys()
    gained = fmean(own[seed] - other[seed] for seed in shared) if shared else None
    return replace(row, gain_here=gained, gain=gain_of(row.there, base.there))


def _with_interval(name: str, percent: float, benchmark: str) -> Published:
    problems = published()["benchmarks"][benchmark]["problems"]
    right = round(percent / 100 * problems)
    bounds = wilson(right, problems)
    return Published(name, Figure(round(percent / 100, 6), bounds.low, bounds.high), right, problems)


def _untrained(setting: Setting, before: Sequence[float], benchmark: str) -> Iterator[PaperRow]:
    pair = published()["pairs"][setting.pair]
    for role, model in (("student", setting.student), ("teacher", pair["teacher"])):
        for prompt, said in (("", "plain prompt"), ("_instructed", "the teacher's instruction")):
            value = pair["untrained"].get(f"{role}{prompt}", {}).get(benchmark)
            if value is not None:
                measured = bool(before) and role == "student" and not prompt
                here = Figure(fmean(before), math.nan, math.nan) if measured else None
                name = f"{model.rpartition('/')[2]} untrained, {said}"
                yield PaperRow(None, here, _with_interval(name, value, benchmark))


def _further(
    keys: Mapping[str, str], rows: Mapping[str, PaperRow], base: str | None
) -> Iterator[PublishedGain]:
    named = {keys[name]: name for name in reversed(list(rows))}  # of several rows, the one that did best here
    for method, name in named.items():
        other = published()["methods"][method].get("base")
        if other in named and (base is None or other != keys[base]):
            yield gain_of(rows[name].there, rows[named[other]].there)


def _otherwise(config: Mapping[str, Any], benchmark: str) -> Iterator[str]:
    def value(name: str, usual: Any, part: str = "") -> Any:
        keys = f"benchmark.{name}", f"benchmark.{benchmark}.{part}{name}"
        return next((config[key] for key in keys if config.get(key) is not None), usual)

    samples, temperature = value("samples", 1), value("temperature", 0, "sampling.")
    if samples != 1 or temperature != 0:
        yield f"{samples} completions per problem at temperature {temperature}"
    if value("system", None) is not None:
        yield _SYSTEM
