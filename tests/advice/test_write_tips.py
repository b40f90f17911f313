"""Tests of `python -m distill.tips` on the embedded pair's traces, with stand-ins for writer and solver."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from chat_stub import Stub
from chat_templates import TEMPLATES
from omegaconf import DictConfig, OmegaConf, open_dict
from test_generate import compose
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config

from distill.advice.conditions import neutral_text, token_count, with_text
from distill.advice.write_tips import write_tips
from distill.config.instantiate import build
from distill.config.overrides import check_overrides
from distill.config.paths import CONFIG
from distill.data.trace import Example
from distill.data.trace_set import read_records
from distill.errors import UserError
from distill.evaluation.benchmark import benchmarks_of
from distill.evaluation.run import ask
from distill.generation.engine import Request, Written
from distill.generation.sampling import Sampling
from distill.models.find import find_model
from distill.models.lazy import LazyModel
from distill.statistics import mcnemar
from distill.teacher.write_traces import generate
from distill.tiny import task
from distill.tips import check

GOOD = "Carry the running value into each step, and write it down first."
OTHER = "Look at the signs before the first step."
LEFT = "The signs tell the way."


@pytest.fixture(scope="session")
def solver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that spells any text; its weights are not there, because a server stands in for it."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: place for place, letter in enumerate([*letters, "<|im_start|>", "<|im_end|>"])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|im_end|>", bos_token="<|im_start|>"
    )
    folder = tmp_path_factory.mktemp("speller") / "solver"
    Qwen2Config(vocab_size=len(tokenizer), max_position_embeddings=16384, hidden_size=8).save_pretrained(
        folder
    )
    tokenizer.chat_template = TEMPLATES["knows no thoughts"]
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Traces of the embedded student, right and wrong ones."""
    words = ["model=tiny", "model.teacher=package:distill/tiny/student", "data=arithmetic", "data.limit=24"]
    words += ["data.operations=[3,5]", "samples=4", "sampling.temperature=1.2", "logprobs=false"]
    return generate(compose("generate", [*words, f"out={tmp_path_factory.mktemp('traces') / 'set'}"]))


class StandIn:
    """An engine in the place of a model: it replies as `reply` says, and fails at the request `fails_at`."""

    name = "stand-in"
    seconds = 0.0
    reply: Callable[[str, list[str]], str]
    seen: ClassVar[list[tuple[str, list[str]]]] = []
    fails_at: ClassVar[int | None] = None

    def __init__(self, model: LazyModel, role: str) -> None:
        self.role = role

    def write(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Written]]:
        for place, request in enumerate(requests):
            if len(self.seen) == StandIn.fails_at:
                StandIn.fails_at = None
                raise UserError("the stand-in failed")
            texts = [turn["content"] for turn in request.messages]
            self.seen.append((self.role, texts))
            text = StandIn.reply(self.role, texts)
            yield place, Written(None, not text.endswith("..."), text)


def stand_in(role: str, texts: list[str]) -> str:
    """The writer's reply, which depends on what it is shown; or the solver's solution.

    The solver is right on every other problem, and on all of them with the tip `GOOD` in its prompt.
    """
    if role == "solver":
        problem = texts[-1].splitlines()[-1]
        right = GOOD in texts[0] or sum(map(ord, problem)) % 2
        return task.write_solution(problem, "single") if right else "1+1=2;#x"
    tips = dict(re.findall(r"^(\d+)\. (.*)$", texts[1].split("BEGIN TIPS")[1], re.MULTILINE))
    known = {text: number for number, text in tips.items()}
    if "BEGIN WRONG" in texts[1]:
        leak = "ADD: The answer is 7 as often as not."
        lines = [f"AGREE {known[GOOD]}" if GOOD in known else f"ADD: {GOOD}", leak]
        return "\n".join([*lines, f"REMOVE {known[OTHER]}" if OTHER in known else f"ADD: {OTHER}"])
    return f"ADD: {LEFT}" if "BEGIN RIGHT" in texts[1] else "Here are tips:\n1. Be careful."


@pytest.fixture(scope="module")
def composed(solver: Path, traces: Path) -> DictConfig:
    words = [f"trace_sets={traces}", "benchmark=arithmetic", "benchmark.limit=16", f"writer={solver}"]
    words += [f"solver={solver}", "tips.batch=3", "tips.held_out=8", "resamples=200"]
    cfg = compose("tips", words)
    for key, role in (("engine", "solver"), ("writer_engine", "writer")):
        cfg[key] = {"_target_": f"{__name__}.StandIn", "_partial_": True, "role": role}
    return cfg


