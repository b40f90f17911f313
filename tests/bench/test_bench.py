"""Tests that the bench compares equal computations and reports them correctly; speeds are not tested."""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch.distributions import Categorical, kl_divergence
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

from distill.bench import __main__ as command
from distill.bench import heads, ours, peers, report, running
from distill.bench.comparison import Comparison, Contestant, Goal, Rounds, Spread, outcome, slope
from distill.bench.comparisons import COMPARISONS
from distill.bench.inputs import (
    batch_rows,
    model_folder,
    ragged_rows,
    read_lengths,
    sampled_rows,
    trace_lengths,
)
from distill.bench.measurement import Measurement, Setting
from distill.bench.meter import Meter, WholeRun
from distill.config.instantiate import build
from distill.errors import UserError
from distill.losses.signals import Source
from distill.objective.objective import Objective
from distill.teacher.distribution import TeacherDistribution


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """Of tiny models, made once."""
    inputs = tmp_path_factory.mktemp("bench")
    return Setting(shape="tiny", rows=2, prompt=5, completion=7, head_tokens=40, inputs=str(inputs))


def measured(seconds: float = 1.0, peak: int = 100, loss: float = 2.0, **figures: float) -> Measurement:
    return Measurement([seconds], [10], peak, [loss], {"torch": "1"}, figures)


def nothing(setting: Setting, meter: Meter) -> None:
    """A contestant that is never run here."""


def two(goals: tuple[Goal, ...] = (), **changes: Any) -> Comparison:
    contestants = (Contestant("a", "ours", nothing), Contestant("b", "theirs", nothing))
    return Comparison("two", "two things", contestants, goals, **changes)


# What is made of measurements.


def test_a_ratio_is_taken_within_each_round() -> None:
    """Rounds of 1 s and 10 s, as on a machine that slows down: the ratio is 2 in both, that of medians is not
    looked at."""
    rounds: Rounds = {
        "a": [[measured(1.0)], [measured(10.0)], [measured(3.0)]],
        "b": [[measured(2.0)], [measured(20.0)], [measured(9.0)]],
    }
    faster = Goal("tokens_per_second", "a", "b", at_least=1.5)
    assert outcome(faster, two(), rounds) == Spread(2.0, 2.0, 3.0)
    longer = Goal("seconds_per_step", "a", "b", how="difference")
    assert outcome(longer, two(), rounds) == Spread(-6.0, -10.0, -1.0)
    assert outcome(faster, two(), {"a": rounds["a"], "b": []}) is None


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_the_slope_is_the_power_of_a_power_law(power: float) -> None:
    points = (10, 100, 3000)
    assert slope(points, [7.0 * x**power for x in points]) == pytest.approx(power, abs=1e-12)
    comparison = two(axis="traces", points=points)
    rows = [[measured(7.0 * x**power) for x in points]] * 2
    found = outcome(Goal("seconds_per_step", "a", how="slope"), comparison, {"a": rows, "b": []})
    assert found is not None
    assert found.median == pytest.approx(power, abs=1e-12)


def test_a_cache_pays_when_it_has_saved_what_it_cost() -> None:
    """Made in 6 s, 2 s saved an epoch: after three. It never does where it saves nothing."""
    rounds: Rounds = {
        "live": [[measured(5.0)]],
        "top_k": [[measured(3.0)]],
        "samples": [[measured(5.5)]],
        "make_top_k": [[measured(6.0)]],
        "make_samples": [[measured(6.0)]],
    }
    lines = report.cache_pays(running.Result(COMPARISONS["cache"], [Setting()], rounds))
    assert lines == [
        "top k: the cache pays after 3 [3, 3] epochs × runs",
        "samples: the cache pays after inf [inf, inf] epochs × runs",
    ]


