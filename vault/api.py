"""What programs script against: one object for one store. The command line stands on it too.

    import vault

    store = vault.init("~/vault-store")  # vault.open("~/vault-store") from then on
    made = store.commit("imagenet", "imagenet", message="as downloaded")
    print(made.ref, made.files, made.stored_bytes)

    for change in store.diff("imagenet@v1", "imagenet@latest"):
        print(change.kind, change.path)
    for path, entry in store.ls("imagenet@v1", recursive=True):
        print(path, entry.size)
    labels = store.read("imagenet@v1/labels.csv")
    for read in store.audit("imagenet@v1/labels.csv"):
        print(read.run.run, read.run.command, read.opens)

Refs are texts: `NAME@SELECTOR/PATH` (docs/reference/refs.md). Names inside of snapshots are bytes: they need not be UTF-8.
On purpose nothing is raised but VaultErrors. Threads: one Vault in each. Processes: one in each; not to be used in a fork.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from vault.errors import RefError, RefNotFound, UsageError
from vault.format.tree import Entry, Kind
from vault.ids import Digest, Ref, RunId, check_run_id, parse_digest, parse_ref
from vault.progress import SILENT, Progress
from vault.repo.datasets import Dataset, Version
from vault.repo.repository import Repository
from vault.settings import absolute, load_settings, size_in_bytes
from vault.stores.registry import open_store

# What only one verb needs is imported by it: `vault log` should not pay for `vault commit`.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from vault.ops.audit import Audit, OpenedFile, Read
    from vault.ops.bundle import BundlePlan
    from vault.ops.checkout import CheckoutResult
    from vault.ops.commit import CommitResult
    from vault.ops.compare import Comparison
    from vault.ops.diff import Change
    from vault.ops.diff_sides import TreeDiff
    from vault.ops.edit import Edit
    from vault.ops.exclusion import Exclusion
    from vault.ops.identify import Identified, Sampled
    from vault.ops.influence import Reached
    from vault.ops.lineage import Lineage
    from vault.ops.sync import Synced
    from vault.ops.verify import Verification
    from vault.ops.whence import Origin
    from vault.repo.run_model import Run
    from vault.repo.trees import TreeReader

StrPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Found:
    """What a ref names: an entry of a snapshot."""

    ref: str  # with the selector resolved to a version
    snapshot: Digest
    version: Version
    path: bytes  # b"" for the snapshot's root
    entry: Entry


class Vault:
    """One store, opened."""

    def __init__(self, repository: Repository) -> None:
        """Use `vault.open` or `vault.init`."""
        self.repository = repository

    def __repr__(self) -> str:
        return f"Vault({self.url!r})"

    @property
    def url(self) -> str:
        """The store, as a user names it."""
        return self.repository.store.url

    # Datasets.

    def commit(
        self,
        source: StrPath,
        dataset: str,
        *,
        message: str = "",
        author: str = "",
        exclude: Sequence[str | bytes] = (),
        skip_special: bool = False,
        allow_unchanged: bool = False,
        run: str | None = None,
        cluster: str = "",
        upload_memory: str = "",
        progress: Progress = SILENT,
    ) -> "CommitResult":
        """Freeze a folder, a file or what a URL names as the next version of a dataset.

        Args:
            source: the folder or file, or a URL: `s3://bucket/folder`, or any that fsspec can read.
            dataset: its name; the first commit makes it.
            message: why, for those who read the log.
            author: who; the user that runs this if empty.
            exclude: patterns as in a .gitignore file, beside those in `.vaultignore` files.
            skip_special: leave sockets, devices and FIFOs out instead of refusing.
            allow_unchanged: make a version even if the latest one has the same snapshot.
            run: ID of the run that made these files. None finds out: the one that this process belongs to by VAULTFS_RUN,
                a scheduler or a launcher, or by its process tree if a mount has that on record; "" is none.
            cluster: address of a Dask scheduler, `tcp://host:8786`, whose workers read and store; "" is this process.
            upload_memory: how much may be on its way to a store behind a network: `256MB`; "" is 512 MiB.
            progress: told what was read so far.

        Raises:
            ClusterError: the scheduler does not answer, or a worker lacks vault, the source or the store.
            InvalidRef, UsageError: name or source makes no sense.
            SourceUnreadable, SourceChanged, SpecialFile: naming the file.
            StoreError: as the store says. The same commit may be tried again; what was stored is not stored twice.
        """
        from vault.ops.commit import commit
        from vault.ops.freeze import UPLOAD_MEMORY_MAX

        return commit(
            self.repository,
            os.fsencode(source),
            dataset,
            message=message,
            author=author or user_name(),
            run=self._own_run() if run is None else check_run_id(run) if run else None,
            exclude=[os.fsencode(pattern) for pattern in exclude],
            skip_special=skip_special,
            allow_unchanged=allow_unchanged,
            cluster=cluster,
            upload_memory_bytes=size_in_bytes(upload_memory, "/") if upload_memory else UPLOAD_MEMORY_MAX,
            progress=progress,
        )

    def edit(self, ref: str, *, author: str = "", run: str | None = None, progress: Progress = SILENT) -> "Edit":
        """Begin to change a version without a mount and without a copy: a context manager, see `vault.ops.edit`.

        Args:
            ref: the version; without a path.
            author: who commits; the user that runs this if empty.
            run: as of `commit`.
            progress: told how many files were looked at.
        """
        from vault.ops.edit import Edit
        from vault.ops.edit_commit import Base

        parsed = parse_ref(ref)
        if parsed.path:
            raise UsageError(f"{ref}: an edit is of a whole version: leave the path out")
        version = self._version(parsed)
        base = Base(parsed.name, version.number, version.snapshot, self.dataset(parsed.name).newest)
        own = self._own_run() if run is None else check_run_id(run) if run else None
        return Edit(self.repository, base, author=author or user_name(), run=own, progress=progress)

    def datasets(self) -> list[str]:
        """Return the names of all datasets, sorted."""
        return self.repository.datasets.names()

    def dataset(self, name: str) -> Dataset:
        """Return a dataset: its versions, oldest first, and its labels. Raises RefNotFound with near names."""
        return self.repository.datasets.load(name)

    def version(self, ref: str) -> Version:
        """Return the version that a ref names; its path is not looked at. Raises RefNotFound, AmbiguousRef."""
        return self._version(parse_ref(ref))

    def label(self, ref: str, label: str, *, author: str = "") -> Version:
        """Put a label on the version that a ref names, moving it there if it is on another. Returns the version."""
        parsed = parse_ref(ref)
        version = self._version(parsed)
        self.repository.datasets.set_label(parsed.name, label, version.number, author=author or user_name())
        return version

    def remove_label(self, dataset: str, label: str, *, author: str = "") -> None:
        """Take a label away. The journal keeps that it was there."""
        self.repository.datasets.set_label(dataset, label, None, author=author or user_name())

    # Looking into snapshots.

    def find(self, ref: str) -> Found:
        """Return what a ref names. Raises RefNotFound: no such dataset, version or path; the error has near ones."""
        from vault.ops.listing import find_entry

        parsed = parse_ref(ref)
        version = self._version(parsed)
        try:
            entry = find_entry(self._trees, version.snapshot, parsed.path)
        except RefNotFound as error:
            prefix = f"{parsed.name}@{parsed.selector}/"
            raise RefNotFound(prefix + error.text, error.what, [prefix + near for near in error.near]) from None
        named = Ref(parsed.name, f"v{version.number}", parsed.path)
        return Found(str(named), version.snapshot, version, parsed.path, entry)

    def ls(self, ref: str, *, recursive: bool = False) -> Iterator[tuple[bytes, Entry]]:
        """Yield (path below the ref, entry) of what a directory holds, in name order; of a file: itself."""
        from vault.ops.listing import list_entries

        return list_entries(self._trees, self.find(ref).entry, recursive=recursive)

    def read(self, ref: str) -> bytes:
        """Return the content of a file, verified. For one that memory does not hold see `read_pieces`.

        Raises:
            UsageError: the ref names a folder or a symlink.
            IntegrityError, ObjectMissing: it is damaged.
        """
        return b"".join(self.read_pieces(ref))

    def read_pieces(self, ref: str) -> Iterator[bytes]:
        """Yield the content of a file piece by piece. It is proven when the iterator has ended without an error."""
        from vault.repo.content import read_content

        entry = self.find(ref).entry
        if entry.kind == Kind.DIRECTORY:
            raise UsageError(f"{ref} is a folder: 'vault ls {ref}' lists it")
        if entry.kind == Kind.SYMLINK:
            raise UsageError(f"{ref} is a symlink to {entry.target.decode(errors='backslashreplace')}: name that instead")
        return map(bytes, read_content(self.repository.object_reader(), entry))

    def diff(
        self, old: str | os.PathLike[str], new: str | os.PathLike[str], *, renames: bool = False
    ) -> "Iterator[Change]":
        """Yield what turns one version, or one folder of it, into another. Paths are below what is compared.

        Args:
            old: a ref, or a folder of this machine: a path object, or a text that begins with `/`, `.` or `~`.
            new: likewise.
            renames: tell files that only have another path as renamed; then all changes are in memory at once.
        """
        return self.open_diff(old, new).changes(renames=renames)

    def open_diff(
        self, old: str | os.PathLike[str], new: str | os.PathLike[str], *, progress: Progress = SILENT
    ) -> "TreeDiff":
        """Return the two sides of a `diff`, which can tell what changed in text files, too. Arguments as there."""
        from vault.ops.diff_sides import TreeDiff

        return TreeDiff(self.repository, lambda ref: self.find(ref).entry, old, new, progress=progress)

    def checkout(self, ref: str, target: StrPath, *, progress: Progress = SILENT) -> "CheckoutResult":
        """Copy a version, a folder or a file of it to a new or empty place, every byte verified.

        Raises:
            UsageError: there is something at the target.
            TargetUnwritable, StoreFull: it cannot be written; nothing stays.
        """
        from vault.ops.checkout import checkout

        found = self.find(ref)
        objects = self.repository.object_reader()
        return checkout(objects, found.entry, os.fsencode(target), mtime_ns=found.version.time_ns, progress=progress)

    def sync(
        self,
        ref: str,
        to: "Vault | str",
        *,
        name: str = "",
        labels: Iterable[str] = (),
        author: str = "",
        dry_run: bool = False,
        progress: Progress = SILENT,
    ) -> "Synced":
        """Copy a version into another store, as the next version of a dataset: its snapshot, no history and no runs.

        Args:
            ref: the version.
            to: the other store, or where it is: a path or a URL.
            name: the dataset there; that of the ref if empty.
            labels: put on it there.
            author: who puts them there; the user that runs this if empty.
            dry_run: send nothing, and find out what would be sent.
            progress: told what was copied so far.

        Raises:
            NotARepository: there is no store at `to`.
            UsageError: it is this store.
            StoreError: as one of the two says. The same call may be made again; what arrived is not sent twice.
        """
        from vault.ops.sync import sync

        parsed = parse_ref(ref)
        self._version(parsed)
        target = open_vault(to, cache_dir=self.repository.cache_root) if isinstance(to, str) else to
        return sync(
            self.repository,
            target.repository,
            parsed,
            name=name,
            labels=tuple(labels),
            author=author or user_name(),
            dry_run=dry_run,
            progress=progress,
        )

    def verify(self, *, data: bool = False, progress: Progress = SILENT) -> "Verification":
        """Start to check the store; iterate over the result for what is damaged.

        Args:
            data: hash every stored byte too.
            progress: told what was looked at so far.
        """
        from vault.ops.verify import verify

        return verify(self.repository, data=data, progress=progress)

    # Bundles.

    def plan_bundle(
        self,
        run: str,
        *,
        only_opened: bool = False,
        with_host: bool = False,
        outputs: str = "last",
        progress: Progress = SILENT,
    ) -> "BundlePlan":
        """Return what a bundle of a run is going to hold, and what in it looks like a secret. Writes nothing.

        Args:
            run: named as for `run`.
            only_opened: of data that it read, only the files that it opened.
            with_host: leave hosts, users and places in the record.
            outputs: which of the versions that it made: the `last` of each dataset, `all` or `none`.
            progress: told what was looked at.
        """
        from vault.ops.bundle import plan_bundle

        found = self.open_audit().run(run).run
        return plan_bundle(
            self.repository, found, only_opened=only_opened, with_host=with_host, outputs=outputs, progress=progress
        )

    # Runs.

    def runs(
        self,
        *,
        dataset: str = "",
        user: str = "",
        host: str = "",
        since: datetime | None = None,
        classes: Iterable[str] = (),
        metrics: Iterable[str] = (),
        params: Mapping[str, object] | None = None,
        status: str = "",
    ) -> "Iterator[Run]":
        """Yield recorded runs, those that started last first. What is left out does not filter.

        Args:
            dataset: those that opened files of this dataset, in any version.
            user: those of this user.
            host: those that were seen on this host.
            since: those that ended, or were last seen, no earlier; a time without a zone is local time.
            classes: those of these kinds of programs: training, shell, indexer, backup, unknown.
            metrics: those whose last values fit: `acc>0.7`; or the greatest or least: `max(acc)>=0.7`.
            params: those with these parameters; numbers are compared as such.
            status: running, ok, failed, or ended (nobody saw how).

        Raises:
            UsageError: there is no such class or status, or a metric's test makes no sense.
            StoreError: the store cannot be read.
        """
        from vault.format.records import ProcessClass
        from vault.ops.run_filter import STATUSES, Filter, parse_metric_test

        if status and status not in STATUSES:
            raise UsageError(f"there is no status {status!r}; known are {', '.join(STATUSES)}")
        try:
            kinds = frozenset(map(ProcessClass, classes))
        except ValueError as error:
            raise UsageError(f"{error}; known are {', '.join(ProcessClass)}") from None
        since_ns = int(since.timestamp() * 1e9) if since is not None else 0
        wanted = Filter(
            dataset=dataset,
            user=user,
            host=host,
            since_ns=since_ns,
            classes=kinds,
            params=tuple((name, str(value)) for name, value in (params or {}).items()),
            metrics=tuple(map(parse_metric_test, metrics)),
            status=status,
        )
        return self.open_audit().runs(wanted)

    def run(self, run: str) -> "Run":
        """Return a run by its ID, or by as much of its beginning or end as no other run has.

        Raises:
            RefNotFound: there is none; the error has near ones.
            AmbiguousRef: there are several.
        """
        return self.open_audit().run(run)

    def audit(self, target: str, *, content: bool = False) -> "Iterator[Read]":
        """Yield who opened a dataset, a version, or a folder or file of one.

        Args:
            target: a dataset's name, a ref, or `b3:` and the 64 digits of a file's content.
            content: also files with the same bytes under any other name, in any version that a run has read.

        Raises:
            RefNotFound: it names nothing.
        """
        return self.audit_with(self.open_audit(), target, content=content)

    def audit_with(self, audit: "Audit", target: str, *, content: bool = False) -> "Iterator[Read]":
        """Do the same as `audit`, for one of several questions to what `open_audit` has returned."""
        if target.startswith("b3:"):
            return audit.readers_of_content(parse_digest(target))
        ref = parse_ref(target)
        if "@" not in target and not content:
            self._version(ref)
            return audit.readers_of_dataset(ref.name)
        self.find(target)
        return audit.readers_of(ref, content=content)

    def opened_files(self, run: str) -> "Iterator[OpenedFile]":
        """Yield every file that a run opened, in the order of the tree. The run is named as for `run`."""
        audit = self.open_audit()
        return audit.opened_files(audit.run(run))

    def prefetch_plan(self, run: str, ref: str = "", *, host: str = "", progress: Progress = SILENT) -> int:
        """Have files fetched in the order in which a run opened them, ahead of who will read them.

        A mount of this store on this machine takes that over, and the call returns at once. Without one, files are fetched
        into this machine's cache now, until it is full. If the store's files are on this machine, nothing is done.

        Args:
            run: named as for `run`.
            ref: the version that will be read, in which the same paths are fetched; that which the run read if empty.
            host: as this host saw it; that of this machine if it took part, else all, if empty.
            progress: told what is here, without a mount.

        Returns:
            How many files that are.

        Raises:
            RefNotFound, AmbiguousRef: there is no such run or version, or several.
            UsageError: the order is not on record.
        """
        from vault.ops.prefetch_plan import fetch_here, hand_over, is_near, plan_of_run

        repository = self.repository
        found = self.run(run).run
        plans = plan_of_run(repository, found, ref=parse_ref(ref) if ref else None, host=host)
        if not is_near(repository):
            for plan in plans:
                if hand_over(repository, plan, origin=f"run:{found}") is None:
                    fetch_here(repository, plan, progress=progress)
        return sum(len(plan.numbers) for plan in plans)

    def compare(self, old: str, new: str) -> "Comparison":
        """Return what differs between two runs, the likeliest cause of another result first.

        Args:
            old: a run, named as for `run`, or an attempt of one: `RUN#2`, `RUN#2@HOST`.
            new: likewise.

        Raises:
            RefNotFound, AmbiguousRef: as `run`; or there is no such attempt.
        """
        from vault.ops.compare import compare, find_side

        audit = self.open_audit()
        return compare(audit, find_side(audit, old), find_side(audit, new))

    def lineage(self, target: str, *, depth: int = 1000) -> "Lineage":
        """Return where a version (a ref) or a run (its ID) is from: a graph, back over at most `depth` edges."""
        from vault.ops.lineage import find_node, lineage

        audit = self.open_audit()
        return lineage(audit, find_node(audit, target), depth=depth)

    def whence(self, what: StrPath) -> "Iterator[Origin]":
        """Yield the versions that hold a file, those that runs made first.

        Args:
            what: a file or folder outside of the store, or `b3:` and the 64 digits of a content.

        Raises:
            SourceUnreadable: the file cannot be read.
        """
        from vault.ops.whence import Whence, identify

        content, _ = identify(os.fsdecode(what))
        return Whence(self.open_audit()).origins(content)

    def identify(self, folder: StrPath, *, progress: Progress = SILENT) -> "Identified":
        """Return which version a folder of this machine is, by contents: the same tree, or the nearest and the difference.

        Raises:
            SourceUnreadable, SourceChanged, SpecialFile: naming the file.
            UsageError: there is no such folder.
        """
        from vault.ops.identify import Identify

        question = Identify(self.repository, progress=progress)
        try:
            return question.folder(os.fsencode(folder))
        finally:
            question.close()

    def identify_sample(self, folder: StrPath, count: int = 1000, *, progress: Progress = SILENT) -> "Sampled":
        """Return which version a folder is like, by the contents of so many of its files, and how sure that is."""
        from vault.ops.identify import Identify

        question = Identify(self.repository, progress=progress)
        try:
            return question.sample(os.fsencode(folder), count)
        finally:
            question.close()

    def reached(self, target: str, *, content: bool = False) -> "Iterator[Reached]":
        """Yield the runs that opened a target, then those that opened what they had made, and so on. Arguments: `audit`."""
        from vault.ops.influence import reached_through

        audit = self.open_audit()
        return reached_through(audit, self.audit_with(audit, target, content=content))

    def exclusion(self, run: str, target: str) -> "Exclusion":
        """Return which files a run opened that have bytes of a target, and what keeps the answer from being certain.

        Args:
            run: named as for `run`.
            target: a dataset's name (all versions), a ref, or `b3:` and the 64 digits of a content.
        """
        from vault.ops.exclusion import exclusion

        audit = self.open_audit()
        return exclusion(audit, audit.run(run), target)

    def open_audit(self) -> "Audit":
        """Return what answers several questions about runs, after taking along what this machine knows of them."""
        from vault.ops.audit import Audit
        from vault.ops.reporting import deliver_left
        from vault.repo.shipping import ship_all

        repository = self.repository
        done = ship_all(repository.store, os.path.join(repository.cache_dir, "spool"), store_id=repository.config.store)
        if done.waiting:
            logger.warning("%d records of this machine's mounts are not in the answer: %s", done.waiting, done.error)
        deliver_left(repository)
        return Audit(repository)

    @cached_property
    def _trees(self) -> "TreeReader":
        from vault.repo.trees import TreeReader

        return TreeReader(self.repository.object_reader())

    def _own_run(self) -> RunId | None:
        from vault.capture.this_process import run_on_record

        repository = self.repository
        return run_on_record(repository.config.store, os.path.join(repository.cache_dir, "spool"))

    def _version(self, ref: Ref) -> Version:
        try:
            version = self.repository.datasets.resolve(ref).version
        except RefNotFound as error:
            near = self._with_selector(ref) if error.what == "dataset" else ""
            if near:
                raise RefNotFound(error.text, error.what, [near]) from None
            raise
        assert version is not None
        return version

    def _with_selector(self, ref: Ref) -> str:
        """Return what was meant by `imagenet/train`, if there is a dataset `imagenet`: a path comes after a selector."""
        name, slash, path = ref.name.rpartition("/")
        while slash:
            try:
                self.repository.datasets.load(name)
                return f"{name}@{ref.selector}/{path}"
            except RefError:
                name, slash, rest = name.rpartition("/")
                path = f"{rest}/{path}"
        return ""


def open_vault(
    store: str | None = None,
    *,
    cache_dir: str | None = None,
    node_cache: str | None = None,
    node_cache_size: str | None = None,
) -> Vault:
    """Open a store: a folder's path or a URL.

    Args:
        store: which; None takes VAULTFS_STORE, or what `config.toml` says.
        cache_dir: where this machine's indexes lie; None takes VAULTFS_CACHE_DIR or the platform's place.
        node_cache: where this machine keeps what it reads of a remote store; None takes VAULTFS_NODE_CACHE, "" a place in
            the cache directory.
        node_cache_size: how much that may take, for all who share it: `2TB`, `10%`; None takes VAULTFS_NODE_CACHE_SIZE,
            "" leaves it as it is.

    Raises:
        UsageError: no store is named.
        NotARepository: there is none.
    """
    cache_root = _chosen_cache(cache_dir)
    place = load_settings().node_cache if node_cache is None else node_cache and absolute(node_cache)
    size = load_settings().node_cache_size if node_cache_size is None else node_cache_size
    size_bytes = size_in_bytes(size, place or cache_root) if size else None
    store_opened = open_store(_chosen_store(store))
    return Vault(Repository.open(store_opened, cache_root, node_cache=place, node_cache_size=size_bytes))


def init_vault(store: str | None = None, *, cache_dir: str | None = None) -> Vault:
    """Make an empty store and open it. Arguments as of `open`. Raises AlreadyARepository."""
    return Vault(Repository.init(open_store(_chosen_store(store)), _chosen_cache(cache_dir)))


def edit(ref: str, *, store: str | None = None, cache_dir: str | None = None) -> "Edit":
    """Begin to change a version of a store; see `Vault.edit`. Arguments as of `open`."""
    return open_vault(store, cache_dir=cache_dir).edit(ref)


def prefetch_plan(run: str, ref: str = "") -> int:
    """Do what `Vault.prefetch_plan` does, for the store that VAULTFS_STORE or `config.toml` names."""
    return open_vault().prefetch_plan(run, ref)


def user_name() -> str:
    """Return the login name of the user that this process runs as; its number if it has none."""
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _chosen_store(store: str | None) -> str:
    return load_settings().store if store is None else store


def _chosen_cache(cache_dir: str | None) -> str:
    return load_settings().cache_dir if cache_dir is None else absolute(cache_dir)
