"""Whatever goes wrong: one line that names the thing and the next step, the right exit status, and no traceback."""

import json
import os
import re
import shutil
import signal
import subprocess

import pytest

from vault.testing.mounts import Site, wait_for

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


def fail(site: Site, *arguments: str, status: int) -> str:
    """Run a command that fails and return what it says."""
    done = site.vault(*arguments, status=status)
    assert "Traceback" not in done.stderr and done.stdout == ""
    assert done.stderr.startswith("vault: ")
    return done.stderr.removeprefix("vault: ").rstrip("\n")


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        # Names that lead nowhere.
        ("log imagenett", 3, "there is no dataset imagenett; did you mean imagenet?"),
        ("log zzz", 3, "there is no dataset zzz; 'vault ls' lists the datasets"),
        ("ls imagenet@v9", 3, "there is no version imagenet@v9; did you mean imagenet@v2?"),
        ("ls imagenet@golde", 3, "there is no label imagenet@golde; did you mean imagenet@golden?"),
        ("ls imagenet@zzz", 3, "there is no label imagenet@zzz; 'vault log imagenet' lists versions and labels"),
        ("cat imagenet@v2/lables.csv", 3, "there is no path imagenet@v2/lables.csv; did you mean imagenet@v2/labels.csv?"),
        ("show imagenet@v2/train/n1", 3, "did you mean imagenet@v2/train/n01?"),
        ("ls imagenet@v2/zzz", 3, "there is no path imagenet@v2/zzz; 'vault ls imagenet@v2' lists what there is"),
        ("ls imagenet/train", 3, "did you mean imagenet@latest/train?"),
        ("audit vision/coco/n01", 3, "did you mean vision/coco@latest/n01?"),
        ("ls /vault/imagenet@v2/train", 2, "did you mean imagenet@v2/train?"),
        ("ls imagenet@b3:00000000", 3, "there is no version imagenet@b3:00000000"),
        ("diff imagenet@v1 imagenet@v3", 3, "did you mean imagenet@v2?"),
        ("audit --run zzz", 3, "there is no run zzz; 'vault runs' lists the runs"),
        ("runs --dataset imagenett", 3, "did you mean imagenet?"),
        ("label --delete imagenet@zzz", 3, "there is no label imagenet@zzz"),
        # Words that make no sense.
        ("ls Imagenet", 2, "'Imagenet' is not a valid name: dataset names are lower-case"),
        ("ls imagenet@b3:1234", 2, "8 or more hex digits"),
        ("ls imagenet@v2/../etc", 2, "no '.', '..' or NUL"),
        ("label imagenet@v1 v7", 2, "'v7' is not a valid name: labels"),
        ("label imagenet@v1 latest", 2, "neither vN nor 'latest'"),
        ("label imagenet@v1/train best", 2, "labels are those of a whole version: imagenet@v1"),
        ("label --delete imagenet@v1", 2, "--delete takes NAME@LABEL alone"),
        ("log imagenet@v1/train", 2, "vault log imagenet@v1"),
        ("cat imagenet@v2/train", 2, "is a folder: 'vault ls imagenet@v2/train' lists it"),
        ("cat imagenet@v2/link", 2, "is a symlink to labels.csv: name that instead"),
        ("commit . Bad@Name", 2, "'Bad@Name' is not a valid name"),
        ("runs --since yesterday", 2, "--since yesterday: give 7d, 12h, 30m, a date"),
        ("runs --since 99999999999w", 2, "--since 99999999999w: give"),
        ("audit", 2, "give either a TARGET"),
        ("audit --files imagenet", 2, "--files goes with --run RUN"),
        ("comit", 2, "there is no command 'comit'; did you mean 'commit'?"),
        ("log", 2, "(?s)missing argument.*usage: vault log .*'vault log --help' has examples"),
        ("log imagenet --quite", 2, "(?s)no such option '--quite'.*--quiet"),
        ("log imagenet -n 0", 2, "0 is not in the range"),
        ("ls --store", 2, "option '--store' requires an argument"),
        # Stores.
        ("ls --store /no/such/store", 3, "/no/such/store is not a vault store: create one with 'vault init'"),
        ("ls --store /etc", 3, "/etc is not a vault store"),
        ("ls --store gopher://bucket/x", 2, "this vault has no gopher:// stores"),
        ("init", 8, "is a vault store already"),
        ("init /etc", 8, "/etc is not empty"),
        # Files.
        ("commit /no/such/folder new", 6, "cannot read /no/such/folder: No such file or directory"),
        ("checkout imagenet@v1 /etc", 2, "/etc exists: give a new or empty folder"),
        ("checkout imagenet@v1 /proc/x/y", 6, "cannot write /proc/x/y"),
        ("ls imagenet@v1 --cache-dir /proc/x", 9, "cannot use the cache in /proc/x/.*set VAULTFS_CACHE_DIR"),
        # Mounts.
        ("umount /etc", 7, "/etc: no vault is mounted here"),
        ("mount /no/such/folder", 7, "there is no such folder: make it with 'mkdir -p /no/such/folder'"),
        ("mount /etc", 7, "/etc: is not empty"),
        ("mount /etc/passwd", 7, "is not a folder"),
        ("mount --engine nfs /mnt", 2, "'nfs' is not one of 'direct', 'fusepy'"),
    ],
)  # fmt: skip
def test_it_says_what_is_wrong_and_what_to_do(library, arguments, status, says):
    assert re.search(says, fail(library, *arguments.split(), status=status))


