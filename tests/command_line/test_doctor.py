"""`vault doctor` finds what is wrong, says what to do, changes nothing, and is stopped by nothing."""

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from vault_fuse.bounded import call_bounded

from vault.testing.mounts import Site, mounted, run, wait_for, why_not_mountable

DAY_S = 86400


def checks(site: Site, *, status: int | None) -> dict[str, list[tuple[str, str, str]]]:
    """Return what the doctor found: (status, text, advice), by name. Mounts of others on this machine are left out."""
    done = site.vault("doctor", "--json", status=None, timeout_s=60)
    assert done.stderr == "" and "the check itself failed" not in done.stdout
    *records, summary = map(json.loads, done.stdout.splitlines())
    assert done.returncode == (1 if summary["problems"] else 0)
    found: dict[str, list[tuple[str, str, str]]] = {}
    for record in records:
        if record["name"] == "mount" and not record["text"].startswith(os.path.dirname(site.cache)):
            continue
        found.setdefault(record["name"], []).append((record["status"], record["text"], record["advice"] or ""))
        assert record["status"] == "ok" or record["advice"] or record["name"] == "store", "advice with all that is not ok"
    ours = any(kind == "problem" for findings in found.values() for kind, _, _ in findings)
    assert status is None or status == (1 if ours else 0), found
    return found


def only(found: list[tuple[str, str, str]], status: str) -> tuple[str, str]:
    """Return text and advice of the one finding that has this status."""
    [(text, advice)] = [(text, advice) for known, text, advice in found if known == status]
    return text, advice


@pytest.fixture
def filled(site, tmp_path) -> Site:
    """A store with something in it."""
    (tmp_path / "file").write_text("content")
    site.vault("commit", str(tmp_path / "file"), "d")
    return site


def snapshot_of(*folders: str) -> dict[str, tuple[int, int, int]]:
    """Return what must not change of folders: names, sizes, times, inodes. LMDB's reader table is no content."""
    found = {}
    for folder in folders:
        for path in (Path(folder), *Path(folder).rglob("*")):
            if path.name != "lock.mdb":
                status = path.lstat()
                found[str(path)] = (status.st_size, status.st_mtime_ns, status.st_ino)
    return found


def test_a_healthy_machine(filled):
    if why_not_mountable("direct"):
        pytest.skip("this machine is not healthy: it cannot mount")
    checks(filled, status=0)
    done = filled.vault("doctor", status=None)
    assert "ok       index       the object index knows 2 objects and is up to date\n" in done.stdout
    assert re.fullmatch(r"(nothing is wrong|\d+ problems?)(, \d+ notes?)?", done.stdout.splitlines()[-1])
    quiet = filled.vault("doctor", "--quiet", status=None).stdout
    assert not [line for line in quiet.splitlines() if line.startswith("ok")]


def test_it_changes_nothing(filled):
    before = snapshot_of(filled.store, filled.cache)
    filled.vault("doctor", status=None)
    assert snapshot_of(filled.store, filled.cache) == before


def test_it_makes_no_cache(filled, tmp_path):
    site = Site(filled.store, str(tmp_path / "new" / "cache"))
    found = checks(site, status=0)
    assert found["cache"][0][1] == f"{site.cache} will be made when it is needed"
    assert "there is no object index yet" in found["index"][0][1]
    assert not (tmp_path / "new").exists()


def test_no_store(site, tmp_path):
    unnamed = site.with_variables(VAULTFS_STORE="", XDG_CONFIG_HOME=str(tmp_path))
    text, advice = only(checks(unnamed, status=1)["store"], "problem")
    assert text == "no store is named" and f"{tmp_path}/vaultfs/config.toml" in advice
    text, _ = only(checks(site.with_variables(VAULTFS_STORE="/etc"), status=1)["store"], "problem")
    assert text.startswith("/etc is not a vault store")
    text, _ = only(checks(site.with_variables(VAULTFS_STORE="gopher://x"), status=1)["store"], "problem")
    assert "no gopher:// stores" in text


def test_a_store_of_a_newer_version(site):
    path = Path(site.store, "vault.json")
    path.chmod(0o644)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 9}))
    assert "format version 9" in only(checks(site, status=1)["store"], "problem")[0]


