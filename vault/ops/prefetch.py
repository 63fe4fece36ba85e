"""Which stored bytes a reader wants when it opens files in an order that is known, in large pieces, and not too far ahead.

A Window walks along entry numbers of one snapshot. What it has handed out and the reader has not reached stays within a
budget, counted in blocks as the node cache keeps them, so that nothing is evicted before it was read. Near the reader
pieces come in small batches, for the next file must come first; farther away in large ones, in which neighbours in a pack
are joined. Where the reader is shows in how often files were opened. Fetches nothing itself. Threads: one.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final, NamedTuple

from vault.view import SnapshotView

BLOCK: Final = 256 << 10  # what comes along with any byte
PIECE_SIZE_MAX: Final = 2 << 20
BATCH_SIZE_MIN: Final = 1 << 20
BATCH_SIZE_MAX: Final = 64 << 20
FILES_AHEAD_MAX: Final = 100_000  # handed out and not reached; memory
LOOKED_AT_MAX: Final = 4096  # files ahead that are looked at when the reader's place is asked for
UPCOMING_MAX: Final = 4096  # files behind these whose counts are known: a reader that comes there first is seen
PASSED_BEHIND: Final = 2048  # files before the farthest that was opened: several processes read side by side
_FOLDERS_KEPT: Final = 4096
_AHEAD_MIN: Final = 16 << 20
_AHEAD_SHARE: Final = 64  # of a snapshot that is larger than the cache, so much is fetched ahead at most


class StoredRange(NamedTuple):
    """A piece of a stored file."""

    key: str
    offset: int
    length: int


@dataclass(slots=True)
class _Ahead:
    """A file that was handed out and that the reader has not reached."""

    number: int
    blocks: tuple[tuple[str, int], ...]
    times: int  # opened by then


class Window:
    """What is handed out of an order and not reached."""

    def __init__(
        self, view: SnapshotView, numbers: Iterable[int], size_max: int, times: Callable[[int], int] = lambda _: 0
    ) -> None:
        """Begin at the first number.

        Args:
            view: the snapshot; numbers that it does not have, and what are no files, are passed over.
            numbers: of the entries, in the order in which they will be read. Asked for the next one when there is room.
            size_max: bytes that may be handed out ahead of the reader.
            times: tells how often an entry was opened so far.
        """
        self._view = view
        self._numbers = iter(numbers)
        self._size_max = size_max
        self._times = times
        self._upcoming: deque[tuple[int, int]] = deque()  # what comes next: entry, and how often it was opened by then
        self._ahead: OrderedDict[int, _Ahead] = OrderedDict()  # by place in the order
        self._blocks: dict[tuple[str, int], int] = {}  # handed out -> by how many files that are ahead
        self._folders: OrderedDict[int, None] = OrderedDict()  # whose pages were handed out
        self.place = 0  # of the order: all before it was handed out, or passed over
        self.is_at_end = False
        self._look_ahead()

    @property
    def size_ahead(self) -> int:
        """Bytes that are handed out and not reached."""
        return len(self._blocks) * BLOCK

    @property
    def is_full(self) -> bool:
        """Whether there is no room before the reader comes nearer."""
        return self.size_ahead >= self._size_max or len(self._ahead) >= FILES_AHEAD_MAX

    @property
    def files_ahead(self) -> int:
        """How many files are handed out and not reached."""
        return len(self._ahead)

    def next_batch(self) -> list[StoredRange]:
        """Return what to fetch next, or an empty list: at the end, or if there is no room before the reader comes nearer.

        Raises:
            IntegrityError, StoreError, FormatError: as the view says; the file is passed over by the next call.
        """
        wanted: list[StoredRange] = []
        size = 0
        size_max = min(max(self.size_ahead, BATCH_SIZE_MIN), BATCH_SIZE_MAX)
        while size < size_max and not self.is_full:
            self._look_ahead()
            if not self._upcoming:
                self.is_at_end = True
                break
            number, times = self._upcoming.popleft()
            if self._times(number) > times:  # the reader was faster
                self.place += 1
                continue
            for found in self._take(number):
                wanted.append(found)
                size += found.length
        return join_ranges(wanted)

    def advance(self) -> bool:
        """Look where the reader is: what was opened, or lies far behind what was, is ahead no more. Returns if it moved."""
        looked_at = list(islice(self._ahead.items(), LOOKED_AT_MAX))
        opened = [place for place, found in looked_at if self._times(found.number) > found.times]
        if not opened:
            return False
        passed = (place for place, _ in looked_at if place < opened[-1] - PASSED_BEHIND)
        for place in {*opened, *passed}:
            self._leave(place)
        return True

    def pass_over(self, place: int) -> None:
        """Go on at a place of the order, and take all before it as passed."""
        for behind in [known for known in self._ahead if known < place]:
            self._leave(behind)
        while self.place < place and (self._upcoming or next(self._numbers, None) is not None):
            if self._upcoming:
                self._upcoming.popleft()
            self.place += 1
        self._look_ahead()

    def opened_beyond(self) -> list[int]:
        """Return the places of files that were opened before they were handed out, as far as that is looked after."""
        return [self.place + at for at, (number, times) in enumerate(self._upcoming) if self._times(number) > times]

    def pass_all(self) -> None:
        """Take as passed what was handed out, and what would come next."""
        self.pass_over(self.place + len(self._upcoming))

    def _leave(self, place: int) -> None:
        for block in self._ahead.pop(place).blocks:
            self._blocks[block] -= 1
            if not self._blocks[block]:
                del self._blocks[block]

    def _look_ahead(self) -> None:
        """Note how often the files were opened that come next."""
        while len(self._upcoming) < UPCOMING_MAX and (number := next(self._numbers, None)) is not None:
            self._upcoming.append((number, self._times(number)))

    def _take(self, number: int) -> Iterator[StoredRange]:
        """Hand out a file: yield the blocks of it that are not handed out."""
        place = self.place
        self.place += 1
        if not 0 < number < self._view.entries_total:
            return
        ranges = [*self._pages_of(self._view.parent(number)), *self._view.stored_ranges(number)]
        blocks = tuple(dict.fromkeys((key, block) for key, offset, length in ranges for block in _blocks(offset, length)))
        if not blocks:
            return
        self._ahead[place] = _Ahead(number, blocks, self._times(number))
        for key, block in blocks:
            users = self._blocks.get((key, block), 0)
            self._blocks[key, block] = users + 1
            if not users:
                yield StoredRange(key, block * BLOCK, BLOCK)

    def _pages_of(self, folder: int) -> Iterator[tuple[str, int, int]]:
        """Yield where the pages of a folder lie, for the first file of it in a while: the reader looks names up there."""
        if folder in self._folders:
            self._folders.move_to_end(folder)
            return
        self._folders[folder] = None
        if len(self._folders) > _FOLDERS_KEPT:
            self._folders.popitem(last=False)
        yield from self._view.page_ranges(folder)


def size_ahead(cache_bytes: int, snapshot_bytes: int) -> int:
    """Return how far ahead of its readers a plan may be.

    Half the cache, if all of the snapshot fits there. Else old blocks have to go for new ones, and the cache evicts extents
    of many blocks that lie side by side: in a shuffled order even blocks that are young, though not those of the last
    few percent of what was fetched (vault/stores/node_cache/eviction.py).
    """
    half = max(cache_bytes // 2, 1)
    return half if snapshot_bytes <= half else min(half, max(snapshot_bytes // _AHEAD_SHARE, _AHEAD_MIN))


def join_ranges(ranges: Iterable[StoredRange]) -> list[StoredRange]:
    """Return ranges with neighbours joined into pieces of at most PIECE_SIZE_MAX, what is needed first coming first."""
    runs: list[tuple[int, StoredRange]] = []  # when it is needed, and what
    needed = {found: place for place, found in reversed(list(enumerate(ranges)))}
    for found in sorted(needed):
        place = needed[found]
        if runs:
            first, run = runs[-1]
            if run.key == found.key and run.offset + run.length == found.offset and run.length < PIECE_SIZE_MAX:
                runs[-1] = (min(first, place), run._replace(length=run.length + found.length))
                continue
        runs.append((place, found))
    return [run for _, run in sorted(runs)]


def _blocks(offset: int, length: int) -> range:
    return range(offset // BLOCK, -(-(offset + length) // BLOCK))
