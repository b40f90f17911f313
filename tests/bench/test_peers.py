"""Tests of losses, weights and the chunked head against other packages, which `make peers` installs.

Every comparison prints the greatest difference, absolute and over the peer's greatest value. Where a peer
means something else by a name, or is wrong, a test shows by how much, and its docstring says where. Lines
are those of the versions in constraints.txt. Without a peer its tests are skipped; those against torch
always run.

None of them has akl, taid, todi, later_log_ratio, rho1, support_ratio or t3s.
"""

import __future__

import ast
import importlib
import importlib.metadata
import importlib.util
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Categorical, kl_divergence
from transformers import AutoModelForCausalLM, AutoTokenizer

from distill.generation.sampling import StudentRollouts
from distill.losses.chunked import weighted_token_losses
from distill.losses.divergence import (
    clipped_surrogate,
    cross_entropy,
    forward_kl,
    jsd,
    k3,
    policy_gradient,
    reference_kl,
    reverse_kl,
    skew_forward_kl,
    skew_reverse_kl,
    symmetric_kl,
    tvd,
)
from distill.losses.inputs import WeightedTerm
from distill.losses.logits import label_logprobs, student_signals
from distill.losses.signals import signals
from distill.losses.weights import dft, eaft, group_advantage, iw_opd, iw_sft, psft, tis, uniform
from distill.models.head import Head
from distill.objective.objective import Objective
from distill.objective.rewards import Rewards
from distill.objective.terms import LossSums, Term

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'"),
]

Function = Callable[..., Tensor]
DISTRIBUTIONS = {"liger_kernel": "liger-kernel", "swift": "ms-swift"}
DOUBLE, SINGLE = 1e-12, 2e-6  # tolerances over the peer's greatest value
BETAS = (0.0, 0.1, 0.5, 0.8, 1.0)
TOKENS, VOCAB = 12, 24


def installed(package: str) -> Path:
    """The peer's folder; the test is skipped where there is none."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"{package} is not installed: make peers")
    return Path(found.submodule_search_locations[0])


def peer(path: str) -> Any:
    """`module:name` of a peer. One that is installed and does not import is an error, not a skip."""
    module, _, name = path.partition(":")
    installed(module.partition(".")[0])
    return getattr(importlib.import_module(module), name)


def excerpt(package: str, path: str, *names: str, **known: Any) -> dict[str, Any]:
    """Functions, classes and constants of a peer whose own imports want other versions than ours: taken out
    of its file and run unchanged."""
    file = installed(package) / path
    wanted = [
        node
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if getattr(node, "name", None) in names
        or (isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) in names)
    ]
    assert len(wanted) == len(names), f"{file} has lost one of {names}"
    lazy = __future__.annotations.compiler_flag  # annotations name types that are not imported
    namespace = {"torch": torch, "F": F, **known}
    exec(compile(ast.Module(wanted, []), str(file), "exec", flags=lazy), namespace)
    return namespace


def version(package: str) -> str:
    name = DISTRIBUTIONS.get(package, package)
    return f"{name} {importlib.metadata.version(name)}"


class Report:
    """Prints what was measured, and holds it to the tolerance."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, package: str, what: str, measured: str) -> None:
        with self.capsys.disabled():
            print(f"\n  {version(package):20} {what:62} {measured}", end=" ")

    def same(self, package: str, what: str, within: float, **pairs: tuple[Tensor, Tensor]) -> None:
        """Ours and theirs, by name."""
        parts, worst = [], 0.0
        for name, (ours, theirs) in pairs.items():
            absolute, relative = distance(ours, theirs)
            parts.append(f"{name} {absolute:.1e} ({relative:.1e})")
            worst = max(worst, relative)
        self(package, what, ", ".join(parts))
        assert worst <= within

    def differs(
        self,
        package: str,
        what: str,
        *,
        theirs: Tensor,
        ours: Tensor,
        exact: Tensor,
        least: float,
        within: float,
    ) -> None:
        """The peer is at least so far from the definition, ours at most."""
        their_error, our_error = distance(theirs, exact)[1], distance(ours, exact)[1]
        self(package, what, f"from the definition: theirs {their_error:.1e}, ours {our_error:.1e}")
        assert their_error >= least
        assert our_error <= within


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Report:
    return Report(capsys)


def distance(one: Tensor, other: Tensor) -> tuple[float, float]:
    """The greatest difference, absolute and over the other's greatest value; NaN is infinitely far."""
    assert one.shape == other.shape
    absolute = (one.detach().double() - other.detach().double()).abs().max().nan_to_num(nan=math.inf).item()
    return absolute, absolute / other.detach().double().abs().max().item()


def draw(seed: int, tokens: int = TOKENS, vocab: int = VOCAB) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of a student and a teacher, and labels."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 2 * torch.randn(2, tokens, vocab, generator=generator, dtype=torch.float64)
    return student, teacher, torch.randint(vocab, (tokens,), generator=generator)


def apply(loss: Function, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Our loss, of logits."""
    log_p = teacher.log_softmax(-1)
    available = {
        "log_q": student.log_softmax(-1),
        "log_p": log_p,
        "log_r": log_p,
        "labels": labels,
        "teacher_logprobs": log_p.gather(-1, labels.unsqueeze(-1)).squeeze(-1),
    }
    return loss(**{name: available[name] for name in signals(loss)})


def value_and_gradient(function: Callable[[Tensor], Tensor], student: Tensor) -> tuple[Tensor, Tensor]:
    leaf = student.detach().clone().requires_grad_()
    value = function(leaf)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient


def compare(report: Report, package: str, what: str, loss: Function, theirs: Function, within: float) -> None:
    """Values of each token, and gradients at each logit."""
    student, teacher, labels = draw(0)
    ours = value_and_gradient(lambda leaf: apply(loss, leaf, teacher, labels), student)
    other = value_and_gradient(lambda leaf: theirs(leaf, teacher, labels), student)
    report.same(package, what, within, value=(ours[0], other[0]), gradient=(ours[1], other[1]))


def each_row(total: Callable[[Tensor, Tensor], Tensor]) -> Function:
    """Of a peer that returns a sum over tokens: its value at each."""
    return lambda student, teacher, labels: torch.stack(
        [total(student[i : i + 1], teacher[i : i + 1]) for i in range(len(student))]
    )


# Token losses: torch.


def mixed(one: Categorical, other: Categorical, share: float) -> Categorical:
    return Categorical(probs=share * one.probs + (1 - share) * other.probs)


def torch_jsd(q: Categorical, p: Categorical, beta: float) -> Tensor:
    mixture = mixed(p, q, beta)
    return beta * kl_divergence(p, mixture) + (1 - beta) * kl_divergence(q, mixture)


def of_categoricals(function: Callable[[Categorical, Categorical], Tensor]) -> Function:
    """Of the student's and the teacher's."""
    return lambda student, teacher, labels: function(Categorical(logits=student), Categorical(logits=teacher))


def kl_div(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(student‖teacher): torch's first argument is the KL's second."""
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    return F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(-1)


TORCH: dict[str, tuple[Function, Function]] = {
    "cross_entropy = F.cross_entropy": (
        cross_entropy,
        lambda s, t, y: F.cross_entropy(s, y, reduction="none"),
    ),
    "cross_entropy = Categorical.log_prob": (
        cross_entropy,
        lambda s, t, y: -Categorical(logits=s).log_prob(y),
    ),
    "forward_kl = F.kl_div": (forward_kl, lambda s, t, y: kl_div(t, s)),
    "forward_kl = kl_divergence": (forward_kl, of_categoricals(lambda q, p: kl_divergence(p, q))),
    "reverse_kl = F.kl_div": (reverse_kl, lambda s, t, y: kl_div(s, t)),
    "reverse_kl = kl_divergence": (reverse_kl, of_categoricals(kl_divergence)),
    "symmetric_kl = both kl_divergences": (
        symmetric_kl,
        of_categoricals(lambda q, p: kl_divergence(p, q) + kl_divergence(q, p)),
    ),
    "reference_kl = kl_divergence": (reference_kl, of_categoricals(lambda q, p: kl_divergence(p, q))),
    "tvd = F.l1_loss / 2": (
        tvd,
        lambda s, t, y: F.l1_loss(s.softmax(-1), t.softmax(-1), reduction="none").sum(-1) / 2,
    ),
    "skew_forward_kl(0.1) = kl_divergence of a mixture": (
        skew_forward_kl,
        of_categoricals(lambda q, p: kl_divergence(p, mixed(p, q, 0.1))),
    ),
    "skew_reverse_kl(0.1) = kl_divergence of a mixture": (
        skew_reverse_kl,
        of_categoricals(lambda q, p: kl_divergence(q, mixed(q, p, 0.1))),
    ),
} | {
    f"jsd({beta}) = kl_divergences of a mixture": (
        partial(jsd, beta=beta),
        of_categoricals(partial(torch_jsd, beta=beta)),
    )
    for beta in (0.1, 0.5, 0.8)
}


@pytest.mark.parametrize("what", TORCH)
def test_token_losses_are_torchs(report: Report, what: str) -> None:
    compare(report, "torch", what, *TORCH[what], within=DOUBLE)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.8])
