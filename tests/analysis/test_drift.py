"""Tests of drift against its definition: per token, in closed form if there is one, and per resample."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

import distill.analysis.drift
import distill.analysis.token_divergence
from distill.analysis.drift import compare, measure
from distill.analysis.drift_curves import Drift
from distill.analysis.drift_figure import picture
from distill.analysis.suitability import draw
from distill.analysis.token_divergence import TokenDrift, token_drift
from distill.data.trace import Example, TeacherView, Trace, encode_completion
from distill.errors import UserError
from distill.models.find import find_model
from distill.models.language_model import LanguageModel
from distill.models.lazy import LazyModel
from distill.tiny.build import make_tokenizer

STUDENT_WROTE = {"3+4=": "3+4=7;#7", "2*5-1=": "2*5=0;0-1=9;#9", "9=": "#9", "8-2+6*3=": "8-2+6*3=4;#4;;;1"}
TEACHER_WROTE = {"3+4=": "#7", "2*5-1=": "2*5-1=9;#9", "9=": "9=9;#9", "8-2+6*3=": "8-2=6;6+6=2;2*3=6;#6"}


def each(problems: int) -> list[int]:
    """One completion a problem."""
    return list(range(problems))


def some(found: Drift | None) -> Drift:
    assert found is not None
    return found


def lazy(folder: Path) -> LazyModel:
    return LazyModel(find_model(str(folder), key="model.student"), "cpu")


def traces(lm: LanguageModel, written: dict[str, str]) -> list[Trace]:
    return [
        Trace(
            Example(problem, problem),
            np.asarray(lm.tokenizer(problem).input_ids, dtype=np.int32),
            encode_completion(lm.tokenizer, text),
        )
        for problem, text in written.items()
    ]


def distributions(lm: LanguageModel, trace: Trace, prompt: np.ndarray | None = None) -> list[list[float]]:
    """Log-probabilities of all real tokens at each of the completion's, in double precision, unpadded."""
    prompt = trace.prompt_ids if prompt is None else prompt
    ids = torch.from_numpy(np.concatenate([prompt, trace.completion_ids]).astype(np.int64))
    with torch.no_grad():
        logits = lm.model(ids[None]).logits[0].double()[:, : lm.vocab_size]
    rows = logits[len(prompt) - 1 : len(ids) - 1].tolist()
    totals = [math.log(math.fsum(map(math.exp, row))) for row in rows]
    return [[value - total for value in row] for row, total in zip(rows, totals, strict=True)]


def by_loops(
    student: LanguageModel, teacher: LanguageModel, trace: Trace
) -> list[tuple[float, float, float]]:
    prompt = None if trace.teacher_view is None else trace.teacher_view.prompt_ids
    found = []
    for label, q, p in zip(
        trace.completion_ids,
        distributions(student, trace),
        distributions(teacher, trace, prompt),
        strict=True,
    ):
        kl = math.fsum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))
        found.append((kl, -p[label], -q[label]))
    return found


@pytest.mark.covering(1)
@pytest.mark.parametrize("share_prompts", [False, True])
@pytest.mark.parametrize("token_budget", [1, 30, 8192])
def test_every_token_has_its_kl_and_its_surprisals_in_any_batch(
    tiny_pair: tuple[Path, Path], tmp_path: Path, token_budget: int, share_prompts: bool
) -> None:
    student, teacher = map(lazy, tiny_pair)
    student.share_prompts = teacher.share_prompts = share_prompts
    own = traces(student.get(), STUDENT_WROTE)
    own += [Trace(one.example, own[0].prompt_ids, one.completion_ids) for one in own]
    # The teacher reads one of them behind a prompt of its own, and nothing was written for another.
    longer = np.concatenate([own[0].prompt_ids[::-1], own[0].prompt_ids])
    own[1].teacher_view = TeacherView(longer, own[1].completion_ids)
    own.append(Trace(Example("empty", "1="), own[0].prompt_ids, np.zeros(0, dtype=np.int32)))
    found = token_drift(student, teacher, own, cache=tmp_path, token_budget=token_budget)
    for trace, tokens in zip(own, found, strict=True):
        expected = np.asarray(by_loops(student.get(), teacher.get(), trace)).reshape(-1, 3).T
        np.testing.assert_allclose(np.stack(tokens), expected, atol=2e-5)
        assert tokens.kl.dtype == np.float32
    assert min(one.kl.min() for one in found if len(one.kl)) > 0.001  # so that there is something to measure
    different = Trace(own[1].example, own[1].prompt_ids, own[1].completion_ids)
    (kl, *_), *_ = by_loops(student.get(), teacher.get(), different)
    assert kl != pytest.approx(float(found[1].kl[0]), rel=1e-3)  # the teacher's prompt matters


