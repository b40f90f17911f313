"""Differences between two methods of a table in any measure, tested over seeds and over problems."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Float

from distill.analysis.drift_curves import Drift
from distill.report.answers import Answers
from distill.report.methods import Method, Table
from distill.report.quality import TO_FIRST, right_to_first
from distill.runs.read import Run
from distill.statistics import Difference, mean_difference, paired_runs

BySeed = Float[np.ndarray, " seeds"]
ByProblem = Float[np.ndarray, "seeds problems"]


@dataclass(frozen=True)
class Pair:
    """A method and another one, on the seeds that both have.

    Attributes:
        table: the methods.
        name: the method.
        against: the other method; None: the student before training.
    """

    table: Table
    name: str
    against: str | None

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        mine = self.table.method(self.name).seeds
        return mine if self.against is None else tuple(s for s in mine if s in self._other.seeds)

    def difference(
        self,
        measure: str,
        *,
        benchmark: str | None = None,
        drifts: Mapping[str, Sequence[Drift | None]] | None = None,
        margin: float = 0.0,
    ) -> Difference:
        """The method's value minus the other's.

        Args:
            measure: as `distill.report.claims.Claim.measure`.
            benchmark: the benchmark that counts; None: all.
            drifts: by method, each run's drift in the order of its seeds; None: not measured.
            margin: added to every difference, to test against -margin instead of 0.

        Returns:
            The difference over seeds, with the larger of the p-values over seeds and, where the measure has a
            value at each problem, over problems.

        Raises:
            ValueError: it cannot be computed; the message says why.
        """
        if len(self.seeds) < 2:
            raise ValueError(f"{len(self.seeds)} common seeds, and a test needs two")
        kind, _, what = measure.partition(" ")
        if kind in ("accuracy", "stopping", "quality"):
            return self._over_problems(kind, what, benchmark, margin)
        if kind == "widening":
            values = self._widening(benchmark)
        elif kind == "drift":
            values = self._drifts(what, drifts)
        else:
            values = self._of_runs(kind, what, benchmark)
        mine, other = values
        return paired_runs(other, mine + margin)

    @property
    def _other(self) -> Method:
        assert self.against is not None
        return self.table.method(self.against)

    @property
    def _answers(self) -> Answers:
        if self.table.answers is None:
            raise ValueError("the runs share no problem")
        return self.table.answers

    def _chosen(self, method: Method) -> list[int]:
        """Rows of `Answers` of a method's runs, in the order of the common seeds."""
        places = {id(run): place for place, run in enumerate(self.table.runs)}
        return [places[id(run)] for run in self._runs(method)]

    def _runs(self, method: Method) -> list[Run]:
        own = {run.seed: run for run in method.runs}
        return [own[seed] for seed in self.seeds]

    def _among(self, benchmark: str | None) -> np.ndarray:
        answers = self._answers
        if benchmark is not None and benchmark not in answers.benchmarks:
            raise ValueError(f"benchmark {benchmark} was not asked")
        return np.ones(len(answers.problems), bool) if benchmark is None else answers.of(benchmark)

    def _over_problems(self, kind: str, what: str, benchmark: str | None, margin: float) -> Difference:
        """Measures with a value at each problem."""
        answers, among = self._answers, self._among(benchmark)
        if self.against is None:
            if kind != "accuracy":
                raise ValueError("the untrained student's completions are not compared one by one")
            after, before = self._of_runs("figure", "accuracy", benchmark)
            return paired_runs(before, after + margin)
        mine, other = self._chosen(self.table.method(self.name)), self._chosen(self._other)
        difference = answers.right[mine] - answers.right[other]
        if kind == "stopping":
            difference = difference - (self._to_first(mine) - self._to_first(other))
        if kind == "quality":
            solved = (answers.right[mine].mean(0) > 0.5) & (answers.right[other].mean(0) > 0.5)
            difference, among = answers.quality[what][mine] - answers.quality[what][other], among & solved
            if not among.any():
                raise ValueError("no problem is solved by both")
        difference = difference + margin
        strata = answers.strata(among)
        if not np.isfinite(difference[:, among]).all():
            raise ValueError("some of the runs' samples are of a version that did not record it")
        over_problems = mean_difference([difference.mean(0)[part] for part in strata])
        by_seed = replace(answers, right=difference).accuracy(among)
        over_seeds = paired_runs(np.zeros_like(by_seed), by_seed)
        return replace(over_seeds, p=max(over_seeds.p, over_problems.p))

    def _to_first(self, rows: list[int]) -> ByProblem:
        quality = self._answers.quality
        return right_to_first(quality[TO_FIRST][rows], quality["characters"][rows], self._answers.right[rows])

    def _widening(self, benchmark: str | None) -> tuple[BySeed, BySeed]:
        """The accuracy on problems with long solutions minus that on short ones, of either method."""
        if self.against is None:
            raise ValueError("the untrained student's answers are not split by length")
        answers, among = self._answers, self._among(benchmark)
        if (halves := answers.halves()) is None or not (halves[1] & among).any():
            raise ValueError("the sets have no solutions of different lengths")
        short, long = (half & among for half in halves)

        def of(method: Method) -> BySeed:
            own = replace(answers, right=answers.right[self._chosen(method)])
            return own.accuracy(long) - own.accuracy(short)

        return of(self.table.method(self.name)), of(self._other)

    def _of_runs(self, kind: str, what: str, benchmark: str | None) -> tuple[BySeed, BySeed]:
        """Figures of the runs' summaries."""
        stages = ("after", "before" if self.against is None else "after")
        methods = (self.table.method(self.name), self.table.method(self.against or self.name))
        mine, other = (
            np.asarray([_figure(run, kind, what, benchmark, stage) for run in self._runs(method)])
            for method, stage in zip(methods, stages, strict=True)
        )
        return mine, other

    def _drifts(
        self, what: str, drifts: Mapping[str, Sequence[Drift | None]] | None
    ) -> tuple[BySeed, BySeed]:
        if drifts is None:
            raise ValueError("drift was not measured: give --drift")
        if self.against is None:
            raise ValueError("the untrained student's drift is not in a report")
        found = []
        for method in (self.table.method(self.name), self._other):
            by_seed = dict(zip(method.seeds, drifts.get(method.name, ()), strict=False))
            own = [by_seed.get(seed) for seed in self.seeds]
            if lacking := [
                seed
                for seed, one in zip(self.seeds, own, strict=True)
                if one is None or what not in one.figures
            ]:
                raise ValueError(f"{method.name} with seed {lacking[0]} has no {what}")
            found.append(np.asarray([one.figures[what].value for one in own if one is not None]))
        return found[0], found[1]


def _figure(run: Run, kind: str, what: str, benchmark: str | None, stage: str) -> float:
    summary = run.summary
    if kind == "seconds":
        return float(summary["seconds"]["training"])
    if kind == "flops":
        flops = summary.get("flops") or {}
        return float(sum(flops.get(name, np.nan) for name in ("student", "teacher_live", "teacher_cached")))
    if kind == "validation":
        if stage == "before":
            raise ValueError("the untrained student was not measured on data.validation")
        found = (summary.get("validation") or {}).get("last", {}).get(f"val/{what}")
        if found is None:
            raise ValueError(f"data.validation has no {what}")
        return float(found)
    asked = summary["benchmarks"]
    if benchmark is not None and benchmark not in asked:
        raise ValueError(f"benchmark {benchmark} was not asked")
    names = [benchmark] if benchmark is not None else list(asked)
    figures = [asked[name][stage]["figures"].get(what) for name in names]
    if not figures or any(one is None for one in figures):
        raise ValueError(f"{', '.join(names) or 'no benchmark'} has no figure {what}")
    return float(np.mean([one["value"] for one in figures]))
