"""Print what a run would take."""

from dataclasses import replace
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from distill.config.console import at_end, quiet
from distill.config.instantiate import build
from distill.objective.objective import Objective
from distill.planning.plan import Plan, make_plan
from distill.planning.sweep import SweepPlan
from distill.training.numbers import check_numbers
from distill.training.recipe import TraceRecipe
from distill.training.run import steps_of
from distill.training.sweeps import under_way

planned = SweepPlan()  # of this process's jobs


def print_plan(cfg: DictConfig, folder: Path) -> None:
    """Print what the run would take, on a machine that need not be here; of a sweep's jobs all together, when
    they are done."""
    quiet()
    check_numbers(cfg)
    if not (HydraConfig.initialized() and under_way()):
        plan_of(cfg).print()
        return
    if planned.print not in at_end:
        at_end.append(planned.print)
    planned.add(HydraConfig.get().overrides.task, lambda: plan_of(cfg))


def plan_of(cfg: DictConfig) -> Plan:
    """What the run would take."""
    objective: Objective = build(cfg.loss, "loss")
    recipe: TraceRecipe = build(cfg.data.recipe, "data")
    if objective.rollouts == "teacher":
        recipe = replace(recipe, completions="teacher")
    return make_plan(cfg, objective, recipe, lambda traces: steps_of(cfg, traces, objective))
