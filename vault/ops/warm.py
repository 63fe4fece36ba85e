"""Fetches what a snapshot needs into this machine's cache, before anybody reads it: `vault warm`.

Stored files are read front to back in large ranges, several at one time; what is here is not fetched again, so a warm-up
that was cut off goes on where it was. While one is under way, a small file in the cache directory says how far it is.

Threads: a pool fetches; progress is told by the caller's.
"""

import json
import os
import secrets
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from vault.clock import monotonic_s
from vault.errors import UsageError
from vault.ops.node_cache import Need, cache_of, pieces
from vault.progress import SILENT, Progress
from vault.repo.liveness import hold, is_held
from vault.repo.repository import Repository
from vault.stores.node_cache import CachedStore

THREADS_MAX: Final = 32
_UNDER_WAY: Final = 2  # pieces for each thread
_SAY_EVERY_S: Final = 1.0
_FOLDER: Final = "warming"
_SIZE_MAX: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class Warmed:
    """What was done."""

    files: int
    fetched_bytes: int
    here_bytes: int  # what was here before


@dataclass(frozen=True, slots=True)
class UnderWay:
    """A warm-up that a process of this machine is busy with."""

    ref: str
    process: int
    done_bytes: int
    total_bytes: int


def warm(repository: Repository, ref: str, need: Need, *, progress: Progress = SILENT) -> Warmed:
    """Fetch what is needed and not here.

    Args:
        repository: over a store behind a network.
        ref: what is warmed, for those who look how far it is.
        need: what to fetch (vault.ops.node_cache.find_need).
        progress: told what is here.

    Raises:
        UsageError: the store is not behind a network, or the cache may not take as much.
        CacheUnusable: there is no room for it: the rest is pinned, or the disk is full.
        StoreError: as the store says. What was fetched stays.
    """
    store = cache_of(repository)
    total = _size_of(store, need)
    if total > store.folder.limit_bytes:
        raise UsageError(
            f"{ref} takes {total:,} bytes, and the cache in {store.folder.root} may take {store.folder.limit_bytes:,}: "
            "give it more with --cache-size, or name a part with --only"
        )
    fetched = here = 0
    threads = min(store.requests_max, THREADS_MAX)
    with _said(repository, ref, total) as say, ThreadPoolExecutor(threads) as pool:
        under_way: set[Future[int]] = set()

        def tell() -> None:
            done = fetched + here
            say(done)
            progress.update(phase="fetching", files=need.files, size_bytes=done, size_bytes_total=max(total, done))

        try:
            tell()
            for key, offset, length, absent in pieces(store, need):
                if not absent:
                    here += length
                else:
                    under_way.add(pool.submit(_bring, store, key, offset, length))
                while len(under_way) >= _UNDER_WAY * threads:
                    done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                    fetched += sum(future.result() for future in done)
                tell()
            while under_way:
                done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                fetched += sum(future.result() for future in done)
                tell()
        finally:
            for future in under_way:
                future.cancel()
    return Warmed(need.files, fetched, here)


def under_way(repository: Repository) -> list[UnderWay]:
    """Return the warm-ups of this store that processes of this machine are busy with."""
    folder = os.path.join(repository.cache_dir, _FOLDER)
    found = []
    with suppress(FileNotFoundError):
        for name in sorted(os.listdir(folder)):
            path = os.path.join(folder, name)
            if not is_held(path):
                with suppress(OSError):
                    os.unlink(path)  # of a process that was killed
                continue
            with suppress(OSError, ValueError, KeyError, TypeError), open(path, encoding="utf-8") as file:
                said = json.loads(file.read(_SIZE_MAX))
                found.append(UnderWay(str(said["ref"]), int(said["process"]), int(said["done"]), int(said["total"])))
    return found


def _bring(store: CachedStore, key: str, offset: int, length: int) -> int:
    store.copy(key).ensure(offset, length)
    return length


def _size_of(store: CachedStore, need: Need) -> int:
    """Return how many bytes are needed: those of files of which all is, too."""
    return need.bytes_at_least + sum(store.size(key) for key, units in need.units.items() if not units)


@contextmanager
def _said(repository: Repository, ref: str, total: int) -> "Iterator[_Say]":
    """Keep a file that says how far the work is, for as long as this process is at it."""
    folder = os.path.join(repository.cache_dir, _FOLDER)
    path = os.path.join(folder, f"{os.getpid()}-{secrets.token_hex(4)}")
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        descriptor = hold(path)
    except OSError:
        yield _Say(-1, ref, total)  # it works as well if nobody can look on
        return
    try:
        yield _Say(descriptor, ref, total)
    finally:
        with suppress(OSError):
            os.unlink(path)
        os.close(descriptor)


class _Say:
    """Writes how far the work is, once a second."""

    def __init__(self, descriptor: int, ref: str, total: int) -> None:
        self._descriptor = descriptor
        self._ref = ref
        self._total = total
        self._next_s = 0.0

    def __call__(self, done: int) -> None:
        """Say it."""
        if self._descriptor < 0 or monotonic_s() < self._next_s:
            return
        self._next_s = monotonic_s() + _SAY_EVERY_S
        said = {"ref": self._ref, "process": os.getpid(), "done": done, "total": self._total}
        with suppress(OSError):
            os.pwrite(self._descriptor, json.dumps(said).ljust(512).encode(), 0)
