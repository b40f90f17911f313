"""Validate an objective before any model is loaded."""

from typing import get_args

import torch

from distill.generation.sampling import StudentRollouts
from distill.losses.signals import GIVEN, SIGNALS, name_of, properties_of, signals, why_not_from
from distill.objective.spec import Normalize, ObjectiveSpec, TeacherIs
from distill.objective.terms import Control, Term, is_positive
from distill.teacher.distribution import TeacherDistribution


def check_values(objective: ObjectiveSpec) -> None:
    """Check each field's value by itself.

    Raises:
        ValueError: names the field and the value.
    """
    if not (objective.rollouts in ("dataset", "teacher") or isinstance(objective.rollouts, StudentRollouts)):
        raise ValueError(
            f"loss.rollouts={objective.rollouts!r} is none of dataset, teacher, a StudentRollouts"
        )
    if objective.trace_weights is not None and isinstance(objective.rollouts, StudentRollouts):
        raise ValueError(
            "loss.trace_weights weighs a problem's traces against each other, and the student's rollouts are "
            "none of the data: set loss.rollouts=dataset, or loss.trace_weights=null"
        )
    if objective.normalize not in get_args(Normalize):
        raise ValueError(
            f"loss.normalize={objective.normalize!r} is not one of {', '.join(get_args(Normalize))}"
        )
    if objective.normalize == "longest" and not isinstance(objective.rollouts, StudentRollouts):
        raise ValueError(
            "loss.normalize=longest divides by the length that the student may write, and it writes nothing: "
            "take loss.normalize=tokens"
        )
    if objective.control not in get_args(Control):
        raise ValueError(f"loss.control={objective.control!r} is not one of {', '.join(get_args(Control))}")
    if objective.teacher not in get_args(TeacherIs):
        raise ValueError(f"loss.teacher={objective.teacher!r} is not one of {', '.join(get_args(TeacherIs))}")
    rate, every = objective.teacher_update_rate, objective.teacher_sync_steps
    if not is_positive(rate) or rate > 1:
        raise ValueError(f"loss.teacher_update_rate={rate!r} is not a number above 0, up to 1")
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"loss.teacher_sync_steps={every!r} is not a positive whole number")
    if objective.teacher_sees not in ("prompt", "solution"):
        raise ValueError(f"loss.teacher_sees={objective.teacher_sees!r} is not one of prompt, solution")
    if not isinstance(objective.distribution, TeacherDistribution):
        raise ValueError(
            f"loss.distribution={objective.distribution!r} is no TeacherDistribution: name its source in "
            f"loss.distribution.source"
        )
    wanted = objective.overlap_top_k
    if wanted is not None and (isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1):
        raise ValueError(f"loss.overlap_top_k={wanted!r} is not a positive whole number, nor null")
    if objective.scale != "mean" and not is_positive(objective.scale):
        raise ValueError(f"loss.scale={objective.scale!r} is neither a positive number nor mean")
    if not is_positive(objective.temperature):
        raise ValueError(f"loss.temperature={objective.temperature!r} is not a positive number")
    if objective.chunk_size is not None and not (
        isinstance(objective.chunk_size, int) and objective.chunk_size >= 1
    ):
        raise ValueError(f"loss.chunk_size={objective.chunk_size!r} is not a positive whole number, nor null")
    if not isinstance(objective.compile, bool):
        raise ValueError(f"loss.compile={objective.compile!r} is neither true nor false")


def check_terms(objective: ObjectiveSpec) -> None:
    """Check that the fields fit together.

    Raises:
        ValueError: names the conflicting fields, the reason and an alternative.
    """
    for name, term in objective.terms.items():
        if term.rows == "student" and not objective.on_policy:
            raise ValueError(
                f"the term {name} is taken on what the student writes, but loss.rollouts lets it write "
                f"nothing"
            )
        _check_term(objective, name, term)
    if objective.compares_rewards:
        _check_rewards(objective)
    rollouts = objective.rollouts
    if isinstance(rollouts, StudentRollouts) and rollouts.replays and objective.rewarded:
        raise ValueError(
            "loss.rewards grades whole completions, and with loss.rollouts.replay_decay the student writes "
            "the end of one: set loss.rollouts.replay_decay=null, or loss.rewards=null"
        )
    if objective.teacher == "ema":
        _check_average(objective)
    if objective.overlap_top_k:
        _check_overlap(objective, objective.overlap_top_k)


def _check_term(objective: ObjectiveSpec, name: str, term: Term) -> None:
    function = name_of(term.token_loss)
    fraction = objective.rollouts.fraction if isinstance(objective.rollouts, StudentRollouts) else 0.0
    if properties_of(term.token_loss).on_policy_only and term.rows != "student" and fraction < 1:
        raise ValueError(
            f"{function} is right on the student's own completions alone, and loss.rollouts leaves "
            f"{1 - fraction:.0%} to the data: set loss.rollouts.fraction=1, or rows=student for the "
            f"term {name}"
        )
    asked = signals(term.token_loss) & SIGNALS.keys()
    if objective.compares_steps and objective.proposals is None:
        raise ValueError(
            f"{name_of(term.token_weight)} compares proposed next steps: say how in loss.proposals, as "
            f"loss=validity does"
        )
    if objective.compares_steps and objective.teacher_sees == "solution":
        raise ValueError(
            "a teacher that is shown the solution proposes no steps of its own: set loss.teacher_sees=prompt"
        )
    if objective.compares_spans and objective.on_policy:
        raise ValueError(
            f"{name_of(term.token_weight)} needs the teacher's log-probs of whole completions, which are "
            f"cached for the data's: take loss.rollouts=dataset"
        )
    _check_source(objective, function, term)
    per_token = {key for key in asked if SIGNALS[key].shape in ("token", "rollout")}
    if per_token and objective.temperature != 1.0:
        raise ValueError(
            f"{function} compares with {', '.join(sorted(per_token))}, which are at temperature 1: "
            f"loss.temperature={objective.temperature} must be 1 too"
        )


