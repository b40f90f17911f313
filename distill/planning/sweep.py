"""Plan of a sweep: resources by method, with cached results counted once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from distill.planning.plan import Plan, Stage, size_text, time_text

Method = tuple[str, ...]


@dataclass
class SweepPlan:
    """Plans of a sweep's jobs, grouped by method.

    A method is a job's command line without its seed, since jobs that differ only in the seed need the same
    resources.

    Attributes:
        jobs: number of jobs, by method.
        plans: plan of one job, by method.
    """

    jobs: dict[Method, int] = field(default_factory=dict)
    plans: dict[Method, Plan] = field(default_factory=dict)

    def add(self, words: Sequence[str], make: Callable[[], Plan]) -> None:
        """Add a job.

        Args:
            words: its command line.
            make: makes its plan; called only for the first job of a method.
        """
        method = tuple(word for word in words if not word.startswith("seed="))
        if method not in self.plans:
            self.plans[method] = make()
        self.jobs[method] = self.jobs.get(method, 0) + 1

    def shared(self) -> list[tuple[Stage, float]]:
        """Stages whose results are cached, computed once for all jobs, with their hours."""
        found = {}
        for plan in self.plans.values():
            for stage in plan.stages:
                if stage.shared:
                    found[stage.name, stage.model, stage.flops] = stage, plan.hours(stage)
        return list(found.values())

    def hours(self) -> float:
        """Hours of the whole sweep, one job after another."""
        own = sum(self.jobs[name] * _hours(plan) for name, plan in self.plans.items())
        return own + sum(hours for _, hours in self.shared())

    def print(self) -> None:
        """Print a table with one row per method, then one per shared stage."""
        console = Console(soft_wrap=False, width=120)
        table = Table(title="plan of the sweep (an estimate)", title_justify="left", show_footer=True)
        jobs = sum(self.jobs[name] for name in self.plans)
        peak = max((stage.memory for plan in self.plans.values() for stage in plan.stages), default=0)
        flops = sum(self.jobs[name] * _flops(plan) for name, plan in self.plans.items())
        disk = sum(self.jobs[name] * _disk(plan) for name, plan in self.plans.items())
        once = self.shared()
        flops += sum(stage.flops for stage, _ in once)
        disk += sum(stage.disk for stage, _ in once)
        for heading, footer in (
            ("method", "in all"),
            ("jobs", str(jobs)),
            ("FLOPs each", f"{flops:.3g}"),
            ("memory", size_text(peak)),
            ("time each", time_text(self.hours())),
            ("disk each", size_text(disk)),
        ):
            table.add_column(
                heading, footer, justify="left" if heading == "method" else "right", overflow="fold"
            )
        common = set.intersection(*map(set, self.plans)) if len(self.plans) > 1 else set()
        for method, plan in self.plans.items():
            name = " ".join(word for word in method if word not in common)
            cells = f"{_flops(plan):.3g}", size_text(max(stage.memory for stage in plan.stages))
            row = str(self.jobs[method]), *cells, time_text(_hours(plan)), size_text(_disk(plan))
            table.add_row(name, *row)
        table.add_section()
        for stage, hours in once:
            sizes = size_text(stage.memory), time_text(hours), size_text(stage.disk)
            table.add_row(f"once: {stage.name}", "", f"{stage.flops:.3g}", *sizes)
        console.print(table)
        notes: Sequence[str] = next(iter(self.plans.values())).notes if self.plans else []
        for note in notes:
            console.print(f"- {note}", highlight=False)


def _own(plan: Plan) -> list[Stage]:
    return [stage for stage in plan.stages if not stage.shared]


def _hours(plan: Plan) -> float:
    return sum(map(plan.hours, _own(plan)))


def _flops(plan: Plan) -> float:
    return sum(stage.flops for stage in _own(plan))


def _disk(plan: Plan) -> int:
    return sum(stage.disk for stage in _own(plan))
