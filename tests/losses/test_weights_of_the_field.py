"""Tests of token weights from the literature, each against its definition in plain Python."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distill.losses import weights
from distill.losses.signals import signals

STARTS, LENGTHS, COLUMNS = (0, 2, 1), (6, 1, 4), 8
TOKEN_SIGNALS = (
    "student_logprobs",
    "student_entropy",
    "teacher_logprobs",
    "sampler_logprobs",
    "initial_logprobs",
    "reference_logprobs",
    "pilot_logprobs",
)
Definition = Callable[[dict[str, list[float]]], list[float]]


def ratios(of: dict[str, list[float]], above: str, below: str) -> list[float]:
    return [math.exp(a - b) for a, b in zip(of[above], of[below], strict=True)]


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def iw_opd_by_loops(of: dict[str, list[float]], gamma: float = 0.5) -> list[float]:
    gaps = [abs(a - b) for a, b in zip(of["teacher_logprobs"], of["student_logprobs"], strict=True)]
    return [1 + gamma * (1 - sum(gaps[:t]) / sum(gaps)) for t in range(len(gaps))]


def later_by_loops(of: dict[str, list[float]]) -> list[float]:
    gains = [a - b for a, b in zip(of["teacher_logprobs"], of["student_logprobs"], strict=True)]
    return [sum(gains[t + 1 :]) / max(1, len(gains) - t - 1) for t in range(len(gains))]


def sequence_by_loops(of: dict[str, list[float]]) -> list[float]:
    mean = geometric_mean(ratios(of, "student_logprobs", "reference_logprobs"))
    return [min(mean, 16.0)] * len(of["student_logprobs"])


# Each weight of one completion alone; rho1 looks at the whole batch and has tests of its own.
DEFINITIONS: dict[str, tuple[Callable[..., Tensor], Definition]] = {
    "dft": (weights.dft, lambda of: [math.exp(x) for x in of["student_logprobs"]]),
    "iw_sft": (weights.iw_sft, sequence_by_loops),
    "iw_sft token": (
        partial(weights.iw_sft, level="token", min_ratio=0.2, max_ratio=1.8),
        lambda of: [min(max(r, 0.2), 1.8) for r in ratios(of, "student_logprobs", "reference_logprobs")],
    ),
    "tis": (
        weights.tis,
        lambda of: [min(r, 2.0) for r in ratios(of, "student_logprobs", "teacher_logprobs")],
    ),
    "tis sampler": (
        partial(weights.tis, behavior="sampler", max_ratio=0.7),
        lambda of: [min(r, 0.7) for r in ratios(of, "student_logprobs", "sampler_logprobs")],
    ),
    "eaft": (weights.eaft, lambda of: [h / 3 for h in of["student_entropy"]]),
    "eaft squared": (
        partial(weights.eaft, alpha=2.0),
        lambda of: [(h / 3) ** 2 for h in of["student_entropy"]],
    ),
    "psft": (
        weights.psft,
        lambda of: [r if r <= 1.28 else 0.0 for r in ratios(of, "student_logprobs", "reference_logprobs")],
    ),
    "t3s": (
        weights.t3s,
        lambda of: [
            0.0 if a > b else 1.0 for a, b in zip(of["pilot_logprobs"], of["initial_logprobs"], strict=True)
        ],
    ),
    "t3s reference": (
        partial(weights.t3s, base="reference"),
        lambda of: [
            0.0 if a > b else 1.0 for a, b in zip(of["pilot_logprobs"], of["reference_logprobs"], strict=True)
        ],
    ),
    "iw_opd": (weights.iw_opd, iw_opd_by_loops),
    "iw_opd 2": (partial(weights.iw_opd, gamma=2.0), partial(iw_opd_by_loops, gamma=2.0)),
    "later_log_ratio": (weights.later_log_ratio, later_by_loops),
}
every_weight = pytest.mark.parametrize("name", DEFINITIONS)


def draw(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(len(STARTS), COLUMNS, dtype=torch.bool)
    for row, (start, length) in enumerate(zip(STARTS, LENGTHS, strict=True)):
        mask[row, start : start + length] = True
    found = {
        name: (-2 * torch.rand(mask.shape, generator=generator, dtype=torch.float64)).to(dtype)
        for name in TOKEN_SIGNALS
    }
    found["student_entropy"] = -found["student_entropy"]
    return mask, found


def call(function: Callable[..., Tensor], mask: Tensor, values: dict[str, Tensor]) -> Tensor:
    return function(**{name: {**values, "mask": mask}[name] for name in signals(function)})


@pytest.mark.covering(1)
@every_weight
@pytest.mark.parametrize("seed", range(4))
def test_a_weight_is_its_definition_on_each_completion(name: str, seed: int) -> None:
    function, definition = DEFINITIONS[name]
    mask, values = draw(seed)
    found = call(function, mask, values)
    assert found.shape == mask.shape
    for row in range(len(mask)):
        of = {key: value[row][mask[row]].tolist() for key, value in values.items()}
        assert found[row][mask[row]].tolist() == pytest.approx(definition(of), rel=1e-10, abs=1e-12)
    assert (found[~mask] == 0).all()


@pytest.mark.covering(1)
@every_weight
@pytest.mark.parametrize("outside", [math.nan, math.inf, -math.inf, 5.0])
def test_what_stands_outside_the_mask_changes_nothing(name: str, outside: float) -> None:
    mask, values = draw(5)
    dirty = {key: value.masked_fill(~mask, outside) for key, value in values.items()}
    assert torch.equal(call(DEFINITIONS[name][0], mask, values), call(DEFINITIONS[name][0], mask, dirty))


@every_weight
def test_no_weight_carries_gradient(name: str) -> None:
    mask, values = draw(6)
    live = {key: value.requires_grad_() for key, value in values.items()}
    assert not call(DEFINITIONS[name][0], mask, live).requires_grad


@every_weight
def test_half_precision_signals_give_single_precision_weights(name: str) -> None:
    mask, values = draw(7, torch.bfloat16)
    found = call(DEFINITIONS[name][0], mask, values)
    assert found.dtype == torch.float32
    exact = call(DEFINITIONS[name][0], mask, {key: value.double() for key, value in values.items()})
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.covering(2)
@every_weight
@pytest.mark.parametrize("signal", TOKEN_SIGNALS)
@pytest.mark.parametrize("extreme", [-math.inf, -60.0, 0.0])
def test_an_extreme_token_makes_no_weight_that_is_no_number(name: str, signal: str, extreme: float) -> None:
    mask, values = draw(8)
    values[signal][0, 2] = abs(extreme) if signal == "student_entropy" else extreme
    if signal == "student_entropy" and extreme == -math.inf:
        return  # no entropy is infinite
    found = call(DEFINITIONS[name][0], mask, values)
    assert not found.isnan().any()
    bounded = name not in ("psft", "tis", "iw_sft") or found.max() < 17
    assert bounded
    if name != "later_log_ratio":
        assert (found >= 0).all()
        assert found.isfinite().all()


def test_a_token_that_the_student_finds_impossible_gets_nothing() -> None:
    mask, values = draw(9)
    values["student_logprobs"][0, 2] = -math.inf
    for name in ("dft", "tis", "tis sampler", "psft"):
        assert call(DEFINITIONS[name][0], mask, values)[0, 2] == 0
    assert call(DEFINITIONS["iw_sft token"][0], mask, values)[0, 2] == 0.2  # its lower bound
    assert (call(DEFINITIONS["iw_sft"][0], mask, values)[0] == 0).all()


@pytest.mark.slow
@settings(derandomize=True, deadline=None, max_examples=60)
@given(lower=st.floats(-15, 0), higher=st.floats(-15, 0), other=st.floats(-15, 0))
def test_more_support_never_means_less_weight(lower: float, higher: float, other: float) -> None:
    """psft is the exception, by design: it drops what has moved far enough."""
    lower, higher = sorted((lower, higher))
    mask = torch.ones(1, 1, dtype=torch.bool)
    for name in ("dft", "iw_sft", "iw_sft token", "tis", "tis sampler"):
        low, high = (
            call(
                DEFINITIONS[name][0],
                mask,
                {key: torch.tensor([[x if key == "student_logprobs" else other]]) for key in TOKEN_SIGNALS},
            )
            for x in (lower, higher)
        )
        assert low <= high


def test_a_sequence_weight_is_free_of_length_bias() -> None:
    """The same tokens twice over have the same weight."""
    student = torch.tensor([[-1.0, -0.2, -2.0]], dtype=torch.float64)
    reference = torch.tensor([[-1.5, -0.3, -1.1]], dtype=torch.float64)
    once = weights.iw_sft(torch.ones(1, 3, dtype=torch.bool), student, reference)
    twice = weights.iw_sft(torch.ones(1, 6, dtype=torch.bool), student.repeat(1, 2), reference.repeat(1, 2))
    torch.testing.assert_close(twice, once.repeat(1, 2), rtol=1e-14, atol=0)
    gain = weights.later_log_ratio(torch.ones(1, 3, dtype=torch.bool), student, reference)
    longer = weights.later_log_ratio(
        torch.ones(1, 6, dtype=torch.bool), student.repeat(1, 2), reference.repeat(1, 2)
    )
    assert abs(longer[0, 0] - gain[0, 0]) < abs(gain[0, 0])  # a mean, and not a sum that doubles


@pytest.mark.parametrize("keep", [0.01, 0.3, 0.6, 1.0])
def test_rho1_keeps_the_tokens_on_which_the_student_is_furthest_behind(keep: float) -> None:
    mask, values = draw(10)
    found = weights.rho1(mask, values["student_logprobs"], values["reference_logprobs"], keep=keep)
    assert set(found.unique().tolist()) <= {0.0, 1.0}
    excess = (values["reference_logprobs"] - values["student_logprobs"])[mask]
    chosen = found[mask].bool()
    assert int(chosen.sum()) == math.ceil(keep * int(mask.sum()))
    assert (found[~mask] == 0).all()
    if keep < 1:
        assert excess[chosen].min() > excess[~chosen].max()


def test_rho1_takes_what_the_student_finds_impossible_first_and_what_the_reference_does_last() -> None:
    mask = torch.ones(1, 3, dtype=torch.bool)
    student = torch.tensor([[-1.0, -math.inf, -1.0]])
    reference = torch.tensor([[-1.0, -1.0, -math.inf]])
    assert weights.rho1(mask, student, reference, keep=0.3).tolist() == [[0.0, 1.0, 0.0]]
    assert weights.rho1(mask, student, reference, keep=0.6).tolist() == [[1.0, 1.0, 0.0]]
    assert weights.rho1(torch.zeros(1, 3, dtype=torch.bool), student, reference).tolist() == [[0.0, 0.0, 0.0]]
    padded = torch.tensor([[False, True, True]])  # and what is no token comes behind even that
    assert weights.rho1(padded, student, reference, keep=1.0).tolist() == [[0.0, 1.0, 1.0]]


def test_t3s_keeps_a_token_that_the_pilot_left_as_it_was() -> None:
    """The pilot has learned what it finds likelier than the student before training did, and no more."""
    initial = torch.tensor([[-1.0, -1.0, -1.0, 0.0, -math.inf]], dtype=torch.float64)
    pilot = torch.tensor([[-1.5, -1.0, -0.5, 0.0, -math.inf]], dtype=torch.float64)
    found = weights.t3s(torch.ones(1, 5, dtype=torch.bool), pilot, initial)
    assert found.tolist() == [[1.0, 1.0, 0.0, 1.0, 1.0]]


@pytest.mark.parametrize("masks", ["most_confident", "least_confident"])
def test_t3s_controls_mask_as_many_tokens_by_the_untrained_students_confidence(masks: Any) -> None:
    for seed in range(5):
        mask, values = draw(seed)
        pilot, initial = values["pilot_logprobs"], values["initial_logprobs"]
        count = sum(a > b for a, b in zip(pilot[mask].tolist(), initial[mask].tolist(), strict=True))
        order = sorted(initial[mask].tolist(), reverse=masks == "most_confident")
        masked = order[:count]
        found = weights.t3s(mask, pilot, initial, masks=masks)
        assert 0 < count < len(order)
        assert [value in masked for value in initial[mask].tolist()] == (found[mask] == 0).tolist()
        assert (found[~mask] == 0).all()
        assert set(found[mask].tolist()) == {0.0, 1.0}
    with pytest.raises(ValueError, match=r"t3s: masks='all' is not one of anchors, most_confident"):
        signals(partial(weights.t3s, masks="all"))
    with pytest.raises(ValueError, match="t3s: base=reference lacks its log-probs"):
        weights.t3s(mask, pilot, initial, base="reference")


def test_psfts_weight_is_the_gradient_of_ppos_clipped_ratio_with_an_advantage_of_one() -> None:
    logprobs = torch.linspace(-3, -0.1, 50, dtype=torch.float64).requires_grad_()
    reference = torch.full((50,), -1.0, dtype=torch.float64)
    ratio = (logprobs - reference).exp()
    objective = torch.minimum(ratio, ratio.clamp(1 - 0.2, 1 + 0.28)).sum()
    (expected,) = torch.autograd.grad(objective, logprobs)
    found = weights.psft(torch.ones(1, 50, dtype=torch.bool), logprobs[None], reference[None])
    torch.testing.assert_close(found[0], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (partial(weights.iw_sft, min_ratio=2.0, max_ratio=1.0), r"iw_sft: min_ratio=2.0 and max_ratio=1.0"),
        (partial(weights.tis, max_ratio=0.0), r"tis: min_ratio=0.0 and max_ratio=0.0"),
        (partial(weights.eaft, alpha=-1.0), r"eaft: alpha=-1.0 must not be negative"),
        (partial(weights.eaft, alpha=math.nan), r"eaft: alpha=nan"),
        (partial(weights.psft, clip=-0.1), r"psft: clip=-0.1"),
        (partial(weights.rho1, keep=0.0), r"rho1: keep=0.0 is outside"),
        (partial(weights.rho1, keep=1.1), r"rho1: keep=1.1 is outside"),
        (partial(weights.iw_opd, gamma=-0.5), r"iw_opd: gamma=-0.5"),
    ],
)
def test_a_bad_parameter_is_refused_by_name(function: Callable[..., Tensor], message: str) -> None:
    mask, values = draw(11)
    with pytest.raises(ValueError, match=message):
        call(function, mask, values)


def test_a_behaviour_that_does_not_exist_is_refused() -> None:
    tis: Any = weights.tis
    function = partial(tis, behavior="someone")
    with pytest.raises(ValueError, match=r"tis: behavior='someone' is not one of model, sampler"):
        signals(function)
