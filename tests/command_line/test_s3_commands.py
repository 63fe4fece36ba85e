"""Every command as a user types it, on a store in a bucket: one story from `init` to a bundle."""

import json
import sys
from pathlib import Path

import pytest

from vault.cli.commands import COMMANDS
from vault.testing.gateway import Gateway
from vault.testing.mounts import Site, mounted, why_not_mountable

# Tried on a bucket by tests of their own, or without a store.
ELSEWHERE = set("completion sync warm prefetch edit status identify".split())
ELSEWHERE |= {f"cache {verb}" for verb in ("status", "pin", "unpin", "prune", "check")}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.fuse,
    pytest.mark.skipif(bool(why_not_mountable("direct")), reason=why_not_mountable("direct") or "-"),
]


def test_every_command_works_on_a_bucket(gateway: Gateway, place: str, tmp_path: Path) -> None:
    site = Site(place, str(tmp_path / "cache"), ("env", "--chdir", str(tmp_path)), gateway.variables())
    typed: set[str] = set()

    def vault(command: str, *arguments: str, status: int = 0) -> str:
        typed.add(command)
        return site.vault(*command.split(), *arguments, status=status).stdout

    def file(name: str) -> str:
        return str(tmp_path / name)

    assert vault("init") == f"made an empty store in {place}\n"
    vault("init", status=8)
    source = tmp_path / "source"
    (source / "train").mkdir(parents=True)
    for number in range(30):
        (source / f"train/{number}.txt").write_text(f"file {number}\n" * number)
    (source / "large").write_bytes(bytes(range(256)) * 25_000)
    vault("commit", str(source), "digits", "-m", "first")
    (source / "train/3.txt").write_text("changed\n")
    vault("commit", str(source), "digits", "-m", "second")
    assert vault("log", "digits").count("digits@v") == 2
    vault("label", "digits@v1", "golden")
    assert vault("ls", "digits@golden") == "large\ntrain/\n"
    assert "30 files" in vault("show", "digits@v1/train")
    assert vault("cat", "digits@v2/train/3.txt") == "changed\n"
    assert "train/3.txt" in vault("diff", "digits@v1", "digits@v2")
    assert f" requests to {place}: " in site.vault("-v", "log", "digits").stderr
    vault("checkout", "digits@v1", file("copy"))
    assert (tmp_path / "copy/large").read_bytes() == (source / "large").read_bytes()
    assert "no damage found" in vault("verify", "--data")
    doctor = site.vault("doctor", status=None).stdout  # it looks at the mounts of everybody, too
    typed.add("doctor")
    for name in ("store", "writing", "left-overs", "clock", "index", "records"):
        assert f"ok       {name}" in doctor

    typed |= {"mount", "umount"}
    script = "import sys, pathlib; pathlib.Path(sys.argv[2]).write_bytes(pathlib.Path(sys.argv[1]).read_bytes())"
    with mounted(site, file("mnt"), engine="direct") as mount:
        for number in (1, 2):
            (tmp_path / f"out{number}").mkdir()
            reads = f"{mount.path}/digits@v{number}/train/3.txt"
            command = [sys.executable, "-c", script, reads, file(f"out{number}/weights")]
            vault("run", "--name", f"run-{number}", "--out", f"{file(f'out{number}')}=model", "--", *command)
        vault("umount", mount.path)
    runs = [record["run"] for record in map(json.loads, vault("runs", "--json").splitlines()) if record["type"] == "run"]
    assert runs == ["run-2", "run-1"]
    later, earlier = runs
    assert "digits@v1" in vault("runs show", earlier)
    assert "digits" in vault("compare", earlier, later)
    assert later in vault("audit", "digits@v2/train/3.txt")
    assert "digits@v2" in vault("lineage", "model@v2")
    assert "model@v2" in vault("whence", file("out2/weights"))
    vault("export", later, "--format", "openlineage")
    assert "L0" in vault("reproduce", later)

    vault("key new", "--out", file("lab.key"))
    vault("ledger checkpoint", "--key", file("lab.key"), "-o", file("kept"))
    assert "1" in vault("ledger show")
    vault("ledger prove", "digits@v1", "-o", file("proof"))
    vault("ledger check", file("proof"), "--key", file("lab.key.pub"))
    vault("audit verify", "--since", file("kept"), "--key", file("lab.key.pub"))
    vault("bundle", later, "-o", file("run.vault"), "--key", file("lab.key"), "--yes", "--allow-secrets")
    vault("bundle verify", file("run.vault"), "--key", file("lab.key.pub"))
    assert set(COMMANDS) - typed - ELSEWHERE == set()
