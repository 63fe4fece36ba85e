"""A way down into directories that may lie deeper than paths may be long, or than files may be open.

Each directory is opened relative to the one above and never through a symlink. Only the last few stay open; one further up
is found again through `..` and must be the directory that it was. Threads: one.
"""

import errno
import os
from typing import Final

_OPEN_MAX: Final = 64
_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Descent:
    """The directories from a first one down to the current one. Use as a context manager: leaving it closes them."""

    def __init__(self, path: bytes, *, follow: bool = False) -> None:
        """Open the first directory; its path may lead over symlinks only if follow is set. Raises OSError."""
        self._descriptors = [os.open(path, _FLAGS | (0 if follow else os.O_NOFOLLOW))]
        self._identities = [_identity(self._descriptors[0])]

    @property
    def current(self) -> int:
        """The descriptor of the current directory; not to be closed."""
        return self._descriptors[-1]

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode of the current directory."""
        return self._identities[-1]

    @property
    def depth(self) -> int:
        """How many directories there are from the first to the current one."""
        return len(self._descriptors)

    def enter(self, name: bytes) -> None:
        """Go into a directory in the current one. Raises OSError: it cannot be entered; nothing has changed."""
        descriptor = os.open(name, _FLAGS | os.O_NOFOLLOW, dir_fd=self.current)
        self._descriptors.append(descriptor)
        self._identities.append(_identity(descriptor))
        far = self.depth - 1 - _OPEN_MAX
        if far >= 0 and self._descriptors[far] >= 0:
            os.close(self._descriptors[far])
            self._descriptors[far] = -1

    def leave(self) -> None:
        """Go back to the directory above. Raises OSError (ESTALE): it is not there any more."""
        if self._descriptors[-2] < 0:
            above = os.open(b"..", _FLAGS, dir_fd=self.current)
            self._descriptors[-2] = above
            if _identity(above) != self._identities[-2]:
                raise OSError(errno.ESTALE, "a directory was moved")
        os.close(self._descriptors.pop())
        self._identities.pop()

    def __enter__(self) -> "Descent":
        """Return self."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close every directory."""
        while self._descriptors:
            descriptor = self._descriptors.pop()
            if descriptor >= 0:
                os.close(descriptor)


def remove_tree(path: bytes) -> None:
    """Remove a directory with everything below it, however deep; symlinks are removed, not followed. Raises OSError."""
    with Descent(path) as descent:
        left = [_clear_files(descent.current)]
        names: list[bytes] = []
        while True:
            if left[-1]:
                name = left[-1].pop()
                descent.enter(name)
                names.append(name)
                left.append(_clear_files(descent.current))
            elif names:
                descent.leave()
                left.pop()
                os.rmdir(names.pop(), dir_fd=descent.current)
            else:
                break
    os.rmdir(path)


def _clear_files(directory: int) -> list[bytes]:
    """Remove what is no directory from a directory. Returns the names of the directories in it."""
    directories = []
    with os.scandir(directory) as entries:
        names = [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in names:
        if is_directory:
            directories.append(name)
        else:
            os.unlink(name, dir_fd=directory)
    return directories


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino
