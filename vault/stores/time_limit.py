"""How long a thread's calls to stores may take, all together: for those whose own callers wait, such as a mount's readers.

A store behind a network looks at `time_left_s` before it asks again, and gives up (StoreUnavailable) where the time would
not last. Without a limit it uses its own patience. Threads: each has its own limit.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from vault.clock import monotonic_s

_until_s: Final[ContextVar[float]] = ContextVar("until_s", default=math.inf)


@contextmanager
def time_limit(until_s: float) -> Iterator[None]:
    """Let calls to stores in a with block end by a time of `monotonic_s`, or by that of an outer block if it is sooner."""
    token = _until_s.set(min(until_s, _until_s.get()))
    try:
        yield
    finally:
        _until_s.reset(token)


def time_left_s() -> float:
    """Return how many seconds are left: infinity without a limit, and less than nothing after it."""
    return _until_s.get() - monotonic_s()
