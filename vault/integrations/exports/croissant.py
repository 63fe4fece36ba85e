"""A version of a dataset as Croissant 1.1, with a manifest of its files beside it.

Files are not listed one by one in the JSON-LD: there is a manifest, whose SHA-256 is stated, and sets of files by their
endings within it. A snapshot has no SHA-256 of its files, but BLAKE3: the manifest has that of each. Threads: none.
"""

import hashlib
import json
import mimetypes
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from vault.format.tree import Entry, Kind
from vault.repo.datasets import Version

CONFORMS_TO: Final = "http://mlcommons.org/croissant/1.1"
FILE_SETS_MAX: Final = 64  # endings that get a set of files of their own; the rest share one
_MANIFEST_TYPE: Final = "application/jsonl"
_OTHER: Final = ""
_TYPES: Final = mimetypes.MimeTypes()  # not what this machine's files say: equal versions have equal documents
_TERMS: Final = (  # of Croissant's own vocabulary, all of which its context names, used or not
    "arrayShape citeAs column containedIn equivalentProperty extract field fileObject fileProperty fileSet format includes "
    "isArray isLiveDataset jsonPath key md5 parentField path recordSet references regex repeated replace samplingRate "
    "separator source subField transform"
).split()
_CONTEXT: Final = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "name": {"@container": "@language"},
    "prov": "http://www.w3.org/ns/prov#",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
    **{term: f"cr:{term}" for term in _TERMS},
}


@dataclass(slots=True)
class Manifest:
    """What was written of a manifest so far."""

    name: str  # of the file, beside the document
    size: int = 0
    files: int = 0
    endings: Counter[str] = field(default_factory=Counter)
    _hash: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    @property
    def sha256(self) -> str:
        """The SHA-256 of what was written."""
        return self._hash.hexdigest()

    def lines(self, entries: Iterable[tuple[bytes, Entry]]) -> Iterator[bytes]:
        """Yield a line for each file and symlink, and count it. To be iterated to the end."""
        for path, entry in entries:
            if entry.kind == Kind.DIRECTORY:
                continue
            text = path.decode(errors="surrogateescape")
            record: dict[str, object] = {"path": text, "kind": entry.kind.name.lower()}
            if entry.kind == Kind.SYMLINK:
                record["target"] = entry.target.decode(errors="surrogateescape")
            else:
                record |= {"bytes": entry.size, "blake3": entry.digest.hex()}
                name, dot, ending = text.rpartition("/")[2].rpartition(".")
                self.endings[ending if name and dot and ending.isascii() and ending.isalnum() else _OTHER] += 1
                self.files += 1
            line = json.dumps(record, sort_keys=True).encode() + b"\n"
            self._hash.update(line)
            self.size += len(line)
            yield line


def encode(dataset: str, version: Version, manifest: Manifest, *, license_url: str = "", url: str = "") -> bytes:
    """Return the document.

    Args:
        dataset: its name.
        version: which.
        manifest: of all its files, written.
        license_url: of the data; the store does not know it.
        url: where it is published; a URN of the snapshot if empty.
    """
    snapshot = f"urn:vaultfs:b3:{version.snapshot.hex()}"
    document: dict[str, object] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": dataset,
        "description": version.message or f"Version {version.number} of {dataset}.",
        "url": url or snapshot,
        "version": f"{version.number}.0.0",
        "identifier": snapshot,
        "datePublished": version.time[:10],
        "creator": {"@type": "Person", "name": version.author},
        "isLiveDataset": False,
        "citeAs": f"{dataset}, version {version.number}, {snapshot}",
        "distribution": [_manifest(dataset, version, manifest), *_file_sets(manifest.endings)],
    }
    if license_url:
        document["license"] = license_url
    if version.parents:
        document["prov:wasDerivedFrom"] = [{"@id": f"urn:vaultfs:b3:{parent.hex()}"} for parent in version.parents]
    if version.run is not None:
        document["prov:wasGeneratedBy"] = {"@id": f"urn:vaultfs:run/{version.run}"}
    return json.dumps(document, sort_keys=True, indent=1).encode() + b"\n"


def _manifest(dataset: str, version: Version, manifest: Manifest) -> dict[str, object]:
    return {
        "@type": "cr:FileObject",
        "@id": "manifest",
        "name": manifest.name,
        "description": f"All files of {dataset}@v{version.number}, below the folder of that name: path, bytes, BLAKE3.",
        "contentUrl": manifest.name,
        "contentSize": f"{manifest.size} B",
        "encodingFormat": _MANIFEST_TYPE,
        "sha256": manifest.sha256,
    }


def _file_sets(endings: Counter[str]) -> Iterator[dict[str, object]]:
    named = [ending for ending, _ in endings.most_common() if ending != _OTHER][:FILE_SETS_MAX]
    for ending in sorted(named):
        kind = _TYPES.guess_type(f"x.{ending.lower()}")[0] or "application/octet-stream"
        count = endings[ending]
        yield {
            "@type": "cr:FileSet",
            "@id": f"files-{ending}",
            "name": f"files-{ending}",
            "description": f"{count:,} {'file' if count == 1 else 'files'}.",
            "containedIn": {"@id": "manifest"},
            "encodingFormat": kind,
            "includes": f"**/*.{ending}",
        }
