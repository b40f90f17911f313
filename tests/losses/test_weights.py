"""Tests of token weights against plain Python on lists of logprobs, without padding or masks."""

import inspect
import itertools
import math
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distill.losses.controls import effective_sample_size, invert, shuffle
from distill.losses.signals import properties, signals
from distill.losses.weights import span_support_ratio, support_ratio, uniform

LEVELS = ("token", "prefix", "sequence")
TRANSFORMS = ("sigmoid", "ratio", "clip", "clip_exp", "relu")
CACHED = ("teacher_logprobs", "initial_logprobs", "sampler_logprobs")
SWITCHES: list[dict[str, Any]] = [
    {"level": level, "transform": transform, **extra}
    for level, transform, extra in itertools.product(
        LEVELS,
        TRANSFORMS,
        [
            {},
            {"temperature": 0.5},
            {"bias": -0.7},
            {"floor": 0.3},
            {"max_ratio": 0.9, "max_log_ratio": 0.8},
            {"temperature": 2.5, "temperature_is": "factor"},
            {"anneal": 0.8},
            {"temperature": 3.0, "bias": 0.4, "floor": 0.2, "max_ratio": 1.1, "anneal": 0.5},
        ],
    )
]
STARTS = (0, 2, 1)  # where the completions begin in their rows
LENGTHS = (6, 1, 4)
seeded = settings(derandomize=True, deadline=None, max_examples=60)
logprob = st.floats(-15, 0)


def support_ratio_by_loops(
    student: Sequence[float],
    teacher: Sequence[float],
    progress: float = 1.0,
    *,
    temperature: float = 1.0,
    temperature_is: str = "divisor",
    bias: float = 0.0,
    level: str = "token",
    transform: str = "sigmoid",
    max_ratio: float = 2.0,
    max_log_ratio: float = 5.0,
    floor: float = 0.0,
    anneal: float = 0.0,
) -> list[float]:
    """The weights of one completion, from the probabilities' geometric means."""
    share = 1.0 if anneal == 0 or progress >= anneal else progress / anneal
    weights = []
    for t in range(len(student)):
        first, last = {"token": (t, t), "prefix": (0, t), "sequence": (0, len(student) - 1)}[level]
        count = last - first + 1
        mean_student = math.exp(sum(student[first : last + 1]) / count)
        mean_teacher = math.exp(sum(teacher[first : last + 1]) / count)
        power = share * temperature if temperature_is == "factor" else share / temperature
        ratio = (mean_student / mean_teacher) ** power * math.exp(bias)
        weight = {
            "sigmoid": ratio / (1 + ratio),
            "ratio": ratio,
            "clip": min(ratio, max_ratio),
            "clip_exp": min(max(ratio, math.exp(-max_log_ratio)), math.exp(max_log_ratio)),
            "relu": max(math.log(ratio), 0.0),
        }[transform]
        weights.append(floor + (1 - floor) * weight)
    return weights


def ragged(seed: int) -> list[list[float]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (-3 * torch.rand(length, generator=generator, dtype=torch.float64)).tolist() for length in LENGTHS
    ]


def lay_out(rows: Sequence[Sequence[float]], outside: float = -1.0, width: int = 8) -> Tensor:
    """Rows beside prompts and padding, which hold the value `outside`."""
    out = torch.full((len(rows), width), outside, dtype=torch.float64)
    for index, (start, row) in enumerate(zip(STARTS, rows, strict=False)):
        out[index, start : start + len(row)] = torch.tensor(row, dtype=torch.float64)
    return out


def mask_of(rows: Sequence[Sequence[float]], width: int = 8) -> Tensor:
    return lay_out([[1.0] * len(row) for row in rows], 0.0, width).bool()


def weigh(
    student: Sequence[float], teacher: Sequence[float], progress: float = 1.0, **switches: Any
) -> Tensor:
    """The weights of one completion that fills its row."""
    return support_ratio(
        torch.ones(1, len(student), dtype=torch.bool),
        student_logprobs=torch.tensor([student], dtype=torch.float64),
        teacher_logprobs=torch.tensor([teacher], dtype=torch.float64),
        progress=progress,
        **switches,
    )[0]


