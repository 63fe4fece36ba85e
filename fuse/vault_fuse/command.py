"""`vault mount` and `vault umount`."""

import contextlib
import os
import shlex
import sys
import time
from typing import Final

import click

from vault.cli.commands import examples
from vault.cli.options import Session, completer, node_cache_options, session_options
from vault.cli.output import one_line
from vault.errors import MountError, UsageError
from vault.ids import parse_ref
from vault.ops.edit_view import VIEW_SOURCE
from vault.repo.liveness import is_alive, start_ticks
from vault.repo.repository import Repository
from vault.stores.registry import open_store
from vault.stores.zipfile import ZipStore
from vault_fuse import device as fuse_device
from vault_fuse.background import run_in_background
from vault_fuse.bounded import call_bounded
from vault_fuse.mounting import DEADLINE_S, ENGINES, MountOptions, check_mountpoint, choose_engine, run_mount
from vault_fuse.supervisor import WORKERS_MAX
from vault_fuse.users import users_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_END_TIMEOUT_S: Final = 20.0
_LOOK_TIMEOUT_S: Final = 2.0
_USERS_NAMED_MAX: Final = 5


@click.command(
    epilog=examples(
        "vault mount /vault",
        "vault mount --foreground ~/mnt",
        "ls /vault/imagenet@v2; cat /vault/.vault/health",
        "vault mount --bundle run.vault /mnt",
        "vault mount /vault --cache /nvme/vault --cache-size 2TB",
    )
)
@click.argument("path", metavar="DIR", shell_complete=completer("complete_folder"))  # click.Path would stat() it
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground; Ctrl-C unmounts.")
@click.option("--engine", type=click.Choice([*ENGINES]), default=None, help="How to mount.  [env: VAULTFS_ENGINE]")
@click.option("--log", metavar="FILE", default="", help="Where a mount in the background writes what it has to say.")
@click.option(
    "--workers", metavar="N", type=click.IntRange(1, WORKERS_MAX), default=None, help="Processes that answer requests."
)
@click.option(
    "--deadline",
    metavar="SECONDS",
    type=click.FloatRange(1, 86400),
    default=DEADLINE_S,
    show_default=True,
    help="How long a read may wait for the store before it fails (direct engine).",
)
@click.option(
    "--allow-other/--no-allow-other",
    default=None,
    help="Let other users read too: always so for root; others need 'user_allow_other' in /etc/fuse.conf.",
)
@click.option(
    "--capture/--no-capture",
    default=True,
    help="Keep code, environment and machine of each run as they are at its first open: the default.",
)
@click.option("--bundle", metavar="FILE", default="", help="Show what a bundle holds; reads are not recorded.")
@click.option(
    "--pin",
    "pins",
    multiple=True,
    metavar="NAME@SELECTOR=vN",
    help="Let a name such as imagenet@latest lead to this version as long as the mount lives. Can be repeated.",
)
@node_cache_options
@session_options
def mount(
    session: Session,
    path: str,
    foreground: bool,
    engine: str | None,
    log: str,
    workers: int | None,
    deadline: float,
    allow_other: bool | None,
    capture: bool,
    bundle: str,
    pins: tuple[str, ...],
    cache: str,
    cache_size: str,
) -> None:
    """Show every version of every dataset below the empty folder DIR, and record who reads what.

    DIR/imagenet@v2/… is a version, DIR/imagenet@latest and labels are symlinks to one; new versions appear by
    themselves. Everything is read-only. Returns when the mount answers; it stays until 'vault umount DIR'.
    """
    session.take_cache_options(cache, cache_size)
    store = ZipStore(bundle) if bundle else open_store(session.store)
    url = store.url  # absolute: the mount runs in another folder
    repository = Repository.open(
        store, session.cache_dir, node_cache=session.node_cache, node_cache_size=session.node_cache_size_bytes
    )
    _refuse_hung(path)
    options = MountOptions(
        path=check_mountpoint(path),
        engine=choose_engine(engine or session.engine),
        allow_other=os.geteuid() == 0 if allow_other is None else allow_other,
        workers=workers or 0,
        deadline_s=deadline,
        capture=capture,
        pins=dict(_parse_pin(text, repository) for text in pins),
        record=not isinstance(store, ZipStore),  # a bundle cannot be written: a record would wait for ever
        node_cache=session.node_cache,
        cache_size_bytes=session.node_cache_size_bytes,
    )
    log = os.path.abspath(log or _default_log(repository.cache_dir, options.path))
    cache_dir, config = session.cache_dir, repository.config
    record = {"path": options.path, "engine": options.engine, "store": url}
    text = one_line(f"{url} is mounted on {options.path}")
    if foreground:

        def say() -> None:
            session.out.summary({**record, "pid": os.getpid(), "log": None}, text)
            sys.stdout.flush()

        run_mount(lambda: open_store(url), cache_dir, options, say, config)
        return
    pid = run_in_background(
        lambda ready: run_mount(lambda: open_store(url), cache_dir, options, ready, config), path=options.path, log=log
    )
    session.out.summary({**record, "pid": pid, "log": log}, text)
    away = f"vault umount {shlex.quote(path)}"
    if not options.record:
        session.out.note(f"a bundle cannot be written, so what is read there is not recorded; take it away with '{away}'")
        return
    session.out.note(f"what is read there is recorded: see 'vault runs'; take it away with '{away}'")