def test_no_store_is_named(library, tmp_path):
    site = library.with_variables(VAULTFS_STORE="", XDG_CONFIG_HOME=str(tmp_path))
    assert fail(site, "ls", status=2) == "no store is named: give --store or set VAULTFS_STORE"


def test_a_store_of_a_newer_version(site, tmp_path):
    path = tmp_path / "store/vault.json"
    path.chmod(0o644)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 7}))
    assert fail(site, "ls", status=4) == "this store has format version 7, this vault reads up to 1: upgrade vaultfs"


def test_a_file_that_is_no_vault_json(site, tmp_path):
    path = tmp_path / "store/vault.json"
    path.chmod(0o644)
    path.write_text("{}")
    assert f"not a valid vault store: {site.store}" in fail(site, "ls", status=5)


def test_a_prefix_that_several_snapshots_have(site, tmp_path, monkeypatch):
    # Eight digits cannot be made to collide, so the journal is written by hand: two snapshots that begin alike.
    from vault.ids import Digest
    from vault.repo.datasets import Datasets
    from vault.stores.local import LocalStore

    datasets = Datasets(LocalStore(site.store))
    for last in (1, 2):
        snapshot = Digest(bytes.fromhex("0123456789") + bytes([last]) + bytes(26))
        datasets.append_version("d", snapshot, author="ana", files=0, size_bytes=0)
    said = fail(site, "log", "d@b3:01234567", status=3)
    assert said == "d@b3:01234567 could be b3:012345678901 (v1), b3:012345678902 (v2): give more of it"
    assert "d@v2" in site.vault("log", "d@b3:012345678902").stdout


def test_a_special_file_is_named(site, tmp_path):
    (tmp_path / "source").mkdir()
    os.mkfifo(tmp_path / "source/pipe")
    said = fail(site, "commit", str(tmp_path / "source"), "d", status=6)
    assert said == f"{tmp_path}/source/pipe is a FIFO: remove it, --exclude it, or pass --skip-special"


def test_a_damaged_file_is_never_printed_as_good(site, tmp_path):
    (tmp_path / "file").write_text("content that is damaged later")
    site.vault("commit", str(tmp_path / "file"), "d")
    for pack in (tmp_path / "store/packs").rglob("*.pack"):
        pack.chmod(0o644)
        data = pack.read_bytes()
        pack.write_bytes(data.replace(b"content", b"CONTENT"))
    assert "is damaged" in fail(site, "cat", "d@v1/file", status=5)
    assert "is damaged" in fail(site, "checkout", "d@v1", str(tmp_path / "out"), status=5)
    assert not (tmp_path / "out").exists()