def test_uniform_counts_every_completion_token_once() -> None:
    mask = mask_of(ragged(0))
    found = uniform(mask)
    assert found.is_floating_point()
    assert found.tolist() == [[float(value) for value in row] for row in mask.tolist()]


@pytest.mark.covering(1)
@pytest.mark.parametrize("switches", SWITCHES, ids=lambda s: "-".join(map(str, s.values())))
@pytest.mark.parametrize("progress", [0.3, 1.0])
def test_the_weights_are_their_definition(switches: dict[str, Any], progress: float) -> None:
    student, teacher = ragged(1), ragged(2)
    found = support_ratio(
        mask_of(student),
        student_logprobs=lay_out(student),
        teacher_logprobs=lay_out(teacher),
        progress=progress,
        **switches,
    )
    rows = [support_ratio_by_loops(s, t, progress, **switches) for s, t in zip(student, teacher, strict=True)]
    torch.testing.assert_close(found, lay_out(rows, outside=0.0), rtol=1e-12, atol=1e-14)


def test_the_default_weight_is_student_over_student_plus_teacher() -> None:
    student, teacher = ragged(1)[0], ragged(2)[0]
    expected = [math.exp(s) / (math.exp(s) + math.exp(t)) for s, t in zip(student, teacher, strict=True)]
    assert weigh(student, teacher).tolist() == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("temperature", [0.1, 1.0, 7.0])
def test_the_weight_is_one_half_where_student_and_teacher_agree(level: str, temperature: float) -> None:
    row = ragged(3)[0]
    assert weigh(row, row, level=level, temperature=temperature).tolist() == [0.5] * len(row)


@pytest.mark.parametrize(
    ("transform", "expected"),
    [("sigmoid", 0.5), ("ratio", 1.0), ("clip", 0.7), ("clip_exp", 1.0), ("relu", 0.0)],
)
def test_what_the_transforms_give_where_student_and_teacher_agree(transform: str, expected: float) -> None:
    assert weigh([-1.0], [-1.0], transform=transform, max_ratio=0.7).item() == expected


@seeded
@given(student=logprob, teacher=logprob, temperature=st.floats(0.7, 5), bias=st.floats(-5, 5))
def test_a_sigmoid_weight_lies_strictly_between_zero_and_one(
    student: float, teacher: float, temperature: float, bias: float
) -> None:
    assert 0 < weigh([student], [teacher], temperature=temperature, bias=bias).item() < 1


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
@seeded
@given(
    student=st.lists(logprob, min_size=1, max_size=5),
    teacher=st.lists(logprob, min_size=5, max_size=5),
    more=st.floats(0.01, 3),
    data=st.data(),
)
def test_a_weight_rises_with_the_students_log_prob_and_falls_with_the_teachers(
    level: str, student: list[float], teacher: list[float], more: float, data: st.DataObject
) -> None:
    teacher = teacher[: len(student)]
    at = data.draw(st.integers(0, len(student) - 1))

    def raised(row: list[float]) -> list[float]:
        return [*row[:at], row[at] + more, *row[at + 1 :]]

    reached = {"token": slice(at, at + 1), "prefix": slice(at, None), "sequence": slice(None)}[level]
    switches = {"level": level, "temperature": 2.0}
    before = weigh(student, teacher, **switches)
    likelier_to_student = weigh(raised(student), teacher, **switches)
    likelier_to_teacher = weigh(student, raised(teacher), **switches)
    assert (likelier_to_student[reached] > before[reached]).all()
    assert (likelier_to_teacher[reached] < before[reached]).all()
    untouched = torch.ones(len(student), dtype=torch.bool)
    untouched[reached] = False
    assert torch.equal(likelier_to_student[untouched], before[untouched])
    assert torch.equal(likelier_to_teacher[untouched], before[untouched])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_no_weight_carries_gradient(level: str, transform: str) -> None:
    student, teacher = lay_out(ragged(4)), lay_out(ragged(5))
    found = support_ratio(
        mask_of(ragged(4)),
        student_logprobs=student.requires_grad_(),
        teacher_logprobs=teacher.requires_grad_(),
        level=level,
        transform=transform,
    )
    assert not found.requires_grad
    assert found.grad_fn is None


