"""`python -m distill.similarity`: how alike a student's answers are to its teacher's."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf, open_dict

from distill.analysis.evaluate_model import folder_name
from distill.analysis.score_traces import tokenized_that_fit
from distill.benchmarks.grading.answers import same_answer
from distill.config.instantiate import build
from distill.curation.collect import collect
from distill.curation.listed import is_traces
from distill.data.trace_set import Record, by_problem, read_records, write_records
from distill.errors import UserError
from distill.io.locks import locked
from distill.io.progress import progress_bar
from distill.likeness.compared import Pair, answer_of, compare, pairs_of
from distill.likeness.judged import Agreement, judge_pairs
from distill.likeness.likelihoods import Readers, likelihoods
from distill.likeness.scale import Measured, place
from distill.likeness.sides import side
from distill.likeness.similarity_report import Similarity, write_similarity
from distill.models.devices import find_device
from distill.models.find import find
from distill.models.language_model import ModelSource
from distill.models.lazy import LazyModel
from distill.models.path import PACKAGE_PREFIX, find_path
from distill.runs.folder import write_config
from distill.teacher.verify import Checks
from distill.teacher.write_traces import generate
from distill.training.recipe import TraceRecipe

_FEWEST = 2  # problems: with one there is no other problem


@dataclass(frozen=True)
class _Names:
    """What is compared, as the configuration names it: stored traces, or models that write now."""

    teacher: Any
    student: Any
    before: Any


def measure_similarity(cfg: DictConfig) -> Path:
    """Compare a student's answers with its teacher's and write the figures.

    Returns:
        The folder of the results.

    Raises:
        UserError: the configuration is invalid, or the sides have too few problems in common.
    """
    names = _Names(
        side(cfg, "teacher", "teacher"), *(side(cfg, key, "student") for key in ("student", "before"))
    )
    _check_named(names)
    cfg.out = str(cfg.out or Path("outputs") / "similarity" / _folder_name(names.student))
    folder, recipe = Path(cfg.out), build(cfg.data.recipe, "data")
    checks = Checks.of(cfg.check, recipe.grade)
    if cfg.model.threads:
        torch.set_num_threads(cfg.model.threads)
    with locked(folder, "out"):
        judge = build(cfg.judge, "judge")(folder / "judge.jsonl") if cfg.judge else None
        by_teacher = _of_teacher(cfg, names)
        written = {key: _of_student(cfg, key, entry, by_teacher) for key, entry in _students(names)}
        problems = [name for name in by_teacher if all(name in own for own in written.values())]
        if len(problems) < _FEWEST:
            raise UserError(
                f"teacher and student have {len(problems)} problems in common, and {_FEWEST} are needed: "
                f"name traces of the same problems, or a model, which writes for those of the teacher"
            )
        if len(problems) < len(by_teacher):
            print(f"{len(problems)} of the teacher's {len(by_teacher)} problems are the student's too")
        sides = [{name: own[name] for name in problems} for own in (by_teacher, *written.values())]
        pairs, measured, notes = _texts(cfg, checks, sides)
        agreements: list[Agreement] = []
        if judge is not None:
            graded, agreements, unread = judge_pairs(judge, pairs, resamples=cfg.resamples, seed=cfg.seed)
            measured += graded
            notes += [f"{unread} of the judge's replies could not be read."] if unread else []
        likely, more = _likelihoods(cfg, names, recipe, [by_teacher[name][0] for name in problems])
        found = Similarity(
            teacher=by_teacher[problems[0]][0]["teacher"] or "unknown",
            student=str(names.student),
            before=None if names.before is None else str(names.before),
            problems=len(problems),
            placed=[place(one, resamples=cfg.resamples, seed=cfg.seed) for one in (*measured, *likely)],
            agreements=agreements,
            notes=[*notes, *more],
        )
        print(write_similarity(folder, found))
        write_config(folder, cfg)
    return folder


def _folder_name(student: Any) -> str:
    """The student's name for a folder; of a package's file that of its place."""
    path = find_path(student, "student") if str(student).startswith(PACKAGE_PREFIX) else None
    return folder_name(student if path is None else str(path))


def _check_named(names: _Names) -> None:
    for key, role in (("teacher", "a trace set"), ("student", "a run, a model or a trace set")):
        if getattr(names, key) is None:
            raise UserError(f"{key}= is not set: name {role}, or a pair, as in model=tiny")


def _students(names: _Names) -> list[tuple[str, Any]]:
    return [("student", names.student), *([] if names.before is None else [("before", names.before)])]


def _of_teacher(cfg: DictConfig, names: _Names) -> dict[str, list[Record]]:
    """The teacher's traces by problem: `problems` of them, chosen at random, `samples` of each."""
    own = cfg.copy()
    teacher = names.teacher
    if not isinstance(teacher, str):  # the first of several places where it is
        teacher = find(cfg.model, "teacher", cfg.model.teacher_dtype).name
    with open_dict(own):
        own.teachers = [teacher]
        own.traces = cfg.problems  # a model writes for no more
        own.out = str(Path(cfg.out) / "teacher")
    records = collect(own, lambda: _source(cfg, names.student), print)
    groups = by_problem(record for record in records if record["completion"].strip())
    order = list(groups)
    if cfg.problems is not None and len(order) > cfg.problems:
        chosen = np.random.default_rng(cfg.seed).permutation(len(order))[: cfg.problems]
        order = [order[number] for number in sorted(chosen.tolist())]
    return {name: groups[name][: cfg.samples] for name in order}


