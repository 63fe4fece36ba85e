"""Datasets: versions, labels, what refs resolve to, and what a damaged journal says."""

import multiprocessing
from pathlib import Path

import msgspec
import pytest

from vault.errors import AmbiguousRef, Damaged, InvalidRef, RefNotFound, UnsupportedVersion
from vault.format.journal import BundledEntry, Entry, encode_entry, entry_digest
from vault.ids import Digest, check_run_id, parse_ref
from vault.repo.datasets import Datasets, Version
from vault.stores.local import LocalStore

ZERO = Digest(bytes(32))


class RetireEntry(Entry, frozen=True, kw_only=True, tag="retire"):
    """A kind that datasets do not know."""

    reason: str


def snapshot(number: int) -> Digest:
    return Digest(number.to_bytes(32, "big"))


def append(datasets: Datasets, name: str, digest: Digest = ZERO) -> Version:
    return datasets.append_version(name, digest, author="ada", files=1, size_bytes=2)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "store"))


def test_a_version_comes_back_as_it_was_given(store: LocalStore) -> None:
    run = check_run_id("job-7")
    written = Datasets(store).append_version(
        "vision/imagenet",
        snapshot(5),
        author="ada",
        files=3,
        size_bytes=1 << 40,
        message="as downloaded\n– all of it",
        parents=[snapshot(1), snapshot(2)],
        run=run,
        time_ns=1_700_000_000_123_456_000,
    )
    read = Datasets(store).load("vision/imagenet").versions
    assert read == (written,)
    assert (written.number, written.snapshot, written.parents) == (1, snapshot(5), (snapshot(1), snapshot(2)))
    assert (written.files, written.size_bytes, written.run) == (3, 1 << 40, run)
    assert written.time_ns == 1_700_000_000_123_456_000


def test_versions_are_numbered_past_labels_and_unknown_entries(store: LocalStore) -> None:
    datasets = Datasets(store)
    append(datasets, "mnist", snapshot(1))
    datasets.set_label("mnist", "best", 1, author="ada")
    first, second = (store.get(f"datasets/mnist/{n:010d}.json") for n in (1, 2))
    assert entry_digest(first) in second.decode()
    retire = RetireEntry(
        n=3, prev=entry_digest(second), writer="w", time="2026-01-02T03:04:05Z", reason="consent withdrawn"
    )
    store.put("datasets/mnist/0000000003.json", encode_entry(retire))
    assert append(datasets, "mnist", snapshot(2)).number == 2
    assert [version.number for version in Datasets(store).load("mnist").versions] == [1, 2]
    assert Datasets(store).load("mnist").labels == {"best": 1}


def test_names_are_those_of_journals_nested_ones_too(store: LocalStore) -> None:
    datasets = Datasets(store)
    assert datasets.names() == []
    for name in ("vision", "vision/imagenet", "a.b", "a/b"):
        append(datasets, name)
    store.put("datasets/NotAName/0000000001.json", b"{}")
    store.put("datasets/other/readme", b"")
    assert datasets.names() == ["a.b", "a/b", "vision", "vision/imagenet"]
    assert [len(datasets.load(name).versions) for name in datasets.names()] == [1, 1, 1, 1]


def test_a_label_moves_and_is_taken_away(store: LocalStore) -> None:
    datasets = Datasets(store)
    for number in range(3):
        append(datasets, "mnist", snapshot(number))
    datasets.set_label("mnist", "best", 1, author="ada")
    datasets.set_label("mnist", "best", 3, author="ada")
    assert Datasets(store).load("mnist").labels == {"best": 3}
    datasets.set_label("mnist", "best", None, author="ada")
    assert datasets.load("mnist").labels == {}
    with pytest.raises(RefNotFound):
        datasets.set_label("mnist", "best", None, author="ada")
    with pytest.raises(RefNotFound, match="did you mean mnist@v3"):
        datasets.set_label("mnist", "best", 4, author="ada")
    with pytest.raises(InvalidRef):
        datasets.set_label("mnist", "v1", 1, author="ada")
    with pytest.raises(RefNotFound):
        datasets.set_label("nothing", "best", 1, author="ada")
    assert len(list(store.list("datasets/"))) == 6, "a refused label leaves no entry"


