"""`python -m distill.score`: measure the suitability of traces for a student, and rank teachers by it."""

from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from omegaconf import DictConfig

from distill.analysis.suitability import Suitability, suitability, support_of, trace_table
from distill.analysis.suitability_report import write_report
from distill.config.instantiate import build
from distill.curation.choice import quality
from distill.curation.collect import collect, listed, writing
from distill.data.trace import Trace
from distill.data.trace_set import Record, example_of, problem_of, teacher_of, was_graded, write_records
from distill.errors import UserError, whole_number
from distill.io.locks import locked
from distill.io.sequences import take
from distill.models.devices import find_device
from distill.models.language_model import ModelSource
from distill.models.lazy import LazyModel
from distill.objective.objective import Objective
from distill.runs.folder import write_config
from distill.teacher.retokenize import teacher_trace
from distill.teacher.token_stats import TokenStats, check_context, token_stats
from distill.training.recipe import TraceRecipe


def score(cfg: DictConfig) -> Path:
    """Measure the suitability of every teacher's traces for a student; write tables, JSON and plots.

    Returns:
        The folder of the results.

    Raises:
        UserError: the configuration is invalid.
    """
    folder, cache = Path(cfg.out), Path(cfg.cache)
    _check(cfg)
    device = find_device(cfg.trainer)
    recipe: TraceRecipe = build(cfg.data.recipe, "data")
    objective: Objective = build(cfg.loss, "loss")
    student = _student(cfg, device)
    with locked(folder, "out"):
        records = collect(cfg, lambda: student.source, print)
        found: dict[str, Suitability] = {}
        rights = {teacher: _share_right(own) for teacher, own in _by_teacher(records).items()}
        chosen = _by_teacher(choose(_usable(records, cfg.keep), cfg.traces, cfg.seed))
        rows: list[dict[str, Any]] = []
        looked: list[Record] = []
        scored = [record for own in chosen.values() for record in own]
        qualities = dict(zip(map(id, scored), quality([r["completion"] for r in scored]), strict=True))
        for teacher, own in chosen.items():
            own, traces = tokenized_that_fit(own, recipe, student.source)
            scores = token_stats(student, traces, cache=cache, label=f"student reads {teacher}")
            view = None
            if cfg.support != "none":
                view = _teacher_stats(cfg, recipe, student.source, own, traces, device)
            alignments = [trace.teacher_view.alignment if trace.teacher_view else None for trace in traces]
            support = None if view is None else support_of(objective, scores, view, alignments)
            frame = trace_table(own, list(map(problem_of, own)), scores, support, limit=cfg.rank_limit)
            frame["quality"] = [float(qualities[id(record)]) for record in own]
            rows += frame.to_dict("records")
            looked += own
            found[teacher] = suitability(frame, scores, support, right=rights[teacher])
        report = write_report(folder, found, pandas.DataFrame(rows), cfg)
        write_records(folder / "traces.parquet", looked)  # input for curation or training
        write_config(folder, cfg)
        print(report)
        if cfg.smoke_test:
            usable = _by_teacher(_usable(records, cfg.keep))
            from distill.analysis.smoke_test import smoke_test

            print(smoke_test(cfg, folder, {name: list(own) for name, own in usable.items()}))
    return folder


def choose(records: Sequence[Record], count: int | None, seed: int) -> list[Record]:
    """Sample up to `count` traces per teacher, from the problems shared by all teachers, if any."""
    teachers: dict[str, dict[str, array[int]]] = {}  # places by teacher and problem
    for place, record in enumerate(records):
        places = teachers.setdefault(teacher_of(record), {}).setdefault(problem_of(record), array("q"))
        places.append(place)
    first, *others = teachers.values()
    shared = set(first).intersection(*others)
    chosen = array("q")
    for own in teachers.values():
        names = [name for name in own if name in shared] or list(own)
        names.sort()  # the same order for every teacher, so that all get the same problems
        order = np.random.default_rng(seed).permutation(len(names))
        mine = [place for number in order for place in own[names[number]]]
        chosen.extend(mine if count is None else mine[:count])
    return [records[place] for place in chosen]


