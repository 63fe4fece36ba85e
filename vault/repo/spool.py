"""The spool: what a mount knows of reads and has not yet put in the store, as files that survive any crash.

One folder per mount, named like the journals' writer, below `<cache>/<store>/spool/`:

    writer.json          whose mount it is (Writer); written once, before the first read is answered
    tables/              read tables (read_table.py), created by workers, removed when shipped
    processes/           the runs that processes belong to (Registration), written by workers before they count for them
    journals/RUN/        entries on their way to the store, and how far they are (repo/shipping.py)
    lock                 held by whoever ships, for one round
    alive                held by the mount as long as it lives, for processes to whom its process IDs mean nothing

Workers need no lock: a table has one writer, a registration is renamed into place. Ephemeral and private to this machine.
Threads and processes: safe, as said above.
"""

import os
import socket
from collections.abc import Iterator
from typing import TypeVar

import msgspec
from blake3 import blake3

from vault.clock import now_ns
from vault.errors import FormatError
from vault.format.records import Reader
from vault.ids import RunId
from vault.repo import liveness
from vault.repo.read_table import remove_if_there, sync_folder
from vault.repo.run_writer import new_writer_name

WRITER_FILE, TABLES, PROCESSES, JOURNALS, LOCK = "writer.json", "tables", "processes", "journals", "lock"
ALIVE = "alive"
UNREADABLE = ".unreadable"  # end of the name of a table that is damaged and set aside
_T = TypeVar("_T")
FILE_SIZE_MAX = 256 << 10


class Writer(msgspec.Struct, frozen=True, kw_only=True):
    """One mount on one host, from its start to its end."""

    writer: str
    store: str
    host: str
    mountpoint: str
    boot: str
    boot_time_s: int
    pid: int  # of the supervisor
    ticks: int
    created_ns: int
    cluster: str = ""  # ClusterName in this machine's slurm.conf
    namespace: str = ""  # in which pid and ticks are true, those of readers too


class Registration(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A process of a run: one that opened files (reader), or one above it, which keeps the run alive."""

    run: str
    pid: int
    ticks: int
    is_tree: bool = False  # the run is that of its process tree, so children of this process belong to it too
    reader: Reader | None = None

    @property
    def name(self) -> str:
        """What its file is called. A process may belong to several named runs, but to one tree."""
        digits = "" if self.is_tree else "~" + blake3(self.run.encode()).hexdigest(length=6)
        return f"{self.pid}-{self.ticks}{digits}"


class Spool:
    """One mount's folder."""

    def __init__(self, folder: str, writer: Writer, held: int = -1) -> None:
        """Use `create_spool` or `open_spool`."""
        self._held = held
        self.folder = folder
        self.writer = writer
        self.tables = f"{folder}/{TABLES}"
        self.processes = f"{folder}/{PROCESSES}"
        self.journals = f"{folder}/{JOURNALS}"

    def restore(self) -> bool:
        """Make the folder again if it was removed, as a cache may be at any time. Returns whether it was."""
        if os.path.isdir(self.tables):
            return False
        for part in (self.folder, self.tables, self.processes, self.journals):
            os.makedirs(part, mode=0o700, exist_ok=True)
        write_durably(f"{self.folder}/{LOCK}", b"")
        write_durably(f"{self.folder}/{WRITER_FILE}", msgspec.json.encode(self.writer))
        return True

    def register(self, registration: Registration) -> None:
        """Note which run a process belongs to, for workers and shippers to see at once. Not durable: needs not be.

        Raises:
            OSError: the spool cannot be written.
        """
        path = f"{self.processes}/{registration.name}"
        unfinished = f"{path}.{os.getpid()}"
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, msgspec.json.encode(registration))
            os.rename(unfinished, path)
        except BaseException:
            remove_if_there(unfinished)
            raise
        finally:
            os.close(descriptor)

    def tree_of(self, pid: int, ticks: int) -> RunId | None:
        """Return the run of the process tree that a process is known to belong to, or None."""
        found = _load(f"{self.processes}/{pid}-{ticks}", Registration)
        return None if found is None else RunId(found.run)

    def is_registered(self, registration: Registration) -> bool:
        """Say whether the same process is noted for the same run, as a reader if it is one here."""
        found = _load(f"{self.processes}/{registration.name}", Registration)
        return found is not None and found.run == registration.run and (found.reader is not None or not registration.reader)

    def registrations(self) -> Iterator[Registration]:
        """Yield what is noted of all processes, ended ones too until they are forgotten."""
        for name in os.listdir(self.processes):
            if "." not in name and (found := _load(f"{self.processes}/{name}", Registration)) is not None:
                yield found

    def registration(self, name: str) -> Registration | None:
        """Return what a file of `processes` says; None if it is gone or half made."""
        return None if "." in name else _load(f"{self.processes}/{name}", Registration)

    def forget(self, registration: Registration) -> None:
        """Drop the note of a process that has ended."""
        remove_if_there(f"{self.processes}/{registration.name}")

    def table_names(self) -> list[str]:
        """Return the names of all read tables but those that are half made or set aside."""
        names = sorted(os.listdir(self.tables))
        return [name for name in names if "~" in name and not name.startswith("new-") and not name.endswith(UNREADABLE)]

    def let_go(self) -> None:
        """Hold it no longer: for a child of the mount that outlives it."""
        if self._held >= 0:
            os.close(self._held)
            self._held = -1

    def is_out_of_sight(self) -> bool:
        """Say whether the mount lives in another container, so that this process cannot tell which of its readers do."""
        elsewhere = self.writer.namespace != liveness.namespace() and self.writer.boot == liveness.boot_id()
        return elsewhere and liveness.is_held(f"{self.folder}/{ALIVE}")

    def is_watched(self) -> bool:
        """Say whether the mount that fills this spool still runs."""
        same_boot = self.writer.boot == liveness.boot_id()
        return same_boot and liveness.is_alive(self.writer.pid, self.writer.ticks)


