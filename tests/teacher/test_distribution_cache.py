"""Tests of cached teacher distributions: training with them equals training with the live teacher, which is
not loaded; a cache of another teacher is rejected."""

import functools
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from covering import some_of
from safetensors.torch import load_file, save_file
from test_across_vocabularies import strange_teacher as strange_teacher
from test_cache_and_teacher import lazy, traces_of
from test_training import arguments, column, run
from test_training import traces as traces
from transformers import AutoModelForCausalLM, AutoTokenizer

import distill.teacher.distribution_cache
from distill.data.batch import collate
from distill.data.trace import Trace
from distill.errors import UserError
from distill.io.cache import ShardCache, StoredRows
from distill.models.language_model import ModelSource
from distill.models.lazy import LazyModel
from distill.teacher.distribution import TeacherDistribution, drawn_tokens
from distill.teacher.distribution_cache import (
    _distance,
    _shards,
    _tolerance,
    cache_distributions,
    check_matrix,
    output_matrix,
)

METRICS = ("train/loss", "train/gradient_norm", "train/nll", "weights/mean")
LOSSES = {
    "forward_kl": ["loss=forward_kl"],
    "reverse_kl": ["loss=reverse_kl"],
    "symmetric_kl": ["loss=dcod_symmetric_kl"],
    "jsd": ["loss=dcod_jsd"],
    "skew_forward_kl": [
        "loss=distillm",
        "loss.rollouts=dataset",
        "loss.token_loss._target_=distill.losses.divergence.skew_forward_kl",
    ],
    "skew_reverse_kl": ["loss=distillm", "loss.rollouts=dataset"],
    "tvd": ["loss=tvd"],
    "todi": ["loss=todi"],
    "akl": ["loss=akl"],
    "taid": ["loss=taid"],
    "uld": ["loss=uld"],
    "gold": ["loss=gold", "loss.rollouts=dataset"],
    "temperature": ["loss=forward_kl", "loss.temperature=2"],
    "informed": ["loss=opsd", "loss.rollouts=dataset"],
}


def metrics(folder: Path) -> list[list[float]]:
    return [column(folder, name) for name in METRICS]


def same(one: Path, other: Path, tolerance: float = 1e-5) -> None:
    for found, expected in zip(metrics(one), metrics(other), strict=True):
        assert found == pytest.approx(expected, rel=tolerance, abs=1e-7)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the models that are loaded, as they are."""
    names: list[str] = []
    load = ModelSource.load

    def noted(self: ModelSource, cache: Path | None = None) -> Any:
        names.append(Path(self.name).name)
        return load(self, cache)

    monkeypatch.setattr(ModelSource, "load", noted)
    return names


# --- whole runs


def few_steps(pair: tuple[Path, Path], traces: Path, folder: Path, loss: str, *more: str) -> list[str]:
    return arguments(pair, traces, folder, *LOSSES[loss], "trainer.max_steps=4", "data.limit=20", *more)


@pytest.fixture(scope="module")
def live(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The folder of a run with a loss and the live teacher, made once for all tests."""

    @functools.cache
    def of(loss: str) -> Path:
        root = tmp_path_factory.mktemp("live")
        return run(few_steps(tiny_pair, traces, root, loss), root / "run")

    return of