def test_the_gradient_of_a_weighted_loss_holds_the_weight_fixed() -> None:
    generator = torch.Generator().manual_seed(6)
    theta = torch.randn(5, 7, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.randint(7, (5,), generator=generator)
    teacher = -2 * torch.rand(1, 5, generator=generator, dtype=torch.float64)
    mask = torch.ones(1, 5, dtype=torch.bool)
    written = theta.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).view(1, 5)
    weights = support_ratio(mask, student_logprobs=written, teacher_logprobs=teacher)
    (found,) = torch.autograd.grad(-(weights * written).sum(), theta)

    constant = torch.tensor(
        support_ratio_by_loops(written[0].tolist(), teacher[0].tolist()), dtype=torch.float64
    )
    one_hot = torch.nn.functional.one_hot(labels, 7)
    expected = constant.unsqueeze(-1) * (theta.detach().softmax(-1) - one_hot)
    torch.testing.assert_close(found, expected)


@pytest.mark.covering(1)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("outside", [torch.nan, -torch.inf, torch.inf, 5.0])
def test_what_stands_outside_the_mask_changes_nothing(level: str, transform: str, outside: float) -> None:
    student, teacher = ragged(7), ragged(8)
    mask = mask_of(student)
    switches: dict[str, Any] = {"level": level, "transform": transform, "bias": 0.2, "floor": 0.1}
    plain = support_ratio(
        mask, student_logprobs=lay_out(student), teacher_logprobs=lay_out(teacher), **switches
    )
    for one, other in ((outside, -1.0), (-1.0, outside), (outside, outside)):
        found = support_ratio(
            mask,
            student_logprobs=lay_out(student, one),
            teacher_logprobs=lay_out(teacher, other),
            **switches,
        )
        assert torch.equal(found, plain)
    assert (plain[~mask] == 0).all()
    assert (plain[mask] > 0).all()  # the floor's share, if nothing else


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_row_without_a_completion_gets_zeros_and_leaves_the_others_alone(
    level: str, transform: str
) -> None:
    mask = torch.tensor([[False, False], [True, True]])
    values = torch.tensor([[-1.0, -2.0], [-0.5, -0.25]])
    found = support_ratio(
        mask,
        student_logprobs=values,
        teacher_logprobs=torch.full((2, 2), -1.0),
        level=level,
        transform=transform,
    )
    assert found[0].tolist() == [0.0, 0.0]
    expected = support_ratio_by_loops([-0.5, -0.25], [-1.0, -1.0], level=level, transform=transform)
    assert found[1].tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("teacher", [-2.0, -math.inf])
def test_a_token_that_the_student_finds_impossible_has_the_least_weight(
    transform: str, teacher: float
) -> None:
    found = weigh([-1.0, -math.inf, -1.0], [-1.0, teacher, -1.0], transform=transform)
    assert found[1].item() == pytest.approx(math.exp(-5) if transform == "clip_exp" else 0, rel=1e-15)
    assert found[[0, 2]].tolist() == weigh([-1.0], [-1.0], transform=transform).tolist() * 2


def test_an_impossible_token_takes_the_prefixes_after_it_and_the_whole_sequence() -> None:
    student, teacher = [-1.0, -math.inf, -1.0], [-1.0, -1.0, -1.0]
    assert weigh(student, teacher, level="prefix").tolist() == [0.5, 0.0, 0.0]
    assert weigh(student, teacher, level="sequence").tolist() == [0.0, 0.0, 0.0]


def test_the_floor_and_the_bias_at_an_impossible_token() -> None:
    assert weigh([-math.inf], [-1.0], floor=0.25).item() == 0.25
    assert weigh([-math.inf], [-1.0], bias=3.0).item() == 0.0
    assert weigh([-math.inf], [-1.0], 0.0, anneal=0.5).item() == 0.5
    assert weigh([-math.inf], [-1.0], 0.25, anneal=0.5).item() == 0.0


