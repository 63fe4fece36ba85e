"""Scenarios of reading: small files in random order, a large file in sequence, blocks at random; one reader and four."""

import hashlib
import os
import random

from bench import caches, memory, readers
from bench.mounting import Mounted, mounted
from bench.results import Table
from bench.scenario import Bench
from bench.tables import FIRST_LISTING, LARGE_READ, MEMORY, SMALL_READ
from bench.trees import Tree
from bench.workspace import BenchError

_SAMPLE = 50  # files whose content is compared with the source
_READERS = (1, 4)


def read_small(bench: Bench, tree: Tree, number: int) -> None:
    """Read the small files of every mount."""
    names = list(tree.files)
    for repetition, candidates in enumerate(bench.rounds()):
        random.Random(repetition).shuffle(names)
        for candidate in candidates:
            if candidate.commits and not candidate.mounts:
                continue
            place = bench.place("small", candidate)
            for count in _READERS:
                caches.warm(place if candidate.commits or os.listdir(place) else tree.path)
                with mounted(bench.workspace, candidate, place, tree.path, number) as mount:
                    for state in _states():
                        if state == "cold":
                            caches.drop()
                        done = readers.read_files(bench.workspace, mount.root, names, count)
                        _require_bytes(candidate.name, done.bytes_total, tree.bytes_total)
                        _note(bench, SMALL_READ, candidate.name, f"{state}_{count}", done.count / done.elapsed_s)
                    if mount.point is not None:
                        bench.results.add(FIRST_LISTING.id, candidate.name, "small", mount.first_listing_s)
                        used = memory.of_mount(bench.workspace)
                        bench.results.add(MEMORY.id, candidate.name, "peak", used.peak_bytes)
                        bench.results.add(MEMORY.id, candidate.name, "private", used.private_bytes)
                    if repetition == 0:
                        _require_same(candidate.name, tree.path, mount.root, names[:_SAMPLE])


def read_large(bench: Bench, tree: Tree, number: int) -> None:
    """Read the checkpoint of every mount."""
    name, size = tree.files[0], tree.bytes_total
    for candidates in bench.rounds():
        for candidate in candidates:
            if candidate.commits and not candidate.mounts:
                continue
            place = bench.place("large", candidate)
            warm = place if candidate.commits or os.listdir(place) else tree.path
            for count in _READERS:
                caches.warm(warm)
                with mounted(bench.workspace, candidate, place, tree.path, number) as mount:
                    for state in _states():
                        if state == "cold":
                            caches.drop()
                        done = readers.read_sequentially(bench.workspace, mount.root, name, size, count)
                        _require_bytes(candidate.name, done.bytes_total, size)
                        _note(bench, LARGE_READ, candidate.name, f"{state}_{count}", done.bytes_total / done.elapsed_s)
            caches.warm(warm)
            with mounted(bench.workspace, candidate, place, tree.path, number) as mount:
                if mount.point is not None:
                    bench.results.add(FIRST_LISTING.id, candidate.name, "large", mount.first_listing_s)
                _random_blocks(bench, candidate.name, mount, name, size)


def _random_blocks(bench: Bench, row: str, mount: Mounted, name: str, size: int) -> None:
    for column in ("random_fresh", "random_warm"):
        if column == "random_warm":
            readers.read_sequentially(bench.workspace, mount.root, name, size, 1)
        done = readers.read_blocks(bench.workspace, mount.root, name, size, 1, seconds=bench.sizes.random_s)
        _note(bench, LARGE_READ, row, column, done.count / done.elapsed_s)


def _states() -> tuple[str, ...]:
    return ("fresh", "warm", "cold") if caches.can_drop() else ("fresh", "warm")


def _note(bench: Bench, table: Table, row: str, column: str, value: float) -> None:
    bench.results.add(table.id, row, column, value)
    bench.say(f"{table.title.lower()}, {column}: {row} {value:,.0f}")


def _require_bytes(name: str, actual: int, expected: int) -> None:
    if actual != expected:
        raise BenchError(f"{name} served {actual:,} bytes where {expected:,} were stored: its figures would mean nothing")


def _require_same(candidate: str, source: str, root: str, names: list[str]) -> None:
    for name in names:
        digests = []
        for folder in (source, root):
            with open(f"{folder}/{name}", "rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").digest())
        if digests[0] != digests[1]:
            raise BenchError(f"{candidate} served wrong bytes for {name}: its figures would mean nothing")
