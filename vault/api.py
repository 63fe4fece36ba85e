"""What programs script against: one object for one store. The command line stands on it too.

    import vault

    store = vault.open("~/vault-store")
    made = store.commit("imagenet", "imagenet", message="as downloaded")
    for change in store.diff("imagenet@v1", "imagenet@v2"):
        print(change.kind, change.path)
    for read in store.audit("imagenet@v2/labels.csv"):
        print(read.run.run, read.run.command)

Refs are texts: `NAME@SELECTOR/PATH` (docs/reference/refs.md). Names inside of snapshots are bytes.
Everything raises `vault.errors.VaultError` and nothing else on purpose. Threads: one Vault in each.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vault.errors import UsageError
from vault.format.tree import Entry
from vault.ids import Digest, Ref, parse_digest, parse_ref
from vault.ops.listing import find_entry, list_entries
from vault.progress import SILENT, Progress
from vault.repo.datasets import Dataset, Version
from vault.repo.repository import Repository
from vault.settings import load_settings
from vault.stores.registry import open_store

# What only one verb needs is imported by it: `vault log` should not pay for `vault commit`.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from vault.ops.audit import Audit, Filter, OpenedFile, Read
    from vault.ops.checkout import CheckoutResult
    from vault.ops.commit import CommitResult
    from vault.ops.diff import Change
    from vault.ops.verify import Verification
    from vault.repo.runs import Run

StrPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]


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

    @property
    def url(self) -> str:
        """The store, as a user names it."""
        return self.repository.store.url

    # Datasets.

    def commit(
        self,
        source: StrPath,
        name: str,
        *,
        message: str = "",
        author: str = "",
        exclude: Sequence[str | bytes] = (),
        skip_special: bool = False,
        allow_unchanged: bool = False,
        progress: Progress = SILENT,
    ) -> "CommitResult":
        """Freeze a folder or file as the next version of a dataset.

        Args:
            source: the folder or file.
            name: the dataset; its first commit makes it.
            message: why, for those who read the log.
            author: who; the user that runs this if empty.
            exclude: patterns as in a .gitignore file, beside those in `.vaultignore` files.
            skip_special: leave sockets, devices and FIFOs out instead of refusing.
            allow_unchanged: make a version even if the latest one has the same snapshot.
            progress: told what was read so far.

        Raises:
            InvalidRef, UsageError: name or source makes no sense.
            SourceUnreadable, SourceChanged, SpecialFile: naming the file.
            StoreError: as the store says. The same commit may be tried again; what was stored is not stored twice.
        """
        from vault.ops.commit import commit

        return commit(
            self.repository,
            os.fsencode(source),
            name,
            message=message,
            author=author or user_name(),
            exclude=[os.fsencode(pattern) for pattern in exclude],
            skip_special=skip_special,
            allow_unchanged=allow_unchanged,
            progress=progress,
        )

    def datasets(self) -> list[str]:
        """Return the names of all datasets, sorted."""
        return self.repository.datasets.names()

    def dataset(self, name: str) -> Dataset:
        """Return a dataset: its versions, oldest first, and its labels. Raises RefNotFound with near names."""
        return self.repository.datasets.load(name)

    def label(self, ref: str, label: str, *, author: str = "") -> Version:
        """Put a label on the version that a ref names, moving it there if it is on another. Returns the version."""
        parsed = parse_ref(ref)
        version = self._version(parsed)
        self.repository.datasets.set_label(parsed.name, label, version.number, author=author or user_name())
        return version

    def remove_label(self, name: str, label: str, *, author: str = "") -> None:
        """Take a label away. The journal keeps that it was there."""
        self.repository.datasets.set_label(name, label, None, author=author or user_name())

    # Looking into snapshots.

    def find(self, ref: str) -> Found:
        """Return what a ref names. Raises RefNotFound: no such dataset, version or path; the error has near ones."""
        from vault.repo.trees import TreeReader

        parsed = parse_ref(ref)
        version = self._version(parsed)
        trees = TreeReader(self.repository.object_reader())
        entry = find_entry(trees, version.snapshot, parsed.path)
        named = Ref(parsed.name, f"v{version.number}", parsed.path)
        return Found(str(named), version.snapshot, version, parsed.path, entry)

    def ls(self, ref: str, *, recursive: bool = False) -> Iterator[tuple[bytes, Entry]]:
        """Yield (path below the ref, entry) of what a directory holds, in name order; of a file: itself."""
        from vault.repo.trees import TreeReader

        found = self.find(ref)
        return list_entries(TreeReader(self.repository.object_reader()), found.entry, recursive=recursive)

    def read(self, ref: str) -> Iterator[bytes]:
        """Yield the content of a file in pieces. It is proven when the iterator has ended without an error."""
        from vault.repo.content import read_content

        found = self.find(ref)
        if not found.entry.is_file:
            raise UsageError(f"{ref} is no file")
        return map(bytes, read_content(self.repository.object_reader(), found.entry))

    def diff(self, old: str, new: str) -> "Iterator[Change]":
        """Yield what turns one version, or one folder of it, into another. Paths are below the refs."""
        from vault.ops.diff import diff_entries
        from vault.repo.trees import TreeReader

        before, after = self.find(old), self.find(new)
        return diff_entries(TreeReader(self.repository.object_reader()), before.entry, after.entry)

    def checkout(self, ref: str, target: StrPath, *, progress: Progress = SILENT) -> "CheckoutResult":
        """Copy a version, a folder or a file of it to a new or empty place, every byte verified."""
        from vault.ops.checkout import checkout

        found = self.find(ref)
        objects = self.repository.object_reader()
        return checkout(objects, found.entry, os.fsencode(target), mtime_ns=found.version.time_ns, progress=progress)

    def verify(self, *, data: bool = False, progress: Progress = SILENT) -> "Verification":
        """Start to check the store; iterate over the result for what is damaged.

        Args:
            data: hash every stored byte too.
            progress: told what was looked at so far.
        """
        from vault.ops.verify import verify

        return verify(self.repository, data=data, progress=progress)

    # Runs.

    def runs(self, wanted: "Filter | None" = None) -> "Iterator[Run]":
        """Yield recorded runs, those that started last first."""
        from vault.ops.audit import Filter

        return self.open_audit().runs(wanted or Filter())

    def audit(self, target: str, *, content: bool = False) -> "Iterator[Read]":
        """Yield who opened a dataset, a version, or a folder or file of one.

        Args:
            target: a dataset's name, a ref, or `b3:` and the 64 digits of a file's content.
            content: also files with the same bytes under any other name, in any version that a run has read.

        Raises:
            RefNotFound: it names nothing.
        """
        audit = self.open_audit()
        if target.startswith("b3:"):
            return audit.readers_of_content(parse_digest(target))
        ref = parse_ref(target)
        if "@" not in target and not content:
            return audit.readers_of_dataset(ref.name)
        return audit.readers_of(ref, content=content)

    def opened_files(self, run: str) -> "Iterator[OpenedFile]":
        """Yield every file that a run opened. `run` is its ID, or as much of it as no other run has."""
        audit = self.open_audit()
        return audit.opened_files(audit.run(run))

    def open_audit(self) -> "Audit":
        """Return what answers several questions about runs, after taking along what mounts of this machine have seen."""
        from vault.ops.audit import Audit
        from vault.repo.shipping import ship_all

        repository = self.repository
        ship_all(repository.store, os.path.join(repository.cache_dir, "spool"), store_id=repository.config.store)
        return Audit(repository)

    def _version(self, ref: Ref) -> Version:
        version = self.repository.datasets.resolve(ref).version
        assert version is not None
        return version


def open_vault(store: str | None = None, *, cache_dir: str | None = None) -> Vault:
    """Open a store: a folder's path or a URL.

    Args:
        store: which; None takes VAULTFS_STORE, or what `config.toml` says.
        cache_dir: where this machine's indexes lie; None takes VAULTFS_CACHE_DIR or the platform's place.

    Raises:
        UsageError: no store is named.
        NotARepository: there is none.
    """
    return Vault(Repository.open(open_store(_chosen_store(store)), _chosen_cache(cache_dir)))


def init_vault(store: str | None = None, *, cache_dir: str | None = None) -> Vault:
    """Make an empty store and open it. Arguments as of `open`. Raises AlreadyARepository."""
    return Vault(Repository.init(open_store(_chosen_store(store)), _chosen_cache(cache_dir)))


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
    return load_settings().cache_dir if cache_dir is None else os.path.abspath(os.path.expanduser(cache_dir))
