"""Generation spread over a run's ranks: each writes its share of the requests, and the first gets all."""

from collections.abc import Generator, Sequence
from datetime import timedelta
from typing import Any

from torch import distributed

from distill.generation.engine import Engine, Request, Written
from distill.generation.sampling import Sampling

_SHARE = 64  # requests of a rank between two exchanges; what was exchanged is stored, and not lost by a kill


class Ranks:
    """The processes of a distributed run. Make it on all ranks at the same time."""

    def __init__(self) -> None:
        self.rank = distributed.get_rank()
        self.count = distributed.get_world_size()
        # On the CPU; ranks that wait for others' grading must not run into the usual limit of half an hour.
        self._group: Any = distributed.new_group(backend="gloo", timeout=timedelta(days=2))

    def share(self, value: Any) -> Any:
        """The first rank's value, on all ranks."""
        held = [value]
        distributed.broadcast_object_list(held, src=0, group=self._group)
        return held[0]

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks on the first; on the others nothing of use."""
        found: list[Any] = [None] * self.count
        distributed.gather_object(value, found if self.rank == 0 else None, dst=0, group=self._group)
        return found

    def serve(self, engine: Engine) -> None:
        """Write shares of the first rank's requests until it calls `dismiss`."""
        while (asked := self.share(None)) is not None:
            requests, sampling = asked
            self.gather(list(engine.write(requests[self.rank :: self.count], sampling)))

    def dismiss(self) -> None:
        """Let the ranks in `serve` go on."""
        self.share(None)


class SpreadEngine:
    """An engine on the first rank whose requests all ranks share; the others are in `Ranks.serve`.

    Args:
        engine: this rank's own.
        ranks: all processes.
    """

    def __init__(self, engine: Engine, ranks: Ranks) -> None:
        self.name = engine.name
        self.seconds = 0.0
        self._engine = engine
        self._ranks = ranks

    def write(
        self, requests: Sequence[Request], sampling: Sampling
    ) -> Generator[tuple[int, Written], None, None]:
        # Those of similar lengths go to different ranks.
        order = sorted(range(len(requests)), key=lambda row: len(requests[row].prompt_ids))
        size = _SHARE * self._ranks.count
        for first in range(0, len(order), size):
            rows = order[first : first + size]
            chosen = [requests[row] for row in rows]
            self._ranks.share((chosen, sampling))
            own = list(self._engine.write(chosen[:: self._ranks.count], sampling))
            self.seconds = self._engine.seconds
            for rank, written in enumerate(self._ranks.gather(own)):
                for place, one in written:
                    yield rows[rank + place * self._ranks.count], one
