"""`vault lineage`."""

import click

from vault.cli.cmd_runs import who_text
from vault.cli.commands import examples
from vault.cli.options import Session, completer, session_options
from vault.cli.output import count_text, one_line, size_text, time_text
from vault.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from vault.cli.output import Output
    from vault.ops.lineage import Lineage, Node

_SHAPES = {"version": "box3d", "snapshot": "box3d", "run": "box", "code": "note"}
_DIGEST_SHOWN = 15  # b3: and twelve digits


@click.command(
    epilog=examples(
        "vault lineage resnet50@v4",
        "vault lineage baseline-7 --depth 2",
        "vault lineage resnet50@v4 --dot | dot -Tsvg > lineage.svg",
        "vault lineage resnet50@v4 --json",
    )
)
@click.argument("target", metavar="REF|RUN", shell_complete=completer("complete_ref_or_run"))
@click.option("--dot", is_flag=True, help="Print a graph for Graphviz.")
@click.option("--depth", type=click.IntRange(1, 1000), default=1000, metavar="N", help="Go back N steps, not to the start.")
@session_options
def lineage(session: Session, target: str, dot: bool, depth: int) -> None:
    """Show where a version or a run is from, and so on back.

    Weights, the run that made them, the data, earlier weights and code that this run used, the run that made those.
    Nothing has to be declared: a version that is committed in a run points at it, and what a run read is on record. To read
    what an earlier run made is enough to be its descendant.
    """
    from vault.ops.lineage import find_node
    from vault.ops.lineage import lineage as trace

    if dot and session.out.as_json:
        raise UsageError("give either --dot or --json")
    out = session.out
    audit = session.open().open_audit()
    found = trace(audit, find_node(audit, target), depth=depth)
    if dot:
        out.lines(_dot(found))
        return
    for node in found.nodes.values():
        out.answer("node", _node_record(node, is_followed=node.key not in found.unfollowed))
    for edge in found.edges:
        out.answer("edge", {"from": edge.node, "to": edge.origin, "relation": str(edge.relation), "note": edge.note})
    if not out.as_json:
        out.lines(_tree(out, found))
    counts = {kind: sum(1 for node in found.nodes.values() if node.kind == kind) for kind in _SHAPES}
    out.summary(
        {"root": found.root, "nodes": len(found.nodes), "edges": len(found.edges), "complete": not found.unfollowed}
    )
    if found.unfollowed:
        out.note(f"there is more behind {count_text(len(found.unfollowed), 'node')}: --depth {depth} ended here")
    elif not out.as_json and not counts["run"]:
        out.note(f"no run on record made {one_line(target)}: it was committed by hand, as far as is known")


def _tree(out: "Output", found: "Lineage") -> "Iterator[str]":
    """Yield the tree, what was shown already in one line."""
    origins: dict[str, list[tuple[str, str, str]]] = {}
    for edge in found.edges:
        origins.setdefault(edge.node, []).append((edge.origin, str(edge.relation), edge.note))
    shown: set[str] = set()
    stack = [
        (found.root, "", "", "", "")
    ]  # key, what stands before it, what stands before what is below it, relation, note
    while stack:
        key, before, below, relation, note = stack.pop()
        again = key in shown and key in origins
        words = [relation, _node_text(out, found.nodes[key]), one_line(note), "(see above)" if again else ""]
        words.append("(more behind it)" if key in found.unfollowed else "")
        yield before + "  ".join(word for word in words if word)
        if again:
            continue
        shown.add(key)
        children = origins.get(key, [])
        for place, (origin, kind, more) in reversed(list(enumerate(children))):
            is_last = place == len(children) - 1
            stack.append(
                (origin, below + ("└── " if is_last else "├── "), below + ("    " if is_last else "│   "), kind, more)
            )


def _node_text(out: "Output", node: "Node") -> str:
    name = node.id[:_DIGEST_SHOWN] if node.kind in ("snapshot", "code") else node.id
    text = out.styled(one_line(name), "yellow")
    if node.kind == "run":
        return f"run {text}  {'not on record' if node.run is None else who_text(node.run)}"
    if node.made is not None:
        return f"{text}  {time_text(node.made.time)}  {size_text(node.made.size_bytes)}"
    return f"{'code' if node.kind == 'code' else 'snapshot'} {text}"


def _node_record(node: "Node", *, is_followed: bool) -> dict[str, object]:
    record: dict[str, object] = {
        "key": node.key,
        "kind": str(node.kind),
        "id": node.id,
        "snapshot": None if node.snapshot is None else node.snapshot.hex(),
        "followed": is_followed,
    }
    if node.made is not None:
        record |= {"time": node.made.time, "bytes": node.made.size_bytes, "run": node.made.run}
    if node.run is not None:
        record |= {"command": list(node.run.command), "user": node.run.user, "started": node.run.started}
    if node.kind == "run":
        record["recorded"] = node.run is not None
    return record


def _dot(found: "Lineage") -> "Iterator[str]":
    yield "digraph lineage {"
    yield "  rankdir=RL;"
    numbers = {key: f"n{number}" for number, key in enumerate(found.nodes)}
    for key, node in found.nodes.items():
        label = node.id[:_DIGEST_SHOWN] if node.kind in ("snapshot", "code") else node.id
        lines = [f"{node.kind} {label}"]
        if node.run is not None:
            lines += [" ".join(node.run.command)[:60], f"{node.run.user}@{node.run.host}"]
        yield f"  {numbers[key]} [shape={_SHAPES[node.kind]}, label={_quoted(lines)}];"
    for edge in found.edges:
        yield f"  {numbers[edge.node]} -> {numbers[edge.origin]} [label={_quoted([str(edge.relation)])}];"
    yield "}"


def _quoted(lines: list[str]) -> str:
    """Return a string of the DOT language: nothing in it can end it, or be taken for an escape."""
    safe = (one_line(line).replace("\\", "\\\\").replace('"', '\\"') for line in lines)
    return '"' + "\\n".join(safe) + '"'
