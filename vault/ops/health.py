"""How a store and this machine's cache of it fare, in plain words: findings with what to do next. Changes nothing.

Whoever calls these gives each a time limit: a folder on a file server that is away does not answer. Mounts and the rights
to make them are looked at by vault_fuse.checks. Threads: the caller's.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol, runtime_checkable

from vault.clock import now_ns, parse_time
from vault.errors import CacheUnusable, FormatError, StorePermission, StoreRefused, VaultError
from vault.format.chunk_table import decode_chunk_table
from vault.format.config import FORMAT_VERSION
from vault.format.layout import CONFIG_KEY, PACKS
from vault.format.pack import decode_index
from vault.ids import RunId
from vault.repo.cache_state import inspect_index, inspect_stat_cache
from vault.repo.outbox import Outbox
from vault.repo.promises import check_promises
from vault.repo.repository import Repository
from vault.repo.spool import UNREADABLE, Spool, list_spools
from vault.stores.base import LocalFiles, Store
from vault.stores.local import LocalStore

_DAY_S: Final = 86400.0
_STORE_FREE_LEAST: Final = 1 << 30
_CACHE_FREE_LEAST: Final = 256 << 20
_FREE_SHARE_LOW: Final = 0.05
_CLOCK_SLACK_S: Final = 300
_INDEXES_TRIED_MAX: Final = 100
_CACHE_FILES_MAX: Final = 200_000
_OTHER_CACHE: Final = "set VAULTFS_CACHE_DIR to a folder of yours"
_REMOTE_TYPES: Final = ("nfs", "cifs", "smb", "9p", "lustre", "gpfs", "beegfs", "ceph", "fuse.", "afs")


class Status(StrEnum):
    """How something is."""

    OK = "ok"
    NOTE = "note"  # works, but somebody may want to know
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at, and what to do about it."""

    status: Status
    text: str
    advice: str = ""


# The store.


@runtime_checkable
class _Service(Protocol):
    """A store that is a service, not a folder: it has a clock, and keeps what uploads that were cut off have sent."""

    def clock_ahead_s(self) -> float | None: ...

    def count_unfinished(self, max_age_s: float) -> int: ...


def check_store(store: Store, cache_root: str) -> Iterator[Finding]:
    """Say whether there is a store that this program reads."""
    try:
        config = Repository.open(store, cache_root, node_cache=None).config
    except VaultError as error:
        yield Finding(Status.PROBLEM, str(error))
        return
    made = config.created.partition("T")[0]
    text = f"{store.url} answers: format {config.format} of {FORMAT_VERSION}, made {made}, ID {config.store[:12]}"
    yield Finding(Status.OK, text)


def check_store_rights(store: Store) -> Iterator[Finding]:
    """Say whether this user may write to the store. Only for folders, and for services that look after themselves."""
    if isinstance(store, _Service):
        yield _rights_at_service(store)
    if not isinstance(store, LocalStore):
        return
    for name in ("", "tmp", "packs", "datasets", "runs"):
        folder = os.path.join(store.url, name) if name else store.url
        if os.path.isdir(folder) and not os.access(folder, os.W_OK | os.X_OK):
            advice = "to commit, and to have what is read through mounts recorded, ask its owner for write access"
            yield Finding(Status.NOTE, f"this user may not write to {folder}", advice)
            return
    yield Finding(Status.OK, "this user may write to it")


def check_store_space(store: Store) -> Iterator[Finding]:
    """Say whether commits have room. Only for folders."""
    if isinstance(store, LocalFiles):
        folder = os.path.dirname(store.path(CONFIG_KEY))
        yield from _space(folder, _STORE_FREE_LEAST, "free some, or move the store to a larger disk")


def check_store_leftovers(store: Store) -> Iterator[Finding]:
    """Say whether killed writers left files behind. Only for folders and services."""
    if isinstance(store, _Service):
        yield _leftovers_at_service(store)
    if not isinstance(store, LocalStore):
        return
    stale = store.find_stale(_DAY_S, now_ns() / 1e9)
    if not stale.files:
        yield Finding(Status.OK, "no unfinished files older than a day")
        return
    text = f"{stale.files:,} unfinished files of commits that were killed take {_size(stale.size_bytes)} in {store.url}/tmp"
    advice = f"nothing refers to them: find {store.url}/tmp -type f -mtime +1 -delete"
    yield Finding(Status.NOTE, text, advice)


