"""`vault.run()`: what a program tells of itself meets what is known of it, and never ends it."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from vault.ids import RunId
from vault.repo.report_box import boxes_folder
from vault.repo.repository import Repository
from vault.repo.run_model import Run
from vault.repo.runs import Runs
from vault.stores.registry import open_store
from vault.testing.mounts import Site, mounted, wait_for, why_not_mountable


def load(site: Site, run: str = "") -> Run:
    runs = Runs(open_store(site.store))
    if not run:
        [run] = {found for found, _ in runs.journals()}
    return runs.load(RunId(run))[0]


def repository(site: Site) -> Repository:
    return Repository.open(open_store(site.store), site.cache)


def boxes(site: Site) -> list[str]:
    folder = Path(boxes_folder(site.cache, site.store))
    return [path.name for path in folder.iterdir() if path.is_dir()] if folder.exists() else []


def program(folder: Path, text: str) -> list[str]:
    path = folder / "train.py"
    path.write_text(textwrap.dedent(text))
    return [sys.executable, str(path)]


def run(site: Site, command: list[str], *, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, env=site.environment(), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == status, done.stderr
    return done


TRAIN = """
    import vault
    with vault.run(params={"lr": 0.1, "api_token": "hunter22"}, message="why") as run:
        for step in range(3):
            run.log_metric("loss", 1 / (step + 1), step=step)
        run.log_metrics({"acc": 0.5, "bad": float("nan")}, step=3)
        run.log_params({"epochs": 3})
        run.log_tracker("mlflow", "abc123")
        with open("step_3.pt", "w") as file:
            file.write("weights")
        print(run.commit_output("step_3.pt", "weights").ref, run.id)
