"""`python -m distill.export`: write a student in another format, and compare it with the full student."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from distill.analysis.evaluate_model import Results, device_of, folder_name
from distill.config.instantiate import resolved
from distill.data.batch import hash_traces
from distill.data.trace import Trace
from distill.errors import UserError
from distill.evaluation.benchmark import benchmarks_of
from distill.evaluation.comparison import Comparison
from distill.evaluation.comparison_report import compare_evaluations
from distill.evaluation.run import Asked, ask, evaluate
from distill.exporting import formats
from distill.exporting.hub import check_push, push
from distill.exporting.measure import compare_texts, measure_fit, same_spelling, weights_bytes
from distill.exporting.report import Report, place_in_words
from distill.exporting.settings import FORMATS, ExportSettings, read_settings
from distill.exporting.subject import Subject
from distill.exporting.traces import calibration_traces, held_out
from distill.generation.engines import HfEngine
from distill.io.checksums import write_noted
from distill.io.locks import claimed
from distill.models.find import check_template_variables
from distill.models.language_model import LanguageModel
from distill.models.lazy import LazyModel
from distill.models.lora import parameter_counts
from distill.runs.card import write_card
from distill.runs.folder import describe
from distill.teacher.completions import writer_key


def export(cfg: DictConfig) -> Path:
    """Write a student in another format, compare it with the full student, and write its model card.

    Returns:
        The folder of the export: the model in `student/`, figures in `export.json`.

    Raises:
        UserError: the configuration is invalid, or the student cannot be written in this format.
    """
    values = resolved(cfg)
    settings, device = read_settings(values), device_of(cfg)
    check_push(values["push_to_hub"])
    subject = Subject.of(cfg)
    check_template_variables([subject.source])
    asked = [ask(benchmark, subject.source) for benchmark in benchmarks_of(cfg.benchmark)]
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    cfg.name = str(cfg.name or subject.name or folder_name(cfg.model.source))
    folder = Path(cfg.out or Path("outputs") / "exports" / _name(cfg, settings))
    cfg.out = str(folder)
    full = subject.source.load(Path(cfg.cache))
    full.check_head()
    calibration: list[Trace] = []
    if FORMATS[settings.format].calibrated:
        calibration = calibration_traces(cfg, subject, full, asked)
    traces = held_out(cfg, subject, full)
    key = {**writer_key(subject.source), **vars(settings), "calibration": hash_traces(calibration)}
    with claimed(folder, key, what="an export"):
        describe(folder, resolved(cfg), sys.argv[1:])
        if not (folder / "student").is_dir():  # else an earlier call has written it
            formats.write(full, settings, folder / "student", cfg.name, calibration)
        report = _measured(cfg, subject, settings, full, device, traces, asked)
        write_noted(folder / "export.json", report.json() | {"calibration": len(calibration)})
        sections = {
            "Use": place_in_words(folder / "student", settings),
            "Compared with the full student": report.markdown(),
        }
        write_card(folder / "student", subject.card(cfg, sections, report.results, settings.format))
        print(f"{report.markdown()}\n\n{folder / 'student'}")
        if cfg.push_to_hub:
            message = f"{cfg.name}, {settings.format} {settings.kind}"
            address = push(folder / "student", str(cfg.push_to_hub), private=cfg.private, message=message)
            print(address)
    return folder


def _name(cfg: DictConfig, settings: ExportSettings) -> str:
    kind = settings.kind.replace(" ", "-")
    return f"{folder_name(cfg.model.source)}_{settings.format}_{kind}"


def _measured(
    cfg: DictConfig,
    subject: Subject,
    settings: ExportSettings,
    full: LanguageModel,
    device: str,
    traces: Sequence[Trace],
    asked: Sequence[Asked],
) -> Report:
    """Run both models, and compare."""
    folder = Path(cfg.out)
    export = formats.load(folder / "student", settings, full)
    for lm in (full, export):
        lm.model.requires_grad_(False).to(device)
    if export.vocab_size != full.vocab_size:
        raise UserError(
            f"the export has {export.vocab_size} tokens and the student {full.vocab_size}: its tokenizer is "
            f"written in another way than it is read; take format=hf"
        )
    source = subject.source
    place = Path(source.location) / source.gguf if source.gguf else Path(source.location)
    prompts = _prompts(asked, traces)[: cfg.speed.prompts]
    texts = [problem.problem for one in asked for problem in one.problems]
    texts += [trace.example.completion for trace in traces if trace.example.completion]
    return Report(
        settings,
        str(cfg.name),
        _device_in_words(device),
        (weights_bytes(place, full.model), weights_bytes(folder / "student")),
        parameter_counts(full.model)[1],
        compare_texts(full, export, prompts, cfg.speed.tokens) if prompts else None,
        (len(texts), same_spelling(full, export, texts)) if texts else None,
        measure_fit(full, export, traces) if traces else None,
        _compared(folder, full, export, asked) if asked else None,
        _notes(export),
    )


def _prompts(asked: Sequence[Asked], traces: Sequence[Trace]) -> list[list[int]]:
    """Prompts of the benchmarks' problems, else of the traces."""
    found = [request.prompt_ids for one in asked for request in one.requests[:: one.benchmark.samples]]
    return [ids.tolist() for ids in found or [trace.prompt_ids for trace in traces]]


def _compared(folder: Path, full: LanguageModel, export: LanguageModel, asked: Sequence[Asked]) -> Comparison:
    """Ask both models the benchmarks, and test them on the same problems. Completions are stored."""
    places = []
    with ExitStack() as held:
        for name, lm in (("full", full), ("export", export)):
            place = folder / "evaluations" / name
            held.enter_context(claimed(place, writer_key(lm.source), what="an evaluation"))
            results, engine = Results(place, name, lm.source), HfEngine(LazyModel.of(lm))
            for one in asked:
                kept = place / "completions" / one.benchmark.name
                held.enter_context(claimed(kept, one.benchmark.settings, what="completions"))
                # The export is asked with its own tokenizer.
                own = one if lm is full else ask(one.benchmark, lm.source, one.problems)
                label = f"{one.benchmark.name} {name}"
                results.add(evaluate(own, lm.source, engine, folder=kept, label=label))
            places.append(place)
    return compare_evaluations(places, folder / "evaluations" / "comparison")[0]


def _notes(export: LanguageModel) -> list[str]:
    """What is to be known of how the weights are stored."""
    kinds = {type(own.data).__name__ for own in export.model.parameters()}
    if "IntxUnpackedToInt8Tensor" in kinds:
        return [
            "torchao stores these 4-bit weights in 8 bits each: the files are no smaller than with bits=8; "
            "what is measured is what 4 bits do to the student."
        ]
    return []


def _device_in_words(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    threads: Any = torch.get_num_threads()
    return f"a CPU, {threads} thread{'s' * (threads > 1)}"
