"""Tests of a run's token weights against a computation from the models, and of their figures per trace."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import test_training
import torch
from omegaconf import OmegaConf
from test_generate import run as generate_run
from test_training import arguments
from transformers import AutoModelForCausalLM, AutoTokenizer

from distill.analysis import token_weights as module
from distill.analysis.token_weights import by_trace, length_correlation, right_minus_wrong
from distill.data.trace_set import read_records, write_records
from distill.errors import UserError

traces = test_training.traces  # the fixture


@pytest.fixture(scope="module")
def records(tiny_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Two samples of each of six problems by the pair's teacher, none of them right."""
    folder = tmp_path_factory.mktemp("sets") / "random"
    student, teacher = tiny_pair
    found = generate_run(
        [
            "model=tiny", "data=arithmetic", f"model.student={student}", f"model.teacher={teacher}",
            "data.limit=6", "data.operations=[2,4]", "data.max_new_tokens=12", "samples=2",
            "sampling.temperature=1.0", "sampling.top_p=1.0",
        ],
        folder,
    )  # fmt: skip
    return [record for record in found if record["completion"].strip()]


@pytest.fixture(scope="module")
def trained(tiny_pair: tuple[Path, Path], traces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    words = arguments(tiny_pair, traces, folder, "loss=dcod", "loss.token_weight.temperature=2.0")
    return test_training.run([*words, "loss.token_weight.anneal=1.0", "optimizer.lr=1e-2"], folder / "dcod")


def token_weights(run: Path, records: Any, stage: str = "before", *, cache: Path) -> pandas.DataFrame:
    """With the models that the run names said again."""
    cfg: Any = OmegaConf.load(run / "config.yaml") if (run / "config.yaml").is_file() else None
    models = [] if cfg is None else [cfg.model[role] for role in ("student", "teacher", "reference")]
    return module.token_weights(run, records, stage, cache=cache, models=[str(one) for one in models])


def logprobs(model: Path, record: dict[str, Any]) -> np.ndarray:
    """The model's log-probs of the completion's tokens, among the tokens that there are."""
    lm, size = AutoModelForCausalLM.from_pretrained(model), len(AutoTokenizer.from_pretrained(model))
    ids = torch.tensor([record["prompt_ids"] + record["completion_ids"]])
    with torch.no_grad():
        values = lm(ids).logits[0, :, :size].double().log_softmax(-1)
    start = len(record["prompt_ids"])
    return np.asarray([values[start + t - 1, token] for t, token in enumerate(record["completion_ids"])])


@pytest.mark.slow
def test_weights_are_those_of_the_runs_loss_by_the_student_it_left(
    trained: Path, tiny_pair: tuple[Path, Path], records: list[dict[str, Any]], tmp_path: Path
) -> None:
    empty = records[0] | {"id": "empty", "completion": "", "completion_ids": [1]}
    found = token_weights(trained, [empty, *records], "after", cache=tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_pair[0])
    for record, (name, own) in zip(records, found.groupby("trace", sort=False), strict=True):
        assert name == record["id"]
        student, teacher = logprobs(trained / "student", record), logprobs(tiny_pair[1], record)
        np.testing.assert_allclose(own["student_logprobs"], student, atol=1e-5)
        np.testing.assert_allclose(own["teacher_logprobs"], teacher, atol=1e-5)
        np.testing.assert_allclose(own["weight"], 1 / (1 + np.exp((teacher - student) / 2)), atol=1e-5)
        assert own["position"].tolist() == list(range(len(record["completion_ids"])))
        assert own["token"].tolist() == [tokenizer.decode([token]) for token in record["completion_ids"]]
        assert set(own["tokens"]) == {len(own)}
        assert set(own["correct"]) == {record["correct"]}
        assert set(own["problem"]) == {record["problem"]}


@pytest.mark.slow
def test_before_training_the_student_and_the_schedule_are_at_their_beginning(
    trained: Path, tiny_pair: tuple[Path, Path], records: list[dict[str, Any]], tmp_path: Path
) -> None:
    found = token_weights(trained, records[:2], cache=tmp_path)
    expected = np.concatenate([logprobs(tiny_pair[0], record) for record in records[:2]])
    np.testing.assert_allclose(found["student_logprobs"], expected, atol=1e-5)
    assert (found["weight"] == 0.5).all()  # annealed over the whole training, from weights that are all alike


@pytest.mark.slow
def test_the_initial_student_stays_the_same_where_weights_ask_for_it(
    tiny_pair: tuple[Path, Path], traces: Path, records: list[dict[str, Any]], tmp_path: Path
) -> None:
    words = arguments(tiny_pair, traces, tmp_path, "loss=dcod", "loss.token_weight.ratio_from=initial")
    run = test_training.run([*words, "trainer.max_steps=2"], tmp_path / "run")
    before, after = (
        token_weights(run, records, stage, cache=tmp_path / "cache") for stage in ("before", "after")
    )
    assert "student_logprobs" not in before
    pandas.testing.assert_frame_equal(before, after)
    ratio = before["initial_logprobs"] - before["teacher_logprobs"]
    np.testing.assert_allclose(before["weight"], 1 / (1 + np.exp(-ratio)), atol=1e-6)


@pytest.mark.slow
def test_weights_of_a_reference_are_by_the_student_before_where_none_is_named(
    tiny_pair: tuple[Path, Path], traces: Path, records: list[dict[str, Any]], tmp_path: Path
) -> None:
    words = arguments(tiny_pair, traces, tmp_path, "loss=psft", "trainer.max_steps=2")
    run = test_training.run(words, tmp_path / "run")
    before = token_weights(run, records, "before", cache=tmp_path / "cache")
    np.testing.assert_allclose(before["weight"], 1.0)  # the student is its reference
    after = token_weights(run, records, "after", cache=tmp_path / "cache")
    np.testing.assert_allclose(after["reference_logprobs"], before["student_logprobs"], atol=1e-6)
    assert (after["student_logprobs"] != after["reference_logprobs"]).any()


@pytest.mark.slow
def test_what_cannot_be_looked_at_is_said_in_a_sentence(
    trained: Path,
    tiny_pair: tuple[Path, Path],
    traces: Path,
    records: list[dict[str, Any]],
    tmp_path: Path,
) -> None:
    with pytest.raises(UserError, match=r"gone holds no run: there is no config\.yaml"):
        token_weights(tmp_path / "gone", records, cache=tmp_path)
    with pytest.raises(UserError, match="stage='middle' is not one of before, after"):
        token_weights(trained, records, "middle", cache=tmp_path)
    with pytest.raises(UserError, match="there is no trace to read: all are empty"):
        token_weights(trained, [records[0] | {"completion": " "}], cache=tmp_path)
    long = records[0] | {"completion": "1" * 200, "completion_ids": [3] * 200, "teacher_logprobs": None}
    with pytest.raises(UserError, match=r"more than the context of .*student \(128\)"):
        token_weights(trained, [long], cache=tmp_path)
    words = arguments(tiny_pair, traces, tmp_path, "loss=eaft", "trainer.max_steps=1")
    run = test_training.run(words, tmp_path / "eaft")
    with pytest.raises(UserError, match="the weights of eaft ask for student_entropy, which training alone"):
        token_weights(run, records, cache=tmp_path)
    text = (trained / "config.yaml").read_text()
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "config.yaml").write_text(text)
    with pytest.raises(UserError, match="copy holds no trained student"):
        token_weights(copy, records, "after", cache=tmp_path)
    (copy / "config.yaml").write_text(text.replace("teacher_sees: prompt", "teacher_sees: solution"))
    with pytest.raises(UserError, match=r"loss\.teacher_sees=solution: its weights are for problems with"):
        token_weights(copy, records, cache=tmp_path)


