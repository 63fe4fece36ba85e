"""In which order a run opened its files for the first time, as its journals tell (docs/format/runs.md, section 10).

Each mount writes down the order that it saw, attempt by attempt. How hosts ran beside each other is not on record: those of
one run are taken to keep pace. Later opens of a file have no order. Threads: none.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import merge
from operator import attrgetter
from typing import Final

from vault.errors import FormatError, UsageError
from vault.format.order import decode_order
from vault.format.readset import decode_readset
from vault.format.records import RecordEntry
from vault.ids import Digest, RunId, parse_digest
from vault.repo.order_merge import Seen
from vault.repo.read_counts import ReadCounts
from vault.repo.repository import Repository
from vault.repo.run_model import ENTRIES_TOTAL_MAX
from vault.repo.runs import Runs
from vault.view import open_view

DATASETS_NAMED_MAX: Final = 5
FOLDERS_KEPT_MAX: Final = 65536
OPENS_TOTAL_MAX: Final = 1 << 26  # of one attempt on one host; what comes after has no place in its order


@dataclass(frozen=True, slots=True)
class OpenOrder:
    """The first opens of one snapshot in one attempt on one host."""

    host: str
    attempt: int  # the how manyth in its journal, from 1
    snapshot: Digest
    ref: str  # under which name: `imagenet@v2`
    entries_total: int
    numbers: "array[int]"  # of the entries
    files_opened: int  # in the attempt; more than there are numbers if the order of some is not on record

    @property
    def dataset(self) -> str:
        """The name of the dataset."""
        return self.ref.partition("@")[0]


@dataclass(slots=True)
class _Building:
    host: str
    attempt: int
    entries_total: int
    numbers: "array[int]" = field(default_factory=lambda: array("I"))
    seen: Seen = field(default_factory=Seen)
    counts: ReadCounts = field(default_factory=ReadCounts)


def load_orders(repository: Repository, run: RunId) -> list[OpenOrder]:
    """Return the orders of a run, those of the host whose journal comes first. Reads all its journals.

    An attempt whose order is not on record, because an older vault recorded it, is not among them.

    Raises:
        Damaged, FormatError: a journal is damaged.
        StoreError: as the store says.
    """
    runs = Runs(repository.store)
    orders: list[OpenOrder] = []
    for writer in runs.writers(run):
        orders += _orders_of(entry for _, entry in runs.follow(run, writer))
    return orders


def choose_orders(
    orders: Sequence[OpenOrder], *, dataset: str = "", host: str = "", this_host: str = ""
) -> list[OpenOrder]:
    """Return the orders to follow, one for each snapshot.

    Of several attempts that with most files; of several hosts the one that is asked for, else this one if it took part,
    else all of them side by side, as if one machine had done the work of all.

    Args:
        orders: what `load_orders` has returned; at least one.
        dataset: only of this one.
        host: as this host saw it.
        this_host: the name of this machine.

    Raises:
        UsageError: none is of this dataset, or of this host.
    """
    chosen = [order for order in orders if not dataset or order.dataset == dataset]
    if not chosen:
        names = sorted({order.dataset for order in orders})[:DATASETS_NAMED_MAX]
        raise UsageError(f"the run opened nothing of {dataset}; it opened files of {', '.join(names)}")
    hosts = sorted({order.host for order in chosen})
    if host and host not in hosts:
        raise UsageError(f"the run was not seen on {host}, but on {', '.join(hosts[:DATASETS_NAMED_MAX])}")
    if host or this_host in hosts:
        chosen = [order for order in chosen if order.host == (host or this_host)]
    by_snapshot: dict[tuple[Digest, str], list[OpenOrder]] = {}
    for order in chosen:
        by_snapshot.setdefault((order.snapshot, order.ref), []).append(order)
    return [_side_by_side(found) for found in by_snapshot.values()]


def files_in_order(repository: Repository, order: OpenOrder) -> Iterator[bytes]:
    """Yield the paths of files as they were opened.

    Raises:
        IntegrityError, StoreError: the snapshot cannot be read, so its files have no names.
    """
    view = open_view(repository, order.snapshot)
    folders: dict[int, bytes] = {}
    for number in order.numbers:
        if number >= view.entries_total:
            raise FormatError("order of opens", f"it names entry {number} of {view.entries_total}")
        parent = view.parent(number)
        prefix = folders.get(parent)
        if prefix is None:
            if len(folders) == FOLDERS_KEPT_MAX:
                folders.clear()
            prefix = folders[parent] = view.path(parent) + b"/" if parent else b""
        yield prefix + view.attributes(number).name


def _side_by_side(orders: Iterable[OpenOrder]) -> OpenOrder:
    """Join the longest order of each host: each keeps its pace, so that all end together."""
    best: dict[str, OpenOrder] = {}
    for order in orders:
        if order.host not in best or len(order.numbers) > len(best[order.host].numbers):
            best[order.host] = order
    longest = max(best.values(), key=lambda order: len(order.numbers))
    if len(best) == 1:
        return longest
    seen = Seen()
    numbers = array("I", (number for _, number in merge(*map(_paced, best.values())) if seen.add(number)))
    return OpenOrder(
        host="",
        attempt=longest.attempt,
        snapshot=longest.snapshot,
        ref=longest.ref,
        entries_total=longest.entries_total,
        numbers=numbers,
        files_opened=max(len(numbers), *map(attrgetter("files_opened"), best.values())),
    )


def _paced(order: OpenOrder) -> Iterator[tuple[float, int]]:
    total = len(order.numbers)
    return ((place / total, number) for place, number in enumerate(order.numbers))


def _orders_of(entries: Iterable[object]) -> list[OpenOrder]:
    """Return the orders in one journal."""
    building: dict[tuple[int, Digest, str], _Building] = {}
    attempt, host = 0, ""
    for entry in entries:
        if not isinstance(entry, RecordEntry):
            continue
        if entry.start is not None:
            attempt, host = attempt + 1, entry.start.host
        for reads in entry.reads:
            if not 0 < reads.entries_total <= ENTRIES_TOTAL_MAX:
                continue  # no snapshot has so many: `vault verify` names it
            key = (attempt, parse_digest(reads.snapshot), reads.ref)
            known = building.setdefault(key, _Building(host, attempt, reads.entries_total))
            known.counts.add(decode_readset(reads.delta, reads.entries_total))
            if reads.order and len(known.numbers) < OPENS_TOTAL_MAX:
                known.numbers.extend(filter(known.seen.add, decode_order(reads.order, reads.entries_total)))
    return [
        OpenOrder(
            host=known.host,
            attempt=known.attempt,
            snapshot=snapshot,
            ref=ref,
            entries_total=known.entries_total,
            numbers=known.numbers,
            files_opened=known.counts.opened(range(known.entries_total)),
        )
        for (_, snapshot, ref), known in building.items()
        if known.numbers
    ]
