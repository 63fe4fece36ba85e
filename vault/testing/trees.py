"""Small trees as values: written to disk, read back from disk, and read back from a snapshot, to be compared.

    tree = {b"a": b"content", b"run.sh": Executable(b"#!"), b"here": Link(b"a"), b"empty": {}}
    write_tree(path, tree)
    assert read_tree(path) == tree
    assert read_view(view) == tree

Everything is held in memory. Nothing here is fast.
"""

import os
import random
from typing import NamedTuple

from vault.format.tree import Kind
from vault.view import SnapshotView


class Executable(NamedTuple):
    """A file that its owner may execute."""

    content: bytes


class Link(NamedTuple):
    """A symlink."""

    target: bytes


Tree = dict[bytes, "bytes | Executable | Link | Tree"]
Node = bytes | Executable | Link | Tree


def noise(size: int, seed: int = 0) -> bytes:
    """Return bytes that do not compress, the same for the same seed."""
    return random.Random(seed).randbytes(size)


def text(size: int, seed: int = 0) -> bytes:
    """Return bytes that compress well and do not repeat as chunks do, the same for the same seed."""
    return b"".join(b"%d:%d\n" % (seed, number) for number in range(size // 4 + 1))[:size]


def write_tree(path: bytes, tree: Tree) -> None:
    """Make a folder that holds tree; it may exist already."""
    os.makedirs(path, exist_ok=True)
    for name, node in tree.items():
        place = os.path.join(path, name)
        if isinstance(node, dict):
            write_tree(place, node)
        elif isinstance(node, Link):
            os.symlink(node.target, place)
        else:
            with open(place, "wb") as file:
                file.write(node.content if isinstance(node, Executable) else node)
            os.chmod(place, 0o755 if isinstance(node, Executable) else 0o644)


def read_tree(path: bytes) -> Tree:
    """Return what a folder holds."""
    tree: Tree = {}
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_symlink():
                tree[entry.name] = Link(os.readlink(entry.path))
            elif entry.is_dir():
                tree[entry.name] = read_tree(entry.path)
            else:
                with open(entry.path, "rb") as file:
                    content = file.read()
                tree[entry.name] = Executable(content) if entry.stat().st_mode & 0o100 else content
    return tree


def read_view(view: SnapshotView, number: int = 0) -> Tree:
    """Return what a directory of a snapshot holds, asking every question twice: by listing and by name.

    Raises:
        AssertionError: two answers differ.
    """
    tree: Tree = {}
    before = b""
    for child, entry in view.children(number):
        assert before < entry.name, "names ascend"
        before = entry.name
        assert view.lookup(number, entry.name) == child
        assert view.attributes(child) == entry
        assert view.parent(child) == number
        if entry.kind == Kind.DIRECTORY:
            tree[entry.name] = read_view(view, child)
        elif entry.kind == Kind.SYMLINK:
            tree[entry.name] = Link(entry.target)
        else:
            content = bytes(view.read(child, 0, entry.size + 1))
            assert len(content) == entry.size
            tree[entry.name] = Executable(content) if entry.kind == Kind.EXECUTABLE else content
    return tree


def paths(tree: Tree, prefix: bytes = b"") -> dict[bytes, Node]:
    """Return every path in a tree with what lies there."""
    found: dict[bytes, Node] = {}
    for name, node in tree.items():
        found[prefix + name] = node
        if isinstance(node, dict):
            found |= paths(node, prefix + name + b"/")
    return found


def content(node: Node) -> bytes | None:
    """Return the content of a file, or None for what has none."""
    if isinstance(node, Executable):
        return node.content
    return node if isinstance(node, bytes) else None
