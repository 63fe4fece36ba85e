"""How much of which stored file is fetched before it is asked for. Pure: time, and what is read, come as arguments.

**Whole files** are read from front to back, or mapped and read in any order, but mostly all of them. Of each one a few
megabytes are fetched at its first read, and from then on several times what was read of it, so that a reader that goes on
soon has all of the link working for it, and one that looks at a header pays for little. The pieces come in the order of the
file from where its reader is, and begin anew at the front when the end is reached.

**Packs** hold small files in the order of folders, and their readers are many and take them in any order. What follows in
the pack is fetched in steps that grow from 1 MiB with each read that had to wait, or that found what had been fetched ahead
for it. All packs share one credit: what is fetched costs, what is used earns many times that. So a pass over a dataset in
random order soon has it fetched at the speed of the link, and random reads in a store much larger than the cache use up the
credit once, and from then on cost what they read. A debt is forgotten in time: another job may read otherwise. What a pack
has no more bytes for goes on in the pack that follows it in the tree (pack_order.py), as long as little waits unused.

docs/adr/0017-read-ahead-by-credit.md has the measurements. Threads: one at a time.
"""

from typing import Final

from vault.format.layout import PACKS, WHOLE
from vault.repo.lru import Lru
from vault_fuse.fetch_queue import Piece
from vault_fuse.hints import Hint
from vault_fuse.marks import UNIT
from vault_fuse.pack_order import PackOrder

PIECE_MAX: Final = 4 << 20  # one request; longer ones are not faster, and more of them at once are
WHOLE_START: Final = 8 << 20  # of a whole file, at its first read
WHOLE_GAIN: Final = 4  # bytes ahead for each byte read
WHOLE_AHEAD_MAX: Final = 4 << 30  # and at most this, or a quarter of the cache; packs together: over the ends of packs
PACK_STEP_MIN: Final = 1 << 20
CREDIT_MAX: Final = 1 << 30  # or an eighth of the cache
CREDIT_GAIN: Final = 32  # bytes that may be fetched for each byte that was used
DEBT_HALF_LIFE_S: Final = 600.0
STREAMS_BUDGET: Final = 16 << 20  # memory for what is known about files that are being read
HINT_AGE_S_MAX: Final = 0.5  # of what is heard
PACKS_PASSED_MAX: Final = 64  # that were named to their ends, until the next one that is not
_STREAM_COST: Final = 512


class Credit:
    """Says whether read-ahead has been worth it lately."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._debt = 0.0
        self._unused = 0.0
        self._at_s = 0.0

    def spend(self, fetched_bytes: int, now_s: float) -> None:
        """Note what was fetched ahead."""
        self._debt = self._debt_now(now_s) + fetched_bytes
        self._unused = max(self._unused + fetched_bytes, 0.0)

    def earn(self, used_bytes: int, now_s: float) -> None:
        """Note what was used of it."""
        self._debt = max(self._debt_now(now_s) - (1 + CREDIT_GAIN) * used_bytes, -float(self._limit))
        self._unused = max(self._unused - used_bytes, 0.0)

    def is_left(self, now_s: float) -> bool:
        """Say whether more may be fetched."""
        return self._debt_now(now_s) < self._limit

    def unused_bytes(self, now_s: float) -> float:
        """Return how much of what was fetched waits for a reader, as far as that is remembered."""
        self._debt_now(now_s)
        return self._unused

    def is_earned(self, now_s: float) -> bool:
        """Say whether what was fetched has been used, and no little."""
        return self._debt_now(now_s) < -self._limit / 2

    def _debt_now(self, now_s: float) -> float:
        if now_s > self._at_s:
            kept = 0.5 ** ((now_s - self._at_s) / DEBT_HALF_LIFE_S)
            self._debt *= kept
            self._unused *= kept
            self._at_s = now_s
        return self._debt


class Stream:
    """What is fetched ahead of the readers of one stored file."""

    def __init__(self, key: str, size: int | None) -> None:
        """Begin with nothing named.

        Args:
            key: of the stored file.
            size: of it. If that is not known there is one piece, from the front, until `learn_size`.
        """
        self.key = key
        self.size = PIECE_MAX if size is None else size
        self.has_size = size is not None
        self.is_whole = key.startswith(WHOLE)
        self.is_pack = key.startswith(PACKS)
        self.steps = 0
        self.under_way = 0  # pieces
        self.ended_s = 0.0  # when the last of them ended
        self._granted = 0
        self._passed_on = 0
        self._asked_bytes = 0
        self._used_bytes = 0
        self._position = 0  # in units
        self._asked = bytearray((self.size + UNIT - 1) // UNIT)  # by unit: 1 if it was named as part of a piece

    def learn_size(self, size: int) -> int:
        """Note how long the file is, which was not known. Returns by how much less was named than seemed: 0 or negative."""
        named = self._asked_bytes
        self._asked_bytes = min(named, size)
        self._granted = self._asked_bytes + self._passed_on  # too much of which is passed on again
        units = (size + UNIT - 1) // UNIT
        self._asked = self._asked[:units].ljust(units, b"\0")
        self.size = size
        self.has_size = True
        return self._asked_bytes - named

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

    def take_left(self) -> int:
        """Return what is allowed and cannot be fetched of this file, or not yet, which it then has no more."""
        left = max(self._granted - self._asked_bytes, 0) if self.is_done else 0
        self._granted -= left
        if not self.has_size:
            self._passed_on += left
        return left

    def give_back(self, length: int) -> None:
        """Note that so much of a piece was here already, and cost nothing."""
        self._asked_bytes -= length

    def was_here(self, now_s: float) -> bool:
        """Say whether all of the file must have come, and for long enough that what readers tell was seen after it."""
        return self.is_done and not self.under_way and now_s - self.ended_s > HINT_AGE_S_MAX

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
        self.order = PackOrder()

    def note(self, hint: Hint, now_s: float) -> None:
        """Take a hint: `next_piece` may now have more for this file."""
        stream = self._streams.get(hint.key)
        if stream is None or (hint.missed and stream.was_here(now_s)):  # it is being evicted
            stream = self._begin(hint.key, hint.size)
        elif not stream.has_size:
            self._credit.spend(self._learn(stream, hint.size), now_s)
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
        """Return what to fetch next for the readers of a stored file, or None for now. Say `ended` when that is over."""
        stream = self._streams.get(key)
        piece = None
        for _ in range(PACKS_PASSED_MAX):
            piece = None if stream is None else stream.next_piece()
            if piece is not None or stream is None or not stream.is_pack:
                break
            stream = self._follow(stream, now_s)
        if piece is not None and stream is not None:
            stream.under_way += 1
            if not stream.is_whole:
                self._credit.spend(piece.length, now_s)
        return piece

    def ended(self, key: str, now_s: float) -> None:
        """Note that a piece of a stored file is here, or will not be."""
        stream = self._streams.get(key)
        if stream is not None and stream.under_way:
            stream.under_way -= 1
            stream.ended_s = now_s

    def learn_size(self, key: str, size: int, now_s: float) -> bool:
        """Note how long a stored file is. Returns whether it was not known: there may be more to fetch."""
        stream = self._streams.get(key)
        if stream is None or stream.has_size:
            return False
        self._credit.spend(self._learn(stream, size), now_s)
        return True

    def _learn(self, stream: Stream, size: int) -> int:
        """Note how long a stored file is. Returns how much more was named than it has: negative, or zero."""
        more = stream.learn_size(size)
        self._streams.drop(stream.key)
        self._streams.put(stream.key, stream, stream.cost_bytes)
        return more

    def _begin(self, key: str, size: int | None) -> Stream:
        stream = Stream(key, size)
        self._streams.drop(key)
        self._streams.put(key, stream, stream.cost_bytes)
        return stream

    def _follow(self, stream: Stream, now_s: float) -> Stream | None:
        """Give what is left of a pack's grant to the pack behind it, and return that."""
        key = self.order.after(stream.key)
        if key is None or not stream.is_done or self._credit.unused_bytes(now_s) >= self._ahead_max:
            return None
        left = stream.take_left()
        following = self._streams.get(key)
        if following is None:
            if not left:
                return None
            following = self._begin(key, None)
        following.steps = max(following.steps, stream.steps)
        following.grant(left)
        return following

    def was_here(self, key: str, length: int, now_s: float) -> None:
        """Note that so much of a piece was here already."""
        stream = self._streams.get(key)
        if stream is not None:
            stream.give_back(length)
            if not stream.is_whole:
                self._credit.spend(-length, now_s)