@pytest.mark.slow
def test_a_teacher_of_other_tokens_is_refused(
    trained: Path,
    tiny_pair: tuple[Path, Path],
    permuted_tokenizer: Any,
    records: list[dict[str, Any]],
    tmp_path: Path,
) -> None:
    other = tmp_path / "other"
    AutoModelForCausalLM.from_pretrained(tiny_pair[1]).save_pretrained(other)
    permuted_tokenizer.save_pretrained(other)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(
        (trained / "config.yaml").read_text().replace(str(tiny_pair[1]), str(other))
    )
    with pytest.raises(
        UserError, match="weights are of the student's own tokens, but the vocabularies differ"
    ):
        token_weights(run, records, cache=tmp_path / "cache")


@pytest.mark.slow
def test_a_trace_set_that_is_written_and_read_has_the_same_weights(
    trained: Path, records: list[dict[str, Any]], tmp_path: Path
) -> None:
    write_records(tmp_path / "set" / "traces.parquet", records)
    again = token_weights(trained, read_records(tmp_path / "set"), "after", cache=tmp_path / "cache")
    pandas.testing.assert_frame_equal(
        again, token_weights(trained, records, "after", cache=tmp_path / "cache")
    )


def test_a_traces_figures_are_those_of_its_tokens() -> None:
    tokens = pandas.DataFrame(
        {
            "trace": ["b", "b", "a", "a", "a"],
            "problem": ["q", "q", "p", "p", "p"],
            "correct": [None, None, True, True, True],
            "tokens": [2, 2, 3, 3, 3],
            "weight": [0.0, 0.0, 1.0, 0.0, 0.5],
        }
    )
    found = by_trace(tokens).set_index("trace")
    assert found.index.tolist() == ["b", "a"]
    assert found.loc["a", "weight"] == pytest.approx(0.5)
    assert found.loc["a", "effective_share"] == pytest.approx(1.5**2 / 1.25 / 3)
    assert np.isnan(found.loc["b", "effective_share"])
    assert found.loc["b", "correct"] is None
    assert found["tokens"].tolist() == [2, 3]


