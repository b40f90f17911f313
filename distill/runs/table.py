"""Markdown tables of finished runs, one row per method, for `python -m distill.results`.

Runs that differ only in their seed form one row. Rows that differ only in the method form one table. Another
benchmark, data set, model, batch size or length makes another table, whose heading names the difference.
"""

import argparse
import functools
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from distill.errors import UserError
from distill.runs.folder import REFERENCES
from distill.runs.read import Run, accuracies, find_runs, read_run
from distill.statistics import mean_over_runs

# Keys without an effect on results: folders, names, logging and speed; and references to other keys.
# What lrs, lr_from and taus choose is in optimizer.lr and loss.
_BESIDE_THE_POINT = re.compile(
    r"(seed|name|dir|runs|cache|ckpt_path|lrs|lr_from|taus|histogram_every|checkpoint\.(every|keep|minutes|of_finished)|logger|data\.(layout|token_budget)|model\.(threads|gradient_checkpointing|compile)"
    r"|trainer\.(log_every_n_steps|optimizer_in_backward|timeout_minutes)"
    rf"|{'|'.join(map(re.escape, REFERENCES))})(\.|$)"
)


def has_effect(key: str) -> bool:
    """Whether a key of a run's configuration may change its results."""
    return not _BESIDE_THE_POINT.match(key)


_METHOD = re.compile(r"(loss|optimizer|lr_scheduler|model\.reference|model\.pilot)(\.|$)")
_SHOWN_KEYS, _SHOWN_CHARACTERS = 8, 40


@dataclass(frozen=True)
class Row:
    """Runs that differ only in their seed.

    Attributes:
        loss: name of the loss preset.
        changes: further settings that differ from other rows of the table, as `key=value`.
        runs: one per seed, in order.
    """

    loss: str
    changes: list[str]
    runs: list[Run]

    def accuracies(self, stage: str) -> list[float]:
        """Mean accuracy over benchmarks of each run, at the stage `before` or `after`; empty without
        benchmarks."""
        return accuracies(self.runs, stage)

    @property
    def mean(self) -> float | None:
        """Mean accuracy after training."""
        after = self.accuracies("after")
        return fmean(after) if after else None

    @property
    def half_width(self) -> float | None:
        """Half width of the mean's 95 % interval (Student's t over seeds); None for a single seed."""
        after = self.accuracies("after")
        if len(after) < 2:
            return None
        found = mean_over_runs(after)
        return found.high - found.value

    @property
    def tokens(self) -> float:
        """Completion tokens trained on, mean per run."""
        return fmean(run.summary["tokens"] for run in self.runs)

    @property
    def by_student(self) -> float:
        """Share of these tokens in the student's rollouts."""
        return fmean(run.summary["rollout_tokens"] for run in self.runs) / self.tokens if self.tokens else 0.0

    @property
    def seconds(self) -> float:
        """Wall-clock time of training, mean per run."""
        return fmean(run.summary["seconds"]["training"] for run in self.runs)


@dataclass(frozen=True)
class ResultsTable:
    """Rows that differ only in the method, for one table.

    Attributes:
        differs: settings that differ from the other tables, as `key=value`; empty if there is only one table.
        rows: by mean accuracy, best first.
        repeated: older runs with a row's seed, which are not used.
    """

    differs: list[str]
    rows: list[Row]
    repeated: list[Run]


def read_runs(folders: Iterable[Path]) -> tuple[list[Run], dict[Path, str]]:
    """Read the finished runs in these folders or below them; for other runs, the folder and the reason.

    Raises:
        UserError: a folder does not exist or has no run.
    """
    finished, others = [], {}
    for folder in find_runs(folders):
        run = read_run(folder)
        if isinstance(run, Run):
            known = {key: value for key, value in run.config.items() if not _BESIDE_THE_POINT.match(key)}
            finished.append(replace(run, config=known))
        else:
            others[folder] = run
    return finished, others


def group_runs(runs: Sequence[Run], across: Iterable[str] = ()) -> list[ResultsTable]:
    """Group runs into tables in which everything but the method is the same.

    Args:
        runs: finished runs.
        across: keys that count as part of the method, such as `data.path` to compare trace sets.
    """
    besides = set(across)
    if unknown := [key for key in besides if not any(key in run.config for run in runs)]:
        raise UserError(
            f"across {unknown[0]}: no run has this key; every run's config.yaml shows what there is"
        )
    # Keys that are derived from such a key have the same values in all runs.
    if besides:
        keys = {key for run in runs for key in run.config}
        said = {key: tuple(_text(run.config.get(key)) for run in runs) for key in keys}
        wanted = {said[key] for key in besides}
        besides |= {key for key in keys if said[key] in wanted}

    @functools.cache  # asked of every key of every run
    def of_method(key: str) -> bool:
        return bool(_METHOD.match(key)) or key in besides

    settings = _split(runs, lambda key: not of_method(key))
    differing = _differing(settings, lambda key: not of_method(key))
    tables = []
    for members in settings:
        groups = _split(members, lambda key: True)
        common = _differing(groups, lambda key: of_method(key) and not key.startswith("loss."))
        same_preset: dict[str, list[list[Run]]] = defaultdict(list)
        for group in groups:
            same_preset[group[0].loss].append(group)
        own_keys = {
            loss: _differing(own, lambda key: key.startswith("loss.")) for loss, own in same_preset.items()
        }
        rows, repeated = [], []
        for group in groups:
            own = own_keys[group[0].loss]
            newest: dict[int, Run] = {}
            for run in sorted(group, key=lambda run: (run.folder / "summary.json").stat().st_mtime):
                if run.seed in newest:
                    repeated.append(newest[run.seed])
                newest[run.seed] = run
            # Leave out null values: for example, only one method has a pilot.
            config = group[0].config
            changes = [f"{key}={_text(config[key])}" for key in common + own if config.get(key) is not None]
            rows.append(Row(group[0].loss, changes, [newest[seed] for seed in sorted(newest)]))
        rows.sort(key=lambda row: (-1.0 if row.mean is None else row.mean, row.loss), reverse=True)
        differs = [f"{key}={_text(members[0].config.get(key))}" for key in differing]
        tables.append(ResultsTable(differs, rows, repeated))
    return tables


