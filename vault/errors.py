"""Every error that vault raises on purpose.

    VaultError
    ├── StoreError                  bytes by key
    │   ├── KeyNotFound             (also a KeyError)
    │   ├── KeyExists               create-once refused: somebody was first
    │   ├── StoreUnavailable        no answer; a retry may help
    │   ├── StorePermission         the store said no (also a PermissionError)
    │   ├── StoreRefused            it will not serve us until something is set right: keys, clock, region, bucket
    │   └── StoreFull               no space left
    ├── IntegrityError
    │   ├── DigestMismatch          bytes do not hash to their name
    │   ├── Damaged                 a stored file that is not what its format says
    │   └── BundleError             a bundle that breaks its format, or its promises
    ├── FormatError                 bytes that no version of the format allows (also a ValueError)
    │   └── UnsupportedVersion      written by a newer vault
    ├── RefError                    names that users type
    │   ├── InvalidRef
    │   ├── RefNotFound             with near names
    │   └── AmbiguousRef
    ├── RepositoryError
    │   ├── NotARepository
    │   ├── AlreadyARepository
    │   ├── SourceChanged           a file changed while it was read
    │   ├── SourceUnreadable
    │   ├── SpecialFile             socket, device or FIFO in a dataset
    │   ├── TargetUnwritable        where a checkout is to go
    │   ├── EditConflict            others have committed since an edit began
    │   └── ObjectMissing           named, but in no pack
    │       └── NotInBundle         left out of a bundle on purpose
    ├── ClusterError                a Dask scheduler or its workers cannot do what a commit needs
    ├── CacheUnusable               this machine's cache directory
    ├── MountError
    ├── RecordingError              an open that cannot be put on record, so it is refused
    └── UsageError                  an argument that makes no sense

Errors carry fields and hand all of them to `Exception.__init__`, so that they pickle across processes. The text is made
in `__str__`: what, where, what to do next. `retryable` says whether the same call may succeed later.
FUSE errno values, HTTP statuses and exit codes live with their front ends.
"""

from collections.abc import Sequence
from typing import ClassVar, Final

_NAMED: Final = 5  # paths in a message


class VaultError(Exception):
    """Base of every error that vault raises on purpose."""

    retryable: ClassVar[bool] = False


class StoreError(VaultError):
    """A store could not do what it was asked."""


class KeyNotFound(StoreError, KeyError):
    """No stored file has this key. Final."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return f"the store has no {self.key}"


class KeyExists(StoreError):
    """A create-once write met an existing key. Final for this key."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return f"the store already has {self.key}"


class StoreUnavailable(StoreError):
    """The store did not answer, or answered with a passing fault."""

    retryable: ClassVar[bool] = True

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)
        self.where = where
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.where} does not answer: {self.reason}"


class StorePermission(StoreError, PermissionError):
    """The store refused for lack of rights."""

    def __init__(self, where: str, needed: str = "access") -> None:
        super().__init__(where, needed)
        self.where = where
        self.needed = needed

    def __str__(self) -> str:
        return f"no permission for {self.where}: ask its owner for {self.needed}"


class StoreRefused(StoreError):
    """The store answered, and serves nobody until something is set right: credentials, clock, region, the bucket's name."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)
        self.where = where
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.where} cannot be used: {self.reason}"


class StoreFull(StoreError):
    """No space is left where the store writes. Nothing half-written is visible."""

    def __init__(self, where: str) -> None:
        super().__init__(where)
        self.where = where

    def __str__(self) -> str:
        return f"no space left for {self.where}: free some and run the command again; what was stored is not stored twice"


class IntegrityError(VaultError):
    """Stored bytes are not what they should be."""


class DigestMismatch(IntegrityError):
    """Bytes do not hash to the digest under which they were asked for."""

    def __init__(self, what: str, expected: str, actual: str) -> None:
        super().__init__(what, expected, actual)
        self.what = what
        self.expected = expected
        self.actual = actual

    def __str__(self) -> str:
        return (
            f"{self.what} is damaged: expected {self.expected[:12]}, but its bytes hash to {self.actual[:12]}; "
            "run 'vault verify' to see what else is"
        )


class Damaged(IntegrityError):
    """A stored file breaks its format: truncated, overwritten or swapped."""

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(what, reason)
        self.what = what
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.what} is damaged: {self.reason}"


class FormatError(VaultError, ValueError):
    """Bytes that no version of the format allows."""

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(what, reason)
        self.what = what
        self.reason = reason

    def __str__(self) -> str:
        return f"not a valid {self.what}: {self.reason}"


class UnsupportedVersion(FormatError):
    """A format version that this program does not know."""

    def __init__(self, what: str, version: int, newest: int) -> None:
        VaultError.__init__(self, what, version, newest)
        self.what = what
        self.version = version
        self.newest = newest

    def __str__(self) -> str:
        return f"{self.what} has format version {self.version}, this vault reads up to {self.newest}: upgrade vaultfs"


class RefError(VaultError):
    """A name that a user typed leads nowhere."""


class InvalidRef(RefError, ValueError):
    """Text that is not a ref."""

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(text, reason)
        self.text = text
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.text!r} is not a valid name: {self.reason}"


class RefNotFound(RefError, LookupError):
    """A well-formed ref, path or run that does not exist."""

    def __init__(self, text: str, what: str, near: Sequence[str] = ()) -> None:
        super().__init__(text, what, near)
        self.text = text
        self.what = what
        self.near = tuple(near)

    def __str__(self) -> str:
        hint = f"; did you mean {', '.join(self.near)}?" if self.near else ""
        return f"there is no {self.what} {self.text}{hint}"


class AmbiguousRef(RefError):
    """A prefix that fits several things."""

    def __init__(self, text: str, candidates: Sequence[str]) -> None:
        super().__init__(text, candidates)
        self.text = text
        self.candidates = tuple(candidates)

    def __str__(self) -> str:
        return f"{self.text} could be {', '.join(self.candidates)}: give more of it"


class RepositoryError(VaultError):
    """The repository, or what is to be stored in it, is not in a state that allows this."""


class NotARepository(RepositoryError):
    """The place holds no vault."""

    def __init__(self, where: str) -> None:
        super().__init__(where)
        self.where = where

    def __str__(self) -> str:
        return f"{self.where} is not a vault store: create one with 'vault init', or set VAULTFS_STORE to one"


class AlreadyARepository(RepositoryError):
    """`init` on a place that holds something already."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)
        self.where = where
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.where} {self.reason}"


