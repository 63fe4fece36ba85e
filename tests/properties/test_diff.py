"""Diff against the obvious one: two dictionaries of paths."""

from hypothesis import given
from hypothesis import strategies as st

from vault.errors import ObjectMissing
from vault.format.digest import digest
from vault.format.tree import Entry, Kind
from vault.format.tree_encoder import encode_directory
from vault.ids import Digest
from vault.ops.diff import ChangeKind, diff_snapshots, sum_changes
from vault.repo.trees import TreeReader


class Pages:
    """Pages in memory: what a TreeReader needs of an ObjectReader."""

    def __init__(self) -> None:
        self.pages: dict[Digest, bytes] = {}
        self.loads = 0

    def load(self, object_digest: Digest) -> bytes:
        self.loads += 1
        if object_digest not in self.pages:
            raise ObjectMissing(object_digest.hex())
        return self.pages[object_digest]


Tree = dict[bytes, "bytes | Tree"]


def store(pages: Pages, tree: Tree) -> Entry:
    entries = []
    for name, value in sorted(tree.items()):
        if isinstance(value, bytes):
            entries.append(Entry(name, Kind.FILE, len(value), digest(value)))
        else:
            entries.append(store(pages, value)._replace(name=name))
    encoded = encode_directory(entries)
    pages.pages.update(encoded.pages)
    return Entry(b"", Kind.DIRECTORY, encoded.totals.size, encoded.digest, encoded.totals.files, encoded.totals.directories)


def flatten(tree: Tree, prefix: bytes = b"") -> dict[bytes, bytes | None]:
    flat: dict[bytes, bytes | None] = {}
    for name, value in tree.items():
        if isinstance(value, bytes):
            flat[prefix + name] = value
        elif value:
            flat |= flatten(value, prefix + name + b"/")
        else:
            flat[prefix + name] = None  # an empty directory
    return flat


def is_directory(tree: Tree, path: bytes) -> bool:
    node: bytes | Tree | None = tree
    for name in path.split(b"/"):
        node = node.get(name) if isinstance(node, dict) else None
    return isinstance(node, dict)


names = st.sampled_from([b"a", b"b", b"c", b"\xff", b"zz"])
trees: st.SearchStrategy[Tree] = st.recursive(
    st.dictionaries(names, st.binary(max_size=2), max_size=4),
    lambda below: st.dictionaries(names, st.one_of(st.binary(max_size=2), below), max_size=4),
    max_leaves=12,
)


@given(trees, trees)
def test_diff_is_what_two_dictionaries_say(old: Tree, new: Tree) -> None:
    pages = Pages()
    old_root, new_root = store(pages, old).digest, store(pages, new).digest
    changes = list(diff_snapshots(TreeReader(pages), old_root, new_root))  # type: ignore[arg-type]
    before, after = flatten(old), flatten(new)
    found = {(change.kind, change.path) for change in changes}
    assert len(found) == len(changes)
    expected = {(ChangeKind.ADDED, path) for path in after.keys() - before.keys()}
    expected |= {(ChangeKind.REMOVED, path) for path in before.keys() - after.keys()}
    # A directory that both have is no change, empty or not.
    expected -= {(ChangeKind.REMOVED, path) for path in before if is_directory(new, path) and before[path] is None}
    expected -= {(ChangeKind.ADDED, path) for path in after if is_directory(old, path) and after[path] is None}
    for path in before.keys() & after.keys():
        if before[path] is None or after[path] is None:
            if before[path] != after[path]:
                expected |= {(ChangeKind.ADDED, path), (ChangeKind.REMOVED, path)}
        elif before[path] != after[path]:
            expected.add((ChangeKind.CHANGED, path))
    assert found == expected
    totals = sum_changes(changes)
    assert totals.added + totals.removed + totals.changed == len(changes)


def test_one_change_in_a_large_directory_reads_few_pages() -> None:
    pages = Pages()
    listing: Tree = {b"%07d" % number: b"x" for number in range(60_000)}
    old = store(pages, listing).digest
    new = store(pages, listing | {b"0030000": b"y"}).digest
    pages.loads = 0
    changes = list(diff_snapshots(TreeReader(pages), old, new))  # type: ignore[arg-type]
    assert [change.path for change in changes] == [b"0030000"]
    assert pages.loads == 4  # two index pages, two leaves
