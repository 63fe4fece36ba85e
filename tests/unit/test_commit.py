"""Committing: how each kind of file is stored, what is stored once, what is not read again, and what ends it."""

import os
import socket
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

import vault.repo.stat_cache as stat_cache_module
from vault.chunking.policy import PACKED_SIZE_MAX
from vault.errors import RefNotFound, SourceChanged, SourceUnreadable, SpecialFile, UsageError
from vault.format.digest import digest
from vault.format.layout import whole_key
from vault.format.pack import Codec, ObjectKind
from vault.format.tree import Kind
from vault.ops.commit import commit
from vault.repo.repository import Repository
from vault.repo.stat_cache import StatCache
from vault.repo.trees import TreeReader
from vault.testing.opens import watched_opens
from vault.testing.places import Place
from vault.testing.privileges import unprivileged
from vault.testing.trees import Executable, Link, Tree, noise, text

LARGE = PACKED_SIZE_MAX + 1


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place.make(tmp_path)


@pytest.fixture
def times_count_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait until the times of what a test has just written can be trusted."""
    monkeypatch.setattr(stat_cache_module, "RACY_WINDOW_NS", 0)


def stored_as(repository: Repository, content: bytes) -> tuple[bool, Codec, ObjectKind]:
    """Return whether a content is a stored file of its own, its codec and kind."""
    found = repository.index.find(digest(content))
    assert found is not None
    if found.in_whole:
        assert found.container == digest(content)
    return found.in_whole, found.codec, found.kind


# How files are stored.


def test_small_files_lie_in_packs_and_compressed_where_that_pays(place: Place) -> None:
    contents = {
        b"text": text(5000),
        b"noise": noise(5000),
        b"tiny": b"x",
        b"largest": noise(PACKED_SIZE_MAX, 1),
        b"photo.jpg": text(7000, 1),
    }
    result = commit(place.repository(), place.write({**contents, b"empty": b""}), "d")
    repository = place.repository()
    assert stored_as(repository, contents[b"text"]) == (False, Codec.ZSTD, ObjectKind.BLOB)
    for name in (b"noise", b"tiny", b"largest", b"photo.jpg"):  # the last one by its name: such a format is compressed
        assert stored_as(repository, contents[name]) == (False, Codec.RAW, ObjectKind.BLOB)
    assert repository.index.find(digest(b"")) is None, "nothing is stored for an empty file"
    assert not place.keys("whole/")
    assert (result.files, result.size_bytes) == (6, sum(map(len, contents.values())))
    assert result.new_bytes == result.size_bytes
    assert place.read(result.snapshot) == place.checkout(result.snapshot) == {**contents, b"empty": b""}


def test_a_large_file_that_does_not_compress_is_stored_as_itself(place: Place) -> None:
    content = noise(LARGE)
    result = commit(place.repository(), place.write({b"weights": content}), "d")
    assert stored_as(place.repository(), content) == (True, Codec.RAW, ObjectKind.BLOB)
    assert place.keys("whole/")[whole_key(digest(content))] == LARGE
    assert Path(place.store_path, whole_key(digest(content))).read_bytes() == content
    assert place.read(result.snapshot) == {b"weights": content}


def test_a_large_file_that_compresses_is_a_recipe(place: Place) -> None:
    content = text(3 * LARGE)
    result = commit(place.repository(), place.write({b"table.csv": content}), "d")
    assert stored_as(place.repository(), content) == (False, Codec.RAW, ObjectKind.RECIPE)
    assert not place.keys("whole/")
    assert result.stored_bytes < result.new_bytes / 2 == len(content) / 2
    assert sum(place.keys("packs/").values()) < len(content) / 2
    assert place.read(result.snapshot) == place.checkout(result.snapshot) == {b"table.csv": content}


def test_one_file_is_a_source_too(place: Place) -> None:
    tree: Tree = {b"a \xff name": Executable(b"content")}
    alone = commit(place.repository(), place.write(tree) + b"/a \xff name", "alone")
    assert alone.snapshot == commit(place.repository(), place.source, "folder").snapshot
    assert place.read(alone.snapshot) == tree
    os.symlink(b"a \xff name", place.source + b"/link")
    assert place.read(commit(place.repository(), place.source + b"/link", "link").snapshot) == {
        b"link": Executable(b"content")
    }


def test_an_empty_folder_is_a_source(place: Place) -> None:
    result = commit(place.repository(), place.write({}), "d")
    assert (result.files, result.size_bytes, result.new_bytes) == (0, 0, 0)
    assert place.read(result.snapshot) == place.checkout(result.snapshot) == {}


# What is stored once.


def test_equal_contents_are_stored_once(place: Place) -> None:
    small, large, table = noise(5000), noise(LARGE, 1), text(LARGE, 2)
    tree: Tree = {}
    for copy in range(3):
        tree |= {b"small%d" % copy: small, b"large%d" % copy: large, b"table%d" % copy: table}
    first = commit(place.repository(), place.write(tree), "d")
    assert first.new_bytes == len(small) + len(large) + len(table)
    before = place.keys()
    second = commit(place.repository(), place.write({b"moved": tree}), "d")
    assert second.new_bytes == 0
    new = set(place.keys()) - set(before)
    assert {key.partition("/")[0] for key in new} == {"packs", "maps", "datasets"}, "one pack, of pages"
    assert second.stored_bytes < 2000
    assert place.read(second.snapshot) == {b"moved": tree}


@pytest.mark.parametrize("inserted", [False, True])
def test_a_version_with_changed_tensors_stores_only_new_chunks(place: Place, inserted: bool) -> None:
    size = 24 << 20
    content = bytearray(noise(size))
    first = commit(place.repository(), place.write({b"model.bin": bytes(content)}), "d")
    assert first.stored_bytes >= size
    changed = noise(size // 10, 1)
    content[size // 3 : size // 3 + (0 if inserted else len(changed))] = changed
    result = commit(place.repository(), place.write({b"model.bin": bytes(content)}), "d")
    most = len(changed) + 2 * (4 << 20)  # a chunk at both ends
    assert len(changed) <= result.new_bytes <= most
    assert result.stored_bytes <= most + 10_000
    assert stored_as(place.repository(), bytes(content)) == (False, Codec.RAW, ObjectKind.RECIPE)
    for cache in ("cache", "another"):
        assert place.read(result.snapshot, cache) == {b"model.bin": bytes(content)}
    assert place.checkout(result.snapshot) == {b"model.bin": bytes(content)}
    assert not place.problems()


def test_a_file_that_looks_known_and_is_not_and_the_other_way_round(place: Place) -> None:
    """The first buffer promises what the rest does not keep: the file is read twice, and comes out right."""
    known = noise(32 << 20)
    commit(place.repository(), place.write({b"a": known}), "d")
    head_known = known[: 17 << 20] + noise(40 << 20, 1)
    tail_known = noise(17 << 20, 2) + known + known
    result = commit(place.repository(), place.write({b"b": head_known, b"c": tail_known}), "d")
    assert place.checkout(result.snapshot) == {b"b": head_known, b"c": tail_known}
    assert not place.problems()
    assert place.temporary() == []


def test_pages_that_a_file_happens_to_equal_are_found(place: Place) -> None:
    """A file with the bytes of a tree page is stored first, compressed: the page is then read from there."""
    below: Tree = {b"file %04d with a name that compresses" % number: b"" for number in range(500)}
    other = Place.make(place.root + "/other")
    snapshot = commit(other.repository(), other.write(below), "d").snapshot
    reader = other.repository().object_reader()
    page = bytes(reader.load(snapshot))
    reader.close()
    for tree in ({b"a": page, b"below": below}, {b"a": page + noise(LARGE), b"below": below}):
        result = commit(place.repository(), place.write(tree), "d")
        assert place.read(result.snapshot) == place.read(result.snapshot, "another") == tree
        assert not place.problems()


# What is not read again.


def test_an_unchanged_tree_is_not_read_again(place: Place, times_count_at_once: None) -> None:
    tree: Tree = {b"d%d" % d: {b"f%d" % f: noise(100, 100 * d + f) for f in range(20)} for d in range(5)}
    tree |= {b"empty": b"", b"large": noise(LARGE), b"table": text(LARGE), b"link": Link(b"large")}
    first = commit(place.repository(), place.write(tree), "d")
    assert first.files_read == 103
    with watched_opens(place.source) as opened:
        second = commit(place.repository(), place.source, "d")
    assert opened == [place.source], "the folder itself, by its path; those in it by their names; no file"
    assert (second.files_read, second.new_bytes, second.stored_bytes) == (0, 0, 0)
    assert (second.unchanged, second.version, second.snapshot) == (True, 1, first.snapshot)
    assert len(place.repository().datasets.load("d").versions) == 1
    again = commit(place.repository(), place.source, "d", allow_unchanged=True)
    assert (again.unchanged, again.version) == (False, 2)


def test_only_what_was_touched_is_read_again(place: Place, times_count_at_once: None) -> None:
    tree: Tree = {b"f%d" % number: b"content %d" % number for number in range(30)}
    first = commit(place.repository(), place.write(tree), "d")
    os.utime(place.source + b"/f7")
    Path(os.fsdecode(place.source), "f8").write_bytes(b"another")
    with watched_opens(place.source) as opened:
        second = commit(place.repository(), place.source, "d")
    assert opened == [place.source, place.source + b"/f7", place.source + b"/f8"]
    assert second.files_read == 2
    assert second.new_bytes == len(b"another")
    assert second.snapshot != first.snapshot
    assert place.read(second.snapshot) == {**tree, b"f8": b"another"}


def test_what_another_store_knows_is_not_taken_for_stored(place: Place, tmp_path: Path, times_count_at_once: None) -> None:
    """All stores of a user share the stat cache: its digests say what files hold, not that a store has it."""
    (tmp_path / "other").mkdir()
    other = Place.make(tmp_path / "other")
    tree: Tree = {b"a": b"content", b"large": noise(LARGE)}
    place.write(tree)
    result = commit(place.repository(), place.source, "d")
    shared = Repository(other.store(), place.cache(), other.repository().config)
    again = commit(shared, place.source, "d")
    assert again.files_read == 2
    assert other.read(again.snapshot) == place.read(result.snapshot) == tree
    assert not other.problems()


@pytest.mark.parametrize("restored", ["nothing", "mtime"])
def test_a_file_rewritten_at_once_with_its_size_kept_is_seen(place: Place, restored: str) -> None:
    path = Path(os.fsdecode(place.write({b"a": b"old content"})), "a")
    first = commit(place.repository(), place.source, "d")
    before = path.stat()
    path.write_bytes(b"new content")
    if restored == "mtime":
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    second = commit(place.repository(), place.source, "d")
    assert place.read(first.snapshot) == {b"a": b"old content"}
    assert place.read(second.snapshot) == {b"a": b"new content"}


def test_a_status_is_trusted_only_when_its_times_are_old(tmp_path: Path) -> None:
    """Written twice within a tick of its file system's clock, a file has two contents under one status."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.write_bytes(b"new")
    status = path.stat()
    cache = StatCache(str(tmp_path / "cache"))
    changed_ns = max(status.st_mtime_ns, status.st_ctime_ns)
    for age_ns, known in [(0, None), (stat_cache_module.RACY_WINDOW_NS, None),
                          (stat_cache_module.RACY_WINDOW_NS + 1, digest(b"seen"))]:  # fmt: skip
        cache.remember(bytes(path), status, changed_ns + age_ns, digest(b"seen"))
        cache.flush()
        assert cache.lookup([(bytes(path), path.stat())]) == [known]
    path.write_bytes(b"old")
    assert cache.lookup([(bytes(path), path.stat())]) == [None]
    cache.close()


