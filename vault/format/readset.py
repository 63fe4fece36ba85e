"""Which entries of a snapshot were opened, and how often: segments of neighbours (docs/format/runs.md, section 4).

A read set is a list of segments: `length` entries from `start` on, each opened `times` times (more). The encoding is
canonical: equal sets give equal payloads. A full epoch in any order is one segment. Threads: pure.
"""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from vault.errors import FormatError, UnsupportedVersion
from vault.format.text_payload import decode_payload, encode_payload

VERSION: Final = 1
SEGMENTS_MAX: Final = 1 << 20
PAYLOAD_SIZE_MAX: Final = 16 << 20
TEXT_LENGTH_MAX: Final = 15 << 20
ENTRIES_MAX: Final = 1 << 40
TIMES_MAX: Final = 1 << 40
_VARINT_BYTES_MAX: Final = 6  # 42 bits


class Segment(NamedTuple):
    """`length` entries from number `start` on that were each opened `times` times."""

    start: int
    length: int
    times: int

    @property
    def end(self) -> int:
        """The number behind the last entry."""
        return self.start + self.length


def join_segments(segments: Iterable[Segment]) -> list[Segment]:
    """Join ascending segments where one goes on with the count of the one before: the canonical form."""
    joined: list[Segment] = []
    for segment in segments:
        if joined and joined[-1].end == segment.start and joined[-1].times == segment.times:
            joined[-1] = Segment(joined[-1].start, joined[-1].length + segment.length, segment.times)
        else:
            joined.append(segment)
    return joined


def encode_readset(segments: Sequence[Segment]) -> str:
    """Return the text that stands for a read set in a journal entry.

    Raises:
        FormatError: segments are not ascending, not joined where they could be, empty, or too many.
    """
    if len(segments) > SEGMENTS_MAX:
        raise FormatError("read set", f"{len(segments)} segments; at most {SEGMENTS_MAX} fit in one entry")
    payload = bytearray((VERSION,))
    _put(payload, len(segments))
    _check(segments)
    end = 0
    for segment in segments:
        _put(payload, segment.start - end)
        end = segment.end
    for segment in segments:
        _put(payload, segment.length - 1)
    for segment in segments:
        _put(payload, segment.times - 1)
    return encode_payload(payload)


def decode_readset(text: str, entries_total: int) -> list[Segment]:
    """Return the segments that text stands for.

    Args:
        text: what `encode_readset` returned.
        entries_total: of the snapshot; no segment reaches further.

    Raises:
        FormatError: it is no read set, or not in canonical form, or of another snapshot.
        UnsupportedVersion: a newer vault wrote it.
    """
    payload = decode_payload(text, "read set", length_max=TEXT_LENGTH_MAX, size_max=PAYLOAD_SIZE_MAX)
    if not payload or payload[0] == 0:
        raise FormatError("read set", "it has no version")
    if payload[0] > VERSION:
        raise UnsupportedVersion("read set", payload[0], VERSION)
    total, at = _get(payload, 1)
    if total > SEGMENTS_MAX or 3 * total > len(payload) - at:
        raise FormatError("read set", f"{total} segments in {len(payload)} bytes")
    gaps, at = _column(payload, at, total)
    lengths, at = _column(payload, at, total)
    counts, at = _column(payload, at, total)
    if at != len(payload):
        raise FormatError("read set", "bytes are left over")
    segments = []
    end = 0
    for gap, length, count in zip(gaps, lengths, counts, strict=True):
        start = end + gap
        end = start + length + 1
        segments.append(Segment(start, length + 1, count + 1))
    if end > entries_total:
        raise FormatError("read set", f"it reaches to entry {end} of {entries_total}")
    _check(segments)
    return segments


def opened_in(segments: Iterable[Segment]) -> int:
    """Return how many entries segments cover."""
    return sum(segment.length for segment in segments)


def _check(segments: Sequence[Segment]) -> None:
    end = times = 0
    for segment in segments:
        if segment.length < 1 or not 1 <= segment.times <= TIMES_MAX or segment.end > ENTRIES_MAX:
            raise FormatError("read set", f"{segment} is empty or out of range")
        if segment.start < end or (segment.start == end and times == segment.times):
            raise FormatError("read set", f"{segment} overlaps the one before, or belongs to it")
        end, times = segment.end, segment.times


def _put(payload: bytearray, value: int) -> None:
    while value > 0x7F:
        payload.append(value & 0x7F | 0x80)
        value >>= 7
    payload.append(value)


def _get(payload: bytes, at: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(payload[at : at + _VARINT_BYTES_MAX]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            if index and not byte:
                raise FormatError("read set", "a number is longer than it needs to be")
            return value, at + index + 1
    raise FormatError("read set", "a number does not end")


def _column(payload: bytes, at: int, total: int) -> tuple[Sequence[int], int]:
    short = payload[at : at + total]
    if len(short) == total and (not short or max(short) < 0x80):
        return short, at + total  # all of them fit in a byte: the usual case
    values = []
    for _ in range(total):
        value, at = _get(payload, at)
        values.append(value)
    return values, at
