"""Which files this process opens, told by the interpreter itself: for tests that nothing was read, or that something is
done at the moment at which a file is opened.

    with watched_opens(b"/data") as opened:
        ...
    assert opened == []

Python has no way to remove the hook; without a watcher it does nothing. Threads: safe; `run` is called in any of them.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_watchers: list[Callable[[bytes], None]] = []
_installed: list[bool] = []


@contextmanager
def watched_opens(below: bytes, run: Callable[[bytes], None] | None = None) -> Iterator[list[bytes]]:
    """Give a list to which every absolute path below a folder is added just before it is opened.

    Directories count too, except those that are opened by their name in another one.

    Args:
        below: an absolute path; it counts itself.
        run: called with the path before the file is opened; an exception of it makes the open fail.
    """
    opened: list[bytes] = []

    def watch(path: bytes) -> None:
        if path == below or path.startswith(below + b"/"):
            opened.append(path)
            if run is not None:
                run(path)

    if not _installed:
        sys.addaudithook(_hook)
        _installed.append(True)
    _watchers.append(watch)
    try:
        yield opened
    finally:
        _watchers.remove(watch)


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _watchers and isinstance(arguments[0], str | bytes):
        path = os.fsencode(arguments[0])
        for watch in list(_watchers):
            watch(path)
