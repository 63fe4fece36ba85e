"""Numbers for what a mount shows above its snapshots, the same in every worker and after each restart of one.

An append-only file of the mount's private state directory has a line for each name that was ever shown; a line's number is
the node's. A version's line is also its slot: the node ID of entry E of the version on line S is S << 40 | E. Workers
append under flock and read what others appended. Threads: one per instance. Processes: any number.
"""

import fcntl
import os
from enum import StrEnum
from typing import Final, NamedTuple

from vault.errors import Damaged

SLOT_SHIFT: Final = 40
ENTRY_MASK: Final = (1 << SLOT_SHIFT) - 1
ROOT: Final = 1  # as the protocol has it; line 1
_FILE: Final = "nodes"


class NodeKind(StrEnum):
    """What a line names."""

    FOLDER = "folder"  # path of a folder above versions; the root is ""
    VERSION = "version"  # name@vN
    LINK = "link"  # name@latest, name@label, name@b3:hex, with where it points
    STATUS = "status"  # a file below .vault/
    PIPE = "pipe"  # .vault/prefetch


class Node(NamedTuple):
    """A name of the mount's own.

    A link that moves becomes another node: the kernel keeps what a symlink holds for as long as it knows the node.
    """

    kind: NodeKind
    path: str
    target: str = ""  # what a symlink holds

    @property
    def parent(self) -> str:
        """The path of the folder that holds it."""
        return self.path.rpartition("/")[0]


class NodeTable:
    """The lines read so far."""

    def __init__(self, state_dir: str) -> None:
        """Open the table of a mount, making it if it is not there."""
        self._descriptor = os.open(
            os.path.join(state_dir, _FILE), os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        self._nodes: list[Node] = [Node(NodeKind.FOLDER, "")] * ROOT  # index 0 is no node
        self._numbers: dict[Node, int] = {}
        self._read = 0
        self.number(Node(NodeKind.FOLDER, ""))

    def number(self, node: Node) -> int:
        """Return the number of a node, giving it one if it is new."""
        found = self._numbers.get(node)
        if found is None:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            try:
                self._catch_up()
                if node not in self._numbers:
                    os.write(self._descriptor, f"{node.kind}\t{node.path}\t{node.target}\n".encode())
                    self._catch_up()
            finally:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            found = self._numbers[node]
        return found

    def node(self, number: int) -> Node | None:
        """Return the node with a number, or None if there is none."""
        if number >= len(self._nodes):
            self._catch_up()
        return self._nodes[number] if ROOT <= number < len(self._nodes) else None

    def _catch_up(self) -> None:
        """Read the lines that were appended. Lines are appended by one write each, so the last may not be half there."""
        data = os.pread(self._descriptor, 1 << 24, self._read)
        end = data.rfind(b"\n") + 1
        for line in data[:end].decode().splitlines():
            fields = line.split("\t")
            if len(fields) != 3:
                raise Damaged(_FILE, "a line of it names nothing")
            node = Node(NodeKind(fields[0]), fields[1], fields[2])
            self._numbers[node] = len(self._nodes)
            self._nodes.append(node)
        self._read += end
