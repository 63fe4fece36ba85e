"""Reads the folder (or file) that is to be committed: a walk in tree order, and contents that did not change meanwhile.

Paths may be longer than the kernel takes in one call. Symlinks are kept, never followed. Mount points inside the source are
entered. What the walk saw and is gone or something else by the time it is read has changed. Threads: a walk belongs to one;
reading is free.
"""

import errno
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Protocol

from vault.errors import SourceChanged, SourceUnreadable, SpecialFile, UsageError
from vault.format.tree import DEPTH_MAX, NAME_LENGTH_MAX
from vault.ops.descent import Descent
from vault.ops.exclude import IGNORE_FILE, IGNORE_FILE_SIZE_MAX, RuleSet, is_excluded, parse_ignore_file, parse_rules
from vault.ops.names import list_names
from vault.repo.stat_cache import Status

_READ_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # never waits for a FIFO
_LOOKED_AT_ONCE: Final = 256  # names of a directory: what is known of them is held in memory
_CHANGED: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ESTALE})
_READERS: Final = min(8, (os.cpu_count() or 1) + 1)
_SPECIAL: Final = {stat.S_IFSOCK: "socket", stat.S_IFIFO: "FIFO", stat.S_IFBLK: "block device", stat.S_IFCHR: "device"}


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A regular file as the walk saw it."""

    name: bytes
    path: bytes  # absolute, or a URL
    status: Status

    @property
    def size(self) -> int:
        """Bytes when the walk saw it."""
        return self.status.st_size

    @property
    def executable(self) -> bool:
        """Whether its owner may execute it."""
        return bool(self.status.st_mode & stat.S_IXUSR)


@dataclass(frozen=True, slots=True)
class SourceSymlink:
    """A symlink, with what it points to."""

    name: bytes
    target: bytes


@dataclass(frozen=True, slots=True)
class BeginDirectory:
    """A directory begins."""

    name: bytes


@dataclass(frozen=True, slots=True)
class Upcoming:
    """The next regular files directly in the current directory. They will follow one by one, in this order."""

    files: tuple[SourceFile, ...]


class EndDirectory:
    """The directory that began last and has not ended has nothing more."""


Step = BeginDirectory | EndDirectory | Upcoming | SourceFile | SourceSymlink


@dataclass(slots=True)
class WalkReport:
    """What a walk left out."""

    excluded: int = 0
    special: list[bytes] = field(default_factory=list)


class LargeFile(Protocol):
    """A large file that is open for reading. Leaving it as a context manager closes it. Threads: `read_at` is free."""

    @property
    def path(self) -> str:
        """Its path, for messages."""
        ...

    @property
    def size(self) -> int:
        """Its size as the walk saw it."""
        ...

    @property
    def read_ns(self) -> int:
        """When reading began, in nanoseconds since 1970."""
        ...

    def read_at(self, offset: int, into: memoryview) -> int:
        """Fill into from offset on; return how many bytes there were. Raises SourceUnreadable, SourceChanged."""
        ...

    def check(self) -> None:
        """Raise SourceChanged unless the file still is what the walk saw."""
        ...

    def __enter__(self) -> "LargeFile":
        """Return self."""
        ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the file."""
        ...


class Contents(Protocol):
    """What reads files that a walk has yielded, here or in another process. Threads: safe."""

    @property
    def readers(self) -> int:
        """How many small files to read at one time."""
        ...

    def read_small(self, file: SourceFile) -> tuple[bytes, int]:
        """Return a file's content, and when reading it began (ns since 1970). Raises SourceChanged, SourceUnreadable."""
        ...

    def open_large(self, file: SourceFile) -> LargeFile:
        """Open a file that is too large to be read at once. Raises as `read_small`."""
        ...


