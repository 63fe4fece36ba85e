"""An edit view for who may not mount: in a user namespace, seen by one command and what it starts.

The command runs as the same user, with the rights of the namespace's root over files that are his own: so it may write
where modes say no (a mounted version is read-only by its modes too), and may commit, which remounts the view. The process
becomes the command. Threads: one, or the kernel refuses.
"""

import ctypes
import os
from collections.abc import Sequence
from typing import Final, NoReturn

from vault.errors import MountError
from vault.ops.edit_view import EditView
from vault_fuse.overlay import mount_overlay

_NEW_MOUNTS, _NEW_USER = 0x00020000, 0x10000000
_REC, _SLAVE = 0x4000, 1 << 19
_CAPABILITY_VERSION: Final = 0x20080522
_AMBIENT, _AMBIENT_RAISE = 47, 2  # prctl
_RIGHTS: Final = (0, 1, 2, 3, 4, 21)  # chown, dac_override, dac_read_search, fowner, fsetid, sys_admin
_libc = ctypes.CDLL(None, use_errno=True)


def run_in_view(view: EditView, command: Sequence[str]) -> NoReturn:
    """Become a command that sees the view in its folder. What the view stands on must be mounted.

    Raises:
        MountError: this system lets users have no namespaces of their own, or no overlays in them.
    """
    uid, gid = os.geteuid(), os.getegid()
    if _libc.unshare(_NEW_USER | _NEW_MOUNTS):
        raise MountError(
            view.target,
            f"this system lets only root have a view of files of its own ({os.strerror(ctypes.get_errno())}): run it as "
            "root, let users have namespaces (sysctl user.max_user_namespaces, "
            "kernel.apparmor_restrict_unprivileged_userns), or copy the version with "
            f"'vault checkout {view.base.ref} DIR' and commit the copy",
        )
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)
    _libc.mount(None, b"/", None, _REC | _SLAVE, None)
    mount_overlay(view)
    _keep_rights()
    os.chdir(view.target)
    try:
        os.execvp(command[0], list(command))
    except OSError as error:
        raise MountError(view.target, f"{command[0]} cannot be run: {error.strerror}") from error


class _Head(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable"))


def _keep_rights() -> None:
    """Let the command have the rights that this process has in its namespace: by itself it would start without."""
    head, sets = _Head(_CAPABILITY_VERSION, 0), (_Sets * 2)()
    _libc.capget(ctypes.byref(head), sets)
    for part in sets:
        part.inheritable = part.permitted
    _libc.capset(ctypes.byref(head), sets)
    for right in _RIGHTS:
        _libc.prctl(_AMBIENT, _AMBIENT_RAISE, right, 0, 0)
