"""The Merkle tree of the ledger: hashes and proofs of RFC 6962, tiles of C2SP (docs/format/ledger.md, section 3).

Does not know what leaves say, who signed a root, or where tiles lie. Threads: pure; a TreeBuilder belongs to one thread.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from vault.errors import FormatError

HASH_SIZE: Final = 32
TILE_WIDTH: Final = 256
TREE_SIZE_MAX: Final = 1 << 48
PROOF_HASHES_MAX: Final = 64  # of an inclusion proof; a consistency proof has one more at most
_TILE_BITS: Final = 8

EMPTY_ROOT: Final = hashlib.sha256(b"").digest()

ReadSubtree = Callable[[int, int], bytes]  # (height, index): hash of leaves [index << height, (index + 1) << height)


def leaf_hash(data: bytes) -> bytes:
    """Return the hash of a leaf."""
    return hashlib.sha256(b"\0" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of what two subtrees hold."""
    return hashlib.sha256(b"\1" + left + right).digest()


def range_hash(start: int, end: int, read: ReadSubtree) -> bytes:
    """Return the tree hash of leaves [start, end), as a subtree of RFC 6962's tree has it; of none: EMPTY_ROOT."""
    count = end - start
    if count == 0:
        return EMPTY_ROOT
    if count & (count - 1) == 0:
        height = count.bit_length() - 1
        return read(height, start >> height)
    middle = start + _left_size(count)
    return node_hash(range_hash(start, middle, read), range_hash(middle, end, read))


def inclusion_proof(index: int, size: int, read: ReadSubtree) -> tuple[bytes, ...]:
    """Return what proves that leaf `index` is in the tree of the first `size` leaves; the leaf's sibling comes first."""
    start, end = 0, size
    proof: list[bytes] = []
    while end - start > 1:
        middle = start + _left_size(end - start)
        if index < middle:
            proof.append(range_hash(middle, end, read))
            end = middle
        else:
            proof.append(range_hash(start, middle, read))
            start = middle
    return tuple(reversed(proof))


def consistency_proof(old_size: int, size: int, read: ReadSubtree) -> tuple[bytes, ...]:
    """Return what proves that the tree of `size` leaves begins with the tree of `old_size` leaves."""
    if old_size in (0, size):
        return ()
    start, end = 0, size
    proof: list[bytes] = []
    while end != old_size:
        middle = start + _left_size(end - start)
        if old_size <= middle:
            proof.append(range_hash(middle, end, read))
            end = middle
        else:
            proof.append(range_hash(start, middle, read))
            start = middle
    if start > 0:  # else the verifier has this hash: it is the old root
        proof.append(range_hash(start, end, read))
    return tuple(reversed(proof))


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Tell whether the proof leads from a leaf's hash to the root (RFC 9162, section 2.1.3.2)."""
    if not 0 <= index < size or len(proof) > PROOF_HASHES_MAX:
        return False
    node, last = index, size - 1
    found = leaf
    for sibling in proof:
        if last == 0:
            return False
        if node & 1 or node == last:
            found = node_hash(sibling, found)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            found = node_hash(found, sibling)
        node, last = node >> 1, last >> 1
    return last == 0 and found == root


def verify_consistency(old_size: int, old_root: bytes, size: int, root: bytes, proof: Sequence[bytes]) -> bool:
    """Tell whether the proof shows that the new tree begins with the old one (RFC 9162, section 2.1.4.2)."""
    if not 0 <= old_size <= size or len(proof) > PROOF_HASHES_MAX + 1:
        return False
    if old_size == size:
        return not proof and old_root == root
    if old_size == 0:
        return not proof and old_root == EMPTY_ROOT
    hashes = list(proof)
    if old_size & (old_size - 1) == 0:
        hashes.insert(0, old_root)
    if not hashes:
        return False
    node, last = old_size - 1, size - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    old_found = found = hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            return False
        if node & 1 or node == last:
            old_found = node_hash(sibling, old_found)
            found = node_hash(sibling, found)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            found = node_hash(found, sibling)
        node, last = node >> 1, last >> 1
    return last == 0 and old_found == old_root and found == root


