"""Telling somebody before and after a wait for a disk or a store, so that others can be there for what comes meanwhile."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Waits(Protocol):
    """Told of waits."""

    def begin_waiting(self) -> None:
        """Say that the caller is going to wait."""
        ...

    def end_waiting(self) -> None:
        """Say that it waits no more."""
        ...


@contextmanager
def waiting(waits: Waits | None) -> Iterator[None]:
    """Tell of a wait around a with block. None: nobody wants to know."""
    if waits is None:
        yield
        return
    waits.begin_waiting()
    try:
        yield
    finally:
        waits.end_waiting()