def report(folders: Iterable[Path], across: Iterable[str] = ()) -> str:
    """All tables in Markdown, and below them the runs that are in no table."""
    return report_of(*read_runs(folders), across)


def report_of(runs: Sequence[Run], others: Mapping[Path, str], across: Iterable[str] = ()) -> str:
    """As `report`, of runs that are read.

    Args:
        runs: finished runs.
        others: reasons for the folders that hold none.
        across: config keys that count as part of the method.
    """
    parts = [_markdown(table) for table in group_runs(runs, across)] or ["No run is finished."]
    if others:
        lines = [f"- `{folder}`: {reason}" for folder, reason in sorted(others.items())]
        parts.append("\n".join(["Not in a table:", "", *lines]))
    return "\n\n".join(parts)


def _split(runs: Sequence[Run], wanted: Callable[[str], bool]) -> list[list[Run]]:
    """Group runs that have the same values of all wanted keys (and the same loss, if `loss` is wanted)."""
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        # A key that an older run's configuration lacks counts as null.
        same = {key: value for key, value in run.config.items() if value is not None and wanted(key)}
        loss = run.loss if wanted("loss") else ""
        groups[json.dumps([loss, same], sort_keys=True, default=str)].append(run)
    return list(groups.values())


def _differing(groups: Sequence[Sequence[Run]], wanted: Callable[[str], bool]) -> list[str]:
    """The wanted keys whose values differ between groups, those with the fewest parts first.

    Of several keys with the same values, only those with the fewest parts: `data.limit`, and not the
    `data.recipe.source.count` derived from it.
    """
    configs = [group[0].config for group in groups]
    keys = sorted({key for config in configs for key in config if wanted(key)})
    found: dict[str, tuple[int, list[str]]] = {}
    for key in sorted(keys, key=lambda key: (key.count("."), key)):
        values = [_text(config.get(key)) for config in configs]
        depth, same = found.setdefault(json.dumps(values), (key.count("."), []))
        if len(set(values)) > 1 and key.count(".") == depth:
            same.append(key)
    return [key for _, same in found.values() for key in same]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _markdown(table: ResultsTable) -> str:
    rows = table.rows
    seeds = [[run.seed for run in row.runs] for row in rows]
    alike = all(own == seeds[0] for own in seeds)
    by_seed = f"after: seeds {', '.join(map(str, seeds[0]))}" if alike else "after, by seed"
    lines = [
        f"| loss | before, % | {by_seed} | mean ± 95 % (t over seeds) "
        "| trained tokens | of them by the student | training, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        before, after = row.accuracies("before"), list(map(_percent, row.accuracies("after")))
        if not alike and after:
            after = [f"{run.seed}: {accuracy}" for run, accuracy in zip(row.runs, after, strict=True)]
        cells = [
            " ".join([f"`{row.loss}`", ", ".join(map(_short, row.changes))]).strip(),
            "–".join(dict.fromkeys([_percent(min(before)), _percent(max(before))])) if before else "",
            ", ".join(after),
            "" if row.mean is None else _percent(row.mean),
            _count(row.tokens),
            f"{row.by_student:.0%}".replace("%", " %"),
            f"{row.seconds:.0f}" if row.seconds >= 10 else f"{row.seconds:.1f}",
        ]
        if row.half_width is not None:
            cells[3] += f" ± {100 * row.half_width:.1f}"
        lines.append("| " + " | ".join(cell.replace("|", "\\|") or "–" for cell in cells) + " |")
    asked = next((run.summary["benchmarks"] for row in rows for run in row.runs), {})
    said = [f"{name}, {own['after']['problems']} problems" for name, own in asked.items()]
    heading = [("mean of " if len(said) > 1 else "") + "; ".join(said) if said else "No benchmark"]
    if table.differs:
        keys = [_short(word) for word in table.differs[:_SHOWN_KEYS]]
        more = len(table.differs) - len(keys)
        heading += ["with", ", ".join([*keys, *([f"{more} keys more"] if more else [])])]
    notes = []
    if not alike:
        notes.append("The rows' seeds differ.")
    for run in table.repeated:
        notes.append(f"A newer run of `{run.loss}` with seed {run.seed} counts in place of `{run.folder}`.")
    return "\n\n".join([" ".join(heading) + ":", "\n".join(lines), *notes])


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _count(tokens: float) -> str:
    return f"{tokens / 1000:,.0f} k" if tokens >= 10_000 else f"{tokens:,.0f}"


def _short(word: str) -> str:
    word = " ".join(word.split())
    return word if len(word) <= _SHOWN_CHARACTERS else f"{word[: _SHOWN_CHARACTERS - 1]}…"


def arguments_of(command: str, description: str) -> argparse.ArgumentParser:
    """The arguments of all commands over sweeps: `folders` and `--across`."""
    parser = argparse.ArgumentParser(prog=f"python -m distill.{command}", description=description)
    parser.add_argument("folders", nargs="+", type=Path, help="sweeps, runs, or folders that hold some")
    parser.add_argument(
        "--across",
        action="append",
        default=[],
        metavar="KEY",
        help="a key that counts as part of the method, such as data.path where sets of traces are compared",
    )
    return parser
