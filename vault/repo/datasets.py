"""Datasets: names, their versions and labels, read from and appended to the journals below `datasets/`.

A version number is given by the order of the journal: two commits at once both succeed, as vN and vN+1. Whether a
snapshot's objects are stored is the caller's care: the entry written here is what makes a snapshot reachable, so it comes
last. Threads: safe. An instance remembers what it read and only ever fetches what is new.
"""

import os
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final, TypeVar

from vault.clock import format_time, now_ns, parse_time
from vault.errors import AmbiguousRef, Damaged, InvalidRef, RefError, RefNotFound
from vault.format.journal import DATASET_KINDS, BundledEntry, Entry, LabelEntry, VersionEntry, encode_entry, entry_number
from vault.format.layout import DATASETS
from vault.ids import LATEST, Digest, Ref, RunId, check_label, check_name, check_run_id, parse_digest
from vault.repo.journals import START, Journal, Position
from vault.stores.base import Store

_NEAR_MAX: Final = 3
_E = TypeVar("_E", bound=Entry)


class NotTheNewest(Exception):
    """A version was to follow one that is not the newest any more. Whoever asked looks again."""


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a dataset."""

    number: int
    snapshot: Digest
    parents: tuple[Digest, ...]
    author: str
    message: str
    time: str  # RFC 3339, UTC
    files: int
    size_bytes: int
    run: RunId | None

    @property
    def time_ns(self) -> int:
        """When it was committed, in nanoseconds since 1970."""
        return parse_time(self.time)


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset as it was when it was read."""

    name: str
    versions: tuple[Version, ...]  # by number; version N is versions[N - 1], but in a bundle, which has few of them
    labels: dict[str, int] = field(default_factory=dict)  # label -> version number; not to be changed

    @property
    def newest(self) -> int:
        """The number of the newest version; 0 if there is none."""
        return self.versions[-1].number if self.versions else 0

    def version(self, number: int) -> Version | None:
        """Return a version, or None if it does not exist."""
        return _version_numbered(self.versions, number)


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a ref's name and selector stand for."""

    name: str
    version: Version | None
    snapshot: Digest


@dataclass(frozen=True, slots=True)
class _Known:
    """What was read of a journal so far."""

    journal: Journal
    position: Position
    dataset: Dataset


