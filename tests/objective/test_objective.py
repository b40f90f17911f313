"""Tests of complete objectives against plain Python loops over tokens and vocabulary, and of invariances."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from test_divergence import (
    akl_by_loops,
    jsd_by_loops,
    kl_by_loops,
    mix_by_loops,
    softmax_by_loops,
    todi_by_loops,
)
from test_weights import support_ratio_by_loops
from torch import Tensor

from distill.generation.sampling import StudentRollouts
from distill.losses import divergence
from distill.losses.divergence import cross_entropy, forward_kl, policy_gradient, reference_kl, reverse_kl
from distill.losses.signals import SIGNALS, signals
from distill.losses.sparse import SparseDistribution
from distill.losses.weights import dft, support_ratio, uniform
from distill.models.head import Head
from distill.objective.objective import Objective
from distill.objective.terms import LossSums, Term
from distill.teacher.distribution import TeacherDistribution

CONF = Path(__file__).resolve().parents[2] / "conf"
VOCAB, WIDTH, TEACHER_WIDTH = 11, 5, 7
COMPLETIONS = ((2, 5), (3, 1), (1, 3))  # tokens before each completion, and in it
Definition = Callable[[Sequence[float], Sequence[float], int], float]

# Each token loss: its parameters, and its definition from the teacher's and the student's probabilities.
LOSSES: dict[str, tuple[dict[str, Any], Definition]] = {
    "cross_entropy": ({}, lambda p, q, label: -math.log(q[label])),
    "forward_kl": ({}, lambda p, q, label: kl_by_loops(p, q)),
    "reverse_kl": ({}, lambda p, q, label: kl_by_loops(q, p)),
    "symmetric_kl": ({}, lambda p, q, label: kl_by_loops(p, q) + kl_by_loops(q, p)),
    "jsd": ({"beta": 0.5}, lambda p, q, label: jsd_by_loops(p, q, 0.5)),
    "jsd_0.2": ({"beta": 0.2}, lambda p, q, label: jsd_by_loops(p, q, 0.2)),
    "skew_forward_kl": ({}, lambda p, q, label: kl_by_loops(p, mix_by_loops(p, q, 0.1))),
    "skew_reverse_kl": ({}, lambda p, q, label: kl_by_loops(q, mix_by_loops(q, p, 0.1))),
    "tvd": ({}, lambda p, q, label: sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2),
    "todi": ({}, lambda p, q, label: todi_by_loops(p, q)),
    "akl": ({}, lambda p, q, label: akl_by_loops(p, q, 0.5)),
    "reference_kl": ({}, lambda p, q, label: kl_by_loops(p, q)),
}
WEIGHTS: dict[str, dict[str, Any] | None] = {
    "uniform": None,
    "default": {},
    "prefix": {"level": "prefix"},
    "sequence": {"level": "sequence"},
    "ratio": {"transform": "ratio"},
    "clip": {"transform": "clip", "max_ratio": 0.8},
    "clip_exp": {
        "transform": "clip_exp",
        "max_log_ratio": 0.4,
        "temperature": 2.0,
        "temperature_is": "factor",
    },
    "knobs": {"temperature": 0.5, "bias": 0.3, "floor": 0.1, "anneal": 0.9},
    "initial": {"ratio_from": "initial"},
    "sampler": {"behavior": "sampler", "level": "prefix"},
    "cached": {"ratio_from": "initial", "behavior": "sampler"},
}
PROGRESS = 0.6
TOKEN_SIGNALS = [
    name for name, signal in SIGNALS.items() if signal.shape == "token" and signal.role != "student"
]
every_loss = pytest.mark.parametrize("loss", LOSSES)
every_weight = pytest.mark.parametrize("weight", WEIGHTS)
# A loss knows nothing of its weight: each loss with one weight, each weight with two kinds of losses.
PAIRS = [(loss, "knobs") for loss in LOSSES]
PAIRS += [
    (loss, weight) for weight in WEIGHTS for loss in ("cross_entropy", "forward_kl") if weight != "knobs"
]
every_loss_and_weight = pytest.mark.parametrize(("loss", "weight"), PAIRS)
every_control = pytest.mark.parametrize("control", ["none", "uniform", "shuffled", "inverted", "by_position"])


@dataclass(frozen=True)
class Work:
    """A micro-batch as the objective sees it. Hidden states are [batch, seq, width], picked by the mask."""

    mask: Tensor
    labels: Tensor
    hidden: Tensor
    weight: Tensor
    teacher_hidden: Tensor
    teacher_weight: Tensor
    token_signals: dict[str, Tensor]

    def apply(
        self, objective: Objective, *, seed: int = 0, progress: float = PROGRESS, **options: Any
    ) -> LossSums:
        return objective(
            Head(self.hidden[self.mask], self.weight),
            self.mask,
            self.labels,
            {name: self.token_signals[name] for name in objective.cached_signals},
            others={
                name: Head(self.teacher_hidden[self.mask], self.teacher_weight)
                for name in objective.distributions
            },
            seed=seed,
            progress=progress,
            **options,
        )

    def rows(self, order: Sequence[int]) -> "Work":
        index = torch.tensor(order)
        return replace(
            self,
            mask=self.mask[index],
            labels=self.labels[index],
            hidden=self.hidden[index],
            teacher_hidden=self.teacher_hidden[index],
            token_signals={name: values[index] for name, values in self.token_signals.items()},
        )

    def padded(self, columns: int) -> "Work":
        """Longer rows; what padding holds must not matter, so it holds the worst."""

        def pad(values: Tensor, outside: float) -> Tensor:
            shape = (len(values), columns, *values.shape[2:])
            return torch.cat([values, values.new_full(shape, outside)], 1)

        return replace(
            self,
            mask=pad(self.mask, False),
            labels=pad(self.labels, 3),
            hidden=pad(self.hidden, math.nan),
            teacher_hidden=pad(self.teacher_hidden, math.nan),
            token_signals={name: pad(values, math.nan) for name, values in self.token_signals.items()},
        )


def draw(seed: int = 0, dtype: torch.dtype = torch.float64) -> Work:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    length = max(before + count for before, count in COMPLETIONS)
    shape = (len(COMPLETIONS), length)
    mask = torch.zeros(shape, dtype=torch.bool)
    for row, (before, count) in enumerate(COMPLETIONS):
        mask[row, before : before + count] = True
    return Work(
        mask=mask,
        labels=torch.randint(VOCAB, shape, generator=generator),
        hidden=normal(*shape, WIDTH).requires_grad_(),
        weight=normal(VOCAB, WIDTH).requires_grad_(),
        teacher_hidden=normal(*shape, TEACHER_WIDTH),
        teacher_weight=normal(VOCAB, TEACHER_WIDTH),
        token_signals={name: -2 * normal(*shape).abs() for name in TOKEN_SIGNALS},
    )


def build(loss: str, weight: str, **switches: Any) -> Objective:
    """By partial applications."""
    knobs = WEIGHTS[weight]
    return Objective(
        "dataset",
        partial(getattr(divergence, loss.partition("_0")[0]), **LOSSES[loss][0]),
        partial(uniform) if knobs is None else partial(support_ratio, **knobs),
        **switches,
    )


def configure(*overrides: str) -> Objective:
    """By the configuration's files."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", ["logger=csv", *overrides])
    return instantiate(cfg.loss)


