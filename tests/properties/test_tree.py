"""Trees: what is encoded decodes, one directory has one encoding, garbage is refused with our errors only."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vault.errors import FormatError
from vault.format.digest import digest
from vault.format.tree import Entry, Kind, sum_totals
from vault.format.tree_check import check_leaf
from vault.format.tree_encoder import encode_directory, split_pages
from vault.format.tree_pages import IndexPage, LeafPage, decode_page
from vault.ids import Digest

names = st.binary(min_size=1, max_size=255).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
digests = st.binary(min_size=32, max_size=32).map(Digest)
u63 = st.integers(0, 2**40)


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    name = draw(names)
    kind = draw(st.sampled_from(Kind))
    if kind == Kind.SYMLINK:
        target = draw(st.binary(min_size=1, max_size=300).filter(lambda t: b"\0" not in t))
        return Entry(name, kind, len(target), digest(target), target=target)
    if kind == Kind.DIRECTORY:
        return Entry(name, kind, draw(u63), draw(digests), draw(u63), draw(u63))
    return Entry(name, kind, draw(u63), draw(digests))


directories = st.lists(entries(), max_size=40, unique_by=lambda e: e.name).map(lambda es: sorted(es, key=lambda e: e.name))


@given(directories)
def test_decode_returns_what_was_encoded(listing: list[Entry]) -> None:
    encoded = encode_directory(listing)
    assert len(encoded.pages) == 1
    page = decode_page(encoded.pages[0][1])
    assert isinstance(page, LeafPage)
    assert list(page.entries()) == listing
    assert encoded.digest == digest(encoded.pages[0][1])
    assert encoded.totals == sum_totals(listing) == check_leaf(page)
    for index, entry in enumerate(listing):
        assert page.find(entry.name) == index
    assert page.find(b"\xff" * 256) is None


@given(st.binary(max_size=400))
def test_garbage_raises_only_format_errors(data: bytes) -> None:
    try:
        page = decode_page(data)
        if isinstance(page, LeafPage):
            check_leaf(page)
    except FormatError:
        pass


@given(directories.filter(bool), st.data())
def test_a_flipped_byte_is_refused_or_changes_the_digest(listing: list[Entry], data: st.DataObject) -> None:
    good = encode_directory(listing).pages[0][1]
    at = data.draw(st.integers(0, len(good) - 1))
    bad = good[:at] + bytes([good[at] ^ (1 << data.draw(st.integers(0, 7)))]) + good[at + 1 :]
    assert digest(bad) != digest(good)
    try:
        page = decode_page(bad)
        if isinstance(page, LeafPage):
            check_leaf(page)
    except FormatError:
        pass


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0b", b"x" * 256])
def test_evil_names_are_refused(name: bytes) -> None:
    with pytest.raises(FormatError):
        encode_directory([Entry(name, Kind.FILE, 0, digest(b""))])


def test_order_and_duplicates_are_refused() -> None:
    a, b = Entry(b"a", Kind.FILE, 0, digest(b"")), Entry(b"b", Kind.FILE, 0, digest(b""))
    for listing in ([b, a], [a, a]):
        with pytest.raises(FormatError):
            encode_directory(listing)


def large_names(count: int) -> list[bytes]:
    return sorted(b"image-%07d.jpg" % number for number in range(count))


def test_large_directories_are_paged_and_found() -> None:
    listing = [Entry(name, Kind.FILE, 1, digest(name)) for name in large_names(30_000)]
    encoded = encode_directory(listing)
    root = decode_page(encoded.pages[0][1])
    assert isinstance(root, IndexPage)
    assert encoded.totals.files == 30_000
    assert sum(row.entries for row in root.rows) == 30_000
    leaves = [decode_page(page) for _, page in encoded.pages[1:]]
    assert [e for leaf in leaves if isinstance(leaf, LeafPage) for e in leaf.entries()] == listing
    assert all(512 <= row.entries <= 8192 for row in root.rows[:-1])


def test_one_changed_name_rewrites_few_pages() -> None:
    before = {
        page
        for page, _ in encode_directory([Entry(name, Kind.FILE, 1, digest(name)) for name in large_names(60_000)]).pages
    }
    changed = sorted([*large_names(60_000), b"image-0012345-new.jpg"])
    after = {page for page, _ in encode_directory([Entry(name, Kind.FILE, 1, digest(name)) for name in changed]).pages}
    assert len(after) > 15
    assert len(after - before) <= 4  # the index, the page of the name, and at most two where a boundary moved


@given(st.integers(4097, 20_000))
def test_pages_end_at_the_end(count: int) -> None:
    ends = split_pages([b"%d" % n for n in range(count)])
    assert ends[-1] == count
    assert all(left < right for left, right in pairwise(ends))
