"""What entries make of a run: attempts with their captures, parameters, metrics, outputs."""

import itertools

import pytest

from vault.format.records import (
    CaptureEntry,
    CodeTree,
    End,
    Finish,
    Metric,
    Output,
    ProcessClass,
    Reader,
    RecordEntry,
    ReportEntry,
    Start,
    Verdict,
)
from vault.ids import RunId
from vault.repo.run_model import Run, add_entry


def at(second: int) -> str:
    return f"2026-01-02T03:04:{second:02}Z"


def start(host: str, second: int, *command: str) -> Start:
    return Start(identity="VAULTFS_RUN", uid=1000, host=host, started=at(second), user="ada", command=command)


def record(n: int, second: int, **sections) -> RecordEntry:
    prev = None if n == 1 else "0" * 64
    return RecordEntry(n=n, prev=prev, writer="w", time=at(second), process_class=ProcessClass.TRAINING, **sections)


def report(n: int, second: int, **sections) -> ReportEntry:
    return ReportEntry(n=n, prev=None if n == 1 else "0" * 64, writer="w", time=at(second), **sections)


def capture(n: int, second: int, snapshot: str) -> CaptureEntry:
    code = CodeTree(root="/home/ada/net", snapshot=snapshot * 64, files=1, bytes=1)
    return CaptureEntry(n=n, prev="0" * 64, writer="w", time=at(second), captured=at(second), code=(code,), gaps=("a gap",))


def made_of(*entries) -> Run:
    run = Run(run=RunId("r"))
    for writer, entry in entries:
        run = add_entry(run, writer, entry)
    return run


def test_a_resumed_run_on_two_hosts_has_a_capture_for_each_attempt():
    journals = {
        "a": [
            record(1, 1, start=start("a", 1, "python", "train.py")),
            capture(2, 2, "1"),
            record(3, 3, end=End(ended=at(3), how="processes ended")),
            record(4, 10, start=start("a", 10, "python", "train.py", "--resume")),
            capture(5, 11, "2"),
        ],
        "b": [record(1, 4, start=start("b", 2)), capture(2, 5, "3")],
    }
    for order in itertools.permutations(journals):
        run = made_of(*((writer, entry) for writer in order for entry in journals[writer]))
        seen = [(a.start.host, a.capture and a.capture.code[0].snapshot[0], a.ended) for a in run.history]
        assert seen == [("a", "1", at(3)), ("b", "3", None), ("a", "2", None)]
        assert (run.attempts, run.open_in, run.command, run.gaps) == (2, ("a", "b"), ("python", "train.py"), ("a gap",))


def test_a_launched_run_tells_how_it_ended_and_what_it_made():
    output = Output(dataset="net", version=3, snapshot="5" * 64, time=at(5), label="step-10", step=10)
    run = made_of(
        ("l", report(1, 1, launch=start("a", 1, "python", "train.py"), params={"lr": "0.1"})),
        ("m", record(1, 2, start=start("a", 2))),
        ("l", report(2, 5, outputs=(output,), params={"lr": "0.2", "batch": "64"}, trackers={"mlflow": "7"})),
        ("l", report(3, 6, finish=Finish(ended=at(6), exit_status=3, output_tail="diverged\n"))),
    )
    assert (run.attempts, run.exit_status, run.ended, run.open_in) == (1, 3, at(6), ("m",))
    assert (run.params, run.outputs, run.trackers) == ({"lr": "0.2", "batch": "64"}, (output,), {"mlflow": "7"})
    launched = run.history[0]
    assert (launched.is_launch, launched.how, launched.output_tail) == (True, "exit status 3", "diverged\n")
    assert run.process_class == ProcessClass.TRAINING


def test_a_run_that_was_killed_has_no_exit_status():
    run = made_of(
        ("l", report(1, 1, launch=start("a", 1))),
        ("l", report(2, 2, finish=Finish(ended=at(2), signal="SIGKILL"))),
    )
    assert (run.exit_status, run.history[0].signal, run.endings) == (None, "SIGKILL", ("ended by SIGKILL",))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_metrics_are_summed_in_any_order(order):
    told = [
        Metric(name="loss", value=2.0, time=at(1), step=1),
        Metric(name="loss", value=None, time=at(2), step=2),
        Metric(name="loss", value=0.5, time=at(3), step=3),
    ]
    run = made_of(*(("l", report(n, 9, metrics=(told[index],))) for n, index in enumerate(order, 1)))
    loss = run.metrics["loss"]
    assert (loss.last, loss.last_step, loss.least, loss.greatest, loss.count) == (0.5, 3, 0.5, 2.0, 3)


def test_verdicts_are_kept_and_what_belongs_to_no_attempt_is_dropped():
    verdict = Verdict(of="x", level="L1", reasons=("same tensors",))
    run = made_of(("l", report(1, 1, verdict=verdict)), ("m", capture(2, 2, "1")))
    assert (run.verdicts, run.history, run.attempts) == ((verdict,), (), 0)


def test_programs_that_opened_files_are_kept_once_and_bounded():
    def joined(number: int, second: int, *commands: str) -> RecordEntry:
        readers = tuple(
            Reader(pid=1, started=at(second), process_class=ProcessClass.SHELL, command=("cat", command))
            for command in commands
        )
        return record(number, second, readers=readers, readers_total=1)

    run = made_of(
        ("m", record(1, 1, start=start("a", 1))), ("m", joined(2, 2, "x", "y", "x")), ("m", joined(3, 3, "y", "z"))
    )
    assert run.programs == (("cat", "x"), ("cat", "y"), ("cat", "z"))
    many = made_of(("m", joined(1, 1, *map(str, range(40)))))
    assert len(many.programs) == 16


def test_an_attempt_keeps_what_it_began_with_and_what_was_found_later():
    journal = [record(1, 1, start=start("a", 1)), *(capture(n, n, digit) for n, digit in enumerate("11223", 2))]
    [attempt] = made_of(*(("m", entry) for entry in journal)).history
    assert attempt.capture.code[0].snapshot[0] == "1"
    assert [later.code[0].snapshot[0] for later in attempt.later] == ["2", "3"]
