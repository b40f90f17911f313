"""Child processes that no judge of this process uses now: the next judge takes them and starts none."""

import atexit
import os
import threading
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar, runtime_checkable


@runtime_checkable
class Child(Protocol):
    """A child process that answers one question at a time."""

    @property
    def running(self) -> bool: ...

    def close(self) -> None: ...


C = TypeVar("C", bound=Child)


class IdleChildren(Generic[C]):
    """Idle children by kind; they end with this process. Thread-safe.

    Args:
        most: number of children that are kept; one more is ended.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._kept: list[tuple[Hashable, C]] = []
        self._lock = threading.RLock()  # a garbage collection inside the block may give children back
        atexit.register(self._end)
        if hasattr(os, "register_at_fork"):  # the pipes are the parent's
            os.register_at_fork(after_in_child=self._forget)

    def give(self, kind: Hashable, child: C) -> None:
        """Keep a child that has answered all that it was asked."""
        with self._lock:
            if child.running and len(self._kept) < self.most:
                self._kept.append((kind, child))
                return
        child.close()

    def take(self, kind: Hashable) -> C | None:
        """A running child of a kind, which is then the caller's; None if there is none."""
        with self._lock:
            for place in reversed(range(len(self._kept))):
                if self._kept[place][0] == kind:
                    child = self._kept.pop(place)[1]
                    if child.running:
                        return child
                    child.close()
        return None

    def close(self) -> None:
        """End all idle children."""
        with self._lock:
            kept, self._kept = self._kept, []
        for _, child in kept:
            child.close()

    def _end(self) -> None:
        """End all, also those that a judge gives back later in the process's exit."""
        self.most = 0
        self.close()

    def _forget(self) -> None:
        self._kept, self._lock = [], threading.RLock()
