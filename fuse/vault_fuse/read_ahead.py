"""How much of which stored file is fetched before it is asked for. Pure: time, and what is read, come as arguments.

**Whole files** are read from front to back, or mapped and read in any order, but mostly all of them. Of each one a few
megabytes are fetched at its first read, and from then on several times what was read of it, so that a reader that goes on
soon has all of the link working for it, and one that looks at a header pays for little. The pieces come in the order of the
file from where its reader is, and begin anew at the front when the end is reached.

**Packs** hold small files in the order of folders, and their readers are many and take them in any order. What follows in
the pack is fetched in steps that grow from 1 MiB with each read that had to wait, or that found what had been fetched ahead
for it. All packs share one credit: what is fetched costs, what is used earns many times that. So a pass over a dataset in
random order soon has it fetched at the speed of the link, and random reads in a store much larger than the cache use up the
credit once, and from then on cost what they read. A debt is forgotten in time: another job may read otherwise.

docs/adr/0017-read-ahead-by-credit.md has the measurements. Threads: one at a time.
"""

from typing import Final

from vault.format.layout import WHOLE
from vault.repo.lru import Lru
from vault_fuse.fetch_queue import Piece
from vault_fuse.hints import Hint
from vault_fuse.marks import UNIT

PIECE_MAX: Final = 4 << 20  # one request; longer ones are not faster, and more of them at once are
WHOLE_START: Final = 8 << 20  # of a whole file, at its first read
WHOLE_GAIN: Final = 4  # bytes ahead for each byte read
WHOLE_AHEAD_MAX: Final = 4 << 30  # and at most this, or a quarter of the cache
PACK_STEP_MIN: Final = 1 << 20
CREDIT_MAX: Final = 1 << 30  # or an eighth of the cache
CREDIT_GAIN: Final = 32  # bytes that may be fetched for each byte that was used
DEBT_HALF_LIFE_S: Final = 600.0
STREAMS_BUDGET: Final = 16 << 20  # memory for what is known about files that are being read
_STREAM_COST: Final = 512


class Credit:
    """Says whether read-ahead has been worth it lately."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._debt = 0.0
        self._at_s = 0.0

    def spend(self, fetched_bytes: int, now_s: float) -> None:
        """Note what was fetched ahead."""
        self._debt = self._debt_now(now_s) + fetched_bytes

    def earn(self, used_bytes: int, now_s: float) -> None:
        """Note what was used of it."""
        self._debt = max(self._debt_now(now_s) - (1 + CREDIT_GAIN) * used_bytes, -float(self._limit))

    def is_left(self, now_s: float) -> bool:
        """Say whether more may be fetched."""
        return self._debt_now(now_s) < self._limit

    def is_earned(self, now_s: float) -> bool:
        """Say whether what was fetched has been used, and no little."""
        return self._debt_now(now_s) < -self._limit / 2

    def _debt_now(self, now_s: float) -> float:
        if now_s > self._at_s:
            self._debt *= 0.5 ** ((now_s - self._at_s) / DEBT_HALF_LIFE_S)
            self._at_s = now_s
        return self._debt


class Stream:
    """What is fetched ahead of the readers of one stored file."""

    def __init__(self, key: str, size: int) -> None:
        self.key = key
        self.size = size
        self.is_whole = key.startswith(WHOLE)
        self.steps = 0
        self._granted = 0
        self._asked_bytes = 0
        self._used_bytes = 0
        self._position = 0  # in units
        self._asked = bytearray((size + UNIT - 1) // UNIT)  # by unit: 1 if it was named as part of a piece

    def move(self, position: int, used_bytes: int) -> None:
        """Note where a reader is, and how much it has taken."""
        self._position = min((position + UNIT - 1) // UNIT, len(self._asked))
        self._used_bytes += used_bytes

    def grant(self, more_bytes: int) -> None:
        """Allow so many bytes more."""
        self._granted = max(self._granted, self._asked_bytes) + more_bytes

    def grant_by_use(self, ahead_max: int) -> None:
        """Allow what suits a whole file of which so much was read."""
        self._granted = min(WHOLE_START + (1 + WHOLE_GAIN) * self._used_bytes, self._used_bytes + ahead_max)

    def next_piece(self) -> Piece | None:
        """Return what to fetch next, or None for now."""
        if self._asked_bytes >= self._granted:
            return None
        start = self._asked.find(0, self._position)
        if start < 0:
            start = self._asked.find(0)
            if start < 0:
                return None
        room = min(PIECE_MAX, max(self._granted - self._asked_bytes, UNIT)) // UNIT
        end = self._asked.find(1, start, start + room)
        if end < 0:
            end = min(start + room, len(self._asked))
        self._asked[start:end] = b"\1" * (end - start)
        length = min(end * UNIT, self.size) - start * UNIT
        self._asked_bytes += length
        return Piece(self.key, start * UNIT, length)

    def give_back(self, length: int) -> None:
        """Note that so much of a piece was here already, and cost nothing."""
        self._asked_bytes -= length

    @property
    def is_done(self) -> bool:
        """Whether all of the file was named."""
        return self._asked.find(0) < 0

    @property
    def cost_bytes(self) -> int:
        """How much memory it takes."""
        return len(self._asked) + _STREAM_COST


class ReadAhead:
    """What is fetched ahead for all readers of a mount."""

    def __init__(self, cache_bytes: int) -> None:
        """Begin without knowing any file.

        Args:
            cache_bytes: how much the machine may keep.
        """
        self._credit = Credit(min(CREDIT_MAX, cache_bytes // 8))
        self._ahead_max = min(WHOLE_AHEAD_MAX, cache_bytes // 4)
        self._streams: Lru[str, Stream] = Lru(STREAMS_BUDGET)

    def note(self, hint: Hint, now_s: float) -> None:
        """Take a hint: `next_piece` may now have more for this file."""
        stream = self._streams.get(hint.key)
        if stream is None or (stream.is_done and hint.missed):  # all of it was here once: it is being evicted
            stream = Stream(hint.key, hint.size)
            self._streams.drop(hint.key)
            self._streams.put(hint.key, stream, stream.cost_bytes)
        stream.move(hint.position, hint.used_bytes)
        if stream.is_whole:
            stream.grant_by_use(self._ahead_max)
            return
        self._credit.earn(hint.used_bytes, now_s)
        if self._credit.is_left(now_s):
            is_proven = self._credit.is_earned(now_s)
            stream.grant(PIECE_MAX if is_proven else min(PIECE_MAX, PACK_STEP_MIN << stream.steps))
            stream.steps += 1

    def next_piece(self, key: str, now_s: float) -> Piece | None:
        """Return what to fetch next of a stored file, or None for now."""
        stream = self._streams.get(key)
        piece = None if stream is None else stream.next_piece()
        if piece is not None and stream is not None and not stream.is_whole:
            self._credit.spend(piece.length, now_s)
        return piece

    def was_here(self, key: str, length: int, now_s: float) -> None:
        """Note that so much of a piece was here already."""
        stream = self._streams.get(key)
        if stream is not None:
            stream.give_back(length)
            if not stream.is_whole:
                self._credit.spend(-length, now_s)
