"""T3S's bottleneck (2601.10348): the checkpoint with the lowest accuracy on the training problems."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from distill.config.instantiate import build
from distill.errors import UserError
from distill.evaluation.run import evaluate
from distill.generation.engines import HfEngine
from distill.io.cache import keyed_folder
from distill.io.checksums import write_noted
from distill.io.locks import waited
from distill.models.find import find, find_model
from distill.models.language_model import ModelSource
from distill.models.lazy import LazyModel
from distill.runs.config import read_run_config, said_again
from distill.runs.folder import checkpoints, step_of
from distill.statistics import Figure
from distill.teacher.completions import writer_key
from distill.training.checkpoints import save_student
from distill.training.held_out import ask_some
from distill.training.recipe import TraceRecipe


def find_bottleneck(
    run: Path,
    *,
    problems: int = 200,
    seed: int = 0,
    rrt: Path | None = None,
    model: Sequence[str] = (),
    cache: Path = Path("outputs/cache"),
    trust_remote_code: bool = False,
) -> str:
    """Let the untrained student and every checkpoint of a run answer training problems, and find the lowest.

    Writes `bottleneck.json` into the run's folder. Answers are greedy, under the run's prompt, graded by the
    data's grader, and cached.

    Args:
        run: folder of a run with several checkpoints.
        problems: number of training problems, those with a right answer.
        seed: of the choice of problems.
        rrt: folder for a student with the weights θ₀ + (θ_final − θ_bottleneck), the paper's control "RRT".
        model: the run's `model.student` said again, if it is not one of distill's own.
        cache: folder of all caches.
        trust_remote_code: run Python code from the models' folders and repositories.

    Returns:
        The table and the command that trains with the pilot.

    Raises:
        UserError: the run cannot be read, has no checkpoints, or its data no grader or no right answers.
    """
    cfg: Any = read_run_config(run, built=("data",), trust_remote_code=trust_remote_code)
    said_again(cfg, "student", model, run, lambda name: f"--model {name}")
    recipe: TraceRecipe = build(cfg.data.recipe, "data")
    if recipe.grade is None:
        raise UserError(f"the data of {run} have no grader, so there is no accuracy on them: name other data")
    if cfg.model.get("threads"):
        torch.set_num_threads(int(cfg.model.threads))
    sources = {0: find(cfg.model, "student", cfg.model.student_dtype)}
    for checkpoint in checkpoints(run / "checkpoints"):
        sources[step_of(checkpoint)] = _trained(checkpoint / "student", cfg)
    examples = recipe.source()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found: dict[int, Figure] = {}
    number = 0
    for step, source in sources.items():
        asked = ask_some("training", examples, problems, recipe, source, seed)
        if asked is None:
            raise UserError(
                f"none of the {len(examples)} training problems of {run} has a right answer: the data must "
                f"name its field (data.fields.gold=<field>)"
            )
        number = len(asked.problems)
        key = {**writer_key(source), "device": device, **asked.benchmark.settings}
        folder = keyed_folder(cache, "training_answers", key)
        with waited(folder):
            engine = HfEngine(LazyModel(source, device, cache=cache))
            found[step] = evaluate(asked, source, engine, folder=folder, label=f"step {step}").accuracy
    lowest = min(found, key=lambda step: (found[step].value, step))
    pilot = Path(sources[lowest].location)
    write_noted(
        run / "bottleneck.json",
        {
            "problems": number,
            "seed": seed,
            "accuracy": {str(step): figure.json() for step, figure in found.items()},
            "step": lowest,
            "pilot": str(pilot),
        },
    )
    if rrt is not None:
        _write_rrt(sources[0], sources[lowest], _trained(run / "student", cfg), rrt)
    return _in_words(found, lowest, pilot, rrt)


def _trained(folder: Path, cfg: Any) -> ModelSource:
    if not folder.is_dir():
        raise UserError(f"{folder} is missing: the run has not finished, or its student was taken away")
    return find_model(
        str(folder),
        key="run",
        dtype=cfg.model.student_dtype,
        trust_remote_code=cfg.model.trust_remote_code,
    )


def _in_words(found: dict[int, Figure], lowest: int, pilot: Path, rrt: Path | None) -> str:
    lines = ["| step | accuracy on training problems, % | 95 % interval |", "|---|---|---|"]
    for step, figure in found.items():
        mark = "**" if step == lowest else ""
        low, high = 100 * figure.low, 100 * figure.high
        lines.append(f"| {mark}{step}{mark} | {100 * figure.value:.1f} | {low:.1f} to {high:.1f} |")
    if lowest == 0:
        return "\n".join(
            [
                *lines,
                "",
                "The untrained student itself is the lowest: this run has no bottleneck, and T3S would train "
                "every token. Look closer (checkpoint.every=), or take a higher learning rate.",
            ]
        )
    said = ["", f"The bottleneck is step {lowest}: python train.py loss=t3s model.pilot={pilot}"]
    if rrt is not None:
        said.append(f"RRT, the student θ₀ + (θ_final − θ_bottleneck): {rrt}")
    return "\n".join([*lines, *said])


@torch.no_grad()
def _write_rrt(start: ModelSource, bottleneck: ModelSource, final: ModelSource, folder: Path) -> None:
    """Write a student with the weights θ₀ + (θ_final − θ_b), in Hugging Face format."""
    lm = start.load()
    low, last = (dict(one.load().model.named_parameters()) for one in (bottleneck, final))
    for name, parameter in lm.model.named_parameters():
        change = last[name].double() - low[name].double()
        parameter.copy_((parameter.double() + change).to(parameter.dtype))
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    save_student(lm, temporary)
    os.replace(temporary, folder)
