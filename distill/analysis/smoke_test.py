"""Smoke test of teachers (DED, 2508.09883, step 1): train the student briefly on each teacher's traces and
compare the students. The model with the best benchmark results need not be the best teacher."""

import hashlib
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import IO, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from scipy.stats import t

import distill
from distill.config.words import quoted
from distill.data.trace_set import Record, by_problem, write_records
from distill.errors import UserError
from distill.io.files import write_atomically
from distill.io.progress import progress_bar


def smoke_test(cfg: DictConfig, folder: Path, teachers: Mapping[str, Sequence[Record]]) -> str:
    """Train the student on each teacher's traces of the same problems, once per seed, and rank the teachers.

    Every run is a separate process with its folder in `smoke/`. Finished runs are reused, interrupted ones
    are resumed.

    Args:
        cfg: the configuration of `distill.score`.
        folder: output folder.
        teachers: all traces by teacher.

    Returns:
        The report to print.

    Raises:
        UserError: no benchmark is configured, there is nothing to compare, or a run fails.
    """
    benchmark = HydraConfig.get().runtime.choices.get("benchmark")
    if benchmark in (None, "none"):
        raise UserError("smoke_test=true needs a benchmark to ask: name one, such as benchmark=gsm8k")
    if len(teachers) < 2:
        raise UserError("smoke_test=true compares teachers, and these traces are of one: teachers=[a,b]")
    sets = _sets(folder / "smoke", teachers)
    jobs = [(teacher, seed) for seed in cfg.smoke.seeds for teacher in sets]
    runs: dict[str, list[dict[str, Any]]] = {teacher: [] for teacher in sets}
    with progress_bar(total=len(jobs), description="smoke test", unit="run") as bar:
        for teacher, seed in jobs:
            runs[teacher].append(_run(cfg, folder / "smoke", teacher, sets[teacher], seed))
            bar.update(1)
    rows = sorted((_row(teacher, own) for teacher, own in runs.items()), key=lambda row: -row["mean"])
    write_atomically(folder / "smoke.json", lambda path: path.write_text(json.dumps(rows, indent=1)))
    text = _markdown(rows)
    write_atomically(folder / "smoke.md", lambda path: path.write_text(text + "\n", encoding="utf-8"))
    return "\n" + text


def _sets(folder: Path, teachers: Mapping[str, Sequence[Record]]) -> dict[str, Path]:
    """Write a trace set per teacher, restricted to the problems that all teachers answered."""
    problems = [by_problem(records) for records in teachers.values()]
    shared = set(problems[0]).intersection(*problems[1:])
    if not shared:
        raise UserError(
            "the teachers share no problem, so their students could not be compared: let them answer the same"
        )
    sets = {}
    for (teacher, records), own in zip(teachers.items(), problems, strict=True):
        kept = {id(record) for name in shared for record in own[name]}
        sets[teacher] = folder / "sets" / _slug(teacher)
        write_records(sets[teacher] / "traces.parquet", [record for record in records if id(record) in kept])
    return sets


def _prompts(cfg: DictConfig) -> list[str]:
    """Overrides that give a run the prompts of this configuration."""
    return [
        f"data.{whose}.{part}={quoted(text)}"
        for whose in ("student_prompt", "teacher_prompt")
        for part, text in cfg.data[whose].items()
        if text is not None
    ]


