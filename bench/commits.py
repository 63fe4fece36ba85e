"""Scenarios of committing: from scratch, a changed version, nothing new; time, stored bytes and peak memory."""

import os
import time
from collections.abc import Callable

from bench import caches, trees
from bench.candidates import Candidate
from bench.results import Table
from bench.scenario import SETTLE_S, Bench
from bench.tables import LARGE_COMMIT, SMALL_COMMIT
from bench.trees import Tree

Change = Callable[[Tree, int], Tree]  # (tree, seed) -> the tree as it is then


def commit_small(bench: Bench, tree: Tree) -> Tree:
    """Commit the small files; returns the tree as it is in the newest version of every candidate."""
    return _commit(bench, SMALL_COMMIT, "small", tree, trees.change_images)


def commit_large(bench: Bench, tree: Tree) -> Tree:
    """Commit the checkpoint; returns it as it is in the newest version of every candidate."""
    return _commit(bench, LARGE_COMMIT, "large", tree, trees.train_on)


def _commit(bench: Bench, table: Table, area: str, tree: Tree, change: Change) -> Tree:
    for candidates in bench.rounds(commits=True):
        time.sleep(SETTLE_S)
        for candidate in candidates:
            bench.workspace.remove(bench.place(area, candidate))
            for command in candidate.prepare(bench.place(area, candidate)):
                bench.run(command)
            stored = _timed(bench, table, candidate, area, tree, 1, "scratch")
            bench.results.add(table.id, candidate.name, "stored", stored)
            if not candidate.mounts:
                bench.workspace.remove(bench.place(area, candidate))  # a copy is not read: its room is needed
    number = 1
    for candidates in bench.rounds(commits=True, increments=True):
        tree = change(tree, number)
        time.sleep(SETTLE_S)
        for column in ("changed", "nothing"):
            number += 1
            for candidate in candidates:
                added = _timed(bench, table, candidate, area, tree, number, column)
                if column == "changed":
                    bench.results.add(table.id, candidate.name, "added", added)
    for candidate in bench.candidates:  # what is read later must be the tree as it is now, everywhere
        if candidate.commits and candidate.mounts and not candidate.increments:
            bench.workspace.remove(bench.place(area, candidate))
            bench.run(candidate.commit(bench.place(area, candidate), tree.path, 1))
    return tree


def _timed(bench: Bench, table: Table, candidate: Candidate, area: str, tree: Tree, number: int, column: str) -> int:
    """Commit once, note what it took, and return by how many bytes the store grew."""
    place = bench.place(area, candidate)
    before = caches.stored_bytes(place)
    caches.warm(tree.path)
    os.sync()  # nobody pays for what another one wrote
    finished = bench.run(candidate.commit(place, tree.path, number))
    bench.results.add(table.id, candidate.name, column, finished.elapsed_s)
    if column != "nothing":
        bench.results.add(table.id, candidate.name, "peak", finished.peak_bytes)
    bench.say(f"{table.title.lower()}, {column}: {candidate.name} {finished.elapsed_s:.2f} s")
    return caches.stored_bytes(place) - before