class Source(Contents, Protocol):
    """What is committed: a walk in tree order, and the contents of the files that it yields."""

    @property
    def report(self) -> WalkReport:
        """What was left out; complete after the walk."""
        ...

    @property
    def totals(self) -> tuple[int, int]:
        """How many files and bytes there are, once the walk has begun; zeros if that is not known."""
        ...

    @property
    def is_single(self) -> bool:
        """Whether it is one file, not a folder. Of a URL this is known once the walk has begun."""
        ...

    def __iter__(self) -> Iterator[Step]:
        """Yield what there is, once."""
        ...


_Item = SourceFile | SourceSymlink | bytes  # bytes: name of a directory


@dataclass(slots=True)
class _Frame:
    path: bytes  # below the source, with a slash at its end; b"" for the source itself
    rules: tuple[RuleSet, ...]
    names: Iterator[bytes]
    items: Iterator["_Item"] = field(default_factory=lambda: iter(()))


class Walk:
    """A folder, or a file, as a Source."""

    def __init__(
        self,
        source: bytes,
        *,
        exclude: Sequence[bytes] = (),
        skip_special: bool = False,
        forbidden: Sequence[str] = (),
        as_it_is: bool = False,
    ) -> None:
        """Name a source.

        Args:
            source: a folder, or one file.
            exclude: patterns as in a .gitignore file; they beat `.vaultignore` files.
            skip_special: leave sockets, devices and FIFOs out instead of refusing.
            forbidden: folders that must not lie in the source: the store, the cache.
            as_it_is: ignore files are files like others: what they name is not left out.

        Raises:
            SourceUnreadable: there is no such folder or file.
        """
        self._source = os.path.abspath(source)
        self._strongest = parse_rules(exclude)
        self._skip_special = skip_special
        self._forbidden = forbidden
        self._as_it_is = as_it_is
        self.report = WalkReport()
        try:
            self._status = os.stat(self._source)
        except OSError as error:
            raise _unreadable(self._source, error) from error

    @property
    def place(self) -> bytes:
        """Its absolute path."""
        return self._source

    @property
    def readers(self) -> int:
        """A few more than there are processors: reading waits little."""
        return _READERS

    @property
    def is_single(self) -> bool:
        """Whether it is one file."""
        return not stat.S_ISDIR(self._status.st_mode)

    @property
    def totals(self) -> tuple[int, int]:
        """Not known: names are looked at as they are needed."""
        return 0, 0

    def read_small(self, file: SourceFile) -> tuple[bytes, int]:
        """Return a file's content. See Source."""
        return read_small(file)

    def open_large(self, file: SourceFile) -> "LargeSource":
        """Open a large file. See Source."""
        return LargeSource(file)

    def __iter__(self) -> Iterator[Step]:
        """Yield what there is; the outermost directory has an empty name.

        Raises:
            SourceUnreadable, SpecialFile, UsageError: naming the path.
        """
        if not stat.S_ISDIR(self._status.st_mode):
            name = os.path.basename(self._source)
            if not stat.S_ISREG(self._status.st_mode):
                raise SpecialFile(os.fsdecode(self._source), _kind(self._status), 1)
            file = SourceFile(name, os.path.realpath(self._source), self._status)
            yield from (BeginDirectory(b""), Upcoming((file,)), file, EndDirectory())
            return
        forbidden = {_inode(os.stat(path)): path for path in self._forbidden if os.path.exists(path)}
        try:
            descent = Descent(self._source, follow=True)
        except OSError as error:
            raise _unreadable(self._source, error) from error
        with descent:
            stack = [self._enter(descent, None, b"", forbidden)]
            yield BeginDirectory(b"")
            while stack:
                frame = stack[-1]
                item = next(frame.items, None)
                if item is None:
                    items = self._look_at_names(descent.current, frame)
                    frame.items = iter(items)
                    if items:
                        yield Upcoming(tuple(found for found in items if isinstance(found, SourceFile)))
                        continue
                    stack.pop()
                    if stack:
                        self._leave(descent, stack[-1])
                    yield EndDirectory()
                elif isinstance(item, bytes):
                    if len(stack) >= DEPTH_MAX:
                        raise UsageError(f"{os.fsdecode(self._source)}: more than {DEPTH_MAX} directories in each other")
                    stack.append(self._enter(descent, frame, item, forbidden))
                    yield BeginDirectory(item)
                else:
                    yield item

    def _enter(
        self, descent: Descent, parent: _Frame | None, name: bytes, forbidden: Mapping[tuple[int, int], str]
    ) -> _Frame:
        path = parent.path + name + b"/" if parent else b""
        absolute = self._absolute(path)
        try:
            if parent:
                descent.enter(name)
            if descent.identity in forbidden:
                lies = forbidden[descent.identity]
                raise UsageError(f"{lies} lies in the folder that is to be committed: move it, or --exclude it")
            own = () if self._as_it_is else _ignore_file(descent.current, path, absolute)
            rules = (*(parent.rules if parent else ()), *own)
            return _Frame(path, rules, iter(list_names(descent.current)))
        except OSError as error:
            raise _changed_or_unreadable(absolute, error) from error

    def _leave(self, descent: Descent, above: _Frame) -> None:
        try:
            descent.leave()
        except OSError as error:
            raise _changed_or_unreadable(self._absolute(above.path), error) from error

    def _absolute(self, path: bytes) -> bytes:
        return os.path.join(self._source, path[:-1]) if path else self._source

    def _look_at_names(self, directory: int, frame: _Frame) -> list[_Item]:
        """Return what the next names of a directory stand for, some hundreds of them; nothing if there are no more."""
        absolute = self._absolute(frame.path)
        prefix = absolute if absolute.endswith(b"/") else absolute + b"/"
        rules = [rule_set for rule_set in (*frame.rules, self._strongest) if rule_set.rules]
        items: list[_Item] = []
        for name in frame.names:
            try:
                status = os.stat(name, dir_fd=directory, follow_symlinks=False)
                mode = stat.S_IFMT(status.st_mode)
                if rules and is_excluded(frame.path + name, mode == stat.S_IFDIR, rules):
                    self.report.excluded += 1
                    continue
                target = os.readlink(name, dir_fd=directory) if mode == stat.S_IFLNK else b""
            except OSError as error:
                raise _changed_or_unreadable(prefix + name, error) from error
            if len(name) > NAME_LENGTH_MAX:
                raise SourceUnreadable(os.fsdecode(prefix + name), "its name is longer than 255 bytes")
            if mode == stat.S_IFREG:
                items.append(SourceFile(name, prefix + name, status))
            elif mode == stat.S_IFDIR:
                items.append(name)
            elif mode == stat.S_IFLNK:
                items.append(SourceSymlink(name, target))
            elif self._skip_special:
                self.report.special.append(frame.path + name)
            else:
                raise SpecialFile(os.fsdecode(prefix + name), _kind(status), 1)
            if len(items) == _LOOKED_AT_ONCE:
                break
        return items


