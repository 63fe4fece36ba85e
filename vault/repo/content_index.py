"""Which directories hold a file of some content: an LMDB table in the cache directory, learnt tree by tree.

Kept by directory, not by version: versions that share most of their directories cost what they do not share. Names are not
kept; they are read from the directory when somebody asks. The caller walks trees (`entries_of`); this module cannot. It can
be deleted at any time. Threads: one instance in each. Processes: as many as you like.

    numbers      directory (32)                     -> its number (4)
    directories  number (4)                         -> directory (32)
    contents     content (32), number of directory  -> nothing
    parents      number, number of what holds it    -> nothing
"""

import os
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from vault.errors import FormatError
from vault.format.tree import DEPTH_MAX, Entry, Kind
from vault.ids import Digest
from vault.repo.lmdb_file import LmdbFile

CACHE_VERSION: Final = 1
_NUMBERS, _DIRECTORIES, _CONTENTS, _PARENTS = b"numbers", b"directories", b"contents", b"parents"
_DATABASES: Final = (_NUMBERS, _DIRECTORIES, _CONTENTS, _PARENTS)
_U32 = struct.Struct(">I")
_PAIR = struct.Struct(">II")
_HELD = struct.Struct(">32sI")
_WRITTEN_AT_ONCE: Final = 100_000

EntriesOf = Callable[[Digest], Iterable[Entry]]


class ContentIndex:
    """Where contents are, as far as trees were learnt."""

    def __init__(self, file: LmdbFile) -> None:
        """Use `open_content_index`."""
        self._file = file

    def knows(self, directory: Digest) -> bool:
        """Say whether a directory and all below it were learnt."""
        with self._file.read() as transaction:
            return transaction.get(directory, db=self._file.db(_NUMBERS)) is not None

    def learn(self, root: Digest, entries_of: EntriesOf) -> None:
        """Note what the files of a tree hold, but for directories that are known. All or nothing.

        Raises:
            FormatError: directories lie too deep in each other.
            Others: as entries_of raises.
        """
        with self._file.write() as transaction:
            held: list[tuple[bytes, bytes]] = []
            todo = [(root, b"", 0)]
            while todo:
                directory, parent, depth = todo.pop()
                if depth > DEPTH_MAX:
                    raise FormatError("tree", f"more than {DEPTH_MAX} directories in each other")
                number, is_new = self._number(transaction, directory)
                if parent:
                    transaction.put(number + parent, b"", db=self._file.db(_PARENTS))
                for entry in entries_of(directory) if is_new else ():
                    if entry.kind == Kind.DIRECTORY:
                        todo.append((entry.digest, number, depth + 1))
                    elif entry.is_file:
                        held.append((entry.digest + number, b""))
                        if len(held) == _WRITTEN_AT_ONCE:
                            self._put(transaction, held)
            self._put(transaction, held)

    def places(
        self, content: Digest, entries_of: EntriesOf, is_root: Callable[[Digest], bool]
    ) -> Iterator[tuple[Digest, bytes]]:
        """Yield (root, path) of every file, or directory, with this digest below directories that are roots.

        There may be very many: take as many as you need.
        """
        if is_root(content):
            yield content, b""
        todo: list[tuple[Digest, bytes, int]] = []  # a directory, and the path in it
        for holder in self._holders(content):
            todo += [(holder, name, 1) for name in _names(entries_of, holder, content)]
        while todo:
            directory, path, depth = todo.pop()
            if is_root(directory):
                yield directory, path
            for holder in self._holders_of_directory(directory) if depth < DEPTH_MAX else ():
                todo += [(holder, name + b"/" + path, depth + 1) for name in _names(entries_of, holder, directory)]

    def renew(self) -> None:
        """Put an empty index in the place of a damaged one. Raises CacheUnusable."""
        self._file.renew()

    def _holders(self, content: Digest) -> list[Digest]:
        with self._file.read() as transaction:
            found = []
            cursor = transaction.cursor(db=self._file.db(_CONTENTS))
            if cursor.set_range(content):
                for key in cursor.iternext(values=False):
                    if not bytes(key).startswith(content):
                        break
                    found.append(self._directory(transaction, bytes(key)[-_U32.size :]))
        return found + self._holders_of_directory(content)

    def _holders_of_directory(self, directory: Digest) -> list[Digest]:
        with self._file.read() as transaction:
            number = transaction.get(directory, db=self._file.db(_NUMBERS))
            found: list[Digest] = []
            cursor = transaction.cursor(db=self._file.db(_PARENTS))
            if number is not None and cursor.set_range(bytes(number)):
                for key in cursor.iternext(values=False):
                    if not bytes(key).startswith(bytes(number)):
                        break
                    found.append(self._directory(transaction, bytes(key)[-_U32.size :]))
        return found

    def _directory(self, transaction: Any, number: bytes) -> Digest:
        return Digest(bytes(transaction.get(number, db=self._file.db(_DIRECTORIES))))

    def _number(self, transaction: Any, directory: Digest) -> tuple[bytes, bool]:
        """Return a directory's number, and whether it was given just now."""
        value = transaction.get(directory, db=self._file.db(_NUMBERS))
        if value is not None:
            return bytes(value), False
        number = _U32.pack(transaction.stat(self._file.db(_NUMBERS))["entries"])
        transaction.put(directory, number, db=self._file.db(_NUMBERS))
        transaction.put(number, directory, db=self._file.db(_DIRECTORIES))
        return number, True

    def _put(self, transaction: Any, held: list[tuple[bytes, bytes]]) -> None:
        transaction.cursor(db=self._file.db(_CONTENTS)).putmulti(sorted(held))
        held.clear()


def open_content_index(cache_dir: str) -> ContentIndex:
    """Open the index of contents below a store's cache directory."""
    path = os.path.join(cache_dir, "contents.lmdb")
    return ContentIndex(LmdbFile(path, version=CACHE_VERSION, databases=_DATABASES))


def _names(entries_of: EntriesOf, directory: Digest, wanted: Digest) -> list[bytes]:
    return [entry.name for entry in entries_of(directory) if entry.digest == wanted and entry.kind != Kind.SYMLINK]
