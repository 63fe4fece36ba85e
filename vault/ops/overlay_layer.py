"""Reads the upper layer of an overlay: what was changed above a snapshot, without a look at what was not.

The kernel's own marks: a character device 0/0 takes a name away, the attribute `opaque` says that nothing below a folder
shows through, `redirect` that a folder was moved here. Attributes are `trusted.overlay.*`, or `user.overlay.*` in a user
namespace. The layer must not change meanwhile: a file that does is named. Threads: one.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from vault.errors import FormatError, SourceUnreadable, SpecialFile, UsageError
from vault.format.digest import digest
from vault.format.tree import DEPTH_MAX, Entry, Kind
from vault.ids import Digest
from vault.ops.descent import Descent
from vault.ops.exclude import IGNORE_FILE, IGNORE_FILE_SIZE_MAX, RuleSet, is_excluded, parse_ignore_file
from vault.ops.names import list_names
from vault.ops.source import SourceFile
from vault.repo.tree_edit import Patch

TRUSTED: Final = "trusted.overlay."
USER: Final = "user.overlay."
_ABSENT: Final = frozenset({errno.ENODATA, errno.ENOTSUP, errno.EOPNOTSUPP})
_SPECIAL: Final = {stat.S_IFSOCK: "socket", stat.S_IFIFO: "FIFO", stat.S_IFBLK: "block device", stat.S_IFCHR: "device"}

ReadIgnoreFile = Callable[[bytes], bytes | None]  # path of a folder in the snapshot -> its ignore file


@dataclass(slots=True)
class Layer:
    """What an upper layer holds. The files of the patch have no contents yet: `fill` puts them in."""

    patch: Patch
    files: list[SourceFile] = field(default_factory=list)
    excluded: int = 0
    _places: list[tuple[Patch, Kind]] = field(default_factory=list)  # of the files

    def fill(self, digests: Iterator[Digest]) -> None:
        """Give each file its content. Takes as many digests as there are files."""
        for file, (patch, kind), found in zip(self.files, self._places, digests, strict=True):
            patch.names[file.name] = Entry(file.name, kind, file.size, found)

    def add(self, patch: Patch, file: SourceFile) -> None:
        """Note a file of a folder."""
        self.files.append(file)
        self._places.append((patch, Kind.EXECUTABLE if file.executable else Kind.FILE))


@dataclass(slots=True)
class _Frame:
    path: bytes  # in the view, with a slash at its end; b"" for its root
    name: bytes
    patch: Patch
    below: bytes | None  # path in the snapshot of the folder that shows through
    rules: tuple[RuleSet, ...]
    todo: Iterator[bytes]  # folders in it


def read_layer(upper: bytes, attributes: str, read_ignore_file: ReadIgnoreFile) -> Layer:
    """Return what lies in an upper layer.

    Args:
        upper: the folder.
        attributes: how the names of the kernel's attributes begin: TRUSTED or USER.
        read_ignore_file: returns the ignore file in a folder of the snapshot below, or None.

    Raises:
        SourceUnreadable: naming what cannot be read.
        SpecialFile: a socket, device or FIFO was made.
        FormatError: no such layer is made by the way in which we mount.
    """
    layer = Layer(Patch())
    try:
        with Descent(upper) as descent:
            stack = [_Frame(b"", b"", layer.patch, b"", (), iter(()))]
            stack[0].todo = iter(_look(descent.current, stack[0], upper, layer, read_ignore_file))
            while stack:
                frame = stack[-1]
                name = next(frame.todo, None)
                if name is None:
                    stack.pop()
                    if stack:
                        descent.leave()
                    continue
                if len(stack) >= DEPTH_MAX:
                    raise UsageError(f"{os.fsdecode(upper)}: more than {DEPTH_MAX} directories in each other")
                descent.enter(name)
                child = _enter(descent.current, frame, name, attributes)
                child.todo = iter(_look(descent.current, child, upper, layer, read_ignore_file))
                frame.patch.names[name] = child.patch
                stack.append(child)
    except OSError as error:
        raise SourceUnreadable(os.fsdecode(upper), error.strerror or str(error)) from error
    return layer


def _enter(directory: int, above: _Frame, name: bytes, attributes: str) -> _Frame:
    """Return the frame of a folder that was just opened."""
    below = None if above.below is None else above.below + b"/" + name if above.below else name
    opaque = _attribute(directory, attributes + "opaque")
    redirect = _attribute(directory, attributes + "redirect")
    patch = Patch(is_fresh=opaque == b"y")
    if patch.is_fresh:
        below = None
    elif redirect:
        below = _redirected(redirect, above.below)
        patch.origin = below
    return _Frame(above.path + name + b"/", name, patch, below, above.rules, iter(()))


def _redirected(redirect: bytes, parent: bytes | None) -> bytes:
    """Return which folder of the snapshot a redirect means: a path from its root, or a name beside the folder's own."""
    if redirect.startswith(b"/"):
        return redirect.strip(b"/")
    if parent is None or b"/" in redirect:
        raise FormatError("overlay layer", f"it redirects to {redirect!r}, which is no place")
    return parent + b"/" + redirect if parent else redirect


def _look(directory: int, frame: _Frame, upper: bytes, layer: Layer, read_ignore_file: ReadIgnoreFile) -> Sequence[bytes]:
    """Take up everything in a folder but the folders in it, whose names are returned in order."""
    names = list(list_names(directory))
    frame.rules = (*frame.rules, *_rules(directory, frame, names, read_ignore_file))
    folders = []
    for name in names:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        mode = stat.S_IFMT(status.st_mode)
        path = frame.path + name
        if mode == stat.S_IFCHR and status.st_rdev == 0:
            frame.patch.names[name] = None
        elif frame.rules and is_excluded(path, mode == stat.S_IFDIR, frame.rules):
            layer.excluded += 1
            frame.patch.names[name] = None
        elif mode == stat.S_IFDIR:
            folders.append(name)
        elif mode == stat.S_IFREG:
            layer.add(frame.patch, SourceFile(name, os.path.join(upper, path), status))
        elif mode == stat.S_IFLNK:
            target = os.readlink(name, dir_fd=directory)
            frame.patch.names[name] = Entry(name, Kind.SYMLINK, len(target), digest(target), target=target)
        else:
            raise SpecialFile(os.fsdecode(path), _SPECIAL.get(mode, "special file"), 1)
    return folders


def _rules(directory: int, frame: _Frame, names: Sequence[bytes], read_ignore_file: ReadIgnoreFile) -> tuple[RuleSet, ...]:
    """Return the rules of the ignore file that the view shows in a folder, if there is one."""
    data: bytes | None = None
    if IGNORE_FILE in names:
        status = os.stat(IGNORE_FILE, dir_fd=directory, follow_symlinks=False)
        if stat.S_ISREG(status.st_mode):
            descriptor = os.open(IGNORE_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            with open(descriptor, "rb") as file:
                data = file.read(IGNORE_FILE_SIZE_MAX + 1)
    elif frame.below is not None:
        data = read_ignore_file(frame.below)
    if data is None:
        return ()
    if len(data) > IGNORE_FILE_SIZE_MAX:
        raise UsageError(f"{os.fsdecode(frame.path + IGNORE_FILE)} is larger than {IGNORE_FILE_SIZE_MAX} bytes")
    rules = parse_ignore_file(data, frame.path)
    return (rules,) if rules.rules else ()


def _attribute(directory: int, name: str) -> bytes:
    try:
        return os.getxattr(directory, name)
    except OSError as error:
        if error.errno in _ABSENT:
            return b""
        raise
