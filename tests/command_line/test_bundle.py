"""`vault bundle`, `vault bundle verify` and `vault key new` as a user meets them; and that nothing half-written stays."""

import json
import os
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest

from vault.format.records import Start
from vault.ids import RunId
from vault.repo.run_writer import RunWriter
from vault.testing.mounts import Site
from vault.testing.places import Place
from vault.testing.runs import TIME, record_run
from vault.testing.small_disks import NoDisk, small_disk
from vault.testing.terminals import terminal
from vault.testing.trees import noise

FILES = {b"%02d" % number: noise(1000, seed=number) for number in range(20)}


@pytest.fixture
def shop(tmp_path: Path) -> Site:
    """A store with the run `run-1`, which opened two of twenty files."""
    site = Site.make(str(tmp_path))
    place = Place(str(tmp_path))
    site.commit(place.write(FILES), "digits")
    record_run(place.repository(), "run-1", {"digits@v1": [b"03", b"07"]})
    return site


def answer(reference, site: Site, command: str, *arguments: str, status: int = 0) -> list[dict]:
    done = site.vault(*command.split(), *arguments, "--json", status=status)
    return reference.check(command, done.stdout)


def test_keys_bundles_and_checks(reference, shop: Site, tmp_path: Path) -> None:
    key, path = str(tmp_path / "lab.key"), str(tmp_path / "run.vault")
    [made] = answer(reference, shop, "key new", "--out", key)
    assert stat.S_IMODE(os.stat(key).st_mode) == 0o600
    assert Path(made["public"]).read_text().startswith("vaultfs-ed25519-public:")
    bundle = ("run-1", "-o", path, "--only-opened", "--key", key, "--yes")
    *parts, bundled = answer(reference, shop, "bundle", *bundle)
    assert [part["role"] for part in parts if part["type"] == "part"] == ["record", "input"]
    assert (bundled["files"], bundled["contents"], bundled["signer"]) == (2, "opened", made["fingerprint"])
    part, checked = answer(reference, shop, "bundle verify", path, "--key", made["public"])
    assert (part["name"], part["files_held"], part["files"]) == ("digits@v1", 2, 20)
    assert (checked["absent"], checked["trusted"], checked["run"]) == (18, True, "run-1")
    for command in ("bundle verify", "key new"):
        assert not reference.never_seen(command)
    [refused] = answer(reference, shop, "key new", "--out", key, status=6)
    assert refused["error"] == "TargetUnwritable"


def test_commands_read_it_as_a_store(shop: Site, tmp_path: Path) -> None:
    path = str(tmp_path / "run.vault")
    shop.vault("bundle", "run-1", "-o", path, "--yes", "--quiet")
    elsewhere = Site(path, str(tmp_path / "cache-elsewhere"))
    os.rename(shop.store, tmp_path / "gone")
    assert "digits" in elsewhere.vault("ls").stdout
    assert elsewhere.vault("cat", "digits@v1/03").returncode == 0
    elsewhere.vault("checkout", "digits@v1", str(tmp_path / "out"))
    assert {os.fsencode(file.name): file.read_bytes() for file in (tmp_path / "out").iterdir()} == FILES
    assert "no damage" in elsewhere.vault("verify", "--data").stdout
    assert "run-1" in elsewhere.vault("runs").stdout
    assert "run-1" in elsewhere.vault("audit", "digits@v1/03").stdout
    (tmp_path / "out" / "new").write_text("new")
    assert "never changed" in elsewhere.vault("commit", str(tmp_path / "out"), "digits", status=4).stderr
    assert "never changed" in elsewhere.vault("label", "digits@v1", "best", status=4).stderr


