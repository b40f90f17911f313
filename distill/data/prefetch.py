"""Prefetch batches on a background thread."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")


class Prefetcher(Generic[Item]):
    """Items by number, in their order, made by a thread that stays a few ahead of whoever takes them.

    Collating and reading from disk let go of Python's lock for most of their time, so a thread does, and
    memory-mapped caches need no copy to another process. What it raises is raised where the item would have
    been taken.

    Args:
        make: an item by its number; draws no random numbers, so that being ahead changes none.
        start: number of the first.
        total: one more than the number of the last; the length is this, also where the first is not 0: a
            resumed run's bar and counts are the whole run's.
        ahead: how many wait at most.
    """

    def __init__(self, make: Callable[[int], Item], start: int, total: int, ahead: int = 2) -> None:
        self.make, self.start, self.total, self.ahead = make, start, total, ahead
        self._ended: list[Callable[[], None]] = []

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[Item]:
        # A generator, so that no thread begins before the first item is asked for: Lightning makes iterators
        # to see whether it can.
        waiting: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(self.ahead)
        stop = threading.Event()

        def put(item: Item | None, error: BaseException | None) -> None:
            while not stop.is_set():
                try:
                    return waiting.put((item, error), timeout=0.1)
                except queue.Full:
                    pass

        def work() -> None:
            try:
                for number in range(self.start, self.total):
                    if stop.is_set():
                        return
                    put(self.make(number), None)
            except BaseException as error:
                put(None, error)

        thread = threading.Thread(target=work, name="read-ahead", daemon=True)

        def end() -> None:
            stop.set()
            thread.join()

        thread.start()
        self._ended.append(end)
        try:
            for _ in range(self.start, self.total):
                item, error = waiting.get()
                if error is not None:
                    raise error
                yield item  # pyright: ignore[reportReturnType]
        finally:
            end()
            self._ended.remove(end)

    def close(self) -> None:
        """End the threads of all iterators."""
        for end in tuple(self._ended):
            end()

    # Lightning asks a loader for them before it resumes in the middle; the position follows from the step.
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
