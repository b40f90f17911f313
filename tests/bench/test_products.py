"""Tests that the bound of the bench is made of the products of a real step, and that reports judge by it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from distill.bench import products, report, running
from distill.bench.comparison import Comparison, Contestant, Goal, Rounds, Spread, both_at_bound, over_bound
from distill.bench.comparisons import COMPARISONS
from distill.bench.measurement import Measurement, Setting
from distill.bench.meter import Meter
from distill.errors import UserError

SHORT = Setting(shape="tiny", rows=2, prompt=5, completion=7, warmup=1, steps=1)  # attention: one block


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """Of tiny models, made once."""
    return replace(SHORT, inputs=str(tmp_path_factory.mktemp("bound")))


def counted(step: Sequence[products.Product]) -> dict[str, int]:
    """torch's count of FLOPs by operation."""
    with FlopCounterMode(display=False) as counter:
        for product in step:
            product.compute()
    return {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}


def of_addition(into: Any, a: Sequence[int], b: Sequence[int], **options: Any) -> int:
    """FLOPs of adding a product of matrices of these shapes in place."""
    return 2 * a[0] * a[1] * b[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "checkpointed"),
    [("sft", False), ("sft", True), ("forward_kl", True), ("reverse_kl", False), ("jsd", True)],
)
def test_the_bound_multiplies_what_a_real_step_multiplies(
    setting: Setting, name: str, checkpointed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch counts the second step of our run, with attention in plain products. Its counter knows neither
    the CPU's kernel of attention, nor the addition of a product in place, which is told to it."""
    setting = replace(setting, gradient_checkpointing=checkpointed)
    load = AutoModelForCausalLM.from_pretrained

    def in_products(*words: Any, **options: Any) -> Any:
        return load(*words, **options, attn_implementation="eager")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", in_products)
    totals = []
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: of_addition}) as counter:

        class Counting(Meter):
            def step(self, loss: Any, tokens: int) -> None:
                totals.append(counter.get_total_flops())
                super().step(loss, tokens)

        COMPARISONS[name].contestant("ours")(setting, Counting(setting))
    meter = Meter(setting)
    COMPARISONS[name].contestant("products")(setting, meter)
    assert meter.figures["flops_per_step"] == totals[1] - totals[0]
    step = products.training_step(setting, teacher=name != "sft")
    assert sum(counted(step).values()) == meter.figures["flops_per_step"]
    assert meter.tokens == [2 * 7] * 2


@pytest.mark.slow
def test_attention_multiplies_blocks_of_queries_with_the_keys_up_to_them() -> None:
    """256 tokens in 4 blocks of 64: 10 of 16 blocks of query-key pairs. Linear layers multiply all tokens."""
    setting = replace(SHORT, rows=1, prompt=200, completion=56)
    by_operation = counted(step := products.training_step(setting, teacher=False))
    pairs = 256 * 256 * 10 / 16
    attention = 2 * 6 * 2 * pairs * 64  # layers, products, FLOPs, heads × width
    assert by_operation["aten.bmm"] + by_operation["aten.baddbmm"] == attention
    linear = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
    assert by_operation["aten.mm"] == 6 * (256 * linear + 56 * 64 * 512)
    assert sum(product.flops for product in step) == sum(by_operation.values())


