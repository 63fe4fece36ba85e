"""To be nobody for a while: root reads and writes everything, so that a test of missing rights would test nothing.

    with unprivileged(tmp_path):
        ...  # in this process and all of its threads: what the modes of files say is what happens

For other users it does nothing. Threads: the whole process changes, so nothing else may run beside it.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

NOBODY: Final = 65534


@contextmanager
def unprivileged(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Take nobody's rights until the block is left. Everything below a folder is given to nobody, with the modes it has."""
    if os.geteuid():
        yield
        return
    opened = []
    above = os.path.abspath(folder)
    while above != "/":
        mode = stat.S_IMODE(os.stat(above).st_mode)
        if mode & 0o011 != 0o011:
            opened.append((above, mode))
            os.chmod(above, mode | 0o011)  # nobody may pass, and keeps root's group
        above = os.path.dirname(above)
    for path, folders, files in os.walk(folder):
        for name in (".", *folders, *files):
            os.lchown(os.path.join(path, name), NOBODY, -1)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        for path, mode in opened:
            os.chmod(path, mode)
