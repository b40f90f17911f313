"""Tests of data on disk: the same examples, records and traces as in memory, whose memory does not grow."""

import itertools
import json
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scale import records

from distill.benchmarks import arithmetic
from distill.curation.diversity import diverse, pass_rate
from distill.curation.filters import correct, length, sample, well_formed
from distill.curation.overlap import decontaminate, deduplicate
from distill.curation.step import CurationContext, Outcome
from distill.data.on_disk import spool_examples, spool_records
from distill.data.prompt import Prompt
from distill.data.readers import read_examples
from distill.data.trace import Example, Recorded
from distill.data.trace_set import (
    by_problem,
    count_problems,
    example_of,
    problem_places,
    read_records,
    write_records,
)
from distill.data.traces import Traces
from distill.io import cache
from distill.models.find import find_model
from distill.models.language_model import LanguageModel
from distill.training.datamodule import DistillDataModule
from distill.training.recipe import TraceRecipe

OLD = Path(__file__).resolve().parents[1] / "data_of_earlier_versions" / "traces" / "traces.parquet"


@pytest.fixture(scope="module")
def embedded() -> LanguageModel:
    return find_model("package:distill/tiny/student", key="model").load()


def fields(example: Example) -> list[Any]:
    """All of an example, also what its comparison leaves out."""
    own = vars(example) | {"recorded": None}
    recorded = example.recorded and {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in vars(example.recorded).items()
    }
    return [own, recorded]


def test_examples_come_back_whole() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "sum", "arguments": {"a": 1, "b": [None]}}}
    turns = (
        {"role": "user", "content": "é\u2028?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    )
    ids = np.asarray([3, 1], dtype=np.int32)
    made = [
        Example("a", "1+1="),
        Example(
            "b", "x", "2", "#2", turns, "file, row 2", details={"tests": ["a"]}, system="s", tools=(call,)
        ),
        Example("c", "x", recorded=Recorded("t", ids, ids, True, None, None, None)),
        Example("d", "x", recorded=Recorded("t", ids, ids, False, True, ("m", "f"), -ids / 7, "w", 0.1, 1)),
        *read_examples(path=str(OLD)),
    ]
    assert [fields(one) for one in spool_examples(lambda: made)] == [fields(one) for one in made]
    of_file = spool_examples(partial(read_examples, path=str(OLD)))
    assert [fields(one) for one in of_file] == [fields(one) for one in made[4:]]


def test_records_come_back_whole(tmp_path: Path) -> None:
    made = [*read_records(OLD), *records(3)]
    assert [*spool_records(made, tmp_path)] == made


def test_problems_are_found_as_by_their_text() -> None:
    made = [record | {"problem": f"  {number % 5}  "} for number, record in enumerate(records(12))]
    places = [own.tolist() for own in problem_places(made)]
    assert [[made[place] for place in own] for own in places] == [*by_problem(made).values()]
    assert count_problems(made) == len(places) == 5
    assert ([*problem_places([])], count_problems([])) == ([], 0)


STEPS: dict[str, Callable[..., Outcome]] = {
    "correct": partial(correct, unjudged="keep"),
    "judged": partial(correct, judge=True),
    "length": partial(length, max_tokens=40),
    "well_formed": partial(well_formed, forbid="7"),
    "sample": partial(sample, traces=17),
    "of each problem": partial(sample, per_problem=2),
    "equal": deduplicate,
    "near": partial(deduplicate, near=0.9),
    "decontaminate": decontaminate,
    "diverse": partial(diverse, keep=2),
    "pass rate": partial(pass_rate, from_record=True, above=0.5),
}


@pytest.mark.parametrize("step", STEPS)
def test_a_step_does_the_same_with_records_on_disk(step: str, tmp_path: Path) -> None:
    made = [
        record | {"correct": (None, True, False)[number % 3], "pass_rate": number // 4 % 2}
        for number, record in enumerate(records(60))
    ]
    context = CurationContext({}, TraceRecipe(lambda: []), arithmetic.grade, tmp_path, seed=3)
    (tested := tmp_path / "tested.jsonl").write_text(json.dumps({"problem": made[20]["problem"]}))
    options = {"against": [str(tested)]} if step == "decontaminate" else {}
    one, other = (STEPS[step](given, context, **options) for given in (made, spool_records(made)))
    assert ([*other.kept], other.left_out, other.figures) == (one.kept, one.left_out, one.figures)
    assert isinstance(one.kept, list)
    assert 0 < len(one.kept) < 60 or step == "judged"


@pytest.mark.slow
def test_tokens_are_cached_and_anything_else_makes_others(
    embedded: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_records(file := tmp_path / "traces.parquet", records(8))
    source = partial(read_examples, path=str(file))

    def built(**options: Any) -> Traces:
        return TraceRecipe(source, **options).build(embedded, None, tmp_path / "cache", say=lambda _: None)

    plain, listed = built(), TraceRecipe(source).tokenize(source(), embedded.source)
    for one, other in zip(plain, listed, strict=True):
        np.testing.assert_array_equal(one.prompt_ids, other.prompt_ids)
        np.testing.assert_array_equal(one.completion_ids, other.completion_ids)
        assert (fields(one.example), one.weight) == (fields(other.example), other.weight)
    others = [built(student_prompt=Prompt("#{problem}")), built(keep="all")]
    assert [len(one[0].prompt_ids) for one in others] == [len(plain[0].prompt_ids) + n for n in (1, 0)]
    assert len([*(tmp_path / "cache").glob("tokens-*")]) == 3
    with monkeypatch.context() as patched:
        patched.setattr(TraceRecipe, "_from_dataset", lambda *_: pytest.fail("it is cached"))
        assert built().scan.fingerprint == plain.scan.fingerprint
    write_records(file, itertools.islice(records(12), 4, 12))
    assert built().scan.fingerprint != plain.scan.fingerprint


def growth(work: Callable[[int], object], few: int, many: int) -> float:
    """Bytes of memory at the peak for each further row."""
    work(few)
    peaks = []
    for rows in (few, many):
        tracemalloc.start()
        work(rows)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    return (peaks[1] - peaks[0]) / (many - few)


def repeated(rows: int) -> Iterator[dict[str, Any]]:
    """Records of as many problems as there are rows."""
    made = [*records(64)]
    return (made[row % 64] | {"id": f"{row}#0", "problem": f"{row}+{row}="} for row in range(rows))


@pytest.mark.slow
def test_the_memory_of_a_row_is_a_few_numbers(
    embedded: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As objects, a trace of this size takes some 2 KB in training and 3 KB in curate."""

    def trained(rows: int) -> None:
        examples = spool_examples(lambda: map(example_of, repeated(rows)), tmp_path)
        traces = TraceRecipe(lambda: examples).build(embedded, None, tmp_path / "cache")
        traces = traces.with_signal("s", lambda place, trace: np.zeros(len(trace.completion_ids)))
        data = DistillDataModule(traces, signals=["s"], batch_size=4, steps=1, seed=0, pad_id=0)
        assert data.state_dict()["traces"]
        assert len(traces) == rows

    def curated(rows: int) -> None:
        left = spool_records(repeated(rows), tmp_path)
        for step in (correct, length, well_formed, partial(sample, per_problem=1), deduplicate):
            left = step(left, context).kept
        assert len(left) == rows

    context = CurationContext({}, TraceRecipe(lambda: []), None, tmp_path)
    monkeypatch.setattr(cache, "_ITEMS", 64)
    assert growth(trained, 100, 600) < 200
    assert growth(curated, 100, 600) < 200
