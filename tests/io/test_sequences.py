"""Tests of sequences on disk: they are the lists that they stand for, and hold next to nothing."""

import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import typechecking

from distill.errors import UserError
from distill.io import cache
from distill.io.cache import ShardCache, cached_arrays
from distill.io.sequences import Lazy, Spool, changed, pack, spooled, take, unpack


def test_a_block_gives_back_what_was_packed() -> None:
    value = {"text": "é\ud800\n", "list": [1, None, 0.1, True], "nested": {"a": []}}
    arrays = [np.arange(3, dtype=np.int32), np.zeros(0), np.asarray([0.1, -np.inf]), np.asarray([True])]
    again, others = unpack(pack(value, arrays))
    assert again == value
    for one, other in zip(arrays, others, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
        other[:] = 0  # they may be changed
    assert unpack(pack((1, Path("a")))) == ([[1, "a"]][0], [])


def test_a_lazy_sequence_is_the_list_of_its_items() -> None:
    rng = random.Random(0)
    listed = [rng.random() for _ in range(20)]
    lazy = Lazy(20, listed.__getitem__)
    places = [rng.randrange(20) for _ in range(30)]
    assert [*lazy] == listed
    assert (lazy[-1], lazy[3:7], lazy[::-2]) == (listed[-1], listed[3:7], listed[::-2])
    assert [*take(lazy, np.asarray(places))] == take(listed, places) == [listed[place] for place in places]
    assert [*changed(lazy, lambda place, item: place * item)] == [p * one for p, one in enumerate(listed)]
    with pytest.raises(IndexError):
        lazy[20]


def test_blocks_come_back_between_writes_and_their_order_makes_the_fingerprint(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for place, block in enumerate((b"one", b"", b"three")):
        spool.append(block)
        assert [spool[at] for at in range(place + 1)] == [b"one", b"", b"three"][: place + 1]
    assert not [*tmp_path.iterdir()]  # the file has no name
    assert spool.fingerprint == spooled([b"one", b"", b"three"]).fingerprint
    assert spool.fingerprint != spooled([b"one", b"three", b""]).fingerprint
    (tmp_path / "a file").touch()
    assert len(spooled([b"x"], tmp_path / "a file")) == 1  # somewhere else


@pytest.mark.slow
def test_a_block_costs_eight_bytes_of_memory() -> None:
    tracemalloc.start()
    spool = spooled(bytes(1000) for _ in range(20_000))
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(spool) == 20_000
    assert held < 20_000 * 16 + (2 << 20)  # and a buffer


def test_cached_arrays_are_made_once_and_go_on_where_they_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_ITEMS", 4)
    made: list[int] = []

    def make(place: int) -> list[np.ndarray]:
        if place == 9 and 9 not in made:
            made.append(place)
            raise KeyboardInterrupt
        made.append(place)
        return [np.arange(place, dtype=np.int32), np.asarray([-place], dtype=np.int32)]

    def ask() -> list[list[list[int]]]:
        found = cached_arrays(tmp_path, "x", {"key": 1}, 10, make, label="x")
        return [[own.tolist() for own in arrays] for arrays in found]

    with pytest.raises(KeyboardInterrupt):
        ask()
    assert ask() == ask() == [[[*range(place)], [-place]] for place in range(10)]
    assert made == [*range(10), 8, 9]


def test_an_array_that_a_disk_has_changed_is_refused(tmp_path: Path) -> None:
    cached_arrays(tmp_path, "x", {}, 3, lambda place: [np.full(9, place, np.int32)], label="x")
    file = next(tmp_path.glob("*/*.safetensors"))
    content = bytearray(file.read_bytes())
    content[content.rindex(bytes(np.full(9, 2, np.int32)))] ^= 1
    file.write_bytes(content)
    typechecking.check_types(False)  # which read an array at random, and would find the damage first
    with pytest.raises(UserError, match=r"00000\.safetensors is damaged .*delete it and run again"):
        list(cached_arrays(tmp_path, "x", {}, 3, lambda place: [], label="x"))


def test_all_rows_of_a_cache_are_those_of_its_shards(tmp_path: Path) -> None:
    import torch

    shards = [range(3), range(3, 4), range(4, 9)]
    store = ShardCache(tmp_path, "x", {}, 3)
    rows = store.fill(
        shards, [1] * 9, lambda part, _: [{"a": torch.arange(item)} for item in part], label="x"
    )
    assert rows.lengths.tolist() == [len(row) for row in rows] == [*range(9)]
    assert [*rows] == [row for index in range(3) for row in store.rows(index)]
