"""Tests of both protocols of ExAccErr against loops over plain forward passes, and of cut prefixes."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_drift import by_loops, definition, lazy, some

from distill.analysis.drift_curves import Drift
from distill.analysis.drift_figure import picture
from distill.analysis.drift_prefixes import PrefixDrift, measure_after_prefixes
from distill.analysis.measure_drift import measure_drift
from distill.analysis.token_divergence import TokenDrift
from distill.benchmarks import arithmetic
from distill.data.trace import Example, TeacherView, Trace
from distill.evaluation.benchmark import Benchmark
from distill.evaluation.report import markdown
from distill.evaluation.run import ask
from distill.generation.engines import HfEngine
from distill.generation.sampling import Sampling
from distill.models.find import find_model
from distill.models.language_model import LanguageModel
from distill.models.lazy import LazyModel
from distill.tiny import task

PROBLEMS = 12
LENGTHS = (2, 5, 9)


@pytest.fixture(scope="module")
def untrained(tiny_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pair's student before some training."""
    folder = tmp_path_factory.mktemp("untrained")
    lm = find_model(str(tiny_pair[0]), key="model").load()
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=noise)
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


def a_benchmark(**sampling: Any) -> Benchmark:
    texts = task.problems(PROBLEMS, split="test", operations=(2, 4))
    examples = [Example(str(number), text, gold="0") for number, text in enumerate(texts)]
    return Benchmark(
        "sums",
        lambda path, limit: examples,
        arithmetic.grade,
        sampling=Sampling(**{"max_new_tokens": 8} | sampling),
    )


def asked_of(benchmark: Benchmark, models: Sequence[LazyModel]) -> Any:
    return tuple(ask(benchmark, model.source) for model in models)


def places(folder: Path, count: int) -> Any:
    return tuple(folder / "sums" / name for name in ("student", "teacher", "prefixes")[:count])


def rollouts(benchmark: Benchmark, models: Sequence[LazyModel], folder: Path, **options: Any) -> Drift:
    asked = asked_of(benchmark, models[:2])
    cache = folder / "cache"
    found = measure_drift([asked], models[0], models[1], kept=[places(folder, 2)], cache=cache, **options)
    return some(found)


def prefixes(
    benchmark: Benchmark, models: Sequence[LazyModel], folder: Path, lengths: Sequence[int] = LENGTHS
) -> PrefixDrift:
    asked, kept = asked_of(benchmark, models), places(folder, 3)
    found = measure_after_prefixes([asked], *models[:3], kept=[kept], cache=folder / "cache", lengths=lengths)
    assert found is not None
    return found


@pytest.fixture
def models(tiny_pair: tuple[Path, Path], untrained: Path) -> list[LazyModel]:
    """Student, teacher, untrained student."""
    return [lazy(folder) for folder in (*tiny_pair, untrained)]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[int], list[int]]]:
    """What models wrote: their name, the prompt, the text."""
    notes: list[tuple[str, list[int], list[int]]] = []
    write = HfEngine.write

    def note(self: HfEngine, requests: Any, sampling: Any) -> Any:
        for row, one in write(self, requests, sampling):
            assert one.ids is not None
            notes.append((self.model.source.name, requests[row].prompt_ids.tolist(), one.ids.tolist()))
            yield row, one

    monkeypatch.setattr(HfEngine, "write", note)
    return notes


def in_doubles(model: LazyModel) -> LanguageModel:
    lm = model.source.load()
    lm.model.double()
    return lm


def greedy(lm: LanguageModel, prompt: list[int], most: int) -> list[int]:
    """The likeliest next token, again and again, each from a forward pass over everything before it."""
    ids: list[int] = []
    while len(ids) < most and not set(ids) & set(lm.end_ids):
        with torch.no_grad():
            logits = lm.model(torch.tensor([prompt + ids])).logits[0, -1, : lm.vocab_size]
        ids.append(int(logits.argmax()))
    return ids


def errors(models: Sequence[LanguageModel], prompt: list[int], text: list[int]) -> TokenDrift:
    """Loops over both models' distributions, in double precision."""
    trace = Trace(Example("", ""), np.asarray(prompt), np.asarray(text))
    trace.teacher_view = TeacherView(trace.prompt_ids, trace.completion_ids)
    return TokenDrift(*np.asarray(by_loops(models[0], models[1], trace)).reshape(-1, 3).T)


