"""Tests of registered claims: their answers against the definitions of the tests, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.stats import ttest_1samp, ttest_rel
from test_report import job, one_table

from distill.analysis.drift_curves import Drift
from distill.errors import UserError
from distill.report.claims import (
    Claim,
    answer_claims,
    claim_blocks,
    other_settings,
    read_registration,
    registration_of,
)
from distill.report.methods import Table
from distill.report.page import markdown
from distill.statistics import Figure, holm

SEEDS, PROBLEMS = 4, 30
SHARES = {"sft": 0.3, "dcod": 0.9, "dft": 0.32}


def registered(**claims: dict[str, Any]) -> dict[str, Any]:
    return {"settings": {"data": {"limit": 256}}, "claims": claims}


def claim(**changes: Any) -> dict[str, Any]:
    return {
        "says": "DCOD is more accurate than SFT.",
        "measure": "accuracy",
        "method": "dcod",
        "against": "sft",
        "predicted": "greater",
    } | changes


def sweep_of(
    folder: Path, registration: Any = None, shares: dict[str, float] = SHARES
) -> dict[str, np.ndarray]:
    """Runs of three methods; what each got right, [seeds, problems]."""
    rng = np.random.default_rng(1)
    right = {loss: (rng.random((SEEDS, PROBLEMS)) < share).astype(int) for loss, share in shares.items()}
    lengths = rng.integers(5, 50, PROBLEMS).tolist()
    for loss, own in right.items():
        for seed in range(SEEDS):
            place = job(folder, loss, seed, own[seed].tolist(), lengths=lengths)
            if registration is not None:
                path = place / "config.yaml"
                config = yaml.safe_load(path.read_text()) | {"registered": registration}
                path.write_text(yaml.safe_dump(config))
    return right | {"lengths": np.asarray(lengths)}


@pytest.mark.slow
def test_each_answer_has_the_larger_p_of_both_tests_adjusted_over_all_claims(tmp_path: Path) -> None:
    claims = {
        "better": claim(),
        "alike": claim(method="dft"),
        "worse": claim(method="sft", against="dcod"),
        "longer": claim(measure="widening"),
        "again": claim(family="secondary"),
    }
    right = sweep_of(tmp_path, registered(**claims))
    table = one_table(tmp_path)
    registration = registration_of(table)
    assert registration is not None
    answers = {one.claim.name: one for one in answer_claims(table, registration.claims)}
    for name, mine, other in (("better", "dcod", "sft"), ("alike", "dft", "sft"), ("worse", "sft", "dcod")):
        found = answers[name].difference
        assert found is not None
        expected = ttest_rel(right[mine].mean(1), right[other].mean(1))
        low, high = expected.confidence_interval(0.95)
        assert [found.value, found.low, found.high] == pytest.approx(
            [right[mine].mean() - right[other].mean(), low, high]
        )
        difference = (right[mine] - right[other]).mean(0)
        flips = np.random.default_rng(5).choice([-1, 1], (20_000, PROBLEMS)) @ difference
        by_problems = (np.abs(flips) >= abs(difference.sum()) - 1e-9).mean()
        assert found.p == pytest.approx(max(float(expected.pvalue), by_problems), abs=0.02)
    longer = right["lengths"] > np.median(right["lengths"])
    widening = answers["longer"].difference
    assert widening is not None
    gains = right["dcod"] - right["sft"]
    expected = ttest_1samp(gains[:, longer].mean(1) - gains[:, ~longer].mean(1), 0)
    assert widening.p == pytest.approx(float(expected.pvalue))
    again = answers.pop("again")
    assert again.difference == answers["better"].difference
    assert again.difference is not None
    assert again.adjusted == again.difference.p  # alone in its family
    differences = [one.difference.p for one in answers.values() if one.difference]
    assert [one.adjusted for one in answers.values()] == holm(differences)
    words = {name: one.word for name, one in answers.items()}
    assert words == {
        "better": "supported",
        "alike": "not established",
        "worse": "refuted",
        "longer": "not established",
    }


@pytest.mark.slow
def test_not_less_is_tested_against_its_margin(tmp_path: Path) -> None:
    right = sweep_of(tmp_path, shares={"sft": 0.5, "dcod": 0.5})
    table = one_table(tmp_path)
    difference = right["dcod"].mean(1) - right["sft"].mean(1)
    for margin, word in ((0.9, "supported"), (0.0, "not established")):
        one = answer_claims(table, [Claim("kept", **claim(predicted="not_less", margin=margin))])[0]
        assert one.difference is not None
        assert one.difference.value == pytest.approx(difference.mean())
        assert one.difference.p >= float(ttest_1samp(difference, -margin).pvalue) - 1e-12
        assert one.word == word


def test_a_claim_about_the_untrained_student_is_that_of_the_other_turned_round(tmp_path: Path) -> None:
    right = sweep_of(tmp_path, shares={"sft": 0.5, "dcod": 0.9})
    table, before = one_table(tmp_path), 0.518  # which `job` writes
    turned = {"method": "untrained", "against": "dcod", "predicted": "not_less", "margin": 0.9}
    one, same = answer_claims(
        table,
        [Claim("a", **claim(**turned)), Claim("b", **claim(method="dcod", against="untrained"), family="x")],
    )
    assert one.difference is not None
    assert same.difference is not None
    assert one.difference.value == pytest.approx(-same.difference.value)
    assert (one.difference.low, one.difference.high) == pytest.approx(
        (-same.difference.high, -same.difference.low)
    )
    own = before - right["dcod"].mean(1)
    assert one.difference.p >= float(ttest_1samp(own, -0.9).pvalue) - 1e-12
    assert (one.word, same.word) == ("supported", "supported")


@pytest.mark.slow
def test_figures_costs_and_drift_are_compared_by_seed(tmp_path: Path) -> None:
    sweep_of(tmp_path)
    for place in tmp_path.iterdir():
        summary = json.loads((place / "summary.json").read_text())
        value = 0.2 if "dcod" in place.name else 0.5 + 0.01 * summary["seed"]
        summary["seconds"]["training"] = 100 * value
        summary["validation"] = {"last": {"val/loss": 0.0, "val/nll": 2 + value}}
        for stage, share in (("before", 0.1), ("after", value)):
            summary["benchmarks"]["arithmetic"][stage]["figures"]["structured"] = {"value": share}
        (place / "summary.json").write_text(json.dumps(summary))
        for file in place.glob("*checksums*"):
            file.unlink()
    table = one_table(tmp_path)
    other = 0.5 + 0.01 * np.arange(SEEDS)

    def answer(measure: str, **changes: Any) -> Any:
        return answer_claims(table, [Claim("one", **claim(measure=measure, **changes))], drifts)[0]

    def drift(value: float) -> Drift:
        return Drift(1, (1, 1), 1, {}, {}, {"exaccerr@64": Figure(value, value, value)}, ())

    drifts = {"dcod": [drift(2.0)] * SEEDS, "sft": [drift(3.0 + seed) for seed in range(SEEDS)]}
    expected = {
        "figure structured": 0.2 - other,
        "seconds": 100 * (0.2 - other),
        "drift exaccerr@64": -1.0 - np.arange(SEEDS),
        "validation nll": 0.2 - other,
    }
    for measure, differences in expected.items():
        found = answer(measure, predicted="less")
        assert found.difference.value == pytest.approx(differences.mean())
        assert found.difference.p == pytest.approx(float(ttest_1samp(differences, 0).pvalue))
        assert found.word == "supported"
    assert answer("validation accuracy").reason == "data.validation has no accuracy"
    assert "untrained student was not" in answer("validation nll", against="untrained").reason
    shown = markdown("claims", list(claim_blocks([answer("validation nll", predicted="less")], [])))
    assert f"{0.2 - other.mean():+.3g} [" in shown  # in nats, not in points
    untrained = answer("figure structured", against="untrained")
    assert untrained.difference.value == pytest.approx(0.1)
    shown = markdown("claims", list(claim_blocks([untrained], [])))
    assert "| 4 | none: all seeds alike | 1.000 | **not established** |" in shown
    missing = answer("drift kl_student_written")
    assert (missing.word, missing.reason) == ("not measured", "dcod with seed 0 has no kl_student_written")
    assert "no finished run of todi" in answer("accuracy", method="todi").reason
    assert "benchmark math was not asked" in answer("accuracy", benchmark="math").reason


@pytest.mark.slow
def test_runs_of_other_settings_are_named_on_the_page(tmp_path: Path) -> None:
    sweep_of(tmp_path, registered(one=claim()))
    table = one_table(tmp_path)
    registration = registration_of(table)
    assert registration is not None
    limit = table.runs[0].config.get("data.limit")
    (said,) = other_settings(table, registration)
    assert said == f"`data.limit={limit}`, registered for `256` ({3 * SEEDS} of {3 * SEEDS} runs)"
    page = markdown("", claim_blocks(answer_claims(table, registration.claims), [said]))
    assert "not what the claims were registered for" in page
    assert "| DCOD is more accurate than SFT. | +" in page
    assert "**supported**" in page


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"predicted": "more"}, "registered.claims.one.predicted=more: greater, less, not_less are known"),
        ({"measure": "accurracy"}, "registered.claims.one.measure=accurracy is no measure"),
        ({"measure": "quality beauty"}, "of quality there are characters"),
        ({"margin": -1}, "registered.claims.one.margin=-1: give a number, 0 or more"),
        ({"method": None, "by": 3}, "registered.claims.one needs says, measure, method"),
        ({"method": None}, "registered.claims.one.method=None is no text"),
        ({"says": None}, "registered.claims.one.says=None is no text"),
        ({"against": "dcod"}, "registered.claims.one: method and against are both dcod"),
        ({"margin": 0.05}, "registered.claims.one.margin=0.05: only predicted=not_less has a margin"),
        ({"margin": 0.05, "predicted": "less"}, "and this is predicted=less: leave it out"),
    ],
)
def test_a_registration_that_says_nothing_testable_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said.replace(".", "[.]")):
        read_registration(registered(one=claim(**changes)))


def test_tables_without_a_registration_have_no_claims(tmp_path: Path) -> None:
    sweep_of(tmp_path, shares={"sft": 0.5})
    table: Table = one_table(tmp_path)
    assert registration_of(table) is None
    assert list(claim_blocks([], [])) == []
