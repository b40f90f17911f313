"""`python -m distill.evaluate`: evaluate a model on benchmarks, or compare evaluations.

Completions are stored and reused: an interrupted evaluation resumes, and one with more problems, more samples
or further benchmarks of the same model adds to its folder."""

import json
import re
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from distill.analysis.drift_curves import Drift
from distill.analysis.drift_figure import picture
from distill.analysis.drift_prefixes import PrefixDrift
from distill.analysis.evaluate_drift import AskedDrift
from distill.config.instantiate import build, plain, resolved
from distill.errors import UserError, whole_number
from distill.evaluation.benchmark import Benchmark, benchmarks_of
from distill.evaluation.comparison_report import compare
from distill.evaluation.named import named_model, prefix_model
from distill.evaluation.page import SampleFile
from distill.evaluation.report import log_report, markdown, write_report
from distill.evaluation.result import Score
from distill.evaluation.run import Asked, ask, evaluate
from distill.generation.engine import Engine, check_prompt
from distill.io.checksums import check, forget, note, write_noted
from distill.io.files import read_lines, write_atomically, write_lines
from distill.io.locks import claimed, locked
from distill.models.find import check_template_variables, find_model, variables_of
from distill.models.language_model import ModelSource
from distill.models.lazy import LazyModel
from distill.runs.folder import describe
from distill.teacher.completions import writer_key


def evaluate_model(cfg: DictConfig) -> Path:
    """Evaluate a model on every configured benchmark and write the results.

    Returns:
        The folder of the results.

    Raises:
        UserError: the configuration is invalid; raised before the model is loaded.
    """
    device = device_of(cfg)
    if cfg.threads is not None:
        whole_number("threads", cfg.threads, least=1)
    source = find_asked(cfg, "model.source", cfg.model.role)
    benchmarks = benchmarks_of(cfg.benchmark)
    if not benchmarks:
        raise UserError(
            "no benchmark is named: say which, such as benchmark=gsm8k or benchmark=[gsm8k,aime24]"
        )
    check_template_variables([source])
    drift = _drift(cfg, benchmarks, source)
    problems = [benchmark.problems() for benchmark in benchmarks]
    if drift:
        drift.ask(problems)
    asked = [ask(benchmark, source, read) for benchmark, read in zip(benchmarks, problems, strict=True)]
    model = LazyModel(source, device, cache=Path(cfg.cache))
    try:
        engine: Engine = build(cfg.engine, "engine")(model)
    except (ValueError, TypeError) as error:  # invalid arguments
        raise UserError(str(error)) from error
    _check_context(engine, asked)
    whose = "_teacher" if cfg.model.role == "teacher" else ""
    cfg.out = str(cfg.out or Path("outputs") / "evaluations" / f"{folder_name(cfg.model.source)}{whose}")
    cfg.name = str(cfg.name or source.name)
    folder = Path(cfg.out)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    with ExitStack() as held:
        held.enter_context(claimed(folder, writer_key(source), what="an evaluation"))
        held.callback(_remove_if_empty, folder / "completions")
        results = Results(folder, cfg.name, source)
        places = [folder / "completions" / one.benchmark.name for one in asked]
        for one, place in zip(asked, places, strict=True):  # check all folders before any benchmark runs
            key = {
                "engine": engine.name,
                **getattr(engine, "settings", {}),
                **one.benchmark.settings,
            }
            held.enter_context(claimed(place, key, what=f"completions of {one.benchmark.name}"))
        describe(folder, resolved(cfg), sys.argv[1:])
        loggers = [build(node, f"logger.{name}") for name, node in (cfg.get("logger") or {}).items()]
        text = ""
        for one, place in zip(asked, places, strict=True):
            results.add(evaluate(one, source, engine, folder=place, label=one.benchmark.name))
            text = write_report(folder, results.value)  # an interrupted evaluation keeps its report so far
        if drift:
            results.keep_drift(drift.measure(model, folder / "drift"), drift.said)
            text = write_report(folder, results.value)
        print(f"{text}\n\n{folder / 'results.html'}")
        log_report(loggers, results.new)
    return folder


def _check_context(engine: Engine, asked: Sequence[Asked]) -> None:
    """Refuse prompts for which an engine has too little of the model's context (`max_model_len`)."""
    context: int | None = getattr(engine, "context_length", None)
    if context is None:
        return
    for one in asked:
        for place, request in enumerate(one.requests):
            problem = one.problems[place // one.benchmark.samples]
            check_prompt(
                request.prompt_ids, context, f"{problem.id} of {one.benchmark.name}", f"engine={engine.name}"
            )


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):  # not empty, or missing
        folder.rmdir()


_AGAIN = "take it away and run the same command again, the completions are kept"


