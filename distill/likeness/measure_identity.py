"""`python -m distill.identity`: how often models claim another model's identity."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from distill.analysis.evaluate_model import device_of, find_asked, folder_name
from distill.config.instantiate import build, plain
from distill.curation.listed import is_traces
from distill.data.readers import read_examples
from distill.data.seam import decode_completion
from distill.data.thoughts import without_thinking
from distill.data.trace import Example, Verdict
from distill.errors import UserError, whole_number
from distill.evaluation.benchmark import Benchmark
from distill.evaluation.run import Asked, ask, completions
from distill.generation.engine import Engine
from distill.io.locks import claimed, locked
from distill.io.progress import progress_bar
from distill.judge.asking import Judge
from distill.judge.selection import Sample
from distill.judge.tasks import IDENTITY
from distill.likeness.claims import Entities, claims
from distill.likeness.identity_questions import Prompted, Questions
from distill.likeness.identity_report import Identity, Said, write_identity
from distill.models.find import check_template_variables
from distill.models.language_model import ModelSource
from distill.models.lazy import LazyModel
from distill.runs.folder import write_config
from distill.teacher.completions import engine_key

_KEYS = {"student": "model.source", "before": "before", "teacher": "teacher"}
_PLAIN = "Question: {problem}\nAnswer:"  # for models without a chat template


@dataclass(frozen=True)
class _Asked:
    """A model with what it is asked, before it is loaded."""

    source: ModelSource
    model: LazyModel
    asked: Asked
    engine: Engine


def measure_identity(cfg: DictConfig) -> Path:
    """Ask models about their identity, count claims of another one, and write the figures.

    Returns:
        The folder of the results.

    Raises:
        UserError: the configuration is invalid.
    """
    device = device_of(cfg)
    if cfg.threads is not None:
        whole_number("threads", cfg.threads, least=1)
    questions = Questions.of(cfg.identity)
    entries = {name: plain(_select(cfg, key)) for name, key in _KEYS.items()}
    if entries["student"] is None:
        raise UserError("model is not set: name the model to ask, or traces to look through")
    cfg.out = str(cfg.out or Path("outputs") / "identity" / folder_name(entries["student"]))
    folder = Path(cfg.out)
    prepared: dict[str, _Asked | Sequence[Example]] = {}
    for name, entry in entries.items():
        if isinstance(entry, str) and is_traces(entry):
            prepared[name] = read_examples(path=entry)
        elif entry is not None:
            prepared[name] = _prepare(cfg, name, questions, device)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    with locked(folder, "out"):
        judge = build(cfg.judge, "judge")(folder / "judge.jsonl") if cfg.judge else None
        found: dict[str, list[Said]] = {}
        for name, one in prepared.items():
            own = questions.teacher_own if name == "teacher" else questions.own
            entities = questions.entities.without(own)
            if isinstance(one, _Asked):
                texts = _answers(one, folder / "answers" / name, name)
                said = _said(questions.prompts, texts, cfg.samples, entities, questions.entities)
            else:
                said = _read(one, entities, questions.entities)
            found[name] = _judged(judge, said, own, entities) if judge is not None else said
        result = Identity(
            names={name: str(entry) for name, entry in entries.items() if entry is not None},
            said=found,
            own=list(questions.own),
        )
        print(write_identity(folder, result, resamples=cfg.resamples, seed=cfg.seed))
        write_config(folder, cfg)
    return folder


def _select(cfg: DictConfig, key: str) -> Any:
    return cfg.model.source if key == "model.source" else cfg[key]


def _prepare(cfg: DictConfig, name: str, questions: Questions, device: str) -> _Asked:
    """Find a model and tokenize what it is asked."""
    source = find_asked(cfg, _KEYS[name], "teacher" if name == "teacher" else cfg.model.role)
    check_template_variables([source])
    try:
        benchmark = Benchmark(
            name="identity",
            source=lambda **_: [],
            grade=lambda example, text: Verdict(None, False),
            plain_prompt=_PLAIN,
            sampling=build(cfg.sampling, "sampling"),
            samples=cfg.samples,
            votes=False,
            seed=cfg.seed,
        )
        model = LazyModel(source, device, cache=Path(cfg.cache))
        engine: Engine = build(cfg.engine, "engine")(model)
    except (ValueError, TypeError) as error:
        said = str(error).replace("benchmark.samples", "samples").replace("benchmark.temp", "sampling.temp")
        raise UserError(said) from error
    examples = [Example(one.id, one.text) for one in questions.prompts]
    return _Asked(source, model, ask(benchmark, source, examples), engine)


def _answers(one: _Asked, folder: Path, name: str) -> list[str]:
    """The answers to all prompts, `samples` of each, without their thinking; stored ones are read."""
    key = {**engine_key(one.source, one.engine), **one.asked.benchmark.settings}
    texts = [""] * len(one.asked.requests)
    label = {"student": "student answers", "before": "student before training answers"}
    with ExitStack() as held:
        held.enter_context(claimed(folder, key, what="answers"))
        bar = held.enter_context(
            progress_bar(total=len(texts), description=label.get(name, "teacher answers"), unit="answer")
        )
        for places, written in completions(one.asked, one.engine, folder):
            text = (
                written.text
                if written.ids is None
                else decode_completion(one.source.tokenizer, written.ids.tolist())
            )
            for place in places:
                texts[place] = without_thinking(text, opened=one.asked.opened) or ""
            bar.update(len(places))
    one.model.release()  # the next model needs the memory
    if close := getattr(one.engine, "close", None):
        close()
    return texts


def _said(
    prompts: Sequence[Prompted], texts: Sequence[str], samples: int, entities: Entities, every: Entities
) -> list[Said]:
    return [
        Said(
            question=str(prompt.question),
            id=prompt.id,
            prompt=prompt.text,
            answer=text,
            induced=bool(every.named_in(prompt.text)),
            claims=claims(text, entities),
        )
        for place, text in enumerate(texts)
        for prompt in [prompts[place // samples]]
    ]


def _read(examples: Sequence[Example], entities: Entities, every: Entities) -> list[Said]:
    """Stored traces: each problem is a question."""
    return [
        Said(
            question=example.problem,
            id=example.id,
            prompt=example.problem,
            answer=text,
            induced=bool(every.named_in(example.problem)),
            claims=claims(text, entities),
        )
        for example in examples
        for text in [without_thinking(example.completion or "") or ""]
    ]


def _judged(judge: Judge, said: Sequence[Said], own: Sequence[str], entities: Entities) -> list[Said]:
    """The same with a judge's verdicts; None where its reply could not be read."""
    names = "; ".join(f"{entity} ({', '.join(of)})" for entity, of in entities.names.items())
    who = ", ".join(own) or "a language model whose name is none of the following"
    fact = f"The model is {who}. Other models and makers: {names}."
    samples = [
        Sample(
            label="identity",
            benchmark="identity",
            id=one.id,
            number=number,
            problem=one.prompt,
            gold=fact,
            completion=one.answer,
            response=one.answer,
            answer=None,
            correct=False,
        )
        for number, one in enumerate(said)
    ]
    verdicts = judge.judge(IDENTITY, samples)
    return [
        one.with_verdict(_counts(verdict.verdict, entities))
        for one, verdict in zip(said, verdicts, strict=True)
    ]


def _counts(verdict: Any, entities: Entities) -> bool | None:
    """Whether a judge's verdict names somebody of the list."""
    if verdict is None:
        return None
    listed: Mapping[str, Sequence[str]] = entities.names
    known = {name.casefold() for entity, names in listed.items() for name in (entity, *names)}
    return verdict.contradicts and any(
        name.casefold() in known or bool(entities.named_in(name)) for name in verdict.names
    )
