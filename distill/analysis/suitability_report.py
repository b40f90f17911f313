"""Report of the suitability of traces: Markdown table, JSON and an HTML page with plots."""

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from omegaconf import DictConfig

from distill.analysis.suitability import RANK_EDGES, RATIO_EDGES, Suitability, draw
from distill.io.files import write_atomically

# Okabe and Ito's colour-blind-safe palette.
_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")

# Name, heading, format and meaning.
_COLUMNS = (
    ("tokens", "tokens", "{:.0f}", "mean completion length in the student's tokens"),
    ("nll", "NLL", "{:.3f}", "the student's surprisal, nats a token"),
    ("rank", "rank", "{:.2f}", "mean rank of the trace's token among the student's, no more than rank_limit"),
    (
        "rsr",
        "RSR",
        "{:.3f}",
        "rank-surprisal ratio (2601.14249), lower suits better: Σ of mean ranks / Σ of mean surprisals",
    ),
    (
        "quality",
        "rules",
        "{:.2f}",
        "rule-based quality among all traces scored here (LIMO's rules as 2601.14249 has them): mean of "
        "z-scores of the number of words and of words such as verify, perhaps, therefore",
    ),
    ("entropy", "student entropy", "{:.3f}", "of the student's distributions, nats a token"),
    ("teacher_nll", "teacher NLL", "{:.3f}", "the teacher's surprisal, nats a token of its own"),
    (
        "teacher_entropy",
        "teacher entropy",
        "{:.3f}",
        "of the teacher's distributions, nats a token of its own; DED (2508.09883) found corpora of low "
        "token entropy to teach best",
    ),
    ("log_ratio", "log ratio", "{:.3f}", "mean of log π_S − log π_T: 0 where the student supports all"),
    ("weight", "weight", "{:.3f}", "mean of the weights that the loss would give the tokens"),
    ("effective_share", "ESS", "{:.1%}", "effective sample size (Σw)²/Σw², as a share of the tokens"),
)
_RANKINGS = (
    ("rsr", "lowest RSR", False),
    ("weight", "highest weight (support)", True),
    ("teacher_entropy", "lowest teacher entropy", False),
)


def write_report(
    folder: Path, found: Mapping[str, Suitability], rows: pandas.DataFrame, cfg: DictConfig
) -> str:
    """Write `scores.json`, `scores.md`, `traces.jsonl`, `scores.png` and `scores.html`.

    Args:
        folder: output folder.
        found: suitability by teacher.
        rows: one row per trace, of all teachers.
        cfg: config with `resamples` and `seed` of the bootstrap.

    Returns:
        The table and rankings to print.
    """
    samples = _bootstrap(found, cfg.resamples, cfg.seed)
    summary = {teacher: _summary(one, samples[teacher]) for teacher, one in found.items()}
    rankings = {name: _ranking(name, most, summary, samples) for name, _, most in _RANKINGS}
    shared = set.intersection(*(set(one.frame["problem"]) for one in found.values()))
    value = {
        "student": str(cfg.model.student),
        "shared_problems": len(shared),
        "teachers": summary,
        "rankings": {name: ranking for name, ranking in rankings.items() if ranking},
    }
    text = _markdown(summary, value["rankings"], len(shared))
    write_atomically(folder / "scores.json", lambda p: p.write_text(json.dumps(value, indent=1)))
    write_atomically(folder / "scores.md", lambda p: p.write_text(text + "\n", encoding="utf-8"))
    kept = rows.drop(columns=["weight_squares"], errors="ignore")
    lines = kept.to_json(orient="records", lines=True, force_ascii=False)
    write_atomically(folder / "traces.jsonl", lambda p: p.write_text(str(lines), encoding="utf-8"))
    picture = _picture(found, summary)
    write_atomically(folder / "scores.png", lambda p: p.write_bytes(picture))
    page = _page(value, picture, cfg)
    write_atomically(folder / "scores.html", lambda p: p.write_text(page, encoding="utf-8"))
    return f"{text}\n\n{folder / 'scores.html'}"