def _parse_pin(text: str, repository: Repository) -> tuple[str, int]:
    """Return what `imagenet@latest=v2` pins to what. Raises UsageError, RefError: it makes no sense, or is not there."""
    name, equals, version = text.rpartition("=")
    pinned = parse_ref(name) if equals and "@" in name else None
    if pinned is None or pinned.version or pinned.digest_prefix or pinned.path:
        raise UsageError(f"--pin {text}: give NAME@SELECTOR=vN, such as --pin imagenet@latest=v2")
    target = parse_ref(f"{pinned.name}@{version}")
    if target.version is None:
        raise UsageError(f"--pin {text}: give the version by its number, such as =v2")
    repository.datasets.resolve(target)
    return f"{pinned.name}@{pinned.selector}", target.version


def _complete_mounts(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> "list[CompletionItem]":
    from click.shell_completion import CompletionItem

    try:
        paths = [entry.path for entry in fuse_device.mounts() if entry.fs_type == fuse_device.FS_TYPE]
    except OSError:
        return []
    return [CompletionItem(path) for path in paths if path.startswith(incomplete)] or [CompletionItem("", "dir")]


@click.command(epilog=examples("vault umount /vault", "vault umount --lazy /vault"))
@click.argument("path", metavar="DIR", shell_complete=_complete_mounts)  # click.Path would stat() it, and hang as it does
@click.option("-l", "--lazy", is_flag=True, help="Take it out of sight now; it ends when its last user does.")
@session_options
def umount(session: Session, path: str, lazy: bool) -> None:
    """Take the mount on DIR away, after writing what is on record to the store.

    Refuses while something below DIR is in use, and says by whom.
    """
    named = os.path.abspath(path)
    # The last part may be a dead mount, which must not be touched, or a symlink to a mount.
    path = os.path.join(os.path.realpath(os.path.dirname(named)), os.path.basename(named))
    if fuse_device.find_mount(path) is None and os.path.islink(path):
        path = os.path.realpath(path)
    entry = fuse_device.find_mount(path)
    if entry is not None and entry.source.startswith(VIEW_SOURCE):
        raise MountError(path, f"is an edit view: 'vault edit --detach {shlex.quote(path)}' takes it out of sight")
    if entry is None or entry.fs_type != fuse_device.FS_TYPE:
        raise MountError(path, "no vault is mounted here" + _mounted_elsewhere())
    supervisor = _supervisor_of(path)
    try:
        fuse_device.unmount(path, lazy=lazy)
    except OSError as error:
        if error.errno == 16:  # EBUSY
            raise MountError(path, f"is in use by {_users_text(path)}; end them, or use --lazy") from error
        raise MountError(path, f"cannot be unmounted: {error.strerror}") from error
    if supervisor and not lazy and not _wait_for_end(*supervisor):
        session.out.note(f"process {supervisor[0]} is still writing what it has on record")
    session.out.summary({"path": path, "lazy": lazy}, one_line(f"{path} is unmounted"))


def _refuse_hung(path: str) -> None:
    """Raise MountError if a vault is mounted here that does not answer, before anybody waits for it."""
    path = os.path.abspath(path)
    entry = fuse_device.find_mount(path)
    if entry is None or entry.fs_type != fuse_device.FS_TYPE:
        return
    with contextlib.suppress(EOFError):
        try:
            call_bounded(lambda: fuse_device.is_dead(path), _LOOK_TIMEOUT_S)
        except TimeoutError:
            reason = f"a vault is mounted here that does not answer: take it away with 'vault umount --lazy {path}'"
            raise MountError(path, reason) from None


def _default_log(cache_dir: str, path: str) -> str:
    return os.path.join(cache_dir, "log", f"mount-{path.strip('/').replace('/', '-') or 'root'}.log")


def _mounted_elsewhere() -> str:
    paths = [entry.path for entry in fuse_device.mounts() if entry.fs_type == fuse_device.FS_TYPE]
    return f"; there is one on {', '.join(paths[:_USERS_NAMED_MAX])}" if paths else ""


def _supervisor_of(path: str) -> tuple[int, int] | None:
    """Return process ID and start ticks of the mount's first process, or None if it does not say."""

    def read_pid() -> int:
        with open(os.path.join(path, ".vault", "pid"), encoding="ascii") as file:
            return int(file.read(32))

    try:
        pid = call_bounded(read_pid, _LOOK_TIMEOUT_S)
    except (OSError, ValueError, EOFError):  # TimeoutError is an OSError
        return None
    ticks = start_ticks(pid)
    return None if ticks is None else (pid, ticks)


def _users_text(path: str) -> str:
    users = users_of(path)
    if not users:
        return "a process that cannot be seen from here"
    names = [f"{user.name} (process {user.pid}: {user.what})" for user in users[:_USERS_NAMED_MAX]]
    more = len(users) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def _wait_for_end(pid: int, ticks: int) -> bool:
    until_s = time.monotonic() + _END_TIMEOUT_S
    while is_alive(pid, ticks):
        if time.monotonic() > until_s:
            return False
        time.sleep(0.01)
    return True