def _of_student(
    cfg: DictConfig, key: str, entry: Any, by_teacher: dict[str, list[Record]]
) -> dict[str, list[Record]]:
    """A student's traces by problem; a model writes them now, for the teacher's problems."""
    own = cfg.copy()
    if isinstance(entry, str) and is_traces(entry):
        with open_dict(own):
            own.teachers = [entry]
        records = collect(own, lambda: _source(cfg, None), print)
    else:
        asked = Path(cfg.out) / "problems" / "traces.parquet"
        write_records(asked, (own[0] | {"id": own[0]["problem_id"]} for own in by_teacher.values()))
        reader = {"_target_": "distill.data.readers.read_examples", "_partial_": True, "path": str(asked)}
        with open_dict(own):
            own.data.recipe.source = OmegaConf.create(reader)
            own.data.recipe.teacher_prompt = None  # the student's own prompt
            own.model.teacher = entry
            for name in ("dtype", "revision", "chat_template_kwargs"):
                student = "chat_template_kwargs" if name == "chat_template_kwargs" else f"student_{name}"
                own.model[f"teacher_{name}"] = own.model[student]
            own.out = str(Path(cfg.out) / key)
        records = read_records(
            generate(own, writer="student" if key == "student" else "student before training")
        )
    return {name: found[: cfg.samples] for name, found in by_problem(records).items()}


def _source(cfg: DictConfig, student: Any) -> ModelSource:
    """The model whose tokenizer reads plain files."""
    model = cfg.model.copy()
    with open_dict(model):
        if student is not None and not (isinstance(student, str) and is_traces(student)):
            model.student = student
    if not model.student:
        raise UserError("a data file needs a tokenizer: name the student too, model.student=")
    return find(model, "student", model.student_dtype)


def _texts(
    cfg: DictConfig, checks: Checks, sides: Sequence[Mapping[str, Sequence[Record]]]
) -> tuple[Mapping[str, list[list[Pair]]], list[Measured], list[str]]:
    """The pairs of answers, the measures of their texts, and sentences about them.

    Args:
        cfg: the configuration.
        checks: with the grader.
        sides: by problem, the traces of the teacher, the student, and the student before training.
    """
    separator = cfg.data.step_separator
    try:
        answers = [
            [[answer_of(one, checks.grade, separator) for one in own] for own in side.values()]
            for side in sides
        ]
        pairs = pairs_of(answers[0], answers[1], answers[2] if len(answers) > 2 else None, cfg.seed)
        total = len(pairs) * len(answers[0])
        with progress_bar(total=total, description="comparing", unit="problem") as bar:
            measured = compare(pairs, _same(getattr(checks.grade, "same", None)), bar.update)
    finally:
        checks.close()
    notes = []
    if all(len(own) < 2 for own in answers[0]):
        notes.append(
            "The teacher has one answer to each problem, so there is no ceiling and no scale: let it write "
            "two (samples=2)."
        )
    if wrong := sum(any(one.wrong for one in own) for own in answers[0]):
        notes.append(f"The teacher is wrong on {wrong} problems, those of the row *same wrong answer*.")
    return pairs, measured, notes


def _same(grader: Callable[[str, str], tuple[bool, str]] | None) -> Callable[[str, str], bool]:
    return lambda one, other: same_answer(one, other, grader)


def _likelihoods(
    cfg: DictConfig, names: _Names, recipe: TraceRecipe, records: Sequence[Record]
) -> tuple[list[Measured], list[str]]:
    """The student's reading of the teacher's traces, where the student is a model."""
    if isinstance(names.student, str) and is_traces(names.student):
        return [], ["The student is named as traces, so there are no likelihoods: name the model for them."]
    model_of = partial(LazyModel, device=find_device(cfg.trainer), cache=Path(cfg.cache))
    students = []
    for key, entry in _students(names):
        if isinstance(entry, str) and is_traces(entry):
            continue
        model = cfg.model.copy()
        with open_dict(model):
            model.student = entry
        students.append((key, model_of(find(model, "student", cfg.model.student_dtype))))
    student = students[0][1]
    before = students[1][1] if len(students) > 1 else None
    if before is not None and before.source.vocabulary != student.source.vocabulary:
        raise UserError(
            f"before={names.before} has another tokenizer than the student: name what it was before"
        )
    teacher = model_of(find(cfg.model, "teacher", cfg.model.teacher_dtype)) if cfg.model.teacher else None
    _, traces = tokenized_that_fit(records, recipe, student.source)
    if len(traces) < _FEWEST:
        return [], ["Fewer than two traces fit into the student's context, so there are no likelihoods."]
    view = None if teacher is None else recipe.retokenizer(student.source, teacher.source)
    return likelihoods(Readers(student, before, teacher), traces, view, cache=Path(cfg.cache), seed=cfg.seed)