STATES = "123"  # and the end token, which nothing follows
# The teacher never comes to the third state, the student does, and does not come back as the teacher would.
TEACHER = np.asarray([[2, 1, 0, 1], [2, 1, 0, 1], [0, 3, 0, 1]]) / 4
STUDENT = np.asarray([[1, 1, 1, 1], [1, 2, 1, 0], [0, 1, 3, 0]]) / 4


def markov_model(folder: Path, transitions: np.ndarray, floor: float) -> LazyModel:
    """A real model that predicts by the last token alone: its hidden state names that token, its output
    matrix holds the transitions. Where they are 0 it gives `floor`."""
    tokenizer = make_tokenizer()
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        rms_norm_eps=1e-12,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model: Any = Qwen2ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(len(tokenizer), 32))
        ids = [*tokenizer.convert_tokens_to_ids(list(STATES)), tokenizer.eos_token_id]
        matrix = torch.full((len(tokenizer), 32), -200.0)
        ways = torch.from_numpy(np.log(np.maximum(transitions, floor)).T.astype(np.float32))
        matrix[np.ix_(ids, ids[:3])] = ways
        model.get_output_embeddings().weight.copy_(matrix / math.sqrt(32))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return lazy(folder)


def all_paths(transitions: np.ndarray, length: int) -> list[list[int]]:
    """Every completion of up to so many tokens from state 0, each as often as 4^length of them have it."""
    paths: list[tuple[list[int], float]] = [([], 4**length)]
    for _ in range(length):
        ended = [one for one in paths if one[0][-1:] == [3]]
        paths = ended + [
            ([*path, after], weight * transitions[(path or [0])[-1], after])
            for path, weight in paths
            if path[-1:] != [3]
            for after in range(4)
        ]
    return [path for path, weight in paths for _ in range(round(weight))]


def in_closed_form(q: np.ndarray, p: np.ndarray, length: int) -> dict[str, np.ndarray]:
    """Expectations at every position from the chains' state distributions, those that ended left out."""
    with np.errstate(divide="ignore", invalid="ignore"):
        at_state = {
            "kl": np.where(p > 0, p * np.log(p / q), 0).sum(-1),
            "entropy": -np.where(q > 0, q * np.log(q), 0).sum(-1),
            "teacher_nll": -np.where(q > 0, q * np.log(p), 0).sum(-1),
            "teacher_entropy": -np.where(p > 0, p * np.log(p), 0).sum(-1),
        }
    found: dict[str, list[float]] = {}
    for writer, chain in (("student", q), ("teacher", p)):
        alive = np.asarray([1.0, 0.0, 0.0])
        for _ in range(length):
            for name, values in at_state.items():
                found.setdefault(f"{name} {writer}", []).append(float(alive @ values / alive.sum()))
            alive = alive @ chain[:, :3]
    return {name: np.asarray(values) for name, values in found.items()}