def check_clock(store: Store, cache_root: str) -> Iterator[Finding]:
    """Say whether this machine's clock is behind what others have written to the store."""
    newest_ns = parse_time(Repository.open(store, cache_root, node_cache=None).config.created)
    if isinstance(store, LocalFiles):
        folder = os.path.dirname(store.path(CONFIG_KEY))
        newest_ns = max(
            [newest_ns, *(os.stat(path).st_mtime_ns for path in (folder, f"{folder}/tmp") if os.path.isdir(path))]
        )
    behind_s = (newest_ns - now_ns()) / 1e9
    ahead_s = store.clock_ahead_s() if isinstance(store, _Service) else None
    if ahead_s is not None and abs(ahead_s) > _CLOCK_SLACK_S:
        text = f"this machine's clock differs from the service's by {abs(ahead_s) / 60:,.0f} minutes"
        yield Finding(Status.PROBLEM, text, "set the clock (timedatectl): from 15 minutes on S3 refuses to answer")
    elif behind_s > _CLOCK_SLACK_S:
        text = f"this machine's clock is at least {behind_s / 60:,.0f} minutes behind what was written to the store"
        yield Finding(
            Status.PROBLEM, text, "set the clock (timedatectl): versions and runs would be on record at wrong times"
        )
    else:
        yield Finding(Status.OK, "this machine's clock agrees with the store's times")


def _rights_at_service(store: Store) -> Finding:
    """Create a file that is there: with the right to write, and a service that is fit to be a store, that is refused."""
    try:
        check_promises(store, CONFIG_KEY, store.get(CONFIG_KEY))
    except StorePermission as error:
        text = f"this user may not write to {store.url}"
        return Finding(Status.NOTE, text, f"to commit, ask its owner for {error.needed}")
    except StoreRefused as error:
        return Finding(Status.PROBLEM, str(error), "copy what is in it to another service: versions may be lost here")
    return Finding(Status.OK, "this user may write to it, and nothing in it can be replaced")


def _leftovers_at_service(store: "_Service") -> Finding:
    try:
        count = store.count_unfinished(_DAY_S)
    except StorePermission as error:
        return Finding(Status.NOTE, "uploads that were cut off cannot be listed", f"to see them: {error.needed}")
    if not count:
        return Finding(Status.OK, "no unfinished uploads older than a day")
    text = f"{count:,} uploads that were cut off more than a day ago take room in the bucket"
    return Finding(Status.NOTE, text, "commit the same again to finish them; a lifecycle rule of the bucket removes them")


# The cache.


def check_cache(cache_root: str) -> Iterator[Finding]:
    """Say whether the cache directory can be written, how large it is, and whether its file system suits LMDB."""
    there = cache_root
    while not os.path.exists(there):
        there = os.path.dirname(there)
    if not os.path.isdir(there) or not os.access(there, os.W_OK | os.X_OK):
        yield Finding(Status.PROBLEM, f"this user may not write to {there}", _OTHER_CACHE)
        return
    files, size_bytes = _usage(cache_root)
    if there != cache_root:
        yield Finding(Status.OK, f"{cache_root} will be made when it is needed")
    else:
        yield Finding(Status.OK, f"{cache_root} can be written; it holds {files:,} files, {_size(size_bytes)}")
    fs_type = _file_system(there)
    if fs_type.startswith(_REMOTE_TYPES):
        advice = "LMDB wants a disk of this machine: set VAULTFS_CACHE_DIR to a folder on one"
        yield Finding(Status.PROBLEM, f"{cache_root} lies on a network file system ({fs_type})", advice)
    yield from _space(there, _CACHE_FREE_LEAST, "free some, or set VAULTFS_CACHE_DIR to a larger disk")


def check_index(store: Store, cache_dir: str) -> Iterator[Finding]:
    """Say whether the object index of this machine fits the store, and whether a refresh would work."""
    path = os.path.join(cache_dir, "index.lmdb")
    try:
        state = inspect_index(path, store)
    except FileNotFoundError:
        yield Finding(Status.OK, "there is no object index yet: the next command builds it from the store")
        return
    except CacheUnusable as error:
        yield Finding(Status.PROBLEM, f"{error.where}: {error.reason}", _OTHER_CACHE)
        return
    except ValueError as error:
        yield Finding(Status.NOTE, f"the object index will be built anew: {error}", "nothing: the next command does it")
        return
    text = f"the object index knows {state.objects:,} objects"
    if state.gone:
        text += f", and {state.gone:,} packs or whole files that the store does not have: it will be made anew"
        yield Finding(Status.NOTE, text, "if nobody removed them on purpose, see what is missing with 'vault verify'")
    else:
        new = f"; {len(state.unseen):,} indexes of the store are new to it" if state.unseen else " and is up to date"
        yield Finding(Status.OK, text + new)
    yield from _damaged_indexes(store, state.unseen[:_INDEXES_TRIED_MAX])


