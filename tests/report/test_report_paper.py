"""Tests of the paper's figures beside a sweep's: the data file against our notes of the paper, what matches
what, and what the paper's samples can establish."""

import functools
import itertools
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from samples import sample
from scipy.stats import binomtest
from test_results import made

from distill.analysis.drift_curves import Drift
from distill.config.flat import flat
from distill.config.instantiate import plain
from distill.config.paths import CONFIG
from distill.evaluation.published import published
from distill.report.methods import tables_of
from distill.report.page import markdown
from distill.report.paper import method_of, setting_of
from distill.report.paper_figures import PaperComparison, Published, compared_with_paper, gain_of
from distill.report.paper_section import beside_paper
from distill.report.paper_traces import drift_blocks, drifts_beside_paper, shape_blocks, shapes_beside_paper
from distill.report.write import write_report
from distill.runs.read import read_config
from distill.statistics import Figure

NOTES = Path(__file__).resolve().parents[3] / "shared" / "design" / "paper.md"
BENCHMARKS = ["math500", "gsm8k", "olympiadbench", "omni_math", "amc23"]
TRAINED = {
    "GKD (online)": "on_policy_kd",
    "SFT": "sft",
    "SFT + DCOD": "dcod",
    "ToDi": "todi",
    "KL": "forward_kl",
    "symmetric KL": "symmetric_kl",
    "symmetric KL + DCOD": "dcod_symmetric_kl",
}


# --- the data file against the notes, of which every table is read anew


@pytest.fixture(scope="module")
def notes() -> str:
    if not NOTES.is_file():
        pytest.skip(f"the notes of the paper are not there: {NOTES}")
    return NOTES.read_text(encoding="utf-8")


def cells(notes: str, behind: str) -> list[list[str]]:
    """The rows of the first table behind a text, its head included."""
    lines = notes[notes.index(behind) :].split("\n")
    start = next(number for number, line in enumerate(lines) if line.startswith("|"))
    rows = list(itertools.takewhile(lambda line: line.startswith("|"), lines[start:]))
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in (rows[0], *rows[2:])]


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d*\.\d+|\d+", text)]


def pair(teacher: str, student: str) -> dict[str, Any]:
    """Of Qwen2.5-<teacher>-Instruct and <student>."""
    (found,) = (
        one
        for one in published()["pairs"]
        if f"-{teacher}-" in one["teacher"] and one["student"][0].rpartition("/")[2].startswith(student)
    )
    return found


def test_table_1_is_that_of_the_notes(notes: str) -> None:
    head, *rows = cells(notes, "**Table 1,")
    assert head == ["method", "MATH500", "GSM8K", "OlympiadBench", "Omni-Math", "AMC23"]
    found = {row[0]: dict(zip(BENCHMARKS, map(float, row[1:]), strict=True)) for row in rows}
    own = pair("7B", "Qwen2.5-3B")
    assert own["table"] == 1
    assert own["untrained"] == {
        "student": found.pop("3B, plain prompt"),
        "student_instructed": found.pop("3B with c"),
        "teacher": found.pop("7B, plain prompt"),
        "teacher_instructed": found.pop("7B with c (teacher)"),
    }
    assert own["accuracy"] == {TRAINED[name]: figures for name, figures in found.items()}


@pytest.mark.parametrize(("student", "first"), [("3B", 1), ("1.5B", 3)])
def test_table_2_is_that_of_the_notes(notes: str, student: str, first: int) -> None:
    head, *rows = cells(notes, "**Table 2,")
    assert head[first : first + 2] == [f"{student} MATH500", f"{student} GSM8K"]
    by_name = {row[0]: row[first : first + 2] for row in rows}
    teacher = [numbers(cell) for cell in by_name.pop("14B plain; with c") if cell != "the same"]
    teacher = teacher or [numbers(cell) for cell in rows[2][1:3]]
    found = {name: {"math500": float(one), "gsm8k": float(other)} for name, (one, other) in by_name.items()}
    own = pair("14B", f"Qwen2.5-{student}")
    assert own["table"] == 2
    assert own["untrained"] == {
        "student": found.pop("student, plain"),
        "student_instructed": found.pop("student with c"),
        "teacher": {"math500": teacher[0][0], "gsm8k": teacher[1][0]},
        "teacher_instructed": {"math500": teacher[0][1], "gsm8k": teacher[1][1]},
    }
    assert own["accuracy"] == {TRAINED[name]: figures for name, figures in found.items()}