@pytest.mark.slow
def test_a_markov_model_drifts_as_its_states_say(tmp_path: Path) -> None:
    """R, ε and ExAccErr in closed form, through real models, from every completion that there is."""
    length = 5
    tiny = 2.0**-20  # where the chain has no way, the models see next to none, so that every KL is finite
    models = markov_model(tmp_path / "q", STUDENT, tiny), markov_model(tmp_path / "p", TEACHER, tiny)
    tokenizer = models[0].source.tokenizer
    ids = np.asarray([*tokenizer.convert_tokens_to_ids(list(STATES)), tokenizer.eos_token_id], dtype=np.int32)
    kinds = []
    for chain in (STUDENT, TEACHER):
        paths = all_paths(chain, length)
        assert len(paths) == 4**length
        assert min(map(len, paths)) < length  # some end early
        kinds.append(
            [Trace(Example(str(number % 16), "1"), ids[:1], ids[path]) for number, path in enumerate(paths)]
        )
    found = some(measure(*models, *kinds, cache=tmp_path / "cache", resamples=50))
    assert len(found) == length
    assert found.problems == 16
    q, p = (
        np.maximum(chain, tiny) / np.maximum(chain, tiny).sum(-1, keepdims=True)
        for chain in (STUDENT, TEACHER)
    )
    expected = in_closed_form(q, p, length)
    values = {name: curve.value for name, curve in found.curves.items()}
    np.testing.assert_allclose(values["kl_student_written"], expected["kl student"], rtol=1e-4)
    np.testing.assert_allclose(values["kl_teacher_written"], expected["kl teacher"], rtol=1e-4)
    np.testing.assert_allclose(values["student_nll_student_written"], expected["entropy student"], rtol=1e-4)
    np.testing.assert_allclose(
        values["teacher_nll_teacher_written"], expected["teacher_entropy teacher"], rtol=1e-4
    )
    np.testing.assert_allclose(
        values["teacher_nll_student_written"], expected["teacher_nll student"], rtol=1e-4
    )
    for at in range(1, length + 1):
        risk = math.fsum(expected["kl student"][:at])
        epsilon = math.fsum(expected["kl teacher"][:at]) / at
        share = (risk - at * epsilon) / (at * epsilon) * 100
        assert values["exaccerr"][at - 1] == pytest.approx(share, rel=1e-3, abs=1e-3)
    assert values["exaccerr"][0] == pytest.approx(0, abs=1e-3)  # the same prompt
    assert values["exaccerr"][-1] > 20
    assert (np.diff(values["exaccerr"]) > 0).all()


def made_up(rng: np.random.Generator, completions: int, longest: int, scale: float) -> list[TokenDrift]:
    """Completions of one problem: it makes all of them harder or easier together."""
    ease = rng.gamma(2.0, 0.5)
    found = []
    for _ in range(completions):
        length = int(rng.integers(1, longest + 1))
        columns = scale * ease * rng.gamma(1.0, 1.0, size=(3, length)) * (1 + np.arange(length) / 10)
        found.append(TokenDrift(*columns.astype(np.float32)))
    return found


def a_set(
    rng: np.random.Generator, problems: int, completions: int, longest: int, scale: float
) -> tuple[list[TokenDrift], list[int]]:
    sets = [made_up(rng, completions, longest, scale) for _ in range(problems)]
    return [one for own in sets for one in own], np.repeat(np.arange(problems), completions).tolist()


def definition(
    kinds: list[tuple[list[TokenDrift], list[int]]], last: int, drawn: Any
) -> dict[str, list[float]]:
    """Curves by loops, each problem as often as it is drawn."""
    found: dict[str, list[float]] = {}
    for name, (tokens, problems) in zip(("student", "teacher"), kinds, strict=True):
        for column in TokenDrift._fields:
            for at in range(last):
                values = [
                    float(getattr(one, column)[at])
                    for one, problem in zip(tokens, problems, strict=True)
                    for _ in range(drawn[problem])
                    if len(one.kl) > at
                ]
                mean = math.fsum(values) / len(values) if values else math.nan
                found.setdefault(f"{column}_{name}_written", []).append(mean)
    risk = list(itertools.accumulate(found["kl_student_written"]))
    expected = list(itertools.accumulate(found["kl_teacher_written"]))
    found["exaccerr"] = [(r - e) / e * 100 for r, e in zip(risk, expected, strict=True)]
    return found


