"""Takes away what was not used for longest. Runs while its caller has the ledger alone.

It looks at every state file, which for terabytes takes a second or so, and then frees more than was asked for: so it is
rare. What it takes away are extents: up to EXTENT_BLOCKS blocks of one file that lie side by side. First the table says
that they are absent, and the generation goes up; then their room is given back to the disk: a reader that saw them here
compares the generation afterwards. Never touched: what is pinned, held (CachedFile.hold), or being fetched just now.
A file without a block is removed if no process has it open.

Threads: none.
"""

import os
import stat
from array import array
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, NamedTuple

from vault.stores.node_cache.layout import (
    FILES,
    HEADER_SIZE,
    NEW_PREFIX,
    STATE_SUFFIX,
    decode_header,
    on_disk,
)
from vault.stores.node_cache.locks import try_lock, try_own, unlock
from vault.stores.node_cache.pins import pinned_keys
from vault.stores.node_cache.state import Columns

EXTENT_BLOCKS: Final = 16  # 4 MiB of a pack
_DEPTH_MAX: Final = 8
_LEFTOVER: Final = 1 << 20  # room beyond its blocks that a file may take on the disk
_UNIT: Final = 512  # of st_blocks
_FLAGS: Final = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Evicted(NamedTuple):
    """What an eviction has come to, in bytes on the disk."""

    used: int
    freed: int


class Kept(NamedTuple):
    """A stored file in the cache, as a look finds it."""

    key: str
    data_path: str
    state_path: str
    on_disk: int  # bytes: data and state


class _Extent(NamedTuple):
    """Blocks [first, end) of a file. Sorted by last use; leftovers of killed requests come first."""

    last_use: int
    path: str
    first: int
    end: int


def count(root: str) -> int:
    """Return how many bytes on the disk everything in the folder takes."""
    return sum(status.st_blocks * _UNIT for _, status in _walk(root, 0))


def find_kept(root: str) -> Iterator[Kept]:
    """Yield the stored files in a cache, damaged ones too."""
    top = f"{root}/{FILES}/"
    sizes = {path: status.st_blocks * _UNIT for path, status in _walk(top.rstrip("/"), 0) if stat.S_ISREG(status.st_mode)}
    for path, size in sizes.items():
        if path.endswith(STATE_SUFFIX):
            data = path.removesuffix(STATE_SUFFIX)
            yield Kept(data.removeprefix(top), data, path, size + sizes.get(data, 0))


def make_room(root: str, target: int, *, at_least: int = 0) -> Evicted:
    """Evict until at most target bytes are used, and at_least bytes are freed, or nothing is left to evict.

    Raises:
        OSError: the folder cannot be read or written.
    """
    _sweep(root)
    begun = used = count(root)
    target = min(target, begun - at_least)
    if used <= target:
        return Evicted(used, 0)
    pinned = pinned_keys(root)
    extents: list[_Extent] = []
    for kept in find_kept(root):
        if kept.key not in pinned:
            extents += _extents(kept)
    for extent in sorted(extents):
        if used <= target:
            break
        used -= _evict(extent)
    return Evicted(used, begun - used)


def _extents(kept: Kept) -> list[_Extent]:
    """Return what can be taken from a file. A state file that makes no sense goes with its data."""
    try:
        with open(kept.state_path, "rb") as file:
            data = file.read()
        shape = decode_header(data, len(data))
    except FileNotFoundError:
        return []
    except ValueError:
        return [_Extent(-1, kept.data_path, 0, 0)]
    checks = array("Q", data[HEADER_SIZE : HEADER_SIZE + 8 * shape.blocks])
    uses = array("I", data[HEADER_SIZE + 8 * shape.blocks :])
    found = []
    present = 0
    for first in range(0, shape.blocks, EXTENT_BLOCKS):
        end = min(first + EXTENT_BLOCKS, shape.blocks)
        last_uses = [use for use, check in zip(uses[first:end], checks[first:end], strict=True) if check]
        present += len(last_uses)
        if last_uses:
            found.append(_Extent(max(last_uses), kept.data_path, first, end))
    if kept.on_disk > on_disk(shape.state_size) + present * on_disk(shape.block_size) + _LEFTOVER or not present:
        found += [_Extent(-1, kept.data_path, *run) for run in absent_runs(checks)] or [_Extent(-1, kept.data_path, 0, 0)]
    return found


