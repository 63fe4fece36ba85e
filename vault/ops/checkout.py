"""Copies a snapshot into a folder as ordinary files, every byte verified.

The folder appears all at once: files are written beside it and renamed at the end, so an interrupted checkout leaves
nothing that looks finished. Names come from the store and are hostile: everything is opened relative to a directory's
descriptor, created anew, and never through a symlink.
"""

import errno
import logging
import os
import secrets
from dataclasses import dataclass

from vault.errors import FormatError, StoreFull, TargetUnwritable, UsageError, VaultError
from vault.format.tree import DEPTH_MAX, Entry, Kind
from vault.ids import Digest
from vault.ops.descent import Descent, remove_tree
from vault.progress import SILENT, Progress
from vault.repo.content import read_content
from vault.repo.objects import ObjectReader
from vault.repo.trees import TreeReader

logger = logging.getLogger(__name__)


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
    """Write the directory (or the one file or symlink) root to target, which must not exist or be an empty folder.

    Args:
        objects: where contents come from.
        root: entry of the directory, file or symlink; of a snapshot's root: an unnamed directory with its digest.
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
    folder = os.path.dirname(target)
    partial = os.path.join(folder, b".vault-checkout-" + secrets.token_hex(8).encode())
    writer = _Writer(objects, mtime_ns, progress, root)
    try:
        if not _is_free(target):
            raise UsageError(f"{os.fsdecode(target)} exists: give a new or empty folder")
        os.makedirs(folder, exist_ok=True)
        if root.kind == Kind.DIRECTORY:
            writer.write_directory(root.digest, partial)
        else:
            writer.write_single(root, partial)
        os.rename(partial, target)
    except BaseException as error:
        _remove(partial)
        if isinstance(error, VaultError) or not isinstance(error, OSError):  # some errors of the store are OSErrors, too
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(os.fsdecode(target)) from error
        raise TargetUnwritable(os.fsdecode(target), error.strerror or str(error)) from error
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
        """Write a directory and all below it, on a stack: trees may be deeper than paths may be long."""
        os.mkdir(path)
        with Descent(path) as descent:
            stack = [self._trees.entries(directory)]
            while stack:
                entry = next(stack[-1], None)
                if entry is None:
                    self._set_time(descent.current)
                    stack.pop()
                    if stack:
                        descent.leave()
                elif entry.kind == Kind.DIRECTORY:
                    if len(stack) > DEPTH_MAX:
                        raise FormatError("tree", f"more than {DEPTH_MAX} directories in each other")
                    os.mkdir(entry.name, dir_fd=descent.current)
                    self._directories += 1
                    descent.enter(entry.name)
                    stack.append(self._trees.entries(entry.digest))
                else:
                    self._write_entry(entry, entry.name, descent.current)

    def write_single(self, entry: Entry, path: bytes) -> None:
        """Write one file or symlink."""
        directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._write_entry(entry, os.path.basename(path), directory)
        finally:
            os.close(directory)

    def _write_entry(self, entry: Entry, name: bytes, directory: int) -> None:
        if entry.kind == Kind.SYMLINK:
            os.symlink(entry.target, name, dir_fd=directory)
            self._symlinks += 1
        else:
            self._write_file(entry, name, directory)

    def _write_file(self, entry: Entry, name: bytes, directory: int) -> None:
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


def _is_free(target: bytes) -> bool:
    """Return whether there is nothing, or an empty folder. Raises OSError."""
    return not os.path.lexists(target) or (os.path.isdir(target) and not os.path.islink(target) and not os.listdir(target))


def _remove(path: bytes) -> None:
    """Remove what was written. Best effort: it stays where even that fails, under a name that says what it is."""
    try:
        if os.path.isdir(path) and not os.path.islink(path):
            remove_tree(path)
        elif os.path.lexists(path):
            os.unlink(path)
    except OSError as error:
        logger.warning("%s is left over: %s", os.fsdecode(path), error)