@pytest.mark.slow
def test_the_report_says_what_is_reached_what_differs_and_what_is_left_out(tmp_path: Path) -> None:
    goals = (
        Goal("tokens_per_second", "a", "b", at_least=1.5),
        Goal("peak_bytes", "a", "b", at_most=1 / 3),
        Goal("tokens_per_second", "a", "b", at_least=9.0, shape="1.5b"),  # not of this shape
    )
    comparison = two(goals)
    third = Contestant("c", "another's", nothing)
    comparison = replace(comparison, contestants=(*comparison.contestants, third))
    rounds: Rounds = {"a": [[measured(1.0)]], "b": [[measured(2.0, 200, loss=2.001)]], "c": []}
    result = running.Result(comparison, [Setting()], rounds, {"c": "x not installed"})
    text = report.write(result, tmp_path, "two")
    assert "- reached: tokens/s, ours ÷ theirs ≥ 1.5: 2 [2, 2]" in text
    assert "- NOT reached: peak, ours ÷ theirs ≤ 0.333333: 0.5 [0.5, 0.5]" in text
    assert "≥ 9" not in text
    assert "- left out: another's: x not installed" in text
    row = next(line for line in text.splitlines() if line.startswith("| theirs"))
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells == ["theirs", "5", "2", "0", "2 [2, 2]", "0.5 [0.5, 0.5]", "2.001000", "+1.0e-03"]
    kept = json.loads((tmp_path / "two.json").read_text())
    assert [goal["reached"] for goal in kept["goals"]] == [True, False]
    assert kept["rounds"]["b"][0][0]["peak_bytes"] == 200
    assert (tmp_path / "two.md").read_text() == text + "\n"
    assert (tmp_path / "two.png").stat().st_size > 1000


def test_a_first_contestant_that_is_missing_is_replaced_by_nobody(tmp_path: Path) -> None:
    result = running.Result(two(), [Setting()], {"a": [], "b": [[measured()]]}, {"a": "it failed"})
    text = report.markdown(result)
    assert "÷" not in text
    assert "| theirs | 10 | 1 | 0 |" in text


# How it is measured.


@pytest.mark.slow
def test_a_step_lasts_from_the_end_of_the_one_before_and_warming_up_does_not_count() -> None:
    meter = Meter(Setting(warmup=1, steps=2))
    meter.begin()
    for number, pause in enumerate((0.2, 0.02, 0.06)):
        time.sleep(pause)
        meter.step(torch.tensor(number / 2, requires_grad=True), 10 * number)
    found = meter.measurement()
    assert found.seconds == [pytest.approx(0.02, abs=0.015), pytest.approx(0.06, abs=0.03)]
    assert found.tokens == [10, 20]
    assert found.losses == [0.0, 0.5, 1.0]
    assert found.value("seconds_per_token") == pytest.approx(sum(found.seconds) / 30)


def test_processor_seconds_are_those_of_timed_steps() -> None:
    meter = Meter(Setting(warmup=1, steps=2))
    meter.begin()
    for seconds in (0.05, 0.01, 0.03):
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass
        time.sleep(0.01)
        meter.step(None, 1)
    found = meter.measurement()
    assert found.value("processor_seconds_per_step") == pytest.approx(0.02, abs=0.004)
    assert found.value("processor_seconds_before") > 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_memory_is_what_steps_need_beyond_what_was_loaded() -> None:
    """64 MiB that were freed before, and 32 that stay, are not counted; 48 that a step needs are."""
    mebi = 2**20
    loading, kept = np.ones(64 * mebi, dtype=np.uint8), np.ones(32 * mebi, dtype=np.uint8)
    del loading
    meter = Meter(Setting(warmup=1, steps=1))
    meter.begin()
    for size in (48, 16):
        work = np.ones(size * mebi, dtype=np.uint8)
        meter.step(float(work[-1]), 1)
        del work
    after = np.ones(96 * mebi, dtype=np.uint8)
    assert len(kept) < len(after)
    assert meter.measurement().peak_bytes / mebi == pytest.approx(48, abs=4)