def test_what_killed_commits_left(filled):
    left = Path(filled.store, "tmp", "left")
    left.write_bytes(bytes(5_000_000))
    found = checks(filled, status=0)
    assert found["left-overs"][0][0] == "ok", "it may be somebody's at work"
    os.utime(left, (time.time() - 2 * DAY_S,) * 2)
    text, advice = only(checks(filled, status=0)["left-overs"], "note")
    assert text.startswith("1 unfinished files") and "5 MB" in text
    subprocess.run(advice.partition(": ")[2], shell=True, check=True)
    assert not left.exists(), "the advice is good"


def test_a_clock_that_is_behind(filled):
    os.utime(f"{filled.store}/tmp", (time.time() + DAY_S,) * 2)
    text, advice = only(checks(filled, status=1)["clock"], "problem")
    assert "1,440 minutes behind" in text.replace("1,439", "1,440") and "timedatectl" in advice


def test_an_index_that_is_behind_foreign_or_damaged(filled, tmp_path):
    index = next(Path(filled.cache).glob("*/index.lmdb"))
    elsewhere = Site(filled.store, str(tmp_path / "other-cache"))
    (tmp_path / "file").write_text("other content")
    elsewhere.vault("commit", str(tmp_path / "file"), "d")
    assert "; 2 indexes of the store are new to it" in checks(filled, status=0)["index"][0][1]
    for pack in Path(filled.store).rglob("*.idx"):
        pack.chmod(0o644)
        pack.write_bytes(b"garbage")
    _, text, advice = checks(filled, status=1)["index"][1]
    assert "cannot be read, so the objects in it are missing" in text and "vault verify" in advice
    (index / "state").write_text("1 another-boot")
    assert "will be built anew" in only(checks(filled, status=None)["index"], "note")[0]
    (index / "state").write_text("1 clean")
    data = index / "data.mdb"
    os.truncate(data, 4096)
    found = checks(filled, status=None)["index"]
    assert found[0][0] in ("note", "problem"), "cut off: whoever reads it may be killed, and the doctor goes on"


def test_packs_that_are_gone(filled):
    shutil.rmtree(f"{filled.store}/packs")
    text, advice = only(checks(filled, status=0)["index"], "note")
    assert "2 packs or whole files that the store does not have" in text and "vault verify" in advice


def test_a_disk_that_is_nearly_full(site, tmp_path):
    if os.geteuid():
        pytest.skip("mounting a small file system takes root")
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(small)], check=True)
    try:
        site.vault("init", str(small / "store"))
        tight = Site(str(small / "store"), str(small / "cache"))
        found = checks(tight, status=1)
        assert "2 MB are free" in only(found["space"], "problem")[0]
        assert "are free there" in only(found["cache"], "problem")[0]
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_machine_without_fuse(filled):
    if os.geteuid() or not shutil.which("unshare"):
        pytest.skip("hiding /dev/fuse takes root and unshare")
    hidden = replace(filled, wrap=("unshare", "-m", "sh", "-c", 'mount -t tmpfs none /dev && exec "$@"', "sh"))
    text, advice = only(checks(hidden, status=1)["device"], "problem")
    assert text == "/dev/fuse does not exist" and "modprobe fuse" in advice


def test_an_engine_that_does_not_exist(filled):
    text, advice = only(checks(filled.with_variables(VAULTFS_ENGINE="nfs"), status=1)["engine"], "problem")
    assert "there is no engine 'nfs'" in text and "VAULTFS_ENGINE" in advice


def test_another_program_of_this_name(filled, tmp_path):
    program = tmp_path / "bin" / "vault"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho keeps secrets\n")
    program.chmod(0o755)
    text, advice = only(
        checks(filled.with_variables(PATH=f"{program.parent}:{os.environ['PATH']}"), status=0)["program"], "note"
    )
    assert text == f"{program} is another program of the same name" and "vaultfs" in advice


