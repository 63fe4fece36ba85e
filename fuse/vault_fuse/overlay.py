"""Shows an edit view: the kernel's overlay of the view's layer above a mount of its version, made for the view alone.

What the view has changed lies in its state (vault/ops/edit_view.py); everything here may be killed at any time and done
again. Linux only. Threads: one; a mount is forked.
"""

import contextlib
import ctypes
import errno
import os
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from vault.errors import MountError
from vault.ops.descent import remove_tree
from vault.ops.edit_view import EditView
from vault.ops.overlay_layer import TRUSTED
from vault.repo.liveness import boot_id
from vault.stores.registry import open_store
from vault_fuse import device as fuse_device
from vault_fuse.background import run_in_background
from vault_fuse.bounded import call_bounded
from vault_fuse.mounting import MountOptions, run_mount
from vault_fuse.users import User, users_of

FS_TYPE: Final = "overlay"
_LOOK_TIMEOUT_S: Final = 5.0
_BUSY: Final = "busy"  # in an old layer: which overlay somebody still had open
_BUSY_SIZE_MAX: Final = 200
_USERS_NAMED_MAX: Final = 5
_MS_RDONLY, _MS_REMOUNT = 1, 32
_UNFIT: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENODEV, errno.EXDEV, errno.EREMOTE})
_libc = ctypes.CDLL(None, use_errno=True)


def is_shown(view: EditView) -> bool:
    """Say whether the view's overlay is mounted."""
    entry = fuse_device.find_mount(view.target)
    return entry is not None and entry.fs_type == FS_TYPE and entry.source == view.source


def show(view: EditView, start_lower: Callable[[], None]) -> bool:
    """Mount the view, making its folder if need be. Returns whether that was to be done.

    Args:
        view: which; held by the caller.
        start_lower: mounts the store at view.lower.

    Raises:
        MountError: with the way out.
    """
    lower_answers = _lower_answers(view)
    if is_shown(view):
        if lower_answers:
            if os.statvfs(view.target).f_flag & os.ST_RDONLY:
                make_writable(view)  # a commit was killed
            return False
        fuse_device.unmount(view.target, lazy=True)  # what it stands on is gone: every read fails
    check_target(view)
    if not lower_answers:
        start_lower()
    mount_overlay(view)
    sweep(view)
    return True


def start_lower(view: EditView, store: str, cache_dir: str, engine: str) -> None:
    """Mount a store for a view, in the background. Raises MountError and what else `run_mount` does."""
    if fuse_device.find_mount(view.lower) is not None:
        fuse_device.unmount(view.lower, lazy=True)
    options = MountOptions(path=os.path.realpath(view.lower), engine=engine, allow_other=fuse_device.can_mount_directly())
    run_in_background(
        lambda ready: run_mount(lambda: open_store(store), cache_dir, options, ready),
        path=view.target,
        log=os.path.join(view.folder, "log"),
    )


def mount_overlay(view: EditView) -> None:
    """Mount the overlay itself; its version must be mounted. Raises MountError."""
    version = os.path.join(view.lower, view.base.ref)
    places = []
    try:
        for path in (version, view.upper, view.work):
            places.append(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        lower, upper, work = (f"/proc/self/fd/{place}" for place in places)  # paths may hold what options may not
        options = f"lowerdir={lower},upperdir={upper},workdir={work},index=off,metacopy=off,"
        options += "redirect_dir=on" if view.state.attributes == TRUSTED else "redirect_dir=nofollow,userxattr"
        _mount(view.source, view.target, 0, options)
    except OSError as error:
        raise MountError(view.target, _why_not(view, error)) from error
    finally:
        for place in places:
            os.close(place)


def make_read_only(view: EditView) -> None:
    """Let nobody change the view any more. Raises MountError: somebody has a file open for writing."""
    try:
        _mount(None, view.target, _MS_REMOUNT | _MS_RDONLY, None)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise MountError(view.target, error.strerror or str(error)) from error
        who = users_text(writers_of(view.target))
        raise MountError(view.target, f"is being written to by {who}; let it close its files, and commit again") from error


def make_writable(view: EditView) -> None:
    """Take `make_read_only` back. Raises MountError."""
    try:
        _mount(None, view.target, _MS_REMOUNT, None)
    except OSError as error:
        raise MountError(view.target, error.strerror or str(error)) from error


def take_away(view: EditView, *, lower: bool, although_used: bool = False) -> list[User]:
    """Unmount the view.

    Args:
        view: which.
        lower: what it stands on, too.
        although_used: take it out of sight of others than those who are in it. They see what was there until they leave,
            so its layer must not come under another overlay.

    Returns those who are in it.

    Raises:
        MountError: it cannot be unmounted, or somebody is in it.
    """
    users: list[User] = []
    try:
        if is_shown(view):
            place = os.open(view.target, os.O_PATH | os.O_CLOEXEC)
            mount, device = _mount_of(f"/proc/self/fdinfo/{place}"), os.fstat(place).st_dev
            os.close(place)
            try:
                fuse_device.unmount(view.target, lazy=False)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                users = users_of(view.target)
                if not although_used:
                    raise MountError(view.target, f"is in use by {users_text(users)}") from error
                fuse_device.unmount(view.target, lazy=True)
                _note_users(view, mount, device)
        if lower and fuse_device.find_mount(os.path.realpath(view.lower)) is not None:
            fuse_device.unmount(os.path.realpath(view.lower), lazy=True)
    except OSError as error:
        raise MountError(view.target, error.strerror or str(error)) from error
    return users


def sweep(view: EditView) -> None:
    """Remove layers that were committed and that nobody has open any more."""
    for layer in view.old_layers():
        if not _is_busy(layer):
            with contextlib.suppress(OSError):
                remove_tree(os.fsencode(layer))


def users_text(users: Sequence[User]) -> str:
    """Return who uses something, in words."""
    names = [f"{user.name} (process {user.pid}: {user.what})" for user in users[:_USERS_NAMED_MAX]]
    more = len(users) - len(names)
    return (", ".join(names) + (f" and {more} more" if more else "")) or "a process that cannot be seen from here"


def writers_of(path: str) -> list[User]:
    """Return the processes that have a file below a path open for writing."""
    found = []
    for user in users_of(path):
        with contextlib.suppress(OSError):
            if any(_is_written(user.pid, number, path) for number in os.listdir(f"/proc/{user.pid}/fd")):
                found.append(user)
    return found


def _is_written(pid: int, number: str, path: str) -> bool:
    with contextlib.suppress(OSError, ValueError, StopIteration):
        if os.readlink(f"/proc/{pid}/fd/{number}").startswith(path + "/"):
            with open(f"/proc/{pid}/fdinfo/{number}", encoding="ascii") as info:
                flags = next(line for line in info if line.startswith("flags:"))
            return bool(int(flags.split()[1], 8) & os.O_ACCMODE)
    return False


def _mount(source: str | None, target: str, flags: int, options: str | None) -> None:
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, options)]
    if _libc.mount(encoded[0], encoded[1], FS_TYPE.encode(), flags, encoded[2]):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def _lower_answers(view: EditView) -> bool:
    entry = fuse_device.find_mount(os.path.realpath(view.lower))
    if entry is None or entry.fs_type != fuse_device.FS_TYPE:
        return False
    path = os.path.join(view.lower, view.base.ref)
    try:
        # The kernel keeps a folder's status for ever: that alone would be said of a dead mount, too.
        return call_bounded(lambda: not fuse_device.is_dead(view.lower) and os.path.isdir(path), _LOOK_TIMEOUT_S)
    except (OSError, EOFError):  # TimeoutError is an OSError
        return False


