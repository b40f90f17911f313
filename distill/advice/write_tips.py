"""`python -m distill.tips`: contrast right and wrong traces into short tips, and test whether they help."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, open_dict

from distill.advice.conditions import (
    LENGTH,
    NONE,
    TIPS,
    check_spells,
    neutral_text,
    tips_text,
    token_count,
    with_text,
)
from distill.advice.contrast import Contrasted, contrast, find_skills
from distill.advice.inputs import check_tips, models_of, trace_sets
from distill.advice.pairs import Material, choose_material
from distill.advice.prompts import SHOWN
from distill.advice.refusals import Refusals
from distill.advice.tip_list import condense
from distill.advice.tips_report import Compared, TipsReport, write_report
from distill.advice.writer import Writer
from distill.analysis.evaluate_model import folder_name
from distill.config.instantiate import build
from distill.data.trace import Example
from distill.data.trace_set import iter_records
from distill.errors import UserError
from distill.evaluation.benchmark import Benchmark, benchmarks_of
from distill.evaluation.result import Score
from distill.evaluation.run import Asked, ask, evaluate
from distill.generation.engine import Engine
from distill.io.locks import claimed, locked
from distill.models.devices import find_device
from distill.models.find import check_template_variables, find
from distill.models.language_model import ModelSource
from distill.models.lazy import LazyModel
from distill.runs.folder import write_config
from distill.teacher.completions import engine_key


@dataclass(frozen=True)
class _Model:
    """A model with the engine that runs it, not loaded yet."""

    source: ModelSource
    lazy: LazyModel
    engine: Engine

    def release(self) -> None:
        self.lazy.release()
        if close := getattr(self.engine, "close", None):
            close()


def write_tips(cfg: DictConfig) -> Path:
    """Write tips from traces, choose on held-out problems whether to keep them, and test them.

    Returns:
        The folder of the results.

    Raises:
        UserError: the configuration is invalid, or the traces hold nothing to contrast.
    """
    check_tips(cfg)
    names = models_of(cfg)
    cfg.out = str(cfg.out or Path("outputs") / "tips" / folder_name(names["solver"]))
    folder, own = Path(cfg.out), cfg.tips
    if cfg.model.threads:
        torch.set_num_threads(cfg.model.threads)
    [benchmark] = benchmarks_of(cfg.benchmark)
    test = benchmark.problems()
    _check_graded(benchmark, test)
    material = choose_material(
        list(chain.from_iterable(iter_records(path) for path in trace_sets(cfg))),
        test,
        problems=own.problems,
        held_out=own.held_out,
        max_tokens=own.max_tokens,
        seed=cfg.seed,
    )
    writer, solver = _model(cfg, names, "writer", "teacher"), _model(cfg, names, "solver", "student")
    check_template_variables([writer.source, solver.source])
    check_spells(solver.source)
    with locked(folder, "out"):
        write_config(folder, cfg)
        skills, written = _written(cfg, writer, solver, material, test)
        writer.release()
        report = TipsReport(
            names={
                "writer": getattr(writer.engine, "settings", {}).get("served_as", writer.source.name),
                "solver": solver.source.name,
                "benchmark": benchmark.name,
            },
            counts=material.counts,
            skills=skills,
            written=written,
            texts=_texts(written, solver.source),
            system=bool(solver.source.tokenizer.chat_template),
        )
        if written[TIPS].tips:
            texts = {name: report.texts[name] for name in (NONE, TIPS)}
            report.held_out = _solved(cfg, "held out", texts, benchmark, solver, material.held_out)
            report.chosen = report.held_out.change(TIPS).value > 0
            if own.test == "always" or (own.test == "chosen" and report.chosen):
                report.test = _solved(cfg, "test", report.texts, benchmark, solver, test)
        solver.release()
        print(write_report(folder, report))
    return folder


def _check_graded(benchmark: Benchmark, test: Sequence[Example]) -> None:
    if any(one.gold is None for one in test):
        raise UserError(
            f"benchmark={benchmark.name} has problems without a right answer, and tips are written from "
            f"traces that are graded by one: take a benchmark such as gsm8k or math500"
        )
    if any(one.messages or one.system for one in test):
        raise UserError(
            f"benchmark={benchmark.name} has prompts of its own in its problems, where tips have no place: "
            f"take a benchmark such as gsm8k or math500"
        )


def _model(cfg: DictConfig, names: Mapping[str, Any], key: str, role: str) -> _Model:
    """The model that `writer` or `solver` names, found but not loaded."""
    model = cfg.model.copy()
    with open_dict(model):
        model[role] = names[key]
    try:
        source = find(model, role, model[f"{role}_dtype"])
    except UserError as error:  # under the name that the user gave it
        raise UserError(str(error).replace(f"model.{role}", key)) from error
    lazy = LazyModel(source, find_device(cfg.trainer), cache=Path(cfg.cache))
    node = "writer_engine" if key == "writer" else "engine"
    try:
        return _Model(source, lazy, build(cfg[node], node)(lazy))
    except (ValueError, TypeError) as error:  # invalid arguments
        said = str(error)
        raise UserError(said.replace("engine.", f"{node}.", 1) if key == "writer" else said) from error


def _written(
    cfg: DictConfig, writer: _Model, solver: _Model, material: Material, test: Sequence[Example]
) -> tuple[Mapping[str, int], dict[str, Contrasted]]:
    """The sizes of the skills, and the tips and both controls that the writer writes, each as many."""
    own = cfg.tips
    pen = Writer(
        writer.source,
        writer.engine,
        build(cfg.sampling, "sampling"),
        Path(cfg.out) / "replies.jsonl",
        cfg.seed,
    )
    every = [*material.pairs, *material.held_out, *test]
    refusals = Refusals(
        ((one.id, one.problem) for one in every),
        (one.gold for one in every if one.gold is not None),
        words=own.words,
        special=solver.source.tokenizer.all_special_tokens,
    )
    by_skill = find_skills(pen, material.pairs, own.skills, own.batch)
    found: dict[str, Contrasted] = {}
    most = own.most
    for shown in SHOWN:
        one = contrast(pen, by_skill, refusals, shown=shown, most=own.most, batch=own.batch, words=own.words)
        one = one.cut(condense(one.tips, most))
        most = most if found else len(one.tips)
        found[TIPS if shown == "contrast" else shown] = one
        if not most:  # no tips, so no controls either
            break
    return {skill: len(pairs) for skill, pairs in by_skill.items()}, found


def _texts(written: Mapping[str, Contrasted], solver: ModelSource) -> dict[str, str | None]:
    """What stands before the problems, by condition."""
    texts: dict[str, str | None] = {NONE: None}
    for name, one in written.items():
        if one.tips:
            texts[name] = tips_text(one.tips)
        if name == TIPS and one.tips:
            count = token_count(solver.tokenizer, str(texts[TIPS]))
            texts[LENGTH] = neutral_text(solver.tokenizer, count)
    return texts


def _solved(
    cfg: DictConfig,
    what: str,
    texts: Mapping[str, str | None],
    benchmark: Benchmark,
    solver: _Model,
    problems: Sequence[Example],
) -> Compared:
    """Ask the same problems with the same seeds under each condition."""
    asked = {
        name: ask(with_text(benchmark, text, solver.source), solver.source, problems)
        for name, text in texts.items()
    }
    return Compared(
        scores={name: _score(one, solver, Path(cfg.out), f"{what}, {name}") for name, one in asked.items()},
        prompt_tokens={
            name: sum(len(request.prompt_ids) for request in one.requests) / len(one.requests)
            for name, one in asked.items()
        },
        options={"resamples": cfg.resamples, "seed": cfg.seed},
    )


def _score(asked: Asked, solver: _Model, out: Path, label: str) -> Score:
    """Answers lie in a folder named for all that they depend on but the problems, which name themselves."""
    key = {**engine_key(solver.source, solver.engine), **asked.benchmark.settings}
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    folder = out / "answers" / name
    try:
        with claimed(folder, key, what="answers"):
            return evaluate(asked, solver.source, solver.engine, folder=folder, label=label)
    finally:
        with suppress(OSError):  # not empty
            folder.parent.rmdir()
