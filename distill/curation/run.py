"""`python -m distill.curate`: run trace sets through curation steps; each step reports what it drops."""

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from distill.config.instantiate import build
from distill.curation.collect import collect
from distill.curation.step import CurationContext, Outcome, Step
from distill.data.trace_set import Record, count_problems, teacher_of, write_records
from distill.errors import UserError, whole_number
from distill.io.files import hash_arrays, write_atomically
from distill.io.locks import claimed
from distill.models.devices import find_device
from distill.models.language_model import ModelSource
from distill.models.lazy import LazyModel
from distill.runs.folder import write_config
from distill.teacher.verify import Checks
from distill.training.recipe import TraceRecipe


def curate(cfg: DictConfig) -> Path:
    """Run trace sets through the configured curation steps and write the remaining traces as a trace set.

    Returns:
        The folder of the new trace set.

    Raises:
        UserError: the configuration is invalid, or a curation step drops every trace.
    """
    import numpy as np

    folder = Path(cfg.out)
    steps, context, checks = prepared(cfg)
    records = collect(cfg, lambda: _tokens_of(context), print)
    key = {
        "traces": hash_arrays(np.asarray(record["completion_ids"]) for record in records),
        "problems": hash_arrays(
            np.frombuffer(record["problem"].encode(), dtype=np.uint8) for record in records
        ),
        "curation": OmegaConf.to_container(cfg.get("curation") or OmegaConf.create({}), resolve=True),
        "models": {role: model.source.fingerprint for role, model in context.models.items()},
        "seed": cfg.seed,
    }
    with claimed(folder, key):
        try:
            kept, log = run_steps(records, steps, context)
        finally:
            checks.close()
        teachers = Counter[str]()

        def counted() -> Iterator[Record]:
            for record in kept:
                teachers[teacher_of(record)] += 1
                yield record

        write_records(folder / "traces.parquet", counted())
        summary = {
            "steps": log,
            "traces": len(kept),
            "problems": log[-1]["problems"] if log else count_problems(kept),
            "teachers": dict(teachers.most_common()),
        }
        write_atomically(
            folder / "curation.json", lambda path: path.write_text(json.dumps(summary, indent=1))
        )
        write_config(folder, cfg)
    written_by = ", ".join(f"{name} {count}" for name, count in summary["teachers"].items())
    print(f"{len(kept)} traces of {summary['problems']} problems ({written_by})\n{folder / 'traces.parquet'}")
    return folder


def prepared(cfg: DictConfig) -> tuple[dict[str, Step], CurationContext, Checks]:
    """Build the curation steps in order, their context, and the checks, which the caller must close.

    Raises:
        UserError: a value is invalid; the message names it.
    """
    whole_number("seed", cfg.seed, least=0)
    device = find_device(cfg.trainer)
    recipe: TraceRecipe = build(cfg.data.recipe, "data")
    steps = {
        name: build(node, f"curation.{name}")
        for name, node in (cfg.get("curation") or {}).items()
        if node is not None
    }
    checks = Checks.of(cfg.check, recipe.grade)
    return (
        steps,
        CurationContext(_models(cfg, device), recipe, checks.grade, Path(cfg.cache), cfg.seed),
        checks,
    )


def run_steps(
    records: Sequence[Record], steps: dict[str, Step], context: CurationContext
) -> tuple[Sequence[Record], list[dict[str, Any]]]:
    """Run all curation steps; return the remaining records and a log entry per step (JSON values).

    Raises:
        UserError: a step drops every trace.
    """
    for name, step in steps.items():
        _apply(name, step, [], context)  # find invalid options before any step runs for hours
    left, log = records, []
    for name, step in steps.items():
        began = time.perf_counter()
        outcome = _apply(name, step, left, context)
        entry = {
            "step": name,
            "traces": len(left),
            "kept": len(outcome.kept),
            "problems": count_problems(outcome.kept),
            "left_out": outcome.left_out,
            "figures": outcome.figures,
            "seconds": round(time.perf_counter() - began, 2),
        }
        context.say(_in_words(entry))
        log.append(entry)
        if not outcome.kept:
            reasons = ", ".join(f"{count} {reason}" for reason, count in outcome.left_out.items())
            raise UserError(
                f"curation step {name} leaves none of {len(left)} traces ({reasons}): leave the step out, "
                f"change curation.{name}, or take other traces"
            )
        left = outcome.kept
    return left, log


def _apply(name: str, step: Step, records: Sequence[Record], context: CurationContext) -> Outcome:
    try:
        return step(records, context)
    except (ValueError, TypeError) as error:  # invalid options
        raise UserError(f"curation.{name}: {error}") from error


def _in_words(entry: dict[str, Any]) -> str:
    # A step that generates new traces reports counts of the new traces, not of its input.
    counted = entry["kept"] + sum(entry["left_out"].values())
    new = "" if counted == entry["traces"] else " new"
    lines = [
        f"{entry['step']}: {entry['kept']} of {counted}{new} traces kept, of {entry['problems']} problems"
    ]
    lines += [f"  left out, {reason}: {count}" for reason, count in entry["left_out"].items()]
    for name, value in entry["figures"].items():
        text = f"{value:.4g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
        lines.append(f"  {name}: {text if len(text) <= 200 else text[:197] + '...'}")
    return "\n".join(lines)


def _models(cfg: DictConfig, device: str) -> dict[Literal["student", "teacher"], LazyModel]:
    from distill.models.find import find

    found: dict[Literal["student", "teacher"], LazyModel] = {}
    roles: tuple[Literal["student", "teacher"], ...] = ("student", "teacher")
    for role in roles:
        if cfg.model[role]:
            source = find(cfg.model, role, cfg.model[f"{role}_dtype"])
            found[role] = LazyModel(
                source, device, share_prompts=cfg.data.layout == "shared_prompt", cache=Path(cfg.cache)
            )
    return found


def _tokens_of(context: CurationContext) -> ModelSource:
    if "student" not in context.models:
        raise UserError(
            "the data are text, which must be tokenized for a student: set model.student=<hub id, folder or "
            "GGUF file>"
        )
    return context.models["student"].source