def test_curves_and_intervals_are_the_definition_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    kinds = [a_set(rng, 12, 2, 20, scale) for scale in (1.5, 1.0)]
    resamples = 40
    # With two problems left many resamples have none of them: they tell nothing about what is behind.
    options = {"resamples": resamples, "seed": 5, "least_problems": 1}
    found = some(compare(kinds[0][0], kinds[1][0], kinds[0][1], kinds[1][1], **options))
    last = len(found)
    values = definition(kinds, last, [1] * 12)
    samples = [definition(kinds, last, row) for row in draw(12, resamples, 5).tolist()]
    assert set(values) == set(found.curves)
    undefined = 0
    for name, curve in found.curves.items():
        np.testing.assert_allclose(curve.value[:last], values[name], rtol=1e-6)
        drawn = [sample[name] for sample in samples]
        undefined += int(np.isnan(drawn).sum())
        bounds = np.nanpercentile(drawn, [2.5, 97.5], axis=0)
        np.testing.assert_allclose(curve.low[:last], bounds[0], rtol=1e-6)
        np.testing.assert_allclose(curve.high[:last], bounds[1], rtol=1e-6)
    assert undefined > 0
    # In blocks of positions it is the same, also across their borders.
    monkeypatch.setattr(distill.analysis.drift, "_BLOCK", 4)
    again = some(compare(kinds[0][0], kinds[1][0], kinds[0][1], kinds[1][1], **options))
    for name, curve in found.curves.items():
        for part, expected in vars(curve).items():
            np.testing.assert_allclose(getattr(again.curves[name], part), expected, rtol=1e-12)


def test_figures_are_the_curves_at_marks_and_means_over_all_tokens() -> None:
    rng = np.random.default_rng(0)
    kinds = [a_set(rng, 30, 2, 100, scale) for scale in (1.5, 1.0)]
    found = some(compare(kinds[0][0], kinds[1][0], kinds[0][1], kinds[1][1]))
    assert 64 < len(found) < 100
    excess = found.curves["exaccerr"]
    for name, at in (("exaccerr@32", 32), ("exaccerr@64", 64), ("exaccerr", len(found))):
        figure = found.figures[name]
        assert (figure.value, figure.low, figure.high) == tuple(v[at - 1] for v in vars(excess).values())
        assert figure.low < figure.value < figure.high
    assert "exaccerr@128" not in found.figures
    every = np.concatenate([one.teacher_nll for one in kinds[0][0]], dtype=np.float64)
    figure = found.figures["teacher_nll_student_written"]
    assert figure.value == pytest.approx(every.mean())
    assert figure.low < figure.value < figure.high


def test_curves_end_where_a_tenth_or_ten_of_the_problems_are_left() -> None:
    def ones(lengths: list[int]) -> list[TokenDrift]:
        return [TokenDrift(*np.ones((3, length), dtype=np.float32)) for length in lengths]

    lengths = list(range(1, 31))  # 30 problems, one of every length: at position l there are 31 - l
    found = some(compare(ones(lengths), ones([40] * 30), each(30), each(30), resamples=20))
    assert len(found) == 21
    assert found.least_problems == 10
    assert found.reach["student_written"].tolist() == list(range(30, 9, -1))
    assert found.reach["teacher_written"].tolist() == [30] * 21
    assert "position 21" in found.notes[0]
    assert "at least 10 problems" in found.notes[0]
    assert "30 and 40 tokens" in found.notes[0]
    # Two completions of one problem are one problem's.
    twice = some(compare(ones(lengths * 2), ones([40] * 30), each(30) * 2, each(30), resamples=20))
    assert len(twice) == 21
    assert twice.reach["student_written"].tolist() == list(range(60, 19, -2))
    many = some(compare(ones(lengths * 10), ones([40] * 300), each(300), each(300), resamples=20))
    assert many.least_problems == 30
    assert len(many) == 28
    few = some(compare(ones([3, 5]), ones([4, 9]), [0, 1], [0, 1], resamples=20))
    assert len(few) == 3  # of two problems both


