"""What captures of a run point at, environments and code, read back from the store.

A host wrote them: all of it is bounded. Threads: as the repository's readers.
"""

from typing import Annotated, Final

import msgspec

from vault.errors import FormatError, IntegrityError, RefNotFound, RepositoryError, StoreError
from vault.format.tree import Entry
from vault.ids import Digest, parse_digest
from vault.ops.listing import find_entry
from vault.repo.content import read_content
from vault.repo.objects import ObjectReader
from vault.repo.run_model import Capture
from vault.repo.trees import TreeReader

DOCUMENT: Final = b"environment.json"
DOCUMENT_SIZE_MAX: Final = 16 << 20
PACKAGES_MAX: Final = 100_000
UNREADABLE: Final = (IntegrityError, RepositoryError, FormatError, StoreError)  # a snapshot that cannot be looked into

_Text = Annotated[str, msgspec.Meta(max_length=4096)]


class Package(msgspec.Struct, frozen=True):
    """An installed distribution."""

    name: _Text
    version: _Text = ""
    direct_url: object = ""
    installer: object = ""


class Library(msgspec.Struct, frozen=True):
    """A native library that was loaded."""

    path: _Text
    size: int = 0
    soname: _Text = ""
    version: _Text = ""


class Document(msgspec.Struct, frozen=True):
    """`environment.json` (docs/format/runs.md, section 6)."""

    interpreter: _Text = ""
    packages: Annotated[tuple[Package, ...], msgspec.Meta(max_length=PACKAGES_MAX)] = ()
    libraries: Annotated[tuple[Library, ...], msgspec.Meta(max_length=PACKAGES_MAX)] = ()


def read_environment(objects: ObjectReader, capture: Capture) -> Document | None:
    """Return what a capture says of packages and libraries; None if it has no environment.

    Raises:
        UNREADABLE: the store has it no more, or it is damaged or something else.
    """
    if capture.environment is None:
        return None
    snapshot = parse_digest(capture.environment.snapshot)
    try:
        entry = find_entry(TreeReader(objects), snapshot, DOCUMENT)
    except RefNotFound:
        raise FormatError("environment", "it has no environment.json") from None
    data = read_small(objects, entry, DOCUMENT_SIZE_MAX)
    if data is None:
        raise FormatError("environment", f"{entry.size:,} bytes")
    try:
        return msgspec.json.decode(data, type=Document)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FormatError("environment", str(error)) from error


def read_small(objects: ObjectReader, entry: Entry, size_max: int) -> bytes | None:
    """Return the content of a file, verified; None if it is none, or larger than a bound. Raises as read_content."""
    if not entry.is_file or entry.size > size_max:
        return None
    return b"".join(map(bytes, read_content(objects, entry)))


def text_of(data: bytes) -> str | None:
    """Return the text of a small file; None if it is not UTF-8, or holds NUL."""
    try:
        return None if b"\0" in data else data.decode()
    except UnicodeDecodeError:
        return None


def same_code(old: Capture, new: Capture) -> bool:
    """Whether two captures have the same code: the same trees, in whatever folder."""
    return [tree.snapshot for tree in old.code] == [tree.snapshot for tree in new.code]


def code_digests(capture: Capture) -> list[Digest]:
    """Return the snapshots of a capture's code."""
    return [parse_digest(tree.snapshot) for tree in capture.code]
