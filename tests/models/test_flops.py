"""Tests of FLOPs computed from shapes: against torch, published sizes, and manual counts of runs."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import test_training
import torch
from test_training import column, rows, run
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import distill.generation.reader
import distill.models.flops
import distill.teacher.completions
import distill.training.rollouts
from distill.data.layout import common_prefix
from distill.data.trace import Example, Trace
from distill.errors import UserError
from distill.generation.decode import generate
from distill.generation.sampling import Sampling
from distill.losses.chunked import weighted_token_losses
from distill.losses.divergence import cross_entropy
from distill.losses.inputs import WeightedTerm
from distill.models.find import find_model
from distill.models.flops import Meter, Work, _Hooks, causal_pairs, cost_of, head_flops, reading, writing
from distill.models.language_model import LanguageModel
from distill.models.lora import add_lora
from distill.models.lora_settings import Lora
from distill.training.datamodule import TraceOrder

traces = test_training.traces  # the fixture

SMALL = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SMALL,
    "smollm2": SMALL | {"model_type": "llama", "tie_word_embeddings": True, "num_key_value_heads": 1},
    "qwen2": SMALL,
    "qwen3": SMALL | {"head_dim": 32, "tie_word_embeddings": True},
    "gpt2": {"vocab_size": 160, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128},
}
QWEN = {  # config.json of Qwen2.5, and the sizes that its model cards give: all, and without embeddings
    "0.5B": (896, 4864, 24, 14, 2, 151936, True, 494_032_768, 0.36e9),
    "1.5B": (1536, 8960, 28, 12, 2, 151936, True, 1_543_714_304, 1.31e9),
    "7B": (3584, 18944, 28, 28, 4, 152064, False, 7_615_616_512, 6.53e9),
}


def arguments(*given: Any) -> list[str]:
    """Batches side by side, as they are counted here."""
    return [*test_training.arguments(*given), "data.layout=padded"]


def small(family: str) -> Any:
    values = {"model_type": family} | FAMILIES[family]
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    # The CPU's fused attention is unknown to torch's counter.
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager")


def lm_of(model: Any) -> LanguageModel:
    class Tokenizer:
        pad_token_id, eos_token_id, chat_template = 0, 1, None

        def get_vocab(self) -> dict[str, int]:
            return {str(number): number for number in range(150)}  # fewer than the matrix has rows

    return LanguageModel(model, Tokenizer(), find_model("package:distill/tiny/student", key="model"))


def square_excess(model: Any, length: int, batch: int) -> float:
    """What eager attention computes of the pairs that no query may see, forward."""
    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    hidden = length * length - length * (length + 1) / 2
    return 2 * 2 * config.num_hidden_layers * config.num_attention_heads * width * hidden * batch


@pytest.mark.parametrize("family", FAMILIES)
def test_a_training_step_has_the_flops_that_torch_counts(family: str) -> None:
    torch.manual_seed(0)
    model = small(family)
    lm = lm_of(model)
    meter = Meter([lm])
    ids = torch.randint(0, 150, (3, 40))
    mask = torch.zeros(3, 39, dtype=torch.bool)
    mask[:, 25:] = True
    with FlopCounterMode(display=False) as counter:
        head = lm.completion_head(ids, mask)
        forward = counter.get_total_flops()
        term = WeightedTerm(cross_entropy, torch.ones(int(mask.sum())))
        result = weighted_token_losses(head, ids[:, 1:][mask], [term], chunk_size=8)
        result.total.backward()
    # Three products: the logits, and the gradients of the states and of the matrix. The last is summed in
    # place (addmm_), which torch's counter passes by.
    assert torch.ops.aten.addmm_ not in counter.flop_registry
    found = meter.take() + 2 * head_flops(head) + 3 * square_excess(model, 40, 3)
    assert found == pytest.approx(counter.get_total_flops(), rel=1e-3)
    body = cost_of(model, family).forward(Work(3 * 40, 3 * causal_pairs(40))) + square_excess(model, 40, 3)
    assert body == pytest.approx(forward, rel=1e-3)
    assert meter.take() == 0.0
    with torch.no_grad():
        lm.completion_head(ids, mask)
    assert meter.take() + square_excess(model, 40, 3) == pytest.approx(forward, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["smollm2", "qwen3"])
def test_writing_has_the_flops_that_torch_counts(family: str) -> None:
    torch.manual_seed(0)
    model = small(family)
    lm = lm_of(model)
    meter = Meter([lm])
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [5]]
    with FlopCounterMode(display=False) as counter:
        written = generate(
            lm, prompts, Sampling(temperature=1.0, max_new_tokens=20), seed=1, end_ids=range(3, 12)
        )
    # The prompts are read as a square; what is written behind them sees nothing that it may not.
    excess = square_excess(model, 6, 3)
    found = meter.take()
    assert found + excess == pytest.approx(counter.get_total_flops(), rel=1e-3)
    lengths = [len(ids) for ids in written]
    assert len(set(lengths)) > 1
    work = writing([3, 6, 1], lengths, device="cpu")
    assert cost_of(model, family, 150).forward(work) == found


def test_equal_prompts_are_read_once_and_counted_once(student: LanguageModel) -> None:
    meter = Meter([student])
    prompts = [[5] * 12, [6] * 10, [5] * 12, [5] * 12]
    written = generate(student, prompts, Sampling(temperature=1.0, max_new_tokens=16), seed=0)
    work = writing([12, 10, 12, 12], [len(ids) for ids in written], distinct=[12, 10], device="cpu")
    assert cost_of(student.model, "student").forward(work) == meter.take()


def test_what_all_prompts_begin_with_is_read_once_and_counted_once(student: LanguageModel) -> None:
    meter = Meter([student])
    begin = list(range(2, 12)) * 4
    prompts = [begin + [2] * count for count in (3, 30, 8)] + [begin + [3] * 3]
    written = generate(student, prompts, Sampling(temperature=1.0, max_new_tokens=16), seed=0)
    assert common_prefix(prompts, "cpu") == 40
    work = writing(list(map(len, prompts)), [len(ids) for ids in written], device="cpu", prefix=40)
    assert cost_of(student.model, "student").forward(work) == meter.take()


@pytest.mark.parametrize(
    ("prompts", "count"),
    [
        ([[5] * 40 + [6], [5] * 40 + [7, 8], [5] * 40 + [6, 9]], 40),
        ([[5] * 41, [5] * 44, [5] * 60], 40),  # the last token of each stays
        ([[5] * 40 + [6], [5] * 30 + [7], [5] * 40 + [8]], 0),  # spares 60 tokens
        ([[5] * 200], 0),
        ([[6] + [5] * 200, [7] + [5] * 200], 0),
    ],
)
def test_a_common_beginning_counts_where_it_spares_enough(prompts: list[list[int]], count: int) -> None:
    assert common_prefix(prompts, "cpu") == count
    assert common_prefix(prompts, "cuda") == 0


def test_a_completion_that_ends_at_the_context_costs_nothing_more(student: LanguageModel) -> None:
    meter = Meter([student])
    prompts = [[5] * 120, [6] * 10, [7] * 118]  # of a context of 128
    written = generate(student, prompts, Sampling(temperature=1.0, max_new_tokens=16), seed=0)
    work = writing([120, 10, 118], [len(ids) for ids in written], device="cpu")
    assert cost_of(student.model, "student").forward(work) == meter.take()


def test_a_cache_is_seen_under_the_name_of_any_version_of_transformers(
    student: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.generation.utils.ALL_CACHE_NAMES", ["cache", "past_key_values"])
    hooks = _Hooks(meter := Meter([]), student, cost := cost_of(student.model, "student"))
    ids, cache = torch.zeros(2, 3, dtype=torch.long), SimpleNamespace(get_seq_length=lambda: 7)
    for given in ({"cache": cache}, {"past_key_values": cache}, {"cache": cache, "past_key_values": None}):
        with torch.no_grad():
            hooks.body(student.model, (), {"input_ids": ids, **given})
        assert meter.take() == cost.forward(Work(6, 2 * causal_pairs(3, 7)))


@pytest.mark.slow
@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ()])
def test_weights_that_do_not_train_have_no_gradient_of_their_own(targets: tuple[str, ...]) -> None:
    pytest.importorskip("peft")
    torch.manual_seed(0)
    model = small("qwen2")
    lm = lm_of(model)
    add_lora(lm, Lora(rank=4, alpha=8.0, dropout=0.0, targets=targets), seed=0)
    meter = Meter([lm])
    ids = torch.randint(0, 150, (3, 40))
    with FlopCounterMode(display=False) as counter:
        lm.model.base_model(input_ids=ids).last_hidden_state.sum().backward()
    found = meter.take() + 3 * square_excess(model, 40, 3)
    # The first layer's inputs are frozen embeddings, whose gradient torch spares: through q, k, v and the
    # adapters' first matrices, and to the keys where these have no adapter.
    spared = 2 * 120 * 64 * (64 + 2 * 32 + 4 * (len(targets) or 3))
    spared += 3 * 2 * 64 * 40 * 40 if targets else 0
    assert found == pytest.approx(counter.get_total_flops() + spared, rel=1e-4)
    assert found < 0.9 * cost_of(small("qwen2"), "whole").training(120, 3 * causal_pairs(40))


def test_a_mixture_counts_the_experts_that_a_token_meets() -> None:
    sizes = SMALL | {"num_local_experts": 8, "num_experts_per_tok": 2}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mixtral", **sizes))
    attention = 64 * 64 + 2 * 64 * 32 + 64 * 64
    assert cost_of(model, "mixtral").linear == 3 * (attention + 64 * 8 + 2 * 3 * 64 * 96)
    qwen = SMALL | {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "head_dim": 16}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3_moe", **qwen))
    assert cost_of(model, "qwen3_moe").linear == 3 * (attention + 64 * 8 + 2 * 3 * 64 * 48)


def test_a_model_that_is_more_than_linear_layers_and_attention_is_refused() -> None:
    config = AutoConfig.for_model(
        "mamba", vocab_size=50, hidden_size=16, num_hidden_layers=1, state_size=4, intermediate_size=32
    )
    with pytest.raises(UserError, match="FLOPs of 'a mamba' cannot be counted"):
        cost_of(AutoModelForCausalLM.from_config(config), "a mamba")


@pytest.mark.parametrize("size", QWEN)
def test_published_sizes_follow_from_a_configuration_alone(size: str, tmp_path: Path) -> None:
    width, inner, layers, heads, keys, vocabulary, tied, published, without = QWEN[size]
    config = {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    source = find_model(str(tmp_path), key="model.student")
    model = source.skeleton()
    assert sum(p.numel() for p in model.parameters()) == published
    cost = cost_of(model, size)
    assert cost.linear == pytest.approx(without, rel=0.01)  # biases and norms are no products
    assert cost.head == width * vocabulary
    assert cost.attention == layers * 2 * width
    # The usual 6 N of a token in a short sequence, of the parameters that are no look-up.
    assert cost.training(1, 1) + 6 * cost.head == pytest.approx(6 * (cost.linear + cost.head), rel=1e-3)


@pytest.mark.slow
def test_a_step_of_a_real_size_has_the_flops_that_torch_counts() -> None:
    width, inner, layers, heads, keys, vocabulary, tied, *_ = QWEN["0.5B"]
    config = AutoConfig.for_model(
        "qwen2",
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
    )
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:  # no weights, no arithmetic
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        model.base_model(input_ids=torch.zeros(4, 512, dtype=torch.long)).last_hidden_state.sum().backward()
    found = cost_of(model, "0.5B").training(4 * 512, 4 * causal_pairs(512))
    assert found + 3 * square_excess(model, 512, 4) == pytest.approx(counter.get_total_flops(), rel=1e-4)
    assert found == pytest.approx(counter.get_total_flops(), rel=0.06)  # half the square is 3 % of this


def test_scoring_counts_its_padding() -> None:
    def trace(prompt: int, completion: int) -> Trace:
        return Trace(Example("", ""), np.zeros(prompt, np.int32), np.zeros(completion, np.int32))

    some = [trace(3, 4), trace(1, 2), trace(5, 5), trace(2, 2)]
    # Ten tokens a batch: 10 alone, then 7 alone, and 4 beside 3.
    expected = Work(10 + 7 + 8, 55 + 28 + 2 * 10, predictions=13)
    assert reading(some, [range(4)], token_budget=10) == expected
    # In shards of two, sorted inside each.
    apart = Work(7 + 3 + 10 + 4, 28 + 6 + 55 + 10, predictions=13)
    assert reading(some, [range(2), range(2, 4)], token_budget=10) == apart


# --- whole runs ---


def linear(width: int) -> int:
    """Of the pair's models: two layers, four heads of width / 4, two of them for keys and values."""
    return 2 * (width * width + 2 * width * (width // 2) + width * width + 3 * width * 2 * width)


def body(width: int, tokens: int, pairs: int) -> int:
    """Forward, by hand: two operations a weight, and scores and values of two layers."""
    return 2 * linear(width) * tokens + 2 * 2 * 2 * width * pairs


def triangle(length: int) -> int:
    return sum(range(1, length + 1))


def real_tokens(pair: tuple[Path, Path]) -> int:
    return len(AutoTokenizer.from_pretrained(str(pair[0])))


def all_traces(path: Path) -> list[tuple[int, int]]:
    """Lengths of prompt and completion: the tokenizer knows characters, and one end token."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [(len(record["problem"]), len(record["completion"]) + 1) for record in records]


def batches(lengths: list[tuple[int, int]], steps: int, size: int = 8) -> list[list[tuple[int, int]]]:
    order = TraceOrder(len(lengths), size, seed=0)
    return [[lengths[place] for place in order.batch(number)] for number in range(steps)]


def step_flops(width: int, rows: list[tuple[int, int]], vocabulary: int, products: int) -> tuple[int, int]:
    """Of one batch: a forward pass of the body, and so many products with the output matrix."""
    length = max(sum(row) for row in rows)
    head = 2 * width * vocabulary * sum(completion for _, completion in rows)
    return body(width, len(rows) * length, len(rows) * triangle(length)), products * head


def scored(width: int, lengths: list[tuple[int, int]], vocabulary: int) -> int:
    """One pass over all traces, longest first, 8192 tokens a batch: here all of them in one."""
    length = max(map(sum, lengths))
    assert length * len(lengths) <= 8192
    head = 2 * width * vocabulary * sum(completion for _, completion in lengths)
    return body(width, len(lengths) * length, len(lengths) * triangle(length)) + head


def written_row(width: int, batch: list[tuple[int, int]], completion: int, vocabulary: int) -> int:
    """Of one completion of a batch: the padded prompt and all tokens but the last go through the body, and
    each token through the whole output matrix, which has five rows more than there are tokens."""
    length = max(prompt for prompt, _ in batch) + completion - 1
    return body(width, length, triangle(length)) + 2 * width * (vocabulary + 5) * completion


def flops(folder: Path) -> dict[str, float]:
    found = json.loads((folder / "summary.json").read_text())
    assert not {"student_flops", "teacher_flops"} & found.keys()
    return found["flops"]


def check_columns(folder: Path) -> None:
    """The columns grow to the summary's numbers, beside tokens and seconds."""
    found = flops(folder)
    students, teachers = (column(folder, f"train/{who}_flops_total") for who in ("student", "teacher"))
    assert students == sorted(students)
    assert students[-1] == found["student"] > students[0] > 0
    assert teachers == sorted(teachers)
    assert teachers[-1] == found["teacher_live"] + found["teacher_cached"]
    seconds = column(folder, "train/seconds_total")
    assert seconds == sorted(seconds)
    assert seconds[-1] == pytest.approx(sum(column(folder, "train/seconds")))
    assert len(column(folder, "train/tokens_total")) == len(students)


@pytest.mark.slow
def test_sft_spends_on_the_student_alone(tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path) -> None:
    folder = run(arguments(tiny_pair, traces, tmp_path, "loss=sft"), tmp_path / "run")
    some, vocabulary = batches(all_traces(traces), 6), real_tokens(tiny_pair)
    parts = [step_flops(32, rows, vocabulary, products=3) for rows in some]
    assert flops(folder) == {
        "student": sum(3 * forward + head for forward, head in parts),
        "teacher_live": 0.0,
        "teacher_cached": 0.0,
    }
    check_columns(folder)


@pytest.mark.slow
def test_dcod_spends_on_weights_and_on_scores_that_may_be_cached(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    lengths, vocabulary = all_traces(traces), real_tokens(tiny_pair)
    # No product more than other losses': the student's own log-probs are met on the way.
    parts = [step_flops(32, rows, vocabulary, products=3) for rows in batches(lengths, 6)]
    expected = {
        "student": sum(3 * forward + head for forward, head in parts),
        "teacher_live": 0.0,
        "teacher_cached": scored(48, lengths, vocabulary),
    }
    for name in ("computed", "cached"):
        folder = run(arguments(tiny_pair, traces, tmp_path, "loss=dcod"), tmp_path / name)
        assert flops(folder) == expected
        check_columns(folder)
        assert column(folder, "train/teacher_flops_total")[0] == expected["teacher_cached"]


@pytest.mark.slow
def test_a_live_teacher_reads_every_batch(tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path) -> None:
    words = arguments(tiny_pair, traces, tmp_path, "loss=forward_kl", "trainer.accumulate_grad_batches=2")
    folder = run(words, tmp_path / "run")
    some, vocabulary = batches(all_traces(traces), 12), real_tokens(tiny_pair)
    student = [step_flops(32, rows, vocabulary, products=3) for rows in some]
    teacher = [step_flops(48, rows, vocabulary, products=1) for rows in some]
    assert flops(folder) == {
        "student": sum(3 * forward + head for forward, head in student),
        "teacher_live": sum(map(sum, teacher)),
        "teacher_cached": 0.0,
    }
    check_columns(folder)


@pytest.mark.slow
def test_rollouts_are_the_students_own_expense(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[list[tuple[int, int]]] = []
    real = distill.training.rollouts.generate

    def spy(lm: Any, prompts: Any, sampling: Any, **options: Any) -> Any:
        found = real(lm, prompts, sampling, **options)
        written.append([(len(p), len(ids)) for p, ids in zip(prompts, found, strict=True)])
        return found

    monkeypatch.setattr(distill.training.rollouts, "generate", spy)
    words = ["loss=on_policy_kd", "trainer.max_steps=12"]
    folder = run(arguments(tiny_pair, traces, tmp_path, *words), tmp_path / "run")
    by_student = [float(row["rollouts/tokens"]) > 0 for row in rows(folder)]
    assert sum(by_student) == 3
    vocabulary, rolled = real_tokens(tiny_pair), iter(written)
    student = teacher = 0
    for rows_of, on_policy in zip(batches(all_traces(traces), 12), by_student, strict=True):
        batch = next(rolled) if on_policy else rows_of
        if on_policy:
            student += sum(written_row(32, batch, completion, vocabulary) for _, completion in batch)
        forward, head = step_flops(32, batch, vocabulary, products=3)
        student += 3 * forward + head
        teacher += sum(step_flops(48, batch, vocabulary, products=1))
    assert flops(folder) == {"student": student, "teacher_live": teacher, "teacher_cached": 0.0}
    check_columns(folder)


@pytest.mark.slow
def test_traces_that_the_teacher_writes_are_its_expense(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[list[tuple[tuple[int, ...], int]]] = []
    real = distill.teacher.completions.generate

    def spy(lm: Any, prompts: Any, sampling: Any, **options: Any) -> Any:
        found = real(lm, prompts, sampling, **options)
        written.append([(tuple(p), len(ids)) for p, ids in zip(prompts, found, strict=True)])
        return found

    monkeypatch.setattr(distill.teacher.completions, "generate", spy)
    for module in (distill.generation.reader, distill.models.flops):  # as on a GPU: in one pass
        monkeypatch.setattr(module, "prompt_passes", lambda lengths, device: [list(range(len(lengths)))])
    words = ["data.completions=teacher", "data.sampling_batch_size=40", "data.samples=2", "loss=sft"]
    words += ["data.max_new_tokens=60"]
    first = run(arguments(tiny_pair, traces, tmp_path, *words), tmp_path / "first")
    assert [len(batch) for batch in written] == [80, 80, 32]
    expected, vocabulary = 0, real_tokens(tiny_pair)
    for batch in written:
        lengths = [(len(prompt), completion) for prompt, completion in batch]
        expected += sum(written_row(48, lengths, completion, vocabulary) for _, completion in batch)
        again = len(batch) - len({prompt for prompt, _ in batch})  # read along with their like
        assert again >= len(batch) / 2
        expected -= again * written_row(48, lengths, 1, vocabulary)
    assert flops(first)["teacher_cached"] == expected
    again = run(arguments(tiny_pair, traces, tmp_path, *words), tmp_path / "again")
    assert len(written) == 3  # nothing was written anew
    assert flops(again) == flops(first)


@pytest.mark.slow
def test_a_resumed_run_goes_on_counting_to_the_last_bit(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    words = [
        "loss=on_policy_kd",
        "trainer.max_steps=9",
        "lr_scheduler.decay=constant",
        "lr_scheduler.warmup_ratio=0",
    ]
    whole = run(arguments(tiny_pair, traces, tmp_path, *words), tmp_path / "whole")
    part = run(arguments(tiny_pair, traces, tmp_path, *words, "trainer.max_steps=4"), tmp_path / "part")
    part = run(arguments(tiny_pair, traces, tmp_path, *words, f"ckpt_path={part}"), tmp_path / "part")
    for name in ("train/student_flops_total", "train/teacher_flops_total", "train/tokens_total"):
        assert column(part, name) == column(whole, name)
    assert flops(part) == flops(whole)


@pytest.mark.slow
def test_evaluation_between_steps_is_no_part_of_training(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    words = arguments(tiny_pair, traces, tmp_path, "loss=sft")
    plain = run(words, tmp_path / "plain")
    asked = ["benchmark=arithmetic", "benchmark.limit=4", "eval_every=2", "benchmark.max_new_tokens=8"]
    assert flops(run([*words, *asked], tmp_path / "asked")) == flops(plain)


@pytest.mark.slow
def test_a_model_that_cannot_be_counted_has_no_number(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> Any:
        raise UserError("what a model")

    monkeypatch.setattr("distill.models.flops.cost_of", refuse)
    folder = run(arguments(tiny_pair, traces, tmp_path, "loss=dcod"), tmp_path / "run")
    found = flops(folder)
    assert math.isnan(found["student"])
    assert math.isnan(found["teacher_cached"])
    assert found["teacher_live"] == 0.0
