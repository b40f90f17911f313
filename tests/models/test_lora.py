"""Tests of LoRA: only adapters train, resuming is exact, saved students need neither adapters nor peft."""

import importlib.util
import json
import math
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_training import arguments, column, run, same_weights, train_ranks
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from distill.config.instantiate import plain
from distill.config.overrides import check_overrides
from distill.errors import UserError
from distill.generation.decode import generate
from distill.generation.sampling import Sampling
from distill.losses.divergence import forward_kl
from distill.losses.weights import support_ratio
from distill.models.language_model import LanguageModel, ModelSource
from distill.models.lora import add_lora, fingerprint, merged_state, parameter_counts
from distill.models.lora_settings import Lora, read_lora
from distill.objective.objective import Objective
from distill.runs.folder import checkpoints
from distill.tiny import task

ROOT = Path(__file__).resolve().parents[2]
ALL = Lora(rank=4, alpha=8.0, dropout=0.0, targets=())
# Linear layers of a block of the tiny student: outputs and inputs.
SHAPES = {
    "q_proj": (32, 32),
    "k_proj": (16, 32),
    "v_proj": (16, 32),
    "o_proj": (32, 32),
    "gate_proj": (64, 32),
    "up_proj": (64, 32),
    "down_proj": (32, 64),
}
needs_peft = pytest.mark.skipif(
    importlib.util.find_spec("peft") is None, reason='peft is not installed: pip install "distill[peft]"'
)


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 problems with right solutions in both styles."""
    path = tmp_path_factory.mktemp("traces") / "traces.jsonl"
    with path.open("w") as stream:
        for number, problem in enumerate(task.problems(48, split="train", operations=(2, 4))):
            style = "single" if number % 2 else "double"
            record = {"problem": problem, "completion": task.write_solution(problem, style)}
            stream.write(json.dumps(record | {"gold": task.answer(problem)}) + "\n")
    return path


def lora_arguments(pair: tuple[Path, Path], traces: Path, folder: Path, *overrides: str) -> list[str]:
    lora = ["model.lora.rank=4", "model.lora.alpha=8", "optimizer.lr=0.01"]
    return arguments(pair, traces, folder, *lora, *overrides)


def stir(model: nn.Module, seed: int = 0) -> None:
    """Adapters as training might leave them: B is zero at first, and would hide most mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3, generator=generator)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([[3, 7, 2, 9, 4], [5, 5, 6, 2, 8]])).logits


def batch_of(lm: LanguageModel) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, lm.vocab_size, (4, 11), generator=generator)
    return ids, torch.rand(4, 10, generator=generator) < 0.6


def merged_by_hand(base: Path, adapter: Path, scale: float) -> dict[str, Tensor]:
    """W + scale · B A from the files alone, for each of the base's weights."""
    found = load_file(adapter / "adapter_model.safetensors")
    weights = load_file(base / "model.safetensors")
    for name in [name for name in found if name.endswith(".lora_A.weight")]:
        layer = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        product = found[name.replace("lora_A", "lora_B")] @ found[name]
        weights[f"{layer}.weight"] = weights[f"{layer}.weight"] + product * scale
    return weights


# --- in the model


@needs_peft
def test_every_linear_layer_but_the_output_matrix_gets_an_adapter(
    student: LanguageModel, teacher: LanguageModel
) -> None:
    for lm in (student, teacher):  # the student's output matrix is tied, the teacher's is not
        plain = {name for name, module in lm.model.named_modules() if isinstance(module, nn.Linear)}
        before = logits(lm.model)
        tied = lm.model.get_input_embeddings().weight is lm.model.get_output_embeddings().weight
        add_lora(lm, ALL, seed=0)
        adapted = {name for name, module in lm.model.named_modules() if hasattr(module, "lora_A")}
        assert adapted == plain - {"lm_head"}
        assert type(lm.model.get_output_embeddings()) is nn.Linear
        assert torch.equal(logits(lm.model), before)  # B is zero
        lm.check_head()
        trained = {name for name, p in lm.model.named_parameters() if p.requires_grad}
        assert trained
        assert all(".lora_A." in name or ".lora_B." in name for name in trained)
        assert (lm.model.get_input_embeddings().weight is lm.model.get_output_embeddings().weight) == tied
    expected = 2 * 4 * sum(rows + columns for rows, columns in SHAPES.values())
    plain_size = sum(p.numel() for p in student.source.load().model.parameters())
    assert parameter_counts(student.model) == (expected, plain_size + expected)


