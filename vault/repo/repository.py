"""A repository: one store, opened, with this machine's caches beside it.

Opening reads `vault.json` and nothing else; the index and the journals are read when they are asked for. Threads: the
object may be shared; readers that it hands out may not. Processes: open one in each.
"""

import logging
import os
import secrets
from contextlib import suppress
from functools import cached_property

from vault.clock import format_time, now_ns
from vault.errors import AlreadyARepository, CacheUnusable, FormatError, KeyExists, KeyNotFound, NotARepository
from vault.format.config import Config, decode_config, encode_config
from vault.format.layout import CONFIG_KEY
from vault.progress import SILENT, Progress
from vault.repo.cached_whole_files import CachedWholeFiles
from vault.repo.datasets import Datasets
from vault.repo.index import FreshIndex, ObjectIndex, open_index
from vault.repo.objects import ObjectReader
from vault.repo.promises import check_promises
from vault.repo.waits import Waits
from vault.repo.whole_files import WholeFiles
from vault.stores.base import CachedFiles, LocalFiles, RemoteFiles, Store
from vault.stores.node_cache import CachedStore, cached_store

logger = logging.getLogger(__name__)

_CONFIG_SIZE_MAX = 64 << 10


class Repository:
    """What the verbs of vault work on."""

    def __init__(
        self,
        store: Store,
        cache_root: str,
        config: Config,
        *,
        node_cache: str | None = "",
        node_cache_size: int | None = None,
    ) -> None:
        """Use `init` or `open`, unless the store may be away: this asks it nothing.

        Args:
            store: where everything is. What is read of a remote one is kept on this machine.
            cache_root: the cache directory.
            config: what `vault.json` says.
            node_cache: a folder in which each store has a folder of its own for that; empty: a place in the cache
                directory; None: nothing is kept.
            node_cache_size: how many bytes it may take, from now on and for all who share it; None: as before.
        """
        self.config = config
        self.cache_root = cache_root
        self.cache_dir = os.path.join(cache_root, config.store)
        self.store = store
        if node_cache is not None and isinstance(store, RemoteFiles) and not isinstance(store, CachedFiles):
            folder = os.path.join(node_cache, config.store) if node_cache else os.path.join(self.cache_dir, "blocks")
            try:
                self.store = cached_store(store, folder, node_cache_size)
            except CacheUnusable as error:
                logger.warning("%s; reading goes on without it", error)

    @classmethod
    def init(
        cls, store: Store, cache_root: str, *, node_cache: str | None = "", node_cache_size: int | None = None
    ) -> "Repository":
        """Make an empty repository in a store.

        Raises:
            AlreadyARepository: the store holds a repository, or other things.
        """
        with suppress(KeyNotFound):
            store.size(CONFIG_KEY)
            raise AlreadyARepository(store.url, "is a vault store already")
        for key in store.list(""):
            raise AlreadyARepository(store.url, f"is not empty (it holds {key})")
        config = Config(store=secrets.token_hex(16), created=format_time(now_ns()))
        data = encode_config(config)
        try:
            store.put(CONFIG_KEY, data)
        except KeyExists:
            raise AlreadyARepository(store.url, "is a vault store already") from None
        check_promises(store, CONFIG_KEY, data)
        return cls(store, cache_root, config, node_cache=node_cache, node_cache_size=node_cache_size)

    @classmethod
    def open(
        cls, store: Store, cache_root: str, *, node_cache: str | None = "", node_cache_size: int | None = None
    ) -> "Repository":
        """Open the repository in a store.

        Raises:
            NotARepository: the store holds none.
            UnsupportedVersion: it was made by a newer vault.
        """
        try:
            data = store.get(CONFIG_KEY, length=_CONFIG_SIZE_MAX)
        except KeyNotFound:
            raise NotARepository(store.url) from None
        try:
            config = decode_config(data)
        except FormatError as error:
            if type(error) is not FormatError:
                raise
            raise FormatError("vault store", f"{store.url}: {error.reason}") from error
        return cls(store, cache_root, config, node_cache=node_cache, node_cache_size=node_cache_size)

    def without_node_cache(self) -> "Repository":
        """Return a repository that reads what the store has now: for those who check it."""
        if not isinstance(self.store, CachedStore):
            return self
        return Repository(self.store.remote, self.cache_root, self.config, node_cache=None)

    @cached_property
    def datasets(self) -> Datasets:
        """The datasets of the store, and their versions."""
        return Datasets(self.store)

    @cached_property
    def index(self) -> ObjectIndex:
        """Where each object lies, brought up to date when it is first used."""
        return self._open_index(SILENT)

    def load_index(self, progress: Progress) -> None:
        """Do what the first use of the index does, and tell how far that is. Later it does nothing."""
        if "index" not in self.__dict__:
            self.__dict__["index"] = self._open_index(progress)

    def _open_index(self, progress: Progress) -> ObjectIndex:
        index = open_index(os.path.join(self.cache_dir, "index.lmdb"), self.store)
        index.refresh(progress)
        return index

    @cached_property
    def whole_files(self) -> WholeFiles | CachedWholeFiles | None:
        """Which whole files are known to be good; None for a store that has no files on this machine."""
        if isinstance(self.store, LocalFiles):
            return WholeFiles(self.store, self.cache_dir)
        return CachedWholeFiles(self.store, self.cache_dir) if isinstance(self.store, CachedFiles) else None

    def object_reader(self, waits: Waits | None = None) -> ObjectReader:
        """Return a new reader of verified objects, for one thread; `waits` is told before it has to wait for a disk."""
        return ObjectReader(self.store, FreshIndex(lambda: self.index), waits)
