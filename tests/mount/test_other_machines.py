"""Machines that are not as ours: no /dev/fuse, no rights, no helper. Each in a mount namespace, which hides the real ones.

The scripts below run as root in `unshare --mount`: what they mount or hide there, nobody else sees.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import vault_fuse

import vault
from vault.testing.mounts import Site
from vault.testing.trees import noise, write_tree

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes mount namespaces")

NOBODY = 65534
MOUNT = 7
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=-all")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that other users can enter: pytest's own lets nobody in."""
    made = Path(tempfile.mkdtemp(prefix="vault-test-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def stored(folder: Path) -> Site:
    """A store that belongs to nobody, the user."""
    write_tree(os.fsencode(folder / "source"), {b"a": b"content", b"whole": noise(6 << 20, seed=1)})
    site = Site.make(str(folder))
    site.commit(str(folder / "source"), "data")
    (folder / "mnt").mkdir()
    for path, folders, files in os.walk(folder):
        for name in (".", *folders, *files):
            os.chown(os.path.join(path, name), NOBODY, NOBODY)
    return site


def python_of_nobody() -> dict[str, str]:
    """Return PYTHON and PYTHONPATH with which another user can run vault; skips if there are none."""
    ours = [os.path.dirname(package.__path__[0]) for package in (vault, vault_fuse)]
    packages = ":".join([sysconfig.get_paths()["purelib"], *ours])
    candidates = {sys.executable: "", f"/usr/bin/python3.{sys.version_info.minor}": packages}
    for python, path in candidates.items():
        variables = {"PYTHON": python, "PYTHONPATH": path}
        # By a shell: setpriv itself still has root's rights when it starts a program.
        probe = [*AS_NOBODY, "sh", "-c", 'exec "$0" -c "import vault.cli.main, vault_fuse.command"', python]
        if (
            os.path.exists(python)
            and not subprocess.run(
                probe, env={**os.environ, **variables}, capture_output=True, cwd="/", check=False
            ).returncode
        ):
            return variables
    pytest.skip("no Python that other users can run has this vault")


def run_script(site: Site, script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script in a mount namespace of its own, with $VAULT for the command."""
    environment = {**site.environment(), "PYTHON": sys.executable, "HOME": "/nonexistent", **variables}
    environment["VAULT"] = f"{environment['PYTHON']} -m vault"
    environment["MNT"] = os.path.join(os.path.dirname(site.store), "mnt")
    command = ["unshare", "--mount", "--propagation", "private", "--", "bash", "-ec", script]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90, cwd="/", check=False)


# Hides /dev behind a folder with the devices that a container has. $1: more commands.
DEVICES = """
mkdir "$MNT/../dev"; mount -t tmpfs -o dev none "$MNT/../dev"
mknod -m 666 "$MNT/../dev/null" c 1 3; mknod -m 666 "$MNT/../dev/zero" c 1 5; mknod -m 666 "$MNT/../dev/urandom" c 1 9
"""
HIDE = 'mount --bind "$MNT/../dev" /dev\n'


@pytest.mark.parametrize("engine", ["direct", "fusepy", ""])
def test_without_the_device_an_error_says_what_to_do(stored, engine):
    option = f"--engine {engine}" if engine else ""
    done = run_script(stored, DEVICES + HIDE + f'exec $VAULT mount {option} "$MNT"')
    assert done.returncode == MOUNT, done.stderr
    assert "/dev/fuse" in done.stderr
    assert "modprobe fuse" in done.stderr
    assert "--device /dev/fuse" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_rights_on_the_device_an_error_says_what_to_do(stored):
    """Root without the right to open it: as in a container whose device cgroup forbids it."""
    script = DEVICES + 'mknod -m 666 "$MNT/../dev/fuse" c 10 230\n' + HIDE + 'exec $VAULT mount "$MNT"'
    done = run_script(stored, script)
    assert done.returncode == MOUNT, done.stderr
    assert "/dev/fuse" in done.stderr
    assert "Traceback" not in done.stderr


USER = """
mknod -m 666 "$MNT/../dev/fuse" c 10 229
{hide}
exec {as_nobody} bash -ec '
    trap "cd /; $VAULT umount \\"$MNT\\" >/dev/null 2>&1 || true" EXIT
    $VAULT mount --engine {engine} "$MNT"
    cat "$MNT/.vault/engine"
    ls "$MNT/data@v1"
    cat "$MNT/data@v1/a"; echo
    cmp "$MNT/data@v1/whole" "$MNT/../source/whole" && cmp "$MNT/data@v1/whole" "$MNT/../source/whole"
    VAULTFS_RUN=mine cat "$MNT/data@latest/a" >/dev/null
    stat -c "%U %a" "$MNT/data@v1/a"
    $VAULT umount "$MNT"
    $VAULT audit --run mine --files
    ls "$MNT" | wc -l
'
"""


@pytest.mark.parametrize("engine", ["direct", "fusepy"])
def test_a_user_mounts_reads_and_unmounts(stored, engine):
    """Through fusermount3, which is set-user-ID root, and without passthrough."""
    if shutil.which("fusermount3") is None:
        pytest.skip("fusermount3 is not installed (Debian: fuse3)")
    python = python_of_nobody()
    as_nobody = " ".join(AS_NOBODY)
    script = DEVICES + USER.format(hide=HIDE, as_nobody=as_nobody, engine=engine)
    done = run_script(stored, script, **python)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[1:6] == [engine, "a", "whole", "content", "nobody 444"]
    assert lines[7:] == ["data@v1/a", "0"]


def test_a_user_who_may_not_open_the_device_is_told(stored):
    python = python_of_nobody()
    script = f"""
        mknod -m 600 "$MNT/../dev/fuse" c 10 229
        {HIDE}
        exec {" ".join(AS_NOBODY)} $VAULT mount "$MNT"
    """
    done = run_script(stored, DEVICES + script, **python)
    assert done.returncode == MOUNT
    assert "/dev/fuse" in done.stderr
    assert "usually 0666" in done.stderr


def test_root_may_not_look_into_a_users_mount(stored):
    python = python_of_nobody()
    script = f"""
        mknod -m 666 "$MNT/../dev/fuse" c 10 229
        {HIDE}
        trap "{" ".join(AS_NOBODY)} $VAULT umount \\"$MNT\\"" EXIT
        {" ".join(AS_NOBODY)} $VAULT mount "$MNT"
        ls "$MNT" 2>&1 || true
    """
    done = run_script(stored, DEVICES + script, **python)
    assert done.returncode == 0, done.stderr
    assert "Permission denied" in done.stdout


def test_others_need_the_systems_leave(stored):
    """`--allow-other` without user_allow_other in fuse.conf: an error that says so."""
    python = python_of_nobody()
    script = f"""
        mknod -m 666 "$MNT/../dev/fuse" c 10 229
        {HIDE}
        touch "$MNT/../fuse.conf"; mount --bind "$MNT/../fuse.conf" /etc/fuse.conf
        exec {" ".join(AS_NOBODY)} $VAULT mount --allow-other "$MNT"
    """
    if not os.path.exists("/etc/fuse.conf"):
        pytest.skip("this system has no /etc/fuse.conf")
    done = run_script(stored, DEVICES + script, **python)
    assert done.returncode == MOUNT, done.stdout
    assert "user_allow_other" in done.stderr
    assert "without --allow-other" in done.stderr


def test_without_the_helper_a_user_is_told_which_package_it_is_in(stored):
    python = python_of_nobody()
    script = DEVICES + f"""exec {" ".join(AS_NOBODY)} sh -c 'PATH=/nonexistent exec $VAULT mount "$MNT"'"""
    done = run_script(stored, script, **python)
    assert done.returncode == MOUNT, done.stderr
    assert "install the package fuse3" in done.stderr
