"""`python -m distill.report <sweep>`: compare a sweep's methods with a baseline.

Writes `report.html`, `report.md`, `report.json`, and `figures/` as SVG and PDF to `<sweep>/report`.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distill.config.console import one_sentence_errors, quiet, say_loading
from distill.runs.read import find_runs
from distill.runs.table import arguments_of


def main() -> None:
    parser = arguments_of("report", "A sweep's methods against a baseline, as one page.")
    parser.add_argument("--baseline", default="sft", help="the loss that others are tested against (sft)")
    parser.add_argument(
        "--drift",
        type=int,
        default=0,
        metavar="PROBLEMS",
        help="also measure drift (exposure bias): students and teachers answer this many problems",
    )
    parser.add_argument(
        "--teacher",
        action="append",
        default=[],
        metavar="MODEL",
        help="for --drift: a teacher of the runs that may be loaded (embedded ones always may); repeatable",
    )
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="for --drift: run Python from the models' folders and repositories, if you trust them",
    )
    parser.add_argument(
        "--target",
        action="append",
        default=[],
        metavar="FUNCTION",
        help="for --drift: a function of yours, such as my.module.grade, that the runs' benchmarks name and "
        "that may be called; repeatable",
    )
    parser.add_argument("--examples", type=int, default=3, metavar="N", help="problems to show each way (3)")
    parser.add_argument("--out", type=Path, help="folder of the report; default: report/ in the first folder")
    arguments = parser.parse_args()
    with one_sentence_errors():
        find_runs(
            arguments.folders
        )  # check the folders before importing pandas and Matplotlib, which is slow
        say_loading("report")
        from distill.report.write import write_report

        if arguments.drift:
            quiet()  # models are loaded
        with _less_garbage_collection():
            print(
                write_report(
                    arguments.folders,
                    baseline=arguments.baseline,
                    across=arguments.across,
                    drift=arguments.drift,
                    examples=arguments.examples,
                    out=arguments.out,
                    teachers=arguments.teacher,
                    trust_remote_code=arguments.trust_remote_code,
                    targets=arguments.target,
                )
            )


@contextmanager
def _less_garbage_collection() -> Iterator[None]:
    """Pass over what was imported, and collect less often: it takes an eighth of a report's time else."""
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


if __name__ == "__main__":
    main()