def logits_by_loops(hidden: Sequence[float], weight: Sequence[Sequence[float]]) -> list[float]:
    return [sum(h * w for h, w in zip(hidden, row, strict=True)) for row in weight]


@dataclass(frozen=True)
class Tokens:
    """Everything about the completion tokens, a list a row."""

    losses: list[list[float]]
    logprobs: list[list[float]]
    weights: list[list[float]]  # before scale and control

    def flat(self) -> list[tuple[float, float]]:
        return list(zip(itertools.chain(*self.losses), itertools.chain(*self.weights), strict=True))


def by_loops(work: Work, loss: str, weight: str, temperature: float = 1.0) -> Tokens:
    """Loss and weight of each completion token, one number after the other."""
    losses, logprobs, weights = [], [], []
    student_weight, teacher_weight = work.weight.tolist(), work.teacher_weight.tolist()
    knobs = WEIGHTS[weight]
    for row, (before, count) in enumerate(COMPLETIONS):
        span = range(before, before + count)
        row_losses, row_logprobs = [], []
        for t in span:
            label = int(work.labels[row, t])
            logits = logits_by_loops(work.hidden[row, t].tolist(), student_weight)
            teacher_logits = logits_by_loops(work.teacher_hidden[row, t].tolist(), teacher_weight)
            q, p = softmax_by_loops(logits, temperature), softmax_by_loops(teacher_logits, temperature)
            row_losses.append(LOSSES[loss][1](p, q, label))
            row_logprobs.append(math.log(softmax_by_loops(logits)[label]))
        losses.append(row_losses)
        logprobs.append(row_logprobs)
        if knobs is None:
            weights.append([1.0] * count)
            continue
        cached = {name: values[row, before : before + count] for name, values in work.token_signals.items()}
        rest = {key: value for key, value in knobs.items() if key not in ("ratio_from", "behavior")}
        initial, sampler = knobs.get("ratio_from") == "initial", knobs.get("behavior") == "sampler"
        numerator = cached["initial_logprobs"].tolist() if initial else row_logprobs
        denominator = cached["sampler_logprobs" if sampler else "teacher_logprobs"].tolist()
        weights.append(support_ratio_by_loops(numerator, denominator, PROGRESS, **rest))
    return Tokens(losses, logprobs, weights)


def lay_out(rows: Sequence[Sequence[float]]) -> Tensor:
    out = torch.zeros(draw().mask.shape, dtype=torch.float64)
    for row, (before, count) in enumerate(COMPLETIONS):
        out[row, before : before + count] = torch.tensor(rows[row], dtype=torch.float64)
    return out


def gradients(found: LossSums, work: Work) -> tuple[Tensor, Tensor]:
    hidden, weight = torch.autograd.grad(found.total, (work.hidden, work.weight))
    return hidden, weight


