"""A journal: numbered entries in a store, each created once and chained to the one before (docs/format/journals.md).

Appending is a create-once write on the next number, so that any number of writers on any machines agree on one order
without a lock. Reading verifies the chain. What is cut off at the end cannot be seen here: the ledger proves that.

Knows no kinds of entries: callers hand them in. Threads: safe; a journal remembers how far it was known to reach, and a
race between two threads only makes it remember the shorter one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from vault.errors import Damaged, FormatError, KeyExists, KeyNotFound, StoreUnavailable, UnsupportedVersion
from vault.format.journal import (
    ENTRY_SIZE_MAX,
    Entry,
    Kinds,
    decode_entry,
    entry_digest,
    entry_key,
    entry_number,
)
from vault.stores.base import Store

APPEND_ATTEMPTS_MAX: Final = 1000  # each one lost means that somebody else's entry went in


@dataclass(frozen=True, slots=True)
class Position:
    """How far a journal was read: the number of an entry and the hex digest of its bytes. Number 0 has no digest."""

    number: int = 0
    digest: str | None = None


START: Final = Position()


class Journal:
    """One journal of a store."""

    def __init__(self, store: Store, prefix: str, kinds: Kinds, *, known: Position = START) -> None:
        """Name a journal; it exists from its first entry on.

        Args:
            store: where it lies.
            prefix: its key prefix, without a slash at the end.
            kinds: entries to decode; others come as UnknownEntry.
            known: an entry known to exist, from an earlier `head` or `follow`: saves searching.
        """
        self._store = store
        self._prefix = prefix
        self._kinds = kinds
        self._known = known

    @property
    def prefix(self) -> str:
        """The key prefix."""
        return self._prefix

    def key(self, number: int) -> str:
        """Return the key of an entry."""
        return entry_key(self._prefix, number)

    def head(self) -> Position:
        """Return where the journal ends now, in few round trips. START if there is none.

        The first call lists its keys, later ones look for what came after.

        Raises:
            Damaged: an entry is missing.
        """
        known = self._known
        number = self._search(known.number) if known.number else self._last_listed()
        if number != known.number:
            known = Position(number, entry_digest(self._load(number)))
            self._known = known
        return known

    def entries(self, start: int = 1) -> Iterator[tuple[int, Entry]]:
        """Yield the entries from number start to the end.

        Raises:
            Damaged: an entry is missing, is not one, or does not follow the one before it.
            UnsupportedVersion: a newer vault wrote one.
        """
        after = START if start == 1 else Position(start - 1, entry_digest(self._load(start - 1)))
        for position, entry in self.follow(after, check_end=True):
            yield position.number, entry

    def follow(
        self, after: Position, *, check_end: bool = False, listed: int | None = None
    ) -> Iterator[tuple[Position, Entry]]:
        """Yield the entries after a position, each with its own.

        Args:
            after: where an earlier call came to, or START.
            check_end: list the journal too, so that a missing entry is not taken for the end. Without it, finding nothing
                new takes one round trip.
            listed: the last entry that the caller's own listing of the store has shown. None is looked for behind it, so
                that finding nothing new takes no round trip.

        Raises:
            Damaged, UnsupportedVersion: as `entries`.
        """
        last = listed or (self._last_listed() if check_end else 0)
        while listed is None or after.number < listed:
            number = after.number + 1
            try:
                data = self._load(number)
            except KeyNotFound:
                if number <= last:
                    raise Damaged(self.key(number), "it is missing, though later entries exist") from None
                return
            entry = self._decode(number, data)
            if entry.prev != after.digest:
                raise Damaged(self.key(number), "it does not follow the entry before it: one of the two was replaced")
            after = Position(number, entry_digest(data))
            if number > self._known.number:
                self._known = after
            yield after, entry

    def entry(self, number: int) -> Entry:
        """Return one entry, without looking at the chain. Raises KeyNotFound, and as `entries`."""
        return self._decode(number, self._load(number))

    def append(self, make: Callable[[int, str | None], bytes]) -> int:
        """Create the next entry, durably, and return its number.

        Args:
            make: called with (number, prev) and returns the bytes of the entry; called again, with others, whenever
                another writer was first.

        Raises:
            StoreUnavailable: other writers were always first, or the store shows an old state. A retry may help.
        """
        for _ in range(APPEND_ATTEMPTS_MAX):
            head = self.head()
            number = head.number + 1
            data = make(number, head.digest)
            try:
                self._store.put(self.key(number), data)
            except KeyExists:
                self._known = Position(number, entry_digest(self._load_existing(number)))
                continue
            self._known = Position(number, entry_digest(data))
            return number
        raise StoreUnavailable(self._prefix, f"{APPEND_ATTEMPTS_MAX} attempts to add an entry met those of others")

    def _load(self, number: int) -> bytes:
        return self._store.get(self.key(number), length=ENTRY_SIZE_MAX + 1)

    def _load_existing(self, number: int) -> bytes:
        try:
            return self._load(number)
        except KeyNotFound as error:
            raise StoreUnavailable(self._prefix, f"it has entry {number}, but does not show it yet") from error

    def _decode(self, number: int, data: bytes) -> Entry:
        try:
            entry = decode_entry(data, self._kinds)
        except UnsupportedVersion:
            raise
        except FormatError as error:
            raise Damaged(self.key(number), error.reason) from error
        if entry.n != number:
            raise Damaged(self.key(number), f"it says that it is entry {entry.n}")
        return entry

    def _exists(self, number: int) -> bool:
        try:
            self._store.size(self.key(number))
        except KeyNotFound:
            return False
        return True

    def _search(self, present: int) -> int:
        """Return the last number, given one that is there: step out in growing strides, then halve."""
        stride = 1
        while self._exists(present + stride):
            present += stride
            stride *= 2
        absent = present + stride
        while absent - present > 1:
            middle = (present + absent) // 2
            if self._exists(middle):
                present = middle
            else:
                absent = middle
        return present

    def _last_listed(self) -> int:
        """Return the last number by listing. A number that a listing skips is looked for by itself: listings may lag."""
        last = 0
        for key in self._store.list(f"{self._prefix}/"):
            number = entry_number(key, self._prefix)
            if number is None:
                continue
            for skipped in range(last + 1, number):
                if not self._exists(skipped):
                    raise Damaged(self.key(skipped), "it is missing, though later entries exist")
            last = number
        return last
