"""Every way to change something fails with EROFS, for root too, and where the kernel lets it through to the engine."""

import errno
import os
import socket
import subprocess
from collections.abc import Callable

import pytest

from vault.testing.mounts import Mount, mounted, run
from vault.testing.trees import read_tree

Attempt = Callable[[str, str], object]  # (an existing file, a name that is not there, beside it)


def _create(flags: int) -> Attempt:
    return lambda _file, new: os.open(new, flags, 0o644)


def _bind(_file: str, new: str) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        folder = os.open(os.path.dirname(new), os.O_PATH)
        try:
            server.bind(f"/proc/self/fd/{folder}/{os.path.basename(new)}")  # the name of a socket is short
        finally:
            os.close(folder)


ATTEMPTS: dict[str, Attempt] = {
    "open for writing": lambda file, new: os.open(file, os.O_WRONLY),
    "open for reading and writing": lambda file, new: os.open(file, os.O_RDWR),
    "open for appending": lambda file, new: os.open(file, os.O_WRONLY | os.O_APPEND),
    "open and truncate": lambda file, new: os.open(file, os.O_WRONLY | os.O_TRUNC),
    "create": _create(os.O_WRONLY | os.O_CREAT),
    "create anew": _create(os.O_RDWR | os.O_CREAT | os.O_EXCL),
    "create for reading": _create(os.O_RDONLY | os.O_CREAT),
    "create without a name": lambda file, new: os.open(os.path.dirname(file), os.O_RDWR | os.O_TMPFILE, 0o644),
    "truncate": lambda file, new: os.truncate(file, 0),
    "unlink": lambda file, new: os.unlink(file),
    "mkdir": lambda file, new: os.mkdir(new),
    "rmdir": lambda file, new: os.rmdir(os.path.dirname(file)),
    "rename": os.rename,
    "rename a folder": lambda file, new: os.rename(os.path.dirname(file), f"{os.path.dirname(file)}-2"),
    "link": os.link,
    "symlink": lambda file, new: os.symlink("target", new),
    "chmod": lambda file, new: os.chmod(file, 0o777),
    "chown": lambda file, new: os.chown(file, 1, 1),
    "chown a folder": lambda file, new: os.chown(os.path.dirname(file), 1, 1),
    "utime": lambda file, new: os.utime(file),
    "utime of a time": lambda file, new: os.utime(file, ns=(1, 1)),
    "setxattr": lambda file, new: os.setxattr(file, "user.a", b"b"),
    "removexattr": lambda file, new: os.removexattr(file, "user.a"),
    "make a FIFO": lambda file, new: os.mkfifo(new),
    "make a device": lambda file, new: os.mknod(new, 0o020600, os.makedev(1, 3)),
    "make a socket": _bind,
}


@pytest.mark.parametrize("place", ["shelf@v1/packed/text-100", "shelf@v1/run.sh", ".vault/health"])
@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_nothing_can_be_changed(mount, place, attempt):
    with pytest.raises(OSError) as caught:
        ATTEMPTS[attempt](f"{mount.path}/{place}", f"{mount.path}/{os.path.dirname(place)}/new")
    assert caught.value.errno == errno.EROFS


@pytest.mark.parametrize("place", ["", "shelf@v1", "wide", "wide/many@v1/all"])
def test_nothing_can_be_made_in_any_folder(mount, place):
    for make in (
        os.mkdir,
        os.mkfifo,
        lambda path: os.open(path, os.O_CREAT | os.O_WRONLY),
        lambda path: os.symlink("x", path),
    ):
        with pytest.raises(OSError) as caught:
            make(f"{mount.path}/{place}/new")
        assert caught.value.errno == errno.EROFS


def test_labels_and_versions_cannot_be_changed(mount):
    for change in (
        lambda: os.unlink(f"{mount.path}/shelf@latest"),
        lambda: os.rmdir(f"{mount.path}/shelf@v1"),
        lambda: os.rename(f"{mount.path}/shelf@latest", f"{mount.path}/shelf@other"),
    ):
        with pytest.raises(OSError) as caught:
            change()
        assert caught.value.errno == errno.EROFS


def test_tools_say_that_it_is_read_only(mount):
    for command in (["touch", "x"], ["rm", "-f", "shelf@v1/run.sh"], ["cp", "/etc/hostname", "."], ["mkdir", "x"]):
        done = subprocess.run(command, cwd=mount.path, capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert "Read-only file system" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can take `ro` off a mount")
def test_a_mount_made_writable_by_root_still_refuses(shelf, engine, tmp_path):
    """Then the kernel asks the engine, whose own answer is EROFS."""
    with mounted(shelf.site, str(tmp_path / "mnt"), engine=engine) as mount:
        run("mount", "--internal-only", "-o", "remount,rw", mount.path)
        before = read_tree(os.fsencode(mount.path) + b"/shelf@v1/packed")
        for what, attempt in ATTEMPTS.items():
            for place in ("shelf@v1/packed", ".vault"):
                file = f"{mount.path}/{place}/{'text-100' if 'packed' in place else 'health'}"
                with pytest.raises(OSError) as caught:
                    attempt(file, f"{mount.path}/{place}/new")
                assert caught.value.errno in _refusals(what), (what, place)
        assert read_tree(os.fsencode(mount.path) + b"/shelf@v1/packed") == before
        assert healthy(mount)


def _refusals(what: str) -> tuple[int, ...]:
    # libfuse 2 does not know the request for a file without a name, and the kernel makes this of that.
    return (errno.EROFS, errno.EOPNOTSUPP) if what == "create without a name" else (errno.EROFS,)


def healthy(mount: Mount) -> bool:
    return mount.status("health") == "ok\n"