def assert_same(one: LossSums, other: LossSums, **tolerance: float) -> None:
    for name in ("total", "denominator", "losses", "logprobs", "weights"):
        torch.testing.assert_close(
            getattr(one, name), getattr(other, name), **(tolerance or {"rtol": 1e-12, "atol": 1e-14})
        )


@every_loss_and_weight
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_an_objective_is_the_sum_over_tokens_of_weight_times_loss(
    loss: str, weight: str, temperature: float
) -> None:
    work = draw(1)
    tokens = by_loops(work, loss, weight, temperature)
    count = float(work.mask.sum())
    for control, scale, normalize in itertools.product(
        ("none", "uniform", "inverted"), (1.0, 2.0, "mean"), ("tokens", "weights")
    ):
        objective = build(
            loss,
            weight,
            control=control,
            scale=scale,
            normalize=normalize,
            temperature=temperature,
            chunk_size=4,
        )
        found = work.apply(objective)
        factor = 1.0 if scale == "mean" or control == "uniform" else scale
        stand_in = {
            "none": lambda w, factor=factor: factor * w,
            "uniform": lambda w, factor=factor: 1.0,
            "inverted": lambda w, factor=factor: factor * (1 - w),
        }[control]
        rows = [[stand_in(w) for w in row] for row in tokens.weights]
        total = sum(stand_in(w) * value for value, w in tokens.flat())
        by_weight = normalize == "weights" or scale == "mean"
        denominator = sum(map(sum, rows)) if by_weight else count
        assert found.total.item() == pytest.approx(total, rel=1e-10, abs=1e-12)
        assert found.denominator.item() == pytest.approx(denominator, rel=1e-10, abs=1e-12)
        torch.testing.assert_close(found.weights.double(), lay_out(rows), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found.losses, lay_out(tokens.losses), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found.logprobs, lay_out(tokens.logprobs), rtol=1e-10, atol=1e-12)
        assert torch.equal(found.mask, work.mask)


@pytest.mark.covering(1)
@every_loss_and_weight
@every_control
def test_in_chunks_an_objective_and_its_gradient_are_the_plain_ones(
    loss: str, weight: str, control: str
) -> None:
    objective = build(loss, weight, control=control, scale=1.5, temperature=1.3)
    wanted = signals(objective.token_loss)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        work = draw(2, dtype)
        hidden, matrix = (x.detach().double().requires_grad_() for x in (work.hidden, work.weight))
        logits = F.linear(hidden[work.mask], matrix) / 1.3
        teacher = F.linear(work.teacher_hidden[work.mask].double(), work.teacher_weight.double()) / 1.3
        available = {
            "log_q": F.log_softmax(logits, -1),
            "log_p": F.log_softmax(teacher, -1),
            "log_r": F.log_softmax(teacher, -1),
            "labels": work.labels[work.mask],
        }
        losses = objective.token_loss(**{name: available[name] for name in wanted})
        weights = work.apply(objective).weights[work.mask]  # held against plain Python above
        expected = (weights.double() * losses).sum()
        plain = torch.autograd.grad(expected, (hidden, matrix))
        for chunk_size in (1, 4, 9, None):
            found = work.apply(replace(objective, chunk_size=chunk_size))
            close = partial(torch.testing.assert_close, rtol=tolerance, atol=tolerance)
            close(found.weights[work.mask], weights)
            close(found.total.detach().double(), expected.detach())
            for one, other in zip(gradients(found, work), plain, strict=True):
                assert one.dtype == dtype
                close(one.double(), other)


@every_weight
def test_no_gradient_flows_through_the_weights_and_the_signals(weight: str) -> None:
    work = draw(3)
    for values in work.token_signals.values():
        values.requires_grad_()
    found = work.apply(build("cross_entropy", weight))
    assert not found.weights.requires_grad
    found.total.backward()
    assert all(values.grad is None for values in work.token_signals.values())


def test_a_weight_of_ones_own_is_cut_from_the_graph_too() -> None:
    def confident(mask: Tensor, teacher_logprobs: Tensor) -> Tensor:
        return teacher_logprobs.exp() * mask

    work = draw(3)
    work.token_signals["teacher_logprobs"].requires_grad_()
    objective = Objective("dataset", cross_entropy, confident)
    assert objective.cached_signals == {"teacher_logprobs": "teacher"}
    found = work.apply(objective)
    assert not found.weights.requires_grad
    expected = work.token_signals["teacher_logprobs"].detach().exp() * work.mask
    torch.testing.assert_close(found.weights, expected)


@pytest.mark.covering(2)
@every_loss
@pytest.mark.parametrize("weight", ["default", "prefix", "knobs"])
@pytest.mark.parametrize("control", ["none", "uniform", "inverted"])
def test_scale_mean_is_normalizing_by_weights_to_the_bit(loss: str, weight: str, control: str) -> None:
    work = draw(4, torch.float32)
    mean = work.apply(build(loss, weight, control=control, scale="mean"))
    by_weights = work.apply(build(loss, weight, control=control, normalize="weights"))
    assert_same(mean, by_weights, rtol=0.0, atol=0.0)
    for one, other in zip(gradients(mean, work), gradients(by_weights, work), strict=True):
        assert torch.equal(one, other)