def test_jsd_is_the_skew_kls_that_it_is_made_of(report: Report, beta: float) -> None:
    """β KL(P‖M) + (1-β) KL(Q‖M) by torch's JSD, each part by our skew KLs: the same mixture from both
    sides."""

    def parts(log_q: Tensor, log_p: Tensor) -> Tensor:
        forward = skew_forward_kl(log_q, log_p, alpha=beta)
        return beta * forward + (1 - beta) * skew_reverse_kl(log_q, log_p, alpha=1 - beta)

    compare(
        report,
        "torch",
        f"skew KLs at {beta} = jsd({beta})",
        parts,
        of_categoricals(partial(torch_jsd, beta=beta)),
        within=DOUBLE,
    )


# Token losses: TRL, Liger, ms-swift, torchtune, LLaMA-Factory.


def trl_gkd(beta: float) -> Function:
    loss = peer("trl.experimental.gkd.gkd_trainer:GKDTrainer").generalized_jsd_loss
    return lambda s, t, y: loss(s, t, beta=beta, reduction="none").sum(-1)


def trl_gold(beta: float) -> Function:
    loss = peer("trl.experimental.gold.gold_trainer:GOLDTrainer").generalized_jsd_loss
    return lambda s, t, y: loss(s, t, beta=beta, reduction="none").sum(-1)


def trl_iw_opd(beta: float) -> Function:
    loss = peer("trl.experimental.iw_opd.iw_opd_trainer:IWOPDTrainer").generalized_jsd_loss
    return lambda s, t, y: loss(s, t, beta=beta, reduction="none").sum(-1)


def trl_iw_opd_tail(beta: float) -> Function:
    """All tokens but one and a bucket for the rest: the whole vocabulary again."""
    loss = peer("trl.experimental.iw_opd.iw_opd_trainer:IWOPDTrainer").generalized_jsd_loss
    return lambda s, t, y: loss(s, t, beta=beta, reduction="none", top_k=VOCAB - 1, add_tail=True).sum(-1)


def trl_server(beta: float) -> Function:
    module = "trl.experimental.server_distillation.server_distillation_trainer"
    loss = peer(f"{module}:_jsd_divergence")
    everything = torch.ones(TOKENS, VOCAB, dtype=torch.bool)
    return lambda s, t, y: loss(s.log_softmax(-1), t.log_softmax(-1), beta, everything).sum(-1)


def trl_async(beta: float) -> Function:
    loss = peer("trl.experimental.async_distillation.async_distillation_trainer:_jsd_divergence")
    everything = torch.ones(TOKENS, VOCAB, dtype=torch.bool)
    return lambda s, t, y: loss(s.log_softmax(-1), t.log_softmax(-1), beta, everything).sum(-1)


def trl_sdft(beta: float) -> Function:
    loss = peer("trl.experimental.sdft.loss_utils:compute_full_logit_self_distillation_loss")
    return lambda s, t, y: loss(s, t, distillation_alpha=beta)


def trl_sdpo(beta: float) -> Function:
    loss = peer("trl.experimental.sdpo.loss_utils:compute_full_logit_self_distillation_loss")
    return lambda s, t, y: loss(s, t, distillation_alpha=beta)


def liger_jsd(beta: float) -> Function:
    loss = peer("liger_kernel.chunked_loss.jsd_loss:LigerFusedLinearJSDFunction").distillation_loss_fn
    return each_row(lambda s, t: loss(s, t, beta=beta))


def swift_jsd(beta: float) -> Function:
    loss = peer("swift.rlhf_trainers.gkd_loss:jsd_loss")
    return each_row(lambda s, t: loss(s, t, beta))


JSDS: dict[str, tuple[str, Callable[[float], Function]]] = {
    "GKDTrainer": ("trl", trl_gkd),
    "GOLDTrainer": ("trl", trl_gold),
    "IWOPDTrainer": ("trl", trl_iw_opd),
    "IWOPDTrainer's top k and tail": ("trl", trl_iw_opd_tail),
    "ServerDistillationTrainer": ("trl", trl_server),
    "AsyncDistillationTrainer": ("trl", trl_async),
    "SDFTTrainer": ("trl", trl_sdft),
    "SDPOTrainer": ("trl", trl_sdpo),
    "LigerFusedLinearJSD's inside": ("liger_kernel", liger_jsd),
    "gkd_loss": ("swift", swift_jsd),
}


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("name", JSDS)
def test_jsd_and_both_kls_are_everyones(report: Report, name: str, beta: float) -> None:
    """All mean β KL(P‖M) + (1-β) KL(Q‖M) with M = βP + (1-β)Q, forward KL at 0 and reverse KL at 1, as we
    do."""
    package, make = JSDS[name]
    compare(report, package, f"jsd({beta}) = {name}", partial(jsd, beta=beta), make(beta), within=DOUBLE)


def torchtune_losses() -> dict[str, Any]:
    # The package itself does not import without torchao.
    return excerpt("torchtune", "modules/loss/kd_losses.py", "ForwardKLLoss", "ReverseKLLoss")


def test_reverse_kl_is_torchtunes(report: Report) -> None:
    """In single precision, which it always takes."""
    loss = torchtune_losses()["ReverseKLLoss"]()
    theirs = each_row(lambda s, t: loss(s, t, torch.zeros(1, dtype=torch.long)))
    compare(report, "torchtune", "reverse_kl = ReverseKLLoss", reverse_kl, theirs, within=SINGLE)


def test_torchtunes_forward_kl_is_a_cross_entropy(report: Report) -> None:
    """kd_losses.py:49-61 sums -P log Q and leaves the teacher's entropy out: not zero where student and
    teacher agree, and not comparable between teachers. The gradient is that of the KL. Ours is the KL."""
    loss = torchtune_losses()["ForwardKLLoss"]()
    theirs = each_row(lambda s, t: loss(s, t, torch.zeros(1, dtype=torch.long)))
    student, teacher, labels = draw(1)
    value, gradient = value_and_gradient(lambda leaf: theirs(leaf, teacher, labels), student)
    ours = value_and_gradient(lambda leaf: apply(forward_kl, leaf, teacher, labels), student)
    entropy = Categorical(logits=teacher).entropy()
    report.same(
        "torchtune",
        "forward_kl + H(P) = ForwardKLLoss",
        SINGLE,
        value=(ours[0] + entropy, value),
        gradient=(ours[1], gradient),
    )
    report.differs(
        "torchtune",
        "ForwardKLLoss is no KL",
        theirs=value,
        ours=ours[0],
        exact=kl_divergence(Categorical(logits=teacher), Categorical(logits=student)),
        least=0.1,
        within=DOUBLE,
    )
    agreed = theirs(teacher, teacher, labels)
    report("torchtune", "ForwardKLLoss where the two agree", f"{agreed.mean():.3f}, and ours 0")
    assert agreed.min() > 0.1
    assert (apply(forward_kl, teacher, teacher, labels) == 0).all()


def factory() -> dict[str, Any]:
    # Its own imports ask for transformers below 5.6 and for a class that TRL has dropped.
    return excerpt(
        "llamafactory",
        "train/trainer_utils.py",
        "_dft_cross_entropy",
        "_asft_cross_entropy",
        "_eaft_cross_entropy",
        "_kl_divergence",
    )