def check_stat_cache(cache_root: str) -> Iterator[Finding]:
    """Say what the cache of file times knows."""
    try:
        files = inspect_stat_cache(os.path.join(cache_root, "stat_cache.lmdb"))
    except FileNotFoundError:
        yield Finding(Status.OK, "no file times are remembered yet: the first commit does it")
    except CacheUnusable as error:
        yield Finding(Status.PROBLEM, f"{error.where}: {error.reason}", _OTHER_CACHE)
    except ValueError as error:
        advice = "nothing: the next commit reads every file once more"
        yield Finding(Status.NOTE, f"remembered file times will be dropped: {error}", advice)
    else:
        yield Finding(Status.OK, f"times of {files:,} files are remembered: a commit does not read them again")


# Records on their way.


def check_spools(cache_dir: str, store_id: str) -> Iterator[Finding]:
    """Say whether records of reads wait on this machine, and whether any of them is damaged."""
    spools = [spool for spool in list_spools(os.path.join(cache_dir, "spool")) if spool.writer.store == store_id]
    if not spools:
        yield Finding(Status.OK, "no records of reads wait on this machine")
    for spool in spools:
        yield from _spool(spool)


def _spool(spool: Spool) -> Iterator[Finding]:
    names = os.listdir(spool.tables)
    waiting = sum(len(Outbox(spool, run).waiting()) for run in _runs(spool))
    damaged = sum(name.endswith(UNREADABLE) for name in names)
    whose = f"the mount on {spool.writer.mountpoint}"
    if spool.is_watched() or spool.is_out_of_sight():
        if waiting:
            text = f"{waiting:,} records of {whose} wait for the store, in {spool.folder}"
            yield Finding(Status.NOTE, text, "the mount's log says why; it tries again by itself")
        else:
            yield Finding(Status.OK, f"{whose} records; nothing waits")
    elif waiting or len(names) > damaged:
        text = f"{whose} has ended and left records of reads in {spool.folder}"
        yield Finding(Status.NOTE, text, "'vault runs' takes them to the store")
    if damaged:
        text = f"{damaged:,} tables of reads of {whose} are damaged and set aside in {spool.tables}"
        yield Finding(Status.PROBLEM, text, "what they counted is lost; keep them for a report, or remove them")


def _runs(spool: Spool) -> Iterator[RunId]:
    for name in os.listdir(spool.journals):
        yield RunId(name)


# Parts.


def _space(folder: str, least: int, advice: str) -> Iterator[Finding]:
    found = os.statvfs(folder)
    free, total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    text = f"{_size(free)} of {_size(total)} are free there"
    if free < least:
        yield Finding(Status.PROBLEM, text, advice)
    elif total and free < _FREE_SHARE_LOW * total:
        yield Finding(Status.NOTE, text, advice)
    elif found.f_files and found.f_favail < _FREE_SHARE_LOW * found.f_files:
        yield Finding(Status.NOTE, f"{found.f_favail:,} of {found.f_files:,} files can still be made there", advice)
    else:
        yield Finding(Status.OK, text)


def _damaged_indexes(store: Store, keys: tuple[str, ...]) -> Iterator[Finding]:
    for key in keys:
        try:
            data = store.get(key)
            if key.startswith(PACKS):
                decode_index(data)
            else:
                decode_chunk_table(data)
        except (FormatError, VaultError) as error:
            text = f"{key} cannot be read, so the objects in it are missing: {error}"
            yield Finding(Status.PROBLEM, text, "'vault verify' says which versions and paths that reaches")


def _usage(root: str) -> tuple[int, int]:
    files = size_bytes = 0
    for folder, _, names in os.walk(root):
        for name in names:
            try:
                status = os.lstat(os.path.join(folder, name))
            except OSError:
                continue  # it comes and goes
            files += 1
            size_bytes += status.st_blocks * 512 if stat.S_ISREG(status.st_mode) else 0  # LMDB's files have holes
        if files > _CACHE_FILES_MAX:
            break
    return files, size_bytes


def _file_system(path: str) -> str:
    """Return the type of the file system that a folder lies on, or "" where the system does not tell."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
            for line in table:
                fields = line.split()
                if fields[2] == wanted:
                    return fields[fields.index("-") + 1]
    except OSError:
        pass
    return ""


def _size(size_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 999.5:
            return f"{size_bytes:.0f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:,.1f} TB"
