"""Runs one command in mounts of its own: everything read-only, but for folders put over the paths that it writes to.

    python -m vault.ops.private_place      a Plan in JSON on stdin; what goes wrong before it starts, on descriptor 3

Root uses a mount namespace, anybody else one in a user namespace, if the kernel lets them. Nothing outside of the namespace
changes; it ends with its last process. The process becomes the command. Threads: one, or the kernel refuses.
"""

import ctypes
import errno
import os
import stat
import sys
from typing import Final

import msgspec

REPORT_DESCRIPTOR: Final = 3
NOT_STARTED: Final = 125
_NEW_MOUNTS: Final = 0x00020000
_NEW_USER: Final = 0x10000000
_BIND, _REC, _PRIVATE, _NODEV, _NOSUID = 0x1000, 0x4000, 1 << 18, 4, 2
_MOUNT_SETATTR: Final = 442  # the same number on every machine
_READ_ONLY: Final = 1
_RECURSIVE: Final = 0x8000
_CHILDREN_MAX: Final = 4096
_libc: Final = ctypes.CDLL(None, use_errno=True)


class Bind(msgspec.Struct, frozen=True):
    """Something that is to be found under another path."""

    source: str
    target: str
    writable: bool = False


class Plan(msgspec.Struct, frozen=True):
    """What to run, and where."""

    words: tuple[str, ...]
    executable: str
    cwd: str
    environment: dict[str, str]
    binds: tuple[Bind, ...]
    scratch: str  # a folder of our own, with an empty one called "root"


class _Refused(Exception):
    """A step that the kernel did not allow."""


def enter(plan: Plan) -> None:
    """Make this process's view of the files that of the plan. Raises _Refused."""
    _unshare()
    _call("mount", None, b"/", None, _REC | _PRIVATE, None, what="make mounts private")
    # Sources are held before anything is put over them.
    held = [(bind, os.open(bind.source, os.O_PATH | os.O_CLOEXEC)) for bind in plan.binds]
    _set_read_only("/", True, recursive=True)
    _set_read_only("/proc", False, recursive=False, best_effort=True)
    if any(not os.path.lexists("/" + bind.target.split("/")[1]) for bind in plan.binds):
        _mirror("/", plan.scratch)  # while the scratch folder is in sight
    for bind, source in sorted(held, key=lambda pair: pair[0].target.count("/") if pair[0].target != "/" else 0):
        is_folder = stat.S_ISDIR(os.fstat(source).st_mode)
        _make_place(bind.target, is_folder, plan.scratch)
        _bind(source, bind.target)
        _set_read_only(bind.target, not bind.writable, recursive=False)
        os.close(source)
    os.chdir(plan.cwd)


def _unshare() -> None:
    if _libc.unshare(_NEW_MOUNTS) == 0:
        return
    uid, gid = os.geteuid(), os.getegid()
    if _libc.unshare(_NEW_USER | _NEW_MOUNTS):
        raise _Refused(
            f"this system lets only root have a private view of files ({os.strerror(ctypes.get_errno())}): run it as root,"
            " or let users have namespaces (sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns)"
        )
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


def _make_place(target: str, is_folder: bool, scratch: str) -> None:
    """See to it that there is something at a path that can be covered."""
    if os.path.isdir(target) if is_folder else os.path.lexists(target):
        return
    parent = os.path.dirname(target)
    if not os.path.isdir(parent):
        _make_place(parent, True, scratch)
    try:
        _create(target, is_folder)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        _mirror(parent, scratch)
        _create(target, is_folder)


def _create(path: str, is_folder: bool) -> None:
    if is_folder:
        os.mkdir(path)
    else:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))


def _mirror(folder: str, scratch: str) -> None:
    """Put a folder in memory in the place of one that cannot be written, with the same things in it."""
    real = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    names = os.listdir(real)
    if len(names) > _CHILDREN_MAX:
        raise _Refused(f"{folder} holds {len(names):,} things: make the missing folder below it by hand")
    place = os.path.join(scratch, "root") if folder == "/" else folder
    _call("mount", b"tmpfs", os.fsencode(place), b"tmpfs", _NODEV | _NOSUID, b"mode=755", what=f"mount on {place}")
    for name in names:
        child = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=real)
        mode = os.fstat(child).st_mode
        if stat.S_ISLNK(mode):
            os.symlink(os.readlink(name, dir_fd=real), f"{place}/{name}")
        else:
            _create(f"{place}/{name}", stat.S_ISDIR(mode))
            _bind(child, f"{place}/{name}")
        os.close(child)
    os.close(real)
    if folder == "/":
        os.chroot(place)
        os.chdir("/")


def _bind(source: int, target: str) -> None:
    _call("mount", b"/proc/self/fd/%d" % source, os.fsencode(target), None, _BIND | _REC, None, what=f"show {target}")


class _Attributes(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "user"))


def _set_read_only(path: str, value: bool, *, recursive: bool, best_effort: bool = False) -> None:
    attributes = _Attributes(set=_READ_ONLY) if value else _Attributes(clear=_READ_ONLY)
    flags = _RECURSIVE if recursive else 0
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    if _libc.syscall(_MOUNT_SETATTR, -100, os.fsencode(path), flags, ctypes.byref(attributes), size) and not best_effort:
        code = ctypes.get_errno()
        hint = ": this needs Linux 5.12" if code == errno.ENOSYS else ""
        raise _Refused(f"{path} cannot be made {'read-only' if value else 'writable'} ({os.strerror(code)}){hint}")


def _call(name: str, *arguments: object, what: str) -> None:
    if getattr(_libc, name)(*arguments):
        raise _Refused(f"cannot {what} ({os.strerror(ctypes.get_errno())})")


def main() -> None:
    """Take a plan, carry it out, and become the command."""
    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    os.set_inheritable(REPORT_DESCRIPTOR, False)
    try:
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        enter(plan)
        os.execve(plan.executable, list(plan.words), plan.environment)
    except (_Refused, OSError) as error:
        os.write(REPORT_DESCRIPTOR, str(error).encode(errors="backslashreplace"))
        os._exit(NOT_STARTED)


if __name__ == "__main__":
    main()