@pytest.mark.slow
@pytest.mark.parametrize("loss", some_of(LOSSES, "jsd", "akl", "uld", "temperature", "informed"))
def test_a_run_from_hidden_states_is_the_live_teachers(
    loss: str, live: Callable[[str], Path], tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    words = few_steps(tiny_pair, traces, tmp_path, loss, "loss.distribution.source=hidden_states")
    cached = run(words, tmp_path / "cached")
    same(cached, live(loss))
    assert len(set(column(live(loss), "train/loss"))) == 4
    said = json.loads((cached / "summary.json").read_text())["frozen"]["teacher"]
    assert "not in memory while training" in said
    assert "distribution as hidden_states" in said


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["forward_kl", "jsd", "informed"])
def test_a_run_from_all_tokens_but_one_is_the_live_teachers_and_fewer_see_less(
    loss: str, live: Callable[[str], Path], tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    words = few_steps(tiny_pair, traces, tmp_path, loss, "loss.distribution.source=top_k")
    same(run([*words, "loss.distribution.top_k=1000"], tmp_path / "all"), live(loss))
    few = run([*words, "loss.distribution.top_k=2"], tmp_path / "few")
    assert 0 < column(few, "train/loss")[0] < column(live(loss), "train/loss")[0]


@pytest.mark.slow
def test_a_run_from_many_samples_is_near_the_live_teachers_up_to_its_entropy(
    live: Callable[[str], Path], tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    words = few_steps(tiny_pair, traces, tmp_path, "forward_kl", "loss.distribution.source=samples")
    words += ["loss.distribution.samples=3000"]
    samples = run(words, tmp_path / "samples")
    again = run(words, tmp_path / "again")
    whole = live("forward_kl")
    assert column(samples, "train/gradient_norm") == pytest.approx(
        column(whole, "train/gradient_norm"), rel=0.05
    )
    assert column(samples, "train/nll") == pytest.approx(column(whole, "train/nll"), rel=1e-2)
    assert min(column(samples, "train/loss")) > max(column(whole, "train/loss"))
    assert metrics(again) == metrics(samples)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["hidden_states", "top_k", "samples"])
def test_the_teacher_is_not_loaded_once_all_is_cached(
    source: str, tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, loads: list[str]
) -> None:
    words = arguments(tiny_pair, traces, tmp_path, "loss=dcod_kl", f"loss.distribution.source={source}")
    first = run(words, tmp_path / "first")
    assert loads.count("teacher") == 1
    loads.clear()
    second = run(words, tmp_path / "second")
    assert loads == ["student"]
    assert metrics(second) == metrics(first)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["uld", "gold"])
def test_a_teacher_of_other_tokens_is_cached_as_it_reads(
    loss: str, strange_teacher: Path, tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    pair = (tiny_pair[0], strange_teacher)
    words = arguments(pair, traces, tmp_path, *LOSSES[loss], "trainer.max_steps=4", "data.limit=20")
    live = run(words, tmp_path / "live")
    cached = run([*words, "loss.distribution.source=hidden_states"], tmp_path / "cached")
    same(cached, live)


@pytest.mark.slow
def test_states_in_half_precision_are_half_the_size_and_nearly_the_same(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    words = arguments(
        tiny_pair, traces, tmp_path, "loss=forward_kl", "loss.distribution.source=hidden_states"
    )
    single = run(words, tmp_path / "single")
    half = run([*words, "loss.distribution.dtype=bfloat16"], tmp_path / "half")
    same(half, single, tolerance=2e-2)
    sizes = {
        folder: load_file(folder / "00000.safetensors")["hidden_states"].nbytes
        for folder in (tmp_path / "cache").glob("teacher_hidden_states-*")
    }
    assert max(sizes.values()) == 2 * min(sizes.values())


# --- the output matrix


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "auto"])
@pytest.mark.parametrize("form", ["one", "several", "pickled"])
def test_the_output_matrix_is_the_models_own_wherever_it_is_read(
    which: int, dtype: str, form: str, tiny_pair: tuple[Path, Path], tmp_path: Path, loads: list[str]
) -> None:
    """The student's is tied to its embeddings, the teacher's is not."""
    folder = tiny_pair[which]
    if form != "one":
        model = AutoModelForCausalLM.from_pretrained(folder)
        folder = tmp_path / "model"
        AutoTokenizer.from_pretrained(tiny_pair[which]).save_pretrained(folder)
        if form == "several":
            model.save_pretrained(folder, max_shard_size="30KB")
            assert (folder / "model.safetensors.index.json").is_file()
        else:
            model.config.save_pretrained(folder)
            torch.save(model.state_dict(), folder / "pytorch_model.bin")
    lm = lazy(folder, dtype=dtype).get()
    expected = lm.model.get_output_embeddings().weight[: lm.vocab_size]
    loads.clear()
    model = lazy(folder, dtype=dtype)
    found = output_matrix(model)
    assert torch.equal(found, expected)
    assert found.dtype == expected.dtype
    assert not found.requires_grad
    assert len(loads) == (form == "pickled")
    assert not model.loaded


def test_a_model_that_is_loaded_anyway_gives_its_matrix_and_stays(tiny_pair: tuple[Path, Path]) -> None:
    model = lazy(tiny_pair[1])
    weight = model.get().model.get_output_embeddings().weight
    assert output_matrix(model).data_ptr() == weight.data_ptr()
    assert model.loaded


STATES = TeacherDistribution("hidden_states")