def test_reference_kl_is_llama_factorys(report: Report) -> None:
    loss = factory()["_kl_divergence"]
    theirs = each_row(lambda s, t: loss(s, t, torch.zeros(1, dtype=torch.long)))
    # Its mask is float32, and so 1 exactly.
    compare(report, "llamafactory", "reference_kl = _kl_divergence", reference_kl, theirs, within=DOUBLE)


def test_the_policy_gradient_is_trls_sampled_token_loss(report: Report) -> None:
    loss = peer("trl.experimental.sdft.loss_utils:compute_sampled_token_self_distillation_loss")
    compare(
        report,
        "trl",
        "policy_gradient = SDFT's sampled_token",
        policy_gradient,
        lambda s, t, y: loss(s.unsqueeze(0), t.unsqueeze(0), y.unsqueeze(0), distillation_alpha=1.0).squeeze(
            0
        ),
        within=DOUBLE,
    )


def test_cross_entropy_is_trls_selective_log_softmax(report: Report) -> None:
    loss = peer("trl.trainer.utils:selective_log_softmax")
    theirs: Function = lambda s, t, y: -loss(s, y)  # noqa: E731
    compare(report, "trl", "cross_entropy = selective_log_softmax", cross_entropy, theirs, within=DOUBLE)


def test_trls_gold_cuts_probabilities_off_at_1e_8(report: Report) -> None:
    """gold_trainer.py:2283-2284, for tokens that two vocabularies share: a token that the student thinks
    less likely is as good as one of 1e-8, and gets no gradient. Ours takes log-probabilities, which need no
    bound."""
    loss = peer("trl.experimental.gold.gold_trainer:GOLDTrainer").generalized_jsd_loss
    student, teacher, labels = (x * 6 if x.is_floating_point() else x for x in draw(2))
    exact = kl_divergence(Categorical(logits=teacher), Categorical(logits=student))

    def theirs(leaf: Tensor) -> Tensor:
        probabilities = leaf.softmax(-1), teacher.softmax(-1)
        return loss(*probabilities, beta=0.0, reduction="none", logits_are_probs=True).sum(-1)

    value, gradient = value_and_gradient(theirs, student)
    ours = value_and_gradient(lambda leaf: apply(forward_kl, leaf, teacher, labels), student)
    report(
        "trl",
        "GOLDTrainer's gradient, of probabilities",
        f"off by {distance(gradient, student.softmax(-1) - teacher.softmax(-1))[1]:.1e}, and ours by "
        f"{distance(ours[1], student.softmax(-1) - teacher.softmax(-1))[1]:.1e}",
    )
    report.differs(
        "trl",
        "GOLDTrainer, of probabilities",
        theirs=value,
        ours=ours[0],
        exact=exact,
        least=0.05,
        within=DOUBLE,
    )


