"""`python -m distill.presets`: a table of the objectives in `conf/loss/`.

`python -m distill.objective.preset_table` stores it, after a file there or what it is made of has changed."""

import re
from pathlib import Path

import hydra.utils
from hydra import compose, initialize_config_dir

from distill.config.paths import CONFIG
from distill.generation.sampling import StudentRollouts
from distill.io.files import write_atomically
from distill.losses import weights
from distill.losses.signals import Role, name_of, unbound, why_not_from
from distill.objective.objective import Objective
from distill.objective.stored_presets import STORED, mark_of
from distill.objective.terms import Term

_PAPER = re.compile(r"\b(\d{4}\.\d{5})\b")


def table(config_dir: Path) -> str:
    """Markdown table with one row per file in `conf/loss/`."""
    lines = [
        "| loss | paper | rollouts | token loss × token weight | asks of other models |",
        "|---|---|---|---|---|",
    ]
    with initialize_config_dir(str(config_dir), version_base="1.3"):
        for path in sorted((config_dir / "loss").glob("*.yaml")):
            cfg = compose("train", [f"loss={path.stem}", "logger=csv"])
            objective: Objective = hydra.utils.instantiate(cfg.loss, _convert_="all")
            cells = [f"`{path.stem}`", papers(path), _rollouts(objective), _terms(objective), asks(objective)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def papers(preset: Path) -> str:
    """Links to the arXiv papers named in a file's leading comment."""
    head = preset.read_text(encoding="utf-8").split("\ndefaults:")[0]
    return ", ".join(f"[{number}](https://arxiv.org/abs/{number})" for number in _PAPER.findall(head))


def asks(objective: Objective) -> str:
    """Describe which signals the objective needs of frozen models, and whether they are cached or live."""
    asked = [
        f"{_whose(role, objective)} distribution, {_how(name, objective)}"
        for name, role in objective.distributions.items()
    ]
    if objective.compares_steps:
        asked.append(f"{_whose('teacher', objective)} next steps, live")
    how = "live" if objective.on_policy else "cached"
    for name, role in objective.cached_signals.items():
        what = "sampling log-probs" if name == "sampler_logprobs" else "log-probs"
        asked.append(f"{_whose(role, objective)} {what}, {how}")
    if objective.problem_signals:
        asked.append("teacher's own answers, cached")
    if objective.rollouts == "teacher":
        asked.append("teacher's traces, cached")
    return "; ".join(asked) or "nothing"


def _how(distribution: str, objective: Objective) -> str:
    """Whether a distribution can be cached (only the teacher's, on offline traces) or must be live."""
    if distribution != "log_p" or objective.on_policy:
        return "live"
    losses = [term.token_loss for term in objective.terms.values()]
    partly = not any(why_not_from("top_k", loss) for loss in losses)
    return "live or cached" if partly else "live or cached hidden states"


def _whose(role: Role, objective: Objective) -> str:
    if role != "teacher":
        return f"{role}'s"
    who = {"initial": "the untrained student's", "ema": "the student's average's"}.get(
        objective.teacher, "teacher's"
    )
    return f"{who} (shown the solution)" if objective.teacher_sees == "solution" else who


def _rollouts(objective: Objective) -> str:
    if not isinstance(objective.rollouts, StudentRollouts):
        return objective.rollouts
    share = objective.rollouts.fraction
    if objective.rollouts.replays:
        return "student, behind beginnings of the dataset's"
    if objective.samples > 1:
        return f"student, {objective.samples} a problem"
    return "student" if share == 1 else f"student {share:.0%}, dataset {1 - share:.0%}"


def _terms(objective: Objective) -> str:
    return " + ".join(_term(term) for term in objective.terms.values())


def _term(term: Term) -> str:
    text = name_of(term.token_loss).lower()  # TAID's is a class
    if term.coefficient != 1:
        text = f"{term.coefficient:g} {text}"
    if unbound(term.token_weight) is not weights.uniform:
        text += f" × {name_of(term.token_weight)}"
    return text + {"all": "", "dataset": " (dataset's)", "student": " (student's)"}[term.rows]


def store(config_dir: Path) -> None:
    """Write the table to the file that `python -m distill.presets` prints without importing torch."""
    text = f"{mark_of(config_dir)}\n{table(config_dir)}\n"
    write_atomically(STORED, lambda path: path.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    store(CONFIG)