def _check_average(objective: ObjectiveSpec) -> None:
    """Refuse to cache what a teacher says that changes as the student trains."""
    asked = {
        **({} if objective.writes_all else objective.cached_signals),
        **dict.fromkeys(objective.problem_signals),
    }
    cached = [name for name in asked if SIGNALS[name].role == "teacher"]
    if objective.caches_distribution:
        cached.append(f"distribution.source={objective.distribution.source}")
    if cached:
        raise ValueError(
            f"loss.teacher=ema changes as the student trains, and {', '.join(cached)} would be cached "
            f"before: take loss.teacher=initial, or a loss that compares with a live teacher on the "
            f"student's own completions, such as sdft"
        )


def _check_overlap(objective: ObjectiveSpec, k: int) -> None:
    wanted = objective.distribution
    if wanted.source == "samples":
        raise ValueError(
            f"loss.overlap_top_k={k} compares with the teacher's likeliest tokens, which samples need not "
            f"be: take loss.distribution.source=top_k, or loss.overlap_top_k=null"
        )
    if wanted.source == "top_k" and wanted.top_k < k:
        raise ValueError(
            f"loss.overlap_top_k={k}: {wanted.top_k} of the teacher's likeliest tokens are cached: take "
            f"loss.distribution.top_k={k}, or a smaller loss.overlap_top_k"
        )


def _check_rewards(objective: ObjectiveSpec) -> None:
    weight = name_of(objective.token_weight)
    if not objective.on_policy:
        raise ValueError(
            f"{weight} compares rewards of what the student writes, and loss.rollouts lets it write nothing: "
            f"take the rollouts of loss=grpo"
        )
    if objective.samples < 2:
        raise ValueError(
            f"loss.rollouts.samples={objective.samples}: {weight} compares the rewards of a problem's "
            f"completions, and a group of one has nothing to compare with: take 2 or more, such as 8"
        )
    if objective.rewards is None:
        raise ValueError(f"{weight} compares rewards: say how in loss.rewards, as loss=grpo does")
    signed = properties_of(objective.token_weight).signed and objective.control == "none"
    if signed and (objective.normalize == "weights" or objective.scale == "mean"):
        key = "loss.scale=mean" if objective.scale == "mean" else "loss.normalize=weights"
        raise ValueError(
            f"{key} divides by the sum of the weights, and advantages sum to about 0: take "
            f"loss.normalize=tokens and a number for loss.scale"
        )
    if objective.divides_by_deviation and len(objective.terms) > 1:
        raise ValueError(
            f"loss.token_weight.scale=batch divides the whole step's loss by the deviation of its rewards, "
            f"and {', '.join(name for name in objective.terms if name != 'main')} is not of rewards: take "
            f"scale=group or none"
        )


def _check_source(objective: ObjectiveSpec, function: str, term: Term) -> None:
    source = f"loss.distribution.source={objective.distribution.source}"
    if not objective.distribution.cached or "log_p" not in signals(term.token_loss):
        return
    if why := why_not_from(objective.distribution.source, term.token_loss):
        raise ValueError(
            f"{function} cannot have {source}: {why}; take loss.distribution.source=hidden_states"
        )
    if isinstance(objective.rollouts, StudentRollouts) and objective.on_policy:
        raise ValueError(
            f"{source} is cached for the data's completions, and loss.rollouts lets the student write "
            f"{objective.rollouts.fraction:.0%} of the batches, which no cache has seen: take "
            f"loss.distribution.source=live, or loss.rollouts=dataset"
        )
    if not objective.distribution.whole and objective.temperature != 1.0:
        raise ValueError(
            f"{source} keeps probabilities at temperature 1, from which those of the other tokens do not "
            f"follow at loss.temperature={objective.temperature}: set it to 1, or take "
            f"loss.distribution.source=hidden_states"
        )


def try_out(objective: ObjectiveSpec) -> None:
    """Call every token loss and weight once on two tokens, to find bad parameters early."""
    logprobs = torch.log_softmax(torch.tensor([[0.0, 1.0, -1.0], [0.5, 0.0, 0.0]]), -1)
    one = torch.full((1, 2), -1.0)
    for term in objective.terms.values():
        for function, refused in (
            (term.token_loss, {"mask", "progress", "spans"}),
            (term.token_weight, {"labels", "same_token", "shared_ids", "weight", "old_logprobs"}),
        ):
            if unknown := signals(function) - SIGNALS.keys() - GIVEN | signals(function) & refused:
                raise ValueError(
                    f"{name_of(function)} asks for unknown signals: {', '.join(sorted(unknown))} "
                    f"(there are: {', '.join(SIGNALS)})"
                )
        known = {
            key: logprobs if SIGNALS[key].shape == "vocab" else one[0]
            for key in signals(term.token_loss) & SIGNALS.keys()
        } | {
            "labels": torch.tensor([0, 2]),
            "same_token": torch.ones(2),
            "shared_ids": torch.tensor([[0, 1, 2]] * 2),
            "weight": torch.ones(2),
        }
        term.token_loss(**{key: known[key] for key in signals(term.token_loss)})
        given = {key: one for key, signal in SIGNALS.items() if signal.shape != "vocab"}
        term.weights(torch.ones(1, 2, dtype=torch.bool), given, 0.5)