def test_table_3_is_that_of_the_notes(notes: str) -> None:
    (text,) = re.findall(r"\*\*Table 3, Llama-3\.2-3B.*?\*\*: (.*?\d)\. How", notes, re.DOTALL)
    text = " ".join(text.split()).replace("; with DCOD", "; symmetric KL + DCOD")
    parts: list[tuple[str, str]] = re.findall(r"([^;]+?) ([\d. /]+)(?:; |$)", text)
    found = {name: [{"math500": number} for number in numbers(figures)] for name, figures in parts}
    untrained = {"student": found.pop("plain")[0], "student_instructed": found.pop("with c")[0]}
    for place, teacher in enumerate(["7B", "14B"]):
        own = pair(teacher, "Llama-3.2-3B")
        assert (own["table"], own["untrained"]) == (3, untrained)
        assert own["accuracy"] == {TRAINED[name]: figures[place] for name, figures in found.items()}


def test_tables_5_and_6_are_those_of_the_notes(notes: str) -> None:
    text = notes[notes.index("**Table 5,") :].split("\n\n")[0].replace("\n", " ")
    found = re.fullmatch(
        r".*MATH500\*\*: uniform (.*); ToDi (.*); σ\(Δ/1\) (.*); σ\(Δ/2\) (.*); σ\(Δ/4\) (.*); "
        r"exp Δ (.*); ClipExp c = 5 (.*); ReLU (.*)\.",
        text,
    )
    assert found is not None
    uniform, todi, one, two, four, ratio, clip, relu = map(float, found.groups())
    assert pair("7B", "Qwen2.5-3B")["weights"] == {
        "math500": {
            "sft": uniform,
            "todi": todi,
            "dcod": {1: one, 2: two, 4: four},
            "dcod_ratio": ratio,
            "dcod_clip_exp": clip,
            "dcod_relu": relu,
        }
    }
    _, *rows = cells(notes, "τ per setting (Table 6")
    pairs = [pair("7B", "Qwen2.5-3B"), pair("14B", "Qwen2.5-3B"), pair("14B", "Qwen2.5-1.5B")]
    for own, (sft, symmetric) in zip(pairs, zip(rows[::2], rows[1::2], strict=True), strict=True):
        for key, row in (("dcod", sft), ("dcod_symmetric_kl", symmetric)):
            assert [own["tau"][data][key] for data in ("math", "gsm8k")] == [int(row[2]), int(row[4])]
            assert [own["accuracy"][key][name] for name in ("math500", "gsm8k")] == [
                float(row[3]),
                float(row[5]),
            ]
    assert [own for own in published()["pairs"] if "tau" in own] == pairs


def test_drift_and_trace_quality_are_those_of_the_notes(notes: str) -> None:
    section = notes[notes.index("## 6.") :]
    head, *rows = cells(section, "In d_t neither")
    drift, traces = published()["drift"], published()["traces"]
    assert [*drift["positions"], "mean final"] == [*map(int, head[1:5]), head[5]]
    for name, key in (("SFT", "sft"), ("DCOD", "dcod")):
        (row,) = (row for row in rows if row[0] == name)
        assert [*drift["exaccerr"][key], drift["mean_final"][key]] == [*map(float, row[1:])]
    head, *rows = cells(section, "Table 4, on 100 problems")
    assert head[1:] == ["OlympiadBench SFT / DCOD", "MATH SFT / DCOD"]
    names = ["characters", "repeated_4_grams", "post_answer", "several_answers"]
    assert [row[0] for row in rows] == ["length", "repeated 4-grams", "post-answer", "several answers"]
    for place, data in ((1, "olympiadbench"), (2, "math")):
        both = [numbers(row[place]) for row in rows]
        for side, key in enumerate(["sft", "dcod"]):
            assert traces["shape"][data][key] == {n: own[side] for n, own in zip(names, both, strict=True)}
    text = " ".join(section[section.index("Table 7:") : section.index("## 7.")].split())
    graded = {}
    for name, said in {
        "clean": "Clean and reliable ([^;]*) of 100",
        "right_by_invalid_reasoning": "right by invalid reasoning ([^;]*);",
        "self_consistency": "wins in self-consistency ([^,]*),",
        "reasoning": ", reasoning ([^,]*),",
        "verification": ", verification (.*?) \\(",
    }.items():
        (match,) = {found for found in re.findall(said, text) if numbers(found)}
        graded[name] = [numbers(part) for part in match.split(" and ")]
    for place, data in enumerate(["olympiadbench", "math"]):
        for side, key in enumerate(["sft", "dcod"]):
            own = traces["graded"][data][key]
            assert own["wins"] | {k: v for k, v in own.items() if k != "wins"} == {
                name: figures[place][side] for name, figures in graded.items()
            }


def test_the_numbers_of_problems_and_the_circumstances_are_those_of_the_notes(notes: str) -> None:
    paper, text = published(), " ".join(notes.split())
    sizes = {"math500": r"MATH500 \((\d+)\)", "gsm8k": r"GSM8K test \(([\d,]+)\)"}
    sizes |= {"olympiadbench": r"without combinatorics \((\d+);", "amc23": r"AMC23 \((\d+)\)"}
    sizes |= {"omni_math": r"paper subset\" \((\d+);"}
    for name, pattern in sizes.items():
        (said,) = set(re.findall(pattern, text))
        assert paper["benchmarks"][name]["problems"] == int(said.replace(",", "")), name
    for of, name in (("math", "MATH"), ("gsm8k", "GSM8K")):
        (said,) = set(re.findall(rf"\b{name} train, ([\d,]+)", text))
        assert paper["trained_on"][of]["problems"] == int(said.replace(",", ""))
        assert paper["trained_on"][of]["name"] == name
    assert f"arXiv {paper['arxiv']} " in text
    assert f"Read whole on {paper['read']}" in text
    assert f"by {paper['judge']} as a judge" in text
    assert f"on {paper['drift']['problems']} MATH problems" in text.replace("sample: ", "on ")
    assert f"Table 4, on {paper['traces']['problems']} problems that **both**" in text


def test_an_accuracy_is_a_whole_number_of_right_answers_except_one() -> None:
    odd = []
    for one in published()["pairs"]:
        for figures in (*one["untrained"].values(), *one["accuracy"].values()):
            for benchmark, percent in figures.items():
                problems = published()["benchmarks"][benchmark]["problems"]
                nearest = 100 * round(percent / 100 * problems) / problems
                if abs(nearest - percent) > 0.0051 and percent != round(nearest, 1):
                    odd.append((benchmark, percent))
    assert odd == [("olympiadbench", 33.0)]


# --- which runs have the paper's setting

PRESETS = {
    **{key: key for key in TRAINED.values()},
    **{"seqkd": "sft", "dcod_tau2": "dcod", "dcod_tau4": "dcod"},
    **{key: key for key in ("dcod_ratio", "dcod_clip_exp", "dcod_relu")},
}


@pytest.fixture(scope="module", autouse=True)
def conf() -> Iterator[None]:
    """Of the whole module, as Hydra keeps the files that it has read."""
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        yield
    GlobalHydra.instance().clear()


@functools.cache
def preset(name: str, *words: str) -> dict[str, Any]:
    """A preset's keys, as a run's configuration has them."""
    cfg = compose(f"loss/{name}", ["+data.max_new_tokens=8", "+data.step_separator=x", *words])
    found: Any = OmegaConf.to_container(cfg, resolve=True)
    return dict(flat(found))


@pytest.mark.slow
def test_presets_are_told_by_what_they_compute() -> None:
    others = [
        "dcod_inverted",
        "dcod_jsd",
        "dcod_kl",
        "dcod_shuffled",
        "dcod_todi",
        "dft",
        "gold",
        "reverse_kl",
    ]
    for name in (*PRESETS, *others):
        assert method_of(preset(name)) == PRESETS.get(name), name


@pytest.mark.parametrize(
    "words",
    [
        ["dcod", "loss.control=shuffled"],
        ["dcod", "loss.token_weight.level=prefix"],
        ["dcod", "loss.token_weight.floor=0.1"],
        ["dcod_ratio", "loss.token_weight.temperature=2"],
        ["sft", "loss.scale=mean"],
        ["forward_kl", "loss.teacher_sees=solution"],
        ["on_policy_kd", "loss.token_loss.beta=0.9"],
        ["sft", "+loss.extra.kl._target_=distill.objective.terms.Term"],
    ],
)
def test_a_changed_preset_is_no_method_of_the_paper(words: list[str]) -> None:
    assert method_of(preset(*words)) is None
    assert method_of(preset(words[0])) is not None