def _run(cfg: DictConfig, folder: Path, teacher: str, traces: Path, seed: int) -> dict[str, Any]:
    """Train, or reuse, one run and return its summary."""
    words = [
        *_words(cfg),
        f"seed={seed}",
        "data=traces",
        f"data.path={quoted(str(traces.resolve()))}",
        *_prompts(cfg),
        f"data.keep={cfg.keep}",
        f"data.overlong={cfg.data.recipe.overlong}",
        f"data.max_length={'null' if cfg.data.recipe.max_length is None else cfg.data.recipe.max_length}",
        f"data.batch_size={cfg.data.batch_size}",
        f"max_tokens={cfg.smoke.max_tokens}",
        f"loss={cfg.smoke.loss}",
        "logger=csv",
        f"cache={quoted(str(Path(cfg.cache).resolve()))}",
        *cfg.smoke.overrides,
    ]
    content = (traces / "traces.parquet").read_bytes()
    key = hashlib.sha256("\0".join(words).encode() + content).hexdigest()[:8]
    run = folder / "runs" / f"{_slug(teacher)}_seed{seed}_{key}"
    if not (run / "summary.json").is_file():
        if list(run.glob("checkpoints/step-*")):
            words.append(f"ckpt_path={quoted(str(run.resolve()))}")
        log = folder / "logs" / f"{run.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as stream:
            code = _train([*words, f"dir={quoted(str(run.resolve()))}"], stream)
        if code == 130:
            raise KeyboardInterrupt
        if code != 0 or not (run / "summary.json").is_file():
            lines = log.read_text(errors="replace").strip().splitlines()
            reason = next(
                (line for line in reversed(lines) if line.startswith("error:")), lines[-1] if lines else ""
            )
            raise UserError(f"the smoke test of {teacher}, seed {seed}, failed ({reason}): see {log}")
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    if len(summary["benchmarks"]) != 1:
        raise UserError(
            f"{run} asked {len(summary['benchmarks'])} benchmarks: name one, such as benchmark=gsm8k"
        )
    return summary | {"folder": str(run)}


def _train(words: Sequence[str], log: IO[str]) -> int:
    """Train in a child process with the same package and the user's YAML files; return its exit status."""
    sources = HydraConfig.get().runtime.config_sources
    own = [f"--config-dir={source.path}" for source in sources if source.provider == "command-line"]
    places = [str(Path(distill.__file__).resolve().parents[1]), os.environ.get("PYTHONPATH")]
    return subprocess.run(
        [sys.executable, "-m", "distill.training", *own, *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))},
        stdout=log,
        stderr=subprocess.STDOUT,
        check=False,
    ).returncode


def _words(cfg: DictConfig) -> list[str]:
    """The chosen config groups and the overrides within them, as arguments for train.py."""
    choices = HydraConfig.get().runtime.choices
    words = [f"{group}={choices[group]}" for group in ("model", "trainer", "benchmark")]
    task = HydraConfig.get().overrides.task
    return words + [word for word in task if re.match(r"(model|trainer|benchmark)\.", word)]


def _row(teacher: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    stages = [next(iter(run["benchmarks"].values())) for run in runs]
    found = [own["after"]["figures"]["accuracy"] for own in stages]
    after = [accuracy["value"] for accuracy in found]
    mean = fmean(after)
    if len(after) > 1:
        half = float(t.ppf(0.975, len(after) - 1)) * stdev(after) / math.sqrt(len(after))
        interval, how = [mean - half, mean + half], "t over seeds"
    else:
        interval, how = [found[0]["low"], found[0]["high"]], "over problems, one seed"
    return {
        "teacher": teacher,
        "mean": mean,
        "interval_95": interval,
        "interval": how,
        "after": after,
        "before": stages[0]["before"]["figures"]["accuracy"]["value"],
        "tokens": fmean(run["tokens"] for run in runs),
        "folders": [run["folder"] for run in runs],
    }


def _markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| teacher | student before, % | after, a seed each, % | mean, % | 95 % interval | trained tokens |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        after = ", ".join(f"{100 * value:.1f}" for value in row["after"])
        low, high = (100 * bound for bound in row["interval_95"])
        lines.append(
            f"| {row['teacher']} | {100 * row['before']:.1f} | {after} | {100 * row['mean']:.1f} | "
            f"{low:.1f} to {high:.1f} ({row['interval']}) | {row['tokens']:,.0f} |"
        )
    first = rows[0]
    chance = [row["teacher"] for row in rows[1:] if row["interval_95"][1] >= first["interval_95"][0]]
    said = f"Smoke test: the student is best after {first['teacher']}"
    said += ", though worse than before training" if first["mean"] < first["before"] else ""
    said += f"; {', '.join(chance)} may be as good: the intervals overlap." if chance else "."
    return "\n".join([*lines, "", said])


def _slug(teacher: str) -> str:
    """A teacher's name as the name of a folder, which no other teacher has."""
    slug = re.sub(r"[^\w.-]+", "_", teacher).strip("_.")
    # Some file systems do not tell upper from lower case.
    return slug if slug == teacher.lower() else f"{slug}-{hashlib.sha256(teacher.encode()).hexdigest()[:8]}"
