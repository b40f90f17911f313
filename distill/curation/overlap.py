"""Drop traces that overlap with benchmark problems (decontamination) or with earlier traces (duplicates)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from distill.config.instantiate import build
from distill.config.paths import CONFIG
from distill.curation.step import CurationContext, Outcome, Record, problem_places, share, whole_number
from distill.data.passages import Problem, index_passages, passages
from distill.data.readers import read_records
from distill.data.trace_set import example_of
from distill.errors import UserError, first_line
from distill.io.sequences import take

# Possible names of the problem field in a file's records.
_FIELDS = ("problem", "question", "prompt", "Problem", "Question")
_EXAMPLES = 3  # overlaps shown per benchmark in the figures


def decontaminate(
    records: Sequence[Record],
    context: CurationContext,
    *,
    against: str | Sequence[str] = "all",
    n: int = 13,
    paths: Mapping[str, str | None] | None = None,
) -> Outcome:
    """Drop all traces of problems that share a word n-gram with a benchmark problem (13-grams: GPT-3,
    2005.14165, appendix C). A problem with fewer than `n` words is compared as a whole.

    A problem with changed numbers is still found if `n` consecutive words are unchanged; a short problem is
    missed if other words surround it. In `left_out` a trace that overlaps with several benchmarks counts
    under the first only; the figures count it under each and show a few overlaps.

    Args:
        records: traces.
        context: unused.
        against: `all` benchmarks of `conf/benchmark/`, or a list of benchmark names and files (JSON Lines,
            Parquet, CSV) with a field `problem`, `question` or `prompt`.
        n: n-gram size in words. Case, whitespace and punctuation are ignored (`passages`).
        paths: local files to read benchmarks from instead of the hub, by benchmark name.

    Raises:
        UserError: a name is neither a benchmark nor a file, or a benchmark cannot be loaded; none is skipped.
    """
    whole_number("curation.decontaminate.n", n, least=1)
    problems = _problems_of(against, paths or {})
    indices = {name: index_passages(found, n) for name, found in problems.items()}
    figures: dict[str, dict[str, Any]] = {
        name: {"problems": len(found), "left_out": 0, "examples": []} for name, found in problems.items()
    }
    left_out, gone = Counter[str](), np.zeros(len(records), bool)
    for same in problem_places(records):
        first = records[same[0]]
        own = [one for turn in example_of(first).asked for one in passages(turn, n)]
        hits = {}
        for name, index in indices.items():
            if (shared := next((one for one in own if one in index), None)) is not None:
                hits[name] = shared
                figures[name]["left_out"] += len(same)
                if len(figures[name]["examples"]) < _EXAMPLES:
                    example = {"record": first["id"], "problem": index[shared], "shared": shared}
                    figures[name]["examples"].append(example)
        if hits:
            left_out[f"overlaps with {next(iter(hits))}"] += len(same)
            gone[same] = True
    return Outcome(take(records, np.flatnonzero(~gone)), dict(left_out), figures)


def deduplicate(records: Sequence[Record], context: CurationContext, *, near: float | None = None) -> Outcome:
    """Drop repeated completions of a problem, ignoring whitespace; the first one is kept.

    Args:
        records: traces.
        context: unused.
        near: also drop traces with at least this Jaccard similarity of word 5-grams to a kept trace of the
            same problem (a completion of fewer words is a single n-gram). null: exact duplicates only.

    Raises:
        UserError: `near` is not in (0, 1].
    """
    if near is not None:
        share("curation.deduplicate.near", near)
        if near == 0:
            raise UserError(
                "curation.deduplicate.near=0 calls any two traces alike: take a number above 0, or null for "
                "off"
            )
    kept, left_out = np.zeros(len(records), bool), Counter[str]()
    for same in problem_places(records):
        texts, shingles = set[str](), list[set[tuple[str, ...]]]()
        for place in same:
            words = records[place]["completion"].split()
            runs = _runs(words, 5) if near is not None else set()
            if (text := " ".join(words)) in texts:
                left_out["same as an earlier trace"] += 1
            elif near is not None and any(_jaccard(runs, other) >= near for other in shingles):
                left_out[f"as near as {near:g} to an earlier trace"] += 1
            else:
                texts.add(text)
                shingles.append(runs)
                kept[place] = True
    return Outcome(take(records, np.flatnonzero(kept)), dict(left_out))


def _problems_of(
    against: str | Sequence[str], paths: Mapping[str, str | None]
) -> dict[str, Sequence[Problem]]:
    """Load the problems of each benchmark and file, by name."""
    if not against:
        raise UserError("curation.decontaminate.against is empty: name benchmarks or files, or take all")
    wanted = [against] if isinstance(against, str) else list(against)
    hydra = GlobalHydra.instance()
    # Inside a command Hydra is initialized already and also knows the user's --config-dir.
    with nullcontext() if hydra.is_initialized() else initialize_config_dir(str(CONFIG), version_base="1.3"):
        names = hydra.config_loader().get_group_options("benchmark")
        if unknown := sorted({name for name, path in paths.items() if path} - set(names)):
            raise UserError(
                f"curation.decontaminate.paths.{unknown[0]}: there is no such benchmark ({', '.join(names)})"
            )
        asked = names if "all" in wanted else [name for name in names if name in wanted]
        nodes: dict[str, Any] = {}
        for name in asked:  # a suite expands to its benchmarks, `none` to nothing
            cfg = compose("train", [f"benchmark='{name}'"]).benchmark
            own = {key: node for key, node in cfg.items() if OmegaConf.is_dict(node) and "_target_" in node}
            # A suite may choose among a benchmark's problems; the benchmark's own file has them all.
            nodes = nodes | own if name in own else own | nodes
            if name in wanted and own:
                place = wanted.index(name)
                wanted[place : place + 1] = own
    if "all" in wanted:
        wanted = [*nodes, *(one for one in wanted if one != "all")]
    found: dict[str, Sequence[Problem]] = {}
    missing: dict[str, UserError] = {}
    for one in dict.fromkeys(wanted):
        try:
            found[one] = _problems_of_one(one, nodes, names, paths)
        except _Missing as error:
            missing[one] = error
    if missing:
        first, error = next(iter(missing.items()))
        # Hydra needs a plus to add a key that is not in the config.
        key = f"{'' if first in paths else '+'}curation.decontaminate.paths.{first}=<file>"
        alike = f", and so for {', '.join(list(missing)[1:])}" if len(missing) > 1 else ""
        raise UserError(
            f"curation.decontaminate: the problems of benchmark {first} are not to be had ({error}): set "
            f"{key}{alike}, or leave {first} out of curation.decontaminate.against"
        ) from error
    for one in found:
        if not found[one]:
            raise UserError(f"curation.decontaminate.against: {one} holds no problem: leave it out")
    return found


class _Missing(UserError):
    """A benchmark's problems can be loaded neither from the hub nor from a given file."""