@needs_peft
def test_named_layers_alone_get_an_adapter(student: LanguageModel) -> None:
    targets = ("q_proj", "model.layers.1.mlp.up_proj")
    add_lora(student, Lora(4, 8.0, 0.0, targets), seed=0)
    adapted = {name for name, module in student.model.named_modules() if hasattr(module, "lora_A")}
    queries = {f"model.layers.{layer}.self_attn.q_proj" for layer in (0, 1)}
    assert adapted == queries | {"model.layers.1.mlp.up_proj"}


@pytest.mark.slow
@needs_peft
def test_adapters_begin_with_their_seed_and_draw_nothing_from_the_rest(tiny_pair: tuple[Path, Path]) -> None:
    from distill.models.find import find_model

    found = []
    for seed, drawn in ((3, 0), (3, 1), (4, 0)):
        lm = find_model(str(tiny_pair[0]), key="model.student").load()
        torch.manual_seed(drawn)
        before = torch.get_rng_state()
        add_lora(lm, ALL, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        assert not any(module.training for module in lm.model.modules())
        found.append(torch.cat([p.flatten() for p in lm.model.parameters() if p.requires_grad]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@needs_peft
@pytest.mark.parametrize("weights", [partial(support_ratio), None])
def test_an_adapters_gradient_through_the_chunked_head_is_that_of_plain_autograd(
    student: LanguageModel, teacher: LanguageModel, weights: Any
) -> None:
    """Float64; forward KL, under DCOD's weights or none, against all logits at once."""
    for lm in (student, teacher):
        lm.model.double()
    add_lora(student, ALL, seed=0)
    stir(student.model)
    ids, mask = batch_of(student)
    labels = ids[:, 1:]
    size = student.vocab_size
    with torch.no_grad():
        teacher_head = teacher.completion_head(ids, mask)
        log_p = teacher.model(input_ids=ids).logits[:, :-1, :size].log_softmax(-1)
        teacher_logprobs = log_p.gather(-1, labels[..., None])[..., 0]

    from distill.losses.weights import uniform

    objective = Objective("dataset", partial(forward_kl), weights or partial(uniform))
    signals = {"teacher_logprobs": teacher_logprobs}
    head = student.completion_head(ids, mask)
    result = objective(head, mask, labels, signals, others={"log_p": teacher_head}, by_student=False)
    parameters = [p for p in student.model.parameters() if p.requires_grad]
    found = torch.autograd.grad(result.total, parameters)

    log_q = student.model(input_ids=ids).logits[:, :-1, :size].log_softmax(-1)
    losses = (log_p.exp() * (log_p - log_q)).sum(-1)
    ratio = log_q.detach().gather(-1, labels[..., None])[..., 0] - teacher_logprobs
    factor = torch.sigmoid(ratio) if weights else torch.ones_like(ratio)
    expected = torch.autograd.grad((losses * factor * mask).sum(), parameters)
    assert all(gradient.dtype == torch.float64 for gradient in found)
    assert min(float(gradient.abs().max()) for gradient in expected) > 1e-6
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@needs_peft
def test_merging_gives_a_plain_models_state_and_leaves_the_adapted_one_alone(
    student: LanguageModel, teacher: LanguageModel
) -> None:
    for lm in (student, teacher):
        plain = lm.source.load().model
        add_lora(lm, ALL, seed=0)
        stir(lm.model)
        before = {name: value.clone() for name, value in lm.model.state_dict().items()}
        expected = logits(lm.model)
        merged = merged_state(lm.model)
        after = lm.model.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], before[name]) for name in before)
        assert merged.keys() == plain.state_dict().keys()
        assert (logits(plain) - expected).abs().max() > 0.05
        plain.load_state_dict(merged)
        torch.testing.assert_close(logits(plain), expected, rtol=1e-4, atol=1e-5)