def _check(cfg: DictConfig) -> None:
    for key, least in (("traces", 1), ("rank_limit", 1), ("resamples", 1), ("seed", 0)):
        if key != "traces" or cfg.traces is not None:
            whole_number(key, cfg[key], least=least)
    if cfg.keep not in ("right", "all"):
        raise UserError(f"keep={cfg.keep!r} is not one of right, all")
    if cfg.support not in ("auto", "none"):
        raise UserError(f"support={cfg.support!r} is not one of auto, none")
    if cfg.smoke_test and (len(listed(cfg)) == 1):
        raise UserError("smoke_test=true compares teachers: name at least two, teachers=[a,b]")


def _student(cfg: DictConfig, device: str) -> LazyModel:
    from distill.models.find import find

    if not cfg.model.student:
        raise UserError("model.student is not set: give a hub id, a folder or a GGUF file")
    source = find(cfg.model, "student", cfg.model.student_dtype)
    return LazyModel(source, device, share_prompts=cfg.data.layout == "shared_prompt", cache=Path(cfg.cache))


def _by_teacher(records: Sequence[Record]) -> dict[str, Sequence[Record]]:
    found: dict[str, array[int]] = {}
    for place, record in enumerate(records):
        found.setdefault(teacher_of(record), array("q")).append(place)
    return {teacher: take(records, places) for teacher, places in found.items()}


def _share_right(records: Sequence[Record]) -> float | None:
    judged = Counter(record["correct"] for record in records if was_graded(record))
    return judged[True] / judged.total() if judged else None


def _usable(records: Sequence[Record], keep: str) -> Sequence[Record]:
    """Keep the traces that training would use."""
    usable = (
        bool((record["completion"] or "").strip())
        and (keep == "all" or (record["finished"] and record["correct"] is not False))
        for record in records
    )
    kept = take(records, np.flatnonzero(np.fromiter(usable, bool, len(records))))
    if len(kept) < len(records):
        print(
            f"{len(kept)} of {len(records)} traces are scored; the others are empty, wrong or unfinished "
            f"(keep=all scores wrong ones too)"
        )
    if not kept:
        raise UserError(f"none of the {len(records)} traces is right and finished: take keep=all, or others")
    return kept


def tokenized_that_fit(
    records: Sequence[Record], recipe: TraceRecipe, student: ModelSource
) -> tuple[list[Record], list[Trace]]:
    """Tokenize the records as for training and keep those that fit into the student's context."""
    traces = recipe.tokenize([example_of(record) for record in records], student)
    fitting = [
        (record, trace)
        for record, trace in zip(records, traces, strict=True)
        if len(trace) <= student.context_length
    ]
    if len(fitting) < len(traces):
        longest = max(traces, key=len)
        if recipe.overlong == "error" or not fitting:
            raise UserError(
                f"trace {longest.example.place} has {len(longest)} tokens, more than the context of "
                f"{student.name} ({student.context_length}): leave such traces out with data.overlong=drop"
            )
        print(f"{len(traces) - len(fitting)} traces are longer than the student's context and left out")
    return [record for record, _ in fitting], [trace for _, trace in fitting]


def _teacher_stats(
    cfg: DictConfig,
    recipe: TraceRecipe,
    student: ModelSource,
    records: Sequence[Record],
    traces: Sequence[Trace],
    device: str,
) -> Sequence[TokenStats] | Sequence[np.ndarray] | None:
    """Token statistics of the traces under their teacher, or only its recorded logprobs; None if neither is
    available.

    If the teacher's prompt or tokenizer differs, sets each trace's `teacher_view`."""
    from distill.models.find import find

    teacher = teacher_of(records[0])
    if spec := writing(cfg).get(teacher, cfg.model.teacher):
        source = find({**cfg.model, "teacher": spec}, "teacher", cfg.model.teacher_dtype)
        frozen = LazyModel(
            source, device, share_prompts=cfg.data.layout == "shared_prompt", cache=Path(cfg.cache)
        )
        retokenizer = recipe.retokenizer(student, frozen.source)
        for trace in traces if retokenizer.needed else ():
            trace.teacher_view = retokenizer.view(trace)
        read = [teacher_trace(trace) for trace in traces]
        check_context(read, frozen.source)
        return token_stats(frozen, read, cache=Path(cfg.cache), label=f"teacher reads {teacher}")
    if all(record["teacher_logprobs"] is not None for record in records) and all(
        record["completion_ids"] == trace.completion_ids.tolist()
        for record, trace in zip(records, traces, strict=True)
    ):
        return [np.asarray(record["teacher_logprobs"], dtype=np.float32) for record in records]
    print(
        f"{teacher}: no teacher's log-probs, so no weights are shown: name a model that gives them, "
        f"model.teacher="
    )
    return None
