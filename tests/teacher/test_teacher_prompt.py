"""Tests of the teacher's own prompt: the teacher writes and is scored under it, the student never sees it."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_generate import run as write_set
from test_training import run
from transformers import AutoModelForCausalLM, AutoTokenizer

from distill.data.prompt import Prompt, student_prompt, teacher_prompt
from distill.data.trace import Example
from distill.data.trace_set import read_records, write_records
from distill.errors import UserError
from distill.models.find import find_model
from distill.models.language_model import ModelSource
from distill.teacher.retokenize import Retokenizer
from distill.tiny import task

INSTRUCTED = "data.teacher_prompt.user='##{problem}'"
LOSSES = ["dcod", "forward_kl", "reverse_kl", "dcod_kl", "symmetric_kl", "dcod_symmetric_kl"]


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    return [
        {
            "problem": problem,
            "completion": task.write_solution(problem, "single"),
            "gold": task.answer(problem),
        }
        for problem in task.problems(6, split="train", operations=(2, 4))
    ]


@pytest.fixture(scope="module")
def data_file(examples: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    path.write_text("".join(json.dumps(example) + "\n" for example in examples))
    return path


def one_step(pair: tuple[Path, Path], folder: Path, *words: str) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of a run's only step, and the gradients, which plain SGD at rate 1 subtracts."""
    own = [
        f"model.student={pair[0]}", f"model.teacher={pair[1]}", "benchmark=none", "logger=csv",
        "data=traces", "data.batch_size=6", "trainer.max_steps=1", "trainer.gradient_clip_val=null",
        "optimizer._target_=torch.optim.SGD", "~optimizer.betas", "~optimizer.fused", "optimizer.lr=1.0",
        "lr_scheduler.warmup_ratio=0.0", "lr_scheduler.decay=constant", f"cache={folder / 'cache'}",
    ]  # fmt: skip
    run([*own, *words], folder / "run")
    with (folder / "run" / "metrics.csv").open(newline="") as stream:
        loss = next(float(row["train/loss"]) for row in csv.DictReader(stream) if row["train/loss"])
    before = AutoModelForCausalLM.from_pretrained(pair[0]).state_dict()
    after = AutoModelForCausalLM.from_pretrained(folder / "run" / "student").state_dict()
    return loss, {name: before[name].double() - after[name].double() for name in before}