def assert_is_the_definition(
    found: Drift, models: Sequence[LanguageModel], pairs: list[tuple[list[int], list[int], list[int]]]
) -> None:
    """A drift against its definition: of each problem what both models read, and what either wrote."""
    kinds = [
        ([errors(models, prompt, texts[kind]) for prompt, *texts in pairs], list(range(len(pairs))))
        for kind in (0, 1)
    ]
    expected = definition(kinds, len(found), [1] * len(pairs))
    assert found.problems == len(pairs)
    for name, curve in found.curves.items():
        np.testing.assert_allclose(curve.value, expected[name], rtol=2e-4, atol=2e-4)
    end = found.figures["exaccerr"]
    assert end.value == pytest.approx(expected["exaccerr"][-1], rel=2e-4)
    assert end.low < end.value < end.high
    assert abs(end.value) > 1  # there is something to see


@pytest.mark.slow
def test_own_rollouts_are_the_definition_over_plain_forward_passes(
    models: list[LazyModel], tmp_path: Path
) -> None:
    benchmark = a_benchmark(temperature=0.0)
    found = rollouts(benchmark, models, tmp_path, lengths=[2, 4, 100])
    plain = [in_doubles(model) for model in models]
    prompts = [request.prompt_ids.tolist() for request in asked_of(benchmark, models)[0].requests]
    pairs = [(prompt, *(greedy(lm, prompt, 8) for lm in plain[:2])) for prompt in prompts]
    assert_is_the_definition(found, plain, pairs)
    curve = found.curves["exaccerr"].value
    assert {name: figure.value for name, figure in found.figures.items() if "exaccerr" in name} == {
        "exaccerr": curve[-1], "exaccerr@2": curve[1], "exaccerr@4": curve[3],
    }  # fmt: skip


@pytest.mark.slow
def test_continued_prefixes_are_the_definition_over_plain_forward_passes(
    models: list[LazyModel], tmp_path: Path
) -> None:
    """The untrained student's own greedy text, cut, and both models' greedy continuations of it."""
    benchmark = a_benchmark(temperature=0.0)
    found = prefixes(benchmark, models, tmp_path, (2, 7))
    assert (found.problems, found.lengths, list(found.after)) == (PROBLEMS, (2, 7), [2, 7])
    plain = [in_doubles(model) for model in models]
    prompts = [request.prompt_ids.tolist() for request in asked_of(benchmark, models)[0].requests]
    for length, drift in found.after.items():
        begun = [prompt + greedy(plain[2], prompt, length) for prompt in prompts]
        begun = [ids for prompt, ids in zip(prompts, begun, strict=True) if len(ids) == len(prompt) + length]
        begun = [ids for ids in begun if ids[-1] not in plain[2].end_ids]
        assert_is_the_definition(
            drift, plain, [(ids, *(greedy(lm, ids, 8) for lm in plain[:2])) for ids in begun]
        )


@pytest.mark.slow
def test_after_an_empty_prefix_it_is_the_drift_of_own_rollouts(
    models: list[LazyModel], tmp_path: Path, written: Any
) -> None:
    benchmark = replace(a_benchmark(temperature=1.0), samples=2)
    own = rollouts(benchmark, models, tmp_path, lengths=[])
    texts = len(written)
    (after,) = prefixes(benchmark, models, tmp_path, [0]).after.values()
    assert {name for name, *_ in written[texts:]} == {
        models[2].source.name
    }  # the same texts, from the same place
    for name, curve in own.curves.items():
        for part, values in vars(curve).items():
            np.testing.assert_array_equal(getattr(after.curves[name], part), values)
    assert str(after.figures) == str(own.figures)  # NaNs among them are not equal
    assert after.completions == own.completions == (2 * PROBLEMS, 2 * PROBLEMS)


