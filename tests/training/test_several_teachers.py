"""Tests of runs with several teachers, against loops that pick each trace's own."""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_training import BY_STEPS, arguments, unbroken_and_resumed

from distill.data.batch import Batch
from distill.data.readers import read_examples
from distill.data.trace import Example, Recorded, Trace, encode_completion
from distill.errors import UserError
from distill.losses import divergence, weights
from distill.losses.chunked import ChunkedLoss, PerTokenLosses
from distill.models.find import find_model
from distill.models.language_model import LanguageModel, ModelSource
from distill.models.teacher_settings import read_teachers
from distill.objective.objective import Objective
from distill.objective.step_values import StepProposals
from distill.objective.terms import LossSums, MicroBatch
from distill.planning.plan import make_plan
from distill.planning.ranks import held_live
from distill.planning.sizes import measure
from distill.runs.card import Card, card_text
from distill.teacher.distribution import TeacherDistribution
from distill.teacher.several import Teachers
from distill.tiny import task
from distill.training.datamodule import DistillDataModule, Repeats
from distill.training.module import DistillModule
from distill.training.prepare import Prepared, prepare
from distill.training.recipe import TraceRecipe
from distill.training.run import _data, _module, train
from distill.training.setup import Setup
from distill.training.teachers import check_several

DOMAINS = ["one", "two", "two", "one", "two", "one", "one"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Traces that name their teachers."""
    path = tmp_path_factory.mktemp("routed") / "data.jsonl"
    with path.open("w") as stream:
        for problem, domain in zip(
            task.problems(len(DOMAINS), split="train", operations=(2, 4)), DOMAINS, strict=True
        ):
            record = {"problem": problem, "completion": task.write_solution(problem, "single")}
            stream.write(json.dumps(record | {"domain": domain, "gold": task.answer(problem)}) + "\n")
    return path


@pytest.fixture(scope="module")
def twin(tiny_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher's weights as another model's: its files differ, its numbers do not."""
    folder = tmp_path_factory.mktemp("twin") / "teacher"
    shutil.copytree(tiny_pair[1], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"note": "a copy"}))
    return folder


class Made:
    """A run that is prepared, and its first batch: all traces, in the order of the set."""

    def __init__(self, pair: tuple[Path, Path], data: Path, folder: Path, *words: str) -> None:
        given = arguments(pair, data, folder, f"dir={folder / 'run'}", *words)
        if any("model.teachers=" in word for word in words):
            given = [word for word in given if not word.startswith("model.teacher=")]
        self.setup = Setup.from_overrides(given)
        self.prepared: Prepared = prepare(self.setup)
        steps = self.setup.length.steps(self.prepared.traces, self.setup.objective)
        self.module: DistillModule = _module(self.setup, self.prepared, steps)
        state: Any = type("", (), {"global_step": 0, "accumulate_grad_batches": 1, "global_rank": 0})()
        self.module._trainer = state  # pyright: ignore[reportAttributeAccessIssue]
        self.module.on_fit_start()
        self.data: DistillDataModule = _data(self.setup, self.prepared, steps)
        self.batch: Batch = self.data._batch(list(self.prepared.traces))

    def compared(self, *, on_policy: bool = False) -> MicroBatch:
        return self.module._compared(self.batch, 0, on_policy)[0]

    def sums(self) -> LossSums:
        objective, micro = self.setup.objective, self.compared()
        with torch.no_grad():
            head = self.module.student_lm.completion_head(
                self.batch.input_ids, self.batch.mask, self.batch.layout
            )
            inputs = objective.chunked_inputs(head, micro)
            return objective.sums(micro, PerTokenLosses(*ChunkedLoss.apply(head.hidden, head.weight, inputs)))

    def by_problem(self) -> dict[str, list[float]]:
        """w_t · ℓ_t of each trace's tokens, by problem."""
        sums = self.sums()
        values = sums.weights * sums.losses
        return {
            example.problem: values[row][self.batch.mask[row]].tolist()
            for row, example in enumerate(self.batch.examples)
        }


def several(one: Path, two: Path, *words: str) -> list[str]:
    return [f"model.teachers={{one: {one}, two: {two}}}", *words]


ROUTED = "data.fields.teacher=domain"


def double(folder: Path) -> LanguageModel:
    return find_model(str(folder), key="model", dtype="float64").load()