def test_scale_mean_makes_weights_whose_mean_is_one() -> None:
    work = draw(4)
    found = work.apply(build("cross_entropy", "default", scale="mean"))
    values = found.weights[work.mask]
    expected = (values / values.mean() * found.losses[work.mask]).mean()
    torch.testing.assert_close(found.total.detach() / found.denominator, expected)


def test_scale_two_counts_a_token_once_where_student_and_teacher_agree() -> None:
    work = draw(5)
    plain = work.apply(build("cross_entropy", "uniform"))
    work.token_signals["teacher_logprobs"] = plain.logprobs
    found = work.apply(build("cross_entropy", "default", scale=2.0))
    torch.testing.assert_close(found.weights, work.mask.double(), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.total, plain.total)
    torch.testing.assert_close(found.denominator, plain.denominator)


@every_loss_and_weight
def test_the_control_uniform_is_the_loss_without_weights(loss: str, weight: str) -> None:
    work = draw(6)
    objective = build(loss, weight, control="uniform")
    assert objective.cached_signals == {}
    found, plain = work.apply(objective), work.apply(build(loss, "uniform"))
    assert_same(found, plain, rtol=0.0, atol=0.0)
    for one, other in zip(gradients(found, work), gradients(plain, work), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("weight", [name for name in WEIGHTS if name not in ("uniform", "clip")])
@pytest.mark.parametrize("scale", [1.0, 2.0, "mean"])
def test_the_control_shuffled_moves_the_same_weights_to_other_tokens(weight: str, scale: float | str) -> None:
    work = draw(7)
    plain = work.apply(build("cross_entropy", weight, scale=scale))
    objective = build("cross_entropy", weight, scale=scale, control="shuffled")
    found = work.apply(objective, seed=3)
    assert sorted(found.weights[work.mask].tolist()) == sorted(plain.weights[work.mask].tolist())
    assert not torch.equal(found.weights, plain.weights)
    assert (found.weights[~work.mask] == 0).all()
    torch.testing.assert_close(found.denominator, plain.denominator)
    total = sum(
        w * value
        for w, value in zip(found.weights[work.mask].tolist(), plain.losses[work.mask].tolist(), strict=True)
    )
    assert found.total.item() == pytest.approx(total, rel=1e-12)
    assert torch.equal(found.weights, work.apply(objective, seed=3).weights)
    others = [work.apply(objective, seed=seed).weights for seed in range(4, 8)]
    assert any(not torch.equal(found.weights, other) for other in others)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_the_control_by_position_takes_the_means_at_each_position(scale: float) -> None:
    work = draw(7)
    plain = work.apply(build("cross_entropy", "default", scale=scale)).weights
    found = work.apply(build("cross_entropy", "default", scale=scale, control="by_position")).weights
    rows = [plain[row][work.mask[row]].tolist() for row in range(len(plain))]
    assert not torch.equal(found, plain)
    for row in range(len(rows)):
        for position, weight in enumerate(found[row][work.mask[row]].tolist()):
            there = [other[position] for other in rows if len(other) > position]
            assert weight == pytest.approx(sum(there) / len(there), rel=1e-12)
    assert (found[~work.mask] == 0).all()


@pytest.mark.covering(1)
@every_loss_and_weight
@every_control
def test_longer_padding_changes_nothing(loss: str, weight: str, control: str) -> None:
    work = draw(8)
    objective = build(loss, weight, control=control, normalize="weights")
    found, longer = work.apply(objective), work.padded(4).apply(objective)
    width = work.mask.shape[1]
    for name in ("total", "denominator"):
        torch.testing.assert_close(getattr(longer, name), getattr(found, name), rtol=1e-12, atol=1e-14)
    for name in ("losses", "logprobs", "weights"):
        values = getattr(longer, name)
        torch.testing.assert_close(values[:, :width], getattr(found, name), rtol=1e-12, atol=1e-14)
        assert (values[:, width:] == 0).all()
    for one, other in zip(gradients(longer, work), gradients(found, work), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.covering(1)
@every_loss_and_weight
@pytest.mark.parametrize("control", ["none", "uniform", "inverted"])
def test_the_order_of_rows_changes_nothing(loss: str, weight: str, control: str) -> None:
    work = draw(9)
    objective = build(loss, weight, control=control, normalize="weights")
    order = [2, 0, 1]
    found, moved = work.apply(objective), work.rows(order).apply(objective)
    for name in ("total", "denominator"):
        torch.testing.assert_close(getattr(moved, name), getattr(found, name), rtol=1e-12, atol=1e-14)
    for name in ("losses", "logprobs", "weights"):
        torch.testing.assert_close(getattr(moved, name), getattr(found, name)[order], rtol=1e-12, atol=1e-14)
    for one, other in zip(gradients(moved, work), gradients(found, work), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.slow
@every_loss_and_weight
def test_micro_batches_add_up_to_the_whole(loss: str, weight: str) -> None:
    work = draw(10)
    for control, normalize, scale in itertools.product(
        ("none", "uniform", "inverted"), ("tokens", "weights"), (2.0, "mean")
    ):
        objective = build(loss, weight, control=control, normalize=normalize, scale=scale)
        whole = work.apply(objective)
        parts = [work.rows(rows).apply(objective) for rows in ([0], [1, 2])]
        for name in ("total", "denominator"):
            found = sum(getattr(part, name) for part in parts)
            torch.testing.assert_close(found, getattr(whole, name), rtol=1e-12, atol=1e-14)


def test_a_mean_over_tokens_of_batches_of_unlike_lengths_is_no_mean_of_means() -> None:
    work = draw(10)
    objective = build("cross_entropy", "uniform")
    whole = work.apply(objective)
    assert whole.denominator.item() == sum(count for _, count in COMPLETIONS)
    parts = [work.rows([row]).apply(objective) for row in range(3)]
    assert [part.denominator.item() for part in parts] == [count for _, count in COMPLETIONS]
    of_means = sum((part.total / part.denominator).item() for part in parts) / 3
    assert abs(of_means - (whole.total / whole.denominator).item()) > 0.01


@pytest.mark.parametrize("loss", ["cross_entropy", "forward_kl"])
@pytest.mark.parametrize("weight", ["uniform", "default", "sequence"])
def test_a_micro_batch_without_completions_adds_nothing(loss: str, weight: str) -> None:
    work = draw(11)
    found = replace(work, mask=torch.zeros_like(work.mask)).apply(build(loss, weight))
    assert found.total.item() == 0
    assert found.denominator.item() == 0
    for gradient in gradients(found, work):
        assert (gradient == 0).all()


def test_a_schedule_of_the_weights_follows_the_progress_of_training() -> None:
    work = draw(12)
    objective = build("cross_entropy", "knobs")
    start, late = (work.apply(objective, progress=progress) for progress in (0.0, 0.95))
    assert start.weights[work.mask].unique().numel() == 1
    assert late.weights[work.mask].unique().numel() == len(late.weights[work.mask])


@pytest.mark.parametrize(
    ("overrides", "live_teacher", "cached", "on_policy"),
    [
        ("loss=sft", False, set(), False),
        ("loss=dcod", False, {"teacher_logprobs"}, False),
        ("loss=forward_kl", True, set(), False),
        ("loss=on_policy_kd", True, set(), True),
        ("loss=on_policy_kd loss.rollouts.fraction=0.0", True, set(), False),
        ("loss=dcod loss.control=uniform", False, set(), False),
        ("loss=dcod loss.control=inverted", False, {"teacher_logprobs"}, False),
        (
            "loss=dcod loss.token_weight.ratio_from=initial",
            False,
            {"teacher_logprobs", "initial_logprobs"},
            False,
        ),
        ("loss=dcod loss.token_weight.behavior=sampler", False, {"sampler_logprobs"}, False),
        (
            "loss=dcod loss.token_weight.ratio_from=initial loss.token_weight.behavior=sampler",
            False,
            {"initial_logprobs", "sampler_logprobs"},
            False,
        ),
        (
            "loss=dcod loss.token_loss._target_=distill.losses.divergence.forward_kl",
            True,
            {"teacher_logprobs"},
            False,
        ),
    ],
)
def test_a_preset_says_what_it_needs(
    overrides: str, live_teacher: bool, cached: set[str], on_policy: bool
) -> None:
    objective = configure(*overrides.split())
    assert ("log_p" in objective.distributions) is live_teacher
    assert set(objective.cached_signals) == cached
    assert objective.on_policy is on_policy


def test_traces_keep_their_signals_where_the_student_writes_a_part_alone() -> None:
    def objective(fraction: float) -> Objective:
        return Objective(StudentRollouts(fraction), forward_kl, partial(support_ratio))

    assert [objective(fraction).writes_all for fraction in (0.5, 1.0)] == [False, True]
    assert "teacher_logprobs" in objective(0.5).batch_signals
    assert not objective(1.0).batch_signals


def test_on_policy_takes_its_sampling_from_the_configuration() -> None:
    rollouts = configure(
        "loss=on_policy_kd", "data.max_new_tokens=17", "loss.rollouts.fraction=0.25"
    ).rollouts
    options = {"gpu_memory_utilization": 0.3}
    assert rollouts == StudentRollouts(
        0.25, 1.0, top_p=1.0, max_new_tokens=17, step_separator=";", engine_options=options
    )


@pytest.mark.parametrize(
    ("preset", "loss", "weight"),
    [
        ("sft", "cross_entropy", "uniform"),
        ("dcod", "cross_entropy", "default"),
        ("forward_kl", "forward_kl", "uniform"),
        ("dcod_symmetric_kl", "symmetric_kl", "default"),
        ("on_policy_kd", "jsd", "uniform"),
    ],
)
@pytest.mark.parametrize("normalize", ["tokens", "weights"])
@pytest.mark.parametrize("scale", ["1.0", "2.0", "mean"])
def test_a_preset_is_the_objective_of_its_name(
    preset: str, loss: str, weight: str, normalize: str, scale: str
) -> None:
    work = draw(13)
    tokens = by_loops(work, loss, weight)
    found = work.apply(configure(f"loss={preset}", f"loss.normalize={normalize}", f"loss.scale={scale}"))
    factor = 1.0 if scale == "mean" else float(scale)
    total = sum(factor * w * value for value, w in tokens.flat())
    by_weight = normalize == "weights" or scale == "mean"
    denominator = sum(factor * w for _, w in tokens.flat()) if by_weight else len(tokens.flat())
    assert found.total.item() == pytest.approx(total, rel=1e-10)
    assert found.denominator.item() == pytest.approx(denominator, rel=1e-10)
    torch.testing.assert_close(found.losses, lay_out(tokens.losses), rtol=1e-10, atol=1e-12)


@every_weight
def test_every_key_of_the_weight_can_be_set_in_the_configuration(weight: str) -> None:
    knobs = WEIGHTS[weight]
    if knobs is None:
        knobs, overrides = {}, ["loss.control=uniform"]
    else:
        overrides = [f"loss.token_weight.{key}={value}" for key, value in knobs.items()]
    work = draw(14)
    one, other = configure("loss=dcod", *overrides), build("cross_entropy", weight)
    assert_same(work.apply(one), work.apply(other))
    assert one.cached_signals == other.cached_signals


@pytest.mark.slow
@pytest.mark.parametrize("control", ["none", "uniform", "shuffled", "inverted", "by_position"])
def test_every_control_can_be_set_in_the_configuration(control: str) -> None:
    work = draw(14)
    found = work.apply(configure("loss=dcod", f"loss.control={control}"), seed=5)
    assert_same(found, work.apply(build("cross_entropy", "default", control=control), seed=5))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rollouts", "nobody"),
        ("normalize", "rows"),
        ("control", "random"),
        ("scale", "median"),
        ("scale", 0.0),
        ("scale", -1.0),
        ("scale", math.nan),
        ("scale", math.inf),
        ("temperature", 0.0),
        ("temperature", -1.0),
        ("temperature", math.nan),
        ("temperature", "warm"),
        ("chunk_size", 0),
        ("chunk_size", -8),
    ],
)
def test_a_bad_switch_is_refused_by_its_name(name: str, value: object) -> None:
    objective = build("cross_entropy", "default")
    setattr(objective, name, value)  # past the tests' type checker, which would speak first
    with pytest.raises(ValueError, match=f"loss.{name}"):
        objective.__post_init__()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "override"),
    [
        ("dcod", "loss.token_weight.temperature=0.0"),
        ("dcod", "loss.token_weight.floor=1.5"),
        ("dcod", "loss.token_weight.anneal=-0.5"),
        ("dcod", "loss.token_weight.max_ratio=0.0"),
        ("dcod", "loss.token_weight.max_log_ratio=100"),
        ("dcod", "loss.token_weight.ratio_from=nobody"),
        ("dcod", "loss.token_weight.behavior=teacher"),
        ("dcod", "loss.temperature=0.0"),
        ("dcod", "loss.chunk_size=0"),
        ("dcod", "loss.scale=-2.0"),
        ("on_policy_kd", "loss.token_loss.beta=2.0"),
        ("on_policy_kd", "loss.rollouts.fraction=1.5"),
    ],
)
def test_a_bad_value_in_the_configuration_is_found_before_training_and_named(
    preset: str, override: str
) -> None:
    name = override.partition("=")[0].rpartition(".")[2]
    with pytest.raises(InstantiationException, match=name) as caught:
        configure(f"loss={preset}", override)
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("part", ["token_weight", "token_loss"])
def test_a_parameter_that_a_function_does_not_have_is_named(part: str) -> None:
    with pytest.raises(InstantiationException, match="temprature"):
        configure("loss=dcod", f"+loss.{part}.temprature=1.0")