def test_what_refs_stand_for(store: LocalStore) -> None:
    datasets = Datasets(store)
    digests = [Digest(bytes.fromhex(start) + bytes(28)) for start in ("aaaaaaaa", "aaaaaaab", "bbbbbbbb", "aaaaaaaa")]
    for digest in digests:
        append(datasets, "mnist", digest)
    datasets.set_label("mnist", "best", 2, author="ada")

    def number(text: str) -> int:
        resolved = datasets.resolve(parse_ref(text))
        assert resolved.version is not None
        assert resolved.snapshot == resolved.version.snapshot
        return resolved.version.number

    assert [number(f"mnist@{s}") for s in ("v1", "v4", "latest", "best", "best/some/path")] == [1, 4, 4, 2, 2]
    assert number("mnist") == 4
    assert number("mnist@b3:bbbbbbbb") == 3
    assert number("mnist@b3:aaaaaaaa") == 1, "the oldest version of a snapshot stays its name"
    assert number(f"mnist@b3:{digests[1].hex()}") == 2


def test_a_prefix_of_two_snapshots_is_ambiguous(store: LocalStore) -> None:
    datasets = Datasets(store)
    for last in (1, 2):
        append(datasets, "mnist", Digest(bytes.fromhex("aaaaaaaa") + bytes([last]) + bytes(27)))
    with pytest.raises(AmbiguousRef, match=r"aaaaaaaa0100 \(v1\), b3:aaaaaaaa0200 \(v2\)"):
        datasets.resolve(parse_ref("mnist@b3:aaaaaaaa"))


@pytest.mark.parametrize(
    ("ref", "near"),
    [
        ("imagnet@v1", ("vision/imagenet", "imagenet")),
        ("imagenet@v9", ("imagenet@v1",)),
        ("imagenet@bst", ("imagenet@best",)),
        ("imagenet@zzz", ()),
        ("imagenet@b3:ffffffff", ()),
        ("unlike/anything", ()),
    ],
)
def test_what_is_not_there_is_named_with_near_names(store: LocalStore, ref: str, near: tuple[str, ...]) -> None:
    datasets = Datasets(store)
    append(datasets, "imagenet")
    append(datasets, "vision/imagenet")
    datasets.set_label("imagenet", "best", 1, author="ada")
    with pytest.raises(RefNotFound) as raised:
        datasets.resolve(parse_ref(ref))
    assert set(raised.value.near) == set(near)


def test_another_instance_sees_what_was_added_and_only_then_is_refreshed(store: LocalStore) -> None:
    writer, reader = Datasets(store), Datasets(store)
    append(writer, "mnist")
    first = reader.load("mnist")
    assert not reader.refresh("mnist")
    assert reader.load("mnist") is first
    append(writer, "mnist")
    assert reader.refresh("mnist")
    assert (len(first.versions), len(reader.load("mnist").versions)) == (1, 2)


@pytest.mark.parametrize("warm", [True, False])
def test_last_version(store: LocalStore, warm: bool) -> None:
    datasets = Datasets(store)
    assert datasets.last_version("mnist") == 0
    for number in range(1, 4):
        append(datasets, "mnist")
        datasets.set_label("mnist", "best", number, author="ada")
    assert (datasets if warm else Datasets(store)).last_version("mnist") == 3


def test_a_journal_from_a_newer_vault_is_refused(store: LocalStore) -> None:
    store.put("datasets/mnist/0000000001.json", b'{"v": 2, "kind": "version", "shape": "unheard of"}')
    with pytest.raises(UnsupportedVersion):
        Datasets(store).load("mnist")


