"""Merkle trees and proofs: known answers of Certificate Transparency, and every proof of every small tree."""

import hashlib

import pytest

from vault.errors import FormatError
from vault.format.tlog import (
    EMPTY_ROOT,
    TreeBuilder,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    range_hash,
    subtree_of_tile,
    tile_name,
    tile_of_subtree,
    verify_consistency,
    verify_inclusion,
)

# The eight leaves that implementations of RFC 6962 test themselves with, and what comes out.
LEAVES = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
INCLUSION = [
    (0, 8, ["96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"]),
    (5, 8, ["bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"]),
    (2, 3, ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"]),
    (1, 5, ["6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"]),
]  # fmt: skip
CONSISTENCY = [
    (1, 1, []),
    (1, 8, INCLUSION[0][2]),
    (6, 8, ["0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"]),
    (2, 5, ["5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"]),
]  # fmt: skip


def reader(leaves: list[bytes]):
    def read(height: int, index: int) -> bytes:
        if height == 0:
            return leaf_hash(leaves[index])
        return node_hash(read(height - 1, 2 * index), read(height - 1, 2 * index + 1))

    return read


def unhex(texts) -> tuple[bytes, ...]:
    return tuple(map(bytes.fromhex, texts))


def test_roots_are_the_known_ones() -> None:
    builder = TreeBuilder()
    assert builder.root() == EMPTY_ROOT == hashlib.sha256(b"").digest()
    for size, root in enumerate(ROOTS, 1):
        assert list(builder.append(LEAVES[size - 1])) == []
        assert builder.root().hex() == root == range_hash(0, size, reader(LEAVES)).hex()


@pytest.mark.parametrize(("index", "size", "proof"), INCLUSION)
def test_inclusion_proofs_are_the_known_ones(index, size, proof) -> None:
    assert inclusion_proof(index, size, reader(LEAVES)) == unhex(proof)
    assert verify_inclusion(leaf_hash(LEAVES[index]), index, size, unhex(proof), bytes.fromhex(ROOTS[size - 1]))


@pytest.mark.parametrize(("old", "size", "proof"), CONSISTENCY)
def test_consistency_proofs_are_the_known_ones(old, size, proof) -> None:
    assert consistency_proof(old, size, reader(LEAVES)) == unhex(proof)
    assert verify_consistency(old, bytes.fromhex(ROOTS[old - 1]), size, bytes.fromhex(ROOTS[size - 1]), unhex(proof))


def test_every_proof_of_every_small_tree_holds_and_no_other() -> None:
    leaves = [b"leaf %d" % number for number in range(20)]
    read = reader(leaves)
    roots = [range_hash(0, size, read) for size in range(21)]
    for size in range(1, 21):
        for index in range(size):
            proof = inclusion_proof(index, size, read)
            leaf = leaf_hash(leaves[index])
            assert verify_inclusion(leaf, index, size, proof, roots[size])
            assert not verify_inclusion(leaf, index, size, proof, roots[size - 1])
            assert not verify_inclusion(leaf, index, size, (*proof, leaf), roots[size])
            assert not verify_inclusion(leaf_hash(b"other"), index, size, proof, roots[size])
            assert not any(
                verify_inclusion(leaf, other, size, proof, roots[size]) for other in range(size) if other != index
            )
            for number in range(len(proof)):
                assert not verify_inclusion(leaf, index, size, proof[:number] + proof[number + 1 :], roots[size])
        for old in range(1, size + 1):
            proof = consistency_proof(old, size, read)
            assert verify_consistency(old, roots[old], size, roots[size], proof)
            assert not verify_consistency(old, roots[old - 1], size, roots[size], proof)
            assert not verify_consistency(old, roots[old], size, roots[old - 1], proof)
            assert not verify_consistency(old, roots[old], size, roots[size], (*proof, roots[1]))
            for number in range(len(proof)):
                changed = (*proof[:number], bytes(32), *proof[number + 1 :])
                assert not verify_consistency(old, roots[old], size, roots[size], changed)
    assert not verify_inclusion(roots[1], -1, 1, (), roots[1])
    assert not verify_consistency(3, roots[3], 2, roots[2], ())


def test_tiles_are_called_as_the_specification_says() -> None:
    assert tile_name(0, 1234067) == "tile/0/x001/x234/067"
    assert tile_name(2, 5, 17) == "tile/2/005.p/17"
    assert tile_name("entries", 0, 256) == "tile/entries/000"


def test_a_tree_of_70000_has_the_tiles_of_the_specification() -> None:
    """tlog-tiles: 273 full ones of level 0, a partial one of 112, a full one of level 1, 17 more, and one of level 2."""
    builder = TreeBuilder()
    tiles = {}
    for number in range(70_000):
        tiles.update(builder.append(b"%d" % number))
    tiles.update(builder.partial_tiles())
    hashes = {name: len(data) // 32 for name, data in tiles.items() if "entries" not in name}
    assert sum(name.startswith("tile/0/") and width == 256 for name, width in hashes.items()) == 273
    partial = {name: width for name, width in hashes.items() if width < 256}
    assert partial == {"tile/0/273.p/112": 112, "tile/1/001.p/17": 17, "tile/2/000.p/1": 1}
    assert hashes["tile/1/000"] == 256 and len(hashes) == 277
    assert tiles["tile/entries/273.p/112"].startswith(b"\x00\x0569888")

    def read(height: int, index: int) -> bytes:
        name, first, last = tile_of_subtree(height, index, 70_000)
        return subtree_of_tile(tiles[name], first, last)

    root = builder.root()
    assert range_hash(0, 70_000, read) == root
    for index in (0, 255, 256, 65_535, 65_536, 69_999):
        proof = inclusion_proof(index, 70_000, read)
        assert verify_inclusion(leaf_hash(b"%d" % index), index, 70_000, proof, root)


def test_a_tile_that_is_too_short_is_refused() -> None:
    with pytest.raises(FormatError, match="too few"):
        subtree_of_tile(bytes(32), 0, 2)
