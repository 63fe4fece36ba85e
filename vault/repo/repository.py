"""A repository: one store, opened, with this machine's caches beside it.

Opening reads `vault.json` and nothing else; the index and the journals are read when they are asked for. Threads: the
object may be shared; readers that it hands out may not. Processes: open one in each.
"""

import os
import secrets
from contextlib import suppress
from functools import cached_property

from vault.clock import format_time, now_ns
from vault.errors import AlreadyARepository, FormatError, KeyExists, KeyNotFound, NotARepository
from vault.format.config import Config, decode_config, encode_config
from vault.format.layout import CONFIG_KEY
from vault.repo.datasets import Datasets
from vault.repo.index import FreshIndex, ObjectIndex, open_index
from vault.repo.objects import ObjectReader
from vault.repo.waits import Waits
from vault.repo.whole_files import WholeFiles
from vault.stores.base import LocalFiles, Store

_CONFIG_SIZE_MAX = 64 << 10


class Repository:
    """What the verbs of vault work on."""

    def __init__(self, store: Store, cache_root: str, config: Config) -> None:
        """Use `init` or `open`."""
        self.store = store
        self.config = config
        self.cache_root = cache_root
        self.cache_dir = os.path.join(cache_root, config.store)

    @classmethod
    def init(cls, store: Store, cache_root: str) -> "Repository":
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
        try:
            store.put(CONFIG_KEY, encode_config(config))
        except KeyExists:
            raise AlreadyARepository(store.url, "is a vault store already") from None
        return cls(store, cache_root, config)

    @classmethod
    def open(cls, store: Store, cache_root: str) -> "Repository":
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
            return cls(store, cache_root, decode_config(data))
        except FormatError as error:
            if type(error) is not FormatError:
                raise
            raise FormatError("vault store", f"{store.url}: {error.reason}") from error

    @cached_property
    def datasets(self) -> Datasets:
        """The datasets of the store, and their versions."""
        return Datasets(self.store)

    @cached_property
    def index(self) -> ObjectIndex:
        """Where each object lies, brought up to date when it is first used."""
        index = open_index(os.path.join(self.cache_dir, "index.lmdb"), self.store)
        index.refresh()
        return index

    @cached_property
    def whole_files(self) -> WholeFiles | None:
        """Which whole files are known to be good; None for a store that has no local files."""
        return WholeFiles(self.store, self.cache_dir) if isinstance(self.store, LocalFiles) else None

    def object_reader(self, waits: Waits | None = None) -> ObjectReader:
        """Return a new reader of verified objects, for one thread; `waits` is told before it has to wait for a disk."""
        return ObjectReader(self.store, FreshIndex(self.index), waits)
