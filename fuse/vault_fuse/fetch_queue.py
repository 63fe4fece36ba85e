"""What the fetcher is to fetch next: pieces that readers will want soon, then those of plans for later.

Both come from sources that are asked for their next piece when there is time for it, so that a plan may be of any length
and a reader that has moved on changes what comes next. Sources of one kind take turns. While a reader waits for the store
only a few pieces of plans are under way.

Threads: safe. Sources are called by one thread at a time, and must not call the queue.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

SOURCES_MAX: Final = 4096  # of each kind: more are refused, and come again with the next hint
PLANNED_AT_ONCE_MIN: Final = 8  # pieces of plans under way while a reader waits: what several readers will want next


class Piece(NamedTuple):
    """A range of a stored file."""

    key: str
    offset: int
    length: int


class Source(Protocol):
    """Something that knows what is to be fetched: a reader's next bytes, or a plan. Hashable: it is in the queue once."""

    def next_piece(self) -> Piece | None:
        """Return what to fetch next, or None if there is nothing for now: it leaves the queue, and may be fed again."""
        ...

    def done(self, piece: Piece, error: Exception | None) -> None:
        """Hear that a piece is here, or why it is not."""
        ...


class FetchQueue:
    """Sources that have something to fetch, for the threads that fetch it."""

    def __init__(self, reader_waits: Callable[[], bool]) -> None:
        """Make an empty queue.

        Args:
            reader_waits: says whether somebody waits for the store now.
        """
        self._reader_waits = reader_waits
        self._changed = threading.Condition()
        self._soon: OrderedDict[Source, None] = OrderedDict()
        self._later: OrderedDict[Source, None] = OrderedDict()
        self._later_under_way = 0
        self._is_closed = False

    def feed(self, source: Source, *, soon: bool = False) -> bool:
        """Add a source that has something to fetch, unless it is here.

        Args:
            source: what to ask for pieces.
            soon: readers want them next; else it is a plan.

        Returns:
            False if there are too many.
        """
        sources = self._soon if soon else self._later
        with self._changed:
            if source not in sources:
                if len(sources) >= SOURCES_MAX:
                    return False
                sources[source] = None
            self._changed.notify_all()
            return True

    def drop(self, source: Source) -> None:
        """Forget a source. Pieces of it that are under way are fetched, and it hears of them."""
        with self._changed:
            self._soon.pop(source, None)
            self._later.pop(source, None)

    def take(self, timeout_s: float) -> "Taken | None":
        """Return what to fetch next, or None if there was nothing in that time. Say `done` when it is fetched."""
        with self._changed:
            taken = self._take()
            if taken is None and not self._is_closed:
                self._changed.wait(timeout_s)
                taken = self._take()
            return taken

    def done(self, taken: "Taken", error: Exception | None = None) -> None:
        """Say that a piece which was taken is here, or why it is not."""
        with self._changed:
            taken.source.done(taken.piece, error)
            if not taken.soon:
                self._later_under_way -= 1
                self._changed.notify()

    def close(self) -> None:
        """Let nobody wait any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _take(self) -> "Taken | None":
        if self._is_closed:
            return None
        found = self._take_from(self._soon, soon=True)
        if found is None and not (self._later_under_way >= PLANNED_AT_ONCE_MIN and self._reader_waits()):
            found = self._take_from(self._later, soon=False)
            self._later_under_way += found is not None
        return found

    @staticmethod
    def _take_from(sources: "OrderedDict[Source, None]", *, soon: bool) -> "Taken | None":
        while sources:
            source = next(iter(sources))
            piece = source.next_piece()
            if piece is not None:
                sources.move_to_end(source)
                return Taken(piece, source, soon)
            del sources[source]
        return None


class Taken(NamedTuple):
    """A piece that is being fetched, and who wanted it."""

    piece: Piece
    source: Source
    soon: bool