# What changes underneath.


def check_nothing_is_visible(place: Place) -> None:
    with pytest.raises(RefNotFound):
        place.repository().datasets.load("d")
    assert place.temporary() == []
    assert not place.problems()
    place.write({b"a": b"fine"})
    assert place.read(commit(place.repository(), place.source, "d").snapshot) == {b"a": b"fine"}


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(100)


def rewrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"other")


def replace(path: Path) -> None:
    beside = path.with_suffix(".new")
    beside.write_bytes(path.read_bytes())
    beside.rename(path)


def swap_for_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def swap_for_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


CHANGES = [append, cut, rewrite, replace, Path.unlink, swap_for_link, swap_for_fifo]


@pytest.mark.parametrize("size", [1000, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_file_that_changes_before_it_is_opened_is_named(place: Place, size: int, change: Callable[[Path], None]) -> None:
    place.write({b"a": b"1", b"b": noise(size), b"c": b"2"})
    victim = Path(os.fsdecode(place.source), "b")
    done: list[bool] = []

    def change_once(path: bytes) -> None:
        if path == os.fsencode(victim) and not done:
            done.append(True)
            change(victim)

    with watched_opens(place.source, change_once), pytest.raises(SourceChanged) as raised:
        commit(place.repository(), place.source, "d")
    assert done
    assert raised.value.path == str(victim)
    check_nothing_is_visible(place)


class Meddler:
    """A Progress that changes a file while it is being read: the first buffer is in, more are to come."""

    def __init__(self, change: Callable[[], None]) -> None:
        self.change = change

    def update(self, *, phase: str, files: int, size_bytes: int, files_total: int = 0, size_bytes_total: int = 0) -> None:
        if size_bytes:
            self.change()


@pytest.mark.parametrize("content", [noise(40 << 20), text(40 << 20)], ids=["whole", "recipe"])
@pytest.mark.parametrize("change", [append, cut, rewrite, replace, Path.unlink], ids=lambda change: change.__name__)
def test_a_large_file_that_changes_while_it_is_read_is_named(
    place: Place, content: bytes, change: Callable[[Path], None]
) -> None:
    place.write({b"large": content})
    victim = Path(os.fsdecode(place.source), "large")
    done: list[bool] = []

    def change_once() -> None:
        if not done:
            done.append(True)
            change(victim)

    with pytest.raises(SourceChanged) as raised:
        commit(place.repository(), place.source, "d", progress=Meddler(change_once))
    assert raised.value.path == str(victim)
    check_nothing_is_visible(place)


def test_a_file_that_grows_as_fast_as_it_is_read_ends_the_commit(place: Place) -> None:
    place.write({b"log": noise(20 << 20)})
    victim = Path(os.fsdecode(place.source), "log")

    def grow() -> None:
        assert victim.stat().st_size < 500 << 20, "reading went on"
        with victim.open("ab") as file:
            file.write(bytes(32 << 20))

    with pytest.raises(SourceChanged):
        commit(place.repository(), place.source, "d", progress=Meddler(grow))
    check_nothing_is_visible(place)


def test_a_source_that_vanishes_in_the_middle(place: Place) -> None:
    tree: Tree = {b"d%03d" % number: {b"file": b"%d" % number, b"more": {b"x": b"y"}} for number in range(200)}
    place.write(tree)
    gone = os.fsdecode(place.source) + ".gone"

    def move_away(path: bytes) -> None:
        if path.endswith(b"/d100/file") and os.path.exists(place.source):
            os.rename(place.source, gone)

    with watched_opens(place.source, move_away), pytest.raises(SourceChanged) as raised:
        commit(place.repository(), place.source, "d")
    assert raised.value.path.startswith(os.fsdecode(place.source))
    check_nothing_is_visible(place)
    with pytest.raises(SourceUnreadable):
        commit(place.repository(), place.source + b"/never", "d")


# What cannot be read, and what is no data.


@pytest.mark.parametrize("victim", ["small", "large", "folder", "folder/.vaultignore"])
def test_what_may_not_be_read_is_named(place: Place, victim: str) -> None:
    place.write({b"small": b"x", b"large": noise(LARGE), b"folder": {b"y": b"z", b".vaultignore": b"no\n"}})
    path = Path(os.fsdecode(place.source), victim)
    mode = stat.S_IMODE(path.stat().st_mode)
    with unprivileged(place.root):
        path.chmod(0)
        try:
            with pytest.raises(SourceUnreadable) as raised:
                commit(place.repository(), place.source, "d")
        finally:
            path.chmod(mode)
    assert raised.value.path == str(path)
    assert raised.value.reason == "Permission denied"


def make_socket(path: str) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as made:
        made.bind(path)


def make_device(path: str) -> None:
    if os.geteuid():
        pytest.skip("only root may make a device")
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))


@pytest.mark.parametrize(
    ("make", "kind"),
    [(os.mkfifo, "FIFO"), (make_socket, "socket"), (make_device, "device")],
    ids=["fifo", "socket", "device"],
)
def test_special_files_are_refused_or_skipped(place: Place, make: Callable[[str], None], kind: str) -> None:
    place.write({b"a": b"1", b"sub": {}})
    make(os.fsdecode(place.source) + "/sub/special")
    with pytest.raises(SpecialFile) as raised:
        commit(place.repository(), place.source, "d")
    assert (raised.value.path, raised.value.kind) == (os.fsdecode(place.source) + "/sub/special", kind)
    assert "--skip-special" in str(raised.value)
    with pytest.raises(SpecialFile):
        commit(place.repository(), place.source + b"/sub/special", "d")
    result = commit(place.repository(), place.source, "d", skip_special=True)
    assert result.skipped_special == 1
    assert place.read(result.snapshot) == {b"a": b"1", b"sub": {}}
    excluded = commit(place.repository(), place.source, "d", exclude=[b"special"])
    assert (excluded.excluded, excluded.skipped_special, excluded.unchanged) == (1, 0, True)


def test_symlinks_are_kept_and_never_followed(place: Place, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"not mine")
    tree: Tree = {
        b"dangling": Link(b"nowhere"),
        b"loop": Link(b"loop"),
        b"out": Link(bytes(tmp_path / "outside")),
        b"root": Link(b"/"),
        b"up": Link(b"../.."),
        b"odd \xff\n": Link(b"\xfe\n " + b"x" * 4000),
        b"sub": {b"self": Link(b".")},
    }
    result = commit(place.repository(), place.write(tree), "d")
    assert (result.files, result.size_bytes) == (0, 0)
    assert place.read(result.snapshot) == place.checkout(result.snapshot) == tree


def test_hard_links_become_equal_files(place: Place) -> None:
    place.write({b"a": noise(5000), b"large": noise(LARGE)})
    for name in (b"a", b"large"):
        os.link(place.source + b"/" + name, place.source + b"/" + name + b"2")
    result = commit(place.repository(), place.source, "d")
    assert result.files == 4
    assert result.new_bytes == 5000 + LARGE
    assert place.read(result.snapshot) == {
        b"a": noise(5000),
        b"a2": noise(5000),
        b"large": noise(LARGE),
        b"large2": noise(LARGE),
    }


def test_of_the_mode_only_the_owners_right_to_execute_counts(place: Place) -> None:
    place.write({b"plain": b"1", b"run": Executable(b"2"), b"d": {b"x": b""}})
    first = commit(place.repository(), place.source, "d").snapshot
    reader = place.repository().object_reader()
    assert [(e.name, e.kind) for e in TreeReader(reader).entries(first)] == [
        (b"d", Kind.DIRECTORY), (b"plain", Kind.FILE), (b"run", Kind.EXECUTABLE)]  # fmt: skip
    reader.close()
    os.chmod(place.source + b"/plain", 0o677)  # for everybody but its owner
    os.chmod(place.source + b"/run", 0o4700)
    os.chmod(place.source + b"/d", 0o1700)
    os.utime(place.source + b"/plain", (1, 1))
    if not os.geteuid():
        os.chown(place.source + b"/d/x", 1234, 4321)
    assert commit(place.repository(), place.source, "d").snapshot == first
    os.chmod(place.source + b"/plain", 0o755)
    assert commit(place.repository(), place.source, "d").snapshot != first