class Results:
    """Results of one model in a folder, `results.json` and `samples.jsonl`, updated benchmark by benchmark.

    Args:
        folder: the evaluation's folder.
        name: the model's name in titles.
        source: the model.
    """

    def __init__(self, folder: Path, name: str, source: ModelSource) -> None:
        self.folder = folder
        self.value: dict[str, Any] = {
            "name": name,
            "model": source.name,
            "fingerprint": source.fingerprint,
            "benchmarks": {},
        }
        self.new: list[Score] = []
        if (folder / "results.json").is_file():
            check([folder / "results.json"], _AGAIN)
            try:
                before = json.loads((folder / "results.json").read_text(encoding="utf-8"))
                self.value["benchmarks"] = dict(before["benchmarks"])
                if "drift" in before:
                    self.value["drift"] = before["drift"]
                markdown(self.value)
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise UserError(
                    f"{folder / 'results.json'} is damaged ({type(error).__name__}: {error}): {_AGAIN}"
                ) from error
        self._check_samples()

    def _check_samples(self) -> None:
        path = self.folder / "samples.jsonl"
        if path.is_file():
            kept = (
                f"after removing {path}: the completions are kept, and the samples of other benchmarks "
                f"return to the file when these are evaluated again"
            )
            check([path], f"evaluate again {kept}")
            try:
                deque(SampleFile(path), maxlen=0)
            except UserError as error:
                raise UserError(f"{error}, {kept}") from error

    def keep_drift(self, drift: Drift | PrefixDrift | None, said: Mapping[str, Any]) -> None:
        """Store a drift and its figure, replacing earlier ones; `said` is what it was measured with."""
        if drift is None:
            by_prefixes = "of the untrained student's texts too few are as long as drift.lengths"
            own = "too few problems have completions of both models to compare them along their text"
            print(f"drift: {by_prefixes if said['protocol'] == 'prefixes' else own}")
            return
        self.value["drift"] = {**said, **drift.json()}
        write_noted(self.folder / "results.json", self.value)
        drawn = picture(drift, self.value["name"])
        write_atomically(self.folder / "drift.png", lambda path: path.write_bytes(drawn))

    def add(self, score: Score) -> None:
        """Store a benchmark's score, replacing an earlier one."""
        path = self.folder / "samples.jsonl"
        forget(path)
        mark = f'{{"benchmark": {json.dumps(score.benchmark)}, '  # prefix of the benchmark's lines
        write_lines(
            path,
            (line for line in read_lines(path) if not line.startswith(mark)),
            (json.dumps(sample, ensure_ascii=False) for sample in score.samples),
        )
        note(path)
        before, now = self.value["benchmarks"].get(score.benchmark, {}), score.summary()
        timeless = dict.fromkeys(("seconds", "tokens_per_second"))
        if {**before, **timeless} != now:  # an unchanged score keeps its recorded time
            self.value["benchmarks"][score.benchmark] = now
        write_noted(self.folder / "results.json", self.value)
        self.new.append(score)


def find_asked(cfg: DictConfig, key: str, role: str) -> ModelSource:
    """Find the model that a config key names.

    Args:
        cfg: config with `model` and `threads`; a null `threads` is set to that of a named pair.
        key: config key that names the model, `model.source` or `teacher`.
        role: `student` or `teacher`: which model of a pair in conf/model.

    Raises:
        UserError: the model is not found; the message says what was tried.
    """
    wanted, threads = named_model(cfg, key, role)
    if cfg.threads is None:
        cfg.threads = threads
    return _find(cfg, wanted, key, cfg.model.revision if key == "model.source" else None)


def _find(cfg: DictConfig, wanted: Any, key: str, revision: str | None) -> ModelSource:
    return find_model(
        wanted,
        key=key.removesuffix(".source"),
        dtype=cfg.model.dtype,
        revision=revision,
        trust_remote_code=cfg.model.trust_remote_code,
        chat_template_kwargs=variables_of(cfg.model.get("chat_template_kwargs")),
    )


def _drift(cfg: DictConfig, benchmarks: Sequence[Benchmark], student: ModelSource) -> AskedDrift | None:
    """The drift that the configuration asks for; None without a teacher."""
    untrained = prefix_model(cfg)
    if not cfg.teacher:
        return None
    teacher = find_asked(cfg, "teacher", "teacher")
    writer = _find(cfg, untrained[0], "drift.prefix_model", untrained[1]) if untrained else None
    return AskedDrift(cfg.drift, benchmarks, student, teacher, writer)


def compare_folders(cfg: DictConfig) -> Path:
    """Compare evaluations or runs with the first of them.

    Raises:
        UserError: fewer than two folders, an invalid folder, or a model named together with `compare=`.
    """
    named = plain(cfg.compare)
    for key, given in (("model", cfg.model.source), ("teacher", cfg.teacher)):
        if given is not None:
            raise UserError(
                f"{key}={plain(given)} beside compare=: compare= tests evaluations that are there and asks "
                f"no model; evaluate first, and compare the folders"
            )
    if not isinstance(named, list) or len(named) < 2:
        raise UserError(
            f"compare={named}: name two folders or more, as compare=[outputs/runs/a,outputs/runs/b]"
        )
    out = Path(cfg.out or Path("outputs") / "comparisons" / "_vs_".join(folder_name(one) for one in named))
    try:
        with locked(out, "out"):
            print(f"{compare([str(one) for one in named], out)}\n\n{out / 'comparison.png'}")
    finally:
        _remove_if_empty(out)
    return out


def device_of(cfg: DictConfig) -> str:
    """The torch device that `device` names: auto, cpu or cuda.

    Raises:
        UserError: it names another, or a GPU that is not there.
    """
    if cfg.device not in ("auto", "cpu", "cuda"):
        raise UserError(f"device={cfg.device!r} is not one of auto, cpu, cuda")
    there = torch.cuda.is_available()
    if cfg.device == "cuda" and not there:
        raise UserError("device=cuda, but torch sees no GPU here: take device=cpu, or a CUDA build of torch")
    return "cuda" if there and cfg.device != "cpu" else "cpu"


def folder_name(model: Any) -> str:
    """Folder name for a model: from the last components of a path, or the full hub id."""
    text = str(model[0] if isinstance(model, list) or OmegaConf.is_list(model) else model)
    path = Path(text)
    if path.exists():
        parts = path.resolve().parts
        text = "_".join(parts[-2:] if parts[-1] in ("student", "teacher", "model") else parts[-1:])
    return re.sub(r"[^\w.-]+", "_", text).strip("_") or "model"
