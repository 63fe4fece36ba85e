"""The one place where time comes from, so that a test can hold it still."""

import time
from datetime import UTC, datetime


def now_ns() -> int:
    """Return wall-clock time in nanoseconds since 1970."""
    return time.time_ns()


def monotonic_s() -> float:
    """Return seconds on a clock that never goes back; its zero means nothing."""
    return time.monotonic()


def format_time(ns: int) -> str:
    """Return a wall-clock time as RFC 3339 text in UTC, to the microsecond."""
    return datetime.fromtimestamp(ns / 1e9, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def parse_time(text: str) -> int:
    """Return nanoseconds since 1970 for what `format_time` wrote. Raises ValueError on anything else."""
    return int(datetime.fromisoformat(text).timestamp() * 1_000_000) * 1000