def written(folder: Path, command: str, *words: str) -> Path:
    """What a command says of its data, models and loss in a folder's configuration."""
    folder.mkdir(parents=True)
    cfg = compose(command, list(words), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    found = {
        key: plain(cfg[key])
        for key in ("data", "model", "loss", "benchmark", "curation", "teachers")
        if key in cfg
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(found))
    return folder


def traces_of(folder: Path, *words: str) -> Path:
    """A trace set of the 7B teacher, as far as the report reads it."""
    return written(folder, "generate", "model=qwen3b", f"out={folder}", *words)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "teacher", "student", "data", "tau"),
    [
        ("paper_7b_3b", "7B", "Qwen2.5-3B", "math", 2),
        ("paper_14b_1.5b_gsm8k", "14B", "Qwen2.5-1.5B", "gsm8k", 1),
    ],
)
def test_the_paper_s_experiments_have_its_settings(
    experiment: str, teacher: str, student: str, data: str, tau: float, tmp_path: Path
) -> None:
    model = {"7B": "qwen3b", "14B": "qwen1.5b_14b"}[teacher]
    set_of = written(tmp_path / "set", "generate", f"model={model}", f"data={data}", f"out={tmp_path}")
    words = [f"experiment={experiment}", "loss=dcod_symmetric_kl", f"data.path={set_of}"]
    config = read_config(written(tmp_path / "run", "train", *words))
    setting = setting_of(config)
    assert setting is not None
    assert published()["pairs"][setting.pair] is pair(teacher, student)
    assert (setting.student, setting.trained_on) == (f"Qwen/{student}-Instruct", data)
    assert method_of(config) == "dcod_symmetric_kl"
    of = [name for name, own in published()["benchmarks"].items() if own["trained_on"] == data]
    assert sorted(of) == sorted(config[key] for key in config if re.fullmatch(r"benchmark\.\w+\.name", key))
    own = config["loss.token_weight.temperature"]
    assert own == tau == pair(teacher, student)["tau"][data]["dcod_symmetric_kl"]
    (set_of / "config.yaml").unlink()  # whose traces they are is no longer known
    assert setting_of(config) is None


@pytest.mark.slow
def test_a_trace_set_is_of_the_problems_that_its_own_configuration_names(tmp_path: Path) -> None:
    math, gsm8k = (traces_of(tmp_path / data, f"data={data}") for data in ("math", "gsm8k"))

    def curated(name: str, *words: str) -> Path:
        return written(tmp_path / name, "curate", f"out={tmp_path / name}", *words)

    def data_of(path: Path, **changes: Any) -> str | None:
        config = SETTING | {
            "data.completions": "dataset",
            "data.recipe.source._target_": "distill.data.readers.read_examples",
            "data.path": str(path),
        }
        setting = setting_of(config | {key.replace("__", "."): value for key, value in changes.items()})
        return None if setting is None else setting.trained_on

    assert [data_of(math), data_of(gsm8k / "traces.parquet")] == ["math", "gsm8k"]
    assert data_of(math, model__teacher=None) == "math"  # sft needs none
    assert data_of(math, model__teacher="Qwen/Qwen2.5-14B-Instruct") is None  # another one wrote them
    right = curated("right", f"teachers=[{math}]")
    assert data_of(right) == "math"
    assert data_of(curated("right_again", f"data.path={right}")) == "math"
    assert data_of(curated("both", f"teachers=[{math},{gsm8k}]")) is None
    assert data_of(curated("short", f"teachers=[{math}]", "curation=[correct,length]")) is None
    assert data_of(tmp_path / "nowhere") is None
    assert data_of(traces_of(tmp_path / "some", "data=math", "data.subset=algebra")) is None
    config = yaml.safe_load((right / "config.yaml").read_text())
    (right / "config.yaml").write_text(yaml.safe_dump(config | {"teachers": [str(right)]}))
    assert data_of(right) is None  # of itself: no end
    (right / "config.yaml").write_text("a: [")
    assert data_of(right) is None