# What is left out. The meaning of patterns: test_exclude.py.


def test_ignore_files_hold_below_their_folder(place: Place) -> None:
    tree: Tree = {
        b".vaultignore": b"*.tmp\n/build/\n",
        b"a.tmp": b"1",
        b"build": {b"x": b"2"},
        b"keep": {b"build": {b"y": b"3"}, b"b.tmp": b"4", b".vaultignore": b"!b.tmp\nsecret\n", b"secret": b"5"},
        b"secret": b"6",
    }
    result = commit(place.repository(), place.write(tree), "d")
    kept: Tree = {
        b".vaultignore": b"*.tmp\n/build/\n",
        b"keep": {b"build": {b"y": b"3"}, b"b.tmp": b"4", b".vaultignore": b"!b.tmp\nsecret\n"},
        b"secret": b"6",
    }
    assert place.read(result.snapshot) == kept
    assert result.excluded == 3
    strongest = commit(place.repository(), place.source, "d", exclude=[b"b.tmp", b"!a.tmp"])
    assert place.read(strongest.snapshot) == {
        **kept, b"a.tmp": b"1", b"keep": {b"build": {b"y": b"3"}, b".vaultignore": b"!b.tmp\nsecret\n"}}  # fmt: skip


def test_what_is_no_ignore_file(place: Place) -> None:
    tree: Tree = {b".vaultignore": {b"a": b"1"}, b"b": b"2"}
    assert place.read(commit(place.repository(), place.write(tree), "d").snapshot) == tree
    place.write({b"patterns": b"b\n", b"b": b"2"})
    os.symlink(b"patterns", place.source + b"/.vaultignore")
    with pytest.raises(SourceUnreadable, match=r"source/\.vaultignore: it is a symbolic link"):
        commit(place.repository(), place.source, "d")
    with pytest.raises(UsageError, match=r"source/sub/\.vaultignore is larger"):
        commit(place.repository(), place.write({b"sub": {b".vaultignore": bytes((1 << 20) + 1)}}), "d")
    place.write({})
    os.mkfifo(place.source + b"/.vaultignore")
    with pytest.raises(SpecialFile):
        commit(place.repository(), place.source, "d")