def create_spool(root: str, *, store_id: str, mountpoint: str, host: str | None = None) -> Spool:
    """Make the folder of a new mount, whose supervisor is the calling process.

    Args:
        root: `<cache>/<store>/spool`.
        store_id: the ID in the store's vault.json.
        mountpoint: where the mount is, for the record.
        host: this machine's name; None asks the system.
    """
    os.makedirs(root, mode=0o700, exist_ok=True)
    host = host or socket.gethostname()
    boot = liveness.boot_id()
    # The system's answer moves when the clock is set. Run IDs are made of it, so all mounts keep the first one.
    boot_time_s = next((s.writer.boot_time_s for s in list_spools(root) if s.writer.boot == boot), liveness.boot_time_s())
    pid = os.getpid()
    writer = Writer(
        writer=new_writer_name(host),
        store=store_id,
        host=host,
        mountpoint=mountpoint,
        boot=boot,
        boot_time_s=boot_time_s,
        pid=pid,
        ticks=liveness.start_ticks(pid) or 0,
        created_ns=now_ns(),
        cluster=slurm_cluster(),
        namespace=liveness.namespace(),
    )
    folder = f"{root}/{writer.writer}"
    unfinished = f"{root}/.{writer.writer}"
    for part in ("", f"/{TABLES}", f"/{PROCESSES}", f"/{JOURNALS}"):
        os.mkdir(unfinished + part, 0o700)
    write_durably(f"{unfinished}/{LOCK}", b"")
    write_durably(f"{unfinished}/{WRITER_FILE}", msgspec.json.encode(writer))
    held = liveness.hold(f"{unfinished}/{ALIVE}")
    os.rename(unfinished, folder)
    sync_folder(root)
    return Spool(folder, writer, held)


def open_spool(folder: str) -> Spool:
    """Open a mount's folder. Raises FormatError if it is none."""
    writer = _load(f"{folder}/{WRITER_FILE}", Writer)
    if writer is None:
        raise FormatError("spool", f"{folder} has no readable {WRITER_FILE}")
    return Spool(folder, writer)


def list_spools(root: str) -> list[Spool]:
    """Return the spools of all mounts, running or dead, below `<cache>/<store>/spool`."""
    try:
        names = sorted(name for name in os.listdir(root) if not name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    spools = []
    for name in names:
        try:
            spools.append(open_spool(f"{root}/{name}"))
        except FormatError:
            continue  # being removed, or not ours
    return spools


def write_durably(path: str, data: bytes) -> None:
    """Replace a file, durably."""
    unfinished = f"{path}.new"
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.rename(unfinished, path)
    sync_folder(os.path.dirname(path))


def read_file(path: str) -> bytes | None:
    """Return the bytes of a file of the spool, or None if it is not there or may not be read."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None


def run_of_table(name: str) -> RunId:
    """Return the run that a table's file name begins with."""
    return RunId(name.partition("~")[0])


def slurm_cluster() -> str:
    """Return the ClusterName in this machine's slurm.conf; "" if there is none."""
    for path in ("/etc/slurm/slurm.conf", "/run/slurm/conf/slurm.conf", "/etc/slurm-llnl/slurm.conf"):
        for line in (read_file(path) or b"")[:FILE_SIZE_MAX].decode(errors="replace").splitlines():
            name, equals, value = line.partition("=")
            if equals and name.strip().lower() == "clustername":
                return value.split("#")[0].strip()[:64]
    return ""


def _load(path: str, kind: type[_T]) -> _T | None:
    data = read_file(path)
    if data is None or len(data) > FILE_SIZE_MAX:
        return None
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError:
        return None
