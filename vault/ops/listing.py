"""Looks into snapshots without a mount: one path, one directory, everything below."""

import difflib
from collections.abc import Iterator

from vault.errors import RefNotFound
from vault.format.tree import Entry, Kind
from vault.ids import Digest
from vault.repo.trees import TreeReader

_NEAR_NAMES_READ_MAX = 5000  # suggestions are worth one page, not a scan of ten million names


def root_entry(trees: TreeReader, snapshot: Digest) -> Entry:
    """Return the entry that stands for a snapshot's root: a directory without a name, with the snapshot's totals."""
    directory = trees.load(snapshot)
    if directory.leaf is not None:
        size = files = directories = 0
        for entry in directory.leaf.entries():
            if entry.kind == Kind.DIRECTORY:
                size, files, directories = size + entry.size, files + entry.files, directories + entry.directories + 1
            elif entry.is_file:
                size, files = size + entry.size, files + 1
        return Entry(b"", Kind.DIRECTORY, size, snapshot, files, directories)
    rows = directory.rows
    return Entry(
        b"",
        Kind.DIRECTORY,
        sum(row.size for row in rows),
        snapshot,
        sum(row.files for row in rows),
        sum(row.directories for row in rows),
    )


def find_entry(trees: TreeReader, snapshot: Digest, path: bytes) -> Entry:
    """Return the entry at a path of a snapshot; symlinks are not followed.

    Raises:
        RefNotFound: nothing has this path; near names of the last directory that exists are suggested.
    """
    entry = root_entry(trees, snapshot)
    done: list[bytes] = []
    for name in path.split(b"/") if path else ():
        found = trees.find(entry.digest, name) if entry.kind == Kind.DIRECTORY else None
        if found is None:
            raise RefNotFound(_text(path), "path", _near(trees, entry, done, name))
        entry = found
        done.append(name)
    return entry


def list_entries(trees: TreeReader, entry: Entry, *, recursive: bool = False) -> Iterator[tuple[bytes, Entry]]:
    """Yield (path below entry, entry) of what a directory holds, or of everything below; of a file: itself."""
    if entry.kind != Kind.DIRECTORY:
        yield entry.name, entry
    elif recursive:
        yield from trees.walk(entry.digest)
    else:
        for child in trees.entries(entry.digest):
            yield child.name, child


def _near(trees: TreeReader, directory: Entry, done: list[bytes], name: bytes) -> list[str]:
    if directory.kind != Kind.DIRECTORY:
        return []
    names = []
    for child in trees.entries(directory.digest):
        names.append(_text(child.name))
        if len(names) == _NEAR_NAMES_READ_MAX:
            break
    prefix = [_text(part) for part in done]
    return ["/".join([*prefix, near]) for near in difflib.get_close_matches(_text(name), names, n=3)]


def _text(name: bytes) -> str:
    return name.decode(errors="backslashreplace")
