"""Copies a snapshot into a folder as ordinary files, every byte verified.

The folder appears all at once: files are written beside it and renamed at the end, so an interrupted checkout leaves
nothing that looks finished. Names come from the store and are hostile: everything is opened relative to a directory's
descriptor, created anew, and never through a symlink.
"""

import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from vault.errors import StoreFull, TargetUnwritable, UsageError
from vault.format.tree import Entry, Kind
from vault.ids import Digest
from vault.progress import SILENT, Progress
from vault.repo.content import read_content
from vault.repo.objects import ObjectReader
from vault.repo.trees import TreeReader


@dataclass(frozen=True, slots=True)
class CheckoutResult:
    """What was written."""

    files: int
    directories: int
    symlinks: int
    size_bytes: int


def checkout(
    objects: ObjectReader,
    root: Entry,
    target: bytes,
    *,
    mtime_ns: int | None = None,
    progress: Progress = SILENT,
) -> CheckoutResult:
    """Write the directory (or the one file) root to target, which must not exist or be an empty folder.

    Args:
        objects: where contents come from.
        root: entry of the directory or file; of a snapshot's root: an unnamed directory with its digest.
        target: path of the folder or file to make.
        mtime_ns: time that every file gets; now if None.
        progress: told about files and bytes.

    Raises:
        UsageError: target exists.
        StoreFull: no space left there; nothing stays.
        TargetUnwritable: for another reason; nothing stays.
        IntegrityError, ObjectMissing, StoreError: a file cannot be read; nothing stays.
    """
    target = os.path.abspath(target)
    if os.path.lexists(target) and not (os.path.isdir(target) and not os.path.islink(target) and not os.listdir(target)):
        raise UsageError(f"{os.fsdecode(target)} exists: give a new or empty folder")
    partial = target + b".partial-" + secrets.token_hex(4).encode()
    writer = _Writer(objects, mtime_ns, progress, root)
    try:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if root.kind == Kind.DIRECTORY:
            writer.write_directory(root.digest, partial)
        else:
            writer.write_file(root, os.path.basename(partial), _open_directory(os.path.dirname(partial)))
        os.rename(partial, target)
    except OSError as error:
        _remove(partial)
        if error.errno in (28, 122):  # ENOSPC, EDQUOT
            raise StoreFull(os.fsdecode(target)) from error
        raise TargetUnwritable(os.fsdecode(target), error.strerror or str(error)) from error
    except BaseException:
        _remove(partial)
        raise
    return writer.result()


class _Writer:
    def __init__(self, objects: ObjectReader, mtime_ns: int | None, progress: Progress, root: Entry) -> None:
        self._objects = objects
        self._trees = TreeReader(objects)
        self._mtime_ns = mtime_ns
        self._progress = progress
        self._files_total = root.files
        self._size_total = root.size
        self._files = self._directories = self._symlinks = self._size = 0

    def result(self) -> CheckoutResult:
        return CheckoutResult(self._files, self._directories, self._symlinks, self._size)

    def write_directory(self, directory: Digest, path: bytes) -> None:
        """Write a directory and all below it. Descriptors on a stack: trees may be deeper than paths may be long."""
        os.mkdir(path)
        stack: list[tuple[int, Iterator[Entry]]] = [(_open_directory(path), self._trees.entries(directory))]
        try:
            while stack:
                descriptor, entries = stack[-1]
                entry = next(entries, None)
                if entry is None:
                    self._set_time(descriptor)
                    os.close(stack.pop()[0])
                elif entry.kind == Kind.DIRECTORY:
                    os.mkdir(entry.name, dir_fd=descriptor)
                    self._directories += 1
                    stack.append((_open_directory(entry.name, descriptor), self._trees.entries(entry.digest)))
                elif entry.kind == Kind.SYMLINK:
                    os.symlink(entry.target, entry.name, dir_fd=descriptor)
                    self._symlinks += 1
                else:
                    self.write_file(entry, entry.name, descriptor)
        finally:
            for descriptor, _ in stack:
                os.close(descriptor)

    def write_file(self, entry: Entry, name: bytes, directory: int) -> None:
        mode = 0o777 if entry.kind == Kind.EXECUTABLE else 0o666
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(name, flags, mode, dir_fd=directory)
        try:
            for piece in read_content(self._objects, entry):
                rest = memoryview(piece)
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
                self._size += len(piece)
                self._report()
            self._set_time(descriptor)
        finally:
            os.close(descriptor)
        self._files += 1
        self._report()

    def _set_time(self, descriptor: int) -> None:
        if self._mtime_ns is not None:
            os.utime(descriptor, ns=(self._mtime_ns, self._mtime_ns))

    def _report(self) -> None:
        self._progress.update(
            phase="checkout", files=self._files, size_bytes=self._size,
            files_total=self._files_total, size_bytes_total=self._size_total,
        )  # fmt: skip


def _open_directory(path: bytes, within: int | None = None) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=within)


def _remove(path: bytes) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):
        os.unlink(path)
