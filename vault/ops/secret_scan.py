"""Looks for secrets in what is about to be published: files of a snapshot, and texts. Tells places, never the secrets.

Not a guarantee: a password that is a plain word cannot be told from a word. Binary files are looked at by name alone.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from vault.capture.redaction import secret_places
from vault.format.tree import Entry
from vault.ids import Digest
from vault.repo.content import read_content
from vault.repo.objects import ObjectReader
from vault.repo.trees import TreeReader

FINDINGS_MAX: Final = 1000
_WINDOW: Final = 1 << 20
_OVERLAP: Final = 4 << 10  # longer than any secret that is looked for
_TELLING_NAMES: Final = frozenset(
    b".env .netrc .pypirc .npmrc .git-credentials .htpasswd id_rsa id_dsa id_ecdsa id_ed25519 credentials.json".split()
)


class SecretFound(NamedTuple):
    """A place that may hold a secret."""

    where: str  # a path in the snapshot, or a part of the record
    line: int  # from 1; 0 where there are no lines
    what: str


def scan_tree(objects: ObjectReader, name: str, snapshot: Digest) -> Iterator[SecretFound]:
    """Yield what looks like a secret in the files of a snapshot."""
    for path, entry in TreeReader(objects).walk(snapshot):
        if not entry.is_file:
            continue
        where = f"{name}/{path.decode(errors='backslashreplace')}"
        if entry.name in _TELLING_NAMES:
            yield SecretFound(where, 0, "a file that usually holds secrets")
        yield from _scan_file(objects, where, entry)


def scan_text(where: str, text: str) -> Iterator[SecretFound]:
    """Yield what looks like a secret in a text that has no lines."""
    for _, what in secret_places(text):
        yield SecretFound(where, 0, what)


def _scan_file(objects: ObjectReader, where: str, entry: Entry) -> Iterator[SecretFound]:
    """Go through a file in windows that overlap, so that memory is bounded and no border hides anything."""
    found: set[SecretFound] = set()
    kept, first_line, is_first = "", 1, True
    for piece in read_content(objects, entry):
        data = bytes(piece)
        if is_first and b"\0" in data[:_OVERLAP]:
            return
        is_first = False
        for at in range(0, len(data), _WINDOW):
            text = kept + data[at : at + _WINDOW].decode("latin-1")
            for offset, what in secret_places(text):
                secret = SecretFound(where, first_line + text.count("\n", 0, offset), what)
                if secret not in found and len(found) < FINDINGS_MAX:
                    found.add(secret)
                    yield secret
            kept = text[-_OVERLAP:]
            first_line += text.count("\n", 0, len(text) - len(kept))