def _bootstrap(found: Mapping[str, Suitability], resamples: int, seed: int) -> dict[str, dict[str, Any]]:
    """Bootstrap samples of all figures by teacher; teachers with the same problems share the draws."""
    problems = sorted(set().union(*(one.frame["problem"] for one in found.values())))
    samples = {}
    for teacher, one in found.items():
        own = set(one.frame["problem"])
        if own == set(problems):
            counts = draw(len(problems), resamples, seed)
            samples[teacher] = one.resampled(np.asarray(problems, dtype=object), counts)
        else:
            mine = np.asarray(sorted(own), dtype=object)
            samples[teacher] = one.resampled(mine, draw(len(mine), resamples, seed))
    return samples


def _summary(one: Suitability, samples: Mapping[str, np.ndarray]) -> dict[str, Any]:
    figures = {
        name: {"value": _plain(value), "interval_95": _interval(samples[name])}
        for name, value in one.figures().items()
    }
    correlation = one.correlation()
    return {
        "traces": len(one.frame),
        "problems": int(one.frame["problem"].nunique()),
        "right": one.right,
        "figures": figures,
        "weight_length_correlation": None
        if correlation is None
        else {"spearman": correlation[0], "p": correlation[1]},
        "log_ratio_histogram": {"edges": RATIO_EDGES.tolist(), "counts": one.ratio_counts},
        "rank_histogram": {"at_most": RANK_EDGES.tolist(), "counts": one.rank_counts},
    }


def _ranking(
    name: str, most: bool, summary: Mapping[str, Any], samples: Mapping[str, Mapping[str, np.ndarray]]
) -> list[dict[str, Any]]:
    """Rank teachers by a figure, best first, with their distance from the first; empty if one lacks it."""
    if len(summary) < 2 or any(name not in one["figures"] for one in summary.values()):
        return []
    sign = -1.0 if most else 1.0
    order = sorted(summary, key=lambda teacher: sign * summary[teacher]["figures"][name]["value"])
    first = order[0]
    return [
        {
            "teacher": teacher,
            "value": summary[teacher]["figures"][name]["value"],
            "behind_first": _interval(samples[teacher][name] - samples[first][name])
            if teacher != first
            else None,
        }
        for teacher in order
    ]


def _interval(values: np.ndarray) -> list[float] | None:
    finite = values[np.isfinite(values)]
    return [float(bound) for bound in np.percentile(finite, [2.5, 97.5])] if len(finite) else None


def _plain(value: Any) -> float | None:
    return float(value) if value is not None and np.isfinite(value) else None


def _markdown(
    summary: Mapping[str, Any], rankings: Mapping[str, Sequence[Mapping[str, Any]]], shared: int
) -> str:
    head, body = _table(summary)
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in body]
    for sentence in _sentences(rankings, shared, len(summary)):
        lines += ["", sentence]
    return "\n".join(lines)