@pytest.mark.parametrize(
    "change",
    [{"version": 2}, {"time": "2026-13-41T00:00:00Z"}, {"run": "../etc"}, {"snapshot": "00"}, {"files": -1}, {"n": 2}],
)
def test_an_entry_that_does_not_fit_is_damage(store: LocalStore, tmp_path: Path, change: dict[str, object]) -> None:
    append(Datasets(store), "mnist")
    document = msgspec.json.decode(store.get("datasets/mnist/0000000001.json"))
    other = LocalStore(str(tmp_path / "other"))
    other.put("datasets/mnist/0000000001.json", msgspec.json.encode(document | change))
    with pytest.raises(Damaged, match=r"datasets/mnist/0000000001\.json"):
        Datasets(other).load("mnist")


def test_text_that_is_not_unicode_is_refused_before_anything_is_written(store: LocalStore) -> None:
    with pytest.raises(ValueError, match="surrogates"):
        Datasets(store).append_version("mnist", ZERO, author="ada", files=1, size_bytes=2, message="\udcff")
    assert list(store.list("")) == []


def _commit_many(root: str, writer: int, count: int) -> None:
    datasets = Datasets(LocalStore(root))
    for number in range(count):
        append(datasets, "mnist", snapshot(1000 * writer + number))


def test_processes_that_commit_at_once_all_succeed_with_consecutive_numbers(store: LocalStore) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_commit_many, args=(store.url, writer, 20)) for writer in range(4)]
    for process in writers:
        process.start()
    for process in writers:
        process.join()
    assert [process.exitcode for process in writers] == [0] * 4
    versions = Datasets(store).load("mnist").versions
    assert [version.number for version in versions] == list(range(1, 81))
    assert {version.snapshot for version in versions} == {snapshot(1000 * w + n) for w in range(4) for n in range(20)}
    assert list((Path(store.url) / "tmp").iterdir()) == []


def bundled(store: LocalStore, name: str, *numbers: int) -> None:
    prev = None
    for n, number in enumerate(numbers, 1):
        entry = BundledEntry(
            n=n,
            prev=prev,
            writer="bundle",
            time="2026-01-02T03:04:05Z",
            version=number,
            snapshot=snapshot(n).hex(),
            files=1,
            bytes=2,
        )
        data = encode_entry(entry)
        prev = entry_digest(data)
        store.put(f"datasets/{name}/{n:010d}.json", data)


def test_versions_of_a_bundle_keep_their_numbers(store: LocalStore) -> None:
    bundled(store, "mnist", 3, 7, 300)
    datasets = Datasets(store)
    dataset = datasets.load("mnist")
    assert [version.number for version in dataset.versions] == [3, 7, 300]
    assert (dataset.newest, datasets.last_version("mnist"), Datasets(store).last_version("mnist")) == (300, 300, 300)
    found = [dataset.version(number) for number in (0, 1, 2, 3, 4, 7, 8, 299, 300, 301)]
    assert [version and version.number for version in found] == [None, None, None, 3, None, 7, None, None, 300, None]
    assert datasets.resolve(parse_ref("mnist@latest")).snapshot.hex() == f"{3:064x}"
    assert datasets.resolve(parse_ref("mnist@v7")).snapshot.hex() == f"{2:064x}"
    with pytest.raises(RefNotFound):
        datasets.resolve(parse_ref("mnist@v4"))
    with pytest.raises(RefNotFound):
        datasets.set_label("mnist", "best", 4, author="a")
    datasets.set_label("mnist", "best", 7, author="a")
    assert Datasets(store).load("mnist").labels == {"best": 7}
    assert append(datasets, "mnist").number == 301


@pytest.mark.parametrize("numbers", [(3, 3), (3, 2)])
def test_versions_of_a_bundle_ascend(store: LocalStore, numbers: tuple[int, ...]) -> None:
    bundled(store, "mnist", *numbers)
    with pytest.raises(Damaged, match="version"):
        Datasets(store).load("mnist")
