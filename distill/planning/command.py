"""Print the plan of a run or a sweep."""

from omegaconf import DictConfig

from distill.config.console import at_end, quiet
from distill.planning.groups import usable_groups
from distill.planning.plan import make_plan
from distill.planning.sweep import SweepPlan
from distill.training.setup import Launch, Setup

planned = SweepPlan()  # collects the plans of this process's jobs


def print_plan(cfg: DictConfig) -> None:
    """Print the plan of a run, possibly for another machine; in a sweep, one plan for all jobs at the end."""
    quiet()
    launch = Launch.of_this_process()
    if not launch.sweep:
        setup = Setup.from_config(cfg, here=False)
        make_plan(setup).print()
        if said := usable_groups(setup):
            print(f"- {said}")
        return
    if planned.print not in at_end:
        at_end.append(planned.print)
    planned.add(launch.overrides, lambda: make_plan(Setup.from_config(cfg, here=False)))
