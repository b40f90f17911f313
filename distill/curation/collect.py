"""Trace sets as scoring and curation take them: of one writer or several, from whatever file, as records."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from omegaconf import DictConfig, OmegaConf, open_dict

from distill.config.instantiate import build
from distill.curation.listed import TEACHER, check_there, completion_field, is_model, listed
from distill.data.trace import Example
from distill.data.trace_set import Record, read_records
from distill.errors import UserError
from distill.models.language_model import ModelSource
from distill.teacher.verify import Checks


def collect(
    cfg: DictConfig, tokens_of: Callable[[], ModelSource], say: Callable[[str], None]
) -> list[Record]:
    """Every record of the sets that a configuration names, each with the name of who wrote it.

    `teachers` lists them: trace sets and data files, models that write now, or, where
    `data.fields.completion` has `{teacher}` in it, what stands for it. Without a list, the data alone, or
    what `model.teacher` writes where the data have their completions from a teacher.

    Args:
        cfg: with `teachers`, `data`, `check`, and what a teacher that writes needs.
        tokens_of: whose tokens the completions of plain files are made of.
        say: told what was read.

    Raises:
        UserError: a set cannot be read; names it.
    """
    records: list[Record] = []
    entries: list[str | None] = [None] if cfg.teachers is None else [*listed(cfg)]
    if cfg.teachers is None and cfg.data.completions == "teacher":
        if not cfg.model.teacher:
            raise UserError("data.completions=teacher, but there is no teacher: set model.teacher=<model>")
        entries = [str(cfg.model.teacher)]
    if not entries:
        raise UserError(
            "teachers=[] names nobody: name trace sets or models, or leave it out for the data alone"
        )
    if doubled := [str(entry) for entry, count in Counter(entries).items() if count > 1]:
        raise UserError(f"teachers names {doubled[0]} twice")
    names = Counter(_short(entry) for entry in entries if entry is not None)
    for entry in entries:
        found = _read(cfg, entry, tokens_of, say)
        if entry is not None and (len(entries) > 1 or TEACHER in completion_field(cfg)):
            name = _short(entry) if names[_short(entry)] == 1 else str(entry)
            found = [record | {"teacher": name} for record in found]
        records += found
    if not records:
        raise UserError("there is no trace: check teachers, data.path, data.limit")
    repeated = {name for name, count in Counter(record["id"] for record in records).items() if count > 1}
    return [
        record | {"id": f"{record['teacher']}:{record['id']}"} if record["id"] in repeated else record
        for record in records
    ]


def writing(cfg: DictConfig) -> dict[str, str]:
    """Those of `teachers` that are models, by the names that their traces carry: their own, or the short one
    beside others'."""
    models = [entry for entry in listed(cfg) if is_model(cfg, entry)]
    return {name: entry for entry in models for name in (entry, _short(entry))}


def _read(
    cfg: DictConfig, entry: str | None, tokens_of: Callable[[], ModelSource], say: Callable[[str], None]
) -> list[Record]:
    if entry is not None and is_model(cfg, entry):
        return _written(cfg, entry)
    data = cfg.data.copy()
    path = data.get("path")
    with open_dict(data):
        if entry is not None and TEACHER in completion_field(cfg):
            data.fields.completion = data.fields.completion.replace(TEACHER, entry)
        elif entry is not None:
            data.path = path = entry
            check_there(entry)
            if "path" not in cfg.data and _set_file(Path(entry).expanduser()) is None:
                raise UserError(
                    f"teachers: {entry} is no trace set, and data={cfg_name(cfg)} says nothing of what its "
                    f"fields hold: take data=traces, with data.prompt as you train"
                )
    if path is not None and (file := _set_file(Path(str(path)).expanduser())) is not None:
        records = read_records(file)
        say(f"{path}: {len(records)} traces")
        # data.limit bounds the data; of a set that is named beside it, all is meant.
        return records[: data.limit] if entry is None and data.get("limit") is not None else records
    return _imported(cfg, data, entry, tokens_of, say)


