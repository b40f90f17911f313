"""Tests of closed-form gradients against autograd through the losses' definitions."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from distill.losses import divergence as losses
from distill.losses import logits as head_logits
from distill.losses.chunked import divergence, token_logprobs, weighted_token_losses
from distill.losses.closed_forms import closed_form_of
from distill.losses.inputs import WeightedTerm
from distill.losses.signals import signals
from distill.models.head import Head

ROWS, VOCAB, WIDTH = 6, 13, 4
FORMS: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": losses.cross_entropy,
    "forward_kl": losses.forward_kl,
    "reference_kl": losses.reference_kl,
    "reverse_kl": losses.reverse_kl,
    "symmetric_kl": losses.symmetric_kl,
    "jsd": losses.jsd,
    "jsd_0.1": partial(losses.jsd, beta=0.1),
    "jsd_0": partial(losses.jsd, beta=0.0),
    "jsd_1": partial(losses.jsd, beta=1.0),
    "skew_forward_kl": losses.skew_forward_kl,
    "skew_forward_kl_0": partial(losses.skew_forward_kl, alpha=0.0),
    "skew_reverse_kl": partial(losses.skew_reverse_kl, alpha=0.3),
    "skew_reverse_kl_0": partial(losses.skew_reverse_kl, alpha=0.0),
    "tvd": losses.tvd,
    "todi": losses.todi,
    "taid": losses.Taid(start=0.3),
    "policy_gradient": losses.policy_gradient,
    "clipped_surrogate": losses.clipped_surrogate,
    "clipped_surrogate_0.05": partial(losses.clipped_surrogate, eps_low=0.05, eps_high=3.0),
    "k3": losses.k3,
}
every_form = pytest.mark.parametrize("loss", FORMS.values(), ids=FORMS.keys())


def draw(scale: float = 2.0, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits, theirs = (
        scale * torch.randn(ROWS, VOCAB, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    return {
        "logits": logits.to(dtype),
        "log_p": theirs.to(dtype).log_softmax(-1),
        "log_r": theirs.to(dtype).log_softmax(-1),
        "labels": torch.randint(VOCAB, (ROWS,), generator=generator),
        "teacher_logprobs": -torch.rand(ROWS, generator=generator, dtype=torch.float64).to(dtype) * 5,
        "reference_logprobs": -torch.rand(ROWS, generator=generator, dtype=torch.float64).to(dtype) * 5,
        "old_logprobs": -torch.rand(ROWS, generator=generator, dtype=torch.float64).to(dtype) * 5,
        "weight": torch.tensor([1.0, -1.0, 0.0, 0.5, -0.5, 2.0], dtype=dtype),
    }


@every_form
@pytest.mark.parametrize("scale", [0.01, 2.0, 30.0])
def test_a_closed_form_is_the_loss_and_its_gradient(loss: Callable[..., Tensor], scale: float) -> None:
    given = draw(scale)
    logits = given["logits"].requires_grad_()
    asked = {name: given[name] for name in signals(loss) - {"log_q"}}
    expected = loss(log_q=logits.log_softmax(-1), **asked)
    (gradient,) = torch.autograd.grad(expected.sum(), logits)
    form = closed_form_of(loss)
    assert form is not None
    before = {name: value.clone() for name, value in asked.items()}
    found, written_out = form(log_q=logits.detach().log_softmax(-1), **asked)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(written_out, gradient, rtol=1e-10, atol=1e-14)
    assert all(torch.equal(asked[name], value) for name, value in before.items())  # only log_q is spent


@every_form
def test_a_closed_form_stays_finite_where_the_models_are_sure_of_other_tokens(
    loss: Callable[..., Tensor],
) -> None:
    given = draw(400.0, torch.float32)
    asked = {name: given[name] for name in signals(loss) - {"log_q"}}
    form = closed_form_of(loss)
    assert form is not None
    found, gradient = form(log_q=given["logits"].log_softmax(-1), **asked)
    assert found.isfinite().all()
    assert gradient.isfinite().all()
    exact = loss(
        log_q=given["logits"].double().log_softmax(-1),
        **{name: value.double() if value.is_floating_point() else value for name, value in asked.items()},
    )
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)


def test_close_models_divergence_keeps_its_digits_in_single_precision() -> None:
    """log P - log M as a difference of two rounded logarithms would leave none of them."""
    logits = draw()["logits"]
    log_p, log_q = logits.log_softmax(-1), (logits + 1e-3 * torch.sin(logits * 50)).log_softmax(-1)
    exact = losses.jsd(log_q, log_p)
    difference = (log_q - log_p).float()
    form = closed_form_of(losses.jsd)
    assert form is not None
    found, _ = form(log_q=log_p.float() + difference, log_p=log_p.float())
    assert exact.max() < 1e-6
    assert (found.double() - exact).abs().max() < 2e-8


def test_a_loss_that_has_none_goes_through_autograd() -> None:
    def mine(log_q: Tensor, labels: Tensor) -> Tensor:
        return losses.cross_entropy(log_q, labels) ** 2

    assert closed_form_of(mine) is None
    assert closed_form_of(losses.akl) is None


def models(dtype: torch.dtype = torch.float64) -> tuple[Head, Head, Tensor]:
    generator = torch.Generator().manual_seed(4)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    student = Head(normal(ROWS, WIDTH).requires_grad_(), normal(VOCAB, WIDTH).requires_grad_())
    teacher = Head(normal(ROWS, 3), normal(VOCAB, 3))
    return student, teacher, torch.randint(VOCAB, (ROWS,), generator=generator)


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("name", ["cross_entropy", "jsd", "todi", "taid", "policy_gradient"])
def test_blocks_of_a_chunk_change_nothing(name: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher, labels = models()
    weights = torch.linspace(-1, 2, ROWS, dtype=torch.float64)

    def run() -> list[Tensor]:
        found = weighted_token_losses(
            student,
            labels,
            [
                WeightedTerm(FORMS[name], weights),
                WeightedTerm(losses.akl, weights.flip(0), coefficient=0.5),
            ],
            others={"log_p": teacher},
            token_signals={"teacher_logprobs": -weights.abs()},
            temperature=1.0 if name == "policy_gradient" else 1.5,
            chunk_size=ROWS,
        )
        gradients = torch.autograd.grad(found.total, (student.hidden, student.weight))
        return [found.total.detach(), found.losses, found.logprobs, *gradients]

    whole = run()
    monkeypatch.setattr(head_logits, "_BLOCK_BYTES", rows * VOCAB * 8)
    for one, other in zip(run(), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_token_log_probs_take_any_gradient_from_above(temperature: float, chunk_size: int | None) -> None:
    """A clipped policy gradient over a sequence's mean: its weights are known only after the pass."""
    student, _, labels = models()

    def surrogate(logprobs: Tensor) -> Tensor:
        ratio = (logprobs.mean() - logprobs.detach().mean() + 0.1).exp()
        return torch.minimum(ratio, ratio.clamp(max=1.05)) * 3 + (logprobs**2 * torch.arange(ROWS)).sum()

    found = token_logprobs(
        student.hidden, student.weight, labels, temperature=temperature, chunk_size=chunk_size
    )
    whole = (student.hidden @ student.weight.T / temperature).log_softmax(-1)[range(ROWS), labels]
    torch.testing.assert_close(found, whole)
    gradients = torch.autograd.grad(surrogate(found), (student.hidden, student.weight))
    expected = torch.autograd.grad(surrogate(whole), (student.hidden, student.weight))
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [("forward_kl", {}), ("reverse_kl", {}), ("jsd", {"beta": 0.3}), ("akl", {}), (losses.tvd, {})],
)
def test_a_divergence_of_two_models_has_the_gradient_of_the_whole_logits(
    kind: str | Callable[..., Tensor], parameters: dict[str, float]
) -> None:
    student, teacher, _ = models()
    weights = torch.linspace(-1, 2, ROWS, dtype=torch.float64)
    found = divergence(
        student.hidden,
        student.weight,
        teacher.hidden,
        teacher.weight,
        kind,
        temperature=2.0,
        chunk_size=4,
        **parameters,
    )
    log_q = (student.hidden @ student.weight.T / 2).log_softmax(-1)
    log_p = (teacher.hidden @ teacher.weight.T / 2).log_softmax(-1)
    loss = getattr(losses, kind) if isinstance(kind, str) else kind
    whole = loss(log_q, log_p, **parameters)
    torch.testing.assert_close(found, whole)
    gradients = torch.autograd.grad((weights * found).sum(), (student.hidden, student.weight))
    expected = torch.autograd.grad((weights * whole).sum(), (student.hidden, student.weight))
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("kind", ["no_such_loss", "math", "Tensor"])
def test_a_divergence_that_does_not_exist_is_refused(kind: str) -> None:
    student, teacher, _ = models()
    with pytest.raises(ValueError, match=f"kind='{kind}' is no loss"):
        divergence(student.hidden, student.weight, teacher.hidden, teacher.weight, kind)