def uld(strategy: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """TRL's universal logit distillation on one row, the same tokenizer on both sides."""
    config = SimpleNamespace(
        uld_crossentropy_weight=0.0,
        uld_distillation_weight=1.0,
        uld_student_temperature=1.0,
        uld_teacher_temperature=1.0,
        uld_skip_student_eos=False,
        uld_skip_teacher_eos=False,
        use_extended_uld=False,
        uld_token_merge_strategy=strategy,
    )
    loss = peer("trl.experimental.gold.gold_trainer:ULDLoss")(config)

    def call(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        one = (x.unsqueeze(0) for x in (student, teacher, labels, labels, labels, labels))
        return loss(*one)

    return call


def test_tvd_is_half_of_trls_uld_where_both_rank_the_vocabulary_alike(report: Report) -> None:
    """ULD sorts both distributions before it takes the L1 distance, so that it needs no common vocabulary.
    Where both have the same order the sort changes nothing and it is twice the TVD; elsewhere it is smaller,
    and blind to which token is which. Ours compares token by token."""
    student, teacher, labels = draw(2)
    student, teacher = student.sort(-1).values, teacher.sort(-1).values
    labels[:3] = -100  # the prompt
    theirs = value_and_gradient(lambda leaf: uld("bayesian")(leaf, teacher, labels), student)
    ours = value_and_gradient(
        lambda leaf: 2 * apply(tvd, leaf[2:-1], teacher[2:-1], labels[3:]).mean(), student
    )
    report.same(
        "trl",
        "2 tvd = ULDLoss, tokens ranked alike",
        DOUBLE,
        value=(ours[0], theirs[0]),
        gradient=(ours[1], theirs[1]),
    )
    flipped = uld("bayesian")(teacher.flip(-1), teacher, labels)
    apart = 2 * apply(tvd, teacher.flip(-1)[2:-1], teacher[2:-1], labels[3:]).mean()
    report("trl", "ULDLoss, the student's vocabulary back to front", f"{flipped:.1e}, and ours {apart:.3f}")
    assert abs(flipped) < DOUBLE
    assert apart > 0.1


def test_trls_uld_does_not_look_at_the_first_answer_token(report: Report) -> None:
    """gold_trainer.py:466: with its default `uld_token_merge_strategy="observed"` the answer's logits begin
    at the answer's first token, whose logits predict the second: nobody trains the position that writes the
    first, and the position of the last, which predicts what no label says, is trained. "bayesian" (463)
    starts one earlier, as our batches do."""
    student, teacher, labels = draw(2)
    labels[:3] = -100
    _, observed = value_and_gradient(lambda leaf: uld("observed")(leaf, teacher, labels), student)
    _, bayesian = value_and_gradient(lambda leaf: uld("bayesian")(leaf, teacher, labels), student)
    writes_the_first = [gradient[2].abs().max().item() for gradient in (observed, bayesian)]
    report(
        "trl",
        "ULDLoss's gradient at the first answer token",
        f"{writes_the_first[0]:.1e} by default, {writes_the_first[1]:.1e} with bayesian",
    )
    assert writes_the_first[0] == 0 < writes_the_first[1]
    assert observed[-1].abs().max() > 0 == bayesian[-1].abs().max()


# What a teacher, or a student, rules out.


def kl_of_torch(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return kl_div(teacher, student)


RULED_OUT: dict[str, tuple[str, Callable[[], Function]]] = {
    "F.kl_div": ("torch", lambda: kl_of_torch),
    "GKDTrainer": ("trl", lambda: trl_gkd(0.0)),
    "GOLDTrainer": ("trl", lambda: trl_gold(0.0)),
    "IWOPDTrainer": ("trl", lambda: trl_iw_opd(0.0)),
    "SDFTTrainer": ("trl", lambda: trl_sdft(0.0)),
    "LigerFusedLinearJSD's inside": ("liger_kernel", lambda: liger_jsd(0.0)),
    "gkd_loss": ("swift", lambda: swift_jsd(0.0)),
}


@pytest.mark.parametrize("name", RULED_OUT)
def test_a_token_that_the_teacher_rules_out_makes_their_forward_kl_nan_and_not_ours(
    report: Report, name: str
) -> None:
    """0·log 0 is NaN in F.kl_div(log_target=True), and in all that call it: trl gkd_trainer.py:279,
    gold_trainer.py:2294, sdft/loss_utils.py:29, liger jsd_loss.py:34; ms-swift writes the same product
    itself, gkd_loss.py:82. Ours masks before the product: that term is zero."""
    package, make = RULED_OUT[name]
    theirs = make()
    student, teacher, labels = draw(3)
    teacher[:, 5] = -torch.inf
    kept = [column for column in range(VOCAB) if column != 5]
    p, log_q = teacher.softmax(-1)[:, kept], student.log_softmax(-1)[:, kept]
    exact = (p * (p.log() - log_q)).sum(-1)
    value, gradient = value_and_gradient(lambda leaf: apply(forward_kl, leaf, teacher, labels), student)
    assert gradient.isfinite().all()
    report.differs(
        package,
        f"forward KL, {name}, a token ruled out",
        theirs=theirs(student, teacher, labels),
        ours=value,
        exact=exact,
        least=math.inf,
        within=DOUBLE,
    )


def test_torchtunes_reverse_kl_has_a_nan_gradient_where_both_rule_out_a_token(report: Report) -> None:
    """kd_losses.py:107 masks after the product, so that the value is finite and its gradient, zero times
    minus infinity, is not. Here both rule the token out, and the reverse KL is finite."""
    loss = torchtune_losses()["ReverseKLLoss"]()
    theirs = each_row(lambda s, t: loss(s, t, torch.zeros(1, dtype=torch.long)))
    student, teacher, labels = draw(3)
    teacher[:, 5] = student[:, 5] = -torch.inf
    value, gradient = value_and_gradient(lambda leaf: theirs(leaf, teacher, labels), student)
    ours = value_and_gradient(lambda leaf: apply(reverse_kl, leaf, teacher, labels), student)
    report(
        "torchtune",
        "ReverseKLLoss, a token ruled out by both",
        f"value off by {distance(value, ours[0])[1]:.1e}; NaN in {gradient.isnan().double().mean():.0%} "
        f"of its gradient, {ours[1].isnan().double().mean():.0%} of ours",
    )
    assert gradient.isnan().any()
    assert ours[1].isfinite().all()


# Half precision.


@pytest.mark.parametrize("name", ["GKDTrainer", "SDFTTrainer", "LigerFusedLinearJSD's inside", "gkd_loss"])
def test_their_jsd_of_bf16_logits_is_taken_in_bf16(report: Report, name: str) -> None:
    """trl gkd_trainer.py:275, sdft/loss_utils.py:109, liger jsd_loss.py:30 and ms-swift gkd_loss.py:77 take
    the log-softmax in the logits' own type. Where the two nearly agree the result is noise, of either sign.
    Our head takes log-probabilities in float32 whatever the logits are."""
    package, make = JSDS[name]
    theirs = make(0.5)
    student, noise, labels = draw(4, tokens=64, vocab=2048)
    student, teacher = student.bfloat16(), (student + 0.05 * noise).bfloat16()
    exact = apply(jsd, student.double(), teacher.double(), labels)
    value = theirs(student, teacher, labels)
    report.differs(
        package,
        f"jsd of bf16 logits, {name}, {(value < 0).double().mean():.0%} negative",
        theirs=value,
        ours=apply(jsd, student.float(), teacher.float(), labels),
        exact=exact,
        least=0.1,
        within=1e-3,
    )


# Means of what.


def test_trls_batchmean_and_mean_divide_by_something_else_than_tokens(report: Report) -> None:
    """gkd_trainer.py:315 divides by the batch's rows when it gets no labels, and by tokens when it does; 320
    divides by tokens times the vocabulary. The same lines are in gold_trainer.py and iw_opd_trainer.py. Ours
    divides by the completion tokens of the optimizer step, in one place."""
    loss = peer("trl.experimental.gkd.gkd_trainer:GKDTrainer").generalized_jsd_loss
    student, teacher, labels = draw(5)
    rows = [x.view(3, 4, *x.shape[1:]) for x in (student, teacher, labels)]
    exact = apply(jsd, student, teacher, labels).mean()
    assert distance(loss(*rows), exact)[1] < DOUBLE
    for reduction, factor in (("batchmean", 4.0), ("mean", 1 / VOCAB)):
        found = loss(*rows[:2], reduction=reduction)
        report(
            "trl", f"GKDTrainer's {reduction} without labels", f"{found / exact:.4f} of the mean over tokens"
        )
        assert (found / exact).item() == pytest.approx(factor, rel=1e-12)


def test_trls_self_distillation_is_a_mean_of_means(report: Report) -> None:
    """sdpo_trainer.py:1252-1255 and sdft_trainer.py:890-893 take the mean over each row, then over rows: a
    token of a short completion counts more. Ours is a mean over all tokens."""
    trainer = peer("trl.experimental.sdpo.sdpo_trainer:SDPOTrainer")
    student, teacher, labels = draw(6, tokens=10)
    mask = torch.tensor([[1.0] * 5, [1.0] + [0.0] * 4], dtype=torch.float64)
    logits = SimpleNamespace(
        student_logits=student.view(2, 5, -1),
        teacher_logits=teacher.view(2, 5, -1),
        completion_ids=labels.view(2, 5),
        loss_mask=mask,
    )
    itself = SimpleNamespace(
        args=SimpleNamespace(
            distillation_mode="full_logits", distillation_alpha=0.5, distillation_is_clip=None
        ),
        accelerator=SimpleNamespace(gather=lambda x: x),
        _log_self_distillation_metric=lambda *_: None,
    )
    theirs = trainer._compute_self_distillation_loss(itself, SimpleNamespace(training=True), {}, logits)
    losses = apply(jsd, student, teacher, labels).view(2, 5)
    by_rows = (losses[0].mean() + losses[1, 0]) / 2
    exact = (losses * mask).sum() / mask.sum()
    report.same("trl", "mean over rows of means = SDPOTrainer", DOUBLE, value=(by_rows, theirs))
    report.differs(
        "trl",
        "SDPOTrainer, completions of 5 and 1 tokens",
        theirs=theirs,
        ours=objective_value(Objective("dataset", jsd, uniform), student, teacher, labels, mask.bool()),
        exact=exact,
        least=0.05,
        within=DOUBLE,
    )


def objective_value(
    objective: Objective, student: Tensor, teacher: Tensor, labels: Tensor, mask: Tensor
) -> Tensor:
    """Our whole objective of logits: as if they were hidden states, and the output matrix the identity."""
    flat = mask.flatten()
    matrix = torch.eye(student.shape[-1], dtype=student.dtype)
    found = objective(
        Head(student[flat], matrix),
        mask,
        labels.view(mask.shape),
        {},
        others={name: Head(teacher[flat], matrix) for name in objective.distributions},
    )
    return found.total / found.denominator


# The chunked head, end to end.


class Heads(SimpleNamespace):
    """Hidden states, output matrices and labels; the student's ask for gradients."""

    hidden: Tensor
    weight: Tensor
    teacher_hidden: Tensor
    teacher_weight: Tensor
    labels: Tensor
    token_weights: Tensor

    @property
    def student(self) -> Head:
        return Head(self.hidden, self.weight)

    @property
    def others(self) -> dict[str, Head]:
        return {"log_p": Head(self.teacher_hidden, self.teacher_weight)}

    def to(self, dtype: torch.dtype) -> "Heads":
        moved = {name: x.detach().to(dtype) if x.is_floating_point() else x for name, x in vars(self).items()}
        for name in ("hidden", "weight"):
            moved[name].requires_grad_()
        return Heads(**moved)

    def ours(self, *terms: tuple[Function, Tensor], **switches: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The loss and its gradients."""
        weighted = [WeightedTerm(loss, weights) for loss, weights in terms]
        labels = self.labels.clamp(min=0)
        found = weighted_token_losses(self.student, labels, weighted, others=self.others, **switches)
        return self.with_gradients(found.total)

    def with_gradients(self, total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden, weight = torch.autograd.grad(total, (self.hidden, self.weight))
        return total.detach(), hidden, weight


def draw_heads(seed: int, dtype: torch.dtype, tokens: int = 37, vocab: int = 97, width: int = 8) -> Heads:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return Heads(
        hidden=normal(tokens, width),
        weight=normal(vocab, width) / math.sqrt(width) * 2,
        teacher_hidden=normal(tokens, width + 3),
        teacher_weight=normal(vocab, width + 3) / math.sqrt(width + 3) * 2,
        labels=torch.randint(vocab, (tokens,), generator=generator),
        token_weights=torch.rand(tokens, generator=generator, dtype=torch.float64),
    ).to(dtype)


def named(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> dict[str, tuple[Tensor, Tensor]]:
    return dict(zip(("value", "hidden", "weight"), zip(ours, theirs, strict=True), strict=True))


def liger(heads: Heads, **switches: Any) -> Tensor:
    loss = peer("liger_kernel.chunked_loss:LigerFusedLinearJSDLoss")(compiled=False, **switches)
    return loss(heads.hidden, heads.weight, heads.teacher_hidden, heads.teacher_weight, heads.labels)


@pytest.mark.parametrize("chunk_size", [4, 1024])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("beta", BETAS)
def test_the_head_is_ligers_chunked_jsd(
    report: Report, beta: float, temperature: float, chunk_size: int
) -> None:
    """The mean over tokens, without those that the labels ignore. Liger adds its chunks' losses up in single
    precision whatever they are in (fused_linear_distillation.py:205), and their gradients in the weights'
    own: the value is held to the first, the gradients to double."""
    heads = draw_heads(7, torch.float64)
    heads.labels[::5] = -100
    kept = (heads.labels != -100).double()
    switches = {"temperature": temperature, "chunk_size": chunk_size}
    ours = heads.ours((partial(jsd, beta=beta), kept / kept.sum()), **switches)
    theirs = heads.with_gradients(
        liger(heads, weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, **switches)
    )
    what = f"head, jsd({beta}), T={temperature:g}, chunks of {chunk_size}"
    pairs = named(ours, theirs)
    report.same("liger_kernel", what, SINGLE, value=pairs.pop("value"))
    report.same("liger_kernel", what, DOUBLE, **pairs)


def test_ligers_jsd_is_by_default_half_a_jsd_and_half_a_cross_entropy(report: Report) -> None:
    """jsd_loss.py:143-144: weight_hard_loss and weight_soft_loss are both 0.5. The cross-entropy is added
    unasked, and is taken at temperature 1 whatever the other's (fused_linear_distillation.py:57, before
    120). With us it is a second term, if one writes it."""
    heads = draw_heads(8, torch.float64)
    theirs = heads.with_gradients(liger(heads))
    even = torch.full_like(heads.token_weights, 1 / len(heads.labels))
    both = heads.ours((cross_entropy, even / 2), (jsd, even / 2))
    pairs = named(both, theirs)
    report.same("liger_kernel", "(cross_entropy + jsd) / 2 = LigerFusedLinearJSDLoss()", SINGLE, **pairs)
    logits = heads.hidden @ heads.weight.T, heads.teacher_hidden @ heads.teacher_weight.T
    report.differs(
        "liger_kernel",
        "LigerFusedLinearJSDLoss() is no JSD",
        theirs=theirs[0],
        ours=heads.ours((jsd, even))[0],
        exact=torch_jsd(*(Categorical(logits=x) for x in logits), beta=0.5).mean(),
        least=1.0,
        within=DOUBLE,
    )


@pytest.mark.parametrize("package", ["liger_kernel", "swift"])
def test_a_teachers_padded_vocabulary_gives_their_students_tokens_that_it_does_not_have(
    report: Report, package: str
) -> None:
    """Where the teacher's output matrix is padded further than the student's, Liger gives the student zero
    logits there (fused_linear_distillation.py:131), and ms-swift the teacher's (gkd_loss.py:163):
    probability mass on tokens that do not exist. Ours cuts every matrix to the tokenizer's size, so padding
    changes nothing."""
    heads = draw_heads(9, torch.float64)
    rows, width = heads.teacher_weight.shape
    logits = heads.hidden @ heads.weight.T, heads.teacher_hidden @ heads.teacher_weight.T
    exact = torch_jsd(*(Categorical(logits=x) for x in logits), beta=0.5).mean()
    padded = torch.cat([heads.teacher_weight, torch.zeros(64, width, dtype=torch.float64)])
    heads.teacher_weight = padded[:rows]
    ours = heads.ours((jsd, torch.full_like(heads.token_weights, 1 / len(heads.labels))))
    heads.teacher_weight = padded
    if package == "liger_kernel":
        theirs = liger(heads, weight_hard_loss=0.0, weight_soft_loss=1.0)
    else:
        output = peer("swift.rlhf_trainers.gkd_loss:TeacherOutput")
        labels = heads.labels.unsqueeze(0)
        teacher = output(full_logits=(heads.teacher_hidden @ padded.T).unsqueeze(0), labels=labels)
        loss = peer("swift.rlhf_trainers.gkd_loss:gkd_loss")
        total, count = loss(logits[0].unsqueeze(0), teacher, labels, 0.5, 1.0)
        theirs = total / count
    report.differs(
        package,
        f"teacher's matrix of {rows} rows padded by 64",
        theirs=theirs,
        ours=ours[0],
        exact=exact,
        least=0.05,
        within=DOUBLE,
    )


def test_ligers_chunks_are_up_to_twice_as_long_as_asked_for(
    report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fused_linear_distillation.py:276 rounds the number of chunks down: 37 tokens in chunks of 20 are one
    chunk of 37, so that its logits take almost twice the memory. Ours rounds up."""
    function = peer("liger_kernel.chunked_loss.jsd_loss:LigerFusedLinearJSDFunction")
    seen: dict[str, list[int]] = {"liger": [], "ours": []}
    whole = function.distillation_loss_fn

    def counting(student: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen["liger"].append(len(student))
        return whole(student, *args, **kwargs)

    def counting_jsd(log_q: Tensor, log_p: Tensor) -> Tensor:
        seen["ours"].append(len(log_q))
        return jsd(log_q, log_p)

    monkeypatch.setattr(function, "distillation_loss_fn", staticmethod(counting))
    heads = draw_heads(10, torch.float32)
    liger(heads, chunk_size=20)
    heads.ours((counting_jsd, heads.token_weights), chunk_size=20)
    report("liger_kernel", "37 tokens in chunks of 20", f"theirs {seen['liger']}, ours {seen['ours']}")
    assert max(seen["liger"]) == 37
    assert seen["ours"] == [20, 17]


def test_ligers_gradient_of_a_bf16_matrix_is_summed_in_bf16(report: Report) -> None:
    """fused_linear_distillation.py:202: the sum over chunks is as wide as the matrix. Smaller chunks,
    greater error. Ours sums in float32 and rounds once."""
    heads = draw_heads(11, torch.bfloat16, tokens=2048, vocab=64, width=16)
    even = torch.full((2048,), 1 / 2048)
    exact = heads.to(torch.float64).ours((jsd, even.double()))
    errors: dict[str, list[float]] = {"theirs": [], "ours": []}
    for chunk_size in (2048, 4):
        theirs = heads.with_gradients(
            liger(heads, weight_hard_loss=0.0, weight_soft_loss=1.0, chunk_size=chunk_size)
        )
        ours = heads.ours((jsd, even), chunk_size=chunk_size)
        for name, found in (("theirs", theirs), ("ours", ours)):
            errors[name].append(((found[2].double() - exact[2]).norm() / exact[2].norm()).item())
        report(
            "liger_kernel",
            f"bf16 head, gradient of the matrix, chunks of {chunk_size}",
            f"from double: theirs {errors['theirs'][-1]:.1e}, ours {errors['ours'][-1]:.1e}; "
            f"loss: theirs {distance(theirs[0], exact[0])[1]:.1e}, ours {distance(ours[0], exact[0])[1]:.1e}",
        )
    assert errors["theirs"][1] > 1.5 * errors["theirs"][0]
    assert errors["ours"][1] < 1.1 * errors["ours"][0]
    assert errors["ours"][1] < errors["theirs"][1] / 2


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_the_head_is_as_exact_as_trls_in_bf16_where_the_two_nearly_agree(report: Report, beta: float) -> None:
    """chunked_divergence.py:360 multiplies bf16 states and matrices into float32 logits, as we do. Logits
    rounded to bf16 first would carry an error of 1/64 at a height of 8: as much as there is to learn near a
    teacher."""
    theirs = peer("trl.kernels.chunked_divergence:ChunkedDivergenceFunction")
    heads = draw_heads(30, torch.bfloat16, tokens=256, vocab=2048, width=64)
    noise = torch.randn(256, 64, generator=torch.Generator().manual_seed(31))
    heads.teacher_weight = heads.weight.detach()
    heads.teacher_hidden = (heads.hidden.detach().float() + 0.02 * noise).bfloat16()
    loss, even = partial(jsd, beta=beta), torch.full((256,), 1 / 256)
    exact = heads.to(torch.float64).ours((loss, even.double()))
    ours = heads.ours((loss, even))
    losses, _ = theirs.apply(
        heads.hidden, heads.weight, None, heads.teacher_hidden, heads.teacher_weight, None, beta
    )
    found = heads.with_gradients((losses * even).sum())
    errors = [
        [((x.double() - y).norm() / y.norm()).item() for x, y in zip(each, exact, strict=True)]
        for each in (ours, found)
    ]
    told = ["loss {:.1e}, hidden {:.1e}, weight {:.1e}".format(*each) for each in errors]
    report("trl", f"bf16 head, jsd({beta}) of {exact[0]:.1e}", f"ours {told[0]}; theirs {told[1]}")
    assert all(mine < 2 * other + 1e-3 for mine, other in zip(*errors, strict=True))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("beta", BETAS)
def test_the_head_is_trls_chunked_divergence_with_a_weight_for_each_token(
    report: Report, beta: float, temperature: float
) -> None:
    """Per token and in single precision, which it always takes; so weights enter from outside, as with
    us."""
    theirs = peer("trl.kernels.chunked_divergence:ChunkedDivergenceFunction")
    heads = draw_heads(12, torch.float32)
    losses, _ = theirs.apply(
        heads.hidden,
        heads.weight,
        None,
        heads.teacher_hidden,
        heads.teacher_weight,
        None,
        beta,
        temperature,
    )
    expected = heads.with_gradients((losses * heads.token_weights).sum())
    loss = partial(jsd, beta=beta)
    found = heads.ours((loss, heads.token_weights), temperature=temperature, chunk_size=5)
    what = f"head, weighted jsd({beta}), T={temperature:g} = DistillationTrainer"
    report.same("trl", what, 2 * SINGLE, **named(found, expected))


def test_the_head_is_trls_chunked_log_probs_with_a_weight_for_each_token(report: Report) -> None:
    theirs = peer("trl.kernels.chunked_logprob:ChunkedLogProbFunction")
    heads = draw_heads(13, torch.float32)
    logprobs, *_ = theirs.apply(heads.hidden, heads.weight, None, heads.labels, 1.0, 32)
    expected = heads.with_gradients(-(logprobs * heads.token_weights).sum())
    found = heads.ours((cross_entropy, heads.token_weights), chunk_size=5)
    report.same("trl", "head, weighted cross_entropy = SFTTrainer's", SINGLE, **named(found, expected))
    report.same(
        "trl",
        "label_logprobs = SFTTrainer's log_probs",
        SINGLE,
        value=(label_logprobs(heads.student, heads.labels, chunk_size=5), logprobs),
    )


def test_the_head_is_torchs_linear_cross_entropy(report: Report) -> None:
    if not hasattr(F, "linear_cross_entropy"):
        pytest.skip(f"torch {torch.__version__} has no linear_cross_entropy")
    heads = draw_heads(14, torch.float64)
    theirs = F.linear_cross_entropy(heads.hidden, heads.weight, heads.labels, reduction="sum")
    ours = heads.ours((cross_entropy, torch.ones_like(heads.token_weights)), chunk_size=5)
    pairs = named(ours, heads.with_gradients(theirs))
    report.same("torch", "head, cross_entropy = F.linear_cross_entropy", DOUBLE, **pairs)


def test_the_students_entropy_is_torchs_and_trls(report: Report) -> None:
    """Of twenty tokens, where ours is of all too."""
    heads = draw_heads(15, torch.float64, vocab=20)
    ours = student_signals(heads.student, heads.labels, {"student_entropy"}, chunk_size=5)["student_entropy"]
    logits = (heads.hidden @ heads.weight.T).detach()
    report.same(
        "torch",
        "student_entropy = Categorical.entropy",
        DOUBLE,
        value=(ours, Categorical(logits=logits).entropy()),
    )
    theirs = peer("trl.trainer.utils:entropy_from_logits")(logits)
    report.same("trl", "student_entropy = entropy_from_logits", DOUBLE, value=(ours, theirs))


def test_trls_chunked_kl_loses_digits_where_the_two_nearly_agree(report: Report) -> None:
    """chunked_divergence.py:483 and 486 make a KL from two log-partitions and an expected gap, each as great
    as the logits, in float32: of a KL of 1e-5 under logits of some tens, the mean of 256 tokens is up to one
    per cent off. Ours sums P (log P - log Q)."""
    theirs = peer("trl.kernels.chunked_divergence:ChunkedDivergenceFunction")
    heads = draw_heads(16, torch.float32, tokens=256, vocab=512, width=32)
    generator = torch.Generator().manual_seed(17)
    heads.weight = (5 * heads.weight.detach()).requires_grad_()
    heads.teacher_weight = heads.weight.detach()
    heads.teacher_hidden = heads.hidden.detach() + 1e-3 * torch.randn(256, 32, generator=generator)
    for beta, loss in ((0.0, forward_kl), (1.0, reverse_kl)):
        found, _ = theirs.apply(
            heads.hidden, heads.weight, None, heads.teacher_hidden, heads.teacher_weight, None, beta
        )
        ones = torch.ones(256)
        exact = heads.to(torch.float64).ours((loss, ones.double()))[0] / 256
        ours = heads.ours((loss, ones))[0] / 256
        report.differs(
            "trl",
            f"float32 {loss.__name__} of {exact:.1e}",
            theirs=found.mean(),
            ours=ours,
            exact=exact,
            least=3e-3,
            within=1e-3,
        )


# Token weights, with the loss that they are made for.


def grpo(heads: Heads, rows: int, advantages: Tensor, old: Tensor, **switches: Any) -> tuple[Tensor, ...]:
    """Liger's policy losses on equally long rows, all of their tokens counted."""
    length = len(heads.labels) // rows
    loss = peer("liger_kernel.chunked_loss:LigerFusedLinearGRPOLoss")(
        beta=0.0, compiled=False, use_ref_model=False, **switches
    )
    total, _ = loss(
        heads.hidden.view(rows, length, -1),
        heads.weight,
        heads.labels.view(rows, length),
        torch.ones(rows, length),
        advantages,
        old_per_token_logps=old.view(rows, length),
    )
    return heads.with_gradients(total)


def weighted(heads: Heads, weights: Tensor) -> tuple[Tensor, ...]:
    """The mean of weighted cross-entropies."""
    return heads.ours((cross_entropy, weights.flatten() / weights.numel()), chunk_size=5)


def old_and_new(heads: Heads, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """[rows, length] log-probs of the tokens: by the student, and by some other policy; and a full mask."""
    new = label_logprobs(heads.student, heads.labels)
    old = new + torch.randn(new.shape, generator=torch.Generator().manual_seed(3)).to(new.dtype) * 0.7
    return new.view(rows, -1), old.view(rows, -1), torch.ones(rows, len(new) // rows, dtype=torch.bool)


def test_tis_is_ligers_cispo_with_an_advantage_of_one(report: Report) -> None:
    heads = draw_heads(18, torch.float32, tokens=36)
    new, old, mask = old_and_new(heads, rows=4)
    weights = tis(mask, new, old, max_ratio=1.5)
    assert 0 < (weights == 1.5).double().mean() < 1
    theirs = grpo(heads, 4, torch.ones(4), old, loss_type="cispo", epsilon_high=1.5)
    pairs = named(weighted(heads, weights), theirs)
    report.same("liger_kernel", "cross_entropy × tis = cispo", SINGLE, **pairs)


def test_tis_is_trls_truncated_ratio(report: Report) -> None:
    """The one that SDFT and SDPO multiply their losses with, at the policy gradient's own tokens."""
    clip = peer("trl.experimental.sdft.loss_utils:apply_importance_sampling_clipping")
    heads = draw_heads(18, torch.float64, tokens=36)
    new, old, mask = old_and_new(heads, rows=4)
    theirs = clip(torch.ones_like(new), new, old, 2.0)
    report.same(
        "trl", "tis = apply_importance_sampling_clipping", DOUBLE, value=(tis(mask, new, old), theirs)
    )


def test_tis_is_verls_truncated_ratio(report: Report) -> None:
    # The package itself does not import without ray; its metrics are left out.
    names = "compute_rollout_correction_weights", "_parse_rollout_is_threshold", "SAFETY_BOUND"
    file = "trainer/ppo/rollout_corr_helper.py"
    correct = excerpt("verl", file, *names, compute_is_metrics=lambda **_: {}, Optional=None)[names[0]]
    heads = draw_heads(18, torch.float64, tokens=36)
    new, old, mask = old_and_new(heads, rows=4)
    mask[1, 5:] = False
    theirs, _ = correct(new - old, mask.double())
    report.same(
        "verl", "tis = compute_rollout_correction_weights", DOUBLE, value=(tis(mask, new, old), theirs)
    )


def test_psft_is_ligers_clipped_ratio_with_an_advantage_of_one(report: Report) -> None:
    """In its gradient. The value is another: theirs is the clipped ratio, ours the cross-entropy that it
    weighs."""
    heads = draw_heads(19, torch.float32, tokens=36)
    new, old, mask = old_and_new(heads, rows=4)
    weights = psft(mask, new, old, clip=0.28)
    assert 0 < (weights == 0).double().mean() < 1
    theirs = grpo(heads, 4, torch.ones(4), old, loss_type="bnpo", epsilon_low=0.2, epsilon_high=0.28)
    pairs = named(weighted(heads, weights), theirs)
    pairs.pop("value")
    report.same("liger_kernel", "cross_entropy × psft = bnpo's gradient", SINGLE, **pairs)


def test_iw_sft_is_ligers_sequence_level_ratio_with_an_advantage_of_one(report: Report) -> None:
    """In its gradient, with bounds that do not act, on equally long rows: GSPO weighs a row by its ratio."""
    heads = draw_heads(20, torch.float32, tokens=36)
    new, old, mask = old_and_new(heads, rows=4)
    weights = iw_sft(mask, new, old)
    theirs = grpo(
        heads,
        4,
        torch.ones(4),
        old,
        loss_type="grpo",
        importance_sampling_level="sequence",
        epsilon_low=1.0,
        epsilon_high=15.0,
    )
    pairs = named(weighted(heads, weights), theirs)
    pairs.pop("value")
    report.same("liger_kernel", "cross_entropy × iw_sft = GSPO's gradient", SINGLE, **pairs)


def test_the_policy_gradient_is_ligers_with_an_advantage_for_each_token(report: Report) -> None:
    """A row of one token each, so that Liger's advantages are per token."""
    heads = draw_heads(21, torch.float32, tokens=36)
    new, teacher, _ = old_and_new(heads, rows=36)
    advantages = (teacher - new).flatten()
    theirs = grpo(heads, 36, advantages, new, loss_type="cispo", epsilon_high=2.0)
    found = weighted_token_losses(
        heads.student,
        heads.labels,
        [WeightedTerm(policy_gradient, torch.full((36,), 1 / 36))],
        token_signals={"teacher_logprobs": teacher.flatten()},
        chunk_size=5,
    )
    pairs = named(heads.with_gradients(found.total), theirs)
    report.same("liger_kernel", "policy_gradient = cispo", SINGLE, **pairs)


# Whole objectives.


def run(
    objective: Objective,
    heads: Heads,
    mask: Tensor,
    token_signals: Mapping[str, Tensor] | None = None,
    **switches: Any,
) -> tuple[LossSums, tuple[Tensor, ...]]:
    flat = mask.flatten()
    found = objective(
        Head(heads.hidden[flat], heads.weight),
        mask,
        heads.labels.view(mask.shape),
        token_signals or {},
        others={
            name: Head(heads.teacher_hidden[flat], heads.teacher_weight) for name in objective.distributions
        },
        **switches,
    )
    return found, heads.with_gradients(found.total / found.denominator)


def ragged() -> Tensor:
    mask = torch.ones(4, 9, dtype=torch.bool)
    mask[0, 5:] = mask[2, :3] = mask[3, 1:] = False
    return mask


OBJECTIVES: dict[str, tuple[Objective, Callable[[dict[str, Any], Tensor, Tensor, Tensor], Tensor]]] = {
    "dft": (
        Objective("dataset", cross_entropy, dft),
        lambda found, student, reference, labels: found["_dft_cross_entropy"](student, labels),
    ),
    "eaft": (
        Objective("dataset", cross_entropy, partial(eaft, alpha=2.0)),
        lambda found, student, reference, labels: found["_eaft_cross_entropy"](student, labels, alpha=2.0),
    ),
    "asft": (
        Objective("dataset", cross_entropy, dft, extra={"anchor": Term(reference_kl, coefficient=0.05)}),
        lambda found, student, reference, labels: found["_asft_cross_entropy"](
            student, labels, reference, 0.05
        ),
    ),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_dft_eaft_and_asft_are_llama_factorys(report: Report, name: str) -> None:
    """The inner functions, in double; the outer ones make the logits float32 first."""
    objective, theirs = OBJECTIVES[name]
    heads, mask = draw_heads(22, torch.float64, tokens=36), ragged()
    _, ours = run(objective, heads, mask)
    labels = heads.labels.masked_fill(~mask.flatten(), -100)
    logits = heads.hidden @ heads.weight.T, (heads.teacher_hidden @ heads.teacher_weight.T).detach()
    expected = heads.with_gradients(theirs(factory(), *logits, labels))
    report.same("llamafactory", f"objective {name}", DOUBLE, **named(ours, expected))


def test_llama_factorys_asft_is_a_mean_of_means_over_micro_batches(report: Report) -> None:
    """trainer_utils.py:727 does not hand the step's token count on, and 765 divides by the micro-batch's,
    which may be zero: NaN. Micro-batches of 8 and 1 tokens count the same. Ours divides by the step's
    tokens, once."""
    asft = OBJECTIVES["asft"][0]
    theirs = factory()["_asft_cross_entropy"]
    heads = draw_heads(23, torch.float64, tokens=36)
    logits = heads.hidden @ heads.weight.T, (heads.teacher_hidden @ heads.teacher_weight.T).detach()
    labels = heads.labels.clone()
    labels[9:] = -100
    exact = theirs(*(x[:9] for x in (logits[0], labels, logits[1])), 0.05)
    parts = [theirs(*(x[s] for x in (logits[0], labels, logits[1])), 0.05) for s in (slice(8), slice(8, 9))]
    mask = torch.zeros(4, 9, dtype=torch.bool)
    ours = []
    for columns in (slice(8), slice(8, 9)):
        part = mask.clone()
        part[0, columns] = True
        ours.append(run(asft, heads, part)[0])
    total = sum(part.total for part in ours) / sum(part.denominator for part in ours)
    report.differs(
        "llamafactory",
        "ASFT, micro-batches of 8 and 1 tokens",
        theirs=(parts[0] + parts[1]) / 2,
        ours=total,
        exact=exact,
        least=0.05,
        within=DOUBLE,
    )
    empty = theirs(logits[0][9:], labels[9:], logits[1][9:], 0.05)
    report("llamafactory", "ASFT of a micro-batch without tokens", f"{empty.item()}")
    assert empty.isnan()


def test_dft_is_ms_swifts(report: Report) -> None:
    """Which makes the logits float32 first, and leaves the mean to its caller."""
    # Its own imports ask for modelscope.
    theirs = excerpt("swift", "trainers/utils.py", "per_token_loss_func")["per_token_loss_func"]
    heads, mask = draw_heads(24, torch.float32, tokens=36), ragged()
    mask[:, 0] = False  # nobody predicts a row's first token
    labels = heads.labels.view(4, 9).masked_fill(~mask, -100)
    logits = (heads.hidden @ heads.weight.T).view(4, 9, -1)
    losses = theirs(SimpleNamespace(logits=logits), labels, enable_dft_loss=True)
    expected = heads.with_gradients(losses.sum() / mask.sum())
    # A label is predicted one position before it.
    shifted, heads.labels = mask.roll(-1, -1), heads.labels.view(4, 9).roll(-1, -1)
    _, ours = run(OBJECTIVES["dft"][0], heads, shifted)
    report.same("swift", "objective dft", SINGLE, **named(ours, expected))


def test_iw_opd_is_trls(report: Report) -> None:
    trainer = peer("trl.experimental.iw_opd.iw_opd_trainer:IWOPDTrainer")
    heads, mask = draw_heads(25, torch.float64, tokens=36), ragged()
    teacher = label_logprobs(Head(heads.teacher_hidden, heads.teacher_weight), heads.labels).view(mask.shape)
    objective = Objective(StudentRollouts(fraction=1.0), policy_gradient, partial(iw_opd, gamma=0.7))
    _, ours = run(objective, heads, mask, {"teacher_logprobs": teacher}, by_student=True)
    itself = SimpleNamespace(
        temperature=1.0,
        iw_opd_gamma=0.7,
        iw_opd_epsilon=1e-8,
        model=SimpleNamespace(training=False),
        _metrics={"eval": dict.fromkeys(METRICS, SimpleNamespace(append=lambda _: None))},
    )
    labels = heads.labels.view(mask.shape)
    theirs = trainer._compute_iw_opd_loss(
        itself,
        student_logits=(heads.hidden @ heads.weight.T).view(*mask.shape, -1),
        completion_tokens=labels,
        labels=labels.masked_fill(~mask, -100),
        teacher_actual_logprobs=teacher,
    )
    pairs = named(ours, heads.with_gradients(theirs))
    report.same("trl", "objective iw_opd = IWOPDTrainer", DOUBLE, **pairs)


@pytest.mark.parametrize(
    ("kind", "scale", "eps_high"), [("grpo", "group", 0.2), ("dr_grpo", "none", 0.2), ("dapo", "group", 0.28)]
)
@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_grpo_is_trls(report: Report, kind: str, scale: str, eps_high: float, beta: float) -> None:
    """In a later step on the same completions, one of which has no end and is masked. TRL's deviation and its
    loss's three divisors are ours."""
    trainer = peer("trl.trainer.grpo_trainer:GRPOTrainer")
    heads, mask = draw_heads(27, torch.float64, tokens=36), ragged()
    labels, samples, longest = heads.labels.view(mask.shape), 2, 11
    generator = torch.Generator().manual_seed(28)
    old, reference = -torch.rand(2, *mask.shape, generator=generator, dtype=torch.float64)
    rewards = torch.tensor([1.0, 0.0, 0.1, 1.1], dtype=torch.float64)
    groups = rewards.view(-1, samples)
    deviation = peer("trl.trainer.utils:nanstd")(groups, dim=1).repeat_interleave(samples)
    mean = groups.mean(1).repeat_interleave(samples)
    ended = torch.tensor([1.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    spread = {
        name: values.unsqueeze(1).expand(mask.shape)
        for name, values in (("reward", rewards), ("group_reward", mean), ("group_deviation", deviation))
    }
    objective = Objective(
        StudentRollouts(fraction=1.0, samples=samples, max_new_tokens=longest),
        partial(clipped_surrogate, eps_high=eps_high),
        partial(group_advantage, scale=scale),
        rewards=Rewards(),
        extra={"kl": Term(k3, coefficient=beta)},
        normalize={"grpo": "completions", "dr_grpo": "longest", "dapo": "tokens"}[kind],
    )
    # Near the student's log-probs, so that some tokens are clipped and others are not.
    old = label_logprobs(Head(heads.hidden, heads.weight), heads.labels).view(mask.shape) + 0.6 * (old + 0.5)
    given = {**spread, "old_logprobs": old, "reference_logprobs": reference}
    _, ours = run(objective, heads, mask, given, by_student=True, trace_weights=ended)
    every = (heads.hidden @ heads.weight.T).view(*mask.shape, -1).log_softmax(-1)
    written = every.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    nothing = defaultdict(lambda: defaultdict(list))
    itself = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (written, -(every.exp() * every).sum(-1), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        loss_type=kind,
        epsilon_low=0.2,
        epsilon_high=eps_high,
        beta=beta,
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        use_vllm=False,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        accelerator=SimpleNamespace(num_processes=1, reduce=lambda x, **_: x, gather=lambda x: x),
        max_completion_length=longest,
        _entropy_bonus_enabled=False,
        _metrics=nothing,
    )
    counted = mask * ended.unsqueeze(1)
    theirs = trainer._compute_loss(
        itself,
        None,
        {
            "prompt_ids": labels[:, :1],
            "prompt_mask": mask[:, :1],
            "completion_ids": labels,
            "completion_mask": counted,
            "advantages": (rewards - mean) / (deviation + 1e-4 if scale == "group" else 1.0),
            "old_per_token_logps": old,
            "ref_per_token_logps": reference,
            "num_items_in_batch": counted.sum(),
        },
    )
    clipped = nothing["train"]["clip_ratio/region_mean"][0]
    assert 0 < clipped < 1
    pairs = named(ours, heads.with_gradients(theirs))
    report.same("trl", f"objective {kind} = GRPOTrainer, β = {beta}", DOUBLE, **pairs)


METRICS = [f"iw_opd/{name}" for name in ("mean_advantage", "mean_abs_advantage")] + [
    f"iw_opd/{name}_weight" for name in ("mean", "min", "max")
]


# Whole models.


class Batch(SimpleNamespace):
    """Two conversations of a tiny model: token ids, which of them are attended to, and which are
    completions."""

    @property
    def inputs(self) -> dict[str, Tensor]:
        return {
            "input_ids": self.ids,
            "attention_mask": self.attended.long(),
            "labels": self.ids.masked_fill(~self.completion, -100),
        }


def draw_batch() -> Batch:
    ids = torch.randint(3, 12, (2, 14), generator=torch.Generator().manual_seed(26))
    attended = torch.ones_like(ids, dtype=torch.bool)
    attended[1, 10:] = False
    completion = attended.clone()
    completion[0, :5] = completion[1, :3] = False
    return Batch(ids=ids, attended=attended, completion=completion)


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def of_models(objective: Objective, student: Any, teacher: Any, batch: Batch) -> dict[str, Tensor]:
    """Our loss and its gradient at every parameter."""
    student.zero_grad()
    mask = batch.completion[:, 1:]
    states = [
        model.model(batch.ids, attention_mask=batch.attended.long()).last_hidden_state[:, :-1][mask]
        for model in (student, teacher)
    ]
    found = objective(
        Head(states[0], student.lm_head.weight),
        mask,
        batch.ids[:, 1:],
        {},
        others={name: Head(states[1], teacher.lm_head.weight) for name in objective.distributions},
    )
    return parameters(student, found.total / found.denominator)


def parameters(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return {"value": loss.detach(), "parameters": found}


# TRL's configuration sets what transformers has renamed.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["nll", "dft"])
def test_sft_and_dft_are_trls_sft_trainers_in_every_parameter(
    report: Report, tiny_pair: tuple[Path, Path], tmp_path: Path, name: str
) -> None:
    student, batch = load(tiny_pair[0]), draw_batch()
    config = peer("trl.trainer.sft_config:SFTConfig")(
        output_dir=str(tmp_path), loss_type=name, use_cpu=True, report_to="none", bf16=False
    )
    trainer = peer("trl.trainer.sft_trainer:SFTTrainer")(
        model=load(tiny_pair[0]),
        args=config,
        train_dataset=datasets.Dataset.from_list([{"input_ids": batch.ids[0].tolist()}]),
        processing_class=AutoTokenizer.from_pretrained(tiny_pair[0]),
    )
    count = batch.completion[:, 1:].sum()
    loss = trainer.compute_loss(trainer.model, dict(batch.inputs), num_items_in_batch=count)
    theirs = parameters(trainer.model, loss)
    objective = Objective("dataset", cross_entropy, dft if name == "dft" else uniform)
    ours = of_models(objective, student, student, batch)
    report.same(
        "trl",
        f"{name}, a tiny Qwen2 = SFTTrainer",
        SINGLE,
        **{key: (ours[key], theirs[key]) for key in ours},
    )


@pytest.mark.parametrize("beta", BETAS)
def test_on_policy_kd_is_trls_gkd_trainers_in_every_parameter(
    report: Report, tiny_pair: tuple[Path, Path], beta: float
) -> None:
    trainer = peer("trl.experimental.gkd.gkd_trainer:GKDTrainer")
    (student, teacher), batch = (load(folder) for folder in tiny_pair), draw_batch()
    itself = SimpleNamespace(
        teacher_model=teacher, beta=beta, generalized_jsd_loss=trainer.generalized_jsd_loss
    )
    theirs = parameters(student, trainer.compute_loss(itself, student, batch.inputs))
    ours = of_models(Objective("dataset", partial(jsd, beta=beta), uniform), student, teacher, batch)
    report.same(
        "trl",
        f"jsd({beta}), a tiny Qwen2 pair = GKDTrainer",
        5 * SINGLE,
        **{key: (ours[key], theirs[key]) for key in ours},
    )