def tile_name(level: int | str, index: int, width: int = TILE_WIDTH) -> str:
    """Return where a tile lies below the log: `tile/0/x001/x234/067`, `tile/entries/000.p/17`."""
    digits = f"{index % 1000:03d}"
    while index >= 1000:
        index //= 1000
        digits = f"x{index % 1000:03d}/{digits}"
    return f"tile/{level}/{digits}" + (f".p/{width}" if width < TILE_WIDTH else "")


def tile_of_subtree(height: int, index: int, size: int) -> tuple[str, int, int]:
    """Return (tile, first, last): the hashes [first, last) of that tile in a tree of this size make up a full subtree."""
    level, height_in_tile = divmod(height, _TILE_BITS)
    first = index << height_in_tile
    number, offset = divmod(first, TILE_WIDTH)
    width = min((size >> (level * _TILE_BITS)) - number * TILE_WIDTH, TILE_WIDTH)
    return tile_name(level, number, width), offset, offset + (1 << height_in_tile)


def subtree_of_tile(tile: bytes, first: int, last: int) -> bytes:
    """Return the hash of the full subtree that hashes [first, last) of a tile are the leaves of. Raises FormatError."""
    if last * HASH_SIZE > len(tile):
        raise FormatError("tile of the ledger", f"it has {len(tile)} bytes, too few for {last} hashes")
    return _full([tile[number * HASH_SIZE : (number + 1) * HASH_SIZE] for number in range(first, last)])


class TreeBuilder:
    """A tree that grows by leaves, and the tiles that it fills. Its memory is a tile for each level."""

    def __init__(self) -> None:
        """Begin with an empty tree."""
        self.size = 0
        self._levels: list[list[bytes]] = []  # the hashes of the tile of each level that is not full yet
        self._bundle: list[bytes] = []  # leaves of the bundle that is not full yet

    def append(self, data: bytes) -> Iterator[tuple[str, bytes]]:
        """Add a leaf; yield (name, bytes) of each tile and bundle that it fills. To be iterated to the end."""
        self._bundle.append(data)
        self.size += 1
        if len(self._bundle) == TILE_WIDTH:
            yield tile_name("entries", self.size // TILE_WIDTH - 1), _bundle(self._bundle)
            self._bundle.clear()
        node, level, count = leaf_hash(data), 0, self.size
        while True:
            if level == len(self._levels):
                self._levels.append([])
            tile = self._levels[level]
            tile.append(node)
            if len(tile) < TILE_WIDTH:
                return
            count //= TILE_WIDTH
            yield tile_name(level, count - 1), b"".join(tile)
            node = _full(tile)
            tile.clear()
            level += 1

    def partial_tiles(self) -> Iterator[tuple[str, bytes]]:
        """Yield (name, bytes) of the tiles and the bundle that are not full at this size."""
        for level, tile in enumerate(self._levels):
            if tile:
                number = self.size >> (_TILE_BITS * (level + 1))
                yield tile_name(level, number, len(tile)), b"".join(tile)
        if self._bundle:
            yield tile_name("entries", self.size // TILE_WIDTH, len(self._bundle)), _bundle(self._bundle)

    def root(self) -> bytes:
        """Return the hash of the tree."""
        found = b""
        for tile in self._levels:
            end = len(tile)
            while end:  # the smallest full subtree is the rightmost
                count = end & -end
                node = _full(tile[end - count : end])
                found = node_hash(node, found) if found else node
                end -= count
        return found or EMPTY_ROOT


def _left_size(count: int) -> int:
    """Return the largest power of two that is less than count."""
    return 1 << ((count - 1).bit_length() - 1)


def _full(hashes: Sequence[bytes]) -> bytes:
    """Return the hash of a full subtree, its number of leaves being a power of two."""
    row = list(hashes)
    while len(row) > 1:
        row = [node_hash(row[number], row[number + 1]) for number in range(0, len(row), 2)]
    return row[0]


def _bundle(leaves: Sequence[bytes]) -> bytes:
    return b"".join(len(leaf).to_bytes(2, "big") + leaf for leaf in leaves)