GREATEST = {
    "sigmoid": 1.0,
    "ratio": math.exp(60),
    "clip": 2.0,
    "clip_exp": math.exp(5),
    "relu": 60.0,
}  # those without a bound in the paper count log-ratios above 60 as 60


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("temperature_is", ["divisor", "factor"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_ratios_of_a_thousand_and_more_give_finite_weights(
    transform: str, temperature_is: str, dtype: torch.dtype
) -> None:
    """Also where only the teacher finds a token impossible."""
    student = torch.tensor([[-1.0, -1001.0, -1.0, -1001.0]], dtype=dtype)
    teacher = torch.tensor([[-1001.0, -1.0, -math.inf, -math.inf]], dtype=dtype)
    found = support_ratio(
        torch.ones(1, 4, dtype=torch.bool),
        student_logprobs=student,
        teacher_logprobs=teacher,
        transform=cast(Any, transform),
        temperature_is=cast(Any, temperature_is),
        temperature=2.0,
    )[0]
    assert found.isfinite().all()
    great = GREATEST[transform]
    least = math.exp(-5) if transform == "clip_exp" else 0.0
    assert found.tolist() == pytest.approx([great, least, great, great], rel=1e-6)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_temperature_that_multiplies_is_one_that_divides_turned_over(level: str, transform: str) -> None:
    student, teacher = ragged(17)[0], ragged(18)[0]
    switches = {"level": level, "transform": transform, "bias": 0.2, "floor": 0.1, "anneal": 0.5}
    for factor, divisor in ((4.0, 0.25), (1.0, 1.0), (0.5, 2.0)):
        one = weigh(student, teacher, 0.3, temperature=factor, temperature_is="factor", **switches)
        other = weigh(student, teacher, 0.3, temperature=divisor, **switches)
        torch.testing.assert_close(one, other, rtol=1e-14, atol=0)
    apart = [weigh(student, teacher, temperature=4.0, temperature_is=way) for way in ("divisor", "factor")]
    assert (apart[0] - apart[1]).abs().max() > 0.1


def test_what_the_student_finds_impossible_decides_where_both_find_something_impossible() -> None:
    student, teacher = [-1.0, -math.inf, -1.0], [-math.inf, -1.0, -1.0]
    assert weigh(student, teacher, level="prefix").tolist() == [1.0, 0.0, 0.0]
    assert weigh(student, teacher, level="sequence").tolist() == [0.0, 0.0, 0.0]
    assert weigh(teacher, student, level="prefix").tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_ratios_of_sixty_neither_overflow_nor_vanish(dtype: torch.dtype) -> None:
    mask = torch.ones(1, 2, dtype=torch.bool)
    student = torch.tensor([[-60.0, 0.0]], dtype=dtype)
    teacher = torch.tensor([[0.0, -60.0]], dtype=dtype)
    exact = {"sigmoid": (math.exp(-60), 1.0), "ratio": (math.exp(-60), math.exp(60)), "relu": (0.0, 60.0)}
    clipped = {"clip": (math.exp(-60), 2.0), "clip_exp": (math.exp(-5), math.exp(5))}
    for transform, expected in {**exact, **clipped}.items():
        found = support_ratio(
            mask, student_logprobs=student, teacher_logprobs=teacher, transform=cast(Any, transform)
        )
        assert found.dtype == dtype
        assert found[0].tolist() == pytest.approx(expected, rel=1e-5 if dtype == torch.float32 else 1e-14)


def test_the_ratio_is_taken_in_single_precision_whatever_the_log_probs_are() -> None:
    student, teacher = lay_out(ragged(9)).bfloat16(), lay_out(ragged(10)).bfloat16()
    mask = mask_of(ragged(9))
    found = support_ratio(mask, student_logprobs=student, teacher_logprobs=teacher, level="prefix")
    wide = support_ratio(
        mask, student_logprobs=student.double(), teacher_logprobs=teacher.double(), level="prefix"
    )
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wide, rtol=1e-6, atol=0)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_sequence_weight_is_free_of_length_bias(transform: str) -> None:
    student, teacher = ragged(11)[0], ragged(12)[0]
    once = weigh(student, teacher, level="sequence", transform=transform)
    twice = weigh(student * 2, teacher * 2, level="sequence", transform=transform)
    assert once.unique().numel() == 1
    torch.testing.assert_close(twice, once.repeat(2), rtol=1e-13, atol=0)


def test_a_prefix_weight_is_the_tokens_own_at_the_first_and_the_sequences_at_the_last() -> None:
    student, teacher = ragged(13)[0], ragged(14)[0]
    prefix = weigh(student, teacher, level="prefix")
    assert prefix[0] == weigh(student, teacher, level="token")[0]
    torch.testing.assert_close(prefix[-1], weigh(student, teacher, level="sequence")[-1], rtol=1e-13, atol=0)


def test_a_prefix_weight_of_a_constant_ratio_does_not_move_with_length() -> None:
    found = weigh([-1.5] * 50, [-1.0] * 50, level="prefix")
    assert found.tolist() == pytest.approx([1 / (1 + math.exp(0.5))] * 50, rel=1e-13)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_annealing_starts_with_all_weights_alike_and_ends_with_the_plain_ones(
    level: str, transform: str
) -> None:
    student, teacher = ragged(15)[0], ragged(16)[0]
    switches = {"level": level, "transform": transform, "bias": 0.3, "temperature": 0.5}
    start = weigh(student, teacher, 0.0, anneal=0.4, **switches)
    expected = {"sigmoid": 1 / (1 + math.exp(-0.3)), "relu": 0.3}.get(transform, math.exp(0.3))
    assert start.tolist() == pytest.approx([expected] * len(student), rel=1e-14)
    plain = weigh(student, teacher, **switches)
    for progress in (0.4, 0.7, 1.0):
        assert torch.equal(weigh(student, teacher, progress, anneal=0.4, **switches), plain)
    halfway = weigh(student, teacher, 0.2, anneal=0.4, **switches)
    warm = weigh(student, teacher, **{**switches, "temperature": 1.0})
    torch.testing.assert_close(halfway, warm, rtol=1e-14, atol=0)


def test_without_annealing_progress_changes_nothing() -> None:
    student, teacher = ragged(15)[0], ragged(16)[0]
    assert torch.equal(weigh(student, teacher, 0.0), weigh(student, teacher, 1.0))


@pytest.mark.parametrize("floor", [0.0, 0.4, 1.0])
def test_the_floor_lifts_zero_to_itself_and_leaves_one_where_it_is(floor: float) -> None:
    found = weigh([-math.inf, -1.0, -1.0], [-1.0, -math.inf, -1.0], floor=floor)
    assert found.tolist() == pytest.approx([floor, 1.0, floor + (1 - floor) / 2], rel=1e-15)


@pytest.mark.parametrize("ratio_from", ["live", "initial"])
@pytest.mark.parametrize("behavior", ["model", "sampler"])
def test_the_ratio_is_between_the_two_that_were_chosen(ratio_from: str, behavior: str) -> None:
    numerator = "student_logprobs" if ratio_from == "live" else "initial_logprobs"
    denominator = "teacher_logprobs" if behavior == "model" else "sampler_logprobs"
    assert signals(partial(support_ratio, ratio_from=ratio_from, behavior=behavior)) == {
        "mask",
        numerator,
        denominator,
    }
    rows = {name: ragged(20 + i) for i, name in enumerate(("student_logprobs", *CACHED))}
    found = support_ratio(
        mask_of(rows[numerator]),
        **{name: lay_out(values) for name, values in rows.items()},
        ratio_from=cast(Any, ratio_from),
        behavior=cast(Any, behavior),
    )
    expected = [support_ratio_by_loops(s, t) for s, t in zip(rows[numerator], rows[denominator], strict=True)]
    torch.testing.assert_close(found, lay_out(expected, outside=0.0), rtol=1e-13, atol=0)
    with pytest.raises(ValueError, match=f"ratio_from={ratio_from}, behavior={behavior}"):
        support_ratio(
            mask_of(rows[numerator]),
            **{name: lay_out(values) for name, values in rows.items() if name != denominator},
            ratio_from=cast(Any, ratio_from),
            behavior=cast(Any, behavior),
        )


def test_signals_look_through_partials_of_partials_and_the_outermost_wins() -> None:
    inner = partial(support_ratio, ratio_from="initial", behavior="sampler", temperature=0.5)
    assert signals(inner) == {"mask", "initial_logprobs", "sampler_logprobs"}
    assert signals(partial(inner, ratio_from="live")) == {"mask", "student_logprobs", "sampler_logprobs"}
    assert signals(partial(partial(inner, floor=0.1), behavior="model")) == {
        "mask",
        "initial_logprobs",
        "teacher_logprobs",
    }
    assert signals(support_ratio) == {"mask", "student_logprobs", "teacher_logprobs"}
    assert signals(uniform) == {"mask"}


def test_signals_of_a_function_of_ones_own_are_its_parameters_without_default() -> None:
    def plain(mask: Tensor, extra: Tensor, *, knob: float = 1.0) -> Tensor:
        return mask * extra * knob

    @properties(needs=lambda knob=1.0, **_: {"other"} if knob > 1 else set())
    def ruled(mask: Tensor, other: Tensor | None = None, *, knob: float = 1.0) -> Tensor:
        return mask * knob

    assert signals(plain) == {"mask", "extra"}
    assert signals(ruled) == {"mask"}
    assert signals(partial(ruled, knob=2.0)) == {"mask", "other"}


@pytest.mark.parametrize("name", ["ratio_from", "behavior"])
def test_signals_refuse_a_choice_that_does_not_exist_by_its_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}='nobody'"):
        signals(partial(support_ratio, **{name: "nobody"}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0.0),
        ("temperature", -1.0),
        ("temperature", math.nan),
        ("floor", -0.1),
        ("floor", 1.1),
        ("floor", math.nan),
        ("anneal", -0.1),
        ("anneal", 1.5),
        ("anneal", math.nan),
        ("max_ratio", 0.0),
        ("max_ratio", -2.0),
        ("max_ratio", math.nan),
        ("max_log_ratio", 0.0),
        ("max_log_ratio", 60.5),
        ("max_log_ratio", math.nan),
        ("temperature_is", "product"),
        ("bias", math.nan),
        ("level", "sentence"),
        ("transform", "tanh"),
    ],
)
def test_a_bad_parameter_is_refused_by_its_name(name: str, value: object) -> None:
    bare = inspect.unwrap(support_ratio)  # the tests' type checker would speak first
    values = torch.tensor([[-1.0, -2.0]])
    with pytest.raises(ValueError, match=name):
        bare(
            torch.ones(1, 2, dtype=torch.bool),
            student_logprobs=values,
            teacher_logprobs=values,
            **{name: value},
        )


