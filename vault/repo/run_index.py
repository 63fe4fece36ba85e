"""Which runs opened what: an LMDB table in the cache directory, built from the journals of the store.

It can be deleted at any time; `refresh` reads what journals have that it does not. If a journal became shorter or went
away, as when a store is put back from a backup, everything is read anew. Of each input it keeps counts in blocks of
entries, so that "who opened entry e" touches one block of each run that consumed the snapshot. What files hold
(`learn_contents`) is told by the caller, who can walk snapshots; this module cannot. Threads: one instance in each.
Processes: as many as you like.

    seen       run/writer                        -> Position (the last entry that is in the index)
    runs       run                               -> Run
    sources    number (4)                        -> Source: (run, snapshot, ref)
    numbers    digest of (run, snapshot, ref)    -> number of the source
    blocks     snapshot (32) block (4) source (4) -> a Block
    contents   digest (32) snapshot number (4) entry (8) -> nothing
    walked     snapshot (32)                     -> snapshot number (4)
"""

import logging
import os
import struct
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec
import zstandard
from blake3 import blake3

from vault.errors import Damaged, FormatError, VaultError
from vault.ids import Digest, RunId
from vault.repo.journals import START, Position
from vault.repo.lmdb_file import CacheDamaged, LmdbFile
from vault.repo.read_counts import BLOCK_ENTRIES, Block, ReadCounts
from vault.repo.run_model import Run, add_entry, add_reads, with_opened
from vault.repo.runs import Runs
from vault.stores.base import Store

logger = logging.getLogger(__name__)

CACHE_VERSION: Final = 2
_SEEN, _RUNS, _SOURCES, _NUMBERS, _BLOCKS = b"seen", b"runs", b"sources", b"numbers", b"blocks"
_CONTENTS, _WALKED = b"contents", b"walked"
_DATABASES: Final = (_SEEN, _RUNS, _SOURCES, _NUMBERS, _BLOCKS, _CONTENTS, _WALKED)
_U32 = struct.Struct(">I")
_BLOCK_KEY = struct.Struct(">32sII")
_PLACE = struct.Struct(">32sIQ")
_DIGEST_LENGTH = 32
_WRITTEN_AT_ONCE = 100_000


class Source(msgspec.Struct, frozen=True, array_like=True):
    """One run's reads of one snapshot under one name."""

    run: RunId
    snapshot: Digest
    ref: str
    number: int = 0


class _Stored(msgspec.Struct, frozen=True, array_like=True):
    """A block, as it is kept."""

    counts: bytes  # zstd
    more: dict[int, int]