def test_it_lists_and_asks_before_it_writes(shop: Site, tmp_path: Path) -> None:
    path = tmp_path / "run.vault"
    done = shop.vault("bundle", "run-1", "-o", str(path), status=2)
    assert "digits@v1" in done.stdout and "--yes" in done.stderr and not path.exists()
    for reply, there in (("n\n", False), ("y\n", True)):
        with terminal(shop.command("bundle", "run-1", "-o", str(path)), shop.environment()) as screen:
            screen.wait_for("Write this")
            screen.type(reply)
            assert screen.end() == (0 if there else 130)
        assert path.exists() == there


def test_wrong_uses_say_what_to_do(shop: Site, tmp_path: Path) -> None:
    path = str(tmp_path / "run.vault")
    assert "ends in .vault" in shop.vault("bundle", "run-1", "-o", str(tmp_path / "x.zip"), "-y", status=2).stderr
    assert "there is no run" in shop.vault("bundle", "nobody", "-o", path, "-y", status=3).stderr
    public = tmp_path / "a.pub"
    public.write_text("hello\n")
    assert "vault key new" in shop.vault("bundle", "verify", path, "--key", str(public), status=2).stderr
    assert "cannot read" in shop.vault("bundle", "verify", path, status=6).stderr
    Path(path).write_bytes(b"PK")
    assert "it exists already" in shop.vault("bundle", "run-1", "-o", path, "-y", status=6).stderr
    assert "cut off" in shop.vault("bundle", "verify", path, status=5).stderr
    assert "cut off" in shop.vault("ls", "--store", path, status=5).stderr


def test_a_secret_stops_it(shop: Site, tmp_path: Path) -> None:
    path = tmp_path / "run.vault"
    place = Place(str(tmp_path))
    start = Start(identity="x", uid=1, host="h", started=TIME, command=("curl", "https://me:hunter22@example.org"))
    RunWriter(place.repository().store, RunId("run-1"), "node8-x").report(launch=start)
    done = shop.vault("bundle", "run-1", "-o", str(path), "--yes", status=2)
    assert "credentials in a URL" in done.stdout and "hunter22" not in done.stdout + done.stderr and not path.exists()
    records = [
        json.loads(line)
        for line in shop.vault("bundle", "run-1", "-o", str(path), "-y", "--json", status=2).stdout.splitlines()
    ]
    assert [record["line"] for record in records if record["type"] == "secret"] == [0]
    shop.vault("bundle", "run-1", "-o", str(path), "--yes", "--allow-secrets")
    assert path.exists()


def test_killed_it_leaves_nothing_that_looks_like_a_bundle(tmp_path: Path) -> None:
    site = Site.make(str(tmp_path))
    place = Place(str(tmp_path))
    site.commit(place.write({b"%d" % number: noise(6 << 20, seed=number) for number in range(12)}), "d")
    record_run(place.repository(), "run-1", {"d@v1": [b"1"]})
    (tmp_path / "out").mkdir()
    command = site.command("bundle", "run-1", "-o", str(tmp_path / "out" / "run.vault"), "--yes", "-q")
    process = subprocess.Popen(command, env=site.environment() | {"TMPDIR": str(tmp_path)}, stdout=subprocess.DEVNULL)
    while process.poll() is None and not any(file.stat().st_size > 1 << 20 for file in (tmp_path / "out").iterdir()):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert all(name.startswith(".run.vault.") for name in os.listdir(tmp_path / "out"))
    site.vault(*command[command.index("bundle") :])
    site.vault("bundle", "verify", str(tmp_path / "out" / "run.vault"))


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    site = Site.make(str(tmp_path))
    place = Place(str(tmp_path))
    site.commit(place.write({b"a": noise(6 << 20), b"b": noise(3 << 20, seed=2)}), "d")
    record_run(place.repository(), "run-1", {"d@v1": [b"a"]})
    try:
        with small_disk(str(tmp_path / "disk"), size="4m"):
            done = site.vault("bundle", "run-1", "-o", str(tmp_path / "disk" / "run.vault"), "--yes", status=4)
            assert "no space left" in done.stderr
            assert os.listdir(tmp_path / "disk") == []
    except NoDisk as error:
        pytest.skip(str(error))
