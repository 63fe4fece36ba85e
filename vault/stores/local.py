"""A store in a folder, of a local disk or of a network file system: one file per key, and `tmp/` for unfinished ones.

No lock files and no database: link(2) decides races, on NFS too (docs/format/stores.md, section 2). Access is a matter of
the folder: files are readable by whoever may enter, new folders get the mode of the root, so that a store for a group is
made by `chmod 2770` on it. Symbolic links inside the root are not followed: whoever may write to a store could else make a
mount or a server, run by somebody else, read any file.

Threads: safe, and safe after a fork; a Stage belongs to one thread.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from vault.errors import KeyExists, KeyNotFound, UsageError
from vault.stores.base import TEMPORARY, Buffer, check_key, check_prefix, check_range, is_key
from vault.stores.durable import (
    DurableFile,
    make_directory,
    make_root,
    read_error,
    sync_directory,
    write_error,
)

_KNOWN_DIRECTORIES_MAX: Final = 1 << 16
_READ_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # never waits for the writer of a FIFO

Step = Callable[[str, str], None]  # (what is durable now: "written", "linked" or "named"; key)


@dataclass(frozen=True, slots=True)
class Swept:
    """What `sweep_stale` removed, or `find_stale` found."""

    files: int
    size_bytes: int


class LocalStore:
    """Bytes by key in a folder."""

    def __init__(self, root: str, *, on_step: Step | None = None) -> None:
        """Name a store; nothing is created before the first write.

        Args:
            root: its folder. Links on the way to it are followed.
            on_step: called after each durable step of a write, so that a test can stop there.
        """
        self._root = os.path.abspath(root)
        self._on_step = on_step
        self._linkless: set[str] = set()  # directories known to be no symbolic links
        self._durable: set[str] = set()  # directories whose own names are durable

    def __repr__(self) -> str:
        return f"LocalStore({self._root!r})"

    @property
    def url(self) -> str:
        """The folder."""
        return self._root

    def path(self, key: str) -> str:
        """Return the absolute path of a key. The file may not exist; it must not be written.

        Raises:
            KeyNotFound: a symbolic link is on the way to it.
        """
        try:
            return self._locate(key)
        except OSError as error:
            raise read_error(error, key, self._root) from error

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Return a range of a key. See ByteReader."""
        check_range(offset, length)
        try:
            fd = os.open(self._locate(key), _READ_FLAGS)
            try:
                size = _regular_size(os.fstat(fd), key)
                self._durable.add("")  # there is a store: if it goes away, it is not begun anew in the same place
                return _read(fd, offset, size if length is None else min(size, offset + length))
            finally:
                os.close(fd)
        except OSError as error:
            raise read_error(error, key, f"{self._root}/{key}") from error

    def size(self, key: str) -> int:
        """Return the number of bytes of a key. See ByteReader."""
        try:
            return _regular_size(os.lstat(self._locate(key)), key)
        except OSError as error:
            raise read_error(error, key, f"{self._root}/{key}") from error

    def list(self, prefix: str) -> Iterator[str]:
        """Yield the keys below a prefix in byte order. Files that can be no key, and links, are passed over."""
        return self._walk(check_prefix(prefix))

    def put(self, key: str, data: Buffer) -> None:
        """Create a key, durably. See Store."""
        try:
            self._refuse_existing(key, self._locate(key))
        except OSError as error:
            raise write_error(error, key, f"{self._root}/{key}") from error
        with self.stage() as stage:
            stage.write(data)
            stage.publish(key)

    def stage(self) -> "LocalStage":
        """Start a temporary file in `tmp/`."""
        try:
            self._make_directories(TEMPORARY)
            return LocalStage(self, DurableFile(f"{self._root}/{TEMPORARY}"))
        except OSError as error:
            raise write_error(error, TEMPORARY, self._root) from error

    def delete(self, key: str) -> None:
        """Remove a key, durably. See Deleter."""
        try:
            path = self._locate(key)
            os.unlink(path)
            sync_directory(os.path.dirname(path))
        except FileNotFoundError:
            return
        except OSError as error:
            raise write_error(error, key, f"{self._root}/{key}") from error

    def sweep_stale(self, max_age_s: float, now_s: float) -> Swept:
        """Remove temporary files that nobody has written to for max_age_s: their writers crashed.

        A writer that is alive but slept longer loses its file and fails when it publishes; nothing else happens. A day is
        a good age. Safe at any time, by any number of processes.
        """
        return self._stale(max_age_s, now_s, os.unlink)

    def find_stale(self, max_age_s: float, now_s: float) -> Swept:
        """Return what `sweep_stale` would remove."""
        return self._stale(max_age_s, now_s, lambda path: None)

    def _stale(self, max_age_s: float, now_s: float, act: Callable[[str], None]) -> Swept:
        files = size_bytes = 0
        try:
            with os.scandir(f"{self._root}/{TEMPORARY}") as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):  # another sweep is at work, or its writer is
                        status = entry.stat(follow_symlinks=False)
                        if not stat.S_ISREG(status.st_mode) or now_s - status.st_mtime < max_age_s:
                            continue
                        act(entry.path)
                        files += 1
                        size_bytes += status.st_size if status.st_nlink == 1 else 0
        except FileNotFoundError:
            pass  # nothing was ever written
        except OSError as error:
            raise write_error(error, TEMPORARY, self._root) from error
        return Swept(files, size_bytes)

    def publish(self, file: DurableFile, key: str) -> None:
        """Give a temporary file its key. For LocalStage: the order of these lines is what survives a power cut."""
        try:
            target = self._locate(key)
            directory = os.path.dirname(key)
            file.sync()  # before the link: else a crash could leave a key with half its bytes
            self._step("written", key)
            self._make_directories(directory)
            try:
                file.link(target)
            except FileExistsError:
                self._refuse_existing(key, target)
                raise
            self._step("linked", key)
            sync_directory(os.path.dirname(target))  # before we return: else the caller's next step could outlive this one
            self._step("named", key)
        except OSError as error:
            raise write_error(error, key, f"{self._root}/{key}") from error

    def _locate(self, key: str) -> str:
        """Return the path of a key, or raise NotADirectoryError if it leads over a symbolic link."""
        directory, slash, _ = check_key(key).rpartition("/")
        if slash and directory not in self._linkless:
            self._refuse_links(directory)
        return f"{self._root}/{key}"

    def _refuse_existing(self, key: str, path: str) -> None:
        """Raise KeyExists if there is such a file, once its name is durable: its writer may not have come that far."""
        try:
            os.lstat(path)
        except FileNotFoundError:
            return
        sync_directory(os.path.dirname(path))
        raise KeyExists(key)

    def _make_directories(self, directory: str) -> None:
        """Create root and directory. The first use by this process makes sure that all their names are durable."""
        if directory in self._durable:
            return
        if "" not in self._durable:
            make_root(self._root)
            self._durable.add("")
        mode = stat.S_IMODE(os.stat(self._root).st_mode)
        relative = ""
        for segment in directory.split("/") if directory else ():
            relative = f"{relative}/{segment}" if relative else segment
            if relative not in self._durable:
                make_directory(f"{self._root}/{relative}", mode)
                _remember(self._durable, relative)

    def _refuse_links(self, directory: str) -> None:
        """Raise NotADirectoryError if a directory on the way is a symbolic link. What is not there yet is none."""
        relative = ""
        for segment in directory.split("/"):
            relative = f"{relative}/{segment}" if relative else segment
            path = f"{self._root}/{relative}"
            try:
                if not stat.S_ISDIR(os.lstat(path).st_mode):
                    raise NotADirectoryError(errno.ENOTDIR, "it is no folder, or a symbolic link", path)
            except FileNotFoundError:
                return
            _remember(self._linkless, relative)

    def _walk(self, prefix: str) -> Iterator[str]:
        path = f"{self._root}/{prefix}"
        try:
            with os.scandir(path) as entries:
                # A folder sorts as its keys do, by the name with the slash: "a.b" < "a/b" < "a0".
                found = sorted(
                    f"{prefix}{entry.name}/" if entry.is_dir(follow_symlinks=False) else f"{prefix}{entry.name}"
                    for entry in entries
                    if is_key(prefix + entry.name)
                    and prefix + entry.name != "lost+found"
                    and (entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False))
                )
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise read_error(error, prefix, path) from error
        for name in found:
            if name.endswith("/"):
                yield from self._walk(name)
            else:
                yield name

    def _step(self, what: str, key: str) -> None:
        if self._on_step is not None:
            self._on_step(what, key)


