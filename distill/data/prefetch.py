"""Prefetch batches on a background thread."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")


class Prefetcher(Generic[Item]):
    """Iterator over numbered items, in order, made by a background thread that stays a few items ahead.

    A thread suffices, because collating and reading from disk release the GIL most of the time, and
    what it makes needs no copy to another process. An exception of the thread is raised where its item
    would have been returned.

    Args:
        make: makes an item from its number. It must draw no random numbers, so that prefetching changes none.
        start: number of the first item.
        total: number of the last item plus 1. It is the length, even if `start` is not 0, so that a resumed
            run's progress bar and counts cover the whole run.
        ahead: most items that wait.
    """

    def __init__(self, make: Callable[[int], Item], start: int, total: int, ahead: int = 2) -> None:
        self.make, self.start, self.total, self.ahead = make, start, total, ahead
        self._ended: list[Callable[[], None]] = []

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[Item]:
        # A generator, so that no thread starts before the first item is requested: Lightning makes iterators
        # only to test that it can.
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
        """Stop the threads of all iterators."""
        for end in tuple(self._ended):
            end()

    # Lightning requires these methods to resume within an epoch; the position follows from the step.
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
