"""Tests of `load`: equal tables from run folders, W&B offline files and W&B's API; omissions are reported."""

import csv
import json
import shutil
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import test_training
import wandb_stub
from omegaconf import OmegaConf
from pandas.testing import assert_frame_equal
from test_training import arguments, run

from distill.config.flat import flat
from distill.errors import UserError
from distill.runs import wandb as wandb_runs
from distill.runs.load import Runs, load_runs
from distill.runs.read import read_config

traces = test_training.traces  # the fixture
TABLES = ("runs", "metrics", "scores", "samples", "weights")


@pytest.fixture(scope="module")
def sweep(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """Three real runs that log to both: dcod, sft, and a dft that broke off and was resumed."""
    import wandb

    folder = tmp_path_factory.mktemp("sweeps") / "compare"
    words = arguments(
        tiny_pair,
        traces,
        folder.parent,
        "logger=[wandb,csv]",
        "logger.wandb.group=compare",
        "benchmark=arithmetic",
        "benchmark.limit=4",
        "benchmark.max_new_tokens=8",
        "histogram_every=2",
        "checkpoint.every=2",
        "checkpoint.keep=9",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        run([*words, "loss=dcod", "seed=1"], folder / "0_dcod")
        wandb.finish()
        run([*words, "loss=sft", "optimizer.lr=0.002"], folder / "2_sft")
        wandb.finish()
        from distill.training.module import DistillModule

        original = DistillModule.training_step

        def killed(self: DistillModule, batch: Any, batch_idx: int) -> Any:
            if self.trainer.global_step == 4:
                raise MemoryError("the machine went away")
            return original(self, batch, batch_idx)

        patch.setattr(DistillModule, "training_step", killed)
        with pytest.raises(MemoryError):
            run([*words, "loss=dft"], folder / "10_dft")
        wandb.finish(exit_code=1)
        patch.setattr(DistillModule, "training_step", original)
        time.sleep(1.1)  # W&B names a part by the second
        checkpoint = folder / "10_dft" / "checkpoints" / "step-000002"
        run([*words, "loss=dft", f"ckpt_path={checkpoint}"], folder / "10_dft")
        wandb.finish()
        wandb.teardown()  # ends the service that writes the files
    assert len(list((folder / "10_dft" / "wandb").glob("offline-run-*"))) == 2
    yield folder
    wandb.teardown()


@pytest.fixture
def server(sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[wandb_stub.Run]]:
    """W&B's server for this test; it holds the runs of the sweep, and what the test adds."""
    import wandb

    held = [wandb_stub.told(folder) for folder in sorted(sweep.iterdir())]
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    wandb.teardown()  # its settings are read once
    with wandb_stub.serving(held) as address:
        monkeypatch.setenv("WANDB_BASE_URL", address)
        yield held
        wandb.teardown()


def assert_same(found: Runs, expected: Runs) -> None:
    """All five tables; floats to the bit. Only the column `place` differs: it says where a run was read."""
    for name in TABLES:
        one, other = getattr(found, name), getattr(expected, name)
        one, other = (table.drop(columns="place", errors="ignore") for table in (one, other))
        assert set(one.columns) == set(other.columns), name
        assert len(one)
        # A figure such as 8.0 comes back from W&B as 8, and its mappings in another order.
        assert_frame_equal(one[list(other.columns)], other, check_exact=True, check_dtype=False)


@pytest.mark.slow
def test_our_own_files_become_tables_with_every_value_that_was_logged(sweep: Path) -> None:
    found = load_runs(str(sweep))
    assert found.left_out == {}
    assert list(found.runs["run"]) == ["0_dcod", "2_sft", "10_dft"]
    assert list(found.runs["loss"]) == ["dcod", "sft", "dft"]
    assert list(found.runs["seed"]) == [1, 0, 0]
    assert set(found.runs["group"]) == {"compare"}
    assert list(found.runs["optimizer.lr"]) == [0.001, 0.002, 0.001]
    assert list(found.runs["status"]) == ["finished"] * 3
    metrics = found.metrics.set_index(["run", "step", "metric"])
    values = 0
    for folder in sweep.iterdir():
        with (folder / "metrics.csv").open(newline="") as stream:
            for row in csv.DictReader(stream):
                for name, text in row.items():
                    if name != "step" and text:
                        values += 1
                        said = metrics.loc[(folder.name, int(row["step"]), name)]
                        assert said["value"] == float(text)
                        assert said["tokens"] == float(row["train/tokens_total"] or 0)
        summary = json.loads((folder / "summary.json").read_text())
        own = found.runs.set_index("run").loc[folder.name]
        assert own["tokens"] == summary["tokens"]
        assert own["seconds.training"] == summary["seconds"]["training"]
        figure = summary["benchmarks"]["arithmetic"]["after"]["figures"]["accuracy"]
        assert own["arithmetic/after/accuracy"] == figure["value"]
        scores = found.scores.set_index(["run", "stage", "figure"]).loc[(folder.name, "after", "accuracy")]
        assert (scores["low"], scores["high"]) == (figure["low"], figure["high"])
        assert own["arithmetic/after/accuracy_high"] == figure["high"]
        lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
        samples = found.samples[found.samples["run"] == folder.name]
        assert list(samples["completion"]) == [line["completion"] for line in lines]
        spans = [json.loads(line) for line in (folder / "weights.jsonl").read_text().splitlines()]
        weights = found.weights[found.weights["run"] == folder.name]
        assert weights.groupby("step")["count"].sum().to_dict() == {
            span["step"]: sum(span["counts"]) for span in spans
        }
    assert len(metrics) == values > 3 * 6 * 10


@pytest.mark.slow
def test_offline_files_of_wandb_give_the_tables_that_our_own_files_give(sweep: Path) -> None:
    found = load_runs(sweep, source="wandb")
    assert found.left_out == {}
    assert_same(found, load_runs(sweep))


@pytest.mark.slow
def test_the_api_of_wandb_gives_the_tables_that_our_own_files_give(
    sweep: Path, server: list[wandb_stub.Run]
) -> None:
    """The installed client asks a local server, which knows what the offline files say; how W&B's own server
    answers beyond that is not tested here."""
    found = load_runs("wandb:lab/distill", group="compare")
    assert found.left_out == {}
    assert_same(found, load_runs(sweep))
    assert set(found.runs["place"]) == {f"wandb:lab/distill/{run['id']}" for run in server}


@pytest.mark.slow
def test_runs_of_wandb_that_are_no_results_are_named(sweep: Path, server: list[wandb_stub.Run]) -> None:
    first = server[0]
    server[0] = first | {"id": "other", "group": "other"}
    server += [
        first | {"id": "running", "state": "running", "summary": {}},
        first | {"id": "asked", "config": {"model": "tiny"}},
        first | {"id": "nan", "history": [row | {"train/loss": float("nan")} for row in first["history"]]},
        first | {"id": "tableless", "files": {}},
    ]
    with wandb_stub.serving(server) as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_BASE_URL", address)
        found = load_runs("wandb:lab/distill", group="compare")
        with pytest.raises(UserError, match=r"wandb:lab/nowhere cannot be read: "):
            load_runs("wandb:lab/nowhere")
    left_out = {place.removeprefix("wandb:lab/distill/"): why for place, why in found.left_out.items()}
    assert left_out.pop("tableless: samples").startswith("cannot be read: ")
    assert left_out == {
        "running": "unfinished: W&B says that it is running",
        "asked": "no training run: its configuration has no loss",
    }
    assert len(found.runs) == 4  # the sweep's other two, and those with NaN and without a table
    assert found.runs["run"].is_unique
    of_nan = found.metrics[found.metrics["run"].astype(str).str.endswith("/nan")]
    assert len(of_nan)
    assert "train/loss" not in set(of_nan["metric"])


@pytest.mark.slow
def test_nobody_is_asked_for_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(UserError, match="nobody is logged in to W&B here: run `wandb login`"):
        load_runs("wandb:lab/distill")


@pytest.mark.slow
def test_a_run_without_a_csv_is_read_from_the_file_of_wandb(sweep: Path, tmp_path: Path) -> None:
    shutil.copytree(sweep, tmp_path / "compare", symlinks=True)
    for path in tmp_path.glob("compare/*/metrics.csv"):
        path.unlink()
    found = load_runs(tmp_path / "compare")
    assert found.left_out == {}
    assert_same(found, load_runs(sweep))
    shutil.rmtree(tmp_path / "compare" / "2_sft" / "wandb")
    found = load_runs(tmp_path / "compare")
    assert found.left_out == {
        str(tmp_path / "compare" / "2_sft" / "metrics.csv"): "there is none, nor a file of W&B's: the run's "
        "metrics are unknown"
    }
    assert set(found.metrics["loss"]) == {"dcod", "dft"}
    assert len(found.runs) == 3
    # Where only W&B's files were kept, nothing has to be said.
    (tmp_path / "kept").mkdir()
    shutil.move(tmp_path / "compare" / "0_dcod" / "wandb", tmp_path / "kept" / "wandb")
    assert list(load_runs(tmp_path / "kept").runs["loss"]) == ["dcod"]


@pytest.mark.slow
def test_runs_that_broke_off_are_named_or_come_along_as_far_as_they_were_written(
    sweep: Path, tmp_path: Path
) -> None:
    for name in ("0_dcod", "2_sft", "10_dft"):
        # A run that breaks off has no checksums of its figures yet.
        left = shutil.ignore_patterns("wandb", "student", "checksums.json")
        shutil.copytree(sweep / name, tmp_path / name, ignore=left)
    (tmp_path / "2_sft" / "summary.json").unlink()
    (tmp_path / "2_sft" / "error.txt").write_text("Traceback\ndistill.errors.UserError: the disk is full\n")
    torn = (tmp_path / "10_dft" / "metrics.csv").read_text()
    (tmp_path / "10_dft" / "metrics.csv").write_text(torn[: torn.rindex("\n6,") + 9])  # within the last row
    (tmp_path / "10_dft" / "summary.json").unlink()
    (tmp_path / "11_killed").mkdir()
    (tmp_path / "11_killed" / ".lock").touch()
    why = {
        str(tmp_path / "2_sft"): "failed: the disk is full",
        str(tmp_path / "10_dft"): "unfinished: a checkpoint after step 6 is kept",
        str(tmp_path / "11_killed"): "unfinished: no checkpoint",
    }
    found = load_runs(tmp_path)
    assert list(found.runs["run"]) == ["0_dcod"]
    assert found.left_out == why
    assert f"left out: {tmp_path / '2_sft'}: failed: the disk is full" in repr(found)
    found = load_runs(tmp_path, unfinished=True)
    assert list(found.runs["status"]) == ["finished", *list(why.values())[:2]]
    assert list(found.left_out) == [str(tmp_path / "11_killed")]
    steps = found.metrics.groupby("run", observed=True)["step"].max().to_dict()
    assert steps == {"0_dcod": 6, "2_sft": 6, "10_dft": 5}
    assert list(found.runs["loss"])[1:] == ["tiny_traces_sft", "tiny_traces_dft"]  # the preset was not noted
    assert set(found.scores["run"]) == {"0_dcod"}


@pytest.mark.slow
def test_damaged_files_are_named_and_the_rest_is_read(sweep: Path, tmp_path: Path) -> None:
    shutil.copytree(sweep, tmp_path / "compare", symlinks=True)
    folder = tmp_path / "compare"
    for path in folder.glob("*/checksums.json"):
        path.unlink()  # earlier versions kept none
    (folder / "0_dcod" / "summary.json").write_text('{"name": ')
    with (folder / "2_sft" / "samples.jsonl").open("a") as stream:
        stream.write('{"stage": "after", \n')
    text = (folder / "10_dft" / "metrics.csv").read_text()
    (folder / "10_dft" / "metrics.csv").write_text(text.replace("\n2,", "\n2,loss"))
    (folder / "10_dft" / "weights.jsonl").write_text('{"step": 1}\n')
    summary = json.loads((folder / "10_dft" / "summary.json").read_text())
    (folder / "10_dft" / "summary.json").write_text(json.dumps(summary | {"benchmarks": {"arithmetic": 1}}))
    found = load_runs(folder)
    assert list(found.runs["run"]) == ["2_sft", "10_dft"]
    assert set(found.scores["run"]) == set(found.weights["run"]) == {"2_sft"}
    assert set(found.metrics["run"]) == {"2_sft"}
    assert set(found.samples["run"]) == {"10_dft"}
    assert {Path(place).name: why.split(":")[0] for place, why in found.left_out.items()} == {
        "0_dcod": "unreadable",
        "samples.jsonl": "damaged",
        "metrics.csv": "damaged",
        "weights.jsonl": "damaged",
        "10_dft: scores": "damaged",
    }
    assert "line 9 is no JSON" in next(why for place, why in found.left_out.items() if "samples" in place)


@pytest.mark.slow
def test_a_damaged_file_of_wandb_is_told_from_one_that_was_cut(sweep: Path, tmp_path: Path) -> None:
    shutil.copytree(sweep, tmp_path / "compare", symlinks=True)
    (whole,) = tmp_path.glob("compare/0_dcod/wandb/offline-run-*/*.wandb")
    data = whole.read_bytes()
    whole.write_bytes(data[:9000] + bytes([data[9000] ^ 1]) + data[9001:])
    found = load_runs(tmp_path, source="wandb")
    assert list(found.runs["loss"]) == ["sft", "dft"]
    assert list(found.left_out) == [str(whole)]
    assert found.left_out[str(whole)].startswith("damaged at byte ")
    for cut in (data[: len(data) // 2], data[: len(data) // 2] + bytes(20)):
        whole.write_bytes(cut)
        found = load_runs(tmp_path, source="wandb")
        assert found.left_out == {str(whole): "unfinished: its W&B file has no end"}
        found = load_runs(tmp_path, source="wandb", unfinished=True)
        assert found.runs["status"][0] == "unfinished: its W&B file has no end"
    _, resumed = sorted(tmp_path.glob("compare/10_dft/wandb/offline-run-*/*.wandb"))
    resumed.write_bytes(resumed.read_bytes()[:5000])
    assert load_runs(tmp_path, source="wandb").left_out[str(resumed)] == "unfinished: its W&B file has no end"
    shutil.rmtree(resumed.parent)
    assert "failed: exit code 1" in load_runs(tmp_path, source="wandb").left_out.values()
    whole.write_bytes(b"something else")
    assert load_runs(tmp_path, source="wandb").left_out[str(whole)] == "this is no file of W&B's"


@pytest.mark.slow
def test_a_file_of_wandb_that_ends_at_any_byte_is_unfinished_and_read_up_to_its_last_whole_record(
    sweep: Path, tmp_path: Path
) -> None:
    """Whether the rest of it is missing, or zeros: at each byte of its first record and of its last ones."""
    (path,) = sweep.glob("2_sft/wandb/offline-run-*/*.wandb")
    data = path.read_bytes()
    position, ends = 7, [7]
    while position < len(data):
        room = -position % 32768
        begin = position + (room if room < 7 else 0)
        position = begin + 7 + int.from_bytes(data[begin + 4 : begin + 6], "little")
        if data[begin + 6] in (1, 4):  # a whole record, or the last part of one
            ends.append(position)
    whole = list(wandb_runs._records(data))
    assert len(whole) == len(ends) - 1
    assert {record.WhichOneof("record_type") for record in whole[-3:]} >= {"exit"}
    for cut in (*range(ends[1]), *range(ends[-4], len(data))):
        for rest in (b"", bytes(len(data) - cut)):
            file = data[:cut] + rest
            complete = sum(file[:end] == data[:end] for end in ends[1:])  # some end in a zero of their own
            assert list(wandb_runs._records(file)) == whole[:complete], cut
    cut = tmp_path / "run" / path.name
    cut.parent.mkdir()
    cut.write_bytes(data[: ends[-4] + 9] + bytes(100))
    assert wandb_runs.read_files([cut]).ended == "unfinished: its W&B file has no end"
    cut.write_bytes(data[: ends[-4] + 9] + bytes(ends[-3] - ends[-4] - 9) + data[ends[-3] :])
    with pytest.raises(ValueError, match=r"damaged at byte \d+: the checksum is another"):  # more follows
        wandb_runs.read_files([cut])


@pytest.mark.slow
def test_records_over_several_blocks_of_a_file_are_put_together_again(tmp_path: Path) -> None:
    """As W&B itself writes them: a table's row of 100 kB goes over four blocks of 32 KiB."""
    import wandb

    long = {"text": "x" * 100_000, "number": 7}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        logged = wandb.init(project="p", dir=tmp_path, config={"long": long})
        for step in range(50):
            logged.log({"a": 1 / (step + 1), "trainer/global_step": step})
        logged.finish()
        wandb.teardown()
    (paths,) = wandb_runs.find_files(tmp_path)
    found = wandb_runs.read_files(paths)
    assert found.config["long"] == long
    assert found.ended is None
    metrics, _ = wandb_runs.read_history(found.history)
    assert metrics["a"].tolist() == [1 / (step + 1) for step in range(50)]


@pytest.mark.parametrize("left", range(10))
def test_a_block_of_a_file_ends_in_padding_where_no_header_fits(tmp_path: Path, left: int) -> None:
    """Written here after LevelDB's description: blocks of 32 KiB, headers of 7 bytes, none across a block."""
    from wandb.proto import wandb_internal_pb2

    contents = []
    for size in (0, 100, 40_000):
        record: Any = wandb_internal_pb2.Record()  # pyright: ignore[reportAttributeAccessIssue]
        record.summary.update.add(key=f"of {size}", value_json=json.dumps("x" * size))
        contents.append(record.SerializeToString())
    first = wandb_internal_pb2.Record()  # pyright: ignore[reportAttributeAccessIssue]
    update = first.summary.update.add(key="first", value_json='""')
    update.value_json = json.dumps("y" * (32768 - 7 - 7 - left - 30))
    update.key += "y" * (32768 - 7 - 7 - left - len(first.SerializeToString()))
    data = b":W&B\xe1\xbe\x00"
    for content in [first.SerializeToString(), *contents]:
        begun = False
        while True:
            room = 32768 - len(data) % 32768
            if room < 7:
                data += bytes(room)
                continue
            part, content = content[: room - 7], content[room - 7 :]
            kind = bytes([(3 if content else 4) if begun else (2 if content else 1)])
            data += (
                zlib.crc32(kind + part).to_bytes(4, "little") + len(part).to_bytes(2, "little") + kind + part
            )
            begun = True
            if not content:
                break
    path = tmp_path / "offline-run-20261121_000000-a" / "run-a.wandb"
    path.parent.mkdir()
    path.write_bytes(data)
    summary = wandb_runs.read_files([path]).summary
    assert [len(value) for key, value in summary.items() if key[:2] == "of"] == [0, 100, 40_000]
    assert len(summary) == 4


def test_what_lies_behind_a_checkpoint_is_forgotten_when_the_run_is_resumed_there() -> None:
    def row(step: int, loss: float, **more: float) -> dict[str, Any]:
        return {"trainer/global_step": step, "train/loss": loss, "_step": 0, **more}

    first = [row(1, 0.9), row(2, 0.8, early=1.0), row(3, 0.7), row(4, 0.6, gone=1.0)]
    asked = {"trainer/global_step": 0, "arithmetic/accuracy": 0.5}
    metrics, _ = wandb_runs.read_history([asked, *first, asked, row(3, 0.75)])
    assert metrics.index.tolist() == [0, 1, 2, 3]
    assert metrics["train/loss"].tolist()[1:] == [0.9, 0.8, 0.75]
    assert metrics["early"].dropna().to_dict() == {2: 1.0}


@pytest.mark.slow
def test_keys_of_the_configuration_become_columns_of_every_table(sweep: Path) -> None:
    found = load_runs(sweep, columns=["optimizer.lr", "loss.control"], metrics=["train/loss"])
    for name in ("metrics", "scores", "samples", "weights"):
        table = getattr(found, name)
        assert table.groupby("loss", observed=True)["optimizer.lr"].first()["sft"] == 0.002
        assert "loss.control" in table.columns
    assert set(found.metrics["metric"]) == {"train/loss"}
    assert not found.metrics["tokens"].isna().any()  # the axes do not hang on what is asked for
    with pytest.raises(UserError, match=r"columns: no run's configuration has the key optimizer\.lrr"):
        load_runs(sweep, columns=["optimizer.lrr"])
    assert len(load_runs(sweep, samples=False).samples) == 0


@pytest.mark.slow
def test_groups_lists_and_what_is_no_run(sweep: Path, tmp_path: Path) -> None:
    shutil.copytree(sweep / "0_dcod", tmp_path / "tune" / "0_dcod", symlinks=True)
    config = tmp_path / "tune" / "0_dcod" / "config.yaml"
    config.write_text(config.read_text().replace("group: compare", "group: tune"))
    found = load_runs([sweep, tmp_path / "tune", sweep / "0_dcod"])
    assert list(found.runs["run"]) == ["compare/0_dcod", "compare/2_sft", "compare/10_dft", "tune/0_dcod"]
    found = load_runs([sweep, tmp_path / "tune"], group="tune")
    assert list(found.runs["run"]) == ["0_dcod"]
    assert set(found.left_out.values()) == {"of the group compare"}
    (tmp_path / "traces").mkdir()
    (tmp_path / "traces" / "summary.json").write_text('{"traces": 800}')  # as generate.py leaves it
    found = load_runs(tmp_path)
    assert list(found.left_out.values()) == ["no training run: its summary.json is of something else"]
    only = load_runs(tmp_path / "traces")
    assert [len(getattr(only, name)) for name in TABLES] == [0] * 5
    assert {"run", "loss", "metric", "value", "tokens", "flops"} <= set(only.metrics.columns)
    with pytest.raises(UserError, match="there is no such folder"):
        load_runs(tmp_path / "nowhere")
    with pytest.raises(UserError, match="there is no run in it"):
        load_runs(config.parent / "student")
    with pytest.raises(UserError, match="source='csv' is neither folder nor wandb"):
        load_runs(sweep, source="csv")


@pytest.mark.slow
def test_what_was_spent_by_a_step_is_what_was_last_logged_before_it(sweep: Path, tmp_path: Path) -> None:
    left = shutil.ignore_patterns("wandb", "student", "checksums.json")
    shutil.copytree(sweep / "0_dcod", tmp_path / "run", ignore=left)
    names = ["train/tokens_total", "train/seconds_total", "train/student_flops_total"]
    rows = [
        ["step", *names, "train/teacher_flops_total", "arithmetic/accuracy"],
        ["0", "", "", "", "", "0.1"],
        ["10", "100", "1.5", "1e15", "2e15", ""],
        ["15", "", "", "", "", "0.2"],
        ["20", "200", "3.0", "3e15", "2e15", "0.3"],
    ]
    (tmp_path / "run" / "metrics.csv").write_text("".join(",".join(row) + "\n" for row in rows))
    metrics = load_runs(tmp_path).metrics
    accuracy = metrics[metrics["metric"] == "arithmetic/accuracy"]
    assert accuracy[["step", "value", "tokens", "seconds", "flops"]].to_numpy().tolist() == [
        [0, 0.1, 0, 0, 0],
        [15, 0.2, 100, 1.5, 3e15],
        [20, 0.3, 200, 3.0, 5e15],
    ]


@pytest.mark.slow
def test_two_hundred_runs_of_two_thousand_steps_load_in_seconds(sweep: Path, tmp_path: Path) -> None:
    """2.8 million values, in processor time, which other work on the machine stretches little."""
    names = (
        [f"train/{name}" for name in ("loss", "nll", "tokens_total", "lr", "seconds")]
        + ["weights/mean"]
        + ["weights/sum"]
    )
    values = np.random.default_rng(0).random((2000, len(names)))
    table = pandas.DataFrame(values, columns=names, index=pandas.RangeIndex(1, 2001, name="step"))
    table.to_csv(tmp_path / "metrics.csv")
    for number in range(200):
        folder = tmp_path / "sweep" / f"{number}_run"
        folder.mkdir(parents=True)
        for name in ("summary.json", "config.yaml", "samples.jsonl", "weights.jsonl"):
            shutil.copy(sweep / "0_dcod" / name, folder)
        (folder / "metrics.csv").hardlink_to(tmp_path / "metrics.csv")
    began = time.process_time()
    found = load_runs(tmp_path / "sweep")
    spent = time.process_time() - began
    assert len(found.metrics) == 200 * 2000 * len(names)
    assert found.metrics["run"].cat.categories[10] == "10_run"
    assert spent < 20


@pytest.mark.slow
def test_a_configuration_is_read_as_omegaconf_would_read_it(sweep: Path, tmp_path: Path) -> None:
    words = [
        "1e-5",
        "1_000",
        "0o10",
        "010",
        "0x1F",
        "12:30",
        "12:30:45",
        "yes",
        "on",
        "~",
        "null",
        "2026-11-21",
    ]
    words += [
        "",
        " x ",
        "a: b",
        "{problem}\n\nPlease reason",
        "1.",
        ".5",
        "-.inf",
        ".nan",
        "é",
        "=",
        "<<",
        "!",
    ]
    tricky = {
        "words": {f"w{place}": word for place, word in enumerate(words)},
        "list": [*words, 1, 1.5, True, None, [1e-5, {"a": 2e30}]],
        "floats": {"small": 1e-5, "large": 1e16, "inf": float("inf"), "whole": 2.0},
        "none": {},
    }
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(tricky)), encoding="utf-8")
    for folder in (tmp_path, *sweep.iterdir()):
        expected: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
        found = read_config(folder)
        assert found == dict(flat(expected))
        assert [type(value) for value in found.values()] == [
            type(value) for value in dict(flat(expected)).values()
        ]
