"""Engines in this process: transformers and vLLM. `distill.generation.server` has the engine for servers."""

import os
import sys
import time
import warnings
import weakref
from collections.abc import Generator, Iterable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from distill.data.batch import by_length
from distill.errors import UserError, first_line
from distill.generation.decode import generate, uniform_draws
from distill.generation.engine import Request, Written, check_prompt
from distill.generation.neutral import NEUTRAL
from distill.generation.process_state import process_state_kept
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
    "distributed_executor_backend",
    "disable_custom_all_reduce",
    "gpu_memory_utilization",
    "kv_cache_memory_bytes",
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
_VLLM_RUN = "0.32"  # the version that tests/engines was run with


class VllmEngine:
    """vLLM in this process, for large teachers: `pip install "distill[vllm]"`.

    Apart from torch.distributed, which stays initialized until the engine is closed, the state of this
    process is as before (`process_state_kept`).

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
        self._started: Any = None
        self._shut_down: Any = None

    def check(self) -> Any:
        """Import vLLM, and return its module.

        Raises:
            UserError: vLLM is not installed, or cannot read the model's file.
        """
        # Its progress, and warnings that concern its own speed; its usage statistics would be sent away.
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        if not torch.cuda.is_available():
            # On a CPU vLLM would start two processes more, which take long and leave shared memory behind.
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        try:
            with process_state_kept("VLLM_"):
                import vllm  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UserError(
                f"{self.key}=vllm needs vLLM {_VLLM_RUN}, which does not import ({first_line(error)}): "
                f'pip install "distill[vllm]", or take {self.key}=hf'
            ) from error
        if self.source.gguf:
            raise UserError(
                f"{self.key}=vllm does not read the GGUF file {self.source.gguf}: take {self.key}=hf"
            )
        _say_version(str(getattr(vllm, "__version__", _VLLM_RUN)))
        return vllm

    @property
    def context_length(self) -> int:
        """Most tokens of a prompt and its completion: the model's, or less by `max_model_len`."""
        if self._started is not None:
            return int(self._started.llm_engine.model_config.max_model_len)
        longest, whole = self.options.get("max_model_len"), self.source.context_length
        return min(whole, longest) if isinstance(longest, int) and longest > 0 else whole

    def take_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replace the weights, by a copy in memory.

        vLLM's own loader does it, because it knows which of transformers' matrices vLLM fuses or packs. Needs
        vLLM's worker in this process (VLLM_ENABLE_V1_MULTIPROCESSING=0).

        Args:
            weights: a model's whole `state_dict`. Parameters alone are not enough: they name tied matrices
                once, and vLLM then keeps its old output matrix without a word.
        """
        llm = self._llm
        given = ((name, weight.detach()) for name, weight in weights)
        with process_state_kept("VLLM_"):
            options = {"weights_iterator": given, "is_checkpoint_format": True}
            llm.collective_rpc("reload_weights", kwargs=options)
            llm.reset_prefix_cache()  # its keys and values belong to the old weights

    @property
    def _dtype(self) -> str:
        """`auto` is the stored dtype, as everywhere here; vLLM's own `auto` halves float32."""
        stored = self.source.stored_dtype if self.source.dtype == "auto" else None
        return stored or self.source.dtype

    @property
    def _llm(self) -> Any:
        """vLLM with the model, started on first use.

        Raises:
            UserError: vLLM does not start.
        """
        if self._started is not None:
            return self._started
        vllm, source, alone = self.check(), self.source, not _distributed()
        # Sampling is what this package asks for, and not what the model's generation_config.json says.
        options = {"generation_config": "vllm", **self.options}
        try:
            with process_state_kept("VLLM_"), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about what it imports
                llm = vllm.LLM(
                    model=source.location,
                    revision=source.revision,
                    dtype=self._dtype,
                    trust_remote_code=source.trust_remote_code,
                    **options,
                )
        except Exception as error:  # of any kind, from configuration to memory
            raise UserError(
                f"vLLM does not start with {source.name}: {_reason(error)}; change its arguments "
                f"({', '.join(self.options) or 'none are set'}), or take {self.key}=hf"
            ) from error
        self._started = llm
        self._shut_down = weakref.finalize(self, _shut_down, llm, alone)  # at exit at the latest
        return llm

    def close(self) -> None:
        """End vLLM and its processes, and free its memory; a later request starts it again."""
        self._started = None
        if self._shut_down is not None:
            self._shut_down()

    def write(
        self, requests: Sequence[Request], sampling: Sampling
    ) -> Generator[tuple[int, Written], None, None]:
        self._check_prompts(requests)
        llm = self._llm
        self._check_prompts(requests)  # in the context that it really has
        SamplingParams = self.check().SamplingParams
        ends = self.source.end_ids
        fixed = self._fixed_parameters(llm, sampling, ends)
        for start in range(0, len(requests), self.batch):
            part = requests[start : start + self.batch]
            parameters = [SamplingParams(seed=request.seed % 2**31, **fixed) for request in part]
            prompts = [{"prompt_token_ids": request.prompt_ids.tolist()} for request in part]
            began = time.perf_counter()
            try:
                with process_state_kept("VLLM_"):
                    outputs = llm.generate(prompts, parameters, use_tqdm=False)
            except Exception as error:
                raise UserError(
                    f"vLLM failed while it wrote with {self.source.name}: {_reason(error)}; change its "
                    f"arguments, or take {self.key}=hf"
                ) from error
            self.seconds += time.perf_counter() - began
            for place, output in enumerate(outputs, start=start):
                ids = [int(token) for token in output.outputs[0].token_ids]
                finished = output.outputs[0].finish_reason == "stop"
                if finished and (not ids or ids[-1] not in ends):
                    ids.append(ends[0])  # vLLM leaves out the stop token that ended the completion
                yield place, Written(np.asarray(ids, dtype=np.int32), finished)

    def _fixed_parameters(self, llm: Any, sampling: Sampling, ends: Sequence[int]) -> dict[str, Any]:
        """What all requests have in common."""
        rows = int(llm.llm_engine.model_config.get_vocab_size())
        # Rows that only pad the output matrix are no tokens. A list of allowed ids would hold the whole
        # vocabulary, and vLLM takes 1024 at most on a GPU.
        padding = {row: float("-inf") for row in range(self.source.vocab_size, rows)}
        return {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or -1,
            **{name: value for name, value in NEUTRAL.items() if name != "top_k"},
            "max_tokens": sampling.max_new_tokens,
            "stop_token_ids": [end for end in ends if end < rows],
            "logit_bias": padding or None,
            "detokenize": False,
        }

    def _check_prompts(self, requests: Sequence[Request]) -> None:
        """Refuse prompts that vLLM would refuse, which would end the whole batch."""
        context = self.context_length
        for request in requests:
            if not 0 < len(request.prompt_ids) < context:
                text = self.source.tokenizer.decode(request.prompt_ids[:100])
                check_prompt(request.prompt_ids, context, repr(text[:60]), self.source.name)


def _say_version(installed: str) -> None:
    if not installed.startswith(f"{_VLLM_RUN}.") and installed not in (_VLLM_RUN, *_SAID):
        _SAID.append(installed)
        tqdm.write(f"vLLM {installed} is installed; what was run and tested is {_VLLM_RUN}", file=sys.stderr)


_SAID: list[str] = []


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _shut_down(llm: Any, alone: bool) -> None:
    """End an engine's processes.

    Args:
        llm: the engine.
        alone: whether torch.distributed was not initialized before it; it is left as it was found.
    """
    with process_state_kept("VLLM_"):
        llm.llm_engine.engine_core.shutdown()
        if alone and _distributed():
            from vllm.distributed import (  # pyright: ignore[reportMissingImports]
                cleanup_dist_env_and_memory,
            )

            cleanup_dist_env_and_memory()


def _reason(error: BaseException) -> str:
    """An error's own sentence; of a failed validation, that of the first field."""
    with suppress(Exception):  # pydantic's
        found: Any = error
        return str(found.errors()[0]["msg"])
    return first_line(error)


def _check_count(name: str, value: Any) -> None:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"engine.{name}={value!r} is not a whole number, at least 1")
