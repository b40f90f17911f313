"""Tests of sparse teacher distributions: top-k with a rest bucket is a valid divergence, samples give
unbiased estimates."""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distill.generation.sampling import StudentRollouts
from distill.losses.chunked import weighted_token_losses
from distill.losses.divergence import (
    Taid,
    akl,
    cross_entropy,
    forward_kl,
    gold,
    jsd,
    reverse_kl,
    skew_forward_kl,
    skew_reverse_kl,
    symmetric_kl,
    teacher_cross_entropy,
    todi,
    tvd,
    uld,
)
from distill.losses.inputs import WeightedTerm
from distill.losses.signals import why_not_from
from distill.losses.sparse import SparseDistribution, log_rest
from distill.losses.weights import uniform
from distill.models.head import Head
from distill.objective.objective import Objective
from distill.objective.terms import Term
from distill.teacher.distribution import TeacherDistribution, drawn_tokens, likeliest_tokens

VOCAB = 7
# Those that the data-processing inequality holds for: ToDi's value is Σ(P - Q)(log P - log Q).
F_DIVERGENCES: dict[str, Callable[..., Tensor]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "symmetric_kl": symmetric_kl,
    "jsd": jsd,
    "jsd_0.1": partial(jsd, beta=0.1),
    "skew_forward_kl": skew_forward_kl,
    "skew_reverse_kl": skew_reverse_kl,
    "tvd": tvd,
    "todi": todi,
}
DIVERGENCES = {**F_DIVERGENCES, "akl": akl, "taid": Taid()}
every_divergence = pytest.mark.parametrize("name", DIVERGENCES)


