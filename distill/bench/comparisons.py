"""The comparisons: contestants and goals."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from distill.bench.comparison import AT_BOUND, Comparison, Contestant, Goal
from distill.bench.measurement import Setting
from distill.bench.meter import Meter
from distill.config.allocator import tune_allocator

_GKD_NOTE = (
    "TRL 1.16's GKDTrainer has no Liger loss: Liger's is put in its place, as earlier releases' did; so is "
    "that of TRL's DistillationTrainer, which is on-policy only. Workspace: the peak without gradients and "
    "AdamW's moments."
)


def _imported(module: str, name: str, *, tuned: bool = True) -> Callable[..., None]:
    """A function of a module beside this one, imported when called, so that listing comparisons does not
    import torch.

    Args:
        module: name of the module.
        name: name of the function.
        tuned: whether it runs with the allocator's settings of train.py.
    """

    def run(setting: Setting, meter: Meter, **options: Any) -> None:
        if tuned:
            tune_allocator()
        getattr(import_module(f"distill.bench.{module}"), name)(setting, meter, **options)

    return run


ours = partial(_imported, "ours")
peers = partial(_imported, "peers", tuned=False)
generation = partial(_imported, "generation")
products = _imported("products", "products")
head = _imported("heads", "head", tuned=False)


def _step(name: str, label: str, loss: str, *overrides: str, **more: Any) -> Contestant:
    return Contestant(name, label, ours("train"), {"loss": loss, "overrides": overrides}, **more)


def _gkd(name: str, label: str, beta: float, loss: str, *needs: str, **more: Any) -> Contestant:
    options = {"beta": beta, "loss": loss}
    return Contestant(name, label, peers("gkd_trainer"), options, ("trl", "accelerate", *needs), **more)


def _products(teacher: bool, kept: bool = False) -> Contestant:
    name, label = ("products_kept", ", activations kept") if kept else ("products", "")
    return Contestant(
        name,
        f"matrix products alone{label}",
        products,
        {"teacher": teacher},
        keeps_activations=kept,
        is_bound=True,
    )


def _at_bound(name: str, over: str) -> Goal:
    return Goal("seconds_per_step", name, over, at_most=AT_BOUND)


def _divergence(kind: str, beta: float) -> Comparison:
    """A training step with a live teacher."""
    # Without rollouts, the preset of GKD is the plain divergence.
    loss, *overrides = ("on_policy_kd", "loss.rollouts=dataset") if kind == "jsd" else (kind,)
    contestants = [
        _step("ours", "distill", loss, *overrides),
        _products(teacher=True),
        # Our default, while TRL's is gradient checkpointing: the saved memory allows keeping activations.
        _step(
            "ours_kept",
            "distill, activations kept",
            loss,
            *overrides,
            keeps_activations=True,
        ),
        _products(teacher=True, kept=True),
        _gkd("trl", "TRL GKDTrainer", beta, "own"),
        _gkd("trl_liger", "TRL GKDTrainer, Liger's loss", beta, "liger", "liger_kernel"),
        _gkd("trl_chunked", "TRL GKDTrainer, DistillationTrainer's loss", beta, "trl_chunked"),
    ]
    if kind != "jsd":
        tuned = f"torchtune_{kind}"
        contestants.append(
            _gkd(
                "torchtune",
                "TRL GKDTrainer, torchtune's loss",
                beta,
                tuned,
                "torchtune",
                own_loss=kind == "forward_kl",
            )
        )
    return Comparison(
        kind,
        f"a step with {kind.replace('_', ' ')} to a live teacher",
        tuple(contestants),
        (
            Goal("tokens_per_second", "ours", "trl", at_least=1.5),
            Goal("peak_bytes", "ours", "trl", at_most=1 / 3),
            Goal("tokens_per_second", "ours", "trl_liger", at_least=0.9),
            _at_bound("ours", "products"),
            _at_bound("ours_kept", "products_kept"),
        ),
        note=_GKD_NOTE,
    )


def _head(kind: str) -> Comparison:
    """The output head alone."""
    ways = [
        ("ours", "distill, in chunks", ()),
        ("full", "full logits, as one writes them first", ()),
        ("freed", "full logits, each freed as early as can be", ()),
        ("liger", "Liger, fused", ("liger_kernel", *(["triton"] if kind == "sft" else []))),
        ("trl_chunked", "TRL, in chunks", ("trl", "accelerate")),
    ]
    if kind in ("forward_kl", "reverse_kl"):
        ways.append(("torchtune", "torchtune, chunks of full logits", ("torchtune",)))
    contestants = [
        Contestant(
            name,
            label,
            head,
            {"kind": kind, "way": name},
            needs,
            own_loss=(name, kind) == ("torchtune", "forward_kl"),
        )
        for name, label, needs in ways
    ]
    goals = [Goal("peak_bytes", "ours", "full", at_most=1 / 3)]
    if kind != "sft":
        goals += [
            Goal("tokens_per_second", "ours", "liger", at_least=0.9),
            Goal("loss_error_bf16", "ours", "liger", at_most=0.1),
        ]
    return Comparison(
        f"head_{kind}",
        f"the output head alone, {kind.replace('_', ' ')}",
        tuple(contestants),
        tuple(goals),
        {"steps": 3},
        models=False,
        note="Errors are relative, against the definition in float64 of the inputs; those in bf16 are of "
        "the first 256 tokens. Peaks include the gradients of states and matrix, which every way gives.",
    )


def _growth(name: str, title: str, axis: str, points: tuple[int, ...], most: float) -> Comparison:
    kinds = ("sft", "forward_kl")
    return Comparison(
        name,
        title,
        tuple(
            Contestant(kind, kind.replace("_", " "), head, {"kind": kind, "way": "ours", "exact": False})
            for kind in kinds
        ),
        tuple(Goal("workspace_bytes", kind, at_most=most, how="slope") for kind in kinds)
        + tuple(Goal("seconds_per_step", kind, at_most=1.1, how="slope") for kind in kinds),
        axis=axis,
        points=points,
        models=False,
        note="Workspace: the peak without hidden states, matrices and their gradients.",
    )


_CACHE = Comparison(
    "cache",
    "forward KL from a live teacher and from what is cached of it",
    (
        _step("live", "teacher beside the student", "forward_kl"),
        _step(
            "hidden_states", "cached hidden states", "forward_kl", "loss.distribution.source=hidden_states"
        ),
        _step("top_k", "cached top-k", "forward_kl", "loss.distribution.source=top_k", own_loss=True),
        _step("samples", "cached samples", "forward_kl", "loss.distribution.source=samples", own_loss=True),
        *(
            Contestant(
                f"make_{source}", f"making: {source}", ours("make_cache"), {"source": source}, (), True
            )
            for source in ("hidden_states", "top_k", "samples")
        ),
    ),
    (
        # The bound given by the FLOPs: 1.3 for models of equal size, 1.9 for a 1.5B student of a 7B teacher.
        Goal("tokens_per_second", "hidden_states", "live", at_least=1.3),
    ),
    note="Teacher and student are of one size here; a larger teacher makes the cache pay sooner.",
)

_ALL = (
    Comparison(
        "sft",
        "an SFT step",
        (
            _step("ours", "distill", "sft"),
            _products(teacher=False),
            Contestant("trl", "TRL SFTTrainer", peers("sft_trainer"), needs=("trl", "accelerate")),
            Contestant(
                "transformers", "transformers Trainer", peers("transformers_trainer"), needs=("accelerate",)
            ),
        ),
        (
            Goal("tokens_per_second", "ours", "trl", at_least=1.0),
            Goal(
                "peak_bytes", "ours", "trl", at_most=1.01
            ),  # equal up to the precision of memory measurements
            _at_bound("ours", "products"),
        ),
    ),
    _divergence("forward_kl", 0.0),
    _divergence("reverse_kl", 1.0),
    _divergence("jsd", 0.5),
    Comparison(
        "weights",
        "what token weights cost on top of SFT",
        (
            _step("sft", "SFT", "sft"),
            _step("token", "DCOD, weights of tokens", "dcod", own_loss=True),
            _step(
                "sequence",
                "DCOD, weights of sequences",
                "dcod",
                "loss.token_weight.level=sequence",
                own_loss=True,
            ),
        ),
        (
            Goal("seconds_per_step", "token", "sft", at_most=1.03),
            Goal("seconds_per_step", "sequence", "sft", at_most=1.10),
        ),
        {"steps": 3},
    ),
    Comparison(
        "compile",
        "an SFT step with the layers compiled, and not",
        (
            _step("eager", "not compiled", "sft"),
            _step("compiled", "compiled", "sft", "model.compile=true"),
        ),
        (
            Goal("tokens_per_second", "compiled", "eager", at_least=1.15),
            Goal("peak_bytes", "compiled", "eager", at_most=1.01),
        ),
        note="Layers are compiled before the first step, which each measurement has in "
        "`figures.processor_seconds_before`; a step's CPU time is in `figures.processor_seconds_per_step`.",
    ),
    Comparison(
        "in_backward",
        "an SFT step whose weights are stepped in the backward pass, and after it",
        (
            _step("after", "after the backward pass", "sft", "trainer.gradient_clip_val=null"),
            _step(
                "within",
                "in the backward pass",
                "sft",
                "trainer.gradient_clip_val=null",
                "trainer.optimizer_in_backward=true",
            ),
        ),
        (
            Goal("peak_bytes", "within", "after", at_most=0.7),
            Goal("tokens_per_second", "within", "after", at_least=0.97),
        ),
        note="Both without clipping by norm, which the first would have by default.",
    ),
    _CACHE,
    Comparison(
        "on_policy",
        "DCOD on given traces and KD on the student's own, per trained token",
        (
            _step("dcod", "DCOD, offline", "dcod"),
            _step("on_policy", "on-policy KD", "on_policy_kd", "loss.rollouts.fraction=1.0", own_loss=True),
        ),
        (Goal("tokens_per_second", "dcod", "on_policy", at_least=1.0),),
    ),
    _growth(
        "growth_length",
        "the head over the number of tokens",
        "head_tokens",
        (512, 1024, 2048, 4096, 8192, 16384),
        0.1,
    ),
    _growth(
        "growth_vocabulary",
        "the head over the vocabulary",
        "vocabulary",
        (32_768, 65_536, 131_072, 248_320),
        0.1,
    ),
    Comparison(
        "growth_traces",
        "the data pipeline over the number of traces",
        (Contestant("pipeline", "read, tokenize, one epoch of batches", ours("pipeline")),),
        (Goal("seconds_per_step", "pipeline", at_least=0.9, at_most=1.1, how="slope"),),
        {"warmup": 0},
        axis="traces",
        points=(1_000, 10_000, 100_000),
    ),
    Comparison(
        "batching",
        "an epoch of SFT over traces of real lengths",
        (
            Contestant("grouped", "grouped by length", ours("epoch"), {"layout": "grouped"}),
            Contestant("padded", "padded", ours("epoch"), {"layout": "padded"}),
            Contestant("packed", "packed", ours("epoch"), {"layout": "packed"}),
        ),
        (Goal("tokens_per_second", "grouped", "padded", at_least=1.5),),
        {"warmup": 0, "steps": 1},
        note="Tokens are those of completions. An epoch counts as one step, its first steps included.",
    ),
    Comparison(
        "shared_prompt",
        "an epoch of SFT over 8 traces of each prompt, of real lengths",
        (
            *(
                Contestant(kind, label, ours("epoch"), {"layout": kind, "samples": 8})
                for kind, label in (
                    ("grouped", "grouped by length"),
                    ("packed", "packed"),
                    ("shared_prompt", "each prompt once"),
                )
            ),
            Contestant(
                "trl",
                "TRL SFTTrainer, grouped by length",
                peers("sft_epoch"),
                {"samples": 8},
                ("trl", "accelerate"),
            ),
        ),
        (
            Goal("tokens_per_second", "shared_prompt", "trl", at_least=2.2),
            Goal("tokens_per_second", "shared_prompt", "grouped", at_least=1.5),
            Goal("peak_bytes", "shared_prompt", "grouped", at_most=0.8),
        ),
        {"warmup": 0, "steps": 1},
        note="Tokens are those of completions. An epoch counts as one step, its first steps included. Each "
        "measurement has the bound by the numbers of tokens in `figures.bound`.",
    ),
    Comparison(
        "loop",
        "Lightning, metrics and logs around a step, and a plain loop",
        (_step("ours", "distill", "sft"), Contestant("plain", "a plain loop", ours("loop"))),
        (Goal("seconds_per_step", "ours", "plain", at_most=0.002, how="difference"),),
        {"shape": "tiny", "prompt": 32, "completion": 32, "warmup": 20, "steps": 200},
        note="A model so small that a step is mostly what is around it.",
    ),
    Comparison(
        "generation",
        "completions of the likeliest tokens, 24 prompts at once",
        (
            Contestant("ours", "distill", generation("ours")),
            Contestant("generate", "transformers generate", generation("transformers_generate")),
            Contestant("continuous", "transformers, continuous batching", generation("continuous_batching")),
            Contestant("vllm", "vLLM", generation("vllm"), needs=("vllm",)),
        ),
        (
            Goal("tokens_per_second", "ours", "generate", at_least=1.5),
            Goal("tokens_per_second", "ours", "vllm", at_least=1.0),
        ),
        {"rows": 24, "warmup": 1},
        note="A step writes to all prompts, which are read in it. Models are loaded before, in all ways.",
    ),
    *(_head(kind) for kind in ("sft", "forward_kl", "reverse_kl", "jsd")),
    Comparison(
        "mfu",
        "share of the GPU's peak that SFT reaches",
        (Contestant("ours", "distill", ours("utilization")),),
        (Goal("mfu", "ours", at_least=0.4, how="value", shape="1.5b"),),
        device="cuda",
    ),
)
COMPARISONS = {one.name: one for one in _ALL}
