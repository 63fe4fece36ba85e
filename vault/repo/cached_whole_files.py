"""Which whole files of a remote store are all here and known to be good, so that the kernel may read them directly.

As WholeFiles does for a store in a folder; but what is here may be evicted and fetched anew. So a file is known to be good
in one generation of it (see CachedFile), as the same file of this disk, and until the machine is started anew: a power cut
may have taken what the cache believes to have. A file whose bytes do not hash to its name is forgotten, so that it is
fetched again; meanwhile, and for ever if that does not help, readers go chunk by chunk and say what is wrong.

Threads: safe.
"""

import logging
import os
import threading

from blake3 import blake3

from vault.errors import CacheUnusable, VaultError
from vault.format.layout import whole_key
from vault.ids import Digest
from vault.repo.liveness import boot_id
from vault.repo.objects import ObjectReader
from vault.repo.whole_files import BLOCK_SIZE, CHECK_AT_ONCE_SIZE_MAX, Notes, identity_of_status
from vault.stores.base import Buffer, CachedFile, CachedFiles

logger = logging.getLogger(__name__)


class CachedWholeFiles:
    """Remembers verified whole files of one store in this machine's cache."""

    def __init__(self, files: CachedFiles, cache_dir: str) -> None:
        self._files = files
        boot = boot_id()
        self._notes = Notes(os.path.join(cache_dir, "verified-cached", boot), keep=bool(boot))
        self._known: dict[Digest, tuple[int, ...]] = {}
        self._distrusted: set[Digest] = set()
        self._checking = threading.Lock()

    def open_verified(self, file: Digest) -> int | None:
        """Return a new descriptor of a file that is all here and good, or None. It is not evicted while that is open.

        A file of up to CHECK_AT_ONCE_SIZE_MAX that is all here is hashed now if need be; a larger one by a thread.
        """
        try:
            cached = self._files.cached(whole_key(file), 0, 1)  # who opens it reads its beginning
            if not cached.is_complete():
                return None
            descriptor = cached.hold()
        except (CacheUnusable, OSError):
            return None
        try:
            if self._is_good(file, cached):
                descriptor, given = -1, descriptor
                return given
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        return None

    def read(self, objects: ObjectReader, file: Digest, offset: int, length: int) -> Buffer | None:
        """Return a range of a file that is all here and good, or None. The memory is reused by the reader's next call."""
        key = whole_key(file)
        try:
            cached = self._files.cached(key, offset, length)
            generation = cached.generation
            if not cached.is_complete() or not self._is_good(file, cached):
                return None
        except CacheUnusable:
            return None
        data = objects.read_raw(key, offset, length)
        # What was evicted meanwhile may have been fetched again, and nobody has hashed that.
        return data if cached.generation == generation else None

    def remember(self, file: Digest) -> None:
        """Do nothing: what this machine has just stored is not here."""

    def check(self, file: Digest) -> None:
        """Hash a file that is all here, unless it is known to be good, and remember it; forget it if it is damaged."""
        try:
            cached = self._files.cached(whole_key(file))
            if cached.is_complete() and not self._knows(file, _identity(cached)):
                self._check(file, cached)
        except (CacheUnusable, OSError) as error:
            logger.debug("%s is not checked: %s", file.hex()[:12], error)

    def _is_good(self, file: Digest, cached: CachedFile) -> bool:
        if self._knows(file, _identity(cached)):
            return True
        if file in self._distrusted:
            return False
        if cached.size <= CHECK_AT_ONCE_SIZE_MAX:
            return self._check(file, cached)
        threading.Thread(target=self._check_quietly, args=(file, cached), daemon=True).start()
        return False

    def _knows(self, file: Digest, identity: tuple[int, ...]) -> bool:
        if self._known.get(file) == identity:
            return True
        if self._notes.read(file) == identity:
            self._known[file] = identity
            return True
        return False

    def _check(self, file: Digest, cached: CachedFile) -> bool:
        """Hash a file that is all here. Returns whether it is good; what is not is forgotten."""
        try:
            held = cached.hold()
        except CacheUnusable:
            return False
        try:
            before = _identity(cached)
            if not cached.is_complete():
                return False
            hasher = blake3(max_threads=blake3.AUTO)
            buffer = memoryview(bytearray(BLOCK_SIZE))
            while got := os.readv(held, [buffer]):
                hasher.update(buffer[:got])
            if _identity(cached) != before:
                return False  # somebody forgets it, or writes to it
        finally:
            os.close(held)
        if hasher.digest() != file:
            logger.warning("%s is damaged in this machine's cache, or in the store: it is fetched again", cached.key)
            self._distrusted.add(file)
            cached.forget(0, cached.size)
            return False
        self._known[file] = before
        self._notes.write(file, before)
        return True

    def _check_quietly(self, file: Digest, cached: CachedFile) -> None:
        """Check a file unless this process, or another one, does it already."""
        if not self._checking.acquire(blocking=False):
            return
        try:
            with self._notes.alone(file) as is_alone:
                if is_alone:
                    self._check(file, cached)
        except (OSError, VaultError) as error:
            logger.error("%s", error)
        finally:
            self._checking.release()


def _identity(cached: CachedFile) -> tuple[int, ...]:
    """Return what changes when bytes are taken away, or written by whomever."""
    return (cached.generation, *identity_of_status(os.fstat(cached.descriptor)))