def fake_processes(monkeypatch: pytest.MonkeyPatch, fails: str = "") -> list[str]:
    """Children that answer at once; who was started, in turn."""
    started: list[str] = []

    def run(words: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        started.append(words[4])
        if words[4] == fails:
            return subprocess.CompletedProcess(words, 1, "", "Traceback\nerror: it has no such loss\n")
        return subprocess.CompletedProcess(words, 0, f"a log\n{json.dumps(asdict(measured()))}\n", "")

    monkeypatch.setattr(running.subprocess, "run", run)
    monkeypatch.setattr(running, "prepare", lambda setting: None)
    return started


def test_contestants_are_measured_in_turn_and_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = fake_processes(monkeypatch)
    result = running.run(two(), Setting(), 2, tmp_path, say=lambda text: None)
    assert started == ["a", "b", "a", "b"]
    assert [len(result.rounds[name]) for name in "ab"] == [2, 2]
    running.run(two(), Setting(), 3, tmp_path, say=lambda text: None)
    assert started[4:] == ["a", "b"]  # the third round; the first two are kept
    running.run(two(), Setting(rows=7), 1, tmp_path, say=lambda text: None)
    assert started[6:] == ["a", "b"]  # another setting


def test_kept_measurements_are_of_the_same_files_and_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = fake_processes(monkeypatch)
    lengths, model = tmp_path / "traces.jsonl", tmp_path / "model"
    lengths.write_text("one")
    (model / "config.json").parent.mkdir()
    (model / "config.json").write_text('{"model_type": "llama"}')
    setting = Setting(lengths=str(lengths), model=str(model))

    def count() -> int:
        running.run(two(), setting, 1, tmp_path, say=lambda text: None)
        return len(started)

    assert (count(), count()) == (2, 2)
    lengths.write_text("two")
    assert (count(), count()) == (4, 4)
    (model / "config.json").write_text('{"model_type": "llama", "hidden_size": 8}')
    assert (count(), count()) == (6, 6)
    monkeypatch.setattr(running, "version_of", lambda name: "99")
    assert (count(), count()) == (8, 8)


def test_who_cannot_be_measured_is_named_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_processes(monkeypatch, fails="b")
    comparison = two()
    absent = Contestant("c", "a peer", nothing, needs=("no_such_package",))
    comparison = replace(comparison, contestants=(*comparison.contestants, absent))
    said: list[str] = []
    result = running.run(comparison, Setting(), 2, tmp_path, say=said.append)
    assert len(result.rounds["a"]) == 2
    assert result.rounds["b"] == result.rounds["c"] == []
    assert result.absent["b"] == "it has no such loss"
    assert result.absent["c"] == (
        "no_such_package not installed: make peers, or pip install --no-deps no_such_package"
    )
    assert sum("left out" in line for line in said) == 2


@pytest.mark.slow
def test_a_busy_machine_is_refused_unless_forced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = fake_processes(monkeypatch)
    monkeypatch.setattr(command, "busy_processors", lambda: 1.75)
    words = ["loop", "--rounds", "1", "--out", str(tmp_path)]
    with pytest.raises(UserError, match=r"1\.8 processors busy.*--force"):
        command.main(words)
    assert not started
    command.main([*words, "--force"])
    assert started == ["ours", "plain"]
    assert (tmp_path / "loop.md").is_file()


@pytest.mark.slow
def test_some_contestants_alone_are_measured_and_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = fake_processes(monkeypatch)
    words = ["weights", "--only", "token", "--only", "sft", "--gradient-checkpointing", "--rounds", "2"]
    command.main([*words, "--force", "--out", str(tmp_path)])
    assert started == ["sft", "token"] * 2
    content = json.loads((tmp_path / "weights_checkpointed.json").read_text())
    assert [goal["goal"] for goal in content["goals"]] == [
        "seconds a step, DCOD, weights of tokens ÷ SFT ≤ 1.03"
    ]
    assert content["settings"][0]["gradient_checkpointing"]
    assert "activations checkpointed" in (tmp_path / "weights_checkpointed.md").read_text()


@pytest.mark.slow
def test_who_keeps_activations_is_measured_where_the_others_compute_them_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = fake_processes(monkeypatch)
    words = ["jsd", "--rounds", "1", "--force", "--out", str(tmp_path)]
    command.main(words)
    assert "ours" in started
    assert "ours_kept" not in started
    started.clear()
    command.main([*words, "--gradient-checkpointing", "--only", "ours", "--only", "ours_kept"])
    assert started == ["ours", "ours_kept"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["sfft"], "there is no comparison 'sfft'; did you mean sft"),
        (["mfu"], "mfu is measured on a GPU alone: --device cuda"),
        (["sft", "--rounds", "0"], "--rounds 0 must be at least 1"),
        (
            ["loop", "sft", "--only", "plain"],
            "--only plain: sft sets ours, products, trl, transformers side by side",
        ),
        (["batching", "--traces", "nowhere.jsonl"], "--traces nowhere.jsonl does not exist"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_sentence(words: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        command.main(words)


@pytest.mark.slow
def test_a_measurement_is_a_process_that_prints_one_line_of_json(setting: Setting) -> None:
    words = ["head_forward_kl", "ours", json.dumps(asdict(setting))]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(
        [sys.executable, "-m", "distill.bench.child", *words],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    found = Measurement(**json.loads(done.stdout.strip().splitlines()[-1]))
    assert found.tokens == [setting.head_tokens] * setting.steps
    assert found.figures["loss_error"] < 1e-6


# What is measured.


def test_goals_ask_for_contestants_that_there_are() -> None:
    for comparison in COMPARISONS.values():
        names = [one.name for one in comparison.contestants]
        assert len(set(names)) == len(names)
        for goal in comparison.goals:
            assert {goal.of, goal.over or goal.of} <= set(names)
            assert math.isfinite(goal.at_least) or math.isfinite(goal.at_most)
            assert (goal.how == "slope") <= (comparison.axis is not None)
        comparison.settings(Setting())  # its changes are the setting's fields


def steps_of_ours() -> list[tuple[str, ...]]:
    """Every loss with its overrides that a comparison runs as one of ours."""
    return sorted(
        {
            (one.options["loss"], *one.options["overrides"])
            for comparison in COMPARISONS.values()
            for one in comparison.contestants
            if "overrides" in one.options
        }
    )


@pytest.mark.slow
def test_the_losses_of_our_runs_are_built() -> None:
    with initialize_config_dir(str(ours.CONFIG), version_base="1.3"):
        for loss, *overrides in steps_of_ours():
            cfg = compose("train", ["model=none", "data=traces", f"loss={loss}", *overrides])
            assert isinstance(build(cfg.loss, "loss"), Objective)


@pytest.mark.slow
def test_our_runs_train_on_the_very_tokens_that_peers_are_given(setting: Setting, tmp_path: Path) -> None:
    rows = batch_rows(setting)
    run = ours.set_up(setting, ["loss=sft"], rows, 2, tmp_path)
    lm = run.student.load()
    assert lm.vocab_size == lm.model.config.vocab_size == 512
    traces = run.recipe.build(lm, None, tmp_path)
    assert [(t.prompt_ids.tolist(), t.completion_ids.tolist()) for t in traces] == rows
    batch = peers.side_by_side(list(peers.dataset(rows)))
    assert batch["input_ids"].tolist() == [p + c for p, c in rows]
    assert batch["labels"].tolist() == [[-100] * len(p) + c for p, c in rows]


@pytest.mark.slow
@pytest.mark.parametrize("checkpointed", [False, True])
def test_our_step_and_the_plain_loop_take_the_same_steps_as_transformers(
    setting: Setting, checkpointed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own model, loss and optimizer, twice on the batch."""
    setting = replace(setting, gradient_checkpointing=checkpointed)
    model: Any = AutoModelForCausalLM.from_pretrained(model_folder(setting, "student"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=ours.LEARNING_RATE, weight_decay=0.0)
    batch = peers.side_by_side(list(peers.dataset(batch_rows(setting))))
    expected = []
    for _ in range(2):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), ours.CLIP)
        optimizer.step()
        expected.append(float(loss.detach()))
    assert expected[0] != expected[1]
    computed = []
    forward = LlamaMLP.forward

    def counted(self: Any, x: torch.Tensor) -> torch.Tensor:
        computed.append(torch.is_grad_enabled())
        return forward(self, x)

    monkeypatch.setattr(LlamaMLP, "forward", counted)
    for run in (lambda meter: ours.train(setting, meter, "sft"), lambda meter: ours.loop(setting, meter)):
        meter = Meter(setting)
        run(meter)
        assert meter.losses == pytest.approx(expected, rel=1e-6)
        assert meter.tokens == [2 * 7] * 2
        assert sum(computed) == 2 * model.config.num_hidden_layers * (2 if checkpointed else 1)
        computed.clear()
    kept = COMPARISONS["forward_kl"].contestant("ours_kept")
    assert kept.keeps_activations
    replace(kept, run=ours.train, options={"loss": "sft"})(setting, Meter(setting))
    assert sum(computed) == 2 * model.config.num_hidden_layers


TRAINERS: dict[str, Callable[[Setting, Meter], None]] = {
    "transformers": peers.transformers_trainer,
    "sft": peers.sft_trainer,
    "own": lambda s, m: peers.gkd_trainer(s, m, 0.0),
    "liger": lambda s, m: peers.gkd_trainer(s, m, 0.0, "liger"),
    "trl_chunked": lambda s, m: peers.gkd_trainer(s, m, 0.0, "trl_chunked"),
    "torchtune": lambda s, m: peers.gkd_trainer(s, m, 1.0, "torchtune_reverse_kl"),
}
NEEDS = {"transformers": [], "liger": ["trl", "liger_kernel"], "torchtune": ["trl", "torchtune"]}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "checkpointed"), [*((name, False) for name in TRAINERS), ("sft", True), ("own", True)]
)
def test_peers_trainers_take_the_steps_that_ours_do(setting: Setting, name: str, checkpointed: bool) -> None:
    setting = replace(setting, gradient_checkpointing=checkpointed)
    needs = ("accelerate", *NEEDS.get(name, ["trl"]))
    if reason := running.missing(Contestant(name, name, nothing, needs=needs)):
        pytest.skip(reason)
    loss = {"transformers": "sft", "sft": "sft", "torchtune": "reverse_kl"}.get(name, "forward_kl")
    mine, theirs = Meter(setting), Meter(setting)
    ours.train(setting, mine, loss)
    TRAINERS[name](setting, theirs)
    assert [float(loss) for loss in theirs.losses] == pytest.approx(mine.losses, rel=1e-4)
    assert theirs.tokens == mine.tokens


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sft", "forward_kl", "reverse_kl", "jsd"])
def test_every_way_to_compute_a_head_is_near_the_definition(setting: Setting, kind: heads.Kind) -> None:
    tensors = heads.draw(setting)
    hidden, weight, theirs, their_weight, labels = (x.detach() for x in tensors)
    q, p = (
        Categorical(logits=x.double() @ w.double().T) for x, w in ((hidden, weight), (theirs, their_weight))
    )
    mean = Categorical(probs=(p.probs + q.probs) / 2)
    exact = {
        "sft": -q.log_prob(labels),
        "forward_kl": kl_divergence(p, q),
        "reverse_kl": kl_divergence(q, p),
        "jsd": (kl_divergence(p, mean) + kl_divergence(q, mean)) / 2,
    }[kind].mean()
    assert float(heads.definition(kind, tensors, chunk=16)[0]) == pytest.approx(float(exact), rel=1e-9)
    for freed in (False, True):
        found = heads.from_logits(kind, tensors, freed=freed).detach()
        assert float(found) == pytest.approx(float(exact), rel=1e-5)
    meter = Meter(setting)
    heads.head(setting, meter, kind, "ours")
    assert float(meter.losses[-1]) == pytest.approx(float(exact), rel=1e-5)
    assert all(meter.figures[name] < 1e-5 for name in ("loss_error", "gradient_error", "loss_error_bf16"))


@pytest.mark.slow
@pytest.mark.parametrize("source", ["hidden_states", "top_k", "samples"])
def test_the_bytes_of_a_cache_are_those_that_lie_on_the_disk(setting: Setting, source: Source) -> None:
    meter = Meter(replace(setting, warmup=0))
    ours.make_cache(meter.setting, meter, source)
    # The teacher is 64 wide, 512 tokens, in single precision: 4 bytes a number where the formula has 2.
    expected = TeacherDistribution(source).bytes_a_token(2 * 64, 512)
    headers = 400 / meter.tokens[0]  # of the file, over the tokens in it
    assert 0.9 * expected <= meter.figures["disk_bytes_per_token"] <= expected + headers + 8


@pytest.mark.slow
def test_the_pipeline_goes_once_over_all_traces(setting: Setting) -> None:
    meter = Meter(replace(setting, warmup=0, traces=16))
    ours.pipeline(meter.setting, meter)
    assert meter.tokens == [16 * 32]


def test_traces_of_a_prompt_have_its_tokens_and_completions_of_their_own(setting: Setting) -> None:
    rows = sampled_rows(replace(setting, traces=8), 4)
    assert len(rows) == 8
    assert rows[0][0] == rows[3][0] != rows[4][0] == rows[7][0]
    assert len({tuple(completion) for _, completion in rows}) == 8
    assert sampled_rows(setting, 1) == ragged_rows(setting)


@pytest.mark.slow
def test_an_epoch_trains_on_every_completion_token(setting: Setting) -> None:
    epoch = replace(setting, warmup=0, traces=8)
    meter = Meter(epoch)
    ours.epoch(epoch, meter, "padded", batch_size=4)
    assert meter.tokens == [sum(completion for _, completion in trace_lengths(epoch))]


@pytest.mark.parametrize("name", ["batching", "shared_prompt"])
@pytest.mark.parametrize("words", [["--device", "cuda"], ["--steps", "3"], []])
def test_an_epoch_is_one_step_however_many_steps_are_asked_for(name: str, words: list[str]) -> None:
    asked = command._setting(command._parser().parse_args(words), "135m")
    (own,) = COMPARISONS[name].settings(asked)
    meter = Meter(replace(own, device="cpu"))
    run = WholeRun(meter)
    run.begin([], [])
    run.step(2.0, 5)
    run.step(4.0, 15)
    run.end()
    measured = meter.measurement()
    assert (measured.tokens, measured.losses) == ([20], [3.5])


def test_lengths_of_a_file_of_traces_are_reckoned_from_its_characters(tmp_path: Path) -> None:
    file = tmp_path / "traces.jsonl"
    records = [
        {"question": "x" * 39, "traces": {"one": "y" * 23, "two": "y" * 46}},
        {"problem": "x" * 78, "solution": "y" * 23},
    ]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert read_lengths(file) == [pytest.approx(pair) for pair in ((10, 11), (10, 21), (20, 11))]
    drawn = trace_lengths(Setting(traces=50, lengths=str(file)))
    assert set(drawn) == {(10, 11), (10, 21), (20, 11)}
    file.write_text('{"text": "no problem here"}\n')
    with pytest.raises(UserError, match="holds no problem with a solution"):
        read_lengths(file)
