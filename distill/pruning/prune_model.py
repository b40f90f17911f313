"""`python -m distill.prune`: a smaller model from a larger one, without the blocks that change least."""

import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from distill.analysis.evaluate_model import device_of, find_asked, folder_name
from distill.config.instantiate import build, plain
from distill.data.batch import hash_traces
from distill.data.readers import read_examples
from distill.data.trace import Example, Trace
from distill.data.trace_set import problem_of_example
from distill.errors import UserError
from distill.evaluation.benchmark import Benchmark, benchmarks_of
from distill.evaluation.result import Score
from distill.evaluation.run import ask, evaluate
from distill.generation.engine import Engine
from distill.io.locks import claimed
from distill.io.progress import progress_bar
from distill.models.find import find_model, variables_of
from distill.models.language_model import LanguageModel, ModelSource
from distill.models.lazy import LazyModel
from distill.pruning.blocks import angular_distances, drop_blocks, last_states
from distill.pruning.report import Measured, Pruned, write_pruned
from distill.runs.folder import write_config
from distill.teacher.completions import engine_key
from distill.teacher.logprobs import model_key
from distill.teacher.token_stats import token_stats
from distill.training.checkpoints import save_student
from distill.training.recipe import TraceRecipe

_CHECKED = 4  # traces on which the saved model is compared with the one in memory


def prune_model(cfg: DictConfig) -> Path:
    """Drop a model's least changing consecutive blocks, save what is left, and measure both.

    Returns:
        The folder of the results, with the smaller model in `student/`.

    Raises:
        UserError: the configuration is invalid, or the model cannot be pruned.
    """
    device = device_of(cfg)
    source = find_asked(cfg, "model.source", cfg.model.role)
    benchmarks = benchmarks_of(cfg.benchmark)
    recipe: TraceRecipe = build(cfg.data.recipe, "data")
    chosen, held_out, notes = _traces(cfg, recipe, source)
    cfg.out = str(
        cfg.out or Path("outputs") / "pruned" / f"{folder_name(cfg.model.source)}_minus{cfg.layers}"
    )
    folder = Path(cfg.out)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    key = {**model_key(source), "layers": cfg.layers, "traces": hash_traces(chosen)}
    with claimed(folder, key, what="a model"):
        lm = source.load(Path(cfg.cache))
        lm.check_head()
        lm.model.to(device)
        blocks = lm.model.config.get_text_config().num_hidden_layers
        if cfg.layers > blocks - 2:
            raise UserError(
                f"layers={cfg.layers}: {source.name} has {blocks} blocks, of which the last and one more are "
                f"always kept, so at most {blocks - 2} can be dropped"
            )
        with progress_bar(total=len(chosen), description="reading traces", unit="trace") as bar:
            states = last_states(lm, chosen, token_budget=cfg.token_budget, advance=bar.update)
        distances = angular_distances(states, cfg.layers)
        start = int(distances.argmin())
        full = LazyModel.of(lm)
        before = _measure(cfg, full, held_out, benchmarks, folder / "before")
        drop_blocks(lm.model, start, cfg.layers)
        smaller = _saved(cfg, lm, folder / "student", chosen[:_CHECKED])
        full.release()
        del lm  # the smaller one needs the memory
        after = _measure(cfg, LazyModel(smaller, device), held_out, benchmarks, folder / "after")
        found = Pruned(
            model=source.name,
            blocks=blocks,
            start=start,
            layers=cfg.layers,
            distances=distances.tolist(),
            traces=len(chosen),
            before=before,
            after=after,
            notes=notes,
        )
        write_config(folder, cfg)
        print(write_pruned(folder, found, resamples=cfg.resamples, seed=cfg.seed))
    return folder


def _traces(
    cfg: DictConfig, recipe: TraceRecipe, source: ModelSource
) -> tuple[list[Trace], list[Trace], list[str]]:
    """Traces to choose the blocks by, and traces of other problems to measure both models on."""
    if cfg.calibration is not None:
        fields = plain(cfg.data.get("fields"))
        read = partial(read_examples, path=str(cfg.calibration), fields=fields, missing="drop")
        recipe = replace(recipe, source=read)
    examples = [one for one in recipe.source() if (one.completion or "").strip()]
    if not examples:
        raise UserError("there is no trace to choose the blocks by: name some with calibration=")
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(problem_of_example(example), []).append(example)
    names = list(groups)
    order = [names[place] for place in np.random.default_rng(cfg.seed).permutation(len(names))]
    half = max(1, len(order) // 2)
    parts = []
    for part, most in ((order[:half], cfg.traces), (order[half:] or order, cfg.held_out)):
        own = [example for name in part for example in groups[name]][:most]
        traces = [one for one in recipe.tokenize(own, source) if len(one) <= source.context_length]
        if not traces:
            raise UserError(
                f"no trace fits into the context of {source.name} ({source.context_length} tokens)"
            )
        parts.append(traces)
    notes = (
        [] if order[half:] else ["There is one problem, so the NLL is of the traces that chose the blocks."]
    )
    return parts[0], parts[1], notes


def _measure(
    cfg: DictConfig, model: LazyModel, traces: Sequence[Trace], benchmarks: Sequence[Benchmark], folder: Path
) -> Measured:
    """Parameters, surprisal of held-out traces and scores of a model."""
    stats = token_stats(
        model, traces, cache=Path(cfg.cache), token_budget=cfg.token_budget, label=f"NLL {folder.name}"
    )
    scores: dict[str, Score] = {}
    for benchmark in benchmarks:
        engine: Engine = build(cfg.engine, "engine")(model)
        place = folder / benchmark.name
        asked = ask(benchmark, model.source)
        key = {**engine_key(model.source, engine), **benchmark.settings}
        with ExitStack() as held:
            held.enter_context(claimed(place, key, what=f"completions of {benchmark.name}"))
            label = f"{benchmark.name} {folder.name}"
            scores[benchmark.name] = evaluate(asked, model.source, engine, folder=place, label=label)
    return Measured(
        parameters=sum(own.numel() for own in model.get().model.parameters()),
        problems=[trace.example.problem for trace in traces],
        nll=[float(-one.logprobs.sum(dtype=np.float64)) for one in stats],
        tokens=[len(one) for one in stats],
        scores=scores,
    )


def _saved(cfg: DictConfig, lm: LanguageModel, folder: Path, traces: Sequence[Trace]) -> ModelSource:
    """Save the pruned model, and check that what is read back computes the same.

    Raises:
        UserError: its configuration says by a block's number what it is, in a way that is not known here.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    save_student(lm, temporary)
    variables = variables_of(cfg.model.get("chat_template_kwargs"))
    options: dict[str, Any] = {
        "key": "out",
        "dtype": cfg.model.dtype,
        "trust_remote_code": cfg.model.trust_remote_code,
        "chat_template_kwargs": variables,
    }
    again = find_model(str(temporary), **options).load()
    again.model.to(lm.device)
    if not torch.equal(last_states(lm, traces), last_states(again, traces)):
        shutil.rmtree(temporary)
        raise UserError(
            f"{lm.source.name} without blocks does not compute the same once it is saved and read: its "
            f"configuration describes blocks in a way that prune does not know; choose another model"
        )
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)
    return find_model(str(folder), **options)
