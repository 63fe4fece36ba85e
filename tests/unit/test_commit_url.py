"""Sources by URL: the snapshot of the same files in a folder, whatever a service lists and in whatever order; odd names."""

import functools
import http.server
import os
import random
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import vault.ops.url_files as url_files_module
from vault.chunking.policy import PACKED_SIZE_MAX
from vault.errors import SourceChanged, SourceUnreadable, SpecialFile, UsageError
from vault.ops.commit import CommitResult, commit
from vault.ops.source import BeginDirectory, EndDirectory, Source, SourceFile
from vault.ops.sources import is_url, open_source
from vault.ops.url_files import asked_again
from vault.ops.url_rows import Row, SortedRows, row_order
from vault.repo.repository import Repository
from vault.stores.s3.store import S3Store
from vault.testing import proxy_faults as faults
from vault.testing.gateway import Gateway
from vault.testing.places import Place
from vault.testing.proxy import Proxy
from vault.testing.trees import Tree, noise, text

LARGE = PACKED_SIZE_MAX + 1
ORDERED: Tree = {  # by keys, `a.b` and `a-b` come before what lies in `a`
    b"a": {b"x": b"in a", b"y": {b"z": b"deeper"}, b"y.z": b"beside"},
    b"a.b": b"a file whose name starts as a folder's does",
    b"a-b": {b"q": b"another folder"},
    b"a0": b"",
    "\u00e9".encode(): b"not ASCII",
    b"with space & +plus": b"as in URLs",
}
TREE: Tree = {**ORDERED, b"weights": noise(3 * LARGE), b"table": text(LARGE)}

Put = Callable[[Tree], bytes]


@pytest.fixture
def folder(tmp_path: Path) -> Place:
    return Place.make(tmp_path)


@pytest.fixture
def put_in_memory() -> Iterator[Put]:
    """Return what puts a tree into fsspec's memory, and returns its URL."""
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    root = f"/{secrets.token_hex(4)}"

    def put(tree: Tree) -> bytes:
        for path, content in flat(tree):
            files.pipe_file(f"{root}/{os.fsdecode(path)}", content)
        return f"memory:/{root}".encode()

    yield put
    if files.exists(root):
        files.rm(root, recursive=True)


