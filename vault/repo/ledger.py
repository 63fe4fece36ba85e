"""The ledger's files in a store: batches, checkpoints, keys and tiles (docs/format/ledger.md, section 2).

Does not decide what goes into the ledger, and verifies no signature. Threads: safe, but for what `subtrees` returns.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from vault.errors import Damaged, FormatError, KeyExists, KeyNotFound, StoreError, UnsupportedVersion
from vault.format.layout import DATASETS, RUNS
from vault.format.ledger import (
    BATCH_SIZE_MAX,
    BATCHES,
    CHECKPOINTS,
    KEYS,
    LEDGER,
    Batch,
    batch_key,
    checkpoint_key,
    decode_batch,
    encode_batch,
    numbered,
    origin_of,
)
from vault.format.note import (
    NOTE_SIZE_MAX,
    Checkpoint,
    Note,
    format_verifier_key,
    parse_checkpoint,
    parse_note,
    parse_verifier_key,
)
from vault.format.tlog import HASH_SIZE, TILE_WIDTH, ReadSubtree, subtree_of_tile, tile_of_subtree
from vault.stores.base import Store

KEYS_MAX: Final = 1024  # public keys of a ledger that are read
_VERIFIER_KEY_SIZE_MAX: Final = 1024
_TILES_KEPT: Final = 64


@dataclass(frozen=True, slots=True)
class SignedCheckpoint:
    """A checkpoint as it lies in the store."""

    number: int
    note: Note
    checkpoint: Checkpoint
    data: bytes


class LedgerFiles:
    """The ledger of one store."""

    def __init__(self, store: Store, store_id: str) -> None:
        """Name it; it exists from its first batch on."""
        self._store = store
        self.origin = origin_of(store_id)

    def last_batch(self) -> int:
        """Return the number of the last batch; 0 if there is none."""
        return self._last(BATCHES)

    def last_checkpoint(self) -> int:
        """Return the number of the last checkpoint; 0 if there is none."""
        return self._last(CHECKPOINTS)

    def batch(self, number: int, first: int | None = None) -> Batch:
        """Return a batch.

        Args:
            number: which.
            first: how many leaves come before it; None if that is not known.

        Raises:
            Damaged: it is none, is missing, or does not follow those before it.
        """
        key = batch_key(number)
        try:
            found = decode_batch(self._get(key, BATCH_SIZE_MAX + 1))
        except UnsupportedVersion:
            raise
        except FormatError as error:
            raise Damaged(key, error.reason) from error
        if found.number != number or (first is not None and found.first != first):
            raise Damaged(key, f"it says that it is batch {found.number} and follows {found.first:,} leaves")
        return found

    def put_batch(self, batch: Batch) -> None:
        """Create a batch. Raises KeyExists if somebody else was first."""
        self._store.put(batch_key(batch.number), encode_batch(batch))

    def checkpoint(self, number: int) -> SignedCheckpoint:
        """Return a checkpoint; its signatures are not verified. Raises Damaged if it is none, or missing."""
        key = checkpoint_key(number)
        return self.parse(number, self._get(key, NOTE_SIZE_MAX + 1), key)

    def parse(self, number: int, data: bytes, where: str) -> SignedCheckpoint:
        """Return the checkpoint that data hold. Raises Damaged, naming `where`: it is none, or one of another store."""
        try:
            note = parse_note(data)
            found = parse_checkpoint(note.text)
        except FormatError as error:
            raise Damaged(where, error.reason) from error
        if found.origin != self.origin:
            raise Damaged(where, f"it is a checkpoint of {found.origin}, not of {self.origin}")
        return SignedCheckpoint(number, note, found, data)

    def put_same(self, key: str, data: bytes) -> None:
        """Create a file whose content follows from the batches, unless it is there. Raises Damaged if it differs."""
        try:
            self._store.put(key, data)
        except KeyExists:
            if self._store.get(key, length=len(data) + 1) != data:
                raise Damaged(key, "it does not say what the batches of the ledger say") from None

    def public_keys(self) -> Iterator[bytes]:
        """Yield the public keys that the store names; that they are there proves nothing. Damaged ones are passed over."""
        for count, key in enumerate(self._store.list(KEYS)):
            if count >= KEYS_MAX:
                return
            try:
                data = self._store.get(key, length=_VERIFIER_KEY_SIZE_MAX)
                name, raw = parse_verifier_key(data.decode("ascii", "replace"))
            except (FormatError, StoreError):
                continue
            if name == self.origin:
                yield raw

    def put_key(self, raw: bytes) -> None:
        """Leave a public key for those who have no better source."""
        text = format_verifier_key(self.origin, raw)
        self.put_same(f"{KEYS}{text.removeprefix(self.origin)[1:9]}", f"{text}\n".encode())

    def subtrees(self, size: int) -> ReadSubtree:
        """Return what reads hashes of full subtrees from the tiles of a tree of this size. Tiles are not verified."""
        kept: OrderedDict[str, bytes] = OrderedDict()

        def read(height: int, index: int) -> bytes:
            name, first, last = tile_of_subtree(height, index, size)
            key = f"{LEDGER}{name}"
            tile = kept.get(name)
            if tile is None:
                try:
                    tile = kept[name] = self._store.get(key, length=TILE_WIDTH * HASH_SIZE)
                except KeyNotFound as error:
                    raise Damaged(key, "this tile of the ledger is missing") from error
                if len(kept) > _TILES_KEPT:
                    kept.popitem(last=False)
            try:
                return subtree_of_tile(tile, first, last)
            except FormatError as error:
                raise Damaged(key, error.reason) from error

        return read

    def _get(self, key: str, length: int) -> bytes:
        try:
            return self._store.get(key, length=length)
        except KeyNotFound as error:
            raise Damaged(key, "it is missing") from error

    def _last(self, prefix: str) -> int:
        return max((numbered(key, prefix) or 0 for key in self._store.list(prefix)), default=0)


def all_journals(store: Store) -> dict[str, int]:
    """Return the last entry's number of every journal of a store, by prefix, in byte order of the prefixes."""
    last: dict[str, int] = {}
    for top in (DATASETS, RUNS):
        for key in store.list(top):
            prefix, _, name = key.rpartition("/")
            if len(name) == 15 and name.endswith(".json") and name[:10].isdigit() and prefix != top.rstrip("/"):
                last[prefix] = max(int(name[:10]), last.get(prefix, 0))
    return dict(sorted(last.items()))