class Datasets:
    """The datasets of one store."""

    def __init__(self, store: Store, *, writer: str = "") -> None:
        """Open the datasets of a store; nothing is read yet.

        Args:
            store: where the journals lie.
            writer: what new entries name as their writer; this host if empty.
        """
        self._store = store
        self._writer = writer or os.uname().nodename or "unknown"
        self._known: dict[str, _Known] = {}

    def names(self) -> list[str]:
        """Return the names of all datasets, sorted. Lists the store."""
        return sorted(self.scan())

    def scan(self) -> dict[str, int]:
        """Return the names of all datasets, and the number of the last entry of each one's journal. Lists the store."""
        last: dict[str, int] = {}
        for key in self._store.list(DATASETS):
            prefix = key.rpartition("/")[0]
            number = entry_number(key, prefix)
            if number is not None:
                name = prefix.removeprefix(DATASETS)
                last[name] = max(number, last.get(name, 0))
        return {name: number for name, number in last.items() if _is_name(name)}

    def load_listed(self, name: str, number: int) -> Dataset:
        """Return a dataset as it was when `scan` gave a number for it, or newer. Asks for nothing that was read before.

        Raises:
            Damaged: its journal is.
        """
        known = self._known.get(name)
        if known is None or known.position.number < number:
            known = self._follow(name, listed=number)
        return known.dataset

    def load(self, name: str) -> Dataset:
        """Return a dataset as it is now. Reads only what is new since the last call: one round trip if nothing is.

        Raises:
            RefNotFound: there is none of this name; the error has near ones.
            Damaged: its journal is.
        """
        return self._require(name).dataset

    def refresh(self, name: str) -> bool:
        """Read what is new of a dataset, and tell whether anything was. Raises as `load`."""
        before = self._known.get(name)
        return self._require(name) is not before

    def last_version(self, name: str) -> int:
        """Return the number of the newest version; 0 if the dataset does not exist. Does not read a whole journal."""
        if name in self._known:
            return self._follow(name).dataset.newest
        journal = self._journal(name)
        for number in range(journal.head().number, 0, -1):
            entry = journal.entry(number)
            if isinstance(entry, VersionEntry | BundledEntry):
                return entry.version
        return 0

    def resolve(self, ref: Ref) -> Resolved:
        """Return what a ref's name and selector stand for now. Its path is not looked at.

        A snapshot that several versions have is taken for the oldest of them, which stays so for ever.

        Raises:
            RefNotFound: no such dataset, version or label.
            AmbiguousRef: several snapshots start with these digits.
        """
        dataset = self.load(ref.name)
        if ref.digest_prefix is not None:
            version = _version_by_digest(dataset, ref.digest_prefix)
        elif ref.version is not None:
            version = dataset.version(ref.version)
        elif ref.selector == LATEST:
            version = dataset.version(dataset.newest)
        else:
            version = dataset.version(dataset.labels.get(ref.selector, 0))
        if version is None:
            raise _not_found(dataset, ref)
        return Resolved(ref.name, version, version.snapshot)

    def append_version(
        self,
        name: str,
        snapshot: Digest,
        *,
        author: str,
        files: int,
        size_bytes: int,
        message: str = "",
        parents: Sequence[Digest] = (),
        run: RunId | None = None,
        time_ns: int | None = None,
        after: int | None = None,
    ) -> Version:
        """Make a snapshot the next version of a dataset, which need not exist yet. Durable on return.

        This is the commit point: everything that the snapshot needs must be durable before.

        Args:
            name: the dataset.
            snapshot: the new version's content.
            author: who made it.
            files: how many files the snapshot has.
            size_bytes: how many plain bytes they have.
            message: what is to be known about it.
            parents: snapshots that it was made from.
            run: what produced it.
            time_ns: when it was made; now if None.
            after: the version that must be the newest one; None: whichever is.

        Raises:
            NotTheNewest: another version is.
        """
        time = _time(time_ns)

        def make(position: Position, dataset: Dataset) -> VersionEntry:
            if after is not None and dataset.newest != after:
                raise NotTheNewest
            return VersionEntry(
                n=position.number + 1,
                prev=position.digest,
                writer=self._writer,
                time=time,
                version=dataset.newest + 1,
                snapshot=snapshot.hex(),
                parents=tuple(parent.hex() for parent in parents),
                author=author,
                message=message,
                files=files,
                bytes=size_bytes,
                run=run,
            )

        return _version(self._append(name, make))

    def set_label(self, name: str, label: str, version: int | None, *, author: str, time_ns: int | None = None) -> None:
        """Put a label on a version, or take it away if version is None. Durable on return.

        Raises:
            InvalidRef: this cannot be a label.
            RefNotFound: there is no such version, or no such label to take away.
        """
        check_label(label)
        self.load(name)
        time = _time(time_ns)

        def make(position: Position, dataset: Dataset) -> LabelEntry:
            if version is None and label not in dataset.labels:
                raise _not_found(dataset, Ref(name, label))
            if version is not None and dataset.version(version) is None:
                raise _not_found(dataset, Ref(name, f"v{version}"))
            return LabelEntry(
                n=position.number + 1,
                prev=position.digest,
                writer=self._writer,
                time=time,
                label=label,
                version=version,
                author=author,
            )

        self._append(name, make)

    def _append(self, name: str, make: Callable[[Position, Dataset], _E]) -> _E:
        """Append what make returns for the state of the dataset that the entry will follow."""
        made: list[_E] = []
        journal = self._follow(name).journal

        def encode(number: int, prev: str | None) -> bytes:
            known = self._follow(name)
            if known.position.number < number - 1:
                raise Damaged(journal.key(known.position.number + 1), "it is missing, though later entries exist")
            # If others went on since the journal's head was read, the number is taken and we are asked again.
            made[:] = [make(Position(number - 1, prev), known.dataset)]
            return encode_entry(made[0])

        journal.append(encode)
        return made[0]

    def _require(self, name: str) -> _Known:
        known = self._follow(name)
        if known.position == START:
            raise RefNotFound(name, "dataset", _near(name, self.names()))
        return known

    def _follow(self, name: str, *, listed: int | None = None) -> _Known:
        """Read what is new of a journal, up to what was listed if that is known.

        Two threads may do so at once; what either remembers is true.
        """
        known = self._known.get(name) or _Known(self._journal(name), START, Dataset(name, ()))
        versions, labels = list(known.dataset.versions), dict(known.dataset.labels)
        reached = known.position
        check_end = reached == START and listed is None
        for position, entry in known.journal.follow(reached, check_end=check_end, listed=listed):
            try:
                _apply(entry, versions, labels)
            except (RefError, ValueError) as error:
                raise Damaged(known.journal.key(position.number), str(error)) from error
            reached = position
        if reached != known.position:
            known = _Known(known.journal, reached, Dataset(name, tuple(versions), labels))
            self._known[name] = known
        return known

    def _journal(self, name: str) -> Journal:
        return Journal(self._store, DATASETS + check_name(name), DATASET_KINDS)


