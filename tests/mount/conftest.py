"""What the tests of mounts share: a tree with every kind of thing, committed once, mounted by each engine and checked out.

Tests take `mount` (one mount per engine for all of them, never changed or broken by a test), or `site` and
`vault.testing.mounts.mounted` where they need a mount of their own.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from vault.format.mapfile import How
from vault.format.pack import Codec
from vault.ids import Digest
from vault.repo.maps import open_map
from vault.repo.repository import Repository
from vault.stores.registry import open_store
from vault.testing.mounts import Mount, Site, mounted, why_not_mountable
from vault.testing.trees import Executable, Link, Tree, noise, text, write_tree
from vault.view import open_view

ENGINES = ("direct", "fusepy")
MANY = 20_000
DEPTH = 40


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = os.path.dirname(__file__)
    for item in items:
        if str(item.path).startswith(here):
            item.add_marker(pytest.mark.fuse)


@pytest.fixture(scope="session", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """Each engine in turn; skips where it cannot run, and says why."""
    return _usable(request.param)


@pytest.fixture(scope="session")
def direct() -> str:
    """The direct engine, for what only it promises."""
    return _usable("direct")


def _usable(engine: str) -> str:
    if missing := why_not_mountable(engine):
        pytest.skip(f"engine {engine}: {missing}")
    return engine


@pytest.fixture
def site(tmp_path) -> Site:
    """An empty store of the test's own."""
    return Site.make(str(tmp_path))


@dataclass(frozen=True)
class Shelf:
    """The tree with everything, in a store and as files."""

    site: Site
    tree: Tree
    source: bytes  # what was committed
    checkout: bytes  # what `vault checkout` made of it
    snapshot: str
    time_ns: int  # of the commit
    inflated: bytes  # path of the file that is stored as a recipe of compressed chunks
    edited: bytes  # ... of chunks that it shares with `whole`
    whole: bytes  # ... as itself


def everything() -> Tree:
    """Return a tree with every kind of thing that a snapshot may hold."""
    base = noise(9 << 20, seed=1)
    return {
        b"empty": b"",
        b"one byte": b"\0",
        b"no folder": {},
        b"run.sh": Executable(b"#!/bin/sh\necho it runs\n"),
        b"empty.sh": Executable(b""),
        b"links": {
            b"to-file": Link(b"../packed/raw-0"),
            b"to-folder": Link(b"../packed"),
            b"dangling": Link(b"nowhere/at all"),
            b"absolute": Link(b"/proc/self/mountinfo"),
            b"loop": Link(b"loop"),
            b"odd \xff\xfe": Link(b"\xff\n\xfe"),
            b"longest": Link(b"d/" * 2047 + b"x"),
        },
        b"names": {
            b"\xff\xfe not utf-8": b"1",
            b"\x80": {b"\x81": b"2"},
            "Ünïcödé ☃ \U0001f4be".encode(): b"3",
            b"new\nline": b"4",
            b"tab\tand\x7fdelete\x01": b"5",
            b" leading and trailing ": b"6",
            b"back\\slash 'quote' \"double\" $(x) `y` *?[z]": b"7",
            b"-rf": b"8",
            b"...": b"9",
            b"a@v1": b"10",
            b"x" * 255: b"11",
            b"\xc3" * 255: {b"y" * 255: Executable(b"12")},
            b"case": b"13",
            b"CASE": b"14",
        },
        b"packed": {
            **{b"raw-%d" % size: noise(size, seed=size) for size in (0, 1, 4095, 4096, 4097, 130_000, 1_500_000)},
            **{b"text-%d" % size: text(size, seed=size) for size in (100, 4096, 131_072, 131_073, 3_000_000)},
            b"largest": noise(4 << 20, seed=4),
            b"same-1": noise(5000, seed=5),
            b"same-2": noise(5000, seed=5),
        },
        b"large": {
            b"a whole": base,
            b"b edited": base[: 4 << 20] + b"something new in the middle" * 100 + base[4 << 20 :],
            b"c text": text(7 << 20, seed=7),
            b"d zeros": bytes(6 << 20),
        },
        b"deep": _nested(DEPTH),
    }


def _nested(depth: int) -> Tree:
    return {b"bottom": b"deep down"} if not depth else {b"level-%d" % depth: _nested(depth - 1)}


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    """The tree with everything, committed and checked out once."""
    folder = str(tmp_path_factory.mktemp("shelf"))
    site = Site.make(folder)
    tree = everything()
    source = os.fsencode(folder) + b"/source"
    write_tree(source, tree)
    summary = site.commit(source, "shelf")
    write_tree(os.fsencode(folder) + b"/many", {b"all": {b"%06d.txt" % number: b"" for number in range(MANY)}})
    site.commit(f"{folder}/many", "wide/many")
    checkout = os.fsencode(folder) + b"/checkout"
    site.vault("checkout", "shelf@v1", os.fsdecode(checkout))
    repository = Repository.open(open_store(site.store), site.cache)
    version = repository.datasets.load("shelf").versions[0]
    shelf = Shelf(
        site, tree, source, checkout, summary["snapshot"], version.time_ns,
        whole=b"large/a whole", edited=b"large/b edited", inflated=b"large/c text",
    )  # fmt: skip
    _check_storage(repository, shelf)
    yield shelf
    shutil.rmtree(folder)


def _check_storage(repository: Repository, shelf: Shelf) -> None:
    """See to it that the tree covers every way of storing a file; else the tests below it would not."""
    snapshot = Digest(bytes.fromhex(shelf.snapshot))
    view = open_view(repository, snapshot)
    mapped = open_map(snapshot, repository.store, repository.object_reader(), repository.cache_dir)

    def stored(path: bytes) -> tuple[How, Codec]:
        number = view.find(path)
        assert number is not None
        location = mapped.location(number)
        return location.how, location.codec

    assert stored(shelf.whole)[0] == How.WHOLE
    assert stored(shelf.edited)[0] == How.RECIPE
    assert stored(shelf.inflated)[0] == How.RECIPE
    assert stored(b"packed/raw-130000") == (How.PACKED, Codec.RAW)
    assert stored(b"packed/text-131072") == (How.PACKED, Codec.ZSTD)
    view.close()


@pytest.fixture(scope="session")
def mount(shelf: Shelf, engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """The tree with everything, mounted by one engine."""
    with mounted(shelf.site, str(tmp_path_factory.mktemp("mnt")), engine=engine) as mount:
        yield mount


@pytest.fixture(scope="session")
def root(mount: Mount) -> bytes:
    """The mounted snapshot."""
    return os.fsencode(mount.path) + b"/shelf@v1"