@needs_peft
def test_a_model_that_stores_its_matrices_transposed_is_merged_too() -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=16, n_positions=32, n_embd=16, n_layer=2, n_head=2, eos_token_id=1)
    model = GPT2LMHeadModel(config).eval()
    plain = GPT2LMHeadModel(config)
    from distill.tiny.build import make_tokenizer

    lm = LanguageModel(model, make_tokenizer(), ModelSource(name="gpt2", location="", fingerprint=""))
    add_lora(lm, ALL, seed=0)
    stir(model)
    plain.load_state_dict(merged_state(model))
    torch.testing.assert_close(logits(plain), logits(model), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@needs_peft
def test_the_adapters_dropout_is_off_while_the_student_writes_and_on_again_afterwards(
    student: LanguageModel,
) -> None:
    add_lora(student, Lora(4, 8.0, 0.9, ()), seed=0)
    stir(student.model)
    prompts, sampling = [[3, 7, 2]] * 4, Sampling(1.0, max_new_tokens=16)
    expected = generate(student, prompts, sampling, seed=0)
    student.model.train()
    modes = [module.training for module in student.model.modules()]
    assert generate(student, prompts, sampling, seed=0) == expected
    assert [module.training for module in student.model.modules()] == modes
    ids = torch.tensor([[3, 7, 2, 9]])
    assert not torch.equal(student.model(input_ids=ids).logits, student.model(input_ids=ids).logits)


# --- whole runs


@pytest.mark.slow
@needs_peft
@pytest.mark.parametrize("loss", ["dcod", "forward_kl", "on_policy_kd", "asft", "minillm"])
def test_any_loss_trains_the_adapters_and_no_other_weight(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, loss: str
) -> None:
    words = lora_arguments(tiny_pair, traces, tmp_path, f"loss={loss}", "trainer.max_steps=3")
    folder = run([*words, "data.batch_size=8"], tmp_path / "run")
    assert all(math.isfinite(value) for value in column(folder, "train/loss"))
    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    layers = 2 * len(SHAPES)
    assert len(adapter) == 2 * layers
    assert all(float(value.abs().max()) > 0 for value in adapter.values())  # B began at zero
    # The student is the adapters beside the weights as they are on disk, to the last bit: these did not move.
    merged = load_file(folder / "student" / "model.safetensors")
    expected = merged_by_hand(tiny_pair[0], folder / "adapter", scale=8 / 4)
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], expected[name]) for name in merged)
    started = load_file(tiny_pair[0] / "model.safetensors")
    assert sum(not torch.equal(merged[name], started[name]) for name in merged) == layers


@pytest.mark.slow
@needs_peft
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's own
def test_student_loads_without_peft_and_adapter_with_it_and_both_predict_the_same(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import PeftModel

    folder = run(lora_arguments(tiny_pair, traces, tmp_path), tmp_path / "run")
    (kept,) = checkpoints(folder / "checkpoints")
    state = torch.load(kept / "state.ckpt", weights_only=True)
    assert all(".lora_" in name for name in state["state_dict"])
    assert len(state["state_dict"]) == len(state["optimizer_states"][0]["state"]) == 4 * len(SHAPES)
    base = AutoModelForCausalLM.from_pretrained(tiny_pair[0])
    before = logits(base)
    for place in (folder, kept):
        adapted = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(tiny_pair[0]), str(place / "adapter")
        )
        with monkeypatch.context() as without:
            without.setitem(sys.modules, "peft", None)
            model = AutoModelForCausalLM.from_pretrained(place / "student")
        assert AutoTokenizer.from_pretrained(place / "student")("3+4=").input_ids
        assert not isinstance(model, PeftModel)
        torch.testing.assert_close(logits(model), logits(adapted), rtol=1e-4, atol=1e-5)
        assert (logits(model) - before).abs().max() > 1e-3
    summary = json.loads((folder / "summary.json").read_text())
    trained = sum(value.numel() for value in state["state_dict"].values())
    assert summary["parameters"] == {"trained": trained, "all": base.num_parameters() + trained}


