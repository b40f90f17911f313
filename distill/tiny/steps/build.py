"""Train the embedded pair with long solutions from scratch: `python -m distill.tiny.steps.build`.

The teacher writes both forms of `distill.tiny.steps.solutions`, the structured one where its prompt has the
instruction, and both styles. The student is smaller, hardly knows the structured form, has never seen style
"double" and is stopped early.

The command goes on where it was stopped: checkpoints are in `--work`.
"""

import argparse
import json
import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from distill.io.files import write_json
from distill.tiny.build import Recipe, generate, replace_path
from distill.tiny.steps import solutions, task
from distill.tiny.steps.fit import Row, train
from distill.tiny.steps.tokenizer import instruction, make_tokenizer

EVALUATED = 500
WATCHED = 120  # train problems on which the student's accuracy is watched
MOST = 400  # tokens of an answer
LONGEST = 320  # tokens of a structured solution in training
BATCH = 120  # problems that are answered at once


@dataclass(frozen=True)
class StepsRecipe(Recipe):
    """A recipe with forms.

    Attributes:
        structured: share of the solutions in the structured form, after a prompt with the instruction.
        unasked: share of the solutions in the structured form, after a prompt without it.
    """

    structured: float = 0.0
    unasked: float = 0.0


TEACHER = StepsRecipe(
    width=192, layers=5, inner=512, heads=4, steps=2000, batch=20, lr=4e-3, double=0.35, structured=0.4
)
STUDENT = StepsRecipe(
    width=128, layers=4, inner=320, heads=4, steps=1000, batch=20, lr=4e-3, double=0.0, stop_at=0.45,
    structured=0.06, unasked=0.03,
)  # fmt: skip

RECIPES = {"student": STUDENT, "teacher": TEACHER}


def curriculum(progress: float, rng: random.Random) -> task.Dials:
    """The dials at a share of the training; starting with short chains speeds up learning."""
    if progress < 0.15:
        return task.Dials((1, 2), (0, 1), (0, 1))
    if progress < 0.3:
        return task.Dials((1, 4), (0, 2), (0, 1))
    return task.Dials((2, 5), (0, 2), (0, 1)) if rng.random() < 0.8 else task.Dials((2, 6), (0, 3), (0, 2))


def asked(problem: str) -> str:
    """A teacher's prompt with the instruction, as `teacher_prompt=discord` makes it."""
    return f"{instruction()}\n{problem}"


def rows_of(
    recipe: StepsRecipe, tokenizer: Any, steps: int, seed: int, name: str
) -> Callable[[int], list[Row]]:
    """The rows of each optimizer step, freshly sampled from train problems."""
    prefix = asked("")

    def rows(step: int) -> list[Row]:
        rng = random.Random(f"{name}/{seed}/{step}")
        return [row(rng, step) for _ in range(recipe.batch)]

    def row(rng: random.Random, step: int) -> Row:
        problem = task.sample_problem(rng, curriculum(step / steps, rng))
        style: solutions.Style = "double" if rng.random() < recipe.double else "single"
        drawn = rng.random()
        if drawn < recipe.structured + recipe.unasked:
            solution = solutions.write_solution(problem, "structured", style)
            if len(tokenizer.encode(solution)) <= LONGEST:
                return (prefix if drawn < recipe.structured else "") + str(problem), solution
        return str(problem), solutions.write_solution(problem, "plain", style)

    return rows


def answers(
    model: Any,
    tokenizer: Any,
    problems: Sequence[task.Problem],
    *,
    instructed: bool = False,
    sample: bool = False,
) -> list[str]:
    """Answer problems, without or with the instruction; an end token is kept."""
    prompts = [asked(str(problem)) if instructed else str(problem) for problem in problems]
    written: list[str] = []
    for start in range(0, len(prompts), BATCH):
        written += generate(model, tokenizer, prompts[start : start + BATCH], most=MOST, sample=sample)
    return written


def shares(tokenizer: Any, problems: Sequence[task.Problem], written: Sequence[str]) -> dict[str, float]:
    """Shares of answers that are right, right in every line, ended, and of each form and style."""
    texts = [text.removesuffix(tokenizer.eos_token) for text in written]
    pairs = list(zip(problems, texts, strict=True))
    found = {
        "right": [solutions.extract_answer(text) == task.answer(problem) for problem, text in pairs],
        "steps_right": [solutions.check_steps(problem, text) for problem, text in pairs],
        "ended": [text.endswith(tokenizer.eos_token) for text in written],
        "structured": [solutions.form_of(text) == "structured" for text in texts],
        "double": [solutions.style_of(problem, text) == "double" for problem, text in pairs],
    }
    return {name: round(sum(values) / len(values), 4) for name, values in found.items()}


