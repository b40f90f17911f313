"""Report of tips: what was written, whether held-out problems chose it, and the test beside its controls."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from distill.advice.conditions import LENGTH, NONE, TIPS
from distill.advice.contrast import Contrasted
from distill.advice.prompts import SHOWN
from distill.advice.tip_list import Tip
from distill.evaluation.comparison_words import percent, points, share, table_row, tested
from distill.evaluation.result import Score
from distill.io.files import as_json, write_atomically, write_json
from distill.statistics import Difference, holm, paired, smallest_difference

_CAVEAT = (
    "Nothing is published that shows tips to help a model below 32 billion parameters. The decisive control "
    "is *uninformed*: as many tips by the same writer, which saw the problems but no trace."
)
PROMPT = Path("conf") / "teacher_prompt" / "tips.yaml"  # below the folder of the results


@dataclass(frozen=True)
class Compared:
    """The same problems asked under several conditions.

    Attributes:
        scores: by condition.
        prompt_tokens: mean length of the prompts by condition.
        options: of the bootstrap and the tests.
    """

    scores: Mapping[str, Score]
    prompt_tokens: Mapping[str, float]
    options: Mapping[str, int]

    def change(self, name: str, before: str = NONE) -> Difference:
        """Accuracy of a condition less that of another, paired by problem."""
        return paired(self.scores[before].verdicts, self.scores[name].verdicts, **self.options)

    def added(self, name: str) -> float:
        """Tokens that a condition adds to a prompt."""
        return self.prompt_tokens[name] - self.prompt_tokens[NONE]

    def against(self) -> dict[str, tuple[Difference, float]]:
        """Accuracy with tips less that of each other condition, and p adjusted for their number (Holm)."""
        found = {name: self.change(TIPS, name) for name in self.scores if name != TIPS}
        return dict(
            zip(found, zip(found.values(), holm([one.p for one in found.values()]), strict=True), strict=True)
        )

    def json(self) -> dict[str, Any]:
        return {
            "problems": self.scores[NONE].problems,
            "conditions": {
                name: {
                    "accuracy": score.accuracy.json(),
                    "prompt_tokens": self.prompt_tokens[name],
                    "tokens": score.figures["tokens"].json(),
                    "over_no_tips": None if name == NONE else as_json(self.change(name)),
                }
                for name, score in self.scores.items()
            },
            "tips_less": {
                name: {**as_json(one), "adjusted_p": p} for name, (one, p) in self.against().items()
            },
        }


@dataclass
class TipsReport:
    """What was written and measured.

    Attributes:
        names: of the writer, the solver and the benchmark.
        counts: numbers of problems by what became of them.
        skills: numbers of contrasted problems by skill.
        written: the tips, and the controls that were written.
        texts: what stands before the problems, by condition.
        system: whether it is the system message.
        held_out: the choice; None: there were no tips.
        chosen: whether the tips raised the accuracy there.
        test: the benchmark's problems; None: they were not asked.
    """

    names: Mapping[str, str]
    counts: Mapping[str, int]
    skills: Mapping[str, int]
    written: Mapping[str, Contrasted]
    texts: Mapping[str, str | None]
    system: bool
    held_out: Compared | None = None
    chosen: bool = False
    test: Compared | None = None

    def json(self) -> dict[str, Any]:
        return {
            **self.names,
            "problems": dict(self.counts),
            "skills": dict(self.skills),
            "chosen": self.chosen,
            "tips": as_json(self.written[TIPS].tips),
            "written": {
                name: {**as_json(one), "text": self.texts.get(name)} for name, one in self.written.items()
            },
            "length_control": self.texts.get(LENGTH),
            "held_out": None if self.held_out is None else self.held_out.json(),
            "test": None if self.test is None else self.test.json(),
        }


def write_report(folder: Path, report: TipsReport) -> str:
    """Write `tips.json`, `tips.md` and, if the tips were chosen, a prompt with them; an earlier prompt goes.

    Returns:
        The text of `tips.md`, and how the tips are used.
    """
    text = "\n".join(_markdown(report))
    write_json(folder / "tips.json", report.json())
    path = folder / "tips.md"
    write_atomically(path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))
    prompt = folder / PROMPT
    if not report.chosen:
        prompt.unlink(missing_ok=True)
        return f"{text}\n\n{path}"
    write_atomically(prompt, lambda temporary: temporary.write_text(_prompt(report), encoding="utf-8"))
    use = f"python -m distill.generate --config-dir {prompt.parents[1]} teacher_prompt=tips ..."
    return f"{text}\n\n{path}\nA teacher that reads the tips: {use}"


def _prompt(report: TipsReport) -> str:
    """A file of the group `teacher_prompt` with the tips as the system message.

    The tips cannot be interpolations: `Refusals` leaves out what would begin one.
    """
    value = {"system": report.texts[TIPS], "user": None}
    return "# @package data.teacher_prompt\n" + yaml.safe_dump(value, allow_unicode=True, width=1 << 20)


def _markdown(report: TipsReport) -> Iterator[str]:
    tips = report.written[TIPS]
    yield f"{report.names['writer']} wrote tips for {report.names['solver']} on {report.names['benchmark']}."
    yield ""
    yield "Problems: " + ", ".join(f"{name} {count}" for name, count in report.counts.items() if count) + "."
    if len(report.skills) > 1:
        yield "Skills: " + ", ".join(f"{name} {count}" for name, count in report.skills.items()) + "."
    for name, one in report.written.items():
        yield _calls(name, one)
    yield ""
    yield from _tips(tips.tips)
    if report.held_out is None:
        yield "No tips help here: the writer gave none that can be used."
        return
    change = report.held_out.change(TIPS)
    scores = report.held_out.scores
    yield (
        f"On {scores[NONE].problems} held-out problems: without {percent(scores[NONE].accuracy.value)}, with "
        f"tips {percent(scores[TIPS].accuracy.value)}; {points(change)} points, {tested(change, change.p)}. "
        + ("The tips are kept." if report.chosen else "No tips help here.")
    )
    if missing := [name for name in SHOWN if name in report.written and not report.written[name].tips]:
        yield f"There is no control {' or '.join(missing)}: the writer gave no tips that can be used."
    if unreadable := scores[NONE].unreadable:
        count = len(unreadable)
        yield f"The grader cannot read the right answer of {count} held-out problems: they count as wrong."
    if report.test is not None:
        yield ""
        yield from _test(report.test, report.written)
    yield ""
    yield _CAVEAT


def _calls(name: str, one: Contrasted) -> str:
    done = ", ".join(f"{count} {kind}" for kind, count in sorted(one.done.items())) or "no operation"
    refused = ", ".join(f"{reason}: {count}" for reason, count in sorted(one.refused.items()))
    unread = f", {one.unread} without a reply that can be read" if one.unread else ""
    calls = f"{one.calls} call{'s' if one.calls != 1 else ''}"
    return f"- {name}: {calls}{unread}; {done}" + (f"; refused: {refused}" if refused else "")


def _tips(tips: Sequence[Tip]) -> Iterator[str]:
    if not tips:
        return
    yield table_row(["tip", "skill", "votes", "problems"])
    yield "|---|---|---|---|"
    for tip in sorted(tips, key=lambda one: -one.votes):
        yield table_row([tip.text.replace("|", "\\|"), tip.skill, str(tip.votes), str(len(tip.evidence))])
    yield ""


def _test(test: Compared, written: Mapping[str, Contrasted]) -> Iterator[str]:
    yield f"On {test.scores[NONE].problems} problems of the benchmark:"
    yield ""
    head = ["asked with", "tips", "tokens added", "tokens written", "accuracy", "over no tips"]
    head += ["per 1,000 tokens"]
    yield table_row([*head, "tips over this"])
    yield "|" + "---|" * (len(head) + 1)
    against = test.against()
    for name, score in test.scores.items():
        cells = [
            name,
            str(len(written[name].tips)) if name in written else "-",
            f"{test.added(name):.0f}",
            f"{score.figures['tokens'].value:.0f}",
            share(score.accuracy),
        ]
        if name == NONE:
            cells += ["", ""]
        else:
            change, added = test.change(name), test.added(name)
            cells += [points(change), f"{1e5 * change.value / added:+.1f}" if added > 0 else "-"]
        if name in against:
            difference, p = against[name]
            cells.append(f"{points(difference)}, {tested(difference, p)}")
        else:
            cells.append("")
        yield table_row(cells)
    yield ""
    least = smallest_difference(test.scores[NONE].verdicts, test.scores[TIPS].verdicts)
    found = "no difference" if least is None else f"a true difference of {100 * least:.1f} points"
    yield (
        "In brackets 95 % bootstrap intervals over problems; differences are in points and paired by "
        f"problem, p adjusted for the number of controls (Holm). So many problems find {found} with "
        f"probability 0.8."
    )