def test_a_check_that_fails_itself_is_a_finding(filled, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import vault.ops.health as h\nh.check_clock = lambda *_: 1 / 0\n")
    done = filled.with_variables(PYTHONPATH=str(tmp_path)).vault("doctor", status=1)
    assert "problem  clock       the check itself failed: ZeroDivisionError: division by zero" in done.stdout
    assert "ok       device" in done.stdout and "Traceback" not in done.stdout + done.stderr


@pytest.mark.fuse
class TestMounts:
    """Mounts, alive and not."""

    @pytest.fixture(autouse=True)
    def _mountable(self):
        if missing := why_not_mountable("direct"):
            pytest.skip(missing)

    @staticmethod
    def of(mount, found):
        """Return what was found of one mount: others may be mounted on this machine."""
        [finding] = [finding for finding in found["mount"] if finding[1].startswith(mount.path)]
        return finding

    def test_one_that_works(self, filled, tmp_path):
        with mounted(filled, str(tmp_path / "mnt"), engine="direct") as mount:
            run("cat", f"{mount.path}/d@v1/file")
            found = checks(filled, status=None)
            assert self.of(mount, found)[0] == "ok" and self.of(mount, found)[1].endswith(": ok")
            assert found["records"] == [("ok", f"the mount on {mount.path} records; nothing waits", "")]

    def test_records_that_are_damaged(self, filled, tmp_path):
        with mounted(filled, str(tmp_path / "mnt"), engine="direct") as mount:
            [tables] = Path(filled.cache).glob("*/spool/*/tables")
            damaged = tables / "run~1.unreadable"
            damaged.write_bytes(b"")
            text, _ = only(checks(filled, status=1)["records"], "problem")
            assert text.startswith(f"1 tables of reads of the mount on {mount.path} are damaged")
            damaged.unlink()

    def test_one_that_hangs_stops_nobody(self, filled, tmp_path):
        with mounted(filled, str(tmp_path / "mnt"), engine="direct") as mount:
            stopped = [mount.pid, *mount.processes()]
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            try:
                status, text, advice = self.of(mount, checks(filled, status=1))
                assert (status, text) == ("problem", f"{mount.path} does not answer")
                assert f"vault umount --lazy {mount.path}" in advice
                said = filled.vault("mount", mount.path, status=7, timeout_s=30).stderr
                assert f"does not answer: take it away with 'vault umount --lazy {mount.path}'" in said
                filled.vault("umount", "--lazy", mount.path, timeout_s=30)
            finally:
                for pid in stopped:
                    with contextlib.suppress(ProcessLookupError):  # the first one to go on may have ended it
                        os.kill(pid, signal.SIGCONT)
            mount.wait_for_end()

    def test_one_that_is_dead_and_what_it_left(self, filled, tmp_path):
        with mounted(filled, str(tmp_path / "mnt"), engine="direct") as mount:
            run("cat", f"{mount.path}/d@v1/file")
            for pid in [*mount.processes(), mount.pid]:
                os.kill(pid, signal.SIGKILL)
            wait_for("the end of the mount", lambda: self.of(mount, checks(filled, status=None))[1].endswith("is gone"))
            found = checks(filled, status=1)
            assert "vault umount --lazy" in self.of(mount, found)[2]
            assert "'vault runs' takes them to the store" in only(found["records"], "note")[1]
            filled.vault("umount", mount.path)
            assert len(filled.runs()) == 1
            assert found["records"] != checks(filled, status=None).get("records")
            assert not [finding for finding in checks(filled, status=None).get("mount", ()) if mount.path in finding[1]]


class TestCallBounded:
    """The child that looks."""

    def test_results_and_errors_come_back(self):
        assert call_bounded(lambda: {"a": [1]}, 5) == {"a": [1]}
        with pytest.raises(OSError, match="boom") as caught:
            call_bounded(lambda: (_ for _ in ()).throw(OSError(errno.EIO, "boom")), 5)
        assert caught.value.errno == errno.EIO

    def test_what_cannot_travel_is_told_in_words(self):
        class Local(Exception):
            pass

        with pytest.raises(RuntimeError, match="Local: words"):
            call_bounded(lambda: (_ for _ in ()).throw(Local("words")), 5)

    def test_a_call_that_never_returns_ends_in_time(self):
        began_s = time.monotonic()
        with pytest.raises(TimeoutError):
            call_bounded(signal.pause, 0.2)
        assert time.monotonic() - began_s < 5

    def test_a_child_that_is_killed(self):
        with pytest.raises(EOFError):
            call_bounded(lambda: os.kill(os.getpid(), signal.SIGKILL), 5)

    def test_a_large_result(self):
        assert len(call_bounded(lambda: bytes(3 << 20), 5)) == 3 << 20
