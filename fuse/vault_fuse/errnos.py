"""Which errno a failed request gets. A test sees to it that every error of vault has an entry."""

import errno
from typing import Final

from vault import errors

ERRNOS: Final[dict[type[BaseException], int]] = {
    errors.VaultError: errno.EIO,
    errors.StoreError: errno.EIO,
    errors.IntegrityError: errno.EIO,
    errors.FormatError: errno.EIO,
    errors.RepositoryError: errno.EIO,
    errors.MountError: errno.EIO,
    errors.UsageError: errno.EINVAL,
    errors.RefError: errno.ENOENT,
    IndexError: errno.ESTALE,  # a node that the snapshot does not have
    MemoryError: errno.ENOMEM,
}


def errno_of(error: BaseException) -> int:
    """Return the errno for an error: that of its nearest class in the table, its own if it is an OSError, else EIO."""
    for kind in type(error).__mro__:
        if kind in ERRNOS:
            return ERRNOS[kind]
    if isinstance(error, OSError) and error.errno:
        return errno.EIO if error.errno in (errno.ENODEV, errno.ENOSYS) else error.errno
    return errno.EIO
