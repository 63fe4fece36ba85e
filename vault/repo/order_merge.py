"""One order of a run's first opens out of those that its workers saw, each in a table of its own (read_table.py).

Merged by time. What several workers opened comes where the first of them did, as far as the tables at hand tell: an entry
may come again after its table was shipped and removed, so readers keep an entry's first place. Threads: none.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import merge
from typing import Final

from vault.format.order import OPENS_MAX
from vault.repo.read_table import ORDER_SHIPPED, ShippedTable

BLOCK_ENTRIES: Final = 1 << 16


class Seen:
    """Which numbers were met: a byte each, in blocks that exist only where one was."""

    __slots__ = ("_blocks",)

    def __init__(self) -> None:
        self._blocks: dict[int, bytearray] = {}

    def add(self, number: int) -> bool:
        """Note a number. Returns whether it is new."""
        block = self._blocks.get(number // BLOCK_ENTRIES)
        if block is None:
            block = self._blocks[number // BLOCK_ENTRIES] = bytearray(BLOCK_ENTRIES)
        place = number % BLOCK_ENTRIES
        is_new = not block[place]
        block[place] = 1
        return is_new


@dataclass(slots=True)
class OrderPart:
    """What of an order goes into one journal entry."""

    snapshot: str
    ref: str
    entries_total: int
    numbers: list[int] = field(default_factory=list)
    positions: dict[ShippedTable, int] = field(default_factory=dict)  # items of each table that are in the journal with it


def unshipped_orders(tables: Sequence[ShippedTable]) -> Iterator[list[OrderPart]]:
    """Yield what the tables of a run have noted and is not in its journal: for each entry the parts that fit into it."""
    parts: list[OrderPart] = []
    room = OPENS_MAX
    for part in _parts(tables):
        if len(part.numbers) > room:
            yield parts
            parts, room = [], OPENS_MAX
        parts.append(part)
        room -= len(part.numbers)
    if parts:
        yield parts


def _parts(tables: Sequence[ShippedTable]) -> Iterator[OrderPart]:
    groups: dict[tuple[str, str, int], list[ShippedTable]] = defaultdict(list)
    for table in tables:
        groups[table.head.snapshot, table.head.ref, table.head.entries_total].append(table)
    for (snapshot, ref, entries_total), group in groups.items():
        yield from _merged(OrderPart(snapshot, ref, entries_total), group)


def _merged(part: OrderPart, group: Sequence[ShippedTable]) -> Iterator[OrderPart]:
    seen = Seen()
    done = {table: table.cell(ORDER_SHIPPED) for table in group}
    for _, index, number in merge(*(_items(index, table) for index, table in enumerate(group))):
        table = group[index]
        done[table] += 1
        part.positions[table] = done[table]
        others = (other for other in group if other is not table)
        if number >= part.entries_total or not seen.add(number) or any(other.was_shipped(number) for other in others):
            continue
        part.numbers.append(number)
        if len(part.numbers) == OPENS_MAX:
            yield part
            part = OrderPart(part.snapshot, part.ref, part.entries_total)
    if part.positions:
        yield part


def _items(index: int, table: ShippedTable) -> Iterable[tuple[int, int, int]]:
    for time_ns, number in table.order(table.cell(ORDER_SHIPPED)):
        yield time_ns, index, number
