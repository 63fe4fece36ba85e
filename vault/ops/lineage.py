"""Where something is from: weights, the run that made them, what it read and ran, and so on back.

Edges that are followed: a version's commit names the run that made it; a run opened files of a snapshot; a run's code was
captured. So reading what an earlier run made leads on to that run, and nobody has to say so. Runs that made each other
cannot be (a version is read after it is made), yet records come from many hosts: what was met before is not gone into
again. Threads: as the Audit.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from vault.errors import RefError, RefNotFound
from vault.ids import Digest, RunId, parse_digest, parse_ref
from vault.ops.audit import Audit
from vault.repo.run_model import Run
from vault.repo.version_index import Made

DEPTH_MAX: Final = 1000  # steps back; a run and what it read are two
NODES_MAX: Final = 10_000


class NodeKind(StrEnum):
    """What a node stands for."""

    VERSION = "version"
    SNAPSHOT = "snapshot"  # one that no version names, or not by the name that was used
    RUN = "run"
    CODE = "code"


class Relation(StrEnum):
    """How a node is related to where it is from."""

    MADE_BY = "made by"
    READ = "read"
    RAN = "ran"


@dataclass(frozen=True, slots=True)
class Node:
    """Something that has an origin, or is one."""

    kind: NodeKind
    id: str  # ref, run ID or digest: what other commands take
    snapshot: Digest | None = None
    made: Made | None = None  # of a version
    run: Run | None = None  # of a run; None if the store has no record of it

    @property
    def key(self) -> str:
        """What tells it from all others."""
        return f"{self.kind}:{self.id}"


@dataclass(frozen=True, slots=True)
class Edge:
    """From a node to where it is from."""

    node: str  # keys
    origin: str
    relation: Relation
    note: str = ""


@dataclass(slots=True)
class Lineage:
    """Nodes and edges, from one node back."""

    root: str
    nodes: dict[str, Node] = field(default_factory=dict)
    edges: list[Edge] = field(default_factory=list)
    unfollowed: set[str] = field(default_factory=set)  # keys of nodes that were too far away to go on from

    def origins(self, key: str) -> list[Edge]:
        """Return the edges from a node to where it is from."""
        return [edge for edge in self.edges if edge.node == key]


def lineage(audit: Audit, start: Node, *, depth: int = DEPTH_MAX) -> Lineage:
    """Return where something is from, back to what no run on record made.

    Args:
        audit: answers about runs and versions.
        start: a node of `find_node`.
        depth: how many steps to go back.
    """
    found = Lineage(start.key, {start.key: start})
    todo = [start]
    for _ in range(depth):
        nearer, todo = todo, []
        for node in nearer:
            for relation, origin, note in _origins(audit, node):
                if origin.key not in found.nodes:
                    if len(found.nodes) >= NODES_MAX:
                        found.unfollowed.add(node.key)
                        break
                    found.nodes[origin.key] = origin
                    todo.append(origin)
                found.edges.append(Edge(node.key, origin.key, relation, note))
        if not todo:
            return found
    found.unfollowed |= {node.key for node in todo if any(_origins(audit, node))}
    return found


def find_node(audit: Audit, text: str) -> Node:
    """Return the node that a ref or a run's ID names; a path in a ref does not matter.

    Raises:
        RefNotFound: there is neither; the error has near names.
        InvalidRef, AmbiguousRef: as it says.
    """
    problem: RefError | None = None
    try:
        ref = parse_ref(text)
        resolved = audit.repository.datasets.resolve(ref)
        assert resolved.version is not None
        return _version_node(audit, resolved.name, resolved.version.number, resolved.snapshot)
    except RefError as error:
        problem = error
    try:
        run = audit.run(text)
        return Node(NodeKind.RUN, run.run, run=run)
    except RefNotFound:
        if "@" in text or not isinstance(problem, RefNotFound):
            raise problem from None
        raise RefNotFound(text, "dataset or run", problem.near) from None


def producers(audit: Audit, snapshot: Digest, ref: str) -> list[Made]:
    """Return the versions behind what a run read that runs had made.

    That is the version of the ref that was used, if a run made it; else others of the same snapshot, for a copy under
    another name is no other data.
    """
    named = version_of(audit, ref)
    if named is not None and named.snapshot == snapshot and named.run is not None:
        return [named]
    not_later = named.time if named is not None and named.snapshot == snapshot else None
    return [
        made
        for made in audit.versions.with_snapshot(snapshot)
        if made.run is not None and (not_later is None or made.time <= not_later)
    ][:1]


def version_of(audit: Audit, ref: str) -> Made | None:
    """Return the version that a recorded ref names, or None."""
    try:
        parsed = parse_ref(ref)
    except RefError:
        return None
    return None if parsed.version is None else audit.versions.version(parsed.name, parsed.version)


def _origins(audit: Audit, node: Node) -> Iterator[tuple[Relation, Node, str]]:
    if node.kind == NodeKind.RUN:
        if node.run is not None:
            yield from _origins_of_run(audit, node.run)
    elif node.snapshot is not None and node.kind != NodeKind.CODE:
        for made in producers(audit, node.snapshot, node.id):
            assert made.run is not None
            note = "" if made.ref == node.id else f"as {made.ref}"
            yield Relation.MADE_BY, _run_node(audit, made.run), note


def _origins_of_run(audit: Audit, run: Run) -> Iterator[tuple[Relation, Node, str]]:
    for used in sorted(run.inputs, key=lambda used: (used.ref, used.snapshot)):
        made = version_of(audit, used.ref)
        if made is not None and made.snapshot == used.snapshot:
            node = Node(NodeKind.VERSION, made.ref, made.snapshot, made)
        else:
            node = Node(NodeKind.SNAPSHOT, f"b3:{used.snapshot.hex()}", used.snapshot)
        total = audit.files_total(used)
        yield Relation.READ, node, f"{used.opened:,} of {'?' if total is None else f'{total:,}'} files opened"
    seen = set()
    for attempt in run.history:
        for tree in attempt.capture.code if attempt.capture is not None else ():
            if tree.snapshot not in seen:
                seen.add(tree.snapshot)
                node = Node(NodeKind.CODE, f"b3:{tree.snapshot}", parse_digest(tree.snapshot))
                changed = f", {len(tree.changed):,} changed" if tree.changed else ""
                head = f", {tree.vcs} {tree.head[:12]}{changed}" if tree.head else ""
                yield Relation.RAN, node, f"{tree.script or tree.root}, {tree.files:,} files{head}"


def _run_node(audit: Audit, run: RunId) -> Node:
    return Node(NodeKind.RUN, run, run=audit.index.run(run))


def _version_node(audit: Audit, name: str, number: int, snapshot: Digest) -> Node:
    ref = f"{name}@v{number}"
    return Node(NodeKind.VERSION, ref, snapshot, audit.versions.version(name, number))
