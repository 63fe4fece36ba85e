"""`vault run`: the command is as without it, and what is to be known of it is on record."""

import os
import shlex
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from vault.ids import RunId
from vault.ops.attempts import attempts_of
from vault.repo.report_box import boxes_folder
from vault.repo.repository import Repository
from vault.repo.run_model import Attempt, Run
from vault.repo.runs import Runs
from vault.stores.registry import open_store
from vault.testing.mounts import Site, wait_for
from vault.testing.small_disks import NoDisk, small_disk
from vault.testing.terminals import terminal

PYTHON = sys.executable


def repository(site: Site) -> Repository:
    return Repository.open(open_store(site.store), site.cache)


def load(site: Site, run: str) -> Run:
    return Runs(open_store(site.store)).load(RunId(run))[0]


def only_run(site: Site) -> tuple[Run, Attempt]:
    [run] = {run for run, _ in Runs(open_store(site.store)).journals()}
    found = load(site, run)
    [attempt] = found.history
    return found, attempt


def versions(site: Site, dataset: str) -> dict[int, set[str]]:
    found = repository(site).datasets.load(dataset)
    return {
        version.number: {label for label, number in found.labels.items() if number == version.number}
        for version in found.versions
    }


def script(folder: Path, text: str) -> list[str]:
    path = folder / "job.py"
    path.write_text(textwrap.dedent(text))
    return [PYTHON, str(path)]


def start(site: Site, *arguments: str, **more) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        site.command("run", *arguments), env=site.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more
    )


def boxes(site: Site) -> list[str]:
    folder = Path(boxes_folder(site.cache, site.store))
    return [path.name for path in folder.iterdir() if path.is_dir()] if folder.exists() else []


# The command is as without us.


def test_streams_arguments_and_status_are_the_commands_own(site):
    done = subprocess.run(
        site.command(
            "run", "-q", "--", "sh", "-c", 'cat; printf "%s|" "$@"; echo err >&2; exit 7', "sh", "-x", "--", "--json"
        ),
        env=site.environment(),
        input=b"h\xffllo\n",
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, b"h\xffllo\n-x|--|--json|", b"err\n")


def test_what_is_known_is_on_record(site):
    site.vault(
        "run",
        "--param",
        "lr=0.1",
        "--param",
        "api_key=hunter22",
        "-m",
        "why",
        "--",
        "sh",
        "-c",
        "echo hi; exit 3",
        status=3,
    )
    run, attempt = only_run(site)
    assert run.run.startswith("sh-") and run.params == {"lr": "0.1", "api_key": "***"}
    assert run.command == ("sh", "-c", "echo hi; exit 3") and run.details["message"] == "why"
    assert (attempt.is_launch, attempt.exit_status, attempt.signal, attempt.output_tail) == (True, 3, "", "hi\n")
    assert run.endings == ("exit status 3",) and not run.open_in
    assert boxes(site) == []


def test_the_record_is_there_before_the_command_starts(site):
    store = site.store
    code = f"import os; print(sorted(os.listdir({store!r} + '/runs')) == [os.environ['VAULTFS_RUN']])"
    assert site.vault("run", "--", PYTHON, "-c", code).stdout == "True\n"


@pytest.mark.parametrize(("command", "status"), [("no-such-command", 127), ("/etc/passwd", 126), ("/no/such", 127)])
def test_a_command_that_is_not_there_leaves_no_record(site, command, status):
    done = site.vault("run", "--", command, status=status)
    assert command in done.stderr and "Traceback" not in done.stderr
    assert not Runs(open_store(site.store)).journals()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--out", "ckpts"], "PATH=DATASET"),
        (["--out", "a=Not A Name"], "dataset names"),
        (["--param", "x"], "NAME=VALUE"),
        (["--name", "a/b"], "--name a/b"),
    ],
)
def test_bad_options_are_refused_before_anything_starts(site, tmp_path, options, words):
    done = site.vault("run", *options, "--", "touch", str(tmp_path / "started"), status=2)
    assert words in done.stderr
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_signals_are_passed_on(site, tmp_path, number):
    command = script(
        tmp_path,
        f"""
        import signal, sys, time
        signal.signal({int(number)}, lambda *_: (print("got it", flush=True), sys.exit(5)))
        print("ready", flush=True)
        time.sleep(30)
        """,
    )
    with start(site, "--", *command) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.stdout.read() == b"got it\n"
        assert process.wait() == 5
    assert only_run(site)[1].exit_status == 5


