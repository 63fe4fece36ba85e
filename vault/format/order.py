"""The order in which files of a snapshot were first opened, as a text in a journal entry (docs/format/runs.md, section 10).

Entry numbers, each at most once, as differences from the one before, stored byte by byte: the lowest bytes of all of them
first. A pass in the order of the tree is then a row of ones, and a shuffled one costs little more than its entropy.
The content is canonical: equal orders have equal ones. Threads: pure.
"""

import sys
from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from vault.errors import FormatError, UnsupportedVersion
from vault.format.text_payload import decode_payload, encode_payload

VERSION: Final = 1
OPENS_MAX: Final = 1 << 20  # in one text; a longer order goes on in the next entry
TEXT_LENGTH_MAX: Final = 8 << 20
ENTRIES_TOTAL_MAX: Final = 1 << 32
_HEAD_SIZE: Final = 6  # version, width, count
_ITEM_SIZE: Final = 4
_PAYLOAD_SIZE_MAX: Final = _HEAD_SIZE + _ITEM_SIZE * OPENS_MAX


def encode_order(numbers: Sequence[int], entries_total: int) -> str:
    """Return the text that stands for an order.

    Args:
        numbers: entry numbers in the order in which they were first opened.
        entries_total: of the snapshot.

    Raises:
        FormatError: there are none or too many, a number comes twice, or the snapshot has no such entry.
    """
    _check(numbers, entries_total)
    width = _width(entries_total)
    mask = (1 << 8 * width) - 1
    steps = array("I", [(number - before) & mask for number, before in zip(numbers, (0, *numbers[:-1]), strict=True)])
    stored = _little_endian(steps).tobytes()
    planes = b"".join(stored[plane::_ITEM_SIZE] for plane in range(width))
    return encode_payload(bytes((VERSION, width)) + len(numbers).to_bytes(4, "little") + planes)


def decode_order(text: str, entries_total: int) -> "array[int]":
    """Return the entry numbers that a text stands for, in the order in which they were first opened.

    Args:
        text: what `encode_order` returned.
        entries_total: of the snapshot; no number reaches further.

    Raises:
        FormatError: it is no order, or of another snapshot.
        UnsupportedVersion: a newer vault wrote it.
    """
    payload = decode_payload(text, "order of opens", length_max=TEXT_LENGTH_MAX, size_max=_PAYLOAD_SIZE_MAX)
    if not payload or payload[0] == 0:
        raise FormatError("order of opens", "it has no version")
    if payload[0] > VERSION:
        raise UnsupportedVersion("order of opens", payload[0], VERSION)
    count = int.from_bytes(payload[2:_HEAD_SIZE], "little")
    width = payload[1] if len(payload) >= _HEAD_SIZE else 0
    if not 0 < entries_total <= ENTRIES_TOTAL_MAX or width != _width(entries_total):
        raise FormatError("order of opens", f"numbers of {width} bytes, in a snapshot of {entries_total} entries")
    if len(payload) != _HEAD_SIZE + width * count:
        raise FormatError("order of opens", f"{len(payload)} bytes for {count} numbers of {width}")
    stored = bytearray(_ITEM_SIZE * count)
    for plane in range(width):
        stored[plane::_ITEM_SIZE] = payload[_HEAD_SIZE + plane * count : _HEAD_SIZE + (plane + 1) * count]
    steps = _little_endian(array("I", bytes(stored)))
    mask = (1 << 8 * width) - 1
    numbers = array("I", accumulate(steps, lambda before, step: (before + step) & mask))
    _check(numbers, entries_total)
    return numbers


def _width(entries_total: int) -> int:
    """Return how many bytes a number of a snapshot takes."""
    return max(-(-(entries_total - 1).bit_length() // 8), 1)


def _check(numbers: Sequence[int], entries_total: int) -> None:
    if not 0 < len(numbers) <= OPENS_MAX:
        raise FormatError("order of opens", f"{len(numbers)} numbers; 1 to {OPENS_MAX} fit in one entry")
    if not 0 <= min(numbers) <= max(numbers) < entries_total <= ENTRIES_TOTAL_MAX:
        raise FormatError("order of opens", f"it reaches to entry {max(numbers)} of {entries_total}")
    if len(set(numbers)) != len(numbers):
        raise FormatError("order of opens", "an entry comes twice")


def _little_endian(items: "array[int]") -> "array[int]":
    if sys.byteorder == "big":
        items.byteswap()
    return items