@torch.no_grad()
def log_softmax_of(lm: LanguageModel, prompt: Sequence[int], completion: Sequence[int]) -> torch.Tensor:
    """[tokens, vocab] by the model's own forward pass, for one trace alone."""
    ids = torch.tensor([[*prompt, *completion]])
    logits = lm.model(ids).logits[0, len(prompt) - 1 : -1, : lm.vocab_size]
    return logits.log_softmax(-1)


def expected_dcod_kl(
    student: LanguageModel, teachers: Mapping[str, LanguageModel], shares: Mapping[str, float], trace: Any
) -> list[float]:
    """σ(log q(y) - log p(y)) · KL(p‖q) of each token, with p the mixture of the teachers."""
    ids = trace.prompt_ids.tolist(), trace.completion_ids.tolist()
    log_q = log_softmax_of(student, *ids)
    p = sum((shares[name] * log_softmax_of(teachers[name], *ids).exp() for name in shares), torch.zeros(()))
    found = []
    for position, token in enumerate(ids[1]):
        a, b = p[position], log_q[position].exp()
        kl = float((a * (a.log() - b.log())).sum())
        found.append(kl * float(b[token] / (b[token] + a[token])))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "source"),
    [
        ("routed", "live"),
        ("mixed", "hidden_states"),
        ("one_at_a_time", "live"),
        pytest.param("routed", "hidden_states", marks=pytest.mark.exhaustive),
        pytest.param("mixed", "live", marks=pytest.mark.exhaustive),
    ],
)
def test_each_trace_learns_from_what_a_loop_picks(
    tiny_pair: tuple[Path, Path], data: Path, tmp_path: Path, source: str, how: str
) -> None:
    """DCOD's weight and the KL, of its own teacher or of all mixed, in float64 trace by trace."""
    extra = {
        "routed": [ROUTED],
        "mixed": ["model.teacher_weights={one: 3, two: 1}"],
        "one_at_a_time": [ROUTED, "model.teachers_in_memory=one"],
    }[how]
    words = [*several(*tiny_pair, *extra), "loss=dcod_kl", f"loss.distribution.source={source}"]
    made = Made(tiny_pair, data, tmp_path, *words)
    models = {"one": double(tiny_pair[0]), "two": double(tiny_pair[1])}
    student, found = double(tiny_pair[0]), made.by_problem()
    domains = dict(zip(task.problems(len(DOMAINS), split="train", operations=(2, 4)), DOMAINS, strict=True))
    for trace in made.prepared.traces:
        problem = trace.example.problem
        shares = {"one": 0.75, "two": 0.25} if how == "mixed" else {domains[problem]: 1.0}
        expected = expected_dcod_kl(student, models, shares, trace)
        assert found[problem] == pytest.approx(expected, abs=2e-6), problem
    if source == "live":
        assert any(value > 1e-3 for values in found.values() for value in values)
    else:  # no teacher is in memory
        assert made.module.frozen == {}


@pytest.mark.slow
def test_one_model_under_two_names_is_the_single_teacher_bit_for_bit(
    tiny_pair: tuple[Path, Path], data: Path, tmp_path: Path
) -> None:
    single = Made(tiny_pair, data, tmp_path / "single", "loss=dcod_kl")
    both = Made(
        tiny_pair, data, tmp_path / "both", *several(tiny_pair[1], tiny_pair[1], ROUTED), "loss=dcod_kl"
    )
    assert list(both.module.frozen) == ["teacher.one"]  # loaded once
    a, b = single.sums(), both.sums()
    assert torch.equal(a.total, b.total)
    assert torch.equal(a.weights, b.weights)


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss",
    [
        "validity data.step_separator=';' loss.proposals.max_step_tokens=3",
        *(
            pytest.param(words, marks=pytest.mark.exhaustive)
            for words in (
                "reverse_kl data.teacher_prompt.user='{problem}{problem}'",
                "dcod",
                "dcod_jsd loss.distribution.source=hidden_states",
                "forward_kl loss.distribution.source=top_k loss.distribution.top_k=4",
                "forward_kl loss.teacher_sees=solution",
                "dcod_kl data.layout=packed",
                "dcod_kl model.teachers_in_memory=one data.layout=packed",
            )
        ),
    ],
)
def test_a_copy_of_the_teacher_under_another_name_changes_nothing(
    tiny_pair: tuple[Path, Path], twin: Path, data: Path, tmp_path: Path, loss: str
) -> None:
    """Two models with the same numbers are as one, whatever a loss asks of them."""
    words = [f"loss={loss.split()[0]}", *loss.split()[1:]]
    alone = [word for word in words if "in_memory" not in word]
    single = Made(tiny_pair, data, tmp_path / "single", *alone).by_problem()
    both = Made(tiny_pair, data, tmp_path / "both", *several(tiny_pair[1], twin, ROUTED), *words)
    assert len(both.batch.parts) == 2
    for problem, values in both.by_problem().items():
        assert values == pytest.approx(single[problem], abs=1e-6, rel=1e-5)