def some_weights(seed: int) -> tuple[Tensor, Tensor]:
    """Weights, all different, and their mask."""
    mask = mask_of(ragged(0))
    values = torch.rand(mask.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.masked_fill(~mask, 0.0), mask


def test_shuffling_keeps_the_values_and_the_mask() -> None:
    weights, mask = some_weights(0)
    found = shuffle(weights, mask, generator=torch.Generator().manual_seed(1))
    assert Counter(found[mask].tolist()) == Counter(weights[mask].tolist())
    assert (found[~mask] == 0).all()
    assert not torch.equal(found, weights)


def test_shuffling_crosses_rows_and_depends_on_the_seed_alone() -> None:
    weights, mask = some_weights(0)
    runs = [
        shuffle(weights, mask, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2, 3, 4, 5)
    ]
    assert torch.equal(runs[0], runs[1])
    assert len({tuple(run[mask].tolist()) for run in runs}) == 5
    own = [set(row[kept].tolist()) for row, kept in zip(weights, mask, strict=True)]
    wandered = [
        set(row[kept].tolist()) - own[index]
        for run in runs
        for index, (row, kept) in enumerate(zip(run, mask, strict=True))
    ]
    assert any(wandered)


def test_shuffling_reaches_every_order_equally_often() -> None:
    mask = torch.tensor([[True, False, True], [False, True, False]])
    weights = torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]])
    generator = torch.Generator().manual_seed(0)
    counts = Counter(tuple(shuffle(weights, mask, generator=generator)[mask].tolist()) for _ in range(1200))
    assert len(counts) == 6
    assert all(140 < count < 260 for count in counts.values())  # 200 ± 4.6 standard deviations