def test_a_command_that_a_signal_ends_says_so(site):
    done = site.vault("run", "--json", "--", "sh", "-c", "kill -TERM $$", status=128 + signal.SIGTERM)
    assert '"signal": "SIGTERM"' in done.stdout
    assert only_run(site)[1].signal == "SIGTERM"


def test_a_terminal_stays_one_and_job_control_works(site):
    code = (
        'import signal, sys, time; signal.signal(signal.SIGCONT, lambda *_: print("goes" + " on", flush=True)); '
        "print(sys.stdout.isatty(), sys.stdin.isatty()); time.sleep(30)"
    )
    command = f"{PYTHON} -m vault run -q -- {PYTHON} -c {shlex.quote(code)}"
    with terminal(("bash", "--norc", "-i"), {**site.environment(), "PS1": "ready> "}) as screen:
        screen.wait_for("ready> ")
        screen.type(command + "\n")
        screen.wait_for("True True")
        screen.type("\x1a")
        screen.wait_for(r"(?s)Stopped.*ready> ")
        screen.type("fg\n")
        screen.wait_for("goes on")  # the shell has given it the terminal by then
        screen.type("\x03")
        screen.wait_for("KeyboardInterrupt")
        screen.type("echo status=$?\n")
        screen.wait_for("status=130")
        screen.type("exit\n")
        screen.end()
    assert only_run(site)[1].signal == "SIGINT"


def test_nobody_reads_any_more(site):
    line = " ".join(site.command("run", "-q", "--", "yes"))
    done = subprocess.run(
        ["bash", "-c", f"{line} | head -1; echo ${{PIPESTATUS[0]}}"],
        env=site.environment(),
        capture_output=True,
        check=False,
    )
    assert done.stdout == b"y\n141\n" and done.stderr == b""


def test_the_end_of_what_was_printed_is_kept_of_files_too(site, tmp_path):
    with open(tmp_path / "log", "wb") as log:
        log.write(b"earlier\n")
        log.flush()
        command = "echo PASSWORD=abc; printf '10%%\\r20%%\\r'; echo done; echo oops >&2"
        subprocess.run(
            site.command("run", "-q", "--", "sh", "-c", command), env=site.environment(), stdout=log, stderr=log, check=True
        )
    assert (tmp_path / "log").read_bytes() == b"earlier\nPASSWORD=abc\n10%\r20%\rdone\noops\n"
    assert only_run(site)[1].output_tail == "PASSWORD=***\ndone\noops\n"


def test_capture_can_be_turned_off(site):
    site.with_variables(VAULTFS_CAPTURE="off").vault("run", "--", "true")
    capture = only_run(site)[1].capture
    assert (
        capture is not None
        and capture.code == ()
        and capture.gaps == ("nothing was captured: VAULTFS_CAPTURE of the run says so",)
    )


# Whose run it is.


def test_the_command_and_a_commit_inside_it_belong_to_the_run(site, tmp_path):
    (tmp_path / "made.txt").write_text("made\n")
    commit = " ".join(site.command("commit", str(tmp_path / "made.txt"), "made"))
    done = site.vault("run", "--name", "mine-7", "--", "sh", "-c", f"echo $VAULTFS_RUN; {commit}")
    assert done.stdout.startswith("mine-7\n")
    assert repository(site).datasets.load("made").versions[0].run == "mine-7"
    assert "mine-7" in site.vault("show", "made@v1").stdout and "mine-7" in site.vault("log", "made").stdout


