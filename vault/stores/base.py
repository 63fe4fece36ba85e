"""What a store is: immutable bytes by key, created once. No store knows what the bytes mean.

Keys are `/`-joined segments of printable ASCII that do not start with a dot: such names belong to file systems (`.nfs…`,
`.snapshot`). `tmp` belongs to the store itself. `check_key` refuses the rest. All calls are synchronous and may be made
from several threads at once. A key, once visible, has all of its bytes, for ever and durably: a `put` or `Stage.publish`
that has returned survives power loss. Authority is by type: readers get a ByteReader, only gc a Deleter.
"""

import re
from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

from vault.errors import KeyExists, UsageError

Buffer = bytes | bytearray | memoryview

KEY_LENGTH_MAX = 512
SEGMENT_LENGTH_MAX = 255  # what a file name may have
TEMPORARY = "tmp"  # no key starts with this segment: a folder keeps there what is being written
_KEY = re.compile(r"[A-Za-z0-9_=+@-][A-Za-z0-9._=+@-]*(/[A-Za-z0-9_=+@-][A-Za-z0-9._=+@-]*)*\Z")


class ByteReader(Protocol):
    """The read half of a store."""

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Return bytes [offset, offset + length) of a key; up to its end if length is None.

        A range that passes the end returns what there is, which may be b"".

        Raises:
            KeyNotFound: no such key. Final.
            StoreUnavailable: no answer. A retry may help.
        """
        ...

    def size(self, key: str) -> int:
        """Return the number of bytes of a key. Raises as `get`."""
        ...

    def list(self, prefix: str) -> Iterator[str]:
        """Yield every key that starts with prefix (which ends in `/` or is empty), in byte order."""
        ...


class Stage(Protocol):
    """A stored file in the making: written front to back, invisible until `publish`. Use as a context manager."""

    def write(self, data: Buffer) -> None:
        """Append data. The buffer may be reused after the call."""
        ...

    def publish(self, key: str) -> None:
        """Make what was written visible under key, durably, all at once.

        Raises:
            KeyExists: somebody else created key first; nothing of this stage stays.
        """
        ...

    def __enter__(self) -> "Stage":
        """Return self."""
        ...

    def __exit__(self, *exc: object) -> None:
        """Discard what was not published."""
        ...


class Store(ByteReader, Protocol):
    """A place for a repository."""

    @property
    def url(self) -> str:
        """How a user names this store, for messages. Holds no secret."""
        ...

    def put(self, key: str, data: Buffer) -> None:
        """Create key with data, durably.

        Raises:
            KeyExists: the key is there already, whatever its bytes.
            StoreFull, StorePermission, StoreUnavailable: nothing became visible.
        """
        ...

    def stage(self) -> Stage:
        """Start a stored file whose key is known only at its end (a pack is named by its own hash)."""
        ...


@runtime_checkable
class LocalFiles(Protocol):
    """A store whose keys are files of this machine, which a mount can hand to the kernel."""

    def path(self, key: str) -> str:
        """Return the absolute path of a key. The file may not exist; it must not be written."""
        ...


@runtime_checkable
class RemoteFiles(Protocol):
    """A store behind a network: each request costs a round trip, and a machine keeps what it has fetched from it."""

    @property
    def requests_max(self) -> int:
        """How many requests at one time make it faster; more than these only wait for each other."""
        ...


ReadRange = Callable[[int, int], Buffer]  # (offset, length) -> exactly these bytes of what is to be stored


@runtime_checkable
class Uploads(Protocol):
    """A store that takes a file whose key and size are known beforehand straight from where it lies, in parts side by side.

    For those who hash first: what goes through a Stage has to be kept somewhere until its key is known.
    """

    def upload(self, key: str, size: int, read: ReadRange) -> None:
        """Create key with bytes [0, size) of what `read` returns, durably, all at once.

        Args:
            key: its name.
            size: how many bytes it has.
            read: gives a range of them. It is called from several threads, and again for a range whose request is
                repeated; its answer is not changed by anybody while the request lasts. What it raises ends the upload.

        Raises:
            KeyExists: the key is there already. It is asked for before bytes are sent, as far as that saves any.
            StoreFull, StorePermission, StoreUnavailable: nothing became visible.
        """
        ...

    def holds(self, key: str, size: int, read: ReadRange) -> bool | None:
        """Tell by checksums which the store itself made of a key whether it has the bytes that `read` returns.

        Returns None if that cannot be told without fetching them. Sends nothing, fetches no content.

        Raises:
            KeyNotFound: no such key.
            StorePermission, StoreUnavailable: as the store says.
        """
        ...


@runtime_checkable
class ReadsInto(Protocol):
    """A store that reads into memory of its caller's, which may be used again; new memory costs more than what comes.

    Its answer to a range tells how long the whole file is: who meets a file for the first time asks once.
    """

    def get_into(self, key: str, offset: int, into: memoryview) -> tuple[int, int]:
        """Read bytes [offset, offset + len(into)) of a key, as far as it has them. Raises as `get`.

        Args:
            key: the stored file.
            offset: of the first byte.
            into: where they go. After a failure, and behind them, it holds anything.

        Returns:
            How many bytes there were, and the size of the key.
        """
        ...


class CachedFile(Protocol):
    """One stored file, as far as this machine has it: a sparse local file, filled in blocks as they are needed.

    What is here was fetched whole, and is not verified: callers hash what they read, and `forget` what is wrong. It stays
    here until it is evicted, which may happen at any time unless it is held: `generation` tells. Threads: safe.
    """

    @property
    def key(self) -> str:
        """The stored file."""
        ...

    @property
    def size(self) -> int:
        """How many bytes it has in the store."""
        ...

    @property
    def path(self) -> str:
        """The local file. It has `size` bytes, must not be written, and is taken away when all of it is evicted."""
        ...

    @property
    def descriptor(self) -> int:
        """The local file, open for preadv for as long as this object lives. What is not here reads as zeros."""
        ...

    @property
    def generation(self) -> int:
        """A number that changes whenever bytes that were here are taken away.

        Who reads `descriptor` reads it before `is_here` and after the bytes: if it has changed, they may be zeros, and the
        read begins anew. No system call.
        """
        ...

    def is_here(self, offset: int, length: int) -> bool:
        """Say whether these bytes are here, and count them as used now. No system call. What is behind the end is here."""
        ...

    def ensure(self, offset: int, length: int, *, ahead: int = 0) -> None:
        """Return once these bytes are here: at once, or when they were fetched, by this process or another one.

        Blocks that are absent are fetched in runs of at most FETCH_SIZE_MAX (vault.stores.node_cache), one after the other:
        who wants several at one time calls it from several threads.

        Args:
            offset: where they begin.
            length: how many they are.
            ahead: how many bytes behind them may come along in their last request, if there is room for them.

        Raises:
            CacheUnusable: there is no room for them here: ask the store, whose `get` works without a cache.
            KeyNotFound, StorePermission, StoreUnavailable: as the store says.
        """
        ...

    def forget(self, offset: int, length: int) -> bool:
        """Take these bytes away, because they are not what they should be. Returns whether any were here."""
        ...

    def is_intact(self, offset: int, length: int) -> bool:
        """Say whether what is here of these bytes is what was fetched: reads whole blocks. For what has no digest."""
        ...

    def is_complete(self) -> bool:
        """Say whether all of it is here. No system call for a file of a few MiB, few for a large one."""
        ...

    def hold(self) -> int:
        """Return a new descriptor of the local file, and evict nothing while it or a copy is open, in the kernel too.

        A copy is made by dup, fork, or by handing it to the kernel as a backing file. The caller closes it. What has been
        evicted before is not here: ask `is_here` or `is_complete` again.

        Raises:
            CacheUnusable: it is being evicted just now, or was taken away.
        """
        ...


@runtime_checkable
class CachedFiles(Protocol):
    """A store whose files come to this machine in parts, as they are needed (vault/stores/node_cache)."""

    def cached(self, key: str, offset: int = 0, length: int = 0) -> CachedFile:
        """Return a stored file as far as it is here. Cheap for a file that was used lately: ask again for each read.

        Args:
            key: a pack, a whole file or its chunk table, or a map.
            offset: what will be asked for first,
            length: and how much: of a file that is new here it may come with the answer that tells the size.

        Raises:
            CacheUnusable: this machine's cache cannot keep it: ask the store, whose `get` works without a cache.
            KeyNotFound, StorePermission, StoreUnavailable: as the store says.
        """
        ...


class Deleter(Protocol):
    """The right to remove. Held by gc alone."""

    def delete(self, key: str) -> None:
        """Remove a key, durably. A key that is not there is no error."""
        ...


def check_key(key: str) -> str:
    """Return key unchanged if it is well-formed, else raise UsageError."""
    if not is_key(key):
        raise UsageError(f"{key!r} is not a store key")
    return key


def is_key(text: str) -> bool:
    """Tell whether text is a well-formed key."""
    if len(text) > KEY_LENGTH_MAX or not _KEY.match(text):
        return False
    segments = text.split("/")
    return segments[0] != TEMPORARY and all(len(segment) <= SEGMENT_LENGTH_MAX for segment in segments)


def check_prefix(prefix: str) -> str:
    """Return prefix unchanged if `list` takes it (empty, or a key and `/`), else raise UsageError."""
    if prefix and not (prefix.endswith("/") and is_key(prefix[:-1])):
        raise UsageError(f"{prefix!r} is not a prefix of store keys: it is empty or ends in '/'")
    return prefix


def check_range(offset: int, length: int | None) -> None:
    """Raise UsageError unless both say a range of bytes."""
    if offset < 0 or (length is not None and length < 0):
        raise UsageError(f"a range starts at {offset} and has {length} bytes: neither may be negative")


def put_if_absent(store: Store, key: str, data: Buffer) -> bool:
    """Create key unless it exists; for keys that name their own content. Returns whether it was created."""
    try:
        store.put(key, data)
    except KeyExists:
        return False
    return True
