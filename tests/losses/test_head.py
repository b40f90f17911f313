"""Tests of the chunked head against the plain computation: one matrix product, log-softmax, autograd."""

import gc
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from distill.losses.chunked import token_logprobs, weighted_token_losses
from distill.losses.divergence import (
    Taid,
    akl,
    cross_entropy,
    forward_kl,
    jsd,
    policy_gradient,
    reference_kl,
    reverse_kl,
    skew_forward_kl,
    skew_reverse_kl,
    symmetric_kl,
    todi,
    tvd,
)
from distill.losses.inputs import WeightedTerm
from distill.losses.logits import fitting_chunk, label_logprobs, student_signals
from distill.losses.signals import signals
from distill.models.head import Head

TOKENS, VOCAB, WIDTH, TEACHER_WIDTH = 7, 11, 5, 8
LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy,
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "symmetric_kl": symmetric_kl,
    "jsd": jsd,
    "jsd_0.1": partial(jsd, beta=0.1),
    "skew_forward_kl": skew_forward_kl,
    "skew_reverse_kl": skew_reverse_kl,
    "tvd": tvd,
    "todi": todi,
    "akl": akl,
    "taid": Taid(),
    "reference_kl": reference_kl,
    "policy_gradient": policy_gradient,
}
# Those that stop a gradient on purpose: theirs is not that of their value.
STOPPED = {"todi", "akl", "taid", "policy_gradient"}
smooth_loss = pytest.mark.parametrize(
    "token_loss",
    [loss for name, loss in LOSSES.items() if name not in STOPPED],
    ids=[name for name in LOSSES if name not in STOPPED],
)
every_loss = pytest.mark.parametrize("token_loss", LOSSES.values(), ids=LOSSES.keys())
every_chunk = pytest.mark.parametrize("chunk_size", [1, 3, TOKENS, TOKENS + 5, None])


class Problem(NamedTuple):
    """What goes into the head; a model's dtype for all but the labels."""

    hidden: Tensor
    weight: Tensor
    teacher_hidden: Tensor
    teacher_weight: Tensor
    labels: Tensor
    weights: Tensor

    @property
    def student(self) -> Head:
        return Head(self.hidden, self.weight)

    @property
    def teacher(self) -> Head:
        return Head(self.teacher_hidden, self.teacher_weight)

    def double(self) -> "Problem":
        leaves = (x.detach().double().requires_grad_() if x.is_floating_point() else x for x in self)
        return Problem(*leaves)