def test_a_commit_outside_of_every_run_names_none(site, tmp_path):
    (tmp_path / "made.txt").write_text("made\n")
    site.vault("commit", str(tmp_path / "made.txt"), "made")
    assert repository(site).datasets.load("made").versions[0].run is None


def test_a_job_gives_its_name(site):
    slurm = site.with_variables(SLURM_JOB_ID="4711", SLURM_CLUSTER_NAME="Big", SLURM_JOB_NAME="resnet")
    slurm.vault("run", "--", "true")
    run, _ = only_run(site)
    assert run.run == "slurm-big-4711" and run.details["SLURM_JOB_NAME"] == "resnet"


def test_two_ranks_are_one_run_and_the_first_commits(site, tmp_path):
    (tmp_path / "out").mkdir()
    ranks = [site.with_variables(SLURM_JOB_ID="4711", SLURM_PROCID=str(rank)) for rank in range(2)]
    command = script(
        tmp_path,
        """
        import os, sys
        with open(f"{sys.argv[1]}/rank{os.environ['SLURM_PROCID']}.pt", "w") as file:
            file.write("weights")
        """,
    )
    started = [start(rank, "--out", f"{tmp_path}/out=weights", "--", *command, str(tmp_path / "out")) for rank in ranks]
    assert [process.communicate() and process.returncode for process in started] == [0, 0]
    run = load(site, "slurm-4711")
    assert len(run.history) == 2 and run.attempts == 1 and len({attempt.writer for attempt in run.history}) == 2
    assert [len(attempt.parts) for attempt in attempts_of(run)] == [2]
    assert {output.dataset for output in run.outputs} == {"weights"}


# Outputs.


def test_started_again_under_its_name_it_is_another_attempt(site):
    for status in (9, 0):
        site.vault("run", "--name", "r1", "--", "sh", "-c", f"exit {status}", status=status)
    run = load(site, "r1")
    assert run.attempts == 2 and [attempt.exit_status for attempt in run.history] == [9, 0]


def test_one_inside_of_another_adds_to_the_same_attempt(site):
    inner = " ".join(site.command("run", "-q", "--param", "b=2", "--", "true"))
    site.vault("run", "--name", "r1", "--param", "a=1", "--", "sh", "-c", inner)
    run, _ = only_run(site)  # one attempt in one journal
    assert run.params == {"a": "1", "b": "2"}


def test_checkpoints_are_committed_as_they_are_finished(site, tmp_path):
    command = script(
        tmp_path,
        """
        import os, sys, time
        os.chdir(sys.argv[1])
        def wait(name):
            for _ in range(600):
                if not os.path.exists(name):
                    time.sleep(0.05)
        with open("step_100.pt.tmp", "w") as file:
            file.write("a" * 100)
        os.rename("step_100.pt.tmp", "step_100.pt")
        half = open("step_200.pt", "w")
        half.write("b" * 100)
        half.flush()
        os.mkdir("checkpoint-300")
        open("checkpoint-300/model.safetensors", "w").write("c" * 100)
        open("checkpoint-300/optimizer.bin", "w").write("d" * 100)
        wait("../first")
        half.write("B" * 100)
        half.close()
        open("notes.txt", "w").write("all")
        wait("../second")
        """,
    )
    out = tmp_path / "out"
    out.mkdir()
    (out / "step_7.pt").write_text("an earlier run's")
    with start(site, "--out", f"{out}=ckpts", "--name", "r1", "--", *command, str(out)) as process:

        def labels() -> set[str]:
            try:
                return set(repository(site).datasets.load("ckpts").labels)
            except LookupError:
                return set()

        wait_for("two checkpoints", lambda: {"step-100", "step-300"} <= labels())
        assert "step-200" not in labels(), "it is open"
        (tmp_path / "first").touch()
        wait_for("the third", lambda: "step-200" in labels())
        wait_for("reports of all three", lambda: len(load(site, "r1").outputs) == 3)
        (tmp_path / "second").touch()
        assert process.wait() == 0
    vault_ls = site.vault("ls", "-R", "ckpts@latest").stdout.split()
    assert {"checkpoint-300/model.safetensors", "notes.txt", "step_7.pt"} <= set(vault_ls)
    assert site.vault("cat", "ckpts@step-200/step_200.pt").stdout == "b" * 100 + "B" * 100
    assert site.vault("cat", "ckpts@step-300/model.safetensors").stdout == "c" * 100
    assert "step-7" not in labels()
    run, _ = only_run(site)
    assert [(output.label, output.step) for output in run.outputs[-2:]] == [("step-200", 200), ("", None)]
    assert {version.run for version in repository(site).datasets.load("ckpts").versions} == {"r1"}