def _problems_of_one(
    name: str, nodes: Mapping[str, Any], names: Sequence[str], paths: Mapping[str, str | None]
) -> list[Problem]:
    if name not in nodes:
        return [] if name in names else _of_file(name, names)
    node, path = nodes[name], paths.get(name)
    key = f"curation.decontaminate.paths.{name}"
    if path is not None and "path" not in node:
        raise UserError(f"{key}={path}: benchmark {name} is made and not read: leave it null")
    source = build(node.source, f"benchmark={name}")
    try:
        examples = source(path=path or node.get("path"), limit=node.get("limit"))
    except UserError as error:
        if path is not None:
            raise UserError(f"{key}={path}: {error}") from error
        raise _Missing(first_line(error.__cause__ or error)) from error
    return [(example.id, example.problem) for example in examples]


def _of_file(path: str, benchmarks: Sequence[str]) -> list[Problem]:
    if not Path(path).expanduser().exists():
        raise UserError(
            f"curation.decontaminate.against: {path!r} is neither a benchmark ({', '.join(benchmarks)}) nor "
            f"a file"
        )
    found = []
    for where, record in read_records(path=path, hub=None):
        field = next((name for name in _FIELDS if isinstance(record.get(name), str)), None)
        if field is None:
            raise UserError(
                f"curation.decontaminate.against: {where}: none of the fields {', '.join(_FIELDS)} holds a "
                f"problem's text (the record has: {', '.join(map(str, record))})"
            )
        found.append((where.rpartition(", ")[2], record[field]))
    return found


def _runs(words: Sequence[str], size: int) -> set[tuple[str, ...]]:
    return {tuple(words[start : start + size]) for start in range(max(1, len(words) - size + 1))}


def _jaccard(one: set[tuple[str, ...]], other: set[tuple[str, ...]]) -> float:
    return len(one & other) / len(one | other)
