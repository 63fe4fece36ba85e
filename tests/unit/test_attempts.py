"""Which starts of a run belong together."""

import msgspec

from vault.format.records import CodeTree, Environment, Start
from vault.ids import RunId
from vault.ops.attempts import attempts_of
from vault.repo.run_model import RANK, Attempt, Capture, Run


def seen(writer: str, began: str, ended: str | None, *, launch: bool = False, rank: str = "", host: str = "a") -> Attempt:
    start = Start(
        identity="VAULTFS_RUN", uid=0, host=host, started=f"2026-01-02T{began}Z", details={RANK: rank} if rank else {}
    )
    return Attempt(writer=writer, start=start, is_launch=launch, ended=ended and f"2026-01-02T{ended}Z")


def writers(*history: Attempt) -> list[list[str]]:
    return [[part.writer for part in attempt.parts] for attempt in attempts_of(Run(run=RunId("r"), history=history))]


def test_a_launch_and_the_mount_that_saw_it_are_one_attempt():
    launch = seen("l", "10:00:00.900000", "10:00:10", launch=True)
    # the mount knows the second: to it the program began before what started it
    assert writers(seen("m", "10:00:00.070000", "10:00:15"), launch) == [["l", "m"]]


def test_a_launch_after_one_that_was_killed_is_another_attempt():
    history = (
        seen("m", "11:11:16.070000", "11:11:30.990000"),
        seen("l1", "11:11:16.969000", "11:11:45", launch=True),  # nobody saw its end: the next command did
        seen("l2", "11:11:28.075000", "11:11:34", launch=True),
        seen("m", "11:11:27.200000", None),
    )
    assert writers(*history) == [["l1", "m"], ["l2", "m"]]


def test_ranks_that_were_started_together_are_one_attempt():
    history = [seen(f"l{rank}", f"10:00:0{rank}", "10:05:00", launch=True, rank=str(rank)) for rank in range(3)]
    again = [seen(f"k{rank}", f"10:10:0{rank}", "10:15:00", launch=True, rank=str(rank)) for rank in range(3)]
    assert writers(*history, *again) == [["l0", "l1", "l2"], ["k0", "k1", "k2"]]


def test_hosts_and_mounts_are_counted_each_for_themselves():
    history = (
        seen("m1", "10:00:00", "10:05:00"),
        seen("m2", "10:01:00", "10:05:00"),
        seen("m1", "11:00:00", None),
        seen("n1", "10:00:30", None, host="b"),
    )
    assert writers(*history) == [["m1", "m2"], ["n1"], ["m1"]]


def test_times_that_are_none_break_nothing():
    assert writers(seen("m", "99:99:99", None)) == [["m"]]


def test_the_first_of_the_most_telling_captures_is_what_an_attempt_began_with():
    def capture(second: int, snapshot: str, libraries: int) -> Capture:
        code = CodeTree(root="/net", snapshot=snapshot * 64, files=1, bytes=1)
        environment = Environment(snapshot="e" * 64, libraries=libraries)
        return Capture(captured=f"2026-01-02T10:00:{second:02}Z", code=(code,), environment=environment)

    launch = msgspec.structs.replace(seen("l", "10:00:00", "10:09:00", launch=True), capture=capture(1, "1", 0))
    mount = msgspec.structs.replace(
        seen("m", "10:00:00", "10:09:00"), capture=capture(3, "1", 9), later=(capture(5, "2", 9), capture(7, "2", 10))
    )
    [attempt] = attempts_of(Run(run=RunId("r"), history=(launch, mount)))
    assert attempt.capture is not None
    assert (attempt.capture.captured, [late.captured for late in attempt.later]) == (
        "2026-01-02T10:00:03Z",
        ["2026-01-02T10:00:05Z"],
    )


def test_hosts_whose_clocks_differ_keep_their_attempts_apart_and_in_order():
    history = (
        seen("m", "10:00:00", "10:05:00", host="a"),
        seen("m", "10:10:00", None, host="a"),
        seen("n", "13:00:00", "13:05:00", host="b"),  # three hours ahead
        seen("n", "13:10:00", None, host="b"),
    )
    found = [(attempt.number, attempt.host) for attempt in attempts_of(Run(run=RunId("r"), history=history))]
    assert found == [(1, "a"), (1, "b"), (2, "a"), (2, "b")]
