"""What a mount over a network has besides others: a fetcher, hints for it, and what its processes share for that.

Made before the processes of the mount; `prepare_worker` and `fetch` run in them. Threads: as fetcher.py says.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable
from typing import Final, cast

from vault.errors import VaultError
from vault.repo.journal_cache import JournalCache
from vault.repo.plan_box import FOLDER as PLANS
from vault.repo.repository import Repository
from vault.repo.waits import Waits
from vault.stores.base import CachedFiles, RemoteFiles
from vault.stores.node_cache import CachedStore, ledger
from vault_fuse.fetcher import THREADS_MAX, Fetcher
from vault_fuse.hint_pipe import HintPipe
from vault_fuse.hints import Channel
from vault_fuse.marks import Marks
from vault_fuse.mounting import MountParts
from vault_fuse.plans import Plans
from vault_fuse.remote_reads import Deadline, FarStore, PatientStore, RemoteReads, RemoteStore
from vault_fuse.status_files import CacheFigures
from vault_fuse.supervisor import take_name

logger = logging.getLogger(__name__)

JOURNAL_THREADS: Final = 8
PROCESS_NAME: Final = "vault-fetcher"
_JOURNALS: Final = "journals.lmdb"


class RemoteParts:
    """What the processes of one mount share."""

    def __init__(self, parts: MountParts) -> None:
        self._parts = parts
        self._channel = Channel()
        self._marks = Marks()
        self.pipe = HintPipe(os.path.realpath(parts.options.path))

    def prepare_worker(self, repository: Repository, counters: memoryview, waits: Waits | None) -> JournalCache:
        """Let a repository that was opened in this process, and not used yet, be read with hints and within deadlines.

        Returns:
            The journals as this machine remembers them.
        """
        deadline = Deadline(counters, self._parts.options.deadline_s)
        store = repository.store
        if isinstance(store, CachedFiles):
            repository.store = RemoteReads(cast(RemoteStore, store), self._channel, self._marks, counters, deadline, waits)
        else:  # the cache cannot be used, which the log says
            repository.store = PatientStore(cast(FarStore, store), deadline, waits)
        return JournalCache(os.path.join(repository.cache_dir, _JOURNALS), repository.store)

    @staticmethod
    def figures_of(repository: Repository) -> CacheFigures:
        """Return what tells how the cache fares of a repository that was opened in this process, and not prepared yet."""
        store = repository.store

        def figures() -> dict[str, int | str]:
            if not isinstance(store, CachedStore):
                return {}
            cells = store.folder.ledger.cells
            return {
                "folder": store.folder.root,
                "limit_bytes": cells[ledger.LIMIT],
                "used_bytes": cells[ledger.USED],
                "requests": cells[ledger.REQUESTS],
                "fetched_bytes": cells[ledger.FETCHED],
                "evicted_bytes": cells[ledger.EVICTED],
            }

        return figures

    def fetch(self, counters: memoryview, reader_waits: Callable[[], bool]) -> None:
        """Fetch ahead until this process is killed: call it in a child of its own."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        take_name(PROCESS_NAME)
        repository = self._parts.open_repository()
        store = repository.store
        if not isinstance(store, CachedFiles):  # there is no place to fetch to
            self.pipe.let_go()
            signal.pause()
        self.pipe.open()
        fetcher = Fetcher(
            repository,
            self._channel,
            self._marks,
            counters,
            reader_waits,
            cache_bytes=_cache_bytes(repository),
            threads=store.requests_max if isinstance(store, RemoteFiles) else THREADS_MAX,
        )
        threading.Thread(target=_fill_journals, args=(repository,), daemon=True).start()
        threading.Thread(target=self.pipe.listen, daemon=True).start()
        threading.Thread(target=self._follow_plans, args=(fetcher,), daemon=True).start()
        fetcher.run()

    def _follow_plans(self, fetcher: Fetcher) -> None:
        """Follow plans, with a repository of this thread's own."""
        repository = self._parts.open_repository()
        plans = Plans(
            fetcher.queue,
            repository,
            folder=f"{self._parts.state_dir}/{PLANS}",
            spool_root=f"{repository.cache_dir}/spool",
            cache_bytes=_cache_bytes(repository),
            mountpoint=self._parts.options.path,
            pipe=self.pipe,
        )
        plans.run()


def _cache_bytes(repository: Repository) -> int:
    """Return how much this machine keeps of a store."""
    store = repository.store
    return store.folder.ledger.cells[ledger.LIMIT] if isinstance(store, CachedStore) else 0


def _fill_journals(repository: Repository) -> None:
    """Fetch the journals of datasets side by side: listing a mount for the first time need not wait for each entry."""
    try:
        JournalCache(os.path.join(repository.cache_dir, _JOURNALS), repository.store).fill(JOURNAL_THREADS)
    except VaultError as error:
        logger.info("journals are fetched when they are asked for: %s", error)
