"""What exports say of a run, collected once. Reads the store; the formats do not. Threads: as the Vault."""

import hashlib
import os
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final
from urllib.parse import quote

from vault.api import Vault
from vault.errors import KeyNotFound
from vault.format.journal import ENTRY_SIZE_MAX, entry_digest, entry_key
from vault.format.layout import RUNS
from vault.repo.ledger import all_journals
from vault.repo.run_model import Capture, Input, Run

TREE_ALGORITHM: Final = "vaultfsTree"  # what a snapshot's ID is called where algorithms have names: no hash of one file
_NAMES_MAX: Final = 200


@dataclass(frozen=True, slots=True)
class RecordHead:
    """The last entry of one journal of a run: by its chain, all of that journal."""

    journal: str
    n: int
    blake3: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Facts:
    """A run, and what its record does not hold itself."""

    store_id: str
    run: Run
    totals: tuple[int | None, ...]  # files of each input; None if its snapshot is gone
    heads: tuple[RecordHead, ...]
    vault_version: str

    @property
    def namespace(self) -> str:
        """What names of this store are unique in."""
        return f"vaultfs/{self.store_id}"

    @property
    def inputs(self) -> list[tuple[Input, int | None]]:
        """What was opened, with how many files there are."""
        return list(zip(self.run.inputs, self.totals, strict=True))

    @property
    def captures(self) -> list[Capture]:
        """What was captured, by attempt and host."""
        return [attempt.capture for attempt in self.run.history if attempt.capture is not None]

    @property
    def job(self) -> str:
        """What was run, by a name that stays the same from run to run."""
        for capture in self.captures:
            for tree in capture.code:
                if tree.script:
                    return tree.script[:_NAMES_MAX]
        return os.path.basename(self.run.executable or "".join(self.run.command[:1]))[:_NAMES_MAX] or "unknown"


def collect(vault: Vault, run_id: str) -> Facts:
    """Return the facts of a run, by its ID or a part of it. Raises RefNotFound, AmbiguousRef, StoreError."""
    audit = vault.open_audit()
    run = audit.run(run_id)
    store = vault.repository.store
    heads = []
    for journal, number in all_journals(store).items():
        if not journal.startswith(f"{RUNS}{run.run}/"):
            continue
        try:
            data = store.get(entry_key(journal, number), length=ENTRY_SIZE_MAX)
        except KeyNotFound:
            continue  # it has gone since it was listed
        heads.append(RecordHead(journal, number, entry_digest(data), hashlib.sha256(data).hexdigest()))
    return Facts(
        store_id=vault.repository.config.store,
        run=run,
        totals=tuple(audit.files_total(used) for used in run.inputs),
        heads=tuple(heads),
        vault_version=version("vaultfs"),
    )


def dataset_of(ref: str) -> str:
    """Return the dataset in a ref that a record has."""
    return ref.partition("@")[0]


def version_of(ref: str, snapshot: str) -> str:
    """Return the version in a ref that a record has; the snapshot if it names none."""
    return ref.partition("@")[2] or f"b3:{snapshot}"


def safe(text: str) -> str:
    """Return text as one part of a URI."""
    return quote(text, safe="-._~")
