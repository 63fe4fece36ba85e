"""The data of a repetition: mounted where the run had it, every name standing for what it stood for then. Threads: one."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

from vault.capture.proc import RUN_VARIABLE
from vault.errors import MountError
from vault.format.journal import DATASET_KINDS, BundledEntry, LabelEntry, VersionEntry
from vault.format.layout import DATASETS
from vault.ids import LATEST
from vault.ops.preflight import Preflight
from vault.ops.repetition_place import Place
from vault.repo.journals import START, Journal
from vault.repo.repository import Repository


def mountpoints(flight: Preflight) -> list[str]:
    """Return where the run had its data."""
    if not flight.run.inputs:
        return []
    return list(dict.fromkeys(part.start.mountpoint for part in flight.attempt.parts if part.start.mountpoint))


@contextlib.contextmanager
def mounted_data(repository: Repository, flight: Preflight, place: Place) -> Iterator[None]:
    """Mount the data, pinned to what it was, for the time of a block.

    Raises:
        MountError: it cannot be mounted.
    """
    mounted = []
    try:
        for number, mountpoint in enumerate(mountpoints(flight)):
            folder = place.folder("data", str(number))
            pins = [f"--pin={pin}" for pin in _pins(repository, flight)]
            _vault(repository, "mount", "--no-capture", *pins, folder, where=mountpoint)
            mounted.append(folder)
            place.put(folder, mountpoint)
        yield
    finally:
        for folder in mounted:
            _vault(repository, "umount", folder, where=folder)


def _pins(repository: Repository, flight: Preflight) -> Iterator[str]:
    """Yield what each name of a dataset that was read stood for when it was first read."""
    attempt = flight.attempt
    for dataset in sorted({used.ref.partition("@")[0] for used in flight.run.inputs}):
        opened = min(used.first_open for used in flight.run.inputs if used.ref.partition("@")[0] == dataset)
        is_of_attempt = attempt.started <= opened <= (attempt.ended or opened)
        time = opened if is_of_attempt else attempt.started
        for selector, version in _selectors_at(repository, dataset, time).items():
            yield f"{dataset}@{selector}=v{version}"


def _selectors_at(repository: Repository, dataset: str, time: str) -> dict[str, int]:
    """Return what `latest` and the labels of a dataset stood for at a time, by what its journal says."""
    found: dict[str, int] = {}
    for _, entry in Journal(repository.store, DATASETS + dataset, DATASET_KINDS).follow(START):
        if entry.time > time:
            continue
        if isinstance(entry, VersionEntry | BundledEntry):
            found[LATEST] = max(entry.version, found.get(LATEST, 0))
        elif isinstance(entry, LabelEntry) and entry.version is None:
            found.pop(entry.label, None)
        elif isinstance(entry, LabelEntry) and entry.version is not None:
            found[entry.label] = entry.version
    return found


def _vault(repository: Repository, *words: str, where: str) -> None:
    environment = {**os.environ, "VAULTFS_STORE": repository.store.url, "VAULTFS_CACHE_DIR": repository.cache_root}
    environment.pop(RUN_VARIABLE, None)
    command = [sys.executable, "-P", "-m", "vault", words[0], "-q", *words[1:]]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip() or f"it ended with {done.returncode}"
        raise MountError(where, said.removeprefix("vault: "))
