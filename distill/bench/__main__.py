"""`python -m distill.bench [NAME ...]`: run speed and memory comparisons and write their results."""

import argparse
import difflib
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from distill.bench.comparison import Comparison
from distill.bench.comparisons import COMPARISONS
from distill.bench.inputs import SHAPES, default_folder, read_lengths, read_problems
from distill.bench.measurement import Setting
from distill.bench.meter import busy_processors
from distill.bench.report import write
from distill.bench.running import run
from distill.config.console import one_sentence_errors
from distill.errors import UserError

_SHAPES = {"cpu": ["135m"], "cuda": ["0.5b", "1.5b"]}
_BUSY = 0.25  # processors that other programs may use
# Rows, completion tokens, warm-up steps and timed steps; on a CPU a measurement takes about a minute. The
# second and third step are still slower than those that follow, by up to a fifth.
_SIZES = {"cpu": (4, 384, 3, 1), "cuda": (8, 896, 3, 10)}


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    if options.list:
        for one in COMPARISONS.values():
            names = ", ".join(contestant.name for contestant in one.contestants)
            device = f" (--device {one.device})" if one.device else ""
            print(f"{one.name:18} {one.title}{device}: {names}")
        return
    chosen = [_find(name) for name in options.names] or [
        one for one in COMPARISONS.values() if one.device in (None, options.device)
    ]
    for one in chosen:
        if one.device not in (None, options.device):
            raise UserError(f"{one.name} is measured on a GPU alone: --device {one.device}")
    if not options.gradient_checkpointing:
        chosen = [
            _some(one, [who.name for who in one.contestants if not who.keeps_activations]) for one in chosen
        ]
    if options.only:
        chosen = _only(chosen, options.only)
    if options.rounds < 1:
        raise UserError(f"--rounds {options.rounds} must be at least 1")
    _check_machine(options)
    shapes = options.shape or _SHAPES[options.device]
    for shape in shapes:
        for one in chosen:
            result = run(one, _setting(options, shape), options.rounds, options.out)
            name = one.name if len(shapes) == 1 else f"{one.name}_{shape}"
            if options.gradient_checkpointing and one.models:
                name += "_checkpointed"
            print(f"\n{write(result, options.out, name)}\n")
    print(f"written to {options.out}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m distill.bench",
        description="Compare speed and memory of this package's steps with other packages. Every measurement "
        "is a separate process; contestants take turns. Measurements are saved, and an interrupted bench "
        "resumes.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="comparisons; all where none is named")
    parser.add_argument("--list", action="store_true", help="list the comparisons and exit")
    parser.add_argument(
        "--only",
        action="append",
        metavar="CONTESTANT",
        help="measure only this contestant; repeatable (--only ours --only trl); --list shows the names",
    )
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each contestant, in turn")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--shape",
        action="append",
        choices=SHAPES,
        help="of the models, more than once for several; by default 135m on a CPU, 0.5b and 1.5b on a GPU",
    )
    parser.add_argument("--rows", type=int, help="traces a batch (4 on a CPU, 8 on a GPU)")
    parser.add_argument("--completion", type=int, help="completion tokens of each (384, 896)")
    parser.add_argument("--steps", type=int, help="timed steps a measurement (1, 10)")
    parser.add_argument(
        "--gradient-checkpointing",
        action="store_true",
        help="contestants compute layers anew in the backward pass, as TRL does unless told otherwise",
    )
    parser.add_argument("--head-tokens", type=int, default=1024, help="tokens of the head alone")
    parser.add_argument("--batching-traces", type=int, default=32, help="traces an epoch of `batching`")
    parser.add_argument(
        "--traces",
        type=Path,
        help="JSON Lines file whose traces' lengths `batching` takes, in place of GSM8K's",
    )
    parser.add_argument("--new-tokens", type=int, default=48, help="tokens that `generation` writes a prompt")
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="dtype of the weights in `generation`",
    )
    parser.add_argument(
        "--model", help="hub id, folder or GGUF file that `generation` takes, in place of random weights"
    )
    parser.add_argument(
        "--prompts",
        type=Path,
        help="JSON Lines file whose first problems `generation` takes, in place of random tokens in the "
        "lengths of GSM8K's; needs --model",
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/bench"), help="folder of the results")
    parser.add_argument("--force", action="store_true", help="measure on a busy machine too")
    return parser


def _setting(options: argparse.Namespace, shape: str) -> Setting:
    rows, completion, warmup, steps = _SIZES[options.device]
    return Setting(
        device=options.device,
        shape=shape,
        rows=options.rows or rows,
        completion=options.completion or completion,
        warmup=warmup,
        steps=options.steps or steps,
        head_tokens=options.head_tokens,
        traces=options.batching_traces,
        lengths=None if options.traces is None else str(options.traces.resolve()),
        new_tokens=options.new_tokens,
        precision=options.precision,
        model=options.model,
        prompts=None if options.prompts is None else str(options.prompts.resolve()),
        gradient_checkpointing=options.gradient_checkpointing,
        inputs=str(default_folder().resolve()),
    )


def _find(name: str) -> Comparison:
    if name not in COMPARISONS:
        near = difflib.get_close_matches(name, COMPARISONS, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"there is no comparison {name!r}{hint} (--list says what there is)")
    return COMPARISONS[name]


def _only(comparisons: list[Comparison], names: list[str]) -> list[Comparison]:
    """Restrict the comparisons to the named contestants and to the goals that concern only these.

    Raises:
        UserError: a comparison lacks one of the named contestants.
    """
    for one in comparisons:
        there = [contestant.name for contestant in one.contestants]
        if wrong := [name for name in names if name not in there]:
            raise UserError(f"--only {wrong[0]}: {one.name} sets {', '.join(there)} side by side")
    return [_some(one, names) for one in comparisons]


def _some(comparison: Comparison, names: Collection[str]) -> Comparison:
    return replace(
        comparison,
        contestants=tuple(one for one in comparison.contestants if one.name in names),
        goals=tuple(goal for goal in comparison.goals if {goal.of, goal.over} <= {*names, None}),
    )


def _check_machine(options: argparse.Namespace) -> None:
    """Check that measurements are possible and meaningful on this machine.

    Raises:
        UserError: the device does not exist, the machine is busy, or a file does not exist.
    """
    if options.traces is not None:
        read_lengths(options.traces)
    if options.new_tokens < 1:
        raise UserError(f"--new-tokens {options.new_tokens} must be at least 1")
    if options.prompts is not None and options.model is None:
        raise UserError(
            f"--prompts {options.prompts} is text, which the bench's random model does not read: name one "
            f"that does with --model"
        )
    if options.prompts is not None:
        read_problems(options.prompts, 1)
    if options.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UserError("--device cuda, but torch sees no GPU here: take --device cpu")
    busy = busy_processors()
    if busy > _BUSY and not options.force:
        raise UserError(
            f"other programs keep {busy:.1f} processors busy, which would be measured too: wait for them, or "
            f"measure nevertheless with --force"
        )


if __name__ == "__main__":
    with one_sentence_errors():
        main()