def test_a_loss_that_asks_for_more_than_two_distributions_is_no_divergence() -> None:
    student, teacher, _ = models()
    with pytest.raises(ValueError, match=r"asks for .*labels"):
        divergence(student.hidden, student.weight, teacher.hidden, teacher.weight, "cross_entropy")


def test_weights_made_on_the_way_are_given_what_the_student_thinks_of_just_those_tokens() -> None:
    student, _, labels = models()
    own = (student.hidden @ student.weight.T).log_softmax(-1).detach()
    seen: list[range] = []

    def weights(rows: slice, known: dict[str, Tensor]) -> Tensor:
        seen.append(range(ROWS)[rows])
        torch.testing.assert_close(known["student_logprobs"], own[range(ROWS), labels][rows])
        entropy = -(own.exp() * own).sum(-1)  # of all tokens, since there are fewer than twenty
        torch.testing.assert_close(known["student_entropy"], entropy[rows])
        return known["student_logprobs"].exp()

    term = WeightedTerm(losses.cross_entropy, weights, frozenset({"student_entropy"}))
    found = weighted_token_losses(student, labels, [term], chunk_size=4, temperature=3.0)
    assert sorted(row for rows in seen for row in rows) == list(range(ROWS))
    torch.testing.assert_close(found.weights[0], own[range(ROWS), labels].exp())
    fixed = WeightedTerm(losses.cross_entropy, found.weights[0])
    expected = weighted_token_losses(student, labels, [fixed], temperature=3.0)
    torch.testing.assert_close(found.total, expected.total)
    gradients = torch.autograd.grad(found.total, (student.hidden, student.weight))
    for one, other in zip(
        gradients, torch.autograd.grad(expected.total, (student.hidden, student.weight)), strict=True
    ):
        torch.testing.assert_close(one, other)
    assert not math.isclose(found.weights[0, 0].item(), found.weights[0, 1].item())