def _imported(
    cfg: DictConfig,
    data: DictConfig,
    entry: str | None,
    tokens_of: Callable[[], ModelSource],
    say: Callable[[str], None],
) -> list[Record]:
    """Problems and completions of any other file as records, and judged."""
    root = OmegaConf.create({"data": OmegaConf.to_container(data, resolve=False)})
    recipe = build(root.data.recipe, "data")
    examples: list[Example] = recipe.source()
    if not examples:
        raise UserError(f"{entry or 'the data'} holds no problem: check data.path, data.limit")
    source = tokens_of()
    traces = recipe.tokenize(examples, source)
    vocabulary = source.vocabulary
    writer = entry or Path(str(data.get("path") or data.get("hub") or cfg_name(cfg))).name
    turns = [example.messages or ({"role": "user", "content": example.problem},) for example in examples]
    records = [
        {
            "id": f"{example.id}#0",
            "problem": example.problem,
            "messages": [dict(turn) for turn in messages],
            "completion": example.completion,
            "gold": example.gold,
            "answer": None,
            "correct": None,
            "reason": "not judged",
            "pass_rate": None,
            "finished": True,
            "prompt_ids": np.asarray(trace.prompt_ids).tolist(),
            "completion_ids": np.asarray(trace.completion_ids).tolist(),
            "ids_from": "text",
            "teacher_logprobs": None,
            "problem_id": example.id,
            "sample": 0,
            "teacher": writer,
            "teacher_revision": None,
            "teacher_dtype": None,
            "engine": "import",
            "weight": 1.0,
            "learn_from": 0,
            "tokenizer": vocabulary,
            "template": None,
            "sampling": None,
        }
        for example, messages, trace in zip(examples, turns, traces, strict=True)
    ]
    if cfg.check.answer != "none" and any(example.gold is not None for example in examples):
        # An id may stand for several records of a file: each is judged by itself.
        named = {f"{number}": replace(example) for number, example in enumerate(examples)}
        places = [record | {"problem_id": str(number)} for number, record in enumerate(records)]
        Checks.of(cfg.check, recipe.grade).judge(places, named)
        for record, judged in zip(records, places, strict=True):
            record.update({name: judged[name] for name in ("answer", "correct", "reason", "pass_rate")})
    right = sum(record["correct"] is True for record in records)
    judged_ones = sum(record["correct"] is not None for record in records)
    say(
        f"{writer}: {len(records)} traces"
        + (f", {right} of {judged_ones} judged right" if judged_ones else "")
    )
    return records


def _written(cfg: DictConfig, model: str) -> list[Record]:
    """The traces that a model writes now, or wrote before into the same folder."""
    from distill.teacher.write_traces import generate

    own = cfg.copy()
    with open_dict(own):
        own.model.teacher = model
        own.out = str(Path(cfg.out) / "written" / re.sub(r"[^\w.-]+", "_", model).strip("_"))
        if cfg.get("traces") is not None and (own.data.get("limit") is None or own.data.limit > cfg.traces):
            own.data.limit = cfg.traces
    return read_records(generate(own))


def cfg_name(cfg: DictConfig) -> str:
    """What the data group is called."""
    from hydra.core.hydra_config import HydraConfig

    return str(HydraConfig.get().runtime.choices.get("data", "data")) if HydraConfig.initialized() else "data"


def _set_file(path: Path) -> Path | None:
    """The Parquet file of a trace set; None where the path is something else."""
    import pyarrow.parquet

    file = path / "traces.parquet" if path.is_dir() else path
    if not file.is_file() or not file.name.endswith(".parquet"):
        return None
    try:
        columns = pyarrow.parquet.read_schema(file).names
    except (pyarrow.lib.ArrowInvalid, OSError):  # type: ignore[attr-defined]
        return file  # reading it says what is wrong
    return file if {"completion_ids", "prompt_ids", "teacher"} <= set(columns) else None


def _short(entry: Sequence[str] | str) -> str:
    """A teacher's name in tables: a folder's or file's own, a hub id's whole."""
    text = str(entry)
    path = Path(text).expanduser()
    return path.name if path.exists() else text