@pytest.mark.exhaustive
def test_a_mixture_of_a_model_and_its_copy_is_the_model(
    tiny_pair: tuple[Path, Path], twin: Path, data: Path, tmp_path: Path
) -> None:
    words = ["loss=dcod_kl", "data.teacher_prompt.user='{problem}{problem}'"]
    single = Made(tiny_pair, data, tmp_path / "single", *words).by_problem()
    mixed = several(tiny_pair[1], twin, "model.teacher_weights=equal")
    for problem, values in Made(tiny_pair, data, tmp_path / "mixed", *mixed, *words).by_problem().items():
        assert values == pytest.approx(single[problem], abs=1e-6, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("prompted", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
def test_rollouts_are_scored_by_the_prompts_teacher(
    tiny_pair: tuple[Path, Path], data: Path, tmp_path: Path, prompted: bool
) -> None:
    words = several(*tiny_pair, ROUTED)
    if prompted:
        words.append("data.teacher_prompt.user='{problem}{problem}'")
    made = Made(
        tiny_pair, data, tmp_path, *words, "loss=opd", "loss.rollouts.samples=2", "data.batch_size=14"
    )
    assert made.setup.objective.writes_all
    rollouts: Any = made.setup.objective.rollouts
    made.batch, _ = made.module._roll_out(made.batch, rollouts, 0)
    assert len(made.batch.examples) == 2 * len(DOMAINS)
    known = made.compared(on_policy=True).token_signals["teacher_logprobs"]
    models = {"one": double(tiny_pair[0]), "two": double(tiny_pair[1])}
    for row, example in enumerate(made.batch.examples):
        at = made.batch.prompt_lengths[row]
        labels = made.batch.labels[row][made.batch.mask[row]].tolist()
        prompt = made.batch.input_ids[row, :at].tolist()
        assert example.teacher is not None
        read = prompt * 2 if prompted else prompt
        log_p = log_softmax_of(models[example.teacher], read, labels)
        expected = [float(log_p[place, token]) for place, token in enumerate(labels)]
        assert known[row][made.batch.mask[row]].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_teachers_with_several_tokenizers_are_read_by_spans(
    tiny_pair: tuple[Path, Path], data: Path, tmp_path: Path, permuted_tokenizer: Any
) -> None:
    """The second teacher numbers the same characters otherwise, so that its log-probs of a span differ."""
    other = tmp_path / "other"
    shutil.copytree(tiny_pair[1], other)
    permuted_tokenizer.save_pretrained(other)
    made = Made(tiny_pair, data, tmp_path, *several(tiny_pair[1], other, ROUTED), "loss=dcod_spans")
    single = Made(tiny_pair, data, tmp_path / "a", "loss=dcod").by_problem()
    foreign = Made((tiny_pair[0], other), data, tmp_path / "b", "loss=dcod_spans").by_problem()
    found = made.by_problem()
    for example in made.batch.examples:
        expected = (single if example.teacher == "one" else foreign)[example.problem]
        assert found[example.problem] == pytest.approx(expected, abs=1e-6, rel=1e-5)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"teachers": "a/b"}, r"model\.teachers='a/b' must give each teacher a name"),
        ({"teachers": {"one": 3}}, r"model\.teachers\.one=3 is no model: give a hub id, a folder or a GGUF"),
        ({"teachers": {"one": {"modle": "a/b"}}}, r"model\.teachers\.one\.modle: a teacher has no such key"),
        (
            {"teachers": None, "teacher_weights": "equal"},
            r"teacher_weights=equal mixes several teachers, and",
        ),
        ({"teacher_weights": {"one": 1}}, r"teacher_weights names one, and model\.teachers one, two"),
        ({"teacher_weights": {"one": 1, "two": 0}}, r"teacher_weights\.two=0 must be a positive number"),
        ({"teacher_weights": "half"}, r"teacher_weights='half' must be equal, or a weight for each of one"),
        ({"teachers_in_memory": "two"}, r"teachers_in_memory='two' is not one of all, one"),
    ],
)
def test_a_setting_that_is_none_is_refused_by_its_key(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_teachers({"teachers": {"one": "a/b", "two": "c/d"}, **keys})


def test_one_teacher_beside_several_is_refused() -> None:
    model = {"teachers": {"one": "a/b", "two": "c/d"}, "teacher": "of/the-group"}
    assert read_teachers(model, ["loss=dcod", "model.teacher=null"]) is not None
    with pytest.raises(
        UserError, match=r"model\.teacher=e/f: model\.teachers \(one, two\) stands in its place"
    ):
        read_teachers(model, ["loss=dcod", "model.teacher=e/f"])


def test_weights_of_a_mixture_sum_to_one() -> None:
    model = {
        "teachers": {"one": "a/b", "two": {"model": "c/d", "dtype": "bfloat16"}},
        "teacher_dtype": "auto",
    }
    found = read_teachers({**model, "teacher_weights": {"one": 3, "two": 1}})
    assert found is not None
    assert found.weights == {"one": 0.75, "two": 0.25}
    assert [own["teacher_dtype"] for own in found.models.values()] == ["auto", "bfloat16"]


KL = {"token_loss": divergence.forward_kl, "token_weight": weights.uniform}


@pytest.mark.parametrize(
    ("loss", "others", "said"),
    [
        ({"token_loss": divergence.cross_entropy}, {}, r"\(one, two\): loss=mine asks nothing of a teacher"),
        ({**KL, "teacher": "initial"}, {}, "takes the student itself as teacher"),
        (KL, {"served": True}, r"teacher\.source=server is one teacher"),
        ({**KL, "token_loss": divergence.uld}, {}, "compares the tokens of two vocabularies"),
        (
            {
                "token_loss": divergence.forward_kl,
                "token_weight": weights.validity,
                "proposals": StepProposals(),
            },
            {"shares": True},
            r"a mixture proposes no reasoning steps, .* model\.teacher_weights=null data\.fields\.teacher=",
        ),
        (KL, {"shares": True, "writes": True}, r"a mixture writes no traces \(data\.completions=teacher\)"),
        (
            {**KL, "token_weight": weights.teacher_right},
            {"shares": True},
            "a mixture answers no problems",
        ),
        (
            {**KL, "distribution": TeacherDistribution(source="top_k")},
            {"shares": True},
            r"source=top_k keeps other tokens of each teacher, which cannot be mixed: take .*hidden_states",
        ),
        (
            {"token_loss": divergence.cross_entropy, "token_weight": weights.span_support_ratio},
            {"shares": True},
            "which teachers with several tokenizers split in different places",
        ),
        (
            KL,
            {"alone": True, "trainer": {"strategy": "fsdp"}},
            r"in_memory=one moves whole models, and trainer",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(
    tiny_pair: tuple[Path, Path], loss: dict[str, Any], others: dict[str, Any], said: str
) -> None:
    objective = Objective("dataset", **{"token_weight": weights.uniform, **loss})
    sources = {
        name: find_model(str(folder), key="model")
        for name, folder in zip(("one", "two"), tiny_pair, strict=True)
    }
    shares = {"one": 0.5, "two": 0.5} if "shares" in others else None
    teachers = Teachers.of(sources, shares, one_at_a_time="alone" in others)
    recipe = TraceRecipe(lambda: [], completions="teacher" if "writes" in others else "dataset")
    served = others.get("served", False)
    with pytest.raises(UserError, match=said):
        check_several(teachers, objective, recipe, served, others.get("trainer", {}), "mine")


@pytest.mark.parametrize(
    ("record", "named_in", "said"),
    [
        (
            {"domain": "three"},
            "domain",
            r"line 8\) names the teacher 'three' in its field domain, .* of model\.teachers \(one, two\)",
        ),
        ({"domain": None}, "domain", r"line 8\) names no teacher: its field domain is empty, and there are"),
        ({}, None, r"line 1\) names no teacher, and there are several \(one, two\): say which field does"),
    ],
)
def test_a_route_without_a_teacher_is_refused_with_its_place(
    tiny_pair: tuple[Path, Path],
    data: Path,
    tmp_path: Path,
    record: dict[str, Any],
    named_in: str | None,
    said: str,
) -> None:
    path = tmp_path / "data.jsonl"
    first = json.loads(data.read_text().splitlines()[0])
    path.write_text(data.read_text() + json.dumps({**first, **record}) + "\n")
    fields = {"problem": "auto", "completion": "auto", "teacher": named_in}
    with pytest.raises(UserError, match=said):
        of_pair(tiny_pair, named_in).groups(read_examples(path=str(path), fields=fields))


def of_pair(pair: tuple[Path, Path], named_in: str | None = None) -> Teachers:
    names = zip(("one", "two"), pair, strict=True)
    return Teachers.of({name: find_model(str(one), key="model") for name, one in names}, named_in=named_in)


def test_a_teacher_without_a_record_is_refused(tiny_pair: tuple[Path, Path]) -> None:
    examples = [Example("0", "1+1=", teacher="one")]
    teachers = of_pair(tiny_pair, "domain")
    with pytest.raises(UserError, match=r"model\.teachers\.two: no record learns from it \(they name one\)"):
        teachers.groups(examples)
    assert teachers.groups(examples, every=False) == {"teacher.one": [0], "teacher.two": []}


@pytest.mark.slow
def test_a_run_whose_routes_are_wrong_leaves_no_folder(
    tiny_pair: tuple[Path, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends before a model is loaded."""
    monkeypatch.setattr(ModelSource, "load", lambda self, cache=None: pytest.fail("loaded"))
    given = [word for word in arguments(tiny_pair, data, tmp_path) if "model.teacher=" not in word]
    words = [*given, *several(*tiny_pair), "loss=dcod", f"dir={tmp_path / 'run'}"]
    with pytest.raises(UserError, match="names no teacher, and there are several"):
        train(Setup.from_overrides(words))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_teacher_with_another_vocabulary_is_refused_where_tokens_are_compared(
    tiny_pair: tuple[Path, Path], data: Path, tmp_path: Path, permuted_tokenizer: Any
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_pair[1], other)
    permuted_tokenizer.save_pretrained(other)
    given = [word for word in arguments(tiny_pair, data, tmp_path) if "model.teacher=" not in word]
    with pytest.raises(
        UserError, match=r"teacher's log-probs .*vocabularies differ .*teacher of the student's"
    ):
        Setup.from_overrides([*given, *several(tiny_pair[1], other, ROUTED), "loss=dcod"])


def recorded(writer: str, fingerprint: str) -> Example:
    ids = np.array([1], dtype=np.int32)
    return Example(
        "0", "1+1=", recorded=Recorded("", ids, ids, True, True, (fingerprint, "float32"), None, writer)
    )


def test_a_trace_learns_from_the_teacher_that_wrote_it(tiny_pair: tuple[Path, Path]) -> None:
    teachers = of_pair(tiny_pair)
    sources = {role.partition(".")[2]: source for role, source in teachers.sources.items()}
    assert teachers.role_of(recorded("elsewhere", sources["two"].fingerprint)) == "teacher.two"
    assert teachers.role_of(recorded(sources["one"].name, "")) == "teacher.one"  # as a server writes
    with pytest.raises(UserError, match=r"trace 0 was written by stranger, none of model\.teachers"):
        teachers.role_of(recorded("stranger", ""))
    # A name that a record gives counts more, and may be the model's.
    named = of_pair(tiny_pair, "who")
    assert named.role_of(Example("0", "1+1=", teacher="two")) == "teacher.two"
    assert named.role_of(Example("0", "1+1=", teacher=sources["one"].name)) == "teacher.one"


@pytest.mark.slow
def test_dcods_ratio_has_the_writers_own_log_probs(tiny_pair: tuple[Path, Path], tmp_path: Path) -> None:
    """They are those that the trace set has, whoever of the teachers wrote."""
    sources = [find_model(str(folder), key="model") for folder in tiny_pair]
    tokenizer, path = sources[0].tokenizer, tmp_path / "written.jsonl"
    problems = task.problems(4, split="train", operations=(2, 3))
    with path.open("w") as stream:
        for number, problem in enumerate(problems):
            writer = sources[number % 2]
            text = task.write_solution(problem, "single")
            ids = encode_completion(tokenizer, text).tolist()
            record = {
                "id": str(number),
                "problem": problem,
                "completion": text,
                "gold": None,
                "finished": True,
            }
            record |= {"prompt_ids": tokenizer(problem).input_ids, "completion_ids": ids}
            record |= {"tokenizer": writer.vocabulary, "teacher": writer.name, "teacher_dtype": "float32"}
            record |= {"teacher_revision": writer.fingerprint, "teacher_logprobs": [-0.5 * number] * len(ids)}
            stream.write(json.dumps(record) + "\n")
    made = Made(tiny_pair, path, tmp_path, *several(*tiny_pair), "loss=dcod")
    assert [trace.teacher for trace in made.prepared.traces] == ["teacher.one"] * 2 + ["teacher.two"] * 2
    student, weights_of = double(tiny_pair[0]), made.sums().weights
    for row, trace in enumerate(made.prepared.traces):
        log_q = log_softmax_of(student, trace.prompt_ids.tolist(), trace.completion_ids.tolist())
        recorded = math.exp(-0.5 * int(trace.example.id))
        q = [float(log_q[place, token].exp()) for place, token in enumerate(trace.completion_ids.tolist())]
        expected = [own / (own + recorded) for own in q]
        assert weights_of[row][made.batch.mask[row]].tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_the_plan_counts_all_teachers_or_the_largest(
    tiny_pair: tuple[Path, Path], data: Path, tmp_path: Path
) -> None:
    words = several(*tiny_pair, ROUTED, "loss=forward_kl")
    given = [word for word in arguments(tiny_pair, data, tmp_path) if "model.teacher=" not in word]
    setup = Setup.from_overrides([*given, *words])
    plan = make_plan(setup)
    sizes = {
        name: sum(p.numel() * 4 for p in find_model(str(folder), key="model").skeleton().parameters())
        for name, folder in zip(("one", "two"), tiny_pair, strict=True)
    }
    assert {name: plan.memory[f"weights of the teacher {name}, live"] for name in sizes} == sizes
    assert any("shares of the traces: one 57%, two 43%" in note for note in plan.notes)
    assert setup.teachers is not None
    alone = replace(setup, teachers=replace(setup.teachers, one_at_a_time=True))
    frozen = {role: measure(source) for role, source in setup.frozen.items()}
    held = held_live(alone, frozen)
    assert held["weights of the largest teacher, one at a time"] == max(sizes.values())
    assert not any("live" in name for name in held)


@pytest.mark.exhaustive
@pytest.mark.parametrize("held", ["all", "one"])
def test_a_resumed_run_repeats_an_unbroken_one_bit_for_bit(
    tiny_pair: tuple[Path, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: str
) -> None:
    own = [ROUTED, "loss=on_policy_kd", f"model.teachers_in_memory={held}", *BY_STEPS]
    words = arguments(tiny_pair, data, tmp_path, *own, "trainer.accumulate_grad_batches=2")
    words = [word for word in words if "model.teacher=" not in word]
    unbroken_and_resumed([*words, *several(*tiny_pair), "data.batch_size=3"], tmp_path, monkeypatch)


def test_a_checkpoint_of_other_routes_is_not_resumed() -> None:
    ids = np.array([1, 2], dtype=np.int32)
    options: dict[str, Any] = {"signals": (), "batch_size": 1, "steps": 1, "seed": 0, "pad_id": 0}
    module = DistillDataModule(
        [Trace(Example("0", ""), ids, ids)], **options, repeats=Repeats(routing={"teacher.one": 1})
    )
    state = module.state_dict()
    module.load_state_dict(state)
    with pytest.raises(UserError, match=r"traces had the teachers .*'teacher\.one': 5.* and now have"):
        module.load_state_dict(state | {"routing": {"teacher.one": 5}})
    alone = DistillDataModule([Trace(Example("0", ""), ids, ids)], **options)
    assert alone.state_dict().keys() == {"traces"}  # as checkpoints of earlier versions


def test_the_model_card_names_all_teachers() -> None:
    model = {"teachers": {"math": "a/b", "code": {"model": "c/d", "dtype": "bfloat16"}}, "teacher": "e/f"}
    summary = {"frozen": {"teacher.math": "", "teacher.code": ""}, "loss": "dcod", "traces": 3, "steps": 1}
    summary |= {"tokens": 3.0, "precision": "32-true", "seed": 0}
    config = {"model": model, "optimizer": {"lr": 0.1}}
    licenses: dict[str, str] = dict.fromkeys(
        ("license", "base_license", "teacher_license", "data_license"), "unknown"
    )
    text = card_text(Card("student", "g/h", licenses, config, summary))
    assert "Teachers, of which each record has one: math `a/b`, code `c/d`" in text
    assert "e/f" not in text
    mixed = partial(
        card_text,
        Card(
            "student",
            "g/h",
            licenses,
            {**config, "model": {**model, "teacher_weights": {"math": 2, "code": 1}}},
            summary,
        ),
    )
    assert "Teachers, whose distributions are mixed (weights: math 2, code 1): math `a/b`" in mixed()
