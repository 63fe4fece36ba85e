"""A folder with a store, a cache and a source in it, for tests that commit, damage and read back.

    place = Place.make(tmp_path)
    place.write({b"a": b"content"})
    result = commit(place.repository(), place.source, "d")
    assert place.read(result.snapshot) == {b"a": b"content"}

Each `repository()` is opened anew; another cache name makes it another machine. Small limits keep examples small.
Threads: none.
"""

import os
import shutil
from dataclasses import dataclass
from typing import Final

from vault.format.config import Chunking, Config, encode_config
from vault.format.layout import CONFIG_KEY
from vault.ids import Digest
from vault.ops.checkout import checkout
from vault.ops.listing import root_entry
from vault.ops.verify import Problem, verify
from vault.repo.repository import Repository
from vault.repo.trees import TreeReader
from vault.stores.base import Store
from vault.stores.local import LocalStore, Step
from vault.testing.trees import Tree, read_tree, read_view, write_tree
from vault.view import open_view

STORE_ID: Final = "0" * 32
SMALL_CHUNKS: Final = Chunking(min_size=4 << 10, avg_size=16 << 10, max_size=48 << 10)


def make_repository(store: Store, cache: str, chunking: Chunking | None = None) -> Repository:
    """Make a repository whose `vault.json` is always the same."""
    config = Config(store=STORE_ID, created="2026-01-01T00:00:00Z", chunking=chunking or Chunking())
    store.put(CONFIG_KEY, encode_config(config))
    return Repository.open(store, cache)


@dataclass(frozen=True, slots=True)
class Place:
    """A store in a folder, and what lies beside it."""

    root: str

    @classmethod
    def make(cls, root: str | os.PathLike[str], chunking: Chunking | None = None) -> "Place":
        """Make an empty repository below a folder."""
        place = cls(os.fspath(root))
        make_repository(place.store(), place.cache(), chunking)
        return place

    @property
    def source(self) -> bytes:
        """A folder to commit."""
        return os.fsencode(self.root) + b"/source"

    @property
    def store_path(self) -> str:
        """The folder of the store."""
        return os.path.join(self.root, "store")

    def store(self, on_step: Step | None = None) -> LocalStore:
        """Return the store, opened anew."""
        return LocalStore(self.store_path, on_step=on_step)

    def cache(self, name: str = "cache") -> str:
        """Return the cache directory of a machine."""
        return os.path.join(self.root, name)

    def repository(self, cache: str = "cache", on_step: Step | None = None) -> Repository:
        """Return the repository, opened anew by a machine."""
        return Repository.open(self.store(on_step), self.cache(cache))

    def write(self, tree: Tree) -> bytes:
        """Make the source hold a tree and nothing else. Returns its path."""
        shutil.rmtree(self.source, ignore_errors=True)
        write_tree(self.source, tree)
        return self.source

    def forget(self, cache: str = "cache") -> None:
        """Remove a cache."""
        shutil.rmtree(self.cache(cache), ignore_errors=True)

    def keys(self, prefix: str = "") -> dict[str, int]:
        """Return the length of every stored file."""
        store = self.store()
        return {key: store.size(key) for key in store.list(prefix)}

    def temporary(self) -> list[str]:
        """Return the names of unfinished files in the store."""
        folder = os.path.join(self.store_path, "tmp")
        return sorted(os.listdir(folder)) if os.path.isdir(folder) else []

    def read(self, snapshot: Digest, cache: str = "cache") -> Tree:
        """Return what a snapshot holds, read through a view."""
        view = open_view(self.repository(cache), snapshot)
        try:
            return read_view(view)
        finally:
            view.close()

    def checkout(self, snapshot: Digest, cache: str = "cache") -> Tree:
        """Return what a snapshot holds, read from a checkout."""
        target = os.path.join(os.fsencode(self.root), b"checkout")
        shutil.rmtree(target, ignore_errors=True)
        reader = self.repository(cache).object_reader()
        try:
            checkout(reader, root_entry(TreeReader(reader), snapshot), target)
            return read_tree(target)
        finally:
            reader.close()
            shutil.rmtree(target, ignore_errors=True)

    def problems(self, cache: str = "cache", *, data: bool = True) -> list[Problem]:
        """Return what `verify` finds."""
        return list(verify(self.repository(cache), data=data))
