"""Where everything lies in a store: key <-> what it names (docs/format/overview.md, section 2). Pure."""

from functools import lru_cache
from typing import Final

from vault.errors import InvalidRef
from vault.ids import Digest, parse_digest

CONFIG_KEY: Final = "vault.json"
PACKS: Final = "packs/"
WHOLE: Final = "whole/"
MAPS: Final = "maps/"
DATASETS: Final = "datasets/"
RUNS: Final = "runs/"
BUNDLE_KEY: Final = "bundle.json"  # in bundles alone
PARTIAL_KEY: Final = "opened-only"  # in bundles that leave out files which their run did not open


@lru_cache(maxsize=256)  # asked for with every object that is read
def pack_key(pack: Digest) -> str:
    """Return the key of a pack."""
    text = pack.hex()
    return f"{PACKS}{text[:2]}/{text}.pack"


def pack_index_key(pack: Digest) -> str:
    """Return the key of the index of a pack."""
    text = pack.hex()
    return f"{PACKS}{text[:2]}/{text}.idx"


def whole_key(file: Digest) -> str:
    """Return the key of a file that is stored as itself."""
    text = file.hex()
    return f"{WHOLE}{text[:2]}/{text}"


def whole_index_key(file: Digest) -> str:
    """Return the key of the chunk table of a whole file."""
    return f"{whole_key(file)}.idx"


def map_key(snapshot: Digest) -> str:
    """Return the key of the map of a snapshot."""
    return f"{MAPS}{snapshot.hex()}.map"


def index_digest(key: str) -> Digest | None:
    """Return what a key below packs/ or whole/ indexes, or None if it is no index."""
    if not key.endswith(".idx"):
        return None
    try:
        return parse_digest(key.rsplit("/", 1)[-1].removesuffix(".idx"))
    except InvalidRef:
        return None
