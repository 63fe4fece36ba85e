"""What a mount's fetcher is asked to fetch before readers ask: how much, in which order, and when it is not worth it."""

import threading
from contextlib import closing
from zlib import crc32

from vault_fuse.fetch_queue import PLANNED_AT_ONCE_MIN, FetchQueue, Piece
from vault_fuse.hints import Channel, Hint
from vault_fuse.marks import CELLS, UNIT, Cleared, Marks
from vault_fuse.read_ahead import (
    CREDIT_MAX,
    DEBT_HALF_LIFE_S,
    HINT_AGE_S_MAX,
    PACK_STEP_MIN,
    PIECE_MAX,
    WHOLE_GAIN,
    WHOLE_START,
    ReadAhead,
)

from vault.format.layout import pack_key
from vault.ids import Digest

MIB = 1 << 20
CACHE = 1 << 40
WHOLE = "whole/ab/" + "ab" * 32
PACK_SIZE = 128 * MIB


def digest(number: int) -> Digest:
    return Digest(number.to_bytes(32, "big"))


def pack(number: int) -> str:
    return pack_key(digest(number))


def pieces(ahead: ReadAhead, key: str, now_s: float = 0.0) -> list[Piece]:
    """Return all that a fetcher with enough threads would fetch now."""
    found = []
    while (piece := ahead.next_piece(key, now_s)) is not None:
        found.append(piece)
    for piece in found:
        ahead.ended(piece.key, now_s)
    return found


def total(found: list[Piece]) -> int:
    return sum(piece.length for piece in found)


def read(key: str, position: int, used: int, size: int, *, missed: bool = False) -> Hint:
    return Hint(key, position, used, size, missed)


def test_the_first_read_of_a_whole_file_fetches_little() -> None:
    ahead = ReadAhead(CACHE)
    ahead.note(read(WHOLE, 64 << 10, 64 << 10, 1 << 40, missed=True), 0.0)
    assert WHOLE_START <= total(pieces(ahead, WHOLE)) <= WHOLE_START + 2 * PIECE_MAX


def test_a_reader_that_goes_on_soon_has_all_of_the_link() -> None:
    size, position, outstanding = 10 << 30, 0, []
    ahead = ReadAhead(CACHE)
    fetched = 0
    for _ in range(64):
        position += MIB
        ahead.note(read(WHOLE, position, MIB, size, missed=position > fetched), 0.0)
        fetched += total(pieces(ahead, WHOLE))
        outstanding.append(fetched - position)
    assert outstanding[-1] >= 16 * PIECE_MAX
    assert outstanding == sorted(outstanding)
    assert outstanding[-1] <= WHOLE_START + WHOLE_GAIN * position + 2 * PIECE_MAX


def test_a_whole_file_comes_in_its_order_from_where_its_reader_is_and_then_from_the_front() -> None:
    size = 64 * MIB
    ahead = ReadAhead(CACHE)
    ahead.note(read(WHOLE, 40 * MIB, size, size, missed=True), 0.0)
    offsets = [piece.offset for piece in pieces(ahead, WHOLE)]
    assert offsets[0] == 40 * MIB
    turn = offsets.index(0)
    assert offsets[:turn] == sorted(offsets[:turn])
    assert offsets[turn:] == sorted(offsets[turn:])


def test_no_byte_of_a_file_is_named_twice_and_all_are_in_the_end() -> None:
    size = 37 * MIB + 12345
    ahead = ReadAhead(CACHE)
    ahead.note(read(WHOLE, 5 * MIB + 17, size, size, missed=True), 0.0)
    found = sorted(pieces(ahead, WHOLE))
    at = 0
    for piece in found:
        assert piece.offset == at
        at += piece.length
    assert at == size


