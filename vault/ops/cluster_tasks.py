"""What the workers of a cluster do for a commit: read, hash, compress, pack, upload. The driver says what is to be stored.

Each task is a function of its arguments and of a source that does not change: done again, by another worker, it finds what
the first one has stored under the very names that it would give. Workers ask no index, and keep none.
Threads: several tasks of a process may run at one time; they share the handles of store and source.
"""

import errno
import os
import platform
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Final

from vault.errors import KeyNotFound, NotARepository, SourceChanged, SourceUnreadable, UsageError
from vault.format.chunk_table import CHUNKS_MAX, Chunk, ChunkTable, decode_chunk_table, encode_chunk_table
from vault.format.config import decode_config
from vault.format.digest import digest
from vault.format.layout import CONFIG_KEY, whole_key
from vault.format.pack import Codec, ObjectKind, PackIndex, encode_index
from vault.ids import Digest
from vault.ops.cluster_parts import FileRow, Job, LargeRead, PartRead, Stored, split_digests
from vault.ops.freeze import is_compressible
from vault.ops.source import Contents, SourceFile, Walk, open_file
from vault.repo.compressor import Compressor
from vault.repo.existing import publish_or_confirm, put_chunk_table, upload_or_confirm
from vault.repo.large_pass import BUFFER_SIZE, Lanes, LargePass, Piece
from vault.repo.pack_uploads import PackUploads
from vault.repo.packer import PACK_LENGTH_TARGET, Packer, StagedPack
from vault.repo.verified_ranges import VerifiedRanges
from vault.stores.base import Store, Uploads
from vault.stores.registry import open_store

_CONFIG_SIZE_MAX: Final = 64 << 10
_HANDLES_MAX: Final = 4
_READERS_MIN: Final = 16  # a folder that several machines see lies behind a network: reading is waiting

_compressor: Final = Compressor()


def check_worker(job: Job) -> None:
    """See that this worker reaches the store and the source.

    Raises:
        StoreError, NotARepository: it does not reach the store, or another one in its place.
        SourceUnreadable: it does not see the source.
    """
    _store(job)
    _contents(job)


def read_part(job: Job, files: tuple[FileRow, ...]) -> PartRead:
    """Read, hash and compress small files. Raises SourceChanged, SourceUnreadable."""
    contents = _contents(job)

    def read(row: FileRow) -> tuple[Digest, Codec, int, bytes]:
        data, _ = contents.read_small(_file(job, row))
        packed = _compressor.compress(row.name, data) if data else None
        return digest(data), Codec.RAW if packed is None else Codec.ZSTD, len(data), data if packed is None else packed

    with ThreadPoolExecutor(max(contents.readers, _READERS_MIN), "vault-read") as pool:
        found = list(pool.map(read, files))
    return PartRead(
        b"".join(item[0] for item in found),
        bytes(item[1] for item in found),
        tuple(item[2] for item in found),
        tuple(item[3] for item in found),
    )


def digests_of(part: PartRead) -> bytes:
    """Return what the driver needs to say what is new: the digests, one behind the other."""
    return part.digests


def store_part(job: Job, part: PartRead, digests: bytes, wanted: bytes) -> Stored:
    """Put the files of a part into packs that the driver wants to have stored.

    Args:
        job: the commit.
        part: what was read, perhaps for a second time, because the first worker is gone.
        digests: what the driver was told of it.
        wanted: a byte for each file: whether it is to be stored.

    Raises:
        SourceChanged: the part is not what the driver was told.
        StoreError, IntegrityError: as the store says.
    """
    if part.digests != digests:
        raise SourceChanged(os.fsdecode(job.source))
    with _packs(job) as packs:
        files = zip(split_digests(part.digests), part.codecs, part.sizes, part.stored, wanted, strict=True)
        for found, codec, size, stored, is_wanted in files:
            if is_wanted:
                packs.packer.add(found, ObjectKind.BLOB, Codec(codec), stored, size)
    return packs.result()


def read_large(job: Job, row: FileRow) -> LargeRead:
    """Hash a large file and cut it into chunks. Raises SourceChanged, SourceUnreadable, UsageError."""
    contents = _contents(job)
    chunks: list[Chunk] = []

    def take(pieces: Sequence[Piece]) -> None:
        chunks.extend(piece.chunk for piece in pieces)
        if len(chunks) > CHUNKS_MAX:
            raise UsageError(f"{os.fsdecode(row.path)} is too large for this store: it has more than {CHUNKS_MAX:,} chunks")

    with (
        contents.open_large(_file(job, row)) as file,
        ThreadPoolExecutor(2, "vault-chunk") as pool,
        Lanes(job.params, pool) as lanes,
    ):
        compresses = is_compressible(_compressor, file, pool)
        once = LargePass(lanes, file, take, lambda _: None)
        if not once.run(row.size) or once.size != row.size:
            raise SourceChanged(file.path)
        file.check()
    table = ChunkTable(Digest(once.hasher.digest()), once.size, tuple(chunks))
    return LargeRead(encode_chunk_table(table), compresses)