@pytest.mark.slow
def test_where_nothing_was_written_there_is_no_drift() -> None:
    nothing, one = (
        TokenDrift(*np.zeros((3, 0), dtype=np.float32)),
        TokenDrift(*np.ones((3, 1), dtype=np.float32)),
    )
    assert compare([], [], [], []) is None
    assert compare([nothing] * 12, [one] * 12, each(12), each(12)) is None
    found = some(compare([one] * 12, [one] * 11 + [nothing], each(12), each(12), resamples=20))
    assert len(found) == 1
    assert found.figures["exaccerr"].value == pytest.approx(0)
    assert picture(found).startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """100 made-up sets whose ExAccErr is known: 50 %, at every position. Completions of a problem are alike,
    so an interval over completions would be far too narrow."""
    rng = np.random.default_rng(1)
    covered, single = [], []
    for seed in range(100):
        kinds = [a_set(rng, 50, 4, 12, scale) for scale in (1.5, 1.0)]
        found = some(compare(kinds[0][0], kinds[1][0], kinds[0][1], kinds[1][1], resamples=150, seed=seed))
        excess = found.curves["exaccerr"]
        covered.append((excess.low <= 50) & (excess.high >= 50))
        # The same, as if every completion were a problem of its own.
        apart = some(compare(kinds[0][0], kinds[1][0], each(200), each(200), resamples=150, seed=seed))
        last = apart.figures["exaccerr"]
        single.append(last.low <= 50 <= last.high)
    shares = np.stack([row[:10] for row in covered]).mean(0)
    assert (shares > 0.88).all()
    assert (shares < 1).all()
    assert np.mean(single) < 0.85