def test_inverted_weights_are_one_minus_the_weights_and_zero_outside() -> None:
    weights, mask = some_weights(2)
    found = invert(weights, mask)
    assert found[mask].tolist() == [1 - value for value in weights[mask].tolist()]
    assert (found[~mask] == 0).all()
    assert torch.equal(invert(found, mask)[mask], 1 - found[mask])


@pytest.mark.parametrize(
    ("weights", "expected"),
    [([0.3, 0.3, 0.3], 1.0), ([1.0, 0.0, 0.0, 0.0], 0.25), ([1.0, 2.0], 0.9), ([0.0, 0.0], 0.0), ([], 0.0)],
)
def test_the_effective_sample_size_of_weights_worked_out_by_hand(
    weights: list[float], expected: float
) -> None:
    found = effective_sample_size(math.fsum(weights), math.fsum(w * w for w in weights), float(len(weights)))
    assert found == pytest.approx(expected, rel=1e-12)


@seeded
@given(weights=st.lists(st.floats(0.001, 10), min_size=1, max_size=20), factor=st.floats(0.1, 10))
def test_the_effective_sample_size_is_a_share_that_no_factor_moves(
    weights: list[float], factor: float
) -> None:
    def share(values: list[float]) -> float:
        return effective_sample_size(sum(values), sum(value * value for value in values), float(len(values)))

    mean = sum(weights) / len(weights)
    variance = sum((weight - mean) ** 2 for weight in weights) / len(weights)
    assert 0 < share(weights) <= 1 + 1e-12
    assert share(weights) == pytest.approx(1 / (1 + variance / mean**2), rel=1e-9)
    assert share([factor * weight for weight in weights]) == pytest.approx(share(weights), rel=1e-9)