def store_whole(job: Job, row: FileRow, encoded: bytes) -> Stored:
    """Store a large file as itself. Raises SourceChanged, SourceUnreadable, StoreError, IntegrityError."""
    store, table = _store(job), decode_chunk_table(encoded)
    key = whole_key(table.file)
    with _contents(job).open_large(_file(job, row)) as file:
        read = VerifiedRanges(file, file.path, table).read
        if isinstance(store, Uploads):
            upload_or_confirm(store, store, key, table.file, table.size, read)
        else:
            with store.stage() as stage:
                for offset in range(0, table.size, BUFFER_SIZE):
                    stage.write(read(offset, BUFFER_SIZE))
                publish_or_confirm(store, stage, key, table.file)
    put_chunk_table(store, table)
    return Stored((), table.size)


def store_chunks(job: Job, row: FileRow, encoded: bytes, compresses: bool, wanted: bytes) -> Stored:
    """Put those chunks of a large file into packs that the driver wants. Raises as `store_whole`."""
    table = decode_chunk_table(encoded)
    with _contents(job).open_large(_file(job, row)) as file, _packs(job) as packs:
        ranges = VerifiedRanges(file, file.path, table)
        offset = 0
        for chunk, is_wanted in zip(table.chunks, wanted, strict=True):
            if is_wanted:
                data = ranges.read(offset, chunk.size)
                packed = _compressor.compress_always(data) if compresses else None
                codec = Codec.RAW if packed is None else Codec.ZSTD
                packs.packer.add(chunk.digest, ObjectKind.BLOB, codec, data if packed is None else packed, chunk.size)
            offset += chunk.size
    return packs.result()


class _Packs:
    """Packs of one task."""

    def __init__(self, packer: Packer) -> None:
        self.packer = packer
        self.indexes: list[PackIndex] = []

    def result(self) -> Stored:
        encoded = (encode_index(index.pack, index.pack_length, index.objects) for index in self.indexes)
        return Stored(tuple(encoded), self.packer.stored_bytes)


@contextmanager
def _packs(job: Job) -> Iterator[_Packs]:
    """Give a packer whose packs are in the store, indexes too, once this is left without an error."""
    store = _store(job)
    indexes: list[PackIndex] = []
    with ExitStack() as stack:
        if isinstance(store, Uploads):
            # Of one length: what was packed before is no measure for a task that begins anew each time.
            uploads = stack.enter_context(
                PackUploads(store, store, indexes.append, lambda _: None, length_target=PACK_LENGTH_TARGET)
            )
            packs = _Packs(Packer(uploads.begin))
            stack.callback(packs.packer.discard)
            yield packs
            packs.packer.flush()
            uploads.finish()
        else:
            packs = _Packs(Packer(lambda _: StagedPack(store, indexes.append)))
            stack.callback(packs.packer.discard)
            yield packs
            packs.packer.flush()
        packs.indexes = indexes


@lru_cache(maxsize=_HANDLES_MAX)
def _store(job: Job) -> Store:
    """Return the store, opened once in this process. Raises StoreError, NotARepository."""
    store = open_store(job.store_url)
    try:
        config = decode_config(store.get(CONFIG_KEY, length=_CONFIG_SIZE_MAX))
    except KeyNotFound:
        raise NotARepository(job.store_url) from None
    if config.store != job.store_id:
        raise NotARepository(f"{job.store_url} is another store here, and")
    return store


@lru_cache(maxsize=_HANDLES_MAX)
def _contents(job: Job) -> Contents:
    """Return what reads files, opened once in this process. Raises UsageError, SourceUnreadable."""
    if job.is_url:
        from vault.ops.url_source import UrlSource

        return UrlSource(job.source, is_single=job.is_single)
    return Walk(job.source)


def _file(job: Job, row: FileRow) -> SourceFile:
    """Return a file as it is for this worker, once that is what it was for the driver.

    Raises:
        SourceChanged, SourceUnreadable: it is not. Device and inode may differ: that is a matter of how it is mounted.
    """
    if job.is_url:
        from vault.ops.url_files import Seen

        return SourceFile(row.name, row.path, Seen(row.inode, row.mode, row.size, row.mtime_ns, row.state))
    try:
        status = os.lstat(row.path)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            status = _status_of_long(row.path)
        elif not os.path.exists(job.source):
            raise SourceUnreadable(os.fsdecode(job.source), f"worker {platform.node()} does not see it") from error
        else:
            raise SourceChanged(os.fsdecode(row.path)) from error
    if (status.st_size, status.st_mtime_ns) != (row.size, row.mtime_ns) or not stat.S_ISREG(status.st_mode):
        raise SourceChanged(os.fsdecode(row.path))
    return SourceFile(row.name, row.path, status)


def _status_of_long(path: bytes) -> os.stat_result:
    try:
        descriptor = open_file(path)
    except OSError as error:
        raise SourceChanged(os.fsdecode(path)) from error
    try:
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)
