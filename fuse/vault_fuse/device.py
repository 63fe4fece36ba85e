"""The FUSE device and the mount table: system calls that Python's library does not have.

Everything here raises OSError or MountError and keeps no state. Linux only.
"""

import array
import ctypes
import errno
import fcntl
import logging
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from typing import Final, NamedTuple

from vault.errors import MountError
from vault_fuse.wire import MAX_READ

logger = logging.getLogger(__name__)

DEVICE: Final = "/dev/fuse"
FS_TYPE: Final = "fuse.vault"
_CLONE, _BACKING_OPEN, _BACKING_CLOSE = 0x8004E500, 0x4010E501, 0x4004E502
_MS_RDONLY, _MS_NOSUID, _MS_NODEV = 1, 2, 4
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_BACKING = struct.Struct("<iIQ")
_BACKING_ID = struct.Struct("<I")
_libc = ctypes.CDLL(None, use_errno=True)


class MountEntry(NamedTuple):
    """One line of the mount table."""

    path: str
    fs_type: str
    source: str
    device: str  # major:minor


def can_mount_directly() -> bool:
    """Return whether this process may call mount(2): root, or CAP_SYS_ADMIN."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            for line in status:
                if line.startswith("CapEff:"):
                    return bool(int(line.split()[1], 16) >> 21 & 1)
    except (OSError, ValueError):
        pass
    return os.geteuid() == 0


def mount(path: str, source: str, *, allow_other: bool) -> int:
    """Mount a FUSE file system of ours, read-only, and return its device descriptor.

    Uses mount(2) where that is allowed, else fusermount3.

    Raises:
        MountError: with what to do about it.
    """
    if can_mount_directly():
        return _mount_directly(path, source)
    return _mount_by_helper(path, source, allow_other=allow_other)


def _mount_directly(path: str, source: str) -> int:
    descriptor = _open_device()
    status = os.stat(path)
    options = (
        f"fd={descriptor},rootmode={status.st_mode & 0o170000:o},user_id={os.getuid()},group_id={os.getgid()},"
        f"allow_other,default_permissions,max_read={MAX_READ}"
    )
    flags = _MS_RDONLY | _MS_NOSUID | _MS_NODEV
    if _libc.mount(os.fsencode(source), os.fsencode(path), FS_TYPE.encode(), flags, options.encode()):
        number = ctypes.get_errno()
        os.close(descriptor)
        raise MountError(path, f"mount failed: {os.strerror(number)}")
    return descriptor


def check_device() -> None:
    """Raise MountError if there is no FUSE device, saying what to do about it."""
    if not os.path.exists(DEVICE):
        raise MountError(
            DEVICE, "does not exist: load the module (modprobe fuse); in a container, start it with --device /dev/fuse"
        )


def _open_device() -> int:
    check_device()
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise MountError(DEVICE, f"{error.strerror}: its mode must let you read and write it (usually 0666)") from None


def _mount_by_helper(path: str, source: str, *, allow_other: bool) -> int:
    helper = shutil.which("fusermount3") or shutil.which("fusermount")
    if helper is None:
        raise MountError(path, "you are not root and fusermount3 is not installed: install the package fuse3")
    os.close(_open_device())  # the helper opens it with our rights, and says less
    name = escape_option(source)
    options = ["ro", "nosuid", "nodev", f"fsname={name}", "subtype=vault", "default_permissions", f"max_read={MAX_READ}"]
    if allow_other:
        options.append("allow_other")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        done = subprocess.run(
            [helper, "-o", ",".join(options), "--", path],
            env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
            pass_fds=[theirs.fileno()],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            reason = done.stderr.strip() or f"{helper} failed"
            if "allow_other" in reason:
                reason += "; or mount without --allow-other, for yourself alone"
            raise MountError(path, reason)
        _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(4))
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors = array.array("i", data[:4])
            os.set_inheritable(descriptors[0], False)
            return descriptors[0]
    raise MountError(path, f"{helper} gave no descriptor")


def escape_option(text: str) -> str:
    """Return a text as libfuse and its helpers want it in a list of options."""
    return text.replace("\\", "\\\\").replace(",", "\\,")


def unmount(path: str, *, lazy: bool) -> None:
    """Take a mount away; lazy leaves it to those who use it. Raises OSError (EBUSY while in use)."""
    if can_mount_directly():
        if _libc.umount2(os.fsencode(path), _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)
        return
    helper = shutil.which("fusermount3") or shutil.which("fusermount")
    if helper is None:
        raise MountError(path, "you are not root and fusermount3 is not installed")
    done = subprocess.run(
        [helper, "-u", *(["-z"] if lazy else []), "--", path], capture_output=True, text=True, check=False
    )
    if done.returncode:
        busy = "busy" in done.stderr
        raise OSError(errno.EBUSY if busy else errno.EPERM, done.stderr.strip() or "fusermount failed", path)


def clone(descriptor: int) -> int:
    """Return another descriptor of the same mount, with a queue of its own for what is being answered."""
    cloned = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(cloned, _CLONE, struct.pack("<I", descriptor))
    except OSError:
        os.close(cloned)
        raise
    return cloned


def open_backing(device: int, file: int) -> int:
    """Register an open file for passthrough; return its backing ID. Raises OSError (EPERM without CAP_SYS_ADMIN)."""
    # bytearray and the mutate flag: with bytes Python drops ioctl's return value, which is the ID.
    backing: int = fcntl.ioctl(device, _BACKING_OPEN, bytearray(_BACKING.pack(file, 0, 0)), True)
    return backing


def close_backing(device: int, backing: int) -> None:
    """Let go of a backing ID."""
    fcntl.ioctl(device, _BACKING_CLOSE, _BACKING_ID.pack(backing))


def mounts() -> Iterator[MountEntry]:
    """Yield what is mounted in this mount namespace, the latest last."""
    with open("/proc/self/mountinfo", "rb") as table:
        for line in table:
            fields = line.split()
            rest = fields[fields.index(b"-") + 1 :]
            path = fields[4].decode("unicode_escape").encode("latin-1")
            yield MountEntry(os.fsdecode(path), os.fsdecode(rest[0]), os.fsdecode(rest[1]), os.fsdecode(fields[2]))


def find_mount(path: str) -> MountEntry | None:
    """Return the topmost mount at exactly this path, or None."""
    found = None
    for entry in mounts():
        if entry.path == path:
            found = entry
    return found


def is_dead(path: str) -> bool:
    """Return whether the mount at path lost its server: every call on it fails."""
    try:
        os.statvfs(path)  # stat would for a second be answered from what the kernel keeps of the root
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def widen_readahead(path: str) -> None:
    """Let the kernel ask for MAX_READ bytes at a time instead of 128 KiB: a packed file is verified as a whole anyway.

    Best effort: only root may. What is read by passthrough keeps the window of the file system below.
    """
    entry = find_mount(path)
    if entry is not None:
        try:
            with open(f"/sys/class/bdi/{entry.device}/read_ahead_kb", "w", encoding="ascii") as window:
                window.write(str(MAX_READ >> 10))
        except OSError as error:
            logger.debug("read-ahead stays as it is: %s", error)


def abort(device: str) -> None:
    """Fail every request of a mount, now and later; device is "major:minor" from the mount table. Needs root."""
    minor = device.partition(":")[2]
    with open(f"/sys/fs/fuse/connections/{minor}/abort", "w", encoding="ascii") as control:
        control.write("1")