def test_a_disk_that_is_full(site, tmp_path):
    if os.geteuid():
        pytest.skip("mounting a small file system takes root")
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(small)], check=True)
    try:
        (tmp_path / "file").write_bytes(os.urandom(3 << 20))
        site.vault("init", str(small / "store"))
        said = fail(site, "commit", str(tmp_path / "file"), "d", "--store", str(small / "store"), status=4)
        assert re.search("no space left .*free some and run the command again", said)
        site.vault("commit", str(tmp_path / "file"), "d")
        assert "no space left" in fail(site, "checkout", "d@v1", str(small / "out"), status=4)
        assert os.listdir(small) == ["store"], "nothing half-written stays"
    finally:
        subprocess.run(["umount", str(small)], check=True)


class TestNobody:
    """What a user without rights is told."""

    @pytest.fixture
    def nobody(self, library, tmp_path):
        probe = [*NOBODY, *library.command("--version")]
        if os.geteuid() or not shutil.which("setpriv"):
            pytest.skip("becoming somebody else takes root and setpriv")
        if subprocess.run(probe, capture_output=True, check=False).returncode:
            pytest.skip("other users cannot start this Python")
        cache = tmp_path / "cache"
        cache.mkdir()
        cache.chmod(0o777)
        for folder in (tmp_path, *tmp_path.parents):
            folder.chmod(folder.stat().st_mode | 0o011) if str(folder).startswith("/tmp/") else None
        for folder in (library.store, os.path.dirname(library.store)):
            os.chmod(folder, 0o755)
        for above in (os.path.dirname(os.path.dirname(library.store)),):
            os.chmod(above, os.stat(above).st_mode | 0o011)
        return Site(library.store, str(cache), wrap=NOBODY, variables={"HOME": "/nonexistent"})

    def test_may_read_what_others_let_him(self, nobody):
        assert "labels.csv" in nobody.vault("ls", "imagenet@v2").stdout

    def test_cannot_write_to_the_store(self, nobody, tmp_path):
        said = fail(nobody, "label", "imagenet@v1", "mine", status=4)
        assert said == f"no permission for {nobody.store}: ask its owner for access"

    def test_cannot_read_the_store(self, nobody):
        os.chmod(nobody.store, 0o700)
        try:
            assert re.search(f"no permission for {nobody.store}.*: ask its owner", fail(nobody, "ls", status=4))
        finally:
            os.chmod(nobody.store, 0o755)

    def test_cannot_write_to_the_cache(self, nobody):
        os.chmod(nobody.cache, 0o755)
        said = fail(nobody, "ls", "imagenet@v1", status=9)
        assert f"cannot use the cache in {nobody.cache}" in said and "set VAULTFS_CACHE_DIR" in said

    def test_cannot_make_a_store(self, nobody):
        assert "no permission for /usr/vault-store" in fail(nobody, "init", "/usr/vault-store", status=4)

    def test_is_told_by_the_doctor(self, nobody):
        done = nobody.vault("doctor", "--json", status=None)
        checks = {
            record["name"]: record for record in map(json.loads, done.stdout.splitlines()) if record["type"] == "check"
        }
        assert checks["writing"]["status"] == "note" and "may not write" in checks["writing"]["text"]
        assert "fusermount3" in done.stdout
        assert checks["kernel"]["status"] == "note"


def test_a_bug_of_ours_has_no_traceback_unless_asked_for(library, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text("import vault.api\nvault.api.Vault.datasets = lambda self: 1 / 0\n")
    site = library.with_variables(PYTHONPATH=str(broken))
    said = fail(site, "ls", status=70)
    assert said.startswith("internal error: ZeroDivisionError: division by zero") and "please report it" in said
    assert "Traceback" in site.vault("ls", "-v", status=70).stderr


def test_ctrl_c(site, tmp_path):
    """A commit of what never ends: the signal comes while it reads."""
    source = tmp_path / "source"
    source.mkdir()
    with (source / "large").open("wb") as file:
        file.truncate(200 << 30)
    process = subprocess.Popen(
        site.command("commit", str(source), "d"),
        env=site.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for("the commit to read", lambda: _reads(process.pid) > 50_000_000)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130 and out == ""
    assert err == (
        "no version was made; what was stored so far is not stored again by the next commit\nvault: interrupted\n"
    )
    assert not os.path.exists(f"{site.store}/datasets")


def _reads(pid: int) -> int:
    with open(f"/proc/{pid}/io", encoding="ascii") as file:
        return int(file.readline().split()[1])