# --- the report

SETTING: dict[str, Any] = {
    "model.student": "Qwen/Qwen2.5-3B-Instruct",
    "model.teacher": "Qwen/Qwen2.5-7B-Instruct",
    "data.completions": "teacher",
    "data.recipe.source._target_": "distill.benchmarks.math.load",
    "data.recipe.source.hub": "DigitalLearningGmbH/MATH-lighteval",
    "data.recipe.source.subset": "default",
    "data.recipe.source.split": "train",
}
GSM8K: dict[str, Any] = SETTING | {
    "data.recipe.source._target_": "distill.benchmarks.gsm8k.load",
    "data.recipe.source.hub": "openai/gsm8k",
}
OURS = {"sft": [0.50, 0.52], "dcod": [0.55, 0.57], "symmetric_kl": [0.54], "dcod_symmetric_kl": [0.53]}


def sweep(
    folder: Path,
    benchmarks: tuple[str, ...] = ("math500",),
    losses: dict[str, list[float]] = OURS,
    **changes: Any,
) -> Path:
    """Finished runs with the setting of Table 1 on MATH, a seed for each accuracy."""
    config = SETTING | {key.replace("__", "."): value for key, value in changes.items()}
    for loss, accuracies in losses.items():
        for seed, accuracy in enumerate(accuracies):
            place = made(folder / f"{loss}_{seed}", loss, seed, accuracy)
            own = dict(flat(yaml.safe_load((place / "config.yaml").read_text())))
            own = {key: value for key, value in own.items() if not key.startswith("loss.")}
            keys = own | preset(loss) | config
            (place / "config.yaml").write_text(yaml.safe_dump(nested(keys)))
            summary = json.loads((place / "summary.json").read_text())
            summary["benchmarks"] = dict.fromkeys(benchmarks, summary["benchmarks"]["arithmetic"])
            (place / "summary.json").write_text(json.dumps(summary))
            (place / "samples.jsonl").write_text("")
    return folder