@pytest.fixture
def put_in_a_bucket(gateway: Gateway, shared_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Put:
    """Return what puts a tree into a bucket, and returns its URL."""
    for name, value in gateway.variables().items():
        monkeypatch.setenv(name, value)
    client, prefix = gateway.client(), secrets.token_hex(4)

    def put(tree: Tree) -> bytes:
        for path, content in flat(tree):
            client.put_object(Bucket=shared_bucket, Key=f"{prefix}/{path.decode()}", Body=content)
        return f"s3://{shared_bucket}/{prefix}".encode()

    return put


@pytest.fixture
def put_in_a_zip(folder: Place) -> Put:
    """Return what puts a tree into an archive, and returns the URL of what is in it."""
    pytest.importorskip("fsspec")

    def put(tree: Tree) -> bytes:
        made = shutil.make_archive(os.path.join(folder.root, "archive"), "zip", os.fsdecode(folder.write(tree)))
        return f"zip://::{made}".encode()

    return put


@pytest.fixture
def put_behind_a_web_server(folder: Place) -> Iterator[Put]:
    """Return what puts a tree behind a server that lists folders as pages of links, and returns its URL."""
    pytest.importorskip("aiohttp")
    handler = functools.partial(QuietHandler, directory=os.fsdecode(folder.source))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()

        def put(tree: Tree) -> bytes:
            folder.write(tree)
            return f"http://127.0.0.1:{server.server_port}/".encode()

        yield put
        server.shutdown()
        thread.join()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


def flat(tree: Tree, below: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
    for name, content in tree.items():
        if isinstance(content, dict):
            yield from flat(content, below + name + b"/")
        else:
            assert isinstance(content, bytes)
            yield below + name, content


def commit_both(place: Place, url: bytes, tree: Tree) -> tuple[CommitResult, CommitResult]:
    """Commit a URL to one store, and the same tree in a folder to another."""
    other = Place.make(os.path.join(place.root, "other"))
    return commit(place.repository(), url, "d"), commit(other.repository(), other.write(tree), "d")


@pytest.mark.parametrize("where", ["in_memory", "in_a_zip", "in_a_bucket"])
def test_the_same_files_make_the_same_snapshot(folder: Place, where: str, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue(f"put_{where}")(TREE)
    made, expected = commit_both(folder, url, TREE)
    assert made.snapshot == expected.snapshot
    assert (made.files, made.size_bytes, made.new_bytes) == (expected.files, expected.size_bytes, expected.new_bytes)
    assert folder.problems() == []


def test_a_web_server_that_lists_folders_is_a_source(folder: Place, put_behind_a_web_server: Put) -> None:
    tree: Tree = {b"a": {b"x": b"1", b"y": noise(LARGE)}, b"b": b"2", b"a space & \xc3\xa9": b"3"}
    url = put_behind_a_web_server(tree)
    made, expected = commit_both(folder, url, tree)
    assert made.snapshot == expected.snapshot
    single = commit(folder.repository(), url + b"a/y", "single")
    assert folder.read(single.snapshot) == {b"y": noise(LARGE)}


def test_a_file_url_is_the_folder_itself(folder: Place) -> None:
    folder.write({b"run": b"#!"})
    os.chmod(folder.source + b"/run", 0o755)
    os.symlink(b"run", folder.source + b"/link")
    by_path = commit(folder.repository(), folder.source, "d")
    assert commit(folder.repository(), b"file://" + folder.source, "e").snapshot == by_path.snapshot
    with pytest.raises(UsageError, match="names no folder of this machine"):
        commit(folder.repository(), b"file://elsewhere/x", "e")


@pytest.mark.parametrize("where", ["in_memory", "in_a_bucket"])
def test_one_object_is_a_source_too(folder: Place, where: str, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue(f"put_{where}")({b"a": {b"one": b"content", b"one more": b"x"}})
    made = commit(folder.repository(), url + b"/a/one", "d")
    assert folder.read(made.snapshot) == {b"one": b"content"}


def test_nothing_at_all_is_an_error(folder: Place, put_in_a_bucket: Put, put_in_memory: Put) -> None:
    for url in (put_in_a_bucket({}), b"memory://nothing-is-here"):
        with pytest.raises(SourceUnreadable, match="there is no"):
            commit(folder.repository(), url, "d")
    with pytest.raises(UsageError):
        commit(folder.repository(), b"nosuchprotocol://x", "d")


def test_a_folder_of_a_strange_name_is_no_url(folder: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_url(b"/data/x")
    assert not is_url(b"a:b")
    assert is_url(b"zip://::x.zip")
    monkeypatch.chdir(folder.root)
    folder.write({b"x": b"1"})
    os.makedirs("memory:/x")
    made = commit(folder.repository(), b"memory://x", "d")
    assert folder.read(made.snapshot) == {}, "the folder, which is there"


def test_a_store_does_not_take_itself_in(gateway: Gateway, place: str, tmp_path: Path, put_in_a_bucket: Put) -> None:
    put_in_a_bucket({})
    repository = Repository.init(S3Store(place), str(tmp_path / "cache"))
    for url in (place, place.removesuffix("/store")):
        with pytest.raises(UsageError, match="name a folder beside it"):
            commit(repository, url.encode(), "d")


# What is not read again, and what changes.


def test_unchanged_objects_are_not_read_again(folder: Place, put_in_a_bucket: Put) -> None:
    url = put_in_a_bucket(TREE)
    first = commit(folder.repository(), url, "d")
    assert first.files_read == 10
    assert commit(folder.repository(), url, "d").files_read == 0
    put_in_a_bucket({b"a.b": b"A FILE WHOSE NAME STARTS AS A FOLDER'S DOES"})
    changed = commit(folder.repository(), url, "d")
    assert (changed.files_read, changed.version) == (1, 2), "its ETag says so; its size is the same"


class Meddler:
    """A Progress that changes something once reading has begun."""

    def __init__(self, change: Callable[[], object]) -> None:
        self.change: Callable[[], object] | None = change

    def update(self, *, phase: str, files: int, size_bytes: int, files_total: int = 0, size_bytes_total: int = 0) -> None:
        if phase == "commit" and self.change is not None:
            change, self.change = self.change, None
            change()


@pytest.mark.parametrize("where", ["in_memory", "in_a_bucket"])
@pytest.mark.parametrize("size", [1000, LARGE])
def test_what_changes_after_it_was_listed_is_named(
    folder: Place, where: str, size: int, request: pytest.FixtureRequest
) -> None:
    put = request.getfixturevalue(f"put_{where}")
    url = put({b"victim": noise(size), **{b"%03d" % n: noise(100, n) for n in range(1, 30)}})
    meddler = Meddler(lambda: put({b"victim": noise(size, 9)}))
    with pytest.raises(SourceChanged, match="victim"):
        commit(folder.repository(), url, "d", progress=meddler)
    assert folder.keys("datasets/") == {}


def test_a_service_that_stumbles_is_asked_again(
    folder: Place, gateway: Gateway, put_in_a_bucket: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree: Tree = {**{b"%02d" % n: noise(20_000, n) for n in range(20)}, b"large": noise(LARGE, 50)}
    url = put_in_a_bucket(tree)
    with Proxy(gateway.url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        proxy.add(
            faults.slow_down(method="GET", path_contains="list-type=2"),
            faults.internal_error(method="GET", path_contains="/0", times=2),
            faults.cuts(1000, method="GET", path_contains="/1", times=2),
            faults.drops(method="GET", path_contains="/large"),
        )
        made = commit(folder.repository(), url, "d")
        assert proxy.unused == []
    assert folder.read(made.snapshot) == tree


@pytest.mark.parametrize("failures", [1, url_files_module.TRIES])
def test_other_services_are_asked_again_too(failures: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(url_files_module, "_PAUSE_S", 0.001)
    errors = [ConnectionResetError("reset") for _ in range(failures)]

    def call() -> str:
        if errors:
            raise errors.pop()
        return "answer"

    if failures < url_files_module.TRIES:
        assert asked_again(call, "it", lambda error: False) == "answer"
        return
    with pytest.raises(SourceUnreadable, match="ConnectionResetError: reset"):
        asked_again(call, "it", lambda error: False)


def test_an_answer_is_not_asked_for_again() -> None:
    def refuse(error: Exception) -> str:
        asked.append(error)
        raise error

    asked: list[Exception] = []
    with pytest.raises(SourceUnreadable, match="no entry"):
        asked_again(lambda: refuse(PermissionError("no entry")), "it", lambda error: isinstance(error, PermissionError))
    with pytest.raises(SourceChanged):
        asked_again(lambda: refuse(FileNotFoundError()), "it", lambda error: False)
    assert len(asked) == 2


# What is left out.


def test_patterns_and_ignore_files_mean_what_they_mean_in_a_folder(folder: Place, put_in_memory: Put) -> None:
    tree: Tree = {
        b".vaultignore": b"*.tmp\n/cache/\n",
        b"!first": b"sorts before the ignore file",
        b"a.tmp": b"x",
        b"cache": {b"x": {b"y": b"1"}, b"z": b"2"},
        b"deep": {b"cache": {b"kept": b"1"}, b".vaultignore": b"!keep.tmp\n", b"keep.tmp": b"kept", b"b.tmp": b"x"},
        b"gone": {b"by option": b"x"},
    }
    other = Place.make(os.path.join(folder.root, "other"))
    made = commit(folder.repository(), put_in_memory(tree), "d", exclude=[b"by option"])
    expected = commit(other.repository(), other.write(tree), "d", exclude=[b"by option"])
    assert (made.snapshot, made.excluded) == (expected.snapshot, expected.excluded)


ODD = {
    "a//b": "empty name",
    "../up": "'..'",
    "x/./y": r"'\.'",
    "n" * 256: "more than 255 bytes",
    "folder-with-bytes/": "ends in a slash",
    "both": "has others below it",
}


@pytest.mark.parametrize("key", ODD, ids=lambda key: key[:20])
def test_odd_names_are_refused_or_left_out(
    folder: Place, gateway: Gateway, shared_bucket: str, put_in_a_bucket: Put, key: str
) -> None:
    url = put_in_a_bucket({b"fine": b"1", b"both": {b"below": b"2"}})
    prefix = url.decode().partition(f"{shared_bucket}/")[2]
    gateway.client().put_object(Bucket=shared_bucket, Key=f"{prefix}/{key}", Body=b"odd")
    with pytest.raises(SpecialFile, match=ODD[key]) as raised:
        commit(folder.repository(), url, "d")
    assert raised.value.path == f"{url.decode()}/{key}"
    made = commit(folder.repository(), url, "d", skip_special=True)
    assert made.skipped_special == 1
    assert folder.read(made.snapshot) == {b"fine": b"1", b"both": {b"below": b"2"}}


def test_marks_of_folders_are_folders(folder: Place, gateway: Gateway, shared_bucket: str, put_in_a_bucket: Put) -> None:
    """Many tools put an empty object where a folder is to be seen."""
    url = put_in_a_bucket({b"a": {b"x": b"1"}})
    prefix = url.decode().partition(f"{shared_bucket}/")[2]
    for key in ("", "a/", "empty/", "empty/below/"):
        gateway.client().put_object(Bucket=shared_bucket, Key=f"{prefix}/{key}", Body=b"")
    made = commit(folder.repository(), url, "d")
    assert folder.read(made.snapshot) == {b"a": {b"x": b"1"}, b"empty": {b"below": {}}}


# The order of trees.


def test_rows_come_in_tree_order_also_from_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vault.ops.url_rows._RUN_ROWS", 50)
    monkeypatch.setattr("vault.ops.url_rows._BLOCK_ROWS", 7)
    generator = random.Random(1)
    names = ["a", "a.b", "a-b", "a0", "b", "\u00e9", "a!"]
    paths = {"/".join(generator.choices(names, k=generator.randint(1, 4))).encode() for _ in range(300)}
    with SortedRows() as rows:
        for path in generator.sample(sorted(paths), len(paths)):
            rows.add(Row(row_order(path), len(path), "state", 5, False))
        expected = sorted(paths, key=lambda path: path.split(b"/"))
        for _ in range(2):
            assert [row.path for row in rows] == expected
        assert (rows.files, rows.size_bytes) == (len(paths), sum(map(len, paths)))


def walked(source: Source) -> list[bytes]:
    """Return what a source yields, as lines."""
    marks = {BeginDirectory: b"begin ", SourceFile: b"file "}
    return [
        b"end" if isinstance(step, EndDirectory) else marks[type(step)] + step.name
        for step in source
        if isinstance(step, BeginDirectory | SourceFile | EndDirectory)
    ]


def test_a_listing_walks_as_a_folder_does(folder: Place, put_in_memory: Put) -> None:
    assert walked(open_source(put_in_memory(ORDERED))) == walked(open_source(folder.write(ORDERED)))
