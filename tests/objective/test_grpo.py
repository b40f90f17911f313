"""Tests of GRPO's objectives against plain loops in double precision, and of rewards and their groups."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from distill.config.instantiate import build
from distill.data.trace import Example, Verdict
from distill.errors import UserError
from distill.generation.sampling import StudentRollouts
from distill.losses import weights
from distill.losses.divergence import clipped_surrogate, cross_entropy, k3, policy_gradient
from distill.losses.weights import batch_deviation, group_advantage, teacher_right, uniform
from distill.models.head import Head
from distill.objective.objective import Objective
from distill.objective.rewards import Rewarded, Rewards, check_golds
from distill.objective.terms import LossSums, Term

CONF = Path(__file__).resolve().parents[2] / "conf"
SAMPLES, LENGTHS, VOCAB, WIDTH = 3, (4, 2, 5, 1, 3, 3), 7, 5
REWARDS = ((1.0, 0.0, 1.0), (0.0, 0.1, 0.0))
TRUNCATED = 4  # the row of a completion without an end
LONGEST = 6
advantage: Any = group_advantage  # called with any arguments


def rewarded(values: Any = REWARDS, samples: int = SAMPLES) -> Rewarded:
    flat = np.array(values, dtype=float).reshape(-1)
    right, lengths = flat >= 1, np.ones_like(flat)
    return Rewarded(flat, right, np.zeros_like(right), lengths, samples)


def work() -> dict[str, Tensor]:
    """A micro-batch of two groups, in double precision."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.zeros(len(LENGTHS), 1 + max(LENGTHS), dtype=torch.bool)
    for row, length in enumerate(LENGTHS):
        mask[row, 1 : 1 + length] = True

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "mask": mask,
        "labels": torch.randint(VOCAB, mask.shape, generator=generator),
        "hidden": normal(*mask.shape, WIDTH).requires_grad_(),
        "weight": (0.7 * normal(VOCAB, WIDTH)).requires_grad_(),
        "old": 0.5 * normal(*mask.shape),  # of the log-ratio
        "reference": -normal(*mask.shape).abs(),
        "teacher": -normal(*mask.shape).abs(),
    }


def logprobs(of: dict[str, Tensor]) -> Tensor:
    every = (of["hidden"] @ of["weight"].T).log_softmax(-1)
    return every.gather(-1, of["labels"].unsqueeze(-1)).squeeze(-1)


def apply(objective: Objective, of: dict[str, Tensor], *, again: bool, masked: bool) -> LossSums:
    """The objective's own computation; `again`: in a later step on the same completions."""
    mask = of["mask"]
    signals = {
        name: torch.from_numpy(values).unsqueeze(1).expand(mask.shape)
        for name, values in rewarded().signals.items()
    }
    if again:
        signals["old_logprobs"] = logprobs(of).detach() - of["old"]
    left = torch.ones(len(mask), dtype=torch.float64)
    left[TRUNCATED] = 0.0 if masked else 1.0
    return objective(
        Head(of["hidden"][mask], of["weight"]),
        mask,
        of["labels"],
        signals | {"reference_logprobs": of["reference"], "teacher_logprobs": of["teacher"]},
        trace_weights=left,
        by_student=True,
    )