def nested(keys: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in keys.items():
        *above, last = key.split(".")
        functools.reduce(lambda node, part: node.setdefault(part, {}), above, tree)[last] = value
    return tree


def beside(folder: Path, **options: Any) -> list[PaperComparison]:
    tables, _ = tables_of([folder], **options)
    return [found for table in tables for found in compared_with_paper(table)]


@pytest.mark.slow
def test_a_sweep_with_the_paper_s_setting_gets_its_figures(tmp_path: Path) -> None:
    printed = write_report([sweep(tmp_path)])
    text = (tmp_path / "report" / "report.md").read_text()
    page = (tmp_path / "report" / "report.html").read_text()
    for said in (printed, text):
        assert "## Beside the paper" in said
        assert (
            "| `dcod` | 56.0 [43.3, 68.7] | SFT + DCOD, τ = 1 | 62.60 [58.3, 66.7] | +5.0 | +4.60 "
            "| <0.001 to 0.270 | 23 to 125 |" in said
        )
        assert "| `sft` | 51.0 [38.3, 63.7] | SFT | 58.00 [53.6, 62.2] | baseline |" in said
        assert "|  | 51.8 | Qwen2.5-3B-Instruct untrained, plain prompt | 42.60 [38.3, 47.0] |" in said
        assert "symmetric KL + DCOD, τ = 2 (here 1.0) | 61.80 [57.5, 66.0]" in said
        assert (
            "symmetric KL + DCOD, τ = 2 over symmetric KL there: +2.60 points, p between <0.001 and" in said
        )
        assert "by how often the two disagree, on 13 to 395 problems" in said
        assert "GPT-5.4-mini, says whether an answer is right, here rules do" in said
        assert "**One seed there, 2 here.**" in said
    assert "<h2>Beside the paper</h2>" in page
    assert "<td>62.60 [58.3, 66.7]</td>" in page
    (table,) = json.loads((tmp_path / "report" / "report.json").read_text())["tables"]
    assert {key: table["paper"][key] for key in ("arxiv", "judge", "seeds")} == {
        "arxiv": "2605.14071v1",
        "judge": "GPT-5.4-mini",
        "seeds": 1,
    }
    (one,) = table["paper"]["comparisons"]
    row = next(row for row in one["rows"] if row["method"] == "dcod")
    assert (row["there"]["accuracy"]["value"], row["there"]["right"]) == (0.626, 313)
    assert row["gain_here"] == pytest.approx(0.05)
    assert row["gain"]["value"] == pytest.approx(0.046)
    assert (row["gain"]["disagreements"], row["gain"]["established_up_to"]) == ([23, 397], 125)


@pytest.mark.parametrize(
    "changes",
    [
        {"model__student": "Qwen/Qwen2.5-0.5B-Instruct"},
        {"model__teacher": "Qwen/Qwen2.5-3B-Instruct"},
        {"model__student": ["Qwen/Qwen2.5-3B-Instruct", "a/copy"]},  # which of them is not known
        {"data__completions": "dataset"},  # people's solutions
        {"data__recipe__source__hub": "somebody/else"},
        {"data__recipe__source__split": "train[:100]"},
        {"data__recipe__source___target_": "distill.benchmarks.gsm8k.load"},
        {"benchmarks": ("svamp", "gsm8k")},  # students of MATH were not asked GSM8K
        {"loss__normalize": "weights"},
    ],
)
def test_another_setting_has_no_figures_of_the_paper(changes: dict[str, Any], tmp_path: Path) -> None:
    assert beside(sweep(tmp_path, losses={"sft": [0.5], "dcod": [0.6]}, **changes)) == []


@pytest.mark.slow
def test_a_report_without_a_match_says_nothing_of_the_paper(tmp_path: Path) -> None:
    losses = {"sft": [0.5], "dcod": [0.6]}
    printed = write_report([sweep(tmp_path, losses=losses, model__teacher="Qwen/Qwen2.5-3B-Instruct")])
    files = [tmp_path / "report" / f"report.{kind}" for kind in ("md", "html", "json")]
    for said in (printed, *(file.read_text() for file in files)):
        assert "paper" not in said.replace("as the paper expects of DCOD", "")


def test_each_benchmark_has_a_table_and_what_is_otherwise_here_is_said(tmp_path: Path) -> None:
    asked = ("amc23", "omni_math", "svamp", "math500")
    more = {
        "benchmark__amc23__samples": 16,
        "benchmark__amc23__sampling__temperature": 0.6,
        "benchmark__omni_math__system": "Write <strategy> first.",
    }
    found = beside(sweep(tmp_path, asked, {"sft": [0.5], "dcod": [0.6]}, **more))
    assert [one.benchmark for one in found] == ["math500", "omni_math", "amc23"]
    assert [one.otherwise for one in found] == [
        (),
        ("under a system message",),
        ("16 completions per problem at temperature 0.6",),
    ]
    # The paper's plain prompt has nothing of ours beside it where a system message was set.
    assert [one.rows[0].here is None for one in found] == [False, True, False]
    assert [one.rows[0].there.problems for one in found] == [500, 200, 40]
    gains = [row.gain for one in found for row in one.rows if row.gain is not None]
    assert [gain.established_up_to for gain in gains] == [125, 6, None]
    text = markdown("", beside_paper(found, [0]))
    assert "40 problems there, **500 here**; one greedy completion each there, **here 16 completions" in text
    assert "| +7.50 | 0.250 to 0.711 | no number |" in text


@pytest.mark.slow
def test_a_figure_is_that_of_the_run_s_own_temperature_where_the_paper_has_it(tmp_path: Path) -> None:
    def dcod(place: str, tau: float, **changes: Any) -> tuple[str, float, str | None]:
        losses = {"dcod": [0.6]}
        changes |= {"loss__token_weight__temperature": tau}
        benchmark = "gsm8k" if "data__recipe__source___target_" in changes else "math500"
        (one,) = beside(sweep(tmp_path / place, (benchmark,), losses, **changes))
        row = one.rows[-1]
        return row.there.name, row.there.accuracy.value, row.tau_here

    gsm8k = {key.replace(".", "__"): value for key, value in GSM8K.items()}
    llama = {"model__student": "meta-llama/Llama-3.2-3B-Instruct"}
    assert dcod("a", 4.0) == ("SFT + DCOD, τ = 4", 0.622, None)  # of Table 5
    assert dcod("b", 8.0) == ("SFT + DCOD, τ = 1", 0.626, "8.0")
    assert dcod("c", 8.0, **gsm8k) == ("SFT + DCOD, τ = 8", 0.8302, None)
    assert dcod("d", 1.0, **gsm8k) == ("SFT + DCOD, τ = 8", 0.8302, "1.0")
    assert dcod("e", 1.0, **llama) == ("SFT + DCOD, τ not given", 0.524, "1.0")
    factor = {"loss__token_weight__temperature_is": "factor"}
    assert dcod("f", 1.0, **factor) == ("SFT + DCOD, τ = 1", 0.626, None)
    assert dcod("g", 4.0, **factor) == ("SFT + DCOD, τ = 1", 0.626, "4.0 as a factor")


@pytest.mark.slow
def test_without_the_baseline_the_paper_s_own_comparisons_are_left(tmp_path: Path) -> None:
    losses = {"symmetric_kl": [0.5], "dcod_symmetric_kl": [0.4], "dcod_relu": [0.3], "dft": [0.9]}
    (one,) = beside(sweep(tmp_path, losses=losses), baseline="dft")
    assert one.baseline is None
    assert [row.method for row in one.rows[4:]] == ["symmetric_kl", "dcod_symmetric_kl", "dcod_relu"]
    assert [row.gain for row in one.rows] == [None] * 7
    assert [(gain.name, gain.over) for gain in one.further] == [
        ("symmetric KL + DCOD, τ = 2", "symmetric KL")
    ]
    assert "over dft" not in markdown("", beside_paper([one], [0]))


def test_gains_here_are_of_the_seeds_that_both_have(tmp_path: Path) -> None:
    (one,) = beside(sweep(tmp_path, losses={"sft": [0.5, 0.1, 0.1], "dcod": [0.6]}))
    assert [row.gain_here for row in one.rows if row.gain] == [pytest.approx(0.1)]


def test_methods_of_two_trainings_are_compared_with_their_own(tmp_path: Path) -> None:
    """With `--across`, a table has rows of both; a gain is over the baseline of the same training alone."""
    sweep(tmp_path / "math", ("math500", "gsm8k"), {"sft": [0.5], "dcod": [0.6]})
    other = {key.replace(".", "__"): value for key, value in GSM8K.items()}
    sweep(tmp_path / "gsm8k", ("math500", "gsm8k"), {"sft": [0.7], "dcod": [0.8]}, **other)
    found = beside(tmp_path, across=["data.recipe.source._target_", "data.recipe.source.hub"])
    assert {one.benchmark: one.trained_on for one in found} == {"math500": "MATH", "gsm8k": "GSM8K"}
    assert [len(one.rows) for one in found] == [6, 6]
    assert sum(one.baseline is not None for one in found) == 1  # the table's baseline is a row of one of them


@pytest.mark.slow
def test_intervals_and_p_values_of_the_paper_are_those_of_its_counts() -> None:
    """Every gain of DCOD, against scipy's exact tests of each number of disagreements."""
    accuracy = published()["pairs"][0]["accuracy"]
    for benchmark, of in published()["benchmarks"].items():
        n = of["problems"]
        a, b = (accuracy[key][benchmark] for key in ("sft", "dcod"))
        right = [round(percent * n / 100) for percent in (a, b)]
        nothing = Figure(math.nan, math.nan, math.nan)
        gain = gain_of(Published("b", nothing, right[1], n), Published("a", nothing, right[0], n))
        p = {}
        for both in range(min(right) + 1):  # right by both
            only_a, only_b = right[0] - both, right[1] - both
            if both + only_a + only_b <= n:
                differ = only_a + only_b
                p[differ] = binomtest(only_a, differ).pvalue if differ else 1.0
        assert gain.disagreements == (min(p), max(p))
        assert gain.p == pytest.approx((min(p.values()), max(p.values())))
        below = [differ for differ, value in p.items() if value < 0.05]
        assert gain.established_up_to == (max(below) if below else None)


# --- its traces and its drift


def with_samples(folder: Path) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """A sweep of SFT and DCOD, two seeds each, on 12 problems of MATH500, with known trace quality."""
    found = {}
    for place in sorted(sweep(folder, losses={"sft": [0.5, 0.6], "dcod": [0.7, 0.8]}).iterdir()):
        loss, seed = place.name.rsplit("_", 1)
        rng = np.random.default_rng([len(loss), int(seed)])
        found[loss, int(seed)] = records = [
            sample("math500", id=str(number), problem=f"problem {number}", stage="after")
            | {
                "correct": bool(rng.random() < 0.8),
                "characters": int(rng.integers(100, 5000)),
                "word_repetition": float(rng.random()),
                "post_answer": bool(rng.random() < 0.5),
                "several_answers": bool(rng.random() < 0.3),
                "correct_to_first_answer": True,
            }
            for number in range(12)
        ]
        text = "".join(json.dumps(record) + "\n" for record in records)
        (place / "samples.jsonl").write_text(text)
    return found


@pytest.mark.slow
def test_traces_that_both_solve_stand_beside_table_4(tmp_path: Path) -> None:
    samples = with_samples(tmp_path / "sweep")
    (table,), _ = tables_of([tmp_path / "sweep"])
    found = {one.key: one for one in shapes_beside_paper(table)}
    assert {one.benchmark for one in found.values()} == {"math500"}
    mean = {
        (loss, name): [
            (samples[loss, 0][number][name] + samples[loss, 1][number][name]) / 2 for number in range(12)
        ]
        for loss in ("sft", "dcod")
        for name in ("correct", "characters", "word_repetition", "post_answer", "several_answers")
    }
    both = [n for n in range(12) if mean["sft", "correct"][n] > 0.5 and mean["dcod", "correct"][n] > 0.5]
    assert 0 < len(both) < 12
    for key, one in found.items():
        assert one.problems == len(both)
        for measure, name in (
            ("characters", "characters"),
            ("word repetition", "word_repetition"),
            ("post answer", "post_answer"),
            ("several answers", "several_answers"),
        ):
            expected = sum(mean[key, name][n] for n in both) / len(both)
            assert one.here[measure] == pytest.approx(expected)
    assert found["sft"].there == {
        **{"characters": 4383.0, "word repetition": 0.6514, "post answer": 0.79, "several answers": 0.75}
    }
    write_report([tmp_path / "sweep"], examples=0)
    text = (tmp_path / "sweep" / "report" / "report.md").read_text()
    assert "### Traces beside the paper" in text
    row = next(line for line in text.splitlines() if line.startswith("| math500 | `dcod` |"))
    assert row.split(" | ")[4] == "1,358"
    (own,) = json.loads((tmp_path / "sweep" / "report" / "report.json").read_text())["tables"]
    assert [one["key"] for one in own["paper"]["traces"]] == ["sft", "dcod"]
    assert own["paper"]["drift"] == []


def test_drift_stands_beside_table_8_at_the_positions_that_are_reached(tmp_path: Path) -> None:
    with_samples(tmp_path)
    (table,), _ = tables_of([tmp_path])

    def drift(**values: float) -> Drift:
        figures = {name: Figure(value, value, value) for name, value in values.items()}
        return Drift(1, (1, 1), 1, {}, {}, figures, ())

    measured = {
        "sft": [drift(**{"exaccerr@32": at, "exaccerr": 2 * at}) for at in (10.0, 20.0)],
        "dcod": [drift(exaccerr=5.0), drift(**{"exaccerr": 7.0, "exaccerr@32": 1.0})],
    }
    found = {one.method: one for one in drifts_beside_paper(table, measured)}
    assert found["sft"].here == {"32": 15.0, "end": 30.0}
    assert found["dcod"].here == {"end": 6.0}  # one seed does not reach 32
    text = markdown("", drift_blocks(list(found.values())))
    assert "| `sft` | 15.0 | 31.5 |  | 42.7 |  | 58.6 |  | 67.4 | 30.0 | 70.8 |" in text
    assert "| `dcod` |  | 32.1 |  | 34.7 |  | 36.5 |  | 38.9 | 6.0 | 41.0 |" in text
    assert drifts_beside_paper(table, {}) == []


def test_other_settings_have_no_traces_or_drift_of_the_paper(tmp_path: Path) -> None:
    sweep(tmp_path, losses={"sft": [0.5], "dcod": [0.5]}, model__student="Qwen/Qwen3-4B")
    (table,), _ = tables_of([tmp_path])
    assert shapes_beside_paper(table) == []
    assert drifts_beside_paper(table, {"sft": [Drift(1, (1, 1), 1, {}, {}, {}, ())]}) == []
    assert not list(shape_blocks([])) + list(drift_blocks([]))
