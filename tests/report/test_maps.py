"""Tests of maps over two settings and the methods."""

import numpy as np
import pandas
import pytest

from distill.errors import UserError
from distill.report.maps import map_figure, maps_of, over, placed

TAU = "loss.token_weight.temperature"


def a_sweep() -> tuple[pandas.DataFrame, dict[str, float]]:
    """Runs of sft and of dcod at two τ, two shares and two lengths, two seeds each, and a figure of each."""
    rng = np.random.default_rng(0)
    rows, values = [], {}
    for double in (0.0, 0.5):
        for said in ([0, 0], [2, 2]):
            for loss, tau in (("dcod", 4.0), ("dcod", 0.5), ("sft", np.nan)):
                for seed in (0, 1):
                    run = f"{loss}{tau}_{double}_{said[0]}_{seed}"
                    rows.append({"run": run, "loss": loss, "data.double": double, "data.restatements": said})
                    rows[-1] |= {TAU: tau, "data.limit": 512, "seed": seed}
                    values[run] = float(rng.random())
    return pandas.DataFrame(rows), values


def at(runs: pandas.DataFrame) -> pandas.DataFrame:
    panels = ["data.restatements", "data.limit", "data.none"]
    return placed(runs, row="data.double", panels=panels, told_by=TAU, called="τ")


def test_a_place_on_a_map_is_the_mean_over_its_seeds() -> None:
    runs, values = a_sweep()
    maps = maps_of(at(runs), values)
    assert list(maps) == ["restatements [0, 0]", "restatements [2, 2]"]  # what does not differ makes no panel
    for panel, said in zip(maps.values(), ([0, 0], [2, 2]), strict=True):
        assert list(panel.columns) == ["sft", "dcod τ=0.5", "dcod τ=4"]  # the baseline first, then by value
        for double in (0.0, 0.5):
            for name, loss, tau in (
                ("sft", "sft", "nan"),
                ("dcod τ=0.5", "dcod", 0.5),
                ("dcod τ=4", "dcod", 4.0),
            ):
                own = [values[f"{loss}{tau}_{double}_{said[0]}_{seed}"] for seed in (0, 1)]
                assert panel.loc[double, name] == pytest.approx(sum(own) / 2)


def test_a_gain_is_over_the_baseline_at_the_same_place() -> None:
    runs, values = a_sweep()
    maps = maps_of(at(runs), values)
    gains = over(maps, "sft")
    for panel, gain in gains.items():
        assert list(gain.columns) == ["dcod τ=0.5", "dcod τ=4"]
        for double in (0.0, 0.5):
            expected = maps[panel].loc[double, "dcod τ=4"] - maps[panel].loc[double, "sft"]
            assert gain.loc[double, "dcod τ=4"] == pytest.approx(expected)
    values = {run: value for run, value in values.items() if not run.startswith("sftnan_0.5_2")}
    assert over(maps_of(at(runs), values), "sft")["restatements [2, 2]"].index.tolist() == [0.0]
    alone = {run: value for run, value in values.items() if run.startswith("sft")}
    assert over(maps_of(at(runs), alone), "sft") == {}
    values = {run: value for run, value in values.items() if not run.startswith("sft")}
    assert over(maps_of(at(runs), values), "sft") == {}


def test_a_loss_with_one_value_keeps_its_name_and_places_without_runs_stay_empty() -> None:
    runs, values = a_sweep()
    one = runs[runs[TAU] != 4.0]
    maps = maps_of(at(one), {run: value for run, value in values.items() if run != "dcod0.5_0.5_0_0"})
    assert list(maps["restatements [0, 0]"].columns) == ["sft", "dcod"]
    assert maps["restatements [0, 0]"].loc[0.5, "dcod"] == values["dcod0.5_0.5_0_1"]
    gone = {run: value for run, value in values.items() if not run.startswith("dcod0.5_0.5_0")}
    assert np.isnan(maps_of(at(one), gone)["restatements [0, 0]"].loc[0.5, "dcod"])


def test_a_setting_of_words_tells_methods_apart_and_one_that_is_empty_does_not() -> None:
    rows = [("a", "sft", "none"), ("b", "dcod", "none"), ("c", "dcod", "shuffled")]
    runs = pandas.DataFrame([{"run": run, "loss": loss, "row": 1, "control": c} for run, loss, c in rows])
    found = placed(runs, row="row", told_by="control", called="control")
    assert list(found["method"]) == ["sft", "dcod control=none", "dcod control=shuffled"]
    found = placed(runs.assign(control=None), row="row", told_by="control", called="control")
    assert list(found["method"]) == ["sft", "dcod", "dcod"]


def test_a_setting_that_no_run_has_is_named() -> None:
    runs, _ = a_sweep()
    with pytest.raises(UserError, match=r"no run has the setting data\.steps: name one"):
        placed(runs, row="data.steps", told_by=TAU, called="τ")


def test_a_map_shows_every_number_in_its_place() -> None:
    runs, values = a_sweep()
    maps = maps_of(at(runs), values)
    figure = map_figure(maps, rows="share of hard traces", label="accuracy, %")
    for axes, (panel, own) in zip(figure.axes, maps.items(), strict=False):
        assert axes.get_title() == panel
        assert [one.get_text() for one in axes.get_xticklabels()] == list(own.columns)
        assert [one.get_text() for one in axes.get_yticklabels()] == ["0", "0.5"]
        for text in axes.texts:
            column, line = (round(place) for place in text.get_position())
            assert text.get_text() == f"{100 * own.iloc[line, column]:.0f}"
        assert len(axes.texts) == own.size
    gains = over(maps, "sft")
    (image,) = map_figure(gains, rows="", label="", around_zero=True).axes[0].get_images()
    low, high = image.get_clim()
    assert -low == high == pytest.approx(100 * max(np.abs(own.to_numpy()).max() for own in gains.values()))