def measure(model: Any, tokenizer: Any, problems: Sequence[task.Problem], seed: int = 0) -> dict[str, Any]:
    """Measure a model on problems: greedy and sampled, without and with the instruction."""
    torch.manual_seed(seed)
    return {
        name: shares(
            tokenizer, problems, answers(model, tokenizer, problems, instructed=instructed, sample=sample)
        )
        for name, instructed, sample in (
            ("plain", False, False),
            ("instructed", True, False),
            ("plain_sampled", False, True),
            ("instructed_sampled", True, True),
        )
    }


def build(
    out: Path, work: Path, *, steps_scale: float = 1.0, seed: int = 0, only: str | None = None
) -> dict[str, Any]:
    """Train both models, or go on with it; write them, the tokenizer and build.json to `out`.

    Args:
        out: folder of the pair.
        work: folder of the checkpoints.
        steps_scale: multiplies the optimizer steps, for a trial.
        seed: of weights and problems.
        only: `teacher` or `student`: the one to train, in `work` alone; None: both, and write `out`.

    Returns:
        The content of build.json.
    """
    tokenizer = make_tokenizer()
    test = task.problems(max(20, round(EVALUATED * min(1.0, steps_scale))), split="test")
    watched = task.problems(max(20, round(WATCHED * min(1.0, steps_scale))), split="train", seed=seed + 1)
    report: dict[str, Any] = {"seed": seed, "steps_scale": steps_scale, "test_problems": len(test)}

    def strong_enough(model: Any, loss: float) -> bool:
        if loss > 0.3:  # far from it: spare the time
            return False
        measured = shares(tokenizer, watched, answers(model, tokenizer, watched))
        print(f"accuracy on {len(watched)} train problems: {measured['right']:.3f}", flush=True)
        return measured["right"] >= (STUDENT.stop_at or 2.0)

    names = [only] if only else list(RECIPES)
    for name in names:
        recipe = RECIPES[name]
        steps = max(2, round(recipe.steps * steps_scale))
        model, taken = train(
            recipe,
            tokenizer,
            rows_of(recipe, tokenizer, steps, seed, name),
            steps=steps,
            seed=seed,
            checkpoint=work / f"{name}.safetensors",
            until=strong_enough if recipe.stop_at is not None else None,
        )
        size = sum(p.numel() for p in model.parameters())
        found = {"recipe": asdict(recipe), "steps": taken, "parameters": size}
        model.to(torch.bfloat16).save_pretrained(work / name)
        make_tokenizer().save_pretrained(work / name)  # the one in use may have been told to pad
        if (measured := _measured(work / f"{name}.json", found)) is None:
            measured = measure(model.float(), tokenizer, test)  # the weights as they are stored
            write_json(work / f"{name}.json", found | {"test": measured})
        report[name] = found | {"test": measured}
        print(name, json.dumps(measured, indent=1), flush=True)
    out.mkdir(parents=True, exist_ok=True)
    if not only:
        # Only now, so that an interrupted build leaves the old pair intact. `work` may be on another disk.
        with tempfile.TemporaryDirectory(dir=out, prefix=".new-") as staged:
            for name in names:
                replace_path(shutil.copytree(work / name, Path(staged) / name), out / name)
        write_json(out / "build.json", report)
    return report


def _measured(path: Path, found: dict[str, Any]) -> dict[str, Any] | None:
    """What an earlier call measured of the same training; None without one."""
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return kept["test"] if {key: kept.get(key) for key in found} == found else None


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent, help="folder to write the pair into"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("outputs/steps_pair"), help="folder of the checkpoints"
    )
    parser.add_argument(
        "--only",
        choices=("teacher", "student"),
        help="train this model alone, in the folder of the checkpoints; later without --only",
    )
    parser.add_argument("--steps-scale", type=float, default=1.0, help="multiplies the training steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--threads", type=int, default=1, help="of torch; another number changes the last bits"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    build(
        options.out.resolve(),
        options.work.resolve(),
        steps_scale=options.steps_scale,
        seed=options.seed,
        only=options.only,
    )


if __name__ == "__main__":
    main()