def test_the_head_is_multiplied_in_the_chunks_of_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "fitting_chunk", lambda head: 5)
    step = products.training_step(replace(SHORT, gradient_checkpointing=True), teacher=True)
    chunks = [product for product in step if product.flops in (2 * 5 * 64 * 512, 2 * 4 * 64 * 512)]
    assert [product.flops // (2 * 64 * 512) for product in chunks] == [5] * 8 + [4] * 4
    assert sum(counted(chunks).values()) == 4 * 2 * 14 * 64 * 512


def test_layers_share_no_weights_and_only_activations_that_are_not_kept() -> None:
    for checkpointed in (False, True):
        setting = replace(SHORT, gradient_checkpointing=checkpointed)
        body = products.Body(setting, products.Scratch(), trained=True)
        for of in (lambda layer: layer.weights, lambda layer: layer.gradients):
            places = [tensor.data_ptr() for layer in body.layers for tensor in of(layer).values()]
            assert len(set(places)) == 2 * 7
        read = {id(layer.activations.queries) for layer in body.layers}
        assert len(read) == (1 if checkpointed else 2)


def test_the_bound_is_not_measured_on_a_gpu() -> None:
    gpu = replace(SHORT, device="cuda")
    with pytest.raises(UserError, match="on a GPU attention's products cannot be had"):
        products.products(gpu, Meter(SHORT))


# What a report says of it.


def nothing(setting: Setting, meter: Meter) -> None:
    """A contestant that is never run here."""


def measured(*seconds: float) -> list[list[Measurement]]:
    return [[Measurement([one], [10], 2**20, [2.0], {"torch": "1"})] for one in seconds]


def bounded(*goals: Goal) -> Comparison:
    contestants = (
        Contestant("a", "ours", nothing),
        Contestant("bound", "the products", nothing, is_bound=True),
        Contestant("kept", "ours, kept", nothing, keeps_activations=True),
        Contestant("b", "theirs", nothing),
        Contestant("c", "others", nothing),
    )
    return Comparison("bounded", "five things", contestants, goals)


FASTER = (
    Goal("tokens_per_second", "a", "b", at_least=1.5),
    Goal("tokens_per_second", "a", "c", at_least=1.5),
    Goal("peak_bytes", "a", "b", at_most=0.5),
    Goal("seconds_per_step", "a", "bound", at_most=1.12),
)


def judged(seconds_of_ours: float) -> tuple[list[str], dict[str, list[str]]]:
    """The goals' lines, and the table's rows by contestant."""
    rounds: Rounds = {
        "a": measured(seconds_of_ours, 10 * seconds_of_ours),
        "bound": [[replace(one, losses=[])] for (one,) in measured(1.0, 10.0)],  # as they compute none
        "kept": measured(1.0, 10.0),
        "b": measured(1.1, 11.0),
        "c": measured(1.3, 13.0),
    }
    lines = report.markdown(running.Result(bounded(*FASTER), [Setting()], rounds)).splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    return [line for line in lines if line.startswith("- ")], {row[0]: row[1:] for row in rows}


def test_of_two_that_are_at_the_bound_no_ratio_is_printed() -> None:
    goals, rows = judged(1.05)
    assert goals == [
        "- both are at the bound: tokens/s, ours ÷ theirs ≥ 1.5",
        "- NOT reached: tokens/s, ours ÷ others ≥ 1.5: 1.24 [1.24, 1.24]",
        "- NOT reached: peak, ours ÷ theirs ≤ 0.5: 1 [1, 1]",
        "- reached: seconds a step, ours ÷ the products ≤ 1.12: 1.05 [1.05, 1.05]",
    ]
    assert rows["ours"][-1] == "1.05 [1.05, 1.05], at the bound"
    assert rows["theirs"][3:5] == ["both are at the bound", "1 [1, 1]"]
    assert rows["theirs"][-1] == "1.1 [1.1, 1.1], at the bound"
    assert rows["others"][3] == "1.24 [1.24, 1.24]"
    assert rows["others"][-1] == "1.3 [1.3, 1.3]"
    assert rows["the products"][2:] == ["", "", "", "", "", ""]
    assert rows["ours, kept"][-1] == ""  # it multiplies less than this bound


def test_a_peer_alone_at_the_bound_is_compared() -> None:
    goals, rows = judged(1.2)
    assert goals[0] == "- NOT reached: tokens/s, ours ÷ theirs ≥ 1.5: 0.917 [0.917, 0.917]"
    assert goals[3] == "- NOT reached: seconds a step, ours ÷ the products ≤ 1.12: 1.2 [1.2, 1.2]"
    assert rows["theirs"][3] == "0.917 [0.917, 0.917]"
    assert rows["theirs"][-1].endswith("at the bound")
    assert rows["ours"][-1] == "1.2 [1.2, 1.2]"


def test_the_bound_is_of_the_same_round_and_of_who_keeps_activations_too() -> None:
    rounds: Rounds = {"a": measured(1.0, 4.0, 9.0), "bound": measured(1.0, 2.0, 3.0), "kept": [], "b": []}
    assert over_bound("a", bounded(), rounds) == Spread(2.0, 1.0, 3.0)
    assert over_bound("b", bounded(), rounds) is None
    assert over_bound("kept", bounded(), rounds) is None
    assert over_bound("bound", bounded(), rounds) is None
    assert not both_at_bound("a", "b", bounded(), rounds)
    for kind in ("forward_kl", "reverse_kl", "jsd"):
        comparison = COMPARISONS[kind]
        found = {one.name: comparison.bound_of(one.name) for one in comparison.contestants}
        names = {name: None if bound is None else bound.name for name, bound in found.items()}
        assert names["ours"] == names["trl"] == "products"
        assert names["ours_kept"] == "products_kept"
        assert names["products"] is None


@pytest.mark.slow
def test_our_run_and_the_bound_are_measured_by_the_command(setting: Setting, tmp_path: Path) -> None:
    result = running.run(
        replace(
            COMPARISONS["sft"],
            contestants=tuple(
                one for one in COMPARISONS["sft"].contestants if one.name in ("ours", "products")
            ),
            goals=(Goal("seconds_per_step", "ours", "products", at_most=1.12),),
        ),
        setting,
        1,
        tmp_path,
        say=lambda text: None,
    )
    assert not result.absent
    text = report.markdown(result)
    assert "seconds a step, distill ÷ matrix products alone ≤ 1.12" in text
    assert torch.tensor(result.rounds["products"][0][0].seconds).gt(0).all()