def draw(
    seed: int = 0, dtype: torch.dtype = torch.float64, tokens: int = TOKENS, vocab: int = VOCAB
) -> Problem:
    """Leaves that all ask for gradients, also those that must get none."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    return Problem(
        normal(tokens, WIDTH),
        normal(vocab, WIDTH),
        normal(tokens, TEACHER_WIDTH),
        normal(vocab, TEACHER_WIDTH),
        torch.randint(vocab, (tokens,), generator=generator),
        torch.rand(tokens, generator=generator).to(dtype).requires_grad_(),
    )


class Found(NamedTuple):
    """Of one token loss."""

    total: Tensor
    losses: Tensor
    logprobs: Tensor


def token_signal(problem: Problem) -> Tensor:
    """Log-probs of the tokens by some teacher."""
    return -problem.hidden[:, 0].abs()


def plain(problem: Problem, token_loss: Callable[..., Tensor], temperature: float = 1.0) -> Found:
    """The same with all logits at once."""
    logits = F.linear(problem.hidden, problem.weight)
    teacher_logits = F.linear(problem.teacher_hidden, problem.teacher_weight).detach()
    available = {
        "log_q": torch.log_softmax(logits / temperature, -1),
        "log_p": torch.log_softmax(teacher_logits / temperature, -1),
        "log_r": torch.log_softmax(teacher_logits / temperature, -1),
        "teacher_logprobs": token_signal(problem),
        "labels": problem.labels,
    }
    losses = token_loss(**{name: available[name] for name in signals(token_loss)})
    logprobs = -F.cross_entropy(logits, problem.labels, reduction="none")
    return Found((problem.weights.detach() * losses).sum(), losses.detach(), logprobs.detach())


def one_loss(
    student: Head, labels: Tensor, weights: Tensor, token_loss: Callable[..., Tensor], **switches: Any
) -> Found:
    found = weighted_token_losses(student, labels, [WeightedTerm(token_loss, weights)], **switches)
    return Found(found.total, found.losses[0], found.logprobs)


def others(problem: Problem) -> dict[str, Any]:
    """A frozen model in both its roles, and log-probs of some teacher."""
    return {
        "others": {"log_p": problem.teacher, "log_r": problem.teacher},
        "token_signals": {"teacher_logprobs": token_signal(problem)},
    }


def chunked(problem: Problem, token_loss: Callable[..., Tensor], **switches: Any) -> Found:
    return one_loss(
        problem.student, problem.labels, problem.weights, token_loss, **others(problem), **switches
    )


def gradients(found: Found, problem: Problem) -> tuple[Tensor, Tensor]:
    hidden, weight = torch.autograd.grad(found.total, (problem.hidden, problem.weight))
    return hidden, weight


@pytest.mark.covering(2)
@every_loss
@every_chunk
@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_chunks_give_what_the_plain_computation_gives(
    token_loss: Callable[..., Tensor],
    chunk_size: int | None,
    temperature: float,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    problem = draw(1, dtype)
    exact = problem.double()
    expected = plain(exact, token_loss, temperature)
    found = chunked(problem, token_loss, temperature=temperature, chunk_size=chunk_size)
    for name in ("total", "losses", "logprobs"):
        value = getattr(found, name)
        assert value.dtype == dtype
        torch.testing.assert_close(
            value.double(), getattr(expected, name).double(), rtol=tolerance, atol=tolerance
        )
    for one, other in zip(gradients(found, problem), gradients(expected, exact), strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance)


@every_chunk
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_label_log_probs_are_those_of_the_whole_softmax(
    chunk_size: int | None, dtype: torch.dtype, tolerance: float
) -> None:
    problem = draw(2, dtype)
    found = label_logprobs(problem.student, problem.labels, chunk_size=chunk_size)
    logits = (problem.hidden.double() @ problem.weight.double().T).detach()
    expected = logits.log_softmax(-1)[range(TOKENS), problem.labels]
    assert not found.requires_grad
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@every_loss
def test_the_log_probs_stay_at_temperature_one(token_loss: Callable[..., Tensor]) -> None:
    problem = draw(3)
    known = label_logprobs(problem.student, problem.labels)
    for temperature in (0.5, 1.0, 4.0):
        found = chunked(problem, token_loss, temperature=temperature, chunk_size=3)
        torch.testing.assert_close(found.logprobs, known, rtol=1e-13, atol=1e-13)


@smooth_loss
@pytest.mark.parametrize(("chunk_size", "temperature"), [(3, 2.0), (None, 1.0)])
def test_the_gradient_agrees_with_finite_differences(
    token_loss: Callable[..., Tensor], chunk_size: int | None, temperature: float
) -> None:
    problem = draw(4)

    def total(hidden: Tensor, weight: Tensor) -> Tensor:
        return one_loss(
            Head(hidden, weight),
            problem.labels,
            problem.weights,
            token_loss,
            **others(problem),
            temperature=temperature,
            chunk_size=chunk_size,
        ).total

    # By hand: torch.autograd.gradcheck runs the backward pass twice, and here it goes once only.
    step = 1e-6
    for index, leaf in enumerate((problem.hidden, problem.weight)):
        arguments = [problem.hidden.detach(), problem.weight.detach()]
        arguments[index] = leaf
        (found,) = torch.autograd.grad(total(*arguments), leaf)
        numerical = torch.empty_like(found)
        for at in range(leaf.numel()):
            nudge = torch.zeros(leaf.numel(), dtype=leaf.dtype)
            nudge[at] = step
            arguments[index] = leaf.detach() + nudge.view_as(leaf)
            above = total(*arguments)
            arguments[index] = leaf.detach() - nudge.view_as(leaf)
            numerical.view(-1)[at] = (above - total(*arguments)) / (2 * step)
        torch.testing.assert_close(found, numerical, rtol=1e-5, atol=1e-8)


@every_loss
def test_the_upstream_gradient_scales_both_gradients(token_loss: Callable[..., Tensor]) -> None:
    problem = draw(5)
    whole = gradients(chunked(problem, token_loss, chunk_size=2), problem)
    found = chunked(problem, token_loss, chunk_size=2)
    scaled = torch.autograd.grad(found.total * -2.5, (problem.hidden, problem.weight))
    for one, other in zip(scaled, whole, strict=True):
        torch.testing.assert_close(one, -2.5 * other, rtol=1e-14, atol=0)


def test_a_second_backward_pass_is_refused() -> None:
    problem = draw(5)
    found = chunked(problem, cross_entropy, chunk_size=2)
    found.total.backward(retain_graph=True)
    with pytest.raises(RuntimeError):  # and not silently a gradient of nothing
        found.total.backward()


@every_loss
def test_each_tokens_weight_reaches_its_own_gradient(token_loss: Callable[..., Tensor]) -> None:
    """Weights come from outside, one a token, and chunks do not blur them."""
    problem = draw(6)
    even, _ = gradients(chunked(problem._replace(weights=torch.ones(TOKENS)), token_loss), problem)
    weights = torch.tensor([0.0, 1.0, 0.5, 3.0, -1.0, 0.0, 2.0], dtype=torch.float64)
    found = chunked(problem._replace(weights=weights), token_loss, chunk_size=3)
    hidden, _ = gradients(found, problem)
    torch.testing.assert_close(hidden, weights.unsqueeze(-1) * even, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(found.total.detach(), (weights * found.losses).sum())


@every_loss
def test_neither_weights_nor_teacher_get_a_gradient(token_loss: Callable[..., Tensor]) -> None:
    problem = draw(7)
    chunked(problem, token_loss, chunk_size=2).total.backward()
    assert problem.hidden.grad is not None
    assert problem.weight.grad is not None
    for leaf in (problem.teacher_hidden, problem.teacher_weight, problem.weights):
        assert leaf.grad is None


def test_only_the_total_carries_gradient() -> None:
    found = chunked(draw(7), forward_kl, chunk_size=2)
    assert found.total.requires_grad
    assert not found.losses.requires_grad
    assert not found.logprobs.requires_grad


@every_loss
@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_what_is_frozen_gets_no_gradient_and_the_other_its_own(
    token_loss: Callable[..., Tensor], frozen: str
) -> None:
    problem = draw(8)
    expected = dict(zip(("hidden", "weight"), gradients(plain(problem, token_loss), problem), strict=True))
    getattr(problem, frozen).requires_grad_(False)
    chunked(problem, token_loss, chunk_size=3).total.backward()
    assert getattr(problem, frozen).grad is None
    other = "weight" if frozen == "hidden" else "hidden"
    torch.testing.assert_close(getattr(problem, other).grad, expected[other])


@every_loss
def test_without_any_gradient_the_numbers_are_the_same(token_loss: Callable[..., Tensor]) -> None:
    problem = draw(8)
    expected = chunked(problem, token_loss, chunk_size=3)
    with torch.no_grad():
        found = chunked(problem, token_loss, chunk_size=3)
    assert not found.total.requires_grad
    for name in ("total", "losses", "logprobs"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name).detach())


@every_loss
def test_no_tokens_make_a_zero_loss_with_zero_gradients(token_loss: Callable[..., Tensor]) -> None:
    problem = draw(9, tokens=0)
    assert label_logprobs(problem.student, problem.labels).shape == (0,)
    found = chunked(problem, token_loss)
    assert found.total.item() == 0
    assert found.losses.shape == found.logprobs.shape == (0,)
    hidden, weight = gradients(found, problem)
    assert hidden.shape == (0, WIDTH)
    assert torch.equal(weight, torch.zeros_like(weight))


def test_no_terms_make_a_zero_loss_with_zero_gradients() -> None:
    problem = draw()
    found = weighted_token_losses(problem.student, problem.labels, [])
    assert found.total.item() == 0
    for gradient in torch.autograd.grad(found.total, (problem.hidden, problem.weight)):
        assert not gradient.any()


def test_a_loss_that_compares_with_the_teacher_asks_for_one() -> None:
    problem = draw(10)
    for loss, name in ((forward_kl, "log_p"), (policy_gradient, "teacher_logprobs"), (reference_kl, "log_r")):
        with pytest.raises(ValueError, match=f"signals that are not given: {name}$"):
            one_loss(problem.student, problem.labels, problem.weights, loss)


@pytest.mark.parametrize("chunk_size", [2, None])
def test_several_losses_share_a_pass_and_add_up(chunk_size: int | None) -> None:
    problem = draw(12)
    factors = (problem.weights.detach(), torch.linspace(-1, 1, TOKENS, dtype=torch.float64))
    losses = (cross_entropy, forward_kl)
    together = weighted_token_losses(
        problem.student,
        problem.labels,
        [WeightedTerm(loss, factor) for loss, factor in zip(losses, factors, strict=True)],
        chunk_size=chunk_size,
        **others(problem),
    )
    alone = [chunked(problem._replace(weights=f), loss) for f, loss in zip(factors, losses, strict=True)]
    torch.testing.assert_close(together.losses, torch.stack([found.losses for found in alone]))
    torch.testing.assert_close(together.total, alone[0].total + alone[1].total)
    found = torch.autograd.grad(together.total, (problem.hidden, problem.weight))
    for gradient, one, other in zip(found, *(gradients(each, problem) for each in alone), strict=True):
        torch.testing.assert_close(gradient, one + other, rtol=1e-12, atol=1e-14)


@every_chunk
@pytest.mark.parametrize("vocab", [VOCAB, 40])
def test_the_entropy_is_that_of_the_twenty_likeliest_tokens(chunk_size: int | None, vocab: int) -> None:
    problem = draw(13, vocab=vocab)
    wanted = {"student_entropy", "student_logprobs"}
    found = student_signals(problem.student, problem.labels, wanted, chunk_size=chunk_size)
    assert found.keys() == wanted
    for row, entropy in zip(problem.hidden @ problem.weight.T, found["student_entropy"], strict=True):
        p = torch.softmax(torch.tensor(sorted(row.tolist(), reverse=True)[:20], dtype=torch.float64), -1)
        assert entropy.item() == pytest.approx(-sum(x * math.log(x) for x in p.tolist()), rel=1e-12)


def test_a_loss_without_teacher_does_not_look_at_one() -> None:
    problem = draw(10)
    with torch.no_grad():
        problem.teacher_weight.fill_(torch.nan)
    expected = one_loss(problem.student, problem.labels, problem.weights, cross_entropy)
    assert torch.equal(chunked(problem, cross_entropy).losses, expected.losses)


@every_loss
def test_a_constant_added_to_all_of_a_positions_logits_changes_nothing(
    token_loss: Callable[..., Tensor],
) -> None:
    problem = draw(11)
    generator = torch.Generator().manual_seed(0)
    shift, teacher_shift = (
        10 * torch.randn(width, generator=generator, dtype=torch.float64) for width in (WIDTH, TEACHER_WIDTH)
    )
    moved = problem._replace(
        weight=(problem.weight + shift).detach().requires_grad_(),
        teacher_weight=problem.teacher_weight + teacher_shift,
    )
    one, other = chunked(problem, token_loss, chunk_size=3), chunked(moved, token_loss, chunk_size=3)
    torch.testing.assert_close(one.losses, other.losses, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(one.logprobs, other.logprobs, rtol=1e-10, atol=1e-12)
    _, gradient = gradients(one, problem)
    torch.testing.assert_close(gradient, gradients(other, moved)[1], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(gradient.sum(0), torch.zeros(WIDTH, dtype=torch.float64), rtol=0, atol=1e-13)


@every_loss
def test_rows_that_pad_the_vocabulary_have_no_say_and_no_gradient(token_loss: Callable[..., Tensor]) -> None:
    problem = draw(12)
    expected = chunked(problem, token_loss, chunk_size=3)
    hidden, weight = gradients(expected, problem)
    padding = torch.full((4, WIDTH), 50.0, dtype=torch.float64)
    padded = torch.cat([problem.weight.detach(), padding]).requires_grad_()
    found = chunked(problem._replace(weight=padded[:VOCAB]), token_loss, chunk_size=3)
    assert torch.equal(found.losses, expected.losses)
    found.total.backward()
    torch.testing.assert_close(problem.hidden.grad, hidden)
    assert padded.grad is not None
    torch.testing.assert_close(padded.grad[:VOCAB], weight)
    assert (padded.grad[VOCAB:] == 0).all()


@pytest.mark.covering(1)
@pytest.mark.parametrize("parameter_dtype", [torch.float32, torch.bfloat16])
@every_loss
def test_half_precision_is_close_to_single(
    token_loss: Callable[..., Tensor], parameter_dtype: torch.dtype
) -> None:
    problem = draw(13, parameter_dtype, tokens=64, vocab=97)
    exact = problem.double()
    expected = plain(exact, token_loss)
    with torch.autocast("cpu", torch.bfloat16):
        found = chunked(problem, token_loss, chunk_size=5)
        known = label_logprobs(problem.student, problem.labels, chunk_size=5)
    assert found.losses.dtype == found.logprobs.dtype == found.total.dtype == known.dtype == torch.float32
    assert torch.equal(found.logprobs, known)  # the weights are made of the same numbers as the loss
    torch.testing.assert_close(found.losses.double(), expected.losses, rtol=0.02, atol=0.06)
    torch.testing.assert_close(found.total.double(), expected.total, rtol=0.01, atol=0.0)
    for one, other in zip(gradients(found, problem), gradients(expected, exact), strict=True):
        assert one.dtype == parameter_dtype
        assert (one - other).norm() < 0.02 * other.norm()


def test_products_narrower_than_their_sum_are_summed_over_chunks() -> None:
    """As autocast makes them of float64."""
    problem = draw(14, torch.float64, tokens=24, vocab=17)
    found = []
    for chunk_size in (5, 24):
        with torch.autocast("cpu", torch.bfloat16):
            one = chunked(problem, cross_entropy, chunk_size=chunk_size)
        found.append(gradients(one, problem))
    for cut, whole in zip(*found, strict=True):
        assert (cut - whole).norm() < 0.01 * whole.norm()


def test_a_backward_pass_outside_autocast_rounds_as_its_forward_pass_did() -> None:
    problem = draw(15, torch.float32, tokens=24, vocab=17)
    hidden, weight = problem.student.hidden, problem.student.weight
    upstream = torch.rand(24, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        logprobs = token_logprobs(hidden, weight, problem.labels)
        expected = one_loss(problem.student, problem.labels, -upstream, cross_entropy).total
    found = torch.autograd.grad((upstream * logprobs).sum(), (hidden, weight))
    for one, other in zip(found, torch.autograd.grad(expected, (hidden, weight)), strict=True):
        assert torch.equal(one, other)


# With float64, what autocast makes of the factors has products that are narrower than their sum.
@pytest.mark.slow
@pytest.mark.parametrize("parameter_dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_half_precision_sums_in_single(parameter_dtype: torch.dtype) -> None:
    """2000 like contributions, one a chunk: a bfloat16 sum stops growing at 256 of them."""
    tokens = 2000
    hidden = torch.ones(tokens, WIDTH, dtype=parameter_dtype).requires_grad_()
    weight = torch.zeros(2, WIDTH, dtype=parameter_dtype).requires_grad_()
    labels = torch.zeros(tokens, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16):
        found = one_loss(Head(hidden, weight), labels, torch.ones(tokens), cross_entropy, chunk_size=1)
    (gradient,) = torch.autograd.grad(found.total, weight)
    assert found.total.item() == pytest.approx(tokens * math.log(2), rel=1e-5)
    expected = torch.tensor([[-tokens / 2] * WIDTH, [tokens / 2] * WIDTH], dtype=parameter_dtype)
    torch.testing.assert_close(gradient, expected, rtol=0.005, atol=0)


def test_log_probs_of_half_precision_logits_are_normalised_in_single() -> None:
    vocab = 4096
    hidden = torch.zeros(2, WIDTH, dtype=torch.bfloat16)
    weight = torch.zeros(vocab, WIDTH, dtype=torch.bfloat16)
    found = label_logprobs(Head(hidden, weight), torch.tensor([0, 1]))
    assert found.tolist() == pytest.approx([-math.log(vocab)] * 2, rel=1e-6)


class Vocabularies(TorchDispatchMode):
    """Keeps track of every new tensor whose last dimension is the vocabulary."""

    def __init__(self, vocab: int, inputs: list[Tensor]) -> None:
        super().__init__()
        self.vocab = vocab
        self.inputs = {tensor.untyped_storage().data_ptr() for tensor in inputs}
        self.rows = 0
        self.made: list[StorageWeakRef] = []

    def __enter__(self) -> Any:
        gc.freeze()  # or each collection looks at all that was ever imported
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        gc.unfreeze()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if (
                isinstance(tensor, Tensor)
                and self.vocab in tensor.shape
                and tensor.untyped_storage().data_ptr() not in self.inputs
                and WIDTH not in tensor.shape  # the matrix's gradient
                and TEACHER_WIDTH not in tensor.shape
            ):
                self.rows = max(self.rows, tensor.numel() // self.vocab)
                self.made.append(StorageWeakRef(tensor.untyped_storage()))
        return result

    def alive(self) -> int:
        gc.collect()
        return sum(not reference.expired() for reference in self.made)


@pytest.mark.covering(1)
@every_loss
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("trains", [True, False])
def test_no_logits_are_made_beyond_a_chunk_and_none_outlive_it(
    token_loss: Callable[..., Tensor], temperature: float, trains: bool
) -> None:
    tokens, vocab, chunk_size = 29, 101, 3
    problem = draw(14, torch.float32, tokens, vocab)
    problem.hidden.requires_grad_(trains)
    problem.weight.requires_grad_(trains)
    with Vocabularies(vocab, list(problem)) as seen:
        found = chunked(problem, token_loss, temperature=temperature, chunk_size=chunk_size)
        alive = seen.alive()
        if trains:
            found.total.backward()
    assert len(seen.made) >= math.ceil(tokens / chunk_size)
    assert seen.rows == chunk_size
    assert alive == 0


def test_label_log_probs_make_no_logits_beyond_a_chunk() -> None:
    problem = draw(14, torch.float32, 29, 101)
    with Vocabularies(101, list(problem)) as seen:
        label_logprobs(problem.student, problem.labels, chunk_size=4)
    assert len(seen.made) >= 8
    assert seen.rows == 4


@every_loss
def test_the_watch_over_logits_sees_what_the_plain_computation_makes(
    token_loss: Callable[..., Tensor],
) -> None:
    problem = draw(14, torch.float32, 29, 101)
    with Vocabularies(101, list(problem)) as seen:
        found = plain(problem, token_loss)
        assert seen.alive() > 0
    assert seen.rows == 29
    assert found.total.requires_grad  # so that its graph was alive


@pytest.mark.parametrize(
    ("vocab", "expected"), [(151_665, 96), (248_320, 64), (500_000, 32), (49_152, 336), (100, 8192)]
)
def test_the_fitting_chunk_keeps_64_mebibytes_and_a_sensible_number_of_tokens(
    vocab: int, expected: int
) -> None:
    head = Head(torch.zeros(1, 1), torch.zeros(vocab, 1))
    assert fitting_chunk(head) == expected


@pytest.mark.parametrize("chunk_size", [0, -1])
def test_a_chunk_without_tokens_is_refused(chunk_size: int) -> None:
    problem = draw(15)
    with pytest.raises(ValueError, match="chunk_size"):
        chunked(problem, cross_entropy, chunk_size=chunk_size)
