"""Scenarios of names and scale: `find` over many entries on every mount, and the first listing of very large snapshots."""

import shutil
import time

from bench import memory, trees
from bench.execute import Command
from bench.mounting import mounted
from bench.scenario import SETTLE_S, Bench
from bench.tables import LISTING, SCALE
from bench.trees import Tree
from bench.vaultfs import Vault
from bench.workspace import BenchError

_PASSES = (("names", ()), ("attributes", ("-size", "+1M")))


def list_entries(bench: Bench, tree: Tree, entries: int) -> None:
    """Run find over a tree of many entries on every mount."""
    for candidate in bench.candidates:
        if candidate.commits and candidate.mounts:
            for command in candidate.prepare(bench.place("entries", candidate)):
                bench.run(command)
            bench.run(candidate.commit(bench.place("entries", candidate), tree.path, 1))
    for candidates in bench.rounds():
        for candidate in candidates:
            if candidate.commits and not candidate.mounts:
                continue
            place = bench.place("entries", candidate)
            for kind, arguments in _PASSES:
                with mounted(bench.workspace, candidate, place, tree.path, 1) as mount:
                    if mount.point is not None:
                        bench.results.add(LISTING.id, candidate.name, "first_listing", mount.first_listing_s)
                    for state in ("fresh", "warm"):
                        finished = bench.run(Command(("find", mount.root, *arguments)))
                        found = finished.output.count("\n")
                        if kind == "names" and found != entries + 1:
                            raise BenchError(f"{candidate.name} lists {found:,} entries where there are {entries + 1:,}")
                        bench.results.add(LISTING.id, candidate.name, f"{kind}_{state}", finished.elapsed_s)
                        bench.say(f"find, {kind}, {state}: {candidate.name} {finished.elapsed_s:.2f} s")


def scale_up(bench: Bench, count: int) -> None:
    """Commit and mount a snapshot of `count` entries with Vault."""
    candidate = next((c for c in bench.candidates if isinstance(c, Vault) and c.commits), None)
    if candidate is None:
        return
    row = f"{candidate.name}, {count:,} entries"
    tree = trees.many_links(bench.workspace.folder("scale-tree"), count)
    place = bench.place("scale", candidate)
    for command in candidate.prepare(place):
        bench.run(command)
    time.sleep(SETTLE_S)
    finished = bench.run(candidate.commit(place, tree.path, 1))
    bench.results.add(SCALE.id, row, "commit", finished.elapsed_s)
    bench.results.add(SCALE.id, row, "commit_peak", finished.peak_bytes)
    bench.say(f"scale, commit: {row} {finished.elapsed_s:.1f} s")
    for column in ("first_listing", "first_listing_empty_cache"):
        for _ in range(bench.sizes.repeat):
            if column == "first_listing_empty_cache":
                shutil.rmtree(f"{place}/cache")
            with mounted(bench.workspace, candidate, place, tree.path, 1) as mount:
                bench.results.add(SCALE.id, row, column, mount.first_listing_s)
                bench.say(f"scale, {column}: {row} {mount.first_listing_s:.3f} s")
    with mounted(bench.workspace, candidate, place, tree.path, 1) as mount:
        finished = bench.run(Command(("find", mount.root, "-size", "+1M")))
        bench.results.add(SCALE.id, row, "find", finished.elapsed_s)
        used = memory.of_mount(bench.workspace)
        bench.results.add(SCALE.id, row, "worker_peak", used.peak_bytes)
        bench.results.add(SCALE.id, row, "worker_private", used.private_bytes)
    bench.workspace.remove(tree.path)
    bench.workspace.remove(place)