def by_loops(
    of: dict[str, Tensor],
    *,
    scale: str,
    normalize: str,
    beta: float = 0.0,
    teacher: float = 0.0,
    eps: tuple[float, float] = (0.2, 0.2),
    again: bool = True,
    masked: bool = True,
) -> Tensor:
    """The step's loss as the papers write it, one token after another."""
    log_q, total, tokens = logprobs(of), torch.zeros((), dtype=torch.float64), 0
    every = [value for group in REWARDS for value in group]
    for row, length in enumerate(LENGTHS):
        group = REWARDS[row // SAMPLES]
        mean = sum(group) / SAMPLES
        advantage = group[row % SAMPLES] - mean
        compared = group if scale == "group" else every
        center = sum(compared) / len(compared)
        deviation = math.sqrt(sum((value - center) ** 2 for value in compared) / (len(compared) - 1))
        if scale != "none":
            advantage /= deviation + 1e-4
        if masked and row == TRUNCATED:
            continue
        tokens += length
        for column in range(1, 1 + length):
            here = log_q[row, column]
            old = here.detach() - (of["old"][row, column] if again else 0.0)
            ratio = (here - old).exp()
            bounded = ratio.clamp(1 - eps[0], 1 + eps[1])
            loss = -torch.minimum(ratio * advantage, bounded * advantage)
            d = of["reference"][row, column] - here
            loss = loss + beta * (d.exp() - d - 1)
            loss = loss - teacher * (of["teacher"][row, column] - here.detach()) * here
            total = total + loss / (length if normalize == "completions" else 1)
    divisors = {"tokens": tokens, "completions": len(LENGTHS), "longest": len(LENGTHS) * LONGEST}
    return total / divisors[normalize]


def objective_of(preset: str, *overrides: str) -> Objective:
    sizes = [f"loss.rollouts.max_new_tokens={LONGEST}", f"loss.rollouts.samples={SAMPLES}"]
    sizes += ["loss.rollouts.step_separator=';'"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(f"loss/{preset}", [*sizes, *overrides])  # alone, as composing all takes a second
    return build(cfg.loss, "loss")


CASES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "grpo": (["grpo"], {"scale": "group", "normalize": "tokens"}),
    "grpo of the paper": (
        ["grpo", "loss.normalize=completions", "loss.extra.kl.coefficient=0.04"],
        {"scale": "group", "normalize": "completions", "beta": 0.04},
    ),
    "dr_grpo": (["dr_grpo"], {"scale": "none", "normalize": "longest"}),
    "dapo": (["dapo"], {"scale": "group", "normalize": "tokens", "eps": (0.2, 0.28)}),
    "opd_grpo": (
        ["opd_grpo", "loss.extra.teacher.coefficient=0.5"],
        {"scale": "group", "normalize": "tokens", "teacher": 0.5},
    ),
    "by the batch": (
        ["grpo", "loss.token_weight.scale=batch"],
        {"scale": "batch", "normalize": "tokens"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_presets_loss_and_gradient_are_those_of_the_papers(name: str) -> None:
    words, parameters = CASES[name]
    objective = objective_of(*words)
    for again, masked in ((True, True), (False, False)):
        of = work()
        found = apply(objective, of, again=again, masked=masked)
        divisor = found.denominator
        if objective.divides_by_deviation:
            sums = rewarded().sums
            divisor = divisor * batch_deviation(sums["completions"], sums["reward"], sums["reward_squared"])
        # The value of the teacher's policy gradient is that of its estimate: log Q times its constant.
        expected = by_loops(of, **parameters, again=again, masked=masked)
        torch.testing.assert_close(
            (found.total / divisor).detach(), expected.detach(), rtol=1e-10, atol=1e-12
        )
        both = [
            torch.autograd.grad(loss, (of["hidden"], of["weight"]), retain_graph=True)
            for loss in (found.total / divisor, expected)
        ]
        for ours, plain in zip(*both, strict=True):
            torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-12)


def test_clipped_tokens_and_entropy_are_summed() -> None:
    of, objective = work(), objective_of("grpo", "loss.token_loss.eps_high=0.3")
    found = apply(objective, of, again=True, masked=True)
    ratios, advantages = of["old"].exp(), found.weights
    outside = ((ratios > 1.3) & (advantages > 0)) | ((ratios < 0.8) & (advantages < 0))
    assert 0 < found.policy["clipped"].item() == (outside & of["mask"]).sum().item() < sum(LENGTHS)
    every = (of["hidden"] @ of["weight"].T).log_softmax(-1)[of["mask"]]
    assert found.policy["entropy"].item() == pytest.approx(-(every.exp() * every).sum().item(), rel=1e-12)
    assert not apply(objective, work(), again=False, masked=True).policy["clipped"]


def test_a_group_of_equal_rewards_has_no_advantage() -> None:
    """Whatever the mean of equal numbers is computed to be."""
    found = rewarded([[0.1] * 6, [1.1, 0.1, 0.1, 0.1, 0.1, 0.1]], samples=6)
    assert found.equal.tolist() == [True, False]
    signals = {name: torch.from_numpy(values).unsqueeze(1) for name, values in found.signals.items()}
    advantages = advantage(torch.ones(12, 1, dtype=torch.bool), **signals)
    assert (advantages[:6] == 0).all()
    assert advantages[6] > 2
    assert found.sums["groups"] == 2
    assert found.sums["equal_groups"] == 1


def test_the_deviation_of_a_step_is_that_of_all_its_rewards_wherever_they_were_summed() -> None:
    values = np.array([1.0, 0.0, 0.1, 1.1, 0.0, 0.1])
    parts = [rewarded(values[:2], 2).sums, rewarded(values[2:], 2).sums]
    count, total, squares = (
        sum(part[name] for part in parts) for name in ("completions", "reward", "reward_squared")
    )
    assert batch_deviation(count, total, squares) == pytest.approx(values.std(ddof=1) + 1e-4, rel=1e-12)
    equal = rewarded([0.1] * 6, 6).sums
    assert batch_deviation(6, equal["reward"], equal["reward_squared"]) == pytest.approx(1e-4, rel=1e-3)


def test_only_problems_that_the_teacher_solves_count() -> None:
    success = torch.tensor([[0.5, 0.5, 0.5], [0.25, 0.25, 0.25], [1.0, 1.0, 1.0]])
    mask = torch.tensor([[True, True, False]] * 3)
    assert teacher_right(mask, success).tolist() == [[1, 1, 0], [0, 0, 0], [1, 1, 0]]
    assert teacher_right(mask, success, least=0.75).sum() == 2


def grade(example: Example, completion: str) -> Verdict:
    answer = completion.rpartition("#")[2] or None
    return Verdict(answer, answer == example.gold)


def test_rewards_are_one_for_a_right_answer_and_a_part_for_any() -> None:
    examples = [Example("a", "1+1", gold="2")] * 3
    found = Rewards(format=0.25).of(
        grade,
        examples,
        ["so #2", "so #3", "no answer#"],
        lengths=[3, 3, 2],
        truncated=[False, False, True],
        samples=3,
    )
    assert found.values.tolist() == [1.25, 0.25, 0.0]
    assert found.sums == {
        "completions": 3,
        "reward": 1.5,
        "reward_squared": 1.25**2 + 0.25**2,
        "right": 1,
        "groups": 1,
        "equal_groups": 0,
        "written_tokens": 8,
    }
    # The thought is not graded, and one that is not closed is no answer.
    unclosed = Rewards().of(grade, examples[:1], ["<think>#2"], lengths=[2], truncated=[False], samples=1)
    assert unclosed.values.tolist() == [0.0]


def test_problems_without_a_gold_answer_or_a_grader_are_refused() -> None:
    problems = [Example("a", "", gold="1"), Example("b", "", where="x.jsonl:2"), Example("c", "")]
    with pytest.raises(UserError, match=r"problem b \(x.jsonl:2\) has no gold answer.*\(2 in all\)"):
        check_golds(problems)
    with pytest.raises(UserError, match=r"this data set has no grader: name one"):
        Rewards().check(None)


ROLLOUTS = StudentRollouts(fraction=1.0, samples=4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StudentRollouts(fraction=0.5, samples=4), "rollouts.samples=4: several completions"),
        (lambda: StudentRollouts(fraction=0.5, num_iterations=2), "rollouts.num_iterations=2: iterations"),
        (lambda: StudentRollouts(fraction=1.0, samples=0), "rollouts.samples=0 is not a positive"),
        (lambda: StudentRollouts(fraction=1.0, samples=2, temperature=0), "completions .* are all alike"),
        (lambda: Rewards(format=-1), "rewards.format=-1 is not a number, at least 0"),
        (
            lambda: Objective(StudentRollouts(1.0), clipped_surrogate, group_advantage, rewards=Rewards()),
            r"loss.rollouts.samples=1: group_advantage .* a group of one has nothing to compare with",
        ),
        (
            lambda: Objective(ROLLOUTS, clipped_surrogate, group_advantage),
            "group_advantage compares rewards: say how in loss.rewards",
        ),
        (
            lambda: Objective("dataset", cross_entropy, group_advantage, rewards=Rewards()),
            "loss.rollouts lets it write nothing",
        ),
        (
            lambda: Objective(
                ROLLOUTS, clipped_surrogate, group_advantage, rewards=Rewards(), normalize="weights"
            ),
            "loss.normalize=weights divides by the sum of the weights, and advantages sum to about 0",
        ),
        (
            lambda: Objective(
                ROLLOUTS,
                clipped_surrogate,
                partial(group_advantage, scale="batch"),
                rewards=Rewards(),
                extra={"teacher": Term(policy_gradient)},
            ),
            "scale=batch divides the whole step's loss .* and teacher is not of rewards",
        ),
        (lambda: Objective("dataset", cross_entropy, uniform, normalize="longest"), "it writes nothing"),
        (
            lambda: Objective(ROLLOUTS, clipped_surrogate, group_advantage, rewards=Rewards(), temperature=2),
            "clipped_surrogate compares with old_logprobs, which are at temperature 1",
        ),
        (
            lambda: Objective(
                ROLLOUTS, clipped_surrogate, partial(advantage, scale="some"), rewards=Rewards()
            ),
            "group_advantage: scale='some' is not one of group, none, batch",
        ),
        (
            lambda: Objective(ROLLOUTS, policy_gradient, partial(teacher_right, least=0.0)),
            r"teacher_right: least=0.0 is outside \(0, 1\]",
        ),
        (
            lambda: Objective(ROLLOUTS, partial(clipped_surrogate, eps_low=2.0), uniform),
            r"clipped_surrogate: eps_low=2.0 is outside \[0, 1\]",
        ),
        (
            lambda: Objective(ROLLOUTS, partial(clipped_surrogate, eps_high=-1.0), uniform),
            "clipped_surrogate: eps_high=-1.0 must not be negative",
        ),
    ],
)
def test_what_cannot_be_rewarded_is_refused(make: Any, message: str) -> None:
    with pytest.raises((ValueError, UserError), match=message):
        make()


def test_a_term_without_a_coefficient_asks_for_no_model() -> None:
    parts: dict[str, Any] = {"rewards": Rewards(), "extra": {"kl": Term(k3, coefficient=0.0)}}
    objective = Objective(ROLLOUTS, clipped_surrogate, weights.group_advantage, **parts)
    assert objective.terms.keys() == {"main"}
    assert not objective.live_roles
    parts["extra"] = {"kl": Term(k3, coefficient=0.1)}
    assert Objective(ROLLOUTS, clipped_surrogate, weights.group_advantage, **parts).live_roles == {
        "reference"
    }
