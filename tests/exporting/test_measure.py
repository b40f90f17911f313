"""Tests of the comparison of an export with the full student, against loops in double precision."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from distill.data.trace import Example, Trace
from distill.exporting.measure import compare_texts, measure_fit, same_spelling, weights_bytes
from distill.models.language_model import LanguageModel


def traces(lm: LanguageModel) -> list[Trace]:
    rng = np.random.default_rng(0)
    made = []
    for number, length in enumerate((5, 9, 3, 7)):
        ids = rng.integers(2, lm.vocab_size, 6 + length).astype(np.int32)
        example = Example(str(number), f"problem {number // 2}", None)
        made.append(Trace(example, ids[:6], ids[6:]))
    return made


def test_nll_and_kl_are_their_definitions(student: LanguageModel, teacher: LanguageModel) -> None:
    read = traces(student)
    found = measure_fit(student, teacher, read)
    nll, kl, same, tokens = [0.0, 0.0], 0.0, 0, 0
    for trace in read:
        ids = torch.tensor([[*trace.prompt_ids, *trace.completion_ids]])
        with torch.no_grad():
            logits = [
                lm.model(input_ids=ids).logits[0, :, : lm.vocab_size].double() for lm in (student, teacher)
            ]
        for place, token in enumerate(trace.completion_ids, start=len(trace.prompt_ids) - 1):
            p, q = (torch.softmax(own[place], -1).tolist() for own in logits)
            nll = [total - math.log(own[token]) for total, own in zip(nll, (p, q), strict=True)]
            kl += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
            same += max(range(len(p)), key=p.__getitem__) == max(range(len(q)), key=q.__getitem__)
            tokens += 1
    assert (found.traces, found.tokens) == (4, tokens)
    values = [found.full, found.export, found.difference, found.kl, found.same]
    expected = [nll[0], nll[1], nll[1] - nll[0], kl, same]
    assert [one.value * tokens for one in values] == pytest.approx(expected, rel=1e-5)
    assert found.kl.low <= found.kl.value <= found.kl.high  # two problems, of which the first has two traces


@pytest.mark.slow
def test_a_model_beside_itself_is_the_same(student: LanguageModel) -> None:
    prompts = [[3, 4, 5], [6, 7]]
    texts = compare_texts(student, student, prompts, 6)
    assert (texts.prompts, texts.tokens, texts.same, texts.alike) == (2, 6, 2, 1.0)
    assert texts.full > 0 < texts.export
    assert same_spelling(student, student, ["1+1", "2*3"]) == 2
    fit = measure_fit(student, student, traces(student))
    assert (fit.kl.value, fit.difference.value, fit.same.value) == (0.0, 0.0, 1.0)


@pytest.mark.slow
def test_other_texts_are_told_from_the_first_token_on(student: LanguageModel, teacher: LanguageModel) -> None:
    texts = compare_texts(student, teacher, [[3, 4, 5], [6, 7]], 6)
    assert texts.alike < 1.0
    assert texts.same < 2


def test_sizes_are_those_of_the_weights(tiny_pair: tuple[Path, Path], student: LanguageModel) -> None:
    size = (tiny_pair[0] / "model.safetensors").stat().st_size
    assert weights_bytes(tiny_pair[0]) == size
    own = sum(parameter.numel() for parameter in student.model.parameters()) * 4
    assert weights_bytes(Path("owner/name"), student.model) == own
    assert own < size < 1.1 * own + 10_000