@pytest.mark.slow
def test_a_student_that_is_its_teacher_has_no_drift_and_no_excess(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    model = lazy(tiny_pair[1])
    kinds = [traces(model.get(), written) for written in (STUDENT_WROTE, TEACHER_WROTE)]
    found = some(measure(model, model, *kinds, cache=tmp_path, resamples=50))
    for writer in ("student", "teacher"):
        assert np.abs(found.curves[f"kl_{writer}_written"].value).max() < 1e-6
        assert found.curves[f"teacher_nll_{writer}_written"].value.min() > 0.5
    assert np.isnan(found.curves["exaccerr"].value).all()
    assert "exaccerr" not in found.figures
    assert any("undefined" in note for note in found.notes)
    assert json.loads(json.dumps(found.json(), allow_nan=False))["curves"]["exaccerr"]["low"] == [None] * len(
        found
    )
    assert picture(found).startswith(b"\x89PNG")


def test_a_student_that_errs_least_on_its_own_text_has_a_negative_excess_and_is_told_why() -> None:
    rng = np.random.default_rng(0)
    kinds = [a_set(rng, 40, 3, 12, scale) for scale in (0.2, 1.0)]
    found = some(compare(kinds[0][0], kinds[1][0], kinds[0][1], kinds[1][1], resamples=200))
    assert found.figures["exaccerr"].value == pytest.approx(-80, abs=10)
    assert any("negative" in note for note in found.notes)
    turned = some(compare(kinds[1][0], kinds[0][0], kinds[1][1], kinds[0][1], resamples=200))
    assert turned.figures["exaccerr"].low > 0
    assert not any("negative" in note for note in turned.notes)


def test_an_excess_over_rounding_alone_is_undefined() -> None:
    """The same model twice, up to the last bits: no share of what they make means anything."""
    rng = np.random.default_rng(0)
    kinds = [a_set(rng, 40, 1, 30, scale) for scale in (1e-7, 1e-8)]
    found = some(compare(kinds[0][0], kinds[1][0], kinds[0][1], kinds[1][1], resamples=50))
    for values in vars(found.curves["exaccerr"]).values():
        assert np.isnan(values).all()
    assert any("undefined" in note for note in found.notes)


@pytest.mark.slow
def test_json_keeps_the_ends_and_no_more_than_200_points_of_a_curve() -> None:
    rng = np.random.default_rng(0)
    kinds = [a_set(rng, 20, 1, 2000, scale) for scale in (1.5, 1.0)]
    found = some(compare(kinds[0][0], kinds[1][0], kinds[0][1], kinds[1][1], resamples=20))
    assert len(found) > 500
    value = json.loads(json.dumps(found.json(), allow_nan=False))
    curves = value["curves"]
    assert len(curves["position"]) == 200
    assert value["positions"] == len(found)
    assert (curves["position"][0], curves["position"][-1]) == (1, len(found))
    for place, position in enumerate(curves["position"]):
        assert curves["exaccerr"]["high"][place] == found.curves["exaccerr"].high[position - 1]
        assert curves["reach"]["student_written"][place] == found.reach["student_written"][position - 1]
    assert picture(found, "long").startswith(b"\x89PNG")
    assert value["figures"]["exaccerr@256"]["value"] == found.curves["exaccerr"].value[255]


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_where_it_was(
    tiny_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distill.analysis.token_divergence, "_TRACES_PER_SHARD", 1)
    student, teacher = map(lazy, tiny_pair)
    own = traces(student.get(), STUDENT_WROTE)
    whole = token_drift(student, teacher, own, cache=tmp_path / "whole")
    read, reads = distill.analysis.token_divergence._read, []

    def dies(*args: Any) -> Any:
        reads.append(args)
        if len(reads) == 3:
            raise KeyboardInterrupt
        return read(*args)

    monkeypatch.setattr(distill.analysis.token_divergence, "_read", dies)
    with pytest.raises(KeyboardInterrupt):
        token_drift(student, teacher, own, cache=tmp_path / "parts")
    again = token_drift(student, teacher, own, cache=tmp_path / "parts")
    assert len(reads) == 5  # two that were there, one that was lost, that one again and the last
    for one, other in zip(whole, again, strict=True):
        np.testing.assert_array_equal(np.stack(one), np.stack(other))
    # All there: no model is loaded. Another teacher or another prompt is another cache.
    unread = lazy(tiny_pair[0]), lazy(tiny_pair[1])
    token_drift(*unread, own, cache=tmp_path / "parts")
    assert not any(model.loaded for model in unread)
    assert len(reads) == 5
    token_drift(student, student, own, cache=tmp_path / "parts")
    assert len(reads) == 9
    own[0].teacher_view = TeacherView(own[0].prompt_ids[1:], own[0].completion_ids)
    token_drift(student, teacher, own, cache=tmp_path / "parts")
    assert len(reads) == 13


@pytest.mark.slow
def test_what_does_not_compare_is_refused_in_a_sentence(
    tiny_pair: tuple[Path, Path], tmp_path: Path, permuted_tokenizer: Any
) -> None:
    student, teacher = map(lazy, tiny_pair)
    own = traces(student.get(), STUDENT_WROTE)
    teacher.get().model.save_pretrained(tmp_path / "other")
    permuted_tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(
        UserError, match=r"the vocabularies differ.*choose a teacher of the student's vocabulary"
    ):
        measure(student, lazy(tmp_path / "other"), own, own, cache=tmp_path)
    with pytest.raises(UserError, match=r"problem 9= there are the student's alone \(and 0 more"):
        measure(student, teacher, own, [own[0], own[1], own[3]], cache=tmp_path)
    with pytest.raises(UserError, match=r"problem 3\+4= there are the teacher's alone \(and 1 more"):
        measure(student, teacher, own[1:3], own, cache=tmp_path)
    fitting = Trace(own[0].example, own[0].prompt_ids, np.full(128 - 4, 5, dtype=np.int32))
    assert len(token_drift(student, teacher, [fitting], cache=tmp_path)[0].kl) == 124
    longer = Trace(own[0].example, own[0].prompt_ids, np.full(128 - 3, 5, dtype=np.int32))
    with pytest.raises(UserError, match=r"problem 3\+4= have 129 tokens.*\(128\): allow shorter completions"):
        token_drift(student, teacher, [longer], cache=tmp_path)
    with torch.no_grad():
        teacher.get().model.get_output_embeddings().weight.fill_(math.nan)
    with pytest.raises(UserError, match="not finite for problem 8"):
        token_drift(student, teacher, own, cache=tmp_path / "fresh")
