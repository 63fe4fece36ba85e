"""Cuts are those of docs/format/chunking.md, which is followed here step by step."""

import math
import re
from hashlib import md5
from pathlib import Path

import pytest
from blake3 import blake3

from vault.chunking.cut import cut
from vault.chunking.params import DEFAULT, ChunkingParams
from vault.errors import FormatError

PAGE = (Path(__file__).parents[2] / "docs" / "format" / "chunking.md").read_text()
DATA = blake3(b"vault cuts").digest(length=6_000_000)
GEAR = [int.from_bytes(md5(bytes([value]) * 64).digest()[:8], "big") for value in range(256)]
MASKS = {int(bits): int(mask, 16) for bits, mask in re.findall(r"\| (\d\d) \| `([0-9a-f]{16})`", PAGE)} | {
    11: 0xD90003530000
}


def cut_as_the_page_says(data: bytes, params: ChunkingParams) -> list[int]:
    """Return the lengths of the chunks."""
    bits = round(math.log2(params.avg_size))
    lengths = []
    at = 0
    while at < len(data):
        rest = len(data) - at
        size = min(rest, params.max_size)
        value = 0
        for position in range(params.min_size, size // 2 * 2):
            value = (2 * value + GEAR[data[at + position]]) % 2**64
            if not value & MASKS[bits + 1 if position < params.avg_size else bits - 1]:
                size = position
                break
        lengths.append(size)
        at += size
    return lengths


def lengths(data: bytes, params: ChunkingParams) -> list[int]:
    """Return the lengths of the chunks that the code makes."""
    places = cut(memoryview(data), params)
    assert [offset for offset, _ in places] == [sum(length for _, length in places[:index]) for index in range(len(places))]
    return [length for _, length in places]


def test_the_example() -> None:
    found = re.search(r"^```text chunk-lengths\n(.*?)^```", PAGE, re.M | re.S)
    assert found
    assert lengths(DATA, DEFAULT) == [int(length) for length in found[1].split()] == cut_as_the_page_says(DATA, DEFAULT)


@pytest.mark.parametrize(
    "sizes",
    [
        (4096, 5000, 6000),
        (4096, 8192, 32768),
        (65_536, 100_000, 200_000),
        (4096, 1 << 18, 1 << 20),
        (1 << 20, 4 << 20, 16 << 20),
    ],
)
def test_other_sizes(sizes: tuple[int, int, int]) -> None:
    params = ChunkingParams("fastcdc", *sizes)
    part = DATA[: 40 * sizes[1]]
    assert lengths(part, params) == cut_as_the_page_says(part, params)


@pytest.mark.parametrize("size", [0, 1, DEFAULT.min_size - 1, DEFAULT.min_size, DEFAULT.min_size + 1, DEFAULT.max_size + 1])
def test_ends(size: int) -> None:
    zeros = bytes(size)  # nowhere a reason to cut
    assert lengths(zeros, DEFAULT) == cut_as_the_page_says(zeros, DEFAULT)


@pytest.mark.parametrize(
    "sizes",
    [
        (4094, 8192, 16384),
        (4096, 4096, 8192),
        (4097, 8192, 16384),
        (2 << 20, 4 << 20, 8 << 20),
        (4096, 8 << 20, 16 << 20),
        (4096, 8192, 32 << 20),
    ],
)
def test_sizes_that_no_store_may_choose(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(FormatError):
        ChunkingParams("fastcdc", *sizes)