def draw(seed: int, rows: int = 5, vocab: int = VOCAB, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    """log Q and log P."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(2, rows, vocab, generator=generator, dtype=torch.float64)
    log_q, log_p = logits.log_softmax(-1)
    return log_q, log_p


def coarsened(loss: Callable[..., Tensor], log_q: Tensor, some: SparseDistribution) -> Tensor:
    return loss(log_q=some.of(log_q), log_p=some.to(log_q.dtype))


# --- the k likeliest tokens, and a bucket for the rest


def test_the_rest_is_the_sum_of_all_other_tokens() -> None:
    log_q, log_p = draw(0)
    some = likeliest_tokens(log_p, 3)
    for row, ids in enumerate(some.ids.tolist()):
        assert ids == sorted(range(VOCAB), key=lambda v: -float(log_p[row, v]))[:3]
        for which, logs in ((some.log_rest, log_p), (log_rest(log_q, some.ids), log_q)):
            assert which is not None
            rest = sum(math.exp(logs[row, v]) for v in range(VOCAB) if v not in ids)
            assert float(which[row]) == pytest.approx(math.log(rest), rel=1e-12)
    assert torch.allclose(some.of(log_q).exp().sum(-1), torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize("gap", [5.0, 20.0, 60.0])
def test_a_rest_of_hardly_any_mass_has_right_digits_in_single_precision(gap: float) -> None:
    logits = torch.tensor([[gap, gap - 1, 0.3, -0.7, 1.1]], dtype=torch.float64)
    ids = torch.tensor([[0, 1]])
    expected = log_rest(torch.log_softmax(logits, -1), ids)
    found = log_rest(torch.log_softmax(logits.float(), -1), ids)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


@every_divergence
def test_of_all_tokens_but_one_a_divergence_is_the_whole_one(name: str) -> None:
    log_q, log_p = draw(1)
    log_q.requires_grad_()
    whole, found = (
        DIVERGENCES[name](log_q=log_q, log_p=log_p),
        coarsened(DIVERGENCES[name], log_q, likeliest_tokens(log_p, 99)),
    )
    torch.testing.assert_close(found, whole, rtol=1e-12, atol=1e-14)
    gradients = [torch.autograd.grad(value.sum(), log_q)[0] for value in (whole, found)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("name", F_DIVERGENCES)
@given(data=st.data())
@settings(deadline=None, max_examples=25)
def test_in_fewer_buckets_an_f_divergence_is_never_greater(name: str, data: st.DataObject) -> None:
    logits = st.lists(st.floats(-30, 30), min_size=VOCAB, max_size=VOCAB)
    log_q, log_p = (torch.tensor([data.draw(logits)], dtype=torch.float64).log_softmax(-1) for _ in range(2))
    loss = F_DIVERGENCES[name]
    nested = [float(coarsened(loss, log_q, likeliest_tokens(log_p, k))) for k in range(1, VOCAB)]
    values = [0.0, *nested, float(loss(log_q=log_q, log_p=log_p))]
    for fewer, more in pairwise(values):
        assert fewer <= more + 1e-9 * (1 + abs(more))


@every_divergence
@given(seed=st.integers(0, 10_000), k=st.integers(1, VOCAB - 1), scale=st.floats(0.01, 20))
@settings(deadline=None, max_examples=60)
def test_in_buckets_a_divergence_is_never_negative(name: str, seed: int, k: int, scale: float) -> None:
    log_q, log_p = draw(seed, scale=scale)
    assert float(coarsened(DIVERGENCES[name], log_q, likeliest_tokens(log_p, k)).min()) >= -1e-12


@every_divergence
def test_where_the_buckets_agree_a_divergence_and_its_gradient_vanish(name: str) -> None:
    """The student has the same likeliest tokens and rest, and other tokens in the rest."""
    _, log_p = draw(2)
    some = likeliest_tokens(log_p, 3)
    assert some.log_rest is not None
    others = torch.ones_like(log_p, dtype=torch.bool).scatter(-1, some.ids, False)
    spread = torch.rand(5, VOCAB - 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    log_q = log_p.clone()
    log_q[others] = (some.log_rest.unsqueeze(-1) + (spread / spread.sum(-1, keepdim=True)).log()).flatten()
    assert (log_q - log_p).abs().max() > 0.1
    logits = log_q.requires_grad_()
    value = coarsened(DIVERGENCES[name], torch.log_softmax(logits, -1), some)
    assert value.abs().max() < 1e-12
    if name != "tvd":  # which has a corner there
        assert torch.autograd.grad(value.sum(), logits)[0].abs().max() < 1e-12


@pytest.mark.parametrize("name", [name for name in DIVERGENCES if name not in ("todi", "akl", "taid", "tvd")])
@pytest.mark.parametrize("k", [1, 3, VOCAB - 1])
def test_the_gradient_in_buckets_agrees_with_finite_differences(name: str, k: int) -> None:
    """Without the losses that stop gradients inside."""
    log_q, log_p = draw(4)
    some = likeliest_tokens(log_p, k)

    def value(logits: Tensor) -> Tensor:
        return coarsened(DIVERGENCES[name], torch.log_softmax(logits, -1), some)

    assert torch.autograd.gradcheck(value, (log_q.requires_grad_(),))


def test_tokens_that_leave_none_for_the_rest_are_refused() -> None:
    log_q, _ = draw(5)
    with pytest.raises(ValueError, match=r"7 of 7 tokens leave none"):
        log_rest(log_q, torch.arange(VOCAB).expand(5, VOCAB))


# --- in the head's pass


@pytest.mark.covering(2)
@every_divergence
@pytest.mark.parametrize("chunk_size", [2, None])
@pytest.mark.parametrize("source", ["top_k", "samples"])
def test_the_heads_pass_gives_what_the_plain_computation_gives(
    name: str, chunk_size: int | None, source: str
) -> None:
    generator = torch.Generator().manual_seed(6)
    hidden, weight = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((9, 4), (VOCAB, 4))
    )
    _, log_p = draw(7, rows=9)
    uniforms = torch.rand(9, 5, generator=generator, dtype=torch.float64)
    some = likeliest_tokens(log_p, 3) if source == "top_k" else drawn_tokens(log_p, uniforms)
    labels = torch.randint(VOCAB, (9,), generator=generator)
    weights = torch.rand(9, generator=generator, dtype=torch.float64)
    loss = DIVERGENCES[name] if source == "top_k" else teacher_cross_entropy
    # A term that does not look at the teacher has the whole vocabulary before it.
    terms = [WeightedTerm(loss, weights), WeightedTerm(cross_entropy, 1 - weights)]
    found = weighted_token_losses(
        Head(hidden, weight), labels, terms, others={"log_p": some}, chunk_size=chunk_size
    )
    log_q = torch.log_softmax(hidden @ weight.T, -1)
    losses = torch.stack([coarsened(loss, log_q, some), cross_entropy(log_q, labels)])
    total = (torch.stack([weights, 1 - weights]) * losses).sum()
    torch.testing.assert_close(found.losses, losses.detach(), rtol=1e-12, atol=1e-13)
    gradients = torch.autograd.grad(found.total, (hidden, weight))
    torch.testing.assert_close(gradients, torch.autograd.grad(total, (hidden, weight)), rtol=1e-9, atol=1e-12)


def test_the_heads_pass_refuses_another_temperature() -> None:
    _, log_p = draw(8)
    head = Head(torch.zeros(5, 4), torch.zeros(VOCAB, 4))
    with pytest.raises(ValueError, match=r"temperature=2.0 must be 1 where only some tokens"):
        weighted_token_losses(
            head,
            torch.zeros(5, dtype=torch.long),
            [WeightedTerm(forward_kl, torch.ones(5))],
            others={"log_p": likeliest_tokens(log_p, 2)},
            temperature=2.0,
        )


# --- samples


every_temperature = pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
DRAWS = 40_000


def many_draws(log_p: Tensor, temperature: float, samples: int = 4) -> SparseDistribution:
    """The first row's distribution, drawn from again and again."""
    generator = torch.Generator().manual_seed(9)
    uniforms = torch.rand(DRAWS, samples, generator=generator, dtype=torch.float64)
    return drawn_tokens(log_p[:1].expand(DRAWS, -1), uniforms, temperature)


@every_temperature
def test_drawn_weights_are_the_teachers_probabilities_in_expectation(temperature: float) -> None:
    _, log_p = draw(10)
    some = many_draws(log_p, temperature)
    weights = torch.zeros(DRAWS, VOCAB, dtype=torch.float64).scatter_add_(-1, some.ids, some.logprobs.exp())
    error = weights.std(0) / math.sqrt(DRAWS)
    assert ((weights.mean(0) - log_p[0].exp()).abs() < 4.5 * error).all()
    if temperature == 1.0:
        torch.testing.assert_close(weights.sum(-1), torch.ones(DRAWS, dtype=torch.float64))


@every_temperature
def test_the_gradient_from_samples_is_the_forward_kls_in_expectation(temperature: float) -> None:
    log_q, log_p = draw(11)
    some = many_draws(log_p, temperature)
    logits = log_q[:1].expand(DRAWS, -1).clone().requires_grad_()
    values = coarsened(teacher_cross_entropy, torch.log_softmax(logits, -1), some)
    (gradients,) = torch.autograd.grad(values.sum(), logits)
    one = log_q[:1].clone().requires_grad_()
    whole = forward_kl(torch.log_softmax(one, -1), log_p[:1])
    (expected,) = torch.autograd.grad(whole.sum(), one)
    error = gradients.std(0) / math.sqrt(DRAWS)
    assert ((gradients.mean(0) - expected[0]).abs() < 4.5 * error).all()
    # The value is the teacher's entropy above the divergence.
    entropy = -(log_p[0].exp() * log_p[0]).sum()
    spread = float(values.detach().std()) / math.sqrt(DRAWS)
    assert abs(float((values.mean() - whole - entropy).detach())) < 4.5 * spread


def test_what_is_drawn_twice_is_kept_once() -> None:
    log_p = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log()
    some = drawn_tokens(log_p, torch.tensor([[0.1, 0.8, 0.3, 0.99]], dtype=torch.float64))
    assert some.ids.tolist() == [[0, 2, 0, 0]]
    assert some.logprobs.exp().tolist() == [[0.5, 0.5, 0.0, 0.0]]
    assert some.log_rest is None


def test_whatever_changes_a_draw_is_one_of_its_settings() -> None:
    drawn = [
        TeacherDistribution("samples"),
        TeacherDistribution("samples", samples=3),
        TeacherDistribution("samples", seed=1),
        TeacherDistribution("samples", proposal_temperature=1.5),
    ]
    assert len({str(one.settings) for one in drawn}) == len(drawn)
    assert TeacherDistribution("samples", top_k=3, dtype="bfloat16").settings == drawn[0].settings


def test_a_draw_follows_the_seed_and_the_trace_alone() -> None:
    def numbers(seed: int, trace: int) -> Tensor:
        found = TeacherDistribution("samples", seed=seed).uniforms(trace, 3)
        assert found is not None
        return found

    assert torch.equal(numbers(1, 2), numbers(1, 2))
    assert not torch.equal(numbers(1, 2), numbers(2, 2))
    assert not torch.equal(numbers(1, 2), numbers(1, 3))
    assert numbers(0, 0).shape == (3, 12)


# --- who takes what


@pytest.mark.parametrize(
    ("loss", "sources"),
    [
        (cross_entropy, {"live", "hidden_states", "top_k", "samples"}),  # needs none
        (forward_kl, {"live", "hidden_states", "top_k", "samples"}),
        *(
            (loss, {"live", "hidden_states", "top_k"})
            for name, loss in DIVERGENCES.items()
            if name != "forward_kl"
        ),
        (uld, {"live", "hidden_states"}),
        (gold, {"live", "hidden_states"}),
    ],
)
def test_a_losss_signature_says_where_the_teachers_distribution_may_come_from(
    loss: Callable[..., Tensor], sources: set[str]
) -> None:
    every: tuple[Any, ...] = ("live", "hidden_states", "top_k", "samples")
    assert {source for source in every if why_not_from(source, loss) is None} == sources


def names_the_label(log_q: Tensor, log_p: Tensor, labels: Tensor) -> Tensor:
    return (log_p - log_q).gather(-1, labels.unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Objective("dataset", uld, uniform, distribution=TeacherDistribution("top_k")),
            r"uld cannot have loss.distribution.source=top_k: .*another vocabulary.*source=hidden_states",
        ),
        (
            lambda: Objective("dataset", reverse_kl, uniform, distribution=TeacherDistribution("samples")),
            r"reverse_kl cannot have .*samples: .*forward_kl alone.*take .*source=hidden_states",
        ),
        (
            lambda: Objective("dataset", names_the_label, uniform, distribution=TeacherDistribution("top_k")),
            r"names_the_label cannot have .*top_k: it asks for labels too",
        ),
        (
            lambda: Objective(
                StudentRollouts(0.5), jsd, uniform, distribution=TeacherDistribution("hidden_states")
            ),
            r"hidden_states is cached for the data's completions.*50%.*source=live, or loss.rollouts=dataset",
        ),
        (
            lambda: Objective(
                "dataset", jsd, uniform, temperature=2.0, distribution=TeacherDistribution("top_k")
            ),
            r"top_k keeps probabilities at temperature 1.*loss.temperature=2.0.*source=hidden_states",
        ),
        (
            lambda: TeacherDistribution(top_k=0),
            r"loss.distribution.top_k=0 is not a whole number, at least 1",
        ),
        (lambda: TeacherDistribution(samples=True), r"loss.distribution.samples=True"),
        (lambda: TeacherDistribution(proposal_temperature=0.0), r"proposal_temperature=0.0 is not a number"),
        (
            lambda: TeacherDistribution(dtype="int8"),
            r"loss.distribution.dtype='int8' is not a floating-point",
        ),
    ],
)
def test_a_source_without_sense_is_refused_with_the_reason(make: Callable[[], object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_a_source_changes_nothing_for_terms_that_do_not_ask_for_the_distribution() -> None:
    samples = TeacherDistribution("samples")
    objective = Objective("dataset", cross_entropy, uniform, distribution=samples)
    assert not objective.caches_distribution
    objective = Objective(
        "dataset", forward_kl, uniform, extra={"ce": Term(cross_entropy)}, distribution=samples
    )
    assert objective.caches_distribution
    assert objective.live_roles == set()
    assert objective.distributions == {"log_p": "teacher"}
    # On the student's completions nothing is asked for, so nothing is refused.
    Objective(StudentRollouts(1.0), cross_entropy, uniform, distribution=samples)


@pytest.mark.parametrize(
    ("make", "name", "value", "message"),
    [
        (
            TeacherDistribution,
            "source",
            "logits",
            r"source='logits' is not one of live, hidden_states, top_k",
        ),
        (TeacherDistribution, "verify", "always", r"verify='always' is neither true nor false"),
        (lambda: Objective("dataset", jsd, uniform), "distribution", "top_k", r"in loss.distribution.source"),
    ],
)
def test_a_value_of_another_kind_is_refused_by_its_name(
    make: Callable[[], Any], name: str, value: str, message: str
) -> None:
    made = make()
    object.__setattr__(made, name, value)  # past the tests' type checker, which would speak first
    with pytest.raises(ValueError, match=message):
        made.__post_init__()