def test_functions_that_ask_for_signals_nobody_has_are_refused_by_name() -> None:
    def loss(log_q: Tensor, verdict: Tensor) -> Tensor:
        return log_q[:, 0] * verdict

    def weight(mask: Tensor, praise: Tensor) -> Tensor:
        return mask * praise

    with pytest.raises(ValueError, match="loss asks for unknown signals: verdict"):
        Objective("dataset", loss, uniform)
    with pytest.raises(ValueError, match="weight asks for unknown signals: praise"):
        Objective("dataset", cross_entropy, partial(weight))


def test_a_live_teacher_that_is_missing_is_an_error() -> None:
    work = draw(15)
    with pytest.raises(ValueError, match="signals that are not given: log_p"):
        build("forward_kl", "uniform")(Head(work.hidden[work.mask], work.weight), work.mask, work.labels, {})


def test_a_signal_that_is_missing_is_an_error() -> None:
    work = draw(15)
    with pytest.raises(ValueError, match="log-probs"):
        build("cross_entropy", "default")(
            Head(work.hidden[work.mask], work.weight), work.mask, work.labels, {}
        )


# --- several terms


def two_terms(**switches: Any) -> Objective:
    extra = {"anchor": Term(reference_kl, coefficient=0.3), "own": Term(reverse_kl, rows="student")}
    rollouts = StudentRollouts(0.5)
    return Objective(rollouts, cross_entropy, partial(support_ratio), extra=extra, **switches)