@pytest.mark.parametrize("inside", ["store", "cache", "store over a link"])
def test_a_source_with_the_store_or_the_cache_in_it_is_refused(tmp_path: Path, inside: str) -> None:
    place = Place.make(tmp_path)
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a").write_bytes(b"1")
    cache = place.cache() if inside != "cache" else str(tmp_path / "source" / "deep" / "cache")
    if inside.startswith("store"):
        os.rename(place.store_path, tmp_path / "source" / "store")
        os.symlink("source/store", place.store_path)
    store = place.store() if inside == "store over a link" else None
    if inside == "store":
        from vault.stores.local import LocalStore

        store = LocalStore(str(tmp_path / "source" / "store"))
    repository = Repository.open(store or place.store(), cache)
    with pytest.raises(UsageError, match="lies in the folder that is to be committed"):
        commit(repository, place.source, "d")
    name = b"/deep/cache" if inside == "cache" else b"/store"
    result = commit(repository, place.source, "d", exclude=[name])
    assert result.files == 1


# Names.


def test_names_are_bytes(place: Place) -> None:
    names = [b"new\nline", b"\xff\xfe", b"n" * 255, b"\xe2\x82" * 127, b"tab\t", b" ", b"-rf", b"\\", b"...",
             b"caf\xc3\xa9", b"cafe\xcc\x81", b"CON", b"*?[", b"\x01\x7f", b"$(x)`y`"]  # fmt: skip
    tree: Tree = {name: {name: name} for name in names}
    result = commit(place.repository(), place.write(tree), "d")
    assert place.read(result.snapshot) == place.checkout(result.snapshot) == tree
    assert not place.problems()


def make_deep(path: bytes, depth: int, name: bytes, leaf: bytes) -> None:
    """Make folders in each other, deeper than a path may be long, with a file at the bottom."""
    os.mkdir(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=descriptor)
        below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    file = os.open(b"file", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=descriptor)
    os.write(file, leaf)
    os.close(file)
    os.close(descriptor)


@pytest.mark.parametrize(("depth", "name"), [(40, b"n" * 200), (1500, b"d")], ids=["long", "deep"])
@pytest.mark.parametrize("size", [1000, LARGE], ids=["small", "large"])
def test_paths_longer_than_the_kernel_takes_them(place: Place, depth: int, name: bytes, size: int) -> None:
    import resource

    from vault.ops.checkout import checkout
    from vault.ops.descent import Descent, remove_tree
    from vault.ops.listing import find_entry, root_entry
    from vault.view import open_view

    content = noise(size)
    path = b"/".join([name] * depth + [b"file"])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = len(os.listdir("/proc/self/fd")) + 150  # a level must not cost an open file
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
    try:
        make_deep(place.source, depth, name, content)
        result = commit(place.repository(), place.source, "d")
        repository = place.repository()
        view = open_view(repository, result.snapshot)
        number = view.find(path)
        assert number is not None
        assert bytes(view.read(number, 0, size)) == content
        assert view.path(number) == path
        view.close()
        assert not place.problems()
        reader = repository.object_reader()
        trees = TreeReader(reader)
        assert find_entry(trees, result.snapshot, path).digest == digest(content)
        target = os.fsencode(place.root) + b"/out"
        made = checkout(reader, root_entry(trees, result.snapshot), target)
        reader.close()
        assert (made.files, made.directories) == (1, depth)
        with Descent(target) as descent:
            for _ in range(depth):
                descent.enter(name)
            for _ in range(depth):
                descent.leave()
        assert commit(repository, target, "d").snapshot == result.snapshot
        remove_tree(target)
        remove_tree(place.source)
        assert not os.path.exists(place.source)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_folders_too_deep_for_any_snapshot_are_refused(place: Place) -> None:
    from vault.ops.descent import remove_tree

    make_deep(place.source, 4200, b"d", b"x")
    try:
        with pytest.raises(UsageError, match="4096 directories in each other"):
            commit(place.repository(), place.source, "d")
    finally:
        remove_tree(place.source)
