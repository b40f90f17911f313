"""What `python -m distill.tips` is given, checked. Imports no torch."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from distill.config.instantiate import plain
from distill.config.kinds import shown
from distill.curation.listed import check_there
from distill.data.set_files import set_files
from distill.errors import UserError
from distill.evaluation.named import stands_for

TEST = ("chosen", "always", "never")
_ROLES = {"writer": "teacher", "solver": "student"}


def check_tips(cfg: DictConfig) -> None:
    """Check the choices that are no numbers.

    Raises:
        UserError: an unknown `tips.test`, or not exactly one benchmark, whose problems have final answers.
    """
    if cfg.tips.test not in TEST:
        raise UserError(f"tips.test={shown(plain(cfg.tips.test))} is not one of {', '.join(TEST)}")
    named = [name for name, node in cfg.benchmark.items() if OmegaConf.is_dict(node) and "_target_" in node]
    if len(named) != 1:
        said = f"{len(named)} are named ({', '.join(map(str, named))})" if named else "none is named"
        raise UserError(
            f"benchmark: {said}, and tips are tested on one, whose prompt and grader the held-out problems "
            f"get too: benchmark=gsm8k"
        )
    if cfg.benchmark[named[0]].get("votes") is False:
        raise UserError(
            f"benchmark={named[0]} has no final answers, by which held-out problems of traces are graded: "
            f"take one such as gsm8k or math500"
        )


def trace_sets(cfg: DictConfig) -> list[Path]:
    """The folders or files that `trace_sets` names.

    Raises:
        UserError: none is named, or one is not there or no trace set.
    """
    value = plain(cfg.trace_sets)
    entries = value if isinstance(value, list) else [] if value is None else [value]
    if not entries:
        raise UserError(
            "trace_sets= is not set: name a trace set of distill.generate with several graded traces of each "
            "problem"
        )
    found = []
    for entry in entries:
        if not isinstance(entry, str):
            raise UserError(
                f"trace_sets: {shown(entry)} is not the name of a trace set: list names, as in [a,b]"
            )
        check_there(entry, "trace_sets")
        path = Path(entry).expanduser()
        if not set_files(path) and path.suffix != ".parquet":
            raise UserError(
                f"trace_sets: {entry} is no trace set: grade it first, as in python -m distill.curate "
                f"data=traces data.path={entry} curation=[]"
            )
        found.append(path)
    return found


def models_of(cfg: DictConfig) -> dict[str, Any]:
    """What `writer` and `solver` stand for.

    Raises:
        UserError: one is not named.
    """
    found = {}
    for key, role in _ROLES.items():
        entry = plain(cfg[key])
        if entry is None:
            raise UserError(f"{key}= is not set: name a model, or a pair that has one, as in model=qwen1.5b")
        if not isinstance(entry, str | list):
            raise UserError(
                f"{key}={shown(entry)} is no name: give a hub id, a folder or a name of conf/model"
            )
        found[key] = stands_for(entry, key, role)[0]
    return found