def test_a_file_is_fetched_no_further_than_the_cache_is_large() -> None:
    size = 1 << 40
    ahead = ReadAhead(1 << 30)
    ahead.note(read(WHOLE, MIB, 1 << 34, size, missed=True), 0.0)
    assert total(pieces(ahead, WHOLE)) - (1 << 34) <= (1 << 30) // 4


def test_steps_in_a_pack_grow() -> None:
    ahead = ReadAhead(CACHE)
    steps = []
    for number in range(6):
        ahead.note(read(pack(1), number * 8 * MIB, 0, PACK_SIZE, missed=True), 0.0)
        steps.append(total(pieces(ahead, pack(1))))
    assert steps[0] == PACK_STEP_MIN
    assert steps == sorted(steps)
    assert steps[-1] == PIECE_MAX


def test_random_reads_in_a_store_much_larger_than_the_cache_cost_the_credit_once() -> None:
    ahead = ReadAhead(CACHE)
    fetched = 0
    for number in range(20_000):
        ahead.note(read(pack(number), 64 * MIB, 0, PACK_SIZE, missed=True), number * 0.001)
        fetched += total(pieces(ahead, pack(number), number * 0.001))
    assert CREDIT_MAX // 2 < fetched <= CREDIT_MAX * 1.1


def test_what_is_used_earns_what_is_fetched_next() -> None:
    ahead = ReadAhead(CACHE)
    fetched = 0
    for number in range(2000):  # hundreds of packs, each of which is read to its end
        key = pack(number // 4)
        ahead.note(read(key, number % 4 * 32 * MIB, 4 * MIB, PACK_SIZE, missed=True), 0.0)
        fetched += total(pieces(ahead, key))
    assert fetched > 4 * CREDIT_MAX


def in_tree_order(count: int, cache_bytes: int = CACHE) -> ReadAhead:
    """Return read-ahead that knows in which order packs come in a tree."""
    ahead = ReadAhead(cache_bytes)
    ahead.order.add([digest(number) for number in range(count)])
    return ahead


def test_what_a_pack_has_no_bytes_for_goes_on_in_the_next_one_of_the_tree() -> None:
    size = 2 * PACK_STEP_MIN
    ahead = in_tree_order(8)
    ahead.note(read(pack(3), UNIT, 0, size, missed=True), 0.0)
    ahead.note(read(pack(3), UNIT, UNIT, size), 0.0)
    found = pieces(ahead, pack(3))
    assert total([piece for piece in found if piece.key == pack(3)]) == size
    (beyond,) = (piece for piece in found if piece.key != pack(3))
    assert (beyond.key, beyond.offset) == (pack(4), 0)
    assert not pieces(ahead, pack(4))  # how long it is, the answer tells
    assert ahead.learn_size(pack(4), PACK_SIZE, 0.0)
    assert not ahead.learn_size(pack(4), PACK_SIZE, 0.0)
    ahead.note(read(pack(4), UNIT, UNIT, PACK_SIZE), 0.0)
    (behind,) = pieces(ahead, pack(4))
    assert behind.offset == beyond.offset + beyond.length


def test_a_pack_that_turns_out_short_passes_on_what_it_has_no_bytes_for() -> None:
    ahead = in_tree_order(8)
    for _ in range(4):
        ahead.note(read(pack(0), UNIT, UNIT, UNIT, missed=True), 0.0)
    seen = []
    for number in range(5):
        found = [piece.key for piece in pieces(ahead, pack(number))]
        seen += found
        for key in found:
            ahead.learn_size(key, UNIT, 0.0)
    assert seen == [pack(number) for number in range(len(seen))]
    assert len(seen) > 5


def test_read_ahead_over_the_ends_of_packs_waits_when_much_is_here_that_nobody_has_read() -> None:
    limit = 256 * MIB
    ahead = in_tree_order(4096, 4 * limit)
    key, named = pack(0), 0
    for _ in range(2000):  # a reader that comes back to its first pack
        ahead.note(read(key, UNIT, UNIT, 32 * MIB), 0.0)
        found = pieces(ahead, key)
        named += total(found)
        for piece in found:
            ahead.learn_size(piece.key, 32 * MIB, 0.0)
    used = 2000 * UNIT
    assert limit // 2 < named - used < limit + 64 * MIB


def test_a_miss_of_what_is_on_its_way_is_no_sign_of_eviction() -> None:
    size = PACK_STEP_MIN
    ahead = ReadAhead(CACHE)
    ahead.note(read(pack(1), UNIT, 0, size, missed=True), 0.0)
    assert ahead.next_piece(pack(1), 0.0) == Piece(pack(1), UNIT, size - UNIT)
    assert ahead.next_piece(pack(1), 0.0) == Piece(pack(1), 0, UNIT)
    ahead.note(read(pack(1), 2 * UNIT, 0, size, missed=True), 0.0)
    assert ahead.next_piece(pack(1), 0.0) is None
    for _ in range(2):
        ahead.ended(pack(1), 0.0)
    ahead.note(read(pack(1), 2 * UNIT, 0, size, missed=True), HINT_AGE_S_MAX)  # seen before it came
    assert ahead.next_piece(pack(1), HINT_AGE_S_MAX) is None
    ahead.note(read(pack(1), 2 * UNIT, 0, size, missed=True), 2 * HINT_AGE_S_MAX)
    assert ahead.next_piece(pack(1), 2 * HINT_AGE_S_MAX) is not None


def test_packs_whose_sizes_are_not_known_yet_do_not_hold_up_those_behind_them() -> None:
    ahead = in_tree_order(64)
    for _ in range(8):
        ahead.note(read(pack(0), UNIT, UNIT, UNIT), 0.0)
    found = pieces(ahead, pack(0))
    begun = [piece.key for piece in found if piece.key != pack(0)]
    assert begun == [pack(number + 1) for number in range(len(begun))]
    assert len(begun) >= 4
    assert all(piece.offset == 0 for piece in found)
    assert ahead.learn_size(pack(1), PACK_SIZE, 0.0)
    assert total(pieces(ahead, pack(1))) == total(found[2:])  # what went on behind it comes for it now


def test_a_debt_is_forgotten_in_time() -> None:
    ahead = ReadAhead(CACHE)
    for number in range(5000):
        ahead.note(read(pack(number), MIB, 0, PACK_SIZE, missed=True), 0.0)
        pieces(ahead, pack(number))
    ahead.note(read(pack(9000), MIB, 0, PACK_SIZE, missed=True), 0.0)
    assert not pieces(ahead, pack(9000))
    later_s = DEBT_HALF_LIFE_S / 2
    ahead.note(read(pack(9001), MIB, 0, PACK_SIZE, missed=True), later_s)
    assert pieces(ahead, pack(9001), later_s)


def test_what_was_here_already_costs_nothing() -> None:
    ahead = ReadAhead(CACHE)
    for number in range(5000):
        ahead.note(read(pack(number), MIB, 0, PACK_SIZE, missed=True), 0.0)
        for piece in pieces(ahead, pack(number)):
            ahead.was_here(pack(number), piece.length, 0.0)
    ahead.note(read(pack(9000), MIB, 0, PACK_SIZE, missed=True), 0.0)
    assert pieces(ahead, pack(9000))


def test_a_file_that_is_read_again_after_it_was_evicted_is_fetched_again() -> None:
    size = 16 * MIB
    ahead = ReadAhead(CACHE)
    ahead.note(read(WHOLE, size, size, size, missed=True), 0.0)
    assert total(pieces(ahead, WHOLE)) == size
    ahead.note(read(WHOLE, MIB, MIB, size), 1.0)
    assert not pieces(ahead, WHOLE)
    ahead.note(read(WHOLE, MIB, MIB, size, missed=True), 2.0)
    assert pieces(ahead, WHOLE)


def test_marks_tell_what_was_used_of_what_was_fetched_ahead() -> None:
    marks = Marks()
    marks.coming(WHOLE, 0, 8 * UNIT)
    assert marks.clear(WHOLE, UNIT, 100) == Cleared(0, UNIT)
    marks.come(WHOLE, 0, 4 * UNIT, is_here=True)
    marks.come(WHOLE, 4 * UNIT, 4 * UNIT, is_here=False)
    assert marks.clear(WHOLE, 0, 8 * UNIT) == Cleared(3 * UNIT, 0)
    assert marks.clear(WHOLE, 0, 8 * UNIT) is None


def test_marks_go_on_at_the_front_of_their_table() -> None:
    marks = Marks()
    end = (-crc32(WHOLE.encode()) % CELLS) * UNIT  # of the table, in this file
    marks.coming(WHOLE, end - 3 * UNIT, 5 * UNIT)
    assert marks.clear(WHOLE, end - UNIT, 2 * UNIT) == Cleared(0, 2 * UNIT)
    assert marks.clear(WHOLE, end - 3 * UNIT, 5 * UNIT) == Cleared(0, 3 * UNIT)


def test_hints_arrive_one_by_one_and_are_dropped_when_nobody_hears() -> None:
    with closing(Channel()) as channel:
        first = Hint(WHOLE, 1 << 40, 17, 1 << 41, True)
        assert channel.receive() is None
        assert channel.send(first)
        assert channel.receive() == first
        sent = 0
        while channel.send(first._replace(position=sent)):
            sent += 1
            assert sent < 1 << 20, "it never says that it is full"
        assert sent > 100
        assert [channel.receive() for _ in range(sent)][-1] == first._replace(position=sent - 1)
        assert channel.receive() is None


class Planned:
    """A source with a number of pieces."""

    def __init__(self, name: str, count: int) -> None:
        self.name = name
        self.left = count
        self.told: list[tuple[Piece, Exception | None]] = []

    def next_piece(self) -> Piece | None:
        if not self.left:
            return None
        self.left -= 1
        return Piece(self.name, self.left, 1)

    def done(self, piece: Piece, error: Exception | None) -> None:
        self.told.append((piece, error))


def test_what_a_reader_wants_soon_goes_before_plans_and_sources_take_turns() -> None:
    queue = FetchQueue(lambda: False)
    queue.feed(Planned("plan", 3))
    queue.feed(Planned("a", 2), soon=True)
    queue.feed(Planned("b", 2), soon=True)
    taken = [queue.take(0) for _ in range(8)]
    assert [found.piece.key for found in taken if found is not None] == ["a", "b", "a", "b", "plan", "plan", "plan"]


def test_while_a_reader_waits_few_pieces_of_plans_are_under_way() -> None:
    waits = [True]
    queue = FetchQueue(lambda: waits[0])
    plan = Planned("plan", 2 * PLANNED_AT_ONCE_MIN)
    queue.feed(plan)
    taken = [found for _ in range(2 * PLANNED_AT_ONCE_MIN) if (found := queue.take(0)) is not None]
    assert len(taken) == PLANNED_AT_ONCE_MIN
    queue.done(taken[0])
    assert queue.take(0) is not None
    assert queue.take(0) is None
    waits[0] = False
    assert queue.take(0) is not None
    assert plan.told == [(taken[0].piece, None)]


def test_a_plan_that_is_dropped_gives_no_more() -> None:
    queue = FetchQueue(lambda: False)
    plan = Planned("plan", 10)
    queue.feed(plan)
    assert queue.take(0) is not None
    queue.drop(plan)
    assert queue.take(0) is None


def test_who_waits_for_a_piece_is_woken_by_one() -> None:
    queue = FetchQueue(lambda: False)
    found = []
    thread = threading.Thread(target=lambda: found.append(queue.take(30)))
    thread.start()
    queue.feed(Planned("plan", 1))
    thread.join(30)
    assert found
    assert found[0] is not None