def _table(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    has = [column for column in _COLUMNS if any(column[0] in one["figures"] for one in summary.values())]
    head = ["teacher", "traces", "right", *(heading for _, heading, _, _ in has)]
    weighted = any(one["weight_length_correlation"] for one in summary.values())
    if weighted:
        head.append("weight ~ length")
    body = []
    for teacher, one in summary.items():
        row = [teacher, str(one["traces"]), "-" if one["right"] is None else f"{one['right']:.0%}"]
        row += [_cell(one["figures"].get(name), form) for name, _, form, _ in has]
        if weighted:
            found = one["weight_length_correlation"]
            row.append("-" if found is None else f"{found['spearman']:+.2f}")
        body.append(row)
    return head, body


def _cell(figure: Mapping[str, Any] | None, form: str) -> str:
    if figure is None or figure["value"] is None:
        return "-"
    text = form.format(figure["value"])
    bounds = figure["interval_95"]
    return text if bounds is None else f"{text} [{form.format(bounds[0])}, {form.format(bounds[1])}]"


def _sentences(rankings: Mapping[str, Sequence[Mapping[str, Any]]], shared: int, teachers: int) -> list[str]:
    said = []
    for name, words, _ in _RANKINGS:
        ranking = rankings.get(name)
        if not ranking:
            continue
        parts = [ranking[0]["teacher"]]
        for entry in ranking[1:]:
            low, high = entry["behind_first"] or (0.0, 0.0)
            apart = "" if low > 0 or high < 0 else ", which may be chance"
            parts.append(f"{entry['teacher']} ({low:+.3f} to {high:+.3f}{apart})")
        said.append(f"By {words}: {'; '.join(parts)}.")
    if said:
        how = (
            f"on the {shared} problems that all teachers share"
            if shared
            else "of different problems, so that the problems differ too"
        )
        said.append(
            f"Distances from the first are 95 % bootstrap intervals over problems, {how}. They order "
            f"teachers, and do not say which student ends up better: smoke_test=true trains it."
        )
    return said


def _picture(found: Mapping[str, Suitability], summary: Mapping[str, Any]) -> bytes:
    from matplotlib.figure import Figure  # without pyplot: no window, no global state

    figure = Figure(figsize=(11, 6.6), layout="constrained")
    axes = figure.subplots(2, 3)
    for (teacher, one), color in zip(found.items(), _COLORS * (1 + len(found) // len(_COLORS)), strict=False):
        frame = one.frame
        style: dict[str, Any] = {"color": color, "label": teacher}
        axes[0, 0].hist(frame["nll"], bins=30, histtype="step", density=True, **style)
        shares = np.cumsum(one.rank_counts) / max(1, sum(one.rank_counts))
        axes[0, 1].plot(RANK_EDGES, shares[:-1], marker="o", markersize=3, **style)
        axes[0, 2].hist(np.log10(frame["rsr"]), bins=30, histtype="step", density=True, **style)
        if one.ratio_counts:
            counts = np.asarray(one.ratio_counts) / max(1, sum(one.ratio_counts))
            axes[1, 0].stairs(counts, RATIO_EDGES, **style)
            axes[1, 1].plot(frame["tokens"], frame["weight"], ".", markersize=3, alpha=0.6, **style)
        axes[1, 2].plot(frame["tokens"], frame["nll"], ".", markersize=3, alpha=0.6, **style)
    axes[0, 0].set(title="surprisal of traces", xlabel="NLL, nats a token", ylabel="density")
    axes[0, 1].set(title="tokens by rank", xlabel="rank at most", ylabel="share of tokens", xscale="log")
    axes[0, 2].set(
        title="rank-surprisal ratio of traces", xlabel="log₁₀ RSR (lower suits better)", ylabel="density"
    )
    axes[1, 0].set(title="support", xlabel="$\\log\\,\\pi_S - \\log\\,\\pi_T$", ylabel="share of tokens")
    axes[1, 1].set(title="weight and length", xlabel="tokens", ylabel="mean weight")
    axes[1, 2].set(title="surprisal and length", xlabel="tokens", ylabel="NLL, nats a token")
    axes[0, 0].legend(frameon=False, fontsize=8)
    for empty in (axes[1, 0], axes[1, 1]):
        if not empty.has_data():
            empty.text(0.5, 0.5, "no teacher's log-probs", ha="center", transform=empty.transAxes)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130)
    return stream.getvalue()


def _page(value: Mapping[str, Any], picture: bytes, cfg: DictConfig) -> str:
    head, body = _table(value["teachers"])
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in body
    )
    said = _sentences(value["rankings"], value["shared_problems"], len(value["teachers"]))
    meanings = "".join(
        f"<dt>{html.escape(heading)}</dt><dd>{html.escape(meaning)}</dd>"
        for _, heading, _, meaning in _COLUMNS
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" \
content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>Traces for {html.escape(value["student"])}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
.wide {{ overflow-x: auto; }}
th, td {{ border-bottom: 1px solid #ccc; padding: .3rem .6rem; text-align: left; white-space: nowrap; }}
img {{ max-width: 100%; }} dt {{ font-weight: 600; }} dd {{ margin: 0 0 .4rem 1rem; }}
</style></head><body>
<h1>How these traces suit {html.escape(value["student"])}</h1>
<div class="wide"><table><thead><tr>{"".join(f"<th>{html.escape(h)}</th>" for h in head)}</tr></thead>
<tbody>{rows}</tbody></table></div>
{"".join(f"<p>{html.escape(sentence)}</p>" for sentence in said)}
<p>In brackets 95 % intervals of a bootstrap over problems ({cfg.resamples} resamples). Every trace's own
figures are in traces.jsonl, everything on this page in scores.json.</p>
<img alt="Distributions of surprisal, rank, rank-surprisal ratio, support and weight" \
src="data:image/png;base64,{base64.b64encode(picture).decode()}">
<dl>{meanings}</dl>
</body></html>
"""
