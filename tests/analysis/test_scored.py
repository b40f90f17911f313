"""Tests of reading the results of `python -m distill.score`, and of previewing curation on them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_curate import run as curate_run
from test_generate import compose
from test_generate import run as generate_run

from distill.analysis.score_traces import score
from distill.analysis.scores_file import read_scores, select
from distill.analysis.smoke_test import _row
from distill.analysis.token_weights import by_trace, token_weights
from distill.data.trace_set import read_records
from distill.errors import UserError

TEACHER = "package:distill/tiny/teacher"
DATA = ["model=tiny", "data=arithmetic", "data.operations=[2,4]", "data.max_new_tokens=40"]


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two teachers' traces of 20 problems, one of which wrote rather wildly, right and wrong."""
    root = tmp_path_factory.mktemp("scores")
    hot = [*DATA, "data.limit=20", "samples=2", "sampling.temperature=3", "sampling.top_p=1.0"]
    generate_run(hot, root / "hot")
    words = [*DATA, f"teachers=[{root / 'hot'},{TEACHER}]", "data.limit=20", "samples=2", "keep=all"]
    return score(compose("score", [*words, f"out={root / 'scores'}", f"cache={root / 'cache'}"]))


@pytest.mark.slow
def test_scores_are_read_as_they_were_written(scores: Path) -> None:
    found, written = read_scores(scores), json.loads((scores / "scores.json").read_text())
    assert found.shared_problems == 20
    assert found.config.data.operations == [2, 4]
    assert found.smoke is None
    for row in found.figures.itertuples():
        own = written["teachers"][row.teacher]
        assert row.value == own["figures"][row.figure]["value"]
        assert [row.low, row.high] == own["figures"][row.figure]["interval_95"]
        assert (row.traces, row.right) == (own["traces"], own["right"])
    assert len(found.figures) == sum(len(own["figures"]) for own in written["teachers"].values())
    for name, ranking in written["rankings"].items():
        own = found.rankings[found.rankings["by"] == name]
        assert own["teacher"].tolist() == [entry["teacher"] for entry in ranking]
        assert own["distance"].iloc[0] == 0
        assert np.isnan(own["low"].iloc[0])
        assert [own["low"].iloc[1], own["high"].iloc[1]] == ranking[1]["behind_first"]
        assert own["distance"].iloc[1] == ranking[1]["value"] - ranking[0]["value"]


@pytest.mark.slow
def test_the_traces_are_kept_as_a_trace_set_in_the_same_order(scores: Path) -> None:
    found = read_scores(scores)
    assert len(found.records) == len(found.traces) == 80
    assert found.records == read_records(scores)
    for record, row in zip(found.records, found.traces.itertuples(), strict=True):
        assert (record["id"], record["teacher"], record["correct"]) == (row.id, row.teacher, row.correct)
        assert len(record["completion_ids"]) == row.tokens
    assert {False, True} == {record["correct"] for record in found.records}
    assert set(found.traces["teacher"]) == {"hot", TEACHER}


@pytest.mark.slow
def test_token_weights_before_training_are_those_that_scoring_shows(scores: Path, tmp_path: Path) -> None:
    found = read_scores(scores)
    tokens = token_weights(scores, found.records, cache=tmp_path)  # a configuration with models and a loss
    own = by_trace(tokens).set_index("trace").loc[found.traces["id"]]
    np.testing.assert_allclose(own["weight"], found.traces["weight"], atol=1e-5)
    np.testing.assert_allclose(own["effective_share"], found.traces["effective_share"], atol=1e-5)
    assert own["tokens"].tolist() == found.traces["tokens"].tolist()


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["curation=[correct]"],
        ["curation=[correct,min_rsr]"],
        ["curation=[correct,deduplicate,sample]", "curation.sample.per_problem=1", "seed=3"],
    ],
)
def test_a_selection_is_what_the_command_would_write(scores: Path, tmp_path: Path, words: list[str]) -> None:
    kept, log = select(read_scores(scores), words, cache=tmp_path / "cache")
    written = curate_run([*DATA, f"teachers={scores}", *words], tmp_path / "set")
    assert kept == written
    assert [(step["step"], step["kept"]) for step in log] == [
        (step["step"], step["kept"])
        for step in json.loads((tmp_path / "set" / "curation.json").read_text())["steps"]
    ]
    assert 0 < len(kept) < 80


@pytest.mark.slow
def test_a_selection_that_says_nothing_is_refused(scores: Path) -> None:
    found = read_scores(scores)
    with pytest.raises(UserError, match="curation=min_rs: there is no such curation; did you mean min_rsr"):
        select(found, ["curation=[correct,min_rs]"])
    with pytest.raises(UserError, match="curation step length leaves none of 80 traces"):
        select(found, ["curation=[length]", "curation.length.max_tokens=1"])


def test_a_smoke_test_is_read_with_the_scores(scores: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(scores, tmp_path / "copy")
    runs = [
        {
            "benchmarks": {
                "arithmetic": {
                    stage: {"figures": {"accuracy": {"value": value, "low": 0.1, "high": 0.9}}}
                    for stage, value in (("before", 0.5), ("after", after))
                }
            },
            "tokens": 1000,
            "folder": "somewhere",
        }
        for after in (0.6, 0.8)
    ]
    (copy / "smoke.json").write_text(json.dumps([_row("hot", runs), _row(TEACHER, runs[:1])]))
    smoke = read_scores(copy).smoke
    assert smoke is not None
    assert smoke["teacher"].tolist() == ["hot", TEACHER]
    assert smoke["after"].tolist() == [[0.6, 0.8], [0.6]]
    assert smoke["mean"].tolist() == pytest.approx([0.7, 0.6])
    assert smoke["before"].tolist() == [0.5, 0.5]
    assert smoke["low"].tolist() == pytest.approx([0.7 - 12.706 * 0.1, 0.1], abs=1e-3)


def test_what_is_no_folder_of_scores_is_said_in_a_sentence(scores: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gone: there is no such folder"):
        read_scores(tmp_path / "gone")
    with pytest.raises(UserError, match=r"holds no scores: write them with python -m distill\.score out="):
        read_scores(tmp_path)
    copy = shutil.copytree(scores, tmp_path / "copy")
    (copy / "scores.json").write_text("{")
    with pytest.raises(UserError, match=r"copy: its scores are damaged \(Expecting property name"):
        read_scores(copy)
    shutil.copy(scores / "scores.json", copy)
    lines = (scores / "traces.jsonl").read_text().splitlines(keepends=True)
    (copy / "traces.jsonl").write_text("".join(lines[1:]))
    with pytest.raises(UserError, match=r"copy: traces\.jsonl and traces\.parquet are of different traces"):
        read_scores(copy)
    (copy / "traces.parquet").unlink()
    with pytest.raises(UserError, match=r"copy holds no trace set: there is no traces\.parquet"):
        read_scores(copy)
