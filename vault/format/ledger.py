"""What the ledger says of journals: leaves, batches of them, and proofs for others (docs/format/ledger.md).

The tree over the leaves is in tlog.py, checkpoints are in note.py. Does not read stores. Threads: pure.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec

from vault.errors import FormatError, UnsupportedVersion
from vault.format.journal import NUMBER_MAX, Count, HexDigest, Number, entry_key
from vault.format.note import NOTE_SIZE_MAX
from vault.format.tlog import PROOF_HASHES_MAX, TREE_SIZE_MAX

LEDGER: Final = "ledger/"
BATCHES: Final = "ledger/batches/"
CHECKPOINTS: Final = "ledger/checkpoints/"
KEYS: Final = "ledger/keys/"

LEDGER_VERSION: Final = 1
BATCH_LEAVES_MAX: Final = 65_536
BATCH_SIZE_MAX: Final = 48 << 20
PROOF_SIZE_MAX: Final = 16 << 20
PROVEN_MAX: Final = 65_536  # entries that one proof names

_NUMBERED = re.compile(r"\d{10}\Z")
_JOURNAL = r"(?:datasets|runs)/[A-Za-z0-9._=+@/-]{1,500}"
_LEAF = re.compile(rf"({_JOURNAL}) ([1-9][0-9]{{0,9}}) ([0-9a-f]{{64}})\n\Z", re.ASCII)
_HEADER = re.compile(
    r"vaultfs-ledger-batch/(\d{1,9}) (\d{1,16}) (\d{1,16}) (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z)\n", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Leaf:
    """One entry of one journal, as the ledger names it."""

    journal: str  # key prefix of the journal
    n: int  # number of the entry
    digest: str  # BLAKE3 of its bytes, 64 hex digits

    @property
    def key(self) -> str:
        """Where the entry lies."""
        return entry_key(self.journal, self.n)

    def encode(self) -> bytes:
        """Return the bytes that are hashed."""
        return f"{self.journal} {self.n} {self.digest}\n".encode()


@dataclass(frozen=True, slots=True)
class Batch:
    """The leaves that one checkpoint adds."""

    number: int  # that of the checkpoint, from 1
    first: int  # leaves before these
    time: str  # when, by the clock of who made it
    leaves: tuple[Leaf, ...]


class ProvenEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One entry, and what proves that it is in the ledger."""

    journal: Annotated[str, msgspec.Meta(pattern=rf"^{_JOURNAL}\Z")]
    n: Number
    digest: HexDigest
    index: Annotated[int, msgspec.Meta(ge=0, le=TREE_SIZE_MAX)]  # of its leaf
    proof: Annotated[tuple[HexDigest, ...], msgspec.Meta(max_length=PROOF_HASHES_MAX)]  # the leaf's sibling first

    @property
    def leaf(self) -> Leaf:
        """The leaf."""
        return Leaf(self.journal, self.n, self.digest)


class Consistency(msgspec.Struct, frozen=True, kw_only=True):
    """What proves that the log began with an earlier checkpoint's tree."""

    size: Count
    root: HexDigest
    proof: Annotated[tuple[HexDigest, ...], msgspec.Meta(max_length=PROOF_HASHES_MAX + 1)]


class LedgerProof(msgspec.Struct, frozen=True, kw_only=True):
    """What proves, to somebody without the store, that entries are in its ledger."""

    v: Annotated[int, msgspec.Meta(ge=1)] = LEDGER_VERSION
    checkpoint: Annotated[str, msgspec.Meta(max_length=NOTE_SIZE_MAX)]  # a signed note
    key: Annotated[str, msgspec.Meta(max_length=1024)]  # that it can be verified with; a claim like the rest
    entries: Annotated[tuple[ProvenEntry, ...], msgspec.Meta(max_length=PROVEN_MAX)]
    consistency: Consistency | None = None


class _Header(msgspec.Struct, frozen=True):
    v: Annotated[int, msgspec.Meta(ge=1)]


def batch_key(number: int) -> str:
    """Return the key of a batch."""
    return f"{BATCHES}{number:010d}"


def checkpoint_key(number: int) -> str:
    """Return the key of a checkpoint."""
    return f"{CHECKPOINTS}{number:010d}"


def numbered(key: str, prefix: str) -> int | None:
    """Return the number in the key of a batch or a checkpoint; None for any other key."""
    name = key.removeprefix(prefix)
    return int(name) if key.startswith(prefix) and _NUMBERED.match(name) else None


def origin_of(store_id: str) -> str:
    """Return the first line of a store's checkpoints, which is the name of its keys, too."""
    return f"vaultfs/{store_id}"


def decode_leaf(data: bytes) -> Leaf:
    """Return what a leaf says. Raises FormatError."""
    match = _LEAF.match(data.decode("ascii", "replace"))
    if match is None or int(match[2]) > NUMBER_MAX or ".." in match[1]:
        raise FormatError("leaf of the ledger", f"{data[:80]!r} names no entry of a journal")
    return Leaf(match[1], int(match[2]), match[3])


def encode_batch(batch: Batch) -> bytes:
    """Return the bytes of a batch."""
    head = f"vaultfs-ledger-batch/{LEDGER_VERSION} {batch.number} {batch.first} {batch.time}\n".encode()
    return head + b"".join(leaf.encode() for leaf in batch.leaves)


def decode_batch(data: bytes) -> Batch:
    """Return the batch that data hold.

    Raises:
        FormatError: it is none.
        UnsupportedVersion: a newer vault wrote it.
    """
    if len(data) > BATCH_SIZE_MAX:
        raise FormatError("batch of the ledger", f"it has more than {BATCH_SIZE_MAX:,} bytes")
    head, *lines = data.splitlines(keepends=True) or [b""]
    match = _HEADER.match(head.decode("ascii", "replace"))
    if match is None:
        raise FormatError("batch of the ledger", "its first line is not that of one")
    if int(match[1]) > LEDGER_VERSION:
        raise UnsupportedVersion("batch of the ledger", int(match[1]), LEDGER_VERSION)
    if not 1 <= len(lines) <= BATCH_LEAVES_MAX:
        raise FormatError("batch of the ledger", f"it has {len(lines):,} leaves; 1 to {BATCH_LEAVES_MAX:,} are allowed")
    return Batch(int(match[2]), int(match[3]), match[4], tuple(map(decode_leaf, lines)))


def encode_proof(proof: LedgerProof) -> bytes:
    """Return the bytes of a proof."""
    return msgspec.json.format(msgspec.json.encode(proof, order="sorted"), indent=1) + b"\n"


def decode_proof(data: bytes) -> LedgerProof:
    """Return the proof that data hold; what it proves is another matter.

    Raises:
        FormatError: it is none.
        UnsupportedVersion: a newer vault wrote it.
    """
    if len(data) > PROOF_SIZE_MAX:
        raise FormatError("proof of the ledger", f"it has more than {PROOF_SIZE_MAX:,} bytes")
    try:
        version = msgspec.json.decode(data, type=_Header).v
        if version > LEDGER_VERSION:
            raise UnsupportedVersion("proof of the ledger", version, LEDGER_VERSION)
        return msgspec.json.decode(data, type=LedgerProof)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise FormatError("proof of the ledger", str(error)) from error


def unhex(hashes: Sequence[str]) -> tuple[bytes, ...]:
    """Return the hashes of a proof as bytes."""
    return tuple(map(bytes.fromhex, hashes))