class RunIndex:
    """Answers from the journals, without reading them again."""

    def __init__(self, file: LmdbFile, store: Store) -> None:
        """Use `open_run_index`."""
        self._file = file
        self._runs = Runs(store)

    def refresh(self) -> int:
        """Read what is new in the store's journals. Returns how many entries that were.

        A damaged journal is logged and left as far as it is sound: `vault verify` says what is wrong with it.

        Raises:
            StoreError: the store cannot be listed or read; what was read before still answers.
        """
        try:
            return self._refresh()
        except CacheDamaged:
            self._file.renew()
            return self._refresh()

    def _refresh(self) -> int:
        with self._file.read() as transaction:
            seen = {
                bytes(key): msgspec.msgpack.decode(bytes(value), type=Position)
                for key, value in transaction.cursor(db=self._file.db(_SEEN))
            }
        journals = self._runs.journals()
        last = {_journal_name(run, writer): number for (run, writer), number in journals.items()}
        if any(position.number > last.get(name, 0) for name, position in seen.items()):
            logger.warning("the journals of runs are shorter than they were: their index is made anew")
            self.forget()
            seen = {}
        news: dict[RunId, list[str]] = {}
        for (run, writer), number in journals.items():
            if seen.get(_journal_name(run, writer), START).number < number:
                news.setdefault(run, []).append(writer)
        added = 0
        for run, writers in news.items():
            try:
                added += self._read_run(run, writers, seen)
            except (Damaged, FormatError) as error:
                logger.error("run %s is incomplete in the index: %s", run, error)
        if added:
            self._file.sync()
        return added

    def runs(self) -> Iterator[Run]:
        """Yield all runs, those that started last first."""
        with self._file.read() as transaction:
            found = [_decode_run(value) for _, value in transaction.cursor(db=self._file.db(_RUNS))]
        return iter(sorted(found, key=lambda run: (run.started, run.run), reverse=True))

    def run(self, run: RunId) -> Run | None:
        """Return a run, or None if there is none of this ID."""
        with self._file.read() as transaction:
            value = transaction.get(run.encode(), db=self._file.db(_RUNS))
            return None if value is None else _decode_run(value)

    def sources(self) -> Iterator[Source]:
        """Yield all pairs of a run and what it read."""
        with self._file.read() as transaction:
            values = [bytes(value) for _, value in transaction.cursor(db=self._file.db(_SOURCES))]
        for value in values:
            yield msgspec.msgpack.decode(value, type=Source)

    def readers_of(self, snapshot: Digest, numbers: range) -> Iterator[tuple[Source, ReadCounts]]:
        """Yield who opened any of these entries of a snapshot, with the counts of the blocks that hold them.

        Counts of other entries in the same blocks are there too: ask for the entries you mean.
        """
        found: dict[int, ReadCounts] = {}
        with self._file.read() as transaction:
            for block in range(numbers.start // BLOCK_ENTRIES, -(-numbers.stop // BLOCK_ENTRIES)):
                prefix = snapshot + _U32.pack(block)
                for key, value in _below(transaction, self._file.db(_BLOCKS), prefix):
                    counts = found.setdefault(_U32.unpack(key[-4:])[0], ReadCounts())
                    counts.blocks[block] = _decode_block(value)
            sources = [(self._source(transaction, number), counts) for number, counts in sorted(found.items())]
        yield from ((source, counts) for source, counts in sources if counts.opened(numbers))

    def reads_of(self, source: Source) -> ReadCounts:
        """Return all that a run opened of a snapshot under one name."""
        counts = ReadCounts()
        with self._file.read() as transaction:
            cursor = transaction.cursor(db=self._file.db(_BLOCKS))
            for block in _block_numbers(cursor, source.snapshot):
                value = transaction.get(_BLOCK_KEY.pack(source.snapshot, block, source.number), db=self._file.db(_BLOCKS))
                if value is not None:
                    counts.blocks[block] = _decode_block(value)
        return counts

    def knows_contents(self, snapshot: Digest) -> bool:
        """Say whether `learn_contents` was called for a snapshot."""
        with self._file.read() as transaction:
            return transaction.get(snapshot, db=self._file.db(_WALKED)) is not None

    def learn_contents(self, snapshot: Digest, files: Iterable[tuple[int, Digest]]) -> None:
        """Note which content each file of a snapshot has. All or nothing.

        Args:
            snapshot: the snapshot.
            files: (entry number, digest of the content) of each file in it.
        """
        with self._file.write() as transaction:
            number = transaction.stat(self._file.db(_WALKED))["entries"]
            cursor = transaction.cursor(db=self._file.db(_CONTENTS))
            batch: list[tuple[bytes, bytes]] = []
            for entry, digest in files:
                batch.append((_PLACE.pack(digest, number, entry), b""))
                if len(batch) == _WRITTEN_AT_ONCE:
                    cursor.putmulti(sorted(batch))
                    batch.clear()
            cursor.putmulti(sorted(batch))
            transaction.put(snapshot, _U32.pack(number), db=self._file.db(_WALKED))

    def places_of(self, contents: Iterable[Digest]) -> dict[Digest, list[int]]:
        """Return where files with one of these contents are: ascending entry numbers by snapshot, as far as was learnt."""
        found: dict[int, list[int]] = {}
        with self._file.read() as transaction:
            snapshots = {
                _U32.unpack(value)[0]: Digest(bytes(key)) for key, value in transaction.cursor(db=self._file.db(_WALKED))
            }
            for digest in set(contents):
                for key, _ in _below(transaction, self._file.db(_CONTENTS), digest):
                    _, number, entry = _PLACE.unpack(key)
                    found.setdefault(number, []).append(entry)
        return {snapshots[number]: sorted(entries) for number, entries in found.items()}

    def forget(self) -> None:
        """Drop everything, so that the next refresh reads all journals."""
        with self._file.write() as transaction:
            for name in _DATABASES:
                transaction.drop(self._file.db(name), delete=False)

    def _read_run(self, run: RunId, writers: Iterable[str], seen: dict[bytes, Position]) -> int:
        """Bring one run up to date, in one transaction."""
        known = self.run(run)
        found = known or Run(run=run)
        counts: dict[tuple[Digest, str], ReadCounts] = {}
        positions: dict[bytes, Position] = {}
        added = 0
        problem: VaultError | None = None
        for writer in writers:
            name = _journal_name(run, writer)
            position = seen.get(name, START)
            try:
                for position, entry in self._runs.follow(run, writer, position):  # noqa: B020 - goes on from there
                    add_reads(counts, entry)
                    found = add_entry(found, writer, entry)
                    added += 1
                    positions[name] = position
            except (Damaged, FormatError) as error:
                problem = error
        with self._file.write() as transaction:
            for name in positions:
                value = transaction.get(name, db=self._file.db(_SEEN))
                now = START if value is None else msgspec.msgpack.decode(bytes(value), type=Position)
                if now != seen.get(name, START):
                    return 0  # another process was faster; adding counts again would double them
            opened = {(i.snapshot, i.ref): i.opened for i in found.inputs}
            for (snapshot, ref), more in counts.items():
                number = self._number(transaction, Source(run, snapshot, ref))
                opened[snapshot, ref] += self._add_blocks(transaction, snapshot, number, more)
            transaction.put(run.encode(), msgspec.msgpack.encode(with_opened(found, opened)), db=self._file.db(_RUNS))
            for name, position in positions.items():
                transaction.put(name, msgspec.msgpack.encode(position), db=self._file.db(_SEEN))
        if problem is not None:
            raise problem
        return added

    def _add_blocks(self, transaction: Any, snapshot: Digest, source: int, more: ReadCounts) -> int:
        """Add counts to those of a source. Returns how many entries are opened now that were not before."""
        new = 0
        for number, block in more.blocks.items():
            key = _BLOCK_KEY.pack(snapshot, number, source)
            value = transaction.get(key, db=self._file.db(_BLOCKS))
            before = 0
            if value is not None:
                old = _decode_block(value)
                before = old.opened()
                for place, times in block.items():
                    old.add(place, place + 1, times)
                block = old  # noqa: PLW2901 - what was there, with what is new
            new += block.opened() - before
            transaction.put(key, _encode_block(block), db=self._file.db(_BLOCKS))
        return new

    def _number(self, transaction: Any, source: Source) -> int:
        name = blake3(b"\0".join((source.run.encode(), source.snapshot, source.ref.encode()))).digest()
        value = transaction.get(name, db=self._file.db(_NUMBERS))
        if value is not None:
            return int(_U32.unpack(value)[0])
        number = int(transaction.stat(self._file.db(_SOURCES))["entries"])
        numbered = msgspec.structs.replace(source, number=number)
        transaction.put(_U32.pack(number), msgspec.msgpack.encode(numbered), db=self._file.db(_SOURCES))
        transaction.put(name, _U32.pack(number), db=self._file.db(_NUMBERS))
        return number

    def _source(self, transaction: Any, number: int) -> Source:
        return msgspec.msgpack.decode(bytes(transaction.get(_U32.pack(number), db=self._file.db(_SOURCES))), type=Source)


def open_run_index(cache_dir: str, store: Store) -> RunIndex:
    """Open the index of runs below a store's cache directory. Call `refresh` before asking."""
    path = os.path.join(cache_dir, "runs.lmdb")
    return RunIndex(LmdbFile(path, version=CACHE_VERSION, databases=_DATABASES), store)


def _journal_name(run: RunId, writer: str) -> bytes:
    return f"{run}/{writer}".encode()


def _below(transaction: Any, db: Any, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
    cursor = transaction.cursor(db=db)
    if cursor.set_range(prefix):
        for key, value in cursor:
            if not key.startswith(prefix):
                return
            yield bytes(key), bytes(value)


def _block_numbers(cursor: Any, snapshot: Digest) -> Iterator[int]:
    """Yield the numbers of the blocks that anybody opened something in."""
    number = 0
    while cursor.set_range(_BLOCK_KEY.pack(snapshot, number, 0)):
        key = bytes(cursor.key())
        if not key.startswith(snapshot):
            return
        number = _U32.unpack_from(key, _DIGEST_LENGTH)[0]
        yield number
        number += 1


def _decode_run(value: bytes) -> Run:
    return msgspec.msgpack.decode(bytes(value), type=Run)


def _encode_block(block: Block) -> bytes:
    packed = zstandard.ZstdCompressor(level=1).compress(bytes(block.counts))
    return msgspec.msgpack.encode(_Stored(packed, block.more))


def _decode_block(value: bytes) -> Block:
    stored = msgspec.msgpack.decode(bytes(value), type=_Stored)
    return Block(zstandard.ZstdDecompressor().decompress(stored.counts), stored.more)