def frame(weight: Any, tokens: Any, correct: Any, problem: Any) -> pandas.DataFrame:
    return pandas.DataFrame({"weight": weight, "tokens": tokens, "correct": correct, "problem": problem})


@pytest.mark.slow
def test_a_correlation_with_length_has_the_interval_of_a_bootstrap_over_problems() -> None:
    rng = np.random.default_rng(0)
    problems, tokens = np.arange(60), np.repeat(rng.integers(5, 50, 60), 2)
    weight = tokens / 100 + np.repeat(rng.normal(0, 0.1, 60), 2)
    found = length_correlation(frame(weight, tokens, True, np.repeat(problems, 2)), resamples=400)
    assert found is not None
    assert 0 < found.low < found.value < found.high < 1
    # Both traces of a problem are one and the same here: half of them know as much.
    halved = length_correlation(frame(weight[::2], tokens[::2], True, problems), resamples=400)
    assert halved is not None
    assert found.value == pytest.approx(halved.value)
    assert (found.low, found.high) == pytest.approx((halved.low, halved.high))
    # As if all traces were drawn by themselves, the interval is too narrow.
    apart = length_correlation(frame(weight, tokens, True, np.arange(120)), resamples=400)
    assert apart is not None
    assert apart.high - apart.low < 0.85 * (found.high - found.low)


def test_where_nothing_varies_there_is_no_correlation() -> None:
    assert length_correlation(frame([0.5, 0.5, 0.5], [1, 2, 3], True, list("abc"))) is None
    assert length_correlation(frame([0.1, 0.5, 0.5], [2, 2, 2], True, list("abc"))) is None
    alone = length_correlation(frame([0.1, 0.2, 0.3], [1, 2, 3], True, ["a"] * 3))
    assert alone is not None
    assert alone.value == 1.0
    assert np.isnan([alone.low, alone.high]).all()  # one problem says nothing of others


def test_right_and_wrong_traces_are_compared_in_means_over_traces() -> None:
    rng = np.random.default_rng(1)
    right = np.tile([True, True, False], 80)
    weight = np.where(right, 0.5, 0.3) + rng.normal(0, 0.05, 240)
    data = frame(weight, 9, right.astype(object), np.repeat(np.arange(80), 3))
    found = right_minus_wrong(data)
    assert found is not None
    assert found.value == pytest.approx(weight[right].mean() - weight[~right].mean())
    assert 0.15 < found.low < found.value < found.high < 0.25
    # Of 80 problems and 0.05 of noise the standard error is 0.05 · √(1/160 + 1/80).
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.05 * np.sqrt(1 / 160 + 1 / 80), rel=0.25)
    unjudged = pandas.concat([data, frame([9.0], 9, [None], ["new"])])
    again = right_minus_wrong(unjudged)
    assert again is not None
    assert again.value == pytest.approx(found.value)
    assert right_minus_wrong(data[data["correct"] == True]) is None  # noqa: E712
    assert right_minus_wrong(frame([0.1], 9, [None], ["a"])) is None
