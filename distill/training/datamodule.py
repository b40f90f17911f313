"""Data module: batches of traces in a seeded order."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning
import numpy as np

from distill.data.batch import Batch, collate, hash_traces
from distill.data.layout import BatchLayout
from distill.data.prefetch import Prefetcher
from distill.data.trace import Trace
from distill.data.trace_set import problem_of_example
from distill.errors import UserError

_HELD_TOKENS = 1 << 21  # of traces that stay in memory, some 30 bytes a token with text and log-probs


class TraceOrder:
    """The order of traces: endless epochs, each with its own permutation.

    It depends only on the seed and the batch number. A resumed run sees the same traces, and so does an
    optimizer step that is split into different micro-batches or over a different number of ranks.

    Args:
        count: number of traces.
        batch_size: traces per micro-batch and rank.
        seed: of the permutations.
        rank: of this process.
        ranks: number of processes.
        groups: indices of traces that stay side by side, such as a problem's; None: each is on its own. They
            stay whole in batches whose size is a multiple of theirs.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        groups: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.count = count
        self.groups = groups
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.ranks = ranks

    def batch(self, number: int) -> list[int]:
        """Indices of this rank's traces in batch `number`, counted from the start of the run."""
        first = (number * self.ranks + self.rank) * self.batch_size
        return [self._at(position) for position in range(first, first + self.batch_size)]

    def _at(self, position: int) -> int:
        return int(self._pass(position // self.count)[position % self.count])

    @functools.lru_cache(maxsize=2)  # noqa: B019  one order lives as long as its run
    def _pass(self, number: int) -> np.ndarray:
        generator = np.random.default_rng([self.seed, number])
        if self.groups is None:
            return generator.permutation(self.count)
        return np.concatenate([self.groups[place] for place in generator.permutation(len(self.groups))])


@dataclass(frozen=True)
class Repeats:
    """What batches have in common.

    Attributes:
        by_problem: whether a problem's traces stay side by side in the order of traces.
        num_iterations: optimizer steps that have the same batches (`loss.rollouts.num_iterations`).
        routing: how many examples each of several teachers has, by its role; empty: there is one.
    """

    by_problem: bool = False
    num_iterations: int = 1
    routing: Mapping[str, int] = field(default_factory=dict)


class DistillDataModule(lightning.LightningDataModule):
    """Batches of traces for a number of optimizer steps.

    Args:
        traces: the training set.
        signals: names of the cached logprobs to put into every batch.
        batch_size: traces per micro-batch and rank; problems, if the student writes several completions of
            each.
        steps: optimizer steps of the whole run.
        seed: of the order of traces.
        pad_id: any valid token id.
        layout: whether batches are padded, grouped, packed or share prompts.
        repeats: what the batches have in common.
    """

    def __init__(
        self,
        traces: Sequence[Trace],
        *,
        signals: Sequence[str],
        batch_size: int,
        steps: int,
        seed: int,
        pad_id: int,
        layout: BatchLayout = BatchLayout(),  # noqa: B008  frozen
        repeats: Repeats = Repeats(),
    ) -> None:
        super().__init__()
        self.traces = traces
        self.signals = tuple(signals)
        self.batch_size = batch_size
        self.steps = steps
        self.seed = seed
        self.pad_id = pad_id
        self.layout = layout
        self.repeats = repeats
        self.routing = dict(repeats.routing)
        self._ahead: Prefetcher[Batch] | None = None
        self._held: dict[int, Trace] = {}
        self._room = _HELD_TOKENS

    def train_dataloader(self) -> Prefetcher[Batch]:
        trainer = self.trainer
        assert trainer is not None
        order = TraceOrder(
            len(self.traces),
            self.batch_size,
            seed=self.seed,
            rank=trainer.global_rank,
            ranks=trainer.world_size,
            groups=_problems(self.traces) if self.repeats.by_problem else None,
        )
        per_step = trainer.accumulate_grad_batches
        pinned = trainer.strategy.root_device.type == "cuda"

        def make(number: int) -> Batch:
            step, micro_batch = divmod(number, per_step)
            number = step // self.repeats.num_iterations * per_step + micro_batch
            batch = self._batch([self._trace(index) for index in order.batch(number)])
            return batch.pin_memory() if pinned else batch

        self.close()
        self._ahead = Prefetcher(make, trainer.global_step * per_step, self.steps * per_step)
        return self._ahead

    def in_order(self, traces: Sequence[Trace], *, even: bool = False) -> Iterator[tuple[int | None, Batch]]:
        """This rank's batches of other traces, such as validation's, each with its number.

        Args:
            traces: the other traces.
            even: whether each rank gets as many batches; those beyond its own have no number, and count for
                nothing.
        """
        trainer = self.trainer
        assert trainer is not None
        batches = self._whole_problems(traces) if self.repeats.by_problem else self._in_turn(len(traces))
        for number in range(trainer.global_rank, len(batches), trainer.world_size):
            yield number, self._batch([traces[place] for place in batches[number]])
        if even and 0 < len(batches) % trainer.world_size <= trainer.global_rank:
            yield None, self._batch(traces[:1])

    def _in_turn(self, count: int) -> Sequence[Sequence[int]]:
        starts = range(0, count, self.batch_size)
        return [range(start, min(start + self.batch_size, count)) for start in starts]

    def _whole_problems(self, traces: Sequence[Trace]) -> Sequence[Sequence[int]]:
        """Batches in which a problem's traces are together; more than a batch of them are a larger one."""
        batches: list[list[int]] = []
        for own in _problems(traces):
            if not batches or len(batches[-1]) + len(own) > self.batch_size:
                batches.append([])
            batches[-1] += own
        return batches

    def _trace(self, index: int) -> Trace:
        """A trace of the training set; those of a small set are put together once."""
        if (trace := self._held.get(index)) is None:
            trace = self.traces[index]
            if self._room > 0:
                self._held[index] = trace
                self._room -= len(trace)
        return trace

    def _batch(self, traces: Sequence[Trace]) -> Batch:
        return collate(traces, self.signals, self.pad_id, self.layout)

    def close(self) -> None:
        """Stop the prefetching thread."""
        if self._ahead is not None:
            self._ahead.close()

    def teardown(self, stage: str) -> None:
        self.close()

    def on_exception(self, exception: BaseException) -> None:
        self.close()

    def state_dict(self) -> dict[str, Any]:
        return {"traces": self._fingerprint, **({"routing": self.routing} if self.routing else {})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict.get("routing", {}) != self.routing:
            raise UserError(
                f"the checkpoint's traces had the teachers {state_dict.get('routing') or 'none'}, and now "
                f"have {self.routing or 'none'}: put the data back as it was, or start anew without ckpt_path"
            )
        if state_dict["traces"] != self._fingerprint:
            raise UserError(
                "the traces are not those that the checkpoint was trained on: put the data back as "
                "it was, or "
                "start anew without ckpt_path"
            )

    @functools.cached_property
    def _fingerprint(self) -> str:
        return hash_traces(self.traces)

    def transfer_batch_to_device(self, batch: Batch, device: Any, dataloader_idx: int) -> Batch:
        return batch.to(device, non_blocking=True)


def _problems(traces: Sequence[Trace]) -> list[list[int]]:
    """Indices of each problem's traces."""
    found: dict[str, list[int]] = {}
    for index, trace in enumerate(traces):
        found.setdefault(problem_of_example(trace.example), []).append(index)
    return list(found.values())
