"""How this machine is equipped to mount, and how its mounts fare, in plain words. Changes nothing.

Whoever calls these gives each a time limit: a mount whose server hangs does not answer. Threads: the caller's.
"""

import errno
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import Final

from vault.errors import UsageError
from vault.ops.health import Finding, Status
from vault_fuse import device as fuse_device
from vault_fuse.mounting import DIRECT, FUSEPY, choose_engine, direct_missing

_PASSTHROUGH_KERNEL: Final = (6, 9)
_FUSE_CONF: Final = "/etc/fuse.conf"
_HEAD_SIZE: Final = 4096


def check_program() -> Iterator[Finding]:
    """Say what runs, and whether another program has taken the name `vault`."""
    system = os.uname()
    python = ".".join(map(str, sys.version_info[:3]))
    yield Finding(Status.OK, f"vaultfs {version('vaultfs')}, Python {python}, {system.sysname} {system.release}")
    other = shutil.which("vault")
    if other is not None and not _is_ours(other):
        text = f"{other} is another program of the same name"
        yield Finding(Status.NOTE, text, "type 'vaultfs': it is this program under a second name")


def check_device() -> Iterator[Finding]:
    """Say whether /dev/fuse can be used."""
    if sys.platform != "linux":
        yield Finding(Status.NOTE, f"{sys.platform} has no {fuse_device.DEVICE}", "mounts use the engine fusepy")
        return
    try:
        os.close(os.open(fuse_device.DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        advice = "load the module (modprobe fuse); in a container, start it with --device /dev/fuse --cap-add SYS_ADMIN"
        yield Finding(Status.PROBLEM, f"{fuse_device.DEVICE} does not exist", advice)
    except OSError as error:
        advice = "its mode must let you read and write it (usually 0666); a container needs --device /dev/fuse"
        yield Finding(Status.PROBLEM, f"{fuse_device.DEVICE}: {error.strerror}", advice)
    else:
        yield Finding(Status.OK, f"{fuse_device.DEVICE} can be opened")


def check_right_to_mount() -> Iterator[Finding]:
    """Say how this user could mount."""
    if fuse_device.can_mount_directly():
        yield Finding(Status.OK, "this process may mount by itself (CAP_SYS_ADMIN); every user may read what it mounts")
        return
    helper = shutil.which("fusermount3") or shutil.which("fusermount")
    if helper is None:
        yield Finding(
            Status.PROBLEM, "this user may not mount, and fusermount3 is not installed", "install the package fuse3"
        )
        return
    status = os.stat(helper)
    if not (status.st_mode & stat.S_ISUID and status.st_uid == 0):
        text = f"{helper} is not owned by root with the set-user-ID bit, so it may not mount either"
        yield Finding(Status.PROBLEM, text, "reinstall the package fuse3; in a container, run it with --cap-add SYS_ADMIN")
        return
    yield Finding(Status.OK, f"this user mounts through {helper}")
    if not _others_are_allowed():
        advice = f"add the line user_allow_other to {_FUSE_CONF} (root may), and mount with --allow-other"
        yield Finding(Status.NOTE, "what this user mounts, nobody else can read, not even root", advice)


def check_engine(requested: str) -> Iterator[Finding]:
    """Say which engine `vault mount` would use, and whether it can run."""
    try:
        engine = choose_engine(requested)
    except UsageError as error:
        yield Finding(Status.PROBLEM, str(error), "unset VAULTFS_ENGINE, and engine in config.toml")
        return
    if engine == DIRECT:
        yield Finding(Status.OK, "mounts use the engine direct")
    else:
        reason = direct_missing()
        yield Finding(
            Status.OK if not reason else Status.NOTE, f"mounts use the engine fusepy{f': {reason}' if reason else ''}"
        )
    missing = _fusepy_missing()
    if not missing:
        yield Finding(Status.OK, "the engine fusepy could be used, too" if engine == DIRECT else "fusepy finds libfuse")
    elif engine == FUSEPY:
        yield Finding(Status.PROBLEM, f"fusepy cannot be loaded: {missing}", "install libfuse 2 (Debian: libfuse2)")
    else:
        advice = "nothing, unless you want it: then install libfuse 2 (Debian: libfuse2)"
        yield Finding(Status.NOTE, f"the second engine, fusepy, could not be used: {missing}", advice)


def check_passthrough() -> Iterator[Finding]:
    """Say whether the kernel would read whole files without asking us."""
    release = os.uname().release
    numbers = tuple(int("".join(filter(str.isdigit, part)) or 0) for part in release.split(".")[:2])
    if numbers < _PASSTHROUGH_KERNEL:
        text = f"large files are not handed to the kernel: Linux {release} is older than 6.9"
        yield Finding(Status.NOTE, text, "nothing; a newer kernel reads them faster")
    elif not fuse_device.can_mount_directly():
        text = "large files are not handed to the kernel: that takes CAP_SYS_ADMIN"
        yield Finding(Status.NOTE, text, "nothing; a mount made by root reads them faster")
    else:
        yield Finding(Status.OK, "large files are handed to the kernel (passthrough)")


def vault_mounts() -> list[str]:
    """Return where vaults are mounted in this mount namespace, each place once."""
    return list(dict.fromkeys(entry.path for entry in fuse_device.mounts() if entry.fs_type == fuse_device.FS_TYPE))


def check_mount(path: str) -> Iterator[Finding]:
    """Say how one mount fares. May never return: see above."""
    take_away = f"take it away with 'vault umount --lazy {path}', and mount again"
    try:
        facts = {name: _status_file(path, name) for name in ("engine", "health", "store", "pid")}
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            yield Finding(Status.PROBLEM, f"{path} is dead: the process that served it is gone", take_away)
        elif error.errno in (errno.EACCES, errno.EPERM):
            yield Finding(Status.OK, f"{path} belongs to another user")
        else:
            yield Finding(Status.PROBLEM, f"{path}: {error.strerror}", take_away)
        return
    text = f"{path} shows {facts['store']} (engine {facts['engine']}, process {facts['pid']}): {facts['health']}"
    if facts["health"] == "ok":
        yield Finding(Status.OK, text)
    else:
        yield Finding(Status.PROBLEM, text, "its log names the requests (in the cache directory, STORE-ID/log/)")


def mount_hangs(path: str) -> Finding:
    """Return what is to be said of a mount that did not answer in time."""
    advice = f"its processes hang or are stopped; 'vault umount --lazy {path}' takes it out of sight"
    return Finding(Status.PROBLEM, f"{path} does not answer", advice)


def _status_file(path: str, name: str) -> str:
    with open(os.path.join(path, ".vault", name), encoding="utf-8", errors="surrogateescape") as file:
        return file.read(_HEAD_SIZE).strip()


def _is_ours(program: str) -> bool:
    """Return whether a program is a script that starts us."""
    try:
        with open(program, "rb") as file:
            return b"vault.cli" in file.read(_HEAD_SIZE)
    except OSError:
        return True  # who cannot read it cannot start it by mistake either


def _others_are_allowed() -> bool:
    try:
        with open(_FUSE_CONF, encoding="utf-8", errors="replace") as file:
            return any(line.split("#")[0].strip() == "user_allow_other" for line in file)
    except OSError:
        return False


def _fusepy_missing() -> str:
    """Return why fusepy cannot be loaded, or "". Loads it: for a process of its own."""
    try:
        import fuse

        getattr(fuse, "FUSE")  # noqa: B009 - an empty folder called fuse would import as well
    except (OSError, ImportError, AttributeError) as error:  # it looks for libfuse when it is imported
        return str(error)
    return ""