@pytest.mark.parametrize("transform", ["sigmoid", "clip_exp", "relu"])
def test_a_spans_weight_is_that_of_its_mean_log_ratio(transform: Any) -> None:
    """By loops, with spans of one to four tokens, tokens in no span, and padding."""
    generator = torch.Generator().manual_seed(5)
    mine, theirs = (-3 * torch.rand(3, 9, generator=generator, dtype=torch.float64) for _ in range(2))
    spans = torch.tensor(
        [[0, 0, 2, 3, 3, 3, 3, 7, -1], [-1, 1, 1, 3, 4, 4, -1, -1, -1], [0, 1, 2, 3, 4, 5, 6, 7, 8]]
    ).double()
    mask = torch.ones(3, 9, dtype=torch.bool)
    mask[1, 6:] = False
    mine[0, 3] = -torch.inf  # one impossible token makes its span impossible
    found = span_support_ratio(mask, mine, theirs, spans, temperature=2.0, transform=transform)
    for row, column in itertools.product(range(3), range(9)):
        own = [c for c in range(9) if spans[row, c] == spans[row, column] >= 0 and mask[row, c]]
        if not own or not mask[row, column]:
            assert found[row, column] == 0
            continue
        mean = sum(float(mine[row, c] - theirs[row, c]) for c in own) / len(own) / 2
        expected = {
            "sigmoid": 0.0 if mean == -math.inf else 1 / (1 + math.exp(-mean)),
            "clip_exp": math.exp(min(5.0, max(-5.0, mean))),
            "relu": max(0.0, mean),
        }[transform]
        assert found[row, column].item() == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_with_one_tokenizer_a_span_is_a_token() -> None:
    generator = torch.Generator().manual_seed(6)
    mine, theirs = (-3 * torch.rand(2, 7, generator=generator) for _ in range(2))
    mask = torch.rand(2, 7, generator=generator) > 0.2
    expected = support_ratio(mask, mine, theirs, temperature=4.0)
    for spans in (None, torch.arange(7.0).expand(2, 7)):
        torch.testing.assert_close(
            span_support_ratio(mask, mine, theirs, spans, temperature=4.0), expected, rtol=1e-6, atol=1e-7
        )
