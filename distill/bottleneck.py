"""`python -m distill.bottleneck <run>`: the checkpoint with the lowest accuracy on the training problems.

It is T3S's pilot (2601.10348): name it with `model.pilot` in a run with `loss=t3s`. `--rrt` writes the
paper's control, a student with the weights θ₀ + (θ_final − θ_bottleneck).
"""

import argparse
from pathlib import Path

from distill.config.console import one_sentence_errors, quiet


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m distill.bottleneck",
        description="The checkpoint of a run with the lowest accuracy on its training problems, T3S's pilot.",
    )
    parser.add_argument("run", type=Path, help="folder of a run with several checkpoints (checkpoint.keep=)")
    parser.add_argument("--problems", type=int, default=200, help="training problems to answer (200)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of problems (0)")
    parser.add_argument(
        "--rrt", type=Path, metavar="FOLDER", help="also write a student θ₀ + (θ_final − θ_bottleneck) there"
    )
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME",
        help="the run's model.student, said again: models that only a run's file names are not loaded",
    )
    parser.add_argument(
        "--cache", type=Path, default=Path("outputs/cache"), help="of answers (outputs/cache)"
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="run the models' own Python code")
    arguments = parser.parse_args()
    with one_sentence_errors():
        _check(arguments)
        from distill.analysis.bottleneck import find_bottleneck

        quiet()
        print(find_bottleneck(**vars(arguments)))


def _check(arguments: argparse.Namespace) -> None:
    """Report user mistakes before torch is imported."""
    from distill.errors import UserError, whole_number
    from distill.runs.folder import checkpoints

    run = arguments.run
    whole_number("--problems", arguments.problems, least=1)
    whole_number("--seed", arguments.seed, least=0)
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} holds no run: there is no config.yaml")
    kept = checkpoints(run / "checkpoints")
    if len(kept) < 2:
        raise UserError(
            f"{run} keeps {len(kept)} checkpoint{'' if len(kept) == 1 else 's'}, and the lowest accuracy "
            f"lies somewhere along the run: train it again with checkpoint.every=20 checkpoint.keep=1000"
        )
    if arguments.rrt is not None and arguments.rrt.exists():
        raise UserError(f"--rrt={arguments.rrt} is there already: name a new folder")


if __name__ == "__main__":
    main()
