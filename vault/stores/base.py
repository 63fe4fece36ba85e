"""What a store is: immutable bytes by key, created once. No store knows what the bytes mean.

Keys are `/`-joined segments of printable ASCII that do not start with a dot: such names belong to file systems (`.nfs…`,
`.snapshot`). `tmp` belongs to the store itself. `check_key` refuses the rest. All calls are synchronous and may be made
from several threads at once. A key, once visible, has all of its bytes, for ever and durably: a `put` or `Stage.publish`
that has returned survives power loss. Authority is by type: readers get a ByteReader, only gc a Deleter.
"""

import re
from collections.abc import Iterator
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