class SourceChanged(RepositoryError):
    """A file changed while it was being committed."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return f"{self.path} changed while it was being read: stop what writes to it and commit again"


class SourceUnreadable(RepositoryError):
    """A file or folder that is to be committed cannot be read."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot read {self.path}: {self.reason}"


class SpecialFile(RepositoryError):
    """Sockets, devices and FIFOs are no data."""

    def __init__(self, path: str, kind: str, count: int) -> None:
        super().__init__(path, kind, count)
        self.path = path
        self.kind = kind
        self.count = count

    def __str__(self) -> str:
        more = f" (and {self.count - 1} more)" if self.count > 1 else ""
        return f"{self.path} is a {self.kind}{more}: remove it, --exclude it, or pass --skip-special"


class TargetUnwritable(RepositoryError):
    """A place outside of the store cannot be written."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot write {self.path}: {self.reason}"


class EditConflict(RepositoryError):
    """Versions were made since an edit began. What it changed may or may not be what they changed."""

    def __init__(self, base: str, newest: str, news: str, overlap: Sequence[str]) -> None:
        super().__init__(base, newest, news, tuple(overlap))
        self.base = base
        self.newest = newest
        self.news = news  # what they changed, in words
        self.overlap = tuple(overlap)  # paths that both changed

    def __str__(self) -> str:
        said = f"{self.newest} was committed since this edit of {self.base} began: {self.news}"
        if not self.overlap:
            return f"{said}; nothing of it is what you changed: --rebase puts your changes on top"
        named = ", ".join(self.overlap[:_NAMED])
        more = f" and {len(self.overlap) - _NAMED:,} more" if len(self.overlap) > _NAMED else ""
        return (
            f"{said}; both changed {named}{more}: take your changes there back, or bring them into an edit of {self.newest}"
        )


class ObjectMissing(RepositoryError):
    """A tree names an object that no pack holds."""

    def __init__(self, digest: str) -> None:
        super().__init__(digest)
        self.digest = digest

    def __str__(self) -> str:
        return f"object {self.digest[:12]} is in no pack of the store: run 'vault verify'"


class NotInBundle(ObjectMissing):
    """A file that a bundle leaves out: it has what its run opened, and no more."""

    def __str__(self) -> str:
        return (
            f"content {self.digest[:12]} was left out of this bundle: it holds only the files that its run opened; "
            "ask whoever published it for a bundle made without --only-opened"
        )


class BundleError(IntegrityError):
    """A bundle that is not what it says: cut off, changed, signed by somebody else. Nothing of it should be believed."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)
        self.where = where
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.where} is no bundle to rely on: {self.reason}; ask whoever gave it to you for another copy"


class ClusterError(VaultError):
    """A Dask scheduler does not answer, or a worker is not fit for a commit. What was stored is not stored again."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)
        self.where = where
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


class CacheUnusable(VaultError):
    """A file of the cache directory cannot be opened. It holds nothing that the store does not have."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)
        self.where = where
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot use the cache in {self.where}: {self.reason}; set VAULTFS_CACHE_DIR to a folder that you may write"


class MountError(VaultError):
    """A mount cannot be made, found or taken away."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)
        self.where = where
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


class RecordingError(VaultError):
    """An open could not be put on record, so the file is not opened. A retry helps once the spool takes writes again."""

    retryable: ClassVar[bool] = True

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)
        self.where = where
        self.reason = reason

    def __str__(self) -> str:
        return f"opens cannot be recorded in {self.where}: {self.reason}; free space there, and reads go on"


class UsageError(VaultError):
    """An argument that makes no sense."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason
