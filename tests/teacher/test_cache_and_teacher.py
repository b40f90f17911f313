"""Tests of caches: complete shards only, resuming after interruptions, no mix-ups between keys."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import distill.io.cache
import distill.teacher.completions
import distill.teacher.logprobs
from distill.data.trace import Example, Trace
from distill.errors import UserError
from distill.generation.decode import generate
from distill.generation.sampling import Sampling
from distill.io.cache import ShardCache
from distill.io.files import hash_arrays, write_atomically
from distill.models.find import find_model
from distill.models.head import Head
from distill.models.language_model import LanguageModel
from distill.models.lazy import LazyModel
from distill.teacher.completions import sample_completions
from distill.teacher.logprobs import cached_logprobs, sampled_logprobs


def lazy(folder: Path, **options: Any) -> LazyModel:
    return LazyModel(find_model(str(folder), key="model.teacher", **options), "cpu")


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- the cache itself


def test_a_cache_gives_back_what_was_written_and_knows_what_is_missing(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, "thing", {"a": 1}, 3)
    assert cache.missing() == [0, 1, 2]
    assert not cache.complete
    parts = [{"values": torch.tensor([1.5, -torch.inf])}, {"values": torch.zeros(0)}]
    cache.write_rows(1, parts)
    assert cache.missing() == [0, 2]
    again = ShardCache(tmp_path, "thing", {"a": 1}, 3)
    assert again.missing() == [0, 2]
    for part, found in zip(parts, again.rows(1), strict=True):
        assert found.read()["values"].dtype == torch.float32
        assert torch.equal(found.read()["values"], part["values"])
    cache.write_rows(0, parts)
    cache.write_rows(2, parts)
    assert cache.complete
    assert files(cache.folder) == {"key.json", *(f"{n:05d}.safetensors" for n in range(3))}


def test_a_cache_can_be_read_by_whoever_may_read_other_files(tmp_path: Path) -> None:
    ordinary = tmp_path / "ordinary"
    ordinary.write_text("")
    cache = ShardCache(tmp_path, "thing", {}, 1)
    cache.write_rows(0, [{"values": torch.zeros(1)}])
    assert (cache.folder / "00000.safetensors").stat().st_mode == ordinary.stat().st_mode


def test_another_key_is_another_folder_and_the_order_of_its_entries_does_not_matter(tmp_path: Path) -> None:
    folders = [
        ShardCache(tmp_path, "thing", key, 1).folder
        for key in ({"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 1, "b": 3}, {"a": 1}, {"a": "1", "b": 2})
    ]
    assert folders[0] == folders[1]
    assert len(set(folders)) == 4
    assert ShardCache(tmp_path, "other", {"a": 1, "b": 2}, 1).folder not in folders
    assert json.loads((folders[0] / "key.json").read_text())["b"] == 2


def test_a_folder_that_was_made_from_something_else_is_refused(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, "thing", {"model": "a"}, 1)
    described = cache.folder / "key.json"
    described.write_text(described.read_text().replace('"a"', '"b"'))
    with pytest.raises(UserError, match=r"thing-.* does not match its key.json: delete it"):
        ShardCache(tmp_path, "thing", {"model": "a"}, 1)


@pytest.mark.parametrize("damage", ["empty", "truncated", "header", "garbage"])
def test_a_damaged_shard_is_refused_with_the_remedy(tmp_path: Path, damage: str) -> None:
    cache = ShardCache(tmp_path, "thing", {}, 1)
    cache.write_rows(0, [{"values": torch.arange(100.0)}])
    (shard,) = cache.folder.glob("*.safetensors")
    whole = shard.read_bytes()
    broken = {"empty": b"", "truncated": whole[:-8], "header": whole[:20], "garbage": b"\xff" * len(whole)}
    shard.write_bytes(broken[damage])
    with pytest.raises(UserError, match=r"00000\.safetensors is damaged .*delete it and run again"):
        cache.rows(0)


def test_a_shard_that_fails_while_it_is_written_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ShardCache(tmp_path, "thing", {}, 2)
    cache.write_rows(0, [{"values": torch.arange(3.0)}])

    def full(arrays: dict[str, torch.Tensor], path: Path) -> None:
        Path(path).write_bytes(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(distill.io.cache, "save_file", full)
    with pytest.raises(UserError, match=r"cannot be written .*no space.*: fix this and run"):
        cache.write_rows(1, [{"values": torch.arange(3.0)}])
    with pytest.raises(UserError, match=r"cannot be written .*no space.*: fix this and run"):
        cache.write_rows(0, [{"values": torch.arange(4.0)}])
    assert files(cache.folder) == {"key.json", "00000.safetensors"}
    assert cache.missing() == [1]
    assert [len(part) for part in cache.rows(0)] == [3]


def test_an_interrupted_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_atomically(path, lambda temporary: temporary.write_text("old"))

    def interrupted(temporary: Path) -> None:
        temporary.write_text("ne")
        assert temporary.parent == path.parent  # a rename within one file system
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, interrupted)
    assert path.read_text() == "old"
    assert files(path.parent) == {"file"}


def test_who_reads_a_file_that_is_being_replaced_sees_the_whole_old_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, lambda temporary: temporary.write_text("old"))
    with path.open() as reader:
        write_atomically(path, lambda temporary: temporary.write_text("new content"))
        assert reader.read() == "old"
    assert path.read_text() == "new content"


def test_a_shard_that_a_killed_process_left_half_written_is_not_taken_for_one(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, "thing", {}, 1)
    (cache.folder / ".00000.safetensors.123.tmp").write_bytes(b"half")
    assert cache.missing() == [0]


def test_the_hash_of_arrays_sees_their_borders_and_order_but_not_their_integer_type() -> None:
    def of(*lists: list[int], dtype: Any = np.int32) -> str:
        return hash_arrays(np.asarray(one, dtype=dtype) for one in lists)

    assert of([1, 2], [3]) == of([1, 2], [3], dtype=np.int64)
    assert len({of([1, 2], [3]), of([1], [2, 3]), of([3], [1, 2]), of([1, 2, 3]), of([1, 2, 3], [])}) == 5


# --- completions


PROMPTS = [np.asarray(ids, dtype=np.int32) for ids in ([2, 12, 5], [3], [9, 9, 9, 9], [4, 13], [7, 8, 9])]
DRAW = Sampling(temperature=1.0, max_new_tokens=12)


def written(
    model: LazyModel, cache: Path, sampling: Sampling = DRAW, **options: Any
) -> list[list[list[int]]]:
    settings = {"samples": 2, "batch_size": 2, "seed": 3, **options}
    found = sample_completions(model, PROMPTS, sampling, cache=cache, **settings)
    assert all(ids.dtype == np.int32 for group in found for ids in group)
    return [[ids.tolist() for ids in group] for group in found]


def failing_after(count: int, original: Callable[..., Any]) -> tuple[Callable[..., Any], list[int]]:
    """The function, which is killed at its call number `count`; and the calls that it has answered."""
    calls: list[int] = []

    def call(*arguments: Any, **options: Any) -> Any:
        if len(calls) == count:
            raise KeyboardInterrupt
        calls.append(len(calls))
        return original(*arguments, **options)

    return call, calls


@pytest.mark.slow
def test_completions_come_in_the_order_of_prompts_and_samples(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    model = lazy(tiny_pair[1])
    first = written(model, tmp_path)
    assert [len(group) for group in first] == [2] * 5
    assert first == written(lazy(tiny_pair[1]), tmp_path)  # from the cache
    assert len({tuple(ids) for group in first for ids in group}) > 5
    greedy = written(model, tmp_path, Sampling(max_new_tokens=6))
    for prompt, group in zip(PROMPTS, greedy, strict=True):
        (alone,) = generate(model.get(), [prompt.tolist()], Sampling(max_new_tokens=6), seed=0)
        assert group == [alone, alone]


@pytest.mark.slow
def test_batches_of_the_same_prompts_are_not_drawn_alike(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    prompts = [PROMPTS[0]] * 8
    drawn = sample_completions(
        lazy(tiny_pair[1]), prompts, DRAW, samples=1, batch_size=2, seed=0, cache=tmp_path
    )
    batches = [[ids.tolist() for (ids,) in drawn[start : start + 2]] for start in range(0, 8, 2)]
    assert all(one != other for n, one in enumerate(batches) for other in batches[:n])


@pytest.mark.slow
@pytest.mark.parametrize("after", [0, 1, 2])
def test_sampling_that_was_killed_goes_on_and_gives_the_same(
    tiny_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    clean = written(lazy(tiny_pair[1]), tmp_path / "clean")
    killed, _ = failing_after(after, generate)
    monkeypatch.setattr(distill.teacher.completions, "generate", killed)
    with pytest.raises(KeyboardInterrupt):
        written(lazy(tiny_pair[1]), tmp_path / "cut")
    counted, calls = failing_after(99, generate)
    monkeypatch.setattr(distill.teacher.completions, "generate", counted)
    torch.manual_seed(1234)  # a new process has another random state
    assert written(lazy(tiny_pair[1]), tmp_path / "cut") == clean
    assert len(calls) == 3 - after  # five prompts in batches of two are three shards
    (folder,) = (tmp_path / "cut").iterdir()
    assert not [name for name in files(folder) if name.endswith(".tmp")]


@pytest.mark.slow
def test_the_model_is_not_loaded_when_the_cache_is_complete(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    traces = traces_of(tiny_pair[1], 6)
    first = lazy(tiny_pair[1])
    written(first, tmp_path)
    cached_logprobs(first, traces, "teacher_logprobs", cache=tmp_path)
    assert first.loaded
    assert not any(parameter.requires_grad for parameter in first.get().model.parameters())
    second = lazy(tiny_pair[1])
    written(second, tmp_path)
    cached_logprobs(second, traces, "teacher_logprobs", cache=tmp_path)
    assert not second.loaded
    first.release()
    assert not first.loaded


@pytest.mark.slow
def test_whatever_changes_the_completions_is_another_cache(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    student, teacher = lazy(tiny_pair[0]), lazy(tiny_pair[1])
    written(teacher, tmp_path)
    written(student, tmp_path)
    written(teacher, tmp_path, seed=4)
    written(teacher, tmp_path, samples=1)
    written(teacher, tmp_path, batch_size=3)
    written(lazy(tiny_pair[1], dtype="bfloat16"), tmp_path)
    for sampling in (
        Sampling(0.5, 1.0, 0, 12),
        Sampling(1.0, 0.9, 0, 12),
        Sampling(1.0, 1.0, 3, 12),
        Sampling(1.0),
    ):
        written(teacher, tmp_path, sampling)
    sample_completions(teacher, PROMPTS[::-1], DRAW, samples=2, batch_size=2, seed=3, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 11


@pytest.mark.slow
def test_a_cache_of_completions_that_lost_a_shard_writes_that_one_anew(
    tiny_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = written(lazy(tiny_pair[1]), tmp_path)
    (folder,) = tmp_path.iterdir()
    (folder / "00001.safetensors").unlink()
    counted, calls = failing_after(99, generate)
    monkeypatch.setattr(distill.teacher.completions, "generate", counted)
    assert written(lazy(tiny_pair[1]), tmp_path) == clean
    assert len(calls) == 1


# --- scores


def traces_of(folder: Path, count: int, seed: int = 0) -> list[Trace]:
    vocabulary = len(AutoTokenizer.from_pretrained(folder))
    rng = np.random.default_rng(seed)
    return [
        Trace(
            Example(f"t{number}", ""),
            rng.integers(0, vocabulary, rng.integers(1, 20)).astype(np.int32),
            rng.integers(0, vocabulary, rng.integers(1, 30)).astype(np.int32),
        )
        for number in range(count)
    ]


def by_hand(folder: Path, traces: Sequence[Trace]) -> list[np.ndarray]:
    """One trace at a time, without padding, in float64, from the model's own logits."""
    model = AutoModelForCausalLM.from_pretrained(folder).double().eval()
    vocabulary = len(AutoTokenizer.from_pretrained(folder))
    result = []
    for trace in traces:
        ids = torch.from_numpy(np.concatenate([trace.prompt_ids, trace.completion_ids]).astype(np.int64))
        with torch.no_grad():
            logprobs = torch.log_softmax(model(input_ids=ids[None]).logits[0, :, :vocabulary], -1)
        start = len(trace.prompt_ids)
        result.append(np.asarray([logprobs[t - 1, ids[t]].item() for t in range(start, len(ids))]))
    return result


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("token_budget", [1, 64, 8192])
def test_scores_are_the_models_own_log_probabilities_whatever_the_batches(
    tiny_pair: tuple[Path, Path], tmp_path: Path, which: int, token_budget: int
) -> None:
    traces = traces_of(tiny_pair[which], 13)
    found = cached_logprobs(
        lazy(tiny_pair[which]), traces, "teacher_logprobs", cache=tmp_path, token_budget=token_budget
    )
    for values, expected, trace in zip(found, by_hand(tiny_pair[which], traces), traces, strict=True):
        assert values.dtype == np.float32
        assert values.shape == trace.completion_ids.shape
        np.testing.assert_allclose(values, expected, atol=1e-5)


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_scoring_that_was_killed_goes_on_and_gives_the_same(
    tiny_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    monkeypatch.setattr(distill.teacher.logprobs, "_SCORED_PER_SHARD", 4)
    traces = traces_of(tiny_pair[1], 14)
    original = distill.teacher.logprobs.label_logprobs

    def scored(folder: str) -> list[np.ndarray]:
        return [*cached_logprobs(lazy(tiny_pair[1]), traces, "teacher_logprobs", cache=tmp_path / folder)]

    clean = scored("clean")
    killed, _ = failing_after(after, original)
    monkeypatch.setattr(distill.teacher.logprobs, "label_logprobs", killed)
    with pytest.raises(KeyboardInterrupt):
        scored("cut")
    counted, calls = failing_after(99, original)
    monkeypatch.setattr(distill.teacher.logprobs, "label_logprobs", counted)
    resumed = scored("cut")
    assert len(calls) == 4 - after
    assert all(np.array_equal(one, other) for one, other in zip(resumed, clean, strict=True))
    (folder,) = (tmp_path / "cut").iterdir()
    assert not [name for name in files(folder) if name.endswith(".tmp")]


@pytest.mark.slow
def test_scores_of_another_model_signal_or_trace_are_another_cache(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    traces = traces_of(tiny_pair[1], 3)
    teacher = lazy(tiny_pair[1])
    cached_logprobs(teacher, traces, "teacher_logprobs", cache=tmp_path)
    cached_logprobs(lazy(tiny_pair[0]), traces, "teacher_logprobs", cache=tmp_path)
    cached_logprobs(teacher, traces, "initial_logprobs", cache=tmp_path)
    cached_logprobs(teacher, traces[::-1], "teacher_logprobs", cache=tmp_path)
    cached_logprobs(teacher, traces, "teacher_logprobs", cache=tmp_path, sampling=Sampling(0.7))
    cached_logprobs(lazy(tiny_pair[1], dtype="bfloat16"), traces, "teacher_logprobs", cache=tmp_path)
    # The border between prompt and completion alone:
    moved = [
        Trace(t.example, np.append(t.prompt_ids, t.completion_ids[:1]), t.completion_ids[1:]) for t in traces
    ]
    cached_logprobs(teacher, moved, "teacher_logprobs", cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 7


def test_a_cache_that_does_not_fit_the_traces_is_refused(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    traces = traces_of(tiny_pair[1], 3)
    cached_logprobs(lazy(tiny_pair[1]), traces, "teacher_logprobs", cache=tmp_path)
    (folder,) = tmp_path.iterdir()
    stored = load_file(folder / "00000.safetensors")
    lengths = stored["lengths"]
    lengths[0] -= 1
    lengths[1] += 1
    del stored["checksums"]  # as an earlier version wrote it, which kept none
    (folder / "00000.safetensors").unlink()  # the old one is mapped still
    save_file({**stored, "lengths": lengths}, folder / "00000.safetensors")
    with pytest.raises(UserError, match=r"teacher_logprobs-.* does not fit trace t0: delete it"):
        cached_logprobs(lazy(tiny_pair[1]), traces, "teacher_logprobs", cache=tmp_path)


def test_a_complete_cache_with_a_damaged_shard_is_refused_with_the_remedy(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    traces = traces_of(tiny_pair[1], 3)
    cached_logprobs(lazy(tiny_pair[1]), traces, "teacher_logprobs", cache=tmp_path)
    (folder,) = tmp_path.iterdir()
    shard = folder / "00000.safetensors"
    whole = shard.read_bytes()
    shard.unlink()  # the old one is mapped still
    shard.write_bytes(whole[:-3])
    with pytest.raises(UserError, match=r"delete it and run again"):
        cached_logprobs(lazy(tiny_pair[1]), traces, "teacher_logprobs", cache=tmp_path)


def warped_by_hand(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Probabilities after temperature, then the k best, then the smallest nucleus of at least top_p."""
    scaled = logits.astype(np.float64) / sampling.temperature
    best = np.argsort(-scaled)
    if sampling.top_k:
        best = best[: sampling.top_k]
    kept = np.exp(scaled[best] - scaled[best[0]])
    kept /= kept.sum()
    size = (
        int(np.searchsorted(np.cumsum(kept), sampling.top_p - 1e-12)) + 1 if sampling.top_p < 1 else len(kept)
    )
    result = np.zeros(len(logits))
    result[best[:size]] = kept[:size] / kept[:size].sum()
    return result


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(0.7),
        Sampling(1.6),
        Sampling(1.0, top_k=5),
        Sampling(1.0, top_k=1),
        Sampling(1.0, top_p=0.8),
        Sampling(0.7, top_p=0.6),
        Sampling(1.3, top_p=0.9, top_k=12),
        Sampling(1.0, top_p=1e-6),
        Sampling(1.0, top_k=1000),
    ],
)
def test_sampled_log_probabilities_are_those_of_the_distribution_that_is_drawn_from(
    sampling: Sampling,
) -> None:
    generator = torch.Generator().manual_seed(0)
    head = Head(torch.randn(40, 8, generator=generator), torch.randn(30, 8, generator=generator))
    labels = torch.randint(0, 30, (40,), generator=generator)
    logits = (head.hidden.double() @ head.weight.double().T).numpy()
    expected, outside = [], 0
    for row, label in zip(logits, labels.tolist(), strict=True):
        probabilities = warped_by_hand(row, sampling)
        if probabilities[label] == 0:  # a label was drawn, so it counts as inside
            outside += 1
            scaled = np.exp(row / sampling.temperature)
            expected.append(scaled[label] / (scaled[label] + scaled[probabilities > 0].sum()))
        else:
            expected.append(probabilities[label])
    for chunk_size in (7, 256):
        found = sampled_logprobs(head, labels, sampling, chunk_size).double().exp().numpy()
        np.testing.assert_allclose(found, expected, atol=1e-6)
    if sampling.top_k == 1 or sampling.top_p < 0.1:
        assert outside > 20  # or the test does not show what becomes of them


@pytest.mark.slow
def test_every_token_of_the_models_own_completions_could_have_been_sampled(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """Drawing and scoring use one distribution: nothing that was drawn is impossible under it."""
    model = lazy(tiny_pair[1])
    sampling = Sampling(temperature=0.7, top_p=0.8, top_k=6, max_new_tokens=20)
    drawn = sample_completions(model, PROMPTS, sampling, samples=6, batch_size=5, seed=0, cache=tmp_path)
    traces = [
        Trace(Example(str(number), ""), prompt, ids)
        for number, (prompt, group) in enumerate(zip(PROMPTS, drawn, strict=True))
        for ids in group
    ]
    sampled = cached_logprobs(model, traces, "sampler_logprobs", cache=tmp_path, sampling=sampling)
    plain = cached_logprobs(model, traces, "teacher_logprobs", cache=tmp_path)
    assert all(np.isfinite(values).all() for values in sampled)
    assert all((s > p).all() for s, p in zip(sampled, plain, strict=True))  # fewer candidates, more for each
    unwarped = cached_logprobs(model, traces, "sampler_logprobs", cache=tmp_path, sampling=Sampling(1.0))
    assert all(np.array_equal(u, p) for u, p in zip(unwarped, plain, strict=True))


def test_greedy_traces_have_no_sampling_distribution() -> None:
    head = Head(torch.randn(2, 3), torch.randn(5, 3))
    with pytest.raises(UserError, match=r"behavior=sampler needs traces that were sampled"):
        sampled_logprobs(head, torch.tensor([1, 2]), Sampling(0.0))


def test_scoring_leaves_no_gradient_and_the_model_in_eval_mode(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    model = lazy(tiny_pair[1])
    lm: LanguageModel = model.get()
    cached_logprobs(model, traces_of(tiny_pair[1], 3), "teacher_logprobs", cache=tmp_path)
    assert not lm.model.training
    assert all(parameter.grad is None for parameter in lm.model.parameters())


def test_nothing_to_write_or_score_gives_nothing(tiny_pair: tuple[Path, Path], tmp_path: Path) -> None:
    model = lazy(tiny_pair[1])
    assert sample_completions(model, [], DRAW, samples=2, batch_size=2, seed=0, cache=tmp_path) == []
    assert [*cached_logprobs(model, [], "teacher_logprobs", cache=tmp_path)] == []
    assert not model.loaded