"""


def test_a_program_tells_of_itself(site, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(site, program(tmp_path, TRAIN))
    assert done.stderr == ""
    found = load(site)
    assert done.stdout == f"weights@v1 {found.run}\n"
    assert found.params == {"lr": "0.1", "api_token": "***", "epochs": "3"} and found.details["message"] == "why"
    assert (found.metrics["loss"].count, found.metrics["loss"].last_step, found.metrics["loss"].least) == (3, 2, 1 / 3)
    assert (found.metrics["bad"].last, found.metrics["bad"].count) == (None, 1)
    assert found.trackers["mlflow"] == "abc123"
    assert [(output.dataset, output.version, output.label, output.step) for output in found.outputs] == [
        ("weights", 1, "step-3", 3)
    ]
    assert repository(site).datasets.load("weights").versions[0].run == found.run
    [attempt] = found.history
    assert attempt.exit_status == 0 and not found.open_in and attempt.capture is not None
    assert attempt.capture.code or attempt.capture.gaps
    assert boxes(site) == []


def test_inside_vault_run_it_is_a_part_of_that(site, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(site, site.command("run", "-q", "--name", "r1", "--param", "a=1", "--", *program(tmp_path, TRAIN)))
    assert done.stdout == "weights@v1 r1\n"
    found = load(site)
    assert found.run == "r1" and len(found.history) == 1 and found.history[0].is_launch
    assert found.params["a"] == "1" and found.params["epochs"] == "3" and found.metrics["loss"].count == 3


@pytest.mark.fuse
@pytest.mark.skipif(bool(why_not_mountable("direct")), reason=why_not_mountable("direct") or "")
def test_what_a_mount_saw_and_what_the_program_tells_is_one_run(site, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/x").write_text("data")
    site.commit(str(tmp_path / "data"), "data")
    with mounted(site, str(tmp_path / "mnt"), engine="direct") as mount:
        text = f"""
            import vault
            open({mount.path!r} + "/data@v1/x").read()
            vault.log_metric("acc", 0.9)
            vault.log_params({{"a": 1}})
            vault.commit_output(__file__, "made")
        """
        run(site, program(tmp_path, text))
        found = wait_for("the reads", lambda: [r for r in site.json("runs") if r.get("inputs")])
    assert found[0]["inputs"][0]["ref"] == "data@v1"
    everything = load(site)  # it is the only one
    assert everything.run == found[0]["run"] and everything.metrics["acc"].last == 0.9 and everything.params == {"a": "1"}
    assert [output.dataset for output in everything.outputs] == ["made"]


def test_a_killed_program_loses_nothing_that_it_told(site, tmp_path):
    text = """
        import sys, vault
        live = vault.run(params={"a": 1})
        live.flush()
        for step in range(5000):
            live.log_metric("loss", step, step=step)
        print("told", flush=True)
        sys.stdin.read()
    """
    with subprocess.Popen(
        program(tmp_path, text), env=site.environment(), stdout=subprocess.PIPE, stdin=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"told\n"
        os.kill(process.pid, signal.SIGKILL)
    assert len(boxes(site)) == 1
    site.vault("runs")
    found = load(site)
    assert (found.metrics["loss"].count, found.metrics["loss"].last) == (5000, 4999)
    assert "unknown" in found.endings[0] and not found.open_in and boxes(site) == []


def test_a_store_that_is_away_ends_nothing(site, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    site.vault("run", "-q", "--name", "before", "--", "true")
    away = site.store + ".away"
    os.rename(site.store, away)
    text = """
        import vault
        with vault.run(params={"a": 1}) as run:
            run.log_metric("loss", 1.0)
            assert run.commit_output(__file__, "made") is None
            print(run.id)
    """
    done = run(site, program(tmp_path, text))
    assert done.stderr.count("is kept, and delivered later") == 1 and "not committed" in done.stderr
    os.rename(away, site.store)
    site.vault("runs")
    found = load(site, done.stdout.strip())
    assert found.metrics["loss"].last == 1.0 and found.history[0].exit_status == 0
    capture = found.history[0].capture
    assert capture is not None and capture.code and capture.environment and boxes(site) == []


def test_no_place_for_what_is_told_ends_nothing(site, tmp_path):
    (tmp_path / "file").write_text("")
    text = """
        import vault
        with vault.run() as run:
            run.log_metric("loss", 1.0)
            run.log_params({"a": 1})
    """
    done = run(Site(site.store, str(tmp_path / "file")), program(tmp_path, text))
    assert "is kept" in done.stderr and "Traceback" not in done.stderr


def test_threads_and_forks_may_tell(site, tmp_path):
    text = """
        import multiprocessing, os, threading, vault
        run = vault.run()
        def tell(name):
            for step in range(500):
                run.log_metric(name, step, step=step)
        threads = [threading.Thread(target=tell, args=(f"t{n}",)) for n in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        child = os.fork()
        if not child:
            tell("child")
            run.flush()
            os._exit(0)
        os.waitpid(child, 0)
        run.close(exit_status=0)
    """
    run(site, program(tmp_path, text))
    site.vault("runs")
    found = load(site)
    assert {name: metric.count for name, metric in found.metrics.items()} == dict.fromkeys(
        ("t0", "t1", "t2", "t3", "child"), 500
    )


def test_a_program_that_fails_says_so(site, tmp_path):
    run(site, program(tmp_path, "import vault\nwith vault.run():\n    1 / 0\n"), status=1)
    assert load(site).history[0].exit_status == 1


def test_a_program_that_never_closes_is_closed_at_its_end(site, tmp_path):
    run(site, program(tmp_path, "import vault\nvault.log_metric('a', 1)\nraise SystemExit\n"))
    found = load(site)
    assert found.metrics["a"].last == 1 and not found.open_in and boxes(site) == []


def test_what_makes_no_sense_is_an_error_at_once(site, tmp_path):
    text = """
        import vault
        run = vault.run()
        for call in (
            lambda: run.log_metric("a", "no number"),
            lambda: run.commit_output("x", "Not A Name"),
            lambda: run.commit_output("/no/such/file", "d"),
        ):
            try:
                call()
            except (ValueError, vault.VaultError) as error:
                print(type(error).__name__)
    """
    assert run(site, program(tmp_path, text)).stdout.split() == ["ValueError", "InvalidRef", "SourceUnreadable"]


def test_no_store_is_an_error_that_says_what_to_do(tmp_path):
    site = Site("", str(tmp_path / "cache"))
    done = run(site, program(tmp_path, "import vault\nvault.run()\n"), status=1)
    assert "set VAULTFS_STORE" in done.stderr