@pytest.mark.parametrize("by_student", [False, True])
def test_further_terms_are_added_on_the_rows_that_are_theirs(by_student: bool) -> None:
    work = draw(16)
    found = work.apply(two_terms(), by_student=by_student)
    main = work.apply(build("cross_entropy", "default"))
    anchor = work.apply(Objective("dataset", reference_kl, uniform))
    own = work.apply(Objective("dataset", reverse_kl, uniform))
    expected = main.total + 0.3 * anchor.total + (own.total if by_student else 0.0)
    torch.testing.assert_close(found.total, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.terms["main"], main.total.detach())
    torch.testing.assert_close(found.terms["anchor"], 0.3 * anchor.total.detach())
    assert bool(found.terms["own"] != 0) is by_student
    assert torch.equal(found.weights, main.weights)  # what is logged as the weights are the main term's
    torch.testing.assert_close(found.losses, main.losses)
    assert found.denominator == main.denominator
    for one, other in zip(
        torch.autograd.grad(found.total, (work.hidden, work.weight)),
        torch.autograd.grad(expected, (work.hidden, work.weight)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


every_way_to_weigh = pytest.mark.parametrize(
    "weight", [uniform, dft, partial(support_ratio, level="sequence")]
)


@every_way_to_weigh
def test_a_traces_weight_is_a_factor_on_all_of_its_tokens(weight: Callable[..., Tensor]) -> None:
    work = draw(20)
    objective = Objective("dataset", forward_kl, weight, extra={"further": Term(cross_entropy, weight)})
    factors = torch.tensor([0.5, 3.0, 0.0], dtype=torch.float64)
    found = work.apply(objective, trace_weights=factors)
    alone = torch.stack([work.rows([row]).apply(objective).total for row in range(len(factors))])
    expected = (factors * alone).sum()
    torch.testing.assert_close(found.total, expected, rtol=1e-12, atol=0)
    leaves = (work.hidden, work.weight)
    gradients = (torch.autograd.grad(total, leaves) for total in (found.total, expected))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@every_way_to_weigh
def test_tokens_without_a_counterpart_are_in_no_comparison(weight: Callable[..., Tensor]) -> None:
    work = draw(21)
    terms = {"further": Term(cross_entropy, weight)}
    objective = Objective("dataset", forward_kl, weight, extra=terms)
    compared = work.mask & (torch.arange(work.mask.shape[1]) % 2 == 0)
    assert 0 < compared.sum() < work.mask.sum()
    found, whole = work.apply(objective, compared=compared), work.apply(objective)
    kl = (whole.weights * whole.losses)[compared].sum()
    torch.testing.assert_close(found.terms["main"], kl, rtol=1e-12, atol=0)
    assert found.terms["further"] == whole.terms["further"]
    torch.testing.assert_close(found.total.detach(), kl + whole.terms["further"], rtol=1e-12, atol=0)


def test_of_a_distribution_that_was_drawn_from_the_cross_entropy_is_estimated() -> None:
    work = draw(22)
    drawn = TeacherDistribution("samples", samples=3)
    objective = Objective("dataset", forward_kl, uniform, distribution=drawn)
    labels = work.labels[work.mask]
    ids = torch.stack([labels, (labels + 1) % VOCAB, torch.zeros_like(labels)], -1)
    shares = torch.tensor([0.5, 1.25, 0.0], dtype=torch.float64).expand(len(ids), 3)
    student = Head(work.hidden[work.mask], work.weight)
    others = {"log_p": SparseDistribution(ids, shares.log())}
    found = objective(student, work.mask, work.labels, {}, others=others)
    log_q = torch.log_softmax(student.hidden @ student.weight.T, -1)
    expected = -(shares * log_q.gather(-1, ids)).sum()
    torch.testing.assert_close(found.total, expected, rtol=1e-12, atol=0)


@every_way_to_weigh
def test_a_coefficient_is_on_its_terms_loss_and_gradient_whenever_its_weights_are_made(
    weight: Callable[..., Tensor],
) -> None:
    work = draw(19)
    extra = {"further": Term(reverse_kl, weight, coefficient=-2.5)}
    found = work.apply(Objective("dataset", cross_entropy, uniform, extra=extra))
    main = work.apply(Objective("dataset", cross_entropy, uniform))
    further = work.apply(Objective("dataset", reverse_kl, weight))
    torch.testing.assert_close(found.total, main.total - 2.5 * further.total, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.terms["further"], -2.5 * further.total.detach(), rtol=1e-12, atol=0)
    leaves = (work.hidden, work.weight)
    gradients = (torch.autograd.grad(one.total, leaves) for one in (found, main, further))
    for together, one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(together, one - 2.5 * other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "switch", [{"control": "inverted"}, {"control": "by_position"}, {"control": "shuffled"}, {"scale": 2.0}]
)
def test_controls_and_scale_are_the_main_terms_alone(switch: dict[str, Any]) -> None:
    work = draw(18)
    plain, changed = work.apply(two_terms()), work.apply(two_terms(**switch))
    assert changed.terms["main"] != plain.terms["main"]
    assert changed.terms["anchor"] == plain.terms["anchor"] != 0


def test_a_main_term_of_other_rows_has_no_share_and_no_weights() -> None:
    work = draw(17)
    objective = Objective(
        StudentRollouts(0.5),
        forward_kl,
        uniform,
        rows="dataset",
        extra={"own": Term(reverse_kl, rows="student")},
    )
    own, data = (work.apply(objective, by_student=by_student) for by_student in (True, False))
    assert (own.weights == 0).all()
    assert own.terms["main"] == data.terms["own"] == 0
    torch.testing.assert_close(own.total, work.apply(Objective("dataset", reverse_kl, uniform)).total)
    torch.testing.assert_close(data.total, work.apply(Objective("dataset", forward_kl, uniform)).total)
    assert own.denominator == data.denominator == work.mask.sum()


def test_signals_of_all_terms_are_asked_for_by_their_models() -> None:
    objective = two_terms()
    assert objective.distributions == {"log_p": "teacher", "log_r": "reference"}
    assert objective.cached_signals == {"teacher_logprobs": "teacher"}
    assert objective.live_roles == {"teacher", "reference"}
    offline = Objective("dataset", cross_entropy, partial(support_ratio))
    assert offline.live_roles == set()
    alone = Objective(StudentRollouts(1.0), cross_entropy, partial(support_ratio))
    assert alone.live_roles == {"teacher"}
    # Batches of the data carry them, as long as there are such batches.
    assert objective.batch_signals == offline.batch_signals == ["teacher_logprobs"]
    assert alone.batch_signals == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Objective("dataset", policy_gradient, uniform),
            r"policy_gradient is right on the student's own completions alone.*100% to the data",
        ),
        (
            lambda: Objective(StudentRollouts(0.5), policy_gradient, uniform),
            r"leaves 50% to the data: set loss.rollouts.fraction=1, or rows=student",
        ),
        (
            lambda: Objective(StudentRollouts(1.0), policy_gradient, uniform, temperature=2.0),
            r"policy_gradient compares with teacher_logprobs, which are at temperature 1",
        ),
        (
            lambda: Objective("dataset", cross_entropy, uniform, rows="student"),
            r"the term main is taken on what the student writes, but loss.rollouts lets it write nothing",
        ),
        (lambda: Term(cross_entropy, coefficient=math.nan), r"coefficient=nan is not a number"),
    ],
)
def test_combinations_without_sense_are_refused_with_the_reason(
    make: Callable[[], object], message: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make()
    Objective(StudentRollouts(0.5), policy_gradient, uniform, rows="student")


@pytest.mark.slow
def test_a_loss_that_adapts_is_told_of_every_step_and_keeps_its_state() -> None:
    objective = configure("loss=taid", "loss.token_loss.rate=0.5")
    assert objective.state() == {"main": {"share": 0.4, "change": 0.0, "loss": math.inf}}
    for step, loss in enumerate((3.0, 2.0, 1.0)):
        objective.after_step(loss, step / 10)
    state = objective.state()
    assert state["main"]["share"] > 0.4
    again = configure("loss=taid", "loss.token_loss.rate=0.5")
    again.load_state(state)
    for each in (objective, again):
        each.after_step(0.5, 0.3)
    assert again.state() == objective.state() != state
    assert configure("loss=sft").state() == {}


@pytest.mark.parametrize("switch", [{"normalize": "weights"}, {"scale": "mean"}])
def test_rows_without_the_main_term_are_divided_by_the_weights_of_the_term_in_its_place(
    switch: dict[str, Any],
) -> None:
    """Divided by the main term's, which has none there, what the student writes would teach nothing."""
    objective = Objective(
        StudentRollouts(0.5),
        forward_kl,
        uniform,
        rows="dataset",
        extra={"own": Term(reverse_kl, rows="student")},
        **switch,
    )
    work = draw(1)
    for by_student in (False, True):
        found = work.apply(objective, by_student=by_student)
        assert found.total > 0
        assert found.denominator == work.mask.sum()


def test_functions_from_a_configuration_are_called_without_asking_hydra_anew() -> None:
    """Hydra's partial applications check their policy at every call, which took longer than a weight does."""
    with initialize_config_dir(str(CONF), version_base=None):
        cfg = compose("train", ["loss=dcod", "loss.token_weight.temperature=0.7"])
    from_hydra = instantiate(cfg.loss.token_weight)
    objective = instantiate(cfg.loss, _convert_="all")
    term = objective.terms["main"]
    assert type(term.token_weight) is type(term.token_loss) is partial
    assert term.token_weight.func is from_hydra.func
    assert term.token_weight.keywords == from_hydra.keywords
    logprobs = {name: torch.randn(1, 4) for name in signals(term.token_weight) & SIGNALS.keys()}
    known = {"mask": torch.ones(1, 4, dtype=torch.bool), **logprobs}
    assert term.token_weight(**known).tolist() == from_hydra(**known).tolist()
