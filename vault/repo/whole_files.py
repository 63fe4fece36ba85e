"""Which whole files of a local store are known to be good, so that the kernel may read them directly.

A whole file is hashed when it enters the machine: by the commit that wrote it, or once by the first reader. What is
remembered is the file's identity (device, inode, size, mtime, ctime): whoever writes to it changes that, and it is hashed
again. Rot that leaves the file's times alone is found by `vault verify --data`, not here.

The memory is small text files in the cache directory, one per file, safe to delete. Threads: safe.
"""

import fcntl
import logging
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from blake3 import blake3

from vault.errors import DigestMismatch, KeyNotFound, VaultError
from vault.format.layout import whole_key
from vault.ids import Digest
from vault.repo.objects import ObjectReader
from vault.stores.base import Buffer, LocalFiles
from vault.stores.durable import read_error

logger = logging.getLogger(__name__)

_NOTE_SIZE_MAX: Final = 256
CHECK_AT_ONCE_SIZE_MAX: Final = 256 << 20  # about 60 ms: a larger file is checked in the background
BLOCK_SIZE: Final = 4 << 20
_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class WholeFiles:
    """Remembers verified whole files of one store on this machine."""

    def __init__(self, files: LocalFiles, cache_dir: str) -> None:
        self._files = files
        self._notes = Notes(os.path.join(cache_dir, "verified"))
        self._known: dict[Digest, tuple[int, ...]] = {}
        self._damaged: dict[Digest, tuple[tuple[int, ...], DigestMismatch]] = {}

    def path(self, file: Digest) -> str:
        """Return where a whole file lies, checked or not."""
        return self._files.path(whole_key(file))

    def verified_path(self, file: Digest) -> str | None:
        """Return the path of a file whose bytes are known to be good, or None while that is not known.

        A file of up to CHECK_AT_ONCE_SIZE_MAX is hashed now if need be; a larger one by a thread, and later calls see it.

        Raises:
            DigestMismatch: the file is damaged, as its bytes have just shown, or did when they were hashed last.
            StoreError: it is not there, or cannot be read.
        """
        path = self.path(file)
        identity = self._identity_of(file, path)
        if self._known.get(file) == identity or self._notes.read(file) == identity:
            self._known[file] = identity
            return path
        damage = self._damaged.get(file)
        if damage is not None and damage[0] == identity:
            raise DigestMismatch(*damage[1].args)
        if identity[2] <= CHECK_AT_ONCE_SIZE_MAX:
            self.check(file)
            return path
        threading.Thread(target=self._check_quietly, args=(file,), daemon=True).start()
        return None

    def open_verified(self, file: Digest) -> int | None:
        """Return a new descriptor of a file that `verified_path` gives, or None. Raises as it does."""
        path = self.verified_path(file)
        if path is None:
            return None
        try:
            return os.open(path, _FLAGS)
        except OSError as error:
            raise read_error(error, whole_key(file), path) from error

    def read(self, objects: ObjectReader, file: Digest, offset: int, length: int) -> Buffer | None:
        """Return a range of a file that is known to be good, or None. The memory is reused by the reader's next call."""
        if self.verified_path(file) is None:
            return None
        return objects.read_raw(whole_key(file), offset, length)

    def remember(self, file: Digest) -> None:
        """Note that a file, whose bytes the caller has just written or hashed, is good as it is now."""
        self._note_good(file, self._identity_of(file, self.path(file)))

    def check(self, file: Digest) -> None:
        """Hash a file and remember the outcome.

        Raises:
            DigestMismatch: it is damaged.
            StoreError: it is not there, or cannot be read.
        """
        hasher = blake3(max_threads=blake3.AUTO)
        buffer = memoryview(bytearray(BLOCK_SIZE))
        key = whole_key(file)
        try:
            descriptor = os.open(self.path(file), _FLAGS)
            try:
                identity = identity_of_status(os.fstat(descriptor))
                while got := os.readv(descriptor, [buffer]):
                    hasher.update(buffer[:got])
                unchanged = identity_of_status(os.fstat(descriptor)) == identity
            finally:
                os.close(descriptor)
        except OSError as error:
            raise read_error(error, key, key) from error
        actual = hasher.digest()
        if actual != file:
            damage = DigestMismatch(key, file.hex(), actual.hex())
            self._damaged[file] = (identity, damage)
            raise damage
        if unchanged:  # else somebody writes to it, and nobody knows what was hashed
            self._note_good(file, identity)

    def _note_good(self, file: Digest, identity: tuple[int, ...]) -> None:
        self._known[file] = identity
        self._notes.write(file, identity)

    def _identity_of(self, file: Digest, path: str) -> tuple[int, ...]:
        """Return what tells whether a file was written to. Raises StoreError; links are not followed."""
        try:
            status = os.lstat(path)
        except OSError as error:
            raise read_error(error, whole_key(file), path) from error
        if not stat.S_ISREG(status.st_mode):
            raise KeyNotFound(whole_key(file))
        return identity_of_status(status)

    def _check_quietly(self, file: Digest) -> None:
        """Check a file unless another process of this machine does it already."""
        try:
            with self._notes.alone(file) as is_alone:
                if is_alone:
                    self.check(file)
        except (OSError, VaultError) as error:
            logger.error("%s", error)


class Notes:
    """The memory: an identity for each file that was found to be good. Best effort: what is not noted is hashed again."""

    def __init__(self, folder: str, *, keep: bool = True) -> None:
        """Name a folder, which is made when it is needed; keep: whether anything may be noted at all."""
        self._dir = folder
        self._keep = keep

    def read(self, file: Digest) -> tuple[int, ...]:
        """Return the identity in which a file was good, or ()."""
        if not self._keep:
            return ()
        try:
            with open(self._path(file), encoding="ascii") as note:
                return tuple(map(int, note.read(_NOTE_SIZE_MAX).split()))
        except (OSError, ValueError):
            return ()

    def write(self, file: Digest, identity: tuple[int, ...]) -> None:
        """Note that a file is good."""
        if not self._keep:
            return
        try:
            os.makedirs(self._dir, exist_ok=True)
            temporary = os.path.join(self._dir, f".{file.hex()}.{os.getpid()}.{threading.get_ident()}")
            try:
                with open(temporary, "w", encoding="ascii") as note:
                    note.write(" ".join(map(str, identity)))
                os.replace(temporary, self._path(file))
            except OSError:
                os.unlink(temporary)
                raise
        except OSError as error:
            logger.debug("cannot remember that %s is good: %s", file.hex()[:12], error)

    @contextmanager
    def alone(self, file: Digest) -> Iterator[bool]:
        """Say whether the caller is the only one on this machine who is checking a file. Raises OSError."""
        os.makedirs(self._dir, exist_ok=True)
        with open(self._path(file) + ".lock", "w", encoding="ascii") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.debug("%s is being checked by another process", file.hex()[:12])
                yield False
                return
            yield True
            os.unlink(lock.name)

    def _path(self, file: Digest) -> str:
        return os.path.join(self._dir, file.hex())


def identity_of_status(status: os.stat_result) -> tuple[int, ...]:
    """Return what tells whether a file was written to."""
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