@pytest.mark.slow
def test_texts_are_cut_before_their_end_and_continued_by_both_models(
    models: list[LazyModel], tmp_path: Path, written: list[Any]
) -> None:
    benchmark = replace(a_benchmark(temperature=1.5, max_new_tokens=4), samples=3)
    lengths = (3, 9, 16)
    found = prefixes(benchmark, models, tmp_path, lengths)
    student, teacher, untrained = (model.source.name for model in models)
    ends = models[0].source.end_ids
    texts = [(prompt, ids) for name, prompt, ids in written if name == untrained]
    assert len(texts) == 3 * PROBLEMS
    assert max(len(ids) for _, ids in texts) == 16  # as long as the longest prefix, and no longer
    cut = {
        length: sorted(
            prompt + ids[:length]
            for prompt, ids in texts
            if len(ids) >= length and not {*ids[:length]} & {*ends}
        )
        for length in lengths
    }
    assert len(cut[3]) > len(cut[9]) > len(cut[16]) > 0  # some ended in between
    for name in (student, teacher):
        asked = sorted(prompt for writer, prompt, _ in written if writer == name)
        assert asked == sorted(ids for own in cut.values() for ids in own)
        assert max(len(ids) for writer, _, ids in written if writer == name) == 4
    for length, drift in found.after.items():
        assert drift.completions == (len(cut[length]), len(cut[length]))
    # The samples of a problem, and the lengths, draw their own numbers.
    assert len({tuple(ids) for writer, _, ids in written if writer == student}) > len(written) / 4


@pytest.mark.slow
def test_a_length_that_few_texts_reach_is_left_out_and_said(models: list[LazyModel], tmp_path: Path) -> None:
    benchmark = a_benchmark(temperature=0.0)
    context = models[0].source.context_length
    found = prefixes(benchmark, models, tmp_path, (2, context))
    assert list(found.after) == [2]
    assert found.notes[0].startswith(f"No drift after prefixes of {context} tokens: too few")
    options = {"kept": [places(tmp_path, 3)], "cache": tmp_path / "cache", "lengths": (context,)}
    assert measure_after_prefixes([asked_of(benchmark, models)], *models[:3], **options) is None


@pytest.mark.slow
def test_json_table_and_figure_have_every_length(models: list[LazyModel], tmp_path: Path) -> None:
    found = prefixes(a_benchmark(temperature=0.0), models, tmp_path)
    value = json.loads(json.dumps(found.json(), allow_nan=False))
    assert value["lengths"] == [2, 5, 9]
    assert set(value["curves"]) == set(value["after"]) == {"2", "5", "9"}
    drift = found.after[5]
    assert value["figures"]["exaccerr@5"] == drift.figures["exaccerr"].json()
    assert value["curves"]["5"]["exaccerr"]["value"][-1] == drift.figures["exaccerr"].value
    assert value["after"]["5"]["problems"] == drift.problems
    said = {"protocol": "prefixes", "teacher": "the teacher", "prefix_model": "the untrained"}
    text = markdown({"name": "x", "benchmarks": {}, "drift": said | value})
    assert "Drift from the teacher on continuations of what the untrained wrote at 12 problems" in text
    row = next(line for line in text.splitlines() if line.startswith("| 5 |"))
    end = drift.figures["exaccerr"]
    assert row.startswith(
        f"| 5 | {drift.problems} | {len(drift)} | {end.value:.3g} [{end.low:.3g}, {end.high:.3g}] |"
    )
    assert picture(found, "a title").startswith(b"\x89PNG")


@pytest.mark.slow
def test_what_was_killed_goes_on_with_the_texts_that_are_there(
    models: list[LazyModel],
    tiny_pair: tuple[Path, Path],
    untrained: Path,
    tmp_path: Path,
    written: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    benchmark = a_benchmark(temperature=1.0)
    whole = prefixes(benchmark, models, tmp_path / "whole")
    every, student = sorted(written), models[0].source.name
    written.clear()
    write = HfEngine.write

    def dies(self: HfEngine, requests: Any, sampling: Any) -> Any:
        for row, one in write(self, requests, sampling):
            yield row, one
            if sum(name == student for name, *_ in written) == 5:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(HfEngine, "write", dies)
        with pytest.raises(KeyboardInterrupt):
            prefixes(benchmark, models, tmp_path / "parts")
    again = prefixes(benchmark, models, tmp_path / "parts")
    assert sorted(written) == every  # each text once
    assert again.json() == whole.json()
    # All there: no model is loaded. More lengths: only their texts are new.
    unread = [lazy(folder) for folder in (*tiny_pair, untrained)]
    assert prefixes(benchmark, unread, tmp_path / "parts").json() == whole.json()
    assert not any(model.loaded for model in unread)
    written.clear()
    more = prefixes(benchmark, models, tmp_path / "parts", (2, 3, 5, 9))
    assert {name for name, *_ in written} == {student, models[1].source.name}
    assert {length: drift.figures for length, drift in more.after.items() if length != 3} == {
        length: drift.figures for length, drift in whole.after.items()
    }