def test_a_matrix_that_does_not_belong_to_the_states_is_refused(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    model, found = lazy(tiny_pair[1]), traces_of(tiny_pair[1], 5)
    rows = cache_distributions(model, found, STATES, cache=tmp_path)
    matrix = output_matrix(model)
    check_matrix(matrix, rows, found, "teacher")
    for other in (matrix.roll(1, 0), torch.full_like(matrix, torch.nan)):
        with pytest.raises(
            UserError, match=r"matrix of teacher does not fit .*teacher_hidden_states-.*delete"
        ):
            check_matrix(other, rows, found, "teacher")


def test_half_precision_on_either_side_is_held_to_its_own_rounding() -> None:
    single, double, half = torch.float32, torch.float64, torch.bfloat16
    assert _tolerance(single, double) == _tolerance(single) < 2**-8  # half of bfloat16's last place
    assert _tolerance(single, half) == _tolerance(half, single) == _tolerance(half) > 2**-8


# --- the cache


def kept(
    model: LazyModel, found: list[Trace], source: Any, cache: Path, **settings: Any
) -> list[dict[str, Any]]:
    rows = cache_distributions(model, found, TeacherDistribution(source, **settings), cache=cache)
    return [part.read() for part in rows]


def equal(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    return all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("token_budget", [1, 64, 8192])
def test_what_is_kept_is_of_the_models_own_logits_whatever_the_batches(
    token_budget: int, tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    found = traces_of(tiny_pair[1], 9)
    model = AutoModelForCausalLM.from_pretrained(tiny_pair[1]).eval()
    size = len(AutoTokenizer.from_pretrained(tiny_pair[1]))
    read = {
        name: [
            part.read()
            for part in cache_distributions(
                lazy(tiny_pair[1]), found, wanted, cache=tmp_path, token_budget=token_budget
            )
        ]
        for name, wanted in {"states": STATES, "top": TeacherDistribution("top_k", top_k=5)}.items()
    }
    for trace, states, top in zip(found, read["states"], read["top"], strict=True):
        ids = torch.from_numpy(np.concatenate([trace.prompt_ids, trace.completion_ids]).astype(np.int64))
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0, len(trace.prompt_ids) - 1 : -1, :size]
            made = states["hidden_states"] @ model.get_output_embeddings().weight[:size].T
        torch.testing.assert_close(made, logits, rtol=1e-4, atol=1e-5)
        log_p = torch.log_softmax(logits, -1)
        torch.testing.assert_close(top["logprobs"], log_p.topk(5).values, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(log_p.gather(-1, top["ids"].long()), top["logprobs"], rtol=1e-4, atol=1e-5)
        rest = 1 - log_p.exp().topk(5).values.sum(-1)
        torch.testing.assert_close(top["log_rest"].exp(), rest, rtol=1e-4, atol=1e-5)


def test_a_shard_ends_before_it_holds_too_many_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distill.teacher.distribution_cache, "_TOKENS_PER_SHARD", 10)
    assert _shards([4, 6, 1, 1, 8, 30, 2, 2]) == [range(2), range(2, 5), range(5, 6), range(6, 8)]
    assert _shards([3, 3]) == [range(2)]


def test_equal_traces_are_drawn_for_with_numbers_of_their_own(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    (trace,) = traces_of(tiny_pair[1], 1)
    model, wanted = lazy(tiny_pair[1]), TeacherDistribution("samples", seed=5)
    rows = cache_distributions(model, [trace, trace], wanted, cache=tmp_path)
    lm = model.get()
    ids = torch.from_numpy(np.concatenate([trace.prompt_ids, trace.completion_ids]).astype(np.int64))
    with torch.no_grad():
        logits = lm.model(input_ids=ids[None]).logits[0, len(trace.prompt_ids) - 1 : -1, : lm.vocab_size]
    for number, part in enumerate(rows):
        uniforms = wanted.uniforms(number, len(trace.completion_ids))
        assert uniforms is not None
        expected = drawn_tokens(torch.log_softmax(logits, -1), uniforms)
        assert torch.equal(part.read()["ids"], expected.ids.int())
    assert not equal([rows[0].read()], [rows[1].read()])


@pytest.mark.slow
@pytest.mark.parametrize("source", ["hidden_states", "top_k", "samples"])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_caching_that_was_killed_goes_on_and_gives_the_same(
    source: str,
    after: int,
    tiny_pair: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distill.teacher.distribution_cache, "_TOKENS_PER_SHARD", 60)
    found = traces_of(tiny_pair[1], 14)
    clean = kept(lazy(tiny_pair[1]), found, source, tmp_path / "clean")
    original, calls = distill.teacher.distribution_cache._kept, []

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        return original(*arguments, **options)

    def killed(*arguments: Any, **options: Any) -> Any:
        if len(calls) == after:
            raise KeyboardInterrupt
        return counted(*arguments, **options)

    monkeypatch.setattr(distill.teacher.distribution_cache, "_kept", killed)
    with pytest.raises(KeyboardInterrupt):
        kept(lazy(tiny_pair[1]), found, source, tmp_path / "cut")
    (folder,) = (tmp_path / "cut").iterdir()
    assert len(list(folder.glob("*.safetensors"))) == after
    assert not list(folder.glob("*.tmp"))
    calls.clear()
    monkeypatch.setattr(distill.teacher.distribution_cache, "_kept", counted)
    resumed = kept(lazy(tiny_pair[1]), found, source, tmp_path / "cut")
    shards = len(list(folder.glob("*.safetensors")))
    assert shards > 3
    # What was there before is looked at too, since the teacher is loaded.
    assert len(calls) == shards - after + (after > 0)
    assert equal(resumed, clean)


@pytest.mark.slow
def test_whatever_changes_what_is_kept_is_another_cache(tiny_pair: tuple[Path, Path], tmp_path: Path) -> None:
    found, teacher = traces_of(tiny_pair[1], 3), lazy(tiny_pair[1])
    for settings in (
        {"source": "hidden_states"},
        {"source": "hidden_states", "dtype": "bfloat16"},
        {"source": "top_k"},
        {"source": "top_k", "top_k": 3},
        {"source": "samples"},
        {"source": "samples", "samples": 3},
        {"source": "samples", "seed": 1},
        {"source": "samples", "proposal_temperature": 1.5},
    ):
        kept(teacher, found, cache=tmp_path, **settings)
    kept(teacher, found[::-1], "top_k", tmp_path)
    kept(lazy(tiny_pair[0]), found, "top_k", tmp_path)
    kept(lazy(tiny_pair[1], dtype="bfloat16"), found, "top_k", tmp_path)
    moved = [
        Trace(t.example, np.append(t.prompt_ids, t.completion_ids[:1]), t.completion_ids[1:]) for t in found
    ]
    kept(teacher, moved, "top_k", tmp_path)
    assert len(list(tmp_path.iterdir())) == 12
    # What says nothing about the content is no part of it.
    kept(teacher, found, "top_k", tmp_path, seed=7, samples=3, dtype="bfloat16", verify=True)
    assert len(list(tmp_path.iterdir())) == 12


def tamper(cache: Path, change: Any) -> Path:
    (folder,) = cache.iterdir()
    shard = folder / "00000.safetensors"
    tensors = load_file(shard)
    del tensors["checksums"]  # as an earlier version wrote it, which kept none
    save_file({name: change(name, values) for name, values in tensors.items()}, shard)
    return folder


CHANGES = {
    "hidden_states": lambda name, values: values * 1.01 if name == "hidden_states" else values,
    "top_k": lambda name, values: values - 0.1 if name == "logprobs" else values,
    "samples": lambda name, values: (values + 3) % 9 if name == "ids" else values,
}


@pytest.mark.slow
@pytest.mark.parametrize("source", CHANGES)
def test_a_cache_that_is_not_what_the_teacher_gives_is_refused_when_looked_at(
    source: str, tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    found = traces_of(tiny_pair[1], 12)
    kept(lazy(tiny_pair[1]), found, source, tmp_path)
    unused = lazy(tiny_pair[1])
    kept(unused, found, source, tmp_path)
    assert not unused.loaded
    kept(lazy(tiny_pair[1]), found, source, tmp_path, verify=True)
    folder = tamper(tmp_path, CHANGES[source])
    kept(lazy(tiny_pair[1]), found, source, tmp_path)  # not looked at
    for model, verify in ((lazy(tiny_pair[1]), True), (lazy(tiny_pair[1]), False)):
        if not verify:
            model.get()  # for something else
        with pytest.raises(UserError, match=rf"cache {folder} is not what .*teacher gives now .*delete"):
            kept(model, found, source, tmp_path, verify=verify)


def test_a_teacher_that_is_at_hand_looks_at_what_was_cached(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    found, model = traces_of(tiny_pair[1], 3), lazy(tiny_pair[1])
    kept(model, found, "top_k", tmp_path)
    tamper(tmp_path, CHANGES["top_k"])
    kept(lazy(tiny_pair[1]), found, "top_k", tmp_path)  # which is not loaded for it
    with pytest.raises(UserError, match=r"is not what .*teacher gives now"):
        kept(model, found, "top_k", tmp_path)


def test_the_distance_of_draws_is_half_the_sum_of_all_differences() -> None:
    """Behind the tokens that were drawn stand entries of weight 0, whose id may be that of a drawn one."""

    def drawn(*rows: dict[int, float]) -> dict[str, torch.Tensor]:
        ids = torch.tensor([[*row, 0, 0, 0][:3] for row in rows], dtype=torch.int32)
        shares = torch.tensor([[*row.values(), 0.0, 0.0, 0.0][:3] for row in rows])
        return {"ids": ids, "logprobs": shares.log()}

    one = drawn({0: 0.5, 4: 0.5}, {2: 1.0})
    assert _distance(one, one) == 0.0
    other = drawn({4: 0.25, 0: 0.25, 3: 0.5}, {0: 1.0})
    assert _distance(one, other) == _distance(other, one) == (0.5 + 1.0) / 2


def test_a_disk_that_is_too_small_is_refused_with_both_sizes(
    tiny_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"needs some .* GiB more.*source=top_k.*cache=<folder>"):
        kept(lazy(tiny_pair[1]), traces_of(tiny_pair[1], 12), "hidden_states", tmp_path)
    (folder,) = tmp_path.iterdir()
    assert not list(folder.glob("*.safetensors"))


# --- rows of a shard


def shard(folder: Path) -> list[StoredRows]:
    cache = ShardCache(folder, "thing", {}, 1)
    parts = [{"values": torch.full((n, 3), float(n)).bfloat16(), "ids": torch.arange(n)} for n in (2, 0, 3)]
    cache.write_rows(0, parts)
    return cache.rows(0)


def test_rows_of_a_shard_come_back_part_by_part_in_their_own_types(tmp_path: Path) -> None:
    rows = shard(tmp_path)
    assert [len(part) for part in rows] == [2, 0, 3]
    read = rows[2].read()
    assert read.keys() == {"values", "ids"}
    assert torch.equal(read["values"], torch.full((3, 3), 3.0).bfloat16())
    assert read["ids"].tolist() == [0, 1, 2]
    assert rows[1].read()["values"].shape == (0, 3)


def test_rows_are_light_to_hold_and_to_send_and_the_file_is_not_mapped(tmp_path: Path) -> None:
    rows = shard(tmp_path)
    sent = pickle.dumps(rows)
    assert len(sent) < 2000
    assert torch.equal(pickle.loads(sent)[0].read()["ids"], rows[0].read()["ids"])
    maps = Path("/proc/self/maps")
    if maps.is_file():  # whose pages would count as the process's memory
        assert str(rows[0].path) not in maps.read_text()


def test_a_shard_that_was_made_anew_is_not_taken_for_the_old_one(tmp_path: Path) -> None:
    old = shard(tmp_path)[0].path.stat()
    cache = ShardCache(tmp_path, "thing", {}, 1)
    cache.write_rows(0, [{"values": torch.ones(1)}])
    (path,) = cache.folder.glob("*.safetensors")
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))  # within a tick of the file system's clock
    (only,) = cache.rows(0)
    assert only.read()["values"].tolist() == [1.0]


@pytest.mark.parametrize("size", [0, 20, -8])
def test_a_damaged_shard_of_rows_is_refused_with_the_remedy(size: int, tmp_path: Path) -> None:
    (rows, *_) = shard(tmp_path)
    whole = rows.path.read_bytes()
    rows.path.unlink()
    rows.path.write_bytes(whole[:size])
    with pytest.raises(UserError, match=r"00000\.safetensors is damaged .*delete it and run again"):
        ShardCache(tmp_path, "thing", {}, 1).rows(0)


def test_a_batch_lays_the_traces_rows_one_behind_the_other(tmp_path: Path) -> None:
    found = [
        Trace(t.example, t.prompt_ids, t.completion_ids[:1], distribution=rows)
        for t, rows in zip(traces_of_any(3), shard(tmp_path), strict=True)
    ]
    batch = collate([found[2], found[0]])
    assert batch.distribution["values"].float()[:, 0].tolist() == [3.0, 3.0, 3.0, 2.0, 2.0]
    moved = batch.to("cpu")
    assert torch.equal(moved.distribution["ids"], batch.distribution["ids"])
    assert not collate(traces_of_any(2)).distribution


def traces_of_any(count: int) -> list[Trace]:
    from distill.data.trace import Example

    ids = np.asarray([1, 2], dtype=np.int32)
    return [Trace(Example(str(n), ""), ids, ids) for n in range(count)]
