"""Engines in this process: transformers and vLLM. `distill.generation.server` has the engine for servers."""

import functools
import time
from collections.abc import Generator, Iterable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from distill.data.batch import by_length
from distill.errors import UserError
from distill.generation.decode import generate, uniform_draws
from distill.generation.engine import Request, Written
from distill.generation.sampling import Sampling
from distill.models.lazy import LazyModel


class HfEngine:
    """transformers in this process (`distill.generation.decode`), in batches of similar lengths.

    Args:
        model: the model that writes; loaded on the first request.
        token_budget: tokens per batch, with prompts, room for completions and padding.
    """

    name = "hf"

    def __init__(self, model: LazyModel, token_budget: int = 32_768) -> None:
        _check_count("token_budget", token_budget)
        self.model = model
        self.token_budget = token_budget
        self.seconds = 0.0

    def write(
        self, requests: Sequence[Request], sampling: Sampling
    ) -> Generator[tuple[int, Written], None, None]:
        lm = self.model.get()
        ends = lm.end_ids  # renders the chat template
        lengths = [len(request.prompt_ids) + sampling.max_new_tokens for request in requests]
        for rows in by_length(lengths, self.token_budget):
            chosen = [requests[row] for row in rows]
            draws = np.stack([uniform_draws(request.seed, sampling.max_new_tokens) for request in chosen])
            began = time.perf_counter()
            written = generate(lm, [r.prompt_ids.tolist() for r in chosen], sampling, seed=0, draws=draws)
            self.seconds += time.perf_counter() - began
            for row, ids in zip(rows, written, strict=True):
                finished = bool(ids) and ids[-1] in ends
                yield row, Written(np.asarray(ids, dtype=np.int32), finished)


_VLLM_SPEED = {
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "data_parallel_size",
    "gpu_memory_utilization",
    "max_num_seqs",
    "max_num_batched_tokens",
    "swap_space",
    "cpu_offload_gb",
    "enforce_eager",
    "enable_prefix_caching",
    "enable_chunked_prefill",
    "disable_log_stats",
    "download_dir",
}


class VllmEngine:
    """vLLM in this process, for large teachers: `pip install "distill[vllm]"`.

    Args:
        model: the model that writes; vLLM loads it itself, by name and revision.
        batch: requests per call of vLLM; completions are returned when their batch is done.
        key: the config key that chose this engine, for messages.
        options: further arguments of `vllm.LLM`, such as `tensor_parallel_size`.
    """

    name = "vllm"

    def __init__(self, model: LazyModel, batch: int = 1024, *, key: str = "engine", **options: Any) -> None:
        _check_count("batch", batch)
        self.source = model.source
        self.key = key
        self.batch = batch
        self.seconds = 0.0
        self.options = options
        # Options that change the completions, such as a quantization, and not only the speed.
        deciding = {name: value for name, value in options.items() if name not in _VLLM_SPEED}
        self.settings = {"options": deciding} if deciding else {}

    def check(self) -> Any:
        """Import vLLM, and return its module.

        Raises:
            UserError: vLLM is not installed, or cannot read the model's file.
        """
        try:
            import vllm  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UserError(
                f'{self.key}=vllm needs vLLM: pip install "distill[vllm]", or take {self.key}=hf'
            ) from error
        if self.source.gguf:
            raise UserError(
                f"{self.key}=vllm does not read the GGUF file {self.source.gguf}: take {self.key}=hf"
            )
        return vllm

    def take_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replace the weights, by a copy in memory.

        vLLM's own loader does it, because it knows which of transformers' matrices vLLM fuses. Needs vLLM's
        worker in this process (VLLM_ENABLE_V1_MULTIPROCESSING=0).
        """
        worker = self._llm.llm_engine.model_executor.driver_worker
        worker.model_runner.model.load_weights((name, weight.detach()) for name, weight in weights)
        self._llm.reset_prefix_cache()  # its keys and values belong to the old weights

    @functools.cached_property
    def _llm(self) -> Any:
        source = self.source
        return self.check().LLM(
            model=source.location,
            revision=source.revision,
            dtype=source.dtype,
            trust_remote_code=source.trust_remote_code,
            **self.options,
        )

    def write(
        self, requests: Sequence[Request], sampling: Sampling
    ) -> Generator[tuple[int, Written], None, None]:
        llm = self._llm
        SamplingParams = self.check().SamplingParams
        ends = self.source.end_ids
        for start in range(0, len(requests), self.batch):
            part = requests[start : start + self.batch]
            parameters = [
                SamplingParams(
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    top_k=sampling.top_k or -1,
                    max_tokens=sampling.max_new_tokens,
                    seed=request.seed % 2**31,
                    stop_token_ids=ends,
                )
                for request in part
            ]
            prompts = [{"prompt_token_ids": request.prompt_ids.tolist()} for request in part]
            began = time.perf_counter()
            outputs = llm.generate(prompts, parameters, use_tqdm=False)
            self.seconds += time.perf_counter() - began
            for place, output in enumerate(outputs, start=start):
                ids = [int(token) for token in output.outputs[0].token_ids]
                finished = output.outputs[0].finish_reason == "stop"
                if finished and (not ids or ids[-1] not in ends):
                    ids.append(ends[0])  # vLLM leaves out the stop token that ended the completion
                yield place, Written(np.asarray(ids, dtype=np.int32), finished)


def _check_count(name: str, value: Any) -> None:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"engine.{name}={value!r} is not a whole number, at least 1")