def test_a_job_that_is_killed_leaves_what_it_had_finished(site, tmp_path):
    command = script(
        tmp_path,
        """
        import os, sys, time
        open("step_1.pt", "w").write("whole")
        half = open("step_2.pt", "w")
        half.write("half")
        half.flush()
        print(os.getpid(), flush=True)
        time.sleep(60)
        """,
    )
    with start(site, "--out", "step_1.pt=a", "--out", "step_2.pt=b", "--", *command, cwd=tmp_path) as process:
        assert process.stdout is not None and process.stderr is not None
        pid = int(process.stdout.readline())
        wait_for("the first", lambda: "a" in repository(site).datasets.names())
        os.kill(pid, signal.SIGKILL)
        assert process.wait() == 137
        assert b"step_2.pt" in process.stderr.read()
    run, attempt = only_run(site)
    assert attempt.signal == "SIGKILL" and [output.dataset for output in run.outputs] == ["a"]
    assert repository(site).datasets.names() == ["a"], "half a file is not committed"


@pytest.mark.slow
def test_a_worker_that_is_killed_below_a_launcher_that_goes_on(site, tmp_path):
    """Its file is closed by its death and does not change any more: it must not be taken for a checkpoint."""
    command = script(
        tmp_path,
        """
        import subprocess, sys, time
        code = "import time; f = open('step_2.pt', 'w'); f.write('half'); f.flush(); time.sleep(60)"
        worker = subprocess.Popen([sys.executable, "-c", code])
        time.sleep(2.5)
        worker.kill()
        worker.wait()
        time.sleep(4)
        sys.exit(1)
        """,
    )
    done = subprocess.run(
        site.command("run", "--out", ".=ckpts", "--", *command),
        cwd=tmp_path,
        env=site.environment(),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    assert repository(site).datasets.names() == []


def test_a_command_that_fails_commits_nothing_new_and_one_that_makes_nothing_is_told(site, tmp_path):
    done = site.vault("run", "--out", f"{tmp_path}/x=x", "--", "sh", "-c", f"echo 1 > {tmp_path}/x; exit 1", status=1)
    assert "not committed" in done.stderr and "vault commit" in done.stderr
    done = site.vault("run", "--out", f"{tmp_path}/y=y", "--", "true")
    assert "there is nothing" in done.stderr
    done = site.vault("run", "--out", f"{tmp_path}/x=x", "--", "true")
    assert "has not changed it" in done.stderr
    assert repository(site).datasets.names() == []


@pytest.mark.slow
def test_an_output_that_is_written_to_all_the_time_is_not_committed(site, tmp_path):
    writer = (
        f"import time\nwith open({str(tmp_path / 'x')!r}, 'w') as f:\n while 1: f.write('x'); f.flush(); time.sleep(.01)"
    )
    command = f'{PYTHON} -c "{writer}" </dev/null >/dev/null 2>&1 & echo $!; sleep 1'
    done = site.vault("run", "--out", f"{tmp_path}/x=x", "--", "sh", "-c", command)
    os.kill(int(done.stdout), signal.SIGKILL)
    assert "still being written" in done.stderr
    assert repository(site).datasets.names() == []


# What goes wrong.


def test_the_store_is_away_and_comes_back(site, tmp_path):
    away = site.store + ".away"
    os.rename(site.store, away)
    done = site.vault(
        "run",
        "--name",
        "r1",
        "--param",
        "a=1",
        "--out",
        f"{tmp_path}/x=x",
        "--",
        "sh",
        "-c",
        f"echo hi > {tmp_path}/x; exit 4",
        status=4,
    )
    assert "delivered later" in done.stderr and "Traceback" not in done.stderr
    assert len(boxes(site)) == 1 and not os.path.exists(site.store)
    os.rename(away, site.store)
    assert "r1" in site.vault("runs").stdout
    run, attempt = only_run(site)
    assert (run.params, attempt.exit_status) == ({"a": "1"}, 4)
    assert boxes(site) == []


def test_the_store_goes_while_the_command_runs(site, tmp_path):
    away = site.store + ".away"
    done = site.vault("run", "--name", "r1", "--", "mv", site.store, away)
    assert "delivered later" in done.stderr
    os.rename(away, site.store)
    site.vault("run", "--name", "r2", "--", "true")  # the next one delivers it
    assert load(site, "r1").history[0].exit_status == 0


def test_vault_run_is_killed_and_nothing_that_was_reported_is_lost(site, tmp_path):
    command = script(tmp_path, "import os, sys\nprint(os.getpid(), flush=True)\nsys.stdin.read()")
    with start(site, "--name", "r1", "--param", "a=1", "--", *command, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdin is not None
        pid = int(process.stdout.readline())
        process.kill()
        process.wait()
        site.vault("runs")
        assert load(site, "r1").open_in, "the job goes on without it"
        process.stdin.close()
        wait_for("the job's end", lambda: not os.path.exists(f"/proc/{pid}"))
    site.vault("runs")
    run, attempt = only_run(site)
    assert run.params == {"a": "1"} and not run.open_in and attempt.exit_status is None
    assert "unknown" in run.endings[0] and boxes(site) == []


def test_what_cannot_be_started_after_all_is_on_record(site, tmp_path):
    (tmp_path / "job").write_bytes(b"\x7fELF but not really")
    (tmp_path / "job").chmod(0o755)
    done = site.vault("run", "--", str(tmp_path / "job"), status=126)
    assert "Exec format error" in done.stderr
    assert only_run(site)[1].exit_status == 126


@pytest.mark.slow
def test_a_store_that_is_full_takes_the_record_later_and_the_command_goes_on(site, tmp_path):
    try:
        with small_disk(str(tmp_path / "disk"), size="400k") as disk:
            full = Site(f"{disk.path}/store", site.cache)
            full.vault("init")
            work = tmp_path / "work"
            work.mkdir()
            fill = f"head -c 300000 /dev/urandom > {work}/out.bin; cat /dev/zero > {disk.path}/filler; exit 0"
            command = full.command("run", "--name", "r1", "--out", f"{work}/out.bin=out", "--", "sh", "-c", fill)
            done = subprocess.run(command, cwd=work, env=full.environment(), capture_output=True, text=True, check=False)
            assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
            assert "no space left" in done.stderr and "delivered later" in done.stderr
            assert "not committed" in done.stderr and f"vault commit {work}/out.bin out" in done.stderr
            os.unlink(f"{disk.path}/filler")
            disk.remount(size="4m")
            full.vault("runs")
            assert load(full, "r1").history[0].exit_status == 0
            assert full.vault("verify", "--data").returncode == 0
    except NoDisk as error:
        pytest.skip(str(error))


def test_no_place_for_reports_is_an_error_before_anything_starts(site, tmp_path):
    (tmp_path / "file").write_text("")
    broken = Site(site.store, str(tmp_path / "file"))
    done = broken.vault("run", "--", "touch", str(tmp_path / "started"), status=9)
    assert "cannot use the cache" in done.stderr and not (tmp_path / "started").exists()