def read_small(file: SourceFile) -> tuple[bytes, int]:
    """Return a file's content, and the time (ns since 1970) at which reading began.

    Raises:
        SourceChanged: it is not the file that the walk saw, or changed while it was read.
        SourceUnreadable: it cannot be opened or read.
    """
    read_ns = time.time_ns()
    try:
        descriptor = open_file(file.path)
        try:
            data = os.read(descriptor, file.size + 1)
            while data and len(data) < file.size:
                more = os.read(descriptor, file.size + 1 - len(data))
                if not more:
                    break
                data += more
            after = os.fstat(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _changed_or_unreadable(file.path, error) from error
    if len(data) != file.size or not same_file(file.status, after):
        raise SourceChanged(os.fsdecode(file.path))
    return data, read_ns


class LargeSource:
    """A large file that is open for reading. Use as a context manager: leaving it closes it."""

    def __init__(self, file: SourceFile) -> None:
        """Open a file. Raises SourceChanged if it is not what the walk saw, SourceUnreadable."""
        self._file = file
        self.read_ns = time.time_ns()
        try:
            self._descriptor = open_file(file.path)
        except OSError as error:
            raise _changed_or_unreadable(file.path, error) from error
        try:
            self.check()  # a FIFO could not even be read at an offset
        except BaseException:
            os.close(self._descriptor)
            raise

    @property
    def path(self) -> str:
        """Its path, for messages."""
        return os.fsdecode(self._file.path)

    @property
    def size(self) -> int:
        """Its size as the walk saw it."""
        return self._file.size

    def read_at(self, offset: int, into: memoryview) -> int:
        """Fill into from offset on; return how many bytes there were. Raises SourceUnreadable."""
        done = 0
        try:
            while done < len(into):
                got = os.preadv(self._descriptor, [into[done:]], offset + done)
                if not got:
                    break
                done += got
        except OSError as error:
            raise _unreadable(self._file.path, error) from error
        return done

    def check(self) -> None:
        """Raise SourceChanged unless the file still is what the walk saw."""
        try:
            now = os.fstat(self._descriptor)
        except OSError as error:
            raise _changed_or_unreadable(self._file.path, error) from error
        if not same_file(self._file.status, now):
            raise SourceChanged(self.path)

    def __enter__(self) -> "LargeSource":
        """Return self."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close the file."""
        os.close(self._descriptor)


def open_file(path: bytes) -> int:
    """Open a file for reading without following a symlink, however long its path. Raises OSError."""
    try:
        return os.open(path, _READ_FLAGS)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
    directory = os.open(b"/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        *parents, name = path.strip(b"/").split(b"/")
        for part in parents:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
            os.close(directory)
            directory = below
        return os.open(name, _READ_FLAGS, dir_fd=directory)
    finally:
        os.close(directory)


def same_file(before: Status, after: Status) -> bool:
    """Return whether two statuses are those of the same content: device, inode, size, times."""
    return (
        before.st_ino == after.st_ino
        and before.st_size == after.st_size
        and before.st_mtime_ns == after.st_mtime_ns
        and before.st_ctime_ns == after.st_ctime_ns
        and before.st_dev == after.st_dev
    )


def _ignore_file(directory: int, path: bytes, absolute: bytes) -> tuple[RuleSet, ...]:
    """Return the rules of the ignore file in a directory, if there is one. A link is refused, not passed over: whoever
    made it wants something left out."""
    place = os.path.join(absolute, IGNORE_FILE)
    try:
        descriptor = os.open(IGNORE_FILE, _READ_FLAGS, dir_fd=directory)
    except FileNotFoundError:
        return ()
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise SourceUnreadable(os.fsdecode(place), "it is a symbolic link: give it the patterns themselves") from error
        raise _unreadable(place, error) from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return ()
        data = b""
        while more := os.read(descriptor, IGNORE_FILE_SIZE_MAX + 1 - len(data)):
            data += more
    except OSError as error:
        raise _unreadable(place, error) from error
    finally:
        os.close(descriptor)
    if len(data) > IGNORE_FILE_SIZE_MAX:
        raise UsageError(f"{os.fsdecode(place)} is larger than {IGNORE_FILE_SIZE_MAX} bytes")
    return (parse_ignore_file(data, path),)


def _inode(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _kind(status: os.stat_result) -> str:
    return _SPECIAL.get(stat.S_IFMT(status.st_mode), "special file")


def _unreadable(path: bytes, error: OSError) -> SourceUnreadable:
    return SourceUnreadable(os.fsdecode(path), error.strerror or str(error))


def _changed_or_unreadable(path: bytes, error: OSError) -> SourceChanged | SourceUnreadable:
    """Return the error for something that the walk saw: what is gone by now, or something else, has changed."""
    return SourceChanged(os.fsdecode(path)) if error.errno in _CHANGED else _unreadable(path, error)
