"""What the exit status says. Numbers are never used again for something else (docs/reference/exit-codes.md).

A test sees to it that every error of vault has an entry, by itself or by its family.
"""

from typing import Final

from vault import errors

OK: Final = 0
FINDINGS: Final = 1  # the command worked, and found what it looks for: damage, a sick machine
USAGE: Final = 2  # also click's
NOT_FOUND: Final = 3
STORE: Final = 4
DAMAGED: Final = 5
SOURCE: Final = 6  # also the place that a checkout writes to
MOUNT: Final = 7
EXISTS: Final = 8
SYSTEM: Final = 9  # a file of this machine outside of the store: the cache directory, the terminal, a log
CONFLICT: Final = 10  # others have committed meanwhile
INTERNAL: Final = 70  # a bug of ours
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141

EXIT_CODES: Final[dict[type[BaseException], int]] = {
    errors.StoreError: STORE,
    errors.IntegrityError: DAMAGED,
    errors.FormatError: DAMAGED,
    errors.UnsupportedVersion: STORE,
    errors.RefError: NOT_FOUND,
    errors.InvalidRef: USAGE,
    errors.RepositoryError: STORE,
    errors.NotARepository: NOT_FOUND,
    errors.AlreadyARepository: EXISTS,
    errors.SourceChanged: SOURCE,
    errors.SourceUnreadable: SOURCE,
    errors.SpecialFile: SOURCE,
    errors.TargetUnwritable: SOURCE,
    errors.EditConflict: CONFLICT,
    errors.ObjectMissing: DAMAGED,
    errors.ClusterError: STORE,
    errors.MountError: MOUNT,
    errors.RecordingError: MOUNT,
    errors.CacheUnusable: SYSTEM,
    errors.UsageError: USAGE,
}


def exit_code(error: BaseException) -> int:
    """Return the exit status for an error: that of its nearest class in the table."""
    for kind in type(error).__mro__:
        if kind in EXIT_CODES:
            return EXIT_CODES[kind]
    return INTERNAL