def by_definition(
    pair: tuple[Path, Path], tokenizer: Any, examples: list[dict[str, str]], loss: str, instruction: str
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients in float64, token by token, over two sequences that are encoded on their own."""
    student, teacher = (AutoModelForCausalLM.from_pretrained(path).double().eval() for path in pair)
    rows = len(tokenizer)  # the matrices have more
    terms: list[torch.Tensor] = []
    for example in examples:
        completion = [*tokenizer(example["completion"]).input_ids, tokenizer.eos_token_id]
        logs = []
        for model, text in ((student, example["problem"]), (teacher, instruction + example["problem"])):
            prompt = tokenizer(text).input_ids
            logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, :, :rows]
            logs.append(torch.log_softmax(logits[len(prompt) - 1 : -1], -1))
        for place, token in enumerate(completion):
            q, p = logs[0][place], logs[1][place].detach()
            weight = torch.sigmoid(q[token] - p[token]).detach() if "dcod" in loss else 1.0
            forward = sum(p[v].exp() * (p[v] - q[v]) for v in range(rows))
            backward = sum(q[v].exp() * (q[v] - p[v]) for v in range(rows))
            value = forward + backward if "symmetric" in loss else forward
            value = {"dcod": -q[token], "reverse_kl": backward}.get(loss, value)
            terms.append(weight * value)
    total = torch.stack(terms).sum() / len(terms)
    total.backward()
    return total.item(), {name: p.grad for name, p in student.named_parameters() if p.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_teacher_and_student_are_read_under_prompts_of_their_own(
    loss: str,
    tiny_pair: tuple[Path, Path],
    student: Any,
    examples: list[dict[str, str]],
    data_file: Path,
    tmp_path: Path,
) -> None:
    words = [f"loss={loss}", f"data.path={data_file}"]
    found, gradients = one_step(tiny_pair, tmp_path, *words, INSTRUCTED)
    expected, wanted = by_definition(tiny_pair, student.tokenizer, examples, loss, "##")
    assert found == pytest.approx(expected, rel=2e-6)
    for name, gradient in wanted.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=2e-6)
    plain, _ = by_definition(tiny_pair, student.tokenizer, examples, loss, "")
    assert abs(plain - expected) > 1e-4 * abs(
        expected
    )  # scored under the student's prompt it is another loss


@pytest.mark.slow
@pytest.mark.parametrize("source", ["hidden_states", "top_k"])
def test_cached_distributions_are_those_under_the_teachers_prompt(
    source: str, tiny_pair: tuple[Path, Path], data_file: Path, tmp_path: Path
) -> None:
    words = ["loss=forward_kl", f"data.path={data_file}", INSTRUCTED, "loss.distribution.top_k=18"]
    live, wanted = one_step(tiny_pair, tmp_path / "live", *words)
    cached, found = one_step(tiny_pair, tmp_path / "kept", *words, f"loss.distribution.source={source}")
    assert cached == pytest.approx(live, rel=1e-5)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def written(tiny_pair: tuple[Path, Path], data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace set that the random teacher wrote under its own prompt."""
    folder = tmp_path_factory.mktemp("written") / "set"
    words = [
        "model=tiny", f"model.student={tiny_pair[0]}", f"model.teacher={tiny_pair[1]}", "data=traces",
        f"data.path={data_file}", "data.max_new_tokens=12", "samples=1", "check.answer=none", INSTRUCTED,
    ]  # fmt: skip
    records = write_set(words, folder)
    assert [record["messages"][0]["content"][:2] for record in records] == ["##"] * 6
    return folder


def refuse_teacher(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    load: Callable[..., Any] = ModelSource.load

    def refusing(source: ModelSource, cache: Path | None = None) -> Any:
        assert source.name != str(path), "the teacher was loaded"
        return load(source, cache)

    monkeypatch.setattr(ModelSource, "load", refusing)


@pytest.mark.slow
def test_recorded_logprobs_are_used_under_the_prompt_they_were_written_under(
    tiny_pair: tuple[Path, Path],
    written: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["loss=dcod", f"data.path={written}", "data.keep=all"]
    scored, _ = one_step(tiny_pair, tmp_path / "plain", *words)
    assert "log-probs under another prompt than this run's" in capsys.readouterr().out
    with monkeypatch.context() as patched:
        refuse_teacher(patched, tiny_pair[1])
        kept, _ = one_step(tiny_pair, tmp_path / "kept", *words, INSTRUCTED)
    assert "are taken from the trace set" in capsys.readouterr().out
    assert kept != pytest.approx(scored, rel=1e-4)


@pytest.mark.slow
def test_a_set_written_under_an_instruction_and_trained_on_without_it_is_scored_anew(
    tiny_pair: tuple[Path, Path], written: Path, tmp_path: Path
) -> None:
    """The same tokens without any record of their teacher give the same loss and gradients."""
    bare = [record | {"teacher_logprobs": None} for record in read_records(written)]
    write_records(tmp_path / "bare" / "traces.parquet", bare)
    words = ["loss=dcod", "data.keep=all"]
    found, gradients = one_step(tiny_pair, tmp_path / "a", *words, f"data.path={written}")
    expected, wanted = one_step(tiny_pair, tmp_path / "b", *words, f"data.path={tmp_path / 'bare'}")
    assert found == expected
    assert all(torch.equal(gradients[name], wanted[name]) for name in wanted)


@pytest.mark.slow
def test_a_set_of_another_teacher_prompt_is_refused_or_scored_anew(
    tiny_pair: tuple[Path, Path], written: Path, tmp_path: Path
) -> None:
    words = ["loss=dcod", f"data.path={written}", "data.keep=all", "data.teacher_prompt.user='*{problem}'"]
    with pytest.raises(
        UserError, match=r"written under another prompt than data.teacher_prompt: it says '##"
    ):
        one_step(tiny_pair, tmp_path / "refused", *words)
    assert one_step(tiny_pair, tmp_path / "anew", *words, "data.other_prompt=rescore")[0] > 0
    # A loss that asks no teacher is not concerned.
    assert one_step(tiny_pair, tmp_path / "sft", *words, "loss=sft")[0] > 0


@pytest.mark.slow
def test_the_solution_is_a_case_of_the_teachers_prompt(
    tiny_pair: tuple[Path, Path], data_file: Path, tmp_path: Path
) -> None:
    words = ["loss=opsd", "loss.teacher=model", "loss.rollouts=dataset", f"data.path={data_file}"]
    informed = ["data.informed_prompt='{solution};{problem}'", "loss.teacher_sees=solution"]
    told, wanted = one_step(tiny_pair, tmp_path / "a", *words, *informed)
    own = ["data.teacher_prompt.user='{solution};{problem}'", "loss.teacher_sees=prompt"]
    found, gradients = one_step(tiny_pair, tmp_path / "b", *words, *own)
    assert found == told
    assert all(torch.equal(gradients[name], wanted[name]) for name in wanted)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.teacher_prompt.user=think"], r"data.teacher_prompt.user='think' has no \{problem\} in it"),
        (
            [
                "data.teacher_prompt.system='Show every step.'",
                "data.student_prompt.system='Show  every step.'",
            ],
            None,
        ),
        (
            [
                "data.teacher_prompt.system='Show every step.'",
                "data.student_prompt.user='Show every step. {problem}'",
                "data.teacher_prompt.user='{problem}'",
            ],
            r"data.student_prompt contains the teacher's instruction 'Show every step.'",
        ),
        (
            ["loss.teacher_sees=solution", INSTRUCTED],
            r"teacher_sees=solution, but data.teacher_prompt.user='##\{problem\}' has no \{solution\}",
        ),
    ],
)
def test_a_prompt_that_makes_no_sense_is_one_sentence(
    words: list[str],
    message: str | None,
    tiny_pair: tuple[Path, Path],
    data_file: Path,
    tmp_path: Path,
) -> None:
    if message is None:  # blanks alone make the two prompts differ, and the student is shown the instruction
        message = "data.student_prompt contains the teacher's instruction"
    with pytest.raises(UserError, match=message):
        one_step(tiny_pair, tmp_path, "loss=forward_kl", f"data.path={data_file}", *words)


def test_a_conversation_gets_the_teachers_system_message_and_keeps_its_turns() -> None:
    turns = (
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "1+1="},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "2+2="},
    )
    example = Example("0", "2+2=", messages=turns)
    student = student_prompt("Solve {problem}")
    teacher = teacher_prompt(student, system="Think first.")
    assert student.messages(example) == turns
    assert teacher is not None
    assert teacher.messages(example) == (
        {"role": "system", "content": "Think first."}, *turns[1:3], {"role": "user", "content": "Solve 2+2="},
    )  # fmt: skip
    assert student_prompt("{problem}", "Hi.").messages(example)[0]["content"] == "Be kind."
    assert student_prompt("{problem}", "Hi.").messages(Example("1", "3+3="))[0]["content"] == "Hi."
    assert teacher_prompt(student, user="Solve {problem}", system="") is None
    assert Prompt("{problem} {x}").messages(Example("1", "{problem}"))[0]["content"] == "{problem} {x}"


def test_the_teacher_reads_its_prompt_in_its_own_chat_template(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    sources = []
    for path, sign in zip(tiny_pair, "+*", strict=True):
        folder = tmp_path / path.name
        shutil.copytree(path, folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = "{% for m in messages %}" + sign + "{{ m.content }}{% endfor %}"
        tokenizer.save_pretrained(folder)
        sources.append(find_model(str(folder), key="model.student"))
    example, decode = Example("0", "1+1="), sources[0].tokenizer.decode
    alike = Retokenizer(*sources, Prompt("{problem}"))
    own = Retokenizer(*sources, Prompt("#{problem}", "5"), own_prompt=True)
    assert decode(alike.prompt_ids(example)) == "+1+1="
    assert decode(own.prompt_ids(example)) == "*5*#1+1="
    assert own.needed
    assert not alike.needed
