"""Tests of the suites of 2605.14071 and of subfields: which problems, how sampled, what is asked."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from distill.benchmarks import olympiadbench
from distill.config.overrides import check_overrides
from distill.curation import overlap
from distill.errors import UserError
from distill.evaluation.benchmark import Benchmark, benchmarks_of

CONF = Path(__file__).resolve().parents[2] / "conf"
FILE = "olympiadbench/oe_to_maths_en_675.jsonl"


def suite(*words: str) -> dict[str, Benchmark]:
    found = benchmarks_of(check_overrides(CONF, "evaluate", words).benchmark)
    return {benchmark.name: benchmark for benchmark in found}


# --- subfields


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 675),
        ({"subfields": None, "without_subfields": None}, 675),
        ({"without_subfields": ["Combinatorics"]}, 521),
        ({"subfields": ["Algebra", "Geometry", "Number Theory"]}, 521),
        ({"subfields": ["Combinatorics"]}, 154),
        ({"subfields": ["Algebra", "Geometry"], "without_subfields": ["Geometry"]}, 264),
    ],
)
def test_subfields_are_taken_or_left_out_and_nothing_else_changes(
    options: dict[str, Any], count: int, data_dir: Path
) -> None:
    everything = {example.id: example for example in olympiadbench.load(path=str(data_dir / FILE))}
    found = olympiadbench.load(path=str(data_dir / FILE), **options)
    assert len(found) == count
    assert all(everything[example.id] == example for example in found)
    assert olympiadbench.load(path=str(data_dir / FILE), **options, limit=9) == found[:9]


@pytest.mark.realdata
def test_what_is_left_out_is_what_the_file_calls_so(data_dir: Path) -> None:
    lines = (data_dir / FILE).read_text(encoding="utf-8").splitlines()
    own = {str(one["id"]): one["subfield"] for one in map(json.loads, lines)}
    found = olympiadbench.load(path=str(data_dir / FILE), without_subfields=["Combinatorics"])
    counts = Counter(own[example.id] for example in found)
    assert counts == {"Algebra": 264, "Geometry": 129, "Number Theory": 128}


def problems(path: Path, *subfields: str | None) -> str:
    rows = [{"question": "q", "final_answer": ["2"], "subfield": subfield} for subfield in subfields]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subfields": ["Topology"]}, r"=\['Topology'\]: there is no subfield 'Topology' \(there are: "),
        ({"without_subfields": ["Algebra", "algebra"]}, r"'algebra' \(there are: Algebra, Geometry\)"),
        ({"subfields": "Algebra"}, r"source.subfields='Algebra' must be a list of subfields, such as"),
        ({"without_subfields": []}, r"source.without_subfields=\[\] must be a list of subfields"),
        ({"subfields": ["Algebra"], "without_subfields": ["Algebra"]}, "leave no problem"),
    ],
)  # fmt: skip
def test_subfields_that_cannot_be_had_are_named(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        olympiadbench.load(path=problems(tmp_path / "a.jsonl", "Geometry", "Algebra"), **options)
    assert str(caught.value).startswith("benchmark.olympiadbench.source")


def test_a_problem_without_a_subfield_is_in_none_and_in_all_but_some(tmp_path: Path) -> None:
    file = problems(tmp_path / "a.jsonl", None, "Algebra", "Geometry")
    ids = [example.id for example in olympiadbench.load(path=file, without_subfields=["Algebra"])]
    assert ids == ["0", "2"]
    assert [example.id for example in olympiadbench.load(path=file, subfields=["Algebra"])] == ["1"]
    with pytest.raises(UserError, match="there are: none, the records have no field subfield"):
        olympiadbench.load(path=problems(tmp_path / "b.jsonl", None), subfields=["Algebra"])


# --- the suites


@pytest.mark.slow
def test_the_suites_are_as_printed() -> None:
    found = suite("benchmark=paper_math") | suite("benchmark=paper_gsm8k")
    caps = {name: benchmark.sampling.max_new_tokens for name, benchmark in found.items()}
    assert caps == {"math500": 2048, "olympiadbench": 4096, "omni_math": 4096, "amc23": 4096, "gsm8k": 2048}
    for benchmark in found.values():
        assert (benchmark.sampling.temperature, benchmark.sampling.top_p, benchmark.samples) == (0, 1, 1)
    assert {name: one.limit for name, one in found.items() if one.limit} == {"omni_math": 200}
    assert list(suite("benchmark=paper_math")) == ["math500", "olympiadbench", "omni_math", "amc23"]


@pytest.mark.slow
@pytest.mark.parametrize("data", ["math", "gsm8k"])
def test_a_suite_asks_the_problem_alone_or_under_the_teachers_instruction(data: str) -> None:
    plain, told = suite(f"benchmark=paper_{data}"), suite(f"benchmark=paper_{data}_instructed")
    assert {(one.prompt, one.system) for one in plain.values()} == {("{problem}", None)}
    instruction = OmegaConf.load(CONF / "teacher_prompt" / "discord.yaml")
    assert {(one.prompt, one.system) for one in told.values()} == {(instruction.user, instruction.system)}
    assert [one.sampling for one in told.values()] == [one.sampling for one in plain.values()]


@pytest.mark.slow
@pytest.mark.realdata
def test_the_suites_olympiadbench_is_without_combinatorics(data_dir: Path) -> None:
    found = suite("benchmark=paper_math", f"benchmark.path={{olympiadbench: {data_dir / FILE}}}")
    assert len(found["olympiadbench"].problems()) == 521
    every = suite("benchmark=olympiadbench", f"benchmark.path={data_dir / FILE}")
    assert len(every["olympiadbench"].problems()) == 675


def test_a_suite_changes_no_benchmark_elsewhere() -> None:
    found = suite("benchmark=[gsm8k,math500,amc23]")
    assert [one.sampling.max_new_tokens for one in found.values()] == [1024, 4096, 4096]
    assert (found["amc23"].samples, found["amc23"].sampling.temperature) == (16, 0.6)


def test_other_intervals_and_subfields_are_set_by_words(tmp_path: Path) -> None:
    row = {"problem": "p", "answer": "2", "difficulty": 6.5}
    (tmp_path / "omni.jsonl").write_text(json.dumps(row), encoding="utf-8")
    found = suite(
        "benchmark=[omni_math,olympiadbench]",
        "benchmark.omni_math.source.difficulty=[5,7]",
        f"benchmark.omni_math.path={tmp_path / 'omni.jsonl'}",
        "benchmark.olympiadbench.source.subfields=[Number Theory]",
        f"benchmark.olympiadbench.path={problems(tmp_path / 'a.jsonl', 'Algebra', 'Number Theory')}",
    )
    assert [len(benchmark.problems()) for benchmark in found.values()] == [1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("against", [["paper_math", "olympiadbench"], ["olympiadbench", "paper_math"]])
def test_decontamination_takes_a_benchmarks_own_file_before_a_suites(
    against: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a suite that leaves problems out is named with it, as for `all`."""
    asked: dict[str, Any] = {}

    def take(name: str, nodes: Any, *_: Any) -> list[tuple[str, str]]:
        asked[name] = OmegaConf.select(nodes[name], "source.without_subfields")
        return [("0", "p")]

    monkeypatch.setattr(overlap, "_problems_of_one", take)
    overlap._problems_of(against, {})
    assert set(asked) == {"math500", "olympiadbench", "omni_math", "amc23"}
    assert asked["olympiadbench"] is None
    overlap._problems_of(["paper_math"], {})
    assert asked["olympiadbench"] == ["Combinatorics"]