def absent_runs(checks: "array[int]") -> list[tuple[int, int]]:
    """Return runs [first, end) of blocks that are absent."""
    runs = []
    first = None
    for block, check in enumerate(checks):
        if not check and first is None:
            first = block
        elif check and first is not None:
            runs.append((first, block))
            first = None
    if first is not None:
        runs.append((first, len(checks)))
    return runs


def _evict(extent: _Extent) -> int:
    """Take an extent away, if nobody holds the file or fetches a part of it. Returns how many bytes that has freed."""
    state_path = extent.path + STATE_SUFFIX
    with suppress(FileNotFoundError):
        state = os.open(state_path, _FLAGS)
        try:
            data = os.open(extent.path, _FLAGS | os.O_CREAT, 0o600)
            try:
                if not try_own(data):
                    return 0
                return _evict_from(state, data, extent)
            finally:
                os.close(data)
        finally:
            os.close(state)
    return 0


def _evict_from(state: int, data: int, extent: _Extent) -> int:
    before = _taken(state) + _taken(data)
    try:
        columns = Columns(state)
    except ValueError:
        return before if _remove(state, extent.path) else 0
    with columns:
        shape = columns.shape
        first, end = min(extent.first, shape.blocks), min(extent.end, shape.blocks)
        if first < end:
            if not try_lock(state, first, end):
                return 0
            try:
                columns.take_away(first, end)
                _give_back(state, data, columns, first, end)
            finally:
                unlock(state, 0, shape.blocks)
        if not columns.has_any() and _remove(state, extent.path):
            return before
    return max(before - _taken(state) - _taken(data), 0)


def _give_back(state: int, data: int, columns: Columns, first: int, end: int) -> None:
    """Give the room of blocks that are locked and absent back to the disk."""
    from vault.stores.linux_calls import punch_hole

    shape = columns.shape
    start = first * shape.block_size
    if punch_hole(data, start, on_disk(min(end * shape.block_size, shape.size) - start)):
        return
    if try_lock(state, 0, shape.blocks):  # a file system that cannot make holes: all of it or nothing
        columns.take_away(0, shape.blocks)
        os.ftruncate(data, 0)
        os.ftruncate(data, shape.size)


def _remove(state: int, path: str) -> bool:
    """Remove a file of the cache, unless a process has it open. Returns whether."""
    if not try_own(state):
        return False
    for name in (path + STATE_SUFFIX, path):
        with suppress(FileNotFoundError):
            os.unlink(name)
    return True


def _sweep(root: str) -> None:
    """Remove what processes that were killed have left: unfinished files, and data of which no state says what is here."""
    paths = [path for path, status in _walk(root, 0) if stat.S_ISREG(status.st_mode)]
    known = set(paths)
    top = f"{root}/{FILES}/"
    for path in paths:
        is_orphan = path.startswith(top) and not path.endswith(STATE_SUFFIX) and path + STATE_SUFFIX not in known
        if is_orphan or os.path.basename(path).startswith(NEW_PREFIX):
            with suppress(FileNotFoundError):
                os.unlink(path)


def _walk(folder: str, depth: int) -> Iterator[tuple[str, os.stat_result]]:
    """Yield paths and status of all that is in a folder; what goes away meanwhile is left out."""
    try:
        with os.scandir(folder) as found:
            entries = list(found)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        yield entry.path, status
        if entry.is_dir(follow_symlinks=False) and depth < _DEPTH_MAX:
            yield from _walk(entry.path, depth + 1)


def _taken(descriptor: int) -> int:
    return os.fstat(descriptor).st_blocks * _UNIT