class LocalStage:
    """A temporary file of a LocalStore."""

    def __init__(self, store: LocalStore, file: DurableFile) -> None:
        self._store = store
        self._file = file

    def write(self, data: Buffer) -> None:
        """Append data. See Stage."""
        self._check_open()
        try:
            self._file.write(data)
        except OSError as error:
            raise write_error(error, TEMPORARY, self._store.url) from error

    def publish(self, key: str) -> None:
        """Make the file visible under key. See Stage."""
        self._check_open()
        try:
            self._store.publish(self._file, key)
        finally:
            self._file.close()

    def __enter__(self) -> "LocalStage":
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def _check_open(self) -> None:
        if self._file.closed:
            raise UsageError("this stage has been published or discarded")


def _regular_size(status: os.stat_result, key: str) -> int:
    if not stat.S_ISREG(status.st_mode):
        raise KeyNotFound(key)
    return status.st_size


def _read(fd: int, start: int, end: int) -> bytes:
    """Return bytes [start, end) of a file, in one read where the system allows."""
    parts = []
    while start < end:
        part = os.pread(fd, end - start, start)
        if not part:
            break
        parts.append(part)
        start += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _remember(known: set[str], directory: str) -> None:
    if len(known) >= _KNOWN_DIRECTORIES_MAX:
        known.clear()
    known.add(directory)
