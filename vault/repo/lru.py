"""A cache of recently used values whose sizes add up to at most a budget. Threads: one at a time."""

from collections import OrderedDict
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Lru(Generic[K, V]):
    """Keeps what was used last. A value larger than the whole budget is not kept."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._used = 0
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def get(self, key: K) -> V | None:
        """Return the value of key, which now counts as the most recently used, or None."""
        found = self._values.get(key)
        if found is None:
            return None
        self._values.move_to_end(key)
        return found[0]

    def put(self, key: K, value: V, size_bytes: int) -> None:
        """Keep value, and drop what was not used for longest if there is no room."""
        if size_bytes > self._budget or key in self._values:
            return
        self._values[key] = (value, size_bytes)
        self._used += size_bytes
        while self._used > self._budget:
            self._used -= self._values.popitem(last=False)[1][1]

    def drop(self, key: K) -> None:
        """Keep a value no longer, if there is one."""
        found = self._values.pop(key, None)
        if found is not None:
            self._used -= found[1]