@pytest.mark.slow
@needs_peft
@pytest.mark.parametrize("loss", ["sft", "on_policy_kd"])
def test_a_resumed_run_with_dropout_repeats_an_unbroken_one_bit_for_bit(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = lora_arguments(
        tiny_pair, traces, tmp_path, f"loss={loss}", "model.lora.dropout=0.5", "checkpoint.every=3"
    )
    whole = run(words, tmp_path / "runs" / "0_whole")

    from distill.training.checkpoints import StudentCheckpoints

    original = StudentCheckpoints.save

    def save_and_die(self: StudentCheckpoints, *args: Any) -> None:
        original(self, *args)
        raise MemoryError("the machine went away")

    monkeypatch.setattr(StudentCheckpoints, "save", save_and_die)
    with pytest.raises(MemoryError):
        run(words, tmp_path / "runs" / "1_cut")
    monkeypatch.setattr(StudentCheckpoints, "save", original)
    torch.manual_seed(123)  # a new process has another random state
    resumed = run([*words, "ckpt_path=last"], tmp_path / "elsewhere")
    assert resumed == tmp_path / "runs" / "1_cut"
    for name in ("train/loss", "train/tokens", "train/lr", "train/gradient_norm"):
        assert column(resumed, name) == column(whole, name)
    assert same_weights(resumed, whole)
    one, other = (load_file(x / "adapter" / "adapter_model.safetensors") for x in (resumed, whole))
    assert all(torch.equal(one[name], other[name]) for name in one)
    undropped = run([*words, "model.lora.dropout=0"], tmp_path / "undropped")
    assert column(undropped, "train/loss") != column(whole, "train/loss")


@pytest.mark.slow
@needs_peft
def test_a_checkpoint_of_other_adapters_or_another_base_is_refused(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    student = tmp_path / "student"
    shutil.copytree(tiny_pair[0], student)
    words = lora_arguments((student, tiny_pair[1]), traces, tmp_path, "loss=sft")
    folder = run(words, tmp_path / "run")
    later = [*words, "trainer.max_steps=8", f"ckpt_path={folder}"]
    with pytest.raises(UserError, match=r"model\.lora\.rank was 4 and is None"):
        run([*later, "model.lora.rank=null"], folder)
    weights = load_file(student / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 1.01
    save_file(weights, student / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"are not those beside which the checkpoint's adapters were trained"):
        run(later, folder)


@needs_peft
def test_the_base_is_told_by_its_values_alone(student: LanguageModel) -> None:
    before = fingerprint(student.model.requires_grad_(False))
    add_lora(student, ALL, seed=0)
    stir(student.model)
    assert fingerprint(student.model) == before
    with torch.no_grad():
        student.model.model.layers[1].mlp.up_proj.base_layer.weight[0, 0] += 1e-3
    assert fingerprint(student.model) != before


@pytest.mark.slow
@needs_peft
def test_the_student_before_training_is_the_model_without_adapters(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[LanguageModel] = []
    original = ModelSource.load

    def load(self: ModelSource, cache: Path | None = None) -> LanguageModel:
        loaded.append(original(self, cache))
        return loaded[-1]

    monkeypatch.setattr(ModelSource, "load", load)
    run(lora_arguments(tiny_pair, traces, tmp_path, "loss=asft"), tmp_path / "run")
    student, reference = loaded
    assert hasattr(student.model, "peft_config")
    assert not hasattr(reference.model, "peft_config")
    started = load_file(tiny_pair[0] / "model.safetensors")
    assert all(torch.equal(reference.model.state_dict()[name], value) for name, value in started.items())


@pytest.mark.slow
@needs_peft
@pytest.mark.parametrize(
    ("dtype", "precision"), [("bfloat16", "bf16-mixed"), ("bfloat16", "32-true"), ("float32", "bf16-mixed")]
)
def test_half_precision_trains_adapters_of_single_precision(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path, dtype: str, precision: str
) -> None:
    words = lora_arguments(tiny_pair, traces, tmp_path, "loss=on_policy_kd", "loss.rollouts.fraction=0.5")
    single = run(words, tmp_path / "single")
    half = run([*words, f"model.student_dtype={dtype}", f"trainer.precision={precision}"], tmp_path / "half")
    adapter = load_file(half / "adapter" / "adapter_model.safetensors")
    assert {value.dtype for value in adapter.values()} == {torch.float32}
    merged = load_file(half / "student" / "model.safetensors")
    assert {value.dtype for value in merged.values()} == {getattr(torch, dtype)}
    assert json.loads((half / "student" / "config.json").read_text())["dtype"] == dtype
    losses = column(half, "train/loss")
    assert losses[0] == pytest.approx(column(single, "train/loss")[0], rel=0.03)
    assert all(math.isfinite(loss) for loss in losses)


@pytest.mark.exhaustive
@needs_peft
@pytest.mark.slow
def test_two_processes_train_adapters_as_one(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    words = lora_arguments(tiny_pair, traces, tmp_path, "trainer.max_steps=4")
    single = run([*words, "data.batch_size=12"], tmp_path / "single")
    two = [f"dir={tmp_path / 'two'}", "data.batch_size=3", "trainer.accumulate_grad_batches=2"]
    train_ranks([*words, *two, "trainer.strategy=ddp"], tmp_path)
    for name in ("train/loss", "train/gradient_norm"):
        assert column(tmp_path / "two", name) == pytest.approx(column(single, name), rel=2e-5)


# --- mistakes


@pytest.mark.slow
@needs_peft
def test_an_adapter_is_no_student_and_neither_is_a_model_that_brings_one_along(
    tiny_pair: tuple[Path, Path], traces: Path, tmp_path: Path
) -> None:
    folder = run(lora_arguments(tiny_pair, traces, tmp_path), tmp_path / "run")
    words = arguments((folder / "adapter", tiny_pair[1]), traces, tmp_path)
    with pytest.raises(UserError, match=r"holds a LoRA adapter alone: give the student/ beside it"):
        run(words, tmp_path / "alone")
    both = tmp_path / "both"
    shutil.copytree(tiny_pair[0], both)
    shutil.copytree(folder / "adapter", both, dirs_exist_ok=True)
    with pytest.raises(UserError, match=r"both brings an adapter along: merge it into its weights"):
        run(arguments((both, tiny_pair[1]), traces, tmp_path, "loss=sft"), tmp_path / "beside")
    # The student that a run leaves is a plain one again, for a further run.
    again = lora_arguments((folder / "student", tiny_pair[1]), traces, tmp_path, "trainer.max_steps=2")
    run(again, tmp_path / "again")


def config(*words: str) -> Any:
    return plain(check_overrides(ROOT / "conf", "train", words).model.lora)


@pytest.mark.slow
@pytest.mark.parametrize("model", sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml")))
def test_every_model_has_lora_and_it_is_off(model: str) -> None:
    assert read_lora(config(f"model={model}")) is None
    assert read_lora(config(f"model={model}", "model.lora=null")) is None


@pytest.mark.slow
@needs_peft
def test_what_the_command_line_says_is_what_is_built() -> None:
    assert read_lora(config("model.lora.rank=8")) == Lora(8, 32.0, 0.0, ())
    words = ["model.lora.rank=2", "model.lora.alpha=1.5", "model.lora.dropout=0.1"]
    expected = Lora(2, 1.5, 0.1, ("q_proj", "v_proj"))
    assert read_lora(config(*words, "model.lora.targets=[q_proj,v_proj]")) == expected
    assert read_lora(config("model.lora.rank=2", "model.lora.targets=q_proj")) == Lora(
        2, 32.0, 0.0, ("q_proj",)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("model.lora.rank=0", "model.lora.rank=0 must be a whole number, at least 1, or null"),
        ("model.lora.rank=-1", "model.lora.rank=-1 must be"),
        ("model.lora.rank=eight", "model.lora.rank='eight' must be"),
        ("model.lora.rank=2.5", "model.lora.rank=2.5 must be"),
        ("model.lora.rank=true", "model.lora.rank=True must be"),
        ("model.lora=8", "model.lora=8 must be a section of keys: set one of them, model.lora.rank=<value>"),
        ("+model.lora.alhpa=3", "model.lora.alhpa: LoRA has no such key (keys: rank, alpha, dropout"),
        ("model.lora.alpha=0", "model.lora.alpha=0 must be a positive number"),
        ("model.lora.alpha=inf", "model.lora.alpha=inf must be"),
        ("model.lora.alpha=null", "model.lora.alpha=None must be"),
        ("model.lora.dropout=1", "model.lora.dropout=1 must be a number in [0, 1)"),
        ("model.lora.dropout=-0.1", "model.lora.dropout=-0.1 must be"),
        ("model.lora.dropout=nan", "model.lora.dropout=nan must be"),
        ("model.lora.targets=[]", "model.lora.targets=[] must be all-linear or names"),
        ("model.lora.targets=3", "model.lora.targets=3 must be"),
        ("model.lora.targets=[all-linear,q_proj]", "all-linear stands alone"),
    ],
)
def test_a_value_without_sense_gets_one_sentence(words: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        read_lora(config("model.lora.rank=8", *words.split()))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_without_peft_the_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    assert read_lora(config()) is None
    with pytest.raises(UserError, match=r'needs peft, which is missing: pip install "distill\[peft\]"'):
        read_lora(config("model.lora.rank=8"))


@pytest.mark.slow
@needs_peft
@pytest.mark.parametrize(
    ("targets", "sentence"),
    [
        ("[qproj]", "has no linear layer 'qproj'; did you mean q_proj"),
        ("[q_proj,mlp]", "has no linear layer 'mlp' (there are q_proj, k_proj, v_proj, o_proj, gate_proj"),
        ("[embed_tokens]", "has no linear layer 'embed_tokens'"),
        ("[lm_head]", "lm_head is the output matrix of"),
        ("[proj]", "has no linear layer 'proj'"),  # a part of a name is none
    ],
)
def test_a_target_that_is_no_layer_is_refused_before_any_weight_is_loaded(
    tiny_pair: tuple[Path, Path],
    traces: Path,
    tmp_path: Path,
    targets: str,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(self: ModelSource, cache: Path | None = None) -> None:
        raise AssertionError("nothing may be loaded")

    monkeypatch.setattr(ModelSource, "load", load)
    words = lora_arguments(tiny_pair, traces, tmp_path, f"model.lora.targets={targets}")
    with pytest.raises(UserError) as caught:
        run(words, tmp_path / "run")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
