"""Tests that the preallocated KV cache equals transformers' cache, also when rows are removed."""

from typing import cast

import pytest
import torch
from test_generation_families import FAMILIES, tiny
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from distill.generation.kv_cache import GrowingLayer, growing_cache, keep_rows, put_rows

LIMIT = 400


def states(rows: int, tokens: int, seed: int) -> tuple[Tensor, Tensor]:
    """Keys of width 4 and values of width 3, of two heads."""
    generator = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(rows, 2, tokens, width, generator=generator) for width in (4, 3))
    return keys, values


def same(layer: DynamicLayer, reference: DynamicLayer) -> None:
    assert layer.get_seq_length() == reference.get_seq_length()
    assert layer.get_mask_sizes(1) == reference.get_mask_sizes(1)
    assert torch.equal(layer.keys, reference.keys)
    assert torch.equal(layer.values, reference.values)


def go_on(cache: Cache, reference: DynamicLayer, rows: int, steps: range) -> None:
    """A token a step, in both layers of the cache: one of ours and one of transformers'."""
    for step in steps:
        new = states(rows, 1, seed=step)
        reference.update(*new)
        for number in range(2):
            cache.update(*new, number)
    layer = cache.layers[0]
    assert isinstance(layer, GrowingLayer)
    same(layer, reference)
    assert torch.equal(cache.layers[1].keys, reference.keys)


def test_it_grows_as_by_concatenation_with_few_copies() -> None:
    layer, reference = GrowingLayer(LIMIT), DynamicLayer()
    buffers = set()
    for step in range(LIMIT - 8):
        new = states(3, 9 if step == 0 else 1, seed=step)
        for ours, theirs in zip(layer.update(*new), reference.update(*new), strict=True):
            assert torch.equal(ours, theirs)
        buffers.add(layer.keys.untyped_storage().data_ptr())
        assert layer.keys.untyped_storage().nbytes() <= 3 * 2 * LIMIT * 4 * 4
    same(layer, reference)
    assert len(buffers) < 8


@pytest.mark.parametrize("staying", [[0, 1, 3, 5], [2], [4, 5], [0, 1, 2], [1, 2, 3, 4, 5]])
def test_rows_that_stay_go_on_where_they_are_put(staying: list[int]) -> None:
    layer, reference = GrowingLayer(LIMIT), DynamicLayer()
    cache = Cache(layers=[layer, DynamicLayer()])
    for step in range(5):
        new = states(6, 40, seed=step)
        reference.update(*new)
        for number in range(2):
            cache.update(*new, number)
    places = keep_rows(cache, staying, torch.device("cpu"))
    assert sorted(places.tolist()) == staying
    assert all(place == row for place, row in enumerate(places.tolist()) if row < len(staying))
    reference.batch_select_indices(places)
    go_on(cache, reference, len(staying), range(5, 9))


@pytest.mark.parametrize("places", [[0, 0, 0], [1, 0, 1, 2], [2]])
@pytest.mark.parametrize("changed", [False, True])
def test_rows_may_go_on_from_one(places: list[int], changed: bool) -> None:
    layer, reference = GrowingLayer(LIMIT), DynamicLayer()
    cache = Cache(layers=[layer, DynamicLayer(), GrowingLayer(LIMIT)])
    new = states(3, 70, seed=0)
    reference.update(*new)
    for number in range(2):
        cache.update(*new, number)
    if changed:
        for one in (reference, *cache.layers[:2]):
            one.crop(-5)
    for one in (cache, reference):
        one.reorder_cache(torch.tensor(places))
    go_on(cache, reference, len(places), range(1, 90))


def test_what_transformers_does_to_a_layer_is_gone_on_from() -> None:
    layer, reference = GrowingLayer(LIMIT), DynamicLayer()
    for step, change in enumerate(
        (
            lambda one: one.crop(-2),
            lambda one: one.batch_repeat_interleave(2),
            lambda one: one.reorder_cache(torch.tensor([3, 3, 0])),
            lambda one: one.batch_select_indices(torch.tensor([2, 0, 1])),
            lambda one: one.reset(),
        )
    ):
        rows = 6 if step == 2 else 3
        for one in (layer, reference):
            one.update(*states(rows, 5, seed=step))
            change(one)
    for one in (layer, reference):
        one.update(*states(3, 5, seed=9))
    same(layer, reference)


def test_rows_are_picked_of_what_another_hand_has_put_in_place() -> None:
    layer, reference = GrowingLayer(LIMIT), DynamicLayer()
    for one in (layer, reference):
        one.update(*states(3, 5, seed=0))
        one.batch_repeat_interleave(2)
        one.reorder_cache(torch.tensor([5, 3, 0, 0]))
        one.update(*states(4, 1, seed=1))
    same(layer, reference)


def test_rows_leave_also_what_another_hand_has_changed() -> None:
    layer, reference = GrowingLayer(LIMIT), DynamicLayer()
    for one in (layer, reference):
        one.update(*states(4, 5, seed=0))
        one.crop(-1)
    places = keep_rows(Cache(layers=[layer, GrowingLayer(LIMIT)]), [1, 3], torch.device("cpu"))
    reference.batch_select_indices(places)
    for one in (layer, reference):
        one.update(*states(2, 1, seed=1))
    same(layer, reference)


def test_rows_of_smaller_caches_end_at_the_same_place_behind_zeros() -> None:
    groups = {(3, 0): 90, (2,): 70, (1, 4): 100}  # rows, and how many tokens they have
    cache = Cache(layers=[GrowingLayer(LIMIT), GrowingLayer(LIMIT)])
    whole = [torch.zeros(5, 2, 100, width) for width in (4, 3)]
    for rows, tokens in groups.items():
        part, new = Cache(layers=[GrowingLayer(tokens) for _ in range(2)]), states(len(rows), tokens, tokens)
        for number in range(2):
            part.update(*new, number)
        put_rows(cache, part, torch.tensor(rows), 5, 100)
        for both, one in zip(whole, new, strict=True):
            both[list(rows), :, 100 - tokens :] = one
    reference = DynamicLayer()
    reference.update(*whole)
    layer = cast(GrowingLayer, cache.layers[0])
    same(layer, reference)
    go_on(cache, reference, 5, range(1, 70))


def test_a_layer_without_keys_of_its_own_stays_empty() -> None:
    cache, part = (Cache(layers=[GrowingLayer(LIMIT), GrowingLayer(LIMIT)]) for _ in range(2))
    part.update(*states(2, 5, 0), 0)
    put_rows(cache, part, torch.tensor([1, 0]), 2, 5)
    assert cache.layers[0].get_seq_length() == 5
    assert cache.layers[1].keys is None


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_of_full_attention_grow_and_others_are_transformers_own(family: str) -> None:
    model = tiny(family).model
    cache = growing_cache(model, LIMIT)
    assert cache is not None
    theirs = DynamicCache(config=model.config)
    expected = [GrowingLayer if type(one) is DynamicLayer else type(one) for one in theirs.layers]
    assert [type(layer) for layer in cache.layers] == expected
    assert (GrowingLayer in expected) == (family != "mamba")