@pytest.fixture
def cfg(composed: DictConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DictConfig:
    monkeypatch.setattr(StandIn, "reply", staticmethod(stand_in), raising=False)
    monkeypatch.setattr(StandIn, "seen", [])
    return changed(composed, out=str(tmp_path / "out"))


def changed(cfg: DictConfig, **values: Any) -> DictConfig:
    """The same with other values; `__` stands for a dot."""
    own = cfg.copy()
    for key, value in values.items():
        OmegaConf.update(own, key.replace("__", "."), value, force_add=True)
    return own


def run(cfg: DictConfig, **values: Any) -> dict[str, Any]:
    return json.loads((write_tips(changed(cfg, **values)) / "tips.json").read_text())


def asked(role: str) -> list[list[str]]:
    return [texts for who, texts in StandIn.seen if who == role]


def shown(name: str = "PROBLEM") -> set[str]:
    """What the writer was shown in blocks of this name."""
    pattern = re.compile(rf"BEGIN {name} \d+ \w{{16}}\n(.*?)\nEND", re.DOTALL)
    return {text for texts in asked("writer") for text in pattern.findall(texts[1])}


@pytest.mark.slow
def test_tips_are_voted_on_checked_chosen_and_tested_beside_controls(
    cfg: DictConfig, traces: Path, tmp_path: Path
) -> None:
    found = run(cfg)
    calls = found["written"]["tips"]["calls"]
    contrasted = found["problems"]["contrasted"]
    assert calls == -(-contrasted // 3) > 1
    # Two votes for a new tip, one for each AGREE. One that a REMOVE has left a vote goes with the next.
    votes = {tip["text"]: tip["votes"] for tip in found["tips"]}
    assert votes == {GOOD: 2 + calls - 1, **({} if calls % 3 == 0 else {OTHER: 3 - calls % 3})}
    assert len(found["tips"][0]["evidence"]) == contrasted
    assert found["written"]["tips"]["refused"] == {"the number of a right answer": calls}
    # Neither held-out problems nor those of the test are shown to the writer, and both are apart.
    records = read_records(traces)
    of_traces = {record["problem"] for record in records}
    problems = {name: set() for name in ("solved", "shown")}
    problems["shown"] = shown()
    problems["solved"] = {texts[-1].splitlines()[-1] for texts in asked("solver")}
    assert len(problems["shown"]) == contrasted
    assert not problems["shown"] & problems["solved"]
    assert len(problems["solved"] & of_traces) == found["held_out"]["problems"] == 8
    assert len(problems["solved"] - of_traces) == found["test"]["problems"] == 16
    # Of each problem a right and a wrong trace of its own.
    by_text = {(record["problem"], record["completion"]): record["correct"] for record in records}
    for name, verdict in (("RIGHT", True), ("WRONG", False)):
        assert {by_text[one] for text in shown(name) for one in by_text if one[1] == text} == {verdict}
    # The stand-in is right on all problems with the tip, else on half of them: a paired test of that.
    assert found["chosen"] is True
    held = found["held_out"]["conditions"]
    assert held["tips"]["accuracy"]["value"] == 1 > held["no tips"]["accuracy"]["value"]
    test = found["test"]
    assert list(test["conditions"]) == ["no tips", "tips", "length control", "right alone"]
    right = sum(sum(map(ord, text)) % 2 for text in problems["solved"] - of_traces)
    for name in ("no tips", "length control", "right alone"):
        assert test["conditions"][name]["accuracy"]["value"] == pytest.approx(right / 16)
        assert test["tips_less"][name]["value"] == pytest.approx(1 - right / 16)
        assert test["tips_less"][name]["p"] == pytest.approx(mcnemar(0, 16 - right))
        assert test["tips_less"][name]["adjusted_p"] == pytest.approx(min(1, 3 * mcnemar(0, 16 - right)))
    # The controls differ in more than the name, and the neutral text is as long as the tips.
    texts = [
        found["written"]["tips"]["text"],
        found["length_control"],
        found["written"]["right alone"]["text"],
    ]
    assert len(set(texts)) == 3
    assert LEFT in texts[2]
    assert GOOD not in texts[1] + texts[2]
    assert found["written"]["uninformed"]["unread"] == calls  # its replies are no operations
    tokens = {name: one["prompt_tokens"] for name, one in test["conditions"].items()}
    assert abs(tokens["length control"] - tokens["tips"]) <= 2
    text = (tmp_path / "out" / "tips.md").read_text()
    assert text.count("| length control | - |") == 1
    assert "There is no control uninformed" in text


@pytest.mark.slow
def test_a_second_run_asks_nothing_and_a_stopped_one_goes_on(cfg: DictConfig) -> None:
    for stop in (3, 25):  # while tips are written, and while problems are solved
        StandIn.fails_at = stop
        with pytest.raises(UserError, match="the stand-in failed"):
            run(cfg)
        assert len(StandIn.seen) == stop
    found = run(cfg)
    bodies = [json.dumps(one) for one in StandIn.seen]
    assert len(bodies) == len(set(bodies))  # nothing was asked twice
    assert run(cfg) == found
    assert len(StandIn.seen) == len(bodies)
    # More problems later: the tips and the answers so far stay.
    more = run(cfg, benchmark__limit=17)
    assert len(StandIn.seen) - len(bodies) == len(more["test"]["conditions"])
    assert more["tips"] == found["tips"]


@pytest.mark.slow
def test_tips_that_do_not_help_are_not_kept_and_leave_no_prompt(
    cfg: DictConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = tmp_path / "out" / "conf" / "teacher_prompt" / "tips.yaml"
    assert run(cfg, tips__test="never")["test"] is None
    assert prompt.is_file()
    StandIn.reply = lambda role, texts: stand_in(role, texts).replace(f"ADD: {GOOD}", f"ADD: {LEFT}")
    found = run(cfg, seed=1)
    assert (found["chosen"], found["test"]) == (False, None)
    assert "No tips help here." in capsys.readouterr().out
    assert not prompt.exists()
    assert run(cfg, seed=1, tips__test="always")["test"]["problems"] == 16
    StandIn.reply = lambda role, texts: "ADD: A tip that was cut ..."
    found = run(cfg, seed=2)
    assert (found["tips"], found["held_out"]) == ([], None)
    assert "the writer gave none that can be used" in capsys.readouterr().out


@pytest.mark.slow
def test_skills_have_lists_of_their_own(cfg: DictConfig) -> None:
    def reply(role: str, texts: list[str]) -> str:
        if "BEGIN SKILLS" not in texts[-1]:
            return stand_in(role, texts)
        problems = re.findall(r"BEGIN PROBLEM \d+ \w{16}\n(.*?)\nEND", texts[-1], re.DOTALL)
        names = ["Taking products" if "*" in one else "sums" for one in problems]
        return "\n".join(f"{number}: {name}" for number, name in enumerate(names, 1))

    StandIn.reply = reply
    found = run(cfg, tips__skills=2, tips__most=3, tips__test="never")
    assert set(found["skills"]) == {"taking products", "sums"}
    assert sum(found["skills"].values()) == found["problems"]["contrasted"]
    assert len(found["tips"]) <= 3
    assert {tip["skill"] for tip in found["tips"]} == {"taking products", "sums"}
    text = found["written"]["tips"]["text"]
    assert text.count("Where it takes ") == 2
    assert GOOD in text.split("Where it takes taking products:")[1].split("Where it takes")[0]
    StandIn.reply = lambda role, texts: "1: a\n1: b" if "SKILLS" in texts[-1] else stand_in(role, texts)
    assert set(run(cfg, tips__skills=3, tips__test="never")["skills"]) == {"general"}


@pytest.mark.slow
def test_the_prompt_gives_a_teacher_the_tips_as_they_are_and_a_student_none(
    cfg: DictConfig, tmp_path: Path
) -> None:
    odd = "Put {braces}, \\frac{a}{b}, 'quotes' and # signs: they stay, as does {{ this }}."
    StandIn.reply = lambda role, texts: stand_in(role, texts).replace(OTHER, odd)
    text = run(cfg, tips__test="never")["written"]["tips"]["text"]
    assert odd in text
    assert any(odd in texts[0] for texts in asked("solver"))
    given = ["--config-dir", str(tmp_path / "out" / "conf"), "teacher_prompt=tips"]
    told = check_overrides(CONFIG, "generate", [*given, "model=tiny", "data=gsm8k"])
    recipe = build(told.data.recipe, "data")
    example = Example("0", "1+2=")
    assert recipe.teacher_prompt.messages(example)[0] == {"role": "system", "content": text}
    assert text not in str(recipe.student_prompt.messages(example))
    assert recipe.teacher_prompt.messages(example)[1:] == recipe.student_prompt.messages(example)


@pytest.mark.slow
def test_both_models_may_be_behind_servers(cfg: DictConfig, stub: Stub, tmp_path: Path) -> None:
    stub.reply = lambda body: stand_in(body["model"], [turn["content"] for turn in body["messages"]])
    own = changed(cfg, tips__held_out=3, tips__problems=3, tips__test="never")
    for engine, role in (("engine", "solver"), ("writer_engine", "writer")):
        own[engine] = OmegaConf.load(CONFIG / "engine" / "server.yaml")
        own[engine].url, own[engine].served_as = stub.url, role
    write_tips(own)
    found = json.loads((tmp_path / "out" / "tips.json").read_text())
    assert [tip["text"] for tip in found["tips"]] == [GOOD, OTHER]
    assert found["writer"] == "writer"  # who wrote, not whose tokenizer counted
    asked_for = [body["model"] for body in stub.seen]
    # The writer once for the tips and each control but for one that is asked again.
    assert (asked_for.count("writer"), asked_for.count("solver")) == (4, 6)
    # Another model behind the same engine is not the one whose replies are stored.
    write_tips(changed(own, writer_engine__served_as="writer2"))
    assert [body["model"] for body in stub.seen].count("writer2") == 4
    assert len(stub.seen) == 14


def test_a_model_without_a_chat_template_reads_the_text_above_the_prompt(
    cfg: DictConfig, solver: Path
) -> None:
    [benchmark] = benchmarks_of(cfg.benchmark)
    benchmark = replace(benchmark, system="Be short.", prompt="Q: {problem}")
    chat, plain = (find_model(str(solver), key="solver") for _ in range(2))
    assert with_text(benchmark, None, chat) is benchmark
    plain.tokenizer.chat_template = None
    problem = Example("0", "1+2=", gold="3")
    texts = {}
    for name, source in (("chat", chat), ("plain", plain)):
        [request] = ask(with_text(benchmark, "Use {this}.", source), source, [problem]).requests
        texts[name] = source.tokenizer.decode(request.prompt_ids)
    assert texts["plain"] == "Use {this}.\n\nQ: 1+2="
    assert "Be short.\n\nUse {this}.<|im_end|>" in texts["chat"]
    assert texts["chat"].count("1+2=") == 1
    text = neutral_text(chat.tokenizer, 700)
    assert abs(token_count(chat.tokenizer, text) - 700) <= 2


@pytest.mark.slow
def test_mistakes_get_a_sentence(cfg: DictConfig, tmp_path: Path) -> None:
    def said(own: DictConfig | None = None, **values: Any) -> str:
        own = changed(cfg if own is None else own, **values)
        try:
            check(own, [])
            write_tips(own)
        except UserError as error:
            return str(error)
        return ""

    several = changed(cfg, benchmark__svamp=cfg.benchmark.arithmetic)
    none = cfg.copy()
    with open_dict(none):
        none.benchmark.pop("arithmetic")
    assert "benchmark: none is named" in said(none)
    assert "benchmark: 2 are named (arithmetic, svamp)" in said(several)
    code = changed(cfg, benchmark__arithmetic__votes=False)
    assert "benchmark=arithmetic has no final answers" in said(code)
    assert "trace_sets= is not set" in said(trace_sets=None)
    assert "data file nothere does not exist" in said(trace_sets=["nothere"])
    (tmp_path / "plain.jsonl").write_text("{}\n")
    assert "is no trace set: grade it first" in said(trace_sets=str(tmp_path / "plain.jsonl"))
    assert "writer= is not set" in said(writer=None)
    assert "solver=tiny2 is neither" in said(solver="tiny2")
    assert "tips.test='x' is not one of chosen, always, never" in said(tips__test="x")
    assert "tips.words=0 must be a whole number, at least 1" in said(tips__words=0)
    assert "the tokenizer of package:distill/tiny/student cannot spell tips" in said(solver="tiny")
    assert "no problem is left with both a right and a wrong trace" in said(tips__max_tokens=2)
    assert "show it fewer problems (tips.batch=)" in said(writer="tiny")
    assert not (tmp_path / "out" / "tips.json").exists()