def check_target(view: EditView) -> None:
    """See to it that the view's folder is there, and empty. Raises MountError."""
    try:
        os.makedirs(view.target, exist_ok=True)
        names = os.listdir(view.target)
    except OSError as error:
        raise MountError(view.target, error.strerror or str(error)) from error
    if names:
        raise MountError(view.target, f"is not empty (it holds {names[0]!r}): an edit view needs a folder of its own")


def _why_not(view: EditView, error: OSError) -> str:
    """Return why there is no overlay, and what to do."""
    way_out = f"or copy the version with 'vault checkout {view.base.ref} DIR' and commit the copy"
    if error.errno == errno.EPERM:
        return f"this system lets only root mount overlays: run it as root, {way_out}"
    if error.errno in _UNFIT:
        return (
            f"the kernel can put no overlay's layer on {_fs_type(view.upper)} ({view.layer}): give a folder on ext4, xfs, "
            f"btrfs or tmpfs with --state, {way_out}"
        )
    return f"no overlay can be mounted ({error.strerror}): see {view.folder}, {way_out}"


def _fs_type(path: str) -> str:
    device = os.stat(path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    return next((entry.fs_type for entry in fuse_device.mounts() if entry.device == number), "this file system")


def _note_users(view: EditView, mount: int, device: int) -> None:
    """Write down which overlay is still open above a layer: it has no name any more."""
    with open(os.path.join(view.layer, _BUSY), "w", encoding="ascii") as marker:
        marker.write(f"{boot_id()} {mount} {device}")


def _is_busy(layer: str) -> bool:
    """Say whether somebody has the overlay open that a layer was under when it was taken out of sight."""
    try:
        with open(os.path.join(layer, _BUSY), encoding="ascii") as marker:
            boot, mount, device = marker.read(_BUSY_SIZE_MAX).split()
        return boot == boot_id() and any(map(_Overlay(int(mount), int(device)).is_used_by, os.listdir("/proc")))
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return True


class _Overlay(NamedTuple):
    """An overlay by its numbers. Those of another one later may be the same: it is then taken for this one."""

    mount: int
    device: int

    def is_used_by(self, pid: str) -> bool:
        """Say whether a process has something of it open, mapped, or is in it, as far as this user may see."""
        if not pid.isdecimal():
            return False
        for link in ("cwd", "root"):
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{pid}/{link}").st_dev == self.device:
                    return True
        with contextlib.suppress(OSError):
            for number in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    if _mount_of(f"/proc/{pid}/fdinfo/{number}") == self.mount:
                        return True
        mapped = f" {os.major(self.device):02x}:{os.minor(self.device):02x} "
        with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as maps:
            return any(mapped in line for line in maps)
        return False


def _mount_of(fdinfo: str) -> int:
    """Return the number of the mount that an open file lies in."""
    with open(fdinfo, encoding="ascii", errors="replace") as info:
        return next((int(line.split()[1]) for line in info if line.startswith("mnt_id:")), -1)