def _apply(entry: Entry, versions: list[Version], labels: dict[str, int]) -> None:
    """Add what an entry says. Raises ValueError if it does not fit what came before; unknown kinds are passed over."""
    newest = versions[-1].number if versions else 0
    if isinstance(entry, VersionEntry):
        if entry.version != newest + 1:
            raise ValueError(f"it says version {entry.version} after version {newest}")
        versions.append(_version(entry))
    elif isinstance(entry, BundledEntry):
        if entry.version <= newest:
            raise ValueError(f"it says version {entry.version} after version {newest}")
        versions.append(_bundled_version(entry))
    elif isinstance(entry, LabelEntry):
        if entry.version is None:
            labels.pop(entry.label, None)
        elif _version_numbered(versions, entry.version) is None:
            raise ValueError(f"its label is on version {entry.version}, which there is not")
        else:
            labels[check_label(entry.label)] = entry.version


def _version(entry: VersionEntry) -> Version:
    parse_time(entry.time)
    return Version(
        number=entry.version,
        snapshot=parse_digest(entry.snapshot),
        parents=tuple(map(parse_digest, entry.parents)),
        author=entry.author,
        message=entry.message,
        time=entry.time,
        files=entry.files,
        size_bytes=entry.bytes,
        run=None if entry.run is None else check_run_id(entry.run),
    )


def _bundled_version(entry: BundledEntry) -> Version:
    parse_time(entry.time)
    snapshot, run = parse_digest(entry.snapshot), None if entry.run is None else check_run_id(entry.run)
    return Version(entry.version, snapshot, (), "", "", entry.time, entry.files, entry.bytes, run)


def _version_numbered(versions: Sequence[Version], number: int) -> Version | None:
    """Return the version of a number: where it is if none is left out, else by bisection."""
    if 1 <= number <= len(versions) and versions[number - 1].number == number:
        return versions[number - 1]
    at = bisect_left(versions, number, key=attrgetter("number"))
    return versions[at] if at < len(versions) and versions[at].number == number else None


def _version_by_digest(dataset: Dataset, prefix: str) -> Version | None:
    """Return the oldest version of the one snapshot whose hex digits start with prefix."""
    found: dict[Digest, Version] = {}
    for version in dataset.versions:
        if version.snapshot.hex().startswith(prefix):
            found.setdefault(version.snapshot, version)
    if len(found) > 1:
        told_apart = len(prefix) + 4
        while len({snapshot.hex()[:told_apart] for snapshot in found}) < len(found):
            told_apart += 4
        candidates = [f"b3:{snapshot.hex()[:told_apart]} (v{v.number})" for snapshot, v in found.items()]
        raise AmbiguousRef(f"{dataset.name}@b3:{prefix}", candidates)
    return next(iter(found.values()), None)


def _not_found(dataset: Dataset, ref: Ref) -> RefNotFound:
    """Return the error for a selector that leads nowhere. A version too high is near the newest one."""
    newest = [f"v{version.number}" for version in dataset.versions[-1:]]
    near = newest if ref.version else _near(ref.selector, [LATEST, *dataset.labels, *newest])
    what = "label" if ref.version is None and ref.digest_prefix is None else "version"
    return RefNotFound(f"{ref.name}@{ref.selector}", what, [f"{ref.name}@{selector}" for selector in near])


def _near(word: str, words: Iterable[str]) -> list[str]:
    import difflib  # for mistakes alone

    return difflib.get_close_matches(word, words, _NEAR_MAX)


def _is_name(text: str) -> bool:
    try:
        check_name(text)
    except InvalidRef:
        return False
    return True


def _time(time_ns: int | None) -> str:
    return format_time(now_ns() if time_ns is None else time_ns)
